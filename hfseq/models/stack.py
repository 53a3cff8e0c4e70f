"""Interface between a backbone and the layers that it runs."""

from typing import Protocol, runtime_checkable

from torch import Size, Tensor, nn

State = tuple[Tensor, ...]
"""State of one layer, tensors with the batch first: `(h,)`, `(h, c)` of an LSTM, the windows of convolutions."""


class Stack(nn.Module):
    """Layers on top of each other that padding cannot change.

    `forward(inputs, mask, states, return_states, …)` takes inputs `[B, T, I]`, a mask `[B, T]` that is True at valid
    steps (None: all), and the states before the first step (None: zeros). It returns the output of each layer,
    `[B, T, H]` and zero at padding; the states after each row's last valid step, or None without `return_states`; and
    whatever else the stack computes. A row without a valid step keeps its states.

    Attributes:
        num_layers: Number of layers, which is that of the states.
    """

    num_layers: int

    def state_shapes(self, batch: int) -> list[list[Size]]:
        """Shapes of each layer's state for a batch, the only thing that a cache or a bridge knows about a state."""
        raise NotImplementedError

    def zero_states(self, inputs: Tensor) -> list[State]:
        """Zero states, of the batch size, type and device of inputs `[B, ...]`."""
        return [tuple(inputs.new_zeros(shape) for shape in shapes) for shapes in self.state_shapes(inputs.shape[0])]


@runtime_checkable
class SelfInitializing(Protocol):
    """A layer that owns its initialisation; transformers asks only those that have parameters of their own.

    Not `reset_parameters`: torch's layers have one too, and `nn.RNNBase` calls it on construction, where it would draw
    other random numbers than torch's own, so that a seed would no longer give the weights that it gave.
    """

    def init_parameters(self) -> None:
        """Initialise with the functions of `transformers.initialization`, which leave loaded parameters alone."""
