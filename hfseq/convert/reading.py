"""Safe reading of checkpoints: data come out of a file, and nothing in it is executed."""

import json
import math
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hfseq.errors import InputError, one_line
from hfseq.json_files import file_beside, shards

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of the files that torch wrote before version 1.6."""
_REJECTED = object()
_MOST_MODULES = 10_000
_DTYPES = {
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Short": torch.int16,
    "Untyped": torch.uint8,
}


@dataclass(frozen=True)
class PickledNames:
    """Names that the pickles of a format contain beside tensors and plain data.

    Both may have wildcards, as in `torch.nn.modules.*`.

    Attributes:
        classes: Classes, whose instances are read as a `StandIn`.
        functions: Functions that were called when the file was made to be read; their calls give an empty `StandIn`.
    """

    classes: Sequence[str] = ()
    functions: Sequence[str] = ()

    def __or__(self, other: "PickledNames") -> "PickledNames":
        """All names of both."""
        return PickledNames([*self.classes, *other.classes], [*self.functions, *other.functions])


PLAIN = PickledNames()
"""Names of files that contain nothing but tensors and plain data."""
MODULES = PickledNames(
    classes=("torch.nn.modules.*", "torch.nn.backends.*", "torch.optim.*"),
    functions=("builtins.getattr",),
)
"""Names in pickles of whole modules, beside their own classes. A bound method is pickled as a call of `getattr`."""
COMMON = PickledNames(
    classes=("argparse.Namespace", "types.SimpleNamespace", "numpy.ndarray"),
    functions=(
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
    ),
)
"""Names that people's training loops leave beside the weights: options, paths, scores of NumPy. None is read."""


class StandIn:
    """Inert object in place of an instance of a class that a pickle names; its attributes are the instance's."""

    pickled_class = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        """Create one without calling anything; a pickle that passes arguments is refused."""
        if args or kwargs:
            raise pickle.UnpicklingError(f"it calls {cls.pickled_class} with arguments")
        return super().__new__(cls)

    def __call__(self, *args: Any) -> None:
        """Refuse to be called, as the result of a function would be.

        Raises:
            pickle.UnpicklingError: Always.
        """
        raise pickle.UnpicklingError(f"it calls a {self.pickled_class}")

    def __setstate__(self, state: Any) -> None:
        # Classes with slots have a second dictionary.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                vars(self).update({name: value for name, value in part.items() if isinstance(name, str)})


