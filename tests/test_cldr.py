"""The embedded pairs: held-out values, read back from the English text by code of its own, not by the generator's."""

import datetime as dt
import hashlib
import itertools
import json
import re
from collections import Counter, defaultdict

import processes
import pytest
from babel import Locale

from hfseq.data.embedded.cldr import cldr_pairs
from hfseq.data.splits import SPLITS, split_of
from hfseq.errors import InputError

HELD_OUT_KINDS = {
    *("date", "time", "datetime", "interval", "amount", "number", "percent", "unit", "relative"),
    *("territories", "languages", "locale"),
}
SIZES = {"train_size": 12_000, "validation_size": 600, "test_size": 1_200}
MONTHS = {month: n for n in range(1, 13) for month in (dt.date(2000, n, 1).strftime(f) for f in ("%B", "%b"))}


@pytest.fixture(scope="module")
def pairs():
    return cldr_pairs("en", "de", **SIZES)


def english_dates(text: str) -> set[dt.date]:
    """Every date in an English sentence, of any width, both ends of an interval included."""
    found = set()
    for month, day, year in re.findall(r"\b(\d{1,2})/(\d{1,2})/(\d\d)\b", text):
        found.add(dt.date(int(year) + (1900 if int(year) >= 50 else 2000), int(month), int(day)))
    # "Jan 30 – Feb 2, 2031", "Mar 5 – 9, 2031": what an end leaves unsaid is as at the other end.
    interval = re.fullmatch(r"(\w+) (\d+)(?:, (\d{4}))? – (?:([A-Z]\w+) )?(\d+), (\d{4})", text)
    if interval:
        month, day, year, last_month, last_day, last_year = interval.groups()
        found.add(dt.date(int(year or last_year), MONTHS[month], int(day)))
        found.add(dt.date(int(last_year), MONTHS[last_month or month], int(last_day)))
    else:
        for month, day, year in re.findall(r"\b([A-Z][a-z]+) (\d+), (\d{4})", text):
            found.add(dt.date(int(year), MONTHS[month], int(day)))
    return found


def english_minutes(text: str) -> set[tuple[int, int]]:
    found = set()
    for hour, minute, half in re.findall(r"\b(\d{1,2}):(\d\d)(?::\d\d)?(?: ([AP]M))?", text):
        found.add((int(hour) % 12 + (12 if half == "PM" else 0) if half else int(hour), int(minute)))
    return found


def english_number(text: str) -> float:
    (number,) = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
    return float(number.replace(",", ""))


def test_readers_of_this_test_read_english():
    day, next_month, next_year = dt.date(1963, 12, 31), dt.date(1964, 1, 2), dt.date(1964, 3, 4)
    assert english_dates("Tuesday, December 31, 1963, 8:45 PM") == english_dates("12/31/63") == {day}
    assert english_dates("Dec 31, 1963 – Mar 4, 1964") == {day, next_year}
    assert english_dates("Jan 2 – Mar 4, 1964") == {next_month, next_year}
    assert english_dates("Mar 2 – 4, 1964") == {dt.date(1964, 3, 2), next_year}
    assert english_minutes("1/2/64, 12:05:09 AM") == {(0, 5)} and english_minutes("08:20 – 15:30") == {
        (8, 20),
        (15, 30),
    }
    assert english_number("A$1,234.50") == 1234.5


def test_columns_sizes_and_kinds(pairs):
    assert tuple(pairs) == SPLITS
    assert [pairs[split].num_rows for split in SPLITS] == list(SIZES.values())
    assert all(pairs[split].column_names == ["en", "de", "kind"] for split in SPLITS)
    assert set(pairs["test"]["kind"]) == set(pairs["validation"]["kind"]) == HELD_OUT_KINDS
    assert set(pairs["train"]["kind"]) == HELD_OUT_KINDS | {"territory", "language"}
    # The mix of the test is that of training, so that a score on one speaks for the other.
    train, test = Counter(pairs["train"]["kind"]), Counter(pairs["test"]["kind"])
    for kind in HELD_OUT_KINDS - {"relative", "locale"}:
        assert test[kind] / 1_200 == pytest.approx(train[kind] / 12_000, abs=0.05)


@pytest.mark.parametrize(
    ("kinds", "parse"),
    [
        ({"date", "datetime", "interval"}, english_dates),
        ({"time", "datetime", "interval"}, english_minutes),
        ({"amount", "number", "percent", "unit", "relative"}, lambda text: {english_number(text)}),
    ],
    ids=["dates", "minutes", "numbers"],
)
def test_no_value_stands_in_two_splits(pairs, kinds, parse):
    found = {}
    for split in SPLITS:
        texts = [row["en"] for row in pairs[split] if row["kind"] in kinds]
        found[split] = {value for text in texts for value in parse(text)}
        assert len(found[split]) > 20
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other]


def test_every_date_sentence_was_read(pairs):
    for split in SPLITS:
        for row in pairs[split]:
            if row["kind"] in ("date", "datetime"):
                assert len(english_dates(row["en"])) == 1, row
            if row["kind"] == "interval":
                assert len(english_dates(row["en"]) | english_minutes(row["en"])) == 2, row


