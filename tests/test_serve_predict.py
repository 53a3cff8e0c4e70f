"""`/predict`: answers of every task equal those of the bare pipeline, and what is wrong is refused by name."""

import base64
import io
import json
import logging
import socket

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import InferenceClient
from served_apps import JSON, ask, client_of, load, refused, same, sharing
from served_models import MAKERS, RATE, TINY, WORDS, recognizer, save, words
from starlette.testclient import TestClient
from transformers import (
    AutoProcessor,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    TimeSeriesTransformerConfig,
    TimeSeriesTransformerForPrediction,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    pipeline,
)

import hfseq
from hfseq.onnx.quantize import quantize_onnx
from hfseq.serve import main, make_server
from hfseq.serving.limits import Limits
from hfseq.serving.metrics import Metrics
from hfseq.serving.prediction import jsonable
from hfseq.serving.served import load_served
from hfseq.tokenization import item_tokenizer

LIMITS = Limits(max_input_tokens=20, max_new_tokens=12)
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    **HEADS,
}


def stirred(model):
    """A model with larger weights: as initialised, one so small says the same to everything."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_()
    return model.eval()


def bert(folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {0: "no", 1: "yes"}
    tokenizer = words()
    config = BertConfig(vocab_size=len(tokenizer), id2label=labels, max_position_embeddings=18, **sizes)
    return save(folder, stirred(BertForSequenceClassification(config)), tokenizer)


def marian(folder):
    tokenizer = words()
    config = MarianConfig(vocab_size=len(tokenizer), max_position_embeddings=10, **SIZES, **IDS)
    config.forced_eos_token_id = None
    return save(folder, stirred(MarianMTModel(config)), tokenizer)


def bart(folder):
    tokenizer = words()
    tasks = {"summarization": {"num_beams": 2}}
    config = BartConfig(vocab_size=len(tokenizer), task_specific_params=tasks, **SIZES, **IDS)
    return save(folder, stirred(BartForConditionalGeneration(config)), tokenizer)


def t5(folder):
    tokenizer = words()
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **IDS)
    return save(folder, stirred(T5ForConditionalGeneration(config)), tokenizer)


def nllb(folder):
    names = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghij"]
    tokenizer = NllbTokenizer(vocab={name: number for number, name in enumerate(names)})
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = M2M100Config(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES, **ids)
    model = stirred(M2M100ForConditionalGeneration(config))
    others = {*tokenizer.all_special_ids} - {tokenizer.convert_tokens_to_ids("fra_Latn")}
    model.generation_config.suppress_tokens = sorted(others)
    return save(folder, model, tokenizer)


def wav2vec2(folder):
    folder.mkdir(parents=True)
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    processor = Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json")))
    layers = {"conv_dim": (8, 8), "conv_kernel": (20, 8), "conv_stride": (10, 8), "feat_extract_norm": "layer"}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(vocab_size=len(names), **layers, **sizes, **positions)
    return save(folder, stirred(Wav2Vec2ForCTC(config)), processor)


def speech(folder, model_class, **fields):
    """A model of hfseq that reads recordings."""
    recognizer(folder)
    processor = AutoProcessor.from_pretrained(folder)
    names = {"vocab_size": len(processor.tokenizer)} | TINY | fields
    torch.manual_seed(0)
    model = model_class(hfseq.GruConfig(input_size=8, subsampling_factor=2, inputs_to_logits_ratio=160, **names))
    model.base_model.set_feature_statistics(torch.full((8,), -8.0), torch.full((8,), 2.0))
    if model.can_generate():
        model.generation_config.suppress_tokens = [0, 1, 2, 3, 4]  # letters alone
    return save(folder, model, processor)


def seq2seq_recognizer(folder):
    return speech(folder, hfseq.GruForConditionalGeneration, is_encoder_decoder=True, initializer_range=2.0)


def audio_classifier(folder):
    return speech(folder, hfseq.GruForSequenceClassification, id2label=dict(enumerate(("no", "yes", "maybe"))))


def series_transformer(folder):
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = TimeSeriesTransformerConfig(prediction_length=3, context_length=6, lags_sequence=[1, 2], **sizes)
    config.num_parallel_samples = 5
    torch.manual_seed(0)
    return save(folder, TimeSeriesTransformerForPrediction(config))


def gpt2(folder):
    tokenizer = item_tokenizer(WORDS.split())
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    return save(folder, stirred(GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))), tokenizer)


TRANSFORMERS = {
    "bert": bert,
    "marian": marian,
    "bart": bart,
    "t5": t5,
    "nllb": nllb,
    "wav2vec2": wav2vec2,
    "series_transformer": series_transformer,
    "gpt2": gpt2,
    "seq2seq_recognizer": seq2seq_recognizer,
    "audio_classifier": audio_classifier,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of all tasks by name; `_onnx` and `_int8` are exports."""
    root = tmp_path_factory.mktemp("served")
    found = {name: make(root / name) for name, make in {**MAKERS, **TRANSFORMERS}.items()}
    for name in ("text-classification", "translation"):
        found[f"{name}_onnx"] = hfseq.export_onnx(root / name, root / f"{name}_onnx")
        quantize_onnx(root / f"{name}_onnx", root / f"{name}_int8")
        found[f"{name}_int8"] = root / f"{name}_int8"
    return found


