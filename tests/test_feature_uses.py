"""Uses of models that read features: collators, statistics, export, publishing, and what refuses them in one line."""

import math
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    ParakeetCTCConfig,
    ParakeetForCTC,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

import hfseq
from hfseq import LstmConfig, LstmForConditionalGeneration, LstmForSequenceClassification, LstmForTokenClassification
from hfseq.data.collation import CheckedCollator, check_batch, vocabulary_sizes
from hfseq.data.features import FeatureCollator, feature_statistics
from hfseq.errors import InputError
from hfseq.models import MODEL_CLASSES
from hfseq.tokenization import train_tokenizer

WIDTH = 3
TINY = {"vocab_size": 17, "input_size": WIDTH, "hidden_size": 8, "num_labels": 4}
SEQ2SEQ = "AutoModelForSeq2SeqLM"
CLASSES = [
    pytest.param(model_class, id=model_class.__name__)
    for heads in MODEL_CLASSES.values()
    for auto, model_class in heads.items()
    if auto != "AutoModelForCausalLM"
]


def make(model_class, **fields):
    torch.manual_seed(0)
    return model_class(model_class.config_class(**TINY | fields)).eval()


def frames(*lengths, width=WIDTH, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(2, 3, (length, width)).astype("float32") for length in lengths]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sees the dog"], model="word", vocab_size=17)


# --- values of a batch -----------------------------------------------------------------------------------------------


def batch(**changes):
    """A batch that is right for three features, ids below 10 and classes below 10, with some of it changed."""
    right = {
        "input_features": torch.arange(24.0).view(2, 4, 3),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]),
        "decoder_input_ids": torch.tensor([[1, 9], [1, 0]]),
        "labels": torch.tensor([[9, 2], [2, -100]]),
    }
    return right | changes


def spoilt(row, frame, value=math.nan):
    values = batch()["input_features"]
    values[row, frame, 2] = value
    return values


