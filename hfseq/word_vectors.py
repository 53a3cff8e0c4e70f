"""Pretrained word vectors (GloVe, word2vec, fastText) for the embeddings of any transformers model."""

import codecs
import gzip
import logging
import os
import string
import sys
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
# Precedes a token under test: a rare letter, with which no vocabulary begins a word with punctuation.
_ANCHOR = "q"


class WordVectorCoverage(NamedTuple):
    """Number of words that got a vector; `str()` of it is one line to print.

    Attributes:
        found: Tokens of the original vocabulary that got a vector.
        total: Tokens of the original vocabulary that stand for a word: neither special tokens nor subwords.
        added: Words added to the tokenizer with their vectors.
    """

    found: int
    total: int
    added: int = 0

    @property
    def ratio(self) -> float:
        """Fraction of `total` that was found."""
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

    The file is text in the format of GloVe (a word and its values on each line) or of word2vec and fastText (the same
    after a line `count width`), plain or gzipped whatever its name. Words may contain spaces, as some of GloVe's do;
    of a repeated word the first vector is used. The file is streamed, and only the vectors that are needed stay in
    memory. Every line is validated, and nothing is changed until the whole file has been read.

    A token gets the vector of a word if the tokenizer encodes the word in running text as that single token. So
    `▁word`, `Ġword` and `word</w>` get the vector of "word"; `##ing`, or `ing` where words begin with a marker, gets
    none. Special tokens, padding and tokens without a vector keep their initial values, whose standard deviation is
    the config's `initializer_range`; set it to about that of the vectors, so that both kinds of words start alike
    (Kim 2014, section 4, further observations).

    Args:
        model: Any model with an `nn.Embedding` for its tokens. With separate embeddings of encoder and decoder, the
            encoder's are filled; pass `model.decoder` for the decoder's.
        tokenizer: Tokenizer of the model.
        path: Path of the file.
        freeze: Exclude the embeddings from training: all rows, including those without a vector, and an output layer
            tied to them, which is the same matrix. A checkpoint does not store this.
        ignore_case: Give a token whose word is not in the file the vector of the first word there that differs only in
            case: "The" that of "the" in a lower-cased file, "hut" that of "Hut" with a lower-casing tokenizer.
        add_words: Number of out-of-vocabulary words to add, the first of the file, which in published files are the
            most frequent. The tokenizer must be of whole words (`WordLevel`, as from `train_tokenizer(model="word")`);
            it and the model's vocabulary grow in place, and both must be saved. `model` must then be the whole model,
            since its output layer grows too. Words that the tokenizer would split, such as "n't", are skipped.

    Returns:
        The coverage of the vocabulary.

    Raises:
        InputError: The file cannot be read, is empty or malformed, has vectors of another width than the embeddings,
            or no word of the tokenizer; the tokenizer has more tokens than the model; the model has no `nn.Embedding`,
            as one that reads features and writes no text; `add_words` with a tokenizer of subwords.
    """
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError as error:  # of features, or of a waveform
        message = f"{type(model).__name__} reads {model.main_input_name} and has no token embeddings for word vectors"
        raise InputError(message) from error
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
    if add_words and not _is_word_level(tokenizer):
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
    for place, word, fields in _read_vectors(path, embeddings.embedding_dim, type(model).__name__):
        lines += 1
        token = _token_of_word(tokenizer, word, fold) if len(added) < add_words else None
        uses = [
            (exact, word if word in wanted else None),
            (folded, fold(word) if fold(word) in wanted_folded else None),
            (added, None if token in vocabulary else token),
        ]
        if new := [(vectors, key) for vectors, key in uses if key is not None and key not in vectors]:
            vector = _parse(place, fields, largest).astype(np.float32)
            for vectors, key in new:
                vectors[key] = vector

    # A word with an exact vector has a folded one, too: its own, or that of an earlier word.
    rows = {index: exact.get(word, folded[fold(word)]) for index, word in words.items() if fold(word) in folded}
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
            # The new rows are overwritten; to draw them from the old ones' distribution would only be announced.
            model.resize_token_embeddings(next_id + len(added), mean_resizing=False)
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
    """Token ids to the words they stand for, without special tokens and subwords."""
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    words: dict[int, str] = {}
    for token, index in tokenizer.get_vocab().items():
        # Decoders may garble added tokens, which are not spelled as those of the vocabulary.
        text = token if index in added else tokenizer.decode([index], clean_up_tokenization_spaces=False)
        word = str(text).strip(string.whitespace)
        if word and index not in special:
            words[index] = word
    if _is_word_level(tokenizer):
        return words

    # A word in running text follows a space or, if it is or begins with a punctuation mark ("'s"), a word.
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


def _is_word_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return True if each token is a whole word; a character tokenizer is a `WordLevel` model, too."""
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    return isinstance(model, WordLevel) and len(_pieces(tokenizer, _ANCHOR * 2)) == 1


