"""Models of plain PyTorch, converted: equal to what torch, ESPnet and icefall computed; errors that name choices."""

import json

import pytest
import torch
from peer_fixtures import PEERS, assert_equals_peer, expected
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from hfseq.convert import check_conversion, command, convert_torch, from_torch
from hfseq.convert.command import main
from hfseq.convert.from_torch import max_marginals
from hfseq.convert.reading import read_lines
from hfseq.errors import InputError

CASES = {
    "lm_lstm/model.pt": {},
    "lm_gru_tied_dataparallel/checkpoint.tar": {},
    "lm_rnn_relu_legacy/model.pt": {"nonlinearity": "relu"},
    "classifier_lstm_last/model.pt": {"task": "classifier", "pooling": "last", "labels": "labels.txt"},
    "classifier_gru_mean/model.pt": {"task": "classifier", "pooling": "mean", "labels": "labels.txt"},
    "tagger_gru/model.pt": {"task": "tagger", "labels": "tags.txt"},
    "espnet_lstm/valid.loss.best.pth": {"vocab": "config.yaml"},
    "icefall_lstm_tied/pretrained.pt": {"vocab": "tokens.txt"},
    "word_language_model_lstm/state_dict.pt": {},
    "word_language_model_lstm/model.pt": {},
    "word_language_model_lstm/model_legacy.pt": {},
    "word_language_model_gru_tied/model.pt": {},
    "word_language_model_rnn_tanh/model.pt": {},
}
FILES = ("vocab", "labels")


def converted(case, **options):
    folder = (PEERS / "torch" / case).parent
    options = {"vocab": "vocab.txt"} | options
    return convert_torch(
        PEERS / "torch" / case, **{name: folder / one if name in FILES else one for name, one in options.items()}
    )


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_peer(case):
    found = converted(case, **CASES[case])
    assert_equals_peer(found, f"torch/{case.partition('/')[0]}", normalized=case.startswith("word"))
    config = found.model.config
    assert config.vocab_size == len(found.tokenizer)
    assert config.tie_word_embeddings == ("tied" in case)
    # Whole pickled models tell their dropout.
    assert config.dropout == (0.2 if case.startswith("word") and "state_dict" not in case else 0.1)


def weights_of(**modules):
    """State dict of modules of torch, with every weight drawn anew."""
    torch.manual_seed(0)
    model = nn.ModuleDict(modules)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.state_dict()


def test_tagger_with_crf_scores_and_decodes_as_pytorch_crf_does():
    found = converted("tagger_lstm_crf/model.pt", labels="tags.txt")
    model, (batches, _) = found.model, expected("torch/tagger_lstm_crf")
    assert type(model).__name__ == "LstmForTokenClassification" and model.config.id2label[1] == "B-PER"
    # <bos> and <eos> are among the ids of the rows, and steps of the chain like others.
    assert any(bool(((batch["input_ids"] == 2) | (batch["input_ids"] == 3)).any()) for batch in batches.values())
    for batch in batches.values():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        labels = batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.no_grad():
            outputs = model(**inputs, labels=labels)
        best = outputs.logits.argmax(-1).masked_fill(batch["attention_mask"] == 0, -1)
        assert torch.equal(best, batch["best"])
        loss = -batch["log_likelihood"].sum() / batch["attention_mask"].sum()
        torch.testing.assert_close(outputs.loss, loss, atol=1e-5, rtol=0)
        emissions = model.classifier(model.model(**inputs).last_hidden_state)
        valid = batch["attention_mask"] != 0
        torch.testing.assert_close(emissions[valid], batch["logits"][valid], atol=1e-5, rtol=0)
    check = check_conversion(model, found.reference)
    assert check.passed
    # The reference itself, by all 27 sequences of three labels.
    emissions, transitions, start, end = torch.randn(1, 3, 3), torch.randn(3, 3), torch.randn(3), torch.randn(3)
    best = torch.full((3, 3), -torch.inf)
    for one, two, three in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
        score = start[one] + transitions[one, two] + transitions[two, three] + end[three]
        score = score + sum(emissions[0, step, label] for step, label in enumerate((one, two, three)))
        for step, label in enumerate((one, two, three)):
            best[step, label] = torch.maximum(best[step, label], score)
    torch.testing.assert_close(max_marginals(emissions, transitions, start, end)[0], best)


