"""Clips of frames or of points: NumPy archives, folders of images, video files, and tables of points."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BatchFeature

from hfseq.data.reading import Columns, check_sources, csv_fields, file_rows, filled_rows, shorten_list, string_table
from hfseq.errors import InputError, one_line, require
from hfseq.lazy import datasets

logger = logging.getLogger(__name__)

CLIP = "clip"
"""Column of the clips: a dict of `path` and `number`, the row in a NumPy archive, or -1 for a whole file or folder."""
POINTS = "points"
"""Column of clips of points `[T, F]` that a table contains."""
PLACE = "clip_place"
"""Column of file and row that a clip is from, for errors."""
CLIPS, LENGTHS = "clips", "lengths"
"""Arrays of a NumPy archive: the clips, and the number of frames of each if they are padded at the end."""
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
"""Extensions of frames that a folder has as images."""
VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v")
"""Extensions of video files."""
BLOCKS_SEED = 0
"""Seed by which `split_blocks` draws blocks."""

# Largest deviations of `augment_points`: of time as a share of the clip, of the angle in radians, of the logarithm of
# the size, and of each point as a share of the path's spread.
_WARP, _TURN, _SCALE, _UNSTEADINESS = 0.1, 0.3, 0.2, 0.02
_METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
# Weights of red, green and blue in the luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class ClipFormat(NamedTuple):
    """Frames that are made of a clip.

    Attributes:
        num_frames: Number of frames, taken evenly from the whole clip, some of them twice if it has fewer; None for
            all.
        frame_stride: Every so many frames one is taken, before `num_frames` are.
        image_size: Height and width to which frames are resized; None to leave them as they are.
        num_channels: 1 for grey frames, 3 for red, green and blue; None for those of the file.
    """

    num_frames: int | None = None
    frame_stride: int = 1
    image_size: tuple[int, int] | None = None
    num_channels: int | None = None

    def indices(self, length: int) -> NDArray[np.int64]:
        """Numbers of the frames that are taken of a clip of `length` frames."""
        taken = np.arange(0, length, self.frame_stride)
        return taken if self.num_frames is None else taken[sample_frames(len(taken), self.num_frames)]


def read_clip_splits(
    *,
    columns: Sequence[str],
    label_columns: Sequence[str] = (),
    clip_column: str = "file_name",
    coordinates: int | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    column_names: Sequence[str] | None = None,
) -> datasets.DatasetDict:
    """Read which clips there are, with their classes or captions; `read_clip` reads the frames themselves.

    A file is one of

    - a NumPy archive (.npz) with an array `clips`: pixels `[N, T, H, W]`, `[N, T, H, W, C]` or `[N, T, C, H, W]` with
      one or three channels, as bytes or as floats from 0 to 1; or points `[N, T, F]` or `[N, T, K, 2 or 3]`. Further
      arrays `[N]` are named after `columns`; with `lengths` `[N]` clips are padded at the end;
    - a folder with `metadata.csv` (or .tsv, .jsonl, .parquet), or such a file, whose column `file_name` names the
      folder of the frames of each clip, in the natural order of their names, or a video file;
    - a folder without, of clips if no column is asked for, or with a folder for each class if that is asked for;
    - with `coordinates`, a CSV file without a header whose lines are a class and so many numbers for each frame.

    Args:
        columns: Columns of classes and captions to keep; none for clips alone.
        label_columns: Those of `columns` that contain classes.
        clip_column: Column of the paths of clips, relative to the file that names them.
        coordinates: Numbers of a frame in tables of points.
        train_file: Training data.
        validation_file: Validation data.
        test_file: Test data.
        column_names: Column names of CSV and TSV files without a header.

    Returns:
        The given ones of `train`, `validation` and `test`, with the columns `clip` or `points`, `clip_place` (see
        `CLIP`, `POINTS` and `PLACE`), and `columns` as strings.

    Raises:
        InputError: A flag, file, line, column or value is invalid, or a clip does not exist.
    """
    check_sources([CLIP, POINTS, PLACE, *columns], None, train_file)
    splits = {}
    for split, name in (("train", train_file), ("validation", validation_file), ("test", test_file)):
        if name is None:
            continue
        path, flag = Path(name), f"--{split}_file"
        if not path.exists():
            raise InputError(f"{path}: no such file or folder ({flag})")
        if path.suffix.lower() == ".npz":
            texts = Columns(tuple(columns), label_columns)
            splits[split] = _archive_rows(path, flag, texts)
        elif coordinates is not None and path.is_file():
            splits[split] = _point_rows(path, flag, columns, label_columns, coordinates)
        else:
            texts = Columns(tuple(columns), label_columns)
            splits[split] = _folder_rows(path, flag, clip_column, texts, column_names)
    if not splits:
        raise InputError("no data: give --train_file")
    return datasets.DatasetDict(splits)


def split_blocks(rows: datasets.Dataset, size: int, gap: int) -> datasets.DatasetDict:
    """Split rows whose neighbours overlap, as windows of one recording do, by blocks with rows left out between them.

    Blocks of `size` rows begin at every (`size` + `gap`)-th row; the `gap` rows after each belong to no split. Of each
    five blocks one is drawn for the test, and of each ten of the others one for the validation, so that all parts of a
    file that is sorted by class are in each. The seed is `BLOCKS_SEED`.

    Args:
        rows: Rows in the order in which they were recorded.
        size: Rows of a block.
        gap: Rows between blocks; as many as one row overlaps with those after it.

    Raises:
        InputError: There are too few rows for a block in each split.
    """
    starts = range(0, len(rows), size + gap)
    rng = np.random.default_rng(BLOCKS_SEED)

    def draw(blocks: Sequence[int], every: int) -> list[int]:
        return [blocks[at + int(rng.integers(every))] for at in range(0, len(blocks) - every + 1, every)]

    tests = draw(range(len(starts)), 5)
    rest = [block for block in range(len(starts)) if block not in tests]
    held = draw(rest, 10)
    if not held:
        raise InputError(
            f"--block_size {size}: {len(rows)} rows are {len(starts)} blocks, too few for a test of a fifth of them "
            "and a validation of a tenth of the others; give smaller blocks"
        )
    parts = {"train": [block for block in rest if block not in held], "validation": held, "test": tests}
    return datasets.DatasetDict(
        {
            split: rows.select(
                [row for block in blocks for row in range(starts[block], min(starts[block] + size, len(rows)))]
            )
            for split, blocks in parts.items()
        }
    )


def read_clip(row: Mapping[str, Any], form: ClipFormat) -> NDArray[np.float32]:
    """Read the frames of a row, pixels `[T, C, H, W]` from 0 to 1, or points `[T, F]`.

    Raises:
        InputError: The clip cannot be read, is empty, has frames of several sizes, or values that are no pixels or
            not finite; or a package is missing. The message names file, row and frame.
    """
    place = row[PLACE]
    if POINTS in row:
        return clip_of(np.asarray(row[POINTS], np.float32), place, form)
    path, number = Path(row[CLIP]["path"]), row[CLIP]["number"]
    if number >= 0:
        return clip_of(_archive(path).clip(number), place, form)
    if path.is_dir():
        return _stacked(_image_frames(path, place, form), place, form)
    return _stacked(_video_frames(path, place, form), place, form)


def clip_of(frames: NDArray[Any], place: str, form: ClipFormat) -> NDArray[np.float32]:
    """Bring a clip into a format.

    Args:
        frames: Points `[T, F]`, or pixels `[T, H, W]` or `[T, H, W, C]` as bytes or as floats from 0 to 1.
        place: File and row, for errors.
        form: The format.

    Returns:
        Points `[T, F]`, or pixels `[T, C, H, W]` from 0 to 1.

    Raises:
        InputError: A value is not finite, or is no pixel.
    """
    frames = frames[form.indices(len(frames))]
    if frames.ndim == 2:
        # A number beyond float32 becomes infinite, and is then refused.
        with np.errstate(over="ignore"):
            return _checked(frames.astype(np.float32), place)
    return _stacked(((f"frame {number}", frame) for number, frame in enumerate(frames)), place, form)


def sample_frames(length: int, count: int) -> NDArray[np.int64]:
    """Numbers of `count` frames, evenly over a clip of `length` frames, the first and the last among them."""
    return np.linspace(0, length - 1, count).round().astype(np.int64)


def with_velocities(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points `[T, F]` with their differences from the points before behind them, `[T, 2 F]`; the first has none, 0."""
    return np.concatenate([points, np.diff(points, axis=0, prepend=points[:1])], axis=1)


