"""Interpolation of a recommender's probabilities with those of a Markov chain and of a cache of the history."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Weights that are tried for each component."""
_DECAY = 0.9
"""Share of the weight of an item in the cache that is left after each step."""


class Mixture:
    """Linear interpolation of probabilities (Jelinek and Mercer 1980).

    Components are the model, a first-order Markov chain (`markov`), and a cache of the history whose items lose weight
    with each step (`cache`, Clarkson and Robinson 1997), for items that users come back to. Where nothing followed the
    last item in training, or the history is empty, the model stands in for the component.

    Args:
        names: Components besides the model: `markov`, `cache`.
        followers: Item id to the ids of the items that followed it in training, and how often each did.
    """

    def __init__(self, names: Sequence[str], followers: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> None:
        self.names, self.followers = names, followers
        self.weights = list(product(_WEIGHTS, repeat=len(names)))

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

    def _cache(self, own: Tensor, history: Tensor) -> Tensor:
        age = torch.arange(history.shape[1] - 1, -1, -1, device=history.device)
        weights = (_DECAY**age).to(own).expand(history.shape).masked_fill(history < 0, 0.0)
        total = weights.sum(dim=1, keepdim=True)
        weights = weights / total.clamp(min=torch.finfo(own.dtype).tiny)
        cache = torch.zeros_like(own).scatter_add_(1, history.clamp(min=0), weights)
        return torch.where(total > 0, cache, own)
