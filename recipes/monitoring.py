"""Monitor a trained model: is it still as good on fresh texts as on its test set, and are they like those it knows?

    python recipes/monitoring.py --model_name_or_path outputs/sentiment_demo --test_file old_test.csv \
        --fresh_file this_week.csv --output_dir outputs/monitoring

compares the fresh texts with the test texts: the scores, with a bootstrap interval, if the fresh file has labels; text
lengths, shares of unknown tokens and the model's predictions, with a test each, corrected for their number. It writes
report.md, report.json and report.png, and ends with exit code 3 if a bound is exceeded (--max_drop, --alpha),
otherwise with 0. Classifiers are scored by accuracy; translators and summarizers by the mean chrF of a text, for which
--label_column names the column of the references.

    python recipes/monitoring.py … --retrain true --train_file old_train.csv

trains on from the model with old and fresh rows, and keeps the result (in retrained/) only if it is at least as good
as the old model on the test rows and on held-out fresh rows, and better on one of them.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
from accelerate import PartialState
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.errors import InputError, require
from hfseq.tasks.arguments import SingleLabelArguments
from hfseq.training import cli, drift
from hfseq.training.finetuning import FinetuningArguments
from hfseq.training.monitoring import Monitored
from hfseq.training.run import Run

ALARM = 3
"""Exit code when a bound is exceeded."""


@dataclass
class MonitoringArguments(SingleLabelArguments):
    """The monitored model, its texts, and the bounds."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Classifier, translator or summarizer: a directory or Hub name."}
    )
    fresh_file: str | None = field(
        default=None, metadata={"help": "Fresh texts, as --test_file; without the label column only drift is tested."}
    )
    max_drop: float = field(default=2.0, metadata={"help": "Points by which the score may drop."})
    alpha: float = field(default=0.01, metadata={"help": "A drift test with a smaller p-value raises an alarm."})
    num_bootstrap: int = field(default=1000, metadata={"help": "Bootstrap samples for the interval of the drop."})
    max_target_length: int = field(default=256, metadata={"help": "Maximum length of a generated text in tokens."})
    num_beams: int = field(default=1, metadata={"help": "Beams of a translator or summarizer."})
    source_prefix: str = field(default="", metadata={"help": "Text before every source of a translator."})
    retrain: bool = field(
        default=False, metadata={"help": "Train on with --train_file and part of --fresh_file; keep the better model."}
    )
    holdout: float = field(default=0.3, metadata={"help": "Share of the fresh rows that is held out to judge it."})
    dataset_name: None = field(init=False, default=None)
    validation_file: None = field(init=False, default=None)
    class_weights: None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Refuse missing files and impossible values."""
        super().__post_init__()
        for name in ("model_name_or_path", "test_file", "fresh_file"):
            if getattr(self, name) is None:
                raise ValueError(f"--{name} is missing: the model, its --test_file and a --fresh_file are compared")
        if self.retrain and self.train_file is None:
            raise ValueError("--retrain needs --train_file, the rows that the model has learnt")
        if not 0 < self.holdout < 1 or not 0 <= self.alpha <= 1:
            raise ValueError("--holdout must lie between 0 and 1, and --alpha from 0 to 1")


ARGUMENTS = (MonitoringArguments, FinetuningArguments)


def main(argv: list[str] | None = None) -> int:
    """Run the recipe with the arguments `argv`, by default those of the process; returns the exit code."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    data, args = cli.parse_config(ARGUMENTS, argv)
    run = Run(None, data, args, ARGUMENTS, argv or (), log=partial(PartialState().print, flush=True))
    disable_progress_bar()  # of saving and loading models
    datasets.disable_progress_bars()
    if args.hp_search or args.do_predict or args.push_to_hub or args.label_smoothing_factor:
        names = "--hp_search, --do_predict, --push_to_hub and --label_smoothing_factor"
        raise InputError(f"{names} are not of monitoring; leave them out")
    # Retraining a classifier needs scikit-learn for the scores.
    require("matplotlib", "scipy", *(["sklearn"] if data.retrain else []), extra="train", use="this recipe")
    cli.check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=False)
    set_seed(args.seed)
    root, home = Path(str(args.output_dir)).resolve(), Path(str(data.model_name_or_path)).resolve()
    if home == root or root in home.parents:
        raise InputError(f"--output_dir {args.output_dir} holds the monitored model; name another directory")

    # 2. Model and rows: those of its test, fresh ones, which may have no labels, and those to train on.
    monitored = Monitored(data, args)
    reference = monitored.read_rows(data.test_file, "--test_file")
    fresh, judged = monitored.read_fresh()
    rows = 0 if judged is None else len(judged)
    run.log(f"{len(reference)} texts of the test, {len(fresh)} fresh ones, {rows or 'none'} of them with labels")
    old = None
    if data.retrain:
        if judged is None:
            raise InputError(f"--retrain needs labels in {data.fresh_file}: column {data.label_column!r}")
        if rows < 10:
            raise InputError(f"--retrain: {rows} fresh rows are too few to train on and to judge by; give 10")
        old = monitored.read_rows(data.train_file, "--train_file")

    # 3. Predictions, and how much the score dropped.
    sides = {"reference": list(reference[data.text_column]), "fresh": fresh}
    outputs = {name: monitored.predict(texts) for name, texts in sides.items()}
    drop = None
    if judged is not None:
        # The rows with labels are some of the fresh ones.
        of_text = dict(zip(fresh, outputs["fresh"], strict=True))
        made = [of_text[text] for text in judged[data.text_column]]
        values = monitored.score(reference, outputs["reference"]), monitored.score(judged, made)
        metric = "chrF of a text" if monitored.generates else "accuracy"
        drop = drift.bootstrap_drop(metric, *values, count=data.num_bootstrap, seed=args.seed)

    # 4. Drift, and which bounds are exceeded.
    counts = [drift.unknown_shares(monitored.tokenizer, texts) for texts in sides.values()]
    lengths, unknown = zip(*counts, strict=True)
    made = tuple(outputs.values())
    if monitored.generates:
        made = tuple(drift.unknown_shares(monitored.tokenizer, texts)[0] for texts in made)
    drifts = drift.drift_tests(lengths, unknown, made)
    alarms = drift.verdict(drop, drifts, max_drop=data.max_drop, alpha=data.alpha, rows=rows)

    # 5. Reports.
    run.prepare()
    lines = drift.report_lines(monitored.model, (len(reference), len(fresh)), drop, drifts, alarms)
    if drop is not None and rows < drift.FEW:
        lines += ["", f"{rows} fresh rows with labels are too few for an alarm by their score; {drift.FEW} would do."]
    if PartialState().is_main_process:
        points = None if drop is None else drop._asdict() | {"points": drop.points}
        found = {"alarms": alarms, "drop": points, "drift": [one._asdict() for one in drifts]}
        (root / "report.json").write_text(json.dumps(found, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        drift.plot_monitoring(lengths, unknown, made, root / "report.png")
        (root / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))

    # 6. Training on, if that is wanted.
    if old is not None and judged is not None:
        more = monitored.retrain(run, old, reference, judged)
        if PartialState().is_main_process:
            (root / "report.md").write_text("\n".join([*lines, "", *more]) + "\n", encoding="utf-8")
            print("\n".join(["", *more]))
    # A launcher of several processes ends all of them when one ends with a code other than 0.
    PartialState().wait_for_everyone()
    if not PartialState().is_main_process:
        return 0
    print(f"\nreport.md, report.json and report.png are in {args.output_dir}")
    if alarms and old is None:
        print("to train on: the same command with --retrain true --train_file and the rows that it has learnt")
    return ALARM if alarms else 0


if __name__ == "__main__":
    cli.run(main)
