"""Searches that prune, go on after an interruption, and whose best trial is repeated from its YAML file."""

import csv
import sys
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import datasets
import optuna
import pytest
import torch
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from transformers import AutoModelForTokenClassification, EarlyStoppingCallback, TrainerCallback, set_seed

from hfseq import LstmConfig
from hfseq.errors import InputError
from hfseq.training.arguments import ModelArguments, RecipeArguments
from hfseq.training.cli import parse_config
from hfseq.training.search import (
    SEARCHABLE,
    Trial,
    best_trial,
    parse_space,
    report_search,
    search,
    write_best_config,
)
from hfseq.training.trainer import SequenceTrainer


@dataclass
class Options:
    hp_trials: int = 5
    patience: int | None = None


@dataclass
class Arguments(RecipeArguments):
    metrics = ("accuracy", "worst")
    note: str | None = field(default=None)


KINDS = (ModelArguments, Options, Arguments)


class Seen(TrainerCallback):
    """Training arguments and validation losses of each run."""

    def __init__(self):
        self.runs = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.runs.append(SimpleNamespace(args={name: getattr(args, name) for name in SEARCHABLE}, losses=[]))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.runs[-1].losses.append(metrics["eval_loss"])


def recipe(argv, spoil=None, say=lambda line: None):
    """A recipe in small: each token's label is whether the one before is odd. Gives the trials, or the best score.

    Args:
        argv: as a recipe's.
        spoil: called with a trial's index and its model before it is trained.
        say: gets what is printed.
    """
    model_args, options, args = parse_config(KINDS, argv)
    seen = Seen()
    set_seed(args.seed)
    ids = torch.randint(3, 20, (40, 5), generator=torch.Generator().manual_seed(0))
    rows = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids.roll(1, 1) % 2).tolist()})

    def make_model(overrides):
        fields = {
            "vocab_size": 20,
            "hidden_size": 8,
            "dropout": 0.1,
            **(model_args.config_overrides or {}),
            **overrides,
        }
        try:
            model = AutoModelForTokenClassification.from_config(LstmConfig(**fields))
        except ValueError as error:
            raise InputError(str(error)) from error
        if spoil is not None:
            spoil(len(seen.runs), model)
        return model

    def compute_metrics(output):
        right = (output.predictions.argmax(-1) == output.label_ids).mean()
        return {"accuracy": right, "worst": -output.predictions.max()}

    model = make_model({})
    space = args.hp_space and parse_space(args.hp_space, args, model.config)
    trainer = SequenceTrainer(
        model=model,
        args=args,
        train_dataset=rows.select(range(24)),
        eval_dataset=rows.select(range(24, 40)),
        compute_metrics=compute_metrics,
        callbacks=[seen, *([EarlyStoppingCallback(options.patience)] if options.patience else [])],
    )
    if space:
        resume = args.resume_from_checkpoint is not None
        trials = search(trainer, make_model, space, n_trials=options.hp_trials, resume=resume, say=say)
        say(report_search(trials, args, KINDS, argv))
        return SimpleNamespace(trials=trials, trainer=trainer, runs=seen.runs)
    trainer.train()
    return SimpleNamespace(best=trainer.state.best_metric, runs=seen.runs, trainer=trainer)


def write_config(directory, **fields):
    """Write a YAML file, and give its path; `output_dir` is `run` beside it."""
    number = len(list(directory.glob("*.yaml")))
    path = directory / f"config{number}.yaml"
    common = {
        "output_dir": str(directory / "run"),
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "metric_for_best_model": "loss",
        "num_train_epochs": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 1,
    }
    path.write_text(yaml.safe_dump({**common, **fields}, sort_keys=False))
    return str(path)


@pytest.fixture
def config(tmp_path):
    return partial(write_config, tmp_path)


UNSAVED = {"metric_for_best_model": "accuracy", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory):
    return recipe([write_config(tmp_path_factory.mktemp("plain"), **UNSAVED)]).runs[0].losses


SPACE = {
    "learning_rate": {"low": "1e-4", "high": 1e-1, "log": True},
    "config_overrides.dropout": {"low": 0, "high": 0.5},
    "config_overrides.hidden_size": [4, 8, "12"],
    "per_device_train_batch_size": {"low": 4, "high": 8, "step": 4},
}


