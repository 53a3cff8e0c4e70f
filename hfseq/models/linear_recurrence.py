"""Linear recurrences, exact at padding: in a loop on a CPU, by a parallel scan elsewhere."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def linear_recurrence(decay: Tensor, inputs: Tensor, initial: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""States $h_t = a_t \odot h_{t-1} + b_t$ of all steps.

    A step of padding has $a_t = 1$ and $b_t = 0$, so that it keeps the state bit for bit. On a CPU the steps are a
    loop of one operation each, which takes little beside the matrix products that give $a$ and $b$; on a GPU, and in
    graphs that are compiled or exported, they are a parallel scan. Logarithms, in which the scan is often published,
    would be slower on a CPU and lose three digits in long sequences.

    Args:
        decay: Coefficients a `[B, T, H]`, between 0 and 1.
        inputs: Terms b `[B, T, H]`.
        initial: State before the first step, `[B, H]`.
        mask: True at valid steps, `[B, T]`, wherever the padding is; None if all are.

    Returns:
        `[B, T, H]`, in at least float32: in half precision a state that decays slowly would lose what each step adds.
    """
    if mask is not None:
        padding = ~mask.unsqueeze(-1)
        decay, inputs = decay.masked_fill(padding, 1.0), inputs.masked_fill(padding, 0.0)
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    decay, inputs, initial = decay.to(dtype), inputs.to(dtype), initial.to(dtype)
    if inputs.shape[1] == 1:
        return torch.addcmul(inputs, decay, initial.unsqueeze(1))
    if torch.jit.is_tracing():
        # A traced loop would have as many steps as the example.
        return scripted_scan()(decay, inputs, initial)
    if torch.compiler.is_compiling():
        return scan_by_doubling(decay, inputs, initial)
    return _Recurrence.apply(decay, inputs, initial)


def gated_recurrence(update: Tensor, candidate: Tensor, initial: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""States $h_t = (1 - z_t) \odot h_{t-1} + z_t \odot c_t$ of all steps: `linear_recurrence` for gates.

    On a CPU each step is one interpolation, which saves the passes over memory that a and b would take.

    Args:
        update: Update gate z `[B, T, H]`.
        candidate: Candidate states c `[B, T, H]`.
        initial: State before the first step, `[B, H]`.
        mask: True at valid steps, `[B, T]`, wherever the padding is; None if all are.

    Returns:
        `[B, T, H]`, in at least float32.
    """
    if not runs_in_loop(candidate):
        return linear_recurrence(1.0 - update, update * candidate, initial, mask)
    if mask is not None:
        update = update.masked_fill(~mask.unsqueeze(-1), 0.0)
    dtype = torch.promote_types(candidate.dtype, torch.float32)
    update, candidate, initial = update.to(dtype), candidate.to(dtype), initial.to(dtype)
    if candidate.shape[1] == 1:
        return torch.lerp(initial.unsqueeze(1), candidate, update)
    return _GatedRecurrence.apply(update, candidate, initial)


def scan_by_doubling(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """States `[B, T, H]` in about log2(T) rounds over all steps (Hillis & Steele 1986); see `linear_recurrence`.

    After a round each step has absorbed twice as many of those before it. TorchScript compiles this function, too.
    """
    first = torch.addcmul(inputs[:, :1], decay[:, :1], initial.unsqueeze(1))
    states = torch.cat([first, inputs[:, 1:]], dim=1)
    shift = 1
    while shift < states.shape[1]:
        absorbed = torch.addcmul(states[:, shift:], decay[:, shift:], states[:, :-shift])
        states = torch.cat([states[:, :shift], absorbed], dim=1)
        decay = torch.cat([decay[:, :shift], decay[:, shift:] * decay[:, :-shift]], dim=1)
        shift *= 2
    return states


@cache
def scripted_scan() -> Any:
    """`scan_by_doubling` for any length, with a loop in traced and exported graphs."""
    return torch.jit.script(scan_by_doubling)


def scan_by_loop(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """States `[B, T, H]` step by step, without a gradient; see `linear_recurrence`."""
    states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    # Indexing each step in place of one `unbind` would take a while by itself.
    _loop(decay.unbind(1), inputs.unbind(1), initial, states.unbind(1))
    return states


def _loop(decays: Iterable[Tensor], inputs: Iterable[Tensor], state: Tensor, states: Iterable[Tensor]) -> None:
    for a, b, out in zip(decays, inputs, states, strict=True):
        state = torch.addcmul(b, a, state, out=out)


def runs_in_loop(tensor: Tensor) -> bool:
    """True where a recurrence over `tensor` goes step by step: on a CPU, outside traced and compiled graphs."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling() or scans_in_parallel(tensor))


def scans_in_parallel(tensor: Tensor) -> bool:
    """True on a device where launching an operation takes longer than a step of a loop."""
    return tensor.device.type != "cpu"


class _Recurrence(torch.autograd.Function):
    """The recurrence with its own backward, the same recurrence from right to left; it keeps only the states."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        scan = scan_by_doubling if scans_in_parallel(inputs) else scan_by_loop
        states = scan(decay, inputs, initial)
        ctx.save_for_backward(decay, initial, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, initial, states = ctx.saved_tensors
        (gradient,) = gradients
        if torch.is_grad_enabled() or scans_in_parallel(gradient):
            total, before = _from_right_to_left(decay, initial, states, gradient)
            return total * before, total, decay[:, 0] * total[:, 0]
        return _backward_by_loop(decay, initial, states, gradient)


def _from_right_to_left(decay: Tensor, initial: Tensor, states: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the states, with what comes back from later ones, and the states before each step, `[B, T, H]`.

    All steps at once, and differentiable.
    """
    later = nn.functional.pad(decay[:, 1:], (0, 0, 0, 1)).flip(1)
    total = linear_recurrence(later, gradient.flip(1), torch.zeros_like(initial)).flip(1)
    return total, torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)


