"""Time series from CSV, TSV and GluonTS' JSON Lines files: time stamps, missing values, covariates, frequencies.

`read_series` returns what a file says; `regular_series` puts it on the grid of its frequency, where a gap is a missing
value. Time features and default lags follow GluonTS (Alexandrov et al. 2020).
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hfseq.data.reading import csv_fields, json_value, shorten_list, text_lines, tsv_fields
from hfseq.errors import InputError, did_you_mean
from hfseq.lazy import pd

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
"""Extensions of files of series."""
MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "-nan", "<na>"})
"""Fields of a table that stand for a missing value, in lower case."""
TIME_NAMES = frozenset({"ds", "date", "datetime", "time", "timestamp", "time_stamp", "day", "month", "year"})
"""Names of a first column of time stamps, in lower case; another name is one if its fields are no numbers."""
# Year first, so that no country's habits decide which number is the month.
_STAMP = re.compile(
    r"\d{4}(?:[-/.]\d{1,2}(?:[-/.]\d{1,2}(?:[T ]\d{1,2}(?::\d{2}(?::\d{2}(?:\.\d{1,9})?)?)?)?)?)?"
    r"(?P<offset>Z|[+-]\d{2}:?\d{2})?"
)
# Names that pandas gave frequencies before its version 2.2, which GluonTS' data sets still have.
_OLD_NAMES = {"H": "h", "T": "min", "S": "s", "BH": "bh", "L": "ms", "U": "us", "N": "ns"}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
# A grid with more steps than so many for each row comes from a wrong time stamp rather than from gaps.
_MOST_STEPS = 50


@dataclass(frozen=True)
class Series:
    """A univariate series.

    Attributes:
        item_id: Its name.
        target: Values `[T]` in float64; NaN where one is missing.
        stamps: Time stamps `[N]`, in UTC where the file gives offsets from it; None if the file has none.
        covariates: Values of the covariates `[N, D]`, NaN where one is missing; N - T is the number of steps after
            the last value for which they are known. None for no covariates.
        static_categories: Classes of the series.
        static_reals: Numbers that describe the series.
        frequency: Name of its frequency in pandas, such as `h`, `D` or `MS`; None if it is not known.
        source: File, for errors; with the line if it contains the whole series.
        lines: Line `[N]` of each step in the file; None if `source` names it.
    """

    item_id: str
    target: np.ndarray
    stamps: pd.DatetimeIndex | None = None
    covariates: np.ndarray = None  # type: ignore[assignment]
    static_categories: tuple[str, ...] = ()
    static_reals: tuple[float, ...] = ()
    frequency: str | None = None
    source: str = ""
    lines: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.covariates is None:
            object.__setattr__(self, "covariates", np.empty((len(self.target), 0)))

    def place(self, step: int) -> str:
        """File and line of a step, for errors."""
        if self.lines is None:
            return f"{self.source}: step {step + 1}"
        return f"{self.source}:{self.lines[step]}"


def read_series(
    name: str,
    flag: str,
    *,
    id_column: str = "unique_id",
    time_column: str = "ds",
    target_column: str = "y",
    covariate_columns: Sequence[str] = (),
    static_columns: Sequence[str] = (),
) -> list[Series]:
    """Read the series of a file as they are, without a check of their order.

    The extension determines the format; `.csv` and `.tsv` are, by their first line,

    - long, if it names `target_column`: a row for each step of each series, with `id_column` if there are several
      series, `time_column` if there are time stamps, and `covariate_columns`;
    - wide, if it does not: a column for each series or covariate. The first column contains time stamps if its name is
      `time_column` or one of `TIME_NAMES`, or if its fields are not numbers. A file whose first line contains numbers
      alone has no header; its series are called by their columns, from 1.

    `.jsonl` and `.json` have the format of GluonTS: a line `{"target": [...], "start": ..., "item_id": ...,
    "feat_static_cat": [...], "feat_static_real": [...], "feat_dynamic_real": [[...], ...], "freq": ...}` for each
    series, of which only `target` is required.

    Time stamps begin with the year, from 1678 to 2261: `2024-01-31`, `2024-01-31 12:00`, `2024/01`. A missing value is
    an empty field, NaN, NA or null.

    Args:
        name: Path of the file.
        flag: Flag that gave the file, for errors.
        id_column: Column of the names of the series.
        time_column: Column of the time stamps.
        target_column: Column of the values.
        covariate_columns: Columns of covariates, known for the horizon. In a wide file they belong to every series. In
            a long one, rows without a value at the end of a series give covariates of the horizon.
        static_columns: Columns of a long file whose class is the same in all rows of a series.

    Raises:
        InputError: The file cannot be read, a row is ragged, a value is infinite or not a number, a time stamp is not
            one, or some have an offset from UTC and others none, the first line is not of names, a column is missing
            or has two uses, or a series has no value. The message names file and line.
    """
    path, suffix = Path(name), Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{flag} {name}: unknown extension {path.suffix!r}; known are {', '.join(SUFFIXES)}")
    if suffix in (".jsonl", ".json"):
        found = list(_read_json(path, flag))
        if covariate_columns or static_columns:
            named = "--covariate_columns" if covariate_columns else "--static_columns"
            raise InputError(f"{named}: for CSV files; JSON lines have feat_dynamic_real and feat_static_cat")
    else:
        rows = (csv_fields if suffix == ".csv" else tsv_fields)(path, flag)
        found = _read_table(path, rows, id_column, time_column, target_column, covariate_columns, static_columns)
    if not found:
        raise InputError(f"{path}: empty; there is no series ({flag})")
    _check_values(path, found)
    return found


def parse_table(rows: Iterable[tuple[int, list[str]]], name: str) -> list[Series]:
    """Series of a wide or long table in memory, with the default names of the columns; see `read_series`.

    Args:
        rows: Line number and fields of each row.
        name: Name of the table, for errors.

    Raises:
        InputError: As of `read_series`.
    """
    found = _read_table(Path(name), iter(rows), "unique_id", "ds", "y", (), ())
    _check_values(Path(name), found)
    return found


def _check_values(path: Path, found: Sequence[Series]) -> None:
    """Refuse series without a value, and series of different kinds."""
    for one in found:
        if np.isnan(one.target).all():
            raise InputError(f"{one.source}: series {one.item_id!r} has no value")
    _check_alike(path, found)


def regular_series(found: Sequence[Series], frequency: str | None = None) -> tuple[list[Series], int]:
    """Put series on the grid of their frequency: a gap becomes missing values.

    Missing values at the start and the end of a series are cut off, those at the end only from `target` if there are
    covariates, which are then known for the horizon. Series without time stamps have no gaps.

    Args:
        found: Series as `read_series` returns them.
        frequency: Name of their frequency in pandas; None to infer it from the time stamps.

    Returns:
        The series, and the number of steps that the gaps had left out.

    Raises:
        InputError: Time stamps are out of order, or one stands twice; there is no common distance of theirs, or they
            do not fit `frequency`; the series name different frequencies; or the covariates are missing somewhere. The
            message names file and line.
    """
    if frequency is not None:
        _offset(frequency, "--frequency")
    for one in found:
        _check_order(one)
    regular, gaps = [], 0
    named = {} if frequency else {one.frequency: one for one in found if one.frequency}
    if len(named) > 1:
        first, other = list(named.values())[:2]
        raise InputError(
            f"{other.source}: series {other.item_id!r} has 'freq' {other.frequency!r}, but {first.item_id!r} "
            f"{first.frequency!r}; give --frequency, or a file for each"
        )
    known = frequency or next(iter(named), None)
    if known is None:
        known = _infer_all(found)
    for one in found:
        if one.stamps is None:
            regular.append(_trimmed(replace(one, frequency=known)))
            continue
        if known is None:
            raise InputError(f"{one.place(0)}: a single time stamp does not tell the frequency; give --frequency")
        on_grid, left_out = _on_grid(one, anchored(known, one.stamps[0]))
        gaps += left_out
        regular.append(_trimmed(on_grid))
    for one in regular:
        for step in np.flatnonzero(np.isnan(one.covariates).any(axis=1))[:1]:
            when = "" if one.stamps is None else f" at {one.stamps[step]}"
            raise InputError(
                f"{one.source}: series {one.item_id!r}{when}: a covariate is missing; give its value at every step"
            )
    return regular, gaps


# Tables


def _read_table(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    id_column: str,
    time_column: str,
    target_column: str,
    covariate_columns: Sequence[str],
    static_columns: Sequence[str],
) -> list[Series]:
    """Series of a wide or long table, given its numbered rows."""
    first = next(rows, None)
    if first is None:
        return []
    header = [text.strip() for text in first[1]]
    if all(is_number(text) or text.lower() in MISSING for text in header):
        rows, header = itertools.chain([first], rows), [str(column) for column in range(1, len(header) + 1)]
        if covariate_columns or static_columns:
            raise InputError(f"{path}:1: this file has no header, so no columns can be named; add a line of names")
    elif parse_stamp(header[0]) is not None:
        raise InputError(f"{path}:1: the first line must name the columns, but it begins with the time {header[0]!r}")
    for column in header:
        if header.count(column) > 1:
            raise InputError(f"{path}:1: {header.count(column)} columns are called {column!r}; names must differ")
    lines, table = rectangular_rows(path, rows, len(header))
    if not table:
        raise InputError(f"{path}: no rows")
    columns: dict[str, Sequence[str]] = dict(zip(header, zip(*table, strict=True), strict=True))
    for column in (*covariate_columns, *static_columns):
        if column not in columns:
            raise InputError(f"{path}: no column {column!r}{did_you_mean(column, columns)}")
    if target_column in columns:
        _check_uses(path, columns, id_column, time_column, target_column, covariate_columns)
        unused = columns.keys() - {id_column, time_column, target_column, *covariate_columns, *static_columns}
        if unused:
            names = shorten_list(sorted(unused))
            logger.warning("%s: not read: %s; name what is known for the horizon by --covariate_columns", path, names)
        return _read_long(
            path, columns, lines, id_column, time_column, target_column, covariate_columns, static_columns
        )
    if static_columns:
        raise InputError(
            f"{path}: --static_columns are for a long table, with columns {id_column} and {target_column}"
        )
    return _read_wide(path, columns, lines, time_column, covariate_columns)


def _check_uses(
    path: Path,
    columns: Mapping[str, Sequence[str]],
    id_column: str,
    time_column: str,
    target_column: str,
    covariate_columns: Sequence[str],
) -> None:
    """Refuse a long table without a column that a flag names, or of which one has two uses."""
    usual = {"id_column": (id_column, "unique_id"), "time_column": (time_column, "ds")}
    for flag, (column, default) in usual.items():
        if column not in columns and column != default:
            raise InputError(f"{path}: no column {column!r} (--{flag}){did_you_mean(column, columns)}")
    if time_column not in columns:
        # Without them gaps would go unnoticed.
        for column in (one for one in columns if one.lower() in TIME_NAMES and parse_stamp(columns[one][0])):
            if column not in (id_column, target_column, *covariate_columns):
                raise InputError(f"{path}: no column {time_column!r}, but {column!r}; give --time_column {column}")
    for column in covariate_columns:
        if column in (id_column, time_column, target_column) or covariate_columns.count(column) > 1:
            raise InputError(f"{path}: --covariate_columns: {column!r} is named twice; a column has one use")


def rectangular_rows(
    path: Path, rows: Iterable[tuple[int, list[str]]], width: int
) -> tuple[np.ndarray, list[list[str]]]:
    """Line numbers and fields of all rows, blank lines at the end left out.

    Args:
        path: Path of the file, for errors.
        rows: Line number and fields of each row.
        width: Number of fields that a row must have.

    Raises:
        InputError: A row has another number of fields, or is blank.
    """
    lines, table, blank = [], [], None
    for line, row in rows:
        if not any(text.strip() for text in row) and len(row) <= 1:
            blank = blank or line
            continue
        if blank is not None:
            raise InputError(f"{path}:{blank}: a blank line; write NaN for a missing value")
        if len(row) != width:
            raise InputError(f"{path}:{line}: {len(row)} field{'s' * (len(row) != 1)}, but the first line has {width}")
        lines.append(line)
        table.append(row)
    return np.array(lines), table


def _read_wide(
    path: Path,
    columns: dict[str, Sequence[str]],
    lines: np.ndarray,
    time_column: str,
    covariate_columns: Sequence[str],
) -> list[Series]:
    first = next(iter(columns))
    sample = next((text.strip() for text in columns[first] if text.strip()), "")
    stamps = None
    timed = first.lower() in TIME_NAMES or first == time_column
    if first not in covariate_columns and (timed or (len(columns) > 1 and not is_number(sample) and sample)):
        stamps = parse_stamps(path, first, columns[first], lines)
        columns = {name: texts for name, texts in columns.items() if name != first}
    covariates = _stack([parse_numbers(path, name, columns[name], lines) for name in covariate_columns], len(lines))
    names = [name for name in columns if name not in covariate_columns]
    if not names:
        raise InputError(f"{path}: no column of values; there are {first!r} and covariates alone")
    return [
        Series(
            name, parse_numbers(path, name, columns[name], lines), stamps, covariates, source=str(path), lines=lines
        )
        for name in names
    ]


def _read_long(
    path: Path,
    columns: dict[str, Sequence[str]],
    lines: np.ndarray,
    id_column: str,
    time_column: str,
    target_column: str,
    covariate_columns: Sequence[str],
    static_columns: Sequence[str],
) -> list[Series]:
    values = parse_numbers(path, target_column, columns[target_column], lines)
    stamps = parse_stamps(path, time_column, columns[time_column], lines) if time_column in columns else None
    covariates = _stack([parse_numbers(path, name, columns[name], lines) for name in covariate_columns], len(lines))
    ids = [text.strip() for text in columns.get(id_column, [target_column] * len(lines))]
    if "" in ids:
        raise InputError(f"{path}:{lines[ids.index('')]}: column {id_column!r} is empty; name the series")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        rows.setdefault(name, []).append(row)
    found = []
    for name, own in rows.items():
        classes = []
        for column in static_columns:
            texts = columns[column]
            for row in own:
                if texts[row] != texts[own[0]]:
                    raise InputError(
                        f"{path}:{lines[row]}: column {column!r} is {texts[row]!r}, but {texts[own[0]]!r} in an "
                        f"earlier row of series {name!r}; a static column has one class for each series"
                    )
            classes.append(texts[own[0]].strip())
        found.append(
            Series(
                name,
                values[own],
                None if stamps is None else stamps[own],
                covariates[own],
                tuple(classes),
                source=str(path),
                lines=lines[own],
            )
        )
    return found


def _stack(columns: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Columns side by side, `[N, D]`."""
    return np.stack(columns, axis=1) if columns else np.empty((length, 0))


