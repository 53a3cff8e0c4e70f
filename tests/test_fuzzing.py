"""Fuzzing of the readers: any file yields valid rows or a one-line error.

Each test runs over a few examples, the same ones every time. HFSEQ_FUZZ_EXAMPLES=10000 draws as many new ones.
"""

import copy
import csv
import functools
import gzip
import io
import json
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzzing import damaged, fuzz, texts
from hypothesis import given
from hypothesis import strategies as st

from hfseq import LstmConfig, LstmForSequenceClassification
from hfseq.data.labels import encode_labels
from hfseq.data.reading import read_splits
from hfseq.data.running_text import encode_text
from hfseq.data.sentences import lead_n, split_sentences
from hfseq.data.streaming import read_stream
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.word_vectors import load_word_vectors

TEXT, LABEL = "text", "label"


def one_line(error):
    message = str(error)
    assert message and len(message.splitlines()) == 1, message
    return message


# Files of rows


def as_csv(rows):
    stream = io.StringIO()
    csv.writer(stream).writerows([(TEXT, LABEL), *rows])
    return stream.getvalue().encode()


def as_tsv(rows):
    return "".join("\t".join(row) + "\n" for row in [(TEXT, LABEL), *rows]).encode()


def without_ends(value):
    return value.replace("\t", " ").replace("\n", " ").removesuffix("\r")


def as_json(rows):
    return "".join(json.dumps(dict(zip((TEXT, LABEL), row, strict=True))) + "\n" for row in rows).encode()


def as_parquet(rows):
    stream = io.BytesIO()
    columns = list(zip(*rows, strict=True)) or [(), ()]
    pq.write_table(pa.table({TEXT: list(columns[0]), LABEL: list(columns[1])}), stream)
    return stream.getvalue()


def as_conllu(rows):
    def word(form, tag):
        return f"1\t{form}\t_\t{tag}" + "\t_" * 6

    return "".join(word(*row) + "\n\n" * (len(row[0]) % 2 + 1) for row in rows).encode()


def as_conll(rows):
    return "".join(f"{form} {tag}\n" + "\n" * (len(form) % 2) for form, tag in rows).encode()


WRITERS = {
    ".csv": as_csv,
    ".tsv": as_tsv,
    ".jsonl": as_json,
    ".parquet": as_parquet,
    ".conllu": as_conllu,
    ".conll": as_conll,
}
ROWS = st.lists(st.tuples(texts(), st.one_of(st.sampled_from(["x", "y", "1", "-2", ""]), texts(2))), max_size=5)


def outcome(read):
    """Rows, or None if they are rejected with a one-line error."""
    try:
        return read()
    except InputError as error:
        one_line(error)
        return None


def read_both(path, **options):
    """Rows of a file, the same whether read at once or streamed."""
    whole = outcome(lambda: read_splits(train_file=str(path), **options)["train"].to_list())
    valid = {"validation_file": str(path)}
    streamed = outcome(lambda: list(read_stream(train_file=str(path), **valid, **options)["train"]))
    assert whole == streamed
    return whole


def check_rows(rows, columns, label_columns):
    """Check the contract of `read_splits` for the rows that it returns."""
    assert rows
    for row in rows:
        assert list(row) == list(columns)
        for column, value in row.items():
            if isinstance(value, list):
                assert column in label_columns and all(isinstance(one, str | None) for one in value)
            else:
                assert isinstance(value, str) and value.strip()


def options_of(suffix):
    if suffix in (".conllu", ".conll"):
        return {"columns": ("tokens", "tags"), "label_columns": ("tokens", "tags")}
    return {"columns": (TEXT, LABEL), "label_columns": (LABEL,)}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_damaged_file_gives_rows_or_one_line(tmp_path, suffix):
    path, options = tmp_path / f"train{suffix}", options_of(suffix)

    @fuzz(30)
    @given(damaged(ROWS.map(WRITERS[suffix])))
    def check(content):
        path.write_bytes(content)
        rows = read_both(path, **options)
        if rows is not None:
            check_rows(rows, **options)

    check()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_come_back_as_they_were_written(tmp_path, suffix):
    path, options = tmp_path / f"train{suffix}", options_of(suffix)

    @fuzz(30)
    @given(ROWS)
    def check(rows):
        if suffix == ".tsv":
            rows = [tuple(map(without_ends, row)) for row in rows]
        path.write_bytes(WRITERS[suffix](rows))
        found = read_both(path, **options)
        expected = [{TEXT: text, LABEL: label} for text, label in rows if text.strip() and label.strip()]
        assert (found or []) == expected

    check()


