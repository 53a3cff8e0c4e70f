"""Recordings to find anomalies in: series of numbers and logs of events, from CSV, JSON lines, and NAB's folder."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfseq.data.reading import csv_fields, json_value, text_lines, tsv_fields
from hfseq.data.series import TIME_NAMES, is_number, parse_numbers, parse_stamp, parse_stamps, rectangular_rows
from hfseq.data.spans import Span, event_spans, probationary_length
from hfseq.errors import InputError, did_you_mean
from hfseq.lazy import pd

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
"""Extensions of files of recordings."""
NORMAL = frozenset({"", "0", "0.0", "false", "no", "normal", "benign", "-"})
"""Labels of normal rows, in lower case."""
ANOMALOUS = frozenset({"1", "1.0", "true", "yes", "anomaly", "anomalous", "abnormal", "attack", "-1"})
"""Labels of anomalous rows, in lower case, besides those that the user names."""
WINDOWS = "combined_windows.json"
"""File of a folder of NAB with the windows of each series."""
UNTIMED = 86.4
"""Seconds between steps without time stamps, so that a thousand of them count as a day."""
# In the year 2261, as for time stamps; larger numbers are milliseconds.
_LATEST = 9.2e9
_EPOCH = re.compile(r"\d{9,}(?:\.\d+)?")


@dataclass(frozen=True)
class Fields:
    """Columns of a table, and their use.

    Attributes:
        time: Column of the time stamps.
        label: Column of the labels.
        values: Columns of numbers; None for all that are left.
        events: Columns of the words of an event; None for a series of numbers.
        numbers: Columns of numbers of an event, which become words by their magnitude.
        gaps: Whether the time since the event before it is a word, too.
        anomalies: Further labels of anomalous rows.
    """

    time: str = "timestamp"
    label: str = "label"
    values: Sequence[str] | None = None
    events: Sequence[str] | None = None
    numbers: Sequence[str] = ()
    gaps: bool = False
    anomalies: Sequence[str] = ()


@dataclass(frozen=True)
class Recording:
    """A series of numbers, or a log of events.

    Attributes:
        name: Its name; recordings of the same name continue each other.
        columns: Names of the numbers of a step.
        values: Numbers `[T, C]` in float64, NaN where one is missing; C may be 0.
        times: Seconds since 1970, `[T]`, not decreasing; `UNTIMED` apart if there are no time stamps.
        timed: Whether there are time stamps.
        events: Anomalies, in order; None if the recording has no labels.
        kinds: Kind of each anomaly; None if the labels tell none.
        texts: Text of each event; None for a series.
    """

    name: str
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    times: NDArray[np.float64]
    timed: bool = True
    events: tuple[Span, ...] | None = None
    kinds: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.times)

    def part(self, start: int, stop: int) -> Recording:
        """Return the steps from `start` up to `stop`, with the parts of anomalies that lie there."""
        events = kinds = None
        if self.events is not None:
            inside = [number for number, (first, last) in enumerate(self.events) if first < stop and last > start]
            clipped = [self.events[number] for number in inside]
            events = tuple((max(first, start) - start, min(last, stop) - start) for first, last in clipped)
            kinds = None if self.kinds is None else tuple(self.kinds[number] for number in inside)
        texts = None if self.texts is None else self.texts[start:stop]
        span = slice(start, stop)
        return replace(self, values=self.values[span], times=self.times[span], events=events, kinds=kinds, texts=texts)


# Files


def read_recordings(name: str, flag: str, fields: Fields) -> list[Recording]:
    """Read a file, or each CSV file in a folder and its folders, as a recording.

    A table has a row for each step: a column of time stamps (`2024-01-31 12:00:00`, or seconds since 1970), which may
    be missing, columns of numbers or of words of events, and perhaps a column of labels: 0, false, normal, benign or
    nothing at normal steps, 1, true, anomaly, attack or one of `fields.anomalies` at others.

    Args:
        name: Path of the file or folder.
        flag: Flag that gave it, for errors.
        fields: The columns.

    Raises:
        InputError: The file cannot be read, a column is missing, a row is ragged, a number or time stamp is none or
            infinite, time stamps are out of order or stand twice, or a label is unknown. The message names file and
            line.
    """
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".csv", ".tsv"))
        if not files:
            raise InputError(f"{flag} {name}: the folder has no CSV files")
        return [_read(file, flag, fields, str(file.relative_to(path))) for file in files]
    return [_read(path, flag, fields, path.stem)]


def read_nab(folder: str, flag: str) -> list[Recording]:
    """Read a folder of the Numenta Anomaly Benchmark: CSV files `timestamp,value` and the windows of each.

    Time stamps that stand twice or go back, as in some of its files where the clocks change, are kept: NAB counts
    rows.

    Args:
        folder: Folder with `combined_windows.json`, or with the folders `data` and `labels` of the benchmark.
        flag: Flag that gave it, for errors.

    Raises:
        InputError: There is no file of windows, it is malformed, a series is missing, or as for `read_recordings`.
    """
    root = Path(folder)
    file = root / WINDOWS
    data = root
    if not file.is_file() and (root / "labels" / WINDOWS).is_file():
        file, data = root / "labels" / WINDOWS, root / "data"
    try:
        windows = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{flag} {folder}: no {WINDOWS} ({error.strerror}); give a folder of NAB") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if not isinstance(windows, dict) or not windows:
        raise InputError(f"{file}: it must be an object of file names and their windows")
    found = []
    for name, spans in sorted(windows.items()):
        if not (data / name).is_file():
            raise InputError(f"{file}: {name} is not in {data}; the file has windows of series that are missing")
        recording = _read(data / name, flag, Fields(), name, strict=False)
        found.append(replace(recording, events=tuple(_window(file, recording, one) for one in spans)))
    return found


def _window(file: Path, recording: Recording, window: Any) -> Span:
    """Rows of a window of two time stamps."""
    stamps = [parse_stamp(text) for text in window] if isinstance(window, list) and len(window) == 2 else []
    if len(stamps) != 2 or None in stamps:
        raise InputError(f"{file}: {recording.name}: a window must be two time stamps, not {window!r}")
    first, last = (one.timestamp() for one in stamps if one is not None)
    inside = np.flatnonzero((recording.times >= first) & (recording.times <= last))
    if not len(inside):
        raise InputError(f"{file}: {recording.name}: no row lies in the window from {window[0]} to {window[1]}")
    return int(inside[0]), int(inside[-1]) + 1


def split_nab(recording: Recording) -> tuple[Recording, Recording]:
    """Divide a series into its probationary rows, which have no anomalies, and the others."""
    count = probationary_length(len(recording))
    return replace(recording.part(0, count), events=None), recording.part(count, len(recording))


def _read(path: Path, flag: str, fields: Fields, name: str, *, strict: bool = True) -> Recording:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{flag} {path}: unknown extension {path.suffix!r}; known are {', '.join(SUFFIXES)}")
    columns, lines = _json_table(path, flag) if suffix in (".jsonl", ".json") else _table(path, flag)
    return make_recording(name, columns, lines, fields, path, strict=strict)


def _table(path: Path, flag: str) -> tuple[dict[str, Sequence[str]], NDArray[np.int64]]:
    """Columns of texts of a CSV or TSV file, and the line of each row."""
    rows = (csv_fields if path.suffix.lower() == ".csv" else tsv_fields)(path, flag)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: empty; the first line names the columns ({flag})")
    header = [text.strip() for text in first[1]]
    if all(is_number(text) for text in header) or parse_stamp(header[0]) is not None:
        raise InputError(f"{path}:1: the first line must name the columns, but it has values; add a line of names")
    for column in header:
        if header.count(column) > 1:
            raise InputError(f"{path}:1: {header.count(column)} columns are called {column!r}; names must differ")
    lines, table = rectangular_rows(path, rows, len(header))
    if not table:
        raise InputError(f"{path}: no rows")
    return dict(zip(header, zip(*table, strict=True), strict=True)), lines


def _json_table(path: Path, flag: str) -> tuple[dict[str, Sequence[str]], NDArray[np.int64]]:
    """Columns of texts of a file with an object a line, and the line of each row."""
    rows: list[dict[str, str]] = []
    lines = []
    for number, line in enumerate(text_lines(path, flag), 1):
        if not line.strip():
            continue
        entry = json_value(line, f"{path}:{number}")
        if not isinstance(entry, dict):
            raise InputError(f"{path}:{number}: each line must be one object, not {type(entry).__name__}")
        if rows and entry.keys() != rows[0].keys():
            odd = sorted(entry.keys() ^ rows[0].keys())[0]
            raise InputError(f"{path}:{number}: {odd!r} is not in all lines; each must have the same names")
        for key, value in entry.items():
            if isinstance(value, list | dict):
                raise InputError(f"{path}:{number}: {key!r} must be a text or a number, not {type(value).__name__}")
        rows.append({key: "" if value is None else str(value) for key, value in entry.items()})
        lines.append(number)
    if not rows:
        raise InputError(f"{path}: no rows")
    return {key: [row[key] for row in rows] for key in rows[0]}, np.array(lines)


def make_recording(
    name: str,
    columns: Mapping[str, Sequence[str]],
    lines: NDArray[np.int64],
    fields: Fields,
    path: Path,
    *,
    strict: bool = True,
) -> Recording:
    """Make a recording of a table of texts.

    Args:
        name: Name of the recording.
        columns: Column to its texts, all `[T]`.
        lines: Line of each row in the file.
        fields: The columns and their use.
        path: File, for errors.
        strict: Whether time stamps that are out of order or stand twice are refused.

    Raises:
        InputError: As for `read_recordings`.
    """
    timed = fields.time in columns
    if not timed:
        _check_untimed(path, fields, columns)
    times = UNTIMED * np.arange(len(lines), dtype=np.float64)
    if timed:
        times = _times(path, fields.time, columns[fields.time], lines)
    if timed:
        # Events may happen in the same second.
        _check_times(path, times, lines, name, strict=strict, twice=fields.events is not None)
    events, kinds = _labels(path, fields, columns, lines)
    taken = {fields.time, fields.label}
    texts = None
    if fields.events is None:
        chosen = [column for column in columns if column not in taken] if fields.values is None else fields.values
        if not chosen:
            raise InputError(f"{path}: no column of values beside {', '.join(columns)}")
    else:
        chosen = list(fields.numbers)
    for column in (*chosen, *(fields.events or ())):
        if column not in columns:
            raise InputError(f"{path}: no column {column!r}{did_you_mean(column, columns)}")
        if column in taken:
            raise InputError(f"{path}: column {column!r} has time stamps or labels, so it cannot be read as values")
    numbers = [parse_numbers(path, column, columns[column], lines) for column in chosen]
    values = np.stack(numbers, axis=1) if numbers else np.empty((len(lines), 0))
    if fields.events is not None:
        gaps = np.diff(times, prepend=times[0]) if fields.gaps and timed else None
        texts = tuple(event_texts({column: columns[column] for column in fields.events}, chosen, values, gaps))
        for row, text in enumerate(texts):
            if not text.strip():
                raise InputError(f"{path}:{lines[row]}: the event is empty; there must be a word")
        chosen, values = [], values[:, :0]
    elif strict and timed:
        _report_gaps(path, times)
    order = np.maximum.accumulate(times)
    return Recording(name, tuple(chosen), values, order, timed, events, kinds, texts)


def _check_untimed(path: Path, fields: Fields, columns: Collection[str]) -> None:
    """Refuse a table without the column of time stamps if it is named, or if there seems to be one."""
    if fields.time != Fields.time:
        raise InputError(f"{path}: no column {fields.time!r} (--time_column){did_you_mean(fields.time, columns)}")
    used = (*(fields.values or ()), *(fields.events or ()), *fields.numbers)
    for column in columns:
        if column.lower() in TIME_NAMES - {"day", "month", "year"} and column not in used:
            raise InputError(f"{path}: no column {fields.time!r}, but {column!r}; give --time_column {column}")


def event_texts(
    words: Mapping[str, Sequence[str]],
    names: Sequence[str] = (),
    values: NDArray[np.float64] | None = None,
    gaps: NDArray[np.float64] | None = None,
) -> list[str]:
    """Write events as text, for a causal language model.

    A single column of words is the text as it is. Of several columns each gives a word `column=word`, and each number
    a word with its magnitude, a power of two: `bytes=2^12` from 4095 up to 8190.

    Args:
        words: Columns of words, all `[T]`.
        names: Names of the numbers.
        values: Numbers `[T, C]` of at least 0; NaN becomes `?`.
        gaps: Seconds since the event before, `[T]`; None leaves them out.
    """
    columns = [list(texts) for texts in words.values()]
    if len(columns) > 1 or names or gaps is not None:
        columns = [[f"{name}={'_'.join(text.split()) or '?'}" for text in texts] for name, texts in words.items()]
    for index, name in enumerate(names):
        assert values is not None
        columns.append([f"{name}={_magnitude(value)}" for value in values[:, index].tolist()])
    if gaps is not None:
        columns.insert(0, [f"gap={_magnitude(value)}" for value in gaps.tolist()])
    return [" ".join(parts) for parts in zip(*columns, strict=True)]


def _magnitude(value: float) -> str:
    if math.isnan(value):
        return "?"
    return f"{'-' * (value < 0)}2^{int(math.log2(1 + abs(value)))}"


def parse_time(text: str) -> float | None:
    """Seconds since 1970 of a time stamp, which may be that number itself; None if it is none."""
    if _EPOCH.fullmatch(text):
        return float(text) if float(text) < _LATEST else None
    stamp = parse_stamp(text)
    return None if stamp is None else float(stamp.timestamp())


def _times(path: Path, column: str, texts: Sequence[str], lines: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds since 1970 `[T]`."""
    if _EPOCH.fullmatch(texts[0].strip()):
        times = parse_numbers(path, column, texts, lines)
        for row in np.flatnonzero(times >= _LATEST)[:1]:
            raise InputError(
                f"{path}:{lines[row]}: column {column!r}: {texts[row]} lies after the year 2260; write seconds since "
                "1970, not milliseconds"
            )
        return times
    stamps: pd.DatetimeIndex = parse_stamps(path, column, texts, lines)
    return np.asarray(stamps.as_unit("ns").asi8 / 1e9, dtype=np.float64)


