"""On a CUDA device: what the CPU gives, padding that changes nothing, no waiting for the device, recipes.

    python -m pytest tests/test_cuda.py

Elsewhere these tests are skipped; CI has no such device.
"""

import copy
import warnings

import numpy as np
import pytest
import test_generation
import test_models
import torch
from recipe_runs import load, results, start
from test_models import CAUSAL, CLASSES, FIELDS, MODEL, RECURRENT, SEQ2SEQ, SEQUENCE, TOKEN

from hfseq import LstmForCausalLM, LstmForConditionalGeneration, ctc_beam_search
from hfseq.data.running_text import TokenWindows
from hfseq.inference.continuous_cache import cached_scores
from hfseq.models import MODEL_CLASSES
from hfseq.tasks.losses import token_loss
from hfseq.tasks.seq2seq import labelled_steps

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

COPYING = {"pointer_generator": True, "unk_token_id": 3, "coverage": True, "attention_type": "additive"}
SPECIAL = [(TOKEN, {"crf": True}), (TOKEN, {"char_encoder": "lstm"}), (CAUSAL, {"adaptive_softmax_cutoffs": [5, 9]})]
SPECIAL += [(CAUSAL, {"num_negatives": 6, "in_batch_negatives": True})]
SPECIAL += [(SEQ2SEQ, {"bridge": "copy"}), (SEQ2SEQ, {"bridge": "linear", "decoder_hidden_size": 6})]
CASES = [
    pytest.param(auto, model_class, fields, id=f"{model_class.__name__}-{fields}")
    for auto, model_class in (case.values for case in CLASSES)
    for fields in [*FIELDS, *(fields for head, fields in SPECIAL if head == auto), *([COPYING] * (auto == SEQ2SEQ))]
]

# An adaptive softmax has as many rows of rare words as there are targets among them: a size that the host must know.
WITHOUT_WAITING = [case for case in CASES if "adaptive_softmax_cutoffs" not in case.values[2]]


def on_device(values):
    """What a user moves there before a call."""
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in values.items()}


def make_pair(auto, model_class, fields):
    """A model on the CPU and a copy of it on the device, with inputs and labels."""
    fields = fields | {"bidirectional": False} if auto == CAUSAL else fields
    fields = {name: value for name, value in fields.items() if name in model_class.config_class.__dataclass_fields__}
    model = test_models.make(model_class, **fields | ({"char_vocab_size": 9} if "char_encoder" in fields else {}))
    inputs = test_models.make_inputs(model)
    if auto != MODEL:
        tokens = inputs.get("decoder_input_ids", inputs["input_ids"])
        if auto in (SEQUENCE, TOKEN):
            tokens = tokens % model.num_labels
        valid = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
        inputs["labels"] = tokens[:, 0] if auto == SEQUENCE else tokens.masked_fill(~valid, -100)
    if "char_encoder" in fields:
        inputs["char_ids"] = torch.randint(1, 9, (*inputs["input_ids"].shape, 4))
    return model, copy.deepcopy(model).cuda(), inputs


def loss_of(model, inputs):
    output = model(**inputs)
    return output.loss if "labels" in inputs else output[0].pow(2).sum()


@pytest.mark.parametrize(("auto", "model_class", "fields"), CASES)
def test_losses_and_gradients_are_those_of_the_cpu(auto, model_class, fields):
    model, other, inputs = make_pair(auto, model_class, fields)
    expected, found = loss_of(model, inputs), loss_of(other, on_device(inputs))
    torch.testing.assert_close(found.cpu(), expected)
    expected.backward()
    found.backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(None if two.grad is None else two.grad.cpu(), one.grad, msg=name)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_padding_changes_nothing(auto, model_class, bidirectional):
    model = test_models.make(model_class, bidirectional=bidirectional and auto != CAUSAL).cuda()
    test_models.check_padding(model, on_device(test_models.make_inputs(model)))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("auto", "model_class", "fields"), WITHOUT_WAITING)
def test_a_training_step_waits_for_nothing_and_warns_of_nothing(auto, model_class, fields, dtype):
    """Dropout, loss and gradients, in float32 and under autocast, without a look at the device's values."""
    fields = fields | {"dropout": 0.2, "variational_dropout": auto == CAUSAL, "embedding_dropout": 0.1}
    _, model, inputs = make_pair(auto, model_class, fields)
    model, inputs = model.float().train(), on_device(inputs)
    loss_of(model, inputs)  # what the first call sets up
    torch.cuda.synchronize()
    with warnings.catch_warnings(), torch.autocast("cuda", dtype, enabled=dtype is not None):
        warnings.simplefilter("ignore")  # that this mode does not see everything
        torch.cuda.set_sync_debug_mode("error")
        warnings.simplefilter("error")
        try:
            loss = loss_of(model, inputs)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("mode", [name for name in test_generation.MODES if "sampling" not in name])
