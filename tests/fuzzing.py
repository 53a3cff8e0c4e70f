"""What the fuzzing tests share: how many examples, texts that go wrong somewhere, and damaged files."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("HFSEQ_FUZZ_EXAMPLES", "0"))


def fuzz(examples):
    """The same `examples` in each run of the tests; as many others as HFSEQ_FUZZ_EXAMPLES says, if it is set."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# What some program along the way may take for an end, a separator, a number, white space or nothing.
ODD = (
    *("\x00", "\r", "\n", "\r\n", "\t", " ", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u3000"),
    *("\ufeff", "\u200b", "\u200f", "\u0301", "\ufffe", "\U0010ffff", "\U0001f469\u200d\U0001f680", "▁", "İ", "ß"),
    *(",", ";", '"', '""', "'", "\\", "\\ud83d", "{", "}", "[", "]", "#", "-DOCSTART-", "</s>", "<unk>", "%s", "_"),
    *("nan", "NaN", "inf", "1e999", "-0", "1_0", "0x1", "٣", "²", "null", "true", "9" * 20),
)
# Longer than what Python takes for a number, and than a field that its csv module reads unless it is told to.
LONG = {"a long number": "9" * 5000, "a long word": "x" * 140_000}


def texts(max_size=8):
    """Words, anything in Unicode, `ODD` and `LONG`, in a row; no halves of surrogate pairs, which no file can hold."""
    words = st.sampled_from(["good", "bad", "Hut", "the", "漢字", "Grüße"])
    anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    odd = st.sampled_from([*ODD, *LONG]).map(lambda name: LONG.get(name, name))
    return st.lists(st.one_of(words, words, anything, odd), max_size=max_size).map("".join)


def damaged(whole):
    """Draws from `whole`, bytes, as they are or with a few places changed, cut off, or in another encoding."""
    chunk = st.one_of(st.binary(max_size=4), st.sampled_from([odd.encode() for odd in ODD]))
    change = st.tuples(st.floats(0, 1), st.integers(0, 12), chunk)
    return st.builds(_damage, whole, st.lists(change, max_size=3), st.sampled_from(list(_AFTERWARDS)))


def _damage(content, changes, afterwards):
    for place, removed, chunk in changes:
        start = int(place * len(content))
        content = content[:start] + chunk + content[start + removed :]
    return _AFTERWARDS[afterwards](content)


_AFTERWARDS = {
    "as it is": lambda content: content,
    "with a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "lines of Windows": lambda content: content.replace(b"\n", b"\r\n"),
    "lines of old Macs": lambda content: content.replace(b"\n", b"\r"),
    "in UTF-16": lambda content: content.decode(errors="replace").encode("utf-16"),
    "cut off": lambda content: content[: len(content) * 2 // 3],
    "nothing": lambda content: b"",
}
