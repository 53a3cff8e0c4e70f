"""Serve a language model over HTTP, by transformers' own server.

    python -m hfseq.serve outputs/wikitext2 --port 8000

    curl localhost:8000/v1/completions -H 'Content-Type: application/json' \
        -d '{"model": "outputs/wikitext2", "prompt": "The history of", "max_tokens": 20}'

The endpoint is that of OpenAI's completions; `"stream": true` sends the words as they come.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import logging

from hfseq.data.errors import InputError
from hfseq.models import MODEL_CLASSES
from hfseq.publishing import load_published


def make_server(model_dir: str, *, host: str = "localhost", port: int = 8000, **options: Any) -> Any:
    """Start transformers' server for a model of hfseq, or of transformers.

    Args:
        model_dir: A language model and its tokenizer: a directory, or a name on the Hub.
        host: Address to listen at.
        port: Port to listen at.
        options: Of `transformers.cli.serve.Serve`, such as `device` and `non_blocking`.

    Returns:
        The server, once it has ended; with `non_blocking` at once.

    Raises:
        InputError: If the model does not load or writes no text, or the server's packages are not installed.
    """
    if Path(model_dir).is_dir():
        model, _ = load_published(Path(model_dir))
        if not model.can_generate() or model.config.is_encoder_decoder:
            raise InputError(f"{model_dir}: {type(model).__name__} is not a language model, which completions need")
    # The server looks a model's class up there.
    for heads in MODEL_CLASSES.values():
        for model_class in heads.values():
            setattr(transformers, model_class.__name__, model_class)
    try:
        from transformers.cli.serve import Serve

        print(f"serving {model_dir} at http://{host}:{port}/v1/completions", flush=True)
        return Serve(force_model=model_dir, host=host, port=port, **options)
    except ImportError as error:
        raise InputError("serving needs more packages: pip install 'hfseq[serve]'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{model_dir}: {' '.join(str(error).split())[:300]}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Serve what the arguments name, until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m hfseq.serve", description="Serve a language model over HTTP.")
    parser.add_argument("model_dir", help="a trained language model with its tokenizer")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading
    try:
        make_server(args.model_dir, host=args.host, port=args.port, device=args.device)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
