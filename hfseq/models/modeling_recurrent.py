"""Backbone and heads of the recurrent families; `modeling_rnn`, `modeling_lstm` and `modeling_gru` bind the cell."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .attention import Bridge, CrossAttention
from .cache import RecurrentCacheLayer, cache_layers, check_states
from .configuration_recurrent import RecurrentConfig
from .recurrent import RecurrentStack, State, align

# What makes a config that of one stack: tying is the business of the whole model.
STACK_FIELDS = {"is_encoder_decoder": False, "tie_word_embeddings": False}


def resolved(config: RecurrentConfig, default_bidirectional: bool, **fields: Any) -> RecurrentConfig:
    """Copy of a config with other fields set and `bidirectional` decided, if it is not yet; the original stays."""
    config = copy.deepcopy(config)
    for name, value in fields.items():
        setattr(config, name, value)
    if config.bidirectional is None:
        config.bidirectional = default_bidirectional
    if config.bidirectional:
        config.check_directions()
    config.auto_map = config.full_auto_map()
    return config


def encoder_config(config: RecurrentConfig) -> RecurrentConfig:
    """Config of the encoder of a sequence-to-sequence model."""
    return resolved(config, True, num_hidden_layers=config.encoder_layers, use_cache=False, **STACK_FIELDS)


def decoder_config(config: RecurrentConfig) -> RecurrentConfig:
    """Config of the decoder of a sequence-to-sequence model."""
    return resolved(
        config,
        False,
        num_hidden_layers=config.decoder_layers,
        bidirectional=False,
        add_cross_attention=True,
        cross_attention_hidden_size=config.hidden_size,
        **STACK_FIELDS,
    )


def valid_steps(mask: Tensor | None, batch: int, length: int, past: int, name: str) -> Tensor | None:
    """Boolean mask `[B, T]` of the current steps from a mask of them, or of all steps so far.

    Raises:
        ValueError: If the mask has another shape.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] not in (length, past + length):
        expected = f"({batch}, {length})" + (f" or ({batch}, {past + length})" if past else "")
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {expected}")
    return mask[:, -length:] != 0


def next_labels(labels: Tensor, mask: Tensor) -> Tensor:
    """What each step is to predict, `[B, T]`: the label of the row's next valid step, -100 where there is none."""
    alignment = align(mask)
    ordered = labels.gather(1, alignment.order).masked_fill(~alignment.valid, -100)
    return nn.functional.pad(ordered[:, 1:], (0, 1), value=-100).gather(1, alignment.restore)


class RecurrentPreTrainedModel(PreTrainedModel):
    """Initialisation and loading that all recurrent models share."""

    config_class = RecurrentConfig
    base_model_prefix = "model"
    # A state cannot be rolled back, so `generate` must not try assisted decoding.
    _is_stateful = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as `PreTrainedModel.from_pretrained` does, but weights only from safetensors unless told otherwise."""
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Orthogonal recurrent and Xavier input matrices gate by gate, forget-gate bias 1 (Jozefowicz et al. 2015)."""
        if isinstance(module, nn.RNNBase):
            gates = module.weight_hh_l0.shape[0] // module.hidden_size
            for name, parameter in module.named_parameters(recurse=False):
                # The parts are views, which do not carry the mark of a loaded parameter.
                if getattr(parameter, "_is_hf_initialized", False):
                    continue
                if name.startswith("bias"):
                    init.zeros_(parameter)
                    if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):
                        init.ones_(parameter.chunk(gates)[1])
                    continue
                for gate in parameter.chunk(gates):
                    (init.orthogonal_ if name.startswith("weight_hh") else init.xavier_uniform_)(gate)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)


