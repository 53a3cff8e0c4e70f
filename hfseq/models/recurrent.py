"""Stacks of recurrent layers that padding cannot change."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""State of one layer and direction: `(h,)`, or `(h, c)` for LSTM, each `[B, H]`."""

# A gate input that saturates the sigmoid to exactly 0 or 1 in every float type and is finite in half precision.
SATURATING = 1e4


class Alignment(NamedTuple):
    """Where each row's valid steps go so that a plain kernel meets them first and in a row.

    Attributes:
        order: Source position of the t-th step after aligning; padding follows the valid steps, `[B, T]`.
        restore: The inverse of `order`, `[B, T]`.
        reverse: An involution on aligned steps that turns the valid ones around, `[B, T]`.
        valid: True at a valid step after aligning, `[B, T]`.
        lengths: Number of valid steps, `[B, 1]`.
    """

    order: Tensor
    restore: Tensor
    reverse: Tensor
    valid: Tensor
    lengths: Tensor


def align(mask: Tensor) -> Alignment:
    """Compute the alignment for a mask that is True at valid steps, `[B, T]`, wherever the padding is."""
    order = torch.argsort((~mask).long(), dim=1, stable=True)
    step = torch.arange(mask.shape[1], device=mask.device).expand_as(order)
    restore = torch.empty_like(order).scatter_(1, order, step)
    lengths = mask.sum(dim=1, keepdim=True)
    valid = step < lengths
    reverse = torch.where(valid, lengths - 1 - step, step)
    return Alignment(order, restore, reverse, valid, lengths)


def take_steps(values: Tensor, index: Tensor) -> Tensor:
    """Pick steps of `values` `[B, T, D]` by `index` `[B, T]`, row by row."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class RecurrentStack(nn.Module):
    """Recurrent layers one above the other, each in one or in both directions.

    Padding is exact: each row's valid steps are gathered to its left, a plain kernel runs over the padded batch, and
    the right-to-left direction turns each row's valid part around before and after. No shape depends on the data.

    Args:
        cell: `rnn`, `lstm` or `gru`.
        input_size: Width of the inputs.
        hidden_size: Width of a layer's output, both directions together.
        num_layers: Number of layers.
        bidirectional: Whether each layer has a right-to-left direction too.
        dropout: Dropout between layers.
        nonlinearity: `tanh` or `relu`, of the `rnn` cell alone.
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
    ) -> None:
        super().__init__()
        self.num_states = 2 if cell == "lstm" else 1
        directions = 2 if bidirectional else 1
        self.hidden_size = hidden_size // directions
        self.dropout = nn.Dropout(dropout)

        def layer(index: int) -> nn.RNNBase:
            sizes = (hidden_size if index else input_size, self.hidden_size)
            if cell == "rnn":
                return nn.RNN(*sizes, batch_first=True, nonlinearity=nonlinearity)
            return {"lstm": nn.LSTM, "gru": nn.GRU}[cell](*sizes, batch_first=True)

        self.forward_layers = nn.ModuleList(layer(index) for index in range(num_layers))
        self.backward_layers = nn.ModuleList(layer(index) for index in range(num_layers if bidirectional else 0))

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        states: list[State] | None = None,
        return_states: bool = False,
    ) -> tuple[list[Tensor], list[State] | None]:
        """Run all steps.

        Args:
            inputs: `[B, T, I]`.
            mask: True at valid steps, `[B, T]`; None if all are.
            states: The left-to-right direction's states before the first step, one tuple for each layer.
            return_states: Whether the states after each row's last valid step are wanted (left-to-right stacks).

        Returns:
            The output of each layer, `[B, T, hidden_size]` and zero at padding, and the states or None. A row without
            a valid step keeps its states.
        """
        if states is None:
            zeros = inputs.new_zeros(inputs.shape[0], self.hidden_size)
            states = [(zeros,) * self.num_states] * len(self.forward_layers)
        # A single step needs no gathering: a row either takes it or keeps its state.
        alignment = align(mask) if mask is not None and mask.shape[1] > 1 else None
        values = inputs if alignment is None else take_steps(inputs, alignment.order)
        outputs, new_states = [], []
        for index, layer in enumerate(self.forward_layers):
            if index:
                values = self.dropout(values)
            values, new_state = self._run_layer(layer, index, values, states[index], alignment, return_states)
            if alignment is not None:
                outputs.append(take_steps(values, alignment.restore).masked_fill(~mask.unsqueeze(-1), 0.0))
            elif mask is not None:
                new_state = tuple(
                    torch.where(mask, new, old) for new, old in zip(new_state, states[index], strict=True)
                )
                outputs.append(values.masked_fill(~mask.unsqueeze(-1), 0.0))
            else:
                outputs.append(values)
            new_states.append(new_state)
        return outputs, new_states if return_states else None

    def _run_layer(
        self,
        layer: nn.RNNBase,
        index: int,
        values: Tensor,
        state: State,
        alignment: Alignment | None,
        return_states: bool,
    ) -> tuple[Tensor, State]:
        if alignment is not None and return_states and isinstance(layer, nn.LSTM):
            output, new_state = run_lstm_holding(layer, values, state, alignment)
        else:
            output, new_state = run_cell(layer, values, state)
            if alignment is not None and return_states:
                new_state = (last_output(output, state[0], alignment.lengths),)
        if self.backward_layers:
            back = values.flip(1) if alignment is None else take_steps(values, alignment.reverse)
            back, _ = run_cell(self.backward_layers[index], back, None)
            back = back.flip(1) if alignment is None else take_steps(back, alignment.reverse)
            output = torch.cat([output, back], dim=-1)
        return output, new_state


def run_cell(layer: nn.RNNBase, values: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Run a one-layer, one-direction kernel over `values` `[B, T, I]` from `state` (None: zeros)."""
    if state is None:
        output, last = layer(values)
    else:
        initial = tuple(part.unsqueeze(0).contiguous() for part in state)
        output, last = layer(values, initial if isinstance(layer, nn.LSTM) else initial[0])
    last = last if isinstance(layer, nn.LSTM) else (last,)
    return output, tuple(part.squeeze(0) for part in last)


def last_output(output: Tensor, initial: Tensor, lengths: Tensor) -> Tensor:
    """Output `[B, H]` at each row's last valid step of aligned `output` `[B, T, H]`, `initial` where there is none."""
    last = take_steps(output, (lengths - 1).clamp(min=0)).squeeze(1)
    return torch.where(lengths > 0, last, initial)


def run_lstm_holding(layer: nn.LSTM, values: Tensor, state: State, alignment: Alignment) -> tuple[Tensor, State]:
    """Run an LSTM so that its cell state is that of each row's last valid step.

    The kernel returns the cell state of the last column only. One more input, 1 at padding and 0 elsewhere, closes the
    input gate and opens the forget gate there, so that the cell state is carried to that column unchanged.
    """
    hidden = layer.hidden_size
    weight_ih, *others = layer.parameters()
    column = weight_ih.new_zeros(4 * hidden, 1)  # gates in the order input, forget, cell, output
    column[:hidden] = -SATURATING
    column[hidden : 2 * hidden] = SATURATING
    padding = (~alignment.valid).unsqueeze(-1).to(values.dtype)
    initial = [part.unsqueeze(0).contiguous() for part in state]
    output, _, cell = torch.lstm(
        torch.cat([values, padding], dim=-1),
        initial,
        [torch.cat([weight_ih, column], dim=1), *others],
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=layer.training,
        bidirectional=False,
        batch_first=True,
    )
    return output, (last_output(output, state[0], alignment.lengths), cell.squeeze(0))
