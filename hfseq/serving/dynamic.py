"""Dynamic batching: inputs that arrive close together are processed as one batch.

A batch begins with the input that has waited longest; those of its length join it first, so that little of a batch is
padding. While there is one client at a time nothing waits. Once several inputs come together, the next batch is
delayed by a few milliseconds at most, until as many have arrived as were in the last one: clients that send their next
request when they have an answer stay together.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch


class QueueFull(RuntimeError):
    """The queue of waiting inputs is full."""


class Closed(RuntimeError):
    """The batcher was closed before the input was submitted or processed."""


@dataclass(eq=False)
class Item:
    """One input of a request.

    Attributes:
        value: The input, as the function of the batcher takes it.
        options: Settings of the request; a batch has inputs with equal ones only.
        length: Length of the input in tokens.
        future: Future of its result. Cancelling it takes the input out of the queue, or out of the batch that is being
            processed before its next run.
        arrival: Time of arrival, of `time.monotonic`.
    """

    value: Any
    options: Hashable = None
    length: int = 0
    future: Future = field(default_factory=Future)
    arrival: float = field(default_factory=time.monotonic)


def enqueue(waiting: deque[Any], new: Sequence[Any], longest: int, given_up: Callable[[Any], bool]) -> None:
    """Append the inputs of a request to a queue, all or none.

    Args:
        waiting: The queue.
        new: The inputs.
        longest: Maximum length of the queue.
        given_up: Function that returns True for an input that nobody waits for any more; such inputs do not count.

    Raises:
        QueueFull: If the queue has no room for all of them.
    """
    if len(waiting) + len(new) > longest:
        forget(waiting, given_up)
    if len(waiting) + len(new) > longest:
        raise QueueFull(f"{len(waiting)} inputs are waiting already; try again later")
    waiting.extend(new)


def forget(waiting: deque[Any], given_up: Callable[[Any], bool]) -> None:
    """Take the inputs that nobody waits for any more out of a queue."""
    left = [one for one in waiting if not given_up(one)]
    waiting.clear()
    waiting.extend(left)


def _is_cancelled(item: Item) -> bool:
    return item.future.cancelled()


class DynamicBatcher:
    """Runs a function on batches of inputs, in a thread of its own.

    Args:
        run: Function of a batch of items with equal options, which returns one result for each.
        name: Name of the model, for the thread.
        max_batch_size: Maximum number of inputs in a batch.
        max_queue: Maximum number of waiting inputs.
        max_delay: Maximum time in seconds that a batch waits for more inputs.
        observe: Called with the size of each batch and the seconds that its oldest input has waited.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Any]],
        *,
        name: str = "model",
        max_batch_size: int = 32,
        max_queue: int = 1024,
        max_delay: float = 0.003,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._max_delay = max_delay
        self._observe = observe
        self._waiting: deque[Item] = deque()
        self._running: list[Item] = []
        self._closed = False
        self._last_size = 1
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"hfseq-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of waiting inputs."""
        with self._changed:
            return sum(not one.future.cancelled() for one in self._waiting)

    @property
    def alive(self) -> bool:
        """True if inputs are being processed."""
        return self._thread.is_alive() and not self._closed

    def submit(self, items: Sequence[Item]) -> None:
        """Queue the inputs of a request, all or none.

        Raises:
            Closed: If the batcher is closed.
            QueueFull: If the queue has no room for all of them.
        """
        with self._changed:
            if self._closed:
                raise Closed("the server is shutting down")
            enqueue(self._waiting, items, self._max_queue, _is_cancelled)
            self._changed.notify()

    def close(self, timeout: float | None = None) -> None:
        """Process what is waiting, then stop the thread.

        Args:
            timeout: Seconds to wait for that; whatever is not done by then fails with `Closed`.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        self._fail_all()

    def _fail_all(self) -> None:
        with self._changed:
            self._closed = True
            left = [*self._running, *self._waiting]
            self._waiting.clear()
        for item in left:
            _fail(item, Closed("the server is shutting down"))

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                if self._observe is not None:
                    self._observe(len(batch), time.monotonic() - batch[0].arrival)
                self._last_size = len(batch)
                self._process(batch)
                self._running = []
        finally:
            # No request must wait for a thread that has ended, whatever ended it.
            self._fail_all()

    def _next_batch(self) -> list[Item]:
        """The inputs of the next batch, the oldest first; empty once the batcher is closed and nothing waits."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._last_size > 1:
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= self._last_size or self._closed, self._max_delay
                    )
                forget(self._waiting, _is_cancelled)
                if self._waiting:
                    break
                if self._closed:
                    return []
            oldest = self._waiting[0]
            fitting = [one for one in self._waiting if one.options == oldest.options]
            fitting.sort(key=lambda one: (abs(one.length - oldest.length), one.arrival))
            self._running = fitting[: self._max_batch_size]
            taken = set(map(id, self._running))
            self._waiting = deque(one for one in self._waiting if id(one) not in taken)
            return self._running

    def _process(self, batch: Sequence[Item]) -> None:
        """Run a batch; on an error run its halves, so that only the inputs at fault fail."""
        # Nobody waits for the others any more.
        batch = [one for one in batch if not one.future.done()]
        if not batch:
            return
        try:
            results = self._run(batch)
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} inputs")
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        else:
            for item, result in zip(batch, results, strict=True):
                with suppress(InvalidStateError):
                    item.future.set_result(result)
            return
        # Outside the handler: the traceback would keep the tensors of the failed batch.
        if out_of_memory and torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        self._process(batch[:middle])
        self._process(batch[middle:])


def _fail(item: Item, error: Exception) -> None:
    with suppress(InvalidStateError):
        item.future.set_exception(error)
