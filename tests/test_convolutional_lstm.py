"""ConvLSTM: the recurrent stack over maps."""

import pytest
import torch
from oracles import convolutional_lstm_step

from hfseq import (
    LstmConfig,
    LstmForConditionalGeneration,
    LstmForCTC,
    LstmForPrediction,
    LstmForSequenceClassification,
    LstmForTokenClassification,
    LstmModel,
    export_onnx,
)

pytestmark = pytest.mark.contract

SHAPE = (2, 4, 3)
TINY = {
    "vocab_size": 11,
    "frame_shape": SHAPE,
    "recurrent_kernel_size": 3,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "dropout": 0.0,
}
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
CLASSES = [LstmModel, LstmForSequenceClassification, LstmForTokenClassification, LstmForCTC]


def make(model_class=LstmModel, **fields):
    """A model in float64 with large weights."""
    torch.manual_seed(0)
    model = model_class(LstmConfig(**TINY | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return model


def pixels(rows=5, length=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, *SHAPE, generator=generator, dtype=torch.float64)


def test_initial_weights():
    """Each gate's filters are Xavier's, the forget gates open."""
    torch.manual_seed(0)
    config = LstmConfig(frame_shape=(8, 4, 4), recurrent_kernel_size=5, hidden_size=16 * 16)
    layer = LstmModel(config).stack.forward_layers[0]
    assert layer.weight_ih.shape == (32, 8, 5, 5) and layer.weight_hh.shape == (32, 8, 5, 5)
    for gate in layer.weight_hh.chunk(4):
        assert abs(gate.var() * 25 * (8 + 8) / 2 - 1) < 0.15
    assert layer.bias.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16


@pytest.mark.parametrize("bidirectional", [True, False])
def test_stack_by_hand(bidirectional):
    """One row, step and pixel at a time (Shi et al. 2015, eq. 3), hidden states flattened."""
    model = make(bidirectional=bidirectional)
    hidden = model(input_features=pixels(), output_hidden_states=True).hidden_states
    directions = [model.stack.forward_layers] + [model.stack.backward_layers] * bidirectional
    channels = 48 // 12 // len(directions)
    for row in range(2):
        values = list(pixels()[row])
        for index, expected in enumerate(hidden[1:]):
            sides = []
            for layers in directions:
                state, outputs = (pixels().new_zeros(channels, 4, 3),) * 2, []
                for maps in values if layers is directions[0] else values[::-1]:
                    state = convolutional_lstm_step(layers[index], maps, state)
                    outputs.append(state[0])
                sides.append(outputs if layers is directions[0] else outputs[::-1])
            values = [torch.cat(step) for step in zip(*sides, strict=True)]
            torch.testing.assert_close(expected[row], torch.stack(values).flatten(1))


@pytest.mark.parametrize("fields", [{}, {"frame_filters": [4]}, {"subsampling_factor": 2}, {"bidirectional": False}])
@pytest.mark.parametrize("model_class", CLASSES)
def test_padding_changes_nothing(model_class, fields):
    """Each row gives what it gives alone, whatever stands at padding, gradients included."""
    model = make(model_class, **fields)
    spoilt = pixels().masked_fill(~MASK.bool().view(5, 5, 1, 1, 1), float("nan"))
    output, found, alone = model(input_features=spoilt, attention_mask=MASK)[0], [], []
    for row, positions in enumerate(MASK.bool()):
        steps = positions if "subsampling_factor" not in fields else slice(0, (int(positions.sum()) + 1) // 2)
        found.append(output[row] if output.dim() == 2 else output[row, steps])
        alone.append(model(input_features=pixels()[row, positions].unsqueeze(0))[0][0])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-10)
    gradients = [
        torch.autograd.grad(sum(row.pow(2).sum() for row in rows), list(model.parameters())) for rows in (found, alone)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 1, 3]], ids=str)
