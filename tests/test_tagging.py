"""The tagging recipe, its embedded data, and the metric of entities."""

import importlib.util
import json
import random
from functools import cache
from pathlib import Path

import pytest
import recipe_runs
from recipe_runs import Killed, assert_close, assert_equal, kill_after_checkpoint, load, results, run_two, weights
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from hfseq import metrics
from hfseq.data.embedded import python_tokens
from hfseq.data.embedded.docstrings import standard_library
from hfseq.data.embedded.python_tokens import python_token_rows
from hfseq.data.encoding import encode_words
from hfseq.errors import InputError
from hfseq.hub.model_card import make_card
from hfseq.tasks.tagging import Tagging
from hfseq.tokenization import train_tokenizer

RECIPE, FINETUNING = load("tagging"), load("finetuning_accelerate")
CONFIG = """\
config_overrides: {hidden_size: 16, embedding_size: 12, dropout: 0.0, crf: true}
tokenizer_model: character
num_train_epochs: 2
learning_rate: 2e-2
logging_steps: 5
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
"""
NAMES = {"PER": ("Ann Lee", "Bob", "Eve Ray Fox"), "ORG": ("Acme", "Max Co")}


def sentences(count, seed):
    """Lines of CoNLL: entities of one to three words, whose type the verb before them says."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.choice(sorted(NAMES))
        name = rng.choice(NAMES[kind]).split()
        tags = [f"{'I' if place else 'B'}-{kind}" for place in range(len(name))]
        yield [("we", "O"), ("met" if kind == "PER" else "sold", "O"), *zip(name, tags, strict=True), (".", "O")]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("entities")
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for seed, (name, count) in enumerate((("train", 64), ("val", 16), ("test", 16), ("long", 800))):
        rows = ("".join(f"{word} {tag}\n" for word, tag in sentence) + "\n" for sentence in sentences(count, seed))
        (root / f"{name}.conll").write_text("".join(rows), encoding="utf-8")
    return root


def write(path, rows):
    path.write_text("".join("".join(f"{word} {tag}\n" for word, tag in row) + "\n" for row in rows), encoding="utf-8")
    return path


def in_bilou(sentence):
    """A sentence of `sentences` in another scheme."""
    tags = [tag for _, tag in sentence]
    ends = [not after.startswith("I") for after in [*tags[1:], "O"]]
    prefix = {("B", True): "U", ("I", True): "L", ("O", True): "O"}
    return [
        (word, prefix.get((tag[0], end), tag[0]) + tag[1:]) for (word, tag), end in zip(sentence, ends, strict=True)
    ]


def arguments(data, output_dir, **flags):
    files = {f"{name}_file": data / f"{short}.conll" for name, short in (("train", "train"), ("test", "test"))}
    files["validation_file"] = data / "val.conll"
    return recipe_runs.arguments(data / "config.yaml", **(files | {"output_dir": output_dir} | flags))


def start(data, output_dir, **flags):
    recipe_runs.start(RECIPE, arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    flags = {"train_file": data / "long.conll", "max_tokens": 300}
    return start(data, tmp_path_factory.mktemp("runs") / "trained", **flags)


@pytest.mark.contract
def test_scores_and_files_of_a_run(trained):
    found = results(trained)
    assert found["test_accuracy"] > 95 and found["test_entity_f1"] > 90
    assert found["test_majority_accuracy"] < found["test_by_word_accuracy"] <= 100
    assert (trained / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    predicted = (trained / "predictions.txt").read_text(encoding="utf-8").splitlines()
    right = [[tag for _, tag in sentence] for sentence in sentences(16, 2)]
    entities = metrics.load("seqeval").compute(predictions=[line.split() for line in predicted], references=right)
    assert entities["f1"] == pytest.approx(found["test_entity_f1"])
    tags = [tag for line in predicted for tag in line.split()]
    words = [tag == other for tag, other in zip(tags, (tag for row in right for tag in row), strict=True)]
    assert 100 * sum(words) / len(words) == pytest.approx(found["test_accuracy"])


def test_the_pipeline_shows_entities_found_by_viterbi(trained):
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    inputs = tokenizer("we met Ann Lee .", return_tensors="pt")
    chain = inputs["input_ids"] != tokenizer.eos_token_id
    emissions = model.classifier(model.model(**inputs).last_hidden_state)
    best = model.crf.decode(emissions, chain)[0][chain[0]].tolist()
    tag = pipeline("token-classification", model=str(trained), device="cpu", ignore_labels=[])
    shown = tag("we met Ann Lee .")
    assert [piece["entity"] for piece in shown][: len(best)] == [model.config.id2label[label] for label in best]
    (entity,) = pipeline("token-classification", model=str(trained), device="cpu", aggregation_strategy="simple")(
        "we met Ann Lee ."
    )
    assert entity["entity_group"] == "PER" and "we met Ann Lee ."[entity["start"] : entity["end"]].strip() == "Ann Lee"


@pytest.fixture(scope="session")
def bilou(tmp_path_factory):
    """A run on tags of another scheme, in a process of its own, and what it said."""
    root = tmp_path_factory.mktemp("bilou")
    for seed, (name, count) in enumerate((("train", 800), ("val", 16), ("test", 16))):
        write(root / f"{name}.conll", map(in_bilou, sentences(count, seed)))
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    done = recipe_runs.run("tagging", arguments(root, root / "run", max_tokens=300))
    assert done.returncode == 0, done.stderr
    return root / "run", done


def test_the_scheme_is_said_and_counted_and_nobody_is_warned(bilou, trained):
    run, done = bilou
    assert "800 train, 16 validation, 16 test rows, entities in BILOU, 8 tags: B-ORG" in done.stdout
    assert "NE tag" not in done.stderr and "Warning" not in done.stderr
    found = results(run)
    assert found["test_entity_f1"] > 90
    predicted = [line.split() for line in (run / "predictions.txt").read_text(encoding="utf-8").splitlines()]
    right = [[tag for _, tag in in_bilou(sentence)] for sentence in sentences(16, 2)]
    entities = metrics.load("seqeval").compute(predictions=predicted, references=right)
    assert entities["f1"] == pytest.approx(found["test_entity_f1"])
    signatures = [json.loads((path / "run.json").read_text())["signatures"] for path in (run, trained)]
    assert signatures[0] == {"entity_f1": entities["signature"]}
    assert [one["entity_f1"].split("|version")[0] for one in signatures] == [
        "scheme:BILOU|mode:strict",
        "scheme:IOB2|mode:conlleval",
    ]
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    card = make_card(run, model, tokenizer, "a/b")
    assert f"entity F1: `{entities['signature']}`" in card.text


def test_the_pipeline_gives_whole_entities_of_another_scheme(bilou):
    tag = pipeline("token-classification", model=str(bilou[0]), device="cpu", aggregation_strategy="simple")
    for text, kind, name in (("we met Ann Lee .", "PER", "Ann Lee"), ("we sold Max Co .", "ORG", "Max Co")):
        (entity,) = tag(text)
        assert (entity["entity_group"], text[entity["start"] : entity["end"]].strip()) == (kind, name)
    (entity,) = tag("we met Bob .")
    assert entity["entity_group"] == "PER" and "we met Bob ."[entity["start"] : entity["end"]].strip() == "Bob"


def test_a_trained_tagger_is_scored_in_the_scheme_of_its_labels(bilou, data, tmp_path, capsys):
    """The test rows alone would be in IOB2; in BILOU a B without its L is no entity."""
    rows = [[("we", "O"), ("met", "O"), ("Bob", "B-PER"), (".", "O")], [("we", "O"), ("met", "O"), ("Eve", "B-PER")]]
    flags = {"model_name_or_path": bilou[0], "config_overrides": "{}", "train_file": None, "validation_file": None}
    argv = arguments(data, tmp_path / "scored", test_file=write(tmp_path / "test.conll", rows), **flags)
    recipe_runs.start(RECIPE, [*argv, "--do_predict"])
    assert "2 test rows, entities in BILOU, broken at 2 places of test, 8 tags" in capsys.readouterr().out
    found = results(tmp_path / "scored")
    assert found["test_entity_f1"] == 0 < found["test_accuracy"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["I-A I-A O", "I-A B-A O"], "entities in IOB1, 3 tags"),
        (
            ["B-A I-A O", "I-A O O", "B-A O O"],
            "entities in IOB2, broken at 1 place of train, 1 place of validation, 1",
        ),
        (["B I O", "O B B"], "entities in IOB2, 3 tags"),
        (
            ["B-A I-A MISC O"],
            "tags scored as word classes, not as entities: 'MISC' begins with none of B-, I-, E-",
        ),
        (["NOUN VERB NN-TL", "-LRB- NOUN VERB"], "test rows, 4 tags"),
    ],
)
def test_what_the_tags_are_is_said(rows, said, data, tmp_path, capsys):
    pairs = [[(f"w{at}", tag) for at, tag in enumerate(row.split())] for row in rows]
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), write(tmp_path / "words.conll", pairs))
    start(data, tmp_path / "run", max_steps=1, **files)
    out = capsys.readouterr().out
    assert said in out
    assert ("test_entity_f1" in results(tmp_path / "run")) is ("entities in" in out)


@pytest.fixture
def vectors(tmp_path):
    """Word vectors, in which names that no training row has are near those that one has."""
    rng = random.Random(0)
    kinds = {
        **dict.fromkeys(("ann", "lee", "bob", "eve", "ray", "fox", "zoe"), 1),
        **dict.fromkeys(("acme", "max", "co", "umbra"), -1),
        **dict.fromkeys(("we", "met", "sold", "."), 0),
    }
    rows = (f"{word} {' '.join(str(kind + rng.gauss(0, 0.1)) for _ in range(100))}\n" for word, kind in kinds.items())
    path = tmp_path / "vectors.txt"
    path.write_text("".join(rows), encoding="utf-8")
    return path


def test_named_entities_by_word_vectors(vectors, data, tmp_path, capsys):
    config = recipe_runs.ROOT / "recipes" / "configs" / "tagging_named_entities.yaml"
    test = write(tmp_path / "test.conll", [[("saw", "O"), ("Zoe", "B-PER")], [("saw", "O"), ("Umbra", "B-ORG")]] * 8)
    files = {"train_file": data / "long.conll", "validation_file": data / "val.conll", "test_file": test}
    flags = {"num_train_epochs": 1, "warmup_steps": 1, "max_tokens": 200, "use_cpu": True, "disable_tqdm": True}
    flags |= {"word_vectors": vectors, "add_words": 100, "output_dir": tmp_path / "o"}
    recipe_runs.start(RECIPE, recipe_runs.arguments(config, **files, **flags))
    shown = capsys.readouterr()
    assert "13 of 13 words of the tokenizer (100.0%) have a vector; 2 more words added" in shown.out
    assert "initialized" not in shown.err
    assert results(tmp_path / "o")["test_entity_f1"] == 100
    assert AutoTokenizer.from_pretrained(tmp_path / "o").get_vocab().keys() >= {"▁zoe", "▁umbra"}


@pytest.mark.parametrize("tokenizer", ["character", "whitespace"])
@pytest.mark.parametrize("suffix", ["conll", "tsv"])
def test_every_word_has_a_tag(tokenizer, suffix, data, tmp_path):
    """Tokenizers make nothing of an ideographic space, and columns of TSV have spaces between words."""
    rows = [[("a", "X"), ("\u3000", "Y"), ("\u00a0", "Z"), ("b", "X"), ("\u2003", "Y")], [("\u3000", "Y"), ("b", "X")]]
    if suffix == "conll":
        path = write(tmp_path / "words.conll", rows)
    else:
        path = tmp_path / "words.tsv"
        lines = ["\t".join(" ".join(side) for side in zip(*row, strict=True)) for row in rows]
        path.write_text("tokens\ttags\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), path)
    start(data, tmp_path / "run", max_steps=1, tokenizer_model=tokenizer, **files)
    predicted = (tmp_path / "run" / "predictions.txt").read_text(encoding="utf-8").splitlines()
    assert [len(line.split()) for line in predicted] == [5, 2]


@pytest.mark.parametrize(
    ("tags", "later"),
    [
        (["B-A L-A U-A O", "B-B I-B L-B O"], {"B-A": "B-A", "B-B": "I-B"}),
        (["b-a i-a o o"], {"b-a": "i-a"}),
        (["B I O O"], {"B": "I"}),
        (["B NN I NN"], {}),
    ],
)
def test_later_tokens_of_words_train_a_crf(tags, later, data, tmp_path, monkeypatch):
    """They have the word's tag, but those of the first word of an entity that of its inside, if there is one."""
    tasks = []

    class Kept(Tagging):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            tasks.append(self)

    monkeypatch.setattr(RECIPE, "Tagging", Kept)
    path = write(tmp_path / "words.conll", [[("ab", tag) for tag in row.split()] for row in tags])
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), path)
    start(data, tmp_path / "run", max_steps=1, **files)
    (task,) = tasks
    names = [[task.classes[label] for label in row if label >= 0] for row in task.encoded["train"]["labels"]]
    # A word is a space and two letters.
    assert names == [
        [one for tag in row.split() for one in (tag, later.get(tag, tag), later.get(tag, tag))] for row in tags
    ]


