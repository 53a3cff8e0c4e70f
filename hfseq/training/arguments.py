"""Command-line fields that recipes share, as dataclasses for `parse_config`."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import datasets
import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hfseq.data.cldr import SPLITS
from hfseq.data.errors import InputError
from hfseq.data.reading import hold_out_validation, read_splits
from hfseq.tokenization import MODELS, NORMALIZATIONS


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
        default=None, metadata={"help": "Columns of CSV and TSV files without a header, with commas: text,label."}
    )
    max_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens a batch and process, padding counted, in place of per_device_train_batch_size."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better score after which training stops."}
    )

    def read(
        self,
        columns: Sequence[str],
        embedded: Callable[[], datasets.DatasetDict],
        *,
        train: bool,
        seed: int,
        moses: bool = False,
        label_columns: Sequence[str] = (),
    ) -> datasets.DatasetDict:
        """Read the data that these flags name, or make the embedded data if they name none.

        Args:
            columns: The columns to keep.
            embedded: Makes the embedded data.
            train: Whether there must be training rows, a part of which is held out where no validation rows are given;
                else there must be a test split, and only that is returned.
            seed: Of the holding out.
            moses: As for `read_splits`.
            label_columns: As for `read_splits`.

        Raises:
            InputError: As `read_splits`, and for a split that is missing.
        """
        if not any((self.dataset_name, self.train_file, self.validation_file, self.test_file)):
            splits = embedded()
        else:
            splits = read_splits(
                columns=columns,
                dataset_name=self.dataset_name,
                dataset_config_name=self.dataset_config_name,
                train_file=self.train_file,
                validation_file=self.validation_file,
                test_file=self.test_file,
                column_names=self.column_names.split(",") if self.column_names else None,
                moses=moses,
                label_columns=label_columns,
            )
        if train:
            splits = hold_out_validation(splits, seed=seed)
            return datasets.DatasetDict({name: splits[name] for name in SPLITS if name in splits})
        if "test" not in splits:
            raise InputError("--do_predict without --do_train needs --test_file, or a data set with a test split")
        return datasets.DatasetDict(test=splits["test"])


@dataclass
class PairArguments(DataArguments):
    """Which pairs of texts, how long, and how they are decoded."""

    source_lang: str = field(default="en", metadata={"help": "Source language: the column, or the file's ending."})
    target_lang: str = field(default="de", metadata={"help": "Target language: the column, or the file's ending."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, JSON lines or Parquet file, or prefix of aligned text files: train.de, train.en."
        },
    )
    source_prefix: str = field(default="", metadata={"help": "Text before every source, for T5."})
    max_source_length: int = field(default=256, metadata={"help": "Longer sources lose their end, in tokens."})
    max_target_length: int = field(default=256, metadata={"help": "Longer targets lose their end, in tokens."})
    num_beams: int = field(default=5, metadata={"help": "Beams of the final test and of the saved model."})


@dataclass
class SummaryArguments(DataArguments):
    """Which texts and summaries, how long, and how they are decoded."""

    text_column: str = field(default="document", metadata={"help": "Column with the texts."})
    summary_column: str = field(
        default="summary", metadata={"help": "Column with the summary of each, or a list of several."}
    )
    source_prefix: str = field(default="", metadata={"help": "Text before every source: 'summarize: ' for T5."})
    max_source_length: int = field(default=400, metadata={"help": "Longer texts lose their end, in tokens."})
    max_target_length: int = field(default=100, metadata={"help": "Longer summaries lose their end, in tokens."})
    num_beams: int = field(default=4, metadata={"help": "Beams of the final test and of the saved model."})
    lead: int = field(default=1, metadata={"help": "Sentences of the baseline, which are the first of each text."})

    def __post_init__(self) -> None:
        """Refuse a baseline of no sentences."""
        if self.lead < 1:
            raise ValueError(f"--lead {self.lead}: give the number of sentences, 1 or more")


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

    def __post_init__(self) -> None:
        """Refuse what would stop a run only after its first epoch, or have it do something unasked."""
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
        super().__post_init__()
        # Each process reads the data, one of them reports what it dropped.
        if self.process_index:
            logging.getLogger("hfseq").setLevel(logging.ERROR)
            datasets.disable_progress_bars()


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
class ClassificationArguments(RecipeArguments):
    """Training arguments of a classifier."""

    metrics = ("accuracy", "f1")
