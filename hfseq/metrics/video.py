"""Metrics of predicted frames."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfseq.errors import require

WINDOW = 11
"""Height and width of the window of SSIM, and so of the smallest frame."""


def ssim(predictions: Any, references: Any) -> dict[str, float]:
    """Structural similarity (SSIM, Wang et al. 2004, eq. 13), mean over frames and channels; 1 if they are equal.

    Local means and variances are those of a Gaussian window of 11 x 11 pixels with a standard deviation of 1.5, where
    it lies within the frame. scikit-image computes the same with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1.0`, but frame by frame.

    Args:
        predictions: Frames `[..., H, W]` from 0 to 1.
        references: Frames of the same shape.

    Returns:
        `ssim`, which is also `score`.

    Raises:
        InputError: SciPy is not installed.
        ValueError: The shapes differ, there are no frames, or they are smaller than the window.
    """
    given, right = (np.asarray(side, dtype=np.float64) for side in (predictions, references))
    if given.shape != right.shape or given.ndim < 2 or not given.size:
        raise ValueError(f"ssim: predictions are {given.shape} and references {right.shape}, not both [..., H, W]")
    if min(given.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim: frames of {given.shape[-2]}x{given.shape[-1]}; they need {WINDOW}x{WINDOW} or more")
    size = given.shape[-2:]
    score = float(_similarity(given.reshape(-1, *size), right.reshape(-1, *size)).mean())
    return {"ssim": score, "score": score}


def _similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Similarity at each place of the window in frames `[N, H, W]`."""
    require("scipy", extra="train", use="SSIM")
    from scipy.ndimage import gaussian_filter

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        margin = WINDOW // 2
        found: NDArray[np.float64] = gaussian_filter(values, (0, 1.5, 1.5), truncate=3.5)
        return found[:, margin:-margin, margin:-margin]

    mean, its_mean = local(one), local(other)
    variance, its_variance = local(one * one) - mean**2, local(other * other) - its_mean**2
    covariance = local(one * other) - mean * its_mean
    # The constants of section III.B, for pixels from 0 to 1.
    luminance, contrast = 0.01**2, 0.03**2
    top = (2 * mean * its_mean + luminance) * (2 * covariance + contrast)
    return top / ((mean**2 + its_mean**2 + luminance) * (variance + its_variance + contrast))
