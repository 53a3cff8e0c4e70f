"""Text classification: one class for each text, or several (multi-label)."""

from collections.abc import Collection, Mapping, Sequence
from textwrap import shorten
from typing import Any, Self

import datasets
import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_texts
from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.streaming import encode_stream_labels
from hfseq.errors import InputError
from hfseq.inference.classify import predict_logits
from hfseq.plots import plot_confusion_matrix
from hfseq.tasks.base import Task
from hfseq.tasks.losses import classification_loss


class Classification(Task):
    """A class for each text, or several.

    Attributes:
        classes: Names of the classes, in the order of their numbers.
        multi_label: Whether a text may have several.
        weights: Class weights of the loss, `[num_labels]`, or None.
    """

    columns = ("text", "label")
    list_columns = slice(1, 2)
    metrics = ("accuracy", "f1")
    hub_task = "text-classification"
    embedded_name = "synthetic reviews"
    auto_class = AutoModelForSequenceClassification
    packages = ("matplotlib", "sklearn")
    rows = "texts"
    kind_metric = "accuracy"

    def embedded(self) -> datasets.DatasetDict:
        """Synthetic reviews, in which word order decides."""
        return review_rows()

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Classes of each row."""
        return row_classes(rows, self.names[1], self.data.label_separator)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        streams = isinstance(splits.get("train"), datasets.IterableDataset)
        encode: Any = encode_stream_labels if streams else encode_labels
        separator = self.data.label_separator
        splits, self.classes = encode(splits, self.names[1], names=known, replace_names=train, separator=separator)
        # Of all rows, so that no class is without one.
        given = self.data.class_weights
        self.weights = class_weights(given, label_array(splits["train"]), self.classes) if train and given else None
        splits = self._draw(splits)
        self.references = {split: label_array(rows) for split, rows in splits.items()}
        self.multi_label = next(iter(self.references.values())).ndim == 2
        if self.multi_label and self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor is for one class a row; these rows may have several")
        self.fields = label_fields(self.classes)
        self.fields["problem_type"] = (
            "multi_label_classification" if self.multi_label else "single_label_classification"
        )
        return splits

    def with_training_rows(self, rows: Any) -> Self:
        """Copy of the task with other training rows, whose labels the baseline counts."""
        other = super().with_training_rows(rows)
        other.references = self.references | {"train": label_array(rows)}
        return other

    def describe(self) -> str:
        """Number of rows of each split, and the classes."""
        counts = ", ".join(f"{len(labels)} {split}" for split, labels in self.references.items())
        names = shorten(", ".join(self.classes), 300)
        return f"{counts} {self.rows} of {len(self.classes)} classes: {names}"

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        text, limit = self.names[0], self.data.max_length

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded, lengths = encode_texts(tokenizer, batch[text], limit)
            return {**encoded, "labels": batch["labels"], "length": lengths}

        self.collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": label_array(self.splits["train_sample"])}
        return encode_splits(self.splits, encode, {"length": Limit(self.rows, "--max_length", limit)})

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Weighted cross-entropy, binary if multi-label; see `classification_loss`."""
        smoothing, weights = self.args.label_smoothing_factor, self.weights
        return classification_loss(
            outputs.logits, labels, weights=weights, label_smoothing=smoothing, count=num_items_in_batch
        )

    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[np.ndarray, float]:
        """Logits `[N, num_labels]` of the rows of a split, and their mean loss; see `predict_logits`."""
        size, labels = self.args.per_device_eval_batch_size, torch.tensor(self.references[split])
        logits = predict_logits(model, self.encoded[split], self.collator, batch_size=size, **options)
        smoothing, weights = self.args.label_smoothing_factor, self.weights
        loss = classification_loss(torch.tensor(logits), labels, weights=weights, label_smoothing=smoothing)
        return logits, loss.item()

    def decode(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> np.ndarray:
        """Class numbers `[N]`, or multi-hot rows `[N, num_labels]`: 1 where p > 0.5."""
        logits = np.asarray(raw)
        return (logits > 0).astype(np.float32) if self.multi_label else logits.argmax(axis=-1)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Accuracy and macro F1."""
        return score_classes(predictions, references)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """The most frequent class of the training rows, or row of classes."""
        if not trained:
            return {}
        values, counts = np.unique(self.references["train"], axis=0, return_counts=True)
        return {"majority": np.repeat(values[counts.argmax()][None], len(self.splits[split]), axis=0)}

    def show(self, predictions: Any) -> list[str]:
        """Names of the classes; several of a text are separated by commas."""
        rows = np.asarray(predictions)
        if rows.ndim == 1:
            return [self.classes[number] for number in rows]
        return [", ".join(name for name, holds in zip(self.classes, row, strict=True) if holds) for row in rows]

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve and, unless multi-label, a confusion matrix."""
        super().plot(model, log, split, predictions)
        if not self.multi_label:
            path = f"{self.args.output_dir}/confusion_matrix.png"
            plot_confusion_matrix(self.references[split], predictions, self.classes, path)


def label_array(rows: datasets.Dataset | datasets.IterableDataset) -> np.ndarray:
    """The labels of rows that `encode_labels` numbered, `[N]` or `[N, num_labels]`; a stream is read once for them."""
    if isinstance(rows, datasets.Dataset):
        return np.array(rows["labels"])
    first = np.array(next(iter(rows))["labels"])
    kind = np.dtype((np.float32, first.shape)) if first.ndim else np.dtype(np.int64)
    return np.fromiter((tuple(value) if first.ndim else value for value in rows["labels"]), dtype=kind)


def class_weights(given: str | Mapping[str, float], labels: Any, names: Sequence[str]) -> torch.Tensor:
    """Weights of the classes in the loss, `[num_labels]`.

    Args:
        given: `balanced`; or a weight for each class name, 1 where it is left out; or None for no weights. Balanced
            weights of n rows and k classes are n / (k n_c) for a class of n_c rows, so that all classes weigh alike
            and the mean over the rows is 1; where several classes may hold at once, (n - n_c) / n_c on the rows in
            which one holds.
        labels: Class numbers of the training rows `[N]`, or `[N, num_labels]` with 1 where a class holds.
        names: The classes.

    Raises:
        InputError: A word other than `balanced`, an unknown class, a weight that is no positive number, or a class
            without a training row.
    """
    if isinstance(given, Mapping):
        if unknown := sorted(given.keys() - set(names)):
            raise InputError(f"--class_weights: no class {unknown[0]!r}; there are {', '.join(names)}")
        for name, weight in given.items():
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < float("inf"):
                raise InputError(f"--class_weights: {weight!r} of class {name!r} is not a positive number")
        return torch.tensor([float(given.get(name, 1.0)) for name in names])
    if given != "balanced":
        raise InputError(f"--class_weights {given}: give 'balanced', or a mapping from class to weight")
    values = np.asarray(labels)
    counts = values.sum(axis=0) if values.ndim == 2 else np.bincount(values, minlength=len(names))
    if not counts.all():
        raise InputError(f"--class_weights balanced: no training row has class {names[int(counts.argmin())]!r}")
    weights = (len(values) - counts) / counts if values.ndim == 2 else len(values) / (len(names) * counts)
    return torch.tensor(weights, dtype=torch.float32)


def score_classes(predictions: Any, references: Any) -> dict[str, float]:
    """`accuracy` and macro `f1`, from 0 to 100, of class numbers `[N]` or multi-hot rows `[N, num_labels]`.

    A multi-label row counts as correct only if all of its classes are.
    """
    rows = list(predictions), list(references)
    return {"accuracy": metrics.accuracy(*rows)["score"], "f1": metrics.f1(*rows)["score"]}


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """Config fields that name the classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
