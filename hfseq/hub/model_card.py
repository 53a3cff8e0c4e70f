"""Model cards, rendered from the files that a training run leaves in its output directory."""

import pprint
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.heads import HUB_TASKS, head_of
from hfseq.json_files import read_object
from hfseq.models import is_hfseq

RUN_FILE = "run.json"
"""Record of a recipe's run: task, data, arguments, versions; see `hfseq.training.reporting.save_run`."""

METRICS = {
    "bleu": ("BLEU", "bleu"),
    "chrf": ("chrF", "chrf"),
    "exact_match": ("exact match", "exact_match"),
    "rouge1": ("ROUGE-1", "rouge"),
    "rouge2": ("ROUGE-2", "rouge"),
    "rougeL": ("ROUGE-L", "rouge"),
    "rougeLsum": ("ROUGE-Lsum", "rouge"),
    "accuracy": ("accuracy", "accuracy"),
    "f1": ("macro F1", "f1"),
    "entity_f1": ("entity F1", "seqeval"),
    "perplexity": ("perplexity of a token", "perplexity"),
    "word_perplexity": ("perplexity of a word", "perplexity"),
}
"""Metric names to their titles and metric types on the Hub."""
_TITLES = {
    "learning_curve.png": "Loss and score during training",
    "alignment.png": "Attention weights over the source words",
    "confusion_matrix.png": "Confusion matrix",
}
_TEMPLATE = "---\n{{ card_data }}\n---\n\n{{ text }}\n"


def make_card(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    repo_id: str,
    *,
    images: Sequence[str] = (),
    license: str | None = None,
) -> ModelCard:
    """Create the model card.

    Args:
        directory: Output directory of the run; `run.json` and `all_results.json` are used if they exist.
        model: The model.
        tokenizer: Tokenizer of the model.
        repo_id: Repository on the Hub.
        images: Names of the plots in the repository.
        license: Licence of the weights, as an identifier of the Hub; None for that of `run.json`.

    Raises:
        InputError: If one of the files is malformed.
    """
    run, results = read_run(directory)
    kind = type(model).__name__
    head = head_of(kind)
    task = run.get("task", head.hub_task)
    license = license or run.get("license")
    split = run.get("split", "test")
    scores = measured(results, split)
    baselines = _baselines(results, split, scores)
    data_name, dataset = run.get("data", "unspecified data"), run.get("dataset")
    languages = run.get("languages", [])
    version = run.get("versions", {}).get("hfseq")
    name = repo_id.rpartition("/")[2]
    parts = [
        f"# {name}",
        f"A model (`{kind}`, {model.num_parameters():,} parameters) {what_it_does(task, languages)}"
        + (f", trained with hfseq {version} on {data_name}." if version else "."),
        _scores(split, scores, baselines, run),
        _usage(model, task, head.auto_class, repo_id, run.get("example")),
        _training(run, images),
        _limitations(len(tokenizer), split if scores else None, run.get("max_length"), license),
    ]
    data = ModelCardData(
        model_name=name,
        pipeline_tag=task,
        library_name="transformers",
        language=[code for code in languages if re.fullmatch("[a-z]{2,3}", code)] or None,
        license=license,
        datasets=[dataset] if dataset else None,
        tags=["hfseq", model.config.model_type],
        base_model=run.get("base_model"),
        eval_results=[
            EvalResult(
                task_type=task or "other",
                dataset_type=dataset if dataset and run.get("tested_on") == dataset else "other",
                dataset_name=run.get("tested_on", data_name),
                dataset_split=split,
                metric_type=METRICS[metric][1],
                metric_name=METRICS[metric][0],
                metric_value=round(value, 4),
                metric_args={"signature": run["signatures"][metric]} if metric in run.get("signatures", {}) else None,
            )
            for metric, value in scores.items()
        ]
        or None,
    )
    text = "\n\n".join(part for part in parts if part)
    return ModelCard.from_template(data, template_str=_TEMPLATE, text=text)


