"""Copying words beyond the vocabulary: what is found in texts, how it is padded, checked, decoded, and learned."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from hfseq import GruConfig, GruForConditionalGeneration
from hfseq.data.collation import CheckedCollator, check_batch
from hfseq.data.copying import CopyCollator, copy_sources, copy_targets, decode_copies
from hfseq.data.encoding import encode_texts
from hfseq.errors import InputError
from hfseq.tokenization import MODELS, train_tokenizer

TEXTS = ["the cat sat on the mat.", "a dog (big) said: no, the cat is on a mat, and big!"]
V = 100  # of the model, which has more than its tokenizer


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(TEXTS, model="word", vocab_size=60)


def bert():
    """WordPiece as BERT has it: lowercase without accents, words split at spaces and punctuation."""
    vocab = ["[PAD]", "[UNK]", "the", "cat", "##s", "sat", ",", "."]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def copies(tokenizer, texts, **kwargs):
    encoded = tokenizer(texts, **kwargs)
    return encoded, *copy_sources(tokenizer, texts, encoded, V)


# --- what is found -------------------------------------------------------------------------------------------------


def test_unknown_words_are_numbered_by_their_first_place(words):
    texts = ["the Quux sat, Zork (Quux) said the Quux.", "a dog"]
    encoded, ids, found = copies(words, texts)
    tokens = encoded.tokens(0)
    assert tokens[1] == tokens[4] == tokens[6] == tokens[10] == "<unk>"
    expected = encoded["input_ids"][0].copy()
    # After the bracket it is another word: there is no space before it.
    expected[1], expected[4], expected[6], expected[10] = V + 1, V + 4, V + 6, V + 1
    assert ids == [expected, encoded["input_ids"][1]]
    assert {place: word for place, word in enumerate(found[0]) if word} == {1: "▁Quux", 4: "▁Zork", 6: "Quux"}
    assert len(found[0]) == len(ids[0]) and found[1] == [""] * 3


def test_targets_copy_what_their_source_has(words):
    sources, targets = ["the Quux sat on Zork", "the Blah"], ["Zork: the Quux, Blah", "Quux (Blah Blah"]
    _, _, found = copies(words, sources)
    encoded = words(text_target=targets)
    labels = copy_targets(words, targets, encoded, found, V)
    unknown = words.unk_token_id
    assert [label for label in labels[0] if label >= V or label == unknown] == [V + 4, V + 1, unknown]
    assert [label for label in labels[1] if label >= V or label == unknown] == [unknown, unknown, V + 1]
    known = [[token for token in row if token != unknown] for row in encoded["input_ids"]]
    assert [[label for label in row if label < V and label != unknown] for row in labels] == known


def test_what_is_cut_off_cannot_be_copied(words):
    """With what `encode_texts` gives, which cuts."""
    texts, targets = ["the cat Quux sat Zork"], ["Quux Zork"]
    for length, expected in ((4, [V + 2, 3]), (5, [V + 2, 3]), (6, [V + 2, V + 4])):
        encoded, _ = encode_texts(words, texts, length)
        ids, found = copy_sources(words, texts, encoded, V)
        assert len(ids[0]) == len(found[0]) == length
        labels, _ = encode_texts(words, targets, 3, target=True)
        assert copy_targets(words, targets, labels, found, V)[0][:2] == expected


@pytest.mark.parametrize("normalization", ["nfc", "nfkc", "none"])
@pytest.mark.parametrize("lowercase", [True, False])
def test_one_word_in_several_forms(normalization, lowercase):
    """Case and Unicode form count as far as the tokenizer counts them."""
    tokenizer = train_tokenizer(TEXTS, model="word", vocab_size=60, normalization=normalization, lowercase=lowercase)
    _, ids, found = copies(tokenizer, ["the Zürich zürich Zu\u0308rich \uff3aürich"])
    same = {word for word in found[0] if word}
    first, small, apart, wide = ids[0][1:5]
    assert first == V + 1 and first != small or lowercase
    assert (small == first) is lowercase
    assert (apart == first) is (normalization != "none")
    assert (wide == first) is (normalization == "nfkc")
    assert len(same) == len({first, small, apart, wide})
    assert same <= {piece for piece, _ in pieces_of(tokenizer, "Zürich zürich Zu\u0308rich \uff3aürich")}


def pieces_of(tokenizer, text):
    backend = tokenizer.backend_tokenizer
    return backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))


# With what is composed, spaces of all kinds, scripts without spaces.
ALPHABET = [*"abxyÄü.,(!'5▁", "the", "cat", "Quux", " ", "  ", "\n", "\u00a0", "\u2003", "\u0308", "\u0323"]
ALPHABET += ["漢", "字", "か", "\u3099", "\u1112", "\u1161", "\u11ab"]


TOKENIZERS = {
    model: train_tokenizer([*TEXTS, "abcdefghijklmnopqrstuvwxyz"], model=model, vocab_size=60) for model in MODELS
}


@pytest.mark.parametrize("model", MODELS)
def test_a_text_copied_whole_is_decoded_as_if_all_were_known(model):
    """Any text; of words also what they are found to be: what the tokenizer looks up."""
    tokenizer = TOKENIZERS[model]
    unknown = tokenizer.unk_token_id

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(ALPHABET), max_size=12).map("".join))
    def check(text):
        encoded, (ids,), (found,) = copies(tokenizer, [text])
        assert [token >= V for token in ids] == [token == unknown for token in encoded["input_ids"][0]]
        assert decode_copies(tokenizer, [ids], [found], V) == [
            tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        ]
        if model == "word":
            pieces = [piece for piece, _ in pieces_of(tokenizer, text)]
            for piece, token in zip(pieces, ids[:-1], strict=True):
                assert token < V or (found[token - V], token - V) == (piece, pieces.index(piece))

    check()


@pytest.mark.parametrize("model", ["unigram", "bpe", "wordpiece", "character"])
def test_subwords_copy_the_characters_they_do_not_know(model):
    tokenizer = TOKENIZERS[model]
    text = "the ☃ cat☃ (字) is ☃"
    encoded, ids, found = copies(tokenizer, [text])
    assert tokenizer.unk_token_id in encoded["input_ids"][0] and tokenizer.unk_token_id not in ids[0]
    assert decode_copies(tokenizer, ids, found, V) == [text]


def test_another_tokenizer():
    """BERT's: words in lower case, which its decoder puts spaces between."""
    tokenizer = bert()
    _, ids, found = copies(tokenizer, ["The cats, Zürich sat ZURICH."])
    assert [word for word in found[0] if word] == ["zurich"]
    for clean, expected in {None: "the cats , zurich sat zurich .", True: "the cats, zurich sat zurich."}.items():
        assert decode_copies(tokenizer, ids, found, V, clean_up_tokenization_spaces=clean) == [expected]