def _check_times(
    path: Path, times: NDArray[np.float64], lines: NDArray[np.int64], name: str, *, strict: bool, twice: bool
) -> None:
    """Refuse time stamps that are missing, out of order or twice."""
    for row in np.flatnonzero(~np.isfinite(times))[:1]:
        raise InputError(f"{path}:{lines[row]}: the time stamp is missing")
    steps = np.diff(times)
    odd = np.flatnonzero((steps < 0) if twice else (steps <= 0)) + 1
    if not len(odd):
        return
    row = int(odd[0])
    when = pd.Timestamp(times[row], unit="s")
    if strict and times[row] == times[row - 1]:
        raise InputError(f"{path}:{lines[row]}: time stamp {when} stands twice; each step needs one row")
    if strict:
        before = pd.Timestamp(times[row - 1], unit="s")
        raise InputError(
            f"{path}:{lines[row]}: time stamp {when} is out of order: it stands after {before}; sort the rows"
        )
    logger.info("%s: %d time stamps stand twice or go back, the first in line %d", name, len(odd), lines[row])


def _report_gaps(path: Path, times: NDArray[np.float64]) -> None:
    """Count the gaps of a series."""
    steps = np.diff(times)
    if len(steps) and len(gaps := np.flatnonzero(steps > 1.5 * np.median(steps))):
        usual = float(np.median(steps))
        missing = round(float((steps[gaps] / usual - 1).sum()))
        logger.warning("%s: %d gaps, in which about %d steps of %g s are missing", path, len(gaps), missing, usual)


def _labels(
    path: Path, fields: Fields, columns: Mapping[str, Sequence[str]], lines: NDArray[np.int64]
) -> tuple[tuple[Span, ...] | None, tuple[str, ...] | None]:
    """Anomalies and their kinds, from the column of labels if there is one."""
    if fields.label not in columns:
        return None, None
    texts = [text.strip() for text in columns[fields.label]]
    named = {label.lower() for label in fields.anomalies}
    normal = NORMAL - named
    flags = np.zeros(len(texts), dtype=bool)
    for row, text in enumerate(texts):
        flags[row] = text.lower() not in normal
        if flags[row] and text.lower() not in ANOMALOUS | named:
            raise InputError(
                f"{path}:{lines[row]}: column {fields.label!r}: unknown label {text!r}; write 0 or 1, normal or "
                "anomaly, or name the labels of anomalies by --anomaly_labels"
            )
    spans = event_spans(flags)
    kinds = tuple(texts[start] for start, _ in spans) if named else None
    return tuple(spans), kinds
