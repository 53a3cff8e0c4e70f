"""The recipe of forecasting and its parts: windows, baselines, both drivers, reports, models of transformers."""

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recipe_runs
import torch
import yaml
from recipe_runs import Killed, assert_close, assert_equal, kill_after_checkpoint, load, results, run_two, weights
from transformers import (
    AutoModelForTimeSeriesPrediction,
    PatchTSTConfig,
    TimeSeriesTransformerConfig,
    pipeline,
)

from hfseq.data.embedded.climate import climate_series, hourly_process
from hfseq.data.series import Series
from hfseq.data.windows import WindowCollator, origins
from hfseq.errors import InputError
from hfseq.forecasters import needs_of
from hfseq.hub.model_card import make_card
from hfseq.models import FAMILIES
from hfseq.tasks.arguments import ForecastArguments
from hfseq.tasks.forecast_baselines import ets, seasonal_naive
from hfseq.tasks.forecasting import Forecasting
from hfseq.training.arguments import RecipeArguments
from hfseq.training.reporting import compare

DRIVERS = ("forecasting", "forecasting_accelerate")
RECIPES = {driver: load(driver) for driver in DRIVERS}
CONFIG = {
    "model_type": "hfseq_gru",
    "config_overrides": {"hidden_size": 8, "dropout": 0.0, "num_parallel_samples": 20},
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2, 7],
    "num_validation_windows": 2,
    "num_test_windows": 2,
    "num_train_epochs": 2,
    "learning_rate": 0.01,
    "logging_steps": 5,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "disable_tqdm": True,
    "ets_windows": 0,
}
LENGTH = 60


