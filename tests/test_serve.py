"""The server of transformers with a model of hfseq in it."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

import hfseq
from hfseq.errors import InputError
from hfseq.serve import main, make_server
from hfseq.serving.batcher import Batcher
from hfseq.serving.server import BatchingManager, Limits
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
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
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


@contextmanager
def running(folder, **options):
    """A server in a thread of this process; its address and port."""
    server = make_server(str(folder), device="cpu", **options)
    # Whoever connects before the server is ready waits in line.
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        # A daemon, so that a test that fails while a request goes on forever does not hang.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)
    assert not batching()


def batching():
    return "hfseq-batcher" in [thread.name for thread in threading.enumerate()]


def send(address, **body):
    """A connection on which an answer is to come."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    data = json.dumps({"prompt": "a", "temperature": 0} | body)
    connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
    return connection


def generated(language_model, prompt, **options):
    _, model, tokenizer = language_model
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, do_sample=False, **options)[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(tokens, skip_special_tokens=True)


# The model never writes its end, so that this goes on until the client is gone, if the server lets it.
FOREVER = 10**9
ENDLESS = {"max_tokens": FOREVER, "stream": True}


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
    body = {"model": folder.name, "prompt": "a b c", "max_tokens": 6, "temperature": 0}
    answer = json.loads(ask(f"{server}/v1/completions", **body))
    assert answer["choices"][0]["text"].split() == expected and answer["usage"]["completion_tokens"] == 6
    lines = ask(f"{server}/v1/completions", **body, stream=True).splitlines()
    parts = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(part["choices"][0]["text"] for part in parts).split() == expected
    assert len(parts) > 3


def test_requests_at_one_time_get_what_they_get_alone(language_model, server):
    prompts = ["a", "b c", "d e f g h a b c d", "h g", "c c c c", "e"] * 2
    body = {"model": language_model[0].name, "max_tokens": 9, "temperature": 0}

    def complete(prompt):
        return json.loads(ask(f"{server}/v1/completions", prompt=prompt, **body))["choices"][0]["text"]

    with ThreadPoolExecutor(len(prompts)) as clients:
        found = list(clients.map(complete, prompts))
    assert found == [generated(language_model, prompt, max_new_tokens=9) for prompt in prompts]


def test_requests_are_batched(language_model):
    """The second is answered while the first goes on."""
    sampling = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 9}
    sampled = {"generation_config": json.dumps(sampling), "temperature": None, "seed": 3}
    with running(language_model[0], max_new_tokens=FOREVER) as address:
        alone = json.load(send(address, **sampled).getresponse())["choices"]
        with closing(send(address, **ENDLESS)) as endless:
            stream = endless.getresponse()
            assert stream.readline().startswith(b"data: {")
            second = json.load(send(address, prompt="b c", max_tokens=7).getresponse())["choices"]
            assert second[0]["text"] == generated(language_model, "b c", max_new_tokens=7)
            assert second[0]["finish_reason"] == "length"
            # What is sampled depends on the seed and not on the others.
            assert json.load(send(address, **sampled).getresponse())["choices"] == alone
            assert json.load(send(address, **sampled | {"seed": 4}).getresponse())["choices"] != alone


@pytest.fixture(params=["batched", "not_batched"])
def either_way(request, monkeypatch):
    if request.param == "not_batched":
        monkeypatch.setattr("hfseq.serving.server.is_batched", lambda model: False)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("either_way")
def test_a_client_that_goes_makes_room(language_model, stream, monkeypatch, caplog):
    begun, forward = threading.Event(), hfseq.LstmForCausalLM.forward
    monkeypatch.setattr(hfseq.LstmForCausalLM, "forward", lambda *args, **kw: begun.set() or forward(*args, **kw))
    with running(language_model[0], max_batch_size=1, max_new_tokens=FOREVER) as address:
        with closing(send(address, **ENDLESS | {"stream": stream})) as endless:
            assert begun.wait(60)
            if stream:
                endless.getresponse().readline()
        answer = json.load(send(address, max_tokens=3).getresponse())
    assert answer["choices"][0]["text"] == generated(language_model, "a", max_new_tokens=3)
    assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("either_way")
def test_a_stream_cancelled_between_two_tokens_has_not_failed(language_model, caplog):
    _, model, tokenizer = language_model
    manager = BatchingManager(Limits(max_batch_size=1, max_prompt_tokens=9, max_new_tokens=FOREVER))
    asked = model, tokenizer, tokenizer("a", return_tensors="pt")
    words = {"suppress_tokens": [0, 1, 2, 3], "do_sample": False}

    async def serve():
        queue, streamer = manager.generate_streaming(
            *asked, GenerationConfig(max_new_tokens=FOREVER, **words), "cancelled"
        )
        await queue.get()
        streamer.cancel()
        # The handler's task goes on, so that its end does not cancel the request.
        answering = manager.generate_non_streaming(*asked, GenerationConfig(max_new_tokens=3, **words), "answered")
        return await asyncio.wait_for(answering, 30)

    try:
        text, *_ = asyncio.run(serve())
    finally:
        manager.stop()
    assert text == generated(language_model, "a", max_new_tokens=3)
    assert not caplog.records


