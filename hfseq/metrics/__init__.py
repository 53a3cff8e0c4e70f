"""Metrics as `evaluate` modules that work with no network.

`evaluate.load("sacrebleu")` fetches a script from the Hub; `hfseq.metrics.load("sacrebleu")` does not. What it returns
is an `evaluate.Metric` like any other, with `add`, `add_batch` and `compute`, and goes into `evaluate.combine`.
"""

from collections.abc import Sequence
from typing import Any

from .base import Metric
from .classification import F1, Accuracy
from .rouge import Rouge
from .tagging import Seqeval
from .text import ChrF, ExactMatch, SacreBleu, TextMetric

__all__ = [
    "F1",
    "Accuracy",
    "ChrF",
    "ExactMatch",
    "Metric",
    "Rouge",
    "SacreBleu",
    "Seqeval",
    "TextMetric",
    "load",
    "scores_by_group",
]

_METRICS: dict[str, type[Metric]] = {
    metric.metric_name: metric for metric in (SacreBleu, ChrF, ExactMatch, Rouge, Accuracy, F1, Seqeval)
}


def load(name: str) -> Metric:
    """Returns a new metric by its name.

    Of texts: "sacrebleu", "chrf", "exact_match", "rouge". Of classes, with scikit-learn: "accuracy", "f1".
    Of entities, with seqeval: "seqeval".

    Raises:
        ValueError: if there is no metric of this name here.
        InputError: if it needs a package that is not installed.
    """
    if name not in _METRICS:
        raise ValueError(f"hfseq has no metric {name!r}; it has {', '.join(_METRICS)}")
    return _METRICS[name]()


def scores_by_group(
    metric: Metric,
    predictions: Sequence[Any],
    references: Sequence[Any],
    groups: Sequence[str],
) -> dict[str, float]:
    """Computes a metric's `score` for each group apart, for example for each kind of pair in a test set.

    Args:
        metric: any metric of this module.
        predictions: one a row, such as the metric takes them.
        references: one a row, or, of texts, one list of references.
        groups: the name of the group that each row belongs to.

    Returns:
        The score of each group, groups in the order in which they first appear.

    Raises:
        ValueError: if the three do not have the same length.
    """
    if not len(predictions) == len(references) == len(groups):
        raise ValueError(
            f"{len(predictions)} predictions, {len(references)} references and {len(groups)} groups: "
            "there must be as many of each"
        )
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    scores = {}
    for group, members in rows.items():
        metric.add_batch(
            predictions=[predictions[row] for row in members], references=[references[row] for row in members]
        )
        scores[group] = metric.compute()["score"]
    return scores
