"""Trainers with token-budget batching and crash-safe checkpoints."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Seq2SeqTrainer,
    Trainer,
)
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, SchedulerType, TrainOutput
from transformers.training_args import OptimizerNames
from transformers.utils import SAFE_WEIGHTS_NAME

from hfseq.data.streaming import BatchStream, stream_loader
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.errors import InputError, blaming, one_line
from hfseq.hub.publish import hub_errors
from hfseq.lazy import datasets
from hfseq.tasks.base import Task
from hfseq.tasks.losses import token_loss
from hfseq.tasks.seq2seq import labelled_steps
from hfseq.training import checkpoints
from hfseq.training.arguments import RecipeArguments, batch_options, check_early_stopping
from hfseq.training.averaging import last_checkpoints, load_average
from hfseq.training.callbacks import StopOnNaN, check_finite
from hfseq.training.reporting import publish_directory, repository_of


class SmoothedCrossEntropy(LabelSmoother):
    """Memory-efficient label smoothing (Szegedy et al. 2016, section 7) by `token_loss`.

    The parent class materializes the negative log-probabilities of the whole vocabulary and reads them several times.
    """

    def __call__(
        self,
        model_output: Any,
        labels: torch.Tensor,
        shift_labels: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean loss over the labels `[B, T]` other than -100, or their sum divided by `num_items_in_batch`."""
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        if shift_labels:
            logits, labels = logits[:, :-1], labels[:, 1:]
        count = num_items_in_batch
        count = count.to(logits.device) if isinstance(count, torch.Tensor) else count
        return token_loss(logits, labels, label_smoothing=self.epsilon, count=count)


