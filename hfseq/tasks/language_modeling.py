"""Causal language modeling: texts in blocks, and running text in consecutive windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any, Self

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.embedded.documentation import documentation_rows
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.encoding import EncodedSplits, encode_splits
from hfseq.data.running_text import TokenWindows, encode_text, lines_of
from hfseq.errors import InputError
from hfseq.inference.continuous_cache import FLATNESS, cached_scores, token_scores
from hfseq.inference.mixtures import MixtureScores, Share
from hfseq.inference.ngrams import KneserNey
from hfseq.lazy import datasets
from hfseq.models import is_hfseq
from hfseq.tasks.base import Task
from hfseq.tasks.tagging import token_collator

MIXTURES = {"mixture": ("ngram",), "cache": ("cache",), "mixture_cache": ("ngram", "cache")}
"""Name of each mixture of the final test, and what the model is interpolated with in it."""
_UNSMOOTHED = "--label_smoothing_factor is not supported for {}, which does not compute the probabilities of all words"


class LanguageModeling(Task):
    """Causal language modeling of texts, concatenated with EOS in between and cut into blocks of `block_size` tokens.

    Each block begins with the last token of the previous block, so every token except the first is predicted once.
    """

    columns = ("text",)
    metrics = ("loss", "perplexity")
    moses = True
    hub_task = "text-generation"
    embedded_name = "synthetic reviews"
    auto_class = AutoModelForCausalLM

    def embedded(self) -> datasets.DatasetDict:
        """Create synthetic reviews."""
        return review_rows()

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Train a model by its own loss if that is more than, or an estimate of, the loss of its logits.

        With activation regularization it is more, but not if labels are smoothed.

        Raises:
            InputError: Labels are to be smoothed in training over sampled negatives.
        """
        names = ("activation_regularization", "temporal_activation_regularization")
        regularized = any(getattr(model.config, name, 0) for name in names)
        sampled = getattr(model.config, "num_negatives", None) is not None
        if sampled and self.args.label_smoothing_factor:
            raise InputError(_UNSMOOTHED.format("a loss over sampled negatives"))
        self.own_loss = sampled or (regularized and not self.args.label_smoothing_factor)

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        text, size, eos = self.names[0], self.data.block_size, tokenizer.eos_token_id
        if eos is None:
            raise InputError("--task language_modeling needs a tokenizer with an EOS token")

        def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
            rows = tokenizer(batch[text], add_special_tokens=False, verbose=False)["input_ids"]
            ids = [*chain.from_iterable([*row, eos] for row in rows)]
            blocks = [ids[start : start + size] for start in range(0, max(1, len(ids) - 1), size - 1)]
            return {
                "input_ids": blocks,
                "attention_mask": [[1] * len(block) for block in blocks],
                "labels": [[-100, *block[1:]] for block in blocks],
                "length": [len(block) for block in blocks],
            }

        # One label per token, as in tagging.
        self.collator = token_collator(tokenizer, model)
        self.vocab_size = len(tokenizer)
        encoded = encode_splits(self.splits, encode, {})
        self.references = {split: rows["labels"] for split, rows in encoded.rows.items() if split != "train"}
        return encoded

    def aligned(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the steps before each label, since the label of a step is its own token."""
        return logits[:, :-1], labels[:, 1:]

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Reduce logits to the log-probability of each token, `[B, T]`, 0 for tokens without a label."""
        logits = super().reduce(logits, labels)[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        return pad(-losses, (1, 0))

    def decode(self, split: str, raw: Any) -> Sequence[Any]:
        """Remove the first token of each block, which is not predicted, and padding."""
        pairs = zip(raw, self.references[split], strict=True)
        return [np.asarray(found)[1 : len(labels)] for found, labels in pairs]

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute the perplexity per token."""
        return {"perplexity": math.exp(-np.concatenate(predictions).mean(dtype=np.float64))}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Unigram log-probabilities of the tokens in the first training blocks, with add-one smoothing."""
        if not trained:
            return {}
        blocks = islice(iter(self.encoded["train"]), 100_000)
        ids = np.fromiter(chain.from_iterable(block["input_ids"][1:] for block in blocks), dtype=np.int64)
        unigram = unigram_log_probabilities(ids, self.vocab_size)
        return {"unigram": [unigram[row[1:]] for row in self.references[split]]}

    def show(self, predictions: Any) -> list[str]:
        """Mean log-probability of each block."""
        return [f"{np.mean(row):.4g}" if len(row) else "" for row in predictions]

    def sources(self, split: str) -> list[str]:
        """Number of each block, in place of its text."""
        return [f"block {number}" for number in range(1, len(self.encoded[split]) + 1)]

    def example(self, split: str) -> str | None:
        """None, since blocks do not begin where texts do."""
        return None


class RunningTextModeling(Task):
    """Causal language modeling of running text, read in consecutive windows with the state carried over.

    A raw prediction for a split is the summed negative log-probability of its tokens, in nats, with the number of
    tokens; a reference is the number of words.

    Attributes:
        encoded: Split name to its tokens, a `hfseq.data.running_text.RunningText`.
        carry: Whether the state is carried over from one window to the next.
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
    """Window length of the final test in tokens."""
    collator: Any = dict
    """Windows are batches already."""

    @property
    def metric(self) -> str:
        """Score shown besides the loss, comparable between tokenizers."""
        return "word_perplexity"

    def embedded(self) -> datasets.DatasetDict:
        """Read the documentation of Python's standard library."""
        return documentation_rows()

    def read(self, *, train: bool = True, known: list[str] | None = None, num_parts: int = 1) -> Self:
        """Read the text, including empty lines; arguments as for `Task.read`.

        Raises:
            InputError: As for `DataArguments.read`, or a text for the mixtures of the final test is missing.
        """
        needed = {"validation": "to tune weights on"} if self._components() else {}
        if self.data.ngram_order is not None:
            needed["train"] = "to count n-grams in"
        reading: dict[str, Any] = {"train": train, "seed": self.args.seed, "also": needed}
        self.splits = self.data.read(self.names, self.embedded, moses=self.moses, running=True, **reading)
        if self.args.do_predict or not self.args.do_train:
            for split, purpose in needed.items():
                if not {split, "test"} <= set(self.splits):
                    flag = "--cache_size" if self.data.ngram_order is None else "--ngram_order"
                    kind = "training" if split == "train" else split
                    raise InputError(f"{flag} requires a {kind} text {purpose}, besides the test text")
        return self

    def _components(self) -> list[str]:
        """Components that the model is interpolated with."""
        sizes = {"ngram": self.data.ngram_order, "cache": self.data.cache_size}
        return [name for name, size in sizes.items() if size is not None]

    def check_regularization(self, loss: Callable[..., Any] | None = None) -> None:
        """Reject a second reading, which would continue from the state after the first one; see `Task`."""
        if self._strength("adversarial_epsilon") or self._strength("rdrop_alpha"):
            raise InputError("--adversarial_epsilon and --rdrop_alpha are not supported for running text; omit them")

    def texts(self) -> Any:
        """Texts to train a new tokenizer on: the lines of the training text."""
        return lines_of(super().texts())

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Train a model by its own loss, unless labels are smoothed, and carry over its state if it has one.

        Args:
            model: Model, not modified.
            tokenizer: Tokenizer of the model.

        Raises:
            InputError: `--block_size` exceeds the positions of the model, or the model does not support label
                smoothing.
        """
        self.own_loss = not self.args.label_smoothing_factor
        if not self.own_loss and getattr(model.config, "adaptive_softmax_cutoffs", None) is not None:
            raise InputError(_UNSMOOTHED.format("an adaptive softmax"))
        if not self.own_loss and getattr(model.config, "num_negatives", None) is not None:
            raise InputError(_UNSMOOTHED.format("a loss over sampled negatives"))
        # A recurrent state summarizes any number of tokens; a Transformer's keys and values would grow with the text,
        # and its positions are limited.
        carries, size = is_hfseq(model.config), self.data.block_size
        self.carry, self.tokenizer = self.data.carry_state and carries, tokenizer
        self.positions = None if carries else getattr(model.config, "max_position_embeddings", None)
        if self.positions is not None and size > self.positions:
            raise InputError(f"--block_size {size}: the model reads at most {self.positions} tokens at once")

    def encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log: Callable[..., Any]) -> None:
        """Configure a model and encode each text as one sequence of tokens for it.

        Args:
            model: Model; see `configure`.
            tokenizer: Tokenizer of the model.
            log: Logs the numbers of tokens and words.

        Raises:
            InputError: As for `configure`, or the tokenizer has no EOS token.
        """
        self.configure(model, tokenizer)
        # The tokens of a stream may exceed the memory.
        folders = {"train": str(self.args.output_dir)} if self.data.streaming else {}
        column = self.names[0]
        self.encoded = {
            split: encode_text(rows[column], tokenizer, folders.get(split)) for split, rows in self.splits.items()
        }
        self.references = {split: text.words for split, text in self.encoded.items()}
        log(", ".join(f"{name} {len(text.ids):,} tokens, {text.words:,} words" for name, text in self.encoded.items()))

    def windows(self, split: str, columns: int, length: int | None = None, **options: Any) -> TokenWindows:
        """Windows of a split.

        Args:
            split: Encoded split.
            columns: Batch size, summed over all processes.
            length: Window length in tokens; None for `--block_size`.
            **options: Options of `TokenWindows`.
        """
        size, pad_id = length or self.data.block_size, self.tokenizer.pad_token_id or 0
        return TokenWindows(self.encoded[split].ids, columns=columns, length=size, pad_id=pad_id, **options)

    def whole(self, split: str) -> TokenWindows:
        """Windows of a whole text in one stream, as long as the model and `final_window` permit."""
        return self.windows(split, 1, min(self.positions or self.final_window, self.final_window))

    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[tuple[float, int], float]:
        """Compute the raw prediction for a split, and the mean loss per token."""
        total, count = text_loss(model, self.whole(split), carry=self.carry)
        return (total, count), total / count

    def predict_mixtures(
        self, model: PreTrainedModel, split: str, log: Callable[..., Any]
    ) -> dict[str, tuple[float, int]]:
        """Compute raw predictions for a split with n-grams and a continuous cache, as far as the flags ask for them.

        Weights are tuned on the validation text.

        Args:
            model: Model, on its device.
            split: Split to predict.
            log: Logs the weights.

        Returns:
            Prediction of `ngram`, the n-grams alone, and of the `MIXTURES`.
        """
        components, order = self._components(), self.data.ngram_order
        if not components:
            return {}
        ngrams = None if order is None else KneserNey(self.encoded["train"].ids, order, len(self.tokenizer))
        tuned, tested = (self._mixture_scores(model, one, ngrams) for one in ("validation", split))
        totals = {} if ngrams is None else {"ngram": tested.total({"ngram": Share(0, 1)})}
        for name, parts in MIXTURES.items():
            if set(parts) <= set(components):
                shares = tuned.best(*parts)
                totals[name] = tested.total(shares)
                log(f"{name}: the model with {self._describe(shares)}, tuned on validation")
        count = len(self.encoded[split].ids) - 1
        return {name: (total, count) for name, total in totals.items()}

    def _mixture_scores(self, model: PreTrainedModel, split: str, ngrams: KneserNey | None) -> MixtureScores:
        windows, components = self.whole(split), {}
        if self.data.cache_size is None:
            scores = token_scores(model, windows, carry=self.carry)
        else:
            scores, components["cache"] = cached_scores(
                model, windows, self.data.cache_size, FLATNESS, carry=self.carry
            )
        if ngrams is not None:
            found = torch.from_numpy(ngrams.log_probabilities(self.encoded[split].ids))
            components["ngram"] = found.exp()[None].to(scores)
        return MixtureScores(scores, components)

    def _describe(self, shares: dict[str, Share]) -> str:
        texts = []
        for name, (variant, weight) in shares.items():
            if name == "ngram":
                texts.append(f"{self.data.ngram_order}-grams (weight {weight})")
            else:
                size = self.data.cache_size
                texts.append(f"a continuous cache of {size} tokens (flatness {FLATNESS[variant]}, weight {weight})")
        return " and ".join(texts)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute the loss, and the perplexities per token and per word."""
        total, tokens = predictions
        return perplexities(total, tokens, references)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Unigram frequencies of the training tokens, with add-one smoothing."""
        if not trained:
            return {}
        ids = self.encoded[split].ids
        return {"unigram": (unigram_loss(self.encoded["train"].ids, ids, len(self.tokenizer)), len(ids) - 1)}

    def show(self, predictions: Any) -> list[str]:
        """Nothing, since predictions are not per row."""
        return []

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{predictions[1]:,} tokens, {self.references[split]:,} words"

    def example(self, split: str) -> str | None:
        """First words of the text, for the model card."""
        first = next((line for line in self.splits[split][self.names[0]] if line.strip()), "")
        return " ".join(first.split()[:8])


@torch.no_grad()
def text_loss(model: PreTrainedModel, windows: TokenWindows, *, carry: bool) -> tuple[float, int]:
    """Loss of a text, computed window by window.

    Args:
        model: Causal language model.
        windows: Windows of the text, or of this process's share.
        carry: Carry the model's state over from one window to the next; otherwise windows are independent.

    Returns:
        Summed negative log-probability of all tokens except the first, in nats, and the number of these tokens.
    """
    model.eval()
    total, count, state = 0.0, 0, None
    # Other models do not know this argument.
    adaptive = getattr(model.config, "adaptive_softmax_cutoffs", None) is not None
    options: dict[str, Any] = {"skip_logits": True} if adaptive else {}
    for batch in windows:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        options |= {"cache": state, "use_cache": True} if carry else {"use_cache": False}
        outputs = model(**inputs, **options, num_items_in_batch=1)
        state = outputs.cache if carry else None
        total += outputs.loss.item()
        count += int((batch["labels"] != -100).sum())
    return total, count


def perplexities(total: float, tokens: int, words: int) -> dict[str, float]:
    """Compute `loss`, `perplexity` and `word_perplexity` of a text.

    Args:
        total: Summed negative log-probability of the tokens, in nats.
        tokens: Number of tokens.
        words: Number of words, including line ends.
    """
    loss = total / tokens
    return {"loss": loss, "perplexity": _exp(loss), "word_perplexity": _exp(total / words)}


def unigram_log_probabilities(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Log-probability of each token of a vocabulary by its frequency, with add-one smoothing, `[vocab_size]`.

    Args:
        ids: Token ids to count, `[N]`.
        vocab_size: Vocabulary size.
    """
    counts = np.bincount(ids, minlength=vocab_size) + 1
    return np.log(counts / counts.sum())


def unigram_loss(train: np.ndarray, test: np.ndarray, vocab_size: int) -> float:
    """Summed negative unigram log-probability of all tokens except the first, in nats.

    Args:
        train: Token ids that determine the frequencies, `[N]`.
        test: Token ids to score.
        vocab_size: Vocabulary size.
    """
    return float(-unigram_log_probabilities(train, vocab_size)[test[1:]].sum())


def _exp(value: float) -> float:
    """Exponential with infinity in place of an overflow."""
    return math.exp(value) if value < 700 else math.inf
