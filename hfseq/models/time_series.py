"""Values of time series: reading them with what is missing, scaling them row by row, and their lags."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .shapes import check_shape


def read_values(
    name: str, values: Tensor, mask_name: str, mask: Tensor | None, size: int, frame_shape: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Values `[B, T, C]`, 0 where they are missing, and the mask of those that were observed, `[B, T, C]`.

    Args:
        name: Name of the values in messages.
        values: `[B, T, C]`, or `[B, T]` if C is 1. Integers become floats.
        mask_name: Name of the mask in messages.
        mask: 1 at observed values, in the shape of the values or `[B, T]`, which counts for all variates. None: all
            that are not NaN.
        size: Number C of variates.
        frame_shape: Shape of a frame whose pixels they are, `[B, T, *frame_shape]` being allowed, too; or None.

    Raises:
        ValueError: If a shape is wrong.
    """
    allowed: list[tuple[int | str, ...]] = [("batch", "length", size)]
    note = f" for input_size={size}"
    if size == 1:
        allowed.insert(0, ("batch", "length"))
    if frame_shape is not None:
        allowed.append(("batch", "length", *frame_shape))
        note += f" and frame_shape={list(frame_shape)}"
    check_shape(name, values.shape, *allowed, note=note)
    if not values.is_floating_point():
        values = values.float()
    if mask is None:
        observed = ~values.isnan()
    else:
        check_shape(mask_name, mask.shape, *dict.fromkeys((values.shape, values.shape[:2])))
        observed = mask != 0
    values = values.reshape(*values.shape[:2], size)
    observed = observed.reshape(*values.shape[:2], -1).expand_as(values)
    # At least float32, in which scales and likelihoods are computed, whatever the weights are.
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values.masked_fill(~observed, 0.0), observed


def with_variates(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Values `[..., C]` with their variates in a shape, that of one step of the values which `read_values` read."""
    return values.reshape(*values.shape[:-1], *shape)


def location_and_scale(values: Tensor, observed: Tensor, scaling: str | None) -> tuple[Tensor, Tensor]:
    """Location and scale of each row and variate, `[B, 1, C]`, from its own observed values.

    `mean` has location 0 and the mean magnitude as its scale (Salinas et al. 2020, section 3.3), `std` mean and
    standard deviation. A scale of 0, that of a constant, of zeros or of nothing observed, becomes 1.

    Args:
        values: `[B, T, C]`, 0 where they are missing.
        observed: True at observed values, `[B, T, C]`.
        scaling: `mean`, `std`, or None for location 0 and scale 1.
    """
    location = values.new_zeros(values.shape[0], 1, values.shape[2])
    if scaling is None:
        return location, torch.ones_like(location)
    count = observed.sum(dim=1, keepdim=True).clamp(min=1)
    if scaling == "mean":
        scale = values.abs().sum(dim=1, keepdim=True) / count
        return location, torch.where(scale > 0, scale, 1.0)
    # From the first observed value, so that a constant is one exactly, however large it is.
    start = values.gather(1, observed.long().argmax(dim=1, keepdim=True))
    moved = (values - start).masked_fill(~observed, 0.0)
    mean = moved.sum(dim=1, keepdim=True) / count
    variance = (moved - mean).masked_fill(~observed, 0.0).square().sum(dim=1, keepdim=True) / count
    return start + mean, torch.where(variance > 0, variance, 1.0).sqrt()


def last_observed(values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Last observed value up to each step, `[B, T, C]`, 0 where there is none yet, and the mask of where there is one.

    Args:
        values: `[B, T, C]`, 0 where they are missing.
        observed: True at observed values, `[B, T, C]`.
    """
    # Each round doubles the gaps that are filled. A traced graph has to serve any length.
    length = values.shape[1]
    rounds = 20 if torch.jit.is_tracing() else max(length - 1, 0).bit_length()
    for distance in (2**number for number in range(rounds)):
        earlier, known = (
            torch.cat([torch.zeros_like(one[:, :distance]), one[:, :-distance]], dim=1) for one in (values, observed)
        )
        values, observed = torch.where(observed, values, earlier), observed | known
    return values, observed


def differenced(
    values: Tensor, observed: Tensor, before: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Differences of the observed values from the last observed value before them (Box and Jenkins 1970).

    Args:
        values: `[B, T, C]`, 0 where they are missing.
        observed: True at observed values, `[B, T, C]`.
        before: Last observed value before the first step, `[B, 1, C]`, and True where there is one; None for none.

    Returns:
        The differences `[B, T, C]`, 0 where there is none; True where there is one, which is at every observed value
        but the first of a row; and the last observed value after all steps, in the form of `before`.
    """
    if before is None:
        before = torch.zeros_like(values[:, :1]), torch.zeros_like(observed[:, :1])
    filled, known = last_observed(torch.cat([before[0], values], dim=1), torch.cat([before[1], observed], dim=1))
    has = observed & known[:, :-1]
    return (values - filled[:, :-1]).masked_fill(~has, 0.0), has, (filled[:, -1:], known[:, -1:])


def with_mask(values: Tensor, observed: Tensor) -> Tensor:
    """Values `[B, T, C]` and their mask side by side, `[B, T, 2 C]`, as a lag brings both."""
    return torch.cat([values, observed.to(values.dtype)], dim=-1)


def lagged(series: Tensor, lags: Sequence[int], steps: int) -> list[Tensor]:
    """Values of the last steps at each lag, views `[B, steps, D]` in the order of the lags.

    Args:
        series: Values of all steps but the last one, `[B, T, D]`, with T + 1 >= `max(lags)` + `steps`.
        lags: Distances of at least 1.
        steps: Number of steps to look back from.
    """
    end = series.shape[1] + 1
    return [series[:, end - steps - lag : end - lag] for lag in lags]


def started(observed: Tensor) -> Tensor:
    """Steps from each row's first observation on, True in `[B, T]`; those before it are padding."""
    return observed.any(dim=2).long().cumsum(dim=1) > 0  # ONNX adds up no booleans


class StaticFeatures(nn.Module):
    """Embeddings of a row's categorical features.

    Args:
        cardinality: Number of values of each feature.
        widths: Width of the embedding of each.
    """

    def __init__(self, cardinality: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(
            nn.Embedding(count, width) for count, width in zip(cardinality, widths, strict=True)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map class ids `[B, n]` to `[B, sum(widths)]`."""
        return torch.cat([embed(ids) for embed, ids in zip(self.embeddings, features.unbind(1), strict=True)], dim=-1)
