"""Anomaly detection by a forecaster of numbers, or by a language model of events."""

from __future__ import annotations

import csv
import logging
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoModelForTimeSeriesPrediction, PreTrainedModel

from hfseq.data.anomalies import Fields, Recording, event_texts, read_nab, read_recordings, split_nab
from hfseq.data.embedded.flows import COUNTS, START, flow_anomalies, flow_counts, flow_rows
from hfseq.data.spans import probationary_length, step_labels
from hfseq.errors import InputError
from hfseq.inference.anomalies import NUM_TIME_FEATURES, Scale, Settings, Stream, time_features
from hfseq.lazy import datasets
from hfseq.metrics.anomalies import (
    NAB_PROFILES,
    Scored,
    auc_pr,
    event_scores,
    find_alarms,
    nab_score,
    peak_scores,
    recall_at_false_alarms,
    threshold_at_false_alarms,
    vus_pr,
)
from hfseq.plots import plot_anomalies
from hfseq.tasks.anomaly_baselines import isolation_forest, random_scores, windowed_gaussian
from hfseq.tasks.base import Task
from hfseq.tasks.tagging import token_collator

logger = logging.getLogger(__name__)

_DAY = 86_400
_SPLITS = ("train", "validation", "test")


class Detected(NamedTuple):
    """Scores of a detector.

    Attributes:
        scores: Scores of each recording, `[T]`.
        threshold: Score from which on a step is flagged.
    """

    scores: list[NDArray[np.float64]]
    threshold: float


