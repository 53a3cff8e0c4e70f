"""One vector for a sequence, from its valid steps alone."""

import torch
from torch import Tensor, nn

from .padding import end_positions


class Pooling(nn.Module):
    r"""Pool `[B, T, H]` to `[B, width]`, where the width is H, or 3 H of `concat`.

    - `last`: the final states. That is the last valid step; of a bidirectional recurrent stack its left-to-right half,
      and the right-to-left half of the first valid step.
    - `mean`: the average over valid steps.
    - `max`: the largest value of each feature (Collobert et al. 2011; Kim 2014, section 2).
    - `concat`: `last`, `max` and `mean` side by side (Howard & Ruder 2018, section 3.3).
    - `attention`: $\sum_t \alpha_t h_t$ with $\alpha = softmax(u^\top \tanh(W h_t + b))$ (Yang et al. 2016, eq. 5-7).

    Args:
        kind: `last`, `mean`, `max`, `concat` or `attention`.
        hidden_size: Width H.
        two_halves: Whether the second half of the features runs from right to left.
    """

    def __init__(self, kind: str, hidden_size: int, two_halves: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.two_halves = two_halves
        self.width = 3 * hidden_size if kind == "concat" else hidden_size
        if kind == "attention":
            self.hidden = nn.Linear(hidden_size, hidden_size)
            self.energy = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool `values` `[B, T, H]` over the steps where `mask` `[B, T]` is True (None: all); no step gives zeros."""
        if mask is None:
            mask = values.new_ones(values.shape[:2], dtype=torch.bool)
        # What padding is filled with is finite, so that a row without a valid step gives zeros and not NaN, in its
        # gradients too.
        padding = ~mask.unsqueeze(-1)  # [B, T, 1]
        parts = []
        if self.kind in ("last", "concat"):
            parts.append(self._ends(values, mask))
        if self.kind in ("max", "concat"):
            parts.append(values.masked_fill(padding, torch.finfo(values.dtype).min).amax(dim=1))
        if self.kind in ("mean", "concat"):
            parts.append(values.masked_fill(padding, 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1))
        if self.kind == "attention":
            scores = self.energy(torch.tanh(self.hidden(values)))  # [B, T, 1], under autocast of another type
            scores = scores.masked_fill(padding, torch.finfo(scores.dtype).min)
            parts.append((scores.softmax(dim=1) * values.masked_fill(padding, 0.0)).sum(dim=1))
        return torch.cat(parts, dim=-1).masked_fill(~mask.any(dim=1, keepdim=True), 0.0)

    def _ends(self, values: Tensor, mask: Tensor) -> Tensor:
        first, last = end_positions(mask)
        row = torch.arange(values.shape[0], device=values.device)
        if not self.two_halves:
            return values[row, last]
        half = values.shape[-1] // 2
        return torch.cat([values[row, last, :half], values[row, first, half:]], dim=-1)
