"""All speed benchmarks: their figures as JSON, the plots, and `benchmarks/RESULTS.md`.

    make bench DATA=folder/with/multi30k JOEYNMT=joeynmt/bin/python

runs `python benchmarks/run.py --data … --joeynmt_python …`; with `--only beams greedy` it measures these again and
leaves the other rows as they are. Every row has its own machine, command, commit and date. Everything that is compared
takes turns on one machine, with one number of threads; a ratio is the median of its rounds. Without --data the texts
are the embedded pairs; without --joeynmt_python the rows beside JoeyNMT are not measured. `--device cuda` measures on
a GPU, whose table follows that of the CPU. `make results` renders RESULTS.md from the JSON files without measuring.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from limits import training_limit
from profile_step import profiled, shares
from results import FILES, plot_language_models, plot_ratios, results_page
from samples import LARGE, QUICK, Samples, Sizes
from speed_encoder import encoders
from speed_generation import beams_beside_joeynmt, greedy_beside_hand, language_model_beside_gpt2
from speed_inference import classification_beside_distilbert
from speed_linear import language_models, layers
from speed_numbers import ctc_recipe_beside_bare, ctc_step, forecaster_step
from speed_start import start_times
from speed_training import budget_beside_fixed, input_pipeline, recipe_beside_bare, training_beside_joeynmt
from timing import Row, machine

from hfseq.training.cli import keep_freed_memory

FOLDER = Path(__file__).parent
MEASURES: dict[str, Callable[[Samples, argparse.Namespace], Any]] = {
    "recipe": lambda samples, args: recipe_beside_bare(samples, args.threads),
    "joeynmt": lambda samples, args: training_beside_joeynmt(samples, args.threads, args.joeynmt_python),
    "encoder": lambda samples, args: encoders(samples.sizes, samples.device),
    "batches": lambda samples, args: budget_beside_fixed(samples),
    "greedy": lambda samples, args: greedy_beside_hand(samples),
    "beams": lambda samples, args: beams_beside_joeynmt(samples, args.threads, args.joeynmt_python),
    "language_model": lambda samples, args: language_model_beside_gpt2(samples.sizes, samples.device),
    "classification": lambda samples, args: classification_beside_distilbert(samples),
    "start": lambda samples, args: start_times(2 * samples.sizes.rounds),
    "input": lambda samples, args: input_pipeline(samples),
    "ctc": lambda samples, args: [
        *(ctc_recipe_beside_bare(samples.sizes, samples.sizes.hidden // part, samples.device) for part in (4, 1)),
        *ctc_step(samples.sizes, samples.device),
    ],
    "forecaster": lambda samples, args: forecaster_step(samples.sizes, samples.device),
    "linear": lambda samples, args: [
        *layers(samples.sizes, samples.device),
        *language_models(samples.sizes, samples.device),
    ],
}
"""Name of a measure to what takes it: a row, rows, or rows and the curves of the language models."""
ON_A_GPU = [name for name in MEASURES if name != "start"]
LIMITS = "limits"
"""Name, after --only, of the lower bounds on a training step, with its profiles."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments `argv`, by default those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.de, train.en, test_2016_flickr.de and .en")
    parser.add_argument("--joeynmt_python", help="interpreter of an environment with JoeyNMT 2.3")
    parser.add_argument("--threads", type=int, default=1, help="threads of every side")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, help="times that each side is run, in place of what the sizes say")
    parser.add_argument("--output_dir", type=Path, default=FOLDER)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see whether all runs; figures say nothing"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[*MEASURES, LIMITS], help="measure these alone, and update the results with them"
    )
    return parser.parse_args(argv)


