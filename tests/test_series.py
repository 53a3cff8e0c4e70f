import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hfseq.data.series import (
    Series,
    categories,
    default_lags,
    extended_stamps,
    infer_frequency,
    read_series,
    regular_series,
    season_length,
    static_ids,
    time_feature_names,
    time_features,
)
from hfseq.errors import InputError

EXCHANGE = Path(__file__).parents[2] / "shared/data/forecast_exchange_rate/exchange_rate.csv"


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, name="a.csv", **options):
        path = tmp_path / name
        path.write_text(text)
        return read_series(str(path), "--train_file", **options)

    return write_and_read


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_wide(read):
    found = read("date,a,b\n2024-01-01,1,2\n2024-01-02,,4e1\n2024-01-03,NaN,-5\n")
    assert [one.item_id for one in found] == ["a", "b"]
    np.testing.assert_equal(found[0].target, [1, np.nan, np.nan])
    np.testing.assert_equal(found[1].target, [2, 40, -5])
    assert list(found[0].stamps) == list(pd.date_range("2024-01-01", periods=3))
    assert list(found[1].lines) == [2, 3, 4]


@pytest.mark.parametrize("header", ["", "x,y2\n"])
def test_wide_without_time_stamps(read, header):
    found = read(header + "0.5,1\n0.25,2\n")
    assert [one.item_id for one in found] == (["x", "y2"] if header else ["1", "2"])
    np.testing.assert_equal([one.target for one in found], [[0.5, 0.25], [1, 2]])
    assert found[0].stamps is None and found[0].frequency is None


def test_wide_with_years(read):
    [one] = read("year,sunspots\n1990,5\n1991,6\n1992,8\n")
    [one], gaps = regular_series([one])
    assert one.frequency == "YS-JAN" and not gaps
    assert list(one.stamps.year) == [1990, 1991, 1992]


def test_wide_covariates_belong_to_every_series(read):
    found = read("ds,a,holiday,b\n2024-01-01,1,0,2\n2024-01-02,3,1,4\n2024-01-03,,1,\n", covariate_columns=["holiday"])
    assert [one.item_id for one in found] == ["a", "b"]
    for one in regular_series(found)[0]:
        assert len(one.target) == 2 and one.covariates.tolist() == [[0], [1], [1]] and len(one.stamps) == 3


def test_long(read):
    found = read(
        "unique_id,ds,y,price,shop\nb,2024-01-01,1,9,X\na,2024-01-01,2,8,Y\nb,2024-01-02,3,7,X\na,2024-01-02,,6,Y\n",
        covariate_columns=["price"],
        static_columns=["shop"],
    )
    assert [one.item_id for one in found] == ["b", "a"]
    assert found[0].target.tolist() == [1, 3] and found[0].covariates.tolist() == [[9], [7]]
    assert found[0].static_categories == ("X",) and list(found[0].lines) == [2, 4]
    # The last row of `a` has no value: its price is known for the horizon.
    _, a = regular_series(found)[0]
    assert a.target.tolist() == [2] and a.covariates.tolist() == [[8], [6]]
    assert categories(found) == [["X", "Y"]] and static_ids(found[0], [["X", "Y"]]) == [0]
    with pytest.raises(InputError, match="static class 'X' .* is not among those of the training data"):
        static_ids(found[0], [["Z"]])


def test_long_with_other_names_and_one_series(read):
    [one] = read("t\tv\n2024-01-01 00:00\t1\n2024-01-01 01:00\t2\n", "a.tsv", time_column="t", target_column="v")
    assert one.item_id == "v" and one.target.tolist() == [1, 2] and regular_series([one])[0][0].frequency == "h"


def test_columns_that_are_not_read_are_reported(read, caplog):
    read("unique_id,ds,y,price\na,2024-01-01,1,2\n")
    assert "not read: 'price'; name what is known for the horizon by --covariate_columns" in caplog.text


