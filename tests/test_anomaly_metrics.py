"""Metrics of anomaly detection against definitions that are read step by step."""

import math

import numpy as np
import pytest

from hfseq.data.spans import event_spans, probationary_length, step_labels
from hfseq.metrics.anomalies import (
    NAB_PROFILES,
    Scored,
    auc_pr,
    event_scores,
    find_alarms,
    nab_score,
    normal_days,
    peak_scores,
    recall_at_false_alarms,
    threshold_at_false_alarms,
    vus_pr,
)

HOUR = 3600.0


def draw(seed, length=60, ties=True):
    """Scores with ties, and events apart from each other."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, length) / 4 if ties else rng.random(length)
    labels = np.zeros(length, dtype=bool)
    for start in (length // 6, length // 2, 4 * length // 5):
        labels[start : start + rng.integers(1, 6)] = True
    return scores.astype(float), labels, event_spans(labels)


# Oracles


def soft_labels(events, length, buffer):
    labels = []
    for step in range(length):
        value = 0.0
        for start, stop in events:
            if start <= step < stop:
                value = 1.0
                break
            distance = start - step if step < start else step - stop + 1
            if distance <= buffer // 2:
                value += math.sqrt(1 - distance / buffer)
        labels.append(min(1.0, value))
    return labels


def range_pr(scores, labels, events, buffer):
    soft = soft_labels(events, len(scores), buffer)
    ranges, runs = event_spans(soft), 0.0
    positive = (sum(labels) + sum(soft)) / 2
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        flagged = [score >= threshold for score in scores]
        true = sum(value for value, flag in zip(soft, flagged, strict=True) if flag)
        runs = sum(any(flagged[start:stop]) for start, stop in ranges) / len(ranges)
        recall = min(1.0, true / positive) * runs
        area += (recall - before) * true / sum(flagged)
        before = recall
    return area


def nab_total(rows, threshold, profile):
    """NAB's raw score as its scorer computes it: row by row."""
    false_weight, missed_weight = NAB_PROFILES[profile]

    def sigmoid(position):
        return -1.0 if position > 3 else 2 / (1 + math.exp(5 * position)) - 1

    total, empty, windows = 0.0, 0.0, 0
    for scores, spans in rows:
        best = [-missed_weight] * len(spans)
        for step, score in enumerate(scores):
            if step < probationary_length(len(scores)) or score < threshold:
                continue
            inside = [number for number, (start, stop) in enumerate(spans) if start <= step < stop]
            passed = [(start, stop) for start, stop in spans if stop <= step]
            if inside:
                start, stop = spans[inside[0]]
                gain = sigmoid(-(stop - step) / (stop - start)) / sigmoid(-1.0)
                best[inside[0]] = max(best[inside[0]], gain)
            elif passed:
                start, stop = passed[-1]
                total += false_weight * sigmoid((step - stop + 1) / max(1, stop - start - 1))
            else:
                total -= false_weight
        total, empty, windows = total + sum(best), empty - missed_weight * len(spans), windows + len(spans)
    return 100 * (total - empty) / (windows - empty)


def alarms_one_by_one(times, flagged, hold):
    alarms = []
    for step, flag in enumerate(flagged):
        if flag and alarms and times[step] - times[alarms[-1][0]] <= hold:
            alarms[-1][1] = step + 1
        elif flag:
            alarms.append([step, step + 1])
    return [tuple(alarm) for alarm in alarms]


# Tests


def test_spans_and_labels_are_inverse():
    labels = np.array([1, 1, 0, 0, 1, 0, 1])
    assert event_spans(labels) == [(0, 2), (4, 5), (6, 7)]
    assert (step_labels(event_spans(labels), 7) == labels).all()
    assert event_spans([]) == [] and event_spans([0, 0]) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buffer", [0, 1, 2, 7, 20])
def test_volume_is_the_mean_of_the_range_based_areas(seed, buffer):
    scores, labels, events = draw(seed, ties=seed % 2 == 0)
    areas = [range_pr(scores, labels, events, one) for one in range(buffer + 1)]
    assert vus_pr(scores, events, longest=buffer) == pytest.approx(100 * np.mean(areas), abs=1e-9)


def test_volume_without_a_buffer_is_average_precision_times_existence():
    scores, labels, events = draw(3)
    only = [(events[0][0], events[0][0] + 1)]
    # A single event of a single step always exists where it is recalled.
    assert vus_pr(scores, only, longest=0) == pytest.approx(auc_pr(scores, step_labels(only, len(scores))))


def test_volume_rewards_nearness():
    events, base = [(50, 60)], np.zeros(200)
    near, far = base.copy(), base.copy()
    near[45], far[150] = 1, 1
    assert vus_pr(near, events, longest=40) > vus_pr(far, events, longest=40) + 1


def test_average_precision_as_in_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(4):
        scores, labels, _ = draw(seed)
        assert auc_pr(scores, labels) == pytest.approx(100 * metrics.average_precision_score(labels, scores))


@pytest.mark.parametrize("profile", NAB_PROFILES)
def test_nab_score_row_by_row(profile):
    rows = []
    for seed in range(3):
        scores, _, events = draw(seed, length=100 + 20 * seed)
        rows.append((scores, events))
    thresholds = sorted({score for scores, _ in rows for score in scores})
    by_row = {threshold: nab_total(rows, threshold, profile) for threshold in [*thresholds, math.inf]}
    for threshold, expected in by_row.items():
        assert nab_score(rows, profile, threshold).score == pytest.approx(expected)
    # A threshold between two scores flags what the next one flags.
    middle = (thresholds[-1] + thresholds[-2]) / 2
    assert nab_score(rows, profile, middle).score == pytest.approx(by_row[thresholds[-1]])
    best = nab_score(rows, profile)
    assert best.score == pytest.approx(max(by_row.values())) and by_row[best.threshold] == pytest.approx(best.score)


