"""Requests to a served language model: each gets what it would get alone, with any kind of model."""

import random
import threading
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import hfseq
from hfseq.onnx.export import export_onnx
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import load_onnx
from hfseq.serving.batcher import Batcher
from hfseq.serving.dynamic import Closed, QueueFull
from hfseq.serving.generation import GenerationRequest, RequestError
from hfseq.serving.language_model import LanguageModel
from hfseq.serving.limits import Limits
from hfseq.serving.plans import Planner, PresenceFrequencyPenalty
from hfseq.serving.whole import BeamJob, run_beams
from hfseq.tokenization import start_texts, train_tokenizer

TOKENIZER = train_tokenizer(["abc def ghi jkl mno pqr stu vwx yz"], model="bpe", vocab_size=34)
start_texts(TOKENIZER)
SIZE = len(TOKENIZER)


def make(kind, folder=None):
    """A model that is unsure of its next token, so that what it generates varies."""
    torch.manual_seed(1)
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, **sizes, initializer_range=0.5, eos_token_id=2)).eval()
    configs = {"gru": hfseq.GruConfig, "cnn": hfseq.CnnConfig}
    config = configs.get(kind, hfseq.LstmConfig)(vocab_size=SIZE, hidden_size=16, initializer_range=0.8)
    heads = {"gru": hfseq.GruForCausalLM, "cnn": hfseq.CnnForCausalLM}
    model = heads.get(kind, hfseq.LstmForCausalLM)(config).eval()
    if not kind.startswith("onnx"):
        return model
    for saved in (model, TOKENIZER):
        saved.save_pretrained(folder / "model")
    export_onnx(folder / "model", folder / "onnx")
    if kind == "onnx_int8":
        quantize_onnx(folder / "onnx", folder / "int8")
    return load_onnx(folder / ("int8" if kind == "onnx_int8" else "onnx"), threads=1)[0]


@pytest.fixture(scope="module", params=["lstm", "gru", "cnn", "gpt2", "onnx", "onnx_int8"])
def model(request, tmp_path_factory):
    model = make(request.param, tmp_path_factory.mktemp("export"))
    model.kind = request.param
    return model


@pytest.fixture(scope="module")
def lstm():
    return make("lstm")


WORDS = {"suppress_tokens": [0, 1, 2, 3]}
SAMPLED = {"do_sample": True, "top_k": 0, "temperature": 2.0}
HOT = SAMPLED | WORDS | {"temperature": 9.0}


def serve(model, **limits):
    served = LanguageModel(model, TOKENIZER, Limits(**limits))
    return closing_now(served)


class closing_now(closing):
    """Closes without waiting for what goes on."""

    def __exit__(self, *error):
        self.thing.close(0)


def ask(served, prompt, new, options=None, **more):
    return served.submit(GenerationRequest(prompt, new, {"do_sample": False} | (options or {}), **more))


def wait(future):
    return future.result(timeout=60)


# --- the same answer, alone and among others -----------------------------------------------------------------------

OPTIONS = [
    *({}, SAMPLED, SAMPLED | {"top_p": 0.8}, SAMPLED | {"top_k": 4}, {"repetition_penalty": 1.4}),
    *(SAMPLED | {"sequence_bias": [[[5], 4.0]]}, {"num_beams": 3}, {"num_beams": 2, "no_repeat_ngram_size": 2}),
]
requests = st.builds(
    dict,
    options=st.sampled_from(OPTIONS),
    length=st.one_of(st.integers(1, 6), st.integers(1, 20)),
    new=st.integers(0, 8),
    seed=st.integers(0, 9),
    n=st.integers(1, 2),
    best_of=st.sampled_from([None, None, 3]),
    stop=st.sampled_from([(), ("a",), ("gh", "mn", "zz")]),
    logprobs=st.sampled_from([None, 0, 3]),
    prompt_logprobs=st.booleans(),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    continues=st.booleans(),
)


