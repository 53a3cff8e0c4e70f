"""Selective copying (Gu & Dao 2024, section 4.1.1) by minGRU in one, two and three layers.

    python benchmarks/selective_copying.py --layers 1 2 3 --steps 4000

A sequence has 16 letters at random places among noise; after its end the model has to say them in their order. Gates
that see the input alone tell letters from noise, but not how many letters there were: that takes a second layer (Feng
et al. 2024, section 4: 37 % of the letters with one layer, 99 % with three, at length 4096). The models are blocks of
width 64 with a recurrence six times as wide. Training begins with short sequences, whose length doubles (Bengio et al.
2009), since they teach the same at a fraction of the cost. Prints the share of letters that are right, on sequences of
the full length that were not trained on, and the time.
"""

import argparse
import time
from typing import Any

import torch
from record import store, this_command, threads
from torch import Tensor

import hfseq

LETTERS, NOISE, CUE = 16, 16, 17
LABELS = 16


def draw(rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens `[B, length + 16]`, the last 16 of which ask for the letters, and these letters `[B, 16]`."""
    letters = torch.randint(0, LETTERS, (rows, LABELS), generator=generator)
    places = torch.rand(rows, length, generator=generator).topk(LABELS, dim=1).indices.sort(dim=1).values
    tokens = torch.full((rows, length), NOISE).scatter(1, places, letters)
    return torch.cat([tokens, torch.full((rows, LABELS), CUE)], dim=1), letters


def accuracy(model: torch.nn.Module, length: int, rows: int = 512) -> float:
    """Share of letters that are right in sequences of a seed of their own."""
    tokens, letters = draw(rows, length, torch.Generator().manual_seed(10**6))
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(part).logits[:, -LABELS:].argmax(dim=-1) for part in tokens.split(64)])
    model.train()
    return (found == letters).float().mean().item()


def length_at(step: int, args: argparse.Namespace) -> int:
    """Length of the sequences of a step: as many steps at each power of two times the first length."""
    stages = [args.start_length]
    while stages[-1] < args.length:
        stages.append(min(2 * stages[-1], args.length))
    return stages[(step - 1) * len(stages) // args.steps]


def train(layers: int, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Train a model of so many layers; returns its accuracy, and its size and the minutes that it took."""
    torch.manual_seed(args.seed)
    config = hfseq.MinGruConfig(
        vocab_size=CUE + 1,
        hidden_size=64,
        num_hidden_layers=layers,
        num_labels=LETTERS,
        bidirectional=False,
        residual_blocks=True,
        expand=6,
        dropout=0.0,  # no sequence is drawn twice
        pad_token_id=None,
    )
    model = hfseq.MinGruForTokenClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(args.seed)
    begin = time.perf_counter()
    for step in range(1, args.steps + 1):
        length = length_at(step, args)
        tokens, letters = draw(args.batch_size, length, generator)
        labels = torch.cat([torch.full((len(tokens), length), -100), letters], dim=1)
        loss = model(tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % args.every == 0 or step == args.steps:
            found = accuracy(model, args.length)
            minutes = (time.perf_counter() - begin) / 60
            print(
                f"{layers} layers, step {step} at length {length}: "
                f"loss {loss.item():.3f}, {found:.1%} right, {minutes:.1f} min",
                flush=True,
            )
    facts = {"parameters_millions": round(model.num_parameters() / 1e6, 3), "minutes": round(minutes, 1)}
    return {"accuracy, %": 100 * found}, facts


def main() -> None:
    """Train a model of each depth, and write what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--start_length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--every", type=int, default=250, help="steps between two lines")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--record",
        metavar="ID",
        help="store the figures in ID_1, ID_2 … of scores.json, one for each depth",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for layers in args.layers:
        scores, facts = train(layers, args)
        if args.record:
            facts |= {"seeds": [args.seed], "on": threads()}
            store(f"{args.record}_{layers}", scores, this_command(), **facts)


if __name__ == "__main__":
    main()
