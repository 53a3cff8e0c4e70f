"""What strangers can ask of the server: four routes, one model, bounded requests, and errors that tell nothing."""

import asyncio
import inspect
import json
import logging
import string
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_serve import running, send
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.cli.serving import chat_completion, completion, model_manager, utils

import hfseq
from hfseq import serve
from hfseq.serve import main, make_server, public_name
from hfseq.serving import server as serving
from hfseq.tokenization import start_texts, train_tokenizer

TestClient = pytest.importorskip("starlette.testclient").TestClient

LETTERS = [" ".join(string.ascii_lowercase), "abc def ghi jkl mno pqr stu vwx yz"]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'nobody' %}{{ raise_exception('secret of the template') }}"
    "{% endif %}{{ message.content }}{% endfor %}"
)
SECRET = "/a/path/of/this/machine"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def save(folder, kind, tokenizer):
    torch.manual_seed(0)
    if kind == "lstm":
        config = hfseq.LstmConfig(vocab_size=len(tokenizer), hidden_size=16)
        model = hfseq.LstmForCausalLM(config)
    else:
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, bos_token_id=1, eos_token_id=2))
    # Never its end, so that an answer is as long as it may be.
    model.generation_config.suppress_tokens = [0, 1, 2, 3]
    for saved in (model, tokenizer):
        saved.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of both libraries, of letters, with a chat template; one without, whose tokens are words."""
    root = tmp_path_factory.mktemp("served")
    letters = train_tokenizer(LETTERS, model="bpe", vocab_size=34)
    words = train_tokenizer(["a b c d e f g h"], model="word", vocab_size=20)
    for tokenizer in (letters, words):
        start_texts(tokenizer)
    letters.chat_template = TEMPLATE
    for kind in ("lstm", "gpt2"):
        save(root / kind, kind, letters)
        save(root / f"{kind}_words", kind, words)
    return root


def client_of(folder, **limits):
    app = make_server(str(folder), device="cpu", max_prompt_tokens=20, max_new_tokens=8, **limits).config.app
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module", params=["lstm", "gpt2"])
def client(request, folders):
    with client_of(folders / request.param) as one:
        yield one


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


# --- routes --------------------------------------------------------------------------------------------------------


def test_there_are_four_routes(client):
    found = {(route.path, frozenset(route.methods)) for route in client.app.routes}
    assert found == {
        ("/v1/models", frozenset({"GET", "HEAD"})),
        ("/health", frozenset({"GET", "HEAD"})),
        (COMPLETIONS, frozenset({"POST"})),
        (CHAT, frozenset({"POST"})),
    }
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/load_model", "/reset", "/v1/responses", "/v1/systemone", "/v1/audio/transcriptions"),
        *("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", "/v1/models/", "/health/", "/v1"),
    ],
)
def test_no_other_path_exists(client, path):
    for method in ("GET", "POST", "OPTIONS", "PUT", "DELETE"):
        refused(client.request(method, path, json={"model": "gpt2"}, follow_redirects=False), 404)


def test_other_methods_and_origins_are_not_answered(client):
    asking = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    for path in ("/v1/models", "/health", COMPLETIONS, CHAT):
        answer = client.options(path, headers=asking)
        refused(answer, 405)
        answers = [answer, client.get(path, headers=asking), client.post(path, json={}, headers=asking)]
        assert not any("access-control" in name for one in answers for name in one.headers)
    # What a page of another site can send without asking first.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        refused(client.post(COMPLETIONS, content='{"prompt": "a"}', headers={"Content-Type": kind}), 415)


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"loading {args}")

    for kind in (PreTrainedModel, AutoConfig, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", refuse)


@pytest.mark.parametrize(
    "path,body", [(COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": [{"role": "user", "content": "a"}]})]
)
def test_a_request_gets_the_one_model(client, folders, path, body, nothing_is_loaded):
    name = client.get("/v1/models").json()["data"][0]["id"]
    assert name in ("lstm", "gpt2")
    for asked in ({}, {"model": None}, {"model": name}):
        answer = client.post(path, json=body | asked | {"max_tokens": 2})
        assert answer.status_code == 200 and answer.json()["model"] == name
        # Neither at once nor in a stream is there a word of where the model lies.
        stream = client.post(path, json=body | asked | {"max_tokens": 2, "stream": True})
        assert str(folders) not in answer.text + stream.text and f'"model":"{name}"' in stream.text
    others = [str(folders / "lstm"), str(folders / "gpt2"), f"../{name}", f"{name}/", f"{name}@main", f"{name}:x.gguf"]
    for other in [*others, "openai-community/gpt2", "", "x" * 10_000, "/etc/passwd", "\x00"]:
        answer = client.post(path, json=body | {"model": other, "stream": True})
        refused(answer, 404, said="does not exist", code="model_not_found", param="model")


def test_the_list_of_models_has_the_one(client, monkeypatch, tmp_path):
    """Nothing else that this machine has, and there need be no cache of the Hub."""
    monkeypatch.setattr(
        "transformers.cli.serving.utils.scan_cache_dir", lambda *args: pytest.fail("the cache is read")
    )
    (card,) = client.get("/v1/models").json()["data"]
    assert card["object"] == "model" and type(card["created"]) is int and card["owned_by"] == "local"
    assert client.get("/v1/models").json() == {"object": "list", "data": [card]}


def test_the_public_name_is_what_was_typed(folders, monkeypatch):
    assert public_name(str(folders / "lstm")) == "lstm" == public_name(f"{folders}/lstm/")
    assert public_name("outputs/wikitext2/") == public_name("./outputs/wikitext2") == "outputs/wikitext2"
    assert public_name("someone/model@v1") == "someone/model@v1"
    monkeypatch.chdir(folders.parent)
    with client_of(f"{folders.name}/lstm") as client:
        name = f"{folders.name}/lstm"
        answer = client.post(COMPLETIONS, json={"model": name, "prompt": "a"}).json()
        assert answer["model"] == name == client.get("/v1/models").json()["data"][0]["id"]


def test_the_model_is_loaded_once(folders, monkeypatch):
    loaded, load = [], hfseq.LstmForCausalLM.from_pretrained.__func__
    counted = classmethod(lambda kind, *args, **kwargs: loaded.append(kind) or load(kind, *args, **kwargs))
    monkeypatch.setattr(hfseq.LstmForCausalLM, "from_pretrained", counted)
    with client_of(folders / "lstm") as client:
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200
    assert loaded == [hfseq.LstmForCausalLM]


def test_a_directory_may_have_an_at_sign(folders, tmp_path):
    folder = tmp_path / "lm@home"
    folder.symlink_to(folders / "lstm")
    with client_of(folder) as client:
        assert client.post(COMPLETIONS, json={"model": "lm@home", "prompt": "a"}).json()["model"] == "lm@home"


def test_the_command_has_the_defaults_of_the_function(monkeypatch, capsys):
    got = {}

    class Idle:
        def run(self):
            pass

    monkeypatch.setattr(serve, "make_server", lambda model_dir, **options: got.update(options) or Idle())
    main(["/models/lm"])
    parameters = inspect.signature(make_server).parameters.values()
    assert got == {one.name: one.default for one in parameters if one.default is not one.empty}
    assert "without authentication" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "no authentication" in " ".join(capsys.readouterr().out.split())


# --- bounds --------------------------------------------------------------------------------------------------------

CONFIG = [
    *({"num_beams": 11}, {"num_beams": 10**6}, {"num_beams": 0}, {"num_beams": "2"}, {"max_new_tokens": 10**9}),
    *({"num_return_sequences": 2}, {"num_beam_groups": 2}, {"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "low"}),
    *(
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"compile_config": {}},
        {"constraints": []},
    ),
    *(
        {"custom_generate": "someone/code"},
        {"watermarking_config": {}},
        {"assistant_early_exit": 1},
        {"max_length": 9},
    ),
    *(
        {"forced_eos_token_id": 10**9},
        {"bad_words_ids": [[1]]},
        {"stop_strings": ["a"] * 9},
        {"force_words_ids": [[1]]},
    ),
    *({"temperature": 1e-44}, {"temperature": -1}, {"top_k": -1}, {"top_k": 1.5}, {"top_p": 5}, {"min_p": 2}),
    *({"repetition_penalty": 0}, {"no_repeat_ngram_size": -1}, {"no_repeat_ngram_size": 10**9}, {"early_stopping": 7}),
    *({"length_penalty": 10**9}, {"do_sample": "yes"}, {"do_sample": True, "num_beams": 2}, {"min_new_tokens": -1}),
]
BAD = [
    *({"max_tokens": bad} for bad in (0, -1, 9, 10**9, 10**400, 1.5, "5", "abc", True, [5], {"a": 1})),
    *({"temperature": bad} for bad in (-1, 101, 1e-44, 10**400, "1", True, [1], {})),
    *({"top_p": bad} for bad in (-0.1, 5, "1", [])),
    *({"seed": bad} for bad in (2**63, -(2**63) - 1, 10**400, 1.5, "1")),
    *({"frequency_penalty": bad} for bad in (-1, 3, "a")),
    *({"stop": bad} for bad in (["a"] * 5, "a" * 101, "", [""], [1], 1, {"a": 1}, [["a"]])),
    *({"logit_bias": bad} for bad in ({"a": 1}, {"-1": 1}, {"9" * 5000: 1}, {"34": 1}, {"5": 101}, {"5": "1"}, [])),
    {"logit_bias": {str(number): 1 for number in range(301)}},
    *({"generation_config": json.dumps(bad)} for bad in CONFIG),
    *({"generation_config": bad} for bad in ("", "a", "[]", "1", "null", "{", '{"top_p": NaN}', {}, 5, "[" * 10_000)),
    *({"n": bad} for bad in (0, 2, 10**6, "1", True)),
    *({"presence_penalty": 1}, {"logprobs": 5}, {"stream": "yes"}, {"stream": 1}, {"model": 5}, {"user": 5}),
    *({"nothing": 1}, {"x" * 10_000: 1}, {"\n": 1}, {"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {}}),
    *({"stream_options": 1}, {"guided_json": {}}, {"adapter": SECRET}, {"gguf_file": SECRET}),
]
BAD_COMPLETIONS = [
    *({"prompt": bad} for bad in (["a", "b"], ["a"] * 10_000, [1, 2], [[1]], 5, {"a": 1}, True)),
    *(
        {"best_of": 2},
        {"best_of": 10**6},
        {"best_of": True},
        {"echo": True},
        {"logprobs": 0},
        {"suffix": 5},
        {"messages": []},
    ),
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
    *(
        {"tools": [5]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["audio"]},
    ),
    *({"max_completion_tokens": 9}, {"max_completion_tokens": -1}, {"prompt": "a"}, {"logprobs": True}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path,worse", [(COMPLETIONS, BAD_COMPLETIONS), (CHAT, BAD_CHATS)])
def test_impossible_fields_get_400_and_a_line(client, path, worse, stream):
    good = {"prompt": "a"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
    for bad in BAD + worse:
        answer = client.post(path, json=good | {"stream": stream} | bad)
        assert answer.status_code == 400, bad
        message = refused(answer, 400, code=...)
        assert "secret" not in message and SECRET not in message
    assert client.post(path, json=good).status_code == 200


def test_the_form_of_a_content_is_named(client):
    for bad in (None, 5, [5], {"type": "text", "text": "a"}):
        answer = client.post(CHAT, json={"messages": [{"role": "user", "content": bad}]})
        assert "must be a string, or a list of parts" in refused(answer, 400)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_what_is_no_json_gets_400(client, path):
    for body in (
        *(b"", b"{", b"nothing", b"\xff\xfe", b"[" * 100_000, b'{"prompt": ' + b"[" * 100_000, b"[]", b"5", b"null"),
        *(
            b'"prompt"',
            b'{"temperature": NaN}',
            b'{"temperature": -Infinity}',
            b'{"max_tokens": ' + b"9" * 5000 + b"}",
        ),
        *(b"{'prompt': 'a'}", b'{"prompt": "a",}'),
    ):
        refused(client.post(path, content=body, headers={"Content-Type": "application/json"}), 400)
    body = b'{"temperature": 1e999, "prompt": "a"}' if path == COMPLETIONS else b'{"temperature": 1e999}'
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400, said="finite", param="temperature")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_long_body_is_not_read(client, path):
    """Neither one that says its length nor one that comes in pieces without end."""
    headers, sent = {"Content-Type": "application/json"}, []
    refused(client.post(path, content=b" " * (2**20 + 1), headers=headers), 413, said="1048576 bytes")

    async def ask():
        async def receive():
            sent.append(1)
            return {"type": "http.request", "body": b" " * 2**16, "more_body": True}

        messages = []

        async def send(message):
            messages.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-type", b"application/json")]}
        await client.app(scope | {"query_string": b"", "http_version": "1.1"}, receive, send)
        return messages

    start, *_ = asyncio.run(asyncio.wait_for(ask(), 60))
    assert start["status"] == 413 and len(sent) < 40


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_long_prompts_get_400(client, path, stream):
    def post(text, **more):
        whole = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
        return client.post(path, json=whole | {"stream": stream} | more)

    for text in ("a b " * 30, "a " * 100_000):
        refused(post(text), 400, said="the prompt has ", code="context_length_exceeded")
    assert post("a b c d e").status_code == 200


def test_positions_of_a_transformer_are_a_limit_too(folders):
    app = make_server(str(folders / "gpt2"), device="cpu").config.app
    with TestClient(app, raise_server_exceptions=False) as client:

        def post(letters, **more):
            return client.post(COMPLETIONS, json={"prompt": "a" + " a" * (letters - 1)} | more)

        used = post(5).json()["usage"]
        assert used["prompt_tokens"] + used["completion_tokens"] == 32
        assert post(5).json()["choices"][0]["finish_reason"] == "length"
        room = used["completion_tokens"]
        assert post(5, max_tokens=room).json()["usage"] == used
        refused(post(5, max_tokens=room + 1), 400, said=f"after this prompt is {room}", code="context_length_exceeded")
        for letters in (40, 32):
            refused(post(letters), 400, said="the maximum is 31", code="context_length_exceeded")


def test_an_answer_is_as_long_as_the_server_allows(client):
    answer = client.post(COMPLETIONS, json={"prompt": "a"}).json()
    assert answer["usage"]["completion_tokens"] == 8 and answer["choices"][0]["finish_reason"] == "length"
    assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 8}).json()["usage"] == answer["usage"]


@pytest.mark.parametrize("kind", ["lstm", "gpt2"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_tokenizer_cannot_do_gets_400(folders, kind, stream):
    with client_of(folders / f"{kind}_words") as client:
        chat = {"messages": [{"role": "user", "content": "a"}], "stream": stream}
        refused(client.post(CHAT, json=chat), 400, said="no chat template")
        stop = {"prompt": "a", "stop": ["d"], "stream": stream}
        refused(client.post(COMPLETIONS, json=stop), 400, said="stop strings do not work with this tokenizer")
        # Each word once at most, and there are fewer than there are to come.
        spent = {"prompt": "a b c d e f g", "stream": stream}
        spent["generation_config"] = json.dumps({"do_sample": True, "no_repeat_ngram_size": 1})
        answer = client.post(COMPLETIONS, json=spent)
        said = "the sampling settings leave no token with nonzero probability"
        if stream:
            assert answer.text.rstrip().endswith(f'data: {{"error": "{said}"}}')
        else:
            refused(answer, 400, said=said)


def test_what_openai_has_works(client):
    body = {"prompt": "a", "temperature": 0.7, "top_p": 0.9, "max_tokens": 3, "frequency_penalty": 0.5, "seed": 3}
    body |= {"stop": ["b", "ab"], "logit_bias": {"5": 100, "6": -100}, "n": 1, "presence_penalty": 0, "user": "me"}
    body |= {"stream_options": {"include_usage": True}, "suffix": "!", "best_of": 1, "echo": False, "logprobs": None}
    answer = client.post(COMPLETIONS, json=body).json()
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"].endswith("!")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = {"messages": [{"role": "system", "content": "b"}, {"role": "user", "content": parts}]}
    answer = client.post(CHAT, json=chat | {"max_completion_tokens": 2, "max_tokens": 3}).json()
    assert answer["usage"]["completion_tokens"] == 2
    biased = client.post(COMPLETIONS, json={"prompt": "a", "logit_bias": {"9": 100}, "temperature": 0}).json()
    plain = client.post(COMPLETIONS, json={"prompt": "a", "temperature": 0}).json()
    assert biased["choices"] != plain["choices"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0, 1, 2, 0.5, "a", "\ud800", "", "{}", '{"num_beams": 3}', '{"do_sample": true}'])
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from([*(name for bad in BAD + BAD_COMPLETIONS + BAD_CHATS for name in bad), "prompt", "messages"])


@settings(max_examples=150, deadline=None)
@given(
    body=st.dictionaries(fields, values, max_size=4),
    config=st.none() | st.dictionaries(st.sampled_from([name for one in CONFIG for name in one]), values, max_size=4),
    path=st.sampled_from([COMPLETIONS, CHAT]),
)
def test_no_request_is_an_error_of_the_server(client, body, config, path):
    good = {"prompt": "a b"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a b"}]}
    own = {} if config is None else {"generation_config": json.dumps(config)}
    answer = client.post(path, content=json.dumps(good | body | own), headers={"Content-Type": "application/json"})
    if answer.status_code != 200:
        assert answer.status_code in (400, 404), answer.text
        refused(answer, answer.status_code, code=...)


# --- errors inside -------------------------------------------------------------------------------------------------


def fail(*args, **kwargs):
    raise RuntimeError(f"no such file: {SECRET}")


def fail_as_value(*args, **kwargs):
    raise ValueError(f"no such value: {SECRET}")


@pytest.mark.parametrize("error", [fail, fail_as_value])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gpt2"])
def test_errors_inside_are_for_the_log_alone(folders, kind, stream, error, monkeypatch, caplog):
    with client_of(folders / kind) as client:
        model = hfseq.LstmForCausalLM if kind == "lstm" else GPT2LMHeadModel
        with monkeypatch.context() as patched:
            patched.setattr(model, "forward", error)
            answer = client.post(COMPLETIONS, json={"prompt": "a", "stream": stream})
        assert SECRET in caplog.text and SECRET not in answer.text
        said = "internal server error; see the server's log"
        if stream:
            assert answer.text == f'data: {{"error": "{said}"}}\n\n'
        else:
            refused(answer, 500, said=said)
        # Before anything is generated, too.
        with monkeypatch.context() as patched:
            patched.setattr(serving.CompletionHandler, "handle_request", error)
            refused(client.post(COMPLETIONS, json={"prompt": "a"}), 500, said=said)
        assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200


def test_a_failed_template_tells_nothing(client, caplog):
    with caplog.at_level(logging.INFO, "hfseq.serving.server"):
        chat = {"messages": [{"role": "nobody", "content": "a"}]}
        refused(client.post(CHAT, json=chat), 400, said="the model's chat template rejects these messages")
    assert "secret of the template" in caplog.text


@pytest.mark.parametrize("kind", ["lstm", "gpt2"])
def test_no_more_than_so_many_wait(folders, kind, monkeypatch):
    monkeypatch.setattr(serving, "MAX_WAITING", 1)
    forward = {"lstm": hfseq.LstmForCausalLM, "gpt2": GPT2LMHeadModel}[kind]
    begun, go_on, real = threading.Event(), threading.Event(), forward.forward

    def held_up(*args, **kwargs):
        begun.set()
        assert go_on.wait(60)
        return real(*args, **kwargs)

    monkeypatch.setattr(forward, "forward", held_up)
    with running(folders / kind, max_batch_size=1) as address:
        connections = [send(address, max_tokens=2)]
        assert begun.wait(60)
        connections += [send(address, max_tokens=2) for _ in range(3)]
        with ThreadPoolExecutor(4) as clients:
            # One waits, for which there is room.
            answers = as_completed([clients.submit(one.getresponse) for one in connections])
            try:
                refusals = [next(answers).result().status for _ in range(2)]
            finally:
                go_on.set()
            assert refusals == [503, 503]
            assert [answer.result().status for answer in answers] == [200, 200]


def test_the_private_parts_of_the_server_of_transformers_are_there():
    """What `hfseq.serving.server` builds on; where one goes, this says which."""
    expected = ["tokenizer", "loop", "queue", "response_parser"]
    assert list(inspect.signature(utils.DirectStreamer).parameters) == expected
    assert vars(utils._StreamError("why")) == {"msg": "why"}
    for own, known in (
        (serving.OneModel, model_manager.ModelManager),
        (serving.BatchingState, utils.GenerationState),
        (serving.BatchingManager, utils.GenerateManager),
    ):
        assert issubclass(own, known)
        names = [name for name in vars(own) if not name.startswith("_") and name != "load_model_and_processor"]
        for name in names:
            there, here = (inspect.signature(getattr(one, name)).parameters for one in (known, own))
            assert list(here) == list(there), name
    source = "".join(inspect.getsource(one) for one in (utils, completion, chat_completion))
    for used in ("model_manager.force_model", "generation_state.get_manager(", "isinstance(text, _StreamError)"):
        assert used in source
