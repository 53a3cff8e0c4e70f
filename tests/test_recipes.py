"""What the recipes of all tasks can do beside training: files, ensembles, search, streams, means of checkpoints."""

import csv
import json
import random
from functools import cache
from pathlib import Path

import pytest
import recipe_runs
import torch
import yaml
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, modeling_utils

from hfseq.data.streaming import BatchStream
from hfseq.errors import InputError
from hfseq.tasks import classification
from hfseq.tasks.classification import Classification
from hfseq.training.averaging import last_checkpoints
from hfseq.training.checkpoints import last_complete_checkpoint

GENERATING = ("translation", "summarization")
TASKS = (*GENERATING, "sentiment")
DRIVERS = tuple(f"{task}{suffix}" for task in TASKS for suffix in ("", "_accelerate"))
RECIPES = {driver: load(driver) for driver in DRIVERS}
METRICS = {"translation": "bleu", "summarization": "rouge1", "sentiment": "accuracy"}
COLUMNS = {"translation": ("de", "en"), "summarization": ("document", "summary"), "sentiment": ("text", "label")}
CONFIG = {
    "config_overrides": {"hidden_size": 16, "embedding_size": 8, "dropout": 0.0},
    "tokenizer_model": "word",
    "num_train_epochs": 2,
    "learning_rate": 0.02,
    "logging_steps": 2,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "disable_tqdm": True,
}
LEARNING = {
    "config_overrides": '{"hidden_size": 64, "embedding_size": 32, "dropout": 0.0}',
    "learning_rate": 0.01,
    "per_device_train_batch_size": 4,
}
OWN = {
    "translation": {"source_lang": "de", "target_lang": "en", "max_target_length": 10, "num_beams": 2},
    "summarization": {"max_target_length": 6, "num_beams": 2},
    "sentiment": {},
}
WORDS = ("apfel", "birne", "eimer", "feder", "insel", "jacke", "ofen", "pinsel")
TEXTS = ("apfel birne", "", "ofen pinsel insel", "  ", "feder", "jacke eimer apfel apfel")


def task_of(driver):
    return driver.removesuffix("_accelerate")


def rows(task, count, seed, words=None):
    """Rows of `words` words, by default from 1 to 5."""
    rng = random.Random(seed)
    source, target = COLUMNS[task]
    for row in range(count):
        chosen = rng.choices(WORDS, k=words or row % 5 + 1)
        kind = "vowel" if chosen[0][0] in "aeio" else "consonant"
        answer = {
            "translation": " ".join(word.upper() for word in chosen),
            "summarization": [f"{kind} first", f"a {kind}"][: 1 if words else row % 2 + 1],
            "sentiment": kind,
        }
        yield {source: " ".join(chosen), target: answer[task]}


def write_rows(path, some):
    path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return path


def checkpoint_weights(directory):
    path = Path(directory) / "pytorch_model.bin"
    return torch.load(path) if path.exists() else weights(directory)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder for each task with config.yaml, and the rows of train (40), val (9), test (6)."""
    root = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        (root / task).mkdir()
        (root / task / "config.yaml").write_text(yaml.safe_dump(CONFIG | OWN[task]), encoding="utf-8")
        for seed, (name, count) in enumerate((("train", 40), ("val", 9), ("test", 6))):
            write_rows(root / task / f"{name}.jsonl", rows(task, count, seed))
    return root


def arguments(driver, data, output_dir, **flags):
    folder = data / task_of(driver)
    files = {f"{name}_file": folder / f"{stem}.jsonl" for name, stem in (("train", "train"), ("validation", "val"))}
    files["test_file"] = folder / "test.jsonl"
    return recipe_runs.arguments(folder / "config.yaml", **(files | {"output_dir": output_dir} | flags))


def start(driver, data, output_dir, **flags):
    recipe_runs.start(RECIPES[driver], arguments(driver, data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Makes models of a task that have learned something, by seed."""
    root = tmp_path_factory.mktemp("trained")
    files = {task: write_rows(root / f"{task}.jsonl", rows(task, 600, 7)) for task in TASKS}

    @cache
    def train(task, seed=1, **flags):
        # Others than the first one are members of ensembles, which need not have learned as much.
        epochs = (2 if task == "summarization" else 1) if seed == 1 else 0.2
        options = LEARNING | {"num_train_epochs": epochs, "seed": seed, "train_file": files[task]}
        return start(task, data, root / f"{task}-{seed}-{len(list(root.iterdir()))}", **options, **flags)

    return train