def is_number(text: str) -> bool:
    """Return True if a field is a number, be it infinite or NaN."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python allows between digits


def parse_numbers(path: Path, column: str, texts: Sequence[str], lines: np.ndarray) -> np.ndarray:
    """Values `[N]` of a column, NaN where one is missing.

    Args:
        path: Path of the file, for errors.
        column: Name of the column, for errors.
        texts: Fields `[N]` of the column.
        lines: Line number `[N]` of each.

    Raises:
        InputError: A field is neither a finite number nor a name of a missing value.
    """
    values = np.empty(len(texts))
    for row, text in enumerate(texts):
        if text.strip().lower() in MISSING:
            values[row] = math.nan
        elif is_number(text):
            values[row] = float(text)
        else:
            raise InputError(
                f"{path}:{lines[row]}: column {column!r}: {text!r} is not a number; leave a missing value empty"
            )
    for row in np.flatnonzero(np.isinf(values))[:1]:
        raise InputError(
            f"{path}:{lines[row]}: column {column!r} is infinite; leave the field empty if the value is missing"
        )
    return values


def parse_stamps(path: Path, column: str, texts: Sequence[str], lines: np.ndarray) -> pd.DatetimeIndex:
    """Time stamps `[N]` of a column; arguments as for `parse_numbers`.

    Raises:
        InputError: A field is not a time stamp, or some have an offset from UTC and others none.
    """
    stamps: list[pd.Timestamp] = []
    first = None
    for text, line in zip(texts, lines, strict=True):
        stamp = parse_stamp(text)
        if stamp is None:
            raise InputError(
                f"{path}:{line}: column {column!r}: {text!r} is not a time stamp; write it as 2024-01-31 or "
                "2024-01-31 12:00:00, in a year from 1678 to 2261"
            )
        offset = _STAMP.fullmatch(text.strip())["offset"] is not None  # type: ignore[index]
        first = offset if first is None else first
        if offset is not first:
            raise InputError(
                f"{path}:{line}: column {column!r}: {text!r} has {'an' if offset else 'no'} offset from UTC, unlike "
                "the first time stamp; write all with one, or none"
            )
        stamps.append(stamp)
    return pd.DatetimeIndex(stamps)


def parse_stamp(text: Any) -> pd.Timestamp | None:
    """Time stamp of a text, in UTC if it has an offset from it; None if it is none."""
    if not isinstance(text, str) or not _STAMP.fullmatch(text.strip()):
        return None
    date, rest = re.match(r"([\d/.-]+)(.*)", text.strip()).groups()  # type: ignore[union-attr]
    try:
        stamp = pd.Timestamp(re.sub(r"[/.]", "-", date) + rest)
    except ValueError:
        return None
    stamp = stamp if stamp.tz is None else stamp.tz_convert(None)
    # A year less at either end, where there are steps before and after it.
    return stamp if 1678 <= stamp.year <= 2261 else None


# JSON lines


def _read_json(path: Path, flag: str) -> Iterator[Series]:
    for number, line in enumerate(text_lines(path, flag), 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        entry = json_value(line, place)
        if not isinstance(entry, dict) or "target" not in entry:
            raise InputError(f"{place}: each line must be an object with the list 'target'")
        yield series_of(entry, place, str(number))


def series_of(entry: Mapping[str, Any], place: str, name: str = "series") -> Series:
    """Series of an entry in GluonTS' format, as `read_series` describes it.

    Args:
        entry: `target` and what else there is.
        place: Its place, for errors.
        name: Name of the series if the entry has no `item_id`.

    Raises:
        InputError: A value is of a wrong type, infinite, or missing.
    """
    target = _list(place, "target", entry["target"])
    if any(isinstance(value, list) for value in target):
        raise InputError(
            f"{place}: 'target' is 2-dimensional, a multivariate series; write each of its {len(target)} variates as "
            "a line of its own"
        )
    values = _json_numbers(place, "target", target)
    name, start, frequency = entry.get("item_id", name), entry.get("start"), entry.get("freq")
    dynamic = _list(place, "feat_dynamic_real", entry.get("feat_dynamic_real") or [])
    rows = [
        _json_numbers(place, "feat_dynamic_real", _list(place, f"feat_dynamic_real[{index}]", one))
        for index, one in enumerate(dynamic)
    ]
    steps = max([len(values), *map(len, rows)])
    for index, row in enumerate(rows):
        if len(row) < len(values) or len(row) != len(rows[0]):
            raise InputError(
                f"{place}: 'feat_dynamic_real'[{index}] has {len(row)} values, 'target' {len(values)}; every "
                "covariate must have as many, or more if they are known for the horizon"
            )
    reals = _json_numbers(
        place, "feat_static_real", _list(place, "feat_static_real", entry.get("feat_static_real") or [])
    )
    for index in np.flatnonzero(np.isnan(reals))[:1]:
        raise InputError(f"{place}: 'feat_static_real'[{index}] is missing; give a number")
    stamps = None
    if start is not None:
        first = parse_stamp(start)
        if first is None:
            raise InputError(f"{place}: 'start' is not a time stamp: {start!r}; write it as 2024-01-31 12:00:00")
        stamps = pd.DatetimeIndex([first])  # the others follow from the frequency
    if frequency is not None:
        _offset(str(frequency), f"{place}: 'freq'")
    return Series(
        str(name),
        values,
        stamps,
        _stack(rows, steps),
        tuple(str(value) for value in _list(place, "feat_static_cat", entry.get("feat_static_cat") or [])),
        tuple(reals.tolist()),
        frequency=frequency,
        source=place,
    )


def series_input(value: Any, place: str) -> Series:
    """Series of a value in memory.

    Args:
        value: Numbers `[T]`, a pandas `Series`, which may be indexed by time stamps, or an entry of `series_of`.
        place: Its name, also in errors.

    Raises:
        InputError: It is none of these, or invalid.
    """
    if isinstance(value, Mapping):
        if "target" not in value:
            raise InputError(f"{place}: a dict must have 'target', the values; there are {', '.join(map(str, value))}")
        plain = {name: part.tolist() if hasattr(part, "tolist") else part for name, part in value.items()}
        start = plain.get("start")
        found = series_of(plain | {"start": None if start is None else str(start)}, place, place)
        if np.isnan(found.target).all():
            raise InputError(f"{place}: it has no value")
        return found
    index = getattr(value, "index", None)
    try:
        values = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{place}: its values are not numbers; a missing one is NaN") from None
    except OverflowError:
        raise InputError(f"{place}: a value is too large") from None
    if values.ndim != 1 or not len(values):
        raise InputError(f"{place}: it has shape {values.shape}; give one value for each step, [T]")
    if np.isinf(values).any():
        raise InputError(f"{place}: value {int(np.isinf(values).argmax())} is infinite; a missing one is NaN")
    stamps = index if isinstance(index, pd.DatetimeIndex) else None
    frequency = None if stamps is None else stamps.freqstr
    if np.isnan(values).all():
        raise InputError(f"{place}: it has no value")
    return Series(place, values, stamps, frequency=frequency, source=place)


def _list(place: str, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{place}: {key!r} must be a list, not {type(value).__name__}")
    return value


def _json_numbers(place: str, key: str, values: list[Any]) -> np.ndarray:
    """Numbers of a list; null and "NaN" are missing values."""
    found = np.empty(len(values))
    for index, value in enumerate(values):
        if value is None or (isinstance(value, str) and value.lower() in MISSING):
            value = math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{place}: {key!r}[{index}] is not a number: {value!r}; write null for a missing value")
        try:
            found[index] = value
        except OverflowError:  # an integer of hundreds of digits
            found[index] = math.inf
        if math.isinf(found[index]):
            raise InputError(f"{place}: {key!r}[{index}] is infinite; write null for a missing value")
    return found


def _check_alike(path: Path, found: Sequence[Series]) -> None:
    """Raise an `InputError` if series differ in what they have, or if two have the same name."""
    first = found[0]
    names: dict[str, str] = {}
    for one in found:
        if (one.stamps is None) is not (first.stamps is None):
            raise InputError(f"{one.source}: 'start' must stand in all lines or in none; {first.source} differs")
        for what, own, others in (
            ("covariates", one.covariates.shape[1], first.covariates.shape[1]),
            ("static classes", len(one.static_categories), len(first.static_categories)),
            ("static numbers", len(one.static_reals), len(first.static_reals)),
        ):
            if own != others:
                raise InputError(
                    f"{one.source}: series {one.item_id!r} has {own} {what}, but series {first.item_id!r} has "
                    f"{others}; all need the same number"
                )
        if one.item_id in names:
            raise InputError(f"{one.source}: a second series is called {one.item_id!r}; names must differ")
        names[one.item_id] = one.source


# Frequencies


def anchored(frequency: str, first: pd.Timestamp) -> str:
    """Frequency in pandas' terms whose steps `first` can be one of: `M` is `MS` from the first day of a month."""
    name = _OLD_NAMES.get(frequency, frequency)
    match = re.fullmatch(r"(\d*)(M|Q|Y|A|W)", name)
    if match:
        count, unit = match.groups()
        if unit == "W":
            return f"{count}W-{_DAYS[first.day_of_week]}"
        if unit == "M":
            return f"{count}{'MS' if first.day == 1 else 'ME'}"
        month, start = _MONTHS[first.month - 1], "S" if first.day == 1 else "E"
        return f"{count}{'Q' if unit == 'Q' else 'Y'}{start}-{month}"
    old = re.fullmatch(r"(\d+)([A-Z]+)", name)
    return f"{old[1]}{_OLD_NAMES.get(old[2], old[2])}" if old else name


