"""The speech recognition recipe, run end to end with each head on a few recordings of tones."""

import functools
import json
import random
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import recipe_runs
import soundfile
import torch
from processes import run_elsewhere
from recipe_runs import (
    Killed,
    assert_close,
    assert_equal,
    kill_after_checkpoint,
    load,
    results,
    run_two,
    weights,
)
from transformers import (
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
    pipeline,
)

import hfseq
from hfseq import LogMelFeatureExtractor, LstmConfig, LstmForCausalLM, ctc_beam_search
from hfseq.data.features import feature_statistics
from hfseq.data.token_budget import row_lengths
from hfseq.errors import InputError
from hfseq.tasks.arguments import SpeechArguments
from hfseq.tasks.speech import HEADS
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import GenerationArguments

TRAINER, ACCELERATE = DRIVERS = ("speech_recognition", "speech_recognition_accelerate")
RECIPES = {driver: load(driver) for driver in DRIVERS}
RECIPE = RECIPES[TRAINER]
RATE, HOP, FACTOR = 8000, 80, 2
PITCH = {"a": 500, "b": 1100, "c": 2300}
CONFIG = """\
config_overrides: {hidden_size: 48, subsampling_factor: 2, dropout: 0.0}
feature_extractor: {feature_size: 12, hop_length: 80}
num_train_epochs: 2
learning_rate: 1e-2
logging_steps: 2
per_device_train_batch_size: 8
use_cpu: true
disable_tqdm: true
"""


# Where hfseq is not installed, transformers' pipeline for speech knows no encoder-decoder of hfseq; it generates.
ELSEWHERE = """\
import sys
class NoHfseq:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hfseq":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoHfseq())
import soundfile
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline
kind, head, folder, *files = sys.argv[1:]
recordings = [soundfile.read(file, dtype="float32")[0] for file in files]
if head == "seq2seq":
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    for one in recordings:
        ids = model.generate(**processor(one, sampling_rate=8000, return_tensors="pt"), num_beams=1)
        print(processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip())
else:
    run = pipeline(kind, folder, trust_remote_code=True, device="cpu")
    for one in recordings:
        found = run(one)
        print(found["text"].strip() if head == "ctc" else found[0]["label"])
assert "hfseq" not in sys.modules
"""


def tones(text, rng):
    """A tone of 60 ms for each letter, 40 ms of near silence between them and 190 ms between words."""
    parts = [np.zeros(240)]
    for letter in text:
        if letter != " ":
            times = np.arange(480) / RATE
            parts.append(0.3 * np.sin(2 * np.pi * (PITCH[letter] * times + rng.random())))
        parts.append(np.zeros(1200 if letter == " " else 320))
    samples = np.concatenate(parts)
    noise = np.random.default_rng(rng.randrange(2**32)).standard_normal(len(samples))
    return (samples + 0.003 * noise).astype(np.float32)


def texts(count, seed):
    rng = random.Random(seed)
    for row in range(count):
        words = ["".join(rng.choices("abc", k=rng.randint(1, 3))) for _ in range(row % 2 + 1)]
        yield " ".join(words)


