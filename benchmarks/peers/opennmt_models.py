"""Fixtures of OpenNMT-py 3.5: recurrent translators trained for a few steps by its own `onmt_train` on a toy corpus.

python benchmarks/peers/opennmt_models.py OUTPUT

OpenNMT-py asks for torch before 2.3, so it is installed without its dependencies; what only its text filters import
are empty modules here. `test.src` are sentences of the corpus, and the rows of `expected.safetensors` the first of
them; a source has no end token here.
"""

import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

for missing in ("ahocorasick", "fasttext", "spacy"):
    sys.modules[missing] = ModuleType(missing)

import torch  # noqa: E402
import yaml  # noqa: E402
from common import Case, arguments, pad, translation_corpus, write_lines  # noqa: E402
from onmt.bin import build_vocab, train  # noqa: E402
from onmt.inputters.inputter import dict_to_vocabs  # noqa: E402
from onmt.model_builder import build_base_model  # noqa: E402
from onmt.utils.parse import ArgumentParser  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "brnn_lstm_general": {"encoder_type": "brnn", "rnn_type": "LSTM", "global_attention": "general", "layers": 2},
    "rnn_lstm_dot": {"encoder_type": "rnn", "rnn_type": "LSTM", "global_attention": "dot", "layers": 1},
    "brnn_gru_mlp": {"encoder_type": "brnn", "rnn_type": "GRU", "global_attention": "mlp", "layers": 1},
    "brnn_lstm_no_feeding": {
        "encoder_type": "brnn",
        "rnn_type": "LSTM",
        "global_attention": "general",
        "layers": 2,
        "input_feed": 0,
        "save_format": "safetensors",
    },
    "brnn_lstm_bridge": {
        "encoder_type": "brnn",
        "rnn_type": "LSTM",
        "global_attention": "general",
        "layers": 1,
        "bridge": True,
        "share_vocab": True,
        "share_embeddings": True,
    },
    "rnn_gru_bridge": {
        "encoder_type": "rnn",
        "rnn_type": "GRU",
        "global_attention": "mlp",
        "layers": 2,
        "bridge": True,
    },
}
"""Name of a case to its options."""
STEPS = 4
ROWS = 4


def run(main: Any, options: dict[str, Any]) -> None:
    """Run a command of OpenNMT-py with options in a YAML file."""
    Path("options.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    before, sys.argv = sys.argv, ["onmt", "-config", "options.yaml"]
    try:
        main()
    finally:
        sys.argv = before


def train_case(name: str, case: dict[str, Any]) -> list[Path]:
    """Files that OpenNMT-py saves of a case."""
    case = {"share_vocab": False} | case
    vocabularies = {"src_vocab": f"{name}/vocab.src", "tgt_vocab": f"{name}/vocab.tgt"}
    data = {"corpus": {"path_src": "train.src", "path_tgt": "train.trg"}}
    common = {"data": data, "share_vocab": case["share_vocab"], "overwrite": True, **vocabularies}
    run(build_vocab.main, {"save_data": f"{name}/samples", "n_sample": -1, "num_threads": 1} | common)
    options = {
        "save_model": f"{name}/model",
        "seed": 42,
        "hidden_size": 10,
        "word_vec_size": 6,
        "param_init": 0.5,
        "optim": "sgd",
        "learning_rate": 0.1,
        "train_steps": STEPS,
        "save_checkpoint_steps": STEPS,
        "batch_size": 8,
        "bucket_size": 64,
        "num_workers": 0,
        "dropout": 0.1,
    }
    run(train.main, options | common | case)
    return sorted(Path(name).glob(f"model_step_{STEPS}*"))


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The trained model, by OpenNMT-py's own functions, and its vocabularies."""
    # Its `load_checkpoint` calls torch.load as before torch 2.6.
    checkpoint = torch.load(folder / f"model_step_{STEPS}.pt", weights_only=False)
    options = ArgumentParser.ckpt_model_opts(checkpoint["opt"])
    ArgumentParser.update_model_opts(options)
    vocabularies = dict_to_vocabs(checkpoint["vocab"])
    model = build_base_model(options, vocabularies)
    if "model" in checkpoint:
        model.load_state_dict(checkpoint)
    else:
        # Its own loader looks for files of another name than its own saver writes.
        torch.nn.Module.load_state_dict(model, load_file(folder / f"model_step_{STEPS}.safetensors"))
    model.eval()
    return model, vocabularies


def logits(model: Any, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """Logits `[B, U, V]` of decoder inputs `[B, U]`."""
    # Its `forward` drops the last target step.
    extended = torch.cat([target, target[:, :1]], dim=1)
    with torch.no_grad():
        states, _ = model(source[..., None], extended[..., None], lengths)
        return model.generator(states)


def main() -> None:
    """Train every case and compute its logits."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    output = args.output.resolve()
    with tempfile.TemporaryDirectory() as name:
        # Paths in the saved options are relative, so that every run writes the same.
        os.chdir(name)
        translation_corpus(Path())
        for case_name, options in CASES.items():
            Path(case_name).mkdir()
            case = Case(output, f"opennmt/{case_name}", ("OpenNMT-py",))
            for file in train_case(case_name, options):
                file.rename(case.folder / file.name)
            model, vocabularies = load(case.folder)
            texts = [Path(f"test.{side}").read_text(encoding="utf-8").splitlines()[:ROWS] for side in ("src", "trg")]
            source = [vocabularies["src"](text.split()) for text in texts[0]]
            target = [vocabularies["tgt"]([vocabularies["decoder_start_token"], *text.split()]) for text in texts[1]]
            write_lines(case.folder / "test.src", texts[0])
            padding = vocabularies["src"]["<blank>"]
            for batch, picked in {"right": range(ROWS), **{f"row{n}": [n] for n in range(ROWS)}}.items():
                input_ids, mask = pad([source[number] for number in picked], "right", padding)
                decoder_ids, decoder_mask = pad([target[number] for number in picked], "right", padding)
                case.add(
                    batch,
                    input_ids=input_ids,
                    attention_mask=mask,
                    decoder_input_ids=decoder_ids,
                    decoder_attention_mask=decoder_mask,
                    logits=logits(model, input_ids, mask.sum(1), decoder_ids),
                )
            case.write()


if __name__ == "__main__":
    main()
