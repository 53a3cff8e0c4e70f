"""OpenAI's endpoints in the whole application, of models that are loaded from folders."""

import json
import string

import pytest
import torch
from served_apps import client_of, load
from served_models import classifier, language_model

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