def _offset(frequency: str, flag: str) -> Any:
    """Offset of a frequency by name."""
    try:
        offset = pd.tseries.frequencies.to_offset(anchored(frequency, pd.Timestamp("2024-01-01")))
        if offset.n < 1 or pd.Timestamp("2024-01-01") + offset is pd.NaT:
            raise ValueError
        return offset
    except (ValueError, OverflowError):
        raise InputError(
            f"{flag}: {frequency!r} is not a frequency of pandas; write h, 30min, D, B, W, M, Q or Y, or one of "
            "its names"
        ) from None


def infer_frequency(stamps: pd.DatetimeIndex) -> str | None:
    """Frequency of increasing time stamps that may have gaps: the most common distance, or one of the calendar.

    Returns:
        Its name in pandas; None if there is no such distance, of which all others are multiples.
    """
    if len(stamps) < 2:
        return None
    midnight = bool((stamps == stamps.normalize()).all())
    steps = np.diff(stamps.as_unit("ns").asi8)
    distances, counts = np.unique(steps, return_counts=True)
    step = int(distances[counts.argmax()])
    day = 24 * 3600 * 10**9
    if midnight and step >= 28 * day:
        for starts, end in ((stamps.day == 1, "S"), (stamps.is_month_end, "E")):
            if bool(np.all(starts)):
                months = int(np.gcd.reduce(np.diff(stamps.year * 12 + stamps.month)))
                month = _MONTHS[stamps[0].month - 1]
                if months % 12 == 0:
                    return f"{months // 12 if months > 12 else ''}Y{end}-{month}"
                if months == 3:
                    return f"Q{end}-{month}"
                return f"{months if months > 1 else ''}M{end}"
    if midnight and step == day and steps.max() >= 3 * day and bool((stamps.day_of_week < 5).all()):
        return "B"
    if (steps % step).any():
        return None
    if midnight and step == 7 * day:
        return f"W-{_DAYS[stamps[0].day_of_week]}"
    if step % day == 0:
        return f"{step // day if step > day else ''}D"
    return str(pd.tseries.frequencies.to_offset(pd.Timedelta(step, "ns")).freqstr)


