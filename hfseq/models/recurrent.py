"""Stacks of recurrent layers that padding cannot change."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .dropout import Dropout, drop
from .padding import Alignment, align, permute_steps, take_steps

State = tuple[Tensor, ...]
"""State of one layer and direction: `(h,)`, or `(h, c)` for LSTM, each `[B, H]`."""

logger = logging.get_logger(__name__)

# A gate input that saturates the sigmoid to exactly 0 or 1 in every float type and is finite in half precision.
SATURATING = 1e4


class RecurrentLayer(GradientCheckpointingLayer, nn.RNNBase):
    """One layer and direction: torch's kernel, with states batch first, exact at padding, and replaceable weights.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        input_size: Width of the inputs.
        hidden_size: Width of the output.
        nonlinearity: `tanh` or `relu`, of the `rnn` cell alone.
    """

    def __init__(self, cell: str, input_size: int, hidden_size: int, nonlinearity: str = "tanh") -> None:
        mode = f"RNN_{nonlinearity.upper()}" if cell == "rnn" else cell.upper()
        super().__init__(mode, input_size, hidden_size, batch_first=True)

    def forward(
        self, values: Tensor, hold: Alignment | None = None, weight: Tensor | None = None, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the kernel.

        Args:
            values: Inputs `[B, T, I]`, each row's valid steps first.
            hold: The alignment of the inputs if the state wanted is that after each row's last valid step; else it is
                that after the last column.
            weight: What to use in place of `weight_hh_l0`, of its shape.
            state: State before the first step; zeros if there is none.

        Returns:
            Output `[B, T, H]` and the tensors of the state: flat, as are the arguments, since that is all that
            gradient checkpointing sees. A row without a valid step keeps its state.
        """
        if not state:
            state = (values.new_zeros(values.shape[0], self.hidden_size),) * (2 if self.mode == "LSTM" else 1)
        weights = self.weights_with(weight)
        # The kernel of a whole text brings all weights into an order of its own first, which takes longer than a step.
        if values.shape[1] == 1 and self.mode == "LSTM" and not torch.is_grad_enabled() and not torch.jit.is_tracing():
            hidden, memory = torch.lstm_cell(values[:, 0], state, *weights)
            return hidden.unsqueeze(1), hidden, memory
        replaced = weight is not None
        if hold is not None and self.mode == "LSTM":
            # The kernel returns the cell state of the last column only: it is carried there.
            values = marked_at_padding(values, hold, 1)
            weights[0] = self.closed_at_padding(weights[0], 1)
            replaced = True
        initial = [part.unsqueeze(0).contiguous() for part in state]
        output, *last = run_kernel(self.mode, values, initial, weights, replaced)
        new_state = tuple(part.squeeze(0) for part in last)
        if hold is not None:
            new_state = (last_output(output, state[0], hold.lengths), *new_state[1:])
        return output, *new_state

    def weights_with(self, weight: Tensor | None) -> list[Tensor]:
        """What the kernel takes, with `weight`, if there is one, in place of `weight_hh_l0`.

        By name: a list kept aside would miss weights that were put in later, as offloading does.
        """
        recurrent = self.weight_hh_l0 if weight is None else weight
        return [self.weight_ih_l0, recurrent, self.bias_ih_l0, self.bias_hh_l0]  # type: ignore[list-item]

    def closed_at_padding(self, weight: Tensor, count: int) -> Tensor:
        """Input weights `[gates * H, I + count]` with which padding that `marked_at_padding` marks keeps the state.

        The first of the columns closes the LSTM's input gate and opens its forget gate, so that the cell state stays
        as it is, or opens the GRU's update gate, so that the output does.
        """
        size = self.hidden_size
        columns = weight.new_zeros(len(weight), count)
        if self.mode == "LSTM":  # gates in the order input, forget, cell, output
            columns[:size, 0] = -SATURATING
        columns[size : 2 * size, 0] = SATURATING  # GRU: reset, update, new
        return torch.cat([weight, columns], dim=1)


