"""The application in trouble: clients that leave or dawdle, models that fail, full queues and disks, SIGTERM."""

import http.client
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from served_apps import JSON, Script, ask, client_of, listening, refused, scripted
from served_models import translator

from hfseq.serving.app import Settings, make_app
from hfseq.serving.metrics import Metrics
from hfseq.serving.observing import LOGGER, SafeHandler


@pytest.fixture
def pool():
    with ThreadPoolExecutor(40) as one:
        yield one


def held(client, script, pool):
    """Keep the model busy with a request until `script.go` is set."""
    script.go.clear()
    first = pool.submit(ask, client, "first")
    script.begun()
    return first


# --- models that fail ----------------------------------------------------------------------------------------------


def test_a_model_that_fails_on_one_input(script, pool):
    def fail(texts):
        if "bad" in texts:
            raise ValueError("secret of the model")

    script.fails = fail
    with client_of([scripted(script)]) as client:
        first = held(client, script, pool)
        # One request, so that they are one batch.
        together = pool.submit(ask, client, ["a", "bad", "c"])
        alone = [pool.submit(ask, client, text) for text in ("d", "e")]
        script.go.set()
        assert [one.result().json() for one in (first, *alone)] == ["FIRST", "D", "E"]
        message = refused(together.result(), 500)
        assert "secret" not in message and "log" in message
        refused(ask(client, "bad"), 500)
        assert ask(client, "a").json() == "A"


def test_the_others_of_a_request_that_failed_are_not_run(script):
    def fail(texts):
        if texts == ["bad"]:
            script.go.clear()
            raise ValueError

    script.fails = fail
    with client_of([scripted(script, max_batch_size=1)]) as client:
        # The response does not wait for the second, at which the model stays; the third is cancelled.
        refused(ask(client, ["bad", "b", "c"]), 500)
        script.go.set()
        assert ask(client, "d").json() == "D"
    assert ["c"] not in script.calls


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA: 1 GiB"), MemoryError()])
def test_out_of_memory(script, error):
    def fail(texts):
        if max(map(len, texts)) > 5 or len(texts) > 2:
            raise error

    script.fails = fail
    with client_of([scripted(script)]) as client:
        assert ask(client, ["a", "b", "c", "d", "e"]).json() == ["A", "B", "C", "D", "E"]
        message = refused(ask(client, "a" * 6), 500, "out of memory")
        assert "GiB" not in message
        assert ask(client, "a").json() == "A"


def test_a_model_whose_thread_has_ended_is_not_ready(script):
    served = scripted(script)
    with client_of([served]) as client:
        assert client.get("/ready").status_code == 200
        served.batcher.close(60)
        refused(client.get("/ready"), 503, "script")
        refused(ask(client, "a"), 503, "shutting down")
        assert client.get("/health").status_code == 200


# --- time-outs and full queues -------------------------------------------------------------------------------------


def test_a_full_queue(script, pool):
    with client_of([scripted(script, max_queue=2)]) as client:
        first = held(client, script, pool)
        waiting = [pool.submit(ask, client, "ab"[number]) for number in range(2)]
        while '"script"} 2.0' not in client.get("/metrics").text:
            pass
        response = ask(client, "c")
        refused(response, 503, "2 inputs are waiting")
        assert response.headers["retry-after"] == "1"
        script.go.set()
        assert [one.result().json() for one in (first, *waiting)] == ["FIRST", "A", "B"]
        assert ask(client, "c").json() == "C"


def test_what_is_timed_out_never_runs(script):
    with client_of([scripted(script, max_batch_size=1)], timeout=0.2) as client:
        script.go.clear()
        refused(ask(client, ["running", "b", "c"]), 504, "more than 0.2 s")
        for _ in range(3):
            script.given_up()
        refused(ask(client, "d"), 504)
        script.go.set()
        assert ask(client, "e").json() == "E"
    assert script.calls == [["running"], ["e"]]


def test_inputs_that_take_long_to_check_hold_up_no_other_model(script, pool):
    other, reading, go = Script(), threading.Event(), threading.Event()

    def read(texts):
        reading.set()
        assert go.wait(60)

    script.reads = read
    with client_of([scripted(script), scripted(other, "other")], timeout=0.5) as client:
        slow = pool.submit(ask, client, "a" * 1000, "script")
        assert reading.wait(60)
        assert client.get("/health").status_code == 200
        assert ask(client, "a", "other").json() == "A"
        refused(slow.result(), 504)
        go.set()
        assert ask(client, "b", "script").json() == "B"
    assert script.calls == [["b"]]


def test_endless_requests_do_not_hold_up_others(script, pool):
    """32 requests without end; the 33rd ends in time, and another model answers at once."""
    other = Script()
    with client_of([scripted(script), scripted(other, "other")], timeout=0.5) as client:
        script.go.clear()
        endless = [pool.submit(ask, client, f"endless {number}", "script") for number in range(32)]
        script.begun()
        assert ask(client, "a", "other").json() == "A"
        assert client.get("/health").status_code == 200
        refused(ask(client, "33rd", "script"), 504)
        for one in endless:
            refused(one.result(), 504)
        script.go.set()
        assert ask(client, "34th", "script").json() == "34TH"


