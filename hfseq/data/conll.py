"""Files with one annotated word per line: CoNLL-U and the formats of earlier CoNLL shared tasks."""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from hfseq.errors import InputError

logger = logging.getLogger(__name__)

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""Columns of CoNLL-U."""
SUFFIXES = (".conllu", ".conll")


def conll_rows(
    read: Callable[[], Iterable[str]],
    path: Path,
    source: str,
    columns: Sequence[str],
    column_names: Sequence[str] | None,
) -> Iterator[list[list[str]]]:
    r"""Yield the sentences of a file, which are separated by empty lines.

    - `.conllu`: ten tab-separated columns, `CONLLU` by name. `tokens` is an alias of `form`, `tags` of `upos`.
      Multiword tokens (`3-4`), empty nodes (`5.1`) and comments are skipped.
    - `.conll`: columns named by `column_names`, separated by tabs, or by spaces in a line without tabs. No other white
      space separates columns: a no-break or ideographic space may be a word. Without names the words are the first
      column and the tags the last one, as in CoNLL-2003. `-DOCSTART-` lines end a sentence and are skipped, as are
      comments.

    A comment of a `.conll` file begins with `#` and precedes the first word of a sentence, but some words begin with
    `#`, too. A line with more than one column but not as many as words have is a comment (`# text = Oh .`, `#begin
    document (a); part 0`). One with as many is a word, unless a space follows `#` and the tag column contains neither
    `#`, a tag of the Penn Treebank, nor a tag that occurs elsewhere in the file, on a line that does not begin with
    `#` or a sentence. So `# id 5f2e domain=en` is a comment and `# O`, `# # O`, `#\tSYM` and `#tag HT` are words. A
    warning of this module's logger counts the ambiguous comments: those with as many columns as words, and those
    without a space after `#`.

    Args:
        read: Returns the lines of the file from the beginning, each time it is called.
        path: Path of the file, for errors.
        source: Path with its flag, for errors.
        columns: Names of the columns to keep, the words first.
        column_names: Names of the columns of a `.conll` file.

    Yields:
        For each sentence a list of strings for each of `columns`, one string per word.

    Raises:
        InputError: A column is missing, a line has another number of columns, or a tag contains a space.
    """
    universal = path.suffix.lower() == ".conllu"
    indices = _indices(source, columns, CONLLU if universal else column_names, universal)
    expected = len(CONLLU) if universal else len(column_names) if column_names else None
    tags: set[str] | None = None
    comments: list[int] = []
    words: list[list[str]] = []
    # The empty line after the last one ends the last sentence.
    for number, line in enumerate(itertools.chain(read(), [""]), 1):
        text = line.rstrip("\r\n")
        if _ends_sentence(text):
            if words:
                yield [list(values) for values in zip(*words, strict=True)]
            words = []
            continue
        fields = text.split("\t") if universal else _columns(text)
        if universal and (text.startswith("#") or (not fields[0].isdecimal() and len(fields) == expected)):
            continue
        if not universal and text.startswith("#") and not words:
            if tags is None:
                expected, tags = _survey(read(), expected, indices[-1])
            as_long = len(fields) == expected
            is_word = as_long and (not text.startswith("# ") or fields[indices[-1]] in tags)
            if expected is not None and len(fields) > 1 and not is_word:
                if as_long or not text.startswith("# "):
                    comments.append(number)
                continue
        expected = expected or len(fields)
        if len(fields) != expected or expected < 2:
            raise InputError(f"{path}:{number}: {len(fields)} columns, not {max(2, expected)}")
        words.append([fields[index] for index in indices])
        spaced = next((value for value in words[-1][1:] if " " in value), None)
        if spaced is not None and not universal:
            raise InputError(
                f"{path}:{number}: {spaced!r} has a space in it; separate columns by tabs or by spaces, not by both"
            )
    if comments:
        count, many = len(comments), "s" * (len(comments) > 1)
        logger.warning(
            "%s: %d line%s with '#' taken for comment%s, first line %d", path, count, many, many, comments[0]
        )


def _ends_sentence(text: str) -> bool:
    """Return whether a line is empty, consists of white space that separates no columns, or begins a document."""
    first = re.split("[ \t]", text.strip(" \t"), maxsplit=1)[0]
    return first in ("", "-DOCSTART-") or ("\t" not in text and text.isspace())


def _columns(text: str) -> list[str]:
    """Split a line that is not CoNLL-U into columns without surrounding spaces; a space alone may be a word."""
    if "\t" not in text:
        return re.split(" +", text.strip(" "))
    return [field.strip(" ") or field for field in re.split("\t+", text.strip("\t"))]


def _survey(lines: Iterable[str], expected: int | None, index: int) -> tuple[int | None, set[str]]:
    """Return the number of columns of word lines, None if there are none, and their unambiguous tags and `#`."""
    tags = {"#"}
    inside = False
    for line in lines:
        text = line.rstrip("\r\n")
        if _ends_sentence(text):
            inside = False
        elif inside or not text.startswith("#"):
            inside, fields = True, _columns(text)
            expected = expected or len(fields)
            if len(fields) == expected:
                tags.add(fields[index])
    return expected, tags


def _indices(source: str, columns: Sequence[str], names: Sequence[str] | None, universal: bool) -> list[int]:
    """Return the indices of the columns; -1 is the last one."""
    if names is None:
        if len(columns) != 2:
            raise InputError(f"{source}: name its columns with --column_names")
        return [0, -1]
    other = {"tokens": "form", "tags": "upos"} if universal else {}
    for column in columns:
        if column not in names and other.get(column) not in names:
            raise InputError(f"{source}: no column {column!r}; there are {', '.join(names)}")
    return [list(names).index(column if column in names else other[column]) for column in columns]
