"""DNA and proteins: classification of sequences, and a tag for each base or residue."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.genes import gene_rows, posterior_tags, splice_sites
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_texts
from hfseq.data.fasta import ALPHABETS, PLACE, UNLABELLED, check_letters, is_sequence_file, reverse_complement
from hfseq.data.labels import row_places
from hfseq.errors import InputError
from hfseq.inference.benchmark import Run, text_classifier
from hfseq.inference.importance import substitution_importance
from hfseq.lazy import datasets
from hfseq.plots import plot_sequence_logos
from hfseq.tasks.base import Task
from hfseq.tasks.classification import Classification, label_array, label_fields, score_classes
from hfseq.tasks.tagging import Tagging, tag_names, token_collator
from hfseq.tokenization import letter_tokenizer

_LOGO_ROWS = 30
"""Test rows of each class from which a logo is computed."""


class SequenceClassification(Classification):
    """Classification of DNA or proteins.

    With `reverse_complement`, each training sequence is used on both strands, and a prediction is the mean of the
    logits of both, so that it is the same for either.
    """

    columns = ("sequence", "label")
    place_column = PLACE
    embedded_name = "splice sites of genes drawn from a hidden Markov model"
    rows = "sequences"
    length_unit = "tokens"

    def embedded(self) -> datasets.DatasetDict:
        """Draw genes, and cut out their splice sites."""
        return splice_sites()

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        return super()._prepare(check_sequences(splits, self.names[0], self.data.alphabet), known, train)

    def new_processor(self, args: Any) -> PreTrainedTokenizerBase | None:
        """Create the tokenizer of a new model, of letters or k-mers; see `Task.new_processor`."""
        return None if args.model_name_or_path else tokenizer_of(self.data.alphabet, self.data.kmer_size)

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        check_tokenizer(tokenizer, self.data.alphabet)
        column, limit, both = self.names[0], self.data.max_length, self.data.reverse_complement

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts, labels = batch[column], batch["labels"]
            if both:
                texts = list(chain.from_iterable((text, reverse_complement(text)) for text in texts))
                labels = [label for label in labels for _ in range(2)]
            encoded, lengths = encode_texts(tokenizer, texts, limit)
            return {**encoded, "labels": labels, "length": lengths}

        self.collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": label_array(self.splits["train_sample"])}
        encoded = encode_splits(self.splits, encode, {"length": Limit(self.rows, "--max_length", limit)})
        if both:
            encoded = encoded._replace(lengths={name: found[::2] for name, found in encoded.lengths.items()})
        return encoded

    def decode(self, split: str, raw: Any) -> np.ndarray:
        """Convert logits, those of two strands where both are read, to class ids `[N]`."""
        logits = np.asarray(raw)
        if self.data.reverse_complement:
            logits = logits.reshape(-1, 2, logits.shape[-1]).mean(axis=1)
        return super().decode(split, logits)

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the plots of a classification, and a logo of each class if all sequences are of one length.

        The height of a letter is its mean importance at its place (`substitution_importance`) in up to 30 test rows
        that were recognized.
        """
        super().plot(model, log, split, predictions)
        sequences = self.splits[split][self.names[0]]
        if self.multi_label or len(set(map(len, sequences))) > 1 or self.data.kmer_size > 1:
            return
        letters = ALPHABETS[self.data.alphabet][0]
        logos = {}
        for number, name in enumerate(self.classes):
            right = np.flatnonzero((predictions == number) & (self.references[split] == number))[:_LOGO_ROWS]
            if len(right):
                texts = [sequences[int(row)] for row in right]
                found = substitution_importance(model, self.tokenizer, texts, number, letters)
                logos[name] = letter_heights(texts, found, letters)
        plot_sequence_logos(logos, letters, f"{self.args.output_dir}/logos.png")

    def encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, log: Any) -> None:
        """Encode the rows and keep the tokenizer for the logos; see `Task.encode`."""
        super().encode(model, tokenizer, log)
        self.tokenizer = tokenizer


