"""Backbone of the recurrent families; `modeling_rnn`, `modeling_lstm` and `modeling_gru` bind the cell."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.generic import can_return_tuple

from .alignment import align, take_steps, valid_steps
from .attention import Bridge, CrossAttention
from .cache import RecurrentCacheLayer, cache_layers, check_states
from .configuration_recurrent import RecurrentConfig
from .dropout import Dropout
from .modeling_base import Backbone, SequencePreTrainedModel
from .modeling_heads import ForCausalLM, ForConditionalGeneration, ForSequenceClassification, ForTokenClassification
from .recurrent import RecurrentLayer, RecurrentStack, State


class RecurrentPreTrainedModel(SequencePreTrainedModel):
    """Initialisation of recurrent layers."""

    config_class = RecurrentConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Orthogonal recurrent and Xavier input matrices gate by gate, forget-gate bias 1 (Jozefowicz et al. 2015)."""
        super()._init_weights(module)
        if not isinstance(module, RecurrentLayer):
            return
        gates = module.weight_hh_l0.shape[0] // module.hidden_size
        for name, parameter in module.named_parameters(recurse=False):
            # The parts are views, which do not carry the mark of a loaded parameter.
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if name.startswith("bias"):
                init.zeros_(parameter)
                if module.mode == "LSTM" and name.startswith("bias_ih"):
                    init.ones_(parameter.chunk(gates)[1])
                continue
            for gate in parameter.chunk(gates):
                (init.orthogonal_ if name.startswith("weight_hh") else init.xavier_uniform_)(gate)


class RecurrentModel(RecurrentPreTrainedModel, Backbone):
    """Embeddings and a recurrent stack; with `add_cross_attention` a decoder that attends over encoder states.

    Args:
        config: The configuration. `bidirectional=None` means True for an encoder, False for a decoder.

    Raises:
        ValueError: If a decoder is to be bidirectional, or an odd `hidden_size` split between directions.
    """

    has_two_halves = True

    def __init__(self, config: RecurrentConfig) -> None:
        if config.is_encoder_decoder:
            config = config.encoder_config()
        elif not config.is_resolved():
            config = config.resolved("Model")
        if config.bidirectional and config.add_cross_attention:
            raise ValueError("bidirectional=True is impossible with add_cross_attention=True: a decoder reads forward")
        if config.bidirectional:
            config.check_directions()
        super().__init__(config)
        hidden, embedding = config.hidden_size, config.embedding_size
        self.embed_tokens = nn.Embedding(config.vocab_size, embedding)
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        self.stack = RecurrentStack(
            config.family.lower(),
            embedding + (hidden if config.add_cross_attention and config.input_feeding else 0),
            hidden,
            config.num_hidden_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
            nonlinearity=getattr(config, "hidden_act", "tanh"),
            locked=config.variational_dropout,
            weight_dropout=config.weight_dropout,
            layer_norm=config.layer_norm,
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
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        batch, length, _ = inputs_embeds.shape
        memory_mask = self.check_memory(encoder_hidden_states, encoder_attention_mask, batch)
        use_cache = self.uses_cache(use_cache, past_key_values)
        layers: list[RecurrentCacheLayer] = []
        if use_cache:
            past_key_values = DynamicCache() if past_key_values is None else past_key_values
            layers = cache_layers(past_key_values, self.config.num_hidden_layers, self.config.model_type)
        past = layers[0].seen if layers else 0
        mask = valid_steps(attention_mask, batch, length, past, "attention_mask")

        states, feed = self._initial_states(layers, inputs_embeds, encoder_hidden_states, memory_mask)
        embedded = self.dropout(inputs_embeds)
        weights = None
        if encoder_hidden_states is None:
            outputs, states = self.stack(embedded, mask, states, return_states=use_cache)
            last = outputs[-1]
        else:
            memory = layers[0].memory if layers else None
            if memory is None:
                memory = (self.attention.keys(encoder_hidden_states),)
            attend = (encoder_hidden_states, *memory, memory_mask)
            if self.config.input_feeding:
                outputs, last, weights, states, feed = self._feed_steps(embedded, mask, states, feed, attend)
            else:
                outputs, states = self.stack(embedded, mask, states, return_states=use_cache)
                last, weights = self.attention(self.dropout(outputs[-1]), *attend)
                if mask is not None:
                    last = last.masked_fill(~mask.unsqueeze(-1), 0.0)
            if use_cache:
                layers[0].memory = memory
        for index, layer in enumerate(layers):
            extra = (feed,) if self._feeds(index) else ()
            layer.update(states[index] + extra, length)
        attentions = self.outputs_of("output_attentions", output_attentions) and weights is not None
        hidden_states = self.outputs_of("output_hidden_states", output_hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=last,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(embedded, *outputs) if hidden_states else None,
            cross_attentions=(weights.unsqueeze(1),) if attentions else None,
        )

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
        noise, drop = self.stack.noise(embedded), self.dropout.mask(feed.unsqueeze(1))
        for step in range(embedded.shape[1]):
            inputs = torch.cat([embedded[:, step], feed], dim=-1).unsqueeze(1)
            step_mask = None if mask is None else mask[:, step : step + 1]
            step_outputs, states = self.stack(inputs, step_mask, states, return_states=True, noise=noise)
            vector, step_weights = self.attention(self.dropout(step_outputs[-1], drop), *attend)
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


class RecurrentForCausalLM(RecurrentPreTrainedModel, ForCausalLM):
    """Language model; see `ForCausalLM`. AR and TAR (Merity et al. 2018, section 4.3) are its own."""

    def penalty(self, raw: Tensor, dropped: Tensor, predicts: Tensor, mask: Tensor | None) -> Tensor | None:
        """AR and TAR, summed over the steps that predict something; see `ForCausalLM.penalty`."""
        alpha, beta = self.config.activation_regularization, self.config.temporal_activation_regularization
        terms = []
        if alpha:
            terms.append(alpha * (dropped.pow(2).mean(dim=-1) * predicts).sum())
        if beta:
            if mask is not None:
                order = align(mask).order
                raw, predicts = take_steps(raw, order), predicts.gather(1, order)
            slowness = (raw[:, 1:] - raw[:, :-1]).pow(2).mean(dim=-1)
            terms.append(beta * (slowness * predicts[:, 1:]).sum())
        return sum(terms) if terms else None


class RecurrentForConditionalGeneration(RecurrentPreTrainedModel, ForConditionalGeneration):
    """Encoder and attending decoder (Bahdanau et al. 2015; Luong et al. 2015); see `ForConditionalGeneration`."""

    decoder_class = RecurrentModel


class RecurrentForSequenceClassification(RecurrentPreTrainedModel, ForSequenceClassification):
    """Classifier or regressor of sequences; see `ForSequenceClassification`."""


class RecurrentForTokenClassification(RecurrentPreTrainedModel, ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""