def _infer_all(found: Sequence[Series]) -> str | None:
    """Common frequency of the series; None if no series has two time stamps.

    Raises:
        InputError: A series has none, or two series have different ones.
    """
    known: dict[str, Series] = {}
    for one in found:
        if one.stamps is None or len(one.stamps) < 2:
            continue
        frequency = infer_frequency(one.stamps)
        if frequency is None:
            steps = np.diff(one.stamps.as_unit("ns").asi8)
            distances, counts = np.unique(steps, return_counts=True)
            usual = pd.Timedelta(int(distances[counts.argmax()]), "ns")
            odd = int(np.flatnonzero(steps % usual.value)[0]) + 1
            raise InputError(
                f"{one.place(odd)}: {one.stamps[odd]} is {_time(one.stamps[odd] - one.stamps[odd - 1])} after the "
                f"step before it, and most steps are {_time(usual)} apart; correct it, or give --frequency"
            )
        known.setdefault(frequency, one)
    if len(known) > 1:
        (first, one), (second, other) = list(known.items())[:2]
        raise InputError(
            f"{other.source}: series {other.item_id!r} has frequency {second}, but {one.item_id!r} {first}; give "
            "--frequency, or a file for each"
        )
    return next(iter(known), None)


def _time(distance: pd.Timedelta) -> str:
    """Text of a distance: `1 day`, `0:05:00`."""
    days, rest = distance.days, str(distance.to_pytimedelta()).rpartition(", ")[2]
    parts = [f"{days} day{'s' * (days != 1)}"] if days else []
    return " ".join([*parts, rest] if rest != "0:00:00" or not days else parts)


