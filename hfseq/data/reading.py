"""Training, validation and test data from local files or the Hub, with errors that name file, line and column."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import logging
import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hfseq.data import conll
from hfseq.errors import InputError, MissingColumn, one_line
from hfseq.lazy import datasets, pa, pc, pq

logger = logging.getLogger(__name__)

HUB_SPLITS = {"train": ["train"], "validation": ["val", "dev", "valid", "validation"], "test": ["test"]}
"""Split to its names on the Hub, those that are preferred last."""
# Column of the Hub's translation datasets: a dict of language to text in each row.
_TRANSLATION = "translation"
# A carriage return ends a line for `csv`, too.
_PHYSICAL_LINE = re.compile(r"[^\r]*\r\n?|[^\r]+")
# Returns an iterator over the rows of part `i` of `n` without empty ones.
_PartOf = Callable[[int, int], Iterator[list[Any]]]
# The default, 131072 characters, is shorter than some documents. The limit is one for the whole process.
csv.field_size_limit(2**31 - 1)


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
    num_parts: int | None = None,
    place_column: str | None = None,
) -> datasets.DatasetDict:
    r"""Read the given splits and keep `columns` as strings, in file order.

    A row in which one of `columns` is empty, whitespace or null is dropped. A warning of this module's logger gives
    the file, the number of dropped rows and the first row numbers, so that predictions can be aligned with the file.

    Files are UTF-8, with or without a byte order mark. The extension determines the format:

    - `.csv`: comma-separated, standard quoting (a quoted field may contain commas, line breaks and doubled quotes). A
      row ends at `\n`, `\r\n` or, with a warning, at a lone `\r` outside quotes;
    - `.tsv`: tab-separated, quotes are text; lines end with `\n` or `\r\n`;
    - `.jsonl`, `.json`: one object per line;
    - `.parquet`;
    - `.conllu`, `.conll`: one word per line, for columns of lists; see `conll_rows`;
    - with `moses`, any other name: the common prefix of aligned plain text files, one per column (`train` with columns
      `de`, `en` stands for `train.de`, `train.en`), one text per line; with a single column, that file itself if it
      exists. Only `\n` and `\r\n` end a line.

    JSON lines, Parquet and Hub data may instead have one column `translation` of `{"de": ..., "en": ...}`.

    All other characters, including NUL and other control characters, are text (in JSON lines escaped, as JSON
    requires).

    Args:
        columns: Columns to keep; every row needs text in each of them.
        dataset_name: Hub dataset, local folder that `datasets.load_dataset` accepts, or folder written by
            `save_to_disk`. Its validation split may be called validation, valid, dev or val.
        dataset_config_name: Configuration of that dataset.
        train_file: Training data; excludes `dataset_name`.
        validation_file: Validation data; replaces that of `dataset_name`.
        test_file: Test data; replaces that of `dataset_name`.
        column_names: Column names of CSV and TSV files without a header; a first line that repeats them is refused.
        moses: Accept prefixes of aligned plain text files.
        label_columns: Those of `columns` that contain classes or numbers. Numbers and booleans are read as strings
            (`1`, `0.5`, `true`), class ids of a dataset with class names as those names, and lists of any of these as
            lists of strings, possibly empty.
        keep_empty: Keep empty rows, as running text has empty lines.
        num_parts: Number of shards in which the training rows are streamed, as `read_stream` describes it; None reads
            them into memory.
        place_column: Column to add, of the file or split and the number of each row in it, for errors; not for
            streams.

    Returns:
        The given or found ones of `train`, `validation` and `test`, none of them empty. A split of `dataset_name`
        other than `train` without any labels is left out with a warning: GLUE does not publish its test labels.

    Raises:
        InputError: A flag, file, line, column or value is invalid.
    """
    wanted = Columns(tuple(columns), label_columns, keep_empty, place_column)
    check_sources([*columns, *filter(None, [place_column])], dataset_name, train_file)
    splits = _read_hub(dataset_name, dataset_config_name, wanted, num_parts) if dataset_name else {}
    for split, name in (("train", train_file), ("validation", validation_file), ("test", test_file)):
        if name is not None:
            read = read_file if split != "train" or num_parts is None else functools.partial(_stream_file, num_parts)
            splits[split] = read(name, f"--{split}_file", wanted, column_names, moses)
    if not splits and num_parts is None:
        raise InputError(f"no data: give --train_file or --dataset_name{' with labels' if dataset_name else ''}")
    return datasets.DatasetDict(splits)


class Columns(NamedTuple):
    """Columns to keep.

    Attributes:
        names: Names of all of them.
        labels: Names of those that contain classes.
        keep_empty: Keep rows in which one of them is empty.
        place: Name of a column to add, of file and row; None for none.
    """

    names: Sequence[str]
    labels: Collection[str] = ()
    keep_empty: bool = False
    place: str | None = None


def check_sources(columns: Sequence[str], dataset_name: str | None, train_file: str | None) -> None:
    """Raise an `InputError` for duplicate columns or two sources of training data."""
    if len(set(columns)) < len(columns):
        raise InputError(f"the columns (or languages) must differ, got {', '.join(columns)}")
    if dataset_name and train_file:
        raise InputError("--dataset_name and --train_file exclude each other: give one")


def read_file(
    name: str, flag: str, columns: Columns, column_names: Sequence[str] | None, moses: bool
) -> datasets.Dataset:
    """Read a whole file without its empty rows; arguments as for `file_rows`."""
    path = Path(name)
    if path.suffix.lower() == ".parquet" and not column_names:
        table = _join_tables(_parquet_tables(path, flag, columns), columns).combine_chunks()
    else:
        table = string_table(file_rows(name, flag, columns, column_names, moses), columns)
    return _drop_empty(datasets.Dataset(table), columns, name, f"{flag} {name}")


def file_rows(
    name: str, flag: str, columns: Columns, column_names: Sequence[str] | None, moses: bool
) -> Iterator[list[Any]]:
    """Iterate over the rows of a file, with the checks and errors of `read_splits`.

    Args:
        name: Path of the file.
        flag: Flag that gave the file, for errors.
        columns: Columns to keep.
        column_names: Column names of a file without a header.
        moses: Accept a prefix of aligned plain text files.

    Returns:
        The values of `columns` in each row, empty rows included: strings, None, or lists of strings in label columns.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES and not moses:
        raise InputError(f"{flag} {name}: unknown extension {path.suffix!r}; known are {', '.join(_SUFFIXES)}")
    if column_names and suffix not in (".csv", ".tsv", ".conll"):
        raise InputError(f"--column_names is for CSV, TSV and CoNLL files; {flag} {name} is none of them")
    if suffix in (".csv", ".tsv"):
        fields = csv_fields if suffix == ".csv" else tsv_fields
        return _pick_fields(path, fields(path, flag), columns, column_names)
    if suffix in (".jsonl", ".json"):
        return _json_rows(path, flag, columns)
    if suffix in conll.SUFFIXES:
        if not set(columns.labels).issuperset(columns.names):
            raise InputError(f"{flag} {name}: one word per line is for tagging, not for texts")
        read = functools.partial(text_lines, path, flag)
        return conll.conll_rows(read, path, f"{flag} {name}", columns.names, column_names)
    if suffix == ".parquet":
        return _table_rows(_parquet_tables(path, flag, columns))
    return _moses_rows(path, flag, columns.names)


