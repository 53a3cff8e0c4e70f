"""Embedded video: handwritten digits that move and bounce in frames of 16 × 16 pixels, with captions that say how.

The digits are scikit-learn's 1,797 handwritten ones of 8 × 8 pixels (Alpaydin and Kaynak 1998), which no split shares
with another; the motion is made as that of Moving MNIST is (Srivastava et al. 2015, section 4.2), with one digit. So
what is seen is real, and how it moves is stated. A digit moves one or two pixels a frame, upwards or sideways or both,
and turns round where it would leave the frame: at most twice, and never in its first step, so that its direction can
be seen.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfseq.data.splits import draw_splits
from hfseq.errors import InputError
from hfseq.lazy import datasets

SIZE = 16
"""Height and width of a frame in pixels."""
DIGIT = 8
"""Height and width of a digit in pixels."""
LENGTHS = (6, 10)
"""Least and most frames of a clip, unless it is said otherwise."""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Names of the digits in captions."""

_MOST_BOUNCES = 2
_SEED = 22
# Images of the validation and of the test; all others are for training.
_DIGITS = (120, 240)
_SIZES = (20_000, 500, 1_000)
_VERTICAL, _HORIZONTAL = {-1: "up", 1: "down"}, {-1: "to the left", 1: "to the right"}
_WALLS = ({-1: "the ceiling", 1: "the floor"}, {-1: "the left wall", 1: "the right wall"})
_CORNERS = {-1: "top", 1: "bottom"}, {-1: "left", 1: "right"}


def moving_digit_rows(
    *,
    train_size: int | None = None,
    validation_size: int | None = None,
    test_size: int | None = None,
    lengths: tuple[int, int] = LENGTHS,
) -> datasets.DatasetDict:
    """Rows with `digit`, the number of an image, `positions` `[T][2]`, `caption` and `label`, the direction.

    `render` makes the frames of a row. The same arguments give the same rows; a split does not depend on the sizes of
    the others.

    Args:
        train_size: Number of training clips, by default 20,000.
        validation_size: Number of validation clips, by default 500.
        test_size: Number of test clips, by default 1,000.
        lengths: Least and most frames T of a clip.

    Raises:
        InputError: A size is less than 1, or a length less than 2.
    """
    if not 2 <= lengths[0] <= lengths[1]:
        raise InputError(f"lengths: {lengths} are not the least and the most frames of a clip, of 2 or more")
    given = (train_size, validation_size, test_size)
    sizes = [default if size is None else size for size, default in zip(given, _SIZES, strict=True)]
    digits = digits_of_splits()

    def draw(split: str, size: int, rng: random.Random) -> list[tuple[Any, ...]]:
        return [_row(digits[split], rng, lengths) for _ in range(size)]

    return draw_splits(("digit", "positions", "caption", "label"), sizes, _SEED, draw)


def digits_of_splits() -> dict[str, list[int]]:
    """Numbers of the images of each split, which have none in common."""
    order = list(range(len(_images()[1])))
    random.Random(_SEED).shuffle(order)
    validation, test = _DIGITS
    return {
        "train": order[validation + test :],
        "validation": order[:validation],
        "test": order[validation : validation + test],
    }


def render(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """Draw the frames of a row, `[T, 1, 16, 16]`, with values from 0 (background) to 1."""
    image = _images()[0][row["digit"]]
    frames = np.zeros((len(row["positions"]), 1, SIZE, SIZE), np.float32)
    for frame, (top, left) in zip(frames, row["positions"], strict=True):
        frame[0, top : top + DIGIT, left : left + DIGIT] = image
    return frames


def describe(name: str, velocity: Sequence[int], bounces: Sequence[tuple[int, int]]) -> str:
    """Caption of a clip, such as "the three moves up and to the left and bounces off the left wall".

    Args:
        name: Name of the digit.
        velocity: Pixels down and to the right in the first step.
        bounces: Of each step in which the digit turns round, the signs of the walls that it meets: vertically (-1 the
            ceiling, 1 the floor) and horizontally (-1 the left wall, 1 the right wall), 0 for none.
    """
    text = f"the {name} moves {direction(velocity)}"
    places = []
    for vertical, horizontal in bounces:
        if vertical and horizontal:
            places.append(f"the {_CORNERS[0][vertical]} {_CORNERS[1][horizontal]} corner")
        else:
            places.append(_WALLS[0][vertical] if vertical else _WALLS[1][horizontal])
    return text + "".join(f" and {'then' if number else 'bounces'} off {place}" for number, place in enumerate(places))


def direction(velocity: Sequence[int]) -> str:
    """Direction of a velocity in words, such as "up and to the left"."""
    words = (names[_sign(speed)] for names, speed in zip((_VERTICAL, _HORIZONTAL), velocity, strict=True) if speed)
    return " and ".join(words)


def _row(digits: Sequence[int], rng: random.Random, lengths: tuple[int, int]) -> tuple[Any, ...]:
    digit, length = rng.choice(digits), rng.randint(*lengths)
    while True:
        velocity = (rng.randint(-2, 2), rng.randint(-2, 2))
        axes = [_axis(rng.randint(0, SIZE - DIGIT), speed, length) for speed in velocity]
        met = sorted({step for _, walls in axes for step in walls})
        if any(velocity) and len(met) <= _MOST_BOUNCES and 1 not in met:
            break
    bounces = [(axes[0][1].get(step, 0), axes[1][1].get(step, 0)) for step in met]
    positions = [list(both) for both in zip(axes[0][0], axes[1][0], strict=True)]
    caption = describe(NAMES[_images()[1][digit]], velocity, bounces)
    return digit, positions, caption, direction(velocity)


def _axis(position: int, speed: int, length: int) -> tuple[list[int], dict[int, int]]:
    """Positions along an axis, and the steps at which the digit turns round, with the sign of the wall there."""
    last, positions, walls = SIZE - DIGIT, [position], {}
    for step in range(1, length):
        position += speed
        if not 0 <= position <= last:
            walls[step] = _sign(speed)
            position, speed = (-position if position < 0 else 2 * last - position), -speed
        positions.append(position)
    return positions, walls


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


@cache
def _images() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images `[1797, 8, 8]`, from 0 to 1, and the digit that each shows."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target