def predict(task, models, *, test_file, output_file=None, **flags):
    """Runs with `--do_predict`; returns the lines of the output file."""
    first, *others = models
    given = {"test_file": test_file, "output_file": output_file, "output_dir": Path(test_file).parent / "nothing"}
    given |= OWN[task] | flags
    argv = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    argv += ["--model_name_or_path", str(first), "--do_predict", "--use_cpu", "--disable_tqdm", "true"]
    argv += ["--ensemble", *map(str, others)] if others else []
    recipe_runs.start(RECIPES[task], argv)
    assert (output_file is None) == given["output_dir"].exists()
    written = Path(output_file or given["output_dir"] / "predictions.txt")
    return written.read_text(encoding="utf-8").splitlines()


def table(lines):
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


# Files


@pytest.mark.parametrize("task", TASKS)
def test_each_line_of_a_file_has_its_place(task, trained, tmp_path, capsys):
    test = [row[COLUMNS[task][0]] for row in rows(task, 6, 2)]
    lines = [test[3], "", *test, "   ", test[0]]
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    flags = {"output_file": tmp_path / "out.txt", "per_device_eval_batch_size": 2}
    found = predict(task, [trained(task)], test_file=tmp_path / "texts.txt", **flags)
    # What the run's own final test gave.
    expected = (trained(task) / "predictions.txt").read_text(encoding="utf-8").splitlines()
    assert found == [expected[3], "", *expected, "", expected[0]]
    assert len(set(expected)) > 1
    assert "out.txt: 10 texts, " in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--output_file .*out.txt exists; .*--overwrite_output_file"):
        predict(task, [trained(task)], test_file=tmp_path / "texts.txt", **flags)
    again = predict(task, [trained(task)], test_file=tmp_path / "texts.txt", overwrite_output_file=True, **flags)
    assert again == found


@pytest.mark.parametrize("task", GENERATING)
def test_several_texts_of_each_with_their_scores(task, trained, tmp_path):
    model = trained(task)
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in TEXTS), encoding="utf-8")
    flags = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0}
    lines = predict(task, [model], test_file=tmp_path / "texts.txt", output_file=tmp_path / "out.tsv", **flags)
    found = table(lines)
    assert [(row["row"], row["rank"]) for row in found] == [
        *(("1", "1"), ("1", "2"), ("2", "1"), ("3", "1"), ("3", "2"), ("4", "1")),
        *(("5", "1"), ("5", "2"), ("6", "1"), ("6", "2")),
    ]
    for best, second in zip(found, found[1:], strict=False):
        assert second["rank"] == "1" or float(best["score"]) >= float(second["score"])
    # Of length penalty 0, a score is the log-probability that --score_targets gives.
    source, target = COLUMNS[task]
    pairs = [{source: TEXTS[int(row["row"]) - 1], target: row["text"]} for row in found if row["text"]]
    assert len(pairs) >= 6
    write_rows(tmp_path / "pairs.jsonl", pairs)
    files = {"test_file": tmp_path / "pairs.jsonl", "output_file": tmp_path / "scores.txt"}
    scores = predict(task, [model], score_targets=True, **files)
    expected = [float(row["score"]) for row in found if row["text"]]
    assert [float(line) for line in scores] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("task", GENERATING)
