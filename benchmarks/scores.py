"""Tables of the scores in `scores.json`: what the recipes reached, beside baselines, targets and published figures.

Each entry of `runs` describes what is run (task, model, data, target, and the keys of its figures in a run's
`all_results.json`), and has what was measured under `measured`: scores and baselines, a number or one for each seed,
with command, commit, seeds, processor and date. `record.py` writes that part. A `source` of "earlier report" marks
figures that were copied from a report whose JSON no longer exists; what it did not say is null.
"""

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_name("scores.json")
UNKNOWN = "not recorded"
# Scores of at most 100, shown with one decimal; errors in units of the data, and scores of at most 1, shown with three
# significant digits.
_SCORES = ("exact match", "accuracy", "BLEU", "chrF", "ROUGE", "perplexity", "CER", "WER", "recall", "NAB", "VUS-PR")
_SCORES += ("coverage", "SOV")
_ERRORS = ("WQL", "MAE", "MSE", "RMSE", "MASE")
_SHARES = ("HR@", "NDCG@", "MRR@", "SSIM")
_LOWER_IS_BETTER = (*_ERRORS, "perplexity", "CER", "WER")

Run = dict[str, Any]


def load_scores() -> dict[str, list[Run]]:
    """Return the runs that were measured, and the published, tried and observed figures."""
    scores = json.loads(FILE.read_text(encoding="utf-8"))
    return scores | {"runs": [run for run in scores["runs"] if "measured" in run]}


def mean(value: Any) -> float:
    """Mean of a score over its seeds."""
    return _mean_and_deviation(value)[0]


def verdict(run: Run, runs: Iterable[Run]) -> str:
    """`reached` or `missed`, by the run's target; empty if it has none."""
    target = run.get("target")
    if target is None:
        return ""
    name = target["score"]
    score = mean(run["measured"]["scores"][name])
    if "at_most" in target:
        reached = score <= target["at_most"]
    elif "at_least" in target:
        reached = score >= target["at_least"]
    else:
        reached = all(score > other for _, other in _rivals(run, runs))
    return "reached" if reached else "missed"


def describe_target(run: Run, runs: Iterable[Run]) -> str:
    """Describe the score to reach."""
    target = run["target"]
    for sign, key in (("≥", "at_least"), ("≤", "at_most")):
        if key in target:
            return f"{target['score']} {sign} {target[key]:g}"
    rivals = "; ".join(f"{name} {other:.1f}" for name, other in _rivals(run, runs))
    return f"{target['score']} above {rivals}"


def highlights(scores: Mapping[str, Sequence[Run]]) -> list[str]:
    """Lines of the table of README: one run a task."""
    rows = [
        [
            run["task"],
            f"{run['model']}, {_parameters(run)}" if _parameters(run) else run["model"],
            run["data"],
            _figures(run["measured"]["scores"]),
            _baselines(run),
            _time(run),
        ]
        for run in scores["runs"]
        if run.get("highlight")
    ]
    return _table(["task", "model", "data", "score", "baseline", "time"], rows)


def recipes(scores: Mapping[str, Sequence[Run]]) -> list[str]:
    """Lines of the table of recipes/README: every run of a recipe."""
    rows = [
        [
            run["task"],
            run["model"],
            _parameters(run),
            run["data"],
            _figures(run["measured"]["scores"]),
            _baselines(run),
            _figures(run["measured"].get("validation", {})),
            _time(run),
            _command(run),
        ]
        for run in scores["runs"]
        if run["task"] != "reliability"
    ]
    titles = ["task", "model", "parameters", "data", "score", "baselines", "on validation", "time", "command"]
    return _table(titles, rows)


def of_family(runs: Sequence[Run]) -> list[str]:
    """Lines of the table of the page of a family: the runs with it."""
    rows = [
        [run["task"], run["model"], run["data"], _figures(run["measured"]["scores"]), _baselines(run), _command(run)]
        for run in runs
        if run["measured"]["scores"]  # some have been scored on validation rows alone
    ]
    return _table(["task", "model", "data", "score", "baseline", "command"], rows)


def fields(scores: Mapping[str, Sequence[Run]]) -> list[str]:
    """Lines of the table of docs/fields.md: the same class in each field beyond text."""
    rows = [
        [
            run["field"],
            run["model"],
            _parameters(run),
            run["data"],
            _figures(run["measured"]["scores"]),
            _baselines(run),
            _command(run),
        ]
        for run in scores["runs"]
        if "field" in run
    ]
    return _table(["field", "model", "parameters", "data", "score", "baseline", "command"], rows)


def better_baselines(scores: Mapping[str, Sequence[Run]]) -> list[str]:
    """Lines of the table of docs/instead.md: every score that a baseline surpasses, with the best of them."""
    rows = []
    for run in scores["runs"]:
        for name, score in run["measured"]["scores"].items():
            if name.startswith("coverage"):  # is to be near a value, not high
                continue
            sign = -1 if name.startswith(_LOWER_IS_BETTER) else 1
            rivals = [
                (sign * mean(found[name]), baseline, found[name])
                for baseline, found in (run["measured"].get("baselines") or {}).items()
                if name in found
            ]
            best, baseline, found = max(rivals, default=(-math.inf, "", 0))
            if best > sign * mean(score):
                rows.append(
                    [run["task"], run["data"], run["model"], figure(name, score), baseline, figure(name, found)]
                )
    return _table(["task", "data", "model", "score", "better method", "its score"], rows)