def test_a_mark_of_the_unknown_in_a_text_stands_for_no_word(words):
    texts = ["the <unk> cat Quux"]
    encoded, ids, found = copies(words, texts, split_special_tokens=False)
    assert encoded["input_ids"][0][1] == words.unk_token_id == ids[0][1]
    assert [word for word in found[0] if word] == ["▁Quux"]


def test_tokenizers_that_cannot():
    with pytest.raises(InputError, match="ByT5Tokenizer has no token offsets; copying words needs a fast tokenizer"):
        copies(ByT5Tokenizer(), ["a"])
    none = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="[PAD]")
    with pytest.raises(InputError, match="has no unknown token, so there are no unknown words to copy"):
        copies(none, ["a"])
    with pytest.raises(InputError, match="has no unknown token"):
        copy_targets(none, ["a"], none(["a"]), [[]], V)


# --- decoding ------------------------------------------------------------------------------------------------------


def test_without_copies_it_is_the_decoder_of_the_tokenizer(words):
    rows = words(["the cat, (a dog)", "Quux is big!"])["input_ids"]
    for tokenizer, ids in ((words, rows), (bert(), [[2, 3, 4, 6, 1, 7, 0]])):
        for skip in (True, False):
            found = decode_copies(tokenizer, ids, [[]] * len(ids), V, skip_special_tokens=skip)
            assert found == tokenizer.batch_decode(ids, skip_special_tokens=skip)


def test_decoding_of_odd_ids(words):
    """Padding of labels, tokens that only the model has, and copies of places where no unknown word is."""
    cat = words.convert_tokens_to_ids("▁cat")
    sequence = [1, V + 1, cat, V - 1, V, V + 7, -100, V + 1, 2, 0]
    for row in (sequence, torch.tensor(sequence)):
        assert decode_copies(words, [row], [["", "▁Quux"]], V) == ["Quux cat Quux"]


# --- batches -------------------------------------------------------------------------------------------------------


def make_rows(tokenizer, sources, targets):
    """Rows as a data set has them."""
    encoded, ids, found = copies(tokenizer, sources)
    labels = copy_targets(tokenizer, targets, tokenizer(text_target=targets), found, V)
    return [
        {"input_ids": source, "attention_mask": mask, "copy_ids": copy_ids, "labels": label}
        for source, mask, copy_ids, label in zip(
            encoded["input_ids"], encoded["attention_mask"], ids, labels, strict=True
        )
    ]


