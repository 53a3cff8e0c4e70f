"""Forecasters: `…ForPrediction` of every family."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
import transformers
from oracles import run_row
from processes import run_elsewhere
from token_classes import FAMILIES, LINEAR
from transformers import DynamicCache, Trainer, TrainingArguments

from hfseq import load_state, save_state
from hfseq.models.configuration_base import HEADS
from hfseq.models.time_series import location_and_scale

AUTO = "AutoModelForTimeSeriesPrediction"
TINY = {"hidden_size": 6, "num_hidden_layers": 2, "dropout": 0.0, "prediction_length": 4, "num_parallel_samples": 3}
SETTINGS = {
    "default": {},
    "normal": {"distribution_output": "normal", "scaling": "std"},
    "counts": {"distribution_output": "negative_binomial", "lags_sequence": [1, 2]},
    "unscaled": {"scaling": None, "lags_sequence": [3, 1]},
    "lags": {"lags_sequence": [1, 2, 5], "context_length": 4, "scaling": "std"},
    "covariates": {
        "num_time_features": 1,
        "num_dynamic_real_features": 1,
        "num_static_categorical_features": 2,
        "cardinality": [3, 5],
        "embedding_dimension": [2, 1],
        "num_static_real_features": 2,
        "lags_sequence": [2, 4],
    },
    "variates": {"input_size": 2, "lags_sequence": [1, 3], "num_time_features": 2, "context_length": 6},
    "points": {"loss": "mse", "scaling": "std", "embedding_size": 5},
    "differences": {"differencing": True, "scaling": "std", "lags_sequence": [1, 3], "context_length": 5},
    "differences of points": {"differencing": True, "loss": "mse"},
}
LENGTH, HORIZON = 8, 4
# Of a linear recurrence: test_linear.py.
CLASSES = {config.family: heads[AUTO] for config, heads in FAMILIES.items() if config.family not in LINEAR}


def make(model_class, **fields):
    """A model in float64 whose weights are so large that nothing is small by chance."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**TINY | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    return model


def make_inputs(config, length=LENGTH, horizon=HORIZON):
    """A full row, leading missing values, gaps, nothing observed in the past, a constant, zeros; NaN where missing."""
    generator = torch.Generator().manual_seed(1)
    rows, size = 7, config.input_size
    counts = config.distribution_output == "negative_binomial"
    values = 7 + 5 * torch.randn(rows, length + horizon, size, generator=generator, dtype=torch.float64)
    if counts:
        values = values.abs().round()
    values[4], values[5] = 3.0 if counts else 0.1, 0.0
    mask = torch.rand(rows, length + horizon, size, generator=generator) < 0.6
    mask[0] = True
    mask[1, :3], mask[1, 3:] = False, True
    mask[2, 0] = True
    mask[3, :length] = False
    mask[4, 2:5] = True
    mask[5] = True
    mask[6, : length - 1], mask[6, length - 1] = False, True
    values[~mask] = float("nan")
    if size == 1:
        values, mask = values.squeeze(2), mask.squeeze(2)
    inputs = {
        "past_values": values[:, :length],
        "past_observed_mask": mask[:, :length].long(),
        "future_values": values[:, length:],
        "future_observed_mask": mask[:, length:].long(),
    }
    if count := config.num_time_features + config.num_dynamic_real_features:
        time = torch.randn(rows, length + horizon, count, generator=generator, dtype=torch.float64)
        inputs |= {"past_time_features": time[:, :length], "future_time_features": time[:, length:]}
    if config.cardinality:
        ids = [torch.randint(0, size, (rows,), generator=generator) for size in config.cardinality]
        inputs["static_categorical_features"] = torch.stack(ids, dim=1)
    if count := config.num_static_real_features:
        inputs["static_real_features"] = torch.randn(rows, count, generator=generator, dtype=torch.float64)
    return inputs


def without_future(inputs, keep=()):
    return {name: value for name, value in inputs.items() if not name.startswith("future") or name in keep}


def for_generate(inputs):
    return without_future(inputs, ["future_time_features"])


def row_alone(inputs, row, leading=0):
    """One row, its leading missing values replaced by `leading` others, as many as the longest lag needs at least."""
    observed = inputs["past_observed_mask"][row].reshape(LENGTH, -1).any(dim=1).tolist()
    start = observed.index(True) if any(observed) else LENGTH
    alone = {}
    for name, value in inputs.items():
        value = value[row : row + 1]
        if name.startswith("past"):
            filling = 0 if name.endswith("mask") else float("nan")
            pad = value.new_full((1, leading, *value.shape[2:]), filling)
            value = torch.cat([pad, value[:, start:]], dim=1)
        alone[name] = value
    return alone, start


def pytest_generate_tests(metafunc):
    """All settings of a forecaster with the stacks of LSTM and CNN, and two of them with the other cells."""
    pairs = [
        pytest.param(model_class, settings, id=f"{family}-{name}")
        for family, model_class in CLASSES.items()
        for name, settings in SETTINGS.items()
        if family in ("Lstm", "Cnn") or name in ("lags", "covariates")
    ]
    if {"model_class", "settings"} <= {*metafunc.fixturenames}:
        metafunc.parametrize(("model_class", "settings"), pairs)
    elif "model_class" in metafunc.fixturenames:
        metafunc.parametrize("model_class", CLASSES.values(), ids=list(CLASSES))


# --- the definition --------------------------------------------------------------------------------------------------


def scale_by_hand(values, scaling):
    """Location and scale of the observed values of one variate."""
    if scaling is None or not values:
        return 0.0, 1.0
    if scaling == "mean":
        return 0.0, statistics.fmean(map(abs, values)) or 1.0
    return statistics.fmean(values), statistics.pstdev(values) or 1.0


