"""Command-line fields of the tasks: where the rows come from, their columns, lengths and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from hfseq.data.audio import read_audio_splits
from hfseq.data.fasta import ALPHABETS, PLACE, is_sequence_file, read_labelled
from hfseq.data.interactions import (
    InteractionColumns,
    Session,
    hub_interactions,
    leave_one_out,
    read_interactions,
    session_rows,
    split_by_time,
)
from hfseq.data.reading import check_sources, hold_out_validation, read_splits
from hfseq.data.splits import SPLITS
from hfseq.data.streaming import read_stream
from hfseq.data.video import read_clip_splits, split_blocks
from hfseq.errors import InputError
from hfseq.lazy import datasets

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
"""Kinds of labels, by transformers' names."""
SPEECH_HEADS = ("ctc", "seq2seq", "classification")
"""Heads of models that read speech."""
SEQUENCE_TASKS = ("tagging", "classification")
"""Tasks of DNA and proteins."""
MIXTURE_COMPONENTS = ("markov", "ngram", "cache")
"""Components that a recommender may be mixed with."""
INTERACTION_SPLITS = ("leave_one_out", "time")
"""Ways to split the interactions of one file."""
VIDEO_TASKS = ("frames", "captions", "gestures")
"""Tasks of video."""
ANOMALY_HEADS = ("prediction", "causal_lm")
"""Heads of models that find anomalies, in numbers and in events."""
DATA_FLAGS = ("--dataset_name", "--train_file", "--validation_file", "--test_file")
"""Flags that name data, in place of a recipe's embedded data."""

_LEAST: dict[str, float] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("early_stopping_patience", "max_tokens", "max_length", "max_source_length", "num_beams"), 1),
    **dict.fromkeys(("max_train_samples", "max_new_tokens", "next_words", "lead", "lora_r"), 1),
    **dict.fromkeys(("cache_size", "ngram_order"), 1),
    **dict.fromkeys(("subword_samples", "subword_alpha"), 0),
    **dict.fromkeys(("num_seeds", "speed_texts", "teacher_num_beams", "num_bootstrap", "generation_num_beams"), 1),
    **dict.fromkeys(("dataloader_num_workers", "seed", "data_seed", "weight_decay", "label_smoothing_factor"), 0),
    **{
        "eval_accumulation_steps": 1,
        "block_size": 1,
        "average_checkpoints": 2,
        "sampling_rate": 1,
        "lm_weight": 0,
        "kmer_size": 1,
    },
    **dict.fromkeys(("neftune_noise_alpha", "rdrop_alpha", "adversarial_epsilon"), 0),
    **{"augmentations": 0, "max_drop": 0, "ets_windows": 0},
    **dict.fromkeys(("prediction_length", "context_length", "seasonality", "train_stride", "backtest_stride"), 1),
    **dict.fromkeys(("num_test_windows", "num_validation_windows", "num_fresh_windows", "num_samples"), 1),
    **dict.fromkeys(("short_window", "long_window", "save_every"), 1),
    **{"hold": 0, "false_alarms": 0, "kmer_size": 1, "top_k": 1},
    **dict.fromkeys(("coordinates", "num_frames", "frame_stride"), 1),
    "block_gap": 0,
    # The BOS token is one of them.
    **dict.fromkeys(("max_target_length", "generation_max_length"), 2),
}
_MOST: dict[str, float] = {"seed": 2**32 - 1, "label_smoothing_factor": 1}
_HEADS_OF = {
    **{"text_column": ("ctc", "seq2seq"), "num_beams": ("ctc", "seq2seq"), "max_target_length": ("seq2seq",)},
    **{"label_column": ("classification",), "class_weights": ("classification",), "lm_model": ("ctc",)},
}
"""Flags of speech and the heads that they are for."""
_EVENT_FLAGS = ("event_columns", "number_columns", "event_gaps")
"""Flags of anomaly detection that are for events."""

_TASK_OF = {
    "mask_column": "tagging",
    **dict.fromkeys(("kmer_size", "reverse_complement", "class_weights"), "classification"),
}
"""Flags of DNA and proteins and the task that they are for."""

_VIDEO_TASK_OF = {
    **dict.fromkeys(("label_column", "class_weights", "augmentations", "velocities"), "gestures"),
    **dict.fromkeys(("text_column", "num_beams", "max_target_length"), "captions"),
    **dict.fromkeys(("context_length", "prediction_length", "train_stride", "point_scale"), "frames"),
}
"""Flags of video and the task that they are for."""

Value = TypeVar("Value")


def flag(default: Value, text: str) -> Value:
    """Field of a dataclass of arguments, with the text that `--help` shows."""
    return field(default=default, metadata={"help": text})


def check_numbers(arguments: Any) -> None:
    """Check that the numbers of a dataclass are finite and in range.

    Raises:
        ValueError: One is not; it names the flag.
    """
    for one in fields(arguments):
        name, value = one.name, getattr(arguments, one.name)
        if not isinstance(value, int | float):
            continue
        # An infinite gradient norm is never exceeded, so it means no clipping.
        if math.isnan(value) or (math.isinf(value) and name != "max_grad_norm"):
            raise ValueError(f"--{name} {value} is not a finite number")
        if value < _LEAST.get(name, value):
            raise ValueError(f"--{name} {value}: give {_LEAST[name]} or more")
        if value > _MOST.get(name, value):
            raise ValueError(f"--{name} {value}: give {_MOST[name]} or less")


