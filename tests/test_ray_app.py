"""The application on Ray Serve: a local Ray with two replicas, one of which is killed under load; and its ingress."""

import asyncio
import gc
import json
import os
import re
import signal
import socket
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import yaml
from click.testing import CliRunner
from local_ray import local_ray
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from ray.serve.scripts import cli
from served_models import classifier, language_model, translator
from starlette.testclient import TestClient

from hfseq.errors import InputError
from hfseq.serving.app import Settings, make_app
from hfseq.serving.metrics import Metrics
from hfseq.serving.ray_app import app
from hfseq.serving.ray_arguments import Arguments, Forwarded, Started
from hfseq.serving.ray_ingress import RETRIES, Ingress, merge_metrics
from hfseq.serving.ray_models import Loaded, Models
from hfseq.serving.served import load_served

DOCS = Path(__file__).parents[1] / "docs" / "scaling.md"
TEXTS = [" ".join(text) for text in ("abc", "j", "aabbccdd", "hgfedcba", "ij")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    makers = {"translate": translator, "mood": classifier, "write": language_model}
    return {name: str(make(folder / name)) for name, make in makers.items()}


def body(name, text):
    """A request to `/predict`; those to the translator take a while."""
    settings = {
        "translate": {"max_new_tokens": 300, "min_new_tokens": 300},
        "write": {"max_new_tokens": 9, "do_sample": False},
    }
    return {"model": name, "inputs": text, "parameters": settings.get(name)}


@pytest.fixture(scope="module")
def expected(models):
    """Answers of the application in this process, by model and text."""
    served = [load_served(folder, name=name, device="cpu") for name, folder in models.items()]
    with TestClient(make_app(served, Metrics(), Settings())) as client:
        pairs = [(name, text) for name in models for text in TEXTS]
        return {pair: client.post("/predict", json=body(*pair)).json() for pair in pairs}


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    """Address of the application, deployed on a local Ray from the config file of the documentation."""
    block = re.search(r"```yaml\n(proxy_location.*?)```", DOCS.read_text("utf-8"), re.DOTALL)[1]
    config = yaml.safe_load(block)
    arguments = config["applications"][0]["args"]
    arguments["model_dirs"] = [f"{name}={folder}" for name, folder in models.items()]
    with socket.create_server(("127.0.0.1", 0)) as one:
        config["http_options"]["port"] = one.getsockname()[1]
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with local_ray(num_cpus=2, namespace="serve"):
        try:
            done = CliRunner().invoke(cli, ["run", "--non-blocking", str(path)], catch_exceptions=False)
            assert not done.exit_code, done.output
            wait_for(lambda: serve.status().applications["hfseq"].status == "RUNNING")
            yield f"http://127.0.0.1:{config['http_options']['port']}"
        finally:
            serve.shutdown()


def wait_for(reached, seconds=120):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, serve.status()
        threading.Event().wait(0.1)


def replicas():
    """Processes of the replicas by their ids."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            # The method that it runs follows in its title.
            if process.cmdline()[0].startswith("ray::ServeReplica:hfseq:Models"):
                found[process.pid] = process
    return found


def same(one, other):
    """Whether two answers are the same, but for the last digits, which differ with the batch."""
    if isinstance(one, dict | list) and type(one) is type(other) and len(one) == len(other):
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        return all(same(value, other[key]) for key, value in pairs)
    return one == (pytest.approx(other, abs=1e-5) if isinstance(other, float) else other)


def test_killed_replica(address, expected):
    """A replica is killed while it answers: all answers come, and right, and there is a new replica."""
    before = replicas()
    assert len(before) == 2
    names = [name for name in expected for _ in range(2 if name[0] == "translate" else 1)] * 4
    killed = threading.Event()

    def ask(number):
        if number == len(names) // 3:
            # The one that has worked most: it has the translator, and a batch of long requests.
            used = {pid: sum(process.cpu_times()[:2]) - idle[pid] for pid, process in before.items()}
            os.kill(max(used, key=used.get), signal.SIGKILL)
            killed.set()
        name, text = names[number]
        return client.post("/predict", json=body(name, text))

    with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        for name in expected:
            assert client.post("/predict", json=body(*name)).status_code == 200
        idle = {pid: sum(process.cpu_times()[:2]) for pid, process in before.items()}
        answers = list(pool.map(ask, range(len(names))))
    assert killed.is_set()
    assert Counter(answer.status_code for answer in answers) == {200: len(names)}
    assert [one for one, answer in zip(names, answers, strict=True) if not same(answer.json(), expected[one])] == []
    wait_for(lambda: len(replicas()) == 2 and replicas().keys() != before.keys())
    wait_for(lambda: serve.status().applications["hfseq"].status == "RUNNING")
    assert len(replicas().keys() & before.keys()) == 1


def test_application(address, expected):
    """Every path of the server is there; a model that was unloaded is loaded again; metrics name the replicas."""
    with httpx.Client(base_url=address, timeout=60) as client:
        for name, text in expected:
            answer = client.post("/predict", json=body(name, text), headers={"X-Request-Id": "one"})
            assert same(answer.json(), expected[name, text]) and answer.headers["x-request-id"] == "one"
        prompt = {"model": "write", "prompt": "a b", "max_tokens": 9, "temperature": 0}
        whole = client.post("/v1/completions", json=prompt).json()["choices"][0]["text"]
        with client.stream("POST", "/v1/completions", json={**prompt, "stream": True}) as stream:
            events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert len(events) > 9 and events.pop() == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == whole
        unknown = client.post("/predict", json={"model": "/etc", "inputs": "a"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        invalid = client.post("/predict", json={"model": "mood", "inputs": 1})
        assert (invalid.status_code, invalid.json()["error"]["param"]) == (400, "inputs")
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["translate", "mood", "write"]
        assert client.get("/ready").json() == {"status": "ready"}
        assert client.get("/health").json() == {"status": "ok"}
        assert "/predict" in client.get("/openapi.json").json()["paths"]
        found = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    counted = [sample.labels for sample in found["hfseq_requests"].samples if sample.name.endswith("_total")]
    assert {one["model"] for one in counted} >= {"translate", "mood", "write"}
    assert len({one["replica"] for one in counted}) in (1, 2)
    assert len({sample.labels["replica"] for sample in found["hfseq_traffic_dropped"].samples}) == 2


class Handle:
    """A handle of replicas that give the answers of a script: a list of parts for each call, or an exception."""

    def __init__(self, *script):
        self.script = list(script)
        self.calls = []
        self.cancelled = 0

    def options(self, **options):
        self.chosen = options
        return self

    @property
    def answer(self):
        return self

    def remote(self, *arguments):
        self.calls.append(arguments)
        return Parts(self, self.script.pop(0))


class Parts:
    def __init__(self, handle, parts):
        self.handle, self.parts = handle, iter(parts)

    def __aiter__(self):
        return self

    async def __anext__(self):
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            if part is None:
                await asyncio.get_running_loop().create_future()
            return part
        raise StopAsyncIteration

    def cancel(self):
        self.handle.cancelled += 1


def client_of(handle, **arguments):
    return TestClient(
        Ingress(Arguments(**{"model_dirs": "a=x", **arguments}), handle).__serve_build_asgi_app__(),
        raise_server_exceptions=False,
    )


JSON = Started(200, [(b"content-type", b"application/json"), (b"content-length", b"2")])
EVENTS = Started(200, [(b"content-type", b"text/event-stream; charset=utf-8")])


@pytest.mark.parametrize("started", [[], [JSON], [JSON, b"{"]], ids=["before", "at the start", "in the body"])
def test_retry(started):
    """The request of a replica that dies is given to another, whatever of its response there was."""
    handle = Handle([*started, ActorDiedError()], [JSON, b"{", b"}"])
    with client_of(handle) as client:
        answer = client.post("/predict?x=1", content=b"body", headers={"X-One": "1"})
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"{}", "application/json")
    assert len(handle.calls) == handle.cancelled == 2
    assert handle.calls[0] == handle.calls[1]
    name, forwarded = handle.calls[0]
    assert (name, forwarded.method, forwarded.path, forwarded.query_string) == ("a", "POST", "/predict", b"x=1")
    assert forwarded.body == b"body" and (b"x-one", b"1") in forwarded.headers


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ([[ActorDiedError()]] * (RETRIES + 1), 503, "died"),
        ([[BackPressureError(9, 9)]], 503, "waiting"),
        ([[None]], 504, "0.01 s"),
        ([[ValueError("secret")]], 500, "internal"),
    ],
    ids=["all die", "queue full", "too slow", "fault"],
)
def test_failures(script, status, message, monkeypatch):
    """Failures have the server's statuses and format, and tell no details."""
    monkeypatch.setattr("hfseq.serving.ray_ingress.GRACE", 0.0)
    handle = Handle(*script)
    with client_of(handle, timeout=0.01) as client:
        answer = client.post("/predict")
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert "secret" not in answer.text and not handle.script and handle.cancelled == len(script)
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


def test_streams():
    """Events pass as they come; a stream whose replica dies ends with an error, and is not repeated."""
    handle = Handle([EVENTS, b"data: 1\n\n", b"data: 2\n\n"], [EVENTS, b"data: 1\n\n", ActorDiedError()])
    with client_of(handle) as client:
        assert client.post("/v1/completions").text == "data: 1\n\ndata: 2\n\n"
        broken = client.post("/v1/completions")
    first, second, end = broken.text.split("\n\n")
    assert (first, end) == ("data: 1", "")
    assert json.loads(second.removeprefix("data: "))["error"]["type"] == "server_error"
    assert handle.cancelled == 2


def test_a_client_that_leaves_before_the_first_event():
    """The replica does not go on for it."""
    handle = Handle([EVENTS, b"data: 1\n\n"])
    app = Ingress(Arguments(model_dirs="a=x"), handle).__serve_build_asgi_app__()
    asgi = {"version": "3.0", "spec_version": "2.4"}
    address = {"path": "/v1/completions", "query_string": b"", "headers": []}

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        raise OSError

    with suppress(Exception):
        asyncio.run(app({"type": "http", "asgi": asgi, "method": "POST"} | address, receive, send))
    assert len(handle.calls) == handle.cancelled == 1


def test_ingress(monkeypatch):
    """Key, size and the model's name are checked before a replica is asked."""
    monkeypatch.setenv("HFSEQ_API_KEY", "secret")
    handle = Handle()
    with client_of(handle, model_dirs="a=x,b=y", max_models=1, max_body_mib=1) as client:
        assert client.post("/predict", json={"model": "a"}).status_code == 401
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        assert client.post("/predict", content=b"a" * (2**20 + 1)).status_code == 413
        for body, status in (({}, 400), ({"model": 1}, 400), ({"model": "c"}, 404), ({"model": ["a"]}, 400)):
            assert client.post("/predict", json=body).status_code == status, body
        assert client.post("/predict", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
        assert not handle.calls
        for ask in ({"json": {"model": "b"}}, {"params": {"model": "b"}, "content": b"RIFF"}):
            handle.script.append([JSON, b"{}"])
            assert client.post("/predict", **ask).status_code == 200
            assert handle.calls.pop()[0] == "b" and handle.chosen == {"stream": True, "multiplexed_model_id": "b"}


def replica(asgi):
    """A replica with one application, outside of Ray."""
    found = object.__new__(Models)

    async def load(name):
        if name != "a":
            raise OSError("secret")
        return SimpleNamespace(app=asgi)

    found._load = load
    return found


REQUEST = Forwarded("POST", "/v1/completions", b"x=1", [(b"x-one", b"1")], b"body")


def test_replica_streams():
    """Parts of a response leave a replica as they are sent; a client that leaves cancels the application."""
    asyncio.run(stream_and_leave())


async def stream_and_leave():
    ended, sent = asyncio.Event(), []

    async def asgi(scope, receive, send):
        sent.append((scope["method"], scope["path"], scope["query_string"], scope["headers"], await receive()))
        await send({"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]})
        try:
            for number in range(3):
                await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
                if number == 1:
                    await receive()
        finally:
            ended.set()

    stream = replica(asgi).answer("a", REQUEST)
    assert [await anext(stream) for _ in range(3)] == [Started(201, [(b"a", b"b")]), b"0", b"1"]
    message = {"type": "http.request", "body": b"body", "more_body": False}
    assert sent == [("POST", "/v1/completions", b"x=1", [(b"x-one", b"1")], message)] and not ended.is_set()
    await stream.aclose()
    await asyncio.wait_for(ended.wait(), 10)


def test_replica_without_its_model():
    """A model that cannot be loaded is an error of the server, told without details."""

    async def answer():
        return [part async for part in replica(None).answer("b", REQUEST)]

    started, body = asyncio.run(answer())
    assert started.status == 503 and b"'b' cannot be loaded" in body and b"secret" not in body


@pytest.mark.parametrize("name", ["mood", "write"])
def test_unloading(name, models):
    """A model is closed when the replica and all requests have let go of it, and nothing keeps it in memory."""
    metrics = Metrics()
    served = load_served(models[name], name=name, device="cpu")
    kept = Loaded(served, make_app([served], metrics, Settings()), metrics)
    used = kept
    del kept
    model = weakref.ref(served.model)
    assert served.ready
    del used
    for thread in threading.enumerate():
        if thread.name == f"hfseq-close-{name}":
            thread.join(10)
    gc.collect()
    assert model() is None and f'hfseq_queue_size{{model="{name}"}} 0.0' in metrics.text().decode()


def test_arguments():
    """Arguments of a command line are texts; those that are wrong are rejected before anything is deployed."""
    found = Arguments.model_validate({"model_dirs": "a=x,y", "num_replicas": "2", "timeout": "1.5", "max_models": "1"})
    assert (found.directories(), found.num_replicas, found.timeout) == ({"a": "x", "y": "y"}, 2, 1.5)
    assert found.multiplexed and not Arguments(model_dirs="x,y", max_models=2).multiplexed
    for wrong in ({"model_dirs": ""}, {"model_dirs": "x", "num_replicas": 0}, {"model_dirs": "x", "port": 1}, {}):
        with pytest.raises(ValidationError):
            Arguments.model_validate(wrong)
    with pytest.raises(InputError, match="'x'"):
        app(Arguments(model_dirs="x,x"))


def test_metrics():
    """Metrics of several replicas keep their values, types and labels."""
    texts = []
    for count in (1, 2):
        metrics = Metrics()
        metrics.tokens.labels("a", "input").inc(count)
        metrics.observe_batch("a", count, 0.5)
        texts.append((f"r{count}", metrics.text().decode()))
    found = {family.name: family for family in text_string_to_metric_families(merge_metrics(texts).decode())}
    tokens = {sample.labels["replica"]: sample.value for sample in found["hfseq_tokens"].samples}
    assert tokens == {"r1": 1.0, "r2": 2.0} and found["hfseq_tokens"].type == "counter"
    sums = [one.value for one in found["hfseq_batch_size"].samples if one.name.endswith("_sum")]
    assert sums == [1.0, 2.0] and found["hfseq_batch_size"].type == "histogram"
