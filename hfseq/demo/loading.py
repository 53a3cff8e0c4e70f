"""Models of the demo page: loaded and answered by the serving application, with what their page says about them."""

import copy
import csv
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.series import parse_stamp
from hfseq.heads import HUB_TASKS, RECOMMENDATION
from hfseq.hub.model_card import METRICS, measured, read_run, what_it_does
from hfseq.processing import tokenizer_of
from hfseq.serving.limits import Limits
from hfseq.serving.served import Served, load_served, positions_of

TEXT_TO_TEXT = "text2text"
"""Task of a sequence-to-sequence model whose run does not tell it."""
MAX_BATCH = 16
"""Maximum number of requests in a batch."""
MAX_WAITING = 256
"""Maximum number of waiting requests; further ones are rejected."""
LONGEST_TEXT = 2048
"""Maximum length of an input (of a text in tokens, of a series in values, of a history in items), so that no request
delays all others."""
_EXAMPLE_VALUES = 200


@dataclass
class DemoModel:
    """A model with what its page shows.

    Attributes:
        name: Name of the directory.
        task: Task name of the Hub; `TEXT_TO_TEXT` for a sequence-to-sequence model whose task is unknown.
        model: The model, in evaluation mode, or the runner of its ONNX export.
        tokenizer: Tokenizer for notes and pictures, of the predictor's limit; None if the model has none.
        served: The model as the server has it.
        example: An example from the run, as typed into the page, if there is one.
        about: Description of the model and its scores, one line of Markdown.
        adding: Lock of what the page adds to an answer: tokenizers change while they encode.
    """

    name: str
    task: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    served: Served
    example: str | None
    about: str
    adding: Lock = field(default_factory=Lock)
    _reading: Lock = field(default_factory=Lock)

    @property
    def predictor(self) -> Any:
        """The predictor of the server."""
        return self.served.predictor

    @property
    def explained(self) -> bool:
        """True if the page shows weights and importance, for which graphs of ONNX have no outputs."""
        return self.served.backend == "torch"

    def ask(self, value: Any, **parameters: Any) -> Any:
        """Answer one input, as `/predict` of the server does, in a batch with others that wait.

        Args:
            value: The input.
            parameters: Settings of the task.

        Raises:
            InputError: If the input is invalid.
        """
        with self._reading:
            (item,), _ = self.predictor.items(value, parameters)
        self.served.batcher.submit([item])
        return item.future.result()


def load_demo_model(model_dir: str | Path, task: str | None = None) -> DemoModel:
    """Load a model and the record of its run.

    Args:
        model_dir: Directory of the model; the task, an example and the scores are read from the recipe's `run.json`
            and `all_results.json`, if they exist.
        task: Name of a pipeline's task; by default it follows from the model.

    Raises:
        InputError: If the model cannot be loaded, or its task is not supported.
    """
    directory = Path(model_dir)
    run, results = read_run(directory)
    limits = Limits(max_batch_size=MAX_BATCH, max_queue=MAX_WAITING, max_input_tokens=_longest(run))
    served = load_served(str(model_dir), task=task, device="cpu", limits=limits)
    model, known = served.model, served.task
    tokenizer = copy.deepcopy(tokenizer_of(served.processing_class))
    if tokenizer is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limits.max_input_tokens, positions_of(model))
    if known == "translation" and task is None and run.get("task") != known:
        known = TEXT_TO_TEXT
    if known in ("translation", TEXT_TO_TEXT) and served.backend == "torch":
        # Of a Transformer's attention implementations only this one returns weights; set while nothing runs.
        model.set_attn_implementation("eager")
    kind, split = type(model).__name__, run.get("split", "test")
    # Losses may be small.
    shown = {
        name: f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}" for name, value in measured(results, split).items()
    }
    scores = [f"{METRICS[name][0]} {value}" for name, value in shown.items()]
    size = f" of {model.num_parameters():,} parameters" if served.backend == "torch" else ""
    about = f"A `{kind}`{size} {what_it_does(known, run.get('languages', []))}."
    about += f" On the {split} set: {', '.join(scores)}." if scores else ""
    example = run.get("example")
    if example is not None:
        example = example.removeprefix(run.get("arguments", {}).get("source_prefix") or "")
    elif known == "time-series-forecasting":
        example = _series_example(directory)
    return DemoModel(directory.resolve().name, known, model, tokenizer, served, example, about)


def _longest(run: dict[str, Any]) -> int:
    """Maximum length of an input, for texts that of the training."""
    of_texts = run.get("task") in HUB_TASKS and HUB_TASKS[run["task"]].reads == "text"
    trained = run.get("max_length") if of_texts and run["task"] != RECOMMENDATION.name else None
    return min(LONGEST_TEXT, trained or LONGEST_TEXT)


def _series_example(directory: Path) -> str | None:
    """The first series of `predictions.csv`, which the recipe leaves, as CSV; None if it has left none."""
    path = directory / "predictions.csv"
    if not path.is_file():
        return None
    # Windows may overlap.
    steps: dict[str, str] = {}
    name = None
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if name not in (None, row.get("unique_id")) or not {"ds", "y"} <= row.keys():
                break
            name = row["unique_id"]
            steps[row["ds"]] = row["y"] or "NaN"
    last = list(steps.items())[-_EXAMPLE_VALUES:]
    if not last:
        return None
    if parse_stamp(last[0][0]) is None or last[0][0].isdigit():
        return ", ".join(value for _, value in last)
    return "\n".join(f"{time},{value}" for time, value in last)