def augment_points(points: NDArray[np.float32], copies: int, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Copies of a path in the plane that are turned, scaled, bent in time, and made unsteady.

    Args:
        points: Path `[T, 2]`.
        copies: Number of copies.
        rng: Source of randomness.
    """
    length, found = len(points), []
    steps = np.linspace(0, 1, length)
    for _ in range(copies):
        # Time runs faster in one half than in the other.
        warped = (steps + rng.uniform(-_WARP, _WARP) * np.sin(np.pi * steps)).clip(0, 1) * (length - 1)
        path = np.stack([np.interp(warped, np.arange(length), axis) for axis in points.T], axis=1)
        angle, scale = rng.uniform(-_TURN, _TURN), np.exp(rng.uniform(-_SCALE, _SCALE))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        path = path @ turn + rng.normal(0, _UNSTEADINESS * points.std(), path.shape)
        found.append(path.astype(np.float32))
    return found


def stack_windows(rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
    """Collate windows of equal lengths: `past_values` `[B, T, F]` and `future_values` `[B, P, F]`."""
    names = ("past_values", "future_values")
    return BatchFeature({name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in names})


class ImageCollator:
    """Collator of clips for models of transformers, which read `pixel_values` `[B, T, C, H, W]`.

    Args:
        shape: Channels, height and width of a frame.
        processor: Image processor of the model, with the mean and standard deviation of its channels; None for
            pixels from 0 to 1.
    """

    def __init__(self, shape: Sequence[int], processor: Any = None) -> None:
        self.shape = tuple(shape)
        normalises = processor is not None and processor.do_normalize
        mean, std = (processor.image_mean, processor.image_std) if normalises else (0.0, 1.0)
        self.mean, self.std = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Stack rows of `pixel_values` `[T, C * H * W]`, all of the same length, and their `labels`."""
        clips = torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])
        clips = (clips.reshape(*clips.shape[:2], *self.shape) - self.mean) / self.std
        return BatchFeature({"pixel_values": clips, "labels": torch.tensor([row["labels"] for row in rows])})


