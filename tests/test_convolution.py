"""Convolutional layers, stacks and models against unrolled oracles, with padding anywhere."""

import itertools
import math
import re

import pytest
import torch
from oracles import logits_row
from oracles_cnn import attend_step, convolve_row, embed_row, filters_of, model_row, stack_row
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from hfseq.models import convolution as module
from hfseq.models.cache import RecurrentCacheLayer
from hfseq.models.configuration_cnn import CnnConfig
from hfseq.models.convolution import Convolution, PositionEmbedding, SourceMemory, StepAttention
from hfseq.models.convolution_stacks import ConvolutionStack
from hfseq.models.modeling_cnn import (
    BoundedLinear,
    CnnForCausalLM,
    CnnForConditionalGeneration,
    CnnForSequenceClassification,
    CnnForTokenClassification,
    CnnModel,
)

ARCHITECTURES = ["parallel", "residual", "gated", "convs2s"]
# Left, right and gapped padding, a full row, a row of one step.
MASK = torch.tensor(
    [[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]]
).bool()
SOURCE_MASK = MASK[[4, 2, 0, 1, 3], 1:]
SOURCE_MASK[0, 0] = True


def randomise(module):
    """In float64, with weights so large that nothing is small by chance."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        torch.nn.init.uniform_(parameter, -0.8, 0.8)
    return module.eval()


def make_stack(architecture, causal, layers=2, width=3, hidden=7, **fields):
    """Of 3 layers the last of a residual stack has a dilation of 4; 7 filters are 3, 2 and 2 of three widths."""
    options = {"kernel_sizes": (2, 3, 4), "dilation_base": 2, "kernel_size": 3} | fields
    return randomise(ConvolutionStack(architecture, width, hidden, layers, causal=causal, **options))


def make_states(stack, batch):
    torch.manual_seed(1)
    return [tuple(torch.randn(shape).double() for shape in shapes) for shapes in stack.state_shapes(batch)]


def make_inputs(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def rows_of(states, row):
    return [tuple(part[row] for part in layer) for layer in states]


# --- the convolution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_norm", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
def test_convolution_equals_the_unrolled_one(causal, size, dilation, weight_norm):
    convolution = randomise(Convolution(3, 4, size, dilation, causal=causal, weight_norm=weight_norm))
    inputs = make_inputs(2, 6, 3)
    output, window = convolution(inputs)
    assert window is None
    for row in range(2):
        torch.testing.assert_close(output[row], convolve_row(convolution, inputs[row]))
    if causal:
        before = make_inputs(2, (size - 1) * dilation, 3, seed=3)
        output, window = convolution(inputs, window=before)
        for row in range(2):
            torch.testing.assert_close(output[row], convolve_row(convolution, inputs[row], before[row]))
        seen = torch.cat([before, inputs], dim=1)
        torch.testing.assert_close(window, seen[:, seen.shape[1] - before.shape[1] :], rtol=0, atol=0)


@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 3)])
def test_products_equal_the_kernel(size, dilation):
    torch.manual_seed(0)
    channels = torch.randn(3, 5, (size - 1) * dilation + 6, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(4, 5, size, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    found = module.convolve_by_products(channels, filters, bias, dilation=dilation)
    expected = torch.nn.functional.conv1d(channels, filters, bias, dilation=dilation)
    torch.testing.assert_close(found, expected)
    parts = (channels, filters, bias)
    torch.testing.assert_close(
        torch.autograd.grad(found.pow(3).sum(), parts), torch.autograd.grad(expected.pow(3).sum(), parts)
    )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
def test_products_are_taken_in_bfloat16(causal, monkeypatch):
    torch.manual_seed(0)
    layer, values = Convolution(5, 4, 3, causal=causal), torch.randn(2, 7, 5)
    expected, _ = layer(values)
    taken, products = [], module.convolve_by_products
    monkeypatch.setattr(
        module, "convolve_by_products", lambda *args, **kwargs: taken.append(1) or products(*args, **kwargs)
    )
    layer(values)
    with torch.autocast("cpu", torch.float16):
        layer(values)
    assert not taken
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = layer(values)
    assert len(taken) == 1 and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    found, _ = layer.bfloat16()(values.bfloat16())
    assert len(taken) == 2
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("valid", [None, torch.tensor([[True], [False], [True]])], ids=["no mask", "mask"])
@pytest.mark.parametrize("weight_norm", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (4, 3)])
def test_one_step_equals_the_long_way(size, dilation, weight_norm, valid):
    """A step alone goes through a matrix product; with a second step behind it, it goes through the convolution."""
    convolution = randomise(Convolution(3, 4, size, dilation, causal=True, weight_norm=weight_norm))
    window, step = make_inputs(3, (size - 1) * dilation, 3), make_inputs(3, 1, 3, seed=3)
    output, after = convolution(step, valid, window)
    padded = torch.cat([step, torch.full_like(step, 9.0)], dim=1)
    long_valid = torch.tensor([[True, False]]).expand(3, 2) if valid is None else valid & torch.tensor([[True, False]])
    long_output, long_after = convolution(padded, long_valid, window)
    torch.testing.assert_close(output, long_output[:, :1], rtol=0, atol=1e-12)
    torch.testing.assert_close(after, long_after, rtol=0, atol=0)
    gradients = [
        torch.autograd.grad(total.pow(3).sum(), list(convolution.parameters()))
        for total in (output, long_output[:, :1])
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)


def test_filters_are_as_long_as_their_magnitude():
    """Whatever the length of their direction; at the start filters and directions are the same."""
    torch.manual_seed(0)
    convolution = Convolution(3, 4, 3).double()
    torch.testing.assert_close(filters_of(convolution), convolution.direction)
    inputs = make_inputs(1, 6, 3)
    before = convolution(inputs)[0]
    with torch.no_grad():
        convolution.direction.mul_(5.0)
    torch.testing.assert_close(convolution(inputs)[0], before)
    with torch.no_grad():
        convolution.magnitude.mul_(2.0)
    torch.testing.assert_close(convolution(inputs)[0], 2.0 * before)
    names = {name for name, _ in convolution.named_parameters()}
    assert names == {"direction", "magnitude", "bias"}
    assert {name for name, _ in Convolution(3, 4, 3, weight_norm=False).named_parameters()} == {"weight", "bias"}


# --- stacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stack_equals_the_unrolled_rows(architecture, causal, mask):
    stack = make_stack(architecture, causal, layers=3)
    inputs = make_inputs(5, 6, 3)
    outputs, states, weights = stack(inputs, mask)
    assert len(outputs) == (1 if architecture == "parallel" else 3)
    assert states is None and weights == []
    for row in range(5):
        valid = torch.ones(6).bool() if mask is None else mask[row]
        expected, _, _ = stack_row(architecture, stack, inputs[row, valid])
        for output, layer in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output[row, valid], layer)
            assert not output[row, ~valid].any()


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_no_map_where_widths_agree(architecture):
    stack = make_stack(architecture, True, width=7)
    assert not list(stack.project.parameters())
    inputs = make_inputs(1, 6, 7)
    torch.testing.assert_close(stack(inputs)[0][-1][0], stack_row(architecture, stack, inputs[0])[0][-1])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_gets_no_gradient_and_gives_none(architecture, causal):
    """Gradients of inputs, states and weights are those of the unpadded rows; so are the states."""
    stack = make_stack(architecture, causal)
    inputs = make_inputs(5, 6, 3).requires_grad_()
    initial = [tuple(part.requires_grad_() for part in layer) for layer in make_states(stack, 5)] if causal else []
    leaves = [inputs, *(part for layer in initial for part in layer), *stack.parameters()]

    outputs, states, _ = stack(inputs, MASK, initial or None, return_states=causal)
    total = sum(output.square().sum() for output in outputs)
    total = total + sum(part.pow(3).sum() for layer in states or () for part in layer)
    gradients = torch.autograd.grad(total, leaves)

    expected_total = 0
    for row in range(5):
        begin = rows_of(initial, row) if causal else None
        expected, _, after = stack_row(architecture, stack, inputs[row, MASK[row]], begin)
        expected_total = expected_total + sum(output.square().sum() for output in expected)
        if causal:
            torch.testing.assert_close(outputs[-1][row, MASK[row]], expected[-1])
            torch.testing.assert_close(rows_of(states, row), after)
            expected_total = expected_total + sum(part.pow(3).sum() for layer in after for part in layer)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_total, leaves))
    assert not gradients[0][~MASK].any()


@pytest.mark.parametrize("chunks", [[1] * 6, [2, 2, 2], [3, 3], [1, 4, 1]], ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_equal_one_call(architecture, masked, chunks):
    """Rows of some chunks are all padding. States are no views, which would keep all steps."""
    stack = make_stack(architecture, True)
    inputs = make_inputs(5, 6, 3)
    with torch.no_grad():
        whole, whole_states, _ = stack(inputs, MASK if masked else None, return_states=True)
        states, outputs, begin = None, [], 0
        for size in chunks:
            steps = slice(begin, begin + size)
            output, states, _ = stack(inputs[:, steps], MASK[:, steps] if masked else None, states, return_states=True)
            outputs.append(output[-1])
            begin += size
            for part in (part for layer in states for part in layer):
                assert part.is_contiguous() and part.untyped_storage().nbytes() == part.numel() * 8
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole[-1])
    torch.testing.assert_close(states, whole_states)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_all_padding_row_keeps_its_state_and_outputs_nothing(architecture, length, batch):
    stack = make_stack(architecture, True)
    initial = make_states(stack, batch)
    mask = torch.ones(batch, length).bool()
    mask[0] = False
    outputs, states, _ = stack(make_inputs(batch, length, 3), mask, initial, return_states=True)
    assert not any(output[0].any() for output in outputs)
    torch.testing.assert_close(rows_of(states, 0), rows_of(initial, 0), rtol=0, atol=0)
    for row in range(1, batch):
        assert all((new[row] != old[row]).any() for new, old in zip(sum(states, ()), sum(initial, ()), strict=True))


def test_filters_are_spread_over_the_widths():
    for hidden, widths, expected in [
        (300, (3, 4, 5), [100, 100, 100]),
        (512, (3, 4, 5), [171, 171, 170]),
        (2, (1, 6), [1, 1]),
    ]:
        (layer,) = ConvolutionStack("parallel", 4, hidden, 3, kernel_sizes=widths).layers
        shapes = [tuple(convolution.weight.shape) for convolution in layer.convolutions]
        assert shapes == [(count, 4, width) for count, width in zip(expected, widths, strict=True)]


def test_dilation_grows_with_the_layers():
    for base, expected in [(1, [1, 1, 1, 1]), (2, [1, 2, 4, 8]), (3, [1, 3, 9, 27])]:
        stack = ConvolutionStack("residual", 4, 4, 4, causal=True, dilation_base=base)
        assert [[convolution.dilation for convolution in layer.convolutions] for layer in stack.layers] == [
            [dilation] * 2 for dilation in expected
        ]
        # (k - 1) d steps for each of the 2 convolutions
        reach = sum(2 * 2 * dilation for dilation in expected)
        inputs = torch.zeros(1, reach + 2, 4, requires_grad=True)
        randomise(stack)
        for parameter in stack.parameters():
            torch.nn.init.uniform_(parameter, 0.1, 0.2)
        gradient = torch.autograd.grad(stack(inputs.double())[0][-1][0, -1].sum(), inputs)[0]
        assert gradient.any(dim=-1)[0].nonzero()[0].item() == 1


@pytest.mark.parametrize("variational", [False, True], ids=["each step", "variational"])
@pytest.mark.parametrize("width", [6, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_where_dropout_is(architecture, width, variational):
    """Before the convolutions of gated layers, after those of residual ones; never twice over the embeddings."""
    stack = ConvolutionStack(architecture, width, 6, 2, dropout=0.5, variational=variational).double().train()
    torch.manual_seed(0)
    read = []
    for layer in stack.layers:
        for convolution in layer.convolutions:
            convolution.register_forward_hook(lambda module, args, output: read.append(args[0]))
    stack(make_inputs(20, 10, width))
    zeros = [(values == 0).double().mean().item() for values in read]
    for values, share in zip(read, zeros, strict=True):
        # Of a variational mask a channel is dropped in all steps or in none.
        if variational and share and architecture != "residual":
            dropped = (values == 0).any(dim=1)
            assert torch.equal(dropped, (values == 0).all(dim=1)) and dropped.any()
    if architecture == "parallel":
        assert not any(zeros)
    elif architecture == "residual":  # half of them are zeros of the ReLU
        assert zeros[0] == 0 and zeros[1] > 0.55 and zeros[3] > 0.55
    else:
        assert (zeros[0] == 0) is (width == 6)
        assert 0.2 < zeros[1] < 0.8


# --- ConvS2S -------------------------------------------------------------------------------------------------------


def test_positions_count_valid_steps():
    positions = randomise(PositionEmbedding(4, 3))
    embedded = make_inputs(5, 6, 3)
    found, after = positions(embedded, MASK)
    assert after is None
    for row in range(5):
        count = int(MASK[row].sum())
        expected = [positions.table.weight[min(position, 3)] for position in range(count)]
        torch.testing.assert_close(found[row, MASK[row]] - embedded[row, MASK[row]], torch.stack(expected))
    torch.testing.assert_close(
        positions(embedded)[0] - embedded, positions.table.weight[[0, 1, 2, 3, 3, 3]].expand(5, 6, 3)
    )

    seen, parts = torch.zeros(5).long(), []
    for begin, end in ((0, 2), (2, 3), (3, 6)):
        part, seen = positions(embedded[:, begin:end], MASK[:, begin:end], seen)
        parts.append(part)
        assert seen.tolist() == MASK[:, :end].sum(dim=1).tolist()
    torch.testing.assert_close(torch.cat(parts, dim=1)[MASK], found[MASK], rtol=0, atol=0)
    again, seen = positions(embedded[:, :2], seen=torch.tensor([0, 1, 2, 3, 9]))
    assert seen.tolist() == [2, 3, 4, 5, 11]
    expected = positions.table.weight[torch.tensor([[0, 1], [1, 2], [2, 3], [3, 3], [3, 3]])]
    torch.testing.assert_close(again - embedded[:, :2], expected)


@pytest.mark.parametrize("mask", [None, SOURCE_MASK], ids=["no mask", "mask"])
def test_attention_equals_the_unrolled_rows(mask):
    attention = randomise(StepAttention(4, 3))
    states, target = make_inputs(5, 2, 4), make_inputs(5, 2, 3, seed=3)
    keys, values = make_inputs(5, 5, 3, seed=4), make_inputs(5, 5, 3, seed=5)
    found, weights = attention(states, target, mask, keys, values)
    for row in range(5):
        valid = torch.ones(5).bool() if mask is None else mask[row]
        for step in range(2):
            args = (states[row, step], target[row, step], keys[row, valid], values[row, valid])
            expected, expected_weights = attend_step(attention, *args)
            torch.testing.assert_close(found[row, step], expected)
            torch.testing.assert_close(weights[row, step, valid], expected_weights)
            assert not weights[row, step, ~valid].any()


def test_attention_over_nothing_has_an_empty_context():
    attention = randomise(StepAttention(4, 3))
    states, target = make_inputs(1, 2, 4).requires_grad_(), make_inputs(1, 2, 3)
    keys = make_inputs(1, 5, 3)
    found, weights = attention(states, target, torch.zeros(1, 5).bool(), keys, keys)
    assert not weights.any()
    torch.testing.assert_close(found, (states + attention.output.bias) * math.sqrt(0.5))
    assert torch.autograd.grad(found.sum(), states)[0].isfinite().all()


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_attending_stack_equals_the_unrolled_rows(mask):
    """Every layer attends; with the target in one call and step by step; gradients too."""
    stack = make_stack("convs2s", True, layers=3, attends=True)
    leaves = [make_inputs(5, length, 3, seed=seed).requires_grad_() for length, seed in ((6, 2), (5, 3), (5, 4))]
    inputs, keys, values = leaves
    leaves += stack.parameters()
    source = (SOURCE_MASK, keys, values)
    outputs, _, weights = stack(inputs, mask, source=source)
    states, steps = None, []
    for step in range(6):
        at = slice(step, step + 1)
        output, states, _ = stack(inputs[:, at], None if mask is None else mask[:, at], states, True, source)
        steps.append(output[-1])
    torch.testing.assert_close(torch.cat(steps, dim=1), outputs[-1])
    gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), leaves)
    expected_total = 0
    for row in range(5):
        valid = torch.ones(6).bool() if mask is None else mask[row]
        memory = SOURCE_MASK[row]
        own = (keys[row, memory], values[row, memory])
        expected, expected_weights, _ = stack_row("convs2s", stack, inputs[row, valid], source=own)
        for layer in range(3):
            torch.testing.assert_close(outputs[layer][row, valid], expected[layer])
            torch.testing.assert_close(weights[layer][row, valid][:, memory], expected_weights[layer])
            assert not weights[layer][row][:, ~memory].any()
            expected_total = expected_total + expected[layer].square().sum()
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_total, leaves))


def test_gradients_into_the_encoder_are_divided():
    """By the number of layers that attend, but not those of the embeddings; forward nothing changes."""
    source = randomise(SourceMemory(4, 3, num_layers=5))
    memory, embedded = make_inputs(2, 6, 4).requires_grad_(), make_inputs(2, 6, 3, seed=3).requires_grad_()
    keys, values = source(memory, embedded)
    expected = source.project(memory)
    torch.testing.assert_close(keys, expected, rtol=0, atol=0)
    torch.testing.assert_close(values, (expected + embedded) * math.sqrt(0.5), rtol=0, atol=0)
    leaves = [memory, embedded, *source.parameters()]
    found = torch.autograd.grad(keys.pow(2).sum() + values.pow(3).sum(), leaves)
    plain = expected.pow(2).sum() + ((expected + embedded) * math.sqrt(0.5)).pow(3).sum()
    undivided = torch.autograd.grad(plain, leaves)
    torch.testing.assert_close(found[0], undivided[0] / 5)
    torch.testing.assert_close(found[1:], undivided[1:])
    (alone,) = source(memory)
    torch.testing.assert_close(alone, expected, rtol=0, atol=0)


# --- models --------------------------------------------------------------------------------------------------------

TINY = {"vocab_size": 17, "hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2, "dropout": 0.0}


def make(model_class, **fields):
    return randomise(model_class(CnnConfig(**TINY | fields)))


def make_ids(*shape, seed=0):
    return torch.randint(0, 17, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("model_class", "fields", "architecture", "bidirectional"),
    [
        (CnnModel, {}, "residual", True),
        (CnnForTokenClassification, {}, "residual", True),
        (CnnForSequenceClassification, {}, "parallel", True),
        (CnnForCausalLM, {}, "gated", False),
        (CnnForConditionalGeneration, {}, "convs2s", True),
        (CnnForCausalLM, {"add_cross_attention": True}, "convs2s", False),
        (CnnModel, {"add_cross_attention": True}, "convs2s", False),
        (CnnForSequenceClassification, {"architecture": "gated", "bidirectional": False}, "gated", False),
    ],
)
def test_the_head_decides_what_is_open(model_class, fields, architecture, bidirectional):
    config = CnnConfig(**TINY, **fields)
    before = config.to_dict()
    model = model_class(config)
    assert (model.config.architecture, model.config.bidirectional) == (architecture, bidirectional)
    assert config.to_dict() == before
    backbone = model if model_class is CnnModel else model.model
    assert (backbone.config.architecture, backbone.config.bidirectional) == (architecture, bidirectional)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_encoder_of_a_translator_is_the_one_named(architecture):
    model = make(CnnForConditionalGeneration, architecture=architecture)
    assert model.model.config.architecture == architecture and model.model.config.bidirectional
    assert model.decoder.config.architecture == "convs2s" and not model.decoder.config.bidirectional


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_language_model_equals_the_unrolled_one(architecture):
    model = make(CnnForCausalLM, architecture=architecture, max_position_embeddings=4)
    ids = make_ids(5, 6)
    outputs = model(ids, attention_mask=MASK, output_hidden_states=True)
    for row in range(5):
        embedded, layers, _ = model_row(model.model, ids[row, MASK[row]])
        found = [layer[row, MASK[row]] for layer in outputs.hidden_states]
        torch.testing.assert_close(found, [embedded, *layers])
        torch.testing.assert_close(outputs.logits[row, MASK[row]], logits_row(model, layers[-1]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_translator_equals_the_unrolled_one(architecture):
    model = make(CnnForConditionalGeneration, architecture=architecture, decoder_layers=3, max_position_embeddings=4)
    source, target = make_ids(5, 5), make_ids(5, 6, seed=1)
    inputs = {"input_ids": source, "attention_mask": SOURCE_MASK}
    inputs |= {"decoder_input_ids": target, "decoder_attention_mask": MASK}
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert [weights.shape for weights in outputs.cross_attentions] == [(5, 1, 6, 5)] * 3
    for row in range(5):
        valid, steps = SOURCE_MASK[row], MASK[row]
        embedded, encoded, _ = model_row(model.model, source[row, valid])
        _, decoded, alignments = model_row(model.decoder, target[row, steps], encoded[-1], embedded)
        torch.testing.assert_close(outputs.logits[row, steps], logits_row(model, decoded[-1]))
        for weights, expected in zip(outputs.cross_attentions, alignments, strict=True):
            torch.testing.assert_close(weights[row, 0, steps][:, valid], expected)
        found = [layer[row, steps] for layer in outputs.decoder_hidden_states[1:]]
        torch.testing.assert_close(found, decoded)
        found = [layer[row, valid] for layer in outputs.encoder_hidden_states]
        torch.testing.assert_close(found, [embedded, *encoded])


def test_the_classifier_equals_the_unrolled_one():
    """Kim's: the maximum over time of each filter, and a linear layer."""
    model = make(CnnForSequenceClassification, num_labels=3, kernel_sizes=[2, 5])
    ids = make_ids(5, 6)
    logits = model(ids, attention_mask=MASK).logits
    for row in range(5):
        _, (features,), _ = model_row(model.model, ids[row, MASK[row]])
        largest = torch.stack([max(column) for column in features.T])
        torch.testing.assert_close(logits[row], model.classifier.weight @ largest + model.classifier.bias)


