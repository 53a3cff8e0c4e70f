"""The comparison recipe and its plot."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import recipe_runs
import soundfile
import torch
from recipe_runs import Killed, assert_equal, kill_after_checkpoint, load, results, weights, write_reviews
from transformers import AutoModelForSequenceClassification

from hfseq import plots
from hfseq.errors import InputError
from hfseq.inference.benchmark import format_score
from hfseq.plots import plot_trade_off

RECIPE = load("comparison")
SPLITS = ("train", "val", "test")
CONFIG = """\
models:
  LSTM: {model_type: hfseq_lstm, config_overrides: {hidden_size: 16, embedding_size: 12, pooling: max, dropout: 0.2}}
  CNN: {model_type: hfseq_cnn, config_overrides: {hidden_size: 12, embedding_size: 12}, learning_rate: 2e-2}
num_seeds: 2
tokenizer_model: word
num_train_epochs: 2
learning_rate: 1e-2
logging_steps: 5
per_device_train_batch_size: 8
speed_texts: 4
use_cpu: true
disable_tqdm: true
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("reviews")
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    write_reviews(root)
    return root


def arguments(data, output_dir, **flags):
    files = {"train_file": data / "train.csv", "validation_file": data / "val.csv", "test_file": data / "test.csv"}
    return recipe_runs.arguments(data / "config.yaml", **(files | {"output_dir": output_dir} | flags))


