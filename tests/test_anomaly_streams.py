"""Streams of anomaly scores: equal to one pass, continued after a restart, of constant size; and what they compute."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open

import hfseq
from hfseq.data.anomalies import Recording
from hfseq.errors import InputError
from hfseq.inference.anomalies import (
    NUM_TIME_FEATURES,
    Likelihood,
    Scale,
    Settings,
    Stream,
    time_features,
    token_losses,
)
from hfseq.tokenization import train_tokenizer

HOUR = 3600.0
WORDS = ("open", "read", "write", "close")


@pytest.fixture(scope="module", params=["Gru", "Lstm", "Cnn"])
def forecaster(request):
    torch.manual_seed(0)
    options = {"kernel_size": 3} if request.param == "Cnn" else {}
    config = getattr(hfseq, f"{request.param}Config")(
        **{"input_size": 2, "hidden_size": 12, "lags_sequence": [1, 5], "scaling": None, **options},
        num_time_features=NUM_TIME_FEATURES,
    )
    return getattr(hfseq, f"{request.param}ForPrediction")(config).eval()


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(0)
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, model="whitespace", vocab_size=20)
    model = hfseq.LstmForCausalLM(hfseq.LstmConfig(vocab_size=len(tokenizer), hidden_size=12, bos_token_id=1))
    return model.eval(), tokenizer


def settings(**values):
    scales = {"a": Scale((1.0, 2.0), (2.0, 1.0), 20.0)}
    return Settings(**{"columns": ("x", "y"), "scales": scales, "short_window": 3, "long_window": 50, **values})


def numbers(count=120, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, 2)) * 2 + 1
    values[[20, 21, 70], 1] = np.nan
    values[100] = 40
    return values, HOUR * np.arange(count)


def events(count=90, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(" ".join(rng.choice([*WORDS, "unseen"], size=rng.integers(1, 4))) for _ in range(count))


def in_chunks(stream, sizes, values, times, texts=None):
    parts, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        given = None if texts is None else texts[part]
        parts.append(stream.push(None if values is None else values[part], times[part], given))
        start += size
    assert start == len(times)
    return np.concatenate(parts)


SIZES = ([120], [1] * 120, [7, 0, 50, 1, 62])


def test_a_stream_of_numbers_scores_as_one_pass(forecaster):
    values, times = numbers()
    found = [in_chunks(Stream(forecaster, settings(), "a"), sizes, values, times) for sizes in SIZES]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)
    assert found[0][100:103].max() > 1


def test_surprise_is_the_negative_log_likelihood(forecaster):
    values, times = numbers()
    own = settings()
    scaled = (values - np.array([1.0, 2.0])) / np.array([2.0, 1.0])
    features = torch.tensor(time_features(times, 20.0))[None].float()
    loc, scale = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    expected = -forecaster.log_likelihood(torch.tensor(scaled)[None].float(), features, loc=loc, scale=scale)[0]
    found = Stream(forecaster, own, "a").surprise(values, times)
    missing = np.isnan(values)
    assert (np.isnan(found) == missing).all()
    np.testing.assert_allclose(found[~missing], expected.detach().numpy()[~missing], atol=1e-4)


@pytest.mark.parametrize("kind", ["numbers", "events"])
def test_a_restart_changes_nothing(forecaster, language_model, kind, tmp_path):
    path = tmp_path / "state.safetensors"
    if kind == "numbers":
        values, times = numbers()
        texts, make = None, lambda: Stream(forecaster, settings(), "a")
    else:
        texts, values = events(), None
        times = HOUR * np.arange(len(texts))
        make = lambda: Stream(language_model[0], settings(columns=(), event_columns=("event",)), "", language_model[1])  # noqa: E731
    whole = in_chunks(make(), [len(times)], values, times, texts)
    stream, first = make(), 41
    part = [None if one is None else one[:first] for one in (values, times, texts)]
    before = stream.push(*part)
    assert not stream.raises_alarm(1.0, times[0]) and math.isinf(stream.alarm_since)
    stream.alarm_since = 7.0
    stream.save(path)
    again = make()
    again.load(path)
    assert (again.steps, again.last_time, again.alarm_since) == (41, times[40], 7.0)
    after = again.push(*(None if one is None else one[first:] for one in (values, times, texts)))
    np.testing.assert_allclose(np.concatenate([before, after]), whole, atol=1e-4)
    # The stream that was saved goes on, too.
    np.testing.assert_allclose(stream.push(*(None if o is None else o[first:] for o in (values, times, texts))), after)
    assert not list(tmp_path.glob("*.part"))


def test_the_state_has_a_constant_size(forecaster, tmp_path):
    values, times = numbers(400)
    stream, sizes = Stream(forecaster, settings(), "a"), []
    for start in (0, 200):
        stream.push(values[start : start + 200], times[start : start + 200])
        stream.save(tmp_path / "state")
        with safe_open(tmp_path / "state", "pt") as file:
            sizes.append({name: tuple(file.get_tensor(name).shape) for name in file.keys()})  # noqa: SIM118
    assert sizes[0] == sizes[1]


def test_states_of_others_are_refused(forecaster, language_model, tmp_path):
    values, times = numbers()
    path = tmp_path / "state"
    with pytest.raises(InputError, match="no step has been read yet"):
        Stream(forecaster, settings(), "a").save(path)
    stream = Stream(forecaster, settings(), "a")
    stream.push(values, times)
    stream.save(path)
    other = type(forecaster)(forecaster.config).eval()
    again = settings(scales={"b": Scale((1.0, 2.0), (2.0, 1.5), 20.0)})
    for stranger in (Stream(other, settings(), "a"), Stream(forecaster, again, "b")):
        with pytest.raises(InputError, match="the state belongs to another detector, or to another series"):
            stranger.load(path)
    with pytest.raises(InputError, match="nowhere.state: the state cannot be written"):
        stream.save(tmp_path / "nowhere" / "state")
    assert len(stream.cache.layers) == forecaster.config.num_hidden_layers + 1
    with pytest.raises(InputError, match=r"\(3, 2\) steps and channels, this detector \(4, 2\)"):
        Stream(forecaster, settings(short_window=4), "a").load(path)
    hfseq.save_state(stream.cache, path)
    with pytest.raises(InputError, match="a state, but not of a stream of anomaly detection"):
        Stream(forecaster, settings(), "a").load(path)
    (tmp_path / "text").write_text("state")
    with pytest.raises(InputError, match="no state that save_state wrote"):
        Stream(forecaster, settings(), "a").load(tmp_path / "text")


def test_events_have_the_likelihood_of_their_tokens(language_model):
    model, tokenizer = language_model
    texts = events()
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids = torch.tensor([[1, *(token for row in rows for token in row)]])
    log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    expected = [-part.sum().item() for part in log_p.split([len(row) for row in rows])]
    stream = Stream(model, settings(columns=(), event_columns=("event",)), "", tokenizer)
    found = [stream.surprise(None, np.zeros(len(part)), part) for part in (texts[:1], texts[1:50], texts[50:])]
    np.testing.assert_allclose(np.concatenate(found)[:, 0], expected, rtol=1e-4)


def test_a_transformer_reads_its_last_tokens_again():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=1)).eval()
    ids = torch.randint(11, (30,)).tolist()
    found = token_losses(model, ids[:-1], ids[1:], None)
    assert found.shape == (29,)
    for step in range(29):
        block = step // 4 * 4
        inputs = torch.tensor([ids[max(0, block - 4) : step + 1]])
        expected = -model(inputs).logits[0, -1].log_softmax(-1)[ids[step + 1]].item()
        assert found[step] == pytest.approx(expected, rel=1e-4)


# Against its own distribution


def likelihood_by_hand(values, short, long):
    """Standard scores of one channel without missing values, with plain sums while the long window is not full."""
    scores, clipped = [], []
    for step, value in enumerate(values):
        mean, spread = (np.mean(clipped), np.std(clipped)) if clipped else (0.0, 0.0)
        recent = np.mean(values[max(0, step - short + 1) : step + 1])
        known = step >= 30 and spread > 0
        scores.append((recent - mean) / spread if known else 0.0)
        clipped.append(min(value, mean + 8 * spread) if known else value)
    return scores


def test_the_mean_of_the_last_surprises_against_all_before():
    values = np.random.default_rng(0).exponential(size=80)
    values[60] = 30
    found = Likelihood(1, 4, 1000).push(values[:, None])[:, 0]
    np.testing.assert_allclose(found, likelihood_by_hand(values, 4, 1000), atol=1e-9)
    assert found[60:64].min() > 3 and found[:30].max() == 0


def test_the_long_past_fades():
    values = np.concatenate([np.full(300, 5.0), np.zeros(300)]) + np.random.default_rng(0).normal(size=600)
    likelihood = Likelihood(1, 1, 50)
    likelihood.push(values[:, None])
    assert abs(likelihood.mean[0]) < 0.5 and 0.5 < likelihood.variance[0] < 1.5


def test_missing_values_leave_their_channel_alone():
    values = np.random.default_rng(0).normal(size=(100, 2))
    gaps = values.copy()
    gaps[40:60, 0] = np.nan
    both = Likelihood(2, 1, 1000)
    found = both.push(gaps)
    assert (found[40:60, 0] == 0).all() and both.seen.tolist() == [80, 100]
    alone = Likelihood(1, 1, 1000)
    np.testing.assert_allclose(found[:, 1], alone.push(values[:, 1:])[:, 0])
    without = Likelihood(1, 1, 1000)
    kept = np.delete(values[:, :1], np.s_[40:60], axis=0)
    np.testing.assert_allclose(np.delete(found[:, 0], np.s_[40:60]), without.push(kept)[:, 0])


def test_scaling_of_numbers_with_gaps():
    values = np.array([[0.0, 7.0], [np.nan, 7.0], [np.e**2 - 1, 7.0]])
    scale = Scale.fit(values, 1.0, log=True)
    assert scale.loc == pytest.approx((1.0, math.log(8))) and scale.scale == pytest.approx((1.0, 1.0))
    np.testing.assert_allclose(scale.apply(values, log=True)[:, 0], [-1, np.nan, 1])


def test_scaling_of_very_small_and_very_large_numbers():
    tiny = np.array([[0.0], [1e-20], [2e-20]])
    np.testing.assert_allclose(
        Scale.fit(tiny, 1.0, log=False).apply(tiny, log=False)[:, 0], [-(1.5**0.5), 0, 1.5**0.5]
    )
    assert Scale.fit(np.full((3, 1), 0.1), 1.0, log=False).scale == (1.0,)
    with pytest.raises(ValueError, match="the values overflow"):
        Scale.fit(np.array([[1e300], [-1e300]]), 1.0, log=False)


def test_a_huge_value_does_not_end_a_stream(forecaster):
    values, times = numbers()
    for step in (10, 100):
        changed = values.copy()
        changed[step, 0] = 1e300
        stream = Stream(forecaster, settings(), "a")
        scores = stream.push(changed, times)
        assert np.isfinite(scores).all() and np.isfinite(stream.likelihood.variance).all()
        # One in the first steps makes the stream deaf for long, yet not for ever.
        assert scores[step] > 2 or step < 30


def test_rhythms_that_training_has_not_shown_twice_are_no_features():
    times = 86_400 * 4 + HOUR * np.arange(24 * 14)  # from a Monday on
    assert not time_features(times, 1.9).any()
    days = time_features(times, 2.0)
    assert days[:, :8].any() and not days[:, 8:].any()
    np.testing.assert_allclose(days[:24], days[24:48], atol=1e-9)
    weeks = time_features(times, 14.0)
    assert weeks[:, 8:].sum() == len(times) and weeks[0, 8] == weeks[24 * 6, 14] == 1


def test_an_alarm_holds(forecaster):
    stream = Stream(forecaster, settings(threshold=4.0, hold=10.0), "a")
    raised = [stream.raises_alarm(score, time) for time, score in enumerate([1, 5, 9, 1, 5, 5, 5, 5, 5, 5, 5, 5, 5])]
    assert [time for time, alarm in enumerate(raised) if alarm] == [1, 12]


def test_settings_are_saved_beside_the_model(tmp_path):
    own = settings(threshold=3.5, event_columns=None)
    own.save(tmp_path)
    assert Settings.load(tmp_path) == own
    assert own.scale_of("other") == own.scales["a"]
    two = settings(scales={name: own.scales["a"] for name in "ab"})
    with pytest.raises(InputError, match="series 'other': the detector was trained on a, b"):
        two.scale_of("other")
    with pytest.raises(InputError, match="no detector.json; give the output directory"):
        Settings.load(tmp_path / "none")
    (tmp_path / "detector.json").write_text('{"scales": {}, "what": 1}')
    with pytest.raises(InputError, match="detector.json: no settings of a detector"):
        Settings.load(tmp_path)


def test_a_recording_continues_the_stream(forecaster):
    values, times = numbers()
    recording = Recording("a", ("x", "y"), values, times)
    stream = Stream(forecaster, settings(), "a")
    found = np.concatenate([stream.read(recording.part(0, 50)), stream.read(recording.part(50, 120))])
    np.testing.assert_allclose(found, Stream(forecaster, settings(), "a").read(recording), atol=1e-4)
