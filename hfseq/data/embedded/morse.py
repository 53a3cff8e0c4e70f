"""Embedded speech recognition data: Morse code, keyed by a program, in noise.

The audio is synthetic: texts of the Python documentation, keyed in International Morse code by the rules of
Recommendation ITU-R M.1677-1 (10/2009, https://www.itu.int/rec/R-REC-M.1677), with speed, pitch and unsteady hand of a
different imagined operator in each row, then faded and buried in noise. Transcribing it is a true task of sequence
recognition, with an alignment to be learned and a code to be found in the sound, but it is not speech: a score here
says nothing about recognising voices.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfseq.data.embedded.documentation import documentation_rows
from hfseq.data.splits import SPLITS, draw_splits, sample_rows
from hfseq.errors import InputError
from hfseq.lazy import datasets

SAMPLING_RATE = 4_000
"""Samples per second of all audio; tones lie below 1 kHz, and 2 kHz is about the bandwidth of a radio receiver."""

CODE = {
    "a": ".-", "b": "-...", "c": "-.-.", "d": "-..", "e": ".", "é": "..-..", "f": "..-.", "g": "--.", "h": "....",
    "i": "..", "j": ".---", "k": "-.-", "l": ".-..", "m": "--", "n": "-.", "o": "---", "p": ".--.", "q": "--.-",
    "r": ".-.", "s": "...", "t": "-", "u": "..-", "v": "...-", "w": ".--", "x": "-..-", "y": "-.--", "z": "--..",
    "1": ".----", "2": "..---", "3": "...--", "4": "....-", "5": ".....",
    "6": "-....", "7": "--...", "8": "---..", "9": "----.", "0": "-----",
    ".": ".-.-.-", ",": "--..--", ":": "---...", "?": "..--..", "'": ".----.", "-": "-....-", "/": "-..-.",
    "(": "-.--.", ")": "-.--.-", '"': ".-..-.", "=": "-...-", "+": ".-.-.", "@": ".--.-.",
}  # fmt: skip
"""Character to its dots and dashes, from section 1.1 of the recommendation: letters, figures and punctuation.

The multiplication sign is left out, because its signal is that of x."""

WORDS_PER_MINUTE = (25.0, 40.0)
"""Range of the keying speed; at 24 words per minute a dot lasts 50 ms."""
PITCH = (500.0, 700.0)
"""Range of the tone's frequency in Hz."""
SNR = (2.0, 15.0)
"""Range of the signal-to-noise ratio in dB: power of the tone while the key is down and nothing fades, over the power
of the noise in the whole band, 2 kHz wide."""

_DEFAULT_SIZES = {"train": 4_000, "validation": 200, "test": 500}
# An operator's habitual lengths in dots; by the recommendation they are 3, 1, 3 and 7.
_FIST = {"dash": (2.4, 3.8), "element_gap": (0.75, 1.4), "letter_gap": (2.3, 4.2), "word_gap": (5.5, 10.0)}
# Largest relative deviation of a single length from the operator's habit, and of the speed in the course of a text.
_JITTER, _DRIFT = 0.25, 0.35
# Seconds of a swing of the speed, up and down.
_DRIFT_PERIOD = (2.0, 6.0)
# Largest depth of the fades in dB, and range of their frequency in Hz.
_FADE, _FADE_RATE = 6.0, (0.1, 1.0)
# Seconds of silence before the first and after the last signal, and of the rise and the fall of a tone.
_SILENCE, _EDGE = (0.1, 0.4), 0.005
# Root mean square of the samples while the key is down.
_LEVEL = 0.1

_MOST_WORDS = 5
_LONGEST_WORD = 15
_MARKUP = str.maketrans({"’": "'", "“": '"', "”": '"', "`": None, "*": None})
# Opening punctuation, parts joined by signs as in "utf-8", "os.path" and "and/or", closing punctuation.
_WORD = re.compile(r"""["'(]{0,2}[a-z0-9]+(?:[-'/.:=][a-z0-9]+)*[)"'.,:?]{0,3}""")


