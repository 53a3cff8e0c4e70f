"""Inputs, settings and results of each pipeline task behind `/predict`."""

import base64
import binascii
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteriaList

from hfseq.errors import InputError, one_line
from hfseq.models import is_hfseq
from hfseq.models.audio import read_audio, resample
from hfseq.models.beam_search import SentenceCriteria
from hfseq.serving.dynamic import Item
from hfseq.serving.parameters import (
    AudioClassificationParameters,
    ClassificationParameters,
    ForecastingParameters,
    RecognitionParameters,
    RecommendationParameters,
    TaggingParameters,
    TextToTextParameters,
)
from hfseq.serving.prediction import Predictor, jsonable, type_name

MAX_NUMBERS = 10**6
"""Maximum number of numbers in a response of forecasts."""
MAX_SECONDS = 600
"""Maximum length of a recording in seconds."""
MAX_SAMPLES = MAX_SECONDS * 48_000
"""Maximum number of samples of a recording, all channels together: some formats compress silence to nothing."""


class _OfTexts(Predictor):
    """Base of predictors of texts."""

    def read(self, value: Any, place: str, options: Any) -> tuple[str, int]:
        """Check a text and count its tokens."""
        if not isinstance(value, str):
            raise InputError(f"{place}: {type_name(value)} in place of a text")
        return value, self.count({"text": value}, place, options)

    def count(self, texts: Mapping[str, str], place: str, options: Any) -> int:
        """Number of tokens of a text, or a pair of texts, checked against the maximum."""
        length = len(self.tokenizer(**texts, verbose=False)["input_ids"])  # type: ignore[misc]
        longest = self.tokenizer.model_max_length  # type: ignore[union-attr]
        if length > longest and not getattr(options, "truncation", None):
            cut = ', or set "truncation": true' if "truncation" in type(options).model_fields else ""
            raise InputError(f"{place}: {length} tokens; the maximum is {longest}: shorten it{cut}")
        return min(length, longest)


class TextClassification(_OfTexts):
    """Classification of texts: for each a list of classes with scores, best first."""

    parameters = ClassificationParameters

    def read(self, value: Any, place: str, options: Any) -> tuple[Any, int]:
        """Check a text, or a pair `{"text": …, "text_pair": …}`."""
        if isinstance(value, dict):
            if {*value} != {"text", "text_pair"} or not all(isinstance(part, str) for part in value.values()):
                raise InputError(f'{place}: a pair of texts has the form {{"text": "…", "text_pair": "…"}}')
            length = self.count(value, place, options)
        else:
            _, length = super().read(value, place, options)
        if not length:
            raise InputError(f"{place}: the text has no tokens")
        return value, length

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """All classes unless `top_k` limits them."""
        return super().call(values, {"top_k": None} | options)

    def respond(self, results: list[Any], single: bool) -> Any:
        """A list for each input, also for a single one, as the Hub's API does."""
        return results


class TokenClassification(_OfTexts):
    """Tagging of texts: for each a list of tokens or, with `aggregation_strategy`, of entities."""

    parameters = TaggingParameters

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """Texts without a token have no tags."""
        rows = [row for row, text in enumerate(values) if text.strip()]
        results: list[Any] = [[] for _ in values]
        if rows:
            for row, found in zip(rows, super().call([values[row] for row in rows], options), strict=True):
                results[row] = found
        return results


