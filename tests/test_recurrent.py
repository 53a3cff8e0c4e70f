"""Layers against unrolled oracles, with padding anywhere."""

from functools import partial
from itertools import chain

import processes
import pytest
import torch
from oracles import attend_row, run_row

from hfseq.models import padding, recurrent
from hfseq.models.attention import CrossAttention
from hfseq.models.bridge import Bridge
from hfseq.models.recurrent import KernelLayer, RecurrentStack

CELLS = ["rnn", "lstm", "gru"]
# Left, right and gapped padding, a full row, a row of one step.
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()

RIGHT = torch.arange(5) < torch.tensor([[2], [3], [1], [5], [4]])


def layers_of(cell, nonlinearity="tanh"):
    return partial(KernelLayer, f"RNN_{nonlinearity.upper()}" if cell == "rnn" else cell.upper())


def make_stack(cell, bidirectional=False, layers=2, nonlinearity="tanh"):
    torch.manual_seed(0)
    stack = RecurrentStack(layers_of(cell, nonlinearity), 3, 6, layers, bidirectional=bidirectional).double()
    for parameter in stack.parameters():
        torch.nn.init.uniform_(parameter, -0.7, 0.7)
    return stack


def make_states(stack, batch):
    torch.manual_seed(1)
    return [tuple(torch.randn(shape).double() for shape in shapes) for shapes in stack.state_shapes(batch)]


@pytest.mark.parametrize("mask", [None, MASK, RIGHT], ids=["no mask", "mask", "right"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_stack_equals_the_unrolled_rows(cell, bidirectional, mask):
    stack = make_stack(cell, bidirectional)
    inputs = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(2)).double()
    outputs, _ = stack(inputs, mask)
    for row in range(5):
        valid = torch.ones(5).bool() if mask is None else mask[row]
        expected, _ = run_row(cell, stack.forward_layers, stack.backward_layers, inputs[row, valid])
        for layer in range(2):
            torch.testing.assert_close(outputs[layer][row, valid], expected[layer])
            assert not outputs[layer][row, ~valid].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_autocast_without_an_lstm_kernel(bidirectional, dtype, monkeypatch):
    """The kernel alone is in float32, its outputs are what a kernel of the other type would return."""
    monkeypatch.setattr(recurrent, "autocasts_lstm", lambda dtype: False)
    stack = make_stack("lstm", bidirectional).float()
    inputs = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(2))
    seen = []
    kernel = torch.lstm

    def spy(values, states, weights, *options):
        seen.append({tensor.dtype for tensor in (values, *states, *weights)})
        return kernel(values, states, weights, *options)

    monkeypatch.setattr(torch, "lstm", spy)
    with torch.autocast("cpu", dtype):
        outputs, _ = stack(inputs.to(dtype), MASK)
        loss = sum(output.float().pow(2).sum() for output in outputs)
    gradients = torch.autograd.grad(loss, list(stack.parameters()))
    assert seen == [{torch.float32}] * (4 if bidirectional else 2)
    assert {output.dtype for output in outputs} == {dtype}
    expected, _ = stack(inputs, MASK)
    wanted = torch.autograd.grad(sum(output.pow(2).sum() for output in expected), list(stack.parameters()))
    torch.testing.assert_close([output.float() for output in outputs], expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradients, wanted, rtol=0.05, atol=0.2)


