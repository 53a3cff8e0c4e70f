"""Fields of the configuration that only `…ForPrediction` reads; names as in `TimeSeriesTransformerConfig`."""

from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig, strict


@strict
class PredictionFields(PreTrainedConfig):
    r"""Fields of a forecaster, which `SequenceConfig` inherits; `input_size` is its number of variates.

    Args:
        prediction_length: Number of steps that `generate()` predicts if it is not told; None: it has to be.
        context_length: Number of steps before the horizon that the stack reads, and from which a row's scale is
            computed; earlier values serve as lags alone. None means all of `past_values`.
        lags_sequence: Lags of the values that a step reads: 1 is the value before it, 7 that of a week ago in a daily
            series.
        scaling: Scale of a row: `mean` of its magnitudes (Salinas et al. 2020, section 3.3), its `std` about its mean,
            or None. True means `mean`, False None.
        differencing: Whether to forecast the differences of the observed values from the last observed value before
            them, the d = 1 of ARIMA (Box and Jenkins 1970). Lags, scale and distribution are those of the differences,
            and generated paths are their sums. For series whose level wanders, as exchange rates do.
        distribution_output: Distribution of a value: `student_t`, `normal`, or `negative_binomial` for counts.
        loss: `nll`, the negative log-likelihood, or `mse` for a point forecaster, which has no distribution.
        teacher_forcing: Whether training predicts each step of the horizon from the true values before it (Williams
            and Zipser 1989). False feeds the predictions back, as `generate()` does, for a point forecaster of
            several steps.
        num_parallel_samples: Number of paths that `generate()` samples.
        num_time_features: Number of time features of a step, such as the hour of the day.
        num_dynamic_real_features: Number of other covariates of a step, which stand behind the time features. They
            have to be known for the horizon.
        num_static_categorical_features: Number of categorical features of a row.
        cardinality: Number of values of each of those.
        embedding_dimension: Width of the embedding of each of those; None means half of the values, rounded up, at
            most 50.
        num_static_real_features: Number of real features of a row.
        frequency: Name of the series' frequency in pandas, such as `h` or `MS`, from which a pipeline computes time
            features; the model does not read it.
        static_categories: Classes of each categorical feature, in the order of their ids, for a pipeline; the model
            does not read them.
        feature_size: Width of what a forecaster's stack reads at a step, which the head computes and models save; None
            in all other configurations. Other classes that load a forecaster read `input_features` of that width.

    Raises:
        ValueError: If a value is out of range, or if fields contradict each other.
    """

    prediction_length: int | None = None
    context_length: int | None = None
    lags_sequence: list[int] | tuple[int, ...] = (1,)
    scaling: Literal["mean", "std"] | bool | None = "mean"
    differencing: bool = False
    distribution_output: Literal["student_t", "normal", "negative_binomial"] = "student_t"
    loss: Literal["nll", "mse"] = "nll"
    teacher_forcing: bool = True
    num_parallel_samples: int = 100
    num_time_features: int = 0
    num_dynamic_real_features: int = 0
    num_static_categorical_features: int = 0
    cardinality: list[int] | None = None
    embedding_dimension: list[int] | None = None
    num_static_real_features: int = 0
    frequency: str | None = None
    static_categories: list[list[str]] | None = None
    feature_size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Dictionary of all fields, without those of a forecaster at their defaults in any other configuration."""
        values: dict[str, Any] = super().to_dict()
        if self.feature_size is None:
            for name, default in DEFAULTS.items():
                if values.get(name) == default:
                    del values[name]
        return values


DEFAULTS: dict[str, Any] = {
    name: list(default) if isinstance(default, tuple) else default
    for name, default in ((name, getattr(PredictionFields, name)) for name in PredictionFields.__annotations__)
}
"""Field to default."""


def check_prediction_fields(config: Any) -> None:
    """Resolve the defaults that depend on other fields and validate the values."""
    if isinstance(config.scaling, bool):
        config.scaling = "mean" if config.scaling else None
    config.lags_sequence = list(config.lags_sequence)  # as JSON has it
    lags = config.lags_sequence
    if not lags or min(lags) < 1 or len(set(lags)) < len(lags):
        config.raise_invalid("lags_sequence", "it must be one or more different lags of at least 1")
    counts = [name for name in vars(config) if name.startswith("num_") and name.endswith("_features")]
    config.check_numbers(counts, lambda value: value >= 0, "it must not be negative")
    lengths = ("prediction_length", "context_length", "num_parallel_samples")
    config.check_numbers(lengths, lambda value: value >= 1, "it must be at least 1")
    if config.distribution_output == "negative_binomial" and config.scaling == "std":
        config.raise_invalid("scaling", "counts can be scaled, but not shifted; set scaling='mean'")
    if config.distribution_output == "negative_binomial" and config.differencing:
        config.raise_invalid("differencing", "differences of counts are no counts; set distribution_output='normal'")
    if not config.teacher_forcing and config.loss != "mse":
        config.raise_invalid("teacher_forcing", "samples that are fed back have no gradient; set loss='mse'")
    kinds = config.num_static_categorical_features
    for name in ("cardinality", "embedding_dimension"):
        sizes = getattr(config, name)
        if sizes is None and (name == "embedding_dimension" or not kinds):
            continue
        if len(sizes or []) != kinds or min(sizes, default=1) < 1:
            config.raise_invalid(
                name, f"it must be {kinds} sizes of at least 1, as num_static_categorical_features={kinds}"
            )
    if config.embedding_dimension is None and kinds:
        config.embedding_dimension = [min(50, (size + 1) // 2) for size in config.cardinality]


def become_forecaster(config: Any) -> None:
    """Resolve the fields for `…ForPrediction`; `feature_size` among them."""
    if config.input_size is None:
        config.input_size = 1
        if config.embedding_size == config.hidden_size:
            config.embedding_size = None  # it is the default for tokens
    check_prediction_fields(config)
    of_scale = {None: 0, "mean": 1, "std": 2}[config.scaling]
    config.feature_size = (
        config.input_size * (2 * len(config.lags_sequence) + of_scale)
        + config.num_time_features
        + config.num_dynamic_real_features
        + sum(config.embedding_dimension or [])
        + config.num_static_real_features
    )
