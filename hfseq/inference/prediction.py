"""Decoding, scoring and classifying files: row n of what is written belongs to row n of what was read."""

import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import datasets
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BatchEncoding,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hfseq.data.collation import CheckedCollator, check_batch, vocabulary_sizes
from hfseq.data.copying import copy_sources, copy_targets, decode_copies
from hfseq.data.encoding import encode_texts
from hfseq.data.reading import Columns, file_rows
from hfseq.errors import InputError
from hfseq.inference.ensembles import problem_of
from hfseq.inference.parallel import run_by_length
from hfseq.training.classification import predict_logits
from hfseq.training.reports import in_one_line
from hfseq.training.seq2seq import copied_vocabulary, decode_ids

# Stands for an unknown word while its neighbours are decoded; no character, so no token has it.
_MARK = "\uffff"


class Hypothesis(NamedTuple):
    """A generated text.

    Attributes:
        text: The text.
        score: Its log-probability over its length in tokens to the power of `length_penalty`, what beams are ranked
            by; 0 for an empty source, None where no scores were asked for.
    """

    text: str
    score: float | None


class Score(NamedTuple):
    """What a model thinks of a given text.

    Attributes:
        log_probability: Sum over its tokens.
        tokens: Their number, the end mark counted.
    """

    log_probability: float
    tokens: int


class Decision(NamedTuple):
    """What a classifier says of a text.

    Attributes:
        label: The likeliest class; all of at least one half where several may hold; the value of a regression; empty
            for an empty text.
        scores: Probability of each class, or the value of a regression; empty for an empty text.
    """

    label: str
    scores: dict[str, float]