def test_scores_of_given_targets(task, members, data, trained, tmp_path, capsys):
    models = [trained(task, seed) for seed in range(1, members + 1)]
    source, target = COLUMNS[task]
    pairs = [(row[source], row[target] if task == "translation" else row[target][0]) for row in rows(task, 6, 2)]
    write_rows(tmp_path / "pairs.jsonl", [dict(zip((source, target), pair, strict=True)) for pair in pairs])
    files = {"test_file": tmp_path / "pairs.jsonl", "output_file": tmp_path / "out.jsonl"}
    lines = predict(task, models, score_targets=True, per_device_eval_batch_size=2, **files)
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    networks = [AutoModelForSeq2SeqLM.from_pretrained(model).eval() for model in models]
    total, count = 0.0, 0
    for number, ((text, answer), line) in enumerate(zip(pairs, map(json.loads, lines), strict=True), 1):
        labels = tokenizer(text_target=answer, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = [model(**tokenizer(text, return_tensors="pt"), labels=labels).logits for model in networks]
        mean = torch.stack([one.softmax(-1) for one in logits]).mean(0)
        expected = mean.log().gather(2, labels.unsqueeze(-1)).sum().item()
        assert line == {"row": number, "log_probability": pytest.approx(expected, abs=1e-4), "tokens": labels.numel()}
        total, count = total - expected, count + labels.numel()
    perplexity = torch.tensor(total / count).exp().item()
    assert f"perplexity per token {perplexity:.4g}" in capsys.readouterr().out


def test_drawn_texts(trained, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in TEXTS), encoding="utf-8")

    def draw(name, **flags):
        files = {"test_file": tmp_path / "texts.txt", "output_file": tmp_path / name}
        return predict("translation", [trained("translation")], **files, **flags)

    drawn = {"do_sample": True, "temperature": 3.0}
    one = draw("a.txt", seed=1, **drawn)
    assert one == draw("b.txt", seed=1, **drawn) != draw("c.txt", seed=2, **drawn)
    assert draw("d.txt", do_sample=True, top_k=1) == draw("e.txt", num_beams=1)


def test_unknown_words_become_those_of_the_source(trained, tmp_path):
    # So small a vocabulary that most words of the targets are unknown.
    model = trained("translation", vocab_size=12)
    known = AutoTokenizer.from_pretrained(model).get_vocab()
    unknown = {word for word in WORDS if not any(word in entry for entry in known)}
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in TEXTS), encoding="utf-8")
    files = {"test_file": tmp_path / "texts.txt"}
    plain = predict("translation", [model], output_file=tmp_path / "a.txt", **files)
    filled = predict("translation", [model], output_file=tmp_path / "b.txt", replace_unknown=True, **files)
    assert not unknown & {word for line in plain for word in line.split()}
    found = [unknown & set(line.split()) for line in filled]
    assert sum(map(bool, found)) >= 2
    assert all(words <= set(text.split()) for words, text in zip(found, TEXTS, strict=True))


def test_probabilities_of_classes_one_model_or_two(trained, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in TEXTS), encoding="utf-8")
    one, other = trained("sentiment", 1), trained("sentiment", 2)
    found = []
    for models in ([one], [other], [one, other]):
        files = {"test_file": tmp_path / "texts.txt", "output_file": tmp_path / f"{len(found)}.tsv"}
        found.append(table(predict("sentiment", models, **files)))
        assert "2 classes; 2 empty" in capsys.readouterr().out
    for row, (first, second, both) in enumerate(zip(*found, strict=True)):
        assert both["row"] == str(row + 1)
        if not TEXTS[row].strip():
            assert set(both.values()) == {str(row + 1), ""}
            continue
        for name in ("consonant", "vowel"):
            assert float(both[name]) == pytest.approx((float(first[name]) + float(second[name])) / 2, abs=1e-5)
        assert both["label"] == max(("consonant", "vowel"), key=lambda name: float(both[name]))


