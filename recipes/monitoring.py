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

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.errors import InputError
from hfseq.data.labels import encode_labels
from hfseq.data.reading import read_splits
from hfseq.training.arguments import FinetuningArguments, ModelArguments, MonitoringArguments, PairArguments
from hfseq.training.classifiers import train_classifier
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, run
from hfseq.training.models import checkpoint_classes, load_model
from hfseq.training.monitoring import (
    bootstrap_drop,
    chrf_of_texts,
    drift_tests,
    plot_monitoring,
    report_lines,
    unknown_shares,
    verdict,
)
from hfseq.training.prediction import classify_texts, decode_texts
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
    if args.hp_search or args.do_predict or args.push_to_hub:
        raise InputError("--hp_search, --do_predict and --push_to_hub are not of monitoring; leave them out")
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=False)
    set_seed(args.seed)

    # 2. The model.
    model_args = ModelArguments(model_name_or_path=data_args.model_name_or_path)
    generates = is_seq2seq(data_args.model_name_or_path)
    auto_class = AutoModelForSeq2SeqLM if generates else AutoModelForSequenceClassification
    model, tokenizer = load_model(auto_class, model_args, None, default_type="")
    model.to(args.device)

    # 3. Data: the texts of its test, and fresh ones, which may have no labels.
    labelled = has_column(data_args, label)
    files = {"column_names": data_args.file_columns, "label_columns": (label,)}
    reference = read_splits(columns=(text, label), test_file=data_args.test_file, **files)["test"]
    columns = (text, label) if labelled else (text,)
    fresh = read_splits(columns=columns, test_file=data_args.fresh_file, **files)["test"]
    say(f"{len(reference)} texts of the test, {len(fresh)} fresh ones{'' if labelled else ' without labels'}")

    # 4. What the model makes of them.
    length, size = data_args.max_length, args.per_device_eval_batch_size

    def predict(rows: datasets.Dataset) -> list[str]:
        texts = list(rows[text])
        if not generates:
            found, _ = classify_texts(model, tokenizer, texts, batch_size=size, max_length=length)
            return [decision.label for decision in found]
        options = {"num_beams": data_args.num_beams, "max_length": data_args.max_target_length}
        nbest, _ = decode_texts(model, tokenizer, texts, batch_size=size, max_source_length=length, **options)
        return [best[0].text for best in nbest]

    def score(rows: datasets.Dataset, outputs: list[str] | None = None) -> np.ndarray:
        made, right = predict(rows) if outputs is None else outputs, list(rows[label])
        if generates:
            return chrf_of_texts(made, right)
        return np.array([100.0 * (one == str(other)) for one, other in zip(made, right, strict=True)])

    sides = {"reference": reference, "fresh": fresh}
    outputs = {name: predict(rows) for name, rows in sides.items()}
    drop = None
    if labelled:
        values = [score(rows, outputs[name]) for name, rows in sides.items()]
        metric = "chrF of a text" if generates else "accuracy"
        drop = bootstrap_drop(metric, *values, count=data_args.num_bootstrap, seed=args.seed)

    # 5. Drift, and which bounds are passed.
    lengths, unknown = zip(*(unknown_shares(tokenizer, rows[text]) for rows in sides.values()), strict=True)
    made = tuple(outputs.values())
    if generates:
        made = tuple(unknown_shares(tokenizer, texts)[0] for texts in made)
    drifts = drift_tests(lengths, unknown, made)
    alarms = verdict(drop, drifts, max_drop=data_args.max_drop, alpha=data_args.alpha)

    # 6. Reports.
    root = Path(args.output_dir)
    prepare_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=False)
    lines = report_lines(model, (len(reference), len(fresh)), drop, drifts, alarms)
    if PartialState().is_main_process:
        found = {
            "alarms": alarms,
            "drop": None if drop is None else drop._asdict() | {"points": drop.points},
            "drift": [drift._asdict() for drift in drifts],
        }
        (root / "report.json").write_text(json.dumps(found, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
        plot_monitoring(lengths, unknown, made, root / "report.png")

    # 7. Training on, if that is wanted.
    if data_args.retrain:
        if not labelled:
            raise InputError(f"--retrain needs labels in {data_args.fresh_file}: column {label!r}")
        lines += ["", *retrain(model, tokenizer, reference, fresh, data_args, args, score, say)]
    if PartialState().is_main_process:
        (root / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print("\n".join(lines))
        print(f"\nreport.md, report.json and report.png are in {args.output_dir}")
        if alarms and not data_args.retrain:
            print("to train on: the same command with --retrain true --train_file and the rows that it has learnt")
    return ALARM if alarms else 0


def is_seq2seq(name: str) -> bool:
    """Whether a checkpoint is of a translator or summarizer."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"--model_name_or_path {name}: {' '.join(str(error).split())[:300]}") from error
    classifies = any(kind.endswith("Classification") for kind in config.architectures or ())
    return bool(config.is_encoder_decoder) and not classifies


def has_column(data_args: MonitoringArguments, label: str) -> bool:
    """Whether the fresh file has labels."""
    try:
        read_splits(
            columns=(label,),
            test_file=data_args.fresh_file,
            column_names=data_args.file_columns,
            label_columns=(label,),
        )
    except InputError as error:
        if "no column" in str(error) or "columns" in str(error):
            return False
        raise
    return True


def retrain(
    model: Any,
    tokenizer: Any,
    reference: datasets.Dataset,
    fresh: datasets.Dataset,
    data_args: MonitoringArguments,
    args: FinetuningArguments,
    score: Callable[[datasets.Dataset], np.ndarray],
    say: Callable[[str], Any],
) -> list[str]:
    """Train on from the model, which `score` scores; returns what came of it, as lines of the report."""
    text, label = data_args.text_column, data_args.label_column
    columns, target = (text, label), Path(str(args.output_dir)) / "retrained"
    files = {"column_names": data_args.file_columns, "label_columns": (label,)}
    old = read_splits(columns=columns, train_file=data_args.train_file, **files)["train"]
    parts = fresh.train_test_split(test_size=data_args.holdout, seed=args.seed)
    judges = {"test rows": reference, "fresh rows that it has not learnt": parts["test"]}
    learnt = datasets.concatenate_datasets([old, parts["train"]]).train_test_split(test_size=0.05, seed=args.seed)
    splits = datasets.DatasetDict(train=learnt["train"], validation=learnt["test"])
    before = {name: float(score(rows).mean()) for name, rows in judges.items()}
    say(f"training on from the model with {len(old)} old and {len(parts['train'])} fresh rows")
    if is_seq2seq(str(data_args.model_name_or_path)):
        lengths = {"max_source_length": data_args.max_length, "max_target_length": data_args.max_target_length}
        shared = {"num_beams": data_args.num_beams, "max_tokens": data_args.max_tokens}
        pairs = PairArguments(source_lang=text, target_lang=label, **lengths, **shared)
        args.metric_for_best_model = "chrf"
        train_translator(target, model, tokenizer, args, pairs, splits, say=say)
    else:
        names = checkpoint_classes(ModelArguments(model_name_or_path=data_args.model_name_or_path))
        splits, _ = encode_labels(splits, label, names=names)
        train_classifier(target, model, tokenizer, args, data_args, splits, say=say)
    after = {name: float(score(rows).mean()) for name, rows in judges.items()}
    better = all(after[name] >= before[name] for name in judges) and after != before
    lines = ["## Trained on", "", "| | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {before[name]:.2f} | {after[name]:.2f} |" for name in judges]
    if better:
        return [*lines, "", f"The new model is better and is kept: {target}"]
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        shutil.rmtree(target)
    return [*lines, "", "The new model is not better on both; the old one stays, and the new one is gone."]


if __name__ == "__main__":
    run(main)
