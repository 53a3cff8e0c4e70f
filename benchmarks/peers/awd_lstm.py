"""Fixtures of salesforce/awd-lstm-lm, trained by its own `main.py` on a toy text.

python benchmarks/peers/awd_lstm.py OUTPUT AWD_LSTM_LM

Its checkpoint is a pickled list of whole objects: model, criterion, optimizer. `awd_lstm_lm` is what `main.py` saves
today. `awd_lstm_lm_legacy` is in the format before torch 1.6, as published checkpoints are, and of a model that has
not run yet: `weight_hh_l0_raw` is the only recurrent matrix of its layers.
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Case, arguments, randomize, rows, save_legacy, sentences, write_lines
from torch import Tensor

SIZES = ("--emsize", "6", "--nhid", "10", "--nlayers", "3")
LENGTHS = (3, 7, 1, 5)


def logits(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits `[B, T, V]`: its `forward` ends with the states, in which time comes first."""
    states, _ = model(ids.t(), model.init_hidden(len(ids)))
    return model.decoder(states).view(ids.shape[1], len(ids), -1).transpose(0, 1)


def main() -> None:
    """Train for an epoch, save, and compute logits."""
    args = arguments(__doc__, "awd_lstm_lm")
    torch.set_num_threads(1)
    checkout = args.awd_lstm_lm.resolve()
    sys.path.insert(0, str(checkout))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (split, count) in enumerate({"train": 150, "valid": 60, "test": 30}.items()):
            write_lines(folder / f"{split}.txt", sentences(count, seed=number))
        case = Case(args.output, "fastai/awd_lstm_lm", (), cell="lstm")
        saved = case.folder / "model.pt"
        command = [sys.executable, str(checkout / "main.py"), "--cuda", "--data", name, "--save", str(saved.resolve())]
        command += [*SIZES, "--epochs", "1", "--batch_size", "4", "--bptt", "10", "--lr", "3"]
        # Its last line, a torch.load as before torch 2.6, fails; the checkpoint has been saved by then.
        done = subprocess.run(command, cwd=name, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if not saved.is_file():
            sys.exit(done.stderr[-3000:])
        import data

        vocabulary = data.Corpus(name).dictionary.idx2word
        write_lines(case.folder / "vocab.txt", vocabulary)
        model, criterion, optimizer = torch.load(saved, weights_only=False)
        model.eval()
        ids = rows(LENGTHS, len(vocabulary), 0, 5)
        case.forward(ids, partial(logits, model))
        case.write()

        case = Case(args.output, "fastai/awd_lstm_lm_legacy", (), cell="lstm")
        from model import RNNModel
        from splitcross import SplitCrossEntropyLoss

        model = RNNModel("LSTM", len(vocabulary), 6, 10, 2, wdrop=0.5, tie_weights=True)
        randomize(model, 9)
        criterion = SplitCrossEntropyLoss(6, splits=[], verbose=False)
        optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=30, weight_decay=1.2e-6)
        save_legacy([model, criterion, optimizer], case.folder / "model.pt")
        write_lines(case.folder / "vocab.txt", vocabulary)
        case.forward(ids, partial(logits, model))
        case.write()


if __name__ == "__main__":
    main()
