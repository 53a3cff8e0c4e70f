"""Memory of a recipe that streams a file of millions of lines, beside that of the same run on a tiny file.

    .venv/bin/python benchmarks/streaming_memory.py

Two aligned text files of `--lines` made-up pairs are written to a temporary folder, and two of a thousand. On each,
one process reads the rows from the first to the last, and another runs `recipes/translation.py --streaming` for
`--steps` steps, with its tokenizer, evaluations, checkpoints and reports. Printed, as a Markdown table: the size of
the files, the rows read, and the peaks of the resident memory of both. It exits with 1 if a peak is 1 GB or more
above that of the tiny file.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "translation.py"
FLAGS = """--streaming true --source_lang de --target_lang en --model_type hfseq_lstm --tokenizer_model bpe
--vocab_size 2000 --max_tokens 1000 --use_cpu true --disable_tqdm true""".split()
SIZES = '{"hidden_size": 32, "embedding_size": 32}'
READ = """
from sys import argv
from hfseq.data.streaming import read_stream
rows = read_stream(columns=("de", "en"), train_file=argv[1], validation_file=argv[2], moses=True)["train"]
print(sum(1 for _ in rows))
"""
WORDS = [
    start + middle + end for start in "bdfgklmnprst" for middle in "aeiou" for end in ("n", "r", "st", "la", "mi")
]
LIMIT_MB = 1000


def write_pairs(prefix: Path, lines: int) -> int:
    """Write `prefix.de` and `prefix.en`; returns their size in bytes."""
    rng = random.Random(0)
    with open(f"{prefix}.de", "w") as source, open(f"{prefix}.en", "w") as target:
        for number in range(lines):
            words = rng.choices(WORDS, k=rng.randint(3, 14))
            source.write(f"{' '.join(words)} {number}\n")
            target.write(f"{number} {' '.join(reversed(words))}\n")
    return sum(Path(f"{prefix}.{side}").stat().st_size for side in ("de", "en"))


def peak_memory(command: Sequence[str], log: Path) -> tuple[str, float]:
    """Run a command; the last line of what it printed, and the peak of its resident memory in MB."""
    with open(log, "w+") as output:
        process = subprocess.Popen([sys.executable, *command], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{text[-2000:]}")
    return text.splitlines()[-1], usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, {args.steps} steps\n")
    print("| lines | files, MB | rows read | seconds to read them | peak, reading, MB | peak, recipe, MB |")
    print("|--:|--:|--:|--:|--:|--:|")
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = str(folder / "tiny")
        for kind, lines in (("tiny", 1000), ("large", args.lines)):
            prefix = str(folder / kind)
            size = write_pairs(folder / kind, lines)
            begin = time.perf_counter()
            rows, reading = peak_memory(["-c", READ, prefix, tiny], folder / "log")
            seconds = time.perf_counter() - begin
            files = ["--train_file", prefix, "--validation_file", tiny, "--output_dir", f"{prefix}_out"]
            steps = ["--max_steps", str(args.steps), "--config_overrides", SIZES]
            _, recipe = peak_memory([str(RECIPE), *FLAGS, *files, *steps], folder / "log")
            peaks.append((reading, recipe))
            found = f"{lines:,} | {size / 2**20:,.0f} | {int(rows):,} | {seconds:.0f} | {reading:,.0f} | {recipe:,.0f}"
            print(f"| {found} |", flush=True)
    more = [large - tiny for tiny, large in zip(*peaks, strict=True)]
    print(f"\nmore than with the tiny file: {more[0]:,.0f} MB, {more[1]:,.0f} MB")
    return int(max(more) >= LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