@pytest.fixture(scope="module")
def metrics():
    return Metrics()


@pytest.fixture(scope="module")
def models(folders, metrics):
    return load(folders, metrics, limits=LIMITS)


@pytest.fixture(scope="module")
def client(models, metrics):
    with client_of(models, metrics=metrics) as one:
        yield one


def tone(size, pitch):
    """A recording `[size]`."""
    volume = np.linspace(0.01, 0.5, size)
    return (volume * np.sin(np.arange(size) * pitch)).round(4).tolist()


TEXTS = ["a b c", "d", "j i h g f e d", "c x c"]
SERIES = [[1.0, 2.5, 2.0, 4.0, 3.0, 5.0, 4.5, 6.0, 5.0, 7.0], [3.0, None, 1.0, 0.0, 2.0, 2.0, 1.0, 3.0, 2.0]]
AUDIO = [{"array": tone(1600, 0.3), "sampling_rate": RATE}, {"array": tone(900, 1.1), "sampling_rate": RATE}]
HISTORIES = [["a", "b"], ["j"], ["a", "c", "e", "g"], ["b", "nothing"]]
INPUTS = {
    "text-classification": TEXTS,
    "token-classification": TEXTS,
    "translation": TEXTS,
    "summarization": TEXTS,
    "automatic-speech-recognition": AUDIO,
    "audio-classification": AUDIO,
    "time-series-forecasting": SERIES,
    "next-item-recommendation": HISTORIES,
}
SETTINGS = {
    "text-classification": [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}],
    "token-classification": [{}, {"aggregation_strategy": "simple"}, {"ignore_labels": ["O", "B-X"]}],
    "translation": [{}, {"num_beams": 3, "max_new_tokens": 5}, {"num_beams": 3, "num_return_sequences": 2}],
    "summarization": [{}, {"num_beams": 3, "length_penalty": 2.0}],
    "automatic-speech-recognition": [{}],
    "audio-classification": [{}, {"top_k": 2}],
    "time-series-forecasting": [{"seed": 3}, {"seed": 4, "num_samples": 7, "quantile_levels": [0.5]}],
    "next-item-recommendation": [{}, {"top_k": 3, "filter_seen": True}, {"max_length": 2}],
}
NAMES = [*MAKERS, *TRANSFORMERS]


def pipeline_answers(served, bare, inputs, settings):
    """Answers of the bare pipeline, to one input after the other."""
    options = dict(settings)
    seed = options.pop("seed", None)
    if served.task == "text-classification":
        options = {"top_k": None, **options}
    if served.task in ("translation", "summarization"):
        # Saved models end where their configurations say; a server has a limit besides.
        options = {"max_new_tokens": served.predictor.own_length, **options}
    if served.task == "automatic-speech-recognition" and served.model.can_generate():
        options = {"generate_kwargs": {"max_new_tokens": served.predictor.own_length, **options}}
    if served.task == "audio-classification":
        options = {"top_k": 3, **options}
    answers = []
    for one in inputs:
        if "array" in one:
            one = {"raw": np.asarray(one["array"], dtype=np.float32), "sampling_rate": one["sampling_rate"]}
        if seed is not None:
            torch.manual_seed(seed)
        found = bare([one], **options)
        answers.append(json.loads(json.dumps(jsonable(found[0]))))
    return answers


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nllb"])
def test_answers_are_those_of_the_pipeline(client, models, folders, name):
    served = next(one for one in models if one.name == name)
    inputs = INPUTS[served.task]
    bare = pipeline(served.task, str(folders[name]), device="cpu")
    for settings in SETTINGS[served.task] + ([{"num_beams": 2}] if name == "seq2seq_recognizer" else []):
        expected = pipeline_answers(served, bare, inputs, settings)
        distinct = {json.dumps(one) for one in expected}
        assert len(distinct) > 1, "the model says the same to everything, the test would show nothing"
        response = ask(client, inputs, name, **settings)
        assert response.status_code == 200, response.text
        same(response.json(), expected)
        for one, answer in zip(inputs, expected, strict=True):
            single = ask(client, one, name, **settings)
            # The form of the Hub's API: a list for a single text of a classifier or a translator, too.
            several = served.task == "text-classification" or isinstance(answer, dict) and {*answer} <= TEXT_KEYS
            same(single.json(), [answer] if several else answer)


