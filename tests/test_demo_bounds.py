"""What strangers can ask of the demo page: its own routes, texts and numbers within bounds; and what it tells them."""

import json
import re
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_demo import directories, free_port, join  # noqa: F401

from hfseq.demo import layouts
from hfseq.demo import page as demo

gradio = pytest.importorskip("gradio")

SECRET = "/a/path/of/this/machine"
GENERIC = "Internal error; see the terminal of the page."


@contextmanager
def served(directory):
    """The address of a page, and its application."""
    app, url, _ = demo.open_page(directory, "127.0.0.1", free_port(), prevent_thread_lock=True)
    try:
        yield url, app
    finally:
        app.get_blocks().close()


@pytest.fixture(scope="module")
def page(directories):  # noqa: F811
    with served(directories / "translation") as (url, _):
        yield url


@pytest.fixture(scope="module")
def writing_page(directories):  # noqa: F811
    with served(directories / "generation") as (url, _):
        yield url


def call(url, path, body=None, kind="application/json"):
    """Status and text of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def outcome(url, session, data):
    """The last message about a request."""
    join(url, session, data)
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash={session}", timeout=60) as lines:
        for line in lines:
            message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


def routes(app):
    """All routes of an application, those of routers within it, too."""
    for route in app.routes:
        yield from getattr(getattr(route, "original_router", None), "routes", [route])


# --- routes --------------------------------------------------------------------------------------------------------


def test_of_all_routes_the_page_has_its_own_alone(directories):  # noqa: F811
    # Two answers to the page do not end.
    endless = {"/gradio_api/heartbeat/x", "/gradio_api/queue/data"}
    opened, closed = set(), set()
    with served(directories / "tagging") as (url, app):
        for route in routes(app):
            path = re.sub(r"{.*?}", "x", route.path)
            for method in getattr(route, "methods", {"GET"}) - {"HEAD"} if path not in endless else ():
                status, text = call(url.rstrip("/"), path, {} if method == "POST" else None)
                (closed if (status, text) == (404, '{"detail":"Not Found"}') else opened).add((method, path))
    assert opened - {("GET", "/assets/x"), ("GET", "/static/x")} <= {
        *(("GET", path) for path in ("/", "/config", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css")),
        *(("GET", f"/gradio_api/{path}") for path in ("info", "startup-events")),
        *(("POST", f"/gradio_api/{path}") for path in ("cancel", "queue/join", "reset")),
    }
    assert ("POST", "/gradio_api/upload") in closed and ("GET", "/gradio_api/file=x") in closed and len(closed) > 30


def test_no_file_is_given(page, directories):  # noqa: F811
    weights = (directories / "translation" / "config.json").resolve()
    for path in (str(weights), "/etc/passwd", "https://127.0.0.1:9/", "config.json"):
        for route in (
            f"gradio_api/file={path}",
            f"gradio_api/file/{path}",
            f"file={path}",
            f"gradio_api/proxy={path}",
        ):
            assert call(page, route)[0] == 404
    for route in (
        "static/../../../../../../etc/passwd",
        "assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "static//etc/passwd",
    ):
        status, text = call(page, route)
        assert status in (403, 404) and "root:" not in text


def test_no_file_is_taken(page, tmp_path):
    edge = "----edge"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nb\r\n--{edge}--\r\n'.encode()
    )
    assert call(page, "gradio_api/upload", body, f"multipart/form-data; boundary={edge}")[0] == 404


def test_what_the_page_tells_of_itself_has_no_path(page, writing_page, directories):  # noqa: F811
    places = [str(directories), str(Path.cwd()), str(Path.home()), str(Path(demo.__file__).parent)]
    for url in (page, writing_page):
        for path in ("", "config", "gradio_api/info", "manifest.json", "theme.css"):
            status, text = call(url, path)
            assert status == 200 and not any(place in text for place in places), path


# --- requests ------------------------------------------------------------------------------------------------------


def test_bodies_are_bounded_and_flat(page):
    whole = {"fn_index": 0, "session_hash": "flat"}
    for data in (
        *([{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, 1], [["a"], 1], [{}, 1], {"a": 1}, "ab", 5),
        [{"url": "http://127.0.0.1:9/", "path": "a", "meta": {"_type": "gradio.FileData"}}, 1],
    ):
        status, text = call(page, "gradio_api/queue/join", whole | {"data": data})
        assert status == 400 and json.loads(text) == {"detail": "the data of a request must be texts and numbers"}
    for body in (b"", b"{", b"[]", b"[" * 100_000, b'{"data": [NaN, 1]}', b'{"data": ["a", Infinity]}', b"\xff"):
        status, text = call(page, "gradio_api/queue/join", body)
        assert status == 400 and json.loads(text)["detail"].startswith("the body is not ")
    assert call(page, "gradio_api/queue/join", b'{"data": []}', "text/plain")[0] == 415


def test_a_long_body_is_refused(page):
    data = ["a" * 2**18, 1]
    status, text = call(page, "gradio_api/queue/join", {"fn_index": 0, "session_hash": "long", "data": data})
    assert status == 413 and json.loads(text)["detail"] == "the request body exceeds 262144 bytes"


BEAMS = "Beams must be a number from 1 to 10."


@pytest.mark.parametrize("beams", [0, 11, 10**6, 10**400, -1, "3", "a" * 100, None, True, 1e300])
def test_beams_are_bounded_however_they_are_sent(page, beams, capfd):
    message = outcome(page, f"beams{abs(hash(beams))}", ["a dog", beams])
    assert not message["success"] and message["output"]["error"] == BEAMS
    assert not any("Traceback" in written for written in capfd.readouterr())


@pytest.mark.parametrize("text", [5, True, 0.5])
def test_texts_are_texts(page, text):
    assert outcome(page, f"text{text}", [text, 1])["output"]["error"] == "The text must be a string."


GOOD = {"Temperature": 0.8, "Top k": 50, "Top p": 0.9, "Tokens": 5}
BOUNDS = {"Temperature": (0, 2), "Top k": (0, 200), "Top p": (0.05, 1), "Tokens": (1, 500)}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [-1, 10**9, 10**400, "1", "abc", None, False])
def test_settings_of_generation_are_bounded_however_they_are_sent(writing_page, name, value):
    message = outcome(
        writing_page, f"{name[:5]}{str(value)[:20]}".replace(" ", ""), ["a", *(GOOD | {name: value}).values()]
    )
    least, most = BOUNDS[name]
    assert message["output"]["error"] == f"{name} must be a number from {least} to {most}."


def test_good_values_are_answered(page, writing_page):
    for beams in (1, 10, 2.0):
        message = outcome(page, f"good{beams}", ["a dog", beams])
        assert message["success"] and message["output"]["data"][0]
    assert outcome(writing_page, "good", ["a", *GOOD.values()])["success"]


@pytest.mark.parametrize("data", [[], ["a"], ["a", 1, 2, 3]])
def test_too_few_values_are_an_error_that_says_nothing(page, data):
    message = outcome(page, f"few{len(data)}", data)
    assert message["output"].get("error") is None


@pytest.mark.parametrize("name,function", [("translation", "translate"), ("generation", "continue_text")])
def test_errors_inside_are_for_the_terminal_alone(directories, name, function, monkeypatch, capfd):  # noqa: F811
    def fail(*args):
        if name == "generation":
            yield "", ""
        raise OSError(f"no such file: {SECRET}")

    # A generator's body, run at once.
    monkeypatch.setattr(layouts, function, fail if name == "generation" else lambda *args: next(fail()))
    with served(directories / name) as (url, _):
        settings = [1] if name == "translation" else list(GOOD.values())
        message = outcome(url, "fails", ["a", *settings])
    assert message["output"]["error"] == GENERIC and SECRET not in json.dumps(message)
    assert any(SECRET in written for written in capfd.readouterr())


def test_no_more_than_so_many_wait(directories, monkeypatch):  # noqa: F811
    go_on, begun = threading.Event(), threading.Event()

    def held_up(*args):
        begun.set()
        assert go_on.wait(60)
        return [""] * 3

    monkeypatch.setattr(layouts, "translate", held_up)
    monkeypatch.setattr(demo, "MAX_BATCH", 1)
    monkeypatch.setattr(demo, "MAX_WAITING", 1)
    with served(directories / "translation") as (url, _):
        try:
            join(url, "full", ["a", 1])
            assert begun.wait(60)
            join(url, "full", ["a", 1])
            with pytest.raises(urllib.error.HTTPError, match="503"):
                join(url, "full", ["a", 1])
        finally:
            go_on.set()


def test_the_help_says_that_anybody_can_come_in(capsys):
    with pytest.raises(SystemExit):
        demo.main(["--help"])
    assert "no authentication" in " ".join(capsys.readouterr().out.split())
