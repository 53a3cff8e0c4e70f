"""Classical detectors beside which anomaly detection is scored."""

import numpy as np
import pytest

from hfseq.tasks import anomaly_baselines
from hfseq.tasks.anomaly_baselines import isolation_forest, random_scores, windowed_gaussian


def naive_gaussian(past, values, window):
    """Standard score of each number by those before it, one step after the other."""
    everything, scores = np.concatenate([past, values]), []
    for step in range(len(past), len(everything)):
        found = [0.0]
        for column, value in enumerate(everything[step]):
            before = everything[max(0, step - window) : step, column]
            before = before[~np.isnan(before)]
            if len(before) > 1 and not np.isnan(value):
                found.append(abs(value - before.mean()) / (before.std() or 1e-6))
        scores.append(max(found))
    return np.array(scores)


@pytest.mark.parametrize("steps_before", [0, 1, 30])
def test_windowed_gaussian_is_that_of_the_definition(steps_before, monkeypatch):
    monkeypatch.setattr(anomaly_baselines, "WINDOW", 12)
    rng = np.random.default_rng(0)
    values = rng.normal([5.0, 1e4], [2.0, 1.0], (90, 2))
    values[rng.random(values.shape) < 0.2] = np.nan
    past, rest = values[:steps_before], values[steps_before:]
    np.testing.assert_allclose(windowed_gaussian(past, rest), naive_gaussian(past, rest, 12), rtol=1e-5)


def test_a_change_after_a_constant_past_has_a_large_score():
    values = np.array([[3.0]] * 8 + [[4.0]])
    assert (
        windowed_gaussian(np.empty((0, 1)), values)[:-1].max()
        < 1
        < 1e5
        < windowed_gaussian(values[:5], values[5:])[-1]
    )


def test_an_isolation_forest_scores_an_outlier_above_what_it_knows():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(400, 2))
    train[::50] = np.nan
    scores = isolation_forest(train, np.array([[0.1, 0.1], [7.0, -7.0]]), seed=0)
    assert scores[1] > scores[0] + 0.2
    np.testing.assert_array_equal(scores, isolation_forest(train, np.array([[0.1, 0.1], [7.0, -7.0]]), seed=0))


def test_random_scores_are_those_of_the_seed():
    assert random_scores(4, 1).tolist() == random_scores(4, 1).tolist() != random_scores(4, 2).tolist()
