"""Cells whose states are linear recurrences: minGRU, minLSTM, QRNN and SSRU."""

from typing import ClassVar

import torch
from torch import Size, Tensor, nn
from transformers import initialization as init

from .dropout import drop
from .linear_recurrence import gated_recurrence, runs_in_loop
from .padding import take_steps
from .recurrent import RecurrentLayer

# Steps of a long sequence that are projected and gated at a time on a CPU. The gates of all steps would be large
# tensors, for which the system has to find fresh memory again and again.
BLOCK = 512


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
        outputs, carried = [], initial
        length = values.shape[1]
        size = BLOCK if runs_in_loop(values) else length
        for start in range(0, length, size):
            block = slice(start, start + size)
            projected = self.project(values[:, block])
            states = gated_recurrence(*self.gate(projected), carried, None if valid is None else valid[:, block])
            outputs.append(self.read(states.to(projected.dtype), projected))
            carried = states[:, -1]
        output = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        # A copy, so that a cache does not keep all steps alive.
        return output, carried.clone(), *after


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
