"""Classes of texts as the numbers that a model is trained on."""

from collections.abc import Sequence

import datasets

from hfseq.data.reading import shorten_list
from hfseq.errors import InputError

# Python turns no longer number than one of 4300 digits into text or back.
_MOST_DIGITS = 4000


def encode_labels(
    splits: datasets.DatasetDict,
    column: str,
    *,
    names: Sequence[str] | None = None,
    replace_names: bool = False,
    separator: str | None = None,
) -> tuple[datasets.DatasetDict, list[str]]:
    """Number the classes of each row.

    Args:
        splits: Data in which `column` holds a class name a row, or a list of them where several may hold at once, as
            `read_splits` reads it.
        column: That column; it becomes `labels` in the result.
        names: The classes in the order of their numbers, as a trained model has them; None takes those of the training
            rows, whole numbers in their order, others alphabetically.
        replace_names: Whether training rows with a class that is not in `names` make these give way, as for None.
        separator: What stands between the classes of one row, where they are written in one string; an empty string is
            then no class. None: a string is one class.

    Returns:
        The data with a column `labels` of class numbers, or of lists of `len(names)` floats, 1 for a class that holds,
        if several may hold; and the names.

    Raises:
        InputError: There are fewer than two classes (one, where several may hold), or a row has a class that the
            training rows, or the trained model, do not have.
    """
    classes = {split: row_classes(rows, column, separator) for split, rows in splits.items()}
    several = separator is not None or isinstance(next(iter(splits.values()))[column][0], list)
    if names is not None and replace_names and not {name for row in classes["train"] for name in row} <= set(names):
        names = None
    if names is None:
        if "train" not in classes:
            raise InputError(f"no training data to take the classes of column {column!r} from")
        names = _order({name for row in classes["train"] for name in row})
        if len(names) < (1 if several else 2):
            raise InputError(
                f"column {column!r} of the training data has {len(names)} class{'es' * (len(names) != 1)} "
                f"({shorten_list(names)}); there is nothing to learn"
            )
    number = {name: index for index, name in enumerate(names)}
    encoded = {}
    for split, rows in splits.items():
        values: list[int] | list[list[float]]
        for index, row in enumerate(classes[split]):
            unknown = next((name for name in row if name not in number), None)
            if unknown is not None:
                raise InputError(
                    f"{split}, row {index + 1}: class {unknown!r} of column {column!r} is not one of the "
                    f"{len(names)} known: {shorten_list(names)}"
                )
        if several:
            values = [[float(name in row) for name in names] for row in map(set, classes[split])]
            feature = datasets.List(datasets.Value("float32"))
        else:
            values = [number[row[0]] for row in classes[split]]
            feature = datasets.Value("int64")
        encoded[split] = rows.remove_columns(column).add_column("labels", values, feature=feature)
    return datasets.DatasetDict(encoded), list(names)


def row_classes(rows: datasets.Dataset, column: str, separator: str | None = None) -> list[list[str]]:
    """The classes of each row, as `encode_labels` finds them; spaces around a name do not belong to it."""
    found = []
    for value in rows[column]:
        if isinstance(value, str):
            value = [value] if separator is None else value.split(separator)
        found.append([name.strip() for name in value if name and name.strip()])
    return found


def _order(names: set[str]) -> list[str]:
    whole = all(len(name) <= _MOST_DIGITS and name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if whole else (lambda name: (name.casefold(), name)))
