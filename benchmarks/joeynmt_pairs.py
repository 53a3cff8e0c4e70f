"""A recurrent translator of JoeyNMT on the embedded pairs, with its translations: what `hfseq.convert joeynmt` takes.

    .venv/bin/python benchmarks/joeynmt_pairs.py --joeynmt_python joeynmt/bin/python --output_dir joeynmt_pairs

This interpreter writes the pairs of `recipes/translation.py` (English to German) as lines of text. All else is what
users of JoeyNMT 2.3 do, in an interpreter of its own (see `beside_joeynmt.py` for how to install it): `subword-nmt`
learns the merges of both languages together, and JoeyNMT's own `train` and `test` do the rest. In `--output_dir` are

    model/                  the folder to convert: best.ckpt, config.yaml, vocabularies, merges
    greedy.test, beam.test  translations of the test rows, greedy and with beams of 5
    test.en, test.de        the rows and their references
    results.json            BLEU (cased, 13a) and exact matches of both, updates, seconds

The best checkpoint is chosen on the validation rows.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from joeynmt_bleu import NAMES, history, run, versions

from hfseq.data.embedded.cldr import cldr_pairs
from hfseq.tasks.seq2seq import score_translations

SOURCE, TARGET = "en", "de"


def make_config(args: argparse.Namespace, folder: Path, beams: int) -> dict[str, Any]:
    """JoeyNMT's configuration: two vocabularies, input feeding and an attention layer, as its examples have them."""
    embeddings = {"embedding_dim": 64, "scale": False, "dropout": 0.1}
    recurrent = {"type": "recurrent", "rnn_type": args.rnn_type, "embeddings": embeddings, "dropout": 0.1}

    def side(language: str) -> dict[str, Any]:
        codes = {"codes": str(folder / "codes.txt"), "separator": "@@", "pretokenizer": "none"}
        return {"lang": language, "level": "bpe", "tokenizer_type": "subword-nmt", "tokenizer_cfg": codes}

    return {
        "name": "embedded_pairs",
        "joeynmt_version": "2.3.0",
        "model_dir": str(folder / "model"),
        "use_cuda": False,
        "random_seed": args.seed,
        "data": {name: str(folder / name) for name in NAMES.values()}
        | {"dataset_type": "plain", "src": side(SOURCE), "trg": side(TARGET)},
        "model": {
            "encoder": recurrent | {"hidden_size": 64, "bidirectional": True, "num_layers": 1},
            "decoder": recurrent
            | {
                "hidden_size": 128,
                "num_layers": 1,
                "attention": args.attention,
                "init_hidden": "bridge",
                "input_feeding": True,
                "hidden_dropout": 0.1,
            },
        },
        "training": {
            "optimizer": "adamw",
            "adam_betas": [0.9, 0.999],
            # The schedule multiplies the rate before the first epoch, too.
            "learning_rate": 3e-3 / 0.5,
            "learning_rate_min": 0.0,
            "scheduling": "exponential",
            "decrease_factor": 0.5,
            "weight_decay": 0.0,
            "clip_grad_norm": 1.0,
            "loss": "crossentropy",
            "label_smoothing": 0.0,
            "normalization": "tokens",
            "batch_type": "token",
            "batch_size": args.batch_tokens,
            "epochs": args.epochs,
            "validation_freq": 200,
            "logging_freq": 50,
            "early_stopping_metric": "bleu",
            "keep_best_ckpts": 1,
            "print_valid_sents": [],
            "overwrite": True,
        },
        "testing": {
            "batch_type": "sentence",
            "batch_size": 128,
            "beam_size": beams,
            "beam_alpha": 1.0,
            "max_output_length": 64,
            "eval_metrics": ["bleu"],
            "sacrebleu_cfg": {"tokenize": "13a"},
        },
    }


def main() -> None:
    """Write the pairs, train, translate, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joeynmt_python", default=sys.executable, help="Python of an environment with JoeyNMT 2.3")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/joeynmt_pairs"))
    parser.add_argument("--rnn_type", choices=("gru", "lstm"), default="lstm")
    parser.add_argument("--attention", choices=("luong", "bahdanau"), default="luong")
    parser.add_argument("--merges", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_tokens", type=int, default=1500, help="of the longer side, padding counted")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    environment = versions(args.joeynmt_python, "cpu")
    folder = args.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    pairs = cldr_pairs(SOURCE, TARGET)
    for split, name in NAMES.items():
        for language in (SOURCE, TARGET):
            (folder / f"{name}.{language}").write_text("".join(f"{text}\n" for text in pairs[split][language]))
    both = folder / "train.both"
    both.write_text("".join((folder / f"train.{language}").read_text() for language in (SOURCE, TARGET)))
    learn = [args.joeynmt_python, "-m", "subword_nmt.learn_bpe", "--input", str(both), "--symbols", str(args.merges)]
    run([*learn, "--output", str(folder / "codes.txt")], "cpu", folder / "codes_output.txt")

    configs = {name: folder / f"{name}.yaml" for name in ("greedy", "beam")}
    for name, beams in {"greedy": 1, "beam": 5}.items():
        configs[name].write_text(yaml.safe_dump(make_config(args, folder, beams), sort_keys=False), encoding="utf-8")
    joeynmt = [args.joeynmt_python, "-m", "joeynmt"]
    begin = time.perf_counter()
    run([*joeynmt, "train", str(configs["beam"]), "--skip-test"], "cpu", folder / "train_output.txt")
    results: dict[str, Any] = history(folder / "model") | {"seconds": time.perf_counter() - begin}
    for name, config in configs.items():
        run([*joeynmt, "test", str(config), "--output-path", str(folder / name)], "cpu", folder / f"{name}_output.txt")
        texts = (folder / f"{name}.test").read_text(encoding="utf-8").splitlines()
        scores = score_translations(texts, list(pairs["test"][TARGET]))
        results[name] = {metric: scores[metric] for metric in ("bleu", "exact_match")}
    results |= {"environment": environment, "seed": args.seed}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
