"""Adversarial training: the step against the formula, and the recipes."""

import pytest
import test_tagging
import torch
from recipe_runs import assert_close, weights
from test_language_modeling import data as text_data  # noqa: F401
from test_language_modeling import start as start_text
from test_sentiment import DRIVERS, data, start  # noqa: F401
from test_tagging import data as tagging_data  # noqa: F401
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from hfseq import LstmConfig, LstmForSequenceClassification
from hfseq.errors import InputError
from hfseq.tasks.adversarial import adversarial_loss, source_embeddings

IDS, LABELS = torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([0, 1])


def classifier(**fields):
    torch.manual_seed(0)
    config = LstmConfig(vocab_size=9, hidden_size=8, num_labels=2, **fields)
    return LstmForSequenceClassification(config)


@pytest.mark.parametrize("frozen", [False, True])
def test_loss_is_the_papers(frozen):
    model = classifier(dropout=0.0)
    embeddings = model.get_input_embeddings().requires_grad_(not frozen)

    def compute(**inputs):
        return model(**(inputs or {"input_ids": IDS}), attention_mask=IDS != 0, labels=LABELS).loss

    found = adversarial_loss(compute, embeddings, 0.3)
    read = embeddings(IDS).detach().requires_grad_()
    plain = compute(inputs_embeds=read)
    (slope,) = torch.autograd.grad(plain, read)
    sizes = torch.stack([row[ids != 0].norm() / own.norm() for row, ids, own in zip(read, IDS, slope, strict=True)])
    moved = read + 0.3 * sizes[:, None, None] * slope
    against = compute(inputs_embeds=moved)
    assert against > plain
    torch.testing.assert_close(found, (plain + against) / 2)
    # The step is a constant: gradients pass the moved embeddings, not the gradient that they were moved along.
    leaf = embeddings(IDS)
    expected = (compute(inputs_embeds=leaf) + compute(inputs_embeds=leaf + (moved - read).detach())) / 2
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    right = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(found, parameters), right)
    assert not embeddings._forward_hooks


TOKENS = {"vocab_size": 9, "d_model": 8, "pad_token_id": 0, "decoder_start_token_id": 0}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
PRETRAINED = {
    "bart": lambda: BartForConditionalGeneration(BartConfig(**TOKENS, **LAYERS)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**TOKENS, num_layers=1, num_heads=2)),
}


# Their `get_input_embeddings` is not the module that the encoder calls.
@pytest.mark.parametrize("name", PRETRAINED)
def test_embeddings_of_pretrained_encoders(name):
    model = PRETRAINED[name]().eval()

    def compute():
        return model(input_ids=IDS, labels=IDS).loss

    assert adversarial_loss(compute, source_embeddings(model), 0.5) > compute()


def test_a_loss_without_slope():
    model = classifier()
    loss = adversarial_loss(lambda: model(input_ids=IDS).logits.mul(0).sum(), model.get_input_embeddings(), 0.3)
    loss.backward()
    assert loss == 0 and all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("more", [{}, {"rdrop_alpha": 2}])
def test_the_drivers_agree(more, data, tmp_path):  # noqa: F811
    flags = {"metric_for_best_model": "loss", "gradient_accumulation_steps": 3, "num_train_epochs": 1}
    one, other = (
        start(driver, data, tmp_path / driver, **flags, **more, adversarial_epsilon=0.5) for driver in DRIVERS
    )
    assert_close(weights(one), weights(other))
    plain = start(DRIVERS[0], data, tmp_path / "plain", **flags)
    with pytest.raises(AssertionError):
        assert_close(weights(one), weights(plain), 1e-3)


def test_a_loss_of_the_model_itself(tagging_data, tmp_path):  # noqa: F811
    one, plain = (
        test_tagging.start(tagging_data, tmp_path / str(epsilon), adversarial_epsilon=epsilon, num_train_epochs=1)
        for epsilon in (0.5, 0)
    )
    with pytest.raises(AssertionError):
        assert_close(weights(one), weights(plain), 1e-3)


def test_running_text_is_refused(text_data, tmp_path):  # noqa: F811
    for name in ("adversarial_epsilon", "rdrop_alpha"):
        with pytest.raises(InputError, match="not supported for running text"):
            start_text(text_data, tmp_path / name, **{name: 0.5})
