"""Entity-level metric of tagged words."""

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any

from hfseq.data.tag_schemes import SCHEMES, count_breaks, schemes_with, split_tag
from hfseq.metrics.inputs import check_pairs

# For these the reference scorer is seqeval's strict mode; for the others the script of the CoNLL shared tasks, which
# knows no S, L or U, and which seqeval's default mode follows.
_STRICT = ("IOBES", "BILOU")


def check_tag_rows(
    metric: str, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Return predictions and references as lists of lists of tags.

    Raises:
        InputError: A package that the metric needs is not installed.
        ValueError: There is nothing to score, or lengths differ.
    """
    check_pairs(metric, predictions, references)
    for number, (given, right) in enumerate(zip(predictions, references, strict=True)):
        if len(given) != len(right):
            raise ValueError(f"{metric}: row {number} has {len(given)} predicted tags and {len(right)} right ones")
    return [list(row) for row in predictions], [list(row) for row in references]


def seqeval(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], scheme: str | None = None
) -> dict[str, Any]:
    """F1, precision and recall of entities, 0 to 100, by seqeval, counted as the reference scorer of the scheme does.

    An entity is correct if its type and all its words are. Tags are `O`, or a prefix and a type joined by `-`
    (`B-product-name`), or in data of one type the prefix alone; the prefix may be lower case. The schemes are those of
    `hfseq.data.tag_schemes`. Sequences that break the scheme, mostly predicted ones, are counted as follows:

    - IOB1, IOB2, IOE1 and IOE2, as in the script of the CoNLL shared tasks (conlleval): each run of tags of one type
      is an entity, so an I after `O` begins one. Both versions of a scheme are counted alike.
    - IOBES and BILOU, as in seqeval's strict mode: only B to E (L) of one type, and S (U), are entities.

    Args:
        predictions: Tags of each row, one for each word.
        references: The same, one row for each prediction.
        scheme: IOB2, IOB1, IOE2, IOE1, IOBES or BILOU; by default inferred from the references.

    Returns:
        A dictionary of

        - `f1` (and `score`), `precision`, `recall`: micro averages, over the entities of all types;
        - `accuracy`: percentage of words whose tag is right;
        - `by_type`: type to its `f1`, `precision`, `recall` and `support` (number of entities); the type of tags
          without types is `_`;
        - `signature`: the scheme and counting mode, which make the scores comparable.

    Raises:
        InputError: seqeval is not installed.
        ValueError: Invalid inputs, an unknown scheme, or a tag that is not of the scheme.
    """
    given, right = check_tag_rows("seqeval", predictions, references)
    from seqeval import scheme as strict_schemes
    from seqeval.metrics import accuracy_score, classification_report

    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"seqeval: there is no scheme {scheme!r}; there are {', '.join(SCHEMES)}")
    names = {tag: _split(tag) for tag in {*chain(*right), *chain(*given)}}
    if scheme is None:
        scheme = _scheme_of(right, names) or _scheme_of(given, names) or "IOB2"
    foreign = next((tag for tag in sorted(names) if names[tag][0] not in f"O{SCHEMES[scheme]}"), None)
    if foreign is not None:
        raise ValueError(f"seqeval: {foreign!r} is no tag of {scheme}, by which the entities are counted")
    # seqeval strips hyphens off a type, and confuses types named like averages with these; numbers are safe.
    number = {kind: str(place) for place, kind in enumerate(sorted({kind for _, kind in names.values() if kind}))}
    plain = {tag: f"{prefix}-{number[kind]}" if kind else "O" for tag, (prefix, kind) in names.items()}
    options: dict[str, Any] = {"output_dict": True, "zero_division": 0}
    if scheme in _STRICT:
        options |= {"mode": "strict", "scheme": getattr(strict_schemes, scheme)}
    sides = [[[plain[tag] for tag in row] for row in side] for side in (right, given)]
    # Averages over no types, where there is no entity at all.
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        report = classification_report(*sides, **options)
    keys = {"f1": "f1-score", "precision": "precision", "recall": "recall"}
    scores = {name: 100 * float(report["micro avg"][key]) for name, key in keys.items()}
    return {
        "score": scores["f1"],
        **scores,
        "accuracy": 100 * float(accuracy_score(right, given)),
        "by_type": {
            kind: {name: 100 * float(report[place][key]) for name, key in keys.items()}
            | {"support": int(report[place]["support"])}
            for kind, place in number.items()
            if place in report
        },
        "signature": signature(scheme),
    }


def signature(scheme: str) -> str:
    """Describe how entities of a scheme are counted, in the format of sacreBLEU's signatures."""
    mode = "strict" if scheme in _STRICT else "conlleval"
    return f"scheme:{scheme}|mode:{mode}|version:{version('seqeval')}"


def _split(tag: str) -> tuple[str, str]:
    parts = split_tag(tag)
    if parts is None:
        raise ValueError(f"seqeval: {tag!r} is no tag of an entity; those are O, B-PER, I-PER and the like")
    return parts


def _scheme_of(rows: list[list[str]], names: dict[str, tuple[str, str]]) -> str | None:
    """Return the scheme that sequences break least; None if they have no entities."""
    prefixes = {names[tag][0] for tag in chain(*rows)} - {"O"}
    candidates = schemes_with(prefixes)
    if not candidates:
        raise ValueError(f"seqeval: no scheme has the prefixes {', '.join(sorted(prefixes))}")
    return min(candidates, key=lambda name: count_breaks(name, rows)) if prefixes else None