def write_rows(folder, some, *, rate=RATE, metadata="metadata.csv"):
    """Writes a folder of recordings, with their texts and the first letter as their class."""
    folder.mkdir(parents=True)
    rng, rows = random.Random(len(folder.name)), []
    for number, text in enumerate(some):
        soundfile.write(folder / f"{number}.wav", tones(text, rng), rate)
        rows.append({"file_name": f"{number}.wav", "transcription": text, "label": text[0]})
    if metadata.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    (folder / metadata).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder with config.yaml, and the recordings of train (40), val (8), test (6), long (160)."""
    root = tmp_path_factory.mktemp("speech")
    (root / "config.yaml").write_text(CONFIG, encoding="utf-8")
    for seed, (name, count) in enumerate((("train", 40), ("val", 8), ("test", 6), ("long", 160))):
        write_rows(root / name, texts(count, seed), metadata="metadata.jsonl" if name == "val" else "metadata.csv")
    return root


def arguments(data, output_dir, **flags):
    files = {"train_file": data / "train", "validation_file": data / "val", "test_file": data / "test"}
    return recipe_runs.arguments(data / "config.yaml", **(files | {"output_dir": output_dir} | flags))


def start(data, output_dir, driver=TRAINER, **flags):
    recipe_runs.start(RECIPES[driver], arguments(data, output_dir, **flags))
    return Path(output_dir)


@pytest.fixture(scope="session", params=["ctc", "seq2seq", "classification"])
def trained(request, data, tmp_path_factory):
    epochs = {"ctc": 16, "seq2seq": 16, "classification": 4}[request.param]
    flags = {"train_file": data / "long", "max_tokens": 1000, "head": request.param, "num_train_epochs": epochs}
    return request.param, start(data, tmp_path_factory.mktemp("runs") / request.param, **flags)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def printed_scores(capsys, name):
    return [float(value) for value in re.findall(rf"'eval_{name}': '([\d.e+-]+)'", capsys.readouterr().out)]


@pytest.fixture(scope="session")
def hub(data, tmp_path_factory):
    """The same recordings as a data set of the Hub: contents of files in a column of audio."""
    splits = {}
    for split in ("train", "val", "test"):
        name = "metadata.jsonl" if split == "val" else "metadata.csv"
        reader = pd.read_json if split == "val" else pd.read_csv
        rows = reader(data / split / name, **({"lines": True} if split == "val" else {})).to_dict("list")
        names = rows.pop("file_name")
        audio = [{"bytes": (data / split / one).read_bytes(), "path": one} for one in names]
        rows = datasets.Dataset.from_dict(rows | {"audio": audio})
        kind = datasets.Audio(decode=split == "test")
        splits[split] = rows if split == "train" else rows.cast_column("audio", kind)
    folder = tmp_path_factory.mktemp("hub") / "tones"
    datasets.DatasetDict(
        {"validation" if name == "val" else name: rows for name, rows in splits.items()}
    ).save_to_disk(folder)
    return folder


# What a run leaves


def test_files_and_scores_of_a_run(trained):
    head, output = trained
    plots = {"ctc": ["spectrogram.png"], "seq2seq": [], "classification": ["confusion_matrix.png"]}[head]
    for name in ("learning_curve.png", *plots):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    assert len(lines(output / "predictions.txt")) == 6
    samples = (output / "samples.txt").read_text(encoding="utf-8")
    assert samples.count("source: ") == 6 and "3.wav" in samples
    found = results(output)
    if head == "classification":
        assert found["test_accuracy"] == 100 > found["test_majority_accuracy"]
    else:
        assert found["test_cer"] < 25 and found["test_wer"] < 60


def test_the_pipeline_gives_the_predictions(trained, data):
    head, output = trained
    recordings = [soundfile.read(data / "test" / f"{row}.wav", dtype="float32")[0] for row in range(6)]
    if head == "classification":
        classify = pipeline("audio-classification", str(output), device="cpu")
        found = [row[0]["label"] for row in classify(recordings, batch_size=3, top_k=1)]
    else:
        options = {} if head == "ctc" else {"generate_kwargs": {"num_beams": 1}}
        transcribe = pipeline("automatic-speech-recognition", str(output), device="cpu", **options)
        found = [row["text"].strip() for row in transcribe(recordings, batch_size=3)]
    assert found == lines(output / "predictions.txt")


def test_the_model_has_the_statistics_of_the_training_rows(data, tmp_path):
    output = start(data, tmp_path / "run", max_steps=1)
    extractor = LogMelFeatureExtractor(12, RATE, HOP)
    mean, scale = feature_statistics(extractor([str(data / "train" / f"{row}.wav")]) for row in range(40))
    saved = weights(output)
    name = next(key.removesuffix("feature_mean") for key in saved if key.endswith("feature_mean"))
    torch.testing.assert_close(saved[f"{name}feature_mean"], mean.float())
    torch.testing.assert_close(saved[f"{name}feature_scale"], scale.float())
    config = AutoModelForCTC.from_pretrained(output).config
    assert config.inputs_to_logits_ratio == HOP * FACTOR and config.input_size == 12
    processor = AutoProcessor.from_pretrained(output)
    assert processor.tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5}
    assert processor.feature_extractor.hop_length == HOP and processor.feature_extractor.sampling_rate == RATE


def test_the_checkpoint_with_the_fewest_errors_is_kept(data, tmp_path, capsys):
    # The rate falls to 0 in the end, so that the last epochs are alike.
    flags = {"train_file": data / "long", "num_train_epochs": 5, "metric_for_best_model": "cer"}
    output = start(data, tmp_path / "run", **flags)
    scores = printed_scores(capsys, "cer")
    assert len(scores) == 5 and scores[0] > min(scores)
    best = output / f"checkpoint-{20 * (scores.index(min(scores)) + 1)}"
    state = json.loads((best / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["best_metric"] == pytest.approx(min(scores), abs=0.01)
    assert_equal(weights(best), weights(output))


def test_a_run_stops_after_evaluations_without_fewer_errors(data, tmp_path, capsys):
    flags = {
        "early_stopping_patience": 2,
        "learning_rate": 1e-9,
        "num_train_epochs": 9,
        "metric_for_best_model": "cer",
    }
    start(data, tmp_path / "run", **flags)
    scores = printed_scores(capsys, "cer")
    assert len(scores) == 3 and len(set(scores)) == 1


@pytest.mark.parametrize("head", ["ctc", "classification"])
def test_a_data_set_of_the_hub_is_the_same_rows(head, data, hub, tmp_path):
    flags = {"head": head, "max_tokens": 800}
    one = start(data, tmp_path / "files", **flags)
    flags |= {"dataset_name": hub, "train_file": None, "validation_file": None, "test_file": None}
    other = start(data, tmp_path / "hub", **flags)
    assert_equal(weights(one), weights(other))
    for name in ("samples.txt", "predictions.txt"):
        assert lines(one / name) == lines(other / name)


@pytest.mark.parametrize("driver", DRIVERS)
def test_two_processes_train_the_same_model_as_one(driver, data, tmp_path):
    done = run_two(driver, arguments(data, tmp_path / "two", per_device_train_batch_size=4))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 process(es), 5 batches per epoch") == 1
    one = start(data, tmp_path / "one", driver, per_device_train_batch_size=8)
    assert_close(weights(one), weights(tmp_path / "two"))
    assert lines(one / "predictions.txt") == lines(tmp_path / "two" / "predictions.txt")


def test_a_published_recogniser_works_without_hfseq(trained, data, tmp_path):
    head, output = trained
    hfseq.publish(output, "ann/tones", dry_run=tmp_path / "published")
    recordings = [str(data / "test" / f"{row}.wav") for row in range(6)]
    kind = "audio-classification" if head == "classification" else "automatic-speech-recognition"
    command = ["-c", ELSEWHERE, kind, head, tmp_path / "published", *recordings]
    done = run_elsewhere(*command, environment={"HF_MODULES_CACHE": str(tmp_path / "modules")}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == lines(output / "predictions.txt")


@pytest.mark.parametrize("head", HEADS)
def test_both_drivers_agree(head, data, tmp_path, caplog):
    flags = {"head": head, "max_tokens": 800}
    one, other = (start(data, tmp_path / driver, driver, **flags) for driver in DRIVERS)
    assert_close(weights(one), weights(other))
    # Tied weights, of which a checkpoint has one, are not missing.
    assert "missing keys" not in caplog.text
    scores = {name: value for name, value in results(other).items() if name.startswith("test_")}
    assert scores and {name: results(one)[name] for name in scores} == pytest.approx(scores)
    for name in ("samples.txt", "predictions.txt"):
        assert lines(one / name) == lines(other / name)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("head", HEADS)
def test_a_killed_run_resumes_exactly(head, driver, data, tmp_path, monkeypatch):
    overrides = '{"hidden_size": 16, "subsampling_factor": 2, "dropout": 0.2, "apply_spec_augment": true}'
    flags = {"head": head, "config_overrides": overrides, "max_tokens": 800, "num_train_epochs": 3}
    whole = start(data, tmp_path / "whole", driver, **flags)
    with monkeypatch.context() as patch:
        kill_after_checkpoint(patch, driver, 1)
        with pytest.raises(Killed):
            start(data, tmp_path / "killed", driver, **flags)
    resumed = start(data, tmp_path / "killed", driver, resume_from_checkpoint="last", **flags)
    assert_equal(weights(whole), weights(resumed))
    assert lines(whole / "predictions.txt") == lines(resumed / "predictions.txt")


def test_a_trained_model_is_tested_again_and_trained_further(trained, data, tmp_path):
    head, output = trained
    model = {"model_name_or_path": output, "head": head, "config_overrides": None, "feature_extractor": None}
    plain = tmp_path / "plain.yaml"
    plain.write_text("use_cpu: true\ndisable_tqdm: true\nper_device_train_batch_size: 8\n", encoding="utf-8")
    files = {"test_file": data / "test", "output_dir": tmp_path / "test"}
    given = {name: value for name, value in model.items() if value is not None}
    recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **given, **files, do_predict=True))
    assert lines(tmp_path / "test" / "predictions.txt") == lines(output / "predictions.txt")
    files |= {"train_file": data / "train", "validation_file": data / "val", "output_dir": tmp_path / "further"}
    recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **given, **files, max_steps=1, learning_rate=1e-9))
    old, new = weights(output), weights(tmp_path / "further")
    name = next(key for key in old if key.endswith("feature_mean"))
    assert torch.equal(old[name], new[name])


@pytest.mark.parametrize("head", ["seq2seq", "classification"])
def test_an_ensemble_of_a_model_and_itself_is_the_model(head, data, tmp_path):
    output = start(data, tmp_path / "one", head=head)
    plain = tmp_path / "plain.yaml"
    plain.write_text("use_cpu: true\ndisable_tqdm: true\n", encoding="utf-8")
    flags = {"model_name_or_path": output, "ensemble": output, "test_file": data / "test", "head": head}
    flags["output_dir"] = tmp_path / "both"
    recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **flags, do_predict=True))
    assert lines(tmp_path / "both" / "predictions.txt") == lines(output / "predictions.txt")


def test_a_beam_of_one_symbol_at_a_time_is_the_best_path(trained, data, tmp_path):
    head, output = trained
    if head != "ctc":
        return
    plain = tmp_path / "plain.yaml"
    plain.write_text("use_cpu: true\ndisable_tqdm: true\n", encoding="utf-8")
    flags = {"model_name_or_path": output, "test_file": data / "test", "output_dir": tmp_path / "run"}
    recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **flags, do_predict=True, num_beams=8))
    best, beams = (lines(folder / "predictions.txt") for folder in (output, tmp_path / "run"))
    assert sum(one == other for one, other in zip(best, beams, strict=True)) >= 5


def test_a_language_model_of_the_characters_takes_part(trained, data, tmp_path):
    head, output = trained
    if head != "ctc":
        return
    its_tokenizer = train_tokenizer(["ab c", "cc b"], model="character")
    torch.manual_seed(0)
    lm = LstmForCausalLM(LstmConfig(vocab_size=len(its_tokenizer), hidden_size=8))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.uniform_(-2, 2)
    lm.save_pretrained(tmp_path / "lm")
    its_tokenizer.save_pretrained(tmp_path / "lm")
    plain = tmp_path / "plain.yaml"
    plain.write_text("use_cpu: true\ndisable_tqdm: true\n", encoding="utf-8")
    flags = {"model_name_or_path": output, "test_file": data / "test", "output_dir": tmp_path / "run"}
    flags |= {"lm_model": tmp_path / "lm", "lm_weight": 2.0, "length_bonus": 1.0, "num_beams": 6}
    recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **flags, do_predict=True))
    found = lines(tmp_path / "run" / "predictions.txt")
    assert found != lines(output / "predictions.txt")

    model, processor = AutoModelForCTC.from_pretrained(output).eval(), AutoProcessor.from_pretrained(output)
    names = ["</s>", "<unk>", "▁", "a", "b", "c"]  # at the blank any
    ids = torch.tensor(its_tokenizer.convert_tokens_to_ids(names))
    options = {"language_model": lm, "lm_weight": 2.0, "length_bonus": 1.0, "num_beams": 6, "lm_token_ids": ids}
    for row, text in enumerate(found):
        inputs = processor(str(data / "test" / f"{row}.wav"), return_tensors="pt")
        best = ctc_beam_search(model(**inputs).logits, blank_token_id=0, **options)[0][0]
        assert processor.tokenizer.decode(best.token_ids, group_tokens=False) == text
    message = "--lm_model .*: it has no token 'c'; train it on characters"
    train_tokenizer(["ab"], model="character").save_pretrained(tmp_path / "lm")
    with pytest.raises(InputError, match=message):
        flags["output_dir"] = tmp_path / "other"
        recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **flags, do_predict=True))


def test_a_model_of_transformers_reads_the_samples(data, tmp_path):
    names = ["<pad>", "<unk>", "|", "a", "b", "c"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16000, return_attention_mask=True)
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), bos_token=None, eos_token=None)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    layers = {"conv_dim": (8, 8), "conv_stride": (10, 8), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_length": 2}
    config = Wav2Vec2Config(vocab_size=6, pad_token_id=0, feat_extract_norm="layer", **sizes, **layers, **positions)
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "base")
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path / "base")
    plain = tmp_path / "plain.yaml"
    plain.write_text("use_cpu: true\ndisable_tqdm: true\nper_device_train_batch_size: 8\n", encoding="utf-8")
    files = {"train_file": data / "train", "validation_file": data / "val", "test_file": data / "test"}
    model = {"model_name_or_path": tmp_path / "base", "output_dir": tmp_path / "run", "max_steps": 2}
    recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **files, **model))
    assert len(lines(tmp_path / "run" / "predictions.txt")) == 6
    assert type(AutoModelForCTC.from_pretrained(tmp_path / "run")) is Wav2Vec2ForCTC


def test_whisper_writes_the_texts(data, tmp_path, monkeypatch):
    specials = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    vocabulary = {token: number for number, token in enumerate([*specials, "Ġ", "a", "b", "c"])}
    options = {"language": "en", "task": "transcribe", "additional_special_tokens": specials[1:]}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[], pad_token=specials[0], **options)
    extractor = WhisperFeatureExtractor(8, RATE, hop_length=HOP, n_fft=256, chunk_length=2)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8, "max_source_positions": 100}
    sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")} | {"max_target_positions": 32}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    WhisperForConditionalGeneration(WhisperConfig(vocab_size=9, **sizes, **ids)).save_pretrained(tmp_path / "base")
    WhisperProcessor(extractor, tokenizer).save_pretrained(tmp_path / "base")
    plain = tmp_path / "plain.yaml"
    plain.write_text("use_cpu: true\ndisable_tqdm: true\nper_device_train_batch_size: 8\n", encoding="utf-8")
    files = {"train_file": data / "train", "validation_file": data / "val", "test_file": data / "test"}
    flags = files | {"model_name_or_path": tmp_path / "base", "head": "seq2seq", "max_target_length": 20}
    flags |= {"num_train_epochs": 8, "learning_rate": 1e-2, "output_dir": tmp_path / "run"}
    read, forward = [], WhisperForConditionalGeneration.forward

    @functools.wraps(forward)
    def watched(self, *args, decoder_input_ids=None, **kwargs):
        if self.training:
            read.append(decoder_input_ids[:, :5].tolist())
        return forward(self, *args, decoder_input_ids=decoder_input_ids, **kwargs)

    monkeypatch.setattr(WhisperForConditionalGeneration, "forward", watched)
    recipe_runs.start(RECIPE, recipe_runs.arguments(plain, **flags))
    # The token that the decoder starts with comes once, and the text after the other special ones.
    assert all(row[:4] == [1, 2, 3, 4] and row[4] > 5 for batch in read for row in batch) and len(read) == 40
    found = lines(tmp_path / "run" / "predictions.txt")
    assert len(found) == 6 and results(tmp_path / "run")["test_cer"] < 90
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "run")
    assert type(model) is WhisperForConditionalGeneration
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    for row, text in enumerate(found):
        samples = soundfile.read(data / "test" / f"{row}.wav", dtype="float32")[0]
        inputs = processor(samples, sampling_rate=RATE, return_tensors="pt")
        ids = model.generate(inputs["input_features"], num_beams=1, max_length=20)
        assert processor.decode(ids[0], skip_special_tokens=True).strip() == text


# What is refused


def refused(data, tmp_path, **flags):
    with pytest.raises(InputError) as error:
        start(data, tmp_path / "run", **flags)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    return str(error.value)


def test_another_sampling_rate(data, tmp_path):
    folder = write_rows(tmp_path / "other", texts(4, 9), rate=6000)
    message = refused(data, tmp_path, test_file=folder, resampling="false")
    assert message.endswith("other/0.wav: 6000 Hz, but 8000 Hz are wanted and resampling is off")
    assert "metadata.csv, row 1" in message
    assert len(lines(start(data, tmp_path / "run", test_file=folder, max_steps=1) / "predictions.txt")) == 4


@pytest.mark.parametrize(
    ("damage", "reason"), [(lambda data: b"", "the file is empty"), (lambda data: data[:-100], "truncated")]
)
def test_a_damaged_recording(damage, reason, data, tmp_path):
    folder = write_rows(tmp_path / "other", texts(4, 9))
    path = folder / "2.wav"
    path.write_bytes(damage(path.read_bytes()))
    message = refused(data, tmp_path, train_file=folder)
    assert "metadata.csv, row 3" in message and "2.wav" in message and reason in message


def test_a_recording_too_short_for_its_transcript(data, tmp_path):
    folder = write_rows(tmp_path / "other", texts(4, 9))
    rows = (folder / "metadata.csv").read_text().splitlines()
    rows[2] = f"1.wav,{'aab' * 40},a"
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    message = refused(data, tmp_path, train_file=folder)
    assert "metadata.csv, row 2: 120 characters, 40 of them repeated, need 160 steps; the recording has" in message
    overrides = '{"hidden_size": 8, "subsampling_factor": 2, "ctc_zero_infinity": true}'
    start(data, tmp_path / "run", train_file=folder, config_overrides=overrides, max_steps=1)


def test_characters_that_a_checkpoint_does_not_have(trained, data, tmp_path):
    head, output = trained
    folder = write_rows(tmp_path / "other", ["a", "b", "c"])
    (folder / "metadata.csv").write_text("file_name,transcription,label\n0.wav,ab,a\n1.wav,bé,b\n2.wav,c,c\n")
    if head == "ctc":
        plain = tmp_path / "plain.yaml"
        plain.write_text("use_cpu: true\n", encoding="utf-8")
        files = {"train_file": folder, "validation_file": data / "val", "output_dir": tmp_path / "run"}
        with pytest.raises(InputError, match="metadata.csv, row 2: 'é' of 'bé' is not in the vocabulary"):
            recipe_runs.start(RECIPE, recipe_runs.arguments(plain, model_name_or_path=output, **files))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"head": "rnnt"}, "unknown --head 'rnnt'; there are ctc, seq2seq, classification"),
        ({"head": "classification", "num_beams": 4}, "--num_beams is for --head ctc or seq2seq; leave it out"),
        ({"max_target_length": 9}, "--max_target_length is for --head seq2seq; leave it out"),
        ({"tokenizer_model": "bpe"}, "--tokenizer_model is for --head seq2seq; leave it out"),
        ({"lm_weight": 0.3}, "--lm_weight goes with --lm_model"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor: CTC has no labels of steps to smooth"),
        ({"feature_extractor": '{"feature_sise": 12}'}, "--feature_extractor: no option 'feature_sise'; there are"),
        ({"feature_extractor": '{"feature_size": 1}'}, "--feature_extractor: feature_size=1 must be an integer"),
        ({"text_column": "words"}, "no column 'words'"),
        ({"head": "classification", "metric_for_best_model": "wer"}, "unknown --metric_for_best_model 'wer'"),
    ],
)
def test_flags_that_are_refused(flags, message, data, tmp_path):
    assert message in refused(data, tmp_path, **flags)


def test_no_recordings_with_classes_are_embedded():
    task = HEADS["classification"](SpeechArguments(head="classification"), GenerationArguments(use_cpu=True))
    with pytest.raises(InputError, match="--head classification has no embedded data"):
        task.read()


# Lengths


def test_lengths_are_those_of_frames():
    rows = [
        {"input_features": np.zeros((5, 3)), "labels": [1, 2]},
        {"input_features": np.zeros((2, 3)), "labels": [1]},
    ]
    assert row_lengths(rows).tolist() == [5, 2]
    assert row_lengths([{"input_values": np.zeros(7)}]).tolist() == [7]