TEXT_KEYS = {"translation_text", "summary_text"}


@pytest.mark.parametrize("task,settings", [("text-classification", {}), ("translation", {"num_beams": 2})])
def test_exports_answer_as_the_model(client, models, task, settings):
    by_name = {one.name: one for one in models}
    expected = ask(client, TEXTS, task, **settings).json()
    same(ask(client, TEXTS, f"{task}_onnx", **settings).json(), expected)
    int8 = ask(client, TEXTS, f"{task}_int8", **settings).json()
    if task == "translation":
        assert sum(one == other for one, other in zip(int8, expected, strict=True)) >= 3
    else:
        assert [row[0]["label"] for row in int8] == [row[0]["label"] for row in expected]
    assert [by_name[f"{task}{end}"].backend for end in ("", "_onnx", "_int8")] == ["torch", "onnx", "onnx"]
    for session in by_name[f"{task}_int8"].model.sessions.values():
        # Threads that spin would take the cores from torch's.
        assert session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_exports_are_loaded_without_a_warning(folders, caplog):
    logger = logging.getLogger("transformers.pipelines.base")
    logger.addHandler(caplog.handler)  # it does not propagate
    try:
        load_served(str(folders["text-classification_onnx"]), device="cpu").close()
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_sampling_is_repeatable_whatever_the_batch(client):
    settings = {"do_sample": True, "temperature": 3.0}
    alone = [ask(client, text, "translation", seed=5, **settings).json()[0] for text in TEXTS]
    assert ask(client, TEXTS, "translation", seed=5, **settings).json() == alone
    others = [json.dumps(ask(client, TEXTS, "translation", **settings).json()) for _ in range(4)]
    assert len(set(others)) > 1


def test_languages_of_a_request(client):
    languages = {"src_lang": "deu_Latn", "tgt_lang": "fra_Latn"}
    first = ask(client, "a b", "nllb", **languages).json()
    assert ask(client, "a b", "nllb", src_lang="eng_Latn", tgt_lang="fra_Latn").status_code == 200
    assert ask(client, "a b", "nllb", **languages).json() == first
    refused(ask(client, "a b", "nllb"), 400, "both src_lang and tgt_lang", param="src_lang")
    refused(ask(client, "a b", "nllb", src_lang="deu_Latn"), 400, param="tgt_lang")
    refused(ask(client, "a b", "nllb", **languages | {"tgt_lang": "zz"}), 400, "'zz'", param="tgt_lang")
    refused(ask(client, "a b", "nllb", **languages | {"src_lang": "zz"}), 400, "'zz'", param="src_lang")
    refused(ask(client, "a b", "translation", **languages), 400, "not multilingual", param="src_lang")
    refused(ask(client, "a b", "bart", **languages), 400, "for translation", param="src_lang")


def test_a_language_of_one_request_is_not_that_of_the_next(folders, models):
    served = next(one for one in models if one.name == "nllb")
    tokenizer, model = served.predictor.pipe.tokenizer, served.model
    model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids("fra_Latn")
    try:
        client = sharing([served])
        first = ask(client, TEXTS).json()
        other = ask(client, TEXTS, src_lang="deu_Latn", tgt_lang="fra_Latn").json()
        assert ask(client, TEXTS).json() == first != other
    finally:
        model.generation_config.forced_bos_token_id = None


