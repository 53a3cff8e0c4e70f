"""What the explicit Accelerate loops share: which flags they obey, the optimizer, and where a loop stands."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import SchedulerType, get_scheduler, set_seed

from hfseq.data.streaming import BatchStream, stream_loader
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.errors import InputError, blaming
from hfseq.training.arguments import RecipeArguments
from hfseq.training.averaging import last_checkpoints, load_average
from hfseq.training.callbacks import StopOnNaN, check_finite
from hfseq.training.checkpoints import (
    LOOP_STATE,
    best_checkpoint,
    epoch_batches,
    load_checkpoint,
    load_stream,
    save_checkpoint,
)
from hfseq.training.cli import explicit_fields
from hfseq.training.curves import new_curve_warnings
from hfseq.training.finetuning import optimizer_groups
from hfseq.training.hub import open_repository

logger = logging.getLogger(__name__)

HONOURED = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "data_seed", "use_cpu", "bf16"),
        *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "label_smoothing_factor"),
        *("logging_steps", "save_total_limit", "metric_for_best_model", "greater_is_better", "disable_tqdm"),
        *("average_checkpoints", "gradient_checkpointing", "activation_checkpointing", "report_to"),
        *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_token", "hub_strategy", "license"),
        "hp_space",
    }
)
"""Fields of `RecipeArguments` that every loop obeys; it evaluates and saves once an epoch.

A space to search may be said, for one YAML file serves both drivers; the search itself is the Trainer's.
"""
FIXED = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
"""Fields that may be said, so that one YAML file serves both drivers, but only so."""
_KEPT = ("epoch", "step", "log", "best", "best_step", "best_folder", "worse")
"""Attributes of `Progress` that a checkpoint keeps."""
_PREDICTION = frozenset({"ensemble", "output_file"})
"""Fields of the model and of the data that are for a trained model, which is the Trainer's driver's."""


def refuse_other_fields(
    kinds: Sequence[type],
    argv: Sequence[str] | None,
    args: RecipeArguments,
    *,
    other_driver: str,
    honoured: Sequence[str] = (),
    fixed: Mapping[str, Any] | None = None,
    streaming: bool = False,
) -> None:
    """Refuse training arguments that an explicit loop does not obey.

    Args:
        kinds: What `parse_config` was called with, the training arguments last.
        argv: Likewise.
        args: The training arguments.
        other_driver: Name of the script that obeys them.
        honoured: Fields that this loop obeys beside `HONOURED`.
        fixed: Fields that may have one value beside `FIXED`.
        streaming: Whether the training rows are a stream, and `args.evaluate_by_steps` was called.

    Raises:
        InputError: The user set another field, or a schedule that the loop cannot follow.
    """
    *own_kinds, _ = kinds
    own = {name for kind in own_kinds for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    own -= _PREDICTION
    values = FIXED | dict(fixed or {})
    if streaming:
        # A checkpoint is written at each evaluation.
        own.add("eval_steps")
        values |= {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": args.eval_steps}
    if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        name = SchedulerType(args.lr_scheduler_type).value
        raise InputError(
            f"--lr_scheduler_type {name} follows scores, of which the Accelerate loop tells none; use {other_driver}"
        )
    for name in sorted(explicit_fields(kinds, argv) - own - HONOURED - set(honoured)):
        if name not in values:
            raise InputError(f"--{name} is not honoured by the Accelerate loop; use {other_driver} for it")
        if getattr(args, name) != values[name]:
            raise InputError(f"--{name} is not honoured by the Accelerate loop; here it is always {values[name]}")


def start_accelerator(args: RecipeArguments, *, unused_parameters: bool = False) -> Accelerator:
    """An Accelerator that does what the training arguments say, with all random numbers seeded.

    With --push_to_hub it makes the repository; see `open_repository`.

    Args:
        args: The training arguments.
        unused_parameters: Whether some trainable parameters get no gradient in some steps.

    Raises:
        InputError: accelerate refuses the arguments, or has no such tracker.
    """
    ddp = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)
    with blaming("the training arguments"):
        accelerator = Accelerator(
            cpu=args.use_cpu,
            mixed_precision="bf16" if args.bf16 else "no",
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.data_seed),
            log_with=args.report_to or None,
            project_dir=args.output_dir if args.report_to else None,
            kwargs_handlers=[ddp] if unused_parameters else None,
        )
    # It goes on without a tracker whose package it does not find.
    if lost := sorted({*(args.report_to or ())} - {str(tracker) for tracker in accelerator.log_with}):
        raise InputError(f"--report_to {lost[0]}: accelerate does not find its package; install it, or leave it out")
    open_repository(args)
    set_seed(args.seed)
    return accelerator


def make_loader(
    accelerator: Accelerator,
    rows: datasets.Dataset | datasets.IterableDataset,
    collator: Callable[[list[Any]], Any],
    args: RecipeArguments,
    *,
    max_tokens: int | None,
) -> DataLoader:
    """A prepared loader of the training rows, in the batches that a `SequenceTrainer` makes.

    Args:
        accelerator: Of the loop.
        rows: Encoded rows, or a stream of them.
        collator: Makes batches of them.
        args: The training arguments.
        max_tokens: Budget of a batch of one process; None for `per_device_train_batch_size`.

    Raises:
        InputError: If the budget is too small for a row.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    if isinstance(rows, datasets.IterableDataset):
        stream = BatchStream(
            rows,
            max_tokens=max_tokens,
            batch_size=args.per_device_train_batch_size,
            seed=seed,
            rank=accelerator.process_index,
            num_replicas=accelerator.num_processes,
        )
        return stream_loader(stream, collator, accelerator.device)
    if max_tokens is None:
        batches: dict[str, Any] = {"batch_size": args.per_device_train_batch_size, "shuffle": True}
    else:
        processes = accelerator.num_processes
        sampler = TokenBudgetBatchSampler(row_lengths(rows), max_tokens, num_replicas=processes, seed=seed)
        batches = {"batch_sampler": sampler}
    return accelerator.prepare(DataLoader(rows, collate_fn=collator, **batches))