@dataclass
class DataArguments:
    """Data sources and batching."""

    dataset_name: str | None = flag(None, "Data set on the Hub, or a local directory.")
    dataset_config_name: str | None = flag(None, "Configuration of that data set.")
    train_file: str | None = flag(None, "CSV, TSV, JSON lines or Parquet file with the training rows.")
    validation_file: str | None = flag(None, "The same for validation.")
    test_file: str | None = flag(None, "The same for the final test.")
    column_names: str | None = flag(
        None,
        "Comma-separated column names of CSV and TSV files without a header: text,label. A first line "
        "that repeats them is refused as a header.",
    )
    max_tokens: int | None = flag(None, "Token budget of a padded batch, instead of per_device_train_batch_size.")
    streaming: bool = flag(False, "Stream the training rows; for data larger than memory.")
    early_stopping_patience: int | None = flag(None, "Stop after this many evaluations without improvement.")
    output_file: str | None = flag(
        None,
        "With --do_predict: write a prediction for each row of --test_file, which needs no labels, to "
        "this file (.tsv and .jsonl with scores, otherwise plain text); output_dir is not touched.",
    )
    overwrite_output_file: bool = flag(False, "Overwrite output_file if it exists.")

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_numbers(self)

    def read_named(self, **reading: Any) -> datasets.DatasetDict:
        """Read the data that the flags name; arguments and errors as for `read_splits`."""
        return read_splits(**reading)

    @property
    def inference_only(self) -> bool:
        """True if the run only predicts, into a file or on the screen, and has no output directory."""
        return self.output_file is not None

    @property
    def file_columns(self) -> list[str] | None:
        """Columns of files without a header; None where files have one."""
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
        also: Collection[str] = (),
    ) -> dict[str, Any]:
        """Read the data that the flags name, or make the embedded data if they name none.

        Args:
            columns: Columns to keep.
            embedded: Makes the embedded data.
            train: True to return all splits: training rows are required, and validation rows are held out of them if
                there are none. False to return only the test rows, which are then required.
            seed: Seed of the held-out rows.
            moses: Whether files may be aligned plain text; see `read_splits`.
            label_columns: Columns of classes, numbers, or lists of strings; see `read_splits`.
            classes: Classes of each row, which the training rows must all have; see `hold_out_validation`.
            num_parts: Shards of a stream; see `read_stream`.
            running: Whether the rows are running text: empty ones are kept, and the last ones are held out.
            also: Splits to return besides the test rows if `train` is False, where they exist.

        Returns:
            Split name to rows; with `streaming` the training rows are a `datasets.IterableDataset`.

        Raises:
            InputError: As `read_splits` and `read_stream`, and if a split is missing.
        """
        names = ("dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file")
        named = {name: getattr(self, name) for name in names}
        reading: dict[str, Any] = {"moses": moses, "label_columns": label_columns, "keep_empty": running}
        reading |= {"columns": columns, "column_names": self.file_columns, **named}
        if train and self.streaming:
            return read_stream(**reading, num_parts=num_parts)
        check_sources(columns, self.dataset_name, self.train_file)
        splits = self.read_named(**reading) if any(named.values()) else embedded()
        known = next(iter(splits.values())).column_names
        if missing := [column for column in columns if column not in known]:
            raise InputError(
                f"no data are named, and the embedded ones have no column {missing[0]!r}; give --train_file, or leave "
                f"the flag out: there are {', '.join(known)}"
            )
        if train:
            splits = hold_out_validation(splits, seed=seed, in_order=running, classes=classes)
            return {name: splits[name] for name in SPLITS if name in splits}
        if "test" not in splits:
            raise InputError("--do_predict without --do_train needs --test_file, or a data set with a test split")
        return {name: splits[name] for name in SPLITS if name in splits and name in {"test", *also}}


@dataclass
class WholeArguments(DataArguments):
    """Rows that are read whole; the predictions are those of the final test."""

    streaming: bool = field(init=False, default=False)
    output_file: None = field(init=False, default=None)
    overwrite_output_file: bool = field(init=False, default=False)


@dataclass
class SeriesArguments(WholeArguments):
    """Series and recordings of numbers, in files whose first line names the columns."""

    dataset_name: None = field(init=False, default=None)
    dataset_config_name: None = field(init=False, default=None)
    column_names: None = field(init=False, default=None)
    max_tokens: None = field(init=False, default=None)


