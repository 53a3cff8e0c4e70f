"""Token classification: a tag for each word, such as named entities or parts of speech."""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, pairwise
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.python_tokens import python_token_rows
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_words
from hfseq.data.reading import shorten_list
from hfseq.data.tag_schemes import count_breaks, find_scheme
from hfseq.errors import InputError, require
from hfseq.lazy import datasets
from hfseq.metrics.tagging import signature
from hfseq.models import is_hfseq
from hfseq.tasks.base import Task
from hfseq.tasks.classification import label_fields, score_classes


class Tagging(Task):
    """Token classification of rows of words.

    The first token of a word carries its tag, and the other tokens are ignored. A CRF does not know the word
    boundaries when it decodes, so it is trained on all tokens: the later tokens of a word have its tag, or the inside
    tag that follows a beginning of an entity, if the tags include it.

    The tagging scheme of entities is inferred from the training rows, or without training from the labels of the
    checkpoint.

    Attributes:
        classes: Tags in the order of their ids.
        scheme: Name in `hfseq.data.tag_schemes.SCHEMES`; None if tags are word classes.
        firsts: Split name to the positions of the first tokens of words, for each row.
    """

    columns = ("tokens", "tags")
    list_columns = slice(0, 2)
    metrics = ("accuracy", "f1", "entity_f1")
    hub_task = "token-classification"
    embedded_name = "tokens of Python sources"
    auto_class = AutoModelForTokenClassification
    packages = ("matplotlib", "sklearn")

    def embedded(self) -> datasets.DatasetDict:
        """Read tokens of Python sources, tagged with their kinds."""
        return python_token_rows()

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Tags of each row."""
        return [words_of(value) for value in rows[self.names[1]]]

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        words, tags = self.names
        if isinstance(splits.get("train"), datasets.IterableDataset):
            raise InputError("--streaming is not supported for tagging; omit it")
        listed = {split: self.row_classes(rows) for split, rows in splits.items()}
        for split, rows in splits.items():
            for number, (row_words, row_tags) in enumerate(zip(rows[words], listed[split], strict=True), 1):
                row_words = words_of(row_words)
                if len(row_words) != len(row_tags) or not row_words:
                    raise InputError(
                        f"{split}, row {number}: {len(row_words)} {words} and {len(row_tags)} {tags}; each word needs "
                        "one tag"
                    )
                if None in (*row_words, *row_tags):
                    raise InputError(f"{split}, row {number}: null in {words} or {tags}; each needs text")
        names = tag_names(listed, tags, known, train)
        self.classes, self.fields = names, label_fields(names)
        self.scheme, self._about = self._find_scheme(listed)
        if self.scheme is not None:
            require("seqeval", extra="train", use="the score of entities")
            self.signatures["entity_f1"] = signature(self.scheme)
        return self._draw(splits)

    def _find_scheme(self, rows: Mapping[str, Any]) -> tuple[str | None, str]:
        """Scheme of the tags of each split, and its description."""
        try:
            scheme = find_scheme(self.classes, rows.get("train") or next(iter(rows.values())))
        except ValueError as error:
            if str(self.args.metric_for_best_model).endswith("entity_f1"):
                names = shorten_list(self.classes)
                raise InputError(f"--metric_for_best_model entity_f1: no entities, as {error}: {names}") from None
            # Tags that look like entities need an explanation, parts of speech do not.
            looks = any(tag[:2].upper() in ("B-", "I-") and tag[2:] for tag in self.classes)
            return None, f"tags scored as word classes, not as entities: {error}" if looks else ""
        counts = {split: count_breaks(scheme, found) for split, found in rows.items()}
        broken = [f"{count:,} place{'s' * (count > 1)} of {split}" for split, count in counts.items() if count]
        return scheme, f"entities in {scheme}{', broken at ' + ', '.join(broken) if broken else ''}"

    def describe(self) -> str:
        """Describe the number of rows in each split, the tagging scheme, and the tags."""
        about = f", {self._about}" if self._about else ""
        names = shorten(", ".join(self.classes), 300)
        return f"{super().describe()}{about}, {len(self.classes)} tags: {names}"

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Train a CRF with the model's own loss.

        Args:
            model: Model, not modified.
            tokenizer: Tokenizer of the model.

        Raises:
            InputError: Label smoothing is requested for a CRF.
        """
        self.own_loss = bool(getattr(model.config, "crf", False))
        if self.own_loss and self.args.label_smoothing_factor:
            raise InputError(
                "--label_smoothing_factor is not supported for a CRF, which is trained on whole tag sequences; omit it"
            )

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        (words, tags), limit, ids = self.names, self.data.max_length, self.fields["label2id"]
        # Label of the later tokens of a word, by the label of its first token.
        later = [ids.get(self._inside(name), number) if self.own_loss else -100 for name, number in ids.items()]

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded, lengths = encode_words(tokenizer, [words_of(value) for value in batch[words]], limit)
            columns: dict[str, list[Any]] = {**encoded, "labels": [], "firsts": [], "length": lengths}
            for index, row_tags in enumerate(map(words_of, batch[tags])):
                labels, firsts = [], []
                for at, (before, place) in enumerate(pairwise((None, *encoded.word_ids(index)))):
                    label = -100 if place is None else ids[row_tags[place]]
                    if place is not None and place != before:
                        firsts.append(at)
                    elif place is not None:
                        label = later[label]
                    labels.append(label)
                columns["labels"].append(labels)
                columns["firsts"].append(firsts)
            return columns

        self.collator = token_collator(tokenizer, model)
        encoded = encode_splits(self.splits, encode, {"length": Limit("rows", "--max_length", limit)})
        self.firsts, self.references = {}, {}
        for split, rows in encoded.rows.items():
            self.firsts[split] = list(rows["firsts"])
            pairs = zip(rows["labels"], self.firsts[split], strict=True)
            self.references[split] = [[labels[at] for at in firsts] for labels, firsts in pairs]
            encoded.rows[split] = rows.remove_columns("firsts")
        return encoded

    def _inside(self, tag: str) -> str:
        """Tag of the later tokens of a word, which may be missing from the classes."""
        if self.scheme is None or tag[0] not in "Bb":
            return tag
        return f"{'I' if tag[0] == 'B' else 'i'}{tag[1:]}"

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """Reduce logits to the most likely tag of each token."""
        return super().reduce(logits, labels).argmax(dim=-1)

    def decode(self, split: str, raw: Any) -> list[list[int]]:
        """Convert token tags to word tags."""
        return [[int(tags[at]) for at in firsts] for tags, firsts in zip(raw, self.firsts[split], strict=True)]

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute accuracy and macro F1 of words, and F1, precision and recall of entities; see `metrics.seqeval`."""
        scores = score_classes(np.array([*chain.from_iterable(predictions)]), [*chain.from_iterable(references)])
        if self.scheme is None:
            return scores
        given, right = ([[self.classes[tag] for tag in row] for row in side] for side in (predictions, references))
        found = metrics.seqeval(given, right, scheme=self.scheme)
        return scores | {f"entity_{name}": found[name] for name in ("f1", "precision", "recall")}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Most frequent tag (`majority`), and most frequent tag of each known word (`by_word`)."""
        if not trained:
            return {}
        tags: dict[str, Counter[int]] = defaultdict(Counter)
        for words, row in zip(self.words("train"), self.references["train"], strict=True):
            for word, tag in zip(words, row, strict=False):
                tags[word][tag] += 1
        most = Counter(chain.from_iterable(self.references["train"])).most_common(1)[0][0]
        best = {word: counts.most_common(1)[0][0] for word, counts in tags.items()}
        rows = list(zip(self.words(split), self.references[split], strict=True))
        return {
            "majority": [[most] * len(row) for _, row in rows],
            "by_word": [[best.get(word, most) for word in words[: len(row)]] for words, row in rows],
        }

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{super().summary(split, predictions)}, {sum(map(len, predictions))} words"

    def show(self, predictions: Any) -> list[str]:
        """Tags, separated by spaces."""
        return [" ".join(self.classes[tag] for tag in row) for row in predictions]

    def words(self, split: str) -> list[Sequence[str]]:
        """Words of each row."""
        return [words_of(row) for row in self.splits[split][self.names[0]]]

    def sources(self, split: str) -> list[str]:
        """Words of each row, separated by spaces."""
        return [" ".join(words) for words in self.words(split)]

    def texts(self) -> Any:
        """Texts to train a new tokenizer on: the words of each training row."""
        return self.sources("train")


