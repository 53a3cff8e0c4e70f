"""Hyperparameter search with optuna.

A recipe's YAML names the hyperparameters and their values:

    hp_space:
      learning_rate: {low: 1e-4, high: 1e-2, log: true}
      num_train_epochs: {low: 2, high: 8, step: 1}
      config_overrides.dropout: {low: 0.0, high: 0.5}
      config_overrides.hidden_size: [128, 256, 512]

A name is one of `SEARCHABLE`, or a config field of the new model prefixed with `config_overrides.`. Trials save no
model: `recipe.py OUTPUT_DIR/best_trial.yaml` trains the best one again, with the same result. Trials are stored in
`search.db`, so that an interrupted search can be resumed and ends like an uninterrupted one. optuna comes with the
`hpo` extra.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import PreTrainedConfig, PreTrainedModel, SchedulerType, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import HPSearchBackend, SaveStrategy
from transformers.training_args import OptimizerNames

from hfseq.errors import InputError, blaming, did_you_mean, one_line, require
from hfseq.training.callbacks import StopOnNaN
from hfseq.training.cli import explicit_values
from hfseq.training.trainer import SequenceTrainer, SmoothedCrossEntropy

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEARCHABLE: dict[str, type] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing_factor"), float),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "warmup_steps", "num_train_epochs"), float),
    **dict.fromkeys(("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"), int),
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}
"""Training arguments that can be searched; the others only take effect when a trainer is constructed."""

_POSITIVE = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
_CONFIG = "config_overrides."
_STORAGE, _TABLE, _BEST = "search.db", "trials.csv", "best_trial.yaml"


@dataclass(frozen=True)
class Trial:
    """Result of one trial.

    Attributes:
        number: Number of the trial from 0, counting interrupted ones.
        state: `complete`, `pruned` (unpromising, or failed to train: see `reason`) or `fail` (interrupted).
        value: Objective; the last reported one if pruned, None if there is none.
        params: Names of the space to values.
        reason: Why it could not be trained; empty otherwise.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Any]
    reason: str


def parse_space(
    space: Mapping[str, Any], args: TrainingArguments, config: PreTrainedConfig, *, max_tokens: int | None = None
) -> dict[str, "BaseDistribution"]:
    """Validate a search space, before anything is written.

    Args:
        space: Name to `{low, high}` with `log` or `step`, or to a list of choices; numbers may be strings, because
            YAML 1.1 reads `1e-4` as one.
        args: Training arguments of the trainer.
        config: Config of a model without the overrides of a trial; its values determine the types of the fields.
        max_tokens: Token budget of the trainer.

    Returns:
        Name to optuna distribution, in the order given.

    Raises:
        InputError: optuna is not installed, the run does not support a search, or a name or its values are invalid or
            have no effect.
    """
    optuna = _optuna()
    if args.world_size > 1:
        raise InputError("hp_space: a search runs in one process, since transformers prunes only in the first one")
    if args.eval_strategy == "no":
        raise InputError("hp_space: a search needs evaluations; leave --eval_strategy no out")
    if not isinstance(space, Mapping) or not space:
        raise InputError("hp_space is empty; give lines such as `learning_rate: {low: 1e-4, high: 1e-2, log: true}`")
    without_effect = {
        "num_train_epochs": args.max_steps > 0 and "--max_steps is given",
        "per_device_train_batch_size": max_tokens is not None and "--max_tokens determines the batches",
        "label_smoothing_factor": _metric(args) == "eval_loss" and "losses of different smoothing are not comparable",
        f"{_CONFIG}pointer_generator": "the rows are encoded for it before the first trial",
    }
    fields = {*config.to_dict(), *config.attribute_map}
    parsed = {}
    for key, spec in space.items():
        name = str(key)
        where, field = f"hp_space: {name}", name.removeprefix(_CONFIG)
        if reason := without_effect.get(name):
            raise InputError(f"{where} cannot be searched: {reason}")
        if name not in SEARCHABLE and field == name:
            hint = f"; write {_CONFIG}{name}" if name in fields else did_you_mean(name, SEARCHABLE)
            raise InputError(f"{where} cannot be searched{hint}")
        if name not in SEARCHABLE and field not in fields:
            hint = did_you_mean(field, fields)
            raise InputError(f"hp_space: {type(config).__name__} has no field {field!r}{hint}")
        value = getattr(config, field, None)
        kind = type(value) if isinstance(value, bool | int | float | str) else None
        parsed[name] = _distribution(optuna, where, spec, SEARCHABLE.get(name, kind))
        if name in SEARCHABLE:
            _check_sign(where, parsed[name], above=name in _POSITIVE)
    return parsed