def test_saved_by_the_command_and_loaded_again(tmp_path, capsys, monkeypatch):
    published = []
    monkeypatch.setattr(command, "publish", lambda folder, name: published.append((str(folder), name)) or "its URL")
    case, output = PEERS / "torch" / "tagger_lstm_crf", tmp_path / "tagger"
    flags = ["--vocab", str(case / "vocab.txt"), "--labels", str(case / "tags.txt"), "--output_dir", str(output)]
    main(["torch", str(case / "model.pt"), *flags, "--push_to_hub", "user/tagger"])
    assert published == [(str(output), "user/tagger")]
    shown = capsys.readouterr().out
    assert "largest difference of logits: " in shown and "(their standard deviation: " in shown
    assert "ignored: dropout" in shown and f"wrote {output}" in shown
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, None, None)
    batch = expected("torch/tagger_lstm_crf")[0]["row1"]
    assert torch.equal(model(batch["input_ids"]).logits.argmax(-1), batch["best"])
    words = read_lines(case / "vocab.txt")
    text = " ".join(words[token] for token in batch["input_ids"][0])
    assert (
        tokenizer(text).input_ids == batch["input_ids"][0].tolist()
        and tokenizer.decode([5, 6]) == f"{words[5]} {words[6]}"
    )
    card = (output / "README.md").read_text()
    assert "Converted from PyTorch (nn.LSTM)" in card and "largest difference of logits" in card
    assert json.loads((output / "run.json").read_text())["converted"]["toolkit"] == "PyTorch (nn.LSTM)"
    for argv, message in {
        (str(case / "model.pt"), "--output_dir", str(output)): "has files; name a new folder",
        (str(case / "absent.pt"), "--output_dir", str(tmp_path / "new")): "absent.pt: no such file",
    }.items():
        with pytest.raises(SystemExit) as error:
            main(["torch", *argv])
        assert error.value.code == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_model_that_differs_from_its_source_is_not_written(tmp_path, capsys, monkeypatch):
    def spoilt(*args, **kwargs):
        found = convert_torch(*args, **kwargs)
        with torch.no_grad():
            found.model.model.stack.forward_layers[0].bias_hh_l0[3] += 1e-2
        return found

    case, output = PEERS / "torch" / "lm_lstm", tmp_path / "lm"
    form = from_torch.FORMAT
    monkeypatch.setitem(command.FORMATS, "torch", type(form)(spoilt, form.add_arguments, form.summary))
    with pytest.raises(SystemExit) as error:
        main(["torch", str(case / "model.pt"), "--output_dir", str(output)])
    assert error.value.code == 1 and "differ by more than 0.0001 standard deviations" in capsys.readouterr().err
    assert not output.exists()
    # Each part of the check sees what only it can.
    found = convert_torch(case / "model.pt")
    for wrong in ("cache", "padding", "nan"):
        inner = type(found.model).forward

        def forward(self, *args, wrong=wrong, inner=inner, **kwargs):
            cached, mask = kwargs.get("cache") is not None, kwargs.get("attention_mask")
            outputs = inner(self, *args, **kwargs)
            if wrong == "cache" and cached or wrong == "padding" and not cached and mask is not None and mask[0, 0]:
                outputs.logits[0, 0, 0] += 1
            if wrong == "nan":
                outputs.logits[..., 0] = torch.nan
            return outputs

        with monkeypatch.context() as patch:
            patch.setattr(type(found.model), "forward", forward)
            assert not check_conversion(found.model, found.reference).passed, wrong
    assert check_conversion(found.model, found.reference).passed


def test_generation_continues_the_text_of_word_language_model(tmp_path):
    case = PEERS / "torch" / "word_language_model_lstm"
    words = read_lines(case / "vocab.txt")
    # The order of first occurrence, in the three texts that its Corpus reads.
    ends = words.index("<eos>")
    (tmp_path / "train.txt").write_text(f" {' '.join(words[:ends])} \n\n{words[0]}")
    (tmp_path / "valid.txt").write_text(" ".join(words[ends + 1 : -1]))
    (tmp_path / "test.txt").write_text(f"{words[-1]} {words[1]}\n")
    corpus = [tmp_path / name for name in ("train.txt", "valid.txt", "test.txt")]
    found = convert_torch(case / "model.pt", corpus=corpus)
    vocabulary = found.tokenizer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == words
    assert found.tokenizer(words[0]).input_ids == [ends, 0] and found.model.config.eos_token_id == ends
    assert found.model.config.dropout == 0.2
    output = tmp_path / "model"
    found.model.save_pretrained(output)
    found.tokenizer.save_pretrained(output)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    prompt = tokenizer(words[0], return_tensors="pt").input_ids
    ids = prompt
    for _ in range(4):
        ids = torch.cat([ids, found.reference(ids)[:, -1:].argmax(-1)], dim=1)
    grown = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(grown, ids)
    with pytest.raises(InputError, match="--corpus: 3 tokens, but the embeddings of the model have 77 rows"):
        convert_torch(case / "model.pt", corpus=corpus[2:])


