"""Compare classifiers on one data set: quality, size, latency and throughput, over several seeds.

    python recipes/comparison.py

trains an RNN, an LSTM, a GRU, a CNN and a small Transformer on embedded, synthetic reviews, as
configs/comparison_demo.yaml says. For your own data and models, with every flag of transformers' TrainingArguments; a
YAML file may come first:

    python recipes/comparison.py recipes/configs/comparison_trec.yaml --train_file data/train.tsv \
        --test_file data/test.tsv --pretrained bert-base-uncased --output_dir outputs/comparison

All models get the same rows and the same number of epochs. table.md, table.csv and trade_off.png show the results:
mean and standard deviation of the scores, parameters, file size, latency, throughput, training time.
"""

import csv
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from accelerate import PartialState
from datasets import disable_progress_bars
from transformers import set_seed

from hfseq import json_files
from hfseq.errors import InputError
from hfseq.inference import benchmark
from hfseq.plots import plot_trade_off
from hfseq.tasks.arguments import SingleLabelArguments
from hfseq.tasks.classification import Classification
from hfseq.training import cli
from hfseq.training.arguments import ModelArguments, RecipeArguments
from hfseq.training.reporting import save_results
from hfseq.training.run import begin, fit, new_model, score_baseline, score_model

DEMO = Path(__file__).parent / "configs" / "comparison_demo.yaml"
MODEL = ("model_type", "model_name_or_path", "config_overrides", "tokenizer_model", "vocab_size", "lowercase")
COLUMNS = ("accuracy", "accuracy_std", "f1", "parameters", "file_mb", "ms_a_text", "texts_a_second", "train_seconds")
TRAINING = ("learning_rate", "num_train_epochs", "weight_decay", "warmup_steps")


@dataclass
class ComparisonArguments(SingleLabelArguments):
    """Texts, classes, and the models to compare."""

    models: dict | None = field(
        default=None,
        metadata={
            "help": "Name to model: {LSTM: {model_type: hfseq_lstm, learning_rate: 2e-3}, MiniLM: "
            f"{{model_name_or_path: DIR}}}}, with any of {', '.join((*MODEL, *TRAINING))}."
        },
    )
    pretrained: list[str] | None = field(
        default=None, metadata={"help": "Checkpoints to compare as well, with --pretrained_learning_rate."}
    )
    pretrained_learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate of --pretrained."})
    num_seeds: int = field(default=3, metadata={"help": "Runs of each model, with --seed and the next seeds."})
    speed_texts: int = field(default=200, metadata={"help": "Test texts that speed is measured on."})

    def __post_init__(self) -> None:
        """Check the models."""
        super().__post_init__()
        for name, model in (self.models or {}).items():
            if not json_files.is_plain_name(str(name)):
                raise ValueError(f"models: {name!r} names a folder of runs, so give a plain name")
            if not isinstance(model, dict) or not ("model_type" in model) ^ ("model_name_or_path" in model):
                raise ValueError(f"models: {name} needs a model_type or a model_name_or_path")
            if unknown := sorted(model.keys() - {*MODEL, *TRAINING}):
                known = ", ".join((*MODEL, *TRAINING))
                raise ValueError(f"models: {name} has an unknown {unknown[0]}; there are {known}")
            for setting in model.keys() & set(TRAINING):
                try:
                    model[setting] = float(model[setting])
                except (TypeError, ValueError):
                    raise ValueError(f"models: {name}: {setting} {model[setting]!r} is not a number") from None