@pytest.mark.processor
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_autocast_on_this_processor(cell, dtype):
    stack = make_stack(cell).float()
    inputs = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype):
        found = [stack(inputs, MASK)[0] for _ in range(2)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close([output.float() for output in found[0]], stack(inputs, MASK)[0], rtol=0.05, atol=0.05)


AUTOCAST = """
import torch
from hfseq import LstmConfig, LstmForCausalLM

model = LstmForCausalLM(LstmConfig(vocab_size=9, hidden_size=8))
ids = torch.ones(2, 3, dtype=torch.long)
for _ in range(3):
    with torch.autocast("cpu", torch.bfloat16):
        model(ids, labels=ids).loss.backward()
with torch.autocast("cpu", torch.bfloat16):
    model.eval().generate(ids, max_new_tokens=3)
"""


def test_a_processor_without_the_kernel_is_mentioned_once():
    """The oldest instructions that the kernels' library can be held to have no bfloat16 on any processor."""
    done = processes.run("-c", AUTOCAST, environments=[{"ONEDNN_MAX_CPU_ISA": "SSE41"}])
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "this processor has no bfloat16 LSTM kernel" in line]
    assert len(lines) == 1, done.stderr


@pytest.mark.parametrize("mask", [None, MASK, MASK & torch.tensor([[0], [1], [1], [1], [1]]).bool(), MASK[:, 2:3]])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_kernel_of_both_directions_gives_what_two_give(cell, mask, monkeypatch):
    """As on a GPU: outputs, states and gradients, with rows that are all padding, single steps and thinned weights."""
    stack = RecurrentStack(layers_of(cell), 3, 6, 2, bidirectional=True, weight_dropout=0.5, layer_norm=True)
    stack.double().train()
    inputs = torch.randn(5, 5 if mask is None else mask.shape[1], 3).double().requires_grad_()
    leaves = [inputs, *stack.parameters()]
    masks = stack.draw_masks(inputs)
    found = {}
    for one in (False, True):
        monkeypatch.setattr(RecurrentStack, "_fuses_directions", lambda *args, one=one: one)
        alone, _ = stack(inputs, mask, dropout_masks=masks)
        outputs, states = stack(inputs, mask, return_states=True, dropout_masks=masks)
        torch.testing.assert_close(alone, outputs)
        tensors = [*outputs, *chain(*states)]
        gradients = torch.autograd.grad(sum(tensor.pow(3).sum() for tensor in tensors), leaves, retain_graph=True)
        found[one] = [*tensors, *gradients]
    torch.testing.assert_close(found[True], found[False])


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_those_of_the_last_valid_step(cell):
    stack = make_stack(cell)
    initial = make_states(stack, 5)
    inputs = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(2)).double()
    outputs, states = stack(inputs, MASK, initial, return_states=True)
    for row in range(5):
        begin = [tuple(part[row] for part in layer) for layer in initial]
        expected_outputs, expected = run_row(cell, stack.forward_layers, [], inputs[row, MASK[row]], begin)
        torch.testing.assert_close(outputs[-1][row, MASK[row]], expected_outputs[-1])
        for layer in range(2):
            torch.testing.assert_close(tuple(part[row] for part in states[layer]), expected[layer])


def test_relu_is_the_other_nonlinearity_of_the_simple_cell():
    stack = make_stack("rnn", nonlinearity="relu")
    inputs = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(2)).double()
    expected, _ = run_row("rnn", stack.forward_layers, [], inputs[0], nonlinearity="relu")
    torch.testing.assert_close(stack(inputs)[0][-1][0], expected[-1])


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_an_all_padding_row_keeps_its_state_and_outputs_nothing(cell, length):
    stack = make_stack(cell)
    initial = make_states(stack, 2)
    mask = torch.tensor([[False] * length, [True] * length])
    outputs, states = stack(torch.randn(2, length, 3).double(), mask, initial, return_states=True)
    assert not outputs[-1][0].any()
    for layer in range(2):
        for before, after in zip(initial[layer], states[layer], strict=True):
            torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
            assert (after[1] != before[1]).any()


