"""The sentiment recipes, both drivers, run end to end on a few made-up texts."""

import json
import random
from pathlib import Path

import numpy as np
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
    run,
    run_two,
    weights,
)
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GPT2Config,
    pipeline,
)

from hfseq import GruConfig
from hfseq.errors import InputError
from hfseq.tasks.arguments import ClassArguments
from hfseq.tasks.classification import Classification, class_weights
from hfseq.tasks.losses import classification_loss
from hfseq.tokenization import train_tokenizer
from hfseq.training.checkpoints import last_complete_checkpoint

TRAINER, ACCELERATE = DRIVERS = ("sentiment", "sentiment_accelerate")
RECIPES = {driver: load(driver) for driver in DRIVERS}
CONFIG = """\
config_overrides: {hidden_size: 24, embedding_size: 12, dropout: 0.0, pooling: max}
tokenizer_model: word
num_train_epochs: 2
learning_rate: 1e-2
logging_steps: 2
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
"""
CNN = '{"hidden_size": 9, "dropout": 0.0}'
WORDS = {"good": ("fine", "great", "superb"), "bad": ("poor", "awful", "dull"), "so-so": ("fair", "usual", "plain")}


def reviews(count, seed, classes=("bad", "good", "so-so")):
    rng = random.Random(seed)
    for row in range(count):
        name = classes[row % len(classes)]
        yield (
            f"the {rng.choice(('plot', 'cast', 'song'))} is {' '.join(rng.choices(WORDS[name], k=row % 4 + 1))}",
            name,
        )