def test_an_explicit_loop_trains_a_crf_alike(data, tmp_path):
    flags = {"metric_for_best_model": "loss"}
    one = start(data, tmp_path / "one", **flags)
    argv = arguments(data, tmp_path / "two", task="tagging", model_type="hfseq_lstm", **flags)
    recipe_runs.start(FINETUNING, argv)
    assert_close(weights(one), weights(tmp_path / "two"))
    assert results(one)["test_entity_f1"] == results(tmp_path / "two")["test_entity_f1"]


def test_a_killed_run_goes_on_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    flags = {"config_overrides": '{"hidden_size": 16, "crf": true, "dropout": 0.3}', "num_train_epochs": 3}
    whole = start(data, tmp_path / "whole", **flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, "tagging", 1)
        start(data, tmp_path / "parts", **flags)
    parts = start(data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
    assert_equal(weights(whole), weights(parts))


def test_two_processes_train_the_same_model_as_one(data, tmp_path):
    done = run_two("tagging", arguments(data, tmp_path / "two", per_device_train_batch_size=4))
    assert done.returncode == 0, done.stderr
    one = start(data, tmp_path / "one")
    assert_close(weights(one), weights(tmp_path / "two"))
    assert results(one)["test_accuracy"] == results(tmp_path / "two")["test_accuracy"]


def test_a_trained_tagger_is_scored(data, trained, tmp_path):
    flags = {"model_name_or_path": trained, "config_overrides": "{}", "train_file": None, "validation_file": None}
    recipe_runs.start(RECIPE, [*arguments(data, tmp_path / "scored", **flags), "--do_predict"])
    assert results(tmp_path / "scored")["test_entity_f1"] == pytest.approx(results(trained)["test_entity_f1"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": "classification"}, "unknown flag --(task|method)"),
        ({"method": "lora"}, "unknown flag --(task|method)"),
        ({"output_file": "x"}, "--output_file"),
        ({"label_column": "upos", "column_names": "form,xpos"}, "no column 'tokens'"),
        ({"metric_for_best_model": "bleu"}, "bleu"),
        ({"streaming": True}, "unknown flag --streaming"),
        ({"word_vectors": "absent.txt"}, "--word_vectors: there is no file absent.txt"),
        ({"add_words": 10}, "--add_words needs --word_vectors"),
        (
            {"label_smoothing_factor": 0.1},
            "--label_smoothing_factor is not supported for a CRF, which is trained on whole",
        ),
    ],
)
def test_bad_input(flags, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        start(data, tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


def test_a_run_on_entities_needs_their_scorer_from_the_beginning(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "hfseq.errors.find_spec", lambda name: None if name == "seqeval" else importlib.util.find_spec(name)
    )
    with pytest.raises(InputError, match=r"the score of entities needs seqeval: pip install 'hfseq\[train\]'"):
        start(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("column", ["tokens", "tags"])
def test_a_null_is_no_word_and_no_tag(column, data, tmp_path):
    path = tmp_path / "words.jsonl"
    rows = [{"tokens": ["a", "b"], "tags": ["X", "Y"]}] * 2
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {column: ["a", None]}]))
    with pytest.raises(InputError, match="train, row 3: null in tokens or tags; each needs text"):
        start(data, tmp_path / "run", train_file=path, validation_file=path, test_file=path)


def test_entities_need_tags_of_entities(tmp_path, data):
    path = tmp_path / "words.conll"
    path.write_text("a X\nb Y\n\nb Y\n\n", encoding="utf-8")
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), path)
    with pytest.raises(InputError, match="no entities, as 'X' begins with none of B-"):
        start(data, tmp_path / "run", metric_for_best_model="entity_f1", **files)
    start(data, tmp_path / "run", max_steps=1, **files)
    assert "test_entity_f1" not in results(tmp_path / "run")


