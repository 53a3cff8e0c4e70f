"""Plots of learning curves, attention, confusion matrices, regressions, and quality against latency.

They need matplotlib (the `train` extra), which is imported on first use, but no display.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#666666"


def save_figure(figure: "Figure", path: str | os.PathLike | IO[bytes]) -> None:
    """Save a figure as PNG to a path or an open file, without a display or warnings about missing glyphs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with _any_script():
        figure.savefig(path, format="png", dpi=150, bbox_inches="tight")


@contextmanager
def _any_script() -> Iterator[None]:
    """Draw scripts without an installed font as boxes: one warning per glyph would flood the output of a run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        yield


def _tighten(figure: "Figure") -> None:
    """Fit the axes of a figure and their labels, which are drawn for their sizes, into it."""
    with _any_script():
        figure.tight_layout()


def _save(axes: "Axes", path: str | os.PathLike | IO[bytes]) -> None:
    save_figure(axes.figure, path)  # type: ignore[arg-type]


def shorten_label(text: str, longest: int = 20) -> str:
    """Shorten a token or name and escape it for matplotlib: no math mode, no control characters."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return (shown if len(shown) <= longest else shown[: longest - 1] + "…").replace("$", r"\$")


def plot_learning_curve(
    log_history: Sequence[dict[str, Any]], path: str | os.PathLike, metric: str | None = None
) -> None:
    """Plot training loss, validation loss and a validation metric over the training steps, as PNG.

    Args:
        log_history: `TrainerState.log_history`: entries with `step` and either `loss` or `eval_…` values.
        path: Path of the PNG.
        metric: Metric to plot on a second axis, with or without `eval_`; ignored if missing from the history.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: "Axes", key: str, label: str, **style: Any) -> list[Any]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if not points:
            return []
        if len(points) == 1:
            # It would be invisible without a marker.
            style.setdefault("marker", "o")
        return axes.plot(*zip(*points, strict=True), ms=4, label=label, **style)

    losses = _new_axes((8, 4.5), "optimizer step", "loss")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = draw(losses, "loss", "training loss", color="#4c78a8")
    lines += draw(losses, "eval_loss", "validation loss", color="#f58518", marker="o")
    name = (metric or "").removeprefix("eval_")
    if any(f"eval_{name}" in entry for entry in log_history):
        scores, colour = losses.twinx(), "#54a24b"
        lines += draw(scores, f"eval_{name}", name, color=colour, marker="s", linestyle="--")
        scores.set_ylabel(shorten_label(name), color=colour)
        scores.tick_params(axis="y", colors=colour)
        scores.spines["top"].set_visible(False)
    if lines:
        losses.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines), frameon=False)
    _save(losses, path)


def _new_axes(size: tuple[float, float], x_label: str, y_label: str) -> "Axes":
    """Return the axes of a new figure, with a grid behind the data and without a frame at the top and right."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=size).add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label, axisbelow=True)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_alignment(
    attention: np.ndarray | Sequence[Sequence[float]],
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: str | os.PathLike | IO[bytes],
) -> None:
    """Plot the attention of each target token over the source tokens as a heat map, as PNG.

    Args:
        attention: Weights `[target, source]`; each row sums to 1.
        source_tokens: Column labels, in any script.
        target_tokens: Row labels.
        path: Path of the PNG, or an open file.

    Raises:
        ValueError: The shape of the weights is not `[len(target_tokens), len(source_tokens)]`.
    """
    weights = np.asarray(attention, dtype=float)
    if weights.shape != (len(target_tokens), len(source_tokens)):
        raise ValueError(
            f"attention is {weights.shape}, not [target, source] = ({len(target_tokens)}, {len(source_tokens)})"
        )
    rows, columns = weights.shape
    # 0.32 inches per cell keep labels legible; cells shrink beyond 60 inches, since a larger PNG could not be opened.
    cell = min(0.32, 60 / max(rows, columns, 1))
    sources, targets = ([shorten_label(token) for token in tokens] for tokens in (source_tokens, target_tokens))
    axes = _heat_map(weights, cell, sources, targets, "attention weight", "source", "target")
    _save(axes, path)