class ResidueTagging(Tagging):
    """A tag for each base or residue; letters without one are not scored.

    Sequences longer than `max_length` tokens are cut into windows that overlap by half, so that memory does not grow
    with the sequence; a letter's tag is that of the window in whose middle it stands.

    Attributes:
        windows: Split name to the row, the number of letters before the window, and the slice of its tokens that are
            letters, for each window.
    """

    columns = ("sequence", "labels")
    list_columns = slice(1, 3)
    metrics = ("accuracy", "f1", "sov")
    embedded_name = "genes drawn from a hidden Markov model"
    rows = "sequences"
    length_unit = "letters"

    def embedded(self) -> datasets.DatasetDict:
        """Draw genes, whose bases are tagged as exon, intron or intergenic."""
        return gene_rows()

    def new_processor(self, args: Any) -> PreTrainedTokenizerBase | None:
        """Create the tokenizer of a new model, of letters; see `Task.new_processor`."""
        return None if args.model_name_or_path else tokenizer_of(self.data.alphabet, 1)

    def read_columns(self) -> tuple[str, ...]:
        """Names of all columns to read: sequences, labels and, if there is one, the mask."""
        return self.names if self.data.mask_column is None else (*self.names, self.data.mask_column)

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Tags of each row."""
        return [set(tags_of(value)) - {None} for value in rows[self.names[1]]]  # type: ignore[misc]

    def use(self, splits: Mapping[str, Any], *, train: bool = True, known: list[str] | None = None) -> Task:
        """Validate and adopt rows; see `Task.use`."""
        self._synthetic = not any(getattr(self.data, name) for name in ("train_file", "test_file", "dataset_name"))
        return super().use(splits, train=train, known=known)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        (sequence, label), mask = self.names, self.data.mask_column
        # Stop codons at the end, which are left out of the sequences, and so are their tags.
        stops = {split: [text.rstrip().endswith("*") for text in rows[sequence][:]] for split, rows in splits.items()}
        splits = check_sequences(splits, sequence, self.data.alphabet)
        places = {split: row_places(rows, split, PLACE) for split, rows in splits.items()}
        seen: dict[str, list[set[str]]] = {}
        for split, rows in splits.items():
            sequences, masks = rows[sequence][:], rows[mask][:] if mask else [None] * len(rows)
            tags = [
                _masked(tags_of(given), counted, len(letters), place, label, stop)
                for letters, given, counted, place, stop in zip(
                    sequences, rows[label][:], masks, places[split], stops[split], strict=True
                )
            ]
            seen[split] = [{tag for tag in row if tag is not None} for row in tags]
            splits[split] = datasets.Dataset.from_dict({sequence: sequences, label: tags})
        ignored = ""
        if mask:
            ignored = f"letters with a 0 in column {mask!r} do not count"
        elif is_sequence_file(self.data.train_file or ""):
            ignored = f"letters tagged {UNLABELLED} do not count"
        names = tag_names(seen, label, known, train, places=places, ignored=ignored)
        self.classes, self.fields, self.scheme, self._about = names, label_fields(names), None, ""
        splits = self._draw(splits)
        # Of rows that are not encoded, too: a comparison scores the baselines apart.
        self.references = {split: self._ids(rows) for split, rows in splits.items()}
        return splits

    def _ids(self, rows: datasets.Dataset) -> list[list[int]]:
        """Ids of the tags of each letter, -100 where there is none."""
        ids = self.fields["label2id"]
        return [[-100 if tag is None else ids[tag] for tag in tags] for tags in rows[self.names[1]][:]]

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        check_tokenizer(tokenizer, self.data.alphabet)
        (column, label), limit, ids = self.names, self.data.max_length, self.fields["label2id"]
        special = tokenizer.num_special_tokens_to_add()
        size = limit - special
        if size < 2:
            raise InputError(f"--max_length {limit}: the tokenizer adds {special} tokens; give {special + 2} or more")

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            columns: dict[str, list[Any]] = {"labels": [], "start": [], "end": [], "begin": [], "length": []}
            texts: list[str] = []
            wanted: list[list[int]] = []
            for letters, tags in zip(batch[column], batch[label], strict=True):
                numbers = [-100 if tag is None else ids[tag] for tag in tags]
                for begin, end in windows_of(len(letters), size):
                    texts.append(letters[begin:end])
                    wanted.append(numbers[begin:end])
                    columns["begin"].append(begin)
                    columns["length"].append(len(letters))
            encoded = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
            for mask, numbers in zip(encoded.pop("special_tokens_mask"), wanted, strict=True):
                count = mask.count(0)
                start = mask.index(0) if count else 0
                if count != len(numbers) or any(mask[start : start + count]):
                    raise InputError(
                        f"the tokenizer makes {count} tokens of {len(numbers)} letters; a tag for each letter needs "
                        "one token for each, without others between them"
                    )
                columns["labels"].append([-100] * start + numbers + [-100] * (len(mask) - start - count))
                columns["start"].append(start)
                columns["end"].append(start + count)
            return {name: encoded[name] for name in tokenizer.model_input_names if name in encoded} | columns

        self.collator = token_collator(tokenizer, model)
        encoded = encode_splits(self.splits, encode, {})
        self.windows: dict[str, list[tuple[int, int, slice]]] = {}
        self.references = {}
        for split, rows in encoded.rows.items():
            begins = rows["begin"][:]
            row_of = np.cumsum([begin == 0 for begin in begins]) - 1
            tokens = [slice(*ends) for ends in zip(rows["start"][:], rows["end"][:], strict=True)]
            self.windows[split] = list(zip(row_of.tolist(), begins, tokens, strict=True))
            self.references[split] = self._ids(self.splits[split])
            encoded.rows[split] = rows.remove_columns(["start", "end", "begin"])
            encoded.lengths[split] = list(map(len, self.references[split]))
        return encoded

    def decode(self, split: str, raw: Any) -> list[list[int]]:
        """Convert the tags of the tokens of windows to those of the letters of sequences."""
        rows: list[list[int]] = []
        for (row, begin, tokens), tags in zip(self.windows[split], raw, strict=True):
            found = [int(tag) for tag in tags[tokens]]
            if row == len(rows):
                rows.append(found)
                continue
            # Of two windows, each is right about the half of their common letters that is further from its end.
            common = len(rows[row]) - begin
            rows[row][begin + common // 2 :] = found[common // 2 :]
        return rows

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute accuracy (of secondary structure Q3 or Q8), macro F1 and segment overlap of labelled letters."""
        pairs = [
            [(given, right) for given, right in zip(*row, strict=True) if right != -100]
            for row in zip(predictions, references, strict=True)
        ]
        given, right = ([[pair[side] for pair in row] for row in pairs if row] for side in (0, 1))
        scores = score_classes(np.array([*chain.from_iterable(given)]), [*chain.from_iterable(right)])
        return scores | {"sov": metrics.sov(given, right)["score"]}

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Most frequent tag (`majority`), that of each letter (`by_letter`), and of the embedded data the optimum.

        The optimum (`process`) is the most probable tag under the process that made the data.
        """
        systems: dict[str, Any] = {}
        sequences = self.splits[split][self.names[0]]
        if trained:
            counts: Counter[tuple[str, int]] = Counter()
            letters_of = self.splits["train"][self.names[0]][:]
            for letters, row in zip(letters_of, self.references["train"], strict=True):
                counts.update(zip(letters, row, strict=True))
            tags: Counter[int] = Counter()
            best: dict[str, tuple[int, int]] = {}
            for (letter, tag), count in counts.items():
                if tag != -100:
                    tags[tag] += count
                    best[letter] = max(best.get(letter, (0, 0)), (count, tag))
            most = tags.most_common(1)[0][0]
            systems["majority"] = [[most] * len(letters) for letters in sequences]
            systems["by_letter"] = [[best.get(letter, (0, most))[1] for letter in letters] for letters in sequences]
        if self._synthetic:
            ids = self.fields["label2id"]
            systems["process"] = [[ids[tag] for tag in row] for row in posterior_tags(sequences)]
        return systems

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from sequences to the logits of their windows, and sequences; see `Task.timed`."""
        limit = self.data.max_length
        size = limit - processing_class.num_special_tokens_to_add()
        tag = text_classifier(model, processing_class, limit)

        def run(sequences: Sequence[str]) -> torch.Tensor:
            return tag([letters[slice(*window)] for letters in sequences for window in windows_of(len(letters), size)])

        return run, self.splits[split][self.names[0]][:count]

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{Task.summary(self, split, predictions)}, {sum(map(len, predictions))} letters"

    def show(self, predictions: Any) -> list[str]:
        """Tags of each sequence: single characters side by side, others as runs, such as `exon:120 intron:85`."""
        names = [*self.classes, "?"]
        rows = [[names[tag if tag >= 0 else -1] for tag in row] for row in predictions]
        if all(len(name) == 1 for name in names):
            return ["".join(row) for row in rows]
        return [" ".join(f"{tag}:{count}" for tag, count in runs_of(row)) for row in rows]

    def sources(self, split: str) -> list[str]:
        """Sequences, long ones cut off."""
        return [cut_off(letters) for letters in self.splits[split][self.names[0]]]

    def describe(self) -> str:
        """Describe the number of rows in each split, and the tags."""
        return f"{Task.describe(self)}, {len(self.classes)} tags: {shorten(', '.join(self.classes), 300)}"


