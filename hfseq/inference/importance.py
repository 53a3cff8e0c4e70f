"""Word importance for a classifier by erasure: the drop in the score when the word is left out.

    >>> model = AutoModelForSequenceClassification.from_pretrained("outputs/sentiment")
    >>> tokenizer = AutoTokenizer.from_pretrained("outputs/sentiment")
    >>> word_importance(model, tokenizer, ["Not good."], max_length=256)
    [Importance(label='negative', spans=[(0, 3), (4, 8), (8, 9)], values=[5.1, -2.3, 0.1])]

The method is that of Li et al. (2016), "Understanding neural networks through representation erasure". It takes one
forward pass per word and no gradients. Integrated gradients (Sundararajan et al. 2017) would attribute the whole score
to the words, but need a baseline, a number of steps and `inputs_embeds`, which BART and T5 classifiers do not accept
and which bypass a `char_encoder`. Erasure is exact, and means the same for every classifier.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.errors import InputError
from hfseq.heads import require_text
from hfseq.inference.alignment import word_spans
from hfseq.inference.classify import logits_of_rows
from hfseq.inference.loading import class_names, problem_of


class Importance(NamedTuple):
    """Contribution of each word of a text to the prediction.

    Attributes:
        label: Most likely class, to which the values refer; for regression the label with the largest value; empty for
            an empty text.
        spans: Start and end of each word in the text, as split by the tokenizer.
        values: Decrease of the log-odds of the class, or of the value of a regression, without the word; negative for
            a word that is evidence against the class.
    """

    label: str
    spans: list[tuple[int, int]]
    values: list[float]


def word_importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 32,
) -> list[Importance]:
    """Measure the effect of leaving out each word of each text on the most likely class.

    All tokens of a word are removed from the encoded text, so that its other tokens do not change. The log-odds are
    log p / (1 - p) of the class probability: softmax of the logits, or sigmoid for multi-label classification.

    Args:
        model: Sequence classifier, on its device: logits `[B, num_labels]` of `input_ids` and, if the tokenizer
            returns them, `char_ids`.
        tokenizer: Fast tokenizer of the model.
        texts: Texts to explain.
        max_length: Maximum length in tokens, special tokens included; truncated words are not included.
        batch_size: Batch size; rows of similar length are batched together, across texts.

    Returns:
        Importance for each text, independent of the other texts.

    Raises:
        InputError: The model reads no text, its tokenizer is not a fast one, or a token id is outside its vocabulary.
    """
    require_text(model, "word importance")
    if not tokenizer.is_fast:
        raise InputError(f"word importance needs a fast tokenizer, not {type(tokenizer).__name__}")
    names = [name for name in ("input_ids", "char_ids") if name in tokenizer.model_input_names]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    spans: list[list[tuple[int, int]]] = []
    for text in texts:
        encoded = tokenizer(text, max_length=max_length, truncation=True)
        of_token = word_spans(encoded, text)
        spans.append(list(dict.fromkeys(span for span in of_token if span is not None)))
        # First the whole text, then the text without each of its words.
        for left_out in [(), *spans[-1]] if spans[-1] else []:
            kept = [at for at, span in enumerate(of_token) if span is None or span != left_out]
            for name, rows in columns.items():
                rows.append([encoded[name][at] for at in kept] or _nothing(tokenizer, name))
    predicted = logits_of_rows(model, tokenizer, columns, batch_size)
    sizes = [1 + len(words) if words else 0 for words in spans]
    found = [Importance("", [], []) for _ in texts]
    for row, logits in enumerate(predicted.split(sizes)):  # [1 + words, num_labels]
        if len(logits):
            best = int(logits[0].argmax())
            scores = log_odds(logits, best, problem_of(model.config))
            label = class_names(model.config)[best]
            found[row] = Importance(label, spans[row], (scores[0] - scores[1:]).tolist())
    return found


def substitution_importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    label: int,
    letters: str,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """Measure the effect of replacing each letter of each text, as in-silico mutagenesis does.

    The importance of a letter is the decrease of the log-odds of a class when another letter stands in its place, mean
    over the other letters (Zhou and Troyanskaya 2015, DeepSEA). Unlike erasure it leaves the length, and so the places
    of all other letters.

    Args:
        model: Sequence classifier, on its device.
        tokenizer: Its tokenizer, of which each letter is a token.
        texts: Texts of equal length L.
        label: Class id.
        letters: Letters to put in.
        batch_size: Batch size.

    Returns:
        `[texts, L]`.
    """
    changed = [
        text[:at] + letter + text[at + 1 :]
        for text in texts
        for at in range(len(text))
        for letter in letters
        if letter != text[at]
    ]
    columns = {"input_ids": tokenizer([*texts, *changed])["input_ids"]}
    scores = log_odds(logits_of_rows(model, tokenizer, columns, batch_size), label, problem_of(model.config)).tolist()
    whole, others = scores[: len(texts)], iter(scores[len(texts) :])
    drops = [
        [own - np.mean([next(others) for other in letters if other != letter]) for letter in text]
        for own, text in zip(whole, texts, strict=True)
    ]
    return np.array(drops)


def log_odds(logits: torch.Tensor, label: int, problem: str) -> torch.Tensor:
    """Log-odds `[N]` of a class; for a regression its value.

    Args:
        logits: Logits `[N, num_labels]`.
        label: Class id.
        problem: `problem_type` of the config.
    """
    if problem != "single_label_classification":
        # With a sigmoid, the logit is the log-odds.
        return logits[:, label]
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(dim=1)


def _nothing(tokenizer: PreTrainedTokenizerBase, name: str) -> list[Any]:
    """Row for a text without any tokens left, if the tokenizer adds no special tokens: EOS, or else padding."""
    if name == "char_ids":
        return [[]]
    return [tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