class _Generates(Predictor):
    """Base of predictors that generate."""

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        if model.can_generate():
            config: Any = model.generation_config
            # The first of the sequence's tokens is the start token. Both limits together would be warned of.
            own = config.max_new_tokens or (None if config.max_length is None else config.max_length - 1)
            config.max_length = config.max_new_tokens = None
        super().__init__(model, *args, **kwargs)
        # The start token has the first of the positions.
        self.longest = min(self.limits.max_new_tokens, self.limits.positions - 1)
        self.own_length = min(own, self.longest) if model.can_generate() and own else self.longest

    def check(self, options: Any) -> Any:
        """Check the number of tokens and of sequences."""
        if (options.max_new_tokens or 0) > self.longest:
            raise InputError(f"max_new_tokens: {options.max_new_tokens}; the maximum is {self.longest}")
        if (options.min_new_tokens or 0) > (options.max_new_tokens or self.own_length):
            raise InputError(f"min_new_tokens: {options.min_new_tokens} is more than the maximum of new tokens")
        own = int(self.pipe.model.generation_config.num_beams or 1)
        wanted, beams = options.num_return_sequences or 1, options.num_beams or own
        if wanted > 1 and not options.do_sample and wanted > beams:
            raise InputError(f"num_return_sequences: {wanted}, but there are {beams} beams")
        names = [name for name in ("temperature", "top_k", "top_p", "seed") if getattr(options, name) is not None]
        if names and not options.do_sample:
            raise InputError(f'{names[0]}: for sampling only; set "do_sample": true')
        if options.do_sample and options.seed is None:
            options = options.model_copy(update={"seed": secrets.randbits(62)})
        return options

    def bounded(self, options: dict[str, Any]) -> dict[str, Any]:
        """Settings with a maximum of new tokens."""
        beams = {"num_beams": 1} if options.get("do_sample") else {}
        return {"max_new_tokens": self.own_length} | beams | options

    def stops(self, items: Sequence[Item]) -> dict[str, Any]:
        """A stopping criterion."""
        return {"stopping_criteria": StoppingCriteriaList([GivenUp(items)])}


class GivenUp(SentenceCriteria):
    """Ends all sequences once the requests of all inputs of a batch are cancelled.

    Args:
        items: Inputs of the batch.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return `[B]`, True where a sequence ends."""
        over = all(item.future.cancelled() for item in self._items)
        return torch.full(input_ids.shape[:1], over, dtype=torch.bool, device=input_ids.device)


class TextToText(_Generates, _OfTexts):
    """Translation and summarization: for each text a list of one dict or, of several sequences, of several."""

    parameters = TextToTextParameters

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.source_language: str | None = getattr(self.pipe.tokenizer, "src_lang", None)

    def check(self, options: Any) -> Any:
        """Languages are for translation."""
        if self.task != "translation" and (options.src_lang or options.tgt_lang):
            raise InputError(f"{'src_lang' if options.src_lang else 'tgt_lang'}: for translation only")
        self.check_languages({"src_lang": options.src_lang, "tgt_lang": options.tgt_lang})
        return super().check(options)

    def check_languages(self, languages: Mapping[str, str | None]) -> None:
        """Check that a multilingual model is given languages that it knows, and any other model none."""
        given = {name: code for name, code in languages.items() if code is not None}
        build = getattr(self.tokenizer, "_build_translation_inputs", None)  # as the pipeline does
        if build is None:
            for name in given:
                raise InputError(f"{name}: the model is not multilingual")
            return
        if len(given) == 1 or (not given and self.pipe.model.generation_config.forced_bos_token_id is None):
            missing = next(name for name in languages if name not in given)
            raise InputError(f"{missing}: missing; a multilingual model needs both src_lang and tgt_lang")
        for name, code in given.items():
            try:
                token = build("", "pt", code, code)["forced_bos_token_id"]
            except (KeyError, ValueError):
                token = None
            if token in (None, self.tokenizer.unk_token_id):  # type: ignore[union-attr]
                raise InputError(f"{name}: the model does not know the language {code!r}")

    def read(self, value: Any, place: str, options: Any) -> tuple[str, int]:
        """Check a text; the prefix counts."""
        if not isinstance(value, str):
            raise InputError(f"{place}: {type_name(value)} in place of a text")
        _, length = super().read(self.pipe.source_prefix + value, place, options)
        return value, length

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """A list for each text."""
        if self.source_language is not None and "src_lang" not in options:
            # The tokenizer keeps the language of the last request.
            self.pipe.tokenizer.src_lang = self.source_language
        found = self.pipe(values, batch_size=len(values), **self.bounded(options))
        return jsonable([one if isinstance(one, list) else [one] for one in found])

    def respond(self, results: list[Any], single: bool) -> Any:
        """As the pipeline: a list of dicts where each input has one, else a list for each input."""
        if single:
            return results[0]
        return [one[0] for one in results] if all(len(one) == 1 for one in results) else results


