"""Sentences of a text, and the summary that any model must beat: the first of them."""

import re
from collections.abc import Iterable

# A full stop with what closes a quotation or a bracket; those of Chinese and Japanese need no space after them.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』）”’]*")
# What stands before a full stop that seldom ends a sentence.
_ABBREVIATIONS = frozenset(
    "e.g i.e cf vs al ca approx resp incl fig figs eq eqs sec vol pp mr mrs ms dr prof st jr sr u.s u.k "
    "z.b d.h bzw bsp nr abb vgl".split()
)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]*$")


def split_sentences(text: str) -> list[str]:
    """Splits a text into its sentences, by rules: no model, no download, the same everywhere.

    A sentence ends at a line break, and after ".", "!", "?" or "…" (and quotation marks and brackets that close there)
    before a space, unless a small letter follows, or the full stop belongs to an initial ("J. Smith") or to a usual
    English or German abbreviation ("e.g.", "et al.", "Fig."). "。", "！" and "？" end one anywhere.

    Args:
        text: Any text.

    Returns:
        The sentences, without the spaces around them; none for a text of nothing but spaces.
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            following = line[end.end() :].lstrip()
            word = _LAST_WORD.search(line[start : end.start()])[0]  # type: ignore[index]
            initial = len(word) == 1 and word.isupper() and word != "I"
            abbreviated = end[0].startswith(".") and (initial or word.lower() in _ABBREVIATIONS)
            if line[end.start()] in "。！？" or not (following[:1].islower() or abbreviated):
                sentences.append(line[start : end.end()])
                start = end.end()
        sentences.append(line[start:])
    return [sentence.strip() for sentence in sentences if sentence.strip()]


def lead_n(documents: Iterable[str], n: int) -> list[str]:
    """Takes the first sentences of each document as its summary.

    Args:
        documents: One text a row.
        n: How many sentences of each, as `split_sentences` finds them; a shorter document is taken whole.

    Returns:
        One text a document, its sentences joined by spaces.

    Raises:
        ValueError: `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"lead_n: n is {n}; give 1 or more")
    return [" ".join(split_sentences(document)[:n]) for document in documents]
