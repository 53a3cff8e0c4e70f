"""Serve models of text, audio, series and items over HTTP, several of them by name.

    python -m hfseq.serve outputs/translation --port 8000

    curl localhost:8000/predict -H 'Content-Type: application/json' \
        -d '{"inputs": ["Guten Morgen", "Danke"], "parameters": {"num_beams": 5}}'

`/predict` takes requests in the form of Hugging Face's Inference Endpoints, for translation, summarization,
classification, tagging, generation, recognition, forecasting and recommendation, and answers as the pipeline of the
task. Language models also have OpenAI's endpoints, `/v1/completions` and `/v1/chat/completions`. `/v1/models` lists
the models; `/health`, `/ready` and `/metrics` (Prometheus) are for whoever runs the server, `/openapi.json` describes
it.

Inputs that arrive together are processed as one batch, up to `--max_batch_size`; each gets the answer it would get
alone. A model is a directory or a name on the Hub, of hfseq or of transformers, or an ONNX export, float32 or int8.
Requests name it as typed, by the last part of an absolute path, or by the NAME of NAME=DIRECTORY. No request makes the
server load, download or read anything.

By default the server is reachable from this machine only, and without authentication; `--api_key`, or the environment
variable HFSEQ_API_KEY, which other users of the machine cannot see, demands a key. There is no encryption: put a proxy
with TLS in front of it before you expose it with `--host`. Requests beyond a limit are rejected with status 400, those
that find the queue full with 503. SIGTERM lets running requests finish.
"""

import argparse
import asyncio
import errno
import math
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hfseq.errors import InputError, one_line, require

BACKENDS = ("torch", "onnx")


