"""Models of fairseq, converted: equal to what fairseq computed; dictionaries, BPE codes, and what is refused."""

import argparse
import random
import sys
import types

import pytest
import torch
from peer_fixtures import PEERS, assert_equals_peer
from test_switches import FAIRSEQ
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from hfseq.convert import check_conversion, convert_fairseq
from hfseq.convert.command import main
from hfseq.convert.fairseq_files import read_fairseq
from hfseq.convert.translators import piece_note
from hfseq.convert.vocabularies import bpe_tokenizer, read_fairseq_dictionary
from hfseq.errors import InputError


def expected(name):
    found = torch.load(FAIRSEQ / f"{name}.expected.pt", weights_only=True)
    batch = found["batch"]
    inputs = {"input_ids": batch["src_tokens"]}
    if "prev_output_tokens" in batch:
        # The sources are padded on the left.
        inputs |= {"attention_mask": (batch["src_tokens"] != 1).long()}
        inputs |= {"decoder_input_ids": batch["prev_output_tokens"]}
    return inputs, found["logits"], found


def edited(name, path, options=None, weights=None, **parts):
    """Copy of a checkpoint with changed options, or weights by `weights(state)`."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(FAIRSEQ / f"{name}.pt", weights_only=True)
    vars(found["args"]).update(options or {})
    if weights is not None:
        weights(found["model"])
    torch.save(found | parts, path)
    return path


def test_a_piece_that_both_sides_add_counts_once():
    assert piece_note(["lo", "low</w>"], ["low</w>"]) == [
        "2 pieces of words that no vocabulary has are read as `<unk>`."
    ]
    assert piece_note([], []) == []


@pytest.mark.parametrize("name", ["lstm_lm", "lstm_uni", "lstm_bi"])
@torch.no_grad()
def test_logits_are_those_of_fairseq(name):
    found = convert_fairseq(FAIRSEQ / f"{name}.pt")
    inputs, logits, _ = expected(name)
    torch.testing.assert_close(found.model(**inputs).logits, logits, atol=1e-5, rtol=0)
    assert check_conversion(found.model, found.reference).difference < 1e-6
    config = found.model.config
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (0, 1, 2)
    assert config.decoder_start_token_id == 2 and config.dropout == 0.1
    assert found.ignored == ["optimizer_history of the checkpoint", "extra_state of the checkpoint"]


TRAINED = ["fconv", "fconv_lm", "fconv_lm_args", "lstm_bidirectional", "lstm_lm", "lstm_uni", "lstm_wide_encoder_tied"]


@pytest.mark.parametrize("name", TRAINED)
def test_logits_and_dictionaries_of_what_fairseq_trains(name):
    """Checkpoints of its trainer, whose options are a dictionary with those of argparse in it."""
    case = PEERS / "fairseq" / name
    found = convert_fairseq(case / "checkpoint_best.pt", dict_dir=case)
    assert_equals_peer(found, f"fairseq/{name}")
    config, tokenizer = found.model.config, found.tokenizer
    assert len(tokenizer) == config.vocab_size and config.tie_word_embeddings == name.endswith("tied")
    words = tokenizer.convert_ids_to_tokens([4, 6])
    ids = [2, 4, 6] if "lm" in name else [4, 6, 2]
    assert tokenizer(" ".join(words)).input_ids == ids


def test_the_command_writes_a_translator_with_two_vocabularies(tmp_path, capsys):
    output = tmp_path / "out"
    path = edited("lstm_bi", tmp_path / "model.pt", {"source_lang": "src", "target_lang": "tgt"})
    main(["fairseq", str(path), "--dict_dir", str(FAIRSEQ), "--output_dir", str(output)])
    assert "LstmForConditionalGeneration" in capsys.readouterr().out
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    inputs, _, found = expected("lstm_bi")
    rows = [" ".join(found["src"][token] for token in row if token > 3) for row in inputs["input_ids"]]
    encoded = tokenizer(rows, text_target=["t1 t2"] * 3, padding=True, padding_side="left", return_tensors="pt")
    wanted = [[token for token in row if token != 1] for row in inputs["input_ids"].tolist()]
    kept = [[*filter(lambda token: token != 1, row)] for row in encoded.input_ids.tolist()]
    assert [len(row) for row in kept] == [len(row) for row in wanted] and kept[0] == wanted[0]
    assert encoded.labels[0].tolist() == [found["tgt"].index("t1"), found["tgt"].index("t2"), 2]
    assert model.config.decoder_vocab_size == 27 and model.config.bridge == "copy"
    card = (output / "README.md").read_text()
    assert "Converted from fairseq (lstm)" in card and "A target begins with `</s>`" in card
    # Greedily, as the source model would.
    ids = torch.tensor([[2]])
    source = convert_fairseq(path)
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, source.reference(inputs["input_ids"][:1], ids)[:, -1:].argmax(-1)], dim=1)
    grown = model.generate(inputs["input_ids"][:1], max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert torch.equal(grown, ids)


def test_other_outputs_bridges_and_attention(tmp_path):
    """What no fixture has, by the self-check, whose reference equals fairseq on the fixtures."""
    path = tmp_path / "model.pt"
    torch.manual_seed(0)

    def passes(name, change, **options):
        found = convert_fairseq(edited(name, path, options, change))
        assert check_conversion(found.model, found.reference).passed
        return found.model.config

    def tied(state):
        for part in ("weight", "bias"):
            del state[f"decoder.fc_out.{part}"]
        state["decoder.additional_fc.weight"], state["decoder.additional_fc.bias"] = (
            torch.randn(12, 16),
            torch.randn(12),
        )

    def further(state):
        state["decoder.additional_fc.weight"], state["decoder.additional_fc.bias"] = torch.randn(9, 16), torch.randn(9)
        state["decoder.fc_out.weight"] = torch.randn(27, 9)

    def adaptive(state):
        for part in ("weight", "bias"):
            del state[f"decoder.fc_out.{part}"]
        prefix = "decoder.adaptive_softmax."
        state |= {f"{prefix}head.weight": torch.randn(12, 16), f"{prefix}version": torch.tensor([1])}
        state |= {f"{prefix}tail.0.0.weight": torch.randn(4, 16), f"{prefix}tail.0.2.weight": torch.randn(8, 4)}
        state |= {f"{prefix}tail.1.0.weight": torch.randn(1, 16), f"{prefix}tail.1.2.weight": torch.randn(9, 1)}

    assert passes("lstm_lm", tied).tie_word_embeddings
    config = passes("lstm_lm", further, decoder_dropout_in=0.3)
    assert config.lm_head_bias and config.dropout == 0.1
    config = passes("lstm_lm", adaptive)
    assert (config.adaptive_softmax_cutoffs, config.adaptive_softmax_div_value) == ([10, 18], 4)
    found = convert_fairseq(edited("lstm_lm", path, {"decoder_dropout_in": 0.3, "decoder_dropout_out": 0.2}))
    assert "--decoder-dropout-in 0.3, --decoder-dropout-out 0.2: hfseq has one dropout" in found.ignored[-1]

    def linear(state):
        for name in [name for name in state if name.startswith("encoder.lstm")]:
            del state[name]
        encoder = torch.nn.LSTM(12, 16, 2, bidirectional=True)
        state |= {f"encoder.lstm.{name}": one for name, one in encoder.state_dict().items()}
        for name in ("hidden", "cell"):
            state[f"decoder.encoder_{name}_proj.weight"] = torch.randn(16, 32) / 4
            state[f"decoder.encoder_{name}_proj.bias"] = torch.randn(16)
        state["decoder.attention.input_proj.weight"] = torch.randn(32, 16) / 4
        state["decoder.attention.output_proj.weight"] = torch.randn(16, 48) / 4

    def no_attention(state):
        del state["decoder.attention.input_proj.weight"], state["decoder.attention.output_proj.weight"]

    config = passes("lstm_uni", linear)
    assert (config.bridge, config.hidden_size, config.decoder_hidden_size) == ("linear", 32, 16)
    assert passes("lstm_uni", no_attention).attention_type == "none"
    one = torch.randn(27, 12)
    shared = {"encoder.embed_tokens.weight": one, "decoder.embed_tokens.weight": one.clone()}
    config = passes("lstm_uni", lambda state: state.update(shared))
    assert config.share_encoder_decoder_embeddings and config.decoder_vocab_size is None


def test_what_hfseq_lacks_is_refused_by_its_option(tmp_path):
    path = tmp_path / "model.pt"

    def refused(message, name, weights=None, **options):
        with pytest.raises(InputError, match=message) as error:
            convert_fairseq(edited(name, path, options, weights))
        assert str(path) in str(error.value)

    refused("--residuals", "lstm_lm", residuals=True)
    refused(r"no place for decoder.norm \[2\]", "lstm_lm", lambda state: state.update({"decoder.norm": torch.ones(2)}))
    refused("it lacks decoder.layers.1.bias_ih", "lstm_uni", lambda state: state.pop("decoder.layers.1.bias_ih"))
    refused(
        "--encoder-layers 2, --decoder-layers 1",
        "lstm_uni",
        lambda state: [state.pop(name) for name in [*state] if name.startswith("decoder.layers.1.")],
    )
    wide = {"decoder.embed_tokens.weight": torch.ones(27, 9)}
    refused("--encoder-embed-dim 12, --decoder-embed-dim 9", "lstm_uni", lambda state: state.update(wide))
    adaptive = {"decoder.adaptive_softmax.head.weight": torch.ones(3, 16)}
    refused("--criterion adaptive_loss", "lstm_uni", lambda state: state.update(adaptive))
    refused("--arch transformer is none of those", "lstm_lm", lambda state: state.clear(), arch="transformer")
    with pytest.raises(InputError, match="no --source-lang and --target-lang"):
        convert_fairseq(FAIRSEQ / "lstm_uni.pt", dict_dir=FAIRSEQ)
    with pytest.raises(InputError, match="dict.src.txt: 34 tokens, but the embeddings of the model have 27 rows"):
        convert_fairseq(FAIRSEQ / "lstm_lm.pt", dict_dir=FAIRSEQ / "dict.src.txt")
    with pytest.raises(InputError, match="dict.txt: no such file"):
        convert_fairseq(FAIRSEQ / "lstm_lm.pt", dict_dir=FAIRSEQ)
    for found, message in (
        ({"state": 1}, "has its weights under 'model'"),
        ({"model": {"a": torch.ones(1)}, "args": None}, "neither 'args' nor 'cfg'"),
    ):
        torch.save(found, path)
        with pytest.raises(InputError, match=message):
            convert_fairseq(path)


def test_options_of_argparse_in_a_configuration_and_of_omegaconf(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(FAIRSEQ / "lstm_lm.pt", weights_only=True)
    options = found.pop("args")
    cfg = {"model": options, "criterion": {"_name": "adaptive_loss"}, "task": {"data": "bin"}}
    torch.save(found | {"cfg": cfg}, path)
    read = read_fairseq(path)
    assert (read.arch, read.options["criterion"], read.options["data"]) == ("lstm_lm", "cross_entropy", "bin")
    # What omegaconf pickles: containers of nodes.
    module = types.ModuleType("omegaconf")
    node, container = type("AnyNode", (), {}), type("DictConfig", (), {})
    for one in (node, container):
        one.__module__ = "omegaconf"
        setattr(module, one.__name__, one)
    monkeypatch.setitem(sys.modules, "omegaconf", module)

    def wrapped(value):
        made = container() if isinstance(value, dict) else node()
        if isinstance(value, dict):
            made._content = {name: wrapped(one) for name, one in value.items()}
        else:
            made._val = value
        return made

    torch.save(found | {"cfg": wrapped({"model": {"_name": "lstm_lm", "dropout": 0.3, "sizes": [1]}})}, path)
    read = read_fairseq(path)
    assert read.options == {"_name": "lstm_lm", "dropout": 0.3, "sizes": [1]} and read.arch == "lstm_lm"
    assert convert_fairseq(path).model.config.dropout == 0.3


def test_dictionaries(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("a 3\n\u2028 2\nb 1\n<unk> 5 #fairseq:overwrite\nmadeupword0000 0\n")
    tokens = read_fairseq_dictionary(path)
    assert tokens == ["<s>", "<pad>", "</s>", "<unk>#4", "a", "\u2028", "b", "<unk>", "madeupword0000"]
    for text, message in (("a 1\na 2\n", "line 2: 'a' appears twice"), ("a\n", "line 1: 'a' is no symbol")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_fairseq_dictionary(path)


def apply_bpe(word, merges):
    """Pieces of a word as subword-nmt finds them: the most frequent merge first, at all its places."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while len(pieces) > 1:
        pairs = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in merges]
        if not pairs:
            break
        best, merged = min(pairs, key=merges.index), []
        while pieces:
            if tuple(pieces[:2]) == best:
                merged.append("".join(pieces[:2]))
                pieces = pieces[2:]
            else:
                merged.append(pieces.pop(0))
        pieces = merged
    return [one.removesuffix("</w>") if one.endswith("</w>") else f"{one}@@" for one in pieces]


