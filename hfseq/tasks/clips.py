"""Base of the tasks of video: clips, and frames of pixels or points that models read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.moving_digits import LENGTHS, moving_digit_rows, render
from hfseq.data.encoding import EncodedSplits
from hfseq.data.features import FeatureCollator, feature_statistics, write_rows
from hfseq.data.video import CLIP, PLACE, ClipFormat, ImageCollator, clip_of, read_clip
from hfseq.errors import InputError
from hfseq.inference.benchmark import Run
from hfseq.lazy import datasets
from hfseq.models import is_hfseq
from hfseq.processing import image_processor_of
from hfseq.tasks.base import Task

SHOWN = 4
"""Clips of the test that plots show."""


class Video(Task):
    """Clips; their frames are read once, and then from a temporary file.

    Attributes:
        form: Frames that are made of a clip; set by `new_processor` and `configure`.
        frame_shape: Channels, height and width of a frame of pixels; None for points.
        statistics: Mean and standard deviation of each value of a frame in the training clips, for a new model; None
            for others.
    """

    features = True
    length_unit = "frames"
    rows = "clips"
    embedded_name = "handwritten digits that move and bounce"
    packages: ClassVar[tuple[str, ...]] = ("matplotlib", "sklearn")
    embedded_size: ClassVar[int | None] = None
    """Number of embedded training clips; None for that of `moving_digit_rows`."""

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        # The reader gives the column of the clips this name, whatever it is in the files.
        self.names = (CLIP, *self.names[1:])
        size = data.image_size
        size = None if size is None else (size[0], size[-1])
        self.form = ClipFormat(data.num_frames, data.frame_stride, size, data.num_channels)
        self.frame_shape: tuple[int, ...] | None = None
        self.frame_size = 0
        self.statistics: tuple[torch.Tensor, torch.Tensor] | None = None
        self._new = False
        self._folder: Any = None

    def read_columns(self) -> tuple[str, ...]:
        """Names of the columns to read beside the clips."""
        return self.names[1:]

    def embedded(self) -> datasets.DatasetDict:
        """Let handwritten digits move; `clip` draws their frames when they are needed.

        Raises:
            InputError: There is a `--block_size`, but no file to split.
        """
        if self.data.block_size is not None:
            raise InputError("--block_size splits --train_file, which is missing")
        splits = moving_digit_rows(train_size=self.embedded_size, lengths=self.embedded_lengths())
        for split, rows in splits.items():
            splits[split] = rows.add_column(PLACE, [f"{split}, row {row}" for row in range(1, len(rows) + 1)])
        return splits

    def embedded_lengths(self) -> tuple[int, int]:
        """Least and most frames of the embedded clips."""
        return LENGTHS

    def clip(self, row: Mapping[str, Any]) -> NDArray[np.float32]:
        """Frames of a row: pixels `[T, C, H, W]` from 0 to 1, or points `[T, F]`.

        Raises:
            InputError: As for `read_clip`.
        """
        if "positions" in row:
            return clip_of(render(row)[:, 0], row[PLACE], self.form)
        return read_clip(row, self.form)

    # Model

    def new_processor(self, args: Any) -> Any:
        """Create the processing class of a new model, and set the fields of its inputs; see `Task.new_processor`.

        Args:
            args: Model arguments.

        Returns:
            A tokenizer of captions, else None; None also if the arguments name a checkpoint, which has its own.

        Raises:
            InputError: The first training clip cannot be read, or a flag has no effect.
        """
        self._check_flags(args)
        if args.model_name_or_path is not None:
            return None
        row = self.splits["train"][0]
        first = self._inputs(self.clip(row), row[PLACE])
        self._new = True
        self.frame_size = int(np.prod(first.shape[1:]))
        self.fields = self.fields | {"input_size": self.frame_size}
        if first.ndim == 4:
            self.frame_shape = first.shape[1:]
            self.fields = self.fields | {"frame_shape": list(self.frame_shape)}
        return None

    def _check_flags(self, args: Any) -> None:
        for name in ("tokenizer_model", "vocab_size", "normalization", "lowercase"):
            if getattr(args, name) != type(args).__dataclass_fields__[name].default:
                raise InputError(f"--{name} is for --task captions; leave it out")

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Take size and channels of frames from a model, and set the statistics of a new one.

        Args:
            model: Model, modified in place.
            tokenizer: Its processing class, or None.

        Raises:
            InputError: A flag gives other frames than the model reads.
        """
        super().configure(model, tokenizer)
        config: Any = model.config
        if is_hfseq(config):
            shape = getattr(config, "frame_shape", None)
            self.frame_shape = None if shape is None else tuple(shape)
            self.frame_size = config.input_size
        else:
            side = config.image_size
            height, width = (side, side) if isinstance(side, int) else side
            self.frame_shape = (config.num_channels, height, width)
            self.frame_size = int(np.prod(self.frame_shape))
            wanted = self.data.num_frames
            if wanted not in (None, config.num_frames):
                raise InputError(f"--num_frames {wanted}: the model reads {config.num_frames}; leave it out")
            self.form = self.form._replace(num_frames=config.num_frames)
        if self.frame_shape is not None:
            channels, *size = self.frame_shape
            for flag, given, own in (
                ("image_size", self.form.image_size, tuple(size)),
                ("num_channels", self.form.num_channels, channels),
            ):
                if given not in (None, own):
                    raise InputError(f"--{flag} {given}: the model reads {own}; leave it out")
            # Those of a new model are those of its data, of which all clips must be.
            if not (self._new and is_hfseq(config)):
                self.form = self.form._replace(image_size=(size[0], size[1]), num_channels=channels)
        if self.statistics is not None:
            base: Any = model.base_model
            # Of an encoder-decoder the encoder reads the frames.
            getattr(base, "encoder", base).set_feature_statistics(*self.statistics)

    # Encoding

    def encode(self, model: PreTrainedModel, tokenizer: Any, log: Callable[..., Any]) -> None:
        """Configure a model, read all clips, and normalise the inputs of a new model; see `Task.encode`."""
        super().encode(model, tokenizer, log)
        if self._new and self.statistics is None and is_hfseq(model.config) and "train" in self.encoded:
            self._normalise(model, tokenizer)

    def _normalise(self, model: PreTrainedModel, tokenizer: Any) -> None:
        mean, scale = feature_statistics(self.encoded["train"], model.main_input_name)
        if self.frame_shape is not None:
            # Pixels at the rim vary little: those of a channel share mean and scale.
            means, scales = (values.reshape(self.frame_shape[0], -1) for values in (mean, scale))
            centre = means.mean(dim=1, keepdim=True)
            spread = (scales.square() + (means - centre).square()).mean(dim=1, keepdim=True).sqrt()
            mean, scale = (values.expand_as(means).flatten() for values in (centre, spread))
        self.statistics = mean, scale
        self.configure(model, tokenizer)

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        name = self.main_input = model.main_input_name
        if is_hfseq(model.config):
            self.collator = CheckedCollator(FeatureCollator(model, tokenizer), model)
        else:
            assert self.frame_shape is not None
            self.collator = CheckedCollator(ImageCollator(self.frame_shape, image_processor_of(tokenizer)), model)
        self._folder = tempfile.TemporaryDirectory(prefix="hfseq-clips-")
        encoded = EncodedSplits({}, {}, [])
        features = datasets.Features(self._features(name) | {"length": datasets.Value("int64")})
        for split, rows in self.splits.items():
            path = f"{self._folder.name}/{split}.arrow"
            found = write_rows(rows, partial(self._rows, split=split, name=name), features, path)
            encoded.lengths[split] = list(found["length"])
            columns = [column for column, kind in features.items() if isinstance(kind, datasets.Array2D)]
            encoded.rows[split] = found.remove_columns("length").with_format(
                "numpy", columns=columns, output_all_columns=True
            )
            if split != "train_sample":
                encoded.notes.extend(self._notes(split, rows))
        return encoded

    def _features(self, name: str) -> dict[str, Any]:
        return {name: self._frames(), "labels": self._label_feature()}

    def _frames(self) -> Any:
        return datasets.Array2D((None, self.frame_size), "float32")

    def _label_feature(self) -> Any:
        raise NotImplementedError

    def _rows(self, row: Mapping[str, Any], number: int, split: str, name: str) -> list[dict[str, Any]]:
        """Encoded rows of a row, by default one.

        Args:
            row: The row.
            number: Its number in the split.
            split: Name of the split.
            name: Column of the frames.
        """
        frames = self._vectors(self.clip(row), row[PLACE])
        return [{name: frames, "labels": self._labels(row), "length": len(frames)}]

    def _inputs(self, clip: NDArray[np.float32], place: str) -> NDArray[np.float32]:
        """Frames that the model reads of a clip; by default its own."""
        return clip

    def _vectors(self, clip: NDArray[np.float32], place: str) -> NDArray[np.float32]:
        """Frames that the model reads of a clip, as vectors `[T, F]`."""
        clip = self._inputs(clip, place)
        shape = clip.shape[1:]
        if self.frame_shape is None and len(shape) == 1:
            if shape != (self.frame_size,):
                hint = "; it was trained with --velocities" if self.frame_size == 2 * shape[0] else ""
                raise InputError(f"{place}: {shape[0]} numbers a frame, but the model reads {self.frame_size}{hint}")
        elif shape != self.frame_shape:
            if self.frame_shape is None or len(shape) == 1:
                own, other = ("points", "pixels") if len(shape) == 1 else ("pixels", "points")
                raise InputError(f"{place}: a clip of {own}, but the model reads {other}")
            raise InputError(
                f"{place}: frames of {_size(shape)}, but others of {_size(self.frame_shape)}; give --image_size, "
                "or --num_channels"
            )
        return clip.reshape(len(clip), -1)

    def _labels(self, row: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _notes(self, split: str, rows: datasets.Dataset) -> list[str]:
        return []

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from clips to predictions, their reading included, and rows of clips; see `Task.timed`."""
        # A copy, since several models take turns.
        task, name = self.encoded_split(model, processing_class, split), model.main_input_name
        model.eval()

        @torch.inference_mode()
        def run(rows: Sequence[Mapping[str, Any]]) -> Any:
            encoded = [one for row in rows for one in task._rows(row, 0, split, name)]
            batch = task.collator(encoded).to(model.device)
            return task.timed_batch(model, batch)

        return run, list(self.splits[split].select(range(min(count, len(self.splits[split])))))

    def timed_batch(self, model: PreTrainedModel, batch: Any) -> Any:
        """Predictions of a batch, on the CPU, as they are timed."""
        labels = batch.pop("labels")
        return self.raw(model, batch, None if self.generates else model(**batch), labels)

    # Reports

    def sources(self, split: str) -> list[str]:
        """Name of each clip, or its place."""
        rows = self.splits[split]
        if CLIP not in rows.column_names:
            return list(rows[PLACE])
        return [
            place if clip["number"] >= 0 else Path(clip["path"]).name
            for clip, place in zip(rows[CLIP], rows[PLACE], strict=True)
        ]

    def example(self, split: str) -> str | None:
        """None: a model card cannot show a clip."""
        return None

    def _shown(self, split: str) -> list[tuple[int, NDArray[np.float32]]]:
        """First clips of pixels of a split, with the numbers of their rows."""
        if self.frame_shape is None:
            return []
        return [
            (number, self.clip(row)) for number, row in enumerate(self.splits[split].select(range(self._few(split))))
        ]

    def _few(self, split: str) -> int:
        return min(SHOWN, len(self.splits[split]))


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels > 1)} of {height}x{width} pixels"
