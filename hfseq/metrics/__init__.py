"""Metrics as plain functions, and as `evaluate` metrics that need no network.

    hfseq.metrics.bleu(predictions, references)["score"]
    hfseq.metrics.load("sacrebleu").compute(predictions=predictions, references=references)["score"]

Each function but `seasonal_error` returns a dictionary with a `score`; those of forecasts and frames take arrays. The
`evaluate.load("sacrebleu")` of the same name fetches a script from the Hub; `hfseq.metrics.load("sacrebleu")` does
not, and returns an `evaluate.Metric` like any other, with `add`, `add_batch` and `compute`, which also works in
`evaluate.combine` and `evaluate.evaluator`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .classification import accuracy, check_classes, f1
from .forecasting import coverage, crps, mae, mase, mse, nd, seasonal_error, smape, weighted_quantile_loss
from .ranking import hit_rate, mrr, ndcg
from .regression import check_numbers, pearson, rmse, spearman
from .segments import sov
from .speech import cer, check_transcripts, wer
from .tagging import check_tag_rows, seqeval
from .text import bleu, check_texts, chrf, exact_match, rouge
from .video import ssim

if TYPE_CHECKING:
    from .adapter import Metric

__all__ = [
    "accuracy",
    "bleu",
    "cer",
    "chrf",
    "coverage",
    "crps",
    "exact_match",
    "f1",
    "hit_rate",
    "load",
    "mae",
    "mase",
    "mrr",
    "mse",
    "nd",
    "ndcg",
    "pearson",
    "rmse",
    "rouge",
    "scores_by_group",
    "seasonal_error",
    "seqeval",
    "smape",
    "sov",
    "spearman",
    "ssim",
    "weighted_quantile_loss",
    "wer",
]

_METRICS: dict[str, tuple[Any, Any]] = {
    "sacrebleu": (bleu, check_texts),
    "chrf": (chrf, check_texts),
    "exact_match": (exact_match, check_texts),
    "rouge": (rouge, check_texts),
    "accuracy": (accuracy, check_classes),
    "f1": (f1, check_classes),
    "seqeval": (seqeval, check_tag_rows),
    "pearson": (pearson, check_numbers),
    "spearman": (spearman, check_numbers),
    "rmse": (rmse, check_numbers),
    "wer": (wer, check_transcripts),
    "cer": (cer, check_transcripts),
    "sov": (sov, check_tag_rows),
}
"""Name to function and check of its inputs."""


def load(name: str, **kwargs: Any) -> "Metric":
    """Return a new `evaluate` metric.

    Args:
        name: For text "sacrebleu", "chrf", "exact_match" or "rouge"; for classes "accuracy" or "f1"; for entities
            "seqeval"; for regression "pearson", "spearman" or "rmse"; for transcripts "wer" or "cer"; for
            secondary structure "sov".
        **kwargs: Arguments of `evaluate.Metric`, such as `keep_in_memory`.

    Raises:
        ValueError: There is no such metric.
        InputError: A package that the metric needs is not installed.
    """
    if name not in _METRICS:
        raise ValueError(f"hfseq has no metric {name!r}; it has {', '.join(_METRICS)}")
    from .adapter import Metric

    return Metric(name, *_METRICS[name], **kwargs)


def scores_by_group(
    metric: Callable[..., dict[str, Any]], predictions: Sequence[Any], references: Sequence[Any], groups: Sequence[str]
) -> dict[str, float]:
    """Compute a metric's `score` for each group of rows, for example for each kind of pair in a test set.

    Args:
        metric: A function of this module.
        predictions: One for each row.
        references: One for each row; for text, a reference or a list of references.
        groups: Name of each row's group.

    Returns:
        Group to score, in the order in which the groups first appear.

    Raises:
        ValueError: The three differ in length.
    """
    if not len(predictions) == len(references) == len(groups):
        raise ValueError(
            f"{len(predictions)} predictions, {len(references)} references and {len(groups)} groups: "
            "there must be as many of each"
        )
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return {
        group: metric([predictions[row] for row in rows], [references[row] for row in rows])["score"]
        for group, rows in members.items()
    }
