"""Uses of models that read features: collators, statistics, export, publishing, and what refuses them in one line."""

import math
import re
from functools import partial

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from processes import run_elsewhere
from token_classes import MODEL_CLASSES
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    ParakeetCTCConfig,
    ParakeetForCTC,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    pipeline,
)

import hfseq
from hfseq import LstmConfig, LstmForConditionalGeneration, LstmForSequenceClassification, LstmForTokenClassification
from hfseq.data.collation import CheckedCollator, check_batch, vocabulary_sizes
from hfseq.data.features import FeatureCollator, feature_statistics
from hfseq.data.token_budget import row_lengths
from hfseq.demo.loading import load_demo_model
from hfseq.errors import InputError
from hfseq.hub.publish import load_published
from hfseq.inference import benchmark
from hfseq.inference.alignment import align_texts
from hfseq.inference.classify import classify_texts, predict_logits
from hfseq.inference.ensembles import (
    EnsembleForConditionalGeneration,
    EnsembleForSequenceClassification,
    load_ensemble,
)
from hfseq.inference.generate import decode_texts, score_texts
from hfseq.inference.importance import word_importance
from hfseq.inference.loading import load_checkpoint, load_trained
from hfseq.models.heads_ctc import ForCTC
from hfseq.onnx import runtime
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import OnnxForSequenceClassification, load_onnx
from hfseq.pipelines import TranslationPipeline
from hfseq.processing import extractor_of, load_processing_class, tokenizer_of
from hfseq.serve import make_server
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import ModelArguments
from hfseq.training.distillation import teacher_logits
from hfseq.training.finetuning import describe_model
from hfseq.training.loading import load_model
from hfseq.training.teacher_embeddings import start_from_teacher, teacher_embeddings
from hfseq.training.trainer import SequenceTrainer

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
        (
            {"attention_mask": torch.tensor([[1] * 4, [0] * 4])},
            r"attention_mask of shape \(2, 4\): row 1 is all paddi",
        ),
        ({"labels": torch.tensor([[9, 2], [10, -100]])}, "labels .* row 1, column 0 is 10, outside the vocabulary, 0"),
        (
            {"decoder_input_ids": torch.tensor([[1, 9], [1, 10]])},
            "decoder_input_ids .* row 1, column 1 is 10, outside",
        ),
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
    ids=[
        "classifier",
        "encoder",
        "seq2seq",
        "whisper",
        "whisper classifier",
        "ctc",
        "wave",
        "speech2text",
        "parakeet",
    ],
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
        (
            {"input_features": np.ones((4, 2))},
            r"row 1: input_features have shape \(4, 2\), expected \(frames, 3\), si",
        ),
        ({"input_features": np.ones(4)}, r"row 1: input_features have shape \(4,\)"),
        ({"input_features": []}, r"row 1: input_features have shape \(0,\), .* with at least one frame"),
        ({"input_features": [[1, 2, 3], [4, 5]]}, "row 1: input_features: frame 1 has 2 features, but frame 0 has 3"),
        ({"input_features": "abc"}, "row 1: input_features are not frames of numbers"),
        ({"input_features": np.ones((4, 3))}, "row 1 has no labels, but others of its batch have"),
        (
            {"input_features": np.ones((4, 3)), "labels": [0] * 4},
            "row 1: 4 labels for 4 frames, 2 steps of 3; give on",
        ),
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


def test_lengths_of_rows_are_in_frames():
    """So that `max_tokens` is the number of frames of a batch, or of target ids if those are more."""
    rows = [{"input_features": one.tolist(), "labels": [5] * 6} for one in frames(5, 2, 7)]
    assert row_lengths(rows).tolist() == row_lengths(datasets.Dataset.from_list(rows)).tolist() == [6, 6, 7]
    classes = [{"input_features": one, "labels": 1} for one in frames(5, 2, 7)]
    assert row_lengths(classes).tolist() == [5, 2, 7]


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_all_frames_together():
    values = frames(40, 1, 300, 7)
    # A large mean, at which sums of squares lose all digits, and a constant whose mean is rounded.
    values = [one.astype("float64") + np.array([1e8, 0.0, 0.0]) for one in values]
    for one in values:
        one[:, 1] = 0.1
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
        (
            {"input_features": np.array([[1, 2, 3], [1, np.nan, 3]])},
            "row 1: .* frame 1, feature 1 is nan, not a finite",
        ),
    ],
)
def test_statistics_of_what_is_wrong(row, message):
    with pytest.raises(InputError, match=message):
        feature_statistics([{"input_features": np.ones((4, 3))}, row])
    with pytest.raises(InputError, match="there are no frames of input_features"):
        feature_statistics([])


