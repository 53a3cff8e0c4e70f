import json
import logging
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfseq.data.reading import Columns, file_rows, read_splits
from hfseq.data.streaming import read_stream
from hfseq.errors import InputError
from hfseq.inference.files import read_texts

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
ROWS = [("Ein Hut.", "A hat."), ('Er sagt "ja", ja', 'He says "yes", yes'), ("Grüße 🙂", "Greetings 🙂")]
DICTS = [dict(zip(("de", "en"), row, strict=True)) for row in ROWS]


def read(path, *, columns=("de", "en"), split="train", **options):
    return read_splits(columns=columns, **{f"{split}_file": str(path)}, **options)[split]


def rows(dataset):
    return [tuple(row.values()) for row in dataset]


def error(path, **options):
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def file(tmp_path):
    return lambda name, content: write(tmp_path / name, content)


def moses(tmp_path, german, english):
    write(tmp_path / "train.de", german)
    write(tmp_path / "train.en", english)
    return tmp_path / "train"


CSV = 'id,en,de\n1,A hat.,Ein Hut.\n2,"He says ""yes"", yes","Er sagt ""ja"", ja"\n3,Greetings 🙂,Grüße 🙂\n'
TSV = 'de\tid\ten\nEin Hut.\t1\tA hat.\nEr sagt "ja", ja\t2\tHe says "yes", yes\nGrüße 🙂\t3\tGreetings 🙂\n'


def test_csv(file):
    dataset = read(file("a.csv", CSV))
    assert rows(dataset) == ROWS
    assert dataset.features == datasets.Features({"de": datasets.Value("string"), "en": datasets.Value("string")})


def test_tsv(file):
    assert rows(read(file("a.tsv", TSV))) == ROWS


@pytest.mark.parametrize(("name", "text"), [("a.csv", CSV), ("a.TSV", TSV)])
def test_byte_order_mark_and_crlf(file, name, text):
    assert rows(read(file(name, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))) == ROWS


def test_no_final_newline(file):
    assert rows(read(file("a.tsv", TSV.rstrip("\n")))) == ROWS
    assert rows(read(file("a.csv", CSV.rstrip("\n")))) == ROWS


def test_tsv_takes_quotes_as_text(file):
    assert rows(read(file("a.tsv", 'de\ten\n"Ja\t5" breit\n'))) == [('"Ja', '5" breit')]


def test_csv_field_with_line_breaks_and_of_any_length(file):
    long = "x" * 200_000
    assert rows(read(file("a.csv", f'de,en\n"a\nb",{long}\n'))) == [("a\nb", long)]


@pytest.mark.parametrize(("name", "text"), [("a.csv", "1,good\n0,bad\n"), ("a.tsv", "1\tgood\n0\tbad\n")])
def test_column_names(file, name, text):
    dataset = read(file(name, text), columns=("text", "label"), column_names=["label", "text"])
    assert rows(dataset) == [("good", "1"), ("bad", "0")]


NAMED = {"columns": ("text", "label"), "column_names": ["id", "text", "label"]}
BODY = "1,good film,pos\n2,bad film,neg\n"


