"""Interface of a task: read, encode, loss, decode, score, baseline, show."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.encoding import EncodedSplits
from hfseq.data.streaming import count_rows, tokenizer_texts
from hfseq.data.subwords import resample
from hfseq.data.token_budget import row_lengths
from hfseq.errors import InputError
from hfseq.inference.benchmark import Run
from hfseq.inference.parallel import run_by_length
from hfseq.lazy import datasets
from hfseq.plots import plot_learning_curve
from hfseq.tasks.adversarial import adversarial_loss, source_embeddings
from hfseq.tasks.losses import summed_divergence, token_loss


class Task(ABC):
    """Rows of a task, and everything about them that is specific to the task.

    The model's output for a row is *raw* (logits, token tags, log-probabilities, token ids) until `decode` converts it
    to a *prediction* (class, word tags, log-probabilities, text), which is scored and shown.

    Args:
        data: Data arguments.
        args: Training arguments; each value is read when it is needed, so a search may change it.

    Attributes:
        names: Names of the columns in the data.
        splits: Split name to rows; `train_sample` contains training rows that are scored like the validation rows.
        fields: Config fields determined by the data.
        encoded: Split name to encoded rows, a `datasets.Dataset` or a stream; set by `encode`.
        lengths: Split name to the number of source tokens of each row before truncation, or of its frames; set by
            `encode`.
        references: Split name to the reference of each row; without `train` unless the task needs it.
        collator: Collator of the encoded rows; set by `encode`.
        own_loss: Whether training uses the loss computed by the model, because it has terms besides the loss of the
            logits; set by `configure`.
        signatures: Metric name to the signature that makes its values comparable.
        languages: Language codes of a translation, source first.
    """

    columns: ClassVar[tuple[str, ...]]
    """Default names of the columns."""
    column_flags: ClassVar[tuple[str, ...]] = ("text_column", "label_column")
    """Data arguments that name the columns."""
    list_columns: ClassVar[slice] = slice(0, 0)
    """Columns of classes, numbers, or lists of strings."""
    metrics: ClassVar[tuple[str, ...]]
    """Scores of an evaluation besides the loss; by default the first one selects the best checkpoint."""
    other_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of the other task that the rows may turn out to be for; see `use`."""
    hub_task: ClassVar[str]
    """Task name on the Hub."""
    embedded_name: ClassVar[str]
    """Description of the embedded data."""
    auto_class: ClassVar[Any]
    """Auto class of the models."""
    generates: ClassVar[bool] = False
    """True if evaluations generate."""
    features: ClassVar[bool] = False
    """True if the models read features or audio, and not text."""
    packages: ClassVar[tuple[str, ...]] = ("matplotlib",)
    """Packages of the `train` extra required for scores and plots."""
    rows: ClassVar[str] = "rows"
    """Plural noun for the rows in messages."""
    kind_metric: ClassVar[str | None] = None
    """Metric reported for each kind of row if the data have a column `kind`."""
    moses: ClassVar[bool] = False
    """True if files may be aligned plain text."""
    streams_rows: ClassVar[bool] = True
    """True if training iterates over the rows of a stream, so the length of an epoch is unknown."""
    lists_predictions: ClassVar[bool] = True
    """True if there is one prediction per row, to be written to a file."""
    predicts_batches: ClassVar[bool] = False
    """True if the task predicts with `predict_batch`, by sampling, also in evaluations of the Trainer."""
    keeps_columns: ClassVar[bool] = False
    """True if the collator reads columns of the rows that are no inputs of the model."""
    label_name: ClassVar[str] = "labels"
    """Input of the model that a loss is computed of."""
    main_input: str = "input_ids"
    """Column of the encoded rows that the model reads."""
    length_unit: ClassVar[str] = "tokens"
    """Unit of the lengths of rows."""
    collator: CheckedCollator
    encoded: dict[str, Any]
    lengths: dict[str, list[int]]
    languages: tuple[str, ...] = ()
    own_loss: bool = False

    def __init__(self, data: Any, args: TrainingArguments) -> None:
        self.data, self.args = data, args
        flags = zip(self.column_flags, self.columns, strict=False)
        self.names: tuple[str, ...] = tuple(getattr(data, flag) or default for flag, default in flags)
        self.splits: dict[str, Any] = {}
        self.fields: dict[str, Any] = {}
        self.references: dict[str, Any] = {}
        self.signatures: dict[str, str] = {}
        self.max_train_samples: int | None = getattr(data, "max_train_samples", None)

    def read_columns(self) -> tuple[str, ...]:
        """Names of all columns to read."""
        return self.names

    @property
    def metric(self) -> str:
        """Score shown besides the loss: the one that selects the best checkpoint, unless that is the loss."""
        best = str(self.args.metric_for_best_model).removeprefix("eval_")
        return next(name for name in (best, *self.metrics) if name != "loss")

    @property
    def test_split(self) -> str:
        """Split of the final test: `test` if there is one, else `validation`."""
        return "test" if "test" in self.splits else "validation"

    @abstractmethod
    def embedded(self) -> datasets.DatasetDict:
        """Create the embedded data, used when the arguments name no data."""

    # Reading

    def read(self, *, train: bool = True, known: list[str] | None = None, num_parts: int = 1) -> Task:
        """Read and validate the rows.

        Args:
            train: Whether training rows are required.
            known: Class names of the checkpoint, if any.
            num_parts: Number of shards of streamed training rows.

        Returns:
            This task, or the one that the rows turn out to be for, as labels with fractions are for a regression.

        Raises:
            InputError: As for `DataArguments.read`, or the rows do not fit the task.
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

    def use(self, splits: Mapping[str, Any], *, train: bool = True, known: list[str] | None = None) -> Task:
        """Validate and adopt rows that were read elsewhere.

        Args:
            splits: Split name to rows.
            train: Whether there are training rows.
            known: Class names of the checkpoint, if any.

        Returns:
            As for `read`.

        Raises:
            InputError: The rows do not fit the task.
        """
        self.splits = dict(self._prepare(dict(splits), known, train))
        if train:
            self.splits["train_sample"] = self._train_sample()
        return self

    def with_training_rows(self, rows: Any) -> Self:
        """Copy of the task, yet to be encoded, with other training rows of the same columns."""
        other = copy.copy(self)
        other.splits = other._draw({**self.splits, "train": rows})
        other.splits["train_sample"] = other._train_sample()
        return other

    def _train_sample(self) -> datasets.Dataset:
        """As many training rows as validation rows, but at most 500; from a stream the first ones."""
        rows, size = self.splits["train"], min(len(self.splits["validation"]), 500)
        if isinstance(rows, datasets.IterableDataset):
            return datasets.Dataset.from_list(list(rows.take(size)), features=rows.features)
        return rows.select(sample_rows(len(rows), size, self.args.seed))

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Classes of each row, all of which the training rows must contain; none by default."""
        return [()] * len(rows)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        """Validate the rows, set `fields` and limit the training rows with `_draw`."""
        return self._draw(splits)

    def _draw(self, splits: dict[str, Any]) -> dict[str, Any]:
        """Draw at most `max_train_samples` training rows, seeded; from a stream take the first ones.

        Must be called after the classes are determined, since the validation rows may have some that the sample lacks.
        """
        limit = self.max_train_samples
        if limit is None or "train" not in splits:
            return splits
        rows = splits["train"]
        if isinstance(rows, datasets.IterableDataset):
            return {**splits, "train": rows.take(limit)}
        return {**splits, "train": rows.shuffle(seed=self.args.seed).select(range(min(limit, len(rows))))}

    def texts(self) -> Any:
        """Texts to train a new tokenizer on."""
        return tokenizer_texts(self.splits["train"], self.names[:1])

    def target_texts(self) -> Any:
        """Texts to train a tokenizer of the targets on; None, by default, if `texts` are those of the only one."""
        return None

    def describe(self) -> str:
        """Describe the number of rows in each split."""
        return (
            f"{count_rows({name: rows for name, rows in self.splits.items() if name != 'train_sample'})} {self.rows}"
        )

    def kinds(self, split: str) -> list[str] | None:
        """Kind of each row, if the data have a column `kind` and the task reports scores by kind."""
        rows = self.splits[split]
        return list(rows["kind"]) if self.kind_metric and "kind" in rows.column_names else None

    # Model

    def new_processor(self, args: Any) -> Any:
        """Create the processing class of a new model, and set the fields of its config that it determines.

        Args:
            args: Model arguments.

        Returns:
            The processing class; None for a tokenizer yet to be trained on `texts`, or that of a checkpoint, or for a
            model that has none.
        """
        return None

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from raw inputs to predictions, and raw inputs of a split, to measure latency with.

        Args:
            model: Model, on its device.
            processing_class: Tokenizer, or other processing class of the model.
            split: Split that is read.
            count: Maximum number of inputs.
        """
        raise NotImplementedError

    # Encoding and loss

    def encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log: Callable[..., Any]) -> None:
        """Configure a model and encode the rows for it.

        Args:
            model: Model; see `configure`.
            tokenizer: Tokenizer of the model.
            log: Logs the number of truncated rows.

        Raises:
            InputError: As for `configure`, or the tokenizer does not fit the task.
        """
        self.configure(model, tokenizer)
        self.encoded, self.lengths, notes = self._encode(model, tokenizer)
        for note in notes:
            log(note)

    def _resampled(
        self, encoded: EncodedSplits, tokenizer: PreTrainedTokenizerBase, limits: Mapping[str, int]
    ) -> EncodedSplits:
        """Encoded rows, with `--subword_samples` segmentations of each training row; see `resample`."""
        if self.data.subword_samples and "train" in encoded.rows:
            options = {"samples": self.data.subword_samples, "alpha": self.data.subword_alpha, "seed": self.args.seed}
            encoded.rows["train"] = resample(encoded.rows["train"], tokenizer, limits, **options)
        return encoded

    def encoded_split(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str) -> Self:
        """Copy of the task with a single split, encoded for a model."""
        other = copy.copy(self)
        other.splits = {split: self.splits[split]}
        other.encode(model, tokenizer, lambda note: None)
        return other

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the generation defaults of a model, and choose between its own loss and that of the task.

        Args:
            model: Model, modified in place.
            tokenizer: Tokenizer of the model.

        Raises:
            InputError: The model does not support a training argument.
        """
        self.own_loss = False

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        """Encode the rows; set `collator` and `references`."""
        raise NotImplementedError

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Compute the cross-entropy of the labels.

        Args:
            outputs: Model outputs with `logits`.
            labels: Labels of the batch.
            num_items_in_batch: Denominator of the summed loss; None for the number of labels in this batch.
        """
        smoothing, (logits, labels) = self.args.label_smoothing_factor, self.aligned(outputs.logits, labels)
        return token_loss(logits, labels, label_smoothing=smoothing, count=num_items_in_batch)

    def _strength(self, name: str) -> float:
        """Strength of a regularization by the name of its flag; arguments other than those of recipes have none."""
        return getattr(self.args, name, 0.0)

    def training_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> Any:
        """Compute the loss, in training with `--rdrop_alpha` that of rows that were read twice; see `twice`.

        R-Drop (Liang et al. 2021) reads each row with two dropout masks. The loss is the mean of both, plus the
        divergence of the two predictions by `--rdrop_alpha` (eq. 4).

        Args:
            outputs: As for `loss`; the outputs for all rows are followed by those of the second reading.
            labels: Labels in the same order.
            num_items_in_batch: As for `loss`, each label counted once.
        """
        alpha = self._strength("rdrop_alpha")
        if not (alpha and torch.is_grad_enabled()):
            return self.loss(outputs, labels, num_items_in_batch)
        count = self.count({"labels": labels}) / 2 if num_items_in_batch is None else num_items_in_batch
        return self.loss(outputs, labels, 2 * count) + alpha * self.divergence(outputs, labels) / count

    def twice(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Return a batch, in training with `--rdrop_alpha` with all rows twice, the second time after the last."""
        if not (self._strength("rdrop_alpha") and torch.is_grad_enabled()):
            return batch
        return {name: torch.cat([values, values]) for name, values in batch.items()}

    def divergence(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Sum the divergences of two predictions for the same labels, which are the halves of the outputs.

        Args:
            outputs: Outputs with `logits` `[2B, ..., V]`, or `[2N, V]` of the N labelled steps.
            labels: Labels `[2B, ...]`, the second half like the first.
        """
        logits, labels = self.aligned(outputs.logits, labels)
        logits = logits[labels != -100] if logits.dim() > labels.dim() else logits
        return summed_divergence(*logits.chunk(2))

    def aligned(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the steps that predict the labels, and these labels."""
        return logits, labels

    def check_regularization(self, loss: Callable[..., Any] | None = None) -> None:
        """Reject `--rdrop_alpha` and `--adversarial_epsilon` where they are not possible.

        Args:
            loss: Loss function to use instead of the task's.

        Raises:
            InputError: R-Drop with a loss of the model itself, or another one than the task's; adversarial training
                of a model without token embeddings.
        """
        if self._strength("adversarial_epsilon"):
            if self.features or self.main_input != "input_ids":
                raise InputError("--adversarial_epsilon moves embeddings of tokens; this model has none: leave it out")
            if self.args.torch_compile:
                raise InputError("--adversarial_epsilon reads embeddings inside the model: omit --torch_compile")
        if self._strength("rdrop_alpha") and (self.own_loss or loss is not None):
            raise InputError("--rdrop_alpha needs a loss of classes or tokens, one by one; leave it out")

    def batch_loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], count: torch.Tensor | int
    ) -> torch.Tensor:
        """Compute the loss of a batch in an explicit loop.

        Args:
            model: Model, wrapped or not.
            batch: Model inputs and labels.
            count: Number of labels in the whole optimizer step, the denominator of the loss.
        """
        return self.against(model, lambda: self._batch_loss(model, batch, count))

    def _batch_loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], count: torch.Tensor | int
    ) -> torch.Tensor:
        if self.own_loss:
            return model(**batch, num_items_in_batch=count).loss
        batch = self.twice(batch)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        outputs = model(**inputs, **self.loss_inputs(model, batch["labels"]))
        return self.training_loss(outputs, batch["labels"], count)

    def against(self, model: torch.nn.Module, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Compute a loss, in training with `--adversarial_epsilon` also of moved embeddings; see `adversarial_loss`.

        Args:
            model: Model, wrapped or not.
            compute: Computes the loss.
        """
        epsilon = self._strength("adversarial_epsilon")
        if not (epsilon and torch.is_grad_enabled()):
            return compute()
        return adversarial_loss(compute, source_embeddings(getattr(model, "module", model)), epsilon)

    def loss_inputs(self, model: torch.nn.Module, labels: torch.Tensor) -> dict[str, Any]:
        """Additional inputs for a model whose loss is computed from its logits."""
        return {}

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Number of labels in a batch, the denominator of its mean loss."""
        return (batch["labels"] != -100).sum()

    # Predictions

    def predict_batch(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss and raw predictions `[B, …]` of a batch, for tasks that sample."""
        raise NotImplementedError

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Reduce the logits of a batch to the part needed for scoring; of several outputs, as BART has, the first."""
        return logits[0] if isinstance(logits, tuple) else logits

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[Any, float]:
        """Run a model on a split, distributed over all processes.

        Args:
            model: Model, on its device.
            split: Encoded split.
            **options: Options of `generate`, for tasks that generate.

        Returns:
            Raw prediction of each row, and the mean loss.
        """
        if self.predicts_batches:
            return self._predict_batches(model, split)
        # Where evaluations generate, the terms that the model adds to the loss are for training only.
        own = self.own_loss and not self.generates

        def run(batch: Any) -> tuple[Sequence[Any], float, int]:
            labels = batch.pop("labels")
            outputs = model(**batch, labels=labels, num_items_in_batch=1) if own else model(**batch)
            total = (outputs.loss if own else self.loss(outputs, labels, 1)).item()
            return self.raw(model, batch, outputs, labels, **options), total, int(self.count({"labels": labels}))

        return self.run_split(model, split, row_lengths(self.encoded[split], (self.main_input,)).tolist(), run)

    def _predict_batches(self, model: PreTrainedModel, split: str) -> tuple[NDArray[Any], float]:
        """Raw predictions of a split by `predict_batch`, as one array, and the mean loss."""

        def run(batch: Any) -> tuple[Sequence[Any], float, int]:
            loss, found = self.predict_batch(model, batch)
            count = int(self.count(batch))
            return list(found.cpu().numpy()), loss.item() * count, count

        raw, loss = self.run_split(model, split, self.lengths[split], run)
        return np.stack(raw), loss

    def run_split(
        self,
        model: PreTrainedModel,
        split: str,
        lengths: Sequence[int],
        run: Callable[[Any], tuple[Sequence[Any], float, int]],
    ) -> tuple[tuple[Any, ...], float]:
        """Run a function over the batches of a split, distributed over all processes.

        Args:
            model: Model, on its device.
            split: Encoded split.
            lengths: Length of each row, by which rows are batched.
            run: Function from a batch to the raw prediction of each row, the sum of the losses, and their number.

        Returns:
            Raw prediction of each row, and the mean loss.
        """
        model.eval()
        rows = self.encoded[split]

        def run_rows(numbers: list[int]) -> list[tuple[Any, float, int]]:
            raw, total, count = run(self.collator([rows[number] for number in numbers]).to(model.device))
            # The sums of the batch are attributed to its first row.
            return [(kept, total * (not row), count * (not row)) for row, kept in enumerate(raw)]

        found = run_by_length(lengths, self.args.per_device_eval_batch_size, run_rows)
        raw, totals, counts = zip(*found, strict=True)
        return raw, math.fsum(totals) / max(1, sum(counts))

    def raw(self, model: PreTrainedModel, batch: Any, outputs: Any, labels: torch.Tensor, **options: Any) -> list[Any]:
        """Raw prediction of each row in a batch.

        Args:
            model: Model.
            batch: Model inputs.
            outputs: Outputs of the model for the batch.
            labels: Labels of the batch.
            **options: As for `predict`.
        """
        return self.reduce(outputs.logits, labels).tolist()

    def test_options(self) -> dict[str, Any]:
        """Options of `predict` for the final test."""
        return {}

    def decode(self, split: str, raw: Any) -> Any:
        """Convert the raw predictions for a split to predictions; by default they are the same."""
        return raw

    @abstractmethod
    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Score predictions against their references, for all rows of a split or some of them."""

    def score_raw(self, split: str, raw: Any) -> dict[str, float]:
        """Score the raw predictions for a split."""
        return self.score(self.decode(split, raw), self.references[split])

    def evaluate(self, model: PreTrainedModel, split: str, **options: Any) -> dict[str, float]:
        """Score a model on an encoded split; `options` are passed to `predict`."""
        return self.score_raw(split, self.predict(model, split, **options)[0])

    def score_kind(self, predictions: Any, references: Any) -> dict[str, float]:
        """Score predictions of one kind of rows by `kind_metric`, as `score`."""
        score: dict[str, float] = getattr(metrics, str(self.kind_metric))(predictions, references)
        return score

    @abstractmethod
    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Predictions of each baseline by name, one per row.

        Args:
            split: Split to predict.
            trained: Whether there are training rows.
        """

    # Reports

    @abstractmethod
    def show(self, predictions: Any) -> list[str]:
        """Format each prediction or reference as a line of text."""

    def sources(self, split: str) -> list[str]:
        """Model input of each row as a line of text."""
        return list(self.splits[split][self.names[0]])

    def example(self, split: str) -> str | None:
        """Example input for the model card."""
        return self.sources(split)[0]

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{len(predictions)} {self.rows}"

    def write(  # noqa: B027
        self, directory: Path, split: str, predictions: Any
    ) -> None:
        """Write files of the task's own to the output directory; none by default."""

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write plots to the output directory.

        Args:
            model: Trained model.
            log: Training log in the format of `TrainerState.log_history`; empty for no learning curve.
            split: Split of the final test.
            predictions: Predictions for that split.
        """
        if log:
            plot_learning_curve(log, f"{self.args.output_dir}/learning_curve.png", metric=self.metric)


def sample_rows(num_rows: int, size: int, seed: int) -> list[int]:
    """Draw row indices without replacement, in ascending order.

    Args:
        num_rows: Number of rows to draw from.
        size: Number of indices; all rows if there are fewer.
        seed: Random seed, which alone determines the result.
    """
    rows = np.random.default_rng(seed).choice(num_rows, min(size, num_rows), replace=False)
    return sorted(rows.tolist())