def write_rows(path, rows):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with config.yaml, and the rows of train (36), val (9), test (6), long (216)."""
    root = tmp_path_factory.mktemp("reviews")
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for seed, (name, count) in enumerate((("train", 36), ("val", 9), ("test", 6), ("long", 216))):
        write_rows(root / f"{name}.csv", reviews(count, seed))
    return root


def arguments(data, output_dir, **flags):
    files = {"train_file": data / "train.csv", "validation_file": data / "val.csv", "test_file": data / "test.csv"}
    return recipe_runs.arguments(data / "config.yaml", **(files | {"output_dir": output_dir} | flags))


def start(driver, data, output_dir, **flags):
    recipe_runs.start(RECIPES[driver], arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session", params=DRIVERS)
def trained(request, data, tmp_path_factory):
    flags = {"train_file": data / "long.csv", "max_tokens": 60}
    return start(request.param, data, tmp_path_factory.mktemp("runs") / request.param, **flags)


# What a run leaves


def test_files_and_scores_of_a_run(trained):
    for name in ("learning_curve.png", "confusion_matrix.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert len((trained / "predictions.txt").read_text(encoding="utf-8").splitlines()) == 6
    assert (trained / "samples.txt").read_text(encoding="utf-8").count("source: ") == 6
    found = results(trained)
    assert found["test_accuracy"] > 80
    assert found["test_majority_accuracy"] == pytest.approx(100 / 3)
    assert found["test_majority_f1"] == pytest.approx(100 / 6)
    assert last_complete_checkpoint(trained) is not None


def test_the_pipeline_shows_the_class_names(trained):
    classify = pipeline("text-classification", model=str(trained), device="cpu")
    texts = [text for text, _ in reviews(6, 2)]
    predicted = (trained / "predictions.txt").read_text(encoding="utf-8").splitlines()
    assert [result["label"] for result in classify(texts, batch_size=4)] == predicted
    assert {result["label"] for result in classify(texts[0], top_k=None)} == {"bad", "good", "so-so"}
    config = AutoModelForSequenceClassification.from_pretrained(trained).config
    assert config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert config.problem_type == "single_label_classification"


@pytest.mark.parametrize("text", ["", "%§&", "the " * 400 + "plot is dull"], ids=["empty", "unknown", "long"])
def test_odd_texts_get_a_class(trained, text):
    classify = pipeline("text-classification", model=str(trained), device="cpu")
    assert classify(text)[0]["label"] in WORDS
    together = classify([text, "the plot is dull"], batch_size=2)
    assert together[1]["score"] == pytest.approx(classify("the plot is dull")[0]["score"], abs=1e-6)


@pytest.mark.parametrize("driver", DRIVERS)
def test_odd_characters_of_texts_and_classes(driver, data, tmp_path):
    names = {"good": "go\x00od", "bad": "bad\nvery", "so-so": "so\u2028so"}
    for file, count in (("train", 36), ("val", 9), ("test", 6)):
        some = [{"text": text.replace("the", "th\x00e"), "label": names[name]} for text, name in reviews(count, 0)]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    files = dict(zip(("train_file", "validation_file", "test_file"), ("train", "val", "test"), strict=True))
    output = start(
        driver, data, tmp_path / "run", **{flag: tmp_path / f"{name}.jsonl" for flag, name in files.items()}
    )
    lines = (output / "predictions.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 7 and set(lines[:6]) <= {"go\x00od", "bad very", "so so"}
    config = AutoModelForSequenceClassification.from_pretrained(output).config
    assert set(config.id2label.values()) == set(names.values())
    classify = pipeline("text-classification", model=str(output), device="cpu")
    texts = [text.replace("the", "th\x00e") for text, _ in reviews(6, 0)]
    found = [result["label"] for result in classify([*texts, "\x00"])]
    assert [" ".join(name.splitlines()) for name in found[:6]] == lines[:6] and found[6] in names.values()
    assert any("\x00" in token for token in AutoTokenizer.from_pretrained(output).get_vocab())


# How it is told


@pytest.mark.parametrize("driver", DRIVERS)
def test_columns_and_what_is_printed(driver, data, tmp_path, capsys):
    rows = "".join(f"{label}\tx\t{text}\n" for text, label in reviews(40, 0))
    (tmp_path / "rows.tsv").write_text(rows, encoding="utf-8")
    flags = {"train_file": tmp_path / "rows.tsv", "test_file": tmp_path / "rows.tsv", "validation_file": None}
    columns = {"column_names": "class,fine,sentence", "text_column": "sentence", "label_column": "class"}
    options = {"model_type": "hfseq_cnn", "config_overrides": '{"hidden_size": 9}', "max_length": 6, "max_steps": 1}
    output = start(driver, data, tmp_path / "out", **flags, **columns, **options)
    assert type(AutoModelForSequenceClassification.from_pretrained(output)).__name__ == "CnnForSequenceClassification"
    printed = capsys.readouterr().out
    assert "38 train, 2 validation, 40 test texts of 3 classes: bad, good, so-so" in printed
    assert "test: 20 of 40 texts are longer than --max_length 6 and were truncated" in printed
    assert "majority" in printed


@pytest.mark.parametrize("driver", DRIVERS)
def test_several_classes_a_row(driver, data, tmp_path):
    rows = []
    for (one, first), (two, second) in zip(reviews(36, 0), reviews(36, 5, classes=("good", "bad")), strict=True):
        rows.append({"text": f"{one} , {two}", "label": sorted({first, second})})
    rows.append({"text": "nothing at all", "label": []})
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    (tmp_path / "long.jsonl").write_text("".join(lines * 16), encoding="utf-8")
    joined = [row | {"label": ";".join(row["label"])} for row in rows[:-1]]
    (tmp_path / "joined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in joined), encoding="utf-8")
    flags = {"train_file": tmp_path / "long.jsonl", "validation_file": path, "test_file": path}
    output = start(driver, data, tmp_path / "out", **flags)
    config = AutoModelForSequenceClassification.from_pretrained(output).config
    assert config.problem_type == "multi_label_classification"
    found = results(output)
    assert found["test_accuracy"] > 80 > found["test_majority_accuracy"] + 20
    assert not (output / "confusion_matrix.png").exists()
    predicted = (output / "predictions.txt").read_text(encoding="utf-8").splitlines()
    assert len(predicted) == 37 and set(", ".join(predicted).split(", ")) <= {*WORDS, ""}
    both = {"label_separator": ";", "max_steps": 1}
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), tmp_path / "joined.jsonl")
    config = AutoModelForSequenceClassification.from_pretrained(
        start(driver, data, tmp_path / "separated", **files, **both)
    ).config
    assert config.problem_type == "multi_label_classification"


def checkpoint(directory, kind, classes):
    tokenizer = train_tokenizer((text for text, _ in reviews(36, 0)), model="word")
    common = {"vocab_size": len(tokenizer), "id2label": dict(enumerate(classes))}
    common["label2id"] = {name: index for index, name in enumerate(classes)}
    if kind == "bert":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes, **common)
    elif kind == "gpt2":  # neither it nor its tokenizer has a pad token
        tokenizer.pad_token = None
        drop = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        config = GPT2Config(n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=2, **drop, **common)
    elif kind == "bart":  # gives more than logits
        sizes = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
        sizes |= {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 64, "dropout": 0.0}
        config = BartConfig(d_model=8, **sizes, **ids, **common)
    else:
        config = GruConfig(hidden_size=8, dropout=0.0, **common)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["bert", "bart", "gru"])
def test_from_a_checkpoint_both_drivers_agree(kind, data, tmp_path):
    # Its own order of the classes stays.
    model = checkpoint(tmp_path / "start", kind, ["so-so", "good", "bad"])
    flags = {"model_name_or_path": model, "config_overrides": "{}", "weight_decay": 0.1, "class_weights": "balanced"}
    outputs = [start(driver, data, tmp_path / driver, **flags) for driver in DRIVERS]
    for output in outputs:
        config = AutoModelForSequenceClassification.from_pretrained(output).config
        assert list(config.id2label.values()) == ["so-so", "good", "bad"]
        assert any(not torch.equal(weights(model)[name], tensor) for name, tensor in weights(output).items())
    assert_close(*map(weights, outputs), tolerance=1e-4)


def test_a_checkpoint_without_a_pad_token(data, tmp_path):
    """GPT-2's classifier reads the last token that is none, so its config has to know the one of the tokenizer."""
    model = checkpoint(tmp_path / "start", "gpt2", ["so-so", "good", "bad"])
    # Its norms, which no decay is for, are not called so.
    flags = {"model_name_or_path": model, "config_overrides": "{}", "weight_decay": 0.1}
    outputs = [start(driver, data, tmp_path / driver, **flags) for driver in DRIVERS]
    for output in outputs:
        config = AutoModelForSequenceClassification.from_pretrained(output).config
        assert config.pad_token_id == AutoTokenizer.from_pretrained(output).pad_token_id == 2
    assert_close(*map(weights, outputs), tolerance=1e-4)


