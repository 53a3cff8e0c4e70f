"""Fixtures of people's own PyTorch models: language models, classifiers, taggers with pytorch-crf, ESPnet, icefall.

python benchmarks/peers/torch_models.py OUTPUT ICEFALL

Needs torch, pytorch-crf, espnet and a checkout of icefall. The modules in this file are written as tutorials write
them, and saved in the ways that are met: a bare state dict, the dictionary of a training loop, one of
`nn.DataParallel`, the format before torch 1.6.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from common import WORDS, Case, arguments, pad, randomize, rows, write_lines
from espnet2.lm.espnet_model import ESPnetLanguageModel
from espnet2.lm.seq_rnn_lm import SequentialRNNLM
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchcrf import CRF

VOCABULARY = ["<pad>", "<unk>", "<bos>", "<eos>", *WORDS[:18]]
SIZE = len(VOCABULARY)
LENGTHS = (3, 7, 1, 5)
SEQUENCES = rows(LENGTHS, SIZE, first=2, seed=1)
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CLASSES = ["bad", "good", "neutral"]


class LanguageModel(nn.Module):
    """Embedding, recurrent layers, output layer; the cell is a module of torch."""

    def __init__(
        self, cell: type[nn.RNNBase], embedding: int, hidden: int, layers: int, tied: bool = False, **options
    ):
        super().__init__()
        self.embedding = nn.Embedding(SIZE, embedding)
        self.rnn = cell(embedding, hidden, layers, batch_first=True, **options)
        self.fc = nn.Linear(hidden, SIZE)
        if tied:
            self.fc.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `[B, T, V]`."""
        return self.fc(self.rnn(self.embedding(ids))[0])


class Classifier(nn.Module):
    """Packed rows; the last states of both directions, or the mean of the valid steps, go into a linear layer."""

    def __init__(self, cell: type[nn.RNNBase], pooling: str, bidirectional: bool, layers: int):
        super().__init__()
        self.pooling = pooling
        self.embedding = nn.Embedding(SIZE, 6, padding_idx=0)
        self.encoder = cell(6, 8, layers, batch_first=True, bidirectional=bidirectional)
        self.classifier = nn.Linear(16 if bidirectional else 8, len(CLASSES))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits `[B, N]`."""
        lengths = mask.sum(1)
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        output, states = self.encoder(packed)
        if self.pooling == "last":
            last = states[0] if isinstance(states, tuple) else states
            pooled = torch.cat([last[-2], last[-1]], dim=1) if self.encoder.bidirectional else last[-1]
        else:
            steps, _ = pad_packed_sequence(output, batch_first=True)
            pooled = steps.sum(1) / lengths[:, None]
        return self.classifier(pooled)


class Tagger(nn.Module):
    """A bidirectional stack over packed rows, a linear layer, and a CRF if asked for."""

    def __init__(self, cell: type[nn.RNNBase], layers: int, crf: bool):
        super().__init__()
        self.word_embeddings = nn.Embedding(SIZE, 6, padding_idx=0)
        self.lstm = cell(6, 8, layers, batch_first=True, bidirectional=True)
        self.hidden2tag = nn.Linear(16, len(TAGS))
        if crf:
            self.crf = CRF(len(TAGS), batch_first=True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Emissions `[B, T, N]`."""
        packed = pack_padded_sequence(self.word_embeddings(ids), mask.sum(1), batch_first=True, enforce_sorted=False)
        return self.hidden2tag(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])


def language_models(output: Path) -> None:
    """Three cells, three ways to save."""
    case = Case(output, "torch/lm_lstm", (), cell="lstm")
    model = LanguageModel(nn.LSTM, 6, 8, 2)
    randomize(model, 1)
    torch.save(model.state_dict(), case.folder / "model.pt")
    finish(case, lambda ids, mask: model(ids))

    case = Case(output, "torch/lm_gru_tied_dataparallel", (), cell="gru")
    tied = LanguageModel(nn.GRU, 8, 8, 2, tied=True)
    randomize(tied, 2)
    optimizer = torch.optim.Adam(tied.parameters())
    nn.functional.cross_entropy(tied(torch.tensor([[4, 5]])).flatten(0, 1), torch.tensor([5, 3])).backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "model_state_dict": nn.DataParallel(tied).state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": 2.5,
    }
    torch.save(checkpoint, case.folder / "checkpoint.tar")
    finish(case, lambda ids, mask: tied(ids))

    case = Case(output, "torch/lm_rnn_relu_legacy", (), cell="rnn", nonlinearity="relu")
    relu = LanguageModel(nn.RNN, 6, 8, 1, nonlinearity="relu")
    randomize(relu, 3, spread=0.3)
    torch.save(relu.state_dict(), case.folder / "model.pt", _use_new_zipfile_serialization=False)
    finish(case, lambda ids, mask: relu(ids))


