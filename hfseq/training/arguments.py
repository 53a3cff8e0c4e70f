"""Command-line fields that the sequence-to-sequence recipes share, as dataclasses for `parse_config`."""

import logging
from dataclasses import dataclass, field

import datasets
import torch
from transformers import Seq2SeqTrainingArguments

from hfseq.tokenization import MODELS, NORMALIZATIONS

METRICS = {"bleu": "sacrebleu", "chrf": "chrf", "exact_match": "exact_match"}
"""Name of a score in a recipe's results, and of the metric that gives it."""


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


@dataclass
class PairArguments:
    """Which pairs of texts, how long, and how they are decoded."""

    source_lang: str = field(default="en", metadata={"help": "Source language: the column, or the file's ending."})
    target_lang: str = field(default="de", metadata={"help": "Target language: the column, or the file's ending."})
    dataset_name: str | None = field(default=None, metadata={"help": "Data set of the Hub, or a local folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, JSON lines or Parquet file, or prefix of aligned text files: train.de, train.en."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    test_file: str | None = field(default=None, metadata={"help": "The same for the final test."})
    column_names: str | None = field(
        default=None, metadata={"help": "Columns of CSV and TSV files without a header: en,de."}
    )
    source_prefix: str = field(default="", metadata={"help": "Text before every source, for T5."})
    max_source_length: int = field(default=256, metadata={"help": "Longer sources lose their end, in tokens."})
    max_target_length: int = field(default=256, metadata={"help": "Longer targets lose their end, in tokens."})
    max_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens a batch and process, padding counted, in place of per_device_train_batch_size."},
    )
    num_beams: int = field(default=5, metadata={"help": "Beams of the final test and of the saved model."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better score after which training stops."}
    )


@dataclass
class RecipeArguments(Seq2SeqTrainingArguments):
    """Transformers' training arguments, with defaults for a model from scratch that is evaluated every epoch."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete what an earlier run wrote to output_dir, and start afresh."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep beside the best."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best checkpoint is the result."})
    metric_for_best_model: str | None = field(default="bleu", metadata={"help": "Score that says which is the best."})
    predict_with_generate: bool = field(default=True, metadata={"help": "Whether evaluation generates."})
    generation_num_beams: int | None = field(default=1, metadata={"help": "Beams of the evaluations while training."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate; the default is for a model from scratch."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows generated at once by each process."})
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata={"help": "Whether batches lie in pinned memory."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the training loss."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether logs hide a loss that is no number; such a loss stops the run."}
    )

    def __post_init__(self) -> None:
        """Refuse what would stop a run only after its first epoch, or have it do something unasked."""
        metric = str(self.metric_for_best_model).removeprefix("eval_")
        if metric not in (*METRICS, "loss"):
            raise ValueError(f"unknown --metric_for_best_model {metric!r}; there are {', '.join(METRICS)}, loss")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(f"--num_train_epochs {self.num_train_epochs} trains nothing; give more than 0")
        if not self.predict_with_generate:
            raise ValueError("--predict_with_generate false: the scores are those of generated texts; leave it out")
        if self.do_eval and not (self.do_train or self.do_predict):
            raise ValueError("--do_eval goes with --do_train; to score a model, give --do_predict and --test_file")
        super().__post_init__()
        # Each process reads the data, one of them reports what it dropped.
        if self.process_index:
            logging.getLogger("hfseq").setLevel(logging.ERROR)
            datasets.disable_progress_bars()
