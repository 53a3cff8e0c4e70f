"""The embedded summaries: what is read from a docstring, by examples, and what the rows of this installation keep."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache

import pytest

from hfseq.data.embedded import docstrings
from hfseq.data.embedded.docstrings import docstring_rows
from hfseq.data.splits import SPLITS
from hfseq.errors import InputError

GOOGLE = """Compute the *cosine similarity* between `x1` and :class:`~torch.Tensor`.

Similarity is computed along one dimension, see [the paper](https://example.org/a_b.pdf) and the text below::

    cos(x, y) = x * y / (|x| |y|)

.. versionadded:: 1.2
    Not in earlier versions of this library.
.. note:: Zero vectors have none.

Args:
    dim (`int` or `tuple(int)`, *optional*): Dimension where cosine
        similarity is computed
    *args (Any): Whatever else is given

Returns:
    `torch.Tensor`: One value for each pair.

Example::

    >>> similarity(a, b)
    the value of this one is not prose

```python
some code that reads like prose in here
```

Afterwards the text goes on."""
NUMPY = """Return the mean of the
elements of an array.

The mean is the sum divided by the number [1]_ of elements.

Parameters
----------
a : array_like, optional
    Array whose elements
    are averaged.
axis : int
    Axis of it.

Returns
-------
out : ndarray
    The mean values of the elements.

See Also
--------
median : The middle of the elements of an array.

Notes
-----
It is rounded in single precision.

>>> mean([1, 2])
1.5 is what comes out of it

Examples
--------
These are some of the most usual examples."""
SPHINX = """"Send" a message to one of the queues.

The message waits there, until a reader of the queue takes it.

:param str message: what is sent to
    the readers
:type message: a string of course, or what becomes one
:param timeout: seconds to wait at most
:raises queue.Full: if nobody reads the queue
:return: the number of messages waiting
:rtype: a number of course

- first it is packed
- then it is sent; see https://example.org/queue.

x = y + 1; z = {a, b}"""


@pytest.mark.parametrize(
    ("docstring", "summary", "document"),
    [
        (
            GOOGLE,
            "Compute the cosine similarity between x1 and torch.Tensor.",
            "Similarity is computed along one dimension, see the paper and the text below. Zero vectors have none. "
            "dim: Dimension where cosine similarity is computed. args: Whatever else is given. "
            "torch.Tensor: One value for each pair. Afterwards the text goes on.",
        ),
        (
            NUMPY,
            "Return the mean of the elements of an array.",
            "The mean is the sum divided by the number of elements. a: Array whose elements are averaged. "
            "axis: Axis of it. out: The mean values of the elements. It is rounded in single precision.",
        ),
        (
            SPHINX,
            '"Send" a message to one of the queues.',
            "The message waits there, until a reader of the queue takes it. message: what is sent to the readers. "
            "timeout: seconds to wait at most. Full: if nobody reads the queue. the number of messages waiting. "
            "first it is packed. then it is sent; see.",
        ),
    ],
    ids=["google", "numpy", "sphinx"],
)
def test_document_and_summary(docstring, summary, document):
    assert docstrings._document_and_summary(docstring) == (document, summary)


BODY = "A reader opens the file, reads it to the end of the text, and closes it again."


@pytest.mark.parametrize(
    ("first", "body"),
    [
        ("Read a file.", ""),
        ("Read a file.", "A file is read."),
        ("Read a file.", " ".join([BODY] * 13)),
        ("Reader.", BODY),
        ("Read a file " + "and another one " * 8, BODY),
        ("Read a file:", BODY),
        ("read(file) reads the file", BODY),
        ("Read a file. :param file: the file", BODY),
        ("Read a file. Args: the file", BODY),
        ("Read f(x) = x_1 + 3 / 7", BODY),
        ("Collect garbage now.", BODY),
        ("Read a file.", f"Read a file. {BODY}"),
        ("Read a file.", "\n".join(">>> " + word for word in BODY.split())),
    ],
)
def test_what_is_no_summary_of_a_document(first, body):
    assert docstrings._document_and_summary(f"Read a file.\n\n{BODY}") == (BODY, "Read a file.")
    assert docstrings._document_and_summary(f"{first}\n\n{body}") == ("", "")


def words(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def runs(text: str) -> set[tuple[str, ...]]:
    return set(zip(*(words(text)[start:] for start in range(4)), strict=False))


LONG = (
    "The writer makes a folder where there is none, and writes the lines of the text one after another. It asks for "
    "nothing, waits until the disk has taken all of it, and tells its caller how long that took and what is left."
)


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        (f"Write a file.\n\n{LONG}", True),
        (f"Reads a 2 files.\n\n{LONG} Of all files.", False),  # the summary, but for an "s" and a digit
        (f"Open a file.\n\n{BODY} It never fails.", False),  # more than half of the document
        ("Open a file.\n\nIt opens the file, reads it to the end and does nothing else with its text.", True),
        (f"Open a file.\n\n{BODY} {LONG}", False),  # a document that has all of the first, in less than half of it
    ],
)
def test_repeated_docstrings_are_one_row(second, kept):
    texts = [("a", "x.py", f"Read a file.\n\n{BODY}"), ("b", "y.py", second)]
    assert all(docstrings._document_and_summary(text)[0] for *_, text in texts)
    found = [row for rows in docstrings._distinct(texts).values() for row in rows]
    assert {kind for *_, kind in found} == ({"a", "b"} if kept else {"a"})


def test_a_source_is_in_one_split():
    found = set()
    for name in "abcdefghijklmnopqrstuvwxyz":
        texts = [("a", f"{name}.py", text) for text in (f"Read a file.\n\n{BODY}", f"Write a file.\n\n{LONG}")]
        ((split, rows),) = [(split, rows) for split, rows in docstrings._distinct(texts).items() if rows]
        assert len(rows) == 2
        found.add(split)
    assert found == set(SPLITS)


SIZES = {"train_size": 2_000, "validation_size": 100, "test_size": 200}


@pytest.fixture(scope="module")
def rows():
    """Of some packages: to parse all takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "_PACKAGES", ["numpy", "accelerate", "huggingface_hub", "datasets"])
        patch.setattr(docstrings, "_rows", cache(docstrings._rows.__wrapped__))
        yield docstring_rows(**SIZES)


