"""The contract of the model classes: every family and head promises the same, so every test runs over all of them."""

import json
import math

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from old_checkpoints import INITIAL_WEIGHTS, sum_initial_weights
from oracles import decode_row, logits_row, run_stack
from safetensors.torch import load_file, save_file
from token_classes import MODEL_CLASSES
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertModel,
    EncoderDecoderModel,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto import modeling_auto

from hfseq import GruConfig, LstmConfig, LstmForCausalLM, LstmForConditionalGeneration, LstmModel, RnnConfig
from hfseq.models.linear_cells import LinearLayer, SsruLayer
from hfseq.models.padding import next_labels

pytestmark = pytest.mark.contract

CLASSES = [
    pytest.param(auto, model_class, id=model_class.__name__)
    for heads in MODEL_CLASSES.values()
    for auto, model_class in heads.items()
]
FAMILIES = [pytest.param(heads, id=config.__name__.removesuffix("Config")) for config, heads in MODEL_CLASSES.items()]
RECURRENT = [case for case in FAMILIES if case.id != "Cnn"]
# Cells whose gates see the state. The others refuse these fields.
STATEFUL = [case for case in FAMILIES if case.id in ("Rnn", "Lstm", "Gru")]
OF_STATEFUL = ("input_feeding", "weight_dropout")
MODEL, CAUSAL, SEQ2SEQ = "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
SEQUENCE, TOKEN = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
CTC = "AutoModelForCTC"

