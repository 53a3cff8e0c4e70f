"""Embedded running text: the English documentation of the installed Python standard library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pydoc_data.topics import topics

from hfseq.data.embedded.docstrings import docstrings_below, parsing, standard_library, syntax_trees
from hfseq.data.splits import SPLITS, split_of
from hfseq.lazy import datasets


def documentation_rows() -> datasets.DatasetDict:
    """Read the docstrings of the standard library and the topics of `help()`.

    The only column is `text`: one topic of the language reference, or the docstrings of one module separated by empty
    lines. A text has many lines. Its split does not depend on other texts, so the same installation gives the same
    rows in every process; other versions of Python have other texts. They are under Python's own licence, and none is
    distributed with hfseq.
    """
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    with parsing():
        for name, text in (*sorted(topics.items()), *_modules()):
            rows[split_of(f"documentation/{name}")].append(text.strip())
    return datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": texts}) for split, texts in rows.items()})


def _modules() -> Iterator[tuple[str, str]]:
    """Yield the path and the docstrings of each module that has any."""
    for name, tree in syntax_trees(standard_library()):
        docstrings = [ast.get_docstring(tree), *docstrings_below(tree.body)]
        if text := "\n\n".join(filter(None, docstrings)):
            yield name, text
