"""Rows of features: a collator that pads them with their labels, and their mean and standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedModel

from hfseq.data.collation import vocabulary_sizes
from hfseq.errors import InputError
from hfseq.heads import head_of
from hfseq.lazy import datasets
from hfseq.processing import extractor_of


class FeatureCollator:
    """Collator that pads rows of features, or of a waveform, and their labels.

    A row has the model's main input, `input_features` `[T, F]` for models of hfseq, or `[T, C, H, W]` for those with a
    `frame_shape`, and may have `labels`:

    - a class id or a number, or floats, as many in each row, of a multi-label classifier or a regression;
    - label ids of a tagger, one a step: of n frames ceil(n / `subsampling_factor`);
    - target ids of a model that writes, of any number.

    Ids are padded with -100; those of a tagger stand at the valid steps, wherever the padding is.

    Args:
        model: Model, of hfseq or transformers, for which the rows are.
        processing_class: Feature extractor, or a processor with one, by whose `pad` rows are padded. None pads on the
            right with zeros.
    """

    def __init__(self, model: PreTrainedModel, processing_class: Any = None) -> None:
        self.extractor = extractor_of(processing_class)
        self.name = model.main_input_name
        sizes = vocabulary_sizes(model)
        self.size, self.frame_shape = sizes.get("input_size"), sizes.get("frame_shape")
        # An ensemble, whose members may differ, has none, and needs none: it does not tag.
        self.factor: int = 1 if self.size is None else getattr(model.config, "subsampling_factor", 1)
        self.tags = head_of(type(model).__name__).suffix == "ForTokenClassification"
        # With label smoothing the Trainer takes the labels from the batch, from which a model would make these.
        self.shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if self.shift is None and model.config.is_encoder_decoder:
            # Whisper shifts labels itself, but those of a loss outside the model never reach it.
            self.shift = partial(_shifted_right, model.config)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Pad rows to a batch with `attention_mask`, and with `labels` and `decoder_input_ids` where there are labels.

        Raises:
            InputError: A row has no features or they are no frames of the model's width, a tagger's row has not one
                label a step, or rows have different numbers of floats. The message names the row in the batch.
        """
        inputs = [self._inputs(row, number) for number, row in enumerate(rows)]
        if self.extractor is not None:
            # Models of transformers may read no mask, which their extractors know.
            options: dict[str, Any] = {} if self.size is None else {"return_attention_mask": True}
            columns: Any = {self.name: inputs}
            padded = self.extractor.pad(columns, padding=True, return_tensors="pt", **options)
            batch = {name: torch.as_tensor(values) for name, values in padded.items()}
        else:
            features = [torch.from_numpy(values) for values in inputs]
            lengths = torch.tensor([len(values) for values in inputs])
            batch = {self.name: pad_sequence(features, batch_first=True)}
            batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()
        labels = [row.get("labels") for row in rows]
        missing = [number for number, values in enumerate(labels) if values is None]
        if len(missing) == len(rows):
            return BatchFeature(batch)
        if missing:
            raise InputError(f"row {missing[0]} has no labels, but others of its batch have")
        batch["labels"] = self._labels(labels, batch, [len(values) for values in inputs])
        if self.shift is not None:
            batch["decoder_input_ids"] = self.shift(labels=batch["labels"])
        return BatchFeature(batch)

    def _inputs(self, row: Mapping[str, Any], number: int) -> np.ndarray:
        if row.get(self.name) is None:
            raise InputError(f"row {number} has no {self.name}; its columns are {', '.join(sorted(row))}")
        return read_frames(row[self.name], self.size, f"row {number}: {self.name}", self.frame_shape)

    def _labels(self, labels: Sequence[Any], batch: Mapping[str, torch.Tensor], lengths: list[int]) -> torch.Tensor:
        found = [torch.as_tensor(values) for values in labels]
        # An empty list has no type of its own.
        found = [values if values.numel() else values.long() for values in found]
        if found[0].dim() == 0 or found[0].is_floating_point():
            sizes = [tuple(values.shape) for values in found]
            for number, size in enumerate(sizes):
                if size != sizes[0]:
                    raise InputError(f"row {number}: labels have shape {size}, but row 0 has {sizes[0]}")
            return torch.stack(found)
        if not self.tags:
            return pad_sequence(found, batch_first=True, padding_value=-100)
        for number, (values, length) in enumerate(zip(found, lengths, strict=True)):
            steps = -(-length // self.factor)
            if len(values) != steps:
                of = f"{length} frames" + (f", {steps} steps of {self.factor}" if self.factor > 1 else "")
                raise InputError(f"row {number}: {len(values)} labels for {of}; give one label a step")
        # Stacked frames are moved to the left, and so are their labels.
        width = -(-batch["attention_mask"].shape[1] // self.factor)
        counts = torch.tensor([len(values) for values in found]).unsqueeze(1)
        at = torch.arange(width) < counts if self.factor > 1 else batch["attention_mask"] != 0
        return torch.full(at.shape, -100).masked_scatter(at, torch.cat(found).long())


def write_rows(
    rows: datasets.Dataset,
    encode: Callable[[dict[str, Any], int], Sequence[Mapping[str, Any]]],
    features: datasets.Features,
    path: str,
) -> datasets.Dataset:
    """Encode rows one by one into a file, from which they are read: hours of recordings do not fit the memory.

    Args:
        rows: Rows of a split.
        encode: Returns the encoded rows of a row, given its number.
        features: Columns of the encoded rows.
        path: Path of the file, whose name is that of the split.
    """

    def encoded(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        found = [one for row, number in zip(rows, numbers, strict=True) for one in encode(row, number)]
        return {name: [one[name] for one in found] for name in features}

    split = Path(path).stem
    return rows.map(
        encoded,
        with_indices=True,
        batched=True,
        batch_size=16,
        remove_columns=rows.column_names,
        features=features,
        cache_file_name=path,
        # A fingerprint of its own, since hashing the task would take long and mean nothing.
        new_fingerprint=f"{id(encode)}-{split}",
        writer_batch_size=100,
        desc=f"Encoding {split}",
    )


def _shifted_right(config: Any, labels: torch.Tensor) -> torch.Tensor:
    """Inputs `[B, T]` of a decoder: the labels behind the token that it starts with, and pad tokens for -100."""
    ids = labels.masked_fill(labels == -100, config.pad_token_id)
    return torch.nn.functional.pad(ids[:, :-1], (1, 0), value=config.decoder_start_token_id)


def read_frames(values: Any, size: int | None, name: str, shape: Sequence[int] | None = None) -> np.ndarray:
    """Frames of features as a float32 array `[T, F]`; of another layout, such as a waveform `[T]`, as it is.

    Args:
        values: Array, tensor, or nested lists of numbers.
        size: Number F of features of a frame; None for any layout.
        name: Name of the values in messages.
        shape: Channels, height and width of frames that may also come as `[T, C, H, W]`; None for none such.

    Raises:
        InputError: They are not numbers, are ragged or empty, or a frame has another number of features.
    """
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        width = len(values[0]) if isinstance(values, list) and isinstance(values[0], list) else None
        ragged = None if width is None else next((at for at, one in enumerate(values) if len(one) != width), None)
        if ragged is not None:
            message = f"{name}: frame {ragged} has {len(values[ragged])} features, but frame 0 has {width}"
            raise InputError(message) from error
        raise InputError(f"{name} are not frames of numbers: {error}") from error
    expected = "(frames, features)" if size is None else f"(frames, {size}), since input_size is {size}"
    if shape is not None:
        expected = f"(frames, {', '.join(map(str, shape))}), since frame_shape is {list(shape)}"
        if array.shape[1:] == tuple(shape):
            array = array.reshape(len(array), -1)
    if array.size == 0 or (size is not None and (array.ndim != 2 or array.shape[1] != size)):
        raise InputError(f"{name} have shape {array.shape}, expected {expected}, with at least one frame")
    return array


def feature_statistics(
    rows: Iterable[Mapping[str, Any]], name: str = "input_features"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature over all valid frames, for `set_feature_statistics` of a model.

    One pass at constant memory, in float64: the sums of each row are merged with those of the rows before (Chan, Golub
    & LeVeque 1983). They are of differences from the first frame, so that features of a large mean lose no digits, and
    the standard deviation of a constant one is exactly 0.

    Args:
        rows: Training rows, or batches of them, with features `[T, F]` or `[B, T, F]`; an `attention_mask` of `[T]` or
            `[B, T]` excludes frames. They are read once, so that streams are accepted.
        name: Name of the column of features.

    Returns:
        Mean and (population) standard deviation, each `[F]`, in float64.

    Raises:
        InputError: There are no frames, a row has no such column or another number of features, or a value of a valid
            frame is not finite. The message names row, frame and feature.
    """
    count = 0
    origin = mean = squares = np.zeros(0)
    for number, row in enumerate(rows):
        if row.get(name) is None:
            raise InputError(f"row {number} has no {name}; its columns are {', '.join(sorted(row))}")
        features = np.asarray(row[name])
        mask = row.get("attention_mask")
        if features.ndim not in (2, 3) or (count and features.shape[-1] != len(origin)):
            width = f"(frames, {len(origin)}), as in the rows before" if count else "(frames, features)"
            raise InputError(f"row {number}: {name} has shape {features.shape}, expected {width}")
        if mask is not None:
            features = features[np.asarray(mask, dtype=bool)]
        frames = features.reshape(-1, features.shape[-1]).astype(np.float64)  # [n, F]
        if not len(frames):
            continue
        bad = np.argwhere(~np.isfinite(frames))
        if len(bad):
            frame, feature = bad[0].tolist()
            value = frames[frame, feature]
            raise InputError(
                f"row {number}: {name}: valid frame {frame}, feature {feature} is {value}, not a finite number"
            )
        if not count:
            origin = frames[0].copy()
            mean, squares = np.zeros_like(origin), np.zeros_like(origin)
        frames -= origin
        own = frames.mean(axis=0)
        delta, total = own - mean, count + len(frames)
        squares = squares + ((frames - own) ** 2).sum(axis=0) + delta**2 * (count * len(frames) / total)
        mean = mean + delta * (len(frames) / total)
        count = total
    if not count:
        raise InputError(f"there are no frames of {name} to take the mean of")
    return torch.from_numpy(origin + mean), torch.from_numpy(np.sqrt(squares / count))
