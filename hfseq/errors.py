"""The exception for invalid user input, and helpers for its messages."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class InputError(ValueError):
    """Invalid input: a file, a line, a column or a flag.

    The message is one line that names the culprit and says what would be valid; a recipe prints it without a
    traceback and exits with code 1.
    """


class MissingColumn(InputError):
    """A column that the data lack, or in which no row has a value."""


def require(*packages: str, extra: str | None = None, use: str = "this") -> None:
    """Check that optional packages are installed, without importing them, before any work that would be lost.

    Args:
        packages: Import names.
        extra: Extra of hfseq that installs them; None for packages of no extra.
        use: Name of what needs them, such as a flag.

    Raises:
        InputError: One is not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        wanted = " ".join(missing) if extra is None else f"'hfseq[{extra}]'"
        raise InputError(f"{use} needs {' and '.join(missing)}: pip install {wanted}")


def did_you_mean(word: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return the end of a message about an unknown name: the closest known one.

    Args:
        word: The unknown name.
        known: The known ones.
        otherwise: Hint if none is close; by default a list of all.
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; {otherwise or 'there are ' + ', '.join(known)}"


def one_line(error: object, longest: int = 500, *, named: bool = False) -> str:
    """Return the message of an exception, or other text, on one line.

    Args:
        error: Exception or text.
        longest: Maximum number of characters; a longer text is cut and ends with "…".
        named: Put the exception's type before its message.
    """
    message = f"{type(error).__name__}: {error}" if named else str(error)
    line = " ".join(message.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


@contextmanager
def blaming(flags: str) -> Iterator[None]:
    """Turn whatever a library raises for the values of some flags into an `InputError` that names them.

    Args:
        flags: Flags whose values the library was called with.

    Raises:
        InputError: The library, or a package that it needs, rejected them.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each tracker, optimizer and plugin has its own
        # The message of some is but a name: `KeyError: 'added_tokens'`.
        named = not str(error) or isinstance(error, LookupError | AttributeError)
        raise InputError(f"{flags}: {one_line(error, named=named)}") from error
