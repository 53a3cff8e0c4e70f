"""R-Drop: the divergence against torch, the loss of each kind of task by hand, and the recipes."""

from types import SimpleNamespace

import pytest
import test_distillation
import test_tagging
import torch
from recipe_runs import assert_close, weights
from test_cross_entropy import chunk  # noqa: F401
from test_distillation import data as distillation_data  # noqa: F401
from test_sentiment import DRIVERS, data, start  # noqa: F401
from test_tagging import data as tagging_data  # noqa: F401
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div

from hfseq.errors import InputError
from hfseq.tasks.classification import Classification, Regression
from hfseq.tasks.language_modeling import LanguageModeling
from hfseq.tasks.losses import summed_divergence
from hfseq.tasks.tagging import Tagging


def symmetric(first, second):
    p, q = (logits.float().log_softmax(dim=-1) for logits in (first, second))
    return (kl_div(p, q, reduction="sum", log_target=True) + kl_div(q, p, reduction="sum", log_target=True)) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_and_gradients_are_torchs(chunk, dtype):  # noqa: F811
    torch.manual_seed(0)
    logits = [(3 * torch.randn(4, 3, 13)).to(dtype).requires_grad_() for _ in range(2)]
    expected, found = symmetric(*logits), summed_divergence(*logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    right = torch.autograd.grad(expected / 7, logits)
    torch.testing.assert_close(torch.autograd.grad(found / 7, logits), right)
    with torch.no_grad():
        torch.testing.assert_close(summed_divergence(*logits), expected)


def make(kind, **fields):
    task = object.__new__(kind)
    task.args = SimpleNamespace(label_smoothing_factor=0.0, rdrop_alpha=3.0)
    vars(task).update(fields)
    return task


def tokens(*shape):
    labels = torch.randint(0, 7, shape)
    labels[0, -1] = labels[1, 0] = -100
    return labels


TOKENS, CLASSES = tokens(5, 4), torch.randint(0, 7, (5,))
MULTI, NUMBERS = torch.randint(0, 2, (5, 7)).float(), torch.rand(5)
# Task, labels of a batch, logits of both readings, mean cross-entropy of one reading, divergence by label.
CASES = {
    "tokens": (make(Tagging), TOKENS, (10, 4, 7)),
    "labelled steps": (make(Tagging), TOKENS, (2 * int((TOKENS != -100).sum()), 7)),
    "shifted": (make(LanguageModeling), TOKENS, (10, 4, 7)),
    "classes": (make(Classification, weights=None, multi_label=False), CLASSES, (10, 7)),
    "several classes": (make(Classification, weights=None, multi_label=True), MULTI, (10, 7)),
    "numbers": (make(Regression), NUMBERS, (10, 1)),
}


def by_hand(case, logits, labels):
    """Mean loss of one reading, and divergence from another one."""
    if case == "numbers":
        return lambda one: (one[:, 0] - labels).square().mean(), lambda one, two: (one - two).square().mean()
    if case == "several classes":
        both = torch.distributions.Bernoulli, torch.distributions.kl_divergence

        def divergence(one, two):
            p, q = (both[0](logits=values) for values in (one, two))
            return ((both[1](p, q) + both[1](q, p)) / 2).mean()

        return lambda one: binary_cross_entropy_with_logits(one, labels), divergence
    if case == "shifted":
        labels = labels[:, 1:]
    right = labels[labels != -100]

    def select(values):
        if case == "labelled steps":
            return values
        return (values[:, :-1] if case == "shifted" else values)[labels != -100]

    return (
        lambda one: cross_entropy(select(one), right),
        lambda one, two: symmetric(select(one), select(two)) / len(right),
    )


# A language model's labels include the first token, which no step predicts: the drivers count the others.
@pytest.mark.parametrize(
    ("case", "counted"), [*((case, True) for case in CASES), *((case, False) for case in CASES if case != "shifted")]
)
def test_loss_of_two_readings(case, counted):
    task, labels, shape = CASES[case]
    logits = torch.randn(shape, requires_grad=True)
    batch = task.twice({"labels": labels})
    assert torch.equal(batch["labels"], torch.cat([labels, labels]))
    loss, divergence = by_hand(case, logits, labels)
    first, second = logits.chunk(2)
    expected = (loss(first) + loss(second)) / 2 + 3 * divergence(first, second)
    # Half of an accumulated batch: its count is that of all labels, each once.
    count = task.count({"labels": labels[:, 1:] if case == "shifted" else labels}) * 2 if counted else None
    found = task.training_loss(SimpleNamespace(logits=logits), batch["labels"], count)
    torch.testing.assert_close(found, expected / 2 if counted else expected)


def test_evaluation_reads_rows_once():
    task, labels, shape = CASES["classes"]
    with torch.no_grad():
        assert task.twice({"labels": labels})["labels"] is labels
        logits = torch.randn(5, 7)
        found = task.training_loss(SimpleNamespace(logits=logits), labels)
    torch.testing.assert_close(found, cross_entropy(logits, labels))


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_recipes(driver, data, tmp_path):  # noqa: F811
    flags = {"metric_for_best_model": "loss", "gradient_accumulation_steps": 3, "num_train_epochs": 1}
    dropout = {"config_overrides": '{"hidden_size": 24, "embedding_size": 12, "dropout": 0.5}'}
    plain, same, other, dropped = (
        start(driver, data, tmp_path / str(number), **flags, **more)
        for number, more in enumerate(({}, {"rdrop_alpha": 3}, {"rdrop_alpha": 3, **dropout}, dropout))
    )
    # Without dropout both readings are equal.
    assert_close(weights(plain), weights(same))
    with pytest.raises(AssertionError):
        assert_close(weights(other), weights(dropped), 1e-3)


def test_losses_that_cannot_be_compared(tagging_data, distillation_data, tmp_path):  # noqa: F811
    message = "--rdrop_alpha needs a loss of classes or tokens"
    with pytest.raises(InputError, match=message):
        test_tagging.start(tagging_data, tmp_path / "crf", rdrop_alpha=1)
    with pytest.raises(InputError, match=message):
        test_distillation.start(distillation_data, tmp_path / "student", rdrop_alpha=1)
    with pytest.raises(InputError, match="--rdrop_alpha -1"):
        test_tagging.start(tagging_data, tmp_path / "negative", rdrop_alpha=-1)
