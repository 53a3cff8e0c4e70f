"""`pipeline("translation")` and `pipeline("summarization")` give what tokenizer, generate and decode give by hand."""

import inspect
import json
import logging

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    EncoderDecoderConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    M2M100Config,
    MarianConfig,
    MBartTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS, check_task
from transformers.pipelines.base import Pipeline, PipelineRegistry
from transformers.pipelines.pt_utils import KeyDataset

from hfseq import GruConfig, LstmConfig, RnnConfig
from hfseq.data.copying import copy_sources, decode_copies
from hfseq.pipelines import SummarizationPipeline, TranslationPipeline
from hfseq.tokenization import train_tokenizer

pytestmark = pytest.mark.contract

TEXTS = ["the cat sat on the mat", "a dog", "where is the house of the cat?", "yes"]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
SMALL = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}
T5_PARAMS = {
    "translation_en_to_de": {"prefix": "translate: ", "num_beams": 2, "max_length": 9},
    "summarization": {"prefix": "summarize: ", "num_beams": 3, "max_length": 7},
}


def make_config(family: str, vocab_size: int):
    sizes = {"vocab_size": vocab_size, **IDS}
    if family == "t5":
        small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        return T5Config(**sizes, **small, task_specific_params=T5_PARAMS)
    if family == "bart":
        return BartConfig(**sizes, **SMALL)
    if family == "marian":
        return MarianConfig(**sizes, **SMALL)
    if family == "bert2bert":
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        bert = BertConfig(vocab_size=vocab_size, **small)
        return EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert, **IDS)
    recurrent = {"hfseq_rnn": RnnConfig, "hfseq_lstm": LstmConfig, "hfseq_gru": GruConfig}[family]
    return recurrent(vocab_size=vocab_size, hidden_size=16, embedding_size=16, num_hidden_layers=1)


@pytest.fixture(scope="module")
def tokenizer():
    # generate() tries its stop strings on a text "abcdef", so the tokenizer must know the letters.
    return train_tokenizer([*TEXTS, "abcdef"], model="character", vocab_size=60)


@pytest.fixture(scope="module")
def make_model(tokenizer):
    made: dict[str, object] = {}

    def make(family: str):
        if family not in made:
            torch.manual_seed(1)
            model = AutoModelForSeq2SeqLM.from_config(make_config(family, len(tokenizer))).eval()
            stir(model)
            model.generation_config.update(**IDS, max_length=12)
            made[family] = model
        return made[family]

    return make