def _drop_empty(dataset: datasets.Dataset, columns: Columns, name: str, source: str) -> datasets.Dataset:
    """Return the rows that `filled_rows` finds, with their places if wanted; arguments and errors as there."""
    filled = filled_rows(dataset, columns, name, source)
    if columns.place is not None:
        dataset = dataset.add_column(columns.place, [f"{name}, row {row}" for row in range(1, len(dataset) + 1)])
    return dataset if len(filled) == len(dataset) else dataset.select(filled)


def filled_rows(dataset: datasets.Dataset, columns: Columns, name: str, source: str) -> np.ndarray:
    """Return the indices of the rows with text in every column, or of all rows with `keep_empty`.

    Args:
        dataset: Rows of `columns`.
        columns: The columns.
        name: File or split, for the warning about dropped rows.
        source: File or split with its flag, for errors.

    Raises:
        InputError: No row has text.
    """
    filled = functools.reduce(operator.and_, _filled(dataset, columns.names))
    dropped = np.flatnonzero(~filled)
    _report_empty(columns, name, source, len(dataset), len(dropped), dropped[:5] + 1)
    return np.arange(len(dataset)) if columns.keep_empty else np.flatnonzero(filled)


def _filled(dataset: datasets.Dataset, columns: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield for each column which rows have text, or a list, in it."""
    table = dataset.with_format("arrow")[:]
    for values in map(table.column, columns):
        is_list = pa.types.is_list(values.type)
        filled = pc.is_valid(values) if is_list else pc.not_equal(pc.utf8_trim_whitespace(values), "")
        yield pc.fill_null(filled, False).to_numpy()


def _report_empty(
    columns: Columns, name: str | None, source: str, rows: int, empty: int, first: Iterable[int]
) -> None:
    """Raise `MissingColumn` if all rows are empty; else warn if some are and will be dropped, unless `name` is None.

    Args:
        columns: The columns.
        name: File or split, for the warning.
        source: File or split with its flag, for the error.
        rows: Number of rows.
        empty: Number of those that are empty.
        first: Row numbers of the first five of these.
    """
    if empty == rows:
        raise MissingColumn(f"{source}: empty: none of {rows} rows has text in {' and '.join(columns.names)}")
    if empty and name is not None and not columns.keep_empty:
        numbers = ", ".join(map(str, first)) + ", ..." * (empty > 5)
        logger.warning("%s: %d empty row%s dropped of %d: %s", name, empty, "s" * (empty > 1), rows, numbers)


def string_table(rows: Iterable[Sequence[Any]], columns: Columns) -> pa.Table:
    """Return a table of rows of strings, None, or lists of strings."""
    listed = list(rows)
    values = [[row[index] for row in listed] for index in range(len(columns.names))]
    lists = [any(isinstance(value, list) for value in column) for column in values]
    types = [pa.list_(pa.string()) if is_list else pa.string() for is_list in lists]
    return pa.table(list(map(pa.array, values, types)), names=list(columns.names))


# Streams: the rows of a file or split are divided into parts, `part` of `num_parts`.


def _stream_file(num_parts: int, name: str, flag: str, *options: Any) -> datasets.IterableDataset:
    """Stream a file without its empty rows; further arguments as for `file_rows`."""
    rows = functools.partial(file_rows, name, flag, *options)
    return _to_stream(functools.partial(_file_part, rows, options[0], name, f"{flag} {name}"), options[0], num_parts)


def _file_part(
    rows: Callable[[], Iterator[list[Any]]], columns: Columns, name: str, source: str, part: int, num_parts: int
) -> Iterator[list[Any]]:
    # Each part sees all empty rows; the first one reports them.
    filled = _filled_rows(rows(), columns, name if part == 0 else None, source)
    return itertools.islice(filled, part, None, num_parts)


def _hub_part(
    data: datasets.IterableDataset, columns: Columns, name: str, source: str, part: int, num_parts: int
) -> Iterator[list[Any]]:
    from datasets.distributed import split_dataset_by_node

    share = f" (part {part + 1} of {num_parts})" if num_parts > 1 else ""
    own = split_dataset_by_node(data, rank=part, world_size=num_parts)
    rows = _table_rows(_hub_tables(own, columns, source + share))
    return _filled_rows(rows, columns, name + share, source + share)


def _filled_rows(rows: Iterator[list[Any]], columns: Columns, name: str | None, source: str) -> Iterator[list[Any]]:
    """Yield the rows with text in every column, or all with `keep_empty`; at the end report the others as `name`."""
    number, dropped, first = 0, 0, []
    for number, row in enumerate(rows, 1):
        filled = all(isinstance(value, list) or (value is not None and value.strip()) for value in row)
        if filled or columns.keep_empty:
            yield row
        if not filled:
            dropped += 1
            if dropped <= 5:
                first.append(number)
    _report_empty(columns, name, source, number, dropped, first)


def _to_stream(part_of: _PartOf, columns: Columns, num_parts: int) -> datasets.IterableDataset:
    # The first row is read for its types, and for the errors that reading it may raise.
    first = next(part_of(0, 1))
    text = datasets.Value("string")
    types = [datasets.List(text) if isinstance(value, list) else text for value in first]
    features = datasets.Features(dict(zip(columns.names, types, strict=True)))
    # `datasets` divides a list argument into one shard per item.
    arguments = {"parts": [*range(num_parts)], "num_parts": num_parts, "part_of": part_of, "names": columns.names}
    return datasets.IterableDataset.from_generator(_generate, features, arguments)


def _generate(parts: list[int], num_parts: int, part_of: _PartOf, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from (dict(zip(names, row, strict=True)) for row in part_of(part, num_parts))


# Text files


def json_value(line: str, place: str) -> Any:
    """Parse a line of a file with a JSON object a line.

    Args:
        line: The line.
        place: File and line, for errors.

    Raises:
        InputError: It is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error}); each line must be one object") from None


