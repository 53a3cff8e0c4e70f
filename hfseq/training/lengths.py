"""Scores by quartile of source length, to compare short and long sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfseq.tasks.base import Task

if TYPE_CHECKING:
    from hfseq.training.trainer import SequenceTrainer


def quartile_edges(lengths: Sequence[int]) -> list[int]:
    """Maximum length of each quartile but the last.

    The edges are the lengths at a quarter, half and three quarters of the sorted rows, so rows of equal length are
    always in the same group. Coinciding quartiles are merged, so there may be fewer edges, or none.
    """
    if not lengths:
        return []
    ends = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf"))
    return ends[ends < max(lengths)].tolist()


def rows_by_length(
    lengths: Sequence[int], edges: Sequence[int] | None = None, unit: str = "tokens"
) -> dict[str, list[int]]:
    """Group rows by length, shortest first: indices by group name, such as `8-12 tokens`.

    Args:
        lengths: Lengths of the rows in tokens.
        edges: Maximum length of each group but the last; by default from `quartile_edges`.
        unit: Unit of the lengths.

    Returns:
        All groups; some may be empty if the edges come from other rows.
    """
    edges = quartile_edges(lengths) if edges is None else edges
    group_of = np.searchsorted(edges, lengths)
    return {name: np.flatnonzero(group_of == group).tolist() for group, name in enumerate(_names(edges, unit))}


def length_report(task: Task, raw: Mapping[str, Any]) -> str:
    """Table of training and validation scores by quartile of source length.

    The quartiles are those of the validation rows; training rows are grouped by the same edges.

    Args:
        task: Task with encoded rows.
        raw: Raw predictions of the splits `train_sample` and `validation`.
    """
    edges = quartile_edges(task.lengths["validation"])
    counts: dict[str, list[str]] = {name: [] for name in _names(edges, task.length_unit)}
    cells: dict[str, str] = dict.fromkeys(counts, "")
    for split in ("train_sample", "validation"):
        predictions, references = task.decode(split, raw[split]), task.references[split]
        for name, rows in rows_by_length(task.lengths[split], edges, task.length_unit).items():
            counts[name].append(str(len(rows)))
            pairs = [predictions[row] for row in rows], [references[row] for row in rows]
            cells[name] += f"{task.score(*pairs)[task.metric]:>12.4g}" if rows else f"{'-':>12}"
    lines = [f"{task.metric + ' by source length':32}{'rows':>14}{'train':>12}{'validation':>12}"]
    lines += [f"  {name:30}{' / '.join(counts[name]):>14}{cells[name]}" for name in counts]
    return "\n".join(lines)


class LengthScores(TrainerCallback):
    """Logs `length_report` after each evaluation.

    Validation scores reuse the predictions of the evaluation; training scores cost one pass over a sample of the
    training rows. The state of the random number generator is restored, so training is bit-identical.

    Args:
        trainer: Trainer with a task; register the callback with its `add_callback`.
        log: Prints on the main process.
    """

    def __init__(self, trainer: SequenceTrainer, log: Callable[[str], Any]) -> None:
        self.trainer, self.log = trainer, log

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Predict the training sample and log the table."""
        raw = {"validation": self.trainer.eval_predictions}
        with torch.random.fork_rng(devices=[]):
            raw["train_sample"] = self.trainer.predict_split("train_sample")
        if state.is_world_process_zero:
            self.log(length_report(cast(Task, self.trainer.task), raw))


def _names(edges: Sequence[int], unit: str) -> list[str]:
    """Names of the groups separated by `edges`."""
    if not edges:
        return ["any length"]
    ranges = [f"{low + 1}-{high}" if high > low + 1 else f"{high}" for low, high in pairwise(edges)]
    return [f"{words} {unit}" for words in (f"up to {edges[0]}", *ranges, f"over {edges[-1]}")]
