"""The HTTP application on Ray Serve: replicas on one or several machines, autoscaling, models multiplexed.

    serve run hfseq.serving.ray_app:app model_dirs=outputs/translation,outputs/sentiment num_replicas=2

or, in a config file of Ray Serve, `import_path: hfseq.serving.ray_app:app` with the fields of `Arguments` under `args`.

Two deployments answer a request. `Ingress` owns HTTP: it checks the key and the size, chooses the model and hands the
request to a replica of `Models`, which answers it with the application of `python -m hfseq.serve`, batching included.
When a replica dies, its requests are answered by another: a request changes nothing, so it may be repeated.
"""

import asyncio
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message

from hfseq.errors import one_line
from hfseq.serve import split_name
from hfseq.serving.app import Settings, choose_model, key_checker, make_app, report
from hfseq.serving.http_json import Refusal, parse_object, read_bytes
from hfseq.serving.limits import Limits
from hfseq.serving.metrics import Metrics
from hfseq.serving.observing import LOGGER, start_logging
from hfseq.serving.served import Served, check_names, load_served, public_name
from hfseq.serving.traffic import TrafficLog
from hfseq.version import __version__

RETRIES = 2
"""Number of times that a request whose replica died is given to another; it may be what the replica died of."""
_HEALTH_PERIOD = 2.0  # seconds; a dead replica is replaced after as many at most
_READY_TIMEOUT = 5.0  # seconds
_GRACE = 2.0  # seconds that the ingress waits beyond the replica's own time-out
_log = logging.getLogger(LOGGER)

Count = Annotated[int, Field(ge=1)]
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
    BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given),
]