def start(data, output_dir, **flags):
    recipe_runs.start(RECIPE, arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session")
def compared(data, tmp_path_factory):
    return start(data, tmp_path_factory.mktemp("runs") / "compared", num_train_epochs=6)


@pytest.mark.contract
def test_tables_and_plot(compared):
    with open(compared / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["LSTM", "CNN"]
    found = results(compared)
    for name, row in rows.items():
        assert float(row["accuracy"]) == pytest.approx(found[f"test_{name}_accuracy"]) and float(row["accuracy"]) > 80
        assert all(float(row[column]) > 0 for column in ("ms_a_text", "texts_a_second", "train_seconds"))
        saved = compared / "runs" / f"{name}-42"
        assert int(row["parameters"]) == AutoModelForSequenceClassification.from_pretrained(saved).num_parameters()
        assert float(row["file_mb"]) == pytest.approx((saved / "model.safetensors").stat().st_size / 1e6)
        other = weights(compared / "runs" / f"{name}-43")
        assert any(not torch.equal(tensor, other[key]) for key, tensor in weights(saved).items())
    lines = (compared / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["LSTM", "CNN", "majority"]
    assert "| 50.00 |" in lines[-1]
    assert (compared / "trade_off.png").read_bytes().startswith(b"\x89PNG")


def test_checkpoints_stand_beside_them_and_a_killed_run_goes_on(data, compared, tmp_path, monkeypatch):
    flags = {"pretrained": compared / "runs" / "CNN-42", "num_seeds": 1, "pretrained_learning_rate": 1e-4}
    whole = start(data, tmp_path / "whole", **flags)
    assert results(whole)["test_CNN-42_accuracy"] > 60
    # While the second model trains.
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, "comparison", 3)
        start(data, tmp_path / "parts", **flags)
    parts = start(data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
    for name in ("LSTM-42", "CNN-42", "CNN-42-42"):
        assert_equal(weights(whole / "runs" / name), weights(parts / "runs" / name))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"models": '{"A": {"learning_rate": 1}}'}, "models: A needs a model_type or a model_name_or_path"),
        ({"models": '{"A": {"model_type": "hfseq_gru", "hidden": 1}}'}, "models: A has an unknown hidden; there are"),
        ({"models": '{"A": {"model_type": "hfseq_gru", "learning_rate": "x"}}'}, "learning_rate 'x' is not a number"),
        ({"models": '{"A": {"model_type": "lstm"}}'}, "unknown --model_type 'lstm'"),
        (
            {"models": '{"../A": {"model_type": "hfseq_gru"}}'},
            "models: '../A' names a folder of runs, so give a plain",
        ),
        ({"models": "{}"}, "nothing to compare"),
        ({"task": "speach"}, "unknown --task 'speach'; there are classification, speech"),
        ({"task": "speech", "head": "rnnt"}, "unknown --head 'rnnt'; there are ctc"),
        ({"num_seeds": 0}, "--num_seeds 0: give 1 or more"),
        ({"streaming": True}, "unknown flag --streaming"),
        ({"hp_search": 2}, "a comparison trains `models`"),
    ],
)
def test_bad_input(flags, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        start(data, tmp_path / "run", **flags)
    assert not list(tmp_path.glob("run/**/model.safetensors"))


SPEECH = """\
task: speech
feature_extractor: {feature_size: 12, hop_length: 80}
models:
  LSTM: {model_type: hfseq_lstm, config_overrides: {hidden_size: 16, subsampling_factor: 2}}
  Conformer:
    model_type: wav2vec2-bert
    config_overrides: {feature_projection_input_dim: 12, hidden_size: 16, num_hidden_layers: 1,
      num_attention_heads: 2, intermediate_size: 16, apply_spec_augment: false, layerdrop: 0.0}
num_seeds: 1
num_train_epochs: 1
learning_rate: 1e-2
per_device_train_batch_size: 8
speed_texts: 2
use_cpu: true
disable_tqdm: true
"""


GESTURES = """\
task: gestures
models:
  GRU: {model_type: hfseq_gru, config_overrides: {hidden_size: 8, frame_filters: [2]}}
  VideoMAE:
    model_type: videomae
    config_overrides: {image_size: 4, patch_size: 2, num_frames: 2, tubelet_size: 2, hidden_size: 8,
      num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8}
num_seeds: 1
num_train_epochs: 1
per_device_train_batch_size: 8
speed_texts: 2
use_cpu: true
disable_tqdm: true
"""


def test_classifiers_of_clips(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 8), ("val", 4), ("test", 4)):
        clips = rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", clips=clips, label=np.array(["a", "b"] * (count // 2)))
    config = tmp_path / "gestures.yaml"
    config.write_text(GESTURES, encoding="utf-8")
    files = {
        f"{flag}_file": tmp_path / f"{name}.npz"
        for flag, name in zip(("train", "validation", "test"), SPLITS, strict=True)
    }
    output = tmp_path / "run"
    recipe_runs.start(RECIPE, recipe_runs.arguments(config, **files, output_dir=output))
    with open(output / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["GRU", "VideoMAE"] and all(float(row["ms_a_text"]) > 0 for row in rows.values())
    assert "nearest" in (output / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("head", ["ctc", "classification"])
def test_recognisers_of_speech(head, tmp_path):
    names = {"ctc": ("wer", "cer"), "classification": ("accuracy", "f1")}[head]
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6), ("test", 4)):
        (tmp_path / split).mkdir()
        rows = ["file_name,transcription,label"]
        for number in range(count):
            soundfile.write(tmp_path / split / f"{number}.wav", rng.standard_normal(6000) / 10, 8000)
            rows.append(f"{number}.wav,{'ab'[number % 2]},{'ab'[number % 2]}")
        (tmp_path / split / "metadata.csv").write_text("\n".join(rows) + "\n")
    config = tmp_path / "speech.yaml"
    config.write_text(SPEECH, encoding="utf-8")
    files = {
        f"{flag}_file": tmp_path / name for flag, name in zip(("train", "validation", "test"), SPLITS, strict=True)
    }
    output = tmp_path / "run"
    recipe_runs.start(RECIPE, recipe_runs.arguments(config, **files, output_dir=output, head=head))
    with open(output / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["LSTM", "Conformer"]
    found = results(output)
    for name, row in rows.items():
        assert float(row[names[0]]) == pytest.approx(found[f"test_{name}_{names[0]}"])
        assert all(float(row[column]) > 0 for column in ("ms_a_text", "texts_a_second", "train_seconds", "parameters"))
    lines = (output / "table.md").read_text(encoding="utf-8").splitlines()
    assert "ms a recording" in lines[0] and len(lines) == (4 if head == "ctc" else 5)


SEQUENCES = """\
models:
  LSTM:
    model_type: hfseq_lstm
    config_overrides: {hidden_size: 8, embedding_size: 4, input_filters: 6, input_kernel_size: 3}
  ESM:
    model_type: esm
    config_overrides: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 8,
      position_embedding_type: rotary}
num_seeds: 1
num_train_epochs: 1
per_device_train_batch_size: 8
max_length: 12
speed_texts: 3
use_cpu: true
disable_tqdm: true
"""


@pytest.mark.parametrize("task", ["residue_tagging", "sequence_classification"])
def test_models_of_dna(task, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6), ("test", 4)):
        rows = ["".join(rng.choice(list("ACGTacgt"), size=20)) for _ in range(count)]
        records = (f">{split}{number} label={'ab'[number % 2]}\n{row}\n" for number, row in enumerate(rows))
        (tmp_path / f"{split}.fa").write_text("".join(records))
    config = tmp_path / "dna.yaml"
    config.write_text(SEQUENCES, encoding="utf-8")
    files = {
        f"{flag}_file": tmp_path / f"{name}.fa"
        for flag, name in zip(("train", "validation", "test"), SPLITS, strict=True)
    }
    output = tmp_path / "run"
    recipe_runs.start(RECIPE, recipe_runs.arguments(config, task=task, **files, output_dir=output))
    with open(output / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["LSTM", "ESM"]
    found = results(output)
    for name, row in rows.items():
        assert float(row["accuracy"]) == pytest.approx(found[f"test_{name}_accuracy"])
        assert all(float(row[column]) > 0 for column in ("ms_a_text", "texts_a_second", "train_seconds", "parameters"))
    lines = (output / "table.md").read_text(encoding="utf-8").splitlines()
    assert "ms a sequence" in lines[0]
    assert ("segment overlap" in lines[0].lower()) == (task == "residue_tagging")
    other = "mask_column" if task == "sequence_classification" else "kmer_size"
    with pytest.raises(InputError, match=f"unknown flag --{other}"):
        recipe_runs.start(RECIPE, recipe_runs.arguments(config, task=task, **files, output_dir=output, **{other: 3}))


FORECASTS = """\
task: forecasting
prediction_length: 4
context_length: 12
lags_sequence: [1, 2]
num_test_windows: 2
num_samples: 20
models:
  GRU: {model_type: hfseq_gru, config_overrides: {hidden_size: 8, num_hidden_layers: 1}}
  Transformer:
    model_type: time_series_transformer
    config_overrides: {d_model: 8, encoder_layers: 1, decoder_layers: 1, encoder_ffn_dim: 8, decoder_ffn_dim: 8,
      encoder_attention_heads: 2, decoder_attention_heads: 2}
num_seeds: 2
num_train_epochs: 1
learning_rate: 1e-2
per_device_train_batch_size: 16
speed_texts: 3
use_cpu: true
disable_tqdm: true
"""


@pytest.fixture
def forecasts(tmp_path):
    rng = np.random.default_rng(0)
    # Far below 1, where two decimals show nothing.
    values = 0.01 + 0.001 * rng.standard_normal((60, 2))
    rows = [f"2024-{1 + day // 28:02}-{1 + day % 28:02},{one:.6f},{two:.6f}" for day, (one, two) in enumerate(values)]
    (tmp_path / "series.csv").write_text("\n".join(["ds,a,b", *rows]) + "\n")
    (tmp_path / "forecasts.yaml").write_text(FORECASTS, encoding="utf-8")
    return tmp_path


def compare_forecasters(forecasts, **flags):
    arguments = {"train_file": forecasts / "series.csv", "frequency": "D", "output_dir": forecasts / "run"} | flags
    recipe_runs.start(RECIPE, recipe_runs.arguments(forecasts / "forecasts.yaml", **arguments))
    return forecasts / "run"


def test_forecasters(forecasts, monkeypatch):
    plotted = {}
    monkeypatch.setattr(RECIPE, "plot_trade_off", lambda *arguments, **options: plotted.update(options))
    output = compare_forecasters(forecasts)
    with open(output / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["GRU", "Transformer"]
    found = results(output)
    for name, row in rows.items():
        assert 0 < float(row["wql"]) == pytest.approx(found[f"test_{name}_wql"])
        seeds = [json.loads((output / "runs" / f"{name}-{seed}" / "scores.json").read_text()) for seed in (42, 43)]
        assert float(row["mae"]) == pytest.approx(sum(one["mae"] for one in seeds) / 2)
        assert all(float(row[column]) > 0 for column in ("ms_a_text", "texts_a_second", "train_seconds", "parameters"))
    lines = [line.split(" | ") for line in (output / "table.md").read_text(encoding="utf-8").splitlines()]
    assert lines[0][1] == "mean weighted quantile loss ↓" and "ms a window" in lines[0]
    assert [line[0] for line in lines[2:]] == ["| GRU", "| Transformer", "| naive", "| seasonal", "| ets"]
    # Errors of the size of 0.001.
    column = lines[0].index("MAE ↓")
    assert all(0.0001 < float(line[column]) < 0.1 for line in lines[2:])
    assert plotted == {"lower": True}


def test_forecasters_have_no_tokenizers(forecasts):
    models = '{"A": {"model_type": "hfseq_gru", "vocab_size": 10}}'
    with pytest.raises(InputError, match="models: A: --task forecasting has no vocab_size; leave it out"):
        compare_forecasters(forecasts, models=models)


RECOMMENDERS = """\
task: recommendation
models:
  GRU: {model_type: hfseq_gru, config_overrides: {hidden_size: 8, num_hidden_layers: 1}}
  Transformer: {model_type: gpt2, config_overrides: {n_embd: 8, n_layer: 1, n_head: 2, n_positions: 16}}
num_seeds: 1
num_train_epochs: 1
learning_rate: 1e-2
per_device_train_batch_size: 16
speed_texts: 3
use_cpu: true
disable_tqdm: true
"""


def test_recommenders(tmp_path):
    events = [f"u{user} item{(user + at) % 9}" for user in range(30) for at in range(3 + user % 4)]
    (tmp_path / "events.txt").write_text("\n".join(events) + "\n")
    (tmp_path / "recommenders.yaml").write_text(RECOMMENDERS)
    flags = {"train_file": tmp_path / "events.txt", "output_dir": tmp_path / "run"}
    recipe_runs.start(RECIPE, recipe_runs.arguments(tmp_path / "recommenders.yaml", **flags))
    with open(tmp_path / "run" / "table.csv", newline="", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["GRU", "Transformer"]
    found = results(tmp_path / "run")
    for name, row in rows.items():
        assert 0 < float(row["ndcg@10"]) == pytest.approx(found[f"test_{name}_ndcg@10"])
        assert all(float(row[column]) > 0 for column in ("ms_a_text", "texts_a_second", "train_seconds", "parameters"))
    lines = [line.split(" | ") for line in (tmp_path / "run" / "table.md").read_text(encoding="utf-8").splitlines()]
    assert lines[0][1] == "NDCG@10" and "ms a history" in lines[0]
    assert [line[0] for line in lines[2:]] == ["| GRU", "| Transformer", "| popularity", "| markov"]
    # Each item has only one follower.
    assert float(lines[-1][1]) == 1


def test_the_plot_of_an_error_has_its_lowest_at_the_top(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    saved = []
    monkeypatch.setattr(plots, "_save", lambda axes, path: saved.append(axes))
    for lower in (False, True):
        plot_trade_off(["a", "b"], [0.1, 0.2], [1.0, 2.0], [10, 20], tmp_path / "plot.png", "WQL", lower=lower)
    assert [axes.yaxis_inverted() for axes in saved] == [False, True]
    assert [axes.get_ylabel() for axes in saved] == ["WQL", "WQL (lower is better)"]


def test_scores_of_any_magnitude_are_legible():
    assert [format_score(value) for value in (81.234, 1.0, 0.0, 0.98765, 0.00712345)] == [
        *("81.23", "1.00", "0.00", "0.9877"),
        "0.007123",
    ]
    assert format_score(81.234, 0.456) == "81.23 ± 0.46" and format_score(0.0712345, 0.000456) == "0.07123 ± 0.00046"


def test_the_plot_has_a_circle_for_each_model(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "plot.png"
    plot_trade_off(["small", "large $x$"], [80.0, 90.0], [1.0, 100.0], [1e5, 2e7], path)
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    # The first two of matplotlib's colours, at 60 % on white.
    areas = [(abs(pixels - colour).max(axis=1) < 8).sum() for colour in ((121, 174, 211), (255, 178, 110))]
    assert 0 < areas[0] < areas[1]