@pytest.mark.parametrize(
    ("config_class", "kind"),
    [(config, kind) for config in MODEL_CLASSES for kind in test_generation.kinds_of(config, test_generation.KINDS)],
)
def test_generation_is_that_of_the_cpu(config_class, kind, mode):
    model = test_generation.make(config_class, kind)
    inputs = test_generation.make_inputs(model)
    other = copy.deepcopy(model).cuda()
    expected = test_generation.generate(model, inputs, **test_generation.MODES[mode])
    for use_cache in (True, False):
        options = {"use_cache": use_cache} | test_generation.MODES[mode]
        found = test_generation.generate(other, on_device(inputs), **options)
        assert found.sequences.tolist() == expected.sequences.tolist()


@pytest.mark.parametrize("heads", RECURRENT)
def test_gradients_outside_training(heads):
    """As attributions want them."""
    model = test_models.make(heads[SEQUENCE]).cuda().eval()
    inputs = on_device(test_models.make_inputs(model))
    embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    model(inputs_embeds=embedded, **inputs).logits.sum().backward()
    assert embedded.grad[inputs["attention_mask"].bool()].any(dim=-1).all()


def test_ctc_search_is_that_of_the_cpu():
    """The language model on either device, whatever device the logits are on."""
    logits, ids = torch.randn(4, 30, 9, generator=torch.Generator().manual_seed(0)), torch.arange(8, -1, -1)
    mask = torch.arange(30) < torch.tensor([[30], [4], [17], [0]])
    model = test_models.make(LstmForCausalLM, vocab_size=9)
    options = {"blank_token_id": 0, "num_return_sequences": 3, "lm_token_ids": ids, "output_offsets": True}
    expected = ctc_beam_search(logits, mask, language_model=model, **options)
    for one, other in ((model.cuda(), logits.cuda()), (model, logits), (model.cpu(), logits.cuda())):
        for row, right in zip(ctc_beam_search(other, mask, language_model=one, **options), expected, strict=True):
            assert [(same.token_ids, same[4:]) for same in row] == [(same.token_ids, same[4:]) for same in right]
            assert [same.score for same in row] == pytest.approx([same.score for same in right], abs=1e-3)


def test_cross_entropy_of_labelled_steps():
    model = test_models.make(LstmForConditionalGeneration)
    inputs = test_models.make_inputs(model)
    labels = inputs["decoder_input_ids"].masked_fill(inputs["decoder_attention_mask"] == 0, -100)
    losses = []
    for one in (model, copy.deepcopy(model).cuda()):
        batch, targets = {name: value.to(one.device) for name, value in inputs.items()}, labels.to(one.device)
        logits = one(**batch, **labelled_steps(one, targets)).logits
        losses.append(token_loss(logits, targets, label_smoothing=0.1))
    torch.testing.assert_close(losses[1].cpu(), losses[0])


def test_continuous_cache():
    model = test_models.make(LstmForCausalLM)
    ids = np.random.default_rng(0).integers(0, 17, 90)
    windows = TokenWindows(ids, length=20, columns=1)
    expected, found = (
        cached_scores(one, windows, 30, [0.3, 1.0], carry=True) for one in (model, copy.deepcopy(model).cuda())
    )
    torch.testing.assert_close([part.cpu() for part in found], list(expected))


FLAGS = {"max_steps": 12, "logging_steps": 4, "disable_tqdm": "true"}
DEMOS = {
    "translation": {},
    "translation_accelerate": {},
    "summarization": {},
    "summarization_accelerate": {},
    "sentiment": {},
    "sentiment_accelerate": {},
    "tagging": {},
    "language_modeling": {"bf16": "true"},
}


@pytest.mark.parametrize("name", DEMOS)
def test_recipes(name, tmp_path):
    """The demos, cut short: what they read, train, decode and report."""
    flags = FLAGS | DEMOS[name] | {"output_dir": tmp_path / "out"}
    argv = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    start(load(name), argv)
    assert any(key.startswith("test_") for key in results(tmp_path / "out"))
