"""Head for connectionist temporal classification (CTC)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .cache import takes_past_key_values
from .configuration_base import SequenceConfig
from .heads_classification import Classifier
from .padding import take_steps, valid_first, valid_steps
from .shapes import check_shape

# Logit of all symbols but the blank, whose logit is 0, at padding.
_UNLIKELY = -100.0


class ForCTC(Classifier):
    """Transcriber trained by CTC (Graves et al. 2006): a stack and a linear layer over the vocabulary at every step.

    The blank is `pad_token_id`. At padding it is the most likely symbol, so that a decoder without a mask, as that of
    the pipeline of transformers, finds no symbol there.

    Args:
        config: The configuration; it is copied and stays unchanged. It may be for features or for tokens.

    Raises:
        ValueError: If the config is of an encoder-decoder, or its `pad_token_id` is not in the vocabulary.
    """

    suffix = "ForCTC"
    main_input_name = "input_features"
    # Weights of the other heads.
    _keys_to_ignore_on_load_unexpected = [
        r"^(lm_head|adaptive_softmax|sampled_softmax|output|decoder|pointer|crf|classifier)\."
    ]

    def __init__(self, config: SequenceConfig) -> None:
        if config.is_encoder_decoder:
            # The pipeline for speech recognition tries this class first, and the right one after an error.
            raise ValueError("is_encoder_decoder=True is impossible for CTC, whose model is an encoder alone")
        if config.pad_token_id is None or not 0 <= config.pad_token_id < config.vocab_size:
            config.raise_invalid("pad_token_id", f"it is the blank, and vocab_size is {config.vocab_size}")
        super().__init__(config)

    def make_layers(self, config: SequenceConfig) -> None:
        """Create the linear layer."""
        self.ctc_head = nn.Linear(config.hidden_size, config.vocab_size)

    def get_output_embeddings(self) -> nn.Linear:
        """Return the linear layer over the vocabulary."""
        return self.ctc_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the linear layer over the vocabulary."""
        self.ctc_head = new_embeddings

    @takes_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Score each symbol, and the blank, at every step.

        Args:
            input_features: Frames of features, `[B, T, input_size]`, or of pixels, `[B, T, C, H, W]`.
            attention_mask: 1 at valid frames, `[B, T]`; padding may be anywhere.
            input_ids: Token ids `[B, T]`, in place of features if the config has no `input_size`.
            inputs_embeds: Inputs of the stack in place of both.
            char_ids: Characters of each token, `[B, T, L]`, if the model has a character encoder.
            cache: State after the earlier frames, for recognition of a stream; updated in place. The model must be
                unidirectional.
            labels: Symbols of each row, `[B, L]`, without blanks; -100 is ignored.
            use_cache: Whether to return the state; not by default.
            output_hidden_states: Whether to return the inputs of the stack and each layer's output.
            kwargs: The loss is divided by `num_items_in_batch`, the number of labels of all batches of a training
                step, or by that of this batch if it is missing.

        Returns:
            `logits` `[B, S, vocab_size]` of the S steps: those of the frames, or, if `subsampling_factor` frames are
            stacked, T / `subsampling_factor` steps, rounded up, each row's valid ones first. `loss`, the negative
            log-likelihood of the labels (Graves et al. 2006, eq. 8 and 12) divided by their number, if there are
            labels.

        Raises:
            ValueError: If shapes do not match, if a label is the blank, or if a row is too short for its labels and
                `ctc_zero_infinity` is not set: each label takes a step, and one that repeats the label before it a
                blank, too.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            char_ids=char_ids,
            input_features=input_features,
            cache=cache,
            use_cache=bool(use_cache),
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        batch, steps, _ = hidden.shape
        mask = self.model.mask_of_steps(attention_mask, steps)
        if mask is not None:
            mask = valid_steps(mask[:, -steps:], batch, steps, 0, "attention_mask")
        logits = self.ctc_head(self.dropout(hidden))
        if mask is not None:
            nothing = logits.new_full((self.config.vocab_size,), _UNLIKELY)
            nothing[self.config.pad_token_id] = 0.0
            logits = torch.where(mask.unsqueeze(2), logits, nothing)
        loss = None
        if labels is not None:
            check_shape("labels", labels.shape, (batch, "length"))
            loss = self._sum_of_losses(logits, mask, labels)
            count = kwargs.get("num_items_in_batch")
            loss = loss / ((labels != -100).sum() if count is None else count)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, cache=outputs.cache, hidden_states=outputs.hidden_states
        )

    def _sum_of_losses(self, logits: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        """Negative log-likelihood of the labels `[B, L]`, summed over the rows."""
        batch, steps, _ = logits.shape
        if mask is None:
            lengths = torch.full((batch,), steps, device=logits.device)
        else:
            permutation = valid_first(mask)
            logits, lengths = take_steps(logits, permutation.order), permutation.valid.sum(dim=1)
        is_label = labels != -100
        counts = is_label.sum(dim=1)
        targets = labels[is_label]
        self._check_labels(lengths, labels, is_label)
        log_probabilities = logits.float().log_softmax(dim=-1).transpose(0, 1)
        # cuDNN's implementation knows only blanks of 0 and targets on the CPU, and is not deterministic.
        with torch.backends.cudnn.flags(enabled=False):
            losses = nn.functional.ctc_loss(
                log_probabilities,
                targets,
                lengths,
                counts,
                blank=self.config.pad_token_id,
                reduction="none",
                zero_infinity=self.config.ctc_zero_infinity,
            )
        return losses.sum()

    def _check_labels(self, lengths: Tensor, labels: Tensor, is_label: Tensor) -> None:
        """Raise a `ValueError` for a label that is the blank, and for a row that no alignment fits."""
        blank = self.config.pad_token_id
        if bool((labels == blank).any()):
            row = int((labels == blank).any(dim=1).nonzero()[0])
            raise ValueError(f"row {row} has the label {blank}, which is the blank (pad_token_id); pad with -100")
        if self.config.ctc_zero_infinity:
            return
        ordered = labels.gather(1, valid_first(is_label).order)
        repeats = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != -100)).sum(dim=1)
        needed = is_label.sum(dim=1) + repeats
        if bool((needed > lengths).any()):
            row = int((needed > lengths).nonzero()[0])
            count, repeated, most = int(is_label[row].sum()), int(repeats[row]), int(lengths[row])
            raise ValueError(
                f"row {row}: {count} labels, {repeated} of them repeated, need {count + repeated} steps; there are "
                f"{most}; leave the row out, reduce subsampling_factor, or set ctc_zero_infinity=True to ignore such "
                "rows"
            )
