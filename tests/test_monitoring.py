"""Watching a model: tests of drift, the drop of a score, and the recipe."""

import json
import random
import shutil

import numpy as np
import pytest
import recipe_runs
import torch
from recipe_runs import WORDS, load, reviews, weights
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, pipeline

import hfseq
from hfseq.errors import InputError
from hfseq.serving.traffic import TrafficLog
from hfseq.training.drift import (
    CHI_SQUARE,
    KS,
    MANN_WHITNEY,
    Sample,
    bootstrap_drop,
    chrf_of_texts,
    drift_tests,
    holm,
    pairs_of,
    permuted_chi_square,
    unknown_shares,
    verdict,
)
from hfseq.training.monitoring_texts import MonitoredTexts

RECIPE = load("monitoring")


# Statistics


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_interval_of_a_drop_is_that_of_two_means():
    rng = np.random.default_rng(0)
    old, new = 100.0 * (rng.random(900) < 0.9), 100.0 * (rng.random(400) < 0.8)
    drop = bootstrap_drop("accuracy", old, new, count=4000)
    error = 1.96 * np.sqrt(old.var() / len(old) + new.var() / len(new))
    assert drop.points == pytest.approx(old.mean() - new.mean())
    assert drop.low == pytest.approx(drop.points - error, abs=0.3)
    assert drop.high == pytest.approx(drop.points + error, abs=0.3)
    assert drop == bootstrap_drop("accuracy", old, new, count=4000)


def test_the_interval_of_a_drop_is_that_of_resampled_rows():
    rng = np.random.default_rng(0)
    for old, new in (
        (rng.exponential(20, 60), rng.exponential(15, 40)),
        (rng.exponential(20, 60), np.array([7.0])),
        (np.array([9.0]), np.array([7.0])),
    ):
        drop = bootstrap_drop("chrf", old, new, count=20000, level=0.9)
        means = [rng.choice(side, (20000, len(side))).mean(axis=1) for side in (old, new)]
        assert [drop.low, drop.high] == pytest.approx(np.quantile(means[0] - means[1], [0.05, 0.95]), abs=0.3)
    assert (drop.low, drop.high) == (2.0, 2.0)


def sides(seed, longer=0.0, unknown=0.0, classes=0.0):
    """Lengths, unknown shares and classes of 300 reference and 200 fresh texts."""
    rng = np.random.default_rng(seed)
    lengths = [rng.poisson(12 + more, count) for more, count in ((0, 300), (longer, 200))]
    shares = [rng.binomial(20, 0.05 + more, count) / 20 for more, count in ((0, 300), (unknown, 200))]
    names = [
        ["no" if rng.random() < 0.5 + more else "yes" for _ in range(count)]
        for more, count in ((0, 300), (classes, 200))
    ]
    values = {"longer": (lengths, KS), "unknown": (shares, MANN_WHITNEY), "classes": (names, CHI_SQUARE)}
    return pairs_of(*({name: Sample(pair[side], test) for name, (pair, test) in values.items()} for side in (0, 1)))


def test_what_has_changed_is_found_and_nothing_else():
    for change in ("longer", "unknown", "classes"):
        size = {"longer": 3.0, "unknown": 0.08, "classes": 0.25}[change]
        found = [drift.what for drift in drift_tests(sides(1, **{change: size})) if drift.p_value < 0.01]
        assert found == [change]


def test_false_alarms_are_as_rare_as_is_said():
    alarms = sum(bool(verdict(None, drift_tests(sides(seed)), max_drop=1, alpha=0.05)) for seed in range(200))
    # 200 trials at 5 %: more than 20 has a probability of 0.1 %.
    assert alarms <= 20


def items(rng, count, size=200):
    """Items of which none is frequent."""
    return Sample([f"item {number}" for number in rng.integers(size, size=count)], CHI_SQUARE, binned=True)


def test_items_in_bins_raise_no_false_alarms_and_true_ones():
    rng = np.random.default_rng(0)
    pairs = (pairs_of({"x": items(rng, 150)}, {"x": items(rng, 100)}) for _ in range(60))
    # 60 trials at 5 %: more than 9 has a probability of 0.1 %. Bins by the counts of one side raise some 50.
    assert sum(drift_tests(pair)[0].p_value < 0.05 for pair in pairs) <= 9
    (found,) = drift_tests(pairs_of({"x": items(rng, 150)}, {"x": items(rng, 100, 20)}))
    assert found.p_value < 0.001 and len(found.reference) == 20 and "(other)" in found.fresh