TINY = {"vocab_size": 17, "hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2, "dropout": 0.0}
# Only what generates has output embeddings, and only a translator has two matrices to share.
EMBEDDINGS = [
    pytest.param(*case.values, tie, share, id=f"{case.id}-{'tied' if tie else 'untied'}-{'' if share else 'un'}shared")
    for case in CLASSES
    for tie in ((True, False) if case.values[0] in (CAUSAL, SEQ2SEQ) else (True,))
    for share in ((True, False) if case.values[0] == SEQ2SEQ else (True,))
]

# Left, right and gapped padding, a full row, a row of one step; a target is masked by the same rows in another order.
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
TARGET_MASK = MASK[[4, 2, 0, 1, 3]]


def make(model_class, **fields):
    """A model in float64 whose weights are so large that nothing is small by chance."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**TINY | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    return model


def is_stateful(model_class):
    """True for a recurrent class whose gates see the state."""
    return model_class.config_class.family in {case.id for case in STATEFUL}


def fields_of(model_class, fields):
    """Those of the fields that a class has and does not refuse."""
    known = model_class.config_class.__dataclass_fields__.keys()
    if not is_stateful(model_class):
        known = known - OF_STATEFUL
    return {name: value for name, value in fields.items() if name in known}


def with_feeding(cases):
    """Cases with input feeding, where there is any, and without; of the classes a translator alone attends."""
    both = []
    for case in cases:
        both.append(pytest.param(*case.values, False, id=f"{case.id}-unfed"))
        heads = case.values[0]
        if is_stateful(heads[MODEL]) if isinstance(heads, dict) else heads == SEQ2SEQ and is_stateful(case.values[1]):
            both.append(pytest.param(*case.values, True, id=f"{case.id}-fed"))
    return both


def make_inputs(model, mask=MASK, target_mask=TARGET_MASK, seed=0):
    """Padded inputs, anything standing at padding, the pad token also elsewhere: the mask alone says what is what."""
    generator = torch.Generator().manual_seed(seed)

    def ids(shape):
        return torch.randint(0, model.config.vocab_size, shape, generator=generator)

    inputs = {"input_ids": ids(mask.shape), "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids(target_mask.shape), "decoder_attention_mask": target_mask}
    return inputs


def depth(backbone):
    """Number of layers of a stack."""
    stack = backbone.stack
    return len(stack.layers if backbone.config.family == "Cnn" else stack.forward_layers)


def row_alone(inputs, row):
    """One row of the inputs without its padding, and without any mask."""
    alone = {}
    for prefix in ("", "decoder_"):
        if f"{prefix}input_ids" in inputs:
            valid = inputs[f"{prefix}attention_mask"][row].bool()
            alone[f"{prefix}input_ids"] = inputs[f"{prefix}input_ids"][row, valid].unsqueeze(0)
    return alone


def valid_outputs(model, inputs):
    """For each row the first output of the model: its valid steps, or all of it where it is one for the sequence."""
    output = model(**inputs)[0]
    steps = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
    return [output[row, steps[row]] if output.dim() == 3 else output[row] for row in range(len(output))]


def gradients(model, outputs):
    return torch.autograd.grad(sum(output.pow(3).sum() for output in outputs), list(model.parameters()))


# --- construction, saving and loading ------------------------------------------------------------------------------


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_from_config_needs_nothing_but_a_vocabulary(auto, model_class):
    config = model_class.config_class(vocab_size=17)
    before = config.to_dict()
    model = getattr(transformers, auto).from_config(config)
    assert type(model) is model_class
    assert config.to_dict() == before and config.bidirectional is None
    assert model.config.bidirectional is (auto != CAUSAL)
    inputs = make_inputs(model)
    assert model.eval()(**inputs)[0].isfinite().all()
    ends = (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.decoder_start_token_id)
    assert ends == (0, 1, 2, 1)


@pytest.mark.parametrize(("auto", "model_class", "tie", "share"), EMBEDDINGS)
def test_saved_and_loaded_is_the_same(auto, model_class, tie, share, tmp_path):
    model = make(
        model_class,
        tie_word_embeddings=tie,
        share_encoder_decoder_embeddings=share,
        encoder_layers=1,
        decoder_layers=2,
    )
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["bidirectional"] is (auto != CAUSAL)
    loaded, info = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(loaded) is model_class
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    inputs = make_inputs(model)
    torch.testing.assert_close(loaded(**inputs)[0], model(**inputs)[0])
    for one in (model, loaded):
        source = one.get_input_embeddings().weight
        if auto == SEQ2SEQ:
            assert (one.decoder.embed_tokens.weight is source) is share
            assert (one.lm_head.weight is one.decoder.embed_tokens.weight) is tie
            assert (depth(one.model), depth(one.decoder)) == (1, 2)
        elif auto == CAUSAL:
            assert (one.lm_head.weight is source) is tie


@pytest.mark.parametrize("heads", FAMILIES)
def test_logits_of_labelled_steps_alone(heads):
    model = make(heads[SEQ2SEQ], dropout=0.5, tie_word_embeddings=True).train()
    inputs = make_inputs(model)
    labels = inputs["decoder_input_ids"].masked_fill(TARGET_MASK == 0, -100)

    def run(**kwargs):
        torch.manual_seed(1)
        outputs = model(**inputs, **kwargs)
        return outputs, gradients(model, [outputs.logits if "labels" not in kwargs else outputs.loss])

    keep = labels != -100
    some, some_gradients = run(logits_to_keep=keep)
    whole, _ = run()
    assert some.logits.shape == (int(keep.sum()), 17)
    torch.testing.assert_close(some.logits, whole.logits[keep])
    torch.manual_seed(1)
    expected = model(**inputs).logits[keep]
    torch.testing.assert_close(some_gradients, gradients(model, [expected]))
    some, some_gradients = run(labels=labels, logits_to_keep=keep)
    whole, whole_gradients = run(labels=labels)
    torch.testing.assert_close(some.loss, whole.loss)
    torch.testing.assert_close(some_gradients, whole_gradients, rtol=1e-5, atol=1e-5)  # the loss is in float32
    for last, steps in ((2, [3, 4]), (torch.tensor([4, 0]), [4, 0])):
        torch.testing.assert_close(run(logits_to_keep=last)[0].logits, run()[0].logits[:, steps])
    with pytest.raises(ValueError, match=r"logits_to_keep has shape \(5, 4\), expected \(5, 5\)"):
        model(**inputs, logits_to_keep=keep[:, 1:])


@pytest.mark.parametrize("heads", FAMILIES)
def test_heads_start_from_each_others_weights(heads, tmp_path):
    seq2seq = make(heads[SEQ2SEQ], encoder_layers=1, decoder_layers=2)
    seq2seq.save_pretrained(tmp_path / "seq2seq")
    inputs = {"input_ids": torch.randint(0, 17, MASK.shape), "attention_mask": MASK}

    encoder, info = AutoModel.from_pretrained(tmp_path / "seq2seq", output_loading_info=True)
    assert type(encoder) is heads[MODEL] and not info["missing_keys"]
    expected = seq2seq.model(**inputs).last_hidden_state
    torch.testing.assert_close(encoder(**inputs).last_hidden_state, expected)

    encoder.save_pretrained(tmp_path / "encoder")
    lm = make(heads[CAUSAL])
    lm.save_pretrained(tmp_path / "lm")
    for name, original, stack in (("encoder", encoder, encoder), ("lm", lm, lm.model)):
        started, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert type(started) is heads[SEQ2SEQ] and started.config.is_encoder_decoder
        assert started.config.bidirectional is original.config.bidirectional
        assert info["missing_keys"] and not any(key.startswith("model.") for key in info["missing_keys"])
        torch.testing.assert_close(started.model.state_dict(), stack.state_dict(), rtol=0, atol=0)
        assert_initialised(started.decoder)  # what is new starts as it should
        with pytest.raises(AssertionError):
            assert_initialised(started.model)  # what is loaded was not started afresh
        started(**inputs, labels=MASK).loss.backward()


# --- padding -------------------------------------------------------------------------------------------------------


@st.composite
def masks(draw, batch=3, longest=5):
    length = draw(st.integers(1, longest))
    row = st.lists(st.integers(0, 1), min_size=length, max_size=length).filter(any)
    return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))


def check_padding(model, inputs):
    outputs = valid_outputs(model, inputs)
    alone = [model(**row_alone(inputs, row))[0][0] for row in range(len(outputs))]
    torch.testing.assert_close(outputs, alone)
    torch.testing.assert_close(gradients(model, outputs), gradients(model, alone))


@pytest.mark.parametrize(
    ("model_class", "bidirectional"),
    [
        pytest.param(case.values[1], both, id=f"{case.id}-{both}")
        for case in CLASSES
        for both in ((False,) if case.values[0] == CAUSAL else (True, False))
    ],
)
def test_padding_changes_nothing(model_class, bidirectional):
    """Outputs and gradients are those of each row alone, without padding: so other rows do not matter either."""
    model = make(model_class, bidirectional=bidirectional)
    check_padding(model, make_inputs(model))

    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(masks(), masks())
    def check(mask, target_mask):
        check_padding(model, make_inputs(model, mask, target_mask))

    check()


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_padding_changes_nothing_in_float32_at_default_sizes(auto, model_class):
    torch.manual_seed(0)
    model = model_class(model_class.config_class(vocab_size=17)).eval()
    inputs = make_inputs(model)
    for row, found in enumerate(valid_outputs(model, inputs)):
        torch.testing.assert_close(found, model(**row_alone(inputs, row))[0][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention_type", ["additive", "dot", "general"])
@pytest.mark.parametrize("heads", STATEFUL)
def test_padding_changes_nothing_step_by_step(heads, attention_type):
    model = make(heads[SEQ2SEQ], input_feeding=True, attention_type=attention_type)
    check_padding(model, make_inputs(model))


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_what_stands_at_padding_does_not_matter(auto, model_class):
    model = make(model_class)
    inputs = make_inputs(model)
    expected = valid_outputs(model, inputs)
    for prefix in ("", "decoder_") if auto == SEQ2SEQ else ("",):
        ids, mask = inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"].bool()
        ids[mask & (ids == 0)] = 5
    expected = valid_outputs(model, inputs)
    for other in (0, 9, 16):
        changed = dict(inputs)
        for prefix in ("", "decoder_") if auto == SEQ2SEQ else ("",):
            mask = inputs[f"{prefix}attention_mask"].bool()
            changed[f"{prefix}input_ids"] = inputs[f"{prefix}input_ids"].where(mask, torch.tensor(other))
        torch.testing.assert_close(valid_outputs(model, changed), expected, rtol=0, atol=0)
    if auto == MODEL:  # where the logits are not the embeddings' business
        with torch.no_grad():
            model.embed_tokens.weight[0] += 5.0
        changed["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), torch.tensor(0))
        torch.testing.assert_close(valid_outputs(model, changed), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_a_batch_without_rows(auto, model_class):
    """As a process gets one where the others have more rows; its mask is no reason to fail."""
    model = make(model_class)
    output = model(**make_inputs(model, MASK[:0], TARGET_MASK[:0]))[0]
    assert output.shape == (0, *model(**make_inputs(model))[0].shape[1:])


@pytest.mark.parametrize(("auto", "model_class"), [case for case in CLASSES if case.values[0] != MODEL])
def test_padding_does_not_change_the_loss(auto, model_class):
    """The loss of a batch is the mean over the labels of its rows alone; so are its gradients."""
    model = make(model_class)
    inputs = make_inputs(model)
    tokens = inputs.get("decoder_input_ids", inputs["input_ids"])
    valid = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
    if auto in (SEQUENCE, TOKEN):
        tokens = tokens % model.num_labels
    labels = tokens[:, 0] if auto == SEQUENCE else tokens.masked_fill(~valid, -100)
    if auto == CTC:  # one for each row, not the blank
        labels = tokens[:, :1] % (model.config.vocab_size - 1) + 1
    loss = model(**inputs, labels=labels).loss
    total, count = 0, 0
    for row in range(len(tokens)):
        row_labels = labels[row : row + 1] if auto in (SEQUENCE, CTC) else tokens[row : row + 1, valid[row]]
        predicted = row_labels.numel() - (auto == CAUSAL)
        if predicted:
            total = total + model(**row_alone(inputs, row), labels=row_labels).loss * predicted
            count += predicted
    torch.testing.assert_close(loss, total / count)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(total / count, parameters)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("heads", RECURRENT)
def test_the_convolution_before_the_layers_equals_the_unrolled_one(heads, size):
    model = make(heads[MODEL], input_filters=7, input_kernel_size=size)
    inputs = make_inputs(model)
    outputs = model(**inputs, output_hidden_states=True)
    before = (size - 1) // 2
    for row in range(len(MASK)):
        valid = MASK[row].bool()
        embedded = model.embed_tokens.weight[inputs["input_ids"][row, valid]]
        padded = torch.nn.functional.pad(embedded, (0, 0, before, size - 1 - before))
        taps = [padded[at : at + len(embedded)] @ model.convolution.weight[:, :, at].T for at in range(size)]
        convolved = torch.relu(sum(taps) + model.convolution.bias)
        torch.testing.assert_close(outputs.hidden_states[0][row, valid], convolved)
        expected, _ = run_stack(model.config.family.lower(), model.stack, convolved)
        torch.testing.assert_close(outputs.last_hidden_state[row, valid], expected[-1])
    for auto in (SEQUENCE, TOKEN, SEQ2SEQ):
        model = make(heads[auto], input_filters=7, input_kernel_size=size)
        check_padding(model, make_inputs(model))


@pytest.mark.parametrize("heads", RECURRENT)
def test_a_convolution_that_sees_later_steps_is_refused_where_a_stack_must_not(heads):
    kind = heads[MODEL].config_class
    for make_one in (
        lambda: kind(vocab_size=9, input_filters=4, bidirectional=False),
        lambda: heads[CAUSAL](kind(vocab_size=9, input_filters=4)),
        lambda: heads[MODEL](kind(vocab_size=9, input_filters=4, add_cross_attention=True)),
    ):
        with pytest.raises(ValueError, match="input_filters=4 is impossible, the convolution sees later steps"):
            make_one()
    assert heads[SEQ2SEQ](kind(vocab_size=9, hidden_size=8, input_filters=4)).decoder.convolution is None
    with pytest.raises(ValueError, match="input_filters=0 is impossible, it must be at least 1, or None"):
        kind(input_filters=0)


# --- whole models against unrolled ones ----------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("heads", RECURRENT)
def test_the_language_model_equals_the_unrolled_one(heads, tie):
    model = make(heads[CAUSAL], tie_word_embeddings=tie)
    inputs = make_inputs(model)
    logits = valid_outputs(model, inputs)
    for row, found in enumerate(logits):
        hidden, _, _ = decode_row(
            model.config.family.lower(), model.model, row_alone(inputs, row)["input_ids"][0], None
        )
        torch.testing.assert_close(found, logits_row(model, hidden))


@pytest.mark.parametrize("attention_type", ["additive", "dot", "general"])
@pytest.mark.parametrize(("heads", "input_feeding"), with_feeding(RECURRENT))
def test_the_translator_equals_the_unrolled_one(heads, attention_type, input_feeding):
    """With two encoder layers and three decoder layers: logits, alignments and hidden states."""
    model = make(heads[SEQ2SEQ], attention_type=attention_type, input_feeding=input_feeding, decoder_layers=3)
    cell, encoder = model.config.family.lower(), model.model
    inputs = make_inputs(model)
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    for row in range(len(MASK)):
        source, target = row_alone(inputs, row).values()
        embedded = encoder.embed_tokens.weight[source[0]]
        encoded, _ = run_stack(cell, encoder.stack, embedded)
        hidden, alignments, decoded = decode_row(cell, model.decoder, target[0], encoded[-1])
        valid, steps = MASK[row].bool(), TARGET_MASK[row].bool()
        torch.testing.assert_close(outputs.logits[row, steps], logits_row(model, hidden))
        torch.testing.assert_close(outputs.cross_attentions[0][row, 0, steps][:, valid], alignments)
        found = [layer[row, valid] for layer in outputs.encoder_hidden_states]
        torch.testing.assert_close(found, [embedded, *encoded])
        found = [layer[row, steps] for layer in outputs.decoder_hidden_states[1:]]
        torch.testing.assert_close(found, decoded)


# --- losses --------------------------------------------------------------------------------------------------------


def loss_case(model):
    """Inputs with labels, and logits and labels in step with each other as the loss is to see them."""
    inputs = make_inputs(model)
    if model.config.is_encoder_decoder:
        del inputs["decoder_input_ids"], inputs["decoder_attention_mask"]
        labels = torch.randint(3, 17, (5, 4))
        labels[0, 2:] = labels[1, 3:] = -100
        before = torch.cat([torch.ones(5, 1).long(), labels[:, :-1]], dim=1)
        logits = model(**inputs, decoder_input_ids=before.where(before >= 0, 0)).logits
        return inputs | {"labels": labels}, logits, labels
    inputs["attention_mask"] = (torch.arange(5) < torch.tensor([[5], [4], [3], [2], [5]])).long()
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    return inputs | {"labels": labels}, model(**inputs).logits[:, :-1], labels[:, 1:]


def by_hand(logits, labels, smoothing=0.0):
    """Sum over tokens of the cross-entropy with a target that gives `smoothing` to all words alike; their number."""
    total, count = 0, 0
    for row, row_labels in zip(logits, labels, strict=True):
        for scores, label in zip(row, row_labels.tolist(), strict=True):
            if label != -100:
                log_probabilities = scores - torch.logsumexp(scores, 0)
                total = total - (1 - smoothing) * log_probabilities[label] - smoothing * log_probabilities.mean()
                count += 1
    return total, count


GENERATORS = [case for case in CLASSES if case.values[0] in (CAUSAL, SEQ2SEQ)]


@pytest.mark.parametrize(("auto", "model_class"), GENERATORS)
def test_loss(auto, model_class):
    """Shifted for a language model, in step for a translator; divided by `num_items_in_batch` where it is given."""
    model = make(model_class)
    inputs, logits, labels = loss_case(model)
    total, count = by_hand(logits, labels)
    total = total.float()  # transformers computes losses in float32
    torch.testing.assert_close(model(**inputs).loss, total / count)
    torch.testing.assert_close(model(**inputs, num_items_in_batch=31).loss, total / 31)
    torch.testing.assert_close(model(**inputs, num_items_in_batch=torch.tensor(31)).loss, total / 31)
    torch.testing.assert_close(model(**inputs, return_dict=False)[0], total / count)


@pytest.mark.parametrize(("auto", "model_class"), GENERATORS)
def test_smoothed_loss_of_the_trainer(auto, model_class, tmp_path):
    """The Trainer shifts the labels of the classes in one table, and of no others."""
    causal = model_class.__name__ in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    assert causal is (auto == CAUSAL)
    model = make(model_class)
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[])
    trainer = Trainer(model, arguments)
    inputs, logits, labels = loss_case(model)
    total, count = by_hand(logits, labels, smoothing=0.1)
    if auto == SEQ2SEQ:  # as DataCollatorForSeq2Seq does, since the Trainer keeps the labels to itself
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    torch.testing.assert_close(trainer.compute_loss(model, inputs), total / count)


def test_decoder_inputs_are_the_labels_moved_by_one():
    model = make(LstmForConditionalGeneration, decoder_start_token_id=7, pad_token_id=3)
    labels = torch.tensor([[4, 5, 2], [6, 2, -100], [2, -100, -100]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[7, 4, 5], [7, 6, 2], [7, 2, 3]]
    for name in ("decoder_start_token_id", "pad_token_id"):
        for token in (-1, 17):
            with pytest.raises(ValueError, match=f"{name}={token} is impossible, .* vocab_size is 17"):
                make(LstmForConditionalGeneration, **{name: token})
    for fields in ({"bos_token_id": None}, {"pad_token_id": None}):
        model = make(LstmForConditionalGeneration, **fields)
        with pytest.raises(ValueError, match="_token_id is None: set it in the config, or pass decoder_input_ids"):
            model(input_ids=labels[:1], labels=labels[:1])


# --- every config value --------------------------------------------------------------------------------------------

# Heads over an encoder do not see how its stack is made: such fields run in the encoder alone, in a language model and
# in a translator.
STACKS, TRANSLATOR = (MODEL, CAUSAL, SEQ2SEQ), (SEQ2SEQ,)
# Fields, and the heads that they are for.
FIELDS = [
    ({}, (MODEL, CAUSAL, SEQ2SEQ, SEQUENCE, TOKEN, CTC)),
    ({"attention_type": "additive"}, TRANSLATOR),
    ({"attention_type": "dot"}, TRANSLATOR),
    ({"input_feeding": True}, TRANSLATOR),
    ({"input_feeding": True, "attention_type": "additive", "encoder_layers": 1}, TRANSLATOR),
    ({"bidirectional": False}, (MODEL, SEQ2SEQ, SEQUENCE, TOKEN, CTC)),
    ({"tie_word_embeddings": False}, (CAUSAL, SEQ2SEQ)),
    ({"share_encoder_decoder_embeddings": False}, TRANSLATOR),
    ({"tie_word_embeddings": False, "share_encoder_decoder_embeddings": False}, TRANSLATOR),
    ({"encoder_layers": 3, "decoder_layers": 1}, STACKS),
    ({"num_hidden_layers": 1}, STACKS),
    ({"embedding_size": None}, STACKS),
    ({"hidden_size": 7, "bidirectional": False}, (*STACKS, SEQUENCE)),
    ({"hidden_act": "relu", "pooling": "mean", "hidden_size": 32}, (*STACKS, SEQUENCE)),
    ({"dropout": 0.3, "input_feeding": True}, STACKS),
    (
        {"dropout": 0.3, "variational_dropout": True, "embedding_dropout": 0.2, "classifier_dropout": 0.4},
        (*STACKS, SEQUENCE, TOKEN),
    ),
    ({"architecture": "parallel", "kernel_sizes": (2, 3)}, (*STACKS, SEQUENCE)),
    ({"architecture": "residual", "dilation_base": 2}, (*STACKS, SEQUENCE)),
    ({"architecture": "gated", "kernel_size": 5}, (*STACKS, SEQUENCE)),
    ({"architecture": "convs2s", "max_position_embeddings": 2}, (*STACKS, SEQUENCE)),
    ({"max_norm": None}, (SEQUENCE,)),
    ({"pooling": "middle"}, (SEQUENCE,)),
    ({"pooling": "max"}, (SEQUENCE,)),
    ({"pooling": "mean"}, (SEQUENCE,)),
    ({"pooling": "attention"}, (SEQUENCE,)),
    ({"pooling": "concat"}, (SEQUENCE,)),
    ({"weight_dropout": 0.4, "layer_norm": True}, STACKS),
    (
        {
            "weight_dropout": 0.4,
            "layer_norm": True,
            "variational_dropout": True,
            "input_feeding": True,
            "dropout": 0.2,
        },
        STACKS,
    ),
    ({"activation_regularization": 2.0, "temporal_activation_regularization": 1.0}, STACKS),
]


@pytest.mark.processor
@pytest.mark.parametrize(
    ("auto", "model_class", "fields"),
    [
        pytest.param(*case.values, fields, id=f"{case.id}-{fields}")
        for case in CLASSES
        for fields, heads in FIELDS
        if case.values[0] in heads and (not fields or fields_of(case.values[1], fields))
    ],
)
def test_every_config_value_trains(auto, model_class, fields):
    """Padded, forward and backward, all parameters with a gradient."""
    fields = fields | {"bidirectional": False} if auto == CAUSAL else fields
    model = make(model_class, **fields_of(model_class, fields)).train()
    loss = sum(output.pow(2).sum() for output in valid_outputs(model, make_inputs(model)))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    with torch.autocast("cpu", torch.bfloat16):
        outputs = valid_outputs(model.float(), make_inputs(model))
        sum(output.float().pow(2).sum() for output in outputs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("auto", "model_class", "input_feeding"), with_feeding(CLASSES))
def test_dropout_is_there_in_training_alone(auto, model_class, input_feeding):
    model = make(model_class, dropout=0.4, input_feeding=input_feeding)
    inputs = make_inputs(model)
    without = make(model_class, input_feeding=input_feeding)(**inputs)[0]
    torch.testing.assert_close(model(**inputs)[0], without)
    model.train()
    assert not torch.equal(model(**inputs)[0], model(**inputs)[0])


# --- outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "input_feeding"), with_feeding(FAMILIES))
def test_alignments(heads, input_feeding):
    model = make(heads[SEQ2SEQ], input_feeding=input_feeding)
    inputs = make_inputs(model, target_mask=TARGET_MASK[:, :4])
    assert model(**inputs).cross_attentions is None
    layers = model(**inputs, output_attentions=True).cross_attentions
    assert len(layers) == (2 if model.config.family == "Cnn" else 1)  # in a CNN each layer attends
    for weights in layers:
        assert weights.shape == (5, 1, 4, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 1, 4).double())
        assert not weights.masked_select(~MASK.bool()[:, None, None]).any()
    model.config.output_attentions = True
    torch.testing.assert_close(model(**inputs).cross_attentions, layers)


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_hidden_states_and_tuples(auto, model_class):
    model = make(model_class, encoder_layers=3)
    inputs = make_inputs(model)
    outputs = model(**inputs, output_hidden_states=True)
    if auto == SEQ2SEQ:
        states = {"encoder_hidden_states": 3, "decoder_hidden_states": 2}
        assert outputs.encoder_last_hidden_state is outputs.encoder_hidden_states[-1]
    else:
        # parallel convolutions are one layer
        states = {"hidden_states": 1 if getattr(model.config, "architecture", None) == "parallel" else 2}
    for name, layers in states.items():
        widths = [layer.shape for layer in getattr(outputs, name)]
        assert widths == [(5, 5, 6)] + [(5, 5, 8)] * layers
        assert name not in model(**inputs)
    as_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(outputs.to_tuple())
    torch.testing.assert_close(as_tuple[0], outputs[0], rtol=0, atol=0)
    model.config.output_hidden_states = True
    assert set(states) <= set(model(**inputs))


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_embeddings_in_place_of_ids(auto, model_class):
    model = make(model_class, share_encoder_decoder_embeddings=False)
    inputs = make_inputs(model)
    expected = model(**inputs)[0]
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    if auto == SEQ2SEQ:
        inputs["decoder_inputs_embeds"] = model.decoder.embed_tokens(inputs.pop("decoder_input_ids"))
    torch.testing.assert_close(model(**inputs)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize(("auto", "model_class", "tie", "share"), EMBEDDINGS)
def test_resized_vocabulary(auto, model_class, tie, share, tmp_path):
    model = make(model_class, tie_word_embeddings=tie, share_encoder_decoder_embeddings=share)
    inputs = make_inputs(model)
    with torch.no_grad():
        before = model(**inputs)[0]
        model.resize_token_embeddings(23)
        after = model(**inputs)[0]
    torch.testing.assert_close(after[..., : before.shape[-1]], before)
    assert model.config.vocab_size == 23
    if auto in (CAUSAL, SEQ2SEQ):
        assert after.shape[-1] == 23
    for prefix in ("", "decoder_") if auto == SEQ2SEQ else ("",):
        inputs[f"{prefix}input_ids"] = torch.full_like(inputs[f"{prefix}input_ids"], 22)
    labels = {"labels": inputs["input_ids"]} if auto in (CAUSAL, SEQ2SEQ) else {}
    model(**inputs, **labels)[0].sum().backward()
    if auto == SEQ2SEQ:
        assert (model.decoder.embed_tokens.weight is model.model.embed_tokens.weight) is share
        assert (model.lm_head.weight is model.decoder.embed_tokens.weight) is tie
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**inputs)[0], model(**inputs)[0])
    model.resize_token_embeddings(11)
    assert model.get_input_embeddings().weight.shape == (11, 6)


# --- initialisation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_a_seed_gives_the_weights_that_it_gave(auto, model_class):
    """Sums of all weights and of their magnitudes, written before the layers initialised themselves.

    A random number more or less, or another order, changes most of them; another processor only the last digits.
    """
    expected = json.loads(INITIAL_WEIGHTS.read_text())[model_class.__name__]
    found = sum_initial_weights(auto, model_class)
    assert list(found) == list(expected)
    for name, sums in found.items():
        assert sums == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name


def assert_initialised(model):
    projections = {layer.project for layer in model.modules() if isinstance(layer, LinearLayer)}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.RNNBase):
            width = module.hidden_size
            gates = module.weight_hh_l0.shape[0] // width
            for gate in module.weight_hh_l0.view(gates, width, width):
                torch.testing.assert_close(gate @ gate.T, torch.eye(width).to(gate), rtol=0, atol=1e-5)
            limit = math.sqrt(6 / (module.input_size + width))
            for gate in module.weight_ih_l0.view(gates, width, -1):
                assert 0.7 * limit < gate.abs().max() <= limit, name
            expected = torch.zeros(gates, width)
            if getattr(module, "mode", "") == "LSTM":
                expected[1] = 1.0
            bias = (module.bias_ih_l0 + module.bias_hh_l0).view(gates, width)
            torch.testing.assert_close(bias, expected.to(bias), rtol=0, atol=0)
        elif isinstance(module, LinearLayer):
            limit = math.sqrt(6 / (module.window * module.input_size + module.hidden_size))
            for gate in module.project.weight.chunk(len(module.biases)):
                assert 0.7 * limit < gate.abs().max() <= limit, name
            if isinstance(module, SsruLayer):
                assert (module.forget_bias == 1).all(), name
                continue
            sign = {"MinGruLayer": (-1, 0), "MinLstmLayer": (1, 0, 0), "QrnnLayer": (0, 1, 0)}[type(module).__name__]
            for gate, expected in zip(module.project.bias.chunk(len(sign)), sign, strict=True):
                assert (gate == expected).all(), name
        elif isinstance(module, torch.nn.Linear) and module.bias is not None and module not in projections:
            assert not module.bias.any(), name


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_initialisation(auto, model_class):
    torch.manual_seed(0)
    for layers, std in ((1, 0.3), (2, 0.3), (1, 0.0)):
        config = model_class.config_class(vocab_size=900, hidden_size=24, num_hidden_layers=layers)
        config.initializer_range = std
        model = getattr(transformers, auto).from_config(config)
        assert_initialised(model)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                assert module.weight.std().item() == pytest.approx(std, rel=0.05)
                assert abs(module.weight.mean().item()) < 0.01


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_a_loaded_parameter_stays_where_its_neighbour_is_missing(auto, model_class, tmp_path):
    model = make(model_class)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = next(name for name, weight in weights.items() if "layers.0." in name and weight.dim() > 1)
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = model_class.from_pretrained(tmp_path).state_dict()
    for name, expected in model.state_dict().items():
        assert torch.equal(loaded[name], expected) is (name != missing), name


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_wrong_inputs(auto, model_class):
    model = make(model_class)
    inputs = make_inputs(model)
    for shape in ((5, 4), (4, 5), (5, 1), (1, 5), (5, 5, 1), (5,)):
        with pytest.raises(ValueError, match=r"^attention_mask has shape .*, expected \(5, 5\)$"):
            model(**inputs | {"attention_mask": torch.ones(shape)})
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**inputs, inputs_embeds=torch.zeros(5, 5, 6).double())
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**inputs | {"input_ids": None})
    with pytest.raises(ValueError, match=r"input_ids has shape \(5,\), expected \(batch, length\)"):
        model(**inputs | {"input_ids": torch.ones(5).long()})
    with pytest.raises(ValueError, match=r"input_ids has shape \(5, 0\): there is no step to run"):
        model(**inputs | {"input_ids": torch.ones(5, 0).long(), "attention_mask": None})
    for shape in ((5, 5, 7), (5, 6)):
        with pytest.raises(ValueError, match=r"inputs_embeds has shape .*, expected .*embedding_size=6"):
            model(**inputs | {"input_ids": None, "inputs_embeds": torch.zeros(shape).double()})


def test_wrong_decoder_inputs():
    model = make(LstmForConditionalGeneration)
    inputs = make_inputs(model)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(5, 3\), expected \(5, 5\)"):
        model(**inputs | {"decoder_attention_mask": torch.ones(5, 3)})
    with pytest.raises(ValueError, match="exactly one of"):
        model(**inputs | {"decoder_input_ids": None})
    with pytest.raises(ValueError, match=r"encoder_hidden_states has shape \(5, 5, 8\), expected \(2, "):
        model(**inputs | {"decoder_input_ids": torch.ones(2, 5).long(), "decoder_attention_mask": None})


@pytest.mark.parametrize("heads", FAMILIES)
def test_wrong_encoder_states(heads):
    decoder = make(heads[CAUSAL], add_cross_attention=True, cross_attention_hidden_size=5)
    ids = torch.ones(2, 3).long()
    with pytest.raises(ValueError, match="add_cross_attention=True needs encoder_hidden_states"):
        decoder(ids)
    for shape, end in (((2, 4, 6), ""), ((3, 4, 5), ""), ((2, 5), ""), ((2, 0, 5), ", each at least 1")):
        message = rf"encoder_hidden_states has shape .*, expected \(2, source length, 5\){end}$"
        with pytest.raises(ValueError, match=message):
            decoder(ids, encoder_hidden_states=torch.zeros(shape).double())
    with pytest.raises(ValueError, match=r"encoder_attention_mask has shape \(2, 3\), expected \(2, 4\)"):
        decoder(ids, encoder_hidden_states=torch.zeros(2, 4, 5).double(), encoder_attention_mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="passed to a model without add_cross_attention=True"):
        make(heads[CAUSAL])(ids, encoder_hidden_states=torch.zeros(2, 4, 8).double())


@pytest.mark.parametrize("heads", FAMILIES)
def test_wrong_caches(heads):
    lm = make(heads[CAUSAL])
    ids = torch.ones(2, 3).long()

    def cache():
        return lm(ids, use_cache=True).cache

    with pytest.raises(ValueError, match=r"cache: layer 0 .*\(2, .*8\).* need .*\(3, .*8\).* model or batch"):
        lm(torch.ones(3, 1).long(), cache=cache())
    with pytest.raises(ValueError, match=r"cache: layer 0 .*\(2, .*8\).* need .*\(2, .*4\).* model or batch"):
        make(heads[CAUSAL], hidden_size=4)(ids, cache=cache())
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=17, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="layer 0 is a filled DynamicLayer, so this cache belongs to another model"):
        lm(ids, cache=gpt(ids, use_cache=True).cache)
    with pytest.raises(ValueError, match="a cache was passed to a bidirectional model"):
        make(heads[MODEL])(ids, cache=cache())
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 5\), expected \(2, 1\) or \(2, 4\)"):
        lm(ids[:, :1], attention_mask=torch.ones(2, 5), cache=cache())


def test_a_cache_of_another_kind_with_the_same_shapes():
    ids = torch.ones(2, 3).long()
    rnn, gru = (make(MODEL_CLASSES[config][CAUSAL]) for config in (RnnConfig, GruConfig))
    cache = rnn(ids, use_cache=True).cache
    with pytest.raises(ValueError, match="layer 0 holds states of hfseq_rnn, this model is hfseq_gru"):
        gru(ids, cache=cache)
    cache.reset()
    gru(ids, cache=cache)


@pytest.mark.parametrize("keep", [2, torch.tensor([3, 1])], ids=str)
@pytest.mark.parametrize("heads", FAMILIES)
def test_loss_of_the_steps_kept(heads, keep):
    """With a mask, whose columns go with the steps."""
    model = make(heads[CAUSAL])
    inputs = make_inputs(model)
    steps = torch.arange(5)[-keep:] if isinstance(keep, int) else keep
    labels = torch.randint(0, 17, (5, 2), generator=torch.Generator().manual_seed(1))
    labels = labels.masked_fill(MASK[:, steps] == 0, -100)
    loss = model(**inputs, labels=labels, logits_to_keep=keep).loss
    total, count = by_hand(model(**inputs).logits[:, steps], next_labels(labels, MASK[:, steps] != 0))
    torch.testing.assert_close(loss, (total / count).float())


@pytest.mark.parametrize("heads", FAMILIES)
def test_caches_of_other_models_of_ours(heads):
    """Of another number of states a layer, of another depth, of another width, with input feeding or without."""
    ids = torch.ones(2, 3).long()
    memory = {"encoder_hidden_states": torch.ones(2, 4, 8).double()}
    cross = {"add_cross_attention": True}
    other = make(MODEL_CLASSES[LstmConfig if heads[MODEL].config_class is not LstmConfig else RnnConfig][CAUSAL])
    one, deeper = make(heads[CAUSAL]), make(heads[CAUSAL], num_hidden_layers=3)
    fed, unfed = (
        make(heads[CAUSAL], **fields_of(heads[CAUSAL], cross | {"input_feeding": on})) for on in (True, False)
    )
    for reader, writer, inputs in [
        (one, other, {}),
        (other, one, {}),
        (one, deeper, {}),
        (deeper, one, {}),
        *([(fed, unfed, memory), (unfed, fed, memory)] if is_stateful(heads[MODEL]) else []),
    ]:
        cache = writer(ids, **inputs, use_cache=True).cache
        with pytest.raises(ValueError, match="cache: .* cache belongs to another model"):
            reader(ids, **inputs, cache=cache)


def test_impossible_models():
    with pytest.raises(ValueError, match="bidirectional=True is impossible for a causal language model"):
        LstmForCausalLM(LstmConfig(**TINY, bidirectional=True))
    with pytest.raises(ValueError, match="bidirectional=True is impossible for a causal language model"):
        AutoModelForCausalLM.from_config(LstmConfig(**TINY, bidirectional=True))
    with pytest.raises(ValueError, match="bidirectional=True is impossible with add_cross_attention=True"):
        LstmModel(LstmConfig(**TINY, bidirectional=True, add_cross_attention=True))
    odd = TINY | {"hidden_size": 7}
    with pytest.raises(ValueError, match="hidden_size=7 must be even for a bidirectional encoder"):
        LstmConfig(**odd, bidirectional=True)
    for model_class in (LstmModel, LstmForConditionalGeneration):
        with pytest.raises(ValueError, match="hidden_size=7 must be even for a bidirectional encoder"):
            model_class(LstmConfig(**odd))
    assert LstmForCausalLM(LstmConfig(**odd)).config.hidden_size == 7
    fields = {"attention_type": "dot", "add_cross_attention": True, "cross_attention_hidden_size": 5}
    with pytest.raises(ValueError, match="attention_type=.dot. needs .* encoder are 5 wide and .* decoder 8"):
        LstmForCausalLM(LstmConfig(**TINY, **fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (name, value)
        for name in ("vocab_size", "hidden_size", "embedding_size", "num_hidden_layers", "encoder_layers")
        + ("decoder_layers", "cross_attention_hidden_size")
        for value in (0, -3)
    ]
    + [("dropout", 1.0), ("dropout", -0.1), ("dropout", 2), ("embedding_dropout", 1.0), ("classifier_dropout", -1)],
)
@pytest.mark.parametrize("heads", FAMILIES)
def test_impossible_sizes(heads, field, value):
    config_class = heads[MODEL].config_class
    with pytest.raises(ValueError, match=f"{config_class.__name__}: {field}={value} is impossible"):
        config_class(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", "8"), ("hidden_size", 8.5), ("bidirectional", "yes"), ("dropout", "0.1"), ("use_cache", None)]
    + [
        ("attention_type", "cosine"),
        ("tie_word_embeddings", "no"),
        ("hidden_act", "gelu"),
        ("vocab_size", None),
        ("problem_type", "regresion"),
    ],
)
def test_wrong_types(field, value):
    with pytest.raises(Exception, match=field) as caught:  # huggingface_hub's own, of the field's validation
        RnnConfig(**{field: value})
    assert type(caught.value).__name__ == "StrictDataclassFieldValidationError"


@pytest.mark.parametrize("heads", FAMILIES)
def test_checks_of_fields_set_later(heads):
    """A config is an ordinary object: what `__post_init__` would have refused can be assigned."""
    config = heads[MODEL](heads[MODEL].config_class(**TINY)).config
    recurrent = config.family != "Cnn"
    setattr(config, "hidden_size" if recurrent else "kernel_size", 7 if recurrent else 4)
    with pytest.raises(ValueError, match="hidden_size=7 must be even" if recurrent else "kernel_size=4 must be odd"):
        heads[MODEL](config)


# --- beside a pretrained Transformer -------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "input_feeding"), with_feeding(FAMILIES))
def test_decoder_of_a_transformer(heads, input_feeding, tmp_path):
    fields = {"add_cross_attention": True, "cross_attention_hidden_size": 12, "attention_type": "additive"}
    decoder = make(heads[CAUSAL], **fields, input_feeding=input_feeding, tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.5)  # so that it does not repeat itself
    bert = BertConfig(vocab_size=17, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = EncoderDecoderModel(encoder=BertModel(bert).double(), decoder=decoder).eval()
    inputs = {"input_ids": torch.randint(3, 17, (5, 5)), "attention_mask": MASK}
    for name, value in {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 2}.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)

    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    assert type(loaded.decoder) is heads[CAUSAL]
    options = {"max_new_tokens": 8, "output_scores": True, "return_dict_in_generate": True}
    for num_beams in (1, 3):
        cached = model.generate(**inputs, **options, num_beams=num_beams)
        uncached = model.generate(**inputs, **options, num_beams=num_beams, use_cache=False)
        for other in (uncached, loaded.generate(**inputs, **options, num_beams=num_beams)):
            assert other.sequences.tolist() == cached.sequences.tolist()
            torch.testing.assert_close(other.scores, cached.scores)
        assert len(cached.sequences.unique()) > 4

    labels = torch.randint(3, 17, (5, 4))
    before = loaded(**inputs, labels=labels).loss
    before.backward()
    for name, parameter in loaded.decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    torch.optim.SGD(loaded.parameters(), lr=1e-8).step()
    assert loaded(**inputs, labels=labels).loss < before


@pytest.mark.parametrize("heads", FAMILIES)
def test_encoder_of_encoder_decoder_model_and_lm_as_its_decoder(heads, tmp_path):
    """Both sides from checkpoints of ours, the decoder from an ordinary language model: only its attention is new."""
    make(heads[MODEL], hidden_size=8).float().save_pretrained(tmp_path / "encoder")
    lm = make(heads[CAUSAL]).float()
    lm.save_pretrained(tmp_path / "lm")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "lm")
    assert type(model.encoder) is heads[MODEL] and type(model.decoder) is heads[CAUSAL]
    torch.testing.assert_close(model.decoder.model.embed_tokens.weight, lm.model.embed_tokens.weight)
    ids = torch.randint(3, 17, (2, 4))
    outputs = model(input_ids=ids, decoder_input_ids=ids, labels=ids)
    outputs.loss.backward()
    assert outputs.encoder_last_hidden_state.shape == (2, 4, 8)
