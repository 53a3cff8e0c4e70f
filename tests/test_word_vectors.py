"""Word vectors: whose row they fill, in which files they are found, and what a broken file gets."""

import gzip
import logging
import tracemalloc

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)

from hfseq import LstmConfig, LstmForCausalLM, LstmForConditionalGeneration
from hfseq.errors import InputError
from hfseq.tokenization import train_tokenizer
from hfseq.word_vectors import WordVectorCoverage, load_word_vectors

TEXTS = ["the man has a hut", "The dog (a man's) sees the hut, the man", "Ein Mann mit Hut"] * 3
VECTORS = {"the": [1, 2, 3], "man": [4, 5, 6], ",": [7, 8, 9], "hut": [-1, 0.5, 1e-3], "unseen": [0, 0, 1]}


def write(path, vectors, *, header=False, end="\n", encoding="utf-8", extra=()):
    pairs = [*vectors.items(), *extra]
    lines = [f"{len(pairs)} 3"] * header + [f"{word} {' '.join(map(str, values))}" for word, values in pairs]
    path.write_text("".join(line + end for line in lines), encoding=encoding, newline="")
    return path


@pytest.fixture
def glove(tmp_path):
    return write(tmp_path / "glove.txt", VECTORS)


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(TEXTS, model="word", vocab_size=100)


def make_model(tokenizer, kind=LstmForCausalLM, **overrides):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 4, "embedding_size": 3}
    return kind(LstmConfig(**sizes | overrides))


def filled(tokenizer, path, **kwargs):
    """Token to vector, of those that changed in a model, and the coverage."""
    model = make_model(tokenizer)
    before = model.get_input_embeddings().weight.detach().clone()
    coverage = load_word_vectors(model, tokenizer, path, **kwargs)
    after = model.get_input_embeddings().weight.detach()
    rows = (before != after).any(1).nonzero().flatten().tolist()
    tokens = tokenizer.convert_ids_to_tokens(rows)
    return {
        token: [round(value, 6) for value in after[row].tolist()] for token, row in zip(tokens, rows, strict=True)
    }, coverage


# Files


def test_word_level(words, glove):
    got, coverage = filled(words, glove, ignore_case=False)
    assert got == {"▁the": VECTORS["the"], "▁man": VECTORS["man"], ",": VECTORS[","], "▁hut": VECTORS["hut"]}
    assert coverage == (4, len(words) - 4, 0)
    assert coverage.ratio == 4 / (len(words) - 4)
    assert str(coverage) == f"4 of {len(words) - 4} words of the tokenizer ({coverage.ratio:.1%}) have a vector"
    assert WordVectorCoverage(0, 0).ratio == 0


@pytest.mark.parametrize("header", [False, True], ids=["glove", "fasttext"])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"], ids=["plain", "trailing space", "windows"])
@pytest.mark.parametrize("packed", [False, True], ids=["text", "gz"])
def test_formats(words, glove, tmp_path, header, end, packed):
    path = write(tmp_path / "other.vec", VECTORS, header=header, end=end)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert filled(words, path) == filled(words, glove)


def test_byte_order_mark_and_blank_lines(words, glove, tmp_path):
    path = write(tmp_path / "bom.txt", VECTORS, encoding="utf-8-sig", end="\n\n")
    assert filled(words, path) == filled(words, glove)


def test_words_with_spaces_and_odd_ones(words, glove, tmp_path):
    odd = {". . .": [1, 1, 1], "at name@domain.com": [1, 1, 1], "\u00a0": [1, 1, 1], "\x85": [2, 2, 2], "5": [3, 3, 3]}
    path = write(tmp_path / "odd.txt", odd | VECTORS | {"New York": [0, 0, 0], "1\u20282": [0, 0, 0]})
    assert filled(words, path) == filled(words, glove)
    path = write(tmp_path / "odd.vec", odd | VECTORS, header=True)
    assert filled(words, path) == filled(words, glove)


@pytest.mark.parametrize("space", ["\u00a0", "\u202f"])
def test_white_space_may_be_a_word(space, words, tmp_path):
    """Some published vectors have one of a no-break space; a token of it is not empty, nor the word beside it."""
    path = write(tmp_path / "spaces.txt", {space: [7, 8, 9]} | VECTORS)
    spaced = train_tokenizer([*TEXTS, f"the{space}hut {space}"], model="word", vocab_size=100)
    plain = [token for token in spaced.get_vocab() if token in (space, f"▁{space}")]
    assert plain
    got, coverage = filled(spaced, path)
    assert [got[token] for token in plain] == [[7, 8, 9]] * len(plain)
    assert coverage.total == len(spaced) - 4
    other = train_tokenizer(TEXTS, model="word", vocab_size=100)
    assert load_word_vectors(make_model(other), other, path, add_words=1).added == 1
    assert f"▁{space}" in other.get_vocab()


