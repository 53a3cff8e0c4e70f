"""Monitoring of a trained model: data, predictions, and retraining on fresh data."""

import copy
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from accelerate import PartialState
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from hfseq.data.reading import Columns, check_sources, read_file, shorten_list
from hfseq.errors import InputError, MissingColumn
from hfseq.inference.classify import classify_texts
from hfseq.inference.generate import decode_texts
from hfseq.inference.loading import load_config, load_trained, problem_of
from hfseq.tasks.arguments import TranslationArguments
from hfseq.tasks.base import Task
from hfseq.tasks.classification import Classification
from hfseq.tasks.seq2seq import Translation
from hfseq.training.drift import chrf_of_texts
from hfseq.training.run import Run, fit


class Monitored:
    """Trained classifier, translator or summarizer with the text files that it is monitored on.

    Args:
        data: Arguments for model, files and lengths.
        args: Training arguments.

    Attributes:
        generates: Whether the model generates texts.
        classes: Class names of a classifier; empty for generation.

    Raises:
        InputError: The model cannot be loaded, or has an unsupported task.
    """

    def __init__(self, data: Any, args: Any) -> None:
        self.data, self.args = data, args
        config = load_config(data.model_name_or_path)
        classifies = any(name.endswith("Classification") for name in config.architectures or ())
        self.generates = bool(config.is_encoder_decoder) and not classifies
        auto_class = AutoModelForSeq2SeqLM if self.generates else AutoModelForSequenceClassification
        self.model, self.tokenizer = load_trained(auto_class, data.model_name_or_path)
        if not self.generates and problem_of(self.model.config) != "single_label_classification":
            raise InputError("monitoring supports single-label classifiers, translators and summarizers")
        self.model.to(args.device)
        names = cast(dict[int, str], self.model.config.id2label)
        self.classes = [] if self.generates else [name for _, name in sorted(names.items())]

    def read_rows(self, path: str, flag: str) -> datasets.Dataset:
        """Read the labelled rows of a file; classes may be given as names or ids.

        Raises:
            InputError: The file is invalid, or a class is unknown to the model.
        """
        text, label = self.data.text_column, self.data.label_column
        rows = self._read(path, flag, text, label)
        if self.generates:
            return rows
        # Models trained without class names have classes such as LABEL_1.
        numbers = {str(number): name for number, name in enumerate(self.classes)}
        found = [str(value).strip() for value in rows[label]]
        # Decided for the whole column: a single value is ambiguous if class names are digits.
        if not {*found} <= {*self.classes} and {*found} <= {*numbers}:
            found = [numbers[value] for value in found]
        if unknown := sorted({*found} - {*self.classes}):
            known = shorten_list(self.classes)
            raise InputError(f"{flag} {path}: class {unknown[0]!r} is not one of the model's: {known}")
        return datasets.Dataset.from_dict({text: rows[text], label: found})

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

    def score(self, rows: datasets.Dataset, predictions: list[str] | None = None) -> np.ndarray:
        """Score each row from 0 to 100: sentence chrF, or classification accuracy."""
        if predictions is None:
            predictions = self.predict(list(rows[self.data.text_column]))
        references = list(rows[self.data.label_column])
        if self.generates:
            return chrf_of_texts(predictions, references)
        return np.array([100.0 * (one == other) for one, other in zip(predictions, references, strict=True)])

    def retrain(
        self, run: Run, old: datasets.Dataset, reference: datasets.Dataset, fresh: datasets.Dataset
    ) -> list[str]:
        """Continue training on old and fresh rows, and keep the new model if it is better; return report lines.

        Args:
            run: The run.
            old: Training rows of the model.
            reference: Test rows of the model.
            fresh: Fresh rows, part of which is held out to evaluate the new model.
        """
        args, data = self.args, self.data
        target = Path(str(args.output_dir)) / "retrained"
        new = target.with_name("retrained.partial")
        parts = fresh.train_test_split(test_size=data.holdout, seed=args.seed)
        judges = {"test rows": reference, "held-out fresh rows": parts["test"]}
        learnt = datasets.concatenate_datasets([old, parts["train"]]).train_test_split(test_size=0.05, seed=args.seed)
        before = self._means(judges)
        run.log(f"\nretraining on {len(old)} old and {len(parts['train'])} fresh rows")
        task, flags = self._task()
        task.use({"train": learnt["train"], "validation": learnt["test"]}, known=self.classes or None)
        args.choose_metric(("chrf",) if self.generates else task.metrics)
        own = copy.deepcopy(self.model.generation_config) if self.generates else None
        fit(replace(run, data=flags), task, self.model, self.tokenizer, new)
        if own is not None:
            # The new model keeps the generation settings of the monitored one, which it may replace.
            self.model.generation_config = own
            if PartialState().is_main_process:
                own.save_pretrained(new)
        after = self._means(judges)
        better = all(after[name] >= before[name] for name in judges) and after != before
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            shutil.rmtree(target if better else new, ignore_errors=True)
            if better:
                new.rename(target)
        lines = ["## Retrained", "", "| | before | after |", "|---|---|---|"]
        lines += [f"| {name} | {before[name]:.2f} | {after[name]:.2f} |" for name in judges]
        if better:
            return [*lines, "", f"The new model is better and is kept: {target}"]
        return [*lines, "", "The new model is not better on both; the old one is kept, and the new one is deleted."]

    def _means(self, judges: Mapping[str, datasets.Dataset]) -> dict[str, float]:
        """Return the mean score on each set of rows."""
        return {name: float(self.score(rows).mean()) for name, rows in judges.items()}

    def _task(self) -> tuple[Task, Any]:
        """Return the task of the model and its data arguments."""
        data = self.data
        if not self.generates:
            return Classification(data, self.args), data
        names = ("max_target_length", "num_beams", "max_tokens", "source_prefix", "early_stopping_patience")
        shared = {name: getattr(data, name) for name in names}
        flags = TranslationArguments(
            source_lang=data.text_column, target_lang=data.label_column, max_source_length=data.max_length, **shared
        )
        return Translation(flags, self.args), flags