def squareplus(value):
    return (value + math.sqrt(value * value + 4)) / 2


def density_by_hand(kind, raw, value, loc, scale):
    """Logarithm of the density of a value, from the outputs of the linear layer."""
    if kind == "negative_binomial":
        count, odds = squareplus(raw[0]), math.exp(raw[1]) * scale
        share = odds / (1 + odds)
        ways = math.lgamma(count + value) - math.lgamma(count) - math.lgamma(1 + value)
        return ways + count * math.log(1 - share) + value * math.log(share)
    width = squareplus(raw[-1]) * scale
    distance = (value - loc - scale * raw[-2]) / width
    if kind == "normal":
        return -0.5 * distance**2 - math.log(width) - 0.5 * math.log(2 * math.pi)
    df = 2 + squareplus(raw[0])
    constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi) - math.log(width)
    return constant - (df + 1) / 2 * math.log1p(distance**2 / df)


def run_stack(model, steps):
    """Hidden states `[N, H]` of the N steps of one row, each of width `feature_size`."""
    if not steps:
        return []
    steps = torch.tensor(steps, dtype=torch.float64)
    if model.config.family == "Cnn":  # whose layers have oracles of their own
        return model.model(input_features=steps.unsqueeze(0)).last_hidden_state[0]
    if model.config.embedding_size is not None:
        layer = model.model.embed_features
        steps = torch.stack([layer.weight @ step + layer.bias for step in steps])
    outputs, _ = run_row(model.config.family.lower(), model.model.stack.forward_layers, None, steps)
    return outputs[-1]


def differences_by_hand(values):
    """Differences of each step's variates from the last observed value before them, None where there is none."""
    last, found = [None] * len(values[0]), []
    for step in values:
        found.append([None if None in (a, b) else a - b for a, b in zip(step, last, strict=True)])
        last = [b if a is None else a for a, b in zip(step, last, strict=True)]
    return found


def by_hand(model, inputs, row, all_steps=False):
    """For each step from the first one read, and each variate: output of the linear layer, value or None, log-density.

    With `all_steps` the past alone, read from its start and scaled by all of it.
    """
    config = model.config
    past, future = ("past", "future")
    names = (past,) if all_steps else (past, future)
    values = torch.cat([inputs[f"{name}_values"][row] for name in names]).reshape(-1, config.input_size).tolist()
    mask = torch.cat([inputs[f"{name}_observed_mask"][row] for name in names]).reshape(-1, config.input_size).tolist()
    values = [
        [value if seen else None for value, seen in zip(step, steps_mask, strict=True)]
        for step, steps_mask in zip(values, mask, strict=True)
    ]
    if config.differencing:
        values = differences_by_hand(values)
    length = len(inputs["past_values"][row])
    time = None
    if "past_time_features" in inputs:
        time = torch.cat([inputs[f"{name}_time_features"][row] for name in names]).tolist()
    first = next((step for step in range(length) if any(one is not None for one in values[step])), length)
    start = max(first, length - (length if all_steps else config.context_length or length))
    scales = []
    for variate in range(config.input_size):
        column = [step[variate] for step in values[:length]]
        seen = [one for one in column[0 if all_steps else start :] if one is not None]
        scales.append(scale_by_hand(seen or [one for one in column if one is not None], config.scaling))
    static = []
    if "static_categorical_features" in inputs:
        for layer, number in zip(
            model.static_embeddings.embeddings, inputs["static_categorical_features"][row], strict=True
        ):
            static += layer.weight[number].tolist()
    if "static_real_features" in inputs:
        static += inputs["static_real_features"][row].tolist()
    if config.scaling == "std":
        static += [math.copysign(math.log1p(abs(loc)), loc) for loc, _ in scales]
    if config.scaling is not None:
        static += [math.log(scale) for _, scale in scales]
    steps = []
    for step in range(start, len(values)):
        features = []
        for lag in config.lags_sequence:
            before = values[step - lag] if step >= lag else [None] * config.input_size
            scaled = zip(before, scales, strict=True)
            features += [0.0 if value is None else (value - loc) / scale for value, (loc, scale) in scaled]
            features += [float(value is not None) for value in before]
        steps.append(features + (time[step] if time else []) + static)
    assert {len(features) for features in steps} <= {config.feature_size}
    results = []
    layer = model.parameter_projection
    for step, hidden in zip(range(start, len(values)), run_stack(model, steps), strict=True):
        raw = (layer.weight @ hidden + layer.bias).reshape(-1, config.input_size)
        for variate, (loc, scale) in enumerate(scales):
            value, own = values[step][variate], raw[:, variate].tolist()
            score = None
            if value is not None and config.loss == "mse":
                score = -(((value - loc) / scale - own[0]) ** 2)
            elif value is not None:
                score = density_by_hand(config.distribution_output, own, value, loc, scale)
            results.append((own, value, score))
    return results, scales


