"""Input and output files of predictions (`--output_file`): row n of the output belongs to row n of the input."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hfseq.data.reading import Columns, file_rows
from hfseq.errors import InputError
from hfseq.inference.classify import Decision
from hfseq.inference.generate import Hypothesis, Score


def read_texts(
    name: str, column: str, second: str | None = None, *, column_names: Sequence[str] | None = None
) -> list[Any]:
    r"""Read all texts of a file, empty ones included, so that outputs stay aligned with its lines.

    Args:
        name: Name of a CSV, TSV, JSON Lines or Parquet file. Any other file is plain text with one text per line,
            ended by `\n` or `\r\n`; if it does not exist, `<name>.<column>` is read.
        column: Column of the texts.
        second: Column of a second text of each row; rows are then pairs, which a plain text file does not have.
        column_names: Column names of a CSV or TSV file without a header.

    Raises:
        InputError: The file or the column does not exist, or the file is malformed.
    """
    path, columns = Path(name), [column] if second is None else [column, second]
    has_columns = path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json", ".parquet") or column_names
    if has_columns or not path.is_file():
        rows = file_rows(name, "--test_file", Columns(columns, []), column_names, moses=True)
        texts = [tuple(text or "" for text in row) for row in rows]
        return [text for (text,) in texts] if second is None else texts
    if second is not None:
        files = " and ".join(f"{name}.{column}" for column in columns)
        raise InputError(
            f"--test_file {name} is plain text without columns; use a CSV, TSV or JSON Lines file, or {files}"
        )
    try:
        with open(name, encoding="utf-8-sig", newline="\n") as file:
            return [line.removesuffix("\n").removesuffix("\r") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--test_file {name}: cannot be read as UTF-8 text: {error}") from None


def check_output_file(
    name: str, *, overwrite: bool = False, num_return_sequences: int = 1, flag: str = "num_return_sequences"
) -> None:
    """Validate the output file before anything is computed.

    Args:
        name: Path of the file.
        overwrite: Allow an existing file.
        num_return_sequences: Texts per source; a plain text file holds only one.
        flag: Flag that gave their number, for errors.

    Raises:
        InputError: The file exists, is a directory, or cannot hold several texts per source.
    """
    path = Path(name)
    if path.is_dir():
        raise InputError(f"--output_file {name} is a directory; give the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"--output_file {name} exists; name another, or give --overwrite_output_file")
    if num_return_sequences > 1 and path.suffix.lower() not in (".tsv", ".jsonl"):
        raise InputError(
            f"--output_file {name} holds one text per line; for --{flag} {num_return_sequences} use a .tsv "
            "or .jsonl file"
        )


def write_predictions(name: str, nbest: Sequence[Sequence[Hypothesis]], *, overwrite: bool = False) -> None:
    """Write generated texts; call this on one process only.

    The extension selects the format: `.tsv` and `.jsonl` have one line per text with `row` and `rank` (from 1),
    `score` and `text`; any other file is plain text with the best text of row n on line n. Line breaks in a text are
    replaced by spaces, and in `.tsv` tabs as well.

    Args:
        name: Path of the file.
        nbest: Texts of each row, best first.
        overwrite: Allow an existing file.

    Raises:
        InputError: The file exists or cannot be written.
    """
    rows = [
        [row, rank, hypothesis.score, hypothesis.text]
        for row, hypotheses in enumerate(nbest, 1)
        for rank, hypothesis in enumerate(hypotheses, 1)
    ]
    _write(name, ["row", "rank", "score", "text"], rows, [hypotheses[0].text for hypotheses in nbest], overwrite)


def write_decisions(name: str, decisions: Sequence[Decision], *, overwrite: bool = False) -> None:
    """Write predicted classes; call this on one process only.

    The extension selects the format: `.tsv` has `row` (from 1), `label`, and one column per class with its
    probability; `.jsonl` has `row`, `label` and `scores`; any other file is plain text with the label of row n on
    line n.

    Args:
        name: Path of the file.
        decisions: Prediction for each row.
        overwrite: Allow an existing file.

    Raises:
        InputError: The file exists or cannot be written.
    """
    columns: list[str] = ["row", *Decision._fields]
    rows: list[list[Any]] = [[row, *decision] for row, decision in enumerate(decisions, 1)]
    if Path(name).suffix.lower() == ".tsv":
        classes = next((list(decision.scores) for decision in decisions if decision.scores), [])
        columns = ["row", "label", *classes]
        rows = [[row, label, *map(scores.get, classes)] for row, label, scores in rows]
    _write(name, columns, rows, [decision.label for decision in decisions], overwrite)


def write_scores(name: str, scores: Sequence[Score], *, overwrite: bool = False) -> None:
    """Write log-probabilities of reference texts; call this on one process only.

    The extension selects the format: `.tsv` and `.jsonl` have `row` (from 1), `log_probability` and `tokens`; any
    other file is plain text with the log-probability of row n on line n.

    Args:
        name: Path of the file.
        scores: Score of each row.
        overwrite: Allow an existing file.

    Raises:
        InputError: The file exists or cannot be written.
    """
    rows = [[row, *score] for row, score in enumerate(scores, 1)]
    _write(name, ["row", *Score._fields], rows, [f"{score.log_probability:.6g}" for score in scores], overwrite)


def write_recommendations(
    name: str, users: Sequence[str], found: Sequence[Sequence[tuple[str, float]]], *, overwrite: bool = False
) -> None:
    """Write recommended items; call this on one process only.

    `.tsv` and `.jsonl` have one line per item with `user`, `rank` (from 1), `item` and `score`; any other file is
    plain text with the best item of user n on line n.

    Args:
        name: Path of the file.
        users: Name of each user.
        found: Items of each user with their scores, best first.
        overwrite: Allow an existing file.

    Raises:
        InputError: The file exists or cannot be written.
    """
    rows = [
        [user, rank, *item] for user, items in zip(users, found, strict=True) for rank, item in enumerate(items, 1)
    ]
    best = [items[0][0] if items else "" for items in found]
    _write(name, ["user", "rank", "item", "score"], rows, best, overwrite)


def _field(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else in_one_line(str(value)).replace("\t", " ")


def _write(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], plain: Iterable[str], overwrite: bool
) -> None:
    """Write rows in the format that the extension selects, to a temporary file that then replaces the target."""
    check_output_file(name, overwrite=overwrite)
    path = Path(name)
    lines: Iterable[str] = map(in_one_line, plain)
    if path.suffix.lower() == ".jsonl":
        lines = (json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows)
    elif path.suffix.lower() == ".tsv":
        lines = ("\t".join(map(_field, row)) for row in [columns, *rows])
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"--output_file {name}: cannot be written: {error.strerror}") from None


def in_one_line(text: str) -> str:
    """Return a text with its line breaks replaced by spaces."""
    return " ".join(text.splitlines())


def write_lines(path: str | os.PathLike, texts: Iterable[str]) -> None:
    """Write one text per line, as UTF-8; line breaks in a text are replaced by spaces.

    Args:
        path: Path of the file.
        texts: Texts to write.
    """
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(f"{in_one_line(text)}\n" for text in texts)


def write_samples(
    path: str | os.PathLike,
    sources: Sequence[str],
    references: Sequence[str],
    predictions: Sequence[str],
    n: int = 20,
) -> None:
    """Write the first `n` examples as UTF-8 text: source, reference and prediction, separated by blank lines.

    Args:
        path: Path of the file.
        sources: Inputs.
        references: Reference for each source.
        predictions: Model output for each source.
        n: Maximum number of examples.
    """
    rows = list(zip(sources, references, predictions, strict=True))[:n]
    samples = (f"source:     {row[0]}\nreference:  {row[1]}\nprediction: {row[2]}\n" for row in rows)
    Path(path).write_text("\n".join(samples), encoding="utf-8")
