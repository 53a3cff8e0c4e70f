"""What differs between the tasks of the fine-tuning recipes: rows, encoding, loss, scores, baseline."""

import copy
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.docstrings import docstring_rows
from hfseq.data.embedded.python_tokens import python_token_rows
from hfseq.data.embedded.reviews import review_rows
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_words
from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.reading import shorten_list
from hfseq.data.sentences import lead_n
from hfseq.data.streaming import encode_stream_labels, tokenizer_texts
from hfseq.data.tag_schemes import count_breaks, find_scheme
from hfseq.errors import InputError, require
from hfseq.inference.parallel import run_by_length
from hfseq.metrics.tagging import signature
from hfseq.training.arguments import TASK_METRICS, FinetuningArguments, TaskArguments
from hfseq.training.classification import (
    class_names,
    class_weights,
    classification_loss,
    decide,
    encode_classified,
    first_output,
    label_array,
    majority,
    score_classes,
)
from hfseq.training.lengths import sample_split
from hfseq.training.reports import plot_confusion_matrix, plot_learning_curve, write_lines, write_samples
from hfseq.training.seq2seq import (
    copied_vocabulary,
    decode_outputs,
    encode_pairs,
    generate_ids,
    has_own_loss,
    make_collator,
    score_summaries,
    score_translations,
    set_generation,
    split_references,
    token_loss,
    validation_loss,
    write_reports,
)


