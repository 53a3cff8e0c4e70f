"""Backbone of the families of linear recurrences, and their residual blocks; the family modules bind the cell."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_linear import LinearRecurrentConfig
from .linear_cells import LinearLayer
from .modeling_recurrent import RecurrentModel
from .recurrent import Directions, DropoutMasks, RecurrentStack
from .stack import State


class FeedForward(GradientCheckpointingLayer):
    """MLP of a residual block, on normalised inputs: two linear layers with a GELU between them.

    Args:
        hidden_size: Width of inputs and outputs.
        intermediate_size: Width between the layers.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        """Map `[B, T, H]` to what is added to it, `[B, T, H]`."""
        return self.down(nn.functional.gelu(self.up(self.norm(values))))


class ResidualStack(RecurrentStack):
    r"""Residual blocks of recurrent layers (Feng et al. 2024).

    A block is $y = x + W\,\mathrm{RNN}(\mathrm{norm}(x))$ and then $y + \mathrm{MLP}(y)$, where the cells convolve
    their inputs, each direction in its order, and are `expand` times as wide as x. Inputs of another width than x are
    projected to it, and the output of the last block is normalised.

    Args:
        layer: Makes a layer and direction from its input size and its hidden size.
        input_size: Width of the inputs.
        hidden_size: Width H of x.
        num_layers: Number of blocks.
        bidirectional: Whether each block has a right-to-left direction too.
        dropout: Dropout of what a block adds to x.
        variational: Whether all steps of a row share one mask of that dropout.
        expand: Width of a layer's output, both directions together, in multiples of H.
        intermediate_size: Width of the MLPs.
    """

    def __init__(
        self,
        layer: Callable[[int, int], LinearLayer],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        variational: bool,
        expand: int,
        intermediate_size: int,
    ) -> None:
        width = expand * hidden_size
        super().__init__(
            lambda _, size: layer(hidden_size, size),
            input_size,
            width,
            num_layers,
            bidirectional,
            dropout,
            variational,
        )
        self.project = nn.Linear(input_size, hidden_size) if input_size != hidden_size else nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers))
        self.merge = nn.ModuleList(nn.Linear(width, hidden_size) for _ in range(num_layers))
        self.feed_forward = nn.ModuleList(FeedForward(hidden_size, intermediate_size) for _ in range(num_layers))
        self.last_norm = nn.LayerNorm(hidden_size)

    def _run_layer(
        self, index: int, values: Tensor, masks: DropoutMasks, directions: Directions
    ) -> tuple[Tensor, State]:
        """Output `[B, T, H]` of a block, and its new state."""
        if not index:
            values = self.project(values)
        mixed, new_state = directions(self.norms[index](values))
        values = values + self.dropout(self.merge[index](mixed))
        values = values + self.dropout(self.feed_forward[index](values))
        return self.last_norm(values) if index == self.num_layers - 1 else values, new_state


class LinearRecurrentModel(RecurrentModel):
    """Embeddings and a stack of linear recurrences, or of residual blocks of them; see `RecurrentModel`.

    Raises:
        ValueError: If the config has `input_feeding` or `weight_dropout`, and as `RecurrentModel`.
    """

    config_class = LinearRecurrentConfig

    def conv_kernel(self) -> int | None:
        """Number of taps of the convolution in a cell; None for none."""
        return self.config.conv_kernel if self.config.residual_blocks else None

    def make_layer(self, input_size: int, hidden_size: int) -> LinearLayer:
        """Create one layer and direction of the stack."""
        raise NotImplementedError

    def make_layers(self, config: LinearRecurrentConfig, width: int) -> RecurrentStack:  # type: ignore[override]
        """Create the layers of the stack."""
        config.check_recurrence()  # fields may have been set later
        if not config.residual_blocks:
            return super().make_layers(config, width)
        return ResidualStack(
            self.make_layer,
            width,
            config.hidden_size,
            config.num_hidden_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
            variational=config.variational_dropout,
            expand=config.expand,
            intermediate_size=config.intermediate_size or 4 * config.hidden_size,
        )
