"""Compare models on one data set: quality, size, latency and throughput, over several seeds.

    python recipes/comparison.py

trains an RNN, an LSTM, a GRU, a CNN and a small Transformer on embedded, synthetic reviews, as
configs/comparison_demo.yaml says. For your own data and models, with every flag of transformers' TrainingArguments; a
YAML file may come first:

    python recipes/comparison.py recipes/configs/comparison_trec.yaml --train_file data/train.tsv \
        --test_file data/test.tsv --pretrained bert-base-uncased --output_dir outputs/comparison

--task speech compares recognisers, or with --head classification classifiers of recordings; --task forecasting
compares forecasters, --task recommendation recommenders, --task residue_tagging and sequence_classification models of
DNA and proteins, --task gestures classifiers of clips, --task captions models that describe them:

    python recipes/comparison.py recipes/configs/comparison_speech.yaml
    python recipes/comparison.py recipes/configs/comparison_forecasting.yaml
    python recipes/comparison.py recipes/configs/comparison_recommendation.yaml
    python recipes/comparison.py recipes/configs/comparison_bioinformatics.yaml

All models get the same rows and the same number of epochs. table.md, table.csv and trade_off.png show the results:
mean and standard deviation of the scores (with ↓ where lower is better), parameters, file size, latency, throughput,
training time.
"""

import copy
import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from hfseq import json_files
from hfseq.errors import InputError
from hfseq.hub.model_card import METRICS
from hfseq.inference import benchmark
from hfseq.plots import plot_trade_off
from hfseq.tasks.arguments import DATA_FLAGS
from hfseq.training import cli
from hfseq.training.arguments import LOWER_IS_BETTER
from hfseq.training.comparison import TASKS
from hfseq.training.reporting import save_results
from hfseq.training.run import begin, fit, new_model, score_baseline, score_model

DEMO = Path(__file__).parent / "configs" / "comparison_demo.yaml"
MODEL = ("model_type", "model_name_or_path", "config_overrides", "tokenizer_model", "vocab_size", "lowercase")
TRAINING = ("learning_rate", "num_train_epochs", "weight_decay", "warmup_steps")


@dataclass
class ComparisonFields:
    """The models to compare."""

    task: str = field(default="classification", metadata={"help": f"Task: {', '.join(TASKS)}."})
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
    speed_texts: int = field(default=200, metadata={"help": "Test rows that speed is measured on."})

    def __post_init__(self) -> None:
        """Check the models."""
        super().__post_init__()  # type: ignore[misc]
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