def _stacked(frames: Iterator[tuple[str, NDArray[Any]]], place: str, form: ClipFormat) -> NDArray[np.float32]:
    """Frames `[H, W]` or `[H, W, C]` of bytes or floats, in their format, as `[T, C, H, W]`."""
    found: list[NDArray[np.float32]] = []
    for name, frame in frames:
        frame = _formed(frame, form)
        if found and frame.shape != found[0].shape:
            raise InputError(
                f"{place}: {name} has {_shape(frame)}, but the frames before it have {_shape(found[0])}; give "
                "--image_size, or --num_channels"
            )
        found.append(frame)
    return _checked(np.stack(found), place)


def _formed(frame: NDArray[Any], form: ClipFormat) -> NDArray[np.float32]:
    """A frame `[C, H, W]` of floats from 0 to 1, of the channels and size of the format."""
    values: Any = frame.astype(np.float32)
    if frame.dtype == np.uint8:
        values /= 255
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if form.num_channels == 1 and len(values) == 3:
        values = np.tensordot(_LUMA, values, axes=1)[None]
    elif form.num_channels == 3 and len(values) == 1:
        values = values.repeat(3, axis=0)
    if form.image_size is not None and values.shape[1:] != tuple(form.image_size):
        from PIL import Image

        height, width = form.image_size
        resized = [Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in values]
        values = np.stack([np.asarray(channel, np.float32) for channel in resized])
    return values


