"""Recordings from files: columns, labels, time stamps, NAB's folder, and a line for what is wrong."""

import json
import logging

import numpy as np
import pytest

from hfseq.data.anomalies import UNTIMED, Fields, event_texts, parse_time, read_nab, read_recordings, split_nab
from hfseq.errors import InputError

ROWS = """\
timestamp,value,load,label
2024-01-01 00:00:00,1.5,10,0
2024-01-01 00:05:00,2.5,,0
2024-01-01 00:10:00,3.5,30,1
2024-01-01 00:15:00,4.5,40,1
2024-01-01 00:20:00,5.5,50,0
"""
PLAIN = Fields()
EVENTS = Fields(events=("service", "state"), numbers=("bytes",), gaps=True, anomalies=("scan",))
FLOWS = """\
timestamp,service,state,bytes,label
1704067200,http get,SF,0,normal
1704067200,dns,S0,4095,scan
1704067203,dns,,8190,scan
"""


def read(tmp_path, text, fields=PLAIN, name="a.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_recordings(str(path), "--train_file", fields)[0]


def test_numbers_with_labels(tmp_path):
    found = read(tmp_path, ROWS)
    assert (found.name, found.columns, found.timed) == ("a", ("value", "load"), True)
    np.testing.assert_array_equal(found.values[:, 1], [10, np.nan, 30, 40, 50])
    np.testing.assert_array_equal(found.times, 1_704_067_200 + 300 * np.arange(5))
    assert found.events == ((2, 4),) and found.kinds is None and found.texts is None
    assert read(tmp_path, ROWS, Fields(values=("load",))).columns == ("load",)


def test_parts_carry_their_part_of_an_anomaly(tmp_path):
    found = read(tmp_path, ROWS)
    assert found.part(3, 5).events == ((0, 1),) and found.part(0, 3).events == ((2, 3),)
    assert found.part(4, 5).events == () and len(found.part(1, 4)) == 3
    np.testing.assert_array_equal(found.part(1, 4).values, found.values[1:4])


def test_without_time_stamps_and_labels(tmp_path):
    found = read(tmp_path, "value\n1\n2\n3\n")
    assert not found.timed and found.events is None
    np.testing.assert_allclose(found.times, [0, UNTIMED, 2 * UNTIMED])


def test_events_become_words(tmp_path):
    found = read(tmp_path, FLOWS, EVENTS)
    assert found.texts == (
        "gap=2^0 service=http_get state=SF bytes=2^0",
        "gap=2^0 service=dns state=S0 bytes=2^12",
        "gap=2^2 service=dns state=? bytes=2^12",
    )
    assert found.events == ((1, 3),) and found.kinds == ("scan",)
    assert found.values.shape == (3, 0)


def test_a_single_column_is_the_text_as_it_is(tmp_path):
    found = read(tmp_path, "event,label\nReceived block 7,\nDeleted block 7,anomaly\n", Fields(events=("event",)))
    assert found.texts == ("Received block 7", "Deleted block 7") and found.events == ((1, 2),)


def test_magnitudes():
    values = np.array([[0.0], [1.0], [2.9], [3.0], [1e9], [np.nan]])
    found = event_texts({"a": ["x"] * 6}, ("n",), values)
    assert [text.split("=")[2] for text in found] == ["2^0", "2^1", "2^1", "2^2", "2^29", "?"]


def test_json_lines_are_read_as_a_table(tmp_path):
    lines = [dict(zip(ROWS.split("\n")[0].split(","), row.split(","), strict=True)) for row in ROWS.split("\n")[1:6]]
    lines = [{**line, "value": float(line["value"]), "load": None if line["load"] == "" else 7} for line in lines]
    found = read(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), name="a.jsonl")
    assert found.columns == ("value", "load") and found.events == ((2, 4),)
    np.testing.assert_array_equal(found.values[:, 1], [7, np.nan, 7, 7, 7])


def test_a_folder_is_a_recording_for_each_file(tmp_path):
    for name in ("b/x.csv", "a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ROWS, encoding="utf-8")
    found = read_recordings(str(tmp_path), "--train_file", Fields())
    assert [one.name for one in found] == ["a.csv", "b/x.csv"]


def test_gaps_are_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hfseq"):
        read(tmp_path, ROWS.replace("2024-01-01 00:20:00", "2024-01-01 00:40:00"))
    assert "1 gaps, in which about 4 steps of 300 s are missing" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("00:10:00", "00:05:00", r"a.csv:4: time stamp 2024-01-01 00:05:00 stands twice; each step needs one row"),
        ("00:10:00", "00:01:00", r"a.csv:4: time stamp 2024-01-01 00:01:00 is out of order: it stands after"),
        ("3.5", "inf", r"a.csv:4: column 'value' is infinite"),
        ("3.5", "high", r"a.csv:4: column 'value': 'high' is not a number"),
        ("3.5,30", "3.5", r"a.csv:4: 3 fields, but the first line has 4"),
        ("30,1", "30,scan", r"a.csv:4: column 'label': unknown label 'scan'; write 0 or 1, .* --anomaly_labels"),
        ("2024-01-01 00:10:00", "Monday", r"a.csv:4: column 'timestamp': 'Monday' is not a time stamp"),
        ("load", "value", r"a.csv:1: 2 columns are called 'value'"),
    ],
)
def test_bad_files(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, ROWS.replace(old, new))


