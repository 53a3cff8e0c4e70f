"""Metrics of tagged words, as `evaluate` modules that need no network."""

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any

import datasets

from hfseq.data.tag_schemes import SCHEMES, count_breaks, schemes_with, split_tag
from hfseq.metrics.base import Metric

# Of these seqeval's strict mode is the scorer, of the others the script of the CoNLL shared tasks, which reads no S, L
# or U; seqeval's other mode counts as the script does.
_STRICT = ("IOBES", "BILOU")


class Seqeval(Metric):
    """F1, precision and recall of entities, 0 to 100, counted as the scorer of the tags' scheme does, by seqeval.

    An entity is right if its type and all its words are. Tags are `O`, or a prefix and a type with a `-` between them
    (`B-product-name`), or in data of one type the prefix alone; the prefix may be lower case. `hfseq.data.tag_schemes`
    has the schemes. What counts as an entity where a sequence, above all a predicted one, breaks the scheme:

    - IOB1, IOB2, IOE1 and IOE2, as in the script of the CoNLL shared tasks (conlleval): each run of tags of one type
      is an entity, so an I after `O` begins one. Both versions of a scheme are counted alike.
    - IOBES and BILOU, as in seqeval's strict mode: only B up to E (L) of one type, and S (U); anything else is none.

    `compute` returns:

    - `f1` (and `score`), `precision`, `recall`: of the entities of all types together ("micro");
    - `accuracy`: percentage of words whose tag is right;
    - `by_type`: type to its `f1`, `precision`, `recall` and `support` (number of entities); of tags without types
      `_` is the type;
    - `signature`: the scheme and how it is counted, which make the scores comparable.

    It needs seqeval (the `train` extra).

    Raises:
        InputError: seqeval is not installed.
        ValueError: From `compute`: a tag marks no entity, or is none of the scheme; there is no such scheme.
    """

    metric_name = "seqeval"
    description_text = "F1, precision and recall of entities in percent."
    inputs_text = """
Args:
    predictions: list of lists of tags, one for each word.
    references: the same, one for each prediction.
    scheme: IOB2, IOB1, IOE2, IOE1, IOBES or BILOU; without it, what the references are in.
"""
    formats = datasets.Features(
        {name: datasets.List(datasets.Value("string")) for name in ("predictions", "references")}
    )
    homepage_url = "https://github.com/chakki-works/seqeval"
    packages = ("seqeval",)

    def _check(self, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        for number, (given, right) in enumerate(zip(predictions, references, strict=True)):
            if len(given) != len(right):
                raise ValueError(f"seqeval: row {number} has {len(given)} predicted tags and {len(right)} right ones")
        return [list(row) for row in predictions], [list(row) for row in references]

    def _compute(self, predictions: list[Any], references: list[Any], scheme: str | None = None) -> dict[str, Any]:
        from seqeval import scheme as strict_schemes
        from seqeval.metrics import accuracy_score, classification_report

        if scheme is not None and scheme not in SCHEMES:
            raise ValueError(f"seqeval: there is no scheme {scheme!r}; there are {', '.join(SCHEMES)}")
        names = {tag: self._split(tag) for tag in {*chain(*references), *chain(*predictions)}}
        if scheme is None:
            scheme = self._scheme_of(references, names) or self._scheme_of(predictions, names) or "IOB2"
        foreign = next((tag for tag in sorted(names) if names[tag][0] not in f"O{SCHEMES[scheme]}"), None)
        if foreign is not None:
            raise ValueError(f"seqeval: {foreign!r} is no tag of {scheme}, by which the entities are counted")
        # seqeval strips hyphens off a type, and takes averages for types of such names; numbers are safe.
        number = {kind: str(place) for place, kind in enumerate(sorted({kind for _, kind in names.values() if kind}))}
        plain = {tag: f"{prefix}-{number[kind]}" if kind else "O" for tag, (prefix, kind) in names.items()}
        options: dict[str, Any] = {"output_dict": True, "zero_division": 0}
        if scheme in _STRICT:
            options |= {"mode": "strict", "scheme": getattr(strict_schemes, scheme)}
        sides = [[[plain[tag] for tag in row] for row in side] for side in (references, predictions)]
        # Of means over no types, where there is no entity at all.
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            report = classification_report(*sides, **options)
        keys = {"f1": "f1-score", "precision": "precision", "recall": "recall"}
        scores = {name: 100 * float(report["micro avg"][key]) for name, key in keys.items()}
        by_type = {
            kind: {name: 100 * float(report[place][key]) for name, key in keys.items()}
            | {"support": int(report[place]["support"])}
            for kind, place in number.items()
            if place in report
        }
        accuracy = 100 * float(accuracy_score(references, predictions))
        return {
            "score": scores["f1"],
            **scores,
            "accuracy": accuracy,
            "by_type": by_type,
            "signature": signature(scheme),
        }

    @staticmethod
    def _split(tag: str) -> tuple[str, str]:
        parts = split_tag(tag)
        if parts is None:
            raise ValueError(f"seqeval: {tag!r} is no tag of an entity; those are O, B-PER, I-PER and the like")
        return parts

    @staticmethod
    def _scheme_of(rows: list[list[str]], names: dict[str, tuple[str, str]]) -> str | None:
        """The scheme of sequences; None if there are no entities."""
        prefixes = {names[tag][0] for tag in chain(*rows)} - {"O"}
        candidates = schemes_with(prefixes)
        if not candidates:
            raise ValueError(f"seqeval: no scheme has the prefixes {', '.join(sorted(prefixes))}")
        return min(candidates, key=lambda name: count_breaks(name, rows)) if prefixes else None


def signature(scheme: str) -> str:
    """Say how entities of a scheme are counted, in the form of a signature of sacreBLEU."""
    mode = "strict" if scheme in _STRICT else "conlleval"
    return f"scheme:{scheme}|mode:{mode}|version:{version('seqeval')}"
