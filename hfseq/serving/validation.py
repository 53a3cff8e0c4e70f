"""Requests to the server: the fields that one may have, with their bounds, and what they ask of `generate`.

Fields are those of OpenAI's API that have an effect here. Others are refused, as is a value that would have to be
ignored, but for `user` and `stream_options`: the usage is in the last piece of every stream. `generation_config`, a
string of JSON as transformers' server takes it, is limited to the fields of `GenerationOptions`; some of
`GenerationConfig`'s others load code from the Hub.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json, ValidationError, field_validator
from starlette.requests import Request

from hfseq.serving.http_json import Refusal, read_object

MAX_BEAMS = 10
"""Beams of a request, as on the demo page."""
MAX_STOPS = 4
"""Stop strings of a request, as with OpenAI."""
LONGEST_STOP = 100
"""Characters of a stop string."""
MAX_BIASES = 300
"""Tokens in a `logit_bias`."""
MAX_MESSAGES = 1000
"""Messages of a chat."""
# A temperature between 0, which is greedy, and this would only make infinite scores.
_COLDEST = 1e-3


def _temperature(value: float | None) -> float | None:
    if value is not None and 0 < value < _COLDEST:
        raise ValueError(f"must be 0 or at least {_COLDEST}")
    return value


def _listed(value: Any) -> Any:
    """One stop string as a list of it; an empty list is none."""
    return [value] if isinstance(value, str) else None if value == [] else value


def _joined(value: Any) -> Any:
    """The text of a message's content, which may be a list of parts; nothing but text is read."""
    if not isinstance(value, list):
        return value
    if any(not isinstance(part, dict) or set(part) != {"type", "text"} or part["type"] != "text" for part in value):
        raise ValueError('the parts of a content are of the form {"type": "text", "text": "..."}')
    if not all(isinstance(part["text"], str) for part in value):
        raise ValueError("the text of a part is a string")
    return " ".join(part["text"] for part in value)


Temperature = Annotated[float, Field(ge=0, le=100)]
TopP = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
One = Annotated[int, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class _Fields(BaseModel):
    """Fields that are all given as they are: no text is read as a number, and nothing is infinite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerationOptions(_Fields):
    """Fields of a `generation_config`, by their names in `GenerationConfig`."""

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

    _cold = field_validator("temperature")(_temperature)


class _Asked(_Fields):
    """Fields of both kinds of requests."""

    model: str | None = None
    stream: bool | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    frequency_penalty: Annotated[float, Field(ge=-0.9, le=2)] | None = None
    stop: Annotated[Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_listed)] = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    generation_config: Json[GenerationOptions] | None = None
    n: One | None = None
    presence_penalty: Zero | None = None
    user: str | None = None
    stream_options: dict | None = None

    _cold = field_validator("temperature")(_temperature)

    def settings(self, vocab_size: int) -> dict[str, Any]:
        """Fields of a `GenerationConfig`; those that the request does not name are left to the model.

        Raises:
            Refusal: If the request has a bias for what is not one of the `vocab_size` tokens, or draws beams.
        """
        asked: dict[str, Any] = {} if self.generation_config is None else self.generation_config.model_dump()
        penalty, bias = self.frequency_penalty, self.logit_bias
        own = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "repetition_penalty": None if penalty is None else 1 + penalty,
            "stop_strings": self.stop,
            "sequence_bias": [[[_token(key, vocab_size)], value] for key, value in bias.items()] if bias else None,
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        asked |= {name: value for name, value in own.items() if value is not None}
        if asked.get("temperature") == 0:
            del asked["temperature"]
            asked["do_sample"] = False
        if asked.get("num_beams", 1) > 1:
            if asked.get("do_sample"):
                raise Refusal(400, "num_beams: with beams do_sample must be false", param="generation_config")
            asked["do_sample"] = False
        return asked

    def for_handler(self, name: str, vocab_size: int) -> dict[str, Any]:
        """The body that transformers' handlers get.

        Args:
            name: Of the model.
            vocab_size: Number of its tokens.

        Raises:
            Refusal: As `settings`.
        """
        body = {"model": name, "generation_config": json.dumps(self.settings(vocab_size)), "stream": bool(self.stream)}
        return body if self.seed is None else body | {"seed": self.seed}


class CompletionRequest(_Asked):
    """Body of `/v1/completions`."""

    prompt: str | None = None
    suffix: str | None = None
    best_of: One | None = None
    echo: Literal[False] | None = None
    logprobs: None = None

    def for_handler(self, name: str, vocab_size: int) -> dict[str, Any]:
        """See `_Asked`."""
        return super().for_handler(name, vocab_size) | {"prompt": self.prompt or "", "suffix": self.suffix}


class Message(_Fields):
    """A message of a chat; its role is for the model's template to judge."""

    role: Annotated[str, Field(max_length=100)]
    content: Annotated[str, BeforeValidator(_joined)]


class ChatRequest(_Asked):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: Literal[False] | None = None

    def settings(self, vocab_size: int) -> dict[str, Any]:
        """See `_Asked`."""
        longest = self.max_completion_tokens
        return super().settings(vocab_size) | ({} if longest is None else {"max_new_tokens": longest})

    def for_handler(self, name: str, vocab_size: int) -> dict[str, Any]:
        """See `_Asked`."""
        return super().for_handler(name, vocab_size) | {"messages": [one.model_dump() for one in self.messages]}


Body = TypeVar("Body", bound=_Asked)


def _token(key: str, vocab_size: int) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
        raise Refusal(400, f"logit_bias: {key[:20]!r} is not one of the model's tokens 0 to {vocab_size - 1}")
    return int(key)


async def read_request(request: Request, kind: type[Body], longest: int) -> Body:
    """The fields of a request.

    Args:
        request: The request.
        kind: The fields that it may have.
        longest: Bytes of its body.

    Raises:
        Refusal: As `read_object`, or 400 if a field is wrong.
    """
    try:
        return kind.model_validate(await read_object(request, longest))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))[:100]
        shown = param if param.isprintable() else repr(param)
        raise Refusal(400, f"{shown}: {first['msg'].removeprefix('Value error, ')[:200]}", param=param) from error
