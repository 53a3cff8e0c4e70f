"""Inference costs of a model (size, latency, throughput), and tables of scores and costs."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq.data.copying import copied_vocabulary, copy_sources, decode_copies
from hfseq.heads import require_text

Run = Callable[[Sequence[Any]], Any]
"""Function that runs a model on texts, tokenization included, or on recordings, features included."""
COSTS = {
    "parameters": "parameters",
    "file_mb": "file, MB",
    "ms_a_text": "ms a text",
    "texts_a_second": "texts a second",
}
"""Costs measured by `measure_costs`, with their column titles."""


def seconds_a_text(runs: Sequence[Run], texts: Sequence[Any], *, batch_size: int, rounds: int = 5) -> list[float]:
    """Median time per text of each model, measured in alternating rounds so that all see the same machine load.

    Args:
        runs: One function per model.
        texts: Texts or other inputs, at least `batch_size` of them; an incomplete last batch is left out.
        batch_size: Batch size.
        rounds: Number of timed rounds, after one untimed warm-up round.

    Returns:
        Seconds per text for each model; with a `batch_size` of 1, the latency.
    """
    batches = [texts[start : start + batch_size] for start in range(0, len(texts) - batch_size + 1, batch_size)]
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for index, run in enumerate(runs):
            for batch in batches:
                begin = time.perf_counter()
                run(batch)
                # The first round is a warm-up.
                if number:
                    times[index].append((time.perf_counter() - begin) / batch_size)
    return [statistics.median(found) for found in times]


def file_size(directory: str | Path) -> float | None:
    """Size of the weight files in a model directory in MB; None if there are none, for example for a Hub name."""
    return sum(path.stat().st_size for path in Path(directory).glob("*.safetensors")) / 1e6 or None


def measure_costs(
    models: Mapping[str, tuple[Run, PreTrainedModel, str | Path]], texts: Sequence[Any], *, rounds: int = 5
) -> dict[str, dict[str, Any]]:
    """Measure the inference costs of each model.

    Args:
        models: Model name to the function that runs it, the model, and its directory.
        texts: Texts, or other inputs, to time the models on.
        rounds: Number of timed rounds.

    Returns:
        Model name to `parameters`, `file_mb`, `ms_a_text` (latency at batch size 1) and `texts_a_second` (throughput
        at batch size 32).
    """
    runs = [run for run, _, _ in models.values()]
    latency = seconds_a_text(runs, texts, batch_size=1, rounds=rounds)
    bulk = seconds_a_text(runs, texts, batch_size=min(32, len(texts)), rounds=rounds)
    costs = {}
    for (name, (_, model, directory)), single, batched in zip(models.items(), latency, bulk, strict=True):
        values = (model.num_parameters(), file_size(directory), 1000 * single, 1 / batched)
        costs[name] = dict(zip(COSTS, values, strict=True))
    return costs


def format_score(value: float, deviation: float | None = None) -> str:
    """Format a score with two decimals, or four significant digits where it is below 1, as errors may be, or huge.

    Args:
        value: The score.
        deviation: Its standard deviation, which is shown behind it; None for none.
    """
    usual = 1 <= abs(value) < 1e9 or not value
    text = f"{value:.2f}" if usual else f"{value:.4g}"
    return text if deviation is None else f"{text} ± {deviation:{'.2f' if usual else '.2g'}}"


def cost_table(
    scores: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, float]],
    titles: Mapping[str, str],
    unit: str = "text",
) -> list[str]:
    """Lines of a Markdown table with the scores and costs of each system, one row per system.

    Args:
        scores: System name to its scores, numbers or text.
        costs: System name to its costs from `measure_costs`; a baseline may have none.
        titles: Score name to column title.
        unit: Noun for what the models were timed on.
    """
    columns = [*titles.values(), *(title.replace("text", unit) for title in COSTS.values())]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for system, found in scores.items():
        cells = [value if isinstance(value := found[name], str) else format_score(value) for name in titles]
        for name in COSTS:
            value = costs.get(system, {}).get(name)
            cells.append("" if value is None else f"{value:,}" if name == "parameters" else f"{value:.4g}")
        lines.append(f"| {' | '.join([system, *cells])} |")
    return lines


def text_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Callable[[Sequence[str]], torch.Tensor]:
    """Return a function from texts to logits, tokenization included.

    Raises:
        InputError: The model reads no text.
    """
    require_text(model, "timing on texts")
    model.eval()

    @torch.inference_mode()
    def classify(texts: Sequence[str]) -> torch.Tensor:
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        return model(**inputs.to(model.device)).logits.cpu()  # synchronizes with the device

    return classify


def text_translator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_source_length: int, **options: Any
) -> Callable[[Sequence[str]], list[str]]:
    """Return a function from texts to generated texts, tokenization included; `options` are passed to `generate`.

    Raises:
        InputError: The model reads no text.
    """
    require_text(model, "timing on texts")
    model.eval()
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    copied = copied_vocabulary(model)

    @torch.inference_mode()
    def translate(texts: Sequence[str]) -> list[str]:
        limits = {"truncation": True, "max_length": max_source_length}
        inputs = tokenizer(list(texts), padding=True, **limits, return_tensors="pt")
        if copied is None:
            return tokenizer.batch_decode(generate(**inputs.to(model.device), **options), skip_special_tokens=True)
        copy_ids, words = copy_sources(tokenizer, texts, inputs, copied)
        inputs["copy_ids"] = torch.tensor(copy_ids)
        return decode_copies(tokenizer, generate(**inputs.to(model.device), **options), words, copied)

    return translate
