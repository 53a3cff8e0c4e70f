"""Convolutional layers of different shapes, projections around them, and ConvS2S as fairseq computes it."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from oracles_cnn import model_row
from test_convolution import MASK, SOURCE_MASK, make, make_ids

from hfseq import CnnConfig, CnnForCausalLM, CnnForConditionalGeneration, CnnForSequenceClassification, CnnModel

FAIRSEQ = Path(__file__).parent / "fixtures" / "fairseq"
# Wider, then narrower layers; the third adds the first one's input, the fourth nothing; a kernel of one step.
LAYERS = [[10, 3, 1], [10, 5, 1], [12, 1, 3], [8, 3, 0]]
DECODER_LAYERS = [[6, 4, 1], [12, 2, 2], [8, 1, 1]]
SHAPED = {"num_hidden_layers": 4, "conv_layers": LAYERS}
TRANSLATOR = SHAPED | {"decoder_layers": 3, "decoder_conv_layers": DECODER_LAYERS, "max_position_embeddings": 4}
OUTPUT = {"output_size": 5, "lm_head_bias": True, "tie_word_embeddings": False}


def logits_row(model, hidden):
    """Logits [T, V] of the outputs [T, H] of one row, through both maps and their biases."""
    project = model.output.project
    return (hidden @ project.weight.T + project.bias) @ model.lm_head.weight.T + model.lm_head.bias


@pytest.mark.parametrize("position", ["after_residual", "before_residual"])
def test_the_translator_equals_the_unrolled_one(position, tmp_path):
    model = make(CnnForConditionalGeneration, attention_position=position, **TRANSLATOR, **OUTPUT)
    source, target = make_ids(5, 5), make_ids(5, 6, seed=1)
    encoder_inputs = {"input_ids": source, "attention_mask": SOURCE_MASK}
    inputs = encoder_inputs | {"decoder_input_ids": target, "decoder_attention_mask": MASK}
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert [one.shape[-1] for one in outputs.encoder_hidden_states] == [6, 10, 10, 12, 8]
    assert [one.shape[-1] for one in outputs.decoder_hidden_states] == [6, 6, 12, 8]
    for row in range(5):
        valid, steps = SOURCE_MASK[row], MASK[row]
        embedded, encoded, _ = model_row(model.model, source[row, valid])
        _, decoded, alignments = model_row(model.decoder, target[row, steps], encoded[-1], embedded)
        torch.testing.assert_close(outputs.logits[row, steps], logits_row(model, decoded[-1]))
        for weights, expected in zip(outputs.cross_attentions, alignments, strict=True):
            torch.testing.assert_close(weights[row, 0, steps][:, valid], expected)
    model.save_pretrained(tmp_path)
    loaded = CnnForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(**inputs).logits, outputs.logits)
    for beams in (1, 3):
        options = {"max_new_tokens": 6, "num_beams": beams, "output_scores": True, "return_dict_in_generate": True}
        cached, uncached = (loaded.generate(**encoder_inputs, **options, use_cache=one) for one in (True, False))
        assert cached.sequences.tolist() == uncached.sequences.tolist()
        torch.testing.assert_close(cached.scores, uncached.scores)


@pytest.mark.parametrize("architecture", ["gated", "convs2s"])
def test_the_language_model_equals_the_unrolled_one_and_learns_alike_with_checkpointing(architecture):
    model = make(CnnForCausalLM, architecture=architecture, **SHAPED, **OUTPUT, max_position_embeddings=4)
    ids = make_ids(5, 6)
    logits = model(ids, attention_mask=MASK).logits
    for row in range(5):
        _, layers, _ = model_row(model.model, ids[row, MASK[row]])
        torch.testing.assert_close(logits[row, MASK[row]], logits_row(model, layers[-1]))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model.train()(ids, attention_mask=MASK, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


def test_projections_where_widths_agree():
    """The same layers with and without a map before them, and with and without one behind them."""
    square = {"embedding_size": 8, "architecture": "residual"}
    plain, projected = make(CnnModel, **square), make(CnnModel, **square, input_projection=True)
    assert not list(plain.stack.project.parameters())
    ids = make_ids(1, 6)
    _, layers, _ = model_row(projected, ids[0])
    torch.testing.assert_close(projected(ids).last_hidden_state[0], layers[-1])
    tied = make(CnnForCausalLM, embedding_size=8, output_size=8, lm_head_bias=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    _, layers, _ = model_row(tied.model, ids[0])
    torch.testing.assert_close(tied(ids).logits[0], logits_row(tied, layers[-1]))


def test_a_residual_connection_starts_at_the_input_by_default():
    config = CnnConfig(hidden_size=8, num_hidden_layers=2, conv_layers=[(5, 3), [8, 1]])
    assert config.conv_layers == [[5, 3, 1], [8, 1, 1]]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"conv_layers": LAYERS[:3]}, "there must be num_hidden_layers=4 of them"),
        ({"conv_layers": [*LAYERS[:3], [9, 3, 1]]}, "the last layer must have hidden_size=8 channels"),
        (
            {"conv_layers": [[10, 3, 2], *LAYERS[1:]]},
            "the residual of layer 0 starts at most 1 layers before",
        ),
        ({"conv_layers": [*LAYERS[:3], [8]]}, "layer 3 must be [channels, kernel size, residual]"),
        ({"conv_layers": [*LAYERS[:3], [8, 0]]}, "layer 3 must be [channels, kernel size, residual]"),
        ({"conv_layers": [*LAYERS[:3], [8, 4]], "bidirectional": True}, "kernel sizes must be odd"),
        ({"architecture": "residual"}, "architecture='residual' is not 'gated' or 'convs2s'"),
        ({"architecture": "parallel", "conv_layers": None, "input_projection": True}, "leave it out"),
        ({"output_size": 5}, "set tie_word_embeddings=False or the same size"),
    ],
)
def test_impossible_layers(fields, reason):
    sizes = {"hidden_size": 8, "embedding_size": 6, "architecture": "gated", **SHAPED}
    with pytest.raises(ValueError, match=f" is impossible, .*{re.escape(reason)}"):
        CnnConfig(**sizes | fields)


def test_a_head_refuses_layers_that_it_cannot_have():
    with pytest.raises(ValueError, match="conv_layers=.* architecture='parallel' is not 'gated' or 'convs2s'"):
        make(CnnForSequenceClassification, **SHAPED)
    with pytest.raises(ValueError, match="decoder_conv_layers=.* there must be decoder_layers=2 of them"):
        make(CnnForConditionalGeneration, **TRANSLATOR | {"decoder_layers": 2})


# --- checkpoints of fairseq ----------------------------------------------------------------------------------------


def read(name):
    """State dict with matrices in place of their directions and lengths, the batch, and fairseq's logits."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(FAIRSEQ / f"{name}.pt", weights_only=True)["model"]
    for key in [key for key in state if key.endswith("weight_v") and state[key].dim() == 2]:
        name_of = key.removesuffix("_v")
        direction, length = state.pop(key), state.pop(f"{name_of}_g")
        state[name_of] = direction * length / direction.norm(dim=1, keepdim=True)
    expected = torch.load(FAIRSEQ / f"{name}.expected.pt", weights_only=True)
    return state, expected["batch"], expected["logits"]


