"""Stacks of convolutions as published: parallel, residual, gated, and those of ConvS2S."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .convolution import ROOT_HALF, Convolution, StepAttention
from .dropout import Dropout
from .padding import align, take_steps

State = tuple[Tensor, ...]
"""State of one layer: the windows of its convolutions, each `[B, (k - 1) d, width]`."""


class ConvolutionLayer(GradientCheckpointingLayer):
    """One layer of a stack: some convolutions and what stands around them.

    Attributes:
        convolutions: Its convolutions, in the order of the windows in its state.
    """

    convolutions: nn.ModuleList

    def forward(
        self, values: Tensor, valid: Tensor | None, windows: State | None, *attended: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Run the layer over valid steps that come first.

        Args:
            values: `[B, T, width]`.
            valid: True at valid steps, `[B, T]`; None if all are.
            windows: The state before the first step, for a causal layer; None if no state is wanted.
            attended: For a layer with attention the target embeddings, source mask, keys and values that it takes.

        Returns:
            `[B, T, H]`, anything at padding; attention weights or None; the windows after each row's last valid step.
        """
        raise NotImplementedError


class ParallelLayer(ConvolutionLayer):
    """Filters of several widths side by side, each a ReLU of a convolution (Kim 2014, eq. 1-2).

    The sentence is padded by zeros, so that there are as many windows as tokens. The maximum over time (eq. 3) is the
    classifier's pooling.

    Args:
        input_size: Width of the embeddings.
        hidden_size: Number of filters, spread over the widths as evenly as possible.
        kernel_sizes: The widths.
        causal: Whether a window ends with its step.
    """

    def __init__(self, input_size: int, hidden_size: int, kernel_sizes: Sequence[int], causal: bool) -> None:
        super().__init__()
        each, more = divmod(hidden_size, len(kernel_sizes))
        self.convolutions = nn.ModuleList(
            Convolution(input_size, each + (index < more), width, causal=causal, weight_norm=False, gain=2.0)
            for index, width in enumerate(kernel_sizes)
        )

    def forward(
        self, values: Tensor, valid: Tensor | None, windows: State | None, *attended: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """See `ConvolutionLayer.forward`."""
        features, moved = [], []
        for index, convolution in enumerate(self.convolutions):
            output, window = convolution(values, valid, windows[index] if windows else None)
            features.append(torch.relu(output))
            moved.append(window)
        return torch.cat(features, dim=-1), None, *(moved if windows else ())


class ResidualLayer(ConvolutionLayer):
    """Two dilated convolutions, each with weight normalisation, ReLU and dropout, added to the input, and a ReLU.

    The residual block of Bai et al. (2018, section 3.3), who drop whole channels: that is a locked dropout. Around
    each step instead of up to it, its convolutions are the dilated ones by which Strubell et al. (2017) label
    sequences.

    Args:
        hidden_size: Width of inputs and outputs.
        kernel_size: Number of taps.
        dilation: Distance of two taps.
        causal: Whether a step sees only itself and earlier ones.
        dropout: Dropout after each convolution.
    """

    def __init__(self, hidden_size: int, kernel_size: int, dilation: int, causal: bool, dropout: Dropout) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            Convolution(hidden_size, hidden_size, kernel_size, dilation, causal, gain=2.0) for _ in range(2)
        )
        self.dropout = dropout

    def forward(
        self, values: Tensor, valid: Tensor | None, windows: State | None, *attended: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """See `ConvolutionLayer.forward`."""
        hidden, moved = values, []
        for index, convolution in enumerate(self.convolutions):
            hidden, window = convolution(hidden, valid, windows[index] if windows else None)
            hidden = self.dropout(torch.relu(hidden))
            moved.append(window)
        return torch.relu(values + hidden), None, *(moved if windows else ())


class GatedLayer(ConvolutionLayer):
    r"""A gated linear unit $(X * W + b) \otimes \sigma(X * V + c)$ added to its input (Dauphin et al. 2017, eq. 1).

    In ConvS2S the sum is multiplied by $\sqrt{0.5}$ (Gehring et al. 2017, section 3.4), and in its decoder the layer's
    output attends over the source.

    Args:
        hidden_size: Width of inputs and outputs.
        kernel_size: Number of taps.
        causal: Whether a step sees only itself and earlier ones.
        dropout: Dropout before the convolution.
        scaled: Whether the sum is scaled.
        gain: Variance of the initial weights times the number of inputs of a filter.
        attention: The layer's attention, if it has one.
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        causal: bool,
        dropout: Dropout,
        scaled: bool,
        gain: float,
        attention: StepAttention | None = None,
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [Convolution(hidden_size, 2 * hidden_size, kernel_size, causal=causal, gain=gain)]
        )
        self.dropout = dropout
        self.scale = ROOT_HALF if scaled else 1.0
        self.attention = attention

    def forward(
        self, values: Tensor, valid: Tensor | None, windows: State | None, *attended: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """See `ConvolutionLayer.forward`."""
        hidden, window = self.convolutions[0](self.dropout(values), valid, windows[0] if windows else None)
        values = (values + nn.functional.glu(hidden, dim=-1)) * self.scale
        weights = None
        if self.attention is not None:
            values, weights = self.attention(values, *attended)
        return values, weights, *([window] if windows else ())


class ConvolutionStack(nn.Module):
    """Layers of convolutions one above the other, which keep the length.

    Padding is exact: each row's valid steps are gathered to its left and zeros follow them before each convolution, so
    that a step sees its valid neighbours as in the row alone, never a gap. No shape depends on the data. Inputs of
    another width than the layers' are mapped to it, but by the filters themselves in the parallel architecture.

    Args:
        architecture: `parallel` (one layer, whatever `num_layers`), `residual`, `gated` or `convs2s`.
        input_size: Width of the inputs.
        hidden_size: Width of a layer's output.
        num_layers: Number of layers.
        causal: Whether a step sees only itself and earlier ones.
        kernel_size: Number of taps of a convolution.
        kernel_sizes: Widths of the parallel architecture.
        dilation_base: The distance of two taps in layer l (from 0) of the residual architecture is its l-th power.
        dropout: Dropout of the layers.
        locked: Whether all steps of a row share its mask.
        attends: Whether each layer attends over a source (`convs2s` and `gated`).
    """

    def __init__(
        self,
        architecture: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        causal: bool = False,
        kernel_size: int = 3,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        dilation_base: int = 1,
        dropout: float = 0.0,
        locked: bool = False,
        attends: bool = False,
    ) -> None:
        super().__init__()
        maps = architecture != "parallel" and input_size != hidden_size
        self.project = nn.Linear(input_size, hidden_size) if maps else nn.Identity()

        def layer(index: int) -> ConvolutionLayer:
            if architecture == "parallel":
                return ParallelLayer(input_size, hidden_size, kernel_sizes, causal)
            if architecture == "residual":
                return ResidualLayer(hidden_size, kernel_size, dilation_base**index, causal, Dropout(dropout, locked))
            attention = StepAttention(hidden_size, input_size) if attends else None
            # The embeddings come with elements dropped; once is enough unless a map lies between.
            drop = Dropout(dropout if index or maps else 0.0, locked)
            # He et al. (2015) as Dauphin et al. initialise; with scaled sums Gehring et al. (2017), section 3.5.
            scaled = architecture == "convs2s"
            gain = 4.0 * (1.0 - dropout) if scaled else 2.0
            return GatedLayer(hidden_size, kernel_size, causal, drop, scaled, gain, attention)

        self.layers = nn.ModuleList(layer(index) for index in range(1 if architecture == "parallel" else num_layers))

    def state_shapes(self, batch: int) -> list[list[Size]]:
        """Shapes of each layer's windows for a batch."""
        return [
            [Size((batch, convolution.reach, convolution.in_size)) for convolution in layer.convolutions]
            for layer in self.layers
        ]

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        states: list[State] | None = None,
        return_states: bool = False,
        source: tuple[Tensor | None, Tensor, Tensor] | None = None,
    ) -> tuple[list[Tensor], list[State] | None, list[Tensor]]:
        """Run all steps.

        Args:
            inputs: `[B, T, I]`.
            mask: True at valid steps, `[B, T]`; None if all are.
            states: States before the first step of a causal stack, one tuple for each layer; None stands for zeros.
            return_states: Whether the states after each row's last valid step are wanted (causal stacks).
            source: Mask `[B, S]` or None, keys and values `[B, S, I]` that a decoder attends over.

        Returns:
            The output of each layer, `[B, T, hidden_size]` and zero at padding, the states or None, and the attention
            weights `[B, T, S]` of each layer that attends. A row without a valid step keeps its states.
        """
        if return_states and states is None:
            states = [
                tuple(inputs.new_zeros(shape) for shape in shapes) for shapes in self.state_shapes(inputs.shape[0])
            ]
        # A single step needs no gathering: it stands where it stands.
        alignment = align(mask) if mask is not None and mask.shape[1] > 1 else None
        valid = mask if alignment is None else alignment.valid
        aligned = inputs if alignment is None else take_steps(inputs, alignment.order)
        attended = () if source is None else (aligned, *source)
        values = self.project(aligned)
        outputs, new_states, attentions = [], [], []
        for index, layer in enumerate(self.layers):
            windows = None if states is None else states[index]
            values, weights, *moved = layer(values, valid, windows, *attended)
            new_states.append(tuple(moved))
            output = values if alignment is None else take_steps(values, alignment.restore)
            outputs.append(output if mask is None else output.masked_fill(~mask.unsqueeze(-1), 0.0))
            if weights is not None:
                attentions.append(weights if alignment is None else take_steps(weights, alignment.restore))
        return outputs, new_states if return_states else None, attentions
