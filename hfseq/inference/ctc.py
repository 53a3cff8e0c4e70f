"""Decoding for connectionist temporal classification (CTC; Graves et al. 2006).

>>> logits = model(**inputs).logits  # of any `AutoModelForCTC`
>>> rows = ctc_beam_search(logits, blank_token_id=model.config.pad_token_id, language_model=lm, lm_weight=0.5)
>>> texts = [tokenizer.decode(hypotheses[0].token_ids, group_tokens=False) for hypotheses in rows]
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from hfseq.errors import InputError
from hfseq.models import is_hfseq
from hfseq.models.padding import take_steps, valid_first

# Log-probability of a token to which a language model gives none. Unlike -inf it can be multiplied by a weight of 0,
# and texts that CTC allows stay ahead of unused beams.
_LOG_ZERO = -1e30


class CtcHypothesis(NamedTuple):
    """Hypothesis of a CTC beam search.

    Attributes:
        token_ids: Token ids, without blanks. They are not to be grouped again: a double letter is two tokens
            (`group_tokens=False` of `Wav2Vec2CTCTokenizer.decode`).
        score: What the search maximizes, see `ctc_beam_search`.
        ctc_log_prob: Log-probability of the text under CTC, summed over the alignments that the search has kept.
        lm_log_prob: Log-probability of the text under the language model, EOS included; 0 without one.
        start_offsets: Frame in which each token begins in the best alignment, if offsets were requested.
        end_offsets: Frame after the last one of each token, if offsets were requested.
    """

    token_ids: list[int]
    score: float
    ctc_log_prob: float
    lm_log_prob: float
    start_offsets: list[int] | None = None
    end_offsets: list[int] | None = None


class CtcAlignment(NamedTuple):
    """Most probable alignment of a text.

    Offsets count frames of the logits, padding included. Multiplied by `config.inputs_to_logits_ratio` they are
    samples of the audio.

    Attributes:
        start_offsets: First frame of each token.
        end_offsets: Frame after the last one of each token.
        log_prob: Log-probability of the alignment.
    """

    start_offsets: list[int]
    end_offsets: list[int]
    log_prob: float


@torch.no_grad()
def ctc_beam_search(
    logits: Tensor,
    attention_mask: Tensor | None = None,
    *,
    blank_token_id: int,
    num_beams: int = 16,
    num_return_sequences: int = 1,
    language_model: PreTrainedModel | None = None,
    lm_weight: float = 0.5,
    length_bonus: float = 0.0,
    lm_token_ids: Tensor | None = None,
    lm_start_token_id: int | None = None,
    output_offsets: bool = False,
) -> list[list[CtcHypothesis]]:
    r"""Prefix beam search fused with a language model (Hannun et al. 2014, algorithm 1; Graves 2012, section 7.5).

    It maximizes the log-probability of a text under CTC, plus `lm_weight` times that under the language model, plus
    `length_bonus` times the number of tokens. At each frame it keeps the `num_beams` best prefixes of a row. The
    probabilities of a prefix's alignments are summed, those that end in a blank apart from the others, and prefixes
    reached in several ways are merged. Only alignments through a dropped prefix are lost: with enough beams the scores
    are exact. The language model scores each token when it is emitted and, after the last frame, EOS, if it has one;
    what it gives to tokens that CTC does not have is not redistributed.

    With `num_beams=1` the search follows a single prefix, at each frame the one whose alignments through the earlier
    choices have the largest sum. Without a language model and a bonus that is best path decoding (argmax, repeats
    merged, blanks removed) if in every frame some symbol has a probability above $1/\sqrt{2}$; otherwise the two may
    differ.

    A row's result does not depend on the other rows, nor on padding, which is skipped wherever it is.

    Args:
        logits: Logits or log-probabilities of a CTC model, `[B, T, V]`; bfloat16 and float16 become float32.
        attention_mask: 1 at valid frames of the logits, `[B, T]`; all are by default. With subsampling that is not the
            mask of the model's inputs.
        blank_token_id: Token id of the blank, `config.pad_token_id` of a CTC model of transformers.
        num_beams: Number of prefixes K kept at each frame.
        num_return_sequences: Maximum number of hypotheses per row, at most `num_beams`.
        language_model: Any causal language model, which is put into evaluation mode. Only new prefixes are passed
            to it, those of all rows at once: to one of hfseq their last tokens, with the states of its cache; to any
            other the whole prefixes.
        lm_weight: Weight of the language model, at least 0.
        length_bonus: Bonus per token, against the preference of the language model for short texts.
        lm_token_ids: Token id in the language model for each token of CTC, `[V]`, at the blank ignored; None if both
            have the same vocabulary.
        lm_start_token_id: Token id that the language model reads before the first token. By default EOS, with which
            hfseq's language models are trained; models of other libraries may want BOS.
        output_offsets: Whether to align the hypotheses, see `ctc_alignment`.

    Returns:
        For each row its hypotheses, best first; one or more, but fewer than `num_return_sequences` if no more texts
        than that are possible. A row without valid frames has the empty text alone.

    Raises:
        InputError: A shape, token id, or number is not as described; the logits of a valid frame are not finite, or
            all of them are -inf; the model is not a causal language model, or its logits are NaN.
    """
    log_probs, lengths, _ = _log_probs(logits, attention_mask, blank_token_id)
    _check_numbers(num_beams, num_return_sequences, lm_weight, length_bonus)
    rows, _, vocab_size = log_probs.shape
    lm = None
    if language_model is not None:
        _check_language_model(language_model)
        ids = _lm_token_ids(language_model, lm_token_ids, blank_token_id, vocab_size)
        start = _start_token_id(language_model, lm_start_token_id)
        lm = _LanguageModel(language_model, ids, blank_token_id, start, like=log_probs)
    elif lm_token_ids is not None or lm_start_token_id is not None:
        raise InputError("lm_token_ids and lm_start_token_id need a language_model")

    num_frames = int(lengths.max())
    prefixes = _Prefixes(rows, num_beams, num_frames, blank_token_id, log_probs.device)
    ctc = _CtcScores(prefixes, log_probs)
    if lm is not None:
        lm.begin(rows, num_beams)
    gain = log_probs.new_full((vocab_size,), length_bonus)
    gain[blank_token_id] = 0.0
    for step in range(num_frames):
        candidates = ctc.candidates(log_probs[:, step], prefixes)
        longer = length_bonus * (prefixes.lengths - prefixes.lengths[:, :1])
        if lm is None:
            ranks = candidates + gain + longer.unsqueeze(2)
        else:
            ranks = candidates + (gain + lm_weight * lm.tokens) + (longer + lm_weight * lm.total).unsqueeze(2)
        best = ranks.flatten(1).topk(num_beams).indices
        # Beams stay where they are at padding: else the order of equal ones would depend on it.
        valid = (step < lengths).unsqueeze(1)
        best = torch.where(valid, best, prefixes.unchanged(vocab_size))
        source, token = best // vocab_size, best % vocab_size
        new = ctc.select(best, source, token != blank_token_id, valid)
        prefixes.extend(source, token)
        if lm is not None:
            lm.advance(best, source, new, prefixes)

    counts, tokens = prefixes.lengths.cpu(), prefixes.tokens.cpu()
    ctc_log_probs = _sum(ctc.total, ctc.offsets)
    lm_log_probs = torch.zeros_like(ctc_log_probs) if lm is None else _sum(lm.total + lm.end, lm.offsets)
    scores = ctc_log_probs + lm_weight * lm_log_probs + length_bonus * counts
    if scores.isnan().any():
        raise InputError("language_model: its logits are NaN")
    lm_log_probs = lm_log_probs.masked_fill(lm_log_probs < _LOG_ZERO / 2, -math.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :num_return_sequences]
    fields = [values.gather(1, order).tolist() for values in (counts, scores, ctc_log_probs, lm_log_probs)]
    hypotheses = [
        [
            CtcHypothesis(text[:count], score, ctc_log_prob, lm_log_prob)
            for text, count, score, ctc_log_prob, lm_log_prob in zip(*row, strict=True)
            if ctc_log_prob > -math.inf  # else the beam was never used
        ]
        for row in zip(take_steps(tokens, order).tolist(), *fields, strict=True)
    ]
    return _with_offsets(hypotheses, logits, attention_mask, blank_token_id) if output_offsets else hypotheses


@torch.no_grad()
def ctc_alignment(
    logits: Tensor,
    labels: Tensor | Sequence[Sequence[int]],
    attention_mask: Tensor | None = None,
    *,
    blank_token_id: int,
) -> list[CtcAlignment]:
    """Most probable alignment of known texts: the Viterbi path through the states of Graves et al. 2006, section 4.1.

    Args:
        logits: Logits or log-probabilities of a CTC model, `[B, T, V]`; bfloat16 and float16 become float32.
        labels: Token ids of each row's text without blanks: rows of any length, or a tensor `[B, L]` with -100 at
            padding, wherever that is.
        attention_mask: 1 at valid frames of the logits, `[B, T]`; all are by default.
        blank_token_id: Token id of the blank.

    Returns:
        The alignment of each row.

    Raises:
        InputError: A shape or token id is not as described; the logits of a valid frame are not finite; a row has
            fewer frames than its text needs, or no alignment of a positive probability.
    """
    log_probs, lengths, positions = _log_probs(logits, attention_mask, blank_token_id)
    texts = _label_rows(labels, lengths, log_probs.shape[2], blank_token_id)
    device, num_frames = log_probs.device, int(lengths.max())
    # The states of a row: its tokens with blanks around them, [B, S]; those after the end are never read.
    states = torch.full((len(texts), 2 * max(map(len, texts)) + 1), blank_token_id)
    for row, text in enumerate(texts):
        states[row, 1 : 2 * len(text) : 2] = torch.tensor(text, dtype=torch.long)
    states = states.to(device)
    # From one token to the next without a blank, unless they are equal.
    skips = torch.zeros_like(states, dtype=torch.bool)
    skips[:, 3::2] = states[:, 3::2] != states[:, 1:-2:2]
    scores = torch.full(states.shape, -math.inf, dtype=log_probs.dtype, device=device)
    scores[:, 0] = 0.0
    moves, offsets = [], []
    for step in range(num_frames):
        one, two = scores.roll(1, dims=1), scores.roll(2, dims=1)
        one[:, 0] = -math.inf
        best, move = torch.stack([scores, one, two.masked_fill(~skips, -math.inf)]).max(dim=0)
        valid = (step < lengths).unsqueeze(1)
        scores = torch.where(valid, best + log_probs[:, step].gather(1, states), scores)
        # Relative to the best, as in the search; the states of a row whose labels are impossible are all -inf.
        offsets.append(scores.amax(dim=1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min))
        scores = scores - offsets[-1]
        moves.append(move.masked_fill(~valid, 0).to(torch.int8))
    # The path ends in the last token or in the blank after it.
    last = 2 * torch.tensor([len(text) for text in texts], device=device).unsqueeze(1)
    ends = torch.cat([last, (last - 1).clamp(min=0)], dim=1)  # [B, 2]
    totals, chosen = scores.gather(1, ends).max(dim=1, keepdim=True)
    if impossible := (totals == -math.inf).nonzero().tolist():
        raise InputError(f"row {impossible[0][0]}: the logits give its labels a probability of 0")
    state = ends.gather(1, chosen)
    path = []
    for move in reversed(moves):
        path.append(state)
        state = state - move.gather(1, state)
    states_at = torch.cat([*reversed(path), state[:, :0]], dim=1)  # [B, T]
    frames, valid = positions[:, :num_frames], torch.arange(num_frames, device=device) < lengths.unsqueeze(1)
    first, after = frames.masked_fill(~valid, logits.shape[1]), (frames + 1).masked_fill(~valid, 0)
    starts = torch.full_like(states, logits.shape[1]).scatter_reduce(1, states_at, first, "amin")[:, 1::2].tolist()
    stops = torch.zeros_like(states).scatter_reduce(1, states_at, after, "amax")[:, 1::2].tolist()
    return [
        CtcAlignment(start[: len(text)], stop[: len(text)], total)
        for text, start, stop, total in zip(
            texts, starts, stops, _sum(totals, offsets).flatten().tolist(), strict=True
        )
    ]


def _sum(relative: Tensor, offsets: list[Tensor]) -> Tensor:
    """Sum of scores `[B, K]` and what was subtracted from them, each `[B, 1]`, in float64 on the CPU.

    Not every device has float64.
    """
    total = relative.cpu().double()
    return total + torch.cat(offsets, dim=1).cpu().double().sum(dim=1, keepdim=True) if offsets else total


class _Prefixes:
    """Texts in the beams of all rows, and which of them extends which other by one token.

    A prefix may leave the beam and come back while texts that extend it have stayed, so that it is not enough to
    remember the beam that each text came from. The length of the common prefix of each two texts is kept instead: it
    follows from that of the frame before, without a comparison of whole texts.

    Attributes:
        tokens: Token ids, -1 after the last one, `[B, K, N + 1]`.
        lengths: Number of tokens, `[B, K]`.
        last: Last token, the blank for the empty text, `[B, K]`.
        common: Length of the common prefix of each two texts of a row, `[B, K, K]`.

    Args:
        rows: Number of rows B.
        beams: Number of prefixes per row K.
        longest: Maximum number of tokens N.
        blank: Token id of the blank.
        device: Device.
    """

    def __init__(self, rows: int, beams: int, longest: int, blank: int, device: torch.device) -> None:
        self.blank = blank
        self.tokens = torch.full((rows, beams, longest + 1), -1, device=device)
        self.lengths = torch.zeros(rows, beams, dtype=torch.long, device=device)
        self.last = torch.full_like(self.lengths, blank)
        self.common = torch.zeros(rows, beams, beams, dtype=torch.long, device=device)

    def unchanged(self, vocab_size: int) -> Tensor:
        """Candidates `[K]` of the prefixes as they are, see `_CtcScores.candidates`."""
        return torch.arange(self.last.shape[1], device=self.last.device) * vocab_size + self.blank

    def parents(self, alive: Tensor) -> tuple[Tensor, Tensor]:
        """Find the parent of each prefix, which is the prefix without its last token.

        Args:
            alive: True in beams that are in use, `[B, K]`; the others, whose texts are arbitrary, are left out.

        Returns:
            True where the parent is in the beam, and its place there, both `[B, K]`.
        """
        one, other = self.lengths.unsqueeze(2), self.lengths.unsqueeze(1)
        extends = (self.common == one) & (other == one + 1) & alive.unsqueeze(2) & alive.unsqueeze(1)
        found, parent = extends.byte().max(dim=1)
        return found.bool(), parent

    def extend(self, source: Tensor, token: Tensor) -> None:
        """Replace the prefixes.

        Args:
            source: Beam from which each of the new prefixes comes, `[B, K]`.
            token: Token that extends it, or the blank if none does, `[B, K]`.
        """
        extended = token != self.blank
        self.tokens, lengths = take_steps(self.tokens, source), self.lengths.gather(1, source)
        self.tokens.scatter_(2, lengths.unsqueeze(2), token.masked_fill(~extended, -1).unsqueeze(2))
        self.lengths = lengths + extended
        self.last = torch.where(extended, token, self.last.gather(1, source))
        # Texts that differed somewhere still do. If one was the beginning of the other, they may now share one more
        # token.
        common = take_steps(self.common, source).gather(2, source.unsqueeze(1).expand_as(self.common))
        following = self.tokens.gather(2, common)
        self.common = common + ((following == following.transpose(1, 2)) & (following >= 0))


class _CtcScores:
    """Log-probabilities of prefixes under CTC.

    They are relative to the first prefix of the row, the best one, so that float32 is precise enough for recordings of
    any length.

    Attributes:
        after_blank: Sum over the alignments that end in a blank, `[B, K]`.
        after_token: Sum over those that end in the last token of the prefix, `[B, K]`.
        total: Sum over both, `[B, K]`; -inf in beams that are not in use, at first all but one.
        offsets: What was subtracted at each frame, `[B, 1]`.

    Args:
        prefixes: The empty prefixes.
        like: Tensor with the type of the scores.
    """

    def __init__(self, prefixes: _Prefixes, like: Tensor) -> None:
        self.after_token = like.new_full(prefixes.last.shape, -math.inf)
        self.after_blank = self.after_token.clone()
        self.after_blank[:, 0] = 0.0
        self.total = self.after_blank
        self.offsets: list[Tensor] = []

    def candidates(self, frame: Tensor, prefixes: _Prefixes) -> Tensor:
        """Score all prefixes that one more frame may lead to.

        Args:
            frame: Log-probabilities of the frame, `[B, V]`.
            prefixes: The prefixes before it.

        Returns:
            Scores of each prefix extended by each token, and, in the column of the blank, left as it is, `[B, K, V]`;
            -inf where the same prefix stands in another place.
        """
        blank, last = prefixes.blank, frame.gather(1, prefixes.last)  # [B, K]
        # A prefix stays as it is by a blank, or by one more frame of its last token.
        stays_blank, stays_token = self.total + frame[:, blank, None], self.after_token + last
        # The last token is a second one only after a blank.
        found = self.total.unsqueeze(2) + frame.unsqueeze(1)
        found.scatter_(2, prefixes.last.unsqueeze(2), (self.after_blank + last).unsqueeze(2))
        found[:, :, blank] = -math.inf
        # Where a parent extends to a prefix that is there already, that one takes the sum. Those without a parent in
        # the beam read the column of the blank, which is still empty.
        exists, parent = prefixes.parents(self.total > -math.inf)
        self.flat = found.flatten(1)
        vocab_size = frame.shape[1]
        twin = torch.where(exists, parent * vocab_size + prefixes.last, prefixes.unchanged(vocab_size))
        stays_token = torch.logaddexp(stays_token, self.flat.gather(1, twin))
        self.flat.scatter_(1, twin, -math.inf)
        found[:, :, blank] = torch.logaddexp(stays_blank, stays_token)
        self.stays_blank, self.stays_token = stays_blank, stays_token
        return found

    def select(self, best: Tensor, source: Tensor, extended: Tensor, valid: Tensor) -> Tensor:
        """Keep the best candidates.

        Args:
            best: Index of each in the flattened candidates, best first, `[B, K]`.
            source: Beam it comes from, `[B, K]`.
            extended: True where a token was added, `[B, K]`.
            valid: False if this frame is padding, `[B, 1]`.

        Returns:
            True at new prefixes of a positive probability, `[B, K]`.
        """
        after_blank = self.stays_blank.gather(1, source).masked_fill(extended, -math.inf)
        after_token = torch.where(extended, self.flat.gather(1, best), self.stays_token.gather(1, source))
        offset = torch.logaddexp(after_blank, after_token)[:, :1].masked_fill(~valid, 0.0)
        self.after_blank, self.after_token = after_blank - offset, after_token - offset
        self.total = torch.logaddexp(self.after_blank, self.after_token)
        self.offsets.append(offset)
        return extended & (self.after_token > -math.inf)


class _LanguageModel:
    """Scores of prefixes, and of the tokens that may follow them, under a language model.

    Attributes:
        total: Log-probabilities of the prefixes relative to the first one of the row, `[B, K]`.
        tokens: Log-probabilities of CTC's tokens after each prefix, 0 at the blank, `[B, K, V]`.
        end: Log-probability of EOS after each prefix, 0 if the model has none, `[B, K]`.
        offsets: What was subtracted from `total` at each frame, `[B, 1]`.

    Args:
        model: Causal language model.
        token_ids: Its token id for each token of CTC, `[V]`.
        blank: Token id of CTC's blank.
        start: Token id it reads before the first token.
        like: Tensor with the type and device of the scores.
    """

    def __init__(self, model: PreTrainedModel, token_ids: Tensor, blank: int, start: int, like: Tensor) -> None:
        self.model, self.blank, self.like = model.eval(), blank, like
        self.token_ids = token_ids.to(model.device)
        self.start = torch.tensor([[start]], device=model.device)
        self.eos = torch.tensor(_eos_token_ids(model), dtype=torch.long, device=model.device)
        # States of the prefixes; None for a model whose cache is not made of states.
        self.cache: Any = DynamicCache() if is_hfseq(model.config) else None
        self.offsets: list[Tensor] = []

    def begin(self, rows: int, beams: int) -> None:
        """Score the first token of empty prefixes."""
        options = {"use_cache": False} if self.cache is None else {"cache": self.cache, "use_cache": True}
        outputs: Any = self.model(input_ids=self.start, **options)
        tokens, end = self._scores(outputs.logits[:, -1])
        self.total = self.like.new_zeros(rows, beams)
        self.tokens, self.end = tokens.repeat(rows, beams, 1), end.repeat(rows, beams)
        if self.cache is not None:
            self.cache.batch_repeat_interleave(rows * beams)

    def advance(self, best: Tensor, source: Tensor, new: Tensor, prefixes: _Prefixes) -> None:
        """Score the tokens after new prefixes; those after the others are known.

        Args:
            best: Index of each prefix in the flattened candidates, best first, `[B, K]`.
            source: Beam it comes from, `[B, K]`.
            new: True where it is longer than that and of a positive probability, `[B, K]`.
            prefixes: The prefixes.
        """
        total = self.total.gather(1, source) + self.tokens.flatten(1).gather(1, best)
        self.offsets.append(total[:, :1])
        self.total = total - self.offsets[-1]
        self.tokens, self.end = take_steps(self.tokens, source), self.end.gather(1, source)
        if self.cache is not None:
            first = torch.arange(len(source), device=source.device).unsqueeze(1) * source.shape[1]
            self.cache.reorder_cache((first + source).flatten())
        rows = new.flatten().nonzero().flatten()
        if len(rows):
            if self.cache is not None:
                logits = self._step(rows, prefixes.last.flatten()[rows])
            else:
                logits = self._read(prefixes.tokens.flatten(0, 1)[rows], prefixes.lengths.flatten()[rows])
            tokens, end = self._scores(logits)
            self.tokens.flatten(0, 1).index_copy_(0, rows, tokens)
            self.end.flatten().index_copy_(0, rows, end)

    def _step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Logits `[M, L]` after one more token `[M]` of the prefixes `rows` `[M]`, whose states are updated."""
        rows = rows.to(self.start.device)
        cache: Any = DynamicCache()
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.reorder_cache(rows)
        ids = self.token_ids[tokens.to(rows.device)].unsqueeze(1)
        outputs: Any = self.model(input_ids=ids, cache=cache, use_cache=True)
        for layer, stepped in zip(self.cache.layers, cache.layers, strict=True):
            for state, new in zip(layer.states, stepped.states, strict=True):
                state.index_copy_(0, rows, new)
        return outputs.logits[:, -1]

    def _read(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits `[M, L]` after whole prefixes `[M, N]` of so many tokens `[M]`, with padding on the right."""
        longest = int(lengths.max())
        tokens, lengths = tokens[:, :longest].to(self.start.device), lengths.to(self.start.device)
        ids = torch.cat([self.start.expand(len(tokens), 1), self.token_ids[tokens.clamp(min=0)]], dim=1)
        mask = torch.arange(longest + 1, device=ids.device) <= lengths.unsqueeze(1)
        # Prefixes have few different lengths: logits of all steps could be much larger.
        steps, place = lengths.unique(return_inverse=True)
        outputs: Any = self.model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=steps, use_cache=False)
        return outputs.logits[torch.arange(len(ids), device=ids.device), place]

    def _scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[M, V]` of CTC's tokens and `[M]` of EOS, from logits `[M, L]`."""
        logits = logits.to(self.like.dtype)
        total = logits.logsumexp(dim=1, keepdim=True)
        tokens = (logits.index_select(1, self.token_ids) - total).clamp(min=_LOG_ZERO).to(self.like.device)
        tokens[:, self.blank] = 0.0
        if not len(self.eos):
            return tokens, tokens.new_zeros(len(tokens))
        ends = logits.index_select(1, self.eos).logsumexp(dim=1) - total.squeeze(1)
        return tokens, ends.clamp(min=_LOG_ZERO).to(self.like.device)


def _log_probs(logits: Tensor, attention_mask: Tensor | None, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the valid frames, moved to the left.

    Returns:
        Log-probabilities `[B, T, V]`, those of a certain blank at padding; the number of valid frames, `[B]`; the
        frame of the logits that each one was, `[B, T]`.
    """
    if logits.ndim != 3 or 0 in logits.shape or not logits.is_floating_point():
        raise InputError(
            f"logits: expected numbers of shape (batch, frames, vocabulary), each at least 1, "
            f"got {str(logits.dtype).removeprefix('torch.')} of shape {tuple(logits.shape)}"
        )
    if not 0 <= blank < logits.shape[2]:
        raise InputError(f"blank_token_id: {blank} is not a token of the logits, which have {logits.shape[2]}")
    if attention_mask is not None and attention_mask.shape != logits.shape[:2]:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the logits have frames of shape "
            f"{tuple(logits.shape[:2])}: with subsampling, the mask of the subsampled frames is needed"
        )
    log_probs = logits.log_softmax(dim=2, dtype=torch.promote_types(logits.dtype, torch.float32))
    mask = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if attention_mask is not None:
        mask = attention_mask.to(logits.device) != 0
    if broken := (log_probs.isnan().any(dim=2) & mask).nonzero().tolist():
        row, frame = broken[0]
        raise InputError(f"logits: row {row}, frame {frame} has NaN or infinite values")
    order, _, _, valid = valid_first(mask)
    log_probs = take_steps(log_probs, order)
    log_probs = log_probs.masked_fill(~valid.unsqueeze(2), -math.inf)
    log_probs[:, :, blank].masked_fill_(~valid, 0.0)
    return log_probs, mask.sum(dim=1), order


def _check_numbers(num_beams: int, num_return_sequences: int, lm_weight: float, length_bonus: float) -> None:
    """Check the numbers that `ctc_beam_search` takes."""
    if num_beams < 1:
        raise InputError(f"num_beams: {num_beams} is too few, at least 1 is needed")
    if not 1 <= num_return_sequences <= num_beams:
        raise InputError(f"num_return_sequences: {num_return_sequences} is not between 1 and num_beams, {num_beams}")
    if not 0.0 <= lm_weight < math.inf:
        raise InputError(f"lm_weight: {lm_weight} is not a number of at least 0")
    if not math.isfinite(length_bonus):
        raise InputError(f"length_bonus: {length_bonus} is not a finite number")


def _check_language_model(model: PreTrainedModel) -> None:
    """Check that a model is a causal language model."""
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise InputError(f"language_model: {type(model).__name__} is not a causal language model, …ForCausalLM")


def _lm_token_ids(model: PreTrainedModel, ids: Tensor | None, blank: int, vocab_size: int) -> Tensor:
    """Token id in the language model for each token of CTC, `[V]`; any valid one for the blank."""
    size = model.config.get_text_config(decoder=True).vocab_size
    if ids is None:
        if size != vocab_size:
            raise InputError(
                f"language_model has a vocabulary of {size} tokens, the logits have {vocab_size}: "
                "lm_token_ids must map these to those"
            )
        return torch.arange(vocab_size)
    if ids.shape != (vocab_size,) or ids.is_floating_point():
        raise InputError(
            f"lm_token_ids: expected token ids of shape {(vocab_size,)}, one for each token of the logits, "
            f"got {str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}"
        )
    ids = ids.long().clone()
    ids[blank] = 0
    if outside := ((ids < 0) | (ids >= size)).nonzero().flatten().tolist():
        token = outside[0]
        raise InputError(
            f"lm_token_ids: token {token} is mapped to {ids[token]}, which is not between 0 and {size - 1}; "
            "a token that the language model does not have may be its unknown token"
        )
    return ids


def _eos_token_ids(model: PreTrainedModel) -> list[int]:
    """EOS token ids of a language model: none, one, or several."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _start_token_id(model: PreTrainedModel, start: int | None) -> int:
    """Token id that a language model reads first."""
    size = model.config.get_text_config(decoder=True).vocab_size
    if start is None:
        ends = _eos_token_ids(model)
        if not ends:
            raise InputError("lm_start_token_id is needed, since the language model has no EOS token to begin with")
        start = ends[0]
    if not 0 <= start < size:
        raise InputError(f"lm_start_token_id: {start} is not between 0 and {size - 1}")
    return start


def count_repeats(labels: Sequence[int]) -> int:
    """Number of labels that equal the one before, each of which takes a blank between."""
    return sum(one == other for one, other in pairwise(labels))


def _label_rows(
    labels: Tensor | Sequence[Sequence[int]], lengths: Tensor, vocab_size: int, blank: int
) -> list[list[int]]:
    """Labels of each row without padding, checked against the vocabulary and the number of valid frames `[B]`."""
    listed = labels.tolist() if isinstance(labels, Tensor) else labels
    rows = [[token for token in row if token != -100] for row in listed]
    if len(rows) != len(lengths):
        raise InputError(f"labels: {len(rows)} rows for {len(lengths)} rows of logits")
    for number, (row, frames) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        for token in row:
            if token == blank or not 0 <= token < vocab_size:
                problem = "is the blank" if token == blank else f"is not between 0 and {vocab_size - 1}"
                raise InputError(f"labels: row {number} has the token {token}, which {problem}")
        repeated = count_repeats(row)
        if len(row) + repeated > frames:
            raise InputError(
                f"row {number} has {frames} frames, too few for {len(row)} labels"
                + (f", of which {repeated} repeat the one before and need a blank between" if repeated else "")
            )
    return rows


def _with_offsets(
    hypotheses: list[list[CtcHypothesis]], logits: Tensor, attention_mask: Tensor | None, blank: int
) -> list[list[CtcHypothesis]]:
    """The hypotheses with their offsets."""
    counts = torch.tensor([len(row) for row in hypotheses], device=logits.device)
    mask = None if attention_mask is None else attention_mask.to(logits.device).repeat_interleave(counts, dim=0)
    texts = [hypothesis.token_ids for row in hypotheses for hypothesis in row]
    found = iter(ctc_alignment(logits.repeat_interleave(counts, dim=0), texts, mask, blank_token_id=blank))
    return [
        [
            one._replace(start_offsets=alignment.start_offsets, end_offsets=alignment.end_offsets)
            for one, alignment in zip(row, found, strict=False)
        ]
        for row in hypotheses
    ]
