"""The server of transformers with a model of hfseq in it."""

import json
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch

import hfseq
from hfseq.data.errors import InputError
from hfseq.serve import make_server
from hfseq.tokenization import start_texts, train_tokenizer


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(url, **body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "lm"
    tokenizer = train_tokenizer(["a b c d e f g h"], model="word", vocab_size=20)
    start_texts(tokenizer)
    torch.manual_seed(0)
    model = hfseq.LstmForCausalLM(hfseq.LstmConfig(vocab_size=len(tokenizer), hidden_size=16, initializer_range=1.0))
    # Words alone, so that the answer is as long as it may be.
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    for saved in (model, tokenizer):
        saved.save_pretrained(folder)
    return folder, model.eval(), tokenizer


@pytest.fixture(scope="module")
def server(language_model):
    port = free_port()
    command = [sys.executable, "-m", "hfseq.serve", str(language_model[0]), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Uvicorn running" in line:
                    break
            else:
                pytest.fail("".join(lines))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def test_start_texts():
    tokenizer = train_tokenizer(["a b"], model="word", vocab_size=20)
    assert tokenizer("a b").tokens() == ["▁a", "▁b", "</s>"]
    start_texts(tokenizer)
    assert tokenizer("a b").tokens() == ["</s>", "▁a", "▁b"]
    assert tokenizer("a", "b").tokens() == ["</s>", "▁a", "</s>", "▁b"]


def test_completions_are_what_generate_gives(language_model, server):
    folder, model, tokenizer = language_model
    inputs = tokenizer("a b c", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = tokenizer.decode(tokens, skip_special_tokens=True).split()
    body = {"model": str(folder), "prompt": "a b c", "max_tokens": 6, "temperature": 0}
    answer = json.loads(ask(f"{server}/v1/completions", **body))
    assert answer["choices"][0]["text"].split() == expected and answer["usage"]["completion_tokens"] == 6
    lines = ask(f"{server}/v1/completions", **body, stream=True).splitlines()
    parts = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(part["choices"][0]["text"] for part in parts).split() == expected
    assert len(parts) > 3


def test_what_cannot_be_served(tmp_path):
    tokenizer = train_tokenizer(["a b"], model="word", vocab_size=20)
    model = hfseq.GruForSequenceClassification(hfseq.GruConfig(vocab_size=len(tokenizer), hidden_size=8))
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "classifier")
    with pytest.raises(InputError, match="GruForSequenceClassification is not a language model"):
        make_server(str(tmp_path / "classifier"))
    done = subprocess.run(
        [sys.executable, "-m", "hfseq.serve", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    assert "no config.json, so there is no model" in done.stderr
    with pytest.raises(InputError, match="nowhere"):
        make_server("nowhere", non_blocking=True)
