"""Latency, throughput, size and score of one trained model: PyTorch, and ONNX in float32 and int8.

    python benchmarks/inference_costs.py outputs/sentiment_demo --test_file test.csv
    python benchmarks/inference_costs.py outputs/de-en --test_file test.de --references test.en

A classifier is scored by accuracy, a translator by BLEU (13a, beams as the model's generation config says). All three
take the same texts, in turns, with as many threads as --threads says; p50 and p95 are of one text at a time.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from record import store, this_command
from timing import machine
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from hfseq import metrics
from hfseq.data.labels import encode_labels
from hfseq.data.reading import read_splits
from hfseq.inference.benchmark import file_size
from hfseq.onnx.export import export_onnx
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import load_onnx


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument(
        "--test_file", required=True, help="CSV or TSV with texts and labels; or the sources, a line each"
    )
    parser.add_argument("--references", help="of a translator: the right translations, a line each")
    parser.add_argument("--column_names", help="of a file without a header: text,label")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=int, default=200, help="texts that are timed one by one")
    parser.add_argument("--num_beams", type=int, help="of a translator, instead of its own")
    parser.add_argument("--record", metavar="ID", help="entry of scores.json to store the figures in")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    translates = args.references is not None
    auto_class = AutoModelForSeq2SeqLM if translates else AutoModelForSequenceClassification
    model = auto_class.from_pretrained(args.model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model_dir)
    if translates:
        texts = Path(args.test_file).read_text(encoding="utf-8").splitlines()
        right = Path(args.references).read_text(encoding="utf-8").splitlines()
    else:
        names = args.column_names.split(",") if args.column_names else None
        splits = read_splits(
            columns=("text", "label"), test_file=args.test_file, column_names=names, label_columns=("label",)
        )
        known = [model.config.id2label[number] for number in range(model.config.num_labels)]
        splits, _ = encode_labels(splits, "label", names=known)
        texts, right = list(splits["test"]["text"]), list(splits["test"]["labels"])
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "fp32", Path(folder) / "int8"
        export_onnx(args.model_dir, plain)
        graphs = quantize_onnx(plain, small)
        systems = {
            "PyTorch fp32": (model, file_size(args.model_dir)),
            "ONNX fp32": (load_onnx(plain, threads=args.threads)[0], megabytes(plain)),
            "ONNX int8": (load_onnx(small, threads=args.threads)[0], megabytes(small)),
        }
        found = measure(systems, tokenizer, texts, right, args, translates)
        print(f"\nin int8, what else is fp32, and how far int8 is off: {json.dumps(graphs)}")
    if args.record is not None:
        label = "BLEU" if translates else "accuracy, %"
        small, plain, base = (found[name] for name in ("ONNX int8", "ONNX fp32", "PyTorch fp32"))
        figures = {
            "speed over PyTorch fp32": round(base["p50"] / small["p50"], 2),
            "ONNX fp32 over PyTorch fp32": round(base["p50"] / plain["p50"], 2),
            label: small["score"],
            "file size over ONNX fp32": round(small["size"] / plain["size"], 2),
            "median difference of logits, %": round(100 * max(one["median difference"] for one in graphs.values()), 1),
        }
        baselines = {"PyTorch fp32": {label: base["score"]}}
        store(args.record, figures, this_command(), baselines=baselines, on=f"{args.threads} threads")


def megabytes(folder: Path) -> float:
    """Of the graphs in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx")) / 1e6


@torch.inference_mode()
def measure(systems: dict, tokenizer, texts: list, right: list, args: argparse.Namespace, translates: bool) -> dict:
    """Print a table; return score, median latency and size of each system."""
    measured = {}
    beams = {} if args.num_beams is None else {"num_beams": args.num_beams}

    def run(system, batch: list) -> list:
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
        if translates:
            return tokenizer.batch_decode(system.generate(**inputs, **beams), skip_special_tokens=True)
        return system(**inputs).logits.argmax(dim=-1).tolist()

    timed = texts[: args.texts]
    times: dict[str, list[float]] = {name: [] for name in systems}
    for number, text in enumerate([*timed[:10], *timed]):  # the first ten warm up
        for name, (system, _) in systems.items():
            begin = time.perf_counter()
            run(system, [text])
            if number >= 10:
                times[name].append(1000 * (time.perf_counter() - begin))
    # Texts of one length go together.
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    print("| | score | p50, ms | p95, ms | times as fast | texts a second, 32 at once | file, MB |")
    print("|---" * 7 + "|")
    base = float(np.median(times["PyTorch fp32"]))
    for name, (system, size) in systems.items():
        found: list = [None] * len(texts)
        begin = time.perf_counter()
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            for row, output in zip(rows, run(system, [texts[row] for row in rows]), strict=True):
                found[row] = output
        seconds = time.perf_counter() - begin
        p50, p95 = np.percentile(times[name], [50, 95])
        measured[name] = {"score": score(found, right, translates), "p50": p50, "size": size}
        print(
            f"| {name} | {measured[name]['score']:.2f} | {p50:.3g} | {p95:.3g} | {base / p50:.2f} "
            f"| {len(texts) / seconds:.4g} | {'' if size is None else f'{size:.2f}'} |",
            flush=True,
        )
    about = machine(args.threads, "cpu")
    print(f"\n{about['processor']}; {about['versions']}; {args.threads} thread(s), {len(texts)} texts")
    return measured


def score(found: list, right: list, translates: bool) -> float:
    """Accuracy, or BLEU."""
    if translates:
        return metrics.load("sacrebleu").compute(predictions=found, references=right)["score"]
    return 100 * float(np.mean([one == other for one, other in zip(found, right, strict=True)]))


if __name__ == "__main__":
    main()
