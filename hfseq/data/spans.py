"""Spans of anomalous steps in a series."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Span = tuple[int, int]
"""First step, and the one after the last."""


def event_spans(labels: ArrayLike) -> list[Span]:
    """Return the runs of anomalous steps in labels `[T]`, 0 or False at normal steps."""
    flags = np.asarray(labels) != 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def step_labels(events: Sequence[Span], length: int) -> NDArray[np.bool_]:
    """Return labels `[length]`, True within the events."""
    labels = np.zeros(length, dtype=bool)
    for start, stop in events:
        labels[start:stop] = True
    return labels


def probationary_length(length: int) -> int:
    """Number of first rows that NAB does not score: 15 %, at most 750."""
    return min(math.floor(0.15 * length), 750)
