"""Audio: log-mel features beside their definition, recordings of every format, and what bad ones are answered with."""

import io
import json
import math
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import transformers
from processes import run_elsewhere
from transformers import AutoFeatureExtractor, Wav2Vec2CTCTokenizer, Wav2Vec2Processor

from hfseq import LogMelFeatureExtractor, LstmConfig
from hfseq.data.audio import decode_audio, read_audio_splits
from hfseq.data.reading import hold_out_validation
from hfseq.errors import InputError
from hfseq.models import feature_extraction_log_mel
from hfseq.models.audio import read_audio, resample

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "speech_fsdd" / "recordings"


def noise(size, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def one_line_of(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


# Features beside their definition.


def mel_of(hertz):
    """Slaney's mel scale: linear up to 1 kHz, logarithmic above."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def hertz_of(mel):
    return 200 * mel / 3 if mel < 15 else 1000 * math.exp(math.log(6.4) * (mel - 15) / 27)


def mel_matrix(extractor):
    """Triangles over equal distances of the mel scale, each of area 1 over frequency in Hz."""
    low, high = mel_of(extractor.min_frequency), mel_of(extractor.max_frequency)
    size = extractor.feature_size
    edges = [hertz_of(low + (high - low) * index / (size + 1)) for index in range(size + 2)]
    matrix = torch.zeros(extractor.n_fft // 2 + 1, size, dtype=torch.float64)
    for row in range(len(matrix)):
        hertz = row * extractor.sampling_rate / extractor.n_fft
        for band, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
            height = min((hertz - left) / (centre - left), (right - hertz) / (right - centre))
            matrix[row, band] = max(0.0, height) * 2 / (right - left)
    return matrix


def log_mel(extractor, samples):
    """The definition, by torch's STFT."""
    spectrum = torch.stft(
        torch.from_numpy(samples).double(),
        extractor.n_fft,
        extractor.hop_length,
        extractor.win_length,
        torch.hann_window(extractor.win_length, dtype=torch.float64),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = spectrum.abs().square().T @ mel_matrix(extractor)
    return power.clamp(min=extractor.mel_floor).log()[: math.ceil(len(samples) / extractor.hop_length)]


SETTINGS = [
    {},
    {"sampling_rate": 8000, "feature_size": 40},
    {"feature_size": 23, "hop_length": 123, "win_length": 333, "n_fft": 600, "min_frequency": 50, "mel_floor": 1e-3},
    {"sampling_rate": 22050, "feature_size": 64, "max_frequency": 8000.0, "win_length": 1024},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 79, 80, 81, 160, 161, 400, 4000, 16001])
def test_features_are_those_of_the_definition(settings, size):
    extractor = LogMelFeatureExtractor(**settings)
    samples = noise(size, seed=size)
    found = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    expected = log_mel(extractor, samples)
    assert found["input_features"].dtype == torch.float32
    assert found["input_features"].shape == (1, math.ceil(size / extractor.hop_length), extractor.feature_size)
    torch.testing.assert_close(found["input_features"][0].double(), expected, atol=1e-4, rtol=1e-5)
    assert found["attention_mask"].tolist() == [[1] * len(expected)]


def test_a_long_recording_is_that_of_the_definition_too(monkeypatch):
    """It is transformed in blocks of frames, the last of them short."""
    extractor = LogMelFeatureExtractor(sampling_rate=8000, feature_size=40)
    monkeypatch.setattr(feature_extraction_log_mel, "_BLOCK", 7)
    for size in (7 * 80, 7 * 80 + 1, 1001, 14 * 80):
        samples = noise(size)
        found = extractor(samples, sampling_rate=8000, return_tensors="pt")["input_features"][0]
        torch.testing.assert_close(found.double(), log_mel(extractor, samples), atol=1e-4, rtol=1e-5)


def test_silence_is_the_logarithm_of_the_floor():
    features = LogMelFeatureExtractor(mel_floor=1e-6)(np.zeros(999, dtype=np.float32), sampling_rate=16000)
    np.testing.assert_allclose(features["input_features"][0], math.log(1e-6), rtol=1e-6)


def test_lengths_follow_the_sampling_rate_and_are_saved():
    at_16k, at_8k = LogMelFeatureExtractor().to_dict(), LogMelFeatureExtractor(sampling_rate=8000).to_dict()
    names = ("hop_length", "win_length", "n_fft", "max_frequency")
    assert [at_16k[name] for name in names] == [160, 400, 512, 8000]
    assert [at_8k[name] for name in names] == [80, 200, 256, 4000]
    assert not {"mel_filters", "window"} & at_8k.keys()


# Batches.


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{"padding": True}, {"padding": "max_length", "max_length": 130}])
def test_features_do_not_depend_on_the_batch(side, options):
    extractor = LogMelFeatureExtractor(padding_side=side, padding_value=-3.0)
    recordings = [noise(size, seed=size) for size in (16000, 5, 333, 12345)]
    batch = extractor(recordings, sampling_rate=16000, return_tensors="np", **options)
    frames = 130 if "max_length" in options else 100
    assert batch["input_features"].shape == (4, frames, 80) and batch["attention_mask"].shape == (4, frames)
    for row, recording in enumerate(recordings):
        alone = extractor(recording, sampling_rate=16000)["input_features"][0]
        mask = batch["attention_mask"][row].astype(bool)
        assert mask.sum() == len(alone) and mask[0 if side == "right" else -1]
        assert (np.diff(mask.astype(int)) != 0).sum() == (len(alone) < frames)
        np.testing.assert_array_equal(batch["input_features"][row][mask], alone)
        assert (batch["input_features"][row][~mask] == -3.0).all()