def search(
    trainer: SequenceTrainer,
    make_model: Callable[[dict[str, Any]], PreTrainedModel],
    space: Mapping[str, "BaseDistribution"],
    *,
    n_trials: int,
    resume: bool = False,
    say: Callable[[str], Any] = print,
) -> list[Trial]:
    """Train `n_trials` times with values from `space`; afterwards the trainer has no model.

    The objective is `metric_for_best_model`: of the best evaluation if `load_best_model_at_end`, else of the last.
    Values are sampled by TPE (Bergstra et al. 2011), seeded by `args.seed` and the number of the trial. From its
    second evaluation on, a trial is pruned if its best value so far is worse than the median of the finished ones at
    that step; the first quarter of the trials, at most five, are never pruned. Trials that evaluate at other steps
    (because of another batch size) are not compared. A trial that cannot be trained (an impossible config, a NaN or
    infinite loss, out of memory) counts as pruned.

    Args:
        trainer: Trainer as for a single run; its data, callbacks and arguments serve every trial.
        make_model: Makes a new model of the recipe, given config overrides beyond those of the recipe.
        space: Search space from `parse_space`.
        n_trials: Total number of trials, including those before an interruption.
        resume: Resume the search in `output_dir`, if there is one; otherwise it is deleted.
        say: Prints a line for each trial.

    Returns:
        All trials of the search, in order.

    Raises:
        InputError: `n_trials` is below 1, or the search to resume had other settings.
    """
    optuna = _optuna()
    args, state = trainer.args, optuna.trial.TrialState
    if n_trials < 1:
        raise InputError(f"a search needs at least one trial; got {n_trials}")
    study = _open(optuna, args, space, resume)
    for interrupted in study.get_trials(states=(state.RUNNING,)):
        study.tell(interrupted.number, state=state.FAIL)
    done = len(study.get_trials(states=(state.COMPLETE, state.PRUNED)))

    def model_init(trial: Any) -> PreTrainedModel:
        model = make_model(_split(trial.params)[1])
        # A trainer that is given a model seeds after it was made, one with `model_init` before: without this, the
        # best trial could not be reproduced.
        set_seed(args.seed)
        return model

    def hp_space(trial: Any) -> dict[str, Any]:
        values, _ = _split(trial.params)
        if (smoothing := values.get("label_smoothing_factor")) is not None:
            trainer.label_smoother = SmoothedCrossEntropy(epsilon=smoothing) if smoothing else None
        return values

    def objective(metrics: dict[str, float]) -> float:
        value, best = metrics[_metric(args)], trainer.state.best_metric
        if not args.load_best_model_at_end or best is None:
            return value
        return max(value, best) if args.greater_is_better else min(value, best)

    # The Trainer casts a value to the type of the current one, and some floats are given as the integer 0.
    for name, kind in SEARCHABLE.items():
        if name in space and kind is float:
            setattr(args, name, float(getattr(args, name)))
    study.pruner = optuna.pruners.MedianPruner(
        n_startup_trials=min(5, math.ceil(n_trials / 4)), n_warmup_steps=_steps_of_evaluation(trainer) + 1
    )
    save_strategy, args.save_strategy = args.save_strategy, SaveStrategy.NO
    # With these, as `Trainer.hyperparameter_search` sets them, `train(trial=...)` is a trial.
    trainer.model_init, trainer.hp_search_backend = model_init, HPSearchBackend.OPTUNA  # type: ignore[assignment]
    trainer.hp_space, trainer.compute_objective = hp_space, objective
    try:
        for index in range(done, n_trials):
            # Seeded by the trial, so that a resumed search samples like an uninterrupted one.
            study.sampler = optuna.samplers.TPESampler(seed=args.seed + index)
            _run_trial(optuna, trainer, study, space)
            say(f"trial {index + 1} of {n_trials}: {_line(_trials(study, space)[-1])}")
    finally:
        trainer.model_init = trainer.hp_search_backend = None  # type: ignore[assignment]
        args.save_strategy = save_strategy
    return _trials(study, space)


def _run_trial(optuna: ModuleType, trainer: Any, study: Any, space: Mapping[str, "BaseDistribution"]) -> None:
    trial = study.ask(dict(space))
    # A loss that it has seen may be another trial's.
    trainer.remove_callback(trainer.stop_on_nan)
    trainer.stop_on_nan = StopOnNaN()
    trainer.add_callback(trainer.stop_on_nan)
    trainer.objective = None
    try:
        trainer.train(trial=trial)
        if trainer.objective is None:  # training ended before the first evaluation
            trainer.objective = trainer.compute_objective(trainer.evaluate())
        study.tell(trial, trainer.objective)
    except (optuna.TrialPruned, InputError, torch.OutOfMemoryError) as error:
        if not isinstance(error, optuna.TrialPruned):
            trial.set_user_attr("reason", one_line(error))
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    trainer.model, trainer.model_wrapped = trainer.accelerator.free_memory(trainer.model, trainer.model_wrapped)


