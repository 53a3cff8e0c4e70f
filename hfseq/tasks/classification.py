"""Classification of texts or text pairs (single-label or multi-label), and regression."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from textwrap import shorten
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import mse_loss
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
from hfseq.data.streaming import tokenizer_texts
from hfseq.errors import InputError, require
from hfseq.inference.benchmark import Run, text_classifier
from hfseq.lazy import datasets
from hfseq.plots import plot_confusion_matrix, plot_scatter
from hfseq.tasks.base import Task
from hfseq.tasks.losses import classification_loss


class TextTask(Task):
    """Texts or text pairs with one label each: a class, a list of classes, or a number."""

    columns = ("text", "label")
    list_columns = slice(-1, None)
    hub_task = "text-classification"
    auto_class = AutoModelForSequenceClassification
    rows = "texts"

    def read_columns(self) -> tuple[str, ...]:
        """Names of all columns to read: the texts, then the label."""
        (text, label), pair = self.names, self.data.text_pair_column
        return (text, label) if pair is None else (text, pair, label)

    def _draw(self, splits: dict[str, Any]) -> dict[str, Any]:
        """Draw the training rows, and keep the labels of all rows as references."""
        splits = super()._draw(splits)
        self.references = {split: label_array(rows) for split, rows in splits.items()}
        return splits

    def texts(self) -> Any:
        """Texts to train a new tokenizer on, including the second texts of pairs."""
        return tokenizer_texts(self.splits["train"], self.read_columns()[:-1])

    def describe(self) -> str:
        """Describe the number of rows in each split, including streams."""
        return f"{', '.join(f'{len(labels)} {split}' for split, labels in self.references.items())} {self.rows}"

    def sources(self, split: str) -> list[str]:
        """Text or text pair of each row as a line of text."""
        columns = [self.splits[split][name] for name in self.read_columns()[:-1]]
        return [" | ".join(texts) for texts in zip(*columns, strict=True)]

    def example(self, split: str) -> str | None:
        """Example input for the model card; None for text pairs."""
        return None if self.data.text_pair_column else super().example(split)

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        (text, _), pair, limit = self.names, self.data.text_pair_column, self.data.max_length

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts = batch[text] if pair is None else list(zip(batch[text], batch[pair], strict=True))
            encoded, lengths = encode_texts(tokenizer, texts, limit)
            return {**encoded, "labels": batch["labels"], "length": lengths}

        self.collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": label_array(self.splits["train_sample"])}
        encoded = encode_splits(self.splits, encode, {"length": Limit(self.rows, "--max_length", limit)})
        return self._resampled(encoded, tokenizer, {"input_ids": limit})


class Classification(TextTask):
    """Single-label or multi-label classification of texts.

    Attributes:
        classes: Class names in the order of their ids.
        multi_label: Whether a text may have several classes.
        weights: Class weights of the loss, `[num_labels]`; None for no weights.
    """

    metrics = ("accuracy", "f1")
    other_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman", "rmse")
    embedded_name = "synthetic reviews"
    packages: ClassVar[tuple[str, ...]] = ("matplotlib", "sklearn")
    kind_metric = "accuracy"
    place_column: ClassVar[str | None] = None
    """Column of the place of each row, for errors."""

    def embedded(self) -> datasets.DatasetDict:
        """Create synthetic reviews, whose classes depend on word order."""
        return review_rows()

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Classes of each row."""
        return row_classes(rows, self.names[1], self.data.label_separator)

    def use(self, splits: Mapping[str, Any], *, train: bool = True, known: list[str] | None = None) -> Task:
        """Validate and adopt rows, as a regression if the labels are numbers, some with a fraction; see `Task.use`."""
        problem, label = self.data.problem_type, self.names[1]
        if problem == "regression" or (problem is None and any(has_fraction(rows[label]) for rows in splits.values())):
            return Regression(self.data, self.args).use(splits, train=train)
        lists = isinstance(next(iter(next(iter(splits.values()))[label])), list) or self.data.label_separator
        if problem is not None and bool(lists) != (problem == "multi_label_classification"):
            given = "lists of classes" if lists else "one class per text, and there is no --label_separator"
            raise InputError(f"problem type {problem}: column {label!r} contains {given}")
        self.args.choose_metric(self.metrics)  # type: ignore[attr-defined]
        return super().use(splits, train=train, known=known)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        separator, given = self.data.label_separator, self.data.class_weights
        splits, self.classes = encode_labels(
            splits,
            self.names[1],
            names=known,
            replace_names=train,
            separator=separator,
            place_column=self.place_column,
        )
        # From all rows, before `_draw` can leave a class without any.
        self.weights = class_weights(given, label_array(splits["train"]), self.classes) if train and given else None
        splits = self._draw(splits)
        self.multi_label = next(iter(self.references.values())).ndim == 2
        if self.multi_label and self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor requires one class per row; these rows may have several")
        kind = "multi" if self.multi_label else "single"
        self.fields = label_fields(self.classes) | {"problem_type": f"{kind}_label_classification"}
        return splits

    def describe(self) -> str:
        """Describe the number of rows in each split, and the classes."""
        return f"{super().describe()} of {len(self.classes)} classes: {shorten(', '.join(self.classes), 300)}"

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Compute the (weighted) cross-entropy, binary for multi-label; arguments as for `Task.loss`."""
        smoothing, weights = self.args.label_smoothing_factor, self.weights
        return classification_loss(
            outputs.logits, labels, weights=weights, label_smoothing=smoothing, count=num_items_in_batch
        )

    def divergence(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Sum the divergences, for multi-label rows of each class by itself; arguments as for `Task.divergence`."""
        if not self.multi_label:
            return super().divergence(outputs, labels)
        first, second = outputs.logits.float().chunk(2)
        return ((first.sigmoid() - second.sigmoid()) * (first - second)).sum() / 2

    def decode(self, split: str, raw: Any) -> np.ndarray:
        """Convert logits to class ids `[N]`, or to multi-hot rows `[N, num_labels]` with 1 for p > 0.5."""
        logits = np.asarray(raw)
        return (logits > 0).astype(np.float32) if self.multi_label else logits.argmax(axis=-1)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute accuracy and macro F1; see `score_classes`."""
        return score_classes(predictions, references)

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from texts to logits, tokenization included, and texts; see `Task.timed`."""
        classify = text_classifier(model, processing_class, self.data.max_length)
        return classify, self.sources(split)[:count]

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Most frequent class, or set of classes, of the training rows."""
        if not trained:
            return {}
        values, counts = np.unique(self.references["train"], axis=0, return_counts=True)
        return {"majority": np.repeat(values[counts.argmax()][None], len(self.splits[split]), axis=0)}

    def show(self, predictions: Any) -> list[str]:
        """Class names, separated by commas for multi-label."""
        rows = np.asarray(predictions)
        if rows.ndim == 1:
            return [self.classes[number] for number in rows]
        return [", ".join(name for name, holds in zip(self.classes, row, strict=True) if holds) for row in rows]

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve and, for single-label classification, a confusion matrix; see `Task.plot`."""
        super().plot(model, log, split, predictions)
        if not self.multi_label:
            path = f"{self.args.output_dir}/confusion_matrix.png"
            plot_confusion_matrix(self.references[split], predictions, self.classes, path)


