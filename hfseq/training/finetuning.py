"""Fine-tuning part by part: a learning rate for each layer, a slanted triangle, gradual unfreezing, the head alone.

The method is that of Howard & Ruder 2018 (ULMFiT), for any model of transformers, hfseq's among them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfseq.errors import InputError, require
from hfseq.tasks.arguments import DATA_FLAGS, ClassArguments, DecodingArguments
from hfseq.tasks.base import Task
from hfseq.tasks.classification import Classification
from hfseq.tasks.language_modeling import LanguageModeling
from hfseq.tasks.seq2seq import Seq2Seq
from hfseq.tasks.tagging import Tagging
from hfseq.training.arguments import GenerationArguments, ModelArguments
from hfseq.training.cli import check_output_dir, demo_runs, parse_config, value_of
from hfseq.training.layers import Named, layer_groups, model_parts

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "tagging": Tagging,
    "language_modeling": LanguageModeling,
    "seq2seq": Seq2Seq,
}
"""Tasks of fine-tuning."""
METHODS = ("all", "head", "gradual", "lora")
"""Methods of fine-tuning."""


@dataclass
class TaskArguments(ClassArguments, DecodingArguments):
    """Task, rows, and fine-tuning method."""

    task: str = field(default="classification", metadata={"help": f"Task: {', '.join(TASKS)}."})
    method: str = field(
        default="all",
        metadata={
            "help": "What is trained: all weights; the head only; gradual: one layer more each epoch, from the top "
            "(Howard & Ruder 2018); lora: low-rank adapters (Hu et al. 2022), merged at the end."
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={"help": "Learning rate ratio of each layer to the one below; 2.6 with gradual, otherwise 1."},
    )
    slanted_triangular: bool | None = field(
        default=None, metadata={"help": "Slanted triangular learning rates; the default with --method gradual."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, divided by their rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt instead of the usual ones of the model type."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many rows only."})
    text_column: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Column of the texts; by default text, tokens (tagging), document (seq2seq)."},
    )
    label_column: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Column of the labels; by default label, tags, summary."}
    )
    block_size: int = field(default=128, metadata={"help": "Language modeling: tokens of a block."})
    max_length: int = field(
        default=256,
        metadata={"help": "Classification and tagging: maximum length in tokens; longer texts are truncated."},
    )

    def __post_init__(self) -> None:
        """Refuse unknown tasks and methods, and what the method cannot do."""
        super().__post_init__()
        for name, known in (("task", TASKS), ("method", METHODS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown --{name} {getattr(self, name)!r}; there are {', '.join(known)}")
        if self.block_size < 2:
            raise ValueError(f"--block_size {self.block_size}: give 2 or more")
        if self.method == "gradual" and self.streaming:
            raise ValueError("--method gradual unfreezes a layer each epoch, and --streaming has no epochs")


@dataclass
class FinetuningArguments(GenerationArguments):
    """Training arguments of fine-tuning."""

    learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate; the default suits a pretrained Transformer."}
    )


def optimizer_groups(
    model: nn.Module,
    groups: Sequence[Named],
    *,
    learning_rate: float,
    weight_decay: float,
    decay: float = 2.6,
) -> list[dict[str, Any]]:
    r"""Discriminative learning rates: $\eta^{l-1} = \eta^l / 2.6$ (Howard & Ruder 2018, section 3.1).

    That divisor is for four layers; with it the lower half of a Transformer stays as it was. Clark et al. 2020
    fine-tune Transformers with 1.1 to 1.25.

    Args:
        model: The model whose groups they are.
        groups: From `layer_groups`.
        learning_rate: Of the first group.
        weight_decay: Of all but biases and norms, by the Trainer's rule.
        decay: What each group's learning rate is divided by for the next; 1 for one learning rate.

    Returns:
        Parameter groups for an optimizer, two for each layer at most. A schedule multiplies each one's learning rate.

    Raises:
        InputError: If `decay` is not positive.
    """
    if decay <= 0:
        raise InputError(f"the learning rate of a layer cannot be divided by {decay}; give 1 or more")
    # The method uses nothing of a trainer.
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    result = []
    for depth, group in enumerate(groups):
        for wanted, value in ((True, weight_decay), (False, 0.0)):
            parameters = [parameter for name, parameter in group if (name in decayed) is wanted]
            if parameters:
                rate = learning_rate / decay**depth
                result.append({"params": parameters, "lr": rate, "weight_decay": value})
    return result


def slanted_triangular(
    optimizer: torch.optim.Optimizer, total_steps: int, cut_frac: float = 0.1, ratio: float = 32.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Slanted triangular learning rates: a short rise, a long fall (Howard & Ruder 2018, eq. 3).

    It ends at `1 / ratio` of the peak, as the paper's does where `cut_frac * total_steps` is a whole number; elsewhere
    that would fall lower, and even below zero.

    Args:
        optimizer: Each of its groups has its own peak, its learning rate now.
        total_steps: Optimizer steps of the whole training.
        cut_frac: Share of the steps that the rise takes.
        ratio: How much smaller the lowest learning rate is than the peak.

    Raises:
        ValueError: If `cut_frac` is not between 0 and 1, or `ratio` below 1.
    """
    if not 0 <= cut_frac < 1 or ratio < 1:
        raise ValueError(f"cut_frac={cut_frac} must be from 0 to 1, ratio={ratio} at least 1")
    cut = int(total_steps * cut_frac)

    def factor(step: int) -> float:
        share = step / cut if step < cut else max(0.0, 1 - (step - cut) / max(1, total_steps - cut))
        return (1 + share * (ratio - 1)) / ratio

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def unfreeze(groups: Sequence[Named], count: int) -> None:
    """Let the first `count` of the groups train, and freeze the others.

    A frozen parameter gets no gradient, so that neither clipping nor an optimizer sees it, momentum and weight decay
    included. On several processes the model must be wrapped while all groups are trainable and with
    `find_unused_parameters=True`, else gradients are not exchanged, or awaited in vain.
    """
    for depth, group in enumerate(groups):
        for _, parameter in group:
            parameter.requires_grad_(depth < count)


