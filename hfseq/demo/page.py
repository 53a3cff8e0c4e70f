"""A page in the browser to try a model on: translation, summarization, classification, tagging, generation.

    python -m hfseq.demo outputs/translation_demo --port 7860

What it shows follows from the model's class and from what the recipe has said about its run. Requests that come while
others are computed are answered together, as one batch; only generated text is streamed to each reader alone.

There is no authentication and no encryption: whoever reaches the address can try the model. The page listens to this
machine alone unless `--host` says otherwise. A request is bounded (`LONGEST_TEXT`, `MAX_BEAMS`), however it is sent;
no file is taken or given, and what goes wrong inside is told to the terminal alone.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase, pipeline
from transformers.utils import logging

from hfseq.data.running_text import encodable
from hfseq.demo.handlers import Together, classify, continue_text, tag, translate, write_texts
from hfseq.errors import InputError, one_line, require
from hfseq.heads import HUB_TASKS, head_of
from hfseq.hub.model_card import METRICS, is_ours, measured, read_run, what_it_does
from hfseq.hub.publish import load_published
from hfseq.inference.ensembles import problem_of

if TYPE_CHECKING:
    import gradio as gr

MAX_BATCH = 16
"""Requests that are answered together."""
MAX_STREAMS = 4
"""Texts that are generated at the same time."""
MAX_WAITING = 256
"""Requests that wait at most; more are refused."""
MAX_BEAMS = 10
"""Beams that a reader can choose."""
LONGEST_TEXT = 2048
"""Tokens that a model reads at most, so that nobody keeps all others waiting."""


class Subject(NamedTuple):
    """What a page shows.

    Attributes:
        name: Of the directory.
        model: The model, in evaluation.
        tokenizer: Its tokenizer; `model_max_length` is what the page lets the model read.
        task: The Hub's name of the task; `text2text` if nobody says what a sequence-to-sequence model is for.
        prefix: Text before every source; None for what the model's config says.
        example: A text to try, if the run has left one.
        about: A line of Markdown on the model and its score.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: str
    prefix: str | None
    example: str | None
    about: str


def load_subject(model_dir: str | Path) -> Subject:
    """Load a model and what its run says about it.

    Raises:
        InputError: If the model does not load, or is for none of the tasks.
    """
    directory = Path(model_dir)
    model, tokenizer = load_published(directory)
    run, results = read_run(directory)
    kind, config = type(model).__name__, model.config
    head = head_of(kind)
    known = head.hub_task
    if head.auto_class == "AutoModelForSeq2SeqLM":
        said, own = run.get("task"), getattr(config, "task_specific_params", None) or {}
        known = said if said in ("translation", "summarization") else "text2text"
        if said is None and set(own) == {"summarization"}:
            known = "summarization"
    if known is None:
        raise InputError(
            f"{model_dir}: {kind} has no page; it is for translation, summarization, classification, "
            "tagging and generation"
        )
    positions = getattr(getattr(config, "encoder", config), "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, run.get("max_length"), None if is_ours(model) else positions, LONGEST_TEXT]
    tokenizer.model_max_length = min(limit for limit in limits if limit is not None)
    prefix = run.get("arguments", {}).get("source_prefix")
    example = run.get("example")
    split = run.get("split", "test")
    scores = [f"{METRICS[name][0]} {value:.2f}" for name, value in measured(results, split).items()]
    about = f"A `{kind}` of {model.num_parameters():,} parameters {what_it_does(known, run.get('languages', []))}."
    about += f" On the {split} data: {', '.join(scores)}." if scores else ""
    return Subject(
        directory.resolve().name,
        model.eval(),
        tokenizer,
        known,
        prefix,
        None if example is None else example.removeprefix(prefix or ""),
        about,
    )


def make_page(model_dir: str | Path) -> "gr.Blocks":
    """Make the page of a model, of hfseq or of transformers.

    Args:
        model_dir: The model and its tokenizer; what a recipe has left beside it (`run.json`, `all_results.json`) tells
            the task, an example and the score.

    Returns:
        The page; `launch()` opens it.

    Raises:
        InputError: If gradio is not installed, the model does not load, or it is for none of the tasks.
    """
    require("gradio", "matplotlib", extra="demo", use="the page")
    import gradio as gr

    subject = load_subject(model_dir)
    # It tells nobody that it runs, and asks for no newer version.
    with gr.Blocks(title=subject.name, analytics_enabled=False) as page:
        gr.Markdown(f"# {subject.name}\n\n{subject.about}")
        with gr.Row():
            with gr.Column():
                hint = HUB_TASKS[subject.task].placeholder if subject.task in HUB_TASKS else "A text"
                text = gr.Textbox(label="Text", lines=4, max_lines=12, placeholder=hint, elem_id="text")
                settings = _settings(gr, subject)
                with gr.Row():
                    button = gr.Button("Go", variant="primary", elem_id="go")
                    stop = gr.Button("Stop", elem_id="stop") if subject.task == "text-generation" else None
                if subject.example is not None:
                    gr.Examples([[subject.example]], [text], cache_examples=False)
            with gr.Column():
                outputs = [*_outputs(gr, subject), gr.Markdown(elem_id="note")]
        options: dict[str, Any] = {"inputs": [text, *settings], "outputs": outputs, "api_name": "answer"}
        # What is sent is checked by `_check`: gradio's own checks fail on what is no number.
        options |= {"preprocess": False}
        if stop is None:
            button.click(_answer(gr, subject, settings), concurrency_limit=MAX_BATCH, **options)
        else:
            written = button.click(_stream(gr, subject, settings), concurrency_limit=MAX_STREAMS, **options)
            stop.click(None, cancels=[written])
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _answer(gr: Any, subject: Subject, sliders: Sequence[Any]) -> Callable[..., tuple[Any, ...]]:
    """The function from the inputs of a page to its outputs."""
    model, tokenizer, task = subject.model, subject.tokenizer, subject.task
    function: Callable[..., Any]
    if task in ("text-classification", "token-classification"):
        function = partial(classify if task == "text-classification" else tag, model, tokenizer)
    else:
        name: Any = "summarization" if task == "summarization" else "translation"
        pipe = pipeline(name, model=model, tokenizer=cast(Any, tokenizer), device="cpu", prefix=subject.prefix)
        function = partial(write_texts if task == "summarization" else translate, pipe)
    together = Together(function, MAX_BATCH)

    def answer(text: Any, *values: Any) -> tuple[Any, ...]:
        _check(gr, sliders, text, values)
        with _untold(gr):
            return together(clean_text(text), *values)

    return answer


def _stream(gr: Any, subject: Subject, sliders: Sequence[Any]) -> Callable[..., Iterator[tuple[str, str]]]:
    """The function from the inputs of a page to its outputs, piece by piece."""

    def stream(prompt: Any, *values: Any) -> Iterator[tuple[str, str]]:
        _check(gr, sliders, prompt, values)
        with _untold(gr):
            yield from continue_text(subject.model, subject.tokenizer, clean_text(prompt), *values)

    return stream


def _check(gr: Any, sliders: Sequence[Any], text: Any, values: Sequence[Any]) -> None:
    """Refuse what no page sends, though a client of its own can.

    Raises:
        gradio.Error: What is wrong, for the client.
    """
    if not (text is None or isinstance(text, str)):
        raise gr.Error("The text must be a string.", print_exception=False)
    for slider, value in zip(sliders, values, strict=True):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and slider.minimum <= value <= slider.maximum):
            said = f"{slider.label} must be a number from {slider.minimum} to {slider.maximum}."
            raise gr.Error(said, print_exception=False)


