import logging
from pathlib import Path

import pytest

from hfseq.data.reading import read_splits
from hfseq.data.streaming import read_stream
from hfseq.errors import InputError

CONLLU = """\
# sent_id = 1
1\tDas\tder\tDET\tART\t_\t2\tdet\t_\t_
2-3\tzum\t_\t_\t_\t_\t_\t_\t_\t_
2\tzu\tzu\tADP\tAPPR\t_\t0\troot\t_\t_
2.1\tnichts\t_\t_\t_\t_\t_\t_\t_\t_
3\tNew York\t_\tPROPN\tNE\t_\t2\tobl\t_\t_

# sent_id = 2
1\tEnde\tEnde\tNOUN\tNN\t_\t0\troot\t_\t_
"""
CONLL = """\
-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O


call\tNN\tI-NP\tO
"""
SHARED = Path(__file__).parents[2] / "shared" / "data" / "tagging_ud_ewt"


def read(path, **options):
    options = {"columns": ("tokens", "tags"), "label_columns": options.get("columns", ("tokens", "tags"))} | options
    return read_splits(train_file=str(path), **options)["train"].to_list()


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_conllu(tmp_path):
    path = write(tmp_path, "a.conllu", CONLLU)
    assert read(path) == [
        {"tokens": ["Das", "zu", "New York"], "tags": ["DET", "ADP", "PROPN"]},
        {"tokens": ["Ende"], "tags": ["NOUN"]},
    ]
    assert read(path, columns=("form", "xpos"))[1] == {"form": ["Ende"], "xpos": ["NN"]}
    streamed = read_stream(
        columns=("tokens", "tags"), label_columns=("tokens", "tags"), train_file=str(path), validation_file=str(path)
    )
    assert list(streamed["train"]) == read(path) == streamed["validation"].to_list()


def test_conll(tmp_path):
    path = write(tmp_path, "a.conll", CONLL)
    assert read(path) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["call"], "tags": ["O"]},
    ]
    named = read(path, columns=("word", "chunk"), column_names=["word", "pos", "chunk", "ner"])
    assert named[0] == {"word": ["EU", "rejects"], "chunk": ["I-NP", "I-VP"]}


def words(path, **options):
    return [list(zip(row["tokens"], row["tags"], strict=True)) for row in read(path, **options)]


@pytest.mark.parametrize("separator", ["\t", " "])
@pytest.mark.parametrize("word", "\u00a0 \u3000 \u200b \u2028 \u2029 \u0085 \x0b \x0c \x1c \x1f \u202f".split(" "))
def test_only_tabs_and_spaces_end_columns(word, separator, tmp_path):
    """Any other white space is a word or a part of one, and ends no line."""
    lines = [("10", "X", "O"), (word, "Y", "B-A"), (f"{word}km", "Z", "I-A"), (f"a{word}", "Z", "O")]
    path = write(tmp_path, "a.conll", "".join(separator.join(line) + "\r\n" for line in lines))
    assert words(path) == [[(line[0], line[2]) for line in lines]]
    (row,) = read(path, columns=("word", "pos"), column_names=["word", "pos", "ner"])
    assert row["pos"] == ["X", "Y", "Z", "Z"]
    universal = "".join(
        "\t".join([str(at), line[0], "_", line[1], *"______"]) + "\n" for at, line in enumerate(lines, 1)
    )
    assert words(write(tmp_path, "a.conllu", universal)) == [[line[:2] for line in lines]]


def test_tabs_alone_end_the_columns_of_a_line_with_tabs(tmp_path):
    path = write(tmp_path, "a.conll", "New York\tB-LOC\n \tO\nx\t\t O \n  y   I-A \n\n \t \nz\tO\t\n")
    assert words(path) == [[("New York", "B-LOC"), (" ", "O"), ("x", "O"), ("y", "I-A")], [("z", "O")]]


# As many columns as words have; unlike them in form, or in what stands where the tag would be.
@pytest.mark.parametrize(
    ("comments", "sentence"),
    [
        (["# id 5f2e domain=en"], ["a _ _ B-A", "# _ _ O", "b _ _ O"]),
        (["# id 5f2e domain=en", "# id2 x domain=en"], ["# _ _ O", "a _ _ O"]),
        (["# newdoc"], ["a O"]),
        (["# newdoc", "# text = We met Ann , # 1 ."], ["a\tO"]),
        (["# sent_id\t4"], ["a\tO"]),
        (["# sent_id = 4"], ["a X Y O", "# X Y O"]),
        (["# text\t=\tWe met"], ["a O"]),
        (["#begin document (a); part 000"], ["a O", "#end O"]),
        (["#\thttp://a.b/c\t[2009-10-17]"], ["1\ta\tO\tO"]),
    ],
)
def test_comments(comments, sentence, tmp_path):
    block = "".join(f"{line}\n" for line in [*comments, *sentence])
    path = write(tmp_path, "a.conll", f"-DOCSTART- X\n{block}\n{block}\n\n")
    rows = [(line.replace("\t", " ").split(" ")[0], line.replace("\t", " ").split(" ")[-1]) for line in sentence]
    assert words(path) == [rows, rows]