def test_recordings_of_any_form(client):
    name, array = "automatic-speech-recognition", np.asarray(AUDIO[0]["array"], dtype=np.float32)
    expected = ask(client, AUDIO[0], name).json()
    for form in ("WAV", "FLAC"):
        for channels in (array, np.stack([array, array], axis=1)):
            contents = io.BytesIO()
            soundfile.write(contents, channels, RATE, format=form, subtype="PCM_24")
            file = contents.getvalue()
            assert ask(client, base64.b64encode(file).decode(), name).json() == expected
            for kind in ("audio/flac", "application/octet-stream", "audio/x-wav; rate=8000"):
                sent = client.post(f"/predict?model={name}", content=file, headers={"Content-Type": kind})
                assert sent.json() == expected
            refused(ask(client, base64.b64encode(file[:-200]).decode(), name), 400, "truncated", "inputs")
    # Other rates are resampled.
    assert ask(client, {"array": tone(3200, 0.15), "sampling_rate": 2 * RATE}, name).status_code == 200
    refused(client.post("/predict?model=translation", content=file, headers={"Content-Type": kind}), 400, "a file")


def test_compressed_silence_is_not_unpacked(client, monkeypatch):
    monkeypatch.setattr("hfseq.serving.predictors.MAX_SAMPLES", 2**20)
    contents = io.BytesIO()
    soundfile.write(contents, np.zeros(2**21, dtype=np.int16), RATE, format="FLAC")
    assert len(contents.getvalue()) < 20_000
    file = base64.b64encode(contents.getvalue()).decode()
    refused(ask(client, file, "automatic-speech-recognition"), 400, "more than 1048576 samples", "inputs")


