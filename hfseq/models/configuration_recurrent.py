"""Configurations of the recurrent families, which differ only in the cell."""

import copy
from typing import Any, Literal, Self

from transformers.configuration_utils import strict

from .configuration_base import HEADS, SequenceConfig
from .configuration_frames import map_shape


@strict
class RecurrentConfig(SequenceConfig):
    r"""Fields common to the recurrent families; instantiate `RnnConfig`, `LstmConfig` or `GruConfig`.

    A bidirectional stack gives each direction half of `hidden_size`. Fields of all families: see `SequenceConfig`.

    Args:
        input_filters: Number of filters of a convolution with ReLU between the embeddings, or features, and the first
            recurrent layer (Sønderby et al. 2015 for proteins, Quang & Xie 2016 for DNA); None for no convolution. It
            is centred on its step, so that the stack must be bidirectional.
        input_kernel_size: Kernel size of that convolution.
        attention_type: Score of a decoder state and an encoder state: `additive` (Bahdanau et al. 2015), `dot` or
            `general` (Luong et al. 2015).
        input_feeding: Whether the attentional vector of a step is fed into the next step's input (Luong et al. 2015,
            section 3.3). Training then runs step by step.
        weight_dropout: DropConnect on the hidden-to-hidden matrices, with one mask for all steps of a batch (Merity et
            al. 2018, section 2).
        activation_regularization: Weight of AR in the training loss of a causal language model (Merity et al. 2018,
            section 4.3): the mean square of the last layer's output after dropout, over the steps with a label. It is
            part of the model's own loss only, not of label smoothing by the Trainer.
        temporal_activation_regularization: Weight of TAR (Merity et al. 2018, section 4.3): the mean square of the
            difference between the last layer's outputs, before dropout, at successive steps with a label.
        layer_norm: Whether to normalise each layer's output over its features (Ba et al. 2016, eq. 4).
        layer_sizes: Width of each layer's output, both directions together, the last of which is `hidden_size`; None
            means `hidden_size` for all. A language model whose top layer is as wide as its tied embeddings needs no
            projection between them (AWD-LSTM, Merity et al. 2018: 1150, 1150, 400). A sequence-to-sequence model has
            such layers on both sides.
        pointer_generator: Whether the sequence-to-sequence model can copy source words (See et al. 2017, section 2.2).
            Its logits are then log-probabilities.
        coverage: Whether the decoder's attention depends on the coverage so far (See et al. 2017, eq. 10-11). It
            needs `attention_type="additive"`, and the attention, though not the recurrent layers, runs step by step.
        coverage_loss_weight: Weight of the coverage loss (See et al. 2017, eq. 12-13) in the training loss of a
            sequence-to-sequence model; not part of label smoothing by the Trainer.
        unk_token_id: Unknown token id, which a pointer-generator's decoder reads in place of a copied
            out-of-vocabulary word; None if only words of the vocabulary are copied.

    Raises:
        ValueError: If a size, a depth, a weight or a probability is out of range, if `layer_sizes` do not fit the
            depth or `hidden_size`, if `coverage` is combined with an attention that is not additive, or
            `input_filters` with a stack that reads forward.
    """

    input_filters: int | None = None
    input_kernel_size: int = 9
    attention_type: Literal["additive", "dot", "general"] = "general"
    input_feeding: bool = False
    weight_dropout: float | int = 0.0
    activation_regularization: float | int = 0.0
    temporal_activation_regularization: float | int = 0.0
    layer_norm: bool = False
    layer_sizes: list[int] | None = None
    pointer_generator: bool = False
    coverage: bool = False
    coverage_loss_weight: float | int = 1.0
    unk_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        """Validate the values."""
        weights = ("activation_regularization", "temporal_activation_regularization", "coverage_loss_weight")
        self.check_numbers(weights, lambda value: value >= 0, "it must not be negative")
        self.check_numbers(["input_filters"], lambda value: value >= 1, "it must be at least 1, or None")
        self._check_convolution()
        self._check_layer_sizes()
        if self.coverage and self.attention_type != "additive":
            self.raise_invalid("coverage", f"it needs attention_type='additive', not {self.attention_type!r}")
        if self.pointer_generator and self.input_size is not None:
            self.raise_invalid("pointer_generator", "with input_size there are features, but no words to copy")
        super().__post_init__(**kwargs)

    def _check_convolution(self) -> None:
        """Raise a `ValueError` if the stack reads forward behind a convolution that sees later steps."""
        if self.input_filters is not None and self.bidirectional is False:
            self.raise_invalid(
                "input_filters", "the convolution sees later steps, and a stack with bidirectional=False must not"
            )

    def _check_layer_sizes(self) -> None:
        """Raise a `ValueError` if the layers cannot have their widths."""
        if self.layer_sizes is None:
            return
        if any(size < 1 for size in self.layer_sizes):
            self.raise_invalid("layer_sizes", "every width must be at least 1")
        if len(self.layer_sizes) != self.num_hidden_layers:
            self.raise_invalid(
                "layer_sizes", f"there must be a width for each of the num_hidden_layers={self.num_hidden_layers}"
            )
        if self.layer_sizes[-1] != self.hidden_size:
            self.raise_invalid("layer_sizes", f"the last width must be hidden_size={self.hidden_size}")

    def resolved(self, head: str, **fields: Any) -> Self:
        """Copy of the config for a head; see `SequenceConfig.resolved`."""
        config = super().resolved(head, **fields)
        config._check_convolution()
        # A sequence-to-sequence model may have another depth.
        config._check_layer_sizes()
        return config

    def decoder_config(self) -> Self:
        """Config of the decoder of a sequence-to-sequence model."""
        config = copy.copy(self)
        config.input_filters = None
        return super(RecurrentConfig, config).decoder_config()

    def check_directions(self) -> None:
        """Raise a `ValueError` if a width cannot be split between two directions."""
        if any(size % 2 for size in self.layer_sizes or ()):
            self.raise_invalid(
                "layer_sizes",
                "every width must be even for a bidirectional encoder, which gives half of it to each direction; set "
                "bidirectional=False or even widths",
            )
        if self.hidden_size % 2:
            raise ValueError(
                f"{type(self).__name__}: hidden_size={self.hidden_size} must be even for a bidirectional encoder, "
                "which gives half of it to each direction; set bidirectional=False or an even size"
            )


