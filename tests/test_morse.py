"""The embedded Morse code: timing by the standard, audio by its settings, rows, and the threshold decoder."""

import hashlib
import json
import random
from itertools import groupby

import numpy as np
import processes
import pytest

from hfseq import metrics
from hfseq.data.embedded import morse
from hfseq.data.embedded.morse import CODE, SAMPLING_RATE, morse_audio, morse_rows, signal_lengths
from hfseq.data.embedded.morse_decoder import decode_morse
from hfseq.data.splits import SPLITS
from hfseq.errors import InputError

# The tree of letters and figures, level by level: from each node a dot goes to the left and a dash to the right.
TREE = " etianmsurwdkgohvf l pjbxcyzq  54 3é  2  +    16=/   ( 7   8 90"
# Other signs as letters sent without gaps between them, as operators remember them.
SIGNS = {".": "aaa", ",": "mim", ":": "os", "?": "imi", "'": "wg", "-": "du", ")": "kk", '"': "rr", "@": "ac"}
SETTINGS = {
    "pitch": 600.0, "pitch_phase": 0.1, "fade": 0.0, "fade_rate": 0.5, "fade_phase": 0.3, "snr": float("inf"),
    "noise_seed": 7,
}  # fmt: skip
STANDARD = {"dash": 3.0, "element_gap": 1.0, "letter_gap": 3.0, "word_gap": 7.0, "jitter": 0.0, "drift": 0.0}


def look_up(signals):
    """Read the signals of one character off the tree."""
    node = 0
    for signal in signals:
        node = 2 * node + (1 if signal == "." else 2)
    if node < len(TREE):
        return TREE[node]
    return next(sign for sign, letters in SIGNS.items() if "".join(map(CODE.get, letters)) == signals)


def read(lengths):
    """Text of lengths in dots, alternately down and up, by the rules of the standard and the tree."""
    words, signals = [""], ""
    for index, length in enumerate([*lengths, 7]):
        if index % 2 == 0:
            signals += {1: ".", 3: "-"}[length]
        elif length != 1:
            words[-1] += look_up(signals)
            signals = ""
            words += [""] * {3: 0, 7: 1}[length]
    return " ".join(words[:-1])


@pytest.fixture(scope="module")
def rows():
    return morse_rows(train_size=1_000, validation_size=100, test_size=200, audio=False)


def test_every_character_is_in_the_tree_or_made_of_letters():
    assert {character: look_up(signals) for character, signals in CODE.items()} == {c: c for c in CODE}
    assert set(TREE.replace(" ", "")) | set(SIGNS) == set(CODE)


def test_lengths_by_the_standard():
    # p: dot dash dash dot, a: dot dash, e: dot, t: dash.
    assert signal_lengths("pa et") == [1, 1, 3, 1, 3, 1, 1, 3, 1, 1, 3, 7, 1, 3, 3]
    assert read(signal_lengths("PaRis, (1/2) é@x.org")) == "paris, (1/2) é@x.org"


def test_words_per_minute():
    """PARIS with the space after it is 50 dots; twenty of it at 20 words per minute last a minute."""
    assert sum(signal_lengths("paris")) + 7 == 50
    text = " ".join(["paris"] * 20)
    _, *durations, _ = key(text, wpm=20)
    assert sum(durations) / SAMPLING_RATE + 7 * 1.2 / 20 == pytest.approx(60)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "''.*single spaces"),
        ("a  b", "single spaces"),
        (" a", "single spaces"),
        ("50 %", "no '%'; it has abcde"),
        ("a\tb", r"no '\\t'"),
        ("naïve", "no 'ï'"),
    ],
)
def test_texts_that_cannot_be_keyed(text, message):
    with pytest.raises(InputError, match=message) as caught:
        signal_lengths(text)
    assert "\n" not in str(caught.value)


def key(text, wpm, **fist):
    return morse.key(text, wpm, **(STANDARD | fist), rng=random.Random(0))


