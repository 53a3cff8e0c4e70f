"""Command line of the converters."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hfseq.convert import from_fairseq, from_fastai, from_joeynmt, from_keras, from_opennmt, from_torch
from hfseq.convert.base import Converted, Format
from hfseq.convert.checking import TOLERANCE, Check, check_conversion
from hfseq.errors import InputError
from hfseq.hub.model_card import RUN_FILE, make_card
from hfseq.hub.publish import publish
from hfseq.version import __version__

FORMATS: dict[str, Format] = {
    "torch": from_torch.FORMAT,
    "fairseq": from_fairseq.FORMAT,
    "fastai": from_fastai.FORMAT,
    "joeynmt": from_joeynmt.FORMAT,
    "opennmt": from_opennmt.FORMAT,
    "keras": from_keras.FORMAT,
}
"""Formats by the names of their commands."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line with the arguments `argv`, by default those of the process."""
    options = vars(make_parser().parse_args(argv))
    logging.disable_progress_bar()
    try:
        check = convert(**options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if not check.passed:
        print(f"error: the logits differ by more than {TOLERANCE:g} standard deviations", file=sys.stderr)
        sys.exit(1)


def make_parser() -> argparse.ArgumentParser:
    """Create the parser, with a command for each format."""
    parser = argparse.ArgumentParser(
        prog="python -m hfseq.convert",
        description="Convert a checkpoint of another toolkit to a model of hfseq, and compare both.",
    )
    commands = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, form in FORMATS.items():
        command = commands.add_parser(name, help=form.summary, description=f"Convert {form.summary}.")
        command.add_argument("checkpoint", help="file or folder of the checkpoint")
        command.add_argument("--output_dir", required=True, help="folder for the model, which must be new or empty")
        command.add_argument("--push_to_hub", metavar="NAME", help="publish the model on the Hub under this name")
        form.add_arguments(command)
    return parser


def convert(format: str, checkpoint: str, output_dir: str, push_to_hub: str | None = None, **options: Any) -> Check:
    """Convert a checkpoint, check the result, and save it unless it differs from its source.

    Args:
        format: A key of `FORMATS`.
        checkpoint: File or folder.
        output_dir: Folder for the model, its tokenizer and its card.
        push_to_hub: Name on the Hub; None to publish nothing.
        options: Keyword arguments of the format.

    Returns:
        The result of the check.

    Raises:
        InputError: If the checkpoint cannot be converted, the folder has files, or publishing fails.
    """
    output = Path(output_dir)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(
            f"--output_dir {output}: {'has files' if output.is_dir() else 'is a file'}; name a new folder"
        )
    converted = FORMATS[format].convert(checkpoint, **options)
    print(f"{type(converted.model).__name__}, {converted.model.num_parameters():,} parameters, of {converted.toolkit}")
    for part in converted.ignored:
        print(f"ignored: {part}")
    for note in converted.decoding:
        print(note)
    if converted.tokenizer is None:
        print("no tokenizer: the checkpoint has no vocabulary, and none was given")
    check = check_conversion(converted.model, converted.reference)
    print(check)
    if check.passed:
        save(converted, check, output, push_to_hub)
        print(f"wrote {output}")
        if push_to_hub is not None:
            print(publish(output, push_to_hub))
    return check


def save(converted: Converted, check: Check, output: Path, name: str | None = None) -> None:
    """Save a converted model with its tokenizer, the record of its conversion and a model card.

    Args:
        converted: The model.
        check: Result of its check, for the card.
        output: Folder, created if it does not exist.
        name: Name on the Hub, for the examples on the card; None for the folder.
    """
    converted.model.save_pretrained(output)
    if converted.tokenizer is not None:
        converted.tokenizer.save_pretrained(output)
    record = {
        "toolkit": converted.toolkit,
        "ignored": converted.ignored,
        "decoding": converted.decoding,
        "check": str(check),
        "hfseq": __version__,
    }
    # Of all toolkits these are translators.
    task = {"task": "translation"} if converted.model.config.is_encoder_decoder else {}
    (output / RUN_FILE).write_text(json.dumps(task | {"converted": record}, indent=2) + "\n", encoding="utf-8")
    card = make_card(output, converted.model, converted.tokenizer, name or output.as_posix())
    card.save(output / "README.md")