def test_seqeval():
    metric = metrics.load("seqeval")
    found = metric.compute(predictions=[["B-A", "I-A", "O"], ["B-B"]], references=[["B-A", "I-A", "O"], ["B-A"]])
    assert found["f1"] == found["precision"] == found["recall"] == found["score"] == 50
    assert found["accuracy"] == 75 and found["by_type"]["A"]["support"] == 2
    assert metric.compute(predictions=[["O"]], references=[["O"]])["f1"] == 0
    with pytest.raises(ValueError, match="row 0 has 1 predicted tags and 2 right ones"):
        metric.compute(predictions=[["O"]], references=[["O", "O"]])


def test_words_without_a_token_and_rows_that_are_cut():
    tokenizer = train_tokenizer(["aa bb cc"] * 2, model="whitespace", vocab_size=30)
    rows = [["aa", "\u3000", "bb", "cc"], ["bb", "cc", "\u3000"], ["aa", "bb", "\u3000", "cc"], ["aa", "bb"]]
    encoded, lengths = encode_words(tokenizer, rows, 4)
    assert [encoded.word_ids(row) for row in range(4)] == [
        [0, 1, 2, None],
        [0, 1, 2, None],
        [0, 1, 2, None],
        [0, 1, None],
    ]
    assert encoded["input_ids"][0][1] == tokenizer.unk_token_id
    assert lengths == [5, 4, 5, 3]
    plain = tokenizer([["aa", "bb"]], is_split_into_words=True)
    assert encode_words(tokenizer, [["aa", "bb"]])[0]["input_ids"] == plain["input_ids"]


