"""Interactions of users with items: reading, sessions in order of time, and splits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from hfseq.data.reading import csv_fields, json_value, load_hub, shorten_list, text_lines, tsv_fields
from hfseq.errors import InputError, one_line
from hfseq.lazy import datasets, pa, pq
from hfseq.tokenization import SPECIAL_TOKENS

_KNOWN = {
    "user": ("user", "userid", "uid", "customer", "customerid", "reviewerid", "visitorid", "session", "sessionid"),
    "item": ("item", "itemid", "items", "itemids", "product", "productid", "movieid", "trackid", "asin", "sku"),
    "time": ("time", "times", "timestamp", "timestamps", "ts", "datetime", "date", "unixreviewtime"),
}
"""Column names that are understood without a flag, in lower case and without punctuation."""
_ROLES = tuple(_KNOWN)
_NUMBER_TYPES = ("float", "token")
"""Types of RecBole's fields that hold one value."""


@dataclass(frozen=True)
class InteractionColumns:
    """Names of the columns; None to guess one from the names there are.

    Attributes:
        user: Column of users or sessions.
        item: Column of items, or of lists of them, a session in each row.
        time: Column of times.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None


class Session(NamedTuple):
    """Items of a user or session, oldest first.

    Attributes:
        user: Name of the user or session.
        items: Names of the items, repetitions included.
        times: Time of each, in seconds if they were dates; None if there are no times.
    """

    user: str
    items: list[str]
    times: list[float] | None = None


class _Event(NamedTuple):
    """Row of a table: one item, or all items of a session.

    Attributes:
        place: File and line, for errors.
        user: Value of the user's column; None for a session without one.
        item: Value of the item's column, or a list.
        time: Value of the time's column, or a list; None if there is no such column.
    """

    place: str
    user: Any
    item: Any
    time: Any


def read_interactions(
    name: str, flag: str, columns: InteractionColumns, column_names: Sequence[str] | None = None
) -> list[Session]:
    """Read a file of interactions, and sort those of each user by time, or leave them in the order of the file.

    The extension determines the format:

    - `.inter`: RecBole's atomic file, tab-separated; the first line names the fields with their types:
      `user_id:token item_id:token timestamp:float`;
    - `.csv`, `.tsv`: as in `hfseq.data.reading.read_splits`;
    - `.jsonl`, `.json`: an object per line, which is one interaction, or a session with a list of items;
    - `.parquet`: the same;
    - any other: `user item` or `user item time` in each line, separated by tabs if there are any, else by spaces; or
      the columns that `column_names` names.

    Times are all finite numbers, or all dates of ISO 8601, in UTC unless they say otherwise. Interactions at the same
    time stay in the order of the file, and repetitions are kept.

    Args:
        name: Path of the file.
        flag: Flag that gave it, for errors.
        columns: Names of the columns.
        column_names: Column names of a file without a header.

    Returns:
        The sessions, in the order in which their users first appear.

    Raises:
        InputError: The file cannot be read, a column is missing or ambiguous, or a value is invalid; it names file and
            line.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if column_names and suffix in (".inter", ".jsonl", ".json", ".parquet"):
        raise InputError(f"--column_names is for files without a header; {flag} {name} names its columns")
    if suffix in (".jsonl", ".json"):
        events = _json_events(path, flag, columns)
    elif suffix == ".parquet":
        events = _table_events(_read_parquet(path, flag), name, columns)
    elif suffix == ".inter":
        events = _fields(path, tsv_fields(path, flag), columns, None, typed=True)
    elif suffix in (".csv", ".tsv"):
        rows = csv_fields(path, flag) if suffix == ".csv" else tsv_fields(path, flag)
        events = _fields(path, rows, columns, column_names)
    else:
        events = _plain_events(path, flag, columns, column_names)
    return _sessions(events, f"{flag} {name}")


def hub_interactions(name: str, config: str | None, columns: InteractionColumns) -> dict[str, list[Session]]:
    """Read the sessions of each split of a data set of the Hub, or of a local one.

    Args:
        name: Data set; see `hfseq.data.reading.load_hub`.
        config: Configuration of that data set.
        columns: Names of the columns.

    Returns:
        The sessions of each of `train`, `validation` and `test` that exists.

    Raises:
        InputError: As for `read_interactions`.
    """
    found = {}
    for split, (alias, data) in load_hub(name, config, streaming=False).items():
        source = f"--dataset_name {name}, split {alias}"
        try:
            table = data.with_format("arrow")[:]
        except Exception as error:  # anything that data files can raise
            raise InputError(f"{source}: cannot be read ({one_line(error, named=True)})") from error
        found[split] = _sessions(_table_events(table, source, columns), source)
    return found


