"""Common parts of the converters of recurrent translators."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast

from hfseq.convert.names import Made
from hfseq.errors import InputError
from hfseq.tokenization import pair_tokenizers

_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""Weights of a cell of torch."""


def cell_names(prefix: str, layers: int, separator: str = "_l") -> list[list[str]]:
    """Names of the weights of each layer: of an `nn.LSTM`, or of a list of cells if `separator` is empty."""
    if separator:
        return [[f"{prefix}{name}{separator}{layer}" for name in _CELL] for layer in range(layers)]
    return [[f"{prefix}{layer}.{name}" for name in _CELL] for layer in range(layers)]


def cell_table(names: Sequence[Sequence[str]], ours: str) -> dict[str, str | Made]:
    """Our names of the weights of stacked cells, with theirs; see `cell_names`."""
    return {
        f"{ours}forward_layers.{layer}.{name}_l0": theirs
        for layer, one in enumerate(names)
        for name, theirs in zip(_CELL, one, strict=True)
    }


def run_cells(
    weights: Mapping[str, Tensor], names: Sequence[Sequence[str]], values: Tensor, states: list[tuple[Tensor, ...]]
) -> Tensor:
    """Run one step of stacked LSTM or GRU cells.

    Args:
        weights: Weights by the checkpoint's names.
        names: Names of each layer's weights.
        values: Inputs `[1, E]`.
        states: Hidden state, and cell state of an LSTM, of each layer, `[1, H]`; replaced by the new ones.

    Returns:
        The output of the top layer, `[1, H]`.
    """
    for layer, one in enumerate(names):
        cell = [weights[name] for name in one]
        if len(states[layer]) == 2:
            states[layer] = torch.lstm_cell(values, states[layer], *cell)
        else:
            states[layer] = (torch.gru_cell(values, states[layer][0], *cell),)
        values = states[layer][0]
    return values


def check_weights(path: Path, weights: Mapping[str, Tensor], *names: str) -> None:
    """Raise an `InputError` for a matrix that is missing, or of another shape than a matrix has."""
    if missing := [name for name in names if name not in weights or weights[name].dim() != 2]:
        raise InputError(f"{path}: it lacks {', '.join(missing)}")


def attend(scores: Tensor, encoded: Tensor) -> Tensor:
    """Context `[1, M]` of scores `[S]` over encoder states `[S, M]`."""
    return (scores.softmax(dim=0) @ encoded).unsqueeze(0)


def mlp_scores(query: Tensor, keys: Tensor, energy: Tensor) -> Tensor:
    """Scores `[S]` of a projected query `[1, A]` and keys `[S, A]` (Bahdanau et al. 2015)."""
    return linear(torch.tanh(query + keys), energy).squeeze(-1)


def zeros_like_rows(weight: Tensor) -> Tensor:
    """A bias of zeros for a linear layer."""
    return weight.new_zeros(len(weight))


def translator_tokenizer(
    source: tuple[PreTrainedTokenizerFast, list[str]], target: tuple[PreTrainedTokenizerFast, list[str]]
) -> PreTrainedTokenizerFast:
    """One tokenizer of those of both languages; that of the source alone if they are the same.

    Args:
        source: Tokenizer of the source, and the pieces that it has beyond the vocabulary of the checkpoint.
        target: The same of the target.
    """
    alike = source[0].backend_tokenizer.to_str() == target[0].backend_tokenizer.to_str()
    return source[0] if alike else pair_tokenizers(source[0], target[0])


def vocabulary_fields(sizes: tuple[int, int], same: bool, shared: bool) -> dict[str, Any]:
    """Config fields of the vocabularies.

    Args:
        sizes: Numbers of tokens of the source and of the target.
        same: Whether both have one vocabulary.
        shared: Whether both have one embedding matrix.
    """
    return {
        "vocab_size": sizes[0],
        "decoder_vocab_size": None if same else sizes[1],
        "share_encoder_decoder_embeddings": shared,
    }


def piece_note(*added: Sequence[str]) -> list[str]:
    """Sentence about pieces of words that no vocabulary has, which the tokenizers of both sides add, if there are any.

    One that both add counts once.
    """
    pieces = set().union(*added)
    return [f"{len(pieces):,} pieces of words that no vocabulary has are read as `<unk>`."] if pieces else []


def dropout_fields(rates: Mapping[str, Any], default: float = 0.0) -> tuple[dict[str, float], list[str]]:
    """Config field for the dropout, if a checkpoint has one, and clauses about several.

    Args:
        rates: Dropouts by the names of their options; None for one that is missing.
        default: Value of a missing one.
    """
    found = {
        name: default if rate is None else rate if isinstance(rate, int | float) else str(rate)
        for name, rate in rates.items()
    }
    valid = {rate for rate in found.values() if isinstance(rate, int | float) and 0 <= rate < 1}
    if len(valid) == len({*found.values()}) == 1:
        return {"dropout": float(valid.pop())}, []
    shown = ", ".join(f"{name} {rate}" for name, rate in found.items())
    return {}, [f"{shown}: hfseq has one dropout, left at its default"]
