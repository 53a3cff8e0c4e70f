"""Load on the server of `python -m hfseq.serve`: many clients at once, batched and one at a time, beside the pipeline.

    python benchmarks/serving_load.py outputs/multi30k --inputs test_2016_flickr.de --record translator

There are two servers, each in a process of its own, one that processes one input at a time (`--max_batch_size 1`) and
one that batches. In each round each number of clients puts its load on the one, then on the other, and the next round
begins with the other. A client keeps its connection and sends its next request when it has the answer; the clients
are a further process, whose share of the CPU time is printed. The answers of both servers are compared. Translators
search with `--num_beams`; language models continue the beginnings of the lines greedily, at `/v1/completions`.

Then the bare pipeline of the task, in this process, and the batching server are given the same inputs one by one, in
turns: the difference is the server's overhead.

Printed, as a Markdown table: medians over the rounds, and the medians of the rounds' ratios, batched to one at a time.
"""

import argparse
import json
import math
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from exactness import SERVING, load_table, write
from http_load import Load, Server, put_load, request_bytes, serve
from record import this_command
from timing import machine
from transformers import pipeline
from transformers.utils import logging

import hfseq  # noqa: F401, registers the models and pipelines

GENERATION = "text-generation"
_PROMPT_WORDS = 8
# Scores of a batch and of a single input differ by rounding.
_TOLERANCE = 1e-4


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", help="a classifier, a translator or a language model, with its tokenizer")
    parser.add_argument(
        "--inputs", type=Path, required=True, help="text file, an input a line; of a TSV the last column"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--requests", type=int, default=128, help="requests of a measurement, at least 4 a client")
    parser.add_argument("--num_beams", type=int, default=5, help="beams of a translator")
    parser.add_argument("--max_tokens", type=int, default=32, help="new tokens of a language model")
    parser.add_argument("--max_batch_size", type=int, default=32, help="batch size of the batching server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each server")
    parser.add_argument("--record", metavar="NAME", help=f"entry of {SERVING.name} to store the figures in")
    args = parser.parse_args()
    if args.max_batch_size < 2:
        parser.error("--max_batch_size must be at least 2: one at a time is measured anyway")
    logging.disable_progress_bar()  # of loading
    torch.set_num_threads(args.threads)
    texts = read_lines(args.inputs)
    with ExitStack() as stack:
        servers = {
            size: stack.enter_context(serve([args.model_dir, "--max_batch_size", str(size)], args.threads))
            for size in (1, args.max_batch_size)
        }
        task = servers[1].models()[0]["task"]
        if task == GENERATION:
            texts = [" ".join(text.split()[:_PROMPT_WORDS]) for text in texts]
            settings: dict[str, Any] = {"max_tokens": args.max_tokens}
        else:
            settings = {"num_beams": args.num_beams} if task == "translation" else {}
        path, bodies = requests_of(task, texts, settings)
        for server in servers.values():
            put_load(server, path, bodies[: 2 * args.max_batch_size], args.max_batch_size)
        rounds = [
            measure(servers, path, bodies, args.clients, args.requests, flip=number % 2 == 1)
            for number in range(args.rounds)
        ]
        overhead = measure_overhead(servers[args.max_batch_size], args.model_dir, task, texts, settings, args.requests)
    values = {
        "about": machine(args.threads, "cpu") | {"command": " ".join(this_command() if args.record else sys.argv)},
        "task": task,
        "settings": settings,
        "rows": [summarize([one[index] for one in rounds]) for index in range(len(args.clients))],
        "overhead": overhead,
    }
    print("\n".join(load_table({args.record or task: values})))
    if args.record:
        stored = json.loads(SERVING.read_text(encoding="utf-8"))
        stored["load"][args.record] = values
        write(SERVING, stored)


def read_lines(path: Path) -> list[str]:
    """Texts of a file, the last column of each line that is not empty."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.rpartition("\t")[2] for line in lines if line.strip()]


def requests_of(task: str, texts: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Path of the endpoint and bodies of the requests."""
    if task == GENERATION:
        return "/v1/completions", [{"prompt": text, "temperature": 0, **settings} for text in texts]
    return "/predict", [{"inputs": text, **({"parameters": settings} if settings else {})} for text in texts]


def measure(
    servers: Mapping[int, Server], path: str, bodies: Sequence[Any], clients: Sequence[int], least: int, flip: bool
) -> list[dict[str, Any]]:
    """Figures of one round: for each number of clients those of each server, by the size of its batches."""
    found = []
    for number in clients:
        sent = list(islice(cycle(bodies), max(least, 4 * number)))
        loads: dict[int, Load] = {}
        for size in sorted(servers, reverse=flip):
            loads[size] = put_load(servers[size], path, sent, number)
        figures = {size: loads[size].figures() for size in sorted(servers)}
        answers = [[content(text) for text in loads[size].answers] for size in sorted(servers)]
        differ = sum(not alike(one, other) for one, other in zip(*answers, strict=True))
        found.append({"clients": number, "figures": figures, "requests": len(sent), "other answers": differ})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def content(answer: str) -> Any:
    """The part of a response that does not depend on the time or the request."""
    found = json.loads(answer)
    return [one["text"] for one in found["choices"]] if isinstance(found, dict) and "choices" in found else found


def alike(one: Any, other: Any) -> bool:
    """Return True if two answers are equal, numbers up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=_TOLERANCE, rel_tol=_TOLERANCE)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return bool(one == other)


def summarize(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds of one number of clients, and of the ratios, batched to one at a time."""
    single, batched = cases[0]["figures"]
    names = list(cases[0]["figures"][single])
    medians = {
        size: {name: statistics.median(case["figures"][size][name] for case in cases) for name in names}
        for size in (single, batched)
    }
    ratios = {
        name: [case["figures"][batched][name] / case["figures"][single][name] for case in cases] for name in names[:4]
    }
    other = max(case["other answers"] for case in cases)
    first = cases[0]
    return {"clients": first["clients"], "requests": first["requests"], "other answers": other} | {
        "one at a time": medians[single],
        "batched": medians[batched],
        "ratios": ratios,
    }


def measure_overhead(
    server: Server, model_dir: str, task: str, texts: Sequence[str], settings: Mapping[str, Any], requests: int
) -> dict[str, float]:
    """Median ms of the bare pipeline and of the server with the same inputs, in turns, and of their difference."""
    pipe: Any = pipeline(task, model=model_dir, device="cpu")  # type: ignore[call-overload]
    options = dict(settings)
    if task == GENERATION:
        options = {"max_new_tokens": options["max_tokens"], "do_sample": False}
    elif task == "text-classification":
        options = {"top_k": None}
    path, bodies = requests_of(task, texts[:requests], settings)
    times: dict[str, list[float]] = {"pipeline": [], "server": []}
    with closing(socket.create_connection(("127.0.0.1", server.port))) as connection:
        stream = connection.makefile("rb")

        def ask(number: int) -> None:
            connection.sendall(request_bytes(path, bodies[number]))
            length = 0
            while line := stream.readline().strip().lower():
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            stream.read(length)

        sides: dict[str, Callable[[int], Any]] = {"pipeline": lambda one: pipe(texts[one], **options), "server": ask}
        for number in range(-4, len(bodies)):
            for name in sorted(sides, reverse=number % 2 == 1):
                begin = time.perf_counter()
                sides[name](max(number, 0))
                if number >= 0:
                    times[name].append(1000 * (time.perf_counter() - begin))
    differences = [one - other for one, other in zip(times["server"], times["pipeline"], strict=True)]
    return {name: statistics.median(found) for name, found in times.items()} | {
        "difference": statistics.median(differences)
    }


if __name__ == "__main__":
    main()
