"""What models return, made with little between two steps of generation."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, ModelOutput, Seq2SeqLMOutput

_REGISTERED: set[type] = set()


class QuickOutput(ModelOutput):
    """A `ModelOutput` that looks a name up among its fields where the parent makes a set of them, for each attribute.

    Making two outputs was a tenth of a step of generation.
    """

    def __post_init__(self) -> None:
        """Do what the parent does, which is nothing new where the fields have been set as attributes.

        It is left to register the class, once, and to take a mapping in place of the first field.
        """
        names = self.__dataclass_fields__  # type: ignore[attr-defined]
        first = getattr(self, next(iter(names)))
        if type(self) not in _REGISTERED or not (first is None or isinstance(first, Tensor)):
            super().__post_init__()
            _REGISTERED.add(type(self))

    def __getitem__(self, key: Any) -> Any:
        """An item by its name, or by its place among those that are not None."""
        return OrderedDict.__getitem__(self, key) if isinstance(key, str) else super().__getitem__(key)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the attribute and, if it is a field and not None, the item."""
        if value is not None and name in self.__dataclass_fields__:  # type: ignore[attr-defined]
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)


@dataclass
class CausalOutput(QuickOutput, CausalLMOutputWithCrossAttentions):
    """What a language model returns."""


@dataclass
class Seq2SeqOutput(QuickOutput, Seq2SeqLMOutput):
    """What a sequence-to-sequence model returns."""
