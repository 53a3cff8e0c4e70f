"""Training data larger than memory: rows are read when they are needed, batches are made from a window of them."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset

from hfseq.data.labels import encode_labels
from hfseq.data.reading import (
    Columns,
    check_row,
    check_sources,
    class_names,
    drop_empty,
    file_rows,
    has_labels,
    load_hub,
    name_classes,
    read_file,
    report_dropped,
    string_table,
)
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.errors import InputError, one_line

WINDOW = 8192
"""Rows that are in memory at once, and among which they are shuffled."""
TOKENIZER_ROWS = 200_000
"""Rows from the beginning of a stream that a new tokenizer is trained on."""

# Makes an iterator over the rows of part `i` of `n`, empty ones left out.
_PartOf = Callable[[int, int], Iterator[list[Any]]]


def read_stream(
    *,
    columns: Sequence[str],
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    column_names: Sequence[str] | None = None,
    moses: bool = False,
    label_columns: Sequence[str] = (),
    num_parts: int = 1,
    keep_empty: bool = False,
) -> dict[str, Any]:
    """Read what `read_splits` reads, the training rows one after the other each time they are iterated over.

    Their checks and errors are the same, but an error comes when its row does; those of the first row, of the header
    and of flags come at once. Empty rows are dropped, and reported whenever the end is reached.

    The rows come as several shards, of which each process and each worker of its data loader takes its own. Part `i`
    of a file is every `num_parts`-th row, so each process reads the whole file, which costs little beside encoding,
    and knows the line of an error. A data set of the Hub is divided by its own files where their number allows it.

    Args:
        columns: As `read_splits`.
        dataset_name: As `read_splits`; nothing of it is downloaded but what is read.
        dataset_config_name: As `read_splits`.
        train_file: As `read_splits`.
        validation_file: As `read_splits`.
        test_file: As `read_splits`.
        column_names: As `read_splits`.
        moses: As `read_splits`.
        label_columns: As `read_splits`.
        num_parts: Shards of the training rows: processes times workers of the data loader of each.
        keep_empty: As `read_splits`.

    Returns:
        `train`, a `datasets.IterableDataset`, and `validation` and `test` as `read_splits` returns them.

    Raises:
        InputError: As `read_splits`, or there is no split `train` or `validation`.
    """
    check_sources(columns, dataset_name, train_file)
    wanted = Columns(columns, label_columns, keep_empty)
    splits: dict[str, Any] = {}
    if dataset_name:
        splits |= _read_hub(dataset_name, dataset_config_name, wanted, num_parts)
    if train_file is not None:
        rows = functools.partial(file_rows, train_file, "--train_file", wanted, column_names, moses)
        part_of = functools.partial(_file_part, rows, wanted, train_file, f"--train_file {train_file}")
        splits["train"] = _to_dataset(part_of, wanted, num_parts)
    for split, name in (("validation", validation_file), ("test", test_file)):
        if name is not None:
            splits[split] = read_file(name, f"--{split}_file", wanted, column_names, moses)
    if "train" not in splits:
        raise InputError(
            "--streaming without training data; give --train_file, or a --dataset_name with a split train"
        )
    if "validation" not in splits:
        raise InputError("--streaming holds out no rows for validation; give --validation_file")
    return splits


def _read_hub(name: str, config: str | None, columns: Columns, num_parts: int) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for split, (alias, data) in load_hub(name, config, streaming=True).items():
        source = f"--dataset_name {name}, split {alias}"
        if isinstance(data, datasets.Dataset):
            data = data.to_iterable_dataset(num_shards=max(1, min(num_parts, len(data))))
        if split == "train":
            part_of = functools.partial(_hub_part, data, columns, f"{name} [{alias}]", source)
            splits[split] = _to_dataset(part_of, columns, num_parts)
            continue
        rows = datasets.Dataset(string_table(_hub_rows(data, columns, source), columns))
        if has_labels(rows, columns, f"{name} [{alias}]"):
            splits[split] = drop_empty(rows, columns, f"{name} [{alias}]", source)
    return splits


def _to_dataset(part_of: _PartOf, columns: Columns, num_parts: int) -> datasets.IterableDataset:
    # The first row is read for its types, and for the errors that its reading may bring.
    first = next(part_of(0, 1))
    text = datasets.Value("string")
    kinds = {
        column: datasets.List(text) if isinstance(value, list) else text
        for column, value in zip(columns, first, strict=True)
    }
    # A list is what `datasets` takes for one shard an item.
    arguments = {
        "parts": list(range(num_parts)),
        "num_parts": num_parts,
        "part_of": part_of,
        "columns": tuple(columns),
    }
    return datasets.IterableDataset.from_generator(_generate, datasets.Features(kinds), arguments)


def _generate(
    parts: list[int], num_parts: int, part_of: _PartOf, columns: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for part in parts:
        for row in part_of(part, num_parts):
            yield dict(zip(columns, row, strict=True))


def _file_part(
    rows: Callable[[], Iterator[list[Any]]], columns: Columns, name: str, source: str, part: int, num_parts: int
) -> Iterator[list[Any]]:
    # Each part meets all empty rows; one reports them.
    return itertools.islice(_filled(rows(), columns, name if part == 0 else None, source), part, None, num_parts)


def _hub_part(
    data: datasets.IterableDataset, columns: Columns, name: str, source: str, part: int, num_parts: int
) -> Iterator[list[Any]]:
    share = f" (part {part + 1} of {num_parts})" if num_parts > 1 else ""
    rows = _hub_rows(split_dataset_by_node(data, rank=part, world_size=num_parts), columns, source + share)
    return _filled(rows, columns, name + share, source + share)


def _hub_rows(data: datasets.IterableDataset, columns: Columns, source: str) -> Iterator[list[Any]]:
    names = class_names(data.features or {}, columns)
    listed: dict[str, bool] = {}
    # Not `iter(data)`, of which a worker of a data loader would get only its share of this part.
    batches = data.iter(batch_size=1000)
    number = 0
    while True:
        try:
            batch = next(batches, None)
        # Whatever a server, a network or somebody's data files can raise.
        except Exception as error:
            raise InputError(f"{source}: cannot be read ({one_line(error.__cause__ or error, named=True)})") from error
        if batch is None:
            return
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(batch, values, strict=True))
            for column in names:
                row[column] = name_classes(row[column], names[column])
            yield check_row(f"{source}, row {number}", row, columns, listed)


def _filled(rows: Iterator[list[Any]], columns: Columns, name: str | None, source: str) -> Iterator[list[Any]]:
    """The rows with text in every column, or all; at the end the others are reported under `name`, if it is one."""
    number, dropped, first = 0, 0, []
    for number, row in enumerate(rows, 1):
        filled = all(isinstance(value, list) or (value is not None and value.strip()) for value in row)
        if filled or columns.keep_empty:
            yield row
        if filled:
            continue
        dropped += 1
        if dropped <= 5:
            first.append(number)
    if dropped == number:
        raise InputError(f"{source}: empty: none of {number} rows has text in {' and '.join(columns)}")
    if dropped and name is not None and not columns.keep_empty:
        report_dropped(name, dropped, first, number)


def count_rows(splits: Mapping[str, datasets.Dataset | datasets.IterableDataset]) -> str:
    """How many rows each split has, to print; those of a stream are not counted."""
    return ", ".join(
        f"{'streamed' if isinstance(rows, datasets.IterableDataset) else len(rows)} {name}"
        for name, rows in splits.items()
    )


def first_texts(rows: datasets.IterableDataset, columns: Sequence[str], limit: int = TOKENIZER_ROWS) -> Iterator[str]:
    """The texts of the first `limit` rows, to train a tokenizer on: each row's `columns`, one after the other.

    The same on every process, as long as `rows` are not divided among them yet.
    """
    for row in rows.take(limit):
        for column in columns:
            yield row[column]


def tokenizer_texts(rows: datasets.Dataset | datasets.IterableDataset, columns: Sequence[str]) -> Iterator[str]:
    """The texts of training rows that a new tokenizer is trained on: all, or those of the first rows of a stream."""
    if isinstance(rows, datasets.IterableDataset):
        return first_texts(rows, columns)
    return itertools.chain.from_iterable(rows[column] for column in columns)


def encode_stream_labels(splits: Mapping[str, Any], column: str, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """Number the classes of each row, where the training rows are a stream; it is read once for its classes.

    Args:
        splits: As `read_stream` returns them.
        column: As for `encode_labels`.
        **options: As for `encode_labels`.

    Returns:
        As `encode_labels`, with `train` a stream.

    Raises:
        InputError: As `encode_labels`.
    """
    values = {_key(value): value for value in splits["train"][column]}
    # A row for each class, or combination of classes, that there is; its place stands for the text.
    distinct = datasets.Dataset.from_dict({column: list(values.values()), "place": range(len(values))})
    encoded, names = encode_labels(datasets.DatasetDict({**splits, "train": distinct}), column, **options)
    numbers = dict(zip(values, encoded["train"]["labels"], strict=True))
    features = datasets.Features({**splits["train"].features, "labels": encoded["train"].features["labels"]})
    del features[column]
    rows = splits["train"].map(
        functools.partial(_number, column=column, numbers=numbers),
        batched=True,
        remove_columns=[column],
        features=features,
    )
    return {**encoded, "train": rows}, names


def _key(value: str | list[str]) -> str | tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else value


def _number(batch: dict[str, list[Any]], column: str, numbers: dict[Any, Any]) -> dict[str, list[Any]]:
    return {"labels": [numbers[_key(value)] for value in batch[column]]}


class BatchStream(IterableDataset):
    """Batches without end from rows that are read as they are needed, epoch after epoch.

    `window` rows are read, shuffled and cut into batches, then the next ones: either within `max_tokens`, padding
    counted, of rows of about the same length (see `TokenBudgetBatchSampler`), or of `batch_size` rows whatever their
    length. Rows further apart than a window do not mix, so a file sorted by class or by topic needs to be shuffled
    before. The same seed gives the same batches.

    Each process takes its own shards of `rows`, so that all of them together read each row once an epoch. As there is
    no end, no process runs out of batches while others wait for it.

    The first batches of a resumed run are read and thrown away, by the Trainer or by Accelerate. With the state of a
    checkpoint (`load_state_dict`) they come as None instead, at once, and reading starts at the window of the first
    batch that is wanted.

    Args:
        rows: Encoded rows, mappings with lists of ids.
        max_tokens: Budget of one batch, in tokens; None for `batch_size` rows.
        batch_size: Rows of one batch, where there is no budget.
        window: Rows held in memory.
        seed: Of the shuffle.
        rank: Number of this process.
        num_replicas: How many processes there are.
        num_workers: Workers of this process's data loader, each of which reads its own shards; 0 for none.

    Raises:
        ValueError: There are fewer shards than workers (`num_parts` of `read_stream` makes them).
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
        self.rows = split_dataset_by_node(rows, rank=rank, world_size=num_replicas)
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        # A last batch that is not full comes once an epoch, not once a window.
        self.window = window if max_tokens is not None else window + -window % batch_size
        self.seed = seed
        self.num_replicas = num_replicas
        self.num_workers = num_workers
        if num_workers > self.rows.num_shards:
            raise ValueError(f"{num_workers} workers cannot share {self.rows.num_shards} shards of rows")
        self._start: dict[str, Any] = {"batches": 0, "windows": 0, "rows": {}}
        # Where the last windows began. A data loader is at most a few batches ahead of the step that is saved.
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
        """What a checkpoint keeps, JSON values, when `batches` batches from the beginning have been trained on.

        Workers read copies of this stream, of whose state nothing is known here; then it says only how many there are.
        """
        begun = [state for state in self._begun if state["batches"] <= batches]
        processes = {"num_replicas": self.num_replicas, "num_workers": self.num_workers}
        return processes | {"start": begun[-1] if begun else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` says.

        Raises:
            InputError: There were more or fewer processes, or workers.
        """
        before, now = ((run["num_replicas"], run["num_workers"]) for run in (state, vars(self)))
        if before != now:
            raise InputError(
                "--streaming goes on only on as many processes with as many --dataloader_num_workers as before, "
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
    """A data loader of a process's own stream, as `accelerator.prepare` would make it, but shared with no other.

    Args:
        stream: The stream of this process.
        collator: Makes a batch of a list of rows.
        device: Where the batches go.
        pin_memory: As for `DataLoader`.
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
