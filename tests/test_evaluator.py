"""`evaluate.evaluator` with models and metrics of hfseq scores what pipeline and metric score by hand."""

import datasets
import pytest
import torch
from evaluate import combine, evaluator
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hfseq import GruConfig, LstmConfig, metrics
from hfseq.tokenization import train_tokenizer

TEXTS = ["the plot is fine", "a dull cast", "the song is great", "the room is poor", "a fine song", "the dull plot"]
CLASSES = ["good", "bad", "good", "bad", "good", "bad"]
NUMBERS = {"bad": 0, "good": 1}
NAMES = {"id2label": {0: "bad", 1: "good"}, "label2id": NUMBERS}
TARGETS = ["plot fine", "cast dull", "song great", "room poor", "song fine", "plot dull"]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
PERFORMANCE = {"total_time_in_seconds", "samples_per_second", "latency_in_seconds"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of an untrained classifier and an untrained sequence-to-sequence model."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer([*TEXTS, *TARGETS], model="word", vocab_size=60)
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "embedding_size": 16, **IDS}
    torch.manual_seed(0)
    kinds = {
        "classifier": (AutoModelForSequenceClassification, LstmConfig(**size, **NAMES)),
        "seq2seq": (AutoModelForSeq2SeqLM, GruConfig(**size)),
    }
    for name, (auto_class, config) in kinds.items():
        model = auto_class.from_config(config)
        for parameter in model.parameters():
            parameter.data.uniform_(-1, 1)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def compute(task, auto_class, directory, data, **options):
    """Scores from the evaluator, without timings; the same from a directory and from a loaded model and tokenizer."""
    model, tokenizer = auto_class.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    found = [
        evaluator(task).compute(str(directory), data, **options),
        evaluator(task).compute(model, data, tokenizer=tokenizer, **options),
    ]
    assert all(times.keys() >= PERFORMANCE for times in found)
    one, other = ({name: times[name] for name in times.keys() - PERFORMANCE} for times in found)
    assert one == other
    return one


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_classes(name, models):
    data = datasets.Dataset.from_dict({"text": TEXTS, "label": [NUMBERS[label] for label in CLASSES]})
    options = {"metric": metrics.load(name), "label_mapping": NUMBERS}
    found = compute("text-classification", AutoModelForSequenceClassification, models / "classifier", data, **options)
    classify = pipeline("text-classification", model=str(models / "classifier"), device="cpu")
    predictions = [NUMBERS[result["label"]] for result in classify(TEXTS)]
    assert found == metrics.load(name).compute(predictions=predictions, references=data["label"][:])
    assert 0 < found["score"] < 100


def test_classes_with_several_metrics_and_intervals(models):
    data = datasets.Dataset.from_dict({"text": TEXTS, "label": [NUMBERS[label] for label in CLASSES]})
    options = {"label_mapping": NUMBERS, "random_state": 0}
    two = combine([metrics.load("accuracy"), metrics.load("f1")])
    together = evaluator("text-classification").compute(str(models / "classifier"), data, metric=two, **options)
    options |= {"metric": metrics.load("accuracy"), "strategy": "bootstrap", "n_resamples": 50}
    sampled = evaluator("text-classification").compute(str(models / "classifier"), data, **options)["accuracy"]
    low, high = sampled["confidence_interval"]
    assert low <= sampled["score"] == together["accuracy"] <= high


@pytest.mark.parametrize(
    ("task", "key", "name"),
    [
        ("translation", "translation_text", "sacrebleu"),
        ("translation", "translation_text", "chrf"),
        ("summarization", "summary_text", "rouge"),
        ("summarization", "summary_text", "exact_match"),
    ],
)
def test_texts(task, key, name, models):
    data = datasets.Dataset.from_dict({"text": TEXTS, "label": TARGETS})
    options = {"metric": metrics.load(name), "generation_kwargs": {"num_beams": 2, "max_new_tokens": 4}}
    found = compute(task, AutoModelForSeq2SeqLM, models / "seq2seq", data, **options)
    generate = pipeline(task, model=str(models / "seq2seq"), device="cpu")
    predictions = [result[key] for result in generate(TEXTS, num_beams=2, max_new_tokens=4)]
    assert found == metrics.load(name).compute(predictions=predictions, references=TARGETS)
    assert any(predictions)
