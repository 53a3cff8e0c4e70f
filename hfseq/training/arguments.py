"""Command-line arguments of models and training, as dataclasses for `parse_config`."""

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hfseq.errors import InputError, blaming, require
from hfseq.lazy import datasets
from hfseq.tasks.arguments import check_numbers, flag
from hfseq.tokenization import MODELS, NORMALIZATIONS

_KEPT = ("prediction_loss_only", "eval_do_concat_batches", "batch_eval_metrics", "dataloader_drop_last", "label_names")
"""Training arguments that must keep their defaults for evaluations to score all rows."""
LOWER_IS_BETTER = {
    *("loss", "perplexity", "word_perplexity", "wer", "cer"),
    *("wql", "mase", "smape", "mae", "rmse", "mse", "nd", "crps"),
}
"""Metrics that are better when lower."""
_NEEDED = {
    "hp_search": ("optuna", "hpo"),
    "use_liger_kernel": ("liger_kernel", None),
    "deepspeed": ("deepspeed", None),
}
"""Package that a flag needs, and the extra that installs it."""


@dataclass
class ModelArguments:
    """Model arguments: a checkpoint, or a new model of a family with a new tokenizer."""

    model_name_or_path: str | None = flag(None, "Pretrained checkpoint: a directory or Hub id, of any architecture.")
    model_type: str | None = flag(None, "Model family to train from scratch, e.g. hfseq_lstm (the default).")
    config_overrides: dict | None = flag(None, "Config fields to override, e.g. {hidden_size: 256, dropout: 0.3}.")
    tokenizer_model: str = flag("unigram", f"Type of tokenizer to train for a new model: {', '.join(MODELS)}.")
    vocab_size: int = flag(8000, "Vocabulary size of a new tokenizer, including special tokens.")
    normalization: str = flag("nfc", f"Unicode normalization of a new tokenizer: {', '.join(NORMALIZATIONS)}.")
    lowercase: bool = flag(False, "Lowercase the input of a new tokenizer.")
    word_vectors: str | None = flag(None, "Word vectors (GloVe, word2vec or fastText text) to start a new model with.")
    add_words: int = flag(0, "Number of words, the first of --word_vectors, to add to a vocabulary of words.")
    ensemble: list[str] | None = flag(
        None, "Further checkpoints to ensemble with --model_name_or_path by averaging probabilities."
    )

    def __post_init__(self) -> None:
        """Reject an ensemble without its first member, and words to add without their vectors."""
        if self.ensemble and self.model_name_or_path is None:
            raise ValueError("--ensemble names further members; --model_name_or_path names the first")
        if self.add_words < 0:
            raise ValueError(f"--add_words {self.add_words}: give 0 or more")
        if self.add_words and self.word_vectors is None:
            raise ValueError("--add_words needs --word_vectors, the file whose first words are added")


@dataclass
class SpeechModelArguments(ModelArguments):
    """Model arguments of speech recognition, whose tokenizers are of characters by default."""

    tokenizer_model: str = flag(
        "character", f"With --head seq2seq: type of tokenizer to train for a new model: {', '.join(MODELS)}."
    )


@dataclass
class AnomalyModelArguments(ModelArguments):
    """Model arguments of anomaly detection, whose tokenizers are of the words of events by default."""

    tokenizer_model: str = flag(
        "whitespace", f"With --head causal_lm: type of tokenizer to train for a new model: {', '.join(MODELS)}."
    )


@dataclass
class RecommendationModelArguments(ModelArguments):
    """Model arguments of recommendation, whose tokens are all items of the training rows."""

    tokenizer_model: str = field(init=False, default="word")
    vocab_size: int = field(init=False, default=8000)
    normalization: str = field(init=False, default="none")
    lowercase: bool = field(init=False, default=False)
    word_vectors: None = field(init=False, default=None)
    add_words: int = field(init=False, default=0)
    ensemble: None = field(init=False, default=None)


@dataclass
class VideoModelArguments(ModelArguments):
    """Model arguments of video, whose tokenizers of captions are of words by default."""

    tokenizer_model: str = flag(
        "whitespace", f"With --task captions: type of tokenizer to train for a new model: {', '.join(MODELS)}."
    )


@dataclass
class ForecastModelArguments(ModelArguments):
    """Model arguments of forecasting, which has no tokenizer."""

    tokenizer_model: str = field(init=False, default="unigram")
    vocab_size: int = field(init=False, default=8000)
    normalization: str = field(init=False, default="nfc")
    lowercase: bool = field(init=False, default=False)
    word_vectors: None = field(init=False, default=None)
    add_words: int = field(init=False, default=0)
    ensemble: None = field(init=False, default=None)


