"""A skip that nobody expects fails a run in CI, in one process and with workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from skips import UnexpectedSkips

def pytest_configure(config):
    UnexpectedSkips.register(config)
"""
TESTS = """
import pytest

def test_runs():
    pass

@pytest.mark.skipif(True, reason="there is no CUDA device here")
def test_expected():
    pass

def test_other():
    pytest.importorskip("{module}")
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("module", "allowed", "code"),
    [
        ("no_such_module", "there is no CUDA device", 1),
        ("no_such_module", "there is no CUDA device;could not import 'no_such_module'", 0),
        ("no_such_module", None, 0),
        ("json", "there is no CUDA device", 0),
        ("json", "there is no browser", 1),
    ],
)
def test_an_unexpected_skip_fails(module, allowed, code, workers, tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (tmp_path / "test_it.py").write_text(TESTS.format(module=module), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "HFSEQ_ALLOWED_SKIPS"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    # Other plugins of this environment take longer to import than these tests to run.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    environment |= {} if allowed is None else {"HFSEQ_ALLOWED_SKIPS": allowed}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", str(workers), "-p", "no:cacheprovider"]
    command.append(str(tmp_path))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert ("UNEXPECTED SKIP" in done.stdout) is bool(code)