def request_of(drawn):
    drawn = dict(drawn)
    draw = random.Random(repr(drawn))
    prompt = [draw.randrange(3, SIZE) for _ in range(drawn.pop("length"))]
    options, new = {"do_sample": False} | drawn.pop("options"), drawn.pop("new")
    if "num_beams" in options or drawn["best_of"] and drawn["best_of"] < drawn["n"]:
        drawn["best_of"] = None
    if drawn["logprobs"] is None:
        drawn["prompt_logprobs"] = False
    return GenerationRequest(prompt, new, options, **drawn)


def numbers(logprobs):
    return [
        value for one in logprobs for value in (one.logprob, *(value for _, value in one.top)) if value is not None
    ]


def plain(generation):
    """All but the log-probabilities, which are equal up to rounding."""
    return [
        (list(one.tokens), one.text, one.finish_reason, [(each.token, each.offset) for each in one.logprobs])
        for one in generation.completions
    ], [one.token for one in generation.prompt_logprobs]


@settings(max_examples=6, deadline=None)
@given(drawn=st.lists(requests, min_size=2, max_size=8), max_batch_size=st.integers(2, 5))
def test_requests_get_what_they_get_alone(model, drawn, max_batch_size):
    asked = [request_of(one) for one in drawn]
    with serve(model, max_batch_size=1) as served:
        alone = [wait(served.submit(request)) for request in asked]
    with serve(model, max_batch_size=max_batch_size) as served:
        together = [wait(future) for future in [served.submit(request) for request in asked]]
    for one, other in zip(alone, together, strict=True):
        assert plain(one) == plain(other) and one.generated == other.generated
        for mine, its in [(one.prompt_logprobs, other.prompt_logprobs)] + [
            (mine.logprobs, its.logprobs) for mine, its in zip(one.completions, other.completions, strict=True)
        ]:
            np.testing.assert_allclose(numbers(mine), numbers(its), atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"repetition_penalty": 1.7}])
def test_answers_are_what_generate_gives(model, options):
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12]]
    with serve(model) as served:
        found = [wait(future) for future in [ask(served, prompt, 9, options) for prompt in prompts]]
    for prompt, generation in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, **options
        )
        (completion,) = generation.completions
        assert list(completion.tokens) == expected[0, len(prompt) :].tolist()
        before, after = (TOKENIZER.decode(one, skip_special_tokens=True) for one in (prompt, expected[0]))
        assert completion.text == after[len(before) :]


def test_beams_that_wait_together_run_together(lstm, monkeypatch):
    sizes, forward = [], hfseq.LstmForCausalLM.forward

    def count(self, *args, **inputs):
        sizes.append(len(inputs["input_ids"]))
        return forward(self, *args, **inputs)

    prompts = [[3], [4, 5], [6, 7, 8], [9] * 5]
    with serve(lstm) as served:
        alone = [plain(wait(ask(served, prompt, 6, {"num_beams": 3}, n=2))) for prompt in prompts]
        held, free = threading.Event(), threading.Event()
        monkeypatch.setattr(served, "_run_whole", served._run_whole)
        monkeypatch.setattr(
            hfseq.LstmForCausalLM, "forward", lambda *a, **k: (held.set(), free.wait(60), count(*a, **k))[2]
        )
        first = ask(served, [3], 6, {"num_beams": 3}, n=2)
        assert held.wait(60)
        futures = [ask(served, prompt, 6, {"num_beams": 3}, n=2) for prompt in prompts]
        other = ask(served, [3], 6, {"num_beams": 2})
        free.set()
        assert [plain(wait(future)) for future in futures] == alone
        assert plain(wait(first)) == alone[0] and wait(other)
    # Of the first, the four together, and the one with other settings.
    assert {3, 12, 2} == set(sizes) - {1, 4}