def _check_order(one: Series) -> None:
    """Raise an `InputError` if a time stamp is not after the one before it."""
    if one.stamps is None:
        return
    for step in np.flatnonzero(np.diff(one.stamps.as_unit("ns").asi8) <= 0)[:1] + 1:
        now, before = one.stamps[step], one.stamps[step - 1]
        series = f" in series {one.item_id!r}"
        if now == before:
            raise InputError(f"{one.place(step)}: time stamp {now} stands twice{series}; each step needs one row")
        raise InputError(
            f"{one.place(step)}: time stamp {now} is out of order{series}: it stands after {before}; sort the rows"
        )


def _on_grid(one: Series, frequency: str) -> tuple[Series, int]:
    """Series with a value, or NaN, at each step of a frequency, and the number of steps added."""
    assert one.stamps is not None
    offset, steps = pd.tseries.frequencies.to_offset(frequency), len(one.covariates)
    if not offset.is_on_offset(one.stamps[0]):
        raise InputError(
            f"{one.place(0)}: time stamp {one.stamps[0]} is not a step of frequency {frequency}; correct it, or "
            "give another --frequency"
        )
    if len(one.stamps) == 1:  # of a series of JSON lines, which is given by its start
        return replace(one, stamps=pd.date_range(one.stamps[0], periods=steps, freq=offset), frequency=frequency), 0
    span, shortest = one.stamps[-1] - one.stamps[0], one.stamps[0] + offset - one.stamps[0]
    if span / shortest > _MOST_STEPS * max(len(one.stamps), 20):
        raise InputError(
            f"{one.place(len(one.stamps) - 1)}: from {one.stamps[0]} to {one.stamps[-1]} there are "
            f"{round(span / shortest):,} steps of {frequency}, but {len(one.stamps)} rows; correct the time "
            "stamps, or give --frequency"
        )
    grid = pd.date_range(one.stamps[0], one.stamps[-1], freq=offset)
    where = grid.get_indexer(one.stamps)
    for step in np.flatnonzero(where < 0)[:1]:
        raise InputError(
            f"{one.place(step)}: time stamp {one.stamps[step]} is not a step of frequency {frequency} from "
            f"{one.stamps[0]}; correct it, or give another --frequency"
        )
    if len(grid) == len(one.stamps):
        return replace(one, stamps=grid, frequency=frequency), 0
    target = np.full(len(grid), math.nan)
    target[where] = one.target
    covariates = np.full((len(grid), one.covariates.shape[1]), math.nan)
    covariates[where] = one.covariates
    lines = None
    if one.lines is not None:  # a step that a gap left out gets the line after it
        lines = one.lines[np.searchsorted(where, np.arange(len(grid)))]
    changed = replace(one, target=target, stamps=grid, covariates=covariates, frequency=frequency, lines=lines)
    return changed, len(grid) - len(where)


