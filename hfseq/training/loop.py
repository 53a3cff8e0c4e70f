"""What the explicit Accelerate loops share: which flags they obey, the optimizer, and where a loop stands."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import get_scheduler

from hfseq.data.errors import InputError
from hfseq.training.arguments import RecipeArguments
from hfseq.training.callbacks import StopOnNaN, check_finite
from hfseq.training.checkpoints import epoch_batches, load_checkpoint, save_checkpoint
from hfseq.training.cli import explicit_fields

HONOURED = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed", "data_seed", "use_cpu", "bf16"),
        *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
        *("gradient_accumulation_steps", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
        *("max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "label_smoothing_factor"),
        *("logging_steps", "save_total_limit", "metric_for_best_model", "greater_is_better", "disable_tqdm"),
    }
)
"""Fields of `RecipeArguments` that every loop obeys; it evaluates and saves once an epoch."""
FIXED = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
"""Fields that may be said, so that one YAML file serves both drivers, but only so."""


def refuse_other_fields(
    kinds: Sequence[type],
    argv: Sequence[str] | None,
    args: RecipeArguments,
    *,
    other_driver: str,
    honoured: Sequence[str] = (),
    fixed: Mapping[str, Any] | None = None,
) -> None:
    """Refuse training arguments that an explicit loop does not obey.

    Args:
        kinds: What `parse_config` was called with, the training arguments last.
        argv: Likewise.
        args: The training arguments.
        other_driver: Name of the script that obeys them.
        honoured: Fields that this loop obeys beside `HONOURED`.
        fixed: Fields that may have one value beside `FIXED`.

    Raises:
        InputError: The user set another field.
    """
    *own_kinds, _ = kinds
    own = {name for kind in own_kinds for name in kind.__dataclass_fields__}  # type: ignore[attr-defined]
    values = FIXED | dict(fixed or {})
    for name in sorted(explicit_fields(kinds, argv) - own - HONOURED - set(honoured)):
        if name not in values:
            raise InputError(f"--{name} is not honoured by the Accelerate loop; use {other_driver} for it")
        if getattr(args, name) != values[name]:
            raise InputError(f"--{name} is not honoured by the Accelerate loop; here it is always {values[name]}")


def make_optimizer(model: torch.nn.Module, args: RecipeArguments) -> torch.optim.Optimizer:
    """AdamW as the Trainer makes it: no decay of biases and norms."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["bias" not in name and "norm" not in name.lower()].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": args.weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=True,
    )


def make_schedule(optimizer: torch.optim.Optimizer, args: RecipeArguments, batches: int) -> tuple[Any, int]:
    """The learning rate schedule of the arguments, and the number of optimizer steps, for epochs of `batches`."""
    steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    total_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )
    return schedule, total_steps


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
        self.worse = 0
        self.stop_on_nan = StopOnNaN()
        # Below 1 it is a share of all steps.
        every = args.logging_steps
        self.log_every = int(every) if every >= 1 else math.ceil(every * total_steps)
        self.running = torch.tensor(0.0, device=accelerator.device)  # loss of the steps since the last log
        hidden = args.disable_tqdm or not accelerator.is_main_process
        self.bar = tqdm(total=total_steps, disable=hidden)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to train: all steps are done, or patience has run out."""
        return self.step >= self.total_steps or (self.patience is not None and self.worse >= self.patience)

    def steps(self, loader: Any) -> Iterator[list[Any]]:
        """The batches of each optimizer step of an epoch, as many as are accumulated; fewer in its last one."""
        batches = epoch_batches(self.accelerator, loader, self.epoch)
        while self.step < self.total_steps and (micro := list(islice(batches, self.args.gradient_accumulation_steps))):
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
            self.log.append({"step": self.step, "epoch": self.epoch, "loss": loss})
            self.bar.set_postfix(loss=f"{loss:.3f}")

    def end_epoch(self, model: torch.nn.Module, scores: Mapping[str, float]) -> None:
        """Note the evaluation of an epoch, print it, and write a checkpoint; on all processes.

        Raises:
            InputError: A weight is not finite.
        """
        self.stop_on_nan.check()
        entry = {"step": self.step, "epoch": self.epoch} | {f"eval_{name}": value for name, value in scores.items()}
        self.log.append(entry)
        if self.accelerator.is_main_process:
            self.bar.write(", ".join(f"{name} {value:.4g}" for name, value in entry.items()))
        check_finite(model, self.step)
        score = scores[str(self.args.metric_for_best_model).removeprefix("eval_")]
        if self.best is None or (score > self.best if self.args.greater_is_better else score < self.best):
            self.best, self.best_step, self.worse = score, self.step, 0
        else:
            self.worse += 1
        names = ("epoch", "step", "log", "best", "best_step", "worse")
        state = {name: getattr(self, name) for name in names}
        state["running"] = self.accelerator.reduce(self.running, "mean").item()
        save_checkpoint(
            self.accelerator,
            str(self.args.output_dir),
            self.step,
            state,
            total_limit=self.args.save_total_limit,
            best_step=self.best_step,
        )

    def resume(self, checkpoint: str) -> None:
        """Go on from a checkpoint: model, optimizer, schedule, random numbers and this."""
        state = load_checkpoint(self.accelerator, checkpoint)
        self.running.fill_(state.pop("running"))
        for name, value in state.items():
            setattr(self, name, value)
        self.bar.n = self.bar.initial = self.step

    def load_best(self) -> None:
        """Close the bar and load the weights of the best evaluation."""
        self.bar.close()
        load_checkpoint(self.accelerator, Path(str(self.args.output_dir)) / f"checkpoint-{self.best_step}")
