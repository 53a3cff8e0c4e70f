"""Metrics of anomaly detection: by event, by step, over ranges (VUS-PR), and NAB's score.

None of them adjusts points: a detector gets no credit for steps of an event that it did not flag itself.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hfseq.data.spans import Span, event_spans, probationary_length, step_labels

NAB_PROFILES = {
    "standard": (0.11, 1.0),
    "reward_low_FP_rate": (0.22, 1.0),
    "reward_low_FN_rate": (0.11, 2.0),
}
"""NAB's profile to the weights of a false positive and of a missed window; a detected window has weight 1."""


class Scored(NamedTuple):
    """Scores of a series beside its events.

    Attributes:
        scores: Anomaly score of each step, `[T]`, higher where the step is less normal.
        events: Anomalies, in order and apart from each other.
        times: Time of each step in seconds, `[T]`, increasing.
    """

    scores: NDArray[np.floating]
    events: Sequence[Span]
    times: NDArray[np.floating]


def _check(metric: str, scores: ArrayLike, length: int | None = None) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or (length is not None and len(values) != length):
        shape = "[T]" if length is None else f"[{length}]"
        raise ValueError(f"{metric}: the scores are {list(values.shape)}, not {shape}")
    if len(bad := np.flatnonzero(np.isnan(values))):
        raise ValueError(f"{metric}: score {bad[0]} is NaN")
    return values


# By event


def find_alarms(times: ArrayLike, flagged: ArrayLike, hold: float) -> list[Span]:
    """Merge flagged steps into alarms, as a stream of them would be.

    A flagged step raises an alarm, to which the flagged steps of the next `hold` seconds belong; the first one after
    that raises another, so that no alarm hides what comes long after it.

    Args:
        times: Time of each step in seconds, `[T]`, increasing.
        flagged: True at the steps above the threshold, `[T]`.
        hold: Longest time in seconds from the first step of an alarm to its last one.

    Returns:
        From the first to the last flagged step of each alarm.
    """
    steps = np.flatnonzero(np.asarray(flagged))
    return [(int(first), int(last) + 1) for first, last in _greedy(steps, np.asarray(times, dtype=np.float64), hold)]


def _greedy(steps: NDArray[np.intp], times: NDArray[np.float64], hold: float) -> list[tuple[int, int]]:
    """First and last step of each alarm."""
    found, when = [], times[steps]
    position = 0
    while position < len(steps):
        after = int(np.searchsorted(when, when[position] + hold, side="right"))
        found.append((int(steps[position]), int(steps[after - 1])))
        position = after
    return found


def _hits(alarm: Span, flagged: NDArray[np.bool_], labels: NDArray[np.bool_]) -> bool:
    start, stop = alarm
    return bool((flagged[start:stop] & labels[start:stop]).any())


def peak_scores(scores: ArrayLike, times: ArrayLike, hold: float) -> NDArray[np.float64]:
    """Keep one score for each rise to a score above all others of the last `hold` seconds: that of its peak.

    NAB counts each flagged row, so a detector that should raise one alarm and not a hundred has to say so in its
    scores, whatever the threshold will be. As a stream knows a peak only when it is over, the score stands at the step
    after it.

    Args:
        scores: `[T]`, at least 0.
        times: Time of each step in seconds, `[T]`, not decreasing.
        hold: Seconds that an alarm lasts.

    Returns:
        `[T]`, 0 at all other steps.
    """
    values, when = _check("peak_scores", scores), np.asarray(times, dtype=np.float64)
    kept = np.zeros_like(values)
    # Scores within reach that none after them exceeds, falling.
    best: deque[int] = deque()
    rising = False
    for step, value in enumerate(values):
        if rising and value < values[step - 1]:
            kept[step], rising = values[step - 1], False
        while best and when[step] - when[best[0]] > hold:
            best.popleft()
        if not best or value > values[best[0]]:
            rising = True
        while best and values[best[-1]] <= value:
            best.pop()
        best.append(step)
    return kept


def event_scores(rows: Sequence[Scored], threshold: float | Sequence[float], hold: float) -> dict[str, Any]:
    """Precision of the alarms and recall of the events, times 100, and false alarms a day.

    An alarm is true if one of its flagged steps lies in an event; an event is found if one of its steps is flagged.

    Args:
        rows: The series.
        threshold: Steps with at least this score are flagged; one for all series or one for each.
        hold: As for `find_alarms`.

    Returns:
        `precision` (100 without alarms), `recall` (100 without events), `f1`, `alarms`, `false_alarms`, `events`,
        `found`, and `false_alarms_per_day`. Steps within events do not count as time.

    Raises:
        ValueError: The scores of a series are not `[T]` numbers.
    """
    alarms = true = events = found = 0
    days = 0.0
    limits = [threshold] * len(rows) if isinstance(threshold, int | float) else list(threshold)
    for row, limit in zip(rows, limits, strict=True):
        scores = _check("event_scores", row.scores, len(row.times))
        flagged, labels = scores >= limit, step_labels(row.events, len(scores))
        raised = find_alarms(row.times, flagged, hold)
        alarms += len(raised)
        true += sum(_hits(alarm, flagged, labels) for alarm in raised)
        events += len(row.events)
        found += sum(bool(flagged[start:stop].any()) for start, stop in row.events)
        days += normal_days(row)
    precision, recall = (100 * part / whole if whole else 100.0 for part, whole in ((true, alarms), (found, events)))
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "alarms": alarms,
        "false_alarms": alarms - true,
        "events": events,
        "found": found,
        "false_alarms_per_day": (alarms - true) / days if days else 0.0,
    }


