"""Fine-tuning methods: discriminative learning rates, slanted triangular schedule, gradual unfreezing, head only.

The methods of ULMFiT (Howard & Ruder 2018), for any transformers model, including those of hfseq.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments

from hfseq.errors import InputError, require
from hfseq.processing import tokenizer_of
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
"""Task classes by their `--task` names."""
METHODS = ("all", "head", "gradual", "lora")
"""Choices of `--method`."""


@dataclass
class TaskArguments(ClassArguments, DecodingArguments):
    """Task, data and fine-tuning method."""

    task: str = field(default="classification", metadata={"help": f"Task: {', '.join(TASKS)}."})
    method: str = field(
        default="all",
        metadata={
            "help": "Trained parameters: all; head; gradual: unfreeze one more layer each epoch, from the top (Howard "
            "& Ruder 2018); lora: low-rank adapters (Hu et al. 2022), merged at the end."
        },
    )
    layer_decay: float | None = field(
        default=None,
        metadata={"help": "Learning rate ratio of each layer to the one below; default 2.6 with gradual, else 1."},
    )
    slanted_triangular: bool | None = field(
        default=None, metadata={"help": "Slanted triangular schedule; the default with --method gradual."}
    )
    lora_r: int = field(default=8, metadata={"help": "LoRA rank."})
    lora_alpha: float = field(default=16.0, metadata={"help": "LoRA alpha: adapters are scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the inputs of the LoRA adapters."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt with LoRA, instead of the defaults of the model type."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Maximum number of training rows."})
    text_column: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Text column; default: text, tokens (tagging) or document (seq2seq)."}
    )
    label_column: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Label column; default: label, tags (tagging) or summary (seq2seq)."}
    )
    block_size: int = field(default=128, metadata={"help": "Language modeling: block length in tokens."})
    max_length: int = field(
        default=256,
        metadata={"help": "Classification and tagging: maximum length in tokens; longer texts are truncated."},
    )

    def __post_init__(self) -> None:
        """Reject unknown tasks and methods, and unsupported combinations."""
        if self.block_size < 2:
            raise ValueError(f"--block_size {self.block_size}: give 2 or more")
        super().__post_init__()
        for name, known in (("task", TASKS), ("method", METHODS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown --{name} {getattr(self, name)!r}; there are {', '.join(known)}")
        if self.subword_samples and self.task not in ("classification", "seq2seq"):
            raise ValueError(f"--subword_samples is for classification and seq2seq, not for --task {self.task}")
        if self.method == "gradual" and self.streaming:
            raise ValueError("--method gradual unfreezes a layer each epoch, and --streaming has no epochs")


@dataclass
class FinetuningArguments(GenerationArguments):
    """Training arguments for fine-tuning."""

    learning_rate: float = field(
        default=5e-5, metadata={"help": "Peak learning rate; the default suits a pretrained Transformer."}
    )


def optimizer_groups(
    model: nn.Module, groups: Sequence[Named], *, learning_rate: float, weight_decay: float, decay: float = 2.6
) -> list[dict[str, Any]]:
    r"""Discriminative learning rates: $\eta^{l-1} = \eta^l / 2.6$ (Howard & Ruder 2018, section 3.1).

    2.6 was chosen for four layers; it leaves the lower half of a Transformer almost unchanged. Clark et al. 2020
    fine-tune Transformers with 1.1 to 1.25.

    Args:
        model: Model that owns the parameters.
        groups: Layer groups from `layer_groups`.
        learning_rate: Learning rate of the first group.
        weight_decay: Weight decay, except on biases and norms (the Trainer's rule).
        decay: Ratio of each group's learning rate to the next; 1 for a single learning rate.

    Returns:
        Optimizer parameter groups, at most two per layer. A schedule scales each group's learning rate.

    Raises:
        InputError: `decay` is not positive.
    """
    if decay <= 0:
        raise InputError(f"cannot divide learning rates by a layer decay of {decay}; use 1 or more")
    from transformers import Trainer  # slow to import

    # The method does not use `self`.
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    result = []
    for depth, group in enumerate(groups):
        for wanted, value in ((True, weight_decay), (False, 0.0)):
            if parameters := [parameter for name, parameter in group if (name in decayed) is wanted]:
                result.append({"params": parameters, "lr": learning_rate / decay**depth, "weight_decay": value})
    return result


def slanted_triangular(
    optimizer: torch.optim.Optimizer, total_steps: int, cut_frac: float = 0.1, ratio: float = 32.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Slanted triangular learning rates: short linear increase, long linear decay (Howard & Ruder 2018, eq. 3).

    The schedule ends at `1 / ratio` of the peak. The paper's formula does so only if `cut_frac * total_steps` is an
    integer; otherwise it ends lower, possibly below zero.

    Args:
        optimizer: Optimizer; the current learning rate of each group is its peak.
        total_steps: Total number of optimizer steps.
        cut_frac: Fraction of the steps spent increasing the learning rate.
        ratio: Ratio of the peak to the lowest learning rate.

    Raises:
        ValueError: `cut_frac` is not in [0, 1), or `ratio` is below 1.
    """
    if not 0 <= cut_frac < 1 or ratio < 1:
        raise ValueError(f"cut_frac={cut_frac} must be in [0, 1), ratio={ratio} at least 1")
    cut = int(total_steps * cut_frac)

    def factor(step: int) -> float:
        share = step / cut if step < cut else max(0.0, 1 - (step - cut) / max(1, total_steps - cut))
        return (1 + share * (ratio - 1)) / ratio

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def unfreeze(groups: Sequence[Named], count: int) -> None:
    """Unfreeze the first `count` groups and freeze the others.

    A frozen parameter gets no gradient, so gradient clipping and the optimizer, including momentum and weight decay,
    ignore it. With DistributedDataParallel, wrap the model while all groups are trainable and with
    `find_unused_parameters=True`; otherwise gradients are not synchronized, or the processes deadlock.
    """
    for depth, group in enumerate(groups):
        for _, parameter in group:
            parameter.requires_grad_(depth < count)


class GradualUnfreezing(TrainerCallback):
    """Gradual unfreezing: the top group in the first epoch, one more below it in each following epoch.

    (Howard & Ruder 2018, section 3.3.) The trainable groups depend on the epoch alone, so resumed runs continue
    exactly. The optimizer must hold all groups from the start. Each search trial groups the layers of its own model.

    Args:
        new: Names of newly initialized parameters, missing from the checkpoint.
    """

    def __init__(self, new: Collection[str] = ()) -> None:
        self.new = new

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Group the layers, and reject settings that would deadlock several processes.

        Raises:
            InputError: Several processes do not search for unused parameters.
        """
        self.groups = layer_groups(kwargs["model"], self.new)
        looks = args.ddp_find_unused_parameters
        if args.world_size > 1 and not (not args.activation_checkpointing if looks is None else looks):
            raise InputError("gradual unfreezing on several processes requires --ddp_find_unused_parameters true")

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Unfreeze the groups of this epoch."""
        unfreeze(self.groups, int(state.epoch or 0) + 1)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Make all groups trainable."""
        unfreeze(self.groups, len(self.groups))


def train_head_only(model: PreTrainedModel, new: Collection[str] = ()) -> None:
    """Permanently freeze all parameters but the head; call before creating the optimizer and wrapping the model.

    Args:
        model: Model to freeze.
        new: Names of newly initialized parameters, missing from the checkpoint.

    Raises:
        InputError: The model has no head of its own.
    """
    parts = model_parts(model, new)
    if not parts.head:
        raise InputError(f"{type(model).__name__} has no separate output layer to train: it is tied to the embeddings")
    unfreeze([*parts.blocks, parts.embeddings], 0)


# Flags for the demo's classifier, and the values that its language model gets instead.
_OF_THE_CLASSIFIER: dict[str, Sequence[str]] = {
    "method": ("--method", "all"),
    "layer_decay": ("--layer_decay", "1"),
    "slanted_triangular": ("--slanted_triangular", "false"),
    "metric_for_best_model": ("--metric_for_best_model", "loss"),
    "greater_is_better": ("--greater_is_better", "false"),
    "hub_model_id": ("--push_to_hub", "false"),
}


def runs_of(argv: Sequence[str] | None, demo: Sequence[str | Path], arguments: Sequence[type]) -> list[list[str]]:
    """Return the arguments of each requested run: one, or the two of the demo when no model and no data are given.

    The demo trains a language model, then a classifier initialized from it.

    Args:
        argv: Command-line arguments; None for `sys.argv`.
        demo: YAML files of the demo's two runs.
        arguments: Dataclasses of the arguments.

    Raises:
        InputError: A flag is not supported by the two-run demo, or the arguments of a run are invalid.
    """
    unless = ("--task", "--model_name_or_path", "--model_type", *DATA_FLAGS)
    runs = demo_runs(argv, demo, unless=unless, last_alone=_OF_THE_CLASSIFIER)
    if len(runs) == 1:
        return runs
    if value_of(runs[-1][1:], "method", "all") in ("head", "lora") and not value_of(runs[-1][1:], "layer_decay", ""):
        runs[-1] += ["--layer_decay", "1"]  # overrides the YAML file
    for flags in runs:
        model_args, data_args, args = parse_config(arguments, flags)
        resume = args.resume_from_checkpoint
        given = {"hp_search": args.hp_search, "output_file": data_args.output_file}
        given |= {"do_predict": args.do_predict and not args.do_train}
        if refused := [name for name, value in given.items() if value]:
            raise InputError(f"--{refused[0]} is not supported by the two-run demo; give a --task and a model")
        if resume not in (None, "last"):
            raise InputError(f"--resume_from_checkpoint {resume} is not supported by the two-run demo; use last")
        args.choose_metric(TASKS[data_args.task].metrics, TASKS[data_args.task].other_metrics)
        check_method(model_args, data_args, args)
        check_output_dir(str(args.output_dir), overwrite=args.overwrite_output_dir, resume=resume is not None)
    return runs


def check_method(model: ModelArguments, data: TaskArguments, args: GenerationArguments) -> None:
    """Validate the model and the fine-tuning method of a run.

    Args:
        model: Model arguments.
        data: Task and method arguments.
        args: Training arguments.

    Raises:
        InputError: No model is given, a flag does not apply to the method, or a package is missing.
    """
    train = args.do_train or not args.do_predict
    if train and model.model_name_or_path is None and model.model_type is None:
        raise InputError("give --model_name_or_path to fine-tune a checkpoint, or --model_type to train from scratch")
    if data.layer_decay not in (None, 1) and data.method in ("head", "lora"):
        raise InputError(f"--layer_decay requires --method all or gradual, not {data.method}")
    if data.method == "lora":
        require("peft", extra="train", use="--method lora")
        if args.average_checkpoints:
            raise InputError("--average_checkpoints requires full checkpoints, but --method lora saves adapters only")


def apply_method(model: PreTrainedModel, args: TaskArguments, new: Collection[str]) -> Any:
    """Freeze parameters or add adapters according to `--method`; return the model, wrapped with LoRA if requested.

    Args:
        model: Model, modified in place.
        args: Task and method arguments.
        new: Names of newly initialized parameters, missing from the checkpoint.

    Raises:
        InputError: The model has no head to train alone, or LoRA cannot adapt it.
    """
    if args.method == "head":
        train_head_only(model, new)
    if args.method != "lora":
        return model
    # peft is slow to import and an optional dependency.
    from hfseq.training.lora import apply_lora

    options: dict[str, Any] = {
        name: getattr(args, f"lora_{name}") for name in ("r", "alpha", "dropout", "target_modules")
    }
    return apply_lora(model, args.task, new=new, **options)


def method_options(data: TaskArguments, args: GenerationArguments, new: Collection[str]) -> dict[str, Any]:
    """Return the `parameter_groups` and `schedule` of a trainer or explicit loop for `--method`.

    Args:
        data: Task and method arguments.
        args: Training arguments; `ddp_find_unused_parameters` is set if the method requires it. Learning rate and
            weight decay are read when the optimizer is created.
        new: Names of newly initialized parameters, missing from the checkpoint.
    """
    gradual = data.method == "gradual"
    args.ddp_find_unused_parameters = args.ddp_find_unused_parameters or gradual or None
    slanted = gradual if data.slanted_triangular is None else data.slanted_triangular
    decay = data.layer_decay if data.layer_decay is not None else (2.6 if gradual else 1.0)

    def groups(model: PreTrainedModel) -> list[dict[str, Any]]:
        rates = {"learning_rate": args.learning_rate, "weight_decay": args.weight_decay}
        return optimizer_groups(model, layer_groups(model, new), decay=decay, **rates)

    return {"parameter_groups": None if decay == 1 else groups, "schedule": slanted_triangular if slanted else None}


def merge_adapters(model: Any, data: TaskArguments) -> Any:
    """Merge LoRA adapters into the weights and return the plain model; other methods return it unchanged."""
    return model.merge_and_unload() if data.method == "lora" else model


def describe_parameters(model: nn.Module) -> str:
    """Describe the number of (trainable) parameters; modules copied by peft count once."""
    own = [parameter for name, parameter in model.named_parameters() if ".original_module." not in name]
    total = sum(parameter.numel() for parameter in own)
    trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
    return f"{total:,} parameters" if trained == total else f"{trained:,} of {total:,} parameters trainable"


def describe_model(model: nn.Module, processing_class: Any) -> str:
    """Describe a model by its class, the number of its parameters, and that of the tokens if it has a tokenizer."""
    tokenizer = tokenizer_of(processing_class)
    tokens = "" if tokenizer is None else f", {len(tokenizer)} tokens"
    return f"{type(model).__name__}: {describe_parameters(model)}{tokens}"