@pytest.mark.contract
def test_loss_by_hand(model_class, settings):
    model = make(model_class, **settings)
    inputs = make_inputs(model.config)
    outputs = model(**inputs)
    scores, size = [], model.config.input_size
    for row in range(len(inputs["past_values"])):
        results, scales = by_hand(model, inputs, row)
        scores += [score for _, _, score in results if score is not None]
        found = zip(outputs.loc[row].flatten().tolist(), outputs.scale[row].flatten().tolist(), strict=True)
        for pair, expected in zip(found, scales, strict=True):
            assert pair == pytest.approx(expected, abs=1e-12)
        for step, (raw, _, _) in enumerate(results[-HORIZON * size :]):
            params = [one[row].flatten()[step].item() for one in outputs.params]
            kind = "points" if model.config.loss == "mse" else model.config.distribution_output
            expected = {
                "points": lambda raw: raw,
                "normal": lambda raw: [raw[0], squareplus(raw[1])],
                "student_t": lambda raw: [2 + squareplus(raw[0]), raw[1], squareplus(raw[2])],
                "negative_binomial": lambda raw: [squareplus(raw[0]), raw[1]],
            }[kind](raw)
            assert params == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(outputs.loss.item(), -sum(scores) / len(scores))
    for count in (31, torch.tensor(31)):
        torch.testing.assert_close(model(**inputs, num_items_in_batch=count).loss.item(), -sum(scores) / 31)
    assert model(**inputs, return_dict=False)[0] == outputs.loss


def test_log_likelihood_by_hand(model_class, settings):
    model = make(model_class, **settings)
    inputs = without_future(make_inputs(model.config))
    if model.config.loss == "mse":
        with pytest.raises(ValueError, match="loss='mse' has no distribution"):
            model.log_likelihood(**inputs)
        return
    found = model.log_likelihood(**inputs)
    assert found.shape == inputs["past_values"].shape
    for row, scores in enumerate(found):
        expected = [score or 0.0 for _, _, score in by_hand(model, inputs, row, all_steps=True)[0]]
        scores = scores.flatten().tolist()
        assert scores[len(scores) - len(expected) :] == pytest.approx(expected, rel=1e-9)
        assert scores[: len(scores) - len(expected)] == [0.0] * (len(scores) - len(expected))


# --- scales ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["mean", "std", None])
def test_scales_by_hand(scaling):
    rows = [[1.0, -3.0, None, 4.0], [None, None, None, None], [2.5] * 4, [0.0] * 4, [None, None, 7.0, None]]
    observed = torch.tensor([[value is not None for value in row] for row in rows]).unsqueeze(2)
    values = torch.tensor([[value or 0.0 for value in row] for row in rows]).double().unsqueeze(2)
    loc, scale = location_and_scale(values, observed, scaling)
    for row, found in zip(rows, zip(loc.flatten().tolist(), scale.flatten().tolist(), strict=True), strict=True):
        assert found == pytest.approx(scale_by_hand([value for value in row if value is not None], scaling))


@pytest.mark.parametrize("value", [0.1, -1e7, 123456.789, 3e-30, 0.0])
def test_a_constant_has_scale_one_exactly(value):
    values = torch.full((1, 1001, 1), value)
    observed = torch.arange(1001).view(1, -1, 1) % 3 > 0
    loc, scale = location_and_scale(values.masked_fill(~observed, 0.0), observed, "std")
    assert (loc.item(), scale.item()) == (values[0, 0, 0].item(), 1.0)


def test_a_context_without_observations_has_the_scale_of_what_came_before():
    model = make(CLASSES["Lstm"], context_length=3)
    past = torch.tensor([[2.0, 4.0, math.nan, math.nan, math.nan], [2.0, 4.0, math.nan, 9.0, math.nan]])
    assert model(past).scale.flatten().tolist() == [3.0, 9.0]
    assert torch.equal(model.generate(past, prediction_length=1).sequences.isfinite(), torch.ones(2, 3, 1).bool())


def test_a_large_offset_costs_no_digits():
    """In float32 the likelihood of values about 10^6 is that of the same about 0."""
    fields = {"distribution_output": "normal", "scaling": "std"}
    model = make(CLASSES["Lstm"], **fields).float()
    values = torch.randint(-8, 8, (1, 40)).float()
    plain = model.log_likelihood(values, loc=torch.zeros(1, 1), scale=torch.full((1, 1), 4.0))
    far = 2.0**20
    shifted = model.log_likelihood(values + far, loc=torch.full((1, 1), far), scale=torch.full((1, 1), 4.0))
    assert not torch.equal(shifted, plain)  # the location is a feature
    model.parameter_projection.weight.data.zero_()
    plain = model.log_likelihood(values, loc=torch.zeros(1, 1), scale=torch.full((1, 1), 4.0))
    shifted = model.log_likelihood(values + far, loc=torch.full((1, 1), far), scale=torch.full((1, 1), 4.0))
    torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=1e-6)


# --- padding and missing values --------------------------------------------------------------------------------------


