"""A language model as it is served: any causal model of hfseq, its ONNX export, or one of transformers."""

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from hfseq.data.collation import vocabulary_sizes
from hfseq.models.heads_causal import ForCausalLM
from hfseq.onnx.runtime import OnnxForCausalLM
from hfseq.serving.batcher import Batcher
from hfseq.serving.dynamic import Closed, DynamicBatcher, Item
from hfseq.serving.generation import Completion, Generation, GenerationRequest, RequestError, TokenLogprob
from hfseq.serving.limits import Limits
from hfseq.serving.plans import Plan, Planner
from hfseq.serving.reader import Reader
from hfseq.serving.rows import Row
from hfseq.serving.texts import TokenTexts
from hfseq.serving.whole import BeamJob, run_alone, run_beams


class Statistics(NamedTuple):
    """Load of a model: the number of running and of waiting sequences."""

    running: int
    waiting: int


class LanguageModel:
    """Answers requests to one causal language model, each with what it would get alone.

    Rows of hfseq's models and of their float32 exports are batched continuously; beam searches that wait at the same
    time and have equal settings run together. The activations of int8 exports are quantized by the batch, and states
    of other models grow with the text, so their rows are run one at a time.

    Args:
        model: The model, in evaluation mode, or the runner of an export.
        tokenizer: Tokenizer of the model.
        limits: Limits of a request.
        observe: Called with the size of each batch, and the seconds that its oldest row has waited.

    Attributes:
        tokenizer: A copy of the tokenizer, whose truncation and padding no other thread changes.
        token_texts: Texts of its tokens.
        vocab_size: Size of the vocabulary of the model.
        reader: The thread that tokenizes requests.

    Raises:
        ValueError: If the model is in training mode or needs encoder states.
    """

    def __init__(
        self, model: Any, tokenizer: Any, limits: Limits, observe: Callable[[int, float], None] | None = None
    ) -> None:
        self.model, self.tokenizer, self.limits = model, copy.deepcopy(tokenizer), limits
        self.token_texts = TokenTexts(self.tokenizer)
        self.vocab_size: int = vocabulary_sizes(model)["vocab_size"]
        self.reader = Reader("language-model")
        self._plan = Planner(model)
        # It shares the weights. Settings that the plan has applied already must not be applied again.
        self._plain = copy.copy(model)
        self._plain.generation_config = GenerationConfig()
        self._exact = is_batched(model)
        self._batcher: Batcher | None = None
        if self._exact:
            self._batcher = Batcher(
                model, max_batch_size=limits.max_batch_size, max_queue=limits.max_queue, observe=observe
            )
        self._whole = DynamicBatcher(
            self._run_whole,
            name="generate",
            max_batch_size=limits.max_batch_size,
            max_queue=limits.max_queue,
            observe=observe,
        )
        self._unfinished: set[Future] = set()
        self._lock = threading.Lock()

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        """Request the continuations of a prompt.

        Returns:
            Future of the answer. Cancelling it ends the request.

        Raises:
            Closed: If the model is closed.
            QueueFull: If the queue is full.
            RequestError: If the request is invalid.
        """
        plan = self._plan(request, self.vocab_size)
        if plan.num_beams > 1 and request.max_new_tokens:
            return self._search(request, plan)
        rows = [Row(request, plan, self.tokenizer, number, self.model.device) for number in range(request.samples)]
        if self._batcher is not None:
            self._batcher.submit(rows)
        else:
            # Rows with other options are not batched.
            self._queue(rows, [object() for _ in rows])
        return self._gathered(request, rows)

    def statistics(self) -> Statistics:
        """Return the number of running and of waiting sequences."""
        running = 0 if self._batcher is None else self._batcher.running
        waiting = self._whole.waiting + (0 if self._batcher is None else self._batcher.waiting)
        return Statistics(running, waiting)

    @property
    def alive(self) -> bool:
        """True if requests are being answered."""
        return self._whole.alive and (self._batcher is None or self._batcher.alive)

    def close(self, timeout: float | None = None) -> None:
        """Answer the requests that there are, for so many seconds at most, then stop."""
        self.reader.close()
        threads = [threading.Thread(target=one.close, args=(timeout,)) for one in (self._batcher, self._whole) if one]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._lock:
            left = list(self._unfinished)
        for future in left:
            with suppress(InvalidStateError):
                future.set_exception(Closed("the server was shut down before the request was finished"))

    def _search(self, request: GenerationRequest, plan: Plan) -> Future[Generation]:
        """Queue a beam search."""
        if plan.config.do_sample:
            raise RequestError("beam search cannot sample")
        if request.n > plan.num_beams or request.samples > request.n:
            raise RequestError(f"n={request.n}, best_of={request.best_of}: more than num_beams={plan.num_beams}")
        if request.on_piece is not None:
            raise RequestError("beam search cannot be streamed")
        job = BeamJob(request, plan, self.tokenizer)
        self._queue([job], [job.group if self._exact else object()])
        self._remember(job.future)
        combined: Future[Generation] = Future()

        def finish(future: Future) -> None:
            with suppress(InvalidStateError):
                if not future.cancelled() and (error := future.exception()) is not None:
                    combined.set_exception(error)
                elif not future.cancelled():
                    completions, scores = future.result()
                    combined.set_result(Generation(completions, scores, sum(len(one.tokens) for one in completions)))

        combined.add_done_callback(lambda _: job.future.cancel())
        job.future.add_done_callback(finish)
        return combined

    def _queue(self, jobs: Sequence[Row | BeamJob], groups: Sequence[Any]) -> None:
        """Queue what `generate` answers; those of equal groups may run together."""
        items = [Item(job, group, len(job.request.prompt)) for job, group in zip(jobs, groups, strict=True)]
        self._whole.submit(items)
        for item in items:
            # What is cancelled while it waits leaves the queue.
            item.value.future.add_done_callback(partial(_cancel, item.future))

    def _gathered(self, request: GenerationRequest, rows: Sequence[Row]) -> Future[Generation]:
        """Future of all sequences of a request; the first that fails fails it."""
        combined: Future[Generation] = Future()
        left = set(rows)

        def cancel(_: Future) -> None:
            for row in rows:
                row.future.cancel()

        def finish(row: Row, future: Future[Completion]) -> None:
            with self._lock:
                left.discard(row)
                done = not left
            with suppress(InvalidStateError):
                if not future.cancelled() and (error := future.exception()) is not None:
                    combined.set_exception(error)
                elif done and not any(one.future.cancelled() for one in rows):
                    completions = [one.future.result() for one in rows]
                    generated = sum(len(one.tokens) for one in completions)
                    combined.set_result(Generation(_best(request, completions), rows[0].prompt_logprobs, generated))

        combined.add_done_callback(cancel)
        for row in rows:
            self._remember(row.future)
            row.future.add_done_callback(partial(finish, row))
        return combined

    def _remember(self, future: Future) -> None:
        """Keep a future until it is done, so that closing can end it."""

        def forget(_: Future) -> None:
            with self._lock:
                self._unfinished.discard(future)

        with self._lock:
            self._unfinished.add(future)
        future.add_done_callback(forget)

    def _run_whole(self, items: Sequence[Item]) -> Sequence[None]:
        """Run beam searches of one group, or rows of a model that is not batched."""
        futures = [item.value.future for item in items]
        try:
            if isinstance(items[0].value, BeamJob):
                run_beams(self._plan.model, [item.value for item in items])
            else:
                for item in items:
                    run_alone(self._plain, item.value)
        except Exception as error:
            if len(items) > 1:
                raise  # the batcher runs its halves
            with suppress(InvalidStateError):
                futures[0].set_exception(error)
        return [None] * len(items)


def _cancel(waiting: Future, done: Future) -> None:
    waiting.cancel()


def is_batched(model: Any) -> bool:
    """Return True for a language model whose rows do not depend on each other and have states of a fixed size."""
    if isinstance(model, OnnxForCausalLM):
        return "int8" not in model.about
    return isinstance(model, ForCausalLM)


def _best(request: GenerationRequest, completions: Sequence[Completion]) -> Sequence[Completion]:
    """The sequences with the highest mean log-probability, if there are more than requested."""
    if len(completions) == request.n:
        return completions
    ranked = sorted(completions, key=lambda one: _mean(one.logprobs), reverse=True)[: request.n]
    return ranked if request.logprobs is not None else [one._replace(logprobs=()) for one in ranked]


def _mean(logprobs: Sequence[TokenLogprob]) -> float:
    known = [one.logprob for one in logprobs if one.logprob is not None]
    return sum(known) / len(known) if known else -torch.inf
