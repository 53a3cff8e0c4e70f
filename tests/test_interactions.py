"""Interactions: every format gives the same sessions, splits leave out what they say, and bad rows are named."""

import json
from datetime import UTC, date, datetime

import datasets
import pytest

from hfseq.data.embedded.function_calls import function_call_rows, functions_below, sessions_below
from hfseq.data.interactions import (
    InteractionColumns,
    Session,
    leave_one_out,
    parse_time,
    read_interactions,
    session_rows,
    split_by_time,
)
from hfseq.data.splits import split_of
from hfseq.errors import InputError
from hfseq.tasks.arguments import RecommendationArguments

GUESSED = InteractionColumns()
# In the order of the file: u2 comes first, u1's are not sorted, two of u2 are at the same time, and b comes twice.
EVENTS = [("u2", "b", 5), ("u1", "c", 9), ("u2", "a", 5), ("u1", "b", 3), ("u2", "b", 7)]
SESSIONS = [Session("u2", ["b", "a", "b"], [5.0, 5.0, 7.0]), Session("u1", ["b", "c"], [3.0, 9.0])]


def file_of(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def table(separator, header=None, rows=EVENTS):
    lines = [separator.join(map(str, row)) for row in rows]
    return "\n".join([*([separator.join(header)] if header else []), *lines]) + "\n"


def read(tmp_path, name, text, columns=GUESSED, column_names=None):
    return read_interactions(file_of(tmp_path, name, text), "--train_file", columns, column_names)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", table(" ")),
        ("a", table("\t").replace("\n", "\r\n")),
        ("a.inter", table("\t", ["user_id:token", "item_id:token", "timestamp:float"])),
        ("a.csv", table(",", ["userId", "movieId", "timestamp"])),
        ("a.tsv", table("\t", ["session", "item", "time"])),
        ("a.jsonl", "\n".join(json.dumps(dict(zip(("uid", "sku", "ts"), row, strict=True))) for row in EVENTS)),
        (
            "sessions.jsonl",
            json.dumps({"user": "u2", "items": ["b", "a", "b"], "times": [5, 5, 7]})
            + "\n\n"
            + '{"user": "u1", "items": [], "times": []}\n'
            + json.dumps({"user": "u1", "items": ["c", "b"], "times": [9, 3]}),
        ),
    ],
)
def test_every_format_gives_the_same_sessions(tmp_path, name, text):
    assert read(tmp_path, name, text) == SESSIONS


def test_columns_by_name_and_files_without_a_header(tmp_path):
    rows = [(time, 4.5, item, user) for user, item, time in EVENTS]
    columns = InteractionColumns("who", "what", "when")
    names = ["when", "rating", "what", "who"]
    assert read(tmp_path, "a.csv", table(",", names, rows), columns) == SESSIONS
    for name, separator in (("b.csv", ","), ("b.tsv", "\t"), ("b.dat", " ")):
        assert read(tmp_path, name, table(separator, None, rows), columns, names) == SESSIONS


def test_without_times_the_order_is_that_of_the_file(tmp_path):
    found = read(tmp_path, "a.txt", "u2 b\nu1 c\nu2 a\nu1 b\nu2 b\n")
    assert found == [Session("u2", ["b", "a", "b"]), Session("u1", ["c", "b"])]
    assert read(tmp_path, "b.txt", "The user\tThe Legend, of Zelda\n") == [
        Session("The user", ["The Legend, of Zelda"])
    ]
    unnamed = '{"items": [1, 2]}\n{"items": ["x y"]}\n'
    assert read(tmp_path, "a.jsonl", unnamed) == [Session("session 1", ["1", "2"]), Session("session 2", ["x y"])]