def gradients(model, value):
    return torch.autograd.grad(value, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("leading", [0, 1, 9])
def test_a_row_is_what_it_is_alone(model_class, settings, leading):
    """With any number of leading missing values, whatever stands there and in gaps: loss, parameters, gradients."""
    model = make(model_class, **settings)
    inputs = make_inputs(model.config)
    spoilt = dict(inputs)
    for part in ("past", "future"):
        missing = inputs[f"{part}_observed_mask"] == 0
        spoilt[f"{part}_values"] = inputs[f"{part}_values"].masked_fill(missing, 1e30)
        if part == "past" and "past_time_features" in inputs:
            unread = (inputs["past_observed_mask"].reshape(*inputs["past_values"].shape[:2], -1) != 0).any(dim=2)
            unread = unread.cumsum(dim=1) == 0
            spoilt["past_time_features"] = inputs["past_time_features"].masked_fill(unread.unsqueeze(2), float("nan"))
    outputs = model(**spoilt)
    total, count = 0.0, 0
    for row in range(len(inputs["past_values"])):
        alone, start = row_alone(inputs, row)
        fill = max(leading, model.reach - (LENGTH - start))
        alone, _ = row_alone(inputs, row, fill)
        expected = model(**alone)
        seen = torch.cat([alone["past_observed_mask"], alone["future_observed_mask"]], dim=1)
        if model.config.differencing:  # the first value has none
            seen *= seen.cumsum(dim=1) > 1
        context = model.config.context_length or alone["past_values"].shape[1]
        observed = int(seen[:, -context - HORIZON :].sum())
        total, count = total + expected.loss * observed, count + observed
        for one, other in zip(outputs.params, expected.params, strict=True):
            torch.testing.assert_close(one[row], other[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(outputs.loss, total / count, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(model, outputs.loss), gradients(model, total / count), rtol=1e-8, atol=1e-9)


def test_without_a_mask_nan_is_missing(model_class):
    model = make(model_class)
    inputs = make_inputs(model.config)
    without = {name: value for name, value in inputs.items() if not name.endswith("mask")}
    torch.testing.assert_close(model(**without).loss, model(**inputs).loss)


def test_one_mask_for_all_variates(model_class):
    model = make(model_class, input_size=2)
    inputs = make_inputs(model.config)
    for name in ("past", "future"):
        inputs[f"{name}_observed_mask"] = inputs[f"{name}_observed_mask"][..., :1].repeat(1, 1, 2)
        inputs[f"{name}_values"] = inputs[f"{name}_values"].nan_to_num(5.0)
    loss = model(**inputs).loss
    for name in ("past", "future"):
        inputs[f"{name}_observed_mask"] = inputs[f"{name}_observed_mask"][..., 0]
    torch.testing.assert_close(model(**inputs).loss, loss)


def test_one_variate_with_or_without_its_dimension(model_class):
    model = make(model_class)
    inputs = make_inputs(model.config)
    flat = model(**inputs)
    wide = model(**{name: value.unsqueeze(2) for name, value in inputs.items()})
    torch.testing.assert_close(wide.loss, flat.loss)
    assert wide.params[0].shape == (7, HORIZON, 1) and flat.params[0].shape == (7, HORIZON)
    assert wide.loc.shape == (7, 1, 1) and flat.scale.shape == (7, 1)
    past = inputs["past_values"]
    torch.testing.assert_close(model.log_likelihood(past.unsqueeze(2)).squeeze(2), model.log_likelihood(past))
    assert model.generate(past.unsqueeze(2)).sequences.shape == (7, 3, HORIZON, 1)


def test_the_future_is_not_seen(model_class, settings):
    """A changed value changes the parameters of later steps alone, in a horizon without an end."""
    model = make(model_class, **settings)
    inputs = make_inputs(model.config, horizon=20)
    inputs["future_values"] = inputs["future_values"].nan_to_num(5.0)
    inputs["future_observed_mask"] = torch.ones_like(inputs["future_observed_mask"])
    params = model(**inputs).params
    inputs["future_values"][:, 7] += 3
    changed = model(**inputs).params
    earliest = 7 + min(model.config.lags_sequence)
    for one, other in zip(params, changed, strict=True):
        assert torch.equal(one[:, :earliest], other[:, :earliest])
        assert (one[:, earliest] != other[:, earliest]).all()


# --- generation ------------------------------------------------------------------------------------------------------


def feed_means(model):
    """Make a forecaster go on with the means of its distributions, so that its path is known."""

    def draw(params, row):
        distribution = model.output_distribution(params, row.loc, row.scale)
        return distribution.mean, (distribution.mean - row.loc) / row.scale

    model._draw = draw


@pytest.mark.contract
@pytest.mark.parametrize("length", [1, HORIZON, 11])
def test_generation_equals_teacher_forcing(model_class, settings, length):
    """Step by step from the cache, on the way that the uncached model predicts when it is given that way."""
    model = make(model_class, **settings)
    if model.config.loss == "nll":
        feed_means(model)
    if model.counts:  # their means grow exponentially
        model.parameter_projection.weight.data.mul_(0.1)
    inputs = make_inputs(model.config, horizon=length)
    paths = 1 if model.config.loss == "mse" else 3
    sequences = model.generate(**for_generate(inputs), prediction_length=length).sequences
    assert sequences.shape == (7, paths, *inputs["future_values"].shape[1:])
    for path in range(paths):
        forced = inputs | {"future_values": sequences[:, path], "future_observed_mask": None}
        if model.counts:  # their means are no counts
            model.counts, counts = False, True
            model._log_prob = lambda params, values, scaled, row: scaled
            outputs = model(**forced)
            model.counts = counts
        else:
            outputs = model(**forced)
        if model.config.loss == "mse":
            predicted = outputs.loc + outputs.scale * outputs.params[0]
        else:
            predicted = model.output_distribution(outputs.params, outputs.loc, outputs.scale).mean
        if model.config.differencing:
            seen = inputs["past_observed_mask"] != 0
            last = torch.stack(
                [
                    row[mask][-1] if mask.any() else row.new_zeros(())
                    for row, mask in zip(inputs["past_values"], seen, strict=True)
                ]
            )
            predicted = predicted + torch.cat([last.unsqueeze(1), sequences[:, path, :-1]], dim=1)
        torch.testing.assert_close(sequences[:, path], predicted, rtol=1e-9, atol=1e-9)


def test_a_generated_row_is_what_it_is_alone(model_class, settings):
    model = make(model_class, **settings)
    if model.config.loss == "nll":
        feed_means(model)
    inputs = make_inputs(model.config)
    together = model.generate(**for_generate(inputs)).sequences
    for row in range(7):
        _, start = row_alone(inputs, row)
        alone, _ = row_alone(inputs, row, max(0, model.reach - (LENGTH - start)))
        torch.testing.assert_close(model.generate(**for_generate(alone)).sequences[0], together[row])


@pytest.mark.parametrize("kind", ["student_t", "normal", "negative_binomial"])
def test_samples_have_the_moments_of_their_distribution(model_class, kind):
    model = make(model_class, distribution_output=kind)
    with torch.no_grad():
        model.parameter_projection.weight.mul_(0.3)
        if kind == "student_t":  # whose variance must have a variance
            model.parameter_projection.bias[0] = 9.0
    inputs = make_inputs(model.config)
    past = inputs["past_values"]
    torch.manual_seed(3)
    count = 40_000
    sequences = model.generate(past, num_parallel_samples=count, prediction_length=2).sequences
    first = sequences[:, :, 0]
    outputs = model(past, future_values=first[:, :1])
    expected = model.output_distribution(outputs.params, outputs.loc, outputs.scale)
    mean, variance = expected.mean[:, 0], expected.variance[:, 0]
    assert ((first.mean(dim=1) - mean).abs() < 5 * (variance / count).sqrt()).all()
    fourth = ((first - mean.unsqueeze(1)) ** 4).mean(dim=1)
    assert ((first.var(dim=1) - variance).abs() < 5 * ((fourth - variance**2) / count).sqrt()).all()
    # The second step, too, given the first one, which is put among the context's values.
    outputs = model(past.repeat_interleave(500, dim=0), future_values=sequences[:, :500].flatten(0, 1))
    mean = model.output_distribution(outputs.params, outputs.loc, outputs.scale)
    errors = (sequences[:, :500, 1].flatten() - mean.mean[:, 1]) / mean.variance[:, 1].sqrt()
    assert abs(errors.mean()) < 5 / math.sqrt(len(errors)) and abs(errors.var() - 1) < 0.2


def test_the_seed_decides(model_class):
    model = make(model_class)
    past = make_inputs(model.config)["past_values"]
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(past).sequences)
    assert torch.equal(runs[0], runs[1]) and not torch.isclose(runs[0], runs[2]).any()
    assert len(runs[0].unique()) == runs[0].numel()


def test_counts_are_counts(model_class):
    model = make(model_class, **SETTINGS["counts"])
    sequences = model.generate(**for_generate(make_inputs(model.config))).sequences
    assert (sequences >= 0).all() and torch.equal(sequences, sequences.round()) and len(sequences.unique()) > 2


@pytest.mark.parametrize("kind", ["student_t", "normal", "negative_binomial"])
def test_distributions_leave_their_parameters_alone(kind):
    """transformers' negative binomial adds the scale to its argument in place."""
    model = make(CLASSES["Gru"], distribution_output=kind)
    outputs = model(**make_inputs(model.config))
    before = [one.clone() for one in outputs.params]
    means = [model.output_distribution(outputs.params, outputs.loc, outputs.scale).mean for _ in range(2)]
    assert torch.equal(*means)
    assert all(map(torch.equal, outputs.params, before))
    plain = model.output_distribution(outputs.params).mean
    torch.testing.assert_close(means[0], outputs.loc + outputs.scale * plain)


# --- streams ---------------------------------------------------------------------------------------------------------

STREAMING = [name for name, fields in SETTINGS.items() if fields.get("loss") != "mse"]


def stream(model, inputs, sizes, cache):
    """Log-likelihoods of the past in chunks of these sizes."""
    parts, start = [], 0
    for size in sizes:
        chunk = {
            name: value[:, start : start + size] if name.startswith("past") else value
            for name, value in inputs.items()
            if start == 0 or name.startswith("past")
        }
        parts.append(model.log_likelihood(**chunk, cache=cache))
        start += size
    return torch.cat(parts, dim=1)


@pytest.mark.contract
@pytest.mark.parametrize("sizes", [[1] * 30, [30], [7, 1, 1, 13, 2, 6]], ids=str)
@pytest.mark.parametrize("name", STREAMING)
def test_a_stream_equals_one_long_call(model_class, name, sizes):
    model = make(model_class, **SETTINGS[name])
    inputs = without_future(make_inputs(model.config, length=30))
    outputs = model(**inputs)
    inputs |= {"loc": outputs.loc + 0.25 * (model.config.scaling == "std"), "scale": outputs.scale * 1.5}
    whole = model.log_likelihood(**inputs)
    cache = DynamicCache()
    torch.testing.assert_close(stream(model, inputs, sizes, cache), whole, rtol=0, atol=1e-10)
    assert cache.get_seq_length() == 30


def test_the_first_chunk_of_a_stream_sets_its_scale():
    model = make(CLASSES["Lstm"], scaling="std")
    inputs = without_future(make_inputs(model.config, length=30))
    first = {name: value[:, :10] for name, value in inputs.items()}
    outputs = model(**first)
    known = inputs | {"loc": outputs.loc, "scale": outputs.scale}
    found = stream(model, inputs, [10, 20], DynamicCache())
    torch.testing.assert_close(found, model.log_likelihood(**known), rtol=0, atol=1e-10)


def test_the_state_of_a_stream_has_one_size_and_can_be_saved(model_class, tmp_path):
    model = make(model_class, **SETTINGS["covariates"])
    inputs = without_future(make_inputs(model.config, length=30))
    sizes, cache = set(), DynamicCache()
    stream(model, {name: value[:, :8] if "past" in name else value for name, value in inputs.items()}, [8], cache)
    for start in range(8, 30):
        chunk = {name: value[:, start : start + 1] for name, value in inputs.items() if "past" in name}
        expected = model.log_likelihood(**chunk, cache=cache)
        sizes.add(sum(state.untyped_storage().nbytes() for layer in cache.layers for state in layer.states))
        if start == 20:
            save_state(cache, tmp_path / "state")
            restored = load_state(tmp_path / "state")
            for one, other in zip(restored.layers, cache.layers, strict=True):
                torch.testing.assert_close(one.states, other.states, rtol=0, atol=0)
    assert len(sizes) == 1 or model.config.family == "Cnn"  # whose windows are views into what was read
    for start in range(21, 30):
        chunk = {name: value[:, start : start + 1] for name, value in inputs.items() if "past" in name}
        found = model.log_likelihood(**chunk, cache=restored)
    torch.testing.assert_close(found, expected)


def test_a_stream_keeps_no_graph(model_class):
    model = make(model_class)
    cache = DynamicCache()
    scores = model.log_likelihood(torch.ones(1, 3), cache=cache)
    assert not scores.requires_grad
    assert not any(state.requires_grad for layer in cache.layers for state in layer.states)


# --- saving, loading, other classes ----------------------------------------------------------------------------------


def test_nothing_has_to_be_said(model_class):
    config = model_class.config_class(vocab_size=17, hidden_size=8)
    before = config.to_dict()
    assert not before.keys() & {"lags_sequence", "distribution_output", "feature_size"}
    model = getattr(transformers, AUTO).from_config(config)
    assert type(model) is model_class and config.to_dict() == before
    known = model_class(model_class.config_class(vocab_size=17, hidden_size=8, input_size=1))
    assert {name: one.shape for name, one in model.state_dict().items()} == {
        name: one.shape for name, one in known.state_dict().items()
    }
    assert (model.config.input_size, model.config.feature_size, model.config.bidirectional) == (1, 3, False)
    if config.family == "Cnn":
        assert model.config.architecture == "residual"
    assert {"lags_sequence", "distribution_output", "feature_size"} <= model.config.to_dict().keys()
    assert model.main_input_name == model_class.main_input_name == "past_values"
    assert not model.can_generate()  # text
    with pytest.raises(NotImplementedError, match="no token embeddings"):
        model.get_input_embeddings()
    names = set(model.config.auto_map) - {"AutoConfig"}
    assert names == set(HEADS) - {"AutoModelForCausalLM"}
    assert AUTO not in config.auto_map and AUTO in model_class.config_class(input_size=2).auto_map
    assert AUTO not in model_class.config_class(input_size=2, bidirectional=True, hidden_size=8).auto_map


@pytest.mark.contract
def test_saved_and_loaded_is_the_same(model_class, settings, tmp_path):
    model = make(model_class, **settings)
    model.save_pretrained(tmp_path)
    loaded, info = getattr(transformers, AUTO).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class and not any(info.values()), info
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    inputs = make_inputs(model.config)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(**inputs).loss, model(**inputs).loss)
    torch.manual_seed(2)
    expected = model.generate(**for_generate(inputs)).sequences
    torch.manual_seed(2)
    torch.testing.assert_close(loaded.generate(**for_generate(inputs)).sequences, expected)


def test_other_classes_take_the_stack(model_class, settings, tmp_path):
    """They read what the forecaster's stack reads, as features."""
    model = make(model_class, **settings)
    model.save_pretrained(tmp_path)
    stack, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and stack.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    torch.testing.assert_close(stack.state_dict(), model.model.state_dict())
    features = torch.randn(2, 5, model.config.feature_size).double()
    expected = model.model(input_features=features).last_hidden_state
    torch.testing.assert_close(stack(input_features=features).last_hidden_state, expected)
    tagger, info = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and all(name.startswith("classifier") for name in info["missing_keys"])
    assert tagger(input_features=features).logits.shape == (2, 5, 2)
    stack.save_pretrained(tmp_path / "stack")
    again = transformers.AutoModel.from_pretrained(tmp_path / "stack")
    torch.testing.assert_close(again(input_features=features).last_hidden_state, expected)
    with pytest.raises(ValueError, match=rf"input_features has shape .* \(batch, length, {features.shape[2]}\)"):
        again(input_features=features[..., 1:])
    forecaster, info = getattr(transformers, AUTO).from_pretrained(tmp_path / "stack", output_loading_info=True)
    torch.testing.assert_close(forecaster.model.state_dict(), model.model.state_dict())
    assert all(name.startswith(("parameter_projection", "static_embeddings")) for name in info["missing_keys"])
    translator = transformers.AutoModelForSeq2SeqLM.from_config(model.config)
    logits = translator.double()(input_features=features, decoder_input_ids=torch.ones(2, 1).long()).logits
    assert logits.shape == (2, 1, model.config.vocab_size)


def test_fields_can_be_overridden_at_loading(model_class, tmp_path):
    make(model_class).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, prediction_length=9, num_parallel_samples=2)
    assert model.generate(torch.ones(1, 3).double()).sequences.shape == (1, 2, 9)
    with pytest.raises(ValueError, match="context_length=0 is impossible"):
        model_class.from_pretrained(tmp_path, context_length=0)


