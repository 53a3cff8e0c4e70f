"""Tables of pages of the guide, from the JSON files of the benchmarks that measure them."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scores import significant

FOLDER = Path(__file__).parent
PADDING, CACHE = FOLDER / "padding_and_beams.json", FOLDER / "cache_memory.json"
CATALOGUE = FOLDER / "large_catalogue.json"
CONVERTED = FOLDER / "joeynmt_converted.json"
SERVING = FOLDER / "serving.json"
CTRANSLATE2 = FOLDER / "ctranslate2.json"


def padding_table(path: Path = PADDING) -> list[str]:
    """Lines of the table of `padding_and_beams.py`, and the exceptions below it."""
    values = json.loads(path.read_text(encoding="utf-8"))
    lines = table(["model", *values["columns"]], [[f"`{name}`", *cells] for name, cells in values["rows"].items()])
    raised = [f"- `{name}` raises `{error}`" for name, errors in values["raised"].items() for error in errors]
    return [*lines, "", *raised, *([""] if raised else []), measured_by(values["about"])]


def cache_table(path: Path = CACHE) -> list[str]:
    """Lines of the table of `cache_memory.py`."""
    values = json.loads(path.read_text(encoding="utf-8"))
    short, long = values["tokens"]
    rows = [
        [f"`{row['model']}`", f"{row['parameters']:,}", *(f"{size:,}" for size in row["bytes"])]
        + [f"{row['bytes'][1] / row['bytes'][0]:.4g}"]
        for row in values["rows"]
    ]
    lines = table(["model", "parameters", f"{short:,} tokens", f"{long:,} tokens", "ratio"], rows)
    return [*lines, "", measured_by(values["about"])]


def catalogue_table(path: Path = CATALOGUE) -> list[str]:
    """Lines of the table of `large_catalogue.py`."""
    values = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for row in values["rows"]:
        ratios, speed = row["ratios"], ""
        if any(ratio != 1 for ratio in ratios):  # those of the full softmax itself are 1
            speed = f"{statistics.median(ratios):.3g} [{min(ratios):.3g}..{max(ratios):.3g}]"
        rows.append(
            [f"{row['items']:,}", row["side"], f"{1000 / row['ms']:.3g}", speed, f"{row['peak_mb'] / 1000:.2f}"]
        )
    titles = [
        "items",
        "loss",
        "steps per second of processor time",
        "speed relative to the full softmax",
        "peak memory, GB",
    ]
    return [*table(titles, rows), "", measured_by(values["about"])]


def converted_table(path: Path = CONVERTED) -> list[str]:
    """Lines of the table of `joeynmt_converted.py`."""
    values = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [name, *(f"{row[side]['bleu']:.2f}" for side in ("joeynmt", "hfseq")), f"{row['other_lines']:,}"]
        for name, row in values["searches"].items()
    ]
    (lines,) = {row["lines"] for row in values["searches"].values()}
    titles = ["search", "BLEU of JoeyNMT", "BLEU after conversion", f"translations that differ, of {lines:,}"]
    return [*table(titles, rows), "", f"The check: {values['check']}. {measured_by(values['about'])}"]


def load_table(loads: Mapping[str, Any]) -> list[str]:
    """Lines of the tables of `serving_load.py`: load by model and number of clients, then the overhead."""
    rows, overheads, measured = [], [], []
    for name, values in loads.items():
        for row in values["rows"]:
            single, batched = row["one at a time"], row["batched"]
            pairs = [
                f"{significant(single[figure])} → {significant(batched[figure])}"
                for figure in ("requests/s", "p50, ms", "p95, ms")
            ]
            ratios = [f"{statistics.median(row['ratios'][figure]):.2f}" for figure in ("requests/s", "p50, ms")]
            share = f"{batched['client CPU']:.0%}"
            rows.append([name, str(row["clients"]), *pairs, *ratios, str(row["other answers"]), share])
        times = values["overhead"]
        overheads.append([name, *(f"{times[side]:.2f}" for side in ("pipeline", "server", "difference"))])
        measured += [f"{name}: {measured_by(values['about'])}", ""]
    titles = ["model", "clients", "requests/s", "p50, ms", "p95, ms", "ratio of requests/s", "ratio of p50"]
    lines = table([*titles, "answers that differ", "clients' share of the CPU time"], rows)
    beside = table(["model", "pipeline, ms", "server, ms", "overhead, ms"], overheads)
    return [*lines, "", *beside, "", *measured[:-1]]


def serving_table(path: Path = SERVING) -> list[str]:
    """Lines of the tables of `serving_load.py`, `serving_int8.py` and `serving_soak.py`, as far as they have run."""
    values = json.loads(path.read_text(encoding="utf-8"))
    lines = load_table(values["load"]) if values["load"] else []
    if int8 := values["int8"]:
        names = ("PyTorch float32", "ONNX int8")
        columns = ("requests/s", "p50, ms", "p95, ms", "BLEU")
        ratio = f"{statistics.median(int8['ratios of requests/s']):.2f}"
        rows = [
            [name, *(f"{int8[name][column]:.4g}" for column in columns), ratio if name == names[1] else "1"]
            for name in names
        ]
        title = f"translator, {int8['clients']} clients, beam {int8['num_beams']}, {int8['lines']} lines"
        lines += ["", *table([title, *columns, "ratio of requests/s"], rows), "", measured_by(int8["about"])]
    if soak := values["soak"]:
        before, middle, after = soak["memory, MiB"]
        row = [
            f"{soak['requests']:,}",
            f"{soak['left']:,}",
            str(soak["errors"]),
            f"{before:.0f}, {middle:.0f}, {after:.0f}",
        ]
        row += [f"{soak['slope, MiB per 10 000 requests']:.2f}", " → ".join(map(str, soak["file descriptors"]))]
        titles = ["requests", "aborted by clients", "errors", "memory at the start, halfway, at the end, MiB"]
        titles += ["growth in the second half, MiB per 10,000 requests", "file descriptors"]
        lines += ["", *table(titles, [row]), "", measured_by(soak["about"])]
    return lines


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write what a benchmark measured."""
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table of figures, below a first column of names."""
    lines = [f"| {' | '.join(titles)} |", "|---|" + "--:|" * (len(titles) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def measured_by(about: Mapping[str, str]) -> str:
    """One line on the command, versions, machine, commit and date of a measurement."""
    parts = "; ".join(about[key] for key in ("versions", "processor", "commit", "date"))
    return f"Measured by `{about['command']}`: {parts}."
