"""Cross-entropy over a large vocabulary that goes over the logits twice, not eight times."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

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
