"""Watching a model in use: has its score dropped, and are the texts that it gets still those that it knows?"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Drop(NamedTuple):
    """How much lower the score of the fresh texts is.

    Attributes:
        metric: Name of the score.
        reference: Score of the reference texts.
        fresh: That of the fresh ones.
        low: Lower end of the interval of their difference, reference minus fresh.
        high: Its upper end.
    """

    metric: str
    reference: float
    fresh: float
    low: float
    high: float

    @property
    def points(self) -> float:
        """Reference minus fresh."""
        return self.reference - self.fresh


class Drift(NamedTuple):
    """A test of whether fresh texts differ from the reference texts in one respect.

    Attributes:
        what: The respect.
        reference: Its mean in the reference texts, or a share for each class.
        fresh: The same in the fresh ones.
        test: Name of the test.
        p_value: Of the test, corrected for the number of tests.
    """

    what: str
    reference: Any
    fresh: Any
    test: str
    p_value: float


def bootstrap_drop(
    metric: str,
    reference: np.ndarray,
    fresh: np.ndarray,
    *,
    count: int = 1000,
    level: float = 0.95,
    seed: int = 42,
) -> Drop:
    """The drop of a score that is a mean over rows, with a percentile interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        metric: Name of the score.
        reference: What each reference row adds to it: 100 or 0 of an accuracy.
        fresh: The same of each fresh row.
        count: Samples; rows of each side are drawn with replacement, as many as there are.
        level: Of the interval.
        seed: Of the drawing.
    """
    rng = np.random.default_rng(seed)
    means = [
        np.array([side[rng.integers(0, len(side), len(side))].mean() for _ in range(count)])
        for side in (reference, fresh)
    ]
    low, high = np.percentile(means[0] - means[1], [50 * (1 - level), 50 * (1 + level)])
    return Drop(metric, float(reference.mean()), float(fresh.mean()), float(low), float(high))


def chrf_of_texts(outputs: Sequence[str], references: Sequence[Any]) -> np.ndarray:
    """The chrF of each text, from 0 to 100 (Popović 2015); a reference may be a list of several."""
    from sacrebleu import sentence_chrf

    return np.array(
        [
            sentence_chrf(output, [right] if isinstance(right, str) else list(right)).score
            for output, right in zip(outputs, references, strict=True)
        ]
    )


def unknown_shares(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The number of tokens of each text, special ones not counted, and the share of them that is unknown."""
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    unknown = np.array([sum(token == tokenizer.unk_token_id for token in row) for row in ids])
    return lengths, unknown / np.maximum(lengths, 1)


def drift_tests(
    lengths: tuple[np.ndarray, np.ndarray],
    unknown: tuple[np.ndarray, np.ndarray],
    outputs: tuple[Sequence[Any], Sequence[Any]],
) -> list[Drift]:
    """Test whether input lengths, shares of unknown tokens and outputs are distributed as they were.

    Lengths by the two-sample test of Kolmogorov and Smirnov, shares of unknown tokens by that of Mann and Whitney,
    classes by Pearson's chi-square statistic of their counts, whose p-value is that of permutations, since many a
    class is rare; outputs that are numbers, such as lengths, as lengths are.
    The p-values are corrected by Holm (1979).

    Args:
        lengths: Tokens of each reference and each fresh text.
        unknown: Their shares of unknown tokens.
        outputs: What the model makes of them: a name of a class, or a number, for each.
    """
    from scipy.stats import ks_2samp, mannwhitneyu

    found = []
    old, new = lengths
    found.append(("input length", old.mean(), new.mean(), "Kolmogorov-Smirnov", ks_2samp(old, new).pvalue))
    old, new = unknown
    # Where no text has an unknown token, there is nothing to rank.
    p_value = mannwhitneyu(old, new).pvalue if old.any() or new.any() else 1.0
    found.append(("share of unknown tokens", old.mean(), new.mean(), "Mann-Whitney", p_value))
    if isinstance(outputs[0][0], str):
        names = sorted({*outputs[0], *outputs[1]})
        counts = np.array([[list(side).count(name) for name in names] for side in outputs])
        p_value = permuted_chi_square(counts)
        shares = [dict(zip(names, (row / row.sum()).tolist(), strict=True)) for row in counts]
        found.append(("output classes", shares[0], shares[1], "chi-square", p_value))
    else:
        old, new = (np.asarray(side) for side in outputs)
        found.append(("output length", old.mean(), new.mean(), "Kolmogorov-Smirnov", ks_2samp(old, new).pvalue))
    corrected = holm([float(test[4]) for test in found])
    return [
        Drift(what, _plain(old), _plain(new), test, p_value)
        for (what, old, new, test, _), p_value in zip(found, corrected, strict=True)
    ]


