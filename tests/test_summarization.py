"""The summarization recipes, both drivers, run end to end on a few made-up texts with words of their own."""

import json
import random
import re
from pathlib import Path

import datasets
import pytest
import recipe_runs
import torch
from recipe_runs import (
    Killed,
    assert_close,
    assert_equal,
    kill_after_checkpoint,
    load,
    results,
    run_two,
    weights,
)
from transformers import AutoModelForSeq2SeqLM, T5Config, pipeline

from hfseq.errors import InputError
from hfseq.tasks import seq2seq
from hfseq.tasks.seq2seq import split_references
from hfseq.tokenization import train_tokenizer

TRAINER, ACCELERATE = DRIVERS = ("summarization", "summarization_accelerate")
RECIPES = {driver: load(driver) for driver in DRIVERS}
MODEL = {
    "hidden_size": 32,
    "embedding_size": 16,
    "dropout": 0.0,
    "attention_type": "additive",
    "pointer_generator": True,
    "coverage": True,
}
CONFIG = """\
tokenizer_model: word
vocab_size: 24
num_train_epochs: 2
learning_rate: 1e-2
max_source_length: 20
max_target_length: 12
num_beams: 2
logging_steps: 2
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
"""


def made_up_word(rng):
    return "".join(rng.choices("abcdefghijklmnop", k=6))


