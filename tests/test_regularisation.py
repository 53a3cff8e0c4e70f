"""Regularisation of the published language models: each kind as its paper has it, over several processes too."""

import processes
import pytest
import torch
from oracles import run_row
from test_models import CAUSAL, MASK, MODEL, SEQ2SEQ, SEQUENCE, TOKEN, gradients, make, make_inputs, valid_outputs
from test_recurrent import layers_of
from torch.nn.parallel import DistributedDataParallel

from hfseq import GruConfig, LstmConfig, RnnConfig
from hfseq.models import MODEL_CLASSES
from hfseq.models.dropout import Dropout, drop, drop_words
from hfseq.models.recurrent import RecurrentStack

RECURRENT = [pytest.param(MODEL_CLASSES[config], id=config.family) for config in (RnnConfig, LstmConfig, GruConfig)]
DROPOUTS = {"dropout": 0.5, "variational_dropout": True, "weight_dropout": 0.5}


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_elements_are_dropped_independently_with_their_probability(probability):
    torch.manual_seed(0)
    dropped = drop(torch.ones(101, 997), probability)  # not a multiple of what is drawn at once
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 1 / (1 - probability)], rel=1e-4)
    gone = (dropped.flatten() == 0).double()
    assert gone.mean().item() == pytest.approx(probability, abs=0.005)
    for distance in range(1, 9):
        both = (gone[distance:] * gone[:-distance]).mean().item()
        assert both == pytest.approx(probability**2, abs=0.006)


def test_what_is_dropped_gets_no_gradient():
    values = torch.randn(3, 5, 7, dtype=torch.float64).transpose(0, 2).requires_grad_()

    def dropped(values):
        torch.manual_seed(1)
        return drop(values, 0.4)

    assert torch.autograd.gradcheck(dropped, values)
    assert torch.equal(dropped(values), dropped(values))
    torch.manual_seed(2)
    assert not torch.equal(drop(values, 0.4), dropped(values))
    assert torch.equal(dropped(values) == 0, torch.autograd.grad(dropped(values).sum(), values)[0] == 0)
    assert drop(values.bfloat16(), 0.4).dtype == torch.bfloat16


@pytest.mark.parametrize("probability", [0, 0.0, 1e-9, 1 - 1e-9, 1, 1.0])
def test_nothing_and_all_are_dropped(probability):
    values = torch.randn(4, 50)
    assert torch.equal(drop(values, probability), values if probability < 0.5 else torch.zeros(4, 50))


def test_variational_dropout_has_one_mask_for_all_steps():
    torch.manual_seed(0)
    dropout = Dropout(0.25, variational=True)
    dropped = dropout(torch.ones(300, 7, 40))
    assert (dropped == dropped[:, :1]).all()
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75], rel=2e-5)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(dropped[0], dropped[1])  # a row has a mask of its own
    independent = Dropout(0.25)(torch.ones(300, 7, 40))
    assert not (independent == independent[:, :1]).all()
    values = torch.randn(2, 3, 4)
    assert torch.equal(dropout.eval()(values), values) and dropout.mask(values) is None


def test_words_are_dropped_in_all_places():
    torch.manual_seed(0)
    ids = torch.randint(0, 500, (40, 25))
    dropped = drop_words(torch.ones(40, 25, 3), ids, 500, 0.2)
    whole = dropped[..., 0]
    assert (dropped == whole.unsqueeze(-1)).all()
    for word in ids.unique():
        assert len(whole[ids == word].unique()) == 1
    assert sorted(set(whole.flatten().tolist())) == pytest.approx([0.0, 1 / 0.8], rel=2e-5)
    gone = sum(whole[ids == word][0].item() == 0 for word in ids.unique()) / len(ids.unique())
    assert gone == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("heads", RECURRENT)
def test_a_stack_with_drop_connect_runs_on_the_drawn_weights(heads):
    """Every step of every row multiplies with the same thinned matrix; the parameters stay whole and get gradients."""
    cell = heads[MODEL].config_class.family.lower()
    torch.manual_seed(0)
    stack = RecurrentStack(layers_of(cell), 3, 8, 2, bidirectional=True, weight_dropout=0.5).double().train()
    before = {name: value.clone() for name, value in stack.state_dict().items()}
    inputs = torch.randn(5, 5, 3).double()
    masks = stack.draw_masks(inputs)
    outputs, _ = stack(inputs, MASK.bool(), dropout_masks=masks)
    loss = sum(output.pow(2).sum() for output in outputs)
    loss.backward()
    torch.testing.assert_close(stack.state_dict(), before, rtol=0, atol=0)
    layers = [*stack.forward_layers, *stack.backward_layers]
    for layer, weight in zip(layers, masks.weights, strict=True):
        dropped = weight == 0
        assert 0.3 < dropped.double().mean() < 0.7
        torch.testing.assert_close(weight[~dropped], 2 * layer.weight_hh_l0[~dropped])
        assert not layer.weight_hh_l0.grad[dropped].any() and layer.weight_hh_l0.grad[~dropped].all()
        layer.weight_hh_l0.data = weight.data
    for row in range(5):
        expected, _ = run_row(cell, stack.forward_layers, stack.backward_layers, inputs[row, MASK[row].bool()])
        torch.testing.assert_close(outputs[-1][row, MASK[row].bool()], expected[-1])