class AnomalyDetection(Task):
    """Recordings without anomalies, or with few, to train on, and others to find them in.

    Args:
        data: Data arguments.
        args: Training arguments.
        directory: Directory of a trained detector, whose settings apply if there is no training.

    Attributes:
        recordings: Split name to its recordings.
        settings: Settings of the detector; the threshold is set by `calibrate`.
        found: Split name to the scores of each of its recordings; set by `calibrate`.
    """

    columns = ()
    column_flags = ()
    # Evaluations during training compute the likelihood alone.
    metrics = ("loss",)
    embedded_name = "synthetic network flows of a small site, with planted attacks"
    packages = ("matplotlib", "sklearn", "scipy")
    rows = "recordings"
    lists_predictions = False
    own_loss = True
    collator: Any

    def __init__(self, data: Any, args: Any, directory: str | None = None) -> None:
        super().__init__(data, args)
        self.directory = directory
        self.recordings: dict[str, list[Recording]] = {}
        self.settings = Settings()
        self.found: dict[str, list[NDArray[np.float64]]] = {}
        if args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: the likelihood of what came is the score; leave it out")

    @property
    def metric(self) -> str:
        """Score of the final test that stands for all."""
        return "recall_at_false_alarms"

    # Reading

    def read(self, *, train: bool = True, known: list[str] | None = None, num_parts: int = 1) -> Self:
        """Read the recordings; without training rows the settings are those beside the model.

        Raises:
            InputError: As for `read_recordings`, or a split is missing.
        """
        data = self.data
        if data.nab_folder is not None:
            pairs = [split_nab(recording) for recording in read_nab(data.nab_folder, "--nab_folder")]
            self.recordings = {"train": [first for first, _ in pairs], "test": [second for _, second in pairs]}
        elif any(getattr(data, f"{split}_file") for split in _SPLITS):
            self.recordings = {
                split: read_recordings(name, f"--{split}_file", self.fields_of_files())
                for split in _SPLITS
                if (name := getattr(data, f"{split}_file")) is not None
            }
        else:
            self.recordings = self.embedded_recordings()
        if train:
            if "train" not in self.recordings:
                raise InputError("--train_file is missing; without training, use --do_predict --model_name_or_path")
            if "validation" not in self.recordings:
                self._hold_out()
        else:
            self.settings = Settings.load(str(self.directory))
            if "test" not in self.recordings:
                raise InputError("--do_predict without --do_train needs --test_file")
            self.recordings = {"test": self.recordings["test"]}
        self._prepare_recordings(train)
        self.splits = dict(self.recordings)
        self.references = self.splits
        return self

    def _hold_out(self) -> None:
        """Hold out the last part of each training recording."""
        first, last = [], []
        for recording in self.recordings["train"]:
            stop = len(recording) - max(1, round(self.data.holdout * len(recording)))
            if stop < 2:
                raise InputError(f"{recording.name}: {len(recording)} steps are too few to train on")
            first.append(recording.part(0, stop))
            last.append(recording.part(stop, len(recording)))
        self.recordings |= {"train": first, "validation": last}

    def fields_of_files(self) -> Fields:
        """Columns of the files, as the flags name them."""
        data = self.data
        common = {"time": data.time_column, "label": data.label_column, "anomalies": data.names("anomaly_labels")}
        return Fields(values=data.names("value_columns") or None, **common)

    @abstractmethod
    def embedded_recordings(self) -> dict[str, list[Recording]]:
        """Recordings of the embedded data."""

    def embedded(self) -> datasets.DatasetDict:
        """Draw the flows that the embedded recordings are made of."""
        return flow_rows()

    @abstractmethod
    def _prepare_recordings(self, train: bool) -> None:
        """Check the recordings and set `settings` and `fields`."""

    def describe(self) -> str:
        """Describe the recordings, their steps and anomalies."""
        parts = []
        for split, recordings in self.recordings.items():
            steps = sum(map(len, recordings))
            known = [one for one in recordings if one.events is not None]
            events = f", {sum(len(one.events or ()) for one in known)} anomalies" if known else ""
            parts.append(f"{split} {len(recordings)} recording{'s' * (len(recordings) != 1)}, {steps:,} steps{events}")
        return "; ".join(parts)

    def _encoded_splits(self) -> list[str]:
        """Splits whose loss is computed: those of training, or else that of the test."""
        return [split for split in ("train", "validation") if split in self.recordings] or ["test"]

    def score_raw(self, split: str, raw: Any) -> dict[str, float]:
        """Nothing: evaluations during training have the loss alone."""
        return {}

    # Scores

    def streams(self, model: PreTrainedModel) -> dict[str, list[NDArray[np.float64]]]:
        """Score all recordings in order; one continues the stream of the recording of that name before it.

        Args:
            model: Trained model.
        """
        streams: dict[str, Stream] = {}
        found: dict[str, list[NDArray[np.float64]]] = {}
        for split in _SPLITS:
            for recording in self.recordings.get(split, ()):
                stream = streams.get(recording.name)
                if stream is None or stream.last_time >= recording.times[0]:
                    stream = Stream(model, self.settings, recording.name, getattr(self, "tokenizer", None))
                    streams[recording.name] = stream
                found.setdefault(split, []).append(stream.read(recording))
        return found

    def calibrate(self, model: PreTrainedModel, log: Callable[..., Any]) -> None:
        """Score all recordings, and choose the threshold on the held-out ones; their anomalies do not count.

        Args:
            model: Trained model.
            log: Logs the threshold.
        """
        self.found = self.streams(model)
        if "validation" in self.found:
            threshold = self._threshold(self.found["validation"])
            self.settings = replace(self.settings, threshold=threshold, false_alarms=self.data.false_alarms)
            held_out = self.recordings["validation"]
            text = f"{sum(map(_days, held_out)):.1f} held-out days"
            rows = [_scored(one, scores) for one, scores in zip(held_out, self.found["validation"], strict=True)]
            if any(row.events for row in rows):
                recall = event_scores(rows, threshold, self.data.hold)["recall"]
                text += f", in which {recall:.1f} % of the anomalies are found"
            log(f"threshold {threshold:.3g}: at most {self.data.false_alarms:g} false alarms a day in {text}")
            if math.isinf(threshold):
                logger.warning("there will be no alarm: give more held-out rows, or allow more --false_alarms")

    def _threshold(self, scores: Sequence[NDArray[np.float64]]) -> float:
        rows = [_scored(one, values) for one, values in zip(self.recordings["validation"], scores, strict=True)]
        return threshold_at_false_alarms(rows, self.data.false_alarms, self.data.hold)

    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[Any, float]:
        """Scores of a split, which `calibrate` computed, and 0."""
        return Detected(self.found[split], self.settings.threshold), 0.0

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Score by event and by step; of NAB's folder also by its own score, with its label-optimised threshold.

        Events and steps are those of all recordings together, VUS-PR and AUC-PR are means over recordings. The recall
        at a rate of false alarms is that of the threshold that has this rate on the scored rows themselves, so that
        detectors are compared at the same rate; precision and recall of events have the held-out threshold.
        """
        hold, rate = self.data.hold, self.data.false_alarms
        rows = [_scored(one, values) for one, values in zip(references, predictions.scores, strict=True)]
        known = [row for row in rows if row.events]
        if not known:
            alarms = sum(len(find_alarms(row.times, row.scores >= predictions.threshold, hold)) for row in rows)
            return {"alarms": float(alarms)}
        at = event_scores(rows, predictions.threshold, hold)
        values = {
            "recall_at_false_alarms": recall_at_false_alarms(rows, rate, hold),
            "vus_pr": float(np.mean([vus_pr(row.scores, row.events) for row in known])),
            "auc_pr": float(np.mean([auc_pr(row.scores, step_labels(row.events, len(row.scores))) for row in known])),
            "event_precision": at["precision"],
            "event_recall": at["recall"],
            "false_alarms_per_day": at["false_alarms_per_day"],
        }
        if self.data.nab_folder is not None:
            whole = [_nab_row(row, hold) for row in rows]
            names = ("nab", "nab_low_fp", "nab_low_fn")
            values |= {name: nab_score(whole, key).score for name, key in zip(names, NAB_PROFILES, strict=True)}
        return values

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Windowed Gaussian, isolation forest (Liu et al. 2008) and random scores of the same steps.

        Each has a threshold of its own, chosen as the model's is. Without training rows there is none.
        """
        if not trained:
            return {}
        seed = self.args.seed
        makers: dict[str, Callable[[Recording, Recording, Recording], NDArray[np.float64]]] = {
            "windowed_gaussian": lambda train, before, one: windowed_gaussian(
                self._numbers(before, train), self._numbers(one, train)
            ),
            "isolation_forest": lambda train, before, one: isolation_forest(
                self._timed_numbers(train, train), self._timed_numbers(one, train), seed
            ),
            "random": lambda train, before, one: random_scores(len(one), seed),
        }
        systems = {}
        for name, make in makers.items():
            scores: dict[str, list[NDArray[np.float64]]] = {"validation": [], split: []}
            for part in scores:
                for one in self.recordings[part]:
                    train = next((two for two in self.recordings["train"] if two.name == one.name), None)
                    train = self.recordings["train"][0] if train is None else train
                    scores[part].append(make(train, self._before(one, part), one))
            systems[name] = Detected(scores[split], self._threshold(scores["validation"]))
        return systems

    def _before(self, one: Recording, split: str) -> Recording:
        """Recordings that a recording continues, as one; without steps if there are none."""
        past = [
            other
            for part in _SPLITS[: _SPLITS.index(split)]
            for other in self.recordings.get(part, ())
            if other.name == one.name and other.times[-1] < one.times[0]
        ]
        if not past:
            return one.part(0, 0)
        values, times = (np.concatenate([getattr(two, key) for two in past]) for key in ("values", "times"))
        texts = None if one.texts is None else tuple(text for two in past for text in two.texts or ())
        return replace(past[0], values=values, times=times, texts=texts, events=None, kinds=None)

    @abstractmethod
    def _numbers(self, one: Recording, train: Recording) -> NDArray[np.float64]:
        """Numbers `[T, D]` of the steps for the baselines."""

    def _timed_numbers(self, one: Recording, train: Recording) -> NDArray[np.float64]:
        """Numbers of the steps, with their time of day and week if it is known."""
        numbers = self._numbers(one, train)
        if not one.timed:
            return numbers
        features = time_features(one.times, _days(train))
        return np.concatenate([numbers, features[:, [0, 4]], features[:, -1:] + features[:, -2:-1]], axis=1)

    # Reports

    def show(self, predictions: Any) -> list[str]:
        """Nothing: scores of steps are in scores.csv."""
        return []

    def example(self, split: str) -> str | None:
        """None: a model card cannot show a recording."""
        return None

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test, with the share of each kind of anomaly that was found at the threshold."""
        recordings = self.recordings[split]
        text = f"{len(recordings)} {self.rows}, {sum(map(len, recordings)):,} steps"
        kinds, hits = Counter[str](), Counter[str]()
        for one, scores in zip(recordings, predictions.scores, strict=True):
            for kind, (start, stop) in zip(one.kinds or (), one.events or (), strict=False):
                kinds[kind] += 1
                hits[kind] += bool((scores[start:stop] >= predictions.threshold).any())
        found = ", ".join(f"{kind} {hits[kind]} of {count}" for kind, count in sorted(kinds.items()))
        return f"{text}; found at the threshold: {found}" if found else text

    def write(self, directory: Path, split: str, predictions: Any) -> None:
        """Write `scores.csv`, a row for each step, and `alarms.csv`, a row for each alarm."""
        with (
            (directory / "scores.csv").open("w", newline="", encoding="utf-8") as steps,
            (directory / "alarms.csv").open("w", newline="", encoding="utf-8") as alarms,
        ):
            step_rows, alarm_rows = csv.writer(steps), csv.writer(alarms)
            step_rows.writerow(["series", "timestamp", "score", "flagged", "label"])
            alarm_rows.writerow(["series", "start", "end", "score", "true"])
            for one, scores in zip(self.recordings[split], predictions.scores, strict=True):
                flagged, labels = scores >= predictions.threshold, step_labels(one.events or (), len(one))
                stamps = [_stamp(one, step) for step in range(len(one))]
                marks = [""] * len(one) if one.events is None else labels.astype(int).tolist()
                for stamp, score, flag, mark in zip(stamps, scores, flagged, marks, strict=True):
                    step_rows.writerow([one.name, stamp, f"{score:.6g}", int(flag), mark])
                for start, stop in find_alarms(one.times, flagged, self.data.hold):
                    true = "" if one.events is None else int((flagged & labels)[start:stop].any())
                    peak = f"{scores[start:stop].max():.6g}"
                    alarm_rows.writerow([one.name, stamps[start], stamps[stop - 1], peak, true])

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Plot the busiest part of the recording with most anomalies; see `Task.plot`."""
        super().plot(model, log, split, predictions)
        recordings = self.recordings[split]
        most = int(np.argmax([len(one.events or ()) for one in recordings]))
        one, scores = recordings[most], predictions.scores[most]
        start, stop = _busiest(one, _steps_shown(one))
        shown = one.part(start, stop)
        alarms = find_alarms(one.times, scores >= predictions.threshold, self.data.hold)
        plot_anomalies(
            shown.times,
            shown.values,
            shown.columns,
            scores[start:stop],
            predictions.threshold,
            shown.events or (),
            [first - start for first, _ in alarms if start <= first < stop],
            Path(str(self.args.output_dir), "anomalies.png"),
            timed=one.timed,
            title=one.name,
        )


