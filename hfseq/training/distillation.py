"""Distillation: a classifier learns what a larger one says (Hinton et al. 2015; Tang et al. 2019)."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.functional import kl_div, log_softmax, mse_loss
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.collation import CheckedCollator
from hfseq.data.encoding import encode_texts
from hfseq.training.classification import classification_loss, predict_logits

MASK = None
"""Stands for a masked word."""


def augment(
    texts: Sequence[str],
    count: int,
    *,
    masked: float = 0.1,
    replaced: float = 0.0,
    neighbours: Callable[[str], Sequence[str]] = lambda word: (),
    ngram: float = 0.25,
    seed: int = 42,
) -> Iterator[list[str | None]]:
    """Variants of texts, to be labelled by a teacher (Tang et al. 2019, section 3.2).

    Of each word, one is masked with probability `masked`, and one that has neighbours is replaced by any of them with
    probability `replaced`: of what is left, words that a teacher finds near (Jiao et al. 2020, section 4, algorithm 1)
    rather than words of the same part of speech, as in the first paper, so that no tagger is needed. Then, with
    probability `ngram`, all but a run of one to five words is dropped. A variant that was there before, a text itself
    among them, is left out.

    Args:
        texts: Texts with spaces between words.
        count: Variants made of each text, those left out counted.
        masked: A word's probability of being masked.
        replaced: That of a word that is not masked of being replaced.
        neighbours: Words that may stand in place of a word, such as `Neighbours` finds; none for one that stays.
        ngram: A text's probability of being cut to a run of words.
        seed: Of the choices.

    Yields:
        Words, `MASK` for a masked one.
    """
    rng = random.Random(seed)
    seen: set[tuple[str | None, ...]] = {tuple(text.split()) for text in texts}

    def vary(word: str) -> str | None:
        if rng.random() < masked:
            return MASK
        if replaced and rng.random() < replaced and (others := neighbours(word)):
            return rng.choice(others)
        return word

    for text in texts:
        for _ in range(count):
            words = [vary(word) for word in text.split()]
            if words and rng.random() < ngram:
                length = min(rng.randint(1, 5), len(words))
                start = rng.randint(0, len(words) - length)
                words = words[start : start + length]
            if tuple(words) not in seen and any(word is not MASK for word in words):
                seen.add(tuple(words))
                yield words


def write_words(words: Sequence[str | None], tokenizer: PreTrainedTokenizerBase) -> str:
    """Words as a text of a tokenizer, masked ones as its mask token or, where it has none, its unknown token."""
    mask = tokenizer.mask_token or tokenizer.unk_token or ""
    return " ".join(mask if word is MASK else word for word in words)


def encode_variants(
    variants: Sequence[Sequence[str | None]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> datasets.Dataset:
    """Variants as rows of a model's tokens, in order; special tokens in them are read as such."""
    texts = [write_words(words, tokenizer) for words in variants]
    columns: dict[str, list[Any]] = {}
    # Chunks, so that a text that a mask is missing from is not held as a whole beside its tokens.
    for start in range(0, len(texts), 10_000):
        encoded = tokenizer(
            texts[start : start + 10_000], truncation=True, max_length=max_length, split_special_tokens=False
        )
        for name, values in encoded.items():
            columns.setdefault(name, []).extend(values)
    return datasets.Dataset.from_dict(columns)


def teacher_logits(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    variants: Sequence[Sequence[str | None]],
    *,
    max_length: int,
    batch_size: int,
    dtype: str = "float32",
    progress: str | None = None,
) -> np.ndarray:
    """What a teacher says of texts and, after them, of variants, `[N, num_labels]`, on all processes together.

    Args:
        teacher: A sequence classifier, on its device.
        tokenizer: Its tokenizer.
        texts: Texts.
        variants: Words as `augment` makes them.
        max_length: Tokens of a text; the rest of it is cut off.
        batch_size: Texts at once.
        dtype: What it multiplies in: `float32`, or `bfloat16` by automatic mixed precision.
        progress: Title of a progress bar, if there is to be one.
    """
    plain, _ = encode_texts(tokenizer, texts, max_length)
    rows = [datasets.Dataset.from_dict(dict(plain))]
    if variants:
        rows.append(encode_variants(variants, tokenizer, max_length))
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), teacher)
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        return predict_logits(
            teacher, datasets.concatenate_datasets(rows), collator, batch_size=batch_size, progress=progress
        )


def fingerprint(*values: Any) -> str:
    """A name for values that differs where they do: of what the logits that a run keeps depend on."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def student_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Sequence[int],
    variants: Sequence[Sequence[str | None]],
    logits: np.ndarray,
    max_length: int,
) -> datasets.Dataset:
    """Rows to train a student on, whose `labels` are the teacher's logits and, last, the right class.

    Args:
        tokenizer: The student's.
        texts: Texts.
        labels: Their class numbers, -1 where none is known; fewer than texts if the last ones have none.
        variants: More rows, whose classes nobody knows.
        logits: The teacher's, of texts and variants, `[N, num_labels]`.
        max_length: Tokens of a text; the rest of it is cut off.
    """
    plain, _ = encode_texts(tokenizer, texts, max_length)
    parts = [datasets.Dataset.from_dict(dict(plain))]
    if variants:
        parts.append(encode_variants(variants, tokenizer, max_length))
    rows = datasets.concatenate_datasets(parts)
    right = [*labels, *[-1] * (len(rows) - len(labels))]
    return rows.add_column("labels", [[*line, number] for line, number in zip(logits.tolist(), right, strict=True)])


def distillation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    kind: str = "mse",
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    r"""Loss of a student: how far its logits are from the teacher's, and how wrong its class.

    $(1 - \alpha)\,L_{soft} + \alpha\,L_{hard}$ with the cross-entropy of the right class, where one is known, and

    - `mse`: $\|z^{(T)} - z^{(S)}\|^2_2$, a mean over the classes (Tang et al. 2019, section 3.1);
    - `kl`: $\tau^2\,KL(p^{(T)} \| p^{(S)})$ of the softmax at temperature $\tau$ (Hinton et al. 2015, section 2).

    Args:
        logits: The student's, `[B, K]`.
        labels: As `student_rows` makes them, `[B, K + 1]`; or class numbers `[B]`, whose cross-entropy is the loss.
        kind: `mse` or `kl`.
        temperature: Of `kl`.
        hard_weight: The weight alpha.
        count: Number of values in the labels of all the batches that are added up, on all processes, as a Trainer
            counts them; None for those here.
    """
    if not labels.is_floating_point():
        return classification_loss(logits, labels, count=count)
    teacher, right, logits = labels[:, :-1].float(), labels[:, -1].long(), logits.float()
    if kind == "mse":
        soft = mse_loss(logits, teacher, reduction="none").mean(dim=-1).sum()
    else:
        ours, theirs = (log_softmax(values / temperature, dim=-1) for values in (logits, teacher))
        soft = temperature**2 * kl_div(ours, theirs, reduction="sum", log_target=True)
    total = (1 - hard_weight) * soft
    if hard_weight:
        known = right >= 0
        total = total + hard_weight * classification_loss(logits[known], right[known], count=1)
    return total / (len(labels) if count is None else count / labels.shape[1])
