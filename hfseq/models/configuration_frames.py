"""Fields of the configuration for frames of pixels."""

from collections.abc import Sequence
from typing import Any

from transformers.configuration_utils import PreTrainedConfig, strict


@strict
class FrameFields(PreTrainedConfig):
    """Fields of models that read frames of pixels, which `SequenceConfig` inherits.

    Args:
        frame_shape: Channels, height and width of a frame, for models whose `input_features` are pixels
            `[B, T, C, H, W]`, or flattened, `[B, T, C * H * W]`; `input_size` is then C * H * W. None: frames are
            vectors.
        frame_filters: Number of filters of each convolution over a frame; their last maps, flattened, are what
            `subsampling_factor`, `embedding_size` and the stack see of it. None: the pixels themselves.
        frame_kernel_size: Height and width of these filters, an odd number.
        frame_stride: Stride of each of these convolutions. Each divides height and width by it, rounded up.

    Raises:
        ValueError: If a value is out of range, or if fields contradict each other.
    """

    frame_shape: list[int] | tuple[int, ...] | None = None
    frame_filters: list[int] | tuple[int, ...] | None = None
    frame_kernel_size: int = 3
    frame_stride: int = 2

    def to_dict(self) -> dict[str, Any]:
        """Dictionary of all fields, without those of pixels where there are none."""
        values: dict[str, Any] = super().to_dict()
        if self.frame_shape is None:
            for name in FrameFields.__annotations__:
                values.pop(name, None)
        return values

    def pixels(self, size: int) -> Sequence[int] | None:
        """Shape in which a frame of `size` values may come, beside that of a vector; None if there is none."""
        shape = self.frame_shape
        return shape if shape is not None and size == number_of_pixels(shape) else None


def number_of_pixels(shape: Sequence[int]) -> int:
    """Number of values of a frame of a shape of channels, height and width."""
    channels, height, width = shape
    return channels * height * width


def check_frame_fields(config: Any) -> None:
    """Resolve `input_size` and validate the values."""
    for name in ("frame_shape", "frame_filters"):
        sizes = getattr(config, name)
        if sizes is None:
            continue
        setattr(config, name, list(sizes))  # as JSON has it
        if min(sizes, default=0) < 1 or (name == "frame_shape" and len(sizes) != 3):
            what = "channels, height and width" if name == "frame_shape" else "one or more numbers"
            config.raise_invalid(name, f"it must be {what}, each at least 1")
    if config.frame_shape is None:
        if config.frame_filters is not None:
            config.raise_invalid("frame_filters", "they are for frames of pixels; set frame_shape")
        return
    pixels = number_of_pixels(config.frame_shape)
    if config.input_size is None:
        config.input_size = pixels
    if config.input_size != pixels:
        config.raise_invalid("input_size", f"a frame of frame_shape={config.frame_shape} has {pixels} values")
    config.check_numbers(["frame_stride"], lambda value: value >= 1, "it must be at least 1")
    config.check_numbers(
        ["frame_kernel_size"], lambda value: value >= 1 and value % 2 == 1, "it must be an odd number of at least 1"
    )


def entering_channels(config: Any) -> int:
    """Number of maps of the size of a frame that enter its convolutions, or a stack of maps.

    Those of a forecaster are the channels at each lag, with their masks, and a constant map for each other feature.
    """
    channels: int = config.frame_shape[0]
    if config.feature_size is None:
        return channels
    lags = 2 * len(config.lags_sequence)
    return lags * channels + config.feature_size - lags * config.input_size


def map_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of a frame after its convolutions."""
    _, height, width = config.frame_shape
    if config.frame_filters is None:
        return entering_channels(config), height, width
    for _ in config.frame_filters:
        height, width = -(-height // config.frame_stride), -(-width // config.frame_stride)
    return config.frame_filters[-1], height, width
