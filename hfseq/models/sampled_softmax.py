"""Training losses over sampled negatives, for vocabularies whose logits would not fit into memory."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, logsigmoid, pad, softplus
from transformers import initialization as init

from .configuration_base import SequenceConfig
from .shapes import check_shape


class SampledSoftmax(nn.Module):
    r"""Losses of targets against negatives that all steps of a batch share.

    Negatives are drawn with replacement, with probabilities $q_k \propto c_k^\alpha$ of the counts c; an item with a
    count of 0 is never one. A negative that is a step's target is no negative of that step. With $r_i$ as the logit of
    the target and $r_j$ as those of the negatives, the loss of a step is

    - `sampled_softmax`: $-r_i + \log(\exp r_i + \sum_j \exp(r_j) / E_j)$, where $E_j$ is the expected number of
      occurrences of j among the negatives, that is $m q_j$ for m samples. The sum is an unbiased estimate of that over
      all other items (importance sampling, Bengio & Senécal 2008, section 3), so that the logits are learnt as by the
      full softmax. The target, which is always there, needs no correction.
    - `cross_entropy`: the same with $E_j = 1$ (Hidasi & Karatzoglou 2018). Logits are then lower for items that are
      often negatives; `negative_sampling_alpha` decides how much.
    - `bpr_max`: $-\log \sum_j s_j \sigma(r_i - r_j) + \lambda \sum_j s_j r_j^2$, where $s_j$ is the softmax over the
      negatives (Hidasi & Karatzoglou 2018, BPR-max with score regularization).

    Args:
        config: Its fields `vocab_size` and those of `SamplingFields` count.

    Attributes:
        item_counts: Number of occurrences of each item in the training data, `[V]`; 1 until `set_counts`.
    """

    item_counts: Tensor

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.num_negatives, self.in_batch = config.num_negatives or 0, config.in_batch_negatives
        self.alpha, self.kind = config.negative_sampling_alpha, config.sampled_loss
        self.regularization = config.score_regularization
        # Integers keep their type when a model is converted to another one.
        self.register_buffer("item_counts", torch.ones(config.vocab_size, dtype=torch.long))

    def init_parameters(self) -> None:
        """Initialise the counts to 1, for uniform sampling."""
        init.ones_(self.item_counts)

    def set_counts(self, counts: Tensor) -> None:
        """Set the counts `[V]`; see `ForCausalLM.set_item_counts`."""
        check_shape("counts", counts.shape, self.item_counts.shape)
        if counts.is_floating_point() or bool((counts < 0).any()) or not bool(counts.any()):
            raise ValueError("counts must be integers, none of them negative and at least one positive")
        self.item_counts.copy_(counts)

    def resize(self, vocab_size: int) -> None:
        """Adapt to another size of the vocabulary; new items have a count of 1."""
        kept = self.item_counts[:vocab_size]
        self.item_counts = torch.cat([kept, kept.new_ones(vocab_size - len(kept))])

    def loss(self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        """Loss of the targets `[B, T]`, summed; arguments as for `step_losses`."""
        return self.step_losses(hidden, weight, targets, bias).sum()

    def step_losses(self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        """Loss of each target, `[B, T]`.

        Args:
            hidden: Hidden states `[B, T, D]`.
            weight: Output matrix `[V, D]`.
            targets: Item ids `[B, T]`; the loss of -100 is 0.
            bias: Bias of the logits `[V]`, or None.
        """
        batch, length = targets.shape
        counted = targets != -100
        targets = targets.masked_fill(~counted, 0)
        counts = self.item_counts
        weights = torch.where(counts > 0, counts.double().pow(self.alpha), 0.0)
        sampled = self.draw(weights)  # [M]
        items = torch.cat([targets.flatten(), sampled])
        # One look-up: each one's backward pass would allocate a gradient of the whole matrix.
        embedded = embedding(items, weight)
        usable, from_batch = counted.new_ones(batch, 1), counted.new_zeros(batch, 1)
        positive = (hidden * embedded[: batch * length].view(batch, length, -1)).sum(dim=-1).float()
        if self.in_batch:
            row = torch.arange(batch, device=items.device)
            others = (row[:, None] != row.repeat_interleave(length)) & counted.flatten()  # [B, B T]
            usable = pad(others, (0, self.num_negatives), value=True)
            from_batch = others.sum(dim=1, keepdim=True)
        else:
            items, embedded = sampled, embedded[batch * length :]
        usable = usable & (counts[items] > 0)
        known = usable.unsqueeze(1) & (items != targets.unsqueeze(2))  # [B, T, N]
        negative = (hidden @ embedded.T).float()
        if bias is not None:
            positive, negative = positive + bias[targets].float(), negative + bias[items].float()
        if self.kind == "bpr_max":
            losses = bpr_max(positive, negative, known, self.regularization)
        else:
            if self.kind == "sampled_softmax":
                expected = self.num_negatives * weights[items] / weights.sum()
                expected = expected + from_batch * (counts[items] / counts.sum())  # [B, N]
                negative = negative - expected.log().float().unsqueeze(1)
            losses = softmax_loss(positive, negative, known)
        return losses.masked_fill(~counted, 0.0)

    def draw(self, weights: Tensor) -> Tensor:
        """Sample items `[M]` with replacement, with probabilities proportional to `weights` `[V]`."""
        # `torch.multinomial` takes twice as long, and at most 2^24 items. A sum of that many needs double precision.
        cumulative = weights.cumsum(dim=0)
        points = torch.rand(self.num_negatives, dtype=weights.dtype, device=weights.device) * cumulative[-1]
        return torch.searchsorted(cumulative, points, right=True).clamp(max=len(weights) - 1)


def softmax_loss(positive: Tensor, negative: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy `[B, T]` of a target among its negatives; 0 without any.

    Args:
        positive: Logits of the targets, `[B, T]`.
        negative: Logits of the negatives, `[B, T, N]`.
        known: True at those that are negatives of the step, `[B, T, N]`.
    """
    others = negative.masked_fill(~known, torch.finfo(negative.dtype).min).logsumexp(dim=-1)
    return softplus(others - positive)


def bpr_max(positive: Tensor, negative: Tensor, known: Tensor, regularization: float) -> Tensor:
    """BPR-max `[B, T]` with score regularization (Hidasi & Karatzoglou 2018); 0 without any negatives.

    Args:
        positive: Logits of the targets, `[B, T]`.
        negative: Logits of the negatives, `[B, T, N]`.
        known: True at those that are negatives of the step, `[B, T, N]`.
        regularization: Weight of the squares of the scores.
    """
    # Finite, so that a step without negatives has no NaN.
    shares = negative.masked_fill(~known, torch.finfo(negative.dtype).min).log_softmax(dim=-1)
    ranks = (shares + logsigmoid(positive.unsqueeze(-1) - negative)).logsumexp(dim=-1)
    squares = (shares.exp() * negative.pow(2)).sum(dim=-1)
    return (regularization * squares - ranks).masked_fill(~known.any(dim=-1), 0.0)
