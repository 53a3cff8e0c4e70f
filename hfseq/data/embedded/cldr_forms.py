"""Random values formatted in two locales by Babel; see `cldr`."""

from __future__ import annotations

import datetime as dt
import difflib
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

from babel import Locale, dates, lists, numbers, units
from babel.core import UnknownLocaleError
from babel.localedata import locale_identifiers

from hfseq.data.embedded.tables import load_table
from hfseq.data.splits import SPLITS, split_of
from hfseq.errors import InputError

# One hundred consecutive years: "3/5/31" stands for one date only, here and in locales that write four digits.
_FIRST_DAY, _DAYS = dt.date(1950, 1, 1), 36_525

_DATA = load_table("cldr.json")
# Kind of pair to its share of the sentences.
_KINDS: dict[str, int] = _DATA["kinds"]
_DATE_WIDTHS = ("full", "long", "medium", "short")
# Width of the date to that of the time beside it: the wider times name a time zone.
_TIME_WIDTHS = {"full": "short", "long": "short", "medium": "medium", "short": "short"}
_RELATIVE_UNITS = dict(dates.TIMEDELTA_UNITS)

# Spaces of all widths become plain ones; invisible direction marks are removed.
_VISIBLE = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f", " ") | dict.fromkeys("\u061c\u200e\u200f", ""))

# Minimum number of names in common to form lists of; some locales have hardly any.
_FEWEST_NAMES = 20
# Maximum share of single names in the training split.
_NAMES_SHARE = 0.05


def parse_locale(name: str) -> Locale:
    """Return the locale of a name.

    Raises:
        InputError: Babel does not have it.
    """
    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError):
        close = difflib.get_close_matches(name.replace("-", "_"), locale_identifiers(), n=3, cutoff=0.5)
        meant = f"; did you mean {' or '.join(close)}?" if close else ";"
        raise InputError(f"unknown language {name!r}{meant} `pybabel --list-locales` lists all") from None


@cache
def _dates(split: str) -> list[dt.date]:
    days = (_FIRST_DAY + dt.timedelta(days=n) for n in range(_DAYS))
    return [day for day in days if split_of(day.isoformat()) == split]


@cache
def _minutes(split: str) -> list[dt.time]:
    times = (dt.time(hour, minute) for hour in range(24) for minute in range(60))
    return [time for time in times if split_of(time.isoformat("minutes")) == split]


@cache
def _quantities(split: str) -> list[int]:
    return [n for n in range(1, 100) if split_of(str(n)) == split]


def _number(rng: random.Random, split: str, digits: int, decimals: int) -> Decimal:
    """Draw a number of `split` with at most `digits` digits before and `decimals` after the point."""
    while True:
        scale = 10 ** rng.randint(0, decimals)
        number = Decimal(rng.randrange(10 ** rng.randint(1, digits) * scale)) / scale
        # 12.50 and 12.5 are one value, as are 1E+2 and 100.
        number = number.quantize(Decimal(1)) if number == number.to_integral_value() else number.normalize()
        if split_of(str(number)) == split:
            return number


# One function per kind, from form and value to the text in a locale, "" if the locale has no such form.


def _date(width: Any, value: dt.date, locale: Locale) -> str:
    return dates.format_date(value, width, locale=locale)


def _time(width: Any, value: dt.time, locale: Locale) -> str:
    return dates.format_time(value, width, locale=locale)


def _datetime(width: Any, value: dt.datetime, locale: Locale) -> str:
    # As in babel.dates.format_datetime, with a time that names no time zone.
    pattern = str(dates.get_datetime_format(width, locale=locale)).replace("'", "")
    time = _time(_TIME_WIDTHS[width], value.time(), locale)
    return pattern.replace("{0}", time).replace("{1}", _date(width, value.date(), locale))


def _interval(skeleton: str, value: tuple[Any, Any], locale: Locale) -> str:
    return dates.format_interval(*value, skeleton, locale=locale)


def _amount(form: Any, value: Decimal, locale: Locale) -> str:
    currency, style = form
    return numbers.format_currency(value, currency, locale=locale, format_type=style)


def _plain_number(_: str, value: Decimal, locale: Locale) -> str:
    return numbers.format_decimal(value, locale=locale)


def _percent(_: str, value: Decimal, locale: Locale) -> str:
    return numbers.format_percent(value / 100, locale=locale, decimal_quantization=False)


