"""Docstrings begin with a noun phrase or a verb, as the field writes them."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("hfseq", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
QUESTIONS = ("What", "Which", "Whether", "How")


def docstrings(path):
    """Names and docstrings of a module, its classes and functions, and of variables with one below them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield getattr(node, "name", path.name), ast.get_docstring(node) or ""
        for first, second in pairwise(node.body):
            below = isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
            if isinstance(first, ast.Assign | ast.AnnAssign) and below and isinstance(second.value.value, str):
                yield ast.unparse(first).partition("=")[0], second.value.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_is_an_indirect_question(path):
    found = [name for name, text in docstrings(path) if text.split(maxsplit=1)[:1] and text.split()[0] in QUESTIONS]
    assert found == []


def test_the_walk_finds_docstrings():
    named = dict(docstrings(ROOT / "hfseq" / "tasks" / "base.py"))
    assert {"base.py", "Task", "read"} <= named.keys() and any("columns" in name for name in named)
