"""Picture of quality against latency, drawn as SVG from the table of a comparison; nothing is measured.

The text is written here, not by a plotting library, so that the file is the same wherever `make results` runs, follows
the reader's light or dark scheme, and changes in a diff only where a figure has.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 56
_LARGEST = 22.0
"""Radius of the circle of the largest model."""
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 15px }
.quiet { fill: #57606a; font-size: 12px }
.grid { stroke: #8c959f; stroke-opacity: .3 }
.bar { stroke: #57606a }
.ours { fill: #0969da; fill-opacity: .65 }
.others { fill: #bc4c00; fill-opacity: .65 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .quiet { fill: #9198a1 } .bar { stroke: #9198a1 }
.ours { fill: #4493f8 } .others { fill: #f0883e }
}"""


class Point(NamedTuple):
    """A model in the picture.

    Attributes:
        name: Label.
        latency: Milliseconds for one text.
        score: Mean score.
        spread: Its standard deviation over seeds.
        size: Number of parameters.
        ours: Whether it is a model of hfseq.
    """

    name: str
    latency: float
    score: float
    spread: float
    size: float
    ours: bool


def points(table: Mapping[str, Mapping[str, str]], others: Sequence[str]) -> list[Point]:
    """Return the models of a table of a comparison; `others` are the names of those that are not of hfseq."""
    keys = ("ms_a_text", "accuracy", "accuracy_std", "parameters")
    return [Point(name, *(float(row[key]) for key in keys), name not in others) for name, row in table.items()]


def picture(models: Sequence[Point], title: str, score: str, families: str, others: str) -> str:
    """Draw models as circles: latency to the right on a logarithmic axis, score upwards, area by parameters.

    Args:
        models: The models.
        title: Title, which is the text for readers that show no pictures, too.
        score: Name of the score, with its unit.
        families: Legend of the models of hfseq.
        others: Legend of the others.

    Returns:
        The SVG.
    """
    low, high = (edge(one.latency for one in models) for edge in (min, max))
    low, high = low / 1.35, high * 1.5
    bottom = math.floor(min(one.score - one.spread for one in models) - 1)
    top = math.ceil(max(one.score + one.spread for one in models) + 1)
    largest = max(one.size for one in models)

    def x_of(latency: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * math.log(latency / low) / math.log(high / low)

    def y_of(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - bottom) / (top - bottom)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{_STYLE}</style>',
        f'<text class="title" x="{_LEFT}" y="22">{escape(title)}</text>',
    ]
    step = next(one for one in (1, 2, 5, 10, 20) if (top - bottom) / one <= 8)
    for value in range(math.ceil(bottom / step) * step, top + 1, step):
        y = y_of(value)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="quiet" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    ticks = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    for value in (one for one in ticks if low <= one <= high):
        x, end = x_of(value), HEIGHT - _BOTTOM
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{end}"/>')
        lines.append(f'<text class="quiet" x="{x:.1f}" y="{end + 18}" text-anchor="middle">{value:g}</text>')
    axis = "milliseconds for one text on one core (area: parameters)"
    lines.append(f'<text class="quiet" x="{WIDTH - _RIGHT}" y="{HEIGHT - 14}" text-anchor="end">{axis}</text>')
    lines.append(f'<text class="quiet" x="{WIDTH - _RIGHT}" y="22" text-anchor="end">{escape(score)}</text>')
    for number, (kind, text) in enumerate((("ours", families), ("others", others))):
        x = _LEFT + 8 + 190 * number
        lines.append(f'<circle class="{kind}" cx="{x}" cy="{HEIGHT - 18}" r="6"/>')
        lines.append(f'<text class="quiet" x="{x + 12}" y="{HEIGHT - 14}">{escape(text)}</text>')
    circles = [
        (x_of(one.latency), y_of(one.score), max(5.0, _LARGEST * math.sqrt(one.size / largest))) for one in models
    ]
    # The small ones on top of the large ones.
    for one, (x, y, radius) in sorted(zip(models, circles, strict=True), key=lambda pair: -pair[0].size):
        kind = "ours" if one.ours else "others"
        lines.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>')
        if one.spread:
            low_end, high_end = y_of(one.score - one.spread), y_of(one.score + one.spread)
            lines.append(f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low_end:.1f}" y2="{high_end:.1f}"/>')
    for one, (x, y) in zip(models, _place([one.name for one in models], circles), strict=True):
        lines.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(one.name)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _place(names: Sequence[str], circles: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Return the middle of the baseline of each label: as near to its circle as the other labels and circles allow."""
    boxes: list[tuple[float, float, float, float]] = []
    for x, y, radius in circles:
        reach = 0.8 * radius
        boxes.append((x - reach, y - reach, x + reach, y + reach))
    found = []
    for name, (x, y, radius) in zip(names, circles, strict=True):
        half = 3.9 * len(name)
        best = None
        for distance in (4, 18, 32, 46, 60):
            for angle in range(-90, 270, 30):
                turn = math.radians(angle)
                middle = x + (radius + distance + half * abs(math.cos(turn))) * math.cos(turn)
                base = y + (radius + distance + 4) * math.sin(turn) + 5
                box = (middle - half, base - 12, middle + half, base + 3)
                cost = sum(_overlap(box, other) for other in boxes) + 0.05 * distance
                outside = box[0] < _LEFT or box[2] > WIDTH or box[1] < _TOP or box[3] > HEIGHT - _BOTTOM
                if not outside and (best is None or cost < best[0]):
                    best = (cost, middle, base, box)
        assert best is not None
        boxes.append(best[3])
        found.append(best[1:3])
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Area that two boxes (left, top, right, bottom) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
