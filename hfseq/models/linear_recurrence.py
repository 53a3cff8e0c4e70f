"""Linear recurrences, exact at padding, and the cells made of them."""

from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from transformers import initialization as init

from .dropout import drop
from .padding import take_steps
from .recurrent import RecurrentLayer


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
    unrolled = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if unrolled or scans_in_parallel(candidate):
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


class GateProjection(nn.Linear):
    """Gates and candidates side by side, each initialised as a matrix of its own.

    A module of its own, since transformers does not ask one without parameters to initialise those of its parts.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width H of each projection.
        biases: Initial bias of each. A gate that keeps the state has that of an LSTM's forget gate, 1 (Jozefowicz et
            al. 2015), one that replaces it -1.
        bias: Whether there are biases.
    """

    def __init__(self, input_size: int, hidden_size: int, biases: tuple[float, ...], bias: bool = True) -> None:
        super().__init__(input_size, len(biases) * hidden_size, bias)
        self.biases = biases

    def init_parameters(self) -> None:
        """Xavier matrices, and the given biases."""
        # The chunks are views, which do not carry the mark of a loaded parameter.
        if not getattr(self.weight, "_is_hf_initialized", False):
            for part in self.weight.chunk(len(self.biases)):
                init.xavier_uniform_(part)
        if self.bias is not None and not getattr(self.bias, "_is_hf_initialized", False):
            for part, value in zip(self.bias.chunk(len(self.biases)), self.biases, strict=True):
                init.constant_(part, value)