@pytest.mark.parametrize(
    "sentence",
    [
        ["# O", "a O"],
        ["#\tO", "a\tO"],
        ["# # O", "a X O"],
        ["#\tSYM", "5\tNUM"],
        ["# #", "5 CD"],
        ["#tag HT", "a O"],
        ["#1 O"],
        ["a O", "# SYM", "5 NUM"],
        ["# O", "# O"],
        ["a O", "", "# SYM", "5 NUM", "", "b O", "# SYM", "5 NUM"],
    ],
)
def test_words_that_begin_as_comments_do(sentence, tmp_path, caplog):
    path = write(tmp_path, "a.conll", "".join(f"{line}\n" for line in sentence))
    found = [pair for row in words(path) for pair in row]
    lines = [line.replace("\t", " ").split(" ") for line in sentence if line]
    assert found == [(line[0], line[-1]) for line in lines]
    assert not caplog.records


def test_comments_that_could_be_mistaken_are_counted(tmp_path, caplog):
    block = "# id 5f2e domain=en\na _ _ O\n\n"
    with caplog.at_level(logging.WARNING):
        assert len(words(write(tmp_path, "a.conll", f"\n{block * 3}"))) == 3
    (record,) = caplog.records
    assert record.getMessage().endswith("a.conll: 3 lines with '#' taken for comments, first line 2")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        words(write(tmp_path, "b.conll", "# text = a b\na O\n"))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        words(write(tmp_path, "c.conll", "#a O x\na O\n"))
    assert "c.conll: 1 line with '#' taken for comment, first line 1" in caplog.text


def test_the_beginning_of_a_document_ends_a_sentence(tmp_path):
    path = write(tmp_path, "a.conll", "-DOCSTART- -X- O\na X O\n-DOCSTART-\tO\nb X O\n-DOCSTART-x X O\n")
    assert words(path) == [[("a", "O")], [("b", "O"), ("-DOCSTART-x", "O")]]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.conllu", "1\tEnde\n", {}, r"a\.conllu:1: 2 columns, not 10"),
        ("a.conll", "EU B\nUN\n", {}, r"a\.conll:2: 1 columns, not 2"),
        ("a.conll", "EU\n", {}, r"a\.conll:1: 1 columns, not 2"),
        ("a.conll", "EU O\n#\n", {}, r"a\.conll:2: 1 columns, not 2"),
        ("a.conll", "#tag\nEU O\n", {}, r"a\.conll:1: 1 columns, not 2"),
        ("a.conll", "EU O\n# O x\n", {}, r"a\.conll:2: 3 columns, not 2"),
        ("a.conll", "EU O\n\tO\n", {}, r"a\.conll:2: 1 columns, not 2"),
        ("a.conll", "EU O\n\u3000\t\n", {}, r"a\.conll:2: 1 columns, not 2"),
        ("a.conll", "# x\tO\nEU\tNNP O\n", {}, r"a\.conll:2: 'NNP O' has a space in it; separate columns by tabs or"),
        ("a.conll", "# x y\nEU\n", {"columns": ("w", "t"), "column_names": ["w", "x", "t"]}, r":2: 1 columns, not 3"),
        ("a.conllu", CONLLU, {"columns": ("tokens", "ner")}, "no column 'ner'; there are id, form"),
        ("a.conll", CONLL, {"columns": ("word", "ner"), "column_names": ["word"]}, "no column 'ner'; there are word"),
        ("a.conll", CONLL, {"columns": ("word",)}, "name its columns with --column_names"),
        ("a.conll", CONLL, {"label_columns": ()}, "for tagging, not for texts"),
        ("a.conllu", "# nothing\n\n", {}, "empty"),
    ],
)
def test_errors(name, text, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, name, text), **options)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not beside this checkout")
def test_a_treebank():
    rows = read(SHARED / "en_ewt-ud-dev.conllu")
    assert len(rows) == 2001 and sum(len(row["tokens"]) for row in rows) == 25147
    assert len({tag for row in rows for tag in row["tags"]}) == 17
