"""Scores by quartile of source length, to compare short and long sequences."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfseq.tasks.base import Task
from hfseq.training.trainer import SequenceTrainer


def quartile_edges(lengths: Sequence[int]) -> list[int]:
    """Maximum length of each quartile but the last.

    The edges are the lengths at a quarter, half and three quarters of the sorted rows, so rows of equal length are
    always in the same group. Coinciding quartiles are merged, so there may be fewer edges, or none.
    """
    ordered = sorted(lengths)
    ends = {ordered[-(-len(ordered) * quarter // 4) - 1] for quarter in (1, 2, 3)} if ordered else set()
    return sorted(end for end in ends if end < ordered[-1])


def rows_by_length(lengths: Sequence[int], edges: Sequence[int] | None = None) -> dict[str, list[int]]:
    """Group rows by length, shortest first: indices by group name, such as `8-12 tokens`.

    Args:
        lengths: Lengths of the rows in tokens.
        edges: Maximum length of each group but the last; by default from `quartile_edges`.

    Returns:
        All groups; some may be empty if the edges come from other rows.
    """
    edges = quartile_edges(lengths) if edges is None else edges
    groups: list[list[int]] = [[] for _ in range(len(edges) + 1)]
    for row, length in enumerate(lengths):
        groups[bisect_left(edges, length)].append(row)
    return dict(zip(_names(edges), groups, strict=True))


def length_report(task: Task, raw: Mapping[str, Any]) -> str:
    """Table of training and validation scores by quartile of source length.

    The quartiles are those of the validation rows; training rows are grouped by the same edges.

    Args:
        task: Task with encoded rows.
        raw: Raw predictions of the splits `train_sample` and `validation`.
    """
    edges = quartile_edges(task.lengths["validation"])
    counts, scores = [], []
    for split in ("train_sample", "validation"):
        predictions, references = task.decode(split, raw[split]), task.references[split]
        groups = rows_by_length(task.lengths[split], edges)
        counts.append({name: len(rows) for name, rows in groups.items()})
        scores.append(
            {
                name: task.score([predictions[row] for row in rows], [references[row] for row in rows])[task.metric]
                for name, rows in groups.items()
                if rows
            }
        )
    lines = [f"{task.metric + ' by source length':32}{'rows':>14}{'train':>12}{'validation':>12}"]
    for name in counts[0]:
        rows = " / ".join(str(side[name]) for side in counts)
        values = "".join(f"{side[name]:>12.4g}" if name in side else f"{'-':>12}" for side in scores)
        lines.append(f"  {name:30}{rows:>14}{values}")
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
        task, evaluated = self.trainer.task, self.trainer.take_predictions()
        if task is None:
            return
        with torch.random.fork_rng(devices=[]):
            trained = self.trainer.predict_split("train_sample")
        if state.is_world_process_zero:
            self.log(length_report(task, {"train_sample": trained, "validation": evaluated}))


def _names(edges: Sequence[int]) -> list[str]:
    """Names of the groups separated by `edges`."""
    if not edges:
        return ["any length"]
    middle = [
        f"{low + 1}-{high} tokens" if high > low + 1 else f"{high} tokens"
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    return [f"up to {edges[0]} tokens", *middle, f"over {edges[-1]} tokens"]