def test_modules_without_biases_in_a_row_and_other_heads(tmp_path):
    """Each kind of model that no fixture has, by the self-check, whose reference are torch's own modules."""
    path = tmp_path / "model.pt"
    lower, upper = nn.GRU(4, 6, bias=False), nn.GRU(6, 6, num_layers=2, bias=False)
    chain = weights_of(words=nn.Embedding(9, 4), second=upper, first=lower, out=nn.Linear(6, 9, bias=False))
    torch.save({"state": chain, "best": torch.tensor(0.5).numpy().max(), "itos": [f"w{i}" for i in range(9)]}, path)
    with pytest.raises(InputError, match=r"several recurrent modules \(second: GRU 6 -> 6, 2 layers; first: GRU 4"):
        convert_torch(path)
    found = convert_torch(path, rnn=["first", "second"])
    assert found.model.config.num_hidden_layers == 3 and not found.model.config.lm_head_bias
    assert found.tokenizer("w3 w1").input_ids == [3, 1] and found.model.config.eos_token_id is None
    assert check_conversion(found.model, found.reference).passed
    rising = {"low": nn.LSTM(4, 3, bidirectional=True), "high": nn.LSTM(6, 5, num_layers=2, bidirectional=True)}
    torch.save(weights_of(words=nn.Embedding(9, 4), **rising, out=nn.Linear(10, 2)), path)
    found = convert_torch(path, task="tagger", rnn=["low", "high"])
    assert found.model.config.layer_sizes == [6, 10, 10] and check_conversion(found.model, found.reference).passed
    both = nn.LSTM(4, 3, num_layers=2, bidirectional=True)
    for outputs, width, options, problem, num_labels in (
        (1, 6, {"pooling": "max", "problem_type": "single_label_classification"}, "single_label_classification", 2),
        (1, 6, {"pooling": "mean", "problem_type": "regression"}, "regression", 1),
        (4, 18, {"problem_type": "multi_label_classification"}, "multi_label_classification", 4),
        (4, 6, {"pooling": "last"}, None, 4),
    ):
        state = weights_of(words=nn.Embedding(9, 4), net=both, out=nn.Linear(width, outputs))
        torch.save([{"_orig_mod." + name: one.half() for name, one in state.items()}, {"labels": list("abcd")}], path)
        found = convert_torch(path, task="classifier", **options)
        config = found.model.config
        assert (config.problem_type, config.num_labels) == (problem, num_labels)
        assert config.pooling == options.get("pooling", "concat") and found.model.dtype == torch.float32
        assert check_conversion(found.model, found.reference).passed
        if num_labels == 2:
            ids = torch.tensor([[1, 2, 3]])
            with torch.no_grad():
                logits, probabilities = found.reference(ids), found.model(ids).logits.softmax(-1)
            assert logits[0, 0] == 0
            torch.testing.assert_close(probabilities[:, 1], logits[:, 1].sigmoid())


