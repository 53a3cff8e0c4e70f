"""Frames of pixels: convolutions over each frame, before any stack and under any head."""

import json

import numpy as np
import pytest
import torch
import transformers
from oracles import convolve_frame

from hfseq import CnnConfig, GruConfig, LstmConfig, LstmForPrediction, LstmModel, RnnConfig, export_onnx, publish
from hfseq.data.collation import check_batch, vocabulary_sizes
from hfseq.data.features import FeatureCollator
from hfseq.errors import InputError
from hfseq.models import MODEL_CLASSES

pytestmark = pytest.mark.contract

SHAPE = (2, 5, 4)
TINY = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "dropout": 0.0,
    "frame_shape": SHAPE,
    "frame_filters": [3, 4],
}
# Left, right and gapped padding, a full row, a row of one frame.
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
READING = ["AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForCTC"]
CLASSES = [
    pytest.param(heads[auto], id=heads[auto].__name__)
    for heads in MODEL_CLASSES.values()
    for auto in [*READING, "AutoModelForSeq2SeqLM"]
]


def make(model_class, **fields):
    """A model in float64 with large weights, whose statistics are far from 0 and 1."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**TINY | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    count = model.config.input_size
    model.base_model.set_feature_statistics(torch.linspace(-1, 1, count), torch.linspace(0.5, 2, count))
    return model


def pixels(rows=5, length=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, *SHAPE, generator=generator, dtype=torch.float64)


def run(model, frames, mask=None):
    """First output for frames and a target that is the same for all rows."""
    inputs = {"input_features": frames, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 6]]).repeat(len(frames), 1)
    return model(**inputs)[0]


def valid(model, output, row, positions):
    """The part of a row of an output that belongs to its valid frames."""
    if output.dim() == 2 or model.config.is_encoder_decoder:
        return output[row]
    factor = model.config.subsampling_factor
    return output[row, positions] if factor == 1 else output[row, : -(-int(positions.sum()) // factor)]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (1, 1), (5, 3)])
@pytest.mark.parametrize("factor", [1, 2])
def test_inputs_of_the_stack_by_hand(kernel, stride, factor):
    """Normalised, convolved with ReLUs, moved to the left, filled up with zeros and stacked, by the definition."""
    model = make(LstmModel, frame_kernel_size=kernel, frame_stride=stride, subsampling_factor=factor)
    got, mask = model.embed_frames(pixels(), MASK, 0)
    for row, positions in enumerate(MASK.bool()):
        expected = []
        for frame in pixels()[row, positions]:
            maps = ((frame.flatten() - model.feature_mean) / model.feature_scale).view(SHAPE)
            for layer in model.frame_encoder.convolutions:
                maps = convolve_frame(layer.weight, layer.bias, maps, stride).relu()
            expected.append(maps.flatten())
        expected += [torch.zeros_like(expected[0])] * (-len(expected) % factor)
        expected = torch.stack(expected).unflatten(0, (-1, factor)).flatten(1)
        found = got[row, positions] if factor == 1 else got[row, : len(expected)]
        torch.testing.assert_close(found, expected)
        assert mask[row].sum() == len(expected)
    assert got.shape[2] == model.config.input_width()


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("model_class", CLASSES)
def test_padding_changes_nothing(model_class, factor):
    """Each row gives what it gives alone, whatever stands at padding, gradients included; flat pixels are the same."""
    model = make(model_class, subsampling_factor=factor, embedding_size=None if factor == 1 else 6)
    spoilt = pixels().masked_fill(~MASK.bool().view(5, 5, 1, 1, 1), float("nan"))
    output = run(model, spoilt, MASK)
    torch.testing.assert_close(run(model, spoilt.flatten(2), MASK), output, rtol=0, atol=0)
    found = [valid(model, output, row, positions) for row, positions in enumerate(MASK.bool())]
    alone = [run(model, pixels()[row, positions].unsqueeze(0))[0] for row, positions in enumerate(MASK.bool())]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [
        torch.autograd.grad(sum(row.pow(2).sum() for row in rows), parameters, allow_unused=True)
        for rows in (found, alone)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
    filters = next(at for at, (name, _) in enumerate(model.named_parameters()) if "convolutions.0.weight" in name)
    assert gradients[0][filters].abs().sum() > 0


@pytest.mark.parametrize("config_class", [RnnConfig, LstmConfig, GruConfig, CnnConfig])
def test_chunks_with_a_cache_equal_one_call(config_class):
    model = make(MODEL_CLASSES[config_class]["AutoModel"], bidirectional=False)
    frames, cache, parts = pixels(2, 7), None, []
    whole = model(input_features=frames).last_hidden_state
    for chunk in frames.split([3, 1, 3], dim=1):
        outputs = model(input_features=chunk, cache=cache, use_cache=True)
        cache = outputs.cache
        parts.append(outputs.last_hidden_state)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("model_class", CLASSES[:5])
def test_saved_and_loaded_is_the_same(model_class, tmp_path):
    model = make(model_class)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["input_size"] == 40 and saved["frame_shape"] == [2, 5, 4]
    assert (tmp_path / "frames.py").is_file()
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not any(info.values()), info
    torch.testing.assert_close(run(loaded, pixels(), MASK), run(model, pixels(), MASK))


def test_only_models_of_pixels_say_so_in_their_files():
    assert not [name for name in LstmConfig(input_size=40).to_dict() if name.startswith("frame_")]
    config = LstmConfig(frame_shape=SHAPE)
    assert config.input_size == 40 and config.to_dict()["frame_shape"] == [2, 5, 4]
    # Without filters a frame is a vector of its pixels.
    model = LstmModel(config).eval()
    assert model.frame_encoder is None
    frames = pixels().float()
    torch.testing.assert_close(model(input_features=frames)[0], model(input_features=frames.flatten(2))[0])


def test_initial_filters_keep_the_variance():
    torch.manual_seed(0)
    model = LstmModel(LstmConfig(frame_shape=(8, 9, 9), frame_filters=[64, 64], frame_stride=1))
    for layer in model.frame_encoder.convolutions:
        fan_in = layer.weight[0].numel()
        assert abs(layer.weight.var() * fan_in / 2 - 1) < 0.05 and not layer.bias.any()


@pytest.mark.processor
@pytest.mark.parametrize("checkpointing", [False, True])
def test_low_precision_and_gradient_checkpointing(checkpointing):
    model_class = MODEL_CLASSES[LstmConfig]["AutoModelForSequenceClassification"]
    model = make(model_class, hidden_size=16).float().train()
    if checkpointing:
        model.activation_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(input_features=pixels().float(), attention_mask=MASK, labels=torch.tensor([0, 1, 0, 1, 1]))
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    expected = model(input_features=pixels().float(), attention_mask=MASK).logits
    torch.testing.assert_close(outputs.logits.float(), expected, rtol=0.1, atol=0.1)


def test_generation_from_frames():
    """Captions: beams of a row alone and in a batch."""
    model = make(MODEL_CLASSES[LstmConfig]["AutoModelForSeq2SeqLM"])
    words = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 3, "do_sample": False}
    together = model.generate(input_features=pixels(), attention_mask=MASK, **words)
    for row, positions in enumerate(MASK.bool()):
        alone = model.generate(input_features=pixels()[row, positions].unsqueeze(0), **words)
        assert together[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize(
    ("config_class", "auto"),
    [
        (CnnConfig, "AutoModelForTokenClassification"),
        (GruConfig, "AutoModelForSequenceClassification"),
    ],
    ids=["tagger", "classifier"],
)
def test_exported_equals_the_model(config_class, auto, tmp_path):
    from hfseq.onnx.runtime import load_onnx

    model = make(MODEL_CLASSES[config_class][auto], subsampling_factor=2).float()
    model.save_pretrained(tmp_path / "model")
    runner, _ = load_onnx(export_onnx(tmp_path / "model", tmp_path / "onnx"))
    frames = pixels().float()
    torch.testing.assert_close(run(runner, frames, MASK), run(model, frames, MASK), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected \(batch, length, 40\) or \(batch, length, 2, 5, 4\)"):
        run(runner, frames.transpose(2, 4))


def test_a_published_folder_says_how_frames_come(tmp_path):
    model_class = MODEL_CLASSES[LstmConfig]["AutoModelForSequenceClassification"]
    make(model_class, recurrent_kernel_size=3, hidden_size=24).save_pretrained(tmp_path / "model")
    publish(tmp_path / "model", "ann/clips", dry_run=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`[rows, frames, 2, 5, 4]`" in card and "torch.zeros(1, 100, 2, 5, 4)" in card
    assert {"frames.py", "convolutional_lstm.py"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_rows_of_pixels_are_collated():
    model = make(MODEL_CLASSES[LstmConfig]["AutoModelForSequenceClassification"])
    rows = [
        {"input_features": frames[:length].numpy(), "labels": 1}
        for frames, length in zip(pixels(), (2, 5), strict=False)
    ]
    batch = FeatureCollator(model)(rows)
    assert batch["input_features"].shape == (2, 5, 40)
    torch.testing.assert_close(batch["input_features"][1], pixels()[1].flatten(1).float())
    check_batch(batch | {"input_features": pixels(2)}, **vocabulary_sizes(model))
    with pytest.raises(
        InputError, match=r"row 0: .* shape \(3, 4, 5, 2\), expected \(frames, 2, 5, 4\), since frame_shape"
    ):
        FeatureCollator(model)([{"input_features": np.zeros((3, 4, 5, 2))}])
    with pytest.raises(InputError, match="row 1, frame 2, feature 0 is nan"):
        spoilt = pixels(2)
        spoilt[1, 2, 0, 0, 0] = float("nan")
        check_batch({"input_features": spoilt}, **vocabulary_sizes(model))


def test_wrong_shapes_of_frames():
    model = make(LstmModel)
    for frames in (pixels().transpose(3, 4), pixels()[:, :, 0], pixels().flatten(3), pixels()[:, :0]):
        with pytest.raises(
            ValueError, match=r"or \(batch, length, 2, 5, 4\).* for input_size=40 and frame_shape=\[2, 5, 4"
        ):
            model(input_features=frames)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frame_shape": (5, 4)}, r"frame_shape=\[5, 4\] is impossible, it must be channels, height and width"),
        ({"frame_shape": (0, 5, 4)}, "each at least 1"),
        ({"frame_filters": []}, r"frame_filters=\[\] is impossible, it must be one or more numbers"),
        ({"frame_shape": None}, "they are for frames of pixels; set frame_shape"),
        ({"input_size": 20}, r"input_size=20 is impossible, a frame of frame_shape=\[2, 5, 4\] has 40 values"),
        ({"frame_kernel_size": 2}, "it must be an odd number"),
        ({"frame_stride": 0}, "frame_stride=0 is impossible, it must be at least 1"),
        ({"char_encoder": "cnn"}, "which have no characters"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        LstmConfig(**TINY | fields)


def test_pixels_of_a_convolved_frame_have_no_scales():
    with pytest.raises(ValueError, match="scaling=mean is impossible.* set scaling=None"):
        LstmForPrediction(LstmConfig(**TINY))
    config = transformers.AutoModelForTimeSeriesPrediction.from_config(LstmConfig(**TINY, scaling=None)).config
    assert config.feature_size == 80
