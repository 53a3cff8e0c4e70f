"""Monitoring of a deployed model: drop of its score, and drift of its inputs and outputs."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Drop(NamedTuple):
    """Drop of a score from reference to fresh texts.

    Attributes:
        metric: Name of the score.
        reference: Score on the reference texts.
        fresh: Score on the fresh texts.
        low: Lower bound of the confidence interval of the difference, reference minus fresh.
        high: Upper bound.
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
    """Test for a difference in distribution between reference and fresh texts.

    Attributes:
        what: The quantity tested.
        reference: Its mean over the reference texts, or the share of each class.
        fresh: The same over the fresh texts.
        test: Name of the test.
        p_value: P-value, corrected for multiple testing.
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
    """Drop of a mean score, with a percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        metric: Name of the score.
        reference: Score of each reference row, for accuracy 100 or 0.
        fresh: Score of each fresh row.
        count: Number of bootstrap samples.
        level: Confidence level.
        seed: Random seed.
    """
    from scipy.stats import bootstrap

    interval = bootstrap(
        # SciPy refuses a sample of one; a second copy of the same row leaves the distribution of the mean as it is.
        [np.repeat(side, 2) if len(side) == 1 else side for side in (reference, fresh)],
        lambda old, new, axis: old.mean(axis) - new.mean(axis),
        n_resamples=count,
        batch=100,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Drop(metric, float(reference.mean()), float(fresh.mean()), float(interval.low), float(interval.high))


def chrf_of_texts(outputs: Sequence[str], references: Sequence[Any]) -> np.ndarray:
    """Sentence-level chrF (Popović 2015), 0 to 100, of each text; a reference may be a list of several."""
    from sacrebleu import sentence_chrf

    return np.array(
        [
            sentence_chrf(output, [right] if isinstance(right, str) else list(right)).score
            for output, right in zip(outputs, references, strict=True)
        ]
    )


def unknown_shares(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of tokens of each text, without special tokens, and the share that is out-of-vocabulary."""
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    unknown = np.array([sum(token == tokenizer.unk_token_id for token in row) for row in ids])
    return lengths, unknown / np.maximum(lengths, 1)


def drift_tests(
    lengths: tuple[np.ndarray, np.ndarray],
    unknown: tuple[np.ndarray, np.ndarray],
    outputs: tuple[Sequence[Any], Sequence[Any]],
) -> list[Drift]:
    """Test input lengths, shares of unknown tokens and outputs for drift.

    Lengths (and other numbers) are compared by the two-sample Kolmogorov-Smirnov test, shares of unknown tokens by
    the Mann-Whitney test, class counts by Pearson's chi-square statistic with a permutation p-value, as some classes
    may be rare. The p-values are corrected for multiple testing (Holm 1979).

    Args:
        lengths: Number of tokens of each reference text and of each fresh text.
        unknown: Shares of unknown tokens, for both sides.
        outputs: Outputs of the model for both sides: a class name or a number for each text.
    """
    from scipy.stats import ks_2samp, mannwhitneyu

    found = []
    old, new = lengths
    found.append(("input length", old.mean(), new.mean(), "Kolmogorov-Smirnov", ks_2samp(old, new).pvalue))
    old, new = unknown
    # Without any unknown token there is nothing to rank.
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
    """Permutation p-value of Pearson's chi-square test of two rows of class counts `[2, K]`.

    The tables of permuted texts are drawn directly, from the distribution of tables with the same margins.
    """
    from scipy.stats import MonteCarloMethod, chi2_contingency

    method = MonteCarloMethod(n_resamples=permutations, rng=np.random.default_rng(seed))
    return float(chi2_contingency(counts[:, counts.any(axis=0)], correction=False, method=method).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple testing by Holm's step-down method (1979)."""
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
"""Minimum number of fresh rows for an alarm by score: percentile intervals of smaller samples are too narrow."""


def verdict(
    drop: Drop | None, drifts: Sequence[Drift], *, max_drop: float, alpha: float, rows: int = FEW
) -> list[str]:
    """Return a line for each threshold that is exceeded.

    Args:
        drop: Drop of the score; None for unlabeled texts.
        drifts: Drift tests.
        max_drop: Largest acceptable drop in points; a larger one is an alarm if its interval excludes 0.
        alpha: Significance level; a test with a smaller p-value is an alarm.
        rows: Number of fresh rows that were scored; fewer than `FEW` raise no alarm by their score.
    """
    alarms = []
    if drop is not None and rows >= FEW and drop.points > max_drop and drop.low > 0:
        alarms.append(
            f"{drop.metric} has dropped by {drop.points:.2f} points ({drop.low:.2f} to {drop.high:.2f}), from "
            f"{drop.reference:.2f} to {drop.fresh:.2f}; the threshold is {max_drop:g}"
        )
    for drift in drifts:
        if drift.p_value < alpha:
            alarms.append(
                f"{drift.what} has changed: {show(drift.reference)} before, {show(drift.fresh)} now ({drift.test}, "
                f"p = {drift.p_value:.2g}; the threshold is {alpha:g})"
            )
    return alarms


def show(value: Any) -> str:
    """Format a number, or the shares of the most frequent classes."""
    if not isinstance(value, Mapping):
        return f"{value:.4g}"
    most = sorted(value.items(), key=lambda item: -item[1])[:5]
    return ", ".join(f"{name} {share:.1%}" for name, share in most) + (" …" if len(value) > 5 else "")


def report_lines(
    model: PreTrainedModel, counts: tuple[int, int], drop: Drop | None, drifts: Sequence[Drift], alarms: Sequence[str]
) -> list[str]:
    """Return the report as lines of Markdown."""
    lines = [f"# {type(model).__name__}: {counts[1]:,} fresh texts beside {counts[0]:,} reference texts", ""]
    lines += [f"- **{alarm}**" for alarm in alarms] or ["No threshold is exceeded."]
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
    """Plot lengths, shares of unknown tokens and outputs of reference and fresh texts, as a PNG."""
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
