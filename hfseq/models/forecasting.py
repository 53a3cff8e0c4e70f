"""Use of a forecaster, whatever runs its network: sampled paths, and likelihoods of values."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import SampleTSPredictionOutput
from transformers.time_series_utils import NegativeBinomialOutput, NormalOutput, StudentTOutput

from .cache import RecurrentCacheLayer, cache_layers, check_states
from .shapes import check_shape
from .time_series import differenced, location_and_scale, read_values, started, with_mask, with_variates

OUTPUTS = {"student_t": StudentTOutput, "normal": NormalOutput, "negative_binomial": NegativeBinomialOutput}
"""Value of `distribution_output` to the class of transformers with its parameters and their domains."""

Params = tuple[Tensor, ...]
"""Parameters of a distribution of scaled values, each `[B, T, C]`; of a point forecaster the values themselves."""


class Row(NamedTuple):
    """Properties of the rows of a batch that no step changes.

    Attributes:
        loc: Location of the values, `[B, 1, C]`.
        scale: Scale of the values, `[B, 1, C]`.
        static: Static features, `[B, D]`, location and scale among them.
    """

    loc: Tensor
    scale: Tensor
    static: Tensor

    def scaled(self, values: Tensor, observed: Tensor) -> Tensor:
        """Scaled values `[B, T, C]`, 0 where they are missing."""
        return ((values - self.loc) / self.scale).masked_fill(~observed, 0.0)


class Past(NamedTuple):
    """Past of the rows of a batch, as the network reads it.

    Attributes:
        row: Location, scale and static features.
        series: Scaled values and their mask, `[B, max lag + context, 2 C]`; 0 before the values that were passed.
        valid: True from each row's first observation on, `[B, context + 1]`, the first step of the horizon included.
        level: Last observed values `[B, 1, C]`, from which a model with `differencing` adds up differences, or None.
        known: True where there is such a value, `[B, 1, C]`, or None.
    """

    row: Row
    series: Tensor
    valid: Tensor
    level: Tensor | None = None
    known: Tensor | None = None


class ForecastingMixin:
    """Paths and likelihoods from a network that gives the parameters of the next values.

    A class with it calls `_set_distribution`, and defines `run_steps`, `_embed_categories` and `_owner`.
    """

    config: Any
    distribution_output: Any
    counts: bool
    lags: list[int]
    reach: int

    def _set_distribution(self, config: Any) -> None:
        """Set the attributes; reading a field of a config takes microseconds, which are noticeable in a step."""
        self.distribution_output = None if config.loss == "mse" else OUTPUTS[config.distribution_output]()
        self.counts = isinstance(self.distribution_output, NegativeBinomialOutput)
        self.lags, self.reach = config.lags_sequence, max(config.lags_sequence)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters of the distribution in order; of a point forecaster `value` alone."""
        return ("value",) if self.distribution_output is None else tuple(self.distribution_output.args_dim)

    @property
    def _owner(self) -> tuple[int, str]:
        """Number of layers of the network's cache, and the name that they are marked with."""
        raise NotImplementedError

    def _embed_categories(self, categories: Tensor) -> Tensor:
        """Embeddings `[B, D]` of static class ids `[B, n]`."""
        raise NotImplementedError

    def run_steps(
        self, series: Tensor, time: Tensor | None, static: Tensor, valid: Tensor | None, cache: Cache
    ) -> Params:
        """Parameters of the distributions of scaled values, `[B, steps, C]` each.

        Args:
            series: Scaled values and their mask at all steps but the last one, `[B, max lag + steps - 1, 2 C]`.
            time: Time features up to the last step, `[B, >= steps, F]`, or None.
            static: Static features `[B, D]`.
            valid: True at valid steps, `[B, steps]`; None if all are.
            cache: State after the earlier steps; updated in place.
        """
        raise NotImplementedError

    def read_start(self, past: Tensor, observed: Tensor, categories: Tensor | None, reals: Tensor | None) -> Past:
        """Scale the past, and keep what the network reads of it.

        Args:
            past: Values before the horizon, 0 where they are missing, `[B, T, C]`; T is at least the longest lag.
            observed: True at observed values, `[B, T, C]`.
            categories: Static class ids, `[B, num_static_categorical_features]`, or None.
            reals: Static real features, `[B, num_static_real_features]`, or None.

        Raises:
            ValueError: If static features are missing, or of another shape.
        """
        context, level, known = self.config.context_length, None, None
        if self.config.differencing:
            past, observed, (level, known) = differenced(past, observed)
        row = self._row(*self._scale(past, observed, context), categories, reals)
        series = nn.functional.pad(with_mask(row.scaled(past, observed), observed), (0, 0, self.reach, 0))
        valid = nn.functional.pad(started(observed), (0, 1), value=True)
        if context is not None:
            series, valid = series[:, -(context + self.reach) :], valid[:, -(context + 1) :]
        return Past(row, series, valid, level, known)

    @torch.no_grad()
    def generate(
        self,
        past_values: Tensor,
        past_time_features: Tensor | None = None,
        future_time_features: Tensor | None = None,
        past_observed_mask: Tensor | None = None,
        static_categorical_features: Tensor | None = None,
        static_real_features: Tensor | None = None,
        prediction_length: int | None = None,
        num_parallel_samples: int | None = None,
    ) -> SampleTSPredictionOutput:
        """Sample paths over the horizon, each value given the path so far (Salinas et al. 2020, section 3).

        The context is read once; all paths continue from its state in one batch. A point forecaster feeds its
        predictions back and gives one path. Samples come from torch's global generator.

        Args:
            past_values: Values before the horizon, as in `forward`.
            past_time_features: As in `forward`.
            future_time_features: Time features of the horizon, `[B, prediction_length, F]`.
            past_observed_mask: As in `forward`.
            static_categorical_features: As in `forward`.
            static_real_features: As in `forward`.
            prediction_length: Number of steps to predict; None: that of the config.
            num_parallel_samples: Number S of paths; None: that of the config.

        Returns:
            `sequences`, `[B, S, prediction_length]`, or `[B, S, prediction_length, C]` if `past_values` are
            `[B, T, C]`; frames of pixels if they are frames.

        Raises:
            ValueError: As in `forward`, if there is no `prediction_length`, or if a point forecaster is asked for
                several paths.
        """
        length = self.config.prediction_length if prediction_length is None else prediction_length
        if length is None:
            raise ValueError("prediction_length is None: set it in the config, or pass it to generate()")
        if length < 1:
            raise ValueError(f"prediction_length={length} is impossible, it must be at least 1")
        samples = self._number_of_paths(num_parallel_samples)
        past, observed = self.read_past(past_values, past_observed_mask)
        batch, steps, size = past.shape
        time = self._time_features("past", past_time_features, batch, steps)
        future_time = self._time_features("future", future_time_features, batch, length)
        row, series, valid, level, known = self.read_start(
            past, observed, static_categorical_features, static_real_features
        )
        if time is not None and future_time is not None:
            time = torch.cat([time, future_time[:, :1]], dim=1)
            future_time = future_time.repeat_interleave(samples, dim=0)
        # The first step of the horizon depends on the past alone, so that all paths of a row share it.
        cache = DynamicCache()
        params = self.run_steps(series, time, row.static, valid, cache)
        params = tuple(one[:, -1:].repeat_interleave(samples, dim=0) for one in params)
        cache.batch_repeat_interleave(samples)
        row = Row(*(part.repeat_interleave(samples, dim=0) for part in row))
        path = series.new_ones(batch * samples, self.reach + length, 2 * size)
        path[:, : self.reach] = series[:, -self.reach :].repeat_interleave(samples, dim=0)
        sequences = series.new_empty(batch * samples, length, size)
        for step in range(length):
            if step:
                now = None if future_time is None else future_time[:, step : step + 1]
                params = self.run_steps(path[:, step : self.reach + step], now, row.static, None, cache)
            values, scaled = self._draw(params, row)
            sequences[:, step], path[:, self.reach + step, :size] = values.squeeze(1), scaled.squeeze(1)
            if not step and known is not None:
                # The first value of a series has no difference.
                path[:, self.reach] *= known.squeeze(1).repeat_interleave(samples, dim=0).repeat(1, 2)
        sequences = sequences.unflatten(0, (batch, samples))
        if level is not None:
            sequences = level.unsqueeze(1) + sequences.cumsum(dim=2)
        return SampleTSPredictionOutput(sequences=with_variates(sequences, past_values.shape[2:]))

    @torch.no_grad()
    def log_likelihood(
        self,
        past_values: Tensor,
        past_time_features: Tensor | None = None,
        past_observed_mask: Tensor | None = None,
        static_categorical_features: Tensor | None = None,
        static_real_features: Tensor | None = None,
        loc: Tensor | None = None,
        scale: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Log-likelihood of each observed value given those before it, by which anomalies are found.

        A stream is read in calls of one or more steps with the same `cache`, a `DynamicCache()` at first, whose size
        does not grow. It keeps location, scale and static features, which only the first call takes. The result is
        that of one long call with that `loc` and `scale`.

        Args:
            past_values: Values `[B, T]`, or `[B, T, C]` for C variates, or frames; `context_length` does not limit
                them.
            past_time_features: As in `forward`.
            past_observed_mask: As in `forward`.
            static_categorical_features: As in `forward`.
            static_real_features: As in `forward`.
            loc: Location, `[B, 1]` or `[B, 1, C]`, as `forward` returns it for known values; together with `scale`.
                None: that of all values of this call, so that through it each value depends on later ones.
            scale: Scale, in the same shape.
            cache: State after the earlier steps; updated in place.

        Returns:
            `[B, T]`, or `[B, T, C]`; 0 at values that were not observed, and with `differencing` at the first value of
            a row.

        Raises:
            ValueError: If the model is a point forecaster, if `loc` or `scale` are wrong, if they or static features
                are passed with a filled cache, and as in `forward`, but the past may be short.
        """
        if self.distribution_output is None:
            raise ValueError("a model with loss='mse' has no distribution, so that no value has a likelihood")
        values, observed = self._read("past", past_values, past_observed_mask)
        batch, length, _ = values.shape
        time = self._time_features("past", past_time_features, batch, length)
        layer = None
        if cache is not None:
            # Behind those of the stack, which would refuse a further layer that has counted steps.
            count, name = self._owner
            layer = cache_layers(cache, count + 1, name)[-1]
        if layer is not None and layer.states is not None:
            given = (static_categorical_features, static_real_features, loc, scale)
            if any(one is not None for one in given):
                raise ValueError(
                    "loc, scale and static features are those in the cache; pass them with the first call only"
                )
            row, history, begun, last = self._stream(layer, batch)
        else:
            row, history, begun, last = None, None, observed.new_zeros(batch, 1), None
        if self.config.differencing:
            values, observed, last = differenced(values, observed, last)
        if row is None or history is None:
            if loc is None and scale is None:
                loc, scale = self._scale(values, observed, None)
            else:
                loc, scale = self._check_scale(values, loc, scale)
            row = self._row(loc, scale, static_categorical_features, static_real_features)
            history = row.loc.new_zeros(batch, self.reach, 2 * self.config.input_size)
        scaled = row.scaled(values, observed)
        series = torch.cat([history, with_mask(scaled, observed)], dim=1)
        valid = started(observed) | begun
        params = self.run_steps(series[:, :-1], time, row.static, valid, DynamicCache() if cache is None else cache)
        if layer is not None:
            # A copy, since a slice would keep the whole chunk.
            layer.update((*row, series[:, -self.reach :].clone(), valid[:, -1:].clone(), *(last or ())), 0)
        scores = self._log_prob(params, values, scaled, row)
        return with_variates(scores.masked_fill(~observed, 0.0), past_values.shape[2:])

    def output_distribution(
        self, params: Params, loc: Tensor | None = None, scale: Tensor | None = None
    ) -> Distribution:
        """Distribution of the values, elementwise, with its mean, variance, and samples.

        Args:
            params: Parameters of the scaled values, `[B, T]` or `[B, T, C]` each, as `forward` returns them.
            loc: Location `[B, 1]` or `[B, 1, C]`; None for 0.
            scale: Scale in the same shape; None for 1.

        Raises:
            ValueError: If the model is a point forecaster.
        """
        if self.distribution_output is None:
            raise ValueError("a model with loss='mse' has no distribution: its params are the scaled predictions")
        named = dict(zip(self.distribution_output.args_dim, params, strict=True))
        if self.counts:
            if scale is not None:  # of the gamma distribution that a negative binomial one mixes over
                named["logits"] = named["logits"] + scale.log()
        else:
            if scale is not None:
                named["loc"], named["scale"] = named["loc"] * scale, named["scale"] * scale
            if loc is not None:
                named["loc"] = named["loc"] + loc
        # Checks of the arguments would wait for a GPU at each step.
        return self.distribution_output.distribution_class(**named, validate_args=False)

    def _read(self, name: str, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values of the past or the future, and their mask, `[B, T, C]`; counts are checked to be counts."""
        names = f"{name}_values", f"{name}_observed_mask"
        size = self.config.input_size
        values, observed = read_values(names[0], values, names[1], mask, size, self.config.frame_shape)
        if self.counts and not torch.jit.is_tracing() and not torch.compiler.is_compiling():
            wrong = values[(values < 0) | (values != values.floor())]
            if wrong.numel():
                raise ValueError(
                    f"{name}_values has the value {wrong[0].item():g}: distribution_output='negative_binomial' is for "
                    "counts, which are integers of at least 0"
                )
        return values, observed

    def read_past(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values before the horizon, 0 where they are missing, and their mask, `[B, T, C]`.

        Args:
            values: `[B, T]` or `[B, T, C]`.
            mask: 1 at observed values, in that shape or `[B, T]`; None: all but NaN.

        Raises:
            ValueError: If a shape is wrong, if there are fewer steps than the longest lag, or if counts are no counts.
        """
        past, observed = self._read("past", values, mask)
        if past.shape[1] < self.reach:
            raise ValueError(
                f"past_values has {past.shape[1]} steps, but lags_sequence reaches back {self.reach}: at least "
                f"{self.reach} steps are needed, of which the first ones may be missing"
            )
        return past, observed

    def _scale(self, values: Tensor, observed: Tensor, context: int | None) -> tuple[Tensor, Tensor]:
        """Location and scale `[B, 1, C]` of the last steps of values `[B, T, C]`, `context` in number; None for all.

        Where a variate has no observation there, those of all that came before count.
        """
        if context is not None:
            # Slices of any length, of which a traced graph needs both.
            recent = torch.cat([torch.zeros_like(observed[:, :-context]), observed[:, -context:]], dim=1)
            observed = recent | (observed & ~recent.any(dim=1, keepdim=True))
            values = values.masked_fill(~observed, 0.0)
        return location_and_scale(values, observed, self.config.scaling)

    def _check_scale(self, values: Tensor, loc: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and scale that were passed with values `[B, T, C]`, as `[B, 1, C]`."""
        if loc is None or scale is None:
            raise ValueError("loc and scale belong together: pass both, or neither")
        batch, _, size = values.shape
        allowed: list[tuple[int, ...]] = [(batch, 1)] if size == 1 else []
        allowed += [(batch, 1, size)] + (
            [] if self.config.frame_shape is None else [(batch, 1, *self.config.frame_shape)]
        )
        for name, given in (("loc", loc), ("scale", scale)):
            check_shape(name, given.shape, *allowed)
        if not bool((scale > 0).all()):
            raise ValueError(f"scale has values that are not positive: {scale.flatten().tolist()}")
        return loc.reshape(batch, 1, size).to(values), scale.reshape(batch, 1, size).to(values)

    def _row(self, loc: Tensor, scale: Tensor, categories: Tensor | None, reals: Tensor | None) -> Row:
        """Rows of location and scale `[B, 1, C]`, with their static features."""
        config, parts = self.config, []
        self._check_static(len(loc), categories, reals)
        if categories is not None and config.num_static_categorical_features:
            parts.append(self._embed_categories(categories))
        if reals is not None:
            parts.append(reals)
        if config.scaling == "std":
            parts.append((loc.sign() * loc.abs().log1p()).squeeze(1))
        if config.scaling is not None:
            parts.append(scale.log().squeeze(1))
        static = torch.cat([part.to(loc.dtype) for part in parts], dim=-1) if parts else loc[:, 0, :0]
        return Row(loc, scale, static)

    def _check_static(self, batch: int, categories: Tensor | None, reals: Tensor | None) -> None:
        """Check the shapes of static features, and that those which the model reads are there."""
        config = self.config
        for name, given, count in (
            ("static_categorical_features", categories, config.num_static_categorical_features),
            ("static_real_features", reals, config.num_static_real_features),
        ):
            if given is not None:
                check_shape(name, given.shape, (batch, count), note=f" for num_{name}={count}")
            elif count:
                raise ValueError(f"{name} are missing: a model with num_{name}={count} needs them, ({batch}, {count})")

    def _time_features(self, name: str, features: Tensor | None, batch: int, length: int) -> Tensor | None:
        """Check time features `[B, T, F]` of the past or the future; None if the model reads none."""
        count = self.config.num_time_features + self.config.num_dynamic_real_features
        of = f"num_time_features + num_dynamic_real_features = {count}"
        if features is not None:
            check_shape(f"{name}_time_features", features.shape, (batch, length, count), note=f" for {of}")
        elif count:
            raise ValueError(
                f"{name}_time_features are missing: a model with {of} needs them, ({batch}, {length}, {count})"
            )
        return features if count else None

    def _log_prob(self, params: Params, values: Tensor, scaled: Tensor, row: Row) -> Tensor:
        """Log-likelihoods `[B, T, C]` of values, given as they are and scaled; finite at missing ones."""
        if self.counts:
            return self.output_distribution(params, scale=row.scale).log_prob(values)
        # In units of the scale, where no digits are lost to the location.
        return self.output_distribution(params).log_prob(scaled) - row.scale.log()

    def _draw(self, params: Params, row: Row) -> tuple[Tensor, Tensor]:
        """Samples, or a point forecaster's predictions, as they are and scaled, `[B, 1, C]`."""
        if self.counts:
            values = self.output_distribution(params, scale=row.scale).sample()
            return values, values / row.scale
        scaled = params[0] if self.distribution_output is None else self.output_distribution(params).sample()
        return row.loc + row.scale * scaled, scaled

    def _number_of_paths(self, asked: int | None) -> int:
        """Number of paths that `generate` samples."""
        if self.distribution_output is None:
            if asked not in (None, 1):
                raise ValueError(
                    f"num_parallel_samples={asked}: a model with loss='mse' predicts one path; leave it out"
                )
            return 1
        samples: int = self.config.num_parallel_samples if asked is None else asked
        if samples < 1:
            raise ValueError(f"num_parallel_samples={samples} is impossible, it must be at least 1")
        return samples

    def _stream(
        self, layer: RecurrentCacheLayer, batch: int
    ) -> tuple[Row, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """State of a stream.

        Returns:
            Rows; the last scaled values with their mask, `[B, max lag, 2 C]`; rows with an observation, `[B, 1]`; and
            with `differencing` the last observed values with their mask, as `differenced` takes them.
        """
        size, states = self.config.input_size, layer.states or ()
        one = torch.Size((batch, 1, size))
        parts = 7 if self.config.differencing else 5
        width = states[2].shape[-1] if len(states) == parts else 0
        shapes = [
            one,
            one,
            torch.Size((batch, width)),
            torch.Size((batch, self.reach, 2 * size)),
            torch.Size((batch, 1)),
            *[one] * (parts - 5),
        ]
        check_states(states, shapes, self._owner[0])
        return Row(*states[:3]), states[3], states[4], (states[5], states[6]) if parts == 7 else None
