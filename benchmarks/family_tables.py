"""Tables of the pages of the families: figures of `families.py`, beside those of other benchmarks and of the recipes."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import scores
from exactness import CACHE, PADDING
from exactness import _measured as describe
from exactness import _table as table

FAMILIES = Path(__file__).with_name("families.json")

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
# Models of the recipes' runs are described in words, of which the first that names a family counts.
_RUNS = {
    "Rnn": r"(simple )?RNN\b",
    "Lstm": r"(Bi|Conv)?LSTM\b",
    "Gru": r"GRU\b",
    "Cnn": r"CNN\b",
    "MinGru": r"minGRU\b",
    "MinLstm": r"minLSTM\b",
    "Qrnn": r"QRNN\b",
    "Ssru": r"SSRU\b",
}
_COMPARED = {
    "Multi30k de → en": {family: f"multi30k_{family.lower()}" for family in ("Rnn", "Lstm", "Gru", "Cnn")},
    "TREC": {family: f"comparison_trec_{family.lower()}" for family in ("Rnn", "Lstm", "Gru", "Cnn")},
    "SST-2": {family: f"comparison_sst2_{family.lower()}" for family in ("Rnn", "Lstm", "Gru", "Cnn")},
}
"""Data to the run of each family that was trained on them in the same way."""


def family_blocks() -> dict[str, list[str]]:
    """Lines of each block of the pages of the families by its name."""
    values = json.loads(FAMILIES.read_text(encoding="utf-8"))
    found = scores.load_scores()["runs"]
    blocks = {"families": side_by_side(values), "families_scores": compared_scores(found)}
    for family in TITLES:
        blocks[f"family_{family.lower()}"] = family_figures(family, values)
        blocks[f"scores_{family.lower()}"] = family_scores(family, found)
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
        "a step of generation, × LSTM",
        "a step by ONNX, ms",
        "cache, bytes",
        "padding error",
    ]
    return [*table(titles, rows), "", describe(values["about"])]


def compared_scores(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table of scores that several families reached on the same data."""
    by_id = {run["id"]: run for run in runs}
    families = list(dict.fromkeys(family for ids in _COMPARED.values() for family in ids))
    rows = []
    for data, ids in _COMPARED.items():
        name = next(iter(by_id[next(iter(ids.values()))]["measured"]["scores"]))
        cells = [scores.figure(name, by_id[ids[family]]["measured"]["scores"][name]) for family in families]
        rows.append([f"{data}, {name.partition(',')[0]}", *cells])
    return table(["data", *(TITLES[family] for family in families)], rows)


def family_figures(family: str, values: Mapping[str, Any]) -> list[str]:
    """Lines of the table of one family's language models."""
    cached, padded = _cached(), _padded()
    rows = [row for row in values["rows"] if row["model"].partition(", ")[0] == family]
    columns = [f"{TITLES[family]}, residual blocks" if ", " in row["model"] else TITLES[family] for row in rows]
    lines = [
        ["parameters", *(f"{row['parameters']:,}" for row in rows)],
        ["speed of training, × LSTM", *(_ratio(row["training"]) for row in rows)],
        ["speed of a step of `generate()`, × LSTM", *(_ratio(row["generation"]) for row in rows)],
        ["a step of `generate()`, ms", *(f"{statistics.median(row['ms']['generation']):.2f}" for row in rows)],
        ["a step by ONNX, ms", *(f"{statistics.median(row['ms']['onnx']):.2f}" for row in rows)],
        ["largest difference of the ONNX graph's logits", *(f"{row['onnx']['difference']:.0e}" for row in rows)],
        ["operators of the graph", *(", ".join(f"`{name}`" for name in row["onnx"]["operators"]) for row in rows)],
    ]
    return [*table(["language model of characters", *columns], lines), "", describe(values["about"])]


def family_scores(family: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table of the recipes' runs with a family."""
    rows = [run for run in runs if re.match(_RUNS[family], run["model"]) and run["task"] not in ("reliability",)]
    return scores.of_family(rows)


def _ratio(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f}"


def _cached() -> dict[str, int]:
    """Bytes of the cache of each family's language model, after the longer text."""
    values = json.loads(CACHE.read_text(encoding="utf-8"))
    return {row["model"].removesuffix("ForCausalLM"): row["bytes"][1] for row in values["rows"]}


def _padded() -> dict[str, str]:
    """Largest of the padding errors of each model type."""
    values = json.loads(PADDING.read_text(encoding="utf-8"))
    return {name: max(cells[:3], key=float) for name, cells in values["rows"].items()}
