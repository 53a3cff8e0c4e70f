"""BLEU of JoeyNMT's recurrent translator on Multi30k, German to English, with the pieces and the sizes of ours.

    .venv/bin/python benchmarks/joeynmt_bleu.py --data multi30k --joeynmt_python joeynmt/bin/python --device cuda

This interpreter trains the tokenizer of `recipes/configs/translation_multi30k.yaml` on the training texts and writes
every text as a line of pieces. JoeyNMT 2.3, in an interpreter of its own (or in this one, if it is installed here),
takes pieces for words: its own `train` and `test` do the rest, with nothing patched. Back here its translations become
texts again and are scored like ours: BLEU, cased, 13a. See `beside_joeynmt.py` for how to install it.

The checkpoint with the best BLEU of greedily translated validation pieces, measured twice an epoch, translates the
validation and test texts with beams of 5. The learning rate falls exponentially, epoch by epoch, from
`--learning_rate` to `--last_learning_rate`: of JoeyNMT's schedules, `plateau` and `warmupexponentialdecay` raise
errors with torch 2.7 and newer, and so does none. It trains in float32: it has no bfloat16, and its float16 clips
gradients before they are unscaled.

Printed is one line; `results.json`, the translations and JoeyNMT's logs are in `--output_dir`.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import yaml
from samples import SOURCE, TARGET, Sizes

from hfseq.data.copying import decode_ids
from hfseq.data.reading import read_splits
from hfseq.tasks.seq2seq import score_translations
from hfseq.tokenization import train_tokenizer

# JoeyNMT's names of the splits.
NAMES = {"train": "train", "validation": "dev", "test": "test"}
MAX_LENGTH = 100
VALIDATIONS = 2
LOGS = 5


def pieces_as_words(tokenizer: Any) -> list[str]:
    """A word without spaces or line breaks for each id: the piece itself unless it has some of those.

    JoeyNMT ends a line wherever `str.splitlines` does, and a word at a space.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = [
        piece if piece.isprintable() and " " not in piece else f"<{number}>" for number, piece in enumerate(pieces)
    ]
    if len(set(words)) < len(words):
        raise ValueError("two pieces would become the same word")
    return words


def as_texts(lines: Sequence[str], tokenizer: Any, words: Sequence[str]) -> list[str]:
    """The texts that lines of words stand for."""
    ids = {word: number for number, word in enumerate(words)}
    return decode_ids(tokenizer, [[ids[word] for word in line.split(" ")] for line in lines])