def rename(state, side, ours, layers):
    """Weights of one side of theirs under our names."""
    found = {f"{ours}.embed_tokens.weight": state[f"{side}.embed_tokens.weight"]}
    for kind in ("weight", "bias"):
        found[f"{ours}.stack.project.{kind}"] = state[f"{side}.fc1.{kind}"]
    if f"{side}.embed_positions.weight" in state:
        # The first position is behind the padding's row.
        found[f"{ours}.positions.table.weight"] = state[f"{side}.embed_positions.weight"][2:]
    for index in range(layers):
        own, their = f"{ours}.stack.layers.{index}", f"{side}.convolutions.{index}"
        found[f"{own}.convolutions.0.direction"] = state[f"{their}.weight_v"].permute(2, 1, 0)
        found[f"{own}.convolutions.0.magnitude"] = state[f"{their}.weight_g"].flatten()
        found[f"{own}.convolutions.0.bias"] = state[f"{their}.bias"]
        for part, name in (("query", "in_projection"), ("output", "out_projection")):
            for kind in ("weight", "bias"):
                if (value := state.get(f"{side}.attention.{index}.{name}.{kind}")) is not None:
                    found[f"{own}.attention.{part}.{kind}"] = value
    return found


def outputs_of(state, rows):
    """The two maps to words, those beyond the vocabulary impossible."""
    found = {f"output.project.{kind}": state[f"decoder.fc2.{kind}"] for kind in ("weight", "bias")}
    more = rows - len(state["decoder.fc3.bias"])
    found["lm_head.weight"] = torch.nn.functional.pad(state["decoder.fc3.weight"], (0, 0, 0, more))
    found["lm_head.bias"] = torch.nn.functional.pad(state["decoder.fc3.bias"], (0, more), value=-1e4)
    return found


SIZES = {"architecture": "convs2s", "embedding_size": 12, "hidden_size": 16, "lm_head_bias": True}
TOKENS = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2}


def test_fconv_is_that_of_fairseq():
    """With its sources padded on the left, teacher-forced; then one token at a time."""
    state, batch, logits = read("fconv")
    fields = {"encoder_layers": 2, "decoder_layers": 3, "output_size": 10, "max_position_embeddings": 62, **TOKENS}
    fields |= {"tie_word_embeddings": False, "share_encoder_decoder_embeddings": False, **SIZES}
    config = CnnConfig(vocab_size=34, attention_position="before_residual", **fields)
    weights = rename(state, "encoder", "model", 2) | rename(state, "decoder", "decoder", 3) | outputs_of(state, 34)
    # The smaller vocabulary of the targets.
    tables = weights["decoder.embed_tokens.weight"]
    weights["decoder.embed_tokens.weight"] = torch.nn.functional.pad(tables, (0, 0, 0, 7))
    for kind in ("weight", "bias"):
        weights[f"decoder.source.project.{kind}"] = state[f"encoder.fc2.{kind}"]
    model = CnnForConditionalGeneration(config).eval()
    model.load_state_dict(weights)
    source = {"input_ids": batch["src_tokens"], "attention_mask": batch["src_tokens"] != 1}
    found = model(**source, decoder_input_ids=batch["prev_output_tokens"]).logits
    torch.testing.assert_close(found[..., :27], logits, rtol=0, atol=1e-5)
    cached, uncached = (
        model.generate(**source, max_new_tokens=8, num_beams=3, use_cache=one) for one in (True, False)
    )
    assert cached.tolist() == uncached.tolist() and cached.max() < 27


def test_fconv_lm_is_that_of_fairseq():
    """It has no positions: one of zeros, which all steps share."""
    state, batch, logits = read("fconv_lm")
    fields = {"num_hidden_layers": 2, "kernel_size": 4, "output_size": 12, "max_position_embeddings": 1, **TOKENS}
    config = CnnConfig(vocab_size=27, tie_word_embeddings=False, **fields, **SIZES)
    weights = rename(state, "decoder", "model", 2) | outputs_of(state, 27)
    model = CnnForCausalLM(config).eval()
    model.load_state_dict(weights | {"model.positions.table.weight": torch.zeros(1, 12)})
    torch.testing.assert_close(model(batch["src_tokens"]).logits, logits, rtol=0, atol=1e-5)
