"""Interpolation of a recommender's probabilities with those of a Markov chain, of n-grams, and of a cache."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from hfseq.tasks.recommendation_baselines import Markov, Popularity

_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Weights that are tried for each component."""
_DECAY = 0.9
"""Share of the weight of an item in the cache that is left after each step."""
_CONTEXT = 3
"""Maximum number of items of a context of n-grams."""
Contexts = Mapping[tuple[int, ...], Counter[int]]
"""Context to the items that followed it, and how often each did."""


class Mixture:
    """Linear interpolation of probabilities (Jelinek and Mercer 1980).

    Components are the model, and

    - `markov`: a first-order Markov chain;
    - `ngram`: n-grams of up to four items, smoothed by the method of Witten and Bell (1991): what followed the last
      n - 1 items in training is interpolated with what followed fewer, down to popularity;
    - `cache`: the items of the history, which lose weight with each step (Clarkson and Robinson 1997), interpolated in
      the same way with its n-grams (Jelinek et al. 1991), for items and patterns that users come back to.

    Where nothing followed the last item in training, the model stands in for the Markov chain; where the history is
    empty, for the cache, too.

    Args:
        names: Components besides the model.
        rows: Item ids of each training row.
        num_items: Number V of ids.
    """

    def __init__(self, names: Sequence[str], rows: Sequence[Sequence[int]], num_items: int) -> None:
        self.names = names
        self.weights = list(product(_WEIGHTS, repeat=len(names)))
        if "markov" in names:
            self.followers = Markov(rows, num_items).followers
        if "ngram" in names:
            counts = torch.from_numpy(Popularity(rows, num_items).counts)
            self.popularity, self.contexts = counts / counts.sum(), contexts_of(rows)

    def __call__(
        self, scores: Tensor, history: Tensor, weights: Sequence[Sequence[float]] | None = None
    ) -> list[Tensor]:
        """Probabilities `[N, V]` for each tuple of weights.

        Args:
            scores: Logits `[N, V]`, -inf for what is no item.
            history: Ids of the items read, `[N, T]`, the last one in the last column; -1 elsewhere.
            weights: Weights of the components; by default all that are tried.
        """
        own = scores.softmax(dim=-1)
        found = [getattr(self, f"_{name}")(own, history) for name in self.names]
        mixtures = []
        for some in self.weights if weights is None else weights:
            mixed = (1 - sum(some)) * own
            for weight, one in zip(some, found, strict=True):
                mixed = mixed.add(one, alpha=weight) if weight else mixed
            mixtures.append(mixed)
        return mixtures

    def _markov(self, own: Tensor, history: Tensor) -> Tensor:
        chain = own.clone()
        for row, item in enumerate(history[:, -1].tolist()):
            if item in self.followers:
                after, counts = map(torch.from_numpy, self.followers[item])
                chain[row] = 0
                chain[row, after.to(chain.device)] = (counts / counts.sum()).to(chain)
        return chain

    def _ngram(self, own: Tensor, history: Tensor) -> Tensor:
        found = self.popularity.to(own).repeat(len(own), 1)
        for row, items in zip(found, history.tolist(), strict=True):
            interpolate(row, items, self.contexts)
        return found

    def _cache(self, own: Tensor, history: Tensor) -> Tensor:
        age = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
        weights = (_DECAY**age).to(own).expand(history.shape).masked_fill(history < 0, 0.0)
        total = weights.sum(dim=1, keepdim=True)
        weights = weights / total.clamp(min=torch.finfo(own.dtype).tiny)
        cache = torch.zeros_like(own).scatter_add_(1, history.clamp(min=0), weights)
        for row, items in zip(cache, history.tolist(), strict=True):
            read = [item for item in items if item >= 0]
            interpolate(row, read, contexts_of([read]))
        return torch.where(total > 0, cache, own)


def contexts_of(rows: Sequence[Sequence[int]]) -> Contexts:
    """Count what follows each context of up to three items, in which -1 stands for the start of a row."""
    contexts: dict[tuple[int, ...], Counter[int]] = {}
    for row in rows:
        padded = (-1, *row)
        for end, item in enumerate(row, start=1):
            for start in range(max(0, end - _CONTEXT), end):
                contexts.setdefault(padded[start:end], Counter())[item] += 1
    return contexts


def interpolate(probabilities: Tensor, items: Sequence[int], contexts: Contexts) -> None:
    """Interpolate probabilities with the distributions after longer and longer contexts, in place.

    The weight of a distribution is that of method C of Witten and Bell (1991): the chance of something new after a
    context is the number of different items that followed it, by that number and all of their occurrences.

    Args:
        probabilities: Probability of each item `[V]`, without a context.
        items: The items read, the last one at the end.
        contexts: Counts after each context.
    """
    for size in range(1, min(_CONTEXT, len(items)) + 1):
        after = contexts.get(tuple(items[-size:]))
        if after is None:
            return
        norm = after.total() + len(after)
        probabilities *= len(after) / norm
        probabilities[list(after)] += torch.tensor([*after.values()]).to(probabilities) / norm
