"""Convolutional models: the backbone, and the heads bound to it."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from .configuration_cnn import CnnConfig
from .convolution import PositionEmbedding, SourceMemory
from .convolution_stacks import ConvolutionStack
from .heads_causal import ForCausalLM
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .heads_seq2seq import ForConditionalGeneration
from .modeling_base import Backbone, BackboneState, Run, Source
from .outputs import CnnModelOutput
from .shapes import check_shape

__all__ = [
    "CnnForCTC",
    "CnnForCausalLM",
    "CnnForConditionalGeneration",
    "CnnForPrediction",
    "CnnForSequenceClassification",
    "CnnForTokenClassification",
    "CnnModel",
]


class CnnModel(Backbone):
    """Embeddings and a stack of convolutions; with `add_cross_attention` the decoder of Gehring et al. (2017).

    Args:
        config: The configuration. `bidirectional=None` means True for an encoder, False for a decoder;
            `architecture=None` means `residual` for an encoder, `convs2s` for a decoder.

    Raises:
        ValueError: If a decoder is bidirectional or of another architecture than `convs2s` or `gated`, or if a
            centred convolution has an even kernel size.
    """

    config_class = CnnConfig
    output_class = CnnModelOutput
    stack_class = ConvolutionStack
    extra_layer = 0

    def make_stack(self, config: CnnConfig) -> ConvolutionStack:  # type: ignore[override]
        """Create the positions of `convs2s`, and the stack."""
        if self.attends and config.architecture not in ("convs2s", "gated"):
            raise ValueError(
                f"architecture={config.architecture!r} is impossible with add_cross_attention=True: "
                "only the layers of 'convs2s' and 'gated' attend over encoder states"
            )
        self.positions = None
        if config.architecture == "convs2s":
            self.positions = PositionEmbedding(config.max_position_embeddings, config.input_width())
            self.extra_names = ["seen"]
        return ConvolutionStack(
            config.architecture,
            config.input_width(),
            config.hidden_size,
            config.num_hidden_layers,
            causal=not config.bidirectional,
            kernel_size=config.kernel_size,
            kernel_sizes=config.kernel_sizes,
            dilation_base=config.dilation_base,
            dropout=config.dropout,
            variational=config.variational_dropout,
            attends=self.attends,
            conv_layers=config.conv_layers,
            input_projection=config.input_projection,
            attention_position=config.attention_position,
        )

    def make_cross_attention(self, config: CnnConfig) -> None:  # type: ignore[override]
        """Create the projection of the source that all layers attend over."""
        self.source = SourceMemory(self.encoder_size, config.embedding_size, config.num_hidden_layers)

    def make_memory(self, encoder_hidden_states: Tensor, encoder_embeddings: Tensor | None) -> tuple[Tensor, ...]:
        """Keys and values `[B, S, E]`."""
        if encoder_embeddings is not None:
            expected = (*encoder_hidden_states.shape[:2], self.config.embedding_size)
            note = ": both sides' embeddings must be of one width"
            check_shape("encoder_embeddings", encoder_embeddings.shape, expected, note=note)
        return self.source(encoder_hidden_states, encoder_embeddings)

    def initial_extra(self, like: Tensor, source: Source | None, cached: bool) -> dict[str, Tensor]:
        """Number of valid steps before the first one, `[B]`, from which positions count."""
        if self.positions is None or not cached:
            return {}
        return {"seen": like.new_zeros(like.shape[0], dtype=torch.long)}

    def enter(self, embeds: Tensor, mask: Tensor | None, extra: dict[str, Tensor]) -> Tensor:
        """Add positions; see `Backbone.enter`."""
        if self.positions is None:
            return embeds
        embeds, seen = self.positions(embeds, mask, extra.get("seen"))
        if seen is not None:
            extra["seen"] = seen
        return embeds

    def run(
        self, embedded: Tensor, mask: Tensor | None, before: BackboneState, source: Source | None, cached: bool
    ) -> Run:
        """Run the stack, whose layers attend; see `Backbone.run`."""
        attended = None if source is None else (source.mask, source.memory[0], source.memory[-1])
        outputs, states, weights = self.stack(embedded, mask, before.layers, return_states=cached, source=attended)
        return Run(outputs, outputs[-1], states, weights)

    def more_outputs(
        self, input_ids: Tensor | None, entered: Tensor, source: Source | None, run: Run
    ) -> dict[str, Tensor | None]:
        """Input embeddings of an encoder, for a decoder to attend over."""
        return {"input_embeddings": entered if source is None else None}


class CnnDecoder(CnnModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class BoundedLinear(nn.Linear):
    """Linear layer with a bound on the norm of each row of its weight (Hinton et al. 2012; Kim 2014, section 2.1).

    In training, `forward` first rescales the rows that the last update has made too long.

    Args:
        in_features: Width of the inputs.
        out_features: Width of the outputs.
        max_norm: The bound.
    """

    def __init__(self, in_features: int, out_features: int, max_norm: float) -> None:
        super().__init__(in_features, out_features)
        self.max_norm = max_norm

    def forward(self, values: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""
        norms = torch.linalg.vector_norm(self.weight.detach(), dim=1, keepdim=True)
        shrink = self.max_norm / norms.clamp(min=self.max_norm)  # [out_features, 1]
        if not (self.training and self.weight.requires_grad):
            return nn.functional.linear(values, self.weight * shrink, self.bias)
        # Through `data`: autograd would reject an in-place change between two calls and one backward pass.
        self.weight.data.mul_(shrink)
        return super().forward(values)


class CnnForCausalLM(ForCausalLM):
    """Language model of gated causal convolutions (Dauphin et al. 2017); see `ForCausalLM`."""

    backbone_class = CnnModel


class CnnForConditionalGeneration(ForConditionalGeneration):
    """ConvS2S (Gehring et al. 2017); see `ForConditionalGeneration`."""

    backbone_class = CnnModel
    decoder_class = CnnDecoder
    encoder_extra = "input_embeddings"

    def encoder_kwargs(self, encoder_outputs: ModelOutput) -> dict[str, Tensor | None]:
        """Encoder outputs the decoder consumes, keyed by argument name; its input embeddings among them."""
        embeddings = encoder_outputs.get("input_embeddings")
        if not isinstance(embeddings, Tensor):
            raise ValueError(
                "encoder_outputs must be what the encoder of this model returned, a CnnModelOutput: its "
                "input_embeddings, which the decoder attends over, are missing"
            )
        return super().encoder_kwargs(encoder_outputs) | {"encoder_embeddings": embeddings}


class CnnForPrediction(ForPrediction):
    """Forecaster by causal convolutions (Bai et al. 2018); see `ForPrediction`."""

    backbone_class = CnnModel


class CnnForSequenceClassification(ForSequenceClassification):
    """Classifier or regressor of sequences (Kim 2014); see `ForSequenceClassification`."""

    backbone_class = CnnModel

    def make_classifier(self, width: int, num_labels: int) -> nn.Linear:
        """Linear layer, with the norm bound of the config in the parallel architecture."""
        if self.config.architecture != "parallel" or self.config.max_norm is None:
            return super().make_classifier(width, num_labels)
        return BoundedLinear(width, num_labels, self.config.max_norm)


class CnnForTokenClassification(ForTokenClassification):
    """Tagger by residual convolutions (Strubell et al. 2017); see `ForTokenClassification`."""

    backbone_class = CnnModel


class CnnForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = CnnModel