def test_codes_split_words_as_subword_nmt_does(tmp_path):
    rng, codes = random.Random(0), tmp_path / "codes"
    merges = [("l", "o"), ("lo", "w"), ("e", "r</w>"), ("lo", "w</w>"), ("n", "e"), ("ne", "w"), ("new", "er</w>")]
    codes.write_text("#version: 0.2\n" + "".join(f"{first} {last}\n" for first, last in merges))
    words = ["".join(rng.choices("lowern", k=rng.randint(1, 8))) for _ in range(300)]
    pieces = sorted({piece for word in words for piece in apply_bpe(word, merges)})
    dropped = {"lo@@", "ne@@", pieces[5]}
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece in pieces if piece not in dropped)]
    tokenizer, more = bpe_tokenizer(tokens, codes, start=["</s>"])
    assert len(tokenizer) == len(tokens) + len(more) and {"lo", "ne"} <= {*more}
    for word in words:
        ids = [token if token < len(tokens) else 3 for token in tokenizer(word).input_ids]
        wanted = [tokens.index(piece) if piece in tokens else 3 for piece in apply_bpe(word, merges)]
        assert ids == [2, *wanted], word
    whole = [word for word in words if not {*apply_bpe(word, merges)} & dropped][:20]
    assert tokenizer.decode(tokenizer(" ".join(whole)).input_ids, skip_special_tokens=True) == " ".join(whole)
    codes.write_text("".join(f"{first} {last} 7\n" for first, last in merges))  # fastBPE
    assert bpe_tokenizer(tokens, codes)[0]("lower newer").input_ids == tokenizer("lower newer").input_ids[1:]
    for text in ("a b c d\n", "a </w>\n", "a\n"):
        codes.write_text(text)
        with pytest.raises(InputError, match="codes, line 1: .* is no merge of two pieces"):
            bpe_tokenizer(tokens, codes)


