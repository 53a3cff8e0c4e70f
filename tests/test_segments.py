"""Segment overlap against its definition, and what it is made for."""

import random
from itertools import groupby

import pytest

from hfseq.metrics import load, sov


def segments(tags):
    at, found = 0, []
    for tag, run in groupby(tags):
        size = len(list(run))
        found.append((tag, set(range(at, at + size))))
        at += size
    return found


def by_definition(prediction, reference):
    """Zemla et al. 1999, with sets of places."""
    total = count = 0
    for tag, own in segments(reference):
        pairs = [other for its_tag, other in segments(prediction) if its_tag == tag and own & other]
        for other in pairs:
            common, extent = len(own & other), len(own | other)
            allowed = min(extent - common, common, len(own) // 2, len(other) // 2)
            total += (common + allowed) / extent * len(own)
            count += len(own)
        if not pairs:
            count += len(own)
    return 100 * total / count


def test_by_definition():
    rng = random.Random(1)
    for _ in range(300):
        rows = [
            "".join(rng.choice("HEC") * rng.randint(1, 6) for _ in range(rng.randint(1, 12)))[:30] for _ in range(2)
        ]
        size = min(map(len, rows))
        prediction, reference = (row[:size] for row in rows)
        assert sov([prediction], [reference])["score"] == pytest.approx(by_definition(prediction, reference))


def test_ends_may_be_off_and_segments_may_not_break():
    reference = "CCCCHHHHHHHHCCCC"
    assert sov([reference], [reference])["score"] == 100
    shifted, broken = "CCCCCHHHHHHHHCCC", "CCCCHHHCCHHHCCCC"
    agreement = [sum(map(str.__eq__, text, reference)) for text in (shifted, broken)]
    assert agreement == [14, 14]
    assert sov([shifted], [reference])["score"] == 100 > sov([broken], [reference])["score"]


def test_mean_over_sequences_and_what_is_refused():
    assert sov(["HHHH", "C"], ["HHHH", "H"])["score"] == 50
    assert load("sov").compute(predictions=[["H", "C"]], references=[["H", "C"]])["score"] == 100
    with pytest.raises(ValueError, match="row 0 has 2 predicted tags and 1 right ones"):
        sov([["H", "C"]], [["H"]])
    with pytest.raises(ValueError, match="nothing to score"):
        sov([], [])
