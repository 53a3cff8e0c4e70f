"""What a recipe does about the Hub: a file about the run, from which the card is made, and the push."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import HfApi

from hfseq.hub.publish import hub_errors, publish
from hfseq.training.arguments import RecipeArguments
from hfseq.training.results import save_run


def repository_of(args: RecipeArguments) -> str:
    """The name under which a run is published: --hub_model_id, or that of the output directory."""
    return args.hub_model_id or Path(str(args.output_dir)).absolute().name


def open_repository(args: RecipeArguments) -> None:
    """Make the repository before a training, so that a bad name or token does not wait for its end.

    Raises:
        InputError: As `publish`.
    """
    if args.push_to_hub and PartialState().is_main_process:
        with hub_errors(repository_of(args)):
            HfApi().create_repo(repository_of(args), private=args.hub_private_repo, exist_ok=True)


def publish_directory(args: RecipeArguments) -> str:
    """Publish the output directory where the arguments say; returns the address."""
    revision = args.hub_revision
    return publish(args.output_dir or "", repository_of(args), private=args.hub_private_repo, revision=revision)


def publish_run(
    args: RecipeArguments, kinds: Sequence[type], argv: Sequence[str] | None, splits: Mapping[str, Any], **about: Any
) -> None:
    """Write the file about a run and, with --push_to_hub, publish its model; on the first process only.

    Args:
        args: The training arguments.
        kinds: As of `save_run`, likewise the others.
        argv: See there.
        splits: See there.
        about: See there.

    Raises:
        InputError: As `publish`; what the run wrote stays.
    """
    save_run(str(args.output_dir), kinds, argv, splits, **about)
    if args.push_to_hub:
        print(f"published: {publish_directory(args)}")