LOAD = """
import sys, torch, transformers
from pathlib import Path
from old_checkpoints import NoHfseq
sys.meta_path.insert(0, NoHfseq())
results = {}
for path in sorted(Path("checkpoints").iterdir()):
    model = transformers.AutoModelForTimeSeriesPrediction.from_pretrained(path, trust_remote_code=True)
    inputs = torch.load(path / "inputs.pt")
    loss = model(**inputs).loss.detach()
    torch.manual_seed(7)
    inputs = {name: value for name, value in inputs.items() if name not in ("future_values", "future_observed_mask")}
    results[path.name] = loss, model.generate(**inputs).sequences
torch.save(results, "results.pt")
assert "hfseq" not in sys.modules
"""


@pytest.mark.contract
def test_checkpoints_carry_their_code(tmp_path):
    expected = {}
    for family, name in {*((family, "default") for family in CLASSES), *(("Lstm", name) for name in SETTINGS)}:
        model = make(CLASSES[family], **SETTINGS[name])
        folder, inputs = tmp_path / "checkpoints" / f"{family}-{name}", make_inputs(model.config)
        model.save_pretrained(folder)
        torch.save(inputs, folder / "inputs.pt")
        loss = model(**inputs).loss.detach()
        torch.manual_seed(7)
        expected[folder.name] = loss, model.generate(**for_generate(inputs)).sequences
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(Path(__file__).parent)}
    done = run_elsewhere("-c", LOAD, environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "results.pt"), expected)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_the_trainer_trains_and_evaluates(model_class, tmp_path):
    """Values of a noisy sine are predicted better than by the last one."""
    torch.manual_seed(0)
    phase = 6.3 * torch.rand(64, 1)
    values = 5 + torch.sin(phase + torch.arange(24) * 0.7) + 0.05 * torch.randn(64, 24)
    rows = [{"past_values": row[:16], "future_values": row[16:]} for row in values]
    fields = {"hidden_size": 24, "num_hidden_layers": 1, "dropout": 0.0, "loss": "mse", "scaling": "std"}
    if model_class.config_class.family == "Cnn":
        fields |= {"num_hidden_layers": 2, "dilation_base": 2}
    model = model_class(model_class.config_class(**fields, prediction_length=8))
    arguments = TrainingArguments(
        str(tmp_path),
        label_names=["future_values"],
        num_train_epochs=60,
        learning_rate=1e-2,
        per_device_train_batch_size=32,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.25 * before
    found = model.eval().generate(values[:, :16]).sequences[:, 0]
    naive = (values[:, 15:16] - values[:, 16:]).square().mean()
    assert (found - values[:, 16:]).square().mean() < 0.2 * naive


def test_every_parameter_learns(model_class, settings):
    model = make(model_class, **settings).train()
    model(**make_inputs(model.config)).loss.backward()
    without = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    assert without == []


def test_values_are_not_dropped(model_class):
    """Dropout is that of the layers; what the stack reads is whole."""
    model = make(model_class, dropout=0.5)
    read = []
    model.model.stack.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))
    inputs = make_inputs(model.config)
    losses = [model(**inputs).loss, model.train()(**inputs).loss]
    assert torch.equal(*read) and not torch.isclose(*losses)