def test_the_first_vector_of_a_word_counts(words, glove, tmp_path):
    path = write(tmp_path / "twice.txt", VECTORS, extra=[("the", [0, 0, 0]), ("hut", [0, 0, 0])])
    assert filled(words, path) == filled(words, glove)


def test_a_wrong_count_in_the_header_is_told(words, tmp_path, caplog):
    path = write(tmp_path / "short.vec", VECTORS, header=True)
    text = path.read_text()
    assert filled(words, path) and not caplog.text
    path.write_text(text.replace("5 3", "9 3", 1))
    with caplog.at_level(logging.WARNING, logger="hfseq"):
        filled(words, path)
    assert "promises 9 vectors, but there are 5" in caplog.text


def test_memory_is_that_of_the_vocabulary(words, tmp_path):
    many = {f"word{index}": [0.125, 0.25, 0.5] for index in range(25_000)}
    path = write(tmp_path / "many.txt", many | VECTORS)
    model = make_model(words)
    load_word_vectors(model, words, path)
    tracemalloc.start()
    load_word_vectors(model, words, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 500_000
    assert peak < 200_000


# Which token a word is


def test_case(words, tmp_path):
    path = write(tmp_path / "cased.txt", {"The": [1, 1, 1], "MAN": [2, 2, 2], "man": [3, 3, 3], "HUT": [4, 4, 4]})
    exact, _ = filled(words, path, ignore_case=False)
    assert exact == {"▁The": [1, 1, 1], "▁man": [3, 3, 3]}
    got, coverage = filled(words, path)
    assert got == exact | {"▁the": [1, 1, 1], "▁hut": [4, 4, 4], "▁Hut": [4, 4, 4]}
    assert coverage.found == 5
    lower = train_tokenizer(TEXTS, model="word", lowercase=True, vocab_size=100)
    assert filled(lower, path)[0] == {"▁the": [1, 1, 1], "▁man": [3, 3, 3], "▁hut": [4, 4, 4]}


def test_words_without_a_space_before_them(tmp_path):
    tokenizer = train_tokenizer(["(man) 漢字 hut", "man"], model="word", vocab_size=100)
    assert {"man", "▁man", "字", ")"} <= tokenizer.get_vocab().keys()
    path = write(tmp_path / "v.txt", {"man": [1, 1, 1], "字": [2, 2, 2], ")": [3, 3, 3], "▁": [4, 4, 4]})
    assert filled(tokenizer, path)[0] == {"man": [1, 1, 1], "▁man": [1, 1, 1], "字": [2, 2, 2], ")": [3, 3, 3]}


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece", "character"])
def test_pieces_of_own_tokenizers(kind, tmp_path):
    """Only a piece that begins a word is one; marks are words with or without a space before them."""
    texts = ["the man mans the manly hut, the man.", "human hut"] * 20
    tokenizer = train_tokenizer(texts, model=kind, vocab_size=26 if kind != "character" else 60)
    pieces = set(tokenizer.get_vocab()) - {"<pad>", "<s>", "</s>", "<unk>"}
    everything = {piece.removeprefix("▁"): [index, 1, 2] for index, piece in enumerate(sorted(pieces))}
    everything.pop("")
    got, coverage = filled(tokenizer, write(tmp_path / "v.txt", everything), ignore_case=False)
    expected = {piece for piece in pieces if piece != "▁" and (piece[0] == "▁" or piece in ".,")}
    assert set(got) == expected and {",", "."} <= expected
    assert ("▁man" in expected) == (kind != "character")
    assert coverage.found == coverage.total == len(expected) < len(pieces)


def check(tokenizer, tmp_path, expected, vectors):
    path = write(tmp_path / "v.txt", vectors)
    got, coverage = filled(tokenizer, path, ignore_case=False)
    assert got == {token: vectors[word] for token, word in expected.items()}
    assert coverage.found == len(expected)


# For tokenizers with marks and pieces; every piece is in it as a word too.
OF_PIECES = VECTORS | {"ing": [1, 0, 0], "##ing": [2, 0, 0], "Männer": [3, 0, 0], "'s": [4, 0, 0], "Ġman": [5, 0, 0]}
SPECIAL = {"[CLS]": [9, 9, 9], "[UNK]": [9, 9, 9], "<pad>": [9, 9, 9], "</s>": [9, 9, 9], "<unk>": [9, 9, 9]}


def test_bert(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "man", "##ing", "##man", ",", "##,", "ing"]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)})
    expected = {"the": "the", "man": "man", ",": ",", "ing": "ing"}
    check(tokenizer, tmp_path, expected, OF_PIECES | SPECIAL)