def make_server(
    model_dirs: str | Path | Sequence[str | Path],
    *,
    host: str = "localhost",
    port: int = 8000,
    task: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    max_batch_size: int = 32,
    max_queue: int = 1024,
    max_input_tokens: int = 2048,
    max_new_tokens: int = 1024,
    max_body_mib: int = 16,
    timeout: float = 60.0,
    api_key: str | Sequence[str] | None = None,
    traffic_dir: str | Path | None = None,
) -> Any:
    """Create the server for models of hfseq or of transformers.

    Args:
        model_dirs: One or several models with their tokenizers or feature extractors: directories, names on the Hub,
            or ONNX exports; `NAME=DIRECTORY` to name one.
        host: Address to listen on.
        port: Port to listen on.
        task: Name of a pipeline's task; by default it follows from the model.
        backend: `torch` or `onnx`; by default it follows from the directory.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one; a number selects a GPU.
        max_batch_size: Maximum number of inputs processed together.
        max_queue: Maximum number of waiting inputs of a model.
        max_input_tokens: Maximum length of an input in tokens, of a series in values, of a history in items.
        max_new_tokens: Maximum number of generated tokens, and the default of requests that set none.
        max_body_mib: Maximum size of a request in MiB.
        timeout: Seconds after which a request is given up.
        api_key: A key, or several, one of which requests must have; None for no authentication.
        traffic_dir: Directory to log inputs and outputs in, for `recipes/monitoring.py`; None for no such log.

    Returns:
        A `uvicorn.Server`; `run()` serves until it is interrupted.

    Raises:
        InputError: If a model cannot be loaded or its task is not served, a number is not positive, the device is not
            available, the directory of the log cannot be written, or the packages of the server are not installed.
    """
    numbers = dict(
        max_batch_size=max_batch_size,
        max_queue=max_queue,
        max_input_tokens=max_input_tokens,
        max_new_tokens=max_new_tokens,
        max_body_mib=max_body_mib,
        timeout=timeout,
    )
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise InputError(f"--{name} {value}: must be positive and finite")
    keys = (api_key,) if isinstance(api_key, str) else tuple(api_key or ())
    if not all(keys):
        raise InputError("--api_key: the key is empty")
    require("fastapi", "prometheus_client", "uvicorn", extra="serve", use="the server")
    import uvicorn

    from hfseq.serving.app import Settings, make_app
    from hfseq.serving.limits import Limits
    from hfseq.serving.metrics import Metrics
    from hfseq.serving.served import check_names, load_served, public_name, split_name
    from hfseq.serving.traffic import TrafficLog, check_directory

    if traffic_dir is not None:
        check_directory(traffic_dir)
    limits = Limits(max_batch_size, max_queue, max_input_tokens, max_new_tokens)
    given = [model_dirs] if isinstance(model_dirs, str | Path) else list(model_dirs)
    named = [split_name(str(one)) for one in given]
    check_names([name or public_name(directory) for name, directory in named])
    metrics = Metrics()
    options: dict[str, Any] = {"task": task, "backend": backend, "device": device, "limits": limits}
    models = [load_served(directory, name=name, observe=metrics.observe_batch, **options) for name, directory in named]
    traffic = None if traffic_dir is None else TrafficLog(traffic_dir)
    app = make_app(models, metrics, Settings(keys, timeout, max_body_mib * 2**20, traffic=traffic))
    # Running requests end by their own time-out; the log is ours.
    drain = int(timeout) + 1
    config = uvicorn.Config(
        app, host=host, port=port, access_log=False, log_config=None, timeout_graceful_shutdown=drain
    )
    return uvicorn.Server(config)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def server_parser(module: str, what: str, port: int, warning: str) -> argparse.ArgumentParser:
    """Create the parser of a server's command line, with its address.

    Args:
        module: Module that runs as `python -m`.
        what: Noun phrase for the help, about what is served.
        port: Default port.
        warning: Sentence for the help, about authentication.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=f"Serve {what}. {warning}", formatter_class=_Formatter
    )
    parser.add_argument("--host", default="localhost", help="address to listen on; 0.0.0.0 for all interfaces")
    parser.add_argument("--port", type=int, default=port, help="port to listen on")
    return parser


def check_address(host: str, port: int) -> None:
    """Check that a server can listen at an address, before it loads its models.

    Raises:
        InputError: If it cannot.
    """

    async def listen() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
        server.close()

    if not 0 < port < 2**16:  # the resolver would take the remainder
        raise InputError(f"--port {port}: must be between 1 and {2**16 - 1}")
    try:
        asyncio.run(listen())
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port {port}: in use on {host}; choose another") from error
        raise InputError(f"--host {host} --port {port}: {one_line(error)}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server until it is interrupted."""
    warning = "Without --api_key anyone who can reach the address can use the models."
    parser = server_parser("hfseq.serve", "models over HTTP", 8000, warning)
    add = parser.add_argument
    add(
        "model_dirs",
        nargs="+",
        metavar="MODEL_DIR",
        help="directory or Hub name of a model with its tokenizer, or an ONNX export; NAME=MODEL_DIR to name it",
    )
    add("--task", help="pipeline task of the models, if it cannot be inferred from them")
    add("--backend", choices=BACKENDS, help="PyTorch or onnxruntime; by default as the directory is")
    add("--device", default="auto", help="cpu, cuda, a GPU number, or auto")
    add("--max_batch_size", type=int, default=32, help="maximum number of inputs processed together")
    add("--max_queue", type=int, default=1024, help="maximum number of waiting inputs of a model")
    add("--max_input_tokens", type=int, default=2048, help="maximum length of an input in tokens")
    add("--max_new_tokens", type=int, default=1024, help="maximum number of generated tokens")
    add("--max_body_mib", type=int, default=16, help="maximum size of a request in MiB")
    add("--timeout", type=float, default=60.0, help="seconds after which a request is given up")
    add("--api_key", action="append", help="key that requests must have; may be repeated; HFSEQ_API_KEY is one, too")
    add("--traffic_dir", help="directory to log inputs and outputs in, for recipes/monitoring.py; by default none")
    args = parser.parse_args(argv)
    if key := os.environ.get("HFSEQ_API_KEY"):
        args.api_key = [*(args.api_key or ()), key]
    logging.disable_progress_bar()  # of loading
    try:
        check_address(args.host, args.port)
        server = make_server(**vars(args))
    except InputError as error:
        parser.exit(1, f"error: {error}\n")
    from hfseq.serving.observing import start_logging

    start_logging()
    protection = "with an API key" if args.api_key else "without authentication"
    # uvicorn raises the signal again once it has shut down; whoever stops a service expects status 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"serving {', '.join(args.model_dirs)} at http://{args.host}:{args.port}/predict, {protection}", flush=True)
    with suppress(KeyboardInterrupt):
        server.run()


if __name__ == "__main__":
    main()
