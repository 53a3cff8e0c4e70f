"""Copying from the source: the pointer-generator of See, Liu & Manning (2017), section 2.2."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput

from .configuration_recurrent import RecurrentConfig


class Pointer(nn.Module):
    r"""Mixture of writing a word of the vocabulary and copying one of the source.

    The probability of writing is $p = \sigma(w_h^\top h^*_t + w_s^\top s_t + w_x^\top x_t + b)$ with the attention's
    context, the decoder's state and the embedding of its input (See et al. 2017, eq. 8); the probability of a word is
    $p P_{vocab}(w) + (1 - p) \sum_{i: w_i = w} a_i^t$ (eq. 9). $P_{vocab}$ comes from the attentional vector, which
    combines context and state as the paper's eq. 4 does, with a tanh.

    Args:
        config: Of the sequence-to-sequence model.
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        # Encoder states are as wide as decoder states.
        self.gate = nn.Linear(2 * config.hidden_size + (config.embedding_size or 0), 1)

    def forward(
        self,
        logits: Tensor,
        decoded: ModelOutput,
        encoded: ModelOutput,
        input_ids: Tensor | None,
        copy_ids: Tensor | None,
    ) -> Tensor:
        """Mix.

        Args:
            logits: Scores of the vocabulary `[B, T, V]`.
            decoded: The decoder's outputs, with hidden states and attention weights.
            encoded: The encoder's outputs.
            input_ids: Source ids `[B, S]`; None for those in `encoded`.
            copy_ids: What copying each source position produces instead, `[B, S]`, below V + S; see the model.

        Returns:
            Log-probabilities `[B, T, V]`, with `copy_ids` `[B, T, V + S]`, in float32 or more. They are finite: what
            is impossible has the logarithm of a number that is all but 0.

        Raises:
            ValueError: If there is nothing to copy, it has a wrong shape, or the decoder cannot read what is copied.
        """
        memory = encoded["last_hidden_state"]  # [B, S, M]
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
        if ids.shape != memory.shape[:2]:
            raise ValueError(f"what is to be copied has shape {tuple(ids.shape)}, expected {tuple(memory.shape[:2])}")
        dtype = torch.promote_types(logits.dtype, torch.float32)
        weights = decoded["cross_attentions"][-1].squeeze(1)  # [B, T, S]
        embedded, *_, states = decoded["hidden_states"]
        gate = self.gate(torch.cat([weights @ memory, states, embedded], dim=-1))  # [B, T, 1]
        if weights.dtype != dtype:
            # With fewer bits they do not add up to 1.
            weights = weights.to(dtype)
            weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
        return mix(logits.to(dtype), gate.to(dtype), weights, ids, extended=copy_ids is not None)


def mix(logits: Tensor, gate: Tensor, weights: Tensor, ids: Tensor, extended: bool) -> Tensor:
    """The final distribution of See et al. (2017), eq. 9, in logarithms; see `Pointer`.

    Args:
        logits: Scores of the vocabulary `[B, T, V]`.
        gate: The logit of the probability of writing `[B, T, 1]`.
        weights: Attention weights `[B, T, S]`, 0 at padding.
        ids: What copying each source position produces, `[B, S]`.
        extended: Whether the result is to have columns for ids from V to V + S - 1.
    """
    size, tiny = logits.shape[-1], torch.finfo(logits.dtype).tiny
    share = nn.functional.logsigmoid(-gate)
    words = logits.log_softmax(dim=-1) + nn.functional.logsigmoid(gate)  # [B, T, V]
    # All the attention that a word gets is put where it first occurs, so that its column is changed but once. That
    # makes few columns of a large vocabulary worth a logarithm, and leaves no doubt about the order of a sum.
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


def transition_scores(
    sequences: Tensor, scores: tuple[Tensor, ...], beam_indices: Tensor | None, normalize_logits: bool
) -> Tensor:
    """Scores of the tokens of generated sequences `[N, L]`; see `GenerationMixin.compute_transition_scores`.

    That one takes all scores to be as wide as the config's vocabulary, a pointer-generator's are wider.

    Args:
        sequences: The sequences `[N, P + L']`, of which all but the last tokens are a prompt.
        scores: One `[B * beams, W]` for each of the L' steps.
        beam_indices: Which row of the scores each token comes from, `[N, L']`, -1 after a beam's end; None for its
            own.
        normalize_logits: Whether to normalise the scores.
    """
    stacked = torch.stack(scores, dim=1)  # [B * beams, L', W]
    if normalize_logits:
        stacked = stacked.log_softmax(dim=-1)
    if beam_indices is None:
        rows = torch.arange(len(stacked), device=sequences.device)
        beam_indices = rows.unsqueeze(1).expand(-1, len(scores))
    ended = beam_indices < 0
    length = int((~ended).sum(dim=1).max())
    ended, beam_indices = ended[:, :length], beam_indices[:, :length]
    tokens = sequences[:, sequences.shape[1] - length :]
    steps = torch.arange(length, device=sequences.device)
    return stacked[beam_indices.clamp(min=0), steps, tokens].masked_fill(ended, 0.0)
