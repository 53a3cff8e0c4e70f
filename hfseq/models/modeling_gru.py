"""The Gru models: the shared recurrent implementation bound to the GRU."""

from .configuration_recurrent import GruConfig
from .modeling_recurrent import RecurrentForCausalLM, RecurrentForConditionalGeneration, RecurrentModel


class GruModel(RecurrentModel):
    """Encoder stack; see `RecurrentModel`."""

    config_class = GruConfig


class GruForCausalLM(RecurrentForCausalLM):
    """Language model; see `RecurrentForCausalLM`."""

    config_class = GruConfig


class GruForConditionalGeneration(RecurrentForConditionalGeneration):
    """Sequence-to-sequence model; see `RecurrentForConditionalGeneration`."""

    config_class = GruConfig
