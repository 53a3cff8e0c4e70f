"""The exception for invalid user input, and helpers for its messages."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class InputError(ValueError):
    """Invalid user input, such as a file, a line, a column or a flag.

    The message is one line that names the cause and the remedy; recipes print it without a traceback and exit with
    status 1.
    """


def require(*packages: str, extra: str | None = None, use: str = "this") -> None:
    """Check that optional packages are installed, without importing them, before any work that needs them.

    Args:
        packages: Import names of the packages.
        extra: Extra of hfseq that installs them; None if there is none.
        use: Feature or flag that needs them, for the message.

    Raises:
        InputError: If a package is not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        wanted = " ".join(missing) if extra is None else f"'hfseq[{extra}]'"
        raise InputError(f"{use} needs {' and '.join(missing)}: pip install {wanted}")


def one_line(error: object, *, named: bool = False) -> str:
    """The message of an exception, or other text, on one line of at most 500 characters.

    Args:
        error: The exception or text.
        named: Prepend the type of the exception.
    """
    message = f"{type(error).__name__}: {error}" if named else str(error)
    return " ".join(message.split())[:500]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the known word closest to a misspelt one, "; did you mean X?"; empty if none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


@contextmanager
def blaming(flags: str) -> Iterator[None]:
    """Convert any exception that a library raises for the values of some flags to an `InputError` that names them.

    Args:
        flags: The flags whose values are passed to the library.

    Raises:
        InputError: If the library, or a package that it needs, rejects them.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # trackers, optimizers and plugins raise their own types
        raise InputError(f"{flags}: {one_line(error, named=not str(error))}") from error