def test_gluonts(read):
    found = read(
        lines(
            {
                "start": "2024-01-31 00:00",
                "target": [1, None, "NaN", 4],
                "item_id": "x",
                "feat_static_cat": [3],
                "feat_static_real": [0.5],
                "feat_dynamic_real": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]],
            },
            {
                "start": "2024-02-29",
                "target": [1],
                "feat_static_cat": [2],
                "feat_static_real": [1],
                "feat_dynamic_real": [[1], [2]],
            },
        ),
        "a.jsonl",
    )
    assert [one.item_id for one in found] == ["x", "2"]
    (x, second), gaps = regular_series(found, "M")
    np.testing.assert_equal(x.target, [1, np.nan, np.nan, 4])
    assert x.covariates.tolist() == [[1, 6], [2, 7], [3, 8], [4, 9], [5, 10]]
    assert x.static_categories == ("3",) and x.static_reals == (0.5,) and not gaps
    assert list(x.stamps) == list(pd.date_range("2024-01-31", periods=5, freq="ME"))
    assert x.frequency == "ME" and list(second.stamps) == [pd.Timestamp("2024-02-29")]


def test_frequency_of_a_line_is_taken(read):
    found = read(lines({"start": "2024-01-01", "target": [1, 2, 3], "freq": "2H"}), "a.json")
    [one], _ = regular_series(found)
    assert one.frequency == "2h" and one.stamps[2] == pd.Timestamp("2024-01-01 04:00")


