"""Result of a conversion, and the interface of a format."""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reference = Callable[..., Tensor]
"""The source model in plain torch, by its own names: maps token ids of one row without padding, `[1, T]`, to logits.

These are `[1, T, V]` of language models and taggers, and `[1, N]` of classifiers. That of a sequence-to-sequence model
maps source ids `[1, S]` and decoder ids `[1, T]` to logits `[1, T, V]`. A model whose vocabulary was extended may have
more logits than its reference.
"""


@dataclass
class Converted:
    """Converted model.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer; None if the checkpoint has no vocabulary and none was given.
        reference: What the source model computes.
        toolkit: Name of the source toolkit and of its architecture, for the model card: `fairseq (lstm_lm)`.
        ignored: Parts and settings of the checkpoint that the model does not have, a clause each.
        decoding: Differences between the toolkit's decoding, or its reading of texts, and `generate()`, a sentence
            each.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    reference: Reference
    toolkit: str
    ignored: list[str] = field(default_factory=list)
    decoding: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Format:
    """Format of a toolkit's checkpoints, which is a command of `python -m hfseq.convert`.

    Attributes:
        convert: Converts a checkpoint; its keyword arguments are the flags.
        add_arguments: Adds the flags of the format.
        summary: Noun phrase for the help.
    """

    convert: Callable[..., Converted]
    add_arguments: Callable[[ArgumentParser], None]
    summary: str