def byte_pairs(tokens):
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for token in tokens:
        parts = [*token.removesuffix("</w>")]
        if token.endswith("</w>"):
            parts[-1] += "</w>"
        left = parts[0]
        for right in parts[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            for part in (left, right, left + right):
                vocabulary.setdefault(part, len(vocabulary))
            left += right
    return vocabulary, merges


def test_gpt2(tmp_path):
    tokens = ["Ġman", "man", "Ġthe", "Ġing", "ing", "'s", "ĠMÃ¤nner"]
    vocabulary, merges = byte_pairs(tokens)
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_tokens(["unseen"])
    expected = {"Ġman": "man", "Ġthe": "the", "Ġing": "ing", "'s": "'s", ",": ",", "ĠMÃ¤nner": "Männer"}
    check(tokenizer, tmp_path, expected | {"unseen": "unseen"}, OF_PIECES | SPECIAL)


def test_clip(tmp_path):
    vocabulary, merges = byte_pairs(["man</w>", "the</w>", "un"])
    vocabulary |= {
        token: len(vocabulary) + index
        for index, token in enumerate(["un</w>", ",</w>", "q</w>", "<|startoftext|>", "<|endoftext|>"])
    }
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    check(tokenizer, tmp_path, {"man</w>": "man", "the</w>": "the", ",</w>": ","}, OF_PIECES | {"un": [6, 0, 0]})


def test_t5(tmp_path):
    pieces = ["<pad>", "</s>", "<unk>", "▁man", "▁", "man", ",", "ing", "▁the", "▁,"]
    tokenizer = T5Tokenizer(vocab=[(piece, -float(index)) for index, piece in enumerate(pieces)], extra_ids=2)
    expected = {"▁man": "man", ",": ",", "▁the": "the", "▁,": ","}
    check(tokenizer, tmp_path, expected, OF_PIECES | SPECIAL | {"<extra_id_0>": [9, 9, 9]})


def test_a_plain_word_level_tokenizer(tmp_path):
    """Without an unknown token, it cannot be asked about words that it does not know."""
    core = Tokenizer(models.WordLevel({"<pad>": 0, "the": 1, "man": 2, ",": 3}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    check(tokenizer, tmp_path, {"the": "the", "man": "man", ",": ","}, VECTORS | SPECIAL)


# Which model


def test_bert_model(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "man"]
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})
    small = {"hidden_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    model = BertForSequenceClassification(BertConfig(vocab_size=10, **small))
    load_word_vectors(model, tokenizer, write(tmp_path / "v.txt", VECTORS), freeze=True)
    embeddings = model.bert.embeddings.word_embeddings.weight
    assert embeddings[5:7].tolist() == [VECTORS["the"], VECTORS["man"]]
    assert not embeddings.requires_grad
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "bert.embeddings.word_embeddings.weight"
    ]


def test_special_tokens_and_others_stay(words, tmp_path):
    model = make_model(words)
    before = model.get_input_embeddings().weight.detach().clone()
    special = dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>"], [9, 9, 9])
    load_word_vectors(model, words, write(tmp_path / "v.txt", special | {"man": [1, 2, 3]}))
    changed = (model.get_input_embeddings().weight != before).any(1).nonzero().flatten().tolist()
    assert changed == [words.get_vocab()["▁man"]]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_or_tuned_tied_or_not(words, glove, tied, freeze):
    # A tied output layer of another width has a projection before it; here it has none.
    model = make_model(words, tie_word_embeddings=tied, hidden_size=3)
    load_word_vectors(model, words, glove, freeze)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = words(TEXTS[1], return_tensors="pt").input_ids
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 1.0).step()
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == ({"model.embed_tokens.weight"} if freeze else set())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_type_of_the_embeddings(words, glove, dtype):
    model = make_model(words).to(dtype)
    load_word_vectors(model, words, glove)
    row = model.get_input_embeddings().weight[words.get_vocab()["▁hut"]]
    assert row.dtype == dtype
    torch.testing.assert_close(row.detach(), torch.tensor(VECTORS["hut"], dtype=dtype))