@pytest.mark.parametrize(
    "text, name, options, message",
    [
        ("", "a.csv", {}, "a.csv: empty; there is no series (--train_file)"),
        ("a,b\n", "a.csv", {}, "a.csv: no rows"),
        ("1,2\n3\n", "a.csv", {}, "a.csv:2: 1 field, but the first line has 2"),
        ("a,b\n1,2\n3,4,5\n", "a.csv", {}, "a.csv:3: 3 fields, but the first line has 2"),
        ("a\n1\n\n2\n", "a.csv", {}, "a.csv:3: a blank line; write NaN for a missing value"),
        ("a,b\n1,2\n3,inf\n", "a.csv", {}, "a.csv:3: column 'b' is infinite"),
        ("a,b\n1,2\n-1e999,4\n", "a.csv", {}, "a.csv:3: column 'a' is infinite"),
        ("a,b\n1,2\n3,1_0\n", "a.csv", {}, "a.csv:3: column 'b': '1_0' is not a number"),
        ("a,a\n1,2\n", "a.csv", {}, "a.csv:1: 2 columns are called 'a'"),
        ("a,b\nNaN,\n,1\n", "a.csv", {}, "a.csv: series 'a' has no value"),
        ("ds,a\n31.01.2024,1\n", "a.csv", {}, "a.csv:2: column 'ds': '31.01.2024' is not a time stamp; write it as"),
        ("ds,a\n2024-02-30,1\n", "a.csv", {}, "a.csv:2: column 'ds': '2024-02-30' is not a time stamp"),
        ("ds,a\n,1\n", "a.csv", {}, "a.csv:2: column 'ds': '' is not a time stamp"),
        ("a,b\n1,2\n", "a.csv", {"covariate_columns": ["c"]}, "a.csv: no column 'c'"),
        ("1,2\n", "a.csv", {"covariate_columns": ["2"]}, "a.csv:1: this file has no header"),
        ("a,b\n1,2\n", "a.csv", {"static_columns": ["b"]}, "--static_columns are for a long table"),
        ("ds,x\n2024-01-01,1\n", "a.csv", {"covariate_columns": ["x"]}, "a.csv: no column of values"),
        ("unique_id,y\na,1\n,2\n", "a.csv", {}, "a.csv:3: column 'unique_id' is empty"),
        (
            "unique_id,y,s\na,1,u\na,2,v\n",
            "a.csv",
            {"static_columns": ["s"]},
            "a.csv:3: column 's' is 'v', but 'u' in an earlier row of series 'a'",
        ),
        ("x\n", "a.txt", {}, "--train_file .*a.txt: unknown extension '.txt'"),
        ("{", "a.jsonl", {}, "a.jsonl:1: not JSON"),
        ("\n[1]\n", "a.jsonl", {}, "a.jsonl:2: each line must be an object with the list 'target'"),
        (lines({"target": 1}), "a.jsonl", {}, "a.jsonl:1: 'target' must be a list, not int"),
        (lines({"target": [[1], [2]]}), "a.jsonl", {}, "a.jsonl:1: 'target' is 2-dimensional, a multivariate series"),
        (lines({"target": [1, "x"]}), "a.jsonl", {}, "a.jsonl:1: 'target'[1] is not a number: 'x'"),
        (lines({"target": [1, True]}), "a.jsonl", {}, "a.jsonl:1: 'target'[1] is not a number: True"),
        ('{"target": [1, Infinity]}', "a.jsonl", {}, "a.jsonl:1: 'target'[1] is infinite"),
        (lines({"target": [1], "start": "soon"}), "a.jsonl", {}, "a.jsonl:1: 'start' is not a time stamp: 'soon'"),
        (lines({"target": [1], "freq": "soon"}), "a.jsonl", {}, "a.jsonl:1: 'freq': 'soon' is not a frequency"),
        (
            lines({"target": [1, 2], "feat_dynamic_real": [[1]]}),
            "a.jsonl",
            {},
            "a.jsonl:1: 'feat_dynamic_real'[0] has 1 values, 'target' 2",
        ),
        (
            lines({"target": [1], "feat_static_cat": [1]}, {"target": [1]}),
            "a.jsonl",
            {},
            "a.jsonl:2: series '2' has 0 static classes, but series '1' has 1",
        ),
        (
            lines({"target": [1], "start": "2024"}, {"target": [1]}),
            "a.jsonl",
            {},
            "a.jsonl:2: 'start' must stand in all lines or in none",
        ),
        (
            lines({"target": [1], "item_id": "a"}, {"target": [1], "item_id": "a"}),
            "a.jsonl",
            {},
            "a.jsonl:2: a second series is called 'a'",
        ),
        (lines({"target": [1]}), "a.jsonl", {"covariate_columns": ["x"]}, "--covariate_columns: for CSV files"),
        ("ds,a\n1677-01-01,1\n", "a.csv", {}, "a.csv:2: column 'ds': '1677-01-01' is not a time stamp"),
        ("ds,a\n9999-01-01,1\n", "a.csv", {}, "'9999-01-01' is not a time stamp; .*, in a year from 1678 to 2261"),
        (
            "ds,a\n2024-01-01 00:00Z,1\n2024-01-01 01:00,2\n",
            "a.csv",
            {},
            "a.csv:3: column 'ds': '2024-01-01 01:00' has no offset from UTC, unlike the first time stamp",
        ),
        (
            "2024-01-01,5\n2024-01-02,6\n",
            "a.csv",
            {},
            "a.csv:1: the first line must name the columns, but it begins with the time '2024-01-01'",
        ),
        ("date,y\n2024-01-01,1\n", "a.csv", {}, "a.csv: no column 'ds', but 'date'; give --time_column date"),
        ("t,y\n1,1\n", "a.csv", {"time_column": "time"}, "a.csv: no column 'time' (--time_column)"),
        ("shop,y\nx,1\n", "a.csv", {"id_column": "store"}, "a.csv: no column 'store' (--id_column)"),
        ("ds,y\n2024,1\n", "a.csv", {"covariate_columns": ["y"]}, "--covariate_columns: 'y' is named twice"),
        ("y,x\n1,1\n", "a.csv", {"covariate_columns": ["x", "x"]}, "--covariate_columns: 'x' is named twice"),
        ('{"target": [1' + 400 * "0" + "]}\n", "a.jsonl", {}, "a.jsonl:1: 'target'[0] is infinite"),
        (
            lines({"target": [1], "feat_static_real": [1, None]}),
            "a.jsonl",
            {},
            "a.jsonl:1: 'feat_static_real'[1] is missing; give a number",
        ),
    ],
)
def test_bad_files(read, text, name, options, message):
    with pytest.raises(InputError) as caught:
        read(text, name, **options)
    shown = str(caught.value)
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), shown) and "\n" not in shown