def test_what_is_right_passes():
    sizes = {"vocab_size": None, "decoder_vocab_size": 10, "input_size": 3}
    check_batch(batch(), **sizes)
    check_batch(batch(attention_mask=None), **sizes)
    check_batch({name: value.numpy() for name, value in batch().items()}, **sizes)
    # Padding may hold anything.
    check_batch(batch(input_features=spoilt(1, 0)), **sizes)
    check_batch({"input_features": torch.ones(2, 4, 3), "labels": torch.tensor([3, 0])}, None, 4, input_size=3)
    # Another layout, `[B, F, T]`, and waveforms.
    check_batch({"input_features": torch.ones(2, 8, 20), "attention_mask": torch.ones(2, 20)}, None)
    check_batch({"input_values": torch.ones(2, 99), "attention_mask": torch.ones(2, 99)}, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input_features": torch.ones(2, 4, 5)},
            r"input_features has shape \(2, 4, 5\); the model reads \(rows, frames, 3\), since its input_size is 3",
        ),
        ({"input_features": torch.ones(2, 4)}, r"input_features has shape \(2, 4\); the model reads"),
        ({"input_features": torch.ones(2, 0, 3)}, "there are no frames"),
        ({"input_features": spoilt(1, 2)}, r"\(2, 4, 3\): row 1, frame 2, feature 2 is nan, not a finite number"),
        ({"input_features": spoilt(0, 3, -math.inf)}, "row 0, frame 3, feature 2 is -inf"),
        ({"input_features": spoilt(1, 0), "attention_mask": None}, "row 1, frame 0, feature 2 is nan"),
        (
            {"attention_mask": torch.ones(2, 4, 3)},
            r"attention_mask has shape \(2, 4, 3\), but input_features has \(2, 4, 3\): it must be of rows and frames",
        ),
        ({"attention_mask": torch.ones(2, 5)}, r"attention_mask has shape \(2, 5\), but input_features has"),
        ({"attention_mask": torch.tensor([[1] * 4, [0] * 4])}, r"attention_mask of shape \(2, 4\): row 1 is all paddi"),
        ({"labels": torch.tensor([[9, 2], [10, -100]])}, "labels .* row 1, column 0 is 10, outside the vocabulary, 0"),
        ({"decoder_input_ids": torch.tensor([[1, 9], [1, 10]])}, "decoder_input_ids .* row 1, column 1 is 10, outside"),
        ({"input_ids": torch.ones(2, 4)}, r"input_ids of shape \(2, 4\): the model reads no tokens \(input_size=3\)"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        check_batch(batch(**changes), None, decoder_vocab_size=10, input_size=3)


def test_a_waveform_that_is_not_finite():
    values = torch.ones(2, 9)
    values[1, 7] = math.inf
    with pytest.raises(InputError, match=r"input_values of shape \(2, 9\): row 1, position 7 is inf"):
        check_batch({"input_values": values}, None)


AUDIO = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WHISPER = AUDIO | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20}
BODY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WAVE = BODY | {"vocab_size": 30, "conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,)}
WAVE |= {"num_feat_extract_layers": 1, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (partial(make, LstmForSequenceClassification), {"vocab_size": None, "input_size": 3, "num_labels": 4}),
        (partial(make, hfseq.CnnModel), {"vocab_size": None, "input_size": 3, "num_labels": 4}),
        (
            partial(make, LstmForConditionalGeneration),
            {"vocab_size": None, "input_size": 3, "decoder_vocab_size": 17},
        ),
        (
            lambda: WhisperForConditionalGeneration(WhisperConfig(**WHISPER)),
            {"vocab_size": None, "decoder_vocab_size": 40},
        ),
        (
            lambda: WhisperForAudioClassification(WhisperConfig(**WHISPER, num_labels=5)),
            {"vocab_size": None, "num_labels": 5},
        ),
        (lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**WAVE)), {"vocab_size": None, "decoder_vocab_size": 30}),
        (
            lambda: Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAVE, num_labels=5)),
            {"vocab_size": None, "num_labels": 5},
        ),
        (
            lambda: Speech2TextForConditionalGeneration(
                Speech2TextConfig(**AUDIO, input_feat_per_channel=8, conv_channels=16)
            ),
            {"vocab_size": None, "decoder_vocab_size": 40},
        ),
        (
            lambda: ParakeetForCTC(ParakeetCTCConfig(vocab_size=30, encoder_config=BODY | {"num_mel_bins": 8})),
            {"vocab_size": None, "decoder_vocab_size": 30},
        ),
    ],
    ids=["classifier", "encoder", "seq2seq", "whisper", "whisper classifier", "ctc", "wave", "speech2text", "parakeet"],
)
def test_sizes_of_models(model, sizes):
    assert vocabulary_sizes(model()) == sizes


# --- collators -------------------------------------------------------------------------------------------------------


def check_padding(got, rows):
    for row, values in enumerate(rows):
        valid = got["attention_mask"][row].bool()
        np.testing.assert_array_equal(got["input_features"][row, valid], values)


EXTRACTORS = pytest.mark.parametrize("extractor", [None, "right", "left"])


def make_extractor(side):
    if side is None:
        return None
    return Speech2TextFeatureExtractor(feature_size=WIDTH, num_mel_bins=WIDTH, sampling_rate=8000, padding_side=side)


@EXTRACTORS
def test_rows_of_a_classifier(extractor):
    model = make(LstmForSequenceClassification)
    values = frames(5, 2, 7)
    rows = datasets.Dataset.from_dict({"input_features": [one.tolist() for one in values], "labels": [0, 3, 1]})
    checked = CheckedCollator(FeatureCollator(model, make_extractor(extractor)), model)
    (got,) = DataLoader(rows, batch_size=3, collate_fn=checked)
    assert got.keys() == {"input_features", "attention_mask", "labels"}
    assert got["input_features"].dtype == torch.float32 and got["labels"].tolist() == [0, 3, 1]
    check_padding(got, values)
    assert model(**got).loss.isfinite()
    alone = [model(input_features=torch.tensor(one)[None]).logits for one in values]
    torch.testing.assert_close(model(**got).logits, torch.cat(alone))
    # Floats are targets of a regression, or of several classes at once; without labels there are none.
    targets = [row | {"labels": [0.0, 1.0, 0.0, 1.0]} for row in rows]
    assert checked(targets)["labels"].shape == (3, 4)
    assert "labels" not in checked([{"input_features": one} for one in values])


