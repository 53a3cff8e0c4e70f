"""What all metrics here share: they are `evaluate` modules, check what is added, and need no network."""

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate

from hfseq.errors import require


class Metric(evaluate.Metric):
    """Base of the metrics here: checks what is added and keeps it in memory.

    Everything else is `evaluate`'s own: `add`, `add_batch`, `compute` and `evaluate.combine`. Unlike `evaluate`, the
    predictions are kept in memory unless `keep_in_memory=False`: no lock and no file in the user's cache, and two
    processes that score at the same time do not meet. Every result has a `score`, from 0 to 100.

    Raises:
        InputError: One of the `packages` that count is not installed.
    """

    metric_name: ClassVar[str]
    description_text: ClassVar[str]
    inputs_text: ClassVar[str]
    formats: ClassVar[datasets.Features | list[datasets.Features]]
    citation_text: ClassVar[str] = ""
    homepage_url: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs: Any) -> None:
        # Here and not where they are imported, which may be after an epoch.
        require(*self.packages, extra="train", use=f"the metric {self.metric_name!r}")
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)
        # `evaluate` derives a name from the class's ("sacre_bleu"); `combine` prefixes results with it.
        self.info.module_name = self.metric_name

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description_text,
            citation=self.citation_text,
            inputs_description=self.inputs_text,
            homepage=self.homepage_url,
            features=self.formats,
        )

    def _check(self, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns as many predictions as references in the form in which they are kept.

        Raises:
            ValueError: if one of them is not what the metric compares.
        """
        raise NotImplementedError

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Adds predictions and their references; an empty batch adds nothing.

        Raises:
            ValueError: if the two lengths differ, or something is not what the metric compares.
        """
        if len(predictions) != len(references):
            raise ValueError(
                f"{self.metric_name}: {len(predictions)} predictions but {len(references)} references; "
                "give one reference, or one list of references, for each prediction"
            )
        predictions, references = self._check(predictions, references)
        if predictions:
            super().add_batch(predictions=predictions, references=references)

    def add(
        self, *, prediction: Any = None, reference: Any = None, predictions: Any = None, references: Any = None
    ) -> None:
        """Adds one prediction and its reference.

        The plural names mean the same: `evaluate.combine` calls them so.

        Raises:
            ValueError: as `add_batch`.
        """
        one_prediction = predictions if prediction is None else prediction
        one_reference = references if reference is None else reference
        self.add_batch(predictions=[one_prediction], references=[one_reference])

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """Scores what was added before together with `predictions` and `references`, then forgets it.

        Args:
            predictions: as for `add_batch`, or None to score only what was added before.
            references: one for each prediction.
            options: those of the metric.

        Raises:
            ValueError: if there is nothing to score, or the inputs do not match.
        """
        if (predictions is None) != (references is None):
            raise ValueError(f"{self.metric_name}: predictions and references must be given together")
        if predictions is not None and references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not len(self):
            raise ValueError(f"{self.metric_name}: nothing to score, there are no predictions")
        return super().compute(**options)
