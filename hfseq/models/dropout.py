"""Dropout of published language models: whole words, one mask for all steps, recurrent weights."""

import torch
from torch import Tensor, nn


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
        return nn.functional.dropout(like.new_ones(like.shape[0], 1, like.shape[-1]), self.probability)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Drop elements of `values` `[B, T, D]`; `mask` is an earlier call's, for who comes here step by step."""
        if mask is None:
            mask = self.mask(values)
        if mask is not None:
            return values * mask
        return nn.functional.dropout(values, self.probability, self.training)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.probability}" + (", locked" if self.locked else "")


def drop_words(embedded: Tensor, input_ids: Tensor, vocab_size: int, probability: float) -> Tensor:
    """Zero the embeddings `[B, T, E]` of words, all occurrences in the batch alike (Gal & Ghahramani 2016, 4.2).

    Equal to zeroing rows of the embedding matrix, without a copy of it.
    """
    kept = torch.nn.functional.dropout(embedded.new_ones(vocab_size), probability)
    return embedded * kept[input_ids].unsqueeze(-1)
