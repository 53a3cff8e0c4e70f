"""The heads that classify sequences and steps, written against a backbone class."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_base import SequenceConfig
from .crf import LinearChainCrf
from .modeling_base import Backbone, SequencePreTrainedModel
from .output_layer import check_labels
from .padding import valid_steps
from .pooling import Pooling


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
