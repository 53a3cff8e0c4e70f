"""The embedded running text: the English documentation of Python's own standard library, as it is installed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pydoc_data.topics import topics

import datasets

from hfseq.data.embedded.docstrings import docstrings_below, parsing, standard_library, syntax_trees
from hfseq.data.splits import SPLITS, split_of


def documentation_rows() -> datasets.DatasetDict:
    """Reads the docstrings of the standard library and the topics of `help()`.

    The column is `text`: one topic of the language reference, or the docstrings of one module with an empty line
    between them. A text has many lines. It is in one split whatever the others are, so the same installation gives the
    same rows in every process; another version of Python has other texts. They are under Python's own licence, and
    none is shipped with hfseq.
    """
    rows: dict[str, list[str]] = {split: [] for split in SPLITS}
    with parsing():
        for name, text in (*sorted(topics.items()), *_modules()):
            rows[split_of(f"documentation/{name}")].append(text.strip())
    return datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": texts}) for split, texts in rows.items()})


def _modules() -> Iterator[tuple[str, str]]:
    """Gives the path of each module and its docstrings, if it has any."""
    for name, tree in syntax_trees(standard_library()):
        docstrings = [ast.get_docstring(tree), *docstrings_below(tree.body)]
        if text := "\n\n".join(filter(None, docstrings)):
            yield name, text