def test_columns_and_sizes(rows):
    assert tuple(rows) == SPLITS
    assert [rows[split].num_rows for split in SPLITS] == list(SIZES.values())
    for split in SPLITS:
        assert rows[split].column_names == ["document", "summary", "kind"]
        for row in rows[split]:
            assert 12 <= len(row["document"].split()) <= 200 and 3 <= len(row["summary"].split()) <= 25
            assert not re.search(r"```|https?://\w|\n|  ", row["document"] + row["summary"])
            assert set(words(row["summary"])) and row["summary"].rstrip(".") not in row["document"]
    assert {"python", "numpy", "huggingface_hub"} <= set(rows["test"]["kind"]) <= set(rows["train"]["kind"])


def test_no_document_or_summary_crosses_splits(rows):
    summaries = {split: {" ".join(words(text)) for text in rows[split]["summary"]} for split in SPLITS}
    assert [len(texts) for texts in summaries.values()] == list(SIZES.values())
    known = defaultdict(set)
    for number, document in enumerate(rows["train"]["document"]):
        for run in runs(document):
            known[run].add(number)
    for split in ("validation", "test"):
        assert not summaries[split] & summaries["train"]
        for document in rows[split]["document"]:
            shared = defaultdict(int)
            for run in runs(document):
                for number in known.get(run, ()):
                    shared[number] += 1
            # Half of it was in earlier documents at most, and half of the rest is in any later one.
            assert max(shared.values(), default=0) <= 0.75 * len(runs(document)), document


def test_seed_chooses_rows_but_not_their_split(rows):
    sizes = {"train_size": 800, "validation_size": 100, "test_size": 100}
    first, again, other = (docstring_rows(**sizes, seed=seed) for seed in (0, 0, 1))
    assert {split: first[split].to_dict() for split in SPLITS} == {split: again[split].to_dict() for split in SPLITS}
    assert not set(first["test"]["document"]) == set(other["test"]["document"])
    assert not {*first["test"]["document"], *other["test"]["document"]} & set(rows["train"]["document"])


def test_usual_sizes_are_what_there_is_at_most(monkeypatch):
    """Another installation may have fewer docstrings."""
    made = {split: [(f"{split} {number}", "a summary", "python") for number in range(7)] for split in SPLITS}
    made["test"] *= 200
    monkeypatch.setattr(docstrings, "_rows", lambda: made)
    assert [rows.num_rows for rows in docstring_rows().values()] == [7, 7, 1000]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_size": 10**6}, r"train size: 1000000 is more than the \d+ rows there are"),
        ({"test_size": 0}, "test size: 0 is too few"),
        ({"validation_size": -1}, "validation size: -1 is too few"),
    ],
)
def test_sizes_that_cannot_be_had(sizes, message, rows):
    with pytest.raises(InputError, match=message) as caught:
        docstring_rows(**sizes)
    assert "\n" not in str(caught.value)


def test_same_in_every_process_with_nothing_imported_or_printed(tmp_path, monkeypatch):
    """In a process with other hashes, over some of the sources and a package with traps, with all warnings shown."""
    trap = tmp_path / "trap"
    (trap / "tests").mkdir(parents=True)
    source = 'raise SystemExit("imported")\n\ndef read():\n    """Read a file now.\n\n    {}\n    """\n'
    (trap / "__init__.py").write_text(source.format(BODY) + 'PATTERN = "\\d"\n')
    (trap / "tests" / "test.py").write_text(source.format(BODY[::-1]))
    (trap / "broken.py").write_text("def {{ name }}(:")
    (trap / "latin.py").write_bytes('"""Ü"""'.encode("latin-1"))
    code = """
import gc, json, sys, warnings
from hfseq.data.embedded import docstrings
docstrings._PACKAGES = ("babel", "trap", "no_such_package")
docstrings.standard_library = (lambda folder: lambda: folder / "email")(docstrings.standard_library())
warnings.simplefilter("always")
before = set(sys.modules)
rows = docstrings._rows()
assert gc.isenabled()
assert not [name for name in set(sys.modules) - before if name.partition(".")[0] in ("trap", "babel", "idlelib")]
print(json.dumps(rows))
"""
    env = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(tmp_path)}
    assert os.environ.get("PYTHONHASHSEED") != "1"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docstrings, "_PACKAGES", ("babel", "trap", "no_such_package"))
    email = docstrings.standard_library() / "email"
    monkeypatch.setattr(docstrings, "standard_library", lambda: email)
    assert found == json.loads(json.dumps(docstrings._rows.__wrapped__()))
    assert [row for rows in found.values() for row in rows if row[2] == "trap"] == [[BODY, "Read a file now.", "trap"]]
    assert {row[2] for rows in found.values() for row in rows} == {"python", "babel", "trap"}
