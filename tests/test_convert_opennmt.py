"""Translators of OpenNMT-py and Eole, converted: equal logits; options that hfseq lacks are refused."""

import json
import shutil

import pytest
import torch
from peer_fixtures import PEERS, assert_equals_peer, expected
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hfseq.convert import check_conversion, convert_opennmt
from hfseq.convert.command import main
from hfseq.convert.from_opennmt import NAMES
from hfseq.convert.reading import StandIn, read_checkpoint, read_lines
from hfseq.errors import InputError

OPENNMT = PEERS / "opennmt"
CASES = {
    "brnn_gru_mlp": ("additive", "copy", True),
    "brnn_lstm_bridge": ("general", "relu", True),
    "brnn_lstm_general": ("general", "copy", True),
    "brnn_lstm_no_feeding": ("general", "copy", False),
    "rnn_gru_bridge": ("additive", "relu", True),
    "rnn_lstm_dot": ("dot", "copy", True),
    "eole_brnn_lstm_general": ("general", "copy", True),
    "eole_rnn_gru_mlp": ("additive", "copy", False),
}


def checkpoint(name):
    return OPENNMT / name if name.startswith("eole") else OPENNMT / name / "model_step_4.pt"


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_peer(name):
    found = convert_opennmt(checkpoint(name))
    assert_equals_peer(found, f"opennmt/{name}")
    config = found.model.config
    assert (config.attention_type, config.bridge, config.input_feeding) == CASES[name]
    assert config.attention_activation == ("none" if config.attention_type == "additive" else "tanh")
    # A source has no end token.
    batches, _ = expected(f"opennmt/{name}")
    sources = [found.tokenizer(text).input_ids for text in read_lines(OPENNMT / name / "test.src")]
    assert batches["row0"]["input_ids"].tolist()[0] in sources
    assert found.tokenizer(text_target="one over").input_ids[-1] == config.eos_token_id == 3


def test_the_command_writes_a_translator(tmp_path, capsys):
    output = tmp_path / "out"
    main(["opennmt", str(checkpoint("brnn_lstm_bridge")), "--output_dir", str(output)])
    assert "of OpenNMT-py (LSTM)" in capsys.readouterr().out
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    source = convert_opennmt(checkpoint("brnn_lstm_bridge"))
    text = read_lines(OPENNMT / "brnn_lstm_bridge" / "test.src")[0]
    inputs = tokenizer(text, return_tensors="pt").input_ids
    ids = torch.tensor([[2]])
    with torch.no_grad():
        for _ in range(4):
            ids = torch.cat([ids, source.reference(inputs, ids)[:, -1:].argmax(-1)], dim=1)
    grown = model.generate(inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(grown, ids)
    assert model.config.share_encoder_decoder_embeddings and "length_penalty=0.0" in (output / "README.md").read_text()


def test_tied_outputs_and_codes(tmp_path, monkeypatch):
    found = read_checkpoint(checkpoint("brnn_lstm_general"), NAMES)
    rows = torch.randn(24, 10)
    for side in ("encoder", "decoder"):
        layer = "encoder.rnn.weight_ih_l0" if side == "encoder" else "decoder.rnn.layers.0.weight_ih"
        name = f"{side}.embeddings.make_embedding.emb_luts.0.weight"
        found["model"][name] = rows if side == "decoder" else torch.randn(24, 10)
        found["model"][layer] = torch.randn(len(found["model"][layer]), 10 if side == "encoder" else 20)
    found["model"]["encoder.rnn.weight_ih_l0_reverse"] = torch.randn(20, 10)
    found["generator"] = {"0.weight": rows, "0.bias": torch.randn(24)}
    monkeypatch.setattr("hfseq.convert.from_opennmt.read_checkpoint", lambda path, names: found)
    converted = convert_opennmt("model.pt")
    assert converted.model.config.tie_word_embeddings and check_conversion(converted.model, converted.reference).passed
    words = [word for word in found["vocab"]["tgt"][4:]]
    (tmp_path / "codes").write_text("#version: 0.2\n" + f"{words[0][0]} {words[0][1:2]}\n")
    converted = convert_opennmt("model.pt", bpe_codes=[tmp_path / "codes"])
    assert converted.model.config.decoder_vocab_size == len(converted.tokenizer.target) > 24
    assert check_conversion(converted.model, converted.reference).passed


def test_what_hfseq_lacks_is_refused_by_its_option(tmp_path, monkeypatch):
    def refused(message, change):
        found = read_checkpoint(checkpoint("brnn_lstm_general"), NAMES)
        found["model"], found["vocab"] = dict(found["model"]), dict(found["vocab"])
        change(found)
        with monkeypatch.context() as patch:
            patch.setattr("hfseq.convert.from_opennmt.read_checkpoint", lambda path, names: found)
            with pytest.raises(InputError, match=f"^model.pt.*{message}"):
                convert_opennmt("model.pt")

    def option(**values):
        return lambda found: vars(found["opt"]).update(values)

    refused("--coverage_attn: hfseq's coverage is that of See et al.", option(coverage_attn=True))
    refused("--copy_attn: ", option(copy_attn=True))
    refused("--context_gate: ", option(context_gate="both"))
    refused("--encoder_type cnn; hfseq has rnn or brnn", option(encoder_type="cnn"))
    refused("--rnn_type SRU; hfseq has LSTM or GRU", option(rnn_type="SRU"))
    refused("--global_attention_function sparsemax", option(global_attention_function="sparsemax"))
    refused(
        "2 layers of the encoder, 1 of the decoder",
        lambda found: [
            found["model"].pop(name) for name in [*found["model"]] if name.startswith("decoder.rnn.layers.1.")
        ],
    )
    wide = {"encoder.embeddings.make_embedding.emb_luts.0.weight": torch.ones(24, 7)}
    refused("embeddings of the widths 7 and 6", lambda found: found["model"].update(wide))
    refused(
        "no place for decoder.attn.norm", lambda found: found["model"].update({"decoder.attn.norm": torch.ones(2)})
    )
    refused(
        "no recurrent translator: it has no encoder.rnn",
        lambda found: [found["model"].pop(name) for name in [*found["model"]] if name.startswith("encoder.rnn.")],
    )
    refused("no lists of tokens; of OpenNMT-py 2", lambda found: found.update(vocab={"src": StandIn()}))
    refused("the target vocabulary has no <blank>", lambda found: found["vocab"].update(tgt=["<unk>", "<s>"]))
    refused(", source vocabulary: 1 tokens, but", lambda found: found["vocab"].update(src=["<unk>"]))
    refused("which has its options under 'opt'", lambda found: found.pop("opt"))
    folder = tmp_path / "eole"
    shutil.copytree(OPENNMT / "eole_rnn_gru_mlp", folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["decoder"]["global_attention"] = "none"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="eole: --global_attention none; hfseq has general or dot or mlp"):
        convert_opennmt(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="config.json: no settings of a model of Eole"):
        convert_opennmt(folder)
