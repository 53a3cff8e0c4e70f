"""Requests in one batch: each gets what it would get alone, whatever the others do."""

import random
import threading
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfseq import CnnConfig, GruConfig, LstmConfig, RnnConfig
from hfseq.models import MODEL_CLASSES
from hfseq.serving.batcher import Batcher
from hfseq.serving.dynamic import Closed, QueueFull
from hfseq.serving.generation import GenerationRequest
from hfseq.serving.plans import Planner
from hfseq.serving.rows import Row
from hfseq.tokenization import train_tokenizer

TOKENIZER = train_tokenizer(["a b c d e f g h"], model="word", vocab_size=20)
SIZES = {"vocab_size": 40, "hidden_size": 12, "embedding_size": 10, "num_hidden_layers": 2}
MODELS = {
    "rnn": (RnnConfig, {}),
    "lstm": (LstmConfig, {}),
    "lstm_untied": (LstmConfig, {"tie_word_embeddings": False, "num_hidden_layers": 1}),
    "lstm_adaptive": (LstmConfig, {"adaptive_softmax_cutoffs": [10, 20]}),
    "gru": (GruConfig, {"adaptive_softmax_cutoffs": [15], "tie_word_embeddings": False}),
    "cnn_gated": (CnnConfig, {}),
    "cnn_residual": (CnnConfig, {"architecture": "residual", "dilation_base": 2}),
    "cnn_convs2s": (CnnConfig, {"architecture": "convs2s", "max_position_embeddings": 12}),
}


