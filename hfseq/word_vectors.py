"""Pretrained word vectors (GloVe, word2vec, fastText) for the embeddings of any transformers model."""

import codecs
import gzip
import logging
import math
import os
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.errors import InputError

logger = logging.getLogger(__name__)

# File and line number.
_Place = tuple[str | os.PathLike[str], int]
_NUMBER_BYTES = b"0123456789+-.eE "
# Before a token under test. A rare letter, which no vocabulary has as the start of a word with punctuation.
_ANCHOR = "q"


class WordVectorCoverage(NamedTuple):
    """How many words got a vector; as a string, one line to print.

    Attributes:
        found: Tokens of the tokenizer, as it was, that got a vector.
        total: Tokens of the tokenizer, as it was, that stand for a word: neither special nor a piece of a word.
        added: Words added to the tokenizer with their vectors.
    """

    found: int
    total: int
    added: int = 0

    @property
    def ratio(self) -> float:
        """The share of `total` that was found, from 0 to 1."""
        return self.found / self.total if self.total else 0.0

    def __str__(self) -> str:
        added = f"; {self.added} more words added" if self.added else ""
        return f"{self.found} of {self.total} words of the tokenizer ({self.ratio:.1%}) have a vector{added}"


def load_word_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | os.PathLike[str],
    freeze: bool = False,
    *,
    ignore_case: bool = True,
    add_words: int = 0,
) -> WordVectorCoverage:
    """Write pretrained word vectors into the input embeddings of a model.

    The file is text, GloVe's (a word and its values on each line) or that of word2vec and fastText (the same after a
    line `count width`), plain or gzipped whatever its name. Words may contain spaces, as some of GloVe's do, and the
    first vector of a word counts. The file is read once, line by line; only what the vocabulary needs stays in memory.
    Every line is checked, and until all are read nothing is changed.

    A token gets the vector of a word if the tokenizer makes that one token of the word in running text. So `▁word`,
    `Ġword` and `word</w>` get the vector of "word"; `##ing`, or `ing` where words begin with a mark, gets none.
    Special tokens, padding and tokens without a vector keep their initial values. Those spread by the config's
    `initializer_range`; set it to about the standard deviation of the vectors for words of both kinds to start alike
    (Kim 2014, section 4, further observations).

    Args:
        model: Any model with an `nn.Embedding` for its tokens. A sequence-to-sequence model that does not share its
            embeddings gets the vectors in its encoder; pass `model.decoder` to fill those of the decoder.
        tokenizer: Its tokenizer.
        path: The file.
        freeze: Whether training leaves the embeddings as they are: all rows, those without a vector too. An output
            layer tied to them is the same matrix, so it is frozen with them. A checkpoint does not save this.
        ignore_case: Whether a token whose word is not in the file gets the vector of the first word there that
            differs only in case: "The" that of "the" from a lower-cased file, "hut" that of "Hut" in a lower-casing
            tokenizer.
        add_words: How many words of the file that the tokenizer lacks to add, the first ones, which in the published
            files are the most frequent. The tokenizer must be of whole words (`WordLevel`, as
            `train_tokenizer(model="word")` makes); it and the model's vocabulary grow in place, and both have to be
            saved. `model` must then be the whole model, since its output layer grows too. A word that the tokenizer
            would split, such as "n't", is passed over.

    Returns:
        How many words got a vector.

    Raises:
        InputError: The file cannot be read, has no vectors, vectors of another width than the embeddings, a broken
            line, or no word of the tokenizer; the tokenizer has more tokens than the model; the model has no
            `nn.Embedding`; `add_words` with a tokenizer of subwords.
    """
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise InputError(
            f"the input embeddings of {type(model).__name__} are a {type(embeddings).__name__}, not nn.Embedding"
        )
    vocabulary = tokenizer.get_vocab()
    next_id = max(vocabulary.values()) + 1
    if next_id > embeddings.num_embeddings:
        raise InputError(
            f"the tokenizer has ids up to {next_id - 1}, but the embeddings of {type(model).__name__} have "
            f"{embeddings.num_embeddings} rows; model.resize_token_embeddings({next_id}) makes room"
        )
    if add_words and not _is_of_words(tokenizer):
        raise InputError("add_words needs a tokenizer of whole words (WordLevel); this one splits words into pieces")
    words = _words_of_tokens(tokenizer)

    def fold(word: str) -> str:
        return word.lower() if ignore_case else word

    wanted, wanted_folded = set(words.values()), {fold(word) for word in words.values()}
    exact: dict[str, np.ndarray] = {}
    folded: dict[str, np.ndarray] = {}
    added: dict[str, np.ndarray] = {}
    largest = min(torch.finfo(dtype).max for dtype in (embeddings.weight.dtype, torch.float32))
    lines = 0
    for place, word, values in _read_vectors(path, embeddings.embedding_dim, type(model).__name__):
        lines += 1
        key = fold(word)
        is_exact = word in wanted and word not in exact
        is_folded = key in wanted_folded and key not in folded
        token = _token_of_word(tokenizer, word, fold) if len(added) < add_words else None
        if token in vocabulary or token in added:
            token = None
        if is_exact or is_folded or token:
            vector = _parse(place, values, largest)
            if is_exact:
                exact[word] = vector
            if is_folded:
                folded[key] = vector
            if token:
                added[token] = vector

    rows: dict[int, np.ndarray] = {}
    for index, word in words.items():
        if word in exact or fold(word) in folded:
            rows[index] = exact[word] if word in exact else folded[fold(word)]
    coverage = WordVectorCoverage(len(rows), len(words), len(added))
    if not lines:
        raise InputError(f"{path}: empty, no vectors")
    if not rows and not added:
        raise InputError(
            f"{path}: none of its {lines} words is among the {len(words)} words of the tokenizer; is it of another "
            "language, or are the tokens pieces of words?"
        )

    if added:
        rows |= dict(enumerate(added.values(), next_id))
        if next_id + len(added) > embeddings.num_embeddings:
            model.resize_token_embeddings(next_id + len(added))
        _extend(tokenizer, {token: index for index, token in enumerate(added, next_id)})
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    with torch.no_grad():
        indices = torch.tensor(list(rows), device=weight.device)
        weight[indices] = torch.from_numpy(np.stack(list(rows.values()))).to(weight)
    if freeze:
        weight.requires_grad_(False)
    return coverage


