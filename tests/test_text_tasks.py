"""Pairs of texts and regression, through both drivers, prediction files, pipelines and ONNX."""

import json
import random

import numpy as np
import pytest
import recipe_runs
import torch
from recipe_runs import load, results
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)

from hfseq.data.encoding import encode_texts
from hfseq.errors import InputError
from hfseq.onnx.export import export_onnx
from hfseq.onnx.runtime import load_onnx
from hfseq.tasks.arguments import ClassArguments
from hfseq.tasks.classification import Regression, has_fraction
from hfseq.tokenization import train_tokenizer

RECIPES = {name: load(name) for name in ("sentiment", "sentiment_accelerate", "finetuning", "finetuning_accelerate")}
FLAGS = {
    "tokenizer_model": "word",
    "num_train_epochs": 8,
    "learning_rate": 2e-2,
    "per_device_train_batch_size": 8,
    "config_overrides": '{"hidden_size": 24, "embedding_size": 16, "pooling": "max", "dropout": 0.0}',
    "use_cpu": "true",
    "disable_tqdm": "true",
}
WORDS = ("red", "green", "blue", "grey")


def pairs(count, seed):
    """Pairs of texts that are entailed if they name one colour."""
    rng = random.Random(seed)
    for row in range(count):
        first = rng.choice(WORDS)
        second = first if row % 2 else rng.choice([word for word in WORDS if word != first])
        yield {"premise": f"it is {first}", "hypothesis": f"so {second}", "label": "yes" if row % 2 else "no"}


