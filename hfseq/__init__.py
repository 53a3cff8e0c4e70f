"""Classic sequence models as first-class citizens of Hugging Face.

Importing this package registers its models with the Auto classes of transformers.
"""

from hfseq import pipelines as pipelines  # registers the pipelines of translation, summarization, entities
from hfseq.cache_io import load_state, save_state
from hfseq.hub.publish import publish
from hfseq.models import (
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
from hfseq.onnx.export import export_onnx
from hfseq.version import __version__
from hfseq.word_vectors import load_word_vectors

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
