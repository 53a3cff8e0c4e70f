"""Read training, validation and test data from local files or the Hub, with errors that name the place."""

import csv
import functools
import io
import json
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import InputError

logger = logging.getLogger(__name__)

# The names a split goes by on the Hub, the usual one first.
_HUB_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev", "val"), "test": ("test",)}
# The column of the Hub's translation datasets: one dict of language to text in each row.
_TRANSLATION = "translation"


def read_splits(
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
) -> datasets.DatasetDict:
    r"""Read the splits that are given and keep `columns` of them, all strings, in the order of the file.

    A row in which one of `columns` is empty, whitespace or null is dropped; a warning of this module's logger says how
    many, of which file, and the numbers of the first ones, for whoever has to align predictions with a file.

    Files are UTF-8, with or without a byte order mark. Their extension says what they are:

    - `.csv`: commas, standard quoting (a field in double quotes may hold commas, line breaks and doubled quotes);
    - `.tsv`: tabs and nothing else, quotes are text; lines end with `\n` or `\r\n`;
    - `.jsonl`, `.json`: one object a line;
    - `.parquet`;
    - with `moses`, any other: the common prefix of aligned plain text files, one for each column (`train` with columns
      `de`, `en` stands for `train.de`, `train.en`), a text a line. Only `\n` and `\r\n` end a line.

    JSON lines, Parquet and Hub data may also hold one column `translation` of `{"de": ..., "en": ...}`.

    Args:
        columns: The columns to keep; every row has to have text in each.
        dataset_name: A dataset of the Hub, a local folder that `datasets.load_dataset` takes, or one that
            `save_to_disk` wrote. Its validation split may be called validation, valid, dev or val.
        dataset_config_name: The configuration of that dataset.
        train_file: The training data; excludes `dataset_name`.
        validation_file: The validation data; replaces that of `dataset_name`.
        test_file: The test data; replaces that of `dataset_name`.
        column_names: The columns of CSV and TSV files without a header.
        moses: Whether a file may be a pair of aligned files.
        label_columns: Those of `columns` that hold classes. Whole numbers and truth values are read as strings (`1`,
            `true`), class ids of a data set that has names for them as those names, and lists of any of these as lists
            of strings, which may be empty.

    Returns:
        `train`, `validation` and `test`, as far as they were given or are in `dataset_name`. None is empty.

    Raises:
        InputError: For anything wrong with the flags, a file, a line, a column or a value.
    """
    if len(set(columns)) < len(columns):
        raise InputError(f"the columns (or languages) must differ, got {', '.join(columns)}")
    if dataset_name and train_file:
        raise InputError("--dataset_name and --train_file exclude each other: give one")
    wanted = _Columns(columns, label_columns)
    splits = _read_hub(dataset_name, dataset_config_name, wanted) if dataset_name else {}
    for split, name in (("train", train_file), ("validation", validation_file), ("test", test_file)):
        if name is not None:
            splits[split] = _read_file(name, f"--{split}_file", wanted, column_names, moses)
    if not splits:
        raise InputError("no data: give --train_file or --dataset_name")
    return datasets.DatasetDict(splits)


class _Columns(tuple[str, ...]):
    """Names of the columns to keep, with those among them that hold classes."""

    labels: frozenset[str]

    def __new__(cls, names: Sequence[str], labels: Sequence[str]) -> Self:
        columns = super().__new__(cls, names)
        columns.labels = frozenset(labels)
        return columns


def _read_file(
    name: str, flag: str, columns: _Columns, column_names: Sequence[str] | None, moses: bool
) -> datasets.Dataset:
    path = Path(name)
    reader = _READERS.get(path.suffix.lower())
    if reader is None and not moses:
        raise InputError(f"{flag} {name}: unknown extension {path.suffix!r}; known are {', '.join(_READERS)}")
    if column_names and reader not in (_read_csv, _read_tsv):
        raise InputError(f"--column_names names the columns of CSV and TSV files; {flag} {name} is neither")
    if reader is None:
        table = _read_moses(path, flag, columns)
    elif reader in (_read_csv, _read_tsv):
        table = reader(path, flag, columns, column_names)
    else:
        table = reader(path, flag, columns)
    return _drop_empty(datasets.Dataset(table), columns, name, f"{flag} {name}")


