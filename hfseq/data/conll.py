"""Files of annotated words, a word a line: CoNLL-U, and the formats of the earlier CoNLL tasks."""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
    r"""The sentences of a file; empty lines stand between them.

    - `.conllu`: ten columns with tabs between them, `CONLLU` by name. `tokens` stands for `form`, `tags` for `upos`.
      Lines of several words as one (`3-4`), of words that are not written (`5.1`) and comments are left out.
    - `.conll`: columns with tabs between them, or in a line without a tab with spaces, which `column_names` names. No
      other white space ends a column: a no-break or ideographic space may be a word. Without names the words are the
      first column, what is learnt the last one, as in CoNLL-2003. Lines of `-DOCSTART-` end a sentence and are left
      out, and so are comments.

    A comment of a `.conll` file begins with `#` and stands before the first word of a sentence. Some words begin so,
    too. A line is a comment if it has more than one column but not as many as words have (`# text = Oh .`, `#begin
    document (a); part 0`). One with as many is that of a word, unless a space follows `#`, and where the tag would be
    stands neither `#`, the tag of the Penn Treebank, nor a tag that the file has elsewhere, on a line that does not
    begin with `#` or a sentence. So `# id 5f2e domain=en` is a comment and `# O`, `# # O`, `#\tSYM` and `#tag HT` are
    words. A warning of this module's logger counts the comments that could be mistaken: those with as many columns as
    words, and those without a space after `#`.

    Args:
        read: Gives the lines of the file, each time from the beginning.
        path: The file, for errors.
        source: Names it with its flag.
        columns: What is wanted, by name, the words first.
        column_names: The columns of a `.conll` file.

    Returns:
        For each sentence a list of strings for each of `columns`, one string a word.

    Raises:
        InputError: A column that there is not, a line with another number of columns, or a tag with a space in it.
    """
    universal = path.suffix.lower() == ".conllu"
    places = _places(source, columns, CONLLU if universal else column_names, universal)
    expected = len(CONLLU) if universal else len(column_names) if column_names else None
    tags: set[str] | None = None
    comments: list[int] = []
    words: list[list[str]] = []
    for number, line in enumerate(read(), 1):
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
                expected, tags = _survey(read(), expected, places[-1])
            if expected is not None and len(fields) > 1 and _is_comment(text, fields, expected, places[-1], tags):
                if len(fields) == expected or not text.startswith("# "):
                    comments.append(number)
                continue
        if expected is None:
            expected = len(fields)
        if len(fields) != expected or expected < 2:
            raise InputError(f"{path}:{number}: {len(fields)} columns, not {max(2, expected)}")
        words.append([fields[place] for place in places])
        spaced = next((value for value in words[-1][1:] if " " in value), None)
        if spaced is not None and not universal:
            raise InputError(
                f"{path}:{number}: {spaced!r} has a space in it; separate columns by tabs or by spaces, not by both"
            )
    if words:
        yield [list(values) for values in zip(*words, strict=True)]
    if comments:
        count, many = len(comments), "s" * (len(comments) > 1)
        logger.warning(
            "%s: %d line%s with '#' taken for comment%s, first line %d", path, count, many, many, comments[0]
        )


def _ends_sentence(text: str) -> bool:
    """Return whether a line is empty, of white space that separates no columns, or the beginning of a document."""
    first = re.split("[ \t]", text.strip(" \t"), maxsplit=1)[0]
    return first in ("", "-DOCSTART-") or ("\t" not in text and text.isspace())


def _columns(text: str) -> list[str]:
    """The columns of a line that is not CoNLL-U; spaces around them do not count, but a space may be a word."""
    if "\t" not in text:
        return re.split(" +", text.strip(" "))
    return [field.strip(" ") or field for field in re.split("\t+", text.strip("\t"))]


def _is_comment(text: str, fields: Sequence[str], expected: int, place: int, tags: Collection[str]) -> bool:
    """Return whether a line that begins with `#`, and a sentence, is a comment; see `conll_rows`."""
    if len(fields) != expected:
        return True
    return text.startswith("# ") and fields[place] != "#" and fields[place] not in tags


def _survey(lines: Iterable[str], expected: int | None, place: int) -> tuple[int | None, set[str]]:
    """Find the number of columns of the lines of words, None if there are none, and the tags of the certain ones."""
    tags: set[str] = set()
    inside = False
    for line in lines:
        text = line.rstrip("\r\n")
        if _ends_sentence(text):
            inside = False
        elif inside or not text.startswith("#"):
            inside, fields = True, _columns(text)
            expected = expected or len(fields)
            if len(fields) == expected:
                tags.add(fields[place])
    return expected, tags


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
