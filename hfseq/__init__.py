"""Classic sequence models as first-class citizens of Hugging Face.

Importing this package registers its models with the Auto classes of transformers.
"""

from hfseq.lazy import without_collections

with without_collections():
    from hfseq import pipelines as pipelines  # registers the pipelines of translation, summarization, entities
    from hfseq.cache_io import load_state, save_state
    from hfseq.hub.publish import publish
    from hfseq.inference.ctc import ctc_alignment, ctc_beam_search
    from hfseq.models import (
        modeling_cnn,
        modeling_gru,
        modeling_lstm,
        modeling_mingru,
        modeling_minlstm,
        modeling_qrnn,
        modeling_rnn,
        modeling_ssru,
    )
    from hfseq.models.configuration_cnn import CnnConfig
    from hfseq.models.configuration_linear import MinGruConfig, MinLstmConfig, QrnnConfig, SsruConfig
    from hfseq.models.configuration_recurrent import GruConfig, LstmConfig, RnnConfig
    from hfseq.models.feature_extraction_log_mel import LogMelFeatureExtractor
    from hfseq.models.modeling_cnn import *
    from hfseq.models.modeling_gru import *
    from hfseq.models.modeling_lstm import *
    from hfseq.models.modeling_mingru import *
    from hfseq.models.modeling_minlstm import *
    from hfseq.models.modeling_qrnn import *
    from hfseq.models.modeling_rnn import *
    from hfseq.models.modeling_ssru import *
    from hfseq.models.tokenization_characters import WordCharacterTokenizer
    from hfseq.models.tokenization_pairs import SourceTargetTokenizer
    from hfseq.onnx.export import export_onnx
    from hfseq.version import __version__
    from hfseq.word_vectors import load_word_vectors

__all__ = [
    "CnnConfig",
    "GruConfig",
    "LogMelFeatureExtractor",
    "LstmConfig",
    "MinGruConfig",
    "MinLstmConfig",
    "QrnnConfig",
    "RnnConfig",
    "SourceTargetTokenizer",
    "SsruConfig",
    "WordCharacterTokenizer",
    "__version__",
    "ctc_alignment",
    "ctc_beam_search",
    "export_onnx",
    "load_state",
    "load_word_vectors",
    "publish",
    "save_state",
]
__all__ += modeling_cnn.__all__ + modeling_gru.__all__ + modeling_lstm.__all__ + modeling_rnn.__all__
__all__ += modeling_mingru.__all__ + modeling_minlstm.__all__ + modeling_qrnn.__all__ + modeling_ssru.__all__
