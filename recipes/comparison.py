"""Compare classifiers on one data set: quality, size, latency and throughput, over several seeds.

    python recipes/comparison.py

trains an RNN, an LSTM, a GRU, a CNN and a small Transformer on embedded, synthetic reviews, as
configs/comparison_demo.yaml says. Your own data and models, with every flag of transformers' TrainingArguments; a YAML
file may come first:

    python recipes/comparison.py recipes/configs/comparison_trec.yaml --train_file data/train.tsv \
        --test_file data/test.tsv --pretrained bert-base-uncased --output_dir outputs/comparison

Each model gets the same rows and as many epochs. table.md, table.csv and trade_off.png show what comes of it: mean and
standard deviation of the score, parameters, size of the file, time of one text, texts a second, time of training.
"""

import csv
import json
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from textwrap import shorten
from typing import Any

from accelerate import PartialState
from datasets import disable_progress_bars
from transformers import AutoModelForSequenceClassification, set_seed
from transformers.utils.logging import disable_progress_bar

from hfseq.data.embedded.reviews import review_rows
from hfseq.data.labels import encode_labels, row_classes
from hfseq.data.streaming import tokenizer_texts
from hfseq.errors import InputError, require
from hfseq.inference.benchmark import measure_costs
from hfseq.json_files import read_object
from hfseq.training.arguments import (
    DATA_FLAGS,
    MADE_BY,
    TRAINED_BY,
    ClassificationArguments,
    ComparisonArguments,
    ModelArguments,
)
from hfseq.training.classification import label_array, majority, score_classes
from hfseq.training.classifiers import score_classifier, text_classifier, train_classifier
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dirs, run, with_default_config
from hfseq.training.loading import load_model
from hfseq.training.reports import plot_trade_off
from hfseq.training.results import save_results

