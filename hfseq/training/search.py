"""Search for hyperparameters with optuna, through `Trainer.hyperparameter_search`.

A recipe's YAML names what is searched, and where:

    hp_space:
      learning_rate: {low: 1e-4, high: 1e-2, log: true}
      num_train_epochs: {low: 2, high: 8, step: 1}
      config_overrides.dropout: {low: 0.0, high: 0.5}
      config_overrides.hidden_size: [128, 256, 512]

A name is one of `SEARCHABLE`, or a config field of the new model behind `config_overrides.`. A trial saves no model:
the best is trained again, with the same result, by `recipe.py OUTPUT_DIR/best_trial.yaml`. Trials are kept in
`search.db`, so that an interrupted search goes on, and ends as if it had not been interrupted. optuna comes with the
`hpo` extra.
"""

import csv
import difflib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from transformers import PreTrainedConfig, PreTrainedModel, SchedulerType, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from hfseq.errors import InputError, one_line, require
from hfseq.training.callbacks import StopOnNaN
from hfseq.training.cli import explicit_values
from hfseq.training.trainer import SequenceTrainer, SmoothedCrossEntropy

logger = logging.getLogger(__name__)

SEARCHABLE: dict[str, type] = {
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "label_smoothing_factor"), float),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "warmup_steps", "num_train_epochs"), float),
    **dict.fromkeys(("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"), int),
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
}
"""Training arguments that can be searched; what others say is settled when a trainer is made."""

_POSITIVE = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
_CONFIG = "config_overrides."
_STORAGE, _TABLE, _BEST = "search.db", "trials.csv", "best_trial.yaml"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: integers if they are, else floats."""

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[bool | int | float | str, ...]


@dataclass(frozen=True)
class Trial:
    """What came of one trial.

    Attributes:
        number: counted from 0, interrupted trials too.
        state: `complete`, `pruned` (it was losing, or could not be trained: see `reason`) or `fail` (interrupted).
        value: the objective; the last known if pruned, None if there is none.
        params: names of the space to values.
        reason: why it could not be trained, else empty.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Any]
    reason: str


def parse_space(
    space: Mapping[str, Any], args: TrainingArguments, config: PreTrainedConfig, *, max_tokens: int | None = None
) -> dict[str, Range | Choice]:
    """Check a search before anything is written, and read its space.

    Args:
        space: name to `{low, high}` with `log` or `step`, or to a list of values; a number may be a string, as YAML
            1.1 takes `1e-4` for one.
        args: of the trainer.
        config: of a model without the overrides of a trial; its values tell what type a field has.
        max_tokens: of the trainer.

    Returns:
        The space, in the order given.

    Raises:
        InputError: optuna is missing, the run cannot be searched, a name is unknown or without effect, or its values
            are none or impossible.
    """
    _optuna()
    if args.world_size > 1:
        raise InputError("hp_space: a search runs in one process, since transformers prunes in the first one only")
    if args.eval_strategy == "no":
        raise InputError("hp_space: a search needs evaluations; leave --eval_strategy no out")
    if not isinstance(space, Mapping) or not space:
        raise InputError("hp_space is empty; give lines such as `learning_rate: {low: 1e-4, high: 1e-2, log: true}`")
    without_effect = {
        "num_train_epochs": args.max_steps > 0 and "--max_steps is given",
        "per_device_train_batch_size": max_tokens is not None and "--max_tokens makes the batches",
        "label_smoothing_factor": _metric(args) == "eval_loss" and "losses of different smoothing cannot be compared",
        f"{_CONFIG}pointer_generator": "the rows are encoded for it before the first trial",
    }
    fields = {*config.to_dict(), *config.attribute_map}
    parsed = {}
    for name, spec in space.items():
        where = f"hp_space: {name}"
        if reason := without_effect.get(name):
            raise InputError(f"{where} cannot be searched: {reason}")
        if name in SEARCHABLE:
            parsed[name] = _read(where, spec, SEARCHABLE[name])
            _check_sign(where, parsed[name], above=name in _POSITIVE)
        elif str(name).startswith(_CONFIG):
            field = name.removeprefix(_CONFIG)
            if field not in fields:
                raise InputError(f"hp_space: {type(config).__name__} has no field {field!r}{_meant(field, fields)}")
            value = getattr(config, field)
            parsed[name] = _read(where, spec, type(value) if isinstance(value, bool | int | float | str) else None)
        else:
            hint = f"; write {_CONFIG}{name}" if name in fields else _meant(str(name), SEARCHABLE)
            raise InputError(f"{where} cannot be searched{hint}")
    return parsed