BAD_FILES = {
    "no test file": ({"test_file": None}, [], "--output_file requires --test_file"),
    "training": ({}, ["--do_train"], "--output_file requires --do_predict without --do_train"),
    "no prediction": ({}, ["--do_predict", "false"], "--output_file requires --do_predict without --do_train"),
    "missing": ({"test_file": "nowhere.csv"}, [], "nowhere.csv: no such file"),
    "model": ({"model_name_or_path": None}, [], "requires a trained model: give --model_name_or_path"),
}
BAD_DECODING = {
    "room": ({"num_return_sequences": 2}, [], r"one text per line; .*\.tsv or \.jsonl"),
    "temperature": ({"temperature": 2.0}, [], "--temperature is for sampling; add --do_sample"),
    "drawing": ({"output_file": None, "do_sample": True}, [], "--do_sample goes with --output_file"),
    "scoring": ({"output_file": None, "score_targets": True}, [], "--score_targets goes with --output_file"),
    "scoring and n": (
        {"score_targets": True, "replace_unknown": True},
        [],
        "--score_targets generates nothing; leave --replace_unknown out",
    ),
}


@pytest.mark.parametrize(
    ("task", "case"),
    [*((task, case) for task in TASKS for case in BAD_FILES), *(("summarization", case) for case in BAD_DECODING)],
)
def test_predictions_that_cannot_be(task, case, data, trained, tmp_path):
    flags, more, message = (BAD_FILES | BAD_DECODING)[case]
    flags = {"train_file": None, "validation_file": None, "model_name_or_path": trained(task)} | flags
    flags = {"output_file": tmp_path / "out.txt", "config_overrides": "{}"} | flags
    argv = [*arguments(task, data, tmp_path / "out", **flags), "--do_predict", *more]
    with pytest.raises(InputError, match=message):
        recipe_runs.start(RECIPES[task], argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_an_ensemble_is_scored_as_it_predicts(task, data, trained, tmp_path):
    models = [trained(task, 1), trained(task, 2)]
    test = data / task / "test.jsonl"
    lines = predict(task, models, test_file=test, output_file=tmp_path / "out.txt")
    assert predict(task, models, test_file=test, output_dir=tmp_path / "scored") == lines
    found = results(tmp_path / "scored")
    assert 0 <= found[f"test_{METRICS[task]}"] <= 100
    assert not (tmp_path / "scored" / "model.safetensors").exists()


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_ensemble_is_not_trained(driver, data, tmp_path):
    accelerate = driver.endswith("_accelerate")
    message = f"--ensemble is not supported .*{task_of(driver)}.py" if accelerate else "--ensemble is for prediction"
    with pytest.raises(InputError, match=message):
        start(driver, data, tmp_path / "out", model_name_or_path="a", ensemble="b", config_overrides="{}")
    with pytest.raises(InputError, match="--ensemble names further members; --model_name_or_path names the first"):
        start(driver, data, tmp_path / "out", ensemble="b")
    assert not list(tmp_path.iterdir())


# Search


@pytest.mark.parametrize("task", TASKS)
def test_a_search_and_its_best_trial(task, data, tmp_path, capsys):
    space = {"learning_rate": {"low": 1e-3, "high": 3e-2, "log": True}, "config_overrides.hidden_size": [8, 16]}
    if task in GENERATING:
        space["label_smoothing_factor"] = [0.9]
    flags = {"metric_for_best_model": {"translation": "chrf"}.get(task, METRICS[task])}
    out = start(task, data, tmp_path / "out", hp_search=2, hp_space=json.dumps(space), **flags)
    assert capsys.readouterr().out.count("trial ") >= 2
    assert not (out / "model.safetensors").exists() and not list(out.glob("checkpoint-*"))
    with open(out / "trials.csv", encoding="utf-8") as lines:
        trials = list(csv.DictReader(lines))
    assert len(trials) == 2
    best = max(float(trial["value"]) for trial in trials if trial["state"] == "complete")
    assert best > 0
    recipe_runs.start(RECIPES[task], [out / "best_trial.yaml"])
    state = json.loads(
        (Path(last_complete_checkpoint(out / "best_trial")) / "trainer_state.json").read_text(encoding="utf-8")
    )
    assert state["best_metric"] == best


@pytest.mark.parametrize("task", TASKS)
def test_a_search_is_the_trainers(task, data, tmp_path):
    with pytest.raises(InputError, match=f"--hp_search is not supported by the Accelerate loop; use {task}.py"):
        start(f"{task}_accelerate", data, tmp_path / "out", hp_search=3)
    for flags, message in (
        ({"hp_search": 3}, "hp_space is empty"),
        ({"hp_search": 0}, "--hp_search 0: give the number of trials"),
        ({"hp_search": 3, "do_predict": True}, "--hp_search requires training; omit --do_predict"),
    ):
        with pytest.raises(InputError, match=message):
            start(task, data, tmp_path / "out", **flags)
    # One YAML file serves both.
    start(f"{task}_accelerate", data, tmp_path / "out", hp_space='{"learning_rate": [0.1]}', max_steps=1)


def test_what_rows_are_encoded_for_is_not_searched(data, tmp_path):
    space = '{"config_overrides.pointer_generator": [true, false]}'
    with pytest.raises(InputError, match="pointer_generator cannot be searched: the rows are encoded for it"):
        start("summarization", data, tmp_path / "out", hp_search=2, hp_space=space)


# Streams


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_killed_run_on_a_stream_goes_on(driver, data, tmp_path, monkeypatch, capsys):
    # 40 rows, and half as many again where a row has several summaries, in windows of 16.
    monkeypatch.setitem(BatchStream.__init__.__kwdefaults__, "window", 16)
    overrides = json.dumps(CONFIG["config_overrides"] | {"dropout": 0.3})
    flags = {"streaming": True, "max_steps": 9, "eval_steps": 3, "config_overrides": overrides}
    flags |= {"metric_for_best_model": "loss", "gradient_accumulation_steps": 2}
    whole = start(driver, data, tmp_path / "whole", **flags)
    printed = capsys.readouterr().out
    assert "1 process(es), streamed batches" in printed
    assert printed.count(f"{METRICS[task_of(driver)]} by source length") == 3
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, driver, 1)
        start(driver, data, tmp_path / "parts", **flags)
    [checkpoint] = (tmp_path / "parts").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-3"
    before = checkpoint_weights(checkpoint)
    parts = start(driver, data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
    assert_equal(weights(whole), weights(parts))
    assert (whole / "predictions.txt").read_bytes() == (parts / "predictions.txt").read_bytes()
    assert not all(torch.equal(before[name], tensor) for name, tensor in weights(parts).items())


@pytest.mark.parametrize("driver", ["summarization", "summarization_accelerate", "sentiment"])
def test_two_processes_share_a_stream(driver, data, tmp_path):
    # A step is an epoch, so that the order does not matter.
    train_file = write_rows(tmp_path / "rows.jsonl", rows(task_of(driver), 32, 0, words=5))
    flags = {"streaming": True, "max_steps": 4, "eval_steps": 2, "train_file": train_file}
    flags["metric_for_best_model"] = "loss"
    done = run_two(driver, arguments(driver, data, tmp_path / "two", per_device_train_batch_size=16, **flags))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es), streamed batches") == 1
    assert done.stdout.count("by source length") == 2
    one = start(driver, data, tmp_path / "one", per_device_train_batch_size=32, **flags)
    assert_close(weights(one), weights(tmp_path / "two"))
    assert (one / "predictions.txt").read_bytes() == (tmp_path / "two" / "predictions.txt").read_bytes()


