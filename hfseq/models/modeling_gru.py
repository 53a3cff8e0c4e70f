"""The Gru models: the shared recurrent implementation bound to the gated recurrent unit."""

from .configuration_recurrent import GruConfig
from .modeling_recurrent import (
    RecurrentForCausalLM,
    RecurrentForConditionalGeneration,
    RecurrentForSequenceClassification,
    RecurrentForTokenClassification,
    RecurrentModel,
)


class GruModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = GruConfig


class GruForCausalLM(RecurrentForCausalLM):
    """Language model; see `RecurrentForCausalLM`."""

    config_class = GruConfig
    backbone_class = GruModel


class GruForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    config_class = GruConfig
    backbone_class = GruModel


class GruForSequenceClassification(RecurrentForSequenceClassification):
    """Classifier of sequences; see `RecurrentForSequenceClassification`."""

    config_class = GruConfig
    backbone_class = GruModel


class GruForTokenClassification(RecurrentForTokenClassification):
    """Tagger; see `RecurrentForTokenClassification`."""

    config_class = GruConfig
    backbone_class = GruModel
