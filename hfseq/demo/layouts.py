"""Components and handler of the page of each task."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, cast

from transformers import PreTrainedTokenizerBase

from hfseq.demo.audio import Recordings, classify_audio, transcribe
from hfseq.demo.handlers import classify, continue_text, tag, translate, write_text
from hfseq.demo.items import choices, recommend
from hfseq.demo.loading import TEXT_TO_TEXT, DemoModel
from hfseq.demo.series import LEVELS, forecast, kinds
from hfseq.heads import HUB_TASKS
from hfseq.inference.loading import problem_of
from hfseq.serving.served import TEXT_GENERATION

MAX_BEAMS = 10
"""Maximum number of beams."""
MAX_ITEMS = 50
"""Maximum number of recommended items."""
MAX_HORIZONS = 4
"""Maximum length of a forecast, in horizons of the model."""


class Layout(ABC):
    """The page of a model: its input components, output components, and the handler from one to the other.

    Args:
        gr: The module gradio.
        demo: The model.
        recordings: Recordings that were sent to the page.
    """

    streams: ClassVar[bool] = False
    """True if the handler yields its outputs as they grow."""

    def __init__(self, gr: Any, demo: DemoModel, recordings: Recordings) -> None:
        self.gr, self.demo, self.recordings = gr, demo, recordings

    @abstractmethod
    def inputs(self) -> list[Any]:
        """Create the input components, the one that takes an example first."""

    @abstractmethod
    def outputs(self) -> list[Any]:
        """Create the output components; a note follows them."""

    @abstractmethod
    def answer(self, *values: Any) -> Any:
        """Values of the outputs, and the note, for values of the inputs."""

    def text(self) -> Any:
        """Create the box of a text."""
        known = HUB_TASKS.get(self.demo.task)
        hint = known.placeholder if known else "A text"
        return self.gr.Textbox(label="Text", lines=4, max_lines=12, placeholder=hint, elem_id="text")

    def beams(self) -> Any:
        """Create the slider of the number of beams."""
        own = min(MAX_BEAMS, int(self.demo.model.generation_config.num_beams or 1))
        return self.gr.Slider(1, MAX_BEAMS, own, step=1, label="Beams", elem_id="beams")


class Summarization(Layout):
    """A text and its summary."""

    label = "Summary"

    def inputs(self) -> list[Any]:
        """A text and the number of beams."""
        return [self.text(), self.beams()]

    def outputs(self) -> list[Any]:
        """Components for the written text."""
        return [self.gr.Textbox(label=self.label, lines=4, max_lines=20, elem_id="answer")]

    def answer(self, *values: Any) -> Any:
        """The summary."""
        return write_text(self.demo, *values)


class Translation(Summarization):
    """A text, its translation, and the attention between them."""

    label = "Translation"

    def outputs(self) -> list[Any]:
        """The translation and its alignment."""
        picture = self.gr.HTML(label="Alignment", show_label=True, container=True, elem_id="alignment")
        return [*super().outputs(), picture]

    def answer(self, *values: Any) -> Any:
        """The translation and its alignment."""
        return translate(self.demo, *values)


class TextToText(Translation):
    """Output of a sequence-to-sequence model for a text."""

    label = "Answer"


class Classification(Layout):
    """Classes of a text, with the importance of its words."""

    def inputs(self) -> list[Any]:
        """A text."""
        return [self.text()]

    def outputs(self) -> list[Any]:
        """Scores of the classes, and words."""
        config = self.demo.model.config
        title, words = "Classes", "Words for the predicted class (red) and against it"
        if problem_of(config) == "regression":
            title, words = "Value", "Words that raise the value (red) or lower it"
        return [
            self.gr.Label(label=title, num_top_classes=min(10, int(config.num_labels or 0)), elem_id="answer"),
            self.gr.HighlightedText(label=words, show_legend=True, elem_id="importance"),
        ]

    def answer(self, *values: Any) -> Any:
        """Scores and importance."""
        return classify(self.demo, *values)


class Tagging(Layout):
    """Words of a text with their tags."""

    def inputs(self) -> list[Any]:
        """A text."""
        return [self.text()]

    def outputs(self) -> list[Any]:
        """Words and tags."""
        return [self.gr.HighlightedText(label="Tags", elem_id="answer")]

    def answer(self, *values: Any) -> Any:
        """Words and tags."""
        return tag(self.demo, *values)


class Generation(Layout):
    """Continuation of a text, as it is written."""

    streams = True

    def inputs(self) -> list[Any]:
        """A prompt and the settings of sampling."""
        gr, tokenizer = self.gr, cast(PreTrainedTokenizerBase, self.demo.tokenizer)
        longest: int = min(500, int(tokenizer.model_max_length) - 1)
        return [
            self.text(),
            gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0: greedy decoding", elem_id="temperature"),
            gr.Slider(0, 200, 50, step=1, label="Top k", info="0: off", elem_id="top_k"),
            gr.Slider(0.05, 1, 0.95, step=0.05, label="Top p", elem_id="top_p"),
            gr.Slider(1, longest, min(60, longest), step=1, label="Tokens", elem_id="tokens"),
        ]

    def outputs(self) -> list[Any]:
        """The continuation."""
        return [self.gr.Textbox(label="Continuation", lines=4, max_lines=20, elem_id="answer")]

    def answer(self, *values: Any) -> Iterator[tuple[str, str]]:
        """The text so far."""
        return continue_text(self.demo, *values)


class _OfAudio(Layout):
    """Base of the pages of recordings."""

    def recording(self) -> Any:
        """Create the recorder, and the hidden box of the name under which the page keeps what it sends."""
        audio = self.gr.Audio(label="Recording", sources=["microphone", "upload"], buttons=[], elem_id="recording")
        name = self.gr.Textbox(visible="hidden", elem_id="name")
        # In the browser: a handler of the component itself would be sent a file.
        audio.change(None, [audio], [name], js="audio => audio ? audio.path : ''")
        return name


class Recognition(_OfAudio):
    """A recording and its transcript."""

    def inputs(self) -> list[Any]:
        """A recording and, unless the model is one of CTC, the number of beams."""
        return [self.recording(), *([self.beams()] if self.demo.model.can_generate() else [])]

    def outputs(self) -> list[Any]:
        """The transcript."""
        return [self.gr.Textbox(label="Transcript", lines=4, max_lines=20, elem_id="answer")]

    def answer(self, *values: Any) -> Any:
        """The transcript."""
        return transcribe(self.demo, self.recordings, *values)


class AudioClassification(_OfAudio):
    """A recording and its classes."""

    def inputs(self) -> list[Any]:
        """A recording."""
        return [self.recording()]

    def outputs(self) -> list[Any]:
        """Scores of the classes."""
        number = min(10, int(self.demo.model.config.num_labels or 0))
        return [self.gr.Label(label="Classes", num_top_classes=number, elem_id="answer")]

    def answer(self, *values: Any) -> Any:
        """Scores of the classes."""
        return classify_audio(self.demo, self.recordings, *values)


class Forecasting(Layout):
    """A series and its forecast."""

    def inputs(self) -> list[Any]:
        """A series, the number of steps unless the model has but one, and the static classes of the series."""
        gr, needs = self.gr, self.demo.predictor.pipe.needs
        hint = "Numbers, or lines of time and value: 2024-01-31, 5.5"
        found = [gr.Textbox(label="Series", lines=8, max_lines=12, placeholder=hint, elem_id="text")]
        if not needs.fixed_horizon:
            own = needs.prediction_length or 12
            found.append(gr.Slider(1, own * MAX_HORIZONS, own, step=1, label="Steps", elem_id="steps"))
        for number, names in enumerate(kinds(self.demo), 1):
            label = f"Class {number}" if number > 1 else "Class"
            found.append(gr.Dropdown(names, value=names[0], label=label, elem_id=f"class{number}"))
        return found

    def outputs(self) -> list[Any]:
        """A plot and a table."""
        points = getattr(self.demo.model.config, "loss", "nll") == "mse"
        quantiles = [] if points else [f"{level:.0%}" for level in LEVELS]
        return [
            self.gr.HTML(label="Forecast", show_label=True, container=True, elem_id="plot"),
            self.gr.Dataframe(
                headers=["step", "mean", *quantiles], interactive=False, max_height=300, elem_id="answer"
            ),
        ]

    def answer(self, *values: Any) -> Any:
        """Plot and table."""
        text, *settings = values
        horizon = None if self.demo.predictor.pipe.needs.fixed_horizon else settings.pop(0)
        return forecast(self.demo, text, horizon, settings)


class Recommendation(Layout):
    """A history and the items that follow it."""

    def inputs(self) -> list[Any]:
        """A history, the number of items, and whether to leave out those of the history."""
        gr = self.gr
        history = gr.Textbox(
            label="History, oldest first", lines=6, max_lines=12, placeholder="An item in each line", elem_id="text"
        )
        known = choices(cast(PreTrainedTokenizerBase, self.demo.tokenizer))
        item = gr.Dropdown(known, value=None, label="Add an item", elem_id="item")
        # In the browser, without a request.
        add = "(item, history) => [null, (history?.trim() ? history.trimEnd() + '\\n' : '') + (item ?? '')]"
        item.input(None, [item, history], [item, history], js=add)
        return [
            history,
            gr.Slider(1, MAX_ITEMS, 10, step=1, label="Items", elem_id="items"),
            gr.Checkbox(False, label="Leave out items of the history", elem_id="filter"),
        ]

    def outputs(self) -> list[Any]:
        """A table of items."""
        return [self.gr.Dataframe(headers=["item", "score"], interactive=False, max_height=500, elem_id="answer")]

    def answer(self, *values: Any) -> Any:
        """Items and scores."""
        return recommend(self.demo, *values)


LAYOUTS: dict[str, type[Layout]] = {
    "audio-classification": AudioClassification,
    "automatic-speech-recognition": Recognition,
    "next-item-recommendation": Recommendation,
    "summarization": Summarization,
    "text-classification": Classification,
    TEXT_GENERATION: Generation,
    TEXT_TO_TEXT: TextToText,
    "time-series-forecasting": Forecasting,
    "token-classification": Tagging,
    "translation": Translation,
}
"""The page of each task."""