def _scored(one: Recording, scores: NDArray[np.float64]) -> Scored:
    """Scores of a recording beside its anomalies."""
    return Scored(scores, one.events or (), one.times)


def _nab_row(row: Any, hold: float) -> tuple[NDArray[np.float64], list[tuple[int, int]]]:
    """Scores and windows of a whole series, of which `row` has what comes after the probationary part."""
    # The inverse of `split_nab`: the longest part that leaves so many rows.
    length = len(row.scores)
    before = next(count for count in range(length) if probationary_length(length + count) == count)
    scores = np.concatenate([np.zeros(before), peak_scores(np.maximum(row.scores, 0.0), row.times, hold)])
    return scores, [(start + before, stop + before) for start, stop in row.events]


def _unlabelled(one: Recording) -> NDArray[np.float64]:
    """Values `[T, C]`, missing at labelled anomalies, which are not to be learnt and are no part of a loss."""
    return np.where(step_labels(one.events or (), len(one))[:, None], np.nan, one.values)


def _days(one: Recording) -> float:
    return float(one.times[-1] - one.times[0]) / _DAY if len(one) else 0.0


def _stamp(one: Recording, step: int) -> str:
    """Time stamp of a step as text, or its number."""
    if not one.timed:
        return str(step + 1)
    return datetime.fromtimestamp(float(one.times[step]), UTC).strftime("%Y-%m-%d %H:%M:%S")


