"""Linear recurrences: the primitive, its cells, their blocks, and what the families refuse.

The contract of all classes runs for QRNN (`token_classes.py`); here each family has what depends on its cell.
"""

import copy
import json
import math

import pytest
import torch
import transformers
from oracles import cell_step, decode_row, logits_row, run_stack, zero_state
from test_models import (
    CAUSAL,
    MASK,
    MODEL,
    SEQ2SEQ,
    assert_initialised,
    check_padding,
    gradients,
    make,
    make_inputs,
    row_alone,
    valid_outputs,
)
from token_classes import ALL, LINEAR, OTHERS
from transformers import BertConfig, BertModel, DynamicCache, EncoderDecoderModel

import hfseq
from hfseq.models import linear_cells
from hfseq.models import linear_recurrence as module
from hfseq.models.linear_cells import LinearLayer, MinLstmLayer, QrnnLayer
from hfseq.models.linear_recurrence import gated_recurrence, linear_recurrence, scan_by_doubling, scan_by_loop
from hfseq.onnx.export import export_onnx
from hfseq.onnx.runtime import load_onnx
from hfseq.tokenization import train_tokenizer

pytestmark = pytest.mark.contract

HEADS = {config.family: heads for config, heads in ALL.items() if config.family in LINEAR}
BLOCKS = {"residual_blocks": True, "conv_kernel": 3}
# Every value of the fields that are the cells' and the blocks' own.
SETTINGS = {
    "MinGru": [{"candidate": "linear"}, {"candidate": "tanh"}, BLOCKS],
    "MinLstm": [{}, {"candidate": "tanh"}, BLOCKS | {"candidate": "linear"}],
    "Qrnn": [{"window": 1, "zoneout": 0.3}, BLOCKS, BLOCKS | {"window": 1, "expand": 3, "intermediate_size": 5}],
    "Ssru": [{}, BLOCKS | {"conv_kernel": None, "expand": 1}],
}
CASES = [
    pytest.param(family, fields, id=f"{family}-{'-'.join(map(str, fields.values()))}")
    for family, many in SETTINGS.items()
    for fields in many
]
TOKENS = [(auto, model) for heads in HEADS.values() for auto, model in heads.items() if auto not in OTHERS]


# --- the primitive -------------------------------------------------------------------------------------------------


def naive(decay, inputs, initial, mask=None):
    """One row, one step at a time; a step of padding is left out."""
    rows = []
    for row in range(len(inputs)):
        state, states = initial[row], []
        for step in range(inputs.shape[1]):
            if mask is None or mask[row, step]:
                state = decay[row, step] * state + inputs[row, step]
            states.append(state)
        rows.append(torch.stack(states))
    return torch.stack(rows)


def draw(length, batch=3, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    parts = [torch.randn(batch, length, width, generator=generator, dtype=dtype) for _ in range(2)]
    return parts[0].sigmoid(), parts[1], torch.randn(batch, width, generator=generator, dtype=dtype)


@pytest.fixture(params=["loop", "doubling"])
def way(request, monkeypatch):
    """As on a CPU, and as on a GPU."""
    if request.param == "doubling":
        monkeypatch.setattr(module, "scans_in_parallel", lambda tensor: True)
    return request.param


def naive_gates(update, candidate, initial, mask=None):
    return naive(1 - update, update * candidate, initial, mask)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 21])
@pytest.mark.parametrize(
    ("recurrence", "naive"), [(linear_recurrence, naive), (gated_recurrence, naive_gates)], ids=["linear", "gated"]
)
def test_the_recurrence_and_its_gradients_are_those_of_the_naive_one(recurrence, naive, length, masked, way):
    leaves = [part.requires_grad_() for part in draw(length)]
    mask = None
    if masked:
        mask = torch.rand(3, length, generator=torch.Generator().manual_seed(1)) < 0.6
        mask[0], mask[1] = True, False
    found, expected = recurrence(*leaves, mask), naive(*leaves, mask)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).double()
    second = [
        torch.autograd.grad((one.pow(2) * weights).sum(), leaves, create_graph=True) for one in (found, expected)
    ]
    torch.testing.assert_close(second[0], second[1])
    torch.testing.assert_close(
        *(torch.autograd.grad(sum(part.pow(2).sum() for part in one), leaves) for one in second), rtol=1e-6, atol=1e-6
    )
    if masked:
        assert not second[0][1][~mask].any()
        assert torch.equal(found[1], leaves[2][1].expand(length, -1))  # nothing valid: the state, bit for bit