def test_best_trial_is_repeated_by_its_file(tmp_path, config):
    said = []
    path = config(hp_space=SPACE, hp_trials=4, config_overrides={"num_hidden_layers": 2, "dropout": 0.3}, note="no: ü")
    argv = [path, "--weight_decay", "0.05", "--eval_strategy", "epoch"]
    found = recipe(argv, say=said.append)
    best = best_trial(found.trials, greater_is_better=False)
    assert len({trial.value for trial in found.trials}) == 4
    assert best.value == min(trial.value for trial in found.trials) == min(found.runs[best.number].losses)

    # No trial left a model behind.
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [
        "best_trial.yaml",
        "search.db",
        "trials.csv",
    ]
    written = yaml.safe_load((tmp_path / "run" / "best_trial.yaml").read_text())
    original = yaml.safe_load((tmp_path / "config0.yaml").read_text())
    assert written == {
        **{name: value for name, value in original.items() if not name.startswith("hp_")},
        "weight_decay": 0.05,
        "eval_strategy": "epoch",
        "output_dir": str(tmp_path / "run" / "best_trial"),
        "learning_rate": best.params["learning_rate"],
        "per_device_train_batch_size": best.params["per_device_train_batch_size"],
        "config_overrides": {
            "num_hidden_layers": 2,
            "dropout": best.params["config_overrides.dropout"],
            "hidden_size": best.params["config_overrides.hidden_size"],
        },
    }
    again = recipe([str(tmp_path / "run" / "best_trial.yaml")])
    assert again.best == best.value
    assert again.runs[0].losses == found.runs[best.number].losses
    assert again.trainer.model.config.hidden_size == best.params["config_overrides.hidden_size"]

    # The tables.
    with open(tmp_path / "run" / "trials.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [list(row) for row in table] == [["number", "value", "state", *SPACE, "reason"]] * 4
    assert [float(row["value"]) for row in table] == [trial.value for trial in found.trials]
    assert [float(row["learning_rate"]) for row in table] == [trial.params["learning_rate"] for trial in found.trials]
    assert [line.split(":")[0] for line in said[:4]] == [f"trial {number} of 4" for number in (1, 2, 3, 4)]
    starred = [line for line in said[4].split("\n") if line.startswith("*")]
    assert [line.split()[1] for line in starred] == [str(best.number)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.03),
        ("weight_decay", 0.4),
        ("max_grad_norm", 0.01),
        ("label_smoothing_factor", 0.3),
        ("adam_beta1", 0.5),
        ("adam_beta2", 0.5),
        ("adam_epsilon", 0.01),
        ("warmup_steps", 0.5),
        ("num_train_epochs", 1.5),
        ("max_steps", 4),
        ("per_device_train_batch_size", 5),
        ("gradient_accumulation_steps", 2),
        ("lr_scheduler_type", "constant"),
        ("optim", "sgd"),
    ],
)
def test_what_is_searched_takes_effect(config, plain_losses, name, value):
    # A trial is the run that has its value as a flag, and not the run that has not.
    found = recipe([config(hp_space={name: [value]}, hp_trials=1, **UNSAVED)])
    with_flag = recipe([config(**UNSAVED), f"--{name}", str(value)])
    assert found.runs[0].args == with_flag.runs[0].args
    assert found.runs[0].losses == with_flag.runs[0].losses != plain_losses


def test_every_searchable_argument_is_tested():
    cases = test_what_is_searched_takes_effect.pytestmark[0].args[1]
    assert {name for name, _ in cases} == SEARCHABLE.keys()


def ruin(index):
    """Spoils the trial `index`: its loss is high and stays so. The first model is the recipe's own."""

    def spoil(trial, model):
        if trial == index:
            with torch.no_grad():
                model.classifier.weight.zero_()
                model.classifier.bias.copy_(torch.tensor([500.0, 0.0]))

    return spoil


