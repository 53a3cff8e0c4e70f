"""Convolutional models: the backbone, and the heads of all families bound to it."""

from typing import Any

import torch
from torch import Size, Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .cache import RecurrentCacheLayer, cache_layers, check_states, takes_past_key_values
from .characters import CharacterEncoder
from .configuration_cnn import CnnConfig
from .convolution import PositionEmbedding, SourceMemory
from .convolution_stacks import ConvolutionStack, State
from .dropout import Dropout
from .heads_causal import ForCausalLM
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_seq2seq import ForConditionalGeneration
from .modeling_base import Backbone, SequencePreTrainedModel
from .outputs import CnnModelOutput
from .padding import valid_steps


class CnnPreTrainedModel(SequencePreTrainedModel):
    """Bound to the configuration of convolutional models."""

    config_class = CnnConfig


class CnnModel(CnnPreTrainedModel, Backbone):
    """Embeddings and a stack of convolutions; with `add_cross_attention` the decoder of Gehring et al. (2017).

    Args:
        config: The configuration. `bidirectional=None` means True for an encoder, False for a decoder;
            `architecture=None` means `residual` for an encoder, `convs2s` for a decoder.

    Raises:
        ValueError: If a decoder is to see later steps or to be of another architecture than `convs2s` or `gated`, or
            if an even kernel is to lie around its step.
    """

    def __init__(self, config: CnnConfig) -> None:
        if config.is_encoder_decoder:
            config = config.encoder_config()
        elif not config.is_resolved():
            config = config.resolved("Model")
        if config.add_cross_attention and config.bidirectional:
            raise ValueError("bidirectional=True is impossible with add_cross_attention=True: a decoder reads forward")
        if config.add_cross_attention and config.architecture not in ("convs2s", "gated"):
            raise ValueError(
                f"architecture={config.architecture!r} is impossible with add_cross_attention=True: "
                "only the layers of 'convs2s' and 'gated' attend over encoder states"
            )
        if config.bidirectional:
            config.check_directions()
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.characters = CharacterEncoder(config) if config.char_encoder else None
        self.positions = None
        if config.architecture == "convs2s":
            self.positions = PositionEmbedding(config.max_position_embeddings, config.input_width())
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        self.stack = ConvolutionStack(
            config.architecture,
            config.input_width(),
            config.hidden_size,
            config.num_hidden_layers,
            causal=not config.bidirectional,
            kernel_size=config.kernel_size,
            kernel_sizes=config.kernel_sizes,
            dilation_base=config.dilation_base,
            dropout=config.dropout,
            locked=config.variational_dropout,
            attends=config.add_cross_attention,
        )
        if config.add_cross_attention:
            memory = config.cross_attention_hidden_size or config.hidden_size
            self.source = SourceMemory(memory, config.embedding_size, config.num_hidden_layers)
        self.post_init()

    @takes_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        encoder_embeddings: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CnnModelOutput:
        """Run the stack.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`, or `[B, past + T]` with a cache; padding may stand anywhere.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`; positions are added to them, too.
            char_ids: Characters of each token, `[B, T, L]`, 0 after the last of each, if `char_encoder` says so.
            encoder_hidden_states: `[B, S, M]`, for a decoder with cross-attention.
            encoder_attention_mask: 1 at valid encoder states, `[B, S]`.
            encoder_embeddings: The encoder's input embeddings `[B, S, embedding_size]`, which are attended over too if
                they are given.
            cache: State after the earlier tokens; updated in place.
            use_cache: Whether to return the state; never for a bidirectional stack.
            output_attentions: Whether to return the attention weights.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            kwargs: Ignored.

        Returns:
            See `CnnModelOutput`.

        Raises:
            ValueError: If shapes do not fit, or both or none of `input_ids` and `inputs_embeds` are given.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds, char_ids)
        batch, length, _ = inputs_embeds.shape
        memory_mask = self.check_memory(encoder_hidden_states, encoder_attention_mask, batch)
        self._check_encoder_embeddings(encoder_embeddings, encoder_hidden_states)
        use_cache = self.uses_cache(use_cache, cache)
        layers: list[RecurrentCacheLayer] = []
        if use_cache:
            cache = DynamicCache() if cache is None else cache
            layers = cache_layers(cache, len(self.stack.layers), self.config.model_type)
        past = layers[0].seen if layers else 0
        mask = valid_steps(attention_mask, batch, length, past, "attention_mask")

        states, seen = self._initial_states(layers, inputs_embeds)
        if self.positions is not None:
            inputs_embeds, seen = self.positions(inputs_embeds, mask, seen)
        embedded = self.dropout(inputs_embeds)
        source = None
        if encoder_hidden_states is not None:
            memory = layers[0].memory if layers else None
            if memory is None:
                memory = self.source(encoder_hidden_states, encoder_embeddings)
            if layers:
                layers[0].memory = memory
            source = (memory_mask, memory[0], memory[-1])
        outputs, states, weights = self.stack(embedded, mask, states, return_states=use_cache, source=source)
        for index, layer in enumerate(layers):
            layer.update(states[index] + ((seen,) if index == 0 and seen is not None else ()), length)
        attentions = self.outputs_of("output_attentions", output_attentions) and source is not None
        hidden_states = self.outputs_of("output_hidden_states", output_hidden_states)
        return CnnModelOutput(
            last_hidden_state=outputs[-1],
            input_embeddings=inputs_embeds if source is None else None,
            hidden_states=(embedded, *outputs) if hidden_states else None,
            cache=cache if use_cache else None,
            cross_attentions=tuple(layer.unsqueeze(1) for layer in weights) if attentions else None,
        )

    def first_states(
        self,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        encoder_embeddings: Tensor | None = None,
    ) -> tuple[list[State], tuple[Tensor, ...]]:
        """What the cache of a decoder holds before its first token: each layer's windows, and what it attends over.

        Args:
            encoder_hidden_states: `[B, S, M]`.
            encoder_attention_mask: Not needed; other families' are.
            encoder_embeddings: As of `forward`.
        """
        like, batch = encoder_hidden_states, encoder_hidden_states.shape[0]
        layers = [tuple(like.new_zeros(shape) for shape in shapes) for shapes in self.stack.state_shapes(batch)]
        if self.positions is not None:
            layers[0] += (like.new_zeros(batch, dtype=torch.long),)
        return layers, self.source(encoder_hidden_states, encoder_embeddings)

    def _check_encoder_embeddings(self, embedded: Tensor | None, memory: Tensor | None) -> None:
        if embedded is None:
            return
        if memory is None:
            raise ValueError("encoder_embeddings were passed to a model without add_cross_attention=True")
        expected = (*memory.shape[:2], self.config.embedding_size)
        if embedded.shape != expected:
            raise ValueError(
                f"encoder_embeddings has shape {tuple(embedded.shape)}, expected {expected}: "
                "both sides' embeddings must be of one width"
            )

    def _initial_states(
        self, layers: list[RecurrentCacheLayer], embeds: Tensor
    ) -> tuple[list[State] | None, Tensor | None]:
        """Windows of each layer before the first step, and the number of valid steps before it `[B]`.

        The former are None for zeros, the latter where no cache or no position asks for it.
        """
        if not layers:
            return None, None
        counts = self.positions is not None
        if layers[0].states is None:
            return None, embeds.new_zeros(embeds.shape[0], dtype=torch.long) if counts else None
        shapes = self.stack.state_shapes(embeds.shape[0])
        if counts:
            shapes[0].append(Size((embeds.shape[0],)))
        for index, layer in enumerate(layers):
            check_states(layer.states or (), shapes[index], index)
        states = [layer.states or () for layer in layers]
        if not counts:
            return states, None
        *windows, seen = states[0]
        return [tuple(windows), *states[1:]], seen


class CnnDecoder(CnnModel):
    """The decoder of a sequence-to-sequence model, which is not its base model."""


class BoundedLinear(nn.Linear):
    """Linear layer whose weight's rows are no longer than a bound (Hinton et al. 2012; Kim 2014, section 2.1).

    A training step begins by shortening the rows that the last update has made too long.

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
        # Past autograd, to which two calls before one backward would be a change of what the first has saved.
        self.weight.data.mul_(shrink)
        return super().forward(values)


