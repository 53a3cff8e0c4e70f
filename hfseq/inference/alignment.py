"""Attention between source and target tokens, and replacement of unknown words by source words."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfseq.errors import InputError
from hfseq.heads import require_text
from hfseq.tokenization import target_tokenizer

# Placeholder for an unknown word during decoding; a Unicode noncharacter, so it occurs in no token.
_MARK = "\uffff"


def has_attention(model: PreTrainedModel) -> bool:
    """Return True if the decoder of a sequence-to-sequence model attends over the source."""
    return getattr(model.config, "attention_type", None) != "none"


@torch.no_grad()
def align_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str,
    limits: tuple[int | None, int | None] = (None, None),
) -> tuple[Any, list[str], list[str]]:
    """Attention of each target token over the source tokens, averaged over the heads of the last layer.

    Args:
        model: Sequence-to-sequence model.
        tokenizer: Tokenizer of the model.
        source: Source text.
        target: Target text, such as a translation.
        limits: Maximum source and target lengths in tokens; None for no limit.

    Returns:
        Weights `[target, source]` as an array, the source tokens, and the target tokens.

    Raises:
        InputError: The model reads no text, or has no attention.
    """
    require_text(model, "alignment of words")
    if not has_attention(model):
        raise InputError("the model has attention_type='none': there are no weights to align words by")
    # Of a Transformer's attention implementations, only eager returns weights; recurrent models always do.
    model.set_attn_implementation("eager")
    model.eval()
    options = [{"max_length": limit, "truncation": limit is not None, "return_tensors": "pt"} for limit in limits]
    encoded = tokenizer(source, **options[0]).to(model.device)
    labels = tokenizer(text_target=target, **options[1])["input_ids"].to(model.device)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    outputs = model(**inputs, labels=labels, output_attentions=True)
    weights = outputs.cross_attentions[-1][0].mean(dim=0)  # [T, S]
    read = list(tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist()))
    written = list(target_tokenizer(tokenizer).convert_ids_to_tokens(labels[0].tolist()))
    return weights.float().cpu().numpy(), read, written


def check_replaceable(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that unknown words can be replaced with this tokenizer.

    Raises:
        InputError: The tokenizer has no unknown token, or does not return character offsets.
    """
    if tokenizer.unk_token_id is None:
        raise InputError("--replace_unknown: the tokenizer has no unknown token, so there is nothing to replace")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError("--replace_unknown needs a fast tokenizer, which returns character offsets")


def word_spans(encoded: BatchEncoding, text: str, start: int = 0) -> list[tuple[int, int] | None]:
    """Character spans of the words that the tokens of a text belong to.

    Args:
        encoded: Encoding of the text by a fast tokenizer.
        text: The text.
        start: Character offset of the source, after the prefix.

    Returns:
        For each token, start and end of its word without surrounding spaces; None for special tokens, spaces and the
        prefix.
    """
    spans: list[tuple[int, int] | None] = []
    for word in encoded.word_ids(0):
        span = None
        if word is not None:
            begin, end = encoded.word_to_chars(word)
            # If the normalizer composes a letter and a combining mark, the offsets cover only the letter.
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
    """Span of the token with the largest weight among those that belong to a word; None if none does."""
    candidates = [(weight, span) for weight, span in zip(weights, spans, strict=True) if span is not None]
    return max(candidates, key=lambda candidate: candidate[0])[1] if candidates else None


def fill_unknown(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    source: str,
    spans: Sequence[tuple[int, int] | None],
    start: int = 0,
) -> str:
    """Decode token ids, with each unknown token replaced by a span of the source.

    Args:
        tokenizer: Fast tokenizer.
        ids: Generated token ids.
        source: Source text, with its prefix.
        spans: Start and end of the replacement in the source for each unknown token; None to drop the token.
        start: Character offset of the source, after the prefix.
    """
    tokenizer = target_tokenizer(tokenizer)
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
            # The unknown token includes the space before its word, if there was one.
            apart = begin == start or source[begin - 1].isspace()
            text += " " * (apart and not text.endswith(" ")) + source[begin:end]
        text += part
    return text.strip()
