"""Continuous (iteration-level) batching: requests join and leave the running batch between decoding steps.

The state of a recurrent or convolutional language model has a fixed size per row, so rows of different lengths are
batched by concatenating their states. Outputs do not depend on the other rows, up to rounding: the order of summation
may change with the batch size.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase

from hfseq.models.cache import RecurrentCacheLayer
from hfseq.models.heads_causal import ForCausalLM
from hfseq.serving.requests import Row, Streamer, choose, deliver


class BatcherFull(RuntimeError):
    """The queue of waiting requests is full."""


class BatcherClosed(RuntimeError):
    """The batcher was closed before the request was submitted or finished."""


class Batcher:
    """Serves concurrent requests with one forward pass per token for the whole batch.

    The model runs in a separate thread. Prompts of new requests are prefilled together, left-padded, and join the
    running batch. A request that is finished, cancelled or failed leaves it without affecting the others.

    Args:
        model: A causal language model of hfseq, in evaluation mode.
        max_batch_size: Maximum number of rows in the running batch.
        max_waiting: Maximum number of requests in the queue.

    Raises:
        ValueError: If the model is in training mode or needs encoder states, or a number is not positive.
    """

    def __init__(self, model: ForCausalLM, *, max_batch_size: int = 32, max_waiting: int = 1024) -> None:
        if model.training:
            raise ValueError("the model is in training mode; call model.eval() first")
        if model.config.add_cross_attention:
            raise ValueError("a model with add_cross_attention=True needs encoder states, which requests do not have")
        if max_batch_size < 1 or max_waiting < 1:
            raise ValueError(f"max_batch_size={max_batch_size}, max_waiting={max_waiting}: both must be positive")
        self.model = model
        self._max_batch_size = max_batch_size
        self._max_waiting = max_waiting
        self._waiting: deque[Row] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="hfseq-batcher", daemon=True)
        self._thread.start()

    def submit(
        self,
        input_ids: Tensor | Sequence[int],
        generation_config: GenerationConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        streamer: Streamer | None = None,
        seed: int | None = None,
    ) -> Future[list[int]]:
        """Request the continuation of a prompt.

        Args:
            input_ids: The prompt, `[T]`.
            generation_config: Settings as for `model.generate`; None for those of the model.
            tokenizer: Tokenizer of the model, needed for stop strings.
            streamer: Receives the prompt `[1, T]` immediately and each token `[1]` once it is generated, from the
                batcher's thread. An exception it raises ends the request.
            seed: Seed for sampling; None to draw one from torch's global generator.

        Returns:
            Future of the new tokens, with the final EOS if there is one. Cancelling it ends the request.

        Raises:
            BatcherClosed: If the batcher is closed.
            BatcherFull: If the queue is full.
            NotBatched: If the settings ask for beam search, several sequences, or another decoding method.
            ValueError: If a setting or the prompt is invalid.
        """
        row = Row(self.model, input_ids, generation_config, tokenizer, streamer, seed)
        with self._changed:
            if self._closed:
                raise BatcherClosed("the batcher is closed")
            if len(self._waiting) >= self._max_waiting:
                # Cancelled requests do not count.
                self._waiting = deque(row for row in self._waiting if not row.future.done())
            if len(self._waiting) >= self._max_waiting:
                raise BatcherFull(f"{len(self._waiting)} requests are waiting already; try again later")
            if streamer is not None:
                streamer.put(row.prompt.unsqueeze(0).cpu())
            self._waiting.append(row)
            self._changed.notify()
        return row.future

    def close(self) -> None:
        """Stop the thread; unfinished requests fail with `BatcherClosed`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _work(self) -> None:
        batch = _Batch(self.model)
        while (rows := self._next_rows(len(batch.rows))) is not None:
            try:
                batch.admit(rows)
                batch.step()
            except Exception as error:
                # The states may be partially updated, so all of these rows are lost.
                for row in [*batch.rows, *rows]:
                    row.fail(error)
                batch = _Batch(self.model)
        for row in [*batch.rows, *self._waiting]:
            row.fail(BatcherClosed("the batcher was closed before the request was finished"))
        self._waiting.clear()

    def _next_rows(self, running: int) -> list[Row] | None:
        """Requests to admit, after waiting for work if there is none; None once the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or running)
            if self._closed:
                return None
            free = self._max_batch_size - running
            return [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]


class _Batch:
    """The running rows, and their states before the last token of each."""

    def __init__(self, model: ForCausalLM) -> None:
        self._model: Any = model
        self.rows: list[Row] = []
        self._cache = DynamicCache()

    def admit(self, rows: list[Row]) -> None:
        """Prefill the prompts of new rows, which get their first token and join the batch."""
        waiting = sorted((row for row in rows if not row.future.done()), key=_bucket)
        for _, group in groupby(waiting, key=_bucket):
            self._prefill(list(group))

    def step(self) -> None:
        """Generate one token for each row."""
        if not self.rows:
            return
        last = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._model.device)
        deliver(self.rows, choose(self.rows, self._forward(last, None, self._cache)))
        self._drop_finished()

    def _prefill(self, rows: list[Row]) -> None:
        prompts = [row.prompt for row in rows]
        ids = pad_sequence(prompts, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
        cache = DynamicCache()
        try:
            tokens = choose(rows, self._forward(ids, mask, cache))
        except Exception as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
            # One row may be the cause, or all together ran out of memory.
            for row in rows:
                self._prefill([row])
            return
        deliver(rows, tokens)
        self.rows += rows
        self._join(cache)
        self._drop_finished()

    def _join(self, cache: DynamicCache) -> None:
        """Append the states of new rows to those of the batch."""
        if not self._cache.layers:
            self._cache = cache
            return
        for layer, new in zip(self._cache.layers, cache.layers, strict=True):
            assert isinstance(layer, RecurrentCacheLayer) and isinstance(new, RecurrentCacheLayer)
            layer.states = tuple(torch.cat(pair) for pair in zip(layer.states or (), new.states or (), strict=True))

    def _forward(self, ids: Tensor, mask: Tensor | None, cache: DynamicCache) -> Tensor:
        """Logits `[B, V]` of the last step of `[B, T]`, in float32 as in `generate`."""
        outputs = self._model(input_ids=ids, attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1].float()

    def _drop_finished(self) -> None:
        staying = [index for index, row in enumerate(self.rows) if not row.future.done()]
        if len(staying) < len(self.rows):
            self.rows = [self.rows[index] for index in staying]
            self._cache.batch_select_indices(torch.tensor(staying, dtype=torch.long, device=self._model.device))


def _bucket(row: Row) -> int:
    """Length bucket of a prompt: up to 63 tokens, then one bucket per power of two."""
    return max(len(row.prompt), 32).bit_length()
