"""One long text as windows that follow each other: what truncated backpropagation through time reads."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from hfseq.errors import InputError


class TokenWindows(IterableDataset):
    """Windows of a text, several places of it side by side, so that each window goes on where the last one ended.

    The tokens are cut into columns of the same length that are read in parallel; a model whose state is carried from
    window to window has then read each column from its beginning (Mikolov et al. 2010, section 2; Zaremba et al.
    2014, section 4). Each token but the first is predicted once an epoch; what the last columns lack is filled up
    with `pad_id` and labels of -100.

    In training the lengths of windows vary around `length`, as in Merity et al. 2018, section 4.1: now and then half
    of it, then within a few tokens, so that it is not always the same tokens that are learned without their past. An
    epoch always has the same number of windows.

    Args:
        ids: The tokens of the whole text `[N]`, N at least 2; they may lie in a file (`np.memmap`).
        length: Tokens of a window, about the mean where lengths vary.
        columns: Columns of all processes together.
        seed: Of the lengths; None for windows that all have `length`, but for the last.
        rank: Number of this process, which reads its own columns.
        num_replicas: How many processes there are.
        pad_id: Fills the last columns up.

    Raises:
        InputError: There are fewer tokens to predict than columns, or processes cannot share the columns evenly.
    """

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
            raise InputError(
                f"a text of {len(self.ids)} tokens is too short to be read at {columns} places at once; give a "
                "smaller batch size"
            )
        if columns % num_replicas:
            raise InputError(f"{num_replicas} processes cannot share {columns} places of a text evenly")
        self.length, self.seed, self.pad_id, self.epoch = length, seed, pad_id, 0
        self.height = -(-(len(self.ids) - 1) // columns)
        own = columns // num_replicas
        self.starts = [column * self.height for column in range(rank * own, (rank + 1) * own)]

    def __len__(self) -> int:
        return -(-self.height // self.length)

    def set_epoch(self, epoch: int) -> None:
        """Choose the lengths of an epoch, from 0."""
        self.epoch = epoch

    def bounds(self) -> list[int]:
        """Where in a column the windows of this epoch begin, and the end of the last."""
        count = len(self)
        if self.seed is None:
            return [*range(0, self.height, self.length), self.height]
        rng = np.random.default_rng([self.seed, self.epoch])
        means = np.where(rng.random(count) < 0.95, self.length, self.length / 2)
        # Merity et al. take a standard deviation of 5 tokens for a length of 70.
        lengths = np.maximum(rng.normal(means, self.length / 14), self.length / 10)
        ends = np.rint(np.cumsum(lengths) * (self.height / lengths.sum())).astype(int)
        # Each window has at least one token, however short the text and the windows are.
        places = np.arange(1, count + 1)
        ends = np.maximum.accumulate(np.maximum(ends - places, 0)) + places
        ends = np.minimum(ends, self.height - np.arange(count)[::-1])
        return [0, *ends.tolist()]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield `input_ids`, `labels` and `shift_labels` `[columns of this process, T]`.

        Both labels are the tokens of the next step: a Trainer counts `shift_labels`, and a model takes them as they
        are.
        """
        bounds = self.bounds()
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
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
