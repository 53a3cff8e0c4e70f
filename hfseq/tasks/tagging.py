"""Token classification: a tag for each word, of entities, parts of speech or others."""

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from textwrap import shorten
from typing import Any

import datasets
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
from hfseq.metrics.tagging import signature
from hfseq.tasks.base import Task
from hfseq.tasks.classification import label_fields, score_classes


class Tagging(Task):
    """A tag for each word of a list of words.

    A word of several tokens has its tag at the first. A CRF, which does not know where words begin when it decodes, is
    trained on all of them: the others have the same tag, or after the beginning of an entity that of its inside, if
    there is one.

    Where tags mark entities, the training rows say in which scheme, and without training the checkpoint's labels do.

    Attributes:
        scheme: One of `hfseq.data.tag_schemes.SCHEMES`; None where tags are classes of words.
        firsts: Split to the numbers of the tokens that words begin with, for each row.
    """

    columns = ("tokens", "tags")
    list_columns = slice(0, 2)
    metrics = ("accuracy", "f1", "entity_f1")
    hub_task = "token-classification"
    embedded_name = "tokens of Python sources"
    auto_class = AutoModelForTokenClassification
    packages = ("matplotlib", "sklearn")

    def embedded(self) -> datasets.DatasetDict:
        """Tokens of Python sources, and their kinds."""
        return python_token_rows()

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Tags of each row."""
        return [words_of(value) for value in rows[self.names[1]]]

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        words, tags = self.names
        if isinstance(splits.get("train"), datasets.IterableDataset):
            raise InputError("--task tagging does not read --streaming; leave it out")
        for split, rows in splits.items():
            pairs = zip(map(words_of, rows[words]), map(words_of, rows[tags]), strict=True)
            for number, (row_words, row_tags) in enumerate(pairs, 1):
                if len(row_words) != len(row_tags) or not row_words:
                    raise InputError(
                        f"{split}, row {number}: {len(row_words)} {words} and {len(row_tags)} {tags}; each word needs "
                        "one tag"
                    )
                if None in row_words or None in row_tags:
                    raise InputError(f"{split}, row {number}: a null among {words} or {tags}; give text for each")
        names = known
        seen = set(chain.from_iterable(map(words_of, splits["train"][tags]))) if train else set(known or ())
        if names is None or not seen <= set(names):
            names = sorted(seen)
        if len(names) < 2:
            raise InputError(f"column {tags!r} of the training data has {len(names)} tag; there is nothing to learn")
        self.classes, self.fields = names, label_fields(names)
        number_of = {name: index for index, name in enumerate(names)}
        for split, rows in splits.items():
            unknown = next(
                (tag for tag in chain.from_iterable(map(words_of, rows[tags])) if tag not in number_of), None
            )
            if unknown is not None:
                raise InputError(
                    f"{split}: tag {unknown!r} is not one of the {len(names)} known: {shorten_list(names)}"
                )
        self.number_of = number_of
        self.scheme, self._about = self._find_scheme(
            {name: map(words_of, rows[tags]) for name, rows in splits.items()}
        )
        if self.scheme is not None:
            require("seqeval", extra="train", use="the score of entities")
            self.signatures["entity_f1"] = signature(self.scheme)
        return self._draw(splits)

    def _find_scheme(self, rows: Mapping[str, Iterable[Sequence[str]]]) -> tuple[str | None, str]:
        """The scheme of the tags, and what there is to say about it; `rows` are the tags of each split."""
        listed = {split: list(tags) for split, tags in rows.items()}
        try:
            scheme = find_scheme(self.classes, listed.get("train") or next(iter(listed.values())))
        except ValueError as error:
            if str(self.args.metric_for_best_model).endswith("entity_f1"):
                names = shorten_list(self.classes)
                raise InputError(f"--metric_for_best_model entity_f1: no entities, as {error}: {names}") from None
            # Parts of speech need no comment; tags that begin as those of entities do.
            looks = any(tag[:2].upper() in ("B-", "I-") and tag[2:] for tag in self.classes)
            return None, f"tags scored as classes of words, not as entities: {error}" if looks else ""
        counts = {split: count_breaks(scheme, tags) for split, tags in listed.items()}
        broken = [f"{count:,} place{'s' * (count > 1)} of {split}" for split, count in counts.items() if count]
        return scheme, f"entities in {scheme}{', broken at ' + ', '.join(broken) if broken else ''}"

    def describe(self) -> str:
        """Number of rows of each split, the scheme of the tags, and the tags."""
        about = f", {self._about}" if self._about else ""
        names = shorten(", ".join(self.classes), 300)
        return f"{super().describe()}{about}, {len(self.classes)} tags: {names}"

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Train a CRF by its own loss.

        Raises:
            InputError: That is to be smoothed.
        """
        self.own_loss = bool(getattr(model.config, "crf", False))
        if self.own_loss and self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: a CRF is trained on whole sequences of tags; leave it out")

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        (words, tags), limit = self.names, self.data.max_length
        every = self.own_loss
        later = [self.number_of.get(self._inside(name), number) for number, name in enumerate(self.classes)]

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            rows = [words_of(value) for value in batch[words]]
            encoded, lengths = encode_words(tokenizer, rows, limit)
            labels, firsts = [], []
            for index, row_tags in enumerate(map(words_of, batch[tags])):
                places = encoded.word_ids(index)
                numbers = [-100 if place is None else self.number_of[row_tags[place]] for place in places]
                first = [place is not None and (at == 0 or place != places[at - 1]) for at, place in enumerate(places)]
                for at, new in enumerate(first):
                    if not new and places[at] is not None:
                        numbers[at] = later[numbers[at]] if every else -100
                labels.append(numbers)
                firsts.append([at for at, new in enumerate(first) if new])
            return {**encoded, "labels": labels, "firsts": firsts, "length": lengths}

        self.collator = token_collator(tokenizer, model)
        encoded = encode_splits(self.splits, encode, {"length": Limit("rows", "--max_length", limit)})
        self.firsts = {split: list(rows["firsts"]) for split, rows in encoded.rows.items()}
        self.references = {}
        for split, rows in encoded.rows.items():
            pairs = zip(rows["labels"], self.firsts[split], strict=True)
            self.references[split] = [[labels[at] for at in first] for labels, first in pairs]
            encoded.rows[split] = rows.remove_columns("firsts")
        return encoded

    def _inside(self, tag: str) -> str:
        """The tag of the later tokens of a word, which may not be among the classes."""
        if self.scheme is None or tag[0] not in "Bb":
            return tag
        return f"{'I' if tag[0] == 'B' else 'i'}{tag[1:]}"

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """The likeliest tag of each token."""
        return super().reduce(logits, labels).argmax(dim=-1)

    def decode(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> list[list[int]]:
        """The tags of words."""
        firsts = self.firsts[split]
        numbers = range(len(firsts)) if rows is None else rows
        return [[int(found[at]) for at in firsts[number]] for found, number in zip(raw, numbers, strict=True)]

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Accuracy and macro F1 of words, and of entities F1, precision and recall; see `Seqeval`."""
        scores = score_classes(np.array([*chain.from_iterable(predictions)]), [*chain.from_iterable(references)])
        if self.scheme is None:
            return scores
        given, right = ([[self.classes[tag] for tag in row] for row in side] for side in (predictions, references))
        found = metrics.seqeval(given, right, scheme=self.scheme)
        return scores | {f"entity_{name}": found[name] for name in ("f1", "precision", "recall")}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """The most frequent tag, and the most frequent tag of each word; of an unknown word that of all words."""
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
        """Names of tags, with spaces between them."""
        return [" ".join(self.classes[tag] for tag in row) for row in predictions]

    def words(self, split: str) -> list[Sequence[str]]:
        """The words of each row."""
        return [words_of(row) for row in self.splits[split][self.names[0]]]

    def sources(self, split: str) -> list[str]:
        """Words with spaces between them."""
        return [" ".join(words) for words in self.words(split)]

    def texts(self) -> Any:
        """All words, a row at a time."""
        return self.sources("train")


def token_collator(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> CheckedCollator:
    """Batches of rows with a label for each token, padded on the right whatever side the tokenizer pads on.

    The raw predictions of a row are found by the places of its tokens, which must not depend on how long the other
    rows of its batch are. A copy pads, so that the tokenizer that is saved keeps its side.
    """
    right = copy.copy(tokenizer)
    right.padding_side = "right"
    return CheckedCollator(DataCollatorForTokenClassification(right), model)


def words_of(value: str | Sequence[str]) -> Sequence[str]:
    """A list of words, or a text's parts between ASCII white space: a no-break space may be a word."""
    return re.findall(r"[^ \t\r\n]+", value) if isinstance(value, str) else value
