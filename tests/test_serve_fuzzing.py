"""Fuzzing of the server: by its own OpenAPI schema, by hostile values for each task, and under load."""

import http.client
import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import pytest
import schemathesis
from fuzzing import ODD, fuzz
from hypothesis import given
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from served_apps import JSON, listening, load, refused, same, sharing
from served_models import MAKERS, RATE, WORDS, language_model, translator

from hfseq.serving.app import Settings, make_app
from hfseq.serving.limits import Limits
from hfseq.serving.metrics import Metrics
from hfseq.serving.served import load_served

pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
SIZES: list[int] = []  # of all batches
LIMITS = Limits(max_input_tokens=100, max_new_tokens=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    makers = MAKERS | {"text-generation": language_model}
    observed = SimpleNamespace(observe_batch=lambda name, size, seconds: SIZES.append(size))
    found = load({task: make(root / task) for task, make in makers.items()}, observed, limits=LIMITS)
    folder = translator(root / "summarization")
    found.append(load_served(str(folder), name="summarization", task="summarization", device="cpu", limits=LIMITS))
    yield found
    for served in found:
        served.close(60)


@pytest.fixture(scope="module")
def client(models):
    with sharing(models) as one:
        yield one


# --- by the schema -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(models):
    """The application's description, and the application without its end, at which it closes its models."""
    app = make_app(models, Metrics(), Settings())

    async def without_end(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        await app(scope, receive, send)

    return schemathesis.openapi.from_asgi("/openapi.json", without_end)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


POSTED = ("/predict", "/v1/completions", "/v1/chat/completions")
READ = ("/v1/models", "/health", "/ready", "/metrics")
OPERATIONS = [*(("POST", path) for path in POSTED), *(("GET", path) for path in READ)]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("method,path", OPERATIONS)
def test_the_application_is_as_its_schema_says(described, method, path, mode):
    operation = described[path][method]
    statuses = []
    valid = mode is schemathesis.GenerationMode.POSITIVE
    if valid or path in POSTED:

        @fuzz({"/predict": 80}.get(path, 30 if path in POSTED else 3))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            # Valid requests may be refused, too: a schema does not know the models' tokens.
            statuses.append(case.call_and_validate(checks=CHECKS).status_code)

        check()
        assert (200 in statuses) == valid


def test_all_operations_are_fuzzed(described):
    found = {(one.ok().method.upper(), one.ok().path) for one in described.get_all_operations()}
    assert found == set(OPERATIONS)


# --- by hostile values ---------------------------------------------------------------------------------------------

TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join),
    st.lists(st.sampled_from([*ODD, "a", " b "]), max_size=4).map("".join),
    st.sampled_from(["a " * 150, "x" * 20_000, "\ud800", "a\udfffb", "<pad>", "<s> a </s>"]),
    st.text(max_size=8),
)
NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-9, 9),
    st.sampled_from([10**400, -(10**40), 2**63, 1e308, -1e308, 5e-324, 0, -0.0]),
)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "array", "a"]), inner),
    max_leaves=4,
)
STAMPS = ["2020-01-01", "9999-12-31", "0001-01-01", "NaT", "now", "", "2020-01-01T00:00:00+14:00", "1e9", "\x00"]
FREQUENCIES = ["D", "MS", "YE", "h", "ns", "", "0D", "-1D", "9" * 17 + "h", "B", "W-MON", "M", "x"]
ENTRY = st.fixed_dictionaries(
    {"target": st.lists(st.none() | NUMBER, max_size=6)},
    optional={
        "start": st.sampled_from(STAMPS) | JUNK,
        "freq": st.sampled_from(FREQUENCIES) | JUNK,
        "item_id": JUNK,
        "feat_static_cat": st.lists(JUNK, max_size=2),
        "feat_static_real": st.lists(NUMBER, max_size=2),
        "feat_dynamic_real": st.lists(st.lists(NUMBER, max_size=6), max_size=2),
    },
)
SAMPLES = st.fixed_dictionaries(
    {
        "array": st.integers(0, 700).map(lambda size: [0.25] * size) | st.lists(NUMBER, max_size=3),
        "sampling_rate": st.sampled_from([RATE, RATE, RATE, 1000, 44100, 200_000, 0, 8000.0, True]),
    }
)
HEARD = st.integers(1, 700).map(lambda size: {"array": [0.25] * size, "sampling_rate": RATE})
USUAL = st.lists(st.floats(-9, 9), min_size=1, max_size=8)
PAIR = st.fixed_dictionaries({"text": TEXT, "text_pair": TEXT})
INPUTS = {
    "text-classification": TEXT | PAIR,
    "token-classification": TEXT,
    "translation": TEXT,
    "summarization": TEXT,
    "text-generation": TEXT,
    "automatic-speech-recognition": HEARD | SAMPLES | TEXT | st.binary(max_size=40).map(lambda part: part.hex()),
    "time-series-forecasting": USUAL | st.lists(st.none() | NUMBER, max_size=8) | ENTRY,
    "next-item-recommendation": st.lists(st.sampled_from(WORDS.split()) | TEXT, max_size=5),
}
NATURAL = st.integers(0, 9) | st.sampled_from([2**31, 2**63, 10**30, -1])
GENERATION = {
    "num_beams": st.integers(1, 4) | NATURAL,
    "num_return_sequences": st.integers(1, 3),
    "max_new_tokens": NATURAL,
    "min_new_tokens": NATURAL,
    "length_penalty": st.floats(-10, 10),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "no_repeat_ngram_size": NATURAL,
    "repetition_penalty": st.floats(0.1, 10),
    "do_sample": st.booleans(),
    "temperature": st.sampled_from([1e-3, 1.0, 100.0, 0.0]),
    "top_k": NATURAL,
    "top_p": st.sampled_from([1e-9, 0.5, 1.0]),
    "seed": NATURAL,
    "truncation": st.booleans(),
}
SETTINGS = {
    "text-classification": {
        "top_k": NATURAL,
        "function_to_apply": st.sampled_from(["sigmoid", "softmax", "none", "x"]),
        "truncation": st.booleans(),
    },
    "token-classification": {
        "aggregation_strategy": st.sampled_from(["none", "simple", "first", "average", "max"]),
        "ignore_labels": st.lists(st.sampled_from(["O", "X", "B-X", ""]), max_size=2),
    },
    "translation": GENERATION,
    "summarization": GENERATION,
    "text-generation": GENERATION | {"return_full_text": st.booleans(), "stop": st.lists(TEXT, max_size=3)},
    "automatic-speech-recognition": {},
    "time-series-forecasting": {
        "prediction_length": NATURAL,
        "num_samples": st.integers(1, 20) | NATURAL,
        "quantile_levels": st.lists(st.floats(0, 1), max_size=3),
        "return_samples": st.booleans(),
        "seed": NATURAL,
    },
    "next-item-recommendation": {"top_k": NATURAL, "filter_seen": st.booleans(), "max_length": NATURAL},
}


