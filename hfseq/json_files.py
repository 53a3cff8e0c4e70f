"""Untrusted JSON files: objects, and references to files in the same folder."""

import json
import os
from collections.abc import Collection
from pathlib import Path, PureWindowsPath
from typing import Any

from hfseq.errors import InputError

_LONGEST_NAME = 255
"""Longest file name in bytes on common file systems."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file does not exist.

    Raises:
        InputError: If the file is not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not an object")
    return found


def is_plain_name(name: Any) -> bool:
    """Return True for the name of a file or folder that cannot escape its folder on any operating system."""
    return (
        isinstance(name, str)
        and name not in ("", "..")
        and name.isprintable()
        and PureWindowsPath(name).name == name  # without separators of any system, and without a drive
        and len(name.encode()) <= _LONGEST_NAME
    )


def file_beside(source: Path, name: Any, *, suffixes: Collection[str] = (), below: bool = False) -> Path:
    """Resolve a file name from a JSON file within the folder of that file, never outside it.

    Names must be plain: no separators, `..`, drive letters or unprintable characters. Links must stay inside the
    folder or, in the cache of the Hub, where all files are links, inside that of the repository.

    Args:
        source: Path of the JSON file.
        name: Value from it, of any type.
        suffixes: Accepted suffixes; all if empty.
        below: Accept files in sub-folders, with `/` between the parts.

    Returns:
        The path, whether or not the file exists.

    Raises:
        InputError: If the name is not plain, has another suffix, or is a link to a place outside.
    """
    parts = name.split("/") if below and isinstance(name, str) else [name]
    if not all(map(is_plain_name, parts)):
        raise InputError(
            f"{source}: {name!r:.300} is not the plain name of a file; nothing outside its folder is touched"
        )
    if suffixes and Path(name).suffix not in suffixes:
        raise InputError(f"{source}: {name!r:.300} does not end in {', '.join(sorted(suffixes))}; it stays as it is")
    path = source.parent / name
    if not is_inside(path, source.parent):
        raise InputError(f"{source}: {name!r:.300} is a link that leads out of its folder; put the file itself there")
    return path


def shards(index: Path) -> list[Path]:
    """The weight files listed in an index such as `model.safetensors.index.json`.

    Raises:
        InputError: If the index lists none, or one outside its folder.
    """
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: it has no weight_map from weights to files")
    return sorted({file_beside(index, name, suffixes=(".safetensors", ".bin")) for name in names.values()})


def is_inside(path: Path, folder: Path) -> bool:
    """Return True if a path, links resolved, is in a folder or, in the cache of the Hub, in its repository."""
    # `Path.resolve` raises on circular links.
    root = Path(os.path.realpath(folder))
    snapshots = (parent for parent in root.parents if parent.name == "snapshots")
    root = next((parent.parent for parent in snapshots if (parent.parent / "blobs").is_dir()), root)
    return Path(os.path.realpath(path)).is_relative_to(root)
