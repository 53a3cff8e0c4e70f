"""Head of forecasters: autoregressive recurrent or convolutional networks, as DeepAR (Salinas et al. 2020)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SampleTSPredictionOutput, Seq2SeqTSPredictionOutput
from transformers.time_series_utils import NegativeBinomialOutput, NormalOutput, StudentTOutput
from transformers.utils.generic import can_return_tuple

from .cache import RecurrentCacheLayer, cache_layers, check_states
from .configuration_base import SequenceConfig
from .dropout import Dropout
from .modeling_base import Head
from .shapes import check_shape
from .time_series import (
    StaticFeatures,
    differenced,
    lagged,
    location_and_scale,
    read_values,
    started,
    with_mask,
)

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


class ForPrediction(Head):
    r"""Forecaster: a distribution of each value given those before it (DeepAR, Salinas et al. 2020).

    At step t the stack reads, for each lag l, the values $z_{t-l}$ and which of them were observed, then the time
    features of step t, and the static features with the scale of the row. Its output gives the parameters of the
    distribution of $z_t$ (eq. 1). Values are scaled row by row; see `location_and_scale`. Steps before a row's first
    observation are padding; any other missing value is read as 0 with its mask. So neither padding, nor what stands in
    place of a missing value, nor the other rows change a result. With `differencing` all of this is about the
    differences of the values from the last observed one before them; see `differenced`.

    Args:
        config: The configuration; it is copied and stays unchanged. `input_size` is the number of variates, which are
            independent of each other given the past. `PredictionFields` has the fields of this head.

    Raises:
        ValueError: If `bidirectional=True`, or if a field is set that is for models of tokens or of other features.
    """

    main_input_name = "past_values"

    def __init__(self, config: SequenceConfig) -> None:
        config = config.for_one_stack("ForPrediction")
        super().__init__(config)
        self.model = self.backbone_class(config)
        # A dropped value would be gone, unlike a dropped feature of an embedding.
        self.model.dropout = Dropout(0.0)
        self.dropout = Dropout(config.dropout, config.variational_dropout)
        self.static_embeddings = None
        if config.num_static_categorical_features:
            self.static_embeddings = StaticFeatures(config.cardinality, config.embedding_dimension)
        self.distribution_output = None if config.loss == "mse" else OUTPUTS[config.distribution_output]()
        count = 1 if self.distribution_output is None else len(self.distribution_output.args_dim)
        self.parameter_projection = nn.Linear(config.hidden_size, count * config.input_size)
        self.counts = isinstance(self.distribution_output, NegativeBinomialOutput)
        # Read once: reading a field of a config takes microseconds, which are noticeable in a step of generation.
        self.lags, self.reach = config.lags_sequence, max(config.lags_sequence)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: Tensor,
        past_time_features: Tensor | None = None,
        past_observed_mask: Tensor | None = None,
        static_categorical_features: Tensor | None = None,
        static_real_features: Tensor | None = None,
        future_values: Tensor | None = None,
        future_time_features: Tensor | None = None,
        future_observed_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqTSPredictionOutput:
        r"""Predict each step from the observed ones before it, by teacher forcing.

        In a `Trainer`, `label_names=["future_values"]` makes `evaluate()` return a loss. The Trainer counts items only
        where there are `labels`, so that with gradient accumulation it averages the losses of the batches.

        Args:
            past_values: Values before the horizon, `[B, T]`, or `[B, T, C]` for C variates.
            past_time_features: Time features, then other covariates, `[B, T, F]`, F being `num_time_features` +
                `num_dynamic_real_features`. What stands before the first observation does not matter.
            past_observed_mask: 1 at observed values, in the shape of the values or `[B, T]`. None: all but NaN. What
                stands at the others does not matter.
            static_categorical_features: Class ids of each row, `[B, num_static_categorical_features]`.
            static_real_features: `[B, num_static_real_features]`.
            future_values: Values of the horizon, `[B, P]` or `[B, P, C]`.
            future_time_features: Time features of the horizon, `[B, P, F]`.
            future_observed_mask: As `past_observed_mask`, of `future_values`.
            output_hidden_states: Whether to return the inputs of the stack and the output of each layer.
            num_items_in_batch: Number of observed values to divide the loss by; None: those of this batch.
            kwargs: Ignored.

        Returns:
            `params`, the parameters of the distributions of scaled values, each `[B, P]` or `[B, P, C]`, of the
            horizon if there are `future_values`, else of the context; `loc` and `scale`, `[B, 1]` or `[B, 1, C]`, all
            three of the differences if the model has `differencing`;
            `static_features` `[B, D]`; and with `future_values` the `loss`: the negative log-likelihood of all
            observed values of context and horizon (eq. 2), or with `loss="mse"` their squared errors in units of the
            scale, divided by their number.

        Raises:
            ValueError: If a shape is wrong, if time or static features are missing, if the past is shorter than the
                longest lag, or if counts are no counts.
        """
        values, observed = self._read_past(past_values, past_observed_mask)
        batch, length, _ = values.shape
        context = min(length, self.config.context_length or length)
        time, horizon = self._time_features("past", past_time_features, batch, length), 0
        if future_values is not None:
            future, present = self._read("future", future_values, future_observed_mask)
            horizon = future.shape[1]
            after = self._time_features("future", future_time_features, batch, horizon)
            values, observed = torch.cat([values, future], dim=1), torch.cat([observed, present], dim=1)
            time = None if time is None or after is None else torch.cat([time, after], dim=1)
        if self.config.differencing:
            values, observed, _ = differenced(values, observed)
        past, past_observed = values[:, :length], observed[:, :length]
        row = self._row(*self._scale(past, past_observed, context), static_categorical_features, static_real_features)
        valid = nn.functional.pad(started(past_observed), (0, horizon), value=True)
        steps = context + horizon
        scaled = row.scaled(values, observed)
        series = nn.functional.pad(with_mask(scaled, observed), (0, 0, self.reach, 0))[:, :-1]
        outputs = self.model(
            input_features=self._inputs(series, time, row.static, steps),
            attention_mask=_mask(valid[:, -steps:]),
            use_cache=False,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        params, loss = self._params(outputs.last_hidden_state), None
        if future_values is not None:
            values, scaled, observed = values[:, -steps:], scaled[:, -steps:], observed[:, -steps:]
            if self.distribution_output is None:
                losses = (params[0] - scaled).square()
            else:
                losses = -self._log_prob(params, values, scaled, row)
            count = observed.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = losses.masked_fill(~observed, 0.0).sum() / count
        flat = past_values.dim() == 2
        return Seq2SeqTSPredictionOutput(
            loss=loss,
            params=tuple(_flat(one[:, -(horizon or context) :], flat) for one in params),
            decoder_hidden_states=outputs.hidden_states,
            loc=_flat(row.loc, flat),
            scale=_flat(row.scale, flat),
            static_features=row.static,
        )

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
            `[B, T, C]`.

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
        past, observed = self._read_past(past_values, past_observed_mask)
        batch, steps, size = past.shape
        context = min(steps, self.config.context_length or steps)
        level, known = None, None
        if self.config.differencing:
            past, observed, (level, known) = differenced(past, observed)
        row = self._row(*self._scale(past, observed, context), static_categorical_features, static_real_features)
        time = self._time_features("past", past_time_features, batch, steps)
        future_time = self._time_features("future", future_time_features, batch, length)
        if time is not None and future_time is not None:
            time = torch.cat([time, future_time[:, :1]], dim=1)
            future_time = future_time.repeat_interleave(samples, dim=0)
        series = nn.functional.pad(with_mask(row.scaled(past, observed), observed), (0, 0, self.reach, 0))
        valid = nn.functional.pad(started(observed)[:, -context:], (0, 1), value=True)
        # The first step of the horizon depends on the past alone, so that all paths of a row share it.
        outputs = self.model(
            input_features=self._inputs(series, time, row.static, context + 1),
            attention_mask=_mask(valid),
            use_cache=True,
            return_dict=True,
        )
        hidden, cache = outputs.last_hidden_state[:, -1:].repeat_interleave(samples, dim=0), outputs.cache
        cache.batch_repeat_interleave(samples)
        row = Row(*(part.repeat_interleave(samples, dim=0) for part in row))
        path = series.new_ones(batch * samples, self.reach + length, 2 * size)
        path[:, : self.reach] = series[:, -self.reach :].repeat_interleave(samples, dim=0)
        sequences = series.new_empty(batch * samples, length, size)
        for step in range(length):
            if step:
                now = None if future_time is None else future_time[:, step : step + 1]
                inputs = self._inputs(path[:, : self.reach + step], now, row.static, 1)
                hidden = self.model(input_features=inputs, cache=cache, return_dict=True).last_hidden_state
            values, scaled = self._draw(self._params(hidden), row)
            sequences[:, step], path[:, self.reach + step, :size] = values.squeeze(1), scaled.squeeze(1)
            if not step and known is not None:
                # The first value of a series has no difference.
                path[:, self.reach] *= known.squeeze(1).repeat_interleave(samples, dim=0).repeat(1, 2)
        sequences = sequences.unflatten(0, (batch, samples))
        if level is not None:
            sequences = level.unsqueeze(1) + sequences.cumsum(dim=2)
        return SampleTSPredictionOutput(sequences=_flat(sequences, past_values.dim() == 2))

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
            past_values: Values `[B, T]`, or `[B, T, C]` for C variates; `context_length` does not limit them.
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
            layer = cache_layers(cache, self.model.stack.num_layers + 1, self.config.model_type)[-1]
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
                loc, scale = self._scale(values, observed, length)
            else:
                loc, scale = self._check_scale(values, loc, scale)
            row = self._row(loc, scale, static_categorical_features, static_real_features)
            history = row.loc.new_zeros(batch, self.reach, 2 * self.config.input_size)
        scaled = row.scaled(values, observed)
        series = torch.cat([history, with_mask(scaled, observed)], dim=1)
        valid = started(observed) | begun
        outputs = self.model(
            input_features=self._inputs(series[:, :-1], time, row.static, length),
            attention_mask=_mask(valid),
            cache=cache,
            use_cache=cache is not None,
            return_dict=True,
        )
        if layer is not None:
            # A copy, since a slice would keep the whole chunk.
            layer.update((*row, series[:, -self.reach :].clone(), valid[:, -1:].clone(), *(last or ())), 0)
        scores = self._log_prob(self._params(outputs.last_hidden_state), values, scaled, row)
        return _flat(scores.masked_fill(~observed, 0.0), past_values.dim() == 2)

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
        values, observed = read_values(names[0], values, names[1], mask, self.config.input_size)
        if self.counts and not torch.jit.is_tracing() and not torch.compiler.is_compiling():
            wrong = values[(values < 0) | (values != values.floor())]
            if wrong.numel():
                raise ValueError(
                    f"{name}_values has the value {wrong[0].item():g}: distribution_output='negative_binomial' is for "
                    "counts, which are integers of at least 0"
                )
        return values, observed

    def _read_past(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values before the horizon, and their mask, `[B, T, C]`."""
        past, observed = self._read("past", values, mask)
        if past.shape[1] < self.reach:
            raise ValueError(
                f"past_values has {past.shape[1]} steps, but lags_sequence reaches back {self.reach}: at least "
                f"{self.reach} steps are needed, of which the first ones may be missing"
            )
        return past, observed

    def _scale(self, values: Tensor, observed: Tensor, context: int) -> tuple[Tensor, Tensor]:
        """Location and scale `[B, 1, C]` of the last steps of values `[B, T, C]`, `context` in number.

        Where a variate has no observation there, those of all that came before count.
        """
        if context < values.shape[1]:
            recent = observed.clone()
            recent[:, :-context] = False
            observed = torch.where(recent.any(dim=1, keepdim=True), recent, observed)
            values = values.masked_fill(~observed, 0.0)
        return location_and_scale(values, observed, self.config.scaling)

    def _check_scale(self, values: Tensor, loc: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and scale that were passed with values `[B, T, C]`, as `[B, 1, C]`."""
        if loc is None or scale is None:
            raise ValueError("loc and scale belong together: pass both, or neither")
        batch, _, size = values.shape
        for name, given in (("loc", loc), ("scale", scale)):
            check_shape(name, given.shape, *([(batch, 1)] if size == 1 else []), (batch, 1, size))
        if not bool((scale > 0).all()):
            raise ValueError(f"scale has values that are not positive: {scale.flatten().tolist()}")
        return loc.view(batch, 1, size).to(values), scale.view(batch, 1, size).to(values)

    def _row(self, loc: Tensor, scale: Tensor, categories: Tensor | None, reals: Tensor | None) -> Row:
        """Rows of location and scale `[B, 1, C]`, with their static features."""
        config, batch, parts = self.config, len(loc), []
        for name, given, count in (
            ("static_categorical_features", categories, config.num_static_categorical_features),
            ("static_real_features", reals, config.num_static_real_features),
        ):
            if given is not None:
                check_shape(name, given.shape, (batch, count), note=f" for num_{name}={count}")
            elif count:
                raise ValueError(f"{name} are missing: a model with num_{name}={count} needs them, ({batch}, {count})")
        if self.static_embeddings is not None and categories is not None:
            parts.append(self.static_embeddings(categories))
        if reals is not None:
            parts.append(reals)
        if config.scaling == "std":
            parts.append((loc.sign() * loc.abs().log1p()).squeeze(1))
        if config.scaling is not None:
            parts.append(scale.log().squeeze(1))
        static = torch.cat([part.to(loc.dtype) for part in parts], dim=-1) if parts else loc.new_zeros(batch, 0)
        return Row(loc, scale, static)

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

    def _inputs(self, series: Tensor, time: Tensor | None, static: Tensor, steps: int) -> Tensor:
        """Inputs of the stack at the last steps, `[B, steps, feature_size]`.

        Args:
            series: Scaled values and their mask at all steps but the last one, `[B, N, 2 C]`.
            time: Time features up to the last step, `[B, >= steps, F]`, or None.
            static: Static features `[B, D]`.
            steps: Number of steps.
        """
        parts = lagged(series, self.lags, steps)
        if time is not None:
            parts.append(time[:, -steps:].to(series.dtype))
        if static.shape[1]:
            parts.append(static.unsqueeze(1).expand(-1, steps, -1))
        return torch.cat(parts, dim=-1)

    def _params(self, hidden: Tensor) -> Params:
        """Parameters of the distributions of scaled values, `[B, T, C]` each, from hidden states `[B, T, H]`."""
        raw = self.parameter_projection(self.dropout(hidden))
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.distribution_output is None:
            return (raw,)
        parts = raw.chunk(len(self.distribution_output.args_dim), dim=-1)
        return self.distribution_output.domain_map(*(part.unsqueeze(-1) for part in parts))

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
        check_states(states, shapes, self.model.stack.num_layers)
        return Row(*states[:3]), states[3], states[4], (states[5], states[6]) if parts == 7 else None


def _mask(valid: Tensor) -> Tensor | None:
    """Mask for the stack, or None if all steps are valid, which saves it the gathering.

    Elsewhere than on a CPU the question would take longer than the gathering.
    """
    asks = valid.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling()
    return None if asks and bool(valid.all()) else valid


def _flat(values: Tensor, flat: bool) -> Tensor:
    """Values without the dimension of variates, if there was none in the input."""
    return values.squeeze(-1) if flat else values