def test_aligned_text_files(tmp_path):
    prefix = tmp_path / "train"

    @fuzz(50)
    @given(damaged(st.lists(texts()).map("\n".join).map(str.encode)), st.lists(texts()).map("\n".join), st.booleans())
    def check(source, target, keep_empty):
        target_bytes = target.encode()
        (tmp_path / "train.de").write_bytes(source)
        (tmp_path / "train.en").write_bytes(target_bytes)
        options = {"columns": ("de", "en"), "moses": True, "keep_empty": keep_empty}
        rows = read_both(prefix, **options)
        counts = [content.count(b"\n") + (content[-1:] not in (b"", b"\n")) for content in (source, target_bytes)]
        if rows is not None:
            assert counts[0] == counts[1] >= len(rows)
            assert len(rows) == counts[0] or not keep_empty

    check()


# Values that a JSON file or a table can hold where a class is expected.
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts(2), st.just(10**4000))
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.recursive(SCALARS, st.lists, max_leaves=4))


def test_json_of_any_values(tmp_path):
    path, options = tmp_path / "train.jsonl", options_of(".jsonl")
    row = st.one_of(
        st.fixed_dictionaries({TEXT: texts(), LABEL: VALUES}),
        st.fixed_dictionaries({"translation": st.dictionaries(st.sampled_from([TEXT, LABEL, "more"]), VALUES)}),
        st.dictionaries(st.sampled_from([TEXT, LABEL, ""]), VALUES),
        VALUES,
    )

    @fuzz(50)
    @given(st.lists(row, max_size=4))
    def check(values):
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        rows = read_both(path, **options)
        if rows is not None:
            check_rows(rows, **options)

    check()


ARROW = [
    *(pa.string(), pa.large_string(), pa.binary(), pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float64()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.int64()), pa.date32(), pa.decimal128(5, 2)),
    *(pa.timestamp("s"), pa.float16(), pa.struct({LABEL: pa.string()}), pa.map_(pa.string(), pa.int8())),
    *(pa.struct({TEXT: pa.string(), LABEL: pa.string()}), pa.string_view(), pa.duration("s")),
]


@st.composite
def arrays(draw, length):
    """An Arrow array of a simple type, or of lists of one."""
    kind = draw(st.sampled_from(ARROW))
    lists = draw(st.sampled_from([None, None, pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)]))
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    number = st.integers(0, 100)
    if pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value):
        values = texts(3)
    elif pa.types.is_struct(value):
        values = st.fixed_dictionaries({field.name: st.none() | texts(3) for field in value})
    elif pa.types.is_map(value):
        values = st.just([("a", 1)])
    else:
        values = {pa.bool_(): st.booleans(), pa.binary(): st.binary(max_size=3), pa.null(): st.none()}.get(
            value, number
        )
    size = {"min_size": 2, "max_size": 2} if lists else {}
    values = st.none() | values
    rows = draw(st.lists(st.none() | st.lists(values, **size) if lists else values, min_size=length, max_size=length))
    return pa.array(rows, lists(kind) if lists else kind)


def test_parquet_of_any_types(tmp_path):
    path, options = tmp_path / "train.parquet", options_of(".parquet")

    @fuzz(50)
    @given(st.data(), st.integers(0, 3), st.lists(st.sampled_from([TEXT, LABEL, LABEL, "translation"]), max_size=4))
    def check(data, length, names):
        table = pa.table([data.draw(arrays(length)) for _ in names], names=names)
        try:
            pq.write_table(table, path)
        except (pa.ArrowException, ValueError):  # types and values that Parquet does not have
            return
        rows = read_both(path, **options)
        if rows is not None:
            check_rows(rows, **options)

    check()


# What follows the reading


NAMES = st.one_of(st.sampled_from(["x", "y", "1", "-2", "x|y", "x, y", "|", " "]), texts(2))


