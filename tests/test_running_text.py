import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel

from hfseq import CnnConfig, GruConfig, LstmConfig, RnnConfig, load_state, save_state
from hfseq.data.embedded.documentation import documentation_rows
from hfseq.data.running_text import TokenWindows, encode_text
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer

SIZES = {"vocab_size": 30, "hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2, "dropout": 0.0}


# Windows


@given(
    tokens=st.integers(2, 300),
    length=st.integers(1, 40),
    columns=st.integers(1, 6),
    processes=st.sampled_from([1, 2, 3]),
    seed=st.none() | st.integers(0, 9),
    epoch=st.integers(0, 3),
)
# Two ends of windows that are rounded to the same token.
@example(tokens=130, length=2, columns=2, processes=2, seed=2, epoch=2)
@settings(max_examples=200, deadline=None)
def test_each_token_is_predicted_once_after_the_one_before(tokens, length, columns, processes, seed, epoch):
    columns *= processes
    if tokens - 1 < columns:
        return
    ids = np.arange(1, tokens + 1)
    parts = [
        TokenWindows(ids, length, columns, seed=seed, rank=rank, num_replicas=processes) for rank in range(processes)
    ]
    for part in parts:
        part.set_epoch(epoch)
    batches = [list(part) for part in parts]
    assert {len(windows) for windows in batches} == {len(parts[0])}
    # What one process would have.
    whole = TokenWindows(ids, length, columns, seed=seed)
    whole.set_epoch(epoch)
    for number, window in enumerate(whole):
        for name in ("input_ids", "labels", "shift_labels"):
            assert torch.equal(window[name], torch.cat([windows[number][name] for windows in batches])), name
        assert window["input_ids"].shape == window["labels"].shape and window["labels"].shape[1] > 0
    inputs = torch.cat([window["input_ids"] for window in whole], dim=1).flatten()
    labels = torch.cat([window["labels"] for window in whole], dim=1).flatten()
    counted = labels != -100
    assert labels[counted].tolist() == ids[1:].tolist()
    assert inputs[counted].tolist() == ids[:-1].tolist()
    assert not inputs[~counted][1:].any()  # the padding, after the last token itself


def test_lengths_vary_with_seed_and_epoch_around_the_mean():
    windows = TokenWindows(np.zeros(100_001, int), 70, 10, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        windows.set_epoch(epoch)
        epochs.append(np.diff(windows.bounds()))
    assert epochs[0].tolist() == epochs[2].tolist() != epochs[1].tolist()
    for lengths in epochs:
        assert lengths.sum() == 10_000 and len(lengths) == len(windows) == 143
        assert 65 < np.median(lengths) < 78
        # About one in twenty is half as long.
        assert 1 <= (lengths < 50).sum() <= 18
    fixed = np.diff(TokenWindows(np.zeros(100_001, int), 70, 10).bounds())
    assert set(fixed[:-1]) == {70}


@pytest.mark.parametrize(
    ("tokens", "columns", "processes", "message"),
    [
        (5, 5, 1, r"a text of 5 tokens is too short for a batch size of 5; reduce it"),
        (50, 5, 2, "a batch size of 5 cannot be divided evenly among 2 processes"),
    ],
)
def test_texts_that_cannot_be_shared(tokens, columns, processes, message):
    with pytest.raises(InputError, match=message):
        TokenWindows(np.zeros(tokens, int), 4, columns, num_replicas=processes)


def test_encoding_a_text(tmp_path):
    tokenizer = train_tokenizer(["a b , c", "b <unk> a"], model="whitespace")
    rows = ["a b , c", "", None, " b <unk>\na"]
    text = encode_text(rows, tokenizer)
    names = ["▁a", "▁b", "▁,", "▁c", "</s>", "</s>", "</s>", "▁b", "▁<unk>", "</s>", "▁a", "</s>"]
    assert tokenizer.convert_ids_to_tokens(text.ids) == names
    assert text.words == len(names)
    kept = encode_text(iter(rows), tokenizer, tmp_path)
    assert isinstance(kept.ids, np.memmap)
    assert kept.ids.tolist() == text.ids.tolist() and kept.words == text.words
    assert not list(tmp_path.iterdir())
    for one, other in zip(TokenWindows(text.ids, 3, 2), TokenWindows(kept.ids, 3, 2), strict=True):
        assert torch.equal(one["labels"], other["labels"])
    with pytest.raises(InputError, match="there is no text"):
        encode_text([], tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="with an EOS token"):
        encode_text(rows, tokenizer)


def test_the_documentation_has_text_in_each_split():
    splits = documentation_rows()
    assert sum(len(text.split()) for text in splits["train"]["text"]) > 100_000
    texts = [text for rows in splits.values() for text in rows["text"]]
    assert len(set(texts)) > 0.95 * len(texts)
    assert any("import statement" in text for text in texts)


# States in files


@pytest.mark.parametrize("config", [RnnConfig, LstmConfig, GruConfig, CnnConfig])
def test_a_text_in_calls_with_the_state_in_a_file_between_them(config, tmp_path):
    model = AutoModelForCausalLM.from_config(config(**SIZES)).eval()
    ids = torch.randint(4, 30, (2, 23))
    whole = model(ids).logits
    logits, state = [], None
    for start in range(0, 23, 5):
        outputs = model(ids[:, start : start + 5], cache=state, use_cache=True)
        logits.append(outputs.logits)
        save_state(outputs.cache, tmp_path / "state.safetensors")
        state = load_state(tmp_path / "state.safetensors")
        assert state.get_seq_length() == min(start + 5, 23)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole)
    # generate() goes on from it, too.
    outputs = model(ids[:, :-1], use_cache=True)
    save_state(outputs.cache, tmp_path / "state.safetensors")
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    loaded = load_state(tmp_path / "state.safetensors")
    assert torch.equal(model.generate(ids, cache=loaded, **options), expected)


def test_what_is_no_state_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(InputError, match="no token has been seen"):
        save_state(DynamicCache(), path)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(InputError, match="no state of an hfseq language model"):
        save_state(gpt(torch.tensor([[1, 2]]), use_cache=True).cache, path)
    for content in (b"", b"\x00" * 50, None):
        if content is not None:
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(InputError, match="no state that save_state wrote"):
            load_state(path)
    model = AutoModelForCausalLM.from_config(GruConfig(**SIZES))
    save_state(model(torch.tensor([[5]]), use_cache=True).cache, path)
    other = AutoModelForCausalLM.from_config(RnnConfig(**SIZES))
    with pytest.raises(ValueError, match="belongs to another model"):
        other(torch.tensor([[5]]), cache=load_state(path))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="no state that save_state wrote"):
        load_state(path)