class _OfAudio(Predictor):
    """Base of predictors of recordings."""

    def read(self, value: Any, place: str, options: Any) -> tuple[Any, int]:
        """Decode a recording: a file, as bytes or in base64, or an array with its sampling rate."""
        rate: Any
        if isinstance(value, dict):
            if {*value} != {"array", "sampling_rate"}:
                raise InputError(f'{place}: give {{"array": […], "sampling_rate": …}}, or a file in base64')
            rate = value["sampling_rate"]
            if type(rate) is not int or not 1000 <= rate <= 200_000:
                raise InputError(f"{place}: sampling_rate is not a whole number of Hz from 1000 to 200000")
            samples = numbers(value["array"], f"{place}.array")
        else:
            if isinstance(value, str):
                try:
                    value = base64.b64decode(value, validate=True)
                except (binascii.Error, ValueError):
                    raise InputError(f"{place}: not base64") from None
            if not isinstance(value, bytes):
                raise InputError(f"{place}: {type_name(value)} in place of a recording in base64")
            try:
                samples, rate = read_audio(value, place, mono=True, max_samples=MAX_SAMPLES)
            except ValueError as error:
                raise InputError(one_line(error)) from None
        seconds = len(samples) / rate
        if not len(samples) or seconds > MAX_SECONDS:
            raise InputError(f"{place}: {seconds:.1f} s; a recording has up to {MAX_SECONDS} s, and not 0")
        wanted = int(self.extractor.sampling_rate)  # type: ignore[union-attr]
        samples = resample(samples, rate, wanted)
        if not len(samples):
            raise InputError(f"{place}: too short: no sample is left at {wanted} Hz")
        return {"raw": samples, "sampling_rate": wanted}, len(samples)

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """Results of recordings of all lengths at once, or of one length at a time.

        hfseq's models ignore padding. Some of transformers have no mask, and its pipeline also decodes what a CTC
        model makes of padding.
        """
        if is_hfseq(self.pipe.model.config):
            return self.call_alike(values, options)
        lengths = [len(value["raw"]) for value in values]
        results: list[Any] = [None] * len(values)
        for length in set(lengths):
            rows = [row for row, one in enumerate(lengths) if one == length]
            for row, found in zip(rows, self.call_alike([values[row] for row in rows], options), strict=True):
                results[row] = found
        return results

    def call_alike(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """Results of recordings of one length, or of a model that ignores padding."""
        # The pipelines take their inputs apart.
        return super().call([dict(value) for value in values], options)

    def summarize(self, value: Any) -> Any:
        """Length and rate of a recording."""
        return {"seconds": len(value["raw"]) / value["sampling_rate"], "sampling_rate": value["sampling_rate"]}


class AudioClassification(_OfAudio):
    """Classification of recordings: for each a list of classes with scores, best first."""

    parameters = AudioClassificationParameters

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """All classes unless `top_k` limits them."""
        return super().call(values, {"top_k": int(self.pipe.model.config.num_labels or 1)} | options)


class SpeechRecognition(_Generates, _OfAudio):
    """Speech recognition: for each recording a dict with its `text`."""

    parameters = RecognitionParameters

    def check(self, options: Any) -> Any:
        """A CTC model has no settings of generation."""
        if not self.pipe.model.can_generate():
            if given := options.given():
                raise InputError(f"{next(iter(given))}: for models that generate, which a CTC model does not")
            return options
        if (options.num_return_sequences or 1) > 1:
            raise InputError("num_return_sequences: a recording has one transcript")
        return super().check(options)

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """A transcript for each recording."""
        if not self.pipe.model.can_generate():
            return super().call(values, {})
        return super().call(values, {"generate_kwargs": self.bounded(options)})


class Forecasting(Predictor):
    """Forecasts of series, given as lists of numbers or in GluonTS' format."""

    parameters = ForecastingParameters

    def check(self, options: Any) -> Any:
        """Draw a seed if paths are sampled."""
        longest = self.limits.max_new_tokens
        if (options.prediction_length or 0) > longest:
            raise InputError(f"prediction_length: {options.prediction_length}; the maximum is {longest}")
        known = self.pipe.needs.prediction_length
        if options.prediction_length is None and known is None:
            raise InputError("prediction_length: missing; the model has none of its own")
        if self.pipe.needs.fixed_horizon and options.prediction_length not in (None, known):
            raise InputError(f"prediction_length: {options.prediction_length}; the model forecasts {known} steps")
        if not all(0 < level < 1 for level in options.quantile_levels or ()):
            raise InputError("quantile_levels: each must be above 0 and below 1")
        if getattr(self.pipe.model.config, "loss", "nll") == "mse":
            return options.model_copy(update={"seed": None})
        if options.seed is None:
            options = options.model_copy(update={"seed": secrets.randbits(62)})
        return options

    def items(self, inputs: Any, parameters: Mapping[str, Any]) -> tuple[list[Item], bool]:
        """Check a request, and the size of its response."""
        found, single = super().items(inputs, parameters)
        options: Any = found[0].options
        config: Any = self.pipe.model.config
        horizon = options.prediction_length or self.pipe.needs.prediction_length
        paths = (options.num_samples or getattr(config, "num_parallel_samples", 1)) if options.return_samples else 0
        size = len(found) * horizon * (1 + len(options.quantile_levels or range(9)) + paths)
        if size > MAX_NUMBERS:
            raise InputError(f"inputs: the forecasts would have {size} numbers; the maximum is {MAX_NUMBERS}")
        return found, single

    def is_single(self, inputs: Any) -> bool:
        """Return True for one series."""
        return not (isinstance(inputs, list) and any(isinstance(one, list | dict) for one in inputs))

    def read(self, value: Any, place: str, options: Any) -> tuple[Any, int]:
        """Check a series."""
        from hfseq.data.series import extended_stamps, regular_series, series_input

        if isinstance(value, list):
            value = [math.nan if one is None else one for one in value]
            if not all(type(one) in (int, float) for one in value):
                raise InputError(f"{place}: a series is a list of numbers; a missing one is null")
        elif not isinstance(value, dict):
            raise InputError(f"{place}: {type_name(value)} in place of a series")
        series = series_input(value, place)
        length = len(series.target)
        if length > self.limits.max_input_tokens:
            raise InputError(f"{place}: {length} values; the maximum is {self.limits.max_input_tokens}")
        if series.stamps is not None:
            # As the pipeline does, to find what is wrong with the time stamps.
            default = getattr(self.pipe.model.config, "frequency", None)
            regular = regular_series([series], series.frequency or default)[0][0]
            horizon = options.prediction_length or self.pipe.needs.prediction_length
            try:
                extended_stamps(regular.stamps, regular.frequency, horizon)  # type: ignore[arg-type]
            except (ValueError, OverflowError) as error:
                raise InputError(f"{place}: {one_line(error)}") from None
        return value, length

    def call(self, values: list[Any], options: dict[str, Any]) -> list[Any]:
        """A forecast for each series."""
        return jsonable(self.pipe(values, batch_size=len(values), **options))


class Recommendation(Predictor):
    """Recommendation of items after histories, lists of the names of items."""

    parameters = RecommendationParameters

    def is_single(self, inputs: Any) -> bool:
        """Return True for one history."""
        return not (isinstance(inputs, list) and any(isinstance(one, list) for one in inputs))

    def read(self, value: Any, place: str, options: Any) -> tuple[Any, int]:
        """Check a history."""
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise InputError(f"{place}: a history is a list of the names of items, oldest first")
        if len(value) > self.limits.max_input_tokens:
            raise InputError(f"{place}: {len(value)} items; the maximum is {self.limits.max_input_tokens}")
        return value, len(value)


PREDICTORS: dict[str, type[Predictor]] = {
    "audio-classification": AudioClassification,
    "automatic-speech-recognition": SpeechRecognition,
    "next-item-recommendation": Recommendation,
    "summarization": TextToText,
    "text-classification": TextClassification,
    "time-series-forecasting": Forecasting,
    "token-classification": TokenClassification,
    "translation": TextToText,
}
"""The predictor of each task of a pipeline but `text-generation`, which `LanguageModel` answers."""


def numbers(value: Any, place: str) -> Any:
    """Finite numbers of a JSON array, as an array `[N]` in float32.

    Raises:
        InputError: If it is not an array of finite numbers.
    """
    import numpy as np

    if not isinstance(value, list) or not all(type(one) in (int, float) for one in value):
        raise InputError(f"{place}: not a list of numbers")
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(value, dtype=np.float32)
    except OverflowError:  # a whole number of hundreds of digits
        found = np.full(1, math.inf)
    if not np.isfinite(found).all():
        raise InputError(f"{place}: NaN, infinite or too large")
    return found
