"""The one exception for what a user got wrong."""


class InputError(ValueError):
    """Bad input: a file, a line, a column or a flag.

    The message is one line that names the culprit and says what would be right; a recipe prints it without a
    traceback and exits with 1.
    """
