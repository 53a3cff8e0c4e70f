"""`pipeline("time-series-forecasting")`: inputs, batches, results, models of hfseq and of transformers."""

import math

import numpy as np
import pandas as pd
import processes
import pytest
import torch
from transformers import (
    AutoModelForTimeSeriesPrediction,
    InformerConfig,
    PatchTSTConfig,
    TimeSeriesTransformerConfig,
    pipeline,
)

from hfseq import GruConfig, LstmConfig
from hfseq.errors import InputError
from hfseq.models import FAMILIES

TASK = "time-series-forecasting"
TINY = {"hidden_size": 6, "num_hidden_layers": 1, "prediction_length": 3, "num_parallel_samples": 5}
DATED = {"lags_sequence": [1, 2], "num_time_features": 1, "frequency": "MS", "input_size": 1}
VALUES = [3.0, 4.5, math.nan, 6.0, 5.0, 7.0]


def make(config_class=GruConfig, **fields):
    torch.manual_seed(0)
    return AutoModelForTimeSeriesPrediction.from_config(config_class(**TINY | {"input_size": 1} | fields)).eval()


def seeded(forecaster, *args, **options):
    torch.manual_seed(0)
    return forecaster(*args, **options)


@pytest.mark.parametrize("config_class", FAMILIES)
def test_a_series_of_numbers(config_class):
    model = make(config_class)
    forecast = pipeline(TASK, model=model)
    result = seeded(forecast, VALUES, return_samples=True)
    torch.manual_seed(0)
    expected = model.generate(torch.tensor([VALUES])).sequences[0].double().numpy()
    np.testing.assert_allclose(result["samples"], expected, rtol=1e-5)
    np.testing.assert_allclose(result["mean"], expected.mean(axis=0), rtol=1e-5)
    assert list(result["quantiles"]) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    np.testing.assert_allclose(result["quantiles"][0.2], np.quantile(expected, 0.2, axis=0), rtol=1e-5)
    assert "timestamps" not in result


def test_forms_of_a_series():
    forecast = pipeline(TASK, model=make(num_time_features=1, frequency="MS", lags_sequence=[1, 2]))
    stamps = pd.date_range("2024-01-01", periods=6, freq="MS")
    entry = {"start": "2024-01-01", "target": VALUES}
    results = [
        seeded(forecast, one)
        for one in (entry, entry | {"freq": "M"}, entry | {"start": stamps[0]}, pd.Series(VALUES, index=stamps))
    ]
    assert results[0]["timestamps"] == ["2024-07-01T00:00:00", "2024-08-01T00:00:00", "2024-09-01T00:00:00"]
    assert all(result == results[0] for result in results)
    other = seeded(forecast, entry | {"start": "2024-05-01"})
    assert other["mean"] != results[0]["mean"]


def test_values_of_all_kinds():
    forecast = pipeline(TASK, model=make())
    forms = (
        [None if math.isnan(one) else one for one in VALUES],
        np.array(VALUES),
        torch.tensor(VALUES),
        tuple(VALUES),
    )
    results = [seeded(forecast, one) for one in (*forms, {"target": np.array(VALUES)})]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("fields", [{"loss": "mse"}, {"loss": "mse", "differencing": True, "context_length": 2}])
def test_results_do_not_depend_on_the_batch(fields):
    forecast = pipeline(TASK, model=make(LstmConfig, **fields).double())
    rows = [VALUES, [1.0], list(np.arange(30.0)), [math.nan, 5.0, math.nan], [2.0, 2.0, 2.0]]
    alone = [forecast(row) for row in rows]
    assert "quantiles" not in alone[0]
    for size in (1, 2, 5):
        for one, other in zip(forecast(rows, batch_size=size), alone, strict=True):
            np.testing.assert_allclose(one["mean"], other["mean"], rtol=0, atol=1e-5)


def test_covariates_and_static_features():
    names = [["small", "large"]]
    model = make(
        num_dynamic_real_features=1,
        num_static_categorical_features=1,
        cardinality=[2],
        num_static_real_features=1,
        static_categories=names,
    )
    forecast = pipeline(TASK, model=model)
    entry = {
        "target": VALUES,
        "feat_dynamic_real": [[0.0] * 9],
        "feat_static_cat": ["large"],
        "feat_static_real": [1.0],
    }
    usual = seeded(forecast, entry)
    for name, value in (("feat_dynamic_real", [[1.0] * 9]), ("feat_static_cat", ["small"]), ("feat_static_real", [2])):
        assert seeded(forecast, entry | {name: value})["mean"] != usual["mean"]
    with pytest.raises(InputError, match="series 1: .*covariates are known for 8 steps, but the horizon ends after 9"):
        forecast(entry | {"feat_dynamic_real": [[0.0] * 8]})
    with pytest.raises(InputError, match="static class 'medium' .* is not among those of the training data"):
        forecast(entry | {"feat_static_cat": ["medium"]})


