"""Monitoring of classifiers of recordings: durations, features, classes, and accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import AutoModelForAudioClassification

from hfseq.data.audio import read_audio_file
from hfseq.data.reading import Columns
from hfseq.errors import InputError, MissingColumn, require
from hfseq.inference.loading import class_names, load_trained, problem_of
from hfseq.lazy import datasets
from hfseq.tasks.arguments import SpeechArguments
from hfseq.tasks.base import Task
from hfseq.tasks.speech import AudioClassification
from hfseq.training.drift import CHI_SQUARE, Sample
from hfseq.training.monitoring import Monitored, Side, best_class, names_of_labels


@dataclass
class RecordingMonitoringArguments(SpeechArguments):
    """Recordings and their classes."""

    head: str = field(init=False, default="classification")
    dataset_name: None = field(init=False, default=None)
    dataset_config_name: None = field(init=False, default=None)
    validation_file: None = field(init=False, default=None)
    text_column: str = field(init=False, default="transcription")
    sampling_rate: None = field(init=False, default=None)
    feature_extractor: None = field(init=False, default=None)
    max_target_length: int = field(init=False, default=256)
    num_beams: int = field(init=False, default=1)
    lm_model: None = field(init=False, default=None)
    lm_weight: float = field(init=False, default=0.5)
    length_bonus: float = field(init=False, default=0.0)
    class_weights: None = field(init=False, default=None)


class MonitoredRecordings(Monitored):
    """Classifier of recordings, scored by accuracy.

    A log has durations in place of recordings, so that features are compared for files alone.
    """

    arguments: ClassVar[type] = RecordingMonitoringArguments
    pipelines = frozenset(("audio-classification",))
    rows = "recordings"
    metric = "accuracy"

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        require("soundfile", extra="audio", use="reading recordings")
        if data.retrain and data.served is not None:
            raise InputError("--retrain: the log has no recordings to train on; give them by --fresh_file")
        self.model, self.tokenizer = load_trained(
            AutoModelForAudioClassification, data.model_name_or_path, features=True
        )
        if problem_of(self.model.config) != "single_label_classification":
            raise InputError("monitoring supports single-label classifiers of recordings")
        self.model.to(args.device)
        self.classes = class_names(self.model.config)

    def read(self) -> None:
        """Read which recordings there are; see `Monitored.read`."""
        data = self.data
        self.reference = self._read_file(data.test_file, "--test_file")
        if data.served is not None:
            self._read_log()
        else:
            try:
                self.fresh = self.judged = self._read_file(data.fresh_file, "--fresh_file")
            except MissingColumn:
                self.fresh = self._read_file(data.fresh_file, "--fresh_file", labels=False)
        self.check_judged()
        self.old = self._read_file(data.train_file, "--train_file") if data.retrain else None

    def _read_file(self, path: str, flag: str, *, labels: bool = True) -> datasets.Dataset:
        """Recordings of a file, with the names of their classes or, without `labels`, with the first one."""
        label = self.data.label_column
        columns = Columns((label,), (label,)) if labels else Columns((), ())
        rows = read_audio_file(Path(path), flag, self.data.audio_column, columns, self.data.file_columns)
        if not labels:
            return rows.add_column(label, [self.classes[0]] * len(rows))
        names = names_of_labels(rows[label], self.classes, f"{flag} {path}")
        return rows.remove_columns(label).add_column(label, names)

    def _read_log(self) -> None:
        """Read durations, classes and joined labels of the log."""
        served = self.read_served()
        found = [(_seconds_of(row.inputs), best_class(row.output, self.classes), row) for row in served]
        kept = [(seconds, name, row) for seconds, name, row in found if seconds is not None and name is not None]
        if len(kept) < len(served):
            self.notes.append(f"{len(served) - len(kept)} rows without a duration or a class of the model left out")
        if not kept:
            raise InputError(f"--served {self.data.served}: no row has the duration of a recording and a class")
        self.seconds = [seconds for seconds, *_ in kept]
        self.outputs = [str(name) for _, name, _ in kept]
        labelled = [(name, row.label) for _, name, row in kept if row.label is not None]
        source = f"--labels_file {self.data.labels_file}"
        labels = names_of_labels([label for _, label in labelled], self.classes, source)
        self.right = [name == label for (name, _), label in zip(labelled, labels, strict=True)]

    def observe_reference(self) -> Side:
        """Classify and measure the recordings of the test."""
        return self._observe(self.reference, labels=True)

    def observe_fresh(self) -> Side:
        """Measure the fresh recordings, and classify them unless they are of a log."""
        if self.data.served is None:
            return self._observe(self.fresh, labels=self.judged is not None)
        samples = {"duration in s": Sample(self.seconds), "output classes": Sample(self.outputs, CHI_SQUARE)}
        return Side(len(self.outputs), samples, 100.0 * np.array(self.right) if self.right else None)

    def _classify(self, rows: datasets.Dataset) -> tuple[AudioClassification, list[str]]:
        """Task with the encoded recordings, and their classes."""
        task = AudioClassification(self.data, self.args)
        task.use({"test": rows}, train=False, known=self.classes)
        task = task.encoded_split(self.model, self.tokenizer, "test")
        ids = task.decode("test", task.predict(self.model, "test")[0])
        return task, [self.classes[number] for number in ids]

    def _observe(self, rows: datasets.Dataset, *, labels: bool) -> Side:
        task, outputs = self._classify(rows)
        recordings = (task.samples(row, None) for row in rows)
        features = [np.asarray(row[task.main_input]) for row in task.encoded["test"]]
        samples = {
            "duration in s": Sample([len(samples) / rate for samples, rate in recordings]),
            "level of the features": Sample([float(values.mean()) for values in features]),
            "spread of the features": Sample([float(values.std()) for values in features]),
            "output classes": Sample(outputs, CHI_SQUARE),
        }
        return Side(len(rows), samples, self._compare(rows, outputs) if labels else None)

    def _compare(self, rows: datasets.Dataset, outputs: list[str]) -> np.ndarray:
        labels = rows[self.data.label_column]
        return np.array([100.0 * (one == other) for one, other in zip(outputs, labels, strict=True)])

    def score(self, rows: datasets.Dataset) -> np.ndarray:
        """Classify each recording; 100 where that is right."""
        return self._compare(rows, self._classify(rows)[1])

    def split_judged(self, rows: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Hold out recordings at random."""
        parts = rows.train_test_split(test_size=self.data.holdout, seed=self.args.seed)
        return parts["train"], parts["test"]

    def training_task(self, fresh: datasets.Dataset) -> tuple[Task, Any]:
        """Task on old and fresh recordings, some of which are for validation."""
        rows = datasets.concatenate_datasets([self.old, fresh])
        learnt = rows.train_test_split(test_size=0.05, seed=self.args.seed)
        task = AudioClassification(self.data, self.args)
        task.use({"train": learnt["train"], "validation": learnt["test"]}, known=self.classes)
        return task, self.data


def _seconds_of(inputs: Any) -> float | None:
    """Duration of a logged recording."""
    seconds = inputs.get("seconds") if isinstance(inputs, dict) else None
    return float(seconds) if isinstance(seconds, int | float) else None
