"""Request ids, metrics and logs of an application."""

import json
import logging
import sys
import time
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfseq.serving.metrics import Metrics

LOGGER = "hfseq.serving"
"""Logger of the server."""
_LONGEST_ID = 100
# Fields that the server adds to log records.
_FIELDS = ("request_id", "method", "path", "status", "milliseconds", "model")


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Requests are logged without their texts.

    Messages of exceptions may quote an input. They are left out, but for those of torch and of the operating system.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        fields |= {name: getattr(record, name) for name in _FIELDS if name in vars(record)}
        if record.exc_info:
            fields["traceback"] = _traceback(record.exc_info[1])
        return json.dumps(fields)


def _traceback(error: BaseException | None) -> str:
    """Traceback of an exception and of those it comes from, the latest first."""
    parts: list[str] = []
    while error is not None:
        message = f": {error}" if isinstance(error, RuntimeError | OSError) else ""
        parts += [f"{type(error).__name__}{message}\n", *traceback.format_tb(error.__traceback__)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(parts)


class SafeHandler(logging.StreamHandler):
    """Drops what cannot be written: a full disk must not fail requests."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore the error."""


def start_logging() -> None:
    """Write the log of the server and of uvicorn to the standard error stream, as JSON."""
    handler = SafeHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in (LOGGER, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Observer:
    """ASGI middleware that gives each request an id, and counts and logs it.

    The id is that of the request's `X-Request-Id`, if it is printable and not too long, and returned in the same
    header of the response. Endpoints find it in `request.state.request_id` and leave the name of the model, if there
    is one, in `request.state.model`.

    Args:
        app: The application.
        metrics: Metrics to count in.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = logging.getLogger(LOGGER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        sane = asked.isascii() and asked.isprintable() and 0 < len(asked) <= _LONGEST_ID
        request_id = asked if sane else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, model="")
        status = 499

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        begin = time.perf_counter()
        try:
            await self._app(scope, receive, send_counted)
        except Exception:
            # The server sends the response if none has been sent, and logs the error.
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - begin
            route = scope.get("route")
            # Paths that do not exist are counted together: they are anybody's choice.
            path = getattr(route, "path", "other")
            self._metrics.requests.labels(state["model"], path, str(status)).inc()
            self._metrics.latency.labels(state["model"], path).observe(seconds)
            self._log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "milliseconds": round(1000 * seconds, 1),
                    "model": state["model"],
                },
            )