def _trimmed(one: Series) -> Series:
    """Series from its first value on; `target` and, where there are no covariates, all else up to its last value."""
    seen = np.flatnonzero(~np.isnan(one.target))
    start, stop = int(seen[0]), int(seen[-1]) + 1
    end = stop if one.covariates.shape[1] == 0 else len(one.covariates)
    return replace(
        one,
        target=one.target[start:stop],
        stamps=None if one.stamps is None else one.stamps[start:end],
        covariates=one.covariates[start:end],
        lines=None if one.lines is None else one.lines[start:end],
    )


# Features and lags by frequency


def _unit(frequency: str | None) -> tuple[str, int]:
    """Unit of a frequency, one of s, min, h, D, B, W, M, Q, Y or "", and its number of them."""
    if frequency is None:
        return "", 1
    offset = _offset(frequency, "--frequency")
    name = offset.rule_code.partition("-")[0]
    unit = {"MS": "M", "ME": "M", "BMS": "M", "BME": "M", "QS": "Q", "QE": "Q", "YS": "Y", "YE": "Y"}.get(name, name)
    return (unit if unit in _FEATURES else ""), int(offset.n)


_FEATURES: dict[str, tuple[str, ...]] = {
    "s": ("second_of_minute", "minute_of_hour", "hour_of_day", "day_of_week", "day_of_month", "day_of_year"),
    "min": ("minute_of_hour", "hour_of_day", "day_of_week", "day_of_month", "day_of_year"),
    "h": ("hour_of_day", "day_of_week", "day_of_month", "day_of_year"),
    "D": ("day_of_week", "day_of_month", "day_of_year"),
    "B": ("day_of_week", "day_of_month", "day_of_year"),
    "W": ("day_of_month", "week_of_year"),
    "M": ("month_of_year",),
    "Q": ("month_of_year",),
    "Y": (),
}
# For each unit: period, number of its multiples, and number of lags on either side of each.
_PERIODS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "s": ((60, 3, 2), (3600, 3, 2), (86400, 7, 1)),
    "min": ((60, 3, 2), (1440, 7, 1), (10080, 4, 1), (43200, 1, 1), (40320, 3, 0), (524160, 3, 1)),
    "h": ((24, 7, 1), (168, 4, 1), (720, 1, 1), (672, 3, 0), (8736, 3, 1)),
    "D": ((7, 4, 1), (30, 1, 1), (28, 3, 0), (364, 3, 1)),
    "B": ((5, 4, 1), (22, 1, 1), (20, 3, 0), (260, 3, 1), (264, 3, 1)),
    "W": ((4, 3, 0), (52, 3, 1)),
    "M": ((12, 3, 1),),
    "Q": ((4, 3, 1),),
    "Y": ((1, 3, 1),),
}


