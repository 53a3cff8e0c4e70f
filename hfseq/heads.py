"""Table of the model heads, with all metadata that the package looks up by head.

The Auto classes of each class-name suffix are in `HEADS` of `hfseq.models.configuration_base`, since they are
published with checkpoints.
"""

from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel

from hfseq.errors import InputError
from hfseq.models import is_hfseq
from hfseq.models.configuration_base import HEADS as _SUFFIXES
from hfseq.models.configuration_base import OF_FEATURES


class HubTask(NamedTuple):
    """Task of the Hub.

    Attributes:
        name: Name of the task, and of its pipeline if it has one.
        clause: Relative clause about a model of this task, for model cards.
        placeholder: Placeholder of the text box on the demo page.
        reads: Kind of input of the task's models: text, audio, video, or series.
        pipeline: Whether there is a pipeline of this name.
    """

    name: str
    clause: str
    placeholder: str = ""
    reads: str = "text"
    pipeline: bool = True


class Head(NamedTuple):
    """Model head.

    Attributes:
        suffix: Class-name suffix of hfseq's models with this head.
        kind: Name of such a model in messages.
        task: Name of the fine-tuning task; None for encoders.
        peft_task: Member name of `peft.TaskType`; None for encoders, and for tasks that peft does not have.
        hub_tasks: Tasks of the Hub.
        other_suffixes: Class-name suffixes used by transformers in addition to that of hfseq's classes.
    """

    suffix: str
    kind: str
    task: str | None = None
    peft_task: str | None = None
    hub_tasks: tuple[HubTask, ...] = ()
    other_suffixes: tuple[str, ...] = ()

    @property
    def auto_classes(self) -> tuple[str, ...]:
        """Names of all Auto classes that load models with this head."""
        return tuple(auto_class for auto_class, suffix in _SUFFIXES.items() if suffix == self.suffix)

    @property
    def auto_class(self) -> str:
        """Name of the Auto class, the first one of several."""
        return self.auto_classes[0]

    @property
    def audio_class(self) -> str:
        """Name of the Auto class of models that read audio."""
        return next((name for name in self.auto_classes if name in OF_FEATURES), self.auto_class)

    @property
    def hub_task(self) -> str | None:
        """Name of the task of the Hub of a model that reads text or series, or None if it is ambiguous."""
        return self._only_task("text") or self._only_task("series")

    @property
    def audio_task(self) -> str | None:
        """Name of the task of the Hub of a model that reads audio, or None if there is none."""
        return self._only_task("audio")

    def _only_task(self, reads: str) -> str | None:
        names = [task.name for task in self.hub_tasks if task.reads == reads]
        return names[0] if len(names) == 1 else None


ENCODER = Head("Model", "encoder")
RECOMMENDATION = HubTask("next-item-recommendation", "that recommends the next item")
"""Task of hfseq's own, which the Hub does not have."""
TRANSCRIPTION = HubTask("automatic-speech-recognition", "that transcribes speech", reads="audio")
HEADS = (
    ENCODER,
    Head(
        "ForCausalLM",
        "language model",
        task="language_modeling",
        peft_task="CAUSAL_LM",
        hub_tasks=(HubTask("text-generation", "that predicts the next token", "The beginning of a text"),),
        other_suffixes=("LMHeadModel",),
    ),
    Head(
        "ForConditionalGeneration",
        "sequence-to-sequence model",
        task="seq2seq",
        peft_task="SEQ_2_SEQ_LM",
        hub_tasks=(
            HubTask("translation", "that translates", "A text to translate"),
            HubTask("summarization", "that summarizes", "A text to summarize"),
            TRANSCRIPTION,
            HubTask("video-text-to-text", "that describes videos", reads="video", pipeline=False),
        ),
        other_suffixes=("MTModel", "EncoderDecoderModel"),
    ),
    Head(
        "ForSequenceClassification",
        "sequence classifier",
        task="classification",
        peft_task="SEQ_CLS",
        hub_tasks=(
            HubTask("text-classification", "that classifies texts", "A text to classify"),
            HubTask("audio-classification", "that classifies audio", reads="audio"),
            HubTask("video-classification", "that classifies videos", reads="video"),
        ),
        other_suffixes=("ForAudioClassification", "ForVideoClassification"),
    ),
    Head(
        "ForTokenClassification",
        "token classifier",
        task="tagging",
        peft_task="TOKEN_CLS",
        hub_tasks=(
            HubTask(
                "token-classification",
                "that tags words",
                "Words to tag, separated by spaces, also around punctuation",
            ),
        ),
    ),
    Head(
        "ForCTC",
        "CTC model",
        hub_tasks=(TRANSCRIPTION,),
    ),
    Head(
        "ForPrediction",
        "forecaster",
        hub_tasks=(
            HubTask(
                "time-series-forecasting",
                "that forecasts time series",
                "Values of a series, in order",
                reads="series",
            ),
            HubTask("video-to-video", "that predicts the next frames of videos", reads="video", pipeline=False),
        ),
    ),
)
HUB_TASKS = {task.name: task for task in (*(task for head in HEADS for task in head.hub_tasks), RECOMMENDATION)}
"""Tasks of the Hub by name."""


def head_of(class_name: str) -> Head:
    """Return the head of a class of hfseq or transformers by its longest suffix, or the encoder if none matches."""
    suffixes = {suffix: head for head in HEADS for suffix in (head.suffix, *head.other_suffixes)}
    matching = [suffix for suffix in suffixes if class_name.endswith(suffix)]
    return suffixes[max(matching, key=len)] if matching else ENCODER


def reads_text(model: PreTrainedModel) -> bool:
    """Return True for a model that reads token ids, False for one of features, waveforms or images."""
    return model.main_input_name == "input_ids"


def will_read_text(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Return True if a model of a class and a configuration reads token ids, before it exists."""
    # A class of hfseq reads either, as its configuration says.
    return config.input_size is None if is_hfseq(config) else model_class.main_input_name == "input_ids"


def require_text(model: PreTrainedModel, use: str) -> None:
    """Check that a model reads token ids.

    Args:
        model: Model of hfseq or transformers.
        use: Name of what needs that, such as "word importance".

    Raises:
        InputError: It reads something else, such as features.
    """
    if not reads_text(model):
        size = getattr(model.config, "input_size", None)
        found = model.main_input_name + ("" if size is None else f" [B, T, {size}]")
        raise InputError(f"{use}: {type(model).__name__} reads {found}, not text; pass those to the model itself")
