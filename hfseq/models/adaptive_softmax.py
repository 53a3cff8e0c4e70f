"""Adaptive softmax (Grave et al. 2017): an output layer whose cost goes with the frequency of words."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear


class AdaptiveSoftmax(nn.Module):
    r"""Probabilities of a vocabulary that is sorted by frequency, the most frequent words first.

    The words before the first cutoff are the head, which has an entry for each of the later clusters, too. A word of a
    later cluster has the probability of its cluster times its own in it, $p(w|h) = p(C|h)\,p(w|C,h)$ (Grave et al.
    2017, section 4): a distribution like any other, and no approximation. Training computes the head and, at steps
    whose word is in it, one cluster.

    The clusters are not made narrower, as the paper's section 4.3 does: their rows stay those of one output matrix,
    which can be the embeddings'.

    Args:
        width: Of the hidden states, D.
        cutoffs: First word of each cluster after the head, increasing.
    """

    def __init__(self, width: int, cutoffs: Sequence[int]) -> None:
        super().__init__()
        self.cutoffs = tuple(cutoffs)
        self.clusters = nn.Linear(width, len(cutoffs), bias=False)

    def forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Log-probabilities `[B, T, V]` from hidden states `[B, T, D]` and the output matrix `[V, D]`."""
        first, *later = self._rows(weight)
        head = self._head(hidden, first).float().log_softmax(dim=-1)
        parts = [head[..., : self.cutoffs[0]]]
        for index, rows in enumerate(later):
            inside = linear(hidden, rows).float().log_softmax(dim=-1)
            parts.append(inside + head[..., self.cutoffs[0] + index, None])
        return torch.cat(parts, dim=-1)

    def loss(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Sum of the negative log-probabilities of the targets `[B, T]`, -100 not counted."""
        counted = targets != -100
        hidden, targets = hidden[counted], targets[counted]
        # Cluster 0 is the head.
        cluster = torch.bucketize(targets, torch.tensor(self.cutoffs, device=targets.device), right=True)
        entries = torch.where(cluster == 0, targets, self.cutoffs[0] + cluster - 1)
        first, *later = self._rows(weight)
        total = cross_entropy(self._head(hidden, first).float(), entries, reduction="sum")
        for index, rows in enumerate(later):
            inside = cluster == index + 1
            logits = linear(hidden[inside], rows).float()
            total = total + cross_entropy(logits, targets[inside] - self.cutoffs[index], reduction="sum")
        return total

    def _head(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([linear(hidden, rows), self.clusters(hidden)], dim=-1)

    def _rows(self, weight: Tensor) -> tuple[Tensor, ...]:
        # One split, since each slice of its own would have a gradient of the whole matrix, most of it zeros.
        return weight.split([end - start for start, end in pairwise((0, *self.cutoffs, len(weight)))])