# Tokens and words


def _words_of_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The word that each token id stands for; without special tokens and pieces of words."""
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    words: dict[int, str] = {}
    for token, index in tokenizer.get_vocab().items():
        # A decoder may spoil tokens that were added, since a vocabulary spells its own differently.
        text = token if index in added else tokenizer.decode([index], clean_up_tokenization_spaces=False)
        word = str(text).strip(string.whitespace)
        if word and index not in special:
            words[index] = word
    if _is_of_words(tokenizer):
        return words

    # A word in running text is after a space, or, if it is a punctuation mark or begins with one ("'s"), after a word.
    candidates = [(index, word, f"{_ANCHOR} {word}") for index, word in words.items()]
    marks = [(index, word) for index, word in words.items() if unicodedata.category(word[0])[0] in "PS"]
    candidates += [(index, word, f"{_ANCHOR}{word}") for index, word in marks]
    before = _ids(tokenizer, [_ANCHOR])[0]
    encoded = _ids(tokenizer, [text for _, _, text in candidates])
    return {
        index: word
        for (index, word, _), ids in zip(candidates, encoded, strict=True)
        if index in added or ids == [*before, index]
    }


def _is_of_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each token is a whole word; a tokenizer of characters is a `WordLevel` model too."""
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    return isinstance(model, WordLevel) and len(_pieces(tokenizer, _ANCHOR * 2)) == 1


