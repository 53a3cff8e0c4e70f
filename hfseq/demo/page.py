"""Interactive demo page for a model of any task that the server answers.

    python -m hfseq.demo outputs/translation_demo --port 7860

There are pages for translation, summarization, classification, tagging, generation, speech recognition, classification
of audio, forecasting and recommendation. The task follows from the model's class and the record of the recipe's run
(`run.json`). Answers are those of `python -m hfseq.serve`, by the same code: concurrent requests are answered in
batches; generated text is streamed.

There is no authentication and no encryption: anyone who can reach the address can use the model. By default the page
is reachable from this machine only; see `--host`. Requests are limited (`LONGEST_TEXT`, `MAX_BEAMS`), files are
neither written nor served, and internal errors are reported in the terminal only. Recordings, where the model takes
them, are checked, and kept in memory until newer ones replace them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from hfseq.data.running_text import encodable
from hfseq.demo.audio import TASKS as AUDIO_TASKS
from hfseq.demo.audio import Recordings
from hfseq.demo.layouts import LAYOUTS, Layout
from hfseq.demo.loading import MAX_BATCH, MAX_WAITING, DemoModel, load_demo_model
from hfseq.errors import InputError, one_line, require
from hfseq.serve import server_parser
from hfseq.serving.dynamic import QueueFull

if TYPE_CHECKING:
    import gradio as gr


def make_page(demo: DemoModel, recordings: Recordings) -> "gr.Blocks":
    """Create the page of a model.

    Args:
        demo: The model.
        recordings: Where the recordings are kept that are sent to the page.

    Returns:
        The page; `open_page` serves it, behind a filter for requests.
    """
    import gradio as gr

    layout = LAYOUTS[demo.task](gr, demo, recordings)
    # No telemetry, no check for updates.
    with gr.Blocks(title=demo.name, analytics_enabled=False) as page:
        gr.Markdown(f"# {demo.name}\n\n{demo.about}")
        with gr.Row():
            with gr.Column():
                inputs = layout.inputs()
                with gr.Row():
                    button = gr.Button("Go", variant="primary", elem_id="go")
                    stop = gr.Button("Stop", elem_id="stop") if layout.streams else None
                if demo.example is not None:
                    label = " ".join(demo.example.split())
                    label = label if len(label) <= 60 else f"{label[:59]}…"
                    gr.Examples([[demo.example]], inputs[:1], cache_examples=False, example_labels=[label])
            with gr.Column():
                outputs = [*layout.outputs(), gr.Markdown(elem_id="note")]
        event = button.click(
            _handler(gr, layout, inputs),
            inputs=inputs,
            outputs=outputs,
            api_name="answer",
            concurrency_limit=MAX_BATCH,
            # Inputs are validated by `_validated`: gradio's own validation fails on non-numeric values.
            preprocess=False,
        )
        if stop is not None:
            stop.click(None, cancels=[event])
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _handler(gr: Any, layout: Layout, components: Sequence[Any]) -> Callable[..., Any]:
    """Create the handler from the inputs of a page to its outputs; that of a language model streams them."""

    def stream(*values: Any) -> Iterator[Any]:
        with _validated(gr, components, values) as clean:
            yield from layout.answer(*clean)

    def answer(*values: Any) -> Any:
        with _validated(gr, components, values) as clean:
            return layout.answer(*clean)

    return stream if layout.streams else answer


@contextmanager
def _validated(gr: Any, components: Sequence[Any], values: Sequence[Any]) -> Iterator[list[Any]]:
    """Validate inputs, which a client other than the page may have sent, and hide the details of internal errors.

    Yields:
        The values, texts without unpaired surrogates.

    Raises:
        gradio.Error: If the inputs are invalid, or in place of any error inside, which gradio prints, too.
    """
    clean = []
    for component, value in zip(components, values, strict=True):
        message = ""
        if isinstance(component, gr.Textbox):
            message = "" if value is None or isinstance(value, str) else "The text must be a string."
        elif isinstance(component, gr.Checkbox):
            message = "" if isinstance(value, bool) else f"{component.label} must be true or false."
        elif isinstance(component, gr.Dropdown):
            message = (
                "" if value in [one for _, one in component.choices] else f"{component.label} must be one of the list."
            )
        # True and False are no numbers here.
        elif type(value) not in (int, float) or not component.minimum <= value <= component.maximum:
            message = f"{component.label} must be a number from {component.minimum} to {component.maximum}."
        if message:
            raise gr.Error(message, print_exception=False)
        clean.append(encodable(value or "") if isinstance(component, gr.Textbox) else value)
    try:
        yield clean
    except (InputError, QueueFull) as error:
        # Its place in a request to the server is of no use here.
        message = one_line(error).removeprefix("inputs: ")
        raise gr.Error(f"{message[:1].upper()}{message[1:]}.", print_exception=False) from error
    except Exception as error:
        raise gr.Error("Internal error; see the terminal of the page.") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    warning = "There is no authentication: anyone who can reach the address can use the model."
    parser = server_parser("hfseq.demo", "an interactive demo page for a model", 7860, warning)
    parser.add_argument("model_dir", help="directory of a trained model with its tokenizer or feature extractor")
    parser.add_argument("--task", help="pipeline task of the model, if it cannot be inferred from it")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading
    try:
        open_page(args.model_dir, args.host, args.port, task=args.task)
    except InputError as error:
        parser.exit(1, f"error: {error}\n")


def open_page(model_dir: str | Path, host: str, port: int, *, task: str | None = None, **options: Any) -> Any:
    """Create and launch the page of a model, of hfseq or of transformers.

    Args:
        model_dir: Directory of the model; see `load_demo_model`.
        host: Address to listen on.
        port: Port to listen on.
        task: Name of a pipeline's task; by default it follows from the model.
        options: Options of `gradio.Blocks.launch`.

    Raises:
        InputError: If gradio is not installed, the model cannot be loaded, its task is not supported, or the address
            is not available.
    """
    require("gradio", "matplotlib", extra="demo", use="the page")
    import gradio as gr
    from starlette.middleware import Middleware

    from hfseq.demo.requests import Gate

    demo, recordings = load_demo_model(model_dir, task), Recordings()
    if demo.task in AUDIO_TASKS:
        require("soundfile", "soxr", extra="audio", use="the page of a model that reads audio")
    page = make_page(demo, recordings)
    gate = Middleware(Gate, recordings=recordings if demo.task in AUDIO_TASKS else None)
    # System fonts, no history of requests, no external links.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        return page.launch(
            server_name=host,
            server_port=port,
            share=False,
            show_error=False,
            theme=theme,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            app_kwargs={"middleware": [gate]},
            **options,
        )
    except OSError as error:
        raise InputError(f"{host}:{port}: {one_line(error)}") from error
