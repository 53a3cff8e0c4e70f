"""Serve a language model over HTTP, by transformers' own server.

    python -m hfseq.serve outputs/wikitext2 --port 8000

    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \
        -d '{"model": "outputs/wikitext2", "prompt": "The history of", "max_tokens": 20}'

The endpoints are those of OpenAI's API: `/v1/completions`, `/v1/chat/completions` and `/v1/models`, and there is
`/health`. `"stream": true` sends the words as they come. Requests that come at the same time are generated together,
up to `--max_batch_size` of them, and each gets what it would get alone.

The model's name is the argument as it was typed, or, of an absolute path, its last part; `/v1/models` says it. A
request with another name is refused, and none has the server load, download or read anything.

There is no authentication and no encryption: whoever reaches the address can have texts generated. The server listens
to this machine alone unless `--host` says otherwise; put a proxy that asks for a key in front of it before others may
reach it. What one request gets is bounded: `--max_prompt_tokens` of a prompt and `--max_new_tokens` of an answer (a
Transformer's positions are a limit, too). A request for more is refused, with 400, and one that names no `max_tokens`
gets as many as there may be.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.import_utils import is_serve_available

from hfseq.errors import InputError, one_line
from hfseq.hub.publish import load_published

_NEEDED = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.txt"]


def make_server(
    model_dir: str,
    *,
    host: str = "localhost",
    port: int = 8000,
    device: str = "auto",
    max_batch_size: int = 32,
    max_prompt_tokens: int = 2048,
    max_new_tokens: int = 1024,
) -> Any:
    """Transformers' server for a model of hfseq, whose requests it batches, or of transformers.

    Args:
        model_dir: A language model and its tokenizer: a directory, or a name on the Hub.
        host: Address to listen at.
        port: Port to listen at.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one; a number is that GPU.
        max_batch_size: Number of requests that are generated at once; later ones wait.
        max_prompt_tokens: Tokens of a prompt at most.
        max_new_tokens: Tokens of an answer at most, and of one to a request that names no number.

    Returns:
        A `uvicorn.Server`; its `run()` serves until it is interrupted.

    Raises:
        InputError: If the model does not load or writes no text, a number is not positive, the device is not there, or
            the server's packages are not installed.
    """
    limits = {
        "max_batch_size": max_batch_size,
        "max_prompt_tokens": max_prompt_tokens,
        "max_new_tokens": max_new_tokens,
    }
    for name, value in limits.items():
        if value < 1:
            raise InputError(f"--{name} {value}: it must be at least 1")
    place = _device(device)
    if not is_serve_available():
        raise InputError("serving needs more packages: pip install 'hfseq[serve]'")
    model, tokenizer = _load(model_dir)
    import uvicorn

    from hfseq.serving.server import Limits, make_app, positions_of

    app = make_app(
        model.to(place).eval(),  # type: ignore[arg-type]
        tokenizer,
        public_name(model_dir),
        Limits(**limits, positions=positions_of(model)),
    )
    return uvicorn.Server(uvicorn.Config(app, host=host, port=port))


def public_name(model_dir: str) -> str:
    """The name under which a model is served: as it was typed, without the place of an absolute path."""
    path = Path(model_dir)
    return path.name if path.is_absolute() else path.as_posix()


def _load(model_dir: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model that is served, once, and its tokenizer."""
    directory = Path(model_dir)
    if not directory.is_dir():
        name, _, revision = model_dir.partition("@")
        try:
            directory = Path(snapshot_download(name, revision=revision or None, allow_patterns=_NEEDED))
        except (OSError, ValueError) as error:
            raise InputError(f"{model_dir}: {one_line(error)}") from error
    model, tokenizer = load_published(directory)
    config: Any = model.config
    kind = type(model).__name__
    if not model.can_generate() or config.is_encoder_decoder:
        raise InputError(f"{model_dir}: {kind} is not a language model, which completions need")
    if getattr(config, "add_cross_attention", False):
        raise InputError(f"{model_dir}: this {kind} reads an encoder's states, which requests do not have")
    if not tokenizer.is_fast:
        raise InputError(f"{model_dir}: a stream needs a fast tokenizer, and this is {type(tokenizer).__name__}")
    return model, tokenizer


def _device(device: str) -> torch.device:
    """The device of a name; fails in one line where moving the model would fail with a traceback."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=int(device) if device.isdigit() else device).device
    except (AssertionError, RuntimeError) as error:
        # The rest of what torch says is advice on debugging kernels.
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Serve what the arguments name, until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m hfseq.serve",
        description="Serve a language model over HTTP. There is no authentication: whoever reaches the address can "
        "have texts generated.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "model_dir",
        help="a trained language model with its tokenizer; requests name it as it is typed here, or by the last part "
        "of an absolute path",
    )
    parser.add_argument("--host", default="localhost", help="address to listen at; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--max_batch_size", type=int, default=32, help="requests that are generated at once")
    parser.add_argument("--max_prompt_tokens", type=int, default=2048, help="tokens of a prompt; more are refused")
    parser.add_argument("--max_new_tokens", type=int, default=1024, help="tokens of an answer; more are refused")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading
    try:
        server = make_server(**vars(args))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    name = public_name(args.model_dir)
    print(f"serving {name} at http://{args.host}:{args.port}/v1/completions, without authentication", flush=True)
    server.run()


if __name__ == "__main__":
    main()
