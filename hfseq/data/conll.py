"""Files of annotated words, a word a line: CoNLL-U, and the formats of the earlier CoNLL tasks."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from .errors import InputError

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""Columns of CoNLL-U."""
SUFFIXES = (".conllu", ".conll")


def conll_rows(
    lines: Iterable[str], path: Path, source: str, columns: Sequence[str], column_names: Sequence[str] | None
) -> Iterator[list[list[str]]]:
    """The sentences of a file; empty lines stand between them.

    - `.conllu`: ten columns with tabs between them, `CONLLU` by name. `tokens` stands for `form`, `tags` for `upos`.
      Lines of several words as one (`3-4`), of words that are not written (`5.1`) and comments are left out.
    - `.conll`: columns with white space between them, which `column_names` names. Without names the words are the
      first column, what is learnt the last one, as in CoNLL-2003. Lines of `-DOCSTART-` are left out.

    Args:
        lines: Of the file.
        path: The file, for errors.
        source: Names it with its flag.
        columns: What is wanted, by name.
        column_names: The columns of a `.conll` file.

    Returns:
        For each sentence a list of strings for each of `columns`, one string a word.

    Raises:
        InputError: A column that there is not, or a line with another number of columns.
    """
    universal = path.suffix.lower() == ".conllu"
    places = _places(source, columns, CONLLU if universal else column_names, universal)
    expected = len(CONLLU) if universal else len(column_names) if column_names else None
    words: list[list[str]] = []
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip():
            if words:
                yield [list(values) for values in zip(*words, strict=True)]
            words = []
            continue
        if universal and text.startswith("#"):
            continue
        fields = text.split("\t") if universal else text.split()
        if not universal and fields[0] == "-DOCSTART-":
            continue
        if universal and not fields[0].isdecimal() and len(fields) == expected:
            continue
        if expected is None:
            expected = len(fields)
        if len(fields) != expected or expected < 2:
            raise InputError(f"{path}:{number}: {len(fields)} columns, not {max(2, expected)}")
        words.append([fields[place] for place in places])
    if words:
        yield [list(values) for values in zip(*words, strict=True)]


def _places(source: str, columns: Sequence[str], names: Sequence[str] | None, universal: bool) -> list[int]:
    """Numbers of the columns; -1 is the last one."""
    if names is None:
        if len(columns) != 2:
            raise InputError(f"{source}: name its columns with --column_names")
        return [0, -1]
    other = {"tokens": "form", "tags": "upos"} if universal else {}
    for column in columns:
        if column not in names and other.get(column) not in names:
            raise InputError(f"{source}: no column {column!r}; there are {', '.join(names)}")
    return [list(names).index(column if column in names else other[column]) for column in columns]
