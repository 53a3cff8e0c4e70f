"""What holds for all tests."""

import gc
from functools import cache

import pytest
import torch
from skips import UnexpectedSkips
from transformers import dynamic_module_utils

# Sums in one order, so that runs can be compared bit by bit, and no two tests compete for a core.
torch.set_num_threads(1)

# The files that a checkpoint carries stay the same while tests run; each `save_pretrained` would read all of them to
# find the imports among them.
dynamic_module_utils.get_relative_import_files = cache(dynamic_module_utils.get_relative_import_files)


@pytest.fixture
def script():
    """A predictor that answers by a script, for the tests of the server; nothing waits for it at the end."""
    # Here, since few tests need a server.
    from served_apps import Script

    one = Script()
    yield one
    one.go.set()


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Each training collects garbage, which takes longer than the rest of it while all modules are gone through."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    UnexpectedSkips.register(config)
