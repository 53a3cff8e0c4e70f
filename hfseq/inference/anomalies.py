"""Anomaly scores of series and logs of events, in one pass or as a stream of constant memory.

A model predicts each step from those before it, and its surprise, the negative log-likelihood of what came (of each
variate of a series, or of the tokens of an event), is compared with its own distribution so far, as in the anomaly
likelihood of Ahmad et al. 2017, section 4.2.
"""

import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from hfseq.cache_io import load_state, save_state
from hfseq.data.anomalies import Recording
from hfseq.errors import InputError, one_line
from hfseq.hub.publish import DETECTOR_FILE
from hfseq.json_files import read_object
from hfseq.models import is_hfseq
from hfseq.models.cache import RecurrentCacheLayer

NUM_TIME_FEATURES = 15
"""Width of `time_features`."""

_DAY = 86_400
# Longest chunk that a model reads at once; it bounds the memory of long recordings.
_CHUNK = 2_000
# Steps before the distribution of the surprise is known well enough to compare with it.
_WARM_UP = 30
# Standard deviations beyond which a surprise counts as no more, lest an anomaly hides the next one.
_CLIP = 8.0
# Deviations beyond which a value counts as no more: its likelihood would be infinite in float32, and so would be all
# that a stream remembers of it.
_LARGEST = 1e9
_STATE_TYPE = "anomalies"


@dataclass(frozen=True)
class Scale:
    """Scaling of a series, from its training steps.

    Attributes:
        loc: Mean of each column, after the logarithm.
        scale: Standard deviation of each.
        days: Days of training steps; rhythms that they do not show twice are no time features.
    """

    loc: tuple[float, ...]
    scale: tuple[float, ...]
    days: float

    @classmethod
    def fit(cls, values: NDArray[np.float64], days: float, *, log: bool) -> "Scale":
        """Return the scaling of values `[T, C]`; a constant or missing column has scale 1.

        Raises:
            ValueError: The squares of values overflow.
        """
        given = _logged(values, log)
        seen = ~np.isnan(given)
        count = np.maximum(seen.sum(axis=0), 1)
        with np.errstate(over="ignore", invalid="ignore"):
            loc = np.where(seen, given, 0.0).sum(axis=0) / count
            spread = np.sqrt(np.where(seen, given - loc, 0.0).__pow__(2).sum(axis=0) / count)
        scale = np.where(spread > 1e-12 * np.abs(loc), spread, 1.0)
        if not (np.isfinite(loc).all() and np.isfinite(scale).all()):
            raise ValueError("the values overflow")
        return cls(tuple(loc.tolist()), tuple(scale.tolist()), days)

    def apply(self, values: NDArray[np.float64], *, log: bool) -> NDArray[np.float64]:
        """Scaled values `[T, C]`, at most `_LARGEST` in magnitude."""
        with np.errstate(over="ignore"):
            scaled = (_logged(values, log) - np.array(self.loc)) / np.array(self.scale)
        return np.clip(scaled, -_LARGEST, _LARGEST)


def _logged(values: NDArray[np.float64], log: bool) -> NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values)) if log else values


