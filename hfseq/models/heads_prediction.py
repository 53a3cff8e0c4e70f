"""Head of forecasters: autoregressive recurrent or convolutional networks, as DeepAR (Salinas et al. 2020)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import Seq2SeqTSPredictionOutput
from transformers.utils.generic import can_return_tuple

from .configuration_base import SequenceConfig
from .dropout import Dropout
from .forecasting import ForecastingMixin, Params
from .frames import MapProjection
from .modeling_base import Head
from .time_series import StaticFeatures, differenced, lagged, started, with_mask, with_variates


class ForPrediction(ForecastingMixin, Head):
    r"""Forecaster: a distribution of each value given those before it (DeepAR, Salinas et al. 2020).

    At step t the stack reads, for each lag l, the values $z_{t-l}$ and which of them were observed, then the time
    features of step t, and the static features with the scale of the row. Its output gives the parameters of the
    distribution of $z_t$ (eq. 1). Values are scaled row by row; see `location_and_scale`. Steps before a row's first
    observation are padding; any other missing value is read as 0 with its mask. So neither padding, nor what stands in
    place of a missing value, nor the other rows change a result. With `differencing` all of this is about the
    differences of the values from the last observed one before them; see `differenced`.

    A point forecaster may be trained as it is used, by feeding its predictions back over the horizon
    (`teacher_forcing=False`; the conditional future predictor of Srivastava et al. 2015, section 2.3), so that it
    learns from errors that add up. For frames of pixels the stack may be a ConvLSTM, from whose maps a linear layer
    predicts each pixel (Shi et al. 2015).

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
        self._set_distribution(config)
        count = 1 if self.distribution_output is None else len(self.distribution_output.args_dim)
        self.parameter_projection: nn.Module
        if config.writes_maps():
            self.parameter_projection = MapProjection(config, count)
        else:
            self.parameter_projection = nn.Linear(config.hidden_size, count * config.input_size)
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
        r"""Predict each step from the observed ones before it.

        Without `teacher_forcing` predictions take the place of what was observed in the horizon.

        In a `Trainer`, `label_names=["future_values"]` makes `evaluate()` return a loss. The Trainer counts items only
        where there are `labels`, so that with gradient accumulation it averages the losses of the batches.

        Args:
            past_values: Values before the horizon, `[B, T]`, or `[B, T, C]` for C variates, or pixels of frames,
                `[B, T, *frame_shape]`.
            past_time_features: Time features, then other covariates, `[B, T, F]`, F being `num_time_features` +
                `num_dynamic_real_features`. What stands before the first observation does not matter.
            past_observed_mask: 1 at observed values, in the shape of the values or `[B, T]`. None: all but NaN. What
                stands at the others does not matter.
            static_categorical_features: Class ids of each row, `[B, num_static_categorical_features]`.
            static_real_features: `[B, num_static_real_features]`.
            future_values: Values of the horizon, `[B, P]` or `[B, P, C]`, or frames.
            future_time_features: Time features of the horizon, `[B, P, F]`.
            future_observed_mask: As `past_observed_mask`, of `future_values`.
            output_hidden_states: Whether to return the inputs of the stack and the output of each layer.
            num_items_in_batch: Number of observed values to divide the loss by; None: those of this batch.
            kwargs: Ignored.

        Returns:
            `params`, the parameters of the distributions of scaled values, each `[B, P]` or `[B, P, C]`, of the
            horizon if there are `future_values`, else of the context; `loc` and `scale`, `[B, 1]` or `[B, 1, C]`, all
            three in the shape of frames if values are frames, and of the differences if the model has `differencing`;
            `static_features` `[B, D]`; and with `future_values` the `loss`: the negative log-likelihood of all
            observed values of context and horizon (eq. 2), or with `loss="mse"` their squared errors in units of the
            scale, divided by their number.

        Raises:
            ValueError: If a shape is wrong, if time or static features are missing, if the past is shorter than the
                longest lag, or if counts are no counts.
        """
        values, observed = self.read_past(past_values, past_observed_mask)
        batch, length, _ = values.shape
        context = min(length, self.config.context_length or length)
        time, horizon = self._time_features("past", past_time_features, batch, length), 0
        if future_values is not None:
            future, present = self._read("future", future_values, future_observed_mask)
            horizon = future.shape[1]
            after = self._time_features("future", future_time_features, batch, horizon)
            values, observed = torch.cat([values, future], dim=1), torch.cat([observed, present], dim=1)
            time = None if time is None or after is None else torch.cat([time, after], dim=1)
        known = None
        if self.config.differencing:
            known = observed[:, :length].any(dim=1, keepdim=True)
            values, observed, _ = differenced(values, observed)
        past, past_observed = values[:, :length], observed[:, :length]
        row = self._row(
            *self._scale(past, past_observed, self.config.context_length),
            static_categorical_features,
            static_real_features,
        )
        valid = nn.functional.pad(started(past_observed), (0, horizon), value=True)
        steps = context + horizon
        scaled = row.scaled(values, observed)
        series = nn.functional.pad(with_mask(scaled, observed), (0, 0, self.reach, 0))[:, :-1]
        series, valid = series[:, -(steps + self.reach - 1) :], valid[:, -steps:]
        if horizon > 1 and not self.config.teacher_forcing:
            params, hidden_states = self._feed_back(
                series, time, row.static, valid, horizon, known, output_hidden_states
            )
        else:
            outputs = self._run(series, time, row.static, steps, valid, output_hidden_states=output_hidden_states)
            params, hidden_states = self._params(outputs.last_hidden_state), outputs.hidden_states
        loss = None
        if future_values is not None:
            values, scaled, observed = values[:, -steps:], scaled[:, -steps:], observed[:, -steps:]
            if self.distribution_output is None:
                losses = (params[0] - scaled).square()
            else:
                losses = -self._log_prob(params, values, scaled, row)
            count = observed.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = losses.masked_fill(~observed, 0.0).sum() / count
        variates = past_values.shape[2:]
        return Seq2SeqTSPredictionOutput(
            loss=loss,
            params=tuple(with_variates(one[:, -(horizon or context) :], variates) for one in params),
            decoder_hidden_states=hidden_states,
            loc=with_variates(row.loc, variates),
            scale=with_variates(row.scale, variates),
            static_features=row.static,
        )

    @property
    def _owner(self) -> tuple[int, str]:
        return self.model.stack.num_layers, self.config.model_type

    def _embed_categories(self, categories: Tensor) -> Tensor:
        assert self.static_embeddings is not None
        return self.static_embeddings(categories)

    def run_steps(
        self, series: Tensor, time: Tensor | None, static: Tensor, valid: Tensor | None, cache: Cache
    ) -> Params:
        """Parameters of the distributions of scaled values from the stack; see `ForecastingMixin`."""
        steps = series.shape[1] - self.reach + 1
        return self._params(self._run(series, time, static, steps, valid, cache=cache).last_hidden_state)

    def _run(
        self,
        series: Tensor,
        time: Tensor | None,
        static: Tensor,
        steps: int,
        valid: Tensor | None,
        cache: Cache | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """Outputs of the stack at the last steps; see `_inputs`."""
        return self.model(
            input_features=self._inputs(series, time, static, steps),
            attention_mask=None if valid is None else _mask(valid),
            cache=cache,
            use_cache=cache is not None,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )

    def _feed_back(
        self,
        series: Tensor,
        time: Tensor | None,
        static: Tensor,
        valid: Tensor,
        horizon: int,
        known: Tensor | None,
        output_hidden_states: bool | None,
    ) -> tuple[Params, tuple[Tensor, ...] | None]:
        """Predictions of all steps, those of the horizon fed back, as `generate` does, and the hidden states.

        Args:
            series: Scaled values and their mask at all steps but the last one, `[B, max lag + steps - 1, 2 C]`.
            time: Time features up to the last step, `[B, >= steps, F]`, or None.
            static: Static features `[B, D]`.
            valid: True at valid steps, `[B, steps]`.
            horizon: Number of steps of the horizon, at least 2.
            known: True where there is a value from which the first difference is taken, `[B, 1, C]`; None without
                `differencing`.
            output_hidden_states: Whether to return the hidden states, too.
        """
        cache, steps = DynamicCache(), valid.shape[1] - horizon + 1
        path = series[:, : self.reach + steps - 1]
        parts, hidden = [], []
        for step in range(horizon):
            now = None if time is None else time[:, : time.shape[1] - horizon + 1 + step]
            outputs = self._run(
                path, now, static, steps, None if step else valid[:, :steps], cache, output_hidden_states
            )
            parts.append(self._params(outputs.last_hidden_state)[0])
            hidden.append(outputs.hidden_states)
            predicted = with_mask(parts[-1][:, -1:], torch.ones_like(parts[-1][:, -1:], dtype=torch.bool))
            if known is not None and not step:
                # The first value of a series has no difference.
                predicted = predicted * known.repeat(1, 1, 2)
            path, steps = torch.cat([path[:, path.shape[1] - self.reach + 1 :], predicted], dim=1), 1
        layers = None if hidden[0] is None else tuple(torch.cat(layer, dim=1) for layer in zip(*hidden, strict=True))
        return (torch.cat(parts, dim=1),), layers

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


def _mask(valid: Tensor) -> Tensor | None:
    """Mask for the stack, or None if all steps are valid, which saves it the gathering.

    Elsewhere than on a CPU the question would take longer than the gathering.
    """
    asks = valid.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling()
    return None if asks and bool(valid.all()) else valid