class Unfreezing:
    """Gradual unfreezing: the top group trains in the first epoch, and one more below it in each that follows.

    (Howard & Ruder 2018, section 3.3.) Which groups train depends on the epoch alone, so that a resumed run goes on as
    it would have. The optimizer must have all groups from the start.

    Args:
        model: The model.
        new: Names of parameters that no checkpoint has trained.
        gradual: Whether to unfreeze gradually at all; otherwise all groups train from the start.
    """

    def __init__(self, model: PreTrainedModel, new: Collection[str], gradual: bool = True) -> None:
        self.groups = layer_groups(model, new) if gradual else []

    def start_epoch(self, epoch: int) -> None:
        """Unfreeze the groups of an epoch, counted from 0."""
        unfreeze(self.groups, epoch + 1)

    def end(self) -> None:
        """Leave all groups trainable."""
        unfreeze(self.groups, len(self.groups))


class GradualUnfreezing(TrainerCallback):
    """`Unfreezing` in a Trainer, of the model that it trains: each trial of a search has its own.

    Args:
        new: Names of parameters that no checkpoint has trained.
    """

    def __init__(self, new: Collection[str] = ()) -> None:
        self.new = new

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sort the layers; refuse what would leave several processes waiting for each other.

        Raises:
            InputError: If they are not to look for parameters without a gradient.
        """
        self.unfreezing = Unfreezing(kwargs["model"], self.new)
        looks = args.ddp_find_unused_parameters
        if args.world_size > 1 and not (not args.activation_checkpointing if looks is None else looks):
            raise InputError("gradual unfreezing on several processes needs --ddp_find_unused_parameters true")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unfreeze the groups of this epoch."""
        self.unfreezing.start_epoch(int(state.epoch or 0))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave all groups trainable."""
        self.unfreezing.end()


def train_head_only(model: PreTrainedModel, new: Collection[str] = ()) -> None:
    """Freeze all but the head, for good; call it before the optimizer is made and the model wrapped.

    Args:
        model: The model.
        new: As for `model_parts`.

    Raises:
        InputError: If the model has no head of its own.
    """
    parts = model_parts(model, new)
    if not parts.head:
        raise InputError(
            f"{type(model).__name__} has no output layer of its own to train alone: it shares the embeddings' weights"
        )
    for _, parameter in (*parts.embeddings, *(pair for block in parts.blocks for pair in block)):
        parameter.requires_grad_(False)


# Flags of the demo that are not for its language model, and what that is told.
_OF_THE_CLASSIFIER: dict[str, Sequence[str]] = {
    "method": ("--method", "all"),
    "layer_decay": ("--layer_decay", "1"),
    "slanted_triangular": ("--slanted_triangular", "false"),
    "metric_for_best_model": ("--metric_for_best_model", "loss"),
    "greater_is_better": ("--greater_is_better", "false"),
    "hub_model_id": ("--push_to_hub", "false"),
}


def runs_of(argv: Sequence[str] | None, demo: Sequence[str | Path], arguments: Sequence[type]) -> list[list[str]]:
    """The arguments of each run that these ask for: one, or those of the demo, where they name no model and no data.

    The demo trains a language model, then a classifier that starts from it.

    Args:
        argv: The arguments, by default those of the process.
        demo: The YAML files of both.
        arguments: The dataclasses of the arguments.

    Raises:
        InputError: A demo of two runs cannot do what is asked, or one of them could not begin.
    """
    unless = ("--task", "--model_name_or_path", "--model_type", *DATA_FLAGS)
    runs = demo_runs(argv, demo, unless=unless, last_alone=_OF_THE_CLASSIFIER)
    if len(runs) == 1:
        return runs
    if value_of(runs[-1][1:], "method", "all") in ("head", "lora") and not value_of(runs[-1][1:], "layer_decay", ""):
        runs[-1] += ["--layer_decay", "1"]  # in place of the file's
    for flags in runs:
        model_args, data_args, args = parse_config(arguments, flags)
        resume = args.resume_from_checkpoint
        alone = {"hp_search": args.hp_search, "output_file": data_args.output_file}
        alone |= {"do_predict": args.do_predict and not args.do_train}
        for name, given in alone.items():
            if given:
                raise InputError(f"--{name}: the demo is two runs; name a --task and a model for one")
        if resume not in (None, "last"):
            raise InputError(f"--resume_from_checkpoint {resume}: the demo is two runs; give last, which is for both")
        args.choose_metric(TASKS[data_args.task].metrics, TASKS[data_args.task].other_metrics)
        check_method(model_args, data_args, args)
        check_output_dir(str(args.output_dir), overwrite=args.overwrite_output_dir, resume=resume is not None)
    return runs


def check_method(model: ModelArguments, data: TaskArguments, args: GenerationArguments) -> None:
    """Refuse a run without a model, flags that the method does not have, and a method whose package is missing.

    Args:
        model: Flags of the model.
        data: Flags of the task and the method.
        args: The training arguments.

    Raises:
        InputError: One of these.
    """
    train = args.do_train or not args.do_predict
    if train and model.model_name_or_path is None and model.model_type is None:
        raise InputError("give --model_name_or_path, a checkpoint to fine-tune, or --model_type to train from scratch")
    if data.layer_decay not in (None, 1) and data.method in ("head", "lora"):
        raise InputError(f"--layer_decay has layers to divide with --method all or gradual, not {data.method}")
    if data.method == "lora":
        require("peft", extra="train", use="--method lora")
    if data.method == "lora" and args.average_checkpoints:
        raise InputError("--average_checkpoints averages whole models, and --method lora saves adapters only")


def apply_method(model: PreTrainedModel, args: TaskArguments, new: Collection[str]) -> Any:
    """Leave trainable what `--method` says; the result is the model, or with LoRA the model with its adapters.

    Args:
        model: The model, changed in place.
        args: The flags.
        new: As for `model_parts`.

    Raises:
        InputError: As `train_head_only` and `apply_lora`.
    """
    if args.method == "head":
        train_head_only(model, new)
    if args.method != "lora":
        return model
    # peft takes a second to import, and comes with an extra.
    from hfseq.training.lora import apply_lora

    targets, rank = args.lora_target_modules, args.lora_r
    options = {"alpha": args.lora_alpha, "dropout": args.lora_dropout, "target_modules": targets, "new": new}
    return apply_lora(model, args.task, r=rank, **options)  # type: ignore[arg-type]


def method_options(data: TaskArguments, args: GenerationArguments, new: Collection[str]) -> dict[str, Any]:
    """Options of a trainer or an explicit loop by `--method`: parameter groups and schedule.

    Args:
        data: Flags of the method.
        args: The training arguments; several processes look for unused parameters if the method needs it.
        new: Names of parameters that no checkpoint has trained.
    """
    args.ddp_find_unused_parameters = args.ddp_find_unused_parameters or data.method == "gradual" or None
    return {"parameter_groups": method_groups(data, args, new), "schedule": method_schedule(data)}


def merge_adapters(model: Any, data: TaskArguments) -> Any:
    """The model without adapters, which LoRA has merged into its weights; any other as it is."""
    return model.merge_and_unload() if data.method == "lora" else model


def method_groups(
    args: TaskArguments, training_args: TrainingArguments, new: Collection[str]
) -> Callable[[Any], list[dict[str, Any]]] | None:
    """Makes an optimizer's groups from a model where layers have learning rates of their own, else None.

    Args:
        args: The flags.
        training_args: Learning rate and weight decay, as they are when the optimizer is made.
        new: As for `layer_groups`.
    """
    decay = args.layer_decay if args.layer_decay is not None else (2.6 if args.method == "gradual" else 1.0)
    if decay == 1.0:
        return None

    def groups(model: PreTrainedModel) -> list[dict[str, Any]]:
        rates = {"learning_rate": training_args.learning_rate, "weight_decay": training_args.weight_decay}
        return optimizer_groups(model, layer_groups(model, new), decay=decay, **rates)

    return groups


def method_schedule(args: TaskArguments) -> Callable[[torch.optim.Optimizer, int], Any] | None:
    """The slanted triangle where it is wanted, by default with gradual unfreezing; None for another schedule."""
    wanted = args.method == "gradual" if args.slanted_triangular is None else args.slanted_triangular
    return slanted_triangular if wanted else None


def describe_parameters(model: nn.Module) -> str:
    """Number of parameters, and of those that train if some do not; modules that peft copied count once."""
    sizes = [
        (parameter.requires_grad, parameter.numel())
        for name, parameter in model.named_parameters()
        if ".original_module." not in name
    ]
    total, trained = sum(size for _, size in sizes), sum(size for trains, size in sizes if trains)
    return f"{total:,} parameters" if trained == total else f"{trained:,} of {total:,} parameters train"