@dataclass
class SubwordArguments(DataArguments):
    """Subword regularization of training rows."""

    subword_samples: int = flag(
        0,
        "Subword regularization (Kudo 2018): train on this many random segmentations of each text by a unigram "
        "tokenizer, in place of the best one. An epoch is as many times longer.",
    )
    subword_alpha: float = flag(
        0.2,
        "Smoothing of their probabilities; 0: all segmentations are equally likely, 1: as in the tokenizer's model.",
    )

    def __post_init__(self) -> None:
        """Refuse a stream, whose rows cannot be read several times."""
        super().__post_init__()
        if self.subword_samples and self.streaming:
            raise ValueError("--subword_samples reads the training rows several times; omit --streaming")


@dataclass
class ClassArguments(SubwordArguments):
    """Texts and classes."""

    text_column: str = flag("text", "Column of the texts.")
    text_pair_column: str | None = flag(None, "Column of the second text of a row, for pairs: hypothesis, question2.")
    label_column: str = flag("label", "Column of each text's class, list of classes (multi-label), or number.")
    problem_type: str | None = flag(
        None, f"{', '.join(PROBLEM_TYPES)}; by default lists are multi-label, numbers with a fraction a regression."
    )
    label_separator: str | None = flag(None, "Separator between the classes of a row, for multi-label files: ';'.")
    max_length: int = flag(256, "Maximum length in tokens; longer texts are truncated.")
    class_weights: dict | str | None = flag(None, "Class weights of the loss: balanced, or {class: weight}.")

    def __post_init__(self) -> None:
        """Refuse a separator that separates nothing, and an unknown type of problem."""
        super().__post_init__()
        if self.label_separator == "":
            raise ValueError("--label_separator is empty; give what stands between classes, or leave it out")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"unknown --problem_type {self.problem_type!r}; there are {', '.join(PROBLEM_TYPES)}")


@dataclass
class SingleLabelArguments(ClassArguments):
    """Texts with one class each, for recipes that train or test several models: nothing streams or goes to a file."""

    subword_alpha: float = field(init=False, default=0.2)
    streaming: bool = field(init=False, default=False)
    output_file: None = field(init=False, default=None)
    overwrite_output_file: bool = field(init=False, default=False)
    subword_samples: int = field(init=False, default=0)
    text_pair_column: None = field(init=False, default=None)
    label_separator: None = field(init=False, default=None)
    problem_type: str = field(init=False, default="single_label_classification")


@dataclass
class DecodingArguments(SubwordArguments):
    """Pairs of texts, their lengths and decoding."""

    source_prefix: str = flag("", "Text before every source: 'summarize: ' for T5.")
    max_source_length: int = flag(256, "Maximum source length in tokens; longer sources are truncated.")
    max_target_length: int = flag(256, "Maximum target length in tokens; longer targets are truncated.")
    num_beams: int = flag(5, "Beams of the final test and of the saved model.")
    length_penalty: float | None = flag(
        None, "Beam scores are divided by length to this power; larger values favour longer texts."
    )
    num_return_sequences: int = flag(1, "With --output_file: texts for each source.")
    do_sample: bool = flag(False, "With --output_file: sample instead of beam search.")
    temperature: float | None = flag(None, "Sampling temperature.")
    top_k: int | None = flag(None, "Top-k sampling: sample from the k most likely tokens.")
    top_p: float | None = flag(None, "Nucleus (top-p) sampling threshold.")
    replace_unknown: bool = flag(
        False, "With --output_file: replace each unknown word by the source word with the most attention."
    )
    score_targets: bool = flag(False, "With --output_file: write log-probabilities of targets in --test_file instead.")

    def __post_init__(self) -> None:
        """Refuse flags that would have no effect."""
        super().__post_init__()
        names = ("num_return_sequences", "do_sample", "temperature", "top_k", "top_p")
        own = type(self).__dataclass_fields__
        given = [name for name in (*names, "replace_unknown") if getattr(self, name) != own[name].default]
        if self.score_targets and (given or self.length_penalty is not None):
            raise ValueError(f"--score_targets generates nothing; leave --{(*given, 'length_penalty')[0]} out")
        if self.output_file is None and (given or self.score_targets):
            raise ValueError(f"--{(*given, 'score_targets')[0]} goes with --output_file")


@dataclass
class TranslationArguments(DecodingArguments):
    """Language pairs, their lengths and decoding."""

    source_lang: str = flag("en", "Source language: the column, or the file name extension.")
    target_lang: str = flag("de", "Target language: the column, or the file name extension.")
    separate_vocabs: bool = flag(
        False, "New tokenizer with a vocabulary of --vocab_size for each language; otherwise both share one."
    )
    train_file: str | None = flag(
        None, "CSV, TSV, JSON lines or Parquet file, or prefix of aligned text files: train.de, train.en."
    )


@dataclass
class SummarizationArguments(DecodingArguments):
    """Texts and summaries, their lengths and decoding."""

    text_column: str = flag("document", "Column of the texts.")
    summary_column: str = flag("summary", "Column of the summary of each text, or of a list of summaries.")
    max_source_length: int = flag(400, "Maximum text length in tokens; longer texts are truncated.")
    max_target_length: int = flag(100, "Maximum summary length in tokens; longer summaries are truncated.")
    num_beams: int = flag(4, "Beams of the final test and of the saved model.")
    lead: int = flag(1, "Leading sentences of each text that the baseline takes.")


