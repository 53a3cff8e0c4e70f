"""Fixtures of Eole 0.6: folders of recurrent translators trained for a few steps by its own command line.

python benchmarks/peers/eole_models.py OUTPUT

A folder has `config.json`, `vocab.json` and `model.00.safetensors`. Rows are alone here: Eole's encoder reads padding.
`position_encoding_type` is null, since by default Eole adds positions to the embeddings of recurrent models, too.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from common import Case, arguments, translation_corpus, write_lines
from eole.bin.main import main as eole
from eole.inputters.inputter import dict_to_vocabs
from eole.models.model import get_model_class
from eole.models.model_saver import get_metadata
from safetensors.torch import load_file

CASES: dict[str, dict[str, Any]] = {
    "eole_brnn_lstm_general": {"encoder": "brnn", "rnn_type": "LSTM", "attention": "general", "layers": 2, "feed": 1},
    "eole_rnn_gru_mlp": {"encoder": "rnn", "rnn_type": "GRU", "attention": "mlp", "layers": 1, "feed": 0},
}
"""Name of a case to its options."""
STEPS = 4
ROWS = 4


def run(command: str, options: dict[str, Any]) -> None:
    """Run a command of Eole with options in a YAML file."""
    Path("options.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    before, sys.argv = sys.argv, ["eole", command, "-config", "options.yaml"]
    try:
        eole()
    finally:
        sys.argv = before


def train(name: str, case: dict[str, Any]) -> Path:
    """Folder of a trained model."""
    common = {
        "src_vocab": "vocab.src",
        "tgt_vocab": "vocab.trg",
        "overwrite": True,
        "data": {"corpus": {"path_src": "train.src", "path_tgt": "train.trg", "transforms": []}},
    }
    run("build_vocab", common | {"save_data": "samples", "n_sample": -1})
    layers = {"rnn_type": case["rnn_type"], "layers": case["layers"]}
    model = {
        # The architecture `rnn` makes every encoder run in one direction.
        "architecture": "custom",
        "hidden_size": 10,
        "input_feed": case["feed"],
        "embeddings": {"word_vec_size": 6, "position_encoding_type": None},
        "encoder": {"encoder_type": case["encoder"], **layers},
        "decoder": {"decoder_type": "rnn", "global_attention": case["attention"], **layers},
    }
    training = {
        "model_path": name,
        "compute_dtype": "fp32",
        "param_init": 0.5,
        "param_init_method": "uniform",
        "optim": "sgd",
        "learning_rate": 0.1,
        "train_steps": STEPS,
        "save_checkpoint_steps": STEPS,
        "batch_size": 8,
        "batch_type": "sents",
        "bucket_size": 64,
        "num_workers": 0,
        "dropout": [0.1],
    }
    run("train", common | {"seed": 42, "share_vocab": False, "model": model, "training": training})
    return Path(name)


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The trained model and its vocabularies, by Eole's own functions."""
    metadata = get_metadata(str(folder))
    config, vocabularies = metadata["config"], dict_to_vocabs(metadata["vocab"])
    model = get_model_class(config.model).build(config.model, vocabularies, config.training)
    model.load_state_dict(load_file(folder / "model.00.safetensors"))
    model.eval()
    return model, vocabularies


def main() -> None:
    """Train every case and compute its logits."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    output = args.output.resolve()
    with tempfile.TemporaryDirectory() as name:
        # Paths in config.json are relative, so that every run writes the same.
        os.chdir(name)
        translation_corpus(Path())
        texts = [Path(f"test.{side}").read_text(encoding="utf-8").splitlines()[:ROWS] for side in ("src", "trg")]
        for case_name, options in CASES.items():
            folder = train(case_name, options)
            case = Case(output, f"opennmt/{case_name}", ("eole",))
            for file in ("config.json", "vocab.json", "model.00.safetensors"):
                shutil.copyfile(folder / file, case.folder / file)
            write_lines(case.folder / "test.src", texts[0])
            model, vocabularies = load(case.folder)
            start = vocabularies["decoder_start_token"]
            for number, (source, target) in enumerate(zip(*texts, strict=True)):
                input_ids = torch.tensor([vocabularies["src"](source.split())])
                decoder_ids = torch.tensor([vocabularies["tgt"]([start, *target.split()])])
                with torch.no_grad():
                    # Its `forward` drops the last target step.
                    states = model(input_ids, torch.cat([decoder_ids, decoder_ids[:, :1]], dim=1), None).dec_out
                    logits = model.generator(states)
                case.add(
                    f"row{number}",
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    decoder_input_ids=decoder_ids,
                    decoder_attention_mask=torch.ones_like(decoder_ids),
                    logits=logits,
                )
            case.write()


if __name__ == "__main__":
    main()