@pytest.mark.parametrize("stop", [(), ("qq",)])
def test_beams_that_nobody_waits_for_leave(lstm, stop, monkeypatch):
    sizes, made = [], hfseq.LstmForCausalLM.make_decode_step

    def make_step(self, cache, **kwargs):
        step = made(self, cache, **kwargs)

        def count(ids):
            sizes.append(len(ids))
            if len(sizes) == 3:
                jobs[1].future.cancel()
            return step(ids)

        return count

    planner = Planner(lstm)
    requests = [GenerationRequest(prompt, 9, WORDS | {"num_beams": 3}, stop=stop) for prompt in ([3], [4, 5], [6, 7])]
    alone, jobs = ([BeamJob(one, planner(one, SIZE), TOKENIZER) for one in requests] for _ in range(2))
    for job in alone:
        run_beams(planner.model, [job])
    monkeypatch.setattr(hfseq.LstmForCausalLM, "make_decode_step", make_step)
    run_beams(planner.model, jobs)
    assert sizes == [9] * 3 + [6] * 5
    for number in (0, 2):
        (mine,), (its,) = jobs[number].future.result(0)[0], alone[number].future.result(0)[0]
        assert mine.tokens == its.tokens


def test_beams_whose_settings_read_the_ids_are_not_padded(lstm, monkeypatch):
    """The padding would count as tokens that are not to be repeated."""
    options = {"num_beams": 2, "no_repeat_ngram_size": 1, "sequence_bias": [[[0], 50.0]]}
    prompts = [[4], [5, 6], [7, 8, 9, 10]]
    with serve(lstm) as served:
        alone = [plain(wait(ask(served, prompt, 6, options))) for prompt in prompts]
        faulty = Faulty(monkeypatch)
        first = ask(served, [4], 6, options)
        assert faulty.entered.wait(60)
        futures = [ask(served, prompt, 6, options) for prompt in prompts]
        faulty.gate.set()
        assert wait(first) and [plain(wait(future)) for future in futures] == alone


# --- log-probabilities ---------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_model(model):
    prompt = [3, 9, 4, 12, 5]
    with serve(model) as served:
        settings = [{}, SAMPLED | {"top_k": 2}, {"sequence_bias": [[[7], 5.0]]}, {"num_beams": 2}]
        for options in settings:
            found = wait(ask(served, prompt, 6, options, logprobs=3, prompt_logprobs=True, seed=3))
            (completion,) = found.completions
            ids = torch.tensor([[*prompt, *completion.tokens]])
            with torch.inference_mode():
                expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(dim=-1)
            scored = [*found.prompt_logprobs, *completion.logprobs]
            assert [one.token for one in scored] == ids[0].tolist()
            assert scored[0].logprob is None and scored[0].top == ()
            # An int8 graph computes otherwise for one step than for many.
            atol = 0.2 if isinstance(model, hfseq.onnx.runtime.OnnxForCausalLM) and "int8" in model.about else 1e-4
            for step, one in enumerate(scored[1:]):
                assert one.logprob == pytest.approx(float(expected[step, one.token]), abs=atol)
                best = expected[step].topk(3)
                np.testing.assert_allclose([value for _, value in one.top], best.values, atol=atol)
        assert wait(ask(served, prompt, 0, logprobs=1, prompt_logprobs=True)).completions[0].tokens == []


def test_long_prompts_are_scored_in_pieces(lstm, monkeypatch):
    prompts = [[3 + (7 * place + length) % 20 for place in range(length)] for length in (3, 40, 41, 64, 90)]
    monkeypatch.setattr("hfseq.serving.batcher._MAX_LOGITS", SIZE * 7)
    with serve(lstm) as served:
        futures = [ask(served, prompt, 1, logprobs=1, prompt_logprobs=True) for prompt in prompts]
        for prompt, future in zip(prompts, futures, strict=True):
            with torch.no_grad():
                expected = lstm(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)
            found = [one.logprob for one in wait(future).prompt_logprobs]
            np.testing.assert_allclose(
                found[1:], [float(expected[step, token]) for step, token in enumerate(prompt[1:])], atol=1e-4
            )


def test_the_best_samples_are_returned(lstm):
    with serve(lstm) as served:
        all_of_them = wait(ask(served, [3, 4], 6, SAMPLED, n=6, seed=5, logprobs=0))
        best = wait(ask(served, [3, 4], 6, SAMPLED, n=2, best_of=6, seed=5))
    means = {one.text: np.mean([each.logprob for each in one.logprobs]) for one in all_of_them.completions}
    assert len(means) == 6
    assert [one.text for one in best.completions] == sorted(means, key=means.get, reverse=True)[:2]
    assert best.generated == all_of_them.generated and best.completions[0].logprobs == ()


