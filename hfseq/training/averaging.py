"""Checkpoint averaging.

Averaging the last checkpoints of a run follows Vaswani et al. 2017, section 6.1; that the mean of points along a run
generalizes better than its end point is shown by Izmailov et al. 2018 (stochastic weight averaging). Batch
normalization statistics are averaged as well, not recomputed.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hfseq.errors import InputError, blaming, one_line
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
    layout: dict[str, tuple[list[int], torch.dtype]] = {}
    first, advice = directories[0], "average one model's checkpoints"
    for directory in directories:
        weights = _weights(Path(directory))
        here = {name: (list(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
        layout = layout or here
        for name in sorted(here.keys() | layout.keys()):
            if name not in layout:
                raise InputError(f"{directory} has weight {name!r} that {first} lacks; {advice}")
            if name not in here:
                raise InputError(f"{directory} lacks weight {name!r} of {first}; {advice}")
            if here[name] != layout[name]:
                (shape, dtype), (there, kind) = here[name], layout[name]
                raise InputError(f"{directory}: {name} is {shape} {dtype}, and {there} {kind} in {first}; {advice}")
            tensor = weights.pop(name)
            if not tensor.is_floating_point():
                total[name] = tensor.clone()
            elif name in total:
                total[name] += tensor
            else:
                # A copy even of float64, since tied weights may share their memory.
                total[name] = tensor.to(torch.float64, copy=True)
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
    average = average_checkpoints(directories)
    with blaming(str(directories[0])):
        result = model.load_state_dict(average, strict=False)
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    odd = [*result.unexpected_keys, *(name for name in result.missing_keys if name not in tied)]
    if odd:
        raise InputError(f"{directories[0]} is of another model than {type(model).__name__}: see weight {odd[0]!r}")


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    """Return the weights in `directory` by name, on the CPU."""
    weights: dict[str, torch.Tensor] = {}
    try:
        for path in _files(directory):
            if path.suffix == ".safetensors":
                weights |= load_file(path)
            else:
                weights |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # of a torn file, its pickle or its index
        raise InputError(f"{directory}: weights cannot be read: {one_line(error, named=not str(error))}") from error
    if not weights:
        raise InputError(f"{directory} has no weights ({SAFE_WEIGHTS_NAME}, {WEIGHTS_NAME}, or shards of one)")
    return weights


def _files(directory: Path) -> list[Path]:
    """Return the weight files: a single one, the shards listed in an index, or none."""
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (directory / whole).is_file():
            return [directory / whole]
        if (directory / index).is_file():
            return shards(directory / index)
    return []
