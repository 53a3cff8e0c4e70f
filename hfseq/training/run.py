"""The steps that recipes share: arguments, model, trainer, search, reports."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any

from accelerate import Accelerator, PartialState
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from hfseq.data.token_budget import check_budget
from hfseq.errors import require
from hfseq.inference.files import write_lines, write_samples
from hfseq.inference.loading import checkpoint_classes, load_config, problem_of
from hfseq.tasks.arguments import DATA_FLAGS
from hfseq.tasks.base import Task
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import (
    check_output_dir,
    parse_config,
    prepare_output_dir,
    prepare_output_dirs,
    with_default_config,
)
from hfseq.training.curves import CurveWarnings
from hfseq.training.finetuning import describe_parameters
from hfseq.training.lengths import LengthScores
from hfseq.training.loading import check_model, load_model, load_predictor
from hfseq.training.reporting import compare, examples, publish_directory, save_results, save_run
from hfseq.training.search import parse_space, report_search
from hfseq.training.search import search as run_trials
from hfseq.training.trainer import GenerationTrainer, SequenceTrainer


@dataclass
class Run:
    """Arguments of a run, and what follows from them.

    Attributes:
        model: Flags of the model.
        data: Flags of the data.
        args: The training arguments.
        arguments: Dataclasses that the arguments were parsed into.
        argv: The arguments themselves, a YAML file among them or not.
        log: Prints, on the first process.
        checkpoint: Checkpoint to resume from, if any.
        prepared: Whether the output directory is ready.
        space: Search space of `--hp_search`.
        accelerator: That of an explicit loop.
    """

    model: Any
    data: Any
    args: Any
    arguments: tuple[type, ...]
    argv: Sequence[str]
    log: Callable[..., Any]
    checkpoint: str | None = None
    prepared: bool = False
    space: Any = None
    accelerator: Accelerator | None = None

    @property
    def train(self) -> bool:
        """Whether the run trains."""
        return self.args.do_train or not self.args.do_predict

    @property
    def predict(self) -> bool:
        """Whether the run ends with a final test."""
        return self.args.do_predict or not self.args.do_train

    @property
    def resume(self) -> bool:
        """Whether the run may go on from a checkpoint."""
        return self.args.resume_from_checkpoint is not None

    def read(self, task: Task) -> Any:
        """Read the rows of a task, and log what they are; returns the task, or another one that they ask for."""
        processes = self.accelerator.num_processes if self.accelerator else self.args.world_size
        workers = 1 if self.accelerator else max(1, self.args.dataloader_num_workers)
        known = checkpoint_classes(getattr(self.model, "model_name_or_path", None))
        if not self.train and getattr(self.data, "problem_type", "") is None:
            # The numbers of a test need not have fractions.
            problem = problem_of(load_config(str(self.model.model_name_or_path)))
            self.data.problem_type = "regression" if problem == "regression" else None
        task = task.read(train=self.train, known=known, num_parts=processes * workers)
        self.log(task.describe())
        classes = list(task.fields.get("id2label", {}).values())
        if known is not None and classes and classes != known:
            name = self.model.model_name_or_path
            self.log(f"{name} knows other classes: {', '.join(known)}; its output layer is new")
        return task

    def prepare(self, parts: Sequence[str] = ()) -> None:
        """Make the output directory ready, once; `parts` are directories in it with runs of their own."""
        if not self.prepared:
            options = {"overwrite": self.args.overwrite_output_dir, "resume": self.resume}
            if parts:
                prepare_output_dirs(self.args.output_dir, parts, **options)
            else:
                prepare_output_dir(self.args.output_dir, **options)
            PartialState().wait_for_everyone()
        self.prepared = True

    def within(self, directory: str | Path, **settings: Any) -> "Run":
        """Run of one of several models, in a directory of its own, with training arguments of its own."""
        args = copy.copy(self.args)
        # Publishing is up to the whole run.
        for name, value in {"output_dir": str(directory), "push_to_hub": False, **settings}.items():
            setattr(args, name, value)
        checkpoint = find_checkpoint(str(directory), args.resume_from_checkpoint)
        return replace(self, args=args, checkpoint=checkpoint, prepared=True)


def begin(
    arguments: Sequence[type],
    argv: Sequence[str] | None,
    tasks: type[Task] | Mapping[str, type[Task]],
    *,
    demo: str | Path | None = None,
    unless: Sequence[str] = (),
) -> Run:
    """Parse the arguments of a recipe and check all that can be checked; nothing is written yet.

    Args:
        arguments: Dataclasses of the model, the data and the training.
        argv: The arguments; None for those of the process.
        tasks: The task, or the tasks that `--task` chooses from.
        demo: YAML file of the run without arguments.
        unless: Flags beside those of the model and the data with which the run is not the demo.

    Raises:
        InputError: An argument is wrong, or a package is missing.
    """
    if demo is not None:
        argv = with_default_config(argv, demo, unless=("--model_name_or_path", *DATA_FLAGS, *unless))
    model, data, args = parse_config(arguments, argv)
    log = partial(PartialState().print, flush=True)  # on the first process only
    run = Run(model, data, args, arguments=tuple(arguments), argv=argv or (), log=log)
    disable_progress_bar()  # of saving and loading models; those of encoding and training stay
    if run.data.inference_only:
        return run
    check_model(run.model, train=run.train)
    task = check_arguments(run, tasks)
    if run.data.streaming and run.train and task.streams_rows:
        run.args.evaluate_by_steps()
    run.checkpoint = (
        None if run.args.hp_search else find_checkpoint(run.args.output_dir, run.args.resume_from_checkpoint)
    )
    set_seed(run.args.seed)
    return run


def check_arguments(run: Run, tasks: type[Task] | Mapping[str, type[Task]]) -> type[Task]:
    """Check the metric, the packages and the output directory of a run; returns its task.

    Raises:
        InputError: The task has no such metric, a package is missing, or the directory is in use.
    """
    task = tasks[run.data.task] if isinstance(tasks, Mapping) else tasks
    run.args.choose_metric(task.metrics, task.other_metrics)
    require(*task.packages, extra="train", use="this recipe")
    check_output_dir(run.args.output_dir, overwrite=run.args.overwrite_output_dir, resume=run.resume)
    return task


def new_model(
    run: Run, task: Task, *, default_type: str = "hfseq_lstm", more_texts: Sequence[str] = (), **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """A model to train, its tokenizer, and the names of parameters that its checkpoint lacks; see `load_model`.

    A new tokenizer is trained on the texts of the task and on `more_texts`.
    """
    texts = chain(task.texts(), more_texts)
    return load_model(task.auto_class, run.model, texts, default_type=default_type, **options, **task.fields)


def load(
    run: Run, task: Task, *, default_type: str = "hfseq_lstm"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """The model of a run: one to train, as `new_model`, or a trained one, perhaps an ensemble."""
    if run.train:
        return new_model(run, task, default_type=default_type)
    return *load_predictor(task.auto_class, run.model), set()


def make_trainer(
    run: Run,
    task: Task,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: Any = None,
    loss: Callable[..., Any] | None = None,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> SequenceTrainer:
    """Trainer of a task: batches, loss and scores of the task, patience, and warnings and tables by the way.

    Args:
        run: The run, whose output directory is made ready.
        task: The task, encoded for the model.
        model: The model.
        tokenizer: Its tokenizer.
        rows: Training rows in place of the task's.
        loss: Loss in place of the task's.
        callbacks: Further callbacks.
        options: Of `SequenceTrainer`.

    Raises:
        InputError: A row is longer than `--max_tokens`, the search space or another argument is wrong.
    """
    args, data, encoded = run.args, run.data, task.encoded
    rows = encoded.get("train") if rows is None else rows
    run.log(f"{type(model).__name__}: {describe_parameters(model)}, {len(tokenizer)} tokens")
    if args.hp_search:
        run.space = parse_space(args.hp_space, args, model.config, max_tokens=data.max_tokens)
    if run.train:
        check_budget(rows, data.max_tokens, args.world_size)
    run.prepare()
    if isinstance(args, Seq2SeqTrainingArguments):
        args.predict_with_generate = task.generates
    if task.generates:
        args.generation_max_length = args.generation_max_length or data.max_target_length
    patience = [EarlyStoppingCallback(data.early_stopping_patience)] if data.early_stopping_patience else []
    trainer = (GenerationTrainer if task.generates else SequenceTrainer)(
        model=model,
        args=args,
        task=task,
        train_dataset=rows,
        eval_dataset=encoded.get("validation", encoded.get("test")),
        processing_class=tokenizer,
        data_collator=task.collator,
        compute_loss_func=loss or (None if task.own_loss else task.loss),
        preprocess_logits_for_metrics=None if task.generates else task.reduce,
        callbacks=[*patience, *callbacks],
        max_tokens=data.max_tokens,
        **options,
    )
    if run.train and not args.hp_search:
        trainer.add_callback(CurveWarnings())
        if "train_sample" in encoded:
            trainer.add_callback(LengthScores(trainer, run.log))
        run.log(trainer.describe_batches())
    return trainer


def search(
    run: Run, task: Task, trainer: SequenceTrainer, make_model: Callable[..., tuple[Any, PreTrainedTokenizerBase, Any]]
) -> None:
    """Search `hp_space` in place of a training, and report the trials.

    Args:
        run: The run.
        task: The task.
        trainer: Serves all trials.
        make_model: Makes the model and tokenizer of a trial from the config fields in `overrides`.

    Raises:
        InputError: As `hfseq.training.search.search`.
    """

    def make(fields: dict[str, Any]) -> Any:
        model, tokenizer, *_ = make_model(overrides=fields)
        task.configure(model, tokenizer)
        trainer.compute_loss_func = None if task.own_loss else task.loss
        return model

    options = {"n_trials": run.args.hp_search, "resume": run.resume, "say": run.log}
    trials = run_trials(trainer, make, run.space, **options)
    run.log(report_search(trials, run.args, run.arguments, run.argv))


def fit(
    run: Run,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    rows: Any = None,
    loss: Callable[..., Any] | None = None,
    **settings: Any,
) -> float:
    """Train one of several models of a run, and save it.

    Args:
        run: The run.
        task: The task; a copy of it is encoded for the model.
        model: The model, trained in place.
        tokenizer: Its tokenizer.
        directory: Where it and its checkpoints go; an interrupted run resumes there.
        rows: Encoded training rows in place of the task's.
        loss: Loss in place of the task's.
        settings: Training arguments of this model.

    Returns:
        Seconds of the training.
    """
    own = run.within(directory, **settings)
    task = copy.copy(task)
    task.args, task.splits = own.args, {name: task.splits[name] for name in ("train", "validation")}
    task.encode(model, tokenizer, own.log)
    own.log(f"{directory}:")
    trainer = make_trainer(own, task, model, tokenizer, rows=rows, loss=loss)
    begin_time = time.perf_counter()
    trainer.train_and_save(own.checkpoint, own.args.average_checkpoints, own.log)
    return time.perf_counter() - begin_time


def score_model(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, **options: Any
) -> dict[str, float]:
    """Scores of one of several models on the rows of a split; `options` are of `Task.predict`."""
    task = copy.copy(task)
    task.splits = {split: task.splits[split]}
    task.encode(model, tokenizer, lambda note: None)
    model.to(task.args.device)  # type: ignore[arg-type]
    return task.score_raw(split, task.predict(model, split, **options)[0])


def score_baseline(task: Task, split: str) -> dict[str, dict[str, float]]:
    """Scores of each baseline of a task on the rows of a split."""
    baselines = task.baseline(split, trained=True)
    return {name: task.score(predictions, task.references[split]) for name, predictions in baselines.items()}


def test_split(task: Task) -> str:
    """The split of the final test: `test`, or `validation` if there is none."""
    return "test" if "test" in task.splits else "validation"


def finish(
    run: Run,
    task: Task,
    split: str,
    raw: Any,
    *,
    model: Any,
    history: Sequence[dict[str, Any]],
    others: Mapping[str, Any] | None = None,
) -> None:
    """Score the final test beside baselines, write the reports, print them, and publish if that is wanted.

    Args:
        run: The run.
        task: The task.
        split: The split that was tested.
        raw: Raw predictions of its rows.
        model: The model.
        history: Losses and evaluations of the training, as `TrainerState.log_history`; empty if there was none.
        others: Name to predictions of further systems.

    Raises:
        InputError: As `publish`; what the run wrote stays.
    """
    predictions, kinds = task.decode(split, raw), task.kinds(split)
    systems = {"model": predictions, **(others or {}), **task.baseline(split, trained=run.train)}
    metric = task.kind_metric or "exact_match"
    results, table = compare(task.score, systems, task.references[split], kinds=kinds, kind_metric=metric)
    if not PartialState().is_main_process:
        return
    save_results(run.args.output_dir, {f"{split}_{name}": value for name, value in results.items()})
    task.plot(model, history, split, predictions)
    about = task.about(split, predictions)
    print(f"\n{split}: {task.summary(split, predictions)}\n{table}\n")
    for metric, signature in about.get("signatures", {}).items():
        print(f"{metric} signature: {signature}\n")
    if task.lists_predictions:
        root, sources, shown = Path(run.args.output_dir), task.sources(split), task.show(predictions)
        write_samples(root / "samples.txt", sources, task.show(task.references[split]), shown)
        write_lines(root / "predictions.txt", shown)
        print(f"{examples([shorten(text, 200) for text in sources], shown, kinds)}\n")
    samples = ", samples" if task.lists_predictions else ""
    print(f"model, scores{samples} and plots are in {run.args.output_dir}")
    publish_run(run, task, split, **about)


def publish_run(run: Run, task: Task, split: str, **about: Any) -> None:
    """Write `run.json`, of which the model card is made, and publish the model if that is wanted; on one process."""
    facts = {"task": task.hub_task, "embedded": task.embedded_name, "example": task.example(split)}
    save_run(run.args.output_dir, run.arguments, run.argv, task.splits, split=split, **facts | about)
    if run.args.push_to_hub:
        print(f"published: {publish_directory(run.args)}")
