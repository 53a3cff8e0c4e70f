"""Checkpoint averaging.

Averaging the last checkpoints of a run follows Vaswani et al. 2017, section 6.1; that the mean of points along a run
generalizes better than its end point is shown by Izmailov et al. 2018 (stochastic weight averaging). Batch
normalization statistics are averaged as well, not recomputed.
"""

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from hfseq.errors import InputError, one_line
from hfseq.json_files import shards
from hfseq.training.checkpoints import is_complete, list_checkpoints

logger = logging.getLogger(__name__)


def last_checkpoints(output_dir: str | os.PathLike, n: int) -> list[str]:
    """Return the last `n` complete checkpoints in `output_dir`, oldest first; fewer, with a warning, if that is all.

    Rotation always keeps the best checkpoint: with `save_total_limit=n`, an early best one is among them. A run that
    stopped early may have fewer, and its result should not be lost.

    Raises:
        InputError: `n` is below 1, or there is no complete checkpoint.
    """
    if n < 1:
        raise InputError(f"cannot average {n} checkpoints; give 1 or more")
    complete = [str(path) for _, path in list_checkpoints(output_dir) if is_complete(path)]
    if not complete:
        raise InputError(f"cannot average the last {n} checkpoints: {output_dir} has no complete one")
    if len(complete) < n:
        logger.warning("%s has only %d complete checkpoints; averaging these, not %d", output_dir, len(complete), n)
    return complete[-n:]


def average_checkpoints(directories: Sequence[str | os.PathLike]) -> dict[str, torch.Tensor]:
    """Average the weights in `directories` into a state dict on the CPU.

    A directory holds the output of `save_pretrained`, the Trainer or Accelerate's `save_state`, in one file or
    sharded. Sums are accumulated in float64; the result has each weight's dtype. Integer tensors (counters, indices)
    are taken from the last checkpoint. One checkpoint is read at a time. The prefix `module.` of a distributed
    wrapper is removed from the names.

    Raises:
        InputError: No directory is given, weights are missing or corrupt, or their names, shapes or dtypes differ.
    """
    if not directories:
        raise InputError("no checkpoints to average")
    total: dict[str, torch.Tensor] = {}
    layout: dict[str, tuple[torch.Size, torch.dtype]] = {}
    first = directories[0]
    for number, directory in enumerate(directories):
        found = set()
        for name, tensor in _weights(Path(directory)):
            found.add(name)
            if not number:
                layout[name] = (tensor.shape, tensor.dtype)
            if name not in layout:
                raise InputError(
                    f"{directory} has weight {name!r} that {first} lacks; average one model's checkpoints"
                )
            if layout[name] != (tensor.shape, tensor.dtype):
                (there, kind), here = layout[name], tensor.shape
                raise InputError(
                    f"{directory}: {name} is {list(here)} {tensor.dtype}, and {list(there)} {kind} in {first}; "
                    "average one model's checkpoints"
                )
            if not tensor.is_floating_point():
                total[name] = tensor.clone()
            elif number:
                total[name] += tensor
            else:
                total[name] = tensor.double()
        if missing := sorted(layout.keys() - found):
            raise InputError(f"{directory} lacks weight {missing[0]!r} of {first}; average one model's checkpoints")
    cut = len("module.") if all(name.startswith("module.") for name in total) else 0
    for name, (_, kind) in layout.items():
        mean = total.pop(name)
        total[name[cut:]] = (mean / len(directories)).to(kind) if kind.is_floating_point else mean
    return total


def load_average(model: PreTrainedModel, directories: Sequence[str | os.PathLike]) -> None:
    """Load the average of the checkpoints in `directories` into `model`, on its device.

    Tied weights may be saved under only one of their names.

    Raises:
        InputError: As for `average_checkpoints`, or the checkpoints are those of another model.
    """
    try:
        result = model.load_state_dict(average_checkpoints(directories), strict=False)
    except RuntimeError as error:
        raise InputError(f"{directories[0]}: {one_line(error)}") from None
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    odd = [*result.unexpected_keys, *(name for name in result.missing_keys if name not in tied)]
    if odd:
        raise InputError(f"{directories[0]} is of another model than {type(model).__name__}: see weight {odd[0]!r}")


def _weights(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over the names and weights in `directory`, on the CPU."""
    try:
        for path in _files(directory):
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as stored:
                    for name in stored.keys():  # noqa: SIM118, it is no dict
                        yield name, stored.get_tensor(name)
            else:
                yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{directory}: weights cannot be read: {one_line(error)}") from error


def _files(directory: Path) -> list[Path]:
    """Return the weight files: a single one, or the shards listed in an index."""
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (directory / whole).is_file():
            return [directory / whole]
        if (directory / index).is_file():
            try:
                return shards(directory / index)
            except InputError as error:
                raise InputError(f"{directory}: weights cannot be read: {error}") from error
    raise InputError(f"{directory} has no weights ({SAFE_WEIGHTS_NAME}, {WEIGHTS_NAME}, or shards of one)")
