"""Copying of out-of-vocabulary words for pointer-generators (See et al. 2017, section 2.2).

Each out-of-vocabulary word of a source has an id of its own beyond the vocabulary: `vocab_size` + j, where j is the
position of its first occurrence in the encoded source, padding not counted. `copy_ids` are the source's ids with these
in place of the unknown token's; labels may contain them, `generate` returns them, and `decode_copies` decodes them.

With word tokenizers (`train_tokenizer(model="word")`) whole words are copied, with subword tokenizers the characters
they do not know.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Encoding, models
from transformers import BatchEncoding, DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.errors import InputError


def copy_sources(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], encoded: BatchEncoding, vocab_size: int
) -> tuple[list[list[int]], list[list[str]]]:
    """Return the extended ids of source texts and the words that can be copied from them.

    A word has the form that the tokenizer looks up: normalised (case, Unicode form), with its word-boundary marker.
    Words lost to truncation cannot be copied.

    Args:
        tokenizer: A fast tokenizer with an unknown token.
        texts: The source texts.
        encoded: The tokenizer's encoding of them, optionally truncated and padded.
        vocab_size: Vocabulary size of the model.

    Returns:
        `copy_ids` in the shape of `encoded["input_ids"]`; and for each position of each text the out-of-vocabulary
        word that first occurs there, else "".

    Raises:
        InputError: The tokenizer is not fast or has no unknown token.
    """
    all_ids, all_words = [], []
    for text, encoding in zip(texts, _encodings(tokenizer, encoded), strict=True):
        ids, words, first = list(encoding.ids), [""] * len(encoding.ids), {}
        for position, piece in _unknown_pieces(tokenizer, text, encoding):
            if piece not in first:
                first[piece], words[position] = position, piece
            ids[position] = vocab_size + first[piece]
        all_ids.append(ids)
        all_words.append(words)
    return all_ids, all_words


def copy_targets(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    encoded: BatchEncoding,
    words: Sequence[Sequence[str]],
    vocab_size: int,
) -> list[list[int]]:
    """Return labels of target texts in which out-of-vocabulary words that the source contains are copied from it.

    Args:
        tokenizer: A fast tokenizer with an unknown token.
        texts: The target texts.
        encoded: The tokenizer's encoding of them.
        words: Words that each row can copy, from `copy_sources`.
        vocab_size: Vocabulary size of the model.

    Returns:
        `encoded["input_ids"]` with the ids of `copy_sources` in place of the unknown token's, where there are any.

    Raises:
        InputError: The tokenizer is not fast or has no unknown token.
    """
    labels = []
    for text, encoding, row in zip(texts, _encodings(tokenizer, encoded), words, strict=True):
        ids = list(encoding.ids)
        copyable = {word: vocab_size + position for position, word in enumerate(row) if word}
        for position, piece in _unknown_pieces(tokenizer, text, encoding):
            ids[position] = copyable.get(piece, ids[position])
        labels.append(ids)
    return labels


def decode_copies(
    tokenizer: PreTrainedTokenizerBase,
    sequences: Any,
    words: Sequence[Sequence[str]],
    vocab_size: int,
    *,
    skip_special_tokens: bool = True,
    clean_up_tokenization_spaces: bool | None = None,
) -> list[str]:
    """Decode generated ids as the tokenizer does, copied words included.

    Args:
        tokenizer: The tokenizer.
        sequences: Rows of ids, a tensor, an array or lists; negative ids, such as padding of labels, are skipped.
        words: Words that each row could copy, from `copy_sources`.
        vocab_size: Vocabulary size of the model.
        skip_special_tokens: Omit special tokens, as in `decode`.
        clean_up_tokenization_spaces: Remove spaces before punctuation, as in `decode`; None for the tokenizer's
            default.
    """
    skipped = set(tokenizer.all_special_ids) if skip_special_tokens else set()
    cleans = clean_up_tokenization_spaces
    cleans = tokenizer.clean_up_tokenization_spaces if cleans is None else cleans
    texts = []
    for sequence, row in zip(sequences, words, strict=True):
        tokens: list[str] = []
        for token in (int(token) for token in sequence):
            if token >= vocab_size:
                # An id without a word in this row is very improbable, but sampling may draw it.
                tokens += [word for word in row[token - vocab_size : token - vocab_size + 1] if word]
            elif token >= 0 and token not in skipped:
                # A model may have more embeddings than its tokenizer has tokens.
                tokens += [name for name in tokenizer.convert_ids_to_tokens([token]) if name is not None]
        text = tokenizer.convert_tokens_to_string(tokens)
        texts.append(tokenizer.clean_up_tokenization(text) if cleans else text)
    return texts


class CopyCollator:
    """`DataCollatorForSeq2Seq` for rows with `copy_ids`, which are padded like `input_ids`.

    Args:
        collator: The collator of the other columns.
    """

    def __init__(self, collator: DataCollatorForSeq2Seq) -> None:
        self.collator = collator

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """Collate rows of `input_ids`, `copy_ids` of the same lengths and other columns."""
        rows = [torch.tensor(feature["copy_ids"], dtype=torch.long) for feature in features]
        batch = self.collator([{name: row[name] for name in row if name != "copy_ids"} for row in features])
        # At padding they are the padding token, like the input ids.
        batch["copy_ids"] = batch["input_ids"].masked_scatter(batch["attention_mask"].bool(), torch.cat(rows))
        return batch


def _encodings(tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding) -> list[Encoding]:
    name = type(tokenizer).__name__
    if not tokenizer.is_fast or encoded.encodings is None:
        raise InputError(f"{name} has no token offsets; copying words needs a fast tokenizer")
    if tokenizer.unk_token_id is None:
        raise InputError(f"{name} has no unknown token, so there are no unknown words to copy")
    return encoded.encodings


def _unknown_pieces(tokenizer: Any, text: str, encoding: Encoding) -> list[tuple[int, str]]:
    """Return the positions of the unknown tokens of an encoded text and the pieces of text there."""
    backend, unknown = tokenizer.backend_tokenizer, tokenizer.unk_token_id
    # These models know a word as a whole or not at all.
    whole = isinstance(backend.model, models.WordLevel | models.WordPiece) and backend.pre_tokenizer is not None

    def normalise(part: str) -> str:
        return part if backend.normalizer is None else backend.normalizer.normalize_str(part)

    pieces = []
    for position, (token, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
        # The text may contain the unknown token itself, which is no word, and padding may be the unknown token.
        if token != unknown or start == end or text[start:end].strip() == tokenizer.unk_token:
            continue
        # The offsets of a composed character are those of its first code point.
        length = len(normalise(text[start:end]))
        while end < len(text) and not text[end].isspace() and len(normalise(text[start : end + 1])) == length:
            end += 1
        # With the character before it: a preceding space or the start of the text can be part of the word.
        piece = normalise(text[max(start - 1, 0) if whole else start : end])
        if whole:
            piece = backend.pre_tokenizer.pre_tokenize_str(piece)[-1][0]
        pieces.append((position, piece))
    return pieces


def decode_ids(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """Texts of rows of token ids, of any lengths, in which -100 stands for padding."""
    rows = ids.tolist() if hasattr(ids, "tolist") else ids
    rows = [[token if token >= 0 else tokenizer.pad_token_id for token in row] for row in rows]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def copied_vocabulary(model: PreTrainedModel) -> int | None:
    """The vocabulary's size of a model that copies unknown words of its source; None for any other."""
    copies = getattr(model.config, "pointer_generator", False) and model.config.unk_token_id is not None
    return model.config.vocab_size if copies else None