class Task(ABC):
    """Rows of a task, and what a model makes of them.

    What a model gives for a row is *raw* (logits, the tags of tokens, log-probabilities, ids) until `decide` makes
    *decisions* of it (a class, the tags of words, log-probabilities, a text), which are scored and shown.

    Args:
        data_args: Which rows.
        args: The training arguments.
        known: Names of the classes that the checkpoint was trained with, if there are.
        train: Whether there must be training rows.
        num_parts: Shards of a stream of training rows.

    Attributes:
        splits: Split to rows; `train_sample` are training rows to be scored beside the validation rows.
        fields: Config fields that the data decide.
        metric: The score that is shown beside the loss.
        encoded: Split to encoded rows, `datasets.Dataset` or a stream, once there is a model.
        lengths: Split to the tokens of its sources before they were cut, likewise.
        references: What is right, for each row of a split but `train`.
        collator: Makes batches of encoded rows.
        own_loss: Whether the model's own loss is more than that of its logits.
        signatures: Score to what says how it is computed.

    Raises:
        InputError: As `DataArguments.read`, and if the rows are not those of the task.
    """

    columns: ClassVar[tuple[str, ...]]
    """Names of the columns where the flags say nothing."""
    label_columns: ClassVar[slice] = slice(0, 0)
    """Those of `columns` that hold classes, or lists."""
    hub_task: ClassVar[str]
    """Its name on the Hub."""
    embedded_name: ClassVar[str]
    """What the data of a run are that names none."""
    auto_class: ClassVar[Any]
    generates: ClassVar[bool] = False
    """Whether an evaluation generates."""
    packages: ClassVar[tuple[str, ...]] = ("matplotlib",)
    """Packages of the `train` extra that its plots and scores need."""
    collator: CheckedCollator

    def __init__(
        self,
        data_args: TaskArguments,
        args: FinetuningArguments,
        known: list[str] | None,
        *,
        train: bool,
        num_parts: int,
    ) -> None:
        self.data_args, self.args, self.streaming = data_args, args, data_args.streaming and train
        given = (data_args.text_column, data_args.label_column)
        self.names = tuple(own or usual for own, usual in zip(given, self.columns, strict=False))
        splits = data_args.read(
            self.names,
            self.embedded,
            train=train,
            seed=args.seed,
            moses=len(self.names) == 1,
            label_columns=self.names[self.label_columns],
            classes=self._row_classes,
            num_parts=num_parts,
        )
        best = str(args.metric_for_best_model).removeprefix("eval_")
        self.metric = next(name for name in (best, *TASK_METRICS[data_args.task]) if name != "loss")
        self.fields: dict[str, Any] = {}
        self.references: dict[str, Any] = {}
        self.own_loss = False
        self.signatures: dict[str, str] = {}
        self.splits: dict[str, Any] = dict(self._prepare(dict(splits), known, train))
        if train:
            self.splits["train_sample"] = sample_split(self.splits["train"], len(self.splits["validation"]), args.seed)

    @staticmethod
    @abstractmethod
    def embedded() -> datasets.DatasetDict:
        """The data of a run that names none."""

    def _row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """What each row has that training has to know of: its classes or tags."""
        return [()] * len(rows)

    @abstractmethod
    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        """Check the rows, set `fields`, and leave the training rows of `_draw`."""

    def _draw(self, splits: dict[str, Any]) -> dict[str, Any]:
        """Leave as many training rows as there are to be, drawn by the seed; of a stream the first ones.

        Classes are numbered before, for the rows that are drawn may lack some of those that validation rows have.
        """
        limit = self.data_args.max_train_samples
        if limit is None or "train" not in splits:
            return splits
        rows = splits["train"]
        if self.streaming:
            return {**splits, "train": rows.take(limit)}
        return {**splits, "train": rows.shuffle(seed=self.args.seed).select(range(min(limit, len(rows))))}

    @abstractmethod
    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        """Encoded rows; sets `collator` and `references`."""

    @abstractmethod
    def decide(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> Sequence[Any]:
        """Decisions of what a model gave for all rows of a split, or for some of them."""

    @abstractmethod
    def score(self, decisions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Scores of decisions, of all rows or of some."""

    def score_raw(self, split: str, rows: Sequence[int] | None, raw: Any) -> dict[str, float]:
        """Scores of what a model gave for all rows of a split, or for some of them."""
        right = self.references[split]
        right = right if rows is None else [right[row] for row in rows]
        return self.score(self.decide(split, raw, rows), right)

    @abstractmethod
    def baseline(self, split: str) -> tuple[str, Sequence[Any]]:
        """Name and decisions of something simple that knows the training rows."""

    @abstractmethod
    def show(self, decisions: Sequence[Any]) -> list[str]:
        """A line of text for each decision, or reference."""

    def sources(self, split: str) -> list[str]:
        """A line of text for each row: what the model reads."""
        return list(self.splits[split][self.names[0]])

    def example(self, split: str) -> str | None:
        """A text to show the model with."""
        return self.sources(split)[0]

    def report(self, model: PreTrainedModel, log: list[dict[str, Any]], split: str, decisions: Sequence[Any]) -> None:
        """Write `samples.txt`, `predictions.txt` and plots into the output directory; `log` is as the Trainer's."""
        root = Path(str(self.args.output_dir))
        right, shown = self.show(self.references[split]), self.show(decisions)
        write_samples(root / "samples.txt", self.sources(split), right, shown)
        write_lines(root / "predictions.txt", shown)
        if log:
            plot_learning_curve(log, root / "learning_curve.png", metric=self.metric)

    def texts(self) -> Any:
        """What a new tokenizer is trained on."""
        return tokenizer_texts(self.splits["train"], self.names[:1])

    def describe(self) -> str:
        """How many rows there are, and of what."""
        counts = [
            f"{'a stream of' if isinstance(rows, datasets.IterableDataset) else len(rows)} {name}"
            for name, rows in self.splits.items()
            if name != "train_sample"
        ]
        return f"{', '.join(counts)} rows"

    def encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Callable[..., Any]) -> None:
        """Encode the rows for a model, and say how many lose their end."""
        self.encoded, self.lengths, notes = self._encode(model, tokenizer)
        for note in notes:
            say(note)

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Cross-entropy of the labels, a mean over `num_items_in_batch` of them, or over those here."""
        smoothing = self.args.label_smoothing_factor
        return token_loss(outputs.logits, labels, label_smoothing=smoothing, count=num_items_in_batch)

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """How many labels of a batch the loss is a mean over."""
        return (batch["labels"] != -100).sum()

    def batch_loss(
        self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], count: torch.Tensor | int
    ) -> torch.Tensor:
        """Loss of a batch in an explicit loop; see `loss`."""
        if self.own_loss:
            return model(**batch, num_items_in_batch=count).loss
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return self.loss(model(**inputs), batch["labels"], count)

    def reduce(self, logits: Any, labels: torch.Tensor) -> torch.Tensor:
        """What of a batch's logits is kept for the scores."""
        return first_output(logits)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, split: str) -> tuple[Sequence[Any], float]:
        """What a model gives for the rows of a split, on all processes together.

        Returns:
            Raw predictions, one for each row, and the mean loss.
        """
        model.eval()
        rows = self.encoded[split]

        def run(numbers: list[int]) -> list[tuple[Any, float, int]]:
            batch = self.collator(list(rows.select(numbers))).to(model.device)
            labels = batch.pop("labels")
            outputs = model(**batch, labels=labels, num_items_in_batch=1) if self.own_loss else model(**batch)
            total = (outputs.loss if self.own_loss else self.loss(outputs, labels, 1)).item()
            count = int(self.count({"labels": labels}))
            kept = self.reduce(outputs.logits, labels).tolist()
            # The first row stands for the batch in the sums.
            return [(raw, total * (not row), count * (not row)) for row, raw in enumerate(kept)]

        lengths = [len(ids) for ids in rows["input_ids"]]
        found = run_by_length(lengths, self.args.per_device_eval_batch_size, run)
        raw, totals, counts = zip(*found, strict=True)
        return raw, math.fsum(totals) / sum(counts)