@EXTRACTORS
@pytest.mark.parametrize("factor", [1, 3])
def test_rows_of_a_tagger(extractor, factor):
    model = make(LstmForTokenClassification, subsampling_factor=factor)
    values = frames(5, 2, 7)
    labels = [np.arange(-(-len(one) // factor)) % 4 for one in values]
    rows = [{"input_features": one, "labels": own} for one, own in zip(values, labels, strict=True)]
    got = CheckedCollator(FeatureCollator(model, make_extractor(extractor)), model)(rows)
    check_padding(got, values)
    # The loss of the batch is that of the rows alone, so that each label stands at its step.
    together = model(**got, num_items_in_batch=1).loss
    alone = [
        model(input_features=torch.tensor(one)[None], labels=torch.tensor(own)[None], num_items_in_batch=1).loss
        for one, own in zip(values, labels, strict=True)
    ]
    torch.testing.assert_close(together, sum(alone))
    assert (got["labels"] != -100).sum(dim=1).tolist() == [len(own) for own in labels]


@EXTRACTORS
def test_rows_of_a_sequence_to_sequence_model(extractor, tokenizer):
    model = make(LstmForConditionalGeneration, subsampling_factor=2)
    values = frames(5, 8)
    rows = [{"input_features": values[0], "labels": [5, 6, 7, 2]}, {"input_features": values[1], "labels": [5, 2]}]
    processor = Wav2Vec2Processor(make_extractor("right"), tokenizer) if extractor == "right" else None
    checked = CheckedCollator(FeatureCollator(model, processor or make_extractor(extractor)), model)
    got = checked(rows)
    check_padding(got, values)
    assert got["labels"].tolist() == [[5, 6, 7, 2], [5, 2, -100, -100]]
    assert got["decoder_input_ids"].tolist() == [[1, 5, 6, 7], [1, 5, 2, 0]]
    together = model(**got, num_items_in_batch=1).loss
    alone = [
        model(input_features=torch.tensor(row["input_features"])[None], labels=torch.tensor([row["labels"]])).loss
        * len(row["labels"])
        for row in rows
    ]
    torch.testing.assert_close(together, sum(alone))
    rows[1]["labels"] = [5, 17, 2]
    with pytest.raises(InputError, match="labels .* row 1, column 1 is 17, outside the vocabulary, 0 to 16"):
        checked(rows)
    rows[1] = {"input_features": values[1] * np.nan, "labels": [2]}
    with pytest.raises(InputError, match="row 1, frame 0, feature 0 is nan"):
        checked(rows)


def test_rows_of_models_of_transformers():
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**WAVE))
    rows = [{"input_values": np.ones(80), "labels": [3, 4, 5]}, {"input_values": [1.0] * 50, "labels": [3]}]
    got = CheckedCollator(FeatureCollator(model, Wav2Vec2FeatureExtractor(return_attention_mask=True)), model)(rows)
    assert got["input_values"].shape == got["attention_mask"].shape == (2, 80)
    assert got["labels"].tolist() == [[3, 4, 5], [3, -100, -100]]
    assert model(**got).loss.isfinite()
    model = WhisperForConditionalGeneration(WhisperConfig(**WHISPER))
    rows = [{"input_features": np.ones((8, 40)), "labels": [3] * n} for n in (2, 3)]
    assert model(**CheckedCollator(FeatureCollator(model), model)(rows)).loss.isfinite()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"features": 1}, "row 1 has no input_features; its columns are features"),
        ({"input_features": np.ones((4, 2))}, r"row 1: input_features have shape \(4, 2\), expected \(frames, 3\), si"),
        ({"input_features": np.ones(4)}, r"row 1: input_features have shape \(4,\)"),
        ({"input_features": []}, r"row 1: input_features have shape \(0,\), .* with at least one frame"),
        ({"input_features": [[1, 2, 3], [4, 5]]}, "row 1: input_features: frame 1 has 2 features, but frame 0 has 3"),
        ({"input_features": "abc"}, "row 1: input_features are not frames of numbers"),
        ({"input_features": np.ones((4, 3))}, "row 1 has no labels, but others of its batch have"),
        ({"input_features": np.ones((4, 3)), "labels": [0] * 4}, "row 1: 4 labels for 4 frames, 2 steps of 3; give on"),
    ],
)
def test_rows_that_are_wrong(row, message):
    collate = FeatureCollator(make(LstmForTokenClassification, subsampling_factor=3))
    with pytest.raises(InputError, match=message):
        collate([{"input_features": np.ones((4, 3)), "labels": [0, 1]}, row])


