"""Recurrent layers and stacks of them that padding cannot change."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from .dropout import Dropout, drop
from .padding import ValidFirst, moves_steps, permute_steps, reverse_valid, take_steps, valid_first
from .stack import Stack, State

logger = logging.get_logger(__name__)

# A gate input that saturates the sigmoid to exactly 0 or 1 in every float type and is finite in half precision.
SATURATING = 1e4


class RecurrentLayer(GradientCheckpointingLayer):
    """One layer and direction of a `RecurrentStack`: the interface that a cell implements.

    Attributes:
        needs_gather: Whether the layer needs each row's valid steps before its padding. False for a cell that keeps
            its state at padding by itself, such as a linear recurrence with decay 1 and input 0 there: its inputs stay
            in place, and it is given the mask.
        recurrent_weight: The hidden-to-hidden matrix that DropConnect thins, or None where the cell has none.
    """

    needs_gather: bool = True
    recurrent_weight: Tensor | None = None

    def state_shapes(self, batch: int) -> list[Size]:
        """Shapes of the tensors of a state."""
        raise NotImplementedError

    def forward(
        self, values: Tensor, valid: Tensor | None = None, weight: Tensor | None = None, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Run all steps.

        Args:
            values: Inputs `[B, T, I]`.
            valid: True at valid steps, `[B, T]`. None where all are, or where the steps after the valid ones may
                change the state, because it is not needed.
            weight: Replacement for `recurrent_weight`, or None.
            state: State before the first step; none stands for zeros.

        Returns:
            Output `[B, T, H]`, arbitrary at padding, and the state after each row's last valid step. Arguments and
            results are flat, since gradient checkpointing sees only tensors that are arguments themselves.
        """
        raise NotImplementedError


