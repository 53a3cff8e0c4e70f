"""One layer of tasks: what recipes and drivers must not do each in their own way."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from recipe_runs import load, results, start, write_reviews

from hfseq import LstmConfig, LstmForConditionalGeneration, metrics
from hfseq.inference.benchmark import text_translator
from hfseq.inference.generate import decode_texts
from hfseq.tasks import base, classification
from hfseq.tasks.arguments import SummarizationArguments, TranslationArguments
from hfseq.tasks.seq2seq import Seq2Seq, Summarization, Translation
from hfseq.tokenization import train_tokenizer
from hfseq.training import run as steps
from hfseq.training import search as searching
from hfseq.training.finetuning import TASKS, TaskArguments

FILES = {"train_file": "train.csv", "validation_file": "val.csv", "test_file": "test.csv"}
SMALL = {"config_overrides": '{"hidden_size": 8, "embedding_size": 8}', "tokenizer_model": "word", "max_steps": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("reviews")
    write_reviews(root)
    return root


@pytest.fixture
def tokenizer():
    return train_tokenizer(["a b c d e f"] * 3, model="word")


def flags(data, output_dir, **more):
    given = {name: data / value for name, value in FILES.items()} | SMALL | {"output_dir": output_dir} | more
    given |= {"use_cpu": "true", "disable_tqdm": "true"}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


@pytest.mark.parametrize(
    ("task", "data", "written"),
    [
        (Seq2Seq, TaskArguments(task="seq2seq"), False),
        (Summarization, SummarizationArguments(), False),
        (Translation, TranslationArguments(), True),
    ],
)
def test_the_unknown_token_is_never_generated_in_a_summary(task, data, written, tokenizer):
    """Of fine-tuning as of the recipe of summarization."""
    model = LstmForConditionalGeneration(LstmConfig(vocab_size=len(tokenizer), hidden_size=4))
    task(data, SimpleNamespace(label_smoothing_factor=0)).configure(model, tokenizer)
    assert (tokenizer.unk_token_id in (model.generation_config.suppress_tokens or ())) is not written


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_trial_of_a_search_has_its_generation_and_its_loss(smoothing, tokenizer, monkeypatch):
    """A trial may turn coverage on, whose loss is the model's own."""
    args = SimpleNamespace(label_smoothing_factor=smoothing, hp_search=2, resume_from_checkpoint=None)
    task = TASKS["seq2seq"](TaskArguments(task="seq2seq", num_beams=3), args)
    run = steps.Run(None, None, args, (), (), log=lambda text: None)
    trainer, seen = SimpleNamespace(compute_loss_func=None), []

    def trials(trainer, make, space, **options):
        for coverage in (False, True):
            model = make({"coverage": coverage})
            seen.append((model.generation_config.num_beams, trainer.compute_loss_func == task.training_loss))

    def make_model(overrides):
        config = LstmConfig(vocab_size=len(tokenizer), hidden_size=4, attention_type="additive", **overrides)
        return LstmForConditionalGeneration(config), tokenizer

    monkeypatch.setattr(searching, "search", trials)
    monkeypatch.setattr(searching, "report_search", lambda *_: "")
    steps.search(run, task, trainer, make_model)
    assert seen == [(3, True), (3, bool(smoothing))]


@pytest.mark.parametrize("driver", ["sentiment", "sentiment_accelerate", "finetuning"])
def test_the_learning_curve_shows_the_metric_of_the_run(driver, data, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(base, "plot_learning_curve", lambda log, path, metric: shown.append(metric))
    own = {"model_type": "hfseq_lstm"} if driver == "finetuning" else {}
    start(load(driver), flags(data, tmp_path / "run", metric_for_best_model="f1", **own))
    assert shown == ["f1"]


def test_a_comparison_weights_classes(data, tmp_path, monkeypatch):
    seen = []
    original = classification.classification_loss

    def loss(*args, **options):
        seen.append(options["weights"])
        return original(*args, **options)

    monkeypatch.setattr(classification, "classification_loss", loss)
    own = {"models": '{"A": {"model_type": "hfseq_lstm"}}', "num_seeds": 1, "speed_texts": 2}
    start(load("comparison"), flags(data, tmp_path / "run", class_weights='{"good": 3}', **own))
    assert seen and all(sorted(weights.tolist()) == [1.0, 3.0] for weights in seen)
    assert "test_A_accuracy" in results(tmp_path / "run")


def test_the_timed_translator_copies_unknown_words(tokenizer):
    torch.manual_seed(2)
    fields = {"pointer_generator": True, "unk_token_id": tokenizer.unk_token_id, "initializer_range": 1.0}
    model = LstmForConditionalGeneration(LstmConfig(vocab_size=len(tokenizer), hidden_size=8, **fields)).eval()
    torch.nn.init.zeros_(model.pointer.gate.weight)
    torch.nn.init.constant_(model.pointer.gate.bias, -9.0)  # copies
    texts = ["zebra quagga okapi", "quagga okapi"]
    options = {"num_beams": 1, "max_length": 5}
    timed = text_translator(model, tokenizer, max_source_length=9, **options)(texts)
    nbest, _ = decode_texts(model, tokenizer, texts, batch_size=2, max_source_length=9, **options)
    assert timed == [best[0].text for best in nbest]
    assert any(word in text for text in timed for word in ("zebra", "quagga"))


def test_the_signature_of_a_translation_is_that_of_its_score():
    task = Translation(TranslationArguments(), SimpleNamespace())
    task.use({"test": datasets.Dataset.from_dict({"en": ["a", "b"], "de": ["x y", "z"]})}, train=False)
    assert task.signatures == {"bleu": metrics.bleu(["x", "y z"], task.references["test"])["signature"]}
    assert task.languages == ("en", "de")