class CnnForCausalLM(CnnPreTrainedModel, ForCausalLM):
    """Language model of gated causal convolutions (Dauphin et al. 2017); see `ForCausalLM`."""

    backbone_class = CnnModel


class CnnForConditionalGeneration(CnnPreTrainedModel, ForConditionalGeneration):
    """ConvS2S (Gehring et al. 2017); see `ForConditionalGeneration`."""

    backbone_class = CnnModel
    decoder_class = CnnDecoder
    encoder_output_class = CnnModelOutput
    encoder_extra = "input_embeddings"

    def memory_of(self, encoder_outputs: ModelOutput) -> dict[str, Tensor | None]:
        """See `ForConditionalGeneration.memory_of`; the decoder attends over the input embeddings, too."""
        embeddings = encoder_outputs.get("input_embeddings")
        if not isinstance(embeddings, Tensor):
            raise ValueError(
                "encoder_outputs must be what the encoder of this model returned, a CnnModelOutput: its "
                "input_embeddings, which the decoder attends over, are missing"
            )
        return super().memory_of(encoder_outputs) | {"encoder_embeddings": embeddings}


class CnnForSequenceClassification(CnnPreTrainedModel, ForSequenceClassification):
    """Classifier or regressor of sequences (Kim 2014); see `ForSequenceClassification`."""

    backbone_class = CnnModel

    def make_classifier(self, width: int, num_labels: int) -> nn.Linear:
        """The layer from `width` to `num_labels`, bounded as the config says."""
        if self.config.architecture != "parallel" or self.config.max_norm is None:
            return super().make_classifier(width, num_labels)
        return BoundedLinear(width, num_labels, self.config.max_norm)


class CnnForTokenClassification(CnnPreTrainedModel, ForTokenClassification):
    """Tagger by residual convolutions (Strubell et al. 2017); see `ForTokenClassification`."""

    backbone_class = CnnModel
