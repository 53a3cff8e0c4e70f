"""Watching what is served: reading logs, joining labels, and the recipe on logs and on numeric tasks."""

import csv
import json
import random

import numpy as np
import pytest
import recipe_runs
import torch
from recipe_runs import load, weights
from transformers import pipeline

import hfseq
from hfseq.errors import InputError
from hfseq.serving import traffic
from hfseq.serving.traffic import TrafficLog
from hfseq.tokenization import item_tokenizer
from hfseq.training import served
from hfseq.training.served import Served, join_labels, read_served

RECIPE = load("monitoring")
HORIZON = 4
NUM_ITEMS = 30


def record(number, task="time-series-forecasting", model="model", **fields):
    time = f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}Z"
    given = {"id": f"r-{number}", "time": time, "model": model, "task": task, "inputs": None, "parameters": {}}
    return given | {"output": None} | fields


def write_log(directory, records, **options):
    log = TrafficLog(directory, **options)
    for one in records:
        log.write(one)
    log.close()
    assert log.dropped == 0


def watch(output_dir, **flags):
    given = {"output_dir": output_dir, "use_cpu": "true", "disable_tqdm": "true"} | flags
    argv = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    codes = []
    recipe_runs.start(type("Recipe", (), {"main": staticmethod(lambda argv: codes.append(RECIPE.main(argv)))}), argv)
    return codes[0], json.loads((output_dir / "report.json").read_text(encoding="utf-8"))


# Reading


def test_the_reader_and_the_writer_agree_on_the_names_of_files():
    assert served.PATTERN == traffic.PATTERN


def test_rows_of_all_files_come_in_order_of_time(tmp_path):
    write_log(tmp_path, [record(number, inputs=number) for number in (3, 1, 2)], max_bytes=10)
    write_log(tmp_path, [record(4), record(5, model="other"), record(6, task="translation_en_to_de")])
    rows, notes = read_served(str(tmp_path), ["model"], {"time-series-forecasting"})
    assert [(row.id, row.inputs) for row in rows] == [("r-1", 1), ("r-2", 2), ("r-3", 3), ("r-4", None)]
    assert notes == [
        f"4 rows in 4 files of {tmp_path}",
        "1 rows of other models left out: 'other'",
        "1 rows of other tasks left out: 'translation_en_to_de'",
    ]
    assert len(read_served(str(tmp_path), ["model"], {"translation"})[0]) == 1


@pytest.mark.parametrize("cut", [2, 60, -1])
def test_an_unfinished_last_line_is_left_out_and_said(cut, tmp_path):
    write_log(tmp_path, [record(1), record(2, inputs="ä" * 20)])
    (file,) = tmp_path.iterdir()
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[:cut])
    rows, notes = read_served(str(tmp_path), ["model"], {"time-series-forecasting"})
    assert [row.id for row in rows] == ["r-1"] and "1 unfinished last lines of files left out" in notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "traffic-1.jsonl:1: not JSON"),
        ("[1]", "traffic-1.jsonl:1: no object"),
        (json.dumps({"id": "1"}), "traffic-1.jsonl:1: no time"),
        (json.dumps(record(1) | {"model": 3}), "traffic-1.jsonl:1: model 3 is not a string"),
        (json.dumps(record(1, model="other")), "no rows of model; name one of 'other' by --served_name"),
        (
            json.dumps(record(1, task="translation")),
            "no rows of model that --task supports: they are of 'translation'",
        ),
    ],
)
def test_bad_logs(line, message, tmp_path):
    (tmp_path / "traffic-1.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match=message):
        read_served(str(tmp_path), ["model"], {"time-series-forecasting"})


def test_a_directory_without_a_log(tmp_path):
    with pytest.raises(InputError, match=r"no files traffic-\*.jsonl"):
        read_served(str(tmp_path), ["model"], {"translation"})


LABELS = [("r-1", "good"), ("r-2", "bad"), ("r-2", "good"), ("r-9", "good"), ("r-3", "bad"), ("r-4", "")]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_labels_are_joined_by_id(suffix, tmp_path):
    path = tmp_path / f"labels.{suffix}"
    if suffix == "jsonl":
        lines = [json.dumps({"id": name, "label": label or None}) for name, label in LABELS]
    else:
        lines = [("," if suffix == "csv" else "\t").join(row) for row in (("id", "label"), *LABELS)]
    path.write_text("\n".join(lines) + "\n")
    rows = [Served(name, "", None, None) for name in ("r-1", "r-2", "r-3", "r-3", "r-4", "r-5")]
    notes = join_labels(rows, str(path))
    assert [row.label for row in rows] == ["good", "good", None, None, None, None]
    assert notes == [
        f"2 of 6 rows with a label of {path}",
        "1 labels without a row of that id",
        "1 labels replaced by a later one of the same id",
        "2 rows share their id with another row and get no label",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "id,class\n1,good\n", "no column 'label'"),
        ("labels.csv", "id,label\n1\n", "labels.csv:2: 1 fields, but the header names 2"),
        ("labels.jsonl", "[1, 2]\n", "labels.jsonl:1: each line must be an object with id and label"),
        ("labels.txt", "1 good\n", "unknown extension '.txt'"),
    ],
)
def test_bad_labels(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        join_labels([], str(tmp_path / name))


# Forecasters


def series(seed, count=40, length=40, level=10.0, noise=1.0, missing=0.0):
    """Series of a weekly rhythm, with different phases."""
    rng = np.random.default_rng(seed)
    steps = np.arange(length)
    found = []
    for _ in range(count):
        values = level + 3 * np.sin(2 * np.pi * (steps + rng.integers(7)) / 7) + rng.normal(0, noise, length)
        values[rng.random(length) < missing] = np.nan
        found.append(values)
    return found


def write_series(path, found):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"s{number}" for number in range(len(found))])
        writer.writerows(
            [["" if np.isnan(value) else f"{value:.6g}" for value in row] for row in zip(*found, strict=True)]
        )


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    """An untrained forecaster of points, and files of series: as those of the test, and others."""
    root = tmp_path_factory.mktemp("forecaster")
    kinds = {"test": {}, "same": {}, "train": {"count": 20}, "higher": {"level": 14.0}, "gaps": {"missing": 0.3}}
    for seed, (name, options) in enumerate(kinds.items()):
        write_series(root / f"{name}.csv", series(seed, **options))
    torch.manual_seed(0)
    fields = {"input_size": 1, "prediction_length": HORIZON, "context_length": 8, "lags_sequence": [1, 2, 7]}
    config = hfseq.GruConfig(hidden_size=8, dropout=0.0, loss="mse", **fields)
    hfseq.GruForPrediction(config).save_pretrained(root / "model")
    return root