# --- settings ------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=3),
    prompt=st.integers(0, 4),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
)
def test_penalties_are_those_of_openai(tokens, prompt, presence, frequency):
    """mu[j] - c[j] * alpha_frequency - (c[j] > 0) * alpha_presence, by loops."""
    scores = torch.arange(len(tokens) * 6.0, dtype=torch.double).view(len(tokens), 6)
    expected = scores.tolist()
    for row, ids in enumerate(tokens):
        for token in range(6):
            count = ids[prompt:].count(token)
            expected[row][token] -= count * frequency + (presence if count else 0)
    penalty = PresenceFrequencyPenalty(prompt, presence, frequency)
    torch.testing.assert_close(penalty(torch.tensor(tokens), scores).tolist(), expected)


def test_penalties_apply_to_what_is_generated(model):
    with serve(model) as served:
        free = wait(ask(served, [3, 4], 12)).completions[0].tokens
        never = wait(ask(served, [3, 4], 12, {"suppress_tokens": [2]}, presence_penalty=1000.0)).completions[0].tokens
        again = (
            wait(ask(served, [3, 4], 12, {"suppress_tokens": [2]}, frequency_penalty=-1000.0)).completions[0].tokens
        )
    assert len(set(never)) == 12 and never[0] == free[0]
    assert len(set(again)) == 1


def test_a_seed_decides(model):
    with serve(model) as served:
        once, twice = (wait(ask(served, [4], 8, HOT, n=3, seed=7)) for _ in range(2))
        other = wait(ask(served, [4], 8, HOT, n=3, seed=8))
        assert plain(once) == plain(twice) != plain(other)
        assert len({one.text for one in once.completions}) == 3
        single = wait(ask(served, [4], 8, HOT, seed=7))
        assert single.completions[0].text == once.completions[0].text
        assert len({wait(ask(served, [4], 8, HOT)).completions[0].text for _ in range(3)}) > 1


def test_stop_strings_end_an_answer(model):
    with serve(model) as served:
        text = wait(ask(served, [4, 5], 12, WORDS)).completions[0].text
        # Across tokens, each of which has one or two letters.
        stop = text[3:8]
        found = wait(ask(served, [4, 5], 12, WORDS, stop=(stop, "never"), logprobs=0)).completions[0]
        assert found.text == text[: text.index(stop)] and found.finish_reason == "stop"
        assert len(found.tokens) < 12 and len(found.logprobs) < len(found.tokens)
        assert TOKENIZER.decode([one.token for one in found.logprobs]).startswith(found.text.strip())
        # The beginning of a stop string at the end of the text is part of it.
        assert wait(ask(served, [4, 5], 12, WORDS, stop=(text[-2:] + "?",))).completions[0].text == text


def test_stop_strings_end_beams(model):
    """As an EOS does: a beam that has one is finished."""
    with serve(model) as served:
        text = wait(ask(served, [4, 5], 12, WORDS | {"num_beams": 2})).completions[0].text
        for stop in (text[1], text[4:6]):
            found = wait(ask(served, [4, 5], 12, WORDS | {"num_beams": 2}, stop=(stop,), logprobs=0)).completions[0]
            assert stop not in found.text
            tokens = TOKENIZER.decode([4, 5, *found.tokens], skip_special_tokens=True)
            assert (found.finish_reason == "stop") == (stop in tokens[len(TOKENIZER.decode([4, 5])) :])
            assert len(found.tokens) == 12 or found.finish_reason == "stop"


def test_stop_strings_of_the_model(lstm, monkeypatch):
    with serve(lstm) as served:
        text = wait(ask(served, [3, 4], 12)).completions[0].text
    monkeypatch.setattr(lstm.generation_config, "stop_strings", text[2:4])
    with serve(lstm) as served:
        assert wait(ask(served, [3, 4], 12)).completions[0].text == text[: text.index(text[2:4])]


