import sys
import warnings

import numpy as np
import pytest
import torch

from hfseq.errors import InputError
from hfseq.inference.files import write_lines, write_samples
from hfseq.plots import plot_alignment, plot_confusion_matrix, plot_learning_curve
from hfseq.training.callbacks import StopOnNaN, check_finite

image = pytest.importorskip("matplotlib.image")


def read(path):
    pixels = image.imread(path)[..., :3]
    # As one number for each pixel, of which the different ones are found much faster than of rows.
    packed = (pixels * 255).round().astype(int) @ (1 << 16, 1 << 8, 1)
    return pixels, {(colour >> 16, colour >> 8 & 255, colour & 255) for colour in np.unique(packed).tolist()}


HISTORY = [{"step": step, "loss": 5 / step} for step in range(1, 30)]
EVALUATIONS = [{"step": step, "eval_loss": 6 / step, "eval_bleu": float(step)} for step in (10, 20)]
TRAINING, VALIDATION, METRIC = (76, 120, 168), (245, 133, 24), (84, 162, 75)


@pytest.mark.parametrize(
    ("history", "metric", "drawn"),
    [
        (HISTORY + EVALUATIONS, "eval_bleu", {TRAINING, VALIDATION, METRIC}),
        (HISTORY + EVALUATIONS, None, {TRAINING, VALIDATION}),
        (HISTORY, "bleu", {TRAINING}),
        (HISTORY[:1], None, {TRAINING}),
        ([], "bleu", set()),
        ([{"step": 1, "loss": float("nan")}, {"step": 3, "train_runtime": 1.0}], None, {TRAINING}),
    ],
)
def test_learning_curve(tmp_path, history, metric, drawn):
    plot_learning_curve(history, tmp_path / "curve.png", metric)
    _, colours = read(tmp_path / "curve.png")
    assert colours & {TRAINING, VALIDATION, METRIC} == drawn


def test_alignment_shows_the_weights_where_they_are(tmp_path):
    plot_alignment([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], ["a", "b", "c"], ["x", "y"], tmp_path / "a.png")
    pixels, _ = read(tmp_path / "a.png")
    dark = (pixels[..., 2] < 0.5) & (pixels[..., 0] < 0.1) & (pixels[..., 2] > 0.35)
    # The colour bar has the dark blue too, but only in a narrow strip on the right.
    rows, columns = np.nonzero(dark[:, : int(pixels.shape[1] * 0.75)])
    middle = (columns.min() + columns.max()) / 2
    assert rows[columns < middle].mean() < rows[columns > middle].mean()


@pytest.mark.parametrize(
    "tokens", [["日本", "😀", "हिन्दी"], ["$x$", "$", "\\alpha_{"], ["", "\n", "\x00"], ["a" * 500, "العربية", "▁w"]]
)
def test_any_token_is_drawn_without_a_warning(tmp_path, tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_alignment(np.full((3, 3), 1 / 3), tokens, tokens, tmp_path / "a.png")
    assert min(image.imread(tmp_path / "a.png").shape[:2]) > 100


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 60), (150, 2)])
def test_alignment_of_any_size(tmp_path, rows, columns):
    plot_alignment(np.full((rows, columns), 0.1), ["s"] * columns, ["t"] * rows, tmp_path / "a.png")
    assert max(image.imread(tmp_path / "a.png").shape) < 20_000


def test_alignment_refuses_the_transpose(tmp_path):
    with pytest.raises(ValueError, match="target, source"):
        plot_alignment(np.ones((3, 2)), ["a", "b", "c"], ["x", "y"], tmp_path / "a.png")


def test_confusion_matrix_shows_shares_of_the_true_class(tmp_path):
    """Of many rows of class 0 a fifth are taken for 1, of few of class 1 all for 2; of class 2 there are none."""
    plot_confusion_matrix([0] * 500 + [1] * 2, [0] * 400 + [1] * 100 + [2] * 2, ["", "", ""], tmp_path / "c.png")
    pixels, _ = read(tmp_path / "c.png")
    dark = (pixels * 255).round().astype(int) == (8, 48, 107)  # the end of the colour map
    rows, columns = np.nonzero(dark.all(-1)[:, : int(pixels.shape[1] * 0.6)])
    # A share of 1 is in the one cell, right of the middle and at half the height; .8 is not as dark.
    assert len(rows) > 1_000
    assert np.ptp(columns) < pixels.shape[1] / 3 and np.ptp(rows) < pixels.shape[0] / 2


@pytest.mark.parametrize(
    ("size", "name"),
    [(1, ""), (2, "$x_$ with a very long name of a class"), (15, "日本"), (16, "\n"), (150, "a" * 99)],
)
def test_confusion_matrix_of_any_size(tmp_path, size, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion_matrix(np.arange(size), np.arange(size)[::-1], [name] * size, tmp_path / "c.png")
    assert 100 < max(image.imread(tmp_path / "c.png").shape) < 5_000


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0], r"labels are \(2,\) and predictions \(1,\)"),
        ([[0, 1]], [[0, 1]], "not both \\[rows\\]"),
        ([0, 2], [0, 1], "a label is not a class id below 2"),
        ([0, 1], [0, -1], "a prediction is not"),
        ([0.0, 1.0], [0, 1], "a label is not"),
    ],
)
def test_confusion_matrix_refuses(tmp_path, labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        plot_confusion_matrix(labels, predictions, ["a", "b"], tmp_path / "c.png")


def test_plots_touch_no_global_state(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_learning_curve(HISTORY, tmp_path / "curve.png")
    plot_confusion_matrix([], [], ["a", "b"], tmp_path / "c.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_samples(tmp_path):
    write_samples(tmp_path / "s.txt", ["Grüße", "b", "c"], ["hi", "e", "f"], ["ho", "h", "i"], n=2)
    assert (tmp_path / "s.txt").read_text("utf-8") == (
        "source:     Grüße\nreference:  hi\nprediction: ho\n\nsource:     b\nreference:  e\nprediction: h\n"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_on_a_cpu_stops_at_the_step(bad):
    watch = StopOnNaN()
    watch.observe(torch.tensor(1.0), 6)
    with pytest.raises(InputError, match="step 7") as caught:
        watch.observe(torch.tensor(bad), 7)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused():
    model = torch.nn.Linear(2, 2)
    check_finite(model, 3)
    with torch.no_grad():
        model.bias[1] = float("inf")
    with pytest.raises(InputError, match="step 3"):
        check_finite(model, 3)


def test_lines_of_texts_with_line_breaks(tmp_path):
    write_lines(tmp_path / "lines.txt", ["a\nb", "", "\r\n", "c\u2028d\x00e  f"])
    assert (tmp_path / "lines.txt").read_bytes().decode() == "a b\n\n\nc d\x00e  f\n"
