"""Interactive demo page for a model: translation, summarization, classification, tagging, generation.

    python -m hfseq.demo outputs/translation_demo --port 7860

The task follows from the model's class and the record of the recipe's run (`run.json`). Concurrent requests are
answered in batches, except for text generation, which is streamed to each user.

There is no authentication and no encryption: anyone who can reach the address can use the model. By default the page
is reachable from this machine only; see `--host`. Requests are limited (`LONGEST_TEXT`, `MAX_BEAMS`), files are
neither accepted nor served, and internal errors are reported in the terminal only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase, pipeline
from transformers.utils import logging

from hfseq.data.running_text import encodable
from hfseq.demo.handlers import DynamicBatcher, classify, continue_text, tag, translate, write_texts
from hfseq.errors import InputError, one_line, require
from hfseq.heads import HUB_TASKS, head_of, require_text
from hfseq.hub.model_card import METRICS, measured, read_run, what_it_does
from hfseq.hub.publish import load_published
from hfseq.inference.loading import problem_of
from hfseq.models import is_hfseq
from hfseq.serve import server_parser

if TYPE_CHECKING:
    import gradio as gr

MAX_BATCH = 16
"""Maximum number of requests in a batch."""
MAX_STREAMS = 4
"""Maximum number of concurrent generations."""
MAX_WAITING = 256
"""Maximum number of waiting requests; further ones are rejected."""
MAX_BEAMS = 10
"""Maximum number of beams."""
LONGEST_TEXT = 2048
"""Maximum length of a text in tokens, so that no request delays all others."""


class DemoModel(NamedTuple):
    """A model with what its page shows.

    Attributes:
        name: Name of the directory.
        model: The model, in evaluation mode.
        tokenizer: Tokenizer of the model; `model_max_length` is the limit of the page.
        task: Task name of the Hub; `text2text` for a sequence-to-sequence model whose task is unknown.
        prefix: Prefix of every source; None for that of the model's config.
        example: An example text from the run, if there is one.
        about: Description of the model and its scores, one line of Markdown.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: str
    prefix: str | None
    example: str | None
    about: str


