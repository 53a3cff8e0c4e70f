"""Translators of JoeyNMT, converted: equal logits and greedy translations; settings that hfseq lacks are refused."""

import shutil

import pytest
import torch
import yaml
from peer_fixtures import PEERS, assert_equals_peer, expected
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from hfseq.convert import check_conversion, convert_joeynmt
from hfseq.convert.command import main
from hfseq.convert.reading import read_checkpoint, read_lines
from hfseq.convert.vocabularies import bpe_tokenizer
from hfseq.errors import InputError

JOEYNMT = PEERS / "joeynmt"
BRIDGES = {
    "gru_bahdanau_bridge": "project",
    "gru_bahdanau_last": "last",
    "gru_luong_zero": "zeros",
    "lstm_luong_bridge": "project",
    "lstm_luong_narrow": "project",
}


def known(lines):
    """Translations of JoeyNMT without `<unk>`, which decoding here leaves out."""
    return [" ".join(line.replace("<unk>", "").split()) for line in lines]


@pytest.mark.parametrize("name", BRIDGES)
def test_logits_and_translations_are_those_of_joeynmt(name):
    found = convert_joeynmt(JOEYNMT / name)
    assert_equals_peer(found, f"joeynmt/{name}")
    config, generation = found.model.config, found.model.generation_config
    assert config.bridge == BRIDGES[name] and config.attention_bias and config.dropout == 0.1
    assert config.share_encoder_decoder_embeddings == (name == "lstm_luong_narrow")
    assert (config.decoder_vocab_size is None) == (name == "lstm_luong_narrow")
    assert (generation.suppress_tokens, generation.min_new_tokens, generation.max_new_tokens) == ([1, 2], 1, 12)
    sources, wanted = read_lines(JOEYNMT / name / "test.src"), read_lines(JOEYNMT / name / "test.hyp")
    inputs = found.tokenizer(sources, padding=True, return_tensors="pt")
    rows = [[token for token in row if token != 1] for row in inputs.input_ids.tolist()]
    batch = expected(f"joeynmt/{name}")[0]["right"]
    assert all([token for token in row if token != 1] in rows for row in batch["input_ids"].tolist())
    texts = found.tokenizer.batch_decode(found.model.generate(**inputs), skip_special_tokens=True)
    assert texts == known(wanted)


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
    output, path = tmp_path / "out", tmp_path / "model"
    folder(path, "lstm_luong_bridge", lambda config: config["testing"].update(beam_size=3, generate_unk=False))
    main(["joeynmt", str(path), "--output_dir", str(output)])
    assert "of JoeyNMT (LSTM, Luong attention)" in capsys.readouterr().out
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    generation = model.generation_config
    assert (generation.num_beams, generation.length_penalty, generation.suppress_tokens) == (3, 0.8, [0, 1, 2])
    sources, wanted = (read_lines(JOEYNMT / "lstm_luong_bridge" / f"test.{end}") for end in ("src", "hyp"))
    translator = pipeline("translation", model=model, tokenizer=tokenizer)
    assert [one["translation_text"] for one in translator(sources[:3], num_beams=1)] == known(wanted[:3])
    card = (output / "README.md").read_text()
    assert "Converted from JoeyNMT (LSTM" in card and "length^0.8" in card and "A source ends with `</s>`" in card


