"""The fine-tuning recipes, both drivers, run end to end: every task, every method, from several kinds of models."""

import contextlib
import io
import json
import math
import random
import re
import shutil
from functools import cache
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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    T5Config,
    pipeline,
)

from hfseq import GruConfig, LstmConfig
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.training.finetuning import TASKS, FinetuningArguments, TaskArguments

TRAINER, ACCELERATE = DRIVERS = ("finetuning", "finetuning_accelerate")
RECIPES = {driver: load(driver) for driver in DRIVERS}
NOUNS = ("plot", "cast", "song", "room")
WORDS = {"good": ("fine", "great", "superb"), "bad": ("poor", "awful", "dull")}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def sentences(count, seed):
    """Words, tags and a class of each sentence."""
    rng = random.Random(seed)
    for row in range(count):
        name = ("bad", "good")[row % 2]
        words = ["the", rng.choice(NOUNS), "is", *rng.choices(WORDS[name], k=row % 3 + 1)]
        yield words, ["DET", "NOUN", "VERB", *["ADJ"] * (len(words) - 3)], name


def write_rows(path, count, seed):
    """JSON lines that every task reads its columns of."""
    lines = [
        json.dumps(
            {"text": " ".join(words), "label": name, "tokens": words, "tags": tags}
            | {"document": " ".join(words), "summary": [f"{words[1]} {name}"]}
        )
        for words, tags, name in sentences(count, seed)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with train (48), val (10), test (8) and long (480) rows, a YAML file, and small checkpoints."""
    root = tmp_path_factory.mktemp("rows")
    for seed, (name, count) in enumerate((("train", 48), ("val", 10), ("test", 8), ("long", 480))):
        write_rows(root / f"{name}.jsonl", count, seed)
    (root / "config.yaml").write_text(
        "num_train_epochs: 2\nlearning_rate: 1e-2\nlogging_steps: 2\nper_device_train_batch_size: 8\n"
        "block_size: 16\nmax_target_length: 6\nuse_cpu: true\ndisable_tqdm: true\n",
        encoding="utf-8",
    )
    texts = [" ".join(words) for words, _, _ in sentences(60, 9)]
    tokenizer = train_tokenizer([*texts, "good bad"], model="word", vocab_size=60)
    size = {"vocab_size": len(tokenizer), **IDS}
    bert = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    quiet = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    rnn = {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 2, "dropout": 0.0}
    kinds = {
        "bert": (AutoModelForMaskedLM, BertConfig(**size, **bert)),
        "gpt2": (AutoModelForCausalLM, GPT2Config(**size, n_embd=16, n_layer=2, n_head=2, **quiet)),
        "t5": (AutoModelForSeq2SeqLM, T5Config(**size, **t5)),
        "lm": (AutoModelForCausalLM, LstmConfig(**size, **rnn)),
        "translator": (AutoModelForSeq2SeqLM, GruConfig(**size, **rnn, decoder_start_token_id=1)),
    }
    for name, (auto_class, config) in kinds.items():
        torch.manual_seed(0)
        auto_class.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def arguments(data, output_dir, **flags):
    files = {f"{split}_file": data / f"{name}.jsonl" for split, name in zip(SPLITS, FILES, strict=True)}
    return recipe_runs.arguments(data / "config.yaml", **(files | {"output_dir": output_dir} | flags))


SPLITS, FILES = ("train", "validation", "test"), ("train", "val", "test")


def start(driver, data, output_dir, **flags):
    recipe_runs.start(RECIPES[driver], arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session")
def learned(data, tmp_path_factory):
    """Makes models that have learned a task: where a run left them, and what it printed."""

    @cache
    def learn(driver, task, model):
        epochs = {"seq2seq": 2, "language_modeling": 4, "classification": 3}.get(task, 1)
        rate = 1e-2 if task == "classification" else 2e-2
        flags = {"model_name_or_path": data / model, "train_file": data / "long.jsonl"}
        flags |= {"num_train_epochs": epochs, "learning_rate": rate}
        output = tmp_path_factory.mktemp("learned") / "run"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            start(driver, data, output, task=task, **flags)
        return output, printed.getvalue()

    return learn


# Every task, from hfseq and from Transformers


# Each task with both drivers and with both kinds of models; that drivers agree is tested below.
@pytest.mark.parametrize(
    ("driver", "task", "model", "score", "baseline"),
    [
        (TRAINER, "classification", "lm", "accuracy", "majority"),
        (ACCELERATE, "classification", "bert", "accuracy", "majority"),
        (TRAINER, "tagging", "lm", "accuracy", "majority"),
        (ACCELERATE, "tagging", "bert", "accuracy", "majority"),
        (TRAINER, "language_modeling", "lm", "perplexity", "unigram"),
        (ACCELERATE, "language_modeling", "gpt2", "perplexity", "unigram"),
        (TRAINER, "seq2seq", "translator", "rouge1", "lead_1"),
        (ACCELERATE, "seq2seq", "t5", "rouge1", "lead_1"),
    ],
)
def test_a_checkpoint_learns_a_task(driver, task, model, score, baseline, learned):
    output, printed = learned(driver, task, model)
    found = results(output)
    own, simple = found[f"test_{score}"], found[f"test_{baseline}_{score}"]
    assert own < simple if score == "perplexity" else own > simple
    assert f"{score} by source length" in printed
    assert baseline in printed
    assert len((output / "predictions.txt").read_text(encoding="utf-8").splitlines()) >= 2
    assert (output / "learning_curve.png").is_file()
    AutoTokenizer.from_pretrained(output)


def test_a_tagger_shows_its_tags_in_a_pipeline(learned):
    output, _ = learned(TRAINER, "tagging", "lm")
    tag = pipeline("token-classification", model=str(output), device="cpu")
    assert [found["entity"] for found in tag("the plot is great")] == ["DET", "NOUN", "VERB", "ADJ"]
    assert (output / "predictions.txt").read_text(encoding="utf-8").split("\n")[0].split()[:3] == [
        "DET",
        "NOUN",
        "VERB",
    ]


def test_words_of_several_tokens_have_one_tag(data, tmp_path):
    """Longer words than the tokenizer's, and rows cut by --max_length, keep the scores those of words."""
    flags = {"task": "tagging", "model_type": "hfseq_gru", "tokenizer_model": "character", "vocab_size": 60}
    sizes = '{"hidden_size": 8, "embedding_size": 8}'
    output = start(TRAINER, data, tmp_path / "run", **flags, config_overrides=sizes, max_length=12)
    lines = (output / "predictions.txt").read_text(encoding="utf-8").splitlines()
    # "the plot is" has 11 characters, spaces in front of words counted 12; the end mark takes one more.
    assert all(1 <= len(line.split()) <= 3 for line in lines)


def test_perplexity_is_that_of_a_loop_over_the_blocks(data, learned):
    output, _ = learned(TRAINER, "language_modeling", "lm")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output).eval(), AutoTokenizer.from_pretrained(output)
    ids = []
    for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines():
        ids += [*tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    total, count = 0.0, 0
    for begin in range(0, len(ids) - 1, 15):
        block = torch.tensor([ids[begin : begin + 16]])
        loss = torch.nn.functional.cross_entropy(model(block).logits[0, :-1], block[0, 1:], reduction="sum")
        total, count = total + loss.item(), count + block.shape[1] - 1
    assert count == len(ids) - 1
    assert results(output)["test_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_plain_text_is_read_for_a_language_model(data, tmp_path):
    for name in FILES:
        texts = [json.loads(line)["text"] for line in (data / f"{name}.jsonl").read_text("utf-8").splitlines()]
        (tmp_path / f"{name}.tokens").write_text("\n".join(texts), encoding="utf-8")
    files = {f"{split}_file": tmp_path / f"{name}.tokens" for split, name in zip(SPLITS, FILES, strict=True)}
    flags = {"task": "language_modeling", "model_name_or_path": data / "lm"}
    plain = start(TRAINER, data, tmp_path / "plain", **flags, **files)
    rows = start(TRAINER, data, tmp_path / "rows", **flags)
    assert_equal(weights(plain), weights(rows))


def scores(output):
    return {name: value for name, value in results(output).items() if name.startswith("test_")}


@pytest.mark.parametrize(("driver", "task"), [(TRAINER, "tagging"), (ACCELERATE, "language_modeling")])
def test_a_tokenizer_without_a_pad_token(driver, task, data, tmp_path):
    """Like GPT-2's and Llama's: EOS is used for padding; a tokenizer without either is an error."""
    tokenizer = AutoTokenizer.from_pretrained(data / "gpt2")
    tokenizer.pad_token = None
    model = AutoModelForCausalLM.from_pretrained(data / "gpt2")
    model.config.pad_token_id = None
    for part in (tokenizer, model):
        part.save_pretrained(tmp_path / "gpt2")
    flags = {"task": task, "model_name_or_path": tmp_path / "gpt2"}
    output = start(driver, data, tmp_path / "run", **flags)
    # The same model with a pad token of its own: which one it is makes no difference.
    other = start(driver, data, tmp_path / "other", **flags | {"model_name_or_path": data / "gpt2"})
    assert_close(weights(output), weights(other))
    assert scores(output) == pytest.approx(scores(other), rel=1e-4)
    assert AutoTokenizer.from_pretrained(output).pad_token == tokenizer.eos_token
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match="neither a padding token nor an EOS token"):
        start(driver, data, tmp_path / "neither", **flags)


@pytest.mark.parametrize(
    ("driver", "task", "model"), [(TRAINER, "language_modeling", "lm"), (ACCELERATE, "tagging", "gpt2")]
)
def test_a_tokenizer_that_pads_on_the_left(driver, task, model, data, tmp_path):
    """Words and tokens are found at their places all the same, and the tokenizer keeps its side."""
    shutil.copytree(data / model, tmp_path / "left")
    tokenizer = AutoTokenizer.from_pretrained(data / model, padding_side="left")
    tokenizer.save_pretrained(tmp_path / "left")
    right = start(driver, data, tmp_path / "right", task=task, model_name_or_path=data / model)
    left = start(driver, data, tmp_path / "run", task=task, model_name_or_path=tmp_path / "left")
    assert scores(left) == pytest.approx(scores(right))
    assert AutoTokenizer.from_pretrained(left).padding_side == "left"


# Rare classes


def rare(path, count):
    """Rows of as many classes and tags, each of which is in one of them, and as many rows of one more."""
    names = [*(f"rare{number}" for number in range(count)), *["usual"] * count]
    rows = [{"text": f"a {name}", "label": name, "tokens": ["a", name], "tags": ["usual", name]} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def task_of(task, tmp_path, **flags):
    args = FinetuningArguments(output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[])
    args.choose_metric(TASKS[task].metrics)
    return TASKS[task](TaskArguments(task=task, **flags), args).read()


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_the_last_row_of_a_class_is_not_held_out(task, tmp_path):
    made = task_of(task, tmp_path, train_file=rare(tmp_path / "rows.jsonl", 100))
    assert len(made.splits["validation"]) == 10 and len(made.splits["train"]) == 190
    assert len(made.classes) == 101


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("classification", {"class_weights": "balanced"}),
        ("classification", {"streaming": True}),
        ("tagging", {}),
    ],
    ids=["classes", "stream", "tags"],
)
def test_classes_are_those_of_all_training_rows(task, flags, tmp_path):
    """Those that are drawn by --max_train_samples have but a few of the classes of the validation rows."""
    flags = {"train_file": rare(tmp_path / "train.jsonl", 20), "max_train_samples": 8} | flags
    made = task_of(task, tmp_path, validation_file=rare(tmp_path / "val.jsonl", 20), **flags)
    assert len(list(made.splits["train"])) == 8 and len(made.splits["validation"]) == 40
    assert len(made.classes) == 21
    if task == "classification":
        assert len(made.references["train"]) == 8


