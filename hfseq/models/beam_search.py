"""Low-overhead beam search: finished sentences leave the batch, no tensor of a step is as long as the longest output.

Results are those of the loop of transformers, which carries finished sentences to the end of the batch, and several
times in each step passes over the scores of the whole vocabulary and over all sequences, filled up to `max_length`.
"""

from bisect import insort
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

# Score of what must not be chosen, as in transformers; infinities would become NaN.
_LEAST = -1e9
# Selecting rows copies the encoder states of all that stay, so it waits until an eighth of the sentences are finished.
_SHARE = 8
# Width of the blocks of `top_tokens`.
_WIDTH = 64
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


class EndsAll(StoppingCriteria):
    """A criterion that ends all sequences of a batch at once, or none, so that sentences may leave the batch."""


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
    may_leave = may_leave and all(isinstance(one, EndsAll | MaxLengthCriteria | MaxTimeCriteria) for one in others)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    logits, cache = outputs.logits[:, -1], outputs.cache
    step = model.make_decode_step(**model_kwargs | {"cache": cache})
    here = logits.device
    del outputs  # the logits of a long prompt
    while True:
        logits = logits.to(device=input_ids.device, dtype=torch.float32)
        top, ids = _best_tokens(logits, sequences, logits_processor, candidates)
        totals = (top.view(*scores.shape, -1) + scores.unsqueeze(-1)).flatten(1)
        best, at = totals.topk(min(candidates, totals.shape[1]))  # [B, candidates]
        parents, tokens = at // top.shape[-1], ids.view(len(scores), -1).gather(1, at)
        length = sequences.shape[-1] + 1 - prompt
        if prompt + length >= longest:
            ended = torch.ones_like(tokens, dtype=torch.bool)
        else:
            ended = torch.isin(tokens, ends)
        if others:
            longer = torch.cat([_gather(sequences, parents), tokens.unsqueeze(-1)], dim=-1)  # [B, candidates, T + 1]
            ended |= others(longer.flatten(0, 1), None).view_as(ended)
        hits = ended[:, :beams].nonzero().tolist()
        if hits:
            final = (best / length**config.length_penalty).tolist()
            for row, column in hits:
                if not running[row].closed:
                    sequence = torch.cat([sequences[row, parents[row, column]], tokens[row, column : column + 1]])
                    running[row].add(final[row][column], sequence)
        scores, chosen = (best + ended * _LEAST).topk(beams)
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)  # [B, beams]
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
            sequences, scores, rows = sequences[kept], scores[kept], rows[kept].flatten()
            running = [running[row] for row in stay]
            model_kwargs = {name: _select(value, rows) for name, value in model_kwargs.items() if name != "cache"}
            cache.batch_select_indices(rows.to(here))
            step = model.make_decode_step(**model_kwargs | {"cache": cache})
        else:
            cache.reorder_cache(rows.flatten())
        logits = step(sequences[:, :, -1].reshape(-1, 1).to(here))
    # As in transformers: id 0 does not pad, and without EOS nothing does.
    fill = -1 if not len(ends) else config.pad_token_id or int(ends[0])
    return _pad(sentences, input_ids[::beams], config.num_return_sequences, fill)


def _best_tokens(
    logits: Tensor, sequences: Tensor, logits_processor: LogitsProcessorList, count: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids of the best tokens after each sequence, `[B * beams, count]` each."""
    count = min(count, logits.shape[-1])
    if logits_processor:
        scores = logits_processor(sequences.flatten(0, 1), logits.log_softmax(dim=-1))
        top, ids = scores.topk(count)
        return top, ids
    top, ids = top_tokens(logits, count)
    most = top[:, :1]
    # As `logsumexp`, which takes twice as long.
    return top - ((logits - most).exp_().sum(dim=-1, keepdim=True).log_() + most), ids


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of logits `[B, V]`, in half the time on a CPU if V is large: within the blocks of the largest maxima."""
    size = logits.shape[-1] // _WIDTH
    if size < 2 * count:
        top, ids = logits.topk(count)
        return top, ids
    whole = size * _WIDTH
    blocks = logits[:, :whole].view(-1, size, _WIDTH)
    chosen = blocks.amax(dim=-1).topk(count).indices  # [B, count]
    inside = blocks.gather(1, chosen.unsqueeze(-1).expand(-1, -1, _WIDTH)).flatten(1)
    top, at = torch.cat([inside, logits[:, whole:]], dim=1).topk(count)
    behind = at - inside.shape[1] + whole  # where they are not in a block
    ids = chosen.gather(1, (at // _WIDTH).clamp(max=count - 1)) * _WIDTH + at % _WIDTH
    return top, torch.where(behind < whole, ids, behind)


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
