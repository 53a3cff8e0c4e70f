"""Recommenders without a network, which scores are shown beside: popularity, and a first-order Markov chain."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np


class ItemScores(Protocol):
    """Recommender that scores all items."""

    def scores(self, history: Sequence[int]) -> np.ndarray:
        """Score of each item `[V]` after a history of item numbers, oldest first; higher is better."""
        ...


class Popularity:
    """Items by their number of training interactions.

    Args:
        rows: Item numbers of each training row.
        num_items: Number V of items.
    """

    def __init__(self, rows: Sequence[Sequence[int]], num_items: int) -> None:
        self.counts = np.zeros(num_items)
        for row in rows:
            np.add.at(self.counts, np.asarray(row, dtype=int), 1)

    def scores(self, history: Sequence[int]) -> np.ndarray:
        """Score of each item `[V]`, the same after any history."""
        return self.counts


class Markov(Popularity):
    """First-order Markov chain: items by how often they followed the last item of the history in training.

    Popularity breaks ties, and orders the items that never followed it.

    Args:
        rows: As for `Popularity`.
        num_items: As for `Popularity`.
    """

    def __init__(self, rows: Sequence[Sequence[int]], num_items: int) -> None:
        super().__init__(rows, num_items)
        followers: dict[int, Counter[int]] = {}
        for row in rows:
            for item, after in zip(row, row[1:], strict=False):
                followers.setdefault(item, Counter())[after] += 1
        self.followers = {
            item: (np.fromiter(found, dtype=int), np.fromiter(found.values(), dtype=float))
            for item, found in followers.items()
        }
        # Below 1, the least difference of two counts.
        self.shares = self.counts / (self.counts.sum() + 1)

    def scores(self, history: Sequence[int]) -> np.ndarray:
        """Score of each item `[V]` by the last item of the history; by popularity if there is none."""
        scores: np.ndarray = self.shares.copy()
        if len(history) and history[-1] in self.followers:
            items, counts = self.followers[history[-1]]
            scores[items] += counts
        return scores


BASELINES = {"popularity": Popularity, "markov": Markov}
"""Name of a baseline to its class."""
