"""Texts of a data set as token ids, cut to a length that is counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
from transformers import BatchEncoding, PreTrainedTokenizerBase


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, *, target: bool = False
) -> tuple[BatchEncoding, list[bool]]:
    """Encode texts, and say which of them lost their end.

    Args:
        tokenizer: Of the model.
        texts: The texts.
        max_length: Tokens of a text, special ones counted; the rest of it is cut off.
        target: Whether they are targets, which some tokenizers encode in another way.

    Returns:
        The encoding, not padded, and for each text whether it was cut.
    """
    key = "text_target" if target else "text"
    encoded = tokenizer(**{key: list(texts)}, max_length=max_length, truncation=True)
    cut = [len(ids) == max_length for ids in encoded["input_ids"]]
    # One that just fits is told from one that was cut by its length without truncation.
    for row in [row for row, full in enumerate(cut) if full]:
        cut[row] = len(tokenizer(**{key: texts[row]}, verbose=False)["input_ids"]) > max_length
    return encoded, cut


def encode_splits(
    splits: Mapping[str, Any], encode: Callable[[dict[str, list[Any]]], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Encode the rows of each split, those of a stream when they are read.

    Args:
        splits: Split name to rows.
        encode: Takes columns of a batch of rows and gives those of the result, with `cut`, whether a row was cut.

    Returns:
        The result without `cut`, and how many rows of which splits were cut; those of a stream are not counted.
    """
    encoded, counts = {}, {}
    for name, rows in splits.items():
        if isinstance(rows, datasets.IterableDataset):
            encoded[name] = rows.map(encode, batched=True, remove_columns=rows.column_names).remove_columns("cut")
            continue
        result = rows.map(
            encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc=f"Encoding {name}"
        )
        if count := sum(result["cut"]):
            counts[name] = count
        encoded[name] = result.remove_columns("cut")
    return encoded, counts
