"""QRNN models: linear recurrences between convolutions (Bradbury et al. 2017)."""

from .configuration_linear import QrnnConfig
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .linear_cells import QrnnLayer
from .modeling_linear import LinearRecurrentModel
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration

__all__ = [
    "QrnnForCTC",
    "QrnnForCausalLM",
    "QrnnForConditionalGeneration",
    "QrnnForPrediction",
    "QrnnForSequenceClassification",
    "QrnnForTokenClassification",
    "QrnnModel",
]


class QrnnModel(LinearRecurrentModel):
    """Encoder stack; see `LinearRecurrentModel`."""

    config_class = QrnnConfig

    def make_layer(self, input_size: int, hidden_size: int) -> QrnnLayer:
        """Create one layer and direction of the stack."""
        return QrnnLayer(input_size, hidden_size, self.config.window, self.config.zoneout, self.conv_kernel())


class QrnnDecoder(QrnnModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class QrnnForCausalLM(RecurrentForCausalLM):
    """Language model; see `ForCausalLM`."""

    backbone_class = QrnnModel


class QrnnForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    backbone_class = QrnnModel
    decoder_class = QrnnDecoder


class QrnnForPrediction(ForPrediction):
    """Forecaster; see `ForPrediction`."""

    backbone_class = QrnnModel


class QrnnForSequenceClassification(ForSequenceClassification):
    """Classifier of sequences; see `ForSequenceClassification`."""

    backbone_class = QrnnModel


class QrnnForTokenClassification(ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""

    backbone_class = QrnnModel


class QrnnForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = QrnnModel
