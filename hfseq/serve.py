"""Serve a language model over HTTP, with the API of transformers' server.

    python -m hfseq.serve outputs/wikitext2 --port 8000

    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \
        -d '{"model": "outputs/wikitext2", "prompt": "The history of", "max_tokens": 20}'

The endpoints are those of OpenAI's API, `/v1/completions`, `/v1/chat/completions` and `/v1/models`, and `/health`.
`"stream": true` streams the answer. Concurrent requests, up to `--max_batch_size`, are generated together with
continuous batching; each gets the answer it would get alone.

The model is named by the command-line argument, or by the last part of an absolute path, as listed at `/v1/models`.
Requests for any other model are rejected, and no request makes the server load, download or read anything.

There is no authentication and no encryption: anyone who can reach the address can use the model. By default the server
is reachable from this machine only; put a proxy with authentication in front of it before you expose it with `--host`.
Requests are limited to `--max_prompt_tokens` and `--max_new_tokens` (and to the positions of a Transformer); those
beyond a limit are rejected with status 400. `max_tokens` defaults to the maximum.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.import_utils import is_serve_available

from hfseq.errors import InputError, one_line
from hfseq.heads import require_text
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
    """Create the server for a model of hfseq, whose requests are batched, or of transformers.

    Args:
        model_dir: A language model with its tokenizer: a directory, or a name on the Hub.
        host: Address to listen on.
        port: Port to listen on.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one; a number selects a GPU.
        max_batch_size: Maximum number of requests generated concurrently; further ones are queued.
        max_prompt_tokens: Maximum length of a prompt in tokens.
        max_new_tokens: Maximum number of generated tokens, and the default of requests that set none.

    Returns:
        A `uvicorn.Server`; `run()` serves until it is interrupted.

    Raises:
        InputError: If the model cannot be loaded or is not a language model, a number is not positive, the device is
            not available, or the packages of the server are not installed.
    """
    limits = dict(max_batch_size=max_batch_size, max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens)
    for name, value in limits.items():
        if value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    place = _device(device)
    if not is_serve_available():
        raise InputError("serving needs optional packages: pip install 'hfseq[serve]'")
    model, tokenizer = _load(model_dir)
    import uvicorn

    from hfseq.serving.server import Limits, make_app, positions_of

    model.to(place).eval()  # type: ignore[arg-type]
    app = make_app(model, tokenizer, public_name(model_dir), Limits(**limits, positions=positions_of(model)))
    return uvicorn.Server(uvicorn.Config(app, host=host, port=port))


def public_name(model_dir: str) -> str:
    """The name under which a model is served: the argument as typed, or the last part of an absolute path."""
    path = Path(model_dir)
    return path.name if path.is_absolute() else path.as_posix()


def _load(model_dir: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer."""
    directory = Path(model_dir)
    if not directory.is_dir():
        name, _, revision = model_dir.partition("@")
        try:
            directory = Path(snapshot_download(name, revision=revision or None, allow_patterns=_NEEDED))
        except (OSError, ValueError) as error:
            raise InputError(f"{model_dir}: {one_line(error)}") from error
    model, tokenizer = load_published(directory)
    require_text(model, f"{model_dir}: completions need a language model")
    config: Any = model.config
    kind = f"{model_dir}: {type(model).__name__}"
    if not model.can_generate() or config.is_encoder_decoder:
        raise InputError(f"{kind} is not a language model, as completions need")
    if getattr(config, "add_cross_attention", False):
        raise InputError(f"{kind} needs encoder states (add_cross_attention), which requests do not have")
    if not tokenizer.is_fast:
        raise InputError(f"{model_dir}: streaming needs a fast tokenizer, not {type(tokenizer).__name__}")
    return model, tokenizer


def _device(device: str) -> torch.device:
    """Resolve the name of a device.

    Raises:
        InputError: If it is unknown or not available.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=int(device) if device.isdigit() else device).device
    except (AssertionError, RuntimeError) as error:
        # The other lines are advice on debugging kernels.
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}") from error


def server_parser(module: str, what: str, port: int) -> argparse.ArgumentParser:
    """Create the parser of a server's command line, with its address.

    Args:
        module: Module that runs as `python -m`.
        what: Noun phrase for the help, about what is served.
        port: Default port.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=f"Serve {what}. There is no authentication: anyone who can reach the address can use the model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="localhost", help="address to listen on; 0.0.0.0 for all interfaces")
    parser.add_argument("--port", type=int, default=port, help="port to listen on")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the server until it is interrupted."""
    parser = server_parser("hfseq.serve", "a language model over HTTP", 8000)
    parser.add_argument(
        "model_dir",
        help="directory or Hub name of a language model with its tokenizer; requests name the model as typed here, or "
        "by the last part of an absolute path",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, a GPU number, or auto")
    parser.add_argument("--max_batch_size", type=int, default=32, help="maximum number of concurrent requests")
    parser.add_argument("--max_prompt_tokens", type=int, default=2048, help="maximum prompt length in tokens")
    parser.add_argument("--max_new_tokens", type=int, default=1024, help="maximum number of generated tokens")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading
    try:
        server = make_server(**vars(args))
    except InputError as error:
        parser.exit(1, f"error: {error}\n")
    name = public_name(args.model_dir)
    print(f"serving {name} at http://{args.host}:{args.port}/v1/completions, without authentication", flush=True)
    server.run()


if __name__ == "__main__":
    main()
