"""Read training, validation and test data from local files or the Hub, with errors that name the place."""

import csv
import functools
import itertools
import json
import logging
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hfseq.data import conll
from hfseq.errors import InputError, one_line

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
    keep_empty: bool = False,
) -> datasets.DatasetDict:
    r"""Read the splits that are given and keep `columns` of them, all strings, in the order of the file.

    A row in which one of `columns` is empty, whitespace or null is dropped; a warning of this module's logger says how
    many, of which file, and the numbers of the first ones, for whoever has to align predictions with a file.

    Files are UTF-8, with or without a byte order mark. Their extension says what they are:

    - `.csv`: commas, standard quoting (a field in double quotes may hold commas, line breaks and doubled quotes);
    - `.tsv`: tabs and nothing else, quotes are text; lines end with `\n` or `\r\n`;
    - `.jsonl`, `.json`: one object a line;
    - `.parquet`;
    - `.conllu`, `.conll`: a word a line, for columns of lists; see `conll_rows`;
    - with `moses`, any other: the common prefix of aligned plain text files, one for each column (`train` with columns
      `de`, `en` stands for `train.de`, `train.en`), a text a line; with a single column, that file
      itself if there is one. Only `\n` and `\r\n` end a line.

    JSON lines, Parquet and Hub data may also hold one column `translation` of `{"de": ..., "en": ...}`.

    All other characters are text as they are, NUL and other control characters among them (in JSON lines escaped, as
    JSON wants them).

    Args:
        columns: The columns to keep; every row has to have text in each.
        dataset_name: A dataset of the Hub, a local folder that `datasets.load_dataset` takes, or one that
            `save_to_disk` wrote. Its validation split may be called validation, valid, dev or val.
        dataset_config_name: The configuration of that dataset.
        train_file: The training data; excludes `dataset_name`.
        validation_file: The validation data; replaces that of `dataset_name`.
        test_file: The test data; replaces that of `dataset_name`.
        column_names: The columns of CSV and TSV files without a header; a first line that repeats them is refused.
        moses: Whether a file may be a pair of aligned files.
        label_columns: Those of `columns` that hold classes. Whole numbers and truth values are read as strings (`1`,
            `true`), class ids of a data set that has names for them as those names, and lists of any of these as lists
            of strings, which may be empty.
        keep_empty: Whether empty rows stay: running text has empty lines.

    Returns:
        `train`, `validation` and `test`, as far as they were given or are in `dataset_name`. None is empty. A split of
        `dataset_name` other than `train` in which no row has a class is left out, with a warning: the test splits of
        GLUE keep theirs to themselves.

    Raises:
        InputError: For anything wrong with the flags, a file, a line, a column or a value.
    """
    wanted = Columns(columns, label_columns, keep_empty)
    check_sources(columns, dataset_name, train_file)
    splits = _read_hub(dataset_name, dataset_config_name, wanted) if dataset_name else {}
    for split, name in (("train", train_file), ("validation", validation_file), ("test", test_file)):
        if name is not None:
            splits[split] = read_file(name, f"--{split}_file", wanted, column_names, moses)
    if not splits:
        raise InputError(f"no data: give --train_file or --dataset_name{' with labels' if dataset_name else ''}")
    return datasets.DatasetDict(splits)


class Columns(tuple[str, ...]):
    """Names of the columns to keep, with those among them that hold classes, and whether empty rows stay."""

    labels: frozenset[str]
    keep_empty: bool

    def __new__(cls, names: Sequence[str], labels: Sequence[str], keep_empty: bool = False) -> Self:
        """Names of all, those of the columns of classes, and whether empty rows stay."""
        columns = super().__new__(cls, names)
        columns.labels, columns.keep_empty = frozenset(labels), keep_empty
        return columns

    def __getnewargs__(self) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        return tuple(self), tuple(sorted(self.labels)), self.keep_empty


def check_sources(columns: Sequence[str], dataset_name: str | None, train_file: str | None) -> None:
    """Refuse columns of one name, and two sources of training data."""
    if len(set(columns)) < len(columns):
        raise InputError(f"the columns (or languages) must differ, got {', '.join(columns)}")
    if dataset_name and train_file:
        raise InputError("--dataset_name and --train_file exclude each other: give one")


