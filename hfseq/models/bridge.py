"""Initial states of a decoder from those of its encoder."""

import torch
from torch import Size, Tensor, nn

from .padding import end_steps
from .stack import State


class Bridge(nn.Module):
    r"""Initial decoder states from the first and last encoder output: $\tanh(W [h_{first}; h_{last}] + b)$.

    The last valid position holds the final state of a left-to-right encoder and the first one that of a
    right-to-left encoder (Bahdanau et al. 2015, A.2.2, start from the latter; Luong et al. 2015 from the former). Both
    are read from the encoder's outputs, so that any encoder will do.

    Args:
        encoder_size: Width of encoder states.
        shapes: Shapes of each decoder layer's state, for a batch of any size.
    """

    def __init__(self, encoder_size: int, shapes: list[list[Size]]) -> None:
        super().__init__()
        self.shapes = [[shape[1:] for shape in layer] for layer in shapes]
        self.sizes = [shape.numel() for layer in self.shapes for shape in layer]
        self.project = nn.Linear(2 * encoder_size, sum(self.sizes))

    def forward(self, encoder_hidden_states: Tensor, mask: Tensor | None) -> list[State]:
        """Compute the states of each layer.

        Args:
            encoder_hidden_states: `[B, S, M]`.
            mask: True at valid encoder states, `[B, S]`.
        """
        ends = torch.cat(end_steps(encoder_hidden_states, mask), dim=-1)  # [B, 2 M]
        if mask is not None:
            ends = ends.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
        parts = iter(torch.tanh(self.project(ends)).split(self.sizes, dim=-1))
        return [tuple(next(parts).reshape(-1, *shape) for shape in layer) for layer in self.shapes]
