"""Weights by the names of other toolkits, and the names that they have here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from hfseq.errors import InputError, one_line

_NEVER = -1e9
"""Bias of tokens that are never written."""


@dataclass(frozen=True)
class Made:
    """Weight that is computed from those of a checkpoint.

    Attributes:
        names: Names in the checkpoint.
        make: Function of those weights, in their order.
    """

    names: Sequence[str]
    make: Callable[..., Tensor]


Table = Mapping[str, str | Made]
"""Names here to names in a checkpoint."""


def translate(
    path: Path, weights: Mapping[str, Tensor], table: Table, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Weights by our names, in float32.

    Args:
        path: The checkpoint, for messages.
        weights: Its weights.
        table: Our names to its names.
        ignored: Names, with wildcards, of weights that no result depends on.

    Raises:
        InputError: If weights are missing in the checkpoint, or have no place in the table.
    """
    entries = {ours: Made([entry], _same) if isinstance(entry, str) else entry for ours, entry in table.items()}
    used = {name for entry in entries.values() for name in entry.names}
    missing = sorted(used - weights.keys())
    left = [name for name in weights if name not in used and not any(fnmatchcase(name, one) for one in ignored)]
    parts = [f"it lacks {', '.join(missing)}"] if missing else []
    parts += [f"no place for {listed(weights, left)}"] if left else []
    if parts:
        raise InputError(f"{path}: {'; '.join(parts)}")
    return {ours: entry.make(*(as_float32(weights[name]) for name in entry.names)) for ours, entry in entries.items()}


def fill(model: PreTrainedModel, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a model its weights, all of them, and put it into evaluation mode.

    Raises:
        InputError: If the model has other weights, or a shape differs.
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(f"{path}: the sizes of its weights contradict each other: {one_line(error)}") from error
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    if wrong := sorted({*missing} - tied | {*unexpected}):
        raise InputError(f"{path}: {type(model).__name__} has other weights: {', '.join(wrong)}")
    model.tie_weights()
    model.eval()


def add_pieces(weights: dict[str, Tensor], inputs: Mapping[str, int], outputs: int, tied: bool, unknown: int) -> None:
    """Extend vocabularies by tokens that are read as the unknown one and never written.

    Args:
        weights: Weights by our names, changed in place; `lm_head` has a bias if it is extended.
        inputs: Names of embeddings, and the number of tokens that each gets.
        outputs: Number of tokens that `lm_head` gets.
        tied: Whether its rows are those of embeddings.
        unknown: Id of the unknown token.
    """
    for name, count in inputs.items():
        rows = weights[name]
        weights[name] = torch.cat([rows, rows[unknown].expand(count, -1)])
    if outputs:
        rows = weights["lm_head.weight"]
        more = rows[unknown].expand(outputs, -1) if tied else rows.new_zeros(outputs, rows.shape[1])
        weights["lm_head.weight"] = torch.cat([rows, more])
        weights["lm_head.bias"] = pad(weights["lm_head.bias"], (0, outputs), value=_NEVER)


def recurrent_table(
    theirs: str, ours: str, layers: int, *, bidirectional: bool = False, bias: bool = True, first: int = 0
) -> dict[str, str | Made]:
    """Names of a recurrent stack for those of an `nn.LSTM`, `nn.GRU` or `nn.RNN`.

    Args:
        theirs: Prefix of the module in the checkpoint.
        ours: Prefix of the stack.
        layers: Number of layers of the module.
        bidirectional: Whether it has both directions.
        bias: Whether it has biases; ours are zero otherwise.
        first: Number of the module's first layer in the stack.
    """
    table: dict[str, str | Made] = {}
    directions = [("forward_layers", "")] + [("backward_layers", "_reverse")] * bidirectional
    for layer, (directory, suffix), side in product(range(layers), directions, ("ih", "hh")):
        target = f"{ours}{directory}.{first + layer}."
        weight = f"{theirs}weight_{side}_l{layer}{suffix}"
        table[f"{target}weight_{side}_l0"] = weight
        table[f"{target}bias_{side}_l0"] = (
            f"{theirs}bias_{side}_l{layer}{suffix}" if bias else Made([weight], _zero_bias)
        )
    return table


def other_parts(found: Mapping[Any, Any], *used: str) -> list[str]:
    """Clauses on the parts of a checkpoint that are not used and not empty."""
    kept = {str(name): value for name, value in found.items() if str(name) not in used and value is not None}
    return [f"{name} of the checkpoint" for name, value in kept.items() if not _is_empty(value)]


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | str) and not value


def listed(weights: Mapping[str, Tensor], names: Iterable[str]) -> str:
    """Names with their shapes, for messages."""
    return ", ".join(f"{name} {list(weights[name].shape)}" for name in names)


def same_weight(first: Tensor, second: Tensor) -> bool:
    """Return True if two weights are equal, as tied ones are that are stored twice."""
    return first.shape == second.shape and torch.equal(as_float32(first), as_float32(second))


def as_float32(weight: Tensor) -> Tensor:
    """Weight in float32, whatever precision a checkpoint stores; integers stay what they are."""
    return weight.float() if weight.is_floating_point() else weight


def _same(weight: Tensor) -> Tensor:
    return weight


def _zero_bias(weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight))
