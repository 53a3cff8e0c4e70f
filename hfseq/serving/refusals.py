"""Responses to errors."""

import logging
import re
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from hfseq.errors import InputError
from hfseq.serving.batcher import is_out_of_memory
from hfseq.serving.dynamic import Closed, QueueFull
from hfseq.serving.http_json import Refusal, invalid_field
from hfseq.serving.observing import LOGGER

_LONGEST = 400  # characters of a message that may quote a value of the request
_FAILED = "internal server error; see the server's log"
_log = logging.getLogger(LOGGER)


def refusal_of(error: BaseException) -> Refusal:
    """The response to an error; errors that the client did not cause are logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        refusal = Refusal(error.status_code, str(error.detail))
        refusal.headers = error.headers  # the methods that are allowed
        return refusal
    if isinstance(error, InputError):
        # Messages begin with the name of the setting, or the place of the input.
        named = re.match(r"([\w.\[\]]{1,100}):", str(error))
        return Refusal(400, _cut(str(error)), param=named and named[1])
    if isinstance(error, ValidationError | RequestValidationError):
        return invalid_field(error.errors()[0])
    if isinstance(error, QueueFull | Closed):
        return Refusal(503, str(error))
    _log.error("a request failed", exc_info=error)
    if is_out_of_memory(error):
        return Refusal(500, "out of memory; send fewer or shorter inputs")
    return Refusal(500, _FAILED)


def _cut(message: str) -> str:
    """A message without the middle of a long value that it quotes; what to do about it stands at the end."""
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"


def details_of(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's description of an error."""
    kind = "invalid_request_error" if refusal.status_code < 500 else "server_error"
    return {"message": refusal.detail, "type": kind, "param": refusal.param, "code": refusal.code}
