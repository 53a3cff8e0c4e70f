"""Cross-entropy of tokens and classes, and R-Drop; on a CPU, two passes over the logits of a large vocabulary."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

# Number of logits per chunk: 1 MB in float32, which fits into the cache of one core.
_CHUNK = 2**18


def summed_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy in float32, with optional label smoothing (Szegedy et al. 2016, section 7).

    Equals `torch.nn.functional.cross_entropy`, which is used without gradients and on GPUs. In training on a CPU that
    function is memory-bound: it stores the log-probabilities, and smoothing doubles the gradients.

    Args:
        logits: Logits `[..., V]`.
        labels: Token ids `[...]`; -100 is ignored.
        label_smoothing: Probability mass distributed uniformly over the vocabulary.
    """
    logits, labels = logits.flatten(0, -2), labels.flatten()
    if logits.device.type == "cpu" and logits.requires_grad and torch.is_grad_enabled():
        return _CrossEntropy.apply(logits, labels, label_smoothing)
    return cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")


class _CrossEntropy(torch.autograd.Function):
    """Summed cross-entropy, computed chunk by chunk; only the normalizers are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        counted = labels != -100
        targets = labels.where(counted, 0)
        normalizers = torch.empty(len(logits))
        scores = torch.empty(len(logits))
        rows = max(_CHUNK // logits.shape[-1], 1)
        for start in range(0, len(logits), rows):
            chunk = slice(start, start + rows)
            part = logits[chunk].float()
            normalizers[chunk] = part.logsumexp(dim=-1)
            score = (1 - smoothing) * part.gather(1, targets[chunk, None]).squeeze(1)
            scores[chunk] = score + smoothing * part.mean(dim=-1) if smoothing else score
        ctx.save_for_backward(logits, targets, counted, normalizers)
        ctx.smoothing, ctx.rows = smoothing, rows
        return (normalizers - scores)[counted].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, counted, normalizers = ctx.saved_tensors
        scales = gradients[0] * counted.float()
        result = torch.empty_like(logits)
        for start in range(0, len(logits), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            scale = scales[chunk, None]
            part = (logits[chunk].float() - normalizers[chunk, None]).exp_()
            if ctx.smoothing:
                part.sub_(ctx.smoothing / logits.shape[-1])
            part.mul_(scale).scatter_add_(1, targets[chunk, None], (ctx.smoothing - 1) * scale)
            result[chunk] = part
        return result, None, None


def summed_divergence(first: Tensor, second: Tensor) -> Tensor:
    r"""Symmetric Kullback-Leibler divergence of two predictions of the same steps, summed (Liang et al. 2021, eq. 2).

    $\frac12 (KL(p \| q) + KL(q \| p)) = \frac12 \sum_i (p_i - q_i) (\log p_i - \log q_i)$, in float32. In training on
    a CPU it is computed chunk by chunk, as the cross-entropy.

    Args:
        first: Logits `[..., V]` of p.
        second: Logits `[..., V]` of q.
    """
    first, second = first.flatten(0, -2), second.flatten(0, -2)
    if first.device.type == "cpu" and torch.is_grad_enabled() and (first.requires_grad or second.requires_grad):
        return _Divergence.apply(first, second)
    p, q = (logits.float().log_softmax(dim=-1) for logits in (first, second))
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2


class _Divergence(torch.autograd.Function):
    """Summed symmetric divergence and, in the same pass, its gradients, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        total = torch.zeros(())
        gradients = torch.empty_like(first), torch.empty_like(second)
        rows = max(_CHUNK // first.shape[-1], 1)
        for start in range(0, len(first), rows):
            chunk = slice(start, start + rows)
            log_p, log_q = (logits[chunk].float().log_softmax(dim=-1) for logits in (first, second))
            p, q = log_p.exp(), log_q.exp()
            ratio, gap = log_p.sub_(log_q), p - q
            total += (gap * ratio).sum() / 2
            forth, back = ((values * ratio).sum(dim=-1, keepdim=True) for values in (p, q))
            gradients[0][chunk] = p.mul_(ratio - forth).add_(gap).div_(2)
            gradients[1][chunk] = q.mul_(back - ratio).sub_(gap).div_(2)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ctx.saved_tensors
        return first * gradients[0], second * gradients[0]


def token_loss(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, count: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of target tokens.

    Args:
        logits: Logits `[B, T, V]`, or `[N, V]` for the N labelled steps only, row by row.
        labels: Token ids `[B, T]`, -100 for padding.
        label_smoothing: Probability mass distributed uniformly over the vocabulary.
        count: Denominator of the summed loss, such as the number of tokens in all accumulated batches over all
            processes; None for the number of tokens in this batch.
    """
    if logits.dim() == 2:
        labels = labels[labels != -100]
    total = summed_cross_entropy(logits, labels, label_smoothing)
    return total / ((labels != -100).sum() if count is None else count)


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    count: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of classes, or binary cross-entropy for multi-label classification.

    Args:
        logits: Logits `[B, num_labels]`.
        labels: Class ids `[B]`, or multi-hot floats `[B, num_labels]`.
        weights: Class weights `[num_labels]`; for multi-label classification, weights of the positive labels.
        label_smoothing: Probability mass distributed uniformly over the classes; ignored for multi-label
            classification.
        count: Denominator of the summed loss, such as the number of labels in all accumulated batches over all
            processes; None for the number of labels in this batch.
    """
    logits = logits.float()
    weights = None if weights is None else weights.to(logits.device)
    if labels.is_floating_point():
        total = binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")
    else:
        total = cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels.numel() if count is None else count)