def texts(count, seed):
    """Texts that name somebody; the summary is a sentence with the name, which no vocabulary has."""
    rng = random.Random(seed)
    for row in range(count):
        name, city = made_up_word(rng), rng.choice(("Rome", "Oslo", "Lima"))
        document = f"In {city} it rains . The {rng.choice(('old', 'new'))} mayor is {name} ."
        summaries = [f"{name} rules {city} .", f"mayor {name} ."]
        yield {"document": document, "summary": summaries if row % 3 == 0 else summaries[:1]}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with config.yaml, and the rows of train (48), val (9), test (6)."""
    root = tmp_path_factory.mktemp("texts")
    (root / "config.yaml").write_text(CONFIG + f"config_overrides: {json.dumps(MODEL)}\n", encoding="utf-8")
    for seed, (name, count) in enumerate((("train", 48), ("val", 9), ("test", 6))):
        write_rows(root / f"{name}.jsonl", texts(count, seed))
    return root


def arguments(data, output_dir, **flags):
    files = {f"{name}_file": data / f"{stem}.jsonl" for name, stem in (("train", "train"), ("validation", "val"))}
    files["test_file"] = data / "test.jsonl"
    return recipe_runs.arguments(data / "config.yaml", **(files | {"output_dir": output_dir} | flags))


def start(driver, data, output_dir, **flags):
    recipe_runs.start(RECIPES[driver], arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session", params=DRIVERS)
def trained(request, data, tmp_path_factory):
    rows = write_rows(tmp_path_factory.mktemp("more") / "train.jsonl", texts(800, 7))
    output = tmp_path_factory.mktemp("runs") / request.param
    return start(request.param, data, output, train_file=rows, metric_for_best_model="loss")


# What a run leaves


def test_files_and_scores_of_a_run(trained, data):
    for name in ("learning_curve.png", "alignment.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    predictions = (trained / "predictions.txt").read_text(encoding="utf-8").splitlines()
    found = results(trained)
    assert len(predictions) == 6
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert 0 <= found[f"test_lead_1_{name}"] < found[f"test_{name}"] <= 100
    # Names that no vocabulary has.
    names = [row["document"].split()[-2] for row in texts(6, 2)]
    assert sum(name in prediction for name, prediction in zip(names, predictions, strict=True)) >= 4


def test_the_pipeline_gives_what_the_final_test_gave(trained):
    summarize = pipeline("summarization", model=str(trained), device="cpu")
    summaries = summarize([row["document"] for row in texts(6, 2)], batch_size=4)
    predictions = (trained / "predictions.txt").read_text(encoding="utf-8").splitlines()
    assert [summary["summary_text"].strip() for summary in summaries] == predictions


# How it is told


@pytest.mark.parametrize("driver", DRIVERS)
def test_columns_and_what_is_printed(driver, data, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("body,head\nA b c. D e f.,A d\nG h i. J k l. M.,G j\n", encoding="utf-8")
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), tmp_path / "rows.csv")
    flags = {"text_column": "body", "summary_column": "head", "lead": 2, "max_steps": 1, "max_source_length": 5}
    output = start(driver, data, tmp_path / "out", **files, **flags)
    printed = capsys.readouterr().out
    assert "2 train, 2 validation, 2 test texts with a summary" in printed
    assert "test: 2 of 2 sources are longer than --max_source_length 5 and were truncated" in printed
    assert "targets are longer" not in printed
    # The lengths are those of the texts, all of which were cut to one length.
    shorter = re.search(r"up to (\d+) tokens +1 / 1 ", printed)
    assert shorter is not None and int(shorter[1]) > 5
    assert "lead_2" in printed and "test_lead_2_rouge1" in results(output)


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_summary_is_learned_from_and_the_best_counts(driver, data, tmp_path, capsys, monkeypatch):
    # 16 of 48 texts have two.
    seen = []
    original = seq2seq.score_summaries
    monkeypatch.setattr(seq2seq, "score_summaries", lambda *args: seen.append(args[1]) or original(*args))
    start(driver, data, tmp_path / "out", max_steps=1)
    assert "64 train, 9 validation, 6 test texts with a summary" in capsys.readouterr().out
    counts = [[len(references) for references in rows] for rows in seen]
    assert [2, 1, 1] * 3 in counts
    assert counts[-1] == [2, 1, 1] * 2


def test_split_references():
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "summary": [["x", " ", "y"], ["z"]]})
    splits, references = split_references({"train": rows, "test": rows}, "summary")
    assert splits["train"].to_dict() == {"text": ["a", "a", "b"], "summary": ["x", "y", "z"]}
    assert splits["test"].to_dict() == {"text": ["a", "b"], "summary": ["x", "z"]}
    assert references == {"test": [["x", "y"], ["z"]]}


def test_split_references_of_a_stream():
    rows = [{"text": f"text {row}", "summary": [f"a{row}", " ", f"b{row}"][: row % 3 + 1]} for row in range(9)]
    train = datasets.Dataset.from_list(rows)
    expected, _ = split_references({"train": train}, "summary")
    stream = train.to_iterable_dataset(num_shards=3)
    splits, references = split_references({"train": stream, "test": train}, "summary")
    assert list(splits["train"]) == list(expected["train"])
    assert splits["train"].features == expected["train"].features
    assert list(references) == ["test"]
    empty = datasets.Dataset.from_list([*rows, {"text": "nothing of it", "summary": [" "]}])
    splits, _ = split_references({"train": empty.to_iterable_dataset()}, "summary")
    with pytest.raises(InputError, match="train, the row of 'nothing of it': column 'summary' is an empty list; give"):
        list(splits["train"])


def t5(directory):
    tokenizer = train_tokenizer(text for row in texts(48, 0) for text in (row["document"], *row["summary"]))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, **sizes)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_from_a_checkpoint_both_drivers_agree(data, tmp_path):
    flags = {"model_name_or_path": t5(tmp_path / "start"), "config_overrides": "{}", "source_prefix": "summarize: "}
    outputs = [start(driver, data, tmp_path / driver, metric_for_best_model="loss", **flags) for driver in DRIVERS]
    assert_close(*map(weights, outputs), tolerance=1e-4)
    assert "summary_text" in pipeline("summarization", model=str(outputs[0]), device="cpu")("In Rome it rains .")[0]


def test_do_predict(trained, data, tmp_path):
    flags = {"train_file": None, "validation_file": None, "model_name_or_path": trained, "config_overrides": "{}"}
    argv = [*arguments(data, tmp_path / "predict", **flags), "--do_predict", "--per_device_eval_batch_size", "2"]
    recipe_runs.start(RECIPES[TRAINER], argv)
    predictions = (tmp_path / "predict" / "predictions.txt").read_text(encoding="utf-8")
    assert predictions == (trained / "predictions.txt").read_text(encoding="utf-8")
    assert results(tmp_path / "predict")["test_rouge1"] == pytest.approx(results(trained)["test_rouge1"])


# Resuming, and the drivers against each other


@pytest.mark.parametrize("driver", DRIVERS)
def test_resume_is_exact(driver, data, tmp_path, monkeypatch):
    overrides = json.dumps(MODEL | {"dropout": 0.3})
    flags = {"num_train_epochs": 3, "max_tokens": 120, "metric_for_best_model": "loss", "config_overrides": overrides}
    whole = start(driver, data, tmp_path / "whole", **flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, driver, 1)
        start(driver, data, tmp_path / "parts", **flags)
    parts = start(driver, data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
    assert_equal(weights(whole), weights(parts))
    assert (whole / "predictions.txt").read_bytes() == (parts / "predictions.txt").read_bytes()
    with pytest.raises(InputError, match=r"--output_dir .* is not empty; .*--overwrite_output_dir"):
        start(driver, data, tmp_path / "parts", **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"max_tokens": 120, "warmup_steps": 3},
        {"gradient_accumulation_steps": 3, "label_smoothing_factor": 0.1},
        {"model_type": "hfseq_cnn", "config_overrides": '{"hidden_size": 16, "num_hidden_layers": 1, "dropout": 0.0}'},
    ],
    ids=["coverage", "smoothing", "cnn"],
)
def test_the_drivers_agree(flags, data, tmp_path):
    flags |= {"metric_for_best_model": "loss"}
    one, other = (start(driver, data, tmp_path / driver, **flags) for driver in DRIVERS)
    assert_close(weights(one), weights(other))
    for name in ("rouge1", "rougeLsum"):
        assert results(one)[f"test_{name}"] == pytest.approx(results(other)[f"test_{name}"])


@pytest.mark.parametrize("driver", DRIVERS)
def test_two_processes_train_the_same_model_as_one(driver, data, tmp_path):
    flags = {"metric_for_best_model": "loss", "num_train_epochs": 1}
    done = run_two(driver, arguments(data, tmp_path / "two", per_device_train_batch_size=4, **flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es), 8 batches per epoch") == 1
    one = start(driver, data, tmp_path / "one", per_device_train_batch_size=8, **flags)
    # Adam divides by the size of gradients, some of which are little more than rounding.
    assert_close(weights(one), weights(tmp_path / "two"), 5e-5)
    assert (one / "predictions.txt").read_bytes() == (tmp_path / "two" / "predictions.txt").read_bytes()


# Bad input


def rows_of(*rows):
    return lambda tmp_path: {"train_file": write_rows(tmp_path / "rows.jsonl", rows)}


BAD = {
    "missing file": (lambda _: {"train_file": "nowhere.csv"}, r"nowhere\.csv: no such file \(--train_file\)"),
    "no column": (rows_of({"document": "a", "title": "b"}), "no column 'summary'; there are 'document', 'title'"),
    "no summary": (rows_of({"document": "a", "summary": ["b"]}, {"document": "c", "summary": []}), "train, row 2: "),
    "empty": (rows_of({"document": " ", "summary": "b"}), "empty: none of 1 rows has text"),
    "encoder": (lambda _: {"model_type": "bert"}, "--model_type bert has no sequence-to-sequence model"),
    "coverage": (
        lambda _: {"config_overrides": json.dumps(MODEL | {"attention_type": "dot"})},
        "--config_overrides: .*coverage=True is impossible, it needs attention_type='additive'",
    ),
    "cnn": (
        lambda _: {"model_type": "hfseq_cnn", "config_overrides": '{"pointer_generator": true}'},
        "--config_overrides: CnnConfig has no field 'pointer_generator'",
    ),
    "metric": (lambda _: {"metric_for_best_model": "bleu"}, "--metric_for_best_model 'bleu'; there are rouge1"),
    "max_tokens": (lambda _: {"max_tokens": 3}, r"--max_tokens 3 is too small: row \d+ .* has \d+ tokens"),
    "lead": (lambda _: {"lead": 0}, "--lead 0"),
    "flag": (lambda _: {"summary_colum": "a"}, "unknown flag --summary_colum; did you mean --summary_column"),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input(driver, case, data, tmp_path):
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        start(driver, data, tmp_path / "out", **make(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
