"""Tagging schemes of entities (IOB2, IOBES and others): detection, validation and conversion."""

import functools
import itertools
import re
from collections.abc import Collection, Iterable, Sequence

# Prefix and type (`B-product-name`), or a prefix alone in data with one type; `O` outside entities.
_TAG = re.compile(r"(O)|([BIESLU])(?:-(.+))?", re.IGNORECASE | re.DOTALL)
_PREFIXES = "B-, I-, E-, S-, L-, U-"
_OUTSIDE = ("O", "")
SCHEMES = {"IOB2": "BI", "IOB1": "BI", "IOE2": "IE", "IOE1": "IE", "IOBES": "BIES", "BILOU": "BILU"}
"""Scheme to the prefixes of its tags.

- IOB2: each entity begins with B.
- IOB1 (Ramshaw & Marcus 1995): an entity begins with I, and with B only if the word before belongs to an entity of the
  same type. Data without any B are IOB1.
- IOE2, IOE1 (Tjong Kim Sang & Veenstra 1999): the counterparts for the last word, with E.
- IOBES: B and E at the ends of an entity of several words, S for one of a single word.
- BILOU (Ratinov & Roth 2009): the same, with L and U.
"""
UNTYPED = "_"
"""Type of entities whose tags have no type."""


def split_tag(tag: str) -> tuple[str, str] | None:
    """Split a tag into prefix and type.

    Args:
        tag: A tag with an upper- or lowercase prefix; its type may contain hyphens.

    Returns:
        The prefix in upper case and the type: `UNTYPED` for a prefix alone, empty for `O`; None for any other tag.
    """
    found = _TAG.fullmatch(tag)
    if found is None:
        return None
    return _OUTSIDE if found[1] else (found[2].upper(), found[3] or UNTYPED)


def check_tags(tags: Collection[str]) -> list[str]:
    """Return the schemes that tags may follow, judging by their prefixes.

    Tags mark entities if all but `O` have a prefix, either all of them or none have a type, and some scheme has these
    prefixes. Without `O` there must be two prefixes, and untyped tags must include B or I: `O` and `S` alone could be
    anything.

    Args:
        tags: All tags of a dataset, or labels of a model.

    Returns:
        Names of one scheme, or of two that differ only in sequences, the more common one first.

    Raises:
        ValueError: The tags are word classes; the message gives the reason.
    """
    named = {tag: split_tag(tag) for tag in sorted(tags)}
    for tag, parts in named.items():
        if parts is None:
            raise ValueError(f"{tag!r} begins with none of {_PREFIXES}")
    inside = {tag: parts for tag, parts in named.items() if parts not in (None, _OUTSIDE)}
    prefixes = {parts[0] for parts in inside.values()}
    untyped = [tag for tag in inside if len(tag) == 1]
    if untyped and len(untyped) < len(inside):
        raise ValueError(f"{untyped[0]!r} has no type")
    names = schemes_with(prefixes)
    if not names:
        raise ValueError(f"no scheme has the prefixes {', '.join(sorted(prefixes))}")
    if len(inside) == len(named) and len(prefixes) < 2:
        raise ValueError("there is no 'O'")
    if untyped and "B" not in prefixes and ("I" not in prefixes or not prefixes <= {"I", "E"}):
        raise ValueError(f"no scheme without types has only the tags {', '.join(sorted(named))}")
    return names


def schemes_with(prefixes: Collection[str]) -> list[str]:
    """Return the simplest schemes with all these prefixes: one, two that share their prefixes, or none."""
    own = next((own for own in SCHEMES.values() if set(prefixes) <= set(own)), None)
    return [name for name, letters in SCHEMES.items() if letters == own]


def find_scheme(tags: Collection[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the scheme of a dataset.

    Args:
        tags: All its tags.
        rows: Sequences of tags, which tell IOB1 from IOB2 and IOE1 from IOE2: the scheme that they violate less often,
            or IOB2 or IOE2 in a tie.

    Returns:
        A name in `SCHEMES`.

    Raises:
        ValueError: The tags are word classes; see `check_tags`.
    """
    names = check_tags(tags)
    if len(names) == 1:
        return names[0]
    rows = list(rows)
    return min(names, key=lambda name: count_breaks(name, rows))


def count_breaks(scheme: str, rows: Iterable[Sequence[str]]) -> int:
    """Count the violations of a scheme in sequences of tags.

    Args:
        scheme: Name of the scheme.
        rows: Sequences of tags with the scheme's prefixes.

    Returns:
        Number of adjacent tags that cannot follow each other, the ends of a sequence counted as `O`.
    """
    split = functools.cache(lambda tag: split_tag(tag) or _OUTSIDE)
    padded = ([_OUTSIDE, *map(split, row), _OUTSIDE] for row in rows)
    return sum(_is_break(scheme, before, after) for row in padded for before, after in itertools.pairwise(row))


def _is_break(scheme: str, before: tuple[str, str], after: tuple[str, str]) -> bool:
    """Return whether a tag, as prefix and type, cannot follow another."""
    (left, entity), (right, other) = before, after
    together = "O" not in (left, right) and entity == other
    if scheme in ("IOB2", "IOB1"):
        return right == ("I" if scheme == "IOB2" else "B") and not together
    if scheme in ("IOE2", "IOE1"):
        return left == ("I" if scheme == "IOE2" else "E") and not together
    is_open, continues = left in "BI", right in "IEL"
    return is_open != continues or (is_open and not together)


def to_iob2(tags: Sequence[str], joined: Sequence[bool] | None = None) -> list[str]:
    """Convert the tags of a sequence to IOB2.

    Invalid sequences are read as leniently as conlleval reads them: an entity begins at B, S and U, after `O`, E, S, L
    and U, and where the type changes, and continues elsewhere.

    Args:
        tags: Tags of one sequence, in any of `SCHEMES`.
        joined: For each tag, whether it belongs to a later part of the same word. A part whose type is that of its
            word belongs to the word's entity whatever its prefix.

    Returns:
        As many tags, `B-`, `I-` or `O`.

    Raises:
        ValueError: A tag belongs to no scheme.
    """
    written = []
    before = _OUTSIDE
    for index, tag in enumerate(tags):
        parts = split_tag(tag)
        if parts is None:
            raise ValueError(f"{tag!r} begins with none of {_PREFIXES}")
        prefix, entity = parts
        together = "O" not in (before[0], prefix) and entity == before[1]
        if prefix == "O":
            written.append("O")
        elif together and joined is not None and joined[index]:
            written.append(f"I-{entity}")
            # The first part's tag determines whether the entity continues with the next word.
            continue
        else:
            begins = not together or prefix in "BSU" or before[0] in "ESLU"
            written.append(f"{'B' if begins else 'I'}-{entity}")
        before = parts
    return written