def make(name):
    """A model in float64 whose weights are so large that what it generates varies and some rows end early."""
    config, fields = MODELS[name]
    torch.manual_seed(0)
    model = MODEL_CLASSES[config]["AutoModelForCausalLM"](config(**SIZES | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-2.0, 2.0)
    return model


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return make(request.param)


@pytest.fixture(scope="module")
def lstm():
    return make("lstm")


@pytest.fixture
def batcher(lstm):
    with closing(Rows(lstm, max_batch_size=4)) as one:
        yield one


class Rows(Batcher):
    """Takes prompts, and gives the tokens of their continuations."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self._plan = Planner(model)

    def submit(self, prompt, options, *, gate=None, seed=None, **more):
        options = dict(options)
        new = options.pop("max_new_tokens", 20)
        piece = None if gate is None else gate.put
        request = GenerationRequest(prompt, new, options, seed=seed, on_piece=piece, **more)
        row = Row(request, self._plan(request, 40), TOKENIZER, 0, self.model.device)
        super().submit([row])
        return row.future

    def close(self, timeout=0):
        super().close(timeout)


def alone(model, prompt, **options):
    """What `generate` continues a prompt with."""
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def wait(future):
    return future.result(timeout=60).tokens


class Gate:
    """Holds the batcher's thread at its first token until it is opened; `reached` says that it has come so far."""

    def __init__(self):
        self.reached, self.opened, self.pieces = threading.Event(), threading.Event(), []

    def put(self, number, piece):
        self.reached.set()
        assert self.opened.wait(60)
        self.pieces.append(piece)


requests = st.lists(
    st.tuples(
        st.one_of(st.integers(1, 6), st.integers(60, 140)),  # tokens of the prompt
        st.integers(1, 12),  # new tokens
        st.sampled_from([{}, {}, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 4}]),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=8, deadline=None)
@given(requests=requests, max_batch_size=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_requests_that_overlap_get_what_they_get_alone(model, requests, max_batch_size, seed):
    draw = random.Random(seed)
    asked = [
        ([draw.randrange(3, 40) for _ in range(length)], {"max_new_tokens": new} | options)
        for length, new, options in requests
    ]
    gate = Gate()
    with closing(Rows(model, max_batch_size=max_batch_size)) as batcher:
        first = batcher.submit([3, 4], dict(max_new_tokens=3, eos_token_id=2), gate=gate)
        gate.reached.wait(60)
        futures = []
        for number, (prompt, options) in enumerate(asked):
            if number == len(asked) // 2:
                # So that the second half meets rows under way.
                gate.opened.set()
            futures.append(batcher.submit(prompt, dict(**options, eos_token_id=2)))
        found = [wait(future) for future in futures]
        wait(first)
    assert found == [alone(model, prompt, do_sample=False, eos_token_id=2, **options) for prompt, options in asked]


@pytest.mark.parametrize("steps", [True, False])
def test_rows_are_run_together(lstm, batcher, monkeypatch, steps):
    """One at a time would be right as well, and slow; so would steps by `forward`, if the model has faster ones."""
    runs, kind = [], type(lstm)
    forward, make_step = kind.forward, kind.make_decode_step

    def count_forward(model, **inputs):
        runs.append(("forward", len(inputs["input_ids"])))
        return forward(model, **inputs)

    def count_steps(model, cache):
        step = make_step(model, cache)
        return lambda ids: runs.append(("step", len(ids))) or step(ids)

    monkeypatch.setattr(kind, "forward", count_forward)
    monkeypatch.setattr(kind, "make_decode_step", count_steps)
    monkeypatch.setattr(kind, "supports_decode_step", lambda model: steps)
    gate = Gate()
    config = dict(max_new_tokens=5, min_new_tokens=5)
    futures = [batcher.submit([3], config, gate=gate)]
    gate.reached.wait(60)
    futures += [batcher.submit([4] * length, config) for length in (3, 9, 2, 5)]
    gate.opened.set()
    assert [len(wait(future)) for future in futures] == [5] * 5
    # The first alone; three are read together, as many as there is room for; four go on until the first is done; then
    # the last, which has waited for its place, meets the end of the three.
    assert [size for _, size in runs] == [1, 1, 3, 4, 4, 4, 1, 4, 1, 1, 1]
    prompts = [index for index, (way, _) in enumerate(runs) if way == "forward"]
    assert prompts == ([0, 2, 6] if steps else list(range(11)))


# The model is so sure that only high temperatures make a choice.
SAMPLING = [
    {"temperature": 4.0},
    {"temperature": 6.0},
    {"temperature": 9.0, "top_k": 3},
    {"temperature": 4.0, "top_p": 0.9},
    {"temperature": 5.0, "top_k": 0, "min_p": 0.01, "repetition_penalty": 1.3},
    {"temperature": 5.0, "top_k": 5, "suppress_tokens": [2, 6, 7]},
]


def test_what_is_sampled_depends_on_the_seed_alone(lstm):
    configs = [dict(do_sample=True, max_new_tokens=8, **options) for options in SAMPLING]
    with closing(Rows(lstm, max_batch_size=1)) as batcher:
        expected = [wait(batcher.submit([3, 4], config, seed=seed)) for seed in range(4) for config in configs]
    with closing(Rows(lstm, max_batch_size=7)) as batcher:
        futures = [batcher.submit([3, 4], config, seed=seed) for seed in range(4) for config in configs]
        others = [batcher.submit([5], dict(do_sample=True, max_new_tokens=3)) for _ in range(5)]
        assert [wait(future) for future in futures] == expected
        assert all(wait(other) for other in others)
        state = torch.random.get_rng_state()
        assert len({tuple(wait(batcher.submit([3], configs[0]))) for _ in range(8)}) > 1
        # Another model may be sampling from the global generator.
        assert torch.equal(torch.random.get_rng_state(), state)
    assert len({tuple(tokens) for tokens in expected}) > len(expected) / 2


def test_samples_follow_the_distribution(lstm):
    """Exact shares within five standard deviations; tokens that are ruled out never come."""
    config = dict(do_sample=True, max_new_tokens=1, temperature=4.0, top_k=6)
    with torch.no_grad():
        best = (lstm(torch.tensor([[3, 4]])).logits[0, -1].float() / 4.0).topk(6)
    shares = dict(zip(best.indices.tolist(), best.values.softmax(dim=-1).tolist(), strict=True))
    with closing(Rows(lstm, max_batch_size=50)) as batcher:
        found = [wait(one)[0] for one in [batcher.submit([3, 4], config, seed=seed) for seed in range(300)]]
    assert set(found) <= set(shares)
    for token, share in shares.items():
        assert abs(found.count(token) / 300 - share) < 5 * (share * (1 - share) / 300) ** 0.5


LONG = {"max_new_tokens": 10**9, "eos_token_id": 2, "suppress_tokens": [2]}
SHORT = {"max_new_tokens": 3, "suppress_tokens": [2]}


def test_a_cancelled_request_frees_its_place(lstm):
    with closing(Rows(lstm, max_batch_size=1)) as batcher:
        gate = Gate()
        running, waiting = batcher.submit([3], LONG, gate=gate), batcher.submit([4], LONG)
        last = batcher.submit([5], SHORT)
        gate.reached.wait(60)
        assert waiting.cancel() and running.cancel()
        gate.opened.set()
        assert wait(last) == alone(lstm, [5], max_new_tokens=3, suppress_tokens=[2])


class Breaks:
    def __init__(self, after):
        self.left = after

    def put(self, number, piece):
        self.left -= 1
        if self.left < 0:
            raise KeyError("the client is gone")


def test_an_error_ends_its_own_request_alone(lstm, batcher, monkeypatch):
    gate = Gate()
    good = batcher.submit([3, 4], dict(max_new_tokens=6, suppress_tokens=[2]), gate=gate)
    gate.reached.wait(60)
    broken = batcher.submit([5], LONG, gate=Breaks(after=3))
    hot = dict(do_sample=True, temperature=1e-44, suppress_tokens=[2])
    cold = batcher.submit([6], hot)
    third = batcher.submit([7], SHORT)
    gate.opened.set()
    with pytest.raises(KeyError, match="the client is gone"):
        wait(broken)
    with pytest.raises(ValueError, match="no token with nonzero probability"):
        wait(cold)
    assert wait(good) == alone(lstm, [3, 4], max_new_tokens=6, suppress_tokens=[2])
    assert wait(third) == alone(lstm, [7], max_new_tokens=3, suppress_tokens=[2])


def test_what_cannot_be_read_together_is_read_alone(lstm, batcher, monkeypatch):
    forward = type(lstm).forward

    def small(model, **inputs):
        if inputs["input_ids"].eq(9).any() or inputs["input_ids"].numel() > 4:
            raise MemoryError("too much")
        return forward(model, **inputs)

    monkeypatch.setattr(type(lstm), "forward", small)
    gate = Gate()
    first = batcher.submit([3], dict(max_new_tokens=1), gate=gate)
    gate.reached.wait(60)
    futures = [batcher.submit([token] * 3, SHORT) for token in (4, 9, 5)]
    gate.opened.set()
    wait(first)
    with pytest.raises(MemoryError, match="too much"):
        wait(futures[1])
    for token, future in ((4, futures[0]), (5, futures[2])):
        assert wait(future) == alone(lstm, [token] * 3, max_new_tokens=3, suppress_tokens=[2])


def test_a_step_that_fails_ends_those_in_it_and_no_later_one(lstm, batcher, monkeypatch):
    gate = Gate()
    running = batcher.submit([3], LONG, gate=gate)
    gate.reached.wait(60)
    make_step = type(lstm).make_decode_step

    def broken(model, cache):
        monkeypatch.setattr(type(lstm), "make_decode_step", make_step)
        cache.layers[0].states = (torch.tensor(0.0),)
        raise MemoryError("too much")

    monkeypatch.setattr(type(lstm), "make_decode_step", broken)
    gate.opened.set()
    with pytest.raises(MemoryError, match="too much"):
        wait(running)
    assert wait(batcher.submit([5], SHORT)) == alone(lstm, [5], max_new_tokens=3, suppress_tokens=[2])


def test_no_more_than_so_many_wait(lstm):
    with closing(Rows(lstm, max_batch_size=1, max_queue=2)) as batcher:
        gate = Gate()
        futures = [batcher.submit([3], SHORT, gate=gate)]
        gate.reached.wait(60)
        futures += [batcher.submit([4], SHORT) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 inputs are waiting already"):
            batcher.submit([5], SHORT)
        gate.opened.set()
        assert all(len(wait(future)) == 3 for future in futures)
        assert len(wait(batcher.submit([5], SHORT))) == 3


def test_what_is_cancelled_does_not_wait(lstm):
    with closing(Rows(lstm, max_batch_size=1, max_queue=2)) as batcher:
        gate = Gate()
        first = batcher.submit([3], SHORT, gate=gate)
        gate.reached.wait(60)
        left, stays = (batcher.submit([4], SHORT) for _ in range(2))
        left.cancel()
        last = batcher.submit([5], SHORT)
        with pytest.raises(QueueFull, match="2 inputs are waiting already"):
            batcher.submit([6], SHORT)
        gate.opened.set()
        assert [len(wait(future)) for future in (first, stays, last)] == [3, 3, 3]


def test_closing_ends_everything(lstm):
    batcher = Rows(lstm, max_batch_size=1)
    gate = Gate()
    futures = [batcher.submit([3], LONG, gate=gate), batcher.submit([4], LONG)]
    gate.reached.wait(60)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    gate.opened.set()
    closer.join(60)
    for future in futures:
        with pytest.raises(Closed, match="shut down before"):
            wait(future)
    with pytest.raises(Closed, match="the server is shutting down"):
        batcher.submit([3], SHORT)
    assert not [thread for thread in threading.enumerate() if thread.name == "hfseq-batcher"]


@pytest.mark.parametrize(
    ("prompt", "options", "kind", "message"),
    [
        ([], {}, ValueError, "the prompt has no tokens"),
        ([3, 40], {}, ValueError, "outside the vocabulary of 40"),
        ([-1], {}, ValueError, "outside the vocabulary of 40"),
        ([3], {"do_sample": True, "temperature": -1.0}, ValueError, "temperature"),
        ([3], {"num_beams": 2, "do_sample": True}, ValueError, "beam_sample is not served"),
    ],
)
def test_impossible_requests(batcher, prompt, options, kind, message):
    with pytest.raises(kind, match=message):
        batcher.submit(prompt, dict(**options))


def test_impossible_batchers(lstm):
    with pytest.raises(ValueError, match="must be positive"):
        Rows(lstm, max_batch_size=0)
    decoder = MODEL_CLASSES[LstmConfig]["AutoModelForCausalLM"](LstmConfig(**SIZES, add_cross_attention=True))
    with pytest.raises(ValueError, match="training mode"):
        Batcher(decoder.train())
    with pytest.raises(ValueError, match="add_cross_attention"):
        Batcher(decoder.eval())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nothing_waits_for_a_thread_that_has_ended(lstm):
    def observe(size, seconds):
        raise RuntimeError("the observer is broken")

    with closing(Rows(lstm, observe=observe)) as batcher:
        with pytest.raises(Closed):
            wait(batcher.submit([3], {"max_new_tokens": 2}))
        assert not batcher.alive
        with pytest.raises(Closed):
            batcher.submit([3], {"max_new_tokens": 2})
