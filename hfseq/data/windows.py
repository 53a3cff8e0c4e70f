"""Windows of series, cut when a batch is made: the past that a forecaster reads, and the horizon."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding

from hfseq.data.series import (
    Series,
    extended_stamps,
    static_ids,
    time_feature_names,
    time_features,
)
from hfseq.errors import InputError
from hfseq.forecasters import Needs


def origins(
    one: Series,
    horizon: int,
    *,
    start: int | None = None,
    count: int | None = None,
    stride: int | None = None,
    end: int | None = None,
) -> list[int]:
    """Origins of a rolling backtest: the numbers of values that are known when the horizon begins.

    Args:
        one: The series.
        horizon: Number of steps H of the horizon.
        start: First origin; None to count back from the end.
        count: Number of origins; None for 1, or with `start` for as many as there is room for.
        stride: Steps between origins; None for the horizon, whose windows then do not overlap.
        end: End of the last horizon; None for that of the series.

    Returns:
        Origins in ascending order, of windows with an observed value on both sides; fewer than `count` if the series
        is short.
    """
    end = len(one.target) if end is None else min(end, len(one.target))
    stride = horizon if stride is None else stride
    if start is None:
        found = [end - horizon - number * stride for number in range(count or 1)][::-1]
    else:
        found = list(range(start, end - horizon + 1, stride))[:count]
    seen = np.concatenate([[0], np.cumsum(~np.isnan(one.target))])
    return [at for at in found if at >= 1 and seen[at] > 0 and seen[at + horizon] > seen[at]]


def _float32(one: Series, values: np.ndarray) -> np.ndarray:
    """Values of a series in the precision of the models.

    Raises:
        InputError: One overflows, or all underflow, which would be infinite values or zeros without a word.
    """
    limits, sizes = np.finfo(np.float32), np.abs(values).reshape(len(values), -1)
    largest = float(np.nanmax(sizes, initial=0.0))
    if largest > float(limits.max) or 0 < largest < float(limits.tiny):
        step = int(np.nanargmax(np.where(np.isnan(sizes), -1.0, sizes).max(axis=1)))
        raise InputError(
            f"{one.place(step)}: series {one.item_id!r} has values of up to {largest:.3g}, but models compute with "
            f"magnitudes from {limits.tiny:.1e} to {limits.max:.1e}; use another unit"
        )
    return values.astype(np.float32)


class WindowCollator:
    """Collator that cuts windows out of series.

    Args:
        found: The series.
        needs: Inputs of the model.
        horizon: Number of steps H of the horizon.
        context_length: Steps before the horizon, for a model that reads any number.
        categories: Classes of each static feature, in the order of their ids.

    Raises:
        InputError: The series lack what the model needs: time stamps, covariates, static features; or their values
            are beyond the range of float32.
    """

    def __init__(
        self,
        found: Sequence[Series],
        needs: Needs,
        horizon: int,
        *,
        context_length: int,
        categories: Sequence[Sequence[str]] = (),
    ) -> None:
        self.series, self.needs, self.horizon = found, needs, horizon
        self.context = needs.context_length or context_length
        self.past = self.context + needs.longest_lag
        self.values = [_float32(one, one.target) for one in found]
        self.features = [self._features(one) for one in found]
        self.categories = [self._static(one, categories) for one in found] if needs.cardinality else []
        for one in found:
            if len(one.static_reals) < needs.num_static_reals:
                raise InputError(
                    f"{one.source}: series {one.item_id!r} has {len(one.static_reals)} static numbers, and the model "
                    f"needs {needs.num_static_reals}; JSON lines have them as feat_static_real"
                )

    def _features(self, one: Series) -> np.ndarray:
        """Time features, then covariates, of all steps for which they are known, `[N, F]`."""
        needs, parts = self.needs, []
        length = max(len(one.target) + self.horizon, len(one.covariates))
        if needs.num_time_features:
            if one.stamps is None or one.frequency is None:
                raise InputError(
                    f"{one.source}: the model reads {needs.num_time_features} time features, but there are no time "
                    "stamps; add them to the values"
                )
            names = time_feature_names(one.frequency)
            if needs.num_time_features not in (len(names), len(names) + 1):
                raise InputError(
                    f"{one.source}: the model reads {needs.num_time_features} time features, but frequency "
                    f"{one.frequency} has {len(names)} ({', '.join(names)}); give the --frequency of its training data"
                )
            stamps = one.stamps
            if len(stamps) < length:
                stamps = extended_stamps(stamps, one.frequency, length - len(stamps))
            parts.append(time_features(stamps, one.frequency))
            if needs.num_time_features > len(names):  # the age of the series, as in GluonTS
                parts.append(np.log10(2.0 + np.arange(len(stamps), dtype=np.float32))[:, None])
        if needs.num_covariates:
            if one.covariates.shape[1] != needs.num_covariates:
                raise InputError(
                    f"{one.source}: series {one.item_id!r} has {one.covariates.shape[1]} covariates, and the model "
                    f"reads {needs.num_covariates}; name them by --covariate_columns"
                )
            parts.append(_float32(one, one.covariates))
        length = min([length, *map(len, parts)])
        return np.concatenate([np.empty((length, 0), np.float32), *(part[:length] for part in parts)], axis=1)

    def _static(self, one: Series, categories: Sequence[Sequence[str]]) -> list[int]:
        """Ids of the static classes of a series."""
        needs = self.needs
        if len(one.static_categories) != len(needs.cardinality):
            raise InputError(
                f"{one.source}: series {one.item_id!r} has {len(one.static_categories)} static classes, and the model "
                f"needs {len(needs.cardinality)}; name their columns by --static_columns"
            )
        if categories:
            return static_ids(one, categories)
        ids = [int(name) if name.isdecimal() else -1 for name in one.static_categories]
        for number, size in zip(ids, needs.cardinality, strict=True):
            if not 0 <= number < size:
                raise InputError(
                    f"{one.source}: series {one.item_id!r}: the model knows static classes by number, 0 to {size - 1}"
                )
        return ids

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchEncoding:
        """Make a batch of windows.

        Args:
            rows: `series`, the number of a series, and `origin`, the number of its values before the horizon; values
                from there on may be unknown.

        Returns:
            Inputs of the model, `future_values` among them where a value of the horizon is known.

        Raises:
            InputError: A covariate of the horizon is unknown.
        """
        count, horizon, needs = len(rows), self.horizon, self.needs
        values = np.full((count, self.past + horizon), np.nan, dtype=np.float32)
        width = needs.num_time_features + needs.num_covariates
        features = np.zeros((count, self.past + horizon, width), dtype=np.float32)
        for row, window in enumerate(rows):
            number, origin = int(window["series"]), int(window["origin"])
            start, stop = max(0, origin - self.past), origin + horizon
            place = self.past - (origin - start)
            part = self.values[number][start:stop]
            values[row, place : place + len(part)] = part
            if width:
                part = self.features[number][start:stop]
                if len(part) < stop - start:
                    one = self.series[number]
                    raise InputError(
                        f"{one.source}: series {one.item_id!r}: covariates are known for {len(self.features[number])} "
                        f"steps, but the horizon ends after {stop}; add rows with covariates and without a value"
                    )
                features[row, place:] = part
        observed = ~np.isnan(values)
        values[~observed] = 0.0
        batch = {"past_values": values[:, : self.past], "past_observed_mask": observed[:, : self.past]}
        if observed[:, self.past :].any():
            batch["future_values"] = values[:, self.past :]
            batch["future_observed_mask"] = observed[:, self.past :]
        if needs.channels:
            batch = {name: array[..., None] for name, array in batch.items()}
            if not needs.masks_future and "future_values" in batch:
                self._check_complete(rows, batch.pop("future_observed_mask"))
        elif width or needs.fixed_horizon:  # which demands them also if there are none
            batch["past_time_features"] = features[:, : self.past]
            batch["future_time_features"] = features[:, self.past :]
        if needs.cardinality:
            batch["static_categorical_features"] = np.array([self.categories[int(one["series"])] for one in rows])
        if needs.num_static_reals:
            reals = [self.series[int(one["series"])].static_reals[: needs.num_static_reals] for one in rows]
            batch["static_real_features"] = np.array(reals, dtype=np.float32)
        return BatchEncoding({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()})

    def _check_complete(self, rows: Sequence[Mapping[str, Any]], observed: np.ndarray) -> None:
        for row in np.flatnonzero(~observed.all(axis=(1, 2)))[:1]:
            one, origin = self.series[int(rows[row]["series"])], int(rows[row]["origin"])
            raise InputError(
                f"{one.source}: series {one.item_id!r} has a missing value in the horizon after {origin} values, "
                "which this model cannot be trained or scored on; use a model of hfseq, or fill it"
            )