def test_embedded_rows_are_what_tokenize_finds(monkeypatch):
    """In a folder of the standard library: all of it takes ten seconds to read."""
    folder = standard_library() / "asyncio"
    monkeypatch.setattr(python_tokens, "standard_library", lambda: folder)
    monkeypatch.setattr(python_tokens, "_rows", cache(python_tokens._rows.__wrapped__))
    splits = python_token_rows(train_size=300, validation_size=20, test_size=30)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 300, "validation": 20, "test": 30}
    pairs = [pair for row in splits["train"] for pair in zip(row["tokens"], row["tags"], strict=True)]
    assert {tag for _, tag in pairs} >= {"KEYWORD", "NAME", "OP", "CALLED", "ATTRIBUTE", "STRING"}
    assert all(tag == "KEYWORD" for word, tag in pairs if word in ("def", "return", "if"))
    assert all(tag == "OP" for word, tag in pairs if word in ("(", ")", "="))
    assert {tag for word, tag in pairs if word == "self"} <= {"NAME", "ATTRIBUTE"}
    assert (
        splits["test"].to_list() == python_token_rows(train_size=1, validation_size=1, test_size=30)["test"].to_list()
    )
    with pytest.raises(InputError, match="train size: 0 is too few"):
        python_token_rows(train_size=0)
