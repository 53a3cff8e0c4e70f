"""The output layer of the heads that generate, and what heads check and pick of their steps."""

import torch
from torch import Tensor, nn

from .configuration_base import SequenceConfig
from .dropout import Dropout


class OutputLayer(nn.Module):
    """Dropout and, where the tied embeddings have another width, a projection to it, before `lm_head`."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        projects = config.tie_word_embeddings and config.embedding_size != config.hidden_size
        self.width = config.embedding_size if projects else config.hidden_size
        self.project = nn.Linear(config.hidden_size, self.width, bias=False) if projects else None

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[B, T, hidden_size]` to what `lm_head` takes; the hidden states after dropout come second."""
        dropped = self.dropout(hidden) if self.training else hidden
        return dropped if self.project is None else self.project(dropped), dropped


def steps_to_keep(values: Tensor, keep: int | Tensor) -> Tensor:
    """The last `keep` steps of `[B, T, ...]`, 0 for all; those of an index `[N]`; or those marked `[B, T]`, in a row.

    Raises:
        ValueError: If marks are not of this shape.
    """
    if isinstance(keep, int):
        return values[:, -keep:] if keep else values
    if keep.dtype != torch.bool:
        return values[:, keep]
    if keep.shape != values.shape[:2]:
        raise ValueError(f"logits_to_keep has shape {tuple(keep.shape)}, expected {tuple(values.shape[:2])}")
    return values[keep]


def check_labels(labels: Tensor, shape: torch.Size) -> None:
    """Raise a `ValueError` if labels are not one for each step, `[B, T]`."""
    if labels.shape != shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {tuple(shape)}")
