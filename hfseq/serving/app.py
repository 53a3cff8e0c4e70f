"""The HTTP application: every pipeline task at `/predict`, OpenAI's endpoints for language models, health, metrics.

All errors have OpenAI's format, `{"error": {"message", "type", "param", "code"}}`. Clients get the errors in their
requests but no details of internal failures, which are logged.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hfseq.serving.dynamic import Item
from hfseq.serving.http_json import (
    Refusal,
    arriving,
    choose_model,
    content_type,
    read_bytes,
    read_object,
    timed_out,
    unless_disconnected,
)
from hfseq.serving.metrics import Metrics
from hfseq.serving.observing import Observer
from hfseq.serving.openai_routes import Answered, openai_router
from hfseq.serving.refusals import details_of, refusal_of
from hfseq.serving.schemas import ERRORS, ModelCard, ModelList, PredictRequest, request_schemas, response_schema
from hfseq.serving.served import Served
from hfseq.serving.traffic import TrafficLog
from hfseq.version import __version__

DISCONNECTED = 499
"""Status, in the log and the metrics alone, of requests whose client disconnected."""


class Settings(NamedTuple):
    """Settings of an application.

    Attributes:
        api_keys: Keys that requests must have one of, as `Authorization: Bearer KEY`; empty for no authentication.
        timeout: Seconds after which a request is given up with status 504.
        max_body: Maximum size of a request body in bytes.
        drain: Seconds to finish requests in when the server is stopped.
        traffic: Log of inputs and outputs; None for none.
    """

    api_keys: tuple[str, ...] = ()
    timeout: float = 60.0
    max_body: int = 2**24
    drain: float = 30.0
    traffic: TrafficLog | None = None


def make_app(models: Sequence[Served], metrics: Metrics, settings: Settings) -> FastAPI:
    """Create the application.

    Args:
        models: Models to serve, with different names.
        metrics: Metrics, to which the models report.
        settings: Settings of the application.
    """
    by_name = {served.name: served for served in models}
    created = int(time.time())
    for served in models:
        metrics.watch_queue(served.name, partial(getattr, served, "waiting"))
    if settings.traffic is not None:
        metrics.dropped.set_function(partial(getattr, settings.traffic, "dropped"))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(asyncio.to_thread(served.close, settings.drain) for served in models))
        if settings.traffic is not None:
            await asyncio.to_thread(settings.traffic.close)

    app = FastAPI(
        title="hfseq",
        version=__version__,
        description="Models of hfseq and of transformers, served over HTTP.",
        openapi_url=None,  # below, since it needs a key, too
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    app.add_middleware(Observer, metrics=metrics)
    guarded = [Depends(key_checker(settings.api_keys))] if settings.api_keys else []

    async def predict(request: Request) -> Response:
        try:
            asked = await read_predict(request, settings)
            served = by_name[choose_model(by_name, asked.model)]
            request.state.model = served.name
            return await unless_disconnected(request, answer(request, served, asked))
        except (ClientDisconnect, HTTPException):
            raise
        except Exception as error:
            raise refusal_of(error) from error

    async def answer(request: Request, served: Served, asked: PredictRequest) -> Response:
        try:
            async with asyncio.timeout(settings.timeout):
                items, single = await served.read(asked.inputs, asked.parameters or {})
                served.batcher.submit(items)
                metrics.tokens.labels(served.name, "input").inc(sum(item.length for item in items))
                results = await answers(items)
        except TimeoutError:
            raise timed_out(settings.timeout) from None
        if settings.traffic is not None:
            outputs = list(zip((served.predictor.summarize(item.value) for item in items), results, strict=True))
            write_traffic(settings.traffic, request, served, outputs, asked.parameters or {}, single)
        return JSONResponse(served.predictor.respond(results, single))

    bodies = request_schemas([(served.name, served.task, served.predictor.parameters) for served in models])
    app.add_api_route(
        "/predict",
        predict,
        methods=["POST"],
        dependencies=guarded,
        openapi_extra=describe_request(list(by_name), bodies),
        responses={**ERRORS, 200: {"model": response_schema([served.task for served in models])}},
        response_model=None,
        summary="Answer inputs of any task, in the form of Hugging Face's Inference Endpoints",
    )

    def note(answered: Answered) -> None:
        metrics.tokens.labels(answered.model, "input").inc(answered.prompt_tokens)
        metrics.tokens.labels(answered.model, "output").inc(sum(one.generated for one in answered.generations))
        if settings.traffic is not None:
            texts = [[completion.text for completion in one.completions] for one in answered.generations]
            outputs = list(zip(answered.inputs, texts, strict=True))
            single = len(outputs) == 1
            write_traffic(
                settings.traffic, answered.request, by_name[answered.model], outputs, answered.parameters, single
            )

    language_models = {one.name: one.language_model for one in models if one.language_model is not None}
    app.include_router(openai_router(language_models, settings, note), dependencies=guarded, responses=ERRORS)

    @app.get("/v1/models", dependencies=guarded, responses={401: ERRORS[401]})
    async def list_models() -> ModelList:
        """Models that are served."""
        cards = [
            ModelCard(id=served.name, created=created, task=served.task, backend=served.backend) for served in models
        ]
        return ModelList(data=cards)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Return 200 while the process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: ERRORS[503]})
    async def ready() -> dict[str, str]:
        """Return 200 while all models answer, else 503."""
        if down := [served.name for served in models if not served.ready]:
            raise Refusal(503, f"not ready: {', '.join(down)}")
        return {"status": "ready"}

    @app.get("/metrics", dependencies=guarded, response_class=PlainTextResponse, responses={401: ERRORS[401]})
    async def show_metrics() -> Response:
        """Metrics in Prometheus' format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", dependencies=guarded, include_in_schema=False)
    async def show_schema() -> dict[str, Any]:
        return app.openapi()

    add_schemas(app, bodies)
    return app


