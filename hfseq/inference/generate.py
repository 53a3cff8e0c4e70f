"""Generating texts with sequence-to-sequence models, and scoring given ones."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.collation import check_batch, vocabulary_sizes
from hfseq.data.copying import copied_vocabulary, copy_sources, copy_targets, decode_copies, decode_ids
from hfseq.data.encoding import encode_filled, encode_texts
from hfseq.errors import InputError
from hfseq.inference.alignment import best_word, check_replaceable, fill_unknown, word_spans
from hfseq.inference.parallel import run_by_length


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
    # The prefix alone is no text.
    prefixed = [prefix + source if source.strip() else "" for source in sources]
    rows, columns, counts = encode_filled(tokenizer, prefixed, max_source_length)
    ids, texts_of = columns["input_ids"], [prefixed[row] for row in rows]
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


@torch.no_grad()
def next_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, count: int = 10
) -> list[tuple[str, float]]:
    """The likeliest tokens after a text, the likeliest first, with their probabilities.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        text: What comes before; empty for the beginning of a line.
        count: How many tokens; all of a smaller vocabulary.
    """
    model.eval()
    probabilities = model(prompt_ids(tokenizer, text).to(model.device)).logits[0, -1].float().softmax(dim=-1)
    values, ids = probabilities.topk(min(count, len(probabilities)))
    names = [str(tokenizer.decode([id])) for id in ids.tolist()]
    return list(zip(names, values.tolist(), strict=True))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Ids `[1, T]` of a text to go on with: it does not end, and begins a line."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([[tokenizer.eos_token_id, *ids]])


def decode_outputs(
    tokenizer: PreTrainedTokenizerBase,
    ids: Any,
    sources: Sequence[str],
    *,
    max_source_length: int,
    copy_vocabulary: int | None,
) -> list[str]:
    """Texts of generated rows of token ids, with the words that were copied.

    Args:
        tokenizer: Of the model.
        ids: Rows of ids, in which -100 stands for padding.
        sources: What each was generated from, with its prefix.
        max_source_length: As of `encode_pairs`.
        copy_vocabulary: Likewise.
    """
    if copy_vocabulary is None:
        return decode_ids(tokenizer, ids)
    encoded, _ = encode_texts(tokenizer, sources, max_source_length)
    _, words = copy_sources(tokenizer, sources, encoded, copy_vocabulary)
    return [text.strip() for text in decode_copies(tokenizer, ids, words, copy_vocabulary)]
