"""The interface of a task: read, encode, loss, decode, score, baseline, show."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hfseq.data.collation import CheckedCollator
from hfseq.data.encoding import EncodedSplits
from hfseq.data.streaming import count_rows, tokenizer_texts
from hfseq.inference.parallel import run_by_length
from hfseq.plots import plot_learning_curve
from hfseq.tasks.losses import token_loss


class Task(ABC):
    """Rows of a task, and everything about them that differs between tasks.

    The output of a model for a row is *raw* (logits, the tags of tokens, log-probabilities, ids) until `decode` turns
    it into a *prediction* (a class, the tags of words, log-probabilities, a text), which is scored and shown.

    Args:
        data: The data flags.
        args: The training arguments; read when a value is needed, so that a search may change them.

    Attributes:
        splits: Split to rows; `train_sample` are training rows to score beside the validation rows.
        fields: Config fields that the data decide.
        encoded: Split to encoded rows, `datasets.Dataset` or a stream; set by `encode`.
        lengths: Split to the number of tokens of each source before truncation; set by `encode`.
        references: Split to the reference of each row, for all splits but `train` (of taggers, that too).
        collator: Collates encoded rows; set by `encode`.
        own_loss: Whether training uses the model's own loss, which is more than that of its logits; set by
            `configure`.
        signatures: Metric to the signature that makes its value comparable.
    """

    columns: ClassVar[tuple[str, ...]]
    """Default names of the columns."""
    list_columns: ClassVar[slice] = slice(0, 0)
    """The columns that may hold lists."""
    metrics: ClassVar[tuple[str, ...]]
    """Scores of an evaluation beside the loss; the first decides which checkpoint is the best by default."""
    other_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of the other task that the rows may ask for; see `use`."""
    hub_task: ClassVar[str]
    """Task name on the Hub."""
    embedded_name: ClassVar[str]
    """Description of the embedded data."""
    auto_class: ClassVar[Any]
    generates: ClassVar[bool] = False
    """True if evaluations generate."""
    packages: ClassVar[tuple[str, ...]] = ("matplotlib",)
    """Packages of the `train` extra that scores and plots need."""
    rows: ClassVar[str] = "rows"
    """Noun for the rows in messages."""
    kind_metric: ClassVar[str | None] = None
    """Metric shown for each kind of row, where the data have a column `kind`."""
    moses: ClassVar[bool] = False
    """True if files may be aligned plain text."""
    streams_rows: ClassVar[bool] = True
    """True if a stream is read row by row in training, so that the length of an epoch is unknown."""
    lists_predictions: ClassVar[bool] = True
    """True if there is one prediction per row, to be written to a file."""
    collator: CheckedCollator
    encoded: dict[str, Any]
    lengths: dict[str, list[int]]

    def __init__(self, data: Any, args: TrainingArguments) -> None:
        self.data, self.args = data, args
        self.names = self.column_names()
        self.splits: dict[str, Any] = {}
        self.fields: dict[str, Any] = {}
        self.references: dict[str, Any] = {}
        self.signatures: dict[str, str] = {}
        self.own_loss = False
        self.max_train_samples: int | None = getattr(data, "max_train_samples", None)

    def column_names(self) -> tuple[str, ...]:
        """Names of the columns as the flags say, or those of the task."""
        given = (self.data.text_column, self.data.label_column)
        return tuple(own or usual for own, usual in zip(given, self.columns, strict=False))

    def read_columns(self) -> tuple[str, ...]:
        """Names of all columns that are read."""
        return self.names

    @property
    def metric(self) -> str:
        """The score shown beside the loss: that of the best checkpoint, unless it is the loss itself."""
        best = str(self.args.metric_for_best_model).removeprefix("eval_")
        return next(name for name in (best, *self.metrics) if name != "loss")

    @property
    def test_split(self) -> str:
        """Split of the final test: `test`, or `validation` without one."""
        return "test" if "test" in self.splits else "validation"

    @abstractmethod
    def embedded(self) -> datasets.DatasetDict:
        """Make the embedded data, for runs that name no data."""

    # Reading

    def read(self, *, train: bool = True, known: list[str] | None = None, num_parts: int = 1) -> "Task":
        """Read and check the rows.

        Args:
            train: Whether there must be training rows.
            known: Class names that the checkpoint was trained with, if any.
            num_parts: Shards of a stream of training rows.

        Raises:
            InputError: As `DataArguments.read`, and if the rows are not those of the task.

        Returns:
            The task, or another one that the rows ask for: a regression for labels with a fraction.
        """
        splits = self.data.read(
            self.read_columns(),
            self.embedded,
            train=train,
            seed=self.args.seed,
            moses=self.moses,
            label_columns=self.names[self.list_columns],
            classes=self.row_classes,
            num_parts=num_parts,
        )
        return self.use(splits, train=train, known=known)

    def use(self, splits: Mapping[str, Any], *, train: bool = True, known: list[str] | None = None) -> "Task":
        """Check rows that were read elsewhere, and take them; see `read`."""
        self.splits = dict(self._prepare(dict(splits), known, train))
        if train:
            size, seed = len(self.splits["validation"]), self.args.seed
            self.splits["train_sample"] = sample_split(self.splits["train"], size, seed)
        return self

    def with_training_rows(self, rows: Any) -> Self:
        """Copy of the task, to be encoded on its own, with other training rows of the same columns."""
        other = copy.copy(self)
        other.splits = {**self.splits, "train": rows}
        other.splits["train_sample"] = sample_split(rows, len(self.splits["validation"]), self.args.seed)
        return other

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Classes of each row that the training rows must all have: those of labels, none by default."""
        return [()] * len(rows)

    @abstractmethod
    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        """Check the rows, set `fields`, and apply `_draw`."""

    def _draw(self, splits: dict[str, Any]) -> dict[str, Any]:
        """Limit the training rows to `max_train_samples`, drawn by the seed; of a stream the first ones.

        Called once the classes are known, since the drawn rows may lack some that validation rows have.
        """
        limit = self.max_train_samples
        if limit is None or "train" not in splits:
            return splits
        rows = splits["train"]
        if isinstance(rows, datasets.IterableDataset):
            return {**splits, "train": rows.take(limit)}
        return {**splits, "train": rows.shuffle(seed=self.args.seed).select(range(min(limit, len(rows))))}

    def texts(self) -> Any:
        """Texts that a new tokenizer is trained on."""
        return tokenizer_texts(self.splits["train"], self.names[:1])

    def describe(self) -> str:
        """Number of rows of each split."""
        return (
            f"{count_rows({name: rows for name, rows in self.splits.items() if name != 'train_sample'})} {self.rows}"
        )

    def kinds(self, split: str) -> list[str] | None:
        """Kind of each row, where the data have a column of that name and the task scores by it."""
        rows = self.splits[split]
        return list(rows["kind"]) if self.kind_metric and "kind" in rows.column_names else None

    # Encoding and loss

    def encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log: Callable[..., Any]) -> None:
        """Encode the rows for a model, and log how many were truncated."""
        self.configure(model, tokenizer)
        self.encoded, self.lengths, notes = self._encode(model, tokenizer)
        for note in notes:
            log(note)

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Prepare a model for the task: its generation settings, and which loss trains it."""
        self.own_loss = False

    @abstractmethod
    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        """Encoded rows; sets `collator` and `references`."""

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Cross-entropy of the labels: their sum over `num_items_in_batch`, or over the number of labels here."""
        smoothing = self.args.label_smoothing_factor
        return token_loss(outputs.logits, labels, label_smoothing=smoothing, count=num_items_in_batch)

    def batch_loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], count: torch.Tensor | int
    ) -> torch.Tensor:
        """Loss of a batch in an explicit loop, divided by the number of labels of the whole step, `count`."""
        if self.own_loss:
            return model(**batch, num_items_in_batch=count).loss
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return self.loss(model(**inputs, **self.loss_inputs(model, batch["labels"])), batch["labels"], count)

    def loss_inputs(self, model: torch.nn.Module, labels: torch.Tensor) -> dict[str, Any]:
        """More inputs of a model whose loss is computed from its logits."""
        return {}

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Number of labels of a batch that the loss is a mean over."""
        return (batch["labels"] != -100).sum()

    # Predictions

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """The part of a batch's logits that is kept for the scores; of several outputs, as BART's, the first."""
        return logits[0] if isinstance(logits, tuple) else logits

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[Any, float]:
        """Run a model on the rows of a split, on all processes together.

        Returns:
            Raw predictions, one for each row, and the mean loss.
        """
        model.eval()
        # A loss of more than the logits is one of training where an evaluation generates.
        rows, own = self.encoded[split], self.own_loss and not self.generates

        def run(numbers: list[int]) -> list[tuple[Any, float, int]]:
            batch = self.collator(list(rows.select(numbers))).to(model.device)
            labels = batch.pop("labels")
            outputs = model(**batch, labels=labels, num_items_in_batch=1) if own else model(**batch)
            total = (outputs.loss if own else self.loss(outputs, labels, 1)).item()
            count = int(self.count({"labels": labels}))
            raw = self.raw(model, batch, outputs, labels, **options)
            # The first row stands for the batch in the sums.
            return [(kept, total * (not row), count * (not row)) for row, kept in enumerate(raw)]

        lengths = [len(ids) for ids in rows["input_ids"]]
        found = run_by_length(lengths, self.args.per_device_eval_batch_size, run)
        raw, totals, counts = zip(*found, strict=True)
        return raw, math.fsum(totals) / sum(counts)

    def raw(self, model: PreTrainedModel, batch: Any, outputs: Any, labels: torch.Tensor, **options: Any) -> list[Any]:
        """Raw prediction of each row of a batch."""
        return self.reduce(outputs.logits, labels).tolist()

    def test_options(self) -> dict[str, Any]:
        """Options of `predict` for the final test."""
        return {}

    @abstractmethod
    def decode(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> Any:
        """Predictions from the raw ones of all rows of a split, or of the given rows."""

    @abstractmethod
    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Scores of predictions, of all rows of a split or of some."""

    def score_raw(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> dict[str, float]:
        """Scores of raw predictions of all rows of a split, or of the given rows."""
        references = self.references[split]
        references = references if rows is None else [references[row] for row in rows]
        return self.score(self.decode(split, raw, rows), references)

    @abstractmethod
    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Baselines by name, a prediction of each for each row; `trained` says whether there are training rows."""

    # Reports

    @abstractmethod
    def show(self, predictions: Any) -> list[str]:
        """A line of text for each prediction or reference."""

    def sources(self, split: str) -> list[str]:
        """A line of text for each row: the input of the model."""
        return list(self.splits[split][self.names[0]])

    def example(self, split: str) -> str | None:
        """A text to show the model with on its card."""
        return self.sources(split)[0]

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{len(predictions)} {self.rows}"

    def about(self, split: str, predictions: Any) -> dict[str, Any]:
        """Further facts of a run for the model card."""
        return {"signatures": self.signatures}

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write plots into the output directory.

        Args:
            model: The trained model.
            log: As `TrainerState.log_history`; empty for no learning curve.
            split: The split that was tested.
            predictions: Predictions of its rows.
        """
        if log:
            plot_learning_curve(log, f"{self.args.output_dir}/learning_curve.png", metric=self.metric)


def sample_rows(num_rows: int, size: int, seed: int) -> list[int]:
    """Indices of `size` of `num_rows` rows (of all, if there are no more), in order, drawn by `seed` alone."""
    rows = np.random.default_rng(seed).choice(num_rows, min(size, num_rows), replace=False)
    return sorted(rows.tolist())


def sample_split(rows: datasets.Dataset | datasets.IterableDataset, size: int, seed: int) -> datasets.Dataset:
    """Training rows to score beside the validation rows: `size`, at most 500; of a stream the first ones."""
    size = min(size, 500)
    if isinstance(rows, datasets.IterableDataset):
        return datasets.Dataset.from_list(list(rows.take(size)), features=rows.features)
    return rows.select(sample_rows(len(rows), size, seed))
