"""Fixtures of JoeyNMT 2.3: recurrent translators trained for a few steps by its own command line on a toy corpus.

python benchmarks/peers/joeynmt_models.py OUTPUT

Each folder has what JoeyNMT leaves of a training run: `best.ckpt` (a link there, a file here), `config.yaml`,
`src_vocab.txt`, `trg_vocab.txt` and the model of the tokenizer, if it has one. Besides, `test.src` are sentences,
`test.hyp` their greedy translations by JoeyNMT, and the rows of `expected.safetensors` the shortest of the sentences.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from common import Case, arguments, pad, translation_corpus, write_lines
from joeynmt.__main__ import main as command_line
from joeynmt.batch import Batch
from joeynmt.config import load_config, parse_global_args
from joeynmt.helpers import load_checkpoint, set_seed
from joeynmt.model import Model, build_model
from joeynmt.tokenizers import build_tokenizer
from joeynmt.vocabulary import build_vocab

ROWS = 3
KEPT = ("best.ckpt", "config.yaml", "vocab.txt", "codes.txt", ".model")
"""Ends of the names of files that are kept of a training run."""
CASES: dict[str, dict[str, Any]] = {
    "gru_bahdanau_bridge": {
        "encoder": {"rnn_type": "gru", "hidden_size": 6, "num_layers": 2},
        "decoder": {"rnn_type": "gru", "hidden_size": 12, "num_layers": 2, "attention": "bahdanau"},
        "init_hidden": "bridge",
    },
    "lstm_luong_bridge": {
        "encoder": {"rnn_type": "lstm", "hidden_size": 6, "num_layers": 1},
        "decoder": {"rnn_type": "lstm", "hidden_size": 12, "num_layers": 2, "attention": "luong"},
        "init_hidden": "bridge",
        "tokenizer": {
            "level": "bpe",
            "tokenizer_type": "subword-nmt",
            "tokenizer_cfg": {"codes": "toy/codes.txt", "separator": "@@", "pretokenizer": "none"},
        },
    },
    "gru_luong_zero": {
        "encoder": {"rnn_type": "gru", "hidden_size": 6, "num_layers": 1},
        "decoder": {"rnn_type": "gru", "hidden_size": 12, "num_layers": 1, "attention": "luong"},
        "init_hidden": "zero",
        "input_feeding": False,
        "scale": True,
    },
    "gru_bahdanau_last": {
        "encoder": {"rnn_type": "gru", "hidden_size": 8, "num_layers": 1},
        "decoder": {"rnn_type": "gru", "hidden_size": 8, "num_layers": 2, "attention": "bahdanau"},
        "init_hidden": "last",
        "tokenizer": {
            "level": "bpe",
            "tokenizer_type": "sentencepiece",
            "tokenizer_cfg": {"model_file": "toy/spm.model"},
        },
    },
    "lstm_luong_narrow": {
        "encoder": {"rnn_type": "lstm", "hidden_size": 8, "num_layers": 2},
        "decoder": {"rnn_type": "lstm", "hidden_size": 8, "num_layers": 1, "attention": "luong"},
        "init_hidden": "bridge",
        "tied": True,
    },
}
"""Name of a case to its model; encoders are bidirectional, with `hidden_size` a direction."""


def write_corpus(folder: Path) -> None:
    """The toy corpus, and the models of its tokenizers."""
    translation_corpus(folder)
    both = [*(folder / "train.src").read_text().splitlines(), *(folder / "train.trg").read_text().splitlines()]
    write_lines(folder / "train.both", both)
    learn = [sys.executable, "-m", "subword_nmt.learn_bpe", "--input", str(folder / "train.both"), "--symbols", "25"]
    subprocess.run([*learn, "--output", str(folder / "codes.txt")], check=True, stderr=subprocess.DEVNULL)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "train.both"),
        model_prefix=str(folder / "spm"),
        vocab_size=48,
        normalization_rule_name="identity",  # The table of the default rule alone is 240 KB.
        minloglevel=2,
    )


def make_config(case: dict[str, Any], model: Path) -> dict[str, Any]:
    """JoeyNMT's configuration of a case."""
    tied = case.get("tied", False)
    embeddings = {"embedding_dim": 6, "scale": case.get("scale", False), "dropout": 0.1}

    def side(language: str) -> dict[str, Any]:
        shared = {"voc_file": "toy/vocabulary.txt"} if tied else {}
        return {"lang": language, "level": "word", "max_length": 30} | shared | case.get("tokenizer", {})

    return {
        "name": "toy",
        "joeynmt_version": "2.3.0",
        "model_dir": str(model),
        "use_cuda": False,
        "random_seed": 42,
        "data": {name: f"toy/{name}" for name in ("train", "dev", "test")}
        | {"dataset_type": "plain", "src": side("src"), "trg": side("trg")},
        "model": {
            "initializer": "xavier_uniform",
            "bias_initializer": "uniform",
            "bias_init_weight": 0.5,
            "embed_initializer": "normal",
            "embed_init_weight": 0.5,
            "tied_embeddings": tied,
            "encoder": {
                "type": "recurrent",
                "bidirectional": True,
                "embeddings": embeddings,
                "dropout": 0.1,
                **case["encoder"],
            },
            "decoder": {
                "type": "recurrent",
                "embeddings": embeddings,
                "dropout": 0.1,
                "hidden_dropout": 0.1,
                "init_hidden": case["init_hidden"],
                "input_feeding": case.get("input_feeding", True),
                **case["decoder"],
            },
        },
        "training": {
            # Adam's first steps depend on the signs of gradients near zero, so that no rebuild would be equal.
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "scheduling": "exponential",
            "decrease_factor": 1.0,
            "clip_grad_norm": 1.0,
            "loss": "crossentropy",
            "label_smoothing": 0.0,
            "normalization": "tokens",
            "batch_type": "sentence",
            "batch_size": 8,
            "epochs": 1,
            "validation_freq": 5,
            "logging_freq": 5,
            "early_stopping_metric": "ppl",
            "keep_best_ckpts": 1,
            "print_valid_sents": [],
            "overwrite": True,
        },
        "testing": {
            "batch_type": "sentence",
            "batch_size": 8,
            "beam_size": 1,
            "beam_alpha": 1.0,
            "max_output_length": 12,
            "eval_metrics": ["bleu"],
        },
    }


