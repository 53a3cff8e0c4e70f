"""The translation recipes, both drivers, run end to end on a few made-up pairs."""

import json
import random
import shutil
from pathlib import Path

import pytest
import recipe_runs
import torch
from recipe_runs import (
    Killed,
    assert_close,
    assert_equal,
    in_two_processes,
    kill_after_checkpoint,
    load,
    results,
    run,
    run_two,
    weights,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertModel,
    T5Config,
    TrainerCallback,
    pipeline,
)

from hfseq import LstmConfig, LstmForCausalLM
from hfseq.errors import InputError
from hfseq.tasks import seq2seq
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import ModelArguments
from hfseq.training.checkpoints import MANIFEST, last_complete_checkpoint
from hfseq.training.loading import load_model
from hfseq.training.trainer import GenerationTrainer

TRAINER, ACCELERATE = DRIVERS = ("translation", "translation_accelerate")
CONFIG = """\
source_lang: de
target_lang: en
config_overrides: {hidden_size: 24, embedding_size: 12, dropout: 0.0}
tokenizer_model: word
num_train_epochs: 2
learning_rate: 1e-2
label_smoothing_factor: 0.1
max_target_length: 12
num_beams: 2
logging_steps: 2
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
"""
COLOURS = {"rot": "red", "blau": "blue", "grün": "green", "gelb": "yellow"}
THINGS = {"Hund": "dog", "Haus": "house", "Baum": "tree", "Vogel": "bird"}


RECIPES = {driver: load(driver) for driver in DRIVERS}


