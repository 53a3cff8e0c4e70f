"""The recipe of anomaly detection, run end to end on small series, logs of events, and a folder like NAB's."""

import csv
import io
import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import recipe_runs
from recipe_runs import load, results
from transformers import AutoModelForTimeSeriesPrediction, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hfseq.data.anomalies import Fields, read_recordings
from hfseq.errors import InputError
from hfseq.hub.publish import publish
from hfseq.inference.anomalies import Settings, Stream
from hfseq.inference.watching import watch, whole_lines
from hfseq.metrics.anomalies import find_alarms, nab_score, peak_scores
from hfseq.tasks.anomaly_detection import HEADS
from hfseq.tasks.arguments import AnomalyArguments
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import RecipeArguments

RECIPE = load("anomaly_detection")
COMMON = """\
num_train_epochs: 3
learning_rate: 1e-2
logging_steps: 5
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
context_length: 24
hold: 7200
"""
NUMBERS = (
    COMMON + "config_overrides: {hidden_size: 12, dropout: 0.0, distribution_output: normal}\nfalse_alarms: 0.5\n"
)
EVENTS = COMMON + "head: causal_lm\nconfig_overrides: {hidden_size: 16, dropout: 0.0}\nshort_window: 2\n"
SCORES = {
    *("recall_at_false_alarms", "vus_pr", "auc_pr"),
    *("event_precision", "event_recall", "false_alarms_per_day"),
}


def stamp(hour):
    return f"2024-{1 + hour // 672:02}-{1 + hour // 24 % 28:02} {hour % 24:02}:00:00"


def series(days, seed, first=0, events=()):
    """Rows with the rhythm of a day and noise; anomalies are high values at night."""
    rng, rows = np.random.default_rng(seed), []
    for hour in range(first, first + 24 * days):
        anomalous = any(start <= hour - first < start + 2 for start in events)
        x = np.sin(2 * np.pi * hour / 24) + 0.1 * rng.normal() + 3 * anomalous
        y = 100 + 10 * rng.normal()
        rows.append([stamp(hour), f"{x:.4f}", f"{y:.3f}", int(anomalous)])
    return rows