def test_padding_later_is_padding_at_once():
    extractor = LogMelFeatureExtractor()
    recordings = [noise(4000), noise(777)]
    rows = [{"input_features": extractor(one, sampling_rate=16000)["input_features"][0]} for one in recordings]
    later = extractor.pad(rows, return_tensors="pt")
    at_once = extractor(recordings, sampling_rate=16000, padding=True, return_tensors="pt")
    assert all(torch.equal(at_once[name], later[name]) for name in ("input_features", "attention_mask"))


def test_forms_of_input(tmp_path):
    extractor = LogMelFeatureExtractor()
    samples = noise(2000)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    expected = extractor(samples, sampling_rate=16000, return_tensors="pt")
    file = tmp_path / "a.wav"
    for one in (
        samples.astype(np.float64),
        samples.tolist(),
        torch.from_numpy(samples),
        file,
        str(file),
        tuple(samples),
    ):
        for form in (one, [one], (one,)):
            found = extractor(form, sampling_rate=16000, return_tensors="pt")
            torch.testing.assert_close(found["input_features"], expected["input_features"])
    for two in ([file, samples], np.stack([samples, samples]), torch.from_numpy(samples).expand(2, -1)):
        found = extractor(two, sampling_rate=16000, return_tensors="pt")
        torch.testing.assert_close(found["input_features"], expected["input_features"].expand(2, -1, -1))


def test_truncation_multiples_and_no_mask():
    extractor = LogMelFeatureExtractor()
    cut = extractor([noise(16000), noise(800)], sampling_rate=16000, truncation=True, max_length=20, padding=True)
    assert [len(one) for one in cut["input_features"]] == [20, 20]
    padded = extractor(noise(1600), sampling_rate=16000, padding=True, pad_to_multiple_of=8, return_tensors="np")
    assert padded["input_features"].shape == (1, 16, 80)
    assert "attention_mask" not in extractor(noise(1600), sampling_rate=16000, return_attention_mask=False)


def test_arrays_without_a_rate_are_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    logger = feature_extraction_log_mel.logger
    monkeypatch.setattr(logger, "propagate", True)
    type(logger).warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        LogMelFeatureExtractor(sampling_rate=8000, feature_size=40)(noise(100))
    assert "no sampling_rate was given; samples are taken to be at 8000 Hz" in caplog.text


# Resampling.