# Formats


def _choose(source: str, names: Sequence[str], columns: InteractionColumns, *, sessions: bool = False) -> list[Any]:
    """Index of the columns of users, items and times; None for no time, or for sessions without names."""
    found: list[Any] = []
    plain = [re.sub(r"[^a-z]", "", name.lower()) for name in names]
    for role in _ROLES:
        given = getattr(columns, role)
        if given is not None:
            if names.count(given) != 1:
                raise InputError(f"{source}: no column {given!r} (--{role}_column); there are {shorten_list(names)}")
            found.append(names.index(given))
            continue
        likely = [index for index, name in enumerate(plain) if name in _KNOWN[role]]
        if len(likely) > 1:
            some = shorten_list([names[index] for index in likely])
            raise InputError(f"{source}: {some} may each be the {role}; choose one with --{role}_column")
        if not likely and (role == "item" or (role == "user" and not sessions)):
            raise InputError(
                f"{source}: no column of {role}s; name one with --{role}_column: there are {shorten_list(names)}"
            )
        found.append(likely[0] if likely else None)
    return found


def _fields(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    columns: InteractionColumns,
    column_names: Sequence[str] | None,
    *,
    typed: bool = False,
) -> Iterator[_Event]:
    """Yield the events of numbered rows of fields; the first row is the header unless `column_names` are given."""
    first: list[str] | None = None
    if column_names is None:
        first = next(rows, (1, []))[1]
        if not any(first):
            raise InputError(f"{path}: empty; the first line must name the columns")
        header = _typed_names(path, first, columns) if typed else [name.strip() for name in first]
        expected = f"the header names {len(header)}"
    else:
        header, expected = list(column_names), f"--column_names names {len(column_names)}"
    user, item, time = _choose(f"{path}:1", header, columns)
    for line, row in rows:
        if not any(row):
            continue
        if len(row) != len(header):
            raise InputError(f"{path}:{line}: {len(row)} fields, but {expected}")
        if column_names is not None and line == 1 and [field.strip() for field in row] == header:
            raise InputError(f"{path}:1: this line repeats --column_names, so it is a header: leave out one of them")
        if row == first:
            raise InputError(f"{path}:{line}: this line repeats the header; leave it out")
        yield _Event(f"{path}:{line}", row[user], row[item], None if time is None else row[time])


def _typed_names(path: Path, header: Sequence[str], columns: InteractionColumns) -> list[str]:
    """Field names of an atomic file, without their types."""
    names = []
    for field in header:
        name, colon, kind = field.strip().rpartition(":")
        if not colon:
            raise InputError(f"{path}:1: field {field!r} has no type; RecBole writes user_id:token, timestamp:float")
        if kind not in _NUMBER_TYPES and re.sub(r"[^a-z]", "", name.lower()) in chain(*_KNOWN.values()):
            raise InputError(f"{path}:1: field {field!r} holds lists; give a file with one interaction a line")
        names.append(name)
    return names


def _plain_events(
    path: Path, flag: str, columns: InteractionColumns, column_names: Sequence[str] | None
) -> Iterator[_Event]:
    """Yield the events of a file of `user item [time]`, or of the columns that `column_names` names."""
    if not column_names and columns != InteractionColumns():
        raise InputError(f"{flag} {path} has no header; name its columns with --column_names user,item,time")

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(text_lines(path, flag), 1):
            line = line.rstrip("\r\n")
            yield number, line.split("\t") if "\t" in line else line.split()

    if column_names:
        yield from _fields(path, rows(), columns, column_names)
        return
    size = None
    for number, row in rows():
        if not row or row == [""]:
            continue
        size = size or len(row)
        if size not in (2, 3):
            raise InputError(
                f"{path}:{number}: {size} fields; give `user item` or `user item time`, or name the columns with "
                "--column_names"
            )
        if len(row) != size:
            raise InputError(f"{path}:{number}: {len(row)} fields, but the lines before have {size}")
        if number == 1 and size == 3 and parse_time(row[2]) is None:
            raise InputError(
                f"{path}:1: time {row[2]!r} is neither a number nor a date; is this a header? Files with one are "
                ".csv, .tsv or .inter"
            )
        yield _Event(f"{path}:{number}", row[0], row[1], row[2] if size == 3 else None)


