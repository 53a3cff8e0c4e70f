"""`pipeline("token-classification")` gives whole entities of every scheme, and else what transformers gives."""

import textwrap

import pytest
import torch
from processes import run_elsewhere
from recipe_runs import ROOT
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, pipeline
from transformers.pipelines.token_classification import TokenClassificationPipeline as Original

from hfseq import LstmConfig, LstmForTokenClassification, WordCharacterTokenizer
from hfseq.demo.handlers import tag
from hfseq.demo.loading import DemoModel
from hfseq.pipelines import TokenClassificationPipeline
from hfseq.serving.dynamic import DynamicBatcher
from hfseq.serving.limits import Limits
from hfseq.serving.predictors import TokenClassification
from hfseq.serving.served import Served
from hfseq.tokenization import train_tokenizer

TEXT = "we met Ann Lee Bob Eve in New Rome ."
# Two people of several words and one, who touch, then a place.
TAGS = {
    "IOBES": "O O B-PER E-PER S-PER S-PER O B-LOC E-LOC O",
    "BILOU": "O O B-PER L-PER U-PER U-PER O B-LOC L-LOC O",
    "IOE2": "O O I-PER E-PER E-PER E-PER O I-LOC E-LOC O",
    "IOE1": "O O I-PER E-PER E-PER I-PER O I-LOC I-LOC O",
    "IOB2": "O O B-PER I-PER B-PER B-PER O B-LOC I-LOC O",
    "lower": "o o b-PER i-PER b-PER b-PER o b-LOC i-LOC o",
}
PEOPLE = [("PER", "Ann Lee"), ("PER", "Bob"), ("PER", "Eve"), ("LOC", "New Rome")]
STRATEGIES = ("simple", "first", "average", "max")
CJK = "\u4e2d\u7f8e"


def word_pieces():
    """A tokenizer like BERT's, which marks the later pieces of a word, and sets ideographs apart."""
    words = [*TEXT.split(), "wash", "##ing", "##ton", *CJK]
    vocab = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *dict.fromkeys(words)])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


TOKENIZERS = {
    "whitespace": lambda: train_tokenizer([TEXT] * 2, model="whitespace", vocab_size=60),
    "characters of words": lambda: train_tokenizer([TEXT] * 2, model="whitespace", vocab_size=60, characters=True),
    "character": lambda: train_tokenizer([TEXT, f"washington {CJK}"], model="character", vocab_size=80),
    "word pieces": word_pieces,
}


def tagger(tokenizer, labels, kind=LstmForTokenClassification):
    """A model that says the labels of `said` of the tokens of a text, one after the other."""
    names = sorted(set(labels))
    fields = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "num_hidden_layers": 1}
    if kind is BertForTokenClassification:
        config = BertConfig(**sizes, **fields, num_attention_heads=2, intermediate_size=8)
    else:
        config = LstmConfig(**sizes, **fields)
    torch.manual_seed(0)
    return kind(config).eval()


def have_say(monkeypatch, model, said):
    places = torch.tensor([model.config.label2id[label] for label in said])

    def forward(input_ids, **kwargs):
        logits = torch.zeros(*input_ids.shape, model.config.num_labels)
        logits[:, : len(places)] = 9.0 * torch.nn.functional.one_hot(places, model.config.num_labels)
        return {"logits": logits}

    monkeypatch.setattr(model, "forward", forward)


def entities(found, text):
    return [(entity["entity_group"], text[entity["start"] : entity["end"]].strip()) for entity in found]


