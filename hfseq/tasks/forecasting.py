"""Forecasts of time series: windows at rolling origins, samples of the horizon, baselines."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from transformers import AutoModelForTimeSeriesPrediction, PreTrainedModel

from hfseq import metrics
from hfseq.data.embedded.climate import climate_series
from hfseq.data.encoding import EncodedSplits
from hfseq.data.series import (
    Series,
    categories,
    default_lags,
    extended_stamps,
    parse_stamp,
    read_series,
    regular_series,
    season_length,
    time_feature_names,
)
from hfseq.data.windows import WindowCollator, origins
from hfseq.errors import InputError
from hfseq.forecasters import Needs, needs_of, sample_paths
from hfseq.inference.benchmark import Run
from hfseq.lazy import datasets
from hfseq.metrics.forecasting import QUANTILE_LEVELS
from hfseq.models import is_hfseq
from hfseq.plots import plot_forecasts
from hfseq.tasks.base import Task
from hfseq.tasks.forecast_baselines import ets, seasonal_naive

logger = logging.getLogger(__name__)

INTERVAL = 80
"""Probability of the interval whose coverage is reported, in percent; its ends are quantiles that are scored, too."""

MOST_INTERVALS = 2000
"""Number of windows up to which the naive forecasts have intervals; those of many more would fill the memory."""


Window = tuple[int, int]
"""Number of a series, and the number of its values before the horizon."""


class Reference(NamedTuple):
    """True values of a window, with their scale.

    Attributes:
        values: True values `[H]`, NaN where one is missing.
        scale: In-sample error of the seasonal naive forecast, by which MASE divides.
    """

    values: np.ndarray
    scale: float


class Forecasting(Task):
    """Probabilistic or point forecasts of univariate series.

    A row is a window: a series and the number of its values that are known when the horizon begins. Training windows
    begin at every `train_stride`-th step; test windows, and before them validation windows, at the rolling origins of
    a backtest. The raw prediction of a row is `[S, H]`: paths sampled from the model.

    Attributes:
        series: All series; those of a file that serves several splits stand once.
        notes: Line for each file that was read.
        frequency: Frequency of the series, if it is known.
        season: Steps in a season.
        horizon: Steps of the horizon.
    """

    columns = ("unique_id", "ds", "y")
    column_flags = ("id_column", "time_column", "target_column")
    metrics = ("wql", "mase", "smape", "mae", "rmse", "mse", "nd", "crps")
    hub_task = "time-series-forecasting"
    embedded_name = "CO2 and El Niño, monthly"
    auto_class: ClassVar[Any] = AutoModelForTimeSeriesPrediction
    features = True
    predicts_batches = True
    keeps_columns = True
    label_name = "future_values"
    main_input = "past_values"
    length_unit = "steps"
    rows = "windows"
    kind_metric = "mae"

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        self.series: list[Series] = []
        self.notes: list[str] = []
        self.frequency: str | None = None
        self.season = 1
        self.horizon = 0
        self.context = 0
        self._training: list[int] = []

    # Reading

    def embedded(self) -> datasets.DatasetDict:
        """Raise: `read` makes the embedded series, which are no rows."""
        raise NotImplementedError

    def read(self, *, train: bool = True, known: list[str] | None = None, num_parts: int = 1) -> Task:
        """Read the series, and list the windows of each split; arguments as for `Task.read`.

        Raises:
            InputError: A flag, a file or a series is invalid, or the series are too short for the horizon.
        """
        data = self.data
        if data.prediction_length is None:
            raise InputError("--prediction_length is missing: give the number of steps to forecast")
        self.horizon = data.prediction_length
        files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
        if not train:
            if not any(files.values()):
                raise InputError("--do_predict without --do_train needs --test_file")
            files = {"test": data.test_file or data.train_file}
        numbers = {split: self.read_file(name, f"--{split}_file") for split, name in files.items() if name}
        if train and "train" not in numbers:
            if any(files.values()):
                raise InputError("no training data; give --train_file")
            found, self.embedded_name = climate_series()  # type: ignore[misc]
            numbers["train"] = self._add(found)
        self.season = data.seasonality or season_length(self.frequency)
        splits = self._windows(numbers, train)
        return self.use(splits, train=train)

    def read_file(self, name: str, flag: str) -> list[int]:
        """Read the series of a file, and return their numbers in `series`.

        Args:
            name: Path of the file.
            flag: Flag that gave it, for errors.

        Raises:
            InputError: As for `read_series` and `regular_series`, or the frequency is not that of the other series.
        """
        data = self.data
        found = read_series(
            name,
            flag,
            id_column=data.id_column,
            time_column=data.time_column,
            target_column=data.target_column,
            covariate_columns=data.covariate_columns or (),
            static_columns=data.static_columns or (),
        )
        return self._add(found, name)

    def _add(self, found: Sequence[Series], name: str = "the embedded data") -> list[int]:
        regular, gaps = regular_series(found, self.data.frequency)
        missing = sum(int(np.isnan(one.target).sum()) for one in regular)
        frequency = regular[0].frequency
        if self.series and frequency != self.frequency:
            raise InputError(f"{name}: frequency {frequency}, but {self.frequency} in {self.series[0].source}")
        self.frequency = frequency
        notes = [f"{len(regular)} series of {sum(len(one.target) for one in regular)} values"]
        notes += [f"frequency {frequency}"] if frequency else []
        notes += [f"{missing} missing, {gaps} of them gaps between time stamps"] if missing else []
        self.notes.append(f"{name}: {', '.join(notes)}")
        start = len(self.series)
        self.series += regular
        return list(range(start, len(self.series)))

    def _start(self, one: Series, value: str | int | None, flag: str) -> int | None:
        """Origin that a flag gives, as a number of values or as a time stamp."""
        if value is None:
            return None
        text = str(value)
        # A number of four digits may be a year.
        years = (0, 0) if one.stamps is None else (one.stamps[0].year, one.stamps[-1].year)
        if text.isdecimal() and not (len(text) == 4 and years[0] <= int(text) <= years[1]):
            return int(text)
        if one.stamps is None:
            raise InputError(f"--{flag} {text}: there are no time stamps; give the number of values before it")
        stamp = parse_stamp(text)
        if stamp is None:
            raise InputError(f"--{flag} {text!r} is neither a number of steps nor a time stamp")
        return int(one.stamps.searchsorted(stamp))

    def _windows(self, numbers: Mapping[str, list[int]], train: bool) -> dict[str, datasets.Dataset]:
        """Windows of each split."""
        data, rows = self.data, {split: [] for split in ("train", "validation", "test")}  # type: ignore[var-annotated]
        limits: dict[int, int] = {}

        def backtest(split: str, own: Sequence[int], end: Mapping[int, int]) -> None:
            rows[split] = self.backtest(split, own, end)
            for number, at in rows[split]:
                limits[number] = min(at, limits.get(number, at))

        tested = numbers.get("test", numbers.get("train", []))
        backtest("test", tested, {})
        if not rows["test"]:
            raise self._too_short(tested, "the test")
        if train:
            validated = numbers.get("validation", numbers["train"])
            backtest("validation", validated, dict(limits))
            if not rows["validation"]:
                raise self._too_short(validated, "the test and the validation")
            for number in numbers["train"]:
                one, end = self.series[number], limits.get(number)
                rows["train"] += [(number, at) for at in self._training_origins(one, end)]
            if not rows["train"]:
                raise self._too_short(numbers["train"], "the test, the validation and training")
        if data.standardize:
            for number in {number for own in rows.values() for number, _ in own}:
                self._standardize(number, limits.get(number))
        self._training = sorted({number for number, _ in rows["train"]})
        return {split: window_rows(own) for split, own in rows.items() if own}

    def backtest(self, split: str, numbers: Sequence[int], end: Mapping[int, int] | None = None) -> list[Window]:
        """Windows at the rolling origins that the flags of a split give.

        Args:
            split: Name in the flags: `test` of `--test_start` and `--num_test_windows`.
            numbers: Numbers of the series.
            end: End of the last horizon by the number of a series; by default that of the series.

        Raises:
            InputError: A flag does not give an origin.
        """
        found: list[Window] = []
        for number in numbers:
            one = self.series[number]
            start = self._start(one, getattr(self.data, f"{split}_start"), f"{split}_start")
            count = getattr(self.data, f"num_{split}_windows")
            options = {"count": count, "stride": self.data.backtest_stride, "end": (end or {}).get(number)}
            found += [(number, at) for at in origins(one, self.horizon, start=start, **options)]
        return found

    def _training_origins(self, one: Series, end: int | None) -> list[int]:
        """Origins of training windows: all from a full context on, or the last one of a series too short for that."""
        end = len(one.target) if end is None else end
        full = self.data.context_length or 2 * self.horizon
        start = max(1, min(full, end - self.horizon))
        return origins(one, self.horizon, start=start, stride=self.data.train_stride, end=end)

    def _too_short(self, numbers: Sequence[int], what: str) -> InputError:
        one = max((self.series[number] for number in numbers), key=lambda one: len(one.target))
        return InputError(
            f"{one.source}: no series is long enough: the longest, {one.item_id!r}, has {len(one.target)} values, of "
            f"which {what} need windows of --prediction_length {self.horizon}; give fewer or earlier windows, a "
            "shorter horizon, or more values"
        )

    def _standardize(self, number: int, end: int | None) -> None:
        """Give a series mean 0 and variance 1 in what comes before its first validation or test window."""
        one = self.series[number]
        known = one.target[:end]
        spread = float(np.nanstd(known)) or 1.0
        values = (one.target - np.nanmean(known)) / spread
        self.series[number] = Series(**{**vars(one), "target": values})

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        prepared = self._draw(splits)
        self.references = {split: self._references(rows) for split, rows in prepared.items() if split != "train"}
        self._check_metric()
        return prepared

    def _check_metric(self) -> None:
        """Raise an `InputError` if the metric that selects the best checkpoint is undefined on the validation."""
        metric = str(getattr(self.args, "metric_for_best_model", None) or "").removeprefix("eval_")
        rows, reason = self.references.get("validation", ()), ""
        if metric in ("wql", "nd") and not any(np.nansum(np.abs(row.values)) for row in rows):
            reason = "all values of the validation windows are 0"
        elif metric == "mase" and not any(row.scale > 0 for row in rows):
            reason = f"no series changes in a season of {self.season} before its validation windows"
        if rows and reason:
            raise InputError(
                f"--metric_for_best_model {metric} divides by 0, since {reason}; take mae or crps, or other windows"
            )

    def use(self, splits: Mapping[str, Any], *, train: bool = True, known: list[str] | None = None) -> Self:
        """Adopt windows; see `Task.use`."""
        super().use(splits, train=train, known=known)
        if "train_sample" in self.splits:
            self.references["train_sample"] = self._references(self.splits["train_sample"])
        return self

    def _references(self, rows: datasets.Dataset) -> list[Reference]:
        references, scales = [], {}
        for number, origin in zip(rows["series"], rows["origin"], strict=True):
            target = self.series[number].target
            if (number, origin) not in scales:
                scales[number, origin] = metrics.seasonal_error(target[:origin], self.season)
            references.append(Reference(target[origin : origin + self.horizon], scales[number, origin]))
        return references

    def describe(self) -> str:
        """Describe files, series and windows."""
        return "\n".join([*self.notes, super().describe()])

    def kinds(self, split: str) -> list[str] | None:
        """Series of each window, if there are several but few."""
        numbers = self.splits[split]["series"]
        return [self.series[number].item_id for number in numbers] if 1 < len(set(numbers)) <= 10 else None

    # Model

    def new_processor(self, args: Any) -> None:
        """Set the fields of a new model's config that data and flags determine; there is no processing class.

        Args:
            args: Model arguments; a checkpoint has these fields.
        """
        if args.model_name_or_path is not None:
            return
        data, found = self.data, [self.series[number] for number in self._training]
        lags = data.lags_sequence
        if lags is None:
            longest = max(7, int(np.median([len(one.target) for one in found])) // 3)
            lags = default_lags(self.frequency, min(longest, 1200))
        classes = categories(found)
        dated = all(one.stamps is not None for one in self.series)
        self.fields = {
            "input_size": 1,
            "prediction_length": self.horizon,
            "context_length": data.context_length or 2 * self.horizon,
            "lags_sequence": list(lags),
            "num_time_features": len(time_feature_names(self.frequency)) if dated else 0,
            "num_dynamic_real_features": found[0].covariates.shape[1],
            "num_static_categorical_features": len(classes),
            "cardinality": [len(names) for names in classes] or None,
            "num_static_real_features": len(found[0].static_reals),
            "frequency": self.frequency,
            "static_categories": classes or None,
        }

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from windows to paths, cutting included, and `count` windows; see `Task.timed`.

        A backtest may have few windows, which then come again and again.
        """
        task = self.encoded_split(model, processing_class, split)
        model.eval()

        def run(windows: Sequence[Any]) -> torch.Tensor:
            batch = task.collator(list(windows)).to(model.device)
            return sample_paths(model, batch, task.horizon, task.data.num_samples).cpu()  # waits for the device

        return run, list(islice(cycle(self.splits[split]), count))

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Choose the model's own loss.

        Args:
            model: Model.
            tokenizer: Ignored.

        Raises:
            InputError: The model has another horizon, or is for counts and the series are none;
                `--label_smoothing_factor` is given; or the model's loss does not allow
                `--gradient_accumulation_steps`.
        """
        self.own_loss = True
        config: Any = model.config
        needs = needs_of(config)
        if needs.fixed_horizon and self.horizon != needs.prediction_length:
            raise InputError(
                f"--prediction_length {self.horizon}: {config.model_type} forecasts {needs.prediction_length} steps"
            )
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: a forecaster has no classes to smooth; leave it out")
        self._check_model(config, needs)
        self.averages = not is_hfseq(config)
        if self.averages and self.args.gradient_accumulation_steps > 1:
            raise InputError(
                f"--gradient_accumulation_steps: the loss of {type(model).__name__} is a mean over each batch alone; "
                "use larger batches"
            )

    def _check_model(self, config: Any, needs: Needs) -> None:
        """Report flags that a checkpoint does not follow, and refuse values that its distribution does not have."""
        data = self.data
        for name in ("lags_sequence", "context_length"):
            given, own = getattr(data, name), getattr(config, name, None)
            own = list(own) if isinstance(own, tuple) else own
            if given is not None and own is not None and given != own:
                logger.warning("--%s %s has no effect: the model has %s", name, _flag(given), _flag(own))
        if data.covariate_columns and not needs.num_covariates:
            logger.warning("--covariate_columns have no effect: the model reads no covariates")
        if data.static_columns and not needs.cardinality:
            logger.warning("--static_columns have no effect: the model reads no static classes")
        if getattr(config, "distribution_output", None) == "negative_binomial":
            for one in self.series:
                seen = one.target[~np.isnan(one.target)]
                for value in seen[(seen < 0) | (seen != np.round(seen))][:1]:
                    raise InputError(
                        f"{one.source}: series {one.item_id!r} has the value {value:.6g}, but "
                        "distribution_output='negative_binomial' is for counts; set 'student_t' or 'normal'"
                    )

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        config: Any = model.config
        self.context = self.data.context_length or 2 * self.horizon
        self.collator = WindowCollator(  # type: ignore[assignment]
            self.series,
            needs_of(config),
            self.horizon,
            context_length=self.context,
            categories=getattr(config, "static_categories", None) or (),
        )
        length = self.collator.past + self.horizon  # type: ignore[attr-defined]
        lengths = {split: [length] * len(rows) for split, rows in self.splits.items()}
        return EncodedSplits(dict(self.splits), lengths, [])

    # Loss and predictions

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Number of observed values in context and horizon, over which the loss is a mean."""
        if "future_observed_mask" not in batch:
            return torch.tensor(batch["future_values"].numel())
        if self.averages:
            return batch["future_observed_mask"].sum()
        context: int = self.collator.context  # type: ignore[attr-defined]
        return batch["future_observed_mask"].sum() + batch["past_observed_mask"][:, -context:].sum()

    def batch_loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], count: torch.Tensor | int
    ) -> torch.Tensor:
        """Compute the loss of a batch in an explicit loop; arguments as for `Task.batch_loss`."""
        if self.averages:  # losses of transformers are means over the batch
            return model(**batch).loss * (self.count(batch) / count)
        return super().batch_loss(model, batch, count)

    @torch.no_grad()
    def predict_batch(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a batch and paths over its horizon, whose samples are those of the seed.

        Args:
            model: Model.
            batch: Inputs, values of the horizon among them.

        Returns:
            The mean loss, and paths `[B, S, H]`.
        """
        loss = model(**batch).loss
        device = batch["past_values"].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.args.seed)
            return loss, sample_paths(model, batch, self.horizon, self.data.num_samples)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Score forecasts: quantiles by WQL and coverage, samples by CRPS, their mean by (R)MSE, their median else."""
        samples = np.stack([np.asarray(one, dtype=float) for one in predictions])
        true, scales = np.stack([one.values for one in references]), [one.scale for one in references]
        quantiles = np.quantile(samples, QUANTILE_LEVELS, axis=1).swapaxes(0, 1)
        median, mean = quantiles[:, len(QUANTILE_LEVELS) // 2], samples.mean(axis=1)
        mse = metrics.mse(mean, true)["score"]
        # Undefined, as MASE of constant series is, where they would divide by 0.
        nonzero = bool(np.nansum(np.abs(true)))
        scores = {
            "wql": metrics.weighted_quantile_loss(quantiles, true)["score"] if nonzero else np.nan,
            "mase": metrics.mase(median, true, scales)["score"],
            "smape": metrics.smape(median, true)["score"],
            "mae": metrics.mae(median, true)["score"],
            "rmse": mse**0.5,
            "mse": mse,
            "nd": metrics.nd(median, true)["score"] if nonzero else np.nan,
            "crps": metrics.crps(samples, true)["score"],
        }
        if samples.shape[1] > 1:
            scores["coverage"] = metrics.coverage(quantiles[:, 0], quantiles[:, -1], true)["score"]
        return scores

    def score_kind(self, predictions: Any, references: Any) -> dict[str, float]:
        """Mean absolute error of the windows of a series."""
        median = np.stack([np.median(np.asarray(one, dtype=float), axis=0) for one in predictions])
        return metrics.mae(median, np.stack([one.values for one in references]))

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Random walk, seasonal naive, and exponential smoothing for at most `--ets_windows` windows.

        The naive forecasts are points where there are more than `MOST_INTERVALS` windows.
        """
        rows = self.splits[split]
        histories = [
            self.series[number].target[:origin] for number, origin in zip(rows["series"], rows["origin"], strict=True)
        ]
        seasons = {"naive": 1, "seasonal": self.season}
        points = len(histories) > MOST_INTERVALS
        found = {
            name: [seasonal_naive(history, self.horizon, season, points=points) for history in histories]
            for name, season in seasons.items()
            if name == "naive" or season > 1
        }
        if len(histories) <= self.data.ets_windows and has_statsmodels():
            options = {"samples": 100, "seed": self.args.seed}
            found["ets"] = [ets(history, self.horizon, self.season, **options) for history in histories]
        return found

    # Reports

    def sources(self, split: str) -> list[str]:
        """Series and begin of the horizon of each window."""
        return [f"{self.series[row['series']].item_id} {self._time(row)}" for row in self.splits[split]]

    def _time(self, row: Mapping[str, int], step: int = 0) -> str:
        """Time stamp of a step of the horizon, or its number."""
        one, at = self.series[row["series"]], row["origin"] + step
        if one.stamps is None or one.frequency is None:
            return str(at)
        stamps = one.stamps
        if at >= len(stamps):
            stamps = extended_stamps(stamps, one.frequency, at - len(stamps) + 1)
        stamp = stamps[at]
        return str(stamp.date() if stamp == stamp.normalize() else stamp)

    def show(self, predictions: Any) -> list[str]:
        """Medians, or true values, step by step."""
        lines = []
        for one in predictions:
            values = one.values if isinstance(one, Reference) else np.median(one, axis=0)
            lines.append(" ".join("-" if np.isnan(value) else f"{value:.5g}" for value in values))
        return lines

    def example(self, split: str) -> str | None:
        """None: a model card cannot show a series."""
        return None

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        numbers = self.splits[split]["series"]
        windows = len(predictions)
        return f"{windows} windows of {self.horizon} steps in {len(set(numbers))} series, season of {self.season}"

    def write(self, directory: Path, split: str, predictions: Any) -> None:
        """Write `predictions.csv`: for each window and step the true value, the mean, and quantiles of samples."""
        with open(directory / "predictions.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            levels = QUANTILE_LEVELS if len(predictions[0]) > 1 else ()
            writer.writerow(["unique_id", "origin", "ds", "y", "mean", *map(str, levels)])
            for row, samples, reference in zip(self.splits[split], predictions, self.references[split], strict=True):
                samples = np.asarray(samples, dtype=float)
                columns = samples.mean(axis=0, keepdims=True)
                if levels:
                    columns = np.concatenate([columns, np.quantile(samples, levels, axis=0)])
                for step in range(self.horizon):
                    true = reference.values[step]
                    cells = [f"{value:.7g}" for value in columns[:, step]]
                    name = self.series[row["series"]].item_id
                    shown = "" if np.isnan(true) else f"{true:.10g}"
                    writer.writerow([name, row["origin"], self._time(row, step), shown, *cells])

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve, and the fans of the last window of up to four series."""
        super().plot(model, log, split, predictions)
        last = {row["series"]: number for number, row in enumerate(self.splits[split])}
        panels = []
        for number, window in list(last.items())[:4]:
            one, origin = self.series[number], self.splits[split][window]["origin"]
            start = max(0, origin - max(2 * self.horizon, 2 * self.season if self.season < 4 * self.horizon else 0))
            values = one.target[start : origin + self.horizon]
            times: Any = range(start, start + len(values)) if one.stamps is None else one.stamps[start:][: len(values)]
            panels.append((one.item_id, times, values, origin - start, np.asarray(predictions[window])))
        plot_forecasts(panels, f"{self.args.output_dir}/forecast.png")


def window_rows(windows: Sequence[Window]) -> datasets.Dataset:
    """Rows of windows: `series` and `origin`."""
    features = datasets.Features({"series": datasets.Value("int64"), "origin": datasets.Value("int64")})
    columns = {"series": [number for number, _ in windows], "origin": [at for _, at in windows]}
    return datasets.Dataset.from_dict(columns, features=features)


def _flag(value: Any) -> str:
    """Text of a value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def has_statsmodels() -> bool:
    """Return True if statsmodels, which the `forecast` extra installs, is there."""
    from importlib.util import find_spec

    return find_spec("statsmodels") is not None