class Arguments(BaseModel):
    """Arguments of the application; those of the server's command line have its names.

    Attributes:
        model_dirs: Directories or Hub names of the models, `NAME=DIRECTORY` to name one; separated by commas on a
            command line. Every machine must find them under the same path.
        num_replicas: Number of replicas; the minimum where `max_replicas` is given.
        max_replicas: Maximum number of replicas for autoscaling; None for a fixed number.
        max_models: Maximum number of models that a replica has loaded; the one used least recently makes room for
            another. By default all are loaded at the start.
        num_cpus: Processors, and threads, of a replica.
        num_gpus: GPUs of a replica, or the share of one.
        num_ingresses: Number of processes that own HTTP.
        task: Name of a pipeline's task; by default it follows from the model.
        backend: `torch` or `onnx`; by default it follows from the directory.
        max_batch_size: Maximum number of inputs processed together.
        max_queue: Maximum number of waiting requests; of waiting inputs of a model in each replica.
        max_input_tokens: Maximum length of an input in tokens, of a series in values, of a history in items.
        max_new_tokens: Maximum number of generated tokens, and the default of requests that set none.
        max_body_mib: Maximum size of a request in MiB.
        timeout: Seconds after which a request is given up.
        traffic_dir: Directory to log inputs and outputs in; None for no log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_dirs: Names
    num_replicas: Count = 1
    max_replicas: Count | None = None
    max_models: Count | None = None
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    num_ingresses: Count = 1
    task: str | None = None
    backend: str | None = None
    max_batch_size: Count = 32
    max_queue: Count = 1024
    max_input_tokens: Count = 2048
    max_new_tokens: Count = 1024
    max_body_mib: Count = 16
    timeout: Annotated[float, Field(gt=0)] = 60.0
    traffic_dir: str | None = None

    def directories(self) -> dict[str, str]:
        """Directories, or Hub names, of the models by public name.

        Raises:
            InputError: If two models have one name.
        """
        named = [split_name(one) for one in self.model_dirs]
        check_names([name or public_name(directory) for name, directory in named])
        return {name or public_name(directory): directory for name, directory in named}

    @property
    def multiplexed(self) -> bool:
        """Whether a replica has some of the models only."""
        return self.max_models is not None and self.max_models < len(self.model_dirs)


class Forwarded(NamedTuple):
    """A request on its way from the ingress to a replica; see ASGI's connection scope."""

    method: str
    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Started(NamedTuple):
    """Beginning of a response on its way back; the parts of the body follow it."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Loaded:
    """A model with its application. The model is closed once it is neither kept nor used by a request."""

    def __init__(self, served: Served, app: ASGIApp, metrics: Metrics) -> None:
        self.served = served
        self.app = app
        weakref.finalize(self, _unload, served, metrics)


def _unload(served: Served, metrics: Metrics) -> None:
    metrics.watch_queue(served.name, int)  # 0; the gauge held the model
    # Not here: the event loop runs this, and a batch that nobody waits for any more may be running.
    threading.Thread(target=served.close, daemon=True).start()


class Models:
    """A replica: answers requests with the application of the model that they name.

    Args:
        arguments: Arguments of the application.
    """

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]
        start_logging()
        self._arguments = arguments
        self._directories = arguments.directories()
        self._metrics = Metrics()
        self._traffic = None if arguments.traffic_dir is None else TrafficLog(arguments.traffic_dir)
        self._loaded: weakref.WeakValueDictionary[str, Loaded] = weakref.WeakValueDictionary()
        most = arguments.max_models or len(self._directories)

        @serve.multiplexed(max_num_models_per_replica=most)
        async def load(name: str) -> Loaded:
            return await asyncio.to_thread(self._load_model, name)

        self._load = load
        if not arguments.multiplexed:
            for name in self._directories:
                await load(name)

    def _load_model(self, name: str) -> Loaded:
        given, metrics = self._arguments, self._metrics
        limits = Limits(
            given.max_batch_size, given.max_queue, given.max_input_tokens, given.max_new_tokens, given.timeout
        )
        served = load_served(
            self._directories[name],
            name=name,
            task=given.task,
            backend=given.backend,
            limits=limits,
            observe=metrics.observe_batch,
        )
        # The ingress has checked the key.
        settings = Settings(timeout=given.timeout, max_body=given.max_body_mib * 2**20, traffic=self._traffic)
        loaded = self._loaded[name] = Loaded(served, make_app([served], metrics, settings), metrics)
        return loaded

    async def answer(self, name: str, request: Forwarded) -> AsyncIterator[Started | bytes]:
        """Answer a request.

        Args:
            name: Name of the model, one of those given at the start.
            request: The request.

        Yields:
            Status and headers of the response, then the parts of its body.
        """
        try:
            loaded = await self._load(name)  # kept until the response has ended
            app: ASGIApp = loaded.app
        except Exception:
            _log.exception("the model %r cannot be loaded", name)
            refusal = Refusal(503, f"the model {name!r} cannot be loaded; see the server's log")
            app = await report(Request({"type": "http"}), refusal)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "raw_path": request.path.encode(),
            **request._asdict(),
        }
        del scope["body"]
        bodies = iter([request.body])
        messages: asyncio.Queue[Message | None] = asyncio.Queue()

        async def receive() -> Message:
            for body in bodies:
                return {"type": "http.request", "body": body, "more_body": False}
            # A client that disconnects cancels the task.
            return await asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                await app(scope, receive, messages.put)
            except Exception as error:
                # The application has sent status 500, and logged the cause.
                _log.debug("request failed: %s", one_line(error))
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    yield Started(message["status"], [(bytes(key), bytes(value)) for key, value in message["headers"]])
                elif body := message.get("body"):
                    yield bytes(body)
        finally:
            task.cancel()

    async def metrics(self) -> tuple[str, str]:
        """Id of the replica, and its metrics in Prometheus' text format."""
        return serve.get_replica_context().replica_id.unique_id, self._metrics.text().decode()

    async def check_health(self) -> None:
        """Raise an error unless all models that are loaded answer; Ray then replaces the replica."""
        if down := [name for name, loaded in self._loaded.items() if not loaded.served.ready]:
            raise RuntimeError(f"models that do not answer: {', '.join(down)}")

    async def ready(self) -> None:
        """Raise an error unless all models that are loaded answer."""
        await self.check_health()

    async def __del__(self) -> None:
        """Answer what is waiting, then stop."""
        closing = [asyncio.to_thread(loaded.served.close, self._arguments.timeout) for loaded in self._loaded.values()]
        await asyncio.gather(*closing)
        if self._traffic is not None:
            await asyncio.to_thread(self._traffic.close)


