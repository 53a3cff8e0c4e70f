"""Trainer for stateful truncated backpropagation through time."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    Cache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput

from hfseq.cache_io import load_state, save_state
from hfseq.data.running_text import TokenWindows
from hfseq.data.streaming import stream_loader
from hfseq.errors import InputError
from hfseq.tasks.language_modeling import RunningTextModeling, perplexities, text_loss
from hfseq.training.run import Run, make_trainer
from hfseq.training.trainer import SequenceTrainer


def detached(cache: Cache) -> Cache:
    """Detach the states of a cache in place, to truncate backpropagation, and return it."""
    for layer in cache.layers:
        layer.states = tuple(state.detach() for state in layer.states)  # type: ignore[union-attr]
    return cache


class LanguageModelingTrainer(SequenceTrainer):
    """`SequenceTrainer` over consecutive windows of a text, with the hidden state carried from window to window.

    The final state of a window is detached and initializes the next one (truncated backpropagation through time,
    Williams & Peng 1990); each epoch starts from the zero state. Checkpoints include the state, so resumed runs
    continue exactly. The learning rate is scaled by the length of a window relative to the configured one (Merity et
    al. 2018, section 4.1).

    Evaluation covers the whole text, in parallel streams with the state carried along. It reports `loss`, the mean
    per token, and `perplexity` and `word_perplexity`, the exponentials of the means per token and per word.

    Args:
        *args: Arguments of `SequenceTrainer`.
        carry: Whether to carry the state in training and evaluation; otherwise windows are independent.
        words: Number of words in the validation text.
        **kwargs: Arguments of `SequenceTrainer`; `train_dataset` and `eval_dataset` are the `TokenWindows` of this
            process. With `carry`, a process uses one GPU only; use `torchrun` for several.
    """

    def __init__(self, *args: Any, carry: bool, words: int, **kwargs: Any):
        if carry and kwargs["args"].n_gpu > 1:
            # DataParallel would split each batch over the GPUs, but not the carried state.
            kwargs["args"]._n_gpu = 1
        super().__init__(*args, **kwargs)
        self.carry, self.words = carry, words
        self._state: Cache | None = None
        self._lengths: list[int] = []
        self.add_callback(_RateByLength(self))

    def get_train_dataloader(self) -> DataLoader:
        """Data loader over the windows of this process; not sharded further."""
        pin_memory = self.args.dataloader_pin_memory
        return stream_loader(cast(Any, self.windows), dict, self.args.device, pin_memory=pin_memory)

    @property
    def windows(self) -> TokenWindows:
        """Training windows of this process."""
        return cast(TokenWindows, self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Data loader over the windows of the validation text, or of `eval_dataset`."""
        windows = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(cast(TokenWindows, windows), batch_size=None)

    def describe_batches(self) -> str:
        """Describe the number of processes and batches, and where the state is reset."""
        return f"{super().describe_batches()}, state {'carried over' if self.carry else 'reset'} between batches"

    def _steps_an_epoch(self) -> int:
        return math.ceil(len(self.windows) / self.args.gradient_accumulation_steps)

    def _state_file(self, directory: str) -> Path:
        return Path(directory) / f"carried_{self.args.process_index}.safetensors"

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self._state, self._lengths = None, []
        done = self.state.global_step % self._steps_an_epoch()
        if self.carry and done:
            # The run resumes in the middle of an epoch.
            path = self._state_file(str(self._checkpoint))
            if not path.is_file():
                raise InputError(
                    f"{path.parent} has no carried state; resume with as many processes and the same flags"
                )
            self._state = load_state(path, self.args.device)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._state is not None and self.state.global_step % self._steps_an_epoch():
            save_state(self._state, self._state_file(output_dir))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """Compute the Trainer's loss, starting from the final state of the previous window."""
        self._lengths.append(inputs["input_ids"].shape[1])
        options = {"cache": self._state, "use_cache": True} if self.carry else {"use_cache": False}
        loss, outputs = super().compute_loss(model, {**inputs, **options}, True, *args, **kwargs)
        self._state = detached(outputs.cache) if self.carry else None
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Compute loss and perplexities of a text; predictions are not kept."""
        windows, prefix = cast(TokenWindows, dataloader.dataset), kwargs.get("metric_key_prefix", "eval")
        model = self.accelerator.unwrap_model(self.model)
        sums = torch.tensor(text_loss(model, windows, carry=self.carry), dtype=torch.float64)
        total, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        metrics = perplexities(total, int(count), self.words)
        named = {f"{prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=named, num_samples=int(count))


class _RateByLength(TrainerCallback):
    """Scales the learning rates of a step by the mean length of its windows relative to the configured one."""

    def __init__(self, trainer: LanguageModelingTrainer) -> None:
        self.trainer = trainer
        self._rates: list[float] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        lengths, groups = self.trainer._lengths, kwargs["optimizer"].param_groups
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] *= sum(lengths) / len(lengths) / self.trainer.windows.length
        lengths.clear()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for group, rate in zip(kwargs["optimizer"].param_groups, self._rates, strict=True):
            group["lr"] = rate


def make_text_trainer(
    run: Run, task: RunningTextModeling, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> SequenceTrainer:
    """Create the trainer of a language model of running text; see `hfseq.training.run.make_trainer`.

    Args:
        run: The run.
        task: Task with its text encoded for the model.
        model: Model to train.
        tokenizer: Tokenizer of the model.

    Raises:
        InputError: An argument is invalid.
    """
    args, world = run.args, run.args.world_size
    share = {"rank": args.process_index, "num_replicas": world}
    lengths = args.seed if run.data.vary_block_size else None
    eval_columns = -(-args.per_device_eval_batch_size // world) * world
    return make_trainer(
        run,
        task,
        model,
        tokenizer,
        trainer_class=LanguageModelingTrainer,
        rows=task.windows("train", args.per_device_train_batch_size * world, seed=lengths, **share),
        eval_dataset=task.windows("validation", eval_columns, **share),
        carry=task.carry,
        words=task.references["validation"],
    )
