"""Metrics of rankings with one relevant item each, from the rank of that item."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def hit_rate(ranks: Sequence[int], k: int = 10) -> dict[str, Any]:
    """Hit rate at k, which for one relevant item equals recall at k; higher is better.

    Args:
        ranks: Rank of the relevant item in each ranking, from 1; 0 if it was not ranked at all.
        k: Number of items at the top that count.

    Returns:
        `hit_rate`, from 0 to 1, which is also `score`.

    Raises:
        ValueError: There are no ranks, one is negative, or `k` is less than 1.
    """
    ranked = _ranks("hit_rate", ranks, k)
    return _named("hit_rate", (ranked <= k).astype(float))


def ndcg(ranks: Sequence[int], k: int = 10) -> dict[str, Any]:
    """Normalised discounted cumulative gain at k (Järvelin and Kekäläinen 2002).

    With one relevant item it is the mean of `1 / log2(rank + 1)`, 0 below rank k; arguments and errors as for
    `hit_rate`.

    Returns:
        `ndcg`, from 0 to 1, which is also `score`; higher is better.
    """
    ranked = _ranks("ndcg", ranks, k)
    return _named("ndcg", np.where(ranked <= k, 1 / np.log2(ranked + 1), 0.0))


def mrr(ranks: Sequence[int], k: int = 10) -> dict[str, Any]:
    """Mean reciprocal rank, 0 below rank k; arguments and errors as for `hit_rate`.

    Returns:
        `mrr`, from 0 to 1, which is also `score`; higher is better.
    """
    ranked = _ranks("mrr", ranks, k)
    return _named("mrr", np.where(ranked <= k, 1 / ranked, 0.0))


def _ranks(name: str, ranks: Sequence[int], k: int) -> np.ndarray:
    """Ranks as floats, infinite where an item was not ranked."""
    found = np.asarray(ranks)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"{name}: needs a list of ranks, at least one")
    if not np.issubdtype(found.dtype, np.integer) or (found < 0).any():
        raise ValueError(f"{name}: ranks must be whole numbers from 1, or 0 for items that were not ranked")
    if k < 1:
        raise ValueError(f"{name}: k={k} must be at least 1")
    return np.where(found == 0, np.inf, found)


def _named(name: str, values: np.ndarray) -> dict[str, Any]:
    score = float(values.mean())
    return {name: score, "score": score}
