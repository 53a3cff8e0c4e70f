"""LSTM models: the shared recurrent implementation with long short-term memory."""

from .configuration_recurrent import LstmConfig
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration, RecurrentModel

__all__ = [
    "LstmForCTC",
    "LstmForCausalLM",
    "LstmForConditionalGeneration",
    "LstmForPrediction",
    "LstmForSequenceClassification",
    "LstmForTokenClassification",
    "LstmModel",
]


class LstmModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = LstmConfig


class LstmDecoder(LstmModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class LstmForCausalLM(RecurrentForCausalLM):
    """Language model; see `ForCausalLM`."""

    backbone_class = LstmModel


class LstmForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    backbone_class = LstmModel
    decoder_class = LstmDecoder


class LstmForPrediction(ForPrediction):
    """Forecaster; see `ForPrediction`."""

    backbone_class = LstmModel


class LstmForSequenceClassification(ForSequenceClassification):
    """Classifier of sequences; see `ForSequenceClassification`."""

    backbone_class = LstmModel


class LstmForTokenClassification(ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""

    backbone_class = LstmModel


class LstmForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = LstmModel
