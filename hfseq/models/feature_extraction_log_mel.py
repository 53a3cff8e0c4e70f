"""Log-mel spectrograms of recordings, as `input_features`."""

import numbers
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank, optimal_fft_length, window_function
from transformers.utils import PaddingStrategy, TensorType, logging, to_numpy

from .audio import check_samples, read_audio, resample

logger = logging.get_logger(__name__)

# Frames that are transformed at a time, so that hours of audio take little more memory than their features.
_BLOCK = 4096


class LogMelFeatureExtractor(SequenceFeatureExtractor):
    """Extractor of log-mel spectrograms: the logarithm of the power in bands that are equally wide on the mel scale.

    Frame t is centred on sample `t * hop_length`, and every frame has its centre in the recording: N samples give
    `ceil(N / hop_length)` frames. The recording is padded with zeros on both sides, as `torch.stft` does it with
    `pad_mode="constant"`. The window is a periodic Hann window, the bands are the triangular filters of Slaney (1998,
    "Auditory Toolbox"), as in Whisper, and the logarithm is the natural one. Features are not normalised: the model
    does that, with the statistics of its training data.

    The features of a recording do not depend on the others in its batch, since frames are padded, not samples;
    `attention_mask` is 0 at padding.

    Args:
        feature_size: Number of bands.
        sampling_rate: Sampling rate in Hz; recordings at other rates are resampled.
        hop_length: Distance between frames, in samples; by default 10 ms.
        win_length: Length of the window, in samples; by default 25 ms.
        n_fft: Length of the Fourier transform, an even number; the window is centred in it. By default `win_length`
            rounded up to a power of two.
        padding_value: Value of padding frames.
        min_frequency: Lower edge of the first band, in Hz.
        max_frequency: Upper edge of the last band, in Hz; by default half the sampling rate.
        mel_floor: Lower bound of the power, applied before the logarithm.
        mono: Average the channels of files that have several, in place of refusing them.
        kwargs: `padding_side` ("right" or "left"), `return_attention_mask`.

    Raises:
        ValueError: A value is out of range, or a band is too narrow to contain a frequency of the Fourier transform.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        hop_length: int | None = None,
        win_length: int | None = None,
        n_fft: int | None = None,
        padding_value: float = 0.0,
        min_frequency: float = 0.0,
        max_frequency: float | None = None,
        mel_floor: float = 1e-10,
        mono: bool = False,
        **kwargs: Any,
    ):
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        # SequenceFeatureExtractor pads features of size 1 as if they were waveforms.
        self._check_integer("feature_size", 2)
        self._check_integer("sampling_rate", 1)
        self.hop_length = round(0.010 * sampling_rate) if hop_length is None else hop_length
        self._check_integer("hop_length", 1)
        self.win_length = round(0.025 * sampling_rate) if win_length is None else win_length
        self._check_integer("win_length", 2)
        self.n_fft = optimal_fft_length(self.win_length) if n_fft is None else n_fft
        self._check_integer("n_fft", self.win_length)
        if self.n_fft % 2:
            raise ValueError(f"n_fft={self.n_fft} must be even")
        self.min_frequency = min_frequency
        self.max_frequency = sampling_rate / 2 if max_frequency is None else max_frequency
        self.mel_floor = mel_floor
        self.mono = mono
        self._check_frequencies()
        # Under these names they are not saved.
        self.window = window_function(self.win_length, "hann", frame_length=self.n_fft)
        self.mel_filters = self._make_mel_filters()

    def _check_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer, {least} or more")

    def _check_frequencies(self) -> None:
        if not 0 <= self.min_frequency < self.max_frequency <= self.sampling_rate / 2:
            raise ValueError(
                f"min_frequency={self.min_frequency} and max_frequency={self.max_frequency} must be in order, and "
                f"between 0 and half the sampling rate, {self.sampling_rate / 2:g} Hz"
            )
        if not self.mel_floor > 0:
            raise ValueError(f"mel_floor={self.mel_floor} must be above 0")

    def _make_mel_filters(self) -> np.ndarray:
        """Weights `[1 + n_fft // 2, feature_size]` of the bands."""
        with warnings.catch_warnings():
            # Its warning of empty filters is an error below.
            warnings.simplefilter("ignore")
            filters = mel_filter_bank(
                1 + self.n_fft // 2,
                self.feature_size,
                self.min_frequency,
                self.max_frequency,
                self.sampling_rate,
                norm="slaney",
                mel_scale="slaney",
            )
        empty = np.flatnonzero(~filters.any(axis=0))
        if len(empty):
            raise ValueError(
                f"band {empty[0] + 1} of feature_size={self.feature_size} contains no frequency of the Fourier "
                f"transform: use fewer bands, or an n_fft above {self.n_fft}"
            )
        return filters

    def __call__(
        self,
        raw_speech: Any,
        padding: bool | str | PaddingStrategy = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        sampling_rate: float | None = None,
        return_attention_mask: bool | None = None,
    ) -> BatchFeature:
        """Extract the features of one recording or a batch.

        Args:
            raw_speech: A recording, or a list of recordings. Each is the name of an audio file, or its samples `[N]`,
                which are floating-point numbers in [-1, 1]: an array, a tensor or a list. An array `[B, N]` is a batch
                of B recordings of one channel.
            padding: Pad to the longest recording (True, "longest") or to `max_length` ("max_length").
            max_length: Number of frames to pad or truncate to.
            truncation: Cut off frames after `max_length`.
            pad_to_multiple_of: Pad to a multiple of this number of frames.
            return_tensors: "pt" for tensors, "np" for arrays; None for a list of arrays.
            sampling_rate: Rate of the samples in arrays, in Hz. Files have their own.
            return_attention_mask: Return the mask of frames; by default as `self.return_attention_mask` says.

        Returns:
            `input_features` `[B, T, feature_size]` in float32 and `attention_mask` `[B, T]`, 0 at padding. One
            recording is a batch of one.

        Raises:
            ValueError: A recording is empty, not audio, truncated, not of one channel, has NaN or infinite samples, or
                samples that are not floating-point numbers. The message begins with the name of its file, or its
                number in the batch.
            ImportError: soundfile is not installed and there is a file to read, or soxr and there is one to resample.
        """
        recordings = _split(raw_speech, self.hop_length)
        if not recordings:
            raise ValueError("no recordings: the list is empty")
        if sampling_rate is not None and not 0 < sampling_rate < np.inf:
            raise ValueError(f"sampling_rate={sampling_rate} must be above 0, in Hz")
        features = [self._log_mel(self._samples(*one, sampling_rate)) for one in enumerate(recordings, 1)]
        return self.pad(
            BatchFeature({"input_features": features}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def _samples(self, number: int, recording: Any, sampling_rate: float | None) -> np.ndarray:
        """Samples `[N]` of a recording at the rate of this extractor."""
        if isinstance(recording, str | os.PathLike):
            name: object = os.fspath(recording)
            samples, sampling_rate = read_audio(recording, mono=self.mono)
        else:
            name = f"recording {number}"
            samples = np.asarray(to_numpy(recording))
            if sampling_rate is None:
                logger.warning_once(
                    f"no sampling_rate was given; samples are taken to be at {self.sampling_rate} Hz, and if they are "
                    "not, features are wrong"
                )
                sampling_rate = self.sampling_rate
            if not np.issubdtype(samples.dtype, np.floating):
                raise ValueError(
                    f"{name}: {samples.dtype} in place of samples that are floating-point numbers in [-1, 1]; divide "
                    "16-bit integers by 32768"
                )
            if samples.ndim != 1:
                raise ValueError(
                    f"{name}: an array of shape {samples.shape} in place of one channel, [samples]; average the "
                    "channels first"
                )
            # What is too large for float32 becomes infinite, and is refused as such.
            with np.errstate(over="ignore"):
                samples = samples.astype(np.float32, copy=False)
            check_samples(samples, sampling_rate, name)
        resampled = resample(samples, sampling_rate, self.sampling_rate)
        if not len(resampled):
            raise ValueError(f"{name}: {len(samples)} samples at {sampling_rate:g} Hz, which is too short")
        return resampled

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        """Features `[T, feature_size]` of samples `[N]`."""
        num_frames = 1 + (len(samples) - 1) // self.hop_length
        padded = np.pad(samples, self.n_fft // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop_length]
        blocks = []
        for first in range(0, num_frames, _BLOCK):
            spectrum = np.fft.rfft(frames[first : min(first + _BLOCK, num_frames)] * self.window)
            power = (spectrum.real**2 + spectrum.imag**2) @ self.mel_filters
            blocks.append(np.log(np.maximum(power, self.mel_floor)).astype(np.float32))
        return np.concatenate(blocks)


def _split(raw_speech: Any, hop_length: int) -> Sequence[Any]:
    """Recordings of a batch, or the one that is given without a batch."""
    if isinstance(raw_speech, str | os.PathLike):
        return [raw_speech]
    if isinstance(raw_speech, list | tuple):
        return [raw_speech] if raw_speech and isinstance(raw_speech[0], numbers.Real) else raw_speech
    array = np.asarray(to_numpy(raw_speech))
    if array.ndim < 2:
        return [array]
    # Thousands of recordings of two samples each are one recording of two channels.
    if array.ndim > 2 or array.shape[1] < min(array.shape[0], hop_length):
        raise ValueError(
            f"an array of shape {array.shape}: give one channel, [samples], or a batch, [recordings, samples]; "
            "average the channels of a recording first"
        )
    return list(array)


__all__ = ["LogMelFeatureExtractor"]