def test_texts_are_split_as_joeynmt_does(tmp_path):
    """Lowercased and normalised; characters; SentencePiece restricted to the pieces of the vocabulary."""

    def tokenizer(name, change):
        path = tmp_path / "texts"
        shutil.rmtree(path, ignore_errors=True)
        found = convert_joeynmt(folder(path, name, lambda config: change(config["data"]["src"])))
        return found.tokenizer, [*read_lines(path / "src_vocab.txt")]

    split, words = tokenizer("gru_luong_zero", lambda side: side.update(lowercase=True, normalize=True))
    ids = split("  AND\u200b \u3000 \ufb01eld \u201cbirds\u201d ,").input_ids
    assert ids == [words.index("and"), words.index("field"), 0, 3]
    # NFKC joins the ligature; the quotation marks and the comma stay with the word, which is unknown.
    assert split.decode([4, 3], skip_special_tokens=True) == read_lines(tmp_path / "texts" / "trg_vocab.txt")[4]
    split, pieces = tokenizer("gru_bahdanau_last", lambda side: None)
    ids = split("bird \u2603").input_ids
    # A character that the model knows and the vocabulary lacks is a piece of its own, with an id behind the others.
    others = {split.convert_ids_to_tokens(number) for number in range(len(pieces), len(split))}
    assert len(others) > 3 and all(len(piece) == 1 for piece in others) and not others & {*pieces}
    assert "".join(split.convert_ids_to_tokens(ids)) == "\u2581bird\u2581<unk></s>"
    letter = sorted(others)[0]
    assert split(letter).input_ids == [pieces.index("\u2581"), split.convert_tokens_to_ids(letter), 3]


def test_codes_make_no_pieces_that_a_vocabulary_lacks(tmp_path):
    """As by subword-nmt with a vocabulary, which undoes merges; those on the way to other pieces remain."""
    tokens = ["<unk>", "<pad>", "<s>", "</s>", "l@@", "o@@", "w@@", "e@@", "n@@", "low@@", "er", "e"]
    (tmp_path / "codes").write_text("#version: 0.2\nl o\nlo w\ne r</w>\nn e\nne w\n")

    def pieces(text, **options):
        tokenizer, more = bpe_tokenizer(tokens, tmp_path / "codes", **options)
        return [tokens[number] if number < len(tokens) else "" for number in tokenizer(text).input_ids], more

    found, more = pieces("lower newer loe", splits_unknown=True)
    assert found == ["low@@", "er", "n@@", "e@@", "w@@", "er", "", "e"] and "lo" in more and "new" not in more
    found, more = pieces("lower newer loe")
    assert found == ["low@@", "er", "", "er", "", "e"] and {"lo", "ne", "new"} <= {*more}


def test_the_last_checkpoint_and_other_normal_settings(tmp_path):
    path = folder(tmp_path / "model", "gru_luong_zero")
    (path / "best.ckpt").rename(path / "20.ckpt")
    shutil.copy(JOEYNMT / "gru_bahdanau_bridge" / "best.ckpt", path / "5.ckpt")
    found = convert_joeynmt(path)
    assert found.model.config.attention_type == "general" and not found.model.config.input_feeding

    def change(config):
        config["model"]["decoder"]["hidden_dropout"] = 0.3
        config["data"]["src"]["tokenizer_cfg"] = {"pretokenizer": "moses"}

    found = convert_joeynmt(folder(path, "gru_luong_zero", change))
    assert "decoder.hidden_dropout 0.3, encoder.embeddings.dropout 0.1" in found.ignored[-1]
    assert "sacremoses" in found.decoding[1]


def test_shared_and_tied_embeddings(tmp_path):
    """Scaled ones, too; the reference is the one that equals JoeyNMT on the fixtures."""

    def change(state):
        state["src_embed.lut.weight"] = state["trg_embed.lut.weight"].clone()

    path = folder(tmp_path / "shared", "gru_luong_zero", state=change)
    shutil.copy(path / "trg_vocab.txt", path / "src_vocab.txt")
    found = convert_joeynmt(path)
    config = found.model.config
    assert config.share_encoder_decoder_embeddings and config.decoder_vocab_size is None
    assert check_conversion(found.model, found.reference).passed and len(found.tokenizer) == config.vocab_size

    def tie(state):
        state["trg_embed.lut.weight"] = state["decoder.output_layer.weight"] = torch.randn(22, 12)
        state["src_embed.lut.weight"] = torch.randn(24, 12)
        state["encoder.rnn.weight_ih_l0"] = torch.randn(18, 12)
        state["encoder.rnn.weight_ih_l0_reverse"] = torch.randn(18, 12)
        state["decoder.rnn.weight_ih_l0"] = torch.randn(36, 12)

    for scale in (False, True):

        def change_scale(config, scale=scale):
            for side in ("encoder", "decoder"):
                config["model"][side]["embeddings"]["scale"] = scale

        found = convert_joeynmt(folder(path, "gru_luong_zero", change_scale, tie))
        # Scaled embeddings are not the rows of the output layer any more.
        assert found.model.config.tie_word_embeddings != scale
        assert check_conversion(found.model, found.reference).passed