TASKS = {"tagging": ResidueTagging, "classification": SequenceClassification}
"""Task to its class."""


def tokenizer_of(alphabet: str, kmer_size: int) -> PreTrainedTokenizerBase:
    """Make the tokenizer of an alphabet."""
    letters, more = ALPHABETS[alphabet]
    return letter_tokenizer(letters, more=more, kmer_size=kmer_size, rna=alphabet == "dna")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, alphabet: str) -> None:
    """Raise an `InputError` for a tokenizer that lacks letters of an alphabet, or is that of another one."""
    # Names such as <mask> or [CLS] are not spelled, even if the tokenizer does not list them as special.
    names = re.compile(r"<.+>|\[.+\]")
    found = set("".join(token for token in tokenizer.get_vocab() if not names.fullmatch(token)).upper())
    if missing := [letter for letter in ALPHABETS[alphabet][0] if letter not in found]:
        fitting = [name for name, (letters, _) in ALPHABETS.items() if set(letters) <= found]
        hint = f"give --alphabet {fitting[0]}" if fitting else f"give a model of {alphabet}"
        raise InputError(
            f"--alphabet {alphabet}: the tokenizer of the model does not know {', '.join(missing)}; {hint}"
        )
    for other, (letters, more) in ALPHABETS.items():
        # Models of DNA may have bytes, or texts, as tokens; but not just the amino acids.
        if other != alphabet and set(letters) <= found <= {*letters, *more, *".-*"}:
            raise InputError(
                f"--alphabet {alphabet}: the tokens of the model are the letters of another alphabet; "
                f"give --alphabet {other}"
            )


