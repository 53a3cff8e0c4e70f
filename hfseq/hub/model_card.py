"""Model cards, rendered from the files that a training run leaves in its output directory."""

import pprint
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from hfseq.heads import ENCODER, HUB_TASKS, RECOMMENDATION, head_of, reads_text
from hfseq.json_files import read_object
from hfseq.models import is_hfseq
from hfseq.processing import extractor_of, tokenizer_of

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
    "pearson": ("Pearson correlation", "pearsonr"),
    "spearman": ("Spearman correlation", "spearmanr"),
    "rmse": ("RMSE", "rmse"),
    "wer": ("WER", "wer"),
    "cer": ("CER", "cer"),
    "recall_at_false_alarms": ("recall of events at the given rate of false alarms", "recall"),
    "vus_pr": ("VUS-PR", "vus_pr"),
    "auc_pr": ("AUC-PR", "auc_pr"),
    "event_precision": ("precision of alarms", "precision"),
    "event_recall": ("recall of events", "recall"),
    "false_alarms_per_day": ("false alarms a day", "false_alarms_per_day"),
    "nab": ("NAB's score, its threshold optimised on the labels", "nab"),
    "nab_low_fp": ("NAB's score, profile for few false positives", "nab"),
    "nab_low_fn": ("NAB's score, profile for few false negatives", "nab"),
    "sov": ("segment overlap (SOV'99)", "sov"),
    "perplexity": ("perplexity of a token", "perplexity"),
    "word_perplexity": ("perplexity of a word", "perplexity"),
    "wql": ("mean weighted quantile loss", "mean_weighted_quantile_loss"),
    "mase": ("MASE", "mase"),
    "smape": ("sMAPE", "smape"),
    "mae": ("MAE", "mae"),
    "mse": ("MSE", "mse"),
    "nd": ("ND", "nd"),
    "crps": ("CRPS", "crps"),
    "ssim": ("SSIM", "ssim"),
    "coverage": ("coverage of the 80 % interval", "coverage"),
    **{
        f"{name}@{cutoff}": (f"{title}@{cutoff}", f"{name}_at_{cutoff}")
        for name, title in (("ndcg", "NDCG"), ("hr", "HR"), ("mrr", "MRR"))
        for cutoff in (10, 1, 5, 20)
    },
}
"""Metric names to their titles and metric types on the Hub."""
PLOTS = {
    "learning_curve.png": "Loss and score during training",
    "alignment.png": "Attention weights over the source words",
    "spectrogram.png": "Spectrogram of a recording, and its transcript aligned by CTC",
    "confusion_matrix.png": "Confusion matrix",
    "logos.png": "Importance of each letter for its class",
    "scatter.png": "Predictions and references",
    "anomalies.png": "Values, anomaly scores and alarms",
    "forecast.png": "Forecasts and true values",
    "frames.png": "Known frames, then true and predicted ones",
    "frames.gif": "True frames above predicted ones",
    "paths.png": "Known points, then true and predicted ones",
    "clips.png": "Clips of the test set",
}
"""Plots of a run that are shown on the model card, with their titles."""
_TEMPLATE = Path(__file__).with_suffix(".md")


