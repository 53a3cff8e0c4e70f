"""Shares of the time of a training step, by kind of work.

    python benchmarks/profile_step.py --data folder/with/multi30k [--bf16]

profiles the step of `samples.Samples.translator` on a batch by tokens, and prints its kinds of work and its longest
operations. The profiler makes short operations longer, so that shares are reported, not times.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from samples import Samples, Sizes, make_optimizer, train_step
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "loss": ("_CrossEntropy",),
    "update of the weights": ("Optimizer.step", "Optimizer.zero_grad"),
    "recurrent layers": ("aten::mkldnn_rnn_layer", "aten::lstm", "aten::gru", "aten::rnn_tanh"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "dropout": ("_Drop", "aten::random_", "aten::bernoulli_"),
    "order of padding": ("_Permutation",),
    "norm of the gradients": ("aten::linalg_vector_norm", "aten::_foreach_norm"),
}
"""Kind of work to the beginnings of the names of its operations, whose children count for it, too."""


def kind_of(event: FunctionEvent) -> str:
    """The kind of an operation: its own, else that of the operation that called it, and so on."""
    caller: FunctionEvent | None = event
    while caller is not None:
        for kind, names in KINDS.items():
            if caller.name.startswith(names):
                return kind
        caller = caller.cpu_parent
    return "the rest"


def profiled(samples: Samples, bf16: bool, steps: int = 5) -> profile:
    """A profile of some steps, after others that warm up."""
    model = samples.translator().train()
    optimizer = make_optimizer(model)
    batch = samples.collate(model, samples.budget_batches(1)[0])
    for _ in range(2):
        train_step(model, optimizer, batch, bf16)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            train_step(model, optimizer, batch, bf16)
    return found


def shares(found: profile) -> dict[str, float]:
    """Kind of work to its share of the time, the largest first."""
    spent: Counter[str] = Counter()
    for event in found.events():
        spent[kind_of(event)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: time / total for kind, time in spent.most_common()}


def main(argv: list[str] | None = None) -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.de, train.en, test_2016_flickr.de and .en")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="under bfloat16 autocast")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found = profiled(Samples(Sizes(), args.data), args.bf16)
    for kind, share in shares(found).items():
        print(f"{share:6.1%}  {kind}")
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))


if __name__ == "__main__":
    main()