ARGUMENTS = {
    name: (kind.model, make_dataclass("ComparisonArguments", (), bases=(ComparisonFields, kind.data)), kind.training)
    for name, kind in TASKS.items()
}
"""Task to its dataclasses of arguments."""


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    argv = cli.with_default_config(argv, DEMO, unless=("--models", "--task", *DATA_FLAGS))
    name = cli.value_of(argv, "task", "classification")
    if name not in TASKS:
        raise InputError(f"unknown --task {name!r}; there are {', '.join(TASKS)}")
    kind, tasks = TASKS[name], TASKS[name].tasks
    # An unknown head is refused with the other arguments.
    task_class = tasks.get(cli.value_of(argv, "head", "ctc")) if isinstance(tasks, Mapping) else tasks
    run = begin(ARGUMENTS[name], argv, {name: task_class})
    data, args, root = run.data, run.args, Path(run.args.output_dir)
    from datasets import disable_progress_bars  # not above: `--help` needs none of that package

    disable_progress_bars()  # of encoding, which comes often; that of training stays
    if args.hp_search or args.do_predict or args.push_to_hub or run.model.model_name_or_path:
        names = "--hp_search, --do_predict, --push_to_hub and --model_name_or_path"
        raise InputError(f"{names}: a comparison trains `models`, each of which hfseq.publish can publish")
    models = dict(data.models or {})
    for name in data.pretrained or ():
        models[Path(name).name] = {"model_name_or_path": name, "learning_rate": data.pretrained_learning_rate}
    known = {one.name for one in fields(kind.model) if one.init}
    for name, settings in models.items():
        if unknown := sorted({*MODEL} & settings.keys() - known):
            raise InputError(f"models: {name}: --task {data.task} has no {unknown[0]}; leave it out")
    if not models:
        raise InputError("nothing to compare: a YAML file names `models`, or --pretrained some checkpoints")

    # 2. Data: rows of the task.
    task = task_class(data, args).read()
    run.log(task.describe())
    first, *_ = metrics = task.metrics
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
            its_task = copy.copy(task)  # to which a new processor gives its config fields
            model, tokenizer, _ = new_model(replace(run, model=own), its_task, tokenizer=its_task.new_processor(own))
            training = {key: settings[key] for key in TRAINING if key in settings}
            seconds = fit(run, its_task, model, tokenizer, directory, seed=seed, **training)
            scores = score_model(its_task, model, tokenizer, split, **its_task.test_options())
            results[name].append(scores | {"train_seconds": seconds})
            if PartialState().is_main_process:
                done.write_text(json.dumps(results[name][-1]), encoding="utf-8")
            score = benchmark.format_score(results[name][-1][first])
            run.log(f"{name}, seed {seed}: {split} {METRICS[first][0]} {score}")

    # 4. Speed: the first run of each model, in turns on the same machine.
    if not PartialState().is_main_process:
        return
    trained: dict[str, Any] = {}
    inputs: Any = None
    for name in models:
        directory = root / "runs" / f"{name}-{args.seed}"
        saved = replace(run.model, **{key: None for key in MODEL[:3]} | {"model_name_or_path": str(directory)})
        model, tokenizer, _ = new_model(replace(run, model=saved), task)
        timed, inputs = task.timed(model.to(args.device), tokenizer, split, data.speed_texts)
        trained[name] = (timed, model, directory)
    costs = benchmark.measure_costs(trained, inputs)

    # 5. Reports.
    table: dict[str, dict[str, Any]] = {}
    shown: dict[str, dict[str, Any]] = {}
    for name, found in results.items():
        means = {key: mean(one[key] for one in found) for key in found[0]}
        spread = stdev(one[first] for one in found) if len(found) > 1 else None
        table[name] = means | {f"{first}_std": spread or 0.0} | costs[name]
        shown[name] = means | {first: benchmark.format_score(means[first], spread)}
    baselines = score_baseline(task, split)
    titles = {key: METRICS[key][0] + " ↓" * (key in LOWER_IS_BETTER) for key in metrics}
    titles["train_seconds"] = "training, s"
    shown |= {name: {**scores, "train_seconds": ""} for name, scores in baselines.items()}
    lines = benchmark.cost_table(shown, costs, titles, kind.unit)
    (root / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = (first, f"{first}_std", *metrics[1:], *benchmark.COSTS, "train_seconds")
    with open(root / "table.csv", "w", newline="", encoding="utf-8") as file:
        rows = ([name, *(row[key] for key in columns)] for name, row in table.items())
        csv.writer(file).writerows([["model", *columns], *rows])
    axes = ([row[key] for row in table.values()] for key in (first, "ms_a_text", "parameters"))
    spreads = [row[f"{first}_std"] for row in table.values()] if data.num_seeds > 1 else None
    lower = first in LOWER_IS_BETTER
    plot_trade_off(list(table), *axes, root / "trade_off.png", METRICS[first][0], spreads, kind.unit, lower=lower)
    flat = {f"{split}_{name}_{key}": value for name, row in table.items() for key, value in row.items()}
    flat |= {f"{split}_{name}_{first}": scores[first] for name, scores in baselines.items()}
    save_results(args.output_dir, flat)
    seeds = f"{data.num_seeds} seed{'s' * (data.num_seeds > 1)} each"
    print("\n".join([f"\n{split}: {len(task.references[split])} {task.rows}, {seeds}", *lines]))
    print(f"\ntables, plot and models are in {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
