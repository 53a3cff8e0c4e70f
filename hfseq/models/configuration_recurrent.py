"""Configurations of the three recurrent families; they differ only in the cell."""

from typing import Any, ClassVar, Literal

from transformers.configuration_utils import PreTrainedConfig, strict


@strict
class RecurrentConfig(PreTrainedConfig):
    r"""What `RnnConfig`, `LstmConfig` and `GruConfig` share. Use one of those.

    Args:
        vocab_size: Number of tokens, source and target together.
        hidden_size: Width of `last_hidden_state`; a bidirectional encoder gives each direction half of it.
        embedding_size: Width of the token embeddings; None means `hidden_size`.
        num_hidden_layers: Depth of a model with one stack.
        encoder_layers: Depth of a sequence-to-sequence encoder; None means `num_hidden_layers`.
        decoder_layers: Depth of a sequence-to-sequence decoder; None means `num_hidden_layers`.
        bidirectional: Whether the encoder also reads from right to left. None lets the head decide (encoders yes,
            causal language models no); a model saves it resolved.
        dropout: Probability of zeroing an element of the embeddings, of each layer's output and of the attentional
            vector, in training.
        add_cross_attention: Whether a causal language model attends over `encoder_hidden_states`.
        cross_attention_hidden_size: Width of `encoder_hidden_states`; None means `hidden_size`.
        attention_type: Score of a decoder state and an encoder state: `additive` (Bahdanau et al. 2015), `dot` or
            `general` (Luong et al. 2015).
        input_feeding: Whether the attentional vector of a step enters the next step's input (Luong et al. 2015, 3.3).
            It forces training to go step by step.
        tie_word_embeddings: Whether the output layer is the (target) embedding matrix.
        share_encoder_decoder_embeddings: Whether source and target use one embedding matrix.
        initializer_range: Standard deviation of the initial embeddings.
        use_cache: Whether a decoder returns its state for the next step.
        pad_token_id: Id of the padding.
        bos_token_id: Id that starts a sequence.
        eos_token_id: Id that ends one.
        decoder_start_token_id: Id that starts a target sequence; None means `bos_token_id`.

    Raises:
        ValueError: If a size, a depth or the dropout is impossible.
    """

    cell: ClassVar[str]
    family: ClassVar[str]
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 8000
    hidden_size: int = 512
    embedding_size: int | None = None
    num_hidden_layers: int = 1
    encoder_layers: int | None = None
    decoder_layers: int | None = None
    bidirectional: bool | None = None
    dropout: float | int = 0.1
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    attention_type: Literal["additive", "dot", "general"] = "general"
    input_feeding: bool = False
    tie_word_embeddings: bool = True
    share_encoder_decoder_embeddings: bool = True
    initializer_range: float = 0.05
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the defaults that depend on other fields and check the sizes."""
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        if self.encoder_layers is None:
            self.encoder_layers = self.num_hidden_layers
        if self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        for name in (
            "vocab_size",
            "hidden_size",
            "embedding_size",
            "num_hidden_layers",
            "encoder_layers",
            "decoder_layers",
            "cross_attention_hidden_size",
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{type(self).__name__}: {name}={value} is impossible, it must be at least 1")
        if isinstance(self.dropout, int | float) and not 0 <= self.dropout < 1:
            raise ValueError(f"{type(self).__name__}: dropout={self.dropout} is impossible, it must lie in [0, 1)")
        if self.bidirectional:
            self.check_directions()
        kwargs["auto_map"] = self.full_auto_map()
        super().__post_init__(**kwargs)

    def full_auto_map(self) -> dict[str, str]:
        """Where a published checkpoint finds the code of each Auto class: of all heads, not only of the one saved."""
        classes = {"AutoConfig": f"configuration_recurrent.{type(self).__name__}"}
        for auto_class, head in HEADS.items():
            # A bidirectional stack cannot be a language model.
            if not (self.bidirectional and head == "ForCausalLM"):
                classes[auto_class] = f"modeling_{self.cell}.{self.family}{head}"
        return classes

    def check_directions(self) -> None:
        """Raise a `ValueError` if two directions cannot share `hidden_size` evenly."""
        if self.hidden_size % 2:
            raise ValueError(
                f"{type(self).__name__}: hidden_size={self.hidden_size} must be even for a bidirectional encoder, "
                "which gives half of it to each direction; set bidirectional=False or an even size"
            )


HEADS = {
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSeq2SeqLM": "ForConditionalGeneration",
}
"""Auto class to the ending of the class that it loads."""


@strict
class RnnConfig(RecurrentConfig):
    """Configuration of the simple recurrent network of Elman (1990).

    Args:
        hidden_act: `tanh` or `relu`.
    """

    model_type = "hfseq_rnn"
    cell = "rnn"
    family = "Rnn"

    hidden_act: Literal["tanh", "relu"] = "tanh"


@strict
class LstmConfig(RecurrentConfig):
    """Configuration of long short-term memory with forget gates (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""

    model_type = "hfseq_lstm"
    cell = "lstm"
    family = "Lstm"


@strict
class GruConfig(RecurrentConfig):
    """Configuration of the gated recurrent unit (Cho et al. 2014), the reset gate after the matrix product."""

    model_type = "hfseq_gru"
    cell = "gru"
    family = "Gru"