def time_feature_names(frequency: str | None) -> tuple[str, ...]:
    """Names of the time features of a frequency, as GluonTS chooses them; none if it is not known."""
    return _FEATURES.get(_unit(frequency)[0], ())


def time_features(stamps: pd.DatetimeIndex, frequency: str | None) -> np.ndarray:
    """Time features `[N, F]` in float32 of time stamps, each from -0.5 to 0.5 over its range, as in GluonTS."""
    values = {
        "second_of_minute": (stamps.second, 59),
        "minute_of_hour": (stamps.minute, 59),
        "hour_of_day": (stamps.hour, 23),
        "day_of_week": (stamps.day_of_week, 6),
        "day_of_month": (stamps.day - 1, 30),
        "day_of_year": (stamps.day_of_year - 1, 365),
        "week_of_year": (stamps.isocalendar().week - 1, 52),
        "month_of_year": (stamps.month - 1, 11),
    }
    chosen = [
        np.asarray(values[name][0], dtype=np.float32) / values[name][1] - 0.5 for name in time_feature_names(frequency)
    ]
    return _stack(chosen, len(stamps)).astype(np.float32)


def extended_stamps(stamps: pd.DatetimeIndex, frequency: str, steps: int) -> pd.DatetimeIndex:
    """Time stamps `[N + steps]`: those given and the ones that follow them at a frequency."""
    return pd.date_range(stamps[0], periods=len(stamps) + steps, freq=frequency)


