"""Checks that all metrics share; nothing optional is imported."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfseq.errors import require

PACKAGES = {
    "sacrebleu": ("sacrebleu",),
    "chrf": ("sacrebleu",),
    "rouge": ("nltk", "rouge_score"),
    "f1": ("sklearn",),
    "seqeval": ("seqeval",),
    "pearson": ("scipy",),
    "spearman": ("scipy",),
    "wer": ("jiwer",),
    "cer": ("jiwer",),
}
"""Metric to the packages it imports; jiwer comes with the `audio` extra, all others with `train`."""


def require_packages(metric: str) -> None:
    """Raise an `InputError` if a package that `metric` needs is not installed."""
    packages = PACKAGES.get(metric, ())
    require(*packages, extra="audio" if "jiwer" in packages else "train", use=f"the metric {metric!r}")


def check_pairs(metric: str, predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Check that there are as many predictions as references, and at least one.

    Raises:
        InputError: A package that the metric needs is not installed.
        ValueError: The lengths differ, or there is nothing to score.
    """
    require_packages(metric)
    if len(predictions) != len(references):
        raise ValueError(
            f"{metric}: {len(predictions)} predictions but {len(references)} references; "
            "give one reference, or one list of references, for each prediction"
        )
    if not len(predictions):
        raise ValueError(f"{metric}: nothing to score, there are no predictions")


def plain_rows(rows: Any) -> list[Any]:
    """Convert lists, arrays, tensors or dataset columns of numbers to a list of Python numbers or lists."""
    return [np.asarray(row).tolist() for row in (rows if isinstance(rows, list) else np.asarray(rows).tolist())]
