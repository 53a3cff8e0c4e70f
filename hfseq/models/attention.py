"""Attention of a recurrent decoder over encoder states."""

import torch
from torch import Tensor, nn

from .padding import masked_softmax
from .shapes import by_sequence, by_source, for_each


class CrossAttention(nn.Module):
    r"""Attention of decoder states over encoder states, and the attentional vectors that combine both.

    The score of decoder state $s_t$ and encoder state $h_j$ is

    - `additive`: $v^\top \tanh(W_a s_t + U_a h_j)$ (Bahdanau et al. 2015, A.1.2, eq. 5-6 for weights and context);
    - `dot`: $s_t^\top h_j$ (Luong et al. 2015, eq. 8);
    - `general`: $s_t^\top W_a h_j$ (Luong et al. 2015, eq. 8).

    In all three $s_t$ is the state of the step being predicted and the result is the attentional vector
    $\tanh(W_c [c_t; s_t])$ (Luong et al. 2015, eq. 5), to which other toolkits add a bias, inside the tanh (JoeyNMT)
    or without it (OpenNMT's `mlp`).

    With coverage the additive score is $v^\top \tanh(W_a s_t + U_a h_j + w_c c_j^t)$, where $c^t$ is the sum of the
    weights of the earlier steps (See et al. 2017, eq. 10-11).

    Args:
        hidden_size: Width of decoder states and of the attentional vector.
        encoder_size: Width of encoder states.
        attention_type: `additive`, `dot` or `general`.
        coverage: Whether to attend with coverage, by `cover` instead of `forward`.
        bias: Whether the attentional vector has a bias.
        activation: Its activation, `tanh` or `none`.

    Raises:
        ValueError: If the widths differ with `dot`, or if coverage is combined with another score than `additive`.
    """

    def __init__(
        self,
        hidden_size: int,
        encoder_size: int,
        attention_type: str,
        coverage: bool = False,
        bias: bool = False,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        if coverage and attention_type != "additive":
            raise ValueError(f"coverage=True needs attention_type='additive', not {attention_type!r}")
        if attention_type == "dot" and hidden_size != encoder_size:
            raise ValueError(
                f"attention_type='dot' needs encoder and decoder states of one width, but those of the encoder are "
                f"{encoder_size} wide and those of the decoder {hidden_size}; use 'general' or 'additive'"
            )
        self.attention_type, self.activates = attention_type, activation == "tanh"
        if attention_type == "general":
            self.query = nn.Linear(hidden_size, encoder_size, bias=False)
        elif attention_type == "additive":
            self.query = nn.Linear(hidden_size, hidden_size)
            self.key = nn.Linear(encoder_size, hidden_size, bias=False)
            self.energy = nn.Linear(hidden_size, 1, bias=False)
        if coverage:
            self.coverage = nn.Linear(1, hidden_size, bias=False)
        self.combine = nn.Linear(encoder_size + hidden_size, hidden_size, bias)

    def keys(self, encoder_hidden_states: Tensor) -> Tensor:
        """Keys `[B, S, A]`, the same for all steps, so that they can be cached."""
        return self.key(encoder_hidden_states) if self.attention_type == "additive" else encoder_hidden_states

    def forward(
        self, states: Tensor, encoder_hidden_states: Tensor, keys: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend from each decoder state.

        Args:
            states: Decoder states `[B, T, H]`, or `[B * N, T, H]` for N sequences of each source, side by side.
            encoder_hidden_states: `[B, S, M]`.
            keys: `self.keys(encoder_hidden_states)`.
            mask: True at valid encoder states, `[B, S]`. A row without one gets a context of zeros.

        Returns:
            Attentional vectors `[B, T, H]` and weights `[B, T, S]`, or `[B * N, T, ...]`.
        """
        batch, length, _ = states.shape
        states = by_source(states, keys)
        if self.attention_type == "additive":
            hidden = self.query(states).unsqueeze(2) + keys.unsqueeze(1)  # [B, T, S, H]
            scores = self.energy(torch.tanh(hidden)).squeeze(-1)
        else:
            query = states if self.attention_type == "dot" else self.query(states)
            scores = query @ keys.transpose(1, 2)
        weights = masked_softmax(scores, None if mask is None else mask.unsqueeze(1))
        vectors = self._combine(weights, encoder_hidden_states, states)
        return by_sequence(vectors, batch, length), by_sequence(weights, batch, length)

    def cover(
        self,
        states: Tensor,
        coverage: Tensor,
        steps: Tensor | None,
        encoder_hidden_states: Tensor,
        keys: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attend step by step, each step's scores depending on the coverage of the earlier ones.

        Args:
            states: Decoder states `[B, T, H]`, or `[B * N, T, H]` as in `forward`.
            coverage: Sum of the weights of all steps before the first, `[B, S]`, or `[B * N, S]`.
            steps: True at valid decoder steps, `[B, T]`; the others add nothing to the coverage.
            encoder_hidden_states: `[B, S, M]`.
            keys: `self.keys(encoder_hidden_states)`.
            mask: True at valid encoder states, `[B, S]`.

        Returns:
            Attentional vectors `[B, T, H]`; weights `[B, T, S]`; coverage loss of each step (See et al. 2017, eq. 12),
            `[B, T]`; coverage after the last step, `[B, S]`.
        """
        # Each sequence has a coverage of its own.
        encoder_hidden_states, keys = for_each(encoder_hidden_states, states), for_each(keys, states)
        mask = None if mask is None else for_each(mask, states)
        queries = self.query(states)
        source = None if mask is None else mask.unsqueeze(1)
        weights, coverage_loss = [], []
        for step in range(states.shape[1]):
            seen = self.coverage(coverage.to(queries.dtype).unsqueeze(-1))  # [B, S, H]
            scores = self.energy(torch.tanh(queries[:, step : step + 1] + keys + seen)).transpose(1, 2)
            step_weights = masked_softmax(scores, source)  # [B, 1, S]
            weights.append(step_weights)
            added = step_weights.squeeze(1)
            coverage_loss.append(torch.minimum(added, coverage).sum(dim=-1))
            if steps is not None:
                added = added.masked_fill(~steps[:, step : step + 1], 0.0)
            coverage = coverage + added
        all_weights = torch.cat(weights, dim=1)
        vectors = self._combine(all_weights, encoder_hidden_states, states)
        return vectors, all_weights, torch.stack(coverage_loss, dim=1), coverage

    def _combine(self, weights: Tensor, encoder_hidden_states: Tensor, states: Tensor) -> Tensor:
        vectors = self.combine(torch.cat([weights @ encoder_hidden_states, states], dim=-1))
        return torch.tanh(vectors) if self.activates else vectors
