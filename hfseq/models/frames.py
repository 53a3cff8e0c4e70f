"""Convolutions over each frame of pixels."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_base import SequenceConfig
from .configuration_frames import entering_channels


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