@pytest.mark.parametrize("shares", [(0.97, 0.01, 0.01, 0.01), tuple(np.arange(1, 31) / 465)])
def test_rare_classes_raise_no_false_alarms(shares):
    rng = np.random.default_rng(1)
    counts = ((rng.multinomial(500, shares), rng.multinomial(8, shares)) for _ in range(200))
    alarms = sum(permuted_chi_square(np.array(rows), permutations=999) < 0.05 for rows in counts)
    # As above.
    assert alarms <= 20


def test_permutations_agree_with_the_table_where_counts_are_large():
    # Pearson's chi-square of these counts is 4.0 with one degree of freedom: p = 0.0455 in the tables.
    assert permuted_chi_square(np.array([[120, 80], [100, 100]])) == pytest.approx(0.0455, abs=0.012)


@pytest.mark.parametrize("counts", [[[30, 4, 1, 0], [12, 6, 0, 2]], [[9, 0, 3], [3, 0, 4]], [[5, 5], [5, 5]]])
def test_permutations_agree_with_shuffled_texts_where_counts_are_small(counts):
    counts = np.array(counts)
    names = np.repeat([0, 1], counts.sum(axis=1))
    classes = np.concatenate([np.repeat(np.arange(len(row)), row) for row in counts])
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()

    def statistic(classes):
        table = np.array([np.bincount(classes[names == side], minlength=counts.shape[1]) for side in (0, 1)])
        return ((table - expected)[:, counts.any(axis=0)] ** 2 / expected[:, counts.any(axis=0)]).sum()

    rng = np.random.default_rng(0)
    extreme = np.mean([statistic(rng.permutation(classes)) >= statistic(classes) - 1e-9 for _ in range(4000)])
    found = permuted_chi_square(counts)
    # Four standard errors of both.
    assert found == pytest.approx(extreme, abs=4 * np.sqrt(0.25 / 4000 + 0.25 / 9999))
    assert found == permuted_chi_square(counts) and permuted_chi_square(counts, seed=1) == pytest.approx(
        found, abs=0.03
    )


def test_few_rows_raise_no_alarm_by_their_score():
    drop = bootstrap_drop("accuracy", np.full(100, 100.0), np.zeros(1))
    assert not verdict(drop, [], max_drop=2.0, alpha=0.01, rows=1)
    assert verdict(drop, [], max_drop=2.0, alpha=0.01, rows=30)


def test_degenerate_sides():
    same = {"a": Sample([3, 3]), "b": Sample([0.0, 0.0], MANN_WHITNEY), "c": Sample(["a", "a"], CHI_SQUARE)}
    assert [drift.p_value for drift in drift_tests(pairs_of(same, same))] == [1.0, 1.0, 1.0]


def test_values_that_are_missing_are_left_out():
    old = {"some": Sample([1.0, np.nan, 2.0]), "none": Sample([1.0]), "old": Sample([1.0])}
    new = {"some": Sample([np.nan, 3.0]), "none": Sample([np.nan]), "new": Sample([1.0])}
    pairs = pairs_of(old, new)
    assert [[list(side.values) for side in pair] for pair in pairs.values()] == [[[1.0, 2.0], [3.0]]]
    assert [(drift.what, drift.reference, drift.fresh) for drift in drift_tests(pairs)] == [("some", 1.5, 3.0)]


def test_an_error_that_rises_is_an_alarm():
    drop = bootstrap_drop("MASE", np.full(50, 80.0), np.full(50, 90.0), lower_is_better=True)
    assert drop.points == 10.0 and drop.low == 10.0
    assert "MASE has risen by 10.00 points" in verdict(drop, [], max_drop=2.0, alpha=0.01, rows=50)[0]
    better = bootstrap_drop("MASE", np.full(50, 90.0), np.full(50, 80.0), lower_is_better=True)
    assert not verdict(better, [], max_drop=2.0, alpha=0.01, rows=50)


def test_a_small_or_uncertain_drop_is_no_alarm():
    alarms = []
    for points, low in ((5.0, 1.0), (5.0, -1.0), (1.0, 0.5)):
        drop = bootstrap_drop("accuracy", np.array([90.0]), np.array([90.0 - points]))._replace(low=low)
        alarms.append(bool(verdict(drop, [], max_drop=2.0, alpha=0.01)))
    assert alarms == [True, False, False]