@pytest.mark.parametrize(
    ("text", "fields", "name", "message"),
    [
        ("timestamp,value\n", Fields(), "a.csv", "a.csv: no rows"),
        ("", Fields(), "a.csv", "a.csv: empty; the first line names the columns"),
        ("timestamp\n2024-01-01\n", Fields(), "a.csv", "a.csv: no column of values beside timestamp"),
        (ROWS, Fields(values=("laod",)), "a.csv", "a.csv: no column 'laod'; did you mean load?"),
        (ROWS, Fields(), "a.txt", "unknown extension '.txt'; known are .csv"),
        ("event\n \n", Fields(events=("event",)), "a.csv", "no rows|the event is empty"),
        ('{"a": 1}\n{"b": 1}\n', Fields(), "a.jsonl", "a.jsonl:2: 'a' is not in all lines"),
        ('{"a": [1]}\n', Fields(), "a.jsonl", "a.jsonl:1: 'a' must be a text or a number, not list"),
        ("{", Fields(), "a.jsonl", "a.jsonl:1: not JSON"),
        ("1,2\n3,4\n", Fields(), "a.csv", "a.csv:1: the first line must name the columns, but it has values"),
        ("2024-01-01,2\n", Fields(), "a.csv", "a.csv:1: the first line must name the columns"),
        (
            "timestamp,v\n1704067200,1\n1704067200000,2\n",
            Fields(),
            "a.csv",
            "a.csv:3: column 'timestamp': 1704067200000 lies after the year 2260; write seconds since 1970",
        ),
        ("time,v\n1704067200,1\n", Fields(), "a.csv", "a.csv: no column 'timestamp', but 'time'; give --time_column"),
        ("t,v\n1,1\n", Fields(time="ts"), "a.csv", r"a.csv: no column 'ts' \(--time_column\)"),
        (ROWS, Fields(values=("load", "label")), "a.csv", "column 'label' has time stamps or labels, so it cannot"),
    ],
)
def test_other_bad_files(tmp_path, text, fields, name, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, fields, name)


def test_an_empty_folder_and_no_file(tmp_path):
    with pytest.raises(InputError, match="--train_file .*: the folder has no CSV files"):
        read_recordings(str(tmp_path), "--train_file", Fields())
    with pytest.raises(InputError, match="missing.csv"):
        read_recordings(str(tmp_path / "missing.csv"), "--train_file", Fields())


def test_time_stamps_as_text_and_as_numbers():
    assert parse_time("2024-01-01 00:00:00") == parse_time("1704067200") == parse_time("2024-01-01T01:00:00+01:00")
    assert parse_time("12") is None and parse_time("noon") is None


# NAB


def nab(tmp_path, windows=None, rows=40):
    (tmp_path / "real").mkdir()
    lines = [f"2024-01-01 {step // 12:02}:{5 * step % 60:02}:00.000000,{step}" for step in range(rows)]
    # The clocks change.
    lines[30] = lines[29].partition(",")[0] + ",30"
    (tmp_path / "real" / "a.csv").write_text("timestamp,value\n" + "\n".join(lines) + "\n", encoding="utf-8")
    windows = {"real/a.csv": [["2024-01-01 01:00:00.000000", "2024-01-01 01:25:00.000000"]]} | (windows or {})
    (tmp_path / "combined_windows.json").write_text(json.dumps(windows), encoding="utf-8")
    return str(tmp_path)


def test_windows_are_rows(tmp_path):
    (found,) = read_nab(nab(tmp_path), "--nab_folder")
    assert found.name == "real/a.csv" and found.events == ((12, 18),) and len(found) == 40
    first, rest = split_nab(found)
    assert len(first) == 6 and first.events is None and len(rest) == 34 and rest.events == ((6, 12),)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"b.csv": []}, "b.csv is not in"),
        ({"real/a.csv": [["2024-01-01"]]}, "real/a.csv: a window must be two time stamps"),
        ({"real/a.csv": [["2025-01-01", "2025-01-02"]]}, "no row lies in the window from 2025-01-01 to 2025-01-02"),
    ],
)
def test_bad_windows(tmp_path, windows, message):
    with pytest.raises(InputError, match=message):
        read_nab(nab(tmp_path, windows), "--nab_folder")


def test_no_folder_of_nab(tmp_path):
    with pytest.raises(InputError, match="--nab_folder .*: no combined_windows.json .*; give a folder of NAB"):
        read_nab(str(tmp_path), "--nab_folder")