def test_a_losing_trial_is_pruned_after_its_second_evaluation(config):
    space = {"weight_decay": [0.0, 0.001, 0.002, 0.003]}
    found = recipe([config(hp_space=space, num_train_epochs=4)], spoil=ruin(3))
    assert [trial.state for trial in found.trials[:2]] == ["complete"] * 2
    assert found.trials[3].state == "pruned"
    assert found.trials[3].value > 10 > found.trials[0].value
    assert [len(run.losses) for run in found.runs[:2]] == [4, 4]
    assert len(found.runs[3].losses) == 2
    # The second of five trials may not be pruned, however bad.
    found = recipe([config(hp_space=space, num_train_epochs=4)], spoil=ruin(1))
    assert found.trials[1].state == "complete"


def poison(*indices):
    def spoil(trial, model):
        if trial in indices:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))

    return spoil


def test_a_trial_that_cannot_be_trained_does_not_end_the_search(config):
    seen = iter(range(9))
    # The recipe's own model is the first.
    calls = lambda trial, model: poison(1, 3)(next(seen), model)  # noqa: E731
    found = recipe([config(hp_space={"learning_rate": [0.01]}, hp_trials=4)], spoil=calls)
    assert [trial.state for trial in found.trials] == ["pruned", "complete", "pruned", "complete"]
    assert found.trials[0].reason.startswith("NaN/inf loss at step 1")
    assert found.trials[0].value is None and not found.trials[1].reason

    with pytest.raises(InputError, match="none of the 2 trials of hp_space was completed; trial 0: .*hidden_size"):
        recipe([config(hp_space={"config_overrides.hidden_size": [-4]}, hp_trials=2)])


def test_an_error_of_the_program_ends_the_search(config):
    def spoil(trial, model):
        if trial == 1:
            raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        recipe([config(hp_space={"learning_rate": [0.01]})], spoil=spoil)