@pytest.mark.parametrize("driver", DRIVERS)
def test_other_classes_than_a_checkpoint_knows(driver, data, tmp_path, capsys):
    model = checkpoint(tmp_path / "start", "gru", ["yes", "no"])
    output = start(
        driver, data, tmp_path / "out", model_name_or_path=model, config_overrides="{}", learning_rate=0, max_steps=1
    )
    assert "has other classes: yes, no; its output layer is newly initialized" in capsys.readouterr().out
    before, after = weights(model), weights(output)
    assert after["classifier.weight"].shape == (3, 8)
    for name in before.keys() - {"classifier.weight", "classifier.bias"}:
        assert torch.equal(before[name], after[name]), name


def test_do_predict(data, trained, tmp_path):
    flags = {"train_file": None, "validation_file": None, "model_name_or_path": trained, "config_overrides": "{}"}
    argv = arguments(data, tmp_path / "predict", **flags)
    # By length, the Trainer would return the rows in another order.
    argv += ["--do_predict", "--train_sampling_strategy", "group_by_length", "--per_device_eval_batch_size", "2"]
    recipe_runs.start(RECIPES[TRAINER], argv)
    predictions = (tmp_path / "predict" / "predictions.txt").read_text(encoding="utf-8")
    assert predictions == (trained / "predictions.txt").read_text(encoding="utf-8")
    assert results(tmp_path / "predict")["test_accuracy"] == pytest.approx(results(trained)["test_accuracy"])
    assert not (tmp_path / "predict" / "model.safetensors").exists()


# Resuming, and the drivers against each other


