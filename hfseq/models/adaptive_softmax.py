"""Adaptive softmax (Grave et al. 2017): an output layer that computes less for infrequent words."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear


class AdaptiveSoftmax(nn.Module):
    r"""Probabilities of a vocabulary sorted by frequency, most frequent words first.

    The head consists of the words before the first cutoff and an entry for each later cluster. The probability of a
    word in a cluster is $p(w|h) = p(C|h)\,p(w|C,h)$ (Grave et al. 2017, section 4), which is exact, not an
    approximation. Training computes the head, and each cluster only at the steps whose word is in it.

    Clusters are not projected to smaller widths (section 4.3 of the paper), so that their rows remain those of one
    output matrix, which can be tied to the embeddings.

    Args:
        width: Width D of the hidden states.
        cutoffs: First word of each cluster after the head, increasing.
        bias: Whether the entries of the clusters have a bias. That of the words is an argument, like their weights.
    """

    def __init__(self, width: int, cutoffs: Sequence[int], bias: bool = False) -> None:
        super().__init__()
        self.cutoffs = tuple(cutoffs)
        self.clusters = nn.Linear(width, len(cutoffs), bias=bias)

    def forward(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Log-probabilities `[B, T, V]` from hidden states `[B, T, D]`, the output matrix `[V, D]` and bias `[V]`."""
        first, *later = self._split(weight, bias)
        head = self._head(hidden, *first).float().log_softmax(dim=-1)
        parts = [head[..., : self.cutoffs[0]]]
        for index, (rows, offsets) in enumerate(later):
            inside = linear(hidden, rows, offsets).float().log_softmax(dim=-1)
            parts.append(inside + head[..., self.cutoffs[0] + index, None])
        return torch.cat(parts, dim=-1)

    def loss(self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the targets `[B, T]`, summed; -100 is ignored."""
        counted = targets != -100
        hidden, targets = hidden[counted], targets[counted]
        # Cluster 0 is the head.
        cluster = torch.bucketize(targets, torch.tensor(self.cutoffs, device=targets.device), right=True)
        entries = torch.where(cluster == 0, targets, self.cutoffs[0] + cluster - 1)
        first, *later = self._split(weight, bias)
        total = cross_entropy(self._head(hidden, *first).float(), entries, reduction="sum")
        for index, (rows, offsets) in enumerate(later):
            inside = cluster == index + 1
            logits = linear(hidden[inside], rows, offsets).float()
            total = total + cross_entropy(logits, targets[inside] - self.cutoffs[index], reduction="sum")
        return total

    def _head(self, hidden: Tensor, rows: Tensor, offsets: Tensor | None) -> Tensor:
        return torch.cat([linear(hidden, rows, offsets), self.clusters(hidden)], dim=-1)

    def _split(self, weight: Tensor, bias: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Rows and biases of the head's words and of each cluster."""
        sizes = [end - start for start, end in pairwise((0, *self.cutoffs, len(weight)))]
        # One split: the backward pass of each single slice would allocate a gradient of the whole matrix.
        rows = weight.split(sizes)
        return list(zip(rows, [None] * len(rows) if bias is None else bias.split(sizes), strict=True))