def test_floats_of_different_numbers():
    rows = [{"input_features": np.ones((4, 3)), "labels": [0.5] * n} for n in (2, 3)]
    with pytest.raises(InputError, match=r"row 1: labels have shape \(3,\), but row 0 has \(2,\)"):
        FeatureCollator(make(LstmForSequenceClassification))(rows)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_all_frames_together():
    values = frames(40, 1, 300, 7)
    # A large mean, at which sums of squares lose all digits; a constant; and one that is constant in most rows.
    for one in values:
        one[:, 1] = 0.1
    values = [one.astype("float64") + np.array([1e8, 0.0, 0.0]) for one in values]
    mean, scale = feature_statistics({"input_features": one.tolist()} for one in values)
    whole = np.concatenate(values)
    torch.testing.assert_close(mean, torch.tensor(whole.mean(axis=0)), rtol=1e-12, atol=0)
    torch.testing.assert_close(scale, torch.tensor(whole.std(axis=0)), rtol=1e-9, atol=1e-12)
    assert scale[1] == 0.0
    model = make(LstmForSequenceClassification)
    model.model.set_feature_statistics(mean, scale)
    assert model.model.feature_scale[1] == 1.0


def test_statistics_of_batches_ignore_padding():
    values = frames(5, 2, 7)
    rows = [{"input_features": one} for one in values]
    padded = FeatureCollator(make(LstmForSequenceClassification))(rows)
    padded["input_features"][1, 2:] = math.nan
    for found, expected in zip(feature_statistics([padded]), feature_statistics(rows), strict=True):
        torch.testing.assert_close(found, expected)
    stream = datasets.Dataset.from_dict({"input_features": [one.tolist() for one in values]}).to_iterable_dataset()
    for found, expected in zip(feature_statistics(stream), feature_statistics(rows), strict=True):
        torch.testing.assert_close(found, expected)
    # Rows of padding alone add nothing.
    nothing = {"input_features": values[0], "attention_mask": np.zeros(5)}
    for found, expected in zip(feature_statistics([nothing, *rows, nothing]), feature_statistics(rows), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"x": 1}, "row 1 has no input_features; its columns are x"),
        ({"input_features": np.ones((4, 2))}, r"row 1: input_features has shape \(4, 2\), expected \(frames, 3\), as"),
        ({"input_features": np.array([[1, 2, 3], [1, np.nan, 3]])}, "row 1: .* frame 1, feature 1 is nan, not a finite"),
    ],
)
def test_statistics_of_what_is_wrong(row, message):
    with pytest.raises(InputError, match=message):
        feature_statistics([{"input_features": np.ones((4, 3))}, row])
    with pytest.raises(InputError, match="there are no frames of input_features"):
        feature_statistics([])