def _unit(form: Any, value: Decimal, locale: Locale) -> str:
    unit, length = form
    try:
        text = units.format_unit(value, unit, length, locale=locale)
    except units.UnknownUnitError:
        return ""
    # If CLDR has no such form for this number, Babel writes "3 length-kilometer".
    return "" if unit in text else text


def _relative(form: Any, value: int, locale: Locale) -> str:
    unit, width, direction = form
    seconds = direction * value * _RELATIVE_UNITS[unit]
    # A threshold above every value keeps "in 33 hours" from becoming "in 1 day".
    try:
        return dates.format_timedelta(seconds, unit, threshold=1e6, add_direction=True, format=width, locale=locale)
    except KeyError:
        return ""


def _list(style: Any, value: Sequence[str], locale: Locale) -> str:
    return lists.format_list(value, style, locale=locale)


def _visible(source: str | None, target: str | None) -> tuple[str, str]:
    return (source or "").translate(_VISIBLE).strip(), (target or "").translate(_VISIBLE).strip()


def _unambiguous(pairs: dict[Any, tuple[str, str]]) -> dict[Any, tuple[str, str]]:
    """Return the pairs without empty texts whose source text has no other target."""
    targets = defaultdict(set)
    for source, target in pairs.values():
        targets[source].add(target)
    return {key: pair for key, pair in pairs.items() if all(pair) and len(targets[pair[0]]) == 1}


