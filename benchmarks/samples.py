"""Texts and models that the speed benchmarks share."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, PreTrainedModel, set_seed

import hfseq
from hfseq.data.embedded.cldr import cldr_pairs
from hfseq.data.reading import read_splits
from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths
from hfseq.tasks.losses import token_loss
from hfseq.tasks.seq2seq import encode_pairs, labelled_steps
from hfseq.tokenization import train_tokenizer

SOURCE, TARGET = "de", "en"


@dataclass(frozen=True)
class Sizes:
    """Sizes of models, data and rounds; by default those of `recipes/configs/translation_multi30k.yaml`.

    Attributes:
        vocabulary: Tokens of both languages together.
        embedding: Width of embeddings.
        hidden: Width of encoder and decoder states.
        max_tokens: Budget of a training batch.
        rounds: Times that each side of a comparison is run.
        batches: Batches of a round.
        sentences: Sentences that are translated at once.
        test_sentences: How many are translated in all.
        new_tokens: Tokens that a language model writes.
        pairs: Training pairs that are read; the tokenizer learns from them, too.
        translator_steps: Training steps of the translator that beams are measured with.
    """

    vocabulary: int = 8000
    embedding: int = 256
    hidden: int = 512
    max_tokens: int = 1500
    rounds: int = 7
    batches: int = 4
    sentences: int = 64
    test_sentences: int = 1000
    new_tokens: int = 2048
    pairs: int = 29_000
    translator_steps: int = 1000


QUICK = Sizes(
    vocabulary=1000,
    embedding=16,
    hidden=32,
    max_tokens=300,
    rounds=2,
    batches=1,
    sentences=4,
    test_sentences=12,
    new_tokens=96,
    pairs=2000,
    translator_steps=3,
)
"""Tiny: to see whether everything runs. The figures say nothing."""
LARGE = Sizes(batches=8)
"""For a GPU, whose steps are short."""


class Samples:
    """Pairs of texts, encoded.

    Args:
        sizes: Of models and batches.
        folder: With `train.de`, `train.en`, `test_2016_flickr.de` and `.en` (Multi30k); None for the embedded pairs.
        device: Where models and batches are.
    """

    def __init__(self, sizes: Sizes, folder: Path | None, device: str = "cpu") -> None:
        self.sizes, self.folder, self.device = sizes, folder, device
        datasets.disable_progress_bars()
        if folder is None:
            self.name = "embedded CLDR pairs (no --data)"
            self.rows = cldr_pairs(SOURCE, TARGET)
        else:
            self.name = "Multi30k"
            self.rows = read_splits(
                columns=(SOURCE, TARGET),
                train_file=str(folder / "train"),
                test_file=str(folder / "test_2016_flickr"),
                moses=True,
            )
        train = self.rows["train"]
        self.rows["train"] = train.select(range(min(sizes.pairs, len(train))))

    @cached_property
    def tokenizer(self) -> Any:
        """Of the training texts."""
        rows = self.rows["train"]
        texts = itertools.chain(rows[SOURCE], rows[TARGET])
        return train_tokenizer(texts, vocab_size=self.sizes.vocabulary)

    @cached_property
    def encoded(self) -> dict[str, Any]:
        """Split to rows of `input_ids`, `attention_mask` and `labels`."""
        splits = {name: self.rows[name] for name in ("train", "test")}
        limits = {"max_source_length": 100, "max_target_length": 100}
        return encode_pairs(splits, self.tokenizer, SOURCE, TARGET, **limits).rows

    def budget_batches(self, count: int) -> list[list[int]]:
        """Numbers of the training rows of the first batches by tokens, of as many epochs as it takes."""
        sampler = TokenBudgetBatchSampler(row_lengths(self.encoded["train"]), self.sizes.max_tokens, seed=0)

        def batches() -> Iterator[list[int]]:
            for epoch in itertools.count():
                sampler.set_epoch(epoch)
                yield from sampler

        return list(itertools.islice(batches(), count))

    def fixed_batches(self, count: int, size: int) -> list[list[int]]:
        """Numbers of the training rows of batches of one size, in random order."""
        order = np.random.default_rng(0).permutation(len(self.encoded["train"]))
        return [order[start : start + size].tolist() for start in range(0, count * size, size)]

    def collate(self, model: PreTrainedModel, rows: Sequence[int], split: str = "train") -> dict[str, Tensor]:
        """A padded batch of rows, as the recipes make it."""
        collator = DataCollatorForSeq2Seq(self.tokenizer, model=model)
        return dict(collator([self.encoded[split][row] for row in rows]).to(self.device))

    def translator(self) -> PreTrainedModel:
        """A fresh translator, of the parts that JoeyNMT has too: `general` attention, an output layer of its own."""
        set_seed(0)
        config = hfseq.LstmConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=self.sizes.hidden,
            embedding_size=self.sizes.embedding,
            attention_type="general",
            tie_word_embeddings=False,
            dropout=0.3,
        )
        return AutoModelForSeq2SeqLM.from_config(config).to(self.device)


def real_tokens(batch: dict[str, Tensor]) -> int:
    """Target tokens of a batch that are not padding."""
    return int((batch["labels"] != -100).sum())


def train_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], bf16: bool = False
) -> None:
    """Run a training step of the recipes: smoothed loss, gradients, their norm, the update.

    Args:
        model: In training.
        optimizer: Of its weights.
        batch: With `labels` `[B, T]`.
        bf16: Whether the products are bfloat16's, as with `--bf16 true`.
    """
    inputs = dict(batch)
    labels = inputs.pop("labels")
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=bf16):
        inputs |= labelled_steps(model, labels)
        loss = token_loss(model(**inputs).logits, labels, label_smoothing=0.1)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """That of the recipes."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