@pytest.mark.parametrize(
    "stamps, frequency, message",
    [
        ("2024-01-01 2024-01-03 2024-01-02", None, "a.csv:4: time stamp 2024-01-02 00:00:00 is out of order"),
        (
            "2024-01-01 2024-01-02 2024-01-02",
            None,
            "a.csv:4: time stamp 2024-01-02 00:00:00 stands twice in series 'a'",
        ),
        (
            "2024-01-01T00:00 2024-01-01T00:05 2024-01-01T00:10 2024-01-01T00:17",
            None,
            "a.csv:5: 2024-01-01 00:17:00 is 0:07:00 after the step before it, and most steps are 0:05:00 apart",
        ),
        ("2024-01-01", None, "a.csv:2: a single time stamp does not tell the frequency; give --frequency"),
        ("2024-01-01 2024-01-02 2024-01-03T12", "D", "a.csv:4: time stamp 2024-01-03 12:00:00 is not a step of"),
        ("2024-01-06 2024-01-08", "B", "a.csv:2: time stamp 2024-01-06 00:00:00 is not a step of frequency B"),
        ("2024-01-01 2024-01-02", "soon", "--frequency: 'soon' is not a frequency of pandas"),
        (
            "2024-01-01 2024-01-02 2224-01-03",
            None,
            "a.csv:4: from 2024-01-01 00:00:00 to 2224-01-03 00:00:00 there are",
        ),
    ],
)
def test_bad_time_stamps(read, stamps, frequency, message):
    found = read("ds,a\n" + "".join(f"{stamp},1\n" for stamp in stamps.split()))
    with pytest.raises(InputError) as caught:
        regular_series(found, frequency)
    assert message in str(caught.value)


def test_series_of_different_frequencies(read):
    found = read("unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,1\nb,2024-01-01,1\nb,2024-01-08,1\n")
    with pytest.raises(InputError, match="series 'b' has frequency W-MON, but 'a' D"):
        regular_series(found)


def test_gaps_become_missing_values(read):
    found = read("ds,a,x\n2024-01-01,1,1\n2024-01-02,2,2\n2024-01-05,5,5\n2024-01-06,,6\n")
    (a, x), gaps = regular_series(found)
    assert gaps == 4  # two days, in both series
    np.testing.assert_equal(a.target, [1, 2, np.nan, np.nan, 5])
    np.testing.assert_equal(x.target, [1, 2, np.nan, np.nan, 5, 6])
    assert list(a.stamps) == list(pd.date_range("2024-01-01", periods=5))
    assert a.place(2).endswith("a.csv:4") and a.place(4).endswith("a.csv:4")


def test_missing_values_at_the_start_are_cut_off(read):
    [one], _ = regular_series(read("ds,a\n2024-01-01,\n2024-01-02,2\n2024-01-03,3\n"))
    assert one.target.tolist() == [2, 3] and one.stamps[0] == pd.Timestamp("2024-01-02")


def test_a_gap_in_covariates_is_refused(read):
    text = "ds,y,x\n2024-01-01,1,1\n2024-01-02,2,2\n2024-01-04,4,4\n"
    with pytest.raises(InputError, match="series 'y' at 2024-01-03 00:00:00: a covariate is missing"):
        regular_series(read(text, covariate_columns=["x"]))


def test_offsets_from_utc_are_applied(read):
    [one] = read("ds,a\n2024-01-01T01:00+01:00,1\n2024-01-01T01:00Z,2\n")
    assert list(one.stamps) == [pd.Timestamp("2024-01-01 00:00"), pd.Timestamp("2024-01-01 01:00")]


@pytest.mark.parametrize(
    "frequency", ["s", "5min", "h", "3h", "D", "2D", "B", "W-WED", "MS", "ME", "QS-FEB", "QE-NOV", "YS-JAN"]
)
@pytest.mark.parametrize("gaps", [False, True])
def test_inferred_frequency(frequency, gaps):
    stamps = pd.date_range("2024-01-01", periods=60, freq=frequency)
    if gaps:
        stamps = stamps.delete([3, 4, 20])
    found = infer_frequency(stamps)
    assert list(pd.date_range(stamps[0], stamps[-1], freq=found)) == list(
        pd.date_range(stamps[0], stamps[-1], freq=frequency)
    )