def test_tables_of_arrow_and_data_sets(tmp_path):
    rows = {
        "user_id": [2, 1, 2],
        "item_id": ["b", "c", "a"],
        "timestamp": [datetime(2024, 5, day, tzinfo=UTC) for day in (2, 3, 1)],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    found = read_interactions(str(tmp_path / "a.parquet"), "--train_file", GUESSED)
    assert [one[:2] for one in found] == [("2", ["a", "b"]), ("1", ["c"])]
    assert found[1].times == [datetime(2024, 5, 3, tzinfo=UTC).timestamp()]
    days = rows | {"timestamp": [date(2024, 5, day) for day in (2, 3, 1)]}
    datasets.Dataset.from_dict(days).to_parquet(tmp_path / "days.parquet")
    assert read_interactions(str(tmp_path / "days.parquet"), "--train_file", GUESSED) == found
    sessions = datasets.Dataset.from_dict({"session": ["s", "t"], "items": [["a", "b", "c"], ["c"]]})
    datasets.DatasetDict({"train": sessions, "test": sessions.select([0])}).save_to_disk(tmp_path / "saved")
    splits = RecommendationArguments(dataset_name=str(tmp_path / "saved")).read_named()
    assert splits["train"].to_list() == [
        {"user": "s", "items": ["a", "b", "c"], "begin": 1},
        {"user": "t", "items": ["c"], "begin": 1},
    ]
    assert splits["test"].num_rows == 1
    last = RecommendationArguments(dataset_name=str(tmp_path / "saved"), score_last=True).read_named()
    assert last["test"]["begin"] == [2] and last["train"]["begin"] == [1, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "u a 1\nu b\n", "a.txt:2: 2 fields, but the lines before have 3"),
        ("a.txt", "u a 1\nu b soon\n", "a.txt:2: time 'soon' is neither a number nor a date"),
        ("a.txt", "u a inf\nu b 1\n", "a.txt:1: time 'inf' is not finite; give a number or a date"),
        ("a.txt", "u a 1\nu b NaN\n", "a.txt:2: time 'NaN' is not finite"),
        ("a.jsonl", '{"user": 1, "item": 2, "time": 1e999}\n', "a.jsonl:1: time inf is not finite"),
        ("a.txt", "u a 20240105\nv b 2\nu c 2024-01-06\n", "a.txt:3: time '2024-01-06' is a date, but those before"),
        (
            "a.jsonl",
            '{"items": ["a", "b"], "times": ["2024-01-05", 20240106]}\n',
            "a.jsonl:1: time 20240106 is a number, but those before are dates",
        ),
        ("a.txt", "user item time\nu a 1\n", "a.txt:1: time 'time' .* is this a header"),
        ("a.txt", "u a 3.5 1\n", "a.txt:1: 4 fields; give `user item`"),
        ("a.txt", "", "--train_file .*a.txt: no interactions"),
        ("a.csv", "user,item\nu,a\n\nu\n", "a.csv:4: 1 fields, but the header names 2"),
        ("a.csv", "user,item\nu,\n", "a.csv:2: the item is empty"),
        ("a.csv", "user,item\nu,a\nuser,item\nv,a\n", "a.csv:3: this line repeats the header; leave it out"),
        ("a.inter", "user:token\titem:token\n" * 2, "a.inter:2: this line repeats the header"),
        ("a.tsv", "user\titem\n<s>\ta\nu\t<s>\n", "a.tsv:3: item '<s>' is the name of a special token; give it"),
        ("a.csv", "", "a.csv: empty; the first line must name the columns"),
        (
            "a.csv",
            "user_id,session_id,item\n1,2,3\n",
            "'user_id', 'session_id' may each be the user; choose one with --user",
        ),
        ("a.csv", "who,item\nu,a\n", "no column of users; name one with --user_column: there are 'who', 'item'"),
        ("a.inter", "user_id\titem_id\n1\t2\n", "a.inter:1: field 'user_id' has no type"),
        ("a.inter", "user_id:token\titem_id:token_seq\n1\t2 3\n", "field 'item_id:token_seq' holds lists"),
        ("a.jsonl", '{"user": 1, "item": 2}\n[1]\n', "a.jsonl:2: a JSON list"),
        ("a.jsonl", '{"user": 1, "item": 2.5}\n', "a.jsonl:1: item 2.5 is neither a string nor a whole number"),
        ("a.jsonl", '{"user": 1, "item": "a\\nb"}\n', "a.jsonl:1: item .* contains a line break"),
        ("a.jsonl", '{"items": ["a"], "times": [1, 2]}\n', "a.jsonl:1: 1 items need as many times"),
        ("a.jsonl", '{"items": ["a"]}\n{"user": "u", "items": "a"}\n', "a.jsonl:2: items must be lists in all rows"),
        ("a.jsonl", '{"user": 1, "item": 2, "time": 3}\n{"user": 1, "item": 2}\n', "a.jsonl:2: no time, unlike"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, name, text)


def test_flags_that_name_no_column(tmp_path):
    for name, text, columns, names, message in (
        ("a.csv", "user,item\nu,a\n", InteractionColumns(item="what"), None, "no column 'what' .--item_column"),
        ("a.txt", "u a\n", InteractionColumns(user="u"), None, "has no header; name its columns with --column_names"),
        ("a.jsonl", '{"user": 1, "item": 2}\n', GUESSED, ["user", "item"], "--column_names is for files without a"),
        ("a.csv", "user,item\nu,a\n", GUESSED, ["user", "item"], "a.csv:1: this line repeats --column_names"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path, name, text, columns, names)


def test_times_are_numbers_or_dates():
    assert parse_time("12.5") == 12.5
    assert parse_time("1970-01-02") == 86400
    assert parse_time("1970-01-01T01:00:00+01:00") == 0
    assert parse_time("noon") is None


def test_leave_one_out():
    sessions = [Session("long", list("abcd")), Session("short", list("ab")), Session("three", list("abc"))]
    splits, note = leave_one_out(sessions, "--train_file a.txt")
    assert splits["train"].to_list() == [
        {"user": "long", "items": ["a", "b"], "begin": 1},
        {"user": "short", "items": ["a", "b"], "begin": 1},
        {"user": "three", "items": ["a"], "begin": 1},
    ]
    assert splits["validation"].to_list() == [
        {"user": "long", "items": ["a", "b", "c"], "begin": 2},
        {"user": "three", "items": ["a", "b"], "begin": 1},
    ]
    assert splits["test"].to_list() == [
        {"user": "long", "items": list("abcd"), "begin": 3},
        {"user": "three", "items": list("abc"), "begin": 2},
    ]
    assert "2 users; 1 with fewer than three items" in note


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        ("u,a\nu,b\nv,c\n", "give files for the tests"),
        ('u,"a b c d"\n', "if 'a b c d' is several items, give a JSON list"),
    ],
)
def test_no_user_has_three_items(tmp_path, rows, hint):
    path = file_of(tmp_path, "a.csv", f"user,items\n{rows}")
    with pytest.raises(InputError, match=f"--train_file .*a.csv: no user has three items, .*; {hint}"):
        RecommendationArguments(train_file=path).read_named()


