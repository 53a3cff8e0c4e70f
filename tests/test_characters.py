"""Features of a word's characters: the tokenizer that spells, the encoder, and models that read both."""

import json
import random
import unicodedata
from itertools import product

import numpy as np
import pytest
import recipe_runs
import torch
from processes import run_elsewhere
from recipe_runs import load, results
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    pipeline,
)

import hfseq
from hfseq.data.collation import CheckedCollator
from hfseq.errors import InputError
from hfseq.models.inputs import CharacterEncoder
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import ModelArguments
from hfseq.training.loading import load_model

TEXTS = ["Hello , world : don't stop", "aab says Hello"] * 3
FAMILIES = (hfseq.RnnConfig, hfseq.LstmConfig, hfseq.GruConfig, hfseq.CnnConfig)
ENCODERS = ("cnn", "lstm")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, model="word", vocab_size=60, lowercase=True, characters=True)


def spelled(tokenizer, ids):
    """Characters in place of their ids, `?` for an unknown one."""
    known = tokenizer.init_kwargs["characters"]
    return "".join("?" if number == 1 else known[number - 2] for number in ids if number)


def config_of(family, encoder, tokenizer, **fields):
    sizes = {"hidden_size": 12, "embedding_size": 8, "char_embedding_size": 5, "char_hidden_size": 6}
    ids = {"vocab_size": len(tokenizer), "char_vocab_size": tokenizer.char_vocab_size, "num_labels": 3}
    return family(char_encoder=encoder, **(sizes | ids | fields))


# The tokenizer.


def test_each_token_is_spelled_as_the_text_has_it(tokenizer):
    encoded = tokenizer("Hello, don't  Wow")
    tokens = encoded.tokens()
    assert tokens == ["▁hello", "<unk>", "▁don", "'", "t", "<unk>", "</s>"]
    assert [spelled(tokenizer, ids) for ids in encoded["char_ids"]] == ["Hello", ",", "don", "'", "t", "?ow", ""]


def test_words_of_a_list_are_spelled(tokenizer):
    encoded = tokenizer([["Hello", "aab's"], ["world"]], is_split_into_words=True)
    rows = [[spelled(tokenizer, ids) for ids in row] for row in encoded["char_ids"]]
    assert rows == [["Hello", "aab", "'", "s", ""], ["world", ""]]
    one = tokenizer(["Hello", "aab's"], is_split_into_words=True)
    assert one["char_ids"] == encoded["char_ids"][0] and one["input_ids"] == encoded["input_ids"][0]


@pytest.mark.parametrize("words", [False, True])
def test_both_texts_of_a_pair_are_spelled(tokenizer, words):
    one, two = (["Hello"], ["stop", "aab"]) if words else ("Hello", "stop aab")
    expected = ["Hello", "", "stop", "aab", ""]
    for encoded in (
        tokenizer(one, two, is_split_into_words=words),
        {name: rows[0] for name, rows in tokenizer([one], [two], is_split_into_words=words).items()},
        {name: rows[0] for name, rows in tokenizer([(one, two)], is_split_into_words=words).items()},
    ):
        assert [spelled(tokenizer, ids) for ids in encoded["char_ids"]] == expected
    assert tokenizer(one, two, is_split_into_words=words, return_tensors="pt")["char_ids"].shape == (1, 5, 24)


def test_composed_and_decomposed_letters_are_spelled_alike():
    tokenizer = train_tokenizer(["caf\u00e9 caf\u00e9"], model="word", vocab_size=20, characters=True)
    composed, decomposed = tokenizer("caf\u00e9"), tokenizer("cafe\u0301")
    assert composed["char_ids"] == decomposed["char_ids"]
    assert spelled(tokenizer, composed["char_ids"][0]) == "caf\u00e9"


@pytest.mark.parametrize("text", ["\ud55c\uae00", "\u0995\u09cb", "\u0b95\u0bca", "na\u00efve"])
@pytest.mark.parametrize("model", ["word", "whitespace", "bpe"])
def test_other_scripts_are_composed_too(text, model):
    tokenizer = train_tokenizer([f"{text} {text}"] * 2, model=model, vocab_size=60, characters=True)
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert tokenizer(text)["char_ids"] == tokenizer(decomposed)["char_ids"]
    assert 1 not in np.concatenate(tokenizer(decomposed)["char_ids"])


