"""Scores by quartile of source length, against scores of groups made by hand."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainingArguments,
    set_seed,
)

from hfseq import LstmConfig
from hfseq.tasks.base import Task, sample_rows
from hfseq.tokenization import train_tokenizer
from hfseq.training.lengths import LengthScores, length_report, quartile_edges, rows_by_length
from hfseq.training.trainer import GenerationTrainer, SequenceTrainer


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        (
            [1, 2, 3, 4, 5, 6, 7, 8],
            {
                "up to 2 tokens": [1, 2],
                "3-4 tokens": [3, 4],
                "5-6 tokens": [5, 6],
                "over 6 tokens": [7, 8],
            },
        ),
        ([4, 3, 2, 1], {"up to 1 tokens": [1], "2 tokens": [2], "3 tokens": [3], "over 3 tokens": [4]}),
        ([5, 5, 5, 5, 5, 9, 9, 7], {"up to 5 tokens": [5] * 5, "6-7 tokens": [7], "over 7 tokens": [9, 9]}),
        ([3, 3, 8], {"up to 3 tokens": [3, 3], "over 3 tokens": [8]}),
        ([6, 6, 6, 6, 6], {"any length": [6] * 5}),
        ([6], {"any length": [6]}),
        ([], {"any length": []}),
    ],
)
def test_quartiles(lengths, groups):
    found = rows_by_length(lengths)
    assert {name: sorted(lengths[row] for row in rows) for name, rows in found.items()} == groups
    assert list(found) == list(groups)
    assert all(rows == sorted(rows) for rows in found.values())


def test_quartiles_are_numpys():
    lengths = np.random.default_rng(0).integers(1, 60, 1001)
    expected = np.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf")
    assert quartile_edges(lengths.tolist()) == expected.tolist()
    assert [len(rows) for rows in rows_by_length(lengths.tolist()).values()] == pytest.approx([250] * 4, abs=30)


def test_sample_rows():
    rows = sample_rows(1000, 20, seed=3)
    assert rows == sorted(set(rows)) == sample_rows(1000, 20, seed=3)
    assert len(rows) == 20 and 0 <= rows[0] and rows[-1] < 1000
    assert rows != sample_rows(1000, 20, seed=4)
    assert sample_rows(5, 20, seed=3) == [0, 1, 2, 3, 4]


class Numbers(Task):
    """Sources of some length, whose raw predictions are numbers; the score is the mean of their differences."""

    columns, metrics, auto_class, hub_task, embedded_name = ("text",), ("bleu",), None, "", ""

    def __init__(self, encoded, score=None):
        super().__init__(
            SimpleNamespace(text_column="a", label_column="b"), SimpleNamespace(metric_for_best_model="bleu")
        )
        self.encoded = encoded
        self.lengths = {name: [len(row) for row in rows["input_ids"]] for name, rows in encoded.items()}
        self.references = {
            name: np.array([np.ravel(row)[0] for row in rows["labels"]]) for name, rows in encoded.items()
        }
        self.asked = []

    def embedded(self):
        return None

    def _prepare(self, splits, known, train):
        return splits

    def _encode(self, model, tokenizer):
        return None

    def decode(self, split, raw):
        """A number that depends on the prediction of each row."""
        raw = np.asarray(raw)
        return raw if raw.ndim == 1 else raw[:, 1]

    def score(self, predictions, references):
        self.asked.append(np.array(references).tolist())
        return {"bleu": float(np.abs(np.array(predictions) - np.array(references)).mean()), "size": len(references)}

    def baseline(self, split, *, trained):
        return {}

    def show(self, predictions):
        return []


def test_report():
    def rows(lengths):
        ids = [[0] * length for length in lengths]
        return datasets.Dataset.from_dict({"input_ids": ids, "labels": [0] * len(ids)})

    task = Numbers({"train_sample": rows([3, 30, 40]), "validation": rows([1, 2, 3, 4, 5, 6, 7, 8])})
    raw = {"train_sample": [0, 2, 4], "validation": [1] * 2 + [2] * 6}
    assert length_report(task, raw).split("\n") == [
        "bleu by source length                     rows       train  validation",
        "  up to 2 tokens                         0 / 2           -           1",
        "  3-4 tokens                             1 / 2           0           2",
        "  5-6 tokens                             0 / 2           -           2",
        "  over 6 tokens                          2 / 2           3           2",
    ]


def rows_of(number, seed):
    """Sources of 1 to 11 tokens that end with the end mark, targets their reverse, a label, and text."""
    rng = np.random.default_rng(seed)
    ids = [[*rng.integers(4, 40, rng.integers(1, 11)).tolist(), 2] for _ in range(number)]
    return ids, rng.integers(0, 3, number).tolist()


def make_trainer(tmp_path, kind, tokenizer):
    set_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 8, "embedding_size": 8, "dropout": 0.3}
    (train, train_labels), (validation, validation_labels) = rows_of(60, 0), rows_of(20, 1)
    if kind == "generation":
        model = AutoModelForSeq2SeqLM.from_config(LstmConfig(**sizes))
        train_labels, validation_labels = train, validation
        own = {"predict_with_generate": True, "generation_max_length": 14}
    else:
        model = AutoModelForSequenceClassification.from_config(LstmConfig(**sizes, num_labels=3))
        own = {}

    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        learning_rate=0.05,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=7,
        eval_strategy="epoch",
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
        **own,
    )
    sides = ((train, train_labels), (validation, validation_labels))
    rows = [datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}) for ids, labels in sides]
    sample = rows[0].select(sample_rows(60, 20, seed=5))
    task = Numbers({"train_sample": sample, "validation": rows[1]})
    trainer_class = GenerationTrainer if kind == "generation" else SequenceTrainer
    return trainer_class(
        model=model,
        args=args,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer) if kind == "generation" else None,
        task=task,
    )


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_every_evaluation_logs_both_sides_and_changes_nothing(tmp_path, kind):
    tokenizer = train_tokenizer(["a b c d e f g h i j k l m n o p"] * 9, model="bpe", vocab_size=45)
    plain = make_trainer(tmp_path, kind, tokenizer)
    plain.train()

    said = []
    trainer = make_trainer(tmp_path, kind, tokenizer)
    trainer.add_callback(LengthScores(trainer, said.append))
    task = trainer.task
    trainer.train()
    assert len(said) == 2
    timed = ("runtime", "per_second")
    for there, here in zip(plain.state.log_history, trainer.state.log_history, strict=True):
        assert there.keys() == here.keys()
        assert all(there[key] == here[key] for key in here if not key.endswith(timed)), (there, here)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name

    # The last table, from the predictions of each side as a whole.
    raw = {split: trainer.predict_split(split) for split in ("train_sample", "validation")}
    edges = quartile_edges(task.lengths["validation"])
    lines = said[-1].split("\n")[1:]
    groups = {split: rows_by_length(task.lengths[split], edges) for split in raw}
    assert len(lines) == len(groups["validation"]) == 4
    for line, name in zip(lines, groups["validation"], strict=True):
        sides = {split: groups[split][name] for split in raw}
        scores = [
            task.score(task.decode(split, raw[split])[rows], task.references[split][rows])["bleu"]
            for split, rows in sides.items()
        ]
        counts = [str(len(rows)) for rows in sides.values()]
        assert line.split() == [*name.split(), counts[0], "/", counts[1], *(f"{score:.4g}" for score in scores)]
    assert len({line.split()[-1] for line in lines} | {line.split()[-2] for line in lines}) > 2

    assert trainer.evaluate()["eval_size"] == 20
    assert len(said) == 3
