"""Embedded tagging data: tokens of the installed Python standard library and their lexical classes."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from hfseq.data.embedded.docstrings import source_files, standard_library
from hfseq.data.splits import SPLITS, draw_splits, sample_rows, split_of
from hfseq.lazy import datasets

# Lengths of a row in tokens.
_LENGTHS = range(4, 41)
# Maximum number of rows of one source file, taken at regular intervals.
_MAX_ROWS = 40
_LAYOUT = {tokenize.ENCODING, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def python_token_rows(
    *, train_size: int = 8_000, validation_size: int = 500, test_size: int = 1_000, seed: int = 0
) -> datasets.DatasetDict:
    """Read lines of source code as words, the tokens, with tags, their lexical classes.

    The columns are `tokens` and `tags`, lists of strings: the tokens of a statement, 4 to 40, as `tokenize` finds
    them, and for each `NAME`, `OP`, `NUMBER`, `STRING` or `COMMENT`; a name is a `KEYWORD` if it is reserved, `CALLED`
    before a parenthesis, an `ATTRIBUTE` after a dot, and `DEFINED` after `def` or `class`. Strings and comments are
    one token each, with white space collapsed to single spaces.

    All rows of a source file are in one split, which does not depend on `seed`. The same installation gives the same
    rows in every process.

    Args:
        train_size: Number of rows in `train`.
        validation_size: Number of rows in `validation`.
        test_size: Number of rows in `test`.
        seed: Selects the rows of each split and their order.

    Raises:
        InputError: A size is below 1 or larger than the number of rows there are.
    """
    sizes = (train_size, validation_size, test_size)
    return draw_splits(("tokens", "tags"), sizes, seed, partial(sample_rows, _rows()))


@cache
def _rows() -> dict[str, list[tuple[list[str], list[str]]]]:
    rows: dict[str, list[tuple[list[str], list[str]]]] = {split: [] for split in SPLITS}
    root = standard_library()
    for name in source_files(root):
        lines = list(_lines(root / name))
        rows[split_of(f"tokens/{name}")] += lines[:: -(-len(lines) // _MAX_ROWS) or 1]
    return rows


def _lines(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the tokens of each statement of a source and their tags."""
    try:
        found = list(tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline))
    except (SyntaxError, ValueError):  # a template, or another encoding
        return
    line: list[tokenize.TokenInfo] = []
    for token in found:
        if token.type not in _LAYOUT:
            line.append(token)
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if len(line) in _LENGTHS:
                yield [" ".join(token.string.split()) for token in line], _tags(line)
            line = []


def _tags(line: list[tokenize.TokenInfo]) -> list[str]:
    strings = ["", *(token.string for token in line), ""]
    return [_tag(token, *strings[index : index + 3 : 2]) for index, token in enumerate(line)]


def _tag(token: tokenize.TokenInfo, before: str, after: str) -> str:
    if token.type != tokenize.NAME:
        return tokenize.tok_name[token.type]
    if keyword.iskeyword(token.string):
        return "KEYWORD"
    if before in ("def", "class"):
        return "DEFINED"
    if after == "(":
        return "CALLED"
    return "ATTRIBUTE" if before == "." else "NAME"
