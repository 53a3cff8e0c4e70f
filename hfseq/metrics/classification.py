"""Metrics of classifiers, as `evaluate` modules that need no network."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from hfseq.metrics.base import Metric

_CLASS, _SEVERAL = (
    datasets.Features({"predictions": kind, "references": kind})
    for kind in (datasets.Value("int64"), datasets.List(datasets.Value("int8")))
)


class ClassificationMetric(Metric):
    """Base of the metrics of classes, one or several a row; they need scikit-learn (the `train` extra).

    Raises:
        InputError: scikit-learn is not installed.
    """

    inputs_text = """
Args:
    predictions: list of class numbers; or, where several classes may hold at once, list of lists of 0 and 1, one for
        each class.
    references: the same, one for each prediction.
"""
    formats = [_CLASS, _SEVERAL]
    homepage_url = "https://scikit-learn.org/stable/modules/model_evaluation.html"
    packages = ("sklearn",)

    def _check(self, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        checked = []
        for name, rows in (("prediction", predictions), ("reference", references)):
            values = rows if isinstance(rows, list) else np.asarray(rows).tolist()
            checked.append([self._row(f"{name} {index}", value) for index, value in enumerate(values)])
        pairs = list(zip(*checked, strict=True))
        several = isinstance(pairs[0][0], list) if pairs else False
        if pairs and len(self) and (self.selected_feature_format is _SEVERAL) != several:
            raise ValueError(f"{self.metric_name}: class numbers and lists of 0 and 1 are not scored together")
        for index, pair in enumerate(pairs):
            if any(isinstance(row, list) != several for row in pair) or (several and len(pair[0]) != len(pair[1])):
                raise ValueError(
                    f"{self.metric_name}: prediction {index} is {pair[0]} and reference {index} is {pair[1]}; give "
                    "class numbers only, or only lists of 0 and 1 of the same length"
                )
        return checked[0], checked[1]

    def _row(self, name: str, value: Any) -> int | list[int]:
        plain = np.asarray(value).tolist()
        if isinstance(plain, int) and plain >= 0:
            return int(plain)
        if isinstance(plain, list) and plain and all(holds in (0, 1) for holds in plain):
            return [int(holds) for holds in plain]
        raise ValueError(f"{self.metric_name}: {name} is {plain!r}, not a class number or a list of 0 and 1")

    def _arrays(self, predictions: list[Any], references: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[rows]` class numbers or `[rows, classes]` of 0 and 1."""
        lengths = {len(row) for row in predictions if isinstance(row, list)}
        if len(lengths) > 1:
            raise ValueError(f"{self.metric_name}: the lists are of different lengths: {sorted(lengths)}")
        return np.asarray(predictions), np.asarray(references)


class Accuracy(ClassificationMetric):
    """Percentage (0 to 100) of the rows that are right; where several classes may hold, right in all of them.

    `compute` returns it as `accuracy` and as `score`. (The module of the same name on the Hub gives a fraction.)
    """

    metric_name = "accuracy"
    description_text = "Percentage of rows whose class, or whose every class where several may hold, is right."

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, Any]:
        from sklearn.metrics import accuracy_score

        given, right = self._arrays(predictions, references)
        accuracy = 100 * float(accuracy_score(right, given))
        return {"score": accuracy, "accuracy": accuracy}


class F1(ClassificationMetric):
    """F1, precision and recall, 0 to 100, as scikit-learn computes them; 0 where nothing can be divided.

    `compute` returns:

    - `f1` (and `score`), `precision`, `recall`: the mean over the classes ("macro");
    - `f1_micro`: of the decisions of all classes together, which is the accuracy where one class holds a row;
    - `f1_weighted`: the mean over the classes, weighted by how often each is a reference;
    - `by_class`: class number to its `f1`, `precision`, `recall` and `support` (number of references). With two
      classes, `by_class[1]["f1"]` is what is called binary F1.

    The classes are those that occur in the predictions or references, or all, where several may hold at once.
    """

    metric_name = "f1"
    description_text = "F1, precision and recall in percent: macro, micro, weighted and of each class."

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, Any]:
        from sklearn.metrics import precision_recall_fscore_support

        given, right = self._arrays(predictions, references)
        # One column is to scikit-learn a class number, 0 or 1, and here a class that holds or not.
        single = right.ndim == 2 and right.shape[1] == 1
        classes = list(range(right.shape[1])) if right.ndim == 2 else np.union1d(given, right).tolist()
        labels = [1] if single else classes

        def scores(average: str | None) -> tuple[Any, ...]:
            return precision_recall_fscore_support(right, given, labels=labels, average=average, zero_division=0.0)

        precision, recall, f1, support = scores(None)
        by_class = {
            number: {"f1": 100 * float(f), "precision": 100 * float(p), "recall": 100 * float(r), "support": int(n)}
            for number, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
        }
        return {
            "score": 100 * float(f1.mean()),
            "f1": 100 * float(f1.mean()),
            "f1_micro": 100 * float(scores("micro")[2]),
            "f1_weighted": 100 * float(np.average(f1, weights=support)) if support.any() else 0.0,
            "precision": 100 * float(precision.mean()),
            "recall": 100 * float(recall.mean()),
            "by_class": by_class,
        }
