"""Steps shared by the recipes: arguments, model, trainer, search, reports."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

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
from hfseq.inference.loading import checkpoint_classes, load_config
from hfseq.tasks.arguments import DATA_FLAGS
from hfseq.tasks.base import Task
from hfseq.training.arguments import check_early_stopping
from hfseq.training.checkpoints import find_checkpoint
from hfseq.training.cli import check_output_dir, parse_config, prepare_output_dir, with_default_config
from hfseq.training.loading import check_model, load_model, load_predictor
from hfseq.training.reporting import compare, examples, publish_directory, save_results, save_run
from hfseq.word_vectors import load_word_vectors

if TYPE_CHECKING:
    from hfseq.training.trainer import SequenceTrainer


@dataclass
class Run:
    """Arguments and state of a run.

    Attributes:
        model: Model arguments.
        data: Data arguments.
        args: Training arguments.
        arguments: Dataclasses of the arguments.
        argv: Command-line arguments, with or without a YAML file.
        log: Prints on the main process.
        checkpoint: Checkpoint to resume from, if any.
        prepared: Whether the output directory has been prepared.
        space: Search space of `--hp_search`.
        accelerator: Accelerator of an explicit loop.
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
        """True if the run trains."""
        return self.args.do_train or not self.args.do_predict

    @property
    def predict(self) -> bool:
        """True if the run ends with a final test."""
        return self.args.do_predict or not self.args.do_train

    @property
    def resume(self) -> bool:
        """True if the run may resume from a checkpoint."""
        return self.args.resume_from_checkpoint is not None

    def read(self, task: Task) -> Any:
        """Read and describe the rows of a task; return the task, or the variant that the data select."""
        num_parts = self.args.world_size * max(1, self.args.dataloader_num_workers)
        known = checkpoint_classes(getattr(self.model, "model_name_or_path", None))
        if not self.train and getattr(self.data, "problem_type", "") is None:
            # The test rows alone may not show it: labels of a regression model may all be integers.
            config = load_config(str(self.model.model_name_or_path))
            self.data.problem_type = config.problem_type or ("regression" if config.num_labels == 1 else None)
        task = task.read(train=self.train, known=known, num_parts=num_parts)
        self.log(task.describe())
        classes = list(task.fields.get("id2label", {}).values())
        if known is not None and classes and classes != known:
            name = self.model.model_name_or_path
            self.log(f"{name} has other classes: {', '.join(known)}; its output layer is newly initialized")
        return task

    def prepare(self, parts: Sequence[str] = ()) -> None:
        """Prepare the output directory, once; `parts` are subdirectories with runs of their own."""
        if not self.prepared:
            overwrite = self.args.overwrite_output_dir
            prepare_output_dir(self.args.output_dir, parts, overwrite=overwrite, resume=self.resume)
            PartialState().wait_for_everyone()
        self.prepared = True

    def within(self, directory: str | Path, **settings: Any) -> Run:
        """Return a sub-run for one of several models, with its own directory and training arguments."""
        args = copy.copy(self.args)
        # Only the run as a whole publishes.
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
    check: Callable[[Run], None] | None = None,
) -> Run:
    """Parse and validate the arguments of a recipe, find its checkpoint and set the seed, without writing anything.

    Args:
        arguments: Dataclasses of the model, data and training arguments.
        argv: Command-line arguments; None for `sys.argv`.
        tasks: The task, or the choices of `--task` by name.
        demo: Default YAML file when no model or data are given.
        unless: Further flags that disable the default YAML file.
        check: Further check of the arguments, before all others.

    Returns:
        The run, with the metric that selects the best checkpoint in its arguments.

    Raises:
        InputError: An argument is invalid, the task has no such metric, early stopping has no evaluations, a package
            is missing, or the output directory is in use.
    """
    if demo is not None:
        argv = with_default_config(argv, demo, unless=("--model_name_or_path", *DATA_FLAGS, *unless))
    model, data, args = parse_config(arguments, argv)
    log = partial(PartialState().print, flush=True)  # on the main process only
    run = Run(model, data, args, arguments=tuple(arguments), argv=argv or (), log=log)
    disable_progress_bar()  # for saving and loading models; encoding and training keep theirs
    task = tasks[run.data.task] if isinstance(tasks, Mapping) else tasks
    if run.data.streaming and run.train and task.streams_rows:
        run.args.evaluate_by_steps()
    if check is not None:
        check(run)
    if run.data.inference_only:
        return run
    check_model(run.model, train=run.train)
    run.args.choose_metric(task.metrics, task.other_metrics)
    if run.train and run.data.early_stopping_patience:
        check_early_stopping(run.args)
    require(*task.packages, extra="train", use="this recipe")
    check_output_dir(run.args.output_dir, overwrite=run.args.overwrite_output_dir, resume=run.resume)
    if not run.args.hp_search:
        run.checkpoint = find_checkpoint(run.args.output_dir, run.args.resume_from_checkpoint)
    set_seed(run.args.seed)
    return run


