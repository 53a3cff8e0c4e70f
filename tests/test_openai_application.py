"""OpenAI's endpoints in the whole application, of models that are loaded from folders."""

import json
import string

import pytest
import torch
from served_apps import ask, client_of, load, refused
from served_models import classifier, language_model
from transformers import pipeline

import hfseq
from hfseq.serving.metrics import Metrics
from hfseq.serving.traffic import TrafficLog

BODY = {"prompt": "a b", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    language_model(root / "lm")
    hfseq.export_onnx(root / "lm", root / "onnx")
    return {"lm": root / "lm", "onnx": root / "onnx", "classifier": classifier(root / "classifier")}


def test_language_models_of_the_application(folders, tmp_path):
    metrics, traffic = Metrics(), TrafficLog(tmp_path / "traffic")
    models = load(folders, metrics)
    with client_of(models, metrics=metrics, traffic=traffic, api_keys=("key",)) as client:
        assert client.post("/v1/completions", json=BODY | {"model": "lm"}).status_code == 401
        client.headers["Authorization"] = "Bearer key"
        answers = [client.post("/v1/completions", json=BODY | {"model": name}).json() for name in ("lm", "onnx")]
        (text,) = {answer["choices"][0]["text"] for answer in answers}
        assert {*text} & {*string.ascii_lowercase} and answers[1]["model"] == "onnx"
        chat = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 4, "temperature": 0, "model": "lm"}
        stream = client.post("/v1/chat/completions", json=chat | {"stream": True}).text
        assert stream.endswith("data: [DONE]\n\n")
        # A classifier is there, but writes nothing.
        answer = client.post("/v1/completions", json=BODY | {"model": "classifier"})
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
        assert client.get("/ready").status_code == 200
        shown = client.get("/metrics").text
        assert 'hfseq_tokens_total{kind="output",model="lm"} 8.0' in shown
        assert 'hfseq_requests_total{endpoint="/v1/completions",model="onnx",status="200"} 1.0' in shown
        paths = client.get("/openapi.json").json()["paths"]
        assert "prompt" in json.dumps(paths["/v1/completions"]["post"]["requestBody"])
        served = {one.name: one for one in models}["lm"]
        ids = served.processing_class("a b", return_tensors="pt")["input_ids"]
        tokens = served.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        assert text.strip() == served.processing_class.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    lines = [json.loads(line) for path in (tmp_path / "traffic").iterdir() for line in path.read_text().splitlines()]
    records = [(line["model"], line["inputs"], line["output"]) for line in lines]
    assert records[:2] == [("lm", "a b", [text]), ("onnx", "a b", [text])] and records[2][1][0]["content"] == "a b"
    assert lines[0]["parameters"]["max_tokens"] == 4


def without_spaces(value):
    """The pipeline decodes new tokens by themselves, so that it loses the space before them."""
    return json.loads(json.dumps(value).replace(" ", ""))


def test_text_generation_at_predict(folders):
    """As the pipeline answers, whatever backend it is; at the same time as OpenAI's requests."""
    lm, onnx = load({name: folders[name] for name in ("lm", "onnx")})
    pipe = pipeline("text-generation", str(folders["lm"]), device="cpu")
    with client_of([lm, onnx]) as client:
        for options in ({}, {"num_beams": 3, "num_return_sequences": 2}, {"return_full_text": False}):
            parameters = {"max_new_tokens": 5, "do_sample": False} | options
            for inputs in ("a b", ["a b", "c", "d e f"]):
                for name in ("lm", "onnx"):
                    found = ask(client, inputs, name, **parameters).json()
                    assert without_spaces(found) == without_spaces(pipe(inputs, **parameters)), options
        text = ask(client, "a", "lm", max_new_tokens=6, do_sample=False).json()[0]["generated_text"]
        assert ask(client, "a", "lm", max_new_tokens=6, do_sample=False, stop=[text[3:5]]).json() == [
            {"generated_text": text[:3]}
        ]
        sampled = {"temperature": 5.0, "seed": 3, "max_new_tokens": 8, "num_return_sequences": 3}
        first, again, other = (ask(client, "a", "lm", **sampled | {"seed": seed}).json() for seed in (3, 3, 4))
        assert first == again != other and len({one["generated_text"] for one in first}) == 3
        # By default as the pipeline: sampled.
        assert len({ask(client, "a", "lm", temperature=9.0, max_new_tokens=8).text for _ in range(3)}) > 1
        for inputs, parameters, said in (
            (5, {}, "inputs: a number in place of a text"),
            (["a", None], {}, "inputs[1]: null in place of a text"),
            ("a", {"max_new_tokens": 10**6}, "max_new_tokens: 1000000 new tokens were requested"),
            ("a " * 3000, {}, "inputs: the prompt has 3001 tokens; the maximum is 2048"),
            ("a", {"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences: 3, but there are 2 beams"),
            ("a", {"num_beams": 2, "do_sample": True}, "num_beams: beam search does not sample"),
            ("a", {"stop": ["a"] * 5}, "stop"),
            ("a", {"nothing": 1}, "nothing"),
        ):
            refused(ask(client, inputs, "lm", **parameters), 400, said)
