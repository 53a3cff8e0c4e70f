"""Adaptive softmax (Grave et al. 2017): an output layer that computes less for infrequent words."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear


class AdaptiveSoftmax(nn.Module):
    r"""Probabilities of a vocabulary sorted by frequency, most frequent words first.

    The head consists of the words before the first cutoff and an entry for each later cluster. The probability of a
    word in a cluster is $p(w|h) = p(C|h)\,p(w|C,h)$ (Grave et al. 2017, section 4), which is exact, not an
    approximation. Training computes the head, and each cluster only at the steps whose word is in it.

    By default clusters are not projected to smaller widths (section 4.3 of the paper), so that their rows remain those
    of one output matrix, which can be tied to the embeddings. With a `div_value` d > 1 the hidden states are projected
    to the width $D / d^i$ for the i-th cluster, which has rows of its own, as in `nn.AdaptiveLogSoftmaxWithLoss`. The
    output matrix is then that of the head's words alone.

    Args:
        width: Width D of the hidden states.
        vocab_size: Number of words V.
        cutoffs: First word of each cluster after the head, increasing.
        div_value: Factor d by which each cluster is narrower than the one before it; 1 for no projections.
        bias: Whether the entries of the clusters, and the words of narrower ones, have a bias. That of the words of
            the output matrix is an argument, like their weights.

    Attributes:
        tails: With a `div_value` the projection and the rows of each cluster; otherwise empty.
    """

    def __init__(
        self, width: int, vocab_size: int, cutoffs: Sequence[int], div_value: float = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.cutoffs = tuple(cutoffs)
        self.clusters = nn.Linear(width, len(cutoffs), bias=bias)
        self.tails = nn.ModuleList()
        if div_value != 1:
            for index, (start, end) in enumerate(pairwise((*cutoffs, vocab_size))):
                narrow = tail_width(width, div_value, index)
                rows = nn.Linear(narrow, end - start, bias=bias)
                self.tails.append(nn.Sequential(nn.Linear(width, narrow, bias=False), rows))

    def forward(self, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Log-probabilities of all words.

        Args:
            hidden: Hidden states `[B, T, D]`.
            weight: Output matrix `[V, D]`, with a `div_value` `[cutoffs[0], D]`.
            bias: Bias of the words of the output matrix, or None.

        Returns:
            `[B, T, V]`, in float32.
        """
        first, *later = self._scorers(weight, bias)
        head = self._head(hidden, first).float().log_softmax(dim=-1)
        parts = [head[..., : self.cutoffs[0]]]
        for index, score in enumerate(later):
            inside = score(hidden).float().log_softmax(dim=-1)
            parts.append(inside + head[..., self.cutoffs[0] + index, None])
        return torch.cat(parts, dim=-1)

    def loss(self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the targets `[B, T]`, summed; -100 is ignored. The rest is as in `forward`."""
        counted = targets != -100
        hidden, targets = hidden[counted], targets[counted]
        # Cluster 0 is the head.
        cluster = torch.bucketize(targets, torch.tensor(self.cutoffs, device=targets.device), right=True)
        entries = torch.where(cluster == 0, targets, self.cutoffs[0] + cluster - 1)
        first, *later = self._scorers(weight, bias)
        total = cross_entropy(self._head(hidden, first).float(), entries, reduction="sum")
        for index, score in enumerate(later):
            inside = cluster == index + 1
            logits = score(hidden[inside]).float()
            total = total + cross_entropy(logits, targets[inside] - self.cutoffs[index], reduction="sum")
        return total

    def _head(self, hidden: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([score(hidden), self.clusters(hidden)], dim=-1)

    def _scorers(self, weight: Tensor, bias: Tensor | None) -> list[Callable[[Tensor], Tensor]]:
        """Maps from hidden states to the logits of the head's words, and to those of the words in each cluster."""
        if self.tails:
            return [partial(linear, weight=weight, bias=bias), *self.tails]
        sizes = [end - start for start, end in pairwise((0, *self.cutoffs, len(weight)))]
        # One split: the backward pass of each single slice would allocate a gradient of the whole matrix.
        rows = weight.split(sizes)
        biases = [None] * len(rows) if bias is None else bias.split(sizes)
        return [partial(linear, weight=one, bias=own) for one, own in zip(rows, biases, strict=True)]


def tail_width(width: int, div_value: float, index: int) -> int:
    """Width of the rows of a cluster; the first one after the head has the index 0."""
    return int(width // div_value ** (index + 1))