def strongest(samples, rate):
    """Frequency of the highest peak, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=16 * len(samples)))
    return np.argmax(spectrum) * rate / (16 * len(samples))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_the_frequency_and_height_of_a_sine(rate):
    samples = (0.5 * np.sin(2 * np.pi * 1234.5 * np.arange(rate) / rate)).astype(np.float32)
    found = resample(samples, rate, 16000)
    assert found.dtype == np.float32 and abs(len(found) - 16000) <= 1
    assert strongest(found, 16000) == pytest.approx(1234.5, abs=0.2)
    assert np.abs(found[1000:-1000]).max() == pytest.approx(0.5, abs=1e-3)
    # An extractor resamples what it is given.
    extractor = LogMelFeatureExtractor()
    resampled = extractor(found, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(dict(extractor(samples, sampling_rate=rate, return_tensors="pt")), dict(resampled))


def test_resampling_removes_what_would_alias():
    samples = np.sin(2 * np.pi * 7000 * np.arange(16000) / 16000).astype(np.float32)
    assert np.abs(resample(samples, 16000, 8000)[500:-500]).max() < 1e-3


def test_equal_rates_change_nothing():
    samples = noise(100)
    assert resample(samples, 8000, 8000) is samples


# Files.

FORMATS = [
    ("WAV", "PCM_16", 4e-5),
    ("WAV", "PCM_U8", 1e-2),
    ("WAV", "PCM_24", 2e-7),
    ("WAV", "FLOAT", 0),
    ("WAVEX", "PCM_16", 4e-5),
    ("FLAC", "PCM_16", 4e-5),
    ("AIFF", "PCM_16", 4e-5),
    ("OGG", "VORBIS", 0.2),
    ("MP3", "MPEG_LAYER_III", 0.2),
]


@pytest.mark.parametrize(("kind", "subtype", "error"), FORMATS)
def test_formats(tmp_path, kind, subtype, error):
    samples = noise(4000)
    soundfile.write(tmp_path / "audio", samples, 8000, format=kind, subtype=subtype)
    from_file = read_audio(tmp_path / "audio")
    from_bytes = read_audio((tmp_path / "audio").read_bytes())
    for found, rate in (from_file, from_bytes):
        assert rate == 8000 and found.dtype == np.float32 and found.shape == (4000,)
        np.testing.assert_allclose(found, samples, atol=error)


def test_channels_are_averaged_on_request(tmp_path):
    left, right = noise(900, seed=1), noise(900, seed=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    expected = LogMelFeatureExtractor()((left + right) / 2, sampling_rate=16000)["input_features"][0]
    found = LogMelFeatureExtractor(mono=True)(tmp_path / "a.wav")["input_features"][0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    samples, _ = decode_audio({"path": str(tmp_path / "a.wav"), "bytes": None}, "row 1", mono=True)
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-7)


def wav(samples, rate=16000, **options):
    """Bytes of a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=options.pop("format", "WAV"), **options)
    return file.getvalue()


def with_data_size(contents, size):
    place = contents.index(b"data") + 4
    return contents[:place] + size.to_bytes(4, "little") + contents[place + 4 :]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_file_of_unknown_length_is_read_to_its_end(size):
    samples = noise(500)
    found, _ = read_audio(with_data_size(wav(samples, subtype="FLOAT"), size))
    np.testing.assert_array_equal(found, samples)


def test_chunks_before_and_after_the_samples():
    contents = wav(noise(500))
    place = contents.index(b"data")
    notes = b"note" + (3).to_bytes(4, "little") + b"abc\0"
    expected = read_audio(contents)[0]
    for more in (contents[:place] + notes + contents[place:], contents + notes):
        np.testing.assert_array_equal(read_audio(more)[0], expected)
    with pytest.raises(ValueError, match="truncated: 1 bytes fewer"):
        read_audio(contents[:place] + notes + contents[place:-1])


