"""Recurrent models of fairseq."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from hfseq.convert.base import Converted, Format
from hfseq.convert.fairseq_files import read_fairseq
from hfseq.convert.fairseq_lstm import convert_lstm, convert_lstm_lm
from hfseq.errors import InputError


def convert_fairseq(
    checkpoint: str | Path, *, dict_dir: str | Path | None = None, bpe_codes: Sequence[str | Path] = ()
) -> Converted:
    """Convert a model that `fairseq-train` wrote: `lstm` or `lstm_lm`.

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
    if "decoder.layers.0.weight_ih" in found.weights:
        translates = "encoder.lstm.weight_ih_l0" in found.weights
        if translates or not any(name.startswith("encoder.") for name in found.weights):
            return (convert_lstm if translates else convert_lstm_lm)(found, dict_dir, bpe_codes)
    raise InputError(f"{found.path}: --arch {found.arch} is none of those that hfseq converts: lstm, lstm_lm")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags of this format."""
    parser.add_argument("--dict_dir", help="folder with the dictionaries, or the dictionary of a language model")
    parser.add_argument(
        "--bpe_codes", nargs="+", default=[], help="BPE codes of subword-nmt or fastBPE, perhaps for each language"
    )


FORMAT = Format(convert_fairseq, add_arguments, "recurrent models of fairseq: lstm, lstm_lm")
