"""The metric functions as `evaluate` metrics; the only module here that imports `evaluate` and `datasets`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import evaluate
from datasets import Features, List, Value

from hfseq.metrics.classification import check_classes
from hfseq.metrics.inputs import require_packages
from hfseq.metrics.regression import check_numbers
from hfseq.metrics.speech import check_transcripts
from hfseq.metrics.tagging import check_tag_rows
from hfseq.metrics.text import check_texts

_FORMATS: dict[Callable[..., Any], list[tuple[Any, Any]]] = {
    check_texts: [(Value("string"), List(Value("string")))],
    check_classes: [(Value("int64"), Value("int64")), (List(Value("int8")), List(Value("int8")))],
    check_tag_rows: [(List(Value("string")), List(Value("string")))],
    check_numbers: [(Value("float64"), Value("float64"))],
    check_transcripts: [(Value("string"), Value("string"))],
}
"""Check to the types of predictions and references that it returns."""


class Metric(evaluate.Metric):
    """A metric function with `add`, `add_batch`, `compute` and all else that `evaluate` does with a metric.

    Unlike in `evaluate`, predictions are kept in memory by default: no lock and no file in the user's cache, and
    concurrent processes do not interfere.

    Args:
        name: Name of the metric; `evaluate.combine` prefixes results with it.
        function: Takes `predictions`, `references` and options, and returns a dictionary with a `score`.
        check: Validates and converts a batch, given the name, predictions and references.
        **kwargs: Arguments of `evaluate.Metric`; processes that share a metric need `keep_in_memory=False`.

    Raises:
        InputError: A package that the metric needs is not installed. Raised here, because the first call may come
            only after an epoch.
    """

    _row_type: type
    """Type of the rows that were added."""

    def __init__(self, name: str, function: Callable[..., Any], check: Callable[..., Any], **kwargs: Any) -> None:
        require_packages(name)
        self._function, self._check = function, check
        super().__init__(**{"keep_in_memory": True, **kwargs})
        # By default derived from the class's name.
        self.info.module_name = name

    def _info(self) -> evaluate.MetricInfo:
        formats = [Features(zip(("predictions", "references"), pair, strict=True)) for pair in _FORMATS[self._check]]
        return evaluate.MetricInfo(description=inspect.getdoc(self._function), citation="", features=formats)

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Add predictions and their references; an empty batch adds nothing.

        Raises:
            ValueError: The lengths differ, or a row is not what the metric compares.
        """
        if not len(predictions) and not len(references):
            return
        predictions, references = self._check(self.name, predictions, references)
        row_type = type(predictions[0])
        if len(self) and row_type is not self._row_type:
            raise ValueError(f"{self.name}: class numbers and lists of 0 and 1 are not scored together")
        self._row_type = row_type
        super().add_batch(predictions=predictions, references=references)

    def add(self, *, prediction: Any = None, reference: Any = None, **plural: Any) -> None:
        """Add one prediction and its reference; `evaluate.combine` passes them as `predictions` and `references`.

        Raises:
            ValueError: As for `add_batch`.
        """
        row = {"predictions": prediction, "references": reference, **plural}
        self.add_batch(**{name: [value] for name, value in row.items()})

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any]:
        """Score `predictions` and `references` together with all that was added before, then forget both.

        Args:
            predictions: As for `add_batch`; None to score only what was added before.
            references: One for each prediction.
            options: Keyword options of the metric function.

        Raises:
            ValueError: There is nothing to score, or the inputs are invalid.
        """
        if (predictions is None) != (references is None):
            raise ValueError(f"{self.name}: predictions and references must be given together")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if not len(self):
            raise ValueError(f"{self.name}: nothing to score, there are no predictions")
        return super().compute(**options)

    def _compute(self, predictions: list[Any], references: list[Any], **options: Any) -> dict[str, Any]:
        return self._function(predictions, references, **options)
