"""Check of the shapes of inputs."""

from collections.abc import Sequence


def check_shape(name: str, shape: Sequence[int], *allowed: Sequence[int | str], note: str = "") -> None:
    """Raise a `ValueError` unless a shape is one of those allowed.

    Args:
        name: Name of the tensor.
        shape: Its shape.
        allowed: The shapes that are right. A text describes a size that may vary; only a batch may be empty.
        note: End of the message.
    """
    for expected in allowed:
        if len(shape) == len(expected):
            for size, right in zip(shape, expected, strict=True):
                if size != right and not (isinstance(right, str) and (size > 0 or right == "batch")):
                    break
            else:
                return
    listed = " or ".join(str(tuple(expected)).replace("'", "") for expected in allowed)
    positive = ", each at least 1" if 0 in shape[1:] else ""
    raise ValueError(f"{name} has shape {tuple(shape)}, expected {listed}{positive}{note}")