def _steps_shown(one: Recording) -> int:
    """Steps of a week, at least 200 and at most 2,500."""
    if len(one) < 2:
        return len(one)
    return int(np.clip(7 * _DAY / max(1e-9, float(np.median(np.diff(one.times)))), 200, 2_500))


def _busiest(one: Recording, length: int) -> tuple[int, int]:
    """Steps of the part of a recording in which most anomalies begin."""
    if len(one) <= length:
        return 0, len(one)
    starts = np.array([start for start, _ in one.events or ()])
    if not len(starts):
        return len(one) - length, len(one)
    counts = [((starts >= first) & (starts < first + length)).sum() for first in starts]
    first = int(starts[int(np.argmax(counts))]) - length // 20
    first = int(np.clip(first, 0, len(one) - length))
    return first, first + length


class ValueAnomalies(AnomalyDetection):
    """Anomalies of series of numbers, by the likelihood of each value under a forecaster."""

    auto_class: ClassVar[Any] = AutoModelForTimeSeriesPrediction
    # The Hub has no task of anomalies; this is the model's.
    hub_task = "time-series-forecasting"
    features = True
    main_input = "past_values"
    length_unit = "steps"
    rows = "series"

    def embedded_recordings(self) -> dict[str, list[Recording]]:
        """Counts of the embedded flows in intervals of five minutes."""
        found, begin, interval = {}, START, 300
        for split, days, flows in _embedded_splits(self.embedded()):
            counts = flow_counts(flows, begin=begin, days=days, interval=interval)
            values = np.stack([counts[name] for name in COUNTS], axis=1)
            spans, kinds = _planted(split, begin, days, counts["time"] - interval, interval)
            times = counts["time"].astype(np.float64)
            found[split] = [Recording("site", COUNTS, values, times, True, spans, kinds)]
            begin += days * _DAY
        return found

    def _prepare_recordings(self, train: bool) -> None:
        everything = [one for split in _SPLITS for one in self.recordings.get(split, ())]
        columns = everything[0].columns if train else self.settings.columns
        for one in everything:
            if one.columns != columns:
                raise InputError(
                    f"{one.name}: the columns are {', '.join(one.columns)}, but {', '.join(columns)} in "
                    f"{everything[0].name if train else 'the model'}; all need the same"
                )
        if not train:
            return
        data = self.data
        timed = all(one.timed for one in everything)
        scales = {}
        for one in self.recordings["train"]:
            try:
                scales[one.name] = Scale.fit(_unlabelled(one), _days(one), log=data.log_values)
            except ValueError:
                largest = float(np.nanmax(np.abs(one.values)))
                raise InputError(
                    f"{one.name}: values of up to {largest:.3g} overflow; correct them, or give --log_values"
                ) from None
        self.settings = Settings(
            columns=columns,
            log=data.log_values,
            scales=scales,
            timed=timed,
            short_window=data.short_window,
            long_window=data.long_window,
            hold=data.hold,
        )
        self.fields = {
            "input_size": len(columns),
            "num_time_features": NUM_TIME_FEATURES if timed else 0,
            "scaling": None,
            "context_length": data.context_length,
        }

    def encode(self, model: PreTrainedModel, tokenizer: Any, log: Callable[..., Any]) -> None:
        """Cut the training and validation series into windows; see `Task.encode`.

        Raises:
            InputError: The model is not a forecaster of hfseq with a distribution of such values.
        """
        config: Any = model.config
        if not hasattr(model, "log_likelihood"):
            raise InputError(f"--model_name_or_path: {type(model).__name__} gives no likelihood of a value")
        if config.loss == "mse":
            raise InputError("--config_overrides: loss='mse' has no distribution, so no value has a likelihood")
        if config.distribution_output == "negative_binomial":
            raise InputError(
                "--config_overrides: distribution_output='negative_binomial' is for counts, but values are scaled "
                "here; set 'student_t' or 'normal'"
            )
        wanted = {"input_size": len(self.settings.columns)}
        wanted["num_time_features"] = NUM_TIME_FEATURES if self.settings.timed else 0
        for name, value in wanted.items():
            if getattr(config, name) != value:
                raise InputError(f"--model_name_or_path: {name} is {getattr(config, name)}, but the data need {value}")
        self.args.label_names = ["future_values"]
        self.encoded, self.lengths, self.collator = {}, {}, _stack
        for split in self._encoded_splits():
            rows = [row for one in self.recordings[split] for row in self._windows(one, config)]
            if not rows:
                raise InputError(f"{split}: all values are missing; there is nothing to predict")
            self.encoded[split] = datasets.Dataset.from_list(rows)
        log(", ".join(f"{split} {len(rows)} windows" for split, rows in self.encoded.items()))

    def _windows(self, one: Recording, config: Any) -> Iterator[dict[str, Any]]:
        """Windows of `context_length` steps and one more, with the values that their lags reach back to.

        What stands before the first step of a series is missing.
        """
        scale = self.settings.scale_of(one.name)
        length = (config.context_length or self.data.context_length) + 1
        reach = max(config.lags_sequence)
        values = scale.apply(_unlabelled(one), log=self.settings.log)
        before = np.full((reach + max(0, length - len(one)), values.shape[1]), np.nan)
        values = np.concatenate([before, values]).astype(np.float32)
        features = np.zeros((len(values), config.num_time_features), dtype=np.float32)
        if config.num_time_features:
            features[len(before) :] = time_features(one.times, scale.days)
        # Each step is in several windows, at another place.
        last = len(values) - reach - length
        starts = sorted({*range(0, last, max(1, length // 4)), last})
        for start in starts:
            past, future = (
                slice(start, start + reach + length - 1),
                slice(start + reach + length - 1, start + reach + length),
            )
            if np.isnan(values[past.start + reach : future.stop]).all():
                continue
            row = {"past_values": values[past], "future_values": values[future]}
            if config.num_time_features:
                row |= {"past_time_features": features[past], "future_time_features": features[future]}
            yield row

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Nothing of the parameters is needed for the loss."""
        return torch.zeros(len(labels))

    def _numbers(self, one: Recording, train: Recording) -> NDArray[np.float64]:
        return self.settings.scale_of(train.name).apply(one.values, log=self.settings.log)


class EventAnomalies(AnomalyDetection):
    """Anomalies of logs of events, by the likelihood of each event under a causal language model (Du et al. 2017)."""

    auto_class: ClassVar[Any] = AutoModelForCausalLM
    hub_task = "text-generation"
    rows = "logs"
    # Training log and its frequencies, which all baselines share.
    _counted: Any = None

    def fields_of_files(self) -> Fields:
        """Columns of the files; by default `event` has the text of an event."""
        data = self.data
        return replace(
            super().fields_of_files(),
            values=None,
            events=data.names("event_columns") or ("event",),
            numbers=data.names("number_columns"),
            gaps=data.event_gaps,
        )

    def embedded_recordings(self) -> dict[str, list[Recording]]:
        """The embedded flows, each an event; of fewer days than there are for the numbers."""
        found, begin = {}, START
        for split, days, flows in _embedded_splits(flow_rows(train_days=7, validation_days=7, test_days=7)):
            times = np.asarray(flows["time"], dtype=np.float64)
            words = {
                "source": _roles(flows["source"]),
                "destination": _roles(flows["destination"]),
                **{name: [str(value) for value in flows[name]] for name in ("protocol", "port", "state")},
            }
            numbers = np.stack(
                [np.asarray(flows[name], dtype=np.float64) for name in ("bytes_out", "bytes_in")], axis=1
            )
            texts = event_texts(words, ("bytes_out", "bytes_in"), numbers, np.diff(times, prepend=times[0]))
            spans, kinds = _planted(split, begin, days, times, 0)
            found[split] = [Recording("site", (), np.empty((len(times), 0)), times, True, spans, kinds, tuple(texts))]
            begin += days * _DAY
        return found

    def _prepare_recordings(self, train: bool) -> None:
        data = self.data
        if train:
            fields = self.fields_of_files()
            self.settings = Settings(
                timed=all(one.timed for rows in self.recordings.values() for one in rows),
                short_window=data.short_window,
                long_window=data.long_window,
                hold=data.hold,
                event_columns=tuple(fields.events or ()),
                number_columns=tuple(fields.numbers),
                gaps=fields.gaps,
            )

    def texts(self) -> Any:
        """Texts to train a new tokenizer on."""
        return (text for one in self.recordings["train"] for text in one.texts or ())

    def encode(self, model: PreTrainedModel, tokenizer: Any, log: Callable[..., Any]) -> None:
        """Cut the training and validation logs into blocks of tokens; see `Task.encode`."""
        self.tokenizer = tokenizer
        self.collator = token_collator(tokenizer, model)
        self.encoded, self.lengths = {}, {}
        size = self.data.context_length
        for split in self._encoded_splits():
            rows = []
            for one in self.recordings[split]:
                texts = [f"{text}\n" for text in one.texts or ()]
                parts = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
                start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
                ids = [start, *(token for part in parts for token in part)]
                for first in range(0, len(ids) - 1, size - 1):
                    block = ids[first : first + size]
                    rows.append({"input_ids": block, "attention_mask": [1] * len(block), "labels": [-100, *block[1:]]})
            self.encoded[split] = datasets.Dataset.from_list(rows)
        log(", ".join(f"{split} {len(rows):,} blocks of {size} tokens" for split, rows in self.encoded.items()))

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Nothing of the logits is needed for the loss."""
        return torch.zeros(len(labels))

    def _numbers(self, one: Recording, train: Recording) -> NDArray[np.float64]:
        """Surprise of each event by its frequency in training, and by that of its words, and the time before it."""
        known = self._frequencies(train)
        gaps = np.log1p(np.diff(one.times, prepend=one.times[:1]))
        texts = one.texts or ()
        whole = [known[0].get(text, known[2]) for text in texts]
        words = [max((known[1].get(word, known[2]) for word in text.split()), default=0.0) for text in texts]
        return np.stack([np.array(whole), np.array(words), gaps], axis=1)

    def _frequencies(self, train: Recording) -> tuple[dict[str, float], dict[str, float], float]:
        """Negative logarithms of the frequencies of events and of words, and that of an unknown one."""
        if self._counted is None or self._counted[0] is not train:
            texts = train.texts or ()
            events, words = Counter(texts), Counter(word for text in texts for word in text.split())
            found = []
            for counts in (events, words):
                total = counts.total() + len(counts) + 1
                found.append({name: float(-np.log((count + 1) / total)) for name, count in counts.items()})
            self._counted = (train, (found[0], found[1], float(np.log(len(texts) + 1))))
        return self._counted[1]


HEADS: dict[str, type[AnomalyDetection]] = {"prediction": ValueAnomalies, "causal_lm": EventAnomalies}
"""Task by head."""


def _stack(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Batch of windows of the same length."""
    return {name: torch.from_numpy(np.array([row[name] for row in rows], dtype=np.float32)) for name in rows[0]}


def _embedded_splits(flows: datasets.DatasetDict) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Split name, number of days, and columns of the embedded flows."""
    begin = START
    for split, rows in flows.items():
        columns = rows.with_format("numpy")[:]
        days = int(np.ceil((columns["time"][-1] - begin) / _DAY))
        yield split, days, columns
        begin += days * _DAY


def _planted(
    split: str, begin: int, days: int, starts: NDArray[Any], interval: int
) -> tuple[tuple[tuple[int, int], ...] | None, tuple[str, ...] | None]:
    """Steps of each planted anomaly, given the begin and the length of steps; none for training rows."""
    if split == "train":
        return None, None
    spans, kinds = [], []
    for one in flow_anomalies(split, begin=begin, days=days):
        first = int(np.searchsorted(starts + interval, one.start, side="right" if interval else "left"))
        last = int(np.searchsorted(starts, one.stop, side="left"))
        # Of a stall without any flow, the first one after it shows that there was one.
        spans.append((first, max(last, first + 1) if interval or one.kind != "stall" else last + 1))
        kinds.append(one.kind)
    return tuple(spans), tuple(kinds)


def _roles(hosts: Any) -> list[str]:
    """Hosts by name, visitors by their role."""
    return ["visitor" if str(host).startswith("visitor") else str(host) for host in hosts]