def _backward_by_loop(
    decay: Tensor, initial: Tensor, states: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of decays, inputs and initial state from those of the states, `[B, T, H]`."""
    of_decay, of_inputs, carry = torch.empty_like(states), torch.empty_like(states), torch.zeros_like(initial)
    for a, before, own, of_a, of_b in _steps_back(decay, _before(initial, states), gradient, of_decay, of_inputs):
        torch.add(own, carry, out=of_b)
        torch.mul(of_b, before, out=of_a)
        torch.mul(of_b, a, out=carry)
    return of_decay, of_inputs, carry


def _before(initial: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """State before each step."""
    return (initial, *states.unbind(1)[:-1])


def _steps_back(*parts: Tensor | tuple[Tensor, ...]) -> Iterable[tuple[Tensor, ...]]:
    """Steps `[B, H]` of `[B, T, H]` from the last to the first."""
    steps = [part.unbind(1) if isinstance(part, Tensor) else part for part in parts]
    return reversed([*zip(*steps, strict=True)])


class _GatedRecurrence(torch.autograd.Function):
    """`gated_recurrence` on a CPU, with its own backward."""

    @staticmethod
    def forward(ctx: Any, update: Tensor, candidate: Tensor, initial: Tensor) -> Tensor:
        states = torch.empty_like(candidate, memory_format=torch.contiguous_format)
        state = initial
        for z, c, out in zip(update.unbind(1), candidate.unbind(1), states.unbind(1), strict=True):
            state = torch.lerp(state, c, z, out=out)
        ctx.save_for_backward(update, candidate, initial, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        update, candidate, initial, states = ctx.saved_tensors
        (gradient,) = gradients
        if torch.is_grad_enabled():
            total, before = _from_right_to_left(1.0 - update, initial, states, gradient)
            return total * (candidate - before), total * update, (1.0 - update[:, 0]) * total[:, 0]
        of_update, of_candidate = torch.empty_like(states), torch.empty_like(states)
        carry, total = torch.zeros_like(initial), torch.empty_like(initial)
        steps = _steps_back(update, candidate, _before(initial, states), gradient, of_update, of_candidate)
        for z, c, state, own, of_z, of_c in steps:
            torch.add(own, carry, out=total)
            torch.mul(total, z, out=of_c)
            torch.sub(total, of_c, out=carry)
            torch.sub(c, state, out=of_z).mul_(total)
        return of_update, of_candidate, carry