def promising(contents, count):
    """FLAC with another number of samples in its header, the last 36 bits of STREAMINFO before the checksum."""
    flac = bytearray(contents)
    flac[21] = flac[21] & 0xF0 | count >> 32
    flac[22:26] = (count & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(flac)


SPOILED = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def spoiled(value):
    samples = noise(16000)
    samples[[4000, 9000]] = value
    return samples


BAD_FILES = {
    "empty": (b"", "the file is empty"),
    "text": (b"file_name,label\n" * 9, "truncated, or not audio that libsndfile decodes (Format not recognised)"),
    "no samples": (wav(noise(0)), "no samples"),
    "header alone": (wav(noise(999))[:44], "truncated: 1998 bytes fewer than its header says"),
    "half a header": (wav(noise(999))[:30], "truncated, or not audio that libsndfile decodes"),
    "truncated": (wav(noise(999))[:-7], "truncated: 7 bytes fewer than its header says"),
    "truncated FLAC": (wav(noise(9999), format="FLAC")[:9000], "truncated"),
    "more than fits into memory": (promising(wav(noise(999), format="FLAC"), 2**36 - 1), "truncated"),
    "truncated MP3": (wav(noise(99999), format="MP3")[:9000], "truncated: "),
    "stereo": (wav(np.zeros((99, 2))), "2 channels; convert it to one, or average them (mono)"),
    "surround": (wav(np.zeros((99, 6))), "6 channels"),
    **{
        name: (wav(spoiled(value), subtype="FLOAT"), "2 NaN or infinite samples of 16000, the first at 0.250 s")
        for name, value in SPOILED.items()
    },
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    contents, message = BAD_FILES[name]
    path = tmp_path / "a.wav"
    path.write_bytes(contents)
    with pytest.raises(ValueError) as caught:
        LogMelFeatureExtractor()([noise(99), path], sampling_rate=16000)
    assert one_line_of(caught).startswith(f"{path}: {message}")
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("file_name,transcription\na.wav,one\n")
    row = read_audio_splits(columns=["transcription"], train_file=str(metadata))["train"][0]
    with pytest.raises(InputError) as caught:
        decode_audio(row["audio"], row["audio_place"])
    assert one_line_of(caught).startswith(f"{metadata}, row 1: {path}: {message}")


def test_no_such_file_and_a_folder(tmp_path):
    for path, message in ((tmp_path / "b.wav", "no such file"), (tmp_path, "cannot be read (Is a directory)")):
        with pytest.raises(ValueError) as caught:
            LogMelFeatureExtractor()(str(path))
        assert one_line_of(caught) == f"{path}: {message}"


BAD_ARRAYS = {
    "empty": ([], "no recordings"),
    "no samples": ([noise(9), noise(0)], "recording 2: no samples"),
    "an empty array": (noise(0), "recording 1: no samples"),
    "stereo": (noise(32000).reshape(16000, 2), "an array of shape (16000, 2): give one channel"),
    "stereo in a list": ([noise(9), noise(20).reshape(2, 10)], "recording 2: an array of shape (2, 10) in place of"),
    "a batch of stereo": (noise(60).reshape(3, 10, 2), "an array of shape (3, 10, 2)"),
    "integers": (np.ones(99, dtype=np.int16), "recording 1: int16 in place of samples that are floating-point"),
    "a list of integers": ([0, 1, 2], "recording 1: int64"),
    "complex": (np.ones(99, dtype=complex), "recording 1: complex128"),
    "a dict": ([{"array": [0.0], "sampling_rate": 8000}], "recording 1: object"),
    "None": (None, "recording 1: object"),
    **{name: ([noise(9), spoiled(value)], "recording 2: 2 NaN") for name, value in SPOILED.items()},
    "too large for float32": (np.full(9, 1e300), "recording 1: 9 NaN or infinite samples"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name):
    recordings, message = BAD_ARRAYS[name]
    with pytest.raises(ValueError) as caught:
        LogMelFeatureExtractor()(recordings, sampling_rate=16000)
    assert one_line_of(caught).startswith(message)


@pytest.mark.parametrize("rate", [0, -8000, math.nan, math.inf])
def test_bad_rates(rate):
    with pytest.raises(ValueError, match="must be above 0, in Hz"):
        LogMelFeatureExtractor()(noise(99), sampling_rate=rate)


def test_nothing_is_left_of_one_sample():
    with pytest.raises(ValueError, match="recording 1: 1 samples at 44100 Hz, which is too short"):
        LogMelFeatureExtractor()(noise(1), sampling_rate=44100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_size": 1}, "feature_size=1 must be an integer, 2 or more"),
        ({"sampling_rate": 16000.0}, "sampling_rate=16000.0 must be an integer"),
        ({"hop_length": 0}, "hop_length=0"),
        ({"win_length": 1.5}, "win_length=1.5"),
        ({"n_fft": 256}, "n_fft=256 must be an integer, 400 or more"),
        ({"n_fft": 401}, "n_fft=401 must be even"),
        ({"sampling_rate": 40}, "hop_length=0"),
        ({"min_frequency": 9000}, "min_frequency=9000 and max_frequency=8000.0"),
        ({"max_frequency": 9000}, "half the sampling rate, 8000 Hz"),
        ({"min_frequency": -1}, "min_frequency=-1"),
        ({"mel_floor": 0}, "mel_floor=0 must be above 0"),
        ({"sampling_rate": 8000, "feature_size": 200}, "band 1 of feature_size=200 contains no frequency"),
    ],
)
def test_bad_settings(settings, message, recwarn):
    with pytest.raises(ValueError) as caught:
        LogMelFeatureExtractor(**settings)
    assert message in one_line_of(caught)
    assert not recwarn.list


def test_packages_that_are_not_installed(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(noise(99), rate=8000))
    audio = {"path": str(path), "bytes": None}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "soxr", None)
        with pytest.raises(ImportError) as caught:
            LogMelFeatureExtractor()(path)
        text = one_line_of(caught)
        assert "from 8000 Hz to 16000 Hz needs soxr: pip install 'hfseq[audio]'" in text
        assert LogMelFeatureExtractor(sampling_rate=8000, feature_size=40)(path)
        with pytest.raises(InputError) as caught:
            decode_audio(audio, "metadata.csv, row 1", sampling_rate=16000)
        text = one_line_of(caught)
        assert "row 1" in text and "8000 Hz to 16000 Hz needs soxr: pip install 'hfseq[audio]'" in text
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError) as caught:
        LogMelFeatureExtractor()(path)
    assert "reading recordings needs soundfile: pip install 'hfseq[audio]'" in one_line_of(caught)
    assert LogMelFeatureExtractor()(noise(99), sampling_rate=16000)
    for call in (
        lambda: decode_audio(audio, "row 1"),
        lambda: read_audio_splits(columns=[], train_file=str(tmp_path)),
    ):
        with pytest.raises(InputError, match=r"reading recordings needs soundfile: pip install 'hfseq\[audio\]'"):
            call()


