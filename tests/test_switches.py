"""Settings of translators that other toolkits have: bridges, attentional vectors, widths, two vocabularies.

The contract (`test_models.py`) has the defaults. Here are oracles, padding, beams and what carries each setting.
"""

import argparse
from pathlib import Path

import pytest
import torch
from oracles import decode_row, logits_row, run_stack
from test_models import MASK, SEQ2SEQ, TARGET_MASK, TINY, check_padding, make, make_inputs, row_alone
from token_classes import ALL
from transformers import BertConfig, BertModel, EncoderDecoderModel

from hfseq import (
    GruConfig,
    GruForCausalLM,
    GruForConditionalGeneration,
    LstmConfig,
    LstmForConditionalGeneration,
    LstmModel,
)
from hfseq.errors import InputError
from hfseq.inference.alignment import align_texts
from hfseq.inference.generate import decode_texts

FAIRSEQ = Path(__file__).parent / "fixtures" / "fairseq"
HEADS = {config.family: heads for config, heads in ALL.items()}
BLOCKS = {"residual_blocks": True, "conv_kernel": 3}
READING = ["copy", "linear", "relu", "last"]
# Each with another cell: two states, one, states beside earlier inputs, wide ones, and those in at least float32.
BRIDGES = [
    *[("Lstm", {"bridge": kind, "num_hidden_layers": 2}) for kind in READING],
    ("Lstm", {"bridge": "relu", "encoder_layers": 1, "decoder_layers": 3, "input_feeding": True}),
    ("Lstm", {"bridge": "copy", "bidirectional": False}),
    ("Gru", {"bridge": "last", "encoder_layers": 1, "decoder_layers": 3}),
    ("Gru", {"bridge": "linear", "attention_type": "additive", "coverage": True}),
    ("Rnn", {"bridge": "copy", "input_filters": 5}),
    ("Qrnn", {"bridge": "linear"}),
    ("Qrnn", {"bridge": "copy"} | BLOCKS),
    ("MinGru", {"bridge": "relu"} | BLOCKS),
    ("Ssru", {"bridge": "last", "encoder_layers": 3}),
]
ATTENTION = [
    ("Lstm", {"attention_bias": True, "bridge": "zeros"}),
    ("Gru", {"attention_bias": True, "attention_activation": "none", "attention_type": "additive", "coverage": True}),
    ("Rnn", {"attention_activation": "none", "input_feeding": True}),
    ("Lstm", {"attention_type": "none", "bridge": "copy", "input_feeding": True}),
    ("Gru", {"attention_type": "none"}),
    ("Ssru", {"attention_type": "none", "bridge": "last", "decoder_layers": 1}),
]
TWO = {"decoder_vocab_size": 23, "share_encoder_decoder_embeddings": False}
SIZES = [
    ("Lstm", {"decoder_hidden_size": 5, "bridge": "linear", "input_feeding": True} | TWO),
    ("Gru", {"decoder_hidden_size": 4, "bridge": "last", "attention_type": "additive", "decoder_layers": 3}),
    ("Rnn", {"decoder_hidden_size": 12, "bridge": "relu", "tie_word_embeddings": False, "lm_head_bias": True} | TWO),
    ("Lstm", {"decoder_hidden_size": 6, "attention_type": "none"}),  # as wide as the embeddings
    ("MinGru", {"decoder_hidden_size": 5, "bridge": "linear"} | BLOCKS | TWO),
]
CASES = [*BRIDGES, *ATTENTION, *SIZES]
NAMES = ["-".join([family, *map(str, fields.values())]) for family, fields in CASES]


def unrolled(model, source, target):
    """Logits [T, V] of one row without padding."""
    cell, encoder = model.config.family.lower(), model.model
    embedded = encoder.embed_tokens.weight[source]
    if encoder.convolution is not None:
        embedded = encoder.enter(embedded[None], None, {})[0]
    outputs, states = run_stack(cell, encoder.stack, embedded)
    hidden, *_ = decode_row(cell, model.decoder, target, outputs[-1], states)
    return logits_row(model, hidden)


def check_generation(model):
    """Cached equals uncached, with beams too; a padded batch generates what each row does alone."""
    inputs = {name: value for name, value in make_inputs(model).items() if not name.startswith("decoder_")}
    for beams in (1, 3):
        options = {"num_beams": beams, "max_new_tokens": 4, "output_scores": True, "return_dict_in_generate": True}
        found, other = (model.generate(**inputs, **options, use_cache=use) for use in (True, False))
        assert found.sequences.tolist() == other.sequences.tolist()
        torch.testing.assert_close(found.scores, other.scores)
        alone = model.generate(**row_alone(inputs, 2), **options).sequences[0].tolist()
        assert found.sequences[2, : len(alone)].tolist() == alone
    steps = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    torch.testing.assert_close(steps.sum(dim=1) / (steps < 0).sum(dim=1), found.sequences_scores)