def new_model(
    run: Run, task: Task, *, default_type: str = "hfseq_lstm", more_texts: Sequence[str] = (), **options: Any
) -> tuple[PreTrainedModel, Any, set[str]]:
    """Return a model to train, its processing class, and the parameters missing from its checkpoint; see `load_model`.

    A new tokenizer is trained on the texts of the task and on `more_texts`; that of a task of features, if it has one,
    is in the processing class that `options` give as `tokenizer`. A new model starts with the word vectors of the run,
    if there are any, whose words are added to a new tokenizer.
    """
    texts = None if task.features else chain(task.texts(), more_texts)
    options |= {"default_type": default_type, "features": task.features, "target_texts": task.target_texts()}
    model, tokenizer, missing = load_model(task.auto_class, run.model, texts, **options, **task.fields)
    if run.model.word_vectors is not None and run.model.model_name_or_path is None:
        added = run.model.add_words if options.get("tokenizer") is None else 0
        run.log(load_word_vectors(model, tokenizer, run.model.word_vectors, add_words=added))
    return model, tokenizer, missing


def load(
    run: Run, task: Task, *, default_type: str = "hfseq_lstm", **options: Any
) -> tuple[PreTrainedModel, Any, set[str]]:
    """Return the model of a run and its processing class: one to train, as `new_model` does, or one trained before.

    Raises:
        InputError: The model cannot be loaded or made, or the search space does not fit it.
    """
    if run.train:
        model, tokenizer, missing = new_model(run, task, default_type=default_type, **options)
        if run.args.hp_search:
            from hfseq.training.search import parse_space

            run.space = parse_space(run.args.hp_space, run.args, model.config, max_tokens=run.data.max_tokens)
        return model, tokenizer, missing
    return *load_predictor(task.auto_class, run.model, features=task.features), set()


