"""Translators of OpenNMT-py 3 and Eole, converted: equal logits, vocabularies, and what is refused."""

import argparse
import json
import shutil

import pytest
import torch
from peer_fixtures import PEERS, assert_equals_peer, expected
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from hfseq.convert import check_conversion, convert_opennmt, from_opennmt
from hfseq.convert.command import main
from hfseq.convert.reading import read_lines
from hfseq.errors import InputError

OPENNMT = PEERS / "opennmt"
CASES = {
    "brnn_gru_mlp": ("copy", "additive"),
    "brnn_lstm_bridge": ("relu", "general"),
    "brnn_lstm_general": ("copy", "general"),
    "brnn_lstm_no_feeding": ("copy", "general"),
    "eole_brnn_lstm_general": ("copy", "general"),
    "eole_rnn_gru_mlp": ("copy", "additive"),
    "rnn_gru_bridge": ("relu", "additive"),
    "rnn_lstm_dot": ("copy", "dot"),
}
GENERAL = OPENNMT / "brnn_lstm_general" / "model_step_4.pt"
EOLE = OPENNMT / "eole_brnn_lstm_general"


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_peer(name):
    case = OPENNMT / name
    found = convert_opennmt(case if name.startswith("eole") else case / "model_step_4.pt")
    assert_equals_peer(found, f"opennmt/{name}")
    config = found.model.config
    assert (config.bridge, config.attention_type) == CASES[name]
    assert config.input_feeding != (name in ("brnn_lstm_no_feeding", "eole_rnn_gru_mlp"))
    assert config.share_encoder_decoder_embeddings == (name == "brnn_lstm_bridge")
    assert config.lm_head_bias and config.dropout == 0.1 and config.decoder_start_token_id == 2
    sources, batches = read_lines(case / "test.src"), expected(f"opennmt/{name}")[0]
    rows = [batches[f"row{number}"]["input_ids"][0].tolist() for number in range(len(sources))]
    # A source has no end token, a target has one.
    assert found.tokenizer(sources).input_ids == rows
    word = found.tokenizer.target.convert_ids_to_tokens(5)
    assert found.tokenizer(text_target=word).input_ids == [5, 3]
    assert found.tokenizer.decode([2, 5, 5, 3], skip_special_tokens=True) == f"{word} {word}"