KERNELS: dict[str, Callable[..., Any]] = {
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


def run_kernel(
    mode: str, values: Tensor, initial: list[Tensor], weights: list[Tensor], replaced: bool, directions: int = 1
) -> tuple[Tensor, ...]:
    """Run torch's kernel of one layer.

    Args:
        mode: Of the cell, as `nn.RNNBase` calls it.
        values: Inputs `[B, T, I]`.
        initial: State before the first step, each `[directions, B, H]`.
        weights: Four for each direction, as `nn.RNNBase` orders them.
        replaced: Whether some of them are not the parameters themselves.
        directions: 2 for a kernel that also runs from right to left.

    Returns:
        Output `[B, T, directions * H]`, and the state after the last step like `initial`.
    """
    if replaced and values.is_cuda and not torch.is_autocast_enabled("cuda"):
        weights = in_one_piece(weights)
    # Biases, layers, dropout, whether training, both directions, batch first. There is no dropout here; a GPU's
    # kernel keeps what gradients need only where it is told to train, and they are wanted elsewhere, too.
    options = (True, 1, 0.0, torch.is_grad_enabled(), directions == 2, True)
    if mode != "LSTM":
        return KERNELS[mode](values, initial[0], weights, *options)
    if values.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if not autocasts_lstm(dtype):
            wide = torch.promote_types(values.dtype, torch.float32)
            with torch.autocast("cpu", enabled=False):
                outputs = torch.lstm(
                    values.to(wide), [one.to(wide) for one in initial], [one.to(wide) for one in weights], *options
                )
            return tuple(output.to(dtype) for output in outputs)
    return torch.lstm(values, initial, weights, *options)


@torch.compiler.assume_constant_result
def autocasts_lstm(dtype: torch.dtype) -> bool:
    """True if this processor has an LSTM kernel for autocast to a type; bfloat16 takes AVX-512 on x86."""
    return probe_lstm(dtype)


@cache
def probe_lstm(dtype: torch.dtype) -> bool:
    """See `autocasts_lstm`: oneDNN, behind torch's kernel, tells only by failing, and it does so for no other cell.

    Where there is no kernel, a warning is logged, once.
    """
    unit = torch.zeros(1, 1, 1, device="cpu")
    weights = [torch.zeros(4, 1, device="cpu")] * 2 + [torch.zeros(4, device="cpu")] * 2
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            torch.lstm(unit, [unit, unit], weights, True, 1, 0.0, False, False, True)
    except RuntimeError:
        name = str(dtype).removeprefix("torch.")
        logger.warning(
            f"this processor has no {name} LSTM kernel: LSTM layers compute in float32, everything else in {name}"
        )
        return False
    return True


def marked_at_padding(values: Tensor, alignment: Alignment, count: int) -> Tensor:
    """Aligned inputs `[B, T, I + count]`: the first of the new features is 1 at padding, the others are 0."""
    padding = (~alignment.valid).unsqueeze(-1).to(values.dtype)
    return torch.cat([values, nn.functional.pad(padding, (0, count - 1))], dim=-1)


def in_one_piece(weights: list[Tensor]) -> list[Tensor]:
    """The same weights in one piece of memory, as a GPU's kernel wants them; else it warns, and copies them.

    The matrices of all directions come first there, and then the biases.
    """
    order = sorted(range(len(weights)), key=lambda place: weights[place].dim(), reverse=True)
    flat = torch.cat([weights[place].flatten() for place in order])
    parts = dict(zip(order, flat.split([weights[place].numel() for place in order]), strict=True))
    return [parts[place].view_as(weight) for place, weight in enumerate(weights)]


def last_output(output: Tensor, initial: Tensor, lengths: Tensor) -> Tensor:
    """Output `[B, H]` at each row's last valid step of aligned `output` `[B, T, H]`, `initial` where there is none."""
    last = take_steps(output, (lengths - 1).clamp(min=0)).squeeze(1)
    return torch.where(lengths > 0, last, initial)


def turned_around(values: Tensor, alignment: Alignment | None) -> Tensor:
    """Aligned steps `[B, T, D]` from each row's last valid one to its first, padding where it was."""
    if alignment is None:
        return values.flip(1)
    return permute_steps(values, alignment.reverse, alignment.reverse)


class Noise(NamedTuple):
    """Random masks that all steps of a batch share, for who runs a stack step by step.

    Attributes:
        between: Dropout masks `[B, 1, H]` of each layer's input but the first's, or None where each step has its own.
        weights: Hidden-to-hidden matrices after DropConnect, left-to-right layers first; None: as they are.
    """

    between: list[Tensor | None]
    weights: list[Tensor | None]


class RecurrentStack(nn.Module):
    """Recurrent layers one above the other, each in one or in both directions.

    Padding is exact: each row's valid steps are gathered to its left, a plain kernel runs over the padded batch, and
    the right-to-left direction turns each row's valid part around before and after. On a GPU, where starting kernels
    takes longer than they do, one kernel of an LSTM or GRU runs both directions: there the right-to-left one comes
    from the padding, at which gates that are closed keep its state zero. No shape depends on the data.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        input_size: Width of the inputs.
        hidden_size: Width of a layer's output, both directions together.
        num_layers: Number of layers.
        bidirectional: Whether each layer has a right-to-left direction too.
        dropout: Dropout between layers.
        nonlinearity: `tanh` or `relu`, of the `rnn` cell alone.
        locked: Whether the dropout between layers has one mask for all steps of a row (Gal & Ghahramani 2016).
        weight_dropout: DropConnect on the hidden-to-hidden matrices (Merity et al. 2018, section 2).
        layer_norm: Whether each layer's output is normalised over its features.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool = False,
        dropout: float = 0.0,
        nonlinearity: str = "tanh",
        locked: bool = False,
        weight_dropout: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.bidirectional, self.layer_norm = bidirectional, layer_norm
        self.num_states = 2 if cell == "lstm" else 1
        self.hidden_size = hidden_size // (2 if bidirectional else 1)
        self.dropout = Dropout(dropout, locked)
        self.weight_dropout = weight_dropout

        def layers(count: int) -> nn.ModuleList:
            widths = [input_size] + [hidden_size] * (count - 1)
            return nn.ModuleList(
                RecurrentLayer(cell, width, self.hidden_size, nonlinearity) for width in widths[:count]
            )

        self.forward_layers = layers(num_layers)
        self.backward_layers = layers(num_layers if bidirectional else 0)
        # Made once: a step of generation is short enough for the making of lists to show.
        self.silence = Noise([None] * (num_layers - 1), [None] * num_layers * (2 if bidirectional else 1))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers if layer_norm else 0))

    def noise(self, inputs: Tensor) -> Noise:
        """Draw the masks for a batch of inputs `[B, T, I]`."""
        if not self.training:
            return self.silence
        size = self.hidden_size * (2 if self.bidirectional else 1)
        like = inputs.new_empty(inputs.shape[0], 1, size)
        layers = [*self.forward_layers, *self.backward_layers]
        return Noise(
            [self.dropout.mask(like) for _ in self.forward_layers[1:]],
            [drop(layer.weight_hh_l0, self.weight_dropout) if self.weight_dropout else None for layer in layers],
        )

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        states: list[State] | None = None,
        return_states: bool = False,
        noise: Noise | None = None,
    ) -> tuple[list[Tensor], list[State] | None]:
        """Run all steps.

        Args:
            inputs: `[B, T, I]`.
            mask: True at valid steps, `[B, T]`; None if all are.
            states: The left-to-right direction's states before the first step, one tuple for each layer.
            return_states: Whether the states after each row's last valid step are wanted (left-to-right stacks).
            noise: Masks drawn for earlier steps of the same batch; None draws new ones.

        Returns:
            The output of each layer, `[B, T, hidden_size]` and zero at padding, and the states or None. A row without
            a valid step keeps its states.
        """
        if states is None:
            zeros = inputs.new_zeros(inputs.shape[0], self.hidden_size)
            states = [(zeros,) * self.num_states] * len(self.forward_layers)
        noise = self.noise(inputs) if noise is None else noise
        # A single step needs no gathering: a row either takes it or keeps its state.
        alignment = align(mask) if mask is not None and mask.shape[1] > 1 else None
        values = inputs if alignment is None else permute_steps(inputs, alignment.order, alignment.restore)
        outputs, new_states = [], []
        hold = alignment if return_states else None
        for index, layer in enumerate(self.forward_layers):
            if index:
                values = self.dropout(values, noise.between[index - 1])
            new_state: Sequence[Tensor] = ()
            if self.bidirectional and self._takes_one_kernel(layer, values):
                values = self._run_both(index, values, alignment, noise)
            else:
                below = values
                values, *new_state = layer(values, hold, noise.weights[index], *states[index])
                if self.bidirectional:
                    back = self._run_back(index, below, alignment, noise)
                    values = torch.cat([values, back], dim=-1)
            if self.layer_norm:
                values = self.norms[index](values)
            output = values
            if alignment is not None:
                output = permute_steps(values, alignment.restore, alignment.order)
            elif mask is not None and return_states:
                new_state = [torch.where(mask, new, old) for new, old in zip(new_state, states[index], strict=True)]
            outputs.append(output if mask is None else output.masked_fill(~mask.unsqueeze(-1), 0.0))
            new_states.append(tuple(new_state))
        return outputs, new_states if return_states else None

    def _takes_one_kernel(self, layer: RecurrentLayer, values: Tensor) -> bool:
        """Whether one kernel is to run both directions of a layer: on a GPU, where nothing hangs on its own calls.

        An Elman cell has no gates to close, and the weights of a layer that is offloaded come with its call.
        """
        here = values.is_cuda and layer.weight_ih_l0.device == values.device
        return here and layer.mode in ("LSTM", "GRU") and not (layer.gradient_checkpointing and self.training)

    def _run_both(self, index: int, values: Tensor, alignment: Alignment | None, noise: Noise) -> Tensor:
        """Output `[B, T, 2 * H]` of both directions of a layer from one kernel; at padding it is anything."""
        count = 8 - values.shape[-1] % 8  # to a width that tensor cores take
        if alignment is not None:
            values = marked_at_padding(values, alignment, count)
        weights = []
        for place, layer in enumerate((self.forward_layers[index], self.backward_layers[index])):
            own = layer.weights_with(noise.weights[place * len(self.forward_layers) + index])
            if alignment is not None:
                own[0] = layer.closed_at_padding(own[0], count)
            weights += own
        zeros = values.new_zeros(2, values.shape[0], self.hidden_size)
        return run_kernel(layer.mode, values, [zeros] * self.num_states, weights, replaced=True, directions=2)[0]

    def _run_back(self, index: int, values: Tensor, alignment: Alignment | None, noise: Noise) -> Tensor:
        """Output `[B, T, H]` of the right-to-left direction of a layer."""
        weight = noise.weights[len(self.forward_layers) + index]
        back, *_ = self.backward_layers[index](turned_around(values, alignment), None, weight)
        return turned_around(back, alignment)
