"""What the configurations of all families share."""

import copy
from typing import Any, ClassVar, Literal, Self

from transformers.configuration_utils import PreTrainedConfig, strict

HEADS = {
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}
"""Auto class to the ending of the class that it loads."""


@strict
class SequenceConfig(PreTrainedConfig):
    r"""Fields of every family. Use `RnnConfig`, `LstmConfig`, `GruConfig` or `CnnConfig`.

    Args:
        vocab_size: Number of tokens, source and target together.
        hidden_size: Width of `last_hidden_state`, of both directions together.
        embedding_size: Width of the token embeddings; None means `hidden_size`.
        num_hidden_layers: Depth of a model with one stack.
        encoder_layers: Depth of a sequence-to-sequence encoder; None means `num_hidden_layers`.
        decoder_layers: Depth of a sequence-to-sequence decoder; None means `num_hidden_layers`.
        bidirectional: Whether a step of the encoder sees the steps after it, too. None lets the head decide (encoders,
            classifiers and taggers yes, causal language models no); a model saves it resolved.
        dropout: Probability of zeroing an element of the embeddings, of each layer's output and of the attentional
            vector, in training.
        variational_dropout: Whether `dropout` zeroes the same elements at all steps of a row (locked dropout; Gal &
            Ghahramani 2016, section 4).
        embedding_dropout: Probability of dropping a word, all its occurrences in a batch together, in training (Gal &
            Ghahramani 2016, section 4.2). It needs `input_ids`: `inputs_embeds` are left as they are.
        classifier_dropout: Dropout before the output layer of a classifier or tagger; None means `dropout`.
        pooling: How a sequence classifier pools steps: `last`, `mean`, `max`, `concat` or `attention`; see `Pooling`.
        crf: Whether a tagger scores whole sequences of labels (Lample et al. 2016); see `ForTokenClassification`.
        add_cross_attention: Whether a causal language model attends over `encoder_hidden_states`.
        cross_attention_hidden_size: Width of `encoder_hidden_states`; None means `hidden_size`.
        tie_word_embeddings: Whether the output layer is the (target) embedding matrix.
        share_encoder_decoder_embeddings: Whether source and target use one embedding matrix.
        char_encoder: What makes features of a word's characters, beside its embedding: `cnn` (Ma & Hovy 2016), `lstm`
            (Lample et al. 2016); None for no such features. Encoders, classifiers and taggers can have them, and then
            take `char_ids` beside `input_ids`, as a `WordCharacterTokenizer` gives them.
        char_vocab_size: Number of characters, those of none (0) and of an unknown character (1) counted.
        char_embedding_size: Width of the embedding of a character.
        char_hidden_size: Width of the features of a word's characters; of `lstm` both directions together.
        char_kernel_size: Number of characters that the convolution of `cnn` sees.
        adaptive_softmax_cutoffs: First word of each cluster after the first, of a causal language model whose
            vocabulary is sorted by frequency; see `AdaptiveSoftmax`. Its logits are then log-probabilities, and in
            training with labels there are none. None for an ordinary output layer.
        initializer_range: Standard deviation of the initial embeddings.
        use_cache: Whether a decoder returns its state for the next step.
        pad_token_id: Id of the padding.
        bos_token_id: Id that starts a sequence.
        eos_token_id: Id that ends one.
        decoder_start_token_id: Id that starts a target sequence; None means `bos_token_id`.
        problem_type: What the labels of a sequence classifier are: `regression`, `single_label_classification` or
            `multi_label_classification`; None goes by the first labels, as in transformers.

    Raises:
        ValueError: If a size, a depth or a probability is impossible.
    """

    family: ClassVar[str]
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache"]
    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "embedding_size",
        "num_hidden_layers",
        "encoder_layers",
        "decoder_layers",
        "cross_attention_hidden_size",
        "char_vocab_size",
        "char_embedding_size",
        "char_hidden_size",
        "char_kernel_size",
    )
    probabilities: ClassVar[tuple[str, ...]] = ("dropout", "embedding_dropout", "classifier_dropout")

    # Read like any other object: the parent looks each name up among aliases and settings of single layers, which
    # these configs do not have, and a step of generation reads dozens of fields.
    __getattribute__ = object.__getattribute__

    vocab_size: int = 8000
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
    pooling: Literal["last", "mean", "max", "concat", "attention"] = "last"
    crf: bool = False
    char_encoder: Literal["cnn", "lstm"] | None = None
    char_vocab_size: int = 256
    char_embedding_size: int = 30
    char_hidden_size: int = 50
    char_kernel_size: int = 3
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    tie_word_embeddings: bool = True
    share_encoder_decoder_embeddings: bool = True
    adaptive_softmax_cutoffs: list[int] | None = None
    initializer_range: float = 0.05
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = None
    # transformers has this field, but takes anything for it.
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification"] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the defaults that depend on other fields and check the values."""
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        if self.encoder_layers is None:
            self.encoder_layers = self.num_hidden_layers
        if self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        for name in self.sizes:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                self.refuse(name, "it must be at least 1")
        for name in self.probabilities:
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0 <= value < 1:
                self.refuse(name, "it must lie in [0, 1)")
        cutoffs = self.adaptive_softmax_cutoffs
        if cutoffs is not None and not (cutoffs and 0 < cutoffs[0] and cutoffs[-1] < self.vocab_size):
            self.refuse("adaptive_softmax_cutoffs", f"they must lie between 0 and vocab_size={self.vocab_size}")
        if cutoffs is not None and cutoffs != sorted(set(cutoffs)):
            self.refuse("adaptive_softmax_cutoffs", "they must increase")
        if self.char_encoder == "lstm" and self.char_hidden_size % 2:
            self.refuse("char_hidden_size", "it must be even: each direction of char_encoder='lstm' has half of it")
        self._check_characters("Model")
        if self.bidirectional:
            self.check_directions()
        kwargs["auto_map"] = self.full_auto_map()
        super().__post_init__(**kwargs)

    def refuse(self, name: str, reason: str) -> None:
        """Raise the `ValueError` that names a field and its value."""
        raise ValueError(f"{type(self).__name__}: {name}={getattr(self, name)} is impossible, {reason}")

    def full_auto_map(self) -> dict[str, str]:
        """Where a published checkpoint finds the code of each Auto class: of all heads, not only of the one saved."""
        classes = {"AutoConfig": f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"}
        for auto_class, head in HEADS.items():
            # A stack that sees what is to come cannot be a language model, nor can one that writes no characters.
            writes = head in ("ForCausalLM", "ForConditionalGeneration")
            if not (self.bidirectional and head == "ForCausalLM" or self.char_encoder and writes):
                classes[auto_class] = f"modeling_{self.family.lower()}.{self.family}{head}"
        return classes

    def input_width(self) -> int:
        """Width of what enters a stack: a word's embedding and the features of its characters."""
        return (self.embedding_size or 0) + (self.char_hidden_size if self.char_encoder else 0)

    def _check_characters(self, head: str) -> None:
        """Raise a `ValueError` if a model that generates is to read characters."""
        generates = head in ("ForCausalLM", "ForConditionalGeneration")
        if self.char_encoder and (generates or self.is_encoder_decoder or self.add_cross_attention):
            self.refuse(
                "char_encoder", "it is for encoders, classifiers and taggers: a generated word has no characters"
            )

    def check_directions(self) -> None:
        """Raise a `ValueError` if the stack cannot read in both directions."""

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """This config, which holds the fields of both sides; the parent copies all of it for every `generate()`."""
        return self

    def is_resolved(self) -> bool:
        """Whether nothing is left for a head to decide."""
        return self.bidirectional is not None

    def resolved(self, head: str, **fields: Any) -> Self:
        """Copy of the config with other fields set and what a head decides decided, if it is not yet.

        Args:
            head: Ending of the class that asks, a value of `HEADS`.
            fields: Values to set first.
        """
        config = copy.deepcopy(self)
        for name, value in fields.items():
            setattr(config, name, value)
        config._check_characters(head)
        if config.bidirectional is None:
            config.bidirectional = head != "ForCausalLM" and not config.add_cross_attention
        if config.bidirectional:
            config.check_directions()
        if head != "ForConditionalGeneration":
            # What starts from this model is to find all its layers.
            config.encoder_layers = config.num_hidden_layers
        config.auto_map = config.full_auto_map()
        return config

    def encoder_config(self) -> Self:
        """Config of the encoder of a sequence-to-sequence model."""
        return self.resolved(
            "ForConditionalGeneration", num_hidden_layers=self.encoder_layers, use_cache=False, **STACK_FIELDS
        )

    def decoder_config(self) -> Self:
        """Config of the decoder of a sequence-to-sequence model."""
        return self.resolved(
            "ForConditionalGeneration",
            num_hidden_layers=self.decoder_layers,
            bidirectional=False,
            add_cross_attention=True,
            cross_attention_hidden_size=self.hidden_size,
            **STACK_FIELDS,
        )


# What makes a config that of one stack: tying is the business of the whole model.
STACK_FIELDS = {"is_encoder_decoder": False, "tie_word_embeddings": False}
