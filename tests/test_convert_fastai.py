"""AWD-LSTM models of fastai and awd-lstm-lm, converted: equal to what these computed, and a start of ULMFiT."""

import csv
import json
import pickle
import shutil

import pytest
import recipe_runs
import torch
from peer_fixtures import PEERS, assert_equals_peer, expected
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfseq.convert import check_conversion, convert_fastai, from_fastai
from hfseq.convert.command import main
from hfseq.convert.reading import StandIn, read_checkpoint
from hfseq.errors import InputError

FASTAI, SALESFORCE = PEERS / "fastai" / "awd_lstm", PEERS / "fastai" / "awd_lstm_lm"


@pytest.mark.parametrize(
    "name", ["awd_lstm/lm.pth", "awd_lstm/lm_with_opt.pth", "awd_lstm_lm/model.pt", "awd_lstm_lm_legacy/model.pt"]
)
def test_logits_are_those_of_the_peer(name):
    case = PEERS / "fastai" / name
    found = convert_fastai(case, vocab=case.parent / ("itos.pkl" if case.suffix == ".pth" else "vocab.txt"))
    assert_equals_peer(found, f"fastai/{case.parent.name}")
    config = found.model.config
    # The top layer is as wide as the embeddings, whose weights are those of the output layer, with a bias of its own.
    assert config.layer_sizes[-1] == config.hidden_size == config.embedding_size < config.layer_sizes[0]
    assert config.tie_word_embeddings and config.lm_head_bias and config.variational_dropout
    rates = (config.dropout, config.weight_dropout, config.embedding_dropout)
    assert rates == ((0.15, 0.2, 0.02) if case.suffix == ".pth" else (0.1, 0.5, 0.1))
    assert ("opt of the checkpoint" in found.ignored) == ("with_opt" in name)


def test_texts_are_split_as_fastai_does():
    tokenizer = convert_fastai(FASTAI / "lm.pth", vocab=FASTAI / "itos.pkl").tokenizer
    words = pickle.loads((FASTAI / "itos.pkl").read_bytes())

    def split(text):
        return [words[token] for token in tokenizer(text).input_ids]

    assert split("the old dog") == ["xxbos", "the", "old", "dog"]
    assert split("The old DOG\nA he") == ["xxbos", "xxmaj", "the", "old", "xxup", "dog", "a", "he"]
    assert split("it isn't a zebra's") == ["xxbos", "it", "is", "xxunk", "a", "xxunk", "xxunk"]
    assert split("the,dog") == ["xxbos", "the", "xxunk", "dog"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token, tokenizer.unk_token) == (1, "xxbos", "xxunk")
    assert len(tokenizer) == len(words) and words.count("xxfake") == 3


def test_an_adaptive_softmax_of_awd_lstm_lm(monkeypatch):
    """SplitCrossEntropyLoss with splits, as on WikiText-103; the oracle is its formula, with probabilities."""
    model, criterion, _ = read_checkpoint(SALESFORCE / "model.pt", from_fastai.NAMES)
    torch.manual_seed(0)
    vectors, offsets = torch.randn(2, 6), torch.randn(2)
    vars(criterion)["splits"] = [0, 20, 50, 100_000_000]
    vars(criterion)["_parameters"] = {"tail_vectors": nn.Parameter(vectors), "tail_bias": nn.Parameter(offsets)}
    monkeypatch.setattr(from_fastai, "read_checkpoint", lambda path, names: [model, criterion])
    found = convert_fastai(SALESFORCE / "model.pt")
    assert found.model.config.adaptive_softmax_cutoffs == [20, 50]
    assert check_conversion(found.model, found.reference).passed
    row = expected("fastai/awd_lstm_lm")[0]["row1"]
    with torch.no_grad():
        found.model.eval()
        states = found.model.model(row["input_ids"]).last_hidden_state
        weight, bias = found.model.lm_head.weight, found.model.lm_head.bias
        scores = states @ weight.T + bias
        head = torch.cat([scores[..., :20], states @ vectors.T + offsets], dim=-1).softmax(-1)
        # The first cluster behind the head has the last entry.
        parts = [head[..., :20], head[..., 21, None] * scores[..., 20:50].softmax(-1)]
        parts.append(head[..., 20, None] * scores[..., 50:].softmax(-1))
        probabilities = found.model(row["input_ids"]).logits.exp()
    torch.testing.assert_close(probabilities, torch.cat(parts, dim=-1))
    assert isinstance(model, StandIn)


def test_other_files_are_refused_with_what_to_save(tmp_path):
    path = tmp_path / "model.pth"
    state = read_checkpoint(FASTAI / "lm.pth")

    def refused(message, state):
        torch.save(state, path)
        with pytest.raises(InputError, match=message):
            convert_fastai(path)

    shutil.copy(PEERS / "fastai" / "awd_lstm_classifier" / "classifier.pth", path)
    with pytest.raises(InputError, match="a text classifier; hfseq converts language models"):
        convert_fastai(path)
    refused("an encoder without a decoder", {name.removeprefix("0."): one for name, one in state.items()})
    refused("neither a state dict of fastai nor", {"epoch": 3})
    changed = {name: one + ("encoder_dp" in name) for name, one in state.items()}
    refused("0.encoder_dp.emb.weight and 0.encoder.weight are not the same", changed)
    lacking = {name: one for name, one in state.items() if name != "0.rnns.1.module.bias_ih_l0"}
    refused("0.rnns.1. has no bias_ih_l0", lacking)
    refused(r"no place for 0.rnns.0.norm \[3\]", {**state, "0.rnns.0.norm": torch.ones(3)})
    refused("both directions", {**state, "0.rnns.0.module.weight_ih_l0_reverse": torch.ones(3)})
    refused("it has no recurrent layers", {name: one for name, one in state.items() if "rnns" not in name})
    with pytest.raises(InputError, match="vocab.txt: 77 tokens, but the embeddings of the model have 88 rows"):
        convert_fastai(FASTAI / "lm.pth", vocab=SALESFORCE / "vocab.txt")


def test_a_converted_language_model_starts_ulmfit(tmp_path, capsys):
    output = tmp_path / "lm"
    main(["fastai", str(FASTAI / "lm.pth"), "--vocab", str(FASTAI / "itos.pkl"), "--output_dir", str(output)])
    assert "of fastai (AWD_LSTM)" in capsys.readouterr().out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    row = expected("fastai/awd_lstm")[0]["row1"]
    torch.testing.assert_close(model(row["input_ids"]).logits, row["logits"], atol=1e-5, rtol=0)
    assert tokenizer("The dog").input_ids[:2] == [2, 8]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([["The dog runs in the garden", "good"], ["a man in the rain", "bad"]] * 4)
    recipe_runs.start(
        recipe_runs.load("finetuning"),
        [
            *("--task", "classification", "--model_name_or_path", output, "--method", "gradual"),
            *("--train_file", tmp_path / "train.csv", "--test_file", tmp_path / "train.csv"),
            *("--validation_file", tmp_path / "train.csv", "--config_overrides", "{pooling: concat}"),
            *("--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "True"),
            *("--learning_rate", "0", "--output_dir", tmp_path / "classifier", "--report_to", "none"),
        ],
    )
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    assert config["architectures"] == ["LstmForSequenceClassification"] and config["layer_sizes"] == [10, 10, 8]
    trained = recipe_runs.load_file(tmp_path / "classifier" / "model.safetensors")
    start = model.state_dict()
    shared = [name for name in trained if name.startswith("model.")]
    assert len(shared) == 13 and all(torch.equal(trained[name], start[name]) for name in shared)
