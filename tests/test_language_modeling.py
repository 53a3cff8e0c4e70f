"""The recipe, and the Trainer that carries a state, against loops written by hand."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import recipe_runs
import torch
from recipe_runs import Killed, assert_close, assert_equal, kill_after_checkpoint, load, results, run_two, weights
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    TrainingArguments,
    pipeline,
    set_seed,
)

from hfseq import LstmConfig
from hfseq.data.running_text import TokenWindows, encode_text
from hfseq.errors import InputError
from hfseq.inference.generate import next_words
from hfseq.tasks.language_modeling import text_loss, unigram_loss
from hfseq.training.checkpoints import last_complete_checkpoint
from hfseq.training.running_text import LanguageModelingTrainer

RECIPE = load("language_modeling")
SIZES = {"hidden_size": 12, "embedding_size": 12, "dropout": 0.0}
CONFIG = """\
config_overrides: {hidden_size: 12, embedding_size: 12, dropout: 0.0}
tokenizer_model: whitespace
num_train_epochs: 2
learning_rate: 1e-2
logging_steps: 5
per_device_train_batch_size: 4
per_device_eval_batch_size: 2
block_size: 7
max_grad_norm: 0.5
use_cpu: true
disable_tqdm: true
"""


def story(lines, seed):
    """Lines in which a name comes back: what a state is good for."""
    rng = random.Random(seed)
    for number in range(lines):
        if number % 9 == 8:
            yield ""
            continue
        name = rng.choice(("ann", "bob", "eve", "joe"))
        verbs = [rng.choice(("runs", "sits", "sings")) for _ in range(rng.randint(1, 4))]
        yield f"{name} {' and '.join(verbs)} , says {name} ."


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with config.yaml, and running text: train.txt (120 lines), val.txt, test.txt (30)."""
    root = tmp_path_factory.mktemp("story")
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for seed, (name, lines) in enumerate((("train", 120), ("val", 30), ("test", 30))):
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in story(lines, seed)), encoding="utf-8")
    return root


def arguments(data, output_dir, **flags):
    files = {"train_file": data / "train.txt", "validation_file": data / "val.txt", "test_file": data / "test.txt"}
    return recipe_runs.arguments(data / "config.yaml", **(files | {"output_dir": output_dir} | flags))