def _drop_empty(dataset: datasets.Dataset, columns: Sequence[str], name: str, source: str) -> datasets.Dataset:
    """The rows with text in every column; reports the others under `name`, refuses `source` if none is left."""
    table = dataset.with_format("arrow")[:]
    filled = functools.reduce(operator.and_, (_filled(table[column]) for column in columns))
    if not filled.any():
        raise InputError(f"{source}: empty: none of {len(dataset)} rows has text in {' and '.join(columns)}")
    dropped = np.flatnonzero(~filled)
    if len(dropped) == 0:
        return dataset
    count = len(dropped)
    first = ", ".join(str(row + 1) for row in dropped[:5]) + ", ..." * (count > 5)
    logger.warning("%s: %d empty row%s dropped of %d: %s", name, count, "s" * (count > 1), len(dataset), first)
    return dataset.select(np.flatnonzero(filled))


def _filled(values: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_list(values.type):
        return _to_numpy(pc.is_valid(values))
    return _to_numpy(pc.not_equal(pc.utf8_trim_whitespace(values), ""))


def _to_numpy(mask: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(mask, False).to_numpy()


def _string_table(values: Mapping[str, Sequence[Any]]) -> pa.Table:
    return pa.table({column: pa.array(texts, _kind(texts)) for column, texts in values.items()})


def _kind(texts: Sequence[Any]) -> pa.DataType:
    return pa.list_(pa.string()) if any(isinstance(text, list) for text in texts) else pa.string()


# Text files


def _text(path: Path, flag: str) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file ({flag})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror} ({flag})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file"
        ) from None


def _lines(path: Path, flag: str) -> list[str]:
    r"""Lines as `\n` or `\r\n` ends them; `str.splitlines` would also split at U+2028, U+0085 and others."""
    lines = _text(path, flag).split("\n")
    if lines[-1] == "":
        del lines[-1]
    return [line.removesuffix("\r") for line in lines]


def _read_moses(prefix: Path, flag: str, columns: Sequence[str]) -> pa.Table:
    paths = [Path(f"{prefix}.{column}") for column in columns]
    if not any(path.exists() for path in paths):
        raise InputError(
            f"{flag} {prefix}: no files {' and '.join(map(str, paths))}, and no extension that is known: "
            f"{', '.join(_READERS)}"
        )
    lines = [_lines(path, flag) for path in paths]
    if len({len(texts) for texts in lines}) > 1:
        counts = ", ".join(f"{path} has {len(texts)} lines" for path, texts in zip(paths, lines, strict=True))
        raise InputError(f"{counts}: line n of one must be the translation of line n of the other")
    return _string_table(dict(zip(columns, lines, strict=True)))