def best_trial(trials: Sequence[Trial], greater_is_better: bool) -> Trial:
    """Return the complete trial with the best value, the earliest of equals.

    Raises:
        InputError: No trial is complete.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        reason = next((f"; trial {trial.number}: {trial.reason}" for trial in trials if trial.reason), "")
        raise InputError(f"none of the {len(trials)} trials of hp_space was completed{reason}")
    sign = -1 if greater_is_better else 1
    return min(complete, key=lambda trial: sign * trial.value)  # type: ignore[operator]


def report_search(
    trials: Sequence[Trial], args: TrainingArguments, dataclass_types: Sequence[type], argv: Sequence[str] | None
) -> str:
    """Write `trials.csv` and `best_trial.yaml` into the output directory.

    Args:
        trials: Trials from `search`.
        args: Training arguments of the trainer.
        dataclass_types: Dataclasses that the recipe passed to `parse_config`.
        argv: Arguments that the recipe passed to `parse_config`; the fields set there go into the YAML file.

    Returns:
        A table of all trials and the next command, to print.

    Raises:
        InputError: No trial is complete.
    """
    root = Path(str(args.output_dir))
    write_trials(root / _TABLE, trials)
    best = best_trial(trials, bool(args.greater_is_better))
    write_best_config(root / _BEST, dataclass_types, argv, best.params)
    lines = [f"{len(trials)} trials, by {_metric(args).removeprefix('eval_')}:"]
    lines += [f"{'*' if trial is best else ' '} {trial.number:4}  {_line(trial)}" for trial in trials]
    lines.append(f"the best is {best.number}; to train it, run the same recipe with {root / _BEST}")
    return "\n".join(lines)


def write_trials(path: str | os.PathLike, trials: Sequence[Trial]) -> None:
    """Write a CSV file with columns `number`, `value`, `state`, one for each name of the space, and `reason`."""
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, ["number", "value", "state", *names, "reason"], extrasaction="ignore")
        table.writeheader()
        table.writerows(vars(trial) | trial.params for trial in trials)


def write_best_config(
    path: str | os.PathLike, dataclass_types: Sequence[type], argv: Sequence[str] | None, params: Mapping[str, Any]
) -> None:
    """Write a YAML file that makes the recipe repeat a trial.

    It contains the fields set in `argv`, except those of the search (`hp_...`), `resume_from_checkpoint` and secrets
    (`..._token`), and the values of the trial. Its output directory is `best_trial` below that of the search.

    Args:
        path: Path of the file.
        dataclass_types: Dataclasses that the recipe passed to `parse_config`.
        argv: Arguments that the recipe passed to `parse_config`.
        params: Values of the trial.
    """
    fields = {
        name: value
        for name, value in explicit_values(dataclass_types, argv).items()
        if not name.startswith("hp_") and not name.endswith("_token") and name != "resume_from_checkpoint"
    }
    values, overrides = _split(params)
    fields |= {"output_dir": str(Path(path).parent / "best_trial"), **values}
    if overrides:
        fields["config_overrides"] = {**(fields.get("config_overrides") or {}), **overrides}
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=119)
    Path(path).write_text(f"# Best trial of a search; run the same recipe with this file.\n{text}", encoding="utf-8")


def _split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the training arguments and the config fields of a trial."""
    fields = {name.removeprefix(_CONFIG): value for name, value in params.items() if name.startswith(_CONFIG)}
    return {name: value for name, value in params.items() if name in SEARCHABLE}, fields


def _optuna() -> ModuleType:
    require("optuna", extra="hpo", use="hp_space")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _metric(args: TrainingArguments) -> str:
    return f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"


def _distribution(optuna: ModuleType, where: str, spec: Any, kind: type | None) -> "BaseDistribution":
    """Parse a range or a list of choices.

    Args:
        optuna: The package.
        where: Prefix of error messages.
        spec: The range or list as given.
        kind: Type of the values: int, float, bool, str or an enumeration; None if unknown.
    """
    with blaming(where):
        if isinstance(spec, Sequence) and not isinstance(spec, str):
            return optuna.distributions.CategoricalDistribution(_choices(where, spec, kind))
        bounds = _bounds(where, spec, kind)
        if all(isinstance(bound, int) for bound in bounds.values()):
            return optuna.distributions.IntDistribution(**bounds)
        return optuna.distributions.FloatDistribution(**bounds)


