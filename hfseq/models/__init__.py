"""The registration table: the families, and registration of their classes. It is never copied with a checkpoint."""

from importlib import import_module
from typing import Any

import transformers
from transformers import AutoConfig, AutoFeatureExtractor, PreTrainedModel
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from .configuration_base import HEADS, SequenceConfig
from .configuration_cnn import CnnConfig
from .configuration_linear import MinGruConfig, MinLstmConfig, QrnnConfig, SsruConfig
from .configuration_recurrent import GruConfig, LstmConfig, RnnConfig
from .feature_extraction_log_mel import LogMelFeatureExtractor
from .tokenization_characters import WordCharacterTokenizer
from .tokenization_pairs import SourceTargetTokenizer

FAMILIES: tuple[type[SequenceConfig], ...] = (
    RnnConfig,
    LstmConfig,
    GruConfig,
    CnnConfig,
    MinGruConfig,
    MinLstmConfig,
    QrnnConfig,
    SsruConfig,
)
"""Configuration classes of the families; the module `modeling_<family>` has the classes `<Family><suffix>`."""
MODEL_CLASSES: dict[type[SequenceConfig], dict[str, type[PreTrainedModel]]] = {}
"""Config class to Auto class name, the first one of several, to model class."""

# The lookup tables of an Auto class have no public accessor. The second kind, of names, is read beside the first: the
# Trainer shifts smoothed labels only for classes in the causal one, pipelines check models against the one of their
# task.
MAPPINGS: dict[str, Any] = {auto_class: getattr(transformers, auto_class)._model_mapping for auto_class in HEADS}
"""Auto class name to its mapping from config classes to model classes."""
NAMES: dict[str, dict[str, Any]] = {auto_class: mapping._model_mapping for auto_class, mapping in MAPPINGS.items()}
"""Auto class name to its mapping from model types to class names."""


def register(config_class: type[SequenceConfig], module: Any) -> None:
    """Register a family with the Auto classes.

    Args:
        config_class: Its configuration.
        module: Namespace with its model classes.
    """
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    # Makes `save_pretrained` copy the code beside the weights.
    config_class.register_for_auto_class()
    MODEL_CLASSES[config_class] = {}
    for auto_class, suffix in HEADS.items():
        model_class = getattr(module, config_class.family + suffix)
        getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
        if model_class._auto_class is None:  # else it has several, of which a checkpoint names the first
            model_class.register_for_auto_class(auto_class)
            MODEL_CLASSES[config_class][auto_class] = model_class
        NAMES[auto_class][config_class.model_type] = model_class.__name__


def is_hfseq(config: Any) -> bool:
    """Return True for the configuration of an hfseq model; False for any other, or None."""
    return getattr(config, "model_type", "").startswith("hfseq_")


for _config_class in FAMILIES:
    register(_config_class, import_module(f"{__name__}.modeling_{_config_class.family.lower()}"))

# By its name alone: `AutoTokenizer.register` would make it the tokenizer of all checkpoints of a family.
for _tokenizer_class in (WordCharacterTokenizer, SourceTargetTokenizer):
    REGISTERED_TOKENIZER_CLASSES[_tokenizer_class.__name__] = _tokenizer_class
    _tokenizer_class.register_for_auto_class()
# By its name alone, too: it stands where a configuration would, of which all checkpoints have this extractor.
AutoFeatureExtractor.register(LogMelFeatureExtractor, LogMelFeatureExtractor, exist_ok=True)
LogMelFeatureExtractor.register_for_auto_class()
