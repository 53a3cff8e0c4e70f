"""The card of a published model, from what its directory says about the run that made it."""

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
"""What a recipe writes about itself: task, data, arguments, versions; see `hfseq.training.results.save_run`."""

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
"""Metric to its title and the Hub's type of it."""
_TITLES = {
    "learning_curve.png": "Loss and score while training",
    "alignment.png": "Which source words the model attends to",
    "confusion_matrix.png": "Right and predicted classes",
}
_TEMPLATE = """\
---
{{ card_data }}
---

{{ text }}
"""


def make_card(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    repo_id: str,
    *,
    images: Sequence[str] = (),
    license: str | None = None,
) -> ModelCard:
    """Make the card of a model.

    Args:
        directory: What the run wrote: `run.json` and `all_results.json`; without them the card says less.
        model: The model.
        tokenizer: Its tokenizer.
        repo_id: Where it will be.
        images: Plots that will be there, too.
        license: The Hub's name of the licence of the weights; None for what the run said.

    Raises:
        InputError: If one of the files is broken.
    """
    run, results = read_run(directory)
    kind = type(model).__name__
    head = head_of(kind)
    task = run.get("task", head.hub_task)
    license = license or run.get("license")
    split = run.get("split", "test")
    scores = measured(results, split)
    baselines = _baselines(results, split, scores)
    data_name, dataset = run.get("data", "data that the run did not name"), run.get("dataset")
    languages = run.get("languages", [])
    version = run.get("versions", {}).get("hfseq")
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        f"A model (`{kind}`, {model.num_parameters():,} parameters) {what_it_does(task, languages)}"
        + (f", trained with hfseq {version} on {data_name}." if version else "."),
        _scores(split, scores, baselines, run),
        _usage(model, task, head.auto_class, repo_id, run.get("example")),
        _training(run, images),
        _limits(model, tokenizer, split, scores, run, license),
    ]
    data = ModelCardData(
        model_name=repo_id.rpartition("/")[2],
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
                metric_type=METRICS[name][1],
                metric_name=METRICS[name][0],
                metric_value=round(value, 4),
                metric_args={"signature": run["signatures"][name]} if name in run.get("signatures", {}) else None,
            )
            for name, value in scores.items()
        ]
        or None,
    )
    text = "\n\n".join(part for part in parts if part)
    return ModelCard.from_template(data, template_str=_TEMPLATE, text=text)


def read_run(directory: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """What a run says about itself (`run.json`), and the numbers that it has measured (`all_results.json`).

    Raises:
        InputError: If one of the files is broken; one that is not there says nothing.
    """
    run, results = read_object(directory / RUN_FILE), read_object(directory / "all_results.json")
    # Numbers alone: a run may have ended without a score. What is null is not said.
    run = {key: value for key, value in run.items() if value is not None}
    return run, {key: value for key, value in results.items() if isinstance(value, int | float) and isfinite(value)}


def measured(results: Mapping[str, float], split: str) -> dict[str, float]:
    """The scores of the model on a split, by the names of `METRICS`."""
    return {name: results[f"{split}_{name}"] for name in METRICS if f"{split}_{name}" in results}


def what_it_does(task: str | None, languages: Sequence[str]) -> str:
    """Relative clause about a model of a task of the Hub, with languages if known: "that translates de to en"."""
    if task == "translation" and languages:
        return f"that translates {' to '.join(languages)}"
    return HUB_TASKS[task].clause if task in HUB_TASKS else "for sequences"


def is_ours(model: PreTrainedModel) -> bool:
    """Whether a model is one of hfseq's, whose code is published with it."""
    return is_hfseq(model.config)


def has_ours(model: PreTrainedModel) -> bool:
    """Whether a model of transformers is made of one of hfseq's and another: their code does not come with it."""
    parts = (getattr(model.config, name, None) for name in ("encoder", "decoder"))
    return any(map(is_hfseq, parts))


def _baselines(results: Mapping[str, Any], split: str, scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The scores of what stood beside the model, by their names."""
    found: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        system, name = "", ""
        for metric in METRICS:
            # The longest, since one name ends as another's does.
            if key.startswith(f"{split}_") and key.endswith(f"_{metric}") and len(metric) > len(name):
                system, name = key[len(split) + 1 : -len(metric) - 1], metric
        if system and name in scores:
            found.setdefault(system, {})[name] = value
    return found


def _scores(
    split: str, scores: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]], run: Mapping[str, Any]
) -> str:
    if not scores:
        return ""
    rows = f", {run['rows'][split]:,} rows" if split in run.get("rows", {}) else ""
    lines = [f"## Scores\n\nMeasured on the {split} data{rows}.\n"]
    lines.append(f"| | model | {' | '.join(baselines)} |" if baselines else "| | model |")
    lines.append("|---" * (2 + len(baselines)) + "|")
    for name, value in scores.items():
        others = [f"{found[name]:.2f}" if name in found else "" for found in baselines.values()]
        lines.append(f"| {' | '.join([METRICS[name][0], f'{value:.2f}', *others])} |")
    for name, signature in run.get("signatures", {}).items():
        lines.append(f"\n{METRICS[name][0]}: `{signature}`")
    return "\n".join(lines)


def _usage(model: PreTrainedModel, task: str | None, auto_class: str, repo_id: str, example: str | None) -> str:
    example = " ".join((example or "A text of the kind that the model was trained on.").split())
    # By characters: words may be long, and some languages have none.
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
    # transformers 5 has no pipelines of these two tasks, and none of a bare stack.
    without = by_hand if seq2seq or task is None else by_pipeline("", trust)
    title = "Without it, by the code that comes with the model" if ours else "With transformers alone"
    if registers:
        title = "By hand; the code of hfseq's part does not come with the model"
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
        parts.append("Arguments; what is not named has the recipe's default:\n\n```\n" + "\n".join(lines) + "\n```")
    if run.get("versions"):
        parts.append(f"Versions: {', '.join(f'{name} {version}' for name, version in run['versions'].items())}.")
    parts += [f"![{_TITLES[name]}]({name})" for name in images]
    return "## Training\n\n" + "\n\n".join(parts) if parts else ""


def _limits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    scores: Mapping[str, float],
    run: Mapping[str, Any],
    license: str | None,
) -> str:
    lines = [
        f"- The scores are those of the {split} data above; texts of another kind, domain or language do worse."
        if scores
        else "- Nobody has said here how good this model is.",
        "- Nothing was done about bias, toxicity or private facts in the training data.",
        f"- Its vocabulary has {len(tokenizer):,} tokens.",
    ]
    limit = run.get("max_length")
    if limit:
        lines.append(f"- It was trained on texts of up to {limit} tokens; of longer ones the rest was cut off.")
    lines.append(f"- Licence of the weights: {license or 'not stated'}.")
    return "## Limits\n\n" + "\n".join(lines)
