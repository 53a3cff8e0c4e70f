"""What the classification recipes share: encoding, the loss, predicting, scoring, and the files that a run leaves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfseq import metrics
from hfseq.data.encoding import EncodedSplits, Limit, encode_splits, encode_texts
from hfseq.errors import InputError
from hfseq.inference.parallel import run_by_length
from hfseq.training.reports import plot_confusion_matrix, plot_learning_curve, write_lines, write_samples


def encode_classified(
    splits: Mapping[str, datasets.Dataset], tokenizer: PreTrainedTokenizerBase, text: str, *, max_length: int
) -> EncodedSplits:
    """Encode texts with their classes.

    Args:
        splits: Rows with a text column and `labels`, as `encode_labels` makes them, by the name of their split.
        tokenizer: Of the model.
        text: Name of the text column.
        max_length: Tokens of a text, special ones counted; the rest of it is cut off.

    Returns:
        What the tokenizer gives and `labels`, in the order of the rows.
    """

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded, lengths = encode_texts(tokenizer, batch[text], max_length)
        return {**encoded, "labels": batch["labels"], "length": lengths}

    return encode_splits(splits, encode, {"length": Limit("texts", "--max_length", max_length)})


def label_array(rows: datasets.Dataset | datasets.IterableDataset) -> np.ndarray:
    """The labels of rows that `encode_labels` numbered, `[N]` or `[N, num_labels]`; a stream is read once for them."""
    if isinstance(rows, datasets.Dataset):
        return np.array(rows["labels"])
    first = np.array(next(iter(rows))["labels"])
    kind = np.dtype((np.float32, first.shape)) if first.ndim else np.dtype(np.int64)
    return np.fromiter((tuple(value) if first.ndim else value for value in rows["labels"]), dtype=kind)


def class_weights(given: str | Mapping[str, float] | None, labels: Any, names: Sequence[str]) -> torch.Tensor | None:
    """Weights of the classes in the loss, `[num_labels]`.

    Args:
        given: `balanced`; or a weight for each class name, 1 where it is left out; or None for no weights. Balanced
            weights of n rows and k classes are n / (k n_c) for a class of n_c rows, so that all classes weigh alike
            and the mean over the rows is 1; where several classes may hold at once, (n - n_c) / n_c on the rows in
            which one holds.
        labels: Class numbers of the training rows `[N]`, or `[N, num_labels]` with 1 where a class holds.
        names: The classes.

    Raises:
        InputError: A word other than `balanced`, an unknown class, a weight that is no positive number, or a class
            without a training row.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        if unknown := sorted(given.keys() - set(names)):
            raise InputError(f"--class_weights: no class {unknown[0]!r}; there are {', '.join(names)}")
        for name, weight in given.items():
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < float("inf"):
                raise InputError(f"--class_weights: {weight!r} of class {name!r} is not a positive number")
        return torch.tensor([float(given.get(name, 1.0)) for name in names])
    if given != "balanced":
        raise InputError(f"--class_weights {given}: give 'balanced', or a mapping from class to weight")
    values = np.asarray(labels)
    counts = values.sum(axis=0) if values.ndim == 2 else np.bincount(values, minlength=len(names))
    if not counts.all():
        raise InputError(f"--class_weights balanced: no training row has class {names[int(counts.argmin())]!r}")
    weights = (len(values) - counts) / counts if values.ndim == 2 else len(values) / (len(names) * counts)
    return torch.tensor(weights, dtype=torch.float32)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    count: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of class numbers, or binary cross-entropy where several classes may hold at once.

    Args:
        logits: `[B, num_labels]`.
        labels: Class numbers `[B]`, or floats `[B, num_labels]`, 1 where a class holds.
        weights: Of the classes, `[num_labels]`: of a row by its class, or of the ones where several may hold.
        label_smoothing: Share of the probability that all classes get alike (Szegedy et al. 2016, section 7); for
            class numbers only.
        count: What the sum is divided by, None for the number of labels here: a batch in parts, or on several
            processes, is divided by the number of all its labels.

    Returns:
        A scalar.
    """
    logits = logits.float()
    weights = None if weights is None else weights.to(logits.device)
    if labels.is_floating_point():
        total = binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weights, reduction="sum")
    else:
        total = cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels.numel() if count is None else count)


@torch.no_grad()
def predict_logits(
    model: PreTrainedModel,
    encoded: datasets.Dataset,
    collator: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int,
    progress: str | None = None,
) -> np.ndarray:
    """Scores of each class for each row, on all processes together.

    Args:
        model: A sequence classifier, on its device.
        encoded: Rows as `encode_classified` makes them.
        collator: Makes batches of them.
        batch_size: Rows at once; rows of one length go together.
        progress: Title of a progress bar, if there is to be one.

    Returns:
        `[N, num_labels]` in the order of `encoded`, the same on every process.
    """
    model.eval()

    def run(rows: list[int]) -> list[list[float]]:
        batch = collator(list(encoded.select(rows))).to(model.device)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return model(**inputs).logits.float().tolist()

    return np.array(run_by_length([len(ids) for ids in encoded["input_ids"]], batch_size, run, progress))


def first_output(outputs: Any, labels: Any = None) -> Any:
    """The logits of what a Trainer keeps of a model's outputs: the first, where there are more, as of BART."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def decide(logits: np.ndarray, *, several: bool) -> np.ndarray:
    """The class of each row, or `[N, num_labels]` with 1 where a class holds, if several may: where it is likelier so.

    Args:
        logits: `[N, num_labels]`.
        several: Whether several classes may hold at once.
    """
    return (logits > 0).astype(np.float32) if several else logits.argmax(axis=-1)