def normal_days(row: Scored) -> float:
    """Days that the steps outside the events last, each until the next one."""
    if len(row.times) < 2:
        return 0.0
    lasts = np.diff(row.times, append=2 * row.times[-1] - row.times[-2])
    return float(lasts[~step_labels(row.events, len(row.times))].sum() / 86_400)


def threshold_at_false_alarms(rows: Sequence[Scored], per_day: float, hold: float) -> float:
    """Return the threshold below which there would be more than so many false alarms a day.

    It is found by bisection: at the threshold there are at most so many, and at the next lower score more. (Their
    number is not quite monotone in the threshold, since alarms merge.)

    Args:
        rows: The series.
        per_day: False alarms allowed a day, over all series together and the time outside their events.
        hold: As for `find_alarms`.

    Returns:
        A score that occurs, or infinity if the highest one is too low.

    Raises:
        ValueError: There are no scores, or they are not `[T]` numbers.
    """
    allowed = per_day * sum(normal_days(row) for row in rows) + 1e-9
    values = [_check("threshold_at_false_alarms", row.scores, len(row.times)) for row in rows]
    if not any(map(len, values)):
        raise ValueError("threshold_at_false_alarms: there are no scores")
    falling = np.unique(np.concatenate(values))[::-1]
    # The first `good` thresholds pass, as does infinity, and the one at `bad` does not.
    good, bad = 0, len(falling) + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if event_scores(rows, float(falling[middle - 1]), hold)["false_alarms"] <= allowed:
            good = middle
        else:
            bad = middle
    return float(falling[good - 1]) if good else math.inf


def recall_at_false_alarms(rows: Sequence[Scored], per_day: float, hold: float) -> float:
    """Recall of events, times 100, at the threshold of `threshold_at_false_alarms` on the same series."""
    return float(event_scores(rows, threshold_at_false_alarms(rows, per_day, hold), hold)["recall"])


# By step