def text_lines(path: Path, flag: str) -> Iterator[str]:
    r"""Yield lines with their ends.

    Only `\n` ends one; `str.splitlines` would also split at U+2028, U+0085 and others.
    """
    number = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file ({flag})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror} ({flag})") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); convert the file") from None


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
    files = [text_lines(path, flag) for path in paths]
    for number, lines in enumerate(itertools.zip_longest(*files)):
        if None in lines:
            lengths = [
                number + (line is not None) + sum(1 for _ in rest) for line, rest in zip(lines, files, strict=True)
            ]
            counts = ", ".join(f"{path} has {length} lines" for path, length in zip(paths, lengths, strict=True))
            raise InputError(f"{counts}: line n of one must be the translation of line n of the other")
        yield [_without_end(line) for line in lines]


def csv_fields(path: Path, flag: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of each row of a CSV file, read as `read_splits` describes."""
    last, line, warned = "", 1, False

    def lines() -> Iterator[str]:
        nonlocal last
        for text in text_lines(path, flag):
            for physical in _PHYSICAL_LINE.findall(text):
                last = physical
                yield physical

    reader = csv.reader(lines(), strict=True)
    try:
        for row in reader:
            if last.endswith("\r") and not warned:
                warned = True
                _warn_once(
                    f"{path}:{reader.line_num}: a carriage return alone ends this row; a field that contains one "
                    "needs quotes"
                )
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{line}: malformed CSV row ({error})") from None


def tsv_fields(path: Path, flag: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line of a TSV file."""
    for number, line in enumerate(text_lines(path, flag), 1):
        yield number, _without_end(line).split("\t")


def _pick_fields(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Columns, column_names: Sequence[str] | None
) -> Iterator[list[Any]]:
    """Yield the wanted fields of numbered rows; the first row is the header unless `column_names` are given."""
    first = next(rows, None)
    if column_names is None:
        if first is None:
            raise InputError(f"{path}: empty; the first line must name the columns")
        header = [field.strip() for field in first[1]]
    else:
        header = list(column_names)
    _check_columns(path, columns, header, "" if column_names else "; a file without a header needs --column_names")
    if column_names is not None and first is not None:
        _check_no_header(path, first[1], header, columns.names)
        rows = itertools.chain([first], rows)
    indices = [header.index(column) for column in columns.names]
    for line, row in rows:
        if len(row) == len(header):
            yield [row[index] for index in indices]
        elif any(row):
            expected = "--column_names names" if column_names else "the header names"
            raise InputError(f"{path}:{line}: {len(row)} fields, but {expected} {len(header)}")
        else:
            # A blank line is an empty row, dropped and counted as one.
            yield [None] * len(indices)


def _check_no_header(path: Path, row: Sequence[str], names: Sequence[str], columns: Sequence[str]) -> None:
    """Raise an error if the first row of a file with `--column_names` is a header; warn if it may be one.

    A row that repeats all the names, in any case, is a header; a single name may also be a text or a class.
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
    """Log a warning once, however often the file is read."""
    logger.warning(message)


def _json_rows(path: Path, flag: str, columns: Columns) -> Iterator[list[Any]]:
    # Columns with lists, and columns without, as the first rows have them.
    listed: dict[str, bool] = {}
    for number, line in enumerate(text_lines(path, flag), 1):
        place = f"{path}:{number}"
        row = json_value(line, place) if line.strip() else dict.fromkeys(columns.names)
        if not isinstance(row, dict):
            raise InputError(f"{place}: a JSON {type(row).__name__}; each line must be one object")
        if isinstance(row.get(_TRANSLATION), dict) and not set(columns.names) <= row.keys():
            row = row[_TRANSLATION]
        _check_columns(place, columns, list(row))
        values = [_class_names(row[name]) if name in columns.labels else row[name] for name in columns.names]
        for column, value in zip(columns.names, values, strict=True):
            _check_json(place, column, value, columns.labels)
            if value is not None and listed.setdefault(column, isinstance(value, list)) is not isinstance(value, list):
                raise InputError(f"{place}: column {column!r} must be a list in all rows or in none")
        yield values


def _check_json(place: str, column: str, value: Any, labels: Collection[str]) -> None:
    """Raise an `InputError` if a value is neither text nor, in a label column, a class or a list of them."""
    names = value if isinstance(value, list) and column in labels else [value]
    if not all(isinstance(name, str | None) for name in names):
        expected = "a class (a string, a number, true, false, or a list)" if labels else "a string"
        shown = _short(json.dumps(value, default=repr))
        raise InputError(f"{place}: column {column!r} must be {expected}, not {shown}")
    try:
        "".join(filter(None, names)).encode()
    except UnicodeEncodeError:
        # JSON can escape one half of a surrogate pair.
        raise InputError(f"{place}: column {column!r} contains an unpaired surrogate, which is not text") from None


def _class_names(value: Any) -> Any:
    """Return a class or a list of classes of JSON as strings, anything else unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        # Lists are of classes: a nested list or a number with a fraction remains one, which is an error.
        return [item if isinstance(item, list | float) else _class_names(item) for item in value]
    return value


# Arrow


def _parquet_tables(path: Path, flag: str, columns: Columns) -> Iterator[pa.Table]:
    """Yield the rows of a file in tables of the wanted columns."""
    source = f"{flag} {path}"
    if not path.is_file():
        raise InputError(f"{path}: no such file ({flag})")
    try:
        # Buffered, so that a row group is not in memory as a whole.
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            wanted = _wanted(columns, names)
            # A file without rows has no batch, but columns to check.
            empty = pa.schema([field for field in file.schema_arrow if field.name in wanted]).empty_table()
            yield _pick_arrow(source, empty, names, columns)
            for batch in file.iter_batches(batch_size=1000, columns=wanted):
                batch.validate(full=True)
                yield _pick_arrow(source, pa.Table.from_batches([batch]), names, columns)
    # A damaged file; column names that are not UTF-8 raise as they become strings.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not a valid Parquet file ({one_line(error, named=True)})") from None


def _join_tables(tables: Iterable[pa.Table], columns: Columns) -> pa.Table:
    found = list(tables)
    return pa.concat_tables(found) if found else string_table([], columns)


def _table_rows(tables: Iterable[pa.Table]) -> Iterator[list[Any]]:
    for table in tables:
        yield from map(list, zip(*(column.to_pylist() for column in table.columns), strict=True))


def _wanted(columns: Columns, names: Collection[str]) -> list[str]:
    """Return the columns to read of those there are."""
    return list(columns.names) if set(columns.names) <= set(names) else [_TRANSLATION]


def _pick_arrow(source: str, table: pa.Table, names: Sequence[str], columns: Columns) -> pa.Table:
    """Return the wanted columns as strings; `names` are all the columns there are, for errors."""
    nested = _TRANSLATION in _wanted(columns, names) and names.count(_TRANSLATION) == 1
    if nested and pa.types.is_struct(table[_TRANSLATION].type):
        names = [field.name for field in table[_TRANSLATION].type]
        table = pa.table(table[_TRANSLATION].flatten(), names=names)
    _check_columns(source, columns, names)
    types = [(name, _string_type(source, columns, name, table[name].type)) for name in columns.names]
    return table.select(list(columns.names)).cast(pa.schema(types))


def _read_hub(name: str, config: str | None, columns: Columns, num_parts: int | None) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for split, (alias, data) in load_hub(name, config, streaming=num_parts is not None).items():
        title, source = f"{name} [{alias}]", f"--dataset_name {name}, split {alias}"
        if split == "train" and num_parts is not None:
            if isinstance(data, datasets.Dataset):
                data = data.to_iterable_dataset(num_shards=max(1, min(num_parts, len(data))))
            part_of = functools.partial(_hub_part, data, columns, title, source)
            splits[split] = _to_stream(part_of, columns, num_parts)
            continue
        rows = hub_rows(data, columns, source)
        if split == "train" or has_labels(rows, columns, title):
            splits[split] = _drop_empty(rows, columns, title, source)
    return splits


def hub_rows(data: datasets.Dataset | datasets.IterableDataset, columns: Columns, source: str) -> datasets.Dataset:
    """Return the wanted columns of a split as strings, with classes by name; `source` is its name in errors."""
    return datasets.Dataset(_join_tables(_hub_tables(data, columns, source), columns))


def has_labels(rows: datasets.Dataset, columns: Columns, title: str) -> bool:
    """Return False, with a warning, if no row has a label: a split whose labels are not published."""
    labels = [column for column in columns.names if column in columns.labels]
    missing = [column for column, filled in zip(labels, _filled(rows, labels), strict=True) if not filled.any()]
    if missing and len(rows):
        logger.warning("%s: left out: none of %d rows has a label in %s", title, len(rows), missing[0])
    return not (missing and len(rows))


def _hub_tables(
    data: datasets.Dataset | datasets.IterableDataset, columns: Columns, source: str
) -> Iterator[pa.Table]:
    """Yield the rows of a split in tables of the wanted columns, with classes by name."""
    features = data.features or {}
    if wanted := [column for column in features if column in {*columns.names, _TRANSLATION}]:
        data = data.select_columns(wanted)
    try:
        # Not `iter(data)`, which in a data loader worker would yield only the worker's share of this part.
        for table in data.with_format("arrow").iter(batch_size=1000):
            for column in set(columns.labels) & features.keys():
                feature = getattr(features[column], "feature", features[column])
                if isinstance(feature, datasets.ClassLabel):
                    named = [_name_classes(value, feature.names) for value in table[column].to_pylist()]
                    kind = pa.string() if feature is features[column] else pa.list_(pa.string())
                    table = table.set_column(table.column_names.index(column), column, pa.array(named, kind))
            yield _pick_arrow(source, table, list(features) or table.column_names, columns)
    except InputError:
        raise
    # Anything that a server, a network or data files can raise.
    except Exception as error:
        raise InputError(f"{source}: cannot be read ({one_line(error.__cause__ or error, named=True)})") from error


def load_hub(name: str, config: str | None, *, streaming: bool) -> dict[str, tuple[str, Any]]:
    """Load a dataset of the Hub or a local one.

    Args:
        name: Hub dataset or local folder, as for `read_splits`.
        config: Configuration of the dataset.
        streaming: Load for iteration only; what `save_to_disk` wrote is memory-mapped in either case.

    Returns:
        For each of `train`, `validation` and `test` that exists, its name in the dataset and its data.

    Raises:
        InputError: The dataset cannot be loaded or has none of these splits.
    """
    source = f"--dataset_name {name}"
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, config, streaming=streaming)
    # Anything that a server, a network, a cache or data files can raise.
    except Exception as error:
        raise InputError(f"{source}: cannot be loaded ({one_line(error.__cause__ or error, named=True)})") from error
    splits = {
        split: (alias, found[alias]) for split, aliases in HUB_SPLITS.items() for alias in aliases if alias in found
    }
    if not splits:
        raise InputError(f"{source}: no split train, validation or test; there are {shorten_list(found)}")
    return splits


