"""Checkpoints of other toolkits, converted to models of hfseq.

    python -m hfseq.convert torch model.pt --vocab words.txt --output_dir outputs/converted

Each format is a function, too, which returns a `Converted`. The result is compared with a forward pass in plain torch
under the names of the checkpoint, on rows with and without padding; no checkpoint is ever unpickled without a list of
the names that it may contain.
"""

from hfseq.convert.base import Converted, Format, Reference
from hfseq.convert.checking import Check, check_conversion
from hfseq.convert.from_fairseq import convert_fairseq
from hfseq.convert.from_fastai import convert_fastai
from hfseq.convert.from_joeynmt import convert_joeynmt
from hfseq.convert.from_keras import convert_keras
from hfseq.convert.from_opennmt import convert_opennmt
from hfseq.convert.from_torch import convert_torch

__all__ = [
    "Check",
    "Converted",
    "Format",
    "Reference",
    "check_conversion",
    "convert_fairseq",
    "convert_fastai",
    "convert_joeynmt",
    "convert_keras",
    "convert_opennmt",
    "convert_torch",
]
