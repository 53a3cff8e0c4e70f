"""Classic sequence models as first-class citizens of Hugging Face.

Importing this package registers its models with the Auto classes of transformers.
"""

from hfseq import pipelines as pipelines  # registers the pipelines of translation, summarization, entities
from hfseq.cache_io import load_state, save_state
from hfseq.hub.publish import publish
from hfseq.models.configuration_cnn import CnnConfig
from hfseq.models.configuration_recurrent import GruConfig, LstmConfig, RnnConfig
from hfseq.models.modeling_cnn import (
    CnnForCausalLM,
    CnnForConditionalGeneration,
    CnnForSequenceClassification,
    CnnForTokenClassification,
    CnnModel,
)
from hfseq.models.modeling_gru import (
    GruForCausalLM,
    GruForConditionalGeneration,
    GruForSequenceClassification,
    GruForTokenClassification,
    GruModel,
)
from hfseq.models.modeling_lstm import (
    LstmForCausalLM,
    LstmForConditionalGeneration,
    LstmForSequenceClassification,
    LstmForTokenClassification,
    LstmModel,
)
from hfseq.models.modeling_rnn import (
    RnnForCausalLM,
    RnnForConditionalGeneration,
    RnnForSequenceClassification,
    RnnForTokenClassification,
    RnnModel,
)
from hfseq.models.tokenization_characters import WordCharacterTokenizer
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
