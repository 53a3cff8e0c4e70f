"""Monitoring of a trained model: arguments, the interface of what is monitored, and retraining on fresh rows."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel

from hfseq.data.reading import shorten_list
from hfseq.errors import InputError
from hfseq.lazy import datasets
from hfseq.tasks.base import Task
from hfseq.training.drift import Drop, Samples, bootstrap_drop
from hfseq.training.run import Run, fit
from hfseq.training.served import Served, join_labels, read_served

FEWEST = 10
"""Minimum number of fresh rows to train on and to judge by."""


@dataclass
class MonitoringFields:
    """The monitored model, its fresh rows, and the bounds."""

    task: str = field(
        default="text",
        metadata={"help": "Kind: text (classifiers, translators, summarizers), audio, forecasting or recommendation."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Classifier, translator, summarizer, ...: a directory or Hub name."}
    )
    fresh_file: str | None = field(
        default=None, metadata={"help": "Fresh rows, as --test_file; without the label column only drift is tested."}
    )
    served: str | None = field(
        default=None, metadata={"help": "In place of --fresh_file: directory of a server's traffic log."}
    )
    served_name: str | None = field(
        default=None, metadata={"help": "With --served: name of the model there; by default its path or last part."}
    )
    labels_file: str | None = field(
        default=None, metadata={"help": "With --served: CSV, TSV or JSON lines of labels that came later: id,label."}
    )
    max_drop: float = field(default=2.0, metadata={"help": "Points by which the score may drop, or the error rise."})
    alpha: float = field(default=0.01, metadata={"help": "A drift test with a smaller p-value raises an alarm."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Bootstrap samples for the interval of the drop."})
    retrain: bool = field(
        default=False,
        metadata={"help": "Train on with --train_file and part of the fresh rows; keep the better model."},
    )
    holdout: float = field(default=0.3, metadata={"help": "Share of the fresh rows that is held out to judge it."})

    def __post_init__(self) -> None:
        """Refuse missing files and impossible values."""
        super().__post_init__()  # type: ignore[misc]
        data: Any = self
        for name in ("model_name_or_path", "test_file"):
            if getattr(self, name) is None:
                raise ValueError(f"--{name} is missing: the model, its --test_file and fresh rows are compared")
        if (self.fresh_file is None) == (self.served is None):
            raise ValueError("give either --fresh_file, a file of fresh rows, or --served, the log of a server")
        for name in ("labels_file", "served_name"):
            if getattr(self, name) is not None and self.served is None:
                raise ValueError(f"--{name} goes with --served; --fresh_file has a column for labels")
        if self.retrain and data.train_file is None:
            raise ValueError("--retrain needs --train_file, the rows that the model was trained on")
        if not 0 < self.holdout < 1 or not 0 <= self.alpha <= 1:
            raise ValueError("--holdout must lie between 0 and 1, and --alpha from 0 to 1")


class Side(NamedTuple):
    """Reference or fresh rows, as they are compared.

    Attributes:
        size: Number of rows.
        samples: Values of each quantity.
        scores: Score of each row with a label; None if there are none.
    """

    size: int
    samples: Samples
    scores: np.ndarray | None


class Monitored(ABC):
    """Trained model with the rows that it is monitored on.

    Args:
        data: Arguments for model and files.
        args: Training arguments.

    Attributes:
        model: The model, on its device.
        tokenizer: Its tokenizer; None for a model without one.
        reference: Rows of its test; set by `read`.
        judged: Fresh rows with labels; set by `read`, None if there are none.
        notes: Lines for the report.

    Raises:
        InputError: The model cannot be loaded, or is of another kind.
    """

    arguments: ClassVar[type]
    """Dataclass of the data arguments."""
    pipelines: frozenset[str]
    """Names of the pipeline's task in logs."""
    rows: ClassVar[str] = "texts"
    """Plural noun for the rows in messages."""
    metric: str
    """Name of the score."""
    lower_is_better: ClassVar[bool] = False
    """True if the score is an error."""
    model: PreTrainedModel
    tokenizer: Any = None
    reference: datasets.Dataset

    def __init__(self, data: Any, args: Any) -> None:
        self.data, self.args = data, args
        self.judged: datasets.Dataset | None = None
        self.notes: list[str] = []

    @abstractmethod
    def read(self) -> None:
        """Read the rows of the test, the fresh ones, and with `--retrain` those to train on.

        Raises:
            InputError: A file is invalid, or does not fit the model.
        """

    @abstractmethod
    def observe_reference(self) -> Side:
        """Predict the rows of the test, and measure inputs and outputs."""

    @abstractmethod
    def observe_fresh(self) -> Side:
        """Measure the fresh rows and their outputs, those of a log or those predicted now."""

    @abstractmethod
    def score(self, rows: datasets.Dataset) -> np.ndarray:
        """Predict and score each row; rows whose score is undefined are left out."""

    @abstractmethod
    def split_judged(self, rows: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Split the fresh rows with labels into those to train on and those held out to judge the new model."""

    @abstractmethod
    def training_task(self, fresh: datasets.Dataset) -> tuple[Task, Any]:
        """Return the task with old and fresh rows to train on and rows for validation, and its data arguments."""

    def read_served(self) -> list[Served]:
        """Read the rows of the model from the log, joined with labels if there are any.

        Raises:
            InputError: As for `read_served` and `join_labels`.
        """
        data, path = self.data, Path(self.data.model_name_or_path)
        names = [data.served_name] if data.served_name else [data.model_name_or_path, str(path), path.name]
        rows, notes = read_served(data.served, dict.fromkeys(names), self.pipelines)
        self.notes += notes
        if data.labels_file is not None:
            self.notes += join_labels(rows, data.labels_file)
        return rows

    def check_judged(self) -> None:
        """Check that there are enough fresh rows with labels to retrain.

        Raises:
            InputError: There are not.
        """
        if not self.data.retrain:
            return
        source = self.data.fresh_file or "the log; give them by --labels_file"
        if self.judged is None:
            column = getattr(self.data, "label_column", None)
            of = f": column {column!r}" if column and self.data.fresh_file else ""
            raise InputError(f"--retrain needs labels in {source}{of}")
        if len(self.judged) < FEWEST:
            raise InputError(
                f"--retrain: {len(self.judged)} fresh rows are too few to train on and to judge by; give {FEWEST}"
            )

    def drop(self, reference: Side, fresh: Side) -> Drop | None:
        """Worsening of the score; None without labels on both sides."""
        if reference.scores is None or fresh.scores is None:
            return None
        options = {"lower_is_better": self.lower_is_better, "count": self.data.num_bootstrap, "seed": self.args.seed}
        return bootstrap_drop(self.metric, reference.scores, fresh.scores, **options)

    def retrain(self, run: Run) -> list[str]:
        """Continue training on old and fresh rows, and keep the new model if it is better; return report lines.

        Args:
            run: The run.

        Raises:
            InputError: The rows cannot be trained on.
        """
        assert self.judged is not None
        target = Path(str(self.args.output_dir)) / "retrained"
        new = target.with_name("retrained.partial")
        learnt, held_out = self.split_judged(self.judged)
        judges = {"test rows": self.reference, "held-out fresh rows": held_out}
        before = self._means(judges)
        task, flags = self.training_task(learnt)
        run.log(f"\nretraining on {len(task.splits['train'])} rows, old and fresh, {len(learnt)} of them fresh")
        self.train(lambda: fit(replace(run, data=flags), task, self.model, self.tokenizer, new), new)
        after = self._means(judges)
        sign = -1 if self.lower_is_better else 1
        better = all(sign * (after[name] - before[name]) >= 0 for name in judges) and after != before
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            shutil.rmtree(target if better else new, ignore_errors=True)
            if better:
                new.rename(target)
        lines = ["## Retrained", "", f"| {self.metric} | before | after |", "|---|---|---|"]
        lines += [f"| {name} | {before[name]:.2f} | {after[name]:.2f} |" for name in judges]
        if better:
            return [*lines, "", f"The new model is better and is kept: {target}"]
        return [*lines, "", "The new model is not better on both; the old one is kept, and the new one is deleted."]

    def train(self, fit_model: Callable[[], Any], directory: Path) -> None:
        """Run the training; `directory` is that of the new model."""
        fit_model()

    def _means(self, judges: Mapping[str, datasets.Dataset]) -> dict[str, float]:
        """Return the mean score on each set of rows."""
        return {name: float(self.score(rows).mean()) for name, rows in judges.items()}


def names_of_labels(labels: Sequence[Any], classes: Sequence[str], source: str) -> list[str]:
    """Class names of a column of names or ids.

    Args:
        labels: The column.
        classes: Class names of the model in the order of their ids.
        source: Flag and file, for errors.

    Raises:
        InputError: A class is unknown to the model.
    """
    # Models trained without class names have classes such as LABEL_1.
    numbers = {str(number): name for number, name in enumerate(classes)}
    found = [str(value).strip() for value in labels]
    # Decided for the whole column: a single value is ambiguous if class names are digits.
    if not {*found} <= {*classes} and {*found} <= {*numbers}:
        found = [numbers[value] for value in found]
    if unknown := sorted({*found} - {*classes}):
        known = shorten_list(classes)
        raise InputError(f"{source}: class {unknown[0]!r} is not one of the model's: {known}")
    return found


def parts_of(output: Any) -> list[dict[str, Any]]:
    """Dicts of a pipeline's result for one input."""
    while isinstance(output, list) and output and isinstance(output[0], list):
        output = output[0]
    return [part for part in (output if isinstance(output, list) else [output]) if isinstance(part, dict)]


def best_class(output: Any, classes: Sequence[str]) -> str | None:
    """Class with the highest score in the result of a classifier's pipeline; None if there is none of the model."""
    named = [part for part in parts_of(output) if part.get("label") in classes]
    scored = [part for part in named if isinstance(part.get("score"), int | float)]
    return max(scored, key=lambda part: part["score"])["label"] if scored else None
