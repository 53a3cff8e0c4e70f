"""Strings of spoken digits: recordings of FSDD one after the other, in folders for recipes/speech_recognition.py.

    python benchmarks/digit_strings.py recordings outputs/digit_strings

`recordings` is the folder of https://github.com/Jakobovski/free-spoken-digit-dataset with `digit_speaker_take.wav`.
The rule: an utterance has 1 to 5 digits of one speaker without a pause between them; each number of digits, speaker,
digit and take is equally likely. Takes 0 to 4, the official test, are in `test` alone, takes 5 to 7 in `dev` alone,
and all others in `train`. Those of `train` are played at 0.85 to 1.15 times their speed, each at its own (speed
perturbation, Ko et al. 2015); the others are as they are. A seed gives the same utterances everywhere.
"""

import argparse
import csv
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from hfseq.errors import InputError
from hfseq.models.audio import read_audio, resample
from hfseq.training import cli

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": 4000, "dev": 400, "test": 500}
"""Split to its number of utterances."""
MOST_DIGITS = 5
SPEEDS = (0.85, 1.15)
SAMPLING_RATE = 8000


def split_of(take: int) -> str:
    """Split that a take belongs to."""
    return "test" if take < 5 else "dev" if take < 8 else "train"


def recordings(folder: Path) -> dict[str, dict[str, list[list[Path]]]]:
    """Split to speaker to the recordings of each of the ten digits.

    Raises:
        InputError: A split has no speaker with all ten digits.
    """
    found: dict[str, dict[str, list[list[Path]]]] = {split: {} for split in SPLITS}
    for path in sorted(folder.glob("[0-9]_*_*.wav")):
        digit, speaker, take = path.stem.split("_")
        digits = found[split_of(int(take))].setdefault(speaker, [[] for _ in WORDS])
        digits[int(digit)].append(path)
    for split, speakers in found.items():
        found[split] = {speaker: digits for speaker, digits in speakers.items() if all(digits)}
        if not found[split]:
            raise InputError(f"{folder}: no speaker has all ten digits in {split}; give the recordings of FSDD")
    return found


def draw(speakers: dict[str, list[list[Path]]], rng: random.Random) -> tuple[list[Path], str]:
    """Draw the recordings of an utterance and their transcript."""
    digits = speakers[rng.choice(sorted(speakers))]
    chosen = [rng.randrange(len(WORDS)) for _ in range(rng.randint(1, MOST_DIGITS))]
    return [rng.choice(digits[digit]) for digit in chosen], " ".join(WORDS[digit] for digit in chosen)


def samples_of(paths: Sequence[Path], speeds: Sequence[float]) -> np.ndarray:
    """Samples of recordings one after the other, each at a speed."""
    parts = [read_audio(path)[0] for path in paths]
    # At a lower rate the same sound has fewer samples, which take less time at the old one.
    return np.concatenate(
        [
            resample(part, SAMPLING_RATE, round(SAMPLING_RATE / speed))
            for part, speed in zip(parts, speeds, strict=True)
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Write the folders; `argv` are by default the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder of FSDD's WAV files")
    parser.add_argument("output_dir", type=Path, help="folder to write train, dev and test to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for split, speakers in recordings(args.recordings).items():
        rng = random.Random(f"{args.seed} {split}")
        folder = args.output_dir / split
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(SPLITS[split]):
            paths, text = draw(speakers, rng)
            speeds = [rng.uniform(*SPEEDS) if split == "train" else 1.0 for _ in paths]
            name = f"{number:04}.wav"
            soundfile.write(folder / name, samples_of(paths, speeds), SAMPLING_RATE, subtype="PCM_16")
            rows.append((name, text))
        with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("file_name", "transcription"), *rows])
        print(f"{folder}: {len(rows)} utterances")


if __name__ == "__main__":
    cli.run(main)