@pytest.mark.parametrize("architecture", ["convs2s", "gated"])
def test_a_decoder_of_any_encoder_attends_over_its_outputs_alone(architecture):
    fields = {"add_cross_attention": True, "cross_attention_hidden_size": 5, "architecture": architecture}
    decoder = make(CnnForCausalLM, **fields)
    ids, memory = make_ids(5, 6), make_inputs(5, 5, 5)
    logits = decoder(ids, encoder_hidden_states=memory, encoder_attention_mask=SOURCE_MASK).logits
    for row in range(5):
        _, layers, _ = model_row(decoder.model, ids[row], memory[row, SOURCE_MASK[row]])
        torch.testing.assert_close(logits[row], logits_row(decoder, layers[-1]))


def test_the_encoder_returns_its_embeddings():
    for architecture in ARCHITECTURES:
        encoder = make(CnnModel, architecture=architecture)
        ids = make_ids(1, 6)
        torch.testing.assert_close(encoder(ids).input_embeddings[0], embed_row(encoder, ids[0]))


@pytest.mark.parametrize("full_mask", [True, False], ids=["mask of all steps", "mask of these steps"])
@pytest.mark.parametrize("chunks", [[1] * 6, [2, 2, 2], [1, 4, 1]], ids=str)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "decoder"])
def test_steps_with_a_cache_equal_one_call(architecture, chunks, full_mask):
    source, ids = {}, make_ids(5, 6)
    if architecture == "decoder":
        model = make(CnnModel, add_cross_attention=True, max_position_embeddings=4)
        source = {"encoder_hidden_states": make_inputs(5, 5, 8), "encoder_attention_mask": SOURCE_MASK}
        source["encoder_embeddings"] = make_inputs(5, 5, 6, seed=3)
    else:
        model = make(CnnModel, architecture=architecture, bidirectional=False, max_position_embeddings=4)
    whole = model(ids, MASK, **source, use_cache=True)
    assert whole.cache.get_seq_length() == 6
    cache, outputs, begin = DynamicCache(), [], 0
    for size in chunks:
        end = begin + size
        mask = MASK[:, :end] if full_mask else MASK[:, begin:end]
        outputs.append(model(ids[:, begin:end], mask, **source, cache=cache).last_hidden_state)
        begin = end
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole.last_hidden_state)
    states, expected = cache.layers, whole.cache.layers
    assert len(states) == len(model.stack.layers) and all(isinstance(layer, RecurrentCacheLayer) for layer in states)
    torch.testing.assert_close([layer.states for layer in states], [layer.states for layer in expected])
    counts = [part for layer in states for part in layer.states if part.dtype == torch.long]
    wanted = [MASK.sum(dim=1)] if model.positions is not None else []
    torch.testing.assert_close(counts, wanted)