# Methods


PARTS = ("classifier", "layers.1", "layers.0", "embed")


def changed(before, after):
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_head_alone(driver, data, tmp_path, capsys):
    output = start(driver, data, tmp_path / "run", model_name_or_path=data / "bert", method="head")
    moved = changed(weights(data / "bert"), weights(output))
    # A masked language model has no pooler: it is new, so it trains.
    assert moved == {f"{name}.{part}" for name in ("classifier", "bert.pooler.dense") for part in ("weight", "bias")}
    assert "parameters trainable" in capsys.readouterr().out


@pytest.mark.parametrize("driver", DRIVERS)
def test_gradual_unfreezing_reaches_one_layer_more_each_epoch(driver, data, tmp_path):
    before = weights(data / "lm")
    reached = []
    flags = {"method": "gradual", "num_train_epochs": 4, "layer_decay": 1.5, "save_total_limit": 9}
    output = start(driver, data, tmp_path / "run", model_name_or_path=data / "lm", **flags)
    for epoch in sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        saved = weights(epoch) if (epoch / "model.safetensors").is_file() else torch.load(epoch / "pytorch_model.bin")
        moved = changed(before, saved)
        reached.append([any(part in name for name in moved) for part in PARTS])
    assert reached == [[part <= epoch for part in range(4)] for epoch in range(4)]


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("model", ["bert", "lm"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_adapters_are_merged_into_an_ordinary_model(driver, model, data, tmp_path, capsys):
    flags = {"method": "lora", "lora_r": 2, "learning_rate": 3e-2}
    flags |= {"train_file": data / "long.jsonl", "num_train_epochs": 1}
    output = start(driver, data, tmp_path / "run", model_name_or_path=data / model, **flags)
    classifier = AutoModelForSequenceClassification.from_pretrained(output)
    assert not any("lora" in name for name in weights(output))
    lines = (output / "predictions.txt").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in (data / "test.jsonl").read_text("utf-8").splitlines()]
    classify = pipeline("text-classification", model=classifier, tokenizer=AutoTokenizer.from_pretrained(output))
    assert [found["label"] for found in classify(texts)] == lines
    assert results(output)["test_accuracy"] > 60
    assert " of " in next(line for line in capsys.readouterr().out.splitlines() if "parameters trainable" in line)


@pytest.mark.contract
@pytest.mark.parametrize("method", ["all", "gradual", "lora"])
@pytest.mark.parametrize("task", ["classification", "language_modeling"])
def test_both_drivers_give_the_same_weights(task, method, data, tmp_path):
    if method == "lora" and task == "language_modeling":
        flags = {"task": task, "method": method, "model_name_or_path": data / "gpt2"}
    else:
        flags = {"task": task, "method": method, "model_name_or_path": data / "lm"}
    outputs = [start(driver, data, tmp_path / driver, **flags) for driver in DRIVERS]
    assert_close(*map(weights, outputs))


def test_ulmfit_in_three_steps(data, tmp_path):
    """A language model from scratch, the same on other texts, then a classifier that starts from it."""
    sizes = '{"hidden_size": 16, "embedding_size": 16, "dropout": 0.0}'
    flags = {"task": "language_modeling", "tokenizer_model": "word", "vocab_size": 60}
    first = start(TRAINER, data, tmp_path / "1", model_type="hfseq_lstm", config_overrides=sizes, **flags)
    second = start(TRAINER, data, tmp_path / "2", task="language_modeling", model_name_or_path=first)
    third = start(
        TRAINER, data, tmp_path / "3", model_name_or_path=second, method="gradual", num_train_epochs=6, layer_decay=1.2
    )
    config = AutoConfig.from_pretrained(third)
    assert config.bidirectional is False
    assert config.id2label == {0: "bad", 1: "good"}
    assert results(third)["test_accuracy"] > 60


# What the recipes share


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("method", ["gradual", "lora"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(driver, method, data, tmp_path, monkeypatch):
    flags = {"method": method, "model_name_or_path": data / "lm", "num_train_epochs": 3}
    whole = start(driver, data, tmp_path / "whole", **flags)
    with monkeypatch.context() as patch:
        kill_after_checkpoint(patch, driver, 2)
        with pytest.raises(Killed):
            start(driver, data, tmp_path / "broken", **flags)
    broken = start(driver, data, tmp_path / "broken", **flags, resume_from_checkpoint="last")
    assert_equal(weights(whole), weights(broken))


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("method", ["gradual", "lora"])
def test_two_processes_train_the_same_model_as_one(driver, method, data, tmp_path):
    flags = {"method": method, "model_name_or_path": data / "lm", "test_file": None}
    one = start(driver, data, tmp_path / "one", **flags)
    argv = arguments(data, tmp_path / "two", **(flags | {"per_device_train_batch_size": 4}))
    process = run_two(driver, argv)
    assert process.returncode == 0, process.stderr
    assert "2 process(es)" in process.stdout
    assert_close(weights(one), weights(tmp_path / "two"))


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("task", ["classification", "language_modeling", "seq2seq"])
def test_a_stream_of_rows(driver, task, data, tmp_path):
    model = "translator" if task == "seq2seq" else "lm"
    flags = {"task": task, "model_name_or_path": data / model, "streaming": True, "max_steps": 6, "eval_steps": 3}
    flags["save_total_limit"] = 9
    output = start(driver, data, tmp_path / "run", **flags)
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    assert "test_" in " ".join(results(output))


def test_a_search_of_what_a_method_trains(data, tmp_path, capsys):
    space = '{"learning_rate": {"low": 1e-3, "high": 1e-1, "log": true}, "config_overrides.dropout": [0.0, 0.2]}'
    flags = {"model_name_or_path": data / "lm", "method": "gradual", "hp_search": 2, "hp_space": space}
    output = start(TRAINER, data, tmp_path / "run", **flags)
    assert "the best is" in capsys.readouterr().out
    best = max(
        float(line.split()[1]) for line in (output / "trials.csv").read_text().replace(",", " ").splitlines()[1:]
    )
    recipe_runs.start(RECIPES[TRAINER], [output / "best_trial.yaml"])
    state = json.loads(next((output / "best_trial").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["best_metric"] == pytest.approx(best)


@pytest.mark.parametrize("task", ["classification", "seq2seq"])
def test_a_file_in_a_file_out(task, data, learned, tmp_path):
    trained, _ = learned(TRAINER, task, "translator" if task == "seq2seq" else "lm")
    column = "document" if task == "seq2seq" else "text"
    (tmp_path / "in.txt").write_text("the plot is fine\n\nthe cast is dull\n", encoding="utf-8")
    flags = {"train_file": None, "validation_file": None, "test_file": tmp_path / "in.txt", "text_column": column}
    options = {"task": task, "model_name_or_path": trained, "do_predict": True, "output_file": tmp_path / "out.txt"}
    start(TRAINER, data, tmp_path / "none", **flags, **options)
    lines = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""
    assert lines[0]
    assert not (tmp_path / "none").exists()


BAD = {
    "no model": ({}, "give --model_name_or_path to fine-tune a checkpoint, or --model_type"),
    "task": ({"task": "parsing"}, "unknown --task 'parsing'; there are classification, tagging"),
    "method": ({"method": "half"}, "unknown --method 'half'; there are all, head, gradual, lora"),
    "both directions": ({"task": "language_modeling", "model": "bert"}, "bert is bidirectional, not a causal"),
    "no decoder": ({"task": "seq2seq", "model": "lm"}, "is not a sequence-to-sequence model"),
    "metric": (
        {"model": "lm", "metric_for_best_model": "rouge1"},
        "unknown --metric_for_best_model 'rouge1'",
    ),
    "decay": ({"model": "lm", "method": "lora", "layer_decay": 2}, "--layer_decay requires --method all or gradual"),
    "average": (
        {"model": "lm", "method": "lora", "average_checkpoints": 2, "save_total_limit": 2},
        "requires full checkpoints",
    ),
    "no block": ({"model": "lm", "task": "language_modeling", "block_size": 0}, "--block_size 0: give 2 or more"),
    "block": ({"model": "lm", "task": "language_modeling", "block_size": 1}, "--block_size 1: give 2 or more"),
    "rank": ({"model": "lm", "method": "lora", "lora_r": 0}, "--lora_r 0: give 1 or more"),
    "tags": ({"task": "tagging", "model": "lm", "label_column": "summary"}, "5 tokens and 1 summary|each word needs"),
    "column": ({"model": "lm", "text_column": "body"}, "body"),
    "steps": ({"model": "lm", "streaming": True}, "set --max_steps"),
    "epochs": ({"model": "lm", "streaming": True, "method": "gradual"}, "--streaming has no epochs"),
    "no head": ({"task": "language_modeling", "model": "gpt2", "method": "head"}, "has no separate output layer"),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(driver, case, data, tmp_path):
    flags, message = dict(BAD[case][0]), BAD[case][1]
    if not flags.pop("files", True):
        flags |= {"train_file": None, "validation_file": None, "test_file": None}
    if "model" in flags:
        flags["model_name_or_path"] = data / flags.pop("model")
    with pytest.raises(InputError, match=message) as caught:
        start(driver, data, tmp_path / "run", **flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_full_output_directory_stays(data, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        start(TRAINER, data, tmp_path, model_name_or_path=data / "lm")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


# The demo: a language model, and a classifier that starts from it


def embedded(task):
    splits = {}
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 8))):
        some = [(" ".join(words), label) for words, _, label in sentences(count, seed)]
        splits[name] = datasets.Dataset.from_dict(dict(zip(("text", "label"), zip(*some, strict=True), strict=True)))
    return datasets.DatasetDict(splits)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Runs the demo of a driver, in little, with some flags; gives its directory."""
    for task in ("classification", "language_modeling"):
        monkeypatch.setattr(TASKS[task], "embedded", embedded)
    monkeypatch.chdir(tmp_path)
    sizes = '{"hidden_size": 16, "embedding_size": 16}'
    small = ["--num_train_epochs", "1", "--use_cpu", "--disable_tqdm", "true", "--config_overrides", sizes]

    def run(driver, *flags, directory="demo"):
        recipe_runs.start(RECIPES[driver], [*small, "--output_dir", directory, *flags])
        return tmp_path / directory

    return run


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_demo_in_a_directory_of_its_own(driver, demo, tmp_path, capsys):
    output = demo(driver, "--seed", "7", "--max_train_samples", "32")
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
    assert {path.name for path in output.iterdir()} == {"language_model", "classifier"}
    one, other = (json.loads((output / name / "run.json").read_text()) for name in ("language_model", "classifier"))
    assert one["rows"]["train"] == other["rows"]["train"] == 32
    assert other["arguments"]["model_name_or_path"] == "language_model"
    # Words that no row has stay as they were.
    tables = [load_embeddings(output / name) for name in ("language_model", "classifier")]
    assert torch.equal(tables[0][3], tables[1][3])
    with pytest.raises(InputError, match=r"demo/language_model is not empty"):
        demo(driver)
    first = weights(output / "classifier")
    again = demo(driver, "--seed", "7", "--max_train_samples", "32", "--overwrite_output_dir")
    assert_equal(weights(again / "classifier"), first)
    capsys.readouterr()
    resumed = demo(driver, "--seed", "7", "--max_train_samples", "32", "--resume_from_checkpoint", "last")
    assert_equal(weights(resumed / "classifier"), first)


def load_embeddings(directory):
    found = weights(directory)
    [name] = [name for name in found if name.endswith(("embeddings.weight", "embed_tokens.weight"))][:1]
    return found[name]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("method", ["head", "lora"])
def test_flags_of_the_classifier_alone(driver, method, demo, capsys):
    output = demo(driver, "--method", method, "--metric_for_best_model", "f1", "--greater_is_better", "true")
    trained = re.findall(r"(\w+): ([\d,]+)( of [\d,]+)? parameters", capsys.readouterr().out)
    assert len(trained) == 2 and trained[0][0] == "LstmForCausalLM"
    assert not trained[0][2] and trained[1][2]
    assert "test_f1" in results(output / "classifier")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hp_search", "2"], "--hp_search is not supported by the two-run demo; give a --task and a model"),
        (["--do_predict"], "--do_predict is not supported by the two-run demo"),
        (["--output_file", "x.txt"], "--output_file is not supported by the two-run demo"),
        (
            ["--resume_from_checkpoint", "x"],
            "x is not supported by the two-run demo; use last",
        ),
        # Known before the first of them.
        (["--metric_for_best_model", "perplexity"], "unknown --metric_for_best_model 'perplexity'"),
    ],
)
def test_what_the_demo_cannot_do(driver, flags, message, demo, tmp_path):
    with pytest.raises(InputError, match=message):
        demo(driver, *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_full_directory_of_the_second_run_stops_the_first(driver, demo, tmp_path):
    (tmp_path / "demo" / "classifier").mkdir(parents=True)
    (tmp_path / "demo" / "classifier" / "mine.txt").touch()
    with pytest.raises(InputError, match="demo/classifier is not empty"):
        demo(driver)
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["classifier"]
