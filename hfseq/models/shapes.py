"""Check of the shapes of inputs, and change of those of an attention's."""

from collections.abc import Sequence

from torch import Tensor


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


def by_source(values: Tensor, sources: Tensor) -> Tensor:
    """Steps `[B * N, T, D]` of N sequences of each of B sources as `[B, N * T, D]`, as if of one long sequence.

    Attention makes no difference between steps. So it reads each source once for all sequences.
    """
    batch = sources.shape[0]
    return values if values.shape[0] == batch else values.reshape(batch, -1, values.shape[-1])


def by_sequence(values: Tensor, batch: int, length: int) -> Tensor:
    """The inverse of `by_source`: `[B, N * T, D]` as `[B * N, T, D]` for a batch of B * N sequences of length T."""
    return values if values.shape[0] == batch else values.reshape(batch, length, values.shape[-1])


def for_each(sources: Tensor, values: Tensor) -> Tensor:
    """Sources `[B, ...]` repeated for N sequences of each, `[B * N, ...]`, the batch of `values`."""
    batch, *shape = sources.shape
    if values.shape[0] == batch:
        return sources
    return sources.unsqueeze(1).expand(-1, values.shape[0] // batch, *shape).reshape(values.shape[0], *shape)
