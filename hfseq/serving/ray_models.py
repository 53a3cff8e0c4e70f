"""A replica on Ray Serve: the HTTP application for the models that it has loaded."""

import asyncio
import logging
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress

from ray import serve
from starlette.requests import Request
from starlette.types import ASGIApp, Message

from hfseq.errors import one_line
from hfseq.serving.app import Settings, make_app, report
from hfseq.serving.http_json import Refusal
from hfseq.serving.limits import Limits
from hfseq.serving.metrics import Metrics
from hfseq.serving.observing import LOGGER, start_logging
from hfseq.serving.ray_arguments import Arguments, Forwarded, Started
from hfseq.serving.served import Served, load_served
from hfseq.serving.traffic import TrafficLog

_log = logging.getLogger(LOGGER)


class Loaded:
    """A model with its application. The model is closed once it is neither kept nor used by a request."""

    def __init__(self, served: Served, app: ASGIApp, metrics: Metrics) -> None:
        self.served = served
        self.app = app
        weakref.finalize(self, _unload, served, metrics).atexit = False


def _unload(served: Served, metrics: Metrics) -> None:
    def close() -> None:
        served.close()
        # Caches of FastAPI keep the endpoints of an application, and what those refer to: these, not what they hold.
        for part in (served.predictor, served.batcher, served.language_model, served):
            if part is not None:
                vars(part).clear()

    metrics.watch_queue(served.name, int)  # 0; the gauge held the model
    # Not here: the event loop runs this, and a batch that nobody waits for any more may be running.
    threading.Thread(target=close, name=f"hfseq-close-{served.name}", daemon=True).start()


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
            loaded = self._loaded[name] = await asyncio.to_thread(self._load_model, name)
            return loaded

        self._load = load
        if not arguments.multiplexed:
            for name in self._directories:
                await load(name)

    def _load_model(self, name: str) -> Loaded:
        given, metrics = self._arguments, self._metrics
        limits = Limits(given.max_batch_size, given.max_queue, given.max_input_tokens, given.max_new_tokens)
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
        return Loaded(served, make_app([served], metrics, settings), metrics)

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
        except Exception as error:
            _log.error("the model %r cannot be loaded: %s", name, one_line(error), exc_info=error)
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
                # Before it raises, the application has sent status 500 and logged the cause.
                with suppress(Exception):
                    await app(scope, receive, messages.put)
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

    async def __del__(self) -> None:
        """Answer what is waiting, then stop."""
        closing = [asyncio.to_thread(loaded.served.close, self._arguments.timeout) for loaded in self._loaded.values()]
        await asyncio.gather(*closing)
        if self._traffic is not None:
            await asyncio.to_thread(self._traffic.close)
