"""The Lstm models: the shared recurrent implementation bound to long short-term memory."""

from .configuration_recurrent import LstmConfig
from .modeling_recurrent import (
    RecurrentForCausalLM,
    RecurrentForConditionalGeneration,
    RecurrentForSequenceClassification,
    RecurrentForTokenClassification,
    RecurrentModel,
)


class LstmModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = LstmConfig


class LstmForCausalLM(RecurrentForCausalLM):
    """Language model; see `RecurrentForCausalLM`."""

    config_class = LstmConfig
    backbone_class = LstmModel


class LstmForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    config_class = LstmConfig
    backbone_class = LstmModel


class LstmForSequenceClassification(RecurrentForSequenceClassification):
    """Classifier of sequences; see `RecurrentForSequenceClassification`."""

    config_class = LstmConfig
    backbone_class = LstmModel


class LstmForTokenClassification(RecurrentForTokenClassification):
    """Tagger; see `RecurrentForTokenClassification`."""

    config_class = LstmConfig
    backbone_class = LstmModel