def test_low_precision(model_class):
    model = make(model_class).bfloat16()
    inputs = {
        name: value.float() if value.is_floating_point() else value
        for name, value in make_inputs(model.config).items()
    }
    outputs = model(**inputs)
    assert outputs.loss.dtype == outputs.params[0].dtype == torch.float32 and outputs.loss.isfinite()
    assert model.generate(**for_generate(inputs)).sequences.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        loss = make(model_class).float()(**inputs).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, make(model_class)(**inputs).loss, rtol=0.05, atol=0.05, check_dtype=False)


def test_hidden_states(model_class):
    """The inputs of the stack, and the output of each layer over context and horizon."""
    model = make(model_class, **SETTINGS["lags"])
    inputs = make_inputs(model.config)
    read, *layers = model(**inputs, output_hidden_states=True).decoder_hidden_states
    assert read.shape == (7, 4 + HORIZON, model.config.feature_size)
    assert [layer.shape for layer in layers] == [(7, 4 + HORIZON, model.config.hidden_size)] * 2
    assert model(**inputs).decoder_hidden_states is None


def test_integers_are_values(model_class):
    model = make(model_class, **SETTINGS["counts"]).float()
    values = torch.randint(0, 9, (3, 12))
    torch.testing.assert_close(model.log_likelihood(values), model.log_likelihood(values.float()))


