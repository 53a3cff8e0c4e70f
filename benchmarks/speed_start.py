"""Processor time of commands that do next to nothing, beside the import of what hfseq is built on."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timing import Row, Side, in_turns

ROOT = Path(__file__).parents[1]
BASE = "from transformers import AutoModel, PreTrainedModel, GenerationMixin"
HELPS = ("translation", "sentiment_accelerate", "comparison")
"""Recipes whose `--help` is timed: one of each kind of driver, and the one that imports most tasks."""
MODELS = ("translation", "sentiment", "language_modeling")
"""Recipes whose models predict."""
TEXTS = 10


def start_times(rounds: int) -> list[Row]:
    """User and system time of new interpreters: the import, `--help`, and `--do_predict` on ten lines.

    The models are those of the recipes' demos after a few steps; a language model continues a prompt, and scores the
    ten lines as a final test with its files of results. All take turns with one import of transformers a round.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = folder / "lines.txt"
        lines.write_text("The meeting is on Monday.\n" * TEXTS, encoding="utf-8")
        for recipe in MODELS:
            config = str(ROOT / "recipes" / "configs" / f"{recipe}_demo.yaml")
            short = ["--do_train", "--max_steps", "20", "--output_dir", str(folder / recipe)]
            subprocess.run([sys.executable, _script(recipe), config, *short], stdout=subprocess.DEVNULL, check=True)
        commands = _commands(folder, str(lines))
        sides = {name: _processor_time(command) for name, command in {BASE: ["-c", BASE], **commands}.items()}
        times = in_turns(sides, rounds)
    rows = []
    for name in commands:
        row = Row(name, f"`{BASE}`", 1.1, at_most=True)
        row.ratios = [own / other for own, other in zip(times[name], times[BASE], strict=True)]
        row.figures = {"s of processor time": times[name], "s beside": times[BASE]}
        rows.append(row)
    return rows


def _commands(folder: Path, lines: str) -> dict[str, list[str]]:
    """Name of each row to the arguments of Python."""

    def predict(recipe: str, *flags: str) -> list[str]:
        return [_script(recipe), "--do_predict", "--model_name_or_path", str(folder / recipe), *flags]

    files = ("--test_file", lines, "--overwrite_output_file", "--output_file")
    scored = ("--test_file", lines, "--overwrite_output_dir", "--output_dir", str(folder / "scored"))
    return {
        "import of hfseq": ["-c", "import hfseq"],
        **{f"`{recipe}.py --help`": [_script(recipe), "--help"] for recipe in HELPS},
        "`python -m hfseq.serve --help`": ["-m", "hfseq.serve", "--help"],
        "ten lines through `translation.py`": predict("translation", *files, str(folder / "translations.txt")),
        "ten lines through `sentiment.py`": predict("sentiment", *files, str(folder / "classes.tsv")),
        "ten lines scored by `language_modeling.py`": predict("language_modeling", *scored),
        "a prompt to `language_modeling.py`": predict("language_modeling", "--prompt", "The meeting"),
    }


def _script(recipe: str) -> str:
    return str(ROOT / "recipes" / f"{recipe}.py")


def _processor_time(arguments: Sequence[str]) -> Side:
    """A side that runs a new interpreter; the warm-up writes the byte code that installed packages come with."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def side() -> float:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return usage.ru_utime + usage.ru_stime

    return side
