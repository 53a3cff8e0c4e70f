"""Recurrent layers of different widths, as in AWD-LSTM."""

import pytest
import torch
from oracles import decode_row, logits_row, normalise, run_row, run_stack
from test_models import (
    CAUSAL,
    MASK,
    MODEL,
    SEQ2SEQ,
    SEQUENCE,
    TOKEN,
    check_padding,
    make,
    make_inputs,
    row_alone,
    valid_outputs,
)
from token_classes import ALL

from hfseq import GruConfig, GruModel, LstmConfig, MinGruConfig, QrnnConfig
from hfseq.cache_io import load_state, save_state

pytestmark = pytest.mark.contract

# As wide as the tied embeddings at the top, which then needs no projection.
TAPERED = {"layer_sizes": [12, 10, 6], "hidden_size": 6, "num_hidden_layers": 3}
HEADS = {config.family: heads for config, heads in ALL.items() if config.family != "Cnn"}


@pytest.mark.parametrize("family", ["Lstm", "Gru", "Qrnn"])
def test_encoders_and_translators_equal_the_unrolled_ones(family):
    """Both directions, states from the bridge, attention on top; padding changes nothing."""
    model = make(HEADS[family][SEQ2SEQ], **TAPERED)
    assert [layer.hidden_size for layer in model.model.stack.backward_layers] == [6, 5, 3]
    assert [layer.hidden_size for layer in model.decoder.stack.forward_layers] == [12, 10, 6]
    assert model.output.project is None
    inputs = make_inputs(model)
    for row, found in enumerate(valid_outputs(model, inputs)):
        source, target = row_alone(inputs, row).values()
        encoded, _ = run_stack(family.lower(), model.model.stack, model.model.embed_tokens.weight[source[0]])
        hidden, _, _ = decode_row(family.lower(), model.decoder, target[0], encoded[-1])
        torch.testing.assert_close(found, logits_row(model, hidden))
    check_padding(model, inputs)
    for beams in (1, 3):
        options = {"max_new_tokens": 5, "num_beams": beams, "output_scores": True, "return_dict_in_generate": True}
        source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        cached, uncached = (model.generate(**source, **options, use_cache=one) for one in (True, False))
        assert cached.sequences.tolist() == uncached.sequences.tolist()
        torch.testing.assert_close(cached.scores, uncached.scores)


@pytest.mark.parametrize("family", HEADS)
def test_language_models_equal_the_unrolled_ones_cached_or_not(family, tmp_path):
    model = make(HEADS[family][CAUSAL], **TAPERED)
    inputs = make_inputs(model)
    outputs = model(**inputs, output_hidden_states=True)
    assert [one.shape[-1] for one in outputs.hidden_states] == [6, 12, 10, 6]
    for row, found in enumerate(valid_outputs(model, inputs)):
        hidden, _, _ = decode_row(family.lower(), model.model, row_alone(inputs, row)["input_ids"][0], None)
        torch.testing.assert_close(found, logits_row(model, hidden))
    model.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model", dtype=torch.float64)
    cache = loaded(input_ids=inputs["input_ids"][:, :2], attention_mask=MASK[:, :2], use_cache=True).cache
    save_state(cache, tmp_path / "state.safetensors")
    cache = load_state(tmp_path / "state.safetensors")
    for step in range(2, 5):
        here = slice(step, step + 1)
        logits = loaded(inputs["input_ids"][:, here], attention_mask=MASK[:, here], cache=cache).logits
        valid = MASK[:, here].bool()
        torch.testing.assert_close(logits[valid], outputs.logits[:, here][valid])
    other = make(HEADS[family][CAUSAL], **TAPERED | {"layer_sizes": [12, 8, 6]})
    with pytest.raises(ValueError, match="cache: layer 1 holds states of shapes"):
        other(inputs["input_ids"], cache=cache)


def test_regularised_and_normalised_layers():
    """Masks of dropout have the widths of their layers, fed step by step too; norms are as in the oracle."""
    fields = {"dropout": 0.5, "variational_dropout": True, "weight_dropout": 0.5, "input_feeding": True}
    model = make(HEADS["Lstm"][SEQ2SEQ], **TAPERED | fields, layer_norm=True).train()
    inputs = make_inputs(model)
    model(**inputs, labels=inputs["decoder_input_ids"]).loss.backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    model = make(GruModel, **TAPERED, layer_norm=True, bidirectional=False)
    ids = torch.randint(17, (1, 4))
    values = model.embed_tokens.weight[ids[0]]
    for index, layer in enumerate(model.stack.forward_layers):
        values = normalise(model.stack.norms[index], run_row("gru", [layer], [], values)[0][0])
    torch.testing.assert_close(model(ids).last_hidden_state[0], values)


def test_other_heads_read_the_top_layer():
    """A language model of tapering layers starts a classifier, a tagger and a forecaster of the same widths."""
    for auto in (MODEL, SEQUENCE, TOKEN, "AutoModelForCTC"):
        model = make(HEADS["Gru"][auto], **TAPERED)
        check_padding(model, make_inputs(model))
    fields = {**TAPERED, "input_size": 1, "embedding_size": None, "lags_sequence": [1], "prediction_length": 2}
    model = HEADS["Lstm"]["AutoModelForTimeSeriesPrediction"](LstmConfig(**fields)).eval()
    assert model.generate(past_values=torch.randn(2, 6), num_parallel_samples=3).sequences.shape == (2, 3, 2)


def test_a_convolutional_lstm_has_maps_of_different_depths():
    fields = {"frame_shape": [1, 3, 2], "recurrent_kernel_size": 3, "embedding_size": None, "vocab_size": 17}
    fields |= {"layer_sizes": [24, 12], "hidden_size": 12, "num_hidden_layers": 2}
    model = HEADS["Lstm"][MODEL](LstmConfig(**fields))
    assert model(input_features=torch.randn(2, 4, 1, 3, 2)).last_hidden_state.shape == (2, 4, 12)
    with pytest.raises(ValueError, match=r"layer_sizes=\[18, 12\] is impossible, .* 2 directions of one map, 3 x 2"):
        LstmConfig(**fields | {"layer_sizes": [18, 12]}, bidirectional=True)


@pytest.mark.parametrize(
    ("config_class", "fields", "reason"),
    [
        (LstmConfig, {"layer_sizes": [12, 6]}, "a width for each of the num_hidden_layers=3"),
        (GruConfig, {"layer_sizes": [12, 10, 8]}, "the last width must be hidden_size=6"),
        (GruConfig, {"layer_sizes": [12, 0, 6]}, "every width must be at least 1"),
        (QrnnConfig, {"layer_sizes": [12, 9, 6], "bidirectional": True}, "every width must be even"),
        (MinGruConfig, {"residual_blocks": True}, "residual_blocks add each block's output to its input"),
    ],
)
def test_impossible_widths(config_class, fields, reason):
    with pytest.raises(ValueError, match=rf"layer_sizes=\[.*\] is impossible, .*{reason}"):
        config_class(**TAPERED | fields)


def test_a_head_that_decides_for_two_directions_or_another_depth_refuses_what_is_impossible():
    with pytest.raises(ValueError, match="every width must be even for a bidirectional encoder"):
        GruModel(GruConfig(vocab_size=9, **TAPERED | {"layer_sizes": [9, 8, 6]}))
    with pytest.raises(ValueError, match="a width for each of the num_hidden_layers=1"):
        HEADS["Gru"][SEQ2SEQ](GruConfig(vocab_size=9, **TAPERED, decoder_layers=1))