class RecurrentModel(RecurrentPreTrainedModel):
    """Embeddings and a recurrent stack; with `add_cross_attention` a decoder that attends over encoder states.

    Args:
        config: The configuration. `bidirectional=None` means True for an encoder, False for a decoder.

    Raises:
        ValueError: If a decoder is to be bidirectional, or an odd `hidden_size` split between directions.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        if config.is_encoder_decoder:
            config = encoder_config(config)
        elif config.bidirectional is None:
            config = resolved(config, not config.add_cross_attention)
        if config.bidirectional and config.add_cross_attention:
            raise ValueError("bidirectional=True is impossible with add_cross_attention=True: a decoder reads forward")
        super().__init__(config)
        hidden, embedding = config.hidden_size, config.embedding_size
        self.embed_tokens = nn.Embedding(config.vocab_size, embedding)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = RecurrentStack(
            config.cell,
            embedding + (hidden if config.add_cross_attention and config.input_feeding else 0),
            hidden,
            config.num_hidden_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
            nonlinearity=getattr(config, "hidden_act", "tanh"),
        )
        if config.add_cross_attention:
            memory = config.cross_attention_hidden_size or hidden
            self.attention = CrossAttention(hidden, memory, config.attention_type)
            self.bridge = Bridge(memory, hidden, config.num_hidden_layers, self.stack.num_states)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the stack.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`, or `[B, past + T]` with a cache; padding may stand anywhere.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`.
            encoder_hidden_states: `[B, S, M]`, for a decoder with cross-attention.
            encoder_attention_mask: 1 at valid encoder states, `[B, S]`.
            past_key_values: State after the earlier tokens; updated in place.
            use_cache: Whether to return the state; never for a bidirectional stack.
            output_attentions: Whether to return the attention weights.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            kwargs: Ignored.

        Returns:
            `last_hidden_state` `[B, T, H]` (with cross-attention: the attentional vectors), zero at padding;
            `cross_attentions` a tuple of one tensor `[B, 1, T, S]`; `hidden_states` of `num_hidden_layers + 1`.

        Raises:
            ValueError: If shapes do not fit, or both or none of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("specify exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            if input_ids.dim() != 2:
                raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, expected (batch, length)")
            inputs_embeds = self.embed_tokens(input_ids)
        elif inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != self.config.embedding_size:
            raise ValueError(
                f"inputs_embeds has shape {tuple(inputs_embeds.shape)}, "
                f"expected (batch, length, embedding_size={self.config.embedding_size})"
            )
        self._check_memory(encoder_hidden_states, encoder_attention_mask, inputs_embeds.shape[0])
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        use_cache = self._uses_cache(use_cache, past_key_values)
        layers: list[RecurrentCacheLayer] = []
        if use_cache:
            past_key_values = DynamicCache() if past_key_values is None else past_key_values
            layers = cache_layers(past_key_values, self.config.num_hidden_layers)
        batch, length, _ = inputs_embeds.shape
        past = layers[0].seen if layers else 0
        mask = valid_steps(attention_mask, batch, length, past, "attention_mask")
        memory_mask = None if encoder_attention_mask is None else encoder_attention_mask != 0

        states, feed = self._initial_states(layers, inputs_embeds, encoder_hidden_states, memory_mask)
        embedded = self.dropout(inputs_embeds)
        weights = None
        if encoder_hidden_states is None:
            outputs, states = self.stack(embedded, mask, states, return_states=use_cache)
            last = outputs[-1]
        else:
            keys = layers[0].memory if layers else None
            if keys is None:
                keys = self.attention.keys(encoder_hidden_states)
            attend = (encoder_hidden_states, keys, memory_mask)
            if self.config.input_feeding:
                outputs, last, weights, states, feed = self._feed_steps(embedded, mask, states, feed, attend)
            else:
                outputs, states = self.stack(embedded, mask, states, return_states=use_cache)
                last, weights = self.attention(self.dropout(outputs[-1]), *attend)
                if mask is not None:
                    last = last.masked_fill(~mask.unsqueeze(-1), 0.0)
            if use_cache:
                layers[0].memory = keys
        for index, layer in enumerate(layers):
            extra = (feed,) if self._feeds(index) else ()
            layer.update(states[index] + extra, length)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=last,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(embedded, *outputs) if output_hidden_states else None,
            cross_attentions=(weights.unsqueeze(1),) if output_attentions and weights is not None else None,
        )

    def _check_memory(self, memory: Tensor | None, mask: Tensor | None, batch: int) -> None:
        if not self.config.add_cross_attention:
            if memory is not None:
                raise ValueError("encoder_hidden_states were passed to a model without add_cross_attention=True")
            return
        if memory is None:
            raise ValueError("a model with add_cross_attention=True needs encoder_hidden_states")
        width = self.attention.combine.in_features - self.config.hidden_size
        if memory.dim() != 3 or memory.shape[0] != batch or memory.shape[-1] != width:
            raise ValueError(
                f"encoder_hidden_states has shape {tuple(memory.shape)}, expected ({batch}, source length, {width})"
            )
        valid_steps(mask, batch, memory.shape[1], 0, "encoder_attention_mask")

    def _uses_cache(self, use_cache: bool | None, cache: Cache | None) -> bool:
        if self.config.bidirectional:
            if cache is not None:
                raise ValueError("past_key_values were passed to a bidirectional model, which has no state to go on")
            return False
        # Training reads no cache, so that none is made unless it is asked for.
        return cache is not None or (self.config.use_cache and not self.training if use_cache is None else use_cache)

    def _feeds(self, layer: int) -> bool:
        """Whether a layer's cached tuple ends with the attentional vector: the top one, with input feeding."""
        config = self.config
        return config.add_cross_attention and config.input_feeding and layer == config.num_hidden_layers - 1

    def _initial_states(
        self, layers: list[RecurrentCacheLayer], embeds: Tensor, memory: Tensor | None, memory_mask: Tensor | None
    ) -> tuple[list[State] | None, Tensor | None]:
        """States and attentional vector before the first step: from the cache, else the bridge, else zeros (None)."""
        shape = torch.Size((embeds.shape[0], self.config.hidden_size))
        if layers and layers[0].states is not None:
            for index, layer in enumerate(layers):
                check_states(layer.states or (), [shape] * (self.stack.num_states + self._feeds(index)), index)
            states = [layer.states[: self.stack.num_states] for layer in layers]
            return states, layers[-1].states[-1] if self._feeds(len(layers) - 1) else None
        if memory is None:
            return None, None
        feed = embeds.new_zeros(shape) if self.config.input_feeding else None
        return self.bridge(memory, memory_mask), feed

    def _feed_steps(
        self, embedded: Tensor, mask: Tensor | None, states: list[State], feed: Tensor, attend: tuple
    ) -> tuple[list[Tensor], Tensor, Tensor, list[State], Tensor]:
        """Step by step, each attentional vector entering the next input (Luong et al. 2015, section 3.3)."""
        outputs: list[list[Tensor]] = []
        vectors, weights = [], []
        for step in range(embedded.shape[1]):
            inputs = torch.cat([embedded[:, step], feed], dim=-1).unsqueeze(1)
            step_mask = None if mask is None else mask[:, step : step + 1]
            step_outputs, states = self.stack(inputs, step_mask, states, return_states=True)
            vector, step_weights = self.attention(self.dropout(step_outputs[-1]), *attend)
            if step_mask is None:
                feed = vector.squeeze(1)
            else:
                feed = torch.where(step_mask, vector.squeeze(1), feed)
                vector = vector.masked_fill(~step_mask.unsqueeze(-1), 0.0)
            outputs.append(step_outputs)
            vectors.append(vector)
            weights.append(step_weights)
        layer_outputs = [torch.cat(layer, dim=1) for layer in zip(*outputs, strict=True)]
        return layer_outputs, torch.cat(vectors, dim=1), torch.cat(weights, dim=1), states, feed


