"""Low-overhead beam search: finished sentences leave the batch, and the beams of a sentence share its source.

Results are those of the loop of transformers, which carries finished sentences to the end of the batch, repeats the
encoder states for each beam, reads the prompt with each of them, and several times in each step passes over the scores
of the whole vocabulary and over all sequences, filled up to `max_length`.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import (
    EosTokenCriteria,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.modeling_outputs import ModelOutput

from .cache import select_memory

# Score of what must not be chosen, as in transformers; infinities would become NaN.
_LEAST = -1e9
# Selecting sentences copies the encoder states of all that stay, so in large batches it waits until so many finished.
_SHARE = 32
# Width of the blocks of `best_continuations`, and how many for each token to find are worth it.
_WIDTH = 64
_BLOCKS = 4
# Processors that read nothing of a row but its ids. Others may have tensors with a row for each sentence.
_OF_IDS = (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


@dataclass
class Finished:
    """The best finished sequences of a sentence.

    Attributes:
        size: Maximum number of sequences.
        scores: Their negative scores, ascending.
        sequences: Ids of each, `[T]`.
        closed: Whether no better one is looked for.
    """

    size: int
    scores: list[float] = field(default_factory=list)
    sequences: list[Tensor] = field(default_factory=list)
    closed: bool = False

    def add(self, score: float, sequence: Tensor) -> None:
        """Add a sequence, unless there are better ones enough."""
        if score < _LEAST or (self.is_full and -score >= self.scores[-1]):
            return
        insort(self.scores, -score)
        # Behind those of an equal score, as `insort` has put it.
        self.sequences.insert(len(self.scores) - 1 - self.scores[::-1].index(-score), sequence)
        del self.scores[self.size :], self.sequences[self.size :]

    @property
    def is_full(self) -> bool:
        """True if there are as many as there may be."""
        return len(self.scores) == self.size

    def close(self, best: float, early: bool) -> None:
        """Close if enough are finished, and either the search stops then or a score of at most `best` is no better."""
        self.closed = self.closed or (self.is_full and (early or best <= -self.scores[-1]))


class SentenceCriteria(StoppingCriteria):
    """A criterion that lets sentences leave the batch: it knows none by its row, or is told which ones stay."""

    def select(self, rows: Sequence[int]) -> None:
        """Follow the batch, in which only the sentences of these rows stay; by default there is nothing to do."""


def beam_search(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Tensor:
    """Beam search without sampling as a `custom_generate` function.

    Args:
        model: Model whose `supports_decode_step` is True.
        input_ids: Prompt of the decoder, `[B * beams, T]`.
        logits_processor: Processors of the scores; with unknown ones finished sentences stay in the batch.
        stopping_criteria: Ends of sequences; others than EOS and `max_length` are given all candidates of a step;
            with those that may know the rows finished sentences stay in the batch.
        generation_config: The prepared configuration.
        model_kwargs: Other arguments of `forward`, `B * beams` rows each.

    Returns:
        Ids `[B * num_return_sequences, T + steps]`, best first.
    """
    config: Any = generation_config
    beams, longest, prompt = config.num_beams, config.max_length, input_ids.shape[1]
    found = [one.eos_token_id.to(input_ids.device) for one in stopping_criteria if isinstance(one, EosTokenCriteria)]
    others = StoppingCriteriaList(
        one
        for one in stopping_criteria
        if not isinstance(one, EosTokenCriteria) and getattr(one, "max_length", None) != longest
    )
    ends = torch.cat([one.view(-1) for one in found]) if found else input_ids.new_empty(0)
    # So many that at least `beams` of them go on: each beam ends at most once with each EOS.
    candidates = max(2, 1 + len(ends)) * beams
    far = longest - prompt if config.early_stopping == "never" and config.length_penalty > 0 else None

    sequences = input_ids.view(-1, beams, prompt)  # [B, beams, T]
    scores = torch.full(sequences.shape[:2], _LEAST, device=input_ids.device)
    scores[:, 0] = 0  # the beams are equal yet
    sentences = [Finished(beams) for _ in range(len(sequences))]
    running = list(sentences)

    may_leave = all(type(one) in _OF_IDS for one in logits_processor)
    # Others may know the rows by their numbers.
    known = SentenceCriteria | MaxLengthCriteria | MaxTimeCriteria
    may_leave = may_leave and all(isinstance(one, known) for one in others)
    # One row for each sentence: its beams have one source and, at first, one prompt.
    firsts = torch.arange(0, len(input_ids), beams, device=input_ids.device)
    model_kwargs = {name: _select(value, firsts) for name, value in model_kwargs.items()}
    inputs = model.prepare_inputs_for_generation(input_ids[firsts], is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    logits, cache = outputs.logits[:, -1].repeat_interleave(beams, dim=0), outputs.cache
    here = logits.device
    del outputs  # the logits of a long prompt
    cache.reorder_cache(torch.arange(len(firsts), device=here).repeat_interleave(beams))
    step = model.make_decode_step(**model_kwargs | {"cache": cache})
    while True:
        values = logits.to(device=input_ids.device, dtype=torch.float32).log_softmax(dim=-1)
        if logits_processor:
            values = logits_processor(sequences.flatten(0, 1), values)
        best, parents, tokens = best_continuations(values.view(*scores.shape, -1), scores, candidates)
        length = sequences.shape[-1] + 1 - prompt
        if prompt + length >= longest:
            ended = torch.ones_like(tokens, dtype=torch.bool)
        else:
            ended = torch.isin(tokens, ends)
        if others:
            longer = torch.cat([_gather(sequences, parents), tokens.unsqueeze(-1)], dim=-1)  # [B, candidates, T + 1]
            ended |= others(longer.flatten(0, 1), None).view_as(ended)
        scores = best[:, :beams]
        if ended.any():
            rows, columns = ended[:, :beams].nonzero(as_tuple=True)
            complete = torch.cat([sequences[rows, parents[rows, columns]], tokens[rows, columns].unsqueeze(1)], dim=1)
            final = (scores[rows, columns] / length**config.length_penalty).tolist()
            for row, score, sequence in zip(rows.tolist(), final, complete, strict=True):
                if not running[row].closed:
                    running[row].add(score, sequence)
            scores, chosen = (best + ended * _LEAST).topk(beams)
            parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        parents, tokens = parents[:, :beams], tokens[:, :beams]
        sequences = torch.cat([_gather(sequences, parents), tokens.unsqueeze(-1)], dim=-1)
        if prompt + length >= longest or ended.all():
            break
        if any(one.is_full for one in running):
            reachable = (scores[:, 0] / (far or length) ** config.length_penalty).tolist()
            for one, bound in zip(running, reachable, strict=True):
                one.close(bound, config.early_stopping is True)
        stay = [row for row, one in enumerate(running) if not one.closed]
        if not stay:
            break
        rows = torch.arange(len(running), device=input_ids.device).unsqueeze(1) * beams + parents  # [B, beams]
        if may_leave and len(stay) <= len(running) - max(len(running) // _SHARE, 1):
            kept = torch.tensor(stay, device=input_ids.device)
            sequences, scores, rows = sequences[kept], scores[kept], rows[kept]
            running = [running[row] for row in stay]
            for one in others:
                if isinstance(one, SentenceCriteria):
                    one.select(stay)
            model_kwargs = {name: _select(value, kept) for name, value in model_kwargs.items() if name != "cache"}
            select_memory(cache, kept)
            step = model.make_decode_step(**model_kwargs | {"cache": cache})
        cache.reorder_cache(rows.flatten())
        logits = step(sequences[:, :, -1].reshape(-1, 1).to(here))
    # As in transformers: id 0 does not pad, and without EOS nothing does.
    fill = -1 if not len(ends) else config.pad_token_id or int(ends[0])
    return _pad(sentences, input_ids[::beams], config.num_return_sequences, fill)


def best_continuations(values: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best tokens after all beams of a sentence; in half the time if the vocabulary is large, by blocks of it.

    The best ones lie in the blocks with the largest maxima, so that only those are searched.

    Args:
        values: Log-probabilities of the next tokens, `[B, beams, V]`.
        scores: Scores of the beams, `[B, beams]`.
        count: Number of tokens to find for each sentence.

    Returns:
        Scores of the continued beams in descending order, their beams and their tokens, `[B, count]` each, or fewer
        if there are fewer.
    """
    batch, beams, vocabulary = values.shape
    size, rest = divmod(vocabulary, _WIDTH)
    if beams * size < _BLOCKS * count:
        totals = (values + scores.unsqueeze(-1)).flatten(1)
        best, at = totals.topk(min(count, totals.shape[1]))
        return best, at // vocabulary, at % vocabulary
    blocks = values[:, :, : size * _WIDTH].unflatten(-1, (size, _WIDTH))
    maxima = blocks.amax(dim=-1) + scores.unsqueeze(-1)  # [B, beams, size]
    chosen = maxima.flatten(1).topk(count).indices
    owners, chosen = chosen // size, chosen % size  # [B, count]
    row = torch.arange(batch, device=values.device).unsqueeze(1)
    inside = blocks[row, owners, chosen] + scores.gather(1, owners).unsqueeze(-1)  # [B, count, width]
    behind = values[:, :, size * _WIDTH :] + scores.unsqueeze(-1)  # [B, beams, rest], in no block
    best, at = torch.cat([inside.flatten(1), behind.flatten(1)], dim=1).topk(count)
    place = (at // _WIDTH).clamp(max=count - 1)
    parents, tokens = owners.gather(1, place), chosen.gather(1, place) * _WIDTH + at % _WIDTH
    if rest:
        beyond = at - count * _WIDTH
        parents = torch.where(beyond < 0, parents, beyond // rest)
        tokens = torch.where(beyond < 0, tokens, size * _WIDTH + beyond % rest)
    return best, parents, tokens


def _gather(sequences: Tensor, parents: Tensor) -> Tensor:
    """Sequences `[B, N, T]` of the beams `parents` `[B, N]`."""
    return sequences.gather(1, parents.unsqueeze(-1).expand(-1, -1, sequences.shape[-1]))


def _select(value: Any, rows: Tensor) -> Any:
    """Rows of the tensors in an argument of the model."""
    if isinstance(value, Tensor):
        return value.index_select(0, rows.to(value.device))
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _select(one, rows) for name, one in value.items()})
    if isinstance(value, tuple):
        return tuple(_select(one, rows) for one in value)
    return value


def _pad(sentences: list[Finished], prompts: Tensor, count: int, fill: int) -> Tensor:
    """The `count` best sequences of each sentence, padded; the prompt stands for one that was not found."""
    found = []
    for one, prompt in zip(sentences, prompts, strict=True):
        found += one.sequences[:count] + [prompt] * max(count - len(one.sequences), 0)
    output = prompts.new_full((len(found), max(map(len, found))), fill)
    for row, sequence in enumerate(found):
        output[row, : len(sequence)] = sequence
    return output