def test_every_choice_names_what_was_found_and_the_flag_that_decides(tmp_path):
    path, rnn = tmp_path / "model.pt", nn.LSTM(4, 4)
    words, more, out = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 9)

    def refused(message, state, **options):
        torch.save(state, path)
        with pytest.raises(InputError, match=message) as error:
            convert_torch(path, **options)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    state = weights_of(words=words, more=more, rnn=rnn, out=out)
    refused(r"several matrices may be the embedding, words.weight \[9, 4\], more.weight .* by --embedding", state)
    refused(r"no place for more.weight \[9, 4\]", state, embedding="words", output="out")
    refused(r"several matrices may be the output layer, more.weight .* by --output", state, embedding="words")
    refused("--output nowhere: no such matrix; there are words.weight", state, output="nowhere")
    refused("--embedding x: no such matrix", state, embedding="x")
    refused("--rnn x: no such module; there are rnn: LSTM 4 -> 4, 1 layer$", state, rnn=["x"])
    state = weights_of(words=words, rnn=rnn, hidden=nn.Linear(4, 4), norm=nn.BatchNorm1d(4), out=out)
    refused(r"no place for hidden.weight \[4, 4\], hidden.bias \[4\], norm.", state, output="out")
    state = weights_of(words=words, rnn=nn.RNN(4, 4), out=out)
    refused("rnn: RNN 4 -> 4, 1 layer: tanh or relu.* give --nonlinearity", state)
    state = weights_of(words=words, rnn=rnn, out=nn.Linear(4, 3))
    refused("out.weight has 3 outputs: --task classifier or --task tagger", state)
    refused("--task lm: 3 outputs for 9 tokens", state, task="lm")
    refused("--nonlinearity is for an nn.RNN, but rnn: LSTM", state, task="tagger", nonlinearity="relu")
    refused("a classifier of what: --pooling last", state, task="classifier")
    refused("--pooling concat, but out.weight reads 4 features", state, task="classifier", pooling="concat")
    refused(
        "with one output: --problem_type regression, or",
        weights_of(words=words, rnn=rnn, out=nn.Linear(4, 1)),
        task="classifier",
        pooling="last",
    )
    both = weights_of(words=words, rnn=nn.LSTM(4, 2, bidirectional=True), out=out)
    refused("--task classifier or --task tagger", both)
    refused("--task lm: it reads in both directions", both, task="lm")
    refused("proj_size, which hfseq does not have", weights_of(words=words, rnn=nn.LSTM(4, 4, proj_size=2), out=out))
    lacking = weights_of(words=words, rnn=nn.LSTM(4, 4, num_layers=2), out=out)
    del lacking["rnn.bias_ih_l1"]
    refused("it lacks rnn.bias_ih_l1", lacking)
    narrow = {"below": nn.LSTM(4, 3), "above": nn.LSTM(3, 4)}
    state = weights_of(words=words, **narrow, out=out)
    refused("--rnn: below reads 4, but below has 3", state, rnn=["below", "below"])
    refused("--rnn: above reads 3, but above has 4", state, rnn=["above", "above"])
    mixed = weights_of(words=words, below=nn.LSTM(4, 4), above=nn.GRU(4, 4), out=out)
    refused("cells or directions differ", mixed, rnn=["below", "above"])
    crf = weights_of(words=words, rnn=rnn, out=nn.Linear(4, 3))
    crf |= {"crf.start_transitions": torch.ones(3), "crf.end_transitions": torch.ones(3)}
    refused("it lacks crf.transitions", crf)
    refused("--task classifier, but crf.transitions is of a tagger", crf, task="classifier", pooling="last")
    models = {"a": weights_of(words=words, rnn=rnn, out=out), "b": {"c": weights_of(words=words, rnn=rnn, out=out)}}
    refused("weights of several models: a, b.c; choose by --weights", models)
    refused("--weights c: no such weights; there are a, b.c", models, weights="c")
    torch.save(models, path)
    assert convert_torch(path, weights="b.c").model.config.vocab_size == 9
    refused("no nn.LSTM, nn.GRU or nn.RNN in it; it has 0.weight, 0.bias", nn.Sequential(nn.Linear(2, 2)).state_dict())
    refused("nn.LSTMCell and the like", nn.LSTMCell(2, 2).state_dict())
    refused("no nn.LSTM, nn.GRU or nn.RNN in it; it has epoch", {"epoch": 3})


def test_vocabularies_that_do_not_fit(tmp_path):
    case = PEERS / "torch" / "lm_lstm"
    words = read_lines(case / "vocab.txt")

    def refused(message, name, text):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            convert_torch(case / "model.pt", vocab=tmp_path / name)

    refused("words.txt: 21 tokens, but the embeddings of the model have 22 rows", "words.txt", "\n".join(words[1:]))
    doubled = [*words[:-1], words[4]]
    refused(f"the token {words[4]!r} has the ids 4 and 21; keep one", "words.txt", "\n".join(doubled))
    refused("no vocabulary: neither a list of tokens nor tokens with ids from 0", "v.json", '{"a": 0, "b": 2}')
    refused("not JSON", "v.json", "{")
    refused("not a tokenizer of the tokenizers library", "t.json", '{"model": 1}')
    (tmp_path / "v.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    tokenizer = convert_torch(case / "model.pt", vocab=tmp_path / "v.json", lowercase=True).tokenizer
    assert tokenizer(words[7].upper()).input_ids == [2, 7] and tokenizer("unheard").input_ids == [2, 1]
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    tokenizer.save_pretrained(tmp_path)
    again = convert_torch(case / "model.pt", vocab=tmp_path / "tokenizer.json").tokenizer
    assert again(words[7]).input_ids == [2, 7] and again.unk_token == "<unk>"
    with pytest.raises(InputError, match="give one of them"):
        convert_torch(case / "model.pt", vocab=tmp_path / "v.json", corpus=[tmp_path / "v.json"])
    with pytest.raises(InputError, match="labels.txt: 2 names of classes, but the model has 5"):
        (tmp_path / "labels.txt").write_text("a\nb\na\n")
        converted("tagger_gru/model.pt", task="tagger", labels=tmp_path / "labels.txt")
