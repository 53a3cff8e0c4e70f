"""The translator of `joeynmt_pairs.py`, converted to hfseq, beside JoeyNMT's own translations of the test rows.

    .venv/bin/python benchmarks/joeynmt_converted.py joeynmt_pairs

Reads what that script wrote, converts its folder `model` by `python -m hfseq.convert joeynmt`, and translates the test
rows with what `from_pretrained` loads: greedily, and with the beams and the length penalty that the conversion took
from the configuration. JoeyNMT writes `<unk>`, which decoding here leaves out. Figures go into
`benchmarks/joeynmt_converted.json`, from which `make results` renders the table of the guide; the translations lie in
the folder.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from exactness import CONVERTED, write
from timing import machine
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import hfseq  # noqa: F401
from hfseq.convert.command import convert
from hfseq.tasks.seq2seq import score_translations

SOURCE, TARGET = "en", "de"


def translate(model: Any, tokenizer: Any, lines: list[str], batch_size: int, **options: Any) -> list[str]:
    """Translations of lines, in their order."""
    texts = []
    for start in range(0, len(lines), batch_size):
        batch = tokenizer(lines[start : start + batch_size], padding=True, return_tensors="pt")
        with torch.no_grad():
            texts += tokenizer.batch_decode(model.generate(**batch, **options), skip_special_tokens=True)
    return texts


def main() -> None:
    """Convert, translate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output of joeynmt_pairs.py")
    parser.add_argument("--batch_size", type=int, default=100)
    args = parser.parse_args()
    output = args.folder / "converted"
    shutil.rmtree(output, ignore_errors=True)
    check = convert("joeynmt", str(args.folder / "model"), str(output))
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    lines, references = (
        (args.folder / f"test.{language}").read_text(encoding="utf-8").splitlines() for language in (SOURCE, TARGET)
    )
    searches: dict[str, Any] = {}
    for name, options in {"greedy": {"num_beams": 1}, "beam": {}}.items():
        texts = translate(model, tokenizer, lines, args.batch_size, **options)
        theirs = (args.folder / f"{name}.test").read_text(encoding="utf-8").splitlines()
        known = [" ".join(line.replace("<unk>", "").split()) for line in theirs]
        others = [number for number, (ours, own) in enumerate(zip(texts, known, strict=True)) if ours != own]
        (args.folder / f"{name}.converted").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        searches[name] = {"other_lines": len(others), "lines": len(lines)}
        for title, found in (("hfseq", texts), ("joeynmt", theirs)):
            scores = score_translations(found, references)
            searches[name][title] = {metric: scores[metric] for metric in ("bleu", "exact_match")}
        for number in others[:5]:
            print(f"{name}, line {number + 1}: {lines[number]!r}: {texts[number]!r}, JoeyNMT {theirs[number]!r}")
    about = machine(torch.get_num_threads(), "cpu") | {"command": "python benchmarks/joeynmt_converted.py"}
    environment = json.loads((args.folder / "results.json").read_text(encoding="utf-8"))["environment"]
    about["versions"] += f"; {environment}"
    write(CONVERTED, {"about": about, "check": str(check), "searches": searches})
    print(json.dumps(searches))


if __name__ == "__main__":
    main()
