"""Segment overlap of tags along a sequence, such as secondary structure of proteins."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from hfseq.metrics.tagging import check_tag_rows


def sov(predictions: Sequence[Sequence[Any]], references: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Compute the segment overlap SOV'99 (Zemla et al. 1999, equations 1 to 3), 0 to 100, mean over the sequences.

    A segment is a run of equal tags. Every reference segment is compared with each predicted segment of its tag that
    overlaps it; a prediction whose ends are off by a few letters counts fully.

    Args:
        predictions: Tags of each sequence.
        references: Tags of each sequence, as many.

    Returns:
        `sov`, which is also `score`.

    Raises:
        ValueError: There are no sequences, or their numbers or lengths differ.
    """
    rows = zip(*check_tag_rows("sov", predictions, references), strict=True)
    score = 100 * float(np.mean([_overlap(*row) for row in rows]))
    return {"sov": score, "score": score}


def _segments(tags: Sequence[Any]) -> list[tuple[Any, int, int]]:
    """Tag, start and end of each run of equal tags."""
    found, start = [], 0
    for tag, run in groupby(tags):
        end = start + sum(1 for _ in run)
        found.append((tag, start, end))
        start = end
    return found


def _overlap(prediction: Sequence[Any], reference: Sequence[Any]) -> float:
    predicted, total, count, first = _segments(prediction), 0.0, 0, 0
    for tag, start, end in _segments(reference):
        size, found = end - start, 0
        while predicted[first][2] <= start:
            first += 1
        at = first
        while at < len(predicted) and predicted[at][1] < end:
            its_tag, its_start, its_end = predicted[at]
            at += 1
            if its_tag != tag:
                continue
            found += 1
            common = min(end, its_end) - max(start, its_start)
            extent = max(end, its_end) - min(start, its_start)
            allowed = min(extent - common, common, size // 2, (its_end - its_start) // 2)
            total += (common + allowed) / extent * size
        count += size * max(found, 1)
    return total / count
