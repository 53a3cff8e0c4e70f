"""Scores by quartile of source length: does the model do well on short sequences and badly on long ones?"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfseq.tasks.base import Task
from hfseq.training.trainer import SequenceTrainer


def quartile_edges(lengths: Sequence[int]) -> list[int]:
    """The longest length of each quartile but the last.

    A quartile ends with the length of the row at a quarter, a half and three quarters of the sorted rows, so rows of
    one length are always together. Where that makes two quartiles one, there are fewer edges, down to none.
    """
    ordered = sorted(lengths)
    ends = {ordered[-(-len(ordered) * quarter // 4) - 1] for quarter in (1, 2, 3)} if ordered else set()
    return sorted(end for end in ends if end < ordered[-1])


def rows_by_length(lengths: Sequence[int], edges: Sequence[int] | None = None) -> dict[str, list[int]]:
    """The rows of each group of lengths, shortest first: the group's name, such as `8-12 tokens`, and indices.

    Args:
        lengths: of the rows, in tokens.
        edges: the longest length of each group but the last; by default those of `quartile_edges`.

    Returns:
        All groups; one may be empty if the edges are those of other rows.
    """
    edges = quartile_edges(lengths) if edges is None else edges
    groups: list[list[int]] = [[] for _ in range(len(edges) + 1)]
    for row, length in enumerate(lengths):
        groups[bisect_left(edges, length)].append(row)
    return dict(zip(_names(edges), groups, strict=True))


def length_report(task: Task, raw: Mapping[str, Any]) -> str:
    """Table of the scores of each quartile of source length, on training rows and on validation rows.

    The quartiles are those of the validation rows; the training rows are put into the same.

    Args:
        task: The task, whose rows are encoded.
        raw: Raw predictions of `train_sample` and of `validation`.
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

    The validation scores come from the predictions of the evaluation itself; the training scores cost one pass over a
    sample of the training rows. Training stays the same, bit for bit: the state of the random generator is restored.

    Args:
        trainer: A trainer with a task; add the callback to it with `add_callback`.
        log: Prints, on the first process.
    """

    def __init__(self, trainer: SequenceTrainer, log: Callable[[str], Any]) -> None:
        self.trainer, self.log = trainer, log

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Predict the training sample, and log the table."""
        task, evaluated = self.trainer.task, self.trainer.take_predictions()
        if task is None:
            return
        with torch.random.fork_rng(devices=[]):
            trained = self.trainer.predict_split("train_sample")
        if state.is_world_process_zero:
            self.log(length_report(task, {"train_sample": trained, "validation": evaluated}))


def _names(edges: Sequence[int]) -> list[str]:
    """Names of the groups between `edges`."""
    if not edges:
        return ["any length"]
    middle = [
        f"{low + 1}-{high} tokens" if high > low + 1 else f"{high} tokens"
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    return [f"up to {edges[0]} tokens", *middle, f"over {edges[-1]} tokens"]
