"""Models as they are served: loading, their task, and the thread that runs them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel

from hfseq.data.collation import position_limit
from hfseq.errors import InputError, one_line
from hfseq.heads import HUB_TASKS, RECOMMENDATION, head_of, reads_text
from hfseq.hub.model_card import read_run
from hfseq.hub.publish import load_published
from hfseq.models import is_hfseq
from hfseq.onnx.export import GRAPHS_FILE
from hfseq.onnx.runtime import OnnxRunner, load_onnx
from hfseq.processing import extractor_of
from hfseq.serving.dynamic import DynamicBatcher, Item
from hfseq.serving.language_model import LanguageModel
from hfseq.serving.limits import Limits
from hfseq.serving.prediction import Predictor
from hfseq.serving.predictors import PREDICTORS
from hfseq.serving.reader import Reader
from hfseq.serving.text_generation import TextGeneration, TextGenerationQueue
from hfseq.tokenization import is_item_tokenizer

BACKENDS = ("torch", "onnx")
"""Backends of a model: its weights, or an ONNX export, float32 or int8."""
TEXT_GENERATION = "text-generation"
"""The task of language models, which answer OpenAI's requests, too."""
AUDIO_TASKS = ("audio-classification", "automatic-speech-recognition")
"""Tasks whose inputs are recordings."""
DEFAULTS = Limits()
"""Default limits."""
_NEEDED = ["*.json", "*.jinja", "*.model", "*.safetensors", "*.txt", "*.onnx"]


@dataclass
class Served:
    """A model that is ready to answer.

    Attributes:
        name: Public name of the model.
        task: Name of the pipeline's task.
        backend: One of `BACKENDS`.
        model: The model, or the runner of its ONNX export.
        processing_class: Its tokenizer, feature extractor or processor; None for series.
        predictor: Checks and runs the inputs of `/predict`.
        batcher: Batches these inputs.
        language_model: Answers OpenAI's requests, if this is a language model.
    """

    name: str
    task: str
    backend: str
    model: PreTrainedModel
    processing_class: Any
    predictor: Predictor
    batcher: DynamicBatcher | TextGenerationQueue
    language_model: LanguageModel | None = None

    def __post_init__(self) -> None:
        """Create the thread that checks requests, unless the language model has one for its tokenizer."""
        self._reader = Reader(self.name) if self.language_model is None else self.language_model.reader

    @property
    def ready(self) -> bool:
        """True if requests are being answered."""
        return self.batcher.alive

    @property
    def waiting(self) -> int:
        """Number of waiting inputs."""
        return self.batcher.waiting

    async def read(self, inputs: Any, parameters: Mapping[str, Any]) -> tuple[list[Item], bool]:
        """Check a request to `/predict` in the thread that does so; see `Predictor.items`.

        Raises:
            Closed: If the model is closed.
        """
        return await self._reader.run(self.predictor.items, inputs, parameters)

    def close(self, timeout: float | None = None) -> None:
        """Answer what is waiting, for so many seconds at most, then stop."""
        self.batcher.close(timeout)
        self._reader.close()


def load_served(
    model_dir: str,
    *,
    name: str | None = None,
    task: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    limits: Limits = DEFAULTS,
    observe: Callable[[str, int, float], None] | None = None,
) -> Served:
    """Load a model of hfseq or of transformers.

    Args:
        model_dir: Directory, or name on the Hub, of a model with its tokenizer or feature extractor, or of its ONNX
            export.
        name: Public name; by default the argument as typed, or the last part of an absolute path.
        task: Name of a pipeline's task; by default it follows from the model's class and the record of its run.
        backend: One of `BACKENDS`; by default it follows from the directory.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one; a number selects a GPU.
        limits: Limits of a request.
        observe: Called with the name of the model, the size of each batch, and the seconds that its oldest input has
            waited.

    Raises:
        InputError: If the model cannot be loaded, or its task is unknown or not served.
    """
    public, directory = name or public_name(model_dir), _directory(model_dir)
    exported = (directory / GRAPHS_FILE).is_file()
    backend = backend or ("onnx" if exported else "torch")
    if backend not in BACKENDS:
        raise InputError(f"--backend {backend}: known are {' and '.join(BACKENDS)}")
    if exported != (backend == "onnx"):
        has = "an ONNX export" if exported else "no ONNX export; hfseq.export_onnx makes one"
        raise InputError(f"--backend {backend}: {model_dir} holds {has}")
    model: Any
    if exported:
        model, processing_class = load_onnx(directory, threads=torch.get_num_threads(), spinning=False)
    else:
        model, processing_class = load_published(directory)
        model.to(choose_device(device)).eval()
    task = task or task_of(model, processing_class, directory)
    tasks = sorted((TEXT_GENERATION, *PREDICTORS))
    if task not in tasks:
        raise InputError(f"{model_dir}: the task {task!r} is not served; known are {', '.join(tasks)}")
    if (possible := tasks_of(model)) and task not in possible:
        raise InputError(f"{model_dir}: {class_of(model)} is not for {task}, but for {' or '.join(possible)}")
    if task in AUDIO_TASKS and extractor_of(processing_class) is None:
        reads = f"{class_of(model)} reads {model.main_input_name}, but there is no feature extractor"
        raise InputError(f"{model_dir}: {reads} to make them of recordings; save it there, too")
    limits = limits._replace(positions=min(limits.positions, positions_of(model)))
    options = {}
    if task in ("translation", "summarization"):
        prefix = read_run(directory)[0].get("arguments", {}).get("source_prefix")
        options = {} if prefix is None else {"prefix": prefix}
    reported = None if observe is None else partial(observe, public)
    try:
        if task == TEXT_GENERATION:
            written = LanguageModel(model, processing_class, limits, reported)
            parts = TextGeneration(written), TextGenerationQueue(written)
            return Served(public, task, backend, model, processing_class, *parts, written)
        predictor = PREDICTORS[task](model, processing_class, task, limits, **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"{model_dir}: {one_line(error)}") from error
    batcher = DynamicBatcher(
        predictor.run,
        name=public,
        max_batch_size=limits.max_batch_size,
        max_queue=limits.max_queue,
        observe=reported,
    )
    return Served(public, task, backend, model, processing_class, predictor, batcher)


