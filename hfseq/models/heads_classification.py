"""Heads that classify sequences and tokens."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_base import SequenceConfig
from .crf import LinearChainCrf
from .modeling_base import Head
from .padding import valid_steps
from .pooling import Pooling
from .shapes import check_shape


class Classifier(Head):
    """A stack without cross-attention, dropout, and a linear layer over `num_labels`."""

    suffix: ClassVar[str]
    output_class: ClassVar[type[ModelOutput]]
    # Weights of the other heads.
    _keys_to_ignore_on_load_unexpected = [
        r"^(lm_head|adaptive_softmax|sampled_softmax|output|decoder|pointer|crf|parameter_projection|static_embeddings)\."
    ]

    def __init__(self, config: SequenceConfig) -> None:
        config = config.for_one_stack(self.suffix, add_cross_attention=False)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.backbone_class(config)
        self.dropout = nn.Dropout(config.dropout if config.classifier_dropout is None else config.classifier_dropout)
        self.make_layers(config)
        self.post_init()

    def make_layers(self, config: SequenceConfig) -> None:
        """Create the layers on top of the backbone and the dropout."""
        raise NotImplementedError

    def make_classifier(self, width: int, num_labels: int) -> nn.Linear:
        """Linear layer from features `[..., width]` to `num_labels`."""
        return nn.Linear(width, num_labels)

    def predict(
        self, hidden: Tensor, mask: Tensor | None, input_ids: Tensor | None, labels: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and the loss if there are labels.

        Args:
            hidden: Hidden states `[B, T, H]`.
            mask: True at valid steps, `[B, T]`; None if all are.
            input_ids: Token ids `[B, T]`, or None.
            labels: The labels, whose shape is not yet checked.
            kwargs: Keyword arguments of the loss.
        """
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Score each label, for each sequence or at each step.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: 1 at valid steps, `[B, T]`; padding may be anywhere.
            inputs_embeds: `[B, T, embedding_size]` in place of `input_ids`.
            char_ids: Characters of each token, `[B, T, L]`, 0 after the last one, if the model has a character
                encoder.
            input_features: Frames of features, `[B, T, input_size]`, in place of `input_ids` if the config has an
                `input_size`, or of pixels, `[B, T, C, H, W]`, if it has a `frame_shape`. Stacked frames are steps:
                logits and labels of a tagger are then those of the T / `subsampling_factor` steps, each row's valid
                ones first.
            labels: For a sequence classifier class ids `[B]`, or floats `[B, num_labels]` for multi-label
                classification (multi-hot) and regression, where `[B]` is enough if `num_labels` is 1. For a tagger
                label ids `[B, T]`; -100 is ignored, by a CRF as if the step did not exist.
            output_hidden_states: Whether to return the embeddings and each layer's output.
            kwargs: `num_items_in_batch` is passed to the loss.

        Returns:
            `logits`, `[B, num_labels]` of a sequence classifier and `[B, T, num_labels]` of a tagger, and `loss` if
            there are labels. A CRF's loss is the negative log-likelihood of the label sequences divided by the number
            of labels.

        Raises:
            ValueError: If shapes do not match.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            char_ids=char_ids,
            input_features=input_features,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        batch, steps, _ = hidden.shape
        mask = valid_steps(self.model.mask_of_steps(attention_mask, steps), batch, steps, 0, "attention_mask")
        logits, loss = self.predict(hidden, mask, input_ids, labels, **kwargs)
        return self.output_class(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class ForSequenceClassification(Classifier):
    """Classifier, multi-label classifier or regressor of whole sequences: a stack, pooling and a linear layer.

    Args:
        config: The configuration; it is copied and stays unchanged. `num_labels`, `id2label` and `problem_type` have
            the meaning that they have in transformers.
    """

    suffix = "ForSequenceClassification"
    output_class = SequenceClassifierOutput

    def make_layers(self, config: SequenceConfig) -> None:
        """Create the pooling and the linear layer."""
        concatenates = self.backbone_class.concatenates_directions and config.bidirectional
        self.pooling = Pooling(config.pooling, config.hidden_size, concatenates_directions=concatenates)
        self.classifier = self.make_classifier(self.pooling.width, config.num_labels)

    def predict(
        self, hidden: Tensor, mask: Tensor | None, input_ids: Tensor | None, labels: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits `[B, num_labels]`, and the loss of the problem type; see `Classifier.predict`."""
        logits = self.classifier(self.dropout(self.pooling(hidden, mask)))
        if labels is None:
            return logits, None
        self._check_labels(labels, logits.shape)
        loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        count = kwargs.get("num_items_in_batch")
        if count is not None and self.config.problem_type != "single_label_classification":
            # transformers' losses for these average over the batch and ignore the count, by which the Trainer does
            # not divide again.
            loss = loss * labels.numel() / count
        return logits, loss

    def _check_labels(self, labels: Tensor, shape: torch.Size) -> None:
        """Raise a `ValueError` unless the problem type allows the labels' shape, given that of the logits."""
        kind: str | None = self.config.problem_type
        shapes = [shape[:1], shape]
        if kind is None:  # as transformers infers it
            integers = labels.dtype in (torch.long, torch.int)
            kind = "regression" if self.num_labels == 1 else "single_label" if integers else "multi_label"
        if self.num_labels > 1 or kind != "regression":
            shapes = shapes[:1] if kind.startswith("single_label") else shapes[1:]
        check_shape("labels", labels.shape, *shapes, note=f" for {kind}")


class ForTokenClassification(Classifier):
    """Tagger: a stack and a linear layer at every step.

    With `crf` it has a conditional random field over the steps that are neither padding nor special tokens
    (`pad_token_id`, `bos_token_id`, `eos_token_id`). In evaluation its logits are then max-marginals, the scores of
    the best label sequence through each label, so that the argmax at each step is the Viterbi path.

    Args:
        config: The configuration; it is copied and stays unchanged.
    """

    suffix = "ForTokenClassification"
    output_class = TokenClassifierOutput

    def make_layers(self, config: SequenceConfig) -> None:
        """Create the linear layer and the CRF."""
        self.classifier = self.make_classifier(config.hidden_size, config.num_labels)
        self.crf = LinearChainCrf(config.num_labels) if config.crf else None

    def predict(
        self, hidden: Tensor, mask: Tensor | None, input_ids: Tensor | None, labels: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits `[B, T, num_labels]`, and the cross-entropy or a CRF's loss; see `Classifier.predict`."""
        logits = self.classifier(self.dropout(hidden))
        if labels is not None:
            check_shape("labels", labels.shape, hidden.shape[:2])
        if self.crf is None:
            return logits, None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        chain, loss = self._chain(hidden, input_ids, mask), None
        if labels is not None:
            labelled = chain & (labels != -100)
            count = kwargs.get("num_items_in_batch")
            total = self.crf.log_likelihood(logits, labels, labelled).sum()
            loss = -total / (labelled.sum() if count is None else count)
        return logits if self.training else self.crf.max_marginals(logits, chain), loss

    def _chain(self, hidden: Tensor, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """Steps of the CRF, True in `[B, T]`: neither padding nor special tokens."""
        steps = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask
        for special in (self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id):
            for token in special if isinstance(special, list) else [special]:
                if input_ids is not None and token is not None:
                    steps = steps & (input_ids != token)
        return steps