def default_lags(frequency: str | None, longest: int = 1200) -> list[int]:
    """Lags that a forecaster reads by default: 1 to 7, and those around the periods of a frequency, as in GluonTS.

    Args:
        frequency: Frequency of the series; None for the lags 1 to 7 alone.
        longest: Longest lag to return.
    """
    unit, count = _unit(frequency)
    lags = {*range(1, 8)}
    for period, cycles, width in _PERIODS.get(unit, ()):
        for cycle in range(1, cycles + 1):
            middle = cycle * period // count
            lags.update(range(max(middle - width, 1), middle + width + 1))
    return sorted(lag for lag in lags if lag <= longest)


def season_length(frequency: str | None) -> int:
    """Number of steps in the shortest season of a frequency, by which the seasonal naive forecast looks back.

    A day for seconds, minutes and hours, a week for days and business days, a year for weeks, months and quarters; 1,
    no season, for all others.
    """
    unit, count = _unit(frequency)
    steps = {"s": 86400, "min": 1440, "h": 24, "D": 7, "B": 5, "W": 52, "M": 12, "Q": 4}.get(unit, 1)
    return steps // count if steps % count == 0 else 1


def categories(found: Iterable[Series]) -> list[list[str]]:
    """Classes of each static feature in the given series, sorted."""
    columns: list[set[str]] = []
    for one in found:
        columns = columns or [set() for _ in one.static_categories]
        for seen, name in zip(columns, one.static_categories, strict=True):
            seen.add(name)
    return [sorted(seen) for seen in columns]


def static_ids(one: Series, known: Sequence[Collection[str]]) -> list[int]:
    """Ids of a series' static classes.

    Args:
        one: The series.
        known: Classes of each feature, in the order of their ids.

    Raises:
        InputError: A class is not among them.
    """
    ids = []
    for number, (name, names) in enumerate(zip(one.static_categories, known, strict=True), 1):
        if name not in names:
            raise InputError(
                f"{one.source}: series {one.item_id!r}: static class {name!r} ({number}) is not among those of the "
                f"training data{did_you_mean(name, names)}"
            )
        ids.append(list(names).index(name))
    return ids
