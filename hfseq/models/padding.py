"""Padding taken out of the way: each row's valid steps gathered to its left, whatever the mask."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Alignment(NamedTuple):
    """Where each row's valid steps go so that a plain kernel meets them first and in a row.

    Attributes:
        order: Source position of the t-th step after aligning; padding follows the valid steps, `[B, T]`.
        restore: The inverse of `order`, `[B, T]`.
        reverse: An involution on aligned steps that turns the valid ones around, `[B, T]`.
        valid: True at a valid step after aligning, `[B, T]`.
        lengths: Number of valid steps, `[B, 1]`.
    """

    order: Tensor
    restore: Tensor
    reverse: Tensor
    valid: Tensor
    lengths: Tensor


def align(mask: Tensor) -> Alignment:
    """Compute the alignment for a mask that is True at valid steps, `[B, T]`, wherever the padding is."""
    step = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    # Counted and not sorted: that is quick, and every runtime of an exported graph does it alike.
    before = mask.long().cumsum(dim=1)
    lengths = before[:, -1:]
    restore = torch.where(mask, before - 1, lengths + step - before)
    order = torch.zeros_like(restore).scatter(1, restore, step)
    valid = step < lengths
    reverse = torch.where(valid, lengths - 1 - step, step)
    return Alignment(order, restore, reverse, valid, lengths)


def take_steps(values: Tensor, index: Tensor) -> Tensor:
    """Pick steps of `values` `[B, T, D]` by `index` `[B, N]`, row by row."""
    batch, length, width = values.shape
    rows = torch.arange(batch, device=index.device).unsqueeze(1) * length  # [B, 1]
    # Whole steps of one long row are copied as they are, several times as fast as `gather` picks their elements.
    picked = values.reshape(batch * length, width).index_select(0, (rows + index).flatten())
    return picked.view(batch, -1, width)


class _Permutation(torch.autograd.Function):
    """Steps in another order; their gradients come back in the order that they had.

    Autograd does not know that no step is picked twice: it would add each gradient to zeros.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return take_steps(values, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return permute_steps(gradients[0], inverse, index), None, None


def permute_steps(values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Put the steps of `values` `[B, T, D]` into another order, row by row.

    Args:
        values: The steps.
        index: Which step comes where, `[B, T]`, each once.
        inverse: What undoes it.
    """
    if values.requires_grad and torch.is_grad_enabled():
        return _Permutation.apply(values, index, inverse)
    return take_steps(values, index)


def valid_steps(mask: Tensor | None, batch: int, length: int, past: int, name: str) -> Tensor | None:
    """Boolean mask `[B, T]` of the current steps from a mask of them, or of all steps so far.

    Raises:
        ValueError: If the mask has another shape.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] not in (length, past + length):
        expected = f"({batch}, {length})" + (f" or ({batch}, {past + length})" if past else "")
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {expected}")
    return (mask if mask.shape[1] == length else mask[:, -length:]) != 0


def end_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions `[B]` of each row's first and last valid step in a mask `[B, T]`; of a row without one, any."""
    position = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, position, 0).amax(dim=1)
    first = mask.shape[1] - 1 - torch.where(mask, position.flip(0), 0).amax(dim=1)
    return first, last


def next_labels(labels: Tensor, mask: Tensor) -> Tensor:
    """What each step is to predict, `[B, T]`: the label of the row's next valid step, -100 where there is none."""
    alignment = align(mask)
    ordered = labels.gather(1, alignment.order).masked_fill(~alignment.valid, -100)
    return nn.functional.pad(ordered[:, 1:], (0, 1), value=-100).gather(1, alignment.restore)
