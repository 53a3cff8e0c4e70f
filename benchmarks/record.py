r"""Run a recipe and store its scores, with their provenance, in `scores.json`.

    python benchmarks/record.py sst2_lstm --seeds 42 1 2 -- \
        python recipes/sentiment.py recipes/configs/sentiment_sst2.yaml \
        --train_file train.tsv --validation_file dev.tsv --test_file test.tsv

runs the command once for each seed, with `--seed` and an `--output_dir` of its own, and reads the figures that the
entry `sst2_lstm` of `scores.json` names from each run's `all_results.json`. A new entry has `id`, `task`, `model`,
`data`, `keys` and, if there is one, `target`: see `scores.py`. `make results` renders the tables.

    python benchmarks/record.py comparison_trec --table trec --seeds 42 43 44 -- \
        python recipes/comparison.py recipes/configs/comparison_trec.yaml --train_file train.tsv --test_file test.tsv

runs a comparison once, with these seeds, copies its tables and plot to `recipes/comparisons/trec.*`, and stores each
row in the entry of its model: `comparison_trec_lstm` for LSTM.

Benchmarks that measure no recipe take `--record ID` and store their figures themselves, by `store`.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from scores import FILE, ROOT, read_table
from timing import machine

TABLES = ROOT / "recipes" / "comparisons"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id", help="entry of scores.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/scores"), help="folder of the runs")
    parser.add_argument("--table", help="name of a comparison in recipes/comparisons, whose rows are stored")
    parser.add_argument("command", nargs="+", help="after --: python, a recipe and its flags")
    args = parser.parse_args(argv)
    if args.table:
        return compare(args)
    keys = find(json.loads(FILE.read_text(encoding="utf-8")), args.id)["keys"]
    command = [sys.executable if part == "python" else part for part in args.command]
    folders = [args.output_dir / f"{args.id}-{seed}" for seed in args.seeds]
    start = time.monotonic()
    for seed, folder in zip(args.seeds, folders, strict=True):
        subprocess.run([*command, "--seed", str(seed), "--output_dir", folder, "--overwrite_output_dir"], check=True)
    minutes = (time.monotonic() - start) / 60 / len(folders)
    results = [json.loads((folder / "all_results.json").read_text(encoding="utf-8")) for folder in folders]
    store(
        args.id,
        pick(keys["scores"], results),
        args.command,
        baselines={name: pick(found, results) for name, found in keys["baselines"].items()},
        parameters_millions=parameters(folders[0]),
        seeds=args.seeds,
        minutes=round(minutes, 1),
        on=f"{threads()}{', each seed' if len(folders) > 1 else ''}",
    )


def threads() -> str:
    """Number of threads, with its unit."""
    number = torch.get_num_threads()
    return f"{number} thread{'s' * (number != 1)}"


def compare(args: argparse.Namespace) -> None:
    """Run a comparison, keep its tables and plot, and store each row in the entry of its model."""
    folder, start = args.output_dir / args.id, time.monotonic()
    seeds = ["--seed", str(args.seeds[0]), "--num_seeds", str(len(args.seeds)), "--output_dir", str(folder)]
    command = [sys.executable if part == "python" else part for part in args.command]
    subprocess.run([*command, *seeds, "--overwrite_output_dir"], check=True)
    store_table(args.id, args.table, folder, args.command, args.seeds, round((time.monotonic() - start) / 60, 1))


def store_table(
    name: str, table: str, folder: Path, command: Sequence[str], seeds: Sequence[int], minutes: float
) -> None:
    """Keep the tables and the plot of a comparison, and store each row in the entry of its model.

    Args:
        name: Beginning of the entries' `id`.
        table: Name of the files in `recipes/comparisons`.
        folder: Output directory of the comparison.
        command: The command as a list of arguments.
        seeds: Seeds of the runs of each model.
        minutes: Duration of the whole comparison.
    """
    kept = TABLES / f"{table}.csv"
    for source in ("table.csv", "table.md", "trade_off.png"):
        shutil.copyfile(folder / source, kept.with_suffix(Path(source).suffix))
    rows = read_table(kept)
    for model, row in rows.items():
        scores = {"accuracy, %": {"table": f"recipes/comparisons/{kept.name}", "model": model}}
        millions = float(f"{float(row['parameters']) / 1e6:.3g}")
        on = f"{threads()}, all {len(rows)} models with all seeds"
        more: dict[str, Any] = {"parameters_millions": millions, "seeds": list(seeds), "minutes": minutes, "on": on}
        store(f"{name}_{model.lower().replace('-', '_')}", scores, command, **more)


def store(name: str, scores: Mapping[str, Any], command: Sequence[str], **more: Any) -> None:
    """Store what was measured, with its provenance, in the entry `name` of `scores.json`.

    Args:
        name: The entry's `id`.
        scores: Figures by their names: a number, or a list of one number a seed.
        command: The command as a list of arguments; files outside this repository are shown by their names.
        more: Further fields of `measured`, such as `seeds` and `minutes`.
    """
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    shown = shlex.join(os.path.basename(part) if os.path.isabs(part) else part for part in command)
    measured = {"scores": scores, "seeds": None, **more, "command": shown, "source": "benchmarks/record.py", **about()}
    find(entries, name)["measured"] = measured
    FILE.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"stored {scores} in {FILE.name}; make results renders it")


def this_command(argv: Sequence[str] = sys.argv) -> list[str]:
    """Return the command of the benchmark that runs, without its `--record ID`."""
    flags = list(argv[1:])
    at = flags.index("--record")
    return ["python", f"benchmarks/{os.path.basename(argv[0])}", *flags[:at], *flags[at + 2 :]]


def find(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an entry of `scores.json`, or exit where there is none."""
    for entry in entries["runs"]:
        if entry["id"] == name:
            return entry
    sys.exit(f"error: {name}: no such entry in {FILE.name}; add one with id, task, model, data and keys")


def pick(keys: Mapping[str, str], results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Figures by their names: a number, or a list of one number a seed."""
    values = {name: [result[key] for result in results] for name, key in keys.items()}
    return {name: found if len(found) > 1 else found[0] for name, found in values.items()}


def parameters(folder: Path) -> float | None:
    """Parameters of the model in a folder, in millions; None if there is no single file of weights."""
    path = folder / "model.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        count = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())
    return float(f"{count / 1e6:.3g}")


def about() -> dict[str, str]:
    """Processor, versions, commit and date."""
    found = machine(torch.get_num_threads(), "cuda" if torch.cuda.is_available() else "cpu")
    processor = found.get("device", found["processor"])
    return {"processor": processor, "versions": found["versions"], "commit": found["commit"], "date": found["date"]}


if __name__ == "__main__":
    main()