def test_time_features():
    stamps = pd.DatetimeIndex(["2024-01-01 00:00", "2024-12-29 23:59"])  # Monday and Sunday of a leap year
    names = time_feature_names("15min")
    features = dict(zip(names, time_features(stamps, "15min").T, strict=True))
    assert list(features) == ["minute_of_hour", "hour_of_day", "day_of_week", "day_of_month", "day_of_year"]
    np.testing.assert_allclose(features["minute_of_hour"], [-0.5, 0.5])
    np.testing.assert_allclose(features["hour_of_day"], [-0.5, 0.5])
    np.testing.assert_allclose(features["day_of_week"], [-0.5, 0.5])
    np.testing.assert_allclose(features["day_of_month"], [-0.5, 28 / 30 - 0.5], rtol=1e-6)
    np.testing.assert_allclose(features["day_of_year"], [-0.5, 363 / 365 - 0.5], rtol=1e-6)
    assert time_features(stamps, "ME").tolist() == [[-0.5], [0.5]]
    np.testing.assert_allclose(time_features(stamps, "W")[:, 1], [-0.5, 51 / 52 - 0.5], rtol=1e-6)
    assert time_features(stamps, None).shape == (2, 0) and time_features(stamps, "Y").dtype == np.float32


def test_default_lags():
    assert default_lags(None, 5) == [1, 2, 3, 4, 5]
    assert default_lags("MS") == [*range(1, 8), 11, 12, 13, 23, 24, 25, 35, 36, 37]
    assert default_lags("M", 12) == [*range(1, 8), 11, 12]
    assert default_lags("h", 75) == [*range(1, 8), 23, 24, 25, 47, 48, 49, 71, 72, 73]
    assert default_lags("B", 30) == [*range(1, 8), 9, 10, 11, 14, 15, 16, 19, 20, 21, 22, 23]
    assert default_lags("30min", 50) == [*range(1, 9), 47, 48, 49]
    assert max(default_lags("s")) <= 1200


@pytest.mark.parametrize(
    "frequency, season",
    [
        (None, 1),
        ("5min", 288),
        ("h", 24),
        ("7h", 1),
        ("D", 7),
        ("B", 5),
        ("W", 52),
        ("M", 12),
        ("QS-FEB", 4),
        ("Y", 1),
    ],
)
def test_season_length(frequency, season):
    assert season_length(frequency) == season


def test_extended_stamps():
    stamps = pd.date_range("2024-01-31", periods=2, freq="ME")
    assert list(extended_stamps(stamps, "ME", 2)) == list(pd.date_range("2024-01-31", periods=4, freq="ME"))


def test_series_without_covariates():
    assert Series("a", np.zeros(3)).covariates.shape == (3, 0)


@pytest.mark.skipif(not EXCHANGE.exists(), reason="the shared data are not beside this checkout")
def test_exchange_rates():
    found = read_series(str(EXCHANGE), "--train_file")
    assert [one.item_id for one in found] == [str(number) for number in range(1, 9)]
    assert {len(one.target) for one in found} == {7588} and found[0].target[:2].tolist() == [0.7855, 0.7818]


def test_a_column_named_month_need_not_be_time_stamps(read):
    [one] = read("month,y\n1,5\n2,6\n")
    assert one.stamps is None and one.target.tolist() == [5, 6]


def test_series_of_two_frequencies_are_refused(read):
    own = {"target": [1, 2], "start": "2024-01-01"}
    found = read(lines(own | {"freq": "D"}, own | {"freq": "h"}), "a.jsonl")
    with pytest.raises(InputError, match="a.jsonl:2: series '2' has 'freq' 'h', but '1' 'D'; give --frequency"):
        regular_series(found)
    assert {one.frequency for one in regular_series(found, "W")[0]} == {"W-MON"}


@pytest.mark.parametrize("frequency", ["0D", "-1D"])
def test_a_frequency_goes_forward(read, frequency):
    with pytest.raises(InputError, match=f"--frequency: '{frequency}' is not a frequency"):
        regular_series(read("ds,a\n2024-01-01,1\n2024-01-02,2\n"), frequency)
