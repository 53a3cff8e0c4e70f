"""Convolutional models of fairseq, converted: equal to what fairseq computed; layer lists, and what is refused."""

import pytest
import torch
from test_convert_fairseq import edited, expected
from test_switches import FAIRSEQ
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from hfseq.convert import check_conversion, convert_fairseq
from hfseq.convert.command import main
from hfseq.convert.fairseq_conv import read_layers
from hfseq.errors import InputError


@pytest.mark.parametrize("name", ["fconv", "fconv_lm"])
@torch.no_grad()
def test_logits_are_those_of_fairseq(name):
    found = convert_fairseq(FAIRSEQ / f"{name}.pt")
    inputs, logits, _ = expected(name)
    torch.testing.assert_close(found.model(**inputs).logits, logits, atol=1e-5, rtol=0)
    assert check_conversion(found.model, found.reference).difference < 2e-6
    config = found.model.config
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert (config.decoder_start_token_id, config.dropout, config.lm_head_bias) == (2, 0.1, True)
    assert config.max_position_embeddings == (62 if name == "fconv" else 1)


def test_the_command_writes_a_translator(tmp_path, capsys):
    output = tmp_path / "out"
    path = edited("fconv", tmp_path / "model.pt", {"source_lang": "src", "target_lang": "tgt"})
    main(["fairseq", str(path), "--dict_dir", str(FAIRSEQ), "--output_dir", str(output)])
    assert "CnnForConditionalGeneration" in capsys.readouterr().out
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert (model.generation_config.num_beams, model.generation_config.length_penalty) == (5, 1.0)
    reference = convert_fairseq(path).reference
    text = tokenizer.decode([7, 8, 9, 10, 5], use_source_tokenizer=True)
    ids = torch.tensor([[2]])
    with torch.no_grad():
        for _ in range(5):
            logits = reference(torch.tensor([tokenizer(text).input_ids]), ids)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    translator = pipeline("translation", model=model, tokenizer=tokenizer)
    written = translator(text, num_beams=1, max_new_tokens=5, eos_token_id=None)[0]["translation_text"]
    assert written == tokenizer.decode(ids[0], skip_special_tokens=True)


def convolution(state, name, shape, old=False):
    """A convolution with weight normalisation, over taps if it is of an old decoder."""
    kernel, entering, leaving = shape
    state[f"{name}.weight_v"] = torch.randn(kernel, entering, 2 * leaving)
    state[f"{name}.weight_g"] = torch.rand(kernel, 1, 1) + 1 if old else torch.rand(1, 1, 2 * leaving) + 1
    state[f"{name}.bias"] = torch.randn(2 * leaving)


def matrix(state, name, leaving, entering):
    """A linear layer with weight normalisation."""
    state[f"{name}.weight_v"], state[f"{name}.weight_g"] = torch.randn(leaving, entering), torch.rand(leaving, 1) + 0.5
    state[f"{name}.bias"] = torch.randn(leaving)


