"""What the sequence-to-sequence recipes share: encoding pairs, scoring, and the files that a run leaves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq import metrics
from hfseq.data.collation import check_batch, vocabulary_sizes
from hfseq.data.encoding import encode_splits, encode_texts
from hfseq.training.reports import plot_alignment, plot_learning_curve, write_samples


def encode_pairs(
    splits: Mapping[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    target: str,
    *,
    max_source_length: int,
    max_target_length: int,
    prefix: str = "",
) -> tuple[dict[str, datasets.Dataset], dict[str, int]]:
    """Encode pairs of texts for a sequence-to-sequence model.

    Args:
        splits: Rows with text columns `source` and `target`, by the name of their split.
        tokenizer: Of the model.
        source: Name of the source column.
        target: Name of the target column.
        max_source_length: Tokens of a source, the end mark counted; the rest of the text is cut off.
        max_target_length: The same for a target.
        prefix: Text before every source.

    Returns:
        Columns `input_ids`, `attention_mask`, `labels` in the order of the rows, and how many rows of which splits
        were cut.
    """

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        texts = [prefix + text for text in batch[source]]
        encoded, long = encode_texts(tokenizer, texts, max_source_length)
        labels, long_labels = encode_texts(tokenizer, batch[target], max_target_length, target=True)
        cut = [one or other for one, other in zip(long, long_labels, strict=True)]
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels["input_ids"],
            "cut": cut,
        }

    return encode_splits(splits, encode)


def decode_ids(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    """Texts of rows of token ids, in which -100 stands for padding."""
    rows = [
        [token if token >= 0 else tokenizer.pad_token_id for token in row] for row in torch.as_tensor(ids).tolist()
    ]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def score_translations(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu` (cased, 13a), `chrf` and `exact_match`, all from 0 to 100."""
    names = {"bleu": "sacrebleu", "chrf": "chrf", "exact_match": "exact_match"}
    return {
        name: metrics.load(metric).compute(predictions=predictions, references=references)["score"]
        for name, metric in names.items()
    }


def write_reports(
    output_dir: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    log_history: list[dict[str, Any]],
    texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    *,
    metric: str,
    prefix: str = "",
) -> None:
    """Write `samples.txt`, `predictions.txt`, `learning_curve.png` and `alignment.png` into `output_dir`.

    Args:
        output_dir: The directory.
        model: The model, for the alignment of the first prediction of a middling length.
        tokenizer: Its tokenizer.
        log_history: As the Trainer keeps it; empty for no learning curve.
        texts: Sources, references and predictions.
        metric: Drawn beside the losses.
        prefix: Text before every source.
    """
    root = Path(output_dir)
    sources, references, predictions = texts
    write_samples(root / "samples.txt", sources, references, predictions)
    (root / "predictions.txt").write_text("".join(f"{line}\n" for line in predictions), encoding="utf-8")
    if log_history:
        plot_learning_curve(log_history, root / "learning_curve.png", metric=metric)
    row = next((i for i, text in enumerate(predictions) if 20 <= len(text) <= 80), 0)
    weights, source_tokens, target_tokens = align_texts(model, tokenizer, prefix + sources[row], predictions[row])
    plot_alignment(weights, source_tokens, target_tokens, root / "alignment.png")


@torch.no_grad()
def align_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str
) -> tuple[Any, list[str], list[str]]:
    """Attention of each target token over the source tokens, the mean over heads of the last layer.

    Returns:
        Weights `[target, source]` as an array, and both lists of tokens.
    """
    # Only eager attention of a Transformer returns its weights; a recurrent model always can.
    model.set_attn_implementation("eager")
    model.eval()
    encoded = tokenizer(source, return_tensors="pt").to(model.device)
    labels = tokenizer(text_target=target, return_tensors="pt")["input_ids"].to(model.device)
    outputs = model(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        labels=labels,
        output_attentions=True,
    )
    weights = outputs.cross_attentions[-1][0].mean(dim=0)  # [T, S]
    tokens = [list(tokenizer.convert_ids_to_tokens(ids[0].tolist())) for ids in (encoded["input_ids"], labels)]
    return weights.float().cpu().numpy(), tokens[0], tokens[1]


def summed_loss(model: torch.nn.Module, batch: Mapping[str, torch.Tensor], label_smoothing: float) -> torch.Tensor:
    """Cross-entropy (Szegedy et al. 2016, section 7, if smoothed) summed over the target tokens of a batch.

    Args:
        model: A sequence-to-sequence model, wrapped or not.
        batch: From `DataCollatorForSeq2Seq`: its inputs, decoder inputs and `labels` with -100 for padding.
        label_smoothing: Share of the probability that all tokens get alike.

    Returns:
        A scalar; divide it by the number of labels that are not -100.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits  # [B, T, V]
    labels = batch["labels"].flatten()
    return cross_entropy(logits.flatten(0, 1).float(), labels, label_smoothing=label_smoothing, reduction="sum")


@torch.no_grad()
def validation_loss(
    model: PreTrainedModel,
    encoded: datasets.Dataset,
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int,
    label_smoothing: float,
) -> float:
    """Mean loss of a target token of `encoded`, on all processes together; see `summed_loss`."""
    model.eval()
    state = PartialState()
    total = torch.zeros(2, device=model.device)
    for start in range(state.process_index * batch_size, len(encoded), state.num_processes * batch_size):
        rows = encoded.select(range(start, min(start + batch_size, len(encoded))))
        batch = collator(list(rows)).to(model.device)
        total += torch.stack([summed_loss(model, batch, label_smoothing), (batch["labels"] != -100).sum()])
    loss, tokens = reduce(total, "sum")
    return (loss / tokens).item()


@torch.no_grad()
def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: datasets.Dataset,
    *,
    batch_size: int,
    **generate_kwargs: Any,
) -> list[str]:
    """Generate a text for each row, on all processes together.

    Args:
        model: The model, on its device.
        tokenizer: Its tokenizer.
        encoded: Rows with `input_ids`.
        batch_size: Rows generated at once; rows of one length go together.
        generate_kwargs: Passed on to `generate`.

    Returns:
        Texts in the order of `encoded`, the same on every process.

    Raises:
        InputError: If a row is empty, or has an id that the model has not.
    """
    model.eval()
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    state = PartialState()
    sources = encoded["input_ids"]
    by_length = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    groups = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    texts: dict[int, str] = {}
    for rows in groups[state.process_index :: state.num_processes]:
        batch = tokenizer.pad({"input_ids": [sources[row] for row in rows]}, return_tensors="pt")
        check_batch(batch, **vocabulary_sizes(model))
        generated = generate(**batch.to(model.device), **generate_kwargs)
        texts.update(zip(rows, decode_ids(tokenizer, generated), strict=True))
    merged = dict(gather_object(list(texts.items())))
    return [merged[row] for row in range(len(sources))]


def set_generation(model: PreTrainedModel, num_beams: int, max_length: int) -> None:
    """Make `num_beams` and `max_length` (in tokens) what the saved model does when it is not told otherwise."""
    model.generation_config.num_beams = num_beams
    model.generation_config.max_length = max_length
    model.generation_config.early_stopping = True if num_beams > 1 else None
