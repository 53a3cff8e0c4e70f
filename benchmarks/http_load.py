"""Load on an HTTP server: closed-loop clients in a process of their own, and the server's process under watch.

Each client keeps one connection and sends its next request once it has the answer. The clients share one thread on
raw sockets, so that they take little from the server on a machine of few cores; how much is measured. This module
imports the standard library alone, which keeps the start of that process short.
"""

import asyncio
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: Its port on the loopback interface.
        pid: Its process.
    """

    port: int
    pid: int

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def resident_mib(self) -> float:
        """Resident memory of the process in MiB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def open_files(self) -> int:
        """Number of open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def models(self) -> list[dict[str, Any]]:
        """The models served, as `/v1/models` lists them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=60) as response:
            return json.load(response)["data"]


@contextmanager
def serve(arguments: Sequence[str], threads: int) -> Iterator[Server]:
    """Start `python -m hfseq.serve` in a process of its own, and stop it afterwards.

    Args:
        arguments: Arguments of the server without host, port and device.
        threads: Threads of its operators.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "hfseq.serve", *arguments]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # A file: a pipe would fill up with the log.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            while not _is_ready(port):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit("the server did not start:\n" + log.read().decode(errors="replace")[-3000:])
                time.sleep(0.2)
            yield Server(port, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


@dataclass(frozen=True)
class Load:
    """Findings of a load.

    Attributes:
        latencies: Seconds of each request, in the order of the requests.
        statuses: HTTP status of each.
        answers: Body of each response, as text.
        seconds: Duration of the whole load.
        client_cpu: CPU seconds of the clients' process.
        server_cpu: CPU seconds of the server's process.
    """

    latencies: list[float]
    statuses: list[int]
    answers: list[str]
    seconds: float
    client_cpu: float
    server_cpu: float

    def figures(self) -> dict[str, float]:
        """Requests/s, latency and CPU time of the server in ms a request, and the clients' share of the CPU time."""
        p95 = statistics.quantiles(self.latencies, n=20, method="inclusive")[-1]
        return {
            "requests/s": len(self.latencies) / self.seconds,
            "p50, ms": 1000 * statistics.median(self.latencies),
            "p95, ms": 1000 * p95,
            "server CPU, ms": 1000 * self.server_cpu / len(self.latencies),
            "client CPU": self.client_cpu / (self.client_cpu + self.server_cpu),
        }


def put_load(server: Server, path: str, bodies: Sequence[Any], clients: int) -> Load:
    """Send requests from so many clients at once, each on one connection.

    Args:
        server: The server.
        path: Path of the endpoint.
        bodies: Bodies of the requests, in the order in which they are taken.
        clients: Number of clients.

    Raises:
        RuntimeError: If a request is not answered with status 200.
    """
    job = {"port": server.port, "path": path, "bodies": bodies, "clients": clients}
    before = server.cpu_seconds
    done = subprocess.run([sys.executable, __file__], input=json.dumps(job), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the clients failed: {done.stderr[-2000:]}")
    found = Load(**json.loads(done.stdout), server_cpu=server.cpu_seconds - before)
    for status, answer in zip(found.statuses, found.answers, strict=True):
        if status != 200:
            raise RuntimeError(f"the server answered {status}: {answer[:300]}")
    return found


def request_bytes(path: str, body: Any) -> bytes:
    """A POST request as it is sent."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of a response of known length."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


async def _send_all(job: dict[str, Any]) -> dict[str, Any]:
    requests = [request_bytes(job["path"], body) for body in job["bodies"]]
    numbers = iter(range(len(requests)))
    latencies, statuses, answers = [0.0] * len(requests), [0] * len(requests), [b""] * len(requests)
    streams = [await asyncio.open_connection("127.0.0.1", job["port"]) for _ in range(job["clients"])]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in numbers:
            begin = time.perf_counter()
            writer.write(requests[number])
            statuses[number], answers[number] = await read_response(reader)
            latencies[number] = time.perf_counter() - begin

    used, begin = _cpu(), time.perf_counter()
    await asyncio.gather(*(client(*stream) for stream in streams))
    seconds, used = time.perf_counter() - begin, _cpu() - used
    for _, writer in streams:
        writer.close()
    texts = [answer.decode() for answer in answers]
    return {
        "latencies": latencies,
        "statuses": statuses,
        "answers": texts,
        "seconds": seconds,
        "client_cpu": used,
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    json.dump(asyncio.run(_send_all(json.load(sys.stdin))), sys.stdout)