@pytest.mark.parametrize(
    "name,inputs,settings,param,said",
    [
        ("translation", "a", {"beams": 2}, "beams", "unknown setting; did you mean num_beams?"),
        ("translation", "a", {"num_beams": 21}, "num_beams", "20"),
        ("translation", "a", {"num_beams": "2"}, "num_beams", "integer"),
        ("translation", "a", {"num_beams": 1.0}, "num_beams", "integer"),
        ("translation", "a", {"max_new_tokens": 13}, "max_new_tokens", "the maximum is 12"),
        ("marian", "a", {"max_new_tokens": 10}, "max_new_tokens", "the maximum is 9"),
        ("translation", "a", {"temperature": 2.0}, "temperature", "do_sample"),
        ("translation", "a", {"seed": 1}, "seed", "do_sample"),
        ("translation", "a", {"num_return_sequences": 2}, "num_return_sequences", "beams"),
        ("translation", "a", {"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens", "maximum"),
        ("translation", "a " * 30, {}, "inputs", "tokens; the maximum is 20"),
        ("translation", ["a", 1], {}, "inputs[1]", "a number in place of a text"),
        ("translation", [["a"]], {}, "inputs[0]", "a list in place of a text"),
        ("translation", None, {}, "inputs", "null in place of a text"),
        ("bert", "a " * 19, {}, "inputs", "the maximum is 18"),
        ("text-classification", {"text": "a"}, {}, "inputs", "text_pair"),
        ("text-classification", {"text": "a", "text_pair": 1}, {}, "inputs", "text_pair"),
        ("text-classification", "a", {"top_k": 0}, "top_k", "greater"),
        ("text-classification", "a", {"aggregation_strategy": "simple"}, "aggregation_strategy", "unknown setting"),
        ("token-classification", "a", {"aggregation_strategy": "best"}, "aggregation_strategy", "'none'"),
        ("automatic-speech-recognition", "a b", {}, "inputs", "base64"),
        ("automatic-speech-recognition", "AAAA", {}, "inputs", "not audio"),
        ("automatic-speech-recognition", AUDIO, {"num_beams": 2}, "num_beams", "CTC"),
        ("automatic-speech-recognition", {"array": [], "sampling_rate": RATE}, {}, "inputs", "0.0 s"),
        ("automatic-speech-recognition", {"array": [10**400], "sampling_rate": RATE}, {}, "inputs.array", "too large"),
        ("automatic-speech-recognition", {"array": [0], "sampling_rate": 7}, {}, "inputs", "sampling_rate"),
        ("time-series-forecasting", [1, "a"], {}, "inputs", "list of numbers"),
        ("time-series-forecasting", [[1], [10**400]], {}, "inputs[1]", "too large"),
        ("time-series-forecasting", [None], {}, "inputs", "no value"),
        ("time-series-forecasting", [1] * 21, {}, "inputs", "the maximum is 20"),
        ("time-series-forecasting", [1], {"prediction_length": 13}, "prediction_length", "the maximum is 12"),
        ("time-series-forecasting", {"target": [1], "start": "x" * 999}, {}, "inputs", "write it as 2024-01-31"),
        ("series_transformer", [1], {"prediction_length": 4}, "prediction_length", "3 steps"),
        ("time-series-forecasting", [1], {"quantile_levels": [0.5, 1.0]}, "quantile_levels", "below 1"),
        ("next-item-recommendation", ["a", 1], {}, "inputs", "names of items"),
        ("next-item-recommendation", ["a"] * 21, {}, "inputs", "the maximum is 20"),
    ],
)
def test_what_is_wrong_is_named(client, name, inputs, settings, param, said):
    refused(ask(client, inputs, name, **settings), 400, said, param)


def test_forecasts_have_a_maximum_size(client):
    name, large = "time-series-forecasting", {"prediction_length": 12, "num_samples": 1000, "return_samples": True}
    assert ask(client, [SERIES[0]] * 2, name, **large).status_code == 200
    refused(ask(client, [SERIES[0]] * 83, name, **large), 400, "1005960 numbers", "inputs")


DATED = {"target": [1, 2], "start": "2020-01-01"}


@pytest.mark.parametrize(
    "series",
    [
        DATED | {"freq": "99999999999999999h"},
        DATED | {"freq": "0D"},
        DATED | {"start": "yesterday", "freq": "D"},
        DATED | {"feat_dynamic_real": [[1]]},
        DATED | {"target": [[1], [2]]},
        DATED | {"target": "1"},
        {"start": "2020-01-01"},
    ],
)
def test_series_with_errors_are_named(client, series):
    refused(ask(client, [[1.0], series], "time-series-forecasting"), 400, "inputs[1]")


def test_truncation_where_it_is_asked_for(client):
    for name in ("text-classification", "translation", "bert"):
        longest = 18 if name == "bert" else 20
        size = longest - len(words()("")["input_ids"])
        kept = ask(client, " ".join(("a b " * 40).split()[:size]), name).json()
        assert ask(client, "a b " * 40, name, truncation=True).json() == kept
        refused(ask(client, "a b " * 40, name, truncation=False), 400, "truncation")


def test_many_inputs(client):
    assert len(ask(client, ["a"] * 256, "translation").json()) == 256
    refused(ask(client, ["a"] * 257, "translation"), 400, "257 of them", "inputs")
    assert ask(client, [], "translation").json() == []


def test_more_inputs_than_the_queue_ever_holds(folders):
    models = load({"one": folders["text-classification"]}, limits=LIMITS._replace(max_queue=4))
    with client_of(models) as client:
        assert len(ask(client, ["a"] * 4).json()) == 4
        refused(ask(client, ["a"] * 5), 400, "the maximum is 4")


def test_models_by_name(client, models):
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["task"]) for card in cards] == [(one.name, one.task) for one in models]
    refused(ask(client, "a"), 400, "name the model", "model")
    refused(ask(client, "a", "none"), 404, "'none' does not exist", "model")
    refused(client.post("/predict", json={"inputs": "a", "model": 5}), 400, "string", "model")
    body = {"inputs": "a", "model": "translation"}
    assert client.post("/predict?model=translation", json=body).status_code == 200
    refused(client.post("/predict?model=bart", json=body), 400, "two models", "model")
    for query in ("model=bart&model=bart", "model=bart&top_k=1", "top_k"):
        refused(client.post(f"/predict?{query}", json={"inputs": "a"}), 400, "the address")
    alone = sharing(models[:1])
    assert ask(alone, "a").status_code == ask(alone, "a", models[0].name).status_code == 200


def test_bodies(client, models):
    for content, said in [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"inputs": NaN}', "not valid JSON"),
        ('{"inputs": [1e999]}', "not valid JSON"),
        ('{"inputs": "a", "inputs": "b"}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"inputs": ' + "9" * 5000 + "}", "not valid JSON"),
        (b'{"inputs": "\xff"}', "not valid JSON"),
        ("[]", "not a JSON object"),
        ('"a"', "not a JSON object"),
        ('{"input": "a"}', "inputs"),
        ('{"inputs": "a", "more": 1}', "more: is not supported"),
        ('{"inputs": "a", "parameters": []}', "parameters"),
        ('{"inputs": "a", "model": "translation", "parameters": {"\\n": 1}}', "unknown setting"),
    ]:
        refused(client.post("/predict", content=content, headers=JSON), 400, said)
    deep = "[" * 400 + "]" * 400
    for name in MAKERS:
        body = f'{{"inputs": {deep}, "model": "{name}"}}'
        refused(client.post("/predict", content=body, headers=JSON), 400)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        sent = client.post("/predict", content='{"inputs": "a"}', headers={"Content-Type": kind})
        refused(sent, 415, "application/json")
    # Unpaired surrogates cannot be encoded as UTF-8.
    unpaired = client.post("/predict", content=r'{"inputs": "a \ud83d b", "model": "translation"}', headers=JSON)
    assert unpaired.json() == ask(client, "a ? b", "translation").json()
    small = sharing(models[:1], max_body=100)
    assert ask(small, "a").status_code == 200
    refused(ask(small, "a" * 100), 413, "100 bytes")
    refused(small.post("/predict", content=iter([b"a" * 60, b"a" * 60]), headers=JSON), 413)


