"""Two vocabularies: the tokenizer, a translator that is trained with it, and what carries both."""

import copy
import pickle

import pytest
import torch
from recipe_runs import load
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

import hfseq
from hfseq.errors import InputError
from hfseq.inference.alignment import align_texts
from hfseq.inference.ensembles import load_ensemble
from hfseq.onnx.runtime import load_onnx
from hfseq.tokenization import pair_tokenizers, train_tokenizer
from hfseq.training.arguments import ModelArguments
from hfseq.training.loading import load_model

SOURCES = ["one red apple", "two green apples", "three red pears", "one green pear"] * 8
TARGETS = ["ein roter Apfel", "zwei grüne Äpfel", "drei rote Birnen , bitte", "eine grüne Birne"] * 8


@pytest.fixture(scope="module")
def sides():
    return [train_tokenizer(texts, model="word", vocab_size=40) for texts in (SOURCES, TARGETS)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A translator of the recipe, with two vocabularies and a narrow decoder."""
    root = tmp_path_factory.mktemp("separate")
    for split, count in (("train", 32), ("validation", 4), ("test", 4)):
        for language, texts in (("en", SOURCES), ("de", TARGETS)):
            (root / f"{split}.{language}").write_text("\n".join(texts[:count]) + "\n", encoding="utf-8")
    flags = [f"--{split}_file={root / split}" for split in ("train", "validation", "test")]
    flags += ["--separate_vocabs", "true", "--tokenizer_model", "word", "--vocab_size", "40", "--max_tokens", "200"]
    flags += ["--config_overrides", "{hidden_size: 16, embedding_size: 8, decoder_hidden_size: 12, bridge: linear}"]
    flags += ["--num_train_epochs", "1", "--max_target_length", "8", "--num_beams", "1", "--use_cpu", "true"]
    flags += ["--report_to", "none", "--output_dir", str(root / "model")]
    load("translation").main([*flags, "--disable_tqdm", "true"])
    return root / "model"


def test_each_side_has_its_vocabulary(sides, tmp_path):
    """Encoding, padding and decoding are those of one side or the other; also when saved, pickled or copied."""
    source, target = sides
    made = pair_tokenizers(source, target)
    made.save_pretrained(tmp_path / "saved")
    for pair in (made, AutoTokenizer.from_pretrained(tmp_path / "saved"), pickle.loads(pickle.dumps(made))):
        assert type(pair) is hfseq.SourceTargetTokenizer
        assert (len(pair), pair.target_vocab_size) == (len(source), len(target))
        both = pair(SOURCES[:3], text_target=TARGETS[:3], padding=True)
        assert both["input_ids"] == source(SOURCES[:3], padding=True)["input_ids"]
        assert both["labels"] == target(TARGETS[:3], padding=True)["input_ids"]
        assert pair(text_target=TARGETS[0])["input_ids"] == both["labels"][0][:4]
        assert pair(TARGETS[0])["input_ids"] == source(TARGETS[0])["input_ids"]  # the source's again
        assert pair.batch_decode(both["labels"], skip_special_tokens=True) == TARGETS[:3]
        assert pair.decode(both["labels"][2]) == f"{TARGETS[2]}</s>"
        assert pair.decode(both["input_ids"][0], use_source_tokenizer=True, skip_special_tokens=True) == SOURCES[0]
        assert pair.get_vocab() == source.get_vocab() and pair.target.get_vocab() == target.get_vocab()
        for text in ("a </s>", "Äpfel <pad>"):  # typed special tokens are text
            assert pair(text_target=text)["input_ids"] == target(text)["input_ids"]
    assert copy.deepcopy(made)(text_target=TARGETS)["input_ids"] == target(TARGETS)["input_ids"]


def test_what_makes_no_pair(sides, tmp_path):
    source, target = sides
    other = copy.deepcopy(target)
    other.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(InputError, match="the special token '</s>' is 2 for sources and None for targets|'<end>'"):
        pair_tokenizers(other, target)
    made = pair_tokenizers(source, target)
    made.save_pretrained(tmp_path)
    (tmp_path / "target_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"needs a target_tokenizer, or its file target_tokenizer\.json"):
        AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_config(hfseq.GruConfig(vocab_size=len(source), hidden_size=8))
    model.save_pretrained(tmp_path / "one")
    source.save_pretrained(tmp_path / "one")
    args = ModelArguments(model_name_or_path=str(tmp_path / "one"))
    with pytest.raises(InputError, match="has two vocabularies, which are not replaced; train a new model"):
        load_model(AutoModelForSeq2SeqLM, args, None, default_type="hfseq_gru", tokenizer=made)
    with pytest.raises(InputError, match="--separate_vocabs is for a new model: a checkpoint keeps its vocabularies"):
        load_model(AutoModelForSeq2SeqLM, args, None, default_type="hfseq_gru", target_texts=TARGETS)


def test_a_translator_with_two_vocabularies(trained, tmp_path):
    """Pipeline, alignment, ensemble and ONNX graphs read the one vocabulary and write the other."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    sizes = (len(tokenizer), tokenizer.target_vocab_size)
    assert (model.config.vocab_size, model.config.decoder_vocab_size) == sizes and sizes[0] < sizes[1]
    assert (len(model.model.embed_tokens.weight), *model.lm_head.weight.shape) == (*sizes, 8)
    assert model.lm_head.weight is model.decoder.embed_tokens.weight
    texts, options = ["one red pear", "two"], {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 2}
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, **options, max_length=None)
    expected = [tokenizer.target.decode(row, skip_special_tokens=True) for row in ids]
    hfseq.export_onnx(trained, tmp_path / "onnx")
    runner, loaded = load_onnx(tmp_path / "onnx", threads=1)
    ensemble, *_ = load_ensemble([str(trained)] * 2, AutoModelForSeq2SeqLM)
    for one, processing in ((model, tokenizer), (runner, loaded), (ensemble, tokenizer)):
        translate = pipeline("translation", model=one, tokenizer=processing)
        assert [row["translation_text"] for row in translate(texts, **options, max_length=None)] == expected
    given = {"input_ids": torch.full((1, 2), sizes[0] - 1), "decoder_input_ids": torch.full((1, 2), sizes[1] - 1)}
    torch.testing.assert_close(runner(**given).logits, model(**given).logits, rtol=1e-4, atol=1e-4)
    for name in given:
        with pytest.raises(ValueError, match=f"^{name} has ids .* the vocabulary has 0 to {int(given[name].max())}$"):
            runner(**given | {name: given[name] + 1})
    _, read, written = align_texts(model, tokenizer, "one pear", "eine Birne")
    assert (read, written) == (["▁one", "▁pear", "</s>"], ["▁eine", "▁Birne", "</s>"])