@pytest.mark.parametrize("driver", DRIVERS)
def test_resume_is_exact(driver, data, tmp_path, monkeypatch):
    overrides = '{"hidden_size": 24, "embedding_size": 12, "dropout": 0.3}'
    flags = {"num_train_epochs": 3, "max_tokens": 40, "metric_for_best_model": "loss", "config_overrides": overrides}
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
        {"max_tokens": 60, "warmup_steps": 3, "class_weights": "balanced"},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.05, "class_weights": '{"good": 3, "bad": 0.5}'},
        {
            "label_smoothing_factor": 0.1,
            "model_type": "hfseq_cnn",
            "config_overrides": '{"hidden_size": 9, "dropout": 0.0}',
        },
    ],
    ids=["balanced", "weights", "smoothing"],
)
def test_the_drivers_agree(flags, data, tmp_path):
    flags |= {"metric_for_best_model": "loss"}
    one, other = (start(driver, data, tmp_path / driver, **flags) for driver in DRIVERS)
    assert_close(weights(one), weights(other))
    assert results(one)["test_accuracy"] == results(other)["test_accuracy"]
    states = [
        json.loads((Path(last_complete_checkpoint(output)) / name).read_text(encoding="utf-8"))
        for output, name in ((one, "trainer_state.json"), (other, "loop_state.json"))
    ]
    losses = [
        [entry["eval_loss"] for entry in state[key] if "eval_loss" in entry]
        for state, key in zip(states, ("log_history", "log"), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("driver", DRIVERS)
def test_two_processes_train_the_same_model_as_one(driver, data, tmp_path):
    flags = {"metric_for_best_model": "loss", "class_weights": "balanced"}
    done = run_two(driver, arguments(data, tmp_path / "two", per_device_train_batch_size=6, **flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es), 3 batches per epoch") == 1
    one = start(driver, data, tmp_path / "one", per_device_train_batch_size=12, **flags)
    assert_close(weights(one), weights(tmp_path / "two"))
    assert (one / "predictions.txt").read_bytes() == (tmp_path / "two" / "predictions.txt").read_bytes()


# The loss


def test_the_loss_is_torchs():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 2])
    several = torch.randint(0, 2, (6, 3)).float()
    assert torch.equal(classification_loss(logits, labels), cross_entropy(logits, labels))
    torch.testing.assert_close(classification_loss(logits, several), binary_cross_entropy_with_logits(logits, several))
    # In two parts of one batch.
    weights = torch.tensor([3.0, 1.0, 0.5])
    for targets in (labels, several):
        whole = classification_loss(logits, targets, weights=weights)
        parts = [
            classification_loss(logits[rows], targets[rows], weights=weights, count=targets.numel())
            for rows in (slice(0, 2), slice(2, 6))
        ]
        torch.testing.assert_close(whole, sum(parts))
    naive = sum(weights[label] * -row.log_softmax(0)[label] for row, label in zip(logits, labels, strict=True)) / 6
    torch.testing.assert_close(classification_loss(logits, labels, weights=weights), naive)


def test_balanced_weights():
    labels = [0, 0, 0, 0, 1, 1, 2, 2]
    weights = class_weights("balanced", labels, ["a", "b", "c"])
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 6, 8 / 6])
    assert sum(weights[label] for label in labels) == pytest.approx(8)
    several = [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert class_weights("balanced", several, ["a", "b"]).tolist() == pytest.approx([1 / 3, 3.0])
    assert class_weights({"b": 2}, labels, ["a", "b", "c"]).tolist() == [1.0, 2.0, 1.0]


def test_predictions_and_the_baseline():
    task = Classification(ClassArguments(), None)
    task.splits = {"test": ["a", "b"]}
    logits = np.array([[0.1, 0.2, -1.0], [3.0, -2.0, 0.5]])
    expected = {False: ([1, 0], [2, 1, 2], [2, 2])}
    expected[True] = ([[1, 1, 0], [1, 0, 1]], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]])
    for task.multi_label, (predictions, labels, most) in expected.items():
        task.references = {"train": np.array(labels)}
        assert task.decode("test", logits).tolist() == predictions
        assert task.baseline("test", trained=True)["majority"].tolist() == most
    assert task.baseline("test", trained=False) == {}


# Bad input


def rows_of(content, name="rows.csv"):
    def make(tmp_path):
        (tmp_path / name).write_text(content, encoding="utf-8")
        return {"train_file": tmp_path / name}

    return make


def classifier_of(*classes):
    return lambda tmp_path: {
        "model_name_or_path": checkpoint(tmp_path / "start", "gru", classes),
        "config_overrides": "{}",
    }


