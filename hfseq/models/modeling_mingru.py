"""minGRU models: linear recurrences with one gate (Feng et al. 2024)."""

from .configuration_linear import MinGruConfig
from .heads_classification import ForSequenceClassification, ForTokenClassification
from .heads_ctc import ForCTC
from .heads_prediction import ForPrediction
from .linear_cells import MinGruLayer
from .modeling_linear import LinearRecurrentModel
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration

__all__ = [
    "MinGruForCTC",
    "MinGruForCausalLM",
    "MinGruForConditionalGeneration",
    "MinGruForPrediction",
    "MinGruForSequenceClassification",
    "MinGruForTokenClassification",
    "MinGruModel",
]


class MinGruModel(LinearRecurrentModel):
    """Encoder stack; see `LinearRecurrentModel`."""

    config_class = MinGruConfig

    def make_layer(self, input_size: int, hidden_size: int) -> MinGruLayer:
        """Create one layer and direction of the stack."""
        return MinGruLayer(input_size, hidden_size, self.config.candidate, self.conv_kernel())


class MinGruDecoder(MinGruModel):
    """Decoder of a sequence-to-sequence model; see `ForConditionalGeneration.decoder_class`."""


class MinGruForCausalLM(RecurrentForCausalLM):
    """Language model; see `ForCausalLM`."""

    backbone_class = MinGruModel


class MinGruForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    backbone_class = MinGruModel
    decoder_class = MinGruDecoder


class MinGruForPrediction(ForPrediction):
    """Forecaster; see `ForPrediction`."""

    backbone_class = MinGruModel


class MinGruForSequenceClassification(ForSequenceClassification):
    """Classifier of sequences; see `ForSequenceClassification`."""

    backbone_class = MinGruModel


class MinGruForTokenClassification(ForTokenClassification):
    """Tagger; see `ForTokenClassification`."""

    backbone_class = MinGruModel


class MinGruForCTC(ForCTC):
    """Transcriber trained by CTC; see `ForCTC`."""

    backbone_class = MinGruModel