def stir(model):
    """As initialised, such small models say the same to everything."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_()


def by_hand(model, tokenizer, texts, **kwargs):
    """What the pipeline must say for one text after the other: a list of texts for each."""
    results = []
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        results.append(tokenizer.batch_decode(model.generate(**encoded, **kwargs), skip_special_tokens=True))
    return results


FAMILIES = ["t5", "bart", "marian", "bert2bert", "hfseq_rnn", "hfseq_lstm", "hfseq_gru"]


@pytest.mark.parametrize("task,key", [("translation", "translation_text"), ("summarization", "summary_text")])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_tokenizer_generate_decode(family, task, key, tokenizer, make_model):
    model = make_model(family)
    kwargs = {"num_beams": 3, "max_new_tokens": 6}
    expected = [texts[0] for texts in by_hand(model, tokenizer, TEXTS, **kwargs)]
    assert len(set(expected)) > 1, "the model says the same to everything, the test would show nothing"
    pipe = pipeline(task, model=model, tokenizer=tokenizer, device="cpu", prefix="")
    assert pipe(TEXTS, **kwargs) == [{key: text} for text in expected]
    assert pipe(TEXTS[0], **kwargs) == [{key: expected[0]}]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_change_nothing(family, beams, tokenizer, make_model):
    pipe = pipeline("translation", model=make_model(family), tokenizer=tokenizer, device="cpu", num_beams=beams)
    assert pipe(TEXTS, batch_size=3) == pipe(TEXTS, batch_size=1)


def test_every_kind_of_input(tokenizer, make_model):
    pipe = pipeline("translation", model=make_model("hfseq_lstm"), tokenizer=tokenizer, device="cpu", batch_size=2)
    flat = pipe(TEXTS)
    nested = [[result] for result in flat]
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    assert pipe(tuple(TEXTS)) == flat
    assert pipe(rows["text"]) == flat
    # Read as the results are asked for: one list for each input, as in transformers 4.
    for inputs in ((text for text in TEXTS), iter(TEXTS), map(str, TEXTS), KeyDataset(rows, "text")):
        results = pipe(inputs)
        assert not isinstance(results, list)
        assert list(results) == nested
    assert pipe([]) == []
    assert list(pipe(KeyDataset(rows.select([]), "text"))) == []
    assert list(pipe(iter([]))) == []


def test_iterator_is_read_lazily(tokenizer, make_model):
    pipe = pipeline("translation", model=make_model("hfseq_gru"), tokenizer=tokenizer, device="cpu")
    read = []

    def texts():
        for text in TEXTS:
            read.append(text)
            yield text

    results = iter(pipe(texts()))
    next(results)
    assert len(read) < len(TEXTS)


@pytest.mark.parametrize("family", ["bart", "hfseq_lstm"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_num_return_sequences(family, batch_size, tokenizer, make_model):
    model = make_model(family)
    kwargs = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 6}
    expected = [[{"translation_text": text} for text in texts] for texts in by_hand(model, tokenizer, TEXTS, **kwargs)]
    assert all(len({result["translation_text"] for result in results}) > 1 for results in expected)
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu")
    assert pipe(TEXTS, batch_size=batch_size, **kwargs) == expected
    assert pipe(TEXTS[0], **kwargs) == expected[0]


def test_generate_arguments(tokenizer, make_model):
    model = make_model("hfseq_lstm")
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu", max_new_tokens=3)
    text = TEXTS[0]

    def length(**kwargs):
        return pipe(text, return_tensors=True, **kwargs)[0]["translation_token_ids"].shape[-1]

    assert length(suppress_tokens=[2]) == 1 + 3
    assert length(suppress_tokens=[2], max_new_tokens=5) == 1 + 5
    assert length(generation_config=GenerationConfig(**{**IDS, "eos_token_id": None}, max_length=7)) == 7
    torch.manual_seed(0)
    sampled = {str(pipe(text, do_sample=True, max_new_tokens=8)) for _ in range(8)}
    assert len(sampled) > 1
    # A dict of outputs instead of a tensor is fine.
    assert pipe(text, return_dict_in_generate=True, output_scores=True) == pipe(text)
    letters = {"suppress_tokens": [0, 1, 2, 3], "max_new_tokens": 8}
    full = pipe(text, **letters)[0]["translation_text"]
    stop = full.strip()[1]
    assert pipe(text, stop_strings=stop, **letters)[0]["translation_text"] == full[: full.index(stop) + 1]


def test_return_tensors_and_text(tokenizer, make_model):
    pipe = pipeline("translation", model=make_model("bart"), tokenizer=tokenizer, device="cpu", max_new_tokens=5)
    text = pipe(TEXTS[0])[0]["translation_text"]
    for kwargs in ({"return_tensors": True}, {"return_text": False}, {"return_tensors": True, "return_text": False}):
        (result,) = pipe(TEXTS[0], **kwargs)
        assert list(result) == ["translation_token_ids"]
        assert tokenizer.decode(result["translation_token_ids"], skip_special_tokens=True) == text
    assert pipe(TEXTS[0], return_text=True) == [{"translation_text": text}]
    with pytest.raises(ValueError, match="return_text"):
        pipe(TEXTS[0], return_tensors=True, return_text=True)


def test_truncation(tokenizer, make_model, monkeypatch):
    length = len(tokenizer("the c").input_ids)
    monkeypatch.setattr(tokenizer, "model_max_length", length)
    pipe = pipeline("translation", model=make_model("bart"), tokenizer=tokenizer, device="cpu", max_new_tokens=5)
    assert pipe("the cat sat", truncation=True) == pipe("the c") != pipe("the cat sat")
    assert pipe.preprocess("the cat sat")["input_ids"].shape == (1, length + 6)


def test_clean_up_tokenization_spaces(make_model):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, ".": 4}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    pipe = pipeline("translation", model=make_model("bart"), tokenizer=tokenizer, device="cpu")
    outputs = {"output_ids": torch.tensor([[[1, 3, 4, 2]]])}
    assert "a ." in pipe.postprocess(outputs)[0]["translation_text"]
    assert "a." in pipe.postprocess(outputs, clean_up_tokenization_spaces=True)[0]["translation_text"]


@pytest.mark.parametrize("text", ["", "  ", "☃☃☃", "x" * 500, "\x00", "a\x00cat"])
@pytest.mark.parametrize("family", ["t5", "hfseq_rnn", "hfseq_lstm", "hfseq_gru"])
def test_strange_texts(family, text, tokenizer, make_model):
    pipe = pipeline("translation", model=make_model(family), tokenizer=tokenizer, device="cpu", max_new_tokens=5)
    (result,) = pipe(text)
    assert isinstance(result["translation_text"], str)
    assert pipe([TEXTS[0], text], batch_size=2) == [*pipe(TEXTS[0]), result]


def test_empty_text_and_a_tokenizer_that_adds_nothing(make_model):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "the": 3, "cat": 4, "<unk>": 5}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    assert tokenizer("").input_ids == []
    pipe = pipeline("translation", model=make_model("hfseq_lstm"), tokenizer=tokenizer, device="cpu")
    assert pipe(["", "the cat"], batch_size=2) == [*pipe(""), *pipe("the cat")]
    assert pipe("") == pipe("</s>")


def test_empty_text_and_a_tokenizer_without_an_end(make_model):
    core = Tokenizer(models.WordLevel({"<pad>": 0, "the": 3, "cat": 4, "<unk>": 5}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    model = make_model("hfseq_lstm")
    pipe = pipeline("translation", model=model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=core), device="cpu")
    end = torch.tensor([[model.config.eos_token_id]])
    expected = model.generate(end, attention_mask=torch.ones_like(end), do_sample=False)
    assert pipe("", return_tensors=True)[0]["translation_token_ids"].tolist() == expected[0].tolist()
    model.config.eos_token_id = None
    with pytest.raises(ValueError, match="an empty text has no tokens here, and the tokenizer no special token"):
        pipe("")


@pytest.mark.parametrize("bad", [None, 3, b"bytes", {"text": "x"}, [["nested"]], ["fine", None], TEXTS[0].split])
def test_what_is_not_text_is_refused(bad, tokenizer, make_model):
    pipe = pipeline("translation", model=make_model("hfseq_lstm"), tokenizer=tokenizer, device="cpu")
    with pytest.raises(ValueError, match="TranslationPipeline takes strings, not"):
        pipe(bad)


def test_dataset_without_column_is_refused(tokenizer, make_model):
    pipe = pipeline("translation", model=make_model("hfseq_lstm"), tokenizer=tokenizer, device="cpu")
    with pytest.raises(ValueError, match="KeyDataset"):
        pipe(datasets.Dataset.from_dict({"text": TEXTS}))


def test_decoder_alone_is_refused(tokenizer):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=16))
    with pytest.raises(ValueError, match="encoder-decoder.*GPT2LMHeadModel"):
        pipeline("summarization", model=model, tokenizer=tokenizer)


def test_t5_prefix_and_parameters_of_the_task(tokenizer, make_model):
    model = make_model("t5")
    for task, key in (("translation_en_to_de", "translation_text"), ("summarization", "summary_text")):
        params = dict(T5_PARAMS[task])
        prefix = params.pop("prefix")
        prefixed = [prefix + text for text in TEXTS]
        expected = [{key: texts[0]} for texts in by_hand(model, tokenizer, prefixed, **params)]
        pipe = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
        assert pipe(TEXTS) == expected
        # The caller's word counts more.
        assert pipe(TEXTS[0], prefix="", num_beams=1, max_length=5) == [
            {key: by_hand(model, tokenizer, TEXTS[:1], num_beams=1, max_length=5)[0][0]}
        ]
    # "translation" alone names no pair, so there is no prefix, and config.prefix is used where there is one.
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu")
    assert pipe(TEXTS[0]) == [{"translation_text": by_hand(model, tokenizer, TEXTS[:1])[0][0]}]
    # What the pipelines did stays theirs.
    assert model.generation_config.num_beams is None


def test_config_prefix(tokenizer, make_model, monkeypatch):
    model = make_model("bart")
    monkeypatch.setattr(model.config, "prefix", "say ", raising=False)
    pipe = pipeline("summarization", model=model, tokenizer=tokenizer, device="cpu")
    assert pipe(TEXTS[0]) == [{"summary_text": by_hand(model, tokenizer, ["say " + TEXTS[0]])[0][0]}]


@pytest.fixture
def warnings_of(caplog):
    """Texts logged by a logger of transformers, which does not propagate to the root, or of hfseq."""

    def listen(name):
        logger = logging.getLogger(name)
        logger.addHandler(caplog.handler)
        listening.append(logger)
        return caplog

    listening: list[logging.Logger] = []
    yield listen
    for logger in listening:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("where", ["init", "call"])
def test_max_new_tokens_replaces_the_length_of_the_task(where, tokenizer, make_model, warnings_of, monkeypatch):
    model = make_model("t5")
    # Of a length of the model's own generate() would warn too.
    monkeypatch.setattr(model.generation_config, "max_length", None)
    log = warnings_of("transformers")
    limit = {"max_new_tokens": 3}
    pipe = pipeline(
        "summarization", model=model, tokenizer=tokenizer, device="cpu", **(limit if where == "init" else {})
    )
    (result,) = pipe(TEXTS[0], return_tensors=True, suppress_tokens=[2], **(limit if where == "call" else {}))
    assert result["summary_token_ids"].shape == (1 + 3,)
    assert log.text == ""


def test_says_when_the_output_is_cut(tokenizer, make_model, warnings_of):
    pipe = pipeline("translation", model=make_model("hfseq_lstm"), tokenizer=tokenizer, device="cpu")
    log = warnings_of("hfseq.pipelines")
    pipe(TEXTS, batch_size=4, suppress_tokens=[2])
    assert "4 of 4 outputs reached the longest length" in log.text
    assert "(12 tokens)" in log.text
    log.clear()
    # Who sets the length knows; and what ends by itself is not cut.
    pipe(TEXTS, suppress_tokens=[2], max_new_tokens=3)
    pipe(TEXTS, forced_eos_token_id=2)
    assert "truncated" not in log.text


@pytest.fixture(scope="module")
def many_languages():
    letters = {
        letter: i for i, letter in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvw?"])
    }
    tokenizer = NllbTokenizer(vocab=letters)
    torch.manual_seed(2)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = AutoModelForSeq2SeqLM.from_config(M2M100Config(vocab_size=len(tokenizer), **ids, **SMALL)).eval()
    stir(model)
    return model, tokenizer


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("where", ["call", "init", "task"])
def test_source_and_target_language(where, batch_size, many_languages):
    model, tokenizer = many_languages
    source, target = "deu_Latn", "fra_Latn"
    tokenizer.src_lang = source
    expected = []
    for text in TEXTS:
        output = model.generate(
            **tokenizer(text, return_tensors="pt"),
            forced_bos_token_id=tokenizer.convert_tokens_to_ids(target),
            max_new_tokens=6,
        )
        expected.append(output[0])
    tokenizer.src_lang = "eng_Latn"
    langs = {"src_lang": source, "tgt_lang": target}
    task = f"translation_{source}_to_{target}" if where == "task" else "translation"
    pipe = pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **(langs if where == "init" else {}))
    kwargs = {"max_new_tokens": 6, "return_tensors": True, **(langs if where == "call" else {})}
    for result, ids in zip(pipe(TEXTS, batch_size=batch_size, **kwargs), expected, strict=True):
        got = result["translation_token_ids"]
        assert got[: len(ids)].tolist() == ids.tolist()
        assert set(got[len(ids) :].tolist()) <= {tokenizer.pad_token_id}


def test_languages_missing_or_preset(many_languages, monkeypatch):
    model, tokenizer = many_languages
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu", max_new_tokens=4)
    with pytest.raises(ValueError, match="src_lang.*tgt_lang"):
        pipe(TEXTS[0])
    # A model fine-tuned on one pair says so itself.
    target = tokenizer.convert_tokens_to_ids("fra_Latn")
    monkeypatch.setattr(model.generation_config, "forced_bos_token_id", target)
    (result,) = pipe(TEXTS[0], return_tensors=True)
    assert result["translation_token_ids"][1] == target


@pytest.mark.parametrize("family", ["t5", "hfseq_lstm"])
def test_from_a_directory_and_back(family, tokenizer, make_model, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pipe = pipeline("translation", model=str(tmp_path / "model"), device="cpu")
    assert isinstance(pipe, TranslationPipeline)
    expected = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu")(TEXTS)
    assert pipe(TEXTS) == expected
    pipe.save_pretrained(tmp_path / "again")
    # A config that named a pipeline would demand trust_remote_code.
    assert not json.loads((tmp_path / "again" / "config.json").read_text()).get("custom_pipelines")
    assert not (tmp_path / "again" / "pipelines.py").exists()
    assert pipeline("translation", model=str(tmp_path / "again"), device="cpu")(TEXTS) == expected
    AutoTokenizer.from_pretrained(tmp_path / "again")


def test_registration():
    supported = PIPELINE_REGISTRY.get_supported_tasks()
    assert {"translation", "summarization"} <= set(supported)
    assert check_task("summarization")[1]["impl"] is SummarizationPipeline
    assert check_task("translation_en_XX_to_de_DE")[2] == ("en_XX", "de_DE")
    # The others are as they were.
    assert check_task("sentiment-analysis")[0] == "text-classification"
    with pytest.raises(KeyError, match="Unknown task translation_nonsense"):
        check_task("translation_nonsense")
    for removed in ("text2text-generation", "question-answering"):
        with pytest.raises(KeyError, match="removed"):
            check_task(removed)


@pytest.mark.parametrize("task", ["translation", "summarization", "translation_en_to_de"])
def test_there_is_no_default_model(task):
    with pytest.raises(ValueError, match="default"):
        pipeline(task)


COPIED = ["the Quux sat on Zork", "a dog (Blah), the cat Blah Krzys and Blah", "Quux!", "the cat sat on the mat"]


@pytest.fixture(scope="module")
def copier():
    """A pointer-generator that says much of what it reads, and its tokenizer of few words."""
    words = train_tokenizer(TEXTS, model="word", vocab_size=30)
    torch.manual_seed(2)
    fields = {"pointer_generator": True, "coverage": True, "attention_type": "additive", "unk_token_id": 3}
    model = AutoModelForSeq2SeqLM.from_config(GruConfig(vocab_size=40, hidden_size=16, **fields)).eval()
    stir(model)
    with torch.no_grad():
        model.pointer.gate.bias.fill_(-8.0)
    model.generation_config.update(**IDS, max_length=12)
    return model, words


def copied_by_hand(model, words, text, **kwargs):
    encoded = words([text], return_tensors="pt")
    ids, found = copy_sources(words, [text], encoded, model.config.vocab_size)
    sequences = model.generate(**encoded, copy_ids=torch.tensor(ids), **kwargs)
    return sequences, decode_copies(words, sequences, found * len(sequences), model.config.vocab_size)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("task,key", [("translation", "translation_text"), ("summarization", "summary_text")])
def test_unknown_words_are_copied(task, key, side, copier, monkeypatch):
    model, words = copier
    monkeypatch.setattr(words, "padding_side", side)
    pipe = pipeline(task, model=model, tokenizer=words, device="cpu", prefix="")
    for kwargs in ({}, {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2}):
        expected = [copied_by_hand(model, words, text, **kwargs)[1] for text in COPIED]
        for word, texts in zip(["Zork", "Blah", "Quux"], expected, strict=False):
            assert all(word in text for text in texts), texts
        nested = [[{key: text} for text in texts] for texts in expected]
        for batch_size in (1, 3):
            found = pipe(COPIED, batch_size=batch_size, **kwargs)
            assert found == ([result[0] for result in nested] if not kwargs else nested)
            assert list(pipe((text for text in COPIED), batch_size=batch_size, **kwargs)) == nested
    assert pipe(COPIED[0]) == [{key: copied_by_hand(model, words, COPIED[0])[1][0]}]


def test_what_is_copied_as_ids_with_a_prefix_and_cut(copier, monkeypatch):
    model, words = copier
    pipe = pipeline("summarization", model=model, tokenizer=words, device="cpu")
    (result,) = pipe(COPIED[1], return_tensors=True)
    expected = copied_by_hand(model, words, COPIED[1])[0][0]
    assert result["summary_token_ids"].tolist() == expected.tolist() and expected.max() >= 40
    assert (
        pipe(COPIED[1], prefix="Zork: ")[0]["summary_text"] == copied_by_hand(model, words, "Zork: " + COPIED[1])[1][0]
    )
    monkeypatch.setattr(words, "model_max_length", 4)
    (cut,) = pipe([COPIED[1]], truncation=True)
    assert "Krzys" not in cut["summary_text"]
    assert isinstance(pipe("")[0]["summary_text"], str)


def test_without_an_unknown_token_only_what_is_known_is_copied(copier, monkeypatch):
    model, words = copier
    monkeypatch.setattr(model.config, "unk_token_id", None)
    pipe = pipeline("summarization", model=model, tokenizer=words, device="cpu")
    assert pipe(COPIED[0])[0]["summary_text"] == by_hand(model, words, COPIED[:1])[0][0]


def test_the_private_parts_of_the_registry_are_there():
    """The names of transformers that `_register` uses; where one goes, this says which."""
    assert {"translation", "summarization"} <= PIPELINE_REGISTRY.supported_tasks.keys()
    assert inspect.signature(PipelineRegistry.check_task).parameters.keys() == {"self", "task"}
    assert isinstance(REMOVED_TASKS, dict) and "question-answering" in REMOVED_TASKS
    registry = PipelineRegistry({}, {})
    registry.register_pipeline("mine", type("Mine", (Pipeline,), {}), type="text")
    assert "_registered_impl" in vars(registry.supported_tasks["mine"]["impl"])
    assert registry.supported_tasks["mine"].keys() == {"impl", "pt", "type"}
    assert callable(MBartTokenizer._build_translation_inputs)