# --- clients -------------------------------------------------------------------------------------------------------


def request_of(inputs, length=None):
    body = json.dumps({"inputs": inputs}).encode()
    length = len(body) if length is None else length
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def connected(port):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(60)
    return closing(connection)


def response_of(connection):
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def post(port, inputs):
    with connected(port) as connection:
        connection.sendall(request_of(inputs))
        return response_of(connection)


def test_clients_that_leave(script, pool):
    metrics = Metrics()
    app = make_app([scripted(script)], metrics, Settings())
    with listening(app) as port:
        script.go.clear()
        with connected(port) as running:
            running.sendall(request_of(["one", "two"]))
            script.begun()
            with connected(port) as waiting:
                waiting.sendall(request_of(["three", "four"]))
                stays = pool.submit(post, port, "five")
                while b'hfseq_queue_size{model="script"} 3.0' not in metrics.text():
                    pass
            for _ in range(2):
                script.given_up()
        for _ in range(2):
            script.given_up()
        script.go.set()
        assert stays.result() == (200, "FIVE")
        assert post(port, "six") == (200, "SIX")
    assert script.calls == [["one", "two"], ["five"], ["six"]]
    assert 'hfseq_requests_total{endpoint="/predict",model="script",status="499"} 2.0' in metrics.text().decode()


def test_a_client_that_leaves_before_its_body_is_sent(script):
    metrics = Metrics()
    with listening(make_app([scripted(script)], metrics, Settings())) as port:
        with connected(port) as connection:
            connection.sendall(request_of("a", length=1000))
        while b'status="499"} 1.0' not in metrics.text():
            pass
        assert post(port, "b") == (200, "B")
    assert script.calls == [["b"]]


def test_a_client_that_sends_slowly(script):
    with listening(make_app([scripted(script)], Metrics(), Settings(timeout=0.2))) as port:
        with connected(port) as connection:
            connection.sendall(request_of("a", length=1000))
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 408 and response.getheader("connection") == "close"
            assert "0.2 s" in json.loads(response.read())["error"]["message"]
            assert connection.recv(1) == b""  # closed
    assert script.calls == []


def test_a_client_that_does_not_read(script):
    with listening(make_app([scripted(script)], Metrics(), Settings())) as port:
        with connected(port) as connection:
            connection.sendall(request_of("a" * (2**24 - 100)))
            script.begun()
            # More than the system buffers, so that the server has to wait for a client that reads nothing.
            assert post(port, "b") == (200, "B")


def test_bodies_that_are_too_large_are_not_read(script):
    with listening(make_app([scripted(script)], Metrics(), Settings(max_body=1000))) as port:
        for length in (1001, 2**60):
            with connected(port) as connection:
                connection.sendall(request_of("a", length=length))
                assert response_of(connection)[0] == 413
        with connected(port) as connection:
            head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            chunk = b"ff\r\n" + b"a" * 255 + b"\r\n"
            connection.sendall(4 * chunk)
            assert response_of(connection)[0] == 413
        assert post(port, "b") == (200, "B")
    assert script.calls == [["b"]]


# --- the machine ---------------------------------------------------------------------------------------------------


class Full:
    """A stream on a full disk."""

    written = 0

    def write(self, text):
        Full.written += 1
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


def test_a_full_disk_for_logs(script, monkeypatch, capsys):
    logger = logging.getLogger(LOGGER)
    monkeypatch.setattr(logger, "handlers", [SafeHandler(Full())])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()

    def fail(texts):
        if "bad" in texts:
            raise ValueError

    script.fails = fail
    with client_of([scripted(script)]) as client:
        assert ask(client, "a").json() == "A"
        refused(ask(client, "bad"), 500)
    logger.manager._clear_cache()
    assert Full.written >= 3
    assert capsys.readouterr().err == ""


def test_sigterm_lets_running_requests_finish(tmp_path):
    folder = translator(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hfseq.serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max_new_tokens", "800", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if "Uvicorn running" in line:
                    break
            with ThreadPoolExecutor() as pool:
                parameters = {"max_new_tokens": 800, "min_new_tokens": 800}
                answer = pool.submit(send, port, {"inputs": "a b", "parameters": parameters})
                while not re.search(r"hfseq_batch_size_count\S* 1", send(port, path="/metrics")[1]):
                    pass
                process.send_signal(signal.SIGTERM)
                status, text = answer.result()
            assert status == 200 and "translation_text" in text
            assert process.wait(60) == 0
            log = [json.loads(line) for line in process.stderr.read().splitlines()]
            assert any(one["message"] == "request" and one.get("path") == "/predict" for one in log)
        finally:
            process.kill()


def send(port, body=None, path="/predict"):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), JSON)
        response = connection.getresponse()
        return response.status, response.read().decode()