def stream_of(loader: DataLoader) -> BatchStream | None:
    """The stream that a loader of `make_loader` reads, if it reads one."""
    return loader.dataset if isinstance(loader.dataset, BatchStream) else None


def describe_batches(accelerator: Accelerator, loader: DataLoader) -> str:
    """How many processes and batches there are, to print."""
    what = f"{len(loader)} batches an epoch" if stream_of(loader) is None else "batches of a stream"
    return f"{accelerator.num_processes} process(es), {what}"


def make_optimizer(
    model: torch.nn.Module, args: RecipeArguments, groups: list[dict[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """AdamW as the Trainer makes it: no decay of biases and norms.

    Args:
        model: The model.
        args: The training arguments.
        groups: Parameter groups in place of these.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = {"learning_rate": args.learning_rate, "weight_decay": args.weight_decay, "decay": 1.0}
    return torch.optim.AdamW(
        groups or optimizer_groups(model, [trained], **rates),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=True,
    )


def make_schedule(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    args: RecipeArguments,
    loader: DataLoader,
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None,
) -> tuple[Any, int]:
    """The learning rate schedule, which checkpoints keep, and the number of optimizer steps.

    Args:
        accelerator: Of the loop.
        optimizer: Its optimizer.
        args: The training arguments.
        loader: Of the training rows.
        schedule: Makes the schedule from the optimizer and the number of steps; None for that of the arguments.
    """
    total_steps = args.max_steps
    if total_steps <= 0:
        total_steps = math.ceil(args.num_train_epochs * math.ceil(len(loader) / args.gradient_accumulation_steps))
    scheduler = schedule(optimizer, total_steps) if schedule else _schedule_of(args, optimizer, total_steps)
    accelerator.register_for_checkpointing(scheduler)
    return scheduler, total_steps


def _schedule_of(args: RecipeArguments, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )


class Progress:
    """Where an explicit loop stands: step, epoch, log, best evaluation, patience.

    It shows a progress bar, stops at a loss that is no number, and goes on from a checkpoint with the same result as
    a loop that was never stopped.

    Args:
        accelerator: That prepared the model.
        args: Training arguments.
        total_steps: Optimizer steps to do.
        patience: Evaluations without a better score after which the loop is done; None for no such end.

    Attributes:
        log: Losses and evaluations so far, as `TrainerState.log_history` has them.
    """

    def __init__(
        self, accelerator: Accelerator, args: RecipeArguments, *, total_steps: int, patience: int | None
    ) -> None:
        self.accelerator, self.args, self.total_steps, self.patience = accelerator, args, total_steps, patience
        self.epoch, self.step, self.log = 0, 0, []  # type: ignore[var-annotated]
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_folder = str(args.output_dir)  # where the checkpoint of that step is
        self.worse = 0
        self.stop_on_nan = StopOnNaN()
        # Below 1 it is a share of all steps.
        every = args.logging_steps
        self.log_every = int(every) if every >= 1 else math.ceil(every * total_steps)
        self.running = torch.tensor(0.0, device=accelerator.device)  # loss of the steps since the last log
        self._batches: Iterator[Any] | None = None  # of a stream, which goes on from evaluation to evaluation
        hidden = args.disable_tqdm or not accelerator.is_main_process
        self.bar = tqdm(total=total_steps, disable=hidden)
        if args.report_to:
            accelerator.init_trackers(Path(str(args.output_dir)).name)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train: all steps are done, or patience has run out."""
        return self.step >= self.total_steps or (self.patience is not None and self.worse >= self.patience)

    def steps(self, loader: Any) -> Iterator[list[Any]]:
        """The batches of each optimizer step of an epoch, as many as are accumulated; fewer in its last one.

        A stream has no epochs; there it is the steps up to the next evaluation.
        """
        micro_steps = self.args.gradient_accumulation_steps
        if stream_of(loader) is None:
            batches = epoch_batches(self.accelerator, loader, self.epoch)
        else:
            if self._batches is None:
                self._batches = epoch_batches(self.accelerator, loader, 0, skip=self.step * micro_steps)
            batches = islice(self._batches, int(self.args.eval_steps or 1) * micro_steps)
        while self.step < self.total_steps and (micro := list(islice(batches, micro_steps))):
            yield micro
            self._end_step()
        self.epoch += 1

    def observe(self, loss: torch.Tensor) -> None:
        """Note the loss of one of the batches of a step, a scalar."""
        self.stop_on_nan.observe(loss, self.step + 1)
        self.running += loss.detach()

    def _end_step(self) -> None:
        self.step += 1
        self.bar.update()
        if self.step % self.log_every == 0:
            self.stop_on_nan.check()
            loss = self.accelerator.reduce(self.running, "mean").item() / self.log_every
            self.running.zero_()
            self._note({"loss": loss})
            self.bar.set_postfix(loss=f"{loss:.3f}")

    def _note(self, values: Mapping[str, float]) -> None:
        """Append to the log, and send to the trackers."""
        self.log.append({"step": self.step, "epoch": self.epoch, **values})
        self.accelerator.log(dict(values), step=self.step)

    def say(self, text: str) -> None:
        """Print beside the bar, on the first process."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def end_epoch(
        self, model: torch.nn.Module, scores: Mapping[str, float], stream: BatchStream | None = None
    ) -> None:
        """Note the evaluation of an epoch, print it, warn of bad curves, and write a checkpoint; on all processes.

        Args:
            model: The model.
            scores: Of the evaluation.
            stream: What the training rows are read from, if they are streamed.

        Raises:
            InputError: A weight is not finite.
        """
        self.stop_on_nan.check()
        self._note({f"eval_{name}": value for name, value in scores.items()})
        self.say(", ".join(f"{name} {value:.4g}" for name, value in self.log[-1].items()))
        metric, greater = self.args.metric_for_best_model, bool(self.args.greater_is_better)
        for message in new_curve_warnings(self.log, metric, greater) if self.accelerator.is_main_process else ():
            logger.warning(message)
        check_finite(model, self.step)
        score = scores[str(self.args.metric_for_best_model).removeprefix("eval_")]
        if self.best is None or (score > self.best if self.args.greater_is_better else score < self.best):
            self.best, self.best_step, self.worse = score, self.step, 0
            self.best_folder = str(self.args.output_dir)
        else:
            self.worse += 1
        state = {name: getattr(self, name) for name in _KEPT}
        state["running"] = self.accelerator.reduce(self.running, "mean").item()
        save_checkpoint(
            self.accelerator,
            str(self.args.output_dir),
            self.step,
            state,
            total_limit=self.args.save_total_limit,
            best_step=self.best_step,
            stream=stream,
            batches=self.step * self.args.gradient_accumulation_steps,
        )

    def resume(self, checkpoint: str, stream: BatchStream | None = None) -> None:
        """Go on from a checkpoint: model, optimizer, schedule, random numbers, the stream and this.

        Raises:
            InputError: It is not a complete checkpoint, its state lacks something, or the best one of its run is
                nowhere to be found.
        """
        if stream is not None:
            load_stream(stream, checkpoint, self.accelerator.process_index)
        state = load_checkpoint(self.accelerator, checkpoint)
        if missing := [name for name in ("running", *_KEPT) if name not in state]:
            raise InputError(f"{checkpoint}: its {LOOP_STATE} does not say {missing[0]!r}")
        self.running.fill_(state["running"])
        for name in _KEPT:
            setattr(self, name, state[name])
        if self.best_step is not None:
            recorded = f"{self.best_folder}/checkpoint-{self.best_step}"
            self.best_folder = str(best_checkpoint(checkpoint, recorded).parent)
        self.bar.n = self.bar.initial = self.step

    def load_result(self, model: torch.nn.Module) -> None:
        """Close the bar, and load the weights of the best evaluation, or the mean of several if that is wanted.

        Raises:
            InputError: If there is no checkpoint to average.
        """
        self.bar.close()
        output_dir = str(self.args.output_dir)
        if count := self.args.average_checkpoints:
            load_average(self.accelerator.unwrap_model(model), last_checkpoints(output_dir, count))
        else:
            load_checkpoint(self.accelerator, Path(self.best_folder) / f"checkpoint-{self.best_step}")