def test_classes_are_numbers_of_names(tmp_path):
    path, options = tmp_path / "train.jsonl", options_of(".jsonl")
    value = st.one_of(NAMES, st.integers(-9, 9), st.booleans())

    @fuzz(50)
    @given(
        st.lists(value, min_size=1, max_size=5) | st.lists(st.lists(value, max_size=3), min_size=1, max_size=4), NAMES
    )
    def check(values, separator):
        path.write_text("".join(json.dumps({TEXT: "a", LABEL: value}) + "\n" for value in values))
        splits = outcome(lambda: read_splits(train_file=str(path), **options))
        if splits is None:
            return
        stream = read_stream(train_file=str(path), validation_file=str(path), **options)
        for between in (None, separator or None):
            encoded = outcome(functools.partial(encode_labels, splits, LABEL, separator=between))
            streamed = outcome(functools.partial(encode_labels, stream, LABEL, separator=between))
            assert (encoded is None) == (streamed is None)
            if encoded is None:
                continue
            data, names = encoded
            assert names == streamed[1] and data["train"].to_list() == list(streamed[0]["train"])
            assert len(set(names)) == len(names) and all(name == name.strip() != "" for name in names)
            for row in data["train"]["labels"]:
                assert row in range(len(names)) if isinstance(row, int) else set(row) <= {0.0, 1.0}

    check()


@fuzz(200)
@given(texts(20), st.integers(1, 5))
def test_sentences_are_what_the_text_says(text, n):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)
    assert lead_n([text], n) == [" ".join(sentences[:n])]


RUNNING = train_tokenizer(["good bad Hut the", "Grüße 漢字"], model="character", vocab_size=40)


@fuzz(100)
@given(st.lists(st.none() | texts(), max_size=4), st.booleans())
def test_running_text_has_a_mark_after_each_line(rows, on_disk):
    directory = tempfile.gettempdir() if on_disk else None
    found = outcome(lambda: encode_text(rows, RUNNING, directory))
    lines = [line for row in rows for line in (row or "").split("\n")]
    if found is None:
        assert not rows
        return
    assert (found.ids == RUNNING.eos_token_id).sum() == len(lines)
    assert found.words == len(lines) + sum(len(line.split()) for line in lines)


# Word vectors


WORDS = train_tokenizer(["good bad Hut the Grüße 漢字 , '"] * 2, model="word", vocab_size=40)
PIECES = train_tokenizer(["good bad Hut the Grüße 漢字 , '"] * 2, model="unigram", vocab_size=40)
NUMBERS = st.one_of(
    st.floats(width=32).map(str), st.sampled_from(["1", "-0", "1e5", "1e999", "nan", "1_0", "0x1", "٣", "", "9" * 400])
)


def as_vectors(lines, header):
    first = [f"{len(lines)} {len(lines[0][1]) if lines else 2}"] if header else []
    return "\n".join(first + [" ".join((word, *numbers)) for word, numbers in lines]).encode()


def test_a_file_of_word_vectors_fills_rows_or_changes_nothing(tmp_path):
    path = tmp_path / "vectors.txt"
    config = {
        "hidden_size": 2,
        "embedding_size": 2,
        "bidirectional": False,
        "vocab_size": max(map(len, (WORDS, PIECES))),
    }
    line = st.tuples(texts(3), st.lists(st.sampled_from(["1", "-0.5", "1e5"]), min_size=2, max_size=2))
    odd_line = st.tuples(texts(3), st.lists(NUMBERS, max_size=3))
    whole = st.builds(as_vectors, st.lists(st.one_of(line, line, line, odd_line), max_size=5), st.booleans())

    @fuzz(100)
    @given(whole | damaged(whole), st.sampled_from([None, 0, 5, 20]), st.sampled_from([0, 0, 2]), st.booleans())
    def check(content, cut, add_words, ignore_case):
        path.write_bytes(content if cut is None else gzip.compress(content)[: -cut or None])
        tokenizer = copy.deepcopy(WORDS if add_words or ignore_case else PIECES)
        model = LstmForSequenceClassification(LstmConfig(**config))
        before = model.get_input_embeddings().weight.detach().clone()
        options = {"add_words": add_words, "ignore_case": ignore_case}
        coverage = outcome(lambda: load_word_vectors(model, tokenizer, path, **options))
        after = model.get_input_embeddings().weight.detach()
        if coverage is None:
            assert torch.equal(before, after) and len(tokenizer) == len(WORDS if add_words or ignore_case else PIECES)
            return
        assert coverage.found + coverage.added > 0
        assert torch.isfinite(after).all()
        changed = (after[: len(before)] != before).any(dim=1).sum()
        assert changed <= coverage.found + coverage.added <= len(tokenizer) <= len(after)

    check()
