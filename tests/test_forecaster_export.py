"""ONNX graphs of forecasters: equal to the models at any length, their runner, pipelines, and int8."""

import json
import math
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from token_classes import FAMILIES, LINEAR
from transformers import DynamicCache, pipeline

import hfseq
from hfseq.data.collation import vocabulary_sizes
from hfseq.errors import InputError
from hfseq.onnx import quantize as quantization
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import OnnxForPrediction, load_onnx

CLASSES = {
    config.family: heads["AutoModelForTimeSeriesPrediction"]
    for config, heads in FAMILIES.items()
    if config.family not in LINEAR
}
SETTINGS = {
    "default": {},
    "normal": {"distribution_output": "normal", "scaling": "std", "context_length": 6},
    "counts": {"distribution_output": "negative_binomial", "lags_sequence": [1, 2]},
    "unscaled": {"scaling": None, "lags_sequence": [3, 1]},
    "lags": {"lags_sequence": [1, 2, 7], "context_length": 4, "scaling": "std"},
    "covariates": {
        "num_time_features": 1,
        "num_dynamic_real_features": 1,
        "num_static_categorical_features": 2,
        "cardinality": [3, 5],
        "embedding_dimension": [2, 1],
        "num_static_real_features": 2,
        "lags_sequence": [2, 4],
        "context_length": 5,
    },
    "variates": {"input_size": 2, "lags_sequence": [1, 3], "num_time_features": 2},
    "points": {"loss": "mse", "scaling": "std", "embedding_size": 5},
    "differences": {"differencing": True, "scaling": "std", "lags_sequence": [1, 3], "context_length": 5},
    "differences of points": {"differencing": True, "loss": "mse", "input_size": 2},
}
HORIZON = 5


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model in float32, the runner of its graphs and the folder of these; each is made once."""
    made = {}

    def get(family="Gru", hidden_size=12, **fields):
        key = family, hidden_size, repr(fields)
        if key not in made:
            torch.manual_seed(0)
            model_class, folder = CLASSES[family], tmp_path_factory.mktemp("export")
            sizes = {"hidden_size": hidden_size, "num_hidden_layers": 2, "dropout": 0.0, "num_parallel_samples": 3}
            model = model_class(model_class.config_class(**sizes | {"prediction_length": HORIZON} | fields)).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.uniform_(-0.4, 0.4)
            model.save_pretrained(folder / "model")
            hfseq.export_onnx(folder / "model", folder / "onnx")
            runner, processing_class = load_onnx(folder / "onnx", threads=1)
            assert type(runner) is OnnxForPrediction and processing_class is None
            made[key] = model, runner, folder / "onnx"
        return made[key]

    return get


def make_inputs(model, rows=6, length=12):
    """A full row, leading missing values, gaps, a row of nothing, a constant; NaN where a value is missing."""
    config, rng = model.config, torch.Generator().manual_seed(length)
    values = 7 + 5 * torch.randn(rows, length, config.input_size, generator=rng)
    if model.counts:
        values = values.abs().round()
    mask = torch.rand(rows, length, config.input_size, generator=rng) < 0.6
    mask[0] = True
    if rows > 4:
        mask[1, : length // 2], mask[1, length // 2 :] = False, True
        mask[3] = False
        values[4] = 3.0
    inputs = {"past_values": values.masked_fill(~mask, math.nan), "past_observed_mask": mask.long()}
    if config.input_size == 1:
        inputs = {name: value.squeeze(2) for name, value in inputs.items()}
    if count := config.num_time_features + config.num_dynamic_real_features:
        inputs["past_time_features"] = torch.randn(rows, length, count, generator=rng)
        inputs["future_time_features"] = torch.randn(rows, HORIZON, count, generator=rng)
    if config.num_static_categorical_features:
        columns = [torch.randint(0, size, (rows,), generator=rng) for size in config.cardinality]
        inputs["static_categorical_features"] = torch.stack(columns, dim=1)
    if config.num_static_real_features:
        inputs["static_real_features"] = torch.randn(rows, config.num_static_real_features, generator=rng)
    return inputs


def past_of(inputs):
    return {name: value for name, value in inputs.items() if not name.startswith("future")}


def seeded(function, *args, **options):
    torch.manual_seed(3)
    return function(*args, **options)


def check_near(found, expected):
    """Equal up to 1e-5 of the size of the expected values."""
    assert found.shape == expected.shape
    largest = max([1.0, *expected.abs().flatten().tolist()])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * largest)


@pytest.fixture(params=CLASSES)
def family(request):
    return request.param


@pytest.fixture(params=SETTINGS)
def settings(request):
    return SETTINGS[request.param]


# --- parity ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_graphs_equal_their_model_at_any_length(family, settings, exported):
    model, runner, _ = exported(family, **settings)
    assert runner.main_input_name == model.main_input_name and vocabulary_sizes(runner) == vocabulary_sizes(model)
    for rows, length in ((1, model.reach), (6, 12), (5, 13), (2, 40)):
        inputs = make_inputs(model, rows, length)
        expected, found = model(**past_of(inputs)), runner(**past_of(inputs))
        for one, other in zip(expected.params, found.params, strict=True):
            check_near(other, one)
        for name in ("loc", "scale", "static_features"):
            check_near(found[name], expected[name])
        # Draws of a Poisson distribution are whole numbers, which agree exactly.
        sequences = seeded(runner.generate, **inputs, prediction_length=HORIZON).sequences
        check_near(sequences, seeded(model.generate, **inputs, prediction_length=HORIZON).sequences)
    assert torch.cat([one.flatten() for one in expected.params]).std() > 1e-3


@pytest.mark.parametrize("name", ["default", "lags", "differences", "covariates", "variates"])
@torch.no_grad()
def test_likelihoods_and_streams_equal_those_of_the_model(family, name, exported):
    model, runner, _ = exported(family, **SETTINGS[name])
    inputs = past_of(make_inputs(model, length=20))
    check_near(runner.log_likelihood(**inputs), model.log_likelihood(**inputs))
    expected = model(**inputs)
    fixed = {"loc": expected.loc, "scale": expected.scale}
    whole, caches, parts = model.log_likelihood(**inputs, **fixed), [DynamicCache(), DynamicCache()], [[], []]
    for start, end in ((0, 1), (1, 2), (2, 9), (9, 20)):
        now = {name: value[:, start:end] if name.startswith("past") else value for name, value in inputs.items()}
        if start:
            now = {name: value for name, value in now.items() if name.startswith("past")}
        for one, cache, part in zip((model, runner), caches, parts, strict=True):
            part.append(one.log_likelihood(**now, **({} if start else fixed), cache=cache))
    check_near(torch.cat(parts[0], dim=1), whole)
    check_near(torch.cat(parts[1], dim=1), whole)
    with pytest.raises(ValueError, match="belongs to another model"):
        model.log_likelihood(**now, cache=caches[1])


@pytest.mark.parametrize("name", ["points", "lags", "differences", "differences of points"])
def test_a_row_alone_equals_it_in_a_batch(family, name, exported):
    """Whatever stands at missing values, and however many are missing before the first."""
    _, runner, _ = exported(family, **SETTINGS[name])
    inputs = make_inputs(runner, length=12)
    whole = runner(**inputs).params
    shortest = max(6, runner.reach)  # its first six values are missing
    alone = {key: value[1:2, -shortest:] for key, value in inputs.items()}
    alone["past_values"] = alone["past_values"].nan_to_num(1e4)
    longer = {key: torch.cat([torch.zeros_like(value)] * 3 + [value], dim=1) for key, value in inputs.items()}
    for rows, other in ((slice(1, 2), runner(**alone)), (slice(None), runner(**longer))):
        for one, two in zip(whole, other.params, strict=True):
            check_near(two[:, -4:], one[rows, -4:])


@torch.no_grad()
def test_a_gap_as_long_as_it_likes(exported):
    """Traced, the last value before a gap is found however long that is, beyond the length of the examples."""
    model, runner, _ = exported(**SETTINGS["differences"])
    values = torch.full((2, 3000), math.nan)
    values[:, 4], values[0, 9], values[1, -2] = 3.0, 5.0, 9.0
    values[:, -1] = torch.tensor([7.0, 8.0])
    expected, found = model(past_values=values), runner(past_values=values)
    assert found.loc.tolist() == [[2.0], [2.5]]  # of the differences 2, and of 6 and -1
    for one, other in zip(expected.params, found.params, strict=True):
        check_near(other, one)
    check_near(seeded(runner.generate, values).sequences, seeded(model.generate, values).sequences)


@pytest.mark.parametrize("family", ["Lstm", "Cnn"])
def test_the_graphs_alone_forecast(family, exported):
    """As the docstring of `export_onnx` has it, by onnxruntime and NumPy: points, lags, and no other code."""
    model, _, folder = exported(family, loss="mse", lags_sequence=[1, 4], context_length=6, prediction_length=HORIZON)
    start, decoder = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("start", "decoder"))
    about = json.loads((folder / "onnx.json").read_text())
    values = np.array([[[3.0], [4.0], [np.nan], [6.0], [5.0], [8.0], [7.0], [9.0]]], dtype=np.float32)
    names = [output.name for output in start.get_outputs()]
    given = {"past_values": values, "past_observed_mask": np.isfinite(values).astype(np.int64)}
    found = dict(zip(names, start.run(names, given), strict=True))
    states = {name: np.zeros((1, *state["shape"]), dtype=state["dtype"]) for name, state in about["states"].items()}
    series, mask, path = found["series"], found["attention_mask"], []
    names = [output.name for output in decoder.get_outputs()]
    for _ in range(HORIZON):
        inputs = {"series": series, "attention_mask": mask, "static_features": found["static_features"]} | states
        outputs = dict(zip(names, decoder.run(names, inputs), strict=True))
        scaled = outputs["param_value"][:, -1:]
        path.append((found["loc"] + found["scale"] * scaled).item())
        states = {name: outputs[f"new_{name}"] for name in states}
        newest = np.concatenate([scaled, np.ones_like(scaled)], axis=2)
        series, mask = np.concatenate([series, newest], axis=1)[:, -4:], np.ones((1, 1), np.int64)
    expected = model.generate(torch.from_numpy(values)).sequences.flatten()
    np.testing.assert_allclose(path, expected.numpy(), rtol=1e-5)


def test_axes_are_named_by_their_sizes(exported):
    """onnxruntime takes axes of one name for equally long."""
    _, _, folder = exported(**SETTINGS["lags"] | {"context_length": None})
    for graph, expected in (
        ("start", {"past_values": "past_values_length", "series": "series_length", "attention_mask": "length"}),
        ("decoder", {"series": "series_length", "attention_mask": "length", "param_df": "length"}),
    ):
        model = onnx.load(folder / f"{graph}.onnx").graph
        axes = {
            one.name: [size.dim_param or size.dim_value for size in one.type.tensor_type.shape.dim]
            for one in (*model.input, *model.output)
        }
        for name, title in expected.items():
            assert axes[name][:2] == ["batch", title]


# --- pipelines, errors, int8 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "counts", "points", "differences"])
def test_the_pipeline_takes_a_runner(name, exported):
    model, runner, _ = exported("Lstm", **SETTINGS[name])
    rows = [[3.0, 4.0, math.nan, 6.0, 5.0, 7.0], [1.0, 2.0], {"target": [2.0] * 30}]
    results = [seeded(pipeline("time-series-forecasting", model=one), rows, batch_size=2) for one in (model, runner)]
    for expected, found in zip(*results, strict=True):
        assert expected.keys() == found.keys()
        np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-5)
        for level, values in expected.get("quantiles", {}).items():
            np.testing.assert_allclose(found["quantiles"][level], values, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"past_values": torch.ones(2, 3), "past_observed_mask": None},
            "past_values has 3 steps, but lags_sequence reaches back 4",
        ),
        ({"past_values": torch.ones(2, 6, 2)}, r"past_values has shape \(2, 6, 2\)"),
        ({"past_observed_mask": torch.ones(2, 5)}, r"past_observed_mask has shape \(2, 5\)"),
        ({"past_time_features": None}, "past_time_features are missing"),
        ({"static_categorical_features": None}, "static_categorical_features are missing"),
        ({"static_real_features": torch.ones(2, 1)}, r"static_real_features has shape \(2, 1\)"),
        ({"static_categorical_features": torch.tensor([[0, 5], [0, 0]])}, "the class id 5 in column 1; .* 0 to 4"),
        ({"static_categorical_features": torch.tensor([[0, 0], [-1, 0]])}, "the class id -1 in column 0; .* 0 to 2"),
    ],
)
def test_a_runner_refuses_what_the_model_refuses(change, message, exported):
    _, runner, _ = exported(**SETTINGS["covariates"])
    inputs = make_inputs(runner, rows=2, length=6)
    for function, given in ((runner, past_of(inputs)), (runner.generate, inputs)):
        with pytest.raises(ValueError, match=message):
            function(**given | change)


def test_what_a_runner_does_not_do(exported):
    _, runner, _ = exported()
    values = torch.ones(1, 3)
    with pytest.raises(ValueError, match="take no future_values"):
        runner(values, future_values=values)
    with pytest.raises(ValueError, match="copy its folder"):
        runner.save_pretrained("again")
    _, runner, _ = exported(**SETTINGS["counts"])
    with pytest.raises(ValueError, match="past_values has the value 0.5"):
        runner.generate(values / 2)
    _, runner, _ = exported(**SETTINGS["points"])
    for wrong, message in (
        ({"num_parallel_samples": 2}, "predicts one path"),
        ({"prediction_length": 0}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.generate(values, **wrong)
    with pytest.raises(ValueError, match="no value has a likelihood"):
        runner.log_likelihood(values)


def test_integers_and_doubles_are_read_in_float32(exported):
    model, runner, _ = exported(**SETTINGS["differences"])
    values = torch.arange(12).view(2, 6) ** 2
    expected = seeded(model.generate, values.float()).sequences
    for one in (values, values.double()):
        check_near(seeded(runner.generate, one).sequences, expected)


@pytest.mark.parametrize("name", ["default", "counts", "covariates", "differences of points"])
def test_int8_is_near_and_says_what_it_covers(family, name, exported, tmp_path):
    model, runner, folder = exported(family, hidden_size=32, **SETTINGS[name])
    report = quantize_onnx(folder, tmp_path / "int8")
    assert 0 < report["decoder"]["median difference"] <= quantization.TOLERANCE
    assert report["decoder"]["int8 MatMul"] >= 1 and report["start"].keys() <= {"int8 embedding"}
    assert ("int8 embedding" in report["start"]) == (name == "covariates")
    if family in ("Gru", "Rnn"):
        assert report["decoder"][f"fp32 {family.upper()}"] == 2
    small, _ = load_onnx(tmp_path / "int8", threads=1)
    inputs = past_of(make_inputs(model))
    for one, other in zip(small(**inputs).params, runner(**inputs).params, strict=True):
        assert (one - other).norm() < 0.1 * other.norm()
    with pytest.raises(InputError, match=re.escape("int8/start.onnx") + "|" + re.escape("int8/decoder.onnx")):
        quantize_onnx(tmp_path / "int8", tmp_path / "again")


@pytest.mark.parametrize("wrong", ["mask", "states", "series"])
def test_int8_is_compared_with_missing_values_and_states(wrong, exported, monkeypatch):
    _, _, folder = exported(hidden_size=32, lags_sequence=[1, 2])
    plain, other = (load_onnx(folder, threads=1)[0] for _ in range(2))
    assert quantization.relative_differences(plain, other) == (0.0, 0.0)
    run = other.run

    def blind(graph, inputs):
        if wrong == "mask" and graph == "start":
            inputs = inputs | {"past_observed_mask": torch.ones_like(inputs["past_observed_mask"])}
        if wrong == "series" and graph == "decoder":
            inputs = inputs | {"series": torch.zeros_like(inputs["series"])}
        outputs = run(graph, inputs)
        kept = {f"new_{name}": value for name, value in inputs.items() if name.startswith("state_")}
        return outputs | (kept if wrong == "states" and graph == "decoder" else {})

    monkeypatch.setattr(other, "run", blind)
    assert quantization.relative_differences(plain, other)[1] > 0.01


def test_an_export_replaces_an_earlier_one(exported, tmp_path):
    _, _, folder = exported()
    names = {path.name for path in folder.iterdir()}
    assert names >= {"start.onnx", "decoder.onnx", "onnx.json", "config.json"}
    shutil.copytree(folder, tmp_path / "onnx")
    hfseq.export_onnx(folder.parent / "model", tmp_path / "onnx")
    (tmp_path / "onnx" / "start.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="start.onnx is damaged"):
        load_onnx(tmp_path / "onnx")
