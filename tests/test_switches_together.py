"""Settings of translators together: bridges and widths of layers, vocabularies, biases and projections."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from hfseq.models import GruConfig, LstmConfig
from hfseq.models.modeling_gru import GruForConditionalGeneration
from hfseq.models.modeling_lstm import LstmForConditionalGeneration

BRIDGES = ("project", "copy", "linear", "relu", "last", "zeros")
CLASSES = {LstmConfig: LstmForConditionalGeneration, GruConfig: GruForConditionalGeneration}


def make(config_class, **fields):
    """A model with all weights drawn anew, biases too."""
    torch.manual_seed(0)
    config = config_class(**{"vocab_size": 20, "hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2} | fields)
    model = CLASSES[config_class](config).eval()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.4, 0.4)
    model.tie_weights()
    return model


@torch.no_grad()
def assert_exact(model):
    """Padding changes nothing, nor does a cache; every target can be written."""
    size = model.config.target_vocab_size()
    ids, targets = torch.randint(3, 20, (2, 5)), torch.randint(3, size, (2, 4))
    mask = torch.tensor([[1] * 5, [0, 1, 1, 1, 0]])
    logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets).logits
    alone = model(input_ids=ids[1:, 1:4], decoder_input_ids=targets[1:]).logits
    assert logits.shape[-1] == size
    assert_close(logits[1:], alone, atol=1e-5, rtol=0)
    encoded, cache, parts = model.get_encoder()(input_ids=ids, attention_mask=mask), None, []
    for step in range(4):
        inputs = {"decoder_input_ids": targets[:, step : step + 1], "cache": cache, "use_cache": True}
        outputs = model(encoder_outputs=encoded, attention_mask=mask, **inputs)
        parts.append(outputs.logits)
        cache = outputs.cache
    assert_close(torch.cat(parts, dim=1), logits, atol=1e-5, rtol=0)


def test_widths_and_bridges():
    for bridge, width in itertools.product(BRIDGES, (None, 4, 16)):
        fields = {"bridge": bridge, "decoder_hidden_size": width}
        copies = bridge == "copy" and width is not None or bridge == "last" and width == 16
        if copies:
            with pytest.raises(ValueError, match="copies states, but those of the encoder are 8 wide"):
                make(LstmConfig, **fields)
        else:
            assert_exact(make(LstmConfig, **fields))
        tapered = fields | {"layer_sizes": [12, 8]}
        if bridge in ("project", "zeros") and width is None:
            assert_exact(make(LstmConfig, **tapered))
        else:
            with pytest.raises(ValueError, match="layer_sizes.* is impossible, .*(of both sides|of one width)"):
                make(LstmConfig, **tapered)


@pytest.mark.parametrize(
    ("tied", "size", "bias", "width"),
    [
        (True, 15, True, None),
        (True, 15, False, 6),
        (True, 20, True, 6),
        (False, 15, True, 6),
        (False, 20, True, None),
        (False, None, True, None),
    ],
)
def test_vocabularies_biases_and_projections(tied, size, bias, width):
    fields = {"tie_word_embeddings": tied, "lm_head_bias": bias, "output_size": width, "decoder_vocab_size": size}
    model = make(GruConfig, share_encoder_decoder_embeddings=False, **fields)
    assert_exact(model)
    assert (model.lm_head.weight is model.decoder.embed_tokens.weight) == tied
    assert model.decoder.embed_tokens.weight is not model.model.embed_tokens.weight
    assert (model.lm_head.bias is not None) == bias


def test_two_vocabularies_share_no_embeddings():
    with pytest.raises(ValueError, match="decoder_vocab_size=15 is impossible, source and target would share"):
        make(GruConfig, decoder_vocab_size=15)