@pytest.mark.parametrize(("family", "fields"), CASES, ids=NAMES)
def test_a_translator_equals_the_unrolled_one(family, fields):
    model = make(HEADS[family][SEQ2SEQ], **fields)
    if fields.get("attention_type") != "none":
        assert (model.decoder.attention.combine.bias is None) is not fields.get("attention_bias", False)
    inputs = make_inputs(model)
    logits = model(**inputs).logits
    for row in range(len(MASK)):
        source, target = (ids[0] for ids in row_alone(inputs, row).values())
        torch.testing.assert_close(logits[row, TARGET_MASK[row].bool()], unrolled(model, source, target))
    check_generation(model)
    # In training, too, with every layer run again in the backward pass.
    model.train()
    expected = torch.autograd.grad(model(**inputs).logits.pow(2).sum(), list(model.parameters()))
    model.activation_checkpointing_enable()
    found = torch.autograd.grad(model(**inputs).logits.pow(2).sum(), list(model.parameters()))
    torch.testing.assert_close(found, expected)
    assert all(gradient.any() for gradient in found)


def test_a_convolutional_translator_of_other_sizes():
    model = make(HEADS["Cnn"][SEQ2SEQ], decoder_hidden_size=12, **TWO)
    assert model.lm_head.weight.shape == (23, 6) and model.output.project.in_features == 12
    check_padding(model, make_inputs(model))
    check_generation(model)


def test_encoder_outputs_carry_what_a_bridge_reads():
    """By name and as a tuple, with and without the ids of a pointer-generator; without it they are refused."""
    for fields in ({}, {"pointer_generator": True, "unk_token_id": 3}):
        model = make(LstmForConditionalGeneration, bridge="copy", **fields)
        source = {"input_ids": torch.randint(4, 17, MASK.shape), "attention_mask": MASK}
        given = {"attention_mask": MASK, "decoder_input_ids": torch.randint(4, 17, (5, 3))}
        expected = model(**source | given).logits
        named = model.get_encoder()(**source)
        assert named.final_states.shape == (5, 2, 2, 8)
        for outputs in (named, model.get_encoder()(**source, return_dict=False, output_hidden_states=True)):
            torch.testing.assert_close(model(encoder_outputs=outputs, **given).logits, expected)
        with pytest.raises(ValueError, match="RecurrentModelOutput: its final_states, which bridge='copy' reads, are"):
            model(encoder_outputs=(named.last_hidden_state,), **given)


def test_what_a_bridge_cannot_do():
    """The messages name the fields that are to be set."""

    def translator(**fields):
        return LstmForConditionalGeneration(LstmConfig(**TINY | fields))

    with pytest.raises(ValueError, match="bridge='copy' needs as many .* encoder_layers=2 and the decoder has 3"):
        translator(bridge="copy", decoder_layers=3)
    with pytest.raises(ValueError, match="bridge=last is impossible, only a sequence-to-sequence model's encoder"):
        GruForCausalLM(GruConfig(**TINY | {"add_cross_attention": True, "bridge": "last"}))
    with pytest.raises(ValueError, match="bridge=zeros is impossible, with attention_type='none' the decoder would"):
        translator(attention_type="none", bridge="zeros")
    with pytest.raises(ValueError, match="copies states, but those of the encoder are 8 wide and .* decoder 5; take"):
        translator(bridge="copy", decoder_hidden_size=5)
    with pytest.raises(ValueError, match="bridge='last' copies states, but those of the encoder are 8 wide and"):
        translator(bridge="last", decoder_hidden_size=5)
    with pytest.raises(ValueError, match="layer_sizes=.* impossible, bridge='copy' reads states of one width; take"):
        translator(bridge="copy", layer_sizes=[6, 8])
    with pytest.raises(ValueError, match="layer_sizes=.* impossible, they are those of both sides; leave decoder_hid"):
        translator(decoder_hidden_size=5, layer_sizes=[6, 8])
    with pytest.raises(ValueError, match="'dot' needs .* those of the encoder are 8 wide and those of the decoder 5"):
        translator(attention_type="dot", decoder_hidden_size=5)
    with pytest.raises(ValueError, match="decoder_vocab_size=23 is impossible, source and target would share the"):
        translator(decoder_vocab_size=23)
    with pytest.raises(ValueError, match="decoder_vocab_size=23 is impossible, with input_size there is one vocab"):
        translator(input_size=3, **TWO)
    with pytest.raises(ValueError, match="pointer_generator=True is impossible, a word that it copies must be one of"):
        translator(pointer_generator=True, **TWO)
    with pytest.raises(ValueError, match="decoder_start_token_id=23 is .* decoder_vocab_size is 23"):
        translator(decoder_start_token_id=23, **TWO)
    with pytest.raises(ValueError, match="pointer_generator=True is impossible, it copies by attention"):
        translator(attention_type="none", pointer_generator=True)
    with pytest.raises(ValueError, match="coverage=True is impossible, it needs .*, not 'none'"):
        translator(attention_type="none", coverage=True)
    decoder = LstmModel(LstmConfig(**TINY | {"add_cross_attention": True, "bridge": "linear"}))
    given = {"input_ids": torch.ones(2, 3).long(), "encoder_hidden_states": torch.randn(2, 4, 8)}
    with pytest.raises(ValueError, match="bridge='linear' reads the final states of the encoder's layers: pass"):
        decoder(**given)
    assert decoder(**given, encoder_final_states=torch.randn(2, 2, 2, 8)).last_hidden_state.isfinite().all()
    with pytest.raises(ValueError, match=r"encoder_final_states has shape \(2, 2, 1, 8\), expected \(2, 2, 2, 8\)"):
        decoder(**given, encoder_final_states=torch.randn(2, 2, 1, 8))
    with pytest.raises(ValueError, match="encoder_final_states were passed to a model without add_cross_attention"):
        LstmModel(LstmConfig(**TINY))(given["input_ids"], encoder_final_states=torch.randn(2, 2, 2, 8))