def class_names(decisions: np.ndarray, names: Sequence[str], separator: str = ", ") -> list[str]:
    """The names of what `decide` returned; several of a row with `separator` between them."""
    if decisions.ndim == 2:
        return [separator.join(name for name, holds in zip(names, row, strict=True) if holds) for row in decisions]
    return [names[index] for index in decisions]


def score_classes(decisions: np.ndarray, labels: Any) -> dict[str, float]:
    """`accuracy` and macro `f1`, from 0 to 100; a row with several classes is right if all of them are.

    Args:
        decisions: What `decide` returned.
        labels: Likewise.
    """
    accuracy = metrics.load("accuracy").compute(predictions=list(decisions), references=list(labels))
    f1 = metrics.load("f1").compute(predictions=list(decisions), references=list(labels))
    return {"accuracy": accuracy["accuracy"], "f1": f1["f1"]}


def majority(labels: Any, count: int) -> np.ndarray:
    """The most frequent class of the training rows, or row of classes, `count` times: the baseline.

    Args:
        labels: Of the training rows, as `encode_labels` makes them.
        count: Rows of the result.
    """
    values, frequency = np.unique(np.asarray(labels), axis=0, return_counts=True)
    return np.repeat(values[frequency.argmax()][None], count, axis=0)


def write_class_reports(
    output_dir: str,
    log_history: list[dict[str, Any]],
    texts: Sequence[str],
    labels: np.ndarray,
    decisions: np.ndarray,
    names: Sequence[str],
) -> None:
    """Write `samples.txt`, `predictions.txt`, `learning_curve.png` and, for one class a row, `confusion_matrix.png`.

    Args:
        output_dir: The directory.
        log_history: As the Trainer keeps it; empty for no learning curve.
        texts: The rows' texts.
        labels: The rows' right classes, as `encode_labels` numbers them.
        decisions: What `decide` returned.
        names: The classes.
    """
    root = Path(output_dir)
    predicted = class_names(decisions, names)
    write_samples(root / "samples.txt", texts, class_names(labels, names), predicted)
    write_lines(root / "predictions.txt", predicted)
    if log_history:
        plot_learning_curve(log_history, root / "learning_curve.png", metric="accuracy")
    if labels.ndim == 1:
        plot_confusion_matrix(labels, decisions, names, root / "confusion_matrix.png")
