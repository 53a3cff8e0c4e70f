"""Text generation and scoring of reference texts with sequence-to-sequence models; next-token prediction."""

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
from hfseq.heads import require_text
from hfseq.inference.alignment import best_word, check_replaceable, fill_unknown, has_attention, word_spans
from hfseq.inference.parallel import run_by_length


class Hypothesis(NamedTuple):
    """A generated text.

    Attributes:
        text: The text.
        score: Log-probability divided by the length in tokens to the power of `length_penalty`, the score of beam
            search; 0 for an empty source, None if no scores were requested.
    """

    text: str
    score: float | None


class Score(NamedTuple):
    """Log-probability of a reference text.

    Attributes:
        log_probability: Sum over the tokens.
        tokens: Number of tokens, EOS included.
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
    """Validate decoding flags, before anything is loaded, and return them as arguments of `generate`.

    Args:
        num_beams: Beam size; ignored in sampling.
        length_penalty: Exponent of the length by which beam scores are divided.
        num_return_sequences: Number of texts per source.
        do_sample: Sample instead of beam search.
        temperature: Sampling temperature.
        top_k: Number of most likely tokens to sample from.
        top_p: Nucleus (top-p) sampling threshold.
        max_length: Maximum number of tokens, the decoder start token included.

    Raises:
        InputError: A value is invalid, or has no effect in combination with the others.
    """
    beams = 1 if do_sample else num_beams
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in sampling.items() if value is not None}
    more = f"--num_return_sequences {num_return_sequences} exceeds --num_beams {num_beams}"
    checks = {
        "--num_beams and --num_return_sequences must be at least 1": min(num_beams, num_return_sequences) >= 1,
        f"--{next(iter(given), '')} is for sampling; add --do_sample, or leave it out": do_sample or not given,
        f"{more}; raise the latter, or add --do_sample": do_sample or num_return_sequences <= num_beams,
        "--length_penalty is for beam search; raise --num_beams, or leave it out": length_penalty is None or beams > 1,
        f"--temperature {temperature} must be positive and finite": temperature is None or 0 < temperature < math.inf,
        f"--top_k {top_k} must not be negative": top_k is None or top_k >= 0,
        f"--top_p {top_p} must be above 0 and at most 1": top_p is None or 0 < top_p <= 1,
    }
    for message, holds in checks.items():
        if not holds:
            raise InputError(message)
    options = {"num_beams": beams, "num_return_sequences": num_return_sequences, "do_sample": do_sample}
    if beams == 1:
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
    """Generate texts for each source, distributed over all processes.

    Args:
        model: Sequence-to-sequence model or ensemble, on its device.
        tokenizer: Tokenizer of the model.
        sources: Source texts; the output for an empty one is empty.
        batch_size: Number of sources per batch; sources of similar length are batched together.
        max_source_length: Maximum source length in tokens, EOS included; longer sources are truncated.
        prefix: Text prepended to every source.
        scores: Compute scores, which takes one more forward pass per text of a source.
        replace_unknown: Replace each unknown word by the source word with the highest attention weight (Luong et al.
            2015, "Addressing the rare word problem"; Jean et al. 2015, section 3.3). Switches a Transformer to eager
            attention, the only implementation that returns its weights.
        seed: Random seed of sampling; results depend on it and on `batch_size`, not on the number of processes.
        progress: Title of a progress bar; None for no progress bar.
        options: Arguments of `generate`, from `generation_options`.

    Returns:
        The `num_return_sequences` texts of each source (one for an empty source), in order of the sources, best first,
        the same on every process; and the number of sources that were `empty` or truncated (`cut`), if any.

    Raises:
        InputError: The model reads no text, a token id is outside its vocabulary, or unknown words cannot be replaced
            with this tokenizer or are copied by the model itself.
    """
    require_text(model, "generation from texts")
    copied = copied_vocabulary(model)
    if replace_unknown:
        if copied is not None:
            raise InputError("--replace_unknown: the model copies unknown words itself; leave the flag out")
        if not has_attention(model):
            raise InputError("--replace_unknown: the model has attention_type='none', which aligns no words")
        check_replaceable(tokenizer)
        # Clear the model's setting, which may suppress the unknown token and so leave nothing to replace.
        options["suppress_tokens"] = []
        model.set_attn_implementation("eager")
    model.eval()
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    # A source that consists of the prefix alone counts as empty.
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
        ranks = []
        # Score one text per source at a time, so that it takes no more memory than a training step.
        for sequences in generated.unflatten(0, (len(group), -1)).unbind(1):
            counted = _up_to_end(model, sequences[:, 1:])
            unknown = counted & (sequences[:, 1:] == tokenizer.unk_token_id) & replace_unknown
            align = replace_unknown and bool(unknown.any())
            if copied is None:
                texts = decode_ids(tokenizer, sequences)
            else:
                texts = decode_copies(tokenizer, sequences, [words[index] for index in group], copied)
            values: list[float | None] = [None] * len(group)
            if scores or align:
                inputs = {**batch, "decoder_input_ids": sequences[:, :-1]}
                outputs = model(**inputs, output_attentions=align, use_cache=False)
                if scores:
                    log_probabilities = _token_log_probabilities(outputs.logits, sequences[:, 1:])
                    values = (_masked_sum(log_probabilities, counted) / counted.sum(dim=1) ** power).tolist()
                for row in unknown.any(dim=1).nonzero().flatten().tolist() if align else ():
                    weights = outputs.cross_attentions[-1][row].mean(dim=0)  # [T, S]
                    own = batch["attention_mask"][row].bool()
                    text, start = texts_of[group[row]], len(prefix)
                    spans = word_spans(tokenizer(text, max_length=max_source_length, truncation=True), text, start)
                    aligned = [best_word(line, spans) for line in weights[unknown[row]][:, own].tolist()]
                    kept = sequences[row, 1:][counted[row]].tolist()
                    texts[row] = fill_unknown(tokenizer, kept, text, aligned, start)
            ranks.append([Hypothesis(text.strip(), value) for text, value in zip(texts, values, strict=True)])
        return [list(found) for found in zip(*ranks, strict=True)]

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
    """Compute log-probabilities of reference texts, such as translations, distributed over all processes.

    Args:
        model: Sequence-to-sequence model or ensemble, on its device.
        tokenizer: Tokenizer of the model.
        sources: Source texts.
        targets: Reference text for each source.
        batch_size: Batch size; rows of similar length are batched together.
        max_source_length: Maximum source length in tokens, EOS included; longer sources are truncated.
        max_target_length: Maximum target length in tokens, EOS included; longer targets are truncated before scoring.
        prefix: Text prepended to every source.

    Returns:
        One score per row, in order and the same on every process; and the number of truncated rows (`cut`), if any.

    Raises:
        InputError: The model reads no text, the numbers of sources and targets differ, or a token id is outside the
            vocabulary.
    """
    require_text(model, "scoring of texts")
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
        # Pad on the right, whatever the tokenizer's padding side: a decoder would read padding on the left.
        padded = pad_sequence([torch.tensor(labels[row]) for row in group], batch_first=True, padding_value=-100)
        batch = _pad(model, tokenizer, group, ids, copy_ids, labels=padded)
        padded = padded.to(model.device)
        shift: Callable[..., torch.Tensor] = model.prepare_decoder_input_ids_from_labels  # type: ignore[assignment]
        logits = model(**batch, decoder_input_ids=shift(labels=padded), use_cache=False).logits
        valid = padded != -100
        totals = _masked_sum(_token_log_probabilities(logits, padded.clamp(min=0)), valid)
        return [Score(*pair) for pair in zip(totals.tolist(), valid.sum(dim=1).tolist(), strict=True)]

    lengths = [len(one) + len(other) for one, other in zip(ids, labels, strict=True)]
    pairs = zip(source_lengths, target_lengths, strict=True)
    cut = sum(source > max_source_length or target > max_target_length for source, target in pairs)
    return run_by_length(lengths, batch_size, score), {"cut": cut} if cut else {}


def perplexity(scores: Sequence[Score]) -> float:
    """Corpus perplexity: the inverse of the geometric mean of the token probabilities of all texts."""
    return math.exp(-math.fsum(score.log_probability for score in scores) / sum(score.tokens for score in scores))


def _pad(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    group: Sequence[int],
    ids: Sequence[list[int]],
    copy_ids: Sequence[list[int]] | None,
    labels: torch.Tensor | None = None,
) -> BatchEncoding:
    """Pad a group of rows, `copy_ids` included if given, to a validated batch on the model's device.

    `labels` are validated but not part of the batch.
    """
    batch = tokenizer.pad({"input_ids": [ids[row] for row in group]}, return_tensors="pt")
    if copy_ids is not None:
        padded = tokenizer.pad({"input_ids": [copy_ids[row] for row in group]}, return_tensors="pt")
        batch["copy_ids"] = padded["input_ids"]
    check_batch({**batch, "labels": labels}, **vocabulary_sizes(model))
    return batch.to(model.device)


def _token_log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `[B, T]` of token ids `[B, T]` under logits `[B, T, V]`."""
    return logits.log_softmax(dim=-1, dtype=torch.float32).gather(2, ids.unsqueeze(-1)).squeeze(-1)