def numbers(count, seed):
    """Texts whose number is the share of their words that are red."""
    rng = random.Random(seed)
    for _ in range(count):
        words = [rng.choice(("red", "blue")) for _ in range(4)]
        yield {"text": " ".join(words), "label": words.count("red") / 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("text_tasks")
    for name, rows in (("pairs", pairs), ("numbers", numbers)):
        for seed, (split, count) in enumerate((("train", 96), ("validation", 16), ("test", 12))):
            lines = "".join(json.dumps(row) + "\n" for row in rows(count, seed))
            (root / f"{name}_{split}.jsonl").write_text(lines, encoding="utf-8")
    return root


def start(driver, data, kind, output_dir, **flags):
    files = {f"{split}_file": data / f"{kind}_{split}.jsonl" for split in ("train", "validation", "test")}
    pair = {"text_column": "premise", "text_pair_column": "hypothesis"} if kind == "pairs" else {}
    model = {} if "model_name_or_path" in flags else {"model_type": "hfseq_lstm"}
    given = FLAGS | files | pair | model | {"output_dir": output_dir} | flags
    argv = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    recipe_runs.start(RECIPES[driver], argv)
    return output_dir


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    return {kind: start("sentiment", data, kind, root / kind) for kind in ("pairs", "numbers")}


# Pairs


def test_a_pair_is_one_sequence_with_a_separator():
    tokenizer = train_tokenizer(["a b c d"] * 3, model="word")
    encoded, lengths = encode_texts(tokenizer, [("a b", "c"), ("a b c d", "c")], 5)
    end = tokenizer.eos_token
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == ["▁a", "▁b", end, "▁c", end]
    assert len(encoded["input_ids"][1]) == 5 and encoded["input_ids"][1][-2:] == encoded["input_ids"][0][-2:]
    assert lengths == [5, 7]


def test_pairs_are_learned(trained, data):
    found = results(trained["pairs"])
    assert found["test_accuracy"] == 100 > found["test_majority_accuracy"] + 30
    lines = (trained["pairs"] / "samples.txt").read_text(encoding="utf-8").splitlines()
    first = next(pairs(12, 2))
    assert lines[0] == f"source:     {first['premise']} | {first['hypothesis']}"
    # Pipelines take pairs, and say what the run said.
    classify = pipeline("text-classification", model=str(trained["pairs"]), device="cpu")
    rows = list(pairs(12, 2))
    said = [classify({"text": row["premise"], "text_pair": row["hypothesis"]})["label"] for row in rows]
    assert said == (trained["pairs"] / "predictions.txt").read_text(encoding="utf-8").split()


def test_a_file_of_pairs(trained, data, tmp_path):
    start(
        "sentiment",
        data,
        "pairs",
        None,
        model_name_or_path=trained["pairs"],
        do_predict="true",
        output_file=tmp_path / "out.txt",
        train_file=None,
        validation_file=None,
        tokenizer_model=None,
        config_overrides=None,
    )
    expected = (trained["pairs"] / "predictions.txt").read_text(encoding="utf-8")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == expected


def test_pairs_in_onnx(trained, tmp_path):
    export_onnx(trained["pairs"], tmp_path / "onnx")
    runner, tokenizer = load_onnx(tmp_path / "onnx")
    row = next(pairs(1, 5))
    pair = {"text": row["premise"], "text_pair": row["hypothesis"]}
    model = AutoModelForSequenceClassification.from_pretrained(trained["pairs"])
    inputs = tokenizer(**pair, return_tensors="pt")
    torch.testing.assert_close(runner(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)
    classify = pipeline("text-classification", model=runner, tokenizer=tokenizer, device="cpu")
    assert classify(pair)["label"] == row["label"]


@pytest.mark.parametrize("driver", ["sentiment_accelerate", "finetuning", "finetuning_accelerate"])
def test_pairs_in_other_drivers(driver, data, trained, tmp_path):
    flags = {"model_type": "hfseq_cnn"} if driver == "finetuning" else {}
    found = results(start(driver, data, "pairs", tmp_path / "run", **flags))
    assert found["test_accuracy"] > 80


def test_a_transformer_reads_pairs_with_its_token_types(data, tmp_path):
    tokenizer = train_tokenizer([row["premise"] + " " + row["hypothesis"] for row in pairs(40, 0)], model="word")
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    flags = {"config_overrides": None, "tokenizer_model": None, "learning_rate": 5e-3, "max_steps": 3}
    out = start("finetuning", data, "pairs", tmp_path / "run", model_name_or_path=tmp_path / "bert", **flags)
    assert "test_accuracy" in results(out)


def test_plain_text_has_no_two_columns(trained, data, tmp_path):
    (tmp_path / "rows.txt").write_text("it is red\n", encoding="utf-8")
    flags = dict.fromkeys(("train_file", "validation_file", "tokenizer_model", "config_overrides"))
    flags |= {"model_name_or_path": trained["pairs"], "do_predict": "true", "test_file": tmp_path / "rows.txt"}
    with pytest.raises(InputError, match="rows.txt is plain text without columns; use a CSV"):
        start("sentiment", data, "pairs", None, output_file=tmp_path / "out.txt", **flags)
    assert not (tmp_path / "out.txt").exists()


def test_a_pair_of_other_columns(data, tmp_path):
    with pytest.raises(InputError, match="no column 'question2'"):
        start("sentiment", data, "pairs", tmp_path / "run", text_pair_column="question2")


# Regression


def test_numbers_with_a_fraction_are_learned(trained):
    found = results(trained["numbers"])
    assert found["test_pearson"] > 90 and found["test_spearman"] > 85
    assert found["test_rmse"] < found["test_mean_rmse"] / 2 and found["test_mean_pearson"] == 0
    config = json.loads((trained["numbers"] / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "regression" and list(config["id2label"]) == ["0"]
    assert (trained["numbers"] / "scatter.png").read_bytes().startswith(b"\x89PNG")
    assert not (trained["numbers"] / "confusion_matrix.png").exists()
    said = np.loadtxt(trained["numbers"] / "predictions.txt")
    right = np.array([row["label"] for row in numbers(12, 2)])
    assert np.sqrt(np.mean((said - right) ** 2)) == pytest.approx(found["test_rmse"], rel=1e-2)
    # The pipeline gives the number as it is.
    model = AutoModelForSequenceClassification.from_pretrained(trained["numbers"])
    tokenizer = AutoTokenizer.from_pretrained(trained["numbers"])
    score = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none", device="cpu")
    assert score(next(numbers(12, 2))["text"])[0]["score"] == pytest.approx(said[0], rel=1e-3)


def test_a_trained_regressor_is_tested_on_whole_numbers(trained, data, tmp_path):
    rows = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in (("red", 1), ("blue", 0)))
    (tmp_path / "whole.jsonl").write_text(rows, encoding="utf-8")
    flags = dict.fromkeys(("train_file", "validation_file", "tokenizer_model", "config_overrides"))
    flags |= {"model_name_or_path": trained["numbers"], "test_file": tmp_path / "whole.jsonl", "do_predict": "true"}
    assert "test_rmse" in results(start("sentiment", data, "numbers", tmp_path / "run", **flags))


def test_a_multi_label_model_needs_several_classes(data, tmp_path):
    rows = [{"text": "red", "label": ["a", "b"]}, {"text": "blue", "label": ["b"]}] * 8
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "one.csv").write_text("text,label\nred,a\nblue,b\n", encoding="utf-8")
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), tmp_path / "lists.jsonl")
    model = start("sentiment", data, "numbers", tmp_path / "run", max_steps=1, **files)
    flags = dict.fromkeys(("train_file", "validation_file", "tokenizer_model", "config_overrides"))
    flags |= {"model_name_or_path": model, "test_file": tmp_path / "one.csv", "do_predict": "true"}
    with pytest.raises(
        InputError, match="multi_label_classification: .* one class per text, and there is no --label_separator"
    ):
        start("sentiment", data, "numbers", tmp_path / "test", **flags)


