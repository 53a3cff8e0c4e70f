"""Dynamic batching: what happens to inputs that fail, are cancelled, or find the queue full or closed."""

import asyncio
import threading

import pytest
import torch
from served_models import language_model, translator

from hfseq.models import generation
from hfseq.serving.dynamic import Closed, DynamicBatcher, Item, QueueFull
from hfseq.serving.limits import Limits
from hfseq.serving.served import load_served


@pytest.fixture
def make(script):
    made = []

    def batcher(**options):
        made.append(DynamicBatcher(script.run, **options))
        return made[-1]

    yield batcher
    script.go.set()
    for one in made:
        one.close(60)


def submit(batcher, script, texts, **parameters):
    items, _ = script.items(list(texts), parameters)
    batcher.submit(items)
    return items


def results(items):
    return [item.future.result(60) for item in items]


def held(batcher, script):
    """Keep the batcher busy with an input of its own until `script.go` is set."""
    script.go.clear()
    items = submit(batcher, script, ["first"])
    script.begun()
    return items


def test_what_waits_is_one_batch_by_options_and_length(make, script):
    batcher = make(max_batch_size=3)
    first = held(batcher, script)
    texts = ["aaaa", "b", "cc", "ddd", "eeee", "f"]
    items = submit(batcher, script, texts)
    others = submit(batcher, script, ["other"], other=True)
    assert batcher.waiting == 7
    script.go.set()
    assert results(first + items + others) == ["FIRST", *map(str.upper, texts), "OTHER"]
    # The oldest, and those whose lengths are nearest to its own.
    assert script.calls == [["first"], ["aaaa", "eeee", "ddd"], ["b", "f", "cc"], ["other"]]


def test_one_input_at_fault_fails_alone(make, script):
    batcher = make(max_batch_size=32)

    def fail(texts):
        if "bad" in texts:
            raise ValueError("bad")

    script.fails = fail
    first = held(batcher, script)
    texts = [f"text {number}" for number in range(31)]
    texts.insert(11, "bad")
    items = submit(batcher, script, texts)
    script.go.set()
    results(first)
    assert results(items[:11] + items[12:]) == [text.upper() for text in texts if text != "bad"]
    with pytest.raises(ValueError, match="bad"):
        items[11].future.result(60)
    # The whole, and two halves at each of the five levels.
    assert len(script.calls) == 1 + 1 + 2 * 5


def test_out_of_memory_halves_the_batch(make, script):
    batcher = make(max_batch_size=32)

    def fail(texts):
        if len(texts) > 4:
            raise torch.OutOfMemoryError("too much")

    script.fails = fail
    first = held(batcher, script)
    texts = [f"text {number}" for number in range(32)]
    items = submit(batcher, script, texts)
    script.go.set()
    assert results(first + items) == ["FIRST", *map(str.upper, texts)]
    assert sorted(map(len, script.calls[1:])) == sorted([32, 16, 16, *[8] * 4, *[4] * 8])


def test_memory_that_never_suffices_ends(make, script):
    def fail(texts):
        raise torch.OutOfMemoryError("too much")

    script.fails = fail
    items = submit(make(), script, ["a"])
    with pytest.raises(torch.OutOfMemoryError):
        items[0].future.result(60)
    assert script.calls == [["a"]]


def test_too_few_results_are_an_error(make, script):
    batcher = DynamicBatcher(lambda items: ["only one"])
    items = [Item("a"), Item("b")]
    batcher.submit(items)
    # Alone, each has the one result.
    assert results(items) == ["only one"] * 2
    batcher._run = lambda items: []
    (item,) = items = [Item("a")]
    batcher.submit(items)
    with pytest.raises(RuntimeError, match="0 results for 1 inputs"):
        item.future.result(60)
    batcher.close(60)


def test_cancelled_inputs_leave_the_queue(make, script):
    batcher = make(max_batch_size=2, max_queue=4)
    first = held(batcher, script)
    items = submit(batcher, script, "abcd")
    with pytest.raises(QueueFull, match="4 inputs are waiting"):
        submit(batcher, script, "e")
    for item in items[:3]:
        assert item.future.cancel()
    assert batcher.waiting == 1
    items += submit(batcher, script, "efg")
    with pytest.raises(QueueFull):
        submit(batcher, script, "h")
    script.go.set()
    assert results(first + items[3:]) == ["FIRST", *"DEFG"]
    assert script.calls == [["first"], ["d", "e"], ["f", "g"]]