def test_the_source_is_read_once(monkeypatch):
    """Its keys and values are in the cache, one tensor where both are the same."""
    model = make(CnnModel, add_cross_attention=True)
    source = {"encoder_hidden_states": make_inputs(5, 5, 8)}
    cache = model(make_ids(5, 2), **source, use_cache=True).cache
    assert len(cache.layers[0].memory) == 1 and cache.layers[1].memory is None
    embeddings = {"encoder_embeddings": make_inputs(5, 5, 6)}
    assert len(model(make_ids(5, 2), **source, **embeddings, use_cache=True).cache.layers[0].memory) == 2
    monkeypatch.setattr(SourceMemory, "forward", lambda *args: pytest.fail("the source was read again"))
    model(make_ids(5, 1), **source, cache=cache)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_nothing(architecture, reentrant):
    """Each layer is computed again for its gradients, dropout alike; the translator's attention too."""
    model = make(CnnForConditionalGeneration, architecture=architecture, dropout=0.3).train()
    inputs = {"input_ids": make_ids(5, 5), "attention_mask": SOURCE_MASK, "labels": make_ids(5, 6, seed=1)}

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        calls = []
        hooks = [layer.register_forward_hook(lambda *args: None) for layer in model.model.stack.layers]
        convolutions = [one for one in model.modules() if isinstance(one, Convolution)]
        hooks += [one.register_forward_hook(lambda *args: calls.append(1)) for one in convolutions]
        model(**inputs).loss.backward()
        for hook in hooks:
            hook.remove()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, len(calls)

    expected, once = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    found, twice = gradients()
    assert twice == 2 * once
    torch.testing.assert_close(found, expected)


