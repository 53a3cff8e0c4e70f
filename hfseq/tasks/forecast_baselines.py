"""Classical forecasts beside which a model is scored: random walk, seasonal naive, exponential smoothing."""

import warnings
from statistics import NormalDist
from typing import Any

import numpy as np

RECENT = 250
"""Number of last differences from which the naive forecasts estimate the spread of their steps."""
_LEVELS = np.arange(1, 200, 2) / 200
_NORMAL = np.array([NormalDist().inv_cdf(level) for level in _LEVELS])
# Observations on which exponential smoothing is fitted; a level forgets older ones.
_LONGEST = 1000


def seasonal_naive(history: np.ndarray, horizon: int, season: int, *, points: bool = False) -> np.ndarray:
    """Value of the last season, with normal errors that grow with the seasons ahead.

    With a season of 1 it is a random walk. The standard deviation is that of the last `RECENT` seasonal differences
    about 0, times the root of the number of seasons begun (Hyndman and Athanasopoulos 2021, section 5.5).

    Args:
        history: Values `[T]` before the horizon, NaN where one is missing; the value before it in the season, or the
            last one, stands in for a missing one.
        horizon: Number of steps H.
        season: Steps in a season.
        points: Return the median alone.

    Returns:
        Quantiles at 100 evenly spaced levels, `[100, H]`, which serve as samples; or the median `[1, H]`.
    """
    history = np.asarray(history, dtype=float)
    seen = history[~np.isnan(history)]
    differences = history[season:] - history[:-season]
    differences = differences[~np.isnan(differences)][-RECENT:]
    spread = float(np.sqrt(np.square(differences).mean())) if len(differences) else 0.0
    last = np.empty(season)
    for place in range(season):
        column = history[len(history) - season + place :: -season] if len(history) >= season - place else seen[-1:]
        column = column[~np.isnan(column)]
        last[place] = column[0] if len(column) else seen[-1]
    steps = np.arange(horizon)
    widths = spread * np.sqrt(steps // season + 1)
    center = last[steps % season]
    return center[None] if points else center + _NORMAL[:, None] * widths


def ets(history: np.ndarray, horizon: int, season: int, *, samples: int = 100, seed: int = 0) -> np.ndarray:
    """Exponential smoothing with additive errors, whose trend and season are chosen by AICc, by statsmodels.

    Hyndman and Athanasopoulos (2021), chapter 8. Missing values are interpolated; of a long history the last 1,000
    values are read.

    Args:
        history: Values `[T]` before the horizon, NaN where one is missing.
        horizon: Number of steps H.
        season: Steps in a season; no season is fitted if it is 1, or if there are not two of them.
        samples: Number S of paths to simulate.
        seed: Seed of the paths.

    Returns:
        `[S, H]`.
    """
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    history = np.asarray(history, dtype=float)
    start = int(np.flatnonzero(~np.isnan(history))[0])
    history = history[max(start, len(history) - max(_LONGEST, 4 * season)) :]
    seen = np.flatnonzero(~np.isnan(history))
    history = np.interp(np.arange(len(history)), seen, history[seen])
    if len(history) < 10 or np.ptp(history) == 0:
        return np.tile(history[-1], (samples, horizon))
    best, best_score = None, np.inf
    for seasonal in (None, "add") if 1 < season <= len(history) // 2 and season <= 60 else (None,):
        for trend, damped in ((None, False), ("add", False), ("add", True)):
            options: dict[str, Any] = {"error": "add", "trend": trend, "damped_trend": damped, "seasonal": seasonal}
            if seasonal:
                options["seasonal_periods"] = season
            with warnings.catch_warnings():
                # Of optimisations that end early, and have a worse score for it.
                warnings.simplefilter("ignore")
                fitted = ETSModel(history, **options).fit(disp=False)
            if np.isfinite(fitted.aicc) and fitted.aicc < best_score:
                best, best_score = fitted, fitted.aicc
    if best is None:
        return seasonal_naive(history, horizon, 1)
    simulated = best.simulate(horizon, anchor="end", repetitions=samples, rng=np.random.default_rng(seed))
    return np.asarray(simulated, dtype=float).reshape(horizon, samples).T
