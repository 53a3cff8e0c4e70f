"""Fixtures of fairseq 0.12.2: LSTM and convolutional translators and language models with random weights.

python benchmarks/peers/fairseq_models.py OUTPUT FAIRSEQ

FAIRSEQ is the unpacked source archive of fairseq 0.12.2: it does not install on Python 3.11, whose dataclasses refuse
mutable defaults. The shim below is all that importing it takes; no extension is compiled. Models are built by its
options and tasks, and saved by its trainer. Sources are padded on the left, as fairseq does.
"""

import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Case, arguments, pad, randomize

SYMBOLS = {"src": [f"s{number}" for number in range(14)], "tgt": [f"t{number}" for number in range(11)]}
SOURCES = ([7, 8, 9, 10, 5, 2], [11, 12, 13, 4, 2], [6, 9, 2])
TARGETS = ([2, 5, 6, 7], [2, 8, 9, 4, 10], [2, 10, 12])
SMALL = ["--encoder-embed-dim", "6", "--decoder-embed-dim", "6"]
CASES = {
    "lstm_uni": [
        *["--arch", "lstm", *SMALL, "--decoder-out-embed-dim", "8"],
        *[
            "--encoder-hidden-size",
            "8",
            "--decoder-hidden-size",
            "8",
            "--encoder-layers",
            "2",
            "--decoder-layers",
            "2",
        ],
    ],
    "lstm_bidirectional": [
        *["--arch", "lstm", *SMALL, "--decoder-out-embed-dim", "8", "--encoder-bidirectional"],
        *["--encoder-hidden-size", "4", "--decoder-hidden-size", "8"],
    ],
    "lstm_wide_encoder_tied": [
        *["--arch", "lstm", *SMALL, "--decoder-out-embed-dim", "6", "--encoder-bidirectional"],
        *["--encoder-hidden-size", "6", "--decoder-hidden-size", "8", "--share-decoder-input-output-embed"],
    ],
    "lstm_lm": [
        *["--task", "language_modeling", "--arch", "lstm_lm", "--decoder-embed-dim", "6"],
        *["--decoder-out-embed-dim", "8", "--decoder-hidden-size", "8", "--decoder-layers", "2"],
    ],
    "fconv": [
        *["--arch", "fconv", *SMALL, "--decoder-out-embed-dim", "6", "--max-source-positions", "20"],
        *["--max-target-positions", "20", "--encoder-layers", "[(8, 3)] * 2", "--decoder-layers", "[(8, 3)] * 2"],
    ],
    "fconv_lm": [
        *["--task", "language_modeling", "--arch", "fconv_lm", "--decoder-embed-dim", "6"],
        *["--decoder-layers", "[(8, 4)] * 2", "--decoder-attention", "False"],
    ],
}
"""Name of a case to the options of `fairseq-train`."""


def import_fairseq(source: Path) -> None:
    """Make fairseq importable: its dataclasses have instances of dataclasses as defaults, which must be hashable."""
    original: Any = dataclasses.dataclass

    def hashable(cls: Any = None, **options: Any) -> Any:
        if cls is None:
            return lambda cls: hashable(cls, **options)
        made = original(cls, **options)
        if made.__hash__ is None:
            made.__hash__ = object.__hash__
        return made

    dataclasses.dataclass = hashable
    sys.path.insert(0, str(source.resolve()))


def save(case: Case, flags: list[str]) -> Any:
    """Build and save a model; its vocabularies lie in the working folder."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.trainer import Trainer

    parser = options.get_training_parser()
    languages = [] if "language_modeling" in flags else ["--source-lang", "src", "--target-lang", "tgt"]
    training = ["--optimizer", "sgd", "--lr", "0.1", "--cpu", "--no-save-optimizer-state"]
    config = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(parser, ["data", *languages, *training, *flags])
    )
    task = tasks.setup_task(config.task)
    model = task.build_model(config.model)
    randomize(model, 11)
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    trainer.save_checkpoint(str(case.folder / "checkpoint_best.pt"), {"train_iterator": {"epoch": 1}, "val_loss": 3.0})
    for name in ("dict.txt",) if not languages else ("dict.src.txt", "dict.tgt.txt"):
        (case.folder / name).write_bytes(Path("data", name).read_bytes())
    return model.eval()


def main() -> None:
    """Save every case and compute its logits."""
    args = arguments(__doc__, "fairseq")
    torch.set_num_threads(1)
    output = args.output.resolve()
    import_fairseq(args.fairseq)
    from fairseq.data import Dictionary

    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        Path("data").mkdir()
        for side, symbols in SYMBOLS.items():
            dictionary = Dictionary()
            for symbol in symbols:
                dictionary.add_symbol(symbol)
            # The target side is filled up to a multiple of 8, as `fairseq-preprocess` does.
            dictionary.finalize(padding_factor=8 if side == "tgt" else 1)
            dictionary.save(f"data/dict.{side}.txt")
        Path("data/dict.txt").write_bytes(Path("data/dict.tgt.txt").read_bytes())
        for case_name, flags in CASES.items():
            case = Case(output, f"fairseq/{case_name}", (), fairseq="0.12.2", flags=flags)
            model = save(case, flags)
            if "language_modeling" in flags:
                case.forward(TARGETS, lambda ids, mask, model=model: model(ids)[0], "right", padding=1)
            else:
                translate(case, model)
            case.write()


def translate(case: Case, model: Any) -> None:
    """Add the logits of a translator."""
    for batch, picked in {"left": range(3), "row0": [0], "row1": [1], "row2": [2]}.items():
        source, mask = pad([SOURCES[number] for number in picked], "left", 1)
        target, target_mask = pad([TARGETS[number] for number in picked], "right", 1)
        with torch.no_grad():
            logits, _ = model(source, mask.sum(1), target)
        case.add(
            batch,
            input_ids=source,
            attention_mask=mask,
            decoder_input_ids=target,
            decoder_attention_mask=target_mask,
            logits=logits,
        )


if __name__ == "__main__":
    main()
