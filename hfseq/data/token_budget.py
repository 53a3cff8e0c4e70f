"""Batches by a budget of tokens, padding counted."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hfseq.errors import InputError

# Rows shuffle among those of about their length: a group grows until it fills this many batches ...
_BATCHES_PER_GROUP = 8
# ... or until its longest row is this much longer than its shortest, whichever comes first.
_LENGTH_RATIO = 1.25


def row_lengths(dataset: Any, columns: Sequence[str] = ("input_ids", "labels")) -> np.ndarray:
    """The length that counts against `max_tokens`: the longest of each row's `columns`.

    Args:
        dataset: a `datasets.Dataset`, or a sequence of mappings, with a list of ids in each column.
        columns: the columns that a batch pads; those that the data lacks, and those that hold something else than
            lists of ids (classes, say), are left out.

    Returns:
        `[rows]` int64, in tokens.

    Raises:
        InputError: the data has none of the columns.
    """
    first = dataset[0] if len(dataset) else {}
    names = [name for name in columns if isinstance(first, Mapping) and name in first and _are_ids(first[name])]
    if not names:
        raise InputError(f"max_tokens needs rows with {' or '.join(columns)}; the training set has {', '.join(first)}")
    if isinstance(dataset, datasets.Dataset):
        # Arrow knows the lengths without making Python lists of a million rows.
        table = dataset.select_columns(names).with_format("arrow")[:]
        sides = [np.concatenate([chunk.value_lengths() for chunk in table[name].chunks]) for name in names]
    else:
        sides = [np.array([len(row[name]) for row in dataset]) for name in names]
    return np.maximum.reduce(sides)


def _are_ids(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 1 and (array.size == 0 or array.dtype.kind in "iu")


class TokenBudgetBatchSampler(BatchRebalanceSampler):
    """Batches whose padded size stays within `max_tokens`, of rows of about the same length.

    A batch of `n` rows costs `n` times its longest row, where the length of a pair is that of its longer side: neither
    the padded sources nor the padded targets of a batch hold more than `max_tokens` tokens.

    The rows are sorted by length once and cut into groups of similar length. An epoch shuffles the rows inside each
    group, and the order of the batches. A batch is given room for the longest row that its group could put into it,
    so the cuts, and with them the number of batches, are the same in every epoch, whatever the shuffle. Every row
    comes exactly once an epoch. Where the number of batches is no multiple of `num_replicas`, the largest are halved.
    The ranks' batches of one step are neighbours in length, so that no rank waits for another.

    The base class is what makes the Trainer pass it on as a batch sampler; nothing else of it is used. Under the
    Trainer give `rank`: each rank then iterates over its own batches. For `accelerator.prepare(DataLoader(dataset,
    batch_sampler=sampler))` leave `rank` out: Accelerate deals the batches to the ranks itself, evenly since their
    number is a multiple of `num_replicas`. (Its `split_batches` needs batches of one size, and refuses.)

    Args:
        lengths: `[rows]`, tokens of each row (`row_lengths` reads them).
        max_tokens: the budget of one batch of one rank, in tokens.
        num_replicas: how many processes share the batches.
        rank: the process whose batches are wanted; None for all batches, those of a step next to each other.
        seed: of the shuffle, together with the epoch.

    Raises:
        InputError: there are no rows, a row alone passes the budget, or the rows cannot be shared evenly.
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
                f"--max_tokens {max_tokens} is too small: row {longest} of the training set has {sizes[longest]}"
                f" tokens (raise it to {sizes[longest]} or more, or shorten the rows)"
            )
        self.num_replicas = num_replicas
        self.rank = rank  # type: ignore[assignment]
        self.seed = seed
        self.epoch = 0
        self._order = np.argsort(sizes, kind="stable")
        self._groups, room = _group(sizes[self._order], max_tokens)
        starts = _cut(self._groups, room, max_tokens)
        self._bounds = _halve_to_multiple([*starts, len(sizes)], num_replicas, max_tokens)

    @property
    def sampler(self) -> "TokenBudgetBatchSampler":
        """Itself: accelerate's `DataLoaderShard.set_epoch` looks for a `sampler` inside the batch sampler it wraps."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = len(self._bounds) - 1
        return batches if self.rank is None else batches // self.num_replicas

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self._order.copy()
        for start, end in zip(self._groups[:-1], self._groups[1:], strict=True):
            rng.shuffle(order[start:end])
        steps = np.arange(len(self._bounds) - 1).reshape(-1, self.num_replicas)
        steps = rng.permuted(rng.permutation(steps), axis=1)
        for batch in steps.ravel() if self.rank is None else steps[:, self.rank]:
            yield order[self._bounds[batch] : self._bounds[batch + 1]].tolist()


def check_budget(rows: Any, max_tokens: int | None, num_replicas: int) -> None:
    """Refuse a budget that the rows do not fit, before anything is written.

    Args:
        rows: Encoded training rows; those of a stream are not looked at.
        max_tokens: The budget; None for none.
        num_replicas: How many processes share the batches.

    Raises:
        InputError: As `TokenBudgetBatchSampler`.
    """
    if max_tokens is not None and not isinstance(rows, datasets.IterableDataset):
        TokenBudgetBatchSampler(row_lengths(rows), max_tokens, num_replicas=num_replicas)


def _group(sizes: np.ndarray, max_tokens: int) -> tuple[list[int], list[int]]:
    """Cut sorted lengths into groups: their bounds, and the longest length in each (at least 1)."""
    values, first = np.unique(sizes, return_index=True)
    bounds, room = [0], []
    shortest = max(int(values[0]), 1)
    for length, longer, end in zip(values.tolist(), values[1:].tolist(), first[1:].tolist(), strict=False):
        full = (end - bounds[-1]) * length >= _BATCHES_PER_GROUP * max_tokens
        if full or longer > _LENGTH_RATIO * shortest:
            bounds.append(end)
            room.append(max(length, 1))
            shortest = longer
    return [*bounds, len(sizes)], [*room, max(int(values[-1]), 1)]


def _cut(groups: list[int], room: list[int], max_tokens: int) -> list[int]:
    """Where batches start when each row costs its group's longest length; a batch may reach over several groups."""
    starts = [0]
    for begin, end, longest in zip(groups[:-1], groups[1:], room, strict=True):
        rows = max_tokens // longest
        starts.extend(range(max(starts[-1] + rows, begin), end, rows))
    return starts


def _halve_to_multiple(bounds: list[int], num_replicas: int, max_tokens: int) -> np.ndarray:
    """Halve the batches of most rows until their number is a multiple of `num_replicas`."""
    cuts = np.asarray(bounds)
    batches, rows = len(bounds) - 1, int(bounds[-1])
    if batches + -batches % num_replicas > rows:
        raise InputError(
            f"{rows} training rows in batches of --max_tokens {max_tokens} cannot be shared evenly by {num_replicas}"
            " processes: give more rows, a larger budget, or fewer processes"
        )
    for _ in range(-batches % num_replicas):
        widest = int(np.diff(cuts).argmax())
        cuts = np.insert(cuts, widest + 1, (cuts[widest] + cuts[widest + 1]) // 2)
    return cuts