def read_texts(
    name: str, column: str, flag: str = "--test_file", column_names: Sequence[str] | None = None
) -> list[str]:
    r"""All texts of a file, empty ones too, so that outputs can be aligned with its lines.

    Args:
        name: CSV, TSV, JSON lines or Parquet, as `read_splits` reads them; any other file is plain text, a text a
            line, which `\n` or `\r\n` ends; where there is no such file, `<name>.<column>` is.
        column: Of the texts.
        flag: Names the file in errors.
        column_names: The columns of a CSV or TSV file without a header.

    Raises:
        InputError: If there is no such file or column, or it is malformed.
    """
    path = Path(name)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".json", ".parquet") or column_names or not path.is_file():
        rows = file_rows(name, flag, Columns([column], []), column_names, moses=True)
        return [text or "" for (text,) in rows]
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            return [line.removesuffix("\n").removesuffix("\r") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {name}: cannot be read as UTF-8 text: {error}") from None


def generation_options(
    *,
    num_beams: int = 1,
    length_penalty: float | None = None,
    num_return_sequences: int = 1,
    do_sample: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Flags as arguments of `generate`, checked before anything is loaded.

    Args:
        num_beams: Beams; not used in sampling.
        length_penalty: What their scores are divided by is the length to this power.
        num_return_sequences: Texts for each source.
        do_sample: Whether to draw texts.
        temperature: Of the drawing.
        top_k: Likeliest tokens that it is from.
        top_p: Share of the probability that it is from.
        max_length: Tokens of a text, with the one that starts it.

    Raises:
        InputError: If one is impossible, or of no effect beside the others.
    """
    if min(num_beams, num_return_sequences) < 1:
        raise InputError("--num_beams and --num_return_sequences must be at least 1")
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in drawing.items() if value is not None}
    if do_sample:
        num_beams = 1
    elif given:
        raise InputError(f"--{next(iter(given))} is for sampling; add --do_sample, or leave it out")
    elif num_return_sequences > num_beams:
        raise InputError(
            f"--num_return_sequences {num_return_sequences} is more than --num_beams {num_beams} can give; "
            "raise that, or add --do_sample"
        )
    if length_penalty is not None and num_beams == 1:
        raise InputError("--length_penalty is for beams; raise --num_beams, or leave it out")
    if temperature is not None and not 0 < temperature < math.inf:
        raise InputError(f"--temperature {temperature} is not above 0")
    if top_k is not None and top_k < 0:
        raise InputError(f"--top_k {top_k} is below 0")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"--top_p {top_p} is not above 0 and at most 1")
    options = {"num_beams": num_beams, "num_return_sequences": num_return_sequences, "do_sample": do_sample}
    if num_beams == 1:
        options["early_stopping"] = False
    optional = given | {"length_penalty": length_penalty, "max_length": max_length}
    return options | {name: value for name, value in optional.items() if value is not None}


@torch.no_grad()
def decode_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    batch_size: int,
    max_source_length: int,
    prefix: str = "",
    scores: bool = False,
    replace_unknown: bool = False,
    seed: int = 42,
    progress: str | None = None,
    **options: Any,
) -> tuple[list[list[Hypothesis]], dict[str, int]]:
    """Generate texts for each source, on all processes together.

    Args:
        model: A sequence-to-sequence model or an ensemble, on its device.
        tokenizer: Its tokenizer.
        sources: The sources; empty ones get an empty text.
        batch_size: Sources at once; those of one length go together.
        max_source_length: Tokens of a source, the end mark counted; the rest of it is cut off.
        prefix: Text before every source.
        scores: Whether to score the texts, by the model's forward, one more for each text of a source.
        replace_unknown: Whether each unknown word of a text becomes the source word that the model attends to most
            (Luong et al. 2015, "Addressing the rare word problem"; Jean et al. 2015, section 3.3). It turns the
            attention of a Transformer to the eager kind, which alone returns its weights.
        seed: Of sampling; results depend on it and on `batch_size`, not on the number of processes.
        progress: Title of a progress bar, if there is to be one.
        options: Passed on to `generate`, as `generation_options` gives them.

    Returns:
        For each source in its place the `num_return_sequences` texts, the best first (one for an empty source), the
        same on every process; and how many sources were `empty` or `cut`, if some were.

    Raises:
        InputError: If an id is not of the model, or unknown words cannot be replaced with this tokenizer or are copied
            by the model itself.
    """
    copied = copied_vocabulary(model)
    if replace_unknown:
        if copied is not None:
            raise InputError("--replace_unknown: the model copies unknown words itself; leave it out")
        check_replaceable(tokenizer)
        # A model that was told never to write unknown words has none to replace.
        options["suppress_tokens"] = []
        model.set_attn_implementation("eager")
    model.eval()
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    rows, ids, counts = _encode_filled(tokenizer, sources, max_source_length, prefix)
    texts_of = [prefix + sources[row] for row in rows]
    copy_ids, words = None, [[""]] * len(rows)
    if copied is not None and rows:
        encoded, _ = encode_texts(tokenizer, texts_of, max_source_length)
        copy_ids, words = copy_sources(tokenizer, texts_of, encoded, copied)
    power = options.get("length_penalty", model.generation_config.length_penalty)
    power = 1.0 if power is None else power

    def decode(group: list[int]) -> list[list[Hypothesis]]:
        batch = _pad(model, tokenizer, group, ids, copy_ids)
        if options.get("do_sample"):
            torch.manual_seed(seed + group[0])
        generated = generate(**batch, **options)  # [B * N, T]
        hypotheses: list[list[Hypothesis]] = [[] for _ in group]
        # One text of each source at a time, so that scoring takes no more room than a step of training.
        for sequences in generated.unflatten(0, (len(group), -1)).unbind(1):
            counted = _up_to_end(model, sequences[:, 1:])
            unknown = (sequences[:, 1:] == tokenizer.unk_token_id) & counted if replace_unknown else None
            align = unknown is not None and bool(unknown.any())
            if copied is None:
                texts = decode_ids(tokenizer, sequences)
            else:
                texts = decode_copies(tokenizer, sequences, [words[index] for index in group], copied)
            values: list[float | None] = [None] * len(group)
            if scores or align:
                log_probabilities, weights = _force(model, batch, sequences, align)
                if scores:
                    values = (_masked_sum(log_probabilities, counted) / counted.sum(dim=1) ** power).tolist()
                if unknown is not None and weights is not None:
                    for row in unknown.any(dim=1).nonzero().flatten().tolist():
                        own = batch["attention_mask"][row].bool()
                        text, start = texts_of[group[row]], len(prefix)
                        spans = word_spans(tokenizer(text, max_length=max_source_length, truncation=True), text, start)
                        aligned = [best_word(line, spans) for line in weights[row, unknown[row]][:, own].tolist()]
                        kept = sequences[row, 1:][counted[row]].tolist()
                        texts[row] = fill_unknown(tokenizer, kept, text, aligned, start)
            for found, text, value in zip(hypotheses, texts, values, strict=True):
                found.append(Hypothesis(text.strip(), value))
        return hypotheses

    decoded = run_by_length([len(row) for row in ids], batch_size, decode, progress)
    nbest = [[Hypothesis("", 0.0 if scores else None)] for _ in sources]
    for row, found in zip(rows, decoded, strict=True):
        nbest[row] = found
    return nbest, counts


@torch.no_grad()
def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    batch_size: int,
    max_source_length: int,
    max_target_length: int,
    prefix: str = "",
) -> tuple[list[Score], dict[str, int]]:
    """Log-probabilities of given texts, such as translations, on all processes together.

    Args:
        model: A sequence-to-sequence model or an ensemble, on its device.
        tokenizer: Its tokenizer.
        sources: The sources.
        targets: A text for each.
        batch_size: Rows at once; those of one length go together.
        max_source_length: Tokens of a source, the end mark counted; the rest of it is cut off.
        max_target_length: The same for a target, of which only what is left is scored.
        prefix: Text before every source.

    Returns:
        A score for each row in its place, the same on every process; and how many rows were `cut`, if some were.

    Raises:
        InputError: If there are not as many targets as sources, or an id is not of the model.
    """
    if len(sources) != len(targets):
        raise InputError(f"{len(sources)} sources and {len(targets)} targets; each source needs one target")
    if not sources:
        return [], {}
    model.eval()
    texts = [prefix + source for source in sources]
    encoded, source_lengths = encode_texts(tokenizer, texts, max_source_length)
    encoded_targets, target_lengths = encode_texts(tokenizer, targets, max_target_length, target=True)
    ids, labels = encoded["input_ids"], encoded_targets["input_ids"]
    copy_ids = None
    if (copied := copied_vocabulary(model)) is not None:
        copy_ids, words = copy_sources(tokenizer, texts, encoded, copied)
        labels = copy_targets(tokenizer, targets, encoded_targets, words, copied)

    def score(group: list[int]) -> list[Score]:
        # Always on the right, whatever the tokenizer's side is: a decoder reads padding on the left.
        padded = pad_sequence([torch.tensor(labels[row]) for row in group], batch_first=True, padding_value=-100)
        batch = _pad(model, tokenizer, group, ids, copy_ids, labels=padded)
        padded = padded.to(model.device)
        shift: Callable[..., torch.Tensor] = model.prepare_decoder_input_ids_from_labels  # type: ignore[assignment]
        logits = model(**batch, decoder_input_ids=shift(labels=padded), use_cache=False).logits
        valid = padded != -100
        totals = _masked_sum(_token_log_probabilities(logits, padded.clamp(min=0)), valid)
        return [Score(*pair) for pair in zip(totals.tolist(), valid.sum(dim=1).tolist(), strict=True)]

    lengths = [len(one) + len(other) for one, other in zip(ids, labels, strict=True)]
    cut = sum(
        source > max_source_length or target > max_target_length
        for source, target in zip(source_lengths, target_lengths, strict=True)
    )
    return run_by_length(lengths, batch_size, score), {"cut": cut} if cut else {}


def perplexity(scores: Sequence[Score]) -> float:
    """Of all texts together: the inverse of the geometric mean of their tokens' probabilities."""
    return math.exp(-math.fsum(score.log_probability for score in scores) / sum(score.tokens for score in scores))


def classify_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int,
    max_length: int,
    separator: str = ", ",
) -> tuple[list[Decision], dict[str, int]]:
    """Classes and probabilities of texts, on all processes together.

    Args:
        model: A sequence classifier or an ensemble, on its device.
        tokenizer: Its tokenizer.
        texts: The texts.
        batch_size: Texts at once; those of one length go together.
        max_length: Tokens of a text, special ones counted; the rest of it is cut off.
        separator: Between the classes of a text, where several may hold.

    Returns:
        A decision for each text in its place, the same on every process; and how many texts were `empty` or `cut`, if
        some were.

    Raises:
        InputError: If an id is not of the model.
    """
    rows, ids, counts = _encode_filled(tokenizer, texts, max_length)
    decisions = [Decision("", {}) for _ in texts]
    if not rows:
        return decisions, counts
    columns: dict[str, Any] = {"input_ids": ids}
    if "char_ids" in tokenizer.model_input_names:
        spelled, _ = encode_texts(tokenizer, [texts[row] for row in rows], max_length)
        columns["char_ids"] = spelled["char_ids"]
    encoded = datasets.Dataset.from_dict(columns)
    collator = CheckedCollator(DataCollatorWithPadding(tokenizer), model)
    logits = torch.as_tensor(predict_logits(model, encoded, collator, batch_size=batch_size))
    problem, id2label = problem_of(model.config), cast(dict[int, str], model.config.id2label)
    names = [id2label[index] for index in range(len(id2label))]
    if problem == "single_label_classification":
        logits = logits.softmax(dim=-1)
    elif problem == "multi_label_classification":
        logits = logits.sigmoid()
    for row, values in zip(rows, logits.tolist(), strict=True):
        scores: dict[str, float] = {}
        for name, value in zip(names, values, strict=True):
            # Classes of one name are one: of classes that exclude each other it is as likely as they are together.
            if name in scores:
                value = scores[name] + value if problem == "single_label_classification" else max(scores[name], value)
            scores[name] = value
        if problem == "regression":
            label = separator.join(f"{value:.6g}" for value in values)
        elif problem == "multi_label_classification":
            label = separator.join(name for name, value in scores.items() if value >= 0.5)
        else:
            label = max(scores, key=scores.__getitem__)
        decisions[row] = Decision(label, scores)
    return decisions, counts


def _encode_filled(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, prefix: str = ""
) -> tuple[list[int], list[list[int]], dict[str, int]]:
    """The numbers of the texts that are not empty, their ids, and how many were `empty` or `cut`, if some were."""
    rows = [row for row, text in enumerate(texts) if text.strip()]
    encoded: Any = {"input_ids": []}
    lengths: list[int] = []
    if rows:
        encoded, lengths = encode_texts(tokenizer, [prefix + texts[row] for row in rows], max_length)
    # Some tokenizers add no end mark, and leave nothing of a text of control characters.
    filled = [(row, ids) for row, ids in zip(rows, encoded["input_ids"], strict=True) if ids]
    counts = {"empty": len(texts) - len(filled), "cut": sum(length > max_length for length in lengths)}
    counts = {name: count for name, count in counts.items() if count}
    return [row for row, _ in filled], [ids for _, ids in filled], counts


def _pad(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    group: Sequence[int],
    ids: Sequence[list[int]],
    copy_ids: Sequence[list[int]] | None,
    labels: torch.Tensor | None = None,
) -> BatchEncoding:
    """Rows of a group, `copy_ids` included if given, checked together with `labels`, on the device."""
    batch = tokenizer.pad({"input_ids": [ids[row] for row in group]}, return_tensors="pt")
    if copy_ids is not None:
        padded = tokenizer.pad({"input_ids": [copy_ids[row] for row in group]}, return_tensors="pt")
        batch["copy_ids"] = padded["input_ids"]
    check_batch({**batch, "labels": labels}, **vocabulary_sizes(model))
    return batch.to(model.device)


def _force(
    model: PreTrainedModel, batch: BatchEncoding, sequences: torch.Tensor, align: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities `[B, T - 1]` of generated tokens after the first, and attention `[B, T - 1, S]` if wanted."""
    outputs = model(**batch, decoder_input_ids=sequences[:, :-1], output_attentions=align, use_cache=False)
    weights = outputs.cross_attentions[-1].mean(dim=1) if align else None
    return _token_log_probabilities(outputs.logits, sequences[:, 1:]), weights


def _token_log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `[B, T]` of tokens `[B, T]` under logits `[B, T, V]`."""
    return logits.log_softmax(dim=-1, dtype=torch.float32).gather(2, ids.unsqueeze(-1)).squeeze(-1)


def _masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sums `[B]` of values `[B, T]` where the mask is True; elsewhere they may be infinite."""
    return values.double().masked_fill(~mask, 0.0).sum(dim=1)


def _up_to_end(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """True at the tokens of `[B, T]` up to the first end mark, that one included."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).long()
    return ended.cumsum(dim=1) - ended == 0


def check_replaceable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with which unknown words cannot be replaced.

    Raises:
        InputError: If it has no unknown token, or does not tell where in a text its tokens are.
    """
    if tokenizer.unk_token_id is None:
        raise InputError("--replace_unknown: the tokenizer has no token for unknown words, so there are none")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError("--replace_unknown needs a fast tokenizer, which knows where in a text its tokens are")


def word_spans(encoded: BatchEncoding, text: str, start: int = 0) -> list[tuple[int, int] | None]:
    """Where in a text the word is that each token belongs to.

    Args:
        encoded: Of one text, by a fast tokenizer.
        text: The text.
        start: Where the source begins, after the prefix.

    Returns:
        Beginning and end, without spaces around; None for special tokens, spaces and the prefix.
    """
    spans: list[tuple[int, int] | None] = []
    for word in encoded.word_ids(0):
        span = None
        if word is not None:
            begin, end = encoded.word_to_chars(word)
            # Where the normaliser has joined a letter and its mark, the place is that of the letter.
            while end < len(text) and unicodedata.category(text[end]).startswith("M"):
                end += 1
            found = text[begin:end]
            begin += len(found) - len(found.lstrip())
            end -= len(found) - len(found.rstrip())
            if start <= begin < end:
                span = begin, end
        spans.append(span)
    return spans


def best_word(weights: Sequence[float], spans: Sequence[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The span of the token that has the largest weight among those that belong to a word; None if none does."""
    candidates = [(weight, span) for weight, span in zip(weights, spans, strict=True) if span is not None]
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None


def fill_unknown(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    source: str,
    spans: Sequence[tuple[int, int] | None],
    start: int = 0,
) -> str:
    """Decode ids, each unknown one as a part of the source.

    Args:
        tokenizer: A fast tokenizer.
        ids: Generated ids.
        source: The source text.
        spans: Beginning and end of a part of it for each unknown id; None for nothing.
        start: Where the source begins, after the prefix.
    """
    dropped = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    kept = [one for one in ids if one not in dropped]
    tokens = [
        _MARK if one == tokenizer.unk_token_id else token
        for one, token in zip(kept, tokenizer.convert_ids_to_tokens(kept), strict=True)
    ]
    text, *rest = tokenizer.convert_tokens_to_string(tokens).split(_MARK)
    for span, part in zip(spans, rest, strict=True):
        if span is not None:
            begin, end = span
            # The token took the space before the word with it, where there was one.
            apart = begin == start or source[begin - 1].isspace()
            text += " " * (apart and not text.endswith(" ")) + source[begin:end]
        text += part
    return text.strip()


def check_output_file(name: str, *, overwrite: bool = False, num_return_sequences: int = 1) -> None:
    """Refuse an output file before anything is computed for it.

    Args:
        name: The file.
        overwrite: Whether it may exist.
        num_return_sequences: Texts for each source, of which a plain text file has room for one.

    Raises:
        InputError: If it exists, is a directory, or has no room.
    """
    path = Path(name)
    if path.is_dir():
        raise InputError(f"--output_file {name} is a directory; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"--output_file {name} exists; name another, or give --overwrite_output_file")
    if num_return_sequences > 1 and path.suffix.lower() not in (".tsv", ".jsonl"):
        raise InputError(
            f"--output_file {name} has one text a line; for --num_return_sequences {num_return_sequences} "
            "let its name end in .tsv or .jsonl"
        )


def write_predictions(name: str, nbest: Sequence[Sequence[Hypothesis]], *, overwrite: bool = False) -> None:
    """Write generated texts; to be called on one process.

    The ending of the name says how: `.tsv` and `.jsonl` have `row` and `rank`, counted from 1, `score` and `text`, a
    line for each text; any other file is plain text with the best of each row, line n for row n. Line breaks in a text
    become spaces, in `.tsv` tabs do, too.

    Args:
        name: The file.
        nbest: Texts of each row, the best first.
        overwrite: Whether it may exist.

    Raises:
        InputError: If it exists or cannot be written.
    """
    columns = ["row", "rank", "score", "text"]
    rows = [
        [row, rank, hypothesis.score, hypothesis.text]
        for row, hypotheses in enumerate(nbest, 1)
        for rank, hypothesis in enumerate(hypotheses, 1)
    ]
    objects = (dict(zip(columns, row, strict=True)) for row in rows)
    _write(name, _lines(name, [columns, *rows], objects, [hypotheses[0].text for hypotheses in nbest]), overwrite)


def write_decisions(name: str, decisions: Sequence[Decision], *, overwrite: bool = False) -> None:
    """Write classes; to be called on one process.

    The ending of the name says how: `.tsv` has `row`, counted from 1, `label`, and the probability of each class in a
    column of its own; `.jsonl` has `row`, `label` and `scores`; any other file is plain text with the label, line n
    for row n.

    Args:
        name: The file.
        decisions: One of each row.
        overwrite: Whether it may exist.

    Raises:
        InputError: If it exists or cannot be written.
    """
    classes = next((list(decision.scores) for decision in decisions if decision.scores), [])
    rows = [
        [row, decision.label, *(decision.scores.get(one) for one in classes)]
        for row, decision in enumerate(decisions, 1)
    ]
    objects = ({"row": row} | decision._asdict() for row, decision in enumerate(decisions, 1))
    plain = [decision.label for decision in decisions]
    _write(name, _lines(name, [["row", "label", *classes], *rows], objects, plain), overwrite)


def write_scores(name: str, scores: Sequence[Score], *, overwrite: bool = False) -> None:
    """Write log-probabilities of given texts; to be called on one process.

    The ending of the name says how: `.tsv` and `.jsonl` have `row`, counted from 1, `log_probability` and `tokens`;
    any other file is plain text with the log-probability, line n for row n.

    Args:
        name: The file.
        scores: One of each row.
        overwrite: Whether it may exist.

    Raises:
        InputError: If it exists or cannot be written.
    """
    rows = [[row, *score] for row, score in enumerate(scores, 1)]
    objects = ({"row": row} | score._asdict() for row, score in enumerate(scores, 1))
    plain = [f"{score.log_probability:.6g}" for score in scores]
    _write(name, _lines(name, [["row", *Score._fields], *rows], objects, plain), overwrite)


def _lines(
    name: str, table: Iterable[Sequence[Any]], objects: Iterable[dict[str, Any]], plain: Iterable[str]
) -> Iterable[str]:
    """The lines of a file of the kind that its ending names."""
    suffix = Path(name).suffix.lower()
    if suffix == ".jsonl":
        return (json.dumps(row, ensure_ascii=False) for row in objects)
    if suffix == ".tsv":
        return ("\t".join(map(_field, row)) for row in table)
    return map(in_one_line, plain)


def _field(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else in_one_line(str(value)).replace("\t", " ")


def _write(name: str, lines: Iterable[str], overwrite: bool) -> None:
    """Write lines beside the file and rename, so that it is whole or not there."""
    check_output_file(name, overwrite=overwrite)
    path = Path(name)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"--output_file {name}: cannot be written: {error.strerror}") from None
