"""Forecasters of frames, and of points that are trained on their own predictions."""

import json

import pytest
import torch
from torch import nn

from hfseq import CnnConfig, GruConfig, LstmConfig, LstmForPrediction, LstmModel, RnnConfig, export_onnx
from hfseq.models import MODEL_CLASSES

pytestmark = pytest.mark.contract

SHAPE = (2, 5, 4)
FRAMES = {"frame_shape": SHAPE, "scaling": None, "loss": "mse", "num_hidden_layers": 2, "dropout": 0.0}
KINDS = {
    "vectors": {"hidden_size": 8},
    "convolved": {"hidden_size": 8, "frame_filters": [3, 4]},
    "maps": {"hidden_size": 40, "recurrent_kernel_size": 3},
    "smaller_maps": {"hidden_size": 24, "recurrent_kernel_size": 3, "frame_filters": [3]},
    "normal": {"hidden_size": 24, "recurrent_kernel_size": 3, "frame_filters": [3], "loss": "nll"},
}
FAMILIES = [RnnConfig, LstmConfig, GruConfig, CnnConfig]
POINTS = {"hidden_size": 8, "num_hidden_layers": 2, "dropout": 0.0, "loss": "mse", "teacher_forcing": False}


def make(config):
    """A forecaster in float64 with large weights."""
    torch.manual_seed(0)
    model = MODEL_CLASSES[type(config)]["AutoModelForTimeSeriesPrediction"](config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return model


def make_frames(kind, **fields):
    fields = {"distribution_output": "normal"} | FRAMES | KINDS[kind] | fields
    return make(LstmConfig(**fields))


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def path_of(model, past, length, **inputs):
    """The path of a point forecaster."""
    return model.generate(past_values=past, prediction_length=length, **inputs).sequences[:, 0]


# --- frames ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_vectors_of_their_pixels(kind):
    """All results are those of flattened frames, in the shape in which frames came."""
    model = make_frames(kind)
    past, future = numbers(3, 6, *SHAPE), numbers(3, 2, *SHAPE, seed=1)
    frames = model(past_values=past, future_values=future)
    vectors = model(past_values=past.flatten(2), future_values=future.flatten(2))
    torch.testing.assert_close(frames.loss, vectors.loss)
    for found, expected in zip(frames.params, vectors.params, strict=True):
        assert found.shape == (3, 2, *SHAPE)
        torch.testing.assert_close(found.flatten(2), expected)
    assert frames.loc.shape == frames.scale.shape == (3, 1, *SHAPE)
    if kind == "normal":
        scores = model.log_likelihood(past_values=past, loc=frames.loc, scale=frames.scale)
        expected = model.log_likelihood(past_values=past.flatten(2), loc=vectors.loc, scale=vectors.scale)
        torch.testing.assert_close(scores, expected.unflatten(2, SHAPE))
    else:
        path = path_of(model, past, 2)
        assert path.shape == (3, 2, *SHAPE)
        torch.testing.assert_close(path.flatten(2), path_of(model, past.flatten(2), 2))


@pytest.mark.parametrize("kind", ["maps", "smaller_maps", "normal"])
def test_pixels_of_maps_by_hand(kind):
    """The stack reads values and masks as channels; a linear layer gives the pixels under each place of its maps."""
    model = make_frames(kind, lags_sequence=[1, 2], num_time_features=1)
    past, time = numbers(2, 5, *SHAPE), numbers(2, 5, 1, seed=1)
    got = torch.stack(model(past_values=past, past_time_features=time).params, dim=2)  # [B, T, parameters, ...]
    channels = []
    for lag in (1, 2):
        seen = torch.cat([torch.zeros_like(past[:, :lag]), past[:, :-lag]], dim=1)
        mask = torch.ones_like(seen)
        mask[:, :lag] = 0
        channels += [seen, mask]
    channels.append(time.view(2, 5, 1, 1, 1).expand(-1, -1, -1, 5, 4))
    maps = torch.cat(channels, dim=2)
    for layer in [] if model.model.frame_encoder is None else model.model.frame_encoder.convolutions:
        maps = nn.functional.conv2d(maps.flatten(0, 1), layer.weight, layer.bias, stride=2, padding=1).relu()
        maps = maps.unflatten(0, (2, 5))
    hidden = model.model.stack(maps.flatten(2))[0][-1]
    factor, (height, width) = (1, (5, 4)) if kind == "maps" else (2, (3, 2))
    count = 2 if kind == "normal" else 1
    hidden = hidden.view(2, 5, -1, height, width)
    raw = numbers(0).new_zeros(2, 5, count, *SHAPE)
    for y in range(5):
        for x in range(4):
            values = model.parameter_projection.linear(hidden[..., y // factor, x // factor])
            raw[..., y, x] = values.view(2, 5, count, 2, factor, factor)[..., y % factor, x % factor]
    torch.testing.assert_close(got[:, :, 0], raw[:, :, 0])
    if kind == "normal":
        torch.testing.assert_close(got[:, :, 1], (raw[:, :, 1] + (raw[:, :, 1] ** 2 + 4).sqrt()) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_what_it_is_alone(kind):
    """Leading frames that are missing are padding; others are missing, whatever stands in their place."""
    model = make_frames(kind)
    past, future = numbers(3, 6, *SHAPE), numbers(3, 2, *SHAPE, seed=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    spoilt = past.masked_fill(mask.view(3, 6, 1, 1, 1) == 0, float("nan"))
    together = model(past_values=spoilt, past_observed_mask=mask, future_values=future).params[0]
    of_pixels = mask.view(3, 6, 1, 1, 1).expand_as(past)
    same = model(past_values=spoilt, past_observed_mask=of_pixels, future_values=future).params[0]
    torch.testing.assert_close(same, together, rtol=0, atol=0)
    for row, first in enumerate((2, 0, 0)):
        inputs = {"past_values": past[row : row + 1, first:], "past_observed_mask": mask[row : row + 1, first:]}
        alone = model(**inputs, future_values=future[row : row + 1]).params[0]
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("kind", ["convolved", "smaller_maps"])
def test_saved_exported_and_loaded_is_the_same(kind, tmp_path):
    from hfseq.onnx.runtime import load_onnx

    model = make_frames(kind, prediction_length=3).float()
    model.save_pretrained(tmp_path / "model")
    past = numbers(3, 6, *SHAPE).float()
    expected = model.generate(past_values=past).sequences
    loaded, info = LstmForPrediction.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(loaded.generate(past_values=past).sequences, expected)
    runner, _ = load_onnx(export_onnx(tmp_path / "model", tmp_path / "onnx"))
    torch.testing.assert_close(runner.generate(past_values=past).sequences, expected, rtol=1e-4, atol=1e-4)
    assert runner(past_values=past).params[0].shape == past.shape
    backbone = LstmModel.from_pretrained(tmp_path / "model")
    assert backbone(input_features=torch.zeros(1, 2, model.config.feature_size))[0].isfinite().all()


def test_wrong_shapes_of_frames():
    model = make_frames("maps")
    with pytest.raises(ValueError, match=r"expected \(batch, length, 40\) or \(batch, length, 2, 5, 4\)"):
        model(past_values=numbers(3, 6, 5, 4, 2))


# --- predictions fed back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scaling": "std", "lags_sequence": [1, 3], "input_size": 2, "num_time_features": 1},
        {"differencing": True, "context_length": 4},
    ],
    ids=["plain", "lags", "differences"],
)
@pytest.mark.parametrize("config_class", FAMILIES)
def test_training_predicts_what_generation_does(config_class, fields):
    """Whatever the future is; the loss is of context and horizon, and the whole path has gradients."""
    model = make(config_class(**POINTS | fields))
    size = model.config.input_size
    past, future = numbers(3, 8, size), numbers(3, 4, size, seed=1)
    past[0, :3] = past[1, 5] = past[2] = float("nan")  # leading, in between, all
    time = {"past_time_features": numbers(3, 8, 1, seed=2)} if model.config.num_time_features else {}
    later = {"future_time_features": numbers(3, 4, 1, seed=3)} if time else {}
    outputs = model(past_values=past, future_values=future, **time, **later, output_hidden_states=True)
    other = model(past_values=past, future_values=future + 1, **time, **later)
    torch.testing.assert_close(outputs.params, other.params)
    path = outputs.loc + outputs.scale * outputs.params[0]
    if model.config.differencing:
        level = torch.stack([row[~row.isnan()][-1:].sum() for row in past]).view(3, 1, 1)
        path = level + path.cumsum(dim=1)
    torch.testing.assert_close(path, path_of(model, past, 4, **time, **later))
    steps = min(8, model.config.context_length or 8) + 4
    assert [layer.shape[1] for layer in outputs.decoder_hidden_states] == [steps] * 3
    # Values of the horizon may be missing, too.
    missing = future.masked_fill(torch.arange(4).view(1, 4, 1) < 3, float("nan"))
    model(past_values=past, future_values=missing, **time, **later).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_loss_of_predictions_fed_back():
    """The squared errors of the context, whose values are known, and of the path, divided by their number."""
    model = make(GruConfig(**POINTS, scaling=None))
    past, future = numbers(2, 6), numbers(2, 3, seed=1)
    loss = model(past_values=past, future_values=future).loss
    context = model(past_values=past).params[0]
    errors = torch.cat([context - past, path_of(model, past, 3) - future], dim=1)
    torch.testing.assert_close(loss, errors.square().mean())
    forced = make(GruConfig(**POINTS | {"teacher_forcing": True}, scaling=None))(
        past_values=past, future_values=future
    )
    assert not torch.isclose(forced.loss, loss)
    torch.testing.assert_close(forced.params[0][:, :1], model(past_values=past, future_values=future).params[0][:, :1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_go_through_predictions(checkpointing):
    """By differences of the loss: those of the last step come through all predictions before it."""
    model = make(LstmConfig(**POINTS, scaling=None)).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    past, future = numbers(2, 6), numbers(2, 3, seed=1)
    future[:, :2] = float("nan")
    bias = model.parameter_projection.bias

    def loss():
        return model(past_values=past, future_values=future).loss

    gradient, losses = torch.autograd.grad(loss(), bias)[0], []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            bias += step
            losses.append(loss())
    torch.testing.assert_close(gradient.squeeze(), (losses[0] - losses[1]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_only_point_forecasters_feed_back(tmp_path):
    with pytest.raises(ValueError, match="teacher_forcing=False is impossible.* set loss='mse'"):
        LstmConfig(teacher_forcing=False)
    make(LstmConfig(**POINTS)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["teacher_forcing"] is False