def flags_of(root, task, **flags):
    given = {"task": task, "model_name_or_path": root / "model", "test_file": root / "test.csv"}
    if task == "forecasting":
        given["seasonality"] = 7
    return given | flags


def drifted(found):
    return {one["what"] for one in found["drift"] if one["p_value"] < 0.01}


def test_series_as_before_raise_no_alarm(forecaster, tmp_path):
    code, found = watch(tmp_path / "out", **flags_of(forecaster, "forecasting", fresh_file=forecaster / "same.csv"))
    assert code == 0 and found["alarms"] == []
    assert found["drop"]["metric"] == "MASE in %" and found["drop"]["lower_is_better"]
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# GruForPrediction: 40 fresh windows beside 40 reference windows")


def test_mase_is_that_of_the_pipeline(forecaster, tmp_path):
    _, found = watch(tmp_path / "out", **flags_of(forecaster, "forecasting", fresh_file=forecaster / "same.csv"))
    forecast = pipeline("time-series-forecasting", model=str(forecaster / "model"), device="cpu")
    errors = []
    for values in series(1):
        values = np.array([float(f"{value:.6g}") for value in values])
        history, truth = values[:-HORIZON], values[-HORIZON:]
        scale = np.abs(history[7:] - history[:-7]).mean()
        errors.append(100 * np.abs(truth - forecast(history)["mean"]).mean() / scale)
    assert found["drop"]["fresh"] == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("higher", {"level of the last values", "level of the forecast"}),
        ("gaps", {"share of missing values"}),
    ],
)
def test_other_series_end_with_code_3(name, expected, forecaster, tmp_path):
    fresh = forecaster / f"{name}.csv"
    code, found = watch(tmp_path / "out", **flags_of(forecaster, "forecasting", fresh_file=fresh))
    assert code == 3 and expected <= drifted(found) and "spread of the last values" not in drifted(found)


def log_of_series(forecaster, directory, name, seed, **options):
    """Log the forecasts of all series of a file; returns ids and true values."""
    forecast = pipeline("time-series-forecasting", model=str(forecaster / "model"), device="cpu")
    rows = [[float(f"{value:.6g}") for value in values] for values in series(seed, **options)]
    records = [
        record(number, inputs={"target": row[:-HORIZON]}, output=forecast({"target": row[:-HORIZON]}), model=name)
        for number, row in enumerate(rows)
    ]
    write_log(directory, records)
    return [(one["id"], row[-HORIZON:]) for one, row in zip(records, rows, strict=True)]