# --- errors ----------------------------------------------------------------------------------------------------------

PAST = torch.ones(2, 9).double()
TIMED = {"num_time_features": 2}


@pytest.mark.parametrize(
    ("fields", "inputs", "message"),
    [
        (
            {},
            {"past_values": PAST[0]},
            r"past_values has shape \(9,\), expected \(batch, length\) or \(batch, length, 1",
        ),
        ({}, {"past_values": PAST[:, :0]}, "each at least 1 for input_size=1"),
        ({"input_size": 3}, {"past_values": PAST}, r"expected \(batch, length, 3\) for input_size=3"),
        ({}, {"past_observed_mask": PAST[:, 1:]}, r"past_observed_mask has shape \(2, 8\), expected \(2, 9\)"),
        ({}, {"future_values": PAST, "future_observed_mask": PAST[0]}, "future_observed_mask has shape"),
        (
            {"lags_sequence": [1, 12]},
            {},
            "has 9 steps, but lags_sequence reaches back 12: at least 12 steps are needed",
        ),
        (TIMED, {}, r"past_time_features are missing: a model with num_time_.* = 2 needs them, \(2, 9, 2\)"),
        (
            TIMED,
            {"past_time_features": PAST},
            r"past_time_features has shape \(2, 9\), expected \(2, 9, 2\) for num_t",
        ),
        (
            TIMED,
            {"past_time_features": torch.ones(2, 9, 2), "future_values": PAST},
            r"future_time_features are missing: .* needs them, \(2, 9, 2\)",
        ),
        ({}, {"past_time_features": torch.ones(2, 9, 2)}, r"expected \(2, 9, 0\)"),
        ({"num_static_real_features": 1}, {}, r"static_real_features are missing: .*=1 needs them, \(2, 1\)"),
        ({}, {"static_real_features": torch.ones(2, 1)}, r"expected \(2, 0\) for num_static_real_features=0"),
        (
            {"num_static_categorical_features": 1, "cardinality": [3]},
            {"static_categorical_features": torch.ones(2).long()},
            r"static_categorical_features has shape \(2,\), expected \(2, 1\)",
        ),
        (SETTINGS["counts"], {"past_values": PAST / 2}, "past_values has the value 0.5: .* integers of at least 0"),
        (SETTINGS["counts"], {"future_values": -PAST}, "future_values has the value -1: "),
    ],
)
def test_wrong_inputs(fields, inputs, message):
    model = make(CLASSES["Gru"], **fields)
    with pytest.raises(ValueError, match=message) as caught:
        model(**{"past_values": PAST} | inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"prediction_length": None}, {}, "prediction_length is None: set it in the config, or pass it"),
        ({}, {"prediction_length": 0}, "prediction_length=0 is impossible"),
        ({}, {"num_parallel_samples": 0}, "num_parallel_samples=0 is impossible"),
        ({"loss": "mse"}, {"num_parallel_samples": 5}, "num_parallel_samples=5: .* predicts one path"),
        (TIMED, {"past_time_features": torch.ones(2, 9, 2)}, "future_time_features are missing"),
        (
            TIMED,
            {"past_time_features": torch.ones(2, 9, 2), "future_time_features": torch.ones(2, 3, 2)},
            r"future_time_features has shape \(2, 3, 2\), expected \(2, 4, 2\)",
        ),
        ({"lags_sequence": [10]}, {}, "at least 10 steps are needed"),
    ],
)
def test_wrong_arguments_of_generate(fields, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(CLASSES["Gru"], **fields).generate(PAST, **arguments)


def test_wrong_arguments_of_log_likelihood():
    model = make(CLASSES["Gru"])
    one = torch.ones(2, 1).double()
    for arguments, message in [
        ({"loc": one}, "loc and scale belong together"),
        ({"loc": one, "scale": one[:1]}, r"scale has shape \(1, 1\), expected \(2, 1\) or \(2, 1, 1\)"),
        ({"loc": one, "scale": 0 * one}, "scale has values that are not positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.log_likelihood(PAST, **arguments)
    cache = DynamicCache()
    model.log_likelihood(PAST, cache=cache)
    with pytest.raises(ValueError, match="pass them with the first call only"):
        model.log_likelihood(PAST, loc=one, scale=one, cache=cache)
    with pytest.raises(ValueError, match="belongs to another model or batch"):
        model.log_likelihood(PAST[:1], cache=cache)
    for other in (make(CLASSES["Gru"], lags_sequence=[1, 2]), make(CLASSES["Rnn"])):
        with pytest.raises(ValueError, match="belongs to another model"):
            other.log_likelihood(PAST, cache=cache)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bidirectional": True}, "bidirectional=True is impossible, a forecaster reads forward"),
        ({"input_size": None, "char_encoder": "cnn"}, "char_encoder=cnn is impossible, a forecaster reads values"),
        ({"input_size": None, "add_cross_attention": True}, "add_cross_attention=True is impossible"),
        ({"subsampling_factor": 2}, "subsampling_factor=2 is impossible, a forecaster predicts every step"),
        ({"apply_spec_augment": True}, "apply_spec_augment=True is impossible"),
        ({"lags_sequence": []}, "lags_sequence=.* is impossible, it must be one or more different lags"),
        ({"lags_sequence": [0, 1]}, "lags_sequence"),
        ({"lags_sequence": [2, 2]}, "lags_sequence"),
        ({"distribution_output": "negative_binomial", "scaling": "std"}, "counts can be scaled, but not shifted"),
        ({"distribution_output": "negative_binomial", "differencing": True}, "differences of counts are no counts"),
        ({"num_static_categorical_features": 1}, "cardinality=None is impossible, it must be 1 sizes"),
        ({"cardinality": [3]}, "cardinality=.* is impossible, it must be 0 sizes"),
        ({"num_static_categorical_features": 1, "cardinality": [0]}, "cardinality"),
        (
            {"num_static_categorical_features": 1, "cardinality": [2], "embedding_dimension": [1, 1]},
            "embedding_dimension",
        ),
        ({"num_time_features": -1}, "num_time_features=-1 is impossible"),
        ({"num_parallel_samples": 0}, "num_parallel_samples=0 is impossible"),
        ({"prediction_length": 0}, "prediction_length=0 is impossible"),
        ({"scaling": "max"}, "scaling"),
        ({"loss": "mae"}, "loss"),
    ],
)
def test_impossible_configurations(fields, message):
    model_class = CLASSES["Lstm"]
    with pytest.raises(Exception, match=message):
        model_class(model_class.config_class(**TINY | {"input_size": 1} | fields))


def test_other_spellings_of_fields():
    config = CLASSES["Lstm"].config_class
    assert config(scaling=True).scaling == "mean" and config(scaling=False).scaling is None
    assert config(lags_sequence=(1, 2)).lags_sequence == [1, 2]
    made = config(num_static_categorical_features=3, cardinality=[2, 5, 300])
    assert made.embedding_dimension == [1, 3, 50]
    assert config.from_dict(json.loads(made.to_json_string())).to_dict() == made.to_dict()