def pairs(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        colour, thing, number = rng.choice(list(COLOURS)), rng.choice(list(THINGS)), rng.randint(1, 3)
        yield (
            f"{' und '.join([thing] * number)} ist {colour}",
            f"{' and '.join([THINGS[thing]] * number)} is {COLOURS[colour]}",
        )


def write_pairs(prefix, rows):
    for column, texts in zip(("de", "en"), zip(*rows, strict=True), strict=True):
        Path(f"{prefix}.{column}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return str(prefix)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with config.yaml, and the pairs train (32), val (8), test (6), long (400)."""
    root = tmp_path_factory.mktemp("data")
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for seed, (name, count) in enumerate((("train", 32), ("val", 8), ("test", 6), ("long", 400))):
        write_pairs(root / name, list(pairs(count, seed)))
    return root


def arguments(data, output_dir, **flags):
    """Config and flags; a flag that is None is left out."""
    flags = {
        "train_file": data / "train",
        "validation_file": data / "val",
        "test_file": data / "test",
        "output_dir": output_dir,
    } | flags
    return recipe_runs.arguments(data / "config.yaml", **flags)


def start(driver, data, output_dir, **flags):
    recipe_runs.start(RECIPES[driver], arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session", params=DRIVERS)
def trained(request, data, tmp_path_factory):
    flags = {"train_file": data / "long", "num_train_epochs": 1, "max_tokens": 80}
    return start(request.param, data, tmp_path_factory.mktemp("runs") / request.param, **flags)


# What a run leaves


def test_files_of_a_run(trained):
    for name in ("learning_curve.png", "alignment.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert len((trained / "predictions.txt").read_text(encoding="utf-8").splitlines()) == 6
    samples = (trained / "samples.txt").read_text(encoding="utf-8")
    assert samples.count("source: ") == samples.count("reference: ") == samples.count("prediction: ") == 6
    found = results(trained)
    for name in ("bleu", "chrf", "exact_match"):
        assert 0 <= found[f"test_{name}"] <= 100
        assert 0 <= found[f"test_copy_{name}"] <= 100
    assert last_complete_checkpoint(trained) is not None


def test_the_model_loads_and_translates(trained):
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    assert type(model).__name__ == "LstmForConditionalGeneration"
    assert model.generation_config.num_beams == 2
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert tokenizer.decode(tokenizer("Hund ist rot")["input_ids"], skip_special_tokens=True) == "Hund ist rot"
    translate = pipeline("translation", model=str(trained), device="cpu")
    translations = translate([source for source, _ in pairs(6, 2)])
    # The pipeline gives what the run's final test gave.
    texts = [result["translation_text"].strip() for result in translations]
    assert texts == (trained / "predictions.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("text", ["", "%§&", "Hund und " * 400 + "Haus ist rot"], ids=["empty", "unknown", "long"])
def test_odd_sources_translate_to_something(trained, text):
    translate = pipeline("translation", model=str(trained), device="cpu")
    for beams in (1, 3):
        [result] = translate(text, num_beams=beams)
        assert isinstance(result["translation_text"], str)
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    ids = AutoTokenizer.from_pretrained(trained)(text, return_tensors="pt")
    assert model.generate(**ids).shape[0] == 1
    together = translate([text, "Hund ist rot"], batch_size=2)
    alone = translate(["Hund ist rot"])
    assert together[1] == alone[0]


def test_it_learns(data, tmp_path):
    # That the other driver learns the same is compared below.
    flags = {
        "config_overrides": '{"hidden_size": 64, "embedding_size": 32, "dropout": 0.0}',
        "train_file": data / "long",
        "label_smoothing_factor": 0,
        "metric_for_best_model": "exact_match",
    }
    found = results(start(TRAINER, data, tmp_path / "out", **flags))
    assert found["test_bleu"] > 50 > 10 > found["test_copy_bleu"]


# How it is told


@pytest.mark.parametrize("driver", DRIVERS)
def test_flags_override_the_config(driver, data, tmp_path, capsys):
    overrides = '{"hidden_size": 16, "embedding_size": 8, "attention_type": "additive"}'
    flags = {"max_steps": 1, "model_type": "hfseq_gru", "config_overrides": overrides, "num_beams": 3}
    output = start(driver, data, tmp_path / "out", **flags)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["hidden_size"], config["attention_type"]) == ("hfseq_gru", 16, "additive")
    printed = capsys.readouterr().out
    assert "1 process(es), 4 batches per epoch" in printed
    assert "32 train, 8 validation, 6 test pairs de → en" in printed
    assert "test: 6 pairs, beam 3" in printed


@pytest.mark.parametrize("driver", DRIVERS)
def test_without_validation_and_test_files(driver, data, tmp_path, caplog, capsys):
    output = start(driver, data, tmp_path / "out", validation_file=None, test_file=None, max_steps=1)
    assert "1 of 32 training rows are held out" in caplog.text
    assert "validation: 1 pairs" in capsys.readouterr().out
    assert "validation_bleu" in results(output)


@pytest.mark.parametrize("driver", DRIVERS)
def test_empty_lines_are_dropped_and_counted_once(driver, data, tmp_path, caplog, capsys):
    rows = list(pairs(10, 0))
    rows[3], rows[7] = ("", "dog is red"), ("Hund ist rot", "  ")
    prefix = write_pairs(tmp_path / "gaps", rows)
    start(driver, data, tmp_path / "out", train_file=prefix, max_steps=1)
    assert [record.message for record in caplog.records if "empty" in record.message] == [
        f"{prefix}: 2 empty rows dropped of 10: 4, 8"
    ]
    assert "8 train, " in capsys.readouterr().out


@pytest.mark.parametrize("driver", DRIVERS)
def test_rows_that_are_cut_are_counted(driver, data, tmp_path, capsys):
    rows = [("Hund " * 9, "dog"), ("Hund", "dog " * 9), ("Hund " * 9, "dog " * 9), ("Hund", "dog"), ("rot", "red")]
    prefix = write_pairs(tmp_path / "long", rows)
    flags = {"max_source_length": 6, "max_target_length": 6, "max_steps": 1}
    start(driver, data, tmp_path / "out", train_file=prefix, **flags)
    printed = capsys.readouterr().out
    assert "train: 2 of 5 sources are longer than --max_source_length 6 and were truncated" in printed
    assert "train: 2 of 5 targets are longer than --max_target_length 6 and were truncated" in printed


def pretrained(kind, directory):
    tokenizer = train_tokenizer((text for pair in pairs(32, 0) for text in pair), model="word")
    common = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "t5":
        config = T5Config(
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            **common,
        )
    elif kind == "bart":
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
        config = BartConfig(
            d_model=16, dropout=0.0, decoder_start_token_id=2, forced_eos_token_id=None, **sizes, **heads, **common
        )
    else:
        config = LstmConfig(hidden_size=16, embedding_size=8, dropout=0.0, **common)
    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["t5", "bart", "hfseq_lstm"])
def test_from_a_checkpoint(kind, data, tmp_path, capsys, caplog):
    model = pretrained(kind, tmp_path / "start")
    flags = {
        "model_name_or_path": model,
        "config_overrides": "{}",
        "weight_decay": 0.1,
        "metric_for_best_model": "loss",
        "source_prefix": "Hund " if kind == "t5" else "",
    }
    outputs = [start(driver, data, tmp_path / driver, **flags) for driver in DRIVERS]
    for output in outputs:
        assert any(not torch.equal(weights(model)[name], tensor) for name, tensor in weights(output).items())
        assert (output / "alignment.png").exists()
        assert pipeline("translation", model=str(output), device="cpu")("Hund ist rot")
    # The same optimizer groups too: norms and biases without decay.
    assert_close(*map(weights, outputs), tolerance=1e-4)
    # A source of more tokens than a Transformer has positions is cut for the picture, too.
    if kind == "bart":
        long = write_pairs(tmp_path / "longer", [("Hund " * 80, "dog")] * 2)
        flags |= {"test_file": long, "max_source_length": 60, "max_steps": 1}
        for driver in DRIVERS:
            assert (start(driver, data, tmp_path / f"{driver}_long", **flags) / "alignment.png").exists()
    # Tied weights are not missing.
    assert "missing keys" not in caplog.text + capsys.readouterr().err


def test_do_predict_translates_the_test_file_in_its_order(data, trained, tmp_path):
    flags = {"train_file": None, "validation_file": None, "model_name_or_path": trained, "config_overrides": "{}"}
    argv = arguments(data, tmp_path / "predict", **flags) + ["--do_predict"]
    # By length, the Trainer would return the rows in another order.
    argv += ["--train_sampling_strategy", "group_by_length", "--per_device_eval_batch_size", "2"]
    recipe_runs.start(RECIPES[TRAINER], argv)
    predictions = (tmp_path / "predict" / "predictions.txt").read_text(encoding="utf-8")
    assert predictions == (trained / "predictions.txt").read_text(encoding="utf-8")
    assert len(set(predictions.splitlines())) > 1
    assert not (tmp_path / "predict" / "model.safetensors").exists()
    assert results(tmp_path / "predict")["test_bleu"] == pytest.approx(results(trained)["test_bleu"])


def test_do_train_alone_leaves_out_the_test(data, tmp_path):
    RECIPES[TRAINER].main([*arguments(data, tmp_path / "out", max_steps=1), "--do_train", "--do_eval"])
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "predictions.txt").exists()


@pytest.mark.parametrize("driver", DRIVERS)
def test_early_stopping(driver, data, tmp_path, monkeypatch):
    # The score falls from the first epoch on, so patience 2 ends the run after the third of nine.
    falling = iter(range(90, 0, -10))
    validation = [target for _, target in pairs(8, 1)]

    def score(predictions, references):
        value = next(falling) if list(references) == validation else 0
        return dict.fromkeys(("bleu", "chrf", "exact_match"), float(value))

    monkeypatch.setattr(seq2seq, "score_translations", score)
    flags = {"num_train_epochs": 9, "early_stopping_patience": 2, "save_total_limit": 2}
    output = start(driver, data, tmp_path / "out", **flags)
    # Three evaluations.
    assert next(falling) == 60
    # Four steps an epoch; the first was the best, stays, and is the result.
    if driver == TRAINER:
        best = weights(output / "checkpoint-4")
    else:
        best = torch.load(output / "checkpoint-4" / "pytorch_model.bin")
    for name, tensor in weights(output).items():
        assert torch.equal(tensor, best[name])
    # In another place, with more patience, it goes on for two evaluations; the best one is beside the checkpoint.
    moved = output.rename(tmp_path / "moved")
    flags |= {"early_stopping_patience": 4, "resume_from_checkpoint": moved / "checkpoint-12"}
    again = start(driver, data, tmp_path / "again", **flags)
    assert next(falling) == 30
    assert_equal(weights(again), {name: best[name] for name in weights(again)})
    # What goes on from there knows where the best one was.
    flags["resume_from_checkpoint"] = "last"
    start(driver, data, again, **flags)
    assert_equal(weights(again), {name: best[name] for name in weights(again)})
    shutil.rmtree(moved / "checkpoint-4")
    with pytest.raises(InputError, match="the best checkpoint of its run, checkpoint-4, is not beside it"):
        start(driver, data, again, **flags)


# Resuming


@pytest.mark.parametrize("max_tokens", [None, 40], ids=["rows", "tokens"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_resume_is_exact(driver, max_tokens, data, tmp_path, monkeypatch):
    flags = {
        "num_train_epochs": 3,
        "max_tokens": max_tokens,
        "metric_for_best_model": "loss",
        # Random numbers, too, go on where they were.
        "config_overrides": '{"hidden_size": 24, "embedding_size": 12, "dropout": 0.3}',
    }
    whole = start(driver, data, tmp_path / "whole", **flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, driver, 1)
        start(driver, data, tmp_path / "parts", **flags)
    assert last_complete_checkpoint(tmp_path / "parts") is not None
    parts = start(driver, data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
    assert_equal(weights(whole), weights(parts))
    assert (whole / "predictions.txt").read_bytes() == (parts / "predictions.txt").read_bytes()
    if max_tokens is None:
        # Resumed once more, the finished run says the same.
        again = start(driver, data, tmp_path / "parts", resume_from_checkpoint="last", **flags)
        assert_equal(weights(whole), weights(again))


@pytest.mark.parametrize("driver", DRIVERS)
def test_output_directory(driver, data, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    (output / "checkpoint-999").mkdir()
    with pytest.raises(InputError, match=r"--output_dir .* is not empty; .*--overwrite_output_dir"):
        start(driver, data, output)
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-999", "notes.txt"]
    start(driver, data, output, overwrite_output_dir=True, max_steps=1)
    assert (output / "notes.txt").read_text() == "mine"
    assert not (output / "checkpoint-999").exists()


@pytest.mark.parametrize("driver", DRIVERS)
def test_resume_without_a_checkpoint(driver, data, tmp_path):
    # Killed before its first checkpoint: from the beginning.
    start(driver, data, tmp_path / "out", resume_from_checkpoint="last", max_steps=1)
    with pytest.raises(InputError, match=f"not a complete checkpoint.*{MANIFEST}"):
        start(driver, data, tmp_path / "new", resume_from_checkpoint=tmp_path / "nowhere")
    assert not (tmp_path / "new").exists()


# The drivers against each other


@pytest.mark.parametrize(
    "flags",
    [
        {"max_tokens": 60, "weight_decay": 0.1, "warmup_steps": 3, "lr_scheduler_type": "cosine"},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.05, "data_seed": 5},
        {"label_smoothing_factor": 0.0, "max_grad_norm": 0, "adam_beta2": 0.9, "max_steps": 5, "seed": 7},
        {"model_type": "hfseq_rnn", "logging_steps": 0.3, "bf16": True},
    ],
    ids=["tokens", "accumulation", "max_steps", "bf16"],
)
def test_the_drivers_agree(flags, data, tmp_path):
    flags |= {"metric_for_best_model": "loss"}
    logs = {}

    class Log(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            logs[TRAINER] = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]

    with pytest.MonkeyPatch.context() as patch:
        original = GenerationTrainer.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.add_callback(Log())

        patch.setattr(GenerationTrainer, "__init__", init)
        one = start(TRAINER, data, tmp_path / TRAINER, **flags)
    other = start(ACCELERATE, data, tmp_path / ACCELERATE, **flags)
    state = json.loads((Path(last_complete_checkpoint(other)) / "loop_state.json").read_text(encoding="utf-8"))
    logs[ACCELERATE] = [(entry["step"], entry["loss"]) for entry in state["log"] if "loss" in entry]
    assert len(logs[TRAINER]) >= 2
    assert [step for step, _ in logs[TRAINER]] == [step for step, _ in logs[ACCELERATE]]
    tolerance = 2e-2 if "bf16" in flags else 1e-5
    for (_, first), (_, second) in zip(logs[TRAINER], logs[ACCELERATE], strict=True):
        assert first == pytest.approx(second, abs=1e-3)
    assert_close(weights(one), weights(other), tolerance)
    for name in ("bleu", "chrf", "exact_match"):
        assert results(one)[f"test_{name}"] == pytest.approx(results(other)[f"test_{name}"])


@pytest.mark.parametrize("driver", DRIVERS)
def test_two_processes_train_the_same_model_as_one(driver, data, tmp_path):
    flags = {"metric_for_best_model": "loss", "num_train_epochs": 3}
    argv = arguments(data, tmp_path / "two", per_device_train_batch_size=4, **flags)
    done = run_two(driver, argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es), 4 batches per epoch") == 1
    assert done.stdout.count("test: 6 pairs") == done.stdout.count("pairs de → en") == 1
    one = start(driver, data, tmp_path / "one", per_device_train_batch_size=8, **flags)
    assert_close(weights(one), weights(tmp_path / "two"))
    assert (one / "predictions.txt").read_bytes() == (tmp_path / "two" / "predictions.txt").read_bytes()


END_OF_A_RUN = """
import weakref
from sys import argv
from torch import distributed, nn
from hfseq.training.accelerate_loop import start_accelerator
from hfseq.training.arguments import RecipeArguments

accelerator = start_accelerator(RecipeArguments(output_dir=argv[1], use_cpu=True, report_to=[]))
group = weakref.ref(distributed.group.WORLD)
model = accelerator.prepare(nn.Linear(2, 2))
accelerator.end_training()
assert not distributed.is_initialized()
del accelerator, model
assert group() is not None
"""


def test_a_wrapped_model_does_not_hang_at_the_end_of_a_run(tmp_path):
    """It would, now and then, if its destructor were that of the process group, too."""
    done = in_two_processes("-c", END_OF_A_RUN, tmp_path)
    assert done.returncode == 0, done.stderr


# Bad input


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def short_of_one_line(tmp_path):
    prefix = write_pairs(tmp_path / "odd", list(pairs(5, 0)))
    write(tmp_path / "odd.en", "a\nb\nc\nd\n")
    return {"train_file": prefix}


def not_utf8(tmp_path):
    prefix = write_pairs(tmp_path / "latin", list(pairs(5, 0)))
    write(tmp_path / "latin.de", b"gut\nsch\xf6n\n" + b"gut\n" * 3)
    return {"train_file": prefix}


def empty(tmp_path):
    return {"train_file": write_pairs(tmp_path / "empty", [("", ""), ("", "")])}


def not_a_translator(tmp_path):
    BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    return {"model_name_or_path": tmp_path / "bert", "config_overrides": "{}"}


def a_language_model(tmp_path):
    LstmForCausalLM(LstmConfig(vocab_size=9, hidden_size=8)).save_pretrained(tmp_path / "lm")
    return {"model_name_or_path": tmp_path / "lm", "config_overrides": "{}"}


def without_weights(tmp_path):
    pretrained("hfseq_lstm", tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    return {"model_name_or_path": tmp_path / "half", "config_overrides": "{}"}


def torn_weights(tmp_path):
    path = pretrained("hfseq_lstm", tmp_path / "torn") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return {"model_name_or_path": tmp_path / "torn", "config_overrides": "{}"}


def another_width(tmp_path):
    return {
        "model_name_or_path": pretrained("hfseq_lstm", tmp_path / "other"),
        "config_overrides": '{"hidden_size": 32}',
    }


def override(**fields):
    return lambda _: {"config_overrides": json.dumps(fields)}


def nothing(tmp_path):
    return {"train_file": None, "validation_file": None, "test_file": None}


BAD = {
    "missing file": (
        lambda _: {"train_file": "nowhere/train"},
        r"--train_file nowhere/train: no files nowhere/train\.de",
    ),
    "missing csv": (lambda _: {"validation_file": "nowhere.csv"}, r"nowhere\.csv: no such file \(--validation_file\)"),
    "unequal": (short_of_one_line, r"odd\.de has 5 lines, .*odd\.en has 4 lines"),
    "not UTF-8": (not_utf8, r"latin\.de:2: not UTF-8 \(byte 0xf6\)"),
    "no column": (
        lambda p: {"train_file": write(p / "a.csv", "de,fr\nja,oui\n")},
        r"a\.csv: no column 'en'; there are 'de', 'fr'",
    ),
    "short row": (lambda p: {"train_file": write(p / "a.tsv", "de\ten\nja\tyes\nnein\n")}, r"a\.tsv:3: 1 fields"),
    "empty": (empty, r"--train_file .*empty: none of 2 rows has text"),
    "language": (lambda p: nothing(p) | {"target_lang": "xx"}, "unknown language 'xx'"),
    "only test": (
        lambda _: {"train_file": None, "validation_file": None},
        "no training data: .* only test.*--train_file",
    ),
    "model_type": (
        lambda _: {"model_type": "lstm"},
        "unknown --model_type 'lstm'; hfseq has hfseq_cnn, hfseq_gru, hfseq_lstm, hfseq_mingru, hfseq_minlstm, "
        "hfseq_qrnn, hfseq_rnn, hfseq_ssru",
    ),
    "encoder": (lambda _: {"model_type": "bert"}, "--model_type bert has no sequence-to-sequence model"),
    "size 0": (override(hidden_size=0), "--config_overrides: .*hidden_size=0"),
    "odd size": (
        override(hidden_size=33),
        "--config_overrides: .*hidden_size=33 must be even",
    ),
    "type": (
        override(hidden_size="big"),
        "--config_overrides: .*hidden_size.* expected int",
    ),
    "dropout": (override(dropout=2), "--config_overrides: .*dropout=2"),
    "choice": (
        override(attention_type="cosine"),
        "--config_overrides: .*'additive', 'dot'",
    ),
    "field": (
        override(hiden_size=8),
        "--config_overrides: LstmConfig has no field 'hiden_size'; did you mean hidden_size",
    ),
    "vocabulary": (override(vocab_size=8), "vocab_size is determined by the tokenizer"),
    "not JSON": (lambda _: {"config_overrides": "hidden_size=8"}, "--config_overrides.*not a mapping"),
    "max_tokens": (lambda _: {"max_tokens": 3}, r"--max_tokens 3 is too small: row \d+ .* has \d+ tokens"),
    "tokenizer": (lambda _: {"tokenizer_model": "letters"}, "letters.*unigram, bpe"),
    "vocab_size": (lambda _: {"tokenizer_model": "bpe", "vocab_size": 5}, "a vocabulary of 5 is too small"),
    "flag": (lambda _: {"learning_rat": 1}, "unknown flag --learning_rat; did you mean --learning_rate"),
    "value": (lambda _: {"learning_rate": "fast"}, "--learning_rate.*fast"),
    "metric": (lambda _: {"metric_for_best_model": "rouge"}, "--metric_for_best_model 'rouge'; there are bleu"),
    "epochs": (lambda _: {"num_train_epochs": 0}, "--num_train_epochs 0.* must be above 0"),
    "no path": (
        lambda _: {"model_name_or_path": "/nowhere/at/all"},
        "--model_name_or_path /nowhere/at/all: no such dir",
    ),
    "no hub name": (
        lambda _: {"model_name_or_path": "no-such-model"},
        "--model_name_or_path no-such-model: no such dir",
    ),
    "not seq2seq": (not_a_translator, "BertModel is not a sequence-to-sequence model"),
    "language model": (a_language_model, "LstmForCausalLM is not a sequence-to-sequence model"),
    "no weights": (without_weights, r"--model_name_or_path .*half: .*model\.safetensors"),
    "torn weights": (torn_weights, "--model_name_or_path .*torn: "),
    "another width": (another_width, "--model_name_or_path .*other: "),
    "two models": (
        lambda _: {"model_name_or_path": "a", "model_type": "hfseq_lstm"},
        "--model_type is for a new model",
    ),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input(driver, case, data, tmp_path):
    make, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        start(driver, data, tmp_path / "out", **make(tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate: [1\n", "bad.yaml: not YAML"),
        ("seed: 1\nlerning_rate: 1\n", "bad.yaml, line 2: unknown key 'lerning_rate'; did you mean learning_rate"),
        ("num_beams: many\n", "bad.yaml, line 1: num_beams: .*many"),
    ],
    ids=["syntax", "key", "value"],
)
def test_bad_yaml(driver, content, message, tmp_path):
    config = write(tmp_path / "bad.yaml", content)
    with pytest.raises(InputError, match=message):
        RECIPES[driver].main([str(config), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim", "adafactor"], "--optim is not supported by the Accelerate loop; use translation.py"),
        (["--eval_strategy", "steps", "--save_strategy", "steps"], "--eval_strategy .*which fixes it to epoch"),
        (["--do_predict"], "--do_predict is not supported"),
        (["--torch_compile"], "--torch_compile is not supported"),
        (["--fp16"], "--fp16 is not supported"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_accelerate_loop_refuses_what_it_does_not_do(flags, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        RECIPES[ACCELERATE].main([*arguments(data, tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_the_accelerate_loop_takes_what_it_always_does(data, tmp_path):
    start(ACCELERATE, data, tmp_path / "out", eval_strategy="epoch", predict_with_generate=True, max_steps=1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--do_predict"], "--do_predict without --do_train requires a trained model: give --model_name_or_path"),
        (["--do_eval"], "--do_eval requires --do_train"),
        (["--predict_with_generate", "false"], "--predict_with_generate false"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_steps_that_cannot_be(flags, message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        RECIPES[TRAINER].main([*arguments(data, tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_do_predict_needs_a_test_split(data, trained, tmp_path):
    flags = arguments(data, tmp_path / "out", test_file=None, model_name_or_path=trained)
    with pytest.raises(InputError, match="--do_predict .*--test_file"):
        RECIPES[TRAINER].main([*flags, "--do_predict"])


def test_a_prediction_only_model_needs_no_training_rows():
    with pytest.raises(InputError, match="use --model_name_or_path for a trained one"):
        load_model(AutoModelForSeq2SeqLM, ModelArguments(), None, default_type="hfseq_lstm")


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_loss_that_is_no_number_stops_the_run(driver, data, tmp_path):
    with pytest.raises(InputError, match="NaN/inf loss at step 2: lower --learning_rate"):
        start(driver, data, tmp_path / "out", learning_rate=1e30, warmup_steps=0, max_grad_norm=0)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mistake_is_one_line_and_exit_code_1(driver, data, tmp_path):
    argv = arguments(data, tmp_path / "out", train_file=write(tmp_path / "a.csv", "de,fr\nja,oui\n"))
    done = run(driver, argv)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "no column 'en'; there are 'de', 'fr'" in done.stderr
    assert not (tmp_path / "out").exists()