@pytest.mark.parametrize("task", sorted(INPUTS))
def test_hostile_values_are_answered_or_refused(client, task):
    several = st.lists(INPUTS[task], max_size=3)
    # Few settings at a time, or some is always refused.
    possible = sorted(SETTINGS[task])
    names = st.sets(st.sampled_from(possible), max_size=3) if possible else st.just(())
    settings = names.flatmap(lambda chosen: st.fixed_dictionaries({name: SETTINGS[task][name] for name in chosen}))

    statuses = []

    @fuzz(60)
    @given(inputs=st.one_of(INPUTS[task], INPUTS[task], several, JUNK), parameters=settings)
    def check(inputs, parameters):
        body = json.dumps({"inputs": inputs, "parameters": parameters, "model": task})
        response = client.post("/predict", content=body, headers=JSON)
        statuses.append(response.status_code)
        if response.status_code != 200:
            refused(response, 400)

    check()
    # Both happen, so that either is tested.
    assert min(statuses.count(200), statuses.count(400)) > 3


# --- under load ----------------------------------------------------------------------------------------------------


def drawn(chance):
    """A valid request, or one that is refused, of any task."""

    def text():
        odd = ["", " ", "\x00", "▁", "漢字", "a\u0301", "\u200b", "</s>", "x" * 300]
        words = chance.choices(WORDS.split(), k=chance.randint(0, 14))
        return " ".join(words) if chance.random() < 0.8 else chance.choice(odd) + " ".join(words[:3])

    def series():
        return [None if chance.random() < 0.1 else round(chance.gauss(3, 2), 2) for _ in range(chance.randint(1, 20))]

    def recording():
        samples = [round(chance.gauss(0, 0.2), 3) for _ in range(chance.randint(0, 900))]
        return {"array": samples, "sampling_rate": RATE}

    def history():
        return chance.choices([*WORDS.split(), "unknown"], k=chance.randint(0, 8))

    sampled = {"do_sample": True, "temperature": 2.0, "seed": chance.randrange(3)}
    task, one, settings = chance.choice(
        [
            ("text-classification", text, [{}, {"top_k": 1}, {"truncation": True}]),
            (
                "token-classification",
                text,
                [{}, {"aggregation_strategy": "first"}, {"aggregation_strategy": "simple"}],
            ),
            ("translation", text, [{}, {"num_beams": 3}, sampled, {"truncation": True}]),
            ("summarization", text, [{}, {"num_beams": 2, "truncation": True}]),
            ("text-generation", text, [{"do_sample": False}, {"num_beams": 2}, sampled]),
            ("automatic-speech-recognition", recording, [{}]),
            ("time-series-forecasting", series, [{"seed": 1}, {"seed": 2, "num_samples": 3}]),
            ("next-item-recommendation", history, [{}, {"top_k": 2, "filter_seen": True}]),
        ]
    )
    inputs = one() if chance.random() < 0.7 else [one() for _ in range(chance.randint(0, 4))]
    if chance.random() < 0.05:
        inputs = chance.choice([None, 5, "a " * 150, [["a", 1]], {"a": 1}])
    return json.dumps({"model": task, "inputs": inputs, "parameters": chance.choice(settings)})


def test_answers_under_load_are_those_alone(models):
    chance = random.Random(0)
    bodies = [drawn(chance) for _ in range(250)]
    SIZES.clear()

    async def without_end(scope, receive, send):
        if scope["type"] == "http":
            await app(scope, receive, send)

    app = make_app(models, Metrics(), Settings())
    with listening(without_end) as port:

        def answers(some):
            found = []
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                for body in some:
                    connection.request("POST", "/predict", body, JSON)
                    response = connection.getresponse()
                    found.append((response.status, json.loads(response.read())))
            return found

        alone = answers(bodies)
        assert {status for status, _ in alone} == {200, 400}
        # In other orders, by several clients: who meets whom in a batch is up to the machine.
        for clients in (4, 16):
            order = chance.sample(range(len(bodies)), len(bodies))
            shares = [order[number::clients] for number in range(clients)]
            with ThreadPoolExecutor(clients) as pool:
                results = pool.map(lambda share: answers([bodies[row] for row in share]), shares)
                for share, found in zip(shares, results, strict=True):
                    for row, (status, answer) in zip(share, found, strict=True):
                        assert status == alone[row][0], (bodies[row], answer)
                        same(answer, alone[row][1])
    assert max(SIZES) > 4