class SequenceTrainer(Trainer):
    """Crash-safe `Trainer` with token-budget batching.

    - With `max_tokens`, batches have at most that many tokens (see `TokenBudgetBatchSampler`); otherwise the batch
      size of the training arguments applies.
    - Training resumes from complete checkpoints only, and exactly, on any number of processes: shuffling, random
      states, best checkpoint, patience. Old checkpoints are deleted once the new one is complete.
    - NaN/inf losses or weights stop the run and are never saved.

    A `datasets.IterableDataset` as `train_dataset` is streamed (see `BatchStream`).

    Args:
        *args: Arguments of `Trainer`.
        task: Task that scores evaluations on its split `validation`; None to use `compute_metrics`.
        max_tokens: Token budget of a batch per process, including padding. None for the batches of the training
            arguments (`per_device_train_batch_size`, `train_sampling_strategy`).
        parameter_groups: Returns the optimizer's parameter groups for a model; None for the Trainer's.
        schedule: Returns the learning rate schedule for an optimizer and a number of steps; None to use the training
            arguments.
        **kwargs: Arguments of `Trainer`.

    Raises:
        InputError: Early stopping is requested without evaluations, or transformers or Accelerate reject the training
            arguments.
    """

    def __init__(
        self,
        *args: Any,
        task: Task | None = None,
        max_tokens: int | None = None,
        parameter_groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None,
        schedule: Callable[[Any, int], Any] | None = None,
        **kwargs: Any,
    ):
        self.task = task
        self.eval_predictions: Any = None
        if task is not None:
            kwargs["compute_metrics"] = self._score
        with blaming("the training arguments"):
            super().__init__(*args, **kwargs)
        stopper = self._early_stopper()
        self._patience = None if stopper is None else stopper.early_stopping_patience
        if stopper is not None:
            check_early_stopping(self.args)
        if self.label_smoother is not None:
            self.label_smoother = SmoothedCrossEntropy(epsilon=self.args.label_smoothing_factor)
        self.max_tokens, self.parameter_groups, self.schedule = max_tokens, parameter_groups, schedule
        self._stream: BatchStream | None = None
        self._checkpoint: str | None = None
        self.stop_on_nan = StopOnNaN()
        self.add_callback(self.stop_on_nan)
        self._best: str | None = None

    def _early_stopper(self) -> EarlyStoppingCallback | None:
        return next((one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)), None)

    def _score(self, output: EvalPrediction) -> dict[str, float]:
        self.eval_predictions = output.predictions
        return cast(Task, self.task).score_raw("validation", output.predictions)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        task = self.task
        if task is not None and task.label_name != "labels":
            # transformers counts those of a key `labels` alone.
            batch_samples = [{"labels": torch.zeros(int(task.count(batch)))} for batch in batch_samples]
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """Compute the loss, without logits that the task does not need.

        In training with `--rdrop_alpha` all rows are read twice; with `--adversarial_epsilon`, again with embeddings
        moved.
        """
        if self.task is not None and self.compute_loss_func is not None and "labels" in inputs:
            rows = self.task.twice(inputs)
            inputs = {**rows, **self.task.loss_inputs(self.accelerator.unwrap_model(model), rows["labels"])}
        if self.task is None:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        compute, outputs = super().compute_loss, []

        def read() -> torch.Tensor:
            loss, found = compute(model, dict(inputs), True, *args, **kwargs)
            outputs.append(found)
            return loss

        loss = self.task.against(model, read)
        return (loss, outputs[0]) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: Any = None,
        **options: Any,
    ) -> tuple[Any, Any, Any]:
        """Predict a batch of an evaluation; by `Task.predict_batch` if the task has it."""
        task = self.task
        if task is None or not task.predicts_batches:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **options)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, raw = task.predict_batch(self.accelerator.unwrap_model(model), inputs)
        return loss, raw, inputs[task.label_name]

    def predict_split(self, split: str, **options: Any) -> np.ndarray:
        """Raw predictions for a split of the task; `options` are passed to `generate`."""
        scorer, self.compute_metrics = self.compute_metrics, None  # the caller scores them
        try:
            rows = cast(Task, self.task).encoded[split]
            return cast(np.ndarray, self.predict(rows, metric_key_prefix=split, **options).predictions)
        finally:
            self.compute_metrics = scorer

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        if self.max_tokens is None:
            return super()._get_train_sampler(train_dataset)
        lengths = row_lengths(self.train_dataset if train_dataset is None else train_dataset)
        options = batch_options(self.args, self.max_tokens)
        return TokenBudgetBatchSampler(lengths, rank=self.args.process_index, **options)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Training data loader; a stream yields the rows of this process from the position of the checkpoint."""
        if not isinstance(self.train_dataset, datasets.IterableDataset):
            return super().get_train_dataloader()
        args = self.args
        self._stream = BatchStream(
            self.train_dataset,
            batch_size=self._train_batch_size,
            rank=args.process_index,
            num_workers=args.dataloader_num_workers,
            **batch_options(args, self.max_tokens),
        )
        if self._checkpoint is not None:
            checkpoints.load_stream(self._stream, self._checkpoint, args.process_index)
        return stream_loader(self._stream, self.data_collator, args.device, pin_memory=args.dataloader_pin_memory)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, over `parameter_groups` if given.

        Raises:
            InputError: The training arguments are invalid for this optimizer.
        """
        with blaming(f"--optim {OptimizerNames(self.args.optim).value}"):
            if self.parameter_groups is not None and self.optimizer is None:
                model = self.model if model is None else model
                optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
                self.optimizer = optimizer_class(self.parameter_groups(model), **settings)
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the learning rate schedule, from `schedule` if given.

        Raises:
            InputError: The training arguments are invalid for this schedule.
        """
        if self.schedule is not None and self.lr_scheduler is None:
            self.lr_scheduler = self.schedule(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        with blaming(f"--lr_scheduler_type {SchedulerType(self.args.lr_scheduler_type).value}"):
            return super().create_scheduler(num_training_steps, optimizer)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        # With group_by_length the Trainer would also reorder the predictions.
        return None if self.args.world_size > 1 else torch.utils.data.SequentialSampler(eval_dataset)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train from scratch or from a complete checkpoint.

        Args:
            resume_from_checkpoint: Checkpoint directory; `last` or True for the newest complete checkpoint in
                `output_dir`, if any; None or False to start from scratch.
            *args: Further arguments of `Trainer.train`.
            **kwargs: Further arguments of `Trainer.train`.

        Raises:
            InputError: The checkpoint is incomplete or unreadable, the best checkpoint of its run is missing, or the
                loss or a weight is NaN or inf.
        """
        self._best = None
        wanted = "last" if resume_from_checkpoint is True else resume_from_checkpoint or None
        self._checkpoint = checkpoint = checkpoints.find_checkpoint(str(self.args.output_dir), wanted)
        if checkpoint is not None:
            # The Trainer saves the patience counter in the callback states but does not restore them by default.
            self.args.restore_callback_states_from_checkpoint = True
            state_file = os.path.join(checkpoint, TRAINER_STATE_NAME)
            with blaming(f"{state_file}: not a valid Trainer state"):
                saved = TrainerState.load_from_json(state_file)
            if saved.best_model_checkpoint and self.args.load_best_model_at_end:
                self._best = str(checkpoints.best_checkpoint(checkpoint, saved.best_model_checkpoint))
        return super().train(checkpoint, *args, **kwargs)

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **kwargs: Any) -> None:  # type: ignore[override]
        if self._best is not None:
            # Loading the checkpoint has restored its own path and patience.
            self.state.best_model_checkpoint, self._best = self._best, None
        stopped = self.state.global_step >= self.state.max_steps
        if self._patience is not None and (stopper := self._early_stopper()) is not None:
            stopper.early_stopping_patience = self._patience
            stopped |= self._checkpoint is not None and stopper.early_stopping_patience_counter >= self._patience
        # A run killed after its last checkpoint has nothing left to train, but the Trainer would take one more step
        # before checking.
        if stopped:
            self.control.should_training_stop = True
            return
        # Must precede batch skipping on resume: on several processes, SkipBatchSampler and BatchSamplerShard hide the
        # sampler, which would then replay epoch 0.
        train_dataloader.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._load_renamed(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_renamed(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_renamed(self, checkpoint: str | None) -> bool:
        """Load a checkpoint that has weights under other names than the model, and return True if it has.

        transformers saves the layer normalisations of ESM under the names that ESM's first checkpoints have; the
        Trainer, which reads the file by itself, would leave such weights as they are.
        """
        file = Path(checkpoint or "") / SAFE_WEIGHTS_NAME
        if not file.is_file():
            return False
        model = self.accelerator.unwrap_model(self.model)
        try:
            with safe_open(file, framework="pt") as saved:
                names = set(saved.keys())
        except SafetensorError:
            return False  # the Trainer reports it
        if names <= set(model.state_dict()):
            return False
        model.load_state_dict(type(model).from_pretrained(file.parent).state_dict())
        return True

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the Trainer's forward and backward pass, and record the loss for the NaN check.

        Raises:
            InputError: Compilation with `--torch_compile` fails.
        """
        try:
            loss = super().training_step(*args, **kwargs)
        except RuntimeError as error:
            # torch._dynamo is only imported if needed.
            if self.args.torch_compile and isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise InputError(f"--torch_compile: {one_line(error)}") from error
            raise
        self.stop_on_nan.observe(loss, self.state.global_step + 1)
        return loss

    def describe_batches(self) -> str:
        """Describe the number of processes and batches."""
        loader = self.get_train_dataloader()
        what = "streamed batches" if self._stream is not None else f"{len(loader)} batches per epoch"
        return f"{self.args.world_size} process(es), {what}"

    def train_and_save(
        self,
        checkpoint: str | None,
        average: int | None,
        say: Callable[..., Any],
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        """Train, average checkpoints if requested, and save the result.

        With `do_eval` and without evaluations during training there is one at the end, as in transformers' examples.

        Args:
            checkpoint: Checkpoint to resume from; None to start from scratch.
            average: Number of last checkpoints to average; None to keep the best one.
            say: Prints on the main process.
            finish: Converts the trained model before saving, e.g. by merging adapters.

        Raises:
            InputError: Training fails as in `train`, or there is no checkpoint to average.
        """
        training = self.train(resume_from_checkpoint=checkpoint)
        if average:
            directories = last_checkpoints(str(self.args.output_dir), average)
            load_average(self.accelerator.unwrap_model(self.model), directories)
            scores = self.evaluate()
            name = str(self.args.metric_for_best_model).removeprefix("eval_")
            best = "" if self.state.best_metric is None else f"; best checkpoint {self.state.best_metric:.4g}"
            say(f"average of the last {len(directories)} checkpoints: {name} {scores[f'eval_{name}']:.4g}{best}")
        elif self.args.do_eval and self.args.eval_strategy == IntervalStrategy.NO:
            self.save_metrics("eval", self.evaluate())
        if finish is not None:
            self.model = self.model_wrapped = finish(self.accelerator.unwrap_model(self.model))
        self.save_model()
        self.save_metrics("train", training.metrics)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the Hub repository before training, so that an invalid name or token fails early.

        Raises:
            InputError: The Hub rejects the name or the token.
        """
        with hub_errors(repository_of(cast(RecipeArguments, self.args))):
            super().init_hf_repo(token, private)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Publish the output directory as `hfseq.publish` does, to the repository of the training arguments."""
        return publish_directory(cast(RecipeArguments, self.args)) if self.is_world_process_zero() else None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Tied weights are saved under one name only, and restored by tying.
        tied = cast(PreTrainedModel, self.model).get_expanded_tied_weights_keys(all_submodels=True)
        missing = set(load_result.missing_keys)
        tied |= {source: target for target, source in tied.items() if target not in missing}
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._stream is not None:
            batches = self.state.global_step * self.args.gradient_accumulation_steps
            checkpoints.save_stream(self._stream, output_dir, self.args.process_index, batches)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        check_finite(model, step)
        run_dir = self._get_output_dir(trial=trial)
        target = Path(run_dir) / f"checkpoint-{step}"
        # Files left by a killed run would mix with the new ones.
        if self.args.should_save and target.exists():
            checkpoints.remove_checkpoint(target)
        self.accelerator.wait_for_everyone()

        # Disable the Trainer's own rotation, which deletes before the new checkpoint is complete.
        total_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = total_limit

        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            torch.save(self.args, target / TRAINING_ARGS_NAME)
            checkpoints.mark_complete(target)
            best = self.state.best_model_checkpoint
            best_step = int(best.rpartition("-")[2]) if best else None
            checkpoints.rotate_checkpoints(run_dir, total_limit, newest=step, best=best_step)


class GenerationTrainer(SequenceTrainer, Seq2SeqTrainer):
    """`SequenceTrainer` for sequence-to-sequence models, evaluated by generation."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, skipping the logits of padding if the model supports it."""
        # A task asks for them itself.
        if self.task is None and self.compute_loss_func is not None and "labels" in inputs:
            inputs = {**inputs, **labelled_steps(self.accelerator.unwrap_model(model), inputs["labels"])}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate or predict each row once: `Seq2SeqTrainer` keeps the rows duplicated to even out the processes."""
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)
