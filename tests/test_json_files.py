"""Names in JSON files: none of them leads out of the folder of its file."""

import json
import os
import re

import pytest

from hfseq.errors import InputError
from hfseq.json_files import file_beside, is_plain_name, read_object, shards
from hfseq.training.reporting import save_results

ESCAPES = [
    "../victim",
    "..",
    ".",
    "",
    "/victim",
    "C:victim",
    "C:\\victim",
    "..\\victim",
    "a\0",
    "a\n",
    "\ud800",
    "é" * 128,
]
OTHER_TYPES = [5, 2.5, True, None, ["victim"], {"victim": 1}]


@pytest.mark.parametrize(
    "name", ["model.onnx", "model-00001-of-00002.safetensors", "é" * 127, ".hidden", "a b", "..."]
)
def test_plain_names(name, tmp_path):
    assert is_plain_name(name)
    for below in (False, True):
        assert file_beside(tmp_path / "list.json", name, below=below) == tmp_path / name


@pytest.mark.parametrize("name", [*ESCAPES, *OTHER_TYPES], ids=repr)
def test_other_names_are_refused(name, tmp_path):
    assert not is_plain_name(name)
    for below in (False, True):
        with pytest.raises(InputError, match=re.escape(f"list.json: {name!r:.300} is not the plain name")) as error:
            file_beside(tmp_path / "list.json", name, below=below)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["sub/../../victim", "sub//file", "/sub/file", "sub/", "sub/./file", "sub/C:file"])
def test_folders_below(name, tmp_path):
    assert file_beside(tmp_path / "list.json", "sub/deep/file", below=True) == tmp_path / "sub" / "deep" / "file"
    for refused, below in (("sub/file", False), (name, True)):
        with pytest.raises(InputError, match=re.escape(repr(refused))):
            file_beside(tmp_path / "list.json", refused, below=below)


def test_suffixes(tmp_path):
    assert file_beside(tmp_path / "list.json", "a.json", suffixes={".json"}) == tmp_path / "a.json"
    for name in ("a.txt", "json", ".json", "a.json.bak", "a.JSON"):
        with pytest.raises(InputError, match=re.escape(f"{name!r} does not end in .json, .onnx")):
            file_beside(tmp_path / "list.json", name, suffixes={".json", ".onnx"})


def test_links_stay_inside(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "folder2").mkdir()
    targets = {"inside": "sub/file", "gone": "nothing", "ring": "ring", "out": "../victim", "beside": "../folder2/x"}
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    (folder / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    # The folder itself may be reached by a link.
    (tmp_path / "way").symlink_to(folder, target_is_directory=True)
    for root in (folder, tmp_path / "way"):
        for name in ("inside", "gone", "ring"):
            assert file_beside(root / "list.json", name) == root / name
        for name in ("out", "beside", "sub/up/victim"):
            with pytest.raises(InputError, match=f"'{name}' is a link that leads out of its folder"):
                file_beside(root / "list.json", name, below=True)


def test_links_of_the_cache_of_the_hub(tmp_path):
    """There all files are links to blobs of the same repository."""
    snapshot = tmp_path / "models--ann--gru" / "snapshots" / "abc" / "onnx"
    other = tmp_path / "models--bob--gru" / "blobs"
    for folder in (snapshot, other, tmp_path / "models--ann--gru" / "blobs"):
        folder.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to("../../../blobs/123")
    (snapshot / "stolen.onnx").symlink_to("../../../../models--bob--gru/blobs/123")
    assert file_beside(snapshot / "onnx.json", "model.onnx") == snapshot / "model.onnx"
    with pytest.raises(InputError, match="'stolen.onnx' is a link"):
        file_beside(snapshot / "onnx.json", "stolen.onnx")


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "5", "null", '"x"', "[" * 100_000, "\xff"], ids=lambda text: text[:5]
)
def test_what_is_no_object(text, tmp_path):
    assert read_object(tmp_path / "a.json") == {}
    (tmp_path / "all_results.json").write_bytes(text.encode("latin-1"))
    for function in (read_object, lambda path: save_results(path.parent, {"test_bleu": 1.0})):
        with pytest.raises(InputError, match="all_results.json: not (JSON|an object)") as error:
            function(tmp_path / "all_results.json")
        assert "\n" not in str(error.value)
    assert (tmp_path / "all_results.json").read_bytes() == text.encode("latin-1")


def test_shards(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"v": "b.safetensors", "w": "a.bin", "x": "b.safetensors"}}))
    assert shards(index) == [tmp_path / "a.bin", tmp_path / "b.safetensors"]
    for wrong in ([], {}, "a.bin", None, 5):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(InputError, match="index.json: it has no weight_map"):
            shards(index)
    for name in ("../a.bin", os.fspath(tmp_path / "a.bin"), "a.json", 5, ["a.bin"]):
        index.write_text(json.dumps({"weight_map": {"v": "b.bin", "w": name}}))
        with pytest.raises(InputError, match=re.escape(f"index.json: {name!r} ")):
            shards(index)