def plot_spectrogram(
    features: np.ndarray, spans: Sequence[tuple[str, float, float]], duration: float, path: str | os.PathLike
) -> None:
    """Plot a spectrogram with the characters of its transcript below, each where it was found, as PNG.

    Args:
        features: Frames `[T, F]`, the lowest band first.
        spans: Characters with the begin and end of each in seconds.
        duration: Duration of the recording in seconds.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(max(8.0, 0.22 * len(spans), 1.2 * duration), 60), 4))
    image, text = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    image.imshow(
        np.asarray(features, dtype=float).T,
        aspect="auto",
        origin="lower",
        extent=(0, duration, 0.5, np.shape(features)[1] + 0.5),
        cmap="magma",
    )
    image.set_ylabel("mel band")
    for character, start, end in spans:
        text.axvspan(start, end, facecolor="#c9d7e5", edgecolor="white")
        text.text((start + end) / 2, 0.5, shorten_label(character), ha="center", va="center")
    text.set(xlim=(0, duration), ylim=(0, 1), yticks=[], xlabel="seconds")
    text.spines[["top", "right", "left"]].set_visible(False)
    save_figure(figure, path)


def plot_clips(clips: Sequence[tuple[str, np.ndarray]], path: str | os.PathLike) -> None:
    """Plot clips as strips of frames below each other, each with its title, as PNG.

    Args:
        clips: Title and frames `[T, C, H, W]` from 0 to 1, of one or three channels; at most 16 frames are shown,
            evenly taken.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    strips = [(title, _strip(np.asarray(frames))) for title, frames in clips]
    widest = max(strip.shape[1] / strip.shape[0] for _, strip in strips)
    figure = Figure(figsize=(min(max(6.0, 0.9 * widest), 16), 1.3 * len(strips)))
    for axes, (title, strip) in zip(figure.subplots(len(strips), squeeze=False)[:, 0], strips, strict=True):
        axes.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(shorten_label(title, 100), loc="left", fontsize=9)
        axes.set_axis_off()
    _tighten(figure)
    save_figure(figure, path)


def save_animation(clips: Sequence[np.ndarray], path: str | os.PathLike, *, scale: int = 6) -> None:
    """Save clips as an animated GIF, those of a list beside each other and the lists below each other.

    Args:
        clips: Lists of clips, `[N, T, C, H, W]` from 0 to 1, of one or three channels.
        path: Path of the GIF.
        scale: Height and width of a pixel.
    """
    from PIL import Image

    margin = ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1))
    rows = [np.concatenate(list(np.pad(one, margin, constant_values=0.5)), axis=3) for one in clips]
    frames = np.concatenate(rows, axis=2).transpose(0, 2, 3, 1)  # [T, H, W, C]
    scaled = (255 * frames).round().astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    images = [Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame) for frame in scaled]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=250, loop=0)


