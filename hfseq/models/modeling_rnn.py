"""RNN models: the shared recurrent implementation with the cell of the simple recurrent network."""

from .configuration_recurrent import RnnConfig
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration, RecurrentModel

__all__ = [
    "RnnForCTC",
    "RnnForCausalLM",
    "RnnForConditionalGeneration",
    "RnnForPrediction",
    "RnnForSequenceClassification",
    "RnnForTokenClassification",
    "RnnModel",
]


class RnnModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = RnnConfig


class RnnDecoder(RnnModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class RnnForCausalLM(RecurrentForCausalLM):
    """Language model; see `ForCausalLM`."""

    backbone_class = RnnModel


class RnnForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    backbone_class = RnnModel
    decoder_class = RnnDecoder


class RnnForPrediction(ForPrediction):
    """Forecaster; see `ForPrediction`."""

    backbone_class = RnnModel


class RnnForSequenceClassification(ForSequenceClassification):
    """Classifier of sequences; see `ForSequenceClassification`."""

    backbone_class = RnnModel


class RnnForTokenClassification(ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""

    backbone_class = RnnModel


class RnnForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = RnnModel
