"""Attention between the tokens of a source and of a target, and source words in place of unknown ones."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hfseq.errors import InputError

# Stands for an unknown word while its neighbours are decoded; no character, so no token has it.
_MARK = "\uffff"


@torch.no_grad()
def align_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str,
    limits: tuple[int | None, int | None] = (None, None),
) -> tuple[Any, list[str], list[str]]:
    """Attention of each target token over the source tokens, the mean over heads of the last layer.

    Args:
        model: A sequence-to-sequence model.
        tokenizer: Its tokenizer.
        source: A text.
        target: Its translation, say.
        limits: Tokens after which the two are cut; None for no such limit.

    Returns:
        Weights `[target, source]` as an array, and both lists of tokens.
    """
    # Only eager attention of a Transformer returns its weights; a recurrent model always can.
    model.set_attn_implementation("eager")
    model.eval()
    options = [{"max_length": limit, "truncation": limit is not None, "return_tensors": "pt"} for limit in limits]
    encoded = tokenizer(source, **options[0]).to(model.device)
    labels = tokenizer(text_target=target, **options[1])["input_ids"].to(model.device)
    outputs = model(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        labels=labels,
        output_attentions=True,
    )
    weights = outputs.cross_attentions[-1][0].mean(dim=0)  # [T, S]
    tokens = [list(tokenizer.convert_ids_to_tokens(ids[0].tolist())) for ids in (encoded["input_ids"], labels)]
    return weights.float().cpu().numpy(), tokens[0], tokens[1]


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
