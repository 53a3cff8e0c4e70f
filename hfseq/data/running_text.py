"""Running text as one sequence of tokens."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from hfseq.errors import InputError

# Lines that are encoded at once.
_CHUNK = 10_000


class RunningText(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: The tokens `[N]`, int32, the end mark after each line.
        words: Number of words between spaces and of ends of lines: what a perplexity of words is a mean over.
    """

    ids: np.ndarray
    words: int


def lines_of(texts: Iterable[str | None]) -> Iterator[str]:
    """The lines of rows of text, empty ones too."""
    for text in texts:
        yield from (text or "").split("\n")


def encode_text(
    texts: Iterable[str | None], tokenizer: PreTrainedTokenizerBase, directory: str | None = None
) -> RunningText:
    """Encode running text, a chunk of lines at a time.

    Args:
        texts: Rows, of a line or of several.
        tokenizer: Of the model; it needs an end mark, which stands after each line.
        directory: Where to keep the tokens in a file, for texts larger than memory: one without a name, which is gone
            when the process is. None keeps them in memory.

    Raises:
        InputError: The tokenizer has no end mark, or there is no text.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError("a language model needs a tokenizer with an end mark (eos_token)")
    words, chunks = 0, []
    lines = lines_of(texts)
    file = None if directory is None else tempfile.TemporaryFile(dir=directory)
    while chunk := list(itertools.islice(lines, _CHUNK)):
        words += sum(len(line.split()) + 1 for line in chunk)
        rows = tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids = np.fromiter(itertools.chain.from_iterable((*row, end) for row in rows), dtype=np.int32)
        if file is None:
            chunks.append(ids)
        else:
            file.write(ids.tobytes())
    if not words:
        raise InputError("there is no text")
    if file is None:
        return RunningText(np.concatenate(chunks), words)
    file.flush()
    return RunningText(np.memmap(file, dtype=np.int32, mode="r"), words)


def encodable(text: str) -> str:
    """The text as tokenizers take it: half a character, which JSON can hold, is a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
