"""Partition of a model's parameters into head, blocks and embeddings."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

Named = list[tuple[str, nn.Parameter]]
"""Parameters with their names."""


class Parts(NamedTuple):
    """Parameters of a model by depth.

    Attributes:
        head: Parameters above all blocks.
        blocks: Blocks from the top down; decoder blocks above encoder blocks.
        embeddings: Parameters below all blocks, including output weights tied to the embeddings.
    """

    head: Named
    blocks: list[Named]
    embeddings: Named


class Stack(NamedTuple):
    """Stack of blocks.

    Attributes:
        lists: Names of the parallel module lists of the blocks, such as the two directions, or layers and norms.
        scope: Name of the largest module that contains no other stack; empty for the model itself.
        length: Number of blocks.
    """

    lists: list[str]
    scope: str
    length: int


def _inside(name: str, scope: str) -> bool:
    """Return whether a parameter or module is inside the module `scope`."""
    return not scope or name.startswith(f"{scope}.")


def stacks(model: nn.Module) -> list[Stack]:
    """Stacks of blocks of a model from the bottom up, i.e. its outermost module lists.

    Lists of equal length in the same module are parts of the same blocks.
    """
    lists: list[str] = []
    groups: dict[tuple[str, int], list[str]] = {}
    for name, module in model.named_modules():
        outermost = isinstance(module, nn.ModuleList) and not any(_inside(name, outer) for outer in lists)
        if outermost and any(True for _ in module.parameters()):
            lists.append(name)
            groups.setdefault((name.rpartition(".")[0], len(module)), []).append(name)
    found = []
    for (owner, length), names in groups.items():
        others = [other for other, size in groups if (other, size) != (owner, length)]
        parts = owner.split(".")
        ancestors = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        alone = (scope for scope in ancestors if not any(_inside(f"{other}.", scope) for other in others))
        found.append(Stack(names, next(alone, owner), length))
    return found


def model_parts(model: PreTrainedModel, new: Collection[str] = ()) -> Parts:
    """Partition all parameters of a model into head, blocks and embeddings.

    The only assumption about the architecture is that its blocks are in module lists. A parameter in none of them
    belongs to

    - the head, if it is in the output layer or outside the module that contains the blocks;
    - the embeddings, if it is an embedding table, has `embed` in its name, or precedes the blocks;
    - the top block otherwise: a final norm, a pooler, a decoder's attention.

    Args:
        model: Model to partition.
        new: Names of newly initialized parameters, the missing keys of `from_pretrained`; they always belong to the
            head.
    """
    found = stacks(model)
    blocks: list[list[Named]] = [[[] for _ in range(stack.length)] for stack in found]
    parameters = list(model.named_parameters())
    homes = [_block_of(name, found) for name, _ in parameters]
    # Place of the first parameter of each stack.
    first = {home[0]: place for place, home in reversed([*enumerate(homes)]) if home is not None}
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embedded = {id(parameter) for table in tables for parameter in table.parameters()}
    output = model.get_output_embeddings()
    last = set() if output is None else {id(parameter) for parameter in output.parameters()}
    head: Named = []
    embeddings: Named = []
    for place, ((name, parameter), home) in enumerate(zip(parameters, homes, strict=True)):
        around = next((index for index, stack in enumerate(found) if _inside(name, stack.scope)), None)
        start = min(first.values(), default=0) if around is None else first.get(around, 0)
        if name in new:
            part = head
        elif home is not None:
            part = blocks[home[0]][home[1]]
        elif id(parameter) in embedded:
            part = embeddings
        elif id(parameter) in last:
            part = head
        elif "embed" in name or place < start:
            part = embeddings
        else:
            part = head if around is None else blocks[around][-1]
        part.append((name, parameter))
    if last & embedded and all(id(parameter) in last and name not in new for name, parameter in head):
        # Nothing but the bias of a tied output layer, which is trained with its weights.
        head, embeddings = [], [*embeddings, *head]
    return Parts(head, [block for stack in reversed(blocks) for block in reversed(stack)], embeddings)


def _block_of(name: str, found: Sequence[Stack]) -> tuple[int, int] | None:
    """Return the stack and block index of a parameter that is in a block."""
    for index, stack in enumerate(found):
        for path in stack.lists:
            if _inside(name, path):
                return index, int(name[len(path) + 1 :].split(".")[0])
    return None


def layer_groups(model: PreTrainedModel, new: Collection[str] = ()) -> list[Named]:
    """Trainable parameters in groups from the output layer down to the embeddings; see `model_parts`.

    A tied output layer is in the last group, with the embeddings; the first group is then the top block.

    Args:
        model: Model, before it is wrapped for several processes.
        new: Names of newly initialized parameters, missing from the checkpoint.
    """
    parts = model_parts(model, new)
    groups = [parts.head, *parts.blocks, parts.embeddings]
    trainable = ([pair for pair in group if pair[1].requires_grad] for group in groups)
    return [group for group in trainable if group]
