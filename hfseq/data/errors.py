"""The one exception for what a user got wrong, and its messages."""

from importlib.util import find_spec


class InputError(ValueError):
    """Bad input: a file, a line, a column or a flag.

    The message is one line that names the culprit and says what would be right; a recipe prints it without a
    traceback and exits with 1.
    """


def require(*packages: str, extra: str, use: str = "this") -> None:
    """Refuse to go on without optional packages, before the work that ends with them; imports nothing.

    Args:
        packages: Their names, as they are imported.
        extra: That of hfseq which brings them.
        use: Names what needs them: a flag, say.

    Raises:
        InputError: One is not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(f"{use} needs {' and '.join(missing)}: pip install 'hfseq[{extra}]'")


def one_line(error: object, *, named: bool = False) -> str:
    """The message of an exception, or other text, on one line of 500 characters at most.

    Args:
        error: It.
        named: Whether the exception's type stands before its message.
    """
    message = f"{type(error).__name__}: {error}" if named else str(error)
    return " ".join(message.split())[:500]
