"""transformers' pipelines for audio on hfseq's models: what they say does not depend on the batch."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
    pipeline,
)

from hfseq import LogMelFeatureExtractor
from hfseq.models import MODEL_CLASSES

pytestmark = pytest.mark.contract

RATE, HOP, FACTOR = 8000, 80, 2
LETTERS = "abcdefgh"
CONFIGS = list(MODEL_CLASSES)


@pytest.fixture(scope="module")
def recordings():
    rng = np.random.default_rng(0)
    volumes = [10 ** rng.uniform(-4, 0, -(-size // 400)).repeat(400)[:size] for size in (5000, 900, 2600)]
    return [(volume * rng.standard_normal(len(volume)) / 10).astype(np.float32) for volume in volumes]


@pytest.fixture
def checkpoint(tmp_path):
    """Saves a model with random, large weights and its processor; returns the folder."""

    def save(config_class, auto, **fields):
        names = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
        (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
        extractor = LogMelFeatureExtractor(feature_size=8, sampling_rate=RATE, hop_length=HOP)
        processor = Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")))
        config = config_class(
            vocab_size=len(names),
            input_size=8,
            subsampling_factor=FACTOR,
            inputs_to_logits_ratio=HOP * FACTOR,
            hidden_size=16,
            num_hidden_layers=1,
            **fields,
        )
        torch.manual_seed(0)
        model = MODEL_CLASSES[config_class][auto](config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-1.5, 1.5)
        model.base_model.set_feature_statistics(torch.full((8,), -8.0), torch.full((8,), 2.0))
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.mark.parametrize("config_class", CONFIGS)
def test_transcripts_do_not_depend_on_the_batch(checkpoint, recordings, config_class):
    folder = checkpoint(config_class, "AutoModelForCTC")
    transcribe = pipeline("automatic-speech-recognition", str(folder), device="cpu")
    assert type(transcribe.model) is MODEL_CLASSES[config_class]["AutoModelForCTC"]
    alone = [transcribe(recording)["text"] for recording in recordings]
    assert len(alone[0]) > 4 and len(set(alone)) > 1
    assert [one["text"] for one in transcribe(recordings, batch_size=3)] == alone
    # What the pipeline makes of the logits is what the model and the tokenizer give.
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(recordings[1], sampling_rate=RATE, return_tensors="pt")
    ids = AutoModelForCTC.from_pretrained(folder)(**inputs).logits.argmax(dim=-1)
    assert processor.decode(ids[0]) == alone[1]


def test_time_stamps_are_in_seconds(checkpoint, recordings):
    transcribe = pipeline("automatic-speech-recognition", str(checkpoint(CONFIGS[0], "AutoModelForCTC")), device="cpu")
    chunks = transcribe(recordings[0], return_timestamps="char")["chunks"]
    starts, ends = zip(*(chunk["timestamp"] for chunk in chunks), strict=True)
    assert list(starts) == sorted(starts) and all(start < end for start, end in zip(starts, ends, strict=True))
    step, length = HOP * FACTOR / RATE, len(recordings[0]) / RATE
    assert all(abs(start / step - round(start / step)) < 1e-6 for start in starts)
    assert length / 2 < ends[-1] <= length + step


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_sequence_to_sequence_model_is_not_taken_for_ctc(checkpoint, recordings, config_class):
    folder = checkpoint(config_class, "AutoModelForSeq2SeqLM")
    words = {"generate_kwargs": {"max_new_tokens": 6, "num_beams": 2, "suppress_tokens": [0, 1, 2, 3, 4]}}
    transcribe = pipeline("automatic-speech-recognition", str(folder), device="cpu", **words)
    assert transcribe.type == "seq2seq" and type(transcribe.model) is type(
        AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    )
    alone = [transcribe(recording)["text"] for recording in recordings]
    assert all(alone)
    assert [one["text"] for one in transcribe(recordings, batch_size=3)] == alone


@pytest.mark.parametrize("config_class", CONFIGS)
def test_classes_of_audio_do_not_depend_on_the_batch(checkpoint, recordings, config_class):
    names = {"id2label": {0: "yes", 1: "no", 2: "noise"}}
    folder = checkpoint(config_class, "AutoModelForSequenceClassification", **names)
    classify = pipeline("audio-classification", str(folder), device="cpu")
    alone = [classify(recording, top_k=3) for recording in recordings]
    together = classify(recordings, batch_size=3, top_k=3)
    for one, other in zip(alone, together, strict=True):
        assert [score["label"] for score in one] == [score["label"] for score in other]
        torch.testing.assert_close(
            torch.tensor([score["score"] for score in one]), torch.tensor([score["score"] for score in other])
        )
    assert {score["label"] for score in alone[0]} == {"yes", "no", "noise"}
