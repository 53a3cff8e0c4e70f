"""LoRA (Hu et al. 2022) with peft, for any transformers model and for recurrent layers."""

import warnings
from collections.abc import Collection

from peft import LoraConfig, PeftMixedModel, PeftModel, TaskType, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfseq.errors import InputError, one_line
from hfseq.heads import HEADS
from hfseq.training.layers import model_parts, stacks

TASKS = {head.task: head.peft_task and TaskType[head.peft_task] for head in HEADS if head.task}
"""peft task types by task name; None for a task that peft does not have."""


def apply_lora(
    model: PreTrainedModel,
    task: str,
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: Collection[str] | str | None = None,
    new: Collection[str] = (),
) -> PeftModel | PeftMixedModel:
    """Freeze a model and add low-rank adapters; the head of a model that does not generate is trained in full.

    After training, `merge_and_unload` merges the adapters into the weights and returns the plain model; until then
    `save_pretrained` saves the adapters only.

    The default targets are those of peft for the model type, else all linear layers and recurrent weights, inside and
    outside the blocks, else the embeddings; never the output layer, nor embeddings tied to it.

    Args:
        model: Model, modified in place.
        task: Key of `TASKS`.
        r: Rank.
        alpha: Scaling numerator: the adapters' output is multiplied by `alpha / r`.
        dropout: Dropout on the inputs of the adapters; not supported for recurrent weights.
        target_modules: Names or name suffixes of modules to adapt instead of the defaults; or peft's `all-linear`.
        new: Names of newly initialized parameters, missing from the checkpoint; trained in full.

    Raises:
        InputError: There is nothing to adapt, a module name is unknown, or the model does not support a value.
    """
    if r < 1 or not 0 <= dropout < 1:
        raise InputError(f"LoRA rank {r}, dropout {dropout}: the rank must be at least 1, the dropout in [0, 1)")
    saved = _trained_whole(model, task, new)
    names: Collection[str] | str | None = target_modules
    recurrent: list[str] = []
    if names is None and model.config.model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        names, recurrent = _targets(model, saved)
    elif names is not None and not isinstance(names, str):
        modules = [f".{name}" for name, _ in model.named_modules()]
        for name in names:
            if not any(module.endswith(f".{name}") for module in modules):
                raise InputError(f"LoRA cannot adapt {name!r}: {type(model).__name__} has no module of that name")
    if recurrent and dropout:
        raise InputError(f"LoRA of recurrent weights does not support dropout; change it from {dropout} to 0")
    config = LoraConfig(
        # Masked language models lack the generation methods that peft requires of causal ones.
        task_type=None if task == "language_modeling" and not model.can_generate() else TASKS[task],
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names if names is None or isinstance(names, str) else list(names),
        target_parameters=recurrent or None,
        modules_to_save=saved or None,
    )
    if recurrent:
        # Recomputation would run the layers without their adapters.
        model.supports_gradient_checkpointing = False
    try:
        with warnings.catch_warnings():
            # peft still reads a deprecated attribute of transformers.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            if target_modules is None:
                # Warnings on tied embeddings, which are excluded, and on GPT-2's Conv1D, which peft detects.
                warnings.filterwarnings("ignore", module=r"peft\.")
            return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"LoRA cannot adapt {type(model).__name__}: {one_line(error)}") from None


def _trained_whole(model: PreTrainedModel, task: str, new: Collection[str]) -> list[str]:
    """Names of the modules trained in full: the head if it is no language model's, and newly initialized parameters.

    Raises:
        InputError: A new parameter is inside or below the blocks, or shares its module with adapted ones.
    """
    parts = model_parts(model)
    wanted = [pair for pair in model.named_parameters() if pair[0] in new]
    low = {name for name, _ in parts.embeddings}
    lists = [f"{path}." for stack in stacks(model) for path in stack.lists]
    for name, _ in wanted:
        if name in low or name.startswith(tuple(lists)):
            raise InputError(f"LoRA adapts pretrained weights, but {name} is newly initialized; train all weights")
    if task != "language_modeling" and not model.can_generate():
        wanted += parts.head
    whole = {id(parameter) for _, parameter in wanted}
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for name, _ in wanted:
        steps = name.split(".")[:-1]
        owners = (".".join(steps[:depth]) for depth in range(1, len(steps) + 1))
        complete = (owner for owner in owners if all(id(weight) in whole for weight in modules[owner].parameters()))
        owner = next(complete, None)
        if owner is None:
            raise InputError(f"LoRA cannot train {name} in full alongside its adapters; train all weights")
        found[owner] = None
    return list(found)


def _targets(model: PreTrainedModel, saved: Collection[str]) -> tuple[list[str], list[str]]:
    """Names of the modules and of the recurrent weights to adapt.

    Raises:
        InputError: There are none, or recurrent weights cannot be adapted.
    """
    output = model.get_output_embeddings()
    excluded = set() if output is None else {id(weight) for weight in output.parameters()}
    linear: list[str] = []
    tables: list[str] = []
    recurrent: list[str] = []
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{path}.") for path in saved):
            continue
        # torch's own recurrent layers read a cached list of weights, which would bypass adapters.
        if isinstance(module, nn.RNNBase) and type(module) not in (nn.RNN, nn.LSTM, nn.GRU):
            recurrent += [f"{name}.{weight}" for weight, _ in module.named_parameters() if weight.startswith("weight")]
        elif isinstance(module, nn.Linear | Conv1D | nn.Embedding) and id(module.weight) not in excluded:
            (tables if isinstance(module, nn.Embedding) else linear).append(name)
    # DropConnect reads the raw weights, without the adapters.
    if recurrent and any(getattr(module, "weight_dropout", 0.0) for module in model.modules()):
        raise InputError("LoRA does not support DropConnect: set the config field weight_dropout to 0")
    lists = tuple(f"{path}." for stack in stacks(model) for path in stack.lists)
    if not recurrent and not any(name.startswith(lists) for name in linear):
        linear += tables
    if not linear and not recurrent:
        raise InputError(
            f"LoRA has nothing to adapt in {type(model).__name__}: no linear layer, recurrent layer or untied "
            "embedding below the head"
        )
    return linear, recurrent
