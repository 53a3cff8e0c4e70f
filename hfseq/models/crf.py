"""Linear-chain conditional random field (Lafferty et al. 2001): scores of whole sequences of labels."""

import torch
from torch import Tensor, nn


class LinearChainCrf(nn.Module):
    r"""Scores of label sequences: $s(X, y) = \sum_t P_{t, y_t} + \sum_t A_{y_{t-1}, y_t}$ (Lample et al. 2016, eq. 1).

    P are the emissions, A the transitions, among them those from a start and to an end. The chain goes through the
    steps at which `mask` is True, wherever they stand: what is between two of them is as if it were not there.

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
            labels: `[B, T]`; what stands where `mask` is False does not matter.
            mask: True at the steps of the chain, `[B, T]`.

        Returns:
            `[B]`; 0 for a row without a step.
        """
        emissions = emissions.float()
        total = self._forward(emissions, mask)[:, -1] + self.end
        labels = labels.masked_fill(~mask, 0)
        score = (emissions.gather(2, labels.unsqueeze(-1)).squeeze(-1) * mask).sum(dim=1)
        before, started = _label_before(labels, mask)
        moves = self.transitions[before, labels]
        score = score + torch.where(started, moves, self.start[labels]).masked_fill(~mask, 0.0).sum(dim=1)
        last, any_step = _last_label(labels, mask)
        score = score + self.end[last]
        return torch.where(any_step, score - total.logsumexp(dim=-1), 0.0)

    def max_marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """The score of the best label sequence through each label of each step, `[B, T, K]`; zeros beside the chain.

        Their largest value at each step is that of the best sequence of all, which they so decode: it is that of
        Viterbi (1967), found from both ends.

        Args:
            emissions: `[B, T, K]`.
            mask: True at the steps of the chain, `[B, T]`.
        """
        emissions = emissions.float()
        forward = self._forward(emissions, mask, best=True)
        backward = best_after(emissions, mask, self.transitions, self.end)
        return (forward + backward).masked_fill(~mask.unsqueeze(-1), 0.0)

    def decode(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Labels of the best sequence, `[B, T]`; 0 beside the chain."""
        return self.max_marginals(emissions, mask).argmax(dim=-1)

    def _forward(self, emissions: Tensor, mask: Tensor, best: bool = False) -> Tensor:
        """Sums (or with `best` maxima) over all sequences that end in each label at each step, `[B, T, K]`.

        A step beside the chain repeats the one before; ahead of the chain there are zeros.
        """
        return sums_before(emissions, mask, self.transitions, self.start, best)


# Loops of their own, since an exporter that traces can keep a loop only of what is compiled; see `script_if_tracing`.


@torch.jit.script_if_tracing
def sums_before(emissions: Tensor, mask: Tensor, transitions: Tensor, start: Tensor, best: bool) -> Tensor:
    """What `LinearChainCrf._forward` gives."""
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
    """The best score of what comes after each label of each step, `[B, T, K]`, through the steps of the chain."""
    after = end.expand(emissions.shape[0], -1)
    steps: list[Tensor] = [after]
    for back in range(emissions.shape[1] - 1):
        step = emissions.shape[1] - 1 - back
        through = (transitions + (emissions[:, step] + after).unsqueeze(1)).amax(dim=-1)
        after = torch.where(mask[:, step].unsqueeze(-1), through, after)
        steps.append(after)
    return torch.stack(steps, dim=1).flip(1)


def _label_before(labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The label of the chain's step before each step, and whether there is one, `[B, T]`."""
    steps = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    # The last step of the chain up to each step, -1 while there is none.
    last = torch.where(mask, steps, -1).cummax(dim=1).values
    before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], dim=1)
    return labels.gather(1, before.clamp(min=0)), before >= 0


def _last_label(labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The label of the chain's last step, and whether there is a step, `[B]`."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).amax(dim=1)
    return labels.gather(1, last.clamp(min=0).unsqueeze(1)).squeeze(1), last >= 0