def test_what_hfseq_lacks_is_refused_by_its_setting(tmp_path):
    path = tmp_path / "model"

    def refused(message, change=None, state=None, name="gru_luong_zero"):
        shutil.rmtree(path, ignore_errors=True)
        with pytest.raises(InputError, match=message) as error:
            convert_joeynmt(folder(path, name, change, state))
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    def transformer(state):
        for name in [name for name in state if name.startswith("encoder.rnn")]:
            state[name.replace("rnn", "layers")] = state.pop(name)

    def forward_only(state):
        for name in [name for name in state if name.endswith("reverse")]:
            del state[name]

    refused("model.encoder.type is not recurrent", state=transformer)
    refused("cannot run an encoder of one direction", state=forward_only)
    refused("model.decoder.activation relu", lambda config: config["model"]["decoder"].update(activation="relu"))
    refused("no place for decoder.norm", state=lambda state: state.update({"decoder.norm": torch.ones(2)}))
    refused("it lacks decoder.att_vector_layer.bias", state=lambda state: state.pop("decoder.att_vector_layer.bias"))
    wide = {"src_embed.lut.weight": torch.ones(24, 9)}
    refused("embedding_dim 9 of the encoder and 6 of the decoder", state=lambda state: state.update(wide))
    refused("it lacks trg_embed.lut.weight$", state=lambda state: state.pop("trg_embed.lut.weight"))
    lstm = {name: torch.ones(24, 6) for name in ("encoder.rnn.weight_ih_l0", "encoder.rnn.weight_hh_l0")}
    refused("rnn_type LSTM and GRU", state=lambda state: state.update(lstm))
    refused("has the sections model and data", lambda config: config.pop("data"))
    refused("line 3: not '<go>'", lambda config: config["data"].update(special_symbols={"bos_token": "<go>"}))

    def tokenizer(**fields):
        return lambda config: config["data"]["src"].update(level="bpe", **fields)

    refused("tokenizer_type fast: neither with codes", tokenizer(tokenizer_type="fast"))
    refused("spm.model: no such file", tokenizer(tokenizer_cfg={"model_file": "toy/spm.model"}))
    options = {"codes": "x/codes.txt", "separator": "|"}
    refused("separator: pieces are read that", tokenizer(tokenizer_type="subword-nmt", tokenizer_cfg=options))
    refused(
        "src_vocab.txt: neither a unigram nor a BPE model|src_vocab.txt: not a model of SentencePiece",
        tokenizer(tokenizer_cfg={"model_file": "src_vocab.txt"}),
    )
    (path / "src_vocab.txt").write_text("<unk>\n<pad>\n")
    with pytest.raises(InputError, match="src_vocab.txt: 2 tokens, but the embeddings of the model have 24 rows"):
        convert_joeynmt(path)
    torch.save({"a": 1}, path / "best.ckpt")
    with pytest.raises(InputError, match="has its weights under 'model_state'"):
        convert_joeynmt(path / "best.ckpt")
    with pytest.raises(InputError, match="neither best.ckpt nor the numbered checkpoints"):
        convert_joeynmt(tmp_path)
    shutil.copy(JOEYNMT / "gru_luong_zero" / "best.ckpt", path)
    (path / "config.yaml").unlink()
    with pytest.raises(InputError, match="config.yaml: no such file"):
        convert_joeynmt(path)
