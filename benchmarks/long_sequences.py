"""Memory of `recipes/bioinformatics.py --do_predict` on a chromosome's worth of bases in one sequence.

    .venv/bin/python benchmarks/long_sequences.py

Writes FASTA files of one random sequence of `--lengths` bases each, whose case is its labels, and tags each with a new
tagger of `--hidden_size` in a process of its own, `--batch_size` windows at a time. Prints, as a Markdown table, the
peak of the resident memory, and how much of it came after the recipe was imported. It exits with 1 if the longest
sequence takes more than `--most` MB above the shortest.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from hfseq import LstmConfig, LstmForTokenClassification
from hfseq.tasks.bioinformatics import tokenizer_of

ROOT = Path(__file__).resolve().parents[1]
PREDICT = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
import bioinformatics
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bioinformatics.main(sys.argv[2:])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([before, after]))
"""


def write_sequence(path: Path, length: int) -> None:
    """Write a random sequence of runs of capitals and small letters."""
    rng = random.Random(0)
    letters = "".join(rng.choices("ACGT", k=length))
    runs = (letters[at : at + 150] for at in range(0, length, 150))
    text = "".join(run.lower() if number % 2 else run for number, run in enumerate(runs))
    path.write_text(f">sequence\n{text}\n")


def peak(model: Path, file: Path, output_dir: Path, batch_size: int) -> tuple[float, float]:
    """Peak of the memory of a prediction, and the part of it that came after the imports, in MB."""
    flags = ["--model_name_or_path", str(model), "--test_file", str(file), "--output_dir", str(output_dir)]
    flags += ["--per_device_eval_batch_size", str(batch_size)]
    flags += ["--do_predict", "true", "--use_cpu", "true", "--disable_tqdm", "true"]
    command = [sys.executable, "-c", PREDICT, str(ROOT / "recipes"), *flags]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    before, after = json.loads(done.stdout.splitlines()[-1])
    return after / 1024, (after - before) / 1024


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8, help="windows that are tagged at once")
    parser.add_argument("--most", type=float, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = tokenizer_of("dna", 1)
        labels = {"id2label": {0: "lower", 1: "upper"}, "label2id": {"lower": 0, "upper": 1}}
        config = LstmConfig(vocab_size=len(tokenizer), hidden_size=args.hidden_size, num_hidden_layers=2, **labels)
        LstmForTokenClassification(config).save_pretrained(root / "model")
        tokenizer.save_pretrained(root / "model")
        print("| bases | peak, MB | after the imports, MB |\n|---|---|---|")
        peaks = []
        for length in args.lengths:
            write_sequence(root / "sequence.fa", length)
            peaks.append(peak(root / "model", root / "sequence.fa", root / f"run{length}", args.batch_size))
            print(f"| {length:,} | {peaks[-1][0]:,.0f} | {peaks[-1][1]:,.0f} |", flush=True)
    sys.exit(peaks[-1][0] - peaks[0][0] > args.most)


if __name__ == "__main__":
    main()