@dataclass
class SpeechArguments(WholeArguments):
    """Recordings with transcripts or classes, their features, and decoding."""

    head: str = flag("ctc", f"Head of the model: {', '.join(SPEECH_HEADS)}.")
    train_file: str | None = flag(
        None, "Folder with metadata.csv, .jsonl or .parquet, or a CSV, TSV, JSON lines or Parquet file of recordings."
    )
    audio_column: str | None = flag(
        None, "Column of the recordings; by default file_name in files, and audio in --dataset_name."
    )
    text_column: str = flag("transcription", "Column of the transcripts.")
    label_column: str = flag("label", "With --head classification: column of each recording's class.")
    sampling_rate: int | None = flag(
        None, "Sampling rate of a new model's features in Hz; by default that of the first training recording."
    )
    resampling: bool = flag(True, "Resample recordings at other rates; otherwise they are refused.")
    mono: bool = flag(False, "Average the channels of recordings that have several; otherwise they are refused.")
    feature_extractor: dict | None = flag(
        None, "Options of a new model's LogMelFeatureExtractor, e.g. {feature_size: 40, hop_length: 80}."
    )
    max_target_length: int = flag(256, "With --head seq2seq: maximum transcript length in tokens.")
    num_beams: int = flag(1, "Beams of the final test; with --head seq2seq also of the saved model.")
    lm_model: str | None = flag(
        None, "With --head ctc: language model of the same characters, to be used in the final test."
    )
    lm_weight: float = flag(0.5, "With --lm_model: weight of its log-probabilities.")
    length_bonus: float = flag(0.0, "With --lm_model: bonus for each character.")
    class_weights: dict | str | None = flag(
        None, "With --head classification: class weights of the loss: balanced, or {class: weight}."
    )
    label_separator: None = field(init=False, default=None)
    problem_type: str = field(init=False, default="single_label_classification")

    def __post_init__(self) -> None:
        """Refuse an unknown head, and flags that would have no effect."""
        super().__post_init__()
        if self.head not in SPEECH_HEADS:
            raise ValueError(f"unknown --head {self.head!r}; there are {', '.join(SPEECH_HEADS)}")
        own = type(self).__dataclass_fields__
        for name, heads in _HEADS_OF.items():
            if self.head not in heads and getattr(self, name) != own[name].default:
                raise ValueError(f"--{name} is for --head {' or '.join(heads)}; leave it out")
        for name in ("lm_weight", "length_bonus"):
            if self.lm_model is None and getattr(self, name) != own[name].default:
                raise ValueError(f"--{name} goes with --lm_model")

    @property
    def task(self) -> str:
        """Name of the task, which is that of the head."""
        return self.head

    def read_named(self, **reading: Any) -> datasets.DatasetDict:
        """Read which recordings there are; arguments and errors as for `read_audio_splits`."""
        for name in ("moses", "keep_empty"):
            reading.pop(name)
        return read_audio_splits(**reading, audio_column=self.audio_column)


@dataclass
class ForecastArguments(SeriesArguments):
    """Series, their columns, the horizon, and the windows of training, validation and test."""

    train_file: str | None = flag(
        None, "CSV or TSV, wide or long, or JSON lines of GluonTS, with the series; by default also for the tests."
    )
    validation_file: str | None = flag(None, "The same for validation, by default windows before those of the test.")
    test_file: str | None = flag(None, "The same for the final test, by default the last windows.")
    id_column: str = flag("unique_id", "Column of the names of the series in a long table.")
    time_column: str = flag("ds", "Column of the time stamps.")
    target_column: str = flag("y", "Column of the values in a long table.")
    covariate_columns: list[str] | None = flag(None, "Columns of covariates, which are known for the horizon.")
    static_columns: list[str] | None = flag(None, "Columns of a long table with a class for each series.")
    frequency: str | None = flag(
        None, "Frequency of the series, as pandas names it (h, D, MS); by default inferred from the time stamps."
    )
    seasonality: int | None = flag(
        None, "Steps in a season, for baselines and MASE; by default that of the frequency."
    )
    prediction_length: int | None = flag(None, "Horizon: number of steps to forecast.")
    context_length: int | None = flag(
        None, "Steps before the horizon that a new model reads; by default twice the horizon."
    )
    lags_sequence: list[int] | None = flag(
        None, "Lags that a new model reads; by default those of the frequency, as in GluonTS."
    )
    test_start: str | None = flag(
        None, "Begin of the first test window: a time stamp, or a number of steps; by default counted from the end."
    )
    num_test_windows: int | None = flag(None, "Test windows of a series; by default 1, or with a start all that fit.")
    validation_start: str | None = flag(None, "Begin of the first validation window, as for the test.")
    num_validation_windows: int | None = flag(None, "Validation windows of a series, as for the test.")
    backtest_stride: int | None = flag(
        None, "Steps between the beginnings of test or validation windows; by default the horizon."
    )
    train_stride: int = flag(1, "Steps between the beginnings of training windows.")
    max_train_samples: int | None = flag(None, "Train on so many windows only, drawn at random.")
    standardize: bool = flag(
        False,
        "Give each series mean 0 and variance 1 by its training part, and score in these units, as benchmarks of long "
        "horizons do.",
    )
    num_samples: int | None = flag(None, "Paths to sample; by default those of the model.")
    ets_windows: int = flag(100, "Fit exponential smoothing for comparison if there are at most so many test windows.")


