"""Explicit Accelerate training loop: supported arguments, optimizer, schedule, progress bar, checkpoints."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, SchedulerType, get_scheduler

from hfseq.data.streaming import BatchStream, stream_loader
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.errors import InputError, blaming
from hfseq.lazy import datasets
from hfseq.tasks.base import Task
from hfseq.training.arguments import RecipeArguments, batch_options
from hfseq.training.averaging import last_checkpoints, load_average
from hfseq.training.callbacks import StopOnNaN, check_finite
from hfseq.training.checkpoints import best_checkpoint, epoch_batches, load_checkpoint, load_stream, save_checkpoint
from hfseq.training.cli import explicit_fields
from hfseq.training.curves import log_new_warnings
from hfseq.training.finetuning import describe_model, optimizer_groups
from hfseq.training.lengths import length_report
from hfseq.training.reporting import open_repository
from hfseq.training.run import Run, begin

HONOURED = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "data_seed", "use_cpu", "bf16"),
        *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("label_smoothing_factor", "rdrop_alpha", "adversarial_epsilon"),
        *("logging_steps", "save_total_limit", "metric_for_best_model", "greater_is_better", "disable_tqdm"),
        *("average_checkpoints", "gradient_checkpointing", "activation_checkpointing", "report_to"),
        *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_token", "hub_strategy", "license"),
        *("generation_num_beams", "generation_max_length", "hp_space"),
    }
)
"""Training arguments that the loop supports; it evaluates and saves once per epoch.

`hp_space` is accepted, since one YAML file serves both drivers, but only the Trainer's driver runs searches.
"""
FIXED = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "predict_with_generate": True,
}
"""Training arguments accepted with these values only, so that one YAML file serves both drivers."""
_KEPT = ("epoch", "step", "log", "best", "best_step", "best_folder", "worse")
"""Attributes of `Loop` saved in a checkpoint."""
_GROUPS: list[Any] = []
"""Process groups, kept to the end of the process.

If a wrapped model held the last reference to one, its destructor would wait for gloo's threads without releasing the
GIL, and one of these may be waiting for the GIL: the run would hang when it is done.
"""
_PREDICTION = frozenset({"ensemble", "output_file"})
"""Model and data flags for prediction with trained models, which only the Trainer's driver supports."""


def begin_loop(
    arguments: Sequence[type],
    argv: Sequence[str] | None,
    tasks: type[Task] | Mapping[str, type[Task]],
    *,
    other_driver: str,
    demo: str | Path | None = None,
) -> Run:
    """Parse and validate the arguments of a recipe with an explicit loop, and start Accelerate.

    Args:
        arguments: Dataclasses of the model, data and training arguments.
        argv: Command-line arguments; None for `sys.argv`.
        tasks: The task, or the choices of `--task` by name.
        other_driver: Name of the script that supports all training arguments.
        demo: Default YAML file when no model or data are given.

    Raises:
        InputError: An argument is invalid or unsupported, a package or tracker is missing, or the Hub rejects the
            repository.
    """
    run = begin(arguments, argv, tasks, demo=demo, check=partial(refuse_other_fields, other_driver=other_driver))
    gradual = getattr(run.data, "method", None) == "gradual"  # frozen parameters get no gradient
    run.accelerator = start_accelerator(run.args, unused_parameters=gradual)
    return run


