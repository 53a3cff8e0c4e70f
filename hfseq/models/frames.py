"""Convolutions over each frame of pixels."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_base import SequenceConfig
from .configuration_frames import entering_channels, map_shape


class FrameConvolution(nn.Conv2d):
    """Convolution of maps `[N, C, H, W]`, with zeros around them: H and W are divided by the stride, rounded up.

    Args:
        in_channels: Number of maps.
        out_channels: Number of filters.
        kernel_size: Height and width of a filter, an odd number.
        stride: Distance of neighbouring outputs.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)

    def init_parameters(self) -> None:
        """Normal filters of variance 2 / fan-in, as a ReLU follows (He et al. 2015, eq. 10), biases of 0."""
        init.kaiming_normal_(self.weight, nonlinearity="relu")
        init.zeros_(self.bias)


class FrameEncoder(nn.Module):
    """Convolutions over each frame, each with a ReLU (as the CNN of Donahue et al. 2015, section 4, but learnt).

    A frame does not see its neighbours in time, so that neither padding nor the length of a sequence changes it.

    Args:
        config: Its fields `frame_*`, and those of `entering_channels`, count.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.frame_shape = list(config.frame_shape or ())
        channels = [entering_channels(config), *(config.frame_filters or [])]
        self.pixels = config.input_size * (1 if config.feature_size is None else 2 * len(config.lags_sequence))
        self.convolutions = nn.ModuleList(
            FrameConvolution(one, filters, config.frame_kernel_size, config.frame_stride)
            for one, filters in zip(channels, channels[1:], strict=False)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames `[B, T, F]` to their last maps, flattened, `[B, T, C * H * W]`.

        Features that are not of a pixel become constant maps.
        """
        batch, length, size = frames.shape
        _, height, width = self.frame_shape
        values = frames.reshape(batch * length, size)
        maps = values[:, : self.pixels].reshape(batch * length, -1, height, width)
        if size > self.pixels:
            others = values[:, self.pixels :, None, None].expand(-1, -1, height, width)
            maps = torch.cat([maps, others], dim=1)
        for convolution in self.convolutions:
            maps = convolution(maps).relu()
        return maps.reshape(batch, length, -1)


class MapProjection(nn.Module):
    """Linear layer from the maps of a stack to each pixel of a frame (Shi et al. 2015, section 3.2).

    The layer is a convolution of 1 x 1. Where the maps are smaller than the frame, it gives the pixels of the square
    under each of their places (sub-pixel convolution, Shi et al. 2016, eq. 4).

    Args:
        config: Its fields `frame_*` and `hidden_size` count.
        count: Number of values for each channel of a frame.
    """

    def __init__(self, config: SequenceConfig, count: int) -> None:
        super().__init__()
        channels, *self.frame_size = config.frame_shape or ()
        _, self.height, self.width = map_shape(config)
        self.factor = -(-self.frame_size[0] // self.height)
        self.linear = nn.Linear(
            config.hidden_size // (self.height * self.width), count * channels * self.factor * self.factor
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states `[B, T, hidden_size]` to values of frames `[B, T, count * C * H * W]`."""
        batch, length, _ = hidden.shape
        height, width = self.frame_size
        maps = hidden.reshape(batch * length, -1, self.height * self.width).transpose(1, 2)
        values = self.linear(maps).transpose(1, 2).reshape(batch * length, -1, self.height, self.width)
        values = nn.functional.pixel_shuffle(values, self.factor)[:, :, :height, :width]
        return values.reshape(batch, length, -1)
