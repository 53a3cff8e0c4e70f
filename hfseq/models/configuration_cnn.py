"""Configuration of the convolutional family."""

import copy
from typing import Any, Literal, Self

from transformers.configuration_utils import strict

from .configuration_base import SequenceConfig


@strict
class CnnConfig(SequenceConfig):
    """Configuration of convolutional networks over tokens, of four published architectures.

    `parallel` is Kim (2014), `residual` Bai et al. (2018) and, with centred convolutions, Strubell et al. (2017),
    `gated` Dauphin et al. (2017), `convs2s` Gehring et al. (2017). Convolutions are centred on their step if
    `bidirectional` is True and causal if it is False. Fields of all families: see `SequenceConfig`.

    Args:
        architecture: `parallel`, `residual`, `gated` or `convs2s`; that of the encoder in a sequence-to-sequence
            model, whose decoder is always `convs2s`. None lets the head decide (`parallel` for sequence
            classification, `gated` for causal language models, `convs2s` for sequence-to-sequence models and for
            decoders with cross-attention, otherwise `residual`); models save it resolved.
        kernel_size: Kernel size of the convolutions; odd if they are centred.
        kernel_sizes: Kernel sizes of the parallel architecture, all in one layer.
        conv_layers: Layers of `gated` and `convs2s`, in place of `kernel_size` and of one width for all, the first one
            first: `[channels, kernel size, residual]` each, where `residual` says how many layers before its output
            lies what the layer adds to its own: 1, which may be left out, for its input, 0 for nothing. What has
            another width is projected, and the channels of the last layer are `hidden_size`. None for layers that are
            all alike.
        decoder_conv_layers: The same for the decoder of a sequence-to-sequence model; None means `conv_layers`.
        input_projection: Whether embeddings are projected before the first layer even if they are as wide.
        attention_position: Where the layers of a decoder attend: `after_residual`, over the sum of output and input
            (Gehring et al. 2017, section 3.3), or `before_residual`, over the output alone, as fairseq does.
        dilation_base: Base of the dilation in the residual architecture, `dilation_base ** l` in layer l (from 0).
        max_position_embeddings: Number of positions of `convs2s`; all later ones share the last.
        max_norm: Bound on the Euclidean norm of each row of a sequence classifier's output weights, in the parallel
            architecture (Kim 2014, section 2.1); None for no bound.

    Raises:
        ValueError: If a value is out of range.
    """

    model_type = "hfseq_cnn"
    family = "Cnn"

    hidden_size: int = 300
    num_hidden_layers: int = 4
    pooling: Literal["last", "middle", "mean", "max", "concat", "attention"] = "max"
    architecture: Literal["parallel", "residual", "gated", "convs2s"] | None = None
    kernel_size: int = 3
    kernel_sizes: list[int] | tuple[int, ...] = (3, 4, 5)
    conv_layers: list[list[int] | tuple[int, ...]] | None = None
    decoder_conv_layers: list[list[int] | tuple[int, ...]] | None = None
    input_projection: bool = False
    attention_position: Literal["after_residual", "before_residual"] = "after_residual"
    dilation_base: int = 1
    max_position_embeddings: int = 1024
    max_norm: float | int | None = 3.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Validate the values."""
        if isinstance(self.kernel_sizes, list | tuple):
            self.kernel_sizes = list(self.kernel_sizes)  # as JSON has it
            if not self.kernel_sizes or not all(isinstance(size, int) and size > 0 for size in self.kernel_sizes):
                self.raise_invalid("kernel_sizes", "it must be one or more sizes of at least 1")
            if isinstance(self.hidden_size, int) and 0 < self.hidden_size < len(self.kernel_sizes):
                self.raise_invalid(
                    "kernel_sizes", f"each needs one of hidden_size={self.hidden_size} filters at least"
                )
        for name in ("conv_layers", "decoder_conv_layers"):
            self._read_conv_layers(name)
        if self.architecture is not None:
            self.check_layers()
        counts = ("dilation_base", "max_position_embeddings")
        self.check_numbers(counts, lambda value: value >= 1, "it must be at least 1")
        self.check_numbers(["max_norm"], lambda value: value > 0, "it must be positive, or None for no bound")
        super().__post_init__(**kwargs)

    def _read_conv_layers(self, name: str) -> None:
        """Complete the layers of a field, or raise a `ValueError`."""
        layers = getattr(self, name)
        if layers is None:
            return
        complete = []
        for index, layer in enumerate(layers):
            if len(layer) not in (2, 3) or min(layer[:2]) < 1 or min(layer) < 0:
                self.raise_invalid(name, f"layer {index} must be [channels, kernel size, residual]")
            channels, kernel_size, residual = (*layer, 1)[:3]
            if residual > index + 1:
                self.raise_invalid(
                    name, f"layer {index} can add what lies at most {index + 1} layers before its output"
                )
            complete.append([channels, kernel_size, residual])
        setattr(self, name, complete)

    def check_layers(self) -> None:
        """Raise a `ValueError` if the layers are impossible in this architecture, or with these sizes."""
        if self.input_projection and self.architecture == "parallel":
            self.raise_invalid("input_projection", "architecture='parallel' reads the embeddings; leave it out")
        if self.conv_layers is None:
            return
        if self.architecture not in ("gated", "convs2s"):
            self.raise_invalid("conv_layers", f"architecture={self.architecture!r} is not 'gated' or 'convs2s'")
        if len(self.conv_layers) != self.num_hidden_layers:
            self.raise_invalid("conv_layers", f"there must be num_hidden_layers={self.num_hidden_layers} of them")
        if self.conv_layers[-1][0] != self.hidden_size:
            self.raise_invalid("conv_layers", f"the last layer must have hidden_size={self.hidden_size} channels")

    def check_directions(self) -> None:
        """Raise a `ValueError` if a convolution cannot be centred."""
        if any(layer[1] % 2 == 0 for layer in self.conv_layers or ()):
            self.raise_invalid(
                "conv_layers",
                "kernel sizes must be odd for centred convolutions (bidirectional=True), which pad both sides "
                "equally; set bidirectional=False or odd sizes",
            )
        if self.conv_layers is not None:
            return
        # The parallel architecture has its own sizes, and pads even ones by one more at the end.
        if self.architecture not in (None, "parallel") and self.kernel_size % 2 == 0:
            raise ValueError(
                f"{type(self).__name__}: kernel_size={self.kernel_size} must be odd for a centred convolution "
                f"(bidirectional=True, architecture={self.architecture!r}), which pads both sides equally; set "
                "bidirectional=False or an odd size"
            )

    def is_resolved(self) -> bool:
        """Return True if no field is left for a head to decide."""
        return super().is_resolved() and self.architecture is not None

    def resolved(self, head: str, **fields: Any) -> Self:
        """Copy of the config for a head; see `SequenceConfig.resolved`."""
        attends = fields.get("add_cross_attention", self.add_cross_attention)
        default = "convs2s" if attends else ARCHITECTURES.get(head, "residual")
        config = super().resolved(head, **{"architecture": self.architecture or default} | fields)
        config.check_layers()
        return config

    def decoder_config(self) -> Self:
        """Config of the decoder of a sequence-to-sequence model."""
        config = copy.copy(self)
        config.architecture = "convs2s"
        if self.decoder_conv_layers is not None:
            if len(self.decoder_conv_layers) != self.decoder_layers:
                self.raise_invalid(
                    "decoder_conv_layers", f"there must be decoder_layers={self.decoder_layers} of them"
                )
            config.conv_layers = self.decoder_conv_layers
        return super(CnnConfig, config).decoder_config()


ARCHITECTURES = {
    "ForCausalLM": "gated",
    "ForConditionalGeneration": "convs2s",
    "ForSequenceClassification": "parallel",
}
"""Suffix of a model class to its default architecture; that of all others is `residual`."""
