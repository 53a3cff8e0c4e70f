"""What holds for all tests."""

import gc

import pytest
import torch
from skips import UnexpectedSkips

# Sums in one order, so that runs can be compared bit by bit, and no two tests compete for a core.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Each training collects garbage, which takes longer than the rest of it while all modules are gone through."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    UnexpectedSkips.register(config)