def test_pieces_are_the_answer(model):
    got, lock = {}, threading.Lock()

    def receive(number, piece):
        with lock:
            got.setdefault(number, []).append(piece)

    with serve(model) as served:
        more = {"n": 3, "seed": 4, "stop": ("gh", "e"), "logprobs": 1}
        whole = wait(ask(served, [3, 4, 5], 10, SAMPLED, **more, on_piece=receive)).completions
        assert plain_completions(whole) == plain_completions(
            wait(ask(served, [3, 4, 5], 10, SAMPLED, **more)).completions
        )
    for number, one in enumerate(whole):
        assert "".join(piece.text for piece in got[number]) == one.text
        assert [each for piece in got[number] for each in piece.logprobs] == list(one.logprobs)
        assert [piece.finish_reason for piece in got[number]] == [None] * (len(got[number]) - 1) + [one.finish_reason]


def plain_completions(completions):
    return [(one.text, list(one.tokens), one.finish_reason) for one in completions]


@pytest.mark.parametrize(
    ("prompt", "options", "more", "message"),
    [
        ([], {}, {}, "the prompt has no tokens"),
        ([SIZE], {}, {}, "outside the vocabulary"),
        ([3], {"num_beams": 2, "do_sample": True}, {}, "beam_sample is not served"),
        ([3], {"num_beams": 2}, {"n": 3}, "more than num_beams=2"),
        ([3], {"num_beams": 2}, {"on_piece": print}, "cannot be streamed"),
        ([3], {"do_sample": True, "temperature": -1.0}, {}, "temperature"),
    ],
)
def test_impossible_requests(lstm, prompt, options, more, message):
    with serve(lstm) as served, pytest.raises(RequestError, match=message):
        ask(served, prompt, 3, options, **more)


# --- faults --------------------------------------------------------------------------------------------------------


class Faulty:
    """Patches a model so that its passes fail with certain tokens, or with too many at a time.

    Args:
        steps: Whether tokens are generated by a decoding step rather than by `forward`.
    """

    def __init__(self, monkeypatch, most=10**9, poison=None, error=MemoryError, steps=False):
        self.sizes, kind = [], hfseq.LstmForCausalLM
        self.entered, self.gate = threading.Event(), threading.Event()
        forward, make_step = kind.forward, kind.make_decode_step

        def check(ids, cache):
            self.entered.set()
            assert self.gate.wait(60)
            self.sizes.append(len(ids))
            if len(ids) > most or (poison is not None and bool((ids == poison).any())):
                # As far as the states of the first layer.
                if cache is not None and cache.layers:
                    cache.layers[0].states = (torch.zeros(1),)
                raise error("too much")

        def fail(model, *args, **inputs):
            check(inputs["input_ids"], inputs.get("cache"))
            return forward(model, *args, **inputs)

        def make_failing_step(model, cache, **more):
            step = make_step(model, cache, **more)
            return lambda ids: check(ids, cache) or step(ids)

        monkeypatch.setattr(kind, "forward", fail)
        monkeypatch.setattr(kind, "make_decode_step", make_failing_step)
        monkeypatch.setattr(kind, "supports_decode_step", lambda model: steps)


@pytest.mark.parametrize("steps", [True, False])
def test_a_batch_that_needs_too_much_memory_is_halved(lstm, monkeypatch, steps):
    prompts = [[3 + number, 4] for number in range(8)]
    options = {"suppress_tokens": [2]}
    with serve(lstm) as served:
        alone = [plain(wait(ask(served, prompt, 5, options))) for prompt in prompts]
        faulty = Faulty(monkeypatch, most=3, steps=steps)
        faulty.gate.set()
        with served._batcher._changed:  # so that all are admitted together
            futures = [ask(served, prompt, 5, options) for prompt in prompts]
        assert [plain(wait(future)) for future in futures] == alone
    # Prompts: 8, then 4, 2, 2, 4, 2, 2. The first step fails with 8 and 4; the others are as small from the beginning.
    assert faulty.sizes == [8, 4, 2, 2, 4, 2, 2] + [8, 4, 2, 2, 2, 2] + [2, 2, 2, 2] * 3


