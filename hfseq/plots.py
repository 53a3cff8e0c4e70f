"""Plots: learning curves, attention, confusion matrices, quality against latency.

The plots need matplotlib (the `train` extra), which is imported when one is drawn, and no display.
"""

import os
import warnings
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GREY = "#666666"


def save_figure(figure: "Figure", path: str | os.PathLike | IO[bytes]) -> None:
    """Write a figure as a PNG to a path or an open file, without a screen or warnings of letters that no font has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A script that no installed font has is drawn as boxes; one warning a glyph would bury the output of a run.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support .* natively")
        figure.savefig(path, format="png", dpi=150, bbox_inches="tight")


def shorten_label(text: str, longest: int = 20) -> str:
    """A token or name as matplotlib draws it literally: no mathematics, nothing that moves the line."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return (shown if len(shown) <= longest else shown[: longest - 1] + "…").replace("$", r"\$")


def plot_learning_curve(
    log_history: Sequence[dict[str, Any]], path: str | os.PathLike, metric: str | None = None
) -> None:
    """Draw training loss, validation loss, and a validation metric over the steps, as a PNG.

    Args:
        log_history: as `TrainerState.log_history`: entries with `step` and `loss`, or with `eval_…` values.
        path: of the PNG.
        metric: drawn on a second axis, with or without `eval_`; it may be missing from the history.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def series(key: str) -> tuple[list[int], list[float]]:
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        return [step for step, _ in points], [value for _, value in points]

    figure = Figure(figsize=(8, 4.5))
    losses = figure.add_subplot()
    lines = []
    for key, label, colour, marker in (
        ("loss", "training loss", "#4c78a8", None),
        ("eval_loss", "validation loss", "#f58518", "o"),
    ):
        steps, values = series(key)
        if steps:
            # A line needs two points: one alone shows as a dot.
            lines += losses.plot(
                steps, values, color=colour, marker=marker or ("o" if len(steps) == 1 else None), ms=4, label=label
            )
    losses.set_xlabel("optimizer step")
    losses.set_ylabel("loss")
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.grid(color="#e5e5e5", linewidth=0.8)
    losses.set_axisbelow(True)
    losses.spines["top"].set_visible(False)

    if metric is not None:
        name = metric.removeprefix("eval_")
        steps, values = series(f"eval_{name}")
        if steps:
            scores = losses.twinx()
            lines += scores.plot(steps, values, color="#54a24b", marker="s", ms=4, linestyle="--", label=name)
            scores.set_ylabel(shorten_label(name), color="#54a24b")
            scores.tick_params(axis="y", colors="#54a24b")
            scores.spines["top"].set_visible(False)
    if lines:
        losses.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines), frameon=False)
    save_figure(figure, path)


def plot_alignment(
    attention: np.ndarray | Sequence[Sequence[float]],
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    path: str | os.PathLike | IO[bytes],
) -> None:
    """Draw which source tokens each target token attended to, as a heat map PNG.

    Args:
        attention: `[target, source]` weights; a row sums to 1.
        source_tokens: the columns' names, in any script.
        target_tokens: the rows' names.
        path: of the PNG, or an open file.

    Raises:
        ValueError: the weights are not `[len(target_tokens), len(source_tokens)]`.
    """
    from matplotlib.figure import Figure

    weights = np.asarray(attention, dtype=float)
    if weights.shape != (len(target_tokens), len(source_tokens)):
        raise ValueError(
            f"attention is {weights.shape}, not [target, source] = ({len(target_tokens)}, {len(source_tokens)})"
        )
    rows, columns = weights.shape
    # 0.32 inch a cell keeps the names legible; beyond some 60 inches a PNG is too large to open, so cells shrink.
    cell = min(0.32, 60 / max(rows, columns, 1))
    figure = Figure(figsize=(max(columns * cell, 1.5), max(rows * cell, 1.5)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    image = axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")

    size = min(10.0, cell * 72 * 0.6)
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), [shorten_label(token) for token in source_tokens], rotation=90, fontsize=size)
    axes.set_yticks(range(rows), [shorten_label(token) for token in target_tokens], fontsize=size)
    axes.tick_params(length=0)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("source", color=_GREY)
    axes.set_ylabel("target", color=_GREY)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e5e5e5", linewidth=0.6)
    axes.tick_params(which="minor", length=0)

    width, height = figure.get_size_inches()
    bar = figure.add_axes((1.0 + 0.15 / width, 0.0, 0.12 / width, min(1.0, 2.5 / height)))
    figure.colorbar(image, cax=bar, label="attention weight")
    save_figure(figure, path)


def plot_confusion_matrix(
    labels: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draw which classes a classifier takes for which, as a heat map PNG.

    A cell's colour is its share of the rows of that class, so that a rare class is as legible as a frequent one; up to
    15 classes it also has the number of rows in it. Classes stand in the order of their numbers.

    Args:
        labels: `[rows]`, the number of each row's class.
        predictions: `[rows]`, the number of the class that the model gave.
        names: the classes' names.
        path: of the PNG.

    Raises:
        ValueError: the two are not class numbers below `len(names)`, one of each for every row. (Rows of which
            several classes hold have no such matrix.)
    """
    from matplotlib.figure import Figure

    right, given = np.asarray(labels), np.asarray(predictions)
    size = len(names)
    if right.shape != given.shape or right.ndim != 1:
        raise ValueError(f"labels are {right.shape} and predictions {given.shape}, not [rows] and [rows]")
    for name, numbers in (("label", right), ("prediction", given)):
        if len(numbers) and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= size):
            raise ValueError(f"a {name} is not the number of one of {size} classes")
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (right.astype(int), given.astype(int)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    numbered = size <= 15
    widest = len(str(counts.max(initial=0)))
    # The widest number sets the width of a cell; without numbers it is that of a line of names.
    cell = max(0.5, 0.09 * widest + 0.15) if numbered else min(0.24, 20 / size)
    side = max(size * cell, 1.6)
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    if numbered:
        for row, column in np.ndindex(size, size):
            colour = "white" if shares[row, column] > 0.5 else "#222222"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)

    ticks = [shorten_label(name, 32) for name in names]
    fontsize = min(10.0, cell * 72 * 0.6)
    axes.xaxis.tick_top()
    axes.set_xticks(range(size), ticks, rotation=90, fontsize=fontsize)
    axes.set_yticks(range(size), ticks, fontsize=fontsize)
    axes.tick_params(length=0)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted", color=_GREY)
    axes.set_ylabel("true", color=_GREY)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e5e5e5", linewidth=0.6)
    axes.tick_params(which="minor", length=0)

    bar = figure.add_axes((1.0 + 0.15 / side, 0.0, 0.12 / side, min(1.0, 2.5 / side)))
    figure.colorbar(image, cax=bar, label="share of the true class")
    save_figure(figure, path)


