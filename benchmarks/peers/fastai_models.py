"""Fixtures of fastai: an AWD-LSTM language model and the ULMFiT classifier made from it, trained for a few batches.

python benchmarks/peers/fastai_models.py OUTPUT

`learn.save` writes `lm.pth`, with the optimizer's state and without; `learn.save_encoder` writes `encoder.pth`;
`itos.pkl` is the pickled vocabulary, as courses save it.
"""

import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import Case, arguments, sentences, write_lines
from fastai.text.all import (
    AWD_LSTM,
    SGD,
    BaseTokenizer,
    CategoryBlock,
    ColReader,
    DataBlock,
    Learner,
    RandomSplitter,
    TextBlock,
    awd_lstm_clas_config,
    awd_lstm_lm_config,
    language_model_learner,
    set_seed,
    text_classifier_learner,
)
from torch import Tensor

SIZES = {"emb_sz": 8, "n_hid": 10, "n_layers": 3}
LENGTHS = (9, 4, 1)


def language_model(rows: pd.DataFrame, folder: Path) -> Learner:
    """A language model after an epoch."""
    text = TextBlock.from_df("text", is_lm=True, seq_len=12, tok=BaseTokenizer(), min_freq=1, n_workers=1)
    loaders = DataBlock(text, get_x=ColReader("text"), splitter=RandomSplitter(0.1, seed=1)).dataloaders(
        rows, bs=4, seq_len=12, num_workers=0
    )
    config = awd_lstm_lm_config | SIZES
    learner = language_model_learner(
        loaders,
        AWD_LSTM,
        config=config,
        pretrained=False,
        opt_func=partial(SGD, mom=0.9),
        path=folder,
        model_dir="models",
    )
    spread(learner.model)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 0.05)
    return learner


def classifier(rows: pd.DataFrame, folder: Path, vocabulary: list[str]) -> Learner:
    """A classifier on the saved encoder, after an epoch."""
    text = TextBlock.from_df("text", vocab=vocabulary, tok=BaseTokenizer(), seq_len=12, n_workers=1)
    block = DataBlock(
        (text, CategoryBlock), get_x=ColReader("text"), get_y=ColReader("label"), splitter=RandomSplitter(0.1, seed=1)
    )
    loaders = block.dataloaders(rows, bs=8, num_workers=0)
    learner = text_classifier_learner(
        loaders,
        AWD_LSTM,
        config=awd_lstm_clas_config | SIZES,
        pretrained=False,
        opt_func=partial(SGD, mom=0.9),
        path=folder,
        model_dir="models",
        seq_len=12,
    )
    learner.load_encoder("encoder")
    spread(learner.model[1])
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 0.05)
    return learner


def spread(model: torch.nn.Module) -> None:
    """Wider weights than the initial ones, and biases that are not zero, so that a lost one shows in the logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.6, 0.6)


def main() -> None:
    """Train both, save them, and compute logits."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    set_seed(42, reproducible=True)
    output = args.output.resolve()
    texts = sentences(80, seed=1)
    rows = pd.DataFrame({"text": texts, "label": ["many" if len(text.split()) > 5 else "few" for text in texts]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").mkdir()
        case = Case(output, "fastai/awd_lstm", ("fastai",))
        learner = language_model(rows, folder)
        for file, with_optimizer in (("lm_with_opt", True), ("lm", False)):
            learner.save(file, with_opt=with_optimizer).rename(case.folder / f"{file}.pth")
        learner.save_encoder("encoder")
        vocabulary = list(learner.dls.vocab)
        (case.folder / "itos.pkl").write_bytes(pickle.dumps(vocabulary))
        model = learner.model.cpu().eval()

        def logits(ids: Tensor, mask: Tensor) -> Tensor:
            model.reset()
            return model(ids)[0]

        ids = encode(vocabulary, sentences(3, seed=2))
        case.forward(ids, logits)
        case.write()

        case = Case(output, "fastai/awd_lstm_classifier", ("fastai",), classes=["few", "many"])
        learner = classifier(rows, folder, vocabulary)
        learner.save("classifier", with_opt=False).rename(case.folder / "classifier.pth")
        (case.folder / "itos.pkl").write_bytes(pickle.dumps(vocabulary))
        write_lines(case.folder / "labels.txt", list(learner.dls.vocab[1]))
        model = learner.model.cpu().eval()
        case.forward(ids, logits)
        case.write()


def encode(vocabulary: list[str], texts: list[str]) -> list[list[int]]:
    """Ids of texts, after the token that begins each of them."""
    ids: dict[Any, int] = {word: number for number, word in enumerate(vocabulary)}
    return [[ids["xxbos"], *(ids[word] for word in text.split())] for text in texts]


if __name__ == "__main__":
    main()