@pytest.mark.parametrize("heads", RECURRENT)
def test_a_stack_with_variational_dropout_multiplies_with_the_drawn_masks(heads):
    cell = heads[MODEL].config_class.family.lower()
    torch.manual_seed(0)
    stack = RecurrentStack(layers_of(cell), 3, 6, 2, dropout=0.5, variational=True).double().train()
    inputs = torch.randn(5, 5, 3).double()
    masks = stack.draw_masks(inputs)
    outputs, _ = stack(inputs, MASK.bool(), dropout_masks=masks)
    for row in range(5):
        below, _ = run_row(cell, stack.forward_layers[:1], [], inputs[row, MASK[row].bool()])
        expected, _ = run_row(cell, stack.forward_layers[1:], [], below[-1] * masks.between[0][row])
        torch.testing.assert_close(outputs[-1][row, MASK[row].bool()], expected[-1])


@pytest.mark.parametrize("heads", RECURRENT)
def test_input_feeding_keeps_its_masks_over_the_steps(heads, monkeypatch):
    """Step by step, a batch still has one set of masks."""
    decoder = make(heads[MODEL], **DROPOUTS, add_cross_attention=True, input_feeding=True).train()
    drawn, used = [], []
    draw, forward = decoder.stack.draw_masks, decoder.stack.forward
    monkeypatch.setattr(decoder.stack, "draw_masks", lambda inputs: drawn.append(draw(inputs)) or drawn[-1])
    monkeypatch.setattr(
        decoder.stack,
        "forward",
        lambda *args, **kwargs: used.append(kwargs["dropout_masks"]) or forward(*args, **kwargs),
    )
    tops = []
    decoder.attention.register_forward_pre_hook(lambda module, args: tops.append(args[0] == 0))
    decoder(torch.randint(0, 17, (2, 4)), encoder_hidden_states=torch.randn(2, 3, 8).double())
    assert len(drawn) == 1 and len(used) == 4
    assert all(one is drawn[0] for one in used)
    assert all(weight is not None for weight in drawn[0].weights) and drawn[0].between[0] is not None
    assert tops[0].any() and all(torch.equal(step, tops[0]) for step in tops)


