"""transformers' pipelines for audio on hfseq's models: what they say does not depend on the batch."""

import json

import numpy as np
import pytest
import torch
from token_classes import LINEAR, MODEL_CLASSES
from transformers import (
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    DynamicCache,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2Processor,
    pipeline,
)

from hfseq import CnnConfig, LogMelFeatureExtractor, load_state, save_state

pytestmark = pytest.mark.contract

RATE, HOP, FACTOR = 8000, 80, 2
LETTERS = "abcdefgh"
CONFIGS = [config for config in MODEL_CLASSES if config.family not in LINEAR]


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


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_long_recording_in_chunks_has_the_text_of_the_whole(checkpoint, batch_size):
    # What a step of a convolutional network sees ends after so many steps.
    folder = checkpoint(CnnConfig, "AutoModelForCTC", architecture="residual", kernel_size=3)
    transcribe = pipeline("automatic-speech-recognition", str(folder), device="cpu")
    rng = np.random.default_rng(1)
    # The last step is more than half full; an emptier one would be left out by the pipeline.
    volume = (10 ** rng.uniform(-4, 0, 160)).repeat(HOP * FACTOR * 2)[: -HOP // 2]
    recording = (volume * rng.standard_normal(len(volume)) / 10).astype(np.float32)
    whole = transcribe(recording, return_timestamps="char")
    assert len(whole["text"]) > 60
    chunks = {"chunk_length_s": 1.0, "stride_length_s": 0.2, "batch_size": batch_size}
    assert transcribe(recording, return_timestamps="char", **chunks) == whole
    # Without an overlap the ends of chunks differ.
    assert transcribe(recording, **chunks | {"stride_length_s": 0.0})["text"] != whole["text"]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_stream_of_chunks_has_the_text_of_the_whole_recording(checkpoint, recordings, config_class, tmp_path):
    folder = checkpoint(config_class, "AutoModelForCTC", bidirectional=False)
    model, processor = AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(recordings[0], sampling_rate=RATE, return_tensors="pt")
    whole = model(**inputs).logits
    reach = processor.feature_extractor.n_fft // 2 // HOP + 1  # frames that a window reaches over an edge
    state, best, frames = tmp_path / "state.safetensors", [], 10 * FACTOR
    for start in range(0, inputs["input_features"].shape[1], frames):
        # A chunk is read with the samples around it, and its own frames are kept.
        before = min(start, reach)
        samples = recordings[0][(start - before) * HOP : (start + frames + reach) * HOP]
        found = processor(samples, sampling_rate=RATE, return_tensors="pt")["input_features"]
        cache = load_state(state) if start else DynamicCache()
        outputs = model(found[:, before : before + frames], cache=cache)
        save_state(outputs.cache, state)
        best.append(outputs.logits)
    best = torch.cat(best, dim=1)
    torch.testing.assert_close(best, whole, rtol=1e-4, atol=1e-4)
    assert processor.decode(best.argmax(dim=-1)[0]) == processor.decode(whole.argmax(dim=-1)[0]) != ""


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
