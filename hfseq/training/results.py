"""Results of a run: scores beside baselines, examples, and the file that keeps them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfseq import metrics


def compare(
    score: Callable[[Any, Any], dict[str, float]],
    systems: Mapping[str, Any],
    references: Any,
    *,
    kinds: Sequence[str] | None = None,
    kind_metric: str = "exact_match",
) -> tuple[dict[str, float], str]:
    """Scores of a model beside those of baselines on the same rows, and a table of them to print.

    Args:
        score: Gives the scores of predictions, such as `score_translations`.
        systems: Name to predictions, one a row; the model's come first.
        references: What is right, one value or a list of texts a row.
        kinds: What kind of row each is, for a line of scores per kind; None for no such lines.
        kind_metric: Metric of those lines.

    Returns:
        The model's scores by their names, those of a baseline with its name and `_` before them, and the model's per
        kind as `<kind_metric>_<kind>`; the table.
    """
    scores = {system: score(predictions, references) for system, predictions in systems.items()}
    model, *baselines = systems
    results = dict(scores[model])
    for system in baselines:
        results |= {f"{system}_{name}": value for name, value in scores[system].items()}
    width = max(8, *(len(system) + 2 for system in systems))
    lines = [" " * 24 + "".join(f"{system:>{width}}" for system in systems)]
    for name in scores[model]:
        lines.append(f"{name:24}" + "".join(f"{scores[system][name]:{width}.2f}" for system in systems))
    if kinds is not None:
        metric = metrics.load(kind_metric)
        by_kind = {
            system: metrics.scores_by_group(metric, predictions, references, kinds)
            for system, predictions in systems.items()
        }
        lines.append(f"{kind_metric} by kind")
        for kind in sorted(set(kinds)):
            label = f"  {kind} ({sum(other == kind for other in kinds)})"
            lines.append(f"{label:24}" + "".join(f"{by_kind[system][kind]:{width}.2f}" for system in systems))
            results[f"{kind_metric}_{kind}"] = by_kind[model][kind]
    return results, "\n".join(lines)


def examples(sources: Sequence[str], predictions: Sequence[str], kinds: Sequence[str] | None = None) -> str:
    """Lines with some sources and their predictions: one of each kind where there are kinds, else the first three."""
    rows = range(min(3, len(sources))) if kinds is None else sorted(list(kinds).index(kind) for kind in set(kinds))
    return "\n".join(["examples", *(f"  {sources[row]}  →  {predictions[row]}" for row in rows)])


def save_results(output_dir: str, results: dict[str, Any]) -> None:
    """Add results to `all_results.json`."""
    path = Path(output_dir) / "all_results.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | results, indent=4, sort_keys=True) + "\n", encoding="utf-8")
