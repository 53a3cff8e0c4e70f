import numpy as np
import pandas as pd
import pytest
import scoringrules
import utilsforecast.losses as losses

from hfseq import metrics
from hfseq.metrics.forecasting import QUANTILE_LEVELS


@pytest.fixture
def forecast():
    """References [5, 4] with missing values, one row of them all missing, and samples [5, 30, 4]."""
    generator = np.random.default_rng(0)
    references = generator.normal(3, 5, (5, 4))
    references[0, 1] = references[2, 3] = np.nan
    references[4] = np.nan
    return references, generator.normal(3, 4, (5, 30, 4))


def observed(references):
    return [(row, step) for row, step in np.ndindex(references.shape) if not np.isnan(references[row, step])]


def test_errors_of_points_by_definition(forecast):
    references, samples = forecast
    points = np.median(samples, axis=1)
    pairs = [(points[at], references[at]) for at in observed(references)]
    assert metrics.mae(points, references)["mae"] == pytest.approx(sum(abs(f - y) for f, y in pairs) / len(pairs))
    assert metrics.mse(points, references)["mse"] == pytest.approx(sum((f - y) ** 2 for f, y in pairs) / len(pairs))
    assert metrics.nd(points, references)["nd"] == pytest.approx(
        sum(abs(f - y) for f, y in pairs) / sum(abs(y) for _, y in pairs)
    )
    assert metrics.smape(points, references)["smape"] == pytest.approx(
        sum(200 * abs(f - y) / (abs(f) + abs(y)) for f, y in pairs) / len(pairs)
    )
    assert metrics.smape([[0.0, 1.0]], [[0.0, 0.0]])["score"] == 100


def test_mase_by_definition(forecast):
    references, samples = forecast
    points, scales = samples.mean(axis=1), np.array([2.0, 0.0, np.nan, 0.5, 1.0])
    rows = [
        np.mean([abs(points[at] - references[at]) for at in observed(references) if at[0] == row]) / scales[row]
        for row in (0, 3)
    ]
    assert metrics.mase(points, references, scales)["mase"] == pytest.approx(np.mean(rows))
    assert np.isnan(metrics.mase(points, references, np.zeros(5))["score"])


def test_seasonal_error():
    assert metrics.seasonal_error([1, 4, 2, 9], 1) == pytest.approx((3 + 2 + 7) / 3)
    assert metrics.seasonal_error([1, 4, 2, 9], 2) == pytest.approx((1 + 5) / 2)
    assert metrics.seasonal_error([1, np.nan, 2, 9], 1) == 7
    assert np.isnan(metrics.seasonal_error([1, 2], 2))


def test_weighted_quantile_loss_by_definition(forecast):
    references, samples = forecast
    quantiles = np.quantile(samples, QUANTILE_LEVELS, axis=1).swapaxes(0, 1)
    total = 0.0
    for number, level in enumerate(QUANTILE_LEVELS):
        for row, step in observed(references):
            y, q = references[row, step], quantiles[row, number, step]
            total += 2 * (level * (y - q) if y >= q else (1 - level) * (q - y))
    weight = sum(abs(references[at]) for at in observed(references))
    found = metrics.weighted_quantile_loss(quantiles, references)["wql"]
    assert found == pytest.approx(total / len(QUANTILE_LEVELS) / weight)
    points = np.median(samples, axis=1)
    same = metrics.weighted_quantile_loss(np.stack([points] * 9, axis=1), references)["score"]
    assert same == pytest.approx(metrics.nd(points, references)["score"])


def test_crps(forecast):
    references, samples = forecast
    values = []
    for row, step in observed(references):
        x, y = samples[row, :, step], references[row, step]
        values.append(np.abs(x - y).mean() - np.abs(x[:, None] - x[None]).mean() / 2)
    assert metrics.crps(samples, references)["crps"] == pytest.approx(np.mean(values))
    complete = np.nan_to_num(references)
    theirs = scoringrules.crps_ensemble(complete, samples.swapaxes(1, 2), estimator="nrg").mean()
    assert metrics.crps(samples, complete)["crps"] == pytest.approx(theirs)


def test_coverage(forecast):
    references, samples = forecast
    low, high = np.quantile(samples, [0.1, 0.9], axis=1)
    inside = [low[at] <= references[at] <= high[at] for at in observed(references)]
    assert metrics.coverage(low, high, references)["coverage"] == pytest.approx(100 * np.mean(inside))
    assert metrics.coverage([[1.0]], [[1.0]], [[1.0]])["score"] == 100


def test_utilsforecast_agrees():
    """The library takes data frames of complete values, and the values before the horizon for the scale of MASE."""
    generator = np.random.default_rng(1)
    history, references, points = generator.normal(9, 2, (3, 20)), *generator.normal(9, 2, (2, 3, 6))
    ids = np.repeat([0, 1, 2], 6)
    frame = pd.DataFrame({"unique_id": ids, "y": references.ravel(), "model": points.ravel()})
    train = pd.DataFrame({"unique_id": np.repeat([0, 1, 2], 20), "y": history.ravel()})
    assert metrics.mae(points, references)["score"] == pytest.approx(losses.mae(frame, ["model"])["model"].mean())
    assert metrics.mse(points, references)["score"] == pytest.approx(losses.mse(frame, ["model"])["model"].mean())
    assert metrics.smape(points, references)["score"] == pytest.approx(
        200 * losses.smape(frame, ["model"])["model"].mean()
    )
    scales = [metrics.seasonal_error(row, 4) for row in history]
    theirs = losses.mase(frame, ["model"], seasonality=4, train_df=train)["model"].mean()
    assert metrics.mase(points, references, scales)["score"] == pytest.approx(theirs)


@pytest.mark.parametrize(
    "predictions, references, message",
    [
        ([[1.0, 2.0]], [[1.0]], r"mae: predictions of shape \(1, 2\), but references of shape \(1, 1\)"),
        ([[np.nan]], [[1.0]], "mae: a prediction is nan, not a finite number"),
        ([[1.0]], [[np.nan]], "mae: nothing to score, no value of the references is observed"),
    ],
)
def test_bad_inputs(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metrics.mae(predictions, references)


def test_zeros_have_no_normalised_deviation():
    with pytest.raises(ValueError, match="nd: all true values are 0"):
        metrics.nd([[1.0]], [[0.0]])
