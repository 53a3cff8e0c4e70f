"""Metrics of tagged words, as `evaluate` modules that need no network."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import datasets

from hfseq.data.errors import InputError

from .base import Metric


class Seqeval(Metric):
    """F1, precision and recall of entities, 0 to 100, as seqeval and the CoNLL script count them.

    An entity is right if its type and all its words are. Tags are those of IOB1, IOB2, IOE or IOBES: `O`, and a
    position and a type with a `-` between them (`B-PER`). `compute` returns:

    - `f1` (and `score`), `precision`, `recall`: of the entities of all types together ("micro");
    - `accuracy`: percentage of words whose tag is right;
    - `by_type`: type to its `f1`, `precision`, `recall` and `support` (number of entities).

    It needs seqeval (the `train` extra).

    Raises:
        InputError: seqeval is not installed.
    """

    metric_name = "seqeval"
    description_text = "F1, precision and recall of entities in percent."
    inputs_text = """
Args:
    predictions: list of lists of tags, one for each word.
    references: the same, one for each prediction.
"""
    formats = datasets.Features(
        {name: datasets.List(datasets.Value("string")) for name in ("predictions", "references")}
    )
    homepage_url = "https://github.com/chakki-works/seqeval"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Here and not where it scores, which may be after an epoch.
        if find_spec("seqeval") is None:
            raise InputError("seqeval needs the package of its name: pip install 'hfseq[train]'")
        super().__init__(*args, **kwargs)

    def _check(self, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        for number, (given, right) in enumerate(zip(predictions, references, strict=True)):
            if len(given) != len(right):
                raise ValueError(f"seqeval: row {number} has {len(given)} predicted tags and {len(right)} right ones")
        return [list(row) for row in predictions], [list(row) for row in references]

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, Any]:
        from seqeval.metrics import accuracy_score, classification_report

        # Of means over no types, where there is no entity at all.
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            report = classification_report(references, predictions, output_dict=True, zero_division=0)
        names = {"f1": "f1-score", "precision": "precision", "recall": "recall"}
        averages = {name: report.pop(f"{name} avg") for name in ("micro", "macro", "weighted")}
        scores = {name: 100 * float(averages["micro"][key]) for name, key in names.items()}
        by_type = {
            kind: {name: 100 * float(values[key]) for name, key in names.items()} | {"support": int(values["support"])}
            for kind, values in report.items()
        }
        accuracy = 100 * float(accuracy_score(references, predictions))
        return {"score": scores["f1"], **scores, "accuracy": accuracy, "by_type": by_type}


def are_entities(tags: Sequence[str]) -> bool:
    """Whether tags are those of entities: `O`, or a position and a type, `B-PER`."""
    return "O" in tags and all(tag == "O" or (tag[:1] in "BIESLU" and tag[1:2] == "-" and tag[2:]) for tag in tags)