@pytest.mark.parametrize("length", [1, 5, 64])
def test_both_scans_are_one_function(length):
    parts = draw(length)
    torch.testing.assert_close(scan_by_doubling(*parts), scan_by_loop(*parts))
    torch.testing.assert_close(module.scripted_scan()(*parts), scan_by_loop(*parts))


@pytest.mark.parametrize("length", [128, 2048])
def test_float32_is_exact_to_the_last_digits(length, way):
    """Within 1e-5 of the deviation of what float64 gives, gates near 1 and near 0 alike; logarithms lose 2.5e-3."""
    decay, inputs, initial = draw(length, batch=2, width=64)
    decay = torch.cat([decay[..., :32], 1 - 1e-2 * decay[..., 32:]], dim=-1)
    inputs.requires_grad_()
    for recurrence, gate in ((linear_recurrence, decay), (gated_recurrence, 1 - decay)):
        gate = gate.float().double().requires_grad_()
        expected = recurrence(gate, inputs, initial)
        singles = [part.detach().float().requires_grad_() for part in (gate, inputs, initial)]
        found = recurrence(*singles)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 1e-5 * expected.std()
        right = torch.autograd.grad(expected.sum(), [gate, inputs])
        for one, other in zip(torch.autograd.grad(found.sum(), singles[:2]), right, strict=True):
            assert (one - other).abs().max() < 1e-5 * other.std()


def test_half_precision_keeps_a_slow_state():
    """The mean of 2000 inputs, each of which bfloat16 would round away."""
    decay, inputs = torch.full((1, 2000, 1), 0.998), torch.full((1, 2000, 1), 0.002)
    expected = naive(decay.bfloat16().double(), inputs.bfloat16().double(), torch.zeros(1, 1).double())
    found = linear_recurrence(decay.bfloat16(), inputs.bfloat16(), torch.zeros(1, 1).bfloat16())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    update, candidate = inputs.bfloat16(), torch.ones(1, 2000, 1).bfloat16()
    expected = naive_gates(update.double(), candidate.double(), torch.zeros(1, 1).double())
    found = gated_recurrence(update, candidate, torch.zeros(1, 1).bfloat16())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recurrence", [linear_recurrence, gated_recurrence])
def test_the_backward_is_linear_in_the_length(recurrence):
    """No step is indexed: the gradient of each select would be a tensor of the length of the whole."""
    sizes = {}
    for length in (20, 200):
        leaves = [part.requires_grad_() for part in draw(length)]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
            recurrence(*leaves).sum().backward()
        views = ("aten::unbind", "aten::select", "aten::as_strided")
        worked = [event for event in profile.events() if event.name not in views]
        shapes = [shape for event in worked for shape in event.input_shapes if shape]
        sizes[length] = sum(math.prod(shape) for shape in shapes)
    assert sizes[200] < 11 * sizes[20]


# --- cells and models ----------------------------------------------------------------------------------------------


def make_of(family, auto, **fields):
    return make(HEADS[family][auto], **fields)


@pytest.mark.parametrize(("family", "fields"), CASES)
def test_the_language_model_equals_the_unrolled_one(family, fields):
    model = make_of(family, CAUSAL, **fields)
    inputs = make_inputs(model)
    for row, found in enumerate(valid_outputs(model, inputs)):
        hidden, _, _ = decode_row(family.lower(), model.model, row_alone(inputs, row)["input_ids"][0], None)
        torch.testing.assert_close(found, logits_row(model, hidden))


@pytest.mark.parametrize(("family", "fields"), CASES)
def test_the_translator_equals_the_unrolled_one(family, fields):
    """Both directions of the encoder, states from the bridge, attention on top."""
    model = make_of(family, SEQ2SEQ, **fields, decoder_layers=3)
    inputs = make_inputs(model)
    logits = valid_outputs(model, inputs)
    for row, found in enumerate(logits):
        source, target = row_alone(inputs, row).values()
        encoded, _ = run_stack(family.lower(), model.model.stack, model.model.embed_tokens.weight[source[0]])
        hidden, _, _ = decode_row(family.lower(), model.decoder, target[0], encoded[-1])
        torch.testing.assert_close(found, logits_row(model, hidden))


@pytest.mark.parametrize(("family", "fields"), CASES)
def test_long_sequences_in_blocks(family, fields, monkeypatch):
    """Blocks of steps, the last of them short, give what all steps at once give, and the same gradients."""
    model = make_of(family, CAUSAL, **fields)
    inputs = make_inputs(model)
    expected = valid_outputs(model, inputs)
    monkeypatch.setattr(linear_cells, "BLOCK", 2)
    found = valid_outputs(model, inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(model, found), gradients(model, expected))


