"""Metrics as `evaluate` modules that work with no network.

`evaluate.load("sacrebleu")` fetches a script from the Hub; `hfseq.metrics.load("sacrebleu")` does not. What it returns
is an `evaluate.Metric` like any other, with `add`, `add_batch` and `compute`, and goes into `evaluate.combine`.
"""

from collections.abc import Sequence

from .text import ChrF, ExactMatch, References, SacreBleu, TextMetric

__all__ = ["ChrF", "ExactMatch", "SacreBleu", "TextMetric", "load", "scores_by_group"]

_METRICS: dict[str, type[TextMetric]] = {metric.metric_name: metric for metric in (SacreBleu, ChrF, ExactMatch)}


def load(name: str) -> TextMetric:
    """Returns a new metric by its name: "sacrebleu", "chrf" or "exact_match".

    Raises:
        ValueError: if there is no metric of this name here.
    """
    if name not in _METRICS:
        raise ValueError(f"hfseq has no metric {name!r}; it has {', '.join(_METRICS)}")
    return _METRICS[name]()


def scores_by_group(
    metric: TextMetric,
    predictions: Sequence[str],
    references: References,
    groups: Sequence[str],
) -> dict[str, float]:
    """Computes a metric's `score` for each group apart, for example for each kind of pair in a test set.

    Args:
        metric: any metric of this module.
        predictions: one text a row.
        references: one text, or one list of texts, a row.
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
        for row in members:
            metric.add(prediction=predictions[row], reference=references[row])
        scores[group] = metric.compute()["score"]
    return scores
