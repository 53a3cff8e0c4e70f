"""Tokenizer that adds the characters of each token to its encodings."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PaddingStrategy

FIRST_CHARACTER = 2
"""Id of the first known character; 0 is no character, 1 the unknown one."""


class WordCharacterTokenizer(PreTrainedTokenizerFast):
    """Fast tokenizer whose encodings also have `char_ids`, the characters of each token as they are in the text.

    A row of `char_ids` has a list of ids for each token: one for each character, case-sensitive, after NFC
    normalisation; empty for special tokens and padding. In a batch of tensors they are `[B, T, L]`, 0 after the last
    character of each token, with L the length of the longest token, or `max_characters` without padding. Longer tokens
    lose their middle.

    It takes the arguments of `PreTrainedTokenizerFast` and two more, which are saved with it:

    - `characters`: string of all known characters; see `known_characters`.
    - `max_characters`: maximum number of characters of a token, by default 24.
    """

    model_input_names = ["input_ids", "attention_mask", "char_ids"]

    # No `__init__`: transformers would then rebuild the backend from its parts instead of reading its file.

    @property
    def max_characters(self) -> int:
        """Maximum number of characters of a token."""
        return self.init_kwargs.get("max_characters", 24)

    @property
    def char_vocab_size(self) -> int:
        """Number of character ids, including those of no character and of the unknown character."""
        return FIRST_CHARACTER + len(self._characters())

    def _characters(self) -> str:
        if "characters" not in self.init_kwargs:
            raise ValueError("a WordCharacterTokenizer needs characters=…, a string of all that are known")
        return self.init_kwargs["characters"]

    def spell(self, word: str) -> list[int]:
        """Character ids of a word, at most `max_characters`."""
        if "_char_table" not in self.__dict__:
            places = enumerate(self._characters(), FIRST_CHARACTER)
            self._char_table = {character: place for place, character in places}
        word, limit = unicodedata.normalize("NFC", word.strip()), self.max_characters
        if len(word) > limit:
            word = word[: limit - limit // 2] + word[len(word) - limit // 2 :]
        return [self._char_table.get(character, 1) for character in word]

    def _encode_plus(  # type: ignore[override]
        self,
        text: Any,
        text_pair: Any = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        is_split_into_words: bool = False,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        options = {"padding_strategy": padding_strategy, "is_split_into_words": is_split_into_words, **kwargs}
        encoded = super()._encode_plus(text, text_pair, **options)
        several = isinstance(text, list | tuple)
        if is_split_into_words:
            several = several and bool(text) and isinstance(text[0], list | tuple)
        texts = list(text) if several else [text]
        pairs = list(text_pair) if several and text_pair is not None else [text_pair] * len(texts)
        samples = encoded.get("overflow_to_sample_mapping", range(len(texts)))
        rows = []
        for encoding, sample in zip(encoded.encodings, samples, strict=True):
            # A pair may also be passed as one item.
            kind = str if not is_split_into_words else list | tuple
            whole = texts[sample]
            is_pair = isinstance(whole, list | tuple) and bool(whole) and isinstance(whole[0], kind)
            sides = whole if is_pair and pairs[sample] is None else (whole, pairs[sample])
            rows.append(self._spell_tokens(encoding, sides, is_split_into_words))
        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            rows = _same_lengths(rows)
        elif return_tensors is not None:
            # A pipeline encodes texts one by one, and pads their tensors in the second dimension only.
            rows = _same_lengths(rows, self.max_characters)
        single = not several and "overflow_to_sample_mapping" not in encoded
        if return_tensors is None:
            encoded["char_ids"] = rows[0] if single else rows
            return encoded
        values = {name: [value] if single else value for name, value in encoded.items()}
        return BatchEncoding({**values, "char_ids": rows}, encoded.encodings, tensor_type=return_tensors)

    def _spell_tokens(self, encoding: Any, sides: Sequence[Any], is_split_into_words: bool) -> list[list[int]]:
        """Character ids of each token of an encoding of one text or a pair."""
        rows: list[list[int]] = []
        places = zip(encoding.offsets, encoding.word_ids, encoding.sequence_ids, strict=True)
        for (start, end), word, side in places:
            source = None if side is None else sides[side][word] if is_split_into_words else sides[side]
            rows.append([] if source is None else self.spell(source[start : _composed_end(source, start, end)]))
        return rows

    def pad(self, encoded_inputs: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Pad a batch as any tokenizer does, and the characters of its tokens to one length."""
        if isinstance(encoded_inputs, list | tuple) and encoded_inputs and "char_ids" in encoded_inputs[0]:
            encoded_inputs = {name: [row[name] for row in encoded_inputs] for name in encoded_inputs[0]}
        if "char_ids" not in encoded_inputs:
            return super().pad(encoded_inputs, *args, **kwargs)
        rows = encoded_inputs["char_ids"]
        rows = rows.tolist() if hasattr(rows, "tolist") else [_plain(row) for row in rows]
        ids = _plain(encoded_inputs[self.model_input_names[0]])
        single = not ids or not hasattr(_plain(ids[0]), "__len__")
        padded = _same_lengths([rows])[0] if single else _same_lengths(rows)
        return super().pad({**encoded_inputs, "char_ids": padded}, *args, **kwargs)

    def _pad(
        self,
        encoded_inputs: Any,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> dict[str, Any]:
        padded = super()._pad(
            encoded_inputs, max_length, padding_strategy, pad_to_multiple_of, padding_side, return_attention_mask
        )
        rows = padded.get("char_ids")
        if rows is not None:
            none = [0] * max(map(len, rows), default=1)
            missing = [none] * (len(padded[self.model_input_names[0]]) - len(rows))
            right = (padding_side or self.padding_side) == "right"
            padded["char_ids"] = [*rows, *missing] if right else [*missing, *rows]
        return padded


def _composed_end(source: str, start: int, end: int) -> int:
    """End of a token, moved past combining characters (accents, jamo) that the tokenizer cuts off its last letter."""
    while start < end < len(source) and not source[end].isascii():
        one, more = (len(unicodedata.normalize("NFC", source[start:stop])) for stop in (end, end + 1))
        if more > one:
            break
        end += 1
    return end


def known_characters(texts: Iterable[str]) -> str:
    """Characters of texts, most frequent first. Those seen once are left out, so that the unknown one is trained."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(unicodedata.normalize("NFC", text))
    known = [character for character, count in counts.items() if count > 1 and not character.isspace()]
    return "".join(sorted(known, key=lambda character: (-counts[character], character)))


def _same_lengths(rows: Sequence[Sequence[Sequence[int]]], width: int = 1) -> list[list[list[int]]]:
    """Pad the characters of each token with zeros to the longest one, at least to `width`."""
    width = max([width, *(len(word) for row in rows for word in row)])
    return [[[*word, *[0] * (width - len(word))] for word in row] for row in rows]


def _plain(row: Any) -> Any:
    return row.tolist() if hasattr(row, "tolist") else row
