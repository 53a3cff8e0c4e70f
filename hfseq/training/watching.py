"""Alarms of the steps that come from standard input: `--watch` of the recipe of anomaly detection."""

import sys
from io import TextIOWrapper

from hfseq.errors import InputError
from hfseq.inference.anomalies import Settings
from hfseq.inference.watching import watch, whole_lines
from hfseq.tasks.anomaly_detection import HEADS
from hfseq.training.loading import load_predictor
from hfseq.training.run import Run


def watch_stream(run: Run) -> None:
    """Print the alarms of the steps that come from standard input.

    Args:
        run: The run, whose model is the output directory of a run of the recipe.

    Raises:
        InputError: As for `watch`, or the model is missing or cannot be loaded.
    """
    if run.model.model_name_or_path is None:
        raise InputError("--watch needs --model_name_or_path, the output directory of a run of this recipe")
    settings = Settings.load(run.model.model_name_or_path)
    task = HEADS["prediction" if settings.event_columns is None else "causal_lm"]
    model, tokenizer = load_predictor(task.auto_class, run.model, features=task.features)
    if isinstance(sys.stdin, TextIOWrapper):  # whose encoding would be that of the terminal
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    watch(whole_lines(sys.stdin), model, settings, run.data, tokenizer)