def key_down(samples):
    """Instants at which the envelope, magnitude of the analytic signal, is above half of its maximum."""
    spectrum = np.fft.fft(samples)
    spectrum[len(samples) // 2 + 1 :] = 0
    envelope = np.abs(np.fft.ifft(spectrum))
    return envelope > envelope.max() / 2


@pytest.mark.parametrize("wpm", [20.0, 25.0, 40.0])
@pytest.mark.parametrize("pitch", [400.0, 630.5, 900.0])
def test_texts_are_read_off_the_envelope(wpm, pitch):
    text = "the quick brown fox, (13) jumps' over lazy/dogs: 24567890 x=-?é@+." + ' "'
    samples = morse_audio(SETTINGS | {"durations": key(text, wpm), "pitch": pitch})
    dot = 1.2 * SAMPLING_RATE / wpm
    runs = [len([*run]) for _, run in groupby(key_down(samples))]
    lengths = np.array(runs[1:-1]) / dot
    # Of a few samples at an edge; the shortest dot has 120.
    assert np.abs(lengths - lengths.round()).max() < 0.05
    assert read(lengths.round().astype(int).tolist()) == text


def test_samples_are_the_durations(rows):
    row = rows["train"][0] | {"snr": float("inf"), "fade": 0.0}
    samples = morse_audio(row)
    assert samples.dtype == np.float32 and samples.shape == (sum(row["durations"]),)
    runs = [len([*run]) for _, run in groupby(key_down(samples))]
    assert np.abs(np.array(runs) - row["durations"]).max() <= 4


def test_habits_and_their_limits():
    """Each kind of length is the operator's, and jitter and drift stay within their bounds and reach near them."""
    text = "paris, 73 " * 40 + "e"
    standard = np.array(signal_lengths(text))
    down = np.arange(len(standard)) % 2 == 0
    fist = {"dash": 2.5, "element_gap": 1.3, "letter_gap": 2.8, "word_gap": 6.0}
    dot = 1.2 * SAMPLING_RATE / 25
    habits = np.select(
        [down & (standard == 1), down, standard == 1, standard == 3],
        [1.0, fist["dash"], fist["element_gap"], fist["letter_gap"]],
        fist["word_gap"],
    )
    steady = np.array(key(text, 25, **fist)[1:-1])
    assert np.array_equal(steady, np.rint(dot * habits))
    for name, bound in (("jitter", 0.2), ("drift", 0.3)):
        ratios = np.array(key(text, 25, **fist, **{name: bound})[1:-1]) / steady
        assert 1 - bound - 0.01 < ratios.min() < 1 - 0.85 * bound
        assert 1 + 0.85 * bound < ratios.max() < 1 + bound + 0.01
        # More signals are sent while they are short.
        assert ratios.mean() == pytest.approx(1, abs=0.01 if name == "jitter" else 0.05)
        # Jitter is another one each time; a drift is slow.
        assert (np.abs(np.diff(ratios)).mean() > 0.05) == (name == "jitter")


def test_silence_around_the_text():
    ends = [morse.key("e", 20, **STANDARD, rng=random.Random(seed))[::2] for seed in range(200)]
    assert 0.1 <= np.min(ends) / SAMPLING_RATE < 0.11 and 0.39 < np.max(ends) / SAMPLING_RATE <= 0.4


@pytest.mark.parametrize("snr", [-3.0, 0.0, 10.0])
def test_signal_to_noise_ratio(snr):
    """Power of the tone while the key is down, to the power of the noise, at the level that is stated."""
    durations = [SAMPLING_RATE, 4 * SAMPLING_RATE, SAMPLING_RATE]
    samples = morse_audio(SETTINGS | {"durations": durations, "snr": snr})
    noise = np.concatenate((samples[: SAMPLING_RATE - 50], samples[-SAMPLING_RATE + 50 :]))
    both = samples[SAMPLING_RATE + 50 : -SAMPLING_RATE - 50]
    power, noise_power = np.mean(np.square(both, dtype=float)), np.mean(np.square(noise, dtype=float))
    assert np.sqrt(power) == pytest.approx(0.1, rel=0.03)
    assert 10 * np.log10(power / noise_power - 1) == pytest.approx(snr, abs=0.4)
    # White: each quarter of the band has a quarter of the power.
    quarters = np.split(np.abs(np.fft.rfft(noise)[1 : len(noise) // 8 * 4 + 1]) ** 2, 4)
    assert [part.sum() for part in quarters] == pytest.approx([sum(map(np.sum, quarters)) / 4] * 4, rel=0.15)
    other = morse_audio(SETTINGS | {"durations": durations, "snr": snr, "noise_seed": 8})
    assert abs(np.corrcoef(samples[: SAMPLING_RATE - 50], other[: SAMPLING_RATE - 50])[0, 1]) < 0.1


def test_tone_and_fades():
    durations = [0, 8 * SAMPLING_RATE, 0]
    samples = morse_audio(SETTINGS | {"durations": durations, "fade": 6.0})
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert spectrum.argmax() / 8 == pytest.approx(SETTINGS["pitch"], abs=0.125)
    frames = np.sqrt(np.mean(np.square(samples.reshape(-1, 200), dtype=float), axis=1))
    decibels = 20 * np.log10(frames[1:-1] / 0.1)
    assert decibels.max() == pytest.approx(0, abs=0.05) and decibels.min() == pytest.approx(-6, abs=0.05)
    # Half a hertz: equal after two seconds, which are 40 frames, and opposite after one.
    assert np.abs(decibels[40:] - decibels[:-40]).max() < 0.05
    assert decibels[20:] + decibels[:-20] == pytest.approx(np.full(len(decibels) - 20, -6.0), abs=0.1)


def test_edges_are_smooth():
    """A tone keyed hard has clicks far from its pitch, which raised-cosine edges lower by 40 dB."""
    samples = morse_audio(SETTINGS | {"durations": key("paris paris", 30)})
    tone = np.sin(2 * np.pi * 600 / SAMPLING_RATE * np.arange(len(samples)))
    hard = np.repeat(np.arange(len(key("paris paris", 30))) % 2, key("paris paris", 30)) * tone * 0.1 * np.sqrt(2)
    far = [np.sum(np.abs(np.fft.rfft(x)[int(1_400 * len(x) / SAMPLING_RATE) :]) ** 2) for x in (samples, hard)]
    assert far[0] < 1e-4 * far[1]


def test_rows(rows):
    assert list(rows) == list(SPLITS) and {split: len(rows[split]) for split in rows} == {
        "train": 1_000,
        "validation": 100,
        "test": 200,
    }
    for row in rows["train"]:
        assert all(len(word) <= 15 and set(word) <= set(CODE) for word in row["text"].split())
        assert len(row["durations"]) == len(signal_lengths(row["text"])) + 2 and min(row["durations"]) > 0
    for name, bounds in (("wpm", morse.WORDS_PER_MINUTE), ("pitch", morse.PITCH), ("snr", morse.SNR)):
        values = rows["train"][name]
        assert bounds[0] <= min(values) and max(values) <= bounds[1]
        assert max(values) - min(values) > 0.97 * (bounds[1] - bounds[0])
    counts = np.bincount([len(text.split()) for text in rows["train"]["text"]], minlength=6)
    assert counts[0] == 0 and len(counts) == 6 and (counts[1:] > 5).all() and 2.2 < counts @ range(6) / 1_000 < 2.6
    assert set("abcdefghijklmnopqrstuvwxyz0123.,-()\"'") <= set("".join(rows["train"]["text"]))


def test_no_text_is_in_two_splits():
    texts = morse._texts()
    flat = [text for split in SPLITS for text in texts[split]]
    assert len(set(flat)) == len(flat) and min(len(texts[split]) for split in SPLITS) > 1_000


def test_how_many_test_words_are_new():
    """The shares that the docstring of `morse_rows` states."""
    rows = morse_rows(audio=False)
    known = {word for text in rows["train"]["text"] for word in text.split()}
    words = [word for text in rows["test"]["text"] for word in text.split()]
    assert np.mean([word not in known for word in words]) == pytest.approx(0.25, abs=0.04)
    assert np.mean([word not in known for word in set(words)]) == pytest.approx(0.40, abs=0.04)


def test_paragraphs_are_cut_at_words_that_cannot_be_keyed(monkeypatch):
    monkeypatch.setattr(morse, "_size", lambda rng: 3)
    document = "The *first* of ``all`` words\nwith foo_bar and\n\nno (other), O’Neil’s “quotes” ---- end."
    assert list(morse._cut(document)) == [
        *("the first of", "all words with", "and"),
        *("no (other), o'neil's", '"quotes"', "end."),
    ]


def test_audio_column():
    sizes = {"train_size": 3, "validation_size": 1, "test_size": 2, "seed": 5}
    bare, rows = morse_rows(**sizes, audio=False), morse_rows(**sizes)
    for split in SPLITS:
        assert rows[split].remove_columns("audio").to_dict() == bare[split].to_dict()
        for row, own in zip(rows[split].with_format("numpy"), bare[split], strict=True):
            assert row["audio"].dtype == np.float32 and np.array_equal(row["audio"], morse_audio(own))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"test_size": 0}, "test size: 0 is too few"), ({"validation_size": 10**6}, "1000000 is more than the")],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(InputError, match=message):
        morse_rows(**{"train_size": 1, "validation_size": 1, "test_size": 1} | sizes, audio=False)


def test_deterministic_in_seed_and_across_processes():
    code = (
        "import hashlib, json; from hfseq.data.embedded.morse import morse_rows;"
        "rows = morse_rows(train_size=400, validation_size=20, test_size=40, seed=3, audio=False);"
        "print(hashlib.sha256(json.dumps([rows[s].to_dict() for s in rows]).encode()).hexdigest(), hash('a'))"
    )
    sizes = {"train_size": 400, "validation_size": 20, "test_size": 40, "audio": False}
    here, other = (morse_rows(**sizes, seed=seed) for seed in (3, 4))
    there, seed = processes.run("-c", code).stdout.split()
    assert there == hashlib.sha256(json.dumps([here[s].to_dict() for s in here]).encode()).hexdigest()
    assert int(seed) != hash("a"), "the process hashes as this one does, the test would show nothing"
    assert here["test"]["text"] != other["test"]["text"]
    assert morse_rows(**sizes | {"train_size": 2}, seed=3)["test"].to_dict() == here["test"].to_dict()


def test_keying_is_that_of_every_release_and_machine(monkeypatch):
    """Settings and durations are the same everywhere; samples but for the last bits, which depend on the processor."""
    texts = [" ".join(f"{a}{b}x {b}{a}".split()[: 1 + (a < b)]) for a in "aeit05,?" for b in "mno(=)/.19"]
    monkeypatch.setattr(morse, "_texts", lambda: dict.fromkeys(SPLITS, texts))
    rows = morse_rows(train_size=60, validation_size=10, test_size=20, seed=1, audio=False)
    digest = hashlib.sha256(json.dumps({split: rows[split].to_list() for split in SPLITS}).encode()).hexdigest()
    assert digest == "1d3f87fa83d50ec704fd5df777f956d537b057bbefe7fc200735880cfc976d1f"
    samples = morse_audio(rows["test"][0])[::910][:8]
    expected = [-0.01977, 0.0646122, 0.0101736, 0.0008961, 0.0976227, 0.050977, -0.0196965, 0.0317144]
    assert samples == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("text", ["paris", "e", "tt", "eeee", "ttt mmm", "e e e", "the end. (see 4.2)", "sos sos"])
def test_clean_code_is_decoded(text):
    for wpm, pitch in ((20, 450.0), (30, 600.0), (40, 812.5)):
        samples = morse_audio(SETTINGS | {"durations": key(text, wpm), "pitch": pitch, "snr": 20.0})
        assert decode_morse(samples) == text


def test_decoding_of_nothing():
    for samples in (np.zeros(0, np.float32), np.zeros(3, np.float32), np.zeros(9_000, np.float32)):
        assert decode_morse(samples) == ""
    noise = np.random.default_rng(0).standard_normal(9_000).astype(np.float32)
    assert set(decode_morse(noise)) <= {*CODE, " "}


def test_the_decoder_is_a_fair_baseline(rows):
    """A steady hand without noise is read without an error; noise, fists and drifts cost some percent."""
    test = rows["test"].select(range(100))
    found = [decode_morse(morse_audio(row)) for row in test]
    assert 3 < metrics.cer(found, test["text"])["score"] < 9
    clean = [decode_morse(morse_audio(SETTINGS | {"durations": key(text, 30), "snr": 12.0})) for text in test["text"]]
    assert metrics.cer(clean, test["text"])["score"] < 0.1
