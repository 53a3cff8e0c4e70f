"""The embedded tagged words: the tokens of Python's own standard library, as it is installed, and their kinds."""

from __future__ import annotations

import io
import keyword
import random
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import datasets

from hfseq.data.embedded.docstrings import source_files, standard_library
from hfseq.data.splits import SPLITS, split_of
from hfseq.errors import InputError

# Words of a row.
_WORDS = range(4, 41)
# Of a source that has more lines, every so-many-th counts, so that no source fills the data.
_LINES_A_FILE = 40
_LAYOUT = {tokenize.ENCODING, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def python_token_rows(
    *, train_size: int = 8_000, validation_size: int = 500, test_size: int = 1_000, seed: int = 0
) -> datasets.DatasetDict:
    """Reads lines of source code as words, the tokens, and tags, their kinds.

    The columns are `tokens` and `tags`, lists of strings: for a statement its tokens, 4 to 40, as `tokenize` finds
    them, and for each `NAME`, `OP`, `NUMBER`, `STRING` or `COMMENT`; a name is a `KEYWORD` where it is reserved,
    `CALLED` before a parenthesis, an `ATTRIBUTE` after a point, and `DEFINED` after `def` or `class`. Strings and
    comments are one token each, the white space in them is one space.

    All rows of a source file are in one split, which does not depend on `seed`. The same installation gives the same
    rows in every process.

    Args:
        train_size: Number of rows in `train`.
        validation_size: Number of rows in `validation`.
        test_size: Number of rows in `test`.
        seed: Chooses the rows of each split among those that there are, and their order.

    Raises:
        InputError: A size that cannot be had.
    """
    splits = {}
    for split, size in zip(SPLITS, (train_size, validation_size, test_size), strict=True):
        rows = _rows()[split]
        if not 1 <= size <= len(rows):
            raise InputError(f"{split} size: {size} is not one of 1 to {len(rows)}, the rows there are")
        tokens, tags = zip(*random.Random(f"{seed} {split}").sample(rows, size), strict=True)
        splits[split] = datasets.Dataset.from_dict({"tokens": tokens, "tags": tags})
    return datasets.DatasetDict(splits)


@cache
def _rows() -> dict[str, list[tuple[list[str], list[str]]]]:
    rows: dict[str, list[tuple[list[str], list[str]]]] = {split: [] for split in SPLITS}
    root = standard_library()
    for name in source_files(root):
        lines = list(_lines(root / name))
        rows[split_of(f"tokens/{name}")] += lines[:: -(-len(lines) // _LINES_A_FILE) or 1]
    return rows


def _lines(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Gives the tokens of each statement of a source, and their kinds."""
    try:
        found = list(tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline))
    except (SyntaxError, ValueError):  # a template, or another encoding
        return
    line: list[tokenize.TokenInfo] = []
    for token in found:
        if token.type not in _LAYOUT:
            line.append(token)
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if len(line) in _WORDS:
                yield [" ".join(token.string.split()) for token in line], _kinds(line)
            line = []


def _kinds(line: list[tokenize.TokenInfo]) -> list[str]:
    strings = ["", *(token.string for token in line), ""]
    kinds = []
    for place, token in enumerate(line, 1):
        kind = tokenize.tok_name[token.type]
        if token.type == tokenize.NAME:
            if keyword.iskeyword(token.string):
                kind = "KEYWORD"
            elif strings[place - 1] in ("def", "class"):
                kind = "DEFINED"
            elif strings[place + 1] == "(":
                kind = "CALLED"
            elif strings[place - 1] == ".":
                kind = "ATTRIBUTE"
        kinds.append(kind)
    return kinds
