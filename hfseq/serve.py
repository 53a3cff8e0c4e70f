"""Serve a language model over HTTP, by transformers' own server.

    python -m hfseq.serve outputs/wikitext2 --port 8000

    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \
        -d '{"model": "outputs/wikitext2", "prompt": "The history of", "max_tokens": 20}'

The endpoint is that of OpenAI's completions; `"stream": true` sends the words as they come. Requests that come at the
same time are generated together, up to `--max_batch_size` of them, and each gets what it would get alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging
from transformers.utils.import_utils import is_serve_available

from hfseq.data.errors import InputError, one_line
from hfseq.models import MODEL_CLASSES
from hfseq.publishing import load_published


def make_server(
    model_dir: str, *, host: str = "localhost", port: int = 8000, device: str = "auto", max_batch_size: int = 32
) -> Any:
    """Transformers' server for a model of hfseq, whose requests it batches, or of transformers.

    Args:
        model_dir: A language model and its tokenizer: a directory, or a name on the Hub.
        host: Address to listen at.
        port: Port to listen at.
        device: `cpu`, `cuda`, or `auto`; a number is that GPU.
        max_batch_size: Number of requests that are generated at once; later ones wait.

    Returns:
        A `uvicorn.Server`; its `run()` serves until it is interrupted.

    Raises:
        InputError: If the model does not load or writes no text, the batch has no place, the device is not there, or
            the server's packages are not installed.
    """
    if max_batch_size < 1:
        raise InputError(f"--max_batch_size {max_batch_size}: it must be at least 1")
    _check_device(device)
    if Path(model_dir).is_dir():
        if "@" in model_dir:
            raise InputError(f"{model_dir}: the server takes what follows '@' for a revision; use a path without it")
        model, _ = load_published(Path(model_dir))
        if not model.can_generate() or model.config.is_encoder_decoder:
            raise InputError(f"{model_dir}: {type(model).__name__} is not a language model, which completions need")
    if not is_serve_available():
        raise InputError("serving needs more packages: pip install 'hfseq[serve]'")
    import uvicorn

    from hfseq.serving import make_app

    # The server looks a model's class up there.
    for heads in MODEL_CLASSES.values():
        for model_class in heads.values():
            setattr(transformers, model_class.__name__, model_class)
    try:
        app = make_app(model_dir, device=device, max_batch_size=max_batch_size)
    except (OSError, ValueError) as error:
        raise InputError(f"{model_dir}: {one_line(error)}") from error
    return uvicorn.Server(uvicorn.Config(app, host=host, port=port))


def _check_device(device: str) -> None:
    """Fail in one line where the loading of a model would fail with a traceback."""
    if device == "auto":
        return
    try:
        torch.empty(0, device=int(device) if device.isdigit() else device)
    except (AssertionError, RuntimeError) as error:
        # The rest of what torch says is advice on debugging kernels.
        raise InputError(f"--device {device}: {str(error).splitlines()[0]}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Serve what the arguments name, until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m hfseq.serve", description="Serve a language model over HTTP.")
    parser.add_argument("model_dir", help="a trained language model with its tokenizer")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    parser.add_argument("--max_batch_size", type=int, default=32, help="requests that are generated at once")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading
    try:
        server = make_server(**vars(args))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"serving {args.model_dir} at http://{args.host}:{args.port}/v1/completions", flush=True)
    server.run()


if __name__ == "__main__":
    main()
