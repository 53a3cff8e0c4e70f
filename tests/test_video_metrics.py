"""SSIM beside scikit-image's, and what it refuses."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from hfseq import metrics


def test_ssim_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    true = rng.random((2, 3, 2, 16, 13))
    predicted = (true + rng.normal(0, 0.2, true.shape)).clip(0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    pairs = zip(predicted.reshape(-1, 16, 13), true.reshape(-1, 16, 13), strict=True)
    expected = np.mean([structural_similarity(one, other, **options) for one, other in pairs])
    found = metrics.ssim(predicted, true)
    assert found["ssim"] == found["score"] == pytest.approx(expected, abs=1e-9)
    assert metrics.ssim(true, true)["score"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 16, 16), (3, 16, 16)), r"ssim: predictions are \(2, 16, 16\) and references \(3, 16, 16\)"),
        (((0, 16, 16), (0, 16, 16)), "ssim: predictions are"),
        (((2, 10, 16), (2, 10, 16)), "ssim: frames of 10x16; they need 11x11 or more"),
    ],
)
def test_other_frames_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        metrics.ssim(*map(np.zeros, shapes))
