"""All speed benchmarks: the table of `benchmarks/RESULTS.md`, its plots, and the figures as JSON.

    make bench DATA=folder/with/multi30k JOEYNMT=joeynmt/bin/python

runs `python benchmarks/run.py --data … --joeynmt_python …`. Everything that is compared takes turns on one machine,
with one number of threads; a ratio is the median of its rounds. Without --data the texts are the embedded pairs;
without --joeynmt_python the rows beside JoeyNMT are not measured.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from limits import training_limit
from profile_step import profiled, shares
from results import plot_language_models, plot_ratios, write_results
from samples import QUICK, Samples, Sizes
from speed_encoder import encoders
from speed_generation import beams_beside_joeynmt, greedy_beside_hand, language_model_beside_gpt2
from speed_inference import classification_beside_distilbert, import_time
from speed_training import budget_beside_fixed, input_pipeline, recipe_beside_bare, training_beside_joeynmt
from timing import Row, machine

FOLDER = Path(__file__).parent


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments `argv`, by default those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.de, train.en, test_2016_flickr.de and .en")
    parser.add_argument("--joeynmt_python", help="interpreter of an environment with JoeyNMT 2.3")
    parser.add_argument("--threads", type=int, default=1, help="threads of every side")
    parser.add_argument("--output_dir", type=Path, default=FOLDER)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see whether all runs; figures say nothing"
    )
    return parser.parse_args(argv)


def measure(samples: Samples, args: argparse.Namespace) -> tuple[list[Row], dict]:
    """All rows, and the curves of the language models."""
    rows: list[Row] = []
    curves: dict = {}

    def language_models() -> list[Row]:
        found, points = language_model_beside_gpt2(samples.sizes)
        curves.update(points)
        return found

    measures: list[Callable[[], Row | list[Row]]] = [
        lambda: recipe_beside_bare(samples, args.threads),
        lambda: training_beside_joeynmt(samples, args.threads, args.joeynmt_python),
        lambda: encoders(samples.sizes),
        lambda: budget_beside_fixed(samples),
        lambda: greedy_beside_hand(samples),
        lambda: beams_beside_joeynmt(samples, args.threads, args.joeynmt_python),
        language_models,
        lambda: classification_beside_distilbert(samples),
        lambda: import_time(2 * samples.sizes.rounds),
        lambda: input_pipeline(samples),
    ]
    for run in measures:
        found = run()
        for row in found if isinstance(found, list) else [found]:
            rows.append(row)
            ratio = "" if row.median is None else f" {row.median:.3g}"
            print(f"{row.measure} / {row.beside}:{ratio} ({row.verdict})", flush=True)
    return rows, curves


def main(argv: list[str] | None = None) -> None:
    """Measure all and write the results."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    samples = Samples(QUICK if args.quick else Sizes(), args.data)
    rows, curves = measure(samples, args)
    kinds = {"float32": False, "bfloat16": True}
    limits = [training_limit(samples, bf16) for bf16 in kinds.values()]
    profiles = {numbers: shares(profiled(samples, bf16)) for numbers, bf16 in kinds.items()}
    # Without the folders of this machine.
    given = {"data": "DATA=multi30k", "joeynmt_python": "JOEYNMT=joeynmt/bin/python"}
    command = " ".join(["make bench", *(text for name, text in given.items() if getattr(args, name))])
    command = "python benchmarks/run.py --quick" if args.quick else command
    about = machine(args.threads) | {"texts": samples.name, "command": command}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    plot_ratios(rows, args.output_dir / "ratios.png")
    plot_language_models(curves, args.output_dir / "language_models.png")
    write_results(rows, limits, profiles, about, args.output_dir)
    values = {"about": about, "rows": [asdict(row) | {"median": row.median, "verdict": row.verdict} for row in rows]}
    values |= {"curves": curves, "limits": [asdict(limit) | {"share": limit.share} for limit in limits]}
    values |= {"profiles": profiles}
    (args.output_dir / "results.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