def test_unknown_shares_and_chrf():
    tokenizer = recipe_runs_tokenizer()
    lengths, shares = unknown_shares(tokenizer, ["a b", "a zz", ""])
    assert lengths.tolist() == [2, 2, 0] and shares.tolist() == [0.0, 0.5, 0.0]
    assert chrf_of_texts(["abc", "abc"], ["abc", ["xyz", "abc"]]).tolist() == [100.0, 100.0]
    assert chrf_of_texts(["abc"], ["xyz"])[0] == 0.0


def recipe_runs_tokenizer():
    from hfseq.tokenization import train_tokenizer

    return train_tokenizer(["a b"], model="word", vocab_size=20)


# The recipe


def write(path, rows, header="text,label"):
    path.write_text(header + "\n" + "".join(f"{','.join(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A trained classifier of reviews, its files, and fresh ones: as before, other, and other without labels."""
    root = tmp_path_factory.mktemp("monitoring")
    for seed, (name, count) in enumerate((("train", 60), ("val", 20), ("test", 80), ("same", 80))):
        write(root / f"{name}.csv", reviews(count, seed))
    rng = random.Random(9)
    # Words that the model has never seen, in longer texts, and nearly all of one class.
    new = {"good": "excellent lovely", "bad": "terrible nasty"}
    other = [
        (f"well I say that the {rng.choice(('plot', 'cast'))} is {new[name]}", name)
        for name in ["good"] * 60 + ["bad"] * 20
    ]
    rng.shuffle(other)
    write(root / "other.csv", other)
    write(root / "unlabelled.csv", [(text,) for text, _ in other], "text")
    write(root / "wrong.csv", [(text, "good" if name == "bad" else "bad") for text, name in reviews(80, 5)])
    (root / "config.yaml").write_text(
        "model_type: hfseq_gru\nconfig_overrides: {hidden_size: 16, embedding_size: 12, dropout: 0.0, pooling: max}\n"
        "tokenizer_model: word\nnum_train_epochs: 6\nlearning_rate: 1e-2\nper_device_train_batch_size: 8\n"
        "use_cpu: true\ndisable_tqdm: true\n"
    )
    files = {f"{split}_file": root / f"{name}.csv" for split, name in (("train", "train"), ("test", "test"))}
    files |= {"validation_file": root / "val.csv", "output_dir": root / "model"}
    recipe_runs.start(load("sentiment"), recipe_runs.arguments(root / "config.yaml", **files))
    return root


def watch(data, output_dir, fresh, **flags):
    given = {"model_name_or_path": data / "model", "test_file": data / "test.csv"}
    given["fresh_file"] = None if fresh is None else data / f"{fresh}.csv"
    given |= {"output_dir": output_dir, "use_cpu": "true", "disable_tqdm": "true"} | flags
    argv = [str(part) for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    recipe_runs.AcceleratorState._reset_state(reset_partial_state=True)
    code = RECIPE.main(argv)
    path = output_dir / "report.json"
    return code, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.contract
def test_texts_as_before_raise_no_alarm(data, tmp_path, capsys):
    code, found = watch(data, tmp_path / "out", "same")
    assert code == 0 and found["alarms"] == []
    assert found["drop"]["reference"] == 100.0 and found["drop"]["points"] <= 2.0
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "No threshold is exceeded." in report and "| accuracy | 100.00 |" in report
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert report.strip() in capsys.readouterr().out


def test_other_texts_end_with_code_3(data, tmp_path, capsys):
    code, found = watch(data, tmp_path / "out", "other")
    assert code == 3
    alarms = " ".join(found["alarms"])
    for what in ("accuracy has dropped by", "input length has changed", "share of unknown tokens has changed"):
        assert what in alarms
    # As the model's own pipeline has it.
    texts, names = zip(*(line.split(",") for line in (data / "other.csv").read_text().splitlines()[1:]), strict=True)
    classify = pipeline("text-classification", model=str(data / "model"), device="cpu")
    right = [result["label"] == name for result, name in zip(classify(list(texts)), names, strict=True)]
    assert found["drop"]["fresh"] == pytest.approx(100 * np.mean(right))
    assert "--retrain true" in capsys.readouterr().out


def test_without_labels_only_drift_is_seen(data, tmp_path):
    code, found = watch(data, tmp_path / "out", "unlabelled")
    assert code == 3 and found["drop"] is None
    assert {drift["what"] for drift in found["drift"]} == {"input length", "share of unknown tokens", "output classes"}


def test_bounds_may_be_wider(data, tmp_path):
    code, _ = watch(data, tmp_path / "out", "other", max_drop=100, alpha=0)
    assert code == 0


def test_training_on_keeps_what_is_better(data, tmp_path):
    flags = {"retrain": "true", "train_file": data / "train.csv", "learning_rate": 1e-2, "num_train_epochs": 8}
    code, found = watch(data, tmp_path / "out", "other", **flags)
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert code == 3 and "The new model is better and is kept" in report, report
    assert not torch.equal(
        weights(data / "model")["classifier.weight"], weights(tmp_path / "out" / "retrained")["classifier.weight"]
    )


def test_training_on_rows_that_are_wrong_is_thrown_away(data, tmp_path):
    before = weights(data / "model")
    flags = {"retrain": "true", "train_file": data / "wrong.csv", "learning_rate": 1e-2, "num_train_epochs": 8}
    watch(data, tmp_path / "out", "wrong", **flags)
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "The new model is not better on both" in report and not (tmp_path / "out" / "retrained").exists()
    assert all(torch.equal(before[name], value) for name, value in weights(data / "model").items())


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """A translator to capitals, in 12 epochs."""
    root = tmp_path_factory.mktemp("translator")
    for seed, (name, count, words) in enumerate(
        (("train", 160, "abcdef"), ("test", 40, "abcdef"), ("same", 40, "abcdef"), ("other", 40, "ghi"))
    ):
        rng = random.Random(seed)
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(count)]
        write(root / f"{name}.csv", [(text, text.upper()) for text in texts], "de,en")
    (root / "config.yaml").write_text(
        "model_type: hfseq_gru\nconfig_overrides: {hidden_size: 64, embedding_size: 32, dropout: 0.0}\n"
        "tokenizer_model: whitespace\nmax_source_length: 12\nmax_target_length: 12\nnum_train_epochs: 10\n"
        "learning_rate: 1e-2\nper_device_train_batch_size: 8\nsource_lang: de\ntarget_lang: en\n"
        "metric_for_best_model: exact_match\nuse_cpu: true\ndisable_tqdm: true\n"
    )
    files = {"train_file": root / "train.csv", "validation_file": root / "test.csv", "test_file": root / "test.csv"}
    argv = recipe_runs.arguments(root / "config.yaml", **files, output_dir=root / "model")
    recipe_runs.start(load("translation"), argv)
    return root


def test_a_translator_is_watched_too(translator, tmp_path):
    flags = {"text_column": "de", "label_column": "en", "max_target_length": 12}
    code, found = watch(translator, tmp_path / "same", "same", **flags)
    assert code == 0 and found["drop"]["metric"] == "chrF of a text" and found["drop"]["reference"] > 90
    code, found = watch(translator, tmp_path / "other", "other", **flags)
    assert code == 3 and found["drop"]["points"] > 50 and "share of unknown tokens" in " ".join(found["alarms"])


def test_a_translator_that_trains_on_generates_as_before(translator, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(translator, copy)
    settings = GenerationConfig.from_pretrained(copy / "model")
    settings.update(num_beams=2, max_length=30, early_stopping=True, length_penalty=0.7)
    model = AutoModelForSeq2SeqLM.from_pretrained(copy / "model")
    model.generation_config = settings
    torch.manual_seed(0)
    for weight in model.parameters():  # so that there is something to learn
        weight.data += 0.7 * weight.std() * torch.randn_like(weight)
    model.save_pretrained(copy / "model")
    flags = {"text_column": "de", "label_column": "en", "max_target_length": 12, "retrain": "true"}
    flags |= {"train_file": copy / "train.csv", "num_train_epochs": 2, "learning_rate": "5e-3"}
    watch(copy, tmp_path / "out", "same", **flags)
    kept = GenerationConfig.from_pretrained(tmp_path / "out" / "retrained")
    assert (kept.num_beams, kept.max_length, kept.length_penalty) == (2, 30, 0.7)


def log_of(directory, task, results, **fields):
    """Log texts and the pipeline's results for them."""
    log = TrafficLog(directory)
    for number, (text, result) in enumerate(results):
        names = {"id": f"r-{number}", "time": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}Z", "task": task}
        log.write({**names, "model": "model", "inputs": text, "parameters": {}, "output": result} | fields)
    log.close()


def label_file(path, labels):
    path.write_text("id,label\n" + "".join(f"r-{number},{label}\n" for number, label in enumerate(labels)))
    return path


@pytest.mark.parametrize("name", ["same", "other"])
def test_a_log_gives_the_report_of_its_texts(name, data, tmp_path):
    texts, labels = zip(
        *(line.split(",") for line in (data / f"{name}.csv").read_text().splitlines()[1:]), strict=True
    )
    classify = pipeline("text-classification", model=str(data / "model"), device="cpu", top_k=None)
    log_of(tmp_path / "log", "text-classification", zip(texts, classify(list(texts)), strict=True))
    flags = {"served": tmp_path / "log", "labels_file": label_file(tmp_path / "labels.csv", labels)}
    code, found = watch(data, tmp_path / "log_out", None, **flags)
    expected = watch(data, tmp_path / "out", name)
    assert code == expected[0] == {"same": 0, "other": 3}[name]
    assert found["drop"] == expected[1]["drop"] and found["drift"] == expected[1]["drift"]
    assert f"80 of 80 rows with a label of {tmp_path / 'labels.csv'}" in found["notes"]


def test_the_outputs_of_a_log_are_those_that_were_served(data, tmp_path):
    texts = [line.split(",")[0] for line in (data / "same.csv").read_text().splitlines()[1:]]
    results = [(text, [{"label": "bad", "score": 0.2}, {"label": "good", "score": 0.8}]) for text in texts]
    results += [
        ("text", None),
        ({"text": "a", "text_pair": "b"}, results[0][1]),
        ("text", {"label": "other", "score": 1.0}),
    ]
    log_of(tmp_path / "log", "text-classification", results)
    code, found = watch(data, tmp_path / "out", None, served=tmp_path / "log")
    (classes,) = (drift["fresh"] for drift in found["drift"] if drift["what"] == "output classes")
    assert code == 3 and classes == {"bad": 0.0, "good": 1.0}
    assert "3 rows without a text or with no class of the model as output left out" in found["notes"]


def test_a_model_that_was_served_under_another_name(data, tmp_path):
    log_of(
        tmp_path / "log",
        "text-classification",
        [("the plot is fine", {"label": "good", "score": 0.9})] * 20,
        model="sentiment",
    )
    with pytest.raises(InputError, match="name one of 'sentiment' by --served_name"):
        watch(data, tmp_path / "out", None, served=tmp_path / "log")
    _, found = watch(data, tmp_path / "out", None, served=tmp_path / "log", served_name="sentiment")
    assert found["drop"] is None and len(found["drift"]) == 3


def test_a_log_of_translations(translator, tmp_path):
    texts = [line.split(",") for line in (translator / "same.csv").read_text().splitlines()[1:]]
    log_of(tmp_path / "log", "translation", [(source, [{"translation_text": target}]) for source, target in texts])
    labels = label_file(tmp_path / "labels.csv", [target for _, target in texts])
    flags = {"text_column": "de", "label_column": "en", "max_target_length": 12, "labels_file": labels}
    code, found = watch(translator, tmp_path / "out", None, served=tmp_path / "log", **flags)
    assert code == 0 and found["drop"]["fresh"] == 100.0 and found["drift"][2]["what"] == "output length"


def test_training_on_with_what_was_served(data, tmp_path):
    texts, labels = zip(*(line.split(",") for line in (data / "other.csv").read_text().splitlines()[1:]), strict=True)
    log_of(tmp_path / "log", "text-classification", [(text, {"label": "bad", "score": 0.9}) for text in texts])
    flags = {"served": tmp_path / "log", "labels_file": label_file(tmp_path / "labels.csv", labels)}
    flags |= {"retrain": "true", "train_file": data / "train.csv", "learning_rate": "1e-2", "num_train_epochs": 6}
    watch(data, tmp_path / "out", None, **flags)
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "The new model is better and is kept" in report, report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_name_or_path": None}, "--model_name_or_path is missing"),
        ({"model_name_or_path": "nowhere"}, "--model_name_or_path nowhere"),
        ({"test_file": None}, "--test_file is missing"),
        ({"served": "log"}, "give either --fresh_file, a file of fresh rows, or --served"),
        ({"labels_file": "labels.csv"}, "--labels_file goes with --served"),
        ({"task": "speech"}, "unknown --task 'speech'"),
        ({"retrain": "true"}, "--retrain needs --train_file"),
        ({"holdout": 1}, "--holdout must lie between 0 and 1"),
        ({"max_drop": -1}, "--max_drop -1.0: give 0 or more"),
        ({"streaming": "true"}, "unknown flag --streaming"),
        ({"validation_file": "x.csv"}, "unknown flag --validation_file"),
        ({"hp_search": 2}, "are not of monitoring"),
        ({"text_column": "body"}, "no column 'body'"),
    ],
)
def test_bad_input(flags, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        watch(data, tmp_path / "out", "same", **flags)
    assert not (tmp_path / "out").exists()


def test_labels_as_numbers_and_with_spaces(data, tmp_path):
    lines = (data / "same.csv").read_text().splitlines()[1:]
    numbers = {"bad": "0", "good": " 1 "}
    for name in ("test", "same"):
        rows = [line.split(",") for line in (data / f"{name}.csv").read_text().splitlines()[1:]]
        write(tmp_path / f"{name}.csv", [(text, numbers[label]) for text, label in rows])
    flags = {"test_file": tmp_path / "test.csv", "fresh_file": tmp_path / "same.csv"}
    code, found = watch(data, tmp_path / "out", "same", **flags)
    assert code == 0 and found["drop"]["reference"] == 100.0 and len(lines) == 80


def test_names_that_are_numbers_are_not_taken_for_places(tmp_path):
    """A column says names or places as a whole: with names 1 to 5, 0 to 4 are places."""
    names = ["1", "2", "3", "4", "5"]
    given = {"names": names, "places": ["0", "1", "2", "3", "4"]}
    for name, labels in given.items():
        write(tmp_path / f"{name}.csv", [(f"text {label}", label) for label in labels])
        monitored = object.__new__(MonitoredTexts)
        monitored.data = RECIPE.ARGUMENTS["text"][0](model_name_or_path="x", test_file="x", fresh_file="x")
        monitored.generates, monitored.classes = False, names
        rows = monitored.read_rows(str(tmp_path / f"{name}.csv"), "--test_file")
        assert list(rows["label"]) == names


def test_classes_of_another_model_are_refused(data, tmp_path):
    for name, flag in (("test", "--test_file"), ("fresh", "--fresh_file")):
        write(tmp_path / f"{name}.csv", [("the plot is fine", "splendid")])
        with pytest.raises(InputError, match=rf"{flag} .*{name}.csv: class 'splendid' is not one of the model's"):
            watch(data, tmp_path / "out", "same", **{f"{name}_file": tmp_path / f"{name}.csv"})
    with pytest.raises(InputError, match=r"none.csv: no such file \(--fresh_file\)"):
        watch(data, tmp_path / "out", "same", fresh_file=tmp_path / "none.csv")


def test_the_watched_model_is_not_overwritten(data, tmp_path):
    before = {path.name for path in (data / "model").iterdir()}
    for place in (data / "model", data):
        with pytest.raises(InputError, match="holds the monitored model"):
            watch(data, place, "same", overwrite_output_dir="true")
    assert {path.name for path in (data / "model").iterdir()} == before


def test_a_model_that_cannot_classify_is_refused(data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(data / "model")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8}
    models = {"tagger": hfseq.GruForTokenClassification(hfseq.GruConfig(**sizes))}
    several = {"problem_type": "multi_label_classification", "num_labels": 2}
    models["several"] = hfseq.GruForSequenceClassification(hfseq.GruConfig(**sizes, **several))
    for name, message in (
        ("tagger", "was not trained as a sequence classifier"),
        ("several", "supports single-label"),
    ):
        for saved in (models[name], tokenizer):
            saved.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=message):
            watch(data, tmp_path / "out", "same", model_name_or_path=tmp_path / name)


def test_labels_are_needed_to_train_on(data, tmp_path):
    flags = {"retrain": "true", "train_file": data / "train.csv"}
    with pytest.raises(InputError, match="--retrain needs labels in"):
        watch(data, tmp_path / "out", "unlabelled", **flags)


def test_the_known_words_of_the_reviews_are_not_those_of_the_fresh_ones():
    assert not {"excellent", "lovely", "terrible", "nasty"} & {word for words in WORDS.values() for word in words}