def test_a_batcher_survives_a_queue_of_cancelled_inputs(make, script):
    batcher = make(max_queue=4, max_delay=60)
    first = held(batcher, script)
    pair = submit(batcher, script, "ab")
    script.go.set()
    results(first + pair)  # a pair: from now on batches wait for a second input
    (alone,) = submit(batcher, script, "c")
    alone.future.cancel()
    with pytest.raises(QueueFull):
        submit(batcher, script, "123456")  # which throws out what is cancelled
    assert results(submit(batcher, script, "de")) == ["D", "E"]
    assert batcher.alive


def test_what_is_cancelled_while_it_runs_is_not_run_again(make, script):
    batcher = make()
    first = held(batcher, script)
    items = submit(batcher, script, "abcdef")

    def fail(texts):
        if len(texts) == 6:
            items[1].future.cancel()
            items[5].future.cancel()
            raise ValueError("once more in halves")

    script.fails = fail
    script.go.set()
    assert results(first + [items[row] for row in (0, 2, 3, 4)]) == ["FIRST", *"ACDE"]
    assert script.calls == [["first"], [*"abcdef"], ["a", "c"], ["d", "e"]]


def test_closing_answers_what_waits(make, script):
    batcher = make(max_batch_size=1)
    items = held(batcher, script) + submit(batcher, script, "ab")
    closing = threading.Thread(target=batcher.close)
    script.go.set()
    closing.start()
    assert results(items) == ["FIRST", "A", "B"]
    closing.join(60)
    assert not batcher.alive
    with pytest.raises(Closed):
        submit(batcher, script, "c")


def test_closing_fails_what_is_not_done_in_time(make, script):
    batcher = make(max_batch_size=1)
    items = held(batcher, script) + submit(batcher, script, "ab")
    batcher.close(0)
    for item in items:
        with pytest.raises(Closed):
            item.future.result(0)
    script.go.set()
    batcher._thread.join(60)
    assert script.calls == [["first"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_ended(make, script):
    def fail(texts):
        raise SystemExit

    batcher = make(max_batch_size=1)
    items = held(batcher, script) + submit(batcher, script, "ab")
    script.fails = fail
    script.go.set()
    for item in items:
        with pytest.raises(Closed):
            item.future.result(60)
    batcher._thread.join(60)
    assert not batcher.alive


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_generation_ends_when_nobody_waits(tmp_path, settings):
    begun = threading.Semaphore(0)
    folder = translator(tmp_path / "model")
    limits = Limits(max_new_tokens=10**9)
    served = load_served(str(folder), device="cpu", limits=limits, observe=lambda *_: begun.release())
    # Never the end, so that it goes on forever.
    served.model.generation_config.suppress_tokens = [0, 1, 2, 3]
    endless, _ = served.predictor.items(["a b", "c"], {"max_new_tokens": 10**9, **settings})
    served.batcher.submit(endless)
    assert begun.acquire(timeout=60)
    for item in endless:
        item.future.cancel()
    short, _ = served.predictor.items("a b", {"max_new_tokens": 2})
    served.batcher.submit(short)
    assert len(short[0].future.result(60)[0]["translation_text"].split()) == 2
    served.close(60)


@pytest.mark.parametrize(("beams", "name"), [(1, "decode"), (3, "beam_search")])
def test_generation_uses_the_loops_of_the_models(tmp_path, beams, name, monkeypatch):
    served = load_served(str(translator(tmp_path / "model")), device="cpu")
    calls, loop = [], getattr(generation, name)
    monkeypatch.setattr(generation, name, lambda *args, **kwargs: (calls.append(1), loop(*args, **kwargs))[1])
    items, _ = served.predictor.items(["a b", "c"], {"num_beams": beams})
    served.batcher.submit(items)
    assert all(results(items)) and calls == [1]
    served.close(60)


@pytest.mark.parametrize("make_one", [translator, language_model])
def test_one_thread_reads_the_requests_to_a_model(make_one, tmp_path, monkeypatch):
    served = load_served(str(make_one(tmp_path / "model")), device="cpu")
    seen = []
    monkeypatch.setattr(served.predictor, "items", lambda *_: seen.append(threading.current_thread()))
    asyncio.run(served.read("a", {}))
    if served.language_model is not None:
        # OpenAI's requests are tokenized by the same tokenizer.
        asyncio.run(served.language_model.reader.run(served.predictor.items))
    assert len({*seen}) == 1
    served.close(60)
    seen[0].join(60)
    assert not seen[0].is_alive()
    with pytest.raises(Closed):
        asyncio.run(served.read("a", {}))
