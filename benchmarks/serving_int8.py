"""A translator on the server, as int8 on onnxruntime beside float32 on PyTorch: requests/s and BLEU of the answers.

    python benchmarks/serving_int8.py outputs/multi30k --source test.de --target test.en --record

The model is exported and quantized, then both are served, each by a process of its own. In each round so many clients
put all lines of the source on the one server, then on the other, and the next round begins with the other. BLEU is
sacrebleu's, of the answers to the requests. Printed: medians over the rounds, the median of the rounds' ratios of
requests/s, int8 over float32, and the difference of BLEU.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from exactness import SERVING, write
from http_load import put_load, serve
from record import this_command
from serving_load import requests_of
from timing import machine
from transformers.utils import logging

import hfseq
from hfseq.onnx.quantize import quantize_onnx


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", help="a translator of hfseq, with its tokenizer")
    parser.add_argument("--source", type=Path, required=True, help="text file, a sentence a line")
    parser.add_argument("--target", type=Path, required=True, help="its translations, for BLEU")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--num_beams", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, help="use so many of the lines only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each server")
    parser.add_argument("--record", action="store_true", help=f"store the figures in {SERVING.name}")
    args = parser.parse_args()
    logging.disable_progress_bar()  # of loading
    sources, targets = (
        path.read_text(encoding="utf-8").splitlines()[: args.lines] for path in (args.source, args.target)
    )
    path, bodies = requests_of("translation", sources, {"num_beams": args.num_beams})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        exported, quantized = Path(folder, "float32"), Path(folder, "int8")
        hfseq.export_onnx(args.model_dir, exported)
        quantize_onnx(exported, quantized)
        sides = {"PyTorch float32": args.model_dir, "ONNX int8": str(quantized)}
        servers = {name: stack.enter_context(serve([model], args.threads)) for name, model in sides.items()}
        for server in servers.values():
            put_load(server, path, bodies[: 4 * args.clients], args.clients)
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        bleu: dict[str, float] = {}
        for number in range(args.rounds):
            for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
                load = put_load(servers[name], path, bodies, args.clients)
                figures[name].append(load.figures())
                found = [json.loads(answer)[0]["translation_text"] for answer in load.answers]
                bleu[name] = sacrebleu.corpus_bleu(found, [targets]).score
                print(name, figures[name][-1], bleu[name], file=sys.stderr, flush=True)
    values: dict[str, Any] = {
        "about": machine(args.threads, "cpu") | {"command": " ".join(this_command() if args.record else sys.argv)},
        "clients": args.clients,
        "lines": len(sources),
        "num_beams": args.num_beams,
    }
    for name, found in figures.items():
        values[name] = {key: statistics.median(one[key] for one in found) for key in found[0]} | {"BLEU": bleu[name]}
    pairs = zip(figures["ONNX int8"], figures["PyTorch float32"], strict=True)
    values["ratios of requests/s"] = [one["requests/s"] / other["requests/s"] for one, other in pairs]
    print(json.dumps(values, indent=1))
    ratio, difference = statistics.median(values["ratios of requests/s"]), bleu["ONNX int8"] - bleu["PyTorch float32"]
    print(f"int8 over float32: {ratio:.2f} times the requests/s, {difference:+.2f} BLEU")
    if args.record:
        stored = json.loads(SERVING.read_text(encoding="utf-8"))
        stored["int8"] = values
        write(SERVING, stored)


if __name__ == "__main__":
    main()