@dataclass
class TaggingArguments(WholeArguments):
    """Words and tags."""

    text_column: str = flag("tokens", "Column of the words of each row.")
    label_column: str = flag("tags", "Column of the tag of each word.")
    max_length: int = flag(256, "Maximum length in tokens; longer rows are truncated.")
    max_train_samples: int | None = flag(None, "Train on this many rows only.")


@dataclass
class SequenceArguments(WholeArguments):
    """DNA or proteins with classes or tags."""

    task: str = flag("tagging", f"Task: {', '.join(SEQUENCE_TASKS)}; a tag for each letter, or a class.")
    alphabet: str = flag("dna", f"Alphabet: {', '.join(ALPHABETS)}.")
    train_file: str | None = flag(
        None, "FASTA or FASTQ file (.gz or not) with its labels, or CSV, TSV, JSON lines or Parquet file."
    )
    text_column: str = flag("sequence", "Column of the sequences.")
    label_column: str | None = flag(
        None, "Column of the tags, a list or a character for each letter (labels), or of the class (label)."
    )
    mask_column: str | None = flag(
        None, "With --task tagging: column of a 0 for each letter not to be scored, else 1."
    )
    kmer_size: int = flag(1, "With --task classification: letters of a token of a new model.")
    reverse_complement: bool = flag(
        False, "With --task classification: train on both strands, and average both to predict."
    )
    max_length: int = flag(
        1024, "Maximum length in tokens; longer sequences are tagged in windows, and truncated to be classified."
    )
    class_weights: dict | str | None = flag(
        None, "With --task classification: class weights of the loss: balanced, or {class: weight}."
    )
    subword_samples: int = field(init=False, default=0)
    text_pair_column: None = field(init=False, default=None)
    label_separator: None = field(init=False, default=None)
    problem_type: str = field(init=False, default="single_label_classification")

    def __post_init__(self) -> None:
        """Refuse unknown values, and flags that would have no effect."""
        super().__post_init__()
        for name, value, known in (
            ("task", self.sequence_task, SEQUENCE_TASKS),
            ("alphabet", self.alphabet, ALPHABETS),
        ):
            if value not in known:
                raise ValueError(f"unknown --{name} {value!r}; there are {', '.join(known)}")
        own = type(self).__dataclass_fields__
        for name, task in _TASK_OF.items():
            if self.sequence_task != task and getattr(self, name) != own[name].default:
                raise ValueError(f"--{name} is for --task {task}; leave it out")
        if self.reverse_complement and self.alphabet != "dna":
            raise ValueError(f"--reverse_complement is for DNA, not for --alphabet {self.alphabet}")

    @property
    def sequence_task(self) -> str:
        """One of `SEQUENCE_TASKS`, here `task`."""
        return self.task

    def read_named(self, **reading: Any) -> datasets.DatasetDict:
        """Read FASTA and FASTQ files with `read_labelled`, and all others with `read_splits`, with their places."""
        found = {}
        for split in SPLITS:
            name = reading[f"{split}_file"]
            if name is not None and is_sequence_file(name):
                columns, tagging = reading["columns"], self.sequence_task == "tagging"
                if self.mask_column is not None:
                    raise InputError(f"--mask_column is for tables; in the labels of {name} a ? marks such a letter")
                found[split] = read_labelled(name, f"--{split}_file", tuple(columns[:2]), letters=tagging)
                reading[f"{split}_file"] = None
        if any(reading[name] for name in ("dataset_name", *(f"{split}_file" for split in SPLITS))):
            found = {**read_splits(**reading, place_column=PLACE), **found}
        return datasets.DatasetDict(found)


@dataclass
class ResidueTaggingArguments(SequenceArguments):
    """DNA or proteins with a tag for each letter, for recipes with a `--task` of their own."""

    kmer_size: int = field(init=False, default=1)
    reverse_complement: bool = field(init=False, default=False)
    class_weights: None = field(init=False, default=None)

    @property
    def sequence_task(self) -> str:
        """Tagging."""
        return "tagging"


@dataclass
class SequenceClassificationArguments(SequenceArguments):
    """DNA or proteins with a class each, for recipes with a `--task` of their own."""

    mask_column: None = field(init=False, default=None)

    @property
    def sequence_task(self) -> str:
        """Classification."""
        return "classification"