def _json_events(path: Path, flag: str, columns: InteractionColumns) -> Iterator[_Event]:
    for number, line in enumerate(text_lines(path, flag), 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row = json_value(line, place)
        if not isinstance(row, dict):
            raise InputError(f"{place}: a JSON {type(row).__name__}; each line must be one object")
        names = list(row)
        lists = any(isinstance(value, list) for value in row.values())
        user, item, time = (
            None if index is None else row[names[index]] for index in _choose(place, names, columns, sessions=lists)
        )
        yield _Event(place, user, item, time)


def _read_parquet(path: Path, flag: str) -> pa.Table:
    if not path.is_file():
        raise InputError(f"{path}: no such file ({flag})")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{flag} {path}: not a valid Parquet file ({one_line(error, named=True)})") from None


def _table_events(table: pa.Table, source: str, columns: InteractionColumns) -> Iterator[_Event]:
    names = table.column_names
    lists = any(pa.types.is_list(field.type) or pa.types.is_large_list(field.type) for field in table.schema)
    chosen = _choose(source, names, columns, sessions=lists)
    empty = [None] * len(table)
    values = [empty if index is None else table.column(index).to_pylist() for index in chosen]
    for number, row in enumerate(zip(*values, strict=True), 1):
        yield _Event(f"{source}, row {number}", *row)


# Sessions


def _sessions(events: Iterable[_Event], source: str) -> list[Session]:
    """Collect the events of each user, sorted by time."""
    items: dict[str, list[str]] = {}
    times: dict[str, list[float]] = {}
    lists: bool | None = None
    timed = False
    dated: bool | None = None
    for place, user, item, time in events:
        if lists is None:
            lists, timed = isinstance(item, list), time is not None
        if isinstance(item, list) is not lists:
            raise InputError(f"{place}: items must be lists in all rows or in none")
        name = f"session {len(items) + 1}" if user is None and lists else _name(user, "user", place)
        some = item if lists else [item]
        if (time is not None) is not timed:
            raise InputError(f"{place}: {'no' if timed else 'a'} time, unlike the rows before")
        items.setdefault(name, []).extend(_name(one, "item", place) for one in some)
        if timed:
            stamps = time if lists else [time]
            if not isinstance(stamps, list) or len(stamps) != len(some):
                raise InputError(f"{place}: {len(some)} items need as many times")
            own_times = times.setdefault(name, [])
            for one in stamps:
                own_times.append(_seconds(one, place))
                dated = _is_date(one) if dated is None else dated
                if _is_date(one) is not dated:
                    kinds = "number, but those before are dates" if dated else "date, but those before are numbers"
                    raise InputError(f"{place}: time {one!r:.60} is a {kinds}; give all times as one or the other")
    if not any(items.values()):
        raise InputError(f"{source}: no interactions")
    if not timed:
        return [Session(user, own) for user, own in items.items()]
    sessions = []
    for user, own in items.items():
        order = sorted(range(len(own)), key=times[user].__getitem__)
        sessions.append(Session(user, [own[at] for at in order], [times[user][at] for at in order]))
    return sessions


def _name(value: Any, role: str, place: str) -> str:
    """Name of a user or an item; whole numbers are names, too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{place}: {role} {value!r:.60} is neither a string nor a whole number")
    text = value.strip()
    if not text:
        raise InputError(f"{place}: the {role} is empty")
    if role == "item" and text in SPECIAL_TOKENS:
        raise InputError(f"{place}: item {text!r} is the name of a special token; give it another name")
    if "\n" in text or "\r" in text:
        raise InputError(f"{place}: {role} {text!r:.60} contains a line break")
    return text


def _seconds(value: Any, place: str) -> float:
    if isinstance(value, date):  # or a datetime, which is one
        value = value.isoformat()
    found = None if isinstance(value, bool) else parse_time(value) if isinstance(value, str) else _number(value)
    if found is None:
        raise InputError(f"{place}: time {value!r:.60} is neither a number nor a date, such as 2024-05-31T18:00:00")
    if not math.isfinite(found):
        raise InputError(f"{place}: time {value!r:.60} is not finite; give a number or a date")
    return found


def parse_time(text: str) -> float | None:
    """Time that a text gives, a number or a date of ISO 8601, in seconds since 1970 (UTC); None if it is neither.

    Numbers may be infinite or NaN.
    """
    number = _number(text)
    if number is not None:
        return number
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _is_date(value: Any) -> bool:
    """Return True for a valid time that is no number."""
    return _number(value) is None


def _number(value: Any) -> float | None:
    """Number of a text or a number, infinite if it is too large; None if it is none."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


# Splits: rows of `user`, `items` and `begin`, the number of items at the beginning that are not to be predicted.


def session_rows(sessions: Sequence[Session], *, last: bool = False) -> datasets.Dataset:
    """Rows whose items are all to be predicted but the first, or with `last` the last item alone.

    Sessions of one item have nothing to predict, but may be trained on.
    """
    return _rows((one.user, one.items, max(1, len(one.items) - 1) if last else 1) for one in sessions)


def leave_one_out(sessions: Sequence[Session], source: str) -> tuple[datasets.DatasetDict, str]:
    """Split each user's items: the last one is the test, the last but one validation, the others train.

    The history of a test item has the item of the validation, too. Users with less than three items are for training
    alone.

    Args:
        sessions: Sessions of the users.
        source: Flag and name of their file, for errors.

    Returns:
        The splits, rows of `user`, `items` and `begin`; and a line that says how many users were too short.

    Raises:
        InputError: No user has three items.
    """
    long = [one for one in sessions if len(one.items) >= 3]
    if not long:
        spaced = next((item for one in sessions for item in one.items if " " in item), None)
        remedy = f"if {spaced!r:.60} is several items, give a JSON list" if spaced else "give files for the tests"
        raise InputError(f"{source}: no user has three items, of which the last two could be left out; {remedy}")
    cut = [one if len(one.items) < 3 else Session(one.user, one.items[:-2]) for one in sessions]
    splits = {
        "train": session_rows(cut),
        "validation": _rows((one.user, one.items[:-1], len(one.items) - 2) for one in long),
        "test": _rows((one.user, one.items, len(one.items) - 1) for one in long),
    }
    short = len(sessions) - len(long)
    note = f"leave one out: the last items of {len(long)} users"
    note += f"; {short} with fewer than three items are for training alone" if short else ""
    return datasets.DatasetDict(splits), note


def split_by_time(
    sessions: Sequence[Session], validation_start: float | str, test_start: float | str
) -> tuple[datasets.DatasetDict, str]:
    """Split interactions by time: each is predicted from all of its user before it.

    Items without any before them are not predicted; users who have interacted before training ends are known to it.

    Args:
        sessions: Sessions with times.
        validation_start: Begin of the validation: a number or a date; below 1 the share of interactions before it.
        test_start: Begin of the test.

    Returns:
        The splits, rows of `user`, `items` and `begin`; and a line that gives the numbers of interactions.

    Raises:
        InputError: There are no times, a start is invalid or not in order, or a split is empty.
    """
    if any(one.times is None for one in sessions):
        raise InputError("--split time needs times; name their column with --time_column")
    stamps = sorted(chain.from_iterable(one.times or () for one in sessions))
    starts = [
        _start(value, stamps, flag)
        for value, flag in ((validation_start, "validation_start"), (test_start, "test_start"))
    ]
    if starts[0] >= starts[1]:
        raise InputError(
            f"--validation_start {validation_start} is not before --test_start {test_start}; give an earlier and a "
            "later time"
        )
    bounds = [-float("inf"), *starts, float("inf")]
    splits: dict[str, datasets.Dataset] = {}
    counts = []
    for split, begin, end in zip(("train", "validation", "test"), bounds, bounds[1:], strict=False):
        rows = []
        for one in sessions:
            known = sum(time < begin for time in one.times or ())
            total = sum(time < end for time in one.times or ())
            first = 1 if split == "train" else max(known, 1)
            if total > (0 if split == "train" else first):
                rows.append((one.user, one.items[:total], first))
        if not rows:
            raise InputError(f"--split time: nothing to {'learn' if split == 'train' else 'predict'} in {split}")
        splits[split] = _rows(rows)
        counts.append(f"{split} {sum(begin <= stamp < end for stamp in stamps)}")
    return datasets.DatasetDict(splits), f"split by time: interactions in {', '.join(counts)}"


def _start(value: float | str, stamps: Sequence[float], flag: str) -> float:
    found = parse_time(str(value))
    if found is None or not math.isfinite(found):
        raise InputError(f"--{flag} {value!r} is neither a finite number nor a date")
    if 0 < found < 1:
        return stamps[min(int(found * len(stamps)), len(stamps) - 1)]
    return found


def _rows(rows: Iterable[tuple[str, Sequence[str], int]]) -> datasets.Dataset:
    listed = list(rows)
    features = datasets.Features(
        {
            "user": datasets.Value("string"),
            "items": datasets.List(datasets.Value("string")),
            "begin": datasets.Value("int64"),
        }
    )
    columns = zip(*listed, strict=True) if listed else ((), (), ())
    return datasets.Dataset.from_dict(dict(zip(features, map(list, columns), strict=True)), features=features)
