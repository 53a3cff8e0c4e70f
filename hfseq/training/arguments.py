"""Command-line fields that recipes share, as dataclasses for `parse_config`."""

import logging
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import datasets
import torch
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hfseq.data.reading import check_sources, hold_out_validation, read_splits
from hfseq.data.splits import SPLITS
from hfseq.data.streaming import read_stream
from hfseq.errors import InputError, blaming, require
from hfseq.json_files import is_plain_name
from hfseq.tokenization import MODELS, NORMALIZATIONS

TASK_METRICS = {
    "classification": ("accuracy", "f1"),
    "tagging": ("accuracy", "f1", "entity_f1"),
    "language_modeling": ("loss", "perplexity"),
    "seq2seq": ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "exact_match"),
}
"""Tasks of fine-tuning, and their scores, the usual one for the best model first."""
MADE_BY = ("model_type", "model_name_or_path", "config_overrides", "tokenizer_model", "vocab_size", "lowercase")
TRAINED_BY = ("learning_rate", "num_train_epochs", "weight_decay", "warmup_steps")
COMPARED = (*MADE_BY, *TRAINED_BY)
"""What a comparison says of each model: how it is made, and how it is trained."""
METHODS = ("all", "head", "gradual", "lora")
"""What fine-tuning trains."""
_LEAST: dict[str, float] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("early_stopping_patience", "max_tokens", "max_length", "max_source_length", "num_beams"), 1),
    **dict.fromkeys(("max_train_samples", "cache_size", "max_new_tokens", "next_words", "lead", "lora_r"), 1),
    **dict.fromkeys(("num_seeds", "speed_texts", "teacher_num_beams", "num_bootstrap", "generation_num_beams"), 1),
    **dict.fromkeys(("dataloader_num_workers", "seed", "data_seed", "weight_decay", "label_smoothing_factor"), 0),
    **{"eval_accumulation_steps": 1, "neftune_noise_alpha": 0, "augmentations": 0, "max_drop": 0},
    # The token that a text begins with is one.
    **dict.fromkeys(("max_target_length", "generation_max_length"), 2),
}
_MOST: dict[str, float] = {"seed": 2**32 - 1, "label_smoothing_factor": 1}
"""Smallest and largest values of arguments that are numbers."""
_KEPT = {
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "dataloader_drop_last": False,
    "label_names": None,
}
"""Training arguments with which an evaluation does not give the scores of all rows."""


def _check_numbers(arguments: Any) -> None:
    """Refuse arguments that are no finite number, too small or too large, of a dataclass."""
    for one in fields(arguments):
        name, value = one.name, getattr(arguments, one.name)
        if not isinstance(value, int | float):
            continue
        # No gradient is longer than infinity: such a bound cuts none.
        if math.isnan(value) or (math.isinf(value) and name != "max_grad_norm"):
            raise ValueError(f"--{name} {value} is not a finite number")
        if value < _LEAST.get(name, value):
            raise ValueError(f"--{name} {value}: give {_LEAST[name]} or more")
        if value > _MOST.get(name, value):
            raise ValueError(f"--{name} {value}: give {_MOST[name]} or less")


@dataclass
class ModelArguments:
    """Which model: a checkpoint, or a new one of a family with a new tokenizer."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a directory or a Hub name, of hfseq or not."}
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Family to train from scratch, such as hfseq_lstm (the default)."}
    )
    config_overrides: dict | None = field(
        default=None, metadata={"help": "Config fields of a new model, e.g. {hidden_size: 256, dropout: 0.3}."}
    )
    tokenizer_model: str = field(
        default="unigram", metadata={"help": f"Tokenizer trained for a new model: {', '.join(MODELS)}."}
    )
    vocab_size: int = field(default=8000, metadata={"help": "Entries of a new tokenizer, special tokens counted."})
    normalization: str = field(
        default="nfc", metadata={"help": f"Unicode form of a new tokenizer: {', '.join(NORMALIZATIONS)}."}
    )
    lowercase: bool = field(default=False, metadata={"help": "Whether a new tokenizer lowercases."})
    ensemble: list[str] | None = field(
        default=None,
        metadata={"help": "Checkpoints that predict together with --model_name_or_path, by their mean probabilities."},
    )

    def __post_init__(self) -> None:
        """Refuse an ensemble without its first member."""
        if self.ensemble and self.model_name_or_path is None:
            raise ValueError("--ensemble names further members; --model_name_or_path names the first")


DATA_FLAGS = ("--dataset_name", "--train_file", "--validation_file", "--test_file")
"""Flags that name data, in place of a recipe's embedded data."""


