"""Publishing a model on the Hub, with its code, its processing class and a model card."""

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
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hfseq import models
from hfseq.errors import InputError, one_line
from hfseq.heads import will_read_text
from hfseq.hub.model_card import PLOTS, make_card
from hfseq.json_files import is_inside, shards
from hfseq.models import is_hfseq
from hfseq.processing import (
    extractor_of,
    has_tokenizer,
    image_processor_of,
    load_processing_class,
    tokenizer_of,
)

STALE = (
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Patterns of files that `save_pretrained` writes for some models and tokenizers only; stale ones affect the model."""

DETECTOR_FILE = "detector.json"
"""Settings of a detector of anomalies, which are published with its model."""

_REFUSALS = {
    401: "invalid token; run `hf auth login`, or set HF_TOKEN",
    403: "no write access: the token is read-only, or the namespace is not yours",
    404: "not found, or not visible with this token",
    409: "the name is already taken",
}


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
    """Publish a trained model on the Hub, or update a published one.

    The upload has the weights as safetensors, the configuration with the Auto classes of all heads, the code of
    hfseq's models, generation settings, the processing class, plots, and a model card (README.md) on data, scores and
    training, from the files in `model_dir`. It is a single commit, so that an interrupted push leaves the previous
    version.

    The processing class is a tokenizer; of a model that reads features of audio a feature extractor, or a processor
    with both if it writes text; and of one that reads features of anything else, and writes no text, none is needed.

    Args:
        model_dir: Directory written by a recipe, a Trainer or `save_pretrained`, with the processing class.
        repo_id: `name`, or `user/name`; the repository is created if it does not exist.
        private: Visibility of a new repository; None for the Hub's default.
        dry_run: True or a folder: write the files there (True: to `hub` in `model_dir`), list them, and stop.
        license: Licence of the weights, as an identifier of the Hub such as `apache-2.0`; None for that of the run.
        token: Access token of the Hub; None for that of `hf auth login` or `HF_TOKEN`. It is never stored.
        revision: Branch to push to; None for the main branch.

    Returns:
        URL of the model, or the folder of a dry run.

    Raises:
        InputError: If the directory has no loadable model, or no tokenizer for text that it reads or writes, or a plot
            that is a link to a file outside it; the name or the token is invalid; or the Hub cannot be reached. Files
            on disk are not changed.
    """
    with hub_errors(repo_id):
        validate_repo_id(repo_id)
    if dry_run == "":
        raise InputError("dry_run='' names no folder; give one, or True for hub/ in that of the model")
    source = Path(model_dir)
    folder = source / "hub" if dry_run is True else Path(str(dry_run))
    if dry_run:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder for the dry run")
        # Only the files of an earlier dry run are replaced.
        replaces = dry_run is True and (folder / "README.md").is_file()
        if folder.exists() and any(folder.iterdir()) and not replaces:
            raise InputError(f"{folder} has other files; name an empty folder for the dry run")
    # Before a repository is created.
    (model, processing_class), images = load_published(source), find_plots(source)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="hfseq-") as temporary:
        if not dry_run:
            with hub_errors(repo_id):
                url = api.create_repo(repo_id, private=private, exist_ok=True)
                repo_id = url.repo_id
                if revision is not None:
                    api.create_branch(repo_id, branch=revision, exist_ok=True)
        model.save_pretrained(temporary)
        if processing_class is not None:
            processing_class.save_pretrained(temporary)
        for name in (*images, *([DETECTOR_FILE] if (source / DETECTOR_FILE).is_file() else [])):
            shutil.copyfile(source / name, Path(temporary) / name)
        card = make_card(source, model, processing_class, repo_id, images=images, license=license)
        card.save(Path(temporary) / "README.md")
        if dry_run:
            # The folder itself is kept, since it may be a link.
            for path in folder.iterdir() if folder.exists() else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.copytree(temporary, folder, dirs_exist_ok=True)
            print(f"would be pushed to {repo_id}:")
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                print(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
            return str(folder)
        code = [path.name for path in Path(models.__file__).parent.glob("*.py")]
        with hub_errors(repo_id):
            api.upload_folder(
                repo_id=repo_id,
                folder_path=temporary,
                commit_message="Model, processing class and card",
                delete_patterns=[*STALE, *PLOTS, *code],
                revision=revision,
            )
    return str(url)


def find_plots(directory: Path) -> list[str]:
    """The plots among `PLOTS` in a directory.

    Raises:
        InputError: If one is a link to a file outside the directory.
    """
    names = [name for name in PLOTS if (directory / name).is_file()]
    for name in names:
        if not is_inside(directory / name, directory):
            raise InputError(f"{directory / name}: is a link that leads out of its folder; put the file itself there")
    return names


def load_published(directory: Path) -> tuple[PreTrainedModel, Any]:
    """Load a model, of the class that its config names, and its processing class; nothing is unpickled.

    Returns:
        The model, and its tokenizer; or, if it reads features or audio, what `load_processing_class` finds, None if
        it needs nothing: no audio is turned into features, and no text is written.

    Raises:
        InputError: If either is missing, damaged or incomplete, or weights lie outside the directory.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json, so there is no model")
    if not (directory / SAFE_WEIGHTS_NAME).is_file() and (directory / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shards(
            directory / SAFE_WEIGHTS_INDEX_NAME
        )  # transformers would load, and `publish` push, any file listed there
    try:
        config = AutoConfig.from_pretrained(directory)
        found = model_class(config)
        features = not will_read_text(found, config)
        writes = found.__name__.endswith("ForCTC") or found.can_generate()
        if (not features or writes) and not has_tokenizer(directory):
            raise InputError(
                f"{directory}: no tokenizer; save it there, too: tokenizer.save_pretrained({str(directory)!r})"
            )
        options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        loaded: Any = found.from_pretrained(directory, **options)
        processing_class: Any
        processing_class = load_processing_class(directory) if features else AutoTokenizer.from_pretrained(directory)
    except InputError:
        raise
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"{directory}: {one_line(error)}") from error
    known = extractor_of(processing_class) or image_processor_of(processing_class)
    needs_one = features and not is_hfseq(config) and found.main_input_name != "past_values"  # of forecasters
    if needs_one and known is None:
        kind = "image processor" if found.main_input_name == "pixel_values" else "feature extractor"
        raise InputError(f"{directory}: {found.__name__} reads {found.main_input_name}, but there is no {kind}")
    if (tokenizer := tokenizer_of(processing_class)) is not None:
        # Left by loading; not a setting of the tokenizer.
        tokenizer.init_kwargs.pop("local_files_only", None)
    model, info = loaded
    if lost := sorted(info["missing_keys"]):
        raise InputError(f"{directory}: the weights lack {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}")
    return model, processing_class


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that a config names under `architectures`.

    Raises:
        InputError: If it names none, or an unknown one.
    """
    name = (config.architectures or ["none"])[0]
    ours = {found.__name__: found for heads in models.MODEL_CLASSES.values() for found in heads.values()}
    found = ours.get(name) or getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise InputError(f"config.json: unknown class under architectures: {name}")
    return found


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Convert errors of the Hub client to an `InputError` of one line.

    Raises:
        InputError: In place of them.
    """
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is not a valid repository name: {one_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise InputError(f"{repo_id}: no token; run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise InputError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be published") from error
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        message = one_line(error.server_message or "", 200)
        why = _REFUSALS.get(status or 0, f"the Hub answered {status}")
        raise InputError(f"{repo_id}: {why}{f' ({message})' if message else ''}") from error
    except InputError:
        raise
    except ValueError as error:  # of the card's metadata
        raise InputError(f"{repo_id}: the Hub rejects the model card: {one_line(error)}") from error
    except (ConnectionError, HTTPError) as error:
        raise InputError(f"{repo_id}: {constants.ENDPOINT} cannot be reached: {type(error).__name__}") from error
