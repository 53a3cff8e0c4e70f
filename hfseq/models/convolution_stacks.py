"""Stacks of convolutions of four published architectures: parallel, residual, gated and ConvS2S."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .convolution import ROOT_HALF, Convolution, StepAttention
from .dropout import Dropout
from .padding import take_steps, valid_first
from .stack import Stack, State

Convolve = Callable[[Any, Tensor], Tensor]
"""Runs a convolution of a layer, with the window of its state."""


class ConvolutionLayer(GradientCheckpointingLayer):
    """One layer of a stack.

    Attributes:
        convolutions: Convolutions of the layer, in the order of the windows in its state.
    """

    convolutions: nn.ModuleList

    def forward(
        self,
        values: Tensor,
        valid: Tensor | None,
        windows: State | None,
        shortcut: Tensor | None = None,
        *attended: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Run the layer; each row's valid steps come first.

        Args:
            values: `[B, T, width]`.
            valid: True at valid steps, `[B, T]`; None if all are.
            windows: State before the first step, for a causal layer: the windows of its convolutions, each
                `[B, (k - 1) d, width]`. None for zeros, if the new state is not needed.
            shortcut: Output of an earlier layer that a gated one adds, `[B, T, width]`; None for none.
            attended: Target embeddings, source mask, keys and values, for a layer with attention.

        Returns:
            `[B, T, H]`, arbitrary at padding; attention weights or None; the windows after each row's last valid step.
        """
        before = iter(windows or [])
        after = []

        def convolve(convolution: Convolution, values: Tensor) -> Tensor:
            output, window = convolution(values, valid, next(before, None))
            if window is not None:
                after.append(window)
            return output

        return *self.compute(values, convolve, shortcut, *attended), *after

    def compute(
        self, values: Tensor, convolve: Convolve, shortcut: Tensor | None, *attended: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Output and attention weights; see `forward`.

        Args:
            values: `[B, T, width]`.
            convolve: Runs a convolution of the layer; called once for each, in their order.
            shortcut: As in `forward`.
            attended: As in `forward`.
        """
        raise NotImplementedError


class ParallelLayer(ConvolutionLayer):
    """Convolutions of several widths in parallel, each followed by a ReLU (Kim 2014, eq. 1-2).

    Sequences are padded with zeros, so that there are as many windows as tokens. The maximum over time (eq. 3) is the
    classifier's pooling.

    Args:
        input_size: Width of the embeddings.
        hidden_size: Number of filters, split as evenly as possible between the widths.
        kernel_sizes: The widths.
        causal: Whether a window ends at its step.
    """

    def __init__(self, input_size: int, hidden_size: int, kernel_sizes: Sequence[int], causal: bool) -> None:
        super().__init__()
        each, more = divmod(hidden_size, len(kernel_sizes))
        self.convolutions = nn.ModuleList(
            Convolution(input_size, each + (index < more), width, causal=causal, weight_norm=False, gain=2.0)
            for index, width in enumerate(kernel_sizes)
        )

    def compute(
        self, values: Tensor, convolve: Convolve, shortcut: Tensor | None, *attended: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer; see `ConvolutionLayer.compute`."""
        features = [torch.relu(convolve(convolution, values)) for convolution in self.convolutions]
        return torch.cat(features, dim=-1), None


class ResidualLayer(ConvolutionLayer):
    """Two dilated convolutions, each with weight normalisation, ReLU and dropout, added to the input, and a ReLU.

    The residual block of Bai et al. (2018, section 3.3), who drop whole channels: that is variational dropout. With
    centred convolutions it is the dilated one of the taggers of Strubell et al. (2017).

    Args:
        hidden_size: Width of inputs and outputs.
        kernel_size: Number of taps.
        dilation: Distance of two taps.
        causal: Whether a step depends only on itself and earlier ones.
        dropout: Dropout after each convolution.
    """

    def __init__(self, hidden_size: int, kernel_size: int, dilation: int, causal: bool, dropout: Dropout) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            Convolution(hidden_size, hidden_size, kernel_size, dilation, causal, gain=2.0) for _ in range(2)
        )
        self.dropout = dropout

    def compute(
        self, values: Tensor, convolve: Convolve, shortcut: Tensor | None, *attended: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer; see `ConvolutionLayer.compute`."""
        hidden = values
        for convolution in self.convolutions:
            hidden = self.dropout(torch.relu(convolve(convolution, hidden)))
        return torch.relu(values + hidden), None


class GatedLayer(ConvolutionLayer):
    r"""A gated linear unit $(X * W + b) \otimes \sigma(X * V + c)$ added to its input (Dauphin et al. 2017, eq. 1).

    In ConvS2S the sum is multiplied by $\sqrt{0.5}$ (Gehring et al. 2017, section 3.4), and in its decoder the layer's
    output attends over the source: after the sum, as section 3.3 has it, or before it, as fairseq does.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the outputs.
        kernel_size: Number of taps.
        causal: Whether a step depends only on itself and earlier ones.
        dropout: Dropout before the convolution.
        scaled: Whether the sum is scaled.
        gain: Variance of the initial weights times the fan-in.
        shortcut_size: Width of what is added, the inputs or the output of an earlier layer, which is projected if it
            is not that of the outputs; None for no sum.
        attention: Attention of the layer, or None.
        attends_first: Whether the attention comes before the sum.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int,
        causal: bool,
        dropout: Dropout,
        scaled: bool,
        gain: float,
        shortcut_size: int | None,
        attention: StepAttention | None = None,
        attends_first: bool = False,
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [Convolution(input_size, 2 * hidden_size, kernel_size, causal=causal, gain=gain)]
        )
        self.dropout = dropout
        self.scale = ROOT_HALF if scaled else 1.0
        self.shortcut = (
            nn.Identity() if shortcut_size in (None, hidden_size) else nn.Linear(shortcut_size, hidden_size)
        )
        self.attention, self.attends_first = attention, attends_first

    def compute(
        self, values: Tensor, convolve: Convolve, shortcut: Tensor | None, *attended: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer; see `ConvolutionLayer.compute`."""
        weights = None
        hidden = nn.functional.glu(convolve(self.convolutions[0], self.dropout(values)), dim=-1)
        if self.attention is not None and self.attends_first:
            hidden, weights = self.attention(hidden, *attended)
        if shortcut is not None:
            hidden = (self.shortcut(shortcut) + hidden) * self.scale
        if self.attention is not None and not self.attends_first:
            hidden, weights = self.attention(hidden, *attended)
        return hidden, weights


class ConvolutionStack(Stack):
    """Convolutional layers that keep the length of their inputs.

    Padding is exact: each row's valid steps are gathered to its left and followed by zeros before each convolution, so
    that a step sees its valid neighbours as in the row alone, never a gap. No shape depends on the data. Inputs of
    another width than that of the first layer are projected to it, except in the parallel architecture.

    Args:
        architecture: `parallel` (one layer, whatever `num_layers`), `residual`, `gated` or `convs2s`.
        input_size: Width of the inputs.
        hidden_size: Width of the last layer's output, and of the others' without `conv_layers`.
        num_layers: Number of layers.
        causal: Whether a step depends only on itself and earlier ones.
        kernel_size: Number of taps of a convolution.
        kernel_sizes: Widths of the parallel architecture.
        dilation_base: Base of the dilation of the residual architecture, `dilation_base ** l` in layer l (from 0).
        dropout: Dropout of the layers.
        variational: Whether all steps of a row share its mask.
        attends: Whether each layer attends over a source (`convs2s` and `gated`).
        conv_layers: Width and number of taps of each layer of `convs2s` and `gated`, and how many layers before its
            output lies what it adds: 1 for its own input, 0 for nothing. None for layers that are all alike.
        input_projection: Whether inputs are projected even if they are as wide as the first layer.
        attention_position: `after_residual` or `before_residual`; see `GatedLayer`.

    Attributes:
        residuals: For each layer what `conv_layers` say of what it adds.
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
        variational: bool = False,
        attends: bool = False,
        conv_layers: Sequence[Sequence[int]] | None = None,
        input_projection: bool = False,
        attention_position: str = "after_residual",
    ) -> None:
        super().__init__()
        self.num_layers = 1 if architecture == "parallel" else num_layers
        shapes = [(hidden_size, kernel_size, 1)] * self.num_layers if conv_layers is None else conv_layers
        sizes, kernels, self.residuals = zip(*shapes, strict=True)
        # Width of the inputs of each layer, and of the last one's outputs.
        widths = [sizes[0], *sizes]
        projects = architecture != "parallel" and (input_projection or input_size != widths[0])
        self.project = nn.Linear(input_size, widths[0]) if projects else nn.Identity()

        def layer(index: int) -> ConvolutionLayer:
            if architecture == "parallel":
                return ParallelLayer(input_size, hidden_size, kernel_sizes, causal)
            if architecture == "residual":
                return ResidualLayer(
                    hidden_size, kernel_size, dilation_base**index, causal, Dropout(dropout, variational)
                )
            attention = StepAttention(sizes[index], input_size) if attends else None
            residual = self.residuals[index]
            shortcut = widths[index + 1 - residual] if residual else None
            # Dropout was applied to the embeddings already, which is enough unless they are projected.
            drop = Dropout(dropout if index or projects else 0.0, variational)
            # He et al. (2015), as Dauphin et al. initialise; with scaled sums Gehring et al. (2017), section 3.5.
            scaled = architecture == "convs2s"
            gain = 4.0 * (1.0 - dropout) if scaled else 2.0
            first = attention_position == "before_residual"
            width, size, taps = widths[index], sizes[index], kernels[index]
            return GatedLayer(width, size, taps, causal, drop, scaled, gain, shortcut, attention, first)

        self.layers = nn.ModuleList(layer(index) for index in range(self.num_layers))

    def state_shapes(self, batch: int) -> list[list[Size]]:
        """Shapes of the windows of each layer."""
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
        """Run all steps; see `Stack`.

        Args:
            inputs: `[B, T, I]`.
            mask: True at valid steps, `[B, T]`; None if all are.
            states: States before the first step of a causal stack; None stands for zeros.
            return_states: Whether to return the states after each row's last valid step (causal stacks).
            source: Mask `[B, S]` or None, keys and values `[B, S, I]` to attend over.

        Returns:
            The output of each layer, `[B, T, H]` and zero at padding, the states or None, and the attention
            weights `[B, T, S]` of each layer that attends.
        """
        if return_states and states is None:
            states = self.zero_states(inputs)
        # A single step needs no permutation.
        permutation = valid_first(mask) if mask is not None and mask.shape[1] > 1 else None
        valid = mask if permutation is None else permutation.valid
        gathered = inputs if permutation is None else take_steps(inputs, permutation.order)
        attended = () if source is None else (gathered, *source)
        values = self.project(gathered)
        # Inputs of each layer so far.
        entered = [values]
        outputs, new_states, attentions = [], [], []
        for index, layer in enumerate(self.layers):
            windows = None if states is None else states[index]
            residual = self.residuals[index]
            values, weights, *moved = layer(
                values, valid, windows, entered[-residual] if residual else None, *attended
            )
            entered.append(values)
            new_states.append(tuple(moved))
            output = values if permutation is None else take_steps(values, permutation.restore)
            outputs.append(output if mask is None else output.masked_fill(~mask.unsqueeze(-1), 0.0))
            if weights is not None:
                attentions.append(weights if permutation is None else take_steps(weights, permutation.restore))
        return outputs, new_states if return_states else None, attentions