def suggest(trial: Any, space: Mapping[str, Range | Choice]) -> dict[str, Any]:
    """The values of an optuna `trial`, name to value; the same however often it is asked."""
    values: dict[str, Any] = {}
    for name, spec in space.items():
        if isinstance(spec, Choice):
            values[name] = trial.suggest_categorical(name, spec.values)
        elif isinstance(spec.low, int) and isinstance(spec.high, int):
            values[name] = trial.suggest_int(name, spec.low, spec.high, step=spec.step or 1, log=spec.log)
        else:
            values[name] = trial.suggest_float(name, spec.low, spec.high, step=spec.step, log=spec.log)
    return values


def search(
    trainer: SequenceTrainer,
    make_model: Callable[[dict[str, Any]], PreTrainedModel],
    space: Mapping[str, Range | Choice],
    *,
    n_trials: int,
    resume: bool = False,
    say: Callable[[str], Any] = print,
) -> list[Trial]:
    """Train `n_trials` times with values of `space`; afterwards the trainer holds no model worth keeping.

    The objective is `metric_for_best_model`: of the best evaluation if `load_best_model_at_end`, else of the last.
    The values come from a TPE sampler (Bergstra et al. 2011) seeded by `args.seed` and the trial. From its second
    evaluation on, a trial is pruned if its best value so far is worse than the median of the finished ones at that
    step; the first quarter of the trials, five at most, are never pruned. Trials that evaluate at other steps
    (another batch size) have nothing to be compared with. A trial that cannot be trained (an impossible config, a
    loss that is no number, a batch that the GPU cannot hold) counts as pruned.

    Args:
        trainer: as for a run; its data, callbacks and arguments serve every trial.
        make_model: a new model, made as the recipe makes it, from config overrides beyond those of the recipe.
        space: from `parse_space`.
        n_trials: how many in all, those before an interruption counted.
        resume: go on with the search in `output_dir`, if there is one; else it is deleted.
        say: prints the line of a trial.

    Returns:
        All trials of the search, in order.

    Raises:
        InputError: `n_trials` is below 1, or the search to go on with was another one.
    """
    optuna = _optuna()
    args, state = trainer.args, optuna.trial.TrialState
    if n_trials < 1:
        raise InputError(f"a search needs trials; got {n_trials}")
    study, study_args = _open(optuna, args, space, resume)
    for killed in study.get_trials(states=(state.RUNNING,)):
        study.tell(killed.number, state=state.FAIL)
    done = len(study.get_trials(states=(state.COMPLETE, state.PRUNED)))

    def model_init(trial: Any) -> PreTrainedModel:
        values = suggest(trial, space)
        model = make_model(
            {name.removeprefix(_CONFIG): value for name, value in values.items() if name.startswith(_CONFIG)}
        )
        # A trainer that is given its model seeds after it was made, one with `model_init` before: without this, the
        # best trial could not be repeated.
        set_seed(args.seed)
        return model

    def hp_space(trial: Any) -> dict[str, Any]:
        values = {name: value for name, value in suggest(trial, space).items() if not name.startswith(_CONFIG)}
        if (smoothing := values.get("label_smoothing_factor")) is not None:
            trainer.label_smoother = SmoothedCrossEntropy(epsilon=smoothing) if smoothing else None
        return values

    def objective(metrics: dict[str, float]) -> float:
        value, best = metrics[_metric(args)], trainer.state.best_metric
        if not args.load_best_model_at_end or best is None:
            return value
        return max(value, best) if args.greater_is_better else min(value, best)

    def train(resume_from_checkpoint: Any = None, trial: Any = None) -> Any:
        try:
            return type(trainer).train(trainer, resume_from_checkpoint, trial)
        except (InputError, torch.OutOfMemoryError) as error:
            trial.set_user_attr("reason", one_line(error))
            raise optuna.TrialPruned from error

    # The Trainer casts a value to the type that the argument has, and some floats are 0.
    for name, kind in SEARCHABLE.items():
        if name in space and kind is float:
            setattr(args, name, float(getattr(args, name)))
    warm_up = _steps_of_evaluation(trainer) + 1
    save_strategy, args.save_strategy = args.save_strategy, SaveStrategy.NO
    trainer.model_init = model_init
    trainer.train = train  # type: ignore[method-assign, assignment]
    try:
        # A call for each trial: a sampler that is seeded by the trial goes on after an interruption as if there had
        # been none.
        for index in range(done, n_trials):
            # The watch remembers a bad loss, which need not be this trial's.
            trainer.remove_callback(trainer.stop_on_nan)
            trainer.stop_on_nan = StopOnNaN()
            trainer.add_callback(trainer.stop_on_nan)
            try:
                trainer.hyperparameter_search(
                    hp_space=hp_space,
                    compute_objective=objective,
                    n_trials=1,
                    backend="optuna",
                    sampler=optuna.samplers.TPESampler(seed=args.seed + index),
                    pruner=optuna.pruners.MedianPruner(
                        n_startup_trials=min(5, math.ceil(n_trials / 4)), n_warmup_steps=warm_up
                    ),
                    **study_args,
                )
            except ValueError:
                # It ends by asking for the best trial, and there is none while each was pruned.
                if study.get_trials(deepcopy=False)[-1].state is not state.PRUNED:
                    raise
            trial = _trials(study, space)[-1]
            say(f"trial {index + 1} of {n_trials}: {_line(trial)}")
    finally:
        del trainer.train
        trainer.model_init = None  # type: ignore[assignment]
        trainer.hp_search_backend = None
        args.save_strategy = save_strategy
    return _trials(study, space)


