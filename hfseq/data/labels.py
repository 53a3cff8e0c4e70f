"""Class names and their ids."""

from collections.abc import Sequence

import datasets

from hfseq.data.reading import shorten_list
from hfseq.errors import InputError

# Python converts no integers of more than 4300 digits to or from strings.
_MOST_DIGITS = 4000


def encode_labels(
    splits: datasets.DatasetDict,
    column: str,
    *,
    names: Sequence[str] | None = None,
    replace_names: bool = False,
    separator: str | None = None,
) -> tuple[datasets.DatasetDict, list[str]]:
    """Encode the classes of each row as ids, or as multi-hot vectors for multi-label data.

    Args:
        splits: Data whose `column` contains one class name per row, or a list of them (multi-label), as `read_splits`
            returns it.
        column: Name of that column; it becomes `labels` in the result.
        names: Class names in the order of their ids, as a trained model has them; None collects them from the training
            rows and sorts integers numerically, other names alphabetically.
        replace_names: Collect the names from the training rows if these contain a class that is not in `names`.
        separator: Separator of the classes in a string (multi-label), in which an empty string is no class; None if a
            string is one class.

    Returns:
        The data with a column `labels` of class ids, or of `len(names)` floats, 1 for each class of the row, if it is
        multi-label; and the names.

    Raises:
        InputError: There are fewer than two classes (one, if multi-label), or a row has a class that neither the
            training rows nor the trained model have.
    """
    classes = {split: row_classes(rows, column, separator) for split, rows in splits.items()}
    multi_label = separator is not None or isinstance(next(iter(splits.values()))[column][0], list)
    if names is not None and replace_names and not {name for row in classes["train"] for name in row} <= set(names):
        names = None
    if names is None:
        if "train" not in classes:
            raise InputError(f"no training data to take the classes of column {column!r} from")
        names = _order({name for row in classes["train"] for name in row})
        if len(names) < (1 if multi_label else 2):
            raise InputError(
                f"column {column!r} of the training data has {len(names)} class{'es' * (len(names) != 1)} "
                f"({shorten_list(names)}); there is nothing to learn"
            )
    number = {name: index for index, name in enumerate(names)}
    encoded = {}
    for split, rows in splits.items():
        for index, row in enumerate(classes[split]):
            unknown = next((name for name in row if name not in number), None)
            if unknown is not None:
                raise InputError(
                    f"{split}, row {index + 1}: class {unknown!r} of column {column!r} is not one of the "
                    f"{len(names)} known: {shorten_list(names)}"
                )
        values: list[int] | list[list[float]]
        if multi_label:
            values = [[float(name in row) for name in names] for row in map(set, classes[split])]
            feature = datasets.List(datasets.Value("float32"))
        else:
            values = [number[row[0]] for row in classes[split]]
            feature = datasets.Value("int64")
        encoded[split] = rows.remove_columns(column).add_column("labels", values, feature=feature)
    return datasets.DatasetDict(encoded), list(names)


def row_classes(rows: datasets.Dataset, column: str, separator: str | None = None) -> list[list[str]]:
    """Return the class names of each row, stripped of whitespace; arguments as for `encode_labels`."""
    found = []
    for value in rows[column]:
        if isinstance(value, str):
            value = [value] if separator is None else value.split(separator)
        found.append([name.strip() for name in value if name and name.strip()])
    return found


def _order(names: set[str]) -> list[str]:
    whole = all(len(name) <= _MOST_DIGITS and name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if whole else (lambda name: (name.casefold(), name)))