def _name_classes(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class id, or the names of a list of ids; None for -1 and None, which mean no class."""
    if isinstance(value, list):
        return [_name_classes(item, names) for item in value]
    return names[value] if value is not None and value >= 0 else None


def _check_columns(source: object, columns: Columns, names: Sequence[str], hint: str = "") -> None:
    for column in columns.names:
        count, known = names.count(column), f"there are {shorten_list(names)}{hint}"
        if not count:
            raise MissingColumn(f"{source}: no column {column!r}; {known}")
        if count > 1:
            raise InputError(f"{source}: {count} columns {column!r}; {known}")


def _string_type(source: str, columns: Columns, column: str, found: pa.DataType) -> pa.DataType:
    """Return the type that a column of strings or classes is cast to."""
    is_label = column in columns.labels
    is_list = is_label and (pa.types.is_list(found) or pa.types.is_large_list(found))
    value = found.value_type if is_list else found
    value = value.value_type if pa.types.is_dictionary(value) else value
    allowed = [pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null]
    allowed += [pa.types.is_integer, pa.types.is_boolean] * is_label
    if not any(check(value) for check in allowed) and not (is_label and not is_list and pa.types.is_floating(value)):
        expected = "classes (strings, numbers, booleans, or lists of classes)" if is_label else "strings"
        raise InputError(f"{source}: column {column!r} must hold {expected}, not {_short(str(found))}")
    return pa.list_(pa.string()) if is_list else pa.string()


def shorten_list(names: Sequence[str] | dict[str, Any]) -> str:
    """Join names for an error message, long ones truncated; "none" if there are none."""
    return ", ".join(_short(repr(name)) for name in names) or "none"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", *conll.SUFFIXES)


def hold_out_validation(
    splits: datasets.DatasetDict,
    seed: int,
    *,
    in_order: bool = False,
    classes: Callable[[datasets.Dataset], Iterable[Collection[str]]] | None = None,
) -> datasets.DatasetDict:
    """Hold out validation rows if there are none: a twentieth of the training rows, at most 1000, drawn at random.

    Args:
        splits: Data with `train`; returned unchanged if it has `validation`.
        seed: Random seed of the draw.
        in_order: Hold out the last twentieth instead, for running text that continues from row to row.
        classes: Returns the classes of each row. The last row of a class is not held out, as it could not be learned.

    Raises:
        InputError: There is no training split, only one row in it, or each row is the last one of some class.
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
        # In the order of the draw, so that the rows drawn are those held out if no class is rare.
        drawn = datasets.concatenate_datasets([validation, train])
        spared = _rows_to_spare(list(map(set, classes(drawn))), size)
        if not spared:
            raise InputError("each training row is the last of a class; give --validation_file, or more rows")
        if spared != list(range(size)):
            train, validation = drawn.select(sorted({*range(rows)} - {*spared})), drawn.select(spared)
    logger.warning("no validation data: %d of %d training rows are held out for it", len(validation), rows)
    return datasets.DatasetDict({**splits, "train": train, "validation": validation})


def _rows_to_spare(classes: Sequence[Collection[str]], size: int) -> list[int]:
    """Return the first `size` rows that can be removed one by one without removing the last row of a class."""
    left = Counter(itertools.chain.from_iterable(classes))
    rows: list[int] = []
    for row, names in enumerate(classes):
        if len(rows) == size:
            break
        if all(left[name] > 1 for name in names):
            left.subtract(names)
            rows.append(row)
    return rows
