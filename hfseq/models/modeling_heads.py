"""The heads of all families, written against a backbone class."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import (
    CausalLMOutputWithCrossAttentions,
    ModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from .adaptive_softmax import AdaptiveSoftmax
from .cache import takes_past_key_values
from .configuration_base import SequenceConfig
from .crf import LinearChainCrf
from .dropout import Dropout
from .generation import SequenceGenerationMixin, Step, is_bare
from .modeling_base import Backbone, SequencePreTrainedModel
from .padding import next_labels, valid_steps
from .pointer import Pointer
from .pooling import Pooling


class OutputLayer(nn.Module):
    """Dropout and, where the tied embeddings have another width, a projection to it, before `lm_head`."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        projects = config.tie_word_embeddings and config.embedding_size != config.hidden_size
        self.width = config.embedding_size if projects else config.hidden_size
        self.project = nn.Linear(config.hidden_size, self.width, bias=False) if projects else None

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[B, T, hidden_size]` to what `lm_head` takes; the hidden states after dropout come second."""
        dropped = self.dropout(hidden) if self.training else hidden
        return dropped if self.project is None else self.project(dropped), dropped


class ForCausalLM(SequencePreTrainedModel, SequenceGenerationMixin):
    """Language model; with `add_cross_attention` the decoder of any encoder, `EncoderDecoderModel` included.

    Args:
        config: The configuration; it is copied and stays unchanged.

    Raises:
        ValueError: If `bidirectional=True`.
    """

    backbone_class: ClassVar[type[Backbone]]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SequenceConfig) -> None:
        if config.bidirectional:
            raise ValueError("bidirectional=True is impossible for a causal language model: it would see the future")
        layers = config.encoder_layers if config.is_encoder_decoder else config.num_hidden_layers
        config = config.resolved("ForCausalLM", num_hidden_layers=layers, is_encoder_decoder=False)
        super().__init__(config)
        self.model = self.backbone_class(config)
        self.output = OutputLayer(config)
        self.lm_head = nn.Linear(self.output.width, config.vocab_size, bias=False)
        cutoffs = config.adaptive_softmax_cutoffs
        self.adaptive_softmax = None if cutoffs is None else AdaptiveSoftmax(self.output.width, cutoffs)
        self.post_init()

    @takes_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict the next token at every step.

        Args:
            input_ids: See the backbone's `forward`, as for all arguments not named here.
            attention_mask: See there.
            inputs_embeds: See there.
            encoder_hidden_states: See there.
            encoder_attention_mask: See there.
            cache: See there.
            labels: Token ids `[B, T]`, shifted inside; -100 is ignored.
            use_cache: See there.
            output_attentions: See there.
            output_hidden_states: See there.
            logits_to_keep: Number of last steps to compute logits for, 0 for all, or their indices.
            kwargs: `num_items_in_batch` and `shift_labels` reach the loss.

        Returns:
            `logits` `[B, T, vocab_size]`, but for an adaptive softmax in training with labels; `loss` if there are
            labels (in training with `penalty`), and what the model returned.

        Raises:
            ValueError: If shapes do not fit.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        raw = steps_to_keep(outputs.last_hidden_state, logits_to_keep)
        hidden, dropped = self.output(raw)
        logits = None
        if self.adaptive_softmax is None:
            logits = self.lm_head(hidden)
        elif not self.training or labels is None:
            logits = self.adaptive_softmax(hidden, self.lm_head.weight)
        loss = None
        if labels is not None:
            check_labels(labels, raw.shape[:2])
            mask = (
                None
                if attention_mask is None
                else steps_to_keep(attention_mask[:, -outputs.last_hidden_state.shape[1] :], logits_to_keep) != 0
            )
            if mask is not None and "shift_labels" not in kwargs:
                # A shift by one would cross the padding: into a gap, and from left padding onto the first token.
                kwargs["shift_labels"] = next_labels(labels, mask)
            if logits is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if self.training:
                targets = kwargs.get("shift_labels")
                targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100) if targets is None else targets
                predicts = targets != -100
                count = kwargs.get("num_items_in_batch")
                count = predicts.sum() if count is None else count
                if logits is None:
                    loss = self.adaptive_softmax.loss(hidden, self.lm_head.weight, targets) / count
                penalty = self.penalty(raw, dropped, predicts, mask)
                if penalty is not None:
                    # Divided as the loss is, so that accumulated and distributed batches add up alike.
                    loss = loss + penalty / count
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            cross_attentions=outputs.cross_attentions,
        )

    def can_step(self) -> bool:
        """See `SequenceGenerationMixin`."""
        # What wraps a module shows its methods as its own.
        return is_bare(self, ForCausalLM.forward) and isinstance(self.model, Backbone) and self.model.can_step()

    def stepper(self, cache: Cache, **kwargs: Any) -> Step:
        """See `SequenceGenerationMixin`."""
        names = ("encoder_hidden_states", "encoder_attention_mask")
        advance = self.model.stepper(cache, **{name: kwargs.get(name) for name in names})

        def step(ids: Tensor) -> Tensor:
            hidden, _ = self.output(advance(ids))
            if self.adaptive_softmax is None:
                return self.lm_head(hidden)[:, -1]
            return self.adaptive_softmax(hidden, self.lm_head.weight)[:, -1]

        return step

    def penalty(self, raw: Tensor, dropped: Tensor, predicts: Tensor, mask: Tensor | None) -> Tensor | None:
        """What training adds to the summed loss; nothing, unless a family says otherwise.

        Args:
            raw: The last layer's output `[B, T, H]`.
            dropped: The same after dropout.
            predicts: True at steps that have a label to predict, `[B, T]`.
            mask: True at valid steps, `[B, T]`, or None.
        """
        return None


class ForConditionalGeneration(SequencePreTrainedModel, SequenceGenerationMixin):
    """Sequence-to-sequence model: an encoder and a decoder that attends over its states.

    Args:
        config: The configuration; it is copied and stays unchanged. `bidirectional` is about the encoder.

    Raises:
        ValueError: If there are `adaptive_softmax_cutoffs`, or the id that starts a target, or that of the padding, is
            not one of the vocabulary.
    """

    backbone_class: ClassVar[type[Backbone]]
    decoder_class: ClassVar[type[Backbone]]
    # What a tuple of encoder outputs is read as, and the tensor that its class has beside the states.
    encoder_output_class: ClassVar[type[ModelOutput]]
    encoder_extra: ClassVar[str]
    # Saving reads which names may share memory here; which do is `get_expanded_tied_weights_keys`'s to say.
    _tied_weights_keys = {
        "decoder.embed_tokens.weight": "model.embed_tokens.weight",
        "lm_head.weight": "model.embed_tokens.weight",
    }

    def __init__(self, config: SequenceConfig) -> None:
        if config.adaptive_softmax_cutoffs is not None:
            raise ValueError("adaptive_softmax_cutoffs are those of a causal language model; leave them out")
        for name in ("decoder_start_token_id", "pad_token_id"):
            token = getattr(config, name)
            if token is not None and not 0 <= token < config.vocab_size:
                config.refuse(name, f"targets are made of it, and vocab_size is {config.vocab_size}")
        config = config.resolved("ForConditionalGeneration", is_encoder_decoder=True, add_cross_attention=False)
        super().__init__(config)
        self.model = self.backbone_class(config.encoder_config())
        self.decoder = self.decoder_class(config.decoder_config())
        self.output = OutputLayer(config)
        self.lm_head = nn.Linear(self.output.width, config.vocab_size, bias=False)
        self.pointer = self.make_pointer(config)
        self.post_init()

    @property
    def encoder(self) -> Backbone:
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
        """Decoder inputs for teacher forcing: labels `[B, T]` moved one to the right, padding for -100.

        Raises:
            ValueError: If the config says nothing of the id that starts a target, or of that of the padding.
        """
        for name in ("decoder_start_token_id", "pad_token_id"):
            if getattr(self.config, name) is None:
                raise ValueError(f"{name} is None: set it in the config, or pass decoder_input_ids beside the labels")
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def make_pointer(self, config: SequenceConfig) -> Pointer | None:
        """What copies from the source: nothing, unless a family says otherwise."""
        return None

    def memory_of(self, encoder_outputs: ModelOutput) -> dict[str, Tensor | None]:
        """What of the encoder's outputs the decoder takes, by the names of its arguments."""
        return {"encoder_hidden_states": encoder_outputs["last_hidden_state"]}

    def _as_output(self, encoder_outputs: ModelOutput | tuple[Tensor | tuple[Tensor, ...], ...]) -> ModelOutput:
        """Encoder outputs by name. A tuple lacks the fields that are None, but a part's kind tells which one it is."""
        if not isinstance(encoder_outputs, tuple | list):
            return encoder_outputs
        tensors = [part for part in encoder_outputs if isinstance(part, Tensor)]
        layers = [part for part in encoder_outputs if isinstance(part, tuple | list)]
        fields = dict(zip(("last_hidden_state", self.encoder_extra), tensors, strict=False))
        return self.encoder_output_class(**fields, hidden_states=layers[0] if layers else None)

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
        labels: Tensor | None = None,
        copy_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Encode the source, if it is not yet, and predict the next target token at every step.

        Args:
            input_ids: Source ids `[B, S]`.
            attention_mask: 1 at valid source positions, `[B, S]`; padding may stand anywhere.
            decoder_input_ids: Target ids `[B, T]`, starting with `decoder_start_token_id`; made of `labels` if absent.
            decoder_attention_mask: 1 at valid target positions, `[B, T]`, or `[B, past + T]` with a cache.
            encoder_outputs: The encoder's, in place of the source.
            cache: Decoder state after the earlier tokens; updated in place.
            inputs_embeds: `[B, S, embedding_size]` in place of `input_ids`.
            decoder_inputs_embeds: `[B, T, embedding_size]` in place of `decoder_input_ids`.
            labels: Token ids `[B, T]`, not shifted; -100 is ignored. With `copy_ids` an id may be one of theirs.
            copy_ids: What a pointer-generator copies from each source position, `[B, S]`: the id of its word or, for
                the j-th position with an unknown word or an earlier one with the same, `vocab_size` + j. None copies
                `input_ids`.
            use_cache: Whether to return the decoder state.
            output_attentions: Whether to return the alignments.
            output_hidden_states: Whether to return the embeddings and each layer's output, of both sides.
            logits_to_keep: Number of last target steps to compute logits for, 0 for all, or their indices; or True at
                the steps wanted, `[B, T]`, such as those with a label: the output layer is the larger part of a
                training step, and padding needs none of it.
            kwargs: `num_items_in_batch` reaches the loss.

        Returns:
            `logits` `[B, T, vocab_size]`, with `copy_ids` `[B, T, vocab_size + S]`, of N steps that are marked
            `[N, vocab_size]`, row by row; `loss` if there are labels (in training with `penalty`), `cross_attentions`
            a tuple of `[B, 1, T, S]`, and the encoder's outputs.

        Raises:
            ValueError: If shapes do not fit.
        """
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if encoder_outputs is None:
            encoded = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                output_hidden_states=output_hidden_states,
                return_dict=True,
            )
        else:
            encoded = self._as_output(encoder_outputs)
        if labels is not None and labels.dim() != 2:
            raise ValueError(f"labels has shape {tuple(labels.shape)}, expected (batch, length)")
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if cache is None and use_cache:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            **self.memory_of(encoded),
            encoder_attention_mask=attention_mask,
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
            # It mixes the words of all steps with what those attend to.
            logits = self.pointer(self.lm_head(hidden), outputs, encoded, input_ids, copy_ids)
            logits = steps_to_keep(logits, logits_to_keep)
        if self.pointer is None and copy_ids is not None:
            raise ValueError("copy_ids were passed to a model without pointer_generator=True")
        loss = None
        if labels is not None:
            check_labels(labels, outputs.last_hidden_state.shape[:2])
            predicts = labels != -100
            labels = steps_to_keep(labels, logits_to_keep)
            # transformers' loss for this class name shifts; these labels are in step with the logits already.
            loss = self.loss_function(
                logits=logits, labels=labels, shift_labels=labels, vocab_size=logits.shape[-1], **kwargs
            )
            penalty = self.penalty(outputs, predicts) if self.training else None
            if penalty is not None:
                # Divided as the loss is, so that accumulated and distributed batches add up alike.
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

    def can_step(self) -> bool:
        """See `SequenceGenerationMixin`; not with a pointer, which reads more than the decoder's states."""
        bare = is_bare(self, ForConditionalGeneration.forward) and isinstance(self.decoder, Backbone)
        return bare and self.pointer is None and self.decoder.can_step()

    def stepper(self, cache: Cache, **kwargs: Any) -> Step:
        """See `SequenceGenerationMixin`."""
        memory = self.memory_of(self._as_output(kwargs["encoder_outputs"]))
        advance = self.decoder.stepper(cache, **memory, encoder_attention_mask=kwargs.get("attention_mask"))
        return lambda ids: self.lm_head(self.output(advance(ids))[0])[:, -1]

    def penalty(self, outputs: ModelOutput, predicts: Tensor) -> Tensor | None:
        """What training adds to the summed loss; nothing, unless a family says otherwise.

        Args:
            outputs: The decoder's.
            predicts: True at steps that have a label, `[B, T]`.
        """
        return None


class Classifier(SequencePreTrainedModel):
    """A stack without cross-attention, dropout, and a linear layer over `num_labels`."""

    backbone_class: ClassVar[type[Backbone]]
    # What a language model or translator has beyond its stack.
    _keys_to_ignore_on_load_unexpected = [
        r"^lm_head\.",
        r"^adaptive_softmax\.",
        r"^output\.",
        r"^decoder\.",
        r"^pointer\.",
        r"^crf\.",
    ]

    def __init__(self, config: SequenceConfig, head: str) -> None:
        layers = config.encoder_layers if config.is_encoder_decoder else config.num_hidden_layers
        config = config.resolved(head, num_hidden_layers=layers, is_encoder_decoder=False, add_cross_attention=False)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.backbone_class(config)
        dropout = config.dropout if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)

    def make_classifier(self, width: int, num_labels: int) -> nn.Linear:
        """The layer from the width of what is classified to `num_labels`."""
        return nn.Linear(width, num_labels)


class ForSequenceClassification(Classifier):
    """Classifier, multi-label classifier or regressor of whole sequences: a stack, pooling and a linear layer.

    Args:
        config: The configuration; it is copied and stays unchanged. `num_labels`, `id2label` and `problem_type` mean
            what they mean in transformers.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config, "ForSequenceClassification")
        halves = self.backbone_class.has_two_halves and self.config.bidirectional
        self.pooling = Pooling(self.config.pooling, self.config.hidden_size, two_halves=halves)
        self.classifier = self.make_classifier(self.pooling.width, self.config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Score each label for each sequence.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`; padding may stand anywhere.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`.
            char_ids: Characters of each token, `[B, T, L]`, 0 after the last of each, if `char_encoder` says so.
            labels: Class ids `[B]`; floats `[B, num_labels]` for several labels at once (1 where one holds) and for
                regression, where `[B]` will do if `num_labels` is 1.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            kwargs: `num_items_in_batch` reaches the loss.

        Returns:
            `logits` `[B, num_labels]`, and `loss` if there are labels.

        Raises:
            ValueError: If shapes do not fit.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            char_ids=char_ids,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        mask = valid_steps(attention_mask, hidden.shape[0], hidden.shape[1], 0, "attention_mask")
        logits = self.classifier(self.dropout(self.pooling(hidden, mask)))
        loss = None
        if labels is not None:
            self._check_labels(labels, logits.shape[0])
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
            count = kwargs.get("num_items_in_batch")
            if count is not None and self.config.problem_type != "single_label_classification":
                # transformers' losses for these are means of the batch at hand; the Trainer, which has counted the
                # labels of all the batches that it adds up, does not divide again.
                loss = loss * labels.numel() / count
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _check_labels(self, labels: Tensor, batch: int) -> None:
        """Raise a `ValueError` if labels have another shape than the kind of problem asks for."""
        kind: str | None = self.config.problem_type
        one, several = torch.Size((batch,)), torch.Size((batch, self.num_labels))
        if kind is None:  # as transformers will find out
            integers = labels.dtype in (torch.long, torch.int)
            kind = "regression" if self.num_labels == 1 else "single_label" if integers else "multi_label"
        if self.num_labels == 1 and kind == "regression":
            allowed = [one, several]
        else:
            allowed = [one if kind.startswith("single_label") else several]
        if labels.shape not in allowed:
            expected = " or ".join(str(tuple(shape)) for shape in allowed)
            raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {expected} for {kind}")


class ForTokenClassification(Classifier):
    """Tagger: a stack and a linear layer at every step.

    With `crf` a conditional random field on top of it learns which labels follow each other, at the steps that are
    neither padding nor special tokens (`pad_token_id`, `bos_token_id`, `eos_token_id`). Its logits, but in training,
    are then the scores of the best label sequence through each label, so that the largest one of each step is the
    label that Viterbi finds, and whatever takes the largest logit decodes exactly.

    Args:
        config: The configuration; it is copied and stays unchanged.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config, "ForTokenClassification")
        self.classifier = self.make_classifier(config.hidden_size, config.num_labels)
        self.crf = LinearChainCrf(config.num_labels) if config.crf else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Score each label at each step.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`; padding may stand anywhere.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`.
            char_ids: Characters of each token, `[B, T, L]`, 0 after the last of each, if `char_encoder` says so.
            labels: Label ids `[B, T]`; -100 is ignored, by a CRF as if the step were not there.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            kwargs: `num_items_in_batch` reaches the loss.

        Returns:
            `logits` `[B, T, num_labels]`, and `loss` if there are labels: the negative log-likelihood of a label, or
            with a CRF that of the label sequences divided by the number of labels.

        Raises:
            ValueError: If shapes do not fit.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            char_ids=char_ids,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape[:2])
            if self.crf is None:
                loss = self.loss_function(logits, labels, self.config, **kwargs)
            else:
                labelled = self._chain(logits, input_ids, attention_mask) & (labels != -100)
                count = kwargs.get("num_items_in_batch")
                total = self.crf.log_likelihood(logits, labels, labelled).sum()
                loss = -total / (labelled.sum() if count is None else count)
        if self.crf is not None and not self.training:
            logits = self.crf.max_marginals(logits, self._chain(logits, input_ids, attention_mask))
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _chain(self, logits: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """True at the steps that the CRF goes through, `[B, T]`."""
        mask = valid_steps(attention_mask, logits.shape[0], logits.shape[1], 0, "attention_mask")
        chain = logits.new_ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask
        if input_ids is None:
            return chain
        for special in (self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id):
            for token in special if isinstance(special, list) else [special]:
                if token is not None:
                    chain = chain & (input_ids != token)
        return chain


def steps_to_keep(values: Tensor, keep: int | Tensor) -> Tensor:
    """The last `keep` steps of `[B, T, ...]`, 0 for all; those of an index `[N]`; or those marked `[B, T]`, in a row.

    Raises:
        ValueError: If marks are not of this shape.
    """
    if isinstance(keep, int):
        return values[:, -keep:] if keep else values
    if keep.dtype != torch.bool:
        return values[:, keep]
    if keep.shape != values.shape[:2]:
        raise ValueError(f"logits_to_keep has shape {tuple(keep.shape)}, expected {tuple(values.shape[:2])}")
    return values[keep]


def check_labels(labels: Tensor, shape: torch.Size) -> None:
    """Raise a `ValueError` if labels are not one for each step, `[B, T]`."""
    if labels.shape != shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {tuple(shape)}")
