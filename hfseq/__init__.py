"""Classic sequence models as first-class citizens of Hugging Face.

Importing this package registers its models with the Auto classes of transformers.
"""

from . import pipelines as pipelines  # registers the pipelines of translation, summarization, entities
from .export import export_onnx
from .models import (
    CnnConfig,
    CnnForCausalLM,
    CnnForConditionalGeneration,
    CnnForSequenceClassification,
    CnnForTokenClassification,
    CnnModel,
    GruConfig,
    GruForCausalLM,
    GruForConditionalGeneration,
    GruForSequenceClassification,
    GruForTokenClassification,
    GruModel,
    LstmConfig,
    LstmForCausalLM,
    LstmForConditionalGeneration,
    LstmForSequenceClassification,
    LstmForTokenClassification,
    LstmModel,
    RnnConfig,
    RnnForCausalLM,
    RnnForConditionalGeneration,
    RnnForSequenceClassification,
    RnnForTokenClassification,
    RnnModel,
    WordCharacterTokenizer,
)
from .publishing import publish
from .states import load_state, save_state
from .version import __version__
from .word_vectors import load_word_vectors

__all__ = [
    "CnnConfig",
    "CnnForCausalLM",
    "CnnForConditionalGeneration",
    "CnnForSequenceClassification",
    "CnnForTokenClassification",
    "CnnModel",
    "GruConfig",
    "GruForCausalLM",
    "GruForConditionalGeneration",
    "GruForSequenceClassification",
    "GruForTokenClassification",
    "GruModel",
    "LstmConfig",
    "LstmForCausalLM",
    "LstmForConditionalGeneration",
    "LstmForSequenceClassification",
    "LstmForTokenClassification",
    "LstmModel",
    "RnnConfig",
    "RnnForCausalLM",
    "RnnForConditionalGeneration",
    "RnnForSequenceClassification",
    "RnnForTokenClassification",
    "RnnModel",
    "WordCharacterTokenizer",
    "__version__",
    "export_onnx",
    "load_state",
    "load_word_vectors",
    "publish",
    "save_state",
]
