"""Time and memory of a training step by catalogue size and loss, and of recommendations from a large catalogue.

    python benchmarks/large_catalogue.py

A GRU of 128 units with tied embeddings of width 64 is trained on batches of 32 rows of 20 items, which are drawn by
Zipf's law, by AdamW as in the recipes. Every side runs in a process of its own, so that the peak of its resident
memory is known; the sides of one size take turns, and a ratio is the median of the rounds. Drawing the data and
creating the model do not count as time. Time is processor time of the one thread, in the program and in the system for
it, which other programs on the machine change less than the time on a clock. The last side recommends 10 items to each
of 64 users by `recommend_all`. Figures go into `benchmarks/large_catalogue.json`, from which `make results` renders
the table.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from exactness import CATALOGUE, catalogue_table, write
from samples import make_optimizer
from timing import in_turns, machine, speedups
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, set_seed

import hfseq
from hfseq.inference.recommend import recommend_all

HIDDEN, WIDTH, ROWS, LENGTH, NEGATIVES, USERS = 128, 64, 32, 20, 2048, 64
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
SIDES: dict[str, Callable[[int], dict[str, Any]]] = {
    "full softmax": lambda items: {},
    "adaptive softmax": lambda items: {"adaptive_softmax_cutoffs": [items // 500, items // 50, items // 5]},
    "sampled softmax": lambda items: {"num_negatives": NEGATIVES},
    "BPR-max": lambda items: {"num_negatives": NEGATIVES, "in_batch_negatives": True, "sampled_loss": "bpr_max"},
}
"""Name of a loss to the fields that ask for it."""
RECOMMENDATION = "recommendation"


def draw(items: int, *shape: int) -> torch.Tensor:
    """Item ids by Zipf's law: the probability of rank r is proportional to 1 / r."""
    ranks = torch.exp(torch.rand(shape) * math.log(items - len(SPECIAL))).long() - 1
    return len(SPECIAL) + ranks


def make_model(items: int, side: str) -> hfseq.GruForCausalLM:
    """A fresh model for a number of items, special tokens included."""
    set_seed(0)
    fields = SIDES.get(side, SIDES["full softmax"])(items)
    config = hfseq.GruConfig(vocab_size=items, hidden_size=HIDDEN, embedding_size=WIDTH, dropout=0.0, **fields)
    model = hfseq.GruForCausalLM(config)
    if config.num_negatives is not None:
        model.set_item_counts((items / (1 + torch.arange(items))).long() + 1)
    return model


def train(items: int, side: str, steps: int) -> float:
    """Seconds of a training step, the mean of so many after a first one."""
    model = make_model(items, side).train()
    optimizer = make_optimizer(model)
    batches = [draw(items, ROWS, LENGTH) for _ in range(steps + 1)]
    for step, ids in enumerate(batches):
        if step == 1:
            begin = time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - begin) / steps


def recommend(items: int, steps: int) -> float:
    """Seconds of a batch of recommendations, the mean of so many after a first one."""
    model = make_model(items, RECOMMENDATION).eval()
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *map(str, range(len(SPECIAL), items))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )
    histories = [[str(item) for item in row] for row in draw(items, USERS, LENGTH).tolist()]
    for step in range(steps + 1):
        if step == 1:
            begin = time.process_time()
        recommend_all(model, tokenizer, histories, filter_seen=True, batch_size=USERS)
    return (time.process_time() - begin) / steps


def run_side(items: int, side: str, steps: int) -> dict[str, float]:
    """Measure one side in this process: seconds of a step, and the peak of the resident memory in MB."""
    seconds = recommend(items, steps) if side == RECOMMENDATION else train(items, side, steps)
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def measure(items: int, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table for one size of the catalogue."""
    peaks: dict[str, list[float]] = {}

    def clock(side: str) -> Callable[[], float]:
        def run() -> float:
            # Forked, so that it need not import everything again.
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found = pool.apply(run_side, (items, side, steps))
            peaks.setdefault(side, []).append(found["peak_mb"])
            print(f"{items:,} items, {side}: {found['seconds']:.3f} s, {found['peak_mb']:,.0f} MB", flush=True)
            return float(found["seconds"])

        return run

    names = [*SIDES, RECOMMENDATION]
    times = in_turns({side: clock(side) for side in names}, rounds, warm_up=0)
    rows = []
    for side in names:
        ratios = [] if side == RECOMMENDATION else speedups(times, side, "full softmax")
        row = {"items": items, "side": side, "ms": 1000 * statistics.median(times[side]), "ratios": ratios}
        rows.append(row | {"peak_mb": max(peaks[side])})
    return rows


def main() -> None:
    """Measure, write the JSON, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000], help="sizes of the catalogue")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed in each round")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side is run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for items in args.items for row in measure(items, args.steps, args.rounds)]
    sizes = {"hidden": HIDDEN, "width": WIDTH, "rows": ROWS, "length": LENGTH, "negatives": NEGATIVES, "users": USERS}
    about = machine(1, "cpu") | {"command": "python benchmarks/large_catalogue.py"}
    write(CATALOGUE, {"about": about, "sizes": sizes, "rows": rows})
    print("\n".join(catalogue_table()))


if __name__ == "__main__":
    main()
