"""Schemas of the server's requests, with bounds on all fields, and their conversion to generation settings.

Supported are the fields of OpenAI's API that have an effect here. Other fields, and values that would be ignored, are
rejected, except `user` and `stream_options`: the last chunk of every stream includes the usage. `generation_config`, a
JSON string as in transformers' server, is limited to the fields of `GenerationOptions`; some other fields of
`GenerationConfig` load code from the Hub.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Json, ValidationError
from starlette.requests import Request

from hfseq.serving.http_json import Refusal, read_object

MAX_BEAMS = 10
"""Maximum number of beams, as on the demo page."""
MAX_STOPS = 4
"""Maximum number of stop strings, as in OpenAI's API."""
LONGEST_STOP = 100
"""Maximum length of a stop string in characters."""
MAX_BIASES = 300
"""Maximum number of tokens in a `logit_bias`."""
MAX_MESSAGES = 1000
"""Maximum number of messages in a chat."""
# Temperatures between 0, which means greedy decoding, and this overflow the scores.
_COLDEST = 1e-3


def _temperature(value: float) -> float:
    if 0 < value < _COLDEST:
        raise ValueError(f"must be 0 or at least {_COLDEST}")
    return value


def _as_list(value: Any) -> Any:
    """A single stop string as a list, an empty list as None."""
    return [value] if isinstance(value, str) else None if value == [] else value


def _none_as_empty(value: Any) -> Any:
    return "" if value is None else value


def _as_parts(value: Any) -> Any:
    """The text of a message as a list of one part."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError('must be a string, or a list of parts of the form {"type": "text", "text": "..."}')
    return value


Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_temperature)]
TopP = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
One = Annotated[int, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Fields(BaseModel):
    """Strict schema: no unknown fields, no conversion of types, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerationOptions(_Fields):
    """Accepted fields of a `generation_config`, named as in `GenerationConfig`."""

    max_new_tokens: Tokens | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    top_p: TopP | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None


class _Request(_Fields):
    """Fields common to both endpoints."""

    model: str | None = None
    stream: bool | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    frequency_penalty: Annotated[float, Field(ge=-0.9, le=2)] | None = None
    stop: Annotated[Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_as_list)] = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    generation_config: Json[GenerationOptions] | None = None
    n: One | None = None
    presence_penalty: Zero | None = None
    user: str | None = None
    stream_options: dict | None = None

    def settings(self, vocab_size: int) -> dict[str, Any]:
        """Fields of a `GenerationConfig` that the request sets.

        Raises:
            Refusal: If a bias is for a token outside the vocabulary, or beams are to be sampled.
        """
        config, penalty, bias = self.generation_config, self.frequency_penalty, self.logit_bias
        own = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "repetition_penalty": None if penalty is None else 1 + penalty,
            "stop_strings": self.stop,
            "sequence_bias": [[[_token(key, vocab_size)], value] for key, value in bias.items()] if bias else None,
        }
        asked = {} if config is None else config.model_dump(exclude_none=True)
        asked |= {name: value for name, value in own.items() if value is not None}
        if asked.get("temperature") == 0:
            del asked["temperature"]
            asked["do_sample"] = False
        if asked.get("num_beams", 1) > 1:
            if asked.get("do_sample"):
                raise Refusal(400, "num_beams: beam search requires do_sample=false", param="generation_config")
            asked["do_sample"] = False
        return asked

    def for_handler(self, name: str, vocab_size: int) -> dict[str, Any]:
        """The request body for transformers' handlers.

        Args:
            name: Name of the model.
            vocab_size: Size of its vocabulary.

        Raises:
            Refusal: As `settings`.
        """
        body = self.model_dump(include={"messages", "prompt", "seed", "suffix"})
        config = json.dumps(self.settings(vocab_size))
        return body | {"model": name, "generation_config": config, "stream": bool(self.stream)}


class CompletionRequest(_Request):
    """Body of `/v1/completions`."""

    prompt: Annotated[str, BeforeValidator(_none_as_empty)] = ""
    suffix: str | None = None
    best_of: One | None = None
    echo: Literal[False] | None = None
    logprobs: None = None


class TextPart(_Fields):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Fields):
    """A chat message; the model's template validates the role."""

    role: Annotated[str, Field(max_length=100)]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts)]


class ChatRequest(_Request):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: Literal[False] | None = None

    def settings(self, vocab_size: int) -> dict[str, Any]:
        """Let `max_completion_tokens` override `max_tokens`."""
        longest = self.max_completion_tokens
        return super().settings(vocab_size) | ({} if longest is None else {"max_new_tokens": longest})


Body = TypeVar("Body", bound=_Request)


def _token(key: str, vocab_size: int) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
        raise Refusal(400, f"logit_bias: {key[:20]!r} is not a token id from 0 to {vocab_size - 1}")
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
        return kind.model_validate(await read_object(request, longest))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))[:100]
        shown = param if param.isprintable() else repr(param)
        raise Refusal(400, f"{shown}: {first['msg'].removeprefix('Value error, ')[:200]}", param=param) from error