class Regression(TextTask):
    """Regression: a number for each text."""

    metrics = ("pearson", "spearman", "rmse")
    embedded_name = "numbers"
    packages = ("matplotlib", "scipy")

    def embedded(self) -> datasets.DatasetDict:
        """Raise an `InputError`: there is no embedded regression data."""
        raise InputError("--problem_type regression has no embedded data; give --train_file or --dataset_name")

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        self.args.choose_metric(self.metrics)  # type: ignore[attr-defined]
        require(*self.packages, extra="train", use="a regression")
        flags = ((self.data, "class_weights"), (self.data, "label_separator"), (self.args, "label_smoothing_factor"))
        for arguments, flag in flags:
            if getattr(arguments, flag):
                raise InputError(f"--{flag} applies to classes, but the labels are numbers; omit it")
        self.fields = {"num_labels": 1, "problem_type": "regression"}
        return self._draw({split: with_numbers(rows, self.names[1], split) for split, rows in splits.items()})

    def describe(self) -> str:
        """Describe the number of rows in each split, and the range of the labels."""
        numbers = np.concatenate(list(self.references.values()))
        return f"{super().describe()} with numbers from {numbers.min():.4g} to {numbers.max():.4g}"

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Compute the mean squared error; arguments as for `Task.loss`."""
        total = mse_loss(outputs.logits.float().squeeze(-1), labels.float(), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    def divergence(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Sum the squared differences; arguments as for `Task.divergence`."""
        first, second = outputs.logits.float().chunk(2)
        return (first - second).square().sum()

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Number of rows in a batch; -100 is a label like any other."""
        return torch.tensor(len(batch["labels"]))

    def decode(self, split: str, raw: Any) -> np.ndarray:
        """Convert logits to numbers `[N]`."""
        return np.asarray(raw, dtype=np.float64).reshape(-1)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute the correlations of Pearson and Spearman times 100, 0 if undefined, and the RMSE."""
        given, right = (np.asarray(side, dtype=np.float64).tolist() for side in (predictions, references))
        varies = len(set(given)) > 1 and len(set(right)) > 1
        correlations = {"pearson": metrics.pearson, "spearman": metrics.spearman}
        scores = {name: function(given, right)["score"] if varies else 0.0 for name, function in correlations.items()}
        return scores | {"rmse": metrics.rmse(given, right)["score"]}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Mean of the training labels."""
        if not trained:
            return {}
        return {"mean": np.full(len(self.splits[split]), self.references["train"].mean(dtype=np.float64))}

    def show(self, predictions: Any) -> list[str]:
        """Numbers with six significant digits."""
        return [f"{number:.6g}" for number in predictions]

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve and a scatter plot of predictions and references; see `Task.plot`."""
        super().plot(model, log, split, predictions)
        plot_scatter(self.references[split], predictions, f"{self.args.output_dir}/scatter.png")