def auc_pr(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall curve of the steps, times 100, as average precision.

    Args:
        scores: `[T]`.
        labels: `[T]`, not 0 at anomalous steps.

    Raises:
        ValueError: The scores are not `[T]` numbers, or no step is anomalous.
    """
    positive = np.asarray(labels) != 0
    values = _check("auc_pr", scores, len(positive))
    if not positive.any():
        raise ValueError("auc_pr: no step is anomalous")
    order, last = _ranks(values)
    true = np.cumsum(positive[order])[last]
    recall = true / true[-1]
    return float(100 * np.sum(np.diff(recall, prepend=0) * true / (last + 1)))


def _ranks(scores: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Steps by falling score, and the last rank of each distinct score."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    return order, np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(scores) - 1)


def vus_pr(scores: ArrayLike, events: Sequence[Span], *, longest: int = 100) -> float:
    r"""Volume under the surface of range-based precision and recall (VUS-PR, Paparrizos et al. 2022), times 100.

    For a buffer of $\ell$ steps each event has edges: a label $\sqrt{1 - d / \ell}$ at a distance d of at most
    $\ell / 2$ before its first or after its last step. With these labels, precision is TP over the flagged steps, and
    recall is $\min(1, TP / P)$, P being the mean of the sums of old and new labels, times the share of events with a
    flagged step (events whose edges touch count as one). The area under that curve is taken at every distinct score,
    where the published code has 250 thresholds, and averaged over all buffers.

    Args:
        scores: `[T]`.
        events: Anomalies.
        longest: Longest buffer, in steps; all from 0 on are averaged.

    Raises:
        ValueError: The scores are not `[T]` numbers, or there are no events.
    """
    values = _check("vus_pr", scores)
    labels = step_labels(events, len(values))
    if not labels.any():
        raise ValueError("vus_pr: there are no events")
    spans = event_spans(labels)
    order, last = _ranks(values)
    rank = np.empty(len(values), dtype=np.intp)
    rank[order] = np.arange(len(values))
    total = 0.0
    for buffer in range(longest + 1):
        soft = _with_edges(spans, len(values), buffer)
        true = np.cumsum(soft[order])[last]
        recall = np.minimum(1.0, true / ((labels.sum() + soft.sum()) / 2))
        ranges = event_spans(soft)
        first = np.sort([rank[start:stop].min() for start, stop in ranges])
        recall *= np.searchsorted(first, last, side="right") / len(ranges)
        total += np.sum(np.diff(recall, prepend=0) * true / (last + 1))
    return float(100 * total / (longest + 1))


def _with_edges(spans: Sequence[Span], length: int, buffer: int) -> NDArray[np.float64]:
    """Labels `[length]` of events with soft edges, each half of `buffer` long."""
    labels = step_labels(spans, length).astype(np.float64)
    half = buffer // 2
    edge = np.sqrt(1 - np.arange(1, half + 1) / max(1, buffer))
    for start, stop in spans:
        before, after = min(half, start), min(half, length - stop)
        labels[start - before : start] += edge[:before][::-1]
        labels[stop : stop + after] += edge[:after]
    return np.minimum(labels, 1.0)


# NAB


class NabScore(NamedTuple):
    """A score of NAB.

    Attributes:
        score: 0 for a detector that flags nothing, 100 for one that flags the first step of each window only; it may
            be negative.
        threshold: The threshold, of all series.
        found: Windows with a flagged step.
        windows: Number of windows.
        false_positives: Flagged steps outside windows.
    """

    score: float
    threshold: float
    found: int
    windows: int
    false_positives: int


def nab_score(
    rows: Sequence[tuple[ArrayLike, Sequence[Span]]], profile: str = "standard", threshold: float | None = None
) -> NabScore:
    r"""Score of the Numenta Anomaly Benchmark (Lavin and Ahmad 2015, section 2).

    Each window counts its earliest flagged step, by the sigmoid $2 / (1 + e^{5 y}) - 1$ of its position y, from -1 at
    the first step to nearly 0 at the last one, relative to the first step's; a window without one costs the weight of
    a false negative. A flagged step outside windows costs the weight of a false positive times the same sigmoid of its
    distance from the end of the window before it, in widths of that window.

    Args:
        rows: Scores `[T]` and windows of each series. The first rows are left out; see `probationary_length`.
        profile: A name in `NAB_PROFILES`.
        threshold: Steps with at least this score are flagged. None takes the one with the highest score on these very
            labels, as NAB's scoreboard does: the result is label-optimised.

    Raises:
        ValueError: Scores are not `[T]` numbers, or there are no windows.
    """
    false_weight, missed_weight = NAB_PROFILES[profile]
    scores, gains, owners = [], [], []
    windows = 0
    for given, spans in rows:
        values = _check("nab_score", given)
        gain, owner = _nab_gains(len(values), spans, false_weight)
        kept = slice(probationary_length(len(values)), None)
        owner[owner >= 0] += windows
        windows += len(spans)
        scores.append(values[kept])
        gains.append(gain[kept])
        owners.append(owner[kept])
    if not windows:
        raise ValueError("nab_score: there are no windows")
    values, gain, owner = np.concatenate(scores), np.concatenate(gains), np.concatenate(owners)
    order, last = _ranks(values)
    thresholds = values[order][last]
    # The part of a window rises whenever a step is flagged that is earlier than those before it.
    best = np.full(windows, -missed_weight)
    steps = np.zeros(len(values))
    for rank, step in enumerate(order):
        window = owner[step]
        if window < 0:
            steps[rank] = gain[step]
        elif gain[step] > best[window]:
            steps[rank] = gain[step] - best[window]
            best[window] = gain[step]
    empty = -missed_weight * windows
    totals = np.concatenate([[0.0], np.cumsum(steps)[last]]) + empty
    limits = np.concatenate([[math.inf], thresholds])
    # The thresholds fall: the last one that flags no more than is asked for.
    at = int(np.argmax(totals)) if threshold is None else int((limits >= threshold).sum()) - 1
    flagged = values >= limits[at]
    return NabScore(
        float(100 * (totals[at] - empty) / (windows - empty)),
        float(limits[at] if threshold is None else threshold),
        len(np.unique(owner[flagged & (owner >= 0)])),
        windows,
        int((flagged & (owner < 0)).sum()),
    )


def _nab_gains(length: int, spans: Sequence[Span], weight: float) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Gain of flagging each step, and the number of its window, -1 outside."""
    gain, owner = np.full(length, -weight), np.full(length, -1, dtype=np.intp)
    for number, (start, stop) in enumerate(spans):
        width = stop - start
        position = np.arange(start - stop, 0) / width
        gain[start:stop] = _sigmoid(position) / _sigmoid(np.float64(-1.0))
        owner[start:stop] = number
        end = spans[number + 1][0] if number + 1 < len(spans) else length
        distance = np.arange(1, end - stop + 1) / max(1, width - 1)
        gain[stop:end] = weight * np.where(distance > 3, -1.0, _sigmoid(distance))
    return gain, owner


def _sigmoid(position: Any) -> Any:
    return 2 / (1 + np.exp(5 * position)) - 1
