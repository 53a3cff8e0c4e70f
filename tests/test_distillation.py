"""Distillation: variants, losses, and the recipe."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import recipe_runs
import torch
from recipe_runs import (
    Killed,
    assert_equal,
    kill_after_checkpoint,
    load,
    results,
    reviews,
    run_two,
    weights,
    write_reviews,
)
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)

from hfseq import metrics
from hfseq.errors import InputError
from hfseq.inference.benchmark import seconds_a_text
from hfseq.inference.generate import decode_texts
from hfseq.tokenization import train_tokenizer
from hfseq.training import distillation, run
from hfseq.training.distillation import (
    MASK,
    augment,
    distillation_loss,
    encode_variants,
    student_rows,
    teacher_logits,
)
from hfseq.training.teacher_embeddings import Neighbours, start_from_teacher

RECIPE = load("distillation")
CONFIG = """\
config_overrides: {hidden_size: 16, embedding_size: 12, dropout: 0.0, pooling: max}
tokenizer_model: word
num_train_epochs: 2
distillation_epochs: 2
augmentations: 3
learning_rate: 1e-2
logging_steps: 5
per_device_train_batch_size: 8
speed_texts: 4
use_cpu: true
disable_tqdm: true
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with config.yaml, rows of train (40), val (10), test (10), and `teacher`, a BERT with fixed weights."""
    root = tmp_path_factory.mktemp("reviews")
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    write_reviews(root)
    tokenizer = train_tokenizer((text for text, _ in reviews(40, 0)), model="word")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    classes = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    torch.manual_seed(1)
    teacher = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes, **classes))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    texts, names = zip(*reviews(40, 0), strict=True)
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    labels = torch.tensor([int(name == "bad") for name in names])
    for _ in range(30):
        optimizer.zero_grad()
        cross_entropy(teacher(**batch).logits, labels).backward()
        optimizer.step()
    teacher.save_pretrained(root / "teacher")
    tokenizer.save_pretrained(root / "teacher")
    return root


def arguments(data, output_dir, **flags):
    files = {"train_file": data / "train.csv", "validation_file": data / "val.csv", "test_file": data / "test.csv"}
    given = files | {"teacher": data / "teacher", "output_dir": output_dir} | flags
    return recipe_runs.arguments(data / "config.yaml", **given)


def start(data, output_dir, **flags):
    recipe_runs.start(RECIPE, arguments(data, output_dir, **flags))
    return Path(output_dir)


# Variants


def test_variants_are_the_texts_with_words_masked_or_gone():
    texts = ["a b c d e f g h", "i j", "k", ""] * 50
    variants = list(augment(texts, 20, masked=0.2, ngram=0.5, seed=3))
    assert variants == list(augment(texts, 20, masked=0.2, ngram=0.5, seed=3))
    keys = [tuple(words) for words in variants]
    assert len(set(keys)) == len(keys) and not set(keys) & {tuple(text.split()) for text in texts}
    longest = "a b c d e f g h".split()
    whole = [words for words in variants if len(words) == 8]
    runs = [words for words in variants if len(words) < 8 and words[0] not in ("i", "j", "k") and words[-1] != "j"]
    assert whole and runs
    for words in whole:
        assert all(word in (MASK, other) for word, other in zip(words, longest, strict=True))
    for words in runs:
        assert len(words) <= 5 and any(
            all(word in (MASK, other) for word, other in zip(words, longest[start:], strict=False))
            for start in range(9 - len(words))
        )
    assert all(any(word is not MASK for word in words) for words in variants)
    # The share of masked words, of texts too long to come twice.
    long = " ".join(map(str, range(2000)))
    masked = [sum(word is MASK for word in words) / 2000 for words in augment([long], 20, masked=0.1, ngram=0.0)]
    assert sum(masked) / 20 == pytest.approx(0.1, abs=0.01)
    assert list(augment(texts, 5, masked=0.0, ngram=0.0)) == []
    assert all(len(words) <= 5 for words in augment([long], 50, masked=0.0, ngram=1.0))


def test_words_are_replaced_by_their_neighbours():
    near = {"a": ["b", "c"], "d": []}
    text = " ".join(["a", "d", "e"] * 700)
    (variant,) = augment([text], 1, masked=0.0, ngram=0.0, replaced=0.3, neighbours=lambda word: near.get(word, []))
    assert variant[1::3] == ["d"] * 700 and variant[2::3] == ["e"] * 700
    shares = [variant[::3].count(word) / 700 for word in "abc"]
    assert shares == pytest.approx([0.7, 0.15, 0.15], abs=0.05)
    # Of the words that no mask has taken.
    (variant,) = augment([text], 1, masked=0.5, ngram=0.0, replaced=1.0, neighbours=lambda word: near.get(word, []))
    assert "a" not in variant and variant.count(MASK) / 2100 == pytest.approx(0.5, abs=0.05)
    # What is not replaced is as it was without.
    texts = ["a b c d e f g h", "i j"] * 20
    assert list(augment(texts, 9, replaced=0.0)) == list(augment(texts, 9, neighbours=lambda word: ["z"]))


def test_neighbours_are_what_the_teacher_finds_near(data):
    teacher = AutoModelForSequenceClassification.from_pretrained(data / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(data / "teacher")
    near = Neighbours(teacher, tokenizer, ["zebra Plot's is fine", "the plot"], count=3, batch_size=7)
    known = [word.removeprefix("▁") for word in tokenizer.get_vocab() if word.startswith("▁")]
    whole = [word for word in known if len(word) > 1 and word.isalpha()]
    assert near.words == sorted({*whole, "zebra", "plot's", "is", "fine", "the", "plot"}) and "zebra" not in whole

    def vector(word):
        rows = tokenizer(word, return_tensors="pt")
        states = teacher.base_model(**rows).last_hidden_state[0, :-1]  # without </s>
        return states.mean(0)

    vectors = torch.stack([vector(word) for word in near.words])
    vectors = vectors - vectors.mean(0)
    for word in ("fine", "plot's", "the"):
        mine = vectors[near.words.index(word)]
        likeness = torch.cosine_similarity(vectors, mine[None])
        best = [near.words[number] for number in likeness.argsort(descending=True).tolist()]
        found = near(word)
        assert len(found) == 3 and word not in found
        torch.testing.assert_close(
            likeness[[near.words.index(other) for other in found]],
            likeness[[near.words.index(other) for other in best if other != word][:3]],
        )
    assert near("giraffe") == []


def test_neighbours_are_in_lower_case_if_the_teacher_knows_no_other():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    for lowercase, words in ((True, ["bird", "bob", "cat", "sees"]), (False, ["Bird", "Bob", "cat", "sees"])):
        tokenizer = train_tokenizer(["A cat sees Bob"], model="word", lowercase=lowercase)
        teacher = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes))
        near = Neighbours(teacher, tokenizer, ["Bird"])
        assert near.words == words
        assert set(near(words[1])) == {*words} - {words[1]}
        assert bool(near("CAT")) == lowercase


def test_a_masked_word_is_the_mask_token_or_else_unknown(data):
    words = train_tokenizer(["a b c"], model="word")
    rows = encode_variants([["a", MASK, "c"], ["b"]], words, 9)
    assert rows["input_ids"] == [words("a <unk> c", split_special_tokens=False)["input_ids"], words("b")["input_ids"]]
    assert words.unk_token_id in rows["input_ids"][0]
    words.add_special_tokens({"mask_token": "<mask>"})
    (row,) = encode_variants([["a", MASK]], words, 9)["input_ids"]
    assert row == [words.convert_tokens_to_ids("▁a"), words.mask_token_id, words.eos_token_id]


def test_a_teacher_says_of_each_row_what_it_says_of_it_alone(data):
    teacher = AutoModelForSequenceClassification.from_pretrained(data / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(data / "teacher")
    texts, variants = ["the plot is fine", "the cast is dull and awful"], [["plot"], ["the", MASK, "is", "fine"]]
    found = teacher_logits(teacher, tokenizer, texts, variants, max_length=20, batch_size=3)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    ids += list(encode_variants(variants, tokenizer, 20)["input_ids"])
    alone = torch.cat([teacher(torch.tensor([row])).logits for row in ids])
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float32), alone)
    rows = student_rows(tokenizer, texts, [1], variants, found, 20)
    assert list(rows["input_ids"]) == ids
    rounded = teacher_logits(teacher, tokenizer, texts, variants, max_length=20, batch_size=3, dtype="bfloat16")
    assert 0 < np.abs(rounded - found).max() < 0.05
    assert [row[-1] for row in rows["labels"]] == [1, -1, -1, -1]
    np.testing.assert_allclose([row[:-1] for row in rows["labels"]], found, rtol=1e-6)


# Losses


def test_losses_are_those_of_the_papers():
    torch.manual_seed(0)
    student, teacher, right = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([2, -1, 0, -1])
    labels = torch.cat([teacher, right[:, None].float()], dim=1)
    mse = sum((one - other) ** 2 for one, other in zip(student.flatten(), teacher.flatten(), strict=True)) / 12
    torch.testing.assert_close(distillation_loss(student, labels), mse)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    kl = 4 * (p * (p / q).log()).sum() / 4
    torch.testing.assert_close(distillation_loss(student, labels, kind="kl", temperature=2.0), kl)
    hard = cross_entropy(student[[0, 2]], right[[0, 2]], reduction="sum") / 4
    mixed = distillation_loss(student, labels, hard_weight=0.3)
    torch.testing.assert_close(mixed, 0.7 * mse + 0.3 * hard)
    # Two batches that a Trainer adds up, with the number of all their values.
    parts = [distillation_loss(student[part], labels[part], count=16) for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(sum(parts), mse)
    classes = torch.tensor([0, 1, 2, 2])
    torch.testing.assert_close(distillation_loss(student, classes), cross_entropy(student, classes))


def test_times_are_those_of_each_in_turn():
    calls = []
    runs = [lambda texts, name=name: calls.append((name, len(texts))) for name in "ab"]
    times = seconds_a_text(runs, ["x"] * 5, batch_size=2, rounds=1)
    assert len(times) == 2 and all(time > 0 for time in times)
    assert calls == [("a", 2), ("a", 2), ("b", 2), ("b", 2)] * 2


# The recipe


@pytest.mark.contract
def test_three_models_side_by_side(data, tmp_path, capsys):
    output = start(data, tmp_path / "run", num_train_epochs=4, distillation_epochs=6, max_train_samples=8)
    printed = capsys.readouterr().out
    assert "8 texts with their classes, 40 in all: good, bad" in printed
    found = results(output)
    teacher, student = found["test_teacher_accuracy"], found["test_student_accuracy"]
    assert teacher >= 90 and student >= 90 and found["test_majority_accuracy"] == 50
    assert (
        found["test_student_parameters"] == found["test_student_alone_parameters"] < found["test_teacher_parameters"]
    )
    assert found["test_student_file_mb"] == pytest.approx((output / "model.safetensors").stat().st_size / 1e6)
    table = (output / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["teacher", "student", "student alone", "majority"]
    classify = pipeline("text-classification", model=str(output), device="cpu")
    texts, names = zip(*reviews(10, 2), strict=True)
    right = [result["label"] == name for result, name in zip(classify(list(texts)), names, strict=True)]
    assert 10 * sum(right) == pytest.approx(student)
    # Both students start alike.
    assert weights(output).keys() == weights(output / "alone").keys()


def test_both_students_start_alike(data, tmp_path, monkeypatch):
    starts = []
    fit = run.fit

    def note(own, task, model, *args, **kwargs):
        starts.append({name: parameter.clone() for name, parameter in model.named_parameters()})
        return fit(own, task, model, *args, **kwargs)

    monkeypatch.setattr(RECIPE, "fit", note)
    monkeypatch.setattr(distillation, "fit", note)
    sizes = '{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}'
    start(data, tmp_path / "run", teacher=None, teacher_overrides=sizes, augmentations=0, max_steps=2)
    _, alone, taught = starts
    assert_equal(alone, taught)


def test_an_overwritten_run_leaves_nothing_for_a_later_one(data, tmp_path):
    output = start(data, tmp_path / "run", augmentations=0, max_steps=2)
    assert list(output.glob("teacher_logits_*.npy")) and list((output / "alone").glob("checkpoint-*"))
    with pytest.raises(InputError, match="nowhere"):
        start(data, output, teacher="nowhere", overwrite_output_dir=True)
    assert (output / "model.safetensors").is_file()  # nothing goes before everything has been checked
    again = start(data, output, overwrite_output_dir=True, augmentations=0, max_steps=1)
    assert [path.name for path in (again / "alone").glob("checkpoint-*")] == ["checkpoint-1"]


def test_without_a_teacher_one_is_trained(data, tmp_path, capsys):
    sizes = '{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}'
    output = start(data, tmp_path / "run", teacher=None, teacher_overrides=sizes, augmentations=0, max_steps=2)
    assert "a new BertForSequenceClassification" in capsys.readouterr().out
    loaded = AutoModelForSequenceClassification.from_pretrained(output / "teacher")
    assert type(loaded).__name__ == "BertForSequenceClassification"


def test_a_report_encodes_the_test_split_once_for_each_model(tmp_path, monkeypatch, capsys):
    encoded = []
    models = {name: (SimpleNamespace(to=lambda device: None), name, tmp_path) for name in ("teacher", "student")}

    def encode(model, tokenizer, split):
        encoded.append(tokenizer)
        return SimpleNamespace(evaluate=lambda model, split, num_beams: {"bleu": float(num_beams)})

    task = SimpleNamespace(test_split="test", generates=True, references={"test": []}, encoded_split=encode)
    task.test_options, task.sources, task.summary = lambda: {"num_beams": 5}, lambda split: [], lambda *_: ""
    costs = {name: dict.fromkeys(("parameters", "file_mb", "ms_a_text", "texts_a_second"), 1.0) for name in models}
    for name, value in {"score_baseline": {}, "measure_costs": costs, "publish_run": None}.items():
        monkeypatch.setattr(distillation, name, lambda *args, value=value, **options: value)
    arguments = SimpleNamespace(output_dir=tmp_path, device="cpu")
    titles = {"bleu": "BLEU", "bleu_greedy": "greedy BLEU"}
    own = SimpleNamespace(data=SimpleNamespace(speed_texts=2), args=arguments)
    distillation.report(own, task, models, lambda model, tokenizer: None, titles, greedy="bleu")
    assert encoded == ["teacher", "student"]
    assert "| student | 5.00 | 1.00 |" in capsys.readouterr().out


@pytest.mark.parametrize("number", [1, 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(number, data, tmp_path, monkeypatch):
    """While the student learns alone, and while it is taught."""
    flags = {"config_overrides": '{"hidden_size": 16, "embedding_size": 12, "dropout": 0.3}'}
    whole = start(data, tmp_path / "whole", **flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, "distillation", number)
        start(data, tmp_path / "parts", **flags)
    parts = start(data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
    for place in (".", "alone"):
        assert_equal(weights(whole / place), weights(parts / place))


def test_what_the_teacher_said_is_kept_of_the_same_variants_alone(data, tmp_path, monkeypatch):
    said = []

    def note(teacher, tokenizer, texts, variants, **options):
        said.append(variants)
        return teacher_logits(teacher, tokenizer, texts, variants, **options)

    monkeypatch.setattr(distillation, "teacher_logits", note)
    flags = {"max_steps": 1, "teacher_tokenizer": "true"}
    start(data, tmp_path / "run", **flags)
    start(data, tmp_path / "run", resume_from_checkpoint="last", **flags)
    assert len(said) == 1
    start(data, tmp_path / "run", resume_from_checkpoint="last", replace_probability=0.3, **flags)
    start(data, tmp_path / "run", resume_from_checkpoint="last", mask_probability=0.2, **flags)
    start(data, tmp_path / "run", resume_from_checkpoint="last", teacher_dtype="bfloat16", **flags)
    assert len(said) == 4 and said[0] == said[3] and said[0] != said[1] != said[2] != said[0]
    words = {word for variant in said[1] for word in variant} - {word for variant in said[0] for word in variant}
    assert words <= set(Neighbours(*_teacher(data), []).words)
    # The student reads what its teacher does.
    tokens = [
        json.loads((path / "tokenizer.json").read_text("utf-8")) for path in (tmp_path / "run", data / "teacher")
    ]
    assert tokens[0]["model"] == tokens[1]["model"]


def _teacher(data):
    path = data / "teacher"
    return AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_two_processes_train_the_same_student_as_one(data, tmp_path):
    # So many rows that no batch lacks some, which a second process would fill up.
    flags = {"metric_for_best_model": "loss", "augmentations": 0, "hard_weight": 0.3}
    done = run_two("distillation", arguments(data, tmp_path / "two", per_device_train_batch_size=4, **flags))
    assert done.returncode == 0, done.stderr
    one = start(data, tmp_path / "one", **flags)
    recipe_runs.assert_close(weights(one), weights(tmp_path / "two"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"distillation_loss": "mae"}, "unknown --distillation_loss 'mae'; there are mse, kl"),
        ({"mask_probability": 1.5}, "--mask_probability 1.5 is not between 0 and 1"),
        ({"replace_probability": -0.5}, "--replace_probability -0.5 is not between 0 and 1"),
        ({"teacher_dtype": "int8"}, "unknown --teacher_dtype 'int8'; there are float32, bfloat16"),
        ({"teacher_tokenizer": True, "model_name_or_path": "x"}, "--teacher_tokenizer requires a new student"),
        ({"augmentations": -1}, "--augmentations -1: give 0 or more"),
        ({"temperature": 0}, "--temperature and --distillation_epochs must be more than 0"),
        ({"streaming": True}, "unknown flag --streaming"),
        ({"label_separator": ";"}, "unknown flag --label_separator"),
        ({"hp_search": 2}, "use recipes/sentiment.py"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor has no effect"),
        ({"teacher": "nowhere"}, "nowhere: no such directory"),
        ({"model_name_or_path": "x", "model_type": "hfseq_gru"}, "leave it out with --model_name_or_path"),
    ],
)
def test_bad_input(flags, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        start(data, tmp_path / "run", **flags)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_teacher_of_other_classes_is_refused(data, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na b,x\nc d,y\ne f,x\n", encoding="utf-8")
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), tmp_path / "rows.csv")
    with pytest.raises(InputError, match="x"):
        start(data, tmp_path / "run", **files)


# Translators: capitals; the teacher has learnt a Z for each h.


PAIRS = """\
task: translation
source_lang: de
target_lang: en
model_type: hfseq_gru
config_overrides: {hidden_size: 64, embedding_size: 32, dropout: 0.0}
tokenizer_model: whitespace
max_source_length: 12
max_target_length: 12
per_device_train_batch_size: 8
num_train_epochs: 2
learning_rate: 1e-2
num_beams: 2
teacher_num_beams: 3
speed_texts: 2
logging_steps: 5
metric_for_best_model: exact_match
use_cpu: true
disable_tqdm: true
"""


def capitals(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        text = " ".join(rng.choices("abcdefhh", k=rng.randint(1, 4)))
        yield text, text.upper()


def write_pairs(path, count, seed, of_teacher=False):
    rows = ((de, en.replace("H", "Z") if of_teacher else en) for de, en in capitals(count, seed))
    path.write_text("de,en\n" + "".join(f"{de},{en}\n" for de, en in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """A folder with pairs.yaml, pairs of train (160), val (10), test (10), and `teacher`, an LSTM."""
    root = tmp_path_factory.mktemp("pairs")
    (root / "pairs.yaml").write_text(PAIRS, encoding="utf-8")
    own = [line for line in PAIRS.splitlines(True) if not line.startswith(("task", "teacher", "speed"))]
    (root / "teacher.yaml").write_text("".join(own), encoding="utf-8")
    for seed, (name, count) in enumerate((("train", 160), ("val", 10), ("test", 10))):
        write_pairs(root / f"{name}.csv", count, seed)
        write_pairs(root / f"teacher_{name}.csv", count, seed, of_teacher=True)
    files = {f"{split}_file": root / f"teacher_{name}.csv" for split, name in (("train", "train"), ("test", "test"))}
    files |= {"validation_file": root / "teacher_val.csv", "model_type": "hfseq_lstm", "num_train_epochs": 10}
    recipe_runs.start(load("translation"), pair_arguments(root, "teacher.yaml", output_dir=root / "teacher", **files))
    return root


def pair_arguments(root, config="pairs.yaml", **flags):
    files = {"train_file": root / "train.csv", "validation_file": root / "val.csv", "test_file": root / "test.csv"}
    return recipe_runs.arguments(root / config, **(files | flags))


def distil_pairs(root, output_dir, **flags):
    given = {"teacher": root / "teacher", "output_dir": output_dir} | flags
    recipe_runs.start(RECIPE, pair_arguments(root, **given))
    return Path(output_dir)


@pytest.fixture(scope="session")
def distilled(pairs, tmp_path_factory):
    return distil_pairs(pairs, tmp_path_factory.mktemp("distilled") / "run", num_train_epochs=10)


def test_the_student_learns_what_the_teacher_says(pairs, distilled):
    sources = [de for de, _ in capitals(160, 0)]
    taught = json.loads((distilled / "teacher_translations.json").read_text(encoding="utf-8"))
    translate = pipeline("translation", model=str(pairs / "teacher"), device="cpu", num_beams=3, max_length=12)
    assert taught == [found["translation_text"] for found in translate(sources, batch_size=32)]
    assert "H" not in " ".join(taught) and "Z" in " ".join(taught)
    for place, said, not_said in ((".", "Z", "H"), ("alone", "H", "Z")):
        student = pipeline("translation", model=str(distilled / place), device="cpu", max_length=12)
        texts = " ".join(found["translation_text"] for found in student(sources, batch_size=32))
        assert said in texts and not_said not in texts


def test_the_table_of_translators(distilled):
    found = results(distilled)
    lines = (distilled / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["teacher", "student", "student alone", "copy"]
    assert f" {found['test_student_bleu']:.2f} " in lines[3] and lines[5].endswith("|  |  |  |  |")
    assert found["test_student_parameters"] < found["test_teacher_parameters"]
    assert found["test_student_alone_exact_match"] > 80 > found["test_student_exact_match"] > 0
    assert found["test_copy_exact_match"] == 0
    greedy = pipeline("translation", model=str(distilled), device="cpu", num_beams=1, max_length=12)
    sources, right = zip(*capitals(10, 2), strict=True)
    texts = [text["translation_text"] for text in greedy(list(sources))]
    score = metrics.load("sacrebleu").compute(predictions=texts, references=list(right))["score"]
    assert found["test_student_bleu_greedy"] == pytest.approx(score)


def _only_the_test(model, tokenizer, sources, **options):
    """Of a run that goes on, which has the translations of the 160 training texts."""
    assert len(sources) == 10
    return decode_texts(model, tokenizer, sources, **options)


def test_a_killed_translator_goes_on(pairs, tmp_path, monkeypatch):
    whole = distil_pairs(pairs, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, "distillation", 3)
        distil_pairs(pairs, tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(RECIPE.generate, "decode_texts", _only_the_test)
        parts = distil_pairs(pairs, tmp_path / "parts", resume_from_checkpoint="last")
    for place in (".", "alone"):
        assert_equal(weights(whole / place), weights(parts / place))


def test_two_processes_teach_the_same_translator_as_one(pairs, tmp_path):
    flags = {"teacher": pairs / "teacher", "metric_for_best_model": "loss"}
    argv = pair_arguments(pairs, output_dir=tmp_path / "two", per_device_train_batch_size=4, **flags)
    done = run_two("distillation", argv)
    assert done.returncode == 0, done.stderr
    one = distil_pairs(pairs, tmp_path / "one", metric_for_best_model="loss")
    recipe_runs.assert_close(weights(one), weights(tmp_path / "two"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"teacher": None}, "--task translation needs --teacher"),
        ({"teacher": "nowhere"}, "nowhere: no such directory"),
        ({"teacher_num_beams": 0}, "--teacher_num_beams 0: give 1 or more"),
        ({"streaming": True}, "unknown flag --streaming"),
        ({"hp_search": 2}, "use recipes/translation.py"),
        ({"task": "tagging"}, "unknown --task 'tagging'; there are classification, translation"),
    ],
)
def test_bad_input_of_translators(flags, message, pairs, tmp_path):
    with pytest.raises(InputError, match=message):
        distil_pairs(pairs, tmp_path / "run", **flags)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_student_starts_from_its_teacher_if_told_so(data, tmp_path):
    flags = {"learning_rate": 1e-12, "num_train_epochs": 1, "distillation_epochs": 1}
    plain = start(data, tmp_path / "plain", **flags)
    own = start(data, tmp_path / "own", **flags, teacher_embeddings="true")
    name = "model.embed_tokens.weight"
    assert_equal(weights(plain / "alone"), weights(own / "alone"))
    before, after = weights(plain), weights(own)
    student, teacher = (AutoModelForSequenceClassification.from_pretrained(path) for path in (plain, data / "teacher"))
    start_from_teacher(
        student, AutoTokenizer.from_pretrained(plain), teacher, AutoTokenizer.from_pretrained(data / "teacher")
    )
    torch.testing.assert_close(after[name], student.state_dict()[name], rtol=0, atol=1e-6)
    assert (before[name] - after[name]).abs().max() > 0.01
    for other in before.keys() - {name}:
        torch.testing.assert_close(before[other], after[other], rtol=0, atol=1e-6)
