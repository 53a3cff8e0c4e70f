"""The Lstm models: the shared recurrent implementation bound to the LSTM."""

from .configuration_recurrent import LstmConfig
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration, RecurrentModel


class LstmModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = LstmConfig


class LstmForCausalLM(RecurrentForCausalLM):
    """Language model; see `RecurrentForCausalLM`."""

    config_class = LstmConfig


class LstmForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    config_class = LstmConfig