@pytest.mark.parametrize("driver", DRIVERS)
def test_streams_that_cannot_be(driver, data, tmp_path):
    stream = {"streaming": True, "max_steps": 2}
    for flags, message in (
        ({"max_steps": None}, "--streaming does not know the number of rows; set --max_steps"),
        ({"train_file": None}, "--streaming without training data; give --train_file"),
        ({"validation_file": None}, "--streaming holds out no rows for validation; give --validation_file"),
        ({"eval_steps": -1}, "--eval_steps -1.* is negative"),
    ):
        with pytest.raises(InputError, match=message) as error:
            start(driver, data, tmp_path / "out", **(stream | flags))
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    plain = start(driver, data, tmp_path / "plain", max_steps=2)
    with pytest.raises(InputError, match="is not from a run with --streaming and as many processes"):
        start(driver, data, plain, resume_from_checkpoint="last", **(stream | {"max_steps": 4}))


@pytest.mark.parametrize("driver", DRIVERS)
def test_steps_between_evaluations_of_a_stream(driver, data, tmp_path, capsys):
    flags = {"streaming": True, "max_steps": 4, "eval_strategy": "steps", "save_strategy": "steps", "test_file": None}
    start(driver, data, tmp_path / "said", eval_steps=2, save_steps=2, save_total_limit=5, **flags)
    assert {path.name for path in (tmp_path / "said").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    capsys.readouterr()
    start(driver, data, tmp_path / "share", streaming=True, max_steps=4, eval_steps=0.5)
    assert capsys.readouterr().out.count("by source length") == 2
    if driver.endswith("_accelerate"):
        with pytest.raises(InputError, match="--save_steps is not supported .*, which fixes it to 2"):
            start(driver, data, tmp_path / "odd", eval_steps=2, save_steps=4, **flags)
        with pytest.raises(InputError, match="--eval_steps is not supported by the Accelerate loop"):
            start(driver, data, tmp_path / "odd", eval_steps=2, max_steps=4)
        assert not (tmp_path / "odd").exists()


@pytest.mark.parametrize("several", [False, True], ids=["one class", "several"])
@pytest.mark.parametrize("driver", ["sentiment", "sentiment_accelerate"])
def test_classes_of_a_stream_are_those_of_all_rows(driver, several, data, tmp_path, monkeypatch):
    seen = []
    original, baseline = classification.class_weights, Classification.baseline

    def note(*args, **kwargs):
        seen.append(baseline(*args, **kwargs)["majority"])
        return {"majority": seen[-1]}

    monkeypatch.setattr(classification, "class_weights", lambda *args: seen.append(original(*args)) or seen[-1])
    monkeypatch.setattr(Classification, "baseline", note)
    files = {}
    if several:
        some = [
            row | {"label": [row["label"], "short"] if len(row["text"]) < 12 else [row["label"]]}
            for row in rows("sentiment", 40, 0)
        ]
        files = dict.fromkeys(
            ("train_file", "validation_file", "test_file"), write_rows(tmp_path / "rows.jsonl", some)
        )
    found = []
    for streaming in (False, True):
        seen.clear()
        flags = {"streaming": streaming, "max_steps": 2, "class_weights": "balanced"} | files
        out = start(driver, data, tmp_path / f"out-{streaming}", **flags)
        scores = {name: value for name, value in results(out).items() if "majority" in name}
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        found.append((scores, config["id2label"], config["problem_type"], [one.tolist() for one in seen]))
    # Weights and baseline were seen, and are not nothing.
    assert len(found[0][0]) >= 2 and len(found[0][3]) == 2 and all(found[0][3])
    assert (found[0][2] == "multi_label_classification") is several
    assert found[0] == found[1]


# What else a run does


@pytest.fixture(scope="session")
def plain(data, tmp_path_factory):
    """Makes the weights of a driver after four steps with nothing special."""

    @cache
    def train(driver):
        out = tmp_path_factory.mktemp("plain") / driver
        return weights(start(driver, data, out, max_steps=4, metric_for_best_model="loss"))

    return train


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_mean_of_the_last_checkpoints(driver, data, tmp_path, capsys):
    with pytest.raises(InputError, match="--average_checkpoints 2 needs as many .* raise --save_total_limit from 1"):
        start(driver, data, tmp_path / "out", average_checkpoints=2)
    assert not (tmp_path / "out").exists()
    flags = {"num_train_epochs": 3, "average_checkpoints": 2, "save_total_limit": 2, "metric_for_best_model": "loss"}
    out = start(driver, data, tmp_path / "out", **flags)
    assert "average of the last 2 checkpoints: " in capsys.readouterr().out
    sides = list(map(checkpoint_weights, last_checkpoints(out, 2)))
    assert not all(torch.equal(tensor, sides[1][name]) for name, tensor in sides[0].items())
    assert_close(weights(out), {name: (sides[0][name] + sides[1][name]) / 2 for name in weights(out)}, 1e-7)
    # The scores are those of the mean.
    predicted = predict(
        task_of(driver), [out], test_file=data / task_of(driver) / "test.jsonl", output_dir=tmp_path / "p"
    )
    assert (out / "predictions.txt").read_text(encoding="utf-8").splitlines() == predicted


@pytest.mark.parametrize("driver", DRIVERS)
def test_scores_by_length_at_each_evaluation(driver, data, tmp_path, capsys):
    # All of one length, so in one group, with the score of the evaluation. Trained the same, on the same rows, another
    # run evaluates what is the sample of the first.
    task, metric = task_of(driver), METRICS[task_of(driver)]
    folder = write_rows(tmp_path / "train.jsonl", [*rows(task, 4, 6, words=5)] * 10).parent
    write_rows(folder / "other.jsonl", [*rows(task, 4, 7, words=5)] * 10)
    scores, tables = [], []
    for name in ("other", "train"):
        files = {"train_file": folder / "train.jsonl", "validation_file": folder / f"{name}.jsonl"}
        out = start(driver, data, folder / f"out-{name}", num_train_epochs=3, save_total_limit=5, **LEARNING, **files)
        last = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        [state] = [*last.glob("loop_state.json"), *last.glob("trainer_state.json")]
        state = json.loads(state.read_text(encoding="utf-8"))
        log = state["log" if driver.endswith("_accelerate") else "log_history"]
        scores.append([f"{entry[f'eval_{metric}']:.4g}" for entry in log if f"eval_{metric}" in entry])
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [metric, "by", "source", "length", "rows", "train", "validation"] in lines
        tables.append([line[2:] for line in lines if line[:2] == ["any", "length"]])
    other, same = scores
    assert len(other) == 3 and other != same
    assert tables[0] == [["40", "/", "40", *pair] for pair in zip(same, other, strict=True)]
    assert tables[1] == [["40", "/", "40", score, score] for score in same]


@pytest.mark.parametrize("driver", DRIVERS)
def test_accumulated_and_checkpointed_gradients(driver, data, plain, tmp_path, monkeypatch):
    flags = {"max_steps": 4, "metric_for_best_model": "loss"}
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert_close(plain(driver), weights(start(driver, data, tmp_path / "parts", **flags, **parts)))
    calls = []
    original = modeling_utils.checkpoint
    monkeypatch.setattr(modeling_utils, "checkpoint", lambda *args, **kw: calls.append(1) or original(*args, **kw))
    # Its old name and its new one.
    name = "activation_checkpointing" if driver.startswith("sentiment") else "gradient_checkpointing"
    assert_close(plain(driver), weights(start(driver, data, tmp_path / name, **{name: True}, **flags)))
    assert len(calls) >= 4


@pytest.mark.contract
@pytest.mark.processor
@pytest.mark.parametrize("driver", DRIVERS)
def test_bf16_and_tensorboard(driver, data, plain, tmp_path):
    flags = {"max_steps": 4, "logging_steps": 1, "metric_for_best_model": "loss"}
    out = start(driver, data, tmp_path / "out", bf16=True, report_to="tensorboard", **flags)
    found = weights(out)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert_close(plain(driver), found, 0.05)
    assert not all(torch.equal(plain(driver)[name], tensor) for name, tensor in found.items())
    [events] = {path.parent for path in out.rglob("events.out.tfevents.*")}
    log = EventAccumulator(str(events)).Reload()
    named = {tag.replace("train/", "").replace("eval/", "eval_"): tag for tag in log.Tags()["scalars"]}
    assert [event.step for event in log.Scalars(named["loss"])] == [1, 2, 3, 4]
    assert log.Scalars(named[f"eval_{METRICS[task_of(driver)]}"])
