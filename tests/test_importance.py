"""Word importance is what leaving out each word by hand gives, for every classifier, alone and in a batch."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    T5Config,
)

from hfseq import CnnConfig, GruConfig, LstmConfig, RnnConfig
from hfseq.errors import InputError
from hfseq.inference.importance import Importance, log_odds, word_importance
from hfseq.tokenization import train_tokenizer

TEXTS = ["the cat sat on the mat, twice", "a dog", "", "cat", "is the house of the cat unbelievable?", "  \n"]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
CONFIGS = {
    "rnn": lambda size, **fields: RnnConfig(vocab_size=size, **SMALL, **fields),
    "lstm": lambda size, **fields: LstmConfig(vocab_size=size, pooling="attention", **SMALL, **fields),
    "gru_characters": lambda size, **fields: GruConfig(vocab_size=size, char_encoder="cnn", **SMALL, **fields),
    "cnn": lambda size, **fields: CnnConfig(vocab_size=size, **SMALL, **fields),
    "bert": lambda size, **fields: BertConfig(
        vocab_size=size, num_attention_heads=2, intermediate_size=16, **SMALL, **fields
    ),
    "gpt2": lambda size, **fields: GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, **IDS, **fields),
    "bart": lambda size, **fields: BartConfig(
        vocab_size=size, encoder_attention_heads=2, decoder_attention_heads=2, **BART, **IDS, **fields
    ),
    "t5": lambda size, **fields: T5Config(
        vocab_size=size,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        **IDS,
        **fields,
    ),
}
LABELS = {
    "single": {"num_labels": 3},
    "several": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "value": {"num_labels": 1},
}


def make_tokenizer(family):
    # Of BPE a word is several tokens; that of characters gives char_ids for words.
    characters = family == "gru_characters"
    return train_tokenizer(TEXTS, model="word" if characters else "bpe", vocab_size=45, characters=characters)


def make(family, tokenizer, **fields):
    size = len(tokenizer)
    if family == "gru_characters":
        fields["char_vocab_size"] = tokenizer.char_vocab_size
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[family](size, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@torch.no_grad()
def by_hand(model, tokenizer, text):
    """Words by the tokenizer's offsets, each left out in a row of its own."""
    encoded = tokenizer(text)
    owners = encoded.word_ids(0)

    def scores(left_out):
        kept = [at for at, word in enumerate(owners) if word is None or word != left_out]
        inputs = {"input_ids": torch.tensor([[encoded["input_ids"][at] for at in kept]])}
        if "char_ids" in encoded:
            spelled = [encoded["char_ids"][at] for at in kept]
            width = max(1, *map(len, spelled))
            inputs["char_ids"] = torch.tensor([[[*word, *[0] * (width - len(word))] for word in spelled]])
        logits = model(**inputs).logits[0].double()
        if model.config.problem_type == "multi_label_classification":
            chances = logits.sigmoid()
        elif len(logits) == 1:
            return logits
        else:
            chances = logits.softmax(dim=0)
        return (chances / (1 - chances)).log()

    whole = scores(None)
    best = int(whole.argmax())
    words = dict.fromkeys(word for word in owners if word is not None)
    return model.config.id2label[best], [(whole - scores(word))[best].item() for word in words]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("family", CONFIGS)
def test_equals_leaving_out_by_hand_and_rows_do_not_matter_to_each_other(family, labels):
    tokenizer = make_tokenizer(family)
    model = make(family, tokenizer, **LABELS[labels])
    together = word_importance(model, tokenizer, TEXTS, max_length=64, batch_size=5)
    assert len(together) == len(TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = word_importance(model, tokenizer, [text], max_length=64)
        assert alone.values == pytest.approx(found.values, abs=1e-5)
        if not text.strip():
            assert found == Importance("", [], [])
            continue
        label, values = by_hand(model, tokenizer, text)
        assert (found.label, alone.label) == (label, label)
        assert found.values == pytest.approx(values, abs=1e-4)
        assert len(found.spans) == len(values)
    assert max(abs(value) for found in together for value in found.values) > 0.02, "no word matters"


def test_words_are_those_of_the_text():
    tokenizer = make_tokenizer("lstm")
    text = "the unbelievable cat?"
    (found,) = word_importance(make("lstm", tokenizer, num_labels=2), tokenizer, [text], max_length=64)
    assert [text[begin:end] for begin, end in found.spans] == ["the", "unbelievable", "cat", "?"]
    assert len(tokenizer(text)["input_ids"]) > 5, "no word is of several tokens, the test would show nothing"
    (cut,) = word_importance(make("lstm", tokenizer, num_labels=2), tokenizer, [text], max_length=2)
    assert [text[begin:end] for begin, end in cut.spans] == ["the"]


def test_a_text_of_one_word_and_no_special_tokens_is_compared_with_an_end_mark():
    tokenizer = make_tokenizer("lstm")
    tokenizer.backend_tokenizer.post_processor = None
    model = make("lstm", tokenizer, num_labels=2)
    cat = tokenizer("cat", return_tensors="pt")["input_ids"]
    (found,) = word_importance(model, tokenizer, ["cat"], max_length=64)
    whole, rest = (model(ids).logits.detach() for ids in (cat, torch.tensor([[tokenizer.eos_token_id]])))
    best = int(whole.argmax())
    assert found.spans == [(0, 3)] and len(cat[0]) == 1
    expected = (whole - rest)[0, best] - (whole - rest)[0, 1 - best]
    assert found.values == pytest.approx([expected.item()], abs=1e-5)


def test_log_odds_of_certain_decisions_stay_finite():
    logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], dtype=torch.float64)
    assert log_odds(logits, 0, "single_label_classification").tolist() == [120.0, -120.0]


def test_a_tokenizer_that_tells_no_words_apart_is_refused(monkeypatch):
    tokenizer = make_tokenizer("lstm")
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(InputError, match="word importance needs a fast tokenizer"):
        word_importance(make("lstm", tokenizer, num_labels=2), tokenizer, ["cat"], max_length=64)