def _token_of_word(tokenizer: PreTrainedTokenizerBase, word: str, fold: Callable[[str], str]) -> str | None:
    """What a tokenizer of words looks up for a word in running text; None if it splits or changes the word."""
    pieces = _pieces(tokenizer, f"{_ANCHOR} {word}")
    if len(pieces) != 2:
        return None
    text = tokenizer.convert_tokens_to_string(pieces[1:]).strip(string.whitespace)
    if fold(text) != fold(word):
        return None
    return pieces[1]


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """What a fast tokenizer splits a text into before its model sees it."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _extend(tokenizer: PreTrainedTokenizerBase, tokens: dict[str, int]) -> None:
    """Give a tokenizer of words more tokens, with their ids.

    `add_tokens` would cut them out of the text before it is split at spaces, and lose the spaces.
    """
    backend = tokenizer.backend_tokenizer
    backend.model = WordLevel(tokenizer.get_vocab() | tokens, unk_token=backend.model.unk_token)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


# Files


def _read_vectors(path: str | os.PathLike[str], width: int, model_name: str) -> Iterator[tuple[_Place, str, bytes]]:
    """Place, word and values, separated by spaces, of each line but the header.

    Every line is checked, needed or not: a broken file is not to depend on the vocabulary.
    """
    promised = None
    count = 0
    for number, line in _read_lines(path):
        if not line:
            continue
        place = (path, number)
        if not count and promised is None:
            promised, found = _layout(line)
            if found not in (None, width):
                raise _broken(
                    place,
                    f"vectors of width {found}, but the embeddings of {model_name} are {width} wide; "
                    f"set embedding_size={found} for a new model of hfseq",
                )
            if promised is not None:
                continue
        count += 1
        word, _, values = line.partition(b" ")
        if values.count(b" ") != width - 1 or values.translate(None, _NUMBER_BYTES):
            word, values = _split_unusual(place, line, width)
        elif not _are_numbers(values):
            _parse(place, values, math.inf)  # says which
        if not word:
            raise _broken(place, "no word before the values")
        try:
            text = word.decode()
        except UnicodeDecodeError as error:
            raise _broken(place, f"not UTF-8 (byte 0x{word[error.start]:02x}); the file must be text") from None
        yield place, text, values
    if promised is not None and promised != count:
        logger.warning("%s: the first line promises %d vectors, but there are %d", path, promised, count)


def _read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with open(path, "rb") as raw:
            zipped = raw.peek(2).startswith(b"\x1f\x8b")
            for number, line in enumerate(gzip.GzipFile(fileobj=raw) if zipped else raw, 1):
                # word2vec and fastText end their lines with a space.
                yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip(b" \r\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of word vectors") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken((path, number + 1), f"the gzip file is cut off or damaged ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _layout(line: bytes) -> tuple[int | None, int | None]:
    """Number of vectors and their width by the first line; the number only of a header, None where it does not say."""
    fields = line.split(b" ")
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1])
    plain = len(fields) > 1 and all(_is_number(field) for field in fields[1:])
    return None, len(fields) - 1 if plain else None


def _split_unusual(place: _Place, line: bytes, width: int) -> tuple[bytes, bytes]:
    """Word and values of a line whose word may contain spaces, or that is broken."""
    parts = line.rsplit(b" ", width)
    _, space, last = parts[0].rpartition(b" ")
    if len(parts) <= width or space and _is_number(last):
        raise _broken(place, f"{line.count(b' ')} values where {width} are expected")
    values = b" ".join(parts[1:])
    _parse(place, values, math.inf)
    return parts[0], values


def _parse(place: _Place, values: bytes, largest: float) -> np.ndarray:
    """The values as an array `[width]`; they must be finite in the type of the embeddings, so not above `largest`."""
    numbers = []
    for value in values.split(b" "):
        if not _is_number(value):
            raise _broken(place, f"{value.decode(errors='backslashreplace')!r} is not a number")
        numbers.append(float(value))
        if not (math.isfinite(numbers[-1]) and abs(numbers[-1]) <= largest):
            raise _broken(place, f"{value.decode()} is not finite, or too large for the type of the embeddings")
    return np.array(numbers, dtype=np.float32)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field  # which Python takes in 1_000


def _are_numbers(values: bytes) -> bool:
    """Whether all are finite numbers, quicker than one by one."""
    try:
        return math.isfinite(math.fsum(map(float, values.split(b" "))))
    except (ValueError, OverflowError):
        return False


def _broken(place: _Place, what: str) -> InputError:
    path, number = place
    return InputError(f"{path}, line {number}: {what}")
