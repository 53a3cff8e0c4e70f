"""Results of a run: comparison with baselines, examples, result files, and the Hub repository."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import HfApi

from hfseq import metrics
from hfseq.hub.model_card import RUN_FILE
from hfseq.hub.publish import hub_errors, publish
from hfseq.inference.benchmark import format_score
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
    kind_metric: str | None = None,
    score_kind: Callable[[Any, Any], dict[str, Any]] | None = None,
) -> tuple[dict[str, float], str]:
    """Score a model and its baselines on the same rows, and tabulate the results.

    Args:
        score: Computes scores from predictions and references.
        systems: Predictions by system name, one per row; the model comes first.
        references: References, one value or a list of texts per row.
        kinds: Category of each row, for scores per category; None for overall scores only.
        kind_metric: Metric of the scores per category; required with `kinds`.
        score_kind: Computes the `score` of the rows of a category; None for the function `kind_metric` of
            `hfseq.metrics`.

    Returns:
        Scores by name, and the table to print. Scores per category are named `<kind_metric>_<kind>`; those of a
        baseline are prefixed with `<system>_`.
    """
    scores = {system: score(predictions, references) for system, predictions in systems.items()}
    model, *baselines = systems
    results = dict(scores[model])
    for system in baselines:
        results |= {f"{system}_{name}": value for name, value in scores[system].items()}

    lines: list[list[Any]] = [
        ["", *systems],
        *([name, *(scores[one].get(name) for one in systems)] for name in scores[model]),
    ]
    if kinds is not None and kind_metric is not None:
        metric = score_kind or getattr(metrics, kind_metric)
        by_kind = [metrics.scores_by_group(metric, found, references, kinds) for found in systems.values()]
        lines.append([f"{kind_metric} by kind"])
        for kind, count in sorted(Counter(kinds).items()):
            lines.append([f"  {kind} ({count})", *(found[kind] for found in by_kind)])
            for system, found in zip(systems, by_kind, strict=True):
                prefix = "" if system == model else f"{system}_"
                results[f"{prefix}{kind_metric}_{kind}"] = found[kind]
    return results, _table(lines)


def _table(lines: Sequence[Sequence[Any]]) -> str:
    """Align lines of a label and its cells: texts, numbers, or None for a missing one."""

    def cell(value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or "-"
        return format_score(value)

    width = max(8, *(len(cell(value)) + 2 for _, *values in lines for value in values))
    return "\n".join(
        f"{label:24}" + "".join(f"{cell(value):>{width}}" for value in values) for label, *values in lines
    )


def examples(sources: Sequence[str], predictions: Sequence[str], kinds: Sequence[str] | None = None) -> str:
    """Format example predictions: one row of each kind, or the first three rows without kinds."""
    rows = range(min(3, len(sources))) if kinds is None else sorted(list(kinds).index(kind) for kind in set(kinds))
    return "\n".join(["examples", *(f"  {sources[row]}  →  {predictions[row]}" for row in rows)])


def save_results(output_dir: str, results: dict[str, Any]) -> None:
    """Merge results into `all_results.json`.

    Raises:
        InputError: The existing file is not a JSON object.
    """
    path = Path(output_dir) / "all_results.json"
    known = read_object(path)
    path.write_text(json.dumps(known | results, indent=4, sort_keys=True) + "\n", encoding="utf-8")


# Arguments that could identify the user or the machine.
_PRIVATE = {
    *("hub_token", "hub_model_id", "run_name"),
    *("output_dir", "output_file", "logging_dir", "resume_from_checkpoint"),
}


def _without_paths(value: Any) -> Any:
    """Reduce file paths in a value to their file names."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(part) for part in value]
    is_path = isinstance(value, str) and (
        value.startswith(("/", "~", "./", "../")) or ("/" in value and Path(value).exists())
    )
    return Path(value).name if is_path else value


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
    """Write `run.json`, the source of the model card: task, data, arguments, versions.

    Args:
        output_dir: Output directory.
        kinds: Dataclasses of the arguments.
        argv: Command-line arguments, with or without a YAML file.
        splits: Rows by split name.
        task: Hub name of the task, such as `translation`.
        split: Split that was scored.
        embedded: Name of the built-in data, used when the arguments give none.
        example: Example input for the model card.
        languages: Language codes, source first.
        signatures: Signatures of the metrics, such as sacreBLEU's, by name.
    """
    given = explicit_values(kinds, argv)
    dataset, base = (
        None if given.get(name) is None or Path(str(given[name])).exists() else given[name]
        for name in ("dataset_name", "model_name_or_path")
    )
    shown = {name: _without_paths(value) for name, value in given.items() if name not in _PRIVATE}
    # Including relative paths, and prefixes of file pairs, which do not exist as files.
    shown |= {name: Path(str(value)).name for name, value in shown.items() if name.endswith("_file") and value}

    def first_of(*names: str) -> str:
        return str(next((shown[name] for name in names if shown.get(name)), embedded))

    run = {
        "task": task,
        "split": split,
        "rows": {
            name: len(rows) for name, rows in splits.items() if isinstance(rows, Sized) and name != "train_sample"
        },
        "data": first_of("train_file", "dataset_name"),
        "tested_on": first_of(f"{split}_file", "dataset_name", "train_file"),
        "dataset": dataset,
        "base_model": base,
        "languages": list(languages),
        "license": given.get("license"),
        "max_length": given.get("max_source_length", given.get("max_length")),
        "signatures": dict(signatures or {}),
        "example": None if example is None else given.get("source_prefix", "") + example,
        "arguments": shown,
        # The version of hfseq is known even if it runs from its sources without being installed.
        "versions": {"hfseq": __version__} | {name: version(name) for name in ("transformers", "torch", "datasets")},
    }
    text = json.dumps(run, indent=4, ensure_ascii=False, default=str)
    (Path(output_dir) / RUN_FILE).write_text(text + "\n", encoding="utf-8")


def repository_of(args: RecipeArguments) -> str:
    """Hub repository of a run: --hub_model_id, or the name of the output directory."""
    return args.hub_model_id or Path(str(args.output_dir)).absolute().name


def open_repository(args: RecipeArguments) -> None:
    """Create the Hub repository before training, so that an invalid name or token fails early.

    Raises:
        InputError: The Hub rejects the name or the token.
    """
    if args.push_to_hub and PartialState().is_main_process:
        with hub_errors(repository_of(args)):
            HfApi().create_repo(repository_of(args), private=args.hub_private_repo, exist_ok=True)


def publish_directory(args: RecipeArguments) -> str:
    """Publish the output directory to the Hub repository of the arguments, and return its URL."""
    revision = args.hub_revision
    return publish(args.output_dir or "", repository_of(args), private=args.hub_private_repo, revision=revision)