def split_name(model: str) -> tuple[str | None, str]:
    """Split `NAME=DIRECTORY` into name, or None, and directory."""
    name, equals, directory = model.partition("=")
    return (name, directory) if equals and name and not Path(model).exists() else (None, model)


def public_name(model_dir: str) -> str:
    """The name under which a model is served: the argument as typed, or the last part of an absolute path."""
    path = Path(model_dir)
    return path.name if path.is_absolute() else path.as_posix()


def check_names(names: Sequence[str]) -> None:
    """Check that the names of models are different.

    Raises:
        InputError: If two are the same.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two models have the name {twice[0]!r}; give them others: NAME=DIRECTORY")


def choose_device(device: str) -> torch.device:
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


def task_of(model: PreTrainedModel, processing_class: Any, directory: Path) -> str:
    """The pipeline's task of a model, from the record of its run, its class and its inputs.

    Raises:
        InputError: If it has none.
    """
    recorded = read_run(directory)[0].get("task")
    if recorded in HUB_TASKS and HUB_TASKS[recorded].pipeline:
        return str(recorded)
    kind = class_of(model)
    head = head_of(kind)
    if head.auto_class == "AutoModelForSeq2SeqLM" and reads_text(model):
        specific = {*(getattr(model.config, "task_specific_params", None) or {})}
        return "summarization" if specific == {"summarization"} else "translation"
    if head.hub_task == "text-generation" and is_item_tokenizer(processing_class):
        return RECOMMENDATION.name
    of_series = head.hub_task == "time-series-forecasting"
    known = head.hub_task if reads_text(model) or of_series else head.audio_task
    if known is None:
        raise InputError(f"{directory}: the task of {kind} is unknown; name it with --task")
    return known


def class_of(model: PreTrainedModel) -> str:
    """Name of the class of a model; of an ONNX export, of the one that was exported."""
    kind = type(model).__name__
    return (model.config.architectures or [kind])[0] if isinstance(model, OnnxRunner) else kind


def tasks_of(model: PreTrainedModel) -> list[str]:
    """Names of the pipelines' tasks that a model may have; none if its class has no known head."""
    found = [task for task in head_of(class_of(model)).hub_tasks if task.pipeline]
    if "text-generation" in [task.name for task in found]:
        found.append(RECOMMENDATION)
    return [task.name for task in found if (task.reads == "text") == reads_text(model)]


def positions_of(model: PreTrainedModel) -> int:
    """Number of positions that a model supports; `sys.maxsize` if it is unlimited."""
    own = None if is_hfseq(model.config) else getattr(model.config, "max_position_embeddings", None)
    known = [one for one in (position_limit(model), own) if one is not None and one > 0]
    return min(known, default=DEFAULTS.positions)


def _directory(model_dir: str) -> Path:
    """The directory of a model, downloaded from the Hub if it is none."""
    if (directory := Path(model_dir)).is_dir():
        return directory
    name, _, revision = model_dir.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_NEEDED))
    except HFValidationError as error:
        raise InputError(f"{model_dir}: no such directory") from error
    except (OSError, ValueError) as error:
        message = f"{model_dir}: no such directory, and not found on the Hub or in its cache: {one_line(error)}"
        raise InputError(message) from error
