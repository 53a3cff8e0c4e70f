"""Translators of JoeyNMT, converted: equal logits and greedy translations; settings that hfseq lacks are refused."""

import shutil

import pytest
import torch
import yaml
from peer_fixtures import PEERS, assert_equals_peer, expected
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hfseq.convert import check_conversion, convert_joeynmt
from hfseq.convert.command import main
from hfseq.convert.reading import read_checkpoint, read_lines
from hfseq.errors import InputError

JOEYNMT = PEERS / "joeynmt"
BRIDGES = {
    "gru_bahdanau_bridge": "project",
    "gru_bahdanau_last": "last",
    "gru_luong_zero": "zeros",
    "lstm_luong_bridge": "project",
    "lstm_luong_narrow": "last",
}


@pytest.mark.parametrize("name", BRIDGES)
def test_logits_and_translations_are_those_of_joeynmt(name):
    found = convert_joeynmt(JOEYNMT / name)
    assert_equals_peer(found, f"joeynmt/{name}")
    assert found.model.config.bridge in (BRIDGES[name], "project") and found.model.config.attention_bias
    batch = expected(f"joeynmt/{name}")[0]["right"]
    sources, wanted = read_lines(JOEYNMT / name / "test.src"), read_lines(JOEYNMT / name / "test.hyp")
    if name == "gru_bahdanau_last":  # of SentencePiece, whose model the converter does not read
        assert "texts must be split into pieces already" in found.decoding[0]
        return
    inputs = found.tokenizer(sources, padding=True, return_tensors="pt")
    rows = [[token for token in row if token != 1] for row in inputs.input_ids.tolist()]
    assert all([token for token in row if token != 1] in rows for row in batch["input_ids"].tolist())
    ids = found.model.generate(**inputs, max_new_tokens=12, num_beams=1)
    words = [text.replace("<unk>", "").split() for text in wanted]
    assert [text.split() for text in found.tokenizer.batch_decode(ids, skip_special_tokens=True)] == words


def folder(path, name, change=None, state=None):
    """Copy of a model with changed settings or weights."""
    shutil.copytree(JOEYNMT / name, path, dirs_exist_ok=True)
    config = yaml.safe_load((path / "config.yaml").read_text())
    if change is not None:
        change(config)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    if state is not None:
        found = read_checkpoint(path / "best.ckpt")
        state(found["model_state"])
        torch.save(found, path / "best.ckpt")
    return path


def test_the_command_writes_a_translator(tmp_path, capsys):
    output = tmp_path / "out"
    main(["joeynmt", str(JOEYNMT / "lstm_luong_bridge"), "--output_dir", str(output)])
    assert "of JoeyNMT 2.3.0 (LSTM)" in capsys.readouterr().out
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert model.generation_config.suppress_tokens == [1, 2]
    sources, wanted = (read_lines(JOEYNMT / "lstm_luong_bridge" / f"test.{end}") for end in ("src", "hyp"))
    ids = model.generate(**tokenizer(sources[:3], padding=True, return_tensors="pt"), max_new_tokens=12)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [
        " ".join(text.replace("<unk>", "").split()) for text in wanted[:3]
    ]
    card = (output / "README.md").read_text()
    assert "A target begins with <s>. JoeyNMT searched with beam_size 1 and beam_alpha 1.0" in card
    assert "pipeline_tag: translation" in card and 'pipeline("translation"' in card


def test_shared_and_tied_embeddings(tmp_path):
    """As JoeyNMT shares them; the reference is the one that equals JoeyNMT on the fixtures."""

    def share(config):
        config["model"] |= {"tied_embeddings": True}

    def change(state):
        state["src_embed.lut.weight"] = state["trg_embed.lut.weight"].clone()

    path = folder(tmp_path / "shared", "gru_luong_zero", share, change)
    shutil.copy(path / "trg_vocab.txt", path / "src_vocab.txt")
    found = convert_joeynmt(path)
    config = found.model.config
    assert config.share_encoder_decoder_embeddings and config.decoder_vocab_size is None
    assert check_conversion(found.model, found.reference).passed and len(found.tokenizer) == config.vocab_size


def test_what_hfseq_lacks_is_refused_by_its_setting(tmp_path):
    def refused(message, change=None, state=None):
        path = tmp_path / "model"
        shutil.rmtree(path, ignore_errors=True)
        with pytest.raises(InputError, match=message):
            convert_joeynmt(folder(path, "gru_luong_zero", change, state))

    refused(
        "config.yaml: model.encoder.type: transformer; hfseq has recurrent",
        lambda config: config["model"]["encoder"].update(type="transformer"),
    )
    refused(
        "model.decoder.rnn_type: lstm; hfseq has gru",
        lambda config: config["model"]["decoder"].update(rnn_type="lstm"),
    )
    refused("model.decoder.attention: dot", lambda config: config["model"]["decoder"].update(attention="dot"))
    refused("model.encoder.activation: relu", lambda config: config["model"]["encoder"].update(activation="relu"))
    refused("no place for decoder.norm", state=lambda state: state.update({"decoder.norm": torch.ones(2)}))
    refused("it lacks decoder.att_vector_layer.bias", state=lambda state: state.pop("decoder.att_vector_layer.bias"))
    wide = {"src_embed.lut.weight": torch.ones(24, 9)}
    refused("embeddings of the widths 9 and 6", state=lambda state: state.update(wide))
    with pytest.raises(InputError, match="no best.ckpt and no latest.ckpt"):
        convert_joeynmt(tmp_path)
    path = folder(tmp_path / "words", "gru_luong_zero")
    (path / "src_vocab.txt").write_text("<unk>\n<pad>\n")
    with pytest.raises(InputError, match="src_vocab.txt: 2 tokens, but the embeddings of the model have 24 rows"):
        convert_joeynmt(path)
    path = folder(tmp_path / "words", "gru_luong_zero")
    (path / "trg_vocab.txt").write_text("<pad>\n")
    with pytest.raises(InputError, match="trg_vocab.txt: (no <unk>|1 tokens)"):
        convert_joeynmt(path)
    torch.save({"a": 1}, path / "best.ckpt")
    with pytest.raises(InputError, match="has its weights under 'model_state'"):
        convert_joeynmt(path)