def test_each_vocabulary_is_resized_alone(trained):
    model = AutoModelForSeq2SeqLM.from_pretrained(trained)
    source, target = model.config.vocab_size, model.config.decoder_vocab_size
    ids = {"input_ids": torch.tensor([[4, 5, 6]]), "decoder_input_ids": torch.tensor([[1, 4]])}
    expected = model(**ids).logits
    model.resize_token_embeddings(source + 3)
    assert (len(model.model.embed_tokens.weight), len(model.lm_head.weight)) == (source + 3, target)
    torch.testing.assert_close(model(**ids).logits, expected)
    model.resize_decoder_token_embeddings(target + 2)
    assert (model.config.vocab_size, model.config.decoder_vocab_size) == (source + 3, target + 2)
    assert model.lm_head.weight is model.decoder.embed_tokens.weight and model.lm_head.out_features == target + 2
    torch.testing.assert_close(model(**ids).logits[..., :target], expected)
    one = hfseq.GruForConditionalGeneration(hfseq.GruConfig(vocab_size=9, decoder_vocab_size=9, hidden_size=8))
    assert one.config.decoder_vocab_size is None  # one vocabulary, whose embeddings are shared
    with pytest.raises(ValueError, match="one vocabulary, which resize_token_embeddings resizes"):
        one.resize_decoder_token_embeddings(12)
