"""Head of causal language models."""

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.utils.generic import can_return_tuple

from .adaptive_softmax import AdaptiveSoftmax
from .cache import takes_past_key_values
from .configuration_base import SequenceConfig
from .generation import SequenceGenerationMixin, Step, is_bare
from .modeling_base import Backbone, Head
from .output_layer import OutputLayer, steps_to_keep
from .padding import next_labels
from .sampled_softmax import SampledSoftmax
from .shapes import check_shape


class ForCausalLM(Head, SequenceGenerationMixin):
    """Language model; with `add_cross_attention` the decoder of any encoder, also in an `EncoderDecoderModel`.

    Args:
        config: The configuration; it is copied and stays unchanged.

    Raises:
        ValueError: If `bidirectional=True`, or if the clusters of an adaptive softmax are impossible.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: SequenceConfig) -> None:
        if config.bidirectional:
            raise ValueError("bidirectional=True is impossible for a causal language model: it would see the future")
        config = config.for_one_stack("ForCausalLM")
        # A field may have been set since the config was made.
        config.check_output_layer()
        super().__init__(config)
        self.model = self.backbone_class(config)
        self.output = OutputLayer(config, config.hidden_size)
        cutoffs, factor = config.adaptive_softmax_cutoffs, config.adaptive_softmax_div_value
        # The rows of narrower clusters are in the adaptive softmax.
        rows = config.vocab_size if cutoffs is None or factor == 1 else cutoffs[0]
        self.lm_head = nn.Linear(self.output.width, rows, bias=config.lm_head_bias)
        self.adaptive_softmax = None
        if cutoffs is not None:
            self.adaptive_softmax = AdaptiveSoftmax(
                self.output.width, config.vocab_size, cutoffs, factor, config.lm_head_bias
            )
        self.sampled_softmax = None if config.num_negatives is None else SampledSoftmax(config)
        self.post_init()

    def set_item_counts(self, counts: Tensor) -> None:
        """Set the popularity of the tokens, by which negatives are sampled in training, and which is saved.

        Args:
            counts: Number of occurrences of each token in the training data, integers `[vocab_size]`. A token with a
                count of 0 is never a negative.

        Raises:
            ValueError: If the model samples no negatives, or if the counts are invalid.
        """
        if self.sampled_softmax is None:
            raise ValueError("the model samples no negatives: set num_negatives in its config")
        self.sampled_softmax.set_counts(counts)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output layer; None where the clusters of an adaptive softmax are narrower than it."""
        adaptive = self.adaptive_softmax
        return None if adaptive is not None and adaptive.tails else self.lm_head

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize as `PreTrainedModel.resize_token_embeddings` does, the last cluster and the counts of items, too.

        Raises:
            ValueError: If no words would be left for the last cluster of an adaptive softmax.
        """
        adaptive = self.adaptive_softmax
        if adaptive is not None and new_num_tokens is not None and new_num_tokens <= adaptive.cutoffs[-1]:
            raise ValueError(
                f"new_num_tokens={new_num_tokens} is impossible, the last of the adaptive_softmax_cutoffs is "
                f"{adaptive.cutoffs[-1]}; it must be larger"
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.sampled_softmax is not None:
            self.sampled_softmax.resize(embeddings.num_embeddings)
        if adaptive is not None and adaptive.tails:
            tail = adaptive.tails[-1]
            size = embeddings.num_embeddings - adaptive.cutoffs[-1]
            tail[1] = self._get_resized_lm_head(tail[1], size, mean_resizing=mean_resizing)
        return embeddings

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
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict the next token at every step.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`, or `[B, past + T]` with a cache; padding may be anywhere.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`.
            encoder_hidden_states: `[B, S, M]`, with `add_cross_attention`.
            encoder_attention_mask: 1 at valid encoder states, `[B, S]`.
            cache: State after the earlier tokens; updated in place.
            labels: Token ids `[B, T]`, shifted internally; -100 is ignored.
            use_cache: Whether to return the state.
            output_attentions: Whether to return the weights of the cross-attention.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            logits_to_keep: Number of last steps to compute logits for, 0 for all, or their indices.
            skip_logits: Whether to evaluate an adaptive softmax as in training, where it computes the same loss
                without the logits of all tokens. Other models compute them.
            kwargs: `num_items_in_batch` and `shift_labels` are passed to the loss.

        Returns:
            `logits` `[B, T, vocab_size]`, or None in training, or with `skip_logits`, with labels for an adaptive
            softmax, and in training for sampled negatives; `loss` if there are labels (in training with `penalty`, and
            over sampled negatives if the config says so), and the outputs of the backbone.

        Raises:
            ValueError: If shapes do not match.
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
        # Losses that take less than all logits; sampled negatives only estimate it, and are for training.
        partial = None
        if labels is not None and (self.training or skip_logits):
            partial = self.adaptive_softmax or (self.sampled_softmax if self.training else None)
        logits = self._logits(hidden) if partial is None else None
        loss = None
        if labels is not None:
            check_shape("labels", labels.shape, raw.shape[:2])
            mask = None
            if attention_mask is not None:
                current = attention_mask[:, -outputs.last_hidden_state.shape[1] :]
                mask = steps_to_keep(current, logits_to_keep) != 0
            targets = kwargs.pop("shift_labels", None)
            if targets is None:
                targets = next_labels(labels, mask)
            predicts = targets != -100
            count = kwargs.get("num_items_in_batch")
            count = predicts.sum() if count is None else count
            if partial is None:
                loss = self.loss_function(
                    logits=logits, labels=labels, shift_labels=targets, vocab_size=self.config.vocab_size, **kwargs
                )
            else:
                loss = partial.loss(hidden, self.lm_head.weight, targets, self.lm_head.bias) / count
            if self.training:
                penalty = self.penalty(raw, dropped, predicts, mask)
                if penalty is not None:
                    # Divided like the loss, so that it sums up correctly over accumulated and distributed batches.
                    loss = loss + penalty / count
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            cross_attentions=outputs.cross_attentions,
        )

    def supports_decode_step(self) -> bool:
        """Return True if `make_decode_step` computes what `forward` does."""
        # A wrapper of the backbone exposes its methods, hence the check of the class.
        bare = is_bare(self, ForCausalLM.forward) and isinstance(self.model, Backbone)
        return bare and self.model.supports_decode_step()

    def make_decode_step(self, cache: Cache, **kwargs: Any) -> Step:
        """Step from the newest ids `[B, 1]` to logits `[B, V]`; see `SequenceGenerationMixin`."""
        names = ("encoder_hidden_states", "encoder_attention_mask")
        hidden_step = self.model.make_decode_step(cache, **{name: kwargs.get(name) for name in names})

        def step(ids: Tensor) -> Tensor:
            hidden, _ = self.output(hidden_step(ids))
            return self._logits(hidden)[:, -1]

        return step

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits `[B, T, V]` of all tokens from the inputs `[B, T, D]` of the output matrix."""
        if self.adaptive_softmax is None:
            return self.lm_head(hidden)
        return self.adaptive_softmax(hidden, self.lm_head.weight, self.lm_head.bias)

    def penalty(self, raw: Tensor, dropped: Tensor, predicts: Tensor, mask: Tensor | None) -> Tensor | None:
        """Auxiliary training loss, summed over steps; None by default.

        Args:
            raw: Output of the last layer, `[B, T, H]`.
            dropped: The same after dropout.
            predicts: True at steps that have a label to predict, `[B, T]`.
            mask: True at valid steps, `[B, T]`; None if all are.
        """
        return None