def plot_scatter(references: Sequence[float] | np.ndarray, predictions: Any, path: str | os.PathLike) -> None:
    """Draw predicted against true numbers as a scatter plot PNG, with the diagonal of equal ones.

    Args:
        references: True numbers, one for each row.
        predictions: Predicted numbers.
        path: Path of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.add_subplot()
    axes.scatter(references, predictions, s=12, alpha=0.5, color="#4c78a8", linewidths=0)
    ends = [min(np.min(references), np.min(predictions)), max(np.max(references), np.max(predictions))]
    axes.plot(ends, ends, color=_GREY, linewidth=0.8, linestyle="--")
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    axes.set_axisbelow(True)
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_trade_off(
    names: Sequence[str],
    scores: Sequence[float],
    latencies: Sequence[float],
    sizes: Sequence[float],
    path: str | os.PathLike,
    metric: str = "accuracy",
    spreads: Sequence[float] | None = None,
) -> None:
    """Draw what several models score against the time that they take for a text, as a PNG.

    Args:
        names: of the models.
        scores: theirs.
        latencies: milliseconds for one text, on a logarithmic axis.
        sizes: of the models, such as their parameters; the areas of the circles are in proportion.
        path: of the PNG.
        metric: name of the score.
        spreads: standard deviations of the scores, drawn as bars; None for no bars.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    if spreads is not None:
        axes.errorbar(latencies, scores, yerr=spreads, fmt="none", ecolor="#555555", elinewidth=1, capsize=3)
    largest = max(sizes)
    for number, (name, score, latency, size) in enumerate(zip(names, scores, latencies, sizes, strict=True)):
        # The smallest circle can be seen, and the largest one leaves room for names.
        axes.scatter(latency, score, s=max(12.0, 1500 * size / largest), color=f"C{number % 10}", alpha=0.6)
        axes.annotate(
            shorten_label(name), (latency, score), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_xscale("log")
    for side in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        side(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("milliseconds for one text (area: parameters)")
    axes.set_ylabel(shorten_label(metric))
    axes.margins(0.15)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
