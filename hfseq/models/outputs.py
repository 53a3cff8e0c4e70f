"""What models return, made with little between two steps of generation."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, ModelOutput, Seq2SeqLMOutput


class QuickOutput(ModelOutput):
    """A `ModelOutput` that looks a name up among its fields where the parent makes a set of them, for each attribute.

    Making two outputs was a twentieth of a step of generation.
    """

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