def read_file(
    name: str, flag: str, columns: Columns, column_names: Sequence[str] | None, moses: bool
) -> datasets.Dataset:
    """One file as a whole, without its empty rows; see `read_splits`."""
    path = Path(name)
    if path.suffix.lower() == ".parquet" and not column_names:
        table = _read_parquet(path, flag, columns)
    else:
        table = string_table(file_rows(name, flag, columns, column_names, moses), columns)
    return drop_empty(datasets.Dataset(table), columns, name, f"{flag} {name}")


def file_rows(
    name: str, flag: str, columns: Columns, column_names: Sequence[str] | None, moses: bool
) -> Iterator[list[Any]]:
    """The rows of a file, one after the other, as `read_splits` checks them and with the same errors.

    Args:
        name: The file.
        flag: Names it in errors.
        columns: As `read_splits`.
        column_names: As `read_splits`.
        moses: As `read_splits`.

    Returns:
        The values of `columns` in each row, empty ones too: strings, None, or lists of strings in columns of classes.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES and not moses:
        raise InputError(f"{flag} {name}: unknown extension {path.suffix!r}; known are {', '.join(_SUFFIXES)}")
    if column_names and suffix not in (".csv", ".tsv", ".conll"):
        raise InputError(f"--column_names is for CSV, TSV and CoNLL files; {flag} {name} is none of them")
    if suffix == ".csv":
        return _pick(path, _csv_fields(path, flag), columns, column_names)
    if suffix == ".tsv":
        return _pick(path, _tsv_fields(path, flag), columns, column_names)
    if suffix in (".jsonl", ".json"):
        return _json_rows(path, flag, columns)
    if suffix in conll.SUFFIXES:
        if not columns.labels.issuperset(columns):
            raise InputError(f"{flag} {name}: a word a line is for tagging, not for texts")
        read = functools.partial(_lines, path, flag)
        return conll.conll_rows(read, path, f"{flag} {name}", columns, column_names)
    return _parquet_rows(path, flag, columns) if suffix == ".parquet" else _moses_rows(path, flag, columns)


def drop_empty(dataset: datasets.Dataset, columns: Columns, name: str, source: str) -> datasets.Dataset:
    """The rows with text in every column, or all; reports the others as `name`, refuses `source` if none is left."""
    table = dataset.with_format("arrow")[:]
    filled = functools.reduce(operator.and_, (_filled(table[column]) for column in columns))
    if not filled.any():
        raise InputError(f"{source}: empty: none of {len(dataset)} rows has text in {' and '.join(columns)}")
    dropped = np.flatnonzero(~filled)
    if len(dropped) == 0 or columns.keep_empty:
        return dataset
    report_dropped(name, len(dropped), dropped[:5] + 1, len(dataset))
    return dataset.select(np.flatnonzero(filled))


def has_labels(dataset: datasets.Dataset, columns: Columns, name: str) -> bool:
    """Whether the rows of a split have classes; where none has one in a column of them, reports the split as `name`.

    Such a split is left out. One without rows is not: that is a mistake, which `drop_empty` refuses.
    """
    table = dataset.with_format("arrow")[:]
    for column in columns:
        if column in columns.labels and len(dataset) and not _filled(table[column]).any():
            logger.warning("%s: left out: none of %d rows has a label in %s", name, len(dataset), column)
            return False
    return True


def report_dropped(name: str, count: int, first: Iterable[int], rows: int) -> None:
    """Warn that `count` empty rows of `rows` were dropped, with the numbers of the first of them."""
    numbers = ", ".join(map(str, first)) + ", ..." * (count > 5)
    logger.warning("%s: %d empty row%s dropped of %d: %s", name, count, "s" * (count > 1), rows, numbers)


def _filled(values: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_list(values.type):
        return _to_numpy(pc.is_valid(values))
    return _to_numpy(pc.not_equal(pc.utf8_trim_whitespace(values), ""))


def _to_numpy(mask: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(mask, False).to_numpy()


def string_table(rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> pa.Table:
    """A table of rows of strings, None, or lists of strings."""
    listed = list(rows)
    values = {column: [row[index] for row in listed] for index, column in enumerate(columns)}
    return pa.table({column: pa.array(texts, _kind(texts)) for column, texts in values.items()})


def _kind(texts: Sequence[Any]) -> pa.DataType:
    return pa.list_(pa.string()) if any(isinstance(text, list) for text in texts) else pa.string()


# Text files


def _lines(path: Path, flag: str, newline: str = "\n") -> Iterator[str]:
    r"""Lines with their ends, `\n` alone or those that `newline` means to `open`.

    `str.splitlines` would also split at U+2028, U+0085 and others.
    """
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            yield from file
    except FileNotFoundError:
        raise InputError(f"{path}: no such file ({flag})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror} ({flag})") from None
    except UnicodeDecodeError:
        line, byte = _first_bad_byte(path)
        raise InputError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}); convert the file") from None


def _first_bad_byte(path: Path) -> tuple[int, int]:
    """Line and value of the first byte that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line[error.start]
    raise ValueError(f"{path} is UTF-8")


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _moses_rows(prefix: Path, flag: str, columns: Sequence[str]) -> Iterator[list[Any]]:
    paths = [Path(f"{prefix}.{column}") for column in columns]
    if len(paths) == 1 and prefix.is_file():
        paths = [prefix]
    if not any(path.exists() for path in paths):
        raise InputError(
            f"{flag} {prefix}: no files {' and '.join(map(str, paths))}, and no extension that is known: "
            f"{', '.join(_SUFFIXES)}"
        )
    files = [_lines(path, flag) for path in paths]
    for number, lines in enumerate(itertools.zip_longest(*files)):
        if None in lines:
            lengths = [
                number + (line is not None) + sum(1 for _ in rest) for line, rest in zip(lines, files, strict=True)
            ]
            counts = ", ".join(f"{path} has {length} lines" for path, length in zip(paths, lengths, strict=True))
            raise InputError(f"{counts}: line n of one must be the translation of line n of the other")
        yield [_without_end(line) for line in lines]