BAD = {
    "missing file": (lambda _: {"train_file": "nowhere.csv"}, r"nowhere\.csv: no such file \(--train_file\)"),
    "no column": (rows_of("text,class\na,b\n"), r"rows\.csv: no column 'label'; there are 'text', 'class'"),
    "one class": (rows_of("text,label\na,good\nb,good\n"), "has 1 class .'good'.; there is nothing to learn"),
    "empty": (rows_of("text,label\n,good\n,bad\n"), "empty: none of 2 rows has text"),
    "new class": (rows_of("text,label\na,good\nb,bad\n"), "validation, row 3: class 'so-so' of column 'label'"),
    "extension": (rows_of("a,b\n", "rows.txt"), "unknown extension '.txt'"),
    "weights": (lambda _: {"class_weights": "heavy"}, "--class_weights heavy: give 'balanced', or a mapping"),
    "weight of": (lambda _: {"class_weights": '{"fair": 2}'}, "--class_weights: no class 'fair'; there are bad, good"),
    "weight 0": (lambda _: {"class_weights": '{"good": 0}'}, "--class_weights: 0 of class 'good' is not a positive"),
    "data's": (
        lambda _: {"config_overrides": '{"num_labels": 3}'},
        "--config_overrides: num_labels is determined by the data",
    ),
    "pooling": (lambda _: {"config_overrides": '{"pooling": "sum"}'}, "--config_overrides: .*'last', 'middle'"),
    "model_type": (lambda _: {"model_type": "marian"}, "--model_type marian has no sequence classifier; hfseq has"),
    "no path": (lambda _: {"model_name_or_path": "/nowhere"}, "--model_name_or_path /nowhere: no such directory"),
    "metric": (lambda _: {"metric_for_best_model": "bleu"}, "--metric_for_best_model 'bleu'; there are accuracy, f1"),
    "max_tokens": (lambda _: {"max_tokens": 3}, r"--max_tokens 3 is too small: row \d+ .* has \d+ tokens"),
    "flag": (lambda _: {"text_colum": "a"}, "unknown flag --text_colum; did you mean --text_column"),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input(driver, case, data, tmp_path):
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        start(driver, data, tmp_path / "out", **make(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_patience_without_evaluations(data, tmp_path):
    flags = {"early_stopping_patience": 2, "eval_strategy": "no", "load_best_model_at_end": "false"}
    with pytest.raises(InputError, match="--early_stopping_patience requires evaluations"):
        start("sentiment", data, tmp_path / "out", **flags, train_file="gone.csv")  # said before data are read
    assert not (tmp_path / "out").exists()


def test_rare_classes_do_not_stop_a_run_without_validation_rows(data, tmp_path):
    """Of twenty classes of one row and a frequent one none is held out whole; both drivers train on the same rows."""
    rows = [(f"the plot is {number}", f"rare{number}") for number in range(20)] + [*reviews(20, 0, ("good",))]
    flags = {"train_file": write_rows(tmp_path / "rows.csv", rows), "validation_file": None, "test_file": None}
    outputs = [start(driver, data, tmp_path / driver, **flags, max_steps=3) for driver in DRIVERS]
    assert_close(*map(weights, outputs), tolerance=1e-4)
    assert len((outputs[0] / "predictions.txt").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("driver", DRIVERS)
def test_smoothing_of_several_classes_is_refused(driver, data, tmp_path):
    with pytest.raises(InputError, match="--label_smoothing_factor requires one class per row"):
        start(driver, data, tmp_path / "out", label_separator=";", label_smoothing_factor=0.1)


def test_a_class_that_a_model_to_predict_with_does_not_know(data, tmp_path):
    model = checkpoint(tmp_path / "start", "gru", ["bad", "good"])
    flags = {"train_file": None, "validation_file": None, "model_name_or_path": model, "config_overrides": "{}"}
    with pytest.raises(InputError, match="test, row 3: class 'so-so' .* is not one of the 2 known: 'bad', 'good'"):
        recipe_runs.start(RECIPES[TRAINER], [*arguments(data, tmp_path / "out", **flags), "--do_predict"])


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mistake_is_one_line_and_exit_code_1(driver, data, tmp_path):
    done = run(driver, arguments(data, tmp_path / "out", label_column="class"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "no column 'class'; there are 'text', 'label'" in done.stderr
