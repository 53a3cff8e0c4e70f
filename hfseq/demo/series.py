"""Handler of the forecasting page: series as text, forecasts as a plot and a table."""

import csv
import json
import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from hfseq.data.series import (
    MISSING,
    Series,
    extended_stamps,
    is_number,
    parse_stamp,
    parse_table,
    regular_series,
    series_input,
)
from hfseq.demo.handlers import show_picture
from hfseq.demo.loading import DemoModel
from hfseq.errors import InputError
from hfseq.plots import plot_forecasts

LEVELS = (0.1, 0.5, 0.9)
"""Levels of the quantiles in the table."""
_EMPTY = "Enter a series first."
# As many values before the horizon as these horizons are plotted, and at least so many values.
_SHOWN_HORIZONS, _SHOWN_VALUES = 4, 48


def kinds(demo: DemoModel) -> list[list[str]]:
    """Names of the classes of each static feature of a forecaster."""
    config: Any = demo.model.config
    named = getattr(config, "static_categories", None)
    return named or [[str(number) for number in range(size)] for size in demo.predictor.pipe.needs.cardinality]


def forecast(
    demo: DemoModel, text: str, horizon: float | None = None, classes: Sequence[str] = ()
) -> tuple[str, list[list[Any]], str]:
    """Forecast a series.

    Args:
        demo: A forecaster.
        text: The series; see `read_text`.
        horizon: Number of steps; None for that of the model.
        classes: Static classes of the series, unless the text has them.

    Returns:
        A plot as an HTML image, the rows of the table (step or time stamp, mean, quantiles of `LEVELS`, if the model
        forecasts distributions), and a note.

    Raises:
        InputError: If the series is invalid, or lacks what the model reads.
    """
    if not text.strip():
        return "", [], _EMPTY
    value, series = read_text(text, getattr(demo.model.config, "frequency", None))
    if classes:
        entry = value if isinstance(value, dict) else {"target": value}
        value = {"feat_static_cat": list(classes)} | entry
    points = getattr(demo.model.config, "loss", "nll") == "mse"
    # A seed, so that the same series has the same forecast.
    settings: dict[str, Any] = {} if points else {"seed": 0, "quantile_levels": LEVELS}
    if horizon is not None:
        settings["prediction_length"] = int(horizon)
    found = demo.ask(value, return_samples=True, **settings)
    known, ahead = len(series.target), len(found["mean"])
    times = found.get("timestamps") or range(known + 1, known + ahead + 1)
    columns = [found["mean"], *(found["quantiles"][str(level)] for level in (() if points else LEVELS))]
    rows = [
        [_shorten(time), *(float(f"{one:.6g}") for one in row)] for time, *row in zip(times, *columns, strict=True)
    ]
    missing = int(np.isnan(series.target).sum())
    remark = f"{known:,} values" + (f", {missing:,} of them missing." if missing else ".")
    return _plot(demo.name, series, np.asarray(found["samples"])), rows, remark


def read_text(text: str, frequency: str | None) -> tuple[list[float | None] | dict[str, Any], Series]:
    """Read a series: numbers, a table, or JSON.

    Args:
        text: Numbers separated by spaces, commas, semicolons or lines, `NaN` where one is missing; a CSV file with a
            line for each step, of a time stamp and a value, as recipes read it; or an object in GluonTS' format.
        frequency: Frequency of the series if its time stamps do not tell.

    Returns:
        The series as the pipeline takes it, and as it is on the grid of its frequency.

    Raises:
        InputError: If it is none of these.
    """
    fields = text.replace(",", " ").replace(";", " ").split()
    value: Any
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError("the text begins with { but is not JSON") from None
    elif all(is_number(one) or one.lower() in MISSING for one in fields):
        value = [float(one) if is_number(one) and not math.isnan(float(one)) else None for one in fields]
    else:
        one = _on_grid(_read_table(text), frequency)
        value = {"target": [None if math.isnan(number) else number for number in one.target.tolist()]}
        if one.stamps is not None:
            value |= {"start": str(one.stamps[0]), "freq": one.frequency}
    series = series_input(value, "the series")
    return value, _on_grid(series, frequency)


def _on_grid(series: Series, frequency: str | None) -> Series:
    """A series with its gaps as missing values; those at its ends are left out."""
    default = None if series.stamps is None else frequency
    (found,), _ = regular_series([series], series.frequency or default)
    return found


def _read_table(text: str) -> Series:
    """The only series of a table, whose first line may be missing if there are time stamps."""
    lines = text.strip().splitlines()
    separator = next((one for one in "\t;" if one in lines[0]), ",")
    if parse_stamp(lines[0].split(separator)[0]) is not None:
        lines.insert(0, f"ds{separator}y")
    try:
        rows = list(enumerate(csv.reader(lines, delimiter=separator, strict=True), 1))
    except csv.Error as error:
        raise InputError(f"the text is neither a list of numbers nor CSV ({error})") from None
    found = parse_table(rows, "table")
    if len(found) > 1:
        raise InputError(f"the table has {len(found)} series; the page takes one at a time")
    return found[0]


def _plot(name: str, series: Series, samples: np.ndarray) -> str:
    """The end of a series with the paths of its forecast `[S, H]`, as an HTML image."""
    known, horizon = len(series.target), samples.shape[1]
    shown = min(known, max(_SHOWN_HORIZONS * horizon, _SHOWN_VALUES))
    times: Any = range(1, known + horizon + 1)
    if series.stamps is not None and series.frequency is not None:
        times = extended_stamps(series.stamps[:known], series.frequency, horizon)
    values = np.concatenate([series.target[known - shown :], np.full(horizon, np.nan)])
    picture = BytesIO()
    plot_forecasts([(name, times[known - shown :], values, shown, samples)], picture)
    # Below the title of its box.
    return show_picture(picture, "plot of the series and its forecast", "width: 100%; padding-top: 1.5em")


def _shorten(time: Any) -> Any:
    """A time stamp without a time of zero; the number of a step as it is."""
    return time.removesuffix("T00:00:00").replace("T", " ") if isinstance(time, str) else time