def test_a_log_of_forecasts_gives_the_report_of_the_series(forecaster, tmp_path):
    truth = log_of_series(forecaster, tmp_path / "log", str(forecaster / "model"), 3, level=14.0)
    lines = [json.dumps({"id": name, "label": values}) for name, values in truth]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines) + "\n")
    files = {"served": tmp_path / "log", "labels_file": tmp_path / "labels.jsonl"}
    code, found = watch(tmp_path / "log_out", **flags_of(forecaster, "forecasting", **files))
    other = watch(tmp_path / "out", **flags_of(forecaster, "forecasting", fresh_file=forecaster / "higher.csv"))
    assert code == other[0] == 3
    drops = [[one["drop"][name] for name in ("reference", "fresh", "low", "high")] for one in (found, other[1])]
    assert drops[0] == pytest.approx(drops[1], rel=1e-4)
    for one, same in zip(found["drift"], other[1]["drift"], strict=True):
        assert one["what"] == same["what"] and one["fresh"] == pytest.approx(same["fresh"], abs=1e-4)
    assert "40 of 40 rows with a label" in (tmp_path / "log_out" / "report.md").read_text(encoding="utf-8")


def test_true_values_may_come_for_some_and_in_part(forecaster, tmp_path):
    truth = log_of_series(forecaster, tmp_path / "log", "model", 1)
    write_log(tmp_path / "log", [record(98, output={"mean": [1.0]}, inputs=[1.0, 2.0]), record(99, inputs="summary")])
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        first, second = (name for name, _ in truth[:2])
        rows = [["id", "label"], [first, json.dumps([truth[0][1][0], None])], [second, truth[1][1][0]]]
        csv.writer(file).writerows(rows)
    files = {"served": tmp_path / "log", "labels_file": tmp_path / "labels.csv"}
    code, found = watch(tmp_path / "out", **flags_of(forecaster, "forecasting", **files))
    assert code == 0 and "2 labels are too few for an alarm by their score; 30 would do" in found["notes"]
    assert {"1 rows without a series or a forecast left out", "1 rows with another horizon left out"} < {
        *found["notes"]
    }
    # Without any true value there are no residuals.
    del files["labels_file"]
    code, found = watch(tmp_path / "drift", **flags_of(forecaster, "forecasting", **files))
    assert code == 0 and found["drop"] is None
    assert "residual of the forecast" not in {one["what"] for one in found["drift"]}


def test_more_true_values_than_steps_are_refused(forecaster, tmp_path):
    log_of_series(forecaster, tmp_path / "log", "model", 1, count=2)
    (tmp_path / "labels.jsonl").write_text(json.dumps({"id": "r-0", "label": [1, 2, 3, 4, 5]}) + "\n")
    files = {"served": tmp_path / "log", "labels_file": tmp_path / "labels.jsonl"}
    with pytest.raises(InputError, match="label of r-0: 5 values, but the horizon has 4 steps"):
        watch(tmp_path / "out", **flags_of(forecaster, "forecasting", **files))


TRAINING = {"retrain": "true", "num_train_epochs": 4, "learning_rate": "2e-2", "logging_steps": 100}


def test_a_forecaster_trains_on(forecaster, tmp_path):
    files = {"fresh_file": forecaster / "same.csv", "train_file": forecaster / "train.csv", "num_fresh_windows": 3}
    code, found = watch(tmp_path / "out", **flags_of(forecaster, "forecasting", train_stride=4, **files, **TRAINING))
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert code == 0 and "The new model is better and is kept" in report, report
    new = tmp_path / "out" / "retrained"
    assert any(not torch.equal(value, weights(forecaster / "model")[name]) for name, value in weights(new).items())


def test_held_out_windows_come_after_those_to_train_on(forecaster, tmp_path):
    data, args = RECIPE.ARGUMENTS["forecasting"]
    files = {"fresh_file": str(forecaster / "same.csv"), "test_file": str(forecaster / "test.csv")}
    options = {"num_fresh_windows": 6, "backtest_stride": 2, "holdout": 0.5}
    given = data(task="forecasting", model_name_or_path=str(forecaster / "model"), **files, **options)
    monitored = RECIPE.TASKS["forecasting"](given, args(output_dir=str(tmp_path), use_cpu=True))
    monitored.read()
    train, held_out = (list(part["origin"]) for part in monitored.split_judged(monitored.judged))
    # Origins 26 to 36: those from 32 on are held out, and a window that begins at 30 would show their values.
    assert {*train} == {26, 28} and {*held_out} == {32, 34, 36}


# Recommenders


def walk(rng, length, factor=7):
    item = rng.randrange(NUM_ITEMS)
    for _ in range(length):
        yield f"item {item}"
        item = (factor * item + 3) % NUM_ITEMS if rng.random() < 0.9 else rng.randrange(NUM_ITEMS)


