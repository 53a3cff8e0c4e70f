"""Backbone of the recurrent families; `modeling_rnn`, `modeling_lstm` and `modeling_gru` bind the cell."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .attention import Bridge, CrossAttention
from .cache import RecurrentCacheLayer, cache_layers, check_states, takes_past_key_values
from .characters import CharacterEncoder
from .configuration_base import SequenceConfig
from .configuration_recurrent import RecurrentConfig
from .dropout import Dropout
from .generation import Step, is_bare
from .heads_causal import ForCausalLM
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_seq2seq import ForConditionalGeneration
from .modeling_base import Backbone, SequencePreTrainedModel
from .outputs import RecurrentModelOutput
from .padding import align, take_steps, valid_steps
from .pointer import Pointer, transition_scores
from .recurrent import RecurrentStack, State


class RecurrentPreTrainedModel(SequencePreTrainedModel):
    """Bound to the configuration of recurrent models."""

    config_class = RecurrentConfig


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
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.characters = CharacterEncoder(config) if config.char_encoder else None
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        self.stack = RecurrentStack(
            config.family.lower(),
            config.input_width() + (hidden if config.add_cross_attention and config.input_feeding else 0),
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
            self.attention = CrossAttention(hidden, memory, config.attention_type, config.coverage)
            self.bridge = Bridge(memory, hidden, config.num_hidden_layers, self.stack.num_states)
        # What a decoder carries from step to step beside the states of its layers; see `_initial_states`.
        carries = {"feed": config.input_feeding, "coverage": config.coverage} if config.add_cross_attention else {}
        self.carries = [name for name, does in carries.items() if does]
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
        cache: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> RecurrentModelOutput:
        """Run the stack.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`, or `[B, past + T]` with a cache; padding may stand anywhere.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`.
            char_ids: Characters of each token, `[B, T, L]`, 0 after the last of each, if `char_encoder` says so.
            encoder_hidden_states: `[B, S, M]`, for a decoder with cross-attention.
            encoder_attention_mask: 1 at valid encoder states, `[B, S]`.
            cache: State after the earlier tokens; updated in place.
            use_cache: Whether to return the state; never for a bidirectional stack.
            output_attentions: Whether to return the attention weights.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            kwargs: Ignored.

        Returns:
            `last_hidden_state` `[B, T, H]` (with cross-attention: the attentional vectors), zero at padding;
            `cross_attentions` a tuple of one tensor `[B, 1, T, S]`; `hidden_states` of `num_hidden_layers + 1`; and
            what a pointer-generator and coverage need.

        Raises:
            ValueError: If shapes do not fit, or both or none of `input_ids` and `inputs_embeds` are given.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds, char_ids)
        batch, length, _ = inputs_embeds.shape
        memory_mask = self.check_memory(encoder_hidden_states, encoder_attention_mask, batch)
        use_cache = self.uses_cache(use_cache, cache)
        layers: list[RecurrentCacheLayer] = []
        if use_cache:
            cache = DynamicCache() if cache is None else cache
            layers = cache_layers(cache, self.config.num_hidden_layers, self.config.model_type)
        past = layers[0].seen if layers else 0
        mask = valid_steps(attention_mask, batch, length, past, "attention_mask")

        states, carried = self._initial_states(layers, inputs_embeds, encoder_hidden_states, memory_mask)
        embedded = self.dropout(inputs_embeds)
        attend = None
        if encoder_hidden_states is not None:
            memory = layers[0].memory if layers else None
            if memory is None:
                memory = (self.attention.keys(encoder_hidden_states),)
            attend = (encoder_hidden_states, *memory, memory_mask)
            if layers:
                layers[0].memory = memory
        outputs, last, weights, overlaps, states = self._run(embedded, mask, states, carried, attend, use_cache)
        self._keep(layers, states, carried, length)
        attentions = self.outputs_of("output_attentions", output_attentions) and weights is not None
        hidden_states = self.outputs_of("output_hidden_states", output_hidden_states)
        copied = self.config.pointer_generator and not self.config.add_cross_attention
        return RecurrentModelOutput(
            last_hidden_state=last,
            input_ids=input_ids if copied else None,
            cache=cache if use_cache else None,
            hidden_states=(embedded, *outputs) if hidden_states else None,
            cross_attentions=(weights.unsqueeze(1),) if attentions else None,
            overlaps=overlaps,
        )

    def can_step(self) -> bool:
        """See `Backbone`."""
        bare = is_bare(self, RecurrentModel.forward) and is_bare(self.stack, RecurrentStack.forward)
        return bare and not self.training and self.characters is None

    def stepper(self, cache: Cache, **memory: Tensor | None) -> Step:
        """See `Backbone`."""
        layers = cache_layers(cache, self.config.num_hidden_layers, self.config.model_type)
        states, attend = memory.get("encoder_hidden_states"), None
        if states is not None:
            mask = self.check_memory(states, memory.get("encoder_attention_mask"), len(states))
            attend = (states, *(layers[0].memory or ()), mask)

        def advance(ids: Tensor) -> Tensor:
            before, carried = self._kept_states(layers)
            _, last, _, _, after = self._run(self.embed_tokens(ids), None, before, carried, attend, True)
            self._keep(layers, after, carried, 1)
            return last

        return advance

    def _run(
        self,
        embedded: Tensor,
        mask: Tensor | None,
        states: list[State] | None,
        carried: dict[str, Tensor],
        attend: tuple | None,
        return_states: bool,
    ) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None, list[State] | None]:
        """Output of each layer, what is on top of them, weights and coverage loss of attention, states.

        Args:
            embedded: Inputs `[B, T, E]`.
            mask: True at valid steps, `[B, T]`, or None.
            states: Before the first step; None for zeros.
            carried: See `_initial_states`; brought up to date.
            attend: Encoder states, the attention's keys and the mask of both; None where there are none.
            return_states: Whether the states after the last step are wanted.
        """
        if attend is not None and self.config.input_feeding:
            assert states is not None  # the bridge's, or the cache's
            return self._feed_steps(embedded, mask, states, carried, attend)
        outputs, states = self.stack(embedded, mask, states, return_states=return_states)
        if attend is None:
            return outputs, outputs[-1], None, None, states
        last, weights, overlaps = self._attend(self.dropout(outputs[-1]), mask, carried, attend)
        if mask is not None:
            last = last.masked_fill(~mask.unsqueeze(-1), 0.0)
        return outputs, last, weights, overlaps, states

    def _keep(
        self, layers: list[RecurrentCacheLayer], states: list[State] | None, carried: dict[str, Tensor], length: int
    ) -> None:
        """Put the states after `length` more tokens into the cache, if there is one."""
        for index, layer in enumerate(layers):
            extra = tuple(carried.values()) if index == len(layers) - 1 else ()
            layer.update((states or [])[index] + extra, length)

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, char_ids: Tensor | None) -> Tensor:
        """See `Backbone.embed`; a word beyond the vocabulary, which only a decoder meets, is the unknown token."""
        return super().embed(None if input_ids is None else self.known_ids(input_ids), inputs_embeds, char_ids)

    def known_ids(self, ids: Tensor) -> Tensor:
        """The unknown token in place of what a pointer-generator's decoder has copied from beyond the vocabulary."""
        unknown = self.config.unk_token_id
        if unknown is None or not (self.config.pointer_generator and self.config.add_cross_attention):
            return ids
        return ids.masked_fill(ids >= self.embed_tokens.num_embeddings, unknown)

    def _initial_states(
        self, layers: list[RecurrentCacheLayer], embeds: Tensor, memory: Tensor | None, memory_mask: Tensor | None
    ) -> tuple[list[State] | None, dict[str, Tensor]]:
        """States before the first step, from the cache, else the bridge, else zeros (None).

        And what a decoder carries from step to step beside them, at the end of the top layer's cached tuple: with
        input feeding the attentional vector, with coverage the sum of all weights.
        """
        batch = embeds.shape[0]
        carried = {}
        if "feed" in self.carries:
            carried["feed"] = embeds.new_zeros(batch, self.config.hidden_size)
        if memory is not None and "coverage" in self.carries:
            # A sum of small parts, even where the model computes with fewer bits.
            wide = torch.promote_types(embeds.dtype, torch.float32)
            carried["coverage"] = embeds.new_zeros(batch, memory.shape[1], dtype=wide)
        if not layers or layers[0].states is None:
            return None if memory is None else self.bridge(memory, memory_mask), carried
        count, shape = self.stack.num_states, torch.Size((batch, self.config.hidden_size))
        for index, layer in enumerate(layers):
            extra = [value.shape for value in carried.values()] if index == len(layers) - 1 else []
            check_states(layer.states or (), [shape] * count + extra, index)
        return self._kept_states(layers)

    def _kept_states(self, layers: list[RecurrentCacheLayer]) -> tuple[list[State], dict[str, Tensor]]:
        """See `_initial_states`, of a cache that is filled."""
        count = self.stack.num_states
        states = [(layer.states or ())[:count] for layer in layers]
        return states, dict(zip(self.carries, (layers[-1].states or ())[count:], strict=True))

    def first_states(
        self, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None
    ) -> tuple[list[State], tuple[Tensor, ...]]:
        """What the cache of a decoder holds before its first token: each layer's states, and the attention's keys.

        Args:
            encoder_hidden_states: `[B, S, M]`.
            encoder_attention_mask: 1 at valid encoder states, `[B, S]`.
        """
        mask = self.check_memory(encoder_hidden_states, encoder_attention_mask, encoder_hidden_states.shape[0])
        states, carried = self._initial_states([], encoder_hidden_states, encoder_hidden_states, mask)
        layers = [tuple(state) for state in states or ()]
        return [*layers[:-1], layers[-1] + tuple(carried.values())], (self.attention.keys(encoder_hidden_states),)

    def _attend(
        self, states: Tensor, steps: Tensor | None, carried: dict[str, Tensor], attend: tuple
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Attentional vectors, weights and, with coverage, which is brought up to date, the coverage loss."""
        if not self.config.coverage:
            return *self.attention(states, *attend), None
        before = carried["coverage"]
        vectors, weights, overlaps, carried["coverage"] = self.attention.cover(states, before, steps, *attend)
        return vectors, weights, overlaps

    def _feed_steps(
        self, embedded: Tensor, mask: Tensor | None, states: list[State], carried: dict[str, Tensor], attend: tuple
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None, list[State]]:
        """Step by step, each attentional vector entering the next input (Luong et al. 2015, section 3.3)."""
        outputs: list[list[Tensor]] = []
        vectors, weights, overlaps = [], [], []
        feed = carried["feed"]
        noise, drop = self.stack.noise(embedded), self.dropout.mask(feed.unsqueeze(1))
        for step in range(embedded.shape[1]):
            inputs = torch.cat([embedded[:, step], feed], dim=-1).unsqueeze(1)
            step_mask = None if mask is None else mask[:, step : step + 1]
            step_outputs, states = self.stack(inputs, step_mask, states, return_states=True, noise=noise)
            top = self.dropout(step_outputs[-1], drop)
            vector, step_weights, step_overlaps = self._attend(top, step_mask, carried, attend)
            if step_mask is None:
                feed = vector.squeeze(1)
            else:
                feed = torch.where(step_mask, vector.squeeze(1), feed)
                vector = vector.masked_fill(~step_mask.unsqueeze(-1), 0.0)
            outputs.append(step_outputs)
            vectors.append(vector)
            weights.append(step_weights)
            overlaps.append(step_overlaps)
        carried["feed"] = feed
        layer_outputs = [torch.cat(layer, dim=1) for layer in zip(*outputs, strict=True)]
        covered = torch.cat(overlaps, dim=1) if self.config.coverage else None
        return layer_outputs, torch.cat(vectors, dim=1), torch.cat(weights, dim=1), covered, states


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
    """Encoder and attending decoder (Bahdanau et al. 2015; Luong et al. 2015); see `ForConditionalGeneration`.

    With `pointer_generator` it copies, with `coverage` it learns not to repeat itself (See et al. 2017).
    """

    decoder_class = RecurrentModel
    encoder_output_class = RecurrentModelOutput
    encoder_extra = "input_ids"

    def make_pointer(self, config: SequenceConfig) -> Pointer | None:
        """The pointer, if the config says so."""
        return Pointer(self.config) if self.config.pointer_generator else None

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """See `ForConditionalGeneration`; labels beyond the vocabulary become the unknown token."""
        return self.decoder.known_ids(super().prepare_decoder_input_ids_from_labels(labels))

    def penalty(self, outputs: ModelOutput, predicts: Tensor) -> Tensor | None:
        """The weighted coverage loss (See et al. 2017, eq. 13); see `ForConditionalGeneration.penalty`."""
        if not self.config.coverage:
            return None
        return self.config.coverage_loss_weight * (outputs["overlaps"] * predicts).sum()

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: tuple[Tensor, ...],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """See `GenerationMixin`; a pointer-generator's scores may be wider than the vocabulary."""
        if self.pointer is None:
            return super().compute_transition_scores(sequences, scores, beam_indices, normalize_logits)  # type: ignore[misc]
        return transition_scores(sequences, scores, beam_indices, normalize_logits)


class RecurrentForSequenceClassification(RecurrentPreTrainedModel, ForSequenceClassification):
    """Classifier or regressor of sequences; see `ForSequenceClassification`."""


class RecurrentForTokenClassification(RecurrentPreTrainedModel, ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""
