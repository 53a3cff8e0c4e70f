"""Embedded summaries: docstrings of the standard library and of the packages that hfseq depends on.

The first paragraph of a docstring summarizes the rest in one line, so body and first line are a document and its
summary, written as such by people. This is developers' English, not news: a score here says little about other texts.
The docstrings are read from the user's own installation, by parsing the sources and never by importing them; each text
is under the licence of its package, and none is distributed with hfseq.
"""

from __future__ import annotations

import ast
import gc
import importlib.util
import re
import sysconfig
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from hfseq.data.embedded.tables import load_table
from hfseq.data.splits import SPLITS, draw_splits, sample_rows, split_of
from hfseq.lazy import datasets

_DATA = load_table("docstrings.json")
# Dependencies of hfseq and theirs. Of similar docstrings the one of the earlier package is kept.
_PACKAGES: list[str] = _DATA["packages"]
_STANDARD_LIBRARY = "python"
_DEFAULT_SIZES = {"train": 9_000, "validation": 500, "test": 1_000}
# Skipped folders; the models of transformers are a quarter of all sources and mostly repeat their docstrings.
_SKIPPED = {"test", "tests", "site-packages", "dist-packages", "_vendor", "models"}

_SUMMARY_WORDS = range(3, 26)
_DOCUMENT_WORDS = range(12, 201)
# Minimum share of the summary's content words that occur in the document, which else would not support the summary.
_MIN_OVERLAP = 0.25
# Maximum share of a document's 4-grams that occur in earlier documents; and of the 4-grams that one of these was first
# to contain, the maximum share that the document repeats.
_MAX_REPEATED = 0.5
# Minimum share of plain English words in a text.
_MIN_PLAIN = 0.65

# Sections that are not prose, and sections of which only the heading is removed.
_CODE_SECTIONS, _TEXT_SECTIONS = set(_DATA["code_sections"]), set(_DATA["text_sections"])
_UNDERLINE = re.compile(r"([=~^\"'`*#+-])\1{2,}")
_DIRECTIVE = re.compile(r"\.\. (?:(\w+)::)?(.*)")
_ADMONITIONS = {"note", "warning", "important", "caution", "attention", "hint", "tip"}
# ":param int size: how many" → "size", "how many".
_FIELD = re.compile(
    r":(param|parameter|arg|argument|key|keyword|raises?|returns?|yields?|ivar|cvar|var|type|rtype|vartype)"
    r"(?: [^:]*?(\w+))?:\s*(.*)"
)
# "size (`int`, *optional*): how many", "size: how many" → "size", "how many".
_ARGUMENT = re.compile(r"[`*'\"]*([\w.]+)[`'\"]*(?:\s*\(.*\))?\s*:(?:\s+(.*))?")
# Not a sentence, or one that continues in the body, or with fields or sections in its paragraph.
_NO_SUMMARY = re.compile(r"^[^A-Z\"']|[:,;]$|(?:^|\s)[:@]\w|\b(?:Args|Arguments|Parameters|Returns?|Raises):")
_BULLET = re.compile(r"(?:[-*+•]|\d[.)]|\(\w\))\s+(.*)")

# In this order: roles, links, code, emphasis, URLs, footnote numbers.
_MARKUP = (
    (re.compile(r":[\w:]+:`[~!.]?([^`<]*?)(?:\s*<[^>]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`_+"), r"\1"),
    (re.compile(r"\[`?[~.]?([^\]`]+)`?\]\([^)]*\)|\[`[~.]?([^`]*)`\]"), r"\1\2"),
    (re.compile(r"`+([^`]*)`+_?"), r"\1"),
    (re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*]*[^*\s])\*{1,2}(?!\w)"), r"\1"),
    (re.compile(r"\s*<?https?://[^\s>)]*[^\s>).,]>?"), ""),
    (re.compile(r"\s*\[\d+\]_?"), ""),
)
_WORD = re.compile(r"[a-z]+")
_PLAIN_WORD = re.compile(r"[(\"']*[A-Za-z][a-z]*(?:[-'/][A-Za-z]+)*[)\"']*[.,;:!?]*[)\"']*")


