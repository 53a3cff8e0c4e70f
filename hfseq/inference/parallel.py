"""Inference on batches of similar length, distributed over all processes."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm


def run_by_length(
    lengths: Sequence[int], batch_size: int, run: Callable[[list[int]], Sequence[Any]], progress: str | None = None
) -> list[Any]:
    """Run batches of rows of similar length, distributed over all processes.

    Args:
        lengths: Length of each row.
        batch_size: Batch size.
        run: Function from the indices of the rows of a batch to one result per row.
        progress: Title of a progress bar; None for no progress bar.

    Returns:
        Results in the order of the rows, the same on every process.
    """
    state = PartialState()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    found: list[tuple[int, Any]] = []
    own = groups[state.process_index :: state.num_processes]
    for group in tqdm(own, desc=progress, disable=progress is None or not state.is_main_process):
        found += zip(group, run(group), strict=True)
    merged = dict(gather_object(found))
    return [merged[row] for row in range(len(lengths))]