class PairGenerator:
    """Generator of pairs in two locales, restricted to the forms that both locales have."""

    def __init__(self, source: Locale, target: Locale):
        self.source, self.target = source, target
        months = [[dt.date(2031, month, day) for day in (5, 25)] for month in range(1, 13)]
        noon = dt.time(12, 34, 56)
        self.date_forms = [self._forms(_DATE_WIDTHS, _date, days) for days in months]
        self.datetime_forms = [
            self._forms(_DATE_WIDTHS, _datetime, [dt.datetime.combine(day, noon) for day in days]) for days in months
        ]
        # Of every plural class of CLDR: "1 Fuß" is "1 foot" and "1 ft", while "2 feet" and "2 ft" differ.
        counts = [1, 2, 3, 7, 11, 21, 33]
        some_numbers = [*map(Decimal, counts), Decimal(100), Decimal("4321"), Decimal("7.5")]
        amounts = [(currency, style) for currency in _DATA["currencies"] for style in ("standard", "name")]
        self.amount_forms = self._forms(amounts, _amount, some_numbers)
        quantities = [(unit, length) for unit in _DATA["units"] for length in ("long", "short")]
        self.unit_forms = self._forms(quantities, _unit, some_numbers)
        relatives = [
            (unit, width, sign) for unit in _RELATIVE_UNITS for width in ("long", "short") for sign in (1, -1)
        ]
        self.relative_forms = self._forms(relatives, _relative, counts)
        self.time_forms = self._forms(["short", "medium"], _time, [noon])
        self.list_forms = self._forms(["standard", "or"], _list, [["X", "Y"], ["X", "Y", "Z"]])
        self.territories, self.languages = self._names()
        self.locales = self._locales()

    def _forms(
        self, forms: Sequence[Any], render: Callable[[Any, Any, Locale], str], probes: Iterable[Any]
    ) -> list[Any]:
        """Return the forms that both locales have and whose source text determines the target text."""
        kept = list(forms)
        for probe in probes:
            clear = _unambiguous({form: self._pair(render, form, probe) for form in forms})
            kept = [form for form in kept if form in clear]
        return kept

    def _pair(self, render: Callable[[Any, Any, Locale], str], form: Hashable, value: Any) -> tuple[str, str]:
        return _visible(render(form, value, self.source), render(form, value, self.target))

    def _names(self) -> list[dict[str, tuple[str, str]]]:
        """Return code to name in both languages, of territories and of languages."""
        territories = self.source.territories.keys() & self.target.territories.keys() - {"ZZ", "XA", "XB"}
        languages = {code for code in self.source.languages.keys() & self.target.languages.keys() if len(code) == 2}
        names = {code: (self.source.territories[code], self.target.territories[code]) for code in territories}
        names |= {code: (self.source.languages[code], self.target.languages[code]) for code in languages}
        # English "Nauru" is the island and its language, German "Nauru" and "Nauruisch".
        clear = _unambiguous({code: _visible(*pair) for code, pair in sorted(names.items())})
        return [{code: pair for code, pair in clear.items() if code in codes} for codes in (territories, languages)]

    def _locales(self) -> dict[str, list[tuple[str, str]]]:
        """Return split to display names in both languages, of locales such as de_AT."""
        found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
        for identifier in sorted(locale_identifiers()):
            language, _, territory = identifier.partition("_")
            if language in self.languages and territory in self.territories:
                locale = Locale(language, territory)
                pair = _visible(locale.get_display_name(self.source), locale.get_display_name(self.target))
                found[split_of(identifier)].append(pair)
        return found

    def _draw(self, kind: str, split: str, rng: random.Random) -> tuple[str, str]:
        """Draw a value of `split` and write it in both languages; two empty texts if that is impossible."""
        match kind:
            case "date":
                day = rng.choice(_dates(split))
                return self._write(_date, self.date_forms[day.month - 1], day, rng)
            case "time":
                time = rng.choice(_minutes(split)).replace(second=rng.randrange(60))
                return self._write(_time, self.time_forms, time, rng)
            case "datetime":
                day, time = rng.choice(_dates(split)), rng.choice(_minutes(split)).replace(second=rng.randrange(60))
                return self._write(_datetime, self.datetime_forms[day.month - 1], dt.datetime.combine(day, time), rng)
            case "interval" if rng.random() < 0.2:
                start, end = sorted(rng.sample(_minutes(split), 2))
                return self._pair(_interval, "Hm", (start, end))
            case "interval":
                days = _dates(split)
                first = rng.choice(days)
                # The day drawn or the next one of the split, so that the gaps are similar in all splits.
                last = bisect_left(days, first + dt.timedelta(days=rng.randint(1, 60)))
                return self._pair(_interval, "yMMMd", (first, days[last])) if last < len(days) else ("", "")
            case "amount" if self.amount_forms:
                form = rng.choice(self.amount_forms)
                decimals = min(2, numbers.get_currency_precision(form[0]))
                return self._pair(_amount, form, _number(rng, split, 4, decimals))
            case "number":
                return self._pair(_plain_number, "", _number(rng, split, 4, 2))
            case "percent":
                return self._pair(_percent, "", _number(rng, split, 2, 1))
            case "unit":
                return self._write(_unit, self.unit_forms, _number(rng, split, 3, 1), rng)
            case "relative":
                return self._write(_relative, self.relative_forms, rng.choice(_quantities(split)), rng)
            case "territories" | "languages":
                return self._draw_list(getattr(self, kind), split, rng)
            case "locale" if self.locales[split]:
                return rng.choice(self.locales[split])
            case _:
                return "", ""

    def _write(
        self, render: Callable[[Any, Any, Locale], str], forms: Sequence[Any], value: Any, rng: random.Random
    ) -> tuple[str, str]:
        return self._pair(render, rng.choice(forms), value) if forms else ("", "")

    def _draw_list(self, names: dict[str, tuple[str, str]], split: str, rng: random.Random) -> tuple[str, str]:
        if len(names) < _FEWEST_NAMES or not self.list_forms:
            return "", ""
        codes = rng.sample(list(names), rng.randint(2, 4))
        while split_of(" ".join(sorted(codes))) != split:
            codes = rng.sample(list(names), len(codes))
        sources, targets = zip(*(names[code] for code in codes), strict=True)
        style = self.list_forms[-1] if rng.random() < 0.25 else self.list_forms[0]
        return _visible(_list(style, sources, self.source), _list(style, targets, self.target))

    def rows(self, split: str, size: int, rng: random.Random) -> list[tuple[str, str, str]]:
        """Draw `size` rows (source, target, kind) of `split` without duplicate sources."""
        rows: dict[str, tuple[str, str, str]] = {}
        if split == "train":
            names = [(pair, "territory") for pair in self.territories.values()]
            names += [(pair, "language") for pair in self.languages.values()]
            rng.shuffle(names)
            rows = {source: (source, target, kind) for (source, target), kind in names[: int(size * _NAMES_SHARE)]}
        kinds, weights = list(_KINDS), list(_KINDS.values())
        misses = 0
        while len(rows) < size:
            kind = rng.choices(kinds, weights)[0]
            source, target = self._draw(kind, split, rng)
            if source and target and source not in rows:
                rows[source] = (source, target, kind)
                misses = 0
            elif (misses := misses + 1) > 1_000:
                # Some kinds are exhausted before others; after a thousand consecutive misses nothing is left.
                raise InputError(f"{split} size: {size} is more than the {len(rows)} pairs there are; give fewer")
        drawn = list(rows.values())
        rng.shuffle(drawn)
        return drawn
