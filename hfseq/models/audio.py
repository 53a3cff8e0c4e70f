"""Recordings: decoding, resampling, and checks of samples. soundfile and soxr are imported when they are needed."""

import io
import os
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# Programs that cannot seek in their output (SoX, FFmpeg into a pipe) write a size from here on for an unknown one.
_UNKNOWN_SIZE = 0x7FFFF000
# Samples that are read at a time: a damaged header may promise more than fit into memory.
_BLOCK = 2**20


def read_audio(
    source: str | os.PathLike[str] | bytes,
    name: object = None,
    *,
    mono: bool = False,
    max_samples: int | None = None,
) -> tuple[np.ndarray, int]:
    """Decode a recording of one channel.

    Args:
        source: Path of a file, or contents of one, in any format of libsndfile: WAV, FLAC, Ogg, MP3 …
        name: Name of the recording in errors; by default its path.
        mono: Average the channels of a recording that has several, in place of refusing it.
        max_samples: Maximum number of samples, of all channels together; None for no limit. A compressed file of a
            few kilobytes may hold hours of silence.

    Returns:
        Samples `[N]` in float32, and their rate in Hz. Full scale is 1.0, which the samples of floating-point files
        may exceed.

    Raises:
        ValueError: The file does not exist, is not audio, is truncated, or has no samples, several channels, too many
            samples, or NaN or infinite ones. The message begins with its name and is one line.
        ImportError: soundfile is not installed.
    """
    soundfile = _import("soundfile", "reading recordings")
    name = name if name is not None else "audio" if isinstance(source, bytes) else os.fspath(source)
    try:
        contents = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from None
    if not contents:
        raise ValueError(f"{name}: the file is empty")
    try:
        with soundfile.SoundFile(io.BytesIO(contents)) as file:
            rate, channels, promised = file.samplerate, file.channels, file.frames
            blocks = [np.zeros((0, channels), dtype=np.float32)]
            read = 0
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                read += block.size
                if max_samples is not None and read > max_samples:
                    raise ValueError(f"{name}: more than {max_samples} samples")
                blocks.append(block)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".")
        raise ValueError(f"{name}: truncated, or not audio that libsndfile decodes ({reason})") from None
    missing = _missing_bytes(contents)
    if missing:
        raise ValueError(f"{name}: truncated: {missing} bytes fewer than its header says")
    samples = np.concatenate(blocks)  # [N, channels]
    if len(samples) < promised:
        raise ValueError(f"{name}: truncated: {len(samples)} samples, but its header says {promised}")
    if channels > 1 and not mono:
        raise ValueError(f"{name}: {channels} channels; convert it to one, or average them (mono)")
    samples = samples.mean(axis=1) if channels > 1 else samples[:, 0]
    check_samples(samples, rate, name)
    return samples, rate


def check_samples(samples: np.ndarray, sampling_rate: float, name: object) -> None:
    """Check the samples of a recording.

    Args:
        samples: Samples `[N]`.
        sampling_rate: Their rate in Hz.
        name: Name of the recording, for errors.

    Raises:
        ValueError: There are none, or some are NaN or infinite.
    """
    if not len(samples):
        raise ValueError(f"{name}: no samples")
    finite = np.isfinite(samples)
    if not finite.all():
        count, seconds = len(samples) - finite.sum(), np.argmin(finite) / sampling_rate
        raise ValueError(f"{name}: {count} NaN or infinite samples of {len(samples)}, the first at {seconds:.3f} s")


def resample(samples: np.ndarray, sampling_rate: float, target_rate: float) -> np.ndarray:
    """Change the sampling rate, by soxr at its high quality.

    Args:
        samples: Samples `[N]`.
        sampling_rate: Their rate in Hz.
        target_rate: Rate to change it to, in Hz.

    Returns:
        Samples `[N * target_rate / sampling_rate]`, rounded to whole ones; the same array if the rates are equal.

    Raises:
        ImportError: The rates differ and soxr is not installed.
    """
    if sampling_rate == target_rate:
        return samples
    soxr = _import("soxr", f"resampling from {sampling_rate:g} Hz to {target_rate:g} Hz")
    return soxr.resample(samples, sampling_rate, target_rate, quality="HQ")


def _missing_bytes(contents: bytes) -> int:
    """Number of bytes that the header of a WAV file promises and the file lacks; libsndfile reads what there is."""
    if contents[:4] != b"RIFF" or contents[8:12] != b"WAVE":
        return 0
    position = 12
    while position + 8 <= len(contents):
        chunk, size = struct.unpack_from("<4sI", contents, position)
        position += 8
        if chunk == b"data":
            return 0 if size >= _UNKNOWN_SIZE else max(0, position + size - len(contents))
        # Chunks begin at even positions.
        position += size + size % 2
    return 0


def _import(package: str, use: str) -> Any:
    """Import an optional package when it is needed."""
    try:
        return import_module(package)
    # soundfile raises an OSError if libsndfile is missing.
    except (ImportError, OSError) as error:
        raise ImportError(f"{use} needs {package}: pip install 'hfseq[audio]'") from error
