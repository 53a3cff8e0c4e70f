"""The Rnn models: the shared recurrent implementation bound to the simple recurrent network."""

from .configuration_recurrent import RnnConfig
from .modeling_recurrent import (
    RecurrentForCausalLM,
    RecurrentForConditionalGeneration,
    RecurrentForSequenceClassification,
    RecurrentForTokenClassification,
    RecurrentModel,
)


class RnnModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = RnnConfig


class RnnForCausalLM(RecurrentForCausalLM):
    """Language model; see `RecurrentForCausalLM`."""

    config_class = RnnConfig
    backbone_class = RnnModel


class RnnForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    config_class = RnnConfig
    backbone_class = RnnModel


class RnnForSequenceClassification(RecurrentForSequenceClassification):
    """Classifier of sequences; see `RecurrentForSequenceClassification`."""

    config_class = RnnConfig
    backbone_class = RnnModel


class RnnForTokenClassification(RecurrentForTokenClassification):
    """Tagger; see `RecurrentForTokenClassification`."""

    config_class = RnnConfig
    backbone_class = RnnModel