@strict
class RnnConfig(RecurrentConfig):
    """Configuration of the simple recurrent network of Elman (1990).

    Args:
        hidden_act: `tanh` or `relu`.
    """

    model_type = "hfseq_rnn"
    family = "Rnn"

    hidden_act: Literal["tanh", "relu"] = "tanh"


@strict
class LstmConfig(RecurrentConfig):
    """Configuration of long short-term memory with forget gates (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        recurrent_kernel_size: Height and width of the filters of a ConvLSTM (Shi et al. 2015), an odd number, which
            convolves maps in place of multiplying vectors; see `ConvolutionalLstmLayer`. It needs a `frame_shape`, and
            `hidden_size` is the number of its maps times their height and width, which are those of a frame after
            `frame_filters`. None for an ordinary LSTM.

    Raises:
        ValueError: As `RecurrentConfig`, or if maps cannot be as the fields say.
    """

    model_type = "hfseq_lstm"
    family = "Lstm"

    recurrent_kernel_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Validate the values."""
        self.check_numbers(["recurrent_kernel_size"], lambda value: value % 2 == 1, "it must be an odd number")
        super().__post_init__(**kwargs)
        self._check_maps()

    def reads_maps(self) -> bool:
        """Return True if frames of pixels are convolved before the stack, or in it."""
        return super().reads_maps() or self.writes_maps()

    def writes_maps(self) -> bool:
        """Return True if the stack is a ConvLSTM, whose outputs are flattened maps."""
        return self.recurrent_kernel_size is not None

    def check_inputs(self, head: str) -> None:
        """Raise a `ValueError` if a head cannot read what the fields describe."""
        super().check_inputs(head)
        if self.writes_maps() and (head == "ForConditionalGeneration" or self.is_encoder_decoder):
            self.raise_invalid(
                "recurrent_kernel_size", "a decoder of text has no maps; leave it out, and set frame_filters"
            )

    def check_directions(self) -> None:
        """Raise a `ValueError` if a width cannot be split between two directions."""
        super().check_directions()
        self._check_maps(directions=2)

    def _check_maps(self, directions: int = 1) -> None:
        """Raise a `ValueError` if the stack is a ConvLSTM, and its states cannot be maps."""
        if not self.writes_maps():
            return
        if self.frame_shape is None:
            self.raise_invalid("recurrent_kernel_size", "a ConvLSTM reads frames of pixels; set frame_shape")
        if self.embedding_size is not None:
            self.raise_invalid("embedding_size", "a ConvLSTM reads maps, which a projection would lose; leave it out")
        _, height, width = map_shape(self)
        both = "2 directions of " if directions == 2 else ""
        reason = f"it must be a multiple of that of {both}one map, {height} x {width}"
        if self.hidden_size % (directions * height * width):
            self.raise_invalid("hidden_size", reason)
        if any(size % (directions * height * width) for size in self.layer_sizes or ()):
            self.raise_invalid("layer_sizes", f"each is a width; {reason}")

    def full_auto_map(self) -> dict[str, str]:
        """Auto class to the module and class in a published checkpoint; see `SequenceConfig.full_auto_map`."""
        classes = super().full_auto_map()
        if self.writes_maps():
            classes = {name: one for name, one in classes.items() if HEADS.get(name) != "ForConditionalGeneration"}
        return classes


@strict
class GruConfig(RecurrentConfig):
    """Configuration of the gated recurrent unit (Cho et al. 2014) with the reset gate after the matrix product."""

    model_type = "hfseq_gru"
    family = "Gru"
