"""What watches a run while it trains."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfseq.errors import InputError

_NEVER = torch.iinfo(torch.int64).max


class StopOnNaN(TrainerCallback):
    """Stops a run whose loss is not a finite number, and names the step.

    `observe` keeps the first bad step in a tensor on the loss's device and reads nothing back from a GPU; `check`
    reads it. As a callback of `SequenceTrainer`, which calls `observe`, it checks before each log, evaluation and
    checkpoint; an explicit loop calls both itself. On a CPU reading is free, and the run stops at the step.
    """

    def __init__(self) -> None:
        self._first_bad_step: torch.Tensor | None = None

    def observe(self, loss: torch.Tensor, step: int) -> None:
        """Note a loss (a scalar tensor) of optimizer step `step`, counted from 1.

        Raises:
            InputError: the loss is on a CPU and not finite.
        """
        bad_step = torch.where(loss.detach().isfinite(), _NEVER, step)
        seen = self._first_bad_step
        self._first_bad_step = bad_step if seen is None else torch.minimum(seen, bad_step)
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Stop if a loss observed so far was not finite.

        Raises:
            InputError: one line with the step.
        """
        if self._first_bad_step is not None and (step := int(self._first_bad_step)) != _NEVER:
            raise InputError(
                f"the loss is not a finite number at step {step}: lower --learning_rate or --max_grad_norm, "
                "or look for bad rows; the checkpoints written before are good"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check before anything is logged, evaluated or saved."""
        if control.should_log or control.should_evaluate or control.should_save:
            self.check()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check after an epoch."""
        self.check()


def check_finite(model: torch.nn.Module, step: int) -> None:
    """Refuse weights that are not finite, before they are saved: a gradient can overflow where the loss does not.

    Args:
        model: whose parameters are read, once.
        step: the optimizer step just done, for the message.

    Raises:
        InputError: one line with the step.
    """
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in model.parameters()])
    if not finite.all():
        raise InputError(
            f"the weights are not finite numbers after step {step}: lower --learning_rate or --max_grad_norm; "
            "no checkpoint of them is written"
        )
