"""Base class of the configurations of all families."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NoReturn, Self

from transformers.configuration_utils import strict

from .adaptive_softmax import tail_width
from .configuration_frames import FrameFields, check_frame_fields, map_shape
from .configuration_prediction import PredictionFields, become_forecaster, check_prediction_fields
from .configuration_sampling import SamplingFields, check_sampling_fields

HEADS = {
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
    "AutoModelForSpeechSeq2Seq": "ForConditionalGeneration",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForAudioClassification": "ForSequenceClassification",
    "AutoModelForVideoClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForCTC": "ForCTC",
    "AutoModelForTimeSeriesPrediction": "ForPrediction",
}
"""Auto class to the suffix of the model classes that it loads."""
GENERATING = ("ForCausalLM", "ForConditionalGeneration")
"""Suffixes of the model classes that generate text."""
CAUSAL = ("ForCausalLM", "ForPrediction")
"""Suffixes of the model classes that never see the future."""
OF_FEATURES = (
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForAudioClassification",
    "AutoModelForVideoClassification",
    "AutoModelForTimeSeriesPrediction",
)
"""Auto classes for models that read numbers, not tokens."""


@strict
class SequenceConfig(PredictionFields, FrameFields, SamplingFields):
    r"""Fields common to all families; instantiate the configuration of one, such as `LstmConfig` or `CnnConfig`.

    Those of forecasters: see `PredictionFields`; those for frames of pixels: see `FrameFields`; those of language
    models that are trained with sampled negatives: see `SamplingFields`.

    Args:
        vocab_size: Size of the vocabulary, which source and target share.
        input_size: Number F of features of a frame, for models that read `input_features` `[B, T, F]` in place of
            tokens: a sequence-to-sequence model's encoder, base models, classifiers and taggers. Number of variates
            of a forecaster, for which None means 1; otherwise None means tokens.
        subsampling_factor: Number of valid frames that are stacked side by side into one step (Sak et al. 2015,
            section 4). A row of n valid frames has ceil(n / `subsampling_factor`) steps.
        inputs_to_logits_ratio: Number of audio samples per step, from which pipelines compute time stamps.
        apply_spec_augment: Whether to mask spans of frames and of features in training (SpecAugment, Park et al. 2019,
            section 2).
        mask_time_prob: Share of the valid frames that are masked, if no spans overlap.
        mask_time_length: Number of frames of a span.
        mask_time_min_masks: Minimum number of spans in a row that is long enough.
        mask_feature_prob: Share of the features that are masked, if no spans overlap.
        mask_feature_length: Number of features of a span.
        mask_feature_min_masks: Minimum number of spans of features.
        hidden_size: Width of `last_hidden_state`, both directions together.
        embedding_size: Width of the token embeddings; None means `hidden_size`. With `input_size` the width to which
            stacked frames are projected; None then means no projection, except in a sequence-to-sequence model.
        num_hidden_layers: Depth of a model with one stack.
        encoder_layers: Depth of a sequence-to-sequence encoder; None means `num_hidden_layers`.
        decoder_layers: Depth of a sequence-to-sequence decoder; None means `num_hidden_layers`.
        bidirectional: Whether the encoder reads in both directions. None lets the head decide (encoders, classifiers
            and taggers do, causal language models do not); models save it resolved.
        dropout: Dropout of the embeddings, of each layer's output and of the attentional vector.
        variational_dropout: Whether all steps of a row share one mask of `dropout` (Gal & Ghahramani 2016, section 4).
        embedding_dropout: Probability of dropping a word, at all its occurrences in a batch (Gal & Ghahramani 2016,
            section 4.2). `inputs_embeds` are not affected.
        classifier_dropout: Dropout before the output layer of a classifier or tagger; None means `dropout`.
        pooling: Pooling of a sequence classifier: `last`, `middle`, `mean`, `max`, `concat` or `attention`; see
            `Pooling`.
        crf: Whether a tagger has a conditional random field (Lample et al. 2016); see `ForTokenClassification`.
        ctc_zero_infinity: Whether the CTC loss ignores rows that are too short for their labels; otherwise they are an
            error.
        add_cross_attention: Whether a causal language model attends over `encoder_hidden_states`.
        cross_attention_hidden_size: Width of `encoder_hidden_states`; None means `hidden_size`.
        tie_word_embeddings: Whether the output layer shares the weights of the (target) embeddings.
        output_size: Width to which the last hidden states are projected, with a bias, before the output layer of a
            generating model; None for no projection but the one, without a bias, to tied embeddings of another width.
        lm_head_bias: Whether the output layer of a generating model has a bias, its own also where its weights are
            those of the embeddings.
        share_encoder_decoder_embeddings: Whether source and target share one embedding matrix.
        char_encoder: Encoder of character features, which are appended to word embeddings: `cnn` (Ma & Hovy 2016),
            `lstm` (Lample et al. 2016) or None. For encoders, classifiers and taggers, which then take `char_ids`
            beside `input_ids`, as a `WordCharacterTokenizer` gives them.
        char_vocab_size: Number of characters, including no character (0) and the unknown character (1).
        char_embedding_size: Width of the character embeddings.
        char_hidden_size: Width of the character features; for `lstm` both directions together.
        char_kernel_size: Kernel size of the convolution of `cnn`.
        adaptive_softmax_cutoffs: First word of each cluster after the first, for a causal language model whose
            vocabulary is sorted by frequency; see `AdaptiveSoftmax`. Its logits are then log-probabilities, and it
            returns none in training with labels. None for an ordinary output layer.
        adaptive_softmax_div_value: Factor by which the rows of each cluster are narrower than those of the one before
            it (Grave et al. 2017, section 4.3). With 1 all rows are in one matrix, and can be tied to the embeddings.
        initializer_range: Standard deviation of the initial embeddings.
        use_cache: Whether a decoder returns its state for the next step.
        pad_token_id: Padding token id.
        bos_token_id: BOS token id.
        eos_token_id: EOS token id, or several.
        decoder_start_token_id: First token id of a target; None means `bos_token_id`.
        problem_type: `regression`, `single_label_classification` or `multi_label_classification`, for a sequence
            classifier; None infers it from the first labels, as in transformers.

    Raises:
        ValueError: If a size, a depth or a probability is out of range, or if a field for features or for tokens is
            set in a model that reads the other.
    """

    family: ClassVar[str]
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]

    vocab_size: int = 8000
    input_size: int | None = None
    subsampling_factor: int = 1
    inputs_to_logits_ratio: int = 1
    apply_spec_augment: bool = False
    mask_time_prob: float | int = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float | int = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    hidden_size: int = 512
    embedding_size: int | None = None
    num_hidden_layers: int = 1
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    bidirectional: bool | None = None
    dropout: float | int = 0.1
    variational_dropout: bool = False
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    pooling: Literal["last", "middle", "mean", "max", "concat", "attention"] = "last"
    crf: bool = False
    ctc_zero_infinity: bool = False
    char_encoder: Literal["cnn", "lstm"] | None = None
    char_vocab_size: int = 256
    char_embedding_size: int = 30
    char_hidden_size: int = 50
    char_kernel_size: int = 3
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    tie_word_embeddings: bool = True
    output_size: int | None = None
    lm_head_bias: bool = False
    share_encoder_decoder_embeddings: bool = True
    adaptive_softmax_cutoffs: list[int] | None = None
    adaptive_softmax_div_value: float | int = 1
    initializer_range: float = 0.05
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = None
    # transformers has this field, but takes anything for it.
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the defaults that depend on other fields and validate the values."""
        check_frame_fields(self)
        if self.embedding_size is None and self.input_size is None:
            self.embedding_size = self.hidden_size
        if self.encoder_layers is None:
            self.encoder_layers = self.num_hidden_layers
        if self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        # The fields of a number's kind are those with such a name.
        sizes = [name for name in vars(self) if name.endswith(("_size", "_layers"))]
        self.check_numbers(sizes, lambda value: value >= 1, "it must be at least 1")
        dropouts = [name for name in vars(self) if name.endswith("dropout")]
        self.check_numbers(dropouts, lambda value: 0 <= value < 1, "it must lie in [0, 1)")
        counts = ("subsampling_factor", "inputs_to_logits_ratio", "mask_time_length", "mask_feature_length")
        self.check_numbers(counts, lambda value: value >= 1, "it must be at least 1")
        shares = ("mask_time_prob", "mask_feature_prob")
        self.check_numbers(shares, lambda value: 0 <= value <= 1, "it must lie in [0, 1]")
        least = ("mask_time_min_masks", "mask_feature_min_masks")
        self.check_numbers(least, lambda value: value >= 0, "it must not be negative")
        self.check_output_layer()
        if self.char_encoder == "lstm" and self.char_hidden_size % 2:
            self.raise_invalid("char_hidden_size", "it must be even: char_encoder='lstm' gives half to each direction")
        check_prediction_fields(self)
        check_sampling_fields(self)
        self.check_inputs("Model")
        if self.bidirectional:
            self.check_directions()
        kwargs["auto_map"] = self.full_auto_map()
        super().__post_init__(**kwargs)

    def check_numbers(self, names: Iterable[str], is_valid: Callable[[float], bool], reason: str) -> None:
        """Raise a `ValueError` for a field with an invalid number; fields of a wrong type are refused elsewhere."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not is_valid(value):
                self.raise_invalid(name, reason)

    def check_output_layer(self) -> None:
        """Raise a `ValueError` for tied embeddings of another width, or for impossible clusters."""
        size, embedding_size = self.output_size, self.embedding_size
        if self.tie_word_embeddings and None not in (size, embedding_size) and size != embedding_size:
            self.raise_invalid(
                "output_size",
                f"the output layer is tied to embeddings of embedding_size={embedding_size}; set "
                "tie_word_embeddings=False or the same size",
            )
        cutoffs, factor = self.adaptive_softmax_cutoffs, self.adaptive_softmax_div_value
        if cutoffs is not None and not (cutoffs and 0 < cutoffs[0] and cutoffs[-1] < self.vocab_size):
            self.raise_invalid("adaptive_softmax_cutoffs", f"they must lie between 0 and vocab_size={self.vocab_size}")
        if cutoffs is not None and cutoffs != sorted(set(cutoffs)):
            self.raise_invalid("adaptive_softmax_cutoffs", "they must increase")
        if not 1 <= factor < float("inf"):
            self.raise_invalid("adaptive_softmax_div_value", "it must be finite and at least 1")
        if factor == 1:
            return
        if cutoffs is None:
            self.raise_invalid("adaptive_softmax_div_value", "set adaptive_softmax_cutoffs, whose clusters it narrows")
        if self.tie_word_embeddings:
            self.raise_invalid(
                "adaptive_softmax_div_value",
                "the narrower rows of the clusters cannot be those of the embeddings; set tie_word_embeddings=False",
            )
        if not tail_width(size or self.hidden_size, factor, len(cutoffs) - 1):
            self.raise_invalid(
                "adaptive_softmax_div_value",
                f"the last of {len(cutoffs)} clusters would have no width, from one of {size or self.hidden_size}",
            )

    def raise_invalid(self, name: str, reason: str) -> NoReturn:
        """Raise a `ValueError` that names a field and its value."""
        raise ValueError(f"{type(self).__name__}: {name}={getattr(self, name)} is impossible, {reason}")

    def full_auto_map(self) -> dict[str, str]:
        """Auto class to the module and class in a published checkpoint, for all heads, not only the saved one."""
        classes = {"AutoConfig": f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"}
        for auto_class, head in HEADS.items():
            # A bidirectional stack sees the future, and character features of a generated word do not exist.
            impossible = self.bidirectional and head in CAUSAL or self.char_encoder and head in GENERATING
            impossible = impossible or self.is_encoder_decoder and head == "ForCTC"
            if self.input_size is None:
                impossible = impossible or auto_class in OF_FEATURES
            else:
                impossible = impossible or head == "ForCausalLM"
            if not impossible:
                classes[auto_class] = f"modeling_{self.family.lower()}.{self.family}{head}"
        return classes

    def frame_size(self) -> int | None:
        """Width of what a stack of numbers reads at a step or frame; None for tokens."""
        return self.input_size if self.feature_size is None else self.feature_size

    def reads_maps(self) -> bool:
        """Return True if frames of pixels are convolved before the stack."""
        return self.frame_filters is not None

    def writes_maps(self) -> bool:
        """Return True if the outputs of the stack are flattened maps."""
        return False

    def encoded_size(self) -> int | None:
        """Width of a frame behind its convolutions, if it has any; None for tokens."""
        if not self.reads_maps():
            return self.frame_size()
        channels, height, width = map_shape(self)
        return channels * height * width

    def input_width(self) -> int:
        """Width of the inputs of a stack: word embeddings and character features, or stacked frames."""
        if self.embedding_size is None:
            return (self.encoded_size() or 0) * self.subsampling_factor
        return self.embedding_size + (self.char_hidden_size if self.char_encoder else 0)

    def check_inputs(self, head: str) -> None:
        """Raise a `ValueError` if a head cannot read what the fields describe.

        Args:
            head: Suffix of the model class, a value of `HEADS`.
        """
        if head == "ForPrediction":
            self._check_forecaster()
        elif self.input_size is None:
            if self.subsampling_factor > 1:
                self.raise_invalid("subsampling_factor", "it stacks frames of features; set input_size")
            if self.apply_spec_augment:
                self.raise_invalid("apply_spec_augment", "it masks frames of features; set input_size")
        elif self.char_encoder:
            self.raise_invalid("char_encoder", "a model with input_size reads features, which have no characters")
        elif head == "ForCausalLM" or self.add_cross_attention:
            self.raise_invalid("input_size", "language models and decoders read tokens; leave it out")
        if self.char_encoder and (head in GENERATING or self.is_encoder_decoder or self.add_cross_attention):
            self.raise_invalid(
                "char_encoder", "it is for encoders, classifiers and taggers: a generated word has no characters"
            )

    def _check_forecaster(self) -> None:
        """Raise a `ValueError` if a field is set that is for other models than forecasters."""
        if self.bidirectional:
            self.raise_invalid("bidirectional", "a forecaster reads forward: it would see the future")
        if self.char_encoder:
            self.raise_invalid("char_encoder", "a forecaster reads values, which have no characters")
        if self.add_cross_attention:
            self.raise_invalid("add_cross_attention", "a forecaster has no encoder to attend over")
        if self.subsampling_factor > 1:
            self.raise_invalid("subsampling_factor", "a forecaster predicts every step; leave it out")
        if self.apply_spec_augment:
            self.raise_invalid("apply_spec_augment", "it masks frames of features, not values; leave it out")
        if self.reads_maps() and self.scaling is not None:
            self.raise_invalid(
                "scaling", "the pixels of a frame that is convolved have no scales of their own; set scaling=None"
            )

    def check_directions(self) -> None:
        """Raise a `ValueError` if the stack cannot be bidirectional."""

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """Return this config, which has the fields of both sides; the parent would copy it in every `generate()`."""
        return self

    def is_resolved(self) -> bool:
        """Return True if no field is left for a head to decide."""
        return self.bidirectional is not None

    def resolved(self, head: str, **fields: Any) -> Self:
        """Copy of the config for a head, with all fields that the head decides resolved.

        Args:
            head: Suffix of the model class, a value of `HEADS`.
            fields: Values to set first.
        """
        config = copy.deepcopy(self)
        for name, value in fields.items():
            setattr(config, name, value)
        if head == "ForPrediction":
            become_forecaster(config)
        config.check_inputs(head)
        if head == "ForConditionalGeneration" and config.embedding_size is None:
            # The width of the target embeddings, which a convolutional decoder adds to those of the source.
            config.embedding_size = config.hidden_size
        if config.bidirectional is None:
            config.bidirectional = head not in CAUSAL and not config.add_cross_attention
        if config.bidirectional:
            config.check_directions()
        if head != "ForConditionalGeneration":
            # A sequence-to-sequence model that starts from this one shall find all layers.
            config.encoder_layers = config.num_hidden_layers
        config.auto_map = config.full_auto_map()
        return config

    def for_one_stack(self, head: str, **fields: Any) -> Self:
        """Copy for a model with one stack, the encoder if this is of a sequence-to-sequence model; see `resolved`."""
        layers = self.encoder_layers if self.is_encoder_decoder else self.num_hidden_layers
        return self.resolved(head, **{"num_hidden_layers": layers, "is_encoder_decoder": False} | fields)

    def encoder_config(self) -> Self:
        """Config of the encoder of a sequence-to-sequence model."""
        # Tying is up to the model as a whole.
        return self.for_one_stack("ForConditionalGeneration", use_cache=False, tie_word_embeddings=False)

    def decoder_config(self) -> Self:
        """Config of the decoder of a sequence-to-sequence model."""
        return self.for_one_stack(
            "ForConditionalGeneration",
            num_hidden_layers=self.decoder_layers,
            input_size=None,
            feature_size=None,
            frame_shape=None,
            frame_filters=None,
            subsampling_factor=1,
            apply_spec_augment=False,
            bidirectional=False,
            add_cross_attention=True,
            cross_attention_hidden_size=self.hidden_size,
            tie_word_embeddings=False,
        )
