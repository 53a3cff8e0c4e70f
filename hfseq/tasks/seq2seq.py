"""Sequence-to-sequence tasks: translation, summarization, and text generation from a source text in general."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from textwrap import shorten
from typing import Any, ClassVar

import torch
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.copying import CopyCollator, copied_vocabulary, copy_sources, copy_targets
from hfseq.data.embedded.cldr import cldr_pairs
from hfseq.data.embedded.docstrings import docstring_rows
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_texts
from hfseq.data.sentences import lead_n
from hfseq.data.streaming import tokenizer_texts
from hfseq.errors import InputError
from hfseq.inference.alignment import align_texts, has_attention
from hfseq.inference.generate import decode_outputs
from hfseq.lazy import datasets
from hfseq.models.heads_seq2seq import ForConditionalGeneration
from hfseq.plots import plot_alignment
from hfseq.tasks.base import Task


class Generating(Task):
    """Task of a sequence-to-sequence model, whose predictions are texts that it generates."""

    generates = True
    tokenizer: Any

    def loss_inputs(self, model: torch.nn.Module, labels: torch.Tensor) -> dict[str, Any]:
        """Additional inputs for a model whose loss is computed from its logits; see `labelled_steps`."""
        return labelled_steps(getattr(model, "module", model), labels)

    def raw(self, model: PreTrainedModel, batch: Any, outputs: Any, labels: torch.Tensor, **options: Any) -> list[Any]:
        """Generate the token ids of each row in a batch; arguments as for `Task.raw`."""
        return generate_ids(model, batch, self.args, **options)

    def test_options(self) -> dict[str, Any]:
        """Options of the final test: beams."""
        return {"num_beams": self.data.num_beams}

    def decode(self, split: str, raw: Any) -> list[str]:
        """Convert generated token ids to texts."""
        pad = self.tokenizer.pad_token_id
        rows = [[int(one) if one >= 0 else pad for one in ids] for ids in raw]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


class Seq2Seq(Generating):
    """A target text for each source text, possibly with several references.

    Attributes:
        copied: Vocabulary size of a model that copies unknown words from the source; None for other models.
    """

    columns = ("document", "summary")
    list_columns = slice(1, 2)
    metrics: ClassVar[tuple[str, ...]] = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "exact_match")
    hub_task = "summarization"
    embedded_name = "docstrings of Python packages"
    auto_class = AutoModelForSeq2SeqLM
    packages: ClassVar[tuple[str, ...]] = ("matplotlib", "nltk", "rouge_score", "sacrebleu")
    writes_unknown = False
    """True if the unknown token may be generated."""
    copied: int | None = None

    def embedded(self) -> datasets.DatasetDict:
        """Read the docstrings of installed Python packages, with their first lines as summaries."""
        return docstring_rows()

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        rows, self.references = split_references(self._draw(splits), self.names[1])
        return rows

    def texts(self) -> Any:
        """Texts to train a new tokenizer on: sources and targets."""
        return tokenizer_texts(self.splits["train"], self.names)

    def configure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the generation defaults of a model; coverage is trained with the model's own loss, unless smoothed."""
        data, unknown = self.data, None if self.writes_unknown else tokenizer.unk_token_id
        penalty = data.length_penalty
        set_generation(model, data.num_beams, data.max_target_length, length_penalty=penalty, unknown=unknown)
        self.own_loss = bool(getattr(model.config, "coverage", False)) and not self.args.label_smoothing_factor

    def _encode(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EncodedSplits:
        self.tokenizer, self.copied = tokenizer, copied_vocabulary(model)
        self.collator = make_collator(model, tokenizer)
        if "train_sample" in self.splits:
            sample = [[text] for text in self.splits["train_sample"][self.names[1]]]
            self.references = self.references | {"train_sample": sample}
        sources, targets = self.data.max_source_length, self.data.max_target_length
        encoded = encode_pairs(
            self.splits,
            tokenizer,
            *self.names,
            max_source_length=sources,
            max_target_length=targets,
            prefix=self.data.source_prefix,
            copy_vocabulary=self.copied,
        )
        return self._resampled(encoded, tokenizer, {"input_ids": sources, "labels": targets})

    def decode(self, split: str, raw: Any) -> list[str]:
        """Convert generated token ids to texts."""
        sources = [self.data.source_prefix + text for text in self.sources(split)]
        limit = self.data.max_source_length
        return decode_outputs(self.tokenizer, raw, sources, max_source_length=limit, copy_vocabulary=self.copied)

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute ROUGE, BLEU, chrF and exact match."""
        return score_summaries(predictions, references) | score_translations(predictions, references)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """First sentence of each source."""
        return {"lead_1": lead_n(self.sources(split), 1)}

    def show(self, predictions: Any) -> list[str]:
        """Texts; of several references the first one."""
        return [text if isinstance(text, str) else text[0] for text in predictions]

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{super().summary(split, predictions)}, beam {self.data.num_beams}"

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve, and the attention for the first prediction of medium length; see `Task.plot`."""
        super().plot(model, log, split, predictions)
        if not has_attention(model):
            return
        row = next((row for row, text in enumerate(predictions) if 20 <= len(text) <= 80), 0)
        source = self.data.source_prefix + self.sources(split)[row]
        limits = (self.data.max_source_length, self.data.max_target_length)
        attention = align_texts(model, self.tokenizer, source, predictions[row], limits=limits)
        plot_alignment(*attention, f"{self.args.output_dir}/alignment.png")


class Summarization(Seq2Seq):
    """Summarization; the baseline is the first sentences of the text."""

    column_flags = ("text_column", "summary_column")
    metrics = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    packages = ("matplotlib", "nltk", "rouge_score")
    rows = "texts"
    kind_metric = "rouge"

    def describe(self) -> str:
        """Describe the number of rows in each split."""
        return f"{super().describe()} with a summary"

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute ROUGE."""
        return score_summaries(predictions, references)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """First `lead` sentences of each text."""
        return {f"lead_{self.data.lead}": lead_n(self.sources(split), self.data.lead)}


class Translation(Seq2Seq):
    """Translation; the baseline is a copy of the source. The names of the columns are the languages."""

    column_flags = ("source_lang", "target_lang")
    list_columns = slice(0, 0)  # one translation per text
    metrics = ("bleu", "chrf", "exact_match")
    hub_task = "translation"
    embedded_name = "dates, amounts, names … of Babel's CLDR data"
    packages = ("matplotlib", "sacrebleu")
    rows = "pairs"
    kind_metric = "exact_match"
    moses = True
    writes_unknown = True

    def embedded(self) -> datasets.DatasetDict:
        """Create pairs of dates, amounts and names in both languages from Babel's CLDR data."""
        return cldr_pairs(*self.names)

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        splits, self.languages = self._draw(splits), self.names
        self.references = {split: list(rows[self.names[1]]) for split, rows in splits.items() if split != "train"}
        # The signature depends on the settings and the number of references only, not on the texts.
        self.signatures["bleu"] = metrics.bleu(["a"], ["a"])["signature"]
        return splits

    def describe(self) -> str:
        """Describe the number of pairs in each split, and the languages."""
        return f"{super().describe()} {' → '.join(self.names)}"

    def texts(self) -> Any:
        """Texts to train a new tokenizer on: sources and targets, or with `--separate_vocabs` sources alone."""
        return tokenizer_texts(self.splits["train"], self.names[:1] if self.data.separate_vocabs else self.names)

    def target_texts(self) -> Any:
        """Texts to train the tokenizer of the targets on, with `--separate_vocabs`; otherwise None."""
        return tokenizer_texts(self.splits["train"], self.names[1:]) if self.data.separate_vocabs else None

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute BLEU, chrF and exact match."""
        return score_translations(predictions, references)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Copy of each source."""
        return {"copy": self.sources(split)}


def encode_pairs(
    splits: Mapping[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str,
    *,
    max_source_length: int,
    max_target_length: int,
    prefix: str = "",
    copy_vocabulary: int | None = None,
) -> EncodedSplits:
    """Encode pairs of texts for a sequence-to-sequence model.

    Args:
        splits: Split name to rows with the text columns `source` and `target`.
        tokenizer: Tokenizer of the model.
        source: Name of the source column.
        target: Name of the target column.
        max_source_length: Maximum source length in tokens, including EOS; longer sources are truncated.
        max_target_length: Maximum target length in tokens, including EOS; longer targets are truncated.
        prefix: Text prepended to every source.
        copy_vocabulary: Vocabulary size of a model that copies unknown words; None for other models.

    Returns:
        Rows in order, with columns `input_ids`, `attention_mask`, `labels` and, for a model that copies, `copy_ids`.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        texts = [prefix + text for text in batch[source]]
        encoded, lengths = encode_texts(tokenizer, texts, max_source_length)
        labels, target_lengths = encode_texts(tokenizer, batch[target], max_target_length, target=True)
        columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        columns |= {"labels": labels["input_ids"], "length": lengths, "target_length": target_lengths}
        if copy_vocabulary is not None:
            columns["copy_ids"], words = copy_sources(tokenizer, texts, encoded, copy_vocabulary)
            columns["labels"] = copy_targets(tokenizer, batch[target], labels, words, copy_vocabulary)
        return columns

    limits = {
        "length": Limit("sources", "--max_source_length", max_source_length),
        "target_length": Limit("targets", "--max_target_length", max_target_length),
    }
    return encode_splits(splits, encode, limits)


def make_collator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> CheckedCollator:
    """Create the collator for rows that `encode_pairs` has encoded for a model."""
    collator: Any = DataCollatorForSeq2Seq(tokenizer, model=model)
    return CheckedCollator(collator if copied_vocabulary(model) is None else CopyCollator(collator), model)


def score_translations(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute `bleu` (cased, 13a), `chrf` and `exact_match`, 0 to 100."""
    names = ("bleu", "chrf", "exact_match")
    return {name: getattr(metrics, name)(predictions, references)["score"] for name in names}


def score_summaries(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute F1 of `rouge1`, `rouge2`, `rougeL` and `rougeLsum`, 0 to 100, with the best reference of each row."""
    scores = metrics.rouge(predictions, references)
    return {name: scores[name] for name in Summarization.metrics}


def split_references(splits: Mapping[str, Any], target: str) -> tuple[dict[str, Any], dict[str, list[list[str]]]]:
    """Convert rows with one or more targets to rows with one target.

    Args:
        splits: Rows whose column `target` contains texts or lists of texts; `train` may be a stream, whose errors are
            raised when its rows are read.
        target: Name of that column.

    Returns:
        Splits with one target per row, a training row for each target, and the other rows with their first target;
        and all targets of each row other than the training rows.

    Raises:
        InputError: A row has no target with text.
    """
    rows_of, references = {}, {}
    for name, rows in splits.items():
        feature = datasets.Value("string")
        if isinstance(rows, datasets.IterableDataset):
            features = datasets.Features({**rows.features, target: feature})
            rows_of[name] = rows.map(partial(_row_per_target, target=target), batched=True, features=features)
            continue
        several = [_targets(value) for value in rows[target]]
        if [] in several:
            raise InputError(f"{name}, row {several.index([]) + 1}: column {target!r} is an empty list; give a text")
        if name == "train":
            rows = rows.select([row for row, texts in enumerate(several) for _ in texts])
            targets = [text for texts in several for text in texts]
        else:
            references[name] = several
            targets = [texts[0] for texts in several]
        rows_of[name] = rows.remove_columns(target).add_column(target, targets, feature=feature)
    return rows_of, references


def _targets(value: str | list[str]) -> list[str]:
    return [text for text in ([value] if isinstance(value, str) else value) if text and text.strip()]


def _row_per_target(batch: dict[str, list[Any]], target: str) -> dict[str, list[Any]]:
    """Repeat the rows of a stream for each of their targets.

    Errors quote the row, since row numbers are unknown: no process reads the whole stream.
    """
    several = [_targets(value) for value in batch[target]]
    if [] in several:
        row = several.index([])
        texts = " ".join(repr(shorten(values[row], 60)) for name, values in batch.items() if name != target)
        raise InputError(f"train, the row of {texts}: column {target!r} is an empty list; give a text")
    rows = [row for row, texts in enumerate(several) for _ in texts]
    columns = {name: [values[row] for row in rows] for name, values in batch.items()}
    return columns | {target: [text for texts in several for text in texts]}


def set_generation(
    model: PreTrainedModel,
    num_beams: int,
    max_length: int,
    *,
    length_penalty: float | None = None,
    unknown: int | None = None,
) -> None:
    """Set the generation defaults that are saved with a model.

    Args:
        model: Model, modified in place.
        num_beams: Number of beams.
        max_length: Maximum output length in tokens.
        length_penalty: Beams are ranked by log-probability / length ** penalty; None keeps the model's value.
        unknown: Id of the unknown token, to be suppressed: decoding skips it, and a word-level model would begin many
            summaries with it. None, or the id of another special token, suppresses nothing.
    """
    config = model.generation_config
    config.num_beams = num_beams
    config.max_length = max_length
    config.early_stopping = True if num_beams > 1 else None
    if num_beams == 1:
        config.length_penalty = None  # for beams only; without them transformers refuses to save it
    elif length_penalty is not None:
        config.length_penalty = length_penalty
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    needed = (*ends, config.bos_token_id, config.pad_token_id, config.decoder_start_token_id)
    if unknown is not None and unknown not in needed:
        config.suppress_tokens = sorted({*(config.suppress_tokens or ()), unknown})


def generate_ids(model: Any, batch: Mapping[str, Any], args: Any, **options: Any) -> list[list[int]]:
    """Generate the token ids of each row in a batch.

    Args:
        model: Model that writes, on its device.
        batch: Model inputs; those of the decoder are left out.
        args: Training arguments, of which `generation_num_beams` and `generation_max_length` count.
        **options: Options of `generate`, which come before them.
    """
    options = {"num_beams": args.generation_num_beams, "max_length": args.generation_max_length} | options
    # Without a value, the model uses the defaults that `configure` has set.
    options = {name: value for name, value in options.items() if value is not None}
    inputs = {name: tensor for name, tensor in batch.items() if not name.startswith("decoder_")}
    return model.generate(**inputs, **options).tolist()


def labelled_steps(model: torch.nn.Module, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs that restrict the logits to labelled steps, for models in training that support it.

    Args:
        model: Sequence-to-sequence model, unwrapped; only hfseq models other than pointer-generators support it.
        labels: Labels `[B, T]`, -100 for padding.
    """
    can = model.training and isinstance(model, ForConditionalGeneration) and model.pointer is None
    return {"logits_to_keep": labels != -100} if can else {}