def test_split_by_time():
    sessions = [
        Session("old", list("abc"), [1.0, 2.0, 3.0]),
        Session("both", list("abcdef"), [1.0, 4.0, 5.0, 5.0, 8.0, 9.0]),
        Session("new", list("xyz"), [6.0, 8.0, 9.0]),
        Session("later", list("z"), [9.0]),
    ]
    splits, note = split_by_time(sessions, "5", "8")
    assert splits["train"].to_list() == [
        {"user": "old", "items": list("abc"), "begin": 1},
        {"user": "both", "items": list("ab"), "begin": 1},
    ]
    # The first item of a user has no history to be predicted from.
    assert splits["validation"].to_list() == [{"user": "both", "items": list("abcd"), "begin": 2}]
    assert splits["test"].to_list() == [
        {"user": "both", "items": list("abcdef"), "begin": 4},
        {"user": "new", "items": list("xyz"), "begin": 1},
    ]
    assert "train 5, validation 3, test 5" in note
    # Shares: 13 interactions, of which the seventh is at 5 and the tenth at 8.
    shares, _ = split_by_time(sessions, "0.5", "0.7")
    assert {split: rows.to_list() for split, rows in shares.items()} == {
        split: rows.to_list() for split, rows in splits.items()
    }
    for starts, message in (
        (("8", "5"), "--validation_start 8 is not before --test_start 5"),
        (("soon", "5"), "--validation_start 'soon' is neither"),
        (("5", "inf"), "--test_start 'inf' is neither a finite number"),
        (("5", "99"), "nothing to predict in test"),
        (("0", "5"), "nothing to learn in train"),
    ):
        with pytest.raises(InputError, match=message):
            split_by_time(sessions, *starts)
    with pytest.raises(InputError, match="--split time needs times"):
        split_by_time([Session("u", list("ab"))], "1", "2")


