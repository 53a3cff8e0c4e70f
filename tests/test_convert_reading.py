"""Safe reading of checkpoints: what is in a file comes out of it, and no hostile file has anything called."""

import argparse
import collections
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hfseq.convert import reading
from hfseq.convert.command import FORMATS
from hfseq.convert.reading import (
    COMMON,
    MODULES,
    PLAIN,
    PickledNames,
    StandIn,
    module_weights,
    read_checkpoint,
    read_folder,
    read_lines,
    read_pickle,
    submodules,
)
from hfseq.errors import InputError

LOOSEST = MODULES | COMMON | PickledNames(classes=("nets.*",))
CONVERTERS = [name for name in FORMATS if name != "keras"]
"""Formats whose files are pickles."""


def zipped(path, pickled, compression=zipfile.ZIP_STORED, **more):
    """A file as torch 1.6 and later write it, of a pickle; `more` are further entries."""
    entries = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | more
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


def legacy(path, pickled, keys=(), storages=b"", info=None):
    """A file as torch before 1.6 wrote it."""
    begin = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001)]
    path.write_bytes(b"".join([*begin, info or pickle.dumps({}, 2), pickled, pickle.dumps([*keys], 2), storages]))
    return path


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(mark):
    """Pickles that would make a file, or call what they must not, by their names."""
    command = f"open({str(mark)!r}, 'w')"
    evil = {
        "os.system": Calls(os.system, f"touch {mark}"),
        "eval": Calls(eval, command),
        "exec in an attribute": {"weights": {"rnn.weight_hh_l0": Calls(exec, command)}},
        "nested": {"model": [Calls(os.system, f"touch {mark}")], "args": argparse.Namespace(arch="lstm")},
        "torch.load": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, f"touch {mark}"), 2)),
        "a class of Python": Calls(collections.Counter.fromkeys, "ab"),
        "numpy": Calls(np.load, str(mark), None, True),
    }
    found = {}
    for protocol in (0, 2, 4):
        found |= {f"{name}, protocol {protocol}": pickle.dumps(one, protocol) for name, one in evil.items()}
    text = f"S'touch {mark}'\n".encode()
    return found | {
        "instance": b"(" + text + b"iposix\nsystem\n.",
        "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93" + text + b"\x85R.",
        "call of getattr's result": b"c__builtin__\ngetattr\n(cnets\nNet\nS'__init__'\ntR(" + text + b"tR.",
        "call of a stand-in": b"cnets\nNet\n(" + text + b"tR.",
        "stand-in with arguments": b"\x80\x02cnets\nNet\n(" + text + b"t\x81.",
        "call of an instance": b"\x80\x02cnets\nNet\n)\x81(" + text + b"tR.",
        "state of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}S'x'\nI1\nsb.",
        "slots of a function": b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\n(I1\ntst(b.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent id": b"Pposix.system\n.",
        "container of a container": b"c__builtin__\nset\n(cnets\nNet\ntR.",
    }


@pytest.mark.parametrize("name", CONVERTERS)
def test_no_converter_runs_anything_in_a_hostile_file(name, tmp_path):
    mark = tmp_path / "was-run"
    before = dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__
    for what, pickled in payloads(mark).items():
        for write in (zipped, legacy):
            with pytest.raises(InputError, match="nothing in it was run|not a checkpoint that torch saved") as error:
                FORMATS[name].convert(write(tmp_path / "model.pt", pickled))
            assert "\n" not in str(error.value) and not mark.exists(), what
    assert before == (dict(vars(torch._utils._rebuild_tensor_v2)), torch._utils._rebuild_tensor_v2.__defaults__)


def test_what_is_refused_is_named_and_the_harmless_rest_is_read(tmp_path):
    mark, path = tmp_path / "was-run", tmp_path / "model.pt"
    hostile = payloads(mark)
    for what, message in {
        "os.system, protocol 2": "it names posix.system, which no such checkpoint needs",
        "eval, protocol 4": "it names builtins.eval",
        "numpy, protocol 2": "it names numpy.load",
        "call of getattr's result": "it calls a builtins.getattr",
        "call of a stand-in": "it calls nets.Net with arguments",
        "persistent id": "it refers to something outside",
    }.items():
        with pytest.raises(InputError, match=f"model.pt: refused, and nothing in it was run: {message}"):
            read_checkpoint(zipped(path, hostile[what]), LOOSEST)
    # Payloads in the header of the older format, in a plain pickle, and behind a harmless object.
    evil = hostile["os.system, protocol 2"]
    for pickled in (legacy(path, pickle.dumps({}, 2), info=evil), legacy(path, pickle.dumps({}, 2) + evil)):
        with pytest.raises(InputError, match="posix.system"):
            read_checkpoint(pickled, LOOSEST)
    path.write_bytes(evil)
    with pytest.raises(InputError, match="begins neither as a zip archive nor"):
        read_checkpoint(path, LOOSEST)
    with pytest.raises(InputError, match="posix.system"):
        read_pickle(path)
    assert not mark.exists()
    # Attributes named like methods of a pickle's machine are data.
    odd = b"\x80\x02cnets\nNet\n)\x81}(S'append'\nI1\nS'__setstate__'\nI2\nub."
    found = read_checkpoint(zipped(path, odd), LOOSEST)
    assert isinstance(found, StandIn) and vars(found) == {"append": 1, "__setstate__": 2}
    assert found.pickled_class == "nets.Net" and not hasattr(StandIn, "append")


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "model.pt"
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    head += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"

    def tensor(count, size, stride=1, offset=0, view=b""):
        numbers = [struct.pack("<cBq", b"\x8a", 8, one) for one in (count, offset, size, stride)]
        return head + numbers[0] + view + b"tQ" + numbers[1] + numbers[2] + b"\x85" + numbers[3] + b"\x85\x89NtR."

    data = torch.arange(4.0).numpy().tobytes()
    right = tensor(4, 3, offset=1)
    assert read_checkpoint(zipped(path, right, **{"data/0": data}), LOOSEST).tolist() == [1, 2, 3]
    old = tensor(4, 3, offset=1, view=b"N")
    stored = struct.pack("<q", 4) + data
    assert read_checkpoint(legacy(path, old, ["0"], stored), LOOSEST).tolist() == [1, 2, 3]
    for wrong in (tensor(4, 10**12, 0), tensor(4, 5), tensor(10**12, 4), tensor(5, 5), tensor(4, 4, offset=1)):
        # Beside a class, which torch's own reader of weights rejects, and without one.
        for pickled in (wrong, b"\x80\x02(cnets\nNet\n)\x81" + wrong[2:-1] + b"t."):
            with pytest.raises(InputError):
                read_checkpoint(zipped(path, pickled, **{"data/0": data}), LOOSEST)
            with pytest.raises(InputError):
                read_checkpoint(legacy(path, pickled.replace(b"tQ", b"NtQ"), ["0"], stored), LOOSEST)
    beside = b"\x80\x02(cnets\nNet\n)\x81" + right[2:-1] + b"t."
    assert read_checkpoint(zipped(path, beside, **{"data/0": data}), LOOSEST)[1].tolist() == [1, 2, 3]
    with pytest.raises(InputError):
        read_checkpoint(legacy(path, old, ["0"], stored[:-4]), LOOSEST)
    with pytest.raises(InputError, match="compressed"):
        read_checkpoint(zipped(path, pickle.dumps([0] * 10**6), zipfile.ZIP_DEFLATED), LOOSEST)
    loop = b"\x80\x02cnets\nNet\n)\x81q\x00}S'_modules'\n}(S'a'\nh\x00S'b'\nh\x00usb."
    with pytest.raises(InputError, match="more than 10,000 parts"):
        module_weights(read_checkpoint(zipped(path, loop), LOOSEST))


class Net(nn.Module):
    """A model that pickles a bound method, as WeightDrop of awd-lstm-lm does, and has a buffer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.rnn = nn.RNN(3, 4, num_layers=2, nonlinearity="relu", dropout=0.25)
        self.same = self.embedding
        self.flatten = self.rnn.flatten_parameters
        self.register_buffer("counts", torch.arange(3))
        self.register_buffer("passing", torch.ones(1), persistent=False)


Net.__module__ = "nets"


@pytest.fixture
def net(monkeypatch):
    module = types.ModuleType("nets")
    module.Net = Net
    monkeypatch.setitem(sys.modules, "nets", module)
    return Net()


def test_tensors_data_and_whole_modules_come_out_unchanged(net, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    half, view = torch.randn(3, 4).bfloat16(), torch.arange(12).view(3, 4).t()[1:]
    data = {
        "net": net,
        "half": half,
        "view": view,
        "none": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.ones(2)),
        "state": net.state_dict(),
        "options": argparse.Namespace(layers=2, path=Path("somewhere")),
        "best": np.float64(0.5),
        "scores": np.ones(3),
        "words": ["a", "b\u2028"],
        "counter": collections.Counter("aab"),
        "defaults": collections.defaultdict(list, {"a": [1]}),
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "shape": torch.Size([1, 2]),
        "type": torch.float16,
        "device": torch.device("cpu"),
    }
    for new in (True, False):
        for protocol in (2, 4):
            torch.save(data, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
            found = read_checkpoint(path, LOOSEST)
            for name in ("half", "view", "none", "bool", "parameter"):
                assert torch.equal(found[name], data[name]) and found[name].dtype == data[name].dtype, name
            weights = module_weights(found["net"])
            assert list(found["state"]) == list(net.state_dict()) and weights.keys() == net.state_dict().keys()
            assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
            assert vars(submodules(found["net"])["rnn"])["mode"] == "RNN_RELU"
            assert vars(found["options"])["layers"] == 2
            for name in ("words", "bytes", "set", "shape", "type"):
                assert found[name] == data[name], name
            assert found["counter"] == {"a": 2, "b": 1} and found["defaults"] == {"a": [1]}
            with pytest.raises(InputError, match="it names nets.Net"):
                read_checkpoint(path, MODULES | COMMON)
            # What torch's own reader of weights accepts is never read by another one.
            torch.save(data["state"], path, pickle_protocol=2, _use_new_zipfile_serialization=new)
            with monkeypatch.context() as patch:
                patch.setattr(reading, "_Unpickler", None)
                assert torch.equal(read_checkpoint(path)["rnn.weight_ih_l0"], net.rnn.weight_ih_l0)


def test_other_files_are_refused_by_name(net, tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(InputError, match="a program of TorchScript"):
        read_checkpoint(path, LOOSEST)
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    for data in (path.read_bytes(), b"", b"PK\x03\x04 and more", b"\x80\x02}q\x00.", os.urandom(64)):
        path.write_bytes(data)
        with pytest.raises(InputError, match="not a checkpoint that torch saved, or damaged"):
            read_checkpoint(path, LOOSEST)
    for missing in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError, match="no such file|a folder; name the file in it"):
            read_checkpoint(missing, PLAIN)
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a text in UTF-8"):
        read_lines(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_bytes("\ufeffa\r\nb\u2028c\n\nd".encode())
    assert read_lines(tmp_path / "words.txt") == ["a", "b\u2028c", "", "d"]


def test_folders_of_safetensors(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "other.safetensors"
    folder.mkdir()
    with pytest.raises(InputError, match="no model.safetensors; name the file"):
        read_folder(folder)
    save_file({"a": torch.ones(2)}, folder / "model.00.safetensors")
    save_file({"b": torch.zeros(1)}, folder / "model.01.safetensors")
    assert {name: value.tolist() for name, value in read_folder(folder).items()} == {"a": [1, 1], "b": [0]}
    save_file({"b": torch.zeros(1)}, folder / "model.02.safetensors")
    with pytest.raises(InputError, match="model.02.safetensors: b is in another file"):
        read_folder(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.00.safetensors", "b": "model.02.safetensors"}}))
    assert set(read_folder(folder)) == {"a", "b"}
    save_file({"c": torch.zeros(1)}, outside)
    index.write_text(json.dumps({"weight_map": {"c": "../other.safetensors"}}))
    with pytest.raises(InputError, match="not the plain name of a file"):
        read_folder(folder)
    index.unlink()
    (folder / "model.02.safetensors").unlink()
    (folder / "model.02.safetensors").symlink_to(outside)
    with pytest.raises(InputError, match="a link that leads out of its folder"):
        read_folder(folder)
    outside.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="not a safetensors file, or damaged"):
        read_checkpoint(outside)
