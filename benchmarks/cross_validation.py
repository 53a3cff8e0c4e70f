"""Compare settings of a recipe by cross-validation on its training rows, so that no test set takes part in the choice.

    python benchmarks/cross_validation.py recipes/sentiment.py recipes/configs/sentiment_trec.yaml \
        --train_file train.tsv --output_dir outputs/trec_folds --metric accuracy \
        --setting="--rdrop_alpha 1" --setting="--adversarial_epsilon 0.1" --seeds 1 2

trains the recipe as it is configured and with each of the settings, which are flags of it, once for each fold and
seed, and scores the fold that was held out. Each setting is compared with none, fold by fold and seed by seed.

The file has a row a line, and with `--header` its column names first. Equal lines are in the same fold, which the
SHA-256 of the line gives, whatever else the file holds. `scores.json` in the output directory keeps each score as soon
as it is there: the same command goes on where it was interrupted, and may have further settings.
"""

import argparse
import hashlib
import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path


def fold_of(line: str, folds: int) -> int:
    """Fold of a line, or of what tells rows apart, by its characters alone."""
    return int(hashlib.sha256(line.encode()).hexdigest(), 16) % folds


def write_folds(file: Path, directory: Path, folds: int, header: bool) -> list[dict[str, Path]]:
    """For each fold, the files with the rows of the others (`train`) and its own (`test`).

    Raises:
        SystemExit: A fold is empty.
    """
    with file.open(encoding="utf-8", newline="\n") as rows:
        lines = [*rows]
    names, lines = (lines[:1], lines[1:]) if header else ([], lines)
    written = []
    for fold in range(folds):
        parts = {
            "train": [line for line in lines if fold_of(line, folds) != fold],
            "test": [line for line in lines if fold_of(line, folds) == fold],
        }
        if not all(parts.values()):
            sys.exit(f"error: {file}: {len(lines)} rows do not fill {folds} folds")
        paths = {name: directory / f"fold{fold}" / f"{name}{file.suffix}" for name in parts}
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(names + parts[name]), encoding="utf-8", newline="")
        written.append(paths)
    return written


def compare(scores: Mapping[str, float], settings: Sequence[str], runs: Sequence[tuple[int, int]]) -> list[str]:
    """Lines of a table: the mean of each setting, and of its differences from the first with their standard error.

    The error is that of runs that are independent, which folds are not quite: they share training rows.

    Args:
        scores: Score of each run by its name; see `name_run`.
        settings: Flags of the recipe; those that the others are compared with come first.
        runs: Fold and seed of each run.
    """
    lines = [f"{'mean':>8}  {'difference':>16}  setting"]
    for setting in settings:
        found = [scores[name_run(setting, *run)] for run in runs]
        gains = [score - scores[name_run(settings[0], *run)] for score, run in zip(found, runs, strict=True)]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        gain = "" if setting == settings[0] else f"{statistics.mean(gains):+.2f} ± {error:.2f}"
        lines.append(f"{statistics.mean(found):8.2f}  {gain:>16}  {setting or 'as configured'}")
    return lines


def name_run(setting: str, fold: int, seed: int) -> str:
    """Name of a run in `scores.json`."""
    return f"fold {fold}, seed {seed}: {setting}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is not in `scores.json` yet, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="recipe and, if there is one, its YAML file", nargs="+")
    parser.add_argument("--train_file", type=Path, required=True, help="rows, one a line")
    parser.add_argument("--header", action="store_true", help="the first line has the names of the columns")
    parser.add_argument("--metric", required=True, help="score of all_results.json, without its test_")
    parser.add_argument("--setting", action="append", default=[], help="flags to compare, as one argument; repeat it")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args(argv)
    settings = ["", *args.setting]
    kept = args.output_dir / "scores.json"
    scores: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    files = write_folds(args.train_file, args.output_dir, args.folds, args.header)
    runs = [*product(range(args.folds), args.seeds)]
    for (fold, seed), setting in product(runs, settings):
        name, directory = name_run(setting, fold, seed), args.output_dir / f"fold{fold}" / "run"
        if name in scores:
            continue
        flags = ["--train_file", files[fold]["train"], "--test_file", files[fold]["test"], "--seed", str(seed)]
        command = [sys.executable, *args.recipe, *flags, *shlex.split(setting), "--output_dir", directory]
        with (args.output_dir / "log.txt").open("a", encoding="utf-8") as log:
            print(f"\n== {name}", file=log, flush=True)
            done = subprocess.run([*command, "--overwrite_output_dir"], stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"error: {name}: exit status {done.returncode}; see {log.name}")
        results = json.loads((directory / "all_results.json").read_text(encoding="utf-8"))
        scores[name] = results[f"test_{args.metric}"]
        kept.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        print(f"{scores[name]:.2f}  {name}", flush=True)
    print("\n".join(compare(scores, settings, runs)))


if __name__ == "__main__":
    main()
