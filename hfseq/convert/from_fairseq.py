"""Recurrent and convolutional models of fairseq."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfseq.convert.base import Converted, Format
from hfseq.convert.fairseq_conv import convert_fconv, convert_fconv_lm
from hfseq.convert.fairseq_files import read_fairseq
from hfseq.convert.fairseq_lstm import convert_lstm, convert_lstm_lm
from hfseq.errors import InputError

_KINDS: tuple[tuple[str, str, Any, Any], ...] = (
    ("decoder.layers.0.weight_ih", "encoder.lstm.weight_ih_l0", convert_lstm, convert_lstm_lm),
    ("decoder.convolutions.0.weight_v", "encoder.convolutions.0.weight_v", convert_fconv, convert_fconv_lm),
)
"""A weight of each kind of decoder and encoder, and what converts a model of both, and of the decoder alone."""


def convert_fairseq(
    checkpoint: str | Path, *, dict_dir: str | Path | None = None, bpe_codes: Sequence[str | Path] = ()
) -> Converted:
    """Convert a model that `fairseq-train` wrote: `lstm`, `lstm_lm`, `fconv` or `fconv_lm`.

    Widths and depths are those of the weights; of the options only those count that the weights do not tell.

    Args:
        checkpoint: `checkpoint_best.pt` or another one.
        dict_dir: Folder with the dictionaries that `fairseq-preprocess` wrote, `dict.txt` or `dict.LANGUAGE.txt`; or a
            language model's dictionary itself; None for no tokenizer.
        bpe_codes: File of BPE codes of subword-nmt or fastBPE, or one for each language; none for a tokenizer of texts
            that are split already.

    Raises:
        InputError: If the checkpoint cannot be read safely, is of another architecture, or has an option that hfseq
            does not have; or if the dictionaries or the codes do not fit.
    """
    found = read_fairseq(checkpoint)
    if len(bpe_codes) > 2:
        raise InputError("--bpe_codes: one file for both languages, or one for each")
    for decoder, encoder, translator, language_model in _KINDS:
        if decoder in found.weights:
            if encoder in found.weights:
                return translator(found, dict_dir, bpe_codes)
            if not any(name.startswith("encoder.") for name in found.weights):
                return language_model(found, dict_dir, bpe_codes)
    raise InputError(
        f"{found.path}: --arch {found.arch} is none of those that hfseq converts: lstm, lstm_lm, fconv, fconv_lm"
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument("--dict_dir", help="folder with the dictionaries, or the dictionary of a language model")
    parser.add_argument(
        "--bpe_codes", nargs="+", default=[], help="BPE codes of subword-nmt or fastBPE, perhaps for each language"
    )


FORMAT = Format(convert_fairseq, add_arguments, "models of fairseq: lstm, lstm_lm, fconv, fconv_lm")
