"""A recipe killed and resumed again and again, compared with an uninterrupted run.

    .venv/bin/python benchmarks/kill_and_resume.py

A recipe, `recipes/language_modeling.py` unless another is named, with any flags of its own after it, is run for
`--minutes`: a short run finds out how many steps that is, unless a flag `--max_steps` says it. It is run once as a
whole, and at the same time once with `--resume_from_checkpoint last` and a SIGKILL after a time drawn from 0 to twice
`--every` seconds, start after start, until it comes to its end. Every other kill waits for a checkpoint that is being
written and hits that, up to 50 ms after its folder appeared. There are about four checkpoints in `--every` seconds.

Printed, as a Markdown table: starts, kills, those that left a checkpoint incomplete, the last losses, and the largest
difference between the final weights. It exits with 1 if a run fails, if twenty starts in a row bring no new
checkpoint, or if a weight differs.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import store, this_command
from safetensors.torch import load_file

from hfseq.training.checkpoints import is_complete, last_complete_checkpoint

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
PROBE_STEPS = 100
PATIENCE = 20


class Run(NamedTuple):
    """Output directory of a run, and its starts and kills."""

    directory: Path
    starts: int = 1
    kills: int = 0
    torn: int = 0


def start(command: Sequence[str], log: Path) -> subprocess.Popen:
    """Start a recipe in a group of processes of its own, which can be killed as a whole."""
    with open(log, "a") as output:
        return subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(process: subprocess.Popen, log: Path) -> None:
    """Wait for the end of a run that should succeed."""
    if process.wait():
        sys.exit(f"{' '.join(map(str, process.args))} failed:\n{log.read_text()[-2000:]}")  # type: ignore[arg-type]


def incomplete(directory: Path) -> set[tuple[Path, int]]:
    """Checkpoints that are there, but not as a whole, and when something was last added to them."""
    found = set()
    for path in directory.glob("checkpoint-*"):
        # The run may delete it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if not is_complete(path):
                found.add((path, path.stat().st_mtime_ns))
    return found


def wait_for_writing(process: subprocess.Popen, directory: Path, rng: random.Random) -> None:
    """Wait until a checkpoint is being written, and a little longer; or for the end of the run."""
    before = incomplete(directory)
    while process.poll() is None and incomplete(directory) <= before:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))


def run_and_kill(command: Sequence[str], directory: Path, every: float, rng: random.Random) -> Run:
    """Start, kill and resume a recipe until it ends."""
    log = directory.with_suffix(".log")
    starts = kills = torn = idle = 0
    while True:
        newest, before = last_complete_checkpoint(directory), incomplete(directory)
        process = start([*command, "--output_dir", str(directory), "--resume_from_checkpoint", "last"], log)
        starts += 1
        try:
            process.wait(rng.uniform(0, 2 * every))
        except subprocess.TimeoutExpired:
            if starts % 2:
                wait_for_writing(process, directory, rng)
        if process.poll() is not None:
            finish(process, log)
            return Run(directory, starts, kills, torn)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        torn += not incomplete(directory) <= before
        step = (last_complete_checkpoint(directory) or "none").rpartition("-")[2]
        print(f"kill {kills}: last complete checkpoint {step}", file=sys.stderr, flush=True)
        idle = 0 if last_complete_checkpoint(directory) != newest else idle + 1
        if idle == PATIENCE:
            sys.exit(f"{PATIENCE} starts in a row without a new checkpoint; give a larger --every")


def steps_for(command: Sequence[str], minutes: float, folder: Path) -> int:
    """Steps that a recipe takes in so many minutes."""
    directory = folder / "probe"
    flags = "--eval_strategy steps --eval_steps 1000000 --save_strategy no --load_best_model_at_end false".split()
    process = start(
        [*command, *flags, "--max_steps", str(PROBE_STEPS), "--output_dir", str(directory)], folder / "probe.log"
    )
    finish(process, folder / "probe.log")
    seconds = json.loads((directory / "train_results.json").read_text())["train_runtime"]
    return max(10, int(60 * minutes * PROBE_STEPS / seconds))


def history(directory: Path) -> dict[str, Any]:
    """Each loss that a run logged last, and the scores that it ended with."""
    state = json.loads((Path(last_complete_checkpoint(directory) or "") / "trainer_state.json").read_text())
    last = {name: entry[name] for entry in state["log_history"] for name in ("loss", "eval_loss") if name in entry}
    scores = json.loads((directory / "all_results.json").read_text())
    return last | {name: score for name, score in scores.items() if name.startswith("test_")}


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=180, help="seconds from a start to a kill, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", metavar="ID", help="entry of scores.json to store the figures in")
    parser.add_argument("recipe", nargs="?", default=str(RECIPES / "language_modeling.py"))
    args, flags = parser.parse_known_args()
    command = [args.recipe, *flags, "--use_cpu", "true", "--disable_tqdm", "true"]
    if "--early_stopping_patience" not in flags:
        command += ["--early_stopping_patience", "1000000"]  # it is to train that long
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "--max_steps" in flags:
            steps = int(flags[flags.index("--max_steps") + 1])
        else:
            steps = steps_for(command, args.minutes, folder)
            command += ["--max_steps", str(steps)]
        interval = str(max(1, int(steps * args.every / (60 * args.minutes) / 4)))
        command += ["--eval_strategy", "steps", "--eval_steps", interval]
        command += ["--save_strategy", "steps", "--save_steps", interval]
        print(f"{Path(args.recipe).name}: {steps} steps, a checkpoint every {interval}\n", flush=True)
        begin = time.monotonic()
        whole = start([*command, "--output_dir", str(folder / "whole")], folder / "whole.log")
        try:
            killed = run_and_kill(command, folder / "killed", args.every, random.Random(args.seed))
            print(f"killed and resumed for {(time.monotonic() - begin) / 60:.0f} minutes\n", flush=True)
            finish(whole, folder / "whole.log")
        finally:
            if whole.poll() is None:
                os.killpg(whole.pid, signal.SIGKILL)
        minutes = round((time.monotonic() - begin) / 60)
        differing = report({"whole": Run(folder / "whole"), "killed": killed})
    if args.record is not None:
        figures = {"kills": killed.kills, "of them in the middle of a checkpoint": killed.torn, "steps": steps}
        store(args.record, figures | {"differing weights and losses": differing}, this_command(), minutes=minutes)
    return int(differing > 0)


def report(runs: dict[str, Run]) -> int:
    """Print the table of two runs; return how many weights and figures differ."""
    histories = {kind: history(run.directory) for kind, run in runs.items()}
    print("| | whole | killed and resumed |\n|---|--:|--:|")
    for name, values in (
        ("starts", [run.starts for run in runs.values()]),
        ("kills", [run.kills for run in runs.values()]),
        ("kills that left an incomplete checkpoint", [run.torn for run in runs.values()]),
        *((name, [scores.get(name) for scores in histories.values()]) for name in histories["whole"]),
    ):
        print(f"| {name} | {' | '.join(map(str, values))} |")
    whole, killed = (load_file(run.directory / "model.safetensors") for run in runs.values())
    largest = max(float((whole[name] - killed[name]).abs().max()) for name in whole)
    print(f"\nlargest difference of a final weight: {largest:.3g}{'' if largest else ', bit-equal'}")
    names = histories["whole"].keys() | histories["killed"].keys()
    figures = sum(histories["whole"].get(name) != histories["killed"].get(name) for name in names)
    return figures + sum(not torch.equal(whole[name], killed[name]) for name in whole)


if __name__ == "__main__":
    sys.exit(main())
