"""Detection of NaN/inf losses and weights during training."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfseq.errors import InputError

_NEVER = torch.iinfo(torch.int64).max


class StopOnNaN(TrainerCallback):
    """Stops a run at a NaN/inf loss and reports the step.

    `observe` keeps the first bad step in a tensor on the loss's device, without a GPU synchronization; `check` reads
    it. `SequenceTrainer` calls `observe`, and the callback checks before each log, evaluation and checkpoint;
    explicit loops call both methods themselves. On a CPU, where reading is free, the run stops at the step itself.
    """

    def __init__(self) -> None:
        self._first_bad_step: torch.Tensor | None = None

    def observe(self, loss: torch.Tensor, step: int) -> None:
        """Record a scalar loss of optimizer step `step`, counted from 1.

        Raises:
            InputError: The loss is on a CPU and is NaN or inf.
        """
        bad_step = torch.where(loss.detach().isfinite(), _NEVER, step)
        seen = self._first_bad_step
        self._first_bad_step = bad_step if seen is None else torch.minimum(seen, bad_step)
        if loss.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise if any observed loss was NaN or inf.

        Raises:
            InputError: With the first bad step.
        """
        if self._first_bad_step is not None and (step := int(self._first_bad_step)) != _NEVER:
            raise InputError(
                f"NaN/inf loss at step {step}: lower --learning_rate or --max_grad_norm, or check the data; earlier "
                "checkpoints are valid"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check before logging, evaluation and saving."""
        if control.should_log or control.should_evaluate or control.should_save:
            self.check()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Check at the end of each epoch."""
        self.check()


def check_finite(model: torch.nn.Module, step: int) -> None:
    """Raise on NaN/inf weights before they are saved: gradients can overflow while the loss stays finite.

    Args:
        model: Model to check.
        step: Optimizer step just done, for the message.

    Raises:
        InputError: A weight is NaN or inf.
    """
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in model.parameters()])
    if not finite.all():
        raise InputError(
            f"NaN/inf weights after step {step}: lower --learning_rate or --max_grad_norm; no checkpoint is written"
        )