def test_names_of_the_test_stand_in_other_combinations_in_training(pairs):
    territories = set(Locale("en").territories.values())
    names = {row["en"] for row in pairs["train"] if row["kind"] == "territory"}
    assert 250 < len(names) <= len(territories) and names <= territories

    def combinations(split):
        rows = (row["en"] for row in pairs[split] if row["kind"] == "territories")
        return {frozenset(re.split(r", or |, and | or | and |, ", text)) for text in rows}

    train, test = combinations("train"), combinations("test")
    assert len(test) > 20 and not train & test
    plain = {name for combination in test for name in combination if name in territories}
    assert plain <= names


@pytest.mark.parametrize(
    ("source", "target"), [("en", "de"), ("de", "en"), ("en", "fr"), ("ja", "ar"), ("pt-BR", "ru"), ("fa", "sk")]
)
def test_sources_are_unique_and_determine_the_target(source, target):
    texts = defaultdict(set)
    for seed in (0, 1):
        pairs = cldr_pairs(source, target, train_size=2_000, validation_size=100, test_size=200, seed=seed)
        for split in SPLITS:
            assert len(set(pairs[split][source])) == pairs[split].num_rows
            for row in pairs[split]:
                texts[row[source]].add(row[target])
        sources, targets = ({side: set(pairs[side][column]) for side in SPLITS} for column in (source, target))
        assert not sources["test"] & (sources["train"] | sources["validation"])
        assert not targets["test"] & targets["train"]
    assert {text: found for text, found in texts.items() if len(found) > 1} == {}
    # No-break and thin spaces, direction marks, what Babel writes for a form that CLDR lacks.
    everything = "\n".join([*texts, *(text for found in texts.values() for text in found)])
    assert not re.search("[\u00a0\u2007\u2009\u202f\u061c\u200e\u200f{}]|duration-|length-|mass-|volume-", everything)
    assert all(text.strip() == text != "" for text in everything.split("\n"))


def test_known_translations(pairs):
    german = dict(zip(pairs["train"]["en"], pairs["train"]["de"], strict=True))
    assert german["Germany"] == "Deutschland" and german["Swedish"] == "Schwedisch"
    assert "Nauru" not in german  # an island and a language, which German tells apart
    # In May the long and the medium English date are one text for two German ones.
    may = [text for text in german if re.fullmatch(r"May \d+, \d{4}", text)]
    assert may == []
    weekdays = {"Monday": "Montag", "Wednesday": "Mittwoch", "Saturday": "Samstag", "Sunday": "Sonntag"}
    march = [text.replace(",", "").split() for text in german if re.fullmatch(r"\w+day, March \d+, \d{4}", text)]
    assert len(march) > 20
    for weekday, month, day, year in march:
        if weekday in weekdays:
            assert german[f"{weekday}, {month} {day}, {year}"] == f"{weekdays[weekday]}, {day}. März {year}"


def test_deterministic_in_seed_and_across_processes():
    code = (
        "import hashlib, json; from hfseq.data.embedded.cldr import cldr_pairs;"
        "pairs = cldr_pairs('en', 'de', train_size=400, validation_size=20, test_size=40, seed=3);"
        "print(hashlib.sha256(json.dumps([pairs[s].to_dict() for s in pairs]).encode()).hexdigest(), hash('a'))"
    )
    sizes = {"train_size": 400, "validation_size": 20, "test_size": 40}
    here, other = (cldr_pairs("en", "de", **sizes, seed=seed) for seed in (3, 4))
    there, seed = processes.run("-c", code).stdout.split()
    assert there == hashlib.sha256(json.dumps([here[s].to_dict() for s in here]).encode()).hexdigest()
    assert int(seed) != hash("a"), "the process hashes as this one does, the test would show nothing"
    assert here["test"]["en"] != other["test"]["en"]


def test_size_of_one_split_does_not_change_another():
    small = cldr_pairs("en", "de", train_size=50, validation_size=20, test_size=40)
    large = cldr_pairs("en", "de", train_size=500, validation_size=20, test_size=40)
    assert small["test"].to_dict() == large["test"].to_dict()


def test_split_of():
    assert {split_of(str(n)) for n in range(13)} == {"train"}
    shares = Counter(split_of(f"{n}.5") for n in range(10_000))
    assert shares["test"] == pytest.approx(1_000, rel=0.15) and shares["validation"] == pytest.approx(500, rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("en", "klingon"), r"unknown language 'klingon'.*pybabel --list-locales"),
        (("pt_BZ", "en"), r"unknown language 'pt_BZ'; did you mean .*pt_BR"),
        (("", "en"), r"unknown language ''"),
        (("d e", "en"), r"unknown language 'd e'"),
        (("pt-BR", "pt_BR"), r"the same: 'pt-BR' and 'pt_BR'"),
    ],
)
def test_bad_languages(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        cldr_pairs(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -1])
def test_bad_sizes(size):
    with pytest.raises(InputError, match=f"test size: {size} "):
        cldr_pairs("en", "de", train_size=10, validation_size=10, test_size=size)


def test_more_than_there_is(monkeypatch):
    monkeypatch.setattr("hfseq.data.embedded.cldr_forms._KINDS", {"relative": 1})
    with pytest.raises(InputError, match=r"test size: 100000 is more than the \d+ pairs there are"):
        cldr_pairs("en", "de", train_size=10, validation_size=10, test_size=100_000)