def check_sequences(splits: Mapping[str, Any], column: str, alphabet: str) -> dict[str, Any]:
    """Return splits whose sequences are in capitals; see `check_letters`.

    Raises:
        InputError: A character is not in the alphabet; it names file and row, or split and row.
    """
    checked = {}
    for split, rows in splits.items():
        places = row_places(rows, split, PLACE)
        found = [check_letters(text, alphabet, place) for text, place in zip(rows[column][:], places, strict=True)]
        checked[split] = rows.remove_columns(column).add_column(column, found)
    return checked


def tags_of(value: str | Sequence[str | None]) -> list[str | None]:
    """Tags of a row: a list as it is, a string by characters."""
    return list(value)


def windows_of(length: int, size: int) -> list[tuple[int, int]]:
    """Begin and end of windows of at most `size` letters that cover a sequence; neighbours share half or more."""
    if length <= size:
        return [(0, length)]
    step = max(1, size // 2)
    begins = [*range(0, length - size, step), length - size]
    return [(begin, begin + size) for begin in begins]


def runs_of(tags: Sequence[str]) -> list[tuple[str, int]]:
    """Runs of equal tags and their lengths."""
    runs: list[tuple[str, int]] = []
    for tag in tags:
        if runs and runs[-1][0] == tag:
            runs[-1] = (tag, runs[-1][1] + 1)
        else:
            runs.append((tag, 1))
    return runs


def cut_off(letters: str, longest: int = 100) -> str:
    """Return a sequence, with its length in place of what is longer than `longest` letters."""
    return letters if len(letters) <= longest else f"{letters[:longest]}… ({len(letters):,} letters)"


def letter_heights(texts: Sequence[str], importance: np.ndarray, letters: str) -> np.ndarray:
    """Mean importance of each letter at each place, `[L, letters]`, over all rows `[N, L]`."""
    rows = np.array([list(text) for text in texts])
    return np.stack([np.where(rows == letter, importance, 0.0).mean(axis=0) for letter in letters], axis=1)


def _masked(tags: list[str | None], mask: Any, length: int, place: str, column: str, stop: bool) -> list[str | None]:
    """Tags of a row, None where the mask is 0; a stop codon that the letters lack may have a tag and a mask."""
    if stop and len(tags) == length + 1:
        tags = tags[:-1]
    if len(tags) != length:
        raise InputError(f"{place}: {length} letters and {len(tags)} {column}; each letter needs one tag")
    if mask is None:
        return tags
    flags = list(mask)
    if stop and len(flags) == length + 1:
        flags = flags[:-1]
    if len(flags) != length or not set(flags) <= {"0", "1"}:
        raise InputError(f"{place}: the mask must be {length} characters 0 or 1, one for each letter")
    return [tag if flag == "1" else None for tag, flag in zip(tags, flags, strict=True)]