@pytest.mark.parametrize(("error", "steps"), [(RuntimeError, True), (MemoryError, True), (MemoryError, False)])
def test_a_row_that_fails_leaves_the_others(lstm, monkeypatch, error, steps):
    options = {"suppress_tokens": [2]}
    with serve(lstm) as served:
        alone = [plain(wait(ask(served, [3 + number, 4], 6, options))) for number in range(5)]
        faulty = Faulty(monkeypatch, poison=30, error=error, steps=steps)
        faulty.gate.set()
        with served._batcher._changed:
            futures = [ask(served, [3 + number, 4], 6, options) for number in range(5)]
            poisoned = [
                ask(served, [30, 4], 6, options),
                ask(served, [4], 6, options | {"sequence_bias": [[[30], 100.0]]}),  # in its second step
                ask(served, [30], 6, {"num_beams": 2}),
            ]
        for future in poisoned:
            with pytest.raises(error, match="too much"):
                wait(future)
        assert [plain(wait(future)) for future in futures] == alone


@pytest.mark.parametrize("kind", ["lstm", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_what_is_cancelled_makes_room(kind, options):
    model = make(kind)
    forever = 50 if kind == "gpt2" else 10**5
    with serve(model, max_batch_size=1) as served:
        running = ask(served, [3], forever, options | {"suppress_tokens": [2]})
        waiting = ask(served, [4], forever, options | {"suppress_tokens": [2]}, n=2 if not options else 1)
        last = ask(served, [5], 3, options)
        assert waiting.cancel() and running.cancel()
        assert wait(last).generated
        assert served.statistics().waiting == 0


def test_the_queue_is_bounded(lstm, monkeypatch):
    faulty = Faulty(monkeypatch)
    with serve(lstm, max_batch_size=1, max_queue=2) as served:
        first = ask(served, [3], 3)
        assert faulty.entered.wait(60)
        futures = [ask(served, [4], 3) for _ in range(2)]
        assert served.statistics().waiting == 2
        for n in (1, 2):
            with pytest.raises(QueueFull, match="2 inputs are waiting already"):
                ask(served, [5], 3, n=n)
        futures[0].cancel()
        futures.append(ask(served, [5], 3))
        faulty.gate.set()
        assert all(wait(future).generated for future in (first, *futures[1:]))


def test_closing_answers_what_there_is(lstm):
    served = LanguageModel(lstm, TOKENIZER, Limits(max_batch_size=2))
    futures = [ask(served, [3 + number], 5) for number in range(5)] + [ask(served, [3], 4, {"num_beams": 2})]
    served.close()
    assert all(future.result(timeout=0).generated for future in futures)
    assert not served.alive
    with pytest.raises(Closed):
        ask(served, [3], 3)
    with pytest.raises(Closed):
        ask(served, [3], 3, {"num_beams": 2})


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_closing_ends_what_takes_too_long(lstm, options):
    served = LanguageModel(lstm, TOKENIZER, Limits(max_batch_size=1))
    futures = [ask(served, [3], 10**5, options | {"suppress_tokens": [2]}) for _ in range(2)]
    served.close(0.05)
    for future in futures:
        with pytest.raises(Closed, match="shut down before"):
            wait(future)


def test_what_is_batched(model):
    """The activations of an int8 export are quantized by the largest in the batch."""
    with serve(model) as served:
        assert isinstance(served._batcher, Batcher) == (model.kind not in ("gpt2", "onnx_int8"))


def test_batches_are_observed(lstm):
    seen = []
    served = LanguageModel(lstm, TOKENIZER, Limits(), observe=partial(lambda *values: seen.append(values)))
    wait(ask(served, [3], 3, n=4))
    wait(ask(served, [3], 3, {"num_beams": 2}))
    served.close()
    assert [size for size, _ in seen] == [4, 1] and all(seconds >= 0 for _, seconds in seen)
