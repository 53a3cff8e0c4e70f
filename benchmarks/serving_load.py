"""Load on the server of `python -m hfseq.serve`: many clients at once, with batching and without.

    python benchmarks/serving_load.py outputs/wikitext2 --clients 1 8 32 --output load.json

Without a model it makes an LSTM of random weights (10,000 words, two layers of 512). There are two servers, each in a
process of its own, one that generates for one request at a time (`--max_batch_size 1`) and one that batches. In each
round each number of clients puts its load on the one, then on the other, and the next round begins with the other.
A client sends its next request when it has the answer. All requests go out twice: for a whole answer, which gives the
rates and the latency, and for a stream, which gives the time to the first token. Decoding is greedy, and the answers
of both servers are compared.

Printed, as a Markdown table: medians over the rounds, and the medians of the rounds' ratios, batched to one at a time.
"""

import argparse
import http.client
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from record import store, this_command
from transformers import AutoTokenizer
from transformers.utils import logging

import hfseq
from hfseq.tokenization import start_texts, train_tokenizer

FIGURES = ("requests_per_second", "tokens_per_second", "p50", "p95", "first_token_p50")


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", nargs="?", help="a language model and its tokenizer")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="requests of all clients in each measurement")
    parser.add_argument("--max_tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--max_batch_size", type=int, default=32, help="batch size of the batching server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of each server")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    parser.add_argument("--record", metavar="ID", help="entry of scores.json to store the figures in")
    args = parser.parse_args()
    if args.max_batch_size < 2:
        parser.error("--max_batch_size must be at least 2: one at a time is measured anyway")
    logging.disable_progress_bar()  # of saving
    with ExitStack() as stack:
        model_dir = args.model_dir
        if model_dir is None:
            model_dir = stack.enter_context(tempfile.TemporaryDirectory())
            make_model(model_dir)
        bodies = [
            {"prompt": prompt, "max_tokens": args.max_tokens, "temperature": 0}
            for prompt in make_prompts(model_dir, args.requests)
        ]
        servers = {
            size: stack.enter_context(serve(model_dir, size, args.max_tokens, args.threads))
            for size in (1, args.max_batch_size)
        }
        for port in servers.values():
            complete(port, bodies[0])
        rounds = [measure(servers, bodies, args.clients, flip=number % 2 == 1) for number in range(args.rounds)]
    versions = (
        f"hfseq {hfseq.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {args.threads} thread(s), {args.requests} requests of up to "
        f"{args.max_tokens} tokens, {args.rounds} rounds"
    )
    print_table(rounds, args.clients, args.max_batch_size)
    print(f"\n{versions}")
    if args.record is not None:
        titles = {"tokens_per_second": "tokens/s", "p95": "p95", "first_token_p50": "the time to the first token"}
        clients = [f"{number} client{'s' * (number > 1)}" for number in args.clients]
        figures = {
            f"ratio of {title}, {clients[index]}": round(ratio(rounds, index, args.max_batch_size, name), 2)
            for name, title in titles.items()
            for index in range(len(clients))
        }
        store(args.record, figures, this_command(), on=f"{args.threads} threads")
    if args.output is not None:
        args.output.write_text(json.dumps({"versions": versions, "rounds": rounds}, indent=2) + "\n", encoding="utf-8")


def make_model(folder: str) -> None:
    """A language model of random weights, and its tokenizer of made-up words."""
    draw = random.Random(0)
    words = sorted({"".join(draw.choices("abcdefghij", k=5)) for _ in range(15_000)})[:10_000]
    tokenizer = train_tokenizer([" ".join(words)], model="word", vocab_size=10_000)
    start_texts(tokenizer)
    torch.manual_seed(0)
    config = hfseq.LstmConfig(vocab_size=10_000, hidden_size=512, num_hidden_layers=2)
    model = hfseq.LstmForCausalLM(config)
    for saved in (model, tokenizer):
        saved.save_pretrained(folder)


def make_prompts(model_dir: str, number: int) -> list[str]:
    """Prompts of 4 to 32 random tokens."""
    tokenizer, draw = AutoTokenizer.from_pretrained(model_dir), random.Random(1)
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    return [tokenizer.decode(draw.choices(ids, k=draw.randint(4, 32))) for _ in range(number)]