_AUDIO = ("audio/wav", "audio/flac", "audio/mpeg", "audio/ogg", "application/octet-stream")


def describe_request(names: Sequence[str], bodies: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """Describe requests to `/predict` in OpenAPI's format.

    Args:
        names: Names of the models.
        bodies: Schemas of the bodies.
    """
    schema = {"anyOf": [{"$ref": f"#/components/schemas/{body.__name__}"} for body in bodies]}
    kinds = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _AUDIO}
    model = {
        "name": "model",
        "in": "query",
        "description": "Name of the model, where the body does not name it",
        "schema": {"type": "string", "enum": list(names)},
    }
    content = {"application/json": {"schema": schema}, **kinds}
    return {"parameters": [model], "requestBody": {"required": True, "content": content}}


def add_schemas(app: FastAPI, schemas: Sequence[type[BaseModel]]) -> None:
    """Add the schemas of bodies that the endpoints read themselves to the OpenAPI description of an application."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, bodies = models_json_schema(
                [(schema, "validation") for schema in schemas], ref_template="#/components/schemas/{model}"
            )
            found.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"])
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def key_checker(api_keys: Sequence[str]) -> Any:
    """A dependency that rejects requests without one of the keys; it takes as long for any wrong key."""
    # Digests have one length, so that the comparison does not tell that of the key.
    known = [hashlib.sha256(key.encode()).digest() for key in api_keys]
    scheme = HTTPBearer(auto_error=False, description="The key of --api_key, if the server has one")

    async def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        if not known:
            return
        asked = hashlib.sha256((credentials.credentials if credentials else "").encode()).digest()
        # All are compared, not the first alone.
        if not sum(hmac.compare_digest(asked, key) for key in known):
            raise Refusal(401, "the API key is missing or wrong", code="invalid_api_key")

    return check


async def read_predict(request: Request, settings: Settings) -> PredictRequest:
    """Read a request to `/predict`: JSON, or one recording as it is.

    Raises:
        Refusal: If the body is invalid, too large, or does not come in time.
    """
    kind = content_type(request)
    names: list[str] = []
    for key, value in request.query_params.multi_items():
        if key != "model" or names:
            message = f"{key[:100]!r}: unknown in the address, or there twice; it may have `model`"
            raise Refusal(400, message, param=key[:100])
        names.append(value)
    name = names[0] if names else None
    async with arriving(settings.timeout):
        if kind.startswith("audio/") or kind == "application/octet-stream":
            recording = await read_bytes(request, settings.max_body)
            return PredictRequest.model_construct(inputs=recording, parameters=None, model=name)
        if kind != "application/json":
            raise Refusal(415, "the Content-Type must be application/json, or that of a recording: audio/wav …")
        body = await read_object(request, settings.max_body)
    asked = PredictRequest.model_validate(body)
    if name is not None and asked.model not in (None, name):
        raise Refusal(400, "the address and the body name two models", param="model")
    return asked.model_copy(update={"model": asked.model or name})


async def answers(items: Sequence[Item]) -> list[Any]:
    """Results of queued inputs; once one has failed, or the request is cancelled, the others are cancelled.

    Raises:
        Exception: That of the first input that fails.
    """
    try:
        return await asyncio.gather(*(asyncio.wrap_future(item.future) for item in items))
    finally:
        for item in items:
            item.future.cancel()


def write_traffic(
    traffic: TrafficLog,
    request: Request,
    served: Served,
    answered: Sequence[tuple[Any, Any]],
    parameters: Mapping[str, Any],
    single: bool,
) -> None:
    """Log the inputs of a request with their outputs.

    Args:
        traffic: The log.
        request: The request.
        served: The model.
        answered: Inputs and outputs.
        parameters: Settings of the request.
        single: Whether the request has one input that is not in a list; the id of such an input is the request's.
    """
    time_of_answer = datetime.now(UTC).isoformat()
    for number, (value, output) in enumerate(answered):
        traffic.write(
            {
                "id": request.state.request_id + ("" if single else f"-{number}"),
                "time": time_of_answer,
                "model": served.name,
                "task": served.task,
                "inputs": value,
                "parameters": parameters,
                "output": output,
            }
        )


async def report(request: Request, error: Any) -> Response:
    """The response to a rejected or failed request, in OpenAI's format."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=DISCONNECTED)
    refusal = refusal_of(error)
    headers = refusal.headers or _HEADERS.get(refusal.status_code)
    return JSONResponse({"error": details_of(refusal)}, refusal.status_code, headers)


HANDLERS: dict[Any, Any] = dict.fromkeys((HTTPException, RequestValidationError, ClientDisconnect, Exception), report)
"""Handlers of the exceptions of an application."""
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},  # or the server would read on
    503: {"Retry-After": "1"},
}
