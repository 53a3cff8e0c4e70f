"""Monitoring of a deployed model: drop of its score, and drift of its inputs and outputs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pair = tuple[np.ndarray, np.ndarray]
"""Values of the reference texts and of the fresh texts."""
Outputs = tuple[Sequence[Any], Sequence[Any]]
"""Outputs of the model for reference and fresh texts: a class name or a number for each text."""


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
    metric: str, reference: np.ndarray, fresh: np.ndarray, *, count: int = 1000, level: float = 0.95, seed: int = 42
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

    lists = [[right] if isinstance(right, str) else list(right) for right in references]
    return np.array([sentence_chrf(output, own).score for output, own in zip(outputs, lists, strict=True)])


def unknown_shares(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of tokens of each text, without special tokens, and the share that is out-of-vocabulary."""
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    unknown = np.array([sum(token == tokenizer.unk_token_id for token in row) for row in ids])
    return lengths, unknown / np.maximum(lengths, 1)


def drift_tests(lengths: Pair, unknown: Pair, outputs: Outputs) -> list[Drift]:
    """Test input lengths, shares of unknown tokens and outputs for drift.

    Lengths (and other numbers) are compared by the two-sample Kolmogorov-Smirnov test, shares of unknown tokens by
    the Mann-Whitney test, class counts by Pearson's chi-square statistic with a permutation p-value, as some classes
    may be rare. The p-values are corrected for multiple testing (Holm 1979).

    Args:
        lengths: Number of tokens of each text.
        unknown: Share of unknown tokens in each text.
        outputs: Output of the model for each text.
    """
    from scipy.stats import ks_2samp, mannwhitneyu

    found = [
        ("input length", _means(lengths), "Kolmogorov-Smirnov", ks_2samp(*lengths).pvalue),
        ("share of unknown tokens", _means(unknown), "Mann-Whitney", mannwhitneyu(*unknown).pvalue),
    ]
    if isinstance(outputs[0][0], str):
        names, counts = class_counts(outputs)
        shares = [dict(zip(names, (row / row.sum()).tolist(), strict=True)) for row in counts]
        found.append(("output classes", shares, "chi-square", permuted_chi_square(counts)))
    else:
        found.append(("output length", _means(outputs), "Kolmogorov-Smirnov", ks_2samp(*outputs).pvalue))
    corrected = holm([p_value for *_, p_value in found])
    return [
        Drift(what, old, new, test, p_value)
        for (what, (old, new), test, _), p_value in zip(found, corrected, strict=True)
    ]


def _means(sides: Pair | Outputs) -> list[Any]:
    return [float(np.mean(side)) for side in sides]


def class_counts(outputs: Outputs) -> tuple[list[str], np.ndarray]:
    """Return the predicted classes in alphabetical order, and their counts `[2, K]` among both sides' outputs."""
    names = sorted({*outputs[0], *outputs[1]})
    return names, np.array([[list(side).count(name) for name in names] for side in outputs])


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
    steps = np.arange(len(p_values), 0, -1) * np.asarray(p_values)[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


_SIDES = ("reference", "fresh")
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
    return alarms + [
        f"{drift.what} has changed: {show(drift.reference)} before, {show(drift.fresh)} now ({drift.test}, "
        f"p = {drift.p_value:.2g}; the threshold is {alpha:g})"
        for drift in drifts
        if drift.p_value < alpha
    ]


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


def plot_monitoring(lengths: Pair, unknown: Pair, outputs: Outputs, path: str | os.PathLike) -> None:
    """Plot lengths, shares of unknown tokens and outputs of reference and fresh texts, as a PNG."""
    from matplotlib.figure import Figure

    from hfseq.plots import save_figure, shorten_label

    figure = Figure(figsize=(10, 3.2))
    panels: Any = figure.subplots(1, 3)
    _histogram(panels[0], lengths, "tokens of a text")
    _histogram(panels[1], (100 * unknown[0], 100 * unknown[1]), "unknown tokens, %")
    if isinstance(outputs[0][0], str):
        names, counts = class_counts(outputs)
        places = np.arange(len(names))
        for side, row, shift in zip(_SIDES, counts, (-0.2, 0.2), strict=True):
            panels[2].bar(places + shift, 100 * row / row.sum(), 0.4, label=side)
        panels[2].set_xticks(places, [shorten_label(name) for name in names], rotation=30, ha="right")
        panels[2].set_xlabel("classes predicted, %")
    else:
        _histogram(panels[2], outputs, "tokens of an output")
    panels[0].legend(frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _histogram(axes: Any, sides: Any, title: str) -> None:
    edges = np.histogram_bin_edges(np.concatenate(sides), bins=20)
    for name, side in zip(_SIDES, sides, strict=True):
        axes.hist(side, bins=edges.tolist(), weights=np.full(len(side), 100 / len(side)), alpha=0.6, label=name)
    axes.set_xlabel(title)
    axes.set_ylabel("% of the texts")
