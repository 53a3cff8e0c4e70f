"""The mean of the weights of several checkpoints.

Averaging the last checkpoints of a run is Vaswani et al. 2017, section 6.1; that the mean of points along a run
generalises better than its end is Izmailov et al. 2018 (stochastic weight averaging). Statistics of batch
normalisation are averaged as they are, not measured again.
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
from hfseq.training.checkpoints import _checkpoints, is_complete

logger = logging.getLogger(__name__)


def last_checkpoints(output_dir: str | os.PathLike, n: int) -> list[str]:
    """The last `n` complete checkpoints of `output_dir`, oldest first; all, with a warning, where there are fewer.

    The rotation always keeps the best checkpoint: with `save_total_limit` at `n`, an early best one is among them. A
    run that stopped early may have fewer, which is no reason to lose its result.

    Raises:
        InputError: `n` is below 1, or there is none.
    """
    if n < 1:
        raise InputError(f"cannot average {n} checkpoints; give 1 or more")
    complete = [str(path) for _, path in _checkpoints(output_dir) if is_complete(path)]
    if not complete:
        raise InputError(f"cannot average the last {n} checkpoints: {output_dir} has no complete one")
    if len(complete) < n:
        logger.warning("%s has %d complete checkpoints; the mean is of these, not of %d", output_dir, len(complete), n)
    return complete[-n:]


def average_checkpoints(directories: Sequence[str | os.PathLike]) -> dict[str, torch.Tensor]:
    """The mean of the weights in `directories`, as a state dict on the CPU.

    A directory holds what `save_pretrained`, the Trainer or Accelerate's `save_state` wrote, in one file or in
    shards. The sums are float64, the result has each weight's own type. What is not a floating number (counters,
    indices) is taken from the last. One checkpoint is in memory at a time, beside the sums. Names lack the `module.`
    that a model wrapped for several processes puts before them.

    Raises:
        InputError: there is no directory, one has no weights or torn ones, or their names, shapes or types differ.
    """
    if not directories:
        raise InputError("there is no checkpoint to average")
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
                raise InputError(f"{directory} has a weight {name!r} that {first} has not; average one model's")
            if layout[name] != (tensor.shape, tensor.dtype):
                (there, kind), here = layout[name], tensor.shape
                raise InputError(
                    f"{directory}: {name} is {list(here)} {tensor.dtype}, and {list(there)} {kind} in {first}; "
                    "average checkpoints of one model"
                )
            if not tensor.is_floating_point():
                total[name] = tensor.clone()
            elif number:
                total[name] += tensor
            else:
                total[name] = tensor.double()
        if missing := sorted(layout.keys() - found):
            raise InputError(f"{directory} lacks the weight {missing[0]!r} that {first} has; average one model's")
    cut = len("module.") if all(name.startswith("module.") for name in total) else 0
    for name, (_, kind) in layout.items():
        mean = total.pop(name)
        total[name[cut:]] = (mean / len(directories)).to(kind) if kind.is_floating_point else mean
    return total


def load_average(model: PreTrainedModel, directories: Sequence[str | os.PathLike]) -> None:
    """Put the mean of the checkpoints in `directories` into `model`, on whatever device that is.

    Tied weights may be saved under one of their names.

    Raises:
        InputError: as `average_checkpoints`, or the checkpoints are of another model.
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
    """Each weight in `directory` with its name, on the CPU."""
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
    """The files of weights: one, or the shards that an index names."""
    for whole, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (directory / whole).is_file():
            return [directory / whole]
        if (directory / index).is_file():
            try:
                return shards(directory / index)
            except InputError as error:
                raise InputError(f"{directory}: weights cannot be read: {error}") from error
    raise InputError(f"{directory} has no weights ({SAFE_WEIGHTS_NAME}, {WEIGHTS_NAME}, or shards of one)")