# Saved beside a model.


def test_a_saved_extractor_is_the_same(tmp_path):
    extractor = LogMelFeatureExtractor(23, 8000, 123, 200, 300, -1.0, 50, 3000, 1e-5, True, padding_side="left")
    extractor.save_pretrained(tmp_path)
    again = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(again) is LogMelFeatureExtractor
    assert again.to_dict() == {**extractor.to_dict(), **{"auto_map": again.auto_map}}
    one, other = (both([noise(2000), noise(99)], sampling_rate=8000, padding=True) for both in (extractor, again))
    for name in ("input_features", "attention_mask"):
        np.testing.assert_array_equal(one[name], other[name])


def test_it_is_not_the_extractor_of_every_checkpoint_of_a_family(tmp_path):
    LstmConfig(vocab_size=9).save_pretrained(tmp_path)
    with pytest.raises((OSError, ValueError)):
        AutoFeatureExtractor.from_pretrained(tmp_path)
    assert LstmConfig not in transformers.FEATURE_EXTRACTOR_MAPPING


@pytest.fixture
def processor(tmp_path):
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"enortwz"]
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    tokenizer = Wav2Vec2CTCTokenizer(vocabulary)
    return Wav2Vec2Processor(LogMelFeatureExtractor(sampling_rate=8000, feature_size=40), tokenizer)


def test_in_a_processor(processor):
    recordings, texts = [noise(8000), noise(4000)], ["one two", "zero"]
    both = processor(recordings, text=texts, sampling_rate=8000, padding=True, return_tensors="pt")
    assert both["input_features"].shape == (2, 100, 40) and both["attention_mask"].sum(dim=1).tolist() == [100, 50]
    assert processor.batch_decode(both["labels"], group_tokens=False) == texts
    rows = [{"input_features": processor(one, sampling_rate=8000)["input_features"][0]} for one in recordings]
    labels = [{"input_ids": processor(text=text)["input_ids"]} for text in texts]
    later = processor.pad(rows, labels=labels, return_tensors="pt")
    assert torch.equal(later["input_features"], both["input_features"])
    assert torch.equal(later["labels"], both["labels"])


ELSEWHERE = """
import sys
from pathlib import Path

import numpy as np
import torch
from old_checkpoints import NoHfseq
from transformers import AutoFeatureExtractor, AutoProcessor

sys.meta_path.insert(0, NoHfseq())
trusted = {"trust_remote_code": True}
extractors = {
    "extractor": AutoFeatureExtractor.from_pretrained("extractor", **trusted),
    "of a processor": AutoFeatureExtractor.from_pretrained("processor", **trusted),
    "processor": AutoProcessor.from_pretrained("processor", **trusted),
}
extractors["extractor"].save_pretrained("again")
extractors["saved again"] = AutoFeatureExtractor.from_pretrained("again", **trusted)
batch, options = [np.load("samples.npy"), "a.wav"], {"padding": True, "return_tensors": "pt"}
found = {name: dict(one(batch, sampling_rate=16000, **options)) for name, one in extractors.items()}
torch.save(found, "results.pt")
assert "hfseq" not in sys.modules
"""