@dataclass
class RecommendationArguments(DataArguments):
    """Interactions of users with items, their columns, splits, and what is recommended."""

    train_file: str | None = flag(
        None,
        "Interactions: RecBole's .inter, CSV, TSV, JSON lines or Parquet, or any other name for lines of `user item "
        "[time]`. Without --validation_file and --test_file they are split by --split.",
    )
    validation_file: str | None = flag(None, "Sessions for validation; by default some of the training sessions.")
    test_file: str | None = flag(None, "Sessions for the final test; with --output_file histories to continue.")
    user_column: str | None = flag(None, "Column of users or sessions; by default guessed: user_id, session_id ...")
    item_column: str | None = flag(
        None, "Column of items, or of lists of them; by default guessed: item_id, items ..."
    )
    time_column: str | None = flag(None, "Column of times; by default guessed: timestamp, date ...")
    split: str | None = flag(
        None,
        "Split of the interactions of one file: leave_one_out (default; a user's last item is the test, the last but "
        "one validation) or time.",
    )
    validation_start: str = flag(
        "0.8", "With --split time: begin of the validation, a time or date, or below 1 a share of the interactions."
    )
    test_start: str = flag("0.9", "With --split time: begin of the test, as for the validation.")
    score_last: bool = flag(
        False, "Files and splits of their own: predict the last item of a session only, not each after the first."
    )
    filter_seen: bool = flag(False, "Do not recommend what a user has had, not even if it was right.")
    mix: list[str] | None = flag(
        None,
        "Also test with the model's probabilities interpolated with those of markov (what followed the last item in "
        "training), ngram (what followed the last 3, 2 or 1) and cache (the history, recent items most); weights are "
        "chosen on the validation.",
    )
    cutoffs: list[int] | None = flag(None, "Depths K of the metrics HR@K, NDCG@K, MRR@K; by default 1 5 10 20.")
    top_k: int = flag(10, "Number of items to recommend, in the final test and with --output_file.")
    max_length: int = flag(
        200, "Maximum length in items and BOS; longer training sessions are cut, of histories the end is read."
    )
    streaming: bool = field(init=False, default=False)
    note: str = field(init=False, default="")
    output_file: str | None = flag(
        None,
        "With --do_predict: write the items recommended after each history of --test_file, and their scores, to "
        "this file (.tsv or .jsonl); output_dir is not touched.",
    )

    def __post_init__(self) -> None:
        """Refuse unknown values, and flags that would have no effect."""
        super().__post_init__()
        if self.split not in (None, *INTERACTION_SPLITS):
            raise ValueError(f"unknown --split {self.split!r}; there are {', '.join(INTERACTION_SPLITS)}")
        own = type(self).__dataclass_fields__
        for name in ("validation_start", "test_start"):
            if self.split != "time" and getattr(self, name) != own[name].default:
                raise ValueError(f"--{name} goes with --split time")
        for cutoff in self.cutoffs or ():
            if cutoff < 1:
                raise ValueError(f"--cutoffs {cutoff}: give 1 or more")
        for name in self.mix or ():
            if name not in MIXTURE_COMPONENTS:
                raise ValueError(f"unknown --mix {name!r}; there are {', '.join(MIXTURE_COMPONENTS)}")
        if self.mix and len(set(self.mix)) < len(self.mix):
            raise ValueError(f"--mix {' '.join(self.mix)} repeats a name; give each once")
        if self.max_length < 2:
            raise ValueError(f"--max_length {self.max_length}: give 2 or more")

    @property
    def columns(self) -> InteractionColumns:
        """Names of the columns."""
        return InteractionColumns(self.user_column, self.item_column, self.time_column)

    def read_file(self, name: str, flag: str) -> list[Session]:
        """Read the sessions of a file; errors as for `read_interactions`."""
        return read_interactions(name, flag, self.columns, self.file_columns)

    def read_named(self, **reading: Any) -> datasets.DatasetDict:
        """Read interactions, and split those of a single file or of a data set with one split.

        Raises:
            InputError: As for `read_interactions` and the splits, or a flag has no effect.
        """
        found: dict[str, list[Session]] = {}
        if self.dataset_name:
            found = hub_interactions(self.dataset_name, self.dataset_config_name, self.columns)
        for split in SPLITS:
            if (name := getattr(self, f"{split}_file")) is not None:
                found[split] = self.read_file(name, f"--{split}_file")
        if set(found) != {"train"}:
            if self.split is not None:
                raise InputError(
                    f"--split {self.split} is for interactions of one file; leave it out, or the other files"
                )
            return datasets.DatasetDict(
                {split: session_rows(some, last=self.score_last and split != "train") for split, some in found.items()}
            )
        if self.score_last:
            raise InputError("--score_last is for files or splits of their own; --split leave_one_out does so itself")
        source = f"--train_file {self.train_file}" if self.train_file else f"--dataset_name {self.dataset_name}"
        if self.split == "time":
            splits, self.note = split_by_time(found["train"], self.validation_start, self.test_start)
        else:
            splits, self.note = leave_one_out(found["train"], source)
        return splits


@dataclass
class ScoredRecommendationArguments(RecommendationArguments):
    """Interactions for recipes that train or test several models: nothing goes to a file."""

    output_file: None = field(init=False, default=None)
    overwrite_output_file: bool = field(init=False, default=False)
    mix: None = field(init=False, default=None)


