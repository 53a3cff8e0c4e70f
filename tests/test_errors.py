"""Messages of errors, and what is said where an optional package is missing."""

import sys

import pytest

from hfseq.errors import InputError, blaming, did_you_mean, one_line, require
from hfseq.onnx.export import export_onnx
from hfseq.onnx.quantize import quantize_onnx
from hfseq.onnx.runtime import load_onnx


def test_the_missing_packages_are_named(monkeypatch):
    require("yaml", "torch", extra="train")
    for package in ("yaml", "torch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"^this needs yaml and torch: pip install 'hfseq\[train\]'$"):
        require("yaml", "json", "torch", extra="train")
    with pytest.raises(InputError, match=r"^--flag needs no_such_package: pip install 'hfseq\[hpo\]'$"):
        require("no_such_package", extra="hpo", use="--flag")


def test_one_line():
    error = ValueError(" a\n\n  b\tc ")
    assert one_line(error) == "a b c" and one_line(error, named=True) == "ValueError: a b c"
    assert one_line("x" * 1000) == "x" * 499 + "…"


def test_what_a_library_raises_is_one_line():
    for error, line in (
        (KeyError("added_tokens"), "--flag: KeyError: 'added_tokens'"),
        (RuntimeError(), "--flag: RuntimeError:"),
        (ValueError("a\nb"), "--flag: a b"),
        (InputError("as it is"), "as it is"),
    ):
        with pytest.raises(InputError, match=f"^{line}$"), blaming("--flag"):
            raise error


def test_did_you_mean():
    assert did_you_mean("hiden_size", {"hidden_size", "dropout"}) == "; did you mean hidden_size?"
    assert did_you_mean("x", {"hidden_size", "dropout"}) == "; there are dropout, hidden_size"
    assert did_you_mean("x", ["hidden_size"], "--help lists all") == "; --help lists all"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_graphs_without_their_packages(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    uses = {"quantization": quantize_onnx, "export": export_onnx} | ({"this": load_onnx} if package != "onnx" else {})
    for use, function in uses.items():
        with pytest.raises(InputError, match=rf"^{use} needs .*{package}: pip install 'hfseq\[onnx\]'$"):
            function(tmp_path, *([tmp_path / "out"] if use != "this" else []))
    assert not list(tmp_path.iterdir())
