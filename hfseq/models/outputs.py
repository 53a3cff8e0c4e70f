"""Outputs of the backbones: transformers' own, and the fields that they lack.

The field of the cache is for transformers to name: 5.24 renamed it, and reads the old name for its own classes alone.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


@dataclass
class RecurrentModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Output of `RecurrentModel`.

    Its `last_hidden_state` is `[B, T, H]`, zero at padding, its `hidden_states` are the embeddings after dropout and
    each layer's output, its `cross_attentions` one tensor `[B, 1, T, S]`, its `attentions` None.

    Args:
        input_ids: Ids that a pointer-generator's encoder has read, `[B, T]`, for the decoder to copy; else None.
        overlaps: Coverage loss of each step of a decoder with coverage (See et al. 2017, eq. 12), `[B, T]`; else None.
    """

    input_ids: Tensor | None = None
    overlaps: Tensor | None = None


@dataclass
class CnnModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Output of `CnnModel`; as `RecurrentModelOutput`, with one tensor of attention weights for each layer.

    Args:
        input_embeddings: Word embeddings, with positions where the model has them, before dropout, `[B, T, E]`: what a
            `convs2s` decoder attends over beside the encoder's outputs. None from a decoder with cross-attention.
    """

    input_embeddings: Tensor | None = None