def test_nab_score_of_no_detections_and_of_perfect_ones():
    windows = [(20, 30), (60, 75)]
    perfect = np.zeros(100)
    perfect[[20, 60]] = 1
    assert nab_score([(perfect, windows)], threshold=0.5).score == pytest.approx(100)
    assert nab_score([(perfect, windows)], threshold=2.0) == (0.0, 2.0, 0, 2, 0)
    late, false = perfect * 0, perfect.copy()
    late[[29, 74]], false[50] = 1, 1
    assert 50 < nab_score([(late, windows)], threshold=0.5).score < 80
    assert nab_score([(false, windows)], threshold=0.5)._replace(score=0) == (0, 0.5, 2, 2, 1)
    # Rows of the probationary part are not scored.
    early = perfect.copy()
    early[:15] = 5
    assert nab_score([(early, windows)], threshold=0.5).score == pytest.approx(100)


def test_probationary_part():
    assert [probationary_length(count) for count in (99, 4032, 5000, 22_695)] == [14, 604, 750, 750]


@pytest.mark.parametrize("seed", range(5))
def test_alarms_as_a_stream_raises_them(seed):
    rng = np.random.default_rng(seed)
    times, flagged = np.cumsum(rng.integers(1, 5, 80)), rng.random(80) < 0.4
    for hold in (0, 3, 10, 1000):
        assert find_alarms(times, flagged, hold) == alarms_one_by_one(times, flagged, hold)


def test_scores_by_event():
    scores = np.zeros(48)
    # Two alarms within the first event, one near nothing, and one that only begins before the second event.
    scores[[10, 14, 25, 38, 40]] = 1
    row = Scored(scores, [(10, 15), (40, 42)], HOUR * np.arange(48))
    found = event_scores([row], 0.5, hold=3 * HOUR)
    assert (found["alarms"], found["false_alarms"], found["found"], found["events"]) == (4, 1, 2, 2)
    assert found["precision"] == 75 and found["recall"] == 100 and found["f1"] == pytest.approx(600 / 7)
    assert normal_days(row) == pytest.approx(41 / 24)
    assert found["false_alarms_per_day"] == pytest.approx(24 / 41)
    assert event_scores([row], 2.0, hold=0)["recall"] == 0 and event_scores([row], 2.0, hold=0)["precision"] == 100


def test_one_step_of_an_event_does_not_count_for_the_others():
    """No point adjustment: the other steps of the event stay what they are, for precision by step."""
    scores = np.zeros(20)
    scores[5] = 1
    labels = step_labels([(0, 10)], 20)
    assert auc_pr(scores, labels) == pytest.approx(100 * (0.1 + 0.9 * 0.5))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per_day", [0, 0.5, 2, 100])
def test_threshold_at_a_rate_of_false_alarms(seed, per_day):
    rows = []
    for part in range(2):
        scores, _, events = draw(10 * seed + part, length=96)
        rows.append(Scored(scores, events, HOUR * np.arange(96)))
    hold = 2 * HOUR
    allowed = per_day * sum(normal_days(row) for row in rows)
    values = sorted({score for row in rows for score in row.scores}, reverse=True)
    passes = [event_scores(rows, value, hold)["false_alarms"] <= allowed for value in values]
    found = threshold_at_false_alarms(rows, per_day, hold)
    at = values.index(found) if found < math.inf else -1
    assert (at < 0 or passes[at]) and (at + 1 == len(values) or not passes[at + 1])
    if passes == sorted(passes, reverse=True):
        assert at + 1 == sum(passes)
    expected = found
    assert recall_at_false_alarms(rows, per_day, hold) == event_scores(rows, expected, hold)["recall"]


def test_constant_scores_are_no_detector():
    row = Scored(np.ones(96), [(10, 20), (50, 52)], HOUR * np.arange(96))
    assert recall_at_false_alarms([row], 1.0, hold=HOUR) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vus_pr([0.0, math.nan], [(0, 1)]), "vus_pr: score 1 is NaN"),
        (lambda: vus_pr([0.0, 1.0], []), "vus_pr: there are no events"),
        (lambda: vus_pr(np.zeros((2, 2)), [(0, 1)]), r"vus_pr: the scores are \[2, 2\], not \[T\]"),
        (lambda: auc_pr([0.0, 1.0], [0, 0]), "auc_pr: no step is anomalous"),
        (lambda: auc_pr([0.0], [0, 1]), r"auc_pr: the scores are \[1\], not \[2\]"),
        (lambda: nab_score([([0.0] * 9, [])]), "nab_score: there are no windows"),
        (lambda: threshold_at_false_alarms([], 1, 0), "threshold_at_false_alarms: there are no scores"),
    ],
)
def test_invalid_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("hold", [0, 3, 10, 100])
def test_scores_of_peaks(hold):
    rng = np.random.default_rng(hold)
    scores, times = rng.integers(1, 9, 60).astype(float), np.cumsum(rng.integers(1, 4, 60))
    expected, rising = [0.0], False
    for step in range(1, 60):
        before = [scores[other] for other in range(step - 1) if times[step - 1] - times[other] <= hold]
        rising = rising or scores[step - 1] > max(before, default=0)
        falls = rising and scores[step] < scores[step - 1]
        expected.append(scores[step - 1] if falls else 0.0)
        rising = rising and not falls
    np.testing.assert_array_equal(peak_scores(scores, times, hold), expected)


def test_a_rise_is_one_alarm():
    scores = [0, 1, 2, 3, 4, 4, 2, 3, 1, 0, 0, 5, 0]
    kept = peak_scores(scores, np.arange(13), 100)
    assert kept.tolist() == [0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 5]
