"""Monitoring of forecasters: features of the series, forecasts, their residuals, and MASE."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import AutoModelForTimeSeriesPrediction

from hfseq.data.series import Series, extended_stamps, regular_series, series_input
from hfseq.errors import InputError
from hfseq.forecasters import needs_of
from hfseq.inference.loading import load_trained
from hfseq.lazy import datasets
from hfseq.metrics.forecasting import seasonal_error
from hfseq.tasks.arguments import ForecastArguments
from hfseq.tasks.base import Task
from hfseq.tasks.forecasting import Forecasting, Window, window_rows
from hfseq.training.drift import CHI_SQUARE, MANN_WHITNEY, Sample
from hfseq.training.monitoring import Monitored, Side
from hfseq.training.served import json_list


@dataclass
class SeriesMonitoringArguments(ForecastArguments):
    """Series, and the windows that are compared."""

    prediction_length: int | None = field(
        default=None, metadata={"help": "Horizon: number of steps to forecast; by default that of the model."}
    )
    fresh_start: str | None = field(
        default=None, metadata={"help": "Begin of the first window of --fresh_file, as --test_start."}
    )
    num_fresh_windows: int | None = field(
        default=None, metadata={"help": "Windows of a series of --fresh_file, as --num_test_windows."}
    )
    validation_file: None = field(init=False, default=None)
    lags_sequence: None = field(init=False, default=None)
    standardize: bool = field(init=False, default=False)
    ets_windows: int = field(init=False, default=0)


class MonitoredSeries(Monitored):
    """Forecaster, scored by the mean absolute scaled error in percent: 100 is the seasonal naive forecast in sample.

    A row is a window of `Forecasting`. Its features are those of the last values before the horizon, as many as the
    horizon has steps, so that they are not shared by windows one horizon apart.
    """

    arguments: ClassVar[type] = SeriesMonitoringArguments
    pipelines = frozenset(("time-series-forecasting",))
    rows = "windows"
    metric = "MASE in %"
    lower_is_better = True

    def __init__(self, data: Any, args: Any) -> None:
        # Of one file the windows of the test come after those to train on.
        if data.retrain and Path(data.train_file).resolve() == Path(data.test_file).resolve():
            data = copy.copy(data)
            data.test_file = None
        super().__init__(data, args)
        self.model, _ = load_trained(AutoModelForTimeSeriesPrediction, data.model_name_or_path, features=True)
        self.model.to(args.device)
        needs = needs_of(self.model.config)
        data.prediction_length = data.prediction_length or needs.prediction_length
        self.task = Forecasting(data, args)
        self.context = needs.context_length

    def read(self) -> None:
        """Read the series; see `Monitored.read`."""
        data, task = self.data, self.task
        task.read(train=data.retrain)
        self.reference = task.splits[task.test_split]
        self.old = task.splits["train"] if data.retrain else None
        self.forecasts: list[np.ndarray] = []
        if data.served is not None:
            self._read_log()
        else:
            windows = task.backtest("fresh", task.read_file(data.fresh_file, "--fresh_file"))
            if not windows:
                raise InputError(
                    f"--fresh_file {data.fresh_file}: no series is long enough for a window of --prediction_length "
                    f"{task.horizon} after other values"
                )
            self.fresh = self.judged = window_rows(windows)
        self.check_judged()

    def _read_log(self) -> None:
        """Read the series and forecasts of the log; true values that have been joined follow the series."""
        task, horizon = self.task, self.task.horizon
        windows: list[Window] = []
        labelled: list[Window] = []
        unusable = other = 0
        served = self.read_served()
        for row in served:
            points = _points(row.output)
            one = self._series_of(row.inputs, row.id)
            if points is None or one is None:
                unusable += 1
                continue
            if len(points) != horizon:
                other += 1
                continue
            known = len(one.target)
            if row.label is not None:
                truth = self._truth(row.label, row.id)
                one = replace(one, target=np.concatenate([one.target, truth]))
                labelled.append((len(task.series), known))
            windows.append((len(task.series), known))
            task.series.append(one)
            self.forecasts.append(points)
        for count, why in ((unusable, "without a series or a forecast"), (other, "with another horizon")):
            if count:
                self.notes.append(f"{count} rows {why} left out")
        if not windows:
            raise InputError(f"--served {self.data.served}: no row has a series and a forecast of {horizon} steps")
        self.fresh = window_rows(windows)
        self.judged = window_rows(labelled) if labelled else None

    def _series_of(self, inputs: Any, name: str) -> Series | None:
        """Series of an input on the grid of its frequency, as the pipeline reads it; None if it is none."""
        try:
            one = series_input(inputs, name)
            default = None if one.stamps is None else self.task.frequency
            return regular_series([one], one.frequency or default)[0][0]
        except InputError:
            return None

    def _truth(self, label: Any, name: str) -> np.ndarray:
        """True values `[n]` of a horizon, n at most H; those that are not known yet may be left out."""
        label = json_list(label)
        place = f"--labels_file {self.data.labels_file}: label of {name}"
        values = series_input(label if isinstance(label, list) else [label], place).target
        if len(values) > self.task.horizon:
            raise InputError(f"{place}: {len(values)} values, but the horizon has {self.task.horizon} steps")
        return values

    def observe_reference(self) -> Side:
        """Forecast and measure the windows of the test."""
        return self._observe(self.reference, self._forecast(self.reference))

    def observe_fresh(self) -> Side:
        """Measure the fresh windows, and forecast them unless they are of a log."""
        return self._observe(self.fresh, self.forecasts or self._forecast(self.fresh))

    def _forecast(self, rows: datasets.Dataset) -> list[np.ndarray]:
        """Median forecast `[H]` of each window."""
        task = copy.copy(self.task)
        task.use({"test": rows}, train=False)
        raw, _ = task.encoded_split(self.model, None, "test").predict(self.model, "test")  # type: ignore[arg-type]
        return [np.median(paths, axis=0) for paths in raw]

    def _residuals(self, rows: datasets.Dataset, forecasts: list[np.ndarray]) -> np.ndarray:
        """True values minus forecasts `[N, H]`, over the error of the seasonal naive forecast; NaN if not known."""
        found = np.full((len(rows), self.task.horizon), np.nan)
        for row, (number, origin) in enumerate(zip(rows["series"], rows["origin"], strict=True)):
            target = self.task.series[number].target
            truth, scale = (
                target[origin : origin + self.task.horizon],
                seasonal_error(target[:origin], self.task.season),
            )
            if scale > 0:
                found[row, : len(truth)] = (truth - forecasts[row][: len(truth)]) / scale
        return found

    def _observe(self, rows: datasets.Dataset, forecasts: list[np.ndarray]) -> Side:
        horizon, windows = self.task.horizon, list(zip(rows["series"], rows["origin"], strict=True))
        context = self.context or self.data.context_length or 2 * horizon
        series = [self.task.series[number] for number, _ in windows]
        last = [one.target[max(0, at - horizon) : at] for one, (_, at) in zip(series, windows, strict=True)]
        known = [values[~np.isnan(values)] for values in last]
        read = [one.target[max(0, at - context) : at] for one, (_, at) in zip(series, windows, strict=True)]
        residuals = self._residuals(rows, forecasts)
        samples = {
            "level of the last values": Sample([_mean(values) for values in known]),
            "spread of the last values": Sample([values.std() if len(values) else np.nan for values in known]),
            "share of missing values": Sample([np.isnan(values).mean() for values in read], MANN_WHITNEY),
            "level of the forecast": Sample([values.mean() for values in forecasts]),
            "residual of the forecast": Sample([_mean(values[~np.isnan(values)]) for values in residuals]),
        }
        for number in range(min(one.covariates.shape[1] for one in series)):
            names = self.data.covariate_columns or ()
            ahead = [one.covariates[at : at + horizon, number] for one, (_, at) in zip(series, windows, strict=True)]
            name = f"covariate {names[number] if number < len(names) else number + 1}"
            samples[name] = Sample([_mean(values) for values in ahead])
        for number in range(min(len(one.static_categories) for one in series)):
            classes = [one.static_categories[number] for one in series]
            samples[f"static class {number + 1}"] = Sample(classes, CHI_SQUARE, binned=True)
        scores = _errors(residuals)
        return Side(len(rows), samples, scores if len(scores) else None)

    def score(self, rows: datasets.Dataset) -> np.ndarray:
        """Forecast each window and return its MASE in percent; windows after a constant series are left out."""
        return _errors(self._residuals(rows, self._forecast(rows)))

    def split_judged(self, rows: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Hold out the last windows; those to train on end before the first of them begins.

        Series of a log without time stamps cannot be laid beside each other; the last rows are held out.

        Raises:
            InputError: No window ends before those that are held out.
        """
        windows = list(zip(rows["series"], rows["origin"], strict=True))
        series = [self.task.series[number] for number, _ in windows]
        spans: list[Any] = [(at, at + self.task.horizon) for _, at in windows]
        if all(one.stamps is not None for one in series):
            spans = [_times(one, at, at + self.task.horizon) for one, (_, at) in zip(series, windows, strict=True)]
        elif self.data.served is not None:
            spans = [(number, number) for number in range(len(windows))]
        bound = sorted(begin for begin, _ in spans)[int(len(spans) * (1 - self.data.holdout))]
        train = [number for number, (begin, end) in enumerate(spans) if begin < bound and end <= bound]
        held_out = [number for number, (begin, _) in enumerate(spans) if begin >= bound]
        if not train:
            raise InputError(
                "--retrain: no fresh window ends before the first one that is held out; give more windows"
            )
        return rows.select(train), rows.select(held_out)

    def training_task(self, fresh: datasets.Dataset) -> tuple[Task, Any]:
        """Task on old and fresh windows; those for validation are the last ones of the training file."""
        task = copy.copy(self.task)
        train = datasets.concatenate_datasets([self.old, fresh])
        self.args.choose_metric(task.metrics)
        task.use({"train": train, "validation": self.task.splits["validation"]})
        return task, self.data


def _points(output: Any) -> np.ndarray | None:
    """Median, or else mean, of a forecast of the pipeline; None for any other output."""
    found = output[0] if isinstance(output, list) and len(output) == 1 else output
    if not isinstance(found, dict):
        return None
    quantiles = found.get("quantiles")
    values = (quantiles.get("0.5") if isinstance(quantiles, dict) else None) or found.get("mean")
    try:
        points = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        return None
    return points if points.ndim == 1 and np.isfinite(points).all() else None


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _errors(residuals: np.ndarray) -> np.ndarray:
    """Mean absolute residual of each row, in percent, without rows that have none."""
    known = ~np.isnan(residuals)
    rows = known.any(axis=1)
    return 100 * np.abs(np.where(known, residuals, 0.0)).sum(axis=1)[rows] / known.sum(axis=1)[rows]


def _times(one: Series, *steps: int) -> tuple[Any, ...]:
    """Time stamps of steps, which may come after the last one."""
    assert one.stamps is not None and one.frequency is not None
    missing = max(0, max(steps) + 1 - len(one.stamps))
    stamps = extended_stamps(one.stamps, one.frequency, missing) if missing else one.stamps
    return tuple(stamps[step] for step in steps)
