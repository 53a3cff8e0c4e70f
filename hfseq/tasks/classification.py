"""Labelled texts, or pairs of texts: a class for each, several (multi-label), or a number (regression)."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from textwrap import shorten
from typing import Any, Self

import datasets
import numpy as np
import torch
from torch.nn.functional import mse_loss
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_texts
from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.streaming import tokenizer_texts
from hfseq.errors import InputError, require
from hfseq.inference.classify import predict_logits
from hfseq.plots import plot_confusion_matrix, plot_scatter
from hfseq.tasks.base import Task
from hfseq.tasks.losses import classification_loss


class TextTask(Task):
    """Texts, or pairs of texts, with a label each."""

    columns = ("text", "label")
    list_columns = slice(-1, None)
    hub_task = "text-classification"
    auto_class = AutoModelForSequenceClassification
    rows = "texts"

    @property
    def pair(self) -> str | None:
        """Column of the second text of each row."""
        return self.data.text_pair_column

    def read_columns(self) -> tuple[str, ...]:
        """Names of all columns that are read."""
        text, label = self.names
        return (text, label) if self.pair is None else (text, self.pair, label)

    def texts(self) -> Any:
        """Texts that a new tokenizer is trained on, of pairs both."""
        return tokenizer_texts(self.splits["train"], self.read_columns()[:-1])

    def sources(self, split: str) -> list[str]:
        """A line of text for each row; of a pair both."""
        columns = [self.splits[split][name] for name in self.read_columns()[:-1]]
        return [" | ".join(texts) for texts in zip(*columns, strict=True)]

    def example(self, split: str) -> str | None:
        """A text to show the model with; none of pairs."""
        return None if self.pair else super().example(split)

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        (text, _), pair, limit = self.names, self.pair, self.data.max_length

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts = batch[text] if pair is None else list(zip(batch[text], batch[pair], strict=True))
            encoded, lengths = encode_texts(tokenizer, texts, limit)
            return {**encoded, "labels": batch["labels"], "length": lengths}

        self.collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": label_array(self.splits["train_sample"])}
        return encode_splits(self.splits, encode, {"length": Limit(self.rows, "--max_length", limit)})

    def with_training_rows(self, rows: Any) -> Self:
        """Copy of the task with other training rows, whose labels the baseline counts."""
        other = super().with_training_rows(rows)
        other.references = self.references | {"train": label_array(rows)}
        return other

    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[np.ndarray, float]:
        """Logits `[N, num_labels]` of the rows of a split, and their mean loss; see `predict_logits`."""
        size, labels = self.args.per_device_eval_batch_size, torch.tensor(self.references[split])
        logits = predict_logits(model, self.encoded[split], self.collator, batch_size=size, **options)
        loss = self.loss(SequenceClassifierOutput(logits=torch.tensor(logits)), labels)
        return logits, loss.item()


class Classification(TextTask):
    """A class for each text, or several.

    Attributes:
        classes: Names of the classes, in the order of their numbers.
        multi_label: Whether a text may have several.
        weights: Class weights of the loss, `[num_labels]`, or None.
    """

    metrics = ("accuracy", "f1")
    other_metrics = ("pearson", "spearman", "rmse")
    embedded_name = "synthetic reviews"
    packages = ("matplotlib", "sklearn")
    kind_metric = "accuracy"

    def embedded(self) -> datasets.DatasetDict:
        """Synthetic reviews, in which word order decides."""
        return review_rows()

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Classes of each row."""
        return row_classes(rows, self.names[1], self.data.label_separator)

    def use(self, splits: Mapping[str, Any], *, train: bool = True, known: list[str] | None = None) -> Task:
        """Take the rows; labels that are numbers with a fraction make it a regression; see `Task.use`."""
        problem, label = self.data.problem_type, self.names[1]
        if problem == "regression" or (problem is None and any(has_fraction(rows[label]) for rows in splits.values())):
            return Regression(self.data, self.args).use(splits, train=train)
        lists = isinstance(next(iter(next(iter(splits.values()))[label])), list) or self.data.label_separator
        if problem is not None and bool(lists) != (problem == "multi_label_classification"):
            given = (
                "lists of classes, not one class a text" if lists else "one class a text, without --label_separator"
            )
            raise InputError(f"problem type {problem}: column {label!r} holds {given}")
        self.args.choose_metric(self.metrics)  # type: ignore[attr-defined]
        return super().use(splits, train=train, known=known)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        separator = self.data.label_separator
        splits, self.classes = encode_labels(
            splits, self.names[1], names=known, replace_names=train, separator=separator
        )
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

    def describe(self) -> str:
        """Number of rows of each split, and the classes."""
        counts = ", ".join(f"{len(labels)} {split}" for split, labels in self.references.items())
        names = shorten(", ".join(self.classes), 300)
        return f"{counts} {self.rows} of {len(self.classes)} classes: {names}"

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Weighted cross-entropy, binary if multi-label; see `classification_loss`."""
        smoothing, weights = self.args.label_smoothing_factor, self.weights
        return classification_loss(
            outputs.logits, labels, weights=weights, label_smoothing=smoothing, count=num_items_in_batch
        )

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


class Regression(TextTask):
    """A number for each text."""

    metrics = ("pearson", "spearman", "rmse")
    embedded_name = "numbers"
    packages = ("matplotlib", "scipy")
    rows = "texts"

    def embedded(self) -> datasets.DatasetDict:
        """Raise an `InputError`: no numbers are embedded."""
        raise InputError("--problem_type regression has no embedded data; give --train_file or --dataset_name")

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        self.args.choose_metric(self.metrics)  # type: ignore[attr-defined]
        require(*self.packages, extra="train", use="a regression")
        for flag in ("class_weights", "label_separator"):
            if getattr(self.data, flag):
                raise InputError(f"--{flag} is for classes; the labels are numbers, so leave it out")
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor is for classes; the labels are numbers, so leave it out")
        splits = self._draw({split: self._with_numbers(split, rows) for split, rows in splits.items()})
        self.references = {split: label_array(rows) for split, rows in splits.items()}
        self.fields = {"num_labels": 1, "problem_type": "regression"}
        return splits

    def _with_numbers(self, split: str, rows: Any) -> Any:
        label = self.names[1]
        if isinstance(rows, datasets.IterableDataset):
            features = datasets.Features({**rows.features, "labels": datasets.Value("float32")})
            del features[label]
            convert = partial(_numbers, column=label, split=split, first=None)
            return rows.map(convert, batched=True, remove_columns=[label], features=features)
        numbers = _numbers({label: list(rows[label])}, column=label, split=split, first=1)["labels"]
        return rows.remove_columns(label).add_column("labels", numbers, feature=datasets.Value("float32"))

    def describe(self) -> str:
        """Number of rows of each split, and the range of the labels."""
        numbers = np.concatenate(list(self.references.values()))
        counts = ", ".join(f"{len(labels)} {split}" for split, labels in self.references.items())
        return f"{counts} {self.rows} with numbers from {numbers.min():.4g} to {numbers.max():.4g}"

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Mean squared error."""
        total = mse_loss(outputs.logits.float().squeeze(-1), labels.float(), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Number of rows; any number may be a label."""
        return torch.tensor(len(batch["labels"]))

    def decode(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> np.ndarray:
        """Numbers `[N]`."""
        return np.asarray(raw, dtype=np.float64).reshape(-1)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Pearson's and Spearman's correlations times 100, and the RMSE; a constant has the correlation 0."""
        given, right = (np.asarray(side, dtype=np.float64).tolist() for side in (predictions, references))
        varies = len(set(given)) > 1 and len(set(right)) > 1
        correlations = {"pearson": metrics.pearson, "spearman": metrics.spearman}
        scores = {name: function(given, right)["score"] if varies else 0.0 for name, function in correlations.items()}
        return scores | {"rmse": metrics.rmse(given, right)["score"]}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """The mean of the training labels."""
        if not trained:
            return {}
        return {"mean": np.full(len(self.splits[split]), self.references["train"].mean(dtype=np.float64))}

    def show(self, predictions: Any) -> list[str]:
        """The numbers."""
        return [f"{number:.4g}" for number in predictions]

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve and a scatter plot of predicted and true numbers."""
        super().plot(model, log, split, predictions)
        plot_scatter(self.references[split], predictions, f"{self.args.output_dir}/scatter.png")


def has_fraction(labels: Iterable[Any]) -> bool:
    """True if the first thousand labels are all numbers, one of them with a fraction."""
    try:
        numbers = [float(label) for label in islice(labels, 1000)]
    except (TypeError, ValueError):
        return False
    return any(math.isfinite(number) and not number.is_integer() for number in numbers)


def _numbers(batch: dict[str, list[Any]], column: str, split: str, first: int | None) -> dict[str, list[float]]:
    """Labels as numbers; `first` is the number of the first row, None in a stream, whose rows have none."""
    numbers = []
    for index, label in enumerate(batch[column]):
        try:
            number = float(label)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            place = split if first is None else f"{split}, row {first + index}"
            raise InputError(
                f"{place}: column {column!r} is {shorten(str(label), 60)!r}, not a finite number; "
                "--problem_type single_label_classification takes all labels for classes"
            )
        numbers.append(number)
    return {"labels": numbers}


def label_array(rows: datasets.Dataset | datasets.IterableDataset) -> np.ndarray:
    """The labels of rows that `encode_labels` numbered, `[N]` or `[N, num_labels]`; a stream is read once for them."""
    if isinstance(rows, datasets.Dataset):
        return np.array(rows["labels"])
    first = np.array(next(iter(rows))["labels"])
    number = np.dtype(np.int64 if first.dtype.kind == "i" else np.float32)
    kind = np.dtype((np.float32, first.shape)) if first.ndim else number
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