@pytest.mark.parametrize("heads", RECURRENT)
def test_layer_norm_normalises_each_layers_output(heads):
    cell = heads[MODEL].config_class.family.lower()
    torch.manual_seed(0)
    stack = RecurrentStack(layers_of(cell), 3, 6, 2, bidirectional=True, layer_norm=True).double()
    with torch.no_grad():
        for norm in stack.norms:
            norm.weight.uniform_(-1, 1), norm.bias.uniform_(-1, 1)
    inputs = torch.randn(5, 5, 3).double()
    outputs, _ = stack(inputs, MASK.bool())
    for row in range(5):
        values = inputs[row, MASK[row].bool()]
        for index, norm in enumerate(stack.norms):
            (values,), _ = run_row(cell, [stack.forward_layers[index]], [stack.backward_layers[index]], values)
            mean = values.mean(-1, keepdim=True)
            variance = (values - mean).pow(2).mean(-1, keepdim=True)
            values = (values - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
            torch.testing.assert_close(outputs[index][row, MASK[row].bool()], values)
            assert not outputs[index][row, ~MASK[row].bool()].any()


def penalties(model, ids):
    """AR and TAR of one row without padding, as sums over its predicting steps."""
    hidden = model.model(ids.unsqueeze(0))[0][0]
    steps = len(ids) - 1
    activation = sum(hidden[step].pow(2).mean() for step in range(steps))
    temporal = sum((hidden[step] - hidden[step - 1]).pow(2).mean() for step in range(1, steps))
    return activation, temporal, steps


@pytest.mark.parametrize("heads", RECURRENT)
def test_activation_regularisation(heads):
    """With padding anywhere: what each row alone contributes, divided as the loss is; in training alone."""
    plain = make(heads[CAUSAL])
    inputs = make_inputs(plain)
    labels = inputs["input_ids"].masked_fill(MASK == 0, -100)
    base = plain(**inputs, labels=labels).loss
    rows = [penalties(plain, inputs["input_ids"][row, MASK[row].bool()]) for row in range(5)]
    activation, temporal, count = (sum(parts) for parts in zip(*rows, strict=True))
    for alpha, beta in ((2.0, 0.0), (0.0, 3.0), (2.0, 3.0)):
        fields = {"activation_regularization": alpha, "temporal_activation_regularization": beta}
        model = make(heads[CAUSAL], **fields)
        torch.testing.assert_close(model(**inputs, labels=labels).loss, base)
        expected = base + (alpha * activation + beta * temporal) / count
        torch.testing.assert_close(model.train()(**inputs, labels=labels).loss, expected.to(base), check_dtype=False)
        halved = model(**inputs, labels=labels, num_items_in_batch=2 * count).loss
        torch.testing.assert_close(halved, expected / 2, check_dtype=False, rtol=1e-5, atol=1e-6)


def test_activation_regularisation_takes_the_output_after_dropout_and_tar_the_one_before():
    fields = {"activation_regularization": 1.0, "temporal_activation_regularization": 1.0}
    model = make(MODEL_CLASSES[LstmConfig][CAUSAL], **fields).train()
    model.output.dropout.probability = 0.5
    seen = []
    model.output.dropout.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    found = []
    penalty = model.penalty
    model.penalty = lambda *args: found.append(penalty(*args)) or found[-1]
    ids = torch.randint(0, 17, (2, 6))
    model(ids, labels=ids)
    ((raw, dropped),) = seen
    assert (dropped == 0).any() and not (raw == 0).any()
    temporal = (raw[:, 1:5] - raw[:, :4]).pow(2).mean(-1).sum()
    torch.testing.assert_close(found, [dropped[:, :5].pow(2).mean(-1).sum() + temporal])


ALL = {
    "dropout": 0.3,
    "variational_dropout": True,
    "embedding_dropout": 0.2,
    "weight_dropout": 0.4,
    "activation_regularization": 2.0,
    "temporal_activation_regularization": 1.0,
    "layer_norm": True,
}


@pytest.mark.parametrize("auto", [MODEL, CAUSAL, SEQ2SEQ, SEQUENCE, TOKEN])
@pytest.mark.parametrize("heads", RECURRENT)
def test_after_save_and_reload_everything_is_as_before(heads, auto, tmp_path):
    model = make(heads[auto], **ALL).train()
    inputs = make_inputs(model)
    model(**inputs)  # a training step leaves nothing behind
    # Nothing adds weights but layer normalisation.
    assert model.state_dict().keys() == make(heads[auto], layer_norm=True).state_dict().keys()
    model.save_pretrained(tmp_path)
    loaded, info = heads[auto].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for mode in (True, False):
        results = []
        for one in (model, loaded):
            one.train(mode)
            torch.manual_seed(5)
            outputs = valid_outputs(one, inputs)
            results.append((outputs, gradients(one, outputs)))
        torch.testing.assert_close(*results)


def half_of(inputs, rank):
    return {name: value[2 * rank : 2 * rank + 2] for name, value in inputs.items()}


def gradients_of_a_share(model, module, inputs, seed):
    """Gradients of what the Trainer has a process back-propagate: its share of the sum, times the number of shares."""
    torch.manual_seed(seed)
    count = int((inputs["attention_mask"].sum(1) - 1).clamp(min=0).sum())
    for share in (half_of(inputs, seed),) if module is not model else (half_of(inputs, 0), half_of(inputs, 1)):
        labels = share["input_ids"].masked_fill(share["attention_mask"] == 0, -100)
        scale = 1 if module is model else 2
        (module(**share, labels=labels, num_items_in_batch=count).loss * scale).backward()
    return [parameter.grad for parameter in model.parameters()]


def process_of_two(rank, directory, fields):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    model = make(MODEL_CLASSES[LstmConfig][CAUSAL], **fields).train()
    found = gradients_of_a_share(model, DistributedDataParallel(model), make_inputs(model), rank)
    torch.save(found, f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("random", [False, True], ids=["penalties", "penalties and dropouts"])
def test_two_processes_are_one_with_both_their_rows(random, tmp_path):
    """DDP averages the gradients of the shares, each process drawing its own masks."""
    fields = ALL if random else {name: value for name, value in ALL.items() if "regularization" in name}
    processes.start(process_of_two, str(tmp_path), fields)
    one, other = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    model = make(MODEL_CLASSES[LstmConfig][CAUSAL], **fields).train()
    inputs = make_inputs(model)
    if not random:
        torch.testing.assert_close(gradients_of_a_share(model, model, inputs, 0), one, rtol=1e-6, atol=1e-8)
        return
    shares = []
    for rank in range(2):
        model = make(MODEL_CLASSES[LstmConfig][CAUSAL], **fields).train()
        whole = gradients_of_a_share(model, model.forward, inputs, rank)
        shares.append(whole)
    torch.testing.assert_close([(a + b) / 2 for a, b in zip(*shares, strict=True)], one, rtol=1e-6, atol=1e-8)
