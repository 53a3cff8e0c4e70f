"""Watch a trained model: does it still do on fresh texts what it did in its test, and are they like those it knows?

    python recipes/monitoring.py --model_name_or_path outputs/sentiment_demo --test_file old_test.csv \
        --fresh_file this_week.csv --output_dir outputs/monitoring

compares the fresh texts with the test texts: the score, with a bootstrap interval, where the fresh file has labels;
the lengths of texts, the share of unknown tokens and what the model makes of them, by a test each, corrected for their
number. It writes report.md, report.json and report.png, and ends with exit code 3 if a bound is passed (--max_drop,
--alpha), else with 0. Classifiers are scored by accuracy; translators and summarizers by the mean chrF of a text,
--label_column naming the column with the right one.

    python recipes/monitoring.py … --retrain true --train_file old_train.csv

trains on from the model with old and fresh rows, and keeps the result (in retrained/) only if it is at least as good
as the old model on the test rows and on fresh rows that it has not seen, and better on one of them.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.labels import encode_labels
from hfseq.data.reading import read_splits, shorten_list
from hfseq.errors import InputError, one_line, require
from hfseq.inference.ensembles import problem_of
from hfseq.inference.prediction import classify_texts, decode_texts
from hfseq.training.arguments import FinetuningArguments, ModelArguments, MonitoringArguments, PairArguments
from hfseq.training.classifiers import train_classifier
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run
from hfseq.training.drift import (
    FEW,
    bootstrap_drop,
    chrf_of_texts,
    drift_tests,
    plot_monitoring,
    report_lines,
    unknown_shares,
    verdict,
)
from hfseq.training.loading import load_trained
from hfseq.training.translators import train_translator

KINDS = (MonitoringArguments, FinetuningArguments)
ALARM = 3
"""Exit code when a bound is passed."""


def main(argv: list[str] | None = None) -> int:
    """Run the recipe with the arguments `argv`, by default those of the process; returns the exit code."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    data_args, args = parse_config(KINDS, argv)
    text, label = data_args.text_column, data_args.label_column
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models
    datasets.disable_progress_bars()
    if args.hp_search or args.do_predict or args.push_to_hub or args.label_smoothing_factor:
        names = "--hp_search, --do_predict, --push_to_hub and --label_smoothing_factor"
        raise InputError(f"{names} are not of monitoring; leave them out")
    # Training on from a classifier scores it by scikit-learn.
    require("matplotlib", "scipy", *(["sklearn"] if data_args.retrain else []), extra="train", use="this recipe")
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=False)
    set_seed(args.seed)

    root, home = Path(str(args.output_dir)).resolve(), Path(str(data_args.model_name_or_path)).resolve()
    if home == root or root in home.parents:
        raise InputError(f"--output_dir {args.output_dir} holds the model that is watched; name another folder")

    # 2. The model.
    model_args = ModelArguments(model_name_or_path=data_args.model_name_or_path)
    generates = is_seq2seq(str(data_args.model_name_or_path))
    auto_class = AutoModelForSeq2SeqLM if generates else AutoModelForSequenceClassification
    model, tokenizer = load_trained(auto_class, model_args)
    if not generates and problem_of(model.config) != "single_label_classification":
        raise InputError("monitoring is of classifiers with one class a text, translators and summarizers")
    model.to(args.device)

    # 3. Data: the texts of its test, and fresh ones, which may have no labels, and those to train on.
    names = None if generates else class_names_of(model)
    reference = read_rows(data_args.test_file, "--test_file", data_args, names)
    fresh = read_texts(data_args)
    judged = read_rows(data_args.fresh_file, "--fresh_file", data_args, names) if has_labels(data_args) else None
    labels = "without labels" if judged is None else f"{len(judged)} of them with labels"
    say(f"{len(reference)} texts of the test, {len(fresh)} fresh ones, {labels}")
    old = None
    if data_args.retrain:
        if judged is None:
            raise InputError(f"--retrain needs labels in {data_args.fresh_file}: column {label!r}")
        if len(judged) < 10:
            raise InputError(f"--retrain: {len(judged)} fresh rows are too few to train on and to judge by; give 10")
        old = read_rows(data_args.train_file, "--train_file", data_args, names)

    # 4. What the model makes of them.
    length, size = data_args.max_length, args.per_device_eval_batch_size

    def predict(texts: list[str]) -> list[str]:
        if not generates:
            found, _ = classify_texts(model, tokenizer, texts, batch_size=size, max_length=length)
            return [decision.label for decision in found]
        options = {"num_beams": data_args.num_beams, "max_length": data_args.max_target_length}
        options |= {"prefix": data_args.source_prefix, "max_source_length": length}
        nbest, _ = decode_texts(model, tokenizer, texts, batch_size=size, **options)
        return [best[0].text for best in nbest]

    def score(rows: datasets.Dataset, made: list[str] | None = None) -> np.ndarray:
        made, right = predict(list(rows[text])) if made is None else made, list(rows[label])
        if generates:
            return chrf_of_texts(made, right)
        return np.array([100.0 * (one == other) for one, other in zip(made, right, strict=True)])

    sides = {"reference": list(reference[text]), "fresh": fresh}
    outputs = {name: predict(texts) for name, texts in sides.items()}
    drop = None
    if judged is not None:
        metric = "chrF of a text" if generates else "accuracy"
        # The rows with labels are some of the fresh ones.
        of_text = dict(zip(fresh, outputs["fresh"], strict=True))
        values = score(reference, outputs["reference"]), score(judged, [of_text[row] for row in judged[text]])
        drop = bootstrap_drop(metric, *values, count=data_args.num_bootstrap, seed=args.seed)

    # 5. Drift, and which bounds are passed.
    lengths, unknown = zip(*(unknown_shares(tokenizer, texts) for texts in sides.values()), strict=True)
    made = tuple(outputs.values())
    if generates:
        made = tuple(unknown_shares(tokenizer, texts)[0] for texts in made)
    drifts = drift_tests(lengths, unknown, made)
    rows = 0 if judged is None else len(judged)
    alarms = verdict(drop, drifts, max_drop=data_args.max_drop, alpha=data_args.alpha, rows=rows)

    # 6. Reports.
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=False)
    lines = report_lines(model, (len(reference), len(fresh)), drop, drifts, alarms)
    if drop is not None and rows < FEW:
        lines += ["", f"{rows} fresh rows with labels are too few for an alarm by their score; {FEW} would do."]
    if PartialState().is_main_process:
        found = {
            "alarms": alarms,
            "drop": None if drop is None else drop._asdict() | {"points": drop.points},
            "drift": [drift._asdict() for drift in drifts],
        }
        (root / "report.json").write_text(json.dumps(found, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        plot_monitoring(lengths, unknown, made, root / "report.png")
        (root / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))

    # 7. Training on, if that is wanted.
    if old is not None and judged is not None:
        more = retrain(model, tokenizer, old, reference, judged, data_args, args, score, say)
        if PartialState().is_main_process:
            (root / "report.md").write_text("\n".join([*lines, "", *more]) + "\n", encoding="utf-8")
            print("\n".join(["", *more]))
    # The launcher of several processes ends all when one ends with another code than 0.
    PartialState().wait_for_everyone()
    if not PartialState().is_main_process:
        return 0
    print(f"\nreport.md, report.json and report.png are in {args.output_dir}")
    if alarms and old is None:
        print("to train on: the same command with --retrain true --train_file and the rows that it has learnt")
    return ALARM if alarms else 0


def class_names_of(model: Any) -> list[str]:
    """The names of a classifier's classes, in their order."""
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


def read_rows(
    path: str | None, flag: str, data_args: MonitoringArguments, names: list[str] | None
) -> datasets.Dataset:
    """The rows of a file with labels; those of a classifier by their names, which may be written as numbers.

    Raises:
        InputError: As `read_splits`, and for a class that the model does not have.
    """
    text, label = data_args.text_column, data_args.label_column
    files = {"column_names": data_args.file_columns, "label_columns": (label,)}
    with naming(flag):
        rows = read_splits(columns=(text, label), test_file=path, **files)["test"]
    if names is None:
        return rows
    # A model that was trained on numbers, or without names, has classes such as LABEL_1.
    numbers = {str(number): name for number, name in enumerate(names)}
    found = [str(value).strip() for value in rows[label]]
    # The column as a whole: where names are digits, too, some rows alone could be either.
    if not {*found} <= {*names} and {*found} <= {*numbers}:
        found = [numbers[value] for value in found]
    if unknown := sorted({*found} - {*names}):
        raise InputError(f"{flag} {path}: class {unknown[0]!r} is not one of the model's: {shorten_list(names)}")
    return datasets.Dataset.from_dict({text: rows[text], label: found})


def read_texts(data_args: MonitoringArguments) -> list[str]:
    """The fresh texts, those without a label among them."""
    columns = (data_args.text_column,)
    with naming("--fresh_file"):
        splits = read_splits(columns=columns, test_file=data_args.fresh_file, column_names=data_args.file_columns)
    return list(splits["test"][data_args.text_column])


def has_labels(data_args: MonitoringArguments) -> bool:
    """Whether the fresh file has a column of labels."""
    columns, label = (data_args.label_column,), data_args.label_column
    files = {"column_names": data_args.file_columns, "label_columns": columns}
    try:
        with naming("--fresh_file"):
            read_splits(columns=columns, test_file=data_args.fresh_file, **files)
    except InputError as error:
        if f"no column {label!r}" in str(error) or "empty: none of" in str(error):
            return False
        raise
    return True


@contextmanager
def naming(flag: str) -> Iterator[None]:
    """Has an error name the flag that was given."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--test_file", flag)) from error


def is_seq2seq(name: str) -> bool:
    """Whether a checkpoint is of a translator or summarizer."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"--model_name_or_path {name}: {one_line(error)}") from error
    classifies = any(kind.endswith("Classification") for kind in config.architectures or ())
    return bool(config.is_encoder_decoder) and not classifies


def retrain(
    model: Any,
    tokenizer: Any,
    old: datasets.Dataset,
    reference: datasets.Dataset,
    fresh: datasets.Dataset,
    data_args: MonitoringArguments,
    args: FinetuningArguments,
    score: Callable[[datasets.Dataset], np.ndarray],
    say: Callable[[str], Any],
) -> list[str]:
    """Train on from the model, which `score` scores; returns what came of it, as lines of the report."""
    text, label = data_args.text_column, data_args.label_column
    target = Path(str(args.output_dir)) / "retrained"
    new = target.with_name("retrained.partial")
    parts = fresh.train_test_split(test_size=data_args.holdout, seed=args.seed)
    judges = {"test rows": reference, "fresh rows that it has not learnt": parts["test"]}
    learnt = datasets.concatenate_datasets([old, parts["train"]]).train_test_split(test_size=0.05, seed=args.seed)
    splits = datasets.DatasetDict(train=learnt["train"], validation=learnt["test"])
    before = {name: float(score(rows).mean()) for name, rows in judges.items()}
    say(f"\ntraining on from the model with {len(old)} old and {len(parts['train'])} fresh rows")
    if is_seq2seq(str(data_args.model_name_or_path)):
        lengths = {"max_source_length": data_args.max_length, "max_target_length": data_args.max_target_length}
        shared = {"num_beams": data_args.num_beams, "max_tokens": data_args.max_tokens}
        shared |= {"source_prefix": data_args.source_prefix}
        pairs = PairArguments(source_lang=text, target_lang=label, **lengths, **shared)
        args.metric_for_best_model, args.greater_is_better = "chrf", True
        own = copy.deepcopy(model.generation_config)
        train_translator(new, model, tokenizer, args, pairs, splits, say=say)
        # It takes the place of the model that is watched, which generates as its own settings say.
        model.generation_config = own
        if PartialState().is_main_process:
            own.save_pretrained(new)
    else:
        splits, _ = encode_labels(splits, label, names=class_names_of(model))
        train_classifier(new, model, tokenizer, args, data_args, splits, say=say)
    after = {name: float(score(rows).mean()) for name, rows in judges.items()}
    better = all(after[name] >= before[name] for name in judges) and after != before
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        if better:
            shutil.rmtree(target, ignore_errors=True)
            new.rename(target)
        else:
            shutil.rmtree(new)
    lines = ["## Trained on", "", "| | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {before[name]:.2f} | {after[name]:.2f} |" for name in judges]
    if better:
        return [*lines, "", f"The new model is better and is kept: {target}"]
    return [*lines, "", "The new model is not better on both; the old one stays, and the new one is gone."]


if __name__ == "__main__":
    run(main)
