"""Filter for HTTP requests to the demo page.

gradio's application has more routes than the page needs: among others, it accepts uploads of any size from anyone, and
its components fetch files that a request names. Only the routes of the page are open here, for text and numbers only.
"""

import json
from collections import deque

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfseq.serving.http_json import Refusal, read_object

LONGEST_BODY = 2**18
"""Maximum size of a request in bytes, many times the text that a model reads."""
_API = "/gradio_api/"
_READ = {"/", "/config", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css"}
_READ |= {_API + name for name in ("info", "queue/data", "startup-events")}
_READ_BELOW = ("/assets/", "/static/", _API + "heartbeat/")
_SENT = {_API + name for name in ("cancel", "queue/join", "reset", "run/predict")}


class Gate:
    """ASGI middleware that responds with 404 to other routes than the page's, and with 4xx to invalid requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or reject it."""
        if scope["type"] == "http":
            try:
                receive = await _admit(scope, receive)
            except HTTPException as error:
                await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _admit(scope: Scope, receive: Receive) -> Receive:
    """Check a request; return a `receive` that replays its body.

    Raises:
        Refusal: If the route is not open, or the body is invalid.
    """
    method, path = scope["method"], scope["path"]
    if method in ("GET", "HEAD") and (path in _READ or path.startswith(_READ_BELOW)):
        return receive
    if method != "POST" or path not in _SENT:
        raise Refusal(404, "Not Found")
    fields = await read_object(Request(scope, receive), LONGEST_BODY)
    data = fields.get("data") or []
    if not isinstance(data, list) or not all(one is None or isinstance(one, str | int | float) for one in data):
        raise Refusal(400, "the data of a request must be texts and numbers")
    body: Message = {"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}
    messages = deque([body])

    async def replay() -> Message:
        return messages.popleft() if messages else await receive()

    return replay
