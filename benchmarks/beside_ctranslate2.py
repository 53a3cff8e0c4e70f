"""A translator of hfseq on onnxruntime beside a Transformer on CTranslate2: both in int8, on one core.

    pip install ctranslate2
    python benchmarks/beside_ctranslate2.py outputs/student outputs/transformer --source test.de --target test.en

Both directories are results of `recipes/translation.py` or `recipes/distillation.py`: any model of hfseq, and a new
BART (`recipes/configs/translation_multi30k_bart.yaml`), which CTranslate2 can read. Each side gets all lines at once,
from text to text, and puts lines of similar length together in batches of one size. Printed, greedy and with beams:
source words/s of each side, the median of the rounds' ratios, and BLEU of both (sacrebleu).
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from exactness import CTRANSLATE2, write
from record import this_command
from timing import clock, in_turns, machine
from transformers import AutoTokenizer, BartConfig
from transformers.utils import logging

import hfseq
from hfseq.inference.generate import decode_texts
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import load_onnx

LONGEST = 100
Translate = Callable[[int], list[str]]
"""From the number of beams to the translations of all lines."""


def ours(model_dir: str, folder: Path, lines: Sequence[str], batch_size: int) -> Translate:
    """Export, quantize and load a model of hfseq."""
    hfseq.export_onnx(model_dir, folder / "float32")
    quantize_onnx(folder / "float32", folder / "int8")
    model, tokenizer = load_onnx(folder / "int8", threads=1)

    def translate(beams: int) -> list[str]:
        options: dict[str, Any] = {"num_beams": beams, "do_sample": False, "max_length": LONGEST}
        found, _ = decode_texts(model, tokenizer, lines, batch_size=batch_size, max_source_length=LONGEST, **options)
        return [best[0].text for best in found]

    return translate


def theirs(model_dir: str, folder: Path, lines: Sequence[str], batch_size: int) -> Translate:
    """Convert a BART to CTranslate2's int8, and load it."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    # Its converter asks for fields that transformers' BART no longer has; these are their values there.
    for name, value in {"normalize_before": False, "normalize_embedding": True, "add_final_layer_norm": False}.items():
        setattr(BartConfig, name, value)
    TransformersConverter(model_dir).convert(str(folder / "ctranslate2"), quantization="int8")
    translator = ctranslate2.Translator(str(folder / "ctranslate2"), intra_threads=1, compute_type="int8")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)

    def translate(beams: int) -> list[str]:
        encoded = tokenizer(list(lines), max_length=LONGEST, truncation=True)["input_ids"]
        pieces = [tokenizer.convert_ids_to_tokens(ids) for ids in encoded]
        found = translator.translate_batch(
            pieces, beam_size=beams, max_batch_size=batch_size, max_decoding_length=LONGEST
        )
        ids = [tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in found]
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    return translate


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", help="a translator of hfseq, with its tokenizer")
    parser.add_argument("transformer_dir", help="a BART, with its tokenizer")
    parser.add_argument("--source", type=Path, required=True, help="text file, a sentence a line")
    parser.add_argument("--target", type=Path, required=True, help="its translations, for BLEU")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lines", type=int, help="use so many of the lines only")
    parser.add_argument("--record", action="store_true", help=f"store the figures in {CTRANSLATE2.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # of loading
    sources, targets = (
        path.read_text(encoding="utf-8").splitlines()[: args.lines] for path in (args.source, args.target)
    )
    words = sum(len(line.split()) for line in sources)
    searches: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "hfseq": ours(args.model_dir, Path(folder), sources, args.batch_size),
            "ctranslate2": theirs(args.transformer_dir, Path(folder), sources, args.batch_size),
        }
        for beams in args.beams:
            runs = {name: clock(lambda run=run, beams=beams: run(beams)) for name, run in sides.items()}
            times = in_turns(runs, args.rounds)
            searches[str(beams)] = {
                "ratios": [theirs / ours for ours, theirs in zip(times["hfseq"], times["ctranslate2"], strict=True)],
                "words/s": {name: words / statistics.median(found) for name, found in times.items()},
                "bleu": {name: sacrebleu.corpus_bleu(run(beams), [targets]).score for name, run in sides.items()},
            }
            searches[str(beams)]["ratio"] = statistics.median(searches[str(beams)]["ratios"])
            print(f"{beams} beams: {json.dumps(searches[str(beams)])}", flush=True)
    sizes = {
        name: sum(file.stat().st_size for file in Path(path).glob("model*.safetensors"))
        for name, path in (("hfseq", args.model_dir), ("ctranslate2", args.transformer_dir))
    }
    print(f"bytes of the weights in float32: {json.dumps(sizes)}")
    if args.record:
        about = machine(1, "cpu") | {"command": this_command()}
        write(CTRANSLATE2, {"about": about, "weights": sizes, "searches": searches})


if __name__ == "__main__":
    main()
