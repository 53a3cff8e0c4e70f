"""Schemes of tags: found in data, counted as their scorers count, and grouped whole, against naive readings."""

import random
import re
import warnings

import pytest
from seqeval.metrics import classification_report

from hfseq import metrics
from hfseq.data.tag_schemes import SCHEMES, check_tags, count_breaks, find_scheme, split_tag, to_iob2

STRICT = ("IOBES", "BILOU")
# One hyphenated, one that hyphens surround, one that seqeval takes for a mean.
KINDS = ("PER", "product-name", "-x-", "micro avg")


def draw(rng, length=12):
    """Random entities: (start, end, kind), touching ones among them."""
    entities, start = [], 0
    while start < length:
        end = min(length, start + rng.choice([1, 1, 2, 3]))
        if rng.random() < 0.6:
            entities.append((start, end, rng.choice(KINDS)))
        start = end
    return entities


def write(scheme, entities, length=12):
    """Tags of entities by the definition of a scheme."""
    tags = ["O"] * length
    for start, end, kind in entities:
        inner = ["I"] * (end - start)
        touched = any(other_end == start and other == kind for _, other_end, other in entities)
        touching = any(other_start == end and other == kind for other_start, _, other in entities)
        if scheme == "IOB2" or (scheme == "IOB1" and touched):
            inner[0] = "B"
        elif scheme == "IOE2" or (scheme == "IOE1" and touching):
            inner[-1] = "E"
        elif scheme in STRICT:
            first, last, single = {"IOBES": "BES", "BILOU": "BLU"}[scheme]
            inner[0], inner[-1] = first, last
            if len(inner) == 1:
                inner = [single]
        tags[start:end] = [f"{prefix}-{kind}" for prefix in inner]
    return tags


def read(scheme, tags):
    """Entities of tags that may break their scheme, by a definition of what its scorer counts."""
    pairs = [(tag[0], tag[2:]) for tag in tags]
    spans = {(start, end) for start in range(len(tags)) for end in range(start + 1, len(tags) + 1)}
    if scheme in STRICT:
        pattern = "B I* E|S" if scheme == "IOBES" else "B I* L|U"
        whole = re.compile(pattern.replace(" ", ""))
        return {
            (start, end, pairs[start][1])
            for start, end in spans
            if len({kind for _, kind in pairs[start:end]}) == 1
            and whole.fullmatch("".join(prefix for prefix, _ in pairs[start:end]))
        }

    def cut(place):
        """Whether no entity goes on from one word to the next; conlleval's startOfChunk and endOfChunk in one."""
        if place in (0, len(tags)):
            return True
        (left, kind), (right, other) = pairs[place - 1], pairs[place]
        return "O" in (left, right) or kind != other or right == "B" or left == "E"

    return {
        (start, end, pairs[start][1])
        for start, end in spans
        if all(prefix != "O" for prefix, _ in pairs[start:end])
        and cut(start)
        and cut(end)
        and not any(cut(place) for place in range(start + 1, end))
    }


def sequences(scheme, seed, count=60):
    """Right sequences, and predicted ones: half of them with some tags drawn anew, so that they break the scheme."""
    rng = random.Random(seed)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in SCHEMES[scheme] for kind in KINDS)]
    right = [write(scheme, draw(rng)) for _ in range(count)]
    given = [
        [rng.choice(tags) if row % 2 and rng.random() < 0.4 else tag for tag in right[row]] for row in range(count)
    ]
    return given, right


@pytest.mark.parametrize("scheme", SCHEMES)
def test_entities_are_counted_as_the_scorer_of_the_scheme_does(scheme):
    given, right = sequences(scheme, 1)
    sides = [
        {(row, *entity) for row, tags in enumerate(side) for entity in read(scheme, tags)} for side in (given, right)
    ]
    assert len(sides[0] & sides[1]) > 50 and len(sides[0] - sides[1]) > 20 and count_breaks(scheme, given) > 50
    with warnings.catch_warnings(action="error"):
        found = metrics.load("seqeval").compute(predictions=given, references=right)
    hits = len(sides[0] & sides[1])
    assert found["precision"] == pytest.approx(100 * hits / len(sides[0]))
    assert found["recall"] == pytest.approx(100 * hits / len(sides[1]))
    assert found["f1"] == found["score"] == pytest.approx(200 * hits / (len(sides[0]) + len(sides[1])))
    assert found["signature"].startswith(f"scheme:{scheme}|mode:{'strict' if scheme in STRICT else 'conlleval'}|")
    for kind in KINDS:
        own = [{entity for entity in side if entity[3] == kind} for side in sides]
        assert found["by_type"][kind]["support"] == len(own[1])
        assert found["by_type"][kind]["f1"] == pytest.approx(200 * len(own[0] & own[1]) / (len(own[0]) + len(own[1])))
    assert set(found["by_type"]) == set(KINDS)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_is_found_and_the_same_entities_score_the_same(scheme):
    rng = random.Random(2)
    pairs = [(draw(rng), draw(rng)) for _ in range(40)]
    given, right = ([write(scheme, side) for side in sides] for sides in zip(*pairs, strict=True))
    tags = {tag for row in right for tag in row}
    assert find_scheme(tags, right) == scheme and count_breaks(scheme, right) == 0
    plain = ([write("IOB2", side) for side in sides] for sides in zip(*pairs, strict=True))
    expected = metrics.load("seqeval").compute(**dict(zip(("predictions", "references"), plain, strict=True)))
    found = metrics.load("seqeval").compute(predictions=given, references=right)
    assert 0 < found["f1"] < 100
    same = ("f1", "precision", "recall", "by_type")
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}
    assert list(map(to_iob2, right)) == [write("IOB2", entities) for _, entities in pairs]


