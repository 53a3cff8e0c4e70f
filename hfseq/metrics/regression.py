"""Metrics of regressors: correlation of predicted with true values, and their distance."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hfseq.metrics.inputs import check_pairs, plain_rows


def check_numbers(metric: str, predictions: Sequence[Any], references: Sequence[Any]) -> list[list[float]]:
    """Return predictions and references as lists of floats.

    Raises:
        InputError: A package that the metric needs is not installed.
        ValueError: The lengths differ, there is nothing to score, or a value is not a finite number.
    """
    check_pairs(metric, predictions, references)
    sides = [plain_rows(predictions), plain_rows(references)]
    for name, rows in zip(("prediction", "reference"), sides, strict=True):
        for index, value in enumerate(rows):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{metric}: {name} {index} is {value!r}, not a finite number")
    return [[float(value) for value in rows] for rows in sides]


def pearson(predictions: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
    """Pearson's correlation coefficient r, times 100 (-100 to 100).

    Args:
        predictions: Predicted values.
        references: True values, one for each prediction.

    Returns:
        `pearson`, which is also `score`.

    Raises:
        InputError: SciPy is not installed.
        ValueError: Invalid inputs, or constant ones, for which a correlation is undefined.
    """
    return _correlation("pearson", predictions, references)


def spearman(predictions: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
    """Spearman's rank correlation coefficient, times 100 (-100 to 100); ties get their average rank.

    Args:
        predictions: Predicted values.
        references: True values, one for each prediction.

    Returns:
        `spearman`, which is also `score`.

    Raises:
        InputError: SciPy is not installed.
        ValueError: Invalid inputs, or constant ones, for which a correlation is undefined.
    """
    return _correlation("spearman", predictions, references)


def rmse(predictions: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
    """Root mean squared error, in the unit of the values; lower is better.

    Args:
        predictions: Predicted values.
        references: True values, one for each prediction.

    Returns:
        `rmse`, which is also `score`.

    Raises:
        ValueError: Invalid inputs.
    """
    given, right = check_numbers("rmse", predictions, references)
    score = math.dist(given, right) / math.sqrt(len(given))
    return {"score": score, "rmse": score}


def _correlation(metric: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, Any]:
    sides = check_numbers(metric, predictions, references)
    for name, values in zip(("predictions", "references"), sides, strict=True):
        if np.ptp(values) == 0:
            raise ValueError(f"{metric}: the {name} are constant ({values[0]:g}), so the correlation is undefined")
    from scipy import stats

    coefficient = stats.pearsonr if metric == "pearson" else stats.spearmanr
    score = 100 * float(coefficient(*sides).statistic)
    return {"score": score, metric: score}
