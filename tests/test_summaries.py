import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from hfseq import LstmConfig
from hfseq.data.sentences import lead_n, split_sentences
from hfseq.tasks.seq2seq import set_generation


@pytest.mark.parametrize(
    "sentences",
    [
        ["One."],
        ["no stop at the end"],
        ["One.", "Two!", "Is it three?", "Four…", "And five"],
        ['He said "Stop."', "(It stopped.)", "“Well.”", "The end"],
        ["It costs 3.50 or so.", "See a.b.c and x.y (e.g. this one, i.e. that) for more.", "2 are left."],
        ["Dr. Smith et al. and J. R. Brown wrote it, cf. Fig. 3.", "I did not. but this goes on."],
        ["So did I.", "Really?!", "Yes..."],
        ["Das gilt z.B. hier, vgl. Abb. 2.", "Übrigens nicht dort."],
        ["今日は晴れです。", "明日は？", "「雨です。」", "そうですか"],
    ],
)
@pytest.mark.parametrize("separator", [" ", "  \n", "\n\n"])
def test_sentences(sentences, separator):
    assert split_sentences(f" {separator.join(sentences)} \n") == sentences


def test_no_space_is_needed_where_none_is_written():
    assert split_sentences("今日は晴れです。明日は？「雨です。」そうですか") == [
        "今日は晴れです。",
        "明日は？",
        "「雨です。」",
        "そうですか",
    ]


@pytest.mark.parametrize("text", ["", " ", "\n \n"])
def test_nothing(text):
    assert split_sentences(text) == []
    assert lead_n([text], 2) == [""]


def test_lead():
    documents = ["One. Two.\nThree.", "Only this", "A. B. is one! Two?"]
    assert lead_n(documents, 1) == ["One.", "Only this", "A. B. is one!"]
    assert lead_n(documents, 2) == ["One. Two.", "Only this", "A. B. is one! Two?"]
    assert lead_n(iter(documents), 9) == ["One. Two. Three.", "Only this", "A. B. is one! Two?"]
    with pytest.raises(ValueError, match="n is 0"):
        lead_n(documents, 0)


def generating(**ids):
    config = LstmConfig(vocab_size=12, hidden_size=8, num_hidden_layers=1, **ids)
    return AutoModelForSeq2SeqLM.from_config(config)


def test_an_unknown_word_is_never_written():
    torch.manual_seed(0)
    model = generating()
    inputs = torch.randint(4, 12, (4, 5))
    # The likeliest token of the first step, until it is forbidden.
    likeliest = int(model.generate(inputs, max_new_tokens=3)[0, 1])
    assert likeliest > 2
    set_generation(model, 2, 9, length_penalty=1.5, unknown=likeliest)
    for beams in (1, 2):
        assert not (model.generate(inputs, num_beams=beams) == likeliest).any()
    assert (model.generation_config.length_penalty, model.generation_config.max_length) == (1.5, 9)


def test_one_beam_is_saved_whatever_the_model_did_before(tmp_path):
    model = generating()
    model.generation_config.update(num_beams=5, length_penalty=0.6, early_stopping=True)
    set_generation(model, 1, 9)
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).num_beams == 1
    set_generation(model, 3, 9, length_penalty=0.6)
    set_generation(model, 2, 9)
    assert model.generation_config.length_penalty == 0.6


def test_a_token_that_decoding_needs_stays():
    model = generating()
    for needed in (0, 1, 2):
        set_generation(model, 1, 9, length_penalty=1.5, unknown=needed)
        assert model.generation_config.suppress_tokens is None
    # Without beams it would have no effect, of which transformers warns.
    assert model.generation_config.length_penalty is None
