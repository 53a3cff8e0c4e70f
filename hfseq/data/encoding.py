"""Tokenization of a dataset, with truncated rows counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import BatchEncoding, PreTrainedTokenizerBase

from hfseq.lazy import datasets


class Limit(NamedTuple):
    """Maximum length of texts.

    Attributes:
        texts: Name of the texts in messages, such as `sources`.
        flag: Flag that sets the limit.
        tokens: The limit.
    """

    texts: str
    flag: str
    tokens: int


class EncodedSplits(NamedTuple):
    """Encoded rows of each split.

    Attributes:
        rows: Split name to encoded rows.
        lengths: Split name to the number of source tokens of each row before truncation; not for streams.
        notes: One line for each split and limit that some rows exceeded; not for streams, nor for `train_sample`,
            which consists of training rows.
    """

    rows: dict[str, Any]
    lengths: dict[str, list[int]]
    notes: list[str]


Text = str | tuple[str, str]
"""A text, or a pair of texts that is encoded as one sequence."""


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int, *, target: bool = False
) -> tuple[BatchEncoding, list[int]]:
    """Tokenize texts, or pairs of texts, and return their lengths before truncation.

    Args:
        tokenizer: Tokenizer of the model; it puts its separator between the texts of a pair.
        texts: The texts, or the pairs.
        max_length: Maximum number of tokens, special tokens included; longer texts are truncated, of a pair the longer
            one first.
        target: Encode as targets, which some tokenizers treat differently.

    Returns:
        The encoding, not padded, and the number of tokens of each text without truncation.
    """

    def inputs(some: Sequence[Text]) -> dict[str, Any]:
        if some and isinstance(some[0], tuple):
            return dict(zip(("text", "text_pair"), map(list, zip(*some, strict=True)), strict=True))
        return {"text_target" if target else "text": list(some)}

    encoded = tokenizer(**inputs(texts), max_length=max_length, truncation=True)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    for row in [row for row, length in enumerate(lengths) if length == max_length]:
        lengths[row] = len(tokenizer(**inputs(texts[row : row + 1]), verbose=False)["input_ids"][0])
    return encoded, lengths


def encode_words(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[str]], max_length: int | None = None
) -> tuple[BatchEncoding, list[int]]:
    """Tokenize rows of words so that each word has at least one token.

    Tokenizers produce no token for some words (a no-break space, for example), which a tagger could then not label;
    such a word is replaced by the unknown token.

    Args:
        tokenizer: Fast tokenizer of the model.
        rows: Words of each row.
        max_length: Maximum number of tokens, special tokens included; longer rows are truncated. None for the
            tokenizer's own maximum.

    Returns:
        The encoding, not padded, and the number of tokens of each row without truncation.
    """
    options: dict[str, Any] = {"is_split_into_words": True, "verbose": False}
    truncated = options | {"truncation": True, "max_length": max_length}
    limit = tokenizer.model_max_length if max_length is None else max_length
    encoded = tokenizer(rows, **truncated)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    seen = [set(encoded.word_ids(row)) for row in range(len(rows))]
    # Of a row that may be truncated, only the words before the last remaining one are certain.
    ends = [
        max(found - {None}, default=0) if length >= limit else len(row)
        for found, length, row in zip(seen, lengths, rows, strict=True)
    ]
    lost = [set(range(end)) - found for end, found in zip(ends, seen, strict=True)]
    if any(lost):
        unknown = tokenizer.unk_token or "?"
        rows = [
            [unknown if at in gone else word for at, word in enumerate(row)]
            for row, gone in zip(rows, lost, strict=True)
        ]
        # With more tokens a row may now be truncated.
        encoded = tokenizer(rows, **truncated)
        lengths = [len(ids) for ids in encoded["input_ids"]]
    for row in [row for row, length in enumerate(lengths) if length == limit]:
        lengths[row] = len(tokenizer(rows[row], **options)["input_ids"])
    return encoded, lengths


def encode_splits(
    splits: Mapping[str, Any],
    encode: Callable[[dict[str, list[Any]]], dict[str, Any]],
    limits: Mapping[str, Limit],
) -> EncodedSplits:
    """Encode the rows of each split; those of a stream lazily.

    Args:
        splits: Split name to rows.
        encode: Function of a batch of columns that returns the encoded columns, with `length`, the number of source
            tokens before truncation, and any other columns of `limits`.
        limits: Column of lengths to its limit.

    Returns:
        The encoded rows without the columns of lengths, and the lengths and notes derived from them.
    """
    encoded = EncodedSplits({}, {}, [])
    counted = ["length", *(limits.keys() - {"length"})]
    for name, rows in splits.items():
        if isinstance(rows, datasets.IterableDataset):
            streamed = rows.map(encode, batched=True, remove_columns=rows.column_names)
            encoded.rows[name] = streamed.remove_columns(counted)
            continue
        result = rows.map(
            encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc=f"Encoding {name}"
        )
        encoded.rows[name], encoded.lengths[name] = result.remove_columns(counted), result["length"][:]
        for column, limit in limits.items() if name != "train_sample" else ():
            if count := sum(length > limit.tokens for length in result[column][:]):
                encoded.notes.append(
                    f"{name}: {count} of {len(result)} {limit.texts} are longer than {limit.flag} {limit.tokens} and "
                    "were truncated"
                )
    return encoded


def encode_filled(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> tuple[list[int], dict[str, list[Any]], dict[str, int]]:
    """Tokenize the texts that are not empty.

    Args:
        tokenizer: Tokenizer of the model.
        texts: Texts, or pairs of texts.
        max_length: Maximum number of tokens; longer texts are truncated.

    Returns:
        Numbers of the texts that are not empty, columns of their encoding, and how many texts were `empty` or `cut`,
        if any.
    """
    rows = [row for row, text in enumerate(texts) if "".join(text).strip()]
    encoded: Any = {"input_ids": []}
    lengths: list[int] = []
    if rows:
        encoded, lengths = encode_texts(tokenizer, [texts[row] for row in rows], max_length)
    # Some tokenizers add no EOS token, and leave nothing of a text of control characters.
    filled = [number for number, ids in enumerate(encoded["input_ids"]) if ids]
    counts = {"empty": len(texts) - len(filled), "cut": sum(length > max_length for length in lengths)}
    columns = {name: [values[number] for number in filled] for name, values in encoded.items()}
    return [rows[number] for number in filled], columns, {name: count for name, count in counts.items() if count}
