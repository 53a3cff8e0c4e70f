"""Outputs of the backbones: those of transformers with additional fields.

They inherit the cache field, since transformers 5.24 renamed it and maps the old name for its own classes only.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


@dataclass
class RecurrentModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Output of `RecurrentModel`.

    `last_hidden_state` is `[B, T, H]` and zero at padding; `hidden_states` are the embeddings after dropout and the
    output of each layer; `cross_attentions` is one tensor `[B, 1, T, S]`; `attentions` is None.

    Args:
        input_ids: Source ids `[B, T]` of a pointer-generator's encoder, for the decoder to copy; otherwise None.
        overlaps: Coverage loss of each decoder step (See et al. 2017, eq. 12), `[B, T]`; None without coverage.
        final_states: States of each layer after its last step, both directions side by side, `[B, L, N, H]`, N = 2
            (hidden and cell state) for an LSTM and 1 otherwise; None unless the `bridge` of the config reads them.
    """

    input_ids: Tensor | None = None
    overlaps: Tensor | None = None
    final_states: Tensor | None = None


@dataclass
class CnnModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """Output of `CnnModel`: the fields of `RecurrentModelOutput`, with attention weights of each layer.

    Args:
        input_embeddings: Word embeddings, with positions if the model has them, before dropout, `[B, T, E]`, which a
            `convs2s` decoder attends over beside the encoder's outputs. None from a decoder with cross-attention.
    """

    input_embeddings: Tensor | None = None
