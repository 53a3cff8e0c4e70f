"""Training steps on sequences of numbers beside bare loops: transcription by CTC, forecasting with missing values."""

from collections.abc import Callable

import torch
from samples import Sizes, make_optimizer
from speed_encoder import plain_lstm
from timing import Row, clock, in_turns, speedups
from torch import Tensor, nn
from torch.distributions import StudentT
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import hfseq

FEATURES, FACTOR, CHARACTERS = 12, 4, 50
"""Of the transcriber, that of Morse code: width of a frame, frames of a step, and symbols."""
RECORDINGS, SHORTEST, LONGEST = 8, 300, 700
"""Recordings of a batch, and their frames."""
SERIES, STEPS, HORIZON, LAGS = 64, 120, 24, [1, 2, 24]
"""Series of a batch, with their steps before the horizon and in it, and the lags that the forecaster reads."""


def training(modules: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A training step on a loss: gradients, their norm, the update."""
    optimizer = make_optimizer(modules)

    def step() -> None:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value.item()

    return step


def beside(name: str, alternatives: dict[str, float], steps: dict[str, Callable[[], None]], sizes: Sizes) -> list[Row]:
    """Rows of the step `ours` beside the others in turns.

    Args:
        name: Of the measure.
        alternatives: The others, with the ratio to reach.
        steps: A training step of each.
        sizes: With the number of steps of a round, and of rounds.
    """
    sides = {
        one: clock(lambda step=step: [step() for _ in range(sizes.batches)])
        for one, step in steps.items()
    }
    times = in_turns(sides, 3 * sizes.rounds, warm_up=2)
    rows = []
    for other, target in alternatives.items():
        row = Row(name, other, target)
        row.ratios = speedups(times, "ours", other)
        row.figures = {
            "ms": [1000 * one / sizes.batches for one in times["ours"]],
            "ms beside": [1000 * one / sizes.batches for one in times[other]],
        }
        rows.append(row)
    return rows


def check_equal(ours: Tensor, other: Tensor, device: str) -> None:
    """Raise a `RuntimeError` if two losses of the same weights differ."""
    difference = (ours - other).abs().item()
    if difference > (1e-4 if device == "cpu" else 1e-2) * other.abs().item():
        raise RuntimeError(f"losses differ by {difference}: {ours.item()} and {other.item()}")