def read_checkpoint(path: str | Path, names: PickledNames = PLAIN) -> Any:
    """Read a file of torch or safetensors.

    torch's own reader of weights is tried first (`weights_only=True`). A file that it rejects, such as one with a
    pickled module, a pickled configuration or a newer pickle protocol, is read by an unpickler that builds tensors,
    plain data and inert objects in place of the classes in `names`. A file that names or calls anything else is
    refused, before anything is called.

    Args:
        path: The file.
        names: Names that its format contains.

    Returns:
        The object in the file; tensors are on the CPU.

    Raises:
        InputError: If the file does not exist, is damaged, is of another format, or is refused.
    """
    path = existing_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    is_zip = zipfile.is_zipfile(path)
    with _blaming(path):
        if is_zip:
            _check_zip(path)
        else:
            _check_legacy(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of newer pickle protocols, which it often rejects afterwards
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of many kinds; the messages advise to unpickle the file all the same
        found = _REJECTED
    with _blaming(path):
        if found is not _REJECTED:
            _check_sizes(found)
            return found
        return _read_zip(path, names) if is_zip else _read_legacy(path, names)


def read_pickle(path: str | Path) -> Any:
    """Read plain data, such as lists of words, from a pickle that names nothing.

    Raises:
        InputError: If the file does not exist, is damaged or is refused.
    """
    path = existing_file(path)
    with _blaming(path), path.open("rb") as file:
        return _Unpickler(file, PLAIN).load()


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder: `model.safetensors`, shards with an index, or all of `model.*.safetensors`.

    Raises:
        InputError: If there are none, if files have a weight in common, or if one is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    else:
        files = shards(index) if index.is_file() else sorted(folder.glob("model.*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no model.safetensors; name the file of the weights itself")
    weights: dict[str, Tensor] = {}
    for path in files:
        for name, weight in _read_safetensors(file_beside(path, path.name)).items():
            if name in weights:
                raise InputError(f"{path}: {name} is in another file of the folder too; keep one of them there")
            weights[name] = weight
    return weights


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: If it does not exist or is not JSON.
    """
    path = existing_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {one_line(error)}") from error


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file of plain data.

    Raises:
        InputError: If it does not exist or is not YAML, or if it names classes.
    """
    path = existing_file(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not YAML: {one_line(error)}") from error


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a text, which end at line feeds only: a vocabulary may have any other kind of space.

    Raises:
        InputError: If the file does not exist or is not UTF-8.
    """
    path = existing_file(path)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8: {one_line(error)}") from error
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def existing_file(path: str | Path) -> Path:
    """Return a path of a file.

    Raises:
        InputError: If there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'a folder; name the file in it' if path.is_dir() else 'no such file'}")
    return path


def submodules(module: StandIn) -> dict[str, StandIn]:
    """Pickled modules in a pickled module, itself under the empty name, as `named_modules()` would have given them.

    Raises:
        InputError: If there are more than any network has, as there are if a module contains itself.
    """
    found: dict[str, StandIn] = {}
    todo = [("", module)]
    while todo:
        name, one = todo.pop()
        found[name] = one
        if len(found) > _MOST_MODULES:
            raise InputError(f"the pickled module {module.pickled_class} has more than {_MOST_MODULES:,} parts")
        for key, child in _table(one, "_modules").items():
            if isinstance(child, StandIn):
                todo.append((f"{name}.{key}".lstrip("."), child))
    return found


def module_weights(module: StandIn) -> dict[str, Tensor]:
    """State dict of a pickled module, with the names that `state_dict()` would have given it.

    Raises:
        InputError: As `submodules`.
    """
    weights: dict[str, Tensor] = {}
    for path, one in submodules(module).items():
        passing = vars(one).get("_non_persistent_buffers_set") or ()
        for key, value in (_table(one, "_parameters") | _table(one, "_buffers")).items():
            if isinstance(value, Tensor) and key not in passing:
                weights[f"{path}.{key}".lstrip(".")] = value
    return weights


def _table(module: StandIn, name: str) -> dict[str, Any]:
    value = vars(module).get(name)
    return value if isinstance(value, dict) else {}


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn any exception from the contents of a file into an `InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, and nothing in it was run: {one_line(error)}") from error
    except Exception as error:  # a damaged pickle raises whatever its first wrong instruction leads to
        message = one_line(error, 200, named=True)
        raise InputError(f"{path}: not a checkpoint that torch saved, or damaged: {message}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a safetensors file, or damaged: {one_line(error)}") from error


class _Dict(dict[Any, Any]):
    """Dictionary whose attributes, such as the versions that a state dict has, are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Function:
    """Function that a pickle may call; it has no attributes that the pickle could change."""

    __slots__ = ()


def _function(call: Callable[..., Any]) -> _Function:
    return type("Function", (_Function,), {"__slots__": (), "__call__": staticmethod(call)})()


class _Unpickler(pickle.Unpickler):
    """Unpickler of tensors, plain data and stand-ins.

    All that a pickle can name is made here, for this one file: neither a class nor a function of a library is within
    its reach.

    Args:
        file: The pickle.
        names: Names that become stand-ins.
        storages: Maps a persistent id, without its kind, to a storage as a vector; None where there are no tensors.
    """

    def __init__(
        self, file: BinaryIO, names: PickledNames, storages: Callable[[tuple[Any, ...]], Tensor] | None = None
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self.names, self.storages = names, storages
        self.known: dict[str, Any] = {
            "_codecs.encode": _function(_encode),
            "builtins.bytearray": _function(_bytes),
            "builtins.dict": _function(lambda *args: _Dict()),
            "builtins.list": _function(lambda *args: []),
            "builtins.set": _function(lambda items=(): set(_sized(items))),
            "collections.Counter": _function(lambda items=(): _Dict(_sized(items))),
            "collections.OrderedDict": _function(lambda items=(): _Dict(_sized(items))),
            "collections.defaultdict": _function(lambda *args: _Dict()),
            "torch.Size": _function(lambda items=(): tuple(_sized(items))),
            "torch.device": _function(lambda *args: "cpu"),
            "torch._utils._rebuild_parameter": _function(lambda data, *rest: _tensor(data)),
            "torch._utils._rebuild_parameter_with_state": _function(lambda data, *rest: _tensor(data)),
            "torch._utils._rebuild_tensor": _function(_rebuild),
            "torch._utils._rebuild_tensor_v2": _function(_rebuild),
        }
        for name, dtype in _DTYPES.items():
            self.known |= {f"torch.{name}Storage": dtype, f"torch.cuda.{name}Storage": dtype}
        for dtype in set(_DTYPES.values()):
            self.known[str(dtype)] = dtype
        self.known["torch.storage.UntypedStorage"] = torch.uint8

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the pickle.

        Raises:
            pickle.UnpicklingError: For all names but those of tensors, of plain data and of the format.
        """
        # Protocols before 3 have the names of Python 2.
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self.known:
            if any(fnmatchcase(full, pattern) for pattern in self.names.functions):
                empty = type("Inert", (StandIn,), {"pickled_class": full})
                self.known[full] = _function(lambda *args: empty())
            elif any(fnmatchcase(full, pattern) for pattern in self.names.classes):
                self.known[full] = type("Inert", (StandIn,), {"pickled_class": full})
            else:
                raise pickle.UnpicklingError(f"it names {full}, which no such checkpoint needs")
        return self.known[full]

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage, or the class of a pickled module.

        Raises:
            pickle.UnpicklingError: If it is neither.
        """
        if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module":
            return pid[1]
        if self.storages is None or not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError("it refers to something outside that is no storage of a tensor")
        dtype, key, _, size = pid[1:5]
        if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and isinstance(size, int) and size >= 0):
            raise pickle.UnpicklingError("it describes a storage that torch would not")
        return self.storages(pid[1:])


def _check_sizes(found: Any) -> None:
    """Refuse tensors with more numbers than the file has for them, which repeat some."""
    todo, seen = [found], set()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor) and value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise pickle.UnpicklingError(f"it has a tensor of {tuple(value.shape)} in a smaller storage")
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values() if isinstance(value, dict) else value


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Tensor as a view of a storage, within its bounds and no larger."""
    storage, size, stride = _tensor(storage), _integers(size), _integers(stride)
    (offset,) = _integers((offset,))
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(f"it has a tensor of {size} in a storage of {storage.numel()} numbers")
    return torch.as_strided(storage, size, stride, offset)


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise pickle.UnpicklingError("it makes a tensor of something that is none")
    return value


def _integers(values: Any) -> tuple[int, ...]:
    values = tuple(_sized(values))
    if not all(isinstance(value, int) and 0 <= value < 2**62 for value in values):
        raise pickle.UnpicklingError("it has a tensor whose shape is not of integers")
    return values


def _sized(items: Any) -> Any:
    """Items of a container of the pickle, never of something that makes more of them."""
    if not isinstance(items, list | tuple | dict | set):
        raise pickle.UnpicklingError("it makes a container of something that is none")
    return items


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, which old protocols write as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes something that is not bytes")
    return text.encode("latin1")


def _bytes(value: Any = b"", *rest: Any) -> bytearray:
    if not isinstance(value, bytes):
        raise pickle.UnpicklingError("it makes bytes of something that is none")
    return bytearray(value)


def _check_zip(path: Path) -> None:
    """Refuse archives that torch does not write: compressed ones, which may unfold to any size, and programs."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(name.endswith("constants.pkl") or "/code/" in f"/{name}" for name in names):
        raise pickle.UnpicklingError("it is a program of TorchScript; save the model's state_dict() in its place")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise pickle.UnpicklingError("its parts are compressed, as torch never does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise pickle.UnpicklingError("its parts overlap")


def _check_legacy(path: Path) -> None:
    """Refuse files that do not begin as those of torch 0.1.10 to 1.5 do, such as the tar archives of earlier ones."""
    with path.open("rb") as file:
        begin = file.read(64)
    marks = [pickle.dumps(_LEGACY_MAGIC, protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    if not any(begin.startswith(mark) for mark in marks):
        raise ValueError("it begins neither as a zip archive nor as torch's older files do")


def _read_zip(path: Path, names: PickledNames) -> Any:
    """Object in a file of torch 1.6 or later: a pickle, and an entry of the archive for each storage."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries named data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = entries.get(f"{folder}byteorder")
        if order is not None and archive.read(order).decode() != sys.byteorder:
            raise ValueError("it was saved on a processor of the other byte order")
        loaded: dict[str, Tensor] = {}

        def storage(pid: tuple[Any, ...]) -> Tensor:
            dtype, key, _, size = pid[:4]
            entry = entries.get(f"{folder}data/{key}")
            if entry is None or entry.file_size != size * dtype.itemsize:
                raise ValueError(f"the storage {key} is missing or has another size")
            if key not in loaded:
                loaded[key] = _vector(archive.read(entry), dtype)
            return loaded[key]

        with archive.open(pickles[0]) as file:
            return _Unpickler(file, names, storage).load()  # type: ignore[arg-type]


def _read_legacy(path: Path, names: PickledNames) -> Any:
    """Object in a file of torch before 1.6: pickles one after another, then all storages."""
    left = path.stat().st_size
    loaded: dict[str, Tensor] = {}

    def storage(pid: tuple[Any, ...]) -> Tensor:
        nonlocal left
        dtype, key, _, size = pid[:4]
        if key not in loaded:
            left -= size * dtype.itemsize
            if left < 0:
                raise ValueError(f"the storage {key} would be longer than the file")
            loaded[key] = torch.zeros(size, dtype=dtype)
        view = pid[4] if len(pid) > 4 else None
        if view is None:
            return loaded[key]
        _, start, count = view
        start, count = _integers((start, count))
        return loaded[key][start : start + count]

    with path.open("rb") as file:
        for _ in range(3):  # magic number, version, and sizes of integers
            _Unpickler(file, PLAIN).load()
        found = _Unpickler(file, names, storage).load()
        for key in _sized(_Unpickler(file, PLAIN).load()):
            target = loaded.get(key)
            count = int.from_bytes(file.read(8), "little")
            if target is None or count != target.numel():
                raise ValueError(f"the storage {key!r:.40} has another size than its tensors")
            target.copy_(_vector(file.read(count * target.itemsize), target.dtype, count))
    return found


def _vector(data: bytes, dtype: torch.dtype, count: int | None = None) -> Tensor:
    if not data:
        return torch.zeros(0, dtype=dtype)
    vector = torch.frombuffer(bytearray(data), dtype=dtype)
    if count is not None and len(vector) != count:
        raise ValueError("it ends within its weights")
    return vector
