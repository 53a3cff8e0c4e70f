"""Class columns: read as strings from every kind of file, numbered by the training rows."""

from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.reading import hold_out_validation, read_splits
from hfseq.errors import InputError

COLUMNS = {"columns": ["text", "label"], "label_columns": ["label"]}
TEXTS = ["good", "bad", "so so"]


def write(path, values):
    rows = zip(TEXTS, values, strict=True)
    if path.suffix == ".csv":
        path.write_text("text,label\n" + "".join(f"{text},{value}\n" for text, value in rows))
    elif path.suffix == ".jsonl":
        import json

        path.write_text("".join(json.dumps({"text": text, "label": value}) + "\n" for text, value in rows))
    else:
        pq.write_table(pa.table({"text": TEXTS, "label": values}), path)
    return str(path)


def read(path, **changes):
    return read_splits(train_file=str(path), **COLUMNS | changes)["train"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [(["pos", "neg", "pos"], ["pos", "neg", "pos"]), ([1, 0, 2], ["1", "0", "2"])],
    ids=["names", "numbers"],
)
def test_classes_are_read_as_strings(tmp_path, suffix, values, expected):
    rows = read(write(tmp_path / f"train{suffix}", values))
    assert rows["label"][:] == expected and rows["text"][:] == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, True], ["true", "false", "true"]),
        ([["a", "b"], [], ["b"]], [["a", "b"], [], ["b"]]),
        ([[1, 2], [], [2]], [["1", "2"], [], ["2"]]),
    ],
    ids=["truth", "lists", "lists of numbers"],
)
def test_truth_values_and_lists(tmp_path, suffix, values, expected):
    assert read(write(tmp_path / f"train{suffix}", values))["label"][:] == expected


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_without_a_class_are_dropped(tmp_path, suffix, caplog):
    path = write(tmp_path / f"train{suffix}", ["pos", "", "neg"] if suffix == ".csv" else ["pos", None, "neg"])
    assert read(path)["label"][:] == ["pos", "neg"]
    assert "1 empty row dropped of 3: 2" in caplog.text


def test_names_of_a_data_set(tmp_path):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "topics": datasets.List(datasets.ClassLabel(names=["film", "food"])),
        }
    )
    rows = {"text": [*TEXTS, "none"], "label": [1, 0, 1, -1], "topics": [[0], [], [1, 0], [1]]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(tmp_path / "data")
    found = read_splits(dataset_name=str(tmp_path / "data"), **COLUMNS)["train"]
    assert found["label"][:] == ["pos", "neg", "pos"]
    topics = {"columns": ["text", "topics"], "label_columns": ["topics"]}
    found = read_splits(dataset_name=str(tmp_path / "data"), **topics)["train"]
    assert found["topics"][:] == [["film"], [], ["food", "film"], ["food"]]


def test_a_thousand_rows_of_a_data_set_without_classes(tmp_path):
    classes = datasets.ClassLabel(names=["neg", "pos"])
    for name, feature, label in (("lists", datasets.List(classes), [0]), ("one", classes, 0)):
        rows = {"text": ["x"] * 2001, "label": [None] * 1000 + [label] * 1001}
        features = datasets.Features({"text": datasets.Value("string"), "label": feature})
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features)}).save_to_disk(tmp_path / name)
        found = read_splits(dataset_name=str(tmp_path / name), **COLUMNS)["train"]
        assert found["label"][:] == [["neg"] if name == "lists" else "neg"] * 1001


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_null_in_a_list_is_no_class(tmp_path, suffix):
    path = write(tmp_path / f"train{suffix}", [["a", None], [None], ["b"]])
    data, names = encode_labels(read_splits(train_file=path, **COLUMNS), "label")
    assert names == ["a", "b"] and data["train"]["labels"][:] == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]