def _csv_fields(path: Path, flag: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_lines(path, flag, newline=""), strict=True)
    line = 1
    while True:
        # The limit, 131072 characters, is one for the whole process.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}:{line}: malformed CSV row ({error})") from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield line, row
        line = reader.line_num + 1


def _tsv_fields(path: Path, flag: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(_lines(path, flag), 1):
        yield number, _without_end(line).split("\t")


def _pick(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str], column_names: Sequence[str] | None
) -> Iterator[list[Any]]:
    """The wanted columns of rows of fields, each with its line number; the first names them unless they are named."""
    if column_names is None:
        first = next(rows, None)
        if first is None:
            raise InputError(f"{path}: empty; the first line must name the columns")
        header = [field.strip() for field in first[1]]
    else:
        header = list(column_names)
    for column in columns:
        if header.count(column) != 1:
            problem = f"{header.count(column)} columns" if column in header else "no column"
            hint = "" if column_names else "; a file without a header needs --column_names"
            raise InputError(f"{path}: {problem} {column!r}; there are {shorten_list(header)}{hint}")
    places = [header.index(column) for column in columns]
    if column_names is not None:
        first = next(rows, None)
        if first is not None:
            _check_no_header(path, first[1], header, columns)
            rows = itertools.chain([first], rows)
    for line, row in rows:
        if len(row) == len(header):
            yield [row[place] for place in places]
        elif any(row):
            expected = "--column_names names" if column_names else "the header names"
            raise InputError(f"{path}:{line}: {len(row)} fields, but {expected} {len(header)}")
        else:
            # A blank line is an empty row, to be dropped and counted like one.
            yield [None] * len(places)


