"""Logs of served traffic as `hfseq.serving.traffic` writes them, and labels that come later and are joined by id."""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfseq.data.reading import csv_fields, json_value, shorten_list, text_lines, tsv_fields
from hfseq.errors import InputError

# Of hfseq.serving.traffic, which is a floor above.
PATTERN = "traffic-*.jsonl"
_FIELDS = ("id", "time", "model", "task", "inputs", "output")


@dataclass
class Served:
    """A logged row.

    Attributes:
        id: Id of the request.
        time: Time of the answer.
        inputs: The input.
        output: The output of the model.
        label: True output, if it has been joined; None otherwise.
    """

    id: str
    time: str
    inputs: Any
    output: Any
    label: Any = None


def read_served(directory: str, models: Collection[str], tasks: Collection[str]) -> tuple[list[Served], list[str]]:
    """Read the rows of a model from all files of a log.

    Args:
        directory: Directory of the log.
        models: Names under which the model may be served.
        tasks: Names of the task of its pipeline; `translation` stands for `translation_xx_to_yy`, too.

    Returns:
        The rows in order of time, and lines that say what was left out: the unfinished last line of a file whose
        writer was interrupted, and rows of other models and tasks.

    Raises:
        InputError: There is no log, a line is no record, or no row is of this model and task.
    """
    paths = sorted(Path(directory).glob(PATTERN))
    if not paths:
        raise InputError(f"--served {directory}: no files {PATTERN}; give the directory of a server's traffic log")
    rows: list[Served] = []
    others: dict[str, Counter[str]] = {"models": Counter(), "tasks": Counter()}
    unfinished = 0
    for path in paths:
        for record in _records(path):
            if record is None:
                unfinished += 1
            elif record["model"] not in models:
                others["models"][record["model"]] += 1
            elif record["task"].partition("_")[0] not in tasks:
                others["tasks"][record["task"]] += 1
            else:
                rows.append(Served(record["id"], record["time"], record["inputs"], record["output"]))
    if not rows:
        wrong = f"--served {directory}: no rows of {' or '.join(models)}"
        if others["tasks"]:
            raise InputError(f"{wrong} that --task supports: they are of {shorten_list(sorted(others['tasks']))}")
        raise InputError(f"{wrong}; name one of {shorten_list(sorted(others['models']))} by --served_name")
    notes = [f"{len(rows)} rows in {len(paths)} files of {directory}"]
    if unfinished:
        notes.append(f"{unfinished} unfinished last lines of files left out")
    for what, counts in others.items():
        if counts:
            notes.append(f"{counts.total()} rows of other {what} left out: {shorten_list(sorted(counts))}")
    rows.sort(key=lambda row: row.time)
    return rows, notes


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the records of a file, None for an unfinished last line."""
    try:
        file = open(path, "rb")
    except FileNotFoundError:  # deleted by the server, which keeps the newest files
        return
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                yield None
                return
            place = f"{path}:{number}"
            record = json_value(line.decode(errors="replace"), place)
            if not isinstance(record, dict) or (missing := [name for name in _FIELDS if name not in record]):
                wrong = f"no {missing[0]}" if isinstance(record, dict) else "no object"
                raise InputError(f"{place}: {wrong}; each line must be a record of a traffic log")
            for name in ("id", "time", "model", "task"):
                if not isinstance(record[name], str):
                    raise InputError(f"{place}: {name} {record[name]!r:.60} is not a string")
            yield record


def join_labels(rows: list[Served], path: str) -> list[str]:
    """Give rows the labels of a file, by id.

    The file is CSV, TSV or JSON lines with the columns `id` and `label`. If an id comes several times, its last label
    counts, as a correction; rows of the log that share an id get none, since it is not clear whose label it is.

    Args:
        rows: Rows of a log; they are changed.
        path: Path of the file.

    Returns:
        Lines that say how many rows have labels, and what could not be joined.

    Raises:
        InputError: The file cannot be read, or lacks a column.
    """
    labels: dict[str, Any] = {}
    repeated = 0
    for name, label in _read_labels(Path(path)):
        repeated += name in labels
        labels[name] = label
    counts = Counter(row.id for row in rows)
    for row in rows:
        if counts[row.id] == 1:
            row.label = labels.get(row.id)
    joined = sum(row.label is not None for row in rows)
    notes = [f"{joined} of {len(rows)} rows with a label of {path}"]
    if unknown := sum(name not in counts for name in labels):
        notes.append(f"{unknown} labels without a row of that id")
    if repeated:
        notes.append(f"{repeated} labels replaced by a later one of the same id")
    if shared := sum(count for name, count in counts.items() if count > 1):
        notes.append(f"{shared} rows share their id with another row and get no label")
    return notes


def _read_labels(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the ids and labels of a file, without those that are empty."""
    suffix, flag = path.suffix.lower(), "--labels_file"
    if suffix in (".jsonl", ".json"):
        for number, line in enumerate(text_lines(path, flag), 1):
            if not line.strip():
                continue
            row = json_value(line, f"{path}:{number}")
            if not isinstance(row, dict) or not {"id", "label"} <= row.keys():
                raise InputError(f"{path}:{number}: each line must be an object with id and label")
            if row["label"] is not None:
                yield str(row["id"]), row["label"]
        return
    if suffix not in (".csv", ".tsv"):
        raise InputError(f"{flag} {path}: unknown extension {path.suffix!r}; known are .csv, .tsv, .jsonl, .json")
    fields = (csv_fields if suffix == ".csv" else tsv_fields)(path, flag)
    header = [name.strip() for name in next(fields, (1, []))[1]]
    if missing := [name for name in ("id", "label") if header.count(name) != 1]:
        raise InputError(f"{path}: no column {missing[0]!r} ({flag}); there are {shorten_list(header)}")
    for number, row in fields:
        if not any(row):
            continue
        if len(row) != len(header):
            raise InputError(f"{path}:{number}: {len(row)} fields, but the header names {len(header)}")
        if label := row[header.index("label")].strip():
            yield row[header.index("id")].strip(), label


def json_list(label: Any) -> Any:
    """A label that is a list; in a table a list is written as JSON."""
    if isinstance(label, str) and label.startswith("["):
        try:
            return json.loads(label)
        except ValueError:
            return label
    return label