@contextmanager
def _untold(gr: Any) -> Iterator[None]:
    """Keeps from the client what an error says of the code and of this machine.

    Raises:
        gradio.Error: In place of any error; gradio prints both.
    """
    try:
        yield
    except Exception as error:
        raise gr.Error("The page failed to answer; its terminal says why.") from error


def clean_text(text: str | None) -> str:
    """A text as tokenizers take it, whatever was sent; no text is an empty one."""
    return encodable(text or "")


def _settings(gr: Any, subject: Subject) -> list[Any]:
    """The components for what a reader can choose, in the order of the answer's arguments."""
    if subject.task in ("text-classification", "token-classification"):
        return []
    if subject.task == "text-generation":
        longest: int = min(500, int(subject.tokenizer.model_max_length) - 1)
        return [
            gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0: the likeliest token", elem_id="temperature"),
            gr.Slider(0, 200, 50, step=1, label="Top k", info="0: all tokens", elem_id="top_k"),
            gr.Slider(0.05, 1, 0.95, step=0.05, label="Top p", elem_id="top_p"),
            gr.Slider(1, longest, min(60, longest), step=1, label="Tokens", elem_id="tokens"),
        ]
    own = min(MAX_BEAMS, int(subject.model.generation_config.num_beams or 1))
    return [gr.Slider(1, MAX_BEAMS, own, step=1, label="Beams", elem_id="beams")]


def _outputs(gr: Any, subject: Subject) -> list[Any]:
    """The components for the answer."""
    if subject.task == "text-classification":
        config = subject.model.config
        title, words = "Classes", "What speaks for the likeliest class (red), and what against it"
        if problem_of(config) == "regression":
            title, words = "Value", "What raises the value (red), and what lowers it"
        return [
            gr.Label(label=title, num_top_classes=min(10, int(config.num_labels or 0)), elem_id="answer"),
            gr.HighlightedText(label=words, show_legend=True, elem_id="importance"),
        ]
    if subject.task == "token-classification":
        return [gr.HighlightedText(label="Tags", elem_id="answer")]
    kinds = {"translation": "Translation", "summarization": "Summary", "text2text": "Answer"}
    written = gr.Textbox(label=kinds.get(subject.task, "Continuation"), lines=4, max_lines=20, elem_id="answer")
    if subject.task in ("summarization", "text-generation"):
        return [written]
    return [written, gr.HTML(label="Alignment", show_label=True, container=True, elem_id="alignment")]


def main(argv: Sequence[str] | None = None) -> None:
    """Open the page of the model that the arguments name, until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m hfseq.demo",
        description="A page to try a model on. There is no authentication: whoever reaches the address can try it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model_dir", help="a trained model with its tokenizer")
    parser.add_argument("--host", default="localhost", help="address to listen at; 0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading
    try:
        open_page(args.model_dir, args.host, args.port)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def open_page(model_dir: str | Path, host: str, port: int, **options: Any) -> Any:
    """Make the page of a model, and show it.

    Args:
        model_dir: See `make_page`.
        host: Address to listen at.
        port: Port to listen at.
        options: Of `gradio.Blocks.launch`.

    Raises:
        InputError: As `make_page`, or if one cannot listen there.
    """
    page = make_page(model_dir)
    import gradio as gr
    from starlette.middleware import Middleware

    from hfseq.demo.requests import Gate

    # Fonts of the reader's own system, no record of what was asked, no links to elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    own: dict[str, Any] = {"theme": theme, "footer_links": [], "run_history": False, "ssr_mode": False}
    own["app_kwargs"] = {"middleware": [Middleware(Gate)]}
    try:
        return page.launch(server_name=host, server_port=port, share=False, show_error=False, **own, **options)
    except OSError as error:
        raise InputError(f"{host}:{port}: {one_line(error)}") from error
