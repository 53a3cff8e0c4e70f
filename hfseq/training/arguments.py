"""Command-line fields of models and of training, as dataclasses for `parse_config`."""

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from hfseq.errors import InputError, blaming, require
from hfseq.tasks.arguments import check_numbers
from hfseq.tokenization import MODELS, NORMALIZATIONS

_KEPT = {
    "prediction_loss_only": False,
    "eval_do_concat_batches": True,
    "batch_eval_metrics": False,
    "dataloader_drop_last": False,
    "label_names": None,
}
"""Training arguments with which an evaluation does not give the scores of all rows."""


@dataclass
class ModelArguments:
    """The model: a checkpoint, or a new model of a family with a new tokenizer."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to start from: a directory or Hub name of any architecture."}
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Model family to train from scratch, such as hfseq_lstm (the default)."}
    )
    config_overrides: dict | None = field(
        default=None, metadata={"help": "Config fields of a new model, e.g. {hidden_size: 256, dropout: 0.3}."}
    )
    tokenizer_model: str = field(
        default="unigram", metadata={"help": f"Tokenizer trained for a new model: {', '.join(MODELS)}."}
    )
    vocab_size: int = field(
        default=8000, metadata={"help": "Vocabulary size of a new tokenizer, special tokens included."}
    )
    normalization: str = field(
        default="nfc", metadata={"help": f"Unicode normalization of a new tokenizer: {', '.join(NORMALIZATIONS)}."}
    )
    lowercase: bool = field(default=False, metadata={"help": "Lowercase the input of a new tokenizer."})
    ensemble: list[str] | None = field(
        default=None,
        metadata={"help": "Further checkpoints of an ensemble with --model_name_or_path (mean of the probabilities)."},
    )

    def __post_init__(self) -> None:
        """Refuse an ensemble without its first member."""
        if self.ensemble and self.model_name_or_path is None:
            raise ValueError("--ensemble names further members; --model_name_or_path names the first")


@dataclass
class RecipeArguments(TrainingArguments):
    """Transformers' training arguments, with defaults for a model from scratch that is evaluated every epoch."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete what an earlier run wrote to output_dir, and start from scratch."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Checkpoints to keep, not counting the best one."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Return the best checkpoint, not the last one."}
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Metric of the best checkpoint; by default the first one of the task."}
    )
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate; the default is for a model from scratch."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Evaluation batch size of each process."})
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata={"help": "Pin the memory of batches."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the training loss."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide NaN and infinite losses from the logs; such a loss stops the run."}
    )
    average_checkpoints: int | None = field(
        default=None,
        metadata={"help": "Average the weights of this many checkpoints, the last ones of the run."},
    )
    hp_search: int | None = field(
        default=None, metadata={"help": "Search hp_space with this many trials of optuna instead of one training run."}
    )
    hp_space: dict | None = field(
        default=None,
        metadata={
            "help": "Search space: {learning_rate: {low: 1e-4, high: 1e-2, log: true}, "
            "config_overrides.hidden_size: [128, 256]}."
        },
    )

    license: str | None = field(
        default=None,
        metadata={"help": "Hub identifier of the licence of the weights, for the model card: apache-2.0."},
    )

    def __post_init__(self) -> None:
        """Refuse what would stop a run only after its first epoch, or would have no effect."""
        if self.hub_token is not None:
            # For this process alone: the arguments are saved beside each checkpoint.
            os.environ["HF_TOKEN"], self.hub_token = self.hub_token, None
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ValueError(f"--license {self.license!r} is no name that the Hub knows; give one such as apache-2.0")
        if self.push_to_hub and (self.hp_search or (self.do_predict and not self.do_train)):
            raise ValueError("--push_to_hub publishes what a run trains; hfseq.publish(DIRECTORY, NAME) any model")
        if self.push_to_hub and "checkpoint" in str(getattr(self.hub_strategy, "value", self.hub_strategy)):
            raise ValueError("--hub_strategy: a run is published at its end, with its scores; leave it out")
        # The task decides the rest; see `choose_metric`.
        self._asked = (self.metric_for_best_model, self.greater_is_better)
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
        check_numbers(self)
        for name, kept in _KEPT.items():
            if getattr(self, name) != kept:
                raise ValueError(f"--{name}: the scores of a recipe are those of all rows; leave it out")
        super().__post_init__()
        self._check_libraries()
        self.hub_strategy = HubStrategy.END
        # Every process reads the data; only one reports dropped rows.
        if self.process_index:
            logging.getLogger("hfseq").setLevel(logging.ERROR)
            datasets.disable_progress_bars()

    def choose_metric(self, metrics: Sequence[str], others: Sequence[str] = ()) -> None:
        """Set the metric of the best checkpoint to the first of a task's, unless the user chose one.

        Args:
            metrics: Metrics of the task.
            others: Metrics of another task that the data may ask for; see `Task.use`.

        Raises:
            InputError: The task has no such metric.
        """
        metric, greater = self._asked
        metric = metric or metrics[0]
        name = metric.removeprefix("eval_")
        known = dict.fromkeys((*metrics, "loss"))
        if name not in (*known, *others):
            raise InputError(f"unknown --metric_for_best_model {name!r}; there are {', '.join(known)}")
        lower = name in ("loss", "perplexity", "word_perplexity", "rmse")
        self.metric_for_best_model, self.greater_is_better = metric, not lower if greater is None else greater

    def _check_libraries(self) -> None:
        """Build trackers, optimizer, schedule and loader in miniature, so that errors come before the data are read.

        A tracker or an optimizer may lack its package, a schedule an argument, a loader its workers.
        """
        with blaming("--report_to"):
            for tracker in get_reporting_integration_callbacks(self.report_to):
                # Some complain a second time when a half-made one is garbage-collected.
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
        """Evaluate and save by steps, by default ten times, since a stream has no epochs.

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
    """Training arguments of a sequence-to-sequence model, which is evaluated by generating."""

    predict_with_generate: bool = field(default=True, metadata={"help": "Generate in evaluations."})
    generation_num_beams: int | None = field(default=1, metadata={"help": "Beams of evaluations during training."})

    def __post_init__(self) -> None:
        """Refuse evaluations without generation."""
        if not self.predict_with_generate:
            raise ValueError("--predict_with_generate false: the scores are those of generated texts; leave it out")
        super().__post_init__()
