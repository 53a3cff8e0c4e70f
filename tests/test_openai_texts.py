"""Text of tokens that come one by one, and stop strings in it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfseq.serving.texts import StopStrings, TextStream, TokenTexts, continuation, decode
from hfseq.tokenization import start_texts, train_tokenizer

TEXTS = ["the cat sat on the mat , and that is that", "naïve café 日本語 🎉🎊 the end . the cats"]


def byte_level():
    """One token for each byte, so that most characters of other scripts have several."""
    vocab = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def byte_fallback():
    """Words, and bytes for the characters of unknown words, as SentencePiece writes them."""
    words = ["<unk>", "▁the", "▁cat", "s", "▁"]
    vocab = {token: number for number, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback, strip = decoders.ByteFallback(), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), fallback, decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece():
    tokenizer = Tokenizer(
        models.WordPiece({"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, ".": 4, "a": 5}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


TOKENIZERS = {
    "words": train_tokenizer(TEXTS, model="word", vocab_size=40),
    "bpe": train_tokenizer(TEXTS, model="bpe", vocab_size=60),
    "unigram": train_tokenizer(TEXTS, model="unigram", vocab_size=60),
    "byte_level": byte_level(),
    "byte_fallback": byte_fallback(),
    "word_piece": word_piece(),
}
for name in ("words", "bpe"):
    start_texts(TOKENIZERS[name])


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]


def streamed(tokenizer, ids, context=()):
    stream = TextStream(tokenizer, context)
    return [*(stream.put(token) for token in ids), stream.end()]


texts = st.one_of(
    st.text(alphabet="thecas .日🎉é ", max_size=20), st.lists(st.sampled_from(TEXTS), max_size=3).map(" ".join)
)


@settings(max_examples=40, deadline=None)
@given(before=texts, after=texts)
def test_pieces_are_the_text_and_never_half_a_character(tokenizer, before, after):
    for ids in (tokenizer(after)["input_ids"], tokenizer(after + "the cat")["input_ids"]):
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == decode(tokenizer, ids)
        assert not any("\ufffd" in piece for piece in pieces)
    context = tokenizer(before)["input_ids"]
    ids = [one for one in tokenizer(after, add_special_tokens=False)["input_ids"]]
    assert "".join(streamed(tokenizer, ids, context)) == continuation(tokenizer, context, ids)


def test_a_character_is_complete_with_its_last_byte():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer("a🎉b")["input_ids"]
    assert streamed(tokenizer, ids) == ["a", "", "", "", "🎉", "b", ""]
    # One that is never completed is not held forever.
    assert "".join(streamed(tokenizer, [ids[1]] * 30)).startswith("\ufffd" * 30)
    assert streamed(tokenizer, [*ids[:3]]) == ["a", "", "", "\ufffd"]


def test_special_tokens_leave_no_trace():
    tokenizer = TOKENIZERS["words"]
    cat, the = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("cat", "the"))
    ids = [cat, *[tokenizer.eos_token_id] * 20, the, tokenizer.eos_token_id, the]
    assert "".join(streamed(tokenizer, ids, [the])) == " cat the the"
    assert streamed(tokenizer, [cat, the]) == ["cat", " the", ""]


def test_the_space_before_a_continuation():
    for name in ("words", "bpe", "unigram", "byte_fallback", "word_piece"):
        tokenizer = TOKENIZERS[name]
        ids = tokenizer("the cats", add_special_tokens=False)["input_ids"]
        assert continuation(tokenizer, ids, ids) == " the cats", name
        assert continuation(tokenizer, [], ids) == "the cats", name


def test_texts_of_tokens():
    words = TOKENIZERS["words"]
    token = TokenTexts(words)
    assert [token.text(one) for one in words("the cat")["input_ids"]] == ["</s>", " the", " cat"]
    pieces = TOKENIZERS["word_piece"]
    assert [TokenTexts(pieces).text(one) for one in pieces("the cats")["input_ids"]] == [" the", " cat", "s"]
    whole = TOKENIZERS["byte_level"]
    assert [TokenTexts(whole).text(one) for one in whole("a b")["input_ids"]] == ["a", " ", "b"]


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="ab", max_size=3), max_size=12),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4),
)
def test_stop_strings_end_the_text(pieces, stops):
    found, given_out, read = StopStrings(stops), "", ""
    for piece in pieces:
        read += piece
        given_out += found.put(piece)
        starts = [read.find(stop) for stop in stops if stop in read]
        assert found.found == bool(starts)
        if starts:
            assert given_out == read[: min(starts)]
            return
        # What is held back is the beginning of a stop string, and no more.
        held = read[len(given_out) :]
        assert read.startswith(given_out)
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(read.endswith(stop[:size]) for stop in stops for size in range(len(held) + 1, len(stop)))
    assert given_out + found.end() == read