def describe(samples: Samples, args: argparse.Namespace) -> dict[str, str]:
    """Machine, versions, texts and command, without the folders of this machine."""
    given = {"data": "DATA=multi30k", "joeynmt_python": "JOEYNMT=joeynmt/bin/python"}
    if args.quick or args.only:
        flags = {"data": "--data multi30k", "joeynmt_python": "--joeynmt_python joeynmt/bin/python"}
        parts = ["python benchmarks/run.py", *(flag for name, flag in flags.items() if getattr(args, name))]
        parts += [] if args.device == "cpu" else [f"--device {args.device}"]
        parts += [f"--rounds {args.rounds}"] if args.rounds else []
        parts += (["--quick"] if args.quick else []) + (["--only", *args.only] if args.only else [])
    else:
        parts = ["make bench", *(text for name, text in given.items() if getattr(args, name))]
        parts += [] if args.device == "cpu" else [f"DEVICE={args.device}"]
        parts += [f"ROUNDS={args.rounds}"] if args.rounds else []
    return machine(args.threads, args.device) | {"texts": samples.name, "command": " ".join(parts)}


def measure(samples: Samples, args: argparse.Namespace, names: Sequence[str]) -> tuple[list[Row], dict]:
    """The rows of these measures, and the curves of the language models."""
    about = describe(samples, args)
    rows: list[Row] = []
    curves: dict = {}
    for name in names:
        found = MEASURES[name](samples, args)
        if isinstance(found, tuple):
            found, curves = found
        for row in found if isinstance(found, list) else [found]:
            rows.append(replace(row, about=about))
            ratio = "" if row.median is None else f" {row.median:.3g}"
            print(f"{row.measure} / {row.beside}:{ratio} ({row.verdict})", flush=True)
    return rows, curves


def measure_all(samples: Samples, args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; return the contents of a file of figures."""
    on_cpu = args.device == "cpu"
    rows, curves = measure(samples, args, list(MEASURES) if on_cpu else ON_A_GPU)
    about = dict.fromkeys(("curves", "limits", "profiles"), describe(samples, args))
    values = {"about": about, "rows": [asdict(row) for row in rows], "curves": curves}
    return values | (measure_limits(samples) if on_cpu else {"limits": [], "profiles": {}})


def measure_limits(samples: Samples) -> dict[str, Any]:
    """Lower bounds on a training step, and its profiles, in float32 and bfloat16."""
    kinds = {"float32": False, "bfloat16": True}
    limits = [asdict(training_limit(samples, bf16)) for bf16 in kinds.values()]
    return {"limits": limits, "profiles": {name: shares(profiled(samples, bf16)) for name, bf16 in kinds.items()}}


def measure_again(samples: Samples, args: argparse.Namespace, values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the rows of `--only` measured anew."""
    if LIMITS in args.only:
        values |= measure_limits(samples)
        values |= {"about": values["about"] | dict.fromkeys(("limits", "profiles"), describe(samples, args))}
    rows, curves = measure(samples, args, [name for name in args.only if name != LIMITS])
    new = {(row.measure, row.beside): asdict(row) for row in rows}
    # Rows that were renamed go to the end.
    kept = [new.pop((row["measure"], row["beside"]), row) for row in values["rows"]]
    values |= {"rows": [*kept, *new.values()]}
    if curves:
        values |= {"curves": curves, "about": values["about"] | {"curves": rows[0].about}}
    return values


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    args = parse(argv)
    keep_freed_memory()  # as recipes do
    torch.set_num_threads(args.threads)
    sizes = QUICK if args.quick else Sizes() if args.device == "cpu" else LARGE
    if args.rounds is not None:
        sizes = replace(sizes, rounds=args.rounds)
    samples = Samples(sizes, args.data, args.device)
    file = args.output_dir / FILES[args.device]
    if args.only:
        values = measure_again(samples, args, json.loads(file.read_text(encoding="utf-8")))
    else:
        values = measure_all(samples, args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    report(args.output_dir)


def report(folder: Path) -> None:
    """Draw the plots, which are those of the CPU, and write RESULTS.md."""
    path = folder / FILES["cpu"]
    if not path.exists():
        print(f"there is no {path}, so that no RESULTS.md is written")
        return
    values = json.loads(path.read_text(encoding="utf-8"))
    plot_ratios([Row(**row) for row in values["rows"]], folder / "ratios.png")
    plot_language_models(values["curves"], folder / "language_models.png")
    (folder / "RESULTS.md").write_text(results_page(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
