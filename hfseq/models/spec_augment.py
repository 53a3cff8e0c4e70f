"""SpecAugment: masking of spans of frames and of features (Park et al. 2019, section 2)."""

import torch
from torch import Tensor

from .configuration_base import SequenceConfig


def span_mask(lengths: Tensor, size: int, probability: float, length: int, min_masks: int) -> Tensor:
    """Boolean mask `[B, size]` that is True in random spans of each row.

    A row of n entries gets `probability * n / length` spans, rounded up or down at random, at least `min_masks` and no
    more than fit beside each other; they may overlap.

    Args:
        lengths: Number n of entries in which the spans of each row lie, the first ones, `[B]`.
        size: Number of entries of a row of the mask.
        probability: Share of the entries that are masked if no spans overlap.
        length: Number of entries of a span.
        min_masks: Minimum number of spans.
    """
    lengths = lengths.unsqueeze(1)  # [B, 1]
    most = max(int(probability * size / length + 1), min_masks)
    expected = probability * lengths / length
    count = (expected + torch.rand(expected.shape, device=lengths.device)).floor()
    count = count.clamp(min=min_masks).minimum(lengths // length)
    draws = torch.rand((len(lengths), most), device=lengths.device)
    starts = (draws * (lengths - length + 1)).floor()
    starts = starts.masked_fill(torch.arange(most, device=lengths.device) >= count, size)
    offsets = torch.arange(size, device=lengths.device) - starts.unsqueeze(2)  # [B, spans, size]
    return ((offsets >= 0) & (offsets < length)).any(dim=1)


def spec_augment(frames: Tensor, mask: Tensor | None, config: SequenceConfig) -> Tensor:
    """Set random spans of valid frames, and of features, of `[B, T, F]` to zero, the mean of normalised features.

    Args:
        frames: Normalised features.
        mask: True at valid frames, `[B, T]`; None if all are.
        config: Its fields `mask_time_*` and `mask_feature_*` count.
    """
    batch, steps, features = frames.shape
    if config.mask_time_prob > 0:
        if mask is None:
            mask = torch.ones((batch, steps), dtype=torch.bool, device=frames.device)
        ranks = mask.long().cumsum(dim=1)
        spans = span_mask(
            ranks[:, -1], steps, config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks
        )
        # Spans are of consecutive valid frames, whatever padding lies between them.
        masked = spans.gather(1, (ranks - 1).clamp(min=0))
        frames = frames.masked_fill(masked.unsqueeze(2), 0.0)
    if config.mask_feature_prob > 0:
        widths = torch.full((batch,), features, device=frames.device)
        spans = span_mask(
            widths, features, config.mask_feature_prob, config.mask_feature_length, config.mask_feature_min_masks
        )
        frames = frames.masked_fill(spans.unsqueeze(1), 0.0)
    return frames