ARGUMENTS = (ModelArguments, ComparisonArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, Classification, demo=DEMO, unless=("--models",))
    data, args, root = run.data, run.args, Path(run.args.output_dir)
    disable_progress_bars()  # of encoding, which comes often; that of training stays
    if args.hp_search or args.do_predict or args.push_to_hub or run.model.model_name_or_path:
        flags = "--hp_search, --do_predict, --push_to_hub and --model_name_or_path"
        raise InputError(f"{flags}: a comparison trains `models`, each of which hfseq.publish can publish")
    models = dict(data.models or {})
    for name in data.pretrained or ():
        models[Path(name).name] = {"model_name_or_path": name, "learning_rate": data.pretrained_learning_rate}
    if not models:
        raise InputError("nothing to compare: a YAML file names `models`, or --pretrained some checkpoints")

    # 2. Data: texts, and their classes as numbers.
    task = Classification(data, args)
    task.read()
    run.log(task.describe())
    split = task.test_split

    # 3. Each model with each seed: made, trained, scored. Finished runs are kept if the comparison is interrupted.
    run.prepare([str(path.relative_to(root)) for path in root.glob("runs/*")])
    results: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for name, settings in models.items():
        own = replace(run.model, **{"model_type": None} | {key: settings[key] for key in MODEL if key in settings})
        for seed in range(args.seed, args.seed + data.num_seeds):
            directory = root / "runs" / f"{name}-{seed}"
            done = directory / "scores.json"
            if run.resume and done.is_file():
                results[name].append(json_files.read_object(done))
                continue
            set_seed(seed)
            model, tokenizer, _ = new_model(replace(run, model=own), task)
            training = {key: settings[key] for key in TRAINING if key in settings}
            seconds = fit(run, task, model, tokenizer, directory, seed=seed, **training)
            results[name].append(score_model(task, model, tokenizer, split) | {"train_seconds": seconds})
            if PartialState().is_main_process:
                done.write_text(json.dumps(results[name][-1]), encoding="utf-8")
            run.log(f"{name}, seed {seed}: {split} accuracy {results[name][-1]['accuracy']:.2f}")

    # 4. Speed: the first run of each model, in turns on the same machine.
    if not PartialState().is_main_process:
        return
    trained: dict[str, Any] = {}
    for name in models:
        directory = root / "runs" / f"{name}-{args.seed}"
        model, tokenizer, _ = new_model(replace(run, model=ModelArguments(str(directory))), task)
        trained[name] = (
            benchmark.text_classifier(model.to(args.device), tokenizer, data.max_length),
            model,
            directory,
        )
    costs = benchmark.measure_costs(trained, task.sources(split)[: data.speed_texts])

    # 5. Reports.
    table: dict[str, dict[str, Any]] = {}
    shown: dict[str, dict[str, Any]] = {}
    for name, found in results.items():
        means = {key: mean(one[key] for one in found) for key in found[0]}
        spread = stdev(one["accuracy"] for one in found) if len(found) > 1 else 0.0
        table[name] = means | {"accuracy_std": spread} | costs[name]
        shown[name] = means | {"accuracy": f"{means['accuracy']:.2f} ± {spread:.2f}"}
    (majority,) = score_baseline(task, split).values()
    titles = {"accuracy": "accuracy", "f1": "macro F1", "train_seconds": "training, s"}
    lines = benchmark.cost_table(shown | {"majority": {**majority, "train_seconds": ""}}, costs, titles)
    (root / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with open(root / "table.csv", "w", newline="", encoding="utf-8") as file:
        rows = ([name, *(row[key] for key in COLUMNS)] for name, row in table.items())
        csv.writer(file).writerows([["model", *COLUMNS], *rows])
    axes = ([row[key] for row in table.values()] for key in ("accuracy", "ms_a_text", "parameters"))
    spreads = [row["accuracy_std"] for row in table.values()] if data.num_seeds > 1 else None
    plot_trade_off(list(table), *axes, root / "trade_off.png", spreads=spreads)
    flat = {f"{split}_{name}_{key}": value for name, row in table.items() for key, value in row.items()}
    save_results(args.output_dir, flat | {f"{split}_majority_accuracy": majority["accuracy"]})
    seeds = f"{data.num_seeds} seed{'s' * (data.num_seeds > 1)} each"
    print("\n".join([f"\n{split}: {len(task.references[split])} texts, {seeds}", *lines]))
    print(f"\ntables, plot and models are in {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