def refuse_other_fields(run: Run, *, other_driver: str) -> None:
    """Reject training arguments that the loop does not support.

    Args:
        run: The run; the last of its dataclasses are the training arguments.
        other_driver: Name of the script that supports all of them.

    Raises:
        InputError: The user set an unsupported field or learning rate schedule.
    """
    args, instead = run.args, f"is not supported by the Accelerate loop; use {other_driver}"
    own = {name for kind in run.arguments[:-1] for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    own -= _PREDICTION
    values = dict(FIXED)
    if run.data.streaming:
        # A checkpoint is written at each evaluation.
        own.add("eval_steps")
        values |= {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": args.eval_steps}
    # These schedules step on evaluation metrics, which the loop does not pass to them.
    if args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
        raise InputError(f"--lr_scheduler_type {SchedulerType(args.lr_scheduler_type).value} {instead}")
    for name in sorted(explicit_fields(run.arguments, run.argv) - own - HONOURED):
        if name not in values:
            raise InputError(f"--{name} {instead}")
        if getattr(args, name) != values[name]:
            raise InputError(f"--{name} is not supported by the Accelerate loop, which fixes it to {values[name]}")


def start_accelerator(args: RecipeArguments, *, unused_parameters: bool = False) -> Accelerator:
    """Create the `Accelerator` from the training arguments.

    With `--push_to_hub` the Hub repository is created, too; see `open_repository`.

    Args:
        args: Training arguments.
        unused_parameters: Whether some trainable parameters may receive no gradient in a step.

    Raises:
        InputError: Accelerate rejects the arguments, or does not find a tracker.
    """
    with blaming("the training arguments"):
        accelerator = Accelerator(
            cpu=args.use_cpu,
            mixed_precision="bf16" if args.bf16 else "no",
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.data_seed),
            log_with=args.report_to or None,
            project_dir=args.output_dir if args.report_to else None,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
        )
    if torch.distributed.is_initialized():
        _GROUPS.append(torch.distributed.group.WORLD)
    # Accelerate silently drops trackers whose package is not installed.
    if lost := sorted({*(args.report_to or ())} - {str(tracker) for tracker in accelerator.log_with}):
        raise InputError(f"--report_to {lost[0]}: accelerate does not find its package; install it or omit the flag")
    open_repository(args)
    return accelerator


def make_loader(run: Run, task: Task) -> DataLoader:
    """Prepared data loader of the training rows, with the same batches as `SequenceTrainer`.

    Args:
        run: The run, with its accelerator.
        task: Task with encoded rows; an `IterableDataset` is streamed.

    Raises:
        InputError: A row exceeds `--max_tokens`.
    """
    accelerator, args, rows = cast(Accelerator, run.accelerator), run.args, task.encoded["train"]
    options = batch_options(args, run.data.max_tokens)
    size: dict[str, Any] = {"batch_size": args.per_device_train_batch_size}
    if isinstance(rows, datasets.IterableDataset):
        stream = BatchStream(rows, rank=accelerator.process_index, **size, **options)
        return stream_loader(stream, task.collator, accelerator.device)
    if run.data.max_tokens is None:
        batches = {**size, "shuffle": True}
    else:
        batches = {"batch_sampler": TokenBudgetBatchSampler(row_lengths(rows), **options)}
    return accelerator.prepare(DataLoader(rows, collate_fn=task.collator, **batches))


def make_optimizer(
    model: torch.nn.Module, args: RecipeArguments, groups: list[dict[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """The Trainer's optimizer and parameter groups: AdamW without weight decay on biases and norms.

    Args:
        model: Model to optimize.
        args: Training arguments.
        groups: Parameter groups to use instead.
    """
    from transformers import Trainer  # slow to import

    if groups is None:
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        rates = {"learning_rate": args.learning_rate, "weight_decay": args.weight_decay}
        groups = optimizer_groups(model, [trained], **rates, decay=1.0)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    return optimizer_class(groups, **settings)


def make_schedule(args: RecipeArguments, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """Learning rate schedule set by the training arguments."""
    settings: Any = args.lr_scheduler_kwargs
    warmup = args.get_warmup_steps(total_steps)
    return get_scheduler(args.lr_scheduler_type, optimizer, warmup, total_steps, scheduler_specific_kwargs=settings)


class Loop:
    """State of an explicit training loop: batches, optimizer, schedule, step, epoch, log, best evaluation, patience.

    Shows a progress bar, stops on NaN/inf losses, and resumes bit-exactly from a checkpoint.

    Args:
        run: The run; its output directory is prepared.
        task: Task with rows encoded for the model.
        model: Model to train.
        processing_class: Tokenizer, or other processing class of the model, which is saved with it; or None.
        parameter_groups: Returns the optimizer's parameter groups for a model; None for the Trainer's.
        schedule: Returns the learning rate schedule for an optimizer and a number of steps; None to use the training
            arguments.

    Attributes:
        model: Model prepared by Accelerate.
        plain_model: Unwrapped model.
        optimizer: Prepared optimizer.
        scheduler: Learning rate schedule.
        log: Losses and evaluations so far, in the format of `TrainerState.log_history`.

    Raises:
        InputError: A row exceeds `--max_tokens`, or the checkpoint to resume from is incomplete.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        model: PreTrainedModel,
        processing_class: Any,
        *,
        parameter_groups: Callable[[Any], list[dict[str, Any]]] | None = None,
        schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None,
    ) -> None:
        accelerator, args = cast(Accelerator, run.accelerator), run.args
        self.accelerator, self.args, self.task, self.processing_class = accelerator, args, task, processing_class
        self.patience, self.plain_model = run.data.early_stopping_patience, model
        task.check_regularization()
        self.loader = make_loader(run, task)
        run.log(describe_model(model, processing_class))
        self.stream = self.loader.dataset if isinstance(self.loader.dataset, BatchStream) else None
        if args.activation_checkpointing:
            model.activation_checkpointing_enable()
        optimizer = make_optimizer(model, args, parameter_groups(model) if parameter_groups else None)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.total_steps = args.max_steps
        if self.total_steps <= 0:
            steps = math.ceil(len(self.loader) / args.gradient_accumulation_steps)
            self.total_steps = math.ceil(args.num_train_epochs * steps)
        self.scheduler = (schedule or partial(make_schedule, args))(self.optimizer, self.total_steps)
        accelerator.register_for_checkpointing(self.scheduler)
        run.prepare()
        batches = f"{len(self.loader)} batches per epoch" if self.stream is None else "streamed batches"
        run.log(f"{accelerator.num_processes} process(es), {batches}")
        self.epoch, self.step, self.worse, self.log = 0, 0, 0, []  # type: ignore[var-annotated]
        self.best: float | None = None
        self.best_step: int | None = None
        self.best_folder = str(args.output_dir)  # contains the checkpoint of that step
        self.stop_on_nan = StopOnNaN()
        # Values below 1 are a fraction of all steps.
        every = args.logging_steps
        self.log_every = int(every) if every >= 1 else math.ceil(every * self.total_steps)
        self.running = torch.tensor(0.0, device=accelerator.device)  # summed loss since the last log
        self.bar = tqdm(total=self.total_steps, disable=args.disable_tqdm or not accelerator.is_main_process)
        if args.report_to:
            accelerator.init_trackers(Path(str(args.output_dir)).name)
        if run.checkpoint is not None:
            self._resume(run.checkpoint)
        if self.stream is not None:  # continued across evaluations
            self._batches = epoch_batches(accelerator, self.loader, 0, self.step * args.gradient_accumulation_steps)

    @property
    def done(self) -> bool:
        """True when all steps are done or early stopping has triggered."""
        return self.step >= self.total_steps or (self.patience is not None and self.worse >= self.patience)

    def steps(self) -> Iterator[list[Any]]:
        """Yield the micro-batches of each optimizer step of an epoch; the last step may have fewer.

        Streams have no epochs: their steps run up to the next evaluation.
        """
        micro_steps = self.args.gradient_accumulation_steps
        if self.stream is None:
            batches = epoch_batches(self.accelerator, self.loader, self.epoch)
        else:
            batches = islice(self._batches, int(self.args.eval_steps or 1) * micro_steps)
        while self.step < self.total_steps and (micro := list(islice(batches, micro_steps))):
            yield micro
            self._end_step()
        self.epoch += 1

    def total(self, counts: Iterable[torch.Tensor]) -> torch.Tensor:
        """Sum of counts over all processes, divided by the number of processes, since DDP averages gradients."""
        count = torch.as_tensor(sum(counts), device=self.accelerator.device)
        return self.accelerator.reduce(count, "sum") / self.accelerator.num_processes

    def observe(self, loss: torch.Tensor) -> None:
        """Record the scalar loss of one micro-batch."""
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
        """Append to the log and send to the trackers."""
        self.log.append({"step": self.step, "epoch": self.epoch, **values})
        self.accelerator.log(dict(values), step=self.step)

    def say(self, text: str) -> None:
        """Print without breaking the progress bar, on the main process."""
        if self.accelerator.is_main_process:
            self.bar.write(text)

    def evaluate(self) -> dict[str, float]:
        """Return the validation scores and loss, and print the scores by source length."""
        sample, _ = self.task.predict(self.plain_model, "train_sample")
        raw, loss = self.task.predict(self.plain_model, "validation")
        self.say(length_report(self.task, {"train_sample": sample, "validation": raw}))
        return self.task.score_raw("validation", raw) | {"loss": loss}

    def end_epoch(self) -> None:
        """Evaluate, log the scores, warn of over- and underfitting, and write a checkpoint; call on all processes.

        Raises:
            InputError: A loss or weight is NaN or inf.
        """
        scores = self.evaluate()
        self.stop_on_nan.check()
        self._note({f"eval_{name}": value for name, value in scores.items()})
        self.say(", ".join(f"{name} {value:.4g}" for name, value in self.log[-1].items()))
        if self.accelerator.is_main_process:
            log_new_warnings(self.log, self.args)
        check_finite(self.model, self.step)
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
            stream=self.stream,
            batches=self.step * self.args.gradient_accumulation_steps,
        )

    def _resume(self, checkpoint: str) -> None:
        """Restore model, optimizer, schedule, random states, stream position and loop state from a checkpoint.

        Raises:
            InputError: It is incomplete, its loop state lacks a value, or the best checkpoint of its run is missing.
        """
        if self.stream is not None:
            load_stream(self.stream, checkpoint, self.accelerator.process_index)
        state = load_checkpoint(self.accelerator, checkpoint, ("running", *_KEPT))
        self.running.fill_(state["running"])
        for name in _KEPT:
            setattr(self, name, state[name])
        if self.best_step is not None:
            recorded = f"{self.best_folder}/checkpoint-{self.best_step}"
            self.best_folder = str(best_checkpoint(checkpoint, recorded).parent)
        self.bar.n = self.bar.initial = self.step

    def load_result(self) -> None:
        """Load the best checkpoint, or average the last checkpoints.

        Raises:
            InputError: There is no checkpoint to average.
        """
        self.bar.close()
        output_dir, metric = str(self.args.output_dir), self.task.metric
        if count := self.args.average_checkpoints:
            load_average(self.accelerator.unwrap_model(self.model), last_checkpoints(output_dir, count))
            mean = self.evaluate()[metric]
            self.accelerator.print(f"average of the last {count} checkpoints: {metric} {mean:.4g}")
        else:
            load_checkpoint(self.accelerator, Path(self.best_folder) / f"checkpoint-{self.best_step}")

    def save(self, model: Any) -> None:
        """Save the model and its processing class, on the main process."""
        if self.accelerator.is_main_process:
            model.save_pretrained(self.args.output_dir)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(self.args.output_dir)