@pytest.mark.usefixtures("either_way")
def test_a_stream_left_before_it_is_read_makes_room(language_model):
    """Its generator never begins, so that no handler sees that the client is gone."""
    _, model, tokenizer = language_model
    manager = BatchingManager(Limits(max_batch_size=1, max_prompt_tokens=9, max_new_tokens=FOREVER))
    asked = model, tokenizer, tokenizer("a", return_tensors="pt")
    words = {"suppress_tokens": [0, 1, 2, 3], "do_sample": False}

    async def leave():
        manager.generate_streaming(*asked, GenerationConfig(max_new_tokens=FOREVER, **words), "left")

    async def serve():
        await asyncio.create_task(leave())
        answering = manager.generate_non_streaming(*asked, GenerationConfig(max_new_tokens=3, **words), "answered")
        return await asyncio.wait_for(answering, 30)

    try:
        text, *_ = asyncio.run(serve())
    finally:
        manager.stop()
    assert text == generated(language_model, "a", max_new_tokens=3)


def test_texts_that_no_tokenizer_takes(language_model):
    """Half a character is read as a question mark, wherever it is."""
    with running(language_model[0]) as address:
        for stream in (True, False):
            halves, whole = (
                send(address, prompt=f"a {mark} b", suffix=mark, max_tokens=3, stream=stream).getresponse()
                for mark in ("\ud800", "?")
            )
            assert halves.status == 200
            texts = [
                [
                    json.loads(line.removeprefix("data: "))["choices"]
                    for line in answer.read().decode().splitlines()
                    if line
                ]
                for answer in (halves, whole)
            ]
            assert texts[0] == texts[1]
        chat = {"messages": [{"role": "user", "content": "a \ud800"}], "max_tokens": 3}
        assert json.loads(ask("http://{}:{}/v1/chat/completions".format(*address), **chat))["choices"]


def test_other_ways_of_generating(language_model):
    _, model, tokenizer = language_model
    with running(language_model[0]) as address:
        beams = json.dumps({"num_beams": 3, "max_new_tokens": 5})
        answer = json.load(send(address, generation_config=beams).getresponse())
        assert answer["choices"][0]["text"] == generated(language_model, "a", max_new_tokens=5, num_beams=3)
        messages = [{"role": "user", "content": "a b"}, {"role": "user", "content": "c"}]
        chat = {"messages": messages, "max_tokens": 5, "temperature": 0}
        answer = json.loads(ask("http://{}:{}/v1/chat/completions".format(*address), **chat))
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        tokens = model.generate(**ids, do_sample=False, max_new_tokens=5)[0, ids["input_ids"].shape[1] :]
        assert answer["choices"][0]["message"]["content"].split() == tokenizer.decode(tokens).split()


def test_models_of_transformers_go_their_own_way(tmp_path, language_model, monkeypatch):
    tokenizer = language_model[2]
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=2.0, bos_token_id=1, eos_token_id=2)).eval()
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path)
    monkeypatch.delattr(Batcher, "submit")
    expected = generated((None, model, tokenizer), "a b", max_new_tokens=5)
    with running(tmp_path) as address:
        for more in ({}, {"stop": []}):
            answer = json.load(send(address, prompt="a b", max_tokens=5, **more).getresponse())
            assert answer["choices"][0]["text"] == expected
        stream = send(address, prompt="a b", max_tokens=5, stream=True).getresponse().read().decode()
        parts = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line]
        assert "".join(part["choices"][0]["text"] for part in parts) == expected


def test_what_cannot_be_served(tmp_path, monkeypatch, capsys):
    tokenizer = train_tokenizer(["a b"], model="word", vocab_size=20)
    model = hfseq.GruForSequenceClassification(hfseq.GruConfig(vocab_size=len(tokenizer), hidden_size=8))
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "classifier")
    with pytest.raises(InputError, match="GruForSequenceClassification is not a language model"):
        make_server(str(tmp_path / "classifier"))
    capsys.readouterr()  # progress bars of saving and loading
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "no config.json, so there is no model" in line
    with pytest.raises(InputError, match="nowhere"):
        make_server("nowhere")
    for device in ("99", "cuda:99", "nothing"):
        with pytest.raises(InputError, match=f"--device {device}: "):
            make_server("nowhere", device=device)
    for name in ("max_batch_size", "max_prompt_tokens", "max_new_tokens"):
        with pytest.raises(InputError, match=f"--{name} 0: must be at least 1"):
            make_server("nowhere", **{name: 0})
    monkeypatch.setattr("hfseq.serve.is_serve_available", lambda: False)
    with pytest.raises(InputError, match=r"pip install 'hfseq\[serve\]'"):
        make_server("nowhere")
