"""GRU models: the shared recurrent implementation with the gated recurrent unit."""

from .configuration_recurrent import GruConfig
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration, RecurrentModel

__all__ = [
    "GruForCTC",
    "GruForCausalLM",
    "GruForConditionalGeneration",
    "GruForPrediction",
    "GruForSequenceClassification",
    "GruForTokenClassification",
    "GruModel",
]


class GruModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = GruConfig


class GruDecoder(GruModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class GruForCausalLM(RecurrentForCausalLM):
    """Language model; see `ForCausalLM`."""

    backbone_class = GruModel


class GruForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    backbone_class = GruModel
    decoder_class = GruDecoder


class GruForPrediction(ForPrediction):
    """Forecaster; see `ForPrediction`."""

    backbone_class = GruModel


class GruForSequenceClassification(ForSequenceClassification):
    """Classifier of sequences; see `ForSequenceClassification`."""

    backbone_class = GruModel


class GruForTokenClassification(ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""

    backbone_class = GruModel


class GruForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = GruModel