# --- export ----------------------------------------------------------------------------------------------------------

EXPORTED = [
    # The heads are the same for all cells; each family has its stacks.
    *(
        pytest.param(*found.values, {"subsampling_factor": 3}, id=found.id)
        for found in CLASSES
        if found.id.startswith(("Lstm", "Cnn")) or found.id.endswith(("Model", "Generation"))
    ),
    (LstmForSequenceClassification, {"pooling": "attention"}),
    (hfseq.GruForSequenceClassification, {"pooling": "middle", "embedding_size": 4, "subsampling_factor": 2}),
    (LstmForTokenClassification, {"crf": True, "bidirectional": False}),
    (hfseq.CnnForConditionalGeneration, {"architecture": "gated"}),
    (LstmForConditionalGeneration, {"attention_type": "additive", "input_feeding": True}),
]


def save(model, directory, *parts):
    """A model with statistics far from 0 and 1, in a directory with what processes its inputs and outputs."""
    size = model.config.input_size
    model.base_model.set_feature_statistics(torch.arange(size) * 10.0, torch.arange(size) + 0.5)
    model.save_pretrained(directory)
    for part in parts:
        part.save_pretrained(directory)
    return model


def padded(model, rows, length, seed=0):
    """Features as the statistics have them, padded anywhere by NaN."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, length, generator=generator) > 0.3).long()
    mask[:, length // 2] = 1
    values = torch.randn(rows, length, model.config.input_size, generator=generator)
    values = values * model.base_model.feature_scale + model.base_model.feature_mean
    inputs = {"input_features": values.masked_fill(mask.unsqueeze(2) == 0, math.nan), "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, model.config.vocab_size, (rows, 3), generator=generator)
    return inputs


@pytest.mark.parametrize(("model_class", "fields"), EXPORTED)
@torch.no_grad()
def test_a_graph_equals_its_model(model_class, fields, tokenizer, tmp_path):
    model = make(model_class, vocab_size=len(tokenizer), initializer_range=0.3, **fields)
    writes = model.can_generate() or isinstance(model, ForCTC)
    save(model, tmp_path / "model", *([tokenizer] if writes else []))
    hfseq.export_onnx(tmp_path / "model", tmp_path / "onnx")
    runner, _ = load_onnx(tmp_path / "onnx", threads=1)
    assert runner.main_input_name == "input_features" and vocabulary_sizes(runner) == vocabulary_sizes(model)
    for rows, length in ((1, 1), (2, 4), (3, 13), (4, 2)):
        inputs = padded(model, rows, length, seed=length)
        expected = model(**inputs)[0]
        torch.testing.assert_close(runner(**inputs)[0], expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-3
    if model.can_generate():
        del inputs["decoder_input_ids"]
        for beams in (1, 3):
            options = inputs | {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
            assert runner.generate(**options).tolist() == model.generate(**options).tolist()


@pytest.mark.parametrize(
    "model_class",
    [
        LstmForSequenceClassification,
        LstmForTokenClassification,
        hfseq.CnnForTokenClassification,
        LstmForConditionalGeneration,
    ],
)
def test_int8(model_class, tokenizer, tmp_path):
    model = make(model_class, vocab_size=len(tokenizer), hidden_size=32, subsampling_factor=2, initializer_range=0.3)
    save(model, tmp_path / "model", *([tokenizer] if model.can_generate() else []))
    hfseq.export_onnx(tmp_path / "model", tmp_path / "onnx")
    report = quantize_onnx(tmp_path / "onnx", tmp_path / "int8")
    last = list(report.values())[-1]
    assert 0 < last["median difference"] < 0.05


def test_int8_is_compared_on_features_as_the_statistics_have_them(tmp_path, monkeypatch):
    model = save(make(LstmForSequenceClassification, subsampling_factor=2), tmp_path / "model")
    hfseq.export_onnx(tmp_path / "model", tmp_path / "onnx")
    seen = []

    class Watched(OnnxForSequenceClassification):
        def forward(self, **inputs):
            seen.append(inputs)
            return super().forward(**inputs)

    monkeypatch.setitem(runtime._RUNNERS, "ForSequenceClassification", Watched)
    quantize_onnx(tmp_path / "onnx", tmp_path / "int8")
    features = torch.cat([inputs["input_features"].flatten(0, 1) for inputs in seen])
    torch.testing.assert_close(features.mean(dim=0), model.base_model.feature_mean, rtol=0, atol=0.2)
    torch.testing.assert_close(features.std(dim=0), model.base_model.feature_scale, rtol=0.1, atol=0)
    # Both batches hold rows of 24 steps down to one, of two frames each.
    assert all(inputs["attention_mask"].sum(dim=1).tolist()[::7] == [48, 2] for inputs in seen)


def test_what_a_runner_does_not_read(tokenizer, tmp_path):
    save(make(LstmForSequenceClassification), tmp_path / "features")
    LstmForSequenceClassification(LstmConfig(vocab_size=17, hidden_size=8)).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    runners = {}
    for name in ("features", "text"):
        hfseq.export_onnx(tmp_path / name, tmp_path / f"{name}_onnx")
        runners[name], processing_class = load_onnx(tmp_path / f"{name}_onnx")
        assert (processing_class is None) == (name == "features")
    ids, features = torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, 3)
    for name, inputs, message in (
        ("features", {"input_ids": ids}, "the model reads input_features, since its input_size is 3"),
        ("features", {"input_ids": ids, "input_features": features}, "the model reads input_features"),
        (
            "features",
            {"input_features": features[..., :2]},
            r"input_features has shape \(1, 4, 2\).* for input_size=3",
        ),
        ("features", {"input_features": features, "attention_mask": ids[:, 1:]}, "attention_mask has shape"),
        ("features", {"input_features": features, "labels": ids}, "take no labels"),
        ("features", {"input_features": features, "char_ids": ids}, "takes no char_ids"),
        ("text", {"input_features": features}, "the model reads input_ids, since its input_size is None"),
        ("text", {}, "the model reads input_ids"),
    ):
        with pytest.raises(ValueError, match=message):
            runners[name](**inputs)


# --- publishing ------------------------------------------------------------------------------------------------------

AUDIO_WIDTH = 8
EXTRACTOR = {"feature_size": AUDIO_WIDTH, "num_mel_bins": AUDIO_WIDTH, "sampling_rate": 8000}
# Class, whether it has an extractor and a tokenizer, tag of the pipeline, and what a card must have.
PUBLISHED = {
    "digits": (LstmForSequenceClassification, True, False, "audio-classification", 'pipeline("audio-classification"'),
    "speech": (
        LstmForConditionalGeneration,
        True,
        True,
        "automatic-speech-recognition",
        "AutoProcessor, AutoModelForSpeechSeq2Seq",
    ),
    "letters": (hfseq.GruForCTC, True, True, "automatic-speech-recognition", "automatic-speech-recognition"),
    "sensors": (LstmForSequenceClassification, False, False, None, '{"input_features": torch.zeros(1, 100, 8)}'),
    "phases": (LstmForTokenClassification, False, False, None, "model(**inputs).logits"),
    "captions": (hfseq.CnnForConditionalGeneration, False, True, None, "AutoTokenizer, AutoModelForSeq2SeqLM"),
    "vectors": (hfseq.GruModel, True, False, None, "AutoFeatureExtractor, AutoModel"),
}
# Runs the last example of each card, which needs no hfseq, and computes the outputs again, in one process.
ELSEWHERE = """\
import io, re, sys, contextlib
class NoHfseq:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hfseq":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoHfseq())
from pathlib import Path
import torch
import transformers
results = {}
for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    code = re.findall("```python\\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)[-1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace(f"ann/{folder.name}", str(folder)), {})
    given = torch.load(folder / "given.pt")
    auto_class = getattr(transformers, given.pop("auto_class"))
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        results[folder.name] = (model(**given)[0], printed.getvalue())
torch.save(results, sys.argv[2])
assert "hfseq" not in sys.modules
"""


@pytest.fixture(scope="module")
def published(tokenizer, tmp_path_factory):
    """A published folder of each model, with inputs, and their outputs."""
    root, folders = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("published")
    outputs = {}
    for name, (model_class, audio, text, _, _) in PUBLISHED.items():
        parts = [Speech2TextFeatureExtractor(**EXTRACTOR)] * audio + [tokenizer] * text
        model = make(model_class, input_size=AUDIO_WIDTH, vocab_size=len(tokenizer), subsampling_factor=2)
        save(model, root / name, *parts)
        hfseq.publish(root / name, f"ann/{name}", dry_run=folders / name)
        inputs = padded(model, 2, 9)
        with torch.no_grad():
            outputs[name] = model(**inputs)[0]
        auto_class = next(auto for auto, one in MODEL_CLASSES[model_class.config_class].items() if one is model_class)
        torch.save({"auto_class": auto_class, **inputs}, folders / name / "given.pt")
    return folders, outputs


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder(name, published):
    folder = published[0] / name
    _, audio, text, tag, example = PUBLISHED[name]
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == tag and example in card.text
    files = {path.name for path in folder.iterdir()}
    assert ("preprocessor_config.json" in files) == (audio and not text)
    assert ("processor_config.json" in files) == (audio and text)
    assert ("tokenizer.json" in files) == text
    assert ("audio of one channel at 8,000 Hz" in card.text) == audio
    assert ("`[rows, frames, 8]`" in card.text) == (not audio)
    # Not of texts.
    assert ("The vocabulary has" in card.text) == text
    assert "texts" not in card.text and "{" not in card.text.replace('{"input_features"', "")
    loaded, processing_class = load_published(folder)
    assert loaded.base_model.feature_mean[1] == 10.0
    kinds = {(True, True): Wav2Vec2Processor, (True, False): Speech2TextFeatureExtractor}
    assert type(processing_class) is kinds.get((audio, text), type(processing_class) if text else type(None))


def test_published_models_work_without_hfseq(published, tmp_path):
    folders, outputs = published
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = run_elsewhere("-c", ELSEWHERE, folders, tmp_path / "results.pt", environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "results.pt")
    assert found.keys() == outputs.keys()
    for name, expected in outputs.items():
        torch.testing.assert_close(found[name][0], expected)
    assert "'score'" in found["digits"][1] and "torch.Size([1, " in found["vectors"][1]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input_size": 2, "lags_sequence": [1, 7], "num_time_features": 1, "num_static_real_features": 2}
        | {"num_static_categorical_features": 1, "cardinality": [3], "prediction_length": 5},
        {"frame_shape": (1, 2, 2), "recurrent_kernel_size": 3, "scaling": None},
    ],
    ids=["plain", "covariates", "frames"],
)
def test_a_published_forecaster(fields, tmp_path, capsys):
    hfseq.LstmForPrediction(LstmConfig(hidden_size=8, num_parallel_samples=3, **fields)).save_pretrained(
        tmp_path / "model"
    )
    hfseq.publish(tmp_path / "model", "ann/waves", dry_run=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    frames, sizes = "frame_shape" in fields, "1, 2, 2" if "frame_shape" in fields else "2" if fields else ""
    assert (
        card.data.pipeline_tag == "time-series-forecasting" and ("It reads series of numbers" in card.text) != frames
    )
    assert ("It reads frames of pixels, `past_values` `[rows, frames, 1, 2, 2]`" in card.text) == frames
    assert ("the model scales each of them" in card.text) != frames
    # The pipeline is for one variate.
    assert ("time-series-forecasting" in card.text) == (not sizes)
    assert "input_features" not in card.text and "texts" not in card.text
    capsys.readouterr()
    code = re.findall("```python\n(.*?)```", card.text, flags=re.S)[-1]
    exec(code.replace("ann/waves", str(tmp_path / "out")), {})
    shape = [1, 3, fields.get("prediction_length", 10), *(int(size) for size in sizes.split(", ") if size)]
    assert capsys.readouterr().out == f"torch.Size({shape})\n"
    # From there it is exported, too.
    hfseq.export_onnx(tmp_path / "out", tmp_path / "onnx")
    assert load_onnx(tmp_path / "onnx")[0].parameter_names == ("df", "loc", "scale")


def test_an_extractor_and_a_tokenizer_saved_one_by_one(tokenizer, tmp_path):
    parts = [Speech2TextFeatureExtractor(**EXTRACTOR), tokenizer]
    assert load_processing_class(tmp_path) is None
    for part, kind in zip(parts, (Speech2TextFeatureExtractor, Wav2Vec2Processor), strict=True):
        part.save_pretrained(tmp_path)
        assert type(load_processing_class(tmp_path)) is kind
    found = load_processing_class(tmp_path)
    assert tokenizer_of(found).get_vocab() == tokenizer.get_vocab() and extractor_of(found).to_dict() == {
        **parts[0].to_dict(),
    }
    assert tokenizer_of(parts[0]) is None and extractor_of(tokenizer) is None and tokenizer_of(None) is None


def test_what_cannot_be_published(tokenizer, tmp_path):
    save(make(LstmForConditionalGeneration), tmp_path / "writes")
    with pytest.raises(InputError, match="writes: no tokenizer; save it there"):
        hfseq.publish(tmp_path / "writes", "x", dry_run=tmp_path / "out")
    Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**WAVE)).save_pretrained(tmp_path / "wave")
    with pytest.raises(
        InputError, match="Wav2Vec2ForSequenceClassification reads input_values, but there is no featu"
    ):
        hfseq.publish(tmp_path / "wave", "x", dry_run=tmp_path / "out")
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path / "wave")
    hfseq.publish(tmp_path / "wave", "x", dry_run=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "audio-classification" and "trust_remote_code" not in card.text
    save(make(hfseq.LstmModel), tmp_path / "damaged")
    (tmp_path / "damaged" / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        hfseq.publish(tmp_path / "damaged", "x", dry_run=tmp_path / "none")


# --- ensembles and states --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_ensemble_of_classifiers(tmp_path):
    models = [make(LstmForSequenceClassification), make(hfseq.CnnForSequenceClassification, subsampling_factor=2)]
    inputs = padded(models[0], 3, 9)
    expected = sum(model(**inputs).logits.softmax(dim=-1) for model in models) / 2
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
    folders = [str(tmp_path / str(number)) for number in range(2)]
    ensemble, processing_class = load_ensemble(folders, AutoModelForAudioClassification, features=True)
    assert processing_class is None and vocabulary_sizes(ensemble) == vocabulary_sizes(models[0])
    torch.testing.assert_close(ensemble(**inputs).logits.softmax(dim=-1), expected)
    # Rows as the recipes encode them, of different lengths.
    rows = datasets.Dataset.from_list([{"input_features": one.tolist()} for one in frames(5, 2, 7)])
    collator = CheckedCollator(FeatureCollator(ensemble), ensemble)
    found = predict_logits(ensemble, rows, collator, batch_size=2)
    alone = [ensemble(input_features=torch.tensor(one)[None]).logits[0] for one in frames(5, 2, 7)]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float32), torch.stack(alone))
    with pytest.raises(InputError, match="'input_features' in the first, 'input_ids' in the second"):
        text = LstmForSequenceClassification(LstmConfig(vocab_size=17, hidden_size=8, num_labels=4))
        EnsembleForSequenceClassification([models[0], text])
    with pytest.raises(InputError, match="input_size is 3 in the first, 5 in the second"):
        EnsembleForSequenceClassification([models[0], make(LstmForSequenceClassification, input_size=5)])
    for number, rate in enumerate((8000, 16000)):
        extractor = Speech2TextFeatureExtractor(**EXTRACTOR | {"sampling_rate": rate})
        extractor.save_pretrained(tmp_path / str(number))
    with pytest.raises(InputError, match="the extractor's sampling_rate is 8000 in the first, 16000 in the second"):
        load_ensemble(folders, AutoModelForAudioClassification, features=True)


@torch.no_grad()
def test_an_ensemble_that_writes():
    models = [make(LstmForConditionalGeneration), make(hfseq.CnnForConditionalGeneration, subsampling_factor=2)]
    ensemble = EnsembleForConditionalGeneration(models)
    inputs = padded(models[0], 2, 9)
    expected = sum(model(**inputs).logits.softmax(dim=-1) for model in models) / 2
    torch.testing.assert_close(ensemble(**inputs).logits.exp(), expected)
    del inputs["decoder_input_ids"]
    one = EnsembleForConditionalGeneration(models[:1])
    options = inputs | {"max_new_tokens": 5, "num_beams": 2}
    assert one.generate(**options).tolist() == models[0].generate(**options).tolist()
    assert ensemble.generate(**options).shape[0] == 2


@torch.no_grad()
def test_a_state_is_saved_between_chunks(tmp_path):
    model = make(hfseq.GruModel, bidirectional=False, subsampling_factor=2)
    features = torch.tensor(np.stack(frames(10, 10)))
    first = model(input_features=features[:, :6], use_cache=True)
    hfseq.save_state(first.cache, tmp_path / "state.safetensors")
    rest = model(input_features=features[:, 6:], cache=hfseq.load_state(tmp_path / "state.safetensors"))
    whole = model(input_features=features).last_hidden_state
    torch.testing.assert_close(torch.cat([first.last_hidden_state, rest.last_hidden_state], dim=1), whole)


# --- what needs text -------------------------------------------------------------------------------------------------


def test_what_needs_text_says_so(tokenizer, tmp_path):
    classifier, writer = make(LstmForSequenceClassification), make(LstmForConditionalGeneration)
    reads = r"reads input_features \[B, T, 3\], not text; pass those to the model itself"
    lengths = {"max_source_length": 9, "batch_size": 2}
    for use in (
        lambda: word_importance(classifier, tokenizer, ["the cat"], max_length=9),
        lambda: classify_texts(classifier, tokenizer, ["the cat"], max_length=9, batch_size=2),
        lambda: decode_texts(writer, tokenizer, ["the cat"], **lengths),
        lambda: score_texts(writer, tokenizer, ["the cat"], ["the"], max_target_length=9, **lengths),
        lambda: align_texts(writer, tokenizer, "the cat", "the"),
        lambda: benchmark.text_classifier(classifier, tokenizer, 9),
        lambda: benchmark.text_translator(writer, tokenizer, 9),
        lambda: teacher_embeddings(classifier, tokenizer, tokenizer, 4),
        lambda: start_from_teacher(classifier, tokenizer, classifier, tokenizer),
        lambda: teacher_logits(classifier, tokenizer, ["the cat"], [], max_length=9, batch_size=2),
        lambda: TranslationPipeline(writer, tokenizer),
        lambda: pipeline("summarization", model=writer, tokenizer=tokenizer),
    ):
        with pytest.raises(InputError, match=reads) as caught:
            use()
        assert "\n" not in str(caught.value)
    # What transformers checks itself ends in the model's own message.
    with pytest.raises(
        ValueError, match="input_ids were passed to a model with input_size=3: it reads input_features"
    ):
        pipeline("text-classification", model=classifier, tokenizer=tokenizer, device="cpu")("the cat")
    save(classifier, tmp_path / "classifier")
    save(writer, tmp_path / "writer", tokenizer)
    for name in ("classifier", "writer"):
        for serve in (make_server, load_demo_model):
            with pytest.raises(InputError, match=rf"{name}: \w+ reads input_features, but there is no feature"):
                serve(str(tmp_path / name))


def test_word_vectors(tokenizer, tmp_path):
    (tmp_path / "vectors.txt").write_text("the 1 2 3 4 5 6 7 8\n")
    for model in (make(LstmForSequenceClassification), Wav2Vec2ForCTC(Wav2Vec2Config(**WAVE))):
        with pytest.raises(InputError, match=r"reads input_\w+ and has no token embeddings for word vectors"):
            hfseq.load_word_vectors(model, tokenizer, tmp_path / "vectors.txt")
    # Those of the targets.
    model = make(LstmForConditionalGeneration)
    assert hfseq.load_word_vectors(model, tokenizer, tmp_path / "vectors.txt").found == 1
    (the,) = tokenizer("the", add_special_tokens=False)["input_ids"]
    assert model.decoder.embed_tokens.weight[the].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


# --- loading and training --------------------------------------------------------------------------------------------


def test_loading_knows_what_the_data_are(tokenizer, tmp_path):
    save(make(LstmForSequenceClassification), tmp_path / "features")
    LstmForSequenceClassification(LstmConfig(vocab_size=17, hidden_size=8)).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    WhisperForConditionalGeneration(WhisperConfig(**WHISPER)).save_pretrained(tmp_path / "whisper")
    auto, names = AutoModelForSequenceClassification, {name: str(tmp_path / name) for name in ("features", "text")}
    with pytest.raises(
        InputError, match=r"features: LstmForSequenceClassification reads features \(input_size=3\), but"
    ):
        load_trained(auto, names["features"])
    with pytest.raises(InputError, match="text: LstmForSequenceClassification reads text, but the data are features"):
        load_trained(auto, names["text"], features=True)
    for field in ({"input_size": 3}, {"frame_shape": [1, 2, 2]}):
        with pytest.raises(
            InputError, match=f"--config_overrides: {next(iter(field))} is for models that read features"
        ):
            load_checkpoint(auto, names["text"], field)
    with pytest.raises(InputError, match="--config_overrides: input_size is for models that read features"):
        overrides = ModelArguments(model_type="hfseq_lstm", config_overrides={"input_size": 3})
        load_model(auto, overrides, ["a"], default_type="hfseq_lstm")
    model, processing_class = load_trained(auto, names["features"], features=True)
    assert processing_class is None and model.config.input_size == 3
    model, processing_class, _ = load_checkpoint(AutoModelForSpeechSeq2Seq, str(tmp_path / "whisper"), features=True)
    assert processing_class is None and type(model) is WhisperForConditionalGeneration


@pytest.mark.parametrize("writes", [False, True])
def test_a_new_model_of_features(writes, tokenizer):
    extractor = Speech2TextFeatureExtractor(**EXTRACTOR)
    auto = AutoModelForSpeechSeq2Seq if writes else AutoModelForAudioClassification
    given = Wav2Vec2Processor(extractor, tokenizer) if writes else extractor
    fields = {"input_size": AUDIO_WIDTH} | ({} if writes else {"id2label": {0: "no", 1: "yes"}})
    arguments = ModelArguments(config_overrides={"hidden_size": 8, "subsampling_factor": 2})
    options = {"default_type": "hfseq_gru", "tokenizer": given, "features": True}
    model, processing_class, new = load_model(auto, arguments, None, **options, **fields)
    assert processing_class is given and not new
    assert (model.config.input_size, model.config.subsampling_factor) == (AUDIO_WIDTH, 2)
    if writes:
        assert model.config.vocab_size == len(tokenizer)
        assert model.config.decoder_start_token_id == tokenizer.bos_token_id
    assert describe_model(model, given).endswith(f"{len(tokenizer)} tokens" if writes else "parameters")


@pytest.mark.parametrize("audio", [True, False])
def test_training_saves_what_processes_the_inputs(audio, tmp_path):
    """The Trainer with the collator, on the rows of a stream whose class is in the middle of the frames."""
    model = make(LstmForSequenceClassification, num_labels=2, input_size=AUDIO_WIDTH).train()
    extractor = Speech2TextFeatureExtractor(**EXTRACTOR) if audio else None
    values = frames(*[5, 9, 4, 7] * 8, width=AUDIO_WIDTH)
    rows = [{"input_features": one + 3 * (n % 2), "labels": n % 2} for n, one in enumerate(values)]
    model.model.set_feature_statistics(*feature_statistics(rows))
    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=20,
        learning_rate=0.05,
        save_steps=20,
        report_to="none",
        disable_tqdm=True,
    )
    collator = CheckedCollator(FeatureCollator(model, extractor), model)
    parts = {"args": args, "train_dataset": rows, "processing_class": extractor, "data_collator": collator}
    SequenceTrainer(model, **parts).train_and_save(None, None, print)
    for folder in (tmp_path, tmp_path / "checkpoint-20"):
        assert (folder / "preprocessor_config.json").is_file() == audio
        loaded, processing_class = load_trained(AutoModelForSequenceClassification, str(folder), features=True)
        assert (processing_class is None) == (extractor is None)
        torch.testing.assert_close(loaded.model.feature_mean, model.model.feature_mean)
    batch = collator(rows)
    labels = batch.pop("labels")
    assert (loaded.eval()(**batch).logits.argmax(dim=-1) == labels).double().mean() > 0.8
