"""Head of sequence-to-sequence models."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import ModelOutput, Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from .cache import takes_past_key_values
from .configuration_base import SequenceConfig
from .generation import SequenceGenerationMixin, Step, is_bare
from .modeling_base import Backbone, Head
from .output_layer import OutputLayer, steps_to_keep
from .pointer import Pointer
from .shapes import check_shape


class ForConditionalGeneration(Head, SequenceGenerationMixin):
    """Sequence-to-sequence model: an encoder and a decoder that attends over its states.

    Args:
        config: The configuration; it is copied and stays unchanged. `bidirectional` refers to the encoder.

    Raises:
        ValueError: If there are `adaptive_softmax_cutoffs` or `num_negatives`, or if the id of the padding or the
            first one of targets is out of vocabulary.
    """

    generated_ids = "decoder_input_ids"
    # A subclass of the backbone's class: transformers finds the base model, which is the encoder, by its exact class.
    decoder_class: ClassVar[type[Backbone]]
    # Name of the second tensor in a tuple of encoder outputs, after the last hidden state.
    encoder_extra: ClassVar[str]
    # Names that may share memory, which saving reads; `get_expanded_tied_weights_keys` tells which ones do.
    _tied_weights_keys = {
        "decoder.embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "model.embed_tokens.weight",
    }

    def __init__(self, config: SequenceConfig) -> None:
        if config.adaptive_softmax_cutoffs is not None:
            raise ValueError("adaptive_softmax_cutoffs are those of a causal language model; leave them out")
        if config.num_negatives is not None:
            raise ValueError("num_negatives is that of a causal language model; leave it out")
        for name in ("decoder_start_token_id", "pad_token_id"):
            token = getattr(config, name)
            if token is not None and not 0 <= token < config.vocab_size:
                config.raise_invalid(name, f"targets are made of it, and vocab_size is {config.vocab_size}")
        config = config.resolved("ForConditionalGeneration", is_encoder_decoder=True, add_cross_attention=False)
        config.check_output_layer()
        super().__init__(config)
        self.model = self.backbone_class(config.encoder_config())
        self.decoder = self.decoder_class(config.decoder_config())
        self.output = OutputLayer(config)
        self.lm_head = nn.Linear(self.output.width, config.vocab_size, bias=config.lm_head_bias)
        self.pointer = self.make_pointer(config)
        self.post_init()

    @property
    def encoder(self) -> Backbone:
        """The encoder. Its weights are named `model`, as in all heads, so that any can be initialised from another."""
        return self.model

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Tied weights: target embeddings to source embeddings, the output layer to target embeddings."""
        source = "model.embed_tokens.weight"
        target = "decoder.embed_tokens.weight"
        tied = {}
        if self._shares_embeddings():
            tied[target] = source
        if self.config.tie_word_embeddings:
            tied["lm_head.weight"] = tied.get(target, target)
        return tied

    def _shares_embeddings(self) -> bool:
        return self.config.share_encoder_decoder_embeddings and self.config.input_size is None

    def get_input_embeddings(self) -> nn.Module:
        """Return the source embeddings, or those of the target if the source is features."""
        return (self.model if self.config.input_size is None else self.decoder).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the source embeddings, and the target embeddings where they are shared or the only ones."""
        if self.config.input_size is None:
            self.model.set_input_embeddings(value)
        if self.config.input_size is not None or self.config.share_encoder_decoder_embeddings:
            self.decoder.set_input_embeddings(value)

    def _resize_token_embeddings(self, new_num_tokens: int, *args: Any, **kwargs: Any) -> nn.Module:
        if self.config.input_size is None and not self.config.share_encoder_decoder_embeddings:
            self.decoder.embed_tokens = self._get_resized_embeddings(
                self.decoder.embed_tokens, new_num_tokens, *args, **kwargs
            )
        return super()._resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs for teacher forcing: labels `[B, T]` shifted right, with padding in place of -100.

        Raises:
            ValueError: If the config has no `decoder_start_token_id` or no `pad_token_id`, or the shape is wrong.
        """
        check_shape("labels", labels.shape, ("batch", "length"))
        for name in ("decoder_start_token_id", "pad_token_id"):
            if getattr(self.config, name) is None:
                raise ValueError(f"{name} is None: set it in the config, or pass decoder_input_ids beside the labels")
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def make_pointer(self, config: SequenceConfig) -> Pointer | None:
        """Pointer that copies from the source; None by default."""
        return None

    def encoder_kwargs(self, encoder_outputs: ModelOutput) -> dict[str, Tensor | None]:
        """Encoder outputs the decoder consumes, keyed by argument name."""
        return {"encoder_hidden_states": encoder_outputs["last_hidden_state"]}

    def _as_output(self, encoder_outputs: ModelOutput | tuple[Tensor | tuple[Tensor, ...], ...]) -> ModelOutput:
        """Encoder outputs by name. A tuple omits fields that are None, but the types of its items identify them."""
        if not isinstance(encoder_outputs, tuple | list):
            return encoder_outputs
        tensors = [part for part in encoder_outputs if isinstance(part, Tensor)]
        layers = [part for part in encoder_outputs if isinstance(part, tuple | list)]
        fields = dict(zip(("last_hidden_state", self.encoder_extra), tensors, strict=False))
        return self.backbone_class.output_class(**fields, hidden_states=layers[0] if layers else None)

    def _source_mask(self, attention_mask: Tensor | None, encoder_outputs: ModelOutput) -> Tensor | None:
        """Mask `[B, S]` of the encoder states, fewer than frames if these are stacked."""
        return self.encoder.mask_of_steps(attention_mask, encoder_outputs["last_hidden_state"].shape[1])

    @takes_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[Tensor, ...] | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
        copy_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Encode the source, unless `encoder_outputs` are given, and predict the next target token at every step.

        Args:
            input_ids: Source ids `[B, S]`.
            attention_mask: 1 at valid source positions, `[B, S]`; padding may be anywhere.
            decoder_input_ids: Target ids `[B, T]` from `decoder_start_token_id` on; made from `labels` if absent.
            decoder_attention_mask: 1 at valid target positions, `[B, T]`, or `[B, past + T]` with a cache.
            encoder_outputs: Outputs of the encoder, in place of the source.
            cache: Decoder state after the earlier tokens; updated in place.
            inputs_embeds: `[B, S, embedding_size]` in place of `input_ids`.
            decoder_inputs_embeds: `[B, T, embedding_size]` in place of `decoder_input_ids`.
            input_features: Frames of features, `[B, S, input_size]`, in place of `input_ids` if the config has an
                `input_size`, or of pixels, `[B, S, C, H, W]`, if it has a `frame_shape`; `attention_mask` is of the
                frames, also where they are stacked.
            labels: Token ids `[B, T]`, not shifted; -100 is ignored. With `copy_ids` they may contain ids of these.
            copy_ids: Ids that a pointer-generator copies from the source positions, `[B, S]`: those of the words, or
                `vocab_size` + j for an out-of-vocabulary word that first occurs at position j. None copies
                `input_ids`.
            use_cache: Whether to return the decoder state.
            output_attentions: Whether to return the weights of the cross-attention.
            output_hidden_states: Whether to return the embeddings and each layer's output, of both sides.
            logits_to_keep: Number of last target steps to compute logits for, 0 for all, or their indices, or a mask
                `[B, T]` that is True at them. A mask of the steps with labels saves the output layer, the most
                expensive part of a training step, at padding.
            kwargs: `num_items_in_batch` is passed to the loss.

        Returns:
            `logits` `[B, T, vocab_size]`, with `copy_ids` `[B, T, vocab_size + S]`, or for a mask of N steps
            `[N, vocab_size]`, row by row; `loss` if there are labels (in training with `penalty`), `cross_attentions`,
            tensors `[B, 1, T, S]`, and the encoder's outputs.

        Raises:
            ValueError: If shapes do not match.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if encoder_outputs is None:
            encoded = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                input_features=input_features,
                output_hidden_states=output_hidden_states,
                return_dict=True,
            )
        else:
            encoded = self._as_output(encoder_outputs)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            **self.encoder_kwargs(encoded),
            encoder_attention_mask=self._source_mask(attention_mask, encoded),
            cache=cache,
            use_cache=use_cache,
            output_attentions=output_attentions or self.pointer is not None,
            output_hidden_states=output_hidden_states or self.pointer is not None,
            return_dict=True,
        )
        hidden = self.output(outputs.last_hidden_state)[0]
        if self.pointer is None:
            logits = self.lm_head(steps_to_keep(hidden, logits_to_keep))
        else:
            # The mixture needs all steps, to align with the attention weights.
            logits = self.pointer(self.lm_head(hidden), outputs, encoded, input_ids, copy_ids)
            logits = steps_to_keep(logits, logits_to_keep)
        if self.pointer is None and copy_ids is not None:
            raise ValueError("copy_ids were passed to a model without pointer_generator=True")
        loss = None
        if labels is not None:
            check_shape("labels", labels.shape, outputs.last_hidden_state.shape[:2])
            predicts = labels != -100
            labels = steps_to_keep(labels, logits_to_keep)
            # transformers' loss for this class name shifts labels, unless it gets them as shifted already.
            loss = self.loss_function(
                logits=logits, labels=labels, shift_labels=labels, vocab_size=logits.shape[-1], **kwargs
            )
            penalty = self.penalty(outputs, predicts) if self.training else None
            if penalty is not None:
                # Divided like the loss, so that it sums up correctly over accumulated and distributed batches.
                count = kwargs.get("num_items_in_batch")
                loss = loss + penalty / (predicts.sum() if count is None else count)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.hidden_states if output_hidden_states else None,
            cross_attentions=outputs.cross_attentions if output_attentions else None,
            encoder_last_hidden_state=encoded["last_hidden_state"],
            encoder_hidden_states=encoded.get("hidden_states"),
        )

    def supports_decode_step(self) -> bool:
        """Return True if `make_decode_step` computes what `forward` does; never with a pointer."""
        bare = is_bare(self, ForConditionalGeneration.forward) and isinstance(self.decoder, Backbone)
        return bare and self.pointer is None and self.decoder.supports_decode_step()

    def make_decode_step(self, cache: Cache, **kwargs: Any) -> Step:
        """Step from the newest ids `[B, 1]` to logits `[B, V]`; see `SequenceGenerationMixin`."""
        outputs = self._as_output(kwargs["encoder_outputs"])
        mask = self._source_mask(kwargs.get("attention_mask"), outputs)
        hidden_step = self.decoder.make_decode_step(cache, **self.encoder_kwargs(outputs), encoder_attention_mask=mask)
        return lambda ids: self.lm_head(self.output(hidden_step(ids))[0])[:, -1]

    def penalty(self, outputs: ModelOutput, predicts: Tensor) -> Tensor | None:
        """Auxiliary training loss, summed over steps; None by default.

        Args:
            outputs: Outputs of the decoder.
            predicts: True at steps with a label, `[B, T]`.
        """
        return None
