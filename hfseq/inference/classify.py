"""Prediction of classes and probabilities of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.collation import CheckedCollator
from hfseq.data.encoding import Text, encode_filled
from hfseq.heads import require_text
from hfseq.inference.loading import class_names, problem_of
from hfseq.inference.parallel import run_by_length
from hfseq.lazy import datasets


class Decision(NamedTuple):
    """Prediction of a classifier for one text.

    Attributes:
        label: Most likely class; for multi-label classification all classes with a probability of at least 0.5; for
            regression the value; empty for an empty text.
        scores: Probability of each class, or the value of a regression; empty for an empty text.
    """

    label: str
    scores: dict[str, float]


@torch.no_grad()
def predict_logits(
    model: PreTrainedModel,
    encoded: Sequence[Mapping[str, Any]] | datasets.Dataset,
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int,
    progress: str | None = None,
) -> np.ndarray:
    """Compute the logits of each row, distributed over all processes.

    Args:
        model: Sequence classifier, on its device.
        encoded: Rows with `input_ids`, or whatever else the model reads, and the other model inputs.
        collator: Function that pads rows to a batch.
        batch_size: Batch size; rows of similar length are batched together.
        progress: Title of a progress bar; None for no progress bar.

    Returns:
        Logits `[N, num_labels]` in the order of `encoded`, the same on every process.
    """
    model.eval()

    def run(rows: list[int]) -> list[list[float]]:
        batch = collator([dict(encoded[row]) for row in rows]).to(model.device)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return model(**inputs).logits.float().tolist()

    lengths = [len(row[model.main_input_name]) for row in encoded]
    return np.array(run_by_length(lengths, batch_size, run, progress))


def logits_of_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, columns: dict[str, list[Any]], batch_size: int
) -> torch.Tensor:
    """Logits `[N, num_labels]` of encoded rows, columns of lists; see `predict_logits`.

    Raises:
        InputError: A token id is outside the model's vocabulary.
    """
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return torch.as_tensor(predict_logits(model, rows, collator, batch_size=batch_size))


def classify_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    batch_size: int,
    max_length: int,
    separator: str = ", ",
) -> tuple[list[Decision], dict[str, int]]:
    """Predict classes and probabilities of texts, distributed over all processes.

    Args:
        model: Sequence classifier or ensemble, on its device.
        tokenizer: Tokenizer of the model.
        texts: Texts, or pairs of texts.
        batch_size: Batch size; texts of similar length are batched together.
        max_length: Maximum length in tokens; longer texts are truncated.
        separator: Separator between the classes of a multi-label text.

    Returns:
        One decision per text, in order and the same on every process; and the number of texts that were `empty` or
        truncated (`cut`), if any.

    Raises:
        InputError: The model reads no text, or a token id is outside its vocabulary.
    """
    require_text(model, "classification of texts")
    rows, columns, counts = encode_filled(tokenizer, texts, max_length)
    decisions = [Decision("", {}) for _ in texts]
    logits = logits_of_rows(model, tokenizer, columns, batch_size)
    problem, names = problem_of(model.config), class_names(model.config)
    if problem == "single_label_classification":
        logits = logits.softmax(dim=-1)
    elif problem == "multi_label_classification":
        logits = logits.sigmoid()
    for row, values in zip(rows, logits.tolist(), strict=True):
        scores: dict[str, float] = {}
        for name, value in zip(names, values, strict=True):
            # Merge classes of the same name; probabilities of mutually exclusive classes add up.
            if name in scores:
                value = scores[name] + value if problem == "single_label_classification" else max(scores[name], value)
            scores[name] = value
        if problem == "regression":
            label = separator.join(f"{value:.6g}" for value in values)
        elif problem == "multi_label_classification":
            label = separator.join(name for name, value in scores.items() if value > 0.5)
        else:
            label = max(scores, key=scores.__getitem__)
        decisions[row] = Decision(label, scores)
    return decisions, counts
