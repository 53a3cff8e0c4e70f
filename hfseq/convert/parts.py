"""Parts of a model in a state dict, found by the shapes of its weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hfseq.convert.names import as_float32, listed, same_weight
from hfseq.convert.reading import StandIn, submodules
from hfseq.errors import InputError

CRF = ("transitions", "start_transitions", "end_transitions")
"""Parameters of the CRF of pytorch-crf."""
_CELLS = {4: "LSTM", 3: "GRU", 1: "RNN"}
"""Number of matrices in one of a cell, to the cell."""


@dataclass(frozen=True)
class Recurrent:
    """`nn.LSTM`, `nn.GRU` or `nn.RNN` in a state dict.

    Attributes:
        name: Name of the module, which is empty at the top.
        cell: `LSTM`, `GRU` or `RNN`.
        input_size: Width of its inputs.
        hidden_size: Width of a direction.
        layers: Number of layers.
        bidirectional: Whether it has both directions.
        bias: Whether it has biases.
    """

    name: str
    cell: str
    input_size: int
    hidden_size: int
    layers: int
    bidirectional: bool
    bias: bool

    @property
    def prefix(self) -> str:
        """Prefix of the names of its parameters."""
        return f"{self.name}." if self.name else ""

    @property
    def width(self) -> int:
        """Width of its outputs."""
        return self.hidden_size * (2 if self.bidirectional else 1)

    def __str__(self) -> str:
        both = ", bidirectional" if self.bidirectional else ""
        layers = f"{self.layers} layer{'s' if self.layers > 1 else ''}"
        return f"{self.name or '(top)'}: {self.cell} {self.input_size} -> {self.hidden_size}, {layers}{both}"

    def module(self, weights: Mapping[str, Tensor], nonlinearity: str | None) -> nn.RNNBase:
        """The module of torch, batch first, with its weights."""
        options: dict[str, Any] = {"nonlinearity": nonlinearity} if self.cell == "RNN" else {}
        module = getattr(nn, self.cell)(
            self.input_size,
            self.hidden_size,
            self.layers,
            bias=self.bias,
            batch_first=True,
            bidirectional=self.bidirectional,
            **options,
        )
        own = {name: as_float32(weights[self.prefix + name]) for name in module.state_dict()}
        module.load_state_dict(own)
        return module.eval()


@dataclass
class Parts:
    """Parts of a model in a state dict, by the names of their weights.

    Attributes:
        embedding: The embeddings, `[V, E]`.
        recurrent: Recurrent modules from the bottom up.
        output: The output layer, `[N, D]`.
        bias: Its bias, or None.
        crf: Prefix of the parameters of a CRF; None if there are none.
        nonlinearity: `tanh` or `relu` of an `nn.RNN`, else None.
    """

    embedding: str
    recurrent: list[Recurrent]
    output: str
    bias: str | None
    crf: str | None
    nonlinearity: str | None

    @property
    def width(self) -> int:
        """Width of the outputs of the stack."""
        return self.recurrent[-1].width


def find_parts(
    path: Path,
    state: Mapping[str, Tensor],
    module: StandIn | None,
    embedding: str | None,
    rnn: Sequence[str] | None,
    output: str | None,
    nonlinearity: str | None,
) -> Parts:
    """Find an embedding, the recurrent modules whose width enters, and a linear layer that reads their outputs.

    Args:
        path: The checkpoint, for messages.
        state: Its weights.
        module: The pickled module that they are of, which tells the nonlinearity of an `nn.RNN`; None for weights.
        embedding: Name of the embedding or its weight; None to find it.
        rnn: Names of the recurrent modules from the bottom up; None for the only one.
        output: Name of the output layer or its weight; None to find it.
        nonlinearity: `tanh` or `relu` of an `nn.RNN`; None if the pickled module tells.

    Raises:
        InputError: If there is no such part, or a choice.
    """
    recurrent = _recurrent(path, state, rnn)
    inside = tuple(one.prefix for one in recurrent)
    crf = next((name.removesuffix(CRF[1]) for name in state if name.split(".")[-1] == CRF[1]), None)
    matrices = {
        name: weight
        for name, weight in state.items()
        if weight.dim() == 2
        and not (name.startswith(inside) and re.search(r"weight_[ih]h_l\d+(_reverse)?$", name))
        and name != f"{crf}{CRF[0]}"
    }
    width, entering = recurrent[-1].width, recurrent[0].input_size
    chosen = None if output is None else _named(path, "--output", output, matrices)
    fits = [
        name
        for name, weight in matrices.items()
        if weight.shape[1] == entering and name != chosen and _bias_of(name) not in state
    ]
    if embedding is not None:
        fits = [_named(path, "--embedding", embedding, matrices)]
    if len(fits) > 1 and len({*fits}) == 2 and chosen is None and same_weight(state[fits[0]], state[fits[1]]):
        fits = fits[:1]  # tied, with no bias: the order decides nothing
    if len(fits) != 1:
        raise InputError(
            f"{path}: {_choice('embedding', fits, matrices)} of width {entering}, as {recurrent[0]} reads; choose by "
            f"--embedding{' and --rnn' if not fits else ''}"
        )
    (table,) = fits
    if chosen is None:
        ends = [name for name, weight in matrices.items() if weight.shape[1] in (width, 3 * width) and name != table]
        if len(ends) != 1:
            raise InputError(
                f"{path}: {_choice('output layer', ends, matrices)} that reads the width {width} of {recurrent[-1]}; "
                f"choose by --output{' and --rnn' if not ends else ''}"
            )
        (chosen,) = ends
    bias = _bias_of(chosen)
    return Parts(
        table,
        recurrent,
        chosen,
        bias if bias in state else None,
        crf,
        _nonlinearity(path, recurrent, module, nonlinearity),
    )


def recurrent_modules(path: Path, state: Mapping[str, Tensor]) -> dict[str, Recurrent]:
    """All modules of `nn.LSTM`, `nn.GRU` and `nn.RNN` in a state dict, by their names.

    Raises:
        InputError: If one is of another kind.
    """
    found: dict[str, Recurrent] = {}
    for name, weight in state.items():
        owner, _, last = name.rpartition(".")
        if last != "weight_hh_l0":
            continue
        prefix = f"{owner}." if owner else ""
        if f"{prefix}weight_hr_l0" in state:
            raise InputError(f"{path}: {owner} is an LSTM with proj_size, which hfseq does not have")
        gates = weight.shape[0] // max(1, weight.shape[-1])
        entering = state.get(f"{prefix}weight_ih_l0")
        if weight.dim() != 2 or gates not in _CELLS or entering is None or entering.dim() != 2:
            raise InputError(f"{path}: {listed(state, [name])} is of no nn.LSTM, nn.GRU or nn.RNN")
        layers = sum(bool(re.fullmatch(rf"{re.escape(prefix)}weight_hh_l\d+", other)) for other in state)
        found[owner] = Recurrent(
            owner,
            _CELLS[gates],
            entering.shape[1],
            weight.shape[1],
            layers,
            f"{prefix}weight_hh_l0_reverse" in state,
            f"{prefix}bias_hh_l0" in state,
        )
    return found


def _recurrent(path: Path, state: Mapping[str, Tensor], wanted: Sequence[str] | None) -> list[Recurrent]:
    """Recurrent modules from the bottom up."""
    found = recurrent_modules(path, state)
    if wanted is None:
        if len(found) > 1:
            shown = "; ".join(map(str, found.values()))
            raise InputError(
                f"{path}: several recurrent modules ({shown}); name those of the model by --rnn, in order"
            )
        return [*found.values()]
    if unknown := [name for name in wanted if name not in found]:
        raise InputError(
            f"{path}: --rnn {unknown[0]}: no such module; there are {'; '.join(map(str, found.values()))}"
        )
    chain = [found[name] for name in wanted]
    if len({(one.cell, one.bidirectional) for one in chain}) > 1:
        raise InputError(f"{path}: --rnn: cells or directions differ ({'; '.join(map(str, chain))})")
    for below, above in pairwise(chain):
        if below.width != above.input_size:
            raise InputError(
                f"{path}: --rnn: {above.name} reads {above.input_size}, but {below.name} has {below.width}"
            )
    return chain


def _named(path: Path, flag: str, name: str, matrices: Mapping[str, Tensor]) -> str:
    """Weight of a flag, which names it or its module."""
    for found in (f"{name}.weight", name):
        if found in matrices:
            return found
    raise InputError(f"{path}: {flag} {name}: no such matrix; there are {listed(matrices, matrices) or 'none'}")


def _choice(what: str, names: Sequence[str], matrices: Mapping[str, Tensor]) -> str:
    if names:
        return f"several matrices may be the {what}, {listed(matrices, names)},"
    return f"no matrix may be the {what} (there are {listed(matrices, matrices) or 'none'}): none"


def _bias_of(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _nonlinearity(
    path: Path, recurrent: Sequence[Recurrent], module: StandIn | None, wanted: str | None
) -> str | None:
    if recurrent[0].cell != "RNN":
        if wanted is not None:
            raise InputError(f"{path}: --nonlinearity is for an nn.RNN, but {recurrent[0]}")
        return None
    modes: set[Any] = set()
    if module is not None:
        known = submodules(module)
        modes = {vars(known[one.name]).get("mode") for one in recurrent if one.name in known}
    pickled = next((str(mode).removeprefix("RNN_").lower() for mode in modes if len(modes) == 1), None)
    pickled = pickled if pickled in ("tanh", "relu") else None
    if wanted is None and pickled is None:
        raise InputError(f"{path}: {recurrent[0]}: tanh or relu? The weights do not tell; give --nonlinearity")
    if wanted is not None and pickled not in (None, wanted):
        raise InputError(f"{path}: --nonlinearity {wanted}, but the pickled module has {pickled}")
    return wanted or pickled
