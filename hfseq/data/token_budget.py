"""Batches with a token budget, padding included."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hfseq.errors import InputError
from hfseq.lazy import datasets

# Rows are shuffled within groups of similar length. A group grows until it fills this many batches ...
_BATCHES_PER_GROUP = 8
# ... or until the ratio of its longest row to its shortest reaches this, whichever comes first.
_LENGTH_RATIO = 1.25


def row_lengths(
    dataset: Any, columns: Sequence[str] = ("input_ids", "input_features", "input_values", "labels")
) -> np.ndarray:
    """Return the length of each row that counts against `max_tokens`: that of the longest of its `columns`.

    Args:
        dataset: A `datasets.Dataset`, or a sequence of mappings, with a list of ids in each column, or with frames
            `[T, F]` or a waveform `[T]`.
        columns: The columns that are padded; those missing or without lists of ids (classes, say) are ignored.

    Returns:
        `[rows]` int64, in tokens, frames or samples.

    Raises:
        InputError: The data has none of the columns.
    """
    first = dataset[0] if len(dataset) else {}
    names = [name for name in columns if isinstance(first, Mapping) and name in first and _is_padded(name, first)]
    if not names:
        raise InputError(f"max_tokens needs rows with {' or '.join(columns)}; the training set has {', '.join(first)}")
    if isinstance(dataset, datasets.Dataset):
        # Arrow has the lengths without converting a million rows to Python lists.
        table = dataset.select_columns(names).with_format("arrow")[:]
        # Frames are stored as an extension type of lists.
        chunks = {name: [getattr(one, "storage", one) for one in table[name].chunks] for name in names}
        sides = [np.concatenate([one.value_lengths() for one in chunks[name]]) for name in names]
    else:
        sides = [np.array([len(row[name]) for row in dataset]) for name in names]
    return np.maximum.reduce(sides)


def _is_padded(name: str, row: Mapping[str, Any]) -> bool:
    array = np.asarray(row[name])
    if name in ("input_features", "input_values", "pixel_values"):
        return array.ndim > 0
    return array.ndim == 1 and (array.size == 0 or array.dtype.kind in "iu")


# The Trainer passes a sampler on as `batch_sampler`, and undoes Accelerate's sharding of it, only if it is a
# `BatchRebalanceSampler`. Nothing else of that class is used: `__init__`, `__iter__` and `__len__` are replaced.
class TokenBudgetBatchSampler(BatchRebalanceSampler):
    """Batches of rows of similar length whose padded size is at most `max_tokens`.

    A batch of `n` rows costs `n` times its longest row, where the length of a pair is that of its longer side: neither
    the padded sources nor the padded targets of a batch exceed `max_tokens` tokens.

    The rows are sorted by length once and cut into groups of similar length. Each epoch shuffles the rows within their
    groups and the order of the batches. A batch reserves room for the longest row that its group could put into it, so
    the number of batches and their sizes are the same in every epoch, whatever the shuffle. Every row occurs exactly
    once per epoch. If the number of batches is not a multiple of `num_replicas`, the largest ones are halved. The
    batches that the ranks process in one step have similar lengths, so that no rank waits for another.

    Under the Trainer give `rank`: each rank then iterates over its own batches. For
    `accelerator.prepare(DataLoader(dataset, batch_sampler=sampler))` omit `rank`: Accelerate distributes the batches
    itself, evenly since their number is a multiple of `num_replicas`. (Its `split_batches` requires batches of one
    size and raises an error.)

    Args:
        lengths: `[rows]`, length of each row in tokens, as `row_lengths` returns them.
        max_tokens: Budget of one batch of one rank, in tokens.
        num_replicas: Number of processes that share the batches.
        rank: Process whose batches to yield; None for all batches, those of one step adjacent.
        seed: Random seed of the shuffle, combined with the epoch.

    Raises:
        InputError: There are no rows, a single row exceeds the budget, or the rows cannot be divided evenly.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        *,
        num_replicas: int = 1,
        rank: int | None = None,
        seed: int = 42,
    ):
        sizes = np.asarray(lengths, dtype=np.int64)
        if not len(sizes):
            raise InputError("the training set is empty: there is nothing to batch")
        longest = int(sizes.argmax())
        if sizes[longest] > max_tokens:
            raise InputError(
                f"--max_tokens {max_tokens} is too small: row {longest} of the training set has {sizes[longest]} "
                f"tokens (raise it to {sizes[longest]} or more, or shorten the rows)"
            )
        self.num_replicas = num_replicas
        self.rank = rank  # type: ignore[assignment]
        self.seed = seed
        self.epoch = 0
        self._order = np.argsort(sizes, kind="stable")
        self._groups = _group(sizes[self._order], max_tokens)
        starts = _cut(self._groups, sizes[self._order], max_tokens)
        self._bounds = _halve_to_multiple([*starts, len(sizes)], num_replicas, max_tokens)

    @property
    def sampler(self) -> TokenBudgetBatchSampler:
        """This sampler: `set_epoch` of accelerate's `DataLoaderShard` looks for a `sampler` of the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Select the shuffle of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = len(self._bounds) - 1
        return batches if self.rank is None else batches // self.num_replicas

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self._order.copy()
        for start, end in itertools.pairwise(self._groups):
            rng.shuffle(order[start:end])
        steps = np.arange(len(self._bounds) - 1).reshape(-1, self.num_replicas)
        steps = rng.permuted(rng.permutation(steps), axis=1)
        for batch in steps.ravel() if self.rank is None else steps[:, self.rank]:
            yield order[self._bounds[batch] : self._bounds[batch + 1]].tolist()


def check_budget(rows: Any, max_tokens: int | None, num_replicas: int) -> None:
    """Check that the rows fit a token budget, before anything is written.

    Args:
        rows: Encoded training rows; those of a stream are not checked.
        max_tokens: The budget; None for none.
        num_replicas: Number of processes that share the batches.

    Raises:
        InputError: The rows do not fit; see `TokenBudgetBatchSampler`.
    """
    if max_tokens is not None and not isinstance(rows, datasets.IterableDataset):
        TokenBudgetBatchSampler(row_lengths(rows), max_tokens, num_replicas=num_replicas)


def _group(sizes: np.ndarray, max_tokens: int) -> list[int]:
    """Cut sorted lengths into groups and return their bounds."""
    values, first = np.unique(sizes, return_index=True)
    bounds = [0]
    shortest = max(int(values[0]), 1)
    for length, longer, end in zip(values.tolist(), values[1:].tolist(), first[1:].tolist(), strict=False):
        full = (end - bounds[-1]) * length >= _BATCHES_PER_GROUP * max_tokens
        if full or longer > _LENGTH_RATIO * shortest:
            bounds.append(end)
            shortest = longer
    return [*bounds, len(sizes)]


def _cut(groups: list[int], sizes: np.ndarray, max_tokens: int) -> list[int]:
    """Return where batches start if each row costs its group's longest length; a batch may span several groups."""
    starts = [0]
    for begin, end in itertools.pairwise(groups):
        rows = max_tokens // max(int(sizes[end - 1]), 1)
        starts.extend(range(max(starts[-1] + rows, begin), end, rows))
    return starts


def _halve_to_multiple(bounds: list[int], num_replicas: int, max_tokens: int) -> np.ndarray:
    """Halve the batches with the most rows until their number is a multiple of `num_replicas`."""
    cuts = np.asarray(bounds)
    batches, rows = len(bounds) - 1, int(bounds[-1])
    if batches + -batches % num_replicas > rows:
        raise InputError(
            f"{rows} training rows in batches of --max_tokens {max_tokens} cannot be shared evenly by {num_replicas} "
            "processes: give more rows, a larger budget, or fewer processes"
        )
    for _ in range(-batches % num_replicas):
        widest = int(np.diff(cuts).argmax())
        cuts = np.insert(cuts, widest + 1, (cuts[widest] + cuts[widest + 1]) // 2)
    return cuts