def test_no_attention_aligns_no_words():
    model = GruForConditionalGeneration(GruConfig(**TINY | {"attention_type": "none"}))
    assert model(input_ids=MASK, decoder_input_ids=MASK, output_attentions=True).cross_attentions == ()
    with pytest.raises(InputError, match="attention_type='none': there are no weights to align words by"):
        align_texts(model, None, "a", "b")
    with pytest.raises(InputError, match="--replace_unknown: the model has attention_type='none', which aligns no"):
        decode_texts(model, None, ["a"], batch_size=1, max_source_length=9, replace_unknown=True)


def test_a_decoder_of_another_encoder_starts_from_zeros():
    bert = BertConfig(vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    fields = TINY | {"add_cross_attention": True, "bridge": "zeros"}
    torch.manual_seed(0)
    model = EncoderDecoderModel(encoder=BertModel(bert), decoder=GruForCausalLM(GruConfig(**fields))).double().eval()
    ids = torch.randint(4, 17, (1, 5))
    memory = model.encoder(ids).last_hidden_state[0]
    hidden, *_ = decode_row("gru", model.decoder.model, torch.tensor([1, 5, 6]), memory)
    found = model(input_ids=ids, decoder_input_ids=torch.tensor([[1, 5, 6]])).logits[0]
    torch.testing.assert_close(found, logits_row(model.decoder, hidden))


def from_fairseq(path):
    """A model with the weights of a checkpoint of fairseq's `lstm`."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        saved = torch.load(path, weights_only=True)
    args, weights = saved["args"], saved["model"]
    config = LstmConfig(
        vocab_size=len(weights["encoder.embed_tokens.weight"]),
        decoder_vocab_size=len(weights["decoder.embed_tokens.weight"]),
        hidden_size=args.encoder_hidden_size * (2 if args.encoder_bidirectional else 1),
        decoder_hidden_size=args.decoder_hidden_size,
        embedding_size=args.encoder_embed_dim,
        encoder_layers=args.encoder_layers,
        decoder_layers=args.decoder_layers,
        bidirectional=args.encoder_bidirectional,
        bridge="copy",
        input_feeding=True,
        lm_head_bias=True,
        tie_word_embeddings=False,
        share_encoder_decoder_embeddings=False,
        pad_token_id=1,
        bos_token_id=0,
        decoder_start_token_id=2,
    )
    model = LstmForConditionalGeneration(config).eval()
    state = {}
    for name, weight in weights.items():
        side, _, rest = name.partition(".")
        part, _, rest = rest.partition(".")
        side = {"encoder": "model", "decoder": "decoder"}[side]
        if part == "lstm":
            back = rest.endswith("_reverse")
            kind, layer = rest.removesuffix("_reverse").rsplit("_l", 1)
            stack = "backward_layers" if back else "forward_layers"
            state[f"{side}.stack.{stack}.{layer}.{kind}_l0"] = weight
        elif part == "layers":
            layer, kind = rest.split(".")
            state[f"{side}.stack.forward_layers.{layer}.{kind}_l0"] = weight
        elif part == "attention":
            own = {"input_proj.weight": "query.weight", "output_proj.weight": "combine.weight"}[rest]
            state[f"{side}.attention.{own}"] = weight
        else:
            state[f"lm_head.{rest}" if part == "fc_out" else f"{side}.{part}.{rest}"] = weight
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", ["lstm_uni", "lstm_bi"])
def test_checkpoints_of_fairseq_compute_what_it_did(name):
    """Two vocabularies, copied states and an output bias, with sources padded on the left and on the right."""
    model = from_fairseq(FAIRSEQ / f"{name}.pt")
    expected = torch.load(FAIRSEQ / f"{name}.expected.pt", weights_only=True)
    ids = expected["batch"]["src_tokens"]
    moved = torch.stack([torch.cat([row[row != 1], row[row == 1]]) for row in ids])
    for source in (ids, moved):
        given = {"input_ids": source, "attention_mask": (source != 1).long()}
        logits = model(**given, decoder_input_ids=expected["batch"]["prev_output_tokens"]).logits
        torch.testing.assert_close(logits, expected["logits"], rtol=1e-5, atol=1e-6)