def _bounds(where: str, spec: Any, kind: type | None) -> dict[str, Any]:
    """Return `low`, `high` and possibly `step` and `log` of a range."""
    if not isinstance(spec, Mapping):
        raise InputError(f"{where}: {spec!r} is not a range; give {{low: …, high: …}} or a list of choices")
    if unknown := sorted(map(str, spec.keys() - {"low", "high", "step", "log"})):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; a range has low, high, and step or log")
    if missing := [key for key in ("low", "high") if key not in spec]:
        raise InputError(f"{where}: a range needs low and high; {missing[0]} is missing")
    if kind not in (int, float, None):
        raise InputError(f"{where} is not numeric; give a list of choices")
    log = spec.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{where}: log is true or false, not {log!r}")
    if log and "step" in spec:
        raise InputError(f"{where}: a logarithmic range has no step; leave one out")
    return {key: log if key == "log" else _number(f"{where}: {key}", spec[key], kind) for key in spec}


def _choices(where: str, values: Sequence[Any], kind: type | None) -> Sequence[Any]:
    if kind is not None and issubclass(kind, Enum):
        known = [member.value for member in kind]
        if unknown := [value for value in values if value not in known]:
            raise InputError(f"{where}: unknown value {unknown[0]!r}{did_you_mean(str(unknown[0]), known)}")
        return values
    if kind in (int, float):
        return [_number(where, value, kind) for value in values]
    if kind is None:
        with suppress(InputError):
            numbers = [_number(where, value, None) for value in values]
            return numbers if all(isinstance(number, int) for number in numbers) else list(map(float, numbers))
        kind = bool if isinstance(values[0], bool) else str
    if wrong := [value for value in values if not isinstance(value, kind)]:
        name = {bool: "true or false", str: "text"}[kind]
        raise InputError(f"{where}: the choices of a list are of one type; {wrong[0]!r} is not {name}")
    return values


def _number(where: str, value: Any, kind: type | None) -> int | float:
    """Return a number of type `kind`; if that is None, an integer if it is written as one."""
    number = value
    if isinstance(value, str):
        for convert in (float, int):
            with suppress(ValueError):
                number = convert(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise InputError(f"{where}: {value!r} is not a number")
    if kind is int and number != int(number):
        raise InputError(f"{where}: {value!r} is not a whole number")
    return number if kind is None else kind(number)


def _check_sign(where: str, distribution: Any, *, above: bool) -> None:
    for value in getattr(distribution, "choices", None) or (distribution.low,):
        if isinstance(value, int | float) and (value < 0 or above and value == 0):
            raise InputError(f"{where}: {value} is too small; it must be {'above' if above else 'at least'} 0")


def _open(optuna: ModuleType, args: TrainingArguments, space: Mapping[str, "BaseDistribution"], resume: bool) -> Any:
    """Create or open the study."""
    path = Path(str(args.output_dir)) / _STORAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        path.unlink(missing_ok=True)
    direction = "maximize" if args.greater_is_better else "minimize"
    study = optuna.create_study(
        study_name="search", storage=f"sqlite:///{path}", load_if_exists=True, direction=direction
    )
    what = json.dumps([_metric(args), direction, args.seed, {name: repr(spec) for name, spec in space.items()}])
    if study.user_attrs.setdefault("search", what) != what:
        raise InputError(f"the search in {path} had another hp_space, metric or seed; give another --output_dir")
    study.set_user_attr("search", what)
    return study


def _steps_of_evaluation(trainer: Trainer) -> int:
    """Return the number of optimizer steps before the first evaluation, as the arguments stand."""
    _, steps_of_epoch, *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if trainer.args.eval_strategy == "epoch":
        return steps_of_epoch
    every = trainer.args.eval_steps or 1
    return int(every) if every >= 1 else math.ceil(every * steps)


def _trials(study: Any, space: Mapping[str, "BaseDistribution"]) -> list[Trial]:
    def of(trial: Any) -> Trial:
        params = {name: trial.params[name] for name in space if name in trial.params}
        return Trial(trial.number, trial.state.name.lower(), trial.value, params, trial.user_attrs.get("reason", ""))

    return list(map(of, study.get_trials(deepcopy=False)))


def _line(trial: Trial) -> str:
    objective = "-" if trial.value is None else f"{trial.value:.5g}"
    values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in trial.params.items()}
    params = ", ".join(f"{name.removeprefix(_CONFIG)} {value}" for name, value in values.items())
    return f"{objective:>9}  {trial.state:9}{params}{f'  ({trial.reason})' if trial.reason else ''}"
