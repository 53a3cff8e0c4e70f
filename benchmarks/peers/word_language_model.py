"""Fixtures of the word language model of pytorch/examples, trained by its own `main.py` on a toy text.

python benchmarks/peers/word_language_model.py OUTPUT EXAMPLES

`main.py` pickles the whole model. The same model is here as a state dict and in the format before torch 1.6, too. Its
vocabulary is not saved: the words of `train.txt` in order of appearance, then those of the other files.
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Case, arguments, rows, save_legacy, sentences, write_lines
from torch import Tensor

MODELS = {"lstm": "LSTM", "gru_tied": "GRU", "rnn_tanh": "RNN_TANH"}
LENGTHS = (3, 7, 1, 5)


def log_probabilities(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities `[B, T, V]`: `forward` ends with a log-softmax, and time comes first there."""
    flat, _ = model(ids.t(), model.init_hidden(len(ids)))
    return flat.view(ids.shape[1], len(ids), -1).transpose(0, 1)


def main() -> None:
    """Train one model of each cell for an epoch and save it."""
    args = arguments(__doc__, "examples")
    torch.set_num_threads(1)
    checkout = (args.examples / "word_language_model").resolve()
    sys.path.insert(0, str(checkout))
    import data

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (split, count) in enumerate({"train": 120, "valid": 30, "test": 30}.items()):
            write_lines(folder / f"{split}.txt", sentences(count, seed=number))
        vocabulary = data.Corpus(name).dictionary.idx2word
        for case_name, kind in MODELS.items():
            case = Case(args.output, f"torch/word_language_model_{case_name}", (), cell=kind.partition("_")[0].lower())
            whole = case.folder / "model.pt"
            command = [sys.executable, "main.py", "--data", name, "--model", kind, "--emsize", "8", "--nhid", "8"]
            command += ["--nlayers", "2", "--epochs", "1", "--batch_size", "4", "--lr", "5", "--save", str(whole)]
            command += ["--tied"] if case_name.endswith("tied") else []
            subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
            model = torch.load(whole, weights_only=False)
            model.eval()
            if kind == "LSTM":
                torch.save(model.state_dict(), case.folder / "state_dict.pt")
                save_legacy(model, case.folder / "model_legacy.pt")
            write_lines(case.folder / "vocab.txt", vocabulary)
            case.forward(rows(LENGTHS, len(vocabulary), 0, 5), partial(log_probabilities, model))
            case.write()


if __name__ == "__main__":
    main()
