"""The one exception for what a user got wrong, and its messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


class InputError(ValueError):
    """Bad input: a file, a line, a column or a flag.

    The message is one line that names the culprit and says what would be right; a recipe prints it without a
    traceback and exits with 1.
    """


def require(*packages: str, extra: str | None = None, use: str = "this") -> None:
    """Refuse to go on without optional packages, before the work that ends with them; imports nothing.

    Args:
        packages: Their names, as they are imported.
        extra: That of hfseq which brings them; None for packages that no extra has.
        use: Names what needs them: a flag, say.

    Raises:
        InputError: One is not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        wanted = " ".join(missing) if extra is None else f"'hfseq[{extra}]'"
        raise InputError(f"{use} needs {' and '.join(missing)}: pip install {wanted}")


def one_line(error: object, *, named: bool = False) -> str:
    """The message of an exception, or other text, on one line of 500 characters at most.

    Args:
        error: It.
        named: Whether the exception's type stands before its message.
    """
    message = f"{type(error).__name__}: {error}" if named else str(error)
    return " ".join(message.split())[:500]


@contextmanager
def blaming(flags: str) -> Iterator[None]:
    """Turn whatever a library raises for the values of some flags into an `InputError` that names them.

    Args:
        flags: Those that the library was called with.

    Raises:
        InputError: The library, or a package that it wants, refused them.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each tracker, optimizer and plugin has its own
        raise InputError(f"{flags}: {one_line(error, named=not str(error))}") from error
