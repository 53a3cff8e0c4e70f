"""Embedded sessions: the functions that each Python function of the installed sources calls, in order.

The function that is called next is real behaviour of programmers, and regular enough to be learned: a file is opened,
read and closed. The sources are those of the standard library and of packages that hfseq always needs; they are
parsed, never imported. Rows depend on the installed versions: those of the packages are pinned in constraints.txt, but
the standard library changes with each release of Python. The recipe prints how many rows there are.
"""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from functools import cache
from pathlib import Path

from hfseq.data.embedded.docstrings import parsing, standard_library, syntax_trees
from hfseq.data.splits import SPLITS, split_of
from hfseq.lazy import datasets

_STANDARD_LIBRARY = "python"
PACKAGES = (
    *("accelerate", "datasets", "evaluate", "filelock", "fsspec", "huggingface_hub", "httpx", "jinja2", "networkx"),
    *("numpy", "packaging", "safetensors"),
)
"""Packages whose sources are read, besides the standard library: dependencies of hfseq and theirs."""
_LEAST = 3
"""Minimum number of calls of a session."""
_FREQUENT = 5
"""Minimum number of calls of a name in the files of the training split."""
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def function_call_rows() -> datasets.DatasetDict:
    """Read the calls of each function in the installed sources.

    The columns are `user`, the file and the function, `items`, the names of the functions that it calls, in the order
    in which they are called if every line is run once, and `begin`, which is 1: all calls but the first are predicted.
    A name is the last part of what is called: `append` of `self.items.append(1)`. Left out are names that are called
    fewer than five times in the training files, then functions with fewer than three calls, and those that call the
    same functions in the same order as an earlier one, those of the training files being the earliest.

    All functions of a source file are in one split: a tenth of the files are the test, a twentieth validation. The
    same installation gives the same rows in every process.
    """
    rows = _rows()
    features = datasets.Features(
        {
            "user": datasets.Value("string"),
            "items": datasets.List(datasets.Value("string")),
            "begin": datasets.Value("int64"),
        }
    )
    splits = {}
    for split, found in rows.items():
        columns = {"user": [name for name, _ in found], "items": [list(calls) for _, calls in found]}
        splits[split] = datasets.Dataset.from_dict(columns | {"begin": [1] * len(found)}, features=features)
    return datasets.DatasetDict(splits)


@cache
def _rows() -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Read all sessions of each split; takes several seconds, once per process."""
    roots = {_STANDARD_LIBRARY: standard_library()}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots[package] = Path(spec.submodule_search_locations[0])
    return sessions_below(roots)


def sessions_below(roots: dict[str, Path]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Read the sessions of the sources below folders.

    Args:
        roots: Name of a package to its folder.

    Returns:
        For each split, the name and the calls of each session.
    """
    rows: dict[str, list[tuple[str, tuple[str, ...]]]] = {split: [] for split in SPLITS}
    with parsing():
        for package, root in roots.items():
            for name, tree in syntax_trees(root):
                place = f"{package}/{name}"
                rows[split_of(place)] += [(f"{place}:{function}", calls) for function, calls in functions_below(tree)]
    counts = Counter(call for _, calls in rows["train"] for call in calls)
    seen: set[tuple[str, ...]] = set()
    for split, found in rows.items():
        rows[split] = []
        for function, calls in found:
            kept = tuple(call for call in calls if counts[call] >= _FREQUENT)
            if len(kept) >= _LEAST and kept not in seen:
                seen.add(kept)
                rows[split].append((function, kept))
    return rows


def functions_below(tree: ast.Module) -> list[tuple[str, tuple[str, ...]]]:
    """Return the qualified name and the calls of each function of a source, inner ones first.

    The calls of a nested function are its own alone.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    _collect(tree, "", [], found)
    return found


def _collect(node: ast.AST, prefix: str, calls: list[str], found: list[tuple[str, tuple[str, ...]]]) -> None:
    """Append the calls of a node, arguments before the call that they are for, and the functions that it defines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITIONS):
            own: list[str] = []
            name = f"{prefix}{child.name}"
            for statement in child.body:
                # Under a node that is none, so that a function defined here is not taken for a call.
                _collect(ast.Module([statement], []), f"{name}.", own, found)
            if not isinstance(child, ast.ClassDef):
                found.append((name, tuple(own)))
        else:
            _collect(child, prefix, calls, found)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):
            calls.append(node.func.attr)
        elif isinstance(node.func, ast.Name):
            calls.append(node.func.id)
