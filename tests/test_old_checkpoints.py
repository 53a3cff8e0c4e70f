"""Checkpoints that earlier commits saved load, and compute what they computed then."""

import shutil

import old_checkpoints
import pytest
import torch
import transformers
from old_checkpoints import CHECKPOINTS, PUBLISHED, compute, read_tensors
from processes import run_elsewhere

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
    found = compute(model.double(), read_tensors(folder, "inputs"))
    torch.testing.assert_close(found, read_tensors(folder, "outputs"))


@pytest.mark.parametrize("version", sorted(path.name for path in PUBLISHED.iterdir()))
def test_a_published_checkpoint_runs_its_own_code(version, tmp_path):
    expected = {}
    # Classes that came later have no code in this version.
    code = "".join(path.read_text() for path in (PUBLISHED / version).glob("modeling_*.py"))
    for architecture, auto_class in AUTO_CLASSES.items():
        if f"class {architecture}(" not in code:
            continue
        folder = tmp_path / "checkpoints" / f"{auto_class}-{architecture}"
        shutil.copytree(CHECKPOINTS / f"{architecture}-default", folder)
        shutil.copytree(PUBLISHED / version, folder, dirs_exist_ok=True)
        expected[architecture] = read_tensors(folder, "outputs")
    assert len(expected) >= 20
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [old_checkpoints.__file__, "run", tmp_path / "checkpoints", tmp_path / "results.pt"]
    done = run_elsewhere(*command, environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "results.pt"), expected)
