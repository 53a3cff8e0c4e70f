"""Embedded translation pairs: values of Babel's CLDR data, formatted in two locales.

CLDR (the Unicode Common Locale Data Repository) describes how dates, times, amounts, units, lists and names are
written in about a thousand locales. Babel formats the same value in two of them, so every pair is a true translation
("Saturday, 5 March 2031" → "Samstag, 5. März 2031"). It is real localisation data, not open-domain translation.
"""

from __future__ import annotations

from hfseq.data.splits import draw_splits
from hfseq.errors import InputError, require
from hfseq.lazy import datasets


def cldr_pairs(
    source_lang: str,
    target_lang: str,
    *,
    train_size: int = 40_000,
    validation_size: int = 1_000,
    test_size: int = 2_000,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Generate translation pairs in two locales from Babel's CLDR data.

    The columns are `source_lang` and `target_lang` (under the given names) and `kind`: date, time, datetime, interval,
    amount, number, percent, unit, relative ("in 3 hours"), territories and languages (lists of names), locale ("German
    (Austria)"); only in `train` also territory and language, single names, since a name cannot be both held out and
    learned.

    Values are held out, not just sentences: [`split_of`] assigns every date, minute of the day, number, combination of
    names and locale to one split, whatever sentence it occurs in. A test date occurs in training neither in another
    width nor in a datetime or an interval, and a test number neither as an amount in another currency nor as a
    quantity. Only the integers up to 12, which carry the plural rules, are always in training. The split does not
    depend on `seed`, so a model never sees the test values of another seed.

    Sources are unique, and forms with the same text in the source language but not in the target language (in May, the
    long and the medium English dates) are left out, so that the source determines its target. Names missing in either
    locale are left out. On both sides no-break and thin spaces are written as plain spaces and invisible direction
    marks are removed, so that an exact match does not depend on invisible characters.

    Args:
        source_lang: A locale of Babel, such as "en", "pt_BR" or "pt-BR".
        target_lang: Another locale.
        train_size: Number of pairs in `train`.
        validation_size: Number of pairs in `validation`.
        test_size: Number of pairs in `test`.
        seed: Selects the pairs; the same seed gives the same pairs in every process.

    Raises:
        InputError: Babel does not have a locale, both locales are the same, a size is below 1 or larger than the
            number of pairs there are, or Babel is not installed.
    """
    require("babel", extra="train", use="the embedded translation pairs")
    from hfseq.data.embedded.cldr_forms import PairGenerator, parse_locale

    source, target = parse_locale(source_lang), parse_locale(target_lang)
    if source == target:
        raise InputError(f"source and target language are the same: {source_lang!r} and {target_lang!r}; give two")
    columns = (source_lang, target_lang, "kind")
    return draw_splits(columns, (train_size, validation_size, test_size), seed, PairGenerator(source, target).rows)
