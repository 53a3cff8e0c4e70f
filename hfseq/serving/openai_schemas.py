"""Schemas of OpenAI's requests, with bounds on all fields, and their conversion to generation settings.

Accepted are the fields of OpenAI's API that have an effect here, `user` and `metadata`, which have none there either,
and a few fields of `GenerationConfig`. Other fields, and values that would be ignored, are rejected.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import Request
from transformers import GenerationConfig

from hfseq.serving.http_json import Refusal, invalid_field, read_object
from hfseq.serving.limits import LONGEST_STOP, MAX_BEAMS, MAX_STOPS

MAX_BIASES = 300
"""Maximum number of tokens in a `logit_bias`."""
MAX_MESSAGES = 1000
"""Maximum number of messages in a chat."""
MAX_PROMPTS = 128
"""Maximum number of prompts in a request."""
MAX_SEQUENCES = 128
"""Maximum number of sequences that are generated for a request, as in OpenAI's API."""
# Temperatures between 0, which means greedy decoding, and this overflow the scores.
_COLDEST = 1e-3


def _temperature(value: float) -> float:
    if 0 < value < _COLDEST:
        raise ValueError(f"must be 0 or at least {_COLDEST}")
    return value


def _as_list(value: Any) -> Any:
    """A single stop string as a list, an empty list as None."""
    return [value] if isinstance(value, str) else None if value == [] else value


def _as_parts(value: Any) -> Any:
    """The text of a message as a list of one part."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError('must be a string, or a list of parts of the form {"type": "text", "text": "..."}')
    return value


def _as_prompts(value: Any) -> list[str | list[int]]:
    """A prompt in any of its four forms as a list of prompts."""
    if value is None:
        return [""]
    if isinstance(value, str) or _is_tokens(value):
        return [value]
    prompts = isinstance(value, list) and value and all(isinstance(one, str) or _is_tokens(one) for one in value)
    if not prompts:
        raise ValueError("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"{len(value)} prompts; the maximum is {MAX_PROMPTS}")
    return value


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _unsupported(value: Any) -> None:
    if value is not None:
        raise ValueError("is not supported by this server")


_TOKENS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        _TOKENS_SCHEMA,
        {"type": "array", "items": _TOKENS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
        {"type": "null"},
    ]
}

Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_temperature)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=0, le=2**31)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
Sequences = Annotated[int, Field(ge=1, le=MAX_SEQUENCES)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Prompts = Annotated[list, BeforeValidator(_as_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
Unsupported = Annotated[None, BeforeValidator(_unsupported)]


class _Fields(BaseModel):
    """Strict schema: no unknown fields, no conversion of types, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Fields):
    """Options of a stream."""

    include_usage: bool | None = None


class _Request(_Fields):
    """Fields common to both endpoints."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Sequences | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Annotated[Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_as_list)] = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    # Fields of other servers, named as in GenerationConfig.
    top_k: Count | None = None
    min_p: Probability | None = None
    min_tokens: Count | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None

    @property
    def samples(self) -> int:
        """Number of sequences to generate for each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """True if the last part of a stream has the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check(self) -> None:
        """Check fields that depend on each other.

        Raises:
            Refusal: If two contradict each other.
        """
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options: only with stream=true", param="stream_options")
        if (self.num_beams or 1) > 1:
            if self.stream:
                raise Refusal(400, "stream: beam search cannot be streamed", param="stream")
            if self.temperature:
                raise Refusal(400, "temperature: beam search does not sample", param="temperature")
            if self.samples > (self.num_beams or 1):
                raise Refusal(400, f"n: at most num_beams={self.num_beams}", param="n")

    def options(self, vocab_size: int, own: GenerationConfig) -> dict[str, Any]:
        """Fields of a `GenerationConfig` for the request.

        As in OpenAI's API a request is sampled from the whole vocabulary unless it, or the model's settings, say
        otherwise.

        Args:
            vocab_size: Size of the vocabulary.
            own: Settings of the model.

        Raises:
            Refusal: If a bias is for a token outside the vocabulary.
        """
        bias = self.logit_bias
        found = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "min_new_tokens": self.min_tokens,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
            "sequence_bias": [[[_token(key, vocab_size)], value] for key, value in bias.items()] if bias else None,
        }
        found = {name: value for name, value in found.items() if value is not None}
        if self.temperature == 0 or (self.num_beams or own.num_beams or 1) > 1:
            return found | {"do_sample": False}
        if self.temperature is None and own.do_sample is False:
            return found | {"do_sample": False}
        # transformers would take the 50 most likely tokens.
        sampling = {"do_sample": True, "top_k": 0 if own.top_k is None else own.top_k}
        if self.temperature is not None:
            sampling["temperature"] = self.temperature
        return sampling | found


class CompletionRequest(_Request):
    """Body of `/v1/completions`."""

    prompt: Prompts = [""]
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: Unsupported = None

    @property
    def samples(self) -> int:
        """Number of sequences to generate for each prompt."""
        return max(self.n or 1, self.best_of or 1)

    def check(self) -> None:
        """Check fields that depend on each other.

        Raises:
            Refusal: If two contradict each other.
        """
        super().check()
        if self.best_of is not None:
            if self.best_of < (self.n or 1):
                raise Refusal(400, f"best_of: must be at least n={self.n}", param="best_of")
            if self.stream and self.best_of > (self.n or 1):
                raise Refusal(400, "best_of: not with stream=true", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise Refusal(400, "max_tokens: must be at least 1 without echo=true", param="max_tokens")
        if len(self.prompt) * self.samples > MAX_SEQUENCES:
            message = f"n: {len(self.prompt)} prompts with {self.samples} sequences each exceed {MAX_SEQUENCES}"
            raise Refusal(400, message, param="n")


class TextPart(_Fields):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Fields):
    """A chat message; the model's template validates the role."""

    role: Annotated[str, Field(max_length=100)]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts)]


class ResponseFormat(_Fields):
    """Format of a reply."""

    type: Literal["text"]


class ChatRequest(_Request):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None

    def check(self) -> None:
        """Check fields that depend on each other.

        Raises:
            Refusal: If two contradict each other.
        """
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal(400, "top_logprobs: only with logprobs=true", param="top_logprobs")
        if self.max_tokens == 0:
            raise Refusal(400, "max_tokens: must be at least 1", param="max_tokens")


Body = TypeVar("Body", bound=_Request)


def _token(key: str, vocab_size: int) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
        message = f"logit_bias: {key[:20]!r} is not a token id from 0 to {vocab_size - 1}"
        raise Refusal(400, message, param="logit_bias")
    return int(key)


async def read_request(request: Request, kind: type[Body], longest: int) -> Body:
    """Read and validate a request.

    Args:
        request: The request.
        kind: Schema of the request.
        longest: Maximum size of the body in bytes.

    Raises:
        Refusal: As `read_object`, or 400 if a field is invalid.
    """
    try:
        asked = kind.model_validate(await read_object(request, longest))
    except ValidationError as error:
        raise invalid_field(error.errors(include_url=False, include_context=False, include_input=False)[0]) from error
    asked.check()
    return asked


def body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a request, with its definitions inlined, for the application's OpenAPI schema."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return inlined(definitions[value["$ref"].rpartition("/")[2]])
        return {name: inlined(one) for name, one in value.items()}

    return inlined(schema)