def load_demo_model(model_dir: str | Path) -> DemoModel:
    """Load a model and the record of its run.

    Raises:
        InputError: If the model cannot be loaded, or its task is not supported.
    """
    directory = Path(model_dir)
    model, tokenizer = load_published(directory)
    require_text(model, f"{model_dir}: the page has a box for text only")
    run, results = read_run(directory)
    kind, config = type(model).__name__, model.config
    known = head_of(kind).hub_task
    if head_of(kind).auto_class == "AutoModelForSeq2SeqLM":
        summarizes = {*(getattr(config, "task_specific_params", None) or {})} == {"summarization"}
        known = run.get("task", "summarization" if summarizes else None)
        known = known if known in ("translation", "summarization") else "text2text"
    if known is None:
        raise InputError(
            f"{model_dir}: {kind} is not supported; there are pages for translation, summarization, classification, "
            "tagging and generation"
        )
    limited = None if is_hfseq(config) else getattr(config, "encoder", config)
    positions = getattr(limited, "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, run.get("max_length"), positions, LONGEST_TEXT]
    tokenizer.model_max_length = min(limit for limit in limits if limit is not None)
    prefix = run.get("arguments", {}).get("source_prefix")
    example = run.get("example")
    split = run.get("split", "test")
    scores = [f"{METRICS[name][0]} {value:.2f}" for name, value in measured(results, split).items()]
    about = f"A `{kind}` of {model.num_parameters():,} parameters {what_it_does(known, run.get('languages', []))}."
    about += f" On the {split} set: {', '.join(scores)}." if scores else ""
    example = None if example is None else example.removeprefix(prefix or "")
    return DemoModel(directory.resolve().name, model.eval(), tokenizer, known, prefix, example, about)


def make_page(model_dir: str | Path) -> "gr.Blocks":
    """Create the page of a model, of hfseq or of transformers.

    Args:
        model_dir: Directory of the model with its tokenizer; the task, an example and the scores are read from the
            recipe's `run.json` and `all_results.json`, if they exist.

    Returns:
        The page; `launch()` serves it.

    Raises:
        InputError: If gradio is not installed, the model cannot be loaded, or its task is not supported.
    """
    require("gradio", "matplotlib", extra="demo", use="the page")
    import gradio as gr

    demo = load_demo_model(model_dir)
    # No telemetry, no check for updates.
    with gr.Blocks(title=demo.name, analytics_enabled=False) as page:
        gr.Markdown(f"# {demo.name}\n\n{demo.about}")
        with gr.Row():
            with gr.Column():
                hint = HUB_TASKS[demo.task].placeholder if demo.task in HUB_TASKS else "A text"
                text = gr.Textbox(label="Text", lines=4, max_lines=12, placeholder=hint, elem_id="text")
                settings = _settings(gr, demo)
                with gr.Row():
                    button = gr.Button("Go", variant="primary", elem_id="go")
                    stop = gr.Button("Stop", elem_id="stop") if demo.task == "text-generation" else None
                if demo.example is not None:
                    gr.Examples([[demo.example]], [text], cache_examples=False)
            with gr.Column():
                outputs = [*_outputs(gr, demo), gr.Markdown(elem_id="note")]
        event = button.click(
            _handler(gr, demo, settings),
            inputs=[text, *settings],
            outputs=outputs,
            api_name="answer",
            concurrency_limit=MAX_BATCH if stop is None else MAX_STREAMS,
            # Inputs are validated by `_validated`: gradio's own validation fails on non-numeric values.
            preprocess=False,
        )
        if stop is not None:
            stop.click(None, cancels=[event])
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _handler(gr: Any, demo: DemoModel, sliders: Sequence[Any]) -> Callable[..., Any]:
    """Create the handler from the inputs of a page to its outputs; that of a language model streams them."""
    model, tokenizer, task = demo.model, demo.tokenizer, demo.task

    def stream(text: Any, *values: Any) -> Iterator[tuple[str, str]]:
        with _validated(gr, sliders, text, values) as clean:
            yield from continue_text(model, tokenizer, clean, *values)

    def answer(text: Any, *values: Any) -> tuple[Any, ...]:
        with _validated(gr, sliders, text, values) as clean:
            return batched(clean, *values)

    if task == "text-generation":
        return stream
    function: Callable[..., Any]
    if task in ("text-classification", "token-classification"):
        function = partial(classify if task == "text-classification" else tag, model, tokenizer)
    else:
        name: Any = "summarization" if task == "summarization" else "translation"
        pipe = pipeline(name, model=model, tokenizer=cast(Any, tokenizer), device="cpu", prefix=demo.prefix)
        function = partial(write_texts if task == "summarization" else translate, pipe)
    batched = DynamicBatcher(function, MAX_BATCH)
    return answer


@contextmanager
def _validated(gr: Any, sliders: Sequence[Any], text: Any, values: Sequence[Any]) -> Iterator[str]:
    """Validate inputs, which a client other than the page may have sent, and hide the details of internal errors.

    Yields:
        The text without unpaired surrogates.

    Raises:
        gradio.Error: If the inputs are invalid, or in place of any error inside, which gradio prints, too.
    """
    if not (text is None or isinstance(text, str)):
        raise gr.Error("The text must be a string.", print_exception=False)
    for slider, value in zip(sliders, values, strict=True):
        # True and False are no numbers here.
        if type(value) not in (int, float) or not slider.minimum <= value <= slider.maximum:
            message = f"{slider.label} must be a number from {slider.minimum} to {slider.maximum}."
            raise gr.Error(message, print_exception=False)
    try:
        yield encodable(text or "")
    except Exception as error:
        raise gr.Error("Internal error; see the terminal of the page.") from error


def _settings(gr: Any, demo: DemoModel) -> list[Any]:
    """The components for the settings, in the order of the handler's arguments."""
    if demo.task in ("text-classification", "token-classification"):
        return []
    if demo.task == "text-generation":
        longest: int = min(500, int(demo.tokenizer.model_max_length) - 1)
        return [
            gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0: greedy decoding", elem_id="temperature"),
            gr.Slider(0, 200, 50, step=1, label="Top k", info="0: off", elem_id="top_k"),
            gr.Slider(0.05, 1, 0.95, step=0.05, label="Top p", elem_id="top_p"),
            gr.Slider(1, longest, min(60, longest), step=1, label="Tokens", elem_id="tokens"),
        ]
    own = min(MAX_BEAMS, int(demo.model.generation_config.num_beams or 1))
    return [gr.Slider(1, MAX_BEAMS, own, step=1, label="Beams", elem_id="beams")]


def _outputs(gr: Any, demo: DemoModel) -> list[Any]:
    """The components for the outputs."""
    if demo.task == "text-classification":
        config = demo.model.config
        title, words = "Classes", "Words for the predicted class (red) and against it"
        if problem_of(config) == "regression":
            title, words = "Value", "Words that raise the value (red) or lower it"
        return [
            gr.Label(label=title, num_top_classes=min(10, int(config.num_labels or 0)), elem_id="answer"),
            gr.HighlightedText(label=words, show_legend=True, elem_id="importance"),
        ]
    if demo.task == "token-classification":
        return [gr.HighlightedText(label="Tags", elem_id="answer")]
    kinds = {"summarization": "Summary", "text-generation": "Continuation", "translation": "Translation"}
    written = gr.Textbox(label=kinds.get(demo.task, "Answer"), lines=4, max_lines=20, elem_id="answer")
    if demo.task in ("summarization", "text-generation"):
        return [written]
    return [written, gr.HTML(label="Alignment", show_label=True, container=True, elem_id="alignment")]


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    parser = server_parser("hfseq.demo", "an interactive demo page for a model", 7860)
    parser.add_argument("model_dir", help="directory of a trained model with its tokenizer")
    args = parser.parse_args(argv)
    logging.disable_progress_bar()  # of loading
    try:
        open_page(args.model_dir, args.host, args.port)
    except InputError as error:
        parser.exit(1, f"error: {error}\n")


def open_page(model_dir: str | Path, host: str, port: int, **options: Any) -> Any:
    """Create and launch the page of a model.

    Args:
        model_dir: Directory of the model; see `make_page`.
        host: Address to listen on.
        port: Port to listen on.
        options: Options of `gradio.Blocks.launch`.

    Raises:
        InputError: As `make_page`, or if the address is not available.
    """
    page = make_page(model_dir)
    import gradio as gr
    from starlette.middleware import Middleware

    from hfseq.demo.requests import Gate

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
            app_kwargs={"middleware": [Middleware(Gate)]},
            **options,
        )
    except OSError as error:
        raise InputError(f"{host}:{port}: {one_line(error)}") from error
