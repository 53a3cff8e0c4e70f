"""Exactness at padding: each row's valid steps gathered to its left, and operations that honour a mask."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .shapes import check_shape


class ValidFirst(NamedTuple):
    """Permutation that moves each row's valid steps to its front, in their order.

    Attributes:
        order: Source position of the t-th step of the new order; padding follows the valid steps, `[B, T]`.
        restore: The inverse of `order`, `[B, T]`.
        reverse: Permutation of the new order that reverses the valid steps and is its own inverse, `[B, T]`.
        valid: True at a valid step in the new order, `[B, T]`.
    """

    order: Tensor
    restore: Tensor
    reverse: Tensor
    valid: Tensor


def valid_first(mask: Tensor) -> ValidFirst:
    """Compute the permutation for a mask that is True at valid steps, `[B, T]`, wherever the padding is."""
    step = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    # Counting is faster than sorting, and all runtimes of an exported graph agree on it.
    before = mask.long().cumsum(dim=1)
    lengths = before[:, -1:]
    restore = torch.where(mask, before - 1, lengths + step - before)
    order = torch.zeros_like(restore).scatter(1, restore, step)
    valid = step < lengths
    reverse = torch.where(valid, lengths - 1 - step, step)
    return ValidFirst(order, restore, reverse, valid)


def moves_steps(mask: Tensor, permutation: ValidFirst) -> bool:
    """Return False if the permutation is known to leave all steps where they are, as where padding is on the right.

    On a GPU asking would wait for it, and a traced or compiled graph would keep the answer for other masks.
    """
    eager = mask.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
    return not (eager and torch.equal(mask, permutation.valid))


def take_steps(values: Tensor, index: Tensor) -> Tensor:
    """Select steps of `values` `[B, T, D]` by `index` `[B, N]`, row by row."""
    batch, length, width = values.shape
    rows = torch.arange(batch, device=index.device).unsqueeze(1) * length  # [B, 1]
    # `index_select` copies whole steps of one long row, several times as fast as `gather` selects elements.
    picked = values.reshape(batch * length, width).index_select(0, (rows + index).flatten())
    return picked.view(batch, index.shape[1], width)


class _Permutation(torch.autograd.Function):
    """Permutation of steps whose backward is the inverse permutation.

    Autograd does not know that no step is selected twice: it would accumulate each gradient into zeros.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor | None) -> Tensor:
        ctx.save_for_backward(index, index if inverse is None else inverse)
        return take_steps(values, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return permute_steps(gradients[0], inverse, index), None, None


def permute_steps(values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Permute the steps of `values` `[B, T, D]`, row by row.

    Args:
        values: The steps.
        index: Source position of each step of the result, `[B, T]`, a permutation in each row.
        inverse: The inverse permutation, `[B, T]`.
    """
    if values.requires_grad and torch.is_grad_enabled():
        # A compiled graph would break at an argument that is passed twice.
        return _Permutation.apply(values, index, None if inverse is index else inverse)
    return take_steps(values, index)


def reverse_valid(values: Tensor, permutation: ValidFirst | None) -> Tensor:
    """Reverse each row's valid steps of `[B, T, D]` in valid-first order; padding stays where it is."""
    if permutation is None:
        return values.flip(1)
    return permute_steps(values, permutation.reverse, permutation.reverse)


def masked_softmax(scores: Tensor, mask: Tensor | None, dim: int = -1) -> Tensor:
    """Softmax over the entries where `mask`, which broadcasts to `scores`, is True; 0 at all others.

    Where no entry is valid all are 0. The fill value is finite, so that neither outputs nor gradients are NaN there.
    """
    if mask is None:
        return scores.softmax(dim=dim)
    padding = ~mask
    scores = scores.masked_fill(padding, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=dim).masked_fill(padding, 0.0)


def valid_steps(mask: Tensor | None, batch: int, length: int, past: int, name: str) -> Tensor | None:
    """Boolean mask `[B, T]` of the current steps from a mask of those, or of all steps so far.

    Raises:
        ValueError: If the mask has another shape.
    """
    if mask is None:
        return None
    check_shape(name, mask.shape, *([(batch, length), (batch, past + length)] if past else [(batch, length)]))
    return (mask if mask.shape[1] == length else mask[:, -length:]) != 0


def end_steps(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each row's first and last valid step of `values` `[B, T, D]`; arbitrary for a row without one."""
    if mask is None:
        return values[:, 0], values[:, -1]
    row, position = (torch.arange(size, device=mask.device) for size in mask.shape)
    last = torch.where(mask, position, 0).amax(dim=1)
    first = mask.shape[1] - 1 - torch.where(mask, position.flip(0), 0).amax(dim=1)
    return values[row, first], values[row, last]


def middle_step(values: Tensor, mask: Tensor) -> Tensor:
    """Each row's middle valid step of `values` `[B, T, D]`, the earlier of two; arbitrary for a row without one."""
    row, position = (torch.arange(size, device=mask.device) for size in mask.shape)
    ranks = mask.long().cumsum(dim=1)  # from 1
    is_middle = mask & (ranks == (ranks[:, -1:] + 1) // 2)
    return values[row, torch.where(is_middle, position, 0).amax(dim=1)]


def next_labels(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Shifted labels `[B, T]`: at each step the label of the row's next valid step, -100 after the last one.

    A shift by one would pair a step with padding in a gap, and left padding with the first token.
    """
    if mask is None:
        return nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    permutation = valid_first(mask)
    ordered = labels.gather(1, permutation.order).masked_fill(~permutation.valid, -100)
    return next_labels(ordered, None).gather(1, permutation.restore)