def sessions(seed, count=80, length=(4, 9), rename=lambda item: item):
    rng = random.Random(seed)
    return [[rename(item) for item in walk(rng, rng.randint(*length))] for _ in range(count)]


def write_sessions(path, found):
    lines = [json.dumps({"user": f"u{number}", "items": items}) for number, items in enumerate(found)]
    path.write_text("\n".join(lines) + "\n")


OTHER = {"length": (9, 14), "rename": lambda item: "new" if item in ("item 1", "item 2") else item}


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    """An untrained recommender, and files of sessions."""
    root = tmp_path_factory.mktemp("recommender")
    for seed, (name, options) in enumerate({"test": {}, "same": {}, "other": OTHER, "train": {"count": 200}}.items()):
        write_sessions(root / f"{name}.jsonl", sessions(seed, **options))
    tokenizer = item_tokenizer([f"item {number}" for number in range(NUM_ITEMS)])
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = hfseq.GruConfig(vocab_size=len(tokenizer), hidden_size=16, dropout=0.0, **ids)
    for part in (hfseq.GruForCausalLM(config), tokenizer):
        part.save_pretrained(root / "model")
    return root


def recommending(root, **flags):
    return flags_of(root, "recommendation", **{"test_file": root / "test.jsonl"} | flags)


def test_sessions_as_before_raise_no_alarm_and_others_do(recommender, tmp_path):
    code, found = watch(tmp_path / "same", **recommending(recommender, fresh_file=recommender / "same.jsonl"))
    assert code == 0 and found["alarms"] == [] and found["drop"]["metric"] == "HR@10"
    code, found = watch(tmp_path / "other", **recommending(recommender, fresh_file=recommender / "other.jsonl"))
    assert code == 3 and drifted(found) >= {"length of the history", "share of unknown items"}


def log_of_sessions(recommender, directory, found, **options):
    recommend = pipeline("next-item-recommendation", model=str(recommender / "model"), device="cpu")
    write_log(
        directory,
        [
            record(number, "next-item-recommendation", inputs=items[:-1], output=recommend(items[:-1], **options))
            for number, items in enumerate(found)
        ],
    )
    labels = "".join(f"r-{number},{items[-1]}\n" for number, items in enumerate(found))
    directory.with_suffix(".csv").write_text(f"id,label\n{labels}")
    return {"served": directory, "labels_file": directory.with_suffix(".csv")}


def test_a_log_of_recommendations_gives_the_report_of_the_sessions(recommender, tmp_path):
    files = log_of_sessions(recommender, tmp_path / "log", sessions(2, **OTHER))
    code, found = watch(tmp_path / "log_out", **recommending(recommender, **files))
    other = watch(tmp_path / "out", **recommending(recommender, fresh_file=recommender / "other.jsonl"))
    assert code == other[0] == 3
    assert found["drop"] == other[1]["drop"] and found["drift"] == other[1]["drift"]


def test_short_lists_of_recommendations_are_not_scored(recommender, tmp_path):
    files = log_of_sessions(recommender, tmp_path / "log", sessions(1), top_k=3)
    code, found = watch(tmp_path / "out", **recommending(recommender, **files))
    assert code == 0 and found["drop"] is None
    assert "80 rows with a label not scored, for which fewer than 10 items were asked" in found["notes"]


def test_a_recommender_trains_on_with_what_was_served(recommender, tmp_path):
    files = log_of_sessions(recommender, tmp_path / "log", [["item 3"], *sessions(1)])  # one after no history
    files["train_file"] = recommender / "train.jsonl"
    code, _ = watch(tmp_path / "out", **recommending(recommender, **files, **TRAINING))
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert code == 0 and "The new model is better and is kept" in report, report


def test_labels_are_needed_to_train_on(recommender, tmp_path):
    files = log_of_sessions(recommender, tmp_path / "log", sessions(1, count=12))
    flags = recommending(recommender, served=files["served"], train_file=recommender / "train.jsonl", retrain="true")
    with pytest.raises(InputError, match="--retrain needs labels in the log; give them by --labels_file"):
        watch(tmp_path / "out", **flags)
    (tmp_path / "log.csv").write_text("id,label\nr-1,item 1\n")
    with pytest.raises(InputError, match="1 fresh rows are too few"):
        watch(tmp_path / "out", **flags, labels_file=tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("task", "message"),
    [("text", "is not a|reads|was not trained"), ("recommendation", "is not a|reads")],
)
def test_a_model_of_another_task_is_refused(task, message, forecaster, tmp_path):
    with pytest.raises(InputError, match=message):
        watch(tmp_path / "out", **flags_of(forecaster, task, fresh_file=forecaster / "same.csv") | {"task": task})