def write(path, rows, header=("timestamp", "x", "y", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def log(count, seed, first=0, events=()):
    """Events of a cycle of three services; anomalies are out of turn and of an unknown state."""
    rng, rows = np.random.default_rng(seed), []
    for step in range(count):
        odd = any(start <= step < start + 4 for start in events)
        service = ("dns", "http", "mail")[step % 3] if not odd else "mail"
        size = int(1000 * rng.lognormal(sigma=0.3))
        rows.append(
            [1_704_067_200 + 60 * (first + step), service, "REJ" if odd else "SF", size, "scan" if odd else ""]
        )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("anomalies")
    (root / "numbers.yaml").write_text(NUMBERS, encoding="utf-8")
    (root / "events.yaml").write_text(EVENTS, encoding="utf-8")
    write(root / "train.csv", series(21, 0))
    write(root / "val.csv", series(7, 1, first=21 * 24, events=[50]))
    write(root / "test.csv", series(14, 2, first=28 * 24, events=[60, 150, 250]))
    names = ("timestamp", "service", "state", "size", "label")
    write(root / "flows_train.csv", log(600, 0), names)
    write(root / "flows_val.csv", log(300, 1, first=600), names)
    write(root / "flows_test.csv", log(600, 2, first=900, events=[200, 400]), names)
    return root


def start(data, output_dir, config="numbers.yaml", prefix="", **flags):
    files = {f"{split}_file": data / f"{prefix}{name}.csv" for split, name in
             (("train", "train"), ("validation", "val"), ("test", "test"))}  # fmt: skip
    argv = recipe_runs.arguments(data / config, **(files | {"output_dir": output_dir} | flags))
    recipe_runs.start(RECIPE, argv)
    return Path(output_dir)


FLOWS = {
    "config": "events.yaml",
    "prefix": "flows_",
    **{"event_columns": "service,state", "number_columns": "size", "event_gaps": True, "anomaly_labels": "scan"},
    "false_alarms": 20,
}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return start(data, tmp_path_factory.mktemp("runs") / "numbers", do_train=True, do_predict=True)


@pytest.fixture(scope="module")
def trained_on_events(data, tmp_path_factory):
    return start(data, tmp_path_factory.mktemp("runs") / "events", **FLOWS, num_train_epochs=8)


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_of_numbers_beside_baselines(trained):
    found = results(trained)
    for prefix in ("", "windowed_gaussian_", "isolation_forest_", "random_"):
        assert {f"test_{prefix}{name}" for name in SCORES} <= found.keys()
    assert found["test_recall_at_false_alarms"] == 100 > found["test_random_recall_at_false_alarms"]
    assert found["test_vus_pr"] > found["test_random_vus_pr"] + 20
    assert (trained / "anomalies.png").read_bytes() == recipe_runs.PNG
    model = AutoModelForTimeSeriesPrediction.from_pretrained(trained)
    assert model.config.input_size == 2 and model.config.num_time_features == 15


def test_files_of_scores_and_alarms(data, trained):
    rows, alarms = table(trained / "scores.csv"), table(trained / "alarms.csv")
    settings = Settings.load(trained)
    (recording,) = read_recordings(str(data / "test.csv"), "--test_file", Fields())
    scores = np.array([float(row["score"]) for row in rows])
    assert len(rows) == len(recording) == 14 * 24
    assert [row["timestamp"] for row in rows] == [stamp(28 * 24 + hour) for hour in range(14 * 24)]
    assert [row["label"] for row in rows] == [str(row[3]) for row in series(14, 2, 28 * 24, [60, 150, 250])]
    flagged = np.array([row["flagged"] == "1" for row in rows])
    assert (flagged == (scores >= settings.threshold * (1 - 1e-5))).all() and settings.false_alarms == 0.5
    spans = find_alarms(recording.times, flagged, 7200)
    assert [(row["start"], row["end"]) for row in alarms] == [
        (rows[first]["timestamp"], rows[last - 1]["timestamp"]) for first, last in spans
    ]
    assert sum(row["true"] == "1" for row in alarms) >= 3
    assert float(alarms[0]["score"]) >= settings.threshold * (1 - 1e-5)


def test_false_alarms_on_held_out_rows_are_as_asked(data, trained):
    settings = Settings.load(trained)
    model = AutoModelForTimeSeriesPrediction.from_pretrained(trained)
    stream = Stream(model, settings, "train")
    train, val = (read_recordings(str(data / f"{n}.csv"), "--f", Fields())[0] for n in ("train", "val"))
    stream.read(train)
    # The recordings of the files have the names of the files, and are streams of their own.
    fresh = Stream(model, settings, "val").read(val)
    false = [alarm for alarm in find_alarms(val.times, fresh >= settings.threshold, 7200) if not
             any(first < alarm[1] and alarm[0] < last for first, last in val.events)]  # fmt: skip
    assert len(false) <= 0.5 * 7


def test_prediction_alone_gives_the_scores_of_the_run(data, trained, tmp_path):
    flags = {"train_file": None, "validation_file": None, "model_name_or_path": trained}
    start(data, tmp_path / "again", do_predict=True, **flags)
    assert table(tmp_path / "again" / "scores.csv") == table(trained / "scores.csv")
    again, found = results(tmp_path / "again"), results(trained)
    assert {name: again[f"test_{name}"] for name in SCORES} == {name: found[f"test_{name}"] for name in SCORES}


def test_a_published_detector_has_its_settings(trained, tmp_path):
    publish(trained, "someone/detector", dry_run=tmp_path / "hub")
    assert Settings.load(tmp_path / "hub") == Settings.load(trained)
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "recall of events at the given rate of false alarms" in card and "anomalies.png" in card


def options(**given):
    return AnomalyArguments(watch=True, **given)


def watched(lines, trained, capsys, tokenizer=None, model=None, **given):
    settings = Settings.load(trained)
    model = AutoModelForTimeSeriesPrediction.from_pretrained(trained) if model is None else model
    watch(lines, model, settings, options(**given), tokenizer)
    return capsys.readouterr()


def test_a_watched_stream_raises_the_alarms_of_the_file(data, trained, capsys):
    lines = (data / "test.csv").read_text().splitlines(keepends=True)
    found = watched(lines, trained, capsys).out.splitlines()
    alarms = table(trained / "alarms.csv")
    assert [line[:19] for line in found] == [row["start"] for row in alarms]
    assert all(" alarm: score " in line and " in " in line for line in found)


def test_a_watched_stream_continues_after_a_restart(data, trained, tmp_path, capsys):
    header, *rows = (data / "test.csv").read_text().splitlines(keepends=True)
    whole = watched([header, *rows], trained, capsys).out
    state = str(tmp_path / "state.safetensors")
    first = watched([header, *rows[:155]], trained, capsys, state_file=state)
    # Lines that were read before are left out, and counted.
    second = watched([header, *rows[153:]], trained, capsys, state_file=state)
    assert first.out + second.out == whole and len(first.out.splitlines()) >= 2
    assert "continuing after 155 steps\n2 lines up to the last step are left out\n" in second.err
    assert second.err.endswith(f"{len(rows)} steps\n")


def test_a_state_is_saved_on_the_way(data, trained, tmp_path, capsys):
    lines = (data / "test.csv").read_text().splitlines()
    state = tmp_path / "state"

    def broken():
        yield from lines[:41]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        watched(broken(), trained, capsys, state_file=str(state), save_every=15)
    found = watched(lines[:1], trained, capsys, state_file=str(state))
    assert "continuing after 30 steps" in found.err


def test_a_line_that_cannot_be_read_is_left_out(data, trained, capsys):
    lines = (data / "test.csv").read_text().splitlines()
    bad = ["soon,1,2,0", f"{stamp(900)},high,1,0", f"{stamp(900)},1", f"{stamp(900)},inf,1,0", ""]
    clean = watched(lines, trained, capsys)
    found = watched([*lines[:100], *bad, *lines[100:]], trained, capsys)
    assert found.out == clean.out
    for text in (
        "line 101: 'soon' is not a time stamp; it is left out",
        "line 102: column 'x': 'high' is not a number; it is left out",
        "line 103: 2 fields, but the first line has 4; it is left out",
        "line 104: column 'x' is infinite; it is left out",
    ):
        assert text in found.err
    with pytest.raises(InputError, match="standard input, line 1: no column 'y'; .* timestamp,x,y"):
        watched(["timestamp,x\n"], trained, capsys)


def test_lines_of_another_encoding_and_form(data, trained, capsys):
    header, *rows = (data / "test.csv").read_text().splitlines(keepends=True)
    clean = watched([header, *rows], trained, capsys)
    bad = [f"{stamp(900)},\udce4,1,0\n", f"{stamp(900)},1\r,1,0\n", f"{stamp(900)},1_0,1,0\n"]
    found = watched(["\ufeff" + header, *bad, *rows], trained, capsys)
    assert found.out == clean.out
    for text in ("line 2: it is not UTF-8", "line 3: it is not a line of CSV", "line 4: column 'x': '1_0' is not a"):
        assert text in found.err
    with pytest.raises(InputError, match="standard input, line 1: 2 columns are called 'x'"):
        watched(["timestamp,x,x,y\n"], trained, capsys)
    with pytest.raises(InputError, match="--state_file .*: there is no such folder"):
        watched([header], trained, capsys, state_file=str(data / "nowhere" / "state"))


def test_a_line_without_its_end_is_left_out(capsys):
    assert list(whole_lines(io.StringIO("a,b\n1,2\n1,"))) == ["a,b\n", "1,2\n"]
    assert capsys.readouterr().err == "line 3: the input ends within it; it is left out\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_a_step_waits_for_its_end(data, trained, tmp_path, capsys, number):
    header, *rows = (data / "test.csv").read_text().splitlines(keepends=True)
    whole = watched([header, *rows], trained, capsys).out
    model = AutoModelForTimeSeriesPrediction.from_pretrained(trained)
    compute, calls = model.log_likelihood, []

    def interrupted(*args, **options):
        found = compute(*args, **options)
        calls.append(1)
        if len(calls) == 155:
            signal.raise_signal(number)
        return found

    model.log_likelihood = interrupted
    state = str(tmp_path / "state")
    first = watched([header, *rows], trained, capsys, model=model, state_file=state)
    assert first.err == "155 steps\n"
    second = watched([header, *rows], trained, capsys, state_file=state)
    assert first.out + second.out == whole


def test_a_detector_without_alarms_says_so(trained, capsys):
    settings = replace(Settings.load(trained), threshold=math.inf)
    watch([], AutoModelForTimeSeriesPrediction.from_pretrained(trained), settings, options())
    assert "the threshold is infinite, so there will be no alarm" in capsys.readouterr().err


def test_watching_from_the_command_line(data, trained, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO((data / "test.csv").read_text()))
    RECIPE.main(["--watch", "true", "--model_name_or_path", str(trained)])
    assert len(capsys.readouterr().out.splitlines()) == len(table(trained / "alarms.csv"))
    with pytest.raises(InputError, match="--watch needs --model_name_or_path"):
        RECIPE.main(["--watch", "true"])


# Events


def test_scores_of_events_beside_baselines(trained_on_events):
    found = results(trained_on_events)
    assert {f"test_{name}" for name in SCORES} <= found.keys()
    assert found["test_recall_at_false_alarms"] == 100
    rows = table(trained_on_events / "scores.csv")
    assert len(rows) == 600 and sum(row["label"] == "1" for row in rows) == 8
    tokenizer = AutoTokenizer.from_pretrained(trained_on_events)
    assert "state=SF" in tokenizer.convert_tokens_to_string(list(tokenizer.get_vocab()))


def test_watched_events_raise_the_alarms_of_the_file(data, trained_on_events, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(trained_on_events)
    tokenizer = AutoTokenizer.from_pretrained(trained_on_events)
    header, *rows = (data / "flows_test.csv").read_text().splitlines()
    state = str(tmp_path / "state")
    parts = [
        watched([header, *part], trained_on_events, capsys, tokenizer, model, state_file=state).out
        for part in (rows[:401], rows[401:])
    ]
    starts = [row["start"] for row in table(trained_on_events / "alarms.csv")]
    assert [line[:19] for line in "".join(parts).splitlines()] == starts != []


def test_a_pretrained_transformer_scores_events(data, tmp_path):
    tokenizer = train_tokenizer(["service=dns service=http state=SF state=REJ"] * 3, model="character", vocab_size=60)
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    flags = FLOWS | {"config": "events.yaml", "num_train_epochs": 1}
    (data / "gpt2.yaml").write_text(EVENTS.replace("config_overrides: {hidden_size: 16, dropout: 0.0}\n", ""))
    out = start(data, tmp_path / "run", **(flags | {"config": "gpt2.yaml"}), model_name_or_path=tmp_path / "gpt2")
    assert "test_recall_at_false_alarms" in results(out)
    with pytest.raises(InputError, match="--watch: the state of a Transformer grows with the stream"):
        RECIPE.main(["--watch", "true", "--model_name_or_path", str(out)])


# NAB


@pytest.fixture(scope="module")
def nab_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("nab")
    windows = {}
    for number, name in enumerate(("a.csv", "b.csv")):
        rows = series(20, number, events=[200, 330])
        write(root / name, [row[:2] for row in rows], ("timestamp", "value"))
        windows[name] = [[stamp(190), stamp(215)], [stamp(320), stamp(350)]]
    (root / "combined_windows.json").write_text(json.dumps(windows), encoding="utf-8")
    return root


def test_folder_of_nab(data, nab_folder, tmp_path):
    none = {f"{split}_file": None for split in ("train", "validation", "test")}
    out = start(data, tmp_path / "run", **none, nab_folder=nab_folder, hold=86_400)
    found = results(out)
    assert {"test_nab", "test_nab_low_fp", "test_nab_low_fn", "test_windowed_gaussian_nab"} <= found.keys()
    rows = table(out / "scores.csv")
    # The whole series, of which NAB does not score the first 72 rows of 480.
    whole = []
    for name in ("a.csv", "b.csv"):
        own = [row for row in rows if row["series"] == name]
        assert len(own) == 480 - 72
        times = 3600.0 * np.arange(408)
        kept = peak_scores([max(0.0, float(row["score"])) for row in own], times, 86_400)
        whole.append((np.concatenate([np.zeros(72), kept]), [(190, 216), (320, 351)]))
    assert found["test_nab"] == pytest.approx(nab_score(whole).score, abs=0.05)
    assert found["test_nab"] > found["test_random_nab"]
    assert set(Settings.load(out).scales) == {"a.csv", "b.csv"}


def test_labelled_anomalies_are_no_part_of_the_scaling(tmp_path):
    scales = []
    for name, events in (("none", ()), ("some", [50, 90])):
        write(tmp_path / f"{name}.csv", series(14, 3, events=events))
        found = task(train_file=str(tmp_path / f"{name}.csv"), test_file=str(tmp_path / f"{name}.csv"))
        found.read()
        scales.append(found.settings.scales)
        values, (one,) = found.recordings["train"][0].values, scales[-1].values()
        kept = np.delete(values, [50, 51, 90, 91], axis=0) if events else values
        np.testing.assert_allclose(one.loc, kept.mean(axis=0))
    assert scales[0] != scales[1]


# What does not go


def task(**flags):
    data = AnomalyArguments(**flags)
    return HEADS[data.head](data, RecipeArguments(output_dir="unused"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"head": "tagging"}, "unknown --head 'tagging'; there are prediction, causal_lm"),
        ({"event_gaps": True}, "--event_gaps is for --head causal_lm; leave it out"),
        ({"head": "causal_lm", "log_values": True}, "--log_values is for --head prediction; leave it out"),
        ({"nab_folder": "x", "train_file": "y"}, "--train_file and --nab_folder exclude each other"),
        ({"state_file": "x"}, "--state_file goes with --watch"),
        ({"holdout": 1.0}, "--holdout 1.0: give a share between 0 and 1"),
        ({"short_window": 0}, "--short_window 0: give 1 or more"),
        ({"hold": -1.0}, "--hold -1.0: give 0 or more"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(ValueError, match=message):
        AnomalyArguments(**flags)


def test_bad_data(data, tmp_path):
    train = str(data / "train.csv")
    with pytest.raises(InputError, match="test: the columns are x, but x, y in train; all need the same"):
        write(tmp_path / "test.csv", [row[:2] for row in series(2, 0)], ("timestamp", "x"))
        task(train_file=train, test_file=str(tmp_path / "test.csv")).read()
    with pytest.raises(InputError, match="--train_file is missing"):
        task(test_file=train).read()
    with pytest.raises(InputError, match="short: 2 steps are too few to train on"):
        write(tmp_path / "short.csv", series(2, 0)[:2])
        task(train_file=str(tmp_path / "short.csv")).read()
    with pytest.raises(InputError, match=r"large: values of up to 1e\+300 overflow; correct them, or give --log_val"):
        write(tmp_path / "large.csv", [[*row[:1], 1e300, *row[2:]] for row in series(2, 0)])
        task(train_file=str(tmp_path / "large.csv")).read()


def test_evaluations_have_the_loss_alone(data, tmp_path):
    with pytest.raises(InputError, match="unknown --metric_for_best_model 'vus_pr'; there are loss"):
        start(data, tmp_path / "run", metric_for_best_model="vus_pr")


def test_models_without_a_likelihood(data, tmp_path):
    with pytest.raises(InputError, match="loss='mse' has no distribution"):
        start(data, tmp_path / "run", config_overrides="{loss: mse}")
    with pytest.raises(InputError, match="distribution_output='negative_binomial' is for counts, but values are"):
        start(data, tmp_path / "counts", config_overrides="{distribution_output: negative_binomial}")


def test_training_rows_are_held_out_in_time(data):
    own = task(train_file=str(data / "train.csv"), test_file=str(data / "test.csv"))
    own.read()
    parts = own.recordings["train"][0], own.recordings["validation"][0]
    assert [len(part) for part in parts] == [403, 101] and parts[0].times[-1] < parts[1].times[0]
    assert own.describe() == (
        "train 1 recording, 403 steps, 0 anomalies; test 1 recording, 336 steps, 3 anomalies; validation 1 recording, "
        "101 steps, 0 anomalies"
    )
