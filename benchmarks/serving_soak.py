"""A long mixed load on one server of several tasks: every answer checked, memory and file descriptors watched.

    python benchmarks/serving_soak.py --requests 100000 --record

The server has a small model of random weights for each task. Before it starts, the pipelines answer every input alone;
in the load each response must be that answer, numbers up to rounding, or, for inputs that are no input of the task,
status 400. Some inputs are odd: empty, blank, unknown words, other scripts, control characters, unpaired surrogates,
one that is far longer than the others. One request in twenty is left half-way: by a client that closes its connection
after a part of the request, or after all of it. Any status from 500 on, any other answer and any connection that the
server closes by itself is an error.

Resident memory and open file descriptors of the server's process are sampled over the load; the slope of the memory is
that of a line through the samples of the second half.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from exactness import SERVING, write
from http_load import Server, read_response, request_bytes, serve
from record import this_command
from serving_load import alike
from timing import machine
from transformers import pipeline
from transformers.utils import logging

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from served_models import MAKERS, RATE, WORDS, language_model  # noqa: E402

ODD = [
    "",
    " ",
    "\n\t",
    "zzz",
    "日本語 テキスト",
    "🙂" * 20,
    "a\x00b",
    "\u202eabc",
    "\ud800 a",
    " ".join(WORDS.split() * 20),
]
"""Odd texts."""
WRONG = [None, 3, True, {"text": 1}, {"a": "b"}, [[]], [None]]
"""Values that are no input of any task."""
_LEAVING = 0.05
_SAMPLES = 200


@dataclass(frozen=True)
class Case:
    """A request and the answer that it must get; None for status 400."""

    request: bytes
    answer: Any


@dataclass
class Found:
    """Findings of the load.

    Attributes:
        statuses: Number of responses by status.
        left: Number of requests that their clients left.
        errors: Descriptions of the first errors.
        wrong: Number of errors.
        samples: Requests sent, resident memory in MiB and open file descriptors, over the load.
    """

    statuses: Counter = field(default_factory=Counter)
    left: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: int = 0
    samples: list[tuple[int, float, int]] = field(default_factory=list)

    def add_error(self, text: str) -> None:
        """Count an error."""
        self.wrong += 1
        if len(self.errors) < 10:
            self.errors.append(text)


def main() -> None:
    """Run the load that the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help=f"store the figures in {SERVING.name}")
    args = parser.parse_args()
    logging.disable_progress_bar()  # of loading
    logging.set_verbosity_error()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        makers = MAKERS | {"text-generation": language_model}
        names = {task: str(make(Path(folder) / task)) for task, make in makers.items()}
        cases = [case for task, model_dir in names.items() for case in make_cases(task, model_dir, draw)]
        print(f"{len(cases)} requests with known answers", file=sys.stderr)
        with serve([f"{task}={model_dir}" for task, model_dir in names.items()], threads=1) as server:
            begin = time.perf_counter()
            found = asyncio.run(put_mixed_load(server, cases, args.requests, args.clients, draw))
            seconds = time.perf_counter() - begin
            files = found.samples[0][2], server.open_files
    half = found.samples[len(found.samples) // 2 :]
    slope, _ = statistics.linear_regression([one[0] for one in half], [one[1] for one in half])
    values = {
        "about": machine(1, "cpu") | {"command": " ".join(this_command() if args.record else sys.argv)},
        "requests": args.requests,
        "left": found.left,
        "statuses": {str(status): count for status, count in sorted(found.statuses.items())},
        "errors": found.wrong,
        "seconds": round(seconds, 1),
        "memory, MiB": [round(found.samples[at][1], 1) for at in (0, len(found.samples) // 2, -1)],
        "slope, MiB per 10 000 requests": round(10_000 * slope, 3),
        "file descriptors": files,
    }
    print(json.dumps(values, indent=1))
    for error in found.errors:
        print(error, file=sys.stderr)
    if args.record:
        stored = json.loads(SERVING.read_text(encoding="utf-8"))
        stored["soak"] = values
        write(SERVING, stored)
    sys.exit(1 if found.wrong else 0)


def make_cases(task: str, model_dir: str, draw: random.Random) -> Iterator[Case]:
    """Requests to the model of a task, and the answers of its pipeline to each input alone."""
    pipe: Any = pipeline(task, model=model_dir, device="cpu")  # type: ignore[call-overload]

    def case(inputs: Any, answer: Any, **parameters: Any) -> Case:
        body = {"model": task, "inputs": inputs} | ({"parameters": parameters} if parameters else {})
        return Case(request_bytes("/predict", body), json.loads(json.dumps(answer)))

    for value in WRONG:
        # No history is one, too.
        if task != "next-item-recommendation" or value != [[]]:
            yield case(value, None)
    yield case("a", None, no_such_setting=1)
    texts = [" ".join(draw.choices(WORDS.split(), k=draw.randint(1, 15))) for _ in range(40)]
    read = [text.encode(errors="replace").decode() for text in ODD]
    if task == "translation":
        for text, plain in zip(texts + ODD, texts + read, strict=True):
            beams = draw.choice((1, 2, 5))
            yield case(text, pipe(plain, num_beams=beams, max_new_tokens=11), num_beams=beams)
        yield case(texts, [one for text in texts for one in pipe(text, max_new_tokens=11)])
    elif task == "text-classification":
        for text, plain in zip(texts + ODD, texts + read, strict=True):
            yield case(text, [pipe(plain, top_k=None)] if pipe.tokenizer(plain)["input_ids"] else None)
        yield case(texts, [pipe(text, top_k=1) for text in texts], top_k=1)
    elif task == "token-classification":
        for text, plain in zip(texts + ODD, texts + read, strict=True):
            yield case(text, jsonable(pipe(plain)) if plain.strip() else [])
        yield case(
            texts,
            [jsonable(pipe(text, aggregation_strategy="simple")) for text in texts],
            aggregation_strategy="simple",
        )
    elif task == "automatic-speech-recognition":
        for _ in range(20):
            samples = np.random.default_rng(draw.randrange(2**32)).normal(0, 0.1, draw.randint(800, 8000))
            file = io.BytesIO()
            soundfile.write(file, samples, RATE, format="WAV")
            file.seek(0)
            heard = {"raw": soundfile.read(file, dtype="float32")[0], "sampling_rate": RATE}
            yield case(base64.b64encode(file.getvalue()).decode(), pipe(heard))
        for text in ODD:
            yield case(text, None)
    elif task == "time-series-forecasting":
        for length in (1, 2, 5, 20, 50):
            series = [round(draw.gauss(10, 3), 3) for _ in range(length)]
            torch.manual_seed(length)
            yield case(series, pipe(series), seed=length)
        for text in ODD:
            yield case(text, None)
    elif task == "text-generation":
        greedy: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
        for text in texts:
            # The server has the space between the two; the pipeline has not.
            (found,) = pipe(text, return_full_text=False, **greedy)
            yield case(text, [{"generated_text": f"{text} {found['generated_text'].strip()}"}], **greedy)
    else:
        for text in texts:
            yield case(text.split(), pipe(text.split(), top_k=3), top_k=3)
        for text in ODD:
            yield case(text, None)


def jsonable(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of a tagger with Python's numbers."""
    return [{name: one.item() if isinstance(one, np.generic) else one for name, one in row.items()} for row in values]


async def put_mixed_load(server: Server, cases: list[Case], requests: int, clients: int, draw: random.Random) -> Found:
    """Send so many requests, drawn from the cases, and check the answers."""
    found, numbers = Found(), iter(range(requests))
    found.samples.append((0, server.resident_mib, server.open_files))
    every = max(requests // _SAMPLES, 1)

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for number in numbers:
            if number % every == every - 1:
                found.samples.append((number + 1, server.resident_mib, server.open_files))
            case = draw.choice(cases)
            if draw.random() < _LEAVING:
                found.left += 1
                writer.write(case.request[: draw.choice((len(case.request), draw.randrange(len(case.request))))])
                await asyncio.sleep(draw.choice((0, 0.005)))
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                continue
            writer.write(case.request)
            try:
                status, content = await read_response(reader)
            except (OSError, asyncio.IncompleteReadError) as error:
                found.add_error(f"{type(error).__name__} after {case.request[:300]!r}")
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                continue
            found.statuses[status] += 1
            expected = 400 if case.answer is None else 200
            if status != expected or (status == 200 and not alike(json.loads(content), case.answer)):
                found.add_error(
                    f"{status} {content[:300]!r} after {case.request[:300]!r}; expected {case.answer}"[:1500]
                )
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


if __name__ == "__main__":
    main()