@dataclass
class DataArguments:
    """Where the rows come from, and how they are batched."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set of the Hub, or a local folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_file: str | None = field(
        default=None, metadata={"help": "CSV, TSV, JSON lines or Parquet file with the training rows."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    test_file: str | None = field(default=None, metadata={"help": "The same for the final test."})
    column_names: str | None = field(
        default=None,
        metadata={
            "help": "Columns of CSV and TSV files without a header, with commas: text,label. A first line that "
            "repeats them is refused as a header."
        },
    )
    max_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens a batch and process, padding counted, in place of per_device_train_batch_size."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the training rows as they are needed; for data larger than memory."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better score after which training stops."}
    )
    output_file: str | None = field(
        default=None,
        metadata={
            "help": "With --do_predict: predict each text of --test_file, which needs no answers, into this file "
            "(.tsv and .jsonl with scores, else plain text); nothing is written to output_dir."
        },
    )
    overwrite_output_file: bool = field(default=False, metadata={"help": "Whether output_file may exist."})

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        _check_numbers(self)

    @property
    def file_columns(self) -> list[str] | None:
        """The columns of files without a header; None where they have one."""
        return self.column_names.split(",") if self.column_names else None

    def read(
        self,
        columns: Sequence[str],
        embedded: Callable[[], datasets.DatasetDict],
        *,
        train: bool,
        seed: int,
        moses: bool = False,
        label_columns: Sequence[str] = (),
        classes: Callable[[datasets.Dataset], Iterable[Collection[str]]] | None = None,
        num_parts: int = 1,
        running: bool = False,
        validation: bool = False,
    ) -> dict[str, Any]:
        """Read the data that these flags name, or make the embedded data if they name none.

        Args:
            columns: The columns to keep.
            embedded: Makes the embedded data.
            train: Whether there must be training rows, a part of which is held out where no validation rows are given;
                else there must be a test split, and only that is returned; with `validation` what there is of that,
                too.
            seed: Of the holding out.
            moses: As for `read_splits`.
            label_columns: As for `read_splits`.
            classes: As for `hold_out_validation`.
            num_parts: As for `read_stream`.
            running: Whether the rows are running text: empty ones stay, and the last ones are held out.
            validation: See `train`.

        Returns:
            Split to rows; with `streaming` the training rows are a `datasets.IterableDataset`.

        Raises:
            InputError: As `read_splits` and `read_stream`, and for a split that is missing.
        """
        named = any((self.dataset_name, self.train_file, self.validation_file, self.test_file))
        sources: dict[str, Any] = {
            "columns": columns,
            "dataset_name": self.dataset_name,
            "dataset_config_name": self.dataset_config_name,
            "train_file": self.train_file,
            "validation_file": self.validation_file,
            "test_file": self.test_file,
            "column_names": self.file_columns,
            "moses": moses,
            "label_columns": label_columns,
            "keep_empty": running,
        }
        if train and self.streaming:
            return read_stream(**sources, num_parts=num_parts)
        check_sources(columns, self.dataset_name, self.train_file)
        splits = read_splits(**sources) if named else embedded()
        known = next(iter(splits.values())).column_names
        if missing := [column for column in columns if column not in known]:
            raise InputError(
                f"no data are named, and the embedded ones have no column {missing[0]!r}; give --train_file, or leave "
                f"the flag out: there are {', '.join(known)}"
            )
        if train:
            splits = hold_out_validation(splits, seed=seed, in_order=running, classes=classes)
            return datasets.DatasetDict({name: splits[name] for name in SPLITS if name in splits})
        if "test" not in splits:
            raise InputError("--do_predict without --do_train needs --test_file, or a data set with a test split")
        kept = ("validation", "test") if validation else ("test",)
        return datasets.DatasetDict({name: splits[name] for name in kept if name in splits})


@dataclass
class DecodingArguments(DataArguments):
    """Which pairs of texts, how long, and how they are decoded."""

    source_prefix: str = field(default="", metadata={"help": "Text before every source: 'summarize: ' for T5."})
    max_source_length: int = field(default=256, metadata={"help": "Longer sources lose their end, in tokens."})
    max_target_length: int = field(default=256, metadata={"help": "Longer targets lose their end, in tokens."})
    num_beams: int = field(default=5, metadata={"help": "Beams of the final test and of the saved model."})
    length_penalty: float | None = field(
        default=None,
        metadata={"help": "Scores of beams are divided by the length to this power: more, longer texts."},
    )
    num_return_sequences: int = field(default=1, metadata={"help": "Of --output_file: texts for each source."})
    do_sample: bool = field(default=False, metadata={"help": "Of --output_file: whether to draw texts."})
    temperature: float | None = field(default=None, metadata={"help": "Of the drawing."})
    top_k: int | None = field(default=None, metadata={"help": "Likeliest tokens that the drawing is from."})
    top_p: float | None = field(default=None, metadata={"help": "Share of the probability that it is from."})
    replace_unknown: bool = field(
        default=False,
        metadata={"help": "Of --output_file: put the source word attended to most where a word is unknown."},
    )
    score_targets: bool = field(
        default=False,
        metadata={"help": "Of --output_file: log-probabilities of the targets in --test_file, not generated texts."},
    )

    def __post_init__(self) -> None:
        """Refuse flags that would have no effect."""
        super().__post_init__()
        names = ("num_return_sequences", "do_sample", "temperature", "top_k", "top_p")
        fields = type(self).__dataclass_fields__
        given = [name for name in (*names, "replace_unknown") if getattr(self, name) != fields[name].default]
        if self.score_targets and (given or self.length_penalty is not None):
            raise ValueError(f"--score_targets generates nothing; leave --{(*given, 'length_penalty')[0]} out")
        if self.output_file is None and (given or self.score_targets):
            raise ValueError(f"--{(*given, 'score_targets')[0]} goes with --output_file")


@dataclass
class PairArguments(DecodingArguments):
    """Which translations, how long, and how they are decoded."""

    source_lang: str = field(default="en", metadata={"help": "Source language: the column, or the file's ending."})
    target_lang: str = field(default="de", metadata={"help": "Target language: the column, or the file's ending."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, JSON lines or Parquet file, or prefix of aligned text files: train.de, train.en."
        },
    )


@dataclass
class SummaryArguments(DecodingArguments):
    """Which texts and summaries, how long, and how they are decoded."""

    text_column: str = field(default="document", metadata={"help": "Column with the texts."})
    summary_column: str = field(
        default="summary", metadata={"help": "Column with the summary of each, or a list of several."}
    )
    max_source_length: int = field(default=400, metadata={"help": "Longer texts lose their end, in tokens."})
    max_target_length: int = field(default=100, metadata={"help": "Longer summaries lose their end, in tokens."})
    num_beams: int = field(default=4, metadata={"help": "Beams of the final test and of the saved model."})
    lead: int = field(default=1, metadata={"help": "Sentences of the baseline, which are the first of each text."})


@dataclass
class ClassArguments(DataArguments):
    """Which texts and classes."""

    text_column: str = field(default="text", metadata={"help": "Column with the texts."})
    label_column: str = field(default="label", metadata={"help": "Column with the class of each, or a list of them."})
    label_separator: str | None = field(
        default=None, metadata={"help": "What stands between the classes of a row, if it may have several: ';'."}
    )
    max_length: int = field(default=256, metadata={"help": "Longer texts lose their end, in tokens."})
    class_weights: dict | str | None = field(
        default=None, metadata={"help": "Weights of the classes in the loss: balanced, or {class: weight}."}
    )

    def __post_init__(self) -> None:
        """Refuse a separator that separates nothing."""
        super().__post_init__()
        if self.label_separator == "":
            raise ValueError("--label_separator is empty; give what stands between classes, or leave it out")


@dataclass
class DistillationArguments(ClassArguments):
    """Which texts and classes, who teaches, and how."""

    task: str = field(default="classification", metadata={"help": "What is distilled: classification, translation."})
    teacher: str | None = field(
        default=None, metadata={"help": "Classifier that teaches: a directory or a Hub name; by default a new one."}
    )
    teacher_type: str = field(default="bert", metadata={"help": "Family of a new teacher."})
    teacher_overrides: dict | None = field(default=None, metadata={"help": "Config fields of a new teacher."})
    teacher_learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of a new teacher."})
    teacher_epochs: float = field(default=4.0, metadata={"help": "Epochs of a new teacher, with all classes."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Rows whose classes the student sees; of the others it sees the text alone."}
    )
    augmentations: int = field(
        default=20, metadata={"help": "Variants made of each training text, for the teacher to label."}
    )
    mask_probability: float = field(default=0.1, metadata={"help": "Of each word of a variant, to be masked."})
    replace_probability: float = field(
        default=0.0, metadata={"help": "Of each word of a variant, to be replaced by one that the teacher finds near."}
    )
    ngram_probability: float = field(
        default=0.25, metadata={"help": "Of a variant, to be a run of one to five words alone."}
    )
    distillation_loss: str = field(
        default="mse", metadata={"help": "mse of the logits (Tang et al. 2019), or kl (Hinton et al. 2015)."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Of kl."})
    hard_weight: float = field(default=0.0, metadata={"help": "Weight of the right class beside the teacher's."})
    distillation_epochs: float = field(
        default=3.0, metadata={"help": "Epochs of texts and variants; --num_train_epochs are those of texts alone."}
    )
    teacher_embeddings: bool = field(
        default=False,
        metadata={"help": "Whether the student's embeddings start from what the teacher says of each of its tokens."},
    )
    teacher_tokenizer: bool = field(
        default=False, metadata={"help": "Whether the student has the teacher's tokenizer in place of a new one."}
    )
    teacher_dtype: str = field(
        default="float32",
        metadata={"help": "Numbers that the teacher labels with: float32, or bfloat16, which may be faster."},
    )
    speed_texts: int = field(default=200, metadata={"help": "Texts of the test that speed is measured on."})

    def __post_init__(self) -> None:
        """Refuse impossible values, and what distillation does not have."""
        super().__post_init__()
        if self.distillation_loss not in ("mse", "kl"):
            raise ValueError(f"unknown --distillation_loss {self.distillation_loss!r}; there are mse, kl")
        if self.teacher_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"unknown --teacher_dtype {self.teacher_dtype!r}; there are float32, bfloat16")
        for name in ("mask_probability", "replace_probability", "ngram_probability", "hard_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)} is not between 0 and 1")
        if self.temperature <= 0 or self.distillation_epochs <= 0:
            raise ValueError("--temperature and --distillation_epochs must be more than 0")
        given = {"streaming": self.streaming, "output_file": self.output_file, "class_weights": self.class_weights}
        for name, value in (given | {"label_separator": self.label_separator}).items():
            if value:
                raise ValueError(f"--{name} is not of distillation; leave it out")


@dataclass
class MonitoringArguments(ClassArguments):
    """Which model is watched, on which texts, within which bounds."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The model: a classifier, translator or summarizer; a directory or Hub name."}
    )
    fresh_file: str | None = field(
        default=None,
        metadata={
            "help": "Texts that the model meets now, as --test_file; without the label column only drift shows."
        },
    )
    max_drop: float = field(default=2.0, metadata={"help": "Points that the score may drop."})
    alpha: float = field(default=0.01, metadata={"help": "A test of drift with a smaller p-value is an alarm."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Samples for the interval of the drop."})
    max_target_length: int = field(default=256, metadata={"help": "Of a translator or summarizer, in tokens."})
    num_beams: int = field(default=1, metadata={"help": "The same: its beams."})
    source_prefix: str = field(default="", metadata={"help": "The same: text before every source."})
    retrain: bool = field(
        default=False,
        metadata={
            "help": "Train on from the model with --train_file and a part of --fresh_file; keep what is better."
        },
    )
    holdout: float = field(
        default=0.3, metadata={"help": "Share of the fresh rows that judge the new model and do not train it."}
    )

    def __post_init__(self) -> None:
        """Refuse what is missing or impossible."""
        super().__post_init__()
        for name in ("model_name_or_path", "test_file", "fresh_file"):
            if getattr(self, name) is None:
                raise ValueError(f"--{name} is missing: the model, its --test_file and a --fresh_file are compared")
        if self.retrain and self.train_file is None:
            raise ValueError("--retrain needs --train_file, the rows that the model has learnt")
        if not 0 < self.holdout < 1 or not 0 <= self.alpha <= 1:
            raise ValueError("--holdout must lie between 0 and 1, and --alpha from 0 to 1")
        given: dict[str, Any] = {"streaming": self.streaming, "output_file": self.output_file}
        given |= {"dataset_name": self.dataset_name}
        given |= {"class_weights": self.class_weights, "validation_file": self.validation_file}
        for name, value in (given | {"label_separator": self.label_separator}).items():
            if value:
                raise ValueError(f"--{name} is not of monitoring; leave it out")


@dataclass
class TranslationDistillationArguments(PairArguments):
    """Which pairs of texts, who teaches, and how."""

    task: str = field(default="translation", metadata={"help": "What is distilled: classification, translation."})
    teacher: str | None = field(
        default=None, metadata={"help": "Translator that teaches: a directory or a Hub name; it must be given."}
    )
    teacher_num_beams: int = field(default=5, metadata={"help": "Beams with which it translates the training texts."})
    speed_texts: int = field(default=50, metadata={"help": "Texts of the test that speed is measured on."})

    def __post_init__(self) -> None:
        """Refuse impossible values, and what distillation does not have."""
        super().__post_init__()
        if self.teacher is None:
            raise ValueError("--task translation needs --teacher, such as what recipes/translation.py has trained")
        for name, value in {"streaming": self.streaming, "output_file": self.output_file}.items():
            if value:
                raise ValueError(f"--{name} is not of distillation; leave it out")


@dataclass
class ComparisonArguments(ClassArguments):
    """Which texts and classes, and which models are compared."""

    models: dict | None = field(
        default=None,
        metadata={
            "help": "Name to model: {LSTM: {model_type: hfseq_lstm, learning_rate: 2e-3}, MiniLM: "
            "{model_name_or_path: DIR}}, with any of model_type, model_name_or_path, config_overrides, "
            "tokenizer_model, vocab_size, lowercase, learning_rate, num_train_epochs, weight_decay, warmup_steps."
        },
    )
    pretrained: list[str] | None = field(
        default=None, metadata={"help": "Checkpoints to compare, too, with --pretrained_learning_rate."}
    )
    pretrained_learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of --pretrained."})
    num_seeds: int = field(
        default=3, metadata={"help": "Runs of each model; their seeds are --seed and the next ones."}
    )
    speed_texts: int = field(default=200, metadata={"help": "Texts of the test that speed is measured on."})

    def __post_init__(self) -> None:
        """Refuse impossible values, and what a comparison does not have."""
        super().__post_init__()
        for name, model in (self.models or {}).items():
            if not is_plain_name(str(name)):
                raise ValueError(f"models: {name!r} names a folder of runs, so give a plain name")
            if not isinstance(model, dict) or not ("model_type" in model) ^ ("model_name_or_path" in model):
                raise ValueError(f"models: {name} needs a model_type or a model_name_or_path")
            if unknown := sorted(model.keys() - set(COMPARED)):
                raise ValueError(f"models: {name} has an unknown {unknown[0]}; there are {', '.join(COMPARED)}")
            for setting in model.keys() & set(TRAINED_BY):
                try:
                    # YAML takes 1e-3 for a string.
                    model[setting] = float(model[setting])
                except (TypeError, ValueError):
                    raise ValueError(f"models: {name}: {setting} {model[setting]!r} is not a number") from None
        given = {"streaming": self.streaming, "output_file": self.output_file, "class_weights": self.class_weights}
        for name, value in (given | {"label_separator": self.label_separator}).items():
            if value:
                raise ValueError(f"--{name} is not of a comparison; leave it out")


@dataclass
class TaskArguments(ClassArguments, DecodingArguments):
    """Which task, which rows, and what of the model is trained."""

    task: str = field(default="classification", metadata={"help": f"What to learn: {', '.join(TASK_METRICS)}."})
    method: str = field(
        default="all",
        metadata={
            "help": "What trains: all weights; the head alone; gradual: one layer more each epoch, from the top "
            "(Howard & Ruder 2018); lora: low-rank adapters (Hu et al. 2022), merged in the end."
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={"help": "Divisor of the learning rate from each layer to the one below; gradual: 2.6, else 1."},
    )
    slanted_triangular: bool | None = field(
        default=None, metadata={"help": "Slanted triangular learning rates; by default with --method gradual."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, divided by their rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt, in place of those usual for the type of model."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many rows alone."})
    text_column: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Column with the texts: by default text, tokens (tagging), document (seq2seq)."},
    )
    label_column: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Column with what is learnt: by default label, tags, summary."}
    )
    block_size: int = field(default=128, metadata={"help": "Language modelling: tokens of a row."})
    max_length: int = field(
        default=256, metadata={"help": "Classification and tagging: longer texts lose their end, in tokens."}
    )

    def __post_init__(self) -> None:
        """Refuse what no task or method has."""
        super().__post_init__()
        for name, known in (("task", TASK_METRICS), ("method", METHODS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown --{name} {getattr(self, name)!r}; there are {', '.join(known)}")
        if self.block_size < 2:
            raise ValueError(f"--block_size {self.block_size}: give 2 or more")
        if self.method == "gradual" and self.streaming:
            raise ValueError("--method gradual unfreezes a layer each epoch, and --streaming has no epochs")


@dataclass
class TaggingArguments(TaskArguments):
    """Which words and tags."""

    task: str = field(default="tagging", metadata={"help": "Always tagging."})

    def __post_init__(self) -> None:
        """Refuse what a tagger does not do."""
        super().__post_init__()
        if self.task != "tagging" or self.method != "all":
            raise ValueError("recipes/finetuning.py has other tasks and methods than a tagger of which all trains")
        if self.output_file is not None:
            raise ValueError("--output_file: pipeline('token-classification') tags texts; leave it out")


@dataclass
class TextArguments(DataArguments):
    """Which running text, how it is read, and what is written after a prompt."""

    text_column: str = field(
        default="text", metadata={"help": "Column with the text, a line or more a row; a file may also be plain text."}
    )
    block_size: int = field(
        default=70, metadata={"help": "Tokens of a window, through which gradients go back (truncated BPTT)."}
    )
    vary_block_size: bool = field(
        default=True, metadata={"help": "Whether windows vary in length in training (Merity et al. 2018, 4.1)."}
    )
    carry_state: bool = field(
        default=True, metadata={"help": "Whether each window starts from the state after the one before."}
    )
    cache_size: int | None = field(
        default=None,
        metadata={
            "help": "Final test: also with a continuous cache of so many tokens (Grave et al. 2017), whose flatness "
            "and weight are chosen on the validation text."
        },
    )
    prompt: str | None = field(
        default=None, metadata={"help": "With --do_predict: a text to go on with, as it is written."}
    )
    max_new_tokens: int = field(default=50, metadata={"help": "Of --prompt: tokens to write."})
    next_words: int = field(default=10, metadata={"help": "Of --prompt: likeliest next tokens to show."})
    do_sample: bool = field(default=False, metadata={"help": "Of --prompt: whether to draw tokens."})
    temperature: float | None = field(default=None, metadata={"help": "Of the drawing."})
    top_k: int | None = field(default=None, metadata={"help": "Likeliest tokens that the drawing is from."})
    top_p: float | None = field(default=None, metadata={"help": "Share of the probability that it is from."})

    def __post_init__(self) -> None:
        """Refuse what a language model does not have, and impossible sizes."""
        super().__post_init__()
        if self.block_size < 1:
            raise ValueError(f"--block_size {self.block_size}: give 1 or more")
        if self.max_tokens is not None:
            raise ValueError("--max_tokens: batches are --per_device_train_batch_size windows of --block_size tokens")
        if self.output_file is not None:
            raise ValueError("--output_file: a language model scores a text, or goes on with --prompt")


@dataclass
class RecipeArguments(TrainingArguments):
    """Transformers' training arguments, with defaults for a model from scratch that is evaluated every epoch."""

    metrics: ClassVar[tuple[str, ...]] = ()
    """Scores that an evaluation gives beside the loss, the usual one for the best model first."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete what an earlier run wrote to output_dir, and start afresh."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep beside the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best checkpoint is the result."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Score that says which is the best, by default the recipe's first."}
    )
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate; the default is for a model from scratch."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows evaluated at once by each process."})
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata={"help": "Whether batches lie in pinned memory."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the training loss."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether logs hide a loss that is no number; such a loss stops the run."}
    )
    average_checkpoints: int | None = field(
        default=None,
        metadata={"help": "The result is the mean of the weights of so many checkpoints, the last ones of the run."},
    )
    hp_search: int | None = field(
        default=None, metadata={"help": "Search hp_space with so many trials of optuna, in place of one training."}
    )
    hp_space: dict | None = field(
        default=None,
        metadata={
            "help": "What is searched: {learning_rate: {low: 1e-4, high: 1e-2, log: true}, "
            "config_overrides.hidden_size: [128, 256]}."
        },
    )

    license: str | None = field(
        default=None, metadata={"help": "The Hub's name of the licence of the weights, for the card: apache-2.0."}
    )

    def __post_init__(self) -> None:
        """Refuse what would stop a run only after its first epoch, or have it do something unasked."""
        if self.hub_token is not None:
            # For this process alone: the arguments are saved beside each checkpoint.
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(f"--license {self.license!r} is no name that the Hub knows; give one such as apache-2.0")
        if self.push_to_hub and (self.hp_search or (self.do_predict and not self.do_train)):
            raise ValueError("--push_to_hub publishes what a run trains; hfseq.publish(DIRECTORY, NAME) any model")
        if self.push_to_hub and "checkpoint" in str(getattr(self.hub_strategy, "value", self.hub_strategy)):
            raise ValueError("--hub_strategy: a run is published at its end, with its scores; leave it out")
        self.metric_for_best_model = self.metric_for_best_model or (*self.metrics, "loss")[0]
        metric = self.metric_for_best_model.removeprefix("eval_")
        if metric not in (*self.metrics, "loss"):
            raise ValueError(
                f"unknown --metric_for_best_model {metric!r}; there are {', '.join((*self.metrics, 'loss'))}"
            )
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(f"--num_train_epochs {self.num_train_epochs} trains nothing; give more than 0")
        if self.do_eval and not (self.do_train or self.do_predict):
            raise ValueError("--do_eval goes with --do_train; to score a model, give --do_predict and --test_file")
        if self.average_checkpoints is not None:
            if self.average_checkpoints < 2:
                raise ValueError(f"--average_checkpoints {self.average_checkpoints}: give 2 or more")
            if self.save_total_limit and self.save_total_limit < self.average_checkpoints:
                raise ValueError(
                    f"--average_checkpoints {self.average_checkpoints} needs as many checkpoints; raise "
                    f"--save_total_limit from {self.save_total_limit}"
                )
        if self.hp_search is not None and self.hp_search < 1:
            raise ValueError(f"--hp_search {self.hp_search}: give the number of trials, 1 or more")
        if self.hp_search is not None and self.do_predict and not self.do_train:
            raise ValueError("--hp_search trains; leave --do_predict out")
        if self.hp_search is not None:
            require("optuna", extra="hpo", use="--hp_search")
        if self.use_liger_kernel:
            require("liger_kernel", use="--use_liger_kernel")
        if self.deepspeed is not None:
            require("deepspeed", use="--deepspeed")
        _check_numbers(self)
        for name, kept in _KEPT.items():
            if getattr(self, name) != kept:
                raise ValueError(f"--{name}: the scores of a recipe are those of all rows; leave it out")
        super().__post_init__()
        self._check_libraries()
        self.hub_strategy = HubStrategy.END
        # Each process reads the data, one of them reports what it dropped.
        if self.process_index:
            logging.getLogger("hfseq").setLevel(logging.ERROR)
            datasets.disable_progress_bars()

    def _check_libraries(self) -> None:
        """Make in small what a trainer makes from these arguments, so that what is refused does not wait for the data.

        A tracker or an optimizer may lack its package, a schedule an argument, a loader its workers.
        """
        with blaming("--report_to"):
            for tracker in get_reporting_integration_callbacks(self.report_to):
                # Half made, some complain a second time when they are collected.
                type("Tracker", (tracker,), {"__del__": lambda _: None})()
        model: Any = torch.nn.ParameterList([torch.zeros(1)])  # which draws no random numbers
        # Whether there are modules of these names is for the real model to say.
        if self.optim_target_modules is None:
            with blaming(f"--optim {OptimizerNames(self.optim).value}"):
                kind, settings = Trainer.get_optimizer_cls_and_kwargs(self, model)
                if kind.__module__.startswith("torch.optim"):
                    kind(model.parameters(), **settings)
        with blaming(
            f"--lr_scheduler_type {SchedulerType(self.lr_scheduler_type).value} and its --lr_scheduler_kwargs"
        ):
            get_scheduler(
                self.lr_scheduler_type,
                torch.optim.SGD(model.parameters(), lr=self.learning_rate),
                num_warmup_steps=self.get_warmup_steps(100),
                num_training_steps=100,
                scheduler_specific_kwargs=self.lr_scheduler_kwargs,  # type: ignore[arg-type]
            )
        with blaming("--dataloader_…"):
            workers, persistent = self.dataloader_num_workers, self.dataloader_persistent_workers
            factor, context = self.dataloader_prefetch_factor, self.dataloader_multiprocessing_context
            torch.utils.data.DataLoader(
                [0],  # type: ignore[arg-type]
                num_workers=workers,
                persistent_workers=persistent,
                prefetch_factor=factor,
                multiprocessing_context=context,
            )
        if self.torch_compile:
            with blaming("--torch_compile_…"):
                torch.compile(model, backend=self.torch_compile_backend or "inductor", mode=self.torch_compile_mode)

    def evaluate_by_steps(self) -> None:
        """Have a run on a stream, which has no epochs, evaluate and save by steps: by default ten times.

        Raises:
            InputError: There is no number of steps, or an impossible one.
        """
        if self.max_steps <= 0:
            raise InputError("--streaming does not know how many rows there are; give --max_steps")
        every = self.eval_steps or max(1, self.max_steps // 10)
        if every < 0:
            raise InputError(f"--eval_steps {every} is below 0")
        # Below 1 it is a share of all steps.
        every = int(every) if every >= 1 else math.ceil(every * self.max_steps)
        if self.eval_strategy == IntervalStrategy.EPOCH:
            self.eval_strategy = IntervalStrategy.STEPS
        self.eval_steps = every
        if self.save_strategy == SaveStrategy.EPOCH:
            self.save_strategy, self.save_steps = SaveStrategy.STEPS, every


@dataclass
class GenerationArguments(RecipeArguments, Seq2SeqTrainingArguments):
    """The same for a sequence-to-sequence model, which is evaluated by generating."""

    predict_with_generate: bool = field(default=True, metadata={"help": "Whether evaluation generates."})
    generation_num_beams: int | None = field(default=1, metadata={"help": "Beams of the evaluations while training."})

    def __post_init__(self) -> None:
        """Refuse scores of texts that are not generated."""
        if not self.predict_with_generate:
            raise ValueError("--predict_with_generate false: the scores are those of generated texts; leave it out")
        super().__post_init__()


@dataclass
class TranslationArguments(GenerationArguments):
    """Training arguments of a translator."""

    metrics = ("bleu", "chrf", "exact_match")


@dataclass
class SummarizationArguments(GenerationArguments):
    """Training arguments of a summarizer."""

    metrics = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass
class LanguageModelingArguments(RecipeArguments):
    """Training arguments of a language model; the best one has the smallest loss."""

    metrics = ("perplexity", "word_perplexity")

    def __post_init__(self) -> None:
        """Less of each of the scores is better."""
        super().__post_init__()
        self.greater_is_better = False


@dataclass
class ClassificationArguments(RecipeArguments):
    """Training arguments of a classifier."""

    metrics = ("accuracy", "f1")


@dataclass
class FinetuningArguments(GenerationArguments):
    """Training arguments of fine-tuning."""

    metrics = tuple(dict.fromkeys(name for names in TASK_METRICS.values() for name in names if name != "loss"))

    learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate; the default is for a pretrained Transformer."}
    )

    def __post_init__(self) -> None:
        """Remember what was asked for, since the task decides the rest."""
        self._asked = (self.metric_for_best_model, self.greater_is_better)
        super().__post_init__()

    def choose_metric(self, task: str) -> None:
        """Let the task say what the best model is, unless the user did.

        Raises:
            InputError: The task has no such score.
        """
        metric, greater = self._asked
        names = TASK_METRICS[task]
        metric = metric or names[0]
        if metric.removeprefix("eval_") not in (*names, "loss"):
            raise InputError(f"--task {task} has no --metric_for_best_model {metric}; there are {', '.join(names)}")
        lower = metric.removeprefix("eval_") in ("loss", "perplexity")
        self.metric_for_best_model, self.greater_is_better = metric, not lower if greater is None else greater


@dataclass
class TaggingTrainingArguments(FinetuningArguments):
    """Training arguments of a tagger."""

    metrics = TASK_METRICS["tagging"]

    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate; the default is for a model from scratch."}
    )
