"""Base classes of all models: loading, initialisation, and the one `forward` of all backbones."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .cache import RecurrentCacheLayer, cache_layers, check_states, takes_past_key_values
from .configuration_base import SequenceConfig
from .dropout import Dropout
from .generation import Step, is_bare
from .inputs import StackInputs
from .padding import valid_steps
from .shapes import check_shape
from .stack import SelfInitializing, Stack, State


class SequencePreTrainedModel(PreTrainedModel):
    """Initialisation and loading of all models."""

    config_class = SequenceConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = []
    # A state cannot be rolled back, so `generate` must not try assisted decoding.
    _is_stateful = True

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        if type(self).main_input_name in ("input_ids", "input_features"):
            self.main_input_name = "input_ids" if config.input_size is None else "input_features"

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as `PreTrainedModel.from_pretrained` does, but by default weights only from safetensors."""
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier matrices (Glorot & Bengio 2010), normal embeddings, biases of 0; our own layers do it themselves."""
        if isinstance(module, SelfInitializing):
            module.init_parameters()
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # transformers would take a range of 0 for its default.
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, Backbone):
            if module.reads_features:
                init.zeros_(module.feature_mean)
                init.ones_(module.feature_scale)
        else:
            super()._init_weights(module)


class Source(NamedTuple):
    """Encoder states that a decoder attends over.

    Attributes:
        hidden_states: `[B, S, M]`.
        mask: True at valid encoder states, `[B, S]`, or None if all are.
        memory: Keys, and values if they differ, `[B, S, A]`; the same for all steps, so that they can be cached.
    """

    hidden_states: Tensor
    mask: Tensor | None
    memory: tuple[Tensor, ...] = ()


class BackboneState(NamedTuple):
    """State between two steps.

    Attributes:
        layers: State of each layer of the stack; None stands for zeros.
        extra: Tensors that a decoder, or positions, need beside them. `Backbone.run` and `Backbone.enter` update it.
    """

    layers: list[State] | None
    extra: dict[str, Tensor]


class Run(NamedTuple):
    """Result of a stack, and of a decoder's attention on top of it.

    Attributes:
        outputs: Output of each layer, `[B, T, H]`.
        last: Last hidden state `[B, T, H]`, zero at padding.
        states: State of each layer after the last step, or None if it was not requested.
        attentions: Attention weights `[B, T, S]`, one tensor for each attention.
        coverage_loss: Coverage loss of each step, `[B, T]`, or None.
    """

    outputs: list[Tensor]
    last: Tensor
    states: list[State] | None
    attentions: list[Tensor] = []
    coverage_loss: Tensor | None = None


class Backbone(StackInputs, SequencePreTrainedModel):
    """Embeddings, or features, and a stack; with `add_cross_attention` a decoder that attends over encoder states.

    A family defines `make_stack`, and, if it has decoders, `make_cross_attention`, `make_memory` and `run`.

    Args:
        config: The configuration. `bidirectional=None` means True for an encoder, False for a decoder.

    Raises:
        ValueError: If a decoder is bidirectional, or the stack cannot be.
    """

    output_class: ClassVar[type[ModelOutput]]
    stack_class: ClassVar[type[Stack]]
    # Whether the second half of a bidirectional stack's features is a right-to-left direction's.
    concatenates_directions: ClassVar[bool] = False
    # Layer at the end of whose state the cache keeps `BackboneState.extra`.
    extra_layer: ClassVar[int] = -1

    def __init__(self, config: SequenceConfig) -> None:
        if config.is_encoder_decoder:
            config = config.encoder_config()
        elif not config.is_resolved():
            config = config.resolved("Model")
        if config.bidirectional and config.add_cross_attention:
            raise ValueError("bidirectional=True is impossible with add_cross_attention=True: a decoder reads forward")
        if config.bidirectional:
            config.check_directions()
        super().__init__(config)
        # Names of `BackboneState.extra`, in their order in the cache.
        self.extra_names: list[str] = []
        # Read once: reading a field of a config takes microseconds, which are noticeable in a step of generation.
        self.model_type, self.bidirectional = config.model_type, config.bidirectional
        self.attends = config.add_cross_attention
        self.encoder_size = config.cross_attention_hidden_size or config.hidden_size
        self.make_inputs(config)
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        self.stack = self.make_stack(config)
        if self.attends:
            self.make_cross_attention(config)
        self.post_init()

    def make_stack(self, config: SequenceConfig) -> Stack:
        """Create the stack."""
        raise NotImplementedError

    def make_cross_attention(self, config: SequenceConfig) -> None:
        """Create what a decoder has beside its stack."""
        raise NotImplementedError

    def make_memory(self, encoder_hidden_states: Tensor, encoder_embeddings: Tensor | None) -> tuple[Tensor, ...]:
        """Keys, and values if they differ, of encoder states `[B, S, M]`."""
        raise NotImplementedError

    def initial_states(self, source: Source | None) -> list[State] | None:
        """States before the first step; None for zeros."""
        return None

    def initial_extra(self, like: Tensor, source: Source | None, cached: bool) -> dict[str, Tensor]:
        """`BackboneState.extra` before the first step.

        Args:
            like: Tensor `[B, ...]` with the batch size, type and device.
            source: Encoder states, for a decoder.
            cached: Whether they will be stored in a cache.
        """
        return {}

    def enter(self, embeds: Tensor, mask: Tensor | None, extra: dict[str, Tensor]) -> Tensor:
        """Inputs `[B, T, E]` of the stack before dropout, from embeddings `[B, T, E]`."""
        return embeds

    def run(
        self, embedded: Tensor, mask: Tensor | None, before: BackboneState, source: Source | None, cached: bool
    ) -> Run:
        """Run the stack, and a decoder's attention.

        Args:
            embedded: Inputs `[B, T, I]`.
            mask: True at valid steps, `[B, T]`; None if all are.
            before: State before the first step.
            source: Encoder states, for a decoder.
            cached: Whether to return the states after the last step.
        """
        raise NotImplementedError

    def more_outputs(
        self, input_ids: Tensor | None, entered: Tensor, source: Source | None, run: Run
    ) -> dict[str, Tensor | None]:
        """Output fields of the family's own."""
        return {}

    @takes_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        encoder_embeddings: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Run the stack over embedded inputs.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`, or `[B, past + T]` with a cache; padding may be anywhere.
                Of stacked frames always `[B, T]`, in the order of the frames.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`, before positions are added; for a model
                that reads features the inputs of the stack, in place of `input_features`.
            char_ids: Characters of each token, `[B, T, L]`, 0 after the last one, if the model has a character
                encoder.
            input_features: Frames of features, `[B, T, input_size]`, in place of `input_ids` if the config has an
                `input_size`, or of pixels, `[B, T, C, H, W]`, if it has a `frame_shape`. With `subsampling_factor` k
                there are T / k steps, rounded up, each row's valid ones first, and with a cache every call but the
                last must bring a multiple of k valid frames in each row.
            encoder_hidden_states: `[B, S, M]`, for a decoder with cross-attention.
            encoder_attention_mask: 1 at valid encoder states, `[B, S]`.
            encoder_embeddings: The encoder's input embeddings `[B, S, embedding_size]`, which a convolutional decoder
                adds to the values of its attention if they are given.
            cache: State after the earlier tokens; updated in place.
            use_cache: Whether to return the state; never for a bidirectional stack.
            output_attentions: Whether to return the attention weights.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            kwargs: Ignored.

        Returns:
            `output_class`: `last_hidden_state` `[B, T, H]`, zero at padding; `cross_attentions`, tensors
            `[B, 1, T, S]`; `hidden_states`, `num_hidden_layers + 1` tensors, as wide as their layers; and fields of
            the family's own.

        Raises:
            ValueError: If shapes do not match, or not exactly one kind of inputs is given.
        """
        if self.bidirectional:
            if cache is not None:
                raise ValueError("a cache was passed to a bidirectional model, which has no state to continue from")
            use_cache = False
        elif use_cache is None:
            # Training reads no cache, so that by default none is made.
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache()
        layers = [] if cache is None else cache_layers(cache, self.stack.num_layers, self.model_type)
        past = layers[0].seen if layers else 0
        embeds, mask = self.read(input_ids, inputs_embeds, char_ids, input_features, attention_mask, past)
        batch, length, _ = embeds.shape
        source = self.read_source(batch, encoder_hidden_states, encoder_attention_mask, encoder_embeddings)
        before = self._state_before(layers, embeds, source)
        if source is not None:
            memory = layers[0].memory if layers else None
            if memory is None:
                memory = self.make_memory(source.hidden_states, encoder_embeddings)
            if layers:
                layers[0].memory = memory
            source = Source(source.hidden_states, source.mask, memory)
        entered = self.enter(embeds, mask, before.extra)
        embedded = self.dropout(entered)
        run = self.run(embedded, mask, before, source, cached=cache is not None)
        self._store(layers, run.states, before.extra, length)
        weights = None
        if source is not None and (self.config.output_attentions if output_attentions is None else output_attentions):
            weights = tuple(one.unsqueeze(1) for one in run.attentions)
        hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return self.output_class(
            last_hidden_state=run.last,
            hidden_states=(embedded, *run.outputs) if hidden_states else None,
            cache=cache,
            cross_attentions=weights,
            **self.more_outputs(input_ids, entered, source, run),
        )

    def read_source(
        self, batch: int, hidden_states: Tensor | None, mask: Tensor | None, embeddings: Tensor | None = None
    ) -> Source | None:
        """Validate what a decoder attends over; its keys and values are not computed yet.

        Args:
            batch: Batch size B.
            hidden_states: Encoder states `[B, S, M]`.
            mask: 1 at valid encoder states, `[B, S]`, or None.
            embeddings: The encoder's input embeddings `[B, S, embedding_size]`, or None.

        Raises:
            ValueError: If encoder states are given to a model without cross-attention or missing for one with it, or
                if a shape does not match.
        """
        if not self.attends:
            for name, given in (("encoder_hidden_states", hidden_states), ("encoder_embeddings", embeddings)):
                if given is not None:
                    raise ValueError(f"{name} were passed to a model without add_cross_attention=True")
            return None
        if hidden_states is None:
            raise ValueError("a model with add_cross_attention=True needs encoder_hidden_states")
        check_shape("encoder_hidden_states", hidden_states.shape, (batch, "source length", self.encoder_size))
        return Source(hidden_states, valid_steps(mask, batch, hidden_states.shape[1], 0, "encoder_attention_mask"))

    def _state_before(self, layers: list[RecurrentCacheLayer], embeds: Tensor, source: Source | None) -> BackboneState:
        """State before the first step, from the cache if it is filled."""
        extra = self.initial_extra(embeds, source, cached=bool(layers))
        if not layers or layers[0].states is None:
            return BackboneState(self.initial_states(source), extra)
        shapes = self.stack.state_shapes(embeds.shape[0])
        shapes[self.extra_layer] = [*shapes[self.extra_layer], *(value.shape for value in extra.values())]
        for index, layer in enumerate(layers):
            check_states(layer.states or (), shapes[index], index)
        return self._cached_state(layers)

    def _cached_state(self, layers: list[RecurrentCacheLayer]) -> BackboneState:
        """State in a filled cache."""
        states = [layer.states or () for layer in layers]
        if not self.extra_names:
            return BackboneState(states, {})
        last, count = states[self.extra_layer], len(self.extra_names)
        states[self.extra_layer] = last[:-count]
        return BackboneState(states, dict(zip(self.extra_names, last[-count:], strict=True)))

    def _with_extra(self, states: list[State], extra: dict[str, Tensor]) -> list[State]:
        """States as the cache holds them."""
        if not extra:
            return states
        states = list(states)
        states[self.extra_layer] = (*states[self.extra_layer], *extra.values())
        return states

    def _store(
        self, layers: list[RecurrentCacheLayer], states: list[State] | None, extra: dict[str, Tensor], length: int
    ) -> None:
        """Put the state after `length` more tokens into the cache, if there is one."""
        if layers:
            for layer, state in zip(layers, self._with_extra(states or [], extra), strict=True):
                layer.update(state, length)

    def first_states(
        self,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        encoder_embeddings: Tensor | None = None,
    ) -> tuple[list[State], tuple[Tensor, ...]]:
        """States and memory that a decoder's cache holds before the first token.

        Args:
            encoder_hidden_states: `[B, S, M]`.
            encoder_attention_mask: 1 at valid encoder states, `[B, S]`.
            encoder_embeddings: The encoder's input embeddings `[B, S, embedding_size]`, or None.
        """
        source = self.read_source(len(encoder_hidden_states), encoder_hidden_states, encoder_attention_mask)
        states = self.initial_states(source) or self.stack.zero_states(encoder_hidden_states)
        extra = self.initial_extra(encoder_hidden_states, source, cached=True)
        return self._with_extra(states, extra), self.make_memory(encoder_hidden_states, encoder_embeddings)

    def supports_decode_step(self) -> bool:
        """Return True if `make_decode_step` computes what `forward` does."""
        bare = is_bare(self, Backbone.forward) and is_bare(self.stack, self.stack_class.forward)
        return bare and not self.training and self.characters is None

    def make_decode_step(self, cache: Cache, **encoder: Tensor | None) -> Step:
        """Step from the newest ids `[B, 1]` to hidden states `[B, 1, H]`, without the checks and outputs of `forward`.

        Args:
            cache: Cache filled by `forward`; each step updates it.
            encoder: What a decoder attends to, keyed by argument of `forward`.
        """
        layers = cache_layers(cache, self.stack.num_layers, self.model_type)
        states, mask = encoder.get("encoder_hidden_states"), encoder.get("encoder_attention_mask")
        source = None if states is None else self.read_source(len(states), states, mask)
        if source is not None:
            source = source._replace(memory=layers[0].memory or ())

        def step(ids: Tensor) -> Tensor:
            before = self._cached_state(layers)
            run = self.run(self.enter(self.embed_tokens(ids), None, before.extra), None, before, source, cached=True)
            self._store(layers, run.states, before.extra, 1)
            return run.last

        return step


class Head(SequencePreTrainedModel):
    """Base class of the heads: models with a backbone, under the name `model`."""

    backbone_class: ClassVar[type[Backbone]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the configuration class from the backbone."""
        super().__init_subclass__(**kwargs)
        if "backbone_class" in vars(cls):
            cls.config_class = cls.backbone_class.config_class