@pytest.mark.parametrize("mask", [MASK, RIGHT], ids=["mask", "right"])
@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_gets_no_gradient_and_gives_none(cell, return_states, mask):
    """Gradients of inputs, states and weights are those of the unpadded rows."""
    stack = make_stack(cell)
    initial = [tuple(part.requires_grad_() for part in layer) for layer in make_states(stack, 5)]
    inputs = torch.randn(5, 5, 3, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    leaves = [inputs, *(part for layer in initial for part in layer), *stack.parameters()]

    outputs, states = stack(inputs, mask, initial, return_states=return_states)
    total = sum(output.square().sum() for output in outputs)
    if return_states:
        total = total + sum(part.pow(3).sum() for layer in states for part in layer)
    gradients = torch.autograd.grad(total, leaves)

    expected_total = 0
    for row in range(5):
        begin = [tuple(part[row] for part in layer) for layer in initial]
        expected, last = run_row(cell, stack.forward_layers, [], inputs[row, mask[row]], begin)
        expected_total = expected_total + sum(output.square().sum() for output in expected)
        if return_states:
            expected_total = expected_total + sum(part.pow(3).sum() for layer in last for part in layer)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected_total, leaves))
    assert not gradients[0][~mask].any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_steps_are_moved_only_where_that_is_needed(bidirectional, monkeypatch):
    stack, moved = make_stack("lstm", bidirectional).requires_grad_(False), []

    def move(values, index, inverse):
        if index is not inverse:  # no reversal
            moved.append(index)
        return padding.permute_steps(values, index, inverse)

    monkeypatch.setattr(recurrent, "permute_steps", move)
    inputs = torch.randn(5, 5, 3).double()
    stack(inputs, RIGHT)
    assert not moved
    right, _ = stack(inputs, MASK)
    assert moved
    monkeypatch.undo()
    # A graph that was traced with padding on the right also holds for other masks.
    traced = torch.jit.trace(lambda *given: stack(*given)[0][-1], (inputs, RIGHT), check_trace=False)
    torch.testing.assert_close(traced(inputs, MASK), right[-1])


@pytest.mark.parametrize("attention_type", ["additive", "dot", "general"])
def test_attention_equals_the_unrolled_rows(attention_type):
    torch.manual_seed(0)
    attention = CrossAttention(4, 4 if attention_type == "dot" else 6, attention_type).double()
    memory = torch.randn(5, 5, 4 if attention_type == "dot" else 6).double()
    states = torch.randn(5, 2, 4).double()
    vectors, weights = attention(states, memory, attention.keys(memory), MASK)
    for row in range(5):
        for step in range(2):
            vector, expected = attend_row(attention, states[row, step], memory[row, MASK[row]])
            torch.testing.assert_close(vectors[row, step], vector)
            torch.testing.assert_close(weights[row, step, MASK[row]], expected)
            assert not weights[row, step, ~MASK[row]].any()


def test_attention_over_nothing_has_an_empty_context():
    attention = CrossAttention(4, 4, "dot").double()
    memory, states = torch.randn(1, 3, 4).double(), torch.randn(1, 1, 4).double()
    vector, weights = attention(states, memory, memory, torch.zeros(1, 3).bool())
    assert not weights.any()
    expected = torch.tanh(attention.combine.weight @ torch.cat([torch.zeros(4).double(), states[0, 0]]))
    torch.testing.assert_close(vector[0, 0], expected)


def test_dot_attention_refuses_two_widths():
    with pytest.raises(ValueError, match="attention_type='dot' needs .* encoder are 6 wide and .* decoder 4; use"):
        CrossAttention(4, 6, "dot")


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_bridge_reads_the_first_and_last_valid_positions(mask):
    torch.manual_seed(0)
    bridge = Bridge(3, [[torch.Size((1, 4))] * 2] * 2).double()
    memory = torch.randn(5, 5, 3).double()
    states = bridge(memory, mask)
    for row in range(5):
        valid = memory[row] if mask is None else memory[row, mask[row]]
        expected = torch.tanh(bridge.project(torch.cat([valid[0], valid[-1]]))).view(2, 2, 4)
        for layer in range(2):
            for part in range(2):
                torch.testing.assert_close(states[layer][part][row], expected[layer, part])
