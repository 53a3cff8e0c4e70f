"""SSRU models: the simplest of the simple recurrent units (Kim et al. 2019)."""

from .configuration_linear import SsruConfig
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .linear_cells import SsruLayer
from .modeling_linear import LinearRecurrentModel
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration

__all__ = [
    "SsruForCTC",
    "SsruForCausalLM",
    "SsruForConditionalGeneration",
    "SsruForPrediction",
    "SsruForSequenceClassification",
    "SsruForTokenClassification",
    "SsruModel",
]


class SsruModel(LinearRecurrentModel):
    """Encoder stack; see `LinearRecurrentModel`."""

    config_class = SsruConfig

    def make_layer(self, input_size: int, hidden_size: int) -> SsruLayer:
        """Create one layer and direction of the stack."""
        return SsruLayer(input_size, hidden_size, self.conv_kernel())


class SsruDecoder(SsruModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class SsruForCausalLM(RecurrentForCausalLM):
    """Language model; see `ForCausalLM`."""

    backbone_class = SsruModel


class SsruForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    backbone_class = SsruModel
    decoder_class = SsruDecoder


class SsruForPrediction(ForPrediction):
    """Forecaster; see `ForPrediction`."""

    backbone_class = SsruModel


class SsruForSequenceClassification(ForSequenceClassification):
    """Classifier of sequences; see `ForSequenceClassification`."""

    backbone_class = SsruModel


class SsruForTokenClassification(ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""

    backbone_class = SsruModel


class SsruForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = SsruModel
