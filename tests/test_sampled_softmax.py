import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from hfseq import CnnConfig, GruConfig, LstmConfig, RnnConfig
from hfseq.errors import InputError
from hfseq.models.sampled_softmax import SampledSoftmax
from hfseq.tasks.language_modeling import LanguageModeling
from hfseq.training.finetuning import TaskArguments

SIZES = {"vocab_size": 20, "hidden_size": 8, "embedding_size": 6, "dropout": 0.0}
FAMILIES = [RnnConfig, LstmConfig, GruConfig, CnnConfig]
LOSSES = ["sampled_softmax", "cross_entropy", "bpr_max"]


def make_batch():
    """Rows with padding on the right, on the left and without."""
    ids = torch.randint(4, 20, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mask[1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def make_model(config, **fields):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZES | fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    return model


def naive(layer, hidden, weight, targets, sampled):
    """Hidasi & Karatzoglou 2018 and Bengio & Senécal 2008, item by item."""
    counts = layer.item_counts.tolist()
    powers = [count**layer.alpha if count else 0.0 for count in counts]
    total = 0
    for row in range(len(targets)):
        of_others = [
            item for other, line in enumerate(targets.tolist()) if other != row for item in line if item != -100
        ]
        for step, target in enumerate(targets[row].tolist()):
            if target == -100:
                continue
            negatives = [*sampled, *(of_others if layer.in_batch else [])]
            negatives = [item for item in negatives if item != target and counts[item] > 0]
            r_i = hidden[row, step] @ weight[target]
            r = [hidden[row, step] @ weight[item] for item in negatives]
            if layer.kind == "bpr_max":
                largest = sum(one.exp() for one in r)
                s = [one.exp() / largest for one in r]
                won = sum(share * torch.sigmoid(r_i - one) for share, one in zip(s, r, strict=True))
                squares = sum(share * one**2 for share, one in zip(s, r, strict=True))
                total = total - won.log() + layer.regularization * squares
                continue
            others = 0
            for item, score in zip(negatives, r, strict=True):
                expected = 1.0
                if layer.kind == "sampled_softmax":
                    expected = len(sampled) * powers[item] / sum(powers)
                    expected += len(of_others) * counts[item] / sum(counts) if layer.in_batch else 0
                others = others + score.exp() / expected
            total = total - (r_i.exp() / (r_i.exp() + others)).log()
    return total


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_the_papers(loss, in_batch, monkeypatch):
    torch.manual_seed(0)
    fields = {"in_batch_negatives": in_batch, "sampled_loss": loss, "score_regularization": 0.3}
    layer = SampledSoftmax(GruConfig(**SIZES, num_negatives=6, **fields))
    counts = torch.randint(1, 50, (20,))
    counts[[0, 7]] = 0
    layer.set_counts(counts)
    # One item twice, one that is a target, one with a count of 0.
    sampled = torch.tensor([3, 3, 5, 11, 7, 19])
    monkeypatch.setattr(layer, "draw", lambda weights: sampled)
    hidden = torch.randn(3, 4, 6, requires_grad=True)
    weight = torch.randn(20, 6, requires_grad=True)
    targets = torch.tensor([[5, 11, -100, 7], [4, 5, 19, 9], [-100, -100, 4, 3]])
    found = layer.loss(hidden, weight, targets)
    expected = naive(layer, hidden, weight, targets, sampled.tolist())
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(one, [hidden, weight]) for one in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", FAMILIES)
def test_with_all_items_as_negatives_it_is_the_full_softmax(config, tied, monkeypatch):
    model = make_model(config, num_negatives=20, tie_word_embeddings=tied)
    batch = make_batch()
    # Drawn uniformly 20 times, each is expected once.
    monkeypatch.setattr(model.sampled_softmax, "draw", lambda weights: torch.arange(20))
    parameters = list(model.parameters())
    gradients = []
    losses = []
    for mode in (True, False):
        loss = model.train(mode)(**batch).loss
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, parameters))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_sum_over_the_negatives_is_unbiased():
    """exp(loss) is the estimated sum over all items, over the target's term."""
    torch.manual_seed(0)
    layer = SampledSoftmax(GruConfig(**SIZES, num_negatives=40, in_batch_negatives=True))
    counts = torch.randint(1, 30, (20,))
    layer.set_counts(counts)
    hidden, weight = torch.randn(1, 1, 6), 0.5 * torch.randn(20, 6)
    target = torch.tensor([[4]])
    logits = (hidden @ weight.T)[0, 0]
    expected = (logits.exp().sum() / logits[4].exp()).item()
    total = 0.0
    for _ in range(1500):
        # Rows of other users, whose items come by their popularity.
        others = torch.multinomial(counts.float(), 10, replacement=True)[:, None]
        hiddens = torch.cat([hidden, torch.randn(10, 1, 6)])
        total += layer.step_losses(hiddens, weight, torch.cat([target, others]))[0, 0].exp().item()
    assert total / 1500 == pytest.approx(expected, rel=0.02)


