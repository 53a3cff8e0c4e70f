"""Class names and their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfseq.data.reading import shorten_list
from hfseq.errors import InputError
from hfseq.lazy import datasets

# Python converts no integers of more than 4300 digits to or from strings.
_MOST_DIGITS = 4000


def encode_labels(
    splits: Mapping[str, Any],
    column: str,
    *,
    names: Sequence[str] | None = None,
    replace_names: bool = False,
    separator: str | None = None,
    place_column: str | None = None,
) -> tuple[datasets.DatasetDict, list[str]]:
    """Encode the classes of each row as ids, or as multi-hot vectors for multi-label data.

    Args:
        splits: Data whose `column` contains one class name per row, or a list of them (multi-label), as `read_splits`
            or `read_stream` returns it. Streamed training rows are read once for their classes.
        column: Name of that column; it becomes `labels` in the result.
        names: Class names in the order of their ids, as a trained model has them; None collects them from the training
            rows and sorts integers numerically, other names alphabetically.
        replace_names: Collect the names from the training rows if these contain a class that is not in `names`.
        separator: Separator of the classes in a string (multi-label), in which an empty string is no class; None if a
            string is one class.
        place_column: Column of the place of each row, for errors; None, or a split without it, for the number of the
            row in its split.

    Returns:
        The data with a column `labels` of class ids, or of `len(names)` floats, 1 for each class of the row, if it is
        multi-label; and the names.

    Raises:
        InputError: There are fewer than two classes (one, if multi-label), or a row has a class that neither the
            training rows nor the trained model have.
    """
    multi_label = separator is not None or isinstance(next(iter(next(iter(splits.values()))[column])), list)
    if names is None or replace_names:
        if "train" not in splits:
            raise InputError(f"no training data to take the classes of column {column!r} from")
        found = {name for value in splits["train"][column] for name in _classes(value, separator)}
        if names is None or not found <= set(names):
            names = _order(found)
            if len(names) < (1 if multi_label else 2):
                raise InputError(
                    f"column {column!r} of the training data has {len(names)} class{'es' * (len(names) != 1)} "
                    f"({shorten_list(names)}); there is nothing to learn"
                )
    number = {name: index for index, name in enumerate(names)}

    def encode(place: str, value: str | list[str]) -> int | list[float]:
        row = set(_classes(value, separator))
        if unknown := sorted(row - number.keys()):
            raise InputError(
                f"{place}: class {unknown[0]!r} of column {column!r} is not one of the {len(number)} known: "
                f"{shorten_list(list(number))}"
            )
        return [float(name in row) for name in number] if multi_label else number[row.pop()]

    feature = datasets.List(datasets.Value("float32")) if multi_label else datasets.Value("int64")
    encoded = {}
    for split, rows in splits.items():
        if isinstance(rows, datasets.IterableDataset):
            kept = {name: kind for name, kind in rows.features.items() if name != column}
            encoded[split] = rows.map(
                lambda values, split=split: {"labels": [encode(split, value) for value in values]},
                input_columns=column,
                batched=True,
                remove_columns=[column],
                features=datasets.Features({**kept, "labels": feature}),
            )
        else:
            places = row_places(rows, split, place_column)
            labels = [encode(place, value) for place, value in zip(places, rows[column], strict=True)]
            encoded[split] = rows.remove_columns(column).add_column("labels", labels, feature=feature)
    return datasets.DatasetDict(encoded), list(names)


def row_classes(rows: datasets.Dataset, column: str, separator: str | None = None) -> list[list[str]]:
    """Return the class names of each row, stripped of whitespace; arguments as for `encode_labels`."""
    return [_classes(value, separator) for value in rows[column]]


def row_places(rows: datasets.Dataset, split: str, place_column: str | None) -> list[str]:
    """Return the place of each row, for errors: that in a column if there is one, or its number in the split."""
    if place_column in rows.column_names:
        return list(rows[place_column])
    return [f"{split}, row {number}" for number in range(1, len(rows) + 1)]


def _classes(value: str | list[str], separator: str | None) -> list[str]:
    if isinstance(value, str):
        value = [value] if separator is None else value.split(separator)
    return [name.strip() for name in value if name and name.strip()]


def _order(names: set[str]) -> list[str]:
    whole = all(len(name) <= _MOST_DIGITS and name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if whole else (lambda name: (name.casefold(), name)))
