"""Forecasters of hfseq and transformers alike: what inputs they need, and paths sampled from them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfseq.errors import InputError
from hfseq.models import NAMES, is_hfseq

AUTO_CLASS = "AutoModelForTimeSeriesPrediction"
OTHERS = {
    "autoformer": "AutoformerForPrediction",
    "informer": "InformerForPrediction",
    "patchtst": "PatchTSTForPrediction",
    "time_series_transformer": "TimeSeriesTransformerForPrediction",
}
"""Model type to class of the forecasters of transformers that its Auto class leaves out."""

# By name, so that nothing is imported before it is used.
for _model_type, _class_name in OTHERS.items():
    NAMES[AUTO_CLASS].setdefault(_model_type, _class_name)


class Needs(NamedTuple):
    """Inputs that a forecaster needs.

    Attributes:
        context_length: Steps before the horizon that it reads; None for any number.
        longest_lag: Further steps that serve as lags alone; 0 for models without lags.
        prediction_length: Length of its horizon; None if it is free.
        fixed_horizon: Whether it predicts `prediction_length` steps and no other number.
        num_time_features: Number of time features of a step.
        num_covariates: Number of other covariates of a step.
        cardinality: Number of classes of each static feature.
        num_static_reals: Number of static numbers.
        channels: Whether values are `[B, T, 1]`, in place of `[B, T]`.
        masks_future: Whether values of the horizon may be missing in training.
    """

    context_length: int | None
    longest_lag: int
    prediction_length: int | None
    fixed_horizon: bool
    num_time_features: int
    num_covariates: int
    cardinality: tuple[int, ...]
    num_static_reals: int
    channels: bool
    masks_future: bool


def needs_of(config: Any) -> Needs:
    """Inputs that a model needs, by its configuration.

    Raises:
        InputError: It is a model of several variates, or of a kind that is not known.
    """
    name = getattr(config, "name_or_path", None) or config.model_type
    if config.model_type == "patchtst":
        if config.num_input_channels != 1:
            raise InputError(f"{name}: it forecasts {config.num_input_channels} channels at once; series have 1")
        return Needs(config.context_length, 0, config.prediction_length, True, 0, 0, (), 0, True, False)
    if not is_hfseq(config) and config.model_type not in OTHERS:
        raise InputError(f"{name}: {config.model_type} is not supported; there are hfseq's, {', '.join(OTHERS)}")
    if config.input_size != 1:
        raise InputError(f"{name}: it forecasts {config.input_size} variates at once; series have 1")
    return Needs(
        config.context_length,
        max(config.lags_sequence),
        config.prediction_length,
        not is_hfseq(config),
        config.num_time_features,
        config.num_dynamic_real_features,
        tuple(config.cardinality or ()) if config.num_static_categorical_features else (),
        config.num_static_real_features,
        False,
        True,
    )


@torch.no_grad()
def sample_paths(
    model: Any, inputs: Mapping[str, Tensor], prediction_length: int, num_samples: int | None = None
) -> Tensor:
    """Sample paths over the horizon from any forecaster.

    Args:
        model: Model of hfseq or transformers.
        inputs: Its inputs, as `hfseq.data.windows.WindowCollator` makes them; values of the horizon are left aside.
        prediction_length: Number of steps.
        num_samples: Number S of paths; None for that of the configuration. Models of points give one.

    Returns:
        `[B, S, prediction_length]`; samples come from torch's global generator.
    """
    inputs = {name: value for name, value in inputs.items() if name not in ("future_values", "future_observed_mask")}
    if getattr(model.config, "loss", "nll") == "mse":
        if is_hfseq(model.config):
            return model.generate(**inputs, prediction_length=prediction_length).sequences
        return model(**inputs).prediction_outputs.transpose(1, 2)
    if is_hfseq(model.config):
        options = {"prediction_length": prediction_length, "num_parallel_samples": num_samples}
        return model.generate(**inputs, **options).sequences
    kept = model.config.num_parallel_samples
    try:
        model.config.num_parallel_samples = num_samples or kept
        sequences: Tensor = model.generate(**inputs).sequences
    finally:
        model.config.num_parallel_samples = kept
    return sequences.squeeze(-1) if sequences.dim() == 4 else sequences