def read_run(directory: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The record of a run (`run.json`) and its measurements (`all_results.json`); empty where a file is missing.

    Raises:
        InputError: If one of the files is malformed.
    """
    run, results = read_object(directory / RUN_FILE), read_object(directory / "all_results.json")
    # A run may have ended without scores.
    run = {key: value for key, value in run.items() if value is not None}
    return run, {key: value for key, value in results.items() if isinstance(value, int | float) and isfinite(value)}


def measured(results: Mapping[str, float], split: str) -> dict[str, float]:
    """Scores of the model on a split, keyed by the names in `METRICS`."""
    return {name: results[f"{split}_{name}"] for name in METRICS if f"{split}_{name}" in results}


def what_it_does(task: str | None, languages: Sequence[str]) -> str:
    """A relative clause that describes a model of a task, such as "that translates de to en"."""
    if task == "translation" and languages:
        return f"that translates {' to '.join(languages)}"
    return HUB_TASKS[task].clause if task in HUB_TASKS else "for sequences"


def is_ours(model: PreTrainedModel) -> bool:
    """Return True for a model of hfseq, whose code is published with it."""
    return is_hfseq(model.config)


def has_ours(model: PreTrainedModel) -> bool:
    """Return True for a composite model of transformers with a part of hfseq, whose code is not published with it."""
    parts = (getattr(model.config, name, None) for name in ("encoder", "decoder"))
    return any(map(is_hfseq, parts))


def _baselines(results: Mapping[str, Any], split: str, scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Scores of the baselines, keyed by baseline and metric."""
    found: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        # The longest, since one name may be a suffix of another.
        metric = max((name for name in METRICS if key.endswith(f"_{name}")), key=len, default="")
        system = key.removeprefix(f"{split}_").removesuffix(f"_{metric}")
        if key.startswith(f"{split}_") and metric in scores and system != metric:
            found.setdefault(system, {})[metric] = value
    return found


def _scores(
    split: str, scores: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], run: Mapping[str, Any]
) -> str:
    if not scores:
        return ""
    rows = f", {run['rows'][split]:,} rows" if split in run.get("rows", {}) else ""
    lines = [f"## Scores\n\nMeasured on the {split} set{rows}.\n"]
    lines.append(f"| | model | {' | '.join(baselines)} |" if baselines else "| | model |")
    lines.append("|---" * (2 + len(baselines)) + "|")
    for name, value in scores.items():
        others = [f"{found[name]:.2f}" if name in found else "" for found in baselines.values()]
        lines.append(f"| {' | '.join([METRICS[name][0], f'{value:.2f}', *others])} |")
    for name, signature in run.get("signatures", {}).items():
        lines.append(f"\n{METRICS[name][0]}: `{signature}`")
    return "\n".join(lines)


def _usage(model: PreTrainedModel, task: str | None, auto_class: str, repo_id: str, example: str | None) -> str:
    example = " ".join((example or "A text like those in the training data.").split())
    # Truncated by characters: some languages are written without spaces.
    text = repr(example if len(example) <= 200 else example[:199] + "…")
    ours, seq2seq = is_ours(model), auto_class == "AutoModelForSeq2SeqLM"
    trust = ", trust_remote_code=True" if ours else ""
    registers = "import hfseq\n" if has_ours(model) else ""

    def by_pipeline(first: str, trust: str) -> str:
        made = f'model = pipeline("{task}", model="{repo_id}"{trust})'
        return f"{first}from transformers import pipeline\n\n{made}\nprint(model({text}))"

    by_hand = (
        f"{registers}from transformers import AutoTokenizer, {auto_class}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}"{trust})\n'
        f'model = {auto_class}.from_pretrained("{repo_id}"{trust})\n'
        f'inputs = tokenizer({text}, return_tensors="pt")\n'
    )
    if seq2seq:
        by_hand += "print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))"
    else:
        by_hand += "print(model(**inputs).last_hidden_state.shape)"
    # transformers 5 has no pipelines for sequence-to-sequence tasks or encoders without a head.
    without = by_hand if seq2seq or task is None else by_pipeline("", trust)
    title = "Without hfseq installed, with the code in this repository" if ours else "With transformers"
    if registers:
        title = "With hfseq, whose code this repository does not include"
    parts = [(title, without)]
    if task is not None and (ours or seq2seq):
        parts.insert(0, ("With hfseq (`pip install hfseq`)", by_pipeline("import hfseq\n", "")))
    return "## Use\n\n" + "\n\n".join(f"{title}:\n\n```python\n{code}\n```" for title, code in parts)


def _training(run: Mapping[str, Any], images: Sequence[str]) -> str:
    parts = []
    if run.get("rows"):
        parts.append(f"Rows: {', '.join(f'{count:,} {name}' for name, count in run['rows'].items())}.")
    if run.get("arguments"):
        lines = (f"{name}: {pprint.pformat(value, width=90)}" for name, value in sorted(run["arguments"].items()))
        parts.append("Arguments that differ from the recipe's defaults:\n\n```\n" + "\n".join(lines) + "\n```")
    if run.get("versions"):
        parts.append(f"Versions: {', '.join(f'{name} {version}' for name, version in run['versions'].items())}.")
    parts += [f"![{_TITLES[name]}]({name})" for name in images]
    return "## Training\n\n" + "\n\n".join(parts) if parts else ""


def _limitations(vocab_size: int, split: str | None, max_length: int | None, license: str | None) -> str:
    lines = [
        f"- The scores above are for the {split} set; expect lower ones on other domains, genres or languages."
        if split
        else "- No evaluation results are reported.",
        "- The training data was not filtered for bias, toxicity or personal information.",
        f"- The vocabulary has {vocab_size:,} tokens.",
    ]
    if max_length:
        lines.append(f"- Training texts were truncated to {max_length} tokens.")
    lines.append(f"- Licence of the weights: {license or 'not stated'}.")
    return "## Limitations\n\n" + "\n".join(lines)