def test_iob2_is_counted_as_before():
    given, right = sequences("IOB2", 3)
    plain = [
        [[tag.replace("-x-", "x").replace("micro avg", "m") for tag in row] for row in side] for side in (given, right)
    ]
    report = classification_report(plain[1], plain[0], output_dict=True)["micro avg"]
    found = metrics.load("seqeval").compute(predictions=given, references=right)
    assert [found["f1"], found["precision"], found["recall"]] == pytest.approx(
        [100 * report[name] for name in ("f1-score", "precision", "recall")]
    )


@pytest.mark.parametrize(
    ("rows", "scheme", "breaks"),
    [
        # Without a B there is nothing to tell IOB1 from tags of inside and outside alone.
        (["I-A I-A O I-B"], "IOB1", 0),
        (["I-A B-A O I-B I-A"], "IOB1", 0),
        (["B-A B-A O"], "IOB2", 0),
        (["O B-A", "O I-A B-A", "I-A"], "IOB1", 1),
        (["O B-A", "B-A I-A", "I-A"], "IOB2", 1),
        (["I-A E-A I-A O"], "IOE1", 0),
        (["I-A E-A E-A O"], "IOE2", 0),
        (["O S-A O"], "IOBES", 0),
        (["B-A E-A O", "B-A O", "E-A", "B-A E-B"], "IOBES", 3),
        (["O U-A O"], "BILOU", 0),
        (["O U-A U-A B-A L-A I-B"], "BILOU", 2),
        (["O L-A"], "BILOU", 1),
        # Prefixes alone, and in lower case.
        (["B I O B"], "IOB2", 0),
        (["B I E S", "S B E"], "IOBES", 0),
        (["o b-per i-per u-per"], "BILOU", 1),
        (["O O"], "IOB2", 0),
        # Where all words are in chunks.
        (["B-NP I-NP B-VP"], "IOB2", 0),
    ],
)
def test_what_tells_schemes_apart(rows, scheme, breaks):
    rows = [row.split() for row in rows]
    assert find_scheme({tag for row in rows for tag in row}, rows) == scheme
    assert count_breaks(scheme, rows) == breaks


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ("NOUN VERB O", "'NOUN' begins with none of B-, I-, E-, S-, L-, U-"),
        ("-LRB- NN-TL WP$ #", "'#' begins with none"),
        ("O B-PER I-PER MISC", "'MISC' begins with none"),
        ("O B-PER M-PER E-PER", "'M-PER' begins with none"),
        ("O B- I-", "'B-' begins with none"),
        ("O B-PER I", "'I' has no type"),
        ("O B-PER L-PER S-PER", "no scheme has the prefixes B, L, S"),
        ("B-PER", "there is no 'O'"),
        ("O S", "no scheme without types has only the tags O, S"),
        ("O U", "no scheme without types"),
    ],
)
def test_tags_that_are_classes_of_words(tags, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        check_tags(tags.split())


def test_prefix_and_type():
    assert split_tag("B-product-name") == ("B", "product-name")
    assert split_tag("b-per") == ("B", "per")
    assert split_tag("I") == ("I", "_") and split_tag("o") == ("O", "")
    assert [split_tag(tag) for tag in ("NOUN", "B-", "-B", "O-PER", "BI-PER", "")] == [None] * 6


def test_parts_of_a_word_belong_to_its_entity():
    tags = ["S-A", "S-A", "O", "B-A", "E-A", "E-A", "S-B", "S-A", "S-A"]
    joined = [False, True, False, False, True, False, False, False, False]
    assert to_iob2(tags, joined) == ["B-A", "I-A", "O", "B-A", "I-A", "I-A", "B-B", "B-A", "B-A"]
    assert to_iob2(tags) == ["B-A", "B-A", "O", "B-A", "I-A", "B-A", "B-B", "B-A", "B-A"]
    with pytest.raises(ValueError, match="'X' begins with none"):
        to_iob2(["X"])


def score(given, right, **options):
    return metrics.load("seqeval").compute(predictions=[given.split()], references=[right.split()], **options)


def test_scores_by_hand():
    # Two neighbours of one type, of which one is found; lenient reading made one entity of them.
    assert score("U-A O O", "U-A U-A O")["f1"] == pytest.approx(200 / 3)
    # After O an I begins an entity for conlleval; without its E, strictly, a B does not.
    assert score("O I-A I-A", "O B-A I-A")["f1"] == 100
    assert score("O B-A I-A", "O B-A E-A")["f1"] == 0
    assert score("o b-per", "o b-per")["by_type"] == {
        "per": {"f1": 100, "precision": 100, "recall": 100, "support": 1}
    }
    assert score("B I O", "B I O")["by_type"].keys() == {"_"}
    assert score("O O", "O O")["f1"] == 0
    # Nothing but O is right: the predictions say.
    assert score("S-A O", "O O")["signature"].startswith("scheme:IOBES|")
    assert score("B-A O", "B-A O", scheme="IOBES")["f1"] == 0


@pytest.mark.parametrize(
    ("given", "right", "options", "message"),
    [
        ("NOUN", "NOUN", {}, "'NOUN' is no tag of an entity"),
        ("S-A", "B-A", {}, "'S-A' is no tag of IOB2"),
        ("O", "U-A", {"scheme": "IOB1"}, "'U-A' is no tag of IOB1"),
        ("O", "B-A", {"scheme": "BIO"}, "no scheme 'BIO'; there are IOB2, IOB1, IOE2, IOE1, IOBES, BILOU"),
        ("O O", "S-A L-A", {}, "no scheme has the prefixes L, S"),
    ],
)
def test_tags_that_cannot_be_scored(given, right, options, message):
    with pytest.raises(ValueError, match=message):
        score(given, right, **options)
