"""Safe reading of HDF5 files: arrays that are in the file itself, and no larger than it."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfseq.convert.reading import existing_file
from hfseq.errors import InputError, one_line, require


@contextmanager
def open_hdf5(path: str | Path, member: str | None = None) -> Iterator[Any]:
    """Open an HDF5 file, or one in a zip archive, as an `h5py.File`.

    Args:
        path: The file, or the archive.
        member: Name in the archive; None for a file by itself.

    Raises:
        InputError: If h5py is not installed, or the file does not exist or is damaged.
    """
    require("h5py", extra="convert", use="a checkpoint of Keras")
    import h5py

    path = existing_file(path)
    try:
        with h5py.File(path if member is None else io.BytesIO(read_member(path, member)), "r") as file:
            yield file
    except InputError:
        raise
    except (AttributeError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a file of Keras, or damaged: {one_line(error, 200, named=True)}") from error


def read_member(path: Path, name: str) -> bytes:
    """Bytes of a file in a zip archive.

    Raises:
        InputError: If it is not there, or would be far larger than the archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(name)
            if entry.file_size > 100 * path.stat().st_size:
                raise InputError(f"{path}: {name} would unfold to {entry.file_size:,} bytes")
            return archive.read(entry)
    except KeyError as error:
        raise InputError(f"{path}: it has no {name}, as a model that Keras saved has") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not a model that Keras saved, or damaged: {one_line(error)}") from error


def read_arrays(path: Path, group: Any, prefix: str = "") -> dict[str, Tensor]:
    """Arrays of numbers below a group of an open file, by their paths in it.

    Raises:
        InputError: If one is a link, is in another file, or is larger than the file.
    """
    import h5py

    arrays: dict[str, Tensor] = {}
    for name in group:
        where = f"{prefix}{name}"
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{path}: refused: {where} is a link, perhaps to another file, which Keras never writes")
        value = group[name]
        if isinstance(value, h5py.Group):
            if where.count("/") > 20:
                raise InputError(f"{path}: refused: {where} is nested more deeply than any layer")
            arrays |= read_arrays(path, value, f"{where}/")
            continue
        if value.external or value.is_virtual or value.nbytes > path.stat().st_size * 100:
            raise InputError(f"{path}: refused: {where} is not in the file itself")
        if value.dtype.kind in "fiu":
            arrays[where] = torch.as_tensor(value[()])
    return arrays
