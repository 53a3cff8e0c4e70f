"""Where the parameters of a model stand: head, blocks, embeddings."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

Named = list[tuple[str, nn.Parameter]]
"""Parameters with their names."""


class Parts(NamedTuple):
    """Where the parameters of a model stand.

    Attributes:
        head: What is on top of all blocks.
        blocks: The blocks, the top one first; those of a decoder above those of its encoder.
        embeddings: What is below all blocks, and weights that the output layer shares with the embeddings.
    """

    head: Named
    blocks: list[Named]
    embeddings: Named


class Stack(NamedTuple):
    """Blocks one above the other.

    Attributes:
        lists: Names of the module lists that hold them, each a part of every block: both directions, norms.
        scope: Name of the largest module that holds no other stack, empty for the model itself.
        length: Number of blocks.
    """

    lists: list[str]
    scope: str
    length: int


def _inside(name: str, scope: str) -> bool:
    """Whether a parameter or module is inside the module `scope`."""
    return not scope or name.startswith(f"{scope}.")


def stacks(model: nn.Module) -> list[Stack]:
    """The stacks of blocks of a model, bottom first: its outermost module lists.

    Lists of one length in one module are parts of the same blocks.
    """
    lists: list[str] = []
    groups: dict[tuple[str, int], list[str]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(_inside(name, outer) for outer in lists):
            continue
        if any(True for _ in module.parameters()):
            lists.append(name)
            groups.setdefault((name.rpartition(".")[0], len(module)), []).append(name)
    owners = [owner for owner, _ in groups]
    found = []
    for index, ((owner, length), names) in enumerate(groups.items()):
        others = owners[:index] + owners[index + 1 :]
        parts = owner.split(".")
        ancestors = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        alone = (scope for scope in ancestors if not any(_inside(f"{other}.", scope) for other in others))
        found.append(Stack(names, next(alone, owner), length))
    return found


def model_parts(model: PreTrainedModel, new: Collection[str] = ()) -> Parts:
    """Sort all parameters of a model into head, blocks and embeddings, each into one.

    Nothing is asked of an architecture but that its blocks are in module lists. What is in none of them belongs to

    - the head, if it is the output layer or outside of the module that holds the blocks;
    - the embeddings, if it is an embedding table, has `embed` in its name, or comes before the blocks;
    - the top block else: a last norm, a pooler, a decoder's attention.

    Args:
        model: The model.
        new: Names of parameters that no checkpoint has trained, as `from_pretrained` reports missing keys; they
            belong to the head wherever they stand.
    """
    found = stacks(model)
    blocks: list[list[Named]] = [[[] for _ in range(stack.length)] for stack in found]
    parameters = list(model.named_parameters())
    first: dict[int, int] = {}
    for place, (name, _) in enumerate(parameters):
        for stack, _ in _blocks_of(name, found):
            first.setdefault(stack, place)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    embedded = {id(parameter) for table in tables for parameter in table.parameters()}
    output = model.get_output_embeddings()
    last = set() if output is None else {id(parameter) for parameter in output.parameters()}
    head: Named = []
    embeddings: Named = []
    for place, (name, parameter) in enumerate(parameters):
        block = next((blocks[stack][index] for stack, index in _blocks_of(name, found)), None)
        around = next((index for index, stack in enumerate(found) if _inside(name, stack.scope)), None)
        start = min(first.values(), default=0) if around is None else first.get(around, 0)
        if name in new:
            part = head
        elif block is not None:
            part = block
        elif id(parameter) in embedded:
            part = embeddings
        elif id(parameter) in last:
            part = head
        elif "embed" in name or place < start:
            part = embeddings
        else:
            part = head if around is None else blocks[around][-1]
        part.append((name, parameter))
    return Parts(head, [block for stack in reversed(blocks) for block in reversed(stack)], embeddings)


def _blocks_of(name: str, found: Sequence[Stack]) -> Iterable[tuple[int, int]]:
    """Stack and block that a parameter is in, if it is in one."""
    for index, stack in enumerate(found):
        for path in stack.lists:
            if _inside(name, path):
                yield index, int(name[len(path) + 1 :].split(".")[0])


def layer_groups(model: PreTrainedModel, new: Collection[str] = ()) -> list[Named]:
    """The trainable parameters from the output layer down to the embeddings, each in one group; see `model_parts`.

    An output layer that shares the embeddings' weights is with them in the last group, where the first update reaches
    it latest: the first group is then the top block.

    Args:
        model: The model, before it is wrapped for several processes.
        new: As for `model_parts`.
    """
    parts = model_parts(model, new)
    groups = (
        [pair for pair in part if pair[1].requires_grad] for part in (parts.head, *parts.blocks, parts.embeddings)
    )
    return [group for group in groups if group]
