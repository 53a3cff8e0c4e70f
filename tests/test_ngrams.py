"""Kneser-Ney n-grams against the formulas of Chen and Goodman (1998), and mixtures of a model with them."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from test_continuous_cache import RECIPE, data, results, start, trained  # noqa: F401

from hfseq.errors import InputError
from hfseq.inference.mixtures import WEIGHTS, MixtureScores, Share
from hfseq.inference.ngrams import KneserNey, discounts

VOCABULARY = 12


def text(length, seed=0):
    """Tokens that mostly follow each other, the last one of the vocabulary never."""
    rng = np.random.default_rng(seed)
    ids = [0]
    for _ in range(length - 1):
        ids.append(int((ids[-1] + rng.geometric(0.5)) % (VOCABULARY - 1)))
    return np.array(ids)


class Naive:
    """Modified Kneser-Ney smoothing with dictionaries, one probability at a time."""

    def __init__(self, ids, order):
        grams = {n: Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)) for n in range(1, order + 1)}
        self.counts = {order: grams[order]}
        for n in range(1, order):
            self.counts[n] = Counter(gram[1:] for gram in grams[n + 1])
        self.discounts = {n: self.discounts_of(counts) for n, counts in self.counts.items()}
        self.order = order

    @staticmethod
    def discounts_of(counts):
        n = Counter(counts.values())
        if all(n[k] for k in (1, 2, 3, 4)):
            y = n[1] / (n[1] + 2 * n[2])
            found = {1: 1 - 2 * y * n[2] / n[1], 2: 2 - 3 * y * n[3] / n[2], 3: 3 - 4 * y * n[4] / n[3]}
            if min(found.values()) > 0:
                return found
        return {1: 0.5, 2: 1.0, 3: 1.5}

    def probability(self, word, context):
        n = len(context) + 1
        lower = 1 / VOCABULARY if n == 1 else self.probability(word, context[1:])
        after = {gram: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        if not after:
            return lower
        discount, total = self.discounts[n], sum(after.values())
        count = after.get((*context, word), 0)
        own = count - discount[min(count, 3)] if count else 0
        return (own + sum(discount[min(count, 3)] for count in after.values()) * lower) / total


@pytest.mark.parametrize("length", [6, 40, 600])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_are_the_papers(order, length):
    train, test = text(length), text(50, seed=1)
    test[7] = VOCABULARY - 1
    naive = Naive(train.tolist(), order)
    ids = test.tolist()
    expected = [
        math.log(naive.probability(ids[end], tuple(ids[max(0, end - order + 1) : end]))) for end in range(1, 50)
    ]
    found = KneserNey(train.astype(np.int32), order, VOCABULARY).log_probabilities(test.astype(np.int32))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("length", [6, 600])
def test_probabilities_sum_to_one(length):
    ngrams = KneserNey(text(length), 3, VOCABULARY)
    for context in ([0, 1], [3, 10], [VOCABULARY - 1, 2]):
        rows = [ngrams.log_probabilities(np.array([*context, word]))[-1] for word in range(VOCABULARY)]
        assert np.exp(rows).sum() == pytest.approx(1)


def test_both_kinds_of_discounts():
    assert discounts(np.array([1, 2, 5])).tolist() == [0, 0.5, 1, 1.5]
    estimated = discounts(np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 3]))
    np.testing.assert_allclose(estimated, [0, 1 - 2 * 0.5 * 4 / 8, 2 - 3 * 0.5 * 2 / 4, 3 - 4 * 0.5 / 2])
    # One of them would be negative, or 0.
    for counts in ([2, 2, 5, 2], [2, 1, 1, 3], [1, 1, 2, 1]):
        assert discounts(np.repeat([1, 2, 3, 4], counts)).tolist() == [0, 0.5, 1, 1.5]


def test_a_text_shorter_than_the_order():
    ngrams = KneserNey(text(2), 5, VOCABULARY)
    assert ngrams.log_probabilities(text(1)).tolist() == []
    assert len(ngrams.log_probabilities(text(9))) == 8


def test_the_best_mixture():
    model = torch.tensor([0.1, 0.8, 0.3])
    cache = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.1, 0.1], [0.2, 0.2, 0.2]])
    ngram = torch.tensor([[0.2, 0.1, 0.9]])
    scores = MixtureScores(model.log(), {"cache": cache, "ngram": ngram})
    by_hand = {
        (first, second): -((1 - first - second) * model + first * cache[1] + second * ngram[0]).log().sum().item()
        for first in WEIGHTS["cache"]
        for second in WEIGHTS["ngram"]
        if first + second <= 1
    }
    first, second = min(by_hand, key=by_hand.get)
    found = scores.best("cache", "ngram")
    assert found == {"cache": Share(1, first), "ngram": Share(0, second)}
    assert 0 < first < 0.5 and 0 < second < 0.5
    assert scores.total(found) == pytest.approx(by_hand[first, second])
    assert scores.total({}) == pytest.approx(-model.log().sum().item())


def test_the_recipe_scores_mixtures(data, trained, tmp_path, capsys):  # noqa: F811
    flags = ["--do_predict", "--model_name_or_path", trained, "--test_file", data / "test.txt", "--use_cpu"]
    flags += ["--output_dir", tmp_path / "scored", "--ngram_order", "3", "--validation_file", data / "val.txt"]
    with pytest.raises(InputError, match="--ngram_order requires a training text to count n-grams in"):
        start(RECIPE, flags)
    start(RECIPE, [*flags, "--train_file", data / "train.txt", "--cache_size", "30"])
    scores = results(tmp_path / "scored")
    losses = {name: scores[f"test_{name}_loss"] for name in ("ngram", "mixture", "cache", "mixture_cache")}
    # The sentences are so regular that their n-grams know nearly everything.
    assert losses["mixture"] <= losses["ngram"] < losses["cache"] <= scores["test_loss"]
    assert losses["mixture_cache"] < losses["cache"]
    printed = capsys.readouterr().out
    assert "mixture: the model with 3-grams (weight " in printed
    start(RECIPE, [*flags, "--train_file", data / "train.txt", "--output_dir", tmp_path / "without"])
    alone = results(tmp_path / "without")
    assert {name: alone[f"test_{name}_loss"] for name in ("ngram", "mixture")} == pytest.approx(
        {name: losses[name] for name in ("ngram", "mixture")}
    )
    assert "test_cache_loss" not in alone
