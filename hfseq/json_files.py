"""JSON files whose content is not to be trusted: objects, and names of files beside them."""

import json
import os
from collections.abc import Collection
from pathlib import Path, PureWindowsPath
from typing import Any

from hfseq.errors import InputError

_LONGEST_NAME = 255
"""Bytes of a file's name on common file systems; beyond that the system raises errors of its own."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file.

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
    """True for a name of a file or folder that cannot lead out of the folder it is in, on any system."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and name.isprintable()
        and not {"/", "\\"} & {*name}
        and not PureWindowsPath(name).drive
        and len(name.encode()) <= _LONGEST_NAME
    )


def file_beside(source: Path, name: Any, *, suffixes: Collection[str] = (), below: bool = False) -> Path:
    """The file that a name in a JSON file stands for, in the folder of the JSON file and never outside it.

    Names are plain: no separators, no `..`, no drive letters, nothing that is not printable. A link is followed inside
    the folder alone, or, in the cache of the Hub, inside that of its repository, where all files are links.

    Args:
        source: The JSON file.
        name: Value found in it, of any type.
        suffixes: Suffixes that the name may have; any if there are none.
        below: Accept files in folders below, their parts joined by `/`.

    Returns:
        The path; there may be no file.

    Raises:
        InputError: If the name is not plain, has another suffix, or is a link that leads elsewhere.
    """
    parts = name.split("/") if below and isinstance(name, str) else [name]
    if not all(map(is_plain_name, parts)):
        raise InputError(
            f"{source}: {name!r:.300} is not the plain name of a file; nothing outside its folder is touched"
        )
    if suffixes and Path(name).suffix not in suffixes:
        raise InputError(f"{source}: {name!r:.300} does not end in {', '.join(sorted(suffixes))}; it stays as it is")
    path = source.parent / name
    # `Path.resolve` raises where links form a ring.
    if not Path(os.path.realpath(path)).is_relative_to(_root(source.parent)):
        raise InputError(f"{source}: {name!r:.300} is a link that leads out of its folder; put the file itself there")
    return path


def shards(index: Path) -> list[Path]:
    """The files of weights that an index such as `model.safetensors.index.json` names.

    Raises:
        InputError: If it names none, or one outside its folder.
    """
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: it has no weight_map from weights to files")
    return sorted({file_beside(index, name, suffixes=(".safetensors", ".bin")) for name in names.values()})


def _root(folder: Path) -> Path:
    """The folder that links in a folder may not leave: it, or its repository in the cache of the Hub."""
    real = Path(os.path.realpath(folder))
    snapshots = (parent for parent in real.parents if parent.name == "snapshots")
    return next((parent.parent for parent in snapshots if (parent.parent / "blobs").is_dir()), real)
