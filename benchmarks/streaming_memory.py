"""Memory of training on a file of millions of lines that is streamed, beside that of the same run on a tiny file.

    .venv/bin/python benchmarks/streaming_memory.py

Two aligned text files of `--lines` made-up pairs are written to a temporary folder, and two of a thousand. On each, a
process of its own reads the rows once from the first to the last, trains a tokenizer on the first of them, and a small
LSTM translator for `--steps` steps with the Trainer. Printed, as a Markdown table: the size of the files, the rows
read, and the peak of the process's resident memory. It exits with 1 if the two peaks are 1 GB or more apart.
"""

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


def measure(prefix: Path, steps: int) -> dict[str, Any]:
    """Read and train; the rows and tokens read, and the peak of this process's memory in MB."""
    # Here, so that the process that starts this one stays small: a child's peak counts that of its parent.
    import torch
    from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, TrainingArguments, set_seed

    from hfseq import LstmConfig
    from hfseq.data.streaming import BatchStream, first_texts, read_stream, stream_loader
    from hfseq.tokenization import train_tokenizer
    from hfseq.training.trainer import SequenceTrainer

    set_seed(0)
    rows = read_stream(
        columns=("de", "en"), train_file=str(prefix), validation_file=str(prefix.with_name("tiny")), moses=True
    )["train"]
    begin = time.perf_counter()
    count = sum(1 for _ in rows)
    seconds = time.perf_counter() - begin
    tokenizer = train_tokenizer(first_texts(rows, ("de", "en")), model="bpe", vocab_size=2000)

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        return {**tokenizer(batch["de"]), "labels": tokenizer(batch["en"])["input_ids"]}

    class StreamTrainer(SequenceTrainer):
        def get_train_dataloader(self) -> torch.utils.data.DataLoader:
            stream = BatchStream(self.train_dataset, max_tokens=1000)
            return stream_loader(stream, self.data_collator, self.args.device)

    config = LstmConfig(vocab_size=len(tokenizer), hidden_size=32, embedding_size=32, num_hidden_layers=1)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = StreamTrainer(
            model=model,
            args=TrainingArguments(
                output_dir, max_steps=steps, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no"
            ),
            train_dataset=rows.map(encode, batched=True, remove_columns=rows.column_names),
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        )
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rows": count, "seconds": seconds, "peak": peak / (2**20 if sys.platform == "darwin" else 2**10)}


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure(args.measure, args.steps)))
        return 0
    print(f"Python {platform.python_version()}, {args.steps} steps\n")
    print("| lines | files, MB | rows read | seconds to read them | peak memory, MB |")
    print("|--:|--:|--:|--:|--:|")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (("tiny", 1000), ("large", args.lines)):
            size = write_pairs(Path(folder) / name, lines)
            command = [sys.executable, __file__, "--measure", f"{folder}/{name}", "--steps", str(args.steps)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            peaks.append(result["peak"])
            columns = f"{size / 2**20:,.0f} | {result['rows']:,} | {result['seconds']:.0f} | {peaks[-1]:,.0f}"
            print(f"| {lines:,} | {columns} |", flush=True)
    print(f"\ndifference {peaks[1] - peaks[0]:,.0f} MB")
    return int(peaks[1] - peaks[0] >= LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