def test_a_stream_of_numbers(data, tmp_path):
    found = results(start("sentiment", data, "numbers", tmp_path / "run", streaming="true", max_steps=4, eval_steps=2))
    assert "test_rmse" in found


@pytest.mark.parametrize("driver", ["sentiment_accelerate", "finetuning", "finetuning_accelerate"])
def test_regression_in_other_drivers(driver, data, tmp_path):
    found = results(start(driver, data, "numbers", tmp_path / "run", metric_for_best_model="rmse"))
    assert found["test_pearson"] > 80 and found["test_rmse"] < found["test_mean_rmse"]


def test_whole_numbers_are_classes_unless_told(data, tmp_path):
    for split, count in (("train", 24), ("validation", 8), ("test", 8)):
        rows = ({"text": f"it is {row % 3}", "label": row % 3} for row in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {f"{split}_file": tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")}
    flags = files | {"max_steps": 2}
    assert "test_accuracy" in results(start("sentiment", data, "numbers", tmp_path / "classes", **flags))
    told = start("sentiment", data, "numbers", tmp_path / "told", problem_type="regression", **flags)
    assert "test_rmse" in results(told) and "test_accuracy" not in results(told)


@pytest.mark.parametrize(
    ("labels", "fraction"),
    [
        ([0.5, 1], True),
        (["1", "2.25"], True),
        ([1, 2], False),
        (["inf", "1"], False),
        (["a", "0.5"], False),
        ([["a"], ["b"]], False),
    ],
)
def test_numbers_with_a_fraction(labels, fraction):
    assert has_fraction(labels) is fraction


def test_the_loss_is_the_mean_squared_error():
    task = Regression(ClassArguments(), None)
    outputs = type("Outputs", (), {"logits": torch.tensor([[1.0], [3.0]])})
    assert task.loss(outputs, torch.tensor([0.0, 1.0])) == pytest.approx((1 + 4) / 2)
    assert task.loss(outputs, torch.tensor([0.0, 1.0]), 4) == pytest.approx((1 + 4) / 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"class_weights": "balanced"}, "--class_weights applies to classes, but the labels are numbers"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor applies to classes"),
        ({"metric_for_best_model": "bleu"}, "unknown --metric_for_best_model 'bleu'; there are accuracy"),
        ({"metric_for_best_model": "accuracy"}, "unknown --metric_for_best_model 'accuracy'; there are pearson"),
        ({"problem_type": "ranking"}, "unknown --problem_type 'ranking'; there are regression"),
        ({"problem_type": "multi_label_classification"}, "column 'label' contains one class per text"),
        ({"train_file": "words.jsonl", "problem_type": "regression"}, "train, row 2: column 'label' is 'much'"),
    ],
)
def test_bad_input(flags, message, data, tmp_path):
    rows = [{"text": "red", "label": 0.5}, {"text": "blue", "label": "much"}]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = {name: tmp_path / value if name == "train_file" else value for name, value in flags.items()}
    with pytest.raises(InputError, match=message):
        start("sentiment", data, "numbers", tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_taken_for_classes(data, tmp_path):
    flags = {"problem_type": "single_label_classification", "max_steps": 2}
    assert "test_accuracy" in results(start("sentiment", data, "numbers", tmp_path / "run", **flags))
