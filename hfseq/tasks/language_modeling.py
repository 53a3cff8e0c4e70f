"""Causal language modeling: of texts in blocks, and of running text read window after window."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Self

import datasets
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.embedded.documentation import documentation_rows
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.encoding import EncodedSplits, encode_splits
from hfseq.data.running_text import TokenWindows, encode_text, lines_of
from hfseq.errors import InputError
from hfseq.inference.continuous_cache import FLATNESS, cached_scores
from hfseq.models import is_hfseq
from hfseq.plots import plot_learning_curve
from hfseq.tasks.base import Task
from hfseq.tasks.losses import token_loss
from hfseq.tasks.tagging import token_collator


class LanguageModeling(Task):
    """The next token; texts follow each other, with the EOS token between them, in blocks of `block_size` tokens.

    A block begins with the last token of the one before, so that each token of a run of texts but the first is
    predicted once.
    """

    columns = ("text",)
    metrics = ("loss", "perplexity")
    moses = True
    hub_task = "text-generation"
    embedded_name = "synthetic reviews"
    auto_class = AutoModelForCausalLM

    def embedded(self) -> datasets.DatasetDict:
        """Synthetic reviews."""
        return review_rows()

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        return self._draw(splits)

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Train a model with activation regularization by its own loss, unless smoothed."""
        names = ("activation_regularization", "temporal_activation_regularization")
        regularized = any(getattr(model.config, name, 0) for name in names)
        self.own_loss = regularized and not self.args.label_smoothing_factor

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        text, size, end = self.names[0], self.data.block_size, tokenizer.eos_token_id
        if end is None:
            raise InputError("--task language_modeling needs a tokenizer with an EOS token")

        def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
            ids: list[int] = []
            for row in tokenizer(batch[text], add_special_tokens=False, verbose=False)["input_ids"]:
                ids += [*row, end]
            starts = range(0, max(1, len(ids) - 1), size - 1)
            blocks = [ids[start : start + size] for start in starts]
            return {
                "input_ids": blocks,
                "attention_mask": [[1] * len(block) for block in blocks],
                "labels": [[-100, *block[1:]] for block in blocks],
                "length": [len(block) for block in blocks],
            }

        # Pads labels as the tokens of a tagger's rows are.
        self.collator = token_collator(tokenizer, model)
        self.vocab_size = len(tokenizer)
        encoded = encode_splits(self.splits, encode, {})
        self.references = {split: rows["labels"] for split, rows in encoded.rows.items() if split != "train"}
        return encoded

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Of the logits of the token before."""
        smoothing, logits = self.args.label_smoothing_factor, outputs.logits[:, :-1]
        return token_loss(logits, labels[:, 1:], label_smoothing=smoothing, count=num_items_in_batch)

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Log-probability of each token `[B, T]`, 0 where none is predicted."""
        logits = super().reduce(logits, labels)[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        return torch.nn.functional.pad(-losses, (1, 0))

    def decode(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> Sequence[Any]:
        """Log-probabilities of the tokens that are predicted."""
        labels = self.references[split]
        numbers = range(len(raw)) if rows is None else rows
        return [np.asarray(found)[1 : len(labels[number])] for found, number in zip(raw, numbers, strict=True)]

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Perplexity of a token."""
        values = np.concatenate([np.asarray(row, dtype=np.float64) for row in predictions])
        return {"perplexity": math.exp(-values.mean())}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """The frequency of each token in the training texts, one added."""
        if not trained:
            return {}
        counts = np.ones(self.vocab_size)
        for row in islice(iter(self.encoded["train"]), 100_000):
            np.add.at(counts, row["input_ids"][1:], 1)
        probabilities = np.log(counts / counts.sum())
        return {"unigram": [probabilities[row[1:]] for row in self.references[split]]}

    def show(self, predictions: Any) -> list[str]:
        """Mean log-probability of each block."""
        return [f"{np.mean(row):.4g}" if len(row) else "" for row in predictions]

    def sources(self, split: str) -> list[str]:
        """The blocks as ids are no texts; their numbers stand for them."""
        return [f"block {number}" for number in range(1, len(self.encoded[split]) + 1)]

    def example(self, split: str) -> str | None:
        """None, since the texts are blocks."""
        return None


class RunningTextModeling(Task):
    """The next token of running text, which is read window after window with the state carried along.

    A raw prediction of a split is the sum of the negative log-probabilities of its tokens, in nats, and their number;
    a reference is its number of words.

    Attributes:
        encoded: Split to its tokens (`hfseq.data.running_text.RunningText`).
        carry: Whether each window starts from the state after the one before.
    """

    columns = ("text",)
    metrics = ("perplexity", "word_perplexity")
    hub_task = "text-generation"
    embedded_name = "the documentation of Python's standard library"
    auto_class = AutoModelForCausalLM
    moses = True
    streams_rows = False
    lists_predictions = False
    final_window = 1000
    """Tokens that the final test reads at once."""
    collator: Any = dict
    """Windows are batches already."""

    def column_names(self) -> tuple[str, ...]:
        """Name of the column."""
        return (self.data.text_column,)

    def embedded(self) -> datasets.DatasetDict:
        """Documentation of Python's standard library."""
        return documentation_rows()

    def read(self, *, train: bool = True, known: list[str] | None = None, num_parts: int = 1) -> Self:
        """Read the text; empty lines are a part of it.

        Raises:
            InputError: As `DataArguments.read`, or if a cache has no validation text to be tuned on.
        """
        cache = self.data.cache_size is not None
        reading: dict[str, Any] = {"train": train, "seed": self.args.seed, "validation": cache}
        self.splits = self.data.read(self.names, self.embedded, moses=self.moses, running=True, **reading)
        tests = self.args.do_predict or not self.args.do_train
        if cache and tests and not {"validation", "test"} <= set(self.splits):
            raise InputError(
                "--cache_size needs a validation text, to choose the cache's strength on, beside a test text"
            )
        return self

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        return splits

    def texts(self) -> Any:
        """Lines of the training text."""
        return lines_of(super().texts())

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Train a model by its own loss, unless smoothed, and carry its state if it has one.

        Raises:
            InputError: The model cannot read windows of `--block_size`, or not be trained with label smoothing.
        """
        self.own_loss = not self.args.label_smoothing_factor
        if not self.own_loss and getattr(model.config, "adaptive_softmax_cutoffs", None) is not None:
            raise InputError(
                "--label_smoothing_factor: an adaptive softmax has no probabilities of all words in training"
            )
        # A recurrent state summarizes any number of tokens; a Transformer may have only so many positions.
        carries, size = carries_state(model), self.data.block_size
        self.carry, self.tokenizer = self.data.carry_state and carries, tokenizer
        self.positions = None if carries else getattr(model.config, "max_position_embeddings", None)
        if self.positions is not None and size > self.positions:
            raise InputError(f"--block_size {size}: the model reads at most {self.positions} tokens at once")

    def encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log: Callable[..., Any]) -> None:
        """Encode each text as one sequence of tokens, and log their number; raises what `configure` raises."""
        self.configure(model, tokenizer)
        # Tokens of a stream may not fit into memory.
        folders = {"train": str(self.args.output_dir)} if self.data.streaming else {}
        column = self.names[0]
        self.encoded = {
            split: encode_text(rows[column], tokenizer, folders.get(split)) for split, rows in self.splits.items()
        }
        self.references = {split: text.words for split, text in self.encoded.items()}
        log(", ".join(f"{name} {len(text.ids):,} tokens, {text.words:,} words" for name, text in self.encoded.items()))

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        raise NotImplementedError

    def windows(self, split: str, columns: int, length: int | None = None, **options: Any) -> TokenWindows:
        """Windows of a split; see `TokenWindows`."""
        size, pad = length or self.data.block_size, self.tokenizer.pad_token_id or 0
        return TokenWindows(self.encoded[split].ids, columns=columns, length=size, pad_id=pad, **options)

    def whole(self, split: str) -> TokenWindows:
        """A text from its first word to its last, in windows as long as the model can read."""
        return self.windows(split, 1, min(self.positions or self.final_window, self.final_window))

    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[tuple[float, int], float]:
        """Sum of the negative log-probabilities of the tokens of a text, and their number; and the mean."""
        total, count = text_loss(model, self.whole(split), carry=self.carry)
        return (total, count), total / count

    def predict_cached(self, model: PreTrainedModel, split: str, log: Callable[..., Any]) -> tuple[float, int]:
        """The same with a continuous cache, whose flatness and weight are chosen on the validation text."""
        size = self.data.cache_size
        read = partial(cached_scores, model, size=size, carry=self.carry)
        strongest, weight = read(self.whole("validation"), flatness=FLATNESS).best()
        chosen = FLATNESS[strongest]
        log(f"continuous cache of {size} tokens: flatness {chosen}, weight {weight} on validation")
        total = read(self.whole(split), flatness=[chosen]).total(0, weight)
        return total, len(self.encoded[split].ids) - 1

    def decode(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> tuple[float, int]:
        """The raw prediction."""
        return raw

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Loss, and perplexities of tokens and of words."""
        total, tokens = predictions
        return perplexities(total, tokens, references)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """The frequency of each token in the training text, plus one."""
        if not trained:
            return {}
        ids = self.encoded[split].ids
        total = unigram_loss(self.encoded["train"].ids, ids, len(self.tokenizer))
        return {"unigram": (total, len(ids) - 1)}

    def show(self, predictions: Any) -> list[str]:
        """Nothing: a text is not predicted row by row."""
        return []

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{predictions[1]:,} tokens, {self.references[split]:,} words"

    def example(self, split: str) -> str | None:
        """The first words of the text."""
        first = next((line for line in self.splits[split][self.names[0]] if line.strip()), "")
        return " ".join(first.split()[:8])

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve."""
        if log:
            plot_learning_curve(log, f"{self.args.output_dir}/learning_curve.png", metric="word_perplexity")


def carries_state(model: PreTrainedModel) -> bool:
    """True if the state after a window can initialize the next window, as in hfseq's models.

    The keys and values of a Transformer would grow with the text.
    """
    return is_hfseq(model.config)


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


def _exp(value: float) -> float:
    """Infinity in place of an overflow."""
    return math.exp(value) if value < 700 else math.inf