def docstring_rows(
    *,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Read documents and their summaries from the docstrings of the installed sources.

    The columns are `document`, `summary` and `kind`, the package ("python" for the standard library).

    - `summary` is the docstring's first paragraph, 3 to 25 words.
    - `document` is the rest, 12 to 200 words on one line: paragraphs, lists, and the descriptions of arguments,
      results and errors ("dim: Dimension where the similarity is computed."). Headings, examples, code, tables,
      formulas, argument types, references and markup are removed.

    Rows are filtered in two ways. At least a quarter of the summary's content words (by their first five letters)
    occur in the document, since many first lines name what the body never mentions. And there is little repetition:
    no two rows have the same summary, disregarding plurals and digits; at least half of a document's 4-grams occur in
    no earlier document, and at most half of its new ones recur in any later one. Functions that share most of their
    docstring are one row.

    All rows of one source file are in one split, which does not depend on `seed`. Rows, and so all scores, depend on
    the installed versions: the same installation gives the same rows in every process.

    Args:
        train_size: Number of rows in `train`; None for 9,000, or for all if the installed versions have fewer.
        validation_size: Number of rows in `validation`; None for at most 500.
        test_size: Number of rows in `test`; None for at most 1,000.
        seed: Selects the rows of each split and their order.

    Raises:
        InputError: A size is below 1 or larger than the number of rows there are.
    """
    rows = _rows()
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    chosen = [min(_DEFAULT_SIZES[split], len(rows[split])) if size is None else size for split, size in sizes.items()]
    return draw_splits(("document", "summary", "kind"), chosen, seed, partial(sample_rows, rows))


@cache
def _rows() -> dict[str, list[tuple[str, str, str]]]:
    """Read all rows (document, summary, kind) of each split; takes many seconds, once per process."""
    with parsing():
        return _distinct(_docstrings())


@contextmanager
def parsing() -> Iterator[None]:
    """Speed up parsing, and silence warnings about invalid escapes in the sources."""
    # Garbage collection among millions of nodes without cycles would take longer than everything else.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        if collecting:
            gc.enable()


def _distinct(docstrings: Iterable[tuple[str, str, str]]) -> dict[str, list[tuple[str, str, str]]]:
    """Make rows of docstrings (kind, path, text), leaving out those that repeat an earlier one."""
    rows: dict[str, list[tuple[str, str, str]]] = {split: [] for split in SPLITS}
    summaries: set[str] = set()
    # Hashed 4-gram to the number of the first document with it; how many each document was first to contain.
    first: dict[int, int] = {}
    new: list[int] = []
    for kind, name, docstring in docstrings:
        document, summary = _document_and_summary(docstring)
        if not document:
            continue
        key = " ".join(word.rstrip("s") for word in _WORD.findall(summary.lower()))
        words = _WORD.findall(document.lower())
        own = {zlib.crc32(" ".join(words[i : i + 4]).encode()) for i in range(len(words) - 3)}
        repeated = Counter(first[run] for run in own if run in first)
        if (
            key in summaries
            or repeated.total() > _MAX_REPEATED * len(own)
            or any(count > _MAX_REPEATED * new[number] for number, count in repeated.items())
        ):
            continue
        summaries.add(key)
        first |= {run: len(new) for run in own if run not in first}
        new.append(len(own) - repeated.total())
        rows[split_of(f"{kind}/{name}")].append((document, summary, kind))
    return rows


def _docstrings() -> Iterator[tuple[str, str, str]]:
    """Parse the sources in order and yield kind, path in the package and each docstring."""
    roots = {_STANDARD_LIBRARY: standard_library()}
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots[package] = Path(spec.submodule_search_locations[0])
    for kind, root in roots.items():
        for name, tree in syntax_trees(root):
            for docstring in docstrings_below(tree.body):
                yield kind, name, docstring


def standard_library() -> Path:
    """Return the folder of the standard library's sources."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(root: Path) -> list[str]:
    """Return the sorted relative paths of the Python sources below a folder, without tests."""
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    return sorted(name.as_posix() for name in names if _SKIPPED.isdisjoint(name.parts))


def syntax_trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Parse the sources below a folder and yield their relative paths, sorted, and syntax trees."""
    for name in source_files(root):
        try:
            yield name, ast.parse((root / name).read_text("utf-8"))
        except (SyntaxError, ValueError):  # a template, or another encoding
            continue


def docstrings_below(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the docstrings of the classes and functions in `body` in order, nested ones included."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
            yield from docstrings_below(node.body)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from docstrings_below(node.body)


def _document_and_summary(docstring: str) -> tuple[str, str]:
    """Return a docstring's cleaned body and first paragraph; two empty texts if they are no document and summary."""
    first, *rest = re.split(r"\n[ \t]*\n", docstring, maxsplit=1)
    summary = _unmarked(first)
    if not rest or len(summary.split()) not in _SUMMARY_WORDS or not _is_prose(summary) or _NO_SUMMARY.search(summary):
        return "", ""
    paragraphs = [text for text in map(_unmarked, _paragraphs(rest[0])) if _is_prose(text)]
    document = " ".join(text if text[-1] in ".!?" else f"{text.rstrip(':;, ')}." for text in paragraphs)
    content = {word[:5] for word in _WORD.findall(summary.lower()) if len(word) > 3}
    known = {word[:5] for word in _WORD.findall(document.lower())}
    if (
        len(document.split()) not in _DOCUMENT_WORDS
        or len(content & known) < max(_MIN_OVERLAP * len(content), 1)
        # The document contains the summary verbatim.
        or summary.rstrip(".") in document
    ):
        return "", ""
    return document, summary


def _paragraphs(body: str) -> list[str]:
    """Split the body of a docstring, in Google, NumPy or Sphinx style, into paragraphs and items.

    Headings, the sections of `_CODE_SECTIONS`, code, doctests, directives other than admonitions, and types are left
    out.
    """
    paragraphs: list[list[str]] = [[]]
    lines = body.splitlines()
    # Lines indented more than this are code, or belong to a skipped directive or section.
    hidden: int | None = None
    hidden_section = fenced = prompted = underline = False
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        text = line.strip()
        indent = _indent(line)
        heading = text.strip("#*: ").lower()
        # Beginning of the next paragraph.
        start = ""
        if hidden is not None and text and indent <= hidden:
            hidden = None
        if text.startswith("```"):
            fenced = not fenced
        elif not text:
            prompted = False
        elif fenced:
            continue
        elif underline:
            underline = False
        elif _UNDERLINE.fullmatch(following.strip()):
            underline, hidden_section = True, heading in _CODE_SECTIONS
        elif prompted or hidden_section or hidden is not None:
            continue
        elif text.startswith(">>>"):
            prompted = True
        elif text.endswith(":") and heading in _CODE_SECTIONS | _TEXT_SECTIONS:
            hidden = indent if heading in _CODE_SECTIONS else None
        elif found := _DIRECTIVE.fullmatch(text):
            start, hidden = (found[2], None) if found[1] in _ADMONITIONS else ("", indent)
        elif found := _FIELD.fullmatch(text):
            name, description = found[2], found[3]
            shown = f"{name}: {description}" if name else description
            start, hidden = ("", indent) if found[1].endswith("type") else (shown, None)
        else:
            if text.endswith("::"):
                text, hidden = text[:-1], indent
            if found := _BULLET.fullmatch(text):
                text = found[1]
                paragraphs.append([])
            if found := _ARGUMENT.fullmatch(text):
                # NumPy style has the type here and the description below.
                typed = " : " in text and _indent(following) > indent
                text = f"{found[1]}: {'' if typed else found[2] or ''}"
                paragraphs.append([])
            paragraphs[-1].append(text)
            continue
        paragraphs.append([start])
    return [" ".join(paragraph) for paragraph in paragraphs]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _unmarked(text: str) -> str:
    """Remove markup from a text and join its lines."""
    if any(mark in text for mark in "`*[/"):
        for pattern, replacement in _MARKUP:
            text = pattern.sub(replacement, text)
    return " ".join(text.split())


def _is_prose(text: str) -> bool:
    """Return whether a text consists mostly of English words rather than names, numbers or formulas."""
    words = text.split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    return plain >= max(3, _MIN_PLAIN * len(words))
