"""Ten-fold cross-validation of `recipes/bioinformatics.py` on splice junctions, beside a logistic regression.

    python benchmarks/splice_folds.py DATA/dna_splice/splice.tsv --output_dir outputs/splice

Reads lines of class, name and sequence. Equal sequences are kept once, and left out if their classes differ; a
sequence is in the fold that the SHA-256 of its letters gives modulo ten, whatever else the file holds. For each fold
the recipe is trained with `recipes/configs/bioinformatics_splice.yaml` on the other nine, of which the fold after it
chooses the epoch; the logistic regression, over the base at each place, is fitted to all nine. Writes `folds.json`;
`--record ID` also stores the means in `scores.json`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from cross_validation import fold_of
from record import parameters, store, this_command
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

ROOT = Path(__file__).parents[1]
FOLDS = 10


def read_distinct(path: Path) -> dict[str, str]:
    """Sequence to class, without sequences of two classes."""
    classes = defaultdict(set)
    for line in path.read_text().splitlines():
        label, _, sequence = line.split("\t")
        classes[sequence].add(label)
    return {sequence: found.pop() for sequence, found in classes.items() if len(found) == 1}


def logistic_accuracy(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
    """Accuracy of a logistic regression over the base at each place."""
    (texts, labels), (given, right) = (zip(*rows, strict=True) for rows in (train, test))
    encoder = OneHotEncoder(handle_unknown="ignore").fit([list(text) for text in texts])
    model = LogisticRegression(max_iter=2000).fit(encoder.transform([list(text) for text in texts]), labels)
    return 100 * model.score(encoder.transform([list(text) for text in given]), right)


def main() -> None:
    """Measure all folds, or those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[*range(FOLDS)])
    parser.add_argument("--record", metavar="ID", help="entry of scores.json to store the figures in")
    args, flags = parser.parse_known_args()
    start = time.monotonic()
    rows = read_distinct(args.file)
    folds = [[pair for pair in rows.items() if fold_of(pair[0], FOLDS) == fold] for fold in range(FOLDS)]
    found = []
    for fold in args.folds:
        directory = args.output_dir / f"fold{fold}"
        directory.mkdir(parents=True, exist_ok=True)
        chooser = (fold + 1) % FOLDS
        rest = [pair for other in range(FOLDS) if other not in (fold, chooser) for pair in folds[other]]
        for name, part in (("train", rest), ("validation", folds[chooser]), ("test", folds[fold])):
            (directory / f"{name}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in part))
        files = [
            part for name in ("train", "validation", "test") for part in (f"--{name}_file", f"{directory}/{name}.tsv")
        ]
        recipe = [ROOT / "recipes" / "bioinformatics.py", ROOT / "recipes" / "configs" / "bioinformatics_splice.yaml"]
        command = [sys.executable, *map(str, recipe), *files, "--column_names", "sequence,label", *flags]
        subprocess.run([*command, "--output_dir", f"{directory}/run", "--overwrite_output_dir"], check=True)
        scores = json.loads((directory / "run" / "all_results.json").read_text())
        states = [json.loads(path.read_text()) for path in (directory / "run").glob("checkpoint-*/trainer_state.json")]
        found.append(
            {
                "fold": fold,
                "rows": len(folds[fold]),
                "validation": max(state["best_metric"] for state in states),
                "accuracy": scores["test_accuracy"],
                "logistic": logistic_accuracy(rest + folds[chooser], folds[fold]),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    counts = [one["rows"] for one in found]
    means = {
        name: float(np.average([one[name] for one in found], weights=counts)) for name in ("accuracy", "logistic")
    }
    result = {"rows": sum(counts), **means, "folds": found}
    (args.output_dir / "folds.json").write_text(json.dumps(result, indent=1) + "\n")
    if args.record is not None:
        store(
            args.record,
            {"accuracy, %": means["accuracy"]},
            this_command(),
            baselines={"logistic regression": {"accuracy, %": means["logistic"]}},
            parameters_millions=parameters(args.output_dir / f"fold{args.folds[0]}" / "run"),
            minutes=round((time.monotonic() - start) / 60, 1),
            on=f"{torch.get_num_threads()} threads, all folds",
        )
    print(f"{result['rows']} rows: accuracy {means['accuracy']:.2f}, logistic regression {means['logistic']:.2f}")


if __name__ == "__main__":
    main()
