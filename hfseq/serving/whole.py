"""Sequences that `model.generate` generates as a whole: beams, and those of models that are not batched."""

import copy
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from hfseq.models.beam_search import SentenceCriteria
from hfseq.serving.generation import Completion, GenerationRequest, TokenLogprob
from hfseq.serving.plans import Plan, PresenceFrequencyPenalty
from hfseq.serving.rows import Row, RowText, choose, deliver, prompt_logprobs
from hfseq.serving.texts import continuation


class _Chooses(LogitsProcessor):
    """Lets a row choose its token: no other is left for greedy search."""

    def __init__(self, row: Row) -> None:
        self._row = row

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chosen = choose([self._row], scores.float())
        deliver([self._row], chosen)
        (token, _) = chosen[0]
        only = torch.full_like(scores, -torch.inf)
        only[:, token] = 0.0
        return only


class _Done(SentenceCriteria):
    """Ends rows whose future is done; in beam search each has several candidates."""

    def __init__(self, futures: Sequence[Future]) -> None:
        self._futures = futures

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        done = torch.tensor([future.done() for future in self._futures], device=input_ids.device)
        return done.repeat_interleave(len(input_ids) // len(done))

    def select(self, rows: Sequence[int]) -> None:
        """Forget the sentences that have left; see `SentenceCriteria`."""
        self._futures = [self._futures[row] for row in rows]


class _Stops(SentenceCriteria):
    """Ends beams that have a stop string.

    Args:
        jobs: The requests, each of which has equally many candidates.
        start: Number of tokens before the first generated one, padding included.
    """

    def __init__(self, jobs: Sequence["BeamJob"], start: int) -> None:
        self._jobs, self._start = jobs, start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        candidates = len(input_ids) // len(self._jobs)
        stopped = []
        for number, ids in enumerate(input_ids[:, self._start :].tolist()):
            job = self._jobs[number // candidates]
            text = continuation(job.tokenizer, job.context, ids)
            stopped.append(any(string in text for string in job.plan.stop))
        return torch.tensor(stopped, device=input_ids.device)

    def select(self, rows: Sequence[int]) -> None:
        """Forget the sentences that have left; see `SentenceCriteria`."""
        self._jobs = [self._jobs[row] for row in rows]


def run_alone(model: Any, row: Row) -> None:
    """Generate a row by itself with any causal language model.

    Args:
        model: The model, with a `generation_config` that sets nothing: the row applies its own processors.
        row: The row; its future gets the result.
    """
    ids = row.prompt.unsqueeze(0)
    if row.scores_prompt:
        counts = [row.request.logprobs or 0]
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
            row.prompt_logprobs = prompt_logprobs([row.prompt], counts, [(0, logits)])[0]
        del logits
    if row.request.max_new_tokens == 0:
        row.finish("length")
        return
    if not row.future.done():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=row.request.max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([_Chooses(row)]),
            stopping_criteria=StoppingCriteriaList([_Done([row.future])]),
        )


class BeamJob:
    """A request for beam search.

    Args:
        request: The request.
        plan: Its plan.
        tokenizer: Tokenizer of the model.

    Attributes:
        future: Future of the `n` best sequences and the log-probabilities of the prompt.
    """

    def __init__(self, request: GenerationRequest, plan: Plan, tokenizer: Any) -> None:
        self.request, self.plan, self.tokenizer = request, plan, tokenizer
        self.context = request.prompt if request.continues else ()
        self.future: Future[tuple[list[Completion], list[TokenLogprob]]] = Future()

    @property
    def group(self) -> tuple:
        """Key of the requests with which this one can share a call of `generate`."""
        request, plan = self.request, self.plan
        # Processors that read ids would read the padding.
        length = len(request.prompt) if plan.per_request else None
        penalties = request.presence_penalty, request.frequency_penalty
        return repr(sorted(request.options.items())), plan.stop, penalties, request.max_new_tokens, request.n, length


def run_beams(model: Any, jobs: Sequence[BeamJob]) -> None:
    """Run beam search for requests of one group together.

    Args:
        model: The model, exact under padding unless there is one request only.
        jobs: The requests; their futures get the results.
    """
    jobs = [job for job in jobs if not job.future.done()]
    if not jobs:
        return
    request, plan = jobs[0].request, jobs[0].plan
    prompts = [torch.as_tensor(job.request.prompt, dtype=torch.long, device=model.device) for job in jobs]
    ids = pad_sequence(prompts, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
    start = ids.shape[1]
    processors = LogitsProcessorList()
    if request.presence_penalty or request.frequency_penalty:
        processors.append(PresenceFrequencyPenalty(start, request.presence_penalty, request.frequency_penalty))
    criteria = StoppingCriteriaList([_Done([job.future for job in jobs])])
    if plan.stop:
        criteria.append(_Stops(jobs, start))
    config = copy.deepcopy(plan.asked)
    config.num_return_sequences = request.n
    sequences = model.generate(
        ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=criteria,
    )
    for number, job in enumerate(jobs):
        if job.future.done():
            continue
        found = sequences[number * request.n : (number + 1) * request.n, start:].tolist()
        completions, scores = _completions(model, job, found)
        with suppress(InvalidStateError):
            job.future.set_result((completions, scores))


@torch.inference_mode()
def _completions(
    model: Any, job: BeamJob, sequences: Sequence[list[int]]
) -> tuple[list[Completion], list[TokenLogprob]]:
    """Sequences without the padding after their end, with their log-probabilities if requested."""
    request, plan = job.request, job.plan
    completions: list[Completion] = []
    of_prompt: list[TokenLogprob] = []
    for tokens in sequences:
        logprobs: Sequence[TokenLogprob | None] = [None] * len(tokens)
        if request.logprobs is not None:
            ids = torch.tensor([*request.prompt, *tokens], device=model.device)
            logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits.float()
            scored = prompt_logprobs([ids], [request.logprobs], [(0, logits)])[0]
            logprobs = scored[len(request.prompt) :]
            of_prompt = scored[: len(request.prompt)]
        text = RowText(request, plan.stop, job.tokenizer)
        kept, reason = 0, "length"
        for token, logprob in zip(tokens, logprobs, strict=True):
            kept += 1
            text.put(token, logprob, token in plan.ends)
            if token in plan.ends or text.stopped:
                reason = "stop"
                break
        text.end()
        reason = "stop" if text.stopped else reason
        completions.append(Completion(tokens[:kept], text.text, reason, text.logprobs))
    return completions, of_prompt if request.prompt_logprobs else []
