"""Truncated backpropagation through time with the state carried from batch to batch, in a Trainer."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    Cache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from hfseq.cache_io import load_state, save_state
from hfseq.data.windows import TokenWindows
from hfseq.errors import InputError
from hfseq.models import is_hfseq
from hfseq.training.seq2seq import token_loss
from hfseq.training.trainer import SequenceTrainer


def carries_state(model: PreTrainedModel) -> bool:
    """Whether a model's state after a window is what the next one starts from: that of hfseq's models is.

    The keys and values of a Transformer would grow with the text.
    """
    return is_hfseq(model.config)


def detached(cache: Cache) -> Cache:
    """The same cache, whose states no gradient goes through: where backpropagation is truncated."""
    for layer in cache.layers:
        layer.states = tuple(state.detach() for state in layer.states)  # type: ignore[union-attr]
    return cache


@torch.no_grad()
def text_loss(model: PreTrainedModel, windows: TokenWindows, *, carry: bool) -> tuple[float, int]:
    """Loss of a text, window after window.

    Args:
        model: A causal language model.
        windows: Of the text, or of the columns of it that are this process's.
        carry: Whether each window starts from the state after the one before; else each is read on its own.

    Returns:
        The sum of the negative log-probabilities of all tokens but the first, in nats, and their number.
    """
    model.eval()
    total, count, state = 0.0, 0, None
    for batch in windows:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        options = {"cache": state, "use_cache": True} if carry else {"use_cache": False}
        outputs = model(**inputs, **options, num_items_in_batch=1)
        state = outputs.cache if carry else None
        total += outputs.loss.item()
        count += int((batch["labels"] != -100).sum())
    return total, count


class LanguageModelingTrainer(SequenceTrainer):
    """A `SequenceTrainer` whose training rows are windows of a text, and whose model reads on from window to window.

    The state after a window enters the next one without its gradient (truncated backpropagation through time, Williams
    & Peng 1990); an epoch starts from none. A checkpoint keeps it, so that a resumed run goes on as it would have. A
    window that is shorter than the others has its learning rate multiplied by its share of their length (Merity et
    al. 2018, section 4.1).

    Evaluation reads all of its text, at `columns` places at once, the state carried along. It gives `loss`, the mean
    over tokens, and `perplexity` and `word_perplexity`, the exponentials of the means over tokens and over words.

    Args:
        *args: as `SequenceTrainer`.
        carry: Whether the state is carried, in training and evaluation; else each window is read on its own.
        words: Number of words of the validation text.
        **kwargs: as `SequenceTrainer`; `train_dataset` and `eval_dataset` are `TokenWindows` of this process. Of
            several GPUs of one process it takes the first, if the state is carried; `torchrun` has one for each.
    """

    def __init__(self, *args: Any, carry: bool, words: int, **kwargs: Any):
        if carry and kwargs["args"].n_gpu > 1:
            # The Trainer would split each batch over the GPUs of this process, but not the state that it starts from.
            kwargs["args"]._n_gpu = 1
        super().__init__(*args, **kwargs)
        self.carry, self.words = carry, words
        self._state: Cache | None = None
        self._lengths: list[int] = []
        self.add_callback(_RateByLength(self))

    def get_train_dataloader(self) -> DataLoader:
        """The windows of this process, with which no other one shares."""
        loader: DataLoader = DataLoader(
            self.windows, batch_size=None, pin_memory=self.args.dataloader_pin_memory, collate_fn=dict
        )
        device = self.args.device
        return prepare_data_loader(
            loader, device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    @property
    def windows(self) -> TokenWindows:
        """The training windows of this process."""
        return cast(TokenWindows, self.train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The windows of the validation text, or of another one."""
        windows = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(cast(TokenWindows, windows), batch_size=None)

    def _steps_an_epoch(self) -> int:
        return math.ceil(len(self.windows) / self.args.gradient_accumulation_steps)

    def _state_file(self, directory: str) -> Path:
        return Path(directory) / f"carried_{self.args.process_index}.safetensors"

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self._state, self._lengths = None, []
        done = self.state.global_step % self._steps_an_epoch()
        if self.carry and done:
            # The first epoch of a run that goes on from inside it.
            path = self._state_file(str(self._checkpoint))
            if not path.is_file():
                raise InputError(f"{path.parent} is not of a run that carries its state on as many processes")
            self._state = load_state(path, self.args.device)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._state is not None and self.state.global_step % self._steps_an_epoch():
            save_state(self._state, self._state_file(output_dir))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As the Trainer's, from the state after the window before."""
        self._lengths.append(inputs["input_ids"].shape[1])
        options = {"cache": self._state, "use_cache": True} if self.carry else {"use_cache": False}
        loss, outputs = super().compute_loss(
            model, {**inputs, **options}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self._state = detached(outputs.cache) if self.carry else None
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate a text; see the class. No predictions are kept."""
        windows, prefix = cast(TokenWindows, dataloader.dataset), kwargs.get("metric_key_prefix", "eval")
        model = self.accelerator.unwrap_model(self.model)
        sums = torch.tensor(text_loss(model, windows, carry=self.carry), dtype=torch.float64)
        total, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        metrics = perplexities(total, int(count), self.words)
        named = {f"{prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=named, num_samples=int(count))


class _RateByLength(TrainerCallback):
    """Multiplies the learning rates of a step by the length of its windows, as a share of the usual one."""

    def __init__(self, trainer: LanguageModelingTrainer) -> None:
        self.trainer = trainer
        self._rates: list[float] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        lengths, groups = self.trainer._lengths, kwargs["optimizer"].param_groups
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] *= sum(lengths) / len(lengths) / self.trainer.windows.length
        lengths.clear()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for group, rate in zip(kwargs["optimizer"].param_groups, self._rates, strict=True):
            group["lr"] = rate


def perplexities(total: float, tokens: int, words: int) -> dict[str, float]:
    """`loss`, `perplexity` and `word_perplexity` of a text.

    Args:
        total: Sum of the negative log-probabilities of its tokens, in nats.
        tokens: Their number.
        words: Number of words, with the ends of lines.
    """
    loss = total / tokens
    return {"loss": loss, "perplexity": _exp(loss), "word_perplexity": _exp(total / words)}


def unigram_loss(train: np.ndarray, test: np.ndarray, vocab_size: int) -> float:
    """Sum of the negative log-probabilities of all tokens but the first by their frequency in another text.

    Args:
        train: The tokens that are counted; one is added to the count of each token of the vocabulary.
        test: The tokens whose loss it is.
        vocab_size: How many tokens there are.
    """
    counts = np.bincount(train, minlength=vocab_size) + 1
    return float(-np.log(counts / counts.sum())[test[1:]].sum())


@torch.no_grad()
def next_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, count: int = 10
) -> list[tuple[str, float]]:
    """The likeliest tokens after a text, the likeliest first, with their probabilities.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        text: What comes before; empty for the beginning of a line.
        count: How many tokens; all of a smaller vocabulary.
    """
    model.eval()
    probabilities = model(prompt_ids(tokenizer, text).to(model.device)).logits[0, -1].float().softmax(dim=-1)
    values, ids = probabilities.topk(min(count, len(probabilities)))
    names = [str(tokenizer.decode([id])) for id in ids.tolist()]
    return list(zip(names, values.tolist(), strict=True))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Ids `[1, T]` of a text to go on with: it does not end, and begins a line."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[tokenizer.eos_token_id, *ids]])


def _exp(value: float) -> float:
    """Infinity in place of an overflow."""
    return math.exp(value) if value < 700 else math.inf


def smoothed_loss(label_smoothing: float) -> Any:
    """A `compute_loss_func` of labels in their place, with label smoothing (Szegedy et al. 2016, section 7)."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        return token_loss(outputs.logits, labels, label_smoothing=label_smoothing, count=num_items_in_batch)

    return loss