def edited(path, options=None, weights=None, **parts):
    """Copy of a checkpoint with changed options, or weights by `weights(state)`."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(GENERAL, weights_only=True)
    vars(found["opt"]).update(options or {})
    if weights is not None:
        weights(found["model"])
    torch.save(found | parts, path)
    return path


def test_the_command_writes_a_translator(tmp_path, capsys):
    output = tmp_path / "out"
    main(["opennmt", str(OPENNMT / "brnn_lstm_bridge" / "model_step_4.pt"), "--output_dir", str(output)])
    assert "of OpenNMT-py (LSTM, general attention)" in capsys.readouterr().out
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    generation = model.generation_config
    assert (generation.num_beams, generation.length_penalty, generation.max_new_tokens) == (5, 1.0, 250)
    source = read_lines(OPENNMT / "brnn_lstm_bridge" / "test.src")[1]
    found = convert_opennmt(OPENNMT / "brnn_lstm_bridge" / "model_step_4.pt")
    ids = torch.tensor([[2]])
    with torch.no_grad():
        for _ in range(6):
            logits = found.reference(torch.tensor([tokenizer(source).input_ids]), ids)
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    translator = pipeline("translation", model=model, tokenizer=tokenizer)
    written = translator(source, num_beams=1, max_new_tokens=6)[0]["translation_text"]
    assert written == tokenizer.decode(ids[0], skip_special_tokens=True)
    card = (output / "README.md").read_text()
    assert "Converted from OpenNMT-py" in card and "A source has no end token; a target begins with `<s>`" in card


def test_no_attention_shared_rows_and_other_starts(tmp_path):
    """What no fixture has, by the self-check, whose reference equals the peer on the fixtures."""

    def no_attention(state):
        for name in [name for name in state if name.startswith("decoder.attn")]:
            del state[name]

    found = convert_opennmt(edited(tmp_path / "model.pt", {"global_attention": "none"}, no_attention))
    assert found.model.config.attention_type == "none" and check_conversion(found.model, found.reference).passed
    # Safetensors have shared weights once.
    folder = tmp_path / "eole"
    shutil.copytree(EOLE, folder)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.00.safetensors")
    config["model"]["share_decoder_embeddings"] = True
    weights["src_emb.embeddings.weight"] = torch.randn(24, 10)
    weights["tgt_emb.embeddings.weight"] = torch.randn(24, 10)
    for name, width in (("encoder.rnn.weight_ih_l0", 10), ("encoder.rnn.weight_ih_l0_reverse", 10)):
        weights[name] = torch.randn(20, width)
    weights["decoder.rnn.layers.0.weight_ih"] = torch.randn(40, 20)
    del weights["generator.weight"]
    vocabulary = json.loads((folder / "vocab.json").read_text()) | {"decoder_start_token": "one"}
    vocabulary["src"][5] = "one"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    save_file(weights, folder / "model.00.safetensors")
    found = convert_opennmt(folder)
    config = found.model.config
    assert config.tie_word_embeddings and config.lm_head_bias and config.decoder_start_token_id == 4
    assert check_conversion(found.model, found.reference).passed


def test_words_are_split_by_codes_and_by_sentencepiece(tmp_path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        vocabularies = torch.load(GENERAL, weights_only=True)["vocab"]
    source = [*vocabularies["src"][:4], "do@@", "g", "\u2581bird", "\u2581a", *vocabularies["src"][8:]]
    (tmp_path / "codes").write_text("#version: 0.2\nd o\nx y</w>\n")
    path = edited(tmp_path / "model.pt", vocab=vocabularies | {"src": source})
    assert "split into pieces already" in convert_opennmt(path).decoding[-1]
    found = convert_opennmt(path, subwords=[tmp_path / "codes"])
    # `xy` has no id, and reads as an unknown word; so does the model, with a row of its own for it.
    ids = found.tokenizer("dog xy").input_ids
    assert ids[:2] == [4, 5] and ids[2] >= 24 and "are read as `<unk>`" in found.decoding[-1]
    check = check_conversion(found.model, found.reference)
    assert check.passed and found.model.config.vocab_size == len(found.tokenizer) > 24
    pieces = PEERS / "joeynmt" / "gru_bahdanau_last" / "spm.model"
    found = convert_opennmt(path, subwords=[pieces, pieces])
    ids = found.tokenizer("bird a green").input_ids
    assert (
        len(ids) == 3 and ids[:2] == [6, 7] and ids[2] >= 24 and check_conversion(found.model, found.reference).passed
    )
    with pytest.raises(InputError, match="--subwords: one file for both languages, or one for each"):
        convert_opennmt(path, subwords=[pieces] * 3)


def test_what_hfseq_lacks_is_refused_by_its_option(tmp_path):
    path = tmp_path / "model.pt"

    def refused(message, weights=None, parts=None, **options):
        with pytest.raises(InputError, match=message) as error:
            convert_opennmt(edited(path, options, weights, **(parts or {})))
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    refused("encoder_type cnn: hfseq's encoder has layers of nn.LSTM", encoder_type="cnn")
    refused("rnn_type SRU: hfseq has LSTM and GRU", rnn_type="SRU")
    refused("context_gate both", context_gate="both")
    refused(r"coverage_attn True: it is not the coverage of See et al. \(2017\)", coverage_attn=True)
    refused("copy_attn True: hfseq's pointer-generator", copy_attn=True)
    refused("global_attention_function sparsemax", global_attention_function="sparsemax")
    refused("position_encoding True", position_encoding=True)
    refused("n_src_feats 1", n_src_feats=1)
    refused("model_task lm: hfseq converts translators", model_task="lm")
    refused(r"no place for decoder.norm \[2\]", lambda state: state.update({"decoder.norm": torch.ones(2)}))
    embeddings = "encoder.embeddings.make_embedding.emb_luts.0.weight"
    refused(f"it lacks {embeddings}$", lambda state: state.pop(embeddings))
    refused("it lacks encoder.rnn.bias_ih_l1", lambda state: state.pop("encoder.rnn.bias_ih_l1"))
    wide = {"decoder.embeddings.make_embedding.emb_luts.0.weight": torch.ones(24, 9)}
    refused("src_word_vec_size 6, tgt_word_vec_size 9", lambda state: state.update(wide))
    refused(
        "enc_layers 2, dec_layers 1",
        lambda state: [state.pop(name) for name in [*state] if name.startswith("decoder.rnn.layers.1.")],
    )
    refused("no decoder of nn.LSTM or nn.GRU", lambda state: state.pop("decoder.rnn.layers.0.weight_hh"))
    words = ["<unk>", "<blank>", "<s>", "</s>"]
    few = {"vocab": {"src": words, "tgt": words}}
    refused("4 tokens, but the embeddings of the model have 24 rows", parts=few)
    refused("its vocabularies, src and tgt, are not lists", parts={"vocab": {"src": 3}})
    refused("it has a 'vocab' and the options 'opt'|not a checkpoint of OpenNMT-py 3", parts={"vocab": None})
    refused("no weights in it, nor in model.safetensors beside it", parts={"model": None, "generator": None})
    with torch.serialization.safe_globals([argparse.Namespace]):
        vocabularies = torch.load(GENERAL, weights_only=True)["vocab"]
    swapped = vocabularies | {"tgt": ["<blank>", "<unk>", *vocabularies["tgt"][2:]]}
    with pytest.raises(InputError, match="the special token '<unk>' is 0 for sources and 1 for targets"):
        convert_opennmt(edited(path, vocab=swapped))
    unnamed = vocabularies | {"src": ["<unk>", "<pad>", *vocabularies["src"][2:]]}
    refused("the special token '<blank>' is not in both vocabularies", parts={"vocab": unnamed})
    with pytest.raises(InputError, match="not a folder of Eole|config.json: no such file"):
        convert_opennmt(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match="not a folder of Eole, whose config.json has the section model"):
        convert_opennmt(tmp_path)


def test_older_vocabularies_are_refused_with_what_renews_them(tmp_path, monkeypatch):
    def refuse(path, names):
        raise InputError(f"{path}: refused, and nothing in it was run: it names torchtext.data.field.Field")

    monkeypatch.setattr(from_opennmt, "read_checkpoint", refuse)
    with pytest.raises(InputError, match="before version 3, whose tools/convertv2_v3.py renews them"):
        convert_opennmt(GENERAL)