class LinearLayer(RecurrentLayer):
    r"""One layer and direction of a cell whose state is $h_t = (1 - z_t) \odot h_{t-1} + z_t \odot c_t$.

    Neither the update gate $z_t$ nor the candidate $c_t$ depends on the state, so that one matrix product gives those
    of all steps, and the state is a linear recurrence. A cell defines `gate` and, if its output is not its state,
    `read`.

    Args:
        input_size: Width I of the inputs.
        hidden_size: Width H of state and output.
        window: Number of inputs that a step sees, itself and those before it, side by side.
        conv_kernel: Number of taps of a causal convolution, one filter for each feature, that is added to the inputs;
            None for none.

    Attributes:
        biases: Initial bias of each projection of the input, H wide; see `GateProjection`.
    """

    biases: ClassVar[tuple[float, ...]]

    def __init__(self, input_size: int, hidden_size: int, window: int = 1, conv_kernel: int | None = None) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.window = input_size, hidden_size, window
        self.convolution = None if conv_kernel is None else FeatureConvolution(input_size, conv_kernel)
        self.project = GateProjection(window * input_size, hidden_size, self.biases)
        # Earlier inputs must be those of valid steps.
        self.needs_gather = window > 1 or conv_kernel is not None

    def state_shapes(self, batch: int) -> list[Size]:
        """Shapes of the state, and of the earlier inputs that the convolution and the first product see."""
        reaches = [] if self.convolution is None else [self.convolution.reach]
        reaches += [self.window - 1] if self.window > 1 else []
        return [Size((batch, self.hidden_size)), *(Size((batch, reach, self.input_size)) for reach in reaches)]

    def gate(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Update gate z and candidate c, `[B, T, H]`, from the projected inputs `[B, T, N * H]`."""
        raise NotImplementedError

    def read(self, states: Tensor, projected: Tensor) -> Tensor:
        """Output `[B, T, H]` from the states `[B, T, H]` and the projected inputs; by default the states."""
        return states

    def forward(
        self, values: Tensor, valid: Tensor | None = None, weight: Tensor | None = None, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Run all steps; see `RecurrentLayer.forward`. The state is in at least float32."""
        initial, *before = state or [values.new_zeros(shape) for shape in self.state_shapes(values.shape[0])]
        after = []
        if self.convolution is not None:
            steps, last = with_earlier(values, valid, before.pop(0))
            values = values + self.convolution(steps)
            after.append(last)
        if self.window > 1:
            steps, last = with_earlier(values, valid, before.pop(0))
            length = values.shape[1]
            values = torch.cat([steps[:, place : place + length] for place in range(self.window)], dim=-1)
            after.append(last)
        projected = self.project(values)
        states = gated_recurrence(*self.gate(projected), initial, valid)
        # A copy, so that a cache does not keep all steps alive.
        return self.read(states.to(projected.dtype), projected), states[:, -1].clone(), *after


def with_earlier(values: Tensor, valid: Tensor | None, before: Tensor) -> tuple[Tensor, Tensor]:
    """Steps with those before them.

    Args:
        values: `[B, T, I]`, each row's valid steps first.
        valid: True at valid steps, `[B, T]`; None if all are.
        before: The last R valid inputs before the first step, `[B, R, I]`.

    Returns:
        Both together, `[B, R + T, I]`, and the last R valid ones of them, `[B, R, I]`.
    """
    steps = torch.cat([before.to(values.dtype), values], dim=1)
    reach = before.shape[1]
    if valid is None:
        return steps, steps[:, values.shape[1] :].clone()
    return steps, take_steps(steps, valid.sum(dim=1, keepdim=True) + torch.arange(reach, device=values.device))


class FeatureConvolution(nn.Module):
    """Causal convolution with one filter for each feature.

    Args:
        size: Number of features.
        kernel_size: Number of taps.
    """

    def __init__(self, size: int, kernel_size: int) -> None:
        super().__init__()
        self.reach = kernel_size - 1
        self.weight = nn.Parameter(torch.empty(size, kernel_size))
        self.bias = nn.Parameter(torch.empty(size))

    def init_parameters(self) -> None:
        """Normal filters of variance 1 / taps, biases of 0."""
        init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        init.zeros_(self.bias)

    def forward(self, steps: Tensor) -> Tensor:
        """Convolve steps `[B, k - 1 + T, I]`, the first of which are those before; returns `[B, T, I]`."""
        length = steps.shape[1] - self.reach
        output: Tensor = self.bias
        for tap, filters in enumerate(self.weight.unbind(1)):
            output = torch.addcmul(output, filters, steps[:, tap : tap + length])
        return output


def activate(values: Tensor, candidate: str) -> Tensor:
    r"""Candidate state from its projection: `linear`, `tanh`, or `g` of Feng et al. (2024, appendix B).

    $g(x) = x + 0.5$ for $x \ge 0$ and $\sigma(x)$ below keeps states positive.
    """
    if candidate == "g":
        return torch.relu(values) + torch.sigmoid(values.clamp(max=0.0))
    return torch.tanh(values) if candidate == "tanh" else values


class MinGruLayer(LinearLayer):
    r"""minGRU (Feng et al. 2024, section 3.1): $h_t = (1 - z_t) \odot h_{t-1} + z_t \odot \tilde h_t$.

    The update gate $z_t = \sigma(W_z x_t + b_z)$ and the candidate $\tilde h_t$, a function of $W_h x_t + b_h$, see
    the input alone.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the state.
        candidate: Function of the candidate; see `activate`.
        conv_kernel: See `LinearLayer`.
    """

    biases = (-1.0, 0.0)

    def __init__(self, input_size: int, hidden_size: int, candidate: str, conv_kernel: int | None = None) -> None:
        super().__init__(input_size, hidden_size, conv_kernel=conv_kernel)
        self.candidate = candidate

    def gate(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Update gate and candidate; see `LinearLayer.gate`."""
        update, candidate = projected.chunk(2, dim=-1)
        return update.sigmoid(), activate(candidate, self.candidate)


class MinLstmLayer(LinearLayer):
    r"""minLSTM (Feng et al. 2024, section 3.2), whose forget and input gates are normalised to a sum of 1.

    $h_t = f'_t \odot h_{t-1} + i'_t \odot \tilde h_t$ with $f' = f / (f + i)$ and $i' = i / (f + i)$, where
    $f = \sigma(W_f x_t + b_f)$, $i = \sigma(W_i x_t + b_i)$ and $\tilde h_t$ is a function of $W_h x_t + b_h$.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the state.
        candidate: Function of the candidate; see `activate`.
        conv_kernel: See `LinearLayer`.
    """

    biases = (1.0, 0.0, 0.0)

    def __init__(self, input_size: int, hidden_size: int, candidate: str, conv_kernel: int | None = None) -> None:
        super().__init__(input_size, hidden_size, conv_kernel=conv_kernel)
        self.candidate = candidate

    def gate(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Update gate and candidate; see `LinearLayer.gate`."""
        forget, write, candidate = projected.chunk(3, dim=-1)
        # i / (f + i) as the sigmoid of log i - log f: the quotient is 0 / 0 where both gates are closed.
        update = torch.sigmoid(nn.functional.logsigmoid(write) - nn.functional.logsigmoid(forget))
        return update, activate(candidate, self.candidate)


class QrnnLayer(LinearLayer):
    r"""QRNN with fo-pooling (Bradbury et al. 2017, eq. 1 and 4).

    $c_t = f_t \odot c_{t-1} + (1 - f_t) \odot z_t$ and $h_t = o_t \odot c_t$, where $z = \tanh(W_z * X)$,
    $f = \sigma(W_f * X)$ and $o = \sigma(W_o * X)$ are convolutions over the last `window` inputs.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the state.
        window: Width of the convolutions; the inputs before the first are part of the state.
        zoneout: Probability that a unit keeps its state at a step of training (section 2.1). Otherwise the update gate
            $1 - f_t$ is multiplied by the probability that it does not (Krueger et al. 2017).
        conv_kernel: See `LinearLayer`.
    """

    biases = (0.0, 1.0, 0.0)

    def __init__(
        self, input_size: int, hidden_size: int, window: int, zoneout: float, conv_kernel: int | None = None
    ) -> None:
        super().__init__(input_size, hidden_size, window, conv_kernel)
        self.zoneout = zoneout

    def gate(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Update gate and candidate; see `LinearLayer.gate`."""
        candidate, forget, _ = projected.chunk(3, dim=-1)
        update = torch.sigmoid(-forget)
        if self.zoneout and self.training:
            update = update.masked_fill(drop(torch.ones_like(update), self.zoneout) == 0, 0.0)
        elif self.zoneout:
            update = update * (1.0 - self.zoneout)
        return update, torch.tanh(candidate)

    def read(self, states: Tensor, projected: Tensor) -> Tensor:
        """Output through the output gate."""
        return projected.chunk(3, dim=-1)[2].sigmoid() * states


class SsruLayer(LinearLayer):
    r"""SSRU (Kim et al. 2019): a simple recurrent unit with a ReLU in place of its output gate.

    $f_t = \sigma(W_f x_t + b_f)$, $c_t = f_t \odot c_{t-1} + (1 - f_t) \odot W x_t$ and $h_t = \mathrm{ReLU}(c_t)$.
    """

    biases = (0.0, 0.0)

    def __init__(self, input_size: int, hidden_size: int, conv_kernel: int | None = None) -> None:
        super().__init__(input_size, hidden_size, conv_kernel=conv_kernel)
        self.project = GateProjection(input_size, hidden_size, self.biases, bias=False)
        self.forget_bias = nn.Parameter(torch.ones(hidden_size))

    def init_parameters(self) -> None:
        """Forget-gate bias 1 (Jozefowicz et al. 2015)."""
        init.ones_(self.forget_bias)

    def gate(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Update gate and candidate; see `LinearLayer.gate`."""
        forget, candidate = projected.chunk(2, dim=-1)
        return torch.sigmoid(-forget - self.forget_bias), candidate

    def read(self, states: Tensor, projected: Tensor) -> Tensor:
        """Output through a ReLU."""
        return torch.relu(states)
