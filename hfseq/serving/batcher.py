"""Continuous (iteration-level) batching: requests join and leave the running batch between decoding steps.

The state of a recurrent or convolutional language model has a fixed size per row, so rows of different lengths are
batched by concatenating their states. Outputs do not depend on the other rows, up to rounding: the order of summation
may change with the batch size.
"""

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from hfseq.models.cache import RecurrentCacheLayer
from hfseq.serving.dynamic import Closed, enqueue
from hfseq.serving.rows import Row, choose, deliver, prompt_logprobs

# Logits that are held at a time while prompts are scored: 64 MiB in float32.
_MAX_LOGITS = 2**24


class Batcher:
    """Serves concurrent requests with one forward pass per token for the whole batch.

    The model runs in a separate thread. Prompts of new requests are prefilled together, left-padded, and join the
    running batch. A row that is finished, cancelled or failed leaves it without affecting the others. If a step fails,
    its halves are run by themselves, so that only the row at fault fails; after running out of memory, steps stay as
    small until all rows are done.

    Args:
        model: A causal language model of hfseq, in evaluation mode, or the runner of its export.
        max_batch_size: Maximum number of rows in the running batch.
        max_queue: Maximum number of waiting rows.
        observe: Called whenever rows join, with the size of the batch and the seconds that the oldest has waited.

    Raises:
        ValueError: If the model is in training mode or needs encoder states, or a number is not positive.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch_size: int = 32,
        max_queue: int = 1024,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        if model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        if model.config.add_cross_attention:
            raise ValueError("a model with add_cross_attention=True needs encoder states, which requests do not have")
        if max_batch_size < 1 or max_queue < 1:
            raise ValueError(f"max_batch_size={max_batch_size}, max_queue={max_queue}: both must be positive")
        self.model = model
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._observe = observe
        self._waiting: deque[tuple[Row, float]] = deque()
        self._running = 0
        self._closed = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="hfseq-batcher", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Number of rows in the batch."""
        return self._running

    @property
    def waiting(self) -> int:
        """Number of waiting rows."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """True if requests are being answered."""
        return self._thread.is_alive() and not self._closed

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue the rows of a request, all or none.

        Raises:
            Closed: If the batcher is closed.
            QueueFull: If the queue has no room for all of them.
        """
        now = time.monotonic()
        with self._changed:
            if self._closed:
                raise Closed("the server is shutting down")
            enqueue(self._waiting, [(row, now) for row in rows], self._max_queue, lambda one: one[0].future.done())
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Refuse further requests, answer those that there are, then stop the thread.

        Args:
            timeout: Seconds to wait for that; requests that are not done by then fail with `Closed`.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            self._stopped = True
        self._thread.join()

    @torch.inference_mode()
    def _work(self) -> None:
        batch = _Batch(self.model)
        rows: list[Row] = []
        try:
            while (found := self._next_rows(len(batch.rows))) is not None:
                rows = found
                try:
                    batch.admit(rows)
                    batch.step()
                except Exception as error:
                    # Not in the model, or there would be less to lose; the states cannot be relied on.
                    for row in [*batch.rows, *rows]:
                        row.fail(error)
                    batch = _Batch(self.model)
                self._running = len(batch.rows)
        finally:
            # No request must wait for a thread that has ended, whatever ended it.
            with self._changed:
                self._closed = True
                left = [*batch.rows, *rows, *(row for row, _ in self._waiting)]
                self._waiting.clear()
            for row in left:
                row.fail(Closed("the server was shut down before the request was finished"))
            self._running = 0

    def _next_rows(self, running: int) -> list[Row] | None:
        """Rows to admit, after waiting for work if there is none; None once the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or running)
            if self._stopped or (self._closed and not self._waiting and not running):
                return None
            count = min(self._max_batch_size - running, len(self._waiting))
            if count and self._observe is not None:
                self._observe(running + count, time.monotonic() - self._waiting[0][1])
            return [self._waiting.popleft()[0] for _ in range(count)]


class _Batch:
    """The running rows, and their states before the last token of each."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = model.device
        self.rows: list[Row] = []
        self._cache = DynamicCache()
        # Maximum number of rows in a step; reduced when memory runs out.
        self._most: int | None = None

    def admit(self, rows: list[Row]) -> None:
        """Prefill the prompts of new rows, which get their first token and join the batch."""
        waiting = sorted((row for row in rows if not row.future.done()), key=_bucket)
        for _, group in groupby(waiting, key=_bucket):
            self._prefill(list(group))

    def step(self) -> None:
        """Generate one token for each row."""
        if not self.rows:
            self._most = None
            return
        self.rows, self._cache = self._advance(self.rows, self._cache)
        self._drop_finished()

    def _advance(self, rows: list[Row], cache: DynamicCache) -> tuple[list[Row], DynamicCache]:
        """Append a token to each row; return the rows that have not failed, and their states."""
        if self._most is None or len(rows) <= self._most:
            # The layers replace their states and do not change them, so that a failed step can be taken back.
            before = [layer.states for layer in _layers(cache)]
            last = torch.tensor([[row.tokens[-1]] for row in rows], device=self._device)
            try:
                chosen = choose(rows, self._next_logits(last, cache))
            except Exception as error:
                if len(rows) == 1:
                    rows[0].fail(error)
                    return [], DynamicCache()
                if is_out_of_memory(error):
                    self._most = len(rows) // 2
            else:
                deliver(rows, chosen)
                return rows, cache
            for layer, own in zip(_layers(cache), before, strict=True):
                layer.states = own
        # Outside the handler: the traceback would keep the tensors of the failed step.
        middle = len(rows) // 2
        parts = [_part(cache, slice(middle)), _part(cache, slice(middle, None))]
        first, states = self._advance(rows[:middle], parts[0])
        second, more = self._advance(rows[middle:], parts[1])
        return first + second, _joined(states, more)

    def _prefill(self, rows: list[Row]) -> None:
        # Rows with the same prompt, such as the samples of one request, are read once.
        keys = [tuple(row.request.prompt) for row in rows]
        prompts = {key: row.prompt for key, row in zip(keys, rows, strict=True)}
        places = {key: place for place, key in enumerate(prompts)}
        index = torch.tensor([places[key] for key in keys], device=self._device)
        try:
            if rows[0].scores_prompt:
                logits, cache = self._score(rows)
            else:
                logits, cache = self._read(list(prompts.values()))
                if len(prompts) < len(rows):
                    logits = logits[index]
                    cache.batch_select_indices(index)
            going_on = [row for row in rows if row.request.max_new_tokens]
            chosen = choose(rows, logits) if going_on else []
        except Exception as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
        else:
            if going_on:
                deliver(rows, chosen)
            else:
                for row in rows:
                    with row.failing():
                        row.finish("length")
            self.rows += rows
            self._cache = _joined(self._cache, cache)
            self._drop_finished()
            return
        # Outside the handler: the traceback would keep the tensors of the failed step.
        middle = len(rows) // 2
        self._prefill(rows[:middle])
        self._prefill(rows[middle:])

    def _read(self, prompts: Sequence[Tensor]) -> tuple[Tensor, DynamicCache]:
        """Logits `[B, V]` after each prompt, and the states."""
        cache = DynamicCache()
        ids, mask = _left_padded(prompts)
        return self._forward(ids, mask, cache), cache

    def _next_logits(self, last: Tensor, cache: DynamicCache) -> Tensor:
        """Logits `[B, V]` after the last tokens `[B, 1]`, in float32 as in `generate`; updates the states."""
        if self._model.supports_decode_step():
            return self._model.make_decode_step(cache)(last).float()
        return self._forward(last, None, cache)

    def _score(self, rows: Sequence[Row]) -> tuple[Tensor, DynamicCache]:
        """As `_read`, and set the rows' log-probabilities of their prompts."""
        cache = DynamicCache()
        ids, mask = _left_padded([row.prompt for row in rows])
        steps = max(1, _MAX_LOGITS // (len(rows) * self._model.config.vocab_size))
        last: list[Tensor] = []

        def pieces() -> Iterator[tuple[int, Tensor]]:
            for start in range(0, ids.shape[1], steps):
                stop = start + steps
                past = None if mask is None else mask[:, :stop]
                outputs = self._model(input_ids=ids[:, start:stop], attention_mask=past, cache=cache, use_cache=True)
                logits = outputs.logits.float()
                last[:] = [logits[:, -1]]
                yield start, logits

        counts = [row.request.logprobs or 0 for row in rows]
        found = prompt_logprobs([row.prompt for row in rows], counts, pieces())
        for row, logprobs in zip(rows, found, strict=True):
            row.prompt_logprobs = logprobs
        return last[0], cache

    def _forward(self, ids: Tensor, mask: Tensor | None, cache: DynamicCache) -> Tensor:
        """Logits `[B, V]` of the last step of `[B, T]`, in float32 as in `generate`."""
        outputs = self._model(input_ids=ids, attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1].float()

    def _drop_finished(self) -> None:
        staying = [index for index, row in enumerate(self.rows) if not row.future.done()]
        if len(staying) < len(self.rows):
            self.rows = [self.rows[index] for index in staying]
            self._cache.batch_select_indices(torch.tensor(staying, dtype=torch.long, device=self._device))


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that there is not enough memory on the CPU or an accelerator."""
    # The CPU's allocator raises a plain RuntimeError.
    full = isinstance(error, RuntimeError) and "not enough memory" in str(error)
    return full or isinstance(error, MemoryError | torch.OutOfMemoryError)


def _left_padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Ids and mask `[B, T]` of prompts; no mask if they have one length, since layers are faster without it."""
    if len({len(prompt) for prompt in prompts}) == 1:
        return torch.stack(list(prompts)), None
    ids = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
    return ids, mask


def _layers(cache: DynamicCache) -> list[RecurrentCacheLayer]:
    for layer in cache.layers:
        assert isinstance(layer, RecurrentCacheLayer)
    return cache.layers  # type: ignore[return-value]


def _part(cache: DynamicCache, rows: slice) -> DynamicCache:
    """Some rows of a cache, in a cache of their own."""
    part = DynamicCache()
    for layer in _layers(cache):
        own = copy.copy(layer)
        own.states = tuple(state[rows] for state in layer.states or ())
        part.layers.append(own)
    return part


def _joined(cache: DynamicCache, new: DynamicCache) -> DynamicCache:
    """The rows of two caches in one."""
    if not cache.layers or not new.layers:
        return cache if cache.layers else new
    for layer, other in zip(_layers(cache), _layers(new), strict=True):
        layer.states = tuple(torch.cat(pair) for pair in zip(layer.states or (), other.states or (), strict=True))
    return cache


def _bucket(row: Row) -> tuple[bool, bool, int]:
    """Rows that are prefilled together: up to 63 tokens, then one bucket per power of two.

    Rows that need the logits of all steps, and those that generate nothing, are apart.
    """
    return row.scores_prompt, row.request.max_new_tokens == 0, max(len(row.prompt), 32).bit_length()