def _token_of_word(tokenizer: PreTrainedTokenizerBase, word: str, fold: Callable[[str], str]) -> str | None:
    """The token that a word-level tokenizer looks up for a word in running text; None if it splits or alters it."""
    pieces = _pieces(tokenizer, f"{_ANCHOR} {word}")
    if len(pieces) != 2:
        return None
    text = tokenizer.convert_tokens_to_string(pieces[1:]).strip(string.whitespace)
    if fold(text) != fold(word):
        return None
    return pieces[1]


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """The pieces into which a fast tokenizer splits a text before its model sees them."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _extend(tokenizer: PreTrainedTokenizerBase, tokens: dict[str, int]) -> None:
    """Add tokens and their ids to the vocabulary of a word-level tokenizer.

    `add_tokens` would match them before the text is split at spaces, and lose the spaces.
    """
    backend = tokenizer.backend_tokenizer
    backend.model = WordLevel(tokenizer.get_vocab() | tokens, unk_token=backend.model.unk_token)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


# Files


def _read_vectors(
    path: str | os.PathLike[str], width: int, model_name: str
) -> Iterator[tuple[_Place, str, list[bytes]]]:
    """Yield the place, word and values of each line but the header.

    Every line is validated, needed or not: whether a file is broken must not depend on the vocabulary.
    """
    promised, count = None, 0
    for number, line in _read_lines(path):
        place = (path, number)
        if not count and promised is None:
            header = line.split(b" ")
            is_header = len(header) == 2 and all(field.isdigit() for field in header)
            found = int(header[1]) if is_header else len(header) - 1
            if found != width and (is_header or found and all(map(_is_number, header[1:]))):
                raise _broken(
                    place,
                    f"vectors of width {found}, but the embeddings of {model_name} are {width} wide; "
                    f"set embedding_size={found} for a new model of hfseq",
                )
            if is_header:
                promised = int(header[0])
                continue
        count += 1
        # Words may contain spaces.
        word, *fields = line.rsplit(b" ", width)
        if len(fields) < width or b" " in word and _is_number(word.rpartition(b" ")[2]):
            raise _broken(place, f"{line.count(b' ')} values where {width} are expected")
        _parse(place, fields, sys.float_info.max)
        if not word:
            raise _broken(place, "no word before the values")
        try:
            text = word.decode()
        except UnicodeDecodeError as error:
            raise _broken(place, f"not UTF-8 (byte 0x{word[error.start]:02x}); the file must be text") from None
        yield place, text, fields
    if promised is not None and promised != count:
        logger.warning("%s: the first line promises %d vectors, but there are %d", path, promised, count)


def _read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    number = 0
    try:
        with open(path, "rb") as raw:
            zipped = raw.peek(2).startswith(b"\x1f\x8b")
            for number, line in enumerate(gzip.GzipFile(fileobj=raw) if zipped else raw, 1):
                # word2vec and fastText end their lines with a space.
                line = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip(b" \r\n")
                if line:
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of word vectors") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken((path, number + 1), f"the gzip file is truncated or damaged ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(place: _Place, fields: list[bytes], largest: float) -> np.ndarray:
    """The values of a line as float64 `[width]`, all finite and at most `largest` in magnitude."""
    try:
        vector = np.fromiter(map(float, fields), np.float64, len(fields))
        if np.abs(vector).max() <= largest and b"_" not in b"".join(fields):
            return vector
    except ValueError:
        pass
    bad = next(field for field in fields if not (_is_number(field) and abs(float(field)) <= largest))
    text = bad.decode(errors="backslashreplace")
    if _is_number(bad):
        raise _broken(place, f"{text} is not finite, or too large for the type of the embeddings")
    raise _broken(place, f"{text!r} is not a number")


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field  # Python accepts 1_000


def _broken(place: _Place, what: str) -> InputError:
    path, number = place
    return InputError(f"{path}, line {number}: {what}")
