"""Replicas on Ray Serve: two against one, with requests that take a while, and the processor time that Ray adds.

    python benchmarks/ray_replicas.py --output ray_replicas.json

Without a model it makes a translator of random weights (GRU, two layers of 512) whose answers have `--max_new_tokens`
tokens, so that a request takes some 200 ms on one thread. Each replica has one thread and answers one request at a
time (`--max_batch_size 1`): batching would hide what a second replica adds. A client sends its next request once it
has the answer. Measured are requests per second, latency, and the processor time of the replicas, of the ingress and
of Ray's other processes (proxy, controller, raylet, GCS) during the load. For comparison the same load goes to
`python -m hfseq.serve`. On a machine with two cores, two replicas leave none to the others: that is part of the
result.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray import serve

import hfseq
from hfseq.serving.ray_app import app
from hfseq.serving.ray_arguments import Arguments
from hfseq.tokenization import train_tokenizer

WORDS = [f"w{number}" for number in range(2000)]
KINDS = {
    "ray::ServeReplica:bench:Models": "replicas",
    "ray::ServeReplica:bench:Ingress": "ingress",
    "ray::Proxy": "proxy",
}


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", nargs="?", help="a translator, with its tokenizer")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=60, help="requests of all clients in each measurement")
    parser.add_argument("--max_new_tokens", type=int, default=250, help="tokens of an answer")
    parser.add_argument("--hidden_size", type=int, default=512, help="width of the model without a MODEL_DIR")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model_dir = args.model_dir or make_model(Path(folder, "model"), args.hidden_size)
        figures: dict[str, Any] = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "versions": {"ray": ray.__version__, "torch": torch.__version__, "hfseq": hfseq.__version__},
            "arguments": {name: str(value) for name, value in vars(args).items()},
        }
        with plain_server(model_dir, args) as (url, processes):
            figures["server"] = load(url, args, processes)
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "_temp_dir": folder}
        try:
            ray.init("local", num_cpus=max(args.replicas), object_store_memory=100 * 2**20, **options)
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            for number in args.replicas:
                given = Arguments(model_dirs=(f"m={model_dir}",), num_replicas=number, max_batch_size=1)
                serve.run(app(given), name="bench")
                figures[f"replicas_{number}"] = load(f"http://127.0.0.1:{port}", args, ray_processes)
                serve.delete("bench")
        finally:
            serve.shutdown()
            ray.shutdown()
    print(table(figures))
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")


def make_model(folder: Path, hidden_size: int) -> str:
    """A translator of random weights that never ends by itself."""
    tokenizer = train_tokenizer([" ".join(WORDS)], model="word", vocab_size=len(WORDS) + 10)
    torch.manual_seed(0)
    fields = {"vocab_size": len(tokenizer), "hidden_size": hidden_size, "num_hidden_layers": 2}
    model = hfseq.GruForConditionalGeneration(hfseq.GruConfig(is_encoder_decoder=True, **fields))
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return str(folder)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def plain_server(model_dir: str, args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The server of `python -m hfseq.serve`; its address, and a function that returns its processes."""
    port = free_port()
    command = [sys.executable, "-m", "hfseq.serve", f"m={model_dir}", "--port", str(port), "--max_batch_size", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://localhost:{port}"
            while not answers(f"{url}/ready"):
                if process.poll() is not None:
                    raise SystemExit("the server ended")
                threading.Event().wait(0.2)
            yield url, lambda: [("server", psutil.Process(process.pid))]
        finally:
            process.terminate()


def answers(url: str) -> bool:
    """Return True if a server answers."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def ray_processes() -> list[tuple[str, psutil.Process]]:
    """The processes of Ray with their kinds."""
    found = []
    for process in psutil.Process().children(recursive=True):
        title = (process.cmdline() or [""])[0]  # the method that it runs may follow
        found.append((next((kind for start, kind in KINDS.items() if title.startswith(start)), "others"), process))
    return found


def load(url: str, args: argparse.Namespace, processes: Any) -> dict[str, Any]:
    """Figures of a load: rates, latencies in ms, processor seconds by kind of process."""
    texts = [" ".join(WORDS[row : row + 10]) for row in range(args.requests)]

    def ask(text: str) -> float:
        body = {"inputs": text, "parameters": {"max_new_tokens": args.max_new_tokens}}
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{url}/predict", data=data, headers={"Content-Type": "application/json"})
        begin = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as answer:
            answer.read()
        return 1000 * (time.perf_counter() - begin)

    with ThreadPoolExecutor(args.clients) as pool:
        list(pool.map(ask, texts[: 2 * args.clients]))  # both replicas have answered once
        watched = processes()
        before = [sum(process.cpu_times()[:2]) for _, process in watched]
        begin = time.perf_counter()
        latencies = sorted(pool.map(ask, texts))
        seconds = time.perf_counter() - begin
    used: dict[str, float] = {}
    for (kind, process), earlier in zip(watched, before, strict=True):
        used[kind] = used.get(kind, 0.0) + sum(process.cpu_times()[:2]) - earlier
    one = [ask(text) for text in texts[:10]]
    return {
        "requests_per_second": args.requests / seconds,
        "p50_ms": statistics.median(latencies),
        "p95_ms": latencies[int(0.95 * len(latencies))],
        "one_client_p50_ms": statistics.median(one),
        "cpu_ms_per_request": {kind: 1000 * value / args.requests for kind, value in used.items()},
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| | requests/s | p50, p95 in ms | one client, p50 in ms | CPU per request in ms | without the model |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        if isinstance(row, dict) and "p50_ms" in row:
            used = row["cpu_ms_per_request"]
            shares = ", ".join(f"{kind} {value:.0f}" for kind, value in used.items())
            rest = sum(value for kind, value in used.items() if kind not in ("replicas", "server"))
            lines.append(
                f"| {name} | {row['requests_per_second']:.2f} | {row['p50_ms']:.0f}, {row['p95_ms']:.0f} "
                f"| {row['one_client_p50_ms']:.0f} | {shares} | {100 * rest / sum(used.values()):.0f} % |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