@dataclass
class RecipeArguments(TrainingArguments):
    """`TrainingArguments` with defaults for training from scratch with evaluation after every epoch."""

    overwrite_output_dir: bool = flag(False, "Delete results of an earlier run in output_dir and start from scratch.")
    eval_strategy: str = flag("epoch", "When to evaluate: no, steps or epoch.")
    save_strategy: str = flag("epoch", "When to save: no, steps, epoch or best.")
    save_total_limit: int | None = flag(1, "Maximum number of checkpoints to keep, besides the best one.")
    load_best_model_at_end: bool = flag(True, "Load the best checkpoint, rather than the last, at the end.")
    metric_for_best_model: str | None = flag(
        None, "Metric that selects the best checkpoint; by default the task's main metric."
    )
    learning_rate: float = flag(1e-3, "Peak learning rate; the default suits training from scratch.")
    per_device_eval_batch_size: int = flag(64, "Evaluation batch size per process.")
    dataloader_pin_memory: bool = flag(torch.accelerator.is_available(), "Pin the memory of batches.")
    logging_steps: float = flag(50, "Log the training loss every N steps.")
    logging_nan_inf_filter: bool = flag(False, "Filter NaN/inf losses from the logs; such a loss stops the run.")
    rdrop_alpha: float = flag(
        0.0,
        "R-Drop (Liang et al. 2021): read each row twice in training, with two dropout masks, and add this many times "
        "the divergence of the predictions to the loss.",
    )
    adversarial_epsilon: float = flag(
        0.0,
        "Adversarial training (Miyato et al. 2017): train also on embeddings moved by this share of their norm in the "
        "direction in which the loss grows fastest.",
    )
    average_checkpoints: int | None = flag(None, "Average the weights of the last N checkpoints.")
    hp_search: int | None = flag(None, "Run a hyperparameter search over hp_space with N Optuna trials.")
    hp_space: dict | None = flag(
        None,
        "Search space: {learning_rate: {low: 1e-4, high: 1e-2, log: true}, config_overrides.hidden_size: [128, 256]}.",
    )

    license: str | None = flag(None, "Hub identifier of the licence in the model card, e.g. apache-2.0.")

    def __post_init__(self) -> None:
        """Reject values that would fail only after the first epoch, or have no effect."""
        if self.hub_token is not None:
            # Kept out of the arguments, which are saved with each checkpoint.
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(f"--license {self.license!r} is not a Hub licence identifier; use one such as apache-2.0")
        if self.push_to_hub and (self.hp_search or (self.do_predict and not self.do_train)):
            raise ValueError("--push_to_hub requires a training run; otherwise use hfseq.publish(DIRECTORY, NAME)")
        if self.push_to_hub and "checkpoint" in self.hub_strategy:
            raise ValueError("--hub_strategy: runs are published once, at the end, with their scores; omit it")
        # Defaults depend on the task; see `choose_metric`.
        self._asked = (self.metric_for_best_model, self.greater_is_better)
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError(f"--num_train_epochs {self.num_train_epochs} must be above 0")
        if self.do_eval and not (self.do_train or self.do_predict):
            raise ValueError("--do_eval requires --do_train; to score a model, use --do_predict and --test_file")
        check_numbers(self)
        if self.average_checkpoints and self.save_total_limit and self.save_total_limit < self.average_checkpoints:
            raise ValueError(
                f"--average_checkpoints {self.average_checkpoints} needs as many checkpoints; raise "
                f"--save_total_limit from {self.save_total_limit}"
            )
        if self.hp_search is not None and self.hp_search < 1:
            raise ValueError(f"--hp_search {self.hp_search}: give the number of trials, 1 or more")
        if self.hp_search is not None and self.do_predict and not self.do_train:
            raise ValueError("--hp_search requires training; omit --do_predict")
        for name, (package, extra) in _NEEDED.items():
            if getattr(self, name) not in (None, False):
                require(package, extra=extra, use=f"--{name}")
        for name in _KEPT:
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ValueError(f"--{name}: recipes score all rows; omit it")
        super().__post_init__()
        self._check_libraries()
        self.hub_strategy = HubStrategy.END
        # Every process reads the data; only the main one reports dropped rows.
        if self.process_index:
            logging.getLogger("hfseq").setLevel(logging.ERROR)
        if self.process_index or self.disable_tqdm:
            datasets.disable_progress_bars()

    def choose_metric(self, metrics: Sequence[str], others: Sequence[str] = ()) -> None:
        """Set `metric_for_best_model` to the task's main metric unless the user chose one.

        Args:
            metrics: Metrics of the task, the main one first.
            others: Metrics of a task that the data may select instead; see `Task.use`.

        Raises:
            InputError: The task has no such metric.
        """
        metric, greater = self._asked
        metric = metric or metrics[0]
        name = metric.removeprefix("eval_")
        known = dict.fromkeys((*metrics, "loss"))
        if name not in (*known, *others):
            raise InputError(f"unknown --metric_for_best_model {name!r}; there are {', '.join(known)}")
        lower = name in LOWER_IS_BETTER
        self.metric_for_best_model, self.greater_is_better = metric, not lower if greater is None else greater

    def _check_libraries(self) -> None:
        """Fail early: build the data loader and, to train, what `_check_training` does before the data are read."""
        with blaming("--dataloader_…"):
            names = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")
            settings = {name: getattr(self, f"dataloader_{name}") for name in names}
            torch.utils.data.DataLoader([0], **settings)  # type: ignore[arg-type]
        if self.do_train or not self.do_predict:
            self._check_training()

    def _check_training(self) -> None:
        """Build trackers, optimizer and schedule on dummy inputs: packages may be missing, arguments be invalid."""
        # Slow to import: `--help` and the prediction of a file do without.
        from transformers import Trainer, get_scheduler
        from transformers.integrations import get_reporting_integration_callbacks

        with blaming("--report_to"):
            for tracker in get_reporting_integration_callbacks(self.report_to):
                # Some raise again when a partially constructed instance is garbage-collected.
                type("Tracker", (tracker,), {"__del__": lambda _: None})()
        model: Any = torch.nn.ParameterList([torch.zeros(1)])  # consumes no random numbers
        # Module names can be checked only against the actual model.
        if self.optim_target_modules is None:
            with blaming(f"--optim {OptimizerNames(self.optim).value}"):
                kind, settings = Trainer.get_optimizer_cls_and_kwargs(self, model)
                if kind.__module__.startswith("torch.optim"):
                    kind(model.parameters(), **settings)
        schedule = SchedulerType(self.lr_scheduler_type).value
        with blaming(f"--lr_scheduler_type {schedule} and its --lr_scheduler_kwargs"):
            get_scheduler(
                self.lr_scheduler_type,
                torch.optim.SGD(model.parameters(), lr=self.learning_rate),
                num_warmup_steps=self.get_warmup_steps(100),
                num_training_steps=100,
                scheduler_specific_kwargs=self.lr_scheduler_kwargs,  # type: ignore[arg-type]
            )
        if self.torch_compile:
            with blaming("--torch_compile_…"):
                torch.compile(model, backend=self.torch_compile_backend or "inductor", mode=self.torch_compile_mode)

    def evaluate_by_steps(self) -> None:
        """Evaluate and save every `eval_steps`, by default ten times per run, since a stream has no epochs.

        Raises:
            InputError: `max_steps` is missing, or `eval_steps` is negative.
        """
        if self.max_steps <= 0:
            raise InputError("--streaming does not know the number of rows; set --max_steps")
        every = self.eval_steps or max(1, self.max_steps // 10)
        if every < 0:
            raise InputError(f"--eval_steps {every} is negative")
        # Values below 1 are a fraction of all steps.
        every = int(every) if every >= 1 else math.ceil(every * self.max_steps)
        if self.eval_strategy == IntervalStrategy.EPOCH:
            self.eval_strategy = IntervalStrategy.STEPS
        self.eval_steps = every
        if self.save_strategy == SaveStrategy.EPOCH:
            self.save_strategy, self.save_steps = SaveStrategy.STEPS, every


@dataclass
class GenerationArguments(RecipeArguments, Seq2SeqTrainingArguments):
    """Training arguments of sequence-to-sequence models, evaluated by generation."""

    predict_with_generate: bool = flag(True, "Evaluate by generation.")
    generation_num_beams: int | None = flag(1, "Beam size of evaluations during training.")

    def __post_init__(self) -> None:
        """Reject evaluations without generation."""
        if not self.predict_with_generate:
            raise ValueError("--predict_with_generate false: metrics are computed on generated texts; omit it")
        super().__post_init__()


def check_early_stopping(args: TrainingArguments) -> None:
    """Check that there are evaluations for early stopping to count.

    Raises:
        InputError: There are none.
    """
    if args.eval_strategy == IntervalStrategy.NO:
        raise InputError(
            "--early_stopping_patience requires evaluations, but --eval_strategy is no; use steps or epoch"
        )


def batch_options(args: TrainingArguments, max_tokens: int | None) -> dict[str, Any]:
    """Options that `BatchStream` and `TokenBudgetBatchSampler` share: token budget, seed, number of processes."""
    seed = args.seed if args.data_seed is None else args.data_seed
    return {"max_tokens": max_tokens, "seed": seed, "num_replicas": args.world_size}
