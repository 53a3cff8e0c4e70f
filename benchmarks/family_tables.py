"""Tables of the pages of the families: figures of `families.py`, of other benchmarks, and of the recipes."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import scores
from exactness import CACHE, PADDING, measured_by, table

FAMILIES, SPEED = (Path(__file__).with_name(name) for name in ("families.json", "results.json"))

TITLES = {
    "Rnn": "simple RNN",
    "Lstm": "LSTM",
    "Gru": "GRU",
    "Cnn": "CNN",
    "MinGru": "minGRU",
    "MinLstm": "minLSTM",
    "Qrnn": "QRNN",
    "Ssru": "SSRU",
}
"""Name of each family in class names to its name in a text."""
# How the description of a run's model begins if it is of the family.
_RUNS = {family: rf"{title}\b" for family, title in TITLES.items()}
_RUNS |= {"Rnn": r"(simple )?RNN\b", "Lstm": r"(Bi|Conv)?LSTM\b"}
_COMPARED = {"Multi30k de → en": "multi30k", "TREC": "comparison_trec", "SST-2": "comparison_sst2"}
"""Data to how the ids of the runs with each of the families begin."""


def family_blocks() -> dict[str, list[str]]:
    """Lines of each block of the pages of the families by its name."""
    values = json.loads(FAMILIES.read_text(encoding="utf-8"))
    found = scores.load_scores()["runs"]
    blocks = {"families": side_by_side(values), "families_scores": compared_scores(found)}
    blocks["linear"] = linear_speed()
    for family in TITLES:
        blocks[f"family_{family.lower()}"] = family_figures(family, values)
    for family, words in _RUNS.items():
        runs = [run for run in found if re.match(words, run["model"])]
        blocks[f"scores_{family.lower()}"] = scores.of_family(runs)
    return blocks


def side_by_side(values: Mapping[str, Any]) -> list[str]:
    """Lines of the table of all families, and of their residual blocks."""
    cached, padded = _cached(), _padded()
    rows = []
    for row in values["rows"]:
        family, _, blocks = row["model"].partition(", ")
        cells = [f"{TITLES[family]}{f', {blocks}' if blocks else ''}", f"{row['parameters'] / 1e6:.2f}"]
        cells += [_ratio(row[kind]) for kind in ("training", "generation")]
        cells += [f"{statistics.median(row['ms']['onnx']):.2f}"]
        cells += ["", ""] if blocks else [f"{cached[family]:,}", padded[row["model_type"]]]
        rows.append(cells)
    titles = [
        "model",
        "parameters, M",
        "training, × LSTM",
        "generation, × LSTM",
        "ONNX, ms per step",
        "cache, bytes",
        "padding error",
    ]
    return [*table(titles, rows), "", _sizes(values), "", measured_by(values["about"])]


def compared_scores(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table of scores that several families reached on the same data; empty where one was not tried."""
    by_id = {run["id"]: run["measured"]["scores"] for run in runs}
    rows = []
    for data, begin in _COMPARED.items():
        found = [by_id.get(f"{begin}_{family.lower()}", {}) for family in TITLES]
        name = next(iter(found[0]))
        rows.append([data, *(scores.figure(name, one[name]) if one else "" for one in found)])
    return table(["data", *TITLES.values()], rows)


def family_figures(family: str, values: Mapping[str, Any]) -> list[str]:
    """Lines of the table of one family's language models."""
    rows = [row for row in values["rows"] if row["model"].partition(", ")[0] == family]
    columns = [f"{TITLES[family]}, residual blocks" if ", " in row["model"] else TITLES[family] for row in rows]
    figures = [
        ["parameters", *(f"{row['parameters']:,}" for row in rows)],
        ["training speed, × LSTM", *(_range(row["training"]) for row in rows)],
        ["speed of `generate()`, × LSTM", *(_range(row["generation"]) for row in rows)],
        ["`generate()`, ms per step", *(f"{statistics.median(row['ms']['generation']):.2f}" for row in rows)],
        ["ONNX, ms per step", *(f"{statistics.median(row['ms']['onnx']):.2f}" for row in rows)],
        ["largest difference of the graph's logits", *(f"{row['onnx']['difference']:.0e}" for row in rows)],
        ["operators of the graph", *(", ".join(f"`{name}`" for name in row["onnx"]["operators"]) for row in rows)],
    ]
    lines = table(["language model of characters", *columns], figures)
    return [*lines, "", _sizes(values), "", measured_by(values["about"])]


def _sizes(values: Mapping[str, Any]) -> str:
    sizes = values["sizes"]
    return (
        f"Width {sizes['width']}; training on {sizes['rows']} rows of {sizes['length']} characters, generation of "
        f"{sizes['new_tokens']} for one row; processor time on one thread."
    )


def _ratio(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f}"


def linear_speed() -> list[str]:
    """Lines of the table of the measures of `speed_linear.py`."""
    rows = []
    for row in json.loads(SPEED.read_text(encoding="utf-8"))["rows"]:
        if "minGRU" in row["measure"]:
            rows.append([row["measure"], row["beside"], _range(row["ratios"]), scores.medians(row["figures"])])
            about = row["about"]
    return [*table(["measurement", "compared with", "speed ratio", "medians"], rows), "", measured_by(about)]


def _range(ratios: Sequence[float]) -> str:
    return f"{_ratio(ratios)} [{min(ratios):.2f}..{max(ratios):.2f}]"


def _cached() -> dict[str, int]:
    """Bytes of the cache of each family's language model, after the longer text."""
    values = json.loads(CACHE.read_text(encoding="utf-8"))
    return {row["model"].removesuffix("ForCausalLM"): row["bytes"][1] for row in values["rows"]}


def _padded() -> dict[str, str]:
    """Largest of the padding errors of each model type."""
    values = json.loads(PADDING.read_text(encoding="utf-8"))
    return {name: max(cells[:3], key=float) for name, cells in values["rows"].items()}