def parts(tags, counts):
    """Tags of words for each of their tokens, as a CRF is trained to give them."""
    return [
        f"I{one[1:]}" if later and one[0] == "B" else one
        for one, n in zip(tags, counts, strict=True)
        for later in range(n)
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scheme", TAGS)
@pytest.mark.parametrize("kind", ["whitespace", "characters of words", "word pieces"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_whole_entities(kind, scheme, strategy, monkeypatch):
    tokenizer, tags = TOKENIZERS[kind](), TAGS[scheme].split()
    assert isinstance(tokenizer, WordCharacterTokenizer) is (kind == "characters of words")
    model = tagger(
        tokenizer, tags, BertForTokenClassification if kind == "word pieces" else LstmForTokenClassification
    )
    have_say(monkeypatch, model, tags)
    pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy=strategy)
    assert type(pipe) is TokenClassificationPipeline
    assert entities(pipe(TEXT), TEXT) == PEOPLE
    if strategy == "simple":
        assert [entity["word"] for entity in pipe(TEXT)] == [name for _, name in PEOPLE]
    assert all(entity["score"] > 0.9 for entity in pipe(TEXT))


@pytest.mark.parametrize("scheme", ["IOBES", "BILOU", "IOE2", "IOE1"])
def test_parts_of_a_word_stay_together(scheme, monkeypatch):
    tokenizer, tags = TOKENIZERS["character"](), TAGS[scheme].split()
    # The space before a word is a token of its own.
    said = parts(tags, [len(word) + (place > 0) for place, word in enumerate(TEXT.split())])
    model = tagger(tokenizer, said)
    have_say(monkeypatch, model, ["O", *said] if tokenizer(TEXT).tokens()[0] == "▁" else said)
    pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple")
    assert entities(pipe(TEXT), TEXT) == PEOPLE


def test_pieces_of_words_and_scripts_without_spaces(monkeypatch):
    labels = ["S-LOC", "E-LOC", "B-LOC", "I-LOC", "O"]
    # What a model says of pieces it was not trained on may be anything.
    for kind, text, said, expected in (
        ("word pieces", "washington Rome", ["B-LOC", "S-LOC", "E-LOC", "E-LOC"], ["washington Rome"]),
        ("word pieces", "washington Rome", ["S-LOC", "S-LOC", "B-LOC", "S-LOC"], ["washington", "Rome"]),
        ("word pieces", CJK, ["S-LOC", "S-LOC"], list(CJK)),
        ("word pieces", CJK, ["B-LOC", "E-LOC"], [CJK]),
        ("character", CJK, ["S-LOC", "S-LOC", "S-LOC"], list(CJK)),
        ("character", " ".join(CJK), ["S-LOC"] * 4, list(CJK)),
    ):
        tokenizer = TOKENIZERS[kind]()
        model = tagger(tokenizer, labels)
        tokens = [token for token in tokenizer(text).tokens() if token != tokenizer.eos_token]
        have_say(monkeypatch, model, said[: len(tokens)])
        pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple")
        assert [name for _, name in entities(pipe(text), text) if name] == expected


@pytest.mark.parametrize("delimiter", [" ", ""])
def test_words_that_are_split_already(delimiter, monkeypatch):
    tokenizer = word_pieces()
    model = tagger(tokenizer, [*TAGS["BILOU"].split(), "I-PER"])
    have_say(monkeypatch, model, ["U-PER", "U-PER", "B-PER", "U-PER", "L-PER", "L-PER"])
    pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple")
    words = ["Ann", "Bob", "washington", "Rome"]
    found = pipe([words], is_split_into_words=True, delimiter=delimiter)[0]
    assert entities(found, delimiter.join(words)) == [
        ("PER", "Ann"),
        ("PER", "Bob"),
        ("PER", f"washington{delimiter}Rome"),
    ]


def test_a_tokenizer_that_does_not_say_where_its_tokens_are(monkeypatch):
    tokenizer, tags = word_pieces(), TAGS["BILOU"].split()
    model = tagger(tokenizer, tags)
    have_say(monkeypatch, model, tags)
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple")
    assert [(one["entity_group"], one["word"]) for one in pipe(TEXT)] == PEOPLE


def test_tags_without_types(monkeypatch):
    tokenizer = TOKENIZERS["whitespace"]()
    model = tagger(tokenizer, ["O", "B", "I"])
    have_say(monkeypatch, model, "O O B I B B O O B O".split())
    pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple")
    assert entities(pipe(TEXT), TEXT) == [("_", "Ann Lee"), ("_", "Bob"), ("_", "Eve"), ("_", "Rome")]


def test_long_texts_in_pieces(monkeypatch):
    tokenizer, tags = word_pieces(), TAGS["IOBES"].split()
    tokenizer.model_max_length = 4
    model = tagger(tokenizer, tags)
    said = dict(zip(TEXT.split(), tags, strict=True))

    def forward(input_ids, **kwargs):
        places = [
            [model.config.label2id[said[token]] for token in tokenizer.convert_ids_to_tokens(row)] for row in input_ids
        ]
        return {"logits": 9.0 * torch.nn.functional.one_hot(torch.tensor(places), model.config.num_labels)}

    monkeypatch.setattr(model, "forward", forward)
    pipe = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", aggregation_strategy="simple", stride=2)
    assert entities(pipe(TEXT), TEXT) == PEOPLE


@pytest.mark.parametrize("strategy", ["none", *STRATEGIES])
@pytest.mark.parametrize(
    "labels",
    [
        "O B-PER I-PER B-LOC I-LOC",
        "B-PER I-PER",
        "NOUN VERB S-X",
        "O B-PER E-PER MISC",
        "LABEL_0 LABEL_1",
        "O S U",
    ],
)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_others_get_what_transformers_gives(labels, strategy):
    for kind in ("word pieces", "whitespace"):
        tokenizer = TOKENIZERS[kind]()
        model = tagger(tokenizer, labels.split())
        with torch.no_grad():
            model.classifier.weight.mul_(40)
        options = {"model": model, "tokenizer": tokenizer, "device": "cpu", "aggregation_strategy": strategy}
        ours = pipeline("token-classification", **options)
        assert type(ours) is TokenClassificationPipeline
        theirs = Original(task="token-classification", **options)
        texts = [TEXT, "washington met Bob", "Lee Lee Ann"]
        assert [ours(text, ignore_labels=[]) for text in texts] == [theirs(text, ignore_labels=[]) for text in texts]


def test_raw_tags_are_the_labels(monkeypatch):
    tokenizer, tags = word_pieces(), TAGS["BILOU"].split()
    model = tagger(tokenizer, tags)
    have_say(monkeypatch, model, tags)
    found = pipeline("ner", model=model, tokenizer=tokenizer, device="cpu", ignore_labels=[])(TEXT)
    assert [entity["entity"] for entity in found] == tags


def test_a_saved_pipeline_needs_no_code(tmp_path):
    tokenizer = word_pieces()
    model = tagger(tokenizer, ["O", "U-A"], BertForTokenClassification)
    pipeline("ner", model=model, tokenizer=tokenizer, device="cpu").save_pretrained(tmp_path)
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text() and not list(tmp_path.glob("*.py"))


@pytest.mark.parametrize("own", [False, True])
def test_importing_says_nothing_and_leaves_the_pipeline_of_others(own):
    code = f"""
        from transformers import AutoModelForTokenClassification
        from transformers.pipelines import PIPELINE_REGISTRY, pipeline
        from transformers.pipelines.token_classification import TokenClassificationPipeline

        class Mine(TokenClassificationPipeline):
            pass

        before = dict(PIPELINE_REGISTRY.supported_tasks["token-classification"])
        if {own}:
            del PIPELINE_REGISTRY.supported_tasks["token-classification"]
            PIPELINE_REGISTRY.register_pipeline("token-classification", Mine, AutoModelForTokenClassification)
        import hfseq.pipelines
        now = PIPELINE_REGISTRY.supported_tasks["token-classification"]
        if {own}:
            assert now["impl"] is Mine
        else:
            assert now["impl"] is hfseq.pipelines.TokenClassificationPipeline
            assert {{**now, "impl": None}} == {{**before, "impl": None}}
    """
    done = run_elsewhere("-c", textwrap.dedent(code), environment={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "token-classification" not in done.stderr


@pytest.mark.parametrize("scheme", TAGS)
def test_the_demo_shows_whole_entities(scheme, monkeypatch):
    tokenizer, tags = TOKENIZERS["whitespace"](), TAGS[scheme].split()
    model = tagger(tokenizer, tags)
    have_say(monkeypatch, model, tags)
    predictor = TokenClassification(model, tokenizer, "token-classification", Limits())
    batcher = DynamicBatcher(predictor.run)
    served = Served("tagger", predictor.task, "torch", model, tokenizer, predictor, batcher)
    pieces, _ = tag(DemoModel("tagger", predictor.task, model, tokenizer, served, None, ""), TEXT)
    batcher.close()
    assert "".join(piece for piece, _ in pieces) == TEXT
    assert [(kind, piece) for piece, kind in pieces if kind is not None] == PEOPLE