def write_words(path: Path, texts: Sequence[str], tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Write texts as lines of words, check that they can be read back, and count the words of each."""
    ids = [row[:-1] for row in tokenizer(list(texts))["input_ids"]]  # JoeyNMT adds the mark of the end itself.
    path.write_text("".join(" ".join(words[token] for token in row) + "\n" for row in ids), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    if not all(ids) or as_texts(lines, tokenizer, words) != decode_ids(tokenizer, ids):
        raise ValueError(f"{path.name}: texts do not survive as lines of words")
    return [len(row) for row in ids]


def updates_per_epoch(lengths: Sequence[int], batch_tokens: int, seed: int) -> int:
    """About how many batches JoeyNMT makes: pairs at random until their number times the longest of them is enough.

    Args:
        lengths: Of the longer side of each pair, with the mark of the end.
        batch_tokens: What is enough.
        seed: Of the order.
    """
    updates = longest = count = 0
    for length in random.Random(seed).sample(lengths, len(lengths)):
        longest, count = max(longest, length), count + 1
        if longest * count >= batch_tokens:
            updates, longest, count = updates + 1, 0, 0
    return updates + (count > 0)


def make_config(args: argparse.Namespace, folder: Path, updates: int) -> dict[str, Any]:
    """JoeyNMT's configuration: the model of `joeynmt_worker.py`, trained like the recipe's as far as JoeyNMT can."""
    sizes = Sizes()
    embeddings = {"embedding_dim": sizes.embedding, "scale": False, "dropout": 0.3}
    recurrent = {"type": "recurrent", "rnn_type": "lstm", "num_layers": 1, "embeddings": embeddings, "dropout": 0.3}
    # What the schedule multiplies the rate with before every epoch, the first one too.
    decay = (args.last_learning_rate / args.learning_rate) ** (1 / max(1, args.epochs - 1))
    logging = max(1, updates // (VALIDATIONS * LOGS))

    def side(language: str) -> dict[str, Any]:
        return {"lang": language, "level": "word", "voc_file": str(folder / "vocabulary.txt")}

    return {
        "name": "multi30k",
        "joeynmt_version": "2.3.0",
        "model_dir": str(folder / "model"),
        "use_cuda": args.device == "cuda",
        "random_seed": args.seed,
        "data": {name: str(folder / name) for name in NAMES.values()}
        | {"dataset_type": "plain", "src": side(SOURCE), "trg": side(TARGET)},
        "model": {
            "tied_embeddings": True,
            "encoder": recurrent | {"hidden_size": sizes.hidden // 2, "bidirectional": True},
            "decoder": recurrent
            | {
                "hidden_size": sizes.hidden,
                "attention": "luong",
                "init_hidden": "bridge",
                "input_feeding": args.input_feeding,
                "hidden_dropout": 0.3,
            },
        },
        "training": {
            "optimizer": "adamw",
            "adam_betas": [0.9, 0.999],
            "learning_rate": args.learning_rate / decay,
            "learning_rate_min": 0.0,
            "scheduling": "exponential",
            "decrease_factor": decay,
            "weight_decay": 0.0,
            "clip_grad_norm": 1.0,
            "loss": "crossentropy",
            "label_smoothing": 0.1,
            "normalization": "tokens",
            "batch_type": "token",
            "batch_size": args.batch_tokens,
            "epochs": args.epochs,
            "validation_freq": LOGS * logging,
            "logging_freq": logging,
            "early_stopping_metric": "bleu",
            "keep_best_ckpts": 1,
            "print_valid_sents": [],
            "overwrite": True,
        },
        "testing": {
            "batch_type": "sentence",
            "batch_size": 128,
            "beam_size": 5,  # JoeyNMT validates greedily all the same.
            "beam_alpha": 1.0,
            "max_output_length": MAX_LENGTH,
            "eval_metrics": ["bleu"],
            "sacrebleu_cfg": {"tokenize": "none", "force": True},
        },
    }


def run(command: Sequence[str], device: str, log: Path, max_minutes: float | None = None) -> None:
    """Run JoeyNMT, on one GPU at most, and kill it after a time: whatever it saved before is complete."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpus[0]} if device == "cuda" else {})
    with open(log, "w", encoding="utf-8") as output:
        try:
            subprocess.run(
                [*command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=None if max_minutes is None else 60 * max_minutes,
                check=True,
            )
        except subprocess.TimeoutExpired:
            pass
        except subprocess.CalledProcessError as error:
            sys.exit(f"{' '.join(command)} ended with status {error.returncode}:\n{log.read_text()[-3000:]}")


def versions(python: str, device: str) -> str:
    """Those of JoeyNMT and its torch; ends with an error if they cannot be imported or lack the device."""
    code = "import joeynmt.training, torch; print(joeynmt.__version__, torch.__version__, torch.cuda.is_available())"
    answer = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        sys.exit(f"{python} cannot import JoeyNMT: the error stands above")
    joeynmt, torch, cuda = answer.stdout.split()[-3:]
    if device == "cuda" and cuda != "True":
        sys.exit(f"the torch {torch} of {python} finds no GPU")
    return f"JoeyNMT {joeynmt}, torch {torch}, {device}"


def history(model: Path) -> dict[str, int]:
    """Parameters, epochs that were begun, updates in all and up to the best checkpoint, of a training run."""
    log = (model / "train.log").read_text(encoding="utf-8")
    best, latest = (int((model / f"{name}.ckpt").resolve().stem) for name in ("best", "latest"))
    return {
        "parameters": int(re.findall(r"Total params: (\d+)", log)[-1]),
        "epochs": int(re.findall(r"EPOCH (\d+)", log)[-1]),
        "updates": max(latest, *(int(step) for step in re.findall(r"Step: +(\d+)", log)), 0),
        "best_update": best,
    }


def main() -> None:
    """Prepare, train, translate, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and test_2016_flickr")
    parser.add_argument("--joeynmt_python", default=sys.executable, help="Python of an environment with JoeyNMT 2.3")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--max_minutes", type=float, help="training is stopped after that; the best so far counts")
    parser.add_argument("--batch_tokens", type=int, default=4096, help="of the longer side, padding counted")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="in the first epoch")
    parser.add_argument("--last_learning_rate", type=float, default=1e-4, help="in the last epoch")
    parser.add_argument("--input_feeding", action="store_true", help="JoeyNMT's default, but no part of our model")
    parser.add_argument("--pairs", type=int, default=Sizes.pairs, help="training pairs that are read")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/joeynmt_bleu"))
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    environment = versions(args.joeynmt_python, args.device)

    splits = read_splits(
        columns=(SOURCE, TARGET),
        train_file=str(args.data / "train"),
        validation_file=str(args.data / "val"),
        test_file=str(args.data / "test_2016_flickr"),
        moses=True,
    )
    splits["train"] = splits["train"].select(range(min(args.pairs, len(splits["train"]))))
    folder = args.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    train = splits["train"]
    tokenizer = train_tokenizer(itertools.chain(train[SOURCE], train[TARGET]), vocab_size=Sizes.vocabulary)
    words = pieces_as_words(tokenizer)
    (folder / "vocabulary.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    lengths = {
        (split, language): write_words(folder / f"{name}.{language}", splits[split][language], tokenizer, words)
        for split, name in NAMES.items()
        for language in (SOURCE, TARGET)
    }
    longer = [1 + max(pair) for pair in zip(lengths["train", SOURCE], lengths["train", TARGET], strict=True)]
    config = make_config(args, folder, updates_per_epoch(longer, args.batch_tokens, args.seed))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    joeynmt = [args.joeynmt_python, "-m", "joeynmt"]
    begin = time.perf_counter()
    train_command = [*joeynmt, "train", str(folder / "config.yaml"), "--skip-test"]
    run(train_command, args.device, folder / "train_output.txt", args.max_minutes)
    seconds = time.perf_counter() - begin
    if not (folder / "model" / "best.ckpt").is_file():
        sys.exit("there is no checkpoint: nothing was validated within --max_minutes")
    test_command = [*joeynmt, "test", str(folder / "config.yaml"), "--output-path", str(folder / "translations")]
    run(test_command, args.device, folder / "test_output.txt")

    results: dict[str, Any] = history(folder / "model") | {"seconds": seconds}
    for split in ("validation", "test"):
        lines = (folder / f"translations.{NAMES[split]}").read_text(encoding="utf-8").splitlines()
        texts = as_texts(lines, tokenizer, words)
        (folder / f"translations.{split}.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        results[f"{split}_bleu"] = score_translations(texts, list(splits[split][TARGET]))["bleu"]
    results |= {"environment": environment, "learning_rate": args.learning_rate, "seed": args.seed}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(
        f"{environment}: BLEU {results['validation_bleu']:.1f} val, {results['test_bleu']:.1f} test; "
        f"{results['parameters']:,} parameters; best after {results['best_update']:,} of {results['updates']:,} "
        f"updates, {results['epochs']} of {args.epochs} epochs begun; {seconds:.0f} s of training with validations"
    )


if __name__ == "__main__":
    main()
