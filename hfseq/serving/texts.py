"""Incremental decoding of tokens to text, for any tokenizer, and stop strings in it."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

# The part of a character that has not come yet is decoded to this.
_INCOMPLETE = "\ufffd"
# Tokens of a prompt that decide on the space before the first new one.
_CONTEXT = 8
# A character has four bytes at most; more tokens without one are no characters.
_MAX_HELD = 8


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of token ids without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True)


def continuation(tokenizer: Any, context: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` as the continuation of `context`, with the space that is between them."""
    before = list(context[-_CONTEXT:])
    return decode(tokenizer, before + list(ids))[len(decode(tokenizer, before)) :]


class TextStream:
    """Decodes tokens as they come, and holds those back that end inside a character.

    Decoders remove or insert spaces depending on the token before. Only a window of tokens that begins with the last
    that was returned is decoded, so that the time for a token does not grow with the length of the text.

    Args:
        tokenizer: The tokenizer.
        context: Tokens before the first; their text is not returned.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._window = list(context[-_CONTEXT:])
        self._returned = len(self._window)
        self._before = decode(tokenizer, self._window)

    def put(self, token: int) -> str:
        """Return the text that is complete with this token, which may be empty."""
        if token in self._special:
            return ""
        self._window.append(token)
        text = decode(self._tokenizer, self._window)
        grown, held = len(text) > len(self._before), len(self._window) - self._returned
        if held < _MAX_HELD and (not grown or text.endswith(_INCOMPLETE)):
            return ""
        if not grown:
            self._window.pop()  # unknown to the tokenizer
            return ""
        piece = text[len(self._before) :]
        self._window = self._window[self._returned :]
        self._returned = len(self._window)
        self._before = decode(self._tokenizer, self._window)
        return piece

    def end(self) -> str:
        """Return the text that has been held back."""
        return decode(self._tokenizer, self._window)[len(self._before) :]


class StopStrings:
    """Finds the first stop string in a text that comes in pieces.

    Args:
        strings: The stop strings; with none of them text passes unchanged.

    Attributes:
        found: Whether a stop string has been found.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def put(self, piece: str) -> str:
        """Return the text that is certain to precede any stop string."""
        text = self._held + piece
        starts = [start for string in self._strings if (start := text.find(string)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """Return the text that has been held back, since it might have become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of a text with which a stop string begins."""
    lengths = range(min(len(string) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(string[:length])), 0)


class TokenTexts:
    """Texts of single tokens as they are in the middle of a text, special tokens included.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # A word before the token shows its space.
        word = next((one for one in range(len(tokenizer)) if decode(tokenizer, [one]).strip().isalpha()), None)
        self._before = [] if word is None else [word]
        self._skipped = len(tokenizer.decode(self._before))
        self.text = lru_cache(maxsize=65536)(self._text)

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([*self._before, token])[self._skipped :]