def test_chunks_with_a_cache_equal_one_call(sizes):
    """Padding in between, and a row that ends before the last chunk."""
    model = make(bidirectional=False)
    frames, cache, parts = pixels(2, 7), None, []
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    whole = model(input_features=frames, attention_mask=mask, use_cache=True)
    for chunk, steps in zip(frames.split(sizes, dim=1), mask.split(sizes, dim=1), strict=True):
        outputs = model(input_features=chunk, attention_mask=steps, cache=cache, use_cache=True)
        cache = outputs.cache
        parts.append(outputs.last_hidden_state)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.last_hidden_state)
    for found, expected in zip(cache.layers, whole.cache.layers, strict=True):
        torch.testing.assert_close(found.states, expected.states)


def test_saved_and_loaded_is_the_same(tmp_path):
    model = make(LstmForSequenceClassification)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "convolutional_lstm.py").is_file()
    loaded, info = LstmForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64
    )
    assert not any(info.values()), info
    torch.testing.assert_close(loaded(input_features=pixels())[0], model(input_features=pixels())[0])
    assert "AutoModelForSeq2SeqLM" not in loaded.config.auto_map and "AutoModelForCTC" in loaded.config.auto_map


def test_gradient_checkpointing_and_dropconnect():
    model, gradients = make(LstmForTokenClassification, weight_dropout=0.5).train(), []
    labels = MASK.masked_fill(MASK == 0, -100)
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        loss = model(input_features=pixels(), attention_mask=MASK, labels=labels).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients)
    whole = model.eval()(input_features=pixels(), attention_mask=MASK, labels=labels).loss
    assert not torch.isclose(loss, whole)


@pytest.mark.processor
def test_low_precision():
    model = make(LstmForSequenceClassification).float().train()
    frames, labels = pixels().float(), torch.tensor([0, 1, 0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(input_features=frames, attention_mask=MASK, labels=labels)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    expected = model.eval()(input_features=frames, attention_mask=MASK).logits
    torch.testing.assert_close(outputs.logits.float(), expected, rtol=0.1, atol=0.1)
    half = model.to(torch.bfloat16)(input_features=frames, attention_mask=MASK).logits
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


def test_exported_equals_the_model(tmp_path):
    """For any number of frames, although the loop over them is traced with a few."""
    from hfseq.onnx.runtime import load_onnx

    model = make(LstmForTokenClassification, frame_filters=[4], frame_stride=1, layer_norm=True).float()
    model.save_pretrained(tmp_path / "model")
    runner, _ = load_onnx(export_onnx(tmp_path / "model", tmp_path / "onnx"))
    for length in (1, 5, 9):
        frames = pixels(5, length).float()
        mask = MASK.repeat(1, 2)[:, :length]
        found, expected = (one(input_features=frames, attention_mask=mask).logits for one in (runner, model))
        torch.testing.assert_close(found[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recurrent_kernel_size": 2}, "recurrent_kernel_size=2 is impossible, it must be an odd number"),
        ({"recurrent_kernel_size": 0}, "it must be"),
        ({"frame_shape": None}, "a ConvLSTM reads frames of pixels; set frame_shape"),
        ({"embedding_size": 24}, "which a projection would lose; leave it out"),
        ({"hidden_size": 50}, "hidden_size=50 is impossible, it must be a multiple of that of one map, 4 x 3"),
        ({"frame_filters": [5], "hidden_size": 50}, "of one map, 2 x 2"),
        ({"is_encoder_decoder": True}, "a decoder of text has no maps; leave it out, and set frame_filters"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        LstmConfig(**TINY | fields)


def test_impossible_heads():
    with pytest.raises(ValueError, match="a decoder of text has no maps"):
        LstmForConditionalGeneration(LstmConfig(**TINY))
    with pytest.raises(ValueError, match="a multiple of that of 2 directions of one map, 4 x 3"):
        LstmForCTC(LstmConfig(**TINY | {"hidden_size": 36}))
    assert LstmForPrediction(LstmConfig(**TINY | {"hidden_size": 36, "scaling": None}))
