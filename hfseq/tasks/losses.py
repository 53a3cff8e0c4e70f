"""Cross-entropy of tokens and of classes; over a large vocabulary it reads the logits twice, not eight times."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

# Elements of logits that are worked on at once: 1 MB of float32, which stays in the cache of one core.
_CHUNK = 2**18


def summed_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Sum of the cross-entropies of labels (Szegedy et al. 2016, section 7, if smoothed), in float32.

    It is that of `torch.nn.functional.cross_entropy`, which is called wherever gradients are not wanted or a GPU
    computes. On a CPU that is bound by memory: it keeps the log-probabilities, and smoothing doubles the gradients.

    Args:
        logits: `[..., V]`.
        labels: Token ids `[...]`; -100 is not counted.
        label_smoothing: Share of the probability that all tokens get alike.
    """
    logits, labels = logits.flatten(0, -2), labels.flatten()
    if logits.device.type == "cpu" and logits.requires_grad and torch.is_grad_enabled():
        return _CrossEntropy.apply(logits, labels, label_smoothing)
    return cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")


class _CrossEntropy(torch.autograd.Function):
    """A few rows of the logits at a time; of the forward pass only the normalisers stay."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        counted = labels != -100
        targets = labels.where(counted, 0)
        normalisers = torch.empty(len(logits))
        scores = torch.empty(len(logits))
        rows = max(_CHUNK // logits.shape[-1], 1)
        for start in range(0, len(logits), rows):
            part = logits[start : start + rows].float()
            normalisers[start : start + rows] = part.logsumexp(dim=-1)
            score = (1 - smoothing) * part.gather(1, targets[start : start + rows, None]).squeeze(1)
            scores[start : start + rows] = score + smoothing * part.mean(dim=-1) if smoothing else score
        ctx.save_for_backward(logits, targets, counted, normalisers)
        ctx.smoothing = smoothing
        return (normalisers - scores)[counted].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, counted, normalisers = ctx.saved_tensors
        smoothing, size = ctx.smoothing, logits.shape[-1]
        scales = gradients[0] * counted.float()
        result = torch.empty_like(logits)
        rows = max(_CHUNK // size, 1)
        for start in range(0, len(logits), rows):
            chunk = slice(start, start + rows)
            scale = scales[chunk, None]
            part = (logits[chunk].float() - normalisers[chunk, None]).exp_()
            if smoothing:
                part.sub_(smoothing / size)
            part.mul_(scale).scatter_add_(1, targets[chunk, None], (smoothing - 1) * scale)
            result[chunk] = part
        return result, None, None


def token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of target tokens (Szegedy et al. 2016, section 7, if smoothed).

    Args:
        logits: `[B, T, V]`, or `[N, V]` of the N steps with a label, row by row.
        labels: Token ids `[B, T]`, -100 for padding.
        label_smoothing: Share of the probability that all tokens get alike.
        count: What the sum is divided by, None for the number of tokens here: a batch in parts, or on several
            processes, is divided by the number of all its tokens.
    """
    if logits.dim() == 2:
        labels = labels[labels != -100]
    total = summed_cross_entropy(logits, labels, label_smoothing)
    return total / ((labels != -100).sum() if count is None else count)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of class numbers, or binary cross-entropy where several classes may hold at once.

    Args:
        logits: `[B, num_labels]`.
        labels: Class numbers `[B]`, or floats `[B, num_labels]`, 1 where a class holds.
        weights: Of the classes, `[num_labels]`: of a row by its class, or of the ones where several may hold.
        label_smoothing: Share of the probability that all classes get alike (Szegedy et al. 2016, section 7); for
            class numbers only.
        count: What the sum is divided by, None for the number of labels here: a batch in parts, or on several
            processes, is divided by the number of all its labels.

    Returns:
        A scalar.
    """
    logits = logits.float()
    weights = None if weights is None else weights.to(logits.device)
    if labels.is_floating_point():
        total = binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")
    else:
        total = cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels.numel() if count is None else count)
