"""Training speed of the translation recipe beside a bare PyTorch loop over the same modules and batches.

    .venv/bin/python benchmarks/training_throughput.py --train_file PREFIX --source_lang de --target_lang en

Each run is a process of its own, the two kinds in turn, so that a machine that slows down slows both. Printed: target
tokens a second and peak memory of each pair of runs, and the median ratio recipe / bare. Without --train_file the
embedded pairs are used.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

WARM_UP = 3


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Encode the pairs once, for all runs."""
    from hfseq.data.embedded.cldr import cldr_pairs
    from hfseq.data.reading import read_splits
    from hfseq.tasks.seq2seq import encode_pairs
    from hfseq.tokenization import train_tokenizer

    columns = (args.source_lang, args.target_lang)
    if args.train_file:
        rows = read_splits(columns=columns, train_file=args.train_file, moses=True)["train"]
    else:
        rows = cldr_pairs(*columns)["train"]
    tokenizer = train_tokenizer((text for column in columns for text in rows[column]), vocab_size=args.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoded = encode_pairs({"train": rows}, tokenizer, *columns, max_source_length=100, max_target_length=100)
    encoded.rows["train"].save_to_disk(folder / "rows")


def load(args: argparse.Namespace, folder: Path) -> tuple:
    """Model, rows, collator and sampler, the same for both kinds of run."""
    import datasets
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, set_seed

    import hfseq  # noqa: F401
    from hfseq.data.token_budget import TokenBudgetBatchSampler, row_lengths

    datasets.disable_progress_bars()
    rows = datasets.load_from_disk(str(folder / "rows"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    set_seed(0)
    config = AutoConfig.for_model(
        args.model_type,
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        embedding_size=args.embedding_size,
        attention_type="dot",
        dropout=0.3,
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    sampler = TokenBudgetBatchSampler(row_lengths(rows), args.max_tokens, seed=0)
    return model.to(args.device), rows, tokenizer, DataCollatorForSeq2Seq(tokenizer, model=model), sampler


def tick(ends: list[float], steps: int) -> None:
    """Note the time at the end of a step; a GPU is waited for at the two steps between which the time is taken."""
    from timing import synchronize

    if len(ends) in (WARM_UP - 1, steps - 1):
        synchronize()
    ends.append(time.perf_counter())


def run_bare(args: argparse.Namespace, folder: Path) -> list[float]:
    """A bare loop; returns the time at the end of each step."""
    import torch
    from torch.nn.functional import cross_entropy

    model, rows, _, collator, sampler = load(args, folder)
    loader = torch.utils.data.DataLoader(rows, batch_sampler=sampler, collate_fn=collator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    model.train()
    ends = []
    for _, batch in zip(range(args.steps), loader, strict=False):
        batch = batch.to(args.device)
        labels = batch.pop("labels")
        logits = model(**batch).logits
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick(ends, args.steps)
    return ends


def run_recipe(args: argparse.Namespace, folder: Path) -> list[float]:
    """The recipe's Trainer with the recipe's arguments; returns the time at the end of each step."""
    from transformers import TrainerCallback

    from hfseq.tasks.arguments import TranslationArguments
    from hfseq.tasks.seq2seq import Translation
    from hfseq.training.arguments import GenerationArguments
    from hfseq.training.trainer import GenerationTrainer

    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            tick(ends, args.steps)

    model, rows, tokenizer, collator, _ = load(args, folder)
    arguments = GenerationArguments(
        output_dir=str(folder / "output"),
        max_steps=args.steps,
        use_cpu=args.device == "cpu",
        label_smoothing_factor=0.1,
        warmup_steps=200,
        seed=0,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    trainer = GenerationTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=collator,
        compute_loss_func=Translation(TranslationArguments(), arguments).loss,
        callbacks=[Clock()],
        max_tokens=args.max_tokens,
    )
    trainer.train()
    return ends


def measure(args: argparse.Namespace, folder: Path) -> None:
    """One run in this process; prints its figures as JSON."""
    from itertools import islice

    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    ends = {"bare": run_bare, "recipe": run_recipe}[args.run](args, folder)
    _, rows, _, _, sampler = load(args, folder)
    batches = list(islice(sampler, args.steps))[WARM_UP:]
    tokens = sum(len(rows[row]["labels"]) for batch in batches for row in batch)
    figures = {
        "tokens_per_second": tokens / (ends[-1] - ends[WARM_UP - 1]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print("FIGURES " + json.dumps(figures))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments `argv`, by default those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file")
    parser.add_argument("--source_lang", default="en")
    parser.add_argument("--target_lang", default="de")
    parser.add_argument("--model_type", default="hfseq_lstm")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--embedding_size", type=int, default=256)
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--max_tokens", type=int, default=2500)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="by default as many as torch takes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--run", choices=["bare", "recipe"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    return args


def compare(args: argparse.Namespace) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Figures of the bare loop and of the recipe, `tokens_per_second` and `peak_mib`, for each pair of runs."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        prepare(args, Path(name))
        print(f"{'pair':>4}{'bare tok/s':>12}{'recipe tok/s':>14}{'ratio':>8}{'bare MiB':>10}{'recipe MiB':>12}")
        for pair in range(args.pairs):
            figures = {}
            for kind in ("bare", "recipe"):
                command = [sys.executable, __file__, *args.argv, "--run", kind, "--folder", name]
                output = subprocess.run(
                    command, check=True, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
                ).stdout
                line = next(line for line in output.splitlines() if line.startswith("FIGURES "))
                figures[kind] = json.loads(line.removeprefix("FIGURES "))
            bare, recipe = figures["bare"], figures["recipe"]
            found.append((bare, recipe))
            print(
                f"{pair:4}{bare['tokens_per_second']:12.0f}{recipe['tokens_per_second']:14.0f}"
                f"{recipe['tokens_per_second'] / bare['tokens_per_second']:8.3f}"
                f"{bare['peak_mib']:10.0f}{recipe['peak_mib']:12.0f}",
                flush=True,
            )
    return found


def main() -> None:
    """Prepare, then run the two in turn."""
    args = parse()
    if args.run:
        measure(args, args.folder)
        return
    ratios = [recipe["tokens_per_second"] / bare["tokens_per_second"] for bare, recipe in compare(args)]
    print(f"median ratio recipe / bare: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