def classifiers(output: Path) -> None:
    """The last states of a bidirectional LSTM; the mean of a GRU's steps."""
    for name, cell, pooling, bidirectional, layers in (
        ("classifier_lstm_last", nn.LSTM, "last", True, 1),
        ("classifier_gru_mean", nn.GRU, "mean", False, 1),
    ):
        case = Case(output, f"torch/{name}", (), cell=cell.__name__.lower(), pooling=pooling)
        model = Classifier(cell, pooling, bidirectional, layers)
        randomize(model, 4)
        torch.save(model.state_dict(), case.folder / "model.pt")
        write_lines(case.folder / "labels.txt", CLASSES)
        finish(case, model)


def taggers(output: Path) -> None:
    """Emissions; with a CRF also log-likelihoods of tags and the best tags (-1 at padding)."""
    case = Case(output, "torch/tagger_gru", (), cell="gru")
    plain = Tagger(nn.GRU, 1, crf=False)
    randomize(plain, 5)
    torch.save(plain.state_dict(), case.folder / "model.pt")
    write_lines(case.folder / "tags.txt", TAGS)
    finish(case, plain)

    case = Case(output, "torch/tagger_lstm_crf", ("pytorch-crf",), cell="lstm")
    model = Tagger(nn.LSTM, 2, crf=True)
    randomize(model, 6)
    torch.save(model.state_dict(), case.folder / "model.pt")
    write_lines(case.folder / "tags.txt", TAGS)
    labels = rows(LENGTHS, len(TAGS), first=0, seed=2)
    with torch.no_grad():
        for batch, picked in {"right": range(len(LENGTHS)), **{f"row{n}": [n] for n in range(len(LENGTHS))}}.items():
            ids, mask = pad([SEQUENCES[number] for number in picked], "right")
            gold, _ = pad([labels[number] for number in picked], "right")
            emissions = model(ids, mask)
            likelihood = model.crf(emissions, gold, mask=mask.bool(), reduction="none")
            best, _ = pad(model.crf.decode(emissions, mask=mask.bool()), "right", padding=-1)
            case.add(batch, labels=gold, log_likelihood=likelihood, best=best)
    finish(case, model)


def espnet(output: Path) -> None:
    """ESPnet's `SequentialRNNLM` inside its `ESPnetLanguageModel`, whose state dict is the checkpoint."""
    case = Case(output, "torch/espnet_lstm", ("espnet",), cell="lstm")
    tokens = ["<blank>", "<unk>", *WORDS[:18], "<sos/eos>"]
    model = ESPnetLanguageModel(SequentialRNNLM(len(tokens), unit=8, nlayers=2, rnn_type="lstm"), len(tokens))
    randomize(model, 7)
    torch.save(model.state_dict(), case.folder / "valid.loss.best.pth")
    lines = ["lm: seq_rnn", "lm_conf:", "    unit: 8", "    nlayers: 2", "    rnn_type: lstm", "token_list:"]
    write_lines(case.folder / "config.yaml", [*lines, *(f"- {token}" for token in tokens)])
    case.forward(rows(LENGTHS, len(tokens), 1, 3), lambda ids, mask: model.lm(ids, None)[0], "right")
    case.write()


def icefall(output: Path, checkout: Path) -> None:
    """The `RnnLmModel` of icefall, as its `export.py` saves it."""
    utils = ModuleType("icefall.utils")
    # Its forward does not need them for logits, and their module needs k2, which is not on the package index.
    utils.add_eos = utils.add_sos = utils.make_pad_mask = None  # type: ignore[attr-defined]
    sys.modules["icefall.utils"] = utils
    spec = importlib.util.spec_from_file_location("rnn_lm_model", checkout / "icefall" / "rnn_lm" / "model.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    case = Case(output, "torch/icefall_lstm_tied", (), cell="lstm")
    tokens = ["<blk>", "<sos/eos>", "<unk>", *(f"▁{word}" for word in WORDS[:18])]
    model = module.RnnLmModel(len(tokens), 8, 8, 2, tie_weights=True)
    randomize(model, 8)
    torch.save({"model": model.state_dict()}, case.folder / "pretrained.pt")
    write_lines(case.folder / "tokens.txt", [f"{token} {number}" for number, token in enumerate(tokens)])

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        found: list[Tensor] = []
        hook = model.output_linear.register_forward_hook(lambda layer, inputs, answer: found.append(answer))
        zeros = torch.zeros(2, len(ids), 8)
        model.streaming_forward(ids, ids, zeros, zeros)
        hook.remove()
        return found[0]

    case.forward(rows(LENGTHS, len(tokens), 1, 4), logits, "right")
    case.write()


def finish(case: Case, model: Any) -> None:
    """Add the vocabulary and the logits of rows of words; padding is 0."""
    write_lines(case.folder / "vocab.txt", VOCABULARY)
    case.forward(SEQUENCES, model, "right")
    case.write()


def main() -> None:
    """Write all cases."""
    args = arguments(__doc__, "icefall")
    torch.set_num_threads(1)
    language_models(args.output)
    classifiers(args.output)
    taggers(args.output)
    espnet(args.output)
    icefall(args.output, args.icefall)


if __name__ == "__main__":
    main()
