"""Monitor a trained model: is it still as good on fresh rows as on its test set, and are they like those it knows?

    python recipes/monitoring.py --model_name_or_path outputs/sentiment_demo --test_file old_test.csv \
        --fresh_file this_week.csv --output_dir outputs/monitoring

compares the fresh texts with the test texts: the scores, with a bootstrap interval, if the fresh file has labels; text
lengths, shares of unknown tokens and the model's predictions, with a test each, corrected for their number. It writes
report.md, report.json and report.png, and ends with exit code 3 if a bound is exceeded (--max_drop, --alpha),
otherwise with 0. Classifiers are scored by accuracy; translators and summarizers by the mean chrF of a text, for which
--label_column names the column of the references. --task forecasting compares features, forecasts and residuals of
series, and MASE; --task recommendation items, recommendations and HR@10; --task audio recordings and their classes.

    python recipes/monitoring.py … --served traffic --labels_file labels.csv

reads the log of a server (docs/watching.md) in place of --fresh_file, and joins labels that came later by id.

    python recipes/monitoring.py … --retrain true --train_file old_train.csv

trains on from the model with old and fresh rows, and keeps the result (in retrained/) only if it is at least as good
as the old model on the test rows and on held-out fresh rows, and better on one of them.
"""

import sys
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.errors import InputError, did_you_mean, require
from hfseq.lazy import datasets
from hfseq.training import cli, drift
from hfseq.training.finetuning import FinetuningArguments
from hfseq.training.monitoring import MonitoringFields
from hfseq.training.monitoring_items import MonitoredItems
from hfseq.training.monitoring_recordings import MonitoredRecordings
from hfseq.training.monitoring_series import MonitoredSeries
from hfseq.training.monitoring_texts import MonitoredTexts
from hfseq.training.run import Run

ALARM = 3
"""Exit code when a bound is exceeded."""
TASKS = {
    "text": MonitoredTexts,
    "audio": MonitoredRecordings,
    "forecasting": MonitoredSeries,
    "recommendation": MonitoredItems,
}
ARGUMENTS = {
    name: (make_dataclass("MonitoringArguments", (), bases=(MonitoringFields, task.arguments)), FinetuningArguments)
    for name, task in TASKS.items()
}
"""Task to its dataclasses of arguments."""


def main(argv: list[str] | None = None) -> int:
    """Run the recipe with the arguments `argv`, by default those of the process; returns the exit code."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = list(sys.argv[1:] if argv is None else argv)
    name = cli.value_of(argv, "task", "text")
    if name not in TASKS:
        raise InputError(f"unknown --task {name!r}{did_you_mean(name, TASKS)}")
    data, args = cli.parse_config(ARGUMENTS[name], argv)
    run = Run(None, data, args, ARGUMENTS[name], argv, log=partial(PartialState().print, flush=True))
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
    monitored = TASKS[name](data, args)
    monitored.read()

    # 3. Predictions, how much the score dropped, drift, and which bounds are exceeded.
    reference, fresh = monitored.observe_reference(), monitored.observe_fresh()
    labelled = 0 if fresh.scores is None else len(fresh.scores)
    drop = monitored.drop(reference, fresh)
    pairs = drift.pairs_of(reference.samples, fresh.samples)
    drifts = drift.drift_tests(pairs)
    alarms = drift.verdict(drop, drifts, max_drop=data.max_drop, alpha=data.alpha, rows=labelled)

    # 4. Reports.
    run.prepare()
    sizes = f"{fresh.size:,} fresh {monitored.rows} beside {reference.size:,} reference {monitored.rows}"
    notes = [*monitored.notes, f"{labelled or 'none'} of the fresh {monitored.rows} with labels"]
    if drop is not None and labelled < drift.FEW:
        notes.append(f"{labelled} labels are too few for an alarm by their score; {drift.FEW} would do")
    lines = drift.report_lines(f"{type(monitored.model).__name__}: {sizes}", drop, drifts, alarms, notes)
    if PartialState().is_main_process:
        drift.write_report(root, lines, drop, drifts, alarms, notes)
        drift.plot_drift(pairs, root / "report.png")
    run.log("\n".join(lines))

    # 5. Training on, if that is wanted.
    if data.retrain:
        more = ["", *monitored.retrain(run)]
        if PartialState().is_main_process:
            drift.write_report(root, lines + more, drop, drifts, alarms, notes)
        run.log("\n".join(more))
    # A launcher of several processes ends all of them when one ends with a code other than 0.
    PartialState().wait_for_everyone()
    run.log(f"\nreport.md, report.json and report.png are in {args.output_dir}")
    if alarms and not data.retrain:
        run.log("to train on: the same command with --retrain true --train_file and the rows that it has learnt")
    return ALARM if alarms and PartialState().is_main_process else 0


if __name__ == "__main__":
    cli.run(main)