def _read_csv(path: Path, flag: str, columns: Sequence[str], column_names: Sequence[str] | None) -> pa.Table:
    reader = csv.reader(io.StringIO(_text(path, flag), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    # The limit, 131072 characters, is one for the whole process.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line}: malformed CSV row ({error})") from None
    finally:
        csv.field_size_limit(limit)
    return _pick(path, rows, columns, column_names)


def _read_tsv(path: Path, flag: str, columns: Sequence[str], column_names: Sequence[str] | None) -> pa.Table:
    rows = [(number, line.split("\t")) for number, line in enumerate(_lines(path, flag), 1)]
    return _pick(path, rows, columns, column_names)


def _pick(
    path: Path, rows: list[tuple[int, list[str]]], columns: Sequence[str], column_names: Sequence[str] | None
) -> pa.Table:
    """The wanted columns of rows of fields, each with its line number; the first names them unless they are named."""
    if column_names is None:
        if not rows:
            raise InputError(f"{path}: empty; the first line must name the columns")
        header = [field.strip() for field in rows[0][1]]
        rows = rows[1:]
    else:
        header = list(column_names)
    for column in columns:
        if header.count(column) != 1:
            problem = f"{header.count(column)} columns" if column in header else "no column"
            hint = "" if column_names else "; a file without a header needs --column_names"
            raise InputError(f"{path}: {problem} {column!r}; there are {shorten_list(header)}{hint}")
    for line, row in rows:
        # A blank line is an empty row, to be dropped and counted like one.
        if len(row) != len(header) and any(row):
            expected = "--column_names names" if column_names else "the header names"
            raise InputError(f"{path}:{line}: {len(row)} fields, but {expected} {len(header)}")
    values: dict[str, list[str | None]] = {}
    for column in columns:
        index = header.index(column)
        values[column] = [row[index] if len(row) == len(header) else None for _, row in rows]
    return _string_table(values)


def _read_jsonl(path: Path, flag: str, columns: _Columns) -> pa.Table:
    values: dict[str, list[Any]] = {column: [] for column in columns}
    for number, line in enumerate(_lines(path, flag), 1):
        place = f"{path}:{number}"
        if not line.strip():
            row: Any = dict.fromkeys(columns)
        else:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not JSON ({error}); each line must be one object") from None
        if isinstance(row, dict) and isinstance(row.get(_TRANSLATION), dict) and not set(columns) <= row.keys():
            row = row[_TRANSLATION]
        if not isinstance(row, dict):
            raise InputError(f"{place}: a JSON {type(row).__name__}; each line must be one object")
        for column in columns:
            if column not in row:
                raise InputError(f"{place}: no column {column!r}; there are {shorten_list(row)}")
            value = _class_names(row[column]) if column in columns.labels else row[column]
            if not isinstance(value, str | None) and not (isinstance(value, list) and column in columns.labels):
                expected = (
                    "a class (a string, a whole number, true, false, or a list)" if columns.labels else "a string"
                )
                raise InputError(f"{place}: column {column!r} must be {expected}, not {_short(json.dumps(value))}")
            if values[column] and value is not None:
                first = next((one for one in values[column] if one is not None), value)
                if isinstance(first, list) is not isinstance(value, list):
                    raise InputError(f"{place}: column {column!r} must be a list in all rows or in none")
            try:
                "".join(value or "").encode()
            except UnicodeEncodeError:
                # JSON can escape half of a surrogate pair.
                raise InputError(
                    f"{place}: column {column!r} has half of a surrogate pair, which is no text"
                ) from None
            values[column].append(value)
    return _string_table(values)


def _class_names(value: Any) -> Any:
    """A class or a list of classes of JSON as strings; what is none as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str | int) for one in value):
        return [_class_names(one) for one in value]
    return value


# Arrow


def _read_parquet(path: Path, flag: str, columns: _Columns) -> pa.Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file ({flag})")
    try:
        names = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in (*columns, _TRANSLATION) if name in names])
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{flag} {path}: not a valid Parquet file ({_one_line(error)})") from None
    if not set(columns) <= set(names) and _TRANSLATION in names and pa.types.is_struct(table[_TRANSLATION].type):
        texts = table[_TRANSLATION].combine_chunks().flatten()
        names = [field.name for field in table[_TRANSLATION].type]
        table = pa.table(dict(zip(names, texts, strict=True)))
    _check_columns(f"{flag} {path}", columns, names)
    kinds = [(name, _check_kind(f"{flag} {path}", columns, name, table[name].type)) for name in columns]
    return table.select(list(columns)).cast(pa.schema(kinds))


def _read_hub(name: str, config: str | None, columns: _Columns) -> dict[str, datasets.Dataset]:
    source = f"--dataset_name {name}"
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config)
    # Whatever a server, a network, a cache or somebody's data files can raise.
    except Exception as error:
        raise InputError(f"{source}: cannot be loaded ({_one_line(error.__cause__ or error)})") from error
    splits = {}
    for split, aliases in _HUB_SPLITS.items():
        alias = next((alias for alias in aliases if alias in found), None)
        if alias is not None:
            splits[split] = _pick_hub(found[alias], columns, f"{name} [{alias}]", f"{source}, split {alias}")
    if not splits:
        raise InputError(f"{source}: no split train, validation or test; there are {shorten_list(found)}")
    return splits


def _pick_hub(dataset: datasets.Dataset, columns: _Columns, name: str, source: str) -> datasets.Dataset:
    names = dataset.column_names
    if not set(columns) <= set(names) and _TRANSLATION in names:
        dataset = dataset.select_columns(_TRANSLATION).flatten()
        names = [column.removeprefix(f"{_TRANSLATION}.") for column in dataset.column_names]
        dataset = dataset.rename_columns(dict(zip(dataset.column_names, names, strict=True)))
    _check_columns(source, columns, names)
    dataset = _name_classes(dataset.select_columns(list(columns)), columns)
    features: dict[str, Any] = {}
    for column in columns:
        kind = _check_kind(source, columns, column, dataset.data.schema.field(column).type)
        text = datasets.Value("string")
        features[column] = datasets.List(text) if pa.types.is_list(kind) else text
    dataset = dataset.cast(datasets.Features(features))
    return _drop_empty(dataset, columns, name, source)


def _name_classes(dataset: datasets.Dataset, columns: _Columns) -> datasets.Dataset:
    """Ids of classes that the data set has names for as these names."""
    for column in columns.labels:
        feature = dataset.features[column]
        kind = getattr(feature, "feature", feature)
        if not isinstance(kind, datasets.ClassLabel):
            continue
        listed = kind is not feature
        lists = [value if listed else [value] for value in dataset[column]]
        # -1 stands for no class, and a row may be null.
        named = [one and [kind.names[id] if id is not None and id >= 0 else None for id in one] for one in lists]
        values = named if listed else [one for (one,) in named]
        text = datasets.Value("string")
        dataset = dataset.remove_columns(column).add_column(
            column, values, feature=datasets.List(text) if listed else text
        )
    return dataset


def _check_columns(source: str, columns: Sequence[str], names: Sequence[str]) -> None:
    for column in columns:
        if column not in names:
            raise InputError(f"{source}: no column {column!r}; there are {shorten_list(names)}")


def _check_kind(source: str, columns: _Columns, column: str, kind: pa.DataType) -> pa.DataType:
    """Type to which a column of strings, or of classes, is cast."""
    allowed, expected, target = list(_STRINGS), "strings", pa.string()
    value = kind
    if column in columns.labels:
        allowed += [pa.types.is_integer, pa.types.is_boolean]
        expected = "classes (strings, whole numbers, truth values, or lists of them)"
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            value, target = kind.value_type, pa.list_(pa.string())
    value = value.value_type if pa.types.is_dictionary(value) else value
    if not any(check(value) for check in allowed):
        raise InputError(f"{source}: column {column!r} must hold {expected}, not {_short(str(kind))}")
    return target


def shorten_list(names: Sequence[str] | dict[str, Any]) -> str:
    """Names for an error message, long ones cut; `none` if there are none."""
    return ", ".join(_short(repr(name)) for name in names) or "none"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
_READERS: dict[str, Callable[..., pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}


def hold_out_validation(splits: datasets.DatasetDict, seed: int) -> datasets.DatasetDict:
    """Give data without a validation split one: a twentieth of the training rows, at most 1000, drawn by `seed`.

    Args:
        splits: With `train`; returned as they are if they have `validation`.
        seed: Of the drawing.

    Raises:
        InputError: There is no training split, or only one row in it.
    """
    if "train" not in splits:
        raise InputError(f"no training data: the data has only {', '.join(splits)}; name it with --train_file")
    if "validation" in splits:
        return splits
    rows = len(splits["train"])
    if rows < 2:
        raise InputError("one training row cannot be shared with validation; give --validation_file, or more rows")
    held = splits["train"].train_test_split(test_size=max(1, min(1000, rows // 20)), seed=seed)
    logger.warning("no validation data: %d of %d training rows are held out for it", len(held["test"]), rows)
    return datasets.DatasetDict({**splits, "train": held["train"], "validation": held["test"]})
