"""Attention of a recurrent decoder over encoder states."""

import torch
from torch import Tensor, nn

from .padding import end_positions


class CrossAttention(nn.Module):
    r"""Score, normalise, sum, and combine with the decoder state.

    The score of decoder state $s_t$ and encoder state $h_j$ is

    - `additive`: $v^\top \tanh(W_a s_t + U_a h_j)$ (Bahdanau et al. 2015, A.1.2, eq. 5-6 for weights and context);
    - `dot`: $s_t^\top h_j$ (Luong et al. 2015, eq. 8);
    - `general`: $s_t^\top W_a h_j$ (Luong et al. 2015, eq. 8).

    In all three $s_t$ is the state of the step being predicted and the result is the attentional vector
    $\tanh(W_c [c_t; s_t])$ (Luong et al. 2015, eq. 5).

    With coverage the additive score is $v^\top \tanh(W_a s_t + U_a h_j + w_c c_j^t)$, where $c^t$ is the sum of the
    weights of the earlier steps (See et al. 2017, eq. 10-11).

    Args:
        hidden_size: Width of decoder states and of the attentional vector.
        memory_size: Width of encoder states.
        attention_type: `additive`, `dot` or `general`.
        coverage: Whether to attend with coverage: then with `cover`, else with `forward`.

    Raises:
        ValueError: If `dot` is to compare states of different widths, or coverage is to enter another score than
            `additive`.
    """

    def __init__(self, hidden_size: int, memory_size: int, attention_type: str, coverage: bool = False) -> None:
        super().__init__()
        if coverage and attention_type != "additive":
            raise ValueError(f"coverage=True needs attention_type='additive', not {attention_type!r}")
        if attention_type == "dot" and hidden_size != memory_size:
            raise ValueError(
                f"attention_type='dot' needs encoder and decoder states of one width, but cross_attention_hidden_size="
                f"{memory_size} and hidden_size={hidden_size}; use 'general' or 'additive'"
            )
        self.attention_type = attention_type
        if attention_type == "general":
            self.query = nn.Linear(hidden_size, memory_size, bias=False)
        elif attention_type == "additive":
            self.query = nn.Linear(hidden_size, hidden_size)
            self.key = nn.Linear(memory_size, hidden_size, bias=False)
            self.energy = nn.Linear(hidden_size, 1, bias=False)
        if coverage:
            self.coverage = nn.Linear(1, hidden_size, bias=False)
        self.combine = nn.Linear(memory_size + hidden_size, hidden_size, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """What scores are computed against, `[B, S, A]`; the same for all steps, so that a cache can hold it."""
        return self.key(memory) if self.attention_type == "additive" else memory

    def forward(self, states: Tensor, memory: Tensor, keys: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend from each decoder state.

        Args:
            states: Decoder states `[B, T, H]`.
            memory: Encoder states `[B, S, M]`.
            keys: `self.keys(memory)`.
            mask: True where an encoder state is valid, `[B, S]`. A row with none gets a context of zeros.

        Returns:
            Attentional vectors `[B, T, H]` and weights `[B, T, S]`.
        """
        if self.attention_type == "additive":
            hidden = self.query(states).unsqueeze(2) + keys.unsqueeze(1)  # [B, T, S, H]
            scores = self.energy(torch.tanh(hidden)).squeeze(-1)
        else:
            query = states if self.attention_type == "dot" else self.query(states)
            scores = query @ keys.transpose(1, 2)
        weights = self._normalise(scores, mask)
        return self._combine(weights, memory, states), weights

    def cover(
        self,
        states: Tensor,
        coverage: Tensor,
        steps: Tensor | None,
        memory: Tensor,
        keys: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attend from one decoder state after the other, each knowing what the earlier ones have attended to.

        Args:
            states: Decoder states `[B, T, H]`.
            coverage: Sum of the weights of the steps before the first, `[B, S]`.
            steps: True at valid steps `[B, T]`; the others add nothing to the coverage.
            memory: See `forward`.
            keys: See there.
            mask: See there.

        Returns:
            Attentional vectors `[B, T, H]`; weights `[B, T, S]`; how much of each step's weights falls on what was
            covered before it, the coverage loss (See et al. 2017, eq. 12), `[B, T]`; coverage after the last `[B, S]`.
        """
        queries = self.query(states)
        weights, overlaps = [], []
        for step in range(states.shape[1]):
            seen = self.coverage(coverage.to(queries.dtype).unsqueeze(-1))  # [B, S, H]
            scores = self.energy(torch.tanh(queries[:, step : step + 1] + keys + seen)).transpose(1, 2)
            step_weights = self._normalise(scores, mask)  # [B, 1, S]
            weights.append(step_weights)
            added = step_weights.squeeze(1)
            overlaps.append(torch.minimum(added, coverage).sum(dim=-1))
            if steps is not None:
                added = added.masked_fill(~steps[:, step : step + 1], 0.0)
            coverage = coverage + added
        all_weights = torch.cat(weights, dim=1)
        return self._combine(all_weights, memory, states), all_weights, torch.stack(overlaps, dim=1), coverage

    def _normalise(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return scores.softmax(dim=-1)
        padding = ~mask.unsqueeze(1)  # [B, 1, S]
        scores = scores.masked_fill(padding, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1).masked_fill(padding, 0.0)

    def _combine(self, weights: Tensor, memory: Tensor, states: Tensor) -> Tensor:
        return torch.tanh(self.combine(torch.cat([weights @ memory, states], dim=-1)))


class Bridge(nn.Module):
    r"""Initial decoder states from the encoder's last ones: $\tanh(W [h_{first}; h_{last}] + b)$.

    The last valid position holds the final state of a left-to-right encoder and the first one that of a
    right-to-left encoder (Bahdanau et al. 2015, A.2.2, start from the latter; Luong et al. 2015 from the former). Both
    are read from the encoder's outputs, so that any encoder will do.

    Args:
        memory_size: Width of encoder states.
        hidden_size: Width of a decoder state.
        num_layers: Layers of the decoder.
        num_states: States of a layer: 2 for LSTM, else 1.
    """

    def __init__(self, memory_size: int, hidden_size: int, num_layers: int, num_states: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.num_states = num_states
        self.project = nn.Linear(2 * memory_size, num_layers * num_states * hidden_size)

    def forward(self, memory: Tensor, mask: Tensor | None) -> list[tuple[Tensor, ...]]:
        """Compute the states.

        Args:
            memory: Encoder states `[B, S, M]`.
            mask: True where an encoder state is valid, `[B, S]`.

        Returns:
            A tuple of states `[B, H]` for each layer.
        """
        if mask is None:
            ends = torch.cat([memory[:, 0], memory[:, -1]], dim=-1)  # [B, 2 M]
        else:
            first, last = end_positions(mask)
            row = torch.arange(memory.shape[0], device=memory.device)
            ends = torch.cat([memory[row, first], memory[row, last]], dim=-1)
            ends = ends.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
        states = torch.tanh(self.project(ends)).chunk(self.num_layers * self.num_states, dim=-1)
        return [
            tuple(states[layer * self.num_states : (layer + 1) * self.num_states]) for layer in range(self.num_layers)
        ]
