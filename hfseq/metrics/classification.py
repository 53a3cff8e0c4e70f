"""Metrics of classifiers, single-label or multi-label."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfseq.metrics.inputs import check_pairs, plain_rows


def check_classes(metric: str, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return predictions and references as lists of class numbers, or of lists of 0 and 1 (multi-label).

    Raises:
        InputError: A package that the metric needs is not installed.
        ValueError: The lengths differ, there is nothing to score, or the rows are not all of one kind and length.
    """
    check_pairs(metric, predictions, references)
    numbers = _class_numbers(predictions), _class_numbers(references)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0].tolist(), numbers[1].tolist()
    given, right = (
        [_row(f"{metric}: {name} {index}", row) for index, row in enumerate(plain_rows(rows))]
        for name, rows in (("prediction", predictions), ("reference", references))
    )
    # The number of classes of a multi-label row, 0 for a class number.
    widths = [[len(row) if isinstance(row, list) else 0 for row in side] for side in (given, right)]
    for index, (width, other) in enumerate(zip(*widths, strict=True)):
        if width != other or bool(width) != bool(widths[0][0]):
            raise ValueError(
                f"{metric}: prediction {index} is {given[index]} and reference {index} is {right[index]}; give "
                "class numbers only, or only lists of 0 and 1 of the same length"
            )
    if len({*widths[0]}) > 1:
        raise ValueError(f"{metric}: the lists are of different lengths: {sorted({*widths[0]})}")
    return given, right


def _class_numbers(rows: Sequence[Any]) -> np.ndarray | None:
    """Class numbers `[N]`; None for other rows, among which are invalid ones."""
    try:
        numbers = np.asarray(rows)
    except ValueError:
        return None  # lists of different lengths
    return numbers if numbers.ndim == 1 and numbers.dtype.kind in "iu" and numbers.min() >= 0 else None


def _row(where: str, value: Any) -> int | list[int]:
    if isinstance(value, int) and value >= 0:
        return int(value)
    if isinstance(value, list) and value and all(label in (0, 1) for label in value):
        return [int(label) for label in value]
    raise ValueError(f"{where} is {value!r}, not a class number or a list of 0 and 1")


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
    """Percentage of correct rows; a multi-label row is correct if all its classes are (subset accuracy).

    The metric of the same name on the Hub returns a fraction.

    Args:
        predictions: Class numbers, or multi-label lists of 0 and 1, one for each class.
        references: The same, one for each prediction.

    Returns:
        `accuracy`, which is also `score`.

    Raises:
        ValueError: Invalid inputs.
    """
    given, right = map(np.asarray, check_classes("accuracy", predictions, references))
    score = 100 * float((given == right).reshape(len(right), -1).all(axis=1).mean())
    return {"score": score, "accuracy": score}


def f1(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
    """F1, precision and recall, 0 to 100, as computed by scikit-learn; 0 where undefined.

    The classes are those that occur in the predictions or references; all of them for multi-label.

    Args:
        predictions: Class numbers, or multi-label lists of 0 and 1, one for each class.
        references: The same, one for each prediction.

    Returns:
        A dictionary of

        - `f1` (and `score`), `precision`, `recall`: macro averages, over the classes;
        - `f1_micro`: over the decisions of all classes together; for single-label rows it equals accuracy;
        - `f1_weighted`: average over the classes weighted by their support;
        - `by_class`: class number to its `f1`, `precision`, `recall` and `support` (number of references). With two
          classes, `by_class[1]["f1"]` is the binary F1.

    Raises:
        InputError: scikit-learn is not installed.
        ValueError: Invalid inputs.
    """
    given, right = map(np.asarray, check_classes("f1", predictions, references))
    from sklearn.metrics import precision_recall_fscore_support

    # scikit-learn takes a single column for class numbers 0 and 1; here it is one class that is present or not.
    single = right.ndim == 2 and right.shape[1] == 1
    classes = list(range(right.shape[1])) if right.ndim == 2 else np.union1d(given, right).tolist()
    labels = [1] if single else classes

    def scores(average: str | None) -> tuple[Any, ...]:
        return precision_recall_fscore_support(right, given, labels=labels, average=average, zero_division=0.0)

    precision, recall, by_class, support = scores(None)
    return {
        "score": 100 * float(by_class.mean()),
        "f1": 100 * float(by_class.mean()),
        "f1_micro": 100 * float(scores("micro")[2]),
        "f1_weighted": 100 * float(np.average(by_class, weights=support)) if support.any() else 0.0,
        "precision": 100 * float(precision.mean()),
        "recall": 100 * float(recall.mean()),
        "by_class": {
            number: {"f1": 100 * float(f), "precision": 100 * float(p), "recall": 100 * float(r), "support": int(n)}
            for number, p, r, f, n in zip(classes, precision, recall, by_class, support, strict=True)
        },
    }
