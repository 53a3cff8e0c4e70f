"""The comparison recipe and its plot."""

import csv
from pathlib import Path

import numpy as np
import pytest
import recipe_runs
import soundfile
import torch
from recipe_runs import Killed, assert_equal, kill_after_checkpoint, load, results, weights, write_reviews
from transformers import AutoModelForSequenceClassification

from hfseq.errors import InputError
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


def test_the_plot_has_a_circle_for_each_model(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "plot.png"
    plot_trade_off(["small", "large $x$"], [80.0, 90.0], [1.0, 100.0], [1e5, 2e7], path)
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    # The first two of matplotlib's colours, at 60 % on white.
    areas = [(abs(pixels - colour).max(axis=1) < 8).sum() for colour in ((121, 174, 211), (255, 178, 110))]
    assert 0 < areas[0] < areas[1]
