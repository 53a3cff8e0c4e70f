"""Publishing a model on the Hub, with its code, its tokenizer and a card of what was measured."""

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hfseq import models
from hfseq.errors import InputError, one_line
from hfseq.hub.model_card import make_card
from hfseq.json_files import shards

IMAGES = ("learning_curve.png", "alignment.png", "confusion_matrix.png")
"""Plots of a run that a card shows."""
OPTIONAL = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "vocab.json",
    "vocab.txt",
)
"""What `save_pretrained` of a tokenizer or a model writes for some and not for others."""
# The Hub's client of either major version has one of these below it, whose errors it passes on.
_UNREACHABLE: tuple[type[BaseException], ...] = (
    ConnectionError,
    *(importlib.import_module(name).TransportError for name in ("httpx", "httpx2") if importlib.util.find_spec(name)),
)


def publish(
    model_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: bool | str | Path = False,
    license: str | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Put a trained model on the Hub, or bring up to date what is there.

    What goes up is the model as it loads: weights as safetensors, configuration with the Auto classes of all heads,
    the code of hfseq's models, generation settings, tokenizer, plots, and a card (README.md) of what `model_dir` says
    about data, scores and training. All of it is one commit, so that a push that is cut off leaves the last version.

    Args:
        model_dir: What a recipe, a Trainer or `save_pretrained` wrote, tokenizer included.
        repo_id: `name`, or `user/name`; it is made if it is not there.
        private: Whether a new one is private; None for what the Hub does by default.
        dry_run: True or a folder: write what would go up there (True: into `hub` in `model_dir`), print it, and stop.
        license: The Hub's name of the licence of the weights, such as `apache-2.0`; None for what the run said.
        token: Of the Hub; None for the one of `hf auth login` or `HF_TOKEN`. It is written nowhere.
        revision: The branch; None for the main one.

    Returns:
        Address of the model, or the folder of a dry run.

    Raises:
        InputError: If the directory has no model that loads, or no tokenizer; the name or the token is not good; or
            the Hub cannot be reached. What is on the disk stays as it is.
    """
    with hub_errors(repo_id):
        validate_repo_id(repo_id)
    if dry_run == "":
        raise InputError("dry_run='' names no folder; give one, or True for hub/ in that of the model")
    with tempfile.TemporaryDirectory(prefix="hfseq-") as temporary:
        if dry_run:
            own = dry_run is True
            folder = Path(model_dir) / "hub" if own else Path(str(dry_run))
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder} is a file; name a folder for the dry run")
            # Only what an earlier dry run has written there is replaced.
            if folder.exists() and any(folder.iterdir()) and not (own and (folder / "README.md").is_file()):
                raise InputError(f"{folder} has other files; name an empty folder for the dry run")
            loaded = load_published(Path(model_dir))
            stage(model_dir, loaded, temporary, repo_id, license=license)
            # Emptied, not removed: it may be a link to a folder.
            for path in folder.iterdir() if folder.exists() else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.copytree(temporary, folder, dirs_exist_ok=True)
            print(f"would go to {repo_id}:")
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
            return str(folder)
        loaded = load_published(Path(model_dir))  # before a repository is made for it
        api = HfApi(token=token)
        with hub_errors(repo_id):
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        stage(model_dir, loaded, temporary, url.repo_id, license=license)
        with hub_errors(url.repo_id):
            there = api.list_repo_files(url.repo_id, revision=revision)
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=temporary,
                commit_message="Model, tokenizer and card",
                delete_patterns=[name for name in there if is_published(name)] or None,
                revision=revision,
            )
    return str(url)


def is_published(name: str) -> bool:
    """Whether a file of a repository is one that `publish` writes and may be out of date.

    Weights, code, plots, and what a tokenizer or a model may have beside its configuration: it would take effect.
    """
    code = {path.name for path in Path(models.__file__).parent.glob("*.py")}
    weights = name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))
    return "/" not in name and (weights or name in code or name in IMAGES or name in OPTIONAL)


def stage(
    model_dir: str | Path,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
) -> None:
    """Write what `publish` sends into a folder that is there: what `load_published` gave of a directory, plots, card.

    Raises:
        InputError: If what the run wrote about itself is broken.
    """
    source, target = Path(model_dir), Path(folder)
    model, tokenizer = loaded
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    images = [name for name in IMAGES if (source / name).is_file()]
    for name in images:
        shutil.copyfile(source / name, target / name)
    make_card(source, model, tokenizer, repo_id, images=images, license=license).save(target / "README.md")


def load_published(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a directory, of the class that its config names, and its tokenizer; nothing is unpickled.

    Raises:
        InputError: If one of them is missing, broken or incomplete, or weights lie outside the directory.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json, so there is no model")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InputError(
            f"{directory}: no tokenizer; save it there, too: tokenizer.save_pretrained({str(directory)!r})"
        )
    if not (directory / SAFE_WEIGHTS_NAME).is_file() and (directory / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shards(directory / SAFE_WEIGHTS_INDEX_NAME)  # transformers would load, and this publish, any file named there
    try:
        config = AutoConfig.from_pretrained(directory)
        options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        loaded: Any = model_class(config).from_pretrained(directory, **options)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except InputError:
        raise
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"{directory}: {one_line(error)}") from error
    # Of this loading, not of the tokenizer.
    tokenizer.init_kwargs.pop("local_files_only", None)
    model, info = loaded
    if lost := sorted(info["missing_keys"]):
        raise InputError(f"{directory}: the weights lack {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}")
    return model, tokenizer


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that a config names under `architectures`.

    Raises:
        InputError: If it names none that is known.
    """
    name = (config.architectures or ["none"])[0]
    ours = {found.__name__: found for heads in models.MODEL_CLASSES.values() for found in heads.values()}
    found = ours.get(name) or getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise InputError(f"config.json: unknown class under architectures: {name}")
    return found


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turns what goes wrong with the Hub into one line.

    Raises:
        InputError: In place of the Hub's errors.
    """
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no name of a repository: {one_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise InputError(f"{repo_id}: no token; run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise InputError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be published") from error
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        said = " ".join((error.server_message or "").split())[:200]
        why = {
            401: "the Hub does not know this token; run `hf auth login`, or set HF_TOKEN",
            403: "this token may not write there: it can only read, or the name belongs to somebody else",
            404: "the Hub has no such place for this token",
            409: "the name is taken",
        }.get(status or 0, f"the Hub answered {status}")
        raise InputError(f"{repo_id}: {why}{f' ({said})' if said else ''}") from error
    except InputError:
        raise
    except ValueError as error:  # of the card's metadata
        raise InputError(f"{repo_id}: the Hub refuses the card: {one_line(error)}") from error
    except _UNREACHABLE as error:
        raise InputError(f"{repo_id}: {constants.ENDPOINT} cannot be reached: {type(error).__name__}") from error