class Ingress:
    """The HTTP side: checks a request, hands it to a replica, and to another if that one dies.

    Args:
        arguments: Arguments of the application.
        models: Handle of the deployment of `Models`.
    """

    def __init__(self, arguments: Arguments, models: Any) -> None:
        self._arguments = arguments
        self._models = models
        self._names = {name: name for name in arguments.directories()}

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
            exception_handlers={
                HTTPException: report,
                RequestValidationError: report,
                ClientDisconnect: report,
                Exception: report,
            },
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
                    await self._models.ready.remote()
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

        @app.get("/openapi.json")
        async def describe(request: Request) -> Response:
            return await self._forward(request, b"", next(iter(self._names)))

        @app.post("/{path:path}", dependencies=guarded)
        async def answer(request: Request) -> Response:
            try:
                async with asyncio.timeout(self._arguments.timeout):
                    body = await read_bytes(request, self._arguments.max_body_mib * 2**20)
            except TimeoutError:
                raise Refusal(408, f"the request body did not arrive within {self._arguments.timeout:g} s") from None
            return await self._forward(request, body, choose_model(self._names, self._named(request, body)))

        return app

    def _named(self, request: Request, body: bytes) -> str | None:
        """The name of the model in a request; with one model its application checks it."""
        if len(self._names) == 1:
            return next(iter(self._names))
        name = request.query_params.get("model")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            name = parse_object(body).get("model", name)
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
        deadline = asyncio.get_running_loop().time() + self._arguments.timeout + _GRACE
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
                        StreamingResponse(_stream_events(stream), status)
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
                raise Refusal(504, f"the request took more than {self._arguments.timeout:g} s") from error
            finally:
                if not streaming:
                    stream.cancel()
        raise Refusal(503, f"{RETRIES + 1} replicas died of or during this request; try again later")


async def _stream_events(stream: Any) -> AsyncIterator[bytes]:
    """The parts of a stream of events; its last event is an error if the replica dies, as the client has the others."""
    try:
        async for part in stream:
            yield part
    except RayActorError:
        details = {"message": "the replica died", "type": "server_error", "param": None, "code": None}
        yield f"data: {json.dumps({'error': details})}\n\n".encode()
    finally:
        stream.cancel()


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
    registry.register(_Families(families.values()))  # type: ignore[arg-type]
    return generate_latest(registry)


def app(args: Arguments) -> Application:
    """Build the application of Ray Serve.

    Args:
        args: Its arguments; Ray converts those of a command line or a config file.

    Raises:
        InputError: If two models have one name.
    """
    args.directories()
    most = args.max_replicas or args.num_replicas
    # Twice what a batch holds: the next one waits at the replica, the others where any replica can take them.
    ongoing = 2 * args.max_batch_size
    scaling = {
        "min_replicas": args.num_replicas,
        "max_replicas": most,
        "target_ongoing_requests": max(1, args.max_batch_size // 2),
    }
    number = {"num_replicas": args.num_replicas} if args.max_replicas is None else {"autoscaling_config": scaling}
    models = serve.deployment(
        Models,
        name="Models",
        max_ongoing_requests=ongoing,
        max_queued_requests=args.max_queue,
        graceful_shutdown_timeout_s=args.timeout + _GRACE,
        health_check_period_s=_HEALTH_PERIOD,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        logging_config={"enable_access_log": False},  # the application has its own
        **number,
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=args.num_ingresses,
        max_ongoing_requests=args.max_queue + ongoing * most,
        graceful_shutdown_timeout_s=args.timeout + _GRACE,
        health_check_period_s=_HEALTH_PERIOD,
        ray_actor_options={"num_cpus": 0},  # it waits more than it works
    )
    return ingress.bind(args, models.bind(args))