class OutputLayer(nn.Module):
    """Dropout and, where the tied embeddings have another width, a projection to it, before `lm_head`."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        projects = config.tie_word_embeddings and config.embedding_size != config.hidden_size
        self.width = config.embedding_size if projects else config.hidden_size
        self.project = nn.Linear(config.hidden_size, self.width, bias=False) if projects else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[B, T, hidden_size]` to what `lm_head` takes."""
        return self.project(self.dropout(hidden))


class RecurrentForCausalLM(RecurrentPreTrainedModel, GenerationMixin):
    """Language model; with `add_cross_attention` the decoder of any encoder, `EncoderDecoderModel` included.

    Args:
        config: The configuration; it is copied and stays unchanged.

    Raises:
        ValueError: If `bidirectional=True`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: RecurrentConfig) -> None:
        if config.bidirectional:
            raise ValueError("bidirectional=True is impossible for a causal language model: it would see the future")
        config = resolved(config, False, is_encoder_decoder=False)
        super().__init__(config)
        self.model = RecurrentModel(config)
        self.output = OutputLayer(config)
        self.lm_head = nn.Linear(self.output.width, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict the next token at every step.

        Args:
            input_ids: See `RecurrentModel.forward`, as for all arguments not named here.
            attention_mask: See there.
            inputs_embeds: See there.
            encoder_hidden_states: See there.
            encoder_attention_mask: See there.
            past_key_values: See there.
            labels: Token ids `[B, T]`, shifted inside; -100 is ignored.
            use_cache: See there.
            output_attentions: See there.
            output_hidden_states: See there.
            logits_to_keep: Number of last steps to compute logits for, 0 for all, or their indices.
            kwargs: `num_items_in_batch` and `shift_labels` reach the loss.

        Returns:
            `logits` `[B, T, vocab_size]`, `loss` if there are labels, and what the model returned.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.output(outputs.last_hidden_state[:, keep]))
        loss = None
        if labels is not None:
            if attention_mask is not None and "shift_labels" not in kwargs:
                # A shift by one would cross the padding: into a gap, and from left padding onto the first token.
                kwargs["shift_labels"] = next_labels(labels, attention_mask[:, -labels.shape[1] :] != 0)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            cross_attentions=outputs.cross_attentions,
        )


class RecurrentForConditionalGeneration(RecurrentPreTrainedModel, GenerationMixin):
    """Encoder and attending decoder (Bahdanau et al. 2015; Luong et al. 2015).

    Args:
        config: The configuration; it is copied and stays unchanged. `bidirectional` is about the encoder.
    """

    # Saving reads which names may share memory here; which do is `get_expanded_tied_weights_keys`'s to say.
    _tied_weights_keys = {
        "decoder.embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "model.embed_tokens.weight",
    }

    def __init__(self, config: RecurrentConfig) -> None:
        config = resolved(config, True, is_encoder_decoder=True, add_cross_attention=False)
        super().__init__(config)
        self.model = RecurrentModel(encoder_config(config))
        self.decoder = RecurrentModel(decoder_config(config))
        self.output = OutputLayer(config)
        self.lm_head = nn.Linear(self.output.width, config.vocab_size, bias=False)
        self.post_init()

    @property
    def encoder(self) -> RecurrentModel:
        """The encoder. Its weights are named `model`, as in every head, so that each can start from another's."""
        return self.model

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Which weights stand for which others: target embeddings for the output, source for target embeddings."""
        source = "model.embed_tokens.weight"
        target = "decoder.embed_tokens.weight"
        tied = {}
        if self.config.share_encoder_decoder_embeddings:
            tied[target] = source
        if self.config.tie_word_embeddings:
            tied["lm_head.weight"] = tied.get(target, target)
        return tied

    def get_input_embeddings(self) -> nn.Module:
        """The source embeddings."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the source embeddings, and the target embeddings where they are shared."""
        self.model.embed_tokens = value
        if self.config.share_encoder_decoder_embeddings:
            self.decoder.embed_tokens = value  # type: ignore[assignment]

    def _resize_token_embeddings(self, new_num_tokens: int, *args: Any, **kwargs: Any) -> nn.Module:
        if not self.config.share_encoder_decoder_embeddings:
            self.decoder.embed_tokens = self._get_resized_embeddings(
                self.decoder.embed_tokens, new_num_tokens, *args, **kwargs
            )
        return super()._resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs for teacher forcing: labels `[B, T]` moved one to the right, padding for -100."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Encode the source, if it is not yet, and predict the next target token at every step.

        Args:
            input_ids: Source ids `[B, S]`.
            attention_mask: 1 at valid source positions, `[B, S]`; padding may stand anywhere.
            decoder_input_ids: Target ids `[B, T]`, starting with `decoder_start_token_id`; made of `labels` if absent.
            decoder_attention_mask: 1 at valid target positions, `[B, T]`, or `[B, past + T]` with a cache.
            encoder_outputs: The encoder's, in place of the source.
            past_key_values: Decoder state after the earlier tokens; updated in place.
            inputs_embeds: `[B, S, embedding_size]` in place of `input_ids`.
            decoder_inputs_embeds: `[B, T, embedding_size]` in place of `decoder_input_ids`.
            labels: Token ids `[B, T]`, not shifted; -100 is ignored.
            use_cache: Whether to return the decoder state.
            output_attentions: Whether to return the alignments.
            output_hidden_states: Whether to return the embeddings and each layer's output, of both sides.
            kwargs: `num_items_in_batch` reaches the loss.

        Returns:
            `logits` `[B, T, vocab_size]`, `loss` if there are labels, `cross_attentions` a tuple of one tensor
            `[B, 1, T, S]`, and the encoder's outputs.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if encoder_outputs is None:
            encoder_outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                output_hidden_states=output_hidden_states,
                return_dict=True,
            )
        elif isinstance(encoder_outputs, tuple | list):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if past_key_values is None and use_cache:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(self.output(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            # transformers' loss for this class name shifts; these labels are in step with the logits already.
            loss = self.loss_function(
                logits=logits, labels=labels, shift_labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )
