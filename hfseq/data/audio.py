"""Recordings with a transcription or a class each: metadata files beside them, Parquet, and data sets of the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfseq.data.reading import (
    HUB_SPLITS,
    Columns,
    check_sources,
    file_rows,
    filled_rows,
    has_labels,
    hub_rows,
    load_hub,
    shorten_list,
    string_table,
)
from hfseq.errors import InputError, one_line, require
from hfseq.lazy import datasets
from hfseq.models.audio import read_audio, resample

AUDIO = "audio"
"""Column of the recordings: a dict of `path` and `bytes`, the contents of the file; one of them may be None."""
PLACE = "audio_place"
"""Column of file and row that a recording is from, for errors."""
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Types of paths and of files' contents in Arrow.
_STORED = ("string", "large_string", "string_view", "binary", "large_binary")


def read_audio_splits(
    *,
    columns: Sequence[str],
    audio_column: str | None = None,
    label_columns: Sequence[str] = (),
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    column_names: Sequence[str] | None = None,
) -> datasets.DatasetDict:
    """Read which recordings there are, with their texts or classes; `decode_audio` reads the recordings themselves.

    A file is one of

    - a folder with `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, as the audio folders of `datasets` have;
    - a CSV, TSV or JSON Lines file with a column of paths;
    - a Parquet file with a column of paths, of files' contents, or of dicts of `bytes` and `path`.

    Paths are relative to the folder of the file that names them. Formats are as for
    `hfseq.data.reading.read_splits`, and rows with an empty column are dropped as there.

    Args:
        columns: Columns of texts and classes to keep; none for recordings alone.
        audio_column: Column of the recordings; by default `file_name` in files and `audio` in `dataset_name`.
        label_columns: Those of `columns` that contain classes.
        dataset_name: Hub data set, folder written by `save_to_disk`, or folder with a folder for each split, such as
            `train`, that has a metadata file.
        dataset_config_name: Configuration of that data set.
        train_file: Training data; excludes `dataset_name`.
        validation_file: Validation data; replaces that of `dataset_name`.
        test_file: Test data; replaces that of `dataset_name`.
        column_names: Column names of CSV and TSV files without a header.

    Returns:
        The given or found ones of `train`, `validation` and `test`, with the columns `audio` (see `AUDIO`), not
        decoded, `audio_place` (see `PLACE`), and `columns` as strings.

    Raises:
        InputError: A flag, file, line, column or value is invalid, a recording does not exist, or soundfile is not
            installed.
    """
    require("soundfile", extra="audio", use="reading recordings")
    check_sources([AUDIO, PLACE, *columns], dataset_name, train_file)
    texts = Columns(tuple(columns), label_columns)
    splits: dict[str, datasets.Dataset] = {}
    if dataset_name:
        folders = _split_folders(dataset_name)
        for split, folder in folders.items():
            splits[split] = read_audio_file(folder, "--dataset_name", audio_column, texts, column_names)
        if not folders:
            splits = _read_hub(dataset_name, dataset_config_name, audio_column or AUDIO, texts)
    for split, name in (("train", train_file), ("validation", validation_file), ("test", test_file)):
        if name is not None:
            splits[split] = read_audio_file(Path(name), f"--{split}_file", audio_column, texts, column_names)
    if not splits:
        raise InputError(f"no data: give --train_file or --dataset_name{' with labels' if dataset_name else ''}")
    return datasets.DatasetDict(splits)


def decode_audio(
    audio: Mapping[str, Any] | None,
    place: str,
    *,
    sampling_rate: int | None = None,
    resampling: bool = True,
    mono: bool = False,
) -> tuple[np.ndarray, int]:
    """Decode the recording of a row.

    Args:
        audio: Value of `AUDIO` in the row.
        place: Value of `PLACE`.
        sampling_rate: Rate to return samples at, in Hz; by default that of the recording.
        resampling: Resample a recording at another rate, in place of refusing it.
        mono: Average the channels of a recording that has several, in place of refusing it.

    Returns:
        Samples `[N]` in float32 with full scale 1.0, and their rate in Hz.

    Raises:
        InputError: The file does not exist, or it is not audio, empty, truncated, not of one channel, at another rate,
            or has NaN or infinite samples; or a package is missing. The message names file, row and recording.
    """
    require("soundfile", extra="audio", use="reading recordings")
    path, contents = (None, None) if audio is None else (audio["path"], audio["bytes"])
    source = path if contents is None else contents
    if source is None:
        raise InputError(f"{place}: there is no recording")
    name = f"{place}: {path}" if path else place
    try:
        samples, rate = read_audio(source, name, mono=mono)
    except ValueError as error:
        raise InputError(one_line(error)) from None
    if sampling_rate is None or sampling_rate == rate:
        return samples, rate
    if not resampling:
        raise InputError(f"{name}: {rate} Hz, but {sampling_rate} Hz are wanted and resampling is off")
    require("soxr", extra="audio", use=f"{name}: resampling from {rate} Hz to {sampling_rate} Hz")
    samples = resample(samples, rate, sampling_rate)
    if not len(samples):
        raise InputError(f"{name}: too short to be resampled from {rate} Hz to {sampling_rate} Hz")
    return samples, sampling_rate


def _split_folders(dataset_name: str) -> dict[str, Path]:
    """Folders with a metadata file in a local folder, by the split that they are named after."""
    root = Path(dataset_name)
    found = {}
    for split, aliases in HUB_SPLITS.items():
        for alias in aliases:
            if _metadata_file(root / alias):
                found[split] = root / alias
    if not found and (metadata := _metadata_file(root)):
        raise InputError(
            f"--dataset_name {dataset_name}: {metadata.name} is in no folder of a split, such as train; give the "
            "folder with --train_file"
        )
    return found


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in _METADATA if (folder / name).is_file()), None)


def read_audio_file(
    path: Path, flag: str, audio_column: str | None, texts: Columns, column_names: Sequence[str] | None
) -> datasets.Dataset:
    """Read a metadata file, or that of a folder; formats, result and errors as for `read_audio_splits`.

    Args:
        path: Path of the file or the folder.
        flag: Flag that gave it, for errors.
        audio_column: Column of the recordings.
        texts: Columns of texts and classes.
        column_names: Column names of a CSV or TSV file without a header.
    """
    audio_column = audio_column or "file_name"
    if path.is_dir():
        metadata = _metadata_file(path)
        if metadata is None:
            raise InputError(f"{flag} {path}: no {' or '.join(_METADATA)} in this folder")
        path = metadata
    if path.suffix.lower() == ".parquet" and not column_names:
        return _read_parquet(path, flag, audio_column, texts)
    columns = Columns((audio_column, *texts.names), texts.labels)
    check_sources(columns.names, None, None)
    rows = datasets.Dataset(string_table(file_rows(str(path), flag, columns, column_names, False), columns))
    filled = filled_rows(rows, columns, str(path), f"{flag} {path}")
    audio = _beside(path, rows[audio_column], filled)
    return _join(audio, rows.select_columns(list(texts.names)), str(path)).select(filled)


def _read_parquet(path: Path, flag: str, audio_column: str, texts: Columns) -> datasets.Dataset:
    if not path.is_file():
        raise InputError(f"{path}: no such file ({flag})")
    source = f"{flag} {path}"
    try:
        data = datasets.load_dataset("parquet", data_files={"train": str(path)}, split="train")
    # Anything that a damaged file or a full cache can raise.
    except Exception as error:
        raise InputError(f"{source}: cannot be read ({one_line(error.__cause__ or error, named=True)})") from error
    audio = _audio_column(data, audio_column, source)
    texts_of = _texts_of(data, texts, source)
    filled = np.arange(len(data)) if texts_of is None else filled_rows(texts_of, texts, str(path), source)
    stored = audio.with_format("arrow")[:][AUDIO]
    if all(chunk.field("bytes").null_count == len(chunk) for chunk in stored.chunks):
        audio = _beside(path, [value and value["path"] for value in stored.to_pylist()], filled)
    return _join(audio, texts_of, str(path)).select(filled)


def _read_hub(name: str, config: str | None, audio_column: str, texts: Columns) -> dict[str, datasets.Dataset]:
    try:
        found = load_hub(name, config, streaming=False)
    except InputError as error:
        if "torchcodec" in str(error):
            raise InputError(
                f"--dataset_name {name}: datasets needs torchcodec to load folders of audio files; download them (hf "
                f"download {name} --repo-type dataset --local-dir DIR), and give the folder DIR"
            ) from error
        raise
    splits = {}
    for split, (alias, data) in found.items():
        title, source = f"{name} [{alias}]", f"--dataset_name {name}, split {alias}"
        audio, rows = _audio_column(data, audio_column, source), _texts_of(data, texts, source)
        joined = _join(audio, rows, title)
        if rows is None:
            splits[split] = joined
        elif split == "train" or has_labels(rows, texts, title):
            splits[split] = joined.select(filled_rows(rows, texts, title, source))
    return splits


def _audio_column(data: datasets.Dataset, column: str, source: str) -> datasets.Dataset:
    """Recordings of a data set, in the column `audio` and not decoded."""
    if column not in data.column_names:
        raise InputError(f"{source}: no column {column!r}; there are {shorten_list(data.column_names)}")
    data, kind = data.select_columns([column]), data.features[column]
    fields = set(kind) if isinstance(kind, dict) else set()
    dtype = kind.dtype if isinstance(kind, datasets.Value) else None
    if not isinstance(kind, datasets.Audio) and dtype not in _STORED and not (fields and fields <= {"bytes", "path"}):
        raise InputError(
            f"{source}: column {column!r} must hold recordings (paths, contents of files, or both), not "
            f"{one_line(kind, 60)}"
        )
    if dtype in ("large_string", "string_view"):
        data = data.cast_column(column, datasets.Value("string"))
    data = data.cast_column(column, datasets.Audio(decode=False))
    return data if column == AUDIO else data.rename_column(column, AUDIO)


def _texts_of(data: datasets.Dataset, texts: Columns, source: str) -> datasets.Dataset | None:
    # Without columns to select, all would be read, recordings included.
    return hub_rows(data, texts, source) if texts.names else None


def _beside(path: Path, names: Sequence[str | None], filled: np.ndarray) -> datasets.Dataset:
    """Recordings by their paths, which are relative to the folder of a file, or absolute.

    Args:
        path: The file.
        names: Paths in its rows.
        filled: Indices of the rows that are kept, whose recordings must exist.
    """
    paths = [os.path.join(path.parent, name.strip()) if name else None for name in names]
    for row in filled:
        found = paths[row]
        if found is not None and not os.path.isfile(found):
            raise InputError(f"{path}, row {row + 1}: {found}: no such file; paths are relative to {path.parent}")
    features = datasets.Features({AUDIO: datasets.Value("string")})
    return datasets.Dataset.from_dict({AUDIO: paths}, features).cast_column(AUDIO, datasets.Audio(decode=False))


def _join(audio: datasets.Dataset, rows: datasets.Dataset | None, place: str) -> datasets.Dataset:
    """Join recordings, the place of each, and the texts of their rows."""
    places = datasets.Dataset.from_dict({PLACE: [f"{place}, row {number}" for number in range(1, len(audio) + 1)]})
    parts = [audio, places] if rows is None or not rows.column_names else [audio, places, rows]
    return datasets.concatenate_datasets(parts, axis=1)