@pytest.fixture
def model():
    torch.manual_seed(0)
    fields = {"pointer_generator": True, "unk_token_id": 3, "num_hidden_layers": 1}
    return GruForConditionalGeneration(GruConfig(vocab_size=V, hidden_size=8, **fields)).eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_collator(words, model, side):
    """Copies are padded where the ids are; each row's loss is what it is alone, as a copy's id knows no padding."""
    rows = make_rows(words, ["the cat sat on Quux, Zork and Quux", "Blah sat"], ["Zork, Quux", "Blah!"])
    before = [dict(row) for row in rows]
    words.padding_side = side
    try:
        collator = DataCollatorForSeq2Seq(words, model)
        collator = CheckedCollator(CopyCollator(collator), model)
        if side == "left":  # with it labels would be, too
            with pytest.raises(InputError, match="labels .* padded on the left"):
                collator(rows)
        labels = [torch.tensor([row.pop("labels")]) for row in rows]
        batch = collator(rows)
    finally:
        words.padding_side = "right"
    padding = slice(None, 7) if side == "left" else slice(3, None)
    assert batch["copy_ids"].shape == batch["input_ids"].shape == (2, 10)
    assert batch["copy_ids"][1, padding].tolist() == [0] * 7
    known = batch["copy_ids"] < V
    assert (batch["copy_ids"] == batch["input_ids"])[known].all() and (batch["input_ids"] == 3)[~known].all()
    for row, label in enumerate(labels):
        alone = {name: torch.tensor([value]) for name, value in before[row].items() if name != "labels"}
        padded = {name: batch[name][row : row + 1] for name in alone}
        torch.testing.assert_close(model(**padded, labels=label).loss, model(**alone, labels=label).loss)


def test_values_of_a_batch(words, model):
    rows = make_rows(words, ["the Quux sat", "Blah sat"], ["a Quux", "a Blah"])
    batch = dict(CopyCollator(DataCollatorForSeq2Seq(words, model))(rows))
    check_batch(batch, V)
    width = batch["input_ids"].shape[1]
    assert batch["labels"].max() >= V > batch["decoder_input_ids"].max()

    def refused(name, row, column, value, message):
        wrong = batch[name].clone()
        wrong[row, column] = value
        with pytest.raises(InputError, match=f"^{name} of shape .*: row {row}, column {column} is {value}, {message}"):
            check_batch(batch | {name: wrong}, V)

    refused("copy_ids", 1, 0, V + width, f"outside the vocabulary and what is copied, 0 to {V + width - 1}")
    refused("copy_ids", 0, 2, -1, "outside")
    refused("labels", 0, 1, V + width, f"outside the vocabulary, 0 to {V - 1}, and not -100 or in the row's copy_ids")
    refused("labels", 0, 1, V, "outside")  # the other row's
    refused("labels", 1, 1, V + 1, "outside")
    refused("decoder_input_ids", 1, 1, V, "outside the vocabulary")
    with pytest.raises(InputError, match=r"copy_ids has shape \(2, 3\), but input_ids has"):
        check_batch(batch | {"copy_ids": batch["copy_ids"][:, :3]}, V)
    with pytest.raises(InputError, match="labels of shape"):
        check_batch({name: value for name, value in batch.items() if name != "copy_ids"}, V)


# --- learning ------------------------------------------------------------------------------------------------------


def copy_task(rng, count):
    """Pairs of a sentence with two words never seen before and what of it is to be said again."""
    sources, targets = [], []
    for _ in range(count):
        name, place = ("".join(rng.choices("bdgklmnprst", k=5)) for _ in range(2))
        filler = rng.choice(["the cat", "a dog", "no mat"])
        sources.append(f"{filler} said {name} is on {place} and sat.")
        targets.append(f"{place} is big, {name}!" if filler == "a dog" else f"{name} sat on {place}.")
    return sources, targets


@pytest.mark.parametrize("pointer", [True, False])
def test_learns_to_copy_words_it_has_never_seen(words, pointer):
    """Names are drawn anew for every sentence, so only copying can say them. With a beam, as a batch."""
    torch.manual_seed(0)
    fields = {"coverage": True, "attention_type": "additive", "pointer_generator": pointer, "unk_token_id": 3}
    sizes = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 1, "dropout": 0.0}
    model = GruForConditionalGeneration(GruConfig(**sizes, **fields))
    rng = random.Random(0)
    collator = CopyCollator(DataCollatorForSeq2Seq(words, model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def make_batch(count):
        sources, targets = copy_task(rng, count)
        batch = collator(make_rows(words, sources, targets))
        if not pointer:
            del batch["copy_ids"], batch["decoder_input_ids"]
            batch["labels"][batch["labels"] >= V] = 3
        return batch, sources, targets

    for _ in range(150):
        batch, _, _ = make_batch(32)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    batch, sources, targets = make_batch(100)
    _, _, found = copies(words, sources)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "copy_ids") if name in batch}
    sequences = model.generate(**given, num_beams=3, max_new_tokens=12)
    right = sum(map(str.__eq__, decode_copies(words, sequences, found, V), targets))
    assert right > 90 if pointer else right == 0, right