@pytest.mark.parametrize(("auto", "model_class"), TOKENS, ids=lambda value: getattr(value, "__name__", None))
def test_padding_changes_nothing_in_any_head(auto, model_class):
    """Nor does it change gradients, and none is missing or zero."""
    for fields in ({}, {"residual_blocks": True, "bidirectional": False}):
        model = make(model_class, **fields)
        inputs = make_inputs(model)
        check_padding(model, inputs)
        for (name, _), gradient in zip(
            model.named_parameters(), gradients(model, valid_outputs(model, inputs)), strict=True
        ):
            assert gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize(("family", "fields"), CASES)
def test_cached_equals_uncached(family, fields):
    """In chunks and step by step, with gaps and rows that have no valid step in a chunk; the cache does not grow."""
    model = make_of(family, CAUSAL, **fields)
    inputs = make_inputs(model)
    expected = model(**inputs).logits
    for columns in ([slice(0, 2), slice(2, 5)], [slice(step, step + 1) for step in range(5)]):
        cache, sizes = DynamicCache(), set()
        for part in columns:
            chunk = {name: value[:, part] for name, value in inputs.items()}
            logits = model(**chunk, cache=cache, use_cache=True).logits
            valid = MASK[:, part].bool()
            torch.testing.assert_close(logits[valid], expected[:, part][valid])
            sizes.add(sum(state.numel() for layer in cache.layers for state in layer.states))
            assert all(state.untyped_storage().nbytes() == state.nbytes for state in cache.layers[0].states)
        assert len(sizes) == 1


SEED = 5  # with which no model of these says the same in all rows


@pytest.mark.parametrize("auto", [CAUSAL, SEQ2SEQ])
@pytest.mark.parametrize("family", HEADS)
def test_beams_and_greedy_search_with_and_without_a_cache(family, auto):
    for fields in ({}, {"residual_blocks": True}):
        model = make_of(family, auto, **fields, tie_word_embeddings=False)
        torch.manual_seed(SEED)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-2.0, 2.0)
        ids = torch.randint(3, 17, (3, 5), generator=torch.Generator().manual_seed(0))
        prompt = {"input_ids": ids, "attention_mask": MASK[[0, 3, 3]]}
        for beams in (1, 3):
            options = {"max_new_tokens": 8, "num_beams": beams, "eos_token_id": None}
            options |= {"output_scores": True, "return_dict_in_generate": True}
            found, uncached = (model.generate(**prompt, **options, use_cache=cached) for cached in (True, False))
            assert found.sequences.tolist() == uncached.sequences.tolist()
            torch.testing.assert_close(found.scores, uncached.scores)
            assert len({tuple(row) for row in found.sequences[:, -8:].tolist()}) > 1
            alone = model.generate(ids[:1, 2:], **options)  # the row whose padding is on the left
            assert alone.sequences[0, -8:].tolist() == found.sequences[0, -8:].tolist()


