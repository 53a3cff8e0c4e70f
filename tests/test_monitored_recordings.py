"""Watching a classifier of recordings: files, the log of a server, and training on."""

import json

import numpy as np
import pytest
import soundfile
import torch
from test_served import drifted, record, watch, write_log
from transformers import pipeline

import hfseq
from hfseq.errors import InputError

RATE = 4000
CLASSES = ["high", "low"]


def tones(seed, count=36, seconds=0.2, noise=0.1):
    """Tones in noise, and their classes in turns."""
    rng = np.random.default_rng(seed)
    for row in range(count):
        size = int(RATE * seconds * rng.uniform(0.8, 1.2))
        tone = np.sin(2 * np.pi * (1200, 400)[row % 2] * np.arange(size) / RATE)
        yield (0.5 * tone + noise * rng.normal(size=size)).astype(np.float32), CLASSES[row % 2]


def write_recordings(folder, found, labels=True):
    folder.mkdir()
    lines = ["file_name,label" if labels else "file_name"]
    for row, (samples, name) in enumerate(found):
        soundfile.write(folder / f"{row}.wav", samples, RATE)
        lines.append(f"{row}.wav,{name}" if labels else f"{row}.wav")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An untrained classifier, and folders of recordings: as those of the test, and longer ones without labels."""
    root = tmp_path_factory.mktemp("recordings")
    for seed, (name, options) in enumerate({"test": {}, "same": {}, "train": {}, "longer": {"seconds": 0.4}}.items()):
        write_recordings(root / name, tones(seed, **options), labels=name != "longer")
    torch.manual_seed(0)
    extractor = hfseq.LogMelFeatureExtractor(feature_size=8, sampling_rate=RATE)
    config = hfseq.GruConfig(input_size=8, hidden_size=8, dropout=0.0, num_labels=2)
    config.id2label = dict(enumerate(CLASSES))
    for part in (hfseq.GruForSequenceClassification(config), extractor):
        part.save_pretrained(root / "model")
    return root


def flags_of(data, **flags):
    return {"task": "audio", "model_name_or_path": data / "model", "test_file": data / "test"} | flags


def test_recordings_as_before_raise_no_alarm_and_longer_ones_do(data, tmp_path):
    code, found = watch(tmp_path / "same", **flags_of(data, fresh_file=data / "same"))
    assert code == 0 and found["alarms"] == [] and found["drop"]["metric"] == "accuracy"
    code, found = watch(tmp_path / "longer", **flags_of(data, fresh_file=data / "longer"))
    assert code == 3 and found["drop"] is None and "duration in s" in drifted(found)


def test_a_log_gives_the_report_of_the_recordings(data, tmp_path):
    classify = pipeline("audio-classification", model=str(data / "model"), device="cpu")
    found = [(soundfile.read(data / "same" / f"{row}.wav", dtype="float32")[0], name) for row, (_, name) in
             enumerate(tones(1))]  # fmt: skip
    records = [
        record(number, "audio-classification", inputs={"seconds": len(samples) / RATE}, output=classify(samples))
        for number, (samples, _) in enumerate(found)
    ]
    write_log(
        tmp_path / "log", [*records, record(99, "audio-classification", inputs="x", output=records[0]["output"])]
    )
    labels = "".join(f"r-{number},{name}\n" for number, (_, name) in enumerate(found))
    (tmp_path / "labels.csv").write_text(f"id,label\n{labels}")
    files = {"served": tmp_path / "log", "labels_file": tmp_path / "labels.csv"}
    code, report = watch(tmp_path / "log_out", **flags_of(data, **files))
    expected = watch(tmp_path / "out", **flags_of(data, fresh_file=data / "same"))
    assert code == expected[0] == 0 and report["drop"] == expected[1]["drop"]
    of_files = {one["what"]: one["fresh"] for one in expected[1]["drift"]}
    assert {one["what"]: one["fresh"] for one in report["drift"]} == {
        name: of_files[name] for name in ("duration in s", "output classes")
    }
    assert "1 rows without a duration or a class of the model left out" in report["notes"]
    flags = flags_of(data, retrain="true", train_file=data / "train", **files)
    with pytest.raises(InputError, match="the log has no recordings to train on"):
        watch(tmp_path / "retrained", **flags)


def test_a_classifier_of_recordings_trains_on(data, tmp_path):
    training = {"retrain": "true", "num_train_epochs": 4, "learning_rate": "3e-2", "logging_steps": 100}
    watch(tmp_path / "out", **flags_of(data, fresh_file=data / "same", train_file=data / "train", **training))
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "The new model is better and is kept" in report, report
    assert (tmp_path / "out" / "retrained" / "preprocessor_config.json").exists()


def test_bad_input(data, tmp_path):
    with pytest.raises(InputError, match=r"nowhere.csv: no such file \(--fresh_file\)"):
        watch(tmp_path / "out", **flags_of(data, fresh_file=data / "nowhere.csv"))
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "traffic-1.jsonl").write_text(json.dumps(record(1, "audio-classification")) + "\n")
    with pytest.raises(InputError, match="no row has the duration of a recording and a class"):
        watch(tmp_path / "out", **flags_of(data, served=tmp_path / "log"))