def signal_lengths(text: str) -> list[int]:
    """Return the lengths of the signals and gaps of a text in dots, by sections 1 and 2 of ITU-R M.1677-1.

    A dash equals three dots; the space between the signals of a letter equals one dot, between two letters three dots,
    and between two words seven.

    Args:
        text: Words of the characters of `CODE` in either case, with single spaces between them.

    Returns:
        The lengths, alternately with the key down and up; the first and the last are down.

    Raises:
        InputError: A character has no code, or the text is empty or has other than single spaces between words.
    """
    lengths: list[int] = []
    for word in text.lower().split(" "):
        if not word:
            raise InputError(f"{text!r}: nothing to key; give words with single spaces between them")
        for character in word:
            if character not in CODE:
                raise InputError(f"{text!r}: Morse code has no {character!r}; it has {''.join(CODE)}")
            for signal in CODE[character]:
                lengths += (3 if signal == "-" else 1, 1)
            lengths[-1] = 3
        lengths[-1] = 7
    return lengths[:-1]


def key(
    text: str,
    wpm: float,
    *,
    dash: float,
    element_gap: float,
    letter_gap: float,
    word_gap: float,
    jitter: float,
    drift: float,
    rng: random.Random,
) -> list[int]:
    """Key a text as an operator with these habits would, and draw the deviations from them.

    Only basic arithmetic is used, so the result is the same on every machine.

    Args:
        text: As for `signal_lengths`.
        wpm: Speed in words per minute, of 50 dots each ("PARIS" with the space after it), so a dot lasts 1.2 s / wpm.
        dash: Length of a dash in dots.
        element_gap: Length of the gap between signals of a letter in dots.
        letter_gap: Length of the gap between letters in dots.
        word_gap: Length of the gap between words in dots.
        jitter: Largest relative deviation of a length, triangularly distributed about 0.
        drift: Largest relative deviation of all lengths together, which swings up and down as the speed does.
        rng: Source of the deviations and of the silence around the text.

    Returns:
        Durations in samples, alternately with the key up and down; the first and the last are silence.

    Raises:
        InputError: As for `signal_lengths`.
    """
    dot = 1.2 * SAMPLING_RATE / wpm
    habits = {1: element_gap, 3: letter_gap, 7: word_gap}, {1: 1.0, 3: dash}
    durations = [round(SAMPLING_RATE * rng.uniform(*_SILENCE))]
    period, phase = SAMPLING_RATE * rng.uniform(*_DRIFT_PERIOD), rng.random()
    elapsed = 0
    for index, length in enumerate(signal_lengths(text), 1):
        # A triangular wave from -1 to 1.
        swing = 4 * abs((phase + elapsed / period) % 1 - 0.5) - 1
        deviations = (1 + drift * swing) * (1 + jitter * (rng.random() - rng.random()))
        duration = round(dot * habits[index % 2][length] * deviations)
        durations.append(duration)
        elapsed += duration
    return [*durations, round(SAMPLING_RATE * rng.uniform(*_SILENCE))]


def morse_rows(
    *,
    train_size: int = _DEFAULT_SIZES["train"],
    validation_size: int = _DEFAULT_SIZES["validation"],
    test_size: int = _DEFAULT_SIZES["test"],
    seed: int = 0,
    audio: bool = True,
) -> datasets.DatasetDict:
    """Key texts of the Python documentation in Morse code.

    The columns are

    - `audio`: samples at `SAMPLING_RATE`, float32, made by `morse_audio` of the other columns;
    - `text`: 1 to 5 successive words of `documentation_rows` in lower case, between two and three on average, without
      words that have characters other than letters, digits and common punctuation;
    - `wpm`, `dash`, `element_gap`, `letter_gap`, `word_gap`, `jitter`, `drift`: speed and habits of the operator, and
      `durations`, what was keyed; see `key`;
    - `pitch` (Hz) and `pitch_phase` (turns) of the tone;
    - `fade` (dB), `fade_rate` (Hz), `fade_phase` (turns): depth, frequency and phase of a sinusoidal fade in dB;
    - `snr` (dB) and `noise_seed` of the white noise.

    Every row has an operator, a tone and noise of its own. The texts of a split are from documents that no other split
    reads, and no text occurs in two splits. Of the words of the default test set, with their punctuation, a quarter
    (of the distinct ones two fifths) occur in no training text.

    The same seed gives the same texts and settings on every machine with the same version of Python, whose
    documentation differs from that of other versions. Samples may differ in their last bits between processors.

    Args:
        train_size: Number of rows in `train`.
        validation_size: Number of rows in `validation`.
        test_size: Number of rows in `test`.
        seed: Selects the texts of each split and all settings.
        audio: False leaves out the column `audio`, which takes 90 kB per row; `morse_audio(row)` makes the audio
            of a row when it is needed.

    Raises:
        InputError: A size is below 1 or larger than the number of texts there are.
    """
    sizes = (train_size, validation_size, test_size)
    splits = draw_splits(_COLUMNS, sizes, seed, _draw)
    if audio:
        for split, rows in splits.items():
            samples = [morse_audio(row) for row in rows]
            splits[split] = rows.add_column("audio", samples, feature=datasets.List(datasets.Value("float32")))
    return splits


