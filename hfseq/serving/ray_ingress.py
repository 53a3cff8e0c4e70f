"""The HTTP side on Ray Serve: hands requests to replicas, and to others if those die."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fastapi import Depends, FastAPI
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request
from starlette.responses import Response

from hfseq.errors import one_line
from hfseq.serving.app import HANDLERS, key_checker
from hfseq.serving.http_json import (
    Refusal,
    arriving,
    choose_model,
    content_type,
    parse_object,
    read_bytes,
    timed_out,
)
from hfseq.serving.observing import LOGGER
from hfseq.serving.openai_routes import EventStream
from hfseq.serving.ray_arguments import GRACE, Arguments, Forwarded
from hfseq.serving.refusals import details_of
from hfseq.version import __version__

RETRIES = 2
"""Number of times that a request whose replica died is given to another; it may be what the replica died of."""
_READY_TIMEOUT = 5.0  # seconds
_log = logging.getLogger(LOGGER)


class Ingress:
    """The HTTP side: checks a request, hands it to a replica, and to another if that one dies.

    Args:
        arguments: Arguments of the application.
        models: Handle of the deployment of `Models`.
    """

    def __init__(self, arguments: Arguments, models: Any) -> None:
        self._arguments = arguments
        self._models = models
        self._names = list(arguments.directories())

    def __serve_build_asgi_app__(self) -> FastAPI:  # noqa: N807
        """The application; Ray calls this once."""
        created = int(time.time())
        key = os.environ.get("HFSEQ_API_KEY")
        guarded = [Depends(key_checker((key,) if key else ()))]
        app = FastAPI(
            title="hfseq",
            version=__version__,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,  # that of the replicas is forwarded
            exception_handlers=HANDLERS,
        )
        app.router.redirect_slashes = False

        @app.get("/v1/models", dependencies=guarded)
        async def list_models() -> dict[str, Any]:
            cards = [{"id": name, "object": "model", "created": created, "owned_by": "local"} for name in self._names]
            return {"object": "list", "data": cards}

        @app.get("/health")
        async def health() -> dict[str, str]:
            return {"status": "ok"}

        @app.get("/ready")
        async def ready() -> dict[str, str]:
            try:
                async with asyncio.timeout(_READY_TIMEOUT):
                    await self._models.check_health.remote()
            except Exception as error:
                raise Refusal(503, f"not ready: {one_line(error)}") from error
            return {"status": "ready"}

        @app.get("/metrics", dependencies=guarded)
        async def show_metrics() -> Response:
            found = await self._models.broadcast("metrics").results_async(
                timeout_s=_READY_TIMEOUT, return_exceptions=True
            )
            text = merge_metrics([one for one in found if not isinstance(one, BaseException)])
            return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

        @app.get("/openapi.json", dependencies=guarded)
        async def describe(request: Request) -> Response:
            return await self._forward(request, b"", self._names[0])

        @app.post("/{path:path}", dependencies=guarded)
        async def answer(request: Request) -> Response:
            async with arriving(self._arguments.timeout):
                body = await read_bytes(request, self._arguments.max_body_mib * 2**20)
            return await self._forward(request, body, choose_model(self._names, self._named(request, body)))

        return app

    def _named(self, request: Request, body: bytes) -> str | None:
        """The name of the model in a request; with one model its application checks it."""
        if len(self._names) == 1:
            return self._names[0]
        name = request.query_params.get("model")
        if content_type(request) == "application/json":
            name = parse_object(body).get("model") or name
        if not isinstance(name, str | None):
            raise Refusal(400, "model: not a text", param="model")
        return name

    async def _forward(self, request: Request, body: bytes, name: str) -> Response:
        """The response of a replica to a request.

        Raises:
            Refusal: If the queue is full, there is no answer in time, or every replica that was asked died.
        """
        scope = request.scope
        forwarded = Forwarded(scope["method"], scope["path"], scope["query_string"], list(scope["headers"]), body)
        options: dict[str, Any] = {"multiplexed_model_id": name} if self._arguments.multiplexed else {}
        handle = self._models.options(stream=True, **options)
        deadline = asyncio.get_running_loop().time() + self._arguments.timeout + GRACE
        for _ in range(RETRIES + 1):
            stream = handle.answer.remote(name, forwarded)
            streaming = False
            try:
                async with asyncio.timeout_at(deadline):
                    status, headers = await anext(stream)
                    streaming = (b"content-type", b"text/event-stream") in [
                        (key.lower(), value.partition(b";")[0]) for key, value in headers
                    ]
                    response = (
                        EventStream(_stream_events(stream), stream.cancel)
                        if streaming
                        else Response(b"".join([part async for part in stream]), status)
                    )
                    # Ray sets the same id.
                    response.raw_headers = [one for one in headers if one[0].lower() != b"x-request-id"]
                    return response
            except RayActorError as error:
                _log.warning("a replica died; its request goes to another: %s", one_line(error, 200))
            except BackPressureError as error:
                raise Refusal(503, "too many requests are waiting already; try again later") from error
            except TimeoutError as error:
                raise timed_out(self._arguments.timeout) from error
            finally:
                if not streaming:
                    stream.cancel()
        raise Refusal(503, f"{RETRIES + 1} replicas died of or during this request; try again later")


async def _stream_events(stream: Any) -> AsyncIterator[bytes]:
    """The parts of a stream of events, with an error as the last if the replica dies: the client has the others."""
    try:
        async for part in stream:
            yield part
    except RayActorError:
        yield f"data: {json.dumps({'error': details_of(Refusal(503, 'the replica died'))})}\n\n".encode()


class _Families:
    """A collector of metrics that were collected elsewhere."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        return self._families


def merge_metrics(found: Sequence[tuple[str, str]]) -> bytes:
    """Metrics of replicas as one text, with the label `replica`.

    Args:
        found: Id of each replica and its metrics, in Prometheus' text format.
    """
    families: dict[str, Metric] = {}
    for replica, text in found:
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)