def test_initial_filters():
    """Of the variance that suits what follows (Gehring et al. 2017, section 3.5), weight normalisation or not."""
    torch.manual_seed(0)
    common = {"vocab_size": 17, "hidden_size": 60, "dropout": 0.2, "num_hidden_layers": 2}
    gains = [("parallel", 2.0), ("residual", 2.0), ("gated", 2.0), ("convs2s", 4.0 * 0.8)]
    for (architecture, gain), width in itertools.product(gains, (50, 60)):
        model = CnnModel(CnnConfig(**common, embedding_size=width, architecture=architecture))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(9.0)
        model.apply(model._init_weights)
        convolutions = [module for module in model.modules() if isinstance(module, Convolution)]
        assert convolutions
        for convolution in convolutions:
            filters = filters_of(convolution)
            inputs = filters[0].numel()
            assert filters.std().item() == pytest.approx(math.sqrt(gain / inputs), rel=0.05)
            assert abs(filters.mean().item()) < 0.1 * filters.std().item() and not convolution.bias.any()


def test_long_rows_of_the_output_layer_are_shortened():
    layer = BoundedLinear(4, 3, 2.0).double()
    weight = torch.tensor([[3.0, 0, 4.0, 0], [1, 0, 0, 1], [0, 0, 0, 2.0]]).double()
    bounded = torch.tensor([[1.2, 0, 1.6, 0], [1, 0, 0, 1], [0, 0, 0, 2.0]]).double()
    inputs = make_inputs(5, 4).requires_grad_()
    with torch.no_grad():
        layer.weight.copy_(weight)
    torch.testing.assert_close(layer.eval()(inputs), inputs @ bounded.T + layer.bias)
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=0)
    one, other = layer.train()(inputs), layer(inputs)  # as two calls before one backward
    torch.testing.assert_close(one, inputs @ bounded.T + layer.bias)
    torch.testing.assert_close(layer.weight.detach(), bounded)
    gradient = torch.autograd.grad((one + other).sum(), [inputs, layer.weight])
    torch.testing.assert_close(gradient[0], 2 * bounded.sum(dim=0).expand(5, 4))
    torch.testing.assert_close(gradient[1], 2 * inputs.sum(dim=0).expand(3, 4))