def test_sides_of_a_seq2seq_model(words, glove, tmp_path):
    other = write(tmp_path / "other.txt", {"man": [8, 8, 8]})
    man = words.get_vocab()["▁man"]
    model = make_model(words, LstmForConditionalGeneration, share_encoder_decoder_embeddings=False)
    load_word_vectors(model, words, glove)
    load_word_vectors(model.decoder, words, other, freeze=True)
    assert model.model.embed_tokens.weight[man].tolist() == VECTORS["man"]
    assert model.decoder.embed_tokens.weight[man].tolist() == [8, 8, 8]
    assert model.lm_head.weight is model.decoder.embed_tokens.weight
    assert model.model.embed_tokens.weight.requires_grad and not model.lm_head.weight.requires_grad
    shared = make_model(words, LstmForConditionalGeneration)
    load_word_vectors(shared, words, glove)
    assert shared.decoder.embed_tokens.weight[man].tolist() == shared.lm_head.weight[man].tolist() == VECTORS["man"]


def test_vectors_survive_saving(words, glove, tmp_path):
    model = make_model(words)
    load_word_vectors(model, words, glove)
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


# More words


MORE = VECTORS | {"n't": [1, 1, 1], "Hund": [2, 2, 2], "don": [3, 3, 3], ";": [4, 4, 4], "late": [5, 5, 5]}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_added_words(words, tmp_path, tied, shared):
    tokenizer = AutoTokenizer.from_pretrained(save(words, tmp_path / "words"))
    flags = {"tie_word_embeddings": tied, "share_encoder_decoder_embeddings": shared}
    model = make_model(tokenizer, LstmForConditionalGeneration, **flags).eval()
    size = len(tokenizer)
    texts = ["the man has a hut", "The dog (a man's) sees the hut, the man"]
    before = [tokenizer(text).input_ids for text in texts]
    kept = model.model.embed_tokens.weight[:4].detach().clone()

    coverage = load_word_vectors(model, tokenizer, write(tmp_path / "v.txt", MORE), add_words=4)
    assert coverage.added == 4 and coverage.total == size - 4
    assert str(coverage).endswith("; 4 more words added")
    # In the order of the file; what the tokenizer would split, "n't", is not among them, nor what comes too late.
    # "," has the token of a comma after a word, but none yet of one after a space.
    assert tokenizer.convert_ids_to_tokens(range(size, len(tokenizer))) == ["▁,", "▁unseen", "▁Hund", "▁don"]
    assert len(tokenizer) == model.config.vocab_size == size + 4
    matrices = [model.model.embed_tokens.weight, model.decoder.embed_tokens.weight, model.lm_head.weight]
    assert {len(matrix) for matrix in matrices} == {size + 4}
    assert model.model.embed_tokens.weight[size:].tolist() == [MORE[word] for word in (",", "unseen", "Hund", "don")]
    assert torch.equal(model.model.embed_tokens.weight[:4], kept)
    assert (matrices[0] is matrices[1]) == shared and (matrices[1] is matrices[2]) == tied

    # Old texts are encoded as before, new words have tokens, and spaces come back.
    assert [tokenizer(text).input_ids for text in texts] == before
    text = "the unseen Hund, don (a man)"
    ids = tokenizer(text).input_ids
    assert {size + 1, size + 2, size + 3} < set(ids) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text

    model.save_pretrained(save(tokenizer, tmp_path / "both"))
    again = AutoTokenizer.from_pretrained(tmp_path / "both")
    assert again(text).input_ids == ids and again.get_vocab() == tokenizer.get_vocab()
    assert again.decode(ids, skip_special_tokens=True) == text
    inputs = again(text, return_tensors="pt")
    labels = inputs.input_ids
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "both")
    torch.testing.assert_close(loaded(**inputs, labels=labels).logits, model(**inputs, labels=labels).logits)


def save(thing, path):
    thing.save_pretrained(path)
    return path