def plot_paths(true: np.ndarray, predicted: np.ndarray, known: int, path: str | os.PathLike) -> None:
    """Plot paths in the plane, with their true and their predicted ends, as PNG.

    Args:
        true: Paths `[N, T, 2]`, the second coordinate downwards.
        predicted: Paths whose points after the known ones are predicted, `[N, T, 2]`.
        known: Number of points that are known.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(true), 3))
    for number, axes in enumerate(figure.subplots(1, len(true), squeeze=False)[0]):
        axes.plot(*true[number][:known].T, color=_GREY, marker=".", label="known")
        axes.plot(*true[number][known - 1 :].T, color="#4c78a8", marker=".", label="true")
        axes.plot(*predicted[number][known - 1 :].T, color="#f58518", marker=".", linestyle="--", label="predicted")
        axes.set_aspect("equal", adjustable="datalim")
        axes.invert_yaxis()
        axes.set(xticks=[], yticks=[])
    axes.legend(frameon=False, fontsize=8)
    _tighten(figure)
    save_figure(figure, path)


def _strip(frames: np.ndarray) -> np.ndarray:
    """Frames beside each other, `[H, W]` or `[H, W, 3]`, with a margin between them."""
    shown = frames[np.linspace(0, len(frames) - 1, min(len(frames), 16)).round().astype(int)]
    margin = max(1, shown.shape[3] // 16)
    padded = np.pad(shown, ((0, 0), (0, 0), (0, 0), (0, margin)), constant_values=1.0)
    strip = np.concatenate(list(padded), axis=2)[..., :-margin].transpose(1, 2, 0)
    return strip[..., 0] if strip.shape[2] == 1 else strip


def plot_sequence_logos(logos: Mapping[str, np.ndarray], letters: str, path: str | os.PathLike) -> None:
    """Plot sequence logos below each other (Schneider and Stephens 1990), as PNG: letters as high as their values.

    Letters with negative values hang below the axis; of each place the letter with the largest value is outermost.

    Args:
        logos: Title to values `[L, letters]`.
        letters: Letters, in the order of the values.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    colours = dict(zip("ACGT", ("#2e8b57", "#2f5fa8", "#d99a1c", "#c0392b"), strict=True))
    glyphs = {letter: TextPath((0, 0), letter, size=1) for letter in letters}
    length = max(map(len, logos.values()))
    figure = Figure(figsize=(min(max(6.0, 0.16 * length), 40), 1.8 * len(logos)))
    for axes, (title, values) in zip(figure.subplots(len(logos), squeeze=False)[:, 0], logos.items(), strict=True):
        for place, row in enumerate(values):
            for sign in (1, -1):
                base = 0.0
                for letter in sorted(range(len(letters)), key=lambda at: abs(row[at])):
                    height = max(sign * row[letter], 0.0)
                    if height == 0:
                        continue
                    box = glyphs[letters[letter]].get_extents()
                    move = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, height / box.height)
                    move = move.translate(place + 0.55, base if sign > 0 else -base - height)
                    colour = colours.get(letters[letter], _GREY)
                    axes.add_patch(PathPatch(move.transform_path(glyphs[letters[letter]]), fc=colour, lw=0))
                    base += height
        low, high = np.minimum(values, 0).sum(axis=1).min(), np.maximum(values, 0).sum(axis=1).max()
        axes.set(xlim=(0.5, length + 0.5), ylim=(low - 1e-6, 1.05 * high + 1e-6), ylabel="log-odds")
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(0, color=_GREY, linewidth=0.6)
    _tighten(figure)
    save_figure(figure, path)