def quality(scores: Mapping[str, Sequence[Run]]) -> list[str]:
    """Lines of the sections of RESULTS.md about scores."""
    runs = scores["runs"]
    targets = [
        [
            f"`{run['id']}`",
            run["data"],
            run["model"],
            _figures(run["measured"]["scores"]),
            describe_target(run, runs),
            verdict(run, runs),
        ]
        for run in runs
        if "target" in run
    ]
    provenance = [
        [
            f"`{run['id']}`",
            *(_known(run["measured"].get(key)) for key in ("date", "commit")),
            ", ".join(map(str, run["measured"].get("seeds") or [])) or UNKNOWN,
            _known(run["measured"].get("processor")),
            _time(run),
            run["measured"]["source"],
            _command(run),
            run["measured"].get("remark", ""),
        ]
        for run in runs
    ]
    reliability = [
        [run["model"], run["data"], _figures(run["measured"]["scores"], sign="; "), _command(run)]
        for run in runs
        if run["task"] == "reliability"
    ]
    published = [
        [one["task"], one["model"], figure(one["score"], one["value"]), one["source"]] for one in scores["published"]
    ]
    tried = [
        [one["task"], one["what"], one["split"], figure(one["score"], one["value"]), one["commit"], one["source"]]
        for one in scores["tried"]
    ]
    observed = [[one[key] for key in ("about", "what", "value", "commit", "source")] for one in scores["observations"]]
    return [
        "## Quality",
        "",
        "Scores of the recipes on test sets, beside what was to be reached. All runs are in",
        "`recipes/README.md`.",
        "",
        *_table(["run", "data", "model", "score", "to reach", "verdict"], targets),
        "",
        "### Published, for orientation",
        "",
        *_table(["task", "model", "score", "source"], published),
        "",
        "### Tried",
        "",
        *_table(["task", "settings", "split", "score", "recorded in", "source"], tried),
        "",
        "### Observed",
        "",
        *_table(["about", "observation", "figure", "recorded in", "source"], observed),
        "",
        "## Reliability",
        "",
        *_table(["run", "data", "found", "command"], reliability),
        "",
        "## Provenance",
        "",
        'Every score with its own command, machine and date. "earlier report": copied from a report whose JSON no',
        "longer exists; the commit is the one that recorded the score.",
        "",
        *_table(["run", "date", "commit", "seeds", "processor", "time", "source", "command", "remark"], provenance),
    ]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a table that a comparison wrote, by the model's name."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def _rivals(run: Run, runs: Iterable[Run]) -> list[tuple[str, float]]:
    """Names and scores of what a run is to surpass."""
    name = run["target"]["score"]
    baselines = run["measured"].get("baselines", {})
    others = {other["id"]: other for other in runs}
    return [
        *((baseline, mean(found[name])) for baseline, found in baselines.items() if name in found),
        *(
            (others[other]["model"], mean(others[other]["measured"]["scores"][name]))
            for other in run["target"]["above_runs"]
        ),
    ]


def _mean_and_deviation(value: Any) -> tuple[float, float | None]:
    if isinstance(value, Mapping):  # a row of the table that a comparison wrote
        row = read_table(ROOT / value["table"])[value["model"]]
        return float(row["accuracy"]), float(row["accuracy_std"])
    if isinstance(value, Sequence):
        return statistics.mean(value), statistics.stdev(value) if len(value) > 1 else None
    return value, None


def _figures(figures: Mapping[str, Any], sign: str = ", ") -> str:
    return sign.join(figure(name, value) for name, value in figures.items())


def figure(name: str, value: Any) -> str:
    """Format a figure with its name; a unit after the name's last comma goes behind the number."""
    title, _, unit = name.rpartition(", ") if name.endswith((", %", ", MB", ", ppm", ", °C")) else (name, "", "")
    average, deviation = _mean_and_deviation(value)
    if name.startswith((*_ERRORS, *_SHARES)):
        digits = max(0, 2 - math.floor(math.log10(average))) if average else 2
        text = f"{average:.{digits}f}"
    else:
        digits = 1
        text = f"{average:.1f}" if name.startswith(_SCORES) else f"{average:,}"
    # A baseline is often the same for each seed.
    text += f" ± {deviation:.{digits}f}" if deviation else ""
    return f"{title} {text}{f' {unit}' if unit else ''}"


def _baselines(run: Run) -> str:
    baselines = run["measured"].get("baselines", {})
    return "; ".join(f"{name}: {_figures(found)}" for name, found in baselines.items())


def significant(value: float, digits: int = 3) -> str:
    """Format a number with that many significant digits, and never with an exponent: 0.0123, 1.23, 12,300."""
    value = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{decimals}f}"


def medians(figures: Mapping[str, Sequence[float]]) -> str:
    """Format the medians of the figures of a speed measurement, those of the other side as "vs …"."""
    texts: list[str] = []
    for name, values in figures.items():
        text = f"{significant(statistics.median(values), 4)} {name}"
        if name.endswith(" beside"):
            texts[-1] += f" vs {text.removesuffix(' beside')}"
        else:
            texts.append(text)
    return ", ".join(texts)


def _parameters(run: Run) -> str:
    millions = run["measured"].get("parameters_millions")
    if millions is None:
        return ""
    return f"{millions:g} M" if millions >= 0.1 else f"{1000 * millions:.3g} k"


def _time(run: Run) -> str:
    minutes, machine = run["measured"].get("minutes"), run["measured"].get("on")
    duration = None if minutes is None else f"{minutes:g} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
    return ", ".join(part for part in (duration, machine) if part)


def _command(run: Run) -> str:
    settings = run["measured"].get("settings")
    return f"`{run['measured']['command']}`{f', {settings}' if settings else ''}"


def _known(value: str | None) -> str:
    return value or UNKNOWN