def table(missing=0.1, length=LENGTH):
    """Two daily series with a weekly rhythm, values of which are missing, a covariate, and their time stamps."""
    generator = np.random.default_rng(0)
    stamps = pd.date_range("2024-01-01", periods=length)
    price = generator.normal(size=length)
    rows = [["ds", "a", "b", "price"]]
    for step, stamp in enumerate(stamps):
        values = [10 + 3 * math.sin(2 * math.pi * step / 7) + price[step], 50 + step + generator.normal()]
        shown = ["" if generator.random() < missing and step else f"{value:.4f}" for value in values]
        rows.append([str(stamp.date()), *shown, f"{price[step]:.4f}"])
    return rows


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("series")
    for name, rows in (("series", table()), ("full", table(missing=0.0))):
        with open(root / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    (root / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return root


def arguments(data, output_dir, *, file="series.csv", covariates=True, **flags):
    given = {"train_file": data / file, "output_dir": output_dir} | flags
    argv = recipe_runs.arguments(data / "config.yaml", **given)
    return [*argv, "--covariate_columns", "price"] if covariates else argv


def start(driver, data, output_dir, **flags):
    recipe_runs.start(RECIPES[driver], arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    return start("forecasting", data, tmp_path_factory.mktemp("trained") / "run", ets_windows=10)


def read(file, **options):
    task = Forecasting(ForecastArguments(train_file=str(file), **{"prediction_length": 4} | options), ARGS)
    return task.read()


class ARGS:
    seed = 0


def windows(task, split):
    rows = task.splits[split]
    return list(zip(rows["series"], rows["origin"], strict=True))


# --- windows ---------------------------------------------------------------------------------------------------------


def test_origins():
    one = Series("a", np.arange(20.0))
    assert origins(one, 4) == [16]
    assert origins(one, 4, count=3) == [8, 12, 16]
    assert origins(one, 4, count=3, stride=1, end=10) == [4, 5, 6]
    assert origins(one, 4, start=10) == [10, 14]
    assert origins(one, 4, start=10, stride=2, count=2) == [10, 12]
    assert origins(one, 4, start=18) == []
    assert origins(one, 18, count=2) == [2]
    gappy = Series("a", np.array([np.nan, 1.0, np.nan, np.nan, 2.0, np.nan]))
    assert origins(gappy, 2, start=1, stride=1) == [3, 4]  # something known before, and something to forecast


def test_no_split_sees_the_horizon_of_a_later_one(data):
    task = read(data / "full.csv", covariate_columns=["price"], num_test_windows=2, num_validation_windows=3)
    assert windows(task, "test") == [(0, 52), (0, 56), (1, 52), (1, 56)]
    assert windows(task, "validation") == [(number, at) for number in (0, 1) for at in (40, 44, 48)]
    assert windows(task, "train") == [(number, at) for number in (0, 1) for at in range(8, 37)]
    assert task.season == 7


def test_starts_and_strides(data):
    options = {
        "covariate_columns": ["price"],
        "validation_start": "2024-01-31",
        "test_start": 50,
        "backtest_stride": 1,
    }
    task = read(data / "full.csv", train_stride=10, context_length=5, **options)
    assert windows(task, "test") == [(number, at) for number in (0, 1) for at in range(50, 57)]
    assert windows(task, "validation") == [(number, at) for number in (0, 1) for at in range(30, 47)]
    assert windows(task, "train") == [(number, at) for number in (0, 1) for at in (5, 15, 25)]


def test_a_number_of_four_digits_may_be_a_year(tmp_path):
    (tmp_path / "a.csv").write_text("ds,y\n" + "".join(f"{year},{year % 7}\n" for year in range(1900, 1960)))
    task = read(tmp_path / "a.csv", test_start="1950", num_test_windows=1, frequency="Y")
    assert windows(task, "test") == [(0, 50)]
    assert windows(read(tmp_path / "a.csv", test_start="50", num_test_windows=1), "test") == [(0, 50)]


def test_files_of_their_own(data, tmp_path):
    (tmp_path / "test.csv").write_text("ds,c,price\n" + "".join(f"2024-03-{day:02},{day},0\n" for day in range(1, 21)))
    task = read(data / "full.csv", covariate_columns=["price"], test_file=str(tmp_path / "test.csv"))
    assert windows(task, "test") == [(2, 16)]
    assert windows(task, "validation") == [(0, 56), (1, 56)]
    assert max(at for _, at in windows(task, "train")) == 52


def test_standardised_by_the_training_part(data):
    task = read(data / "full.csv", covariate_columns=["price"], standardize=True)
    for one in task.series:
        assert one.target[:52].mean() == pytest.approx(0, abs=1e-9) and one.target[:52].std() == pytest.approx(1)
        assert one.target.std() > 0.5
    assert task.references["test"][1].values.mean() > 1  # series b grows


def test_windows_by_hand():
    """Past, horizon, time features and covariates belong to the same steps; steps before the series are missing."""
    stamps = pd.date_range("2024-01-01", periods=12, freq="MS")
    values = np.array([1.0, 2, np.nan, 4, 5, 6, 7, 8, 9, 10])
    one = Series("a", values, stamps, np.arange(12.0)[:, None], ("x",), (0.5,), "MS")
    config = FAMILIES[0](
        input_size=1,
        lags_sequence=[1, 3],
        context_length=4,
        num_time_features=1,
        num_dynamic_real_features=1,
        num_static_categorical_features=1,
        cardinality=[2],
        num_static_real_features=1,
    )
    collator = WindowCollator([one], needs_of(config), 2, context_length=99, categories=[["y", "x"]])
    batch = collator([{"series": 0, "origin": 5}, {"series": 0, "origin": 10}])
    np.testing.assert_equal(batch["past_values"].numpy(), [[0, 0, 1, 2, 0, 4, 5], [4, 5, 6, 7, 8, 9, 10]])
    np.testing.assert_equal(batch["past_observed_mask"].numpy(), [[0, 0, 1, 1, 0, 1, 1], [1] * 7])
    np.testing.assert_equal(batch["future_values"].numpy(), [[6, 7], [0, 0]])
    np.testing.assert_equal(batch["future_observed_mask"].numpy(), [[1, 1], [0, 0]])
    months = np.concatenate([[0, 0], np.arange(12) / 11 - 0.5])
    time = torch.cat([batch["past_time_features"], batch["future_time_features"]], dim=1).numpy()
    np.testing.assert_allclose(time[0, :, 0], months[:9], rtol=1e-6)
    np.testing.assert_allclose(time[1, :, 0], np.arange(3, 12) / 11 - 0.5, rtol=1e-6)
    np.testing.assert_allclose(time[1, :, 1], np.arange(3, 12))
    assert batch["static_categorical_features"].tolist() == [[1], [1]]
    assert batch["static_real_features"].tolist() == [[0.5], [0.5]]


# --- baselines and embedded series -----------------------------------------------------------------------------------


def test_seasonal_naive_by_hand():
    history = np.array([1.0, 2, 3, 5, np.nan, 4])
    found = seasonal_naive(history, 5, 3)
    # The last season is 5, -, 4; the missing one is that of the season before.
    np.testing.assert_allclose(np.median(found, axis=0), [5, 2, 4, 5, 2], atol=1e-9)
    spread = math.sqrt(((5 - 1) ** 2 + (4 - 3) ** 2) / 2)
    wide = np.quantile(found, 0.9, axis=0) - np.median(found, axis=0)
    np.testing.assert_allclose(wide, 1.2816 * spread * np.sqrt([1, 1, 1, 2, 2]), rtol=0.02)
    np.testing.assert_array_equal(seasonal_naive(history, 5, 3, points=True), [[5, 2, 4, 5, 2]])
    np.testing.assert_array_equal(seasonal_naive(np.array([np.nan, 7.0]), 2, 4), np.full((100, 2), 7.0))


def test_exponential_smoothing_finds_trend_and_season():
    generator = np.random.default_rng(0)
    steps = np.arange(112)
    values = 20 + 0.5 * steps + 5 * np.sin(2 * np.pi * steps / 4) + generator.normal(0, 0.1, 112)
    values[[5, 50]] = np.nan
    found = ets(values[:100], 12, 4, samples=50, seed=1)
    assert found.shape == (50, 12)
    np.testing.assert_allclose(np.median(found, axis=0), values[100:], atol=0.6)
    np.testing.assert_array_equal(found, ets(values[:100], 12, 4, samples=50, seed=1))
    np.testing.assert_array_equal(ets(np.full(20, 3.0), 2, 4, samples=5), np.full((5, 2), 3.0))


def test_embedded_series(monkeypatch):
    found, name = climate_series()
    assert [one.item_id for one in found] == ["co2", "el_nino"] and "CO2" in name
    assert [len(one.target) for one in found] == [526, 732]
    assert np.isnan(found[0].target).sum() == 5 and found[0].target[-1] == pytest.approx(371.02, abs=0.1)
    assert found[1].stamps[-1] == pd.Timestamp("2010-12-01") and 20 < np.nanmean(found[1].target) < 27
    monkeypatch.setattr("hfseq.data.embedded.climate.find_spec", lambda name: None)
    [one], name = climate_series()
    assert "synthetic" in name and one.target.shape == (24 * 7 * 20,)
    np.testing.assert_array_equal(one.target, hourly_process().target)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_run_reports_and_can_be_used(data, trained, capsys):
    found = results(trained)
    for metric in ("wql", "mase", "smape", "mae", "rmse", "mse", "nd", "crps", "coverage"):
        for system in ("", "naive_", "seasonal_", "ets_"):
            assert math.isfinite(found[f"test_{system}{metric}"])
    assert found["test_rmse"] == pytest.approx(found["test_mse"] ** 0.5)
    with open(trained / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 4 and rows[0]["unique_id"] == "a" and rows[0]["ds"] == "2024-02-22"
    levels = [str(level) for level in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
    assert all(sorted(values := [float(row[level]) for level in levels]) == values for row in rows)
    errors = [abs(float(row["0.5"]) - float(row["y"])) for row in rows if row["y"]]
    assert found["test_mae"] == pytest.approx(np.mean(errors), rel=1e-4)
    counts = Counter(row["unique_id"] for row in rows if row["y"])
    for system in ("", "naive_", "seasonal_", "ets_"):
        total = sum(count * found[f"test_{system}mae_{name}"] for name, count in counts.items())
        assert total / sum(counts.values()) == pytest.approx(found[f"test_{system}mae"])
    assert {"forecast.png", "learning_curve.png", "samples.txt", "predictions.txt"} <= {
        path.name for path in trained.iterdir()
    }
    config = json.loads((trained / "config.json").read_text())
    assert config["frequency"] == "D" and config["num_time_features"] == 3 and config["num_dynamic_real_features"] == 1
    entry = {"start": "2024-01-01", "target": [1.0, 2.0] * 10, "feat_dynamic_real": [[0.0] * 24]}
    assert len(pipeline("time-series-forecasting", model=str(trained))(entry)["mean"]) == 4


def test_the_card_shows_scores_and_the_pipeline(trained):
    model = AutoModelForTimeSeriesPrediction.from_pretrained(trained)
    card = str(make_card(trained, model, None, "me/forecaster", images=["forecast.png"]))
    assert "pipeline_tag: time-series-forecasting" in card and "| mean weighted quantile loss | " in card
    assert 'pipeline("time-series-forecasting", model="me/forecaster")' in card
    assert '"freq": "D"' in card and "| coverage of the 80 % interval |" in card and "forecast.png" in card


def test_a_trained_model_is_tested_again(data, trained, tmp_path):
    argv = ["--model_name_or_path", trained, "--do_predict", "--test_file", data / "series.csv", "--use_cpu"]
    argv += ["--prediction_length", 4, "--num_test_windows", 2, "--covariate_columns", "price", "--ets_windows", 10]
    recipe_runs.start(RECIPES["forecasting"], [*argv, "--output_dir", tmp_path / "out"])
    one, other = results(trained), results(tmp_path / "out")
    assert {name: one[name] for name in other} == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("flags", [{}, {"gradient_accumulation_steps": 3}, {"early_stopping_patience": 1}], ids=str)
def test_both_drivers_give_the_same(data, tmp_path, flags):
    directories = [start(driver, data, tmp_path / driver, **flags) for driver in DRIVERS]
    assert_close(*map(weights, directories))
    one, other = map(results, directories)
    names = [name for name in one if name.startswith("test_")]
    assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-4)


@pytest.mark.parametrize("driver", DRIVERS)
def test_accumulation_is_exact(data, tmp_path, driver):
    """Batches differ in how many values are missing, by which each step divides."""
    flags = {"max_steps": 4, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
    if driver == "forecasting":
        flags |= {"eval_strategy": "epoch"}
    whole = start(driver, data, tmp_path / "whole", per_device_train_batch_size=8, **flags)
    parts = start(
        driver, data, tmp_path / "parts", per_device_train_batch_size=2, gradient_accumulation_steps=4, **flags
    )
    assert_close(weights(whole), weights(parts), tolerance=2e-5)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(data, tmp_path, monkeypatch, driver):
    whole = start(driver, data, tmp_path / "whole", num_train_epochs=3)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after_checkpoint(patch, driver, 1)
        start(driver, data, tmp_path / "killed", num_train_epochs=3)
    killed = start(driver, data, tmp_path / "killed", num_train_epochs=3, resume_from_checkpoint="last")
    assert_equal(weights(whole), weights(killed))
    assert results(whole)["test_wql"] == results(killed)["test_wql"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_two_processes(data, tmp_path, driver):
    flags = {"num_train_epochs": 1, "per_device_train_batch_size": 4}
    alone = start(driver, data, tmp_path / "alone", **flags | {"per_device_train_batch_size": 8})
    run_two(driver, arguments(data, tmp_path / "two", **flags))
    found = results(tmp_path / "two")
    assert found["test_naive_wql"] == pytest.approx(results(alone)["test_naive_wql"])
    assert found["test_wql"] == pytest.approx(results(alone)["test_wql"], rel=0.2)


@pytest.mark.parametrize("config_class", FAMILIES)
@pytest.mark.parametrize("loss", ["nll", "mse"])
def test_all_families(data, tmp_path, config_class, loss):
    overrides = json.dumps({"hidden_size": 8, "loss": loss, "differencing": True, "num_parallel_samples": 5})
    flags = {"model_type": config_class.model_type, "config_overrides": overrides, "num_train_epochs": 1}
    found = results(start("forecasting", data, tmp_path / "out", **flags))
    assert math.isfinite(found["test_wql"]) and ("test_coverage" in found) is (loss == "nll")
    if loss == "mse":
        assert found["test_wql"] == pytest.approx(found["test_nd"])


def test_a_forecaster_learns_the_rhythm(tmp_path):
    """Well below the seasonal naive forecast on a noisy rhythm with a covariate."""
    generator = np.random.default_rng(0)
    steps, price = np.arange(300), generator.normal(size=300)
    values = 10 + 3 * np.sin(2 * np.pi * steps / 7) + 2 * price + generator.normal(0, 0.2, 300)
    stamps = pd.date_range("2024-01-01", periods=300)
    pd.DataFrame({"ds": stamps, "y": values, "price": price}).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"learning_rate": 0.02, "num_train_epochs": 6}))
    argv = [tmp_path / "config.yaml", "--train_file", tmp_path / "a.csv", "--covariate_columns", "price"]
    argv += ["--output_dir", tmp_path / "out", "--prediction_length", 7]
    overrides = {"hidden_size": 16, "dropout": 0.0, "distribution_output": "normal"}
    recipe_runs.start(RECIPES["forecasting"], [*argv, "--config_overrides", json.dumps(overrides)])
    found = results(tmp_path / "out")
    assert found["test_mae"] < 0.5 * found["test_seasonal_mae"]
    assert found["test_coverage"] > 50


def test_a_search_over_the_space(data, tmp_path, capsys):
    space = '{"config_overrides.differencing": [true, false], "config_overrides.hidden_size": [4, 8]}'
    start("forecasting", data, tmp_path / "out", hp_search=2, hp_space=space, num_train_epochs=1)
    assert "wql" in capsys.readouterr().out


OTHERS = {
    "patchtst": (
        PatchTSTConfig(
            num_input_channels=1,
            context_length=8,
            prediction_length=4,
            patch_length=4,
            d_model=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=8,
        ),
        {"file": "full.csv"},
    ),
    "time_series_transformer": (
        TimeSeriesTransformerConfig(
            prediction_length=4,
            context_length=8,
            lags_sequence=[1, 2],
            num_time_features=4,
            num_dynamic_real_features=1,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            num_parallel_samples=5,
        ),
        {},
    ),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", OTHERS)
def test_models_of_transformers(data, tmp_path, name, driver):
    torch.manual_seed(0)
    config, flags = OTHERS[name]
    AutoModelForTimeSeriesPrediction.from_config(config).save_pretrained(tmp_path / "model")
    given = {key: value for key, value in CONFIG.items() if key not in ("model_type", "config_overrides")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given | {"num_train_epochs": 1}))
    (tmp_path / "series.csv").write_bytes((data / "series.csv").read_bytes())
    (tmp_path / "full.csv").write_bytes((data / "full.csv").read_bytes())
    found = results(start(driver, tmp_path, tmp_path / "out", model_name_or_path=tmp_path / "model", **flags))
    assert math.isfinite(found["test_wql"])
    with pytest.raises(InputError, match="--prediction_length 5: .* forecasts 4 steps"):
        start(driver, tmp_path, tmp_path / "o", model_name_or_path=tmp_path / "model", prediction_length=5, **flags)
    with pytest.raises(InputError, match="--gradient_accumulation_steps: the loss of .* is a mean over each batch"):
        options = {"gradient_accumulation_steps": 2, **flags}
        start(driver, tmp_path, tmp_path / "o", model_name_or_path=tmp_path / "model", **options)


def test_patches_of_missing_values_are_refused(data, tmp_path):
    config, _ = OTHERS["patchtst"]
    AutoModelForTimeSeriesPrediction.from_config(config).save_pretrained(tmp_path / "model")
    argv = ["--model_name_or_path", tmp_path / "model", "--train_file", data / "series.csv", "--use_cpu"]
    argv += ["--prediction_length", 4, "--covariate_columns", "price", "--output_dir", tmp_path / "out"]
    with pytest.raises(InputError, match="series '[ab]' has a missing value in the horizon after .* values"):
        recipe_runs.start(RECIPES["forecasting"], argv)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    "flags, message",
    [
        ({"prediction_length": 60}, "no series is long enough: the longest, 'a', has 60 values, of which the test"),
        ({"prediction_length": 28}, "of which the test and the validation need windows of --prediction_length 28"),
        ({"prediction_length": 0}, "--prediction_length 0: give 1 or more"),
        ({"test_start": 59}, "no series is long enough"),
        ({"test_start": "soon"}, "--test_start 'soon' is neither a number of steps nor a time stamp"),
        ({"frequency": "soon"}, "--frequency: 'soon' is not a frequency of pandas"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor: a forecaster has no classes"),
        (
            {"config_overrides": '{"context_length": 3}'},
            "--config_overrides: context_length is determined by the data",
        ),
        ({"config_overrides": '{"bidirectional": true}'}, "bidirectional"),
        ({"config_overrides": '{"differences": true}'}, "no field 'differences'"),
        ({"metric_for_best_model": "bleu"}, "unknown --metric_for_best_model 'bleu'"),
        ({"train_file": "nothing.csv"}, "nothing.csv: no such file"),
    ],
)
def test_bad_flags(data, tmp_path, driver, flags, message):
    with pytest.raises((InputError, SystemExit)) as caught:
        start(driver, data, tmp_path / "out", **flags)
    if isinstance(caught.value, InputError):
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_flags_that_a_checkpoint_does_not_follow_are_reported(data, trained, caplog):
    model = AutoModelForTimeSeriesPrediction.from_pretrained(trained)
    args = RecipeArguments(output_dir="unused")
    flags = {"train_file": str(data / "full.csv"), "prediction_length": 4, "covariate_columns": ["price"]}
    for given in ({"lags_sequence": [1, 2, 7], "context_length": 8}, {"lags_sequence": [3], "context_length": 9}):
        assert not caplog.text
        Forecasting(ForecastArguments(**flags, **given), args).configure(model, None)
    assert "--lags_sequence 3 has no effect: the model has 1 2 7" in caplog.text
    assert "--context_length 9 has no effect: the model has 8" in caplog.text
    model.config.num_dynamic_real_features = 0
    Forecasting(ForecastArguments(**flags), args).configure(model, None)
    assert "--covariate_columns have no effect: the model reads no covariates" in caplog.text


def small(tmp_path, values, **flags):
    """A task of one series of the given values."""
    (tmp_path / "values.csv").write_text("y\n" + "".join(f"{value}\n" for value in values))
    data = ForecastArguments(**{"train_file": str(tmp_path / "values.csv"), "prediction_length": 2, **flags})
    return Forecasting(data, RecipeArguments(output_dir="unused"))


@pytest.mark.parametrize(
    "metric, values, reason",
    [
        (
            "eval_wql",
            [1] * 10 + [0] * 2 + [1] * 2,
            "wql divides by 0, since all values of the validation windows are 0",
        ),
        ("nd", [0] * 14, "nd divides by 0, since all values of the validation windows are 0"),
        ("mase", [1] * 14, "mase divides by 0, since no series changes in a season of 1 before"),
    ],
)
def test_metrics_that_are_undefined(tmp_path, metric, values, reason):
    task = small(tmp_path, values)
    task.args.metric_for_best_model = metric
    with pytest.raises(InputError, match=reason):
        task.read()
    task = small(tmp_path, values)
    task.args.metric_for_best_model = "eval_mae"
    task.read()
    paths = np.ones((1, 3, 2))
    scores = task.score(paths, task.references["validation"])
    assert math.isnan(scores[metric.removeprefix("eval_")]) and math.isfinite(scores["mae"])


def test_a_constant_series_has_as_many_paths_as_others(tmp_path):
    assert ets(np.ones(20), 3, 1, samples=7).shape == (7, 3)


@pytest.mark.parametrize("value, shown", [(1e39, "2e\\+39"), (1e-40, "2e-40")])
def test_values_beyond_the_precision_of_models(value, shown):
    series = [Series("a", np.array([value, np.nan, 2 * value]), source="a.csv", lines=np.array([2, 3, 4]))]
    needs = needs_of(next(iter(FAMILIES))(input_size=1))
    with pytest.raises(InputError, match=f"a.csv:4: series 'a' has values of up to {shown}, but models"):
        WindowCollator(series, needs, 1, context_length=2)


def test_counts_are_checked(tmp_path):
    task = small(tmp_path, [1.5] * 14).read()
    config = next(iter(FAMILIES))(input_size=1, distribution_output="negative_binomial")
    with pytest.raises(InputError, match="values.csv: series 'y' has the value 1.5, but .* is for counts"):
        task.configure(AutoModelForTimeSeriesPrediction.from_config(config), None)


def test_a_start_with_an_offset_is_in_utc(tmp_path):
    stamps = pd.date_range("2024-01-01", periods=40, freq="h")
    (tmp_path / "a.csv").write_text("ds,y\n" + "".join(f"{stamp},{step}\n" for step, stamp in enumerate(stamps)))
    flags = {"train_file": str(tmp_path / "a.csv"), "prediction_length": 2, "num_test_windows": 1}
    for text, origin in (("2024-01-02 00:00+01:00", 23), ("2024-01-02", 24)):
        task = Forecasting(ForecastArguments(**flags, test_start=text), RecipeArguments(output_dir="unused")).read()
        assert task.splits["test"]["origin"] == [origin]
    with pytest.raises(InputError, match="--test_start 'NaT' is neither"):
        Forecasting(ForecastArguments(**flags, test_start="NaT"), RecipeArguments(output_dir="unused")).read()


def test_a_table_of_huge_errors_stays_narrow():
    _, table = compare(lambda found, _: {"mse": found}, {"model": 1.5e60, "naive": 123456.0}, None)
    assert table.splitlines()[1].split() == ["mse", "1.5e+60", "123456.00"]


def test_bad_files_end_a_run_with_one_line(data, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text((data / "full.csv").read_text().replace("2024-01-05,", "2024-01-03,", 1))
    with pytest.raises(InputError, match=r"bad.csv:6: time stamp 2024-01-03 00:00:00 is out of order"):
        start("forecasting", data, tmp_path / "out", train_file=path)


def test_gaps_are_counted(data, tmp_path, capsys):
    path = tmp_path / "gaps.csv"
    lines = (data / "full.csv").read_text().splitlines()
    text = "\n".join(",".join(line.split(",")[:3]) for line in lines[:10] + lines[13:])
    path.write_text(text)
    start("forecasting", data, tmp_path / "out", train_file=path, covariates=False, num_train_epochs=1)
    assert "2 series of 120 values, frequency D, 6 missing, 6 of them gaps" in capsys.readouterr().out
