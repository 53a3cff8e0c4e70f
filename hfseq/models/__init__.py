"""The registration table: which classes the Auto classes know. It is never copied with a checkpoint."""

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from .configuration_base import HEADS
from .configuration_cnn import CnnConfig
from .configuration_recurrent import GruConfig, LstmConfig, RnnConfig
from .modeling_cnn import (
    CnnForCausalLM,
    CnnForConditionalGeneration,
    CnnForSequenceClassification,
    CnnForTokenClassification,
    CnnModel,
)
from .modeling_gru import (
    GruForCausalLM,
    GruForConditionalGeneration,
    GruForSequenceClassification,
    GruForTokenClassification,
    GruModel,
)
from .modeling_lstm import (
    LstmForCausalLM,
    LstmForConditionalGeneration,
    LstmForSequenceClassification,
    LstmForTokenClassification,
    LstmModel,
)
from .modeling_rnn import (
    RnnForCausalLM,
    RnnForConditionalGeneration,
    RnnForSequenceClassification,
    RnnForTokenClassification,
    RnnModel,
)
from .tokenization_characters import WordCharacterTokenizer

_CLASSES: dict[type[PreTrainedConfig], tuple[type[PreTrainedModel], ...]] = {
    RnnConfig: (
        RnnModel,
        RnnForCausalLM,
        RnnForConditionalGeneration,
        RnnForSequenceClassification,
        RnnForTokenClassification,
    ),
    LstmConfig: (
        LstmModel,
        LstmForCausalLM,
        LstmForConditionalGeneration,
        LstmForSequenceClassification,
        LstmForTokenClassification,
    ),
    GruConfig: (
        GruModel,
        GruForCausalLM,
        GruForConditionalGeneration,
        GruForSequenceClassification,
        GruForTokenClassification,
    ),
    CnnConfig: (
        CnnModel,
        CnnForCausalLM,
        CnnForConditionalGeneration,
        CnnForSequenceClassification,
        CnnForTokenClassification,
    ),
}

MODEL_CLASSES: dict[type[PreTrainedConfig], dict[str, type[PreTrainedModel]]] = {
    config_class: dict(zip(HEADS, classes, strict=True)) for config_class, classes in _CLASSES.items()
}
"""Config class to Auto class name to model class."""

# Tables of names that transformers reads beside its class registry: the Trainer shifts smoothed labels of the classes
# in the causal one and of no others, pipelines check a model against the one of their task.
NAMES = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}

for _config_class, _heads in MODEL_CLASSES.items():
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    # `register_for_auto_class` is what makes `save_pretrained` copy the code beside the weights.
    _config_class.register_for_auto_class()
    for _auto_class, _model_class in _heads.items():
        getattr(transformers, _auto_class).register(_config_class, _model_class, exist_ok=True)
        _model_class.register_for_auto_class(_auto_class)
        NAMES[_auto_class][_config_class.model_type] = _model_class.__name__

# By its name alone: `AutoTokenizer.register` would make it that of every checkpoint of a family.
REGISTERED_TOKENIZER_CLASSES[WordCharacterTokenizer.__name__] = WordCharacterTokenizer
WordCharacterTokenizer.register_for_auto_class()

__all__ = ["MODEL_CLASSES", "WordCharacterTokenizer"] + [
    name
    for config_class, heads in MODEL_CLASSES.items()
    for name in (config_class.__name__, *(model_class.__name__ for model_class in heads.values()))
]