def test_other_paths_and_methods(client):
    for path in ("/", "/docs", "/redoc", "/predict/", "/v1", "/openapi.json/", "/metrics/x"):
        for method in ("GET", "POST", "OPTIONS", "PUT", "DELETE"):
            refused(client.request(method, path, json={}, follow_redirects=False), 404)
    answer = client.get("/predict")
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_other_origins(client):
    asking = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    responses = [client.options("/predict", headers=asking), ask(client, "a", "translation", headers=asking)]
    assert [one.status_code for one in responses] == [405, 200]
    assert not any("access-control" in name for one in responses for name in one.headers)


def test_keys(models):
    paths = ("/v1/models", "/metrics", "/openapi.json")
    client = sharing(models[:1], api_keys=("one", "two"))
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic one"}, {"Authorization": "one"}):
        responses = [client.get(path, headers=headers) for path in paths]
        responses.append(ask(client, "a", headers=headers))
        for response in responses:
            refused(response, 401, "API key")
            assert response.headers["www-authenticate"] == "Bearer"
    for key in ("one", "two"):
        headers = {"Authorization": f"Bearer {key}"}
        assert all(client.get(path, headers=headers).status_code == 200 for path in paths)
        assert ask(client, "a", headers=headers).status_code == 200
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_metrics(models, metrics):
    client = sharing(models, metrics=metrics)
    before = counted(client)
    ask(client, ["a b", "c"], "translation")
    ask(client, "a", "no such model")
    for number in range(20):
        client.get(f"/path/{number}")
        client.request(f"METHOD{number}", "/predict")
        ask(client, "a", f"model {number}")
    after = counted(client)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown['hfseq_requests_total{endpoint="/predict",model="translation",status="200"}'] == 1
    assert grown['hfseq_requests_total{endpoint="/predict",model="",status="404"}'] == 21
    assert grown['hfseq_requests_total{endpoint="other",model="",status="404"}'] == 20
    assert grown['hfseq_requests_total{endpoint="/predict",model="",status="405"}'] == 20
    assert grown['hfseq_request_seconds_count{endpoint="/predict",model="translation"}'] == 1
    assert grown['hfseq_batch_size_sum{model="translation"}'] == 2
    assert grown['hfseq_tokens_total{kind="input",model="translation"}'] == sum(
        len(words()(text)["input_ids"]) for text in ("a b", "c")
    )
    assert after['hfseq_queue_size{model="translation"}'] == 0
    # Whatever strangers ask for, there are as many series as before.
    assert not any("path" in name or "METHOD" in name or "model 1" in name for name in after)


def counted(client):
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_logs_hold_no_texts(client, models, caplog, monkeypatch):
    from hfseq.serving.observing import LOGGER, JsonFormatter

    secret = "Zanzibar"
    monkeypatch.setattr(logging.getLogger(LOGGER), "propagate", True)
    served = next(one for one in models if one.name == "text-classification")

    def fail(values, options):
        raise ValueError(f"cannot read {values}") from KeyError(values[0])

    with caplog.at_level(logging.INFO):
        assert ask(client, f"a {secret}", "translation", headers={"X-Request-Id": "seventeen"}).status_code == 200
        refused(ask(client, f"a {secret}" * 99, "translation"), 400)
        refused(ask(client, {secret: 1}, "text-classification"), 400)
        monkeypatch.setattr(served.predictor, "call", fail)
        refused(ask(client, f"a {secret}", "text-classification"), 500, "see the server's log")
    lines = [JsonFormatter().format(record) for record in caplog.records]
    found = [json.loads(line) for line in lines]
    assert secret not in "".join(lines)
    requests = [one for one in found if one["message"] == "request"]
    assert [one["status"] for one in requests] == [200, 400, 400, 500]
    assert requests[0]["request_id"] == "seventeen" and requests[0]["model"] == "translation"
    assert requests[0]["milliseconds"] > 0 and requests[0]["path"] == "/predict"
    failure = next(one for one in found if one["level"] == "error")
    assert "ValueError" in failure["traceback"] and "KeyError" in failure["traceback"]
    assert "in fail" in failure["traceback"]


