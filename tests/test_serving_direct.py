"""Pipelines without a `DataLoader`: the same results, and nothing drawn from the global generator."""

import copy

import numpy as np
import pytest
import served_models
import torch
from transformers import pipeline

from hfseq.serving.direct import without_loader

TEXTS = ["a b", "c", "d e f g h i j", "zzz a"]
INPUTS = {
    "automatic-speech-recognition": [
        {
            "raw": np.random.default_rng(size).normal(0, 0.1, size).astype("float32"),
            "sampling_rate": served_models.RATE,
        }
        for size in (900, 3000, 1600)
    ],
    "text-classification": TEXTS,
    "token-classification": TEXTS,
    "translation": TEXTS,
}


@pytest.mark.parametrize("task", INPUTS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_results_are_those_of_the_pipeline(task, size, tmp_path):
    pipe = pipeline(task, model=str(served_models.MAKERS[task](tmp_path / task)), device="cpu")
    expected = pipe(copy.deepcopy(INPUTS[task]), batch_size=size)
    state = torch.get_rng_state()
    found = without_loader(pipe)(copy.deepcopy(INPUTS[task]), batch_size=size)
    assert repr(found) == repr(expected)
    assert torch.equal(torch.get_rng_state(), state)