def tag_names(
    rows: Mapping[str, Sequence[Collection[str]]],
    column: str,
    known: list[str] | None,
    train: bool,
    *,
    places: Mapping[str, Sequence[str]] | None = None,
    ignored: str = "",
) -> list[str]:
    """Tags in the order of their ids: those of the checkpoint, or of the training rows if these have others.

    Args:
        rows: Split name to the tags of each row.
        column: Column of the tags, for errors.
        known: Tags of the checkpoint, if any.
        train: Whether there are training rows.
        places: Split name to the place of each row, for errors; None for their numbers in the split.
        ignored: Sentence about tags that do not count, for the error that there are too few.

    Raises:
        InputError: There are fewer than two tags, or a row has another one.
    """
    names = known
    seen = set(chain.from_iterable(rows["train"])) if train else set()
    if names is None or not seen <= set(names):
        names = sorted(seen)
    if len(names) < 2:
        raise InputError(
            f"column {column!r} of the training data has {len(names)} tag{'s' * (len(names) != 1)} "
            f"({shorten_list(names)}); there is nothing to learn{ignored and '; '}{ignored}"
        )
    for split, listed in rows.items():
        for number, found in enumerate(listed):
            if unknown := sorted(set(found) - set(names)):
                place = places[split][number] if places else f"{split}, row {number + 1}"
                raise InputError(
                    f"{place}: tag {unknown[0]!r} is not one of the {len(names)} known: {shorten_list(names)}"
                )
    return names


def token_collator(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> CheckedCollator:
    """Create a collator for rows with one label per token, which pads on the right whatever the tokenizer's side.

    The raw predictions of a row are indexed by token position, which must not depend on the length of the other rows
    in its batch. A copy of the tokenizer pads, so the saved tokenizer keeps its side.
    """
    right = copy.copy(tokenizer)
    right.padding_side = "right"
    kind = NeededMaskCollator if is_hfseq(model.config) else DataCollatorForTokenClassification
    return CheckedCollator(kind(right), model)


class NeededMaskCollator(DataCollatorForTokenClassification):
    """Collator that leaves out the mask of a batch without padding.

    Our models give the same results without it, bit by bit, and take less time: they need not look for the padding.
    """

    def torch_call(self, features: list[dict[str, Any]]) -> Any:
        """Collate rows to a batch, with `attention_mask` only if one of its values is 0."""
        batch = super().torch_call(features)
        if batch["attention_mask"].all():
            del batch["attention_mask"]
        return batch


def words_of(value: str | Sequence[str]) -> Sequence[str]:
    """Words of a row: a list as it is, a text split at ASCII whitespace only, since a no-break space may be a word."""
    return re.findall(r"[^ \t\r\n]+", value) if isinstance(value, str) else value