def best_trial(trials: Sequence[Trial], greater_is_better: bool) -> Trial:
    """The complete trial with the best value, the earliest of equals.

    Raises:
        InputError: none is complete.
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
        trials: from `search`.
        args: of the trainer.
        dataclass_types: what the recipe gave to `parse_config`.
        argv: the same; the fields set there go into the YAML file.

    Returns:
        A table of all trials, and what to do next, to print.

    Raises:
        InputError: no trial is complete.
    """
    root = Path(str(args.output_dir))
    write_trials(root / _TABLE, trials)
    best = best_trial(trials, bool(args.greater_is_better))
    write_best_config(root / _BEST, dataclass_types, argv, best.params)
    lines = [f"{len(trials)} trials, by {_metric(args).removeprefix('eval_')}:"]
    lines += [f"{'*' if trial is best else ' '} {trial.number:4}  {_line(trial)}" for trial in trials]
    lines.append(f"the best is {best.number}; {root / _BEST} trains it: give it to the same recipe")
    return "\n".join(lines)


def write_trials(path: str | os.PathLike, trials: Sequence[Trial]) -> None:
    """Write a CSV file with the columns `number`, `value`, `state`, one for each name of the space, and `reason`."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["number", "value", "state", *names, "reason"])
        for trial in trials:
            values = [trial.params.get(name) for name in names]
            table.writerow([trial.number, trial.value, trial.state, *values, trial.reason])


def write_best_config(
    path: str | os.PathLike, dataclass_types: Sequence[type], argv: Sequence[str] | None, params: Mapping[str, Any]
) -> None:
    """Write a YAML file that makes the recipe do what a trial did.

    It has the fields that `argv` sets, but for those of the search (`hp_…`), those that say how this run began
    (`resume_from_checkpoint`) and secrets (`…_token`); and the values of the trial. Its output directory is
    `best_trial` below that of the search.

    Args:
        path: of the file.
        dataclass_types: what the recipe gave to `parse_config`.
        argv: the same.
        params: of the trial.
    """
    fields = {
        name: value
        for name, value in explicit_values(dataclass_types, argv).items()
        if not name.startswith("hp_") and not name.endswith("_token") and name != "resume_from_checkpoint"
    }
    fields["output_dir"] = str(Path(path).parent / "best_trial")
    overrides = dict(fields.get("config_overrides") or {})
    for name, value in params.items():
        if name.startswith(_CONFIG):
            overrides[name.removeprefix(_CONFIG)] = value
        else:
            fields[name] = value
    if overrides:
        fields["config_overrides"] = overrides
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=119)
    Path(path).write_text(f"# The best trial of a search, to be given to the same recipe.\n{text}", encoding="utf-8")


def _optuna() -> ModuleType:
    require("optuna", extra="hpo", use="hp_space")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _metric(args: TrainingArguments) -> str:
    return f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"


def _meant(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"


def _read(where: str, spec: Any, kind: type | None) -> Range | Choice:
    """Read a range or a list.

    Args:
        where: for messages.
        spec: as given.
        kind: of the values: int, float, bool, str or an enumeration; None if it is not known.
    """
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return _choice(where, spec, kind)
    if not isinstance(spec, Mapping):
        raise InputError(f"{where}: {spec!r} is no range; give {{low: …, high: …}} or a list of values")
    if unknown := sorted(map(str, spec.keys() - {"low", "high", "step", "log"})):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; a range has low, high, and step or log")
    if missing := [key for key in ("low", "high") if key not in spec]:
        raise InputError(f"{where}: a range needs low and high; {missing[0]} is missing")
    if kind not in (int, float, None):
        raise InputError(f"{where} is no number; give a list of values")
    bounds = [_number(f"{where}: {key}", spec[key], kind) for key in ("low", "high", "step") if key in spec]
    if kind is None and not all(isinstance(bound, int) for bound in bounds):
        bounds = [float(bound) for bound in bounds]
    low, high, *steps = bounds
    log = spec.get("log", False)
    if not isinstance(log, bool):
        raise InputError(f"{where}: log is true or false, not {log!r}")
    if low > high:
        raise InputError(f"{where}: low {low} is above high {high}")
    if log and low <= 0:
        raise InputError(f"{where}: a logarithmic range starts above 0, not at {low}")
    if log and steps:
        raise InputError(f"{where}: a logarithmic range has no step; leave one out")
    if steps and steps[0] <= 0:
        raise InputError(f"{where}: step must be above 0, not {steps[0]}")
    return Range(low, high, steps[0] if steps else None, log)


def _choice(where: str, values: Sequence[Any], kind: type | None) -> Choice:
    if not values:
        raise InputError(f"{where}: the list is empty; give the values to try")
    if kind in (int, float):
        return Choice(tuple(_number(where, value, kind) for value in values))
    if kind is not None and issubclass(kind, Enum):
        known = [member.value for member in kind]
        for value in values:
            if value not in known:
                raise InputError(f"{where}: unknown value {value!r}{_meant(str(value), known)}")
        return Choice(tuple(values))
    if kind is None:
        try:
            numbers = [_number(where, value, None) for value in values]
        except InputError:
            kind = bool if isinstance(values[0], bool) else str
        else:
            whole = all(isinstance(number, int) for number in numbers)
            return Choice(tuple(numbers if whole else map(float, numbers)))
    if wrong := [value for value in values if not isinstance(value, kind)]:
        name = {bool: "true or false", str: "text"}[kind]
        raise InputError(f"{where}: the values of a list are of one type; {wrong[0]!r} is not {name}")
    return Choice(tuple(values))


def _number(where: str, value: Any, kind: type | None) -> int | float:
    """A number of type `kind`; if that is None, an integer if it is written as one."""
    number = value
    if isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            try:
                number = float(value)
            except ValueError:
                number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise InputError(f"{where}: {value!r} is not a number")
    if kind is int and number != int(number):
        raise InputError(f"{where}: {value!r} is not a whole number")
    return number if kind is None else kind(number)


def _check_sign(where: str, spec: Range | Choice, *, above: bool) -> None:
    values = (spec.low,) if isinstance(spec, Range) else spec.values
    for value in values:
        if isinstance(value, int | float) and (value < 0 or above and value == 0):
            raise InputError(f"{where}: {value} is too small; it must be {'above' if above else 'at least'} 0")


def _open(
    optuna: ModuleType, args: TrainingArguments, space: Mapping[str, Range | Choice], resume: bool
) -> tuple[Any, dict[str, Any]]:
    """Make or open the study; returns it, and what `create_study` takes to open it again."""
    path = Path(str(args.output_dir)) / _STORAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        path.unlink(missing_ok=True)
    direction = "maximize" if args.greater_is_better else "minimize"
    study_args = {
        "study_name": "search",
        "storage": optuna.storages.RDBStorage(f"sqlite:///{path}"),
        "load_if_exists": True,
        "direction": direction,
    }
    study = optuna.create_study(**study_args)
    what = json.dumps([_metric(args), direction, args.seed, {name: repr(spec) for name, spec in space.items()}])
    if study.user_attrs.setdefault("search", what) != what:
        raise InputError(f"the search in {path} had another hp_space, metric or seed; give another --output_dir")
    study.set_user_attr("search", what)
    return study, study_args


def _steps_of_evaluation(trainer: Trainer) -> int:
    """Optimizer steps before the first evaluation, as the arguments stand."""
    _, steps_of_epoch, *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if trainer.args.eval_strategy == "epoch":
        return steps_of_epoch
    every = trainer.args.eval_steps or 1
    return int(every) if every >= 1 else math.ceil(every * steps)


def _trials(study: Any, space: Mapping[str, Range | Choice]) -> list[Trial]:
    trials = []
    for trial in study.get_trials(deepcopy=False):
        params = {name: trial.params[name] for name in space if name in trial.params}
        reason = trial.user_attrs.get("reason", "")
        trials.append(Trial(trial.number, trial.state.name.lower(), trial.value, params, reason))
    return trials


def _line(trial: Trial) -> str:
    value = "-" if trial.value is None else f"{trial.value:.5g}"
    params = ", ".join(
        f"{name.removeprefix(_CONFIG)} {value:.4g}"
        if isinstance(value, float)
        else f"{name.removeprefix(_CONFIG)} {value}"
        for name, value in trial.params.items()
    )
    return f"{value:>9}  {trial.state:9}{params}{f'  ({trial.reason})' if trial.reason else ''}"
