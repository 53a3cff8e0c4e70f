"""OpenAI's API: the forms of requests and answers, bounds, streams, faults."""

import http.client
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_served import TOKENIZER, app_of, make_model
from served_apps import listening
from starlette.testclient import TestClient
from transformers import GPT2LMHeadModel

import hfseq
from hfseq.tokenization import start_texts, train_tokenizer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SECRET = "/a/path/of/this/machine"


@pytest.fixture(scope="module")
def models():
    return {kind: make_model(kind) for kind in ("lstm", "gpt2")}


@pytest.fixture(scope="module", params=["lstm", "gpt2"])
def client(request, models):
    app = app_of({request.param: models[request.param]})
    with TestClient(app, raise_server_exceptions=False) as one:
        yield one


def complete(client, prompt="abc", **more):
    answer = client.post(COMPLETIONS, json={"prompt": prompt, "temperature": 0, "max_tokens": 8} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(text):
    """Bodies of the events of a stream, and what stands after them."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1]


def streamed(client, path=COMPLETIONS, **body):
    answer = client.post(path, json={"stream": True, "temperature": 0, "max_tokens": 8} | body)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    found, last = events(answer.text)
    assert last == "[DONE]"
    return found


def refused(answer, status, *, said="", code=None, param=...):
    """Checks that an answer is an error in OpenAI's format, of one line; returns the line."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    message = error["message"]
    assert said in message and "\n" not in message and len(message) < 400 and "Traceback" not in message
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert code in (..., error["code"]) and param in (..., error["param"])
    return message


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_completion(client):
    body = complete(client, "abc def")
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-") and type(body["created"]) is int
    (choice,) = body["choices"]
    assert {**choice, "text": ""} == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    ((name, served),) = client.app.state.served.items()
    assert body["model"] == name
    ids = TOKENIZER("abc def", return_tensors="pt")["input_ids"]
    tokens = served.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)[0]
    whole, before = (TOKENIZER.decode(one, skip_special_tokens=True) for one in (tokens, ids[0]))
    assert choice["text"] == whole[len(before) :]
    assert body["usage"] == {"prompt_tokens": ids.shape[1], "completion_tokens": 8, "total_tokens": ids.shape[1] + 8}


def test_prompts_in_all_forms(client):
    texts = ["abc", "de fg", "z"]
    ids = [TOKENIZER(text)["input_ids"] for text in texts]
    alone = [complete(client, text)["choices"][0]["text"] for text in texts]
    assert [complete(client, one)["choices"][0]["text"] for one in ids] == alone
    for prompts in (texts, ids, [texts[0], ids[1], ids[2]]):
        body = complete(client, prompts, n=2)
        assert [choice["index"] for choice in body["choices"]] == list(range(6))
        assert [choice["text"] for choice in body["choices"]] == [text for text in alone for _ in range(2)]
        assert body["usage"]["prompt_tokens"] == sum(map(len, ids)) and body["usage"]["completion_tokens"] == 48
    # The end of a text begins one.
    assert complete(client, "")["choices"] == complete(client, None)["choices"] == complete(client, [1])[
        "choices"
    ] or (complete(client, "")["choices"] == complete(client, TOKENIZER("")["input_ids"])["choices"])


def test_several_samples(client):
    hot = {"temperature": 3.0, "n": 4, "seed": 5}
    first, again, other = (complete(client, **hot | {"seed": seed})["choices"] for seed in (5, 5, 6))
    assert first == again != other and len({choice["text"] for choice in first}) == 4
    assert complete(client, **hot | {"n": 1})["choices"] == first[:1]
    # Sampled by default, from all tokens.
    assert len({client.post(COMPLETIONS, json={"prompt": "abc", "top_p": 1.0}).text for _ in range(3)}) == 3
    scored = complete(client, **hot, logprobs=0)["choices"]
    means = {one["text"]: sum(one["logprobs"]["token_logprobs"]) for one in scored}
    best = complete(client, **hot | {"n": 1}, best_of=4)
    assert best["choices"][0]["text"] == max(means, key=means.get) and best["usage"]["completion_tokens"] == 32


