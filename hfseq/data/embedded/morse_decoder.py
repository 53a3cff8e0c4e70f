"""Baseline of Morse code: a threshold on the envelope of the tone, and clusters of run lengths; nothing is trained."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hfseq.data.embedded.morse import CODE, SAMPLING_RATE

_CHARACTERS = {signals: character for character, signals in CODE.items()}
# Hz between which the strongest tone is searched, and samples of a spectrum.
_BAND, _SPECTRUM = (300.0, 1_000.0), 512
# Samples of the audio to one of the envelope.
_DECIMATION = 8
# Lengths of a dot that are tried, in samples of the envelope: 16 to 50 words per minute in steps of an eighth.
_DOTS = [1.2 * SAMPLING_RATE / _DECIMATION / (16 * 1.125**step) for step in range(11)]
# Widths of two moving averages, half the width of the window of the local peak, and the shortest run that is not taken
# for noise, all in dots; chosen on training rows.
_WIDTHS, _NEIGHBOURS, _GLITCH = (0.8, 0.4), 2, 0.5
# Least threshold as a multiple of the mean envelope while the key is up.
_FLOOR = 1.5
# Minimum ratio of a dash to a dot; a text of dots alone, or of dashes, has one cluster.
_RATIO = 1.8


def decode_morse(samples: NDArray[np.float32]) -> str:
    """Decode Morse code by a threshold, as a decoder without a model does.

    The strongest tone is shifted to 0 Hz and smoothed, the magnitude compared with half of its local peak, and runs
    that are too short are dropped. Run lengths are clustered into dots and dashes, and into gaps within letters,
    between letters and between words. The smoothing depends on the speed, so several speeds are tried, and the one
    whose runs are nearest to the standard's lengths is kept. The clusters are those of the whole text: an operator
    whose speed drifts is not followed.

    Args:
        samples: Audio `[num_samples]` at `SAMPLING_RATE`.

    Returns:
        The text in lower case; signals that are no character's are left out. Silence and noise may give any text.
    """
    tone = _baseband(samples)
    fits = [(_misfit(runs, dot), runs, dot) for dot in _DOTS if len(runs := _runs(tone, dot))]
    if not fits:
        return ""
    _, runs, dot = min(fits, key=lambda fit: fit[0])
    dot = _dot_length(runs, dot)
    runs = _runs(tone, dot)
    return _read(runs, _dot_length(runs, dot)) if len(runs) else ""


def _baseband(samples: NDArray[np.float32]) -> NDArray[np.complex128]:
    """Shift the strongest tone to 0 Hz and decimate."""
    samples = np.pad(samples, (0, max(_SPECTRUM - len(samples), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, _SPECTRUM)[:: _SPECTRUM // 2]
    power = (np.abs(np.fft.rfft(frames * np.hanning(_SPECTRUM), 4 * _SPECTRUM)) ** 2).sum(0)
    frequencies = np.arange(len(power)) * SAMPLING_RATE / (4 * _SPECTRUM)
    inside = (_BAND[0] <= frequencies) & (frequencies <= _BAND[1])
    pitch = frequencies[(power * inside).argmax()]
    tone = samples * np.exp(-2j * np.pi * pitch / SAMPLING_RATE * np.arange(len(samples)))
    return tone[: len(tone) // _DECIMATION * _DECIMATION].reshape(-1, _DECIMATION).mean(1)


def _runs(tone: NDArray[np.complex128], dot: float) -> NDArray[np.float64]:
    """Lengths of runs with the key alternately down and up, beginning and ending down; empty if it never is."""
    smooth = tone
    for width in _WIDTHS:
        window = max(round(width * dot), 1)
        smooth = np.convolve(smooth, np.full(window, 1 / window), "same")[: len(tone)]
    envelope = np.abs(smooth)
    down = np.concatenate(([False], envelope > _threshold(envelope, dot), [False]))
    edges = np.flatnonzero(np.diff(down.astype(np.int8)))
    runs = np.diff(edges).astype(float).tolist()
    while runs and min(runs) < _GLITCH * dot:
        shortest = runs.index(min(runs))
        # A short run belongs to its neighbours; at an end there is no other side, and both go.
        first, last = max(shortest - 1, 0), min(shortest + 1, len(runs) - 1)
        whole = [sum(runs[first : last + 1])] if 0 < shortest < len(runs) - 1 else []
        runs[first : last + 1] = whole
    return np.array(runs)


def _threshold(envelope: NDArray[np.float64], dot: float) -> NDArray[np.float64]:
    """Half of the peak within a few dots, but not below the noise."""
    low, high = _two_means(envelope)
    step = max(round(dot), 1)
    blocks = np.pad(envelope, (0, -len(envelope) % step)).reshape(-1, step).max(1)
    around = np.pad(blocks, _NEIGHBOURS, mode="edge")
    peaks = np.lib.stride_tricks.sliding_window_view(around, 2 * _NEIGHBOURS + 1).max(1)
    peak = np.interp(np.arange(len(envelope)), (np.arange(len(blocks)) + 0.5) * step, peaks)
    return np.maximum(peak / 2, min(_FLOOR * low, (low + high) / 2))


def _two_means(values: NDArray[np.float64]) -> tuple[float, float]:
    """Means of two clusters, low and high; equal ones if all values are."""
    low, high = float(values.min()), float(values.max())
    for _ in range(20):
        upper = values > (low + high) / 2
        if not upper.any():
            break
        low, high = float(values[~upper].mean()), float(values[upper].mean())
    return low, high


def _misfit(runs: NDArray[np.float64], dot: float) -> float:
    """Mean distance of the runs from the lengths of the standard, in logarithms."""
    logs = np.log(runs / dot)
    down = np.abs(logs[::2, None] - np.log([1, 3])).min(1)
    up = np.abs(logs[1::2, None] - np.log([1, 3, 7])).min(1)
    return float(np.concatenate((down, up)).mean())


def _dot_length(runs: NDArray[np.float64], dot: float) -> float:
    """Length of a dot by the clusters of dots and dashes; `dot` is an estimate of it."""
    low, high = np.exp(_two_means(np.log(runs[::2])))
    if high > _RATIO * low:
        return float(low + high / 3) / 2
    return float(low if low < math.sqrt(3) * dot else low / 3)


def _read(runs: NDArray[np.float64], dot: float) -> str:
    low, high = _two_means(np.log(runs[::2]))
    border = math.exp((low + high) / 2) if high - low > math.log(_RATIO) else math.sqrt(3) * dot
    gaps = np.log(runs[1::2])
    centres = np.log(np.array([1, 3, 7]) * dot)
    kinds = np.zeros(len(gaps), int)
    for _ in range(10):
        kinds = np.abs(gaps[:, None] - centres).argmin(1)
        for kind in set(kinds.tolist()):
            centres[kind] = gaps[kinds == kind].mean()
    text = signals = ""
    for run, kind in zip(runs[::2], [*kinds.tolist(), 2], strict=True):
        signals += "." if run < border else "-"
        if kind:
            text += _CHARACTERS.get(signals, "") + " " * (kind == 2)
            signals = ""
    return " ".join(text.split())
