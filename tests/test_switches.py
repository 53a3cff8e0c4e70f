"""Settings of translators that other toolkits have: bridges, the attentional vector, no attention.

The contract (`test_models.py`) has the defaults. Here are oracles, padding, beams and what carries each setting.
"""

import pytest
import torch
from oracles import decode_row, logits_row, run_stack
from test_models import MASK, SEQ2SEQ, TARGET_MASK, TINY, make, make_inputs, row_alone
from token_classes import ALL
from transformers import BertConfig, BertModel, EncoderDecoderModel

from hfseq import GruConfig, GruForCausalLM, LstmConfig, LstmForConditionalGeneration, LstmModel

HEADS = {config.family: heads for config, heads in ALL.items()}
BLOCKS = {"residual_blocks": True, "conv_kernel": 3}
READING = ["copy", "linear", "relu", "last"]
# Each with another cell: two states, one, states beside earlier inputs, wide ones, and those in at least float32.
BRIDGES = [
    *[("Lstm", {"bridge": kind, "num_hidden_layers": 2}) for kind in READING],
    ("Lstm", {"bridge": "zeros"}),
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
    ("Lstm", {"attention_bias": True}),
    ("Gru", {"attention_bias": True, "attention_activation": "none", "attention_type": "additive", "coverage": True}),
    ("Rnn", {"attention_activation": "none", "input_feeding": True}),
    ("Lstm", {"attention_type": "none", "bridge": "copy", "input_feeding": True}),
    ("Gru", {"attention_type": "none"}),
    ("Ssru", {"attention_type": "none", "bridge": "last", "decoder_layers": 1}),
]
CASES = [*BRIDGES, *ATTENTION]
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
        options = {"num_beams": beams, "max_new_tokens": 5, "output_scores": True, "return_dict_in_generate": True}
        found, other = (model.generate(**inputs, **options, use_cache=use) for use in (True, False))
        assert found.sequences.tolist() == other.sequences.tolist()
        torch.testing.assert_close(found.scores, other.scores)
        for row in range(0, len(MASK), 2):
            alone = model.generate(**row_alone(inputs, row), **options).sequences[0].tolist()
            assert found.sequences[row, : len(alone)].tolist() == alone
    return found.sequences


@pytest.mark.parametrize(("family", "fields"), CASES, ids=NAMES)
def test_a_translator_equals_the_unrolled_one(family, fields):
    model = make(HEADS[family][SEQ2SEQ], **fields)
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
    with pytest.raises(ValueError, match="pointer_generator=True is impossible, it copies by attention"):
        translator(attention_type="none", pointer_generator=True)
    with pytest.raises(
        ValueError, match="coverage=True is impossible, it needs .*, not 'none'"
    ):
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