@pytest.mark.parametrize("first", ["id,text,label", "ID, Text ,LABEL", "nr,text,Label", "label,id,text"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_is_no_row(file, name, first):
    separator = "," if name == "a.csv" else "\t"
    path = file(name, f"{first}\n{BODY}".replace(",", separator))
    message = error(path, **NAMED)
    assert message.startswith(f"{path}:1: this line repeats the names that --column_names gives, so it is a header: ")
    # Files to predict have the same names, of which one is read.
    if first != "nr,text,Label":
        with pytest.raises(InputError, match="so it is a header"):
            list(file_rows(str(path), "--test_file", Columns(("text",), ()), NAMED["column_names"], False))
    # What the message says to do about a row.
    others = {"columns": ("body", "class"), "column_names": ["number", "body", "class"]}
    assert len(read(path, **others)) == 3


def test_a_single_column_with_a_header(file):
    message = error(file("a.csv", "text\nA hat.\n"), columns=("text",), column_names=["text"])
    assert "so it is a header" in message
    assert rows(read(file("b.csv", "text message\nA hat.\n"), columns=("text",), column_names=["text"]))[1:] == [
        ("A hat.",)
    ]


@pytest.mark.parametrize(
    ("first", "column"), [("1,text,pos", "text"), ("nr,sentence,Label", "label"), ("1,good film,label", "label")]
)
def test_a_row_that_may_be_a_header_is_kept_and_said(file, first, column, caplog):
    path = file("a.csv", f"{first}\n{BODY}")
    for _ in range(2):  # a stream reads a file several times
        assert rows(read(path, **NAMED))[0] == tuple(first.split(",")[1:])
    message = f"{path}:1: is this line a header? As a row it has {column!r} in the column of that name"
    assert caplog.messages == [message]


def test_names_further_down_are_rows(file, caplog):
    path = file("a.csv", f"{BODY}3,text,label\n")
    assert rows(read(path, **NAMED))[-1] == ("text", "label") and not caplog.messages
    assert rows(read(file("b.csv", f"id,text,label\n{BODY}"), columns=("text", "label")))[0] == ("good film", "pos")


def test_json_lines(file):
    text = "".join(json.dumps({"id": 5, **row}) + "\n" for row in DICTS)
    assert rows(read(file("a.jsonl", text))) == rows(read(file("a.json", text))) == ROWS


def test_parquet(tmp_path):
    table = pa.table({"en": [en for _, en in ROWS], "n": [1, 2, 3], "de": [de for de, _ in ROWS]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows(read(tmp_path / "a.parquet")) == ROWS
    pq.write_table(table.append_column("translation", pa.array(["x", "y", "z"])), tmp_path / "c.parquet")
    assert rows(read(tmp_path / "c.parquet")) == ROWS
    large = table.set_column(0, "en", table["en"].cast(pa.large_string()).dictionary_encode())
    pq.write_table(large, tmp_path / "b.parquet")
    dataset = read(tmp_path / "b.parquet")
    assert rows(dataset) == ROWS and dataset.features["en"] == datasets.Value("string")


def test_translation_column(file, tmp_path):
    nested = [{"id": "x", "translation": row} for row in DICTS]
    assert rows(read(file("a.jsonl", "".join(json.dumps(row) + "\n" for row in nested)))) == ROWS
    pq.write_table(pa.Table.from_pylist(nested), tmp_path / "a.parquet")
    assert rows(read(tmp_path / "a.parquet")) == ROWS
    assert rows(read(tmp_path / "a.parquet", columns=("en",))) == [(en,) for _, en in ROWS]
    assert "no column 'fr'; there are 'de', 'en'" in error(tmp_path / "a.parquet", columns=("de", "fr"))
    assert ":1: no column 'fr'; there are 'de', 'en'" in error(tmp_path / "a.jsonl", columns=("de", "fr"))


def test_moses(tmp_path):
    prefix = moses(tmp_path, "\n".join(de for de, _ in ROWS) + "\n", "\r\n".join(en for _, en in ROWS))
    assert rows(read(prefix, moses=True)) == ROWS
    assert rows(read(prefix, moses=True, columns=("en", "de"))) == [row[::-1] for row in ROWS]


def test_moses_prefix_with_a_dot(tmp_path):
    write(tmp_path / "news.v1.de", "a\n")
    write(tmp_path / "news.v1.en", "b\n")
    assert rows(read(tmp_path / "news.v1", moses=True)) == [("a", "b")]


def test_moses_flag_leaves_known_extensions_alone(file):
    assert rows(read(file("a.tsv", TSV), moses=True)) == ROWS


@pytest.mark.parametrize("separator", "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e \r".split(" "))
def test_only_newlines_end_lines(tmp_path, file, separator):
    german = [f"ein{separator}s", "zwei"]
    prefix = moses(tmp_path, "\n".join(german) + "\n", "one\ntwo\n")
    assert rows(read(prefix, moses=True)) == list(zip(german, ["one", "two"], strict=True))
    assert rows(read(file("a.tsv", f"de\ten\nein{separator}s\tone\nzwei\ttwo\n"))) == rows(read(prefix, moses=True))
    if separator != "\r":  # see the test of the ends of a CSV row
        assert rows(read(file("a.csv", f"de,en\nein{separator}s,one\nzwei,two\n"))) == rows(read(prefix, moses=True))
    line = json.dumps({"de": german[0], "en": "one"}, ensure_ascii=False)
    assert rows(read(file("a.jsonl", line + "\n"))) == [(german[0], "one")]


def test_a_carriage_return_alone_ends_a_row_of_csv_and_is_reported(file, caplog):
    """Files of classic Mac OS end lines so; in other files it may be part of a field that lacks quotes."""
    path = file("mac.csv", "de,en\ra,b\rc,d\r")
    for _ in range(2):  # a stream reads a file several times
        assert rows(read(path)) == [("a", "b"), ("c", "d")]
    told = "a carriage return alone ends this row; a field that contains one needs quotes"
    assert caplog.messages == [f"{path}:1: {told}"]
    caplog.clear()
    path = file("mixed.csv", 'de,en\r\na,"b\rc"\nd,e\rf,g\n')
    assert rows(read(path)) == [("a", "b\rc"), ("d", "e"), ("f", "g")]
    assert caplog.messages == [f"{path}:4: {told}"]
    path = file("wrong.csv", "de,en\na,b\nc\rd,e\n")
    assert error(path) == f"{path}:3: 1 fields, but the header names 2"
    assert caplog.messages[-1] == f"{path}:3: {told}"


def test_all_splits_in_file_order(tmp_path):
    for split, texts in (("train", "c\na\nb\n"), ("val", "v\n"), ("test", "t\ns\n")):
        write(tmp_path / f"{split}.de", texts)
        write(tmp_path / f"{split}.en", texts)
    files = {f"{split}_file": str(tmp_path / name) for split, name in (("train", "train"), ("test", "test"))}
    splits = read_splits(columns=("de", "en"), moses=True, validation_file=str(tmp_path / "val"), **files)
    assert {split: data["de"][:] for split, data in splits.items()} == {
        "train": ["c", "a", "b"],
        "validation": ["v"],
        "test": ["t", "s"],
    }
    only = read_splits(columns=("de", "en"), moses=True, test_file=str(tmp_path / "test"))
    assert list(only) == ["test"]


EMPTY = {
    "a.csv": 'de,en\na,b\n,x\ny,"  "\n\nc,d\n\u3000,\u00a0\n',
    "a.tsv": "de\ten\na\tb\n\tx\ny\t  \n\nc\td\n\u3000\t\u00a0\n",
    "a.jsonl": '{"de":"a","en":"b"}\n{"de":"","en":"x"}\n{"de":"y","en":"  "}\n\n{"de":"c","en":"d"}\n'
    '{"de":null,"en":"z"}\n',
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_rows_are_dropped_and_counted(file, name, caplog):
    path = file(name, EMPTY[name])
    with caplog.at_level(logging.WARNING):
        assert rows(read(path, split="test")) == [("a", "b"), ("c", "d")]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 4 empty rows dropped of 6: 2, 3, 4, 6"]


def test_empty_rows_of_aligned_files(tmp_path, caplog):
    prefix = moses(tmp_path, "a\n\nc\n", "x\ny\nz\n")
    with caplog.at_level(logging.WARNING):
        assert rows(read(prefix, moses=True)) == [("a", "x"), ("c", "z")]
    assert caplog.messages == [f"{prefix}: 1 empty row dropped of 3: 2"]


def test_nothing_is_reported_when_nothing_is_dropped(file, caplog):
    with caplog.at_level(logging.WARNING):
        read(file("a.csv", CSV))
    assert not caplog.messages


# Errors


def test_missing_files(tmp_path):
    assert error(tmp_path / "a.csv") == f"{tmp_path}/a.csv: no such file (--train_file)"
    assert error(tmp_path / "a.parquet", split="test") == f"{tmp_path}/a.parquet: no such file (--test_file)"
    message = error(tmp_path / "train", moses=True)
    assert "--train_file" in message and f"{tmp_path}/train.de and {tmp_path}/train.en" in message
    write(tmp_path / "train.de", "a\n")
    assert error(tmp_path / "train", moses=True) == f"{tmp_path}/train.en: no such file (--train_file)"
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv: cannot be read: Is a directory" in error(tmp_path / "folder.csv")


def test_unequal_length(tmp_path):
    message = error(moses(tmp_path, "a\nb\nc\n", "x\ny\n"), moses=True)
    assert f"{tmp_path}/train.de has 3 lines, {tmp_path}/train.en has 2 lines" in message


@pytest.mark.parametrize(
    ("name", "start"), [("a.csv", "de,en\n"), ("a.tsv", "de\ten\n"), ("a.jsonl", '{"de": "a", "en": "b"}\n')]
)
def test_not_utf8(file, name, start):
    path = file(name, start.encode() + "Grüße".encode("latin-1"))
    assert error(path).startswith(f"{path}:2: not UTF-8 (byte 0xfc)")


def test_moses_not_utf8(tmp_path):
    prefix = moses(tmp_path, b"a\nb\n\xff\xfe\n", "x\ny\nz\n")
    assert error(prefix, moses=True).startswith(f"{tmp_path}/train.de:3: not UTF-8 (byte 0xff)")


@pytest.mark.parametrize(("name", "text"), [("a.csv", CSV), ("a.tsv", TSV)])
def test_missing_column(file, name, text):
    message = error(file(name, text), columns=("de", "fr"))
    assert f"{name}: no column 'fr'; there are " in message and "'id'" in message and "--column_names" in message
    message = error(file(name, text), columns=("de", "fr"), column_names=["a", "b", "de"])
    assert message.endswith("no column 'fr'; there are 'a', 'b', 'de'")


def test_missing_column_parquet_and_json(file, tmp_path):
    pq.write_table(pa.table({"a": ["x"], "de": ["y"]}), tmp_path / "a.parquet")
    assert error(tmp_path / "a.parquet").endswith("a.parquet: no column 'en'; there are 'a', 'de'")
    path = file("a.jsonl", '{"de": "a", "en": "b"}\n{"de": "a"}\n')
    assert error(path) == f"{path}:2: no column 'en'; there are 'de'"


def test_repeated_column(file):
    assert "2 columns 'de'" in error(file("a.csv", "de,en,de\na,b,c\n"))
    assert "must differ, got de, de" in error(file("a.csv", CSV), columns=("de", "de"))


def test_header_of_any_text_stays_one_short_line(file):
    message = error(file("a.tsv", "x" * 5000 + "\t1\n"))
    assert len(message) < 400


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_empty_files(file, name, split):
    assert f"{name}: empty" in error(file(name, ""), split=split)


def test_no_rows(file, tmp_path):
    assert "empty: none of 0 rows" in error(file("a.csv", "de,en\n"))
    assert "empty: none of 2 rows has text in de and en" in error(file("a.tsv", "de\ten\na\t\n\tb\n"))
    assert "empty: none of 0 rows" in error(moses(tmp_path, "", ""), moses=True)
    pq.write_table(pa.table({"de": pa.array([], pa.string()), "en": pa.nulls(0)}), tmp_path / "a.parquet")
    assert "empty: none of 0 rows" in error(tmp_path / "a.parquet")
    assert "no column 'fr'; there are 'de', 'en'" in error(tmp_path / "a.parquet", columns=("de", "fr"))


def test_unknown_extension(file):
    message = error(file("a.xlsx", "x"))
    assert message.endswith(
        "unknown extension '.xlsx'; known are .csv, .tsv, .jsonl, .json, .parquet, .conllu, .conll"
    )
    assert "--train_file" in message


@pytest.mark.parametrize("line", ['{"de": "a"', '["a", "b"]', '"a"', "NaN,", "[" * 100_000])
def test_malformed_json(file, line):
    path = file("a.jsonl", '{"de": "a", "en": "b"}\n' + line + "\n")
    message = error(path)
    assert message.startswith(f"{path}:2: ") and message.endswith("each line must be one object")


@pytest.mark.parametrize("value", [5, 1.5, True, ["a"], {"x": "y"}])
def test_json_value_that_is_no_string(file, value):
    path = file("a.jsonl", '{"de": "a", "en": "b"}\n' + json.dumps({"de": value, "en": "c"}) + "\n")
    assert error(path) == f"{path}:2: column 'de' must be a string, not {json.dumps(value)}"


def test_json_surrogates(file):
    path = file("a.jsonl", '{"de": "\\ud83d\\ude42", "en": "b"}\n{"de": "a\\ud83d", "en": "c"}\n')
    assert error(path).startswith(f"{path}:2: column 'de' contains an unpaired surrogate")


def test_rows_of_wrong_length(file):
    path = file("a.csv", 'de,en\n"a\nb",c\nd,e,f\n')
    assert error(path) == f"{path}:4: 3 fields, but the header names 2"
    path = file("a.tsv", "a\tb\nc\n")
    assert error(path, column_names=["de", "en"]) == f"{path}:2: 1 fields, but --column_names names 2"


def test_malformed_csv(file):
    path = file("a.csv", 'de,en\na,b\n"c"d,e\n')
    assert error(path).startswith(f"{path}:3: malformed CSV row")
    path = file("a.csv", 'de,en\na,b\n"c,d\ne,f\ng,h\n')
    assert error(path).startswith(f"{path}:3: malformed CSV row")


def test_parquet_columns_of_one_name(tmp_path):
    text = pa.array(["x"])
    pq.write_table(pa.Table.from_arrays([text] * 3, names=["de", "de", "en"]), tmp_path / "a.parquet")
    message = "a.parquet: 2 columns 'de'; there are 'de', 'de', 'en'"
    assert error(tmp_path / "a.parquet").endswith(message)
    with pytest.raises(InputError, match=message):
        list(file_rows(str(tmp_path / "a.parquet"), "--train_file", Columns(("de", "en"), ()), None, False))
    pairs = pa.StructArray.from_arrays([text, text, text], names=["de", "en", "en"])
    pq.write_table(pa.Table.from_arrays([pairs, pairs], names=["translation"] * 2), tmp_path / "b.parquet")
    assert "no column 'de'; there are 'translation', 'translation'" in error(tmp_path / "b.parquet")
    pq.write_table(pa.table({"translation": pairs}), tmp_path / "c.parquet")
    assert "2 columns 'en'; there are 'de', 'en', 'en'" in error(tmp_path / "c.parquet")


def test_parquet_errors(file, tmp_path):
    assert "a.parquet: not a valid Parquet file" in error(file("a.parquet", "de,en\n"))
    pq.write_table(pa.table({"other": ["a", "b"]}), tmp_path / "name.parquet")
    damaged = (tmp_path / "name.parquet").read_bytes().replace(b"other", b"oth\x80r")
    (tmp_path / "name.parquet").write_bytes(damaged)
    assert "name.parquet: not a valid Parquet file" in error(tmp_path / "name.parquet")
    with pytest.raises(InputError, match="not a valid Parquet file"):
        list(file_rows(str(tmp_path / "name.parquet"), "--train_file", Columns(("de", "en"), ()), None, False))
    pq.write_table(pa.table({"de": [1, 2], "en": ["a", "b"]}), tmp_path / "b.parquet")
    assert error(tmp_path / "b.parquet").endswith("b.parquet: column 'de' must hold strings, not int64")


def test_column_names_where_they_mean_nothing(file, tmp_path):
    assert "--column_names" in error(file("a.jsonl", "{}\n"), column_names=["de", "en"])
    assert "--column_names" in error(moses(tmp_path, "a\n", "b\n"), column_names=["de", "en"], moses=True)


def test_no_or_two_sources(file):
    with pytest.raises(InputError, match="--train_file or --dataset_name"):
        read_splits(columns=("de", "en"))
    assert "exclude each other" in error(file("a.csv", CSV), dataset_name="x")


# Hub and saved datasets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def hub(name, **options):
    return read_splits(columns=("de", "en"), dataset_name=str(name), **options)


def test_saved_dataset_with_a_translation_column(tmp_path, caplog):
    features = datasets.Features({"translation": datasets.Translation(["de", "en"])})
    rows_of = [{"translation": row} for row in [*DICTS, {"de": " ", "en": "x"}]]
    data = datasets.Dataset.from_list(rows_of, features=features)
    datasets.DatasetDict({"train": data, "dev": data, "test": data, "extra": data}).save_to_disk(tmp_path / "saved")
    with caplog.at_level(logging.WARNING):
        splits = hub(tmp_path / "saved")
    assert list(splits) == ["train", "validation", "test"]
    assert all(rows(data) == ROWS for data in splits.values())
    assert f"{tmp_path}/saved [dev]: 1 empty row dropped of 4: 4" in caplog.messages
    with pytest.raises(InputError, match=r"split train: no column 'fr'; there are 'de', 'en'$"):
        read_splits(columns=("de", "fr"), dataset_name=str(tmp_path / "saved"))


def test_folder_and_a_file_that_replaces_its_test_split(tmp_path, cache):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "train.csv", CSV)
    write(folder / "test.csv", CSV)
    write(tmp_path / "own.csv", "de,en\nx,y\n")
    splits = hub(folder, test_file=str(tmp_path / "own.csv"))
    assert rows(splits["train"]) == ROWS and rows(splits["test"]) == [("x", "y")]


def test_hub_columns_that_are_no_strings(tmp_path):
    data = datasets.Dataset.from_dict({"de": [1], "en": ["a"]})
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"split train: column 'de' must hold strings, not int64$"):
        hub(tmp_path / "saved")


def test_hub_without_a_known_split(tmp_path):
    data = datasets.Dataset.from_dict({"de": ["a"], "en": ["a"]})
    datasets.DatasetDict({"everything": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="no split train, validation or test; there are 'everything'"):
        hub(tmp_path / "saved")


def test_hub_not_found(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^--dataset_name nobody/nothing: cannot be loaded \(.+\)$") as caught:
        hub("nobody/nothing")
    assert "\n" not in str(caught.value)


# Real data


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not beside this checkout")
def test_real_data():
    folder = SHARED / "translation_multi30k"
    pairs = read(folder / "val", moses=True)
    assert len(pairs) == 1014 and pairs[0]["en"] == "A group of men are loading cotton onto a truck"
    reviews = read(SHARED / "sentiment_sst2" / "dev.tsv", columns=("text", "label"), column_names=["text", "label"])
    assert len(reviews) == 872 and set(reviews["label"]) == {"0", "1"}
    papers = read(SHARED / "summarization_scitldr" / "dev.jsonl", columns=("document", "title"))
    assert len(papers) == 619


NUL = [("a\x00b", "x"), ("\x00", "\x00"), ("c", "x\x00y"), ("\x00 d", "x")]


def nul_file(tmp_path, name):
    separator = "," if name.endswith("csv") else "\t"
    if name == "a.parquet":
        pq.write_table(pa.table(dict(zip(("text", "label"), zip(*NUL, strict=True), strict=True))), tmp_path / name)
    elif name == "a.jsonl":
        text = "".join(json.dumps(dict(zip(("text", "label"), row, strict=True))) + "\n" for row in NUL)
        write(tmp_path / name, text)
    elif name == "a":
        for column, texts in zip(("text", "label"), zip(*NUL, strict=True), strict=True):
            write(tmp_path / f"a.{column}", "".join(f"{text}\n" for text in texts))
    else:
        rows_of = [("text", "label"), *NUL]
        quote = '"' if name == "quoted.csv" else ""
        write(tmp_path / name, "".join(f"{quote}{a}{quote}{separator}{quote}{b}{quote}\n" for a, b in rows_of))
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.csv", "quoted.csv", "a.tsv", "a.jsonl", "a.parquet", "a"])
def test_nul_characters_are_text(name, tmp_path):
    path = nul_file(tmp_path, name)
    options = {"columns": ("text", "label"), "moses": name == "a"}
    assert rows(read(path, **options)) == NUL
    assert rows(read(path, **options, label_columns=("label",))) == NUL
    assert list(map(tuple, file_rows(str(path), "--f", Columns(("text", "label"), ()), None, name == "a"))) == NUL
    stream = read_stream(train_file=str(path), validation_file=str(path), **options)["train"]
    assert [tuple(row.values()) for row in stream] == NUL
    assert read_texts(str(path), "text") == [text for text, _ in NUL]


def test_nul_characters_in_lists_of_words(tmp_path):
    words = [["a\x00", "\x00"], ["b", "c\x00d"]]
    write(tmp_path / "a.jsonl", "".join(json.dumps({"w": row, "t": row}) + "\n" for row in words))
    write(tmp_path / "a.conll", "\n\n".join("\n".join(f"{word} {word}" for word in row) for row in words) + "\n")
    options = {"columns": ("w", "t"), "label_columns": ("w", "t")}
    for name, columns in (("a.jsonl", None), ("a.conll", ["w", "t"])):
        found = read(tmp_path / name, **options, column_names=columns)
        assert found["w"][:] == found["t"][:] == words


def test_raw_nul_characters_are_no_json(file):
    path = file("a.jsonl", '{"text": "a\x00b"}\n')
    assert error(path, columns=("text",)).startswith(f"{path}:1: not JSON (Invalid control character")
