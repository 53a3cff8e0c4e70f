"""Sampled segmentations against all of them, listed."""

import copy
import math
import pickle
import random
from collections import Counter

import datasets
import pytest
import recipe_runs
import test_summarization
from recipe_runs import load
from test_sentiment import DRIVERS, data, start  # noqa: F401
from test_summarization import data as summaries  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hfseq.data import subwords
from hfseq.data.subwords import SegmentationSampler, resample
from hfseq.errors import InputError
from hfseq.tokenization import pair_tokenizers, train_tokenizer

PIECES = {
    "<pad>": 0.0,
    "</s>": 0.0,
    "<unk>": 0.0,
    "▁a": -1.0,
    "▁": -2.0,
    "a": -1.5,
    "b": -2.5,
    "ab": -1.2,
    "▁ab": -3.0,
}
PIECES |= {"aba": -4.0, "ba": -2.2}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.Unigram([*PIECES.items()], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def segmentations(word):
    """All segmentations of a word into pieces, as ids, and their log-probabilities."""
    if not word:
        yield (), 0.0
    for number, (piece, score) in enumerate(PIECES.items()):
        if score and word.startswith(piece):
            for rest, other in segmentations(word[len(piece) :]):
                yield (number, *rest), score + other


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_probabilities_are_the_papers(tokenizer, alpha):
    sampler = SegmentationSampler(tokenizer, alpha)
    word = "▁ababa"
    weights = {ids: math.exp(alpha * score) for ids, score in segmentations(word)}
    ends = sampler._lattice(word)
    assert len(weights) > 10
    for ids, weight in weights.items():
        probability, at = 1.0, len(word)
        for number in reversed(ids):
            starts, numbers, shares = ends[at]
            place = numbers.index(number)
            probability *= shares[place] - (shares[place - 1] if place else 0)
            at = starts[place]
        assert probability == pytest.approx(weight / sum(weights.values()))


def test_samples_follow_the_probabilities(tokenizer):
    sampler, rng = SegmentationSampler(tokenizer, 0.5), random.Random(0)
    weights = {ids: math.exp(0.5 * score) for ids, score in segmentations("▁aba")}
    best = tokenizer("aba")["input_ids"]
    counts = Counter(tuple(sampler(best, rng)) for _ in range(20_000))
    assert set(counts) == set(weights)
    for ids, weight in weights.items():
        assert counts[ids] / 20_000 == pytest.approx(weight / sum(weights.values()), abs=0.015)


def test_texts_stay_the_same(tokenizer):
    sampler, rng = SegmentationSampler(tokenizer, 0.0), random.Random(0)
    ids = [*tokenizer("ab aza b ba")["input_ids"], 1, 0]
    assert 2 in ids
    for _ in range(50):
        found = sampler(ids, rng)
        assert found[-2:] == [1, 0] and found.count(2) == ids.count(2)
        assert "".join(tokenizer.convert_ids_to_tokens(found)) == "".join(tokenizer.convert_ids_to_tokens(ids))


def test_added_tokens_stay_whole(tokenizer):
    other = copy.deepcopy(tokenizer)
    # In the vocabulary, as a user-defined symbol of SentencePiece.
    other.add_tokens(["aba"])
    sampler, rng = SegmentationSampler(other, 0.0), random.Random(0)
    first, *rest = other("aba a")["input_ids"]
    assert other.convert_ids_to_tokens(first) == "aba"
    assert {sampler([first, *rest], rng)[0] for _ in range(50)} == {first}


def test_a_trained_tokenizer():
    rng = random.Random(0)
    stems, ends = ("walk", "talk", "jump", "call", "play", "work"), ("s", "ed", "ing", "er", "ers", "")
    texts = [" ".join(rng.choice(stems) + rng.choice(ends) for _ in range(6)) for _ in range(200)]
    tokenizer = train_tokenizer(texts, vocab_size=60)
    sampler = SegmentationSampler(tokenizer, 0.2)
    seen = {tuple(sampler(tokenizer(texts[0])["input_ids"], rng)) for _ in range(30)}
    assert len(seen) > 5
    assert {tokenizer.decode(ids, skip_special_tokens=True) for ids in seen} == {texts[0]}


@pytest.mark.parametrize("model", ["bpe", "word", "character"])
def test_other_tokenizers_are_refused(model):
    with pytest.raises(InputError, match="--subword_samples needs a unigram tokenizer"):
        SegmentationSampler(train_tokenizer(["some text"], model=model), 0.2)


def test_rows_are_segmented_anew(tokenizer):
    texts = ["ab aba", "b a", "a", "ababab"] * 3
    encoded = tokenizer(texts)["input_ids"]
    columns = {"input_ids": encoded, "attention_mask": [[1] * len(ids) for ids in encoded], "labels": [*range(12)]}
    rows = datasets.Dataset.from_dict(columns)
    options = {"samples": 3, "alpha": 0.1, "seed": 1}
    found = resample(rows, tokenizer, {"input_ids": 6}, **options)
    assert found["labels"][:] == [*range(12)] * 3
    assert ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in found["input_ids"]] == (
        ["".join(tokenizer.convert_ids_to_tokens(ids)) for ids in encoded] * 3
    )
    assert [len(mask) for mask in found["attention_mask"]] == [len(ids) for ids in found["input_ids"]]
    lengths = [len(ids) for ids in found["input_ids"]]
    assert max(lengths) == 6
    assert len({tuple(ids) for ids in found["input_ids"]}) > 2 * len({tuple(ids) for ids in encoded})
    assert resample(rows, tokenizer, {"input_ids": 6}, **options)["input_ids"][:] == found["input_ids"][:]
    assert (
        resample(rows, tokenizer, {"input_ids": 6}, **options | {"seed": 2})["input_ids"][:] != found["input_ids"][:]
    )