def test_files_of_their_own_are_not_split(tmp_path):
    path = file_of(tmp_path, "a.txt", "u a\nu b\nu c\n")
    data = RecommendationArguments(train_file=path, test_file=path)
    assert data.read_named()["test"].to_list() == session_rows([Session("u", list("abc"))]).to_list()
    for flags, message in (
        ({"split": "time", "test_file": path}, "--split time is for interactions of one file"),
        ({"split": "leave_one_out", "test_file": path}, "--split leave_one_out is for interactions of one file"),
        ({"score_last": True}, "--score_last is for files"),
    ):
        with pytest.raises(InputError, match=message):
            RecommendationArguments(train_file=path, **flags).read_named()
    for flags, message in (
        ({"split": "half"}, "unknown --split 'half'; there are leave_one_out, time"),
        ({"test_start": "0.5"}, "--test_start goes with --split time"),
        ({"cutoffs": [0]}, "--cutoffs 0: give 1 or more"),
        ({"top_k": 0}, "--top_k 0: give 1 or more"),
        ({"max_length": 1}, "--max_length 1: give 2 or more"),
        ({"mix": ["markov", "markov"]}, "--mix markov markov repeats a name; give each once"),
        ({"mix": ["knn"]}, "unknown --mix .knn.; there are markov, ngram, cache"),
    ):
        with pytest.raises(ValueError, match=message):
            RecommendationArguments(**flags)


SOURCE = """\
import os
print("module level")

class A:
    def f(self):
        def inner():
            return g(h(1), k=m(2))
        with open(os.path.join("a", "b")) as file:
            return [x.strip() for x in file.readlines()] + list(map(str, self.items))

    async def e(self):
        await self.client.get(url=quote())
        (lambda: late())()
        return fs[0]()
"""


def test_calls_of_functions():
    import ast

    found = dict(functions_below(ast.parse(SOURCE)))
    assert found == {
        "A.f": ("join", "open", "strip", "readlines", "map", "list"),
        "A.f.inner": ("h", "m", "g"),
        "A.e": ("quote", "get", "late"),
    }


def test_sessions_of_calls_are_split_by_file_without_repetitions(tmp_path):
    names = {
        split: [f"{n}.py" for n in range(400) if split_of(f"p/{n}.py") == split][:7] for split in ("train", "test")
    }
    body = "def f():\n    a()\n    b()\n    c()\n    rare{n}()\n\ndef g():\n    a()\n    a()\n    {own}()\n    b()\n"
    for split, files in names.items():
        for n, name in enumerate(files):
            own = "a" if split == "train" else "c"
            (tmp_path / name).write_text(body.format(n=n, own=own))
    (tmp_path / "broken.py").write_text("def f(:\n")
    rows = sessions_below({"p": tmp_path})
    # f is the same in all files, but for names that are too rare; g differs between the splits.
    assert [calls for _, calls in rows["train"]] == [("a", "b", "c"), ("a", "a", "a", "b")]
    assert [calls for _, calls in rows["test"]] == [("a", "a", "c", "b")]
    assert rows["train"][0][0].endswith(".py:f")


def test_embedded_sessions_are_those_of_the_installed_sources(monkeypatch, tmp_path):
    from hfseq.data.embedded import function_calls

    names = [f"{n}.py" for n in range(30)]
    for n, name in enumerate(names):
        (tmp_path / name).write_text("def f():\n" + "    a()\n" * (3 + n))
    monkeypatch.setattr(function_calls, "standard_library", lambda: tmp_path)
    monkeypatch.setattr(function_calls, "PACKAGES", ("no_such_package",))
    function_calls._rows.cache_clear()
    try:
        splits = function_call_rows()
    finally:
        function_calls._rows.cache_clear()
    assert splits["train"].column_names == ["user", "items", "begin"]
    assert sum(map(len, splits.values())) == 30
    assert set(splits["train"]["begin"]) == {1}
