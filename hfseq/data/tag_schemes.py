"""Schemes of tags that mark entities word by word: finding that of a data set, checking and converting tags."""

import re
from collections.abc import Collection, Iterable, Sequence

# Prefix and type (`B-product-name`), or in data of one type a prefix alone; `O` outside of entities.
_TAG = re.compile(r"(O)|([BIESLU])(?:-(.+))?", re.IGNORECASE | re.DOTALL)
_PREFIXES = "B-, I-, E-, S-, L-, U-"
_OUTSIDE = ("O", "")
SCHEMES = {"IOB2": "BI", "IOB1": "BI", "IOE2": "IE", "IOE1": "IE", "IOBES": "BIES", "BILOU": "BILU"}
"""Scheme to the prefixes of its tags.

- IOB2: each entity begins with B.
- IOB1 (Ramshaw & Marcus 1995): it begins with I, and with B only where the word before belongs to an entity of the
  same type. Data without a B are in it.
- IOE2, IOE1 (Tjong Kim Sang & Veenstra 1999): the same of its last word, with E.
- IOBES: B and E at the ends of an entity of several words, S for one of one word.
- BILOU (Ratinov & Roth 2009): the same, with L and U.
"""
UNTYPED = "_"
"""Type of entities whose tags have none."""


def split_tag(tag: str) -> tuple[str, str] | None:
    """Split a tag into prefix and type.

    Args:
        tag: A tag. Its prefix is upper or lower case; a type may contain hyphens.

    Returns:
        The prefix in upper case, and the type, `UNTYPED` for a prefix alone, empty for `O`; None for anything else.
    """
    found = _TAG.fullmatch(tag)
    if found is None:
        return None
    return _OUTSIDE if found[1] else (found[2].upper(), found[3] or UNTYPED)


def check_tags(tags: Collection[str]) -> list[str]:
    """Find the schemes that tags can be of, by their prefixes.

    Tags mark entities if all but `O` have a prefix, all of them have a type or none has, and there is a scheme with
    these prefixes. Where `O` is missing there must be two prefixes, and without types B, or I, must be among them: in
    `O` and `S` alone nobody would see entities.

    Args:
        tags: All tags of a data set, or labels of a model.

    Returns:
        Names of one scheme, or of two that differ only in sequences, the more usual one first.

    Raises:
        ValueError: The tags are classes of words; says why.
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
    """Names of the simplest schemes that have all these prefixes: one, two that share their prefixes, or none."""
    own = next((own for own in SCHEMES.values() if set(prefixes) <= set(own)), None)
    return [name for name, letters in SCHEMES.items() if letters == own]


def find_scheme(tags: Collection[str], rows: Iterable[Sequence[str]]) -> str:
    """Find the scheme of a data set.

    Args:
        tags: All its tags.
        rows: Sequences of them. They tell IOB1 from IOB2, and IOE1 from IOE2: it is the one that they break less
            often, or IOB2 or IOE2 if they break both equally often.

    Returns:
        Its name in `SCHEMES`.

    Raises:
        ValueError: As `check_tags`.
    """
    names = check_tags(tags)
    if len(names) == 1:
        return names[0]
    rows = list(rows)
    return min(names, key=lambda name: count_breaks(name, rows))


def count_breaks(scheme: str, rows: Iterable[Sequence[str]]) -> int:
    """Count the places in sequences of tags at which they are not as a scheme has them.

    Args:
        scheme: Its name.
        rows: Sequences of tags with the scheme's prefixes.

    Returns:
        Number of pairs of neighbours that cannot follow each other, the ends of a sequence counted as `O`.
    """
    named: dict[str, tuple[str, str]] = {}
    count = 0
    for row in rows:
        before = _OUTSIDE
        for tag in row:
            if tag not in named:
                named[tag] = split_tag(tag) or _OUTSIDE
            count += _is_break(scheme, before, named[tag])
            before = named[tag]
        count += _is_break(scheme, before, _OUTSIDE)
    return count


def _is_break(scheme: str, before: tuple[str, str], after: tuple[str, str]) -> bool:
    """Return whether one tag, as prefix and type, cannot follow another."""
    (left, kind), (right, other) = before, after
    together = "O" not in (left, right) and kind == other
    if scheme == "IOB2":
        return right == "I" and not together
    if scheme == "IOB1":
        return right == "B" and not together
    if scheme == "IOE2":
        return left == "I" and not together
    if scheme == "IOE1":
        return left == "E" and not together
    is_open, goes_on = left in "BI", right in "IEL"
    return is_open != goes_on or (is_open and not together)


def to_iob2(tags: Sequence[str], joined: Sequence[bool] | None = None) -> list[str]:
    """Write the entities of a sequence in IOB2, for what reads no other scheme.

    Broken sequences are read as leniently as conlleval reads them: an entity begins at B, S and U, after `O`, E, S, L
    and U, and where the type changes, and goes on elsewhere.

    Args:
        tags: Of one sequence, in any of `SCHEMES`.
        joined: Whether each tag is that of a later part of the word before it. A part whose type is that of the word
            belongs to the word's entity whatever its prefix.

    Returns:
        As many tags, `B-`, `I-` or `O`.

    Raises:
        ValueError: A tag of no scheme.
    """
    written = []
    before = _OUTSIDE
    for place, tag in enumerate(tags):
        parts = split_tag(tag)
        if parts is None:
            raise ValueError(f"{tag!r} begins with none of {_PREFIXES}")
        prefix, kind = parts
        together = "O" not in (before[0], prefix) and kind == before[1]
        if prefix == "O":
            written.append("O")
        elif together and joined is not None and joined[place]:
            written.append(f"I-{kind}")
            # The word's tag says whether the entity goes on with the next word.
            continue
        else:
            begins = not together or prefix in "BSU" or before[0] in "ESLU"
            written.append(f"{'B' if begins else 'I'}-{kind}")
        before = parts
    return written