def make_card(
    directory: Path,
    model: PreTrainedModel,
    processing_class: Any,
    repo_id: str,
    *,
    images: Sequence[str] = (),
    license: str | None = None,
) -> ModelCard:
    """Create the model card.

    Args:
        directory: Output directory of the run; `run.json` and `all_results.json` are used if they exist.
        model: The model.
        processing_class: Tokenizer, feature extractor or processor of the model; None if it has none.
        repo_id: Repository on the Hub.
        images: Names of the plots in the repository.
        license: Licence of the weights, as an identifier of the Hub; None for that of `run.json`.

    Raises:
        InputError: If one of the files is malformed.
    """
    run, results = read_run(directory)
    run = {"rows": {}, "signatures": {}, "arguments": {}, "versions": {}, "languages": []} | run
    kind, title = type(model).__name__, repo_id.rpartition("/")[2]
    head, config = head_of(kind), model.config
    tokenizer, extractor = tokenizer_of(processing_class), extractor_of(processing_class)
    auto_class, default_task = head.auto_class, head.hub_task if reads_text(model) else None
    if extractor is not None:
        auto_class, default_task = head.audio_class, head.audio_task
    series = series_inputs(config) if head.suffix == "ForPrediction" else {}
    if series:
        default_task = head.hub_task
    task = run.get("task", default_task)
    recommends = task == RECOMMENDATION.name
    # Frames of features that no extractor makes.
    input_size = None
    if is_hfseq(config) and not (reads_text(model) or extractor is not None or series):
        input_size = ", ".join(map(str, config.frame_shape or [config.input_size]))
    pixel_shape = clip_shape(config) if model.main_input_name == "pixel_values" else None
    # Name and Auto class of what makes the inputs, or decodes the outputs, in an example.
    loader = None
    if (input_size is None and pixel_shape is None and not series) or model.can_generate():
        loader = ("tokenizer", "AutoTokenizer")
    if extractor is not None:
        loader = ("extractor", "AutoFeatureExtractor") if tokenizer is None else ("processor", "AutoProcessor")
    license = license or run.get("license")
    split = run.get("split", "test")
    scores = measured(results, split)
    data_name, dataset = run.get("data", "unspecified data"), run.get("dataset")
    tested_on: Any = run.get("tested_on", data_name)
    evaluations = [
        EvalResult(
            task_type=task or "other",
            dataset_type=dataset if dataset and run.get("tested_on") == dataset else "other",
            dataset_name=tested_on,
            dataset_split=split,
            metric_type=METRICS[metric][1],
            metric_name=METRICS[metric][0],
            metric_value=round(value, 4),
            metric_args={"signature": run["signatures"][metric]} if metric in run["signatures"] else None,
        )
        for metric, value in scores.items()
    ]
    data = ModelCardData(
        model_name=title,
        # The Hub has no such task.
        pipeline_tag=None if recommends else task,
        library_name="transformers",
        language=[code for code in run["languages"] if re.fullmatch("[a-z]{2,3}", code)] or None,
        license=license,
        datasets=[dataset] if dataset else None,
        tags=["hfseq", config.model_type, *["recommendation"] * recommends],
        base_model=run.get("base_model"),
        eval_results=evaluations or None,
    )
    example = run.get("example") or "A text like those in the training data."
    items = example.splitlines() if recommends else None
    example = " ".join(example.split())
    arguments = (f"{name}: {pprint.pformat(value, width=90)}" for name, value in sorted(run["arguments"].items()))
    parts = (getattr(config, name, None) for name in ("encoder", "decoder"))
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        run=run,
        title=title,
        kind=kind,
        # transformers' pipelines read text and audio.
        task=None if series or recommends or input_size or pixel_shape else task,
        pixels=getattr(config, "frame_shape", None) is not None,
        pixel_shape=pixel_shape,
        series=series,
        items=items,
        # The pipeline reads series of one variate.
        entry=series_entry(config) if series and config.input_size == 1 else None,
        scales=series and config.scaling is not None,
        frame_shape=", ".join(map(str, config.frame_shape)) if series and config.frame_shape else None,
        auto_class=auto_class,
        ours=is_hfseq(config),
        # A composite model of transformers, whose code is not published with it.
        ours_in_part=any(map(is_hfseq, parts)),
        repo_id=repo_id,
        parameters=model.num_parameters(),
        loader=loader,
        output="last_hidden_state.shape" if head is ENCODER else "logits",
        vocab_size=None if tokenizer is None else len(tokenizer),
        sampling_rate=None if extractor is None else extractor.sampling_rate,
        input_size=input_size,
        clause=what_it_does(task, run["languages"]),
        data_name=data_name,
        split=split,
        scores=scores,
        baselines=_baselines(results, split, scores),
        metrics=METRICS,
        # Truncated by characters: some languages are written without spaces.
        example=repr(example if len(example) <= 200 else example[:199] + "…"),
        arguments="\n".join(arguments),
        images=images,
        plots=PLOTS,
    )


def clip_shape(config: Any) -> str:
    """Frames, channels, height and width of the clips that a video classifier of transformers reads."""
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    return f"{config.num_frames}, {config.num_channels}, {height}, {width}"


def series_inputs(config: Any) -> dict[str, str]:
    """Example inputs of a forecaster, by argument, as Python code."""
    past, horizon = max(100, *config.lags_sequence), config.prediction_length or 10
    features = config.num_time_features + config.num_dynamic_real_features
    shapes = {
        "past_values": (1, past, *(config.frame_shape or [config.input_size] * (config.input_size > 1))),
        "past_time_features": (1, past, features),
        "future_time_features": (1, horizon, features),
        "static_real_features": (1, config.num_static_real_features),
    }
    inputs = {name: f"torch.zeros{shape}" for name, shape in shapes.items() if 0 not in shape}
    if config.num_static_categorical_features:
        shape = (1, config.num_static_categorical_features)
        inputs["static_categorical_features"] = f"torch.zeros({shape}, dtype=torch.long)"
    return inputs | {"prediction_length": str(horizon)}


def series_entry(config: Any) -> str:
    """Example series for the pipeline of a forecaster, as Python code."""
    values = "[112.0, 118.0, 132.0, 129.0]"
    parts = {"target": values}
    if config.num_time_features:
        frequency = getattr(config, "frequency", None) or "D"
        parts = {"start": '"2024-01-01"', "freq": repr(frequency), "target": values}
    if count := config.num_dynamic_real_features:
        parts["feat_dynamic_real"] = f"[{', '.join(['known'] * count)}]"
    if config.num_static_categorical_features:
        known = getattr(config, "static_categories", None)
        parts["feat_static_cat"] = repr([names[0] for names in known] if known else [0] * len(config.cardinality))
    if config.num_static_real_features:
        parts["feat_static_real"] = repr([0.0] * config.num_static_real_features)
    if len(parts) == 1:
        return values
    return f"{{{', '.join(f'{name!r}: {code}' for name, code in parts.items())}}}".replace("'", '"')


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