def test_inference_client_of_the_hub(client, monkeypatch):
    """The official client, its requests answered by the application in place of the network."""

    def request_of(name):
        hub = InferenceClient(base_url=f"http://testserver/predict?model={name}", token="unused")

        def send(parameters, **kwargs):
            kind = {"Content-Type": "audio/wav"} if parameters.data is not None else JSON
            content = parameters.data if parameters.data is not None else json.dumps(parameters.json)
            response = client.post(parameters.url, content=content, headers=kind)
            assert response.status_code == 200, response.text
            return response.content

        monkeypatch.setattr(hub, "_inner_post", send)
        return hub

    classes = request_of("text-classification").text_classification("a b")
    assert [one.label for one in classes] == [
        one["label"] for one in ask(client, "a b", "text-classification").json()[0]
    ]
    tags = request_of("token-classification").token_classification("a b", aggregation_strategy="none")
    assert len(tags) == len(ask(client, "a b", "token-classification").json())
    translation = request_of("translation").translation("a b")
    assert [{"translation_text": translation.translation_text}] == ask(client, "a b", "translation").json()
    summary = request_of("bart").summarization("a b")
    assert [{"summary_text": summary.summary_text}] == ask(client, "a b", "bart").json()
    contents = io.BytesIO()
    soundfile.write(contents, np.asarray(AUDIO[0]["array"]), RATE, format="WAV", subtype="FLOAT")
    spoken = request_of("automatic-speech-recognition").automatic_speech_recognition(contents.getvalue())
    assert {"text": spoken.text} == ask(client, AUDIO[0], "automatic-speech-recognition").json()


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["{folder}", "--backend", "onnx"], "no ONNX export"),
        (["{folder}", "--task", "poetry"], "'poetry' is not served"),
        (["{folder}", "--task", "translation"], "not for translation, but for text-classification"),
        (["{folder}", "--task", "token-classification"], "not for token-classification, but for text-classification"),
        (["{series}", "--task", "text-classification"], "but for time-series-forecasting"),
        (["{folder}", "{folder}"], "two models have the name"),
        (["{folder}", "--max_queue", "0"], "--max_queue 0: must be positive"),
        (["{folder}", "--timeout", "nan"], "--timeout"),
        (["{folder}", "--device", "cuda:99"], "--device cuda:99"),
        (["{folder}", "--api_key", ""], "--api_key: the key is empty"),
        (["{folder}/nothing"], "no such directory"),
        (["{empty}"], "empty"),
        (["{folder}", "--traffic_dir", "{folder}/config.json"], "--traffic_dir"),
        (["{folder}", "--host", "no host"], "--host no host"),
        (["{folder}", "--port", "70000"], "--port 70000"),
    ],
)
def test_command_line_errors_are_one_line(folders, tmp_path, capsys, arguments, said):
    (tmp_path / "empty").mkdir()
    places = {
        "folder": folders["text-classification"],
        "series": folders["time-series-forecasting"],
        "empty": tmp_path / "empty",
    }
    with pytest.raises(SystemExit) as end:
        main([one.format(**places) for one in arguments])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_port_in_use_is_one_line_before_any_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as end:
        port = taken.getsockname()[1]
        main(["nothing", "--host", "127.0.0.1", "--port", str(port)])
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: --port {port}: in use on 127.0.0.1; choose another\n"


def test_the_help_has_no_defaults_that_are_none(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "(default: localhost)" in shown and "None" not in shown


def test_names_and_limits_of_the_command_line(folders):
    pairs = [f"first={folders['text-classification']}", folders["translation"]]
    server = make_server(pairs, max_input_tokens=5, device="cpu", backend="torch", api_key="key")
    with TestClient(server.config.app, headers={"Authorization": "Bearer key"}) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["first", "translation"]
        refused(ask(client, "a b c d e f", "first"), 400, "the maximum is 5")