@dataclass
class VideoArguments(WholeArguments):
    """Clips with classes or captions, their frames, and decoding."""

    task: str = flag("frames", f"Task: {', '.join(VIDEO_TASKS)}; the next frames, a text, or a class.")
    dataset_name: None = field(init=False, default=None)
    dataset_config_name: None = field(init=False, default=None)
    max_tokens: None = field(init=False, default=None)
    train_file: str | None = flag(
        None,
        "NumPy archive (.npz), folder with metadata.csv, .jsonl or .parquet or with a folder for each class, CSV, TSV "
        "or JSON lines file that names clips, or with --coordinates CSV file of points.",
    )
    clip_column: str = flag("file_name", "Column of the paths of clips: folders of frames, or video files.")
    text_column: str = flag("caption", "With --task captions: column of the captions.")
    label_column: str = flag("label", "With --task gestures: column of each clip's class.")
    coordinates: int | None = flag(
        None, "Numbers of a frame in a CSV file of points, whose lines are a class and a clip: label,x1,y1,x2,y2."
    )
    block_size: int | None = flag(
        None,
        "Split --train_file by blocks of so many rows, a fifth of them for the test and a tenth of the others for "
        "validation; for clips that overlap with their neighbours.",
    )
    block_gap: int = flag(0, "With --block_size: rows left out after each block, as many as a clip overlaps with.")
    num_frames: int | None = flag(None, "Frames that are taken, evenly, from a clip; by default all.")
    frame_stride: int = flag(1, "Take one of so many frames.")
    image_size: list[int] | None = flag(
        None, "Height and width to which frames are resized, one number for both; by default they stay as they are."
    )
    num_channels: int | None = flag(None, "1 for grey frames, 3 for colour; by default those of the files.")
    context_length: int | None = flag(None, "With --task frames: frames that are known; default: as the checkpoint.")
    prediction_length: int | None = flag(
        None, "With --task frames: frames to predict after them; default: as the checkpoint."
    )
    train_stride: int = flag(1, "With --task frames: frames between the beginnings of training windows in a clip.")
    point_scale: float = flag(
        1.0, "With --task frames and points: factor by which a model reads and predicts them; scores are without it."
    )
    velocities: bool = flag(
        False, "With --task gestures and points: read their differences from the frame before, too."
    )
    augmentations: int = flag(
        0, "With --task gestures and paths of a point: turned, scaled and warped copies of each training clip."
    )
    class_weights: dict | str | None = flag(
        None, "With --task gestures: class weights of the loss: balanced, or {class: weight}."
    )
    max_target_length: int = flag(64, "With --task captions: maximum caption length in tokens.")
    num_beams: int = flag(1, "With --task captions: beams of the final test and of the saved model.")
    label_separator: None = field(init=False, default=None)
    problem_type: str = field(init=False, default="single_label_classification")

    def __post_init__(self) -> None:
        """Refuse unknown values, and flags that would have no effect."""
        super().__post_init__()
        if self.task not in VIDEO_TASKS:
            raise ValueError(f"unknown --task {self.task!r}; there are {', '.join(VIDEO_TASKS)}")
        own = type(self).__dataclass_fields__
        for name, task in _VIDEO_TASK_OF.items():
            if self.task != task and getattr(self, name) != own[name].default:
                raise ValueError(f"--{name} is for --task {task}; leave it out")
        if self.image_size is not None and (len(self.image_size) not in (1, 2) or min(self.image_size) < 1):
            raise ValueError(f"--image_size {self.image_size}: give height and width, or one number for both")
        if self.point_scale <= 0:
            raise ValueError(f"--point_scale {self.point_scale}: give a number above 0")
        if self.num_channels not in (None, 1, 3):
            raise ValueError(f"--num_channels {self.num_channels}: give 1 or 3")
        if self.task == "frames" and self.num_frames is not None:
            raise ValueError("--num_frames: frames to be predicted follow each other; use --frame_stride")
        if self.block_gap and self.block_size is None:
            raise ValueError("--block_gap goes with --block_size")
        if self.block_size is not None and self.train_file and (self.validation_file or self.test_file):
            raise ValueError("--block_size splits --train_file; leave --validation_file and --test_file out")

    def read_named(self, **reading: Any) -> datasets.DatasetDict:
        """Read which clips there are; arguments and errors as for `read_clip_splits` and `split_blocks`."""
        for name in ("moses", "keep_empty", "dataset_name", "dataset_config_name"):
            reading.pop(name)
        splits = read_clip_splits(**reading, clip_column=self.clip_column, coordinates=self.coordinates)
        if self.block_size is None or self.train_file is None:
            return splits
        return split_blocks(splits["train"], self.block_size, self.block_gap)