def interrupt_at(index):
    def spoil(trial, model):
        if trial == index:
            raise KeyboardInterrupt

    return spoil


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(config, tmp_path):
    argv = [config(hp_space=SPACE, hp_trials=5, num_train_epochs=2)]
    whole = recipe(argv).trials
    assert len({trial.params["learning_rate"] for trial in whole}) == 5

    with pytest.raises(KeyboardInterrupt):
        recipe(argv, spoil=interrupt_at(3))
    storage = f"sqlite:///{tmp_path / 'run' / 'search.db'}"
    study = optuna.load_study(study_name="search", storage=storage)
    assert [trial.state.name == "FAIL" for trial in study.trials] == [False] * 3 + [True]
    # A process that is killed leaves its trial as running.
    study.ask({"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)})
    resumed = recipe([*argv, "--resume_from_checkpoint", "last"])
    assert len(resumed.runs) == 2
    assert [trial.state for trial in resumed.trials].count("fail") == 2
    finished = [trial for trial in resumed.trials if trial.state != "fail"]
    assert [(t.params, t.value, t.state) for t in finished] == [(t.params, t.value, t.state) for t in whole]

    # Nothing is left to do; then one more trial.
    assert recipe([*argv, "--resume_from_checkpoint", "last"]).runs == []
    more = recipe([*argv, "--resume_from_checkpoint", "last", "--hp_trials", "6"])
    assert len(more.runs) == 1
    # Not resumed, it begins again.
    assert recipe([*argv, "--hp_trials", "1"]).trials == whole[:1]
    with pytest.raises(InputError, match="had another hp_space, metric or seed"):
        recipe([*argv, "--resume_from_checkpoint", "last", "--seed", "1"])


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize(("metric", "pick"), [("loss", min), ("worst", max)])
def test_the_objective_is_the_score_of_the_model_that_a_run_keeps(config, best, metric, pick):
    fields = {"metric_for_best_model": metric, "load_best_model_at_end": best, "lr_scheduler_type": "constant"}
    found = recipe([config(hp_space={"learning_rate": [0.3]}, hp_trials=1, num_train_epochs=6, **fields)])
    values = [entry[f"eval_{metric}"] for entry in found.trainer.state.log_history if f"eval_{metric}" in entry]
    assert pick(values) != values[-1]
    assert found.trials[0].value == (pick(values) if best else values[-1])


def test_patience_begins_again_with_each_trial(config):
    space = {"learning_rate": [0.0]}
    found = recipe([config(hp_space=space, hp_trials=3, num_train_epochs=9, patience=2)])
    assert [len(run.losses) for run in found.runs] == [3, 3, 3]


def arguments(tmp_path, **fields):
    fields = {"metric_for_best_model": "loss", "use_cpu": True, **fields}
    return Arguments(output_dir=str(tmp_path), **fields)


@pytest.mark.parametrize(
    ("space", "parsed"),
    [
        ({"learning_rate": {"low": "1e-4", "high": "1", "log": True}}, FloatDistribution(1e-4, 1.0, log=True)),
        ({"num_train_epochs": {"low": 2, "high": 8, "step": 1}}, FloatDistribution(2.0, 8.0, step=1.0)),
        ({"max_steps": {"low": "2", "high": 8.0, "step": 3}}, IntDistribution(2, 8, step=3)),
        ({"weight_decay": [0, "1e-2"]}, CategoricalDistribution((0.0, 0.01))),
        ({"lr_scheduler_type": ["linear", "cosine"]}, CategoricalDistribution(("linear", "cosine"))),
        ({"config_overrides.dropout": {"low": 0, "high": 1}}, FloatDistribution(0.0, 1.0)),
        ({"config_overrides.hidden_size": {"low": 8, "high": 64, "log": True}}, IntDistribution(8, 64, log=True)),
        ({"config_overrides.hidden_size": ["8", 16]}, CategoricalDistribution((8, 16))),
        ({"config_overrides.tie_word_embeddings": [True, False]}, CategoricalDistribution((True, False))),
        ({"config_overrides.attention_type": ["dot", "general"]}, CategoricalDistribution(("dot", "general"))),
        ({"config_overrides.bidirectional": [True, False]}, CategoricalDistribution((True, False))),
        ({"config_overrides.bos_token_id": [1, 2.5]}, CategoricalDistribution((1.0, 2.5))),
    ],
)
def test_spaces(tmp_path, space, parsed):
    config = LstmConfig(vocab_size=20, bos_token_id=None)
    (found,) = parse_space(space, arguments(tmp_path), config).values()
    assert found == parsed
    values = found.choices if isinstance(found, CategoricalDistribution) else (found.low, found.high, found.step)
    wanted = parsed.choices if isinstance(parsed, CategoricalDistribution) else (parsed.low, parsed.high, parsed.step)
    assert list(map(type, values)) == list(map(type, wanted))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "hp_space is empty"),
        ({"lerning_rate": [0.1]}, "lerning_rate cannot be searched; did you mean learning_rate"),
        ({"seed": [1, 2]}, "seed cannot be searched; there are adam_beta1"),
        ({5: [1, 2]}, "5 cannot be searched; there are adam_beta1"),
        ({"config_overrides.hiden_size": [8]}, "LstmConfig has no field 'hiden_size'; did you mean hidden_size"),
        (
            {"hidden_size": [8]},
            "hp_space: hidden_size cannot be searched; write config_overrides.hidden_size",
        ),
        ({"learning_rate": 0.1}, "learning_rate: 0.1 is not a range"),
        ({"learning_rate": "0.1"}, "learning_rate: '0.1' is not a range"),
        ({"learning_rate": {"low": 0.1}}, "needs low and high; high is missing"),
        ({"learning_rate": {"low": 0.1, "high": 1, "lgo": True}}, "unknown key 'lgo'"),
        (
            {"learning_rate": {"low": 1, "high": 0.1}},
            "learning_rate: `low <= high` must hold, but got (low=1.0, high=0.1)",
        ),
        (
            {"learning_rate": {"low": 0, "high": 0.1, "log": True}},
            "learning_rate: `low > 0` must hold for `log=True`, but got (low=0.0",
        ),
        ({"learning_rate": {"low": 0.01, "high": 0.1, "log": True, "step": 0.01}}, "has no step"),
        (
            {"learning_rate": {"low": 0.01, "high": 0.1, "step": 0}},
            "learning_rate: `step > 0` must hold, but got step=0.0",
        ),
        ({"learning_rate": {"low": 0.01, "high": 0.1, "log": "yes"}}, "log is true or false, not 'yes'"),
        ({"learning_rate": {"low": -1, "high": 0.1}}, "-1.0 is too small; it must be at least 0"),
        ({"learning_rate": {"low": "small", "high": 0.1}}, "learning_rate: low: 'small' is not a number"),
        ({"learning_rate": {"low": True, "high": 2}}, "low: True is not a number"),
        ({"learning_rate": {"low": 0.1, "high": ".inf"}}, "high: '.inf' is not a number"),
        ({"learning_rate": {"low": 0.1, "high": float("inf")}}, "high: inf is not a number"),
        ({"learning_rate": []}, "learning_rate: The `choices` must contain one or more elements"),
        ({"learning_rate": [0.1, "big"]}, "learning_rate: 'big' is not a number"),
        ({"num_train_epochs": [0, 1]}, "0.0 is too small; it must be above 0"),
        ({"gradient_accumulation_steps": {"low": 1, "high": 4, "step": 0.5}}, "step: 0.5 is not a whole number"),
        ({"lr_scheduler_type": ["linear", "cosin"]}, "unknown value 'cosin'; did you mean cosine"),
        ({"lr_scheduler_type": {"low": 1, "high": 2}}, "is not numeric; give a list of choices"),
        ({"config_overrides.hidden_size": {"low": 0.5, "high": 8}}, "low: 0.5 is not a whole number"),
        ({"config_overrides.attention_type": ["dot", 3]}, "of one type; 3 is not text"),
        ({"config_overrides.tie_word_embeddings": [True, "no"]}, "'no' is not true or false"),
        ({"config_overrides.bidirectional": [True, 1]}, "1 is not true or false"),
        ({"label_smoothing_factor": [0.0, 0.1]}, "losses of different smoothing are not comparable"),
    ],
)
def test_bad_spaces(tmp_path, space, message):
    with pytest.raises(InputError) as error:
        parse_space(space, arguments(tmp_path), LstmConfig(vocab_size=20))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_runs_that_cannot_be_searched(tmp_path, monkeypatch):
    space, config = {"per_device_train_batch_size": [4], "num_train_epochs": [1]}, LstmConfig(vocab_size=20)
    args = arguments(tmp_path)
    with pytest.raises(InputError, match="batch_size cannot be searched: --max_tokens determines the batches"):
        parse_space(space, args, config, max_tokens=100)
    with pytest.raises(InputError, match="num_train_epochs cannot be searched: --max_steps is given"):
        parse_space(space, arguments(tmp_path, max_steps=3), config)
    with pytest.raises(InputError, match="needs evaluations"):
        parse_space(space, arguments(tmp_path, eval_strategy="no", load_best_model_at_end=False), config)
    with pytest.raises(InputError, match="needs at least one trial; got 0"):
        search(SimpleNamespace(args=args), None, {}, n_trials=0)
    with monkeypatch.context() as patch:
        patch.setattr(Arguments, "world_size", 2)
        with pytest.raises(InputError, match="runs in one process"):
            parse_space(space, args, config)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"hp_space needs optuna: pip install 'hfseq\[hpo\]'"):
        parse_space(space, args, config)


def test_best_trial():
    trials = [Trial(0, "pruned", 9.0, {}, ""), Trial(1, "complete", 2.0, {}, ""), Trial(2, "complete", 2.0, {}, "")]
    trials += [Trial(3, "complete", 1.0, {}, ""), Trial(4, "fail", None, {}, "")]
    assert best_trial(trials, greater_is_better=True) is trials[1]
    assert best_trial(trials, greater_is_better=False) is trials[3]


def test_best_config_keeps_no_secret_and_no_beginning(tmp_path, config):
    argv = [
        config(hp_space={}),
        "--hub_token",
        "secret",
        "--resume_from_checkpoint",
        "last",
        "--eval_strategy",
        "steps",
    ]
    write_best_config(tmp_path / "best_trial.yaml", KINDS, argv, {"learning_rate": 1e-5})
    text = (tmp_path / "best_trial.yaml").read_text()
    assert not any(word in text for word in ("secret", "hub_token", "resume", "hp_", "config_overrides"))
    _, _, args = parse_config(KINDS, [str(tmp_path / "best_trial.yaml"), "--save_strategy", "steps"])
    assert (args.learning_rate, args.eval_strategy, args.report_to) == (1e-5, "steps", [])