def test_negatives_are_drawn_by_their_counts(monkeypatch):
    torch.manual_seed(0)
    layer = SampledSoftmax(GruConfig(vocab_size=5, num_negatives=100_000, negative_sampling_alpha=0.5))
    drawn = layer.draw(torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0], dtype=torch.double)).bincount(minlength=5)
    assert drawn[0] == drawn[3] == 0
    torch.testing.assert_close(drawn / 100_000, torch.tensor([0, 1, 2, 0, 5]) / 8, rtol=0, atol=0.01)
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.zeros(*shape, **kwargs))
    assert layer.draw(torch.tensor([0.0, 1.0], dtype=torch.double)).unique().tolist() == [1]


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_language_model_trains_with_negatives_and_predicts_without(config, loss, tmp_path):
    model = make_model(config, num_negatives=5, in_batch_negatives=True, sampled_loss=loss)
    plain = make_model(config)
    model.set_item_counts(torch.arange(20))
    batch = make_batch()
    valid = (batch["labels"][:, 1:] != -100) & (batch["attention_mask"][:, :-1] == 1)

    def train(seed, **more):
        torch.manual_seed(seed)
        return model.train()(**batch, **more)

    training = train(1)
    assert training.logits is None and training.loss.isfinite()
    training.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert torch.equal(train(1).loss, training.loss) and not torch.equal(train(2).loss, training.loss)
    # With a divisor, as a Trainer gives it.
    torch.testing.assert_close(train(1, num_items_in_batch=1).loss, training.loss * valid.sum())

    state = torch.get_rng_state()
    evaluated = model.eval()(**batch)
    assert torch.equal(torch.get_rng_state(), state)
    expected = plain.eval()(**batch)
    assert torch.equal(evaluated.loss, expected.loss) and torch.equal(evaluated.logits, expected.logits)

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(loaded.sampled_softmax.item_counts, torch.arange(20))
    assert torch.equal(
        model.generate(batch["input_ids"], max_new_tokens=3), plain.generate(batch["input_ids"], max_new_tokens=3)
    )
    # Its stack can start a classifier, without a word about what is left over.
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("loss", LOSSES)
def test_accumulated_batches_sum_up_and_padding_changes_nothing(loss, monkeypatch):
    model = make_model(GruConfig, num_negatives=5, sampled_loss=loss).train()
    monkeypatch.setattr(model.sampled_softmax, "draw", lambda weights: torch.tensor([4, 9, 9, 15, 0]))
    batch = make_batch()
    whole = model(**batch, num_items_in_batch=20).loss
    rows = []
    for row in range(3):
        valid = batch["attention_mask"][row] == 1
        ids = batch["input_ids"][row : row + 1, valid]
        rows.append(model(input_ids=ids, labels=ids, num_items_in_batch=20).loss)
    torch.testing.assert_close(whole, sum(rows))


def test_steps_without_negatives_have_no_loss():
    for loss in LOSSES:
        model = make_model(GruConfig, num_negatives=0, in_batch_negatives=True, sampled_loss=loss).train()
        ids = torch.tensor([[5, 6, 7]])
        found = model(input_ids=ids, labels=ids).loss
        found.backward()
        assert found.item() == 0 and model.lm_head.weight.grad.abs().max() == 0


class Largest(TorchDispatchMode):
    """Largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        self.size = max(self.size, *(one.numel() for one in tree_leaves(result) if isinstance(one, torch.Tensor)), 0)
        return result


@pytest.mark.parametrize("loss", LOSSES)
def test_no_logits_of_all_items_are_computed(loss):
    model = make_model(GruConfig, vocab_size=3000, num_negatives=16, in_batch_negatives=True, sampled_loss=loss)
    ids = torch.randint(3000, (4, 10))
    with Largest() as largest:
        model.train()(input_ids=ids, labels=ids).loss.backward()
    assert largest.size == model.lm_head.weight.numel() < 40 * 3000  # its gradient
    with Largest() as largest:
        model.eval()(input_ids=ids, labels=ids)
    assert largest.size >= 40 * 3000


def test_new_tokens_are_rare_items():
    model = make_model(LstmConfig, num_negatives=4)
    model.set_item_counts(torch.arange(20))
    model.resize_token_embeddings(22, mean_resizing=False)
    assert model.sampled_softmax.item_counts.tolist() == [*range(20), 1, 1]
    ids = torch.full((2, 3), 21)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    model.resize_token_embeddings(10)
    assert model.sampled_softmax.item_counts.tolist() == [*range(10)]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_negatives": -1},
        {"num_negatives": 0},
        {"in_batch_negatives": True},
        {"num_negatives": 3, "adaptive_softmax_cutoffs": [5]},
        {"num_negatives": 3, "negative_sampling_alpha": -0.5},
        {"num_negatives": 3, "negative_sampling_alpha": math.inf},
        {"num_negatives": 3, "score_regularization": -1},
    ],
)
def test_impossible_settings(fields):
    with pytest.raises(ValueError, match=" is impossible, "):
        GruConfig(**SIZES | fields)


@pytest.mark.parametrize(("fields", "own"), [({}, False), ({"num_negatives": 4}, True)])
def test_blocks_of_text_train_by_it(fields, own):
    """By the loss of the model; that of the task would compute all logits."""
    task = LanguageModeling(TaskArguments(task="language_modeling"), SimpleNamespace(label_smoothing_factor=0.0))
    model = make_model(GruConfig, **fields)
    task.configure(model, None)
    assert task.own_loss is own
    task.args.label_smoothing_factor = 0.1
    if own:
        with pytest.raises(InputError, match="--label_smoothing_factor is not supported for a loss over sampled neg"):
            task.configure(model, None)
    else:
        task.configure(model, None)


def test_impossible_counts_and_heads():
    model = make_model(GruConfig, num_negatives=3)
    for counts in (torch.ones(20), torch.zeros(20, dtype=torch.long), -torch.arange(20)):
        with pytest.raises(ValueError, match="counts must be integers"):
            model.set_item_counts(counts)
    with pytest.raises(ValueError, match=r"counts has shape \(19,\), expected \(20,\)"):
        model.set_item_counts(torch.arange(19))
    with pytest.raises(ValueError, match="set num_negatives"):
        make_model(GruConfig).set_item_counts(torch.arange(20))
    with pytest.raises(ValueError, match="num_negatives"):
        AutoModelForSeq2SeqLM.from_config(GruConfig(**SIZES, num_negatives=3))
