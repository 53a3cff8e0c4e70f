"""The page of results and the plots of the speed benchmarks."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import scores
from growth import FILE as GROWTH
from growth import growth_table
from limits import Limit, Product
from matplotlib.figure import Figure
from timing import Row

FILES = {"cpu": "results.json", "cuda": "results_cuda.json"}
NOTES = Path(__file__).with_name("notes.md")
SHARES = {"float32": 0.9, "bfloat16": 0.75}
"""Share of a training step that its matrix products alone are to take, by the kind of numbers."""


def results_page(folder: Path) -> str:
    """Return the text of RESULTS.md: speed from the files in `folder`, then notes, scores and their provenance."""
    found = {
        device: json.loads((folder / name).read_text(encoding="utf-8"))
        for device, name in FILES.items()
        if (folder / name).exists()
    }
    tables = {device: [Row(**row) for row in values["rows"]] for device, values in found.items()}
    limits = [
        Limit(**limit | {"products": [(Product(*one), *rest) for one, *rest in limit["products"]]})
        for limit in found["cpu"]["limits"]
    ]
    lines = [
        "# Results",
        "",
        "Rendered by `make results` from `results.json`, `results_cuda.json` and `scores.json`; `make bench` measures",
        "speed.",
        "",
        *speed(tables, limits, found["cpu"]["profiles"], found["cpu"]["about"]),
        NOTES.read_text(encoding="utf-8").strip(),
        "",
        *scores.quality(scores.load_scores()),
    ]
    return "\n".join(lines) + "\n"


def speed(
    tables: Mapping[str, Sequence[Row]],
    limits: Sequence[Limit],
    profiles: Mapping[str, Mapping[str, float]],
    about: Mapping[str, Mapping[str, str]],
) -> list[str]:
    """Lines of the section about speed.

    Args:
        tables: Rows of `cpu`, and of `cuda` where there was a GPU.
        limits: Limit of a training step on the CPU, for each kind of numbers.
        profiles: Kind of numbers to the share of a step on the CPU that each kind of work has.
        about: Machine, versions and command of `curves`, `limits` and `profiles`.
    """
    gpu = ["### On a GPU", "", *table(tables["cuda"]), ""] if "cuda" in tables else []
    return [
        "## Speed",
        "",
        "A ratio is the median of rounds in which both sides took turns, with smallest and largest in brackets.",
        "The docstring of each measure, in `benchmarks/speed_*.py`, says what is equal on both sides and what is not.",
        "",
        *table(tables["cpu"]),
        "",
        "![ratios](ratios.png)",
        "",
        "![time and memory of generation by length](language_models.png)",
        "",
        *describe(about["curves"]),
        "",
        *gpu,
        "### Where the time of a training step goes",
        "",
        *describe(about["profiles"]),
        "",
        *describe_profiles(profiles),
        "",
        "### The limit of a training step",
        "",
        *describe(about["limits"]),
        *(line for limit in limits for line in ("", *describe_limit(limit))),
        "",
        *growth(),
    ]


def growth() -> list[str]:
    """Lines on the growth of a training step, as `growth.py` finds it."""
    values = json.loads(GROWTH.read_text(encoding="utf-8"))
    base = ", ".join(f"{name} {value}" for name, value in values["base"].items())
    return [
        "### Growth with the work",
        "",
        "![milliseconds of a training step by length, vocabulary, batch and width](growth.png)",
        "",
        f"One size is doubled four times while the others stay ({base}). Slopes of the last three points, in",
        "logarithms:",
        "",
        *growth_table(values),
        "",
        *describe(values["about"]),
        "",
    ]


def describe(about: Mapping[str, str]) -> list[str]:
    """One line on what a measurement depends on."""
    parts = [f"{title}: {value if title != 'command' else f'`{value}`'}" for title, value in about.items()]
    return [f"Measured on {'; '.join(parts)}."]


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of the Markdown table, the notes below it, and what each group of rows was measured on."""
    titles = ["measure", "compared with", "ratio", "to reach", "verdict", "figures (medians)", "measured"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    notes: list[str] = []
    machines: list[Mapping[str, str]] = []
    for row in rows:
        ratio = "" if row.median is None else f"{row.median:.3g} [{min(row.ratios):.3g}..{max(row.ratios):.3g}]"
        target = f"{'≤' if row.at_most else '≥'} {row.target:g}"
        mark = ""
        if row.note:
            notes.append(f"{len(notes) + 1}. {row.note}.")
            mark = f" ({len(notes)})"
        if row.about not in machines:
            machines.append(row.about)
        letter = ascii_uppercase[machines.index(row.about)]
        cells = [f"{row.measure}{mark}", row.beside, ratio, target, row.verdict, scores.medians(row.figures), letter]
        lines.append(f"| {' | '.join(cells)} |")
    measured = [f"- {letter}: {describe(about)[0]}" for letter, about in zip(ascii_uppercase, machines, strict=False)]
    return [*lines, "", *([*notes, ""] if notes else []), *measured]


def describe_profiles(profiles: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines of the table of shares, as `profile_step.py` finds them."""
    kinds = list(dict.fromkeys(kind for shares in profiles.values() for kind in shares))
    lines = [f"| work | {' | '.join(profiles)} |", f"|---|{'--:|' * len(profiles)}"]
    for kind in kinds:
        lines.append(f"| {kind} | {' | '.join(f'{shares.get(kind, 0):.1%}' for shares in profiles.values())} |")
    return lines


def describe_limit(limit: Limit) -> list[str]:
    """Lines that say what a step needs and what it takes."""
    target = SHARES[limit.numbers]
    verdict = "reached" if limit.share >= target else "missed"
    lines = [
        f"In {limit.numbers}, the matrix products of one step are {limit.gflop:.3g} · 10⁹ operations. Alone, at the",
        f"speed that `torch.mm` has at their shapes, they take {limit.best_ms:.4g} ms; the whole step takes",
        f"{limit.step_ms:.4g} ms. The products are {limit.share:.0%} of it (to reach: {target:.0%}; {verdict}); more",
        "than 100% means that the kernels of the recurrent layers multiply faster than `torch.mm`. A copy in memory",
        f"runs at {limit.bandwidth:.3g} GB/s.",
        "",
        "| product | m × k × n | times | share of the operations | GFLOP/s |",
        "|---|---|--:|--:|--:|",
    ]
    for product, share, speed in limit.products:
        shape = f"{product.m} × {product.k} × {product.n}"
        lines.append(f"| {product.name} | {shape} | {product.count} | {share:.1%} | {speed:.4g} |")
    return lines


def plot_ratios(rows: Sequence[Row], path: Path) -> None:
    """Bars of the ratios over what is to be reached, so that 1 is the target of each; costs are turned over."""
    measured = [row for row in rows if row.median]
    figure = Figure(figsize=(9, 0.5 * len(measured) + 1.2), layout="constrained")
    axes = figure.subplots()
    for position, row in enumerate(reversed(measured)):
        scaled = sorted(row.target / ratio if row.at_most else ratio / row.target for ratio in row.ratios)
        middle = statistics.median(scaled)
        error = [[middle - scaled[0]], [scaled[-1] - middle]]
        color = "tab:green" if row.verdict == "reached" else "tab:red"
        axes.barh(position, middle, xerr=error, color=color, capsize=3)
    labels = [f"{row.measure}\n{row.beside.replace('`', '')}" for row in reversed(measured)]
    axes.set_yticks(range(len(measured)), labels, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("ratio / what is to be reached")
    figure.savefig(path, dpi=150)


def plot_language_models(curves: Mapping[str, Any], path: Path) -> None:
    """Milliseconds a token and bytes of the cache, by the length of the text."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in curves["ms"].items():
        left.plot(curves["tokens"], values, marker="o", label=name)
    for name, values in curves["bytes"].items():
        right.plot(curves["tokens"], values, marker="o", label=name)
    left.set_ylabel("ms a token")
    left.set_ylim(bottom=0)
    right.set_ylabel("bytes of the cache")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("tokens so far")
        axes.legend()
    figure.savefig(path, dpi=150)