_COLUMNS = (
    *("text", "wpm", *_FIST, "jitter", "drift", "durations", "pitch", "pitch_phase"),
    *("fade", "fade_rate", "fade_phase", "snr", "noise_seed"),
)


def _draw(split: str, size: int, rng: random.Random) -> list[tuple[Any, ...]]:
    """Draw texts of a split and all that they are keyed with."""
    rows = []
    for text in sample_rows(_texts(), split, size, rng):
        wpm = rng.uniform(*WORDS_PER_MINUTE)
        fist = {name: rng.uniform(*bounds) for name, bounds in _FIST.items()}
        fist |= {"jitter": rng.uniform(0, _JITTER), "drift": rng.uniform(0, _DRIFT)}
        durations = key(text, wpm, **fist, rng=rng)
        tone = rng.uniform(*PITCH), rng.random()
        fade = rng.uniform(0, _FADE), rng.uniform(*_FADE_RATE), rng.random()
        rows.append((text, wpm, *fist.values(), durations, *tone, *fade, rng.uniform(*SNR), rng.getrandbits(32)))
    return rows


def morse_audio(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """Render the audio of a row of `morse_rows`.

    Args:
        row: The columns from `durations` to `noise_seed`. An infinite `snr` and a `fade` of 0 give the bare tone.

    Returns:
        Samples `[sum(durations)]` at `SAMPLING_RATE`, with a root mean square of 0.1 while the key is down.
    """
    durations = row["durations"]
    times = np.arange(sum(durations)) / SAMPLING_RATE
    down = np.repeat(np.arange(len(durations)) % 2, durations)
    # Raised-cosine edges; abrupt ones would click.
    edge = np.hanning(round(_EDGE * SAMPLING_RATE) + 3)
    envelope = np.convolve(down, edge / edge.sum(), "same")
    decibels = row["fade"] / 2 * (1 - np.cos(2 * np.pi * (row["fade_rate"] * times + row["fade_phase"])))
    tone = np.sqrt(2) * np.sin(2 * np.pi * (row["pitch"] * times + row["pitch_phase"]))
    noise = np.random.Generator(np.random.PCG64(row["noise_seed"])).standard_normal(len(times), np.float32)
    noise_power = 10 ** (-row["snr"] / 10)
    samples = envelope * 10 ** (-decibels / 20) * tone + np.sqrt(noise_power) * noise
    return (_LEVEL / np.sqrt(1 + noise_power) * samples).astype(np.float32)


@cache
def _texts() -> dict[str, list[str]]:
    """Distinct texts of each split; takes two seconds, once per process."""
    texts: dict[str, list[str]] = {}
    taken: set[str] = set()
    documents = documentation_rows()
    # The test set keeps what several splits have.
    for split in reversed(SPLITS):
        found = dict.fromkeys(text for document in documents[split]["text"] for text in _cut(document))
        texts[split] = [text for text in found if text not in taken]
        taken |= found.keys()
    return texts


def _cut(document: str) -> Iterator[str]:
    """Cut each paragraph into successive texts of one to five words; words that cannot be keyed are left out."""
    rng = random.Random(document)
    for paragraph in re.split(r"\n\s*\n", document):
        text: list[str] = []
        size = _size(rng)
        for word in [*paragraph.lower().translate(_MARKUP).split(), ""]:
            keyable = len(word) <= _LONGEST_WORD and _WORD.fullmatch(word)
            if keyable:
                text.append(word)
            if text and (not keyable or len(text) == size):
                yield " ".join(text)
                text, size = [], _size(rng)


def _size(rng: random.Random) -> int:
    """Draw a number of words, a small one more often: an alignment is learned on short texts first, and fast."""
    return 1 + int(_MOST_WORDS * min(rng.random() for _ in range(3)))
