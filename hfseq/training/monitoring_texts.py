"""Monitoring of models of text: classifiers, translators and summarizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from accelerate import PartialState
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from hfseq.data.reading import Columns, check_sources, read_file
from hfseq.errors import InputError, MissingColumn
from hfseq.inference.classify import classify_texts
from hfseq.inference.generate import decode_texts
from hfseq.inference.loading import class_names, load_config, load_trained, problem_of
from hfseq.lazy import datasets
from hfseq.tasks.arguments import SingleLabelArguments, TranslationArguments
from hfseq.tasks.base import Task
from hfseq.tasks.classification import Classification
from hfseq.tasks.seq2seq import Translation
from hfseq.training.drift import CHI_SQUARE, MANN_WHITNEY, Sample, chrf_of_texts, unknown_shares
from hfseq.training.monitoring import Monitored, Side, best_class, names_of_labels, parts_of


@dataclass
class TextArguments(SingleLabelArguments):
    """Texts, and how outputs are generated."""

    max_target_length: int = field(default=256, metadata={"help": "Maximum length of a generated text in tokens."})
    num_beams: int = field(default=1, metadata={"help": "Beams of a translator or summarizer."})
    source_prefix: str = field(default="", metadata={"help": "Text before every source of a translator."})
    dataset_name: None = field(init=False, default=None)
    validation_file: None = field(init=False, default=None)
    class_weights: None = field(init=False, default=None)


class MonitoredTexts(Monitored):
    """Classifier, scored by accuracy, or translator or summarizer, scored by the mean chrF of a text.

    Attributes:
        generates: Whether the model generates texts.
        classes: Class names of a classifier; empty for generation.
    """

    arguments: ClassVar[type] = TextArguments

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        config = load_config(data.model_name_or_path)
        classifies = any(name.endswith("Classification") for name in config.architectures or ())
        self.generates = bool(config.is_encoder_decoder) and not classifies
        auto_class = AutoModelForSeq2SeqLM if self.generates else AutoModelForSequenceClassification
        self.model, self.tokenizer = load_trained(auto_class, data.model_name_or_path)
        if not self.generates and problem_of(self.model.config) != "single_label_classification":
            raise InputError("monitoring supports single-label classifiers, translators and summarizers")
        self.model.to(args.device)
        self.classes = [] if self.generates else class_names(self.model.config)
        self.metric = "chrF of a text" if self.generates else "accuracy"
        of_classes = frozenset(("text-classification", "sentiment-analysis"))
        self.pipelines = frozenset(("translation", "summarization")) if self.generates else of_classes

    def read(self) -> None:
        """Read the rows; see `Monitored.read`."""
        data = self.data
        self.reference = self.read_rows(data.test_file, "--test_file")
        if data.served is not None:
            self._read_log()
        else:
            self.fresh, self.judged = self.read_fresh()
            self.outputs: list[str] = []
        self.check_judged()
        self.old = self.read_rows(data.train_file, "--train_file") if data.retrain else None

    def read_rows(self, path: str, flag: str) -> datasets.Dataset:
        """Read the labelled rows of a file; classes may be given as names or ids.

        Raises:
            InputError: The file is invalid, or a class is unknown to the model.
        """
        text, label = self.data.text_column, self.data.label_column
        rows = self._read(path, flag, text, label)
        if self.generates:
            return rows
        return datasets.Dataset.from_dict(
            {text: rows[text], label: names_of_labels(rows[label], self.classes, f"{flag} {path}")}
        )

    def read_fresh(self) -> tuple[list[str], datasets.Dataset | None]:
        """Read all fresh texts, labelled or not, and the labelled rows; None if the file has no labels.

        Raises:
            InputError: As for `read_rows`.
        """
        path, flag, text = self.data.fresh_file, "--fresh_file", self.data.text_column
        texts = list(self._read(path, flag, text)[text])
        try:
            return texts, self.read_rows(path, flag)
        except MissingColumn:
            return texts, None

    def _read(self, path: str, flag: str, *columns: str) -> datasets.Dataset:
        check_sources(columns, None, None)
        labels = [column for column in columns if column == self.data.label_column]
        return read_file(path, flag, Columns(columns, labels), self.data.file_columns, moses=False)

    def _read_log(self) -> None:
        """Read texts, outputs and joined labels of the log."""
        rows = self.read_served()
        found = [(self._text_of(row.inputs), self._output_of(row.output), row) for row in rows]
        kept = [(text, output, row) for text, output, row in found if text is not None and output is not None]
        if len(kept) < len(rows):
            what = "text" if self.generates else "class of the model"
            self.notes.append(f"{len(rows) - len(kept)} rows without a text or with no {what} as output left out")
        if not kept:
            raise InputError(f"--served {self.data.served}: no row has a text and an output of this model")
        self.fresh, self.outputs = [str(text) for text, *_ in kept], [str(output) for _, output, _ in kept]
        self.labelled = [number for number, (*_, row) in enumerate(kept) if row.label is not None]
        if self.labelled:
            texts = [self.fresh[number] for number in self.labelled]
            labels = [kept[number][2].label for number in self.labelled]
            source = f"--labels_file {self.data.labels_file}"
            if not self.generates:
                labels = names_of_labels(labels, self.classes, source)
            elif any(not isinstance(label, str) for label in labels):
                raise InputError(f"{source}: the label of a {self.metric} must be a text")
            self.judged = datasets.Dataset.from_dict({self.data.text_column: texts, self.data.label_column: labels})

    def _text_of(self, inputs: Any) -> str | None:
        if isinstance(inputs, dict) and inputs.keys() == {"text"}:
            inputs = inputs["text"]
        return inputs if isinstance(inputs, str) else None

    def _output_of(self, output: Any) -> str | None:
        """Generated text, or the class with the highest score, of a pipeline's result for one input."""
        if not self.generates:
            return best_class(output, self.classes)
        texts = [value for part in parts_of(output) for name, value in part.items() if name.endswith("_text")]
        return texts[0] if texts and isinstance(texts[0], str) else None

    def predict(self, texts: list[str]) -> list[str]:
        """Predict the class name, or generate the output, for each text."""
        data, size = self.data, self.args.per_device_eval_batch_size
        inputs = (self.model, self.tokenizer, texts)
        if not self.generates:
            found, _ = classify_texts(*inputs, batch_size=size, max_length=data.max_length)
            return [decision.label for decision in found]
        options = {"num_beams": data.num_beams, "max_length": data.max_target_length, "prefix": data.source_prefix}
        nbest, _ = decode_texts(*inputs, batch_size=size, max_source_length=data.max_length, **options)
        return [best[0].text for best in nbest]

    def observe_reference(self) -> Side:
        """Predict and measure the texts of the test."""
        texts = list(self.reference[self.data.text_column])
        outputs = self.predict(texts)
        return Side(len(texts), self._samples(texts, outputs), self._compare(self.reference, outputs))

    def observe_fresh(self) -> Side:
        """Measure the fresh texts, and predict them unless they are of a log."""
        outputs, scores = self.outputs or self.predict(self.fresh), None
        if self.judged is not None:
            if self.data.served is not None:
                made = [outputs[number] for number in self.labelled]
            else:
                # The rows with labels are some of the fresh ones.
                of_text = dict(zip(self.fresh, outputs, strict=True))
                made = [of_text[text] for text in self.judged[self.data.text_column]]
            scores = self._compare(self.judged, made)
        return Side(len(self.fresh), self._samples(self.fresh, outputs), scores)

    def _samples(self, texts: list[str], outputs: list[str]) -> dict[str, Sample]:
        lengths, unknown = unknown_shares(self.tokenizer, texts)
        found = {"input length": Sample(lengths), "share of unknown tokens": Sample(unknown, MANN_WHITNEY)}
        if self.generates:
            return found | {"output length": Sample(unknown_shares(self.tokenizer, outputs)[0])}
        return found | {"output classes": Sample(outputs, CHI_SQUARE)}

    def _compare(self, rows: datasets.Dataset, predictions: list[str]) -> np.ndarray:
        """Score predictions from 0 to 100: sentence chrF, or classification accuracy."""
        references = list(rows[self.data.label_column])
        if self.generates:
            return chrf_of_texts(predictions, references)
        return np.array([100.0 * (one == other) for one, other in zip(predictions, references, strict=True)])

    def score(self, rows: datasets.Dataset) -> np.ndarray:
        """Predict and score each row from 0 to 100."""
        return self._compare(rows, self.predict(list(rows[self.data.text_column])))

    def split_judged(self, rows: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
        """Hold out rows at random."""
        parts = rows.train_test_split(test_size=self.data.holdout, seed=self.args.seed)
        return parts["train"], parts["test"]

    def training_task(self, fresh: datasets.Dataset) -> tuple[Task, Any]:
        """Task on old and fresh rows, some of which are for validation."""
        data, seed = self.data, self.args.seed
        learnt = datasets.concatenate_datasets([self.old, fresh]).train_test_split(test_size=0.05, seed=seed)
        flags, task = data, Classification(data, self.args)
        if self.generates:
            names = ("max_target_length", "num_beams", "max_tokens", "source_prefix", "early_stopping_patience")
            shared = {name: getattr(data, name) for name in names}
            columns = {"source_lang": data.text_column, "target_lang": data.label_column}
            flags = TranslationArguments(max_source_length=data.max_length, **columns, **shared)
            task = Translation(flags, self.args)  # type: ignore[assignment]
        task.use({"train": learnt["train"], "validation": learnt["test"]}, known=self.classes or None)
        self.args.choose_metric(("chrf",) if self.generates else task.metrics)
        return task, flags

    def train(self, fit_model: Callable[[], Any], directory: Path) -> None:
        """Train; the new model keeps the generation settings of the monitored one, which it may replace."""
        own = copy.deepcopy(self.model.generation_config) if self.generates else None
        fit_model()
        if own is not None:
            self.model.generation_config = own
            if PartialState().is_main_process:
                own.save_pretrained(directory)
