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


class StateBridge(nn.Module):
    r"""Initial decoder states from the final states $s^l$ of the encoder's layers, both directions side by side.

    - `copy`: a layer starts from the state of the encoder's layer of its own depth (Sutskever et al. 2014).
    - `linear`: $W s^l + b$ with one map of hidden states and one of an LSTM's cell states, which all layers share;
      fairseq's, where widths differ.
    - `relu`: $\mathrm{relu}(W [s^1; \dots; s^L] + b)$ with one map of hidden states and one of cell states;
      OpenNMT's. There a bidirectional encoder's W is made of two equal blocks.
    - `last`: every state of every layer starts from the hidden state of the encoder's top layer; from that of its
      left-to-right direction alone if the decoder's states are half as wide; JoeyNMT's.

    What else a state holds, the earlier inputs that convolutions of a cell see, starts as zeros: there are none yet.

    Args:
        kind: One of these.
        encoder_layers: Number of the encoder's layers.
        state_size: Width of its states.
        shapes: Shapes of each decoder layer's state, for a batch of any size.

    Raises:
        ValueError: If numbers of layers or widths differ where they must not.
    """

    def __init__(self, kind: str, encoder_layers: int, state_size: int, shapes: list[list[Size]]) -> None:
        super().__init__()
        self.kind, self.state_size = kind, state_size
        self.shapes = [[shape[1:] for shape in layer] for layer in shapes]
        vectors = [shape[0] for shape in self.shapes[0] if len(shape) == 1]
        self.num_states, self.size = len(vectors), vectors[0]
        self.encoder_layers = encoder_layers
        if kind in ("copy", "linear") and encoder_layers != len(shapes):
            raise ValueError(
                f"bridge={kind!r} needs as many layers on both sides, but encoder_layers={encoder_layers} and the "
                f"decoder has {len(shapes)}; set decoder_layers={encoder_layers}, or take 'last', 'relu' or 'project'"
            )
        widths = {"copy": [self.size], "last": [self.size, 2 * self.size]}
        if state_size not in widths.get(kind, [state_size]):
            raise ValueError(
                f"bridge={kind!r} copies states, but those of the encoder are {state_size} wide and those of the "
                f"decoder {self.size}; take 'linear' or 'project'"
            )
        together = len(shapes) if kind == "relu" else 1
        sizes = (state_size * (encoder_layers if kind == "relu" else 1), self.size * together)
        if kind in ("linear", "relu"):
            # Not a list of modules, which those of layers are.
            self.hidden = nn.Linear(*sizes)
            self.cell = nn.Linear(*sizes) if self.num_states == 2 else None

    def forward(self, final_states: Tensor) -> list[State]:
        """Compute the states of each layer from `[B, encoder layers, N, state_size]`, N vectors of each layer."""
        # Not `len`, which is a constant in an exported graph.
        batch, depth = final_states.shape[0], len(self.shapes)
        if self.kind == "last":
            top = final_states[:, -1:, 0, : self.size].expand(-1, depth, -1)  # [B, L, H]
            parts = (top,) * self.num_states
        else:
            parts = final_states.unbind(2)
        if self.kind in ("linear", "relu"):
            maps = [self.hidden] if self.cell is None else [self.hidden, self.cell]
            if self.kind == "linear":
                parts = tuple(one(part) for one, part in zip(maps, parts, strict=True))
            else:
                flat = (one(part.flatten(1)).relu() for one, part in zip(maps, parts, strict=True))
                parts = tuple(part.view(batch, depth, self.size) for part in flat)
        states = []
        for index, shapes in enumerate(self.shapes):
            vectors = iter(parts)
            states.append(
                tuple(
                    next(vectors)[:, index] if len(shape) == 1 else final_states.new_zeros(batch, *shape)
                    for shape in shapes
                )
            )
        return states


def stack_states(states: list[State], dtype: torch.dtype) -> Tensor:
    """The vectors among the states of all layers as one tensor `[B, L, N, H]`, whose batch `generate` can expand."""
    layers = [torch.stack([part for part in state if part.dim() == 2], dim=1) for state in states]
    return torch.stack(layers, dim=1).to(dtype)