def _masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Row sums `[B]` of the values `[B, T]` where the mask is True; masked values may be infinite."""
    return values.double().masked_fill(~mask, 0.0).sum(dim=1)


def _up_to_end(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mask `[B, T]` of the tokens up to and including the first EOS."""
    end = model.generation_config.eos_token_id
    ends = torch.tensor([] if end is None else end, dtype=tokens.dtype, device=tokens.device)
    ended = torch.isin(tokens, ends).long()
    return ended.cumsum(dim=1) - ended == 0


@torch.no_grad()
def next_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, count: int = 10
) -> list[tuple[str, float]]:
    """Most likely next tokens after a text with their probabilities, most likely first.

    Args:
        model: Causal language model.
        tokenizer: Tokenizer of the model.
        text: Prompt; empty for the beginning of a line.
        count: Maximum number of tokens.
    """
    model.eval()
    probabilities = model(prompt_ids(tokenizer, text).to(model.device)).logits[0, -1].float().softmax(dim=-1)
    values, ids = probabilities.topk(min(count, len(probabilities)))
    names = [str(tokenizer.decode([id])) for id in ids.tolist()]
    return list(zip(names, values.tolist(), strict=True))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Token ids `[1, T]` of a prompt: EOS to mark the beginning of a line, then the text without special tokens."""
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
        tokenizer: Tokenizer of the model.
        ids: Rows of token ids; -100 is padding.
        sources: Source of each row, with its prefix.
        max_source_length: Maximum length of a source in tokens, as the model was given it.
        copy_vocabulary: Vocabulary size of a model that copies unknown words; None for other models.
    """
    if copy_vocabulary is None:
        return decode_ids(tokenizer, ids)
    encoded, _ = encode_texts(tokenizer, sources, max_source_length)
    _, words = copy_sources(tokenizer, sources, encoded, copy_vocabulary)
    return [text.strip() for text in decode_copies(tokenizer, ids, words, copy_vocabulary)]
