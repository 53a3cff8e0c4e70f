"""Splits of embedded data, the same in every process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from hfseq.errors import InputError
from hfseq.lazy import datasets

SPLITS = ("train", "validation", "test")
# Percentages of all values.
_VALIDATION_SHARE, _TEST_SHARE = 5, 10


def split_of(value: str) -> str:
    """Return the split of a value: "train", "validation" or "test".

    Args:
        value: A value as Python writes it: a date "2031-03-05", a minute of the day "15:07", a number "12.5" (no
            trailing zeros, no exponent), sorted codes of names "AT DE FR", a locale "de_AT".
    """
    if value.isdecimal() and int(value) <= 12:
        return "train"
    bucket = int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") % 100
    if bucket < _TEST_SHARE:
        return "test"
    return "validation" if bucket < _TEST_SHARE + _VALIDATION_SHARE else "train"


def draw_splits(
    columns: Sequence[str],
    sizes: Sequence[int],
    seed: int,
    draw: Callable[[str, int, random.Random], Sequence[tuple[Any, ...]]],
    *,
    least: int = 1,
) -> datasets.DatasetDict:
    """Draw the rows of each split; the size of one split does not change the rows of another.

    Args:
        columns: Names of the columns.
        sizes: Number of rows in each of `SPLITS`.
        seed: Seed of the random generator of each split.
        draw: Returns as many rows of a split as it is asked for.
        least: Minimum number of rows.

    Raises:
        InputError: A size is below `least`.
    """
    splits = {}
    for split, size in zip(SPLITS, sizes, strict=True):
        if size < least:
            raise InputError(f"{split} size: {size} is too few; give {least} or more")
        values = zip(*draw(split, size, random.Random(f"{seed} {split}")), strict=True)
        splits[split] = datasets.Dataset.from_dict(dict(zip(columns, values, strict=True)))
    return datasets.DatasetDict(splits)


def sample_rows(rows: dict[str, list[Any]], split: str, size: int, rng: random.Random) -> list[Any]:
    """Sample rows of a split without replacement.

    Raises:
        InputError: `size` is larger than the number of rows.
    """
    if size > len(rows[split]):
        raise InputError(f"{split} size: {size} is more than the {len(rows[split])} rows there are; give fewer")
    return rng.sample(rows[split], size)
