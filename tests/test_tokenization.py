import re
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfseq.errors import InputError
from hfseq.tokenization import MODELS, train_tokenizer

TEXTS = [
    "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
    "Zwei Männer (einer mit Hut) kosten 1.234,50 € – das T-Shirt nicht!",
    "A man's hat isn't \"there\"; see #12, ##3 and a/b_c.",
    "Samstag, 5. März 2031",
    "Two men are at the stove preparing food.",
    "漢字かな交じり文です。 Ελλάδα, Україна",
    "a < b <s> c</s>d <pad><unk> <<s>>",
    "cafe\u0301 ﬁne 5\u00a0€ \U0001f469\u200d\U0001f680",
] * 3
ALPHABET = sorted(set("".join(unicodedata.normalize("NFC", text) for text in TEXTS)))
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def normalised(text, form="NFC"):
    """What an encoder may do to a text: Unicode form, and runs of Unicode's white space to one space.

    No-break spaces stay, and so do the separators that are white space to Python alone.
    """
    text = unicodedata.normalize(form, text) if form else text
    return re.sub(r"[^\S\u00a0\u2007\u202f\x1c-\x1f]+", " ", text).strip(" ")


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)


@pytest.fixture(scope="module", params=MODELS)
def tokenizer(request):
    return train_tokenizer(TEXTS, model=request.param, vocab_size=400)


def test_special_tokens(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == SPECIAL
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert len(tokenizer) <= 400
    assert tokenizer.padding_side == "right"


def test_encoding_appends_eos(tokenizer):
    one, other = tokenizer("Ein Mann").input_ids, tokenizer("Two men").input_ids
    assert one[-1] == other[-1] == 2
    assert not {0, 1, 2, 3} & set(one[:-1] + other[:-1])
    pair = tokenizer("Ein Mann", "Two men")
    assert pair.input_ids == one + other
    assert set(pair) == {"input_ids", "attention_mask"}
    assert tokenizer("Ein Mann mit einem Hut", truncation=True, max_length=3).input_ids[-1] == 2
    assert tokenizer("Ein Mann", add_special_tokens=False).input_ids == one[:-1]
    assert tokenizer(text_target="Ein Mann").input_ids == one


def test_pads_on_the_right(tokenizer):
    batch = tokenizer(["Ein", "Ein Mann mit einem Hut"], padding=True)
    ids, mask = batch.input_ids[0], batch.attention_mask[0]
    length = len(tokenizer("Ein").input_ids)
    assert ids[length:] == [0] * (len(ids) - length) and len(ids) > length
    assert mask == [1] * length + [0] * (len(ids) - length)


@pytest.mark.parametrize("text", TEXTS[:8])
def test_round_trip(tokenizer, text):
    assert 3 not in tokenizer(text).input_ids
    assert round_trip(tokenizer, text) == normalised(text)


@pytest.mark.parametrize("model", ["unigram", "bpe", "character"])
def test_round_trip_of_any_text_over_known_characters(model):
    tokenizer = train_tokenizer(TEXTS, model=model, vocab_size=300)
    pieces = st.sampled_from(ALPHABET + SPECIAL + ["  ", "\n", "\t", "\u2028", "##", "▁"])

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(pieces, max_size=30).map("".join))
    def check(text):
        ids = tokenizer(text).input_ids
        assert set(ids[:-1]).isdisjoint({0, 1, 2, 3})
        assert tokenizer.decode(ids, skip_special_tokens=True) == normalised(text.replace("▁", " "))

    check()


def test_special_tokens_typed_in_a_text_are_text(tokenizer):
    text = "a < b <s> c</s>d <pad><unk> <<s>>"
    ids = tokenizer(text).input_ids
    assert set(ids[:-1]).isdisjoint({0, 1, 2, 3})
    assert round_trip(tokenizer, text) == text
    assert 2 in tokenizer("a </s> b", split_special_tokens=False).input_ids[:-1]
    assert 2 not in tokenizer("a </s> b").input_ids[:-1]


@pytest.mark.parametrize("model", MODELS)
def test_no_piece_becomes_a_special_token_however_frequent(model):
    texts = ["x<unk>y a</s>", "<unk></s><s><pad>", "z<unk>"] * 200
    tokenizer = train_tokenizer(texts, model=model, vocab_size=200)
    for text in texts[:3]:
        assert set(tokenizer(text).input_ids[:-1]).isdisjoint({0, 1, 2, 3})
        assert round_trip(tokenizer, text) == text


@pytest.mark.parametrize("text", ["", "   ", "\n", "▁"])
def test_empty_texts(tokenizer, text):
    assert tokenizer(text).input_ids == [2]
    assert round_trip(tokenizer, text) == ""