def start(data, output_dir, **flags):
    recipe_runs.start(RECIPE, arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    return start(data, tmp_path_factory.mktemp("runs") / "trained", num_train_epochs=6)


def read(path):
    # The line after the last line end is none.
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def log(directory):
    path = Path(last_complete_checkpoint(directory)) / "trainer_state.json"
    return json.loads(path.read_text(encoding="utf-8"))["log_history"]


# Training and evaluation against loops by hand


@pytest.mark.parametrize("carry", [True, False])
def test_training_is_truncated_backpropagation_through_time(carry, data, tmp_path):
    flags = {"lr_scheduler_type": "constant", "weight_decay": 0.1, "load_best_model_at_end": False, "seed": 3}
    output = start(data, tmp_path / "run", carry_state=carry, **flags)
    tokenizer = AutoTokenizer.from_pretrained(output)
    ids = encode_text(read(data / "train.txt"), tokenizer).ids
    set_seed(3)
    model = AutoModelForCausalLM.from_config(LstmConfig(vocab_size=len(tokenizer), **SIZES)).train()
    decayed = [parameter for name, parameter in model.named_parameters() if "bias" not in name]
    others = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    windows = TokenWindows(ids, 7, 4, seed=3)
    for epoch in range(2):
        windows.set_epoch(epoch)
        state = None
        for window in windows:
            outputs = model(window["input_ids"], cache=state, use_cache=True)
            if carry:
                state = outputs.cache
                for cached in state.layers:
                    cached.states = tuple(tensor.detach() for tensor in cached.states)
            cross_entropy(outputs.logits.flatten(0, 1), window["labels"].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * window["labels"].shape[1] / 7
            optimizer.step()
            optimizer.zero_grad()
    found, expected = weights(output), model.state_dict()
    assert_close(found, {name: expected[name] for name in found}, tolerance=1e-5)


def test_perplexities_are_those_of_one_long_call(trained, data):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained).eval(), AutoTokenizer.from_pretrained(trained)
    text = encode_text(read(data / "test.txt"), tokenizer)
    ids = torch.from_numpy(text.ids.astype(np.int64))[None]
    total = cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum").item()
    found = results(trained)
    words = sum(len(line.split()) + 1 for line in read(data / "test.txt"))
    assert text.words == words
    assert found["test_loss"] == pytest.approx(total / (len(text.ids) - 1), rel=1e-5)
    assert found["test_perplexity"] == pytest.approx(math.exp(total / (len(text.ids) - 1)), rel=1e-4)
    assert found["test_word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)

    counts = np.bincount(encode_text(read(data / "train.txt"), tokenizer).ids, minlength=len(tokenizer)) + 1
    by_hand = -sum(math.log(counts[id] / counts.sum()) for id in text.ids[1:])
    assert found["test_unigram_loss"] == pytest.approx(by_hand / (len(text.ids) - 1))
    assert unigram_loss(np.array([0, 0, 1]), np.array([2, 0, 2]), 3) == pytest.approx(-math.log(3 / 6 * 1 / 6))
    assert found["test_perplexity"] < 0.7 * found["test_unigram_perplexity"]

    # Of each column on its own, when several are read at once; and of each window, when nothing is carried.
    windows = TokenWindows(text.ids, 10, 3)
    expected = 0.0
    for inputs, labels in zip(
        torch.cat([window["input_ids"] for window in windows], dim=1),
        torch.cat([window["labels"] for window in windows], dim=1),
        strict=True,
    ):
        expected += cross_entropy(model(inputs[None]).logits[0], labels, reduction="sum").item()
    assert text_loss(model, windows, carry=True) == pytest.approx((expected, len(text.ids) - 1), rel=1e-5)
    expected = sum(
        cross_entropy(model(window["input_ids"]).logits.flatten(0, 1), window["labels"].flatten(), reduction="sum")
        for window in windows
    )
    alone, _ = text_loss(model, windows, carry=False)
    assert alone == pytest.approx(expected.item(), rel=1e-5)
    assert alone > text_loss(model, windows, carry=True)[0]
    validation = encode_text(read(data / "val.txt"), tokenizer)
    total, count = text_loss(model, TokenWindows(validation.ids, 7, 2), carry=True)
    best = min(entry["eval_loss"] for entry in log(trained) if "eval_loss" in entry)
    assert best == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("steps", [None, 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(steps, data, tmp_path, monkeypatch):
    """After an epoch, and inside one, with the state that it carried."""
    flags = {"config_overrides": '{"hidden_size": 12, "embedding_size": 12, "dropout": 0.3}'}
    if steps:
        flags |= {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": steps, "eval_steps": steps}
        flags |= {"gradient_accumulation_steps": 2, "save_total_limit": 9}
    whole = start(data, tmp_path / "whole", **flags)
    # The fourth checkpoint of steps is in the second epoch.
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, "language_modeling", 4 if steps else 1)
        start(data, tmp_path / "parts", **flags)
    kept = list(Path(last_complete_checkpoint(tmp_path / "parts")).glob("carried_0.safetensors"))
    assert len(kept) == (1 if steps else 0)
    parts = start(data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
    assert_equal(weights(whole), weights(parts))
    assert results(whole)["test_loss"] == results(parts)["test_loss"]


def test_a_checkpoint_without_its_state_is_refused(data, tmp_path, monkeypatch):
    flags = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 3, "eval_steps": 3}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, "language_modeling", 1)
        start(data, tmp_path / "run", carry_state=False, **flags)
    with pytest.raises(InputError, match="has no carried state"):
        start(data, tmp_path / "run", resume_from_checkpoint="last", **flags)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_the_same_model_as_one(accumulation, data, tmp_path):
    flags = {"gradient_accumulation_steps": accumulation}
    done = run_two("language_modeling", arguments(data, tmp_path / "two", per_device_train_batch_size=2, **flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es)") == 1
    one = start(data, tmp_path / "one", **flags)
    assert_close(weights(one), weights(tmp_path / "two"))
    assert results(one)["test_loss"] == pytest.approx(results(tmp_path / "two")["test_loss"], abs=1e-5)
    losses = [
        [entry["eval_loss"] for entry in log(directory) if "eval_loss" in entry]
        for directory in (one, tmp_path / "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# What a run does and leaves


@pytest.mark.contract
def test_files_of_a_run_and_what_is_printed(data, tmp_path, capsys):
    overrides = '{"hidden_size": 12, "embedding_size": 12, "adaptive_softmax_cutoffs": [8, 12]}'
    output = start(data, tmp_path / "run", config_overrides=overrides, early_stopping_patience=2)
    assert (output / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "1 process(es)" in printed and "state carried over between batches" in printed
    assert "unigram" in printed and "word_perplexity" in printed
    entries = [entry for entry in log(output) if "eval_loss" in entry]
    assert entries and all(
        entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_loss"])) for entry in entries
    )
    scored = tmp_path / "scored"
    recipe_runs.start(
        RECIPE,
        ["--do_predict", "--model_name_or_path", output, "--test_file", data / "test.txt", "--use_cpu"]
        + ["--output_dir", scored],
    )
    assert results(scored)["test_loss"] == pytest.approx(results(output)["test_loss"])


def test_it_goes_on_with_a_text(trained, capsys):
    argv = ["--do_predict", "--model_name_or_path", trained, "--use_cpu", "--max_new_tokens", "8", "--next_words", "3"]
    recipe_runs.start(RECIPE, [*argv, "--prompt", "ann runs , says"])
    lines = capsys.readouterr().out.splitlines()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    likely = next_words(model, tokenizer, "ann runs , says", 3)
    assert [line.split() for line in lines[:3]] == [[f"{share:.2%}", word.strip()] for word, share in likely]
    assert likely[0][0].strip() in ("ann", "bob", "eve", "joe")
    everything = next_words(model, tokenizer, "", 10_000)
    assert sum(share for _, share in everything) == pytest.approx(1, abs=1e-5)
    assert [share for _, share in everything] == sorted((share for _, share in everything), reverse=True)
    assert lines[3].startswith("ann runs , says ")
    generate = pipeline("text-generation", model=str(trained), device="cpu")
    assert generate("ann runs", max_new_tokens=4)[0]["generated_text"].startswith("ann runs")


def test_a_transformer_reads_each_window_on_its_own(data, trained, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(trained)
    # Fewer positions than the final test of a state reads at once.
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    output = start(data, tmp_path / "run", model_name_or_path=tmp_path / "gpt", config_overrides="{}")
    assert "state reset between batches" in capsys.readouterr().out
    assert 1 < results(output)["test_perplexity"] < 30
    with pytest.raises(InputError, match="--block_size 65: the model reads at most 64 tokens at once"):
        start(data, tmp_path / "more", model_name_or_path=tmp_path / "gpt", config_overrides="{}", block_size=65)


def test_a_window_of_a_model_without_positions_has_any_length(data, tmp_path):
    start(data, tmp_path / "run", carry_state=False, block_size=1001, per_device_train_batch_size=1, max_steps=1)


@pytest.mark.parametrize("carry", [True, False])
def test_a_carried_state_stays_on_one_gpu(carry, tmp_path):
    """The Trainer would put the model on all that a process sees, and split the batches, but not the state."""
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    assert args.n_gpu <= 1
    args._n_gpu = 2
    model = AutoModelForCausalLM.from_config(LstmConfig(vocab_size=9, hidden_size=4))
    trainer = LanguageModelingTrainer(model=model, args=args, carry=carry, words=1)
    assert trainer.args.n_gpu == (1 if carry else 2)


def test_a_stream_gives_the_same_model(data, tmp_path):
    flags = {"max_steps": 9, "load_best_model_at_end": False, "eval_strategy": "no", "save_strategy": "no"}
    one, other = (start(data, tmp_path / str(kind), streaming=kind, **flags) for kind in (False, True))
    assert_equal(weights(one), weights(other))
    assert results(one)["test_loss"] == results(other)["test_loss"]


def test_do_eval_without_evaluations_during_training(data, tmp_path):
    """Scores the trained model once, as the examples of transformers do."""
    flags = {"max_steps": 2, "load_best_model_at_end": False, "eval_strategy": "no", "test_file": None}
    run = start(data, tmp_path / "run", do_train=True, do_eval=True, **flags)
    assert results(run)["eval_loss"] > 0
    assert "eval_loss" not in results(start(data, tmp_path / "other", **flags))


def test_without_validation_the_last_lines_are_held_out(data, tmp_path, caplog):
    start(data, tmp_path / "run", validation_file=None, test_file=None, max_steps=1)
    assert "6 of 120 training rows are held out" in caplog.text


def test_a_search(data, tmp_path):
    space = {"learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}, "config_overrides.hidden_size": [8, 12]}
    start(data, tmp_path / "search", hp_search=2, hp_space=json.dumps(space), test_file=None)
    assert (tmp_path / "search" / "best_trial.yaml").is_file()
    recipe_runs.start(RECIPE, [tmp_path / "search" / "best_trial.yaml"])
    rows = (tmp_path / "search" / "trials.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"block_size": 0}, "--block_size 0: give 1 or more"),
        ({"cache_size": 0}, "--cache_size 0: give 1 or more"),
        ({"cache_size": 9, "test_file": None}, "--cache_size requires a validation text"),
        ({"max_tokens": 100}, "unknown flag --max_tokens"),
        ({"output_file": "out.txt"}, "unknown flag --output_file"),
        ({"per_device_train_batch_size": 100_000}, "too short for a batch size of 100000"),
        ({"prompt": "a"}, "--prompt goes with --do_predict"),
        ({"model_type": "t5", "config_overrides": "{}"}, "has no language model"),
        ({"streaming": True, "validation_file": None}, "--streaming holds out no rows"),
        (
            {"label_smoothing_factor": 0.1, "config_overrides": '{"adaptive_softmax_cutoffs": [8]}'},
            "not supported for an adaptive softmax",
        ),
        (
            {"label_smoothing_factor": 0.1, "config_overrides": '{"num_negatives": 8}'},
            "not supported for a loss over sampled negatives",
        ),
        ({"metric_for_best_model": "bleu"}, "unknown --metric_for_best_model"),
        ({"hp_search": 1, "hp_space": '{"learning_rat": [1]}'}, "learning_rat cannot be searched; did you mean"),
    ],
)
def test_bad_input(flags, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        start(data, tmp_path / "run", **flags)
    written = (path for path in tmp_path.rglob("*") if path.is_file())
    assert not list(written) or "too short" in message  # the text is read as tokens then
