"""minLSTM models: linear recurrences with normalised forget and input gates (Feng et al. 2024)."""

from .configuration_linear import MinLstmConfig
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .linear_cells import MinLstmLayer
from .modeling_linear import LinearRecurrentModel
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration

__all__ = [
    "MinLstmForCTC",
    "MinLstmForCausalLM",
    "MinLstmForConditionalGeneration",
    "MinLstmForPrediction",
    "MinLstmForSequenceClassification",
    "MinLstmForTokenClassification",
    "MinLstmModel",
]


class MinLstmModel(LinearRecurrentModel):
    """Encoder stack; see `LinearRecurrentModel`."""

    config_class = MinLstmConfig

    def make_layer(self, input_size: int, hidden_size: int) -> MinLstmLayer:
        """Create one layer and direction of the stack."""
        return MinLstmLayer(input_size, hidden_size, self.config.candidate, self.conv_kernel())


class MinLstmDecoder(MinLstmModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class MinLstmForCausalLM(RecurrentForCausalLM):
    """Language model; see `ForCausalLM`."""

    backbone_class = MinLstmModel


class MinLstmForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    backbone_class = MinLstmModel
    decoder_class = MinLstmDecoder


class MinLstmForPrediction(ForPrediction):
    """Forecaster; see `ForPrediction`."""

    backbone_class = MinLstmModel


class MinLstmForSequenceClassification(ForSequenceClassification):
    """Classifier of sequences; see `ForSequenceClassification`."""

    backbone_class = MinLstmModel


class MinLstmForTokenClassification(ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""

    backbone_class = MinLstmModel


class MinLstmForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = MinLstmModel
