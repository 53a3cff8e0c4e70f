"""Artefacts of a run: scores beside baselines, examples, the files that keep them, and the Hub repository."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import HfApi

from hfseq import metrics
from hfseq.hub.model_card import RUN_FILE
from hfseq.hub.publish import hub_errors, publish
from hfseq.json_files import read_object
from hfseq.training.arguments import RecipeArguments
from hfseq.training.cli import explicit_values
from hfseq.version import __version__


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
        metric = getattr(metrics, kind_metric)
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
    """Add results to `all_results.json`.

    Raises:
        InputError: The file is there, and is not a JSON object.
    """
    path = Path(output_dir) / "all_results.json"
    known = read_object(path)
    path.write_text(json.dumps(known | results, indent=4, sort_keys=True) + "\n", encoding="utf-8")


# Nothing that says who or where one is.
_PRIVATE = {
    "hub_token",
    "hub_model_id",
    "output_dir",
    "output_file",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
}


def _without_paths(value: Any) -> Any:
    """A value without the places of files: of each only its name, which is all that others can use."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(part) for part in value]
    if isinstance(value, str) and (
        value.startswith(("/", "~", "./", "../")) or ("/" in value and Path(value).exists())
    ):
        return Path(value).name
    return value


def save_run(
    output_dir: str,
    kinds: Sequence[type],
    argv: Sequence[str] | None,
    splits: Mapping[str, Any],
    *,
    task: str,
    split: str,
    embedded: str,
    example: str | None,
    languages: Sequence[str] = (),
    signatures: Mapping[str, str] | None = None,
) -> None:
    """Write `run.json`, of which the card of a published model is made: task, data, arguments, versions.

    Args:
        output_dir: Where.
        kinds: The dataclasses of the arguments.
        argv: The arguments, a YAML file among them or not.
        splits: Split to rows.
        task: The Hub's name of the task, such as `translation`.
        split: The split that was scored.
        embedded: What the data are where the arguments name none.
        example: A text to show the model with.
        languages: Codes of the languages, of the source first.
        signatures: Metric to what says how it was computed.
    """
    given = explicit_values(kinds, argv)
    dataset = given.get("dataset_name")
    local = dataset is not None and Path(str(dataset)).exists()
    base = given.get("model_name_or_path")
    shown = {name: _without_paths(value) for name, value in given.items() if name not in _PRIVATE}
    # Relative ones, too, and pairs of files, of which the flag has only the beginning.
    shown |= {name: Path(str(value)).name for name, value in shown.items() if name.endswith("_file") and value}
    counts = {name: len(rows) for name, rows in splits.items() if hasattr(rows, "__len__") and name != "train_sample"}
    run = {
        "task": task,
        "split": split,
        "rows": counts,
        "data": str(shown.get("train_file") or shown.get("dataset_name") or embedded),
        "tested_on": str(
            shown.get(f"{split}_file") or shown.get("dataset_name") or shown.get("train_file") or embedded
        ),
        "dataset": None if dataset is None or local else dataset,
        "base_model": None if base is None or Path(str(base)).exists() else base,
        "languages": list(languages),
        "license": given.get("license"),
        "max_length": given.get("max_source_length", given.get("max_length")),
        "signatures": dict(signatures or {}),
        "example": None if example is None else given.get("source_prefix", "") + example,
        "arguments": shown,
        "versions": {
            # Ours is known even where it runs from its sources, without being installed.
            "hfseq": __version__,
            **{name: importlib.metadata.version(name) for name in ("transformers", "torch", "datasets")},
        },
    }
    text = json.dumps(run, indent=4, ensure_ascii=False, default=str)
    (Path(output_dir) / RUN_FILE).write_text(text + "\n", encoding="utf-8")


def repository_of(args: RecipeArguments) -> str:
    """The name under which a run is published: --hub_model_id, or that of the output directory."""
    return args.hub_model_id or Path(str(args.output_dir)).absolute().name


def open_repository(args: RecipeArguments) -> None:
    """Make the repository before a training, so that a bad name or token does not wait for its end.

    Raises:
        InputError: As `publish`.
    """
    if args.push_to_hub and PartialState().is_main_process:
        with hub_errors(repository_of(args)):
            HfApi().create_repo(repository_of(args), private=args.hub_private_repo, exist_ok=True)


def publish_directory(args: RecipeArguments) -> str:
    """Publish the output directory where the arguments say; returns the address."""
    revision = args.hub_revision
    return publish(args.output_dir or "", repository_of(args), private=args.hub_private_repo, revision=revision)
