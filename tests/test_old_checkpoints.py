"""Checkpoints that earlier commits saved load, and compute what they computed then."""

import pytest
import torch
import transformers
from old_checkpoints import CHECKPOINTS, compute
from safetensors.torch import load_file

from hfseq.models import MODEL_CLASSES

pytestmark = pytest.mark.contract

AUTO_CLASSES = {model.__name__: auto for heads in MODEL_CLASSES.values() for auto, model in heads.items()}
FOLDERS = sorted(CHECKPOINTS.iterdir())


def test_every_class_has_an_old_checkpoint():
    assert {folder.name.partition("-")[0] for folder in FOLDERS} == set(AUTO_CLASSES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_old_checkpoint_computes_what_it_did(folder):
    name = folder.name.partition("-")[0]
    auto_class = getattr(transformers, AUTO_CLASSES[name])
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == name
    assert not any(info.values()), info
    tensors = load_file(folder / "expected.safetensors")
    inputs = {key.removeprefix("inputs."): value for key, value in tensors.items() if key.startswith("inputs.")}
    expected = {key.removeprefix("outputs."): value for key, value in tensors.items() if key.startswith("outputs.")}
    torch.testing.assert_close(compute(model.double(), inputs), expected)
