"""Backbone and heads of the recurrent families; `modeling_rnn`, `modeling_lstm` and `modeling_gru` bind the cell."""

from copy import copy

import torch
from torch import Tensor
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput

from .attention import Bridge, CrossAttention
from .configuration_base import SequenceConfig
from .configuration_recurrent import RecurrentConfig
from .convolution import Convolution
from .heads_causal import ForCausalLM
from .heads_seq2seq import ForConditionalGeneration
from .modeling_base import Backbone, BackboneState, Run, Source
from .outputs import RecurrentModelOutput
from .padding import permute_steps, take_steps, valid_first
from .pointer import Pointer
from .recurrent import KernelLayer, RecurrentLayer, RecurrentStack
from .stack import State


class RecurrentModel(Backbone):
    """Embeddings and a recurrent stack; with `add_cross_attention` a decoder that attends over encoder states.

    Args:
        config: The configuration. `bidirectional=None` means True for an encoder, False for a decoder.

    Raises:
        ValueError: If a decoder is bidirectional, or an odd width is split between directions.
    """

    config_class = RecurrentConfig
    output_class = RecurrentModelOutput
    stack_class = RecurrentStack
    concatenates_directions = True

    def make_layer(self, input_size: int, hidden_size: int) -> RecurrentLayer:
        """Create one layer and direction of the stack; a family with a cell of its own overrides it."""
        mode = self.config.family.upper()
        if mode == "RNN":
            mode = f"RNN_{self.config.hidden_act.upper()}"
        return KernelLayer(mode, input_size, hidden_size)

    def make_stack(self, config: RecurrentConfig) -> RecurrentStack:  # type: ignore[override]
        """Create the stack."""
        self.feeds = self.attends and config.input_feeding
        # An encoder passes on the ids that a decoder may copy.
        self.is_copied = config.pointer_generator and not self.attends
        self.reads_copies = config.pointer_generator and self.attends
        width, filters = config.input_width(), config.input_filters
        self.convolution = None
        if filters is not None:
            self.convolution = Convolution(width, filters, config.input_kernel_size, weight_norm=False, gain=2.0)
            width = filters
        return self.make_layers(config, width)

    def make_layers(self, config: RecurrentConfig, width: int) -> RecurrentStack:
        """Create the layers of the stack, which read vectors of a given width."""
        return RecurrentStack(
            self.make_layer,
            width + (config.hidden_size if self.feeds else 0),
            config.hidden_size,
            config.num_hidden_layers,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
            variational=config.variational_dropout,
            weight_dropout=config.weight_dropout,
            layer_norm=config.layer_norm,
            layer_sizes=config.layer_sizes,
        )

    def make_cross_attention(self, config: RecurrentConfig) -> None:  # type: ignore[override]
        """Create the attention, and the bridge from encoder states to initial states."""
        self.covers = config.coverage
        self.attention = CrossAttention(config.hidden_size, self.encoder_size, config.attention_type, self.covers)
        self.bridge = Bridge(self.encoder_size, self.stack.state_shapes(1))
        self.extra_names = ["input_feed"] * self.feeds + ["coverage"] * self.covers

    def make_memory(self, encoder_hidden_states: Tensor, encoder_embeddings: Tensor | None) -> tuple[Tensor, ...]:
        """Keys of the attention, `[B, S, A]`."""
        return (self.attention.keys(encoder_hidden_states),)

    def initial_states(self, source: Source | None) -> list[State] | None:
        """States that the bridge computes."""
        return None if source is None else self.bridge(source.hidden_states, source.mask)

    def initial_extra(self, like: Tensor, source: Source | None, cached: bool) -> dict[str, Tensor]:
        """Zeros for the last attentional vector (input feeding) and the sum of all attention weights (coverage)."""
        extra: dict[str, Tensor] = {}
        if source is not None and self.feeds:
            extra["input_feed"] = like.new_zeros(like.shape[0], self.config.hidden_size)
        if source is not None and self.covers:
            # A sum of small terms, in at least float32 whatever the model computes in.
            dtype = torch.promote_types(like.dtype, torch.float32)
            extra["coverage"] = like.new_zeros(source.hidden_states.shape[:2], dtype=dtype)
        return extra

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, char_ids: Tensor | None) -> Tensor:
        """Embeddings `[B, T, E]`; out-of-vocabulary ids, which only a decoder meets, become the unknown token."""
        return super().embed(None if input_ids is None else self.known_ids(input_ids), inputs_embeds, char_ids)

    def enter(self, embeds: Tensor, mask: Tensor | None, extra: dict[str, Tensor]) -> Tensor:
        """Convolve the embeddings, with `input_filters`; see `Backbone.enter`."""
        if self.convolution is None:
            return embeds
        if mask is None:
            return self.convolution(embeds)[0].relu()
        permutation = valid_first(mask)
        values = permute_steps(embeds, permutation.order, permutation.restore)
        values = self.convolution(values, permutation.valid)[0].relu()
        return permute_steps(values, permutation.restore, permutation.order)

    def known_ids(self, ids: Tensor) -> Tensor:
        """Replace out-of-vocabulary ids, which a pointer-generator has copied, by the unknown token."""
        if not self.reads_copies or (unknown := self.config.unk_token_id) is None:
            return ids
        return ids.masked_fill(ids >= self.embed_tokens.num_embeddings, unknown)

    def run(
        self, embedded: Tensor, mask: Tensor | None, before: BackboneState, source: Source | None, cached: bool
    ) -> Run:
        """Run the stack, and a decoder's attention; see `Backbone.run`."""
        if source is not None and self.feeds:
            return self._run_stepwise(embedded, mask, before, source)
        outputs, states = self.stack(embedded, mask, before.layers, return_states=cached)
        if source is None:
            return Run(outputs, outputs[-1], states)
        last, weights, coverage_loss = self._attend(self.dropout(outputs[-1]), mask, before.extra, source)
        if mask is not None:
            last = last.masked_fill(~mask.unsqueeze(-1), 0.0)
        return Run(outputs, last, states, [weights], coverage_loss)

    def _attend(
        self, hidden: Tensor, steps: Tensor | None, extra: dict[str, Tensor], source: Source
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Attentional vectors, weights and, with coverage, which is updated, the coverage loss."""
        keys = source.memory[0]
        if not self.covers:
            return *self.attention(hidden, source.hidden_states, keys, source.mask), None
        vectors, weights, coverage_loss, extra["coverage"] = self.attention.cover(
            hidden, extra["coverage"], steps, source.hidden_states, keys, source.mask
        )
        return vectors, weights, coverage_loss

    def _run_stepwise(self, embedded: Tensor, mask: Tensor | None, before: BackboneState, source: Source) -> Run:
        """Run step by step, feeding each attentional vector into the next input (Luong et al. 2015, section 3.3)."""
        outputs: list[list[Tensor]] = []
        vectors, weights, coverage_loss = [], [], []
        states, input_feed = before.layers, before.extra["input_feed"]
        masks, top_mask = self.stack.draw_masks(embedded), self.dropout.mask(input_feed.unsqueeze(1))
        for step in range(embedded.shape[1]):
            inputs = torch.cat([embedded[:, step], input_feed], dim=-1).unsqueeze(1)
            step_mask = None if mask is None else mask[:, step : step + 1]
            step_outputs, states = self.stack(inputs, step_mask, states, return_states=True, dropout_masks=masks)
            top = self.dropout(step_outputs[-1], top_mask)
            vector, step_weights, step_coverage_loss = self._attend(top, step_mask, before.extra, source)
            if step_mask is None:
                input_feed = vector.squeeze(1)
            else:
                input_feed = torch.where(step_mask, vector.squeeze(1), input_feed)
                vector = vector.masked_fill(~step_mask.unsqueeze(-1), 0.0)
            outputs.append(step_outputs)
            vectors.append(vector)
            weights.append(step_weights)
            coverage_loss.append(step_coverage_loss)
        before.extra["input_feed"] = input_feed
        layer_outputs = [torch.cat(layer, dim=1) for layer in zip(*outputs, strict=True)]
        covered = torch.cat(coverage_loss, dim=1) if self.covers else None
        return Run(layer_outputs, torch.cat(vectors, dim=1), states, [torch.cat(weights, dim=1)], covered)

    def more_outputs(
        self, input_ids: Tensor | None, entered: Tensor, source: Source | None, run: Run
    ) -> dict[str, Tensor | None]:
        """Ids for a pointer-generator to copy, and the coverage loss."""
        return {"input_ids": input_ids if self.is_copied else None, "overlaps": run.coverage_loss}


class RecurrentForCausalLM(ForCausalLM):
    """Language model with activation regularisation, AR and TAR (Merity et al. 2018, section 4.3)."""

    def penalty(self, raw: Tensor, dropped: Tensor, predicts: Tensor, mask: Tensor | None) -> Tensor | None:
        """AR and TAR, summed over the steps with a label; see `ForCausalLM.penalty`."""
        alpha, beta = self.config.activation_regularization, self.config.temporal_activation_regularization
        terms = []
        if alpha:
            terms.append(alpha * (dropped.pow(2).mean(dim=-1) * predicts).sum())
        if beta:
            if mask is not None:
                order = valid_first(mask).order
                raw, predicts = take_steps(raw, order), predicts.gather(1, order)
            slowness = (raw[:, 1:] - raw[:, :-1]).pow(2).mean(dim=-1)
            terms.append(beta * (slowness * predicts[:, 1:]).sum())
        return sum(terms) if terms else None


class RecurrentForConditionalGeneration(ForConditionalGeneration):
    """Encoder and attending decoder (Bahdanau et al. 2015; Luong et al. 2015); see `ForConditionalGeneration`.

    With `pointer_generator` it copies source words, with `coverage` it learns not to repeat itself (See et al. 2017).
    """

    encoder_extra = "input_ids"

    def make_pointer(self, config: SequenceConfig) -> Pointer | None:
        """The pointer, with `pointer_generator`."""
        return Pointer(self.config) if self.config.pointer_generator else None

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs for teacher forcing `[B, T]`; out-of-vocabulary labels become the unknown token."""
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
        """Scores of generated tokens; see `GenerationMixin.compute_transition_scores`.

        The original assumes scores as wide as the config's vocabulary; those of a pointer-generator are wider.
        """
        wide = copy(self)
        wide.config = copy(self.config)
        wide.config.vocab_size = scores[0].shape[-1]
        return GenerationMixin.compute_transition_scores(wide, sequences, scores, beam_indices, normalize_logits)