def make_trainer(
    run: Run,
    task: Task,
    model: Any,
    processing_class: Any,
    *,
    trainer_class: type[SequenceTrainer] | None = None,
    rows: Any = None,
    loss: Callable[..., Any] | None = None,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> SequenceTrainer:
    """Create the trainer of a task, with its loss and metrics, early stopping, curve warnings and scores by length.

    Args:
        run: The run; its output directory is created, or cleared.
        task: Task with rows encoded for the model.
        model: Model to train.
        processing_class: Tokenizer, or other processing class of the model, which is saved with it; or None.
        trainer_class: Class of the trainer; by default `GenerationTrainer` for tasks that generate, or
            `SequenceTrainer`.
        rows: Training rows to use instead of the task's.
        loss: Loss function to use instead of the task's.
        callbacks: Further callbacks.
        options: Further arguments of the trainer.

    Raises:
        InputError: A row exceeds `--max_tokens`, or an argument is invalid.
    """
    # transformers' Trainer is slow to import: `--help` and the prediction of a file do without.
    from hfseq.training.curves import CurveWarnings
    from hfseq.training.finetuning import describe_model
    from hfseq.training.lengths import LengthScores
    from hfseq.training.trainer import GenerationTrainer, SequenceTrainer

    args, data, encoded = run.args, run.data, task.encoded
    rows = encoded.get("train") if rows is None else rows
    run.log(describe_model(model, processing_class))
    if run.train:
        task.check_regularization(loss)
        check_budget(rows, data.max_tokens, args.world_size)
    run.prepare()
    if isinstance(args, Seq2SeqTrainingArguments):
        args.predict_with_generate = task.generates
    if task.generates:
        args.generation_max_length = args.generation_max_length or data.max_target_length
    if task.label_name != "labels":
        args.label_names = [task.label_name]
    if task.keeps_columns:
        args.remove_unused_columns = False
    patience = [EarlyStoppingCallback(data.early_stopping_patience)] if data.early_stopping_patience else []
    options.setdefault("eval_dataset", encoded.get("validation", encoded.get("test")))
    trainer_class = trainer_class or (GenerationTrainer if task.generates else SequenceTrainer)
    trainer = trainer_class(
        model=model,
        args=args,
        task=task,
        train_dataset=rows,
        processing_class=processing_class,
        data_collator=task.collator,
        compute_loss_func=loss or (None if task.own_loss else task.training_loss),
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
    """Run a hyperparameter search over `hp_space` and report the trials.

    Args:
        run: The run.
        task: Task with encoded rows.
        trainer: Trainer used for all trials.
        make_model: Returns the model and tokenizer of a trial, with config fields `overrides`.

    Raises:
        InputError: The search to resume had other settings.
    """
    from hfseq.training.search import report_search
    from hfseq.training.search import search as run_trials

    def make(fields: dict[str, Any]) -> Any:
        model, tokenizer, *_ = make_model(overrides=fields)
        task.configure(model, tokenizer)
        task.check_regularization()
        trainer.compute_loss_func = None if task.own_loss else task.training_loss
        return model

    trials = run_trials(trainer, make, run.space, n_trials=run.args.hp_search, resume=run.resume, say=run.log)
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
    """Train and save one of several models of a run.

    Args:
        run: The run.
        task: Task; a copy is encoded for the model.
        model: Model, trained in place.
        tokenizer: Tokenizer of the model.
        directory: Directory of the model and its checkpoints; interrupted runs resume there.
        rows: Encoded training rows to use instead of the task's.
        loss: Loss function to use instead of the task's.
        settings: Training arguments of this model.

    Returns:
        Training time in seconds.
    """
    own = run.within(directory, **settings)
    task = copy.copy(task)
    # `rows` are encoded already.
    names = ("train", "validation") if rows is None else ("validation",)
    task.args, task.splits = own.args, {name: task.splits[name] for name in names}
    task.encode(model, tokenizer, own.log)
    own.log(f"{directory}:")
    trainer = make_trainer(own, task, model, tokenizer, rows=rows, loss=loss)
    begin_time = time.perf_counter()
    trainer.train_and_save(own.checkpoint, own.args.average_checkpoints, own.log)
    return time.perf_counter() - begin_time


def score_model(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, **options: Any
) -> dict[str, float]:
    """Score a model on a split; `options` are passed to `Task.predict`."""
    model.to(task.args.device)  # type: ignore[arg-type]
    return task.encoded_split(model, tokenizer, split).evaluate(model, split, **options)


def score_baseline(task: Task, split: str) -> dict[str, dict[str, float]]:
    """Score each baseline of a task on a split."""
    baselines = task.baseline(split, trained=True)
    return {name: task.score(predictions, task.references[split]) for name, predictions in baselines.items()}


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
    """Score the final test against baselines, write and print the reports, and publish the model if requested.

    Args:
        run: The run.
        task: Task with encoded rows.
        split: Split of the final test.
        raw: Raw predictions for the split.
        model: Tested model.
        history: Training log in the format of `TrainerState.log_history`; empty without training.
        others: Predictions of further systems by name.

    Raises:
        InputError: Publishing fails; the files of the run are kept.
    """
    predictions, kinds = task.decode(split, raw), task.kinds(split)
    systems = {"model": predictions, **(others or {}), **task.baseline(split, trained=run.train)}
    by_kind: dict[str, Any] = {"kinds": kinds, "kind_metric": task.kind_metric, "score_kind": task.score_kind}
    results, table = compare(task.score, systems, task.references[split], **by_kind)
    if not PartialState().is_main_process:
        return
    save_results(run.args.output_dir, {f"{split}_{name}": value for name, value in results.items()})
    task.plot(model, history, split, predictions)
    print(f"\n{split}: {task.summary(split, predictions)}\n{table}\n")
    for metric, signature in task.signatures.items():
        print(f"{metric} signature: {signature}\n")
    root = Path(run.args.output_dir)
    task.write(root, split, predictions)
    if task.lists_predictions:
        sources, shown = task.sources(split), task.show(predictions)
        write_samples(root / "samples.txt", sources, task.show(task.references[split]), shown)
        write_lines(root / "predictions.txt", shown)
        print(f"{examples([shorten(text, 200) for text in sources], shown, kinds)}\n")
    samples = ", samples" if task.lists_predictions else ""
    print(f"model, scores{samples} and plots are in {run.args.output_dir}")
    publish_run(run, task, split)


def publish_run(run: Run, task: Task, split: str) -> None:
    """Write `run.json`, the source of the model card, and publish the model if requested; call on one process."""
    facts: dict[str, Any] = {"task": task.hub_task, "embedded": task.embedded_name, "example": task.example(split)}
    facts |= {"languages": task.languages, "signatures": task.signatures}
    save_run(run.args.output_dir, run.arguments, run.argv, task.splits, split=split, **facts)
    if run.args.push_to_hub:
        print(f"published: {publish_directory(run.args)}")
