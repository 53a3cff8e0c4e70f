"""Running text as one sequence of token ids, and as the windows of truncated backpropagation through time (BPTT)."""

import io
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from hfseq.errors import InputError

# Lines per call of the tokenizer.
_CHUNK = 10_000


class RunningText(NamedTuple):
    """Token ids of a text.

    Attributes:
        ids: Token ids `[N]`, int32, with EOS after each line.
        words: Number of whitespace-separated words and line ends, the denominator of word-level perplexity.
    """

    ids: np.ndarray
    words: int


def lines_of(texts: Iterable[str | None]) -> Iterator[str]:
    """Yield the lines of rows of text, empty lines included."""
    for text in texts:
        yield from (text or "").split("\n")


def encode_text(
    texts: Iterable[str | None], tokenizer: PreTrainedTokenizerBase, directory: str | None = None
) -> RunningText:
    """Encode running text in chunks of lines.

    Args:
        texts: Rows of one or more lines.
        tokenizer: Tokenizer with an EOS token, which is appended to each line.
        directory: Directory of an unnamed temporary file for the ids, for texts larger than memory; None keeps them in
            memory.

    Raises:
        InputError: The tokenizer has no EOS token, or there is no text.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise InputError("a language model needs a tokenizer with an EOS token (eos_token)")
    words = 0
    lines = lines_of(texts)
    file: Any = io.BytesIO() if directory is None else tempfile.TemporaryFile(dir=directory)
    while chunk := list(itertools.islice(lines, _CHUNK)):
        words += sum(len(line.split()) + 1 for line in chunk)
        rows = tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids = np.fromiter(itertools.chain.from_iterable((*row, eos) for row in rows), dtype=np.int32)
        file.write(ids.tobytes())
    if not words:
        raise InputError("there is no text")
    if directory is None:
        return RunningText(np.frombuffer(file.getbuffer(), np.int32), words)
    file.flush()
    return RunningText(np.memmap(file, dtype=np.int32, mode="r"), words)


def encodable(text: str) -> str:
    """Replace unpaired surrogates, which JSON can contain and tokenizers reject, with "?"."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


class TokenWindows(IterableDataset):
    """BPTT windows of one long text: batches whose rows each continue the same row of the batch before.

    The tokens are cut into `columns` contiguous streams of equal length, one per batch row; a stateful model that
    carries its state from window to window reads each stream from its beginning (Mikolov et al. 2010, section 2;
    Zaremba et al. 2014, section 4). Each token except the first is predicted once per epoch; the last streams are
    padded with `pad_id` and labels of -100.

    In training the window length varies around `length` as in Merity et al. 2018, section 4.1: occasionally half of
    it, then within a few tokens, so that it is not always the same tokens that are predicted with little context. The
    number of windows per epoch is constant.

    Args:
        ids: Token ids of the whole text `[N]`, N at least 2, in memory or in a file (`np.memmap`).
        length: Window length in tokens; roughly the mean if lengths vary.
        columns: Batch size, summed over all processes.
        seed: Random seed of the window lengths; None for a constant `length`, except for the last window.
        rank: Rank of this process, which reads its own batch rows.
        num_replicas: Number of processes.
        pad_id: Padding token id.

    Raises:
        InputError: There are fewer tokens to predict than batch rows, or the batch rows cannot be divided evenly
            among the processes.
    """

    num_workers = 0
    """Workers of the data loader."""

    def __init__(
        self,
        ids: Sequence[int] | np.ndarray,
        length: int,
        columns: int,
        *,
        seed: int | None = None,
        rank: int = 0,
        num_replicas: int = 1,
        pad_id: int = 0,
    ):
        self.ids = np.asarray(ids)
        if len(self.ids) - 1 < columns:
            raise InputError(f"a text of {len(self.ids)} tokens is too short for a batch size of {columns}; reduce it")
        if columns % num_replicas:
            raise InputError(f"a batch size of {columns} cannot be divided evenly among {num_replicas} processes")
        self.length, self.seed, self.pad_id, self.epoch = length, seed, pad_id, 0
        self.height = -(-(len(self.ids) - 1) // columns)
        own = columns // num_replicas
        self.starts = [column * self.height for column in range(rank * own, (rank + 1) * own)]

    def __len__(self) -> int:
        return -(-self.height // self.length)

    def set_epoch(self, epoch: int) -> None:
        """Select the window lengths of an epoch, counted from 0."""
        self.epoch = epoch

    def bounds(self) -> list[int]:
        """Return the offsets at which the windows of this epoch begin, and the end of the last one."""
        count = len(self)
        if self.seed is None:
            return [*range(0, self.height, self.length), self.height]
        rng = np.random.default_rng([self.seed, self.epoch])
        means = np.where(rng.random(count) < 0.95, self.length, self.length / 2)
        # Merity et al. use a standard deviation of 5 tokens for a length of 70.
        lengths = np.maximum(rng.normal(means, self.length / 14), self.length / 10)
        ends = np.rint(np.cumsum(lengths) * (self.height / lengths.sum())).astype(int)
        # Each window has at least one token, however short the text and the windows are.
        least = np.arange(1, count + 1)
        ends = np.maximum.accumulate(np.maximum(ends - least, 0)) + least
        ends = np.minimum(ends, self.height - np.arange(count)[::-1])
        return [0, *ends.tolist()]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield `input_ids`, `labels` and `shift_labels` `[batch rows of this process, T]`.

        Both labels are the tokens of the next step: the Trainer counts `shift_labels`, and models use them unshifted.
        """
        for start, end in itertools.pairwise(self.bounds()):
            window = torch.full((len(self.starts), end - start + 1), -100)
            for row, first in enumerate(self.starts):
                ids = self.ids[first + start : first + end + 1]
                window[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            inputs, labels = window[:, :-1], window[:, 1:].contiguous()
            yield {
                "input_ids": inputs.masked_fill(inputs == -100, self.pad_id),
                "labels": labels,
                "shift_labels": labels,
            }