@pytest.mark.parametrize("family", HEADS)
def test_a_decoder_behind_a_transformer(family):
    """As the decoders of browser translators stand behind theirs (Kim et al. 2019)."""
    fields = {"add_cross_attention": True, "cross_attention_hidden_size": 12, "residual_blocks": True}
    decoder = make_of(family, CAUSAL, **fields)
    bert = BertConfig(vocab_size=17, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = EncoderDecoderModel(encoder=BertModel(bert).double(), decoder=decoder).eval()
    for name, value in {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    inputs = {"input_ids": torch.randint(3, 17, (5, 5)), "attention_mask": MASK}
    for beams in (1, 3):
        cached, uncached = (
            model.generate(**inputs, max_new_tokens=6, num_beams=beams, use_cache=c) for c in (True, False)
        )
        assert cached.tolist() == uncached.tolist()
    model(**inputs, labels=torch.randint(3, 17, (5, 4))).loss.backward()
    for name, parameter in model.decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", HEADS)
def test_gradient_checkpointing_changes_nothing(family, reentrant):
    model = make_of(family, SEQ2SEQ, residual_blocks=True, dropout=0.3).train()
    inputs, found = make_inputs(model), []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        found.append(gradients_by_backward(model, inputs))
    torch.testing.assert_close(*found)


def gradients_by_backward(model, inputs):
    model.zero_grad()
    sum(output.pow(3).sum() for output in valid_outputs(model, inputs)).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_compiled_as_one_graph():
    """For a length that it was not compiled for, too."""
    torch._dynamo.reset()
    model = make_of("MinGru", CAUSAL, num_hidden_layers=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for length in (5, 11):
        ids = torch.randint(0, 17, (3, length))
        mask = torch.ones(3, length, dtype=torch.long)
        mask[1, :2] = mask[2, 2:4] = 0
        found, expected = (one(ids, attention_mask=mask, use_cache=False).logits for one in (compiled, model))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(model, [found]), gradients(model, [expected]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    model = make_of("Qrnn", CAUSAL, **BLOCKS).float()
    inputs = make_inputs(model)
    expected = valid_outputs(model, inputs)
    with torch.autocast("cpu", dtype):
        found = valid_outputs(model, inputs)
        loss = sum(output.float().pow(2).sum() for output in found)
    loss.backward()
    halves = valid_outputs(copy.deepcopy(model).to(dtype), inputs)
    assert halves[0].dtype == dtype
    for one in (found, halves):
        for row, right in zip(one, expected, strict=True):
            torch.testing.assert_close(row.float(), right, rtol=0.1, atol=0.2)


def test_zoneout_keeps_units_in_training():
    """Each unit keeps its state with the given probability; at inference the update gate is what it is on average."""
    layer = QrnnLayer(3, 500, 1, 0.4).double()
    values = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(0)).double()
    state = torch.full((1, 500), 3.0).double()
    torch.manual_seed(0)
    _, after = layer.train()(values, None, None, state)
    kept = after == state
    assert 0.3 < kept.double().mean() < 0.5
    free = QrnnLayer(3, 500, 1, 0.0).double()
    free.load_state_dict(layer.state_dict())
    _, moved = free(values, None, None, state)
    torch.testing.assert_close(after[~kept], moved[~kept])
    _, mean = layer.eval()(values, None, None, state)
    torch.testing.assert_close(mean, 0.4 * state + 0.6 * moved)


def test_a_closed_pair_of_gates_is_no_division_by_zero():
    layer = MinLstmLayer(2, 3, "linear")
    update, candidate = layer.gate(torch.tensor([[[-300.0] * 6 + [2.0] * 3]], requires_grad=True))
    assert (update == 0.5).all() and (candidate == 2.0).all()


@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()], ids=["whole", "masked"])
def test_a_layer_is_given_no_more_than_it_needs(mask):
    """Cells that see one input alone leave it in place: no step is gathered."""
    seen = {}
    for family, heads in HEADS.items():
        for fields in ({}, {"residual_blocks": True}):
            stack = heads[MODEL](heads[MODEL].config_class(vocab_size=9, hidden_size=4, **fields)).stack
            seen[family, bool(fields)] = stack.needs_gather
    assert [key for key, gathers in seen.items() if not gathers] == [
        ("MinGru", False),
        ("MinLstm", False),
        ("Ssru", False),
    ]
    stack = hfseq.MinGruModel(hfseq.MinGruConfig(vocab_size=9, hidden_size=4)).double().stack
    values = torch.randn(2, 3, 4).double()
    layer = stack.forward_layers[0]
    output, state = layer(values, mask, None, *zero_state_of(layer, values))
    for row in range(2):
        hidden = zero_state(layer, values)
        for step in range(3):
            if mask is None or mask[row, step]:
                expected, hidden = cell_step("mingru", layer, values[row, step], hidden)
                torch.testing.assert_close(output[row, step], expected)
        torch.testing.assert_close(state[row], hidden[0])


def zero_state_of(layer, values):
    return [values.new_zeros(shape) for shape in layer.state_shapes(len(values))]


# --- forecasters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["MinGru", "Qrnn"])
def test_forecasters(family, tmp_path):
    """Rows alone, a stream, gradients, and the graph."""
    config = HEADS[family]["AutoModelForTimeSeriesPrediction"].config_class(
        input_size=1, hidden_size=6, num_hidden_layers=2, dropout=0.0, prediction_length=3, lags_sequence=[1, 2]
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForTimeSeriesPrediction.from_config(config).eval()
    values = 4 + 2 * torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 0] + [1] * 9, [1, 1, 0, 1, 0, 0] + [1] * 6, [1] * 12])
    past, future = values[:, :9], values[:, 9:]
    together = model(past, past_observed_mask=mask[:, :9], future_values=future).params[0]
    alone = model(past[:1, 3:], future_values=future[:1]).params[0]
    torch.testing.assert_close(alone[0], together[0])
    known = {name: getattr(model(past[2:]), name) for name in ("loc", "scale")}
    expected, cache, found = model.log_likelihood(past[2:], **known), DynamicCache(), []
    for step, column in enumerate(past[2:].split(1, dim=1)):
        found.append(model.log_likelihood(column, cache=cache, **({} if step else known)))
    torch.testing.assert_close(torch.cat(found, dim=1), expected)
    model.save_pretrained(tmp_path / "model")
    runner, _ = load_onnx(export_onnx(tmp_path / "model", tmp_path / "onnx"), threads=1)
    likelihoods = [one.log_likelihood(past, past_observed_mask=mask[:, :9]) for one in (model, runner)]
    torch.testing.assert_close(*likelihoods, rtol=1e-4, atol=1e-4)
    model.train()(past, past_observed_mask=mask[:, :9], future_values=future).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- graphs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "auto", "fields"),
    [
        ("MinGru", MODEL, {}),
        ("MinLstm", SEQ2SEQ, {}),
        ("Ssru", CAUSAL, {"residual_blocks": True}),
        ("Qrnn", SEQ2SEQ, {"residual_blocks": True}),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_graph_equals_its_model_at_any_length(family, auto, fields, tmp_path):
    tokenizer = train_tokenizer(["a b c d e f g h"] * 2, model="word", vocab_size=20)
    model = make_of(family, auto, **fields, vocab_size=len(tokenizer)).float()
    for one in (model, tokenizer):
        one.save_pretrained(tmp_path / "model")
    runner, _ = load_onnx(export_onnx(tmp_path / "model", tmp_path / "onnx", opset=13), threads=1)
    for batch, length in ((2, 1), (1, 33), (3, 4)):
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[1:, 0] = mask[1:, length // 2] = 0
        mask[1:, -1] = 1
        inputs = {"input_ids": torch.randint(4, len(tokenizer), (batch, length)), "attention_mask": mask}
        if auto == SEQ2SEQ:
            inputs["decoder_input_ids"] = torch.randint(4, len(tokenizer), (batch, 3))
        expected, found = model(**inputs)[0], runner(**inputs)[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HEADS)
def test_impossible_fields(family):
    config_class = HEADS[family][MODEL].config_class
    for fields, message in [
        ({"input_feeding": True}, "input_feeding=True is impossible, a linear recurrence runs all steps at once"),
        ({"weight_dropout": 0.2}, "weight_dropout=0.2 is impossible, a linear recurrence has no hidden-to-hidden"),
        ({"conv_kernel": 1}, "conv_kernel=1 is impossible, it must be at least 2, or None"),
        ({"expand": 0}, "expand=0 is impossible, it must be at least 1"),
        ({"intermediate_size": 0}, "intermediate_size=0 is impossible, it must be at least 1"),
        ({"residual_blocks": True, "layer_norm": True}, "layer_norm=True is impossible, residual_blocks are norm"),
    ]:
        with pytest.raises(ValueError, match=f"^{config_class.__name__}: {message}"):
            config_class(**fields)
    config = config_class(vocab_size=9, hidden_size=4)
    config.input_feeding = True
    with pytest.raises(ValueError, match="input_feeding=True is impossible"):
        HEADS[family][SEQ2SEQ](config)
    own = {"Qrnn": [{"zoneout": 1.0}, {"window": 3}], "MinGru": [{"candidate": "h"}], "MinLstm": [{"candidate": "h"}]}
    for fields in own.get(family, []):
        with pytest.raises(Exception, match=next(iter(fields))):  # of the type of the field's validation
            config_class(**fields)


@pytest.mark.parametrize("family", HEADS)
def test_initialisation(family):
    """Each gate as a matrix of its own, and biases that keep the state for a while."""
    for fields in ({}, {"residual_blocks": True}):
        config = HEADS[family][SEQ2SEQ].config_class(vocab_size=9, hidden_size=24, **fields)
        assert_initialised(HEADS[family][SEQ2SEQ](config))


def test_blocks_start_as_they_should():
    model = hfseq.SsruModel(hfseq.SsruConfig(vocab_size=9, hidden_size=64, residual_blocks=True, num_hidden_layers=2))
    stack = model.stack
    for layer in (*stack.forward_layers, *stack.backward_layers):
        assert isinstance(layer, LinearLayer)
        assert layer.convolution.weight.std().item() == pytest.approx(0.5, rel=0.2)
        assert not layer.convolution.bias.any() and (layer.forget_bias == 1).all()
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in (*stack.norms, stack.last_norm))
    assert not any(linear.bias.any() for linear in stack.merge)


def test_configs_are_saved_with_their_fields(tmp_path):
    config = hfseq.QrnnConfig(vocab_size=9, window=1, zoneout=0.1, residual_blocks=True, expand=3)
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is hfseq.QrnnConfig and loaded.to_diff_dict() == config.to_diff_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["model_type"], saved["window"], saved["expand"]) == ("hfseq_qrnn", 1, 3)