def _shape(frame: NDArray[Any]) -> str:
    channels, height, width = frame.shape
    return f"{channels} channel{'s' * (channels > 1)} of {height}x{width} pixels"


def _checked(clip: NDArray[np.float32], place: str) -> NDArray[np.float32]:
    if not np.isfinite(clip).all():
        frame = int(np.argwhere(~np.isfinite(clip))[0][0])
        raise InputError(f"{place}: frame {frame} has a value that is not a finite number")
    # Resizing may leave the range by rounding.
    if clip.ndim == 4 and (clip.min() < -1e-3 or clip.max() > 1 + 1e-3):
        raise InputError(
            f"{place}: pixels from {clip.min():.4g} to {clip.max():.4g}; give bytes (uint8), or floats from 0 to 1"
        )
    return clip.clip(0, 1) if clip.ndim == 4 else clip


# NumPy archives.


class _Archive:
    """Clips of a NumPy archive, each `[T, F]`, `[T, H, W]` or `[T, H, W, C]`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as found:
                self.arrays = {name: found[name] for name in found.files}
        except Exception as error:  # of zipfile, NumPy, or the disk
            reason = one_line(error, named=True)
            if "allow_pickle" in reason or "Object arrays" in reason:
                reason = "an array of objects, as of clips of several lengths; pad them, and add an array 'lengths'"
            raise InputError(f"{path}: cannot be read ({reason})") from error
        if CLIPS not in self.arrays:
            raise InputError(f"{path}: no array {CLIPS!r}; there are {shorten_list(list(self.arrays))}")
        clips = self.arrays.pop(CLIPS)
        self.lengths = self.arrays.pop(LENGTHS, None)
        if clips.dtype.kind not in "fiub" or clips.ndim not in (3, 4, 5) or not clips.size:
            raise InputError(
                f"{path}: 'clips' has shape {clips.shape} and type {clips.dtype}; it must be numbers [N, T, H, W], "
                "[N, T, H, W, C], [N, T, C, H, W], or points [N, T, F]"
            )
        if clips.ndim == 5:
            if clips.shape[2] in (1, 3):
                clips = np.moveaxis(clips, 2, -1)
            elif clips.shape[4] not in (1, 3):
                raise InputError(f"{path}: 'clips' of shape {clips.shape}: frames have 1 or 3 channels")
        elif clips.ndim == 4 and clips.shape[3] <= 3:  # no image is so narrow
            clips = clips.reshape(*clips.shape[:2], -1)
        if clips.ndim > 3 and clips.dtype.kind in "iub" and clips.dtype != np.uint8:
            raise InputError(f"{path}: 'clips' has type {clips.dtype}; pixels are uint8, or floats from 0 to 1")
        self.clips = clips
        self._check_lengths()

    def _check_lengths(self) -> None:
        lengths, (count, frames) = self.lengths, self.clips.shape[:2]
        if lengths is None:
            return
        if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
            raise InputError(f"{self.path}: 'lengths' must be {count} integers, as there are clips")
        bad = np.flatnonzero((lengths < 1) | (lengths > frames))
        if len(bad):
            raise InputError(
                f"{self.path}, row {bad[0] + 1}: length {lengths[bad[0]]}, but clips have 1 to {frames} frames"
            )

    def clip(self, number: int) -> NDArray[Any]:
        frames: NDArray[Any] = self.clips[number]
        return frames if self.lengths is None else frames[: self.lengths[number]]

    def column(self, name: str) -> list[str]:
        if name not in self.arrays:
            raise InputError(f"{self.path}: no array {name!r}; there are {shorten_list([CLIPS, *self.arrays])}")
        values = self.arrays[name]
        if values.shape != (len(self.clips),):
            raise InputError(
                f"{self.path}: {name!r} has shape {values.shape}, but there are {len(self.clips)} clips; give one "
                "value for each"
            )
        if values.dtype.kind not in "iubUS":
            raise InputError(f"{self.path}: {name!r} has type {values.dtype}; it must be text or integers")
        return [self._text(value, name, row) for row, value in enumerate(values.tolist(), 1)]

    def _text(self, value: Any, name: str, row: int) -> str:
        try:
            return value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise InputError(f"{self.path}, row {row}: {name!r} is not UTF-8; give an array of text (str)") from None


# One archive a split.
@lru_cache(maxsize=3)
def _archive(path: Path) -> _Archive:
    return _Archive(path)


def _archive_rows(path: Path, flag: str, texts: Columns) -> datasets.Dataset:
    # A file may have been written anew since.
    _archive.cache_clear()
    found = _archive(path)
    clips = [{"path": str(path), "number": number} for number in range(len(found.clips))]
    rows = _table(clips, str(path), {name: found.column(name) for name in texts.names})
    return rows.select(filled_rows(rows, texts, str(path), f"{flag} {path}")) if texts.names else rows


def _table(clips: Sequence[Mapping[str, Any]], name: str, columns: Mapping[str, Sequence[Any]]) -> datasets.Dataset:
    features = {
        CLIP: {"path": datasets.Value("string"), "number": datasets.Value("int64")},
        PLACE: datasets.Value("string"),
        **{column: datasets.Value("string") for column in columns},
    }
    places = [f"{name}, row {row}" for row in range(1, len(clips) + 1)]
    rows = {CLIP: list(clips), PLACE: places, **{column: list(values) for column, values in columns.items()}}
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


# Tables of points.


def _point_rows(
    path: Path, flag: str, columns: Sequence[str], labels: Sequence[str], coordinates: int
) -> datasets.Dataset:
    if not set(columns) <= set(labels):
        raise InputError(f"{flag} {path}: a table of points has classes, but no captions")
    clips, classes = [], []
    for line, fields in csv_fields(path, flag):
        if not any(fields):
            continue
        place = f"{path}:{line}"
        if len(fields) < coordinates + 1 or (len(fields) - 1) % coordinates:
            raise InputError(
                f"{place}: {len(fields)} fields; a clip is its class, then {coordinates} numbers for each frame"
            )
        try:
            values = [float(field) for field in fields[1:]]
        except ValueError:
            bad = next(field for field in fields[1:] if not _is_number(field))
            raise InputError(f"{place}: {bad!r} is not a number; such a file has no header") from None
        if not all(map(math.isfinite, values)):
            raise InputError(f"{place}: a value is not a finite number")
        clips.append(np.reshape(values, (-1, coordinates)).tolist())
        classes.append((place, fields[0].strip()))
    if not clips:
        raise InputError(f"{path}: empty; a line is a class and the numbers of a clip")
    found = {POINTS: clips, PLACE: [place for place, _ in classes]}
    if columns:
        if missing := [place for place, name in classes if not name]:
            raise InputError(f"{missing[0]}: no class in front of the numbers")
        found[columns[0]] = [name for _, name in classes]
    features = {
        POINTS: datasets.List(datasets.List(datasets.Value("float32"))),
        **{name: datasets.Value("string") for name in found if name != POINTS},
    }
    return datasets.Dataset.from_dict(found, datasets.Features(features))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


# Folders and video files.


def _folder_rows(
    path: Path, flag: str, clip_column: str, texts: Columns, column_names: Sequence[str] | None
) -> datasets.Dataset:
    folder, metadata = path, None
    if path.is_dir():
        metadata = next((path / name for name in _METADATA if (path / name).is_file()), None)
    else:
        folder, metadata = path.parent, path
    if metadata is None:
        return _unlisted_rows(folder, flag, texts)
    columns = Columns((clip_column, *texts.names), texts.labels)
    check_sources(columns.names, None, None)
    rows = datasets.Dataset(string_table(file_rows(str(metadata), flag, columns, column_names, False), columns))
    filled = filled_rows(rows, columns, str(metadata), f"{flag} {metadata}")
    clips, kept = [], set(filled.tolist())
    for number, name in enumerate(rows[clip_column], 1):
        if number - 1 not in kept:
            clips.append({"path": "", "number": -1})
            continue
        clip = folder / name.strip()
        if not clip.exists():
            raise InputError(
                f"{metadata}, row {number}: {clip}: no such file or folder; paths are relative to {folder}"
            )
        if clip.is_file() and clip.suffix.lower() not in VIDEOS:
            raise InputError(
                f"{metadata}, row {number}: {clip}: neither a folder of frames nor a video file ({', '.join(VIDEOS)})"
            )
        clips.append({"path": str(clip), "number": -1})
    return _table(clips, str(metadata), {name: rows[name] for name in texts.names}).select(filled)


def _unlisted_rows(folder: Path, flag: str, texts: Columns) -> datasets.Dataset:
    """Clips of a folder without a metadata file: all of them, or those in the folder of each class."""
    if not texts.names:
        parents = [folder]
    elif set(texts.names) <= set(texts.labels):
        parents = sorted(_folders_in(folder))
    else:
        raise InputError(f"{flag} {folder}: no {' or '.join(_METADATA)} in this folder, which would have the captions")
    found = [(clip, parent.name) for parent in parents for clip in _clips_in(parent)]
    if not found:
        what = "no folders of classes with clips" if texts.names else "no folders of frames, and no video files"
        raise InputError(f"{flag} {folder}: no {' or '.join(_METADATA)} in this folder, and {what}")
    empty = [one for parent in parents for one in _folders_in(parent) if not _image_files(one)]
    empty = sorted({*empty, *({*parents} - {clip.parent for clip, _ in found})})
    if empty:
        names = shorten_list([str(one.relative_to(folder)) for one in empty])
        logger.warning(
            "%s: %d folder%s without clips or frames left out: %s", folder, len(empty), "s" * (len(empty) > 1), names
        )
    clips = [{"path": str(clip), "number": -1} for clip, _ in found]
    rows = _table(clips, str(folder), {name: [label for _, label in found] for name in texts.names})
    return rows.remove_columns(PLACE).add_column(PLACE, [str(clip) for clip, _ in found])


def _folders_in(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.is_dir()]


def _clips_in(folder: Path) -> list[Path]:
    found = [one for one in folder.iterdir() if one.suffix.lower() in VIDEOS or (one.is_dir() and _image_files(one))]
    return sorted(found, key=_natural)


def _image_files(folder: Path) -> list[Path]:
    return sorted((one for one in folder.iterdir() if one.suffix.lower() in IMAGES), key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _image_frames(folder: Path, place: str, form: ClipFormat) -> Iterator[tuple[str, NDArray[Any]]]:
    from PIL import Image

    files = _image_files(folder)
    if not files:
        raise InputError(f"{place}: {folder}: no frames in this folder ({', '.join(IMAGES)})")
    for number in form.indices(len(files)):
        file = files[number]
        try:
            with Image.open(file) as image:
                if image.mode.startswith("I"):  # 16 bits
                    frame = np.asarray(image, np.float32) / 65535
                else:
                    frame = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
            yield str(file), frame
        except OSError as error:
            raise InputError(f"{place}: {file}: not an image ({one_line(error)})") from error


def _video_frames(path: Path, place: str, form: ClipFormat) -> Iterator[tuple[str, NDArray[Any]]]:
    require("av", extra="video", use=f"{place}: {path}: reading video files")
    import av

    try:
        with av.open(str(path)) as container:
            # A container need not say how many frames it has.
            count = sum(packet.pts is not None for packet in container.demux(video=0))
        wanted, last = form.indices(count).tolist(), None
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                while wanted and wanted[0] == number:
                    last = frame.to_ndarray(format="gray" if form.num_channels == 1 else "rgb24")
                    yield f"frame {number}", last
                    wanted.pop(0)
        # Of a truncated file fewer frames are decoded than were counted.
        if wanted and last is not None:
            for number in wanted:
                yield f"frame {number}", last
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"{place}: {path}: not a video that can be read ({one_line(error)})") from error
    if last is None:
        raise InputError(f"{place}: {path}: there are no frames")