def test_pieces_without_an_id_are_read_as_unknown_and_never_written(tmp_path):
    names = [line.split()[0] for line in (FAIRSEQ / "dict.tgt.txt").read_text().splitlines()]
    renamed = {name: f"{name}@@" if number % 2 else name for number, name in enumerate(names)}
    (tmp_path / "dict.txt").write_text("".join(f"{one} 1\n" for one in renamed.values()))
    (tmp_path / "codes").write_text("t 1\nt1 2</w>\n2 2</w>\n")
    found = convert_fairseq(FAIRSEQ / "lstm_lm.pt", dict_dir=tmp_path, bpe_codes=[tmp_path / "codes"])
    model, size = found.model, 27
    assert model.config.vocab_size == len(found.tokenizer) > size and "read as `<unk>`" in found.decoding[-1]
    assert check_conversion(model, found.reference).passed
    with torch.no_grad():
        known, new = model(torch.tensor([[2, 3, 5]])).logits, model(torch.tensor([[2, size, 5]])).logits
    torch.testing.assert_close(known, new)
    assert bool((known.softmax(-1)[..., size:] == 0).all())
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again(torch.tensor([[2, 3, 5]])).logits, known)
    # Without codes a text is split already, and decoding joins its pieces.
    plainly = convert_fairseq(FAIRSEQ / "lstm_lm.pt", dict_dir=tmp_path).tokenizer
    pieces = [*renamed.values()][:3]
    assert plainly.decode(plainly(" ".join(pieces)).input_ids, skip_special_tokens=True) == (
        " ".join(pieces).replace("@@ ", "")
    )
