"""Sentence splitting, and the lead-n baseline of summarization."""

import re
from collections.abc import Iterable

# Sentence-final punctuation with closing quotation marks and brackets; Chinese and Japanese need no space after it.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』）”’]*")
# Abbreviations whose full stop rarely ends a sentence.
_ABBREVIATIONS = frozenset(
    "e.g i.e cf vs al ca approx resp incl fig figs eq eqs sec vol pp mr mrs ms dr prof st jr sr u.s u.k "
    "z.b d.h bzw bsp nr abb vgl".split()
)
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘«]*$")


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences by rules, without a model or a download.

    A sentence ends at a line break, and after ".", "!", "?" or "…" (with closing quotation marks and brackets) before
    a space, unless a lowercase letter follows or the full stop belongs to an initial ("J. Smith") or to a common
    English or German abbreviation ("e.g.", "et al.", "Fig."). "。", "！" and "？" end a sentence anywhere.

    Args:
        text: Any text.

    Returns:
        The sentences without surrounding whitespace; none for a blank text.
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
    """Return the first `n` sentences of each document as its summary.

    Args:
        documents: The documents.
        n: Number of sentences, as `split_sentences` finds them; shorter documents are returned whole.

    Returns:
        One text per document, its sentences joined by spaces.

    Raises:
        ValueError: `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"lead_n: n is {n}; give 1 or more")
    return [" ".join(split_sentences(document)[:n]) for document in documents]