def _heat_map(
    values: np.ndarray,
    cell: float,
    columns: Sequence[str],
    rows: Sequence[str],
    title: str,
    x_label: str,
    y_label: str,
) -> "Axes":
    """Draw a heat map that fills a new figure, with grid lines between its cells and a colour bar beside it.

    Args:
        values: Values `[rows, columns]` between 0 and 1.
        cell: Width and height of a cell in inches, which limit the font size of the labels.
        columns: Column labels.
        rows: Row labels.
        title: Title of the colour bar.
        x_label: Name of the columns.
        y_label: Name of the rows.
    """
    from matplotlib.figure import Figure

    width, height = (max(count * cell, 1.6) for count in (len(columns), len(rows)))
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    image = axes.imshow(values, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    size = min(10.0, cell * 72 * 0.6)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(x_label, color=_GREY)
    axes.set_ylabel(y_label, color=_GREY)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    axes.grid(which="minor", color="#e5e5e5", linewidth=0.6)
    bar = figure.add_axes((1.0 + 0.15 / width, 0.0, 0.12 / width, min(1.0, 2.5 / height)))
    figure.colorbar(image, cax=bar, label=title)
    return axes


def plot_confusion_matrix(
    labels: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Plot the confusion matrix of a classifier as a heat map, as PNG.

    Colours are normalized over the true class, so that rare classes are as legible as frequent ones; with at most 15
    classes, cells also show counts. Classes are in the order of their ids.

    Args:
        labels: Class id of each row, `[rows]`.
        predictions: Predicted class id of each row, `[rows]`.
        names: Class names.
        path: Path of the PNG.

    Raises:
        ValueError: Labels or predictions are not `[rows]` class ids below `len(names)`, such as those of multi-label
            classification.
    """
    right, given = np.asarray(labels), np.asarray(predictions)
    size = len(names)
    if right.shape != given.shape or right.ndim != 1:
        raise ValueError(f"labels are {right.shape} and predictions {given.shape}, not both [rows]")
    for name, numbers in (("label", right), ("prediction", given)):
        if len(numbers) and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= size):
            raise ValueError(f"a {name} is not a class id below {size}")
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (right.astype(int), given.astype(int)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    numbered = size <= 15
    widest = len(str(counts.max(initial=0)))
    # The widest count determines the cell size; without counts, the line height of the class names does.
    cell = max(0.5, 0.09 * widest + 0.15) if numbered else min(0.24, 20 / size)
    ticks = [shorten_label(name, 32) for name in names]
    axes = _heat_map(shares, cell, ticks, ticks, "share of the true class", "predicted", "true")
    if numbered:
        for row, column in np.ndindex(size, size):
            colour = "white" if shares[row, column] > 0.5 else "#222222"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    _save(axes, path)


def plot_scatter(references: Sequence[float] | np.ndarray, predictions: Any, path: str | os.PathLike) -> None:
    """Plot predicted against true values as a scatter plot with its diagonal, as PNG.

    Args:
        references: True value of each row.
        predictions: Predicted value of each row.
        path: Path of the PNG.
    """
    axes = _new_axes((5, 5), "true", "predicted")
    axes.scatter(references, predictions, s=12, alpha=0.5, color="#4c78a8", linewidths=0)
    ends = [min(np.min(references), np.min(predictions)), max(np.max(references), np.max(predictions))]
    axes.plot(ends, ends, color=_GREY, linewidth=0.8, linestyle="--")
    _save(axes, path)


def plot_trade_off(
    names: Sequence[str],
    scores: Sequence[float],
    latencies: Sequence[float],
    sizes: Sequence[float],
    path: str | os.PathLike,
    metric: str = "accuracy",
    spreads: Sequence[float] | None = None,
    unit: str = "text",
    *,
    lower: bool = False,
) -> None:
    """Plot the scores of models against their latencies, as PNG; the best models are at the top left.

    Args:
        names: Names of the models.
        scores: Score of each model.
        latencies: Latency of each model in milliseconds per input, on a logarithmic axis.
        sizes: Size of each model, such as its number of parameters, to which the area of its circle is proportional.
        path: Path of the PNG.
        metric: Name of the score.
        spreads: Standard deviations of the scores, drawn as error bars; None for no bars.
        unit: Noun for an input.
        lower: Whether the score is better when lower, and its axis is turned over.
    """
    label = shorten_label(metric, 40) + " (lower is better)" * lower
    axes = _new_axes((7, 4.5), f"milliseconds for one {unit} (area: parameters)", label)
    if spreads is not None:
        axes.errorbar(latencies, scores, yerr=spreads, fmt="none", ecolor="#555555", elinewidth=1, capsize=3)
    largest = max(sizes)
    for number, (name, score, latency, size) in enumerate(zip(names, scores, latencies, sizes, strict=True)):
        # Keep the smallest circle visible, and room for labels beside the largest.
        axes.scatter(latency, score, s=max(12.0, 1500 * size / largest), color=f"C{number % 10}", alpha=0.6)
        axes.annotate(
            shorten_label(name), (latency, score), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(0.15)
    if lower:
        axes.invert_yaxis()
    _save(axes, path)


def plot_anomalies(
    times: np.ndarray,
    values: np.ndarray,
    columns: Sequence[str],
    scores: np.ndarray,
    threshold: float,
    events: Sequence[tuple[int, int]],
    alarms: Sequence[int],
    path: str | os.PathLike,
    *,
    timed: bool = True,
    title: str = "",
) -> None:
    """Plot a series, its anomaly scores with the threshold, its anomalies and the alarms, as PNG.

    Args:
        times: Seconds since 1970, `[T]`.
        values: Numbers `[T, C]`; the first six columns are drawn, on logarithmic axes if they span three magnitudes.
        columns: Names of the columns.
        scores: Scores `[T]`.
        threshold: Threshold of the scores.
        events: First and last step, exclusive, of each anomaly.
        alarms: Steps that raise an alarm.
        path: Path of the PNG.
        timed: Whether the times are known; otherwise the axis has step numbers.
        title: Name of the series.
    """
    from matplotlib.figure import Figure

    count = min(values.shape[1], 6)
    axis = times.astype("datetime64[s]") if timed else np.arange(len(times))
    figure = Figure(figsize=(12, 1.5 + 1.3 * count + 1.6))
    panels = np.atleast_1d(figure.subplots(count + 1, 1, sharex=True, height_ratios=[1.0] * count + [1.5])).tolist()
    for column, axes in enumerate(panels[:-1]):
        drawn = values[:, column]
        positive = drawn[np.isfinite(drawn) & (drawn > 0)]
        if len(positive) and np.nanmin(drawn) >= 0 and np.percentile(positive, 99) > 1e3 * np.percentile(positive, 1):
            axes.set_yscale("symlog", linthresh=max(1.0, float(np.percentile(positive, 1))))
        axes.plot(axis, drawn, color="#4c78a8", linewidth=0.7)
        axes.set_ylabel(shorten_label(columns[column], 14), fontsize=9)
    panels[-1].plot(axis, scores, color="#333333", linewidth=0.7)
    panels[-1].set_ylabel("score", fontsize=9)
    if np.isfinite(threshold):
        panels[-1].axhline(threshold, color="#e45756", linewidth=0.8, linestyle="--", label="threshold")
        # A few very high scores would hide all others.
        if np.max(scores, initial=0) > 20 * max(threshold, 1e-9):
            panels[-1].set_yscale("symlog", linthresh=max(float(threshold), 1e-9))
    if len(alarms):
        level = np.asarray(scores)[list(alarms)]
        panels[-1].plot(axis[list(alarms)], level, "v", color="#e45756", markersize=5, label="alarm")
    for number, (start, stop) in enumerate(events):
        for axes in panels:
            label = "anomaly" if number == 0 and axes is panels[-1] else None
            end = axis[min(stop, len(axis) - 1)]
            axes.axvspan(axis[start], end, color="#f58518", alpha=0.25, linewidth=0, label=label)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.margins(x=0.005)
    if panels[-1].get_legend_handles_labels()[0]:
        panels[-1].legend(loc="lower right", bbox_to_anchor=(1, 0.98), fontsize=8, frameon=False, ncols=3)
    panels[0].set_title(shorten_label(title, 60), fontsize=10)
    panels[-1].set_xlabel("" if timed else "step")
    figure.align_ylabels()
    save_figure(figure, path)


def plot_forecasts(
    panels: Sequence[tuple[str, Sequence[Any], np.ndarray, int, np.ndarray]], path: str | os.PathLike | IO[bytes]
) -> None:
    """Plot the fans of forecasts with the true values: median, and the intervals of 50, 80 and 95 %, as PNG.

    Args:
        panels: For each series its name, the times `[T]` of its values, values `[T]`, NaN where one is missing, the
            number of values before the horizon, and sampled paths over the horizon `[S, H]`, H being the rest of T.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    figure = Figure(figsize=(6.5 * columns, 3.2 * -(-len(panels) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, times, values, origin, samples) in zip(grid, panels, strict=False):
        ahead = list(times)[origin:]
        samples = samples[:, : len(ahead)]
        # The last observed value is where the fan begins.
        for interval, alpha in ((95, 0.15), (80, 0.25), (50, 0.35)):
            low, high = np.quantile(samples, [0.5 - interval / 200, 0.5 + interval / 200], axis=0)
            axes.fill_between(ahead, low, high, color="#f58518", alpha=alpha, lw=0, label=f"{interval} %")
        axes.plot(ahead, np.median(samples, axis=0), color="#d95f02", lw=1.5, label="median")
        axes.plot(list(times), values, color="#4c78a8", lw=1.2, label="true values")
        axes.axvline(ahead[0], color=_GREY, lw=0.8, ls=":")
        axes.set_title(shorten_label(name), fontsize=10)
        axes.tick_params(axis="x", labelrotation=20, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(alpha=0.25)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    save_figure(figure, path)