def test_the_middle_of_a_long_word_is_left_out(tokenizer):
    tokenizer = train_tokenizer(["abcdefghij"] * 2, model="whitespace", vocab_size=20, characters=True)
    tokenizer.init_kwargs["max_characters"] = 5
    assert spelled(tokenizer, tokenizer("abcdefghij")["char_ids"][0]) == "abcij"
    assert spelled(tokenizer, tokenizer("abcde")["char_ids"][0]) == "abcde"


def test_a_character_seen_once_is_unknown():
    tokenizer = train_tokenizer(["aa b"], model="whitespace", vocab_size=20, characters=True)
    assert tokenizer.init_kwargs["characters"] == "a"
    assert tokenizer("ab")["char_ids"] == [[2, 1], []]


def test_truncation_and_overflow(tokenizer):
    text = "Hello world don't stop"
    whole = tokenizer(text)["char_ids"]
    assert tokenizer(text, truncation=True, max_length=3)["char_ids"] == [*whole[:2], []]
    parts = tokenizer([text, "aab"], truncation=True, max_length=3, return_overflowing_tokens=True)
    assert [row[:-1] for row in parts["char_ids"]] == [
        whole[:2],
        whole[2:4],
        whole[4:6],
        tokenizer("aab")["char_ids"][:1],
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_at_once_and_later_are_the_same(tokenizer, side):
    texts = ["Hello world", "aab", "don't stop aab says"]
    at_once = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    assert at_once["char_ids"].shape == (3, 7, 5)
    rows = [tokenizer(text) for text in texts]
    for given in (rows, [dict(row) for row in rows], tokenizer(texts)):
        later = tokenizer.pad(given, padding_side=side, return_tensors="pt")
        assert all(torch.equal(at_once[name], later[name]) for name in at_once)
    again = tokenizer.pad(at_once, padding="max_length", max_length=9, padding_side=side)
    assert again["char_ids"].shape == (3, 9, 5) and int((again["char_ids"] != 0).sum()) == int(
        (at_once["char_ids"] != 0).sum()
    )
    lists = tokenizer(texts, padding=True, padding_side=side)
    assert torch.equal(torch.tensor(lists["char_ids"]), at_once["char_ids"])
    numpy = tokenizer(texts, padding=True, padding_side=side, return_tensors="np")
    assert isinstance(numpy["char_ids"], np.ndarray) and numpy["char_ids"].shape == (3, 7, 5)


def test_one_row_is_padded(tokenizer):
    row = tokenizer("Hello aab")
    padded = tokenizer.pad(row, padding="max_length", max_length=5, return_tensors="pt")
    assert padded["input_ids"].shape == (5,) and padded["char_ids"].shape == (5, 5)
    again = tokenizer.pad(padded, padding="max_length", max_length=7, return_tensors="pt")
    assert again["input_ids"].shape == (7,) and again["char_ids"].shape == (7, 5)


def test_rows_without_characters_are_padded_as_ever(tokenizer):
    padded = tokenizer.pad([{"input_ids": [5]}, {"input_ids": [5, 6]}])
    assert padded["input_ids"] == [[5, 0], [5, 6]] and "char_ids" not in padded


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is hfseq.WordCharacterTokenizer
    assert dict(again(TEXTS)) == dict(tokenizer(TEXTS))
    assert again.char_vocab_size == tokenizer.char_vocab_size and again.max_characters == 24


# The encoder.


def words_of(count, longest, seed=0):
    rng = random.Random(seed)
    return [[rng.randint(1, 20) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def batch_of(words, width):
    return torch.tensor([[[*word, *[0] * (width - len(word))] for word in words]])


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
def test_cnn_features_are_the_maximum_over_the_word(kernel_size):
    torch.manual_seed(0)
    config = hfseq.LstmConfig(char_encoder="cnn", char_vocab_size=21, char_hidden_size=7, char_kernel_size=kernel_size)
    encoder = CharacterEncoder(config).eval()
    words = words_of(9, 8)
    weight, bias = encoder.layer.weight, torch.randn(7)
    encoder.layer.bias.data.copy_(bias)
    for word, found in zip(words, encoder(batch_of(words, 8))[0], strict=True):
        embedded = encoder.embed_characters(torch.tensor(word))
        before = (kernel_size - 1) // 2
        zeros = embedded.new_zeros
        padded = torch.cat([zeros(before, 30), embedded, zeros(kernel_size - 1 - before, 30)])
        values = [
            torch.stack([(weight[unit] * padded[at : at + kernel_size].T).sum() for unit in range(7)]) + bias
            for at in range(len(word))
        ]
        torch.testing.assert_close(found, torch.stack(values).relu().amax(dim=0))


def test_lstm_features_are_the_final_states_of_both_directions():
    torch.manual_seed(0)
    config = hfseq.LstmConfig(char_encoder="lstm", char_vocab_size=21, char_hidden_size=8)
    encoder = CharacterEncoder(config).eval()
    oracle = nn.LSTM(30, 4, bidirectional=True, batch_first=True)
    layers = {"": encoder.layer.forward_layers[0], "_reverse": encoder.layer.backward_layers[0]}
    for ending, layer in layers.items():
        for name, parameter in layer.named_parameters():
            getattr(oracle, name + ending).data.copy_(parameter)
    words = words_of(9, 8)
    for word, found in zip(words, encoder(batch_of(words, 8))[0], strict=True):
        _, (final, _) = oracle(encoder.embed_characters(torch.tensor([word])))
        torch.testing.assert_close(found, final.flatten())


@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_of_characters_changes_nothing(kind):
    encoder = CharacterEncoder(hfseq.LstmConfig(char_encoder=kind, char_vocab_size=21)).eval()
    words = [*words_of(5, 6), []]
    narrow, wide = encoder(batch_of(words, 6)), encoder(batch_of(words, 11))
    torch.testing.assert_close(narrow, wide)
    assert not narrow[0, -1].any()


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_batch_without_any_character_trains(kind):
    encoder = CharacterEncoder(hfseq.LstmConfig(char_encoder=kind, char_vocab_size=21))
    features = encoder(torch.zeros(2, 3, 1, dtype=torch.long))
    features.sum().backward()
    assert not features.any()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in encoder.parameters())


# Models.


@pytest.mark.parametrize(("family", "kind", "side"), [*product(FAMILIES, ENCODERS, ("left", "right"))])
def test_padding_of_words_changes_nothing(tokenizer, family, kind, side):
    torch.manual_seed(0)
    config = config_of(family, kind, tokenizer)
    texts = ["Hello world", "aab", "don't stop aab says"]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    tagger = AutoModelForTokenClassification.from_config(config).eval()
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    for row, text in enumerate(texts):
        alone, valid = tokenizer(text, return_tensors="pt"), batch["attention_mask"][row].bool()
        torch.testing.assert_close(tagger(**batch).logits[row][valid], tagger(**alone).logits[0])
        torch.testing.assert_close(classifier(**batch).logits[row], classifier(**alone).logits[0])


@pytest.mark.parametrize(("family", "kind"), [*product(FAMILIES, ENCODERS)])
def test_an_unknown_word_is_told_by_its_characters_and_they_learn(tokenizer, family, kind):
    model = AutoModelForTokenClassification.from_config(config_of(family, kind, tokenizer))
    one, other = (tokenizer(text, return_tensors="pt") for text in ("sold", "lost"))
    assert torch.equal(one["input_ids"], other["input_ids"])
    assert not torch.allclose(model.eval()(**one).logits, model(**other).logits)
    model.train()(**one, labels=torch.tensor([[1, -100]])).loss.backward()
    found = {name: parameter.grad for name, parameter in model.model.characters.named_parameters()}
    assert all(grad is not None and grad.any() for name, grad in found.items() if "bias_hh" not in name)


@pytest.mark.parametrize(("family", "kind"), [*product(FAMILIES, ENCODERS)])
def test_characters_stand_beside_given_embeddings(tokenizer, family, kind):
    model = AutoModelForTokenClassification.from_config(config_of(family, kind, tokenizer)).eval()
    batch = tokenizer("Hello wow", return_tensors="pt")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    found = model(inputs_embeds=embeds, char_ids=batch["char_ids"]).logits
    torch.testing.assert_close(found, model(**batch).logits)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_language_model_starts_a_tagger_of_characters(tokenizer, kind, tmp_path):
    config = config_of(hfseq.LstmConfig, None, tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tagger = AutoModelForTokenClassification.from_pretrained(
        tmp_path, char_encoder=kind, char_vocab_size=9, ignore_mismatched_sizes=True
    )
    assert tagger.model.characters is not None


def test_characters_are_initialised_as_their_layers_are(tokenizer):
    for family in FAMILIES:
        encoder = AutoModelForTokenClassification.from_config(config_of(family, "lstm", tokenizer)).model.characters
        layer = encoder.layer.forward_layers[0]
        assert torch.equal(layer.bias_ih_l0, torch.tensor([0.0] * 3 + [1.0] * 3 + [0.0] * 6))
        square = layer.weight_hh_l0[:3]
        torch.testing.assert_close(square @ square.T, torch.eye(3))
        cnn = AutoModelForTokenClassification.from_config(config_of(family, "cnn", tokenizer)).model.characters
        assert not cnn.layer.bias.any()


# Bad input.


@pytest.mark.parametrize("family", FAMILIES)
def test_what_generates_reads_no_characters(tokenizer, family):
    config = config_of(family, "cnn", tokenizer)
    for auto_class in (AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        with pytest.raises(ValueError, match="char_encoder=cnn is impossible, it is for encoders, classifiers"):
            auto_class.from_config(config)
    with pytest.raises(ValueError, match="char_encoder=cnn is impossible"):
        config_of(family, "cnn", tokenizer, add_cross_attention=True)
    heads = config.auto_map.keys()
    assert not heads & {"AutoModelForCausalLM", "AutoModelForSeq2SeqLM"} and "AutoModelForTokenClassification" in heads


def test_two_directions_need_an_even_width():
    with pytest.raises(ValueError, match="char_hidden_size=7 is impossible, it must be even"):
        hfseq.LstmConfig(char_encoder="lstm", char_hidden_size=7)


@pytest.mark.parametrize("family", FAMILIES)
def test_characters_where_none_are_read_and_none_where_they_are(tokenizer, family):
    batch = tokenizer("Hello wow", return_tensors="pt")
    plain = AutoModelForTokenClassification.from_config(config_of(family, None, tokenizer))
    with pytest.raises(ValueError, match="char_ids were passed to a model without char_encoder"):
        plain(**batch)
    model = AutoModelForTokenClassification.from_config(config_of(family, "cnn", tokenizer))
    with pytest.raises(ValueError, match="needs char_ids"):
        model(input_ids=batch["input_ids"])
    for wrong in (batch["char_ids"][:, :1], batch["char_ids"][:, :, :0], batch["char_ids"][0]):
        with pytest.raises(ValueError, match=r"char_ids has shape .*, expected \(1, 3, characters of a word\)"):
            model(input_ids=batch["input_ids"], char_ids=wrong)


def test_an_unknown_character_id_is_refused_in_a_batch(tokenizer):
    model = AutoModelForTokenClassification.from_config(config_of(hfseq.GruConfig, "cnn", tokenizer))
    rows = [{**tokenizer("aab"), "labels": [0, -100]}, {**tokenizer("Hello aab"), "labels": [0, 1, -100]}]
    collator = CheckedCollator(DataCollatorForTokenClassification(tokenizer), model)
    assert collator(rows)["char_ids"].shape == (2, 3, 5)
    rows[1]["char_ids"][1][0] = tokenizer.char_vocab_size
    with pytest.raises(InputError, match=r"char_ids of shape \(2, 3, 5\): row 1, column 1, 0 is "):
        collator(rows)
    plain = DataCollatorWithPadding(tokenizer)([dict(tokenizer("aab")), dict(tokenizer("Hello"))])
    assert plain["char_ids"].shape == (2, 2, 5)


# The recipe: a word's ending says its tag, and no word of the test is one of training.


def tagged(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        stems = ["".join(rng.choices("bdgklmnprst", k=rng.randint(3, 6))) for _ in range(rng.randint(1, 6))]
        tags = [rng.choice(("adverb", "noun", "verb")) for _ in stems]
        endings = {"adverb": "oo", "noun": "ee", "verb": "iu"}
        yield [(stem + endings[tag], tag) for stem, tag in zip(stems, tags, strict=True)]


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    root = tmp_path_factory.mktemp("endings")
    for seed, (name, count) in enumerate((("train", 200), ("val", 40), ("test", 40))):
        rows = ("".join(f"{word} {tag}\n" for word, tag in sentence) + "\n" for sentence in tagged(count, seed))
        # Seen four times in each epoch, at whose end all that is scored takes longer than to train.
        (root / f"{name}.conll").write_text("".join(rows) * (4 if name == "train" else 1), encoding="utf-8")
    (root / "config.yaml").write_text(
        "tokenizer_model: whitespace\nvocab_size: 200\nnum_train_epochs: 2\nlearning_rate: 1e-2\n"
        "per_device_train_batch_size: 8\nuse_cpu: true\ndisable_tqdm: true\n",
        encoding="utf-8",
    )
    return root


def train(endings, output_dir, recipe="tagging", **fields):
    overrides = {"hidden_size": 16, "embedding_size": 8, "dropout": 0.0} | fields
    files = {f"{name}_file": endings / f"{short}.conll" for name, short in (("train", "train"), ("test", "test"))}
    files["validation_file"] = endings / "val.conll"
    given = {"output_dir": output_dir, "config_overrides": json.dumps(overrides)}
    recipe_runs.start(load(recipe), recipe_runs.arguments(endings / "config.yaml", **files, **given))
    return output_dir


@pytest.fixture(scope="module")
def taggers(endings, tmp_path_factory):
    root = tmp_path_factory.mktemp("taggers")
    return {kind: train(endings, root / str(kind), char_encoder=kind) for kind in (None, *ENCODERS)}


def test_words_never_seen_are_tagged_by_their_endings(taggers):
    scores = {kind: results(directory)["test_accuracy"] for kind, directory in taggers.items()}
    assert scores["cnn"] > 95 and scores["lstm"] > 95
    assert scores[None] < 60


def test_the_pipeline_spells_words(taggers):
    tag = pipeline("token-classification", model=str(taggers["cnn"]), device="cpu", aggregation_strategy="first")
    found = tag("tabliu mondee")
    assert [entity["entity_group"] for entity in found] == ["verb", "noun"]
    (split,) = tag([["tabliu", "mondee"]], is_split_into_words=True)
    assert [entity["entity_group"] for entity in split] == ["verb", "noun"]


def test_the_pipeline_batches_words_of_all_lengths(tokenizer):
    torch.manual_seed(0)
    heads = hfseq.LstmForTokenClassification(config_of(hfseq.LstmConfig, "cnn", tokenizer)).eval()
    tag = pipeline("token-classification", model=heads, tokenizer=tokenizer, device="cpu")
    texts = ["", "aab", "Hello , world", "a" * 40, "says don't"]
    alone, together = (tag(texts, batch_size=size) for size in (1, 5))
    assert [len(entities) for entities in together] == [0, 1, 3, 1, 4]
    for one, other in zip(alone, together, strict=True):
        assert [entity["entity"] for entity in one] == [entity["entity"] for entity in other]
        assert [entity["score"] for entity in one] == pytest.approx([entity["score"] for entity in other], abs=1e-5)


LOADED = """\
import sys
class NoHfseq:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hfseq":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoHfseq())
from transformers import pipeline
tag = pipeline("token-classification", model=sys.argv[1], device="cpu", trust_remote_code=True)
print([entity["entity"] for entity in tag("tabliu mondee")])
"""


def test_a_published_tagger_spells_words_without_hfseq(taggers, tmp_path):
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = run_elsewhere("-c", LOADED, taggers["lstm"], environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("['verb', 'noun'")


def test_a_tokenizer_and_its_model_agree_on_characters(tokenizer, taggers):
    plain = train_tokenizer(TEXTS, model="word", vocab_size=60)
    args = ModelArguments(model_type="hfseq_gru", config_overrides={"char_encoder": "cnn"})
    with pytest.raises(InputError, match="char_encoder='cnn' needs a tokenizer that returns char_ids"):
        load_model(AutoModelForTokenClassification, args, None, default_type="", tokenizer=plain)
    for kind, overrides, message in (
        (None, {"char_encoder": "cnn"}, "has a different size"),
        ("cnn", {"char_encoder": None}, "has a different size"),
        (None, {"hidden_size": 32}, "has a different size in the checkpoint and would be reinitialized"),
    ):
        args = ModelArguments(model_name_or_path=str(taggers[kind]), config_overrides=overrides)
        fields = {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}
        with pytest.raises(InputError, match=message):
            load_model(AutoModelForTokenClassification, args, None, default_type="", **fields)
    with pytest.raises(ValueError, match="needs characters="):
        hfseq.WordCharacterTokenizer(tokenizer_object=plain.backend_tokenizer)("a")


def test_the_number_of_characters_comes_from_the_tokenizer(endings, tmp_path):
    with pytest.raises(InputError, match="char_vocab_size is determined by the tokenizer"):
        train(endings, tmp_path / "no", char_encoder="cnn", char_vocab_size=50)
