"""HTTP requests: their bodies, with a size limit, the model that they name, and clients that disconnect."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


class Refusal(HTTPException):
    """A rejected request.

    Args:
        status_code: HTTP status.
        detail: Message for the client.
        param: The offending field.
        code: OpenAI's error code, if there is one.
    """

    def __init__(self, status_code: int, detail: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status_code, detail)
        self.param = param
        self.code = code


def invalid_field(found: Mapping[str, Any]) -> Refusal:
    """The response to an invalid field, from one of the errors of a `ValidationError`; it does not quote the value."""
    param = ".".join(map(str, found["loc"]))[:100]
    shown = param if param.isprintable() else repr(param)
    message = found["msg"].removeprefix("Value error, ")[:200]
    if found["type"] == "extra_forbidden":
        message = "is not supported by this server"
    return Refusal(400, f"{shown}: {message}", param=param)


def timed_out(timeout: float) -> Refusal:
    """The response to a request that took more than so many seconds."""
    return Refusal(504, f"the request took more than {timeout:g} s")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key occurs twice: which of the values counts would depend on the reader."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a body strictly, a JSON object; unpaired surrogates are replaced by "?".

    Raises:
        Refusal: If it is not a JSON object, a key occurs twice, or a number is too large (400).
    """
    try:
        fields = json.loads(body, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        # Writing it again finds numbers such as 1e999, which are read as infinite, and unpaired surrogates.
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        try:
            text.encode()
        except UnicodeEncodeError:
            fields = json.loads(text.encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not valid JSON") from error
    if not isinstance(fields, dict):
        raise Refusal(400, "the body is not a JSON object")
    return fields


def content_type(request: Request) -> str:
    """Media type of a request in lower case, without its parameters; empty if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def arriving(timeout: float) -> AsyncIterator[None]:
    """Limit the time in seconds to read the body of a request in.

    Raises:
        Refusal: If it is over (408).
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise Refusal(408, f"the request body did not arrive within {timeout:g} s") from None


async def read_bytes(request: Request, longest: int) -> bytes:
    """Read the body of a request.

    Args:
        request: The request.
        longest: Maximum size of the body in bytes; no more is buffered.

    Raises:
        Refusal: If the body is too long (413).
    """
    refusal = Refusal(413, f"the request body exceeds {longest} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 20 or int(declared) > longest):
        raise refusal
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > longest:
            raise refusal
    return bytes(body)


async def read_object(request: Request, longest: int) -> dict[str, Any]:
    """Read the body of a request, a JSON object, with unpaired surrogates replaced by "?".

    Args:
        request: The request.
        longest: Maximum size of the body in bytes; no more is buffered.

    Raises:
        Refusal: If the body is too long (413), not declared as JSON (415), or not a JSON object (400).
    """
    # A cross-site request from a browser can have plain text as its body, but not JSON.
    if content_type(request) != "application/json":
        raise Refusal(415, "the Content-Type must be application/json")
    return parse_object(await read_bytes(request, longest))


def choose_model(names: Collection[str], asked: str | None, kind: str = "model") -> str:
    """Name of the model that a request asks for; it need not name the only one.

    Args:
        names: Names of the models that there are.
        asked: Name in the request, or None.
        kind: Noun phrase for the models, for messages.

    Raises:
        Refusal: If there is no such model (404), or the request names none of several (400).
    """
    there = f"there {'is' if len(names) == 1 else 'are'} {', '.join(map(repr, names)) or 'none'}"
    if asked is None:
        if len(names) == 1:
            return next(iter(names))
        raise Refusal(400, f"name the {kind}; {there}", param="model")
    if asked not in names:
        message = f"the {kind} {asked[:100]!r} does not exist; {there}"
        raise Refusal(404, message, param="model", code="model_not_found")
    return asked


async def unless_disconnected(request: Request, answering: Awaitable[T]) -> T:
    """The result of an answer, which is cancelled once the client of a request, whose body was read, disconnects.

    Raises:
        ClientDisconnect: If it does.
    """
    tasks = asyncio.ensure_future(answering), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
