"""Scores by quartile of source length, against scores of groups made by hand."""

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
from hfseq.tokenization import train_tokenizer
from hfseq.training.lengths import (
    LengthScores,
    length_report,
    quartile_edges,
    rows_by_length,
    sample_rows,
    scores_by_length,
)
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
    scores = scores_by_length(lengths, lambda rows: sum(lengths[row] for row in rows))
    assert scores == {name: sum(members) for name, members in groups.items() if members}


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


def test_report():
    report = length_report("bleu", [3, 30, 40], sum, [1, 2, 3, 4, 5, 6, 7, 8], lambda rows: len(rows) / 3)
    assert report.split("\n") == [
        "bleu by source length                     rows       train  validation",
        "  up to 2 tokens                         0 / 2           -      0.6667",
        "  3-4 tokens                             1 / 2           0      0.6667",
        "  5-6 tokens                             0 / 2           -      0.6667",
        "  over 6 tokens                          2 / 2           3      0.6667",
    ]


def rows_of(number, seed):
    """Sources of 1 to 11 tokens that end with the end mark, targets their reverse, a label, and text."""
    rng = np.random.default_rng(seed)
    ids = [[*rng.integers(4, 40, rng.integers(1, 11)).tolist(), 2] for _ in range(number)]
    return ids, rng.integers(0, 3, number).tolist()


def score_of(kind, output):
    """A number that depends on the prediction and the label of each row."""
    labels = output.label_ids
    if kind == "generation":
        return float(np.abs(output.predictions[:, 1] - labels[:, 0]).mean())
    return float(output.predictions[np.arange(len(labels)), labels].mean())


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
    trainer_class = GenerationTrainer if kind == "generation" else SequenceTrainer
    return trainer_class(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"input_ids": train, "labels": train_labels}),
        eval_dataset=datasets.Dataset.from_dict({"input_ids": validation, "labels": validation_labels}),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer) if kind == "generation" else None,
        compute_metrics=lambda output: {"score": score_of(kind, output), "size": len(output.label_ids)},
    )


@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_every_evaluation_prints_both_sides_and_changes_nothing(tmp_path, kind):
    tokenizer = train_tokenizer(["a b c d e f g h i j k l m n o p"] * 9, model="bpe", vocab_size=45)
    plain = make_trainer(tmp_path, kind, tokenizer)
    plain.train()

    said, asked = [], []
    trainer = make_trainer(tmp_path, kind, tokenizer)
    compute_metrics = trainer.compute_metrics
    validation, train = trainer.eval_dataset, trainer.train_dataset.select(sample_rows(60, 20, seed=5))

    def score(split, rows, output):
        asked.append((split, rows, output.label_ids))
        return score_of(kind, output)

    sides = {"train_sample": train, "validation": validation}
    lengths = {name: [len(row) for row in rows["input_ids"]] for name, rows in sides.items()}
    trainer.add_callback(LengthScores(trainer, train, lengths, "score", score, said.append))
    trainer.train()
    assert len(said) == 2
    timed = ("runtime", "per_second")
    for there, here in zip(plain.state.log_history, trainer.state.log_history, strict=True):
        assert there.keys() == here.keys()
        assert all(there[key] == here[key] for key in here if not key.endswith(timed)), (there, here)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name

    # The last table, from predictions of each quartile alone.
    remember, trainer.compute_metrics = trainer.compute_metrics, compute_metrics
    sides = []
    edges = quartile_edges([len(row) for row in validation["input_ids"]])
    for rows in (train, validation):
        groups = rows_by_length([len(row) for row in rows["input_ids"]], edges)
        sides.append(
            {name: (len(g), trainer.predict(rows.select(g)).metrics["test_score"]) for name, g in groups.items()}
        )
    lines = said[-1].split("\n")[1:]
    assert len(lines) == len(sides[0]) == 4
    for line, name in zip(lines, sides[0], strict=True):
        (n_train, train_score), (n_validation, validation_score) = sides[0][name], sides[1][name]
        assert line.split() == [
            *name.split(),
            str(n_train),
            "/",
            str(n_validation),
            f"{train_score:.4g}",
            f"{validation_score:.4g}",
        ]
    assert len({line.split()[-1] for line in lines} | {line.split()[-2] for line in lines}) > 2

    assert len(asked) == 2 * 2 * 4
    for split, rows, label_ids in asked:
        wanted = {"train": train, "validation": validation}[split].select(rows)["labels"]
        found = label_ids.reshape(len(rows), -1)[:, 0].tolist()
        assert found == [label[0] if isinstance(label, list) else label for label in wanted]

    # Without scores there is no table, nor of other rows than the trainer's.
    trainer.compute_metrics = None
    trainer.evaluate()
    trainer.compute_metrics = remember
    trainer.evaluate(trainer.train_dataset)
    assert len(said) == 2
    assert trainer.evaluate()["eval_size"] == 20
    assert len(said) == 3


def test_without_scores_there_is_nothing_to_show(tmp_path):
    tokenizer = train_tokenizer(["a b c d e f g h i j k l m n o p"] * 9, model="bpe", vocab_size=45)
    trainer = make_trainer(tmp_path, "classification", tokenizer)
    trainer.compute_metrics = None
    with pytest.raises(ValueError, match="compute_metrics"):
        LengthScores(trainer, trainer.train_dataset, {}, "score", lambda split, rows, output: 0.0)
