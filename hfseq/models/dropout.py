"""Dropout on activations, on whole words, and with one mask for all time steps."""

from typing import Any

import torch
from torch import Tensor, nn

# Resolution of the drop probability: 16 random bits per element.
_LEVELS = 2**16


def drop(values: Tensor, probability: float) -> Tensor:
    """Inverted dropout (Srivastava et al. 2014), faster on a CPU than torch's.

    Elsewhere it is `torch.nn.functional.dropout`. On a CPU that draws a double from the generator for each element,
    which takes six times as long as all the rest; here four elements share 64 random bits. The probability is then
    rounded to a multiple of 2^-16, and the scale follows the rounded one.

    Args:
        values: Any shape.
        probability: Probability of zeroing an element.
    """
    dropped = round(probability * _LEVELS)
    native = values.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()
    if native or not 0 < dropped < _LEVELS:
        return nn.functional.dropout(values, probability)
    count = values.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[:count].view(values.shape) >= dropped - _LEVELS // 2
    return _Drop.apply(values, kept, _LEVELS / (_LEVELS - dropped))


class _Drop(torch.autograd.Function):
    """Masking and scaling that save only the mask for the backward pass, one byte per element."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (values * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradients[0] * kept).mul_(ctx.scale), None, None


class Dropout(nn.Module):
    """Dropout of `[B, T, D]`, if `variational` with one mask for all steps (Gal & Ghahramani 2016, section 4).

    Args:
        probability: Probability of zeroing an element; the others are scaled up.
        variational: Whether all steps of a row share a mask.
    """

    def __init__(self, probability: float, variational: bool = False) -> None:
        super().__init__()
        self.probability = probability
        self.variational = variational

    def mask(self, like: Tensor) -> Tensor | None:
        """Draw the scaled mask `[B, 1, D]` shared by all steps of `like` `[B, T, D]`; None where each has its own."""
        if not (self.variational and self.training and self.probability):
            return None
        return drop(like.new_ones(like.shape[0], 1, like.shape[-1]), self.probability)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Drop elements of `values` `[B, T, D]`, by the `mask` that `self.mask` drew earlier if it is given."""
        if not self.training:
            return values  # first: in a step of generation each further call is noticeable
        if mask is None:
            mask = self.mask(values)
        if mask is not None:
            return values * mask
        return drop(values, self.probability)

    def extra_repr(self) -> str:
        """Arguments shown by `print`."""
        return f"{self.probability}" + (", variational" if self.variational else "")


def drop_words(embedded: Tensor, input_ids: Tensor, vocab_size: int, probability: float) -> Tensor:
    """Drop whole words from embeddings `[B, T, E]`, the same ones in all rows (Gal & Ghahramani 2016, section 4.2).

    Equal to zeroing rows of the embedding matrix, without copying it.
    """
    kept = drop(embedded.new_ones(vocab_size), probability)
    return embedded * kept[input_ids].unsqueeze(-1)