def test_arguments():
    forecast = pipeline(TASK, model=make(), num_samples=2)
    result = forecast(VALUES, prediction_length=7, quantile_levels=[0.25], return_samples=True)
    assert np.shape(result["samples"]) == (2, 7) and list(result["quantiles"]) == [0.25]
    with pytest.raises(ValueError, match=r"quantile_levels=\[1.0\]: each must be above 0 and below 1"):
        forecast(VALUES, quantile_levels=[1.0])
    with pytest.raises(TypeError, match="has no argument 'horizon'"):
        forecast(VALUES, horizon=3)
    with pytest.raises(ValueError, match="prediction_length is missing"):
        pipeline(TASK, model=make(prediction_length=None))(VALUES)


@pytest.mark.parametrize(
    "value, message",
    [
        ([[1.0, math.inf], [1.0]], "series 1: value 1 is infinite"),
        ([[[1.0, 2.0]], [1.0]], r"series 1: it has shape \(1, 2\); give one value for each step"),
        ([[math.nan], [1.0]], "series 1: it has no value"),
        (["ab", "c"], "series 1: its values are not numbers"),
        ([], r"series 1: it has shape \(0,\)"),
        ({"values": [1.0]}, "series 1: a dict must have 'target'"),
        ({"target": [[1.0]]}, "series 1: 'target' is 2-dimensional"),
        ({"target": [1.0], "start": "soon"}, "series 1: 'start' is not a time stamp"),
        ({"target": [None, None]}, "series 1: it has no value"),
        (VALUES, "the model reads 1 time features, but there are no time stamps"),
    ],
)
def test_bad_series(value, message):
    forecast = pipeline(TASK, model=make(**DATED))
    with pytest.raises(InputError, match=message):
        forecast(value)


def test_a_horizon_of_no_steps():
    with pytest.raises(ValueError, match="prediction_length=0 is impossible"):
        pipeline(TASK, model=make())(VALUES, prediction_length=0)


def test_the_frequency_of_the_model_is_refused_if_it_does_not_fit():
    forecast = pipeline(TASK, model=make(**DATED))
    with pytest.raises(InputError, match="the model reads 1 time features, but frequency h has 4"):
        forecast({"target": VALUES, "start": "2024-01-01", "freq": "H"})


OTHERS = {
    "patchtst": PatchTSTConfig(
        num_input_channels=1,
        context_length=8,
        prediction_length=3,
        patch_length=4,
        d_model=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=8,
    ),
    "patchtst points": PatchTSTConfig(
        num_input_channels=1,
        context_length=8,
        prediction_length=3,
        patch_length=4,
        d_model=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=8,
        loss="mse",
    ),
    "time_series_transformer": TimeSeriesTransformerConfig(
        prediction_length=3, context_length=6, lags_sequence=[1, 2], d_model=8, encoder_layers=1, decoder_layers=1
    ),
    "informer": InformerConfig(
        prediction_length=3,
        context_length=6,
        lags_sequence=[1, 2],
        num_time_features=2,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_transformers(name, tmp_path):
    torch.manual_seed(0)
    config = OTHERS[name]
    AutoModelForTimeSeriesPrediction.from_config(config).save_pretrained(tmp_path)
    forecast = pipeline(TASK, model=str(tmp_path))
    entry = {"target": VALUES * 4, "start": "2024-01-01", "freq": "MS"}
    result = forecast([entry, entry], num_samples=4, return_samples=True)[1]
    points = getattr(config, "loss", "nll") == "mse"
    assert np.shape(result["samples"]) == (1 if points else 4, 3) and np.isfinite(result["mean"]).all()
    assert ("quantiles" in result) is not points
    with pytest.raises(ValueError, match=f"prediction_length=5: {config.model_type} forecasts 3 steps"):
        forecast(entry, prediction_length=5)


def test_models_of_several_variates_are_refused():
    with pytest.raises(InputError, match="gru: it forecasts 2 variates at once; series have 1"):
        pipeline(TASK, model=make(input_size=2))


def test_a_published_model_loads_by_its_name(tmp_path):
    """Its own code is replaced by hfseq's where that is installed, as everywhere."""
    make().save_pretrained(tmp_path)
    code = (
        "import hfseq; from transformers import pipeline; "
        f"print(len(pipeline('{TASK}', model={str(tmp_path)!r}, trust_remote_code=True)([1.0, 2.0])['mean']))"
    )
    done = processes.run("-c", code, environments=[{"HF_MODULES_CACHE": str(tmp_path / "modules")}])
    assert done.stdout.strip() == "3", done.stderr
