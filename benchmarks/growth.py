"""Growth of the cost of a training step with the length, the vocabulary, the batch and the width.

    python benchmarks/growth.py

Language models of two layers take a training step (forward, backward, no optimizer) on random tokens. One of the four
sizes is doubled four times while the others stay; in between, all models and sizes take turns, and the figures are
medians of the CPU time of a step. They go into `benchmarks/growth.json`, from which `make results` renders the table
and the plot. The slope is that of a line through the logarithms of the last three points: 0 if the cost does not
depend on the size, 1 if it doubles with the size, 2 if it becomes four times as high.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from timing import in_turns, machine
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

import hfseq

FILE = Path(__file__).with_name("growth.json")
BASE = {"length": 64, "vocabulary": 2000, "batch": 16, "width": 256}
SIZES = {
    "length": [64, 128, 256, 512, 1024],
    "vocabulary": [2000, 4000, 8000, 16000, 32000],
    "batch": [4, 8, 16, 32, 64],
    "width": [64, 128, 256, 512, 1024],
}
"""Name of a size to its values: each is twice the one before it."""


def family(config_class: type) -> Callable[[int, int, int], PreTrainedModel]:
    """Builder of a language model of a family, from vocabulary, width and length."""

    def build(vocabulary: int, width: int, length: int) -> PreTrainedModel:
        return AutoModelForCausalLM.from_config(
            config_class(vocab_size=vocabulary, hidden_size=width, embedding_size=width, num_hidden_layers=2)
        )

    return build


def gpt2(vocabulary: int, width: int, length: int) -> PreTrainedModel:
    """A Transformer of the same width, with heads of 64."""
    heads = max(1, width // 64)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=2, n_head=heads, n_positions=length, **special)
    return AutoModelForCausalLM.from_config(config)


MODELS = {
    "LSTM": family(hfseq.LstmConfig),
    "GRU": family(hfseq.GruConfig),
    "minGRU": family(hfseq.MinGruConfig),
    "CNN": family(hfseq.CnnConfig),
    "GPT-2": gpt2,
}


def step(build: Callable[[int, int, int], PreTrainedModel], sizes: Mapping[str, int]) -> Callable[[], float]:
    """A side that takes a training step with models of these sizes, and returns its CPU seconds."""
    torch.manual_seed(0)
    model = build(sizes["vocabulary"], sizes["width"], sizes["length"]).train()
    ids = torch.randint(3, sizes["vocabulary"], (sizes["batch"], sizes["length"]))

    def side() -> float:
        begin = time.process_time()
        model(ids, labels=ids).loss.backward()
        model.zero_grad()
        return time.process_time() - begin

    return side


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of the least-squares line through the logarithms of the last three points."""
    points = [(math.log(size), math.log(second)) for size, second in zip(sizes[-3:], seconds[-3:], strict=True)]
    middle, height = (statistics.mean(values) for values in zip(*points, strict=True))
    return sum((x - middle) * (y - height) for x, y in points) / sum((x - middle) ** 2 for x, _ in points)


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Median CPU milliseconds of a step: name of a size, then model, then one for each value."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, values in SIZES.items():
        found[name] = {model: [] for model in MODELS}
        for value in values:
            sides = {model: step(build, BASE | {name: value}) for model, build in MODELS.items()}
            for model, seconds in in_turns(sides, rounds).items():
                found[name][model].append(1000 * statistics.median(seconds))
            print(name, value, {model: round(times[-1], 1) for model, times in found[name].items()}, flush=True)
    return found


def growth_table(values: Mapping[str, Any]) -> list[str]:
    """Lines of the table of slopes."""
    sizes = values["sizes"]
    lines = [f"| model | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    for model in values["ms"]["length"]:
        slopes = [slope(sizes[name], values["ms"][name][model]) for name in sizes]
        lines.append(f"| {model} | {' | '.join(f'{one:.2f}' for one in slopes)} |")
    return lines


def plot_growth(values: Mapping[str, Any], path: Path) -> None:
    """Milliseconds of a step by each size, on logarithmic axes."""
    sizes = values["sizes"]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (name, numbers) in zip(figure.subplots(1, len(sizes), sharey=True), sizes.items(), strict=True):
        for model, times in values["ms"][name].items():
            axes.plot(numbers, times, marker="o", markersize=3, label=model)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(numbers, [str(number) for number in numbers], fontsize=7)
        axes.set_xlabel(name)
    figure.axes[0].set_ylabel("CPU ms a step")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, write the figures and the plot, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = machine(1, "cpu") | {"command": f"python benchmarks/growth.py --rounds {args.rounds}"}
    values = {"about": about, "base": BASE, "sizes": SIZES, "ms": measure(args.rounds)}
    FILE.write_text(json.dumps(values, indent=4) + "\n", encoding="utf-8")
    plot_growth(values, FILE.with_suffix(".png"))
    print("\n".join(growth_table(values)))


if __name__ == "__main__":
    main()
