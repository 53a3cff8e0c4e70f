"""Filter for HTTP requests to the demo page.

gradio's application has more routes than the page needs: among others, it accepts uploads of any size from anyone, and
its components fetch files that a request names. Only the routes of the page are open here, for text and numbers only.

A page of recordings has two more, which gradio's own never see: one takes a recording and keeps it in memory, one
gives it back to whoever knows its name. Neither writes or reads a file.
"""

import asyncio
import json
from collections import deque

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfseq.demo.audio import LARGEST_RECORDING, Recordings
from hfseq.errors import InputError
from hfseq.serving.http_json import Refusal, read_bytes, read_object

LONGEST_BODY = 2**18
"""Maximum size of a request in bytes, many times the text that a model reads."""
UPLOADS = 4
"""Maximum number of recordings that are received at the same time; others wait."""
UPLOAD_SECONDS = 60.0
"""Maximum time in which a recording is received."""
_API = "/gradio_api/"
_READ = {"/", "/config", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css"}
_READ |= {_API + name for name in ("info", "queue/data", "startup-events")}
_READ_BELOW = ("/assets/", "/static/", _API + "heartbeat/")
_SENT = {_API + name for name in ("cancel", "queue/join", "reset", "run/predict")}
_UPLOAD, _FILE = _API + "upload", _API + "file="
# Of the form around a recording.
_FORM_BYTES = 2**12


class Gate:
    """ASGI middleware that responds with 404 to other routes than the page's, and with 4xx to invalid requests.

    Args:
        app: The application of the page.
        recordings: Where recordings are kept; None for a page without any.
    """

    def __init__(self, app: ASGIApp, recordings: Recordings | None = None) -> None:
        self._app = app
        self._recordings = recordings
        self._uploads = asyncio.Semaphore(UPLOADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, answer it, or reject it."""
        if scope["type"] == "http":
            response: Response | None = None
            try:
                if self._recordings is not None and scope["path"].startswith((_UPLOAD, _FILE)):
                    response = await self._exchange(Request(scope, receive), self._recordings)
                else:
                    receive = await _admit(scope, receive)
            except HTTPException as error:
                response = JSONResponse({"detail": error.detail}, error.status_code)
            if response is not None:
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _exchange(self, request: Request, recordings: Recordings) -> Response:
        """Keep a recording and return its name in a list, as gradio does; or return the recording of a name.

        Raises:
            Refusal: If the request is neither, or not one of the page itself, or its body is invalid.
        """
        path = request.url.path
        if request.method in ("GET", "HEAD") and path.startswith(_FILE):
            found = recordings.get(path.removeprefix(_FILE))
            if found is None:
                raise Refusal(404, "Not Found")
            headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
            return Response(found.contents, media_type=found.media_type, headers=headers)
        if request.method != "POST" or path != _UPLOAD:
            raise Refusal(404, "Not Found")
        # A form, unlike JSON, may come from the page of another site; browsers say so.
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise Refusal(403, "recordings are taken from this page only")
        try:
            async with asyncio.timeout(UPLOAD_SECONDS), self._uploads:
                contents = await _read_upload(request)
                name = await asyncio.to_thread(recordings.add, contents)
        except TimeoutError:
            raise Refusal(408, f"the recording did not arrive within {UPLOAD_SECONDS:g} s") from None
        except InputError as error:
            raise Refusal(400, str(error)) from None
        return JSONResponse([name])


async def _read_upload(request: Request) -> bytes:
    """The only file of a form.

    Raises:
        Refusal: If the body is too large, or is no such form.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(415, "the Content-Type must be multipart/form-data")
    body = await read_bytes(request, LARGEST_RECORDING + _FORM_BYTES)
    whole = Request(request.scope, _replay(body, request.receive))
    parser = MultiPartParser(whole.headers, whole.stream(), max_files=1, max_fields=0)
    # Nothing is written to the disk.
    parser.spool_max_size = len(body)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refusal(400, "the body is not a form with one file") from error
    file = form.get("files")
    if file is None or isinstance(file, str):
        raise Refusal(400, "the body is not a form with one file")
    return await file.read()


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
    return _replay(json.dumps(fields).encode(), receive)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns a body that was read, then what follows."""
    messages: deque[Message] = deque([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        return messages.popleft() if messages else await receive()

    return replay