def test_what_is_no_class(tmp_path):
    with pytest.raises(InputError, match=r"bad.jsonl:2: column 'label' must be a class .*, not {}"):
        read(write(tmp_path / "bad.jsonl", ["pos", {}, "neg"]))
    for value in ([0.5], [["pos"]], [{}]):
        with pytest.raises(InputError, match=r"bad.jsonl:2: column 'label' must be a class .*, not \["):
            read(write(tmp_path / "bad.jsonl", [["pos"], value, []]))
    with pytest.raises(InputError, match=r"list.jsonl:2: column 'label' must be a list in all rows or in none"):
        read(write(tmp_path / "list.jsonl", [["pos"], "neg", ["neg"]]))
    with pytest.raises(InputError, match=r"column 'label' must hold classes .*, not list<.*double>"):
        read(write(tmp_path / "bad.parquet", [[1.0], [0.5], [2.0]]))
    # Numbers with a fraction are labels of a regression; see test_text_tasks.py.
    for name in ("numbers.jsonl", "numbers.parquet"):
        assert list(map(float, read(write(tmp_path / name, [1.0, 0.5, 2.0]))["label"])) == [1.0, 0.5, 2.0]
    with pytest.raises(InputError, match=r"column 'label' must be a string, not 1"):
        read(write(tmp_path / "text.jsonl", [1, 2, 3]), label_columns=[])


def splits(train, **others):
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict({"text": [str(row) for row in range(len(values))], "label": values})
            for name, values in ({"train": train} | others).items()
        }
    )


def test_names_are_numbered():
    data, names = encode_labels(splits(["pos", "neg", " pos "], test=["neg"]), "label")
    assert names == ["neg", "pos"]
    assert data["train"]["labels"][:] == [1, 0, 1] and data["test"]["labels"][:] == [0]
    assert data["train"].column_names == ["text", "labels"]
    _, names = encode_labels(splits(["10", "9", "-1"]), "label")
    assert names == ["-1", "9", "10"]
    # More digits than Python takes for one number.
    _, names = encode_labels(splits(["9" * 5000, "10"]), "label")
    assert names == ["10", "9" * 5000]
    data, names = encode_labels(splits(["pos", "neg"]), "label", names=["pos", "mixed", "neg"])
    assert names == ["pos", "mixed", "neg"] and data["train"]["labels"][:] == [0, 2]


def test_several_classes_at_once():
    expected = [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    for values, separator in ([["a", "b"], [], ["b"]], None), (["a; b", "", "b"], ";"):
        data, names = encode_labels(splits(values), "label", separator=separator)
        assert names == ["a", "b"] and data["train"]["labels"][:] == expected


def test_classes_that_training_does_not_have():
    with pytest.raises(
        InputError, match="validation, row 2: class 'mixed' of column 'label' is not one of the 2 known"
    ):
        encode_labels(splits(["pos", "neg"], validation=["pos", "mixed"]), "label")
    with pytest.raises(InputError, match=r"the training data has 1 class \('pos'\); there is nothing to learn"):
        encode_labels(splits(["pos", "pos"]), "label")
    data = splits(["pos", "neg"])
    del data["train"]
    data["test"] = splits(["pos"])["train"]
    with pytest.raises(InputError, match="no training data to take the classes"):
        encode_labels(data, "label")


# Holding out


def test_rows_held_out_are_those_drawn_where_no_class_is_rare():
    given = splits(["a", "b"] * 50)
    drawn = given["train"].train_test_split(test_size=5, seed=3)
    held = hold_out_validation(given, 3, classes=partial(row_classes, column="label"))
    assert held["train"].to_list() == drawn["train"].to_list()
    assert held["validation"].to_list() == drawn["test"].to_list()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["name", "list", "separated"])
def test_the_last_row_of_a_class_is_not_held_out(kind, seed):
    """Ten classes of one row, ten of two, of which both may be drawn, and two that are frequent."""
    names = [f"one{row}" for row in range(10)] + [f"two{row // 2}" for row in range(20)] + ["a", "b"] * 15
    separator = ";" if kind == "separated" else None
    values = {"name": names, "list": [["a", name] for name in names], "separated": [f"{name}; a" for name in names]}
    given = splits(values[kind])
    classes = partial(row_classes, column="label", separator=separator)
    held = [hold_out_validation(given, seed + more, classes=classes) for more in (0, 0, 100)]
    assert held[0]["validation"].to_list() == held[1]["validation"].to_list() != held[2]["validation"].to_list()
    for found in held:
        assert len(found["validation"]) == 3
        assert sorted(int(text) for rows in found.values() for text in rows["text"]) == list(range(60))
        _, numbered = encode_labels(found, "label", separator=separator)
        assert set(numbered) == {*names}


def test_rows_that_are_all_the_last_of_a_class():
    with pytest.raises(InputError, match="each training row is the last of a class; give --validation_file"):
        hold_out_validation(splits(["a", "b", "c"]), 0, classes=partial(row_classes, column="label"))