def test_layers_of_other_shapes_positions_and_outputs(tmp_path):
    """What no fixture has, by the self-check, whose reference equals fairseq on the fixtures."""
    torch.manual_seed(0)
    path = tmp_path / "model.pt"

    def change(state):
        # [(16, 3), (20, 1), (20, 5, 2)] beside [(16, 3), (16, 2, 0), (24, 3)] with an older weight normalisation.
        for side, shapes in {
            "encoder": [(3, 16, 16), (1, 16, 20), (5, 20, 20)],
            "decoder": [(3, 16, 16), (2, 16, 16), (3, 16, 24)],
        }.items():
            for index, shape in enumerate(shapes):
                convolution(state, f"{side}.convolutions.{index}", shape, old=side == "decoder")
        for index in (1, 2):
            matrix(state, f"encoder.projections.{index}", 20, 16)
        matrix(state, "decoder.projections.2", 24, 16)
        matrix(state, "encoder.fc2", 12, 20)
        matrix(state, "decoder.attention.2.in_projection", 12, 24)
        matrix(state, "decoder.attention.2.out_projection", 24, 12)
        matrix(state, "decoder.fc2", 12, 24)
        state["decoder.version"] = torch.tensor([1.0])
        # Output rows that are the target embeddings, and fewer positions on one side.
        del state["decoder.fc3.weight_v"], state["decoder.fc3.weight_g"]
        state["decoder.fc3.weight"] = state["decoder.embed_tokens.weight"].clone()
        state["decoder.embed_positions.weight"] = state["decoder.embed_positions.weight"][:30]

    options = {
        "encoder_layers": "[(16, 3), (20, 1), (20, 5, 2)]",
        "decoder_layers": "[(16, 3)] + [(16, 2, 0)] + [(24, 3)]",
    }
    found = convert_fairseq(edited("fconv", path, options, change))
    config = found.model.config
    assert config.conv_layers == [[16, 3, 1], [20, 1, 1], [20, 5, 2]] and config.tie_word_embeddings
    assert config.decoder_conv_layers == [[16, 3, 1], [16, 2, 0], [24, 3, 1]] and config.decoder_hidden_size == 24
    assert check_conversion(found.model, found.reference).passed
    # Options that an old checkpoint lacks: each layer adds its input.
    found = convert_fairseq(edited("fconv", path, {"encoder_layers": None, "decoder_layers": None}))
    assert found.model.config.conv_layers == [[16, 3, 1]] * 2

    def adaptive(state):
        for name in [name for name in state if ".fc2." in name or ".fc3." in name]:
            del state[name]
        prefix = "decoder.adaptive_softmax."
        state |= {f"{prefix}head.weight": torch.randn(12, 16), f"{prefix}tail.0.0.weight": torch.randn(4, 16)}
        state |= {f"{prefix}tail.0.2.weight": torch.randn(8, 4), f"{prefix}tail.1.0.weight": torch.randn(1, 16)}
        state[f"{prefix}tail.1.2.weight"] = torch.randn(9, 1)

    found = convert_fairseq(edited("fconv_lm", path, weights=adaptive), dict_dir=FAIRSEQ / "dict.tgt.txt")
    assert found.model.config.adaptive_softmax_cutoffs == [10, 18]
    assert check_conversion(found.model, found.reference).passed
    assert found.tokenizer("t1").input_ids[0] == 2 and len(found.tokenizer) == 27
    (tmp_path / "codes").write_text("t 1\n1 2</w>\n")
    with pytest.raises(InputError, match="--bpe_codes: an adaptive softmax has no room"):
        convert_fairseq(path, dict_dir=FAIRSEQ / "dict.tgt.txt", bpe_codes=[tmp_path / "codes"])
    found = convert_fairseq(FAIRSEQ / "fconv_lm.pt", dict_dir=FAIRSEQ / "dict.tgt.txt", bpe_codes=[tmp_path / "codes"])
    assert found.model.config.vocab_size == len(found.tokenizer) > 27
    assert check_conversion(found.model, found.reference).passed


def test_lists_of_layers_are_read_and_nothing_is_evaluated():
    assert read_layers("[(512, 3)] * 2 + [(1024, 3, 2)]") == [[512, 3, 1], [512, 3, 1], [1024, 3, 2]]
    assert read_layers("[]") == []
    for text in (
        "__import__('os').system('true')",
        "[(512, 3)] * 10 ** 9",
        "[(512, 3)] * 100000000",
        "[(512,)]",
        "[(512, 3.5)]",
        "[(512, 3), 4]",
        "(512, 3)",
        "[(n, 3) for n in (1, 2)]",
        "3",
    ):
        with pytest.raises(ValueError, match="layers|layer is not"):
            read_layers(text)


def test_what_hfseq_lacks_is_refused_by_its_option(tmp_path):
    path = tmp_path / "model.pt"

    def refused(message, name, weights=None, **options):
        with pytest.raises(InputError, match=message) as error:
            convert_fairseq(edited(name, path, options, weights))
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    refused("--encoder-layers 'x' is not a list of layers", "fconv", encoder_layers="x")
    refused("--encoder-layers '.*' does not describe its weights", "fconv", encoder_layers="[(16, 3)]")
    even = "[(16, 2)] + [(16, 3)]"
    refused(
        "--encoder-layers: hfseq's encoders have kernels of odd widths",
        "fconv",
        lambda state: convolution(state, "encoder.convolutions.0", (2, 16, 16)),
        encoder_layers=even,
    )
    refused(
        "--decoder-attention: each of the layers of hfseq's decoder attends",
        "fconv",
        lambda state: state.pop("decoder.attention.1.in_projection.bias"),
    )
    refused(
        "--decoder-attention: hfseq's language models do not attend",
        "fconv_lm",
        lambda state: matrix(state, "decoder.attention.0.in_projection", 12, 16),
    )
    refused(
        r"no place for encoder.selfattention",
        "fconv",
        lambda s: s.update({"encoder.selfattention": s["decoder.version"]}),
    )
    refused("it lacks encoder.embed_positions.weight$", "fconv", lambda s: s.pop("encoder.embed_positions.weight"))
    refused("it lacks decoder.fc2.weight_v$", "fconv_lm", lambda state: state.pop("decoder.fc2.weight_v"))
    refused("it lacks decoder.fc3.bias", "fconv_lm", lambda state: state.pop("decoder.fc3.bias"))
