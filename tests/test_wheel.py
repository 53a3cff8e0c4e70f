"""The wheel: what it contains, and that it works installed outside the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from processes import run_elsewhere

from hfseq import LstmConfig, LstmForConditionalGeneration

ROOT = Path(__file__).parents[1]


def run(*command) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the sources alone; in the checkout a build leaves folders behind and picks old ones up."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("hfseq", "recipes", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    run("-m", "build", "--wheel", "--no-isolation", source, "--outdir", source / "dist")
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_contents(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hfseq").rglob("*.py")}
    tables = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hfseq" / "data" / "embedded").glob("*.json")}
    assert len(modules) > 10 and "hfseq/data/embedded/reviews.json" in tables
    assert modules | tables | {"hfseq/py.typed", "hfseq/hub/model_card.md"} <= names
    recipes = [*(ROOT / "recipes").glob("*.py"), *(ROOT / "recipes").glob("configs/*.yaml")]
    carried = {f"hfseq/recipe_files/{path.relative_to(ROOT / 'recipes').as_posix()}" for path in recipes}
    assert len(carried) > 30
    assert {name for name in names if name.startswith("hfseq/recipe_files/")} == carried
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    others = {name for name in names if not name.startswith("hfseq/") and ".dist-info/" not in name}
    assert others == set()


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel's files."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", folder, wheel)
    return folder


def run_installed(site, *command, cwd) -> str:
    """Runs a command with the hfseq of that folder."""
    done = run_elsewhere(*command, environment={"PYTHONPATH": str(site)}, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installed(site, tmp_path):
    """In an empty folder it registers and loads a checkpoint, and it is the wheel's files that do."""
    model = LstmForConditionalGeneration(LstmConfig(vocab_size=30, hidden_size=16)).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    inputs = {"input_ids": torch.tensor([[4, 5, 6]]), "decoder_input_ids": torch.tensor([[1, 7]])}
    with torch.no_grad():
        torch.save((inputs, model(**inputs).logits), tmp_path / "expected.pt")
    program = """
import pathlib, sys, torch, hfseq
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from hfseq.data.embedded.reviews import review_rows
assert pathlib.Path(hfseq.__file__).parent == pathlib.Path(sys.argv[1], "hfseq").resolve(), hfseq.__file__
assert type(AutoConfig.for_model("hfseq_lstm")) is hfseq.LstmConfig
inputs, expected = torch.load("expected.pt")
model = AutoModelForSeq2SeqLM.from_pretrained("checkpoint")
assert type(model) is hfseq.LstmForConditionalGeneration
torch.testing.assert_close(model(**inputs).logits, expected)
assert len(review_rows(train_size=4, validation_size=2, test_size=2)["train"]) == 4
"""
    run_installed(site, "-c", program, site, cwd=tmp_path)


def test_a_recipe_copied_from_the_wheel_trains(site, tmp_path):
    """It finds the settings of its demo beside it."""
    printed = run_installed(site, "-m", "hfseq.recipes", "copy", "sentiment", "mine", cwd=tmp_path)
    assert "    python mine/sentiment.py\n" in printed
    copied = {path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*.*")}
    assert copied == {"sentiment.py"} | {
        f"configs/sentiment_{name}.yaml" for name in ("demo", "sst2", "sst2_cnn", "trec")
    }
    assert "--model_type" in run_installed(site, "mine/sentiment.py", "--help", cwd=tmp_path)
    steps = "--max_steps 2 --eval_strategy steps --eval_steps 2 --save_strategy steps --save_steps 2"
    run_installed(site, "mine/sentiment.py", *steps.split(), "--output_dir", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "all_results.json").exists()
