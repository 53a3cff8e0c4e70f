"""Bodies of HTTP requests, read with bounds."""

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from hfseq.data.running_text import encodable


class Refusal(HTTPException):
    """A request that is not answered: the status, and a sentence for the client.

    Args:
        status_code: Of HTTP.
        detail: The sentence.
        param: The field at fault.
        code: OpenAI's name of the error, where it has one.
    """

    def __init__(self, status_code: int, detail: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status_code, detail)
        self.param = param
        self.code = code


async def read_object(request: Request, longest: int) -> dict[str, Any]:
    """The body of a request, an object of JSON.

    Half a character, which JSON can hold and no tokenizer takes, becomes a question mark.

    Args:
        request: The request; no more of it is kept than `longest`.
        longest: Bytes of the body.

    Raises:
        Refusal: If the body is too long (413), not said to be JSON (415), or no object of JSON (400).
    """
    # A page of another site can have a browser send plain text to a server of its user, and no JSON.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the Content-Type of a request is application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > longest:
            raise Refusal(413, f"the body of a request has at most {longest} bytes")
    try:
        fields = _clean(json.loads(body, parse_constant=_no_number))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not valid JSON") from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the body is not an object of JSON")
    return fields


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _clean(value: Any) -> Any:
    """A value of JSON whose strings can be encoded."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items()}
    return value
