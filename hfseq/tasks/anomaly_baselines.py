"""Classical detectors beside which a model is scored: windowed Gaussian, isolation forest, random scores."""

import numpy as np
from numpy.typing import NDArray

WINDOW = 6_400
"""Steps that the windowed Gaussian remembers, which is tuned on NAB by its authors."""


def windowed_gaussian(past: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest standard score of a step's numbers, by mean and deviation of the `WINDOW` steps before it.

    Windowed Gaussian of NAB (Lavin and Ahmad 2015), whose score is one minus the tail probability of that distance.

    Args:
        past: Numbers `[P, D]` of the steps before the first one; P may be 0. NaN where one is missing.
        values: Numbers `[T, D]` of the steps.

    Returns:
        Scores `[T]`; 0 where a step has no number, or fewer than two before it.
    """
    values = np.concatenate([past, values])
    seen = ~np.isnan(values)
    filled = np.where(seen, values, 0.0)
    # About their mean, where squares lose no digits.
    filled = np.where(seen, filled - filled.sum(axis=0) / np.maximum(1, seen.sum(axis=0)), 0.0)
    sums = [np.cumsum(np.vstack([np.zeros(filled.shape[1]), part]), axis=0) for part in (seen, filled, filled**2)]
    steps = np.arange(len(past), len(values))
    first = np.maximum(0, steps - WINDOW)
    count, total, squares = (part[steps] - part[first] for part in sums)
    mean = total / np.maximum(1, count)
    spread = np.sqrt(np.maximum(squares / np.maximum(1, count) - mean**2, 0.0))
    known = seen[steps] & (count > 1)
    # As in NAB's detector for a constant past.
    return np.where(known, np.abs(filled[steps] - mean) / np.where(spread > 0, spread, 1e-6), 0.0).max(axis=1)


def isolation_forest(train: NDArray[np.float64], values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Isolation forest of 200 trees (Liu et al. 2008), by scikit-learn.

    Args:
        train: Inputs `[N, D]` that the trees are grown on, NaN where one is missing.
        values: Inputs `[T, D]` of the steps.
        seed: Seed of the trees.

    Returns:
        Scores `[T]`.
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=200, random_state=seed).fit(np.nan_to_num(train))
    return -forest.score_samples(np.nan_to_num(values))


def random_scores(length: int, seed: int) -> NDArray[np.float64]:
    """Independent uniform scores `[length]`."""
    return np.random.default_rng(seed).random(length)
