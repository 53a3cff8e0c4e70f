"""LSTM models: the shared recurrent implementation with long short-term memory."""

from .configuration_frames import map_shape
from .configuration_recurrent import LstmConfig
from .convolutional_lstm import ConvolutionalLstmLayer
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration, RecurrentModel
from .recurrent import RecurrentLayer

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
    """Encoder stack, of ConvLSTM layers with `recurrent_kernel_size`; see `RecurrentModel`."""

    config_class = LstmConfig

    def make_layer(self, input_size: int, hidden_size: int) -> RecurrentLayer:
        """Create one layer and direction of the stack."""
        if self.config.recurrent_kernel_size is None:
            return super().make_layer(input_size, hidden_size)
        _, height, width = map_shape(self.config)
        return ConvolutionalLstmLayer(input_size, hidden_size, height, width, self.config.recurrent_kernel_size)


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