def test_added_words_of_a_lowercasing_tokenizer(tmp_path):
    tokenizer = train_tokenizer(["the man"], model="word", lowercase=True, vocab_size=100)
    path = write(tmp_path / "v.txt", {"Hut": [1, 1, 1], "The": [2, 2, 2], "hut": [3, 3, 3], "cold": [4, 4, 4]})
    model = make_model(tokenizer)
    assert load_word_vectors(model, tokenizer, path, add_words=9) == (1, 2, 2)
    rows = dict(zip(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), range(99), strict=False))
    weight = model.get_input_embeddings().weight
    assert weight[rows["▁hut"]].tolist() == [1, 1, 1] and weight[rows["▁cold"]].tolist() == [4, 4, 4]
    assert tokenizer("Hut cold").input_ids[:2] == [rows["▁hut"], rows["▁cold"]]
    tokenizer = train_tokenizer(["the man"], model="word", lowercase=True, vocab_size=100)
    model = make_model(tokenizer)
    assert load_word_vectors(model, tokenizer, path, add_words=9, ignore_case=False) == (0, 2, 2)
    assert model.get_input_embeddings().weight[rows["▁hut"]].tolist() == [3, 3, 3]


def test_added_words_and_added_tokens(words, tmp_path):
    """Ids go on after those of tokens that were added before; a model with rows to spare is not made larger."""
    tokenizer = AutoTokenizer.from_pretrained(save(words, tmp_path / "words"))
    tokenizer.add_tokens(["[mine]"])
    size = len(tokenizer)
    model = make_model(tokenizer, vocab_size=size + 10)
    load_word_vectors(model, tokenizer, write(tmp_path / "v.txt", MORE), add_words=2)
    assert model.config.vocab_size == size + 10
    assert tokenizer.convert_ids_to_tokens([size - 1, size, size + 1]) == ["[mine]", "▁,", "▁unseen"]
    again = AutoTokenizer.from_pretrained(save(tokenizer, tmp_path / "again"))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("unseen [mine]").input_ids[0] == size + 1 and size - 1 in again("unseen [mine]").input_ids


def test_a_vocabulary_of_the_vectors_alone(tmp_path):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
    model = make_model(tokenizer, vocab_size=2, bos_token_id=None, eos_token_id=None)
    assert load_word_vectors(model, tokenizer, write(tmp_path / "v.txt", VECTORS), add_words=100) == (0, 0, 5)
    assert tokenizer("man, other the").input_ids == [3, 4, 1, 2]


def test_added_words_of_a_tokenizer_whose_first_word_has_no_mark(tmp_path):
    core = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "▁the": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    model = make_model(tokenizer)
    assert load_word_vectors(model, tokenizer, write(tmp_path / "v.txt", VECTORS), add_words=1) == (2, 2, 1)
    ids = tokenizer("the man the").input_ids
    assert ids == [1, 3, 2] and tokenizer.decode(ids) == "the man the"


@pytest.mark.parametrize("kind", ["bpe", "character"])
def test_words_are_added_to_tokenizers_of_words_only(kind, glove):
    tokenizer = train_tokenizer(TEXTS, model=kind, vocab_size=60)
    with pytest.raises(InputError, match="add_words needs a tokenizer of whole words"):
        load_word_vectors(make_model(tokenizer), tokenizer, glove, add_words=5)


# Bad input

