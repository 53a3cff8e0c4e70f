"""Linear-chain conditional random field (Lafferty et al. 2001)."""

import torch
from torch import Tensor, nn


class LinearChainCrf(nn.Module):
    r"""Scores of label sequences: $s(X, y) = \sum_t P_{t, y_t} + \sum_t A_{y_{t-1}, y_t}$ (Lample et al. 2016, eq. 1).

    P are the emissions and A the transitions, including those from a start and to an end state. The chain consists of
    the steps where `mask` is True, wherever they are; all others are skipped.

    Args:
        num_labels: Number of labels K.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))  # from, to
        self.start = nn.Parameter(torch.zeros(num_labels))
        self.end = nn.Parameter(torch.zeros(num_labels))

    def log_likelihood(self, emissions: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities of label sequences (Lample et al. 2016, section 2.3).

        Args:
            emissions: `[B, T, K]`.
            labels: `[B, T]`; ignored where `mask` is False.
            mask: True at the steps of the chain, `[B, T]`.

        Returns:
            `[B]`; 0 for a row with an empty chain.
        """
        emissions = emissions.float()
        total = sums_before(emissions, mask, self.transitions, self.start, best=False)[:, -1] + self.end
        labels = labels.masked_fill(~mask, 0)
        score = (emissions.gather(2, labels.unsqueeze(-1)).squeeze(-1) * mask).sum(dim=1)
        # The last step of the chain up to each step, and before each step; -1 if there is none.
        last = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).cummax(dim=1).values
        before = nn.functional.pad(last[:, :-1], (1, 0), value=-1)
        moves = self.transitions[labels.gather(1, before.clamp(min=0)), labels]
        score = score + torch.where(before >= 0, moves, self.start[labels]).masked_fill(~mask, 0.0).sum(dim=1)
        last = last[:, -1]
        score = score + self.end[labels.gather(1, last.clamp(min=0).unsqueeze(1)).squeeze(1)]
        return torch.where(last >= 0, score - total.logsumexp(dim=-1), 0.0)

    def max_marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Max-marginals: score of the best label sequence through each label, `[B, T, K]`; zeros off the chain.

        At each step their maximum is the score of the best sequence of all, and their argmax its label: that of
        Viterbi (1967), computed by a forward and a backward pass.

        Args:
            emissions: `[B, T, K]`.
            mask: True at the steps of the chain, `[B, T]`.
        """
        emissions = emissions.float()
        forward = sums_before(emissions, mask, self.transitions, self.start, best=True)
        backward = best_after(emissions, mask, self.transitions, self.end)
        return (forward + backward).masked_fill(~mask.unsqueeze(-1), 0.0)

    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Labels of the best sequence, `[B, T]`; 0 off the chain."""
        return self.max_marginals(emissions, mask).argmax(dim=-1)


# Separate functions, since a tracing exporter keeps loops only in compiled code; see `script_if_tracing`.


@torch.jit.script_if_tracing
def sums_before(emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, best: bool) -> Tensor:
    """Forward scores `[B, T, K]`: log-sum-exp (with `best` maximum) over all sequences ending in each label.

    Steps off the chain repeat the previous one; before the chain there are zeros.
    """
    reached = torch.zeros_like(emissions[:, 0])
    started = torch.zeros_like(mask[:, 0])
    steps: list[Tensor] = []
    for step in range(emissions.shape[1]):
        through = reached.unsqueeze(-1) + transitions
        inner = through.amax(dim=1) if best else through.logsumexp(dim=1)
        new = torch.where(started.unsqueeze(-1), inner, start) + emissions[:, step]
        reached = torch.where(mask[:, step].unsqueeze(-1), new, reached)
        started = started | mask[:, step]
        steps.append(reached)
    return torch.stack(steps, dim=1)


@torch.jit.script_if_tracing
def best_after(emissions: Tensor, mask: Tensor, transitions: Tensor, end: Tensor) -> Tensor:
    """Backward scores `[B, T, K]`: the best score of the steps of the chain after each label."""
    after = end.expand(emissions.shape[0], -1)
    steps: list[Tensor] = [after]
    for back in range(emissions.shape[1] - 1):
        step = emissions.shape[1] - 1 - back
        through = (transitions + (emissions[:, step] + after).unsqueeze(1)).amax(dim=-1)
        after = torch.where(mask[:, step].unsqueeze(-1), through, after)
        steps.append(after)
    return torch.stack(steps, dim=1).flip(1)
