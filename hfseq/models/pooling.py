"""Pooling of a sequence to one vector over its valid steps."""

import torch
from torch import Tensor, nn

from .padding import end_steps, masked_softmax, middle_step


class Pooling(nn.Module):
    r"""Pool `[B, T, H]` to `[B, width]`; the width is H, or 3 H for `concat`.

    - `last`: the final states: the last valid step, or with `concatenates_directions` the left-to-right half of the
      last valid step and the right-to-left half of the first one.
    - `middle`: the middle one of the valid steps, the earlier one of two.
    - `mean`: the average over valid steps.
    - `max`: the maximum of each feature (Collobert et al. 2011; Kim 2014, section 2).
    - `concat`: `last`, `max` and `mean` concatenated (Howard & Ruder 2018, section 3.3).
    - `attention`: $\sum_t \alpha_t h_t$ with $\alpha = softmax(u^\top \tanh(W h_t + b))$ (Yang et al. 2016, eq. 5-7).

    Args:
        kind: `last`, `middle`, `mean`, `max`, `concat` or `attention`.
        hidden_size: Width H.
        concatenates_directions: Whether the second half of the features is a right-to-left direction's.
    """

    def __init__(self, kind: str, hidden_size: int, concatenates_directions: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.concatenates_directions = concatenates_directions
        self.width = 3 * hidden_size if kind == "concat" else hidden_size
        if kind == "attention":
            self.hidden = nn.Linear(hidden_size, hidden_size)
            self.energy = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool `values` `[B, T, H]` over the steps where `mask` `[B, T]` is True (None: all); zeros if none is."""
        if mask is None:
            mask = values.new_ones(values.shape[:2], dtype=torch.bool)
        # Padding is filled with finite values, so that a row without a valid step gives zeros instead of NaN, in its
        # gradients too.
        padding = ~mask.unsqueeze(-1)  # [B, T, 1]
        parts = []
        if self.kind in ("last", "concat"):
            parts.append(self._ends(values, mask))
        if self.kind == "middle":
            parts.append(middle_step(values, mask))
        if self.kind in ("max", "concat"):
            parts.append(values.masked_fill(padding, torch.finfo(values.dtype).min).amax(dim=1))
        if self.kind in ("mean", "concat"):
            parts.append(values.masked_fill(padding, 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1))
        if self.kind == "attention":
            scores = self.energy(torch.tanh(self.hidden(values)))  # [B, T, 1]
            weights = masked_softmax(scores, mask.unsqueeze(-1), dim=1)
            parts.append((weights * values.masked_fill(padding, 0.0)).sum(dim=1))
        return torch.cat(parts, dim=-1).masked_fill(~mask.any(dim=1, keepdim=True), 0.0)

    def _ends(self, values: Tensor, mask: Tensor) -> Tensor:
        first, last = end_steps(values, mask)
        half = values.shape[-1] // 2
        return torch.cat([last[:, :half], first[:, half:]], dim=-1) if self.concatenates_directions else last
