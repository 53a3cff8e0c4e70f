"""Bodies of requests to `/predict` and of responses: the types of inputs, results and errors, for the OpenAPI schema.

Inputs are checked by the predictors, which know the model; these types say the same as far as a schema can.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, RootModel, create_model

from hfseq.serving.parameters import Parameters

MAX_INPUTS = 256
"""Maximum number of inputs in a request."""


class ErrorDetails(BaseModel):
    """Details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Response to a rejected or failed request."""

    error: ErrorDetails


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is invalid",
        401: "The API key is missing or wrong",
        404: "There is no such model",
        408: "The request was not sent in time",
        413: "The request body is too large",
        415: "The body has another content type",
        500: "Internal error",
        503: "The queue is full, or the server is shutting down",
        504: "The request took too long",
    }.items()
}
"""Error responses of the endpoints."""


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"
    task: str
    backend: str


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class PredictRequest(BaseModel):
    """Body of `/predict`, in the form of Hugging Face's Inference Endpoints.

    Attributes:
        inputs: One input of the model's task, or a list of them.
        parameters: Settings of the task's pipeline.
        model: Name of the model; needed where several are served.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    inputs: JsonValue
    parameters: dict[str, JsonValue] | None = None
    model: str | None = None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Number = FiniteFloat | int
Score = float | None
"""A number; None where the model computes none that is finite."""


class TextPair(_Strict):
    """Two texts that are classified together."""

    text: str
    text_pair: str


class Samples(_Strict):
    """Samples of a recording."""

    array: Annotated[list[Number], Field(min_length=1)]
    sampling_rate: Annotated[int, Field(ge=1000, le=200_000)]


class SeriesEntry(BaseModel):
    """A series in GluonTS' format; missing values are null."""

    target: list[Number | str | None]
    start: JsonValue = None
    freq: str | None = None
    item_id: JsonValue = None
    feat_dynamic_real: list[list[Number | str | None]] | None = None
    feat_static_real: list[Number] | None = None
    feat_static_cat: list[JsonValue] | None = None


class Class(_Strict):
    """A class and its score."""

    label: str
    score: Score


class Tag(_Strict):
    """A token with its tag, or an entity."""

    entity: str | None = None
    entity_group: str | None = None
    score: Score
    index: int | None = None
    word: str | None
    start: int | None
    end: int | None


class Translation(_Strict):
    """A translation."""

    translation_text: str


class Summary(_Strict):
    """A summary."""

    summary_text: str


class Generated(_Strict):
    """A text that continues a prompt."""

    generated_text: str


class Transcript(_Strict):
    """A transcript."""

    text: str


class Forecast(_Strict):
    """A forecast; quantiles by their levels."""

    mean: list[Score]
    quantiles: dict[str, list[Score]] | None = None
    samples: list[list[Score]] | None = None
    timestamps: list[str] | None = None


class Recommended(_Strict):
    """A recommended item and its logit."""

    item: str
    score: Score


class Types(NamedTuple):
    """Types of a task.

    Attributes:
        input: One input.
        output: The whole response.
    """

    input: Any
    output: Any


Recording = Annotated[str, Field(description="A file in base64")] | Samples
TYPES = {
    "audio-classification": Types(Recording, list[Class] | list[list[Class]]),
    "automatic-speech-recognition": Types(Recording, Transcript | list[Transcript]),
    "next-item-recommendation": Types(list[str], list[Recommended] | list[list[Recommended]]),
    "summarization": Types(str, list[Summary] | list[list[Summary]]),
    "text-classification": Types(str | TextPair, list[list[Class]]),
    "text-generation": Types(str, list[Generated] | list[list[Generated]]),
    "time-series-forecasting": Types(list[Number | None] | SeriesEntry, Forecast | list[Forecast]),
    "token-classification": Types(str, list[Tag] | list[list[Tag]]),
    "translation": Types(str, list[Translation] | list[list[Translation]]),
}
"""Types of each task."""


def request_schemas(served: Sequence[tuple[str, str, type[Parameters]]]) -> list[type[BaseModel]]:
    """Bodies of requests, one for each task that is served.

    Args:
        served: Name, task and settings of each model.
    """
    found: list[type[BaseModel]] = []
    for task, parameters in {task: parameters for _, task, parameters in served}.items():
        names = tuple(name for name, own, _ in served if own == task)
        one = TYPES[task].input
        fields: dict[str, Any] = {
            "inputs": (one | Annotated[list[one], Field(max_length=MAX_INPUTS)], ...),  # type: ignore[valid-type]
            "parameters": (parameters | None, None),
            "model": (Literal[names] | None, None),
        }
        title = "Predict" + "".join(map(str.capitalize, task.split("-")))
        found.append(create_model(title, __base__=PredictRequest, __doc__=f"Body of a request for {task}.", **fields))
    return found


def response_schema(tasks: Sequence[str]) -> type[BaseModel]:
    """Responses of tasks."""
    outputs = tuple(TYPES[task].output for task in dict.fromkeys(tasks))
    output: Any = Union[outputs] if outputs else JsonValue  # noqa: UP007 (of a tuple)
    about = "Results, as the task's pipeline has them."
    return create_model("PredictResponse", __base__=RootModel[output], __doc__=about)
