"""Metrics of forecasts, of points, quantiles, intervals and samples; missing values of the references are left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

QUANTILE_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Levels that the weighted quantile loss averages over, as in GluonTS."""


def mae(predictions: Any, references: Any) -> dict[str, Any]:
    """Mean absolute error, in the unit of the values; lower is better.

    Args:
        predictions: Predicted values `[N, H]`, H being the horizon.
        references: True values `[N, H]`, NaN where one is missing.

    Returns:
        `mae`, which is also `score`.

    Raises:
        ValueError: The shapes differ, a prediction is not finite, or no value is observed.
    """
    errors, _ = _errors("mae", predictions, references)
    return _named("mae", np.abs(errors).mean())


def mse(predictions: Any, references: Any) -> dict[str, Any]:
    """Mean squared error; arguments and errors as for `mae`.

    Returns:
        `mse`, which is also `score`.
    """
    errors, _ = _errors("mse", predictions, references)
    return _named("mse", np.square(errors).mean())


def nd(predictions: Any, references: Any) -> dict[str, Any]:
    """Normalised deviation: the sum of absolute errors over that of the magnitudes of the true values.

    Yu et al. (2016), "Temporal regularized matrix factorization", section 5; also called WAPE. Arguments and errors as
    for `mae`, and true values that are all 0 raise a `ValueError`.

    Returns:
        `nd`, which is also `score`; lower is better.
    """
    errors, values = _errors("nd", predictions, references)
    return _named("nd", np.abs(errors).sum() / _magnitude("nd", values))


def smape(predictions: Any, references: Any) -> dict[str, Any]:
    """Symmetric mean absolute percentage error as in the M4 competition, from 0 to 200; lower is better.

    The mean of `200 |y - f| / (|y| + |f|)` (Makridakis et al. 2020); 0 where both are 0. Arguments and errors as for
    `mae`.

    Returns:
        `smape`, which is also `score`.
    """
    errors, values = _errors("smape", predictions, references)
    sums = np.abs(values) + np.abs(values + errors)
    return _named("smape", 200 * np.divide(np.abs(errors), sums, out=np.zeros_like(sums), where=sums > 0).mean())


def seasonal_error(history: Any, season: int) -> float:
    """Mean absolute difference of values one season apart, by which `mase` scales the errors.

    Args:
        history: Values `[T]` before the horizon, NaN where one is missing.
        season: Steps in a season; 1 for consecutive values.

    Returns:
        The error (Hyndman and Koehler 2006, section 2.4); NaN if no two observed values are a season apart.
    """
    history = np.asarray(history, dtype=float)
    differences = np.abs(history[season:] - history[:-season])
    differences = differences[~np.isnan(differences)]
    return float(differences.mean()) if len(differences) else float("nan")


def mase(predictions: Any, references: Any, scales: Any) -> dict[str, Any]:
    """Mean absolute scaled error (Hyndman and Koehler 2006): 1 is the in-sample error of the seasonal naive forecast.

    Args:
        predictions: Predicted values `[N, H]`.
        references: True values `[N, H]`, NaN where one is missing.
        scales: `seasonal_error` of the values before each horizon, `[N]`. Rows whose scale is 0 or NaN are left out,
            and so are those without an observed value.

    Returns:
        `mase`, the mean over the rows, which is also `score`; NaN if all rows are left out.

    Raises:
        ValueError: As for `mae`.
    """
    predictions, references = _pairs("mase", predictions, references)
    scales = np.asarray(scales, dtype=float)
    observed = ~np.isnan(references)
    kept = observed.any(axis=1) & (scales > 0)
    sums = np.abs(np.where(observed, predictions - references, 0.0)).sum(axis=1)
    rows = sums[kept] / observed.sum(axis=1)[kept] / scales[kept]
    return _named("mase", rows.mean() if len(rows) else np.nan)


def weighted_quantile_loss(
    quantiles: Any, references: Any, levels: Sequence[float] = QUANTILE_LEVELS
) -> dict[str, Any]:
    """Weighted quantile loss: the mean over levels of twice the pinball loss, summed, over the sum of magnitudes.

    GluonTS' `mean_wQuantileLoss`, by which DeepAR and its successors are compared. Lower is better; of a point
    forecast it is `nd`.

    Args:
        quantiles: Predicted quantiles `[N, Q, H]`.
        references: True values `[N, H]`, NaN where one is missing.
        levels: The Q levels.

    Returns:
        `wql`, which is also `score`.

    Raises:
        ValueError: As for `nd`.
    """
    quantiles, references = np.asarray(quantiles, dtype=float), np.asarray(references, dtype=float)
    losses = []
    for number, level in enumerate(levels):
        errors, values = _errors("wql", quantiles[:, number], references)
        losses.append(2 * np.maximum(-level * errors, (1 - level) * errors).sum() / _magnitude("wql", values))
    return _named("wql", np.mean(losses))


def crps(samples: Any, references: Any) -> dict[str, Any]:
    """Continuous ranked probability score of samples, in the unit of the values; lower is better.

    That of the samples' empirical distribution, E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 21), a mean
    over all observed values; of one sample it is the absolute error.

    Args:
        samples: `[N, S, H]`.
        references: True values `[N, H]`, NaN where one is missing.

    Returns:
        `crps`, which is also `score`.

    Raises:
        ValueError: As for `mae`.
    """
    samples = np.sort(np.asarray(samples, dtype=float), axis=1)
    references = np.asarray(references, dtype=float)
    count = samples.shape[1]
    distance = np.mean([np.abs(_errors("crps", samples[:, one], references)[0]) for one in range(count)], axis=0)
    # The sum of |x_i - x_j| over all pairs, from sorted samples.
    weights = 2 * np.arange(1, count + 1) - count - 1
    spread = np.einsum("s,nsh->nh", weights, samples) / count**2
    return _named("crps", (distance - spread[~np.isnan(references)]).mean())


def coverage(lower: Any, upper: Any, references: Any) -> dict[str, Any]:
    """Percentage of the observed values in an interval, its ends included; ideally the probability of the interval.

    Args:
        lower: Lower ends `[N, H]`.
        upper: Upper ends `[N, H]`.
        references: True values `[N, H]`, NaN where one is missing.

    Returns:
        `coverage`, which is also `score`.

    Raises:
        ValueError: As for `mae`.
    """
    above, _ = _errors("coverage", lower, references)
    below, _ = _errors("coverage", upper, references)
    return _named("coverage", 100 * ((above <= 0) & (below >= 0)).mean())


def _named(name: str, value: Any) -> dict[str, Any]:
    return {"score": float(value), name: float(value)}


def _pairs(metric: str, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    predictions, references = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
    if predictions.shape != references.shape:
        raise ValueError(
            f"{metric}: predictions of shape {predictions.shape}, but references of shape {references.shape}; they "
            "must be the same"
        )
    if not np.isfinite(predictions).all():
        raise ValueError(f"{metric}: a prediction is {predictions[~np.isfinite(predictions)][0]}, not a finite number")
    if np.isnan(references).all():
        raise ValueError(f"{metric}: nothing to score, no value of the references is observed")
    return predictions, references


def _errors(metric: str, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions minus true values, and true values, where one is observed."""
    predictions, references = _pairs(metric, predictions, references)
    observed = ~np.isnan(references)
    return predictions[observed] - references[observed], references[observed]


def _magnitude(metric: str, values: np.ndarray) -> float:
    total = float(np.abs(values).sum())
    if total == 0:
        raise ValueError(f"{metric}: all true values are 0, by whose magnitude it divides")
    return total