def _check_no_header(path: Path, row: Sequence[str], names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a first row that is a header, of a file whose columns are named by hand; warn of one that may be.

    Every name of its own column, in any case, is a header; one among several may be a text or a class.
    """
    fields = [field.strip().casefold() for field in row]
    if len(fields) != len(names):
        return
    known = [name.strip().casefold() for name in names]
    repeated = [column for column in columns if fields[names.index(column)] == column.strip().casefold()]
    if set(fields) <= set(known) or (len(columns) > 1 and len(repeated) == len(columns)):
        raise InputError(
            f"{path}:1: this line repeats the names that --column_names gives, so it is a header: leave out the flag, "
            "or the line; if it is a row, give its columns other names"
        )
    if repeated:
        _warn_once(f"{path}:1: is this line a header? As a row it has {repeated[0]!r} in the column of that name")


@functools.cache
def _warn_once(message: str) -> None:
    """Warn of a file that is read several times."""
    logger.warning(message)


def _json_rows(path: Path, flag: str, columns: Columns) -> Iterator[list[Any]]:
    listed: dict[str, bool] = {}
    for number, line in enumerate(_lines(path, flag), 1):
        place = f"{path}:{number}"
        if not line.strip():
            row: Any = dict.fromkeys(columns)
        else:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not JSON ({error}); each line must be one object") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: a JSON {type(row).__name__}; each line must be one object")
        yield check_row(place, row, columns, listed)


def check_row(place: str, row: dict[str, Any], columns: Columns, listed: dict[str, bool]) -> list[Any]:
    """Check a row of Python values and take what is wanted of it.

    Args:
        place: Where it stands, for errors.
        row: Column names and values, or `translation` with a dict of them.
        columns: What is wanted.
        listed: Which columns of classes hold lists; filled by the first rows and to be passed on to the next.

    Returns:
        The values of `columns`.

    Raises:
        InputError: A column is missing, or its value is neither text nor, where it may be, a class.
    """
    if isinstance(row.get(_TRANSLATION), dict) and not set(columns) <= row.keys():
        row = row[_TRANSLATION]
    values = []
    for column in columns:
        if column not in row:
            raise InputError(f"{place}: no column {column!r}; there are {shorten_list(row)}")
        value = _class_names(row[column]) if column in columns.labels else row[column]
        listed_names = isinstance(value, list) and column in columns.labels and all(map(_is_name, value))
        if not isinstance(value, str | None) and not listed_names:
            expected = "a class (a string, a whole number, true, false, or a list)" if columns.labels else "a string"
            shown = _short(json.dumps(value, default=repr))
            raise InputError(f"{place}: column {column!r} must be {expected}, not {shown}")
        if value is not None and listed.setdefault(column, isinstance(value, list)) is not isinstance(value, list):
            raise InputError(f"{place}: column {column!r} must be a list in all rows or in none")
        try:
            "".join(filter(None, value or "")).encode()
        except UnicodeEncodeError:
            # JSON can escape half of a surrogate pair.
            raise InputError(f"{place}: column {column!r} has half of a surrogate pair, which is no text") from None
        values.append(value)
    return values


def _class_names(value: Any) -> Any:
    """A class or a list of classes of JSON as strings; what is none as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        # A list in a list stays as it is, and is refused.
        return [one if isinstance(one, list) else _class_names(one) for one in value]
    return value


def _is_name(value: Any) -> bool:
    return isinstance(value, str | None)


# Arrow

# What pyarrow raises for a damaged file; names that are not UTF-8 come up as it makes strings of them.
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def _read_parquet(path: Path, flag: str, columns: Columns) -> pa.Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file ({flag})")
    try:
        schema = pq.read_schema(path)
        table = pq.read_table(path, columns=_names_to_read(f"{flag} {path}", schema, columns))
        table.validate(full=True)
    except _DAMAGE as error:
        raise InputError(f"{flag} {path}: not a valid Parquet file ({one_line(error, named=True)})") from None
    return _pick_arrow(f"{flag} {path}", table, schema.names, columns)


def _parquet_rows(path: Path, flag: str, columns: Columns) -> Iterator[list[Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file ({flag})")
    try:
        # Buffered, so that a group of rows is not in memory as a whole.
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            names = _names_to_read(f"{flag} {path}", file.schema_arrow, columns)
            for batch in file.iter_batches(batch_size=1000, columns=names):
                batch.validate(full=True)
                table = _pick_arrow(f"{flag} {path}", pa.Table.from_batches([batch]), names, columns)
                yield from map(list, zip(*(table[column].to_pylist() for column in columns), strict=True))
    except _DAMAGE as error:
        raise InputError(f"{flag} {path}: not a valid Parquet file ({one_line(error, named=True)})") from None


def _names_to_read(source: str, schema: pa.Schema, columns: Columns) -> list[str]:
    """Which columns of a file to read, once their names and types are found right."""
    names = list(columns) if set(columns) <= set(schema.names) else [_TRANSLATION]
    empty = pa.schema([field for field in schema if field.name in names]).empty_table()
    _pick_arrow(source, empty, schema.names, columns)
    return names


def _pick_arrow(source: str, table: pa.Table, names: Sequence[str], columns: Columns) -> pa.Table:
    """The wanted columns as strings; `names` are all that there are."""
    one = names.count(_TRANSLATION) == 1
    if not set(columns) <= set(names) and one and pa.types.is_struct(table[_TRANSLATION].type):
        texts = table[_TRANSLATION].combine_chunks().flatten()
        names = [field.name for field in table[_TRANSLATION].type]
        table = pa.table(dict(zip(names, texts, strict=True)))
    _check_columns(source, columns, names)
    kinds = [(name, _check_kind(source, columns, name, table[name].type)) for name in columns]
    return table.select(list(columns)).cast(pa.schema(kinds))


def _read_hub(name: str, config: str | None, columns: Columns) -> dict[str, datasets.Dataset]:
    splits = {}
    for split, (alias, data) in load_hub(name, config, streaming=False).items():
        source = f"--dataset_name {name}, split {alias}"
        rows = _pick_hub(data, columns, source)
        if split == "train" or has_labels(rows, columns, f"{name} [{alias}]"):
            splits[split] = drop_empty(rows, columns, f"{name} [{alias}]", source)
    return splits


def load_hub(name: str, config: str | None, *, streaming: bool) -> dict[str, tuple[str, Any]]:
    """Load a data set of the Hub or a local one.

    Args:
        name: As `dataset_name` of `read_splits`.
        config: As `dataset_config_name` of `read_splits`.
        streaming: Whether for iteration alone; what `save_to_disk` wrote is mapped into memory in either case.

    Returns:
        The name in the data set, and the data, of `train`, `validation` and `test`, as far as they are there.

    Raises:
        InputError: It cannot be loaded, or has none of these splits.
    """
    source = f"--dataset_name {name}"
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config, streaming=streaming)
    # Whatever a server, a network, a cache or somebody's data files can raise.
    except Exception as error:
        raise InputError(f"{source}: cannot be loaded ({one_line(error.__cause__ or error, named=True)})") from error
    splits = {}
    for split, aliases in _HUB_SPLITS.items():
        alias = next((alias for alias in aliases if alias in found), None)
        if alias is not None:
            splits[split] = (alias, found[alias])
    if not splits:
        raise InputError(f"{source}: no split train, validation or test; there are {shorten_list(found)}")
    return splits


def _pick_hub(dataset: datasets.Dataset, columns: Columns, source: str) -> datasets.Dataset:
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
    return dataset.cast(datasets.Features(features))


def _name_classes(dataset: datasets.Dataset, columns: Columns) -> datasets.Dataset:
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
        if names.count(column) != 1:
            problem = f"{names.count(column)} columns" if column in names else "no column"
            raise InputError(f"{source}: {problem} {column!r}; there are {shorten_list(names)}")


def _check_kind(source: str, columns: Columns, column: str, kind: pa.DataType) -> pa.DataType:
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


_STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", *conll.SUFFIXES)


def hold_out_validation(
    splits: datasets.DatasetDict,
    seed: int,
    *,
    in_order: bool = False,
    classes: Callable[[datasets.Dataset], Iterable[Collection[str]]] | None = None,
) -> datasets.DatasetDict:
    """Give data without a validation split one: a twentieth of the training rows, at most 1000, drawn by `seed`.

    Args:
        splits: With `train`; returned as they are if they have `validation`.
        seed: Of the drawing.
        in_order: Whether the last twentieth is taken instead, of running text, which goes on from row to row.
        classes: The classes of each of some rows. The last row of a class is not held out: nothing could learn it.

    Raises:
        InputError: There is no training split, only one row in it, or no row that others share the classes of.
    """
    if "train" not in splits:
        raise InputError(f"no training data: the data has only {', '.join(splits)}; name it with --train_file")
    if "validation" in splits:
        return splits
    rows = len(splits["train"])
    if rows < 2:
        raise InputError("one training row cannot be shared with validation; give --validation_file, or more rows")
    size = max(1, rows // 20 if in_order else min(1000, rows // 20))
    held = splits["train"].train_test_split(test_size=size, seed=seed, shuffle=not in_order)
    train, validation = held["train"], held["test"]
    if classes is not None:
        # In the order of the drawing, so that the rows drawn stay those held out where no class is rare.
        drawn = datasets.concatenate_datasets([validation, train])
        spared = _rows_to_spare(list(map(set, classes(drawn))), size)
        if not spared:
            raise InputError("each training row is the last of a class; give --validation_file, or more rows")
        if spared != list(range(size)):
            train, validation = drawn.select(sorted({*range(rows)} - {*spared})), drawn.select(spared)
    logger.warning("no validation data: %d of %d training rows are held out for it", len(validation), rows)
    return datasets.DatasetDict({**splits, "train": train, "validation": validation})


def _rows_to_spare(classes: Sequence[Collection[str]], size: int) -> list[int]:
    """The first `size` rows that can go one after the other without being the last of one of their `classes`."""
    left = Counter(itertools.chain.from_iterable(classes))
    rows: list[int] = []
    for row, names in enumerate(classes):
        if len(rows) == size:
            break
        if all(left[name] > 1 for name in names):
            left.subtract(names)
            rows.append(row)
    return rows