def test_loads_where_hfseq_is_not_installed(processor, tmp_path):
    folder = tmp_path / "saved"
    processor.save_pretrained(folder / "processor")
    processor.feature_extractor.save_pretrained(folder / "extractor")
    assert {"audio.py", "feature_extraction_log_mel.py"} <= {path.name for path in (folder / "processor").iterdir()}
    (folder / "a.wav").write_bytes(wav(noise(500), rate=8000))
    np.save(folder / "samples.npy", noise(3000))
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(Path(__file__).parent)}
    done = run_elsewhere("-c", ELSEWHERE, environment=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    batch, options = [noise(3000), folder / "a.wav"], {"padding": True, "return_tensors": "pt"}
    expected = dict(processor.feature_extractor(batch, sampling_rate=16000, **options))
    found = torch.load(folder / "results.pt")
    assert set(found) == {"extractor", "of a processor", "processor", "saved again"}
    for name, features in found.items():
        torch.testing.assert_close(features, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


# Rows of recipes.


@pytest.fixture
def recordings(tmp_path):
    """A folder with three recordings, two of them in a folder of their own."""
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    for number, name in enumerate(("a.wav", "clips/b.wav", "clips/c.flac")):
        soundfile.write(folder / name, noise(800 + number, seed=number), 8000)
    return folder


NAMES = ["a.wav", "clips/b.wav", "clips/c.flac"]


def write_rows(folder, name, rows, columns=("file_name", "transcription")):
    """Writes rows in the format of the file's extension."""
    path = folder / name
    frame = pd.DataFrame(rows, columns=list(columns))
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".tsv":
        path.write_text("\n".join(map("\t".join, [list(columns), *frame.values])) + "\n")
    else:
        frame.to_csv(path, index=False)
    return str(path)


def lengths(rows):
    """Lengths of the decoded recordings, and the rate of all."""
    decoded = [decode_audio(row["audio"], row["audio_place"]) for row in rows]
    assert all(samples.dtype == np.float32 and rate == 8000 for samples, rate in decoded)
    return [len(samples) for samples, _ in decoded]


TEXTS = ["one, two", 'say "three"', "vier"]


@pytest.mark.parametrize("name", ["metadata.csv", "rows.tsv", "metadata.jsonl", "metadata.parquet"])
def test_files_of_rows(recordings, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = write_rows(Path("data"), name, list(zip(NAMES, TEXTS, strict=True)))
    for given in [path, "data"] if name.startswith("metadata") else [path]:
        rows = read_audio_splits(columns=["transcription"], train_file=given)["train"]
        assert rows.column_names == ["audio", "audio_place", "transcription"]
        assert rows["transcription"][:] == TEXTS
        assert rows["audio_place"][:] == [f"{path}, row {number}" for number in (1, 2, 3)]
        assert lengths(rows) == [800, 801, 802]


def test_other_columns_classes_and_no_header(recordings):
    path = write_rows(recordings, "rows.jsonl", zip(NAMES, [1, 0, 1], TEXTS, strict=True), ("path", "digit", "text"))
    options = {"audio_column": "path", "train_file": path}
    rows = read_audio_splits(columns=["digit", "text"], label_columns=["digit"], **options)["train"]
    assert rows["digit"][:] == ["1", "0", "1"] and rows["text"][:] == TEXTS
    alone = read_audio_splits(columns=[], **options)["train"]
    assert alone.column_names == ["audio", "audio_place"] and lengths(alone) == [800, 801, 802]
    path = recordings / "plain.csv"
    path.write_text("".join(f"{name},{number}\n" for number, name in enumerate(NAMES)))
    options = {"column_names": ["file_name", "label"], "test_file": str(path)}
    rows = read_audio_splits(columns=["label"], label_columns=["label"], **options)["test"]
    assert rows["label"][:] == ["0", "1", "2"] and lengths(rows) == [800, 801, 802]


def test_paths_are_relative_to_their_file_or_absolute(recordings, tmp_path):
    (tmp_path / "lists").mkdir()
    names = ["../data/a.wav", str(recordings / "clips" / "b.wav")]
    path = write_rows(tmp_path / "lists", "rows.csv", zip(names, TEXTS[:2], strict=True))
    assert lengths(read_audio_splits(columns=["transcription"], train_file=path)["train"]) == [800, 801]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_empty_rows_are_dropped_and_the_others_keep_their_numbers(recordings, caplog, name):
    rows = [("a.wav", "one"), ("clips/b.wav", ""), ("clips/c.flac", "three")]
    path = write_rows(recordings, name, rows)
    found = read_audio_splits(columns=["transcription"], train_file=path)["train"]
    assert f"{path}: 1 empty row dropped of 3: 2" in caplog.text
    assert found["audio_place"][:] == [f"{path}, row 1", f"{path}, row 3"] and lengths(found) == [800, 802]


def test_rows_that_are_held_out_keep_their_place(recordings):
    path = write_rows(recordings, "rows.csv", [(NAMES[number % 3], f"text {number}") for number in range(40)])
    splits = hold_out_validation(read_audio_splits(columns=["transcription"], train_file=path), seed=1)
    assert len(splits["validation"]) == 2
    for row in (*splits["train"], *splits["validation"]):
        number = int(row["transcription"].removeprefix("text "))
        assert row["audio_place"] == f"{path}, row {number + 1}"
        assert len(decode_audio(row["audio"], row["audio_place"])[0]) == 800 + number % 3


def test_rows_pass_through_map_undecoded(recordings):
    path = write_rows(recordings, "rows.csv", zip(NAMES, TEXTS, strict=True))
    rows = read_audio_splits(columns=["transcription"], train_file=path)["train"]

    def encode(row):
        samples, rate = decode_audio(row["audio"], row["audio_place"])
        return {"input_features": LogMelFeatureExtractor()(samples, sampling_rate=rate)["input_features"][0]}

    encoded = rows.map(encode, num_proc=2)
    assert [np.shape(features) for features in encoded["input_features"]] == [(10, 80), (11, 80), (11, 80)]
    assert encoded["audio"][0] == {"bytes": None, "path": str(recordings / "a.wav")}


def hub_rows(recordings):
    """Rows of a data set as the Hub stores them: contents of files, and classes by number."""
    audio = [{"bytes": (recordings / name).read_bytes(), "path": Path(name).name} for name in NAMES]
    rows = datasets.Dataset.from_dict({"text": TEXTS, "audio": audio, "label": [1, 0, 1]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    return rows.cast_column("audio", datasets.Audio())


def test_a_data_set_with_contents_of_files(recordings, tmp_path, caplog):
    rows = hub_rows(recordings)
    hidden = rows.remove_columns("label").add_column("label", [-1, -1, -1], feature=rows.features["label"])
    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": rows, "dev": rows.select([2]), "test": hidden}).save_to_disk(folder)
    options = {"dataset_name": str(folder), "columns": ["label"], "label_columns": ["label"]}
    splits = read_audio_splits(**options)
    assert {split: data["label"][:] for split, data in splits.items()} == {
        "train": ["yes", "no", "yes"],
        "validation": ["yes"],
    }
    assert "left out: none of 3 rows has a label" in caplog.text
    assert lengths(splits["train"]) == [800, 801, 802] and lengths(splits["validation"]) == [802]
    assert splits["validation"]["audio_place"][:] == [f"{folder} [dev], row 1"]
    alone = read_audio_splits(dataset_name=str(folder), columns=[])
    assert lengths(alone["test"]) == [800, 801, 802]
    path = tmp_path / "elsewhere.parquet"
    rows.rename_column("audio", "speech").to_parquet(path)
    found = read_audio_splits(columns=["text"], audio_column="speech", test_file=str(path))["test"]
    assert found["text"][:] == TEXTS and lengths(found) == [800, 801, 802]


def test_a_row_without_a_recording(recordings, tmp_path):
    rows = hub_rows(recordings).cast_column("audio", datasets.Audio(decode=False)).to_list()
    rows[1]["audio"] = None
    rows[2]["audio"] = {"bytes": b"RIFF", "path": "c.flac"}
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    place = str(tmp_path / "rows.parquet")
    found = read_audio_splits(columns=["text"], audio_column="audio", train_file=place)["train"]
    assert len(decode_audio(found[0]["audio"], found[0]["audio_place"])[0]) == 800
    for row, message in ((found[1], "row 2: there is no recording"), (found[2], "row 3: c.flac: truncated, or not")):
        with pytest.raises(InputError) as caught:
            decode_audio(row["audio"], row["audio_place"])
        assert one_line_of(caught).startswith(f"{place}, {message}")


def test_a_folder_for_each_split(recordings, tmp_path):
    for split, name in (("train", "a.wav"), ("dev", "clips/b.wav")):
        (tmp_path / "all" / split).mkdir(parents=True)
        write_rows(tmp_path / "all" / split, "metadata.csv", [(str(recordings / name), split)])
    splits = read_audio_splits(columns=["transcription"], dataset_name=str(tmp_path / "all"))
    assert {split: data["transcription"][:] for split, data in splits.items()} == {
        "train": ["train"],
        "validation": ["dev"],
    }
    assert lengths(splits["validation"]) == [801]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "file_name,transcription\na.wav,one\nd.wav,two\n",
            "rows.csv, row 2: {folder}/d.wav: no such file; paths are",
        ),
        ("file_name,transcription\nclips,one\n", "rows.csv, row 1: {folder}/clips: no such file"),
        ("path,transcription\na.wav,one\n", "rows.csv: no column 'file_name'; there are 'path', 'transcription'"),
        ("file_name,text\na.wav,one\n", "rows.csv: no column 'transcription'"),
        ("file_name,transcription\na.wav,one,two\n", "rows.csv:2: 3 fields, but the header names 2"),
        ("file_name,transcription\na.wav,\n", "empty: none of 1 rows has text in file_name and transcription"),
        ("", "rows.csv: empty; the first line must name the columns"),
    ],
)
def test_bad_rows(recordings, rows, message):
    path = recordings / "rows.csv"
    path.write_text(rows)
    with pytest.raises(InputError) as caught:
        read_audio_splits(columns=["transcription"], train_file=str(path))
    assert message.format(folder=recordings) in one_line_of(caught)


def refused(message, **options):
    with pytest.raises(InputError) as caught:
        read_audio_splits(**{"columns": ["transcription"]} | options)
    assert message in one_line_of(caught)


def test_bad_sources(recordings, tmp_path, monkeypatch):
    refused("no data: give --train_file or --dataset_name")
    refused("no metadata.csv or metadata.jsonl or metadata.parquet in this folder", train_file=str(recordings))
    refused("no such file (--test_file)", test_file=str(recordings / "no.csv"))
    refused("no such file (--test_file)", test_file=str(recordings / "no.parquet"))
    refused("unknown extension '.wav'", train_file=str(recordings / "a.wav"))
    refused("exclude each other", train_file="a.csv", dataset_name="b")
    refused("must differ", train_file="a.csv", columns=["audio"])
    refused("must differ", train_file="a.csv", columns=["file_name"])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    refused("damaged.parquet: cannot be read", train_file=str(tmp_path / "damaged.parquet"))
    missing = write_rows(recordings, "rows.parquet", [("a.wav", "one"), ("d.wav", "two")])
    refused(f"{missing}, row 2: {recordings}/d.wav: no such file", train_file=missing)
    numbers = write_rows(recordings, "numbers.parquet", [(0.5, "one")])
    refused("column 'file_name' must hold recordings", train_file=numbers)
    refused("no column 'speech'; there are 'file_name', 'transcription'", train_file=numbers, audio_column="speech")
    write_rows(recordings, "metadata.csv", zip(NAMES, TEXTS, strict=True))
    refused("metadata.csv is in no folder of a split, such as train", dataset_name=str(recordings))
    # Folders of classes, which `datasets` itself reads, and not without torchcodec.
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    (tmp_path / "folders" / "train" / "one").mkdir(parents=True)
    (recordings / "a.wav").rename(tmp_path / "folders" / "train" / "one" / "a.wav")
    refused("needs torchcodec to load folders of audio files; download them", dataset_name=str(tmp_path / "folders"))


def test_rates(recordings):
    audio = {"path": str(recordings / "a.wav"), "bytes": None}
    samples, rate = decode_audio(audio, "row 1", sampling_rate=8000, resampling=False)
    assert (len(samples), rate) == (800, 8000)
    samples, rate = decode_audio(audio, "row 1", sampling_rate=16000)
    assert (len(samples), rate) == (1600, 16000)
    with pytest.raises(InputError) as caught:
        decode_audio(audio, "metadata.csv, row 1", sampling_rate=16000, resampling=False)
    assert one_line_of(caught) == (
        f"metadata.csv, row 1: {recordings}/a.wav: 8000 Hz, but 16000 Hz are wanted and resampling is off"
    )
    with pytest.raises(InputError, match="row 1: too short to be resampled from 44100 Hz to 8000 Hz"):
        decode_audio({"path": None, "bytes": wav(noise(1), rate=44100)}, "row 1", sampling_rate=8000)


# Real recordings.


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not beside this checkout")
def test_real_recordings(tmp_path):
    files = sorted(SHARED.glob("*.wav"))
    assert len(files) == 1200
    write_rows(tmp_path, "metadata.csv", [(file, file.name[0]) for file in files], ("file_name", "label"))
    rows = read_audio_splits(columns=["label"], label_columns=["label"], train_file=str(tmp_path))["train"]
    extractor = LogMelFeatureExtractor(sampling_rate=8000, feature_size=40)
    frames = 0
    for row in rows.select(range(0, 1200, 20)):
        samples, rate = decode_audio(row["audio"], row["audio_place"], sampling_rate=8000, resampling=False)
        features = extractor(samples, sampling_rate=rate)["input_features"][0]
        torch.testing.assert_close(
            torch.from_numpy(features).double(), log_mel(extractor, samples), atol=1e-3, rtol=1e-4
        )
        frames += len(features)
        np.testing.assert_array_equal(features, extractor(row["audio"]["path"])["input_features"][0])
    assert 1000 < frames < 10_000