@pytest.mark.parametrize("text", ["🙂", "ᚠᚢ ᚦ", "\x00", "\U0010ffff"])
def test_unknown_characters(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert 3 in ids and ids[-1] == 2
    assert round_trip(tokenizer, text).strip() == ""


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast and len(loaded) == len(tokenizer)
    assert loaded.model_input_names == ["input_ids", "attention_mask"]
    for text in [*TEXTS[:8], "", "🙂", "a </s> b"]:
        assert loaded(text).input_ids == tokenizer(text).input_ids
        assert round_trip(loaded, text) == round_trip(tokenizer, text)
    assert loaded("a", "b").input_ids == tokenizer("a", "b").input_ids


def test_words_split_into_a_list_keep_their_numbers(tokenizer):
    encoding = tokenizer(["Ein", "Mann", "mit"], is_split_into_words=True)
    numbers = encoding.word_ids()
    assert numbers[-1] is None and sorted(set(numbers[:-1])) == [0, 1, 2]
    assert tokenizer.decode(encoding.input_ids, skip_special_tokens=True) == "Ein Mann mit"


@pytest.mark.parametrize("model", MODELS)
def test_same_texts_give_the_same_tokenizer(model):
    # The hash maps of the trainers have another order each time, within a process as between two.
    words = [f"w{i * 7919 % 613:03d}x{'abcdefg'[i % 7]}{'äöü漢字'[i % 5]}" for i in range(900)]
    texts = [" ".join(words[i : i + 6]) + "." * (i % 2) for i in range(894)]
    states = {train_tokenizer(texts, model=model, vocab_size=150).backend_tokenizer.to_str() for _ in range(3)}
    assert len(states) == 1


def test_texts_are_read_once_and_order_does_not_matter():
    expected = train_tokenizer(TEXTS, vocab_size=300).backend_tokenizer.to_str()
    found = train_tokenizer(iter(["", " ", *reversed(TEXTS)]), vocab_size=300).backend_tokenizer.to_str()
    assert found == expected


@pytest.mark.parametrize("model", ["unigram", "bpe", "wordpiece"])
def test_learns_whole_words(model):
    nouns = ["Hund", "Mann", "Frau", "Kind", "Baum"]
    texts = [f"Ein {a} sieht {b}, {c}." for a in nouns for b in nouns for c in nouns]
    tokenizer = train_tokenizer(texts, model=model, vocab_size=100)
    for noun in nouns:
        assert tokenizer.tokenize(noun) == [f"▁{noun}"]


def test_words_remember_the_space_before_them():
    tokenizer = train_tokenizer(["Ein Hut, ein (alter) Hut."], model="word", vocab_size=50)
    assert tokenizer.tokenize("Ein Hut, ein (alter) Hut.") == "▁Ein ▁Hut , ▁ein ▁( alter ) ▁Hut .".split()


@pytest.mark.parametrize("model", ["unigram", "bpe", "wordpiece"])
def test_digits_are_spelled_one_by_one(model):
    tokenizer = train_tokenizer(["Jahr 2031", "Jahr 1987 4", "5 6"] * 9, model=model, vocab_size=100)
    assert [token.strip("▁") for token in tokenizer.tokenize("4675")][-3:] == ["6", "7", "5"]
    assert round_trip(tokenizer, "4675") == "4675"


def test_normalization():
    texts = ["ﬁne CAFE\u0301 5\u00a0€"] * 2
    options = {"model": "character", "vocab_size": 40}
    assert round_trip(train_tokenizer(texts, **options), texts[0]) == "ﬁne CAF\u00c9 5\u00a0€"
    assert round_trip(train_tokenizer(texts, normalization="nfkc", **options), texts[0]) == "fine CAF\u00c9 5 €"
    assert round_trip(train_tokenizer(texts, normalization="none", **options), texts[0]) == texts[0]
    assert round_trip(train_tokenizer(texts, lowercase=True, **options), texts[0]) == "ﬁne caf\u00e9 5\u00a0€"


def test_vocab_size_bounds():
    small = train_tokenizer(TEXTS, model="word", vocab_size=5)
    assert len(small) == 5 and 3 in small("Mann Hut").input_ids
    for model in ("unigram", "bpe", "wordpiece"):
        needed = 4 + len(set("".join("".join(normalised(text).split(" ")) for text in TEXTS))) + 1
        assert len(train_tokenizer(TEXTS, model=model, vocab_size=needed)) == needed
        with pytest.raises(InputError, match=rf"vocabulary of {needed - 1} .* {model}.* make {needed}$"):
            train_tokenizer(TEXTS, model=model, vocab_size=needed - 1)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (TEXTS, {"model": "sentencepiece"}, "'sentencepiece'; there are: unigram, bpe, wordpiece, word, whitespace"),
        (TEXTS, {"normalization": "NFD"}, "'NFD'; there are: nfc, nfkc, none"),
        (TEXTS, {"vocab_size": 4}, "vocabulary of 4 is too small"),
        (TEXTS, {"vocab_size": -1, "model": "word"}, "vocabulary of -1 is too small"),
        ([], {}, "no text"),
        (["", " \n"], {"model": "character"}, "no text"),
    ],
)
def test_errors(texts, options, message):
    with pytest.raises(InputError, match=message) as caught:
        train_tokenizer(texts, **options)
    assert "\n" not in str(caught.value)