def test_frozen_rows_of_the_output_layer_stay_as_they_are():
    layer = BoundedLinear(4, 3, 0.1).double().requires_grad_(False).train()
    before, inputs = layer.weight.clone(), make_inputs(5, 4)
    torch.testing.assert_close(layer(inputs), layer.eval()(inputs))
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=0)


def test_encoder_outputs_of_another_kind_are_refused():
    """What the decoder would attend over is not in them, and leaving it out would change the result in silence."""
    model, ids = make(CnnForConditionalGeneration), make_ids(2, 3)
    states = model.model(ids).last_hidden_state
    for outputs in (BaseModelOutput(states), (states,), (states, (states,))):
        with pytest.raises(ValueError, match="encoder_outputs must be .* CnnModelOutput: its input_embeddings"):
            model(encoder_outputs=outputs, decoder_input_ids=ids)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, BoundedLinear),
        ({"max_norm": None}, torch.nn.Linear),
        ({"architecture": "residual"}, torch.nn.Linear),
    ],
)
def test_which_classifiers_are_bounded(fields, kind):
    model = CnnForSequenceClassification(CnnConfig(**TINY, **fields))
    assert type(model.classifier) is kind
    if kind is BoundedLinear:
        assert model.classifier.max_norm == 3.0
        optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
        for _ in range(3):
            model(make_ids(5, 6), labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
            optimizer.step()
        model(make_ids(5, 6))
        assert model.classifier.weight.norm(dim=1).max() < 3.0001


# --- bad input -----------------------------------------------------------------------------------------------------


def test_even_kernels_lie_around_no_step():
    message = r"CnnConfig: kernel_size=4 must be odd for a centred convolution"
    with pytest.raises(ValueError, match=message):
        CnnConfig(kernel_size=4, bidirectional=True, architecture="gated")
    for model_class in (CnnModel, CnnForConditionalGeneration, CnnForTokenClassification):
        with pytest.raises(ValueError, match=message):
            model_class(CnnConfig(**TINY, kernel_size=4))
    with pytest.raises(ValueError, match=message):
        CnnForSequenceClassification(CnnConfig(**TINY, kernel_size=4, architecture="residual"))
    CnnForSequenceClassification(CnnConfig(**TINY, kernel_size=4))
    for fields in ({"kernel_size": 4}, {"kernel_size": 4, "architecture": "convs2s"}):
        CnnForCausalLM(CnnConfig(**TINY, **fields))
        CnnModel(CnnConfig(**TINY, **fields, bidirectional=False))
    CnnForConditionalGeneration(CnnConfig(**TINY, kernel_size=4, bidirectional=False))


@pytest.mark.parametrize(
    ("field", "value"),
    [(name, value) for name in ("kernel_size", "dilation_base", "max_position_embeddings") for value in (0, -2)]
    + [("kernel_sizes", []), ("kernel_sizes", [3, 0]), ("kernel_sizes", list(range(1, 10)))]
    + [("max_norm", 0), ("max_norm", -1.5)],
)
def test_impossible_values(field, value):
    with pytest.raises(ValueError, match=re.escape(f"CnnConfig: {field}={value} is impossible")):
        CnnConfig(**TINY | {field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("architecture", "conv"), ("kernel_size", "3"), ("kernel_sizes", 3), ("max_norm", "big")]
)
def test_wrong_types(field, value):
    with pytest.raises(Exception, match=field) as caught:  # huggingface_hub's own, of the field's validation
        CnnConfig(**{field: value})
    assert type(caught.value).__name__ == "StrictDataclassFieldValidationError"


def test_impossible_decoders():
    cross = {"add_cross_attention": True}
    with pytest.raises(ValueError, match="bidirectional=True is impossible with add_cross_attention=True"):
        CnnModel(CnnConfig(**TINY, **cross, bidirectional=True))
    for architecture in ("parallel", "residual"):
        with pytest.raises(ValueError, match=f"architecture='{architecture}' is impossible with add_cross_attention"):
            CnnForCausalLM(CnnConfig(**TINY, **cross, architecture=architecture))


def test_wrong_encoder_embeddings():
    decoder, ids = make(CnnModel, add_cross_attention=True), make_ids(2, 3)
    for shape in ((2, 4, 5), (2, 3, 6), (1, 4, 6), (2, 4)):
        expected = r"encoder_embeddings has shape .*, expected \(2, 4, 6\)"
        with pytest.raises(ValueError, match=expected):
            decoder(ids, encoder_hidden_states=make_inputs(2, 4, 8), encoder_embeddings=make_inputs(*shape))
    with pytest.raises(ValueError, match="encoder_embeddings were passed to a model without add_cross_attention=True"):
        make(CnnModel)(ids, encoder_embeddings=make_inputs(2, 4, 6))


def test_caches_of_other_models():
    ids = make_ids(2, 3)
    models = {name: make(CnnForCausalLM, architecture=name) for name in ARCHITECTURES}
    models["wider"] = make(CnnForCausalLM, hidden_size=10)
    models["longer"] = make(CnnForCausalLM, kernel_size=5)
    models["deeper"] = make(CnnForCausalLM, num_hidden_layers=3)
    for writer in models:
        for reader in models:
            cache = models[writer](ids, use_cache=True).cache
            if reader == writer:
                models[reader](ids, cache=cache)
                continue
            with pytest.raises(ValueError, match="cache: .* cache belongs to another model"):
                models[reader](ids, cache=cache)
    with pytest.raises(ValueError, match=r"cache: layer 0 .*\(2, 2, 8\).* need .*\(3, 2, 8\).*"):
        models["gated"](make_ids(3, 1), cache=models["gated"](ids, use_cache=True).cache)
    cache = models["residual"](ids, use_cache=True).cache
    with pytest.raises(ValueError, match="a cache was passed to a bidirectional model"):
        make(CnnModel)(ids, cache=cache)