def test_logprobs_and_echo(client):
    prompt = "abc def"
    body = complete(client, prompt, logprobs=3, echo=True)
    (choice,) = body["choices"]
    logprobs = choice["logprobs"]
    count = body["usage"]["total_tokens"]
    assert choice["text"].startswith(prompt) and {len(one) for one in logprobs.values()} == {count}
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    served = next(iter(client.app.state.served.values())).model
    ids = TOKENIZER(choice["text"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = served(input_ids=ids).logits[0].log_softmax(dim=-1)
    steps = body["usage"]["prompt_tokens"]
    for step, token in enumerate(ids[0, 1:steps].tolist()):
        assert logprobs["token_logprobs"][step + 1] == pytest.approx(float(expected[step, token]), abs=1e-4)
    for step in range(1, count):
        top, own = logprobs["top_logprobs"][step], logprobs["token_logprobs"][step]
        assert own in top.values() and len(top) in (3, 4) and max(top.values()) == next(iter(top.values()))
    # Tokens stand where the text has them.
    for token, start in list(zip(logprobs["tokens"], logprobs["text_offset"], strict=True))[2:]:
        assert choice["text"][start:].startswith(token), (token, start)
    alone = complete(client, prompt, logprobs=3)["choices"][0]
    assert alone["logprobs"]["token_logprobs"] == pytest.approx(logprobs["token_logprobs"][steps:], abs=1e-4)
    assert alone["logprobs"]["text_offset"] == [start - len(prompt) for start in logprobs["text_offset"][steps:]]
    # Nothing but the prompt.
    for form in (prompt, TOKENIZER(prompt)["input_ids"]):
        only = complete(client, form, logprobs=3, echo=True, max_tokens=0)
        assert only["choices"][0]["text"] == prompt and only["usage"]["completion_tokens"] == 0
        assert only["choices"][0]["logprobs"] == {name: values[:steps] for name, values in logprobs.items()}
    assert complete(client, prompt, echo=True)["choices"][0] == choice | {"logprobs": None}


def test_a_reply(client):
    body = {"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_completion_tokens": 6}
    found = client.post(CHAT, json=body | {"max_tokens": 3, "n": 2}).json()
    assert found["object"] == "chat.completion" and found["id"].startswith("chatcmpl-")
    assert found["usage"]["completion_tokens"] == 12
    message = found["choices"][0]["message"]
    assert message["role"] == "assistant" and found["choices"][0]["logprobs"] is None
    scored = client.post(CHAT, json=body | {"logprobs": True, "top_logprobs": 2}).json()["choices"][0]
    content = scored["logprobs"]["content"]
    assert scored["message"] == message and len(content) == 6
    assert "".join(one["token"] for one in content).strip() == message["content"].strip()
    assert all(bytes(one["bytes"]).decode() == one["token"] and len(one["top_logprobs"]) == 2 for one in content)
    assert all(one["top_logprobs"][0]["logprob"] >= one["logprob"] for one in content)
    parts = [{"type": "text", "text": "abc"}]
    assert (
        client.post(CHAT, json=body | {"messages": [{"role": "user", "content": parts}]}).json()["choices"][0][
            "message"
        ]
        == message
    )


def test_stop_strings(client):
    text = complete(client, max_tokens=12)["choices"][0]["text"]
    stop = text[3:6]
    for found in (stop, [stop], ["never", stop]):
        choice = complete(client, max_tokens=12, stop=found)["choices"][0]
        assert choice["text"] == text[: text.index(stop)] and choice["finish_reason"] == "stop"
    assert complete(client, max_tokens=12, stop=[])["choices"][0]["text"] == text
    chunks = streamed(client, prompt="abc", max_tokens=12, stop=[stop])
    assert "".join(one["choices"][0]["text"] for one in chunks) == text[: text.index(stop)]


def test_all_that_openai_has(client):
    body = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 3, "frequency_penalty": 0.5, "seed": 3, "echo": False}
    body |= {"stop": ["b", "ab"], "logit_bias": {"9": 100, "6": -100}, "n": 1, "presence_penalty": -1, "user": "me"}
    body |= {"suffix": None, "best_of": 1, "logprobs": None, "stream": False, "stream_options": None}
    assert complete(client, **body)["choices"][0]["text"]
    chat = {"messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}], "tools": None}
    chat |= {"response_format": {"type": "text"}, "modalities": ["text"], "metadata": {"a": "b"}, "max_tokens": 2}
    assert client.post(CHAT, json=chat).status_code == 200
    assert complete(client, logit_bias={"9": 100})["choices"] != complete(client)["choices"]
    for more in ({"top_k": 1, "temperature": 5.0}, {"min_p": 1.0, "temperature": 5.0}):
        assert complete(client, **more)["choices"] == complete(client)["choices"]
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 9.0}):
        assert complete(client, max_tokens=20, **penalty)["choices"] != complete(client, max_tokens=20)["choices"]
    beams = complete(client, num_beams=3, n=2)["choices"]
    assert len({one["text"] for one in beams}) == 2
    assert client.post(COMPLETIONS, json={"prompt": "abc", "num_beams": 3, "max_tokens": 3}).status_code == 200


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_answer(client):
    body = {"prompt": ["abc", "de"], "n": 2, "seed": 4, "temperature": 2.0, "max_tokens": 9, "logprobs": 2}
    whole = complete(client, **body)
    chunks = streamed(client, **body)
    assert all("usage" not in one and one["object"] == "text_completion" for one in chunks)
    assert len({one["id"] for one in chunks}) == 1
    for choice in whole["choices"]:
        mine = [one["choices"][0] for one in chunks if one["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"] and len(mine) > 3
        assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + ["length"]
        for name, values in choice["logprobs"].items():
            parts = [value for one in mine for value in one["logprobs"][name]]
            if name == "token_logprobs":
                assert parts == pytest.approx(values, abs=1e-4)
            elif name != "top_logprobs":
                assert parts == values
    *chunks, last = streamed(client, **body, stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(one["usage"] is None for one in chunks)


def test_a_stream_with_the_prompt(client):
    chunks = streamed(client, prompt="abc", echo=True)
    assert chunks[0]["choices"][0]["text"] == "abc"
    assert "".join(one["choices"][0]["text"] for one in chunks) == complete(client, echo=True)["choices"][0]["text"]
    chunks = streamed(client, prompt="abc", echo=True, max_tokens=0)
    assert "".join(one["choices"][0]["text"] for one in chunks) == "abc"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_stream_of_a_reply(client):
    body = {"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 6}
    expected = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    first, *rest = streamed(client, CHAT, **body, logprobs=True)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in rest) == expected
    assert sum(len(one["choices"][0]["logprobs"]["content"]) for one in rest) == 6


# --- what is not supported -----------------------------------------------------------------------------------------

BAD = [
    *({"max_tokens": bad} for bad in (0, -1, 21, 10**9, 10**400, 1.5, "5", "abc", True, [5], {"a": 1})),
    *({"temperature": bad} for bad in (-1, 101, 1e-44, 10**400, "1", True, [1], {})),
    *({"top_p": bad} for bad in (-0.1, 5, "1", [])),
    *({"seed": bad} for bad in (2**63, -(2**63) - 1, 10**400, 1.5, "1")),
    *({"frequency_penalty": bad} for bad in (-2.1, 3, "a")),
    *({"presence_penalty": bad} for bad in (-2.1, 3, "a", True)),
    *({"stop": bad} for bad in (["a"] * 5, "a" * 101, "", [""], [1], 1, {"a": 1}, [["a"]])),
    *({"logit_bias": bad} for bad in ({"a": 1}, {"-1": 1}, {"9" * 5000: 1}, {"34": 1}, {"5": 101}, {"5": "1"}, [])),
    {"logit_bias": {str(number): 1 for number in range(301)}},
    *({"n": bad} for bad in (0, 129, 10**6, "1", True)),
    *({"num_beams": bad} for bad in (0, 21, 10**6, "2")),
    *({"num_beams": 2, "n": 3}, {"num_beams": 2, "temperature": 1.0}, {"num_beams": 2, "stream": True}),
    *({"top_k": bad} for bad in (-1, 1.5)),
    *({"min_p": 2}, {"repetition_penalty": 0}, {"no_repeat_ngram_size": -1}, {"min_tokens": -1}),
    *({"length_penalty": 10**9}, {"early_stopping": 7}, {"min_tokens": 9, "max_tokens": 8}),
    *({"stream": "yes"}, {"stream": 1}, {"model": 5}, {"user": 5}, {"metadata": 5}),
    *({"nothing": 1}, {"x" * 10_000: 1}, {"\n": 1}, {"chat_template": "{{ 1 }}"}, {"generation_config": "{}"}),
    *({"stream_options": 1}, {"guided_json": {}}, {"gguf_file": SECRET}, {"suffix": "a"}, {"tools": []}),
    *({"stream": False, "stream_options": {"include_usage": True}}, {"stream": True, "stream_options": {"x": 1}}),
]
BAD_COMPLETIONS = [
    *(
        {"prompt": bad}
        for bad in (["a"] * 129, [], [[]], [1, "a"], [[1], 2], [1.0], [True], 5, {"a": 1}, True, [None])
    ),
    *({"prompt": bad} for bad in ([-1], [34], [[3], [34]], [10**400], [[3, -1]])),
    *({"best_of": bad} for bad in (0, 21, 10**6, True)),
    *({"best_of": 2, "n": 3}, {"best_of": 2, "stream": True}, {"echo": 1}, {"messages": []}),
    *({"logprobs": bad} for bad in (-1, 6, True, "1")),
    *({"echo": True, "stream": True, "logprobs": 1}, {"prompt": ["a"] * 65, "n": 2}),
]
URL = {"url": "http://127.0.0.1:9/image.png"}
BAD_CONTENTS = [
    *([{"type": "image_url", "image_url": URL}], [{"type": "video_url", "video_url": URL}], [5], [{}], None, 5),
    *([{"type": "input_audio", "input_audio": {"data": SECRET, "format": "wav"}}], [{"type": "text", "text": 5}]),
    *([{"type": "text", "text": "a", "url": URL}], [{"type": "text"}], [None], {"type": "text", "text": "a"}),
]
BAD_CHATS = [
    *({"messages": [{"role": "user", "content": bad}]} for bad in BAD_CONTENTS),
    *({"messages": bad} for bad in ([], None, "a", 5, {}, [5], [{"role": "user"}], [{"content": "a"}], [[]])),
    *({"messages": [{"role": bad, "content": "a"}]} for bad in (5, None, "r" * 101, "nobody")),
    {"messages": [{"role": "user", "content": "a"}] * 1001},
    {"messages": [{"role": "user", "content": "a", "tool_calls": [{"function": {"arguments": "{"}}]}]},
    *({"tools": [5]}, {"tool_choice": "auto"}, {"functions": []}, {"function_call": "auto"}, {"audio": {}}),
    *({"response_format": {"type": "json_object"}}, {"modalities": ["audio"]}, {"reasoning_effort": "high"}),
    *({"max_completion_tokens": 21}, {"max_completion_tokens": 0}, {"prompt": "a"}, {"echo": True}),
    *({"logprobs": 1}, {"top_logprobs": 1}, {"logprobs": True, "top_logprobs": 21}, {"best_of": 1}),
]


@pytest.mark.parametrize("path,worse", [(COMPLETIONS, BAD_COMPLETIONS), (CHAT, BAD_CHATS)])
def test_impossible_fields_get_400_and_are_named(client, path, worse):
    good = {"prompt": "a"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    for bad in BAD + worse:
        answer = client.post(path, json=good | bad)
        assert answer.status_code == 400, bad
        message = refused(answer, 400, code=...)
        assert "secret" not in message and SECRET not in message
        name = next(reversed(bad))
        if len(bad) == 1 and name.isidentifier() and len(name) < 50:
            assert name in f"{answer.json()['error']['param']} {message}" or name in ("messages", "prompt"), bad
    assert client.post(path, json=good).status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_what_is_no_json_gets_400(client, path):
    for body in (
        *(b"", b"{", b"nothing", b"\xff\xfe", b"[" * 100_000, b'{"prompt": ' + b"[" * 100_000, b"[]", b"5", b"null"),
        *(
            b'"prompt"',
            b'{"temperature": NaN}',
            b'{"temperature": -Infinity}',
            b'{"temperature": 1e999}',
            b'{"n": ' + b"9" * 5000 + b"}",
        ),
        *(b"{'prompt': 'a'}", b'{"prompt": "a",}'),
    ):
        refused(client.post(path, content=body, headers={"Content-Type": "application/json"}), 400)
    refused(client.post(path, content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}), 415)
    refused(client.post(path, content=b" " * (2**20 + 1), headers={"Content-Type": "application/json"}), 413)


def test_unpaired_surrogates_are_question_marks(client):
    for body in ({"prompt": "a \ud800"}, {"prompt": "a", "stop": "\ud800"}):
        answer = client.post(COMPLETIONS, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_long_prompts_get_400(client, path):
    for text in ("a b " * 30, "a " * 100_000):
        body = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
        for stream in (False, True):
            answer = client.post(path, json=body | {"stream": stream})
            refused(answer, 400, said="the prompt has ", code="context_length_exceeded")


def test_positions_are_a_limit_too(models):
    with TestClient(app_of({"gpt2": models["gpt2"]}, positions=30)) as client:
        ids = [5] * 20
        assert complete(client, ids, max_tokens=None)["usage"]["completion_tokens"] == 10
        answer = client.post(COMPLETIONS, json={"prompt": ids, "max_tokens": 11})
        refused(answer, 400, said="after this prompt is 10", code="context_length_exceeded", param="max_tokens")
        scored = complete(client, [5] * 30, max_tokens=0, echo=True, logprobs=0)
        assert len(scored["choices"][0]["logprobs"]["tokens"]) == 30


def test_the_model_is_named(models):
    with TestClient(app_of(models)) as client:
        for name in models:
            assert complete(client, model=name)["model"] == name
        refused(client.post(COMPLETIONS, json={"prompt": "a"}), 400, said="name the language model", param="model")
        for other in ("openai-community/gpt2", "", "x" * 10_000, "/etc/passwd", "\x00"):
            answer = client.post(COMPLETIONS, json={"prompt": "a", "model": other, "stream": True})
            refused(answer, 404, said="does not exist", code="model_not_found", param="model")


def test_a_tokenizer_of_words(models):
    """It has no chat template, and its stop strings need not be tokens."""
    tokenizer = train_tokenizer(["abc abd c d e f g h"], model="word", vocab_size=20)
    start_texts(tokenizer)
    with TestClient(app_of({"lstm": models["lstm"]}, tokenizer=tokenizer)) as client:
        refused(client.post(CHAT, json={"messages": [{"role": "user", "content": "a"}]}), 400, said="no chat template")
        bias = {str(tokenizer.convert_tokens_to_ids("▁abd")): 100}
        text = complete(client, logit_bias=bias)["choices"][0]["text"]
        assert text == " abd" * 8
        stopped = complete(client, logit_bias=bias, stop="d ab")["choices"][0]
        assert stopped["text"] == " ab" and stopped["finish_reason"] == "stop"


def test_a_failed_template_tells_nothing(client, caplog):
    with caplog.at_level(logging.DEBUG, "hfseq.serving"):
        chat = {"messages": [{"role": "nobody", "content": "a"}]}
        refused(client.post(CHAT, json=chat), 400, said="the model's chat template rejects these messages")
    assert "secret of the template" in caplog.text


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, 1, 2, 3, 5, 0.5, "a", "\ud800", "", "{}"])
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from([*(name for bad in BAD + BAD_COMPLETIONS + BAD_CHATS for name in bad), "prompt", "messages"])


@settings(max_examples=100, deadline=None)
@given(body=st.dictionaries(fields, values, max_size=4), path=st.sampled_from([COMPLETIONS, CHAT]))
def test_no_request_is_an_error_of_the_server(client, body, path):
    good = {"prompt": "a b"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a b"}]}
    answer = client.post(path, content=json.dumps(good | body), headers={"Content-Type": "application/json"})
    if answer.status_code != 200:
        assert answer.status_code in (400, 404), answer.text
        refused(answer, answer.status_code, code=...)


def test_the_schema_describes_the_bodies(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path, name in ((COMPLETIONS, "prompt"), (CHAT, "messages")):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert name in schema["properties"] and "$ref" not in json.dumps(schema)
        assert schema["additionalProperties"] is False


# --- faults --------------------------------------------------------------------------------------------------------

FORWARD = {"lstm": hfseq.LstmForCausalLM, "gpt2": GPT2LMHeadModel}
ENDLESS = {"max_tokens": 10**8}


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
@pytest.mark.parametrize("kind", ["lstm", "gpt2"])
def test_errors_inside_are_for_the_log_alone(models, kind, error, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise error(f"no such file: {SECRET}")

    with TestClient(app_of({kind: models[kind]})) as client:
        with monkeypatch.context() as patched:
            patched.setattr(FORWARD[kind], "forward", fail)
            said = "internal server error; see the server's log"
            refused(client.post(COMPLETIONS, json={"prompt": "a"}), 500, said=said)
            found, _ = events(client.post(COMPLETIONS, json={"prompt": "a", "stream": True}).text)
            assert found == [{"error": {"message": said, "type": "server_error", "param": None, "code": None}}]
        assert caplog.text.count(SECRET) >= 2
        assert complete(client)


def test_settings_that_leave_no_token(client):
    spent = {"prompt": "abc", "no_repeat_ngram_size": 1, "logit_bias": {str(token): -100 for token in range(4, 34)}}
    answer = client.post(COMPLETIONS, json=spent | {"max_tokens": 20, "prompt": list(range(4, 34))})
    refused(answer, 400, said="the sampling settings leave no token with nonzero probability")


def send(port, **body):
    """A connection on which an answer is to come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = json.dumps({"prompt": "a", "temperature": 0} | body)
    connection.request("POST", COMPLETIONS, data, {"Content-Type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gpt2"])
def test_a_client_that_goes_makes_room(kind, stream, models, monkeypatch, caplog):
    begun, forward = threading.Event(), FORWARD[kind].forward
    monkeypatch.setattr(FORWARD[kind], "forward", lambda *args, **kw: begun.set() or forward(*args, **kw))
    monkeypatch.setattr(models["gpt2"].config, "n_positions", 10**6)
    app = app_of({kind: models[kind]}, max_batch_size=1, max_new_tokens=10**8)
    more = ENDLESS if kind == "lstm" else {"max_tokens": 50, "n": 40}
    with listening(app) as port:
        with closing(send(port, **more, stream=stream)) as endless:
            assert begun.wait(60)
            if stream:
                endless.getresponse().readline()
        answer = json.load(send(port, max_tokens=3).getresponse())
        assert answer["usage"]["completion_tokens"] == 3
        assert app.state.served[kind].statistics().waiting == 0
    assert "Traceback" not in caplog.text


def test_endless_requests_block_nobody_beyond_the_time_out(models):
    app = app_of({"lstm": models["lstm"]}, max_batch_size=4, max_new_tokens=10**8, timeout=1.0)
    with listening(app) as port:
        connections = [send(port, **ENDLESS) for _ in range(4)] + [send(port, **ENDLESS, stream=True)]
        last = send(port, max_tokens=2)
        with ThreadPoolExecutor(6) as clients:
            answers = list(clients.map(lambda one: one.getresponse(), [*connections, last]))
            bodies = list(clients.map(lambda one: one.read().decode(), answers))
        said = "the request took more than 1 s"
        for answer, body in zip(answers[:4], bodies[:4], strict=True):
            assert answer.status == 504 and json.loads(body)["error"]["message"] == said
        found, _ = events(bodies[4])
        assert found[-1]["error"]["message"] == said and answers[5].status in (200, 504)
        # All of them have left.
        assert json.load(send(port, max_tokens=2).getresponse())["usage"]["completion_tokens"] == 2


def test_no_more_than_so_many_wait(models, monkeypatch):
    begun, go_on, forward = threading.Event(), threading.Event(), hfseq.LstmForCausalLM.forward

    def held_up(*args, **kwargs):
        begun.set()
        assert go_on.wait(60)
        return forward(*args, **kwargs)

    monkeypatch.setattr(hfseq.LstmForCausalLM, "forward", held_up)
    app = app_of({"lstm": models["lstm"]}, max_batch_size=1, max_queue=1)
    with listening(app) as port:
        connections = [send(port, max_tokens=2)]
        assert begun.wait(60)
        for more in ({"n": 3}, {"prompt": ["a", "b"]}, {"n": 2, "stream": True}):
            refusal = send(port, max_tokens=2, **more).getresponse()
            assert refusal.status == 503 and "are waiting already" in refusal.read().decode()
        connections += [send(port, max_tokens=2) for _ in range(3)]
        with ThreadPoolExecutor(4) as clients:
            # One waits, for which there is room.
            answers = as_completed([clients.submit(one.getresponse) for one in connections])
            try:
                refusals = [next(answers).result().status for _ in range(2)]
            finally:
                go_on.set()
            assert refusals == [503, 503]
            assert [answer.result().status for answer in answers] == [200, 200]


def test_answers_are_reported(models):
    seen = []
    with TestClient(app_of({"lstm": models["lstm"]}, answered=seen.append)) as client:
        complete(client, ["a", "b"], n=2)
        streamed(client, prompt="a", seed=3)
        client.post(COMPLETIONS, json={"prompt": "a", "n": 0})
    whole, stream = seen
    assert whole.model == "lstm" and whole.inputs == ["a", "b"] and whole.parameters["n"] == 2
    assert [len(one.completions) for one in whole.generations] == [2, 2] and whole.prompt_tokens == sum(
        len(TOKENIZER(one)["input_ids"]) for one in "ab"
    )
    assert stream.parameters["seed"] == 3 and stream.request.url.path == COMPLETIONS