@contextmanager
def serve(model_dir: str, max_batch_size: int, max_new_tokens: int, threads: int) -> Iterator[int]:
    """A server in a process of its own; its port."""
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "hfseq.serve", model_dir, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu"]
    command += ["--max_batch_size", str(max_batch_size), "--max_new_tokens", str(max_new_tokens)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "Uvicorn running" in line:
                    break
            else:
                sys.exit("the server did not start:\n" + "".join(said))
            # Its log must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield port
        finally:
            process.kill()


def measure(servers: dict[int, int], bodies: list[dict], clients: list[int], flip: bool) -> list[dict]:
    """Figures of one round: for each number of clients those of each server, by the size of its batch."""
    found = []
    for number in clients:
        texts, figures = {}, {}
        for size in sorted(servers, reverse=flip):
            texts[size], figures[size] = load(servers[size], bodies, number)
        same = sum(one == other for one, other in zip(*texts.values(), strict=True))
        found.append({"clients": number, "figures": figures, "same_answers": same})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def load(port: int, bodies: list[dict], clients: int) -> tuple[list[str], dict[str, float]]:
    """The answers to all requests, and the figures, in seconds."""
    answers, seconds = send_all(clients, bodies, lambda body: complete(port, body))
    streams, _ = send_all(clients, bodies, lambda body: first_token(port, body))
    latencies = [latency for latency, _, _ in answers]
    p50, p95 = np.percentile(latencies, [50, 95])
    tokens = sum(count for _, _, count in answers)
    values = (len(bodies) / seconds, tokens / seconds, float(p50), float(p95), statistics.median(streams))
    return [text for _, text, _ in answers], dict(zip(FIGURES, values, strict=True))


def send_all(clients: int, bodies: list[dict], send: Callable) -> tuple[list, float]:
    """Send requests from several clients; return the results and the total time in seconds."""
    with ThreadPoolExecutor(clients) as pool:
        begin = time.perf_counter()
        results = list(pool.map(send, bodies))
        return results, time.perf_counter() - begin


def complete(port: int, body: dict) -> tuple[float, str, int]:
    """Seconds, text and number of tokens of a whole answer."""
    begin = time.perf_counter()
    with closing(post(port, body)) as connection:
        answer = json.load(check(connection))
    return time.perf_counter() - begin, answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


def first_token(port: int, body: dict) -> float:
    """Seconds to the first token of a stream, which is then read to its end."""
    begin = time.perf_counter()
    with closing(post(port, body | {"stream": True})) as connection:
        stream = check(connection)
        stream.readline()
        seconds = time.perf_counter() - begin
        stream.read()
    return seconds


def post(port: int, body: dict) -> http.client.HTTPConnection:
    """A connection on which an answer is to come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def check(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """The answer, if it is one."""
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"the server answered {answer.status}: {answer.read().decode()[:300]}")
    return answer


def ratio(rounds: list[list[dict]], index: int, max_batch_size: int, name: str) -> float:
    """Median over the rounds of a figure with batching over that without."""
    figures = [one[index]["figures"] for one in rounds]
    return statistics.median(found[max_batch_size][name] / found[1][name] for found in figures)


def print_table(rounds: list[list[dict]], clients: list[int], max_batch_size: int) -> None:
    """Medians of the figures and of the ratios."""
    print("| clients | at once | requests/s | tokens/s | p50, s | p95, s | first token, p50, s | same answers |")
    print("|--:" * 8 + "|")
    for index, number in enumerate(clients):
        cases = [one[index] for one in rounds]
        same = min(case["same_answers"] for case in cases)
        for size in (1, max_batch_size):
            medians = [statistics.median(case["figures"][size][name] for case in cases) for name in FIGURES]
            print(f"| {number} | {size} | {' | '.join(f'{value:.3g}' for value in medians)} | |")
        ratios = [ratio(rounds, index, max_batch_size, name) for name in FIGURES]
        print(f"| {number} | ratio | {' | '.join(f'{value:.3g}' for value in ratios)} | {same} |")


if __name__ == "__main__":
    main()
