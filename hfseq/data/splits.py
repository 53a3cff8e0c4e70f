"""Assignment of values to the splits of embedded data, the same in every process."""

import hashlib

SPLITS = ("train", "validation", "test")
# Percentages of all values.
_VALIDATION_SHARE, _TEST_SHARE = 5, 10


def split_of(value: str) -> str:
    """Return the split of a value: "train", "validation" or "test".

    Args:
        value: A value as Python writes it: a date "2031-03-05", a minute of the day "15:07", a number "12.5" (no
            trailing zeros, no exponent), sorted codes of names "AT DE FR", a locale "de_AT".
    """
    if value.isdecimal() and int(value) <= 12:
        return "train"
    bucket = int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") % 100
    if bucket < _TEST_SHARE:
        return "test"
    return "validation" if bucket < _TEST_SHARE + _VALIDATION_SHARE else "train"