def test_targets_with_a_vocabulary_of_their_own():
    sources, targets = ["walked walking talked"] * 9, ["gehen gegangen reden"] * 9
    pair = pair_tokenizers(train_tokenizer(sources, vocab_size=40), train_tokenizer(targets, vocab_size=40))
    encoded = pair(sources, text_target=targets)
    rows = datasets.Dataset.from_dict({name: encoded[name] for name in ("input_ids", "attention_mask", "labels")})
    found = resample(rows, pair, {"input_ids": 30, "labels": 30}, samples=1, alpha=0.1, seed=1)
    assert {pair.decode(ids, skip_special_tokens=True) for ids in found["labels"]} == {targets[0]}
    assert {pair.source.decode(ids, skip_special_tokens=True) for ids in found["input_ids"]} == {sources[0]}


def test_lattices_are_few(tokenizer, monkeypatch):
    sampler, rng = SegmentationSampler(tokenizer, 0.0), random.Random(0)
    monkeypatch.setattr(subwords, "_KEPT", 2)
    for text in ("a", "ab", "aba", "abab"):
        sampler(tokenizer(text)["input_ids"], rng)
        assert len(sampler.lattices) <= 2
    assert sampler.lattices and not pickle.loads(pickle.dumps(sampler)).lattices


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_recipes_train_on_more_rows(driver, data, tmp_path, capsys):  # noqa: F811
    flags = {"tokenizer_model": "unigram", "num_train_epochs": 1}
    start(driver, data, tmp_path / "plain", **flags)
    assert "1 process(es), 5 batches per epoch" in capsys.readouterr().out
    start(driver, data, tmp_path / "sampled", subword_samples=3, **flags)
    assert "1 process(es), 14 batches per epoch" in capsys.readouterr().out


def test_what_cannot_be_sampled(data, summaries, tmp_path):  # noqa: F811
    driver, output = DRIVERS[0], tmp_path / "run"
    with pytest.raises(InputError, match="--subword_samples needs a unigram tokenizer"):
        start(driver, data, output, subword_samples=2)
    with pytest.raises(InputError, match="--subword_samples reads the training rows several times; omit --streaming"):
        start(driver, data, output, subword_samples=2, streaming=True, max_steps=2)
    with pytest.raises(InputError, match="--subword_alpha -1"):
        start(driver, data, output, subword_samples=2, subword_alpha=-1)
    # Its rows also say where the words of the source are.
    with pytest.raises(InputError, match="not supported for a model that reads copy_ids"):
        test_summarization.start(test_summarization.DRIVERS[0], summaries, output, subword_samples=2)
    flags = ["--task", "tagging", "--subword_samples", "2", "--output_dir", output]
    with pytest.raises(InputError, match="not for --task tagging"):
        recipe_runs.start(load("finetuning"), flags)