def joeynmt(*words: str) -> None:
    """Run JoeyNMT's command line."""
    before, sys.argv = sys.argv, ["joeynmt", *words]
    try:
        command_line()
    finally:
        sys.argv = before


def load(folder: Path) -> tuple[Model, Any]:
    """The trained model and the arguments of its data, by JoeyNMT's own functions."""
    args = parse_global_args(load_config(folder / "config.yaml"), rank=0, mode="test")
    model = build_model(args.model, *build_vocab(args.data, model_dir=folder))
    model.load_state_dict(load_checkpoint(folder / "best.ckpt", map_location=torch.device("cpu"))["model_state"])
    model.eval()
    return model, args.data


def expect(case: Case, model: Model, data: Any) -> None:
    """Add the logits of the shortest test sentences, teacher-forced, as JoeyNMT encodes and batches them."""
    tokenizers = build_tokenizer(data)
    encoded = []
    for language, vocabulary in ((data["src"]["lang"], model.src_vocab), (data["trg"]["lang"], model.trg_vocab)):
        lines = Path(f"toy/test.{language}").read_text(encoding="utf-8").splitlines()
        tokens = [tokenizers[language](tokenizers[language].pre_process(line)) for line in lines]
        is_target = language == data["trg"]["lang"]
        ids, lengths, *_ = vocabulary.sentences_to_ids(tokens, bos=is_target, eos=True)
        encoded.append([row[:length] for row, length in zip(ids, lengths, strict=True)])
    # Its encoder packs rows, which have to come in the order of their lengths.
    order = sorted(range(len(encoded[0])), key=lambda number: -len(encoded[0][number]))[-ROWS:]
    for name, picked in {"right": order, **{f"row{n}": [number] for n, number in enumerate(order)}}.items():
        source, source_mask = pad([encoded[0][number] for number in picked], "right", model.pad_index)
        target, target_mask = pad([encoded[1][number] for number in picked], "right", model.pad_index)
        batch = Batch(
            src=source,
            src_length=source_mask.sum(1),
            src_prompt_mask=None,
            trg=target,
            trg_prompt_mask=None,
            indices=torch.arange(len(source)),
            device=torch.device("cpu"),
            pad_index=model.pad_index,
            eos_index=model.eos_index,
            is_train=False,
        )
        with torch.no_grad():
            logits, *_ = model._encode_decode(**vars(batch))
        case.add(
            name,
            input_ids=source,
            attention_mask=source_mask,
            decoder_input_ids=batch.trg_input,
            decoder_attention_mask=target_mask[:, 1:],
            logits=logits,
        )


def main() -> None:
    """Train every case, translate, and compute logits."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    output = args.output.resolve()
    with tempfile.TemporaryDirectory() as name:
        # Paths in config.yaml are relative, so that every run writes the same.
        os.chdir(name)
        Path("toy").mkdir()
        write_corpus(Path("toy"))
        for case_name, options in CASES.items():
            folder = Path("models") / case_name
            config = Path(f"{case_name}.yaml")
            config.write_text(yaml.safe_dump(make_config(options, folder), sort_keys=False), encoding="utf-8")
            # It draws the weights before it sets the seed of its configuration.
            set_seed(42)
            joeynmt("train", str(config), "--skip-test")
            joeynmt("test", str(config), "--output-path", "hyp")
            case = Case(output, f"joeynmt/{case_name}", ("joeynmt",))
            for file in sorted(folder.iterdir()):
                if file.name.endswith(KEPT):
                    shutil.copy2(file, case.folder / file.name)
            shutil.copy2(Path("toy/test.src"), case.folder / "test.src")
            shutil.copy2(Path("hyp.test"), case.folder / "test.hyp")
            expect(case, *load(folder))
            case.write()


if __name__ == "__main__":
    main()