GOOD = b"the 1 2 3\nman 4 5 6\n"
PACKED = gzip.compress(GOOD * 1000)
SCRAMBLED = PACKED[:10] + bytes(255 - byte for byte in PACKED[10:])
BROKEN = {
    "too few values": (GOOD + b"hut 1 2\n", r"line 3: 2 values where 3 are expected"),
    "too many values": (GOOD + b"hut 1 2 3 4\n", r"line 3: 4 values where 3 are expected"),
    "only a word": (GOOD + b"hut\n", r"line 3: 0 values where 3 are expected"),
    "no word": (GOOD + b" 1 2 3\n", r"line 3: no word"),
    "no word at all": (GOOD + b"1 2 3\n", r"line 3: 2 values where 3 are expected"),
    "text": (GOOD + b"hut 1 x 3\n", r"line 3: 'x' is not a number"),
    "text of a word nobody needs": (GOOD + b"zzz 1 x 3\n", r"line 3: 'x' is not a number"),
    "two points in a word nobody needs": (GOOD + b"zzz 1 0.5.5 3\n", r"line 3: '0.5.5' is not a number"),
    "two spaces in a word nobody needs": (GOOD + b"zzz 1  3\n", r"line 3: '' is not a number"),
    "infinite in a word nobody needs": (GOOD + b"zzz 1 1e999 3\n", r"line 3: 1e999 is not finite"),
    "underscore": (GOOD + b"zzz 1 1_0 3\n", r"line 3: '1_0' is not a number"),
    "comma": (GOOD + b"hut 1 0,5 3\n", r"line 3: '0,5' is not a number"),
    "two points": (GOOD + b"hut 1 0.5.5 3\n", r"line 3: '0.5.5' is not a number"),
    "two spaces": (GOOD + b"hut 1  3\n", r"line 3: '' is not a number"),
    "nan": (GOOD + b"hut 1 nan 3\n", r"line 3: nan is not finite"),
    "nan of a word nobody needs": (GOOD + b"zzz 1 NaN 3\n", r"line 3: NaN is not finite"),
    "inf": (GOOD + b"hut 1 2 -inf\n", r"line 3: -inf is not finite"),
    "inf of a word nobody needs": (GOOD + b"zzz inf 2 3\n", r"line 3: inf is not finite"),
    "overflow": (GOOD + b"hut 1 1e39 3\n", r"line 3: 1e39 is not finite, or too large"),
    "not UTF-8": (GOOD + b"h\xfct 1 2 3\n", r"line 3: not UTF-8 \(byte 0xfc\)"),
    "bytes in a value": (GOOD + b"hut 1 2 \xff\n", r"line 3: .* is not a number"),
    "after a header": (b"3 3\n" + GOOD + b"hut 1 2\n", r"line 4: 2 values"),
    "after a blank line": (b"\n" + GOOD + b"hut 1 2\n", r"line 4: 2 values"),
    "first line": (b"hut 1 x 3\n" + GOOD, r"line 1: 'x' is not a number"),
    "first line, no values": (b"hut\n" + GOOD, r"line 1: 0 values"),
    "cut off": (PACKED[:-30], r"line \d+: the gzip file is truncated or damaged"),
    "damaged": (PACKED[:-8] + b"xxxxxxxx", r"line \d+: the gzip file is truncated or damaged"),
    "damaged inside": (SCRAMBLED, r"line \d+: the gzip file is truncated or damaged"),
    "damaged head": (b"\x1f\x8bxxxxxxxxxxxxxxxxxxxx", r"line 1: the gzip file is truncated or damaged"),
    "width of GloVe": (
        b"the 1 2 3 4 5\n",
        r"line 1: vectors of width 5, but .* LstmForCausalLM are 3 wide; set emb.*=5",
    ),
    "smaller width": (b"the 1 2\nman 3 4\n", r"line 1: vectors of width 2, but .* are 3 wide"),
    "width of a header": (b"2 50\nthe 1 2 3\n", r"line 1: vectors of width 50, but .* are 3 wide"),
    "empty": (b"", "empty, no vectors"),
    "blank": (b"\n\n", "empty, no vectors"),
    "header alone": (b"0 3\n", "empty, no vectors"),
    "a zip archive": (b"PK\x03\x04\x14\xff\n", r"line 1: "),
}


@pytest.mark.parametrize("add_words", [0, 5])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_changes_nothing(case, add_words, words, tmp_path):
    content, message = BROKEN[case]
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    model, vocabulary = make_model(words), dict(words.get_vocab())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_word_vectors(model, words, path, freeze=True, add_words=add_words)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert words.get_vocab() == vocabulary
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_file_of_another_language(words, tmp_path):
    with pytest.raises(InputError, match=rf"none of its 1 words is among the {len(words) - 4} words of the tokenizer"):
        load_word_vectors(make_model(words), words, write(tmp_path / "v.txt", {"xyz": [1, 2, 3]}))


def test_too_large_for_half_precision(words, tmp_path):
    path = write(tmp_path / "v.txt", {"the": [1, 70000, 1]})
    load_word_vectors(make_model(words), words, path)
    with pytest.raises(InputError, match="line 1: 70000 is not finite, or too large"):
        load_word_vectors(make_model(words).half(), words, path)
    # Values are read in single precision, whatever the embeddings are.
    with pytest.raises(InputError, match="line 1: 1e39 is not finite, or too large"):
        load_word_vectors(make_model(words).double(), words, write(path, {"the": [1, "1e39", 1]}))


def test_no_file(words, tmp_path):
    with pytest.raises(InputError, match="no such file of word vectors"):
        load_word_vectors(make_model(words), words, tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read"):
        load_word_vectors(make_model(words), words, tmp_path)


def test_a_tokenizer_of_another_model(words, glove):
    with pytest.raises(InputError, match=rf"ids up to {len(words) - 1}, but .* LstmForCausalLM have 5 rows"):
        load_word_vectors(make_model(words, vocab_size=5), words, glove)


def test_a_model_without_token_embeddings(words, glove):
    model = make_model(words)
    model.set_input_embeddings(torch.nn.Linear(3, 3))
    with pytest.raises(InputError, match="are a Linear, not nn.Embedding"):
        load_word_vectors(model, words, glove)