def has_fraction(labels: Iterable[Any]) -> bool:
    """Return whether the first thousand labels are all numbers, at least one of them with a fraction."""
    try:
        numbers = [float(label) for label in islice(labels, 1000)]
    except (TypeError, ValueError):
        return False
    return any(math.isfinite(number) and not number.is_integer() for number in numbers)


def with_numbers(rows: Any, column: str, split: str) -> Any:
    """Convert the labels of rows or of a stream to numbers, in a new column `labels`.

    Args:
        rows: Rows of a split.
        column: Name of the label column, which is removed.
        split: Name of the split, for errors.

    Raises:
        InputError: A label is not a finite number; for a stream, raised when its row is read.
    """
    if isinstance(rows, datasets.IterableDataset):
        features = datasets.Features({**rows.features, "labels": datasets.Value("float32")})
        del features[column]
        convert = partial(_convert_batch, column=column, place=split)
        return rows.map(convert, batched=True, remove_columns=[column], features=features)
    numbers = [_number(label, column, f"{split}, row {row}") for row, label in enumerate(rows[column], 1)]
    return rows.remove_columns(column).add_column("labels", numbers, feature=datasets.Value("float32"))


def _convert_batch(batch: dict[str, list[Any]], column: str, place: str) -> dict[str, list[float]]:
    return {"labels": [_number(label, column, place) for label in batch[column]]}


def _number(label: Any, column: str, place: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"{place}: column {column!r} is {shorten(str(label), 60)!r}, not a finite number; "
            "--problem_type single_label_classification treats all labels as classes"
        )
    return number


def label_array(rows: datasets.Dataset | datasets.IterableDataset) -> np.ndarray:
    """Array of the column `labels`, `[N]` or `[N, num_labels]`; a stream is read once to collect them."""
    if isinstance(rows, datasets.Dataset):
        return np.array(rows["labels"])
    first = np.array(next(iter(rows))["labels"])
    # A generator and a fixed dtype, since a list of all labels could exceed the memory.
    dtype = np.dtype((np.int64 if first.dtype.kind == "i" else np.float32, first.shape))
    return np.fromiter(rows["labels"], dtype=dtype)


def class_weights(given: str | Mapping[str, float], labels: Any, names: Sequence[str]) -> torch.Tensor:
    """Class weights of the loss, `[num_labels]`.

    Args:
        given: Mapping of class name to weight, 1 for classes left out; or `balanced`, so that all classes contribute
            equally: with n rows, k classes and n_c rows of class c, the weight is n / (k n_c), with a mean of 1 over
            the rows, or for multi-label classification (n - n_c) / n_c on the positive labels.
        labels: Class ids of the training rows `[N]`, or multi-hot rows `[N, num_labels]`.
        names: Class names.

    Raises:
        InputError: A string other than `balanced`, an unknown class, a weight that is not a positive number, or a
            class without training rows.
    """
    if isinstance(given, Mapping):
        if unknown := sorted(given.keys() - set(names)):
            raise InputError(f"--class_weights: no class {unknown[0]!r}; there are {', '.join(names)}")
        for name, weight in given.items():
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
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
    """Compute `accuracy` and macro `f1`, 0 to 100; a multi-label row is correct only if all of its classes are.

    Args:
        predictions: Class ids `[N]` or multi-hot rows `[N, num_labels]`.
        references: References in the same format.
    """
    rows = list(predictions), list(references)
    return {"accuracy": metrics.accuracy(*rows)["score"], "f1": metrics.f1(*rows)["score"]}


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """Config fields for class names."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
