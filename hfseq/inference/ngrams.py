"""N-gram language model with modified Kneser-Ney smoothing, a baseline for neural ones and a part of mixtures."""

from typing import NamedTuple, Self

import numpy as np

_FALLBACK = (0.0, 0.5, 1.0, 1.5)
"""Discounts where a text is too small to estimate them, as in KenLM (Heafield et al. 2013)."""


class _Order(NamedTuple):
    """Estimates of the n-grams of one order.

    Attributes:
        keys: Key of each n-gram, sorted: the number of its context times the vocabulary size, plus its last token.
        shares: Discounted relative frequency of each n-gram in its context.
        backoff: Probability that each context leaves to the lower order.
    """

    keys: np.ndarray
    shares: np.ndarray
    backoff: np.ndarray

    @classmethod
    def estimate(cls, keys: np.ndarray, contexts: int, counts: np.ndarray, vocab_size: int) -> Self:
        """Estimate one order.

        Args:
            keys: As above.
            contexts: Number of contexts.
            counts: Count of each n-gram.
            vocab_size: Vocabulary size.
        """
        context, discount = keys // vocab_size, discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(context, counts, minlength=contexts)
        left = np.bincount(context, discount, minlength=contexts)
        # A context without counts, the beginning of the text, leaves everything to the lower order.
        backoff = np.divide(left, total, out=np.ones(contexts), where=total > 0)
        return cls(keys, (counts - discount) / np.maximum(total, 1)[context], backoff)


class KneserNey:
    r"""N-gram language model with interpolated modified Kneser-Ney smoothing (Chen & Goodman 1998, section 4.1.6).

    The probability of a token w after a context h of n - 1 tokens is
    $p(w|h) = (c(hw) - D(c(hw))) / c(h\cdot) + \gamma(h)\, p(w|h')$, where $h'$ is h without its first token. Counts c
    of the highest order are frequencies; those of lower orders are the numbers of distinct tokens before the n-gram
    (Kneser & Ney 1995). The lowest order is interpolated with the uniform distribution.

    Args:
        ids: Token ids of the training text `[N]`.
        order: Length of the longest n-grams, at least 1.
        vocab_size: Number V of token ids.
    """

    def __init__(self, ids: np.ndarray, order: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        tokens = np.asarray(ids, dtype=np.int64)
        # Each n-gram of the text is the number, by the order of keys, of the one that begins at a token.
        grams: list[tuple[np.ndarray, int, np.ndarray]] = []  # keys, number of contexts, counts
        numbers, contexts = np.zeros(len(tokens) + 1, dtype=np.int64), 1
        for length in range(1, min(order, len(tokens)) + 1):
            shorter, known = numbers, contexts
            keyed = shorter[: len(tokens) - length + 1] * vocab_size + tokens[length - 1 :]
            keys, first, numbers, counts = np.unique(keyed, return_index=True, return_inverse=True, return_counts=True)
            if grams:
                # Each distinct n-gram counts once for the one without its first token.
                grams[-1] = (*grams[-1][:2], np.bincount(shorter[first + 1], minlength=known))
            grams.append((keys, known, counts))
            contexts = len(keys)
        self.orders = [_Order.estimate(*gram, vocab_size) for gram in grams]

    def log_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Log-probability of each token of a text except the first, in nats, `[N - 1]`.

        Args:
            ids: Token ids of the text `[N]`.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        found, numbers = np.full(len(tokens), 1 / self.vocab_size), np.zeros(len(tokens) + 1, dtype=np.int64)
        for length, order in enumerate(self.orders[: len(tokens)], start=1):
            context = numbers[: len(tokens) - length + 1]  # -1 where it is not in the training text
            keyed = context * self.vocab_size + tokens[length - 1 :]
            numbers = np.minimum(np.searchsorted(order.keys, keyed), len(order.keys) - 1)
            seen = (context >= 0) & (order.keys[numbers] == keyed)
            lower = found[length - 1 :]
            lower *= np.where(context >= 0, order.backoff[context], 1)
            lower += np.where(seen, order.shares[numbers], 0)
            numbers = np.where(seen, numbers, -1)
        return np.log(found[1:])


def discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of n-grams that occur never, once, twice, and more often (Chen & Goodman 1998, eq. 26).

    Args:
        counts: Count of each n-gram of one order.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    if not n[1:5].all():
        return np.array(_FALLBACK)
    y = n[1] / (n[1] + 2 * n[2])
    estimates = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
    # Without a discount nothing would be left to the lower order, and with a negative one less than nothing.
    return np.array([0, *estimates] if min(estimates) > 0 else _FALLBACK)
