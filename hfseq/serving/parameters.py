"""Settings that requests to `/predict` may have, by task."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from hfseq.errors import InputError, did_you_mean
from hfseq.serving.limits import MAX_BEAMS

Number = Annotated[int, Field(ge=1, le=1000)]


def _as_tuple(value: Any) -> Any:
    """A list as a tuple, which has a hash."""
    return tuple(value) if isinstance(value, list) else value


class Parameters(BaseModel):
    """Settings of a request: no unknown ones, no conversion of types, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Check the settings of a request.

        Raises:
            InputError: If one is unknown.
            pydantic.ValidationError: If one is invalid.
        """
        for name in given:
            if name not in cls.model_fields:
                known = name[:100]  # a client may send any name, of any length
                shown = known if known.isprintable() else repr(known)
                raise InputError(f"{shown}: unknown setting{did_you_mean(known, cls.model_fields)}")
        return cls.model_validate(dict(given))

    def given(self) -> dict[str, Any]:
        """The settings that the request has."""
        return self.model_dump(exclude_none=True)


class ClassificationParameters(Parameters):
    """Settings of classification; by default all classes are returned."""

    top_k: Number | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    truncation: bool | None = None


class AudioClassificationParameters(Parameters):
    """Settings of the classification of audio; by default all classes are returned."""

    top_k: Number | None = None


class TaggingParameters(Parameters):
    """Settings of tagging."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Annotated[
        tuple[Annotated[str, Field(max_length=100)], ...] | None, Field(max_length=1000), BeforeValidator(_as_tuple)
    ] = None


class GenerationParameters(Parameters):
    """Settings of generation with an encoder-decoder model, named as in `GenerationConfig`."""

    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    num_return_sequences: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=1e-3, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class TextToTextParameters(GenerationParameters):
    """Settings of translation and summarization."""

    truncation: bool | None = None
    src_lang: Annotated[str, Field(max_length=100)] | None = None
    tgt_lang: Annotated[str, Field(max_length=100)] | None = None


class ForecastingParameters(Parameters):
    """Settings of forecasting."""

    prediction_length: Annotated[int, Field(ge=1)] | None = None
    num_samples: Number | None = None
    quantile_levels: Annotated[
        tuple[float, ...] | None,
        Field(min_length=1, max_length=100),
        BeforeValidator(_as_tuple),
    ] = None
    return_samples: bool | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class RecommendationParameters(Parameters):
    """Settings of recommendation."""

    top_k: Number | None = None
    filter_seen: bool | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None


class RecognitionParameters(GenerationParameters):
    """Settings of speech recognition; those of generation are for encoder-decoder models."""
