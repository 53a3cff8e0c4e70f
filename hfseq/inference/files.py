"""Files of texts to predict, and of predictions: row n of what is written belongs to row n of what was read."""

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
    name: str, column: str, flag: str = "--test_file", column_names: Sequence[str] | None = None
) -> list[str]:
    r"""All texts of a file, empty ones too, so that outputs can be aligned with its lines.

    Args:
        name: CSV, TSV, JSON lines or Parquet, as `read_splits` reads them; any other file is plain text, a text a
            line, which `\n` or `\r\n` ends; where there is no such file, `<name>.<column>` is.
        column: Of the texts.
        flag: Names the file in errors.
        column_names: The columns of a CSV or TSV file without a header.

    Raises:
        InputError: If there is no such file or column, or it is malformed.
    """
    path = Path(name)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json", ".parquet") or column_names or not path.is_file():
        rows = file_rows(name, flag, Columns([column], []), column_names, moses=True)
        return [text or "" for (text,) in rows]
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            return [line.removesuffix("\n").removesuffix("\r") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {name}: cannot be read as UTF-8 text: {error}") from None


def check_output_file(name: str, *, overwrite: bool = False, num_return_sequences: int = 1) -> None:
    """Refuse an output file before anything is computed for it.

    Args:
        name: The file.
        overwrite: Whether it may exist.
        num_return_sequences: Texts for each source, of which a plain text file has room for one.

    Raises:
        InputError: If it exists, is a directory, or has no room.
    """
    path = Path(name)
    if path.is_dir():
        raise InputError(f"--output_file {name} is a directory; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"--output_file {name} exists; name another, or give --overwrite_output_file")
    if num_return_sequences > 1 and path.suffix.lower() not in (".tsv", ".jsonl"):
        raise InputError(
            f"--output_file {name} has one text a line; for --num_return_sequences {num_return_sequences} "
            "let its name end in .tsv or .jsonl"
        )


def write_predictions(name: str, nbest: Sequence[Sequence[Hypothesis]], *, overwrite: bool = False) -> None:
    """Write generated texts; to be called on one process.

    The ending of the name says how: `.tsv` and `.jsonl` have `row` and `rank`, counted from 1, `score` and `text`, a
    line for each text; any other file is plain text with the best of each row, line n for row n. Line breaks in a text
    become spaces, in `.tsv` tabs do, too.

    Args:
        name: The file.
        nbest: Texts of each row, the best first.
        overwrite: Whether it may exist.

    Raises:
        InputError: If it exists or cannot be written.
    """
    columns = ["row", "rank", "score", "text"]
    rows = [
        [row, rank, hypothesis.score, hypothesis.text]
        for row, hypotheses in enumerate(nbest, 1)
        for rank, hypothesis in enumerate(hypotheses, 1)
    ]
    objects = (dict(zip(columns, row, strict=True)) for row in rows)
    _write(name, _lines(name, [columns, *rows], objects, [hypotheses[0].text for hypotheses in nbest]), overwrite)


def write_decisions(name: str, decisions: Sequence[Decision], *, overwrite: bool = False) -> None:
    """Write classes; to be called on one process.

    The ending of the name says how: `.tsv` has `row`, counted from 1, `label`, and the probability of each class in a
    column of its own; `.jsonl` has `row`, `label` and `scores`; any other file is plain text with the label, line n
    for row n.

    Args:
        name: The file.
        decisions: One of each row.
        overwrite: Whether it may exist.

    Raises:
        InputError: If it exists or cannot be written.
    """
    classes = next((list(decision.scores) for decision in decisions if decision.scores), [])
    rows = [
        [row, decision.label, *(decision.scores.get(one) for one in classes)]
        for row, decision in enumerate(decisions, 1)
    ]
    objects = ({"row": row} | decision._asdict() for row, decision in enumerate(decisions, 1))
    plain = [decision.label for decision in decisions]
    _write(name, _lines(name, [["row", "label", *classes], *rows], objects, plain), overwrite)


def write_scores(name: str, scores: Sequence[Score], *, overwrite: bool = False) -> None:
    """Write log-probabilities of given texts; to be called on one process.

    The ending of the name says how: `.tsv` and `.jsonl` have `row`, counted from 1, `log_probability` and `tokens`;
    any other file is plain text with the log-probability, line n for row n.

    Args:
        name: The file.
        scores: One of each row.
        overwrite: Whether it may exist.

    Raises:
        InputError: If it exists or cannot be written.
    """
    rows = [[row, *score] for row, score in enumerate(scores, 1)]
    objects = ({"row": row} | score._asdict() for row, score in enumerate(scores, 1))
    plain = [f"{score.log_probability:.6g}" for score in scores]
    _write(name, _lines(name, [["row", *Score._fields], *rows], objects, plain), overwrite)


def _lines(
    name: str, table: Iterable[Sequence[Any]], objects: Iterable[dict[str, Any]], plain: Iterable[str]
) -> Iterable[str]:
    """The lines of a file of the kind that its ending names."""
    suffix = Path(name).suffix.lower()
    if suffix == ".jsonl":
        return (json.dumps(row, ensure_ascii=False) for row in objects)
    if suffix == ".tsv":
        return ("\t".join(map(_field, row)) for row in table)
    return map(in_one_line, plain)


def _field(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else in_one_line(str(value)).replace("\t", " ")


def _write(name: str, lines: Iterable[str], overwrite: bool) -> None:
    """Write lines beside the file and rename, so that it is whole or not there."""
    check_output_file(name, overwrite=overwrite)
    path = Path(name)
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
    """A text with spaces for its line breaks, so that it has a line of a file to itself."""
    return " ".join(text.splitlines())


def write_lines(path: str | os.PathLike, texts: Iterable[str]) -> None:
    """Write texts, a line each; line breaks in them become spaces.

    Args:
        path: of the UTF-8 text file.
        texts: what is written.
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
    """Write the first `n` examples as text: source, reference, prediction, a blank line between examples.

    Args:
        path: of the UTF-8 text file.
        sources: inputs.
        references: what is right, one for each source.
        predictions: what the model gave, one for each source.
        n: how many examples.
    """
    rows = list(zip(sources, references, predictions, strict=True))[:n]
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(
            "\n".join(
                f"source:     {source}\nreference:  {reference}\nprediction: {prediction}\n"
                for source, reference, prediction in rows
            )
        )
