"""Texts of a data set as token ids, cut to a length that is counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
from transformers import BatchEncoding, PreTrainedTokenizerBase


class Limit(NamedTuple):
    """How long texts may be.

    Attributes:
        texts: What they are, for a message: `sources`.
        flag: What sets the limit, likewise.
        tokens: The limit.
    """

    texts: str
    flag: str
    tokens: int


class EncodedSplits(NamedTuple):
    """The rows of each split, encoded.

    Attributes:
        rows: Split name to encoded rows.
        lengths: Tokens of the source of each row before it was cut, but for a stream.
        notes: A line for each split and limit that some of its rows passed; those of a stream are not counted, nor
            those of `train_sample`, which are training rows.
    """

    rows: dict[str, Any]
    lengths: dict[str, list[int]]
    notes: list[str]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, *, target: bool = False
) -> tuple[BatchEncoding, list[int]]:
    """Encode texts, and say how long they were.

    Args:
        tokenizer: Of the model.
        texts: The texts.
        max_length: Tokens of a text, special ones counted; the rest of it is cut off.
        target: Whether they are targets, which some tokenizers encode in another way.

    Returns:
        The encoding, not padded, and for each text the number of its tokens without truncation.
    """
    key = "text_target" if target else "text"
    encoded = tokenizer(**{key: list(texts)}, max_length=max_length, truncation=True)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    for row in [row for row, length in enumerate(lengths) if length == max_length]:
        lengths[row] = len(tokenizer(**{key: texts[row]}, verbose=False)["input_ids"])
    return encoded, lengths


def encode_words(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[str]], max_length: int | None = None
) -> tuple[BatchEncoding, list[int]]:
    """Encode rows of words so that each word has a token.

    Tokenizers make no token of some words, a no-break space for one, and a tagger could say nothing of them; such a
    word is read as the unknown token.

    Args:
        tokenizer: Of the model, a fast one.
        rows: Words of each row.
        max_length: Tokens of a row, special ones counted; the rest of it is cut off. None for those of the tokenizer.

    Returns:
        The encoding, not padded, and for each row the number of its tokens without truncation.
    """
    options: dict[str, Any] = {"is_split_into_words": True, "verbose": False}
    cut = options | {"truncation": True, "max_length": max_length}
    limit = tokenizer.model_max_length if max_length is None else max_length
    encoded = tokenizer(rows, **cut)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    seen = [{word for word in encoded.word_ids(row) if word is not None} for row in range(len(rows))]
    # Of a row that may have been cut, those before the last word that is left.
    ends = [
        max(found, default=0) if length >= limit else len(row)
        for found, length, row in zip(seen, lengths, rows, strict=True)
    ]
    if any(len(found) < end for found, end in zip(seen, ends, strict=True)):
        unknown = tokenizer.unk_token or "?"
        shown = [
            [word if at in found or at >= end else unknown for at, word in enumerate(row)]
            for row, found, end in zip(rows, seen, ends, strict=True)
        ]
        # With more tokens a row may be cut now.
        encoded = tokenizer(shown, **cut)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        rows = shown
    for row in [row for row, length in enumerate(lengths) if length == limit]:
        lengths[row] = len(tokenizer(rows[row], **options)["input_ids"])
    return encoded, lengths


def encode_splits(
    splits: Mapping[str, Any],
    encode: Callable[[dict[str, list[Any]]], dict[str, Any]],
    limits: Mapping[str, Limit],
) -> EncodedSplits:
    """Encode the rows of each split, those of a stream when they are read.

    Args:
        splits: Split name to rows.
        encode: Takes columns of a batch of rows and gives those of the result, with `length`, the tokens of a source
            before it was cut, and more such columns if `limits` has them.
        limits: Column of lengths to their limit.

    Returns:
        The result without those columns, and what they say.
    """
    encoded = EncodedSplits({}, {}, [])
    counted = ["length", *(limits.keys() - {"length"})]
    for name, rows in splits.items():
        if isinstance(rows, datasets.IterableDataset):
            encoded.rows[name] = rows.map(encode, batched=True, remove_columns=rows.column_names).remove_columns(
                counted
            )
            continue
        result = rows.map(
            encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc=f"Encoding {name}"
        )
        encoded.rows[name], encoded.lengths[name] = result.remove_columns(counted), list(result["length"])
        for column, limit in limits.items() if name != "train_sample" else ():
            if count := sum(length > limit.tokens for length in result[column]):
                encoded.notes.append(
                    f"{name}: {count} of {len(result)} {limit.texts} are longer than {limit.flag} {limit.tokens} and "
                    "were cut"
                )
    return encoded


def encode_filled(
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