@dataclass
class RunningTextArguments(DataArguments):
    """Running text, its windows, and the continuation of a prompt."""

    text_column: str = flag("text", "Column of the text, one or more lines a row; a file may also be plain text.")
    block_size: int = flag(70, "Window of truncated BPTT in tokens.")
    vary_block_size: bool = flag(True, "Vary the length of training windows (Merity et al. 2018, section 4.1).")
    carry_state: bool = flag(True, "Start each window from the state after the one before it.")
    cache_size: int | None = flag(
        None,
        "Also test with a continuous cache of this many tokens (Grave et al. 2017), whose flatness and "
        "weight are chosen on the validation text.",
    )
    ngram_order: int | None = flag(
        None,
        "Also test n-grams of up to this many tokens of the training text (modified Kneser-Ney smoothing), alone and "
        "interpolated with the model; weights are chosen on the validation text.",
    )
    prompt: str | None = flag(None, "With --do_predict: the text to continue.")
    max_new_tokens: int = flag(50, "With --prompt: tokens to generate.")
    next_words: int = flag(10, "With --prompt: most likely next tokens to show.")
    do_sample: bool = flag(False, "With --prompt: sample instead of greedy search.")
    temperature: float | None = flag(None, "Sampling temperature.")
    top_k: int | None = flag(None, "Top-k sampling: sample from the k most likely tokens.")
    top_p: float | None = flag(None, "Nucleus (top-p) sampling threshold.")
    max_tokens: None = field(init=False, default=None)
    output_file: None = field(init=False, default=None)
    overwrite_output_file: bool = field(init=False, default=False)

    @property
    def inference_only(self) -> bool:
        """True if the run only continues a prompt."""
        return self.prompt is not None


@dataclass
class AnomalyArguments(SeriesArguments):
    """Series or logs of events, their columns, windows, and the alarms."""

    head: str = flag("prediction", f"Head of the model: {', '.join(ANOMALY_HEADS)}; the latter reads events.")
    train_file: str | None = flag(
        None, "CSV, TSV or JSON lines file, or a folder of CSV files, a series each; without anomalies, or with few."
    )
    nab_folder: str | None = flag(
        None, "Folder of the Numenta Anomaly Benchmark, instead of files: trains on each series' probationary part."
    )
    time_column: str = flag("timestamp", "Column of the time stamps, if there are any.")
    label_column: str = flag("label", "Column of the labels, if there are any: 0 or 1, normal or anomaly.")
    anomaly_labels: str | None = flag(None, "Further labels of anomalies, comma-separated: scan,flood.")
    value_columns: str | None = flag(None, "Columns of numbers, comma-separated; by default all others.")
    event_columns: str | None = flag(None, "With --head causal_lm: columns of the words of an event, comma-separated.")
    number_columns: str | None = flag(
        None, "With --head causal_lm: columns of numbers, which become words by their magnitude."
    )
    event_gaps: bool = flag(False, "With --head causal_lm: the time since the last event is a word of an event.")
    log_values: bool = flag(False, "Read numbers as logarithms of 1 + their magnitude; for counts and bytes.")
    context_length: int = flag(144, "Steps of a training window; with --head causal_lm tokens.")
    holdout: float = flag(0.2, "Last part of each training series that is held out if there is no --validation_file.")
    short_window: int = flag(1, "Steps over which the surprise is averaged (W' of Ahmad et al. 2017).")
    long_window: int = flag(8000, "Steps on which the distribution of the surprise is estimated (W).")
    hold: float = flag(3600.0, "Seconds that an alarm lasts, in which no other is raised.")
    false_alarms: float = flag(
        1.0, "False alarms per day that the threshold allows on held-out rows; per 1,000 steps without time stamps."
    )
    watch: bool = flag(False, "With --model_name_or_path: read steps from standard input and print alarms.")
    series: str = flag("", "With --watch: name of the series, if the model was trained on several.")
    state_file: str | None = flag(None, "With --watch: file of the state, to continue from and to save to.")
    save_every: int = flag(1000, "With --state_file: save the state after this many steps.")

    def __post_init__(self) -> None:
        """Refuse an unknown head, impossible shares, and flags that would have no effect."""
        super().__post_init__()
        if self.head not in ANOMALY_HEADS:
            raise ValueError(f"unknown --head {self.head!r}; there are {', '.join(ANOMALY_HEADS)}")
        own = type(self).__dataclass_fields__
        for name in _EVENT_FLAGS if self.head == "prediction" else ("value_columns", "log_values", "nab_folder"):
            if getattr(self, name) != own[name].default:
                other = "causal_lm" if self.head == "prediction" else "prediction"
                raise ValueError(f"--{name} is for --head {other}; leave it out")
        if not 0 < self.holdout < 1:
            raise ValueError(f"--holdout {self.holdout}: give a share between 0 and 1")
        if self.context_length < 2:
            raise ValueError(f"--context_length {self.context_length}: give 2 or more")
        for name in ("train_file", "validation_file", "test_file"):
            if self.nab_folder is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"--{name} and --nab_folder exclude each other: the folder has training and test rows"
                )
        for name in ("series", "state_file", "save_every"):
            if not self.watch and getattr(self, name) != own[name].default:
                raise ValueError(f"--{name} goes with --watch")

    @property
    def task(self) -> str:
        """Name of the task, which is that of the head."""
        return self.head

    @property
    def inference_only(self) -> bool:
        """True if the run only watches a stream."""
        return self.watch

    def names(self, flag: str) -> tuple[str, ...]:
        """Column names of a flag that lists them."""
        value = getattr(self, flag)
        return tuple(name.strip() for name in value.split(",")) if value else ()
