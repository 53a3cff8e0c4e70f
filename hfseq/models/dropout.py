"""Dropout of published language models: whole words, one mask for all steps, recurrent weights."""

from typing import Any

import torch
from torch import Tensor, nn

# How finely a probability is told apart where masks are made of 16 random bits an element.
_LEVELS = 2**16


def drop(values: Tensor, probability: float) -> Tensor:
    """Zero each element with a probability, and divide what stays by the rest (Srivastava et al. 2014).

    It is `torch.nn.functional.dropout`, which is called wherever it is quick. On a CPU it draws a double from the
    generator for each element, six times what the rest of it takes; here four elements share 64 random bits. The
    probability is then the nearest multiple of 2^-16, and the division goes by that one.

    Args:
        values: Of any shape.
        probability: Of zeroing.
    """
    dropped = round(probability * _LEVELS)
    quick = values.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()
    if quick or not 0 < dropped < _LEVELS:
        return nn.functional.dropout(values, probability)
    count = values.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[:count].view(values.shape) >= dropped - _LEVELS // 2
    return _Drop.apply(values, kept, _LEVELS / (_LEVELS - dropped))


class _Drop(torch.autograd.Function):
    """A product that keeps nothing but the mask, a byte an element."""

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
    """Dropout of `[B, T, D]`, with one mask for all steps of a row if `locked` (Gal & Ghahramani 2016, section 4).

    Args:
        probability: Probability of zeroing an element; what stays is divided by the rest.
        locked: Whether all steps of a row share a mask.
    """

    def __init__(self, probability: float, locked: bool = False) -> None:
        super().__init__()
        self.probability = probability
        self.locked = locked

    def mask(self, like: Tensor) -> Tensor | None:
        """The mask `[B, 1, D]` that all steps of `like` `[B, T, D]` share, scaled; None where each has its own."""
        if not (self.locked and self.training and self.probability):
            return None
        return drop(like.new_ones(like.shape[0], 1, like.shape[-1]), self.probability)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Drop elements of `values` `[B, T, D]`; `mask` is an earlier call's, for who comes here step by step."""
        if not self.training:
            return values  # at once: a step of generation is short enough for calls to show
        if mask is None:
            mask = self.mask(values)
        if mask is not None:
            return values * mask
        return drop(values, self.probability)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.probability}" + (", locked" if self.locked else "")


def drop_words(embedded: Tensor, input_ids: Tensor, vocab_size: int, probability: float) -> Tensor:
    """Zero the embeddings `[B, T, E]` of words, all occurrences in the batch alike (Gal & Ghahramani 2016, 4.2).

    Equal to zeroing rows of the embedding matrix, without a copy of it.
    """
    kept = drop(embedded.new_ones(vocab_size), probability)
    return embedded * kept[input_ids].unsqueeze(-1)