DEMO = Path(__file__).parent / "configs" / "comparison_demo.yaml"
KINDS = (ModelArguments, ComparisonArguments, ClassificationArguments)
COLUMNS = ("accuracy", "accuracy_std", "f1", "parameters", "file_mb", "ms_a_text", "texts_a_second", "train_seconds")


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = with_default_config(argv, DEMO, unless=("--models", *DATA_FLAGS))
    model_args, data_args, args = parse_config(KINDS, argv)
    text, label = data_args.text_column, data_args.label_column
    say = partial(PartialState().print, flush=True)  # on the first process only
    disable_progress_bar()  # of saving and loading models, and of encoding, which comes often; that of training stays
    disable_progress_bars()
    if args.hp_search or args.do_predict or model_args.ensemble or model_args.model_name_or_path:
        raise InputError("--hp_search, --do_predict, --ensemble, --model_name_or_path: a comparison trains `models`")
    if args.label_smoothing_factor:
        raise InputError("--label_smoothing_factor is not of comparison; leave it out")
    if args.push_to_hub:
        raise InputError("--push_to_hub: a comparison has many models; hfseq.publish(DIRECTORY, NAME) publishes one")
    models = dict(data_args.models or {})
    for name in data_args.pretrained or ():
        fields = {"model_name_or_path": name, "learning_rate": data_args.pretrained_learning_rate}
        models[Path(name).name] = fields
    if not models:
        raise InputError("nothing to compare: a YAML file names `models`, or --pretrained some checkpoints")
    require("matplotlib", "sklearn", extra="train", use="this recipe")
    resume = args.resume_from_checkpoint is not None
    check_output_dir(args.output_dir, overwrite=args.overwrite_output_dir, resume=resume)

    # 2. Data: texts, and their classes as numbers.
    reading = {"train": True, "seed": args.seed, "label_columns": (label,)}
    reading["classes"] = partial(row_classes, column=label)
    splits = data_args.read((text, label), review_rows, **reading)
    splits, names = encode_labels(splits, label)
    if label_array(splits["validation"]).ndim == 2:
        raise InputError("a comparison is of one class a text; these rows may have several")
    name = "test" if "test" in splits else "validation"
    say(f"{', '.join(f'{len(rows)} {split}' for split, rows in splits.items())} texts of {len(names)} classes")

    # 3. Each model with each seed: made, trained, scored. What is done stays done if the run is interrupted.
    parts = [str(path.relative_to(args.output_dir)) for path in Path(args.output_dir).glob("runs/*")]
    prepare_output_dirs(args.output_dir, parts, overwrite=args.overwrite_output_dir, resume=resume)
    root = Path(args.output_dir)
    fields = {
        "id2label": dict(enumerate(names)),
        "label2id": {class_name: index for index, class_name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    make = partial(load_model, AutoModelForSequenceClassification, default_type="hfseq_lstm", **fields)
    runs: dict[str, list[dict[str, float]]] = {}
    for system, settings in models.items():
        runs[system] = []
        for seed in range(args.seed, args.seed + data_args.num_seeds):
            directory = root / "runs" / f"{system}-{seed}"
            done = directory / "scores.json"
            if resume and done.is_file():
                runs[system].append(read_object(done))
                continue
            set_seed(seed)
            shared = {field: getattr(model_args, field) for field in MADE_BY if field not in ("model_type",)}
            own = ModelArguments(**shared | {field: settings[field] for field in MADE_BY if field in settings})
            model, tokenizer = make(own, tokenizer_texts(splits["train"], (text,)))
            training = {field: settings[field] for field in TRAINED_BY if field in settings}
            seconds = train_classifier(
                directory, model, tokenizer, args, data_args, splits, say=say, seed=seed, **training
            )
            scores = score_classifier(model, tokenizer, splits[name], data_args, args.per_device_eval_batch_size)
            runs[system].append(scores | {"train_seconds": seconds})
            if PartialState().is_main_process:
                done.write_text(json.dumps(runs[system][-1]), encoding="utf-8")
            say(f"{system}, seed {seed}: {name} accuracy {scores['accuracy']:.2f}")

    # 4. Speed: the first run of each model, in turns on the same machine.
    if not PartialState().is_main_process:
        return
    trained: dict[str, Any] = {}
    for system in models:
        directory = root / "runs" / f"{system}-{args.seed}"
        model, tokenizer = make(ModelArguments(model_name_or_path=str(directory)), None)
        classify = text_classifier(model.to(args.device), tokenizer, data_args.max_length)
        trained[system] = (classify, model, directory)
    costs = measure_costs(trained, list(splits[name][text])[: data_args.speed_texts])

    # 5. Reports.
    table = {
        system: {
            "accuracy": mean(found["accuracy"] for found in done),
            "accuracy_std": stdev(found["accuracy"] for found in done) if len(done) > 1 else 0.0,
            "f1": mean(found["f1"] for found in done),
            **costs[system],
            "train_seconds": mean(found["train_seconds"] for found in done),
        }
        for system, done in runs.items()
    }
    guesses = majority(splits["train"]["labels"], len(splits[name]))
    baseline = score_classes(guesses, splits[name]["labels"])
    lines = [
        "| | accuracy | macro F1 | parameters | file, MB | ms a text | texts a second | training, s |",
        "|---" * 8 + "|",
        *(
            f"| {shorten(system, 40)} | {row['accuracy']:.2f} ± {row['accuracy_std']:.2f} | {row['f1']:.2f} "
            f"| {row['parameters']:,} | {row['file_mb']:.4g} | {row['ms_a_text']:.4g} | {row['texts_a_second']:.4g} "
            f"| {row['train_seconds']:.4g} |"
            for system, row in table.items()
        ),
        f"| majority | {baseline['accuracy']:.2f} | {baseline['f1']:.2f} | | | | | |",
    ]
    (root / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with open(root / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", *COLUMNS])
        writer.writerows([system, *(row[column] for column in COLUMNS)] for system, row in table.items())
    columns = {column: [row[column] for row in table.values()] for column in COLUMNS}
    shown = (columns[column] for column in ("accuracy", "ms_a_text", "parameters"))
    spreads = columns["accuracy_std"] if data_args.num_seeds > 1 else None
    plot_trade_off(list(table), *shown, root / "trade_off.png", spreads=spreads)
    results = {f"{name}_{system}_{key}": value for system, row in table.items() for key, value in row.items()}
    save_results(args.output_dir, results | {f"{name}_majority_accuracy": baseline["accuracy"]})
    runs_each = f"{data_args.num_seeds} seed{'s' * (data_args.num_seeds > 1)} each"
    print("\n".join([f"\n{name}: {len(splits[name])} texts, {runs_each}", *lines]))
    print(f"\ntables, plot and models are in {args.output_dir}")


if __name__ == "__main__":
    run(main)
