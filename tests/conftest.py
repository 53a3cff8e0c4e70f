"""What holds for all tests."""

import torch

# Sums in one order, so that runs can be compared bit by bit, and no two tests compete for a core.
torch.set_num_threads(1)
