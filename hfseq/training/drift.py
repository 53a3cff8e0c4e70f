"""Monitoring of a deployed model: drop of its score, and drift of its inputs and outputs."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

KS, MANN_WHITNEY, CHI_SQUARE = "Kolmogorov-Smirnov", "Mann-Whitney", "chi-square"
"""Names of the tests: of numbers, of shares, many of which are 0, and of classes."""
FEW = 30
"""Minimum number of fresh rows for an alarm by score: percentile intervals of smaller samples are too narrow."""
MOST_BINS = 20
"""Number of bins of classes that are items, of which most are rare."""
OTHER = "(other)"
"""Bin of all classes but the most frequent ones."""


class Sample(NamedTuple):
    """Values of a quantity, one for each row of a side.

    Attributes:
        values: Numbers, or names of classes; NaN for rows without a value.
        test: Name of the test by which two samples are compared.
        binned: Whether only the most frequent classes have bins of their own.
    """

    values: Sequence[Any] | np.ndarray
    test: str = KS
    binned: bool = False


Samples = Mapping[str, Sample]
"""Quantity to its sample."""
Pair = tuple[Sample, Sample]
"""Samples of the reference rows and of the fresh rows."""


class Drop(NamedTuple):
    """Worsening of a score from reference to fresh rows.

    Attributes:
        metric: Name of the score.
        reference: Score on the reference rows.
        fresh: Score on the fresh rows.
        low: Lower bound of the confidence interval of the worsening.
        high: Upper bound.
        lower_is_better: Whether the score is an error.
    """

    metric: str
    reference: float
    fresh: float
    low: float
    high: float
    lower_is_better: bool = False

    @property
    def points(self) -> float:
        """Reference minus fresh, or fresh minus reference if lower is better."""
        return (self.reference - self.fresh) * (-1 if self.lower_is_better else 1)


class Drift(NamedTuple):
    """Test for a difference in distribution between reference and fresh rows.

    Attributes:
        what: The quantity tested.
        reference: Its mean over the reference rows, or the share of each class.
        fresh: The same over the fresh rows.
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
    lower_is_better: bool = False,
    count: int = 1000,
    level: float = 0.95,
    seed: int = 42,
) -> Drop:
    """Worsening of a mean score, with a percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        metric: Name of the score.
        reference: Score of each reference row, for accuracy 100 or 0.
        fresh: Score of each fresh row.
        lower_is_better: Whether the score is an error.
        count: Number of bootstrap samples.
        level: Confidence level.
        seed: Random seed.
    """
    from scipy.stats import bootstrap

    sign = -1 if lower_is_better else 1
    interval = bootstrap(
        # SciPy refuses a sample of one; a second copy of the same row leaves the distribution of the mean as it is.
        [np.repeat(side, 2) if len(side) == 1 else side for side in (reference, fresh)],
        lambda old, new, axis: sign * (old.mean(axis) - new.mean(axis)),
        n_resamples=count,
        batch=100,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    means = float(reference.mean()), float(fresh.mean())
    return Drop(metric, *means, float(interval.low), float(interval.high), lower_is_better)


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


def pairs_of(reference: Samples, fresh: Samples) -> dict[str, Pair]:
    """Samples of each quantity that has values on both sides, classes in bins where wanted."""
    found = {}
    for what, old in reference.items():
        if what in fresh:
            pair = _valued(old), _valued(fresh[what])
            if all(len(side.values) for side in pair):
                found[what] = _binned(pair) if old.binned else pair
    return found


def _valued(sample: Sample) -> Sample:
    """Sample without missing values."""
    if sample.test == CHI_SQUARE:
        return sample
    values = np.asarray(sample.values, dtype=float)
    return sample._replace(values=values[~np.isnan(values)])


def _binned(pair: Pair) -> Pair:
    """Samples in which the classes that are rare in both together are one bin.

    Bins by the counts of both sides are the same however the rows are permuted, which the permutation test supposes;
    those by the counts of one side would not be.
    """
    counts = Counter(name for side in pair for name in side.values)
    # In alphabetical order where frequencies are equal.
    kept = {name for name, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[: MOST_BINS - 1]}
    old, new = (side._replace(values=[name if name in kept else OTHER for name in side.values]) for side in pair)
    return old, new


def drift_tests(pairs: Mapping[str, Pair]) -> list[Drift]:
    """Test quantities for drift.

    Numbers are compared by the two-sample Kolmogorov-Smirnov test, shares by the Mann-Whitney test, class counts by
    Pearson's chi-square statistic with a permutation p-value, as some classes may be rare. The p-values are corrected
    for multiple testing (Holm 1979).

    Args:
        pairs: Quantity to its samples, as `pairs_of` returns them.
    """
    from scipy.stats import ks_2samp, mannwhitneyu

    raw: list[float] = []
    means: list[list[Any]] = []
    for pair in pairs.values():
        test, sides = pair[0].test, [side.values for side in pair]
        if test == CHI_SQUARE:
            names, counts = class_counts(pair)
            means.append([dict(zip(names, (row / row.sum()).tolist(), strict=True)) for row in counts])
            raw.append(permuted_chi_square(counts))
        else:
            means.append([float(np.mean(side)) for side in sides])
            raw.append(float((ks_2samp if test == KS else mannwhitneyu)(*sides).pvalue))
    corrected = holm(raw)
    return [
        Drift(what, old, new, pair[0].test, p_value)
        for (what, pair), (old, new), p_value in zip(pairs.items(), means, corrected, strict=True)
    ]


def class_counts(pair: Pair) -> tuple[list[str], np.ndarray]:
    """Return the classes in alphabetical order, and their counts `[2, K]` on both sides."""
    counts = [Counter(side.values) for side in pair]
    names = sorted(counts[0].keys() | counts[1].keys())
    return names, np.array([[side[name] for name in names] for side in counts])


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


def verdict(
    drop: Drop | None, drifts: Sequence[Drift], *, max_drop: float, alpha: float, rows: int = FEW
) -> list[str]:
    """Return a line for each threshold that is exceeded.

    Args:
        drop: Drop of the score; None for rows without labels.
        drifts: Drift tests.
        max_drop: Largest acceptable drop in points; a larger one is an alarm if its interval excludes 0.
        alpha: Significance level; a test with a smaller p-value is an alarm.
        rows: Number of fresh rows that were scored; fewer than `FEW` raise no alarm by their score.
    """
    alarms = []
    if drop is not None and rows >= FEW and drop.points > max_drop and drop.low > 0:
        verb = "risen" if drop.lower_is_better else "dropped"
        alarms.append(
            f"{drop.metric} has {verb} by {drop.points:.2f} points ({drop.low:.2f} to {drop.high:.2f}), from "
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
    title: str, drop: Drop | None, drifts: Sequence[Drift], alarms: Sequence[str], notes: Sequence[str]
) -> list[str]:
    """Return the report as lines of Markdown."""
    lines = [f"# {title}", ""]
    lines += [f"- **{alarm}**" for alarm in alarms] or ["No threshold is exceeded."]
    lines += ["", "| | reference | fresh | |", "|---|---|---|---|"]
    if drop is not None:
        verb = "rise" if drop.lower_is_better else "drop"
        interval = f"{verb} {drop.points:.2f}, 95 % interval {drop.low:.2f} to {drop.high:.2f}"
        lines.append(f"| {drop.metric} | {drop.reference:.2f} | {drop.fresh:.2f} | {interval} |")
    for drift in drifts:
        told = f"{drift.test}, p = {drift.p_value:.3g} (Holm)"
        lines.append(f"| {drift.what} | {show(drift.reference)} | {show(drift.fresh)} | {told} |")
    return [*lines, "", *(f"- {note}" for note in notes)] if notes else lines


def write_report(
    root: Path,
    lines: Sequence[str],
    drop: Drop | None,
    drifts: Sequence[Drift],
    alarms: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Write `report.md`, of the given lines, and `report.json`."""
    points = None if drop is None else drop._asdict() | {"points": drop.points}
    found = {"alarms": alarms, "drop": points, "drift": [one._asdict() for one in drifts], "notes": notes}
    (root / "report.json").write_text(json.dumps(found, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    (root / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def plot_drift(pairs: Mapping[str, Pair], path: str | os.PathLike) -> None:
    """Plot the distribution of each quantity on both sides, as a PNG."""
    from matplotlib.figure import Figure

    from hfseq.plots import save_figure, shorten_label

    columns, rows = 3, -(-len(pairs) // 3)
    figure = Figure(figsize=(10, 3.2 * rows), layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(pairs) :]:
        axes.set_visible(False)
    for axes, (what, pair) in zip(panels, pairs.items(), strict=False):
        if pair[0].test == CHI_SQUARE:
            names, counts = class_counts(pair)
            places = np.arange(len(names))
            for name, row, shift in zip(_SIDES, counts, (-0.2, 0.2), strict=True):
                axes.bar(places + shift, 100 * row / row.sum(), 0.4, label=name)
            axes.set_xticks(places, [shorten_label(name) for name in names], rotation=30, ha="right")
        else:
            sides = [np.asarray(side.values, dtype=float) for side in pair]
            edges = np.histogram_bin_edges(np.concatenate(sides), bins=20).tolist()
            for name, side in zip(_SIDES, sides, strict=True):
                axes.hist(side, bins=edges, weights=np.full(len(side), 100 / len(side)), alpha=0.6, label=name)
        axes.set_xlabel(shorten_label(what, 60))
        axes.set_ylabel("% of the rows")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    save_figure(figure, path)
