"""Continuous batching: requests join one running batch and leave it between two steps.

A recurrent or convolutional language model keeps a state of one size for each row, so that rows are joined by putting
their states together, whatever each has read. What a row generates does not depend on the others, but for the rounding
of sums, whose order may change with the number of rows.
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
    """As many requests wait as may wait."""


class BatcherClosed(RuntimeError):
    """The batcher was closed before the request was finished, or before it came."""


class Batcher:
    """Generates for many requests at once, by one forward pass for each token of them all.

    A thread of its own runs the model. New requests are read together, left-padded, and join the rows that are being
    generated. A request that is finished, cancelled or in error leaves them, and no other request notices.

    Args:
        model: A causal language model of hfseq, in evaluation mode.
        max_batch_size: Number of rows that are generated at once.
        max_waiting: Number of requests that wait for a place beyond those.

    Raises:
        ValueError: If the model is in training mode or reads an encoder's states, or a number is not positive.
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
        """Ask for the continuation of a prompt.

        Args:
            input_ids: The prompt, `[T]`.
            generation_config: As of `model.generate`; None for the model's own.
            tokenizer: The model's, needed for stop strings.
            streamer: Gets the prompt `[1, T]` now and each token `[1]` as it comes, from the batcher's thread. If it
                raises, the request ends.
            seed: Of what is sampled; None for one that torch's global generator draws.

        Returns:
            The new tokens, the last of which may be that of the end; or what went wrong. Cancelling it ends the
            request.

        Raises:
            BatcherClosed: If it is.
            BatcherFull: If too many requests wait.
            NotBatched: If the settings ask for beams, several sequences, or another kind of decoding.
            ValueError: If a setting or the prompt is impossible.
        """
        row = Row(self.model, input_ids, generation_config, tokenizer, streamer, seed)
        with self._changed:
            if self._closed:
                raise BatcherClosed("the batcher is closed")
            if len(self._waiting) >= self._max_waiting:
                # Those that were cancelled meanwhile need no place.
                self._waiting = deque(row for row in self._waiting if not row.future.done())
            if len(self._waiting) >= self._max_waiting:
                raise BatcherFull(f"{len(self._waiting)} requests wait already; try again later")
            if streamer is not None:
                streamer.put(row.prompt.unsqueeze(0).cpu())
            self._waiting.append(row)
            self._changed.notify()
        return row.future

    def close(self) -> None:
        """End the thread; what is not finished gets a `BatcherClosed`."""
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
                # The states may be half updated, so that none of these rows can go on.
                for row in [*batch.rows, *rows]:
                    row.fail(error)
                batch = _Batch(self.model)
        for row in [*batch.rows, *self._waiting]:
            row.fail(BatcherClosed("the batcher was closed before the request was finished"))
        self._waiting.clear()

    def _next_rows(self, running: int) -> list[Row] | None:
        """Rows for the places that are free, after a wait if there is nothing to do; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or running)
            if self._closed:
                return None
            free = self._max_batch_size - running
            return [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]


class _Batch:
    """The rows that are being generated, and the states of them all after each one's last token but one."""

    def __init__(self, model: ForCausalLM) -> None:
        self._model: Any = model
        self.rows: list[Row] = []
        self._cache = DynamicCache()

    def admit(self, rows: list[Row]) -> None:
        """Read the prompts of new rows, which get their first token and join the others."""
        waiting = sorted((row for row in rows if not row.future.done()), key=_bracket)
        for _, group in groupby(waiting, key=_bracket):
            self._read(list(group))

    def step(self) -> None:
        """One token for each row."""
        if not self.rows:
            return
        last = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._model.device)
        deliver(self.rows, choose(self.rows, self._forward(last, None, self._cache)))
        self._leave()

    def _read(self, rows: list[Row]) -> None:
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
            # One of them may be to blame, or all together need too much memory.
            for row in rows:
                self._read([row])
            return
        deliver(rows, tokens)
        self.rows += rows
        self._join(cache)
        self._leave()

    def _join(self, cache: DynamicCache) -> None:
        """Put the states of new rows after those of the others."""
        if not self._cache.layers:
            self._cache = cache
            return
        for layer, new in zip(self._cache.layers, cache.layers, strict=True):
            assert isinstance(layer, RecurrentCacheLayer) and isinstance(new, RecurrentCacheLayer)
            layer.states = tuple(torch.cat(pair) for pair in zip(layer.states or (), new.states or (), strict=True))

    def _forward(self, ids: Tensor, mask: Tensor | None, cache: DynamicCache) -> Tensor:
        """Logits `[B, V]` after the last step of `[B, T]`, in float32 as `generate` has them."""
        outputs = self._model(input_ids=ids, attention_mask=mask, cache=cache, use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1].float()

    def _leave(self) -> None:
        staying = [index for index, row in enumerate(self.rows) if not row.future.done()]
        if len(staying) < len(self.rows):
            self.rows = [self.rows[index] for index in staying]
            self._cache.batch_select_indices(torch.tensor(staying, dtype=torch.long, device=self._model.device))


def _bracket(row: Row) -> int:
    """Equal for prompts that are padded together: up to 63 tokens, or less than twice as many as one another."""
    return max(len(row.prompt), 32).bit_length()