def permuted_chi_square(counts: np.ndarray, permutations: int = 9999, seed: int = 42) -> float:
    """P-value of Pearson's chi-square statistic of two rows of counts `[2, K]`, by permutations of the texts.

    Of a permutation the first row is drawn from the multivariate hypergeometric distribution.
    """
    total = counts.sum(axis=0)
    share = counts.sum(axis=1, keepdims=True) / counts.sum()
    expected = share * total

    def statistic(first: np.ndarray) -> np.ndarray:
        rows = np.stack([first, total - first], axis=-2)
        return np.divide(
            (rows - expected) ** 2, expected, out=np.zeros_like(rows, dtype=float), where=expected > 0
        ).sum(axis=(-2, -1))

    drawn = np.random.default_rng(seed).multivariate_hypergeometric(total, counts[0].sum(), size=permutations)
    # Equal up to rounding is as extreme.
    extreme = (statistic(drawn) >= statistic(counts[0]) * (1 - 1e-9)).sum()
    return float((1 + extreme) / (1 + permutations))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method (1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected.tolist()


def _plain(value: Any) -> Any:
    return value if isinstance(value, dict) else float(value)


FEW = 30
"""With fewer fresh rows a drop is no alarm: a percentile interval of so few is too narrow."""


def verdict(
    drop: Drop | None, drifts: Sequence[Drift], *, max_drop: float, alpha: float, rows: int = FEW
) -> list[str]:
    """A line for each bound that is passed.

    Args:
        drop: Of the score; None where nobody knows the right answers.
        drifts: The tests.
        max_drop: Points that the score may drop; more is an alarm if the interval is above 0, too.
        alpha: A test whose p-value is smaller is an alarm.
        rows: How many fresh rows were scored; fewer than 30 raise no alarm by their score.
    """
    alarms = []
    if drop is not None and rows >= FEW and drop.points > max_drop and drop.low > 0:
        alarms.append(
            f"{drop.metric} has dropped by {drop.points:.2f} points ({drop.low:.2f} to {drop.high:.2f}), from "
            f"{drop.reference:.2f} to {drop.fresh:.2f}; the bound is {max_drop:g}"
        )
    for drift in drifts:
        if drift.p_value < alpha:
            alarms.append(
                f"{drift.what} has changed: {show(drift.reference)} before, {show(drift.fresh)} now ({drift.test}, "
                f"p = {drift.p_value:.2g}; the bound is {alpha:g})"
            )
    return alarms


def show(value: Any) -> str:
    """A number, or the shares of the most frequent classes."""
    if not isinstance(value, Mapping):
        return f"{value:.4g}"
    most = sorted(value.items(), key=lambda item: -item[1])[:5]
    return ", ".join(f"{name} {share:.1%}" for name, share in most) + (" …" if len(value) > 5 else "")


def report_lines(
    model: PreTrainedModel, counts: tuple[int, int], drop: Drop | None, drifts: Sequence[Drift], alarms: Sequence[str]
) -> list[str]:
    """The report as Markdown."""
    lines = [f"# {type(model).__name__}: {counts[1]:,} fresh texts beside {counts[0]:,} reference texts", ""]
    lines += [f"- **{alarm}**" for alarm in alarms] or ["No bound is passed."]
    lines += ["", "| | reference | fresh | |", "|---|---|---|---|"]
    if drop is not None:
        interval = f"drop {drop.points:.2f}, 95 % interval {drop.low:.2f} to {drop.high:.2f}"
        lines.append(f"| {drop.metric} | {drop.reference:.2f} | {drop.fresh:.2f} | {interval} |")
    for drift in drifts:
        told = f"{drift.test}, p = {drift.p_value:.3g} (Holm)"
        lines.append(f"| {drift.what} | {show(drift.reference)} | {show(drift.fresh)} | {told} |")
    return lines


def plot_monitoring(
    lengths: tuple[np.ndarray, np.ndarray],
    unknown: tuple[np.ndarray, np.ndarray],
    outputs: tuple[Sequence[Any], Sequence[Any]],
    path: str | os.PathLike,
) -> None:
    """Draw lengths, shares of unknown tokens and outputs of reference and fresh texts side by side, as a PNG."""
    from matplotlib.figure import Figure

    from hfseq.plots import save_figure, shorten_label

    figure = Figure(figsize=(10, 3.2))
    panels: Any = figure.subplots(1, 3)
    _histogram(panels[0], lengths, "tokens of a text")
    _histogram(panels[1], (100 * unknown[0], 100 * unknown[1]), "unknown tokens, %")
    if isinstance(outputs[0][0], str):
        names = sorted({*outputs[0], *outputs[1]})
        place = np.arange(len(names))
        for number, (side, name) in enumerate(zip(outputs, ("reference", "fresh"), strict=True)):
            shares = [100 * list(side).count(label) / len(side) for label in names]
            panels[2].bar(place + 0.4 * number - 0.2, shares, 0.4, label=name)
        panels[2].set_xticks(place, [shorten_label(label) for label in names], rotation=30, ha="right")
        panels[2].set_xlabel("classes predicted, %")
    else:
        _histogram(panels[2], (np.asarray(outputs[0]), np.asarray(outputs[1])), "tokens of an output")
    panels[0].legend(frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _histogram(axes: "Axes", sides: tuple[np.ndarray, np.ndarray], title: str) -> None:
    edges = np.histogram_bin_edges(np.concatenate(sides), bins=20)
    for side, name in zip(sides, ("reference", "fresh"), strict=True):
        axes.hist(side, bins=edges.tolist(), weights=np.full(len(side), 100 / len(side)), alpha=0.6, label=name)
    axes.set_xlabel(title)
    axes.set_ylabel("% of the texts")