def time_features(times: NDArray[np.float64], days: float) -> NDArray[np.float64]:
    """Time features of steps: four harmonics of the day, and the day of the week.

    Args:
        times: Seconds since 1970, `[T]`.
        days: Days of training steps. The day is 0 where there are fewer than two of it, the week likewise.

    Returns:
        `[T, NUM_TIME_FEATURES]`.
    """
    features = np.zeros((len(times), NUM_TIME_FEATURES))
    if days >= 2:
        turns = 2 * np.pi * np.outer(times % _DAY / _DAY, np.arange(1, 5))
        features[:, :4], features[:, 4:8] = np.sin(turns), np.cos(turns)
    if days >= 14:
        # 1970 began on a Thursday.
        features[np.arange(len(times)), 8 + (times // _DAY + 3).astype(int) % 7] = 1
    return features


@dataclass
class Settings:
    """Everything about a detector but its model.

    Attributes:
        columns: Names of the numbers of a step; empty for events.
        log: Whether the numbers are read as logarithms of 1 + their magnitude.
        scales: Scaling of each series by name.
        timed: Whether time stamps are known, and hence time features.
        short_window: Steps over which surprise is averaged, W' of Ahmad et al. 2017.
        long_window: Steps on which the distribution of the surprise is estimated, W of the paper.
        hold: Seconds that an alarm lasts, where 1000 steps without time stamps are a day; see
            `hfseq.metrics.anomalies.find_alarms`.
        false_alarms: False alarms per day that the threshold was chosen for.
        threshold: Score from which on a step raises an alarm.
        event_columns: Columns of the words of an event; None for numbers.
        number_columns: Columns of the numbers of an event.
        gaps: Whether the time since the event before it is a word of an event.
    """

    columns: tuple[str, ...] = ()
    log: bool = False
    scales: dict[str, Scale] = field(default_factory=dict)
    timed: bool = True
    short_window: int = 1
    long_window: int = 8_000
    hold: float = 3_600.0
    false_alarms: float = 1.0
    threshold: float = math.inf
    event_columns: tuple[str, ...] | None = None
    number_columns: tuple[str, ...] = ()
    gaps: bool = False

    def save(self, directory: str | os.PathLike) -> None:
        """Write the settings beside the model."""
        path = Path(directory) / DETECTOR_FILE
        text = json.dumps(asdict(self) | {"threshold": float(self.threshold)}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Settings":
        """Read the settings beside a model.

        Args:
            directory: Directory of the model, or its name on the Hub.

        Raises:
            InputError: There are none, or they are malformed.
        """
        path = Path(directory) / DETECTOR_FILE
        hint = f"no {DETECTOR_FILE}; give the output directory of recipes/anomaly_detection.py"
        if Path(directory).is_dir():
            if not path.is_file():
                raise InputError(f"{directory}: {hint}")
        else:
            try:
                path = Path(hf_hub_download(str(directory), DETECTOR_FILE))
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise InputError(f"{directory}: {hint} ({one_line(error, 150)})") from None
        try:
            values = read_object(path)
            scales = {
                name: Scale(tuple(one["loc"]), tuple(one["scale"]), one["days"])
                for name, one in values.pop("scales").items()
            }
            for name in ("columns", "number_columns", "event_columns"):
                values[name] = None if values[name] is None else tuple(values[name])
            return cls(scales=scales, **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: no settings of a detector ({error})") from None

    def scale_of(self, name: str) -> Scale:
        """Scaling of a series; if only one is known, of any.

        Raises:
            InputError: The detector knows several series, and none of that name.
        """
        if name in self.scales:
            return self.scales[name]
        if len(self.scales) == 1:
            return next(iter(self.scales.values()))
        raise InputError(
            f"series {name!r}: the detector was trained on {', '.join(sorted(self.scales)[:5])} …; name one"
        )


class Likelihood:
    """Surprise of several channels against its own distribution (Ahmad et al. 2017, section 4.2).

    Of each channel the mean of the last steps is compared with mean and standard deviation of its long past, which are
    averages over all steps at first and exponentially weighted later; the largest of these standard scores is the
    score of a step. The paper's likelihood is the Gaussian tail of that score, which has no digits left from about 9
    standard deviations on.

    Args:
        channels: Number C of channels.
        short_window: Steps of the short mean.
        long_window: Steps after which the long past fades.
    """

    def __init__(self, channels: int, short_window: int, long_window: int) -> None:
        self.long_window = long_window
        self.recent = np.zeros((short_window, channels))
        self.pushed = 0
        # Values seen, their mean and variance, of each channel.
        self.seen, self.mean, self.variance = np.zeros(channels), np.zeros(channels), np.zeros(channels)

    def push(self, surprise: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return standard scores `[T, C]` of surprises `[T, C]`, NaN where nothing was observed."""
        found = np.zeros_like(surprise)
        length = len(self.recent)
        for step, row in enumerate(surprise):
            observed = ~np.isnan(row)
            value = np.where(observed, row, self.mean)
            spread = np.sqrt(self.variance)
            known = (self.seen >= _WARM_UP) & (spread > 0)
            safe = np.where(known, spread, 1.0)
            self.recent[:-1] = self.recent[1:]
            self.recent[-1] = value
            self.pushed += 1
            mean = self.recent.sum(axis=0) / min(self.pushed, length)
            found[step] = np.where(known & observed, (mean - self.mean) / safe, 0.0)
            # Beyond this an anomaly would raise the deviation so much that the next one passes.
            value = np.where(known, np.minimum(value, self.mean + _CLIP * safe), value)
            rate = observed / np.minimum(self.seen + 1, self.long_window)
            change = value - self.mean
            self.mean = self.mean + rate * change
            self.variance = (1 - rate) * (self.variance + rate * change**2)
            self.seen = self.seen + observed
        return found

    def state(self) -> tuple[torch.Tensor, ...]:
        """Tensors of the state, for `load`."""
        parts = (self.recent, self.seen, self.mean, self.variance, np.array([float(self.pushed)]))
        return tuple(torch.from_numpy(one.copy()) for one in parts)

    def load(self, state: Sequence[torch.Tensor]) -> None:
        """Continue from a state."""
        self.recent, self.seen, self.mean, self.variance, pushed = (one.numpy().copy() for one in state)
        self.pushed = int(pushed[0])


class Stream:
    """Scores of a stream of steps, whose state has a constant size.

    Attributes:
        last_scores: Score of each channel at the last step, `[C]`.
        last_time: Time of the last step.
        steps: Number of steps.

    Args:
        model: `…ForPrediction` for numbers, `…ForCausalLM` for events.
        settings: Settings of the detector.
        name: Name of the series.
        tokenizer: Tokenizer of a causal language model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Settings,
        name: str = "",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self.settings, self.tokenizer = model.eval(), settings, tokenizer
        self.device = model.device
        self.cache: Any = DynamicCache()
        self.scale = settings.scale_of(name) if settings.event_columns is None else None
        self._owner: float | None = None
        channels = len(settings.columns) if settings.event_columns is None else 1
        self.likelihood = Likelihood(channels, settings.short_window, settings.long_window)
        self.last_token = -1
        self.alarm_since = -math.inf
        self.last_time = -math.inf
        self.steps = 0
        self.last_scores = np.zeros(channels)

    @torch.inference_mode()
    def surprise(
        self,
        values: NDArray[np.float64] | None,
        times: NDArray[np.float64],
        texts: Sequence[str] | None = None,
    ) -> NDArray[np.float64]:
        """Negative log-likelihood of each new step, `[T, C]`, NaN where a value is missing, in nats.

        Args:
            values: Numbers `[T, C]`; None for events.
            times: Seconds since 1970, `[T]`.
            texts: Texts of the events.
        """
        if texts is not None:
            return self._surprise_of_events(texts)
        assert values is not None and self.scale is not None
        model: Any = self.model
        found = []
        for start in range(0, len(values), _CHUNK):
            part = slice(start, start + _CHUNK)
            scaled = torch.from_numpy(self.scale.apply(values[part], log=self.settings.log)).float()[None]
            options: dict[str, Any] = {}
            if model.config.num_time_features:
                features = time_features(times[part], self.scale.days)
                options["past_time_features"] = torch.from_numpy(features).float()[None].to(self.device)
            if not self.cache.layers:
                one = torch.ones(1, 1, scaled.shape[2], device=self.device)
                options |= {"loc": 0 * one, "scale": one}
            scores = model.log_likelihood(scaled.to(self.device), cache=self.cache, **options)
            scores = -scores.reshape(scaled.shape[1:]).double().cpu().numpy()
            scores[np.isnan(values[part])] = np.nan
            found.append(scores)
        return np.concatenate(found)

    def _surprise_of_events(self, texts: Sequence[str]) -> NDArray[np.float64]:
        tokenizer: Any = self.tokenizer
        rows = tokenizer([f"{text}\n" for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for row in rows for token in row]
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        inputs = [start if self.last_token < 0 else self.last_token, *ids[:-1]]
        # A recurrent state goes on for ever; a Transformer reads its last tokens again.
        losses = token_losses(self.model, inputs, ids, self.cache)
        self.last_token = ids[-1]
        ends = np.cumsum([len(row) for row in rows])
        total = np.concatenate([[0.0], np.cumsum(losses)])
        return np.diff(total[np.concatenate([[0], ends])])[:, None]

    def push(
        self,
        values: NDArray[np.float64] | None,
        times: NDArray[np.float64],
        texts: Sequence[str] | None = None,
    ) -> NDArray[np.float64]:
        """Scores of new steps, `[T]`, in standard deviations; 0 where nothing was observed, or little before.

        Args:
            values: As for `surprise`.
            times: As for `surprise`.
            texts: As for `surprise`.
        """
        if not len(times):
            return np.empty(0)
        standard = self.likelihood.push(self.surprise(values, times, texts))
        self.steps, self.last_time, self.last_scores = self.steps + len(times), float(times[-1]), standard[-1]
        return standard.max(axis=1)

    def read(self, recording: Recording) -> NDArray[np.float64]:
        """Scores of the steps of a recording, which continues the stream."""
        texts = recording.texts
        return self.push(None if texts is not None else recording.values, recording.times, texts)

    def raises_alarm(self, score: float, time: float) -> bool:
        """Return True if a step raises an alarm: it is above the threshold, and no alarm is on."""
        if score < self.settings.threshold or time - self.alarm_since <= self.settings.hold:
            return False
        self.alarm_since = time
        return True

    @property
    def owner(self) -> float:
        """Checksum of the weights and the scaling, without which a state means nothing."""
        if self._owner is None:
            found = zlib.crc32(repr((self.settings.columns, self.scale, self.settings.log)).encode())
            for weights in self.model.state_dict().values():
                found = zlib.crc32(weights.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
            self._owner = float(found)
        return self._owner

    def save(self, path: str | os.PathLike) -> None:
        """Write the state of the stream to a file, by way of another, so that the file is complete at any time.

        Raises:
            InputError: Nothing has been read yet, the model has no state of constant size, or the file cannot be
                written.
        """
        if not self.steps:
            raise InputError("no step has been read yet, so there is no state")
        own = RecurrentCacheLayer()
        own.model_type = _STATE_TYPE
        values = [self.last_token, self.steps, self.alarm_since, self.last_time, self.owner]
        numbers = torch.tensor(values, dtype=torch.float64)
        own.update((numbers, *self.likelihood.state()), 0)
        self.cache.layers.append(own)
        try:
            save_state(self.cache, f"{os.fspath(path)}.part")
            os.replace(f"{os.fspath(path)}.part", path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{os.fspath(path)}: the state cannot be written ({one_line(error, 150)})") from None
        finally:
            self.cache.layers.pop()

    def load(self, path: str | os.PathLike) -> None:
        """Continue from a state that `save` wrote.

        Raises:
            InputError: The file cannot be read, or is no state of a stream of this model and series.
        """
        cache: Any = load_state(path, self.device)
        own = cache.layers.pop() if len(cache.layers) > 1 else None
        if own is None or own.model_type != _STATE_TYPE or len(own.states) != 6:
            raise InputError(f"{os.fspath(path)}: a state, but not of a stream of anomaly detection")
        numbers, *rest = (one.cpu() for one in own.states)
        if rest[0].shape != self.likelihood.recent.shape or len(numbers) != 5:
            raise InputError(
                f"{os.fspath(path)}: the state has {tuple(rest[0].shape)} steps and channels, this detector "
                f"{self.likelihood.recent.shape}; it belongs to another detector"
            )
        if float(numbers[4]) != self.owner:
            raise InputError(
                f"{os.fspath(path)}: the state belongs to another detector, or to another series of this one; give "
                "another file"
            )
        self.cache = cache
        self.likelihood.load(rest)
        self.last_token, self.steps = int(numbers[0]), int(numbers[1])
        self.alarm_since, self.last_time = float(numbers[2]), float(numbers[3])


@torch.inference_mode()
def token_losses(
    model: PreTrainedModel, inputs: Sequence[int], targets: Sequence[int], cache: Any
) -> NDArray[np.float64]:
    """Negative log-probability of each target given the inputs up to its own, `[T]`, in nats.

    Args:
        model: Causal language model. One of hfseq continues from `cache`; of others each chunk of half their positions
            is read after the half before it, and `cache` is not used.
        inputs: Token ids; the token before each target.
        targets: Token ids.
        cache: State after the earlier tokens; updated in place.
    """
    recurrent = is_hfseq(model.config)
    positions = getattr(model.config, "max_position_embeddings", None) or _CHUNK
    size = _CHUNK if recurrent else max(1, min(positions, _CHUNK) // 2)
    found = []
    for start in range(0, len(targets), size):
        before = 0 if recurrent else min(start, size)
        ids = torch.tensor([inputs[start - before : start + size]], device=model.device)
        options = {"cache": cache, "use_cache": True} if recurrent else {}
        logits = model(input_ids=ids, **options).logits[0, before:].float()
        wanted = torch.tensor(targets[start : start + size], device=model.device)
        found.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().cpu().numpy())
    return np.concatenate(found)
