"""Which words a classifier's decision hangs on: each is left out, and what the score loses is its importance.

    >>> model = AutoModelForSequenceClassification.from_pretrained("outputs/sentiment")
    >>> tokenizer = AutoTokenizer.from_pretrained("outputs/sentiment")
    >>> word_importance(model, tokenizer, ["Not good."], max_length=256)
    [Importance(label='negative', spans=[(0, 3), (4, 8), (8, 9)], values=[5.1, -2.3, 0.1])]

This is the erasure of Li et al. (2016), "Understanding neural networks through representation erasure". It takes a
forward for each word and no gradient. Integrated gradients (Sundararajan et al. 2017) would share the score out among
the words, but need a baseline, a number of steps and `inputs_embeds`, which BART and T5 classifiers refuse and which
leave out what a `char_encoder` reads. Leaving a word out is exact, and means the same for every classifier.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import datasets
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.collation import CheckedCollator
from hfseq.errors import InputError
from hfseq.inference.alignment import word_spans
from hfseq.inference.classify import predict_logits
from hfseq.inference.loading import problem_of


class Importance(NamedTuple):
    """What each word of a text does for the decision.

    Attributes:
        label: The likeliest class, whose values these are; of a regression the largest value; empty for an empty text.
        spans: Where in the text each word begins and ends, as the tokenizer separates words.
        values: What the log-odds of the class, or the value of a regression, lose without the word; negative for a
            word that speaks against the class.
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
    """Leave out each word of each text, and see what that does to the likeliest class.

    All tokens of a word are taken out of the encoded text, so that its other tokens stay as they are. The log-odds are
    log p / (1 - p) of the class's probability: the softmax of the logits, where several classes may hold the sigmoid.

    Args:
        model: A sequence classifier, on its device: logits `[B, num_labels]` of `input_ids` and, if the tokenizer
            gives them, `char_ids`.
        tokenizer: Its tokenizer, a fast one.
        texts: The texts.
        max_length: Tokens of a text, special ones counted; words after them are not there.
        batch_size: Rows at once, of all texts together; rows of one length go together.

    Returns:
        One for each text. It does not depend on the other texts.

    Raises:
        InputError: If the tokenizer does not tell which word a token belongs to, or an id is not of the model.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not tell words apart; their importance needs a fast tokenizer"
        )
    columns: dict[str, list[Any]] = {"input_ids": []}
    if "char_ids" in tokenizer.model_input_names:
        columns["char_ids"] = []
    spans: list[list[tuple[int, int]]] = []
    for text in texts:
        encoded = tokenizer(text, max_length=max_length, truncation=True)
        of_token = word_spans(encoded, text)
        spans.append(list(dict.fromkeys(span for span in of_token if span is not None)))
        # The whole text first, then without each of its words.
        for left_out in [(), *spans[-1]] if spans[-1] else []:
            kept = [at for at, span in enumerate(of_token) if span is None or span != left_out]
            for name, rows in columns.items():
                rows.append([encoded[name][at] for at in kept] or _nothing(tokenizer, name))
    if not columns["input_ids"]:
        return [Importance("", [], []) for _ in texts]
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
    predicted = predict_logits(model, datasets.Dataset.from_dict(columns), collator, batch_size=batch_size)
    found, start = [], 0
    for words in spans:
        if not words:
            found.append(Importance("", [], []))
            continue
        logits = torch.as_tensor(predicted[start : start + 1 + len(words)])  # [1 + words, num_labels]
        start += len(logits)
        best = int(logits[0].argmax())
        scores = log_odds(logits, best, problem_of(model.config))
        label = cast(dict[int, str], model.config.id2label)[best]
        found.append(Importance(label, words, (scores[0] - scores[1:]).tolist()))
    return found


def log_odds(logits: torch.Tensor, label: int, problem: str) -> torch.Tensor:
    """Log-odds `[N]` of a class under logits `[N, num_labels]`; for a regression its value.

    Args:
        logits: The logits.
        label: Number of the class.
        problem: As `problem_type` of a config.
    """
    if problem != "single_label_classification":
        # Of a sigmoid the logit is the log-odds.
        return logits[:, label]
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(dim=1)


def _nothing(tokenizer: PreTrainedTokenizerBase, name: str) -> list[Any]:
    """A row for a text with nothing left, where the tokenizer adds no special tokens: an end mark, or padding."""
    if name == "char_ids":
        return [[]]
    return [tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
