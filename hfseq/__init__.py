"""Classic sequence models as first-class citizens of Hugging Face.

Importing this package registers its models with the Auto classes of transformers.
"""

from . import pipelines as pipelines  # registers the translation and summarization pipelines
from .models import (
    GruConfig,
    GruForCausalLM,
    GruForConditionalGeneration,
    GruModel,
    LstmConfig,
    LstmForCausalLM,
    LstmForConditionalGeneration,
    LstmModel,
    RnnConfig,
    RnnForCausalLM,
    RnnForConditionalGeneration,
    RnnModel,
)
from .version import __version__

__all__ = [
    "GruConfig",
    "GruForCausalLM",
    "GruForConditionalGeneration",
    "GruModel",
    "LstmConfig",
    "LstmForCausalLM",
    "LstmForConditionalGeneration",
    "LstmModel",
    "RnnConfig",
    "RnnForCausalLM",
    "RnnForConditionalGeneration",
    "RnnModel",
    "__version__",
]
