"""The application around small or scripted models, for the tests of the server."""

import json
import socket
import threading
from contextlib import closing, contextmanager

import pytest
import uvicorn
from starlette.testclient import TestClient

from hfseq.serving.app import Settings, make_app
from hfseq.serving.dynamic import DynamicBatcher, Item
from hfseq.serving.metrics import Metrics
from hfseq.serving.parameters import ClassificationParameters
from hfseq.serving.served import Served, load_served

JSON = {"Content-Type": "application/json"}


@contextmanager
def client_of(models, **settings):
    """A client of an application that serves models; they are closed at the end."""
    app = make_app(models, settings.pop("metrics", None) or Metrics(), Settings(**settings))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def sharing(models, **settings):
    """A client of an application that leaves its models open, to others that serve them, too."""
    app = make_app(models, settings.pop("metrics", None) or Metrics(), Settings(**settings))
    return TestClient(app, raise_server_exceptions=False)


def load(folders, metrics=None, **options):
    """Models by name, from their folders."""
    observe = None if metrics is None else metrics.observe_batch
    return [
        load_served(str(folder), name=name, device="cpu", observe=observe, **options)
        for name, folder in folders.items()
    ]


def ask(client, inputs, model=None, headers=None, **parameters):
    """Response of `/predict`."""
    body = {"inputs": inputs, "parameters": parameters} | ({} if model is None else {"model": model})
    return client.post("/predict", content=json.dumps(body), headers=JSON | (headers or {}))


def refused(response, status, said="", param=...):
    """Check that a response is an error in OpenAI's format, of one short line; return the line."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(response.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    message = error["message"]
    assert said in message and "\n" not in message and len(message) < 500 and "Traceback" not in message
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert param in (..., error["param"])
    return message


def same(found, expected):
    """Check that two answers are equal, but for rounding in sums of another order."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        assert found == expected


class Script:
    """A predictor that answers texts with themselves in capitals, once it is let.

    Attributes:
        calls: The batches so far.
        started: Released once for each batch.
        cancelled: Released once for each input that is cancelled.
        go: Set where batches need not wait.
        fails: Called with each batch, to raise an error.
        reads: Called with the inputs of each request before they are queued.
    """

    parameters = ClassificationParameters

    def __init__(self):
        self.calls = []
        self.started = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.reads = lambda texts: None
        self.fails = lambda texts: None

    def items(self, inputs, parameters):
        single = not isinstance(inputs, list)
        self.reads(inputs)
        items = [Item(text, str(parameters), len(text)) for text in ([inputs] if single else inputs)]
        for item in items:
            item.future.add_done_callback(lambda future: self.cancelled.release() if future.cancelled() else None)
        return items, single

    def run(self, items):
        texts = [item.value for item in items]
        self.calls.append(texts)
        self.started.release()
        assert self.go.wait(60)
        self.fails(texts)
        return [text.upper() for text in texts]

    def respond(self, results, single):
        return results[0] if single else results

    def begun(self):
        """Wait until the next batch has begun."""
        assert self.started.acquire(timeout=60)

    def given_up(self):
        """Wait until an input is cancelled."""
        assert self.cancelled.acquire(timeout=60)


@contextmanager
def listening(app):
    """A server of an application in a thread of this process; its port."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    # Whoever connects before the server is ready waits in line.
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        # A daemon, so that a test that fails while a request goes on forever does not hang.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [one]}, daemon=True)
        thread.start()
        try:
            yield one.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


def scripted(script, name="script", **options):
    """A model that answers by a script."""
    batcher = DynamicBatcher(script.run, name=name, **options)
    return Served(name, "text-classification", "torch", None, None, script, batcher)
