"""Diagrams of the cells, drawn into `docs/families/images` before the pages are read.

Blue boxes are products with learned weights and the function behind them, circles are operations on single elements. A
line that leaves the state and enters a box is what makes a step wait for the one before it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

Point = tuple[float, float]
FOLDER = Path(__file__).parents[1] / "families" / "images"
_INK, _BOX, _OPERATION, _PALE = "#333333", "#cfe0f3", "#fff3c9", "#e9e9e9"


class Drawing:
    """Boxes, circles and lines on a grid whose unit is half an inch.

    Args:
        width: Width in units.
        height: Height in units.
    """

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / 2, height / 2))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axes.set_axis_off()

    def box(self, x: float, y: float, label: str) -> None:
        """A layer with learned weights."""
        shape = FancyBboxPatch((x - 0.62, y - 0.36), 1.24, 0.72, boxstyle="round,pad=0,rounding_size=0.12")
        shape.set(facecolor=_BOX, edgecolor=_INK, linewidth=0.8, zorder=3)
        self.axes.add_patch(shape)
        self.text(x, y, label)

    def operation(self, x: float, y: float, label: str) -> None:
        """An operation on single elements."""
        self.axes.add_patch(Circle((x, y), 0.34, facecolor=_OPERATION, edgecolor=_INK, linewidth=0.8, zorder=3))
        self.text(x, y, label, 8 if label.strip("$\\").isalpha() else 11)

    def text(self, x: float, y: float, label: str, size: int = 11) -> None:
        """A formula, centred."""
        self.axes.text(x, y, label, ha="center", va="center", fontsize=size, color=_INK, zorder=4)

    def line(self, *points: Point, arrow: bool = True) -> None:
        """A line through points, with an arrow head at the last one."""
        self.axes.plot(*zip(*points, strict=True), color=_INK, linewidth=1, solid_joinstyle="round", zorder=1)
        if arrow:
            style = {"arrowstyle": "-|>", "color": _INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
            self.axes.annotate("", points[-1], points[-2], arrowprops=style, zorder=2)


def rnn() -> Drawing:
    """Simple RNN: the state passes through a matrix and a tanh at every step."""
    drawing = Drawing(8, 3.6)
    drawing.text(0.6, 1.6, "$h_{t-1}$")
    drawing.line((1.2, 1.6), (3.38, 1.6))
    drawing.text(4, 0.3, "$x_t$")
    drawing.line((4, 0.6), (4, 1.24))
    drawing.box(4, 1.6, r"$\tanh$")
    drawing.line((4.62, 1.6), (6.8, 1.6))
    drawing.text(7.3, 1.6, "$h_t$")
    drawing.line((5.6, 1.6), (5.6, 3))
    drawing.text(5.6, 3.3, "$h_t$")
    return drawing


def lstm() -> Drawing:
    """LSTM: the cell state passes through a product and a sum alone."""
    drawing = Drawing(11, 6)
    drawing.text(0.5, 5, "$c_{t-1}$")
    drawing.text(0.5, 1, "$h_{t-1}$")
    drawing.line((1, 5), (9.9, 5))
    drawing.text(10.4, 5, "$c_t$")
    drawing.line((1, 1), (7.6, 1), arrow=False)
    drawing.text(1.6, 0.2, "$x_t$")
    drawing.line((1.6, 0.45), (1.6, 1), arrow=False)
    for x, label in ((2.4, r"$\sigma\;f_t$"), (4, r"$\sigma\;i_t$"), (5.6, r"$\tanh$"), (7.6, r"$\sigma\;o_t$")):
        drawing.line((x, 1), (x, 1.64))
        drawing.box(x, 2, label)
    drawing.line((2.4, 2.36), (2.4, 4.66))
    drawing.operation(2.4, 5, r"$\times$")
    drawing.line((4, 2.36), (4, 3.5), (4.46, 3.5))
    drawing.line((5.6, 2.36), (5.6, 3.5), (5.14, 3.5))
    drawing.operation(4.8, 3.5, r"$\times$")
    drawing.line((4.8, 3.84), (4.8, 4.66))
    drawing.operation(4.8, 5, "$+$")
    drawing.line((8.9, 5), (8.9, 4.14))
    drawing.operation(8.9, 3.8, r"$\tanh$")
    drawing.line((8.9, 3.46), (8.9, 2.34))
    drawing.line((8.22, 2), (8.56, 2))
    drawing.operation(8.9, 2, r"$\times$")
    drawing.line((8.9, 1.66), (8.9, 1), (9.9, 1))
    drawing.text(10.4, 1, "$h_t$")
    return drawing


def gru() -> Drawing:
    """GRU: one gate mixes the old state and the candidate, another weakens the old state within the candidate."""
    drawing = Drawing(11, 6)
    drawing.text(0.5, 5, "$h_{t-1}$")
    drawing.line((1, 5), (9.9, 5))
    drawing.text(10.4, 5, "$h_t$")
    drawing.line((1.4, 5), (1.4, 1.4), (5.4, 1.4), arrow=False)
    drawing.text(0.5, 0.6, "$x_t$")
    drawing.line((0.9, 0.6), (8.4, 0.6), (8.4, 1.64))
    for x, label in ((2.4, r"$\sigma\;r_t$"), (4, "$U_n$"), (5.6, r"$\sigma\;z_t$")):
        drawing.line((x if x < 5 else x - 0.2, 1.4), (x if x < 5 else x - 0.2, 1.64))
        drawing.box(x, 2, label)
    drawing.line((2.2, 0.6), (2.2, 1.64))
    drawing.line((5.8, 0.6), (5.8, 1.64))
    drawing.line((2.4, 2.36), (2.4, 3.3), (3.66, 3.3))
    drawing.line((4, 2.36), (4, 2.96))
    drawing.operation(4, 3.3, r"$\times$")
    drawing.line((4.34, 3.3), (4.7, 3.3), (4.7, 1), (7.2, 1), (7.2, 2), (7.78, 2))
    drawing.box(8.4, 2, r"$\tanh$")
    drawing.line((5.6, 2.36), (5.6, 4.66))
    drawing.operation(5.6, 5, r"$\times$")
    drawing.line((5.6, 3.6), (6.66, 3.6))
    drawing.operation(7, 3.6, r"$1{-}$")
    drawing.line((7.34, 3.6), (8.06, 3.6))
    drawing.line((8.4, 2.36), (8.4, 3.26))
    drawing.operation(8.4, 3.6, r"$\times$")
    drawing.line((8.4, 3.94), (8.4, 4.66))
    drawing.operation(8.4, 5, "$+$")
    return drawing


def linear(gates: Iterable[tuple[float, str]], inputs: str, state: str, decay: str, output: str = "") -> Drawing:
    """A linear recurrence: no line leads from the state into a box.

    Args:
        gates: Place and label of each box.
        inputs: What enters them.
        state: Letter of the state.
        decay: What the old state is multiplied by.
        output: Label of the box or operation behind the state, or none.
    """
    drawing = Drawing(11, 5.2)
    drawing.text(0.6, 4, f"${state}_{{t-1}}$")
    drawing.line((1.2, 4), (9.9, 4))
    drawing.text(10.4, 4, f"${state}_t$")
    places = list(gates)
    drawing.text(0.6, 0.5, inputs)
    drawing.line((1.4, 0.5), (places[-1][0], 0.5), arrow=False)
    for x, label in places:
        drawing.line((x, 0.5), (x, 1.14))
        drawing.box(x, 1.5, label)
    (first, _), (second, _) = places[:2]
    drawing.line((first, 1.86), (first, 3.66))
    drawing.operation(first, 4, r"$\times$")
    drawing.text(first - 0.75, 3.1, decay)
    drawing.line((first, 2.6), (second - 0.34, 2.6))
    drawing.line((second, 1.86), (second, 2.26))
    drawing.operation(second, 2.6, r"$\times$")
    drawing.line((second, 2.94), (second, 3.66))
    drawing.operation(second, 4, "$+$")
    if output:
        drawing.line((8.6, 4), (8.6, 2.94))
        drawing.operation(8.6, 2.6, output)
        drawing.line((8.94, 2.6), (9.9, 2.6))
        drawing.text(10.4, 2.6, "$h_t$")
    return drawing


def mingru() -> Drawing:
    """One gate between state and candidate."""
    return linear([(3.4, r"$\sigma\;z_t$"), (6.4, r"$g\;\tilde{h}_t$")], "$x_t$", "h", "$1-z_t$")


def minlstm() -> Drawing:
    """Two normalised gates."""
    drawing = linear([(3.4, r"$\sigma\;f_t$"), (6.4, r"$g\;\tilde{h}_t$")], "$x_t$", "h", "$f'_t$")
    drawing.text(4.8, 2.9, "$i'_t$")
    drawing.line((1.9, 0.5), (1.9, 1.14))
    drawing.box(1.9, 1.5, r"$\sigma\;i_t$")
    drawing.line((1.9, 1.86), (1.9, 2.6), (3.06, 2.6))
    drawing.operation(3.4, 2.6, "norm")
    return drawing


def qrnn() -> Drawing:
    """Gates from convolutions, and an output gate."""
    gates = [(3.4, r"$\sigma\;f_t$"), (6.2, r"$\tanh\,z_t$"), (8.6, r"$\sigma\;o_t$")]
    drawing = linear(gates, r"$x_{t-1}, x_t$", "c", "$f_t$", r"$\times$")
    drawing.text(4.8, 2.9, "$1-f_t$")
    drawing.line((8.6, 1.86), (8.6, 2.26))
    return drawing


def ssru() -> Drawing:
    """A forget gate, and a ReLU in place of the output gate."""
    drawing = linear([(3.4, r"$\sigma\;f_t$"), (6.2, "$W x_t$")], "$x_t$", "c", "$f_t$", "ReLU")
    drawing.text(4.8, 2.9, "$1-f_t$")
    return drawing


def cnn() -> Drawing:
    """Causal convolutions with kernels of three, and dilations of 1, 2 and 4: the inputs that one output sees."""
    drawing = Drawing(16, 5)
    seen = {15}
    levels: list[set[int]] = [seen]
    for dilation in (4, 2, 1):
        seen = {place - tap * dilation for place in seen for tap in range(3)}
        levels.insert(0, seen)
    for level, dilation in enumerate((1, 2, 4)):
        for place in levels[level + 1]:
            for tap in range(3):
                source = place - tap * dilation
                drawing.line((source + 0.5, level * 1.4 + 0.5), (place + 0.5, level * 1.4 + 1.9), arrow=False)
    for level, places in enumerate(levels):
        for place in range(16):
            circle = Circle((place + 0.5, level * 1.4 + 0.5), 0.2, edgecolor=_INK, linewidth=0.8, zorder=3)
            circle.set_facecolor(_BOX if place in places else _PALE)
            drawing.axes.add_patch(circle)
    return drawing


CELLS: tuple[Callable[[], Drawing], ...] = (rnn, lstm, gru, cnn, mingru, minlstm, qrnn, ssru)


def draw(_app: object = None) -> None:
    """Write an SVG for each family."""
    FOLDER.mkdir(exist_ok=True)
    # The same bytes from the same code.
    with matplotlib.rc_context({"svg.hashsalt": "hfseq", "mathtext.fontset": "cm"}):
        for cell in CELLS:
            figure = cell().figure
            figure.savefig(FOLDER / f"{cell.__name__}.svg", metadata={"Date": None}, facecolor="white")


def setup(app: Any) -> dict[str, bool]:
    """Draw before Sphinx looks for the pictures."""
    app.connect("builder-inited", draw)
    return {"parallel_read_safe": True}