class KernelLayer(RecurrentLayer, nn.RNNBase):
    """RNN, LSTM or GRU by torch's kernel, with batch-first states, exact at padding, and replaceable weights.

    Args:
        mode: `RNN_TANH`, `RNN_RELU`, `LSTM` or `GRU`.
        input_size: Width of the inputs.
        hidden_size: Width of the output.
    """

    def __init__(self, mode: str, input_size: int, hidden_size: int) -> None:
        super().__init__(mode, input_size, hidden_size, batch_first=True)

    @property
    def recurrent_weight(self) -> Tensor:  # type: ignore[override]
        """The hidden-to-hidden matrix `[gates * H, H]`."""
        return self.weight_hh_l0  # type: ignore[return-value]

    def state_shapes(self, batch: int) -> list[Size]:
        """Shape of the hidden state, and of an LSTM's cell state."""
        return [Size((batch, self.hidden_size))] * (2 if self.mode == "LSTM" else 1)

    def init_parameters(self) -> None:
        """Orthogonal recurrent and Xavier input matrices gate by gate, forget-gate bias 1 (Jozefowicz et al. 2015)."""
        gates = self.weight_hh_l0.shape[0] // self.hidden_size
        for name, parameter in self.named_parameters(recurse=False):
            # The chunks are views, which do not carry the mark of a loaded parameter.
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if name.startswith("bias"):
                init.zeros_(parameter)
                if self.mode == "LSTM" and name.startswith("bias_ih"):
                    init.ones_(parameter.chunk(gates)[1])
                continue
            for gate in parameter.chunk(gates):
                (init.orthogonal_ if name.startswith("weight_hh") else init.xavier_uniform_)(gate)

    def forward(
        self, values: Tensor, valid: Tensor | None = None, weight: Tensor | None = None, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the kernel; see `RecurrentLayer.forward`. A row without a valid step keeps its state."""
        if not state:
            state = tuple(values.new_zeros(shape) for shape in self.state_shapes(values.shape[0]))
        weights = self.weights_with(weight)
        # The kernel for whole sequences first reorders all weights, which takes longer than a step.
        if values.shape[1] == 1 and self.mode == "LSTM" and not torch.is_grad_enabled() and not torch.jit.is_tracing():
            hidden, cell = torch.lstm_cell(values[:, 0], state, *weights)
            return hidden.unsqueeze(1), hidden, cell
        replaced = weight is not None
        if valid is not None and self.mode == "LSTM":
            # The kernel returns the cell state of the last column only: the gates carry it there.
            values = padding_indicator(values, valid, 1)
            weights[0] = self.padding_gate_weights(weights[0], 1)
            replaced = True
        initial = [part.unsqueeze(0).contiguous() for part in state]
        output, *last = run_kernel(self.mode, values, initial, weights, replaced)
        new_state = tuple(part.squeeze(0) for part in last)
        if valid is not None:
            new_state = (last_output(output, state[0], valid), *new_state[1:])
        return output, *new_state

    def weights_with(self, weight: Tensor | None) -> list[Tensor]:
        """The kernel's weights, with `weight`, if given, in place of `weight_hh_l0`.

        Looked up by name: a stored list would miss weights that are replaced later, as offloading does.
        """
        recurrent = self.weight_hh_l0 if weight is None else weight
        return [self.weight_ih_l0, recurrent, self.bias_ih_l0, self.bias_hh_l0]  # type: ignore[list-item]

    def padding_gate_weights(self, weight: Tensor, count: int) -> Tensor:
        """Input weights `[gates * H, I + count]` that keep the state at padding marked by `padding_indicator`.

        The first of the new columns closes the LSTM's input gate and opens its forget gate, which keeps the cell
        state, or opens the GRU's update gate, which keeps the output.
        """
        size = self.hidden_size
        columns = weight.new_zeros(len(weight), count)
        if self.mode == "LSTM":  # gates in the order input, forget, cell, output
            columns[:size, 0] = -SATURATING
        columns[size : 2 * size, 0] = SATURATING  # GRU: reset, update, new
        return torch.cat([weight, columns], dim=1)


def run_kernel(
    mode: str, values: Tensor, initial: list[Tensor], weights: list[Tensor], replaced: bool, directions: int = 1
) -> tuple[Tensor, ...]:
    """Run torch's kernel of one layer.

    Args:
        mode: Mode of `nn.RNNBase`.
        values: Inputs `[B, T, I]`.
        initial: State before the first step, tensors `[directions, B, H]`.
        weights: Four for each direction, in the order of `nn.RNNBase`.
        replaced: Whether some of them are not the parameters themselves.
        directions: 2 to also run from right to left.

    Returns:
        Output `[B, T, directions * H]`, and the state after the last step like `initial`.
    """
    if replaced and values.is_cuda and not torch.is_autocast_enabled("cuda"):
        weights = flatten_weights(weights)
    # has_biases, num_layers, dropout, train, bidirectional, batch_first. Dropout is applied elsewhere, but a GPU's
    # kernel saves what the backward pass needs only if `train` is set.
    options = (True, 1, 0.0, torch.is_grad_enabled(), directions == 2, True)
    if mode != "LSTM":
        return getattr(torch, mode.lower())(values, initial[0], weights, *options)
    if values.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if not autocasts_lstm(dtype):
            wide = torch.promote_types(values.dtype, torch.float32)
            values, *initial = (one.to(wide) for one in (values, *initial))
            with torch.autocast("cpu", enabled=False):
                outputs = torch.lstm(values, initial, [one.to(wide) for one in weights], *options)
            return tuple(output.to(dtype) for output in outputs)
    return torch.lstm(values, initial, weights, *options)


@torch.compiler.assume_constant_result
def autocasts_lstm(dtype: torch.dtype) -> bool:
    """True if this processor has an LSTM kernel for autocast to a type; bfloat16 takes AVX-512 on x86."""
    return probe_lstm(dtype)


@cache
def probe_lstm(dtype: torch.dtype) -> bool:
    """Try the LSTM kernel, since oneDNN behind it reports a missing one only by failing; other cells always have one.

    A missing kernel is logged as a warning, once.
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


def padding_indicator(values: Tensor, valid: Tensor, count: int) -> Tensor:
    """Inputs `[B, T, I + count]`: the first of the new features is 1 at padding, the others are 0."""
    padding = (~valid).unsqueeze(-1).to(values.dtype)
    return torch.cat([values, nn.functional.pad(padding, (0, count - 1))], dim=-1)


def flatten_weights(weights: list[Tensor]) -> list[Tensor]:
    """The same weights as views of one contiguous tensor, as cuDNN wants them; otherwise it warns, and copies them.

    The matrices of all directions come first there, followed by the biases.
    """
    order = sorted(range(len(weights)), key=lambda place: weights[place].dim(), reverse=True)
    flat = torch.cat([weights[place].flatten() for place in order])
    parts = dict(zip(order, flat.split([weights[place].numel() for place in order]), strict=True))
    return [parts[place].view_as(weight) for place, weight in enumerate(weights)]


def last_output(output: Tensor, initial: Tensor, valid: Tensor) -> Tensor:
    """Output `[B, H]` at the last valid step of `[B, T, H]` in valid-first order, `initial` where there is none."""
    lengths = valid.sum(dim=1, keepdim=True)
    last = take_steps(output, (lengths - 1).clamp(min=0)).squeeze(1)
    return torch.where(lengths > 0, last, initial)


class DropoutMasks(NamedTuple):
    """Dropout masks shared across time steps, for callers that run a stack step by step.

    Attributes:
        between: Masks `[B, 1, H]` of the input of each layer but the first, or None where each step has its own.
        weights: Hidden-to-hidden matrices after DropConnect, left-to-right layers first; None: unchanged.
    """

    between: list[Tensor | None]
    weights: list[Tensor | None]


Directions = Callable[[Tensor], tuple[Tensor, State]]
"""Runs the cells of a layer, in one or both directions."""


class RecurrentStack(Stack):
    """Recurrent layers, each in one or in both directions.

    Padding is exact: each row's valid steps are gathered to its left, a plain kernel runs over the padded batch, and
    the right-to-left direction reverses each row's valid steps before and after it. On a GPU, where launching a kernel
    takes longer than running it, one kernel of an LSTM or GRU runs both directions: the right-to-left one starts in
    the padding, where closed gates keep its state zero. Layers that are exact at padding by themselves skip the
    gathering. No shape depends on the data.

    Args:
        layer: Makes a layer and direction from its input size and its hidden size.
        input_size: Width of the inputs.
        hidden_size: Width of a layer's output, both directions together.
        num_layers: Number of layers.
        bidirectional: Whether each layer has a right-to-left direction too.
        dropout: Dropout between layers.
        variational: Whether all steps of a row share one mask of that dropout (Gal & Ghahramani 2016).
        weight_dropout: DropConnect on the hidden-to-hidden matrices (Merity et al. 2018, section 2).
        layer_norm: Whether each layer's output is normalised over its features.
        layer_sizes: Width of each layer's output, both directions together; None means `hidden_size` for all.

    Raises:
        ValueError: If `weight_dropout` is set for a cell without a hidden-to-hidden matrix.
    """

    def __init__(
        self,
        layer: Callable[[int, int], RecurrentLayer],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
        weight_dropout: float = 0.0,
        layer_norm: bool = False,
        layer_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.num_layers, self.bidirectional, self.layer_norm = num_layers, bidirectional, layer_norm
        self.layer_sizes = [hidden_size] * num_layers if layer_sizes is None else list(layer_sizes)
        self.dropout = Dropout(dropout, variational)
        self.weight_dropout = weight_dropout
        directions = 2 if bidirectional else 1
        widths = [(width, size // directions) for width, size in pairwise((input_size, *self.layer_sizes))]
        self.forward_layers = nn.ModuleList(layer(*pair) for pair in widths)
        self.backward_layers = nn.ModuleList(layer(*pair) for pair in widths if bidirectional)
        if weight_dropout and self.forward_layers[0].recurrent_weight is None:
            raise ValueError(f"weight_dropout={weight_dropout}: this cell has no hidden-to-hidden matrix")
        self.needs_gather = self.forward_layers[0].needs_gather
        # Asked once: adapters replace layers by wrappers, which only forward calls.
        self._shapes = [[shape[1:] for shape in one.state_shapes(1)] for one in self.forward_layers]
        # Made once: building lists would be noticeable in a step of generation.
        self.no_dropout = DropoutMasks([None] * (num_layers - 1), [None] * num_layers * directions)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in self.layer_sizes if layer_norm)

    def state_shapes(self, batch: int) -> list[list[Size]]:
        """Shapes of the state of each left-to-right layer."""
        return [[Size((batch, *shape)) for shape in shapes] for shapes in self._shapes]

    def draw_masks(self, inputs: Tensor) -> DropoutMasks:
        """Draw the dropout masks for a batch of inputs `[B, T, I]`."""
        if not self.training:
            return self.no_dropout
        outputs = [inputs.new_empty(inputs.shape[0], 1, size) for size in self.layer_sizes[:-1]]
        layers = [*self.forward_layers, *self.backward_layers]
        return DropoutMasks(
            [self.dropout.mask(like) for like in outputs],
            [drop(layer.recurrent_weight, self.weight_dropout) if self.weight_dropout else None for layer in layers],
        )

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        states: list[State] | None = None,
        return_states: bool = False,
        dropout_masks: DropoutMasks | None = None,
    ) -> tuple[list[Tensor], list[State] | None]:
        """Run all steps; see `Stack`.

        Args:
            inputs: `[B, T, I]`.
            mask: True at valid steps, `[B, T]`; None if all are.
            states: States of the left-to-right direction before the first step; None stands for zeros.
            return_states: Whether to return the states after each row's last valid step, both directions side by
                side.
            dropout_masks: Masks drawn for earlier steps of the same batch; None draws new ones.

        Returns:
            The output of each layer, `[B, T, H]` and zero at padding, and the states or None.
        """
        if states is None:
            states = self.zero_states(inputs)
        masks = self.draw_masks(inputs) if dropout_masks is None else dropout_masks
        # A single step needs no permutation: a row either takes it or keeps its state.
        permutation = valid_first(mask) if self.needs_gather and mask is not None and mask.shape[1] > 1 else None
        moved = permutation if permutation is not None and moves_steps(mask, permutation) else None
        values = inputs if moved is None else permute_steps(inputs, moved.order, moved.restore)
        if self.needs_gather:
            valid = permutation.valid if permutation is not None and return_states else None
        else:
            valid = mask
        outputs, new_states = [], []
        for index in range(self.num_layers):
            directions = partial(self._run_directions, index, states[index], valid, permutation, masks)
            values, new_state = self._run_layer(index, values, masks, directions)
            output = values
            if moved is not None:
                output = permute_steps(values, moved.restore, moved.order)
            elif permutation is None and self.needs_gather and mask is not None and return_states:
                new_state = tuple(map(partial(_keep, mask), new_state, states[index]))
            outputs.append(output if mask is None else output.masked_fill(~mask.unsqueeze(-1), 0.0))
            new_states.append(new_state)
        return outputs, new_states if return_states else None

    def _run_layer(
        self, index: int, values: Tensor, masks: DropoutMasks, directions: Directions
    ) -> tuple[Tensor, State]:
        """Output `[B, T, H]` of a layer, with what stands around its cells, and its new state."""
        if index:
            values = self.dropout(values, masks.between[index - 1])
        values, new_state = directions(values)
        if self.layer_norm:
            values = self.norms[index](values)
        return values, new_state

    def _run_directions(
        self,
        index: int,
        state: State,
        valid: Tensor | None,
        permutation: ValidFirst | None,
        masks: DropoutMasks,
        values: Tensor,
    ) -> tuple[Tensor, State]:
        """Output and final state of a layer's cells, their directions side by side."""
        layer = self.forward_layers[index]
        if self.bidirectional and self._fuses_directions(layer, values):
            return self._run_both(index, values, valid, permutation, masks)
        output, *new_state = layer(values, valid, masks.weights[index], *state)
        if self.bidirectional:
            back, *back_state = self._run_back(index, values, valid, permutation, masks)
            output = torch.cat([output, back], dim=-1)
            new_state = [torch.cat(pair, dim=-1) for pair in zip(new_state, back_state, strict=True)]
        return output, tuple(new_state)

    def _fuses_directions(self, layer: RecurrentLayer, values: Tensor) -> bool:
        """Return True if one kernel runs both directions of a layer: on a GPU, unless the layer must be called itself.

        An Elman cell has no gates to close, and the weights of an offloaded layer arrive with its call.
        """
        if not values.is_cuda or not isinstance(layer, KernelLayer) or layer.mode not in ("LSTM", "GRU"):
            return False
        return layer.weight_ih_l0.device == values.device and not (layer.gradient_checkpointing and self.training)

    def _run_both(
        self, index: int, values: Tensor, valid: Tensor | None, permutation: ValidFirst | None, masks: DropoutMasks
    ) -> tuple[Tensor, State]:
        """Output `[B, T, 2 * H]` of both directions of a layer from one kernel, arbitrary at padding; their state."""
        count = 8 - values.shape[-1] % 8  # to a width that tensor cores take
        if permutation is not None:
            values = padding_indicator(values, permutation.valid, count)
        weights = []
        for place, layer in enumerate((self.forward_layers[index], self.backward_layers[index])):
            own = layer.weights_with(masks.weights[place * self.num_layers + index])
            if permutation is not None:
                own[0] = layer.padding_gate_weights(own[0], count)
            weights += own
        zeros = [values.new_zeros(2, *shape) for shape in layer.state_shapes(values.shape[0])]
        output, *last = run_kernel(layer.mode, values, zeros, weights, replaced=True, directions=2)
        if permutation is not None and valid is None:
            return output, ()  # nobody wants it
        state = [part.transpose(0, 1).flatten(1) for part in last]  # [B, 2 * H]
        if valid is not None:
            # At padding an LSTM keeps its cell state, not its output.
            size = layer.hidden_size
            hidden = last_output(output[..., :size], zeros[0][0], valid)
            state[0] = torch.cat([hidden, state[0][:, size:]], dim=-1)
        return output, tuple(state)

    def _run_back(
        self, index: int, values: Tensor, valid: Tensor | None, permutation: ValidFirst | None, masks: DropoutMasks
    ) -> tuple[Tensor, ...]:
        """Output `[B, T, H]` of the right-to-left direction of a layer, and its state after a row's first step."""
        weight = masks.weights[self.num_layers + index]
        flipped = valid if self.needs_gather or valid is None else valid.flip(1)
        back, *state = self.backward_layers[index](reverse_valid(values, permutation), flipped, weight)
        return reverse_valid(back, permutation), *state


def _keep(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """New states where `mask` `[B, 1]` is True, else the old ones; a right-to-left direction begins with zeros."""
    old = nn.functional.pad(old, (0, new.shape[-1] - old.shape[-1]))
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)
