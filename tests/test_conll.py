from pathlib import Path

import pytest

from hfseq.data.errors import InputError
from hfseq.data.reading import read_splits
from hfseq.data.streaming import read_stream

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


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.conllu", "1\tEnde\n", {}, r"a\.conllu:1: 2 columns, not 10"),
        ("a.conll", "EU B\nUN\n", {}, r"a\.conll:2: 1 columns, not 2"),
        ("a.conll", "EU\n", {}, r"a\.conll:1: 1 columns, not 2"),
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
