"""Scores by quartile of source length: does a model remember short sequences and forget long ones?"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

RowScore = Callable[[list[int]], float]
"""Gives the score of some rows, by their indices."""


def sample_rows(n_rows: int, size: int, seed: int) -> list[int]:
    """Indices of `size` of `n_rows` rows (of all, if there are no more), in order; `seed` alone decides which."""
    rows = np.random.default_rng(seed).choice(n_rows, min(size, n_rows), replace=False)
    return sorted(rows.tolist())


def sample_split(rows: Dataset | IterableDataset, size: int, seed: int) -> Dataset:
    """Some training rows to score beside the validation rows: `size`, 500 at most; the first ones of a stream."""
    size = min(size, 500)
    if isinstance(rows, IterableDataset):
        return Dataset.from_list(list(rows.take(size)), features=rows.features)
    return rows.select(sample_rows(len(rows), size, seed))


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


def scores_by_length(
    lengths: Sequence[int], score_of_rows: RowScore, edges: Sequence[int] | None = None
) -> dict[str, float]:
    """The score of each group of `rows_by_length`; a group without rows has none and is left out."""
    return {name: score_of_rows(rows) for name, rows in rows_by_length(lengths, edges).items() if rows}


def length_report(
    metric: str,
    train_lengths: Sequence[int],
    train_score: RowScore,
    validation_lengths: Sequence[int],
    validation_score: RowScore,
) -> str:
    """A table to print: for each quartile of source length its rows, and the scores of training and validation.

    The quartiles are those of the validation rows; the training rows are put into the same.

    Args:
        metric: the score's name, for the heading.
        train_lengths: source lengths of the training rows that were scored.
        train_score: their score.
        validation_lengths: source lengths of the validation rows.
        validation_score: their score.
    """
    edges = quartile_edges(validation_lengths)
    scores = [
        scores_by_length(train_lengths, train_score, edges),
        scores_by_length(validation_lengths, validation_score, edges),
    ]
    counts = [rows_by_length(train_lengths, edges), rows_by_length(validation_lengths, edges)]
    lines = [f"{metric + ' by source length':32}{'rows':>14}{'train':>12}{'validation':>12}"]
    for name in _names(edges):
        rows = " / ".join(str(len(side[name])) for side in counts)
        values = "".join(f"{side[name]:>12.4g}" if name in side else f"{'-':>12}" for side in scores)
        lines.append(f"  {name:30}{rows:>14}{values}")
    return "\n".join(lines)


def report_by_length(
    metric: str,
    score: Callable[[Any, Any], Mapping[str, float]],
    train: tuple[Sequence[int], Sequence[Any], Sequence[Any]],
    validation: tuple[Sequence[int], Sequence[Any], Sequence[Any]],
) -> str:
    """The table of `length_report`, from the rows themselves.

    Args:
        metric: Which of the scores.
        score: Gives scores of predictions and references.
        train: Source lengths of training rows, the predictions of them, and what is right.
        validation: The same of the validation rows.
    """
    sides: list[Any] = []
    for lengths, predictions, references in (train, validation):

        def score_of(
            chosen: list[int], found: Sequence[Any] = predictions, right: Sequence[Any] = references
        ) -> float:
            return score([found[row] for row in chosen], [right[row] for row in chosen])[metric]

        sides += [lengths, score_of]
    return length_report(metric, *sides)


class LengthScores(TrainerCallback):
    """Prints `length_report` after each evaluation of a trainer, to which it is added with `add_callback`.

    The validation scores come from the predictions of the evaluation itself, which it sees by standing before
    `trainer.compute_metrics`; the training scores cost one pass over a sample of the training rows. Names and values
    of all other metrics stay as they are, and so does the training, bit for bit: what the pass draws from the random
    generator is put back.

    Args:
        trainer: with `compute_metrics` and an `eval_dataset`. Its evaluations keep the order of the rows, as those of
            `SequenceTrainer` do.
        train_sample: encoded training rows, such as `train.select(sample_rows(len(train), len(validation), seed))`.
        lengths: source lengths of the rows of `train_sample`, and of the `validation` rows.
        metric: the score's name, for the heading.
        score: gives it, from `train` or `validation`, indices into `train_sample` or `eval_dataset`, and the
            predictions and label ids of those rows.
        say: prints, on the first process.
    """

    def __init__(
        self,
        trainer: Trainer,
        train_sample: Dataset,
        lengths: Mapping[str, Sequence[int]],
        metric: str,
        score: Callable[[str, list[int], EvalPrediction], float],
        say: Callable[[str], Any] = print,
    ):
        if trainer.compute_metrics is None:
            raise ValueError("the trainer has no compute_metrics, so its evaluations keep no predictions")
        self.trainer, self.train_sample, self.metric, self.score, self.say = trainer, train_sample, metric, score, say
        self._compute_metrics: Callable[[EvalPrediction], dict] = trainer.compute_metrics
        self._seen: EvalPrediction | None = None
        trainer.compute_metrics = self._remember
        self._train_lengths, self._validation_lengths = lengths["train_sample"], lengths["validation"]

    def _remember(self, output: EvalPrediction) -> dict:
        self._seen = output
        return self._compute_metrics(output)

    def _scores_of(self, split: str, output: Any) -> RowScore:
        def score(rows: list[int]) -> float:
            chosen = EvalPrediction(_take(output.predictions, rows), _take(output.label_ids, rows))
            return self.score(split, rows, chosen)

        return score

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Predict the training sample, and print."""
        evaluated, self._seen = self._seen, None
        # An evaluation of other rows than the trainer's own.
        if evaluated is None or len(_first(evaluated.predictions)) != len(self._validation_lengths):
            return
        # The scores of the sample as a whole are nobody's.
        compute_metrics, self.trainer.compute_metrics = self.trainer.compute_metrics, None
        with torch.random.fork_rng(devices=[]):
            trained = self.trainer.predict(self.train_sample, metric_key_prefix="train")
        self.trainer.compute_metrics = compute_metrics
        if state.is_world_process_zero:
            sides = self._scores_of("train", trained), self._scores_of("validation", evaluated)
            self.say(length_report(self.metric, self._train_lengths, sides[0], self._validation_lengths, sides[1]))


def _names(edges: Sequence[int]) -> list[str]:
    """Names of the groups that `edges` part."""
    if not edges:
        return ["any length"]
    middle = [
        f"{low + 1}-{high} tokens" if high > low + 1 else f"{high} tokens"
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    return [f"up to {edges[0]} tokens", *middle, f"over {edges[-1]} tokens"]


def _first(arrays: Any) -> Any:
    return _first(arrays[0]) if isinstance(arrays, tuple | list) else arrays


def _take(arrays: Any, rows: list[int]) -> Any:
    """The rows of an array `[rows, …]`, or of each in a tuple or mapping of them."""
    if isinstance(arrays, tuple | list):
        return type(arrays)(_take(array, rows) for array in arrays)
    if isinstance(arrays, Mapping):
        return {key: _take(array, rows) for key, array in arrays.items()}
    return arrays[rows]
