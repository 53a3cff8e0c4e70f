"""Training data larger than memory: rows are streamed, and batches are made from a window of them."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, IterableDataset

from hfseq.data.reading import read_splits
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.errors import InputError
from hfseq.lazy import datasets

WINDOW = 8192
"""Size of the shuffle buffer, in rows."""
TOKENIZER_ROWS = 200_000
"""Number of rows from the beginning of a stream that a new tokenizer is trained on."""


def read_stream(*, num_parts: int = 1, **sources: Any) -> dict[str, Any]:
    """Read the data of `read_splits`, with the training rows as a stream.

    Checks and errors are those of `read_splits`, but an error is raised when its row is read; errors of the first row,
    the header and the flags are raised at once. Empty rows are dropped, and reported at the end of each epoch.

    The rows are divided into shards, and each process and each worker of its data loader takes its own. Part `i` of a
    file is every `num_parts`-th row, so each process reads the whole file, which is cheap compared with tokenization
    and keeps line numbers in errors. A Hub dataset is divided by its own files if there are enough of them.

    Args:
        num_parts: Number of shards of the training rows: processes times data loader workers of each.
        **sources: Arguments of `read_splits`. Of a Hub dataset only what is read is downloaded.

    Returns:
        `train`, a `datasets.IterableDataset`, and `validation` and `test` as `read_splits` returns them.

    Raises:
        InputError: As for `read_splits`, or there is no split `train` or `validation`.
    """
    splits = dict(read_splits(**sources, num_parts=num_parts))
    if "train" not in splits:
        raise InputError("--streaming without training data; give --train_file or a --dataset_name with a split train")
    if "validation" not in splits:
        raise InputError("--streaming holds out no rows for validation; give --validation_file")
    return splits


def count_rows(splits: Mapping[str, datasets.Dataset | datasets.IterableDataset]) -> str:
    """Return the number of rows of each split as text; "streamed" for streams."""
    return ", ".join(
        f"{'streamed' if isinstance(rows, datasets.IterableDataset) else len(rows)} {name}"
        for name, rows in splits.items()
    )


def first_texts(rows: datasets.IterableDataset, columns: Sequence[str], limit: int = TOKENIZER_ROWS) -> Iterator[str]:
    """Yield the texts of `columns` in the first `limit` rows, row by row, to train a tokenizer on.

    They are the same on every process as long as `rows` have not been divided among them.
    """
    for row in rows.take(limit):
        for column in columns:
            yield row[column]


def tokenizer_texts(rows: datasets.Dataset | datasets.IterableDataset, columns: Sequence[str]) -> Iterator[str]:
    """Return the texts that a new tokenizer is trained on: all, or those of the first rows of a stream."""
    if isinstance(rows, datasets.IterableDataset):
        return first_texts(rows, columns)
    return itertools.chain.from_iterable(rows[column] for column in columns)


class BatchStream(IterableDataset):
    """Endless batches of streamed rows, epoch after epoch.

    `window` rows are read, shuffled and cut into batches, then the next ones: either within `max_tokens`, padding
    included, of rows of similar length (see `TokenBudgetBatchSampler`), or of `batch_size` rows of any length. Rows
    further apart than a window are not mixed, so a file sorted by class or topic needs to be shuffled first. The same
    seed gives the same batches.

    Each process takes its own shards of `rows`, so that together they read each row once per epoch. As the stream is
    endless, no process runs out of batches while others wait for it.

    The Trainer and Accelerate read and discard the first batches of a resumed run. With the state of a checkpoint
    (`load_state_dict`) these are None, without any reading, which starts at the window of the first batch needed.

    Args:
        rows: Encoded rows, mappings with lists of ids.
        max_tokens: Budget of one batch, in tokens; None for `batch_size` rows.
        batch_size: Rows of one batch if there is no budget.
        window: Rows in memory at once.
        seed: Random seed of the shuffle.
        rank: Rank of this process.
        num_replicas: Number of processes.
        num_workers: Number of workers of this process's data loader, each of which reads its own shards; 0 for none.

    Raises:
        ValueError: There are fewer shards than workers (`num_parts` of `read_stream` sets their number).
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        *,
        max_tokens: int | None = None,
        batch_size: int = 8,
        window: int = WINDOW,
        seed: int = 42,
        rank: int = 0,
        num_replicas: int = 1,
        num_workers: int = 0,
    ):
        from datasets.distributed import split_dataset_by_node

        self.rows = split_dataset_by_node(rows, rank=rank, world_size=num_replicas)
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        # An incomplete last batch occurs once per epoch, not once per window.
        self.window = window if max_tokens is not None else window + -window % batch_size
        self.seed = seed
        self.num_replicas = num_replicas
        self.num_workers = num_workers
        if num_workers > self.rows.num_shards:
            raise ValueError(f"{num_workers} workers cannot share {self.rows.num_shards} shards of rows")
        self._start: dict[str, Any] = {"batches": 0, "windows": 0, "rows": {}}
        # Starts of the last windows. A data loader is at most a few batches ahead of the step that is saved.
        self._begun: deque[dict[str, Any]] = deque(maxlen=16)

    def __iter__(self) -> Iterator[list[Mapping[str, Any]] | None]:
        batches, windows, state = (self._start[key] for key in ("batches", "windows", "rows"))
        yield from itertools.repeat(None, batches)
        while True:
            self.rows.load_state_dict(state)
            rows = iter(self.rows)
            empty = not state
            while window := list(itertools.islice(rows, self.window)):
                empty = False
                self._begun.append({"batches": batches, "windows": windows, "rows": state})
                for batch in self._cut(window, windows):
                    batches += 1
                    yield batch
                windows += 1
                state = self.rows.state_dict()
            if empty:
                raise InputError("fewer training rows than processes and data loader workers to share them")
            state = {}

    def _cut(self, rows: list[Mapping[str, Any]], number: int) -> Iterator[list[Mapping[str, Any]]]:
        indices: Iterator[Any]
        if self.max_tokens is None:
            order = np.random.default_rng([self.seed, number]).permutation(len(rows))
            indices = (order[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))
        else:
            lengths = row_lengths(rows)
            if lengths.max() > self.max_tokens:
                raise InputError(
                    f"--max_tokens {self.max_tokens} is too small: a row of the training set has {lengths.max()} "
                    f"tokens (raise it to {lengths.max()} or more, or shorten the rows)"
                )
            sampler = TokenBudgetBatchSampler(lengths, self.max_tokens, seed=self.seed)
            sampler.set_epoch(number)
            indices = iter(sampler)
        for batch in indices:
            yield [rows[index] for index in batch]

    def state_dict(self, batches: int) -> dict[str, Any]:
        """Return the JSON state of a checkpoint saved after training on `batches` batches.

        With workers, which read copies of this stream in an unknown state, it contains only the number of them.
        """
        begun = [state for state in self._begun if state["batches"] <= batches]
        processes = {"num_replicas": self.num_replicas, "num_workers": self.num_workers}
        return processes | {"start": begun[-1] if begun else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`.

        Raises:
            InputError: The number of processes or workers has changed.
        """
        before, now = ((run["num_replicas"], run["num_workers"]) for run in (state, vars(self)))
        if before != now:
            raise InputError(
                "--streaming resumes only with the same number of processes and of --dataloader_num_workers, "
                f"{before[0]} with {before[1]}, not {now[0]} with {now[1]}"
            )
        self._start = state["start"] or self._start


def stream_loader(
    stream: BatchStream,
    collator: Callable[[list[Any]], Any],
    device: torch.device | str,
    *,
    pin_memory: bool = False,
) -> DataLoader:
    """Return the data loader of a process's own stream, as `accelerator.prepare` would make it but not sharded.

    Args:
        stream: Stream of this process.
        collator: Turns a list of rows into a batch.
        device: Device of the batches.
        pin_memory: Copy batches into pinned memory, as in `DataLoader`.
    """
    loader = DataLoader(
        stream,
        batch_size=None,
        collate_fn=functools.partial(_collate, collator),
        num_workers=stream.num_workers,
        pin_memory=pin_memory,
    )
    return prepare_data_loader(
        loader, torch.device(device), num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )


def _collate(collator: Callable[[list[Any]], Any], rows: list[Any] | None) -> Any:
    return {} if rows is None else collator(rows)