class Classification(Task):
    """A class for each text, or several."""

    columns = ("text", "label")
    label_columns = slice(1, 2)
    hub_task = "text-classification"
    embedded_name = "synthetic reviews"
    auto_class = AutoModelForSequenceClassification
    packages = ("matplotlib", "sklearn")
    embedded = staticmethod(review_rows)

    def _row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        return row_classes(rows, self.names[1], self.data_args.label_separator)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        encode: Any = encode_stream_labels if self.streaming else encode_labels
        separator = self.data_args.label_separator
        splits, names = encode(splits, self.names[1], names=known, replace_names=train, separator=separator)
        self.classes = names
        given, self.weights = self.data_args.class_weights, None
        if train and given is not None:
            # Of all rows, so that no class is without one.
            self.weights = class_weights(given, label_array(splits["train"]), names)
        splits = self._draw(splits)
        self.labels = {split: label_array(rows) for split, rows in splits.items()}
        self.several = next(iter(self.labels.values())).ndim == 2
        if self.several and self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor is for one class a row; these rows may have several")
        self.fields = _class_fields(names)
        self.fields["problem_type"] = "multi_label_classification" if self.several else "single_label_classification"
        return splits

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        self.collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
        self.references = {split: label_array(rows) for split, rows in self.splits.items() if split != "train"}
        return encode_classified(self.splits, tokenizer, self.names[0], max_length=self.data_args.max_length)

    def loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """See `classification_loss`."""
        smoothing, weights = self.args.label_smoothing_factor, self.weights
        return classification_loss(
            outputs.logits, labels, weights=weights, label_smoothing=smoothing, count=num_items_in_batch
        )

    def decide(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> Sequence[Any]:
        """The class of each row, or 1 for each class that holds."""
        return decide(np.asarray(raw), several=self.several)  # type: ignore[return-value]

    def score(self, decisions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Accuracy and macro F1."""
        return score_classes(np.asarray(decisions), references)

    def baseline(self, split: str) -> tuple[str, Sequence[Any]]:
        """The most frequent class."""
        return "majority", majority(self.labels["train"], len(self.splits[split]))  # type: ignore[return-value]

    def show(self, decisions: Sequence[Any]) -> list[str]:
        """Names of classes."""
        return class_names(np.asarray(decisions), self.classes)

    def report(self, model: PreTrainedModel, log: list[dict[str, Any]], split: str, decisions: Sequence[Any]) -> None:
        """With a confusion matrix, where a text has one class."""
        super().report(model, log, split, decisions)
        if not self.several:
            path = Path(str(self.args.output_dir)) / "confusion_matrix.png"
            plot_confusion_matrix(self.references[split], np.asarray(decisions), self.classes, path)


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
    label_columns = slice(0, 2)
    hub_task = "token-classification"
    embedded_name = "tokens of Python sources"
    auto_class = AutoModelForTokenClassification
    packages = ("matplotlib", "sklearn")
    embedded = staticmethod(python_token_rows)

    def _row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        return [_words(value) for value in rows[self.names[1]]]

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        words, tags = self.names
        if self.streaming:
            raise InputError("--task tagging does not read --streaming; leave it out")
        for split, rows in splits.items():
            pairs = zip(map(_words, rows[words]), map(_words, rows[tags]), strict=True)
            for number, (row_words, row_tags) in enumerate(pairs, 1):
                if len(row_words) != len(row_tags) or not row_words:
                    raise InputError(
                        f"{split}, row {number}: {len(row_words)} {words} and {len(row_tags)} {tags}; each word needs "
                        "one tag"
                    )
                if None in row_words or None in row_tags:
                    raise InputError(f"{split}, row {number}: a null among {words} or {tags}; give text for each")
        names = known
        seen = set(chain.from_iterable(map(_words, splits["train"][tags]))) if train else set(known or ())
        if names is None or not seen <= set(names):
            names = sorted(seen)
        if len(names) < 2:
            raise InputError(f"column {tags!r} of the training data has {len(names)} tag; there is nothing to learn")
        self.classes, self.fields = names, _class_fields(names)
        number_of = {name: index for index, name in enumerate(names)}
        for split, rows in splits.items():
            unknown = next((tag for tag in chain.from_iterable(map(_words, rows[tags])) if tag not in number_of), None)
            if unknown is not None:
                raise InputError(
                    f"{split}: tag {unknown!r} is not one of the {len(names)} known: {shorten_list(names)}"
                )
        self.number_of = number_of
        self.scheme, self._about = self._find_scheme({name: map(_words, rows[tags]) for name, rows in splits.items()})
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
        """With the scheme of the tags."""
        return f"{super().describe()}{', ' + self._about if self._about else ''}"

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        (words, tags), limit = self.names, self.data_args.max_length
        self.own_loss = every = getattr(model.config, "crf", False)
        later = [self.number_of.get(self._inside(name), number) for number, name in enumerate(self.classes)]

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            rows = [_words(value) for value in batch[words]]
            encoded, lengths = encode_words(tokenizer, rows, limit)
            labels, firsts = [], []
            for index, row_tags in enumerate(map(_words, batch[tags])):
                places = encoded.word_ids(index)
                numbers = [-100 if place is None else self.number_of[row_tags[place]] for place in places]
                first = [place is not None and (at == 0 or place != places[at - 1]) for at, place in enumerate(places)]
                for at, new in enumerate(first):
                    if not new and places[at] is not None:
                        numbers[at] = later[numbers[at]] if every else -100
                labels.append(numbers)
                firsts.append([at for at, new in enumerate(first) if new])
            return {**encoded, "labels": labels, "firsts": firsts, "length": lengths}

        self.collator = _token_collator(tokenizer, model)
        encoded = encode_splits(self.splits, encode, {"length": Limit("rows", "--max_length", limit)})
        self.firsts = {split: list(rows["firsts"]) for split, rows in encoded.rows.items()}
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

    def decide(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> Sequence[Any]:
        """The tags of words."""
        firsts = self.firsts[split]
        numbers = range(len(firsts)) if rows is None else rows
        return [[int(found[at]) for at in firsts[number]] for found, number in zip(raw, numbers, strict=True)]

    def score(self, decisions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Accuracy and macro F1 of words, and of entities F1, precision and recall; see `Seqeval`."""
        scores = score_classes(np.array([*chain.from_iterable(decisions)]), [*chain.from_iterable(references)])
        if self.scheme is None:
            return scores
        tags = [[[self.classes[tag] for tag in row] for row in side] for side in (decisions, references)]
        found = metrics.load("seqeval").compute(predictions=tags[0], references=tags[1], scheme=self.scheme)
        return scores | {f"entity_{name}": found[name] for name in ("f1", "precision", "recall")}

    def baseline(self, split: str) -> tuple[str, Sequence[Any]]:
        """The most frequent tag."""
        tags = Counter(chain.from_iterable(self.references["train"]))
        return "majority", [[tags.most_common(1)[0][0]] * len(row) for row in self.references[split]]

    def show(self, decisions: Sequence[Any]) -> list[str]:
        """Names of tags, with spaces between them."""
        return [" ".join(self.classes[tag] for tag in row) for row in decisions]

    def words(self, split: str) -> list[Sequence[str]]:
        """The words of each row."""
        return [_words(row) for row in self.splits[split][self.names[0]]]

    def sources(self, split: str) -> list[str]:
        """Words with spaces between them."""
        return [" ".join(words) for words in self.words(split)]

    def texts(self) -> Any:
        """All words, a row at a time."""
        return self.sources("train")


class LanguageModeling(Task):
    """The next token; texts follow each other, with the end mark between them, in blocks of `block_size` tokens.

    A block begins with the last token of the one before, so that each token of a run of texts but the first is
    predicted once.
    """

    columns = ("text",)
    hub_task = "text-generation"
    embedded_name = "synthetic reviews"
    auto_class = AutoModelForCausalLM
    embedded = staticmethod(review_rows)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        return self._draw(splits)

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        text, size, end = self.names[0], self.data_args.block_size, tokenizer.eos_token_id
        if end is None:
            raise InputError("--task language_modeling needs a tokenizer with an end mark (eos_token)")

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
        self.collator = _token_collator(tokenizer, model)
        config = model.config
        names = ("activation_regularization", "temporal_activation_regularization")
        self.own_loss = any(getattr(config, name, 0) for name in names) and not self.args.label_smoothing_factor
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

    def decide(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> Sequence[Any]:
        """Log-probabilities of the tokens that are predicted."""
        labels = self.references[split]
        numbers = range(len(raw)) if rows is None else rows
        return [np.asarray(found)[1 : len(labels[number])] for found, number in zip(raw, numbers, strict=True)]

    def score(self, decisions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Perplexity of a token."""
        values = np.concatenate([np.asarray(row, dtype=np.float64) for row in decisions])
        return {"perplexity": math.exp(-values.mean())}

    def baseline(self, split: str) -> tuple[str, Sequence[Any]]:
        """The frequency of each token in the training texts, one added."""
        counts = np.ones(self.vocab_size)
        for row in islice(iter(self.encoded["train"]), 100_000):
            np.add.at(counts, row["input_ids"][1:], 1)
        probabilities = np.log(counts / counts.sum())
        return "unigram", [probabilities[row[1:]] for row in self.references[split]]

    def show(self, decisions: Sequence[Any]) -> list[str]:
        """Mean log-probability of each block."""
        return [f"{np.mean(row):.4g}" if len(row) else "" for row in decisions]

    def sources(self, split: str) -> list[str]:
        """The blocks as ids are no texts; their numbers stand for them."""
        return [f"block {number}" for number in range(1, len(self.encoded[split]) + 1)]

    def example(self, split: str) -> str | None:
        """None, since the texts are blocks."""
        return None


class Seq2Seq(Task):
    """A text for each text."""

    columns = ("document", "summary")
    label_columns = slice(1, 2)
    hub_task = "summarization"
    embedded_name = "docstrings of Python packages"
    auto_class = AutoModelForSeq2SeqLM
    generates = True
    packages = ("matplotlib", "nltk", "rouge_score", "sacrebleu")
    embedded = staticmethod(docstring_rows)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        rows, self.references = split_references(self._draw(splits), self.names[1])
        return rows

    def texts(self) -> Any:
        """Texts of both sides."""
        return tokenizer_texts(self.splits["train"], self.names)

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        source, target = self.names
        self.tokenizer, self.copied = tokenizer, copied_vocabulary(model)
        self.collator = make_collator(model, tokenizer)
        self.own_loss = has_own_loss(model, self.args.label_smoothing_factor)
        penalty = self.data_args.length_penalty
        set_generation(model, self.data_args.num_beams, self.data_args.max_target_length, length_penalty=penalty)
        if "train_sample" in self.splits:
            self.references["train_sample"] = [[text] for text in self.splits["train_sample"][target]]
        return encode_pairs(
            self.splits,
            tokenizer,
            source,
            target,
            max_source_length=self.data_args.max_source_length,
            max_target_length=self.data_args.max_target_length,
            prefix=self.data_args.source_prefix,
            copy_vocabulary=self.copied,
        )

    def predict(self, model: PreTrainedModel, split: str, num_beams: int | None = None) -> tuple[Sequence[Any], float]:
        """Generated ids, and the mean loss of the references."""
        beams = num_beams or self.args.generation_num_beams
        options = {"num_beams": beams, "max_length": self.data_args.max_target_length}
        size = self.args.per_device_eval_batch_size
        ids = generate_ids(model, self.encoded[split], self.collator, batch_size=size, **options)
        smoothing = self.args.label_smoothing_factor
        loss = validation_loss(model, self.encoded[split], self.collator, batch_size=size, label_smoothing=smoothing)
        return ids, loss

    def decide(self, split: str, raw: Any, rows: Sequence[int] | None = None) -> Sequence[Any]:
        """Texts."""
        prefix, texts = self.data_args.source_prefix, self.sources(split)
        sources = [prefix + texts[number] for number in (range(len(texts)) if rows is None else rows)]
        limit = self.data_args.max_source_length
        return decode_outputs(self.tokenizer, raw, sources, max_source_length=limit, copy_vocabulary=self.copied)

    def score(self, decisions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """ROUGE, BLEU, chrF and exact matches."""
        return score_summaries(decisions, references) | score_translations(decisions, references)

    def baseline(self, split: str) -> tuple[str, Sequence[Any]]:
        """The first sentence of the source."""
        return "lead_1", lead_n(self.sources(split), 1)

    def show(self, decisions: Sequence[Any]) -> list[str]:
        """Texts; the first of several references."""
        return [text if isinstance(text, str) else text[0] for text in decisions]

    def report(self, model: PreTrainedModel, log: list[dict[str, Any]], split: str, decisions: Sequence[Any]) -> None:
        """With an alignment."""
        texts = (self.sources(split), self.show(self.references[split]), decisions)
        limits = (self.data_args.max_source_length, self.data_args.max_target_length)
        output_dir, prefix = str(self.args.output_dir), self.data_args.source_prefix
        write_reports(output_dir, model, self.tokenizer, log, texts, metric=self.metric, limits=limits, prefix=prefix)


TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "tagging": Tagging,
    "language_modeling": LanguageModeling,
    "seq2seq": Seq2Seq,
}


def _token_collator(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> CheckedCollator:
    """Batches of rows with a label for each token, padded on the right whatever side the tokenizer pads on.

    The raw predictions of a row are found by the places of its tokens, which must not depend on how long the other
    rows of its batch are. A copy pads, so that the tokenizer that is saved keeps its side.
    """
    right = copy.copy(tokenizer)
    right.padding_side = "right"
    return CheckedCollator(DataCollatorForTokenClassification(right), model)


def _words(value: str | Sequence[str]) -> Sequence[str]:
    """A list of words, or a text's parts between ASCII white space: a no-break space may be a word."""
    return re.findall(r"[^ \t\r\n]+", value) if isinstance(value, str) else value


def _class_fields(names: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
