"""Output layer of the generating heads, and selection of steps."""

import torch
from torch import Tensor, nn

from .configuration_base import SequenceConfig
from .dropout import Dropout
from .shapes import check_shape


class OutputLayer(nn.Module):
    """Dropout before `lm_head`, and a projection to `output_size` or to tied embeddings of another width."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        biased = config.output_size is not None
        projects = biased or (config.tie_word_embeddings and config.embedding_size != config.hidden_size)
        tied = config.embedding_size if projects else config.hidden_size
        self.width = tied if config.output_size is None else config.output_size
        self.project = nn.Linear(config.hidden_size, self.width, bias=biased) if projects else None

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[B, T, hidden_size]` to the inputs of `lm_head`, and to the hidden states after dropout."""
        dropped = self.dropout(hidden) if self.training else hidden
        return dropped if self.project is None else self.project(dropped), dropped


def steps_to_keep(values: Tensor, keep: int | Tensor) -> Tensor:
    """Select steps of `[B, T, ...]`: the last `keep` (0: all), those of an index `[N]`, or those of a mask `[B, T]`.

    Raises:
        ValueError: If a mask has another shape.
    """
    if isinstance(keep, int):
        return values[:, -keep:] if keep else values
    if keep.dtype != torch.bool:
        return values[:, keep]
    check_shape("logits_to_keep", keep.shape, values.shape[:2])
    return values[keep]
