"""Copying from the source: the pointer-generator of See, Liu & Manning (2017), section 2.2."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from .configuration_recurrent import RecurrentConfig


class Pointer(nn.Module):
    r"""Mixture of generating a word of the vocabulary and copying one from the source.

    The generation probability is $p = \sigma(w_h^\top h^*_t + w_s^\top s_t + w_x^\top x_t + b)$ with the attention's
    context, the decoder's state and the embedding of its input (See et al. 2017, eq. 8); the probability of a word is
    $p P_{vocab}(w) + (1 - p) \sum_{i: w_i = w} a_i^t$ (eq. 9). $P_{vocab}$ comes from the attentional vector, which
    combines context and state as the paper's eq. 4 does, with a tanh.

    Args:
        config: Configuration of the sequence-to-sequence model.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size + config.target_hidden_size() + (config.embedding_size or 0), 1)

    def forward(
        self,
        logits: Tensor,
        decoded: ModelOutput,
        encoded: ModelOutput,
        input_ids: Tensor | None,
        copy_ids: Tensor | None,
    ) -> Tensor:
        """Compute the final distribution.

        Args:
            logits: Scores of the vocabulary `[B, T, V]`.
            decoded: Outputs of the decoder, with hidden states and attention weights.
            encoded: Outputs of the encoder.
            input_ids: Source ids `[B, S]`; None for those in `encoded`.
            copy_ids: Ids that are copied from the source positions in their place, `[B, S]`, below V + S; see
                `ForConditionalGeneration.forward`.

        Returns:
            Log-probabilities `[B, T, V]`, with `copy_ids` `[B, T, V + S]`, in at least float32. They are finite: an
            impossible word has the logarithm of the smallest normal number.

        Raises:
            ValueError: If there are no ids to copy, their shape is wrong, or the config has no `unk_token_id`, which
                the decoder reads for copied out-of-vocabulary words.
        """
        encoder_hidden_states = encoded["last_hidden_state"]  # [B, S, M]
        ids = encoded.get("input_ids") if input_ids is None else input_ids
        if copy_ids is not None:
            if self.config.unk_token_id is None:
                raise ValueError(
                    "copy_ids need a config with unk_token_id, which the decoder reads in place of a word that is "
                    "not in the vocabulary"
                )
            ids = copy_ids
        if ids is None:
            raise ValueError(
                "a pointer-generator copies ids: pass copy_ids where neither input_ids nor encoder_outputs that its "
                "own encoder has made of some are given"
            )
        if ids.shape != (expected := encoder_hidden_states.shape[:2]):
            raise ValueError(f"the ids to copy have shape {tuple(ids.shape)}, expected {tuple(expected)}")
        dtype = torch.promote_types(logits.dtype, torch.float32)
        weights = decoded["cross_attentions"][-1].squeeze(1)  # [B, T, S]
        embedded, *_, states = decoded["hidden_states"]
        gate = self.gate(torch.cat([weights @ encoder_hidden_states, states, embedded], dim=-1))  # [B, T, 1]
        if weights.dtype != dtype:
            # In lower precision they do not sum to 1.
            weights = weights.to(dtype)
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
        return mix(logits.to(dtype), gate.to(dtype), weights, ids, extended=copy_ids is not None)


def mix(logits: Tensor, gate: Tensor, weights: Tensor, ids: Tensor, extended: bool) -> Tensor:
    """Logarithm of the final distribution (See et al. 2017, eq. 9); see `Pointer`.

    Args:
        logits: Scores of the vocabulary `[B, T, V]`.
        gate: Logit of the probability of generating, `[B, T, 1]`.
        weights: Attention weights `[B, T, S]`, 0 at padding.
        ids: Ids that are copied from the source positions, `[B, S]`.
        extended: Whether the result has columns for the ids from V to V + S - 1.
    """
    size, tiny = logits.shape[-1], torch.finfo(logits.dtype).tiny
    share = nn.functional.logsigmoid(-gate)
    words = logits.log_softmax(dim=-1) + nn.functional.logsigmoid(gate)  # [B, T, V]
    # The attention to all occurrences of a word is summed at the first one, so that its column is updated only once.
    # Few columns of a large vocabulary then need a logarithm, and the order of summation is deterministic.
    first = (ids.unsqueeze(2) == ids.unsqueeze(1)).byte().argmax(dim=2)  # [B, S]
    total = torch.zeros_like(weights).scatter_add(2, first.unsqueeze(1).expand_as(weights), weights)
    column = ids.clamp(max=size - 1).unsqueeze(1).expand_as(weights)  # [B, T, S]
    written = words.gather(2, column)
    gain = torch.logaddexp(written, total.clamp(min=tiny).log() + share) - written
    once = (first == torch.arange(ids.shape[1], device=ids.device)) & (ids < size)
    words = words.scatter_add(2, column, gain.masked_fill(~once.unsqueeze(1), 0.0))
    if not extended:
        return words
    beyond = weights.masked_fill((ids < size).unsqueeze(1), 0.0)
    column = (ids - size).clamp(min=0).unsqueeze(1).expand_as(weights)
    copied = torch.zeros_like(weights).scatter_add(2, column, beyond)
    return torch.cat([words, copied.clamp(min=tiny).log() + share], dim=-1)
