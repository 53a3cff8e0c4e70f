import pytest

from hfseq.data.summaries import lead_n, split_sentences


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
