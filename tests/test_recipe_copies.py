"""`python -m hfseq.recipes`: what is copied and what is refused; test_wheel.py runs a copy."""

import re
from pathlib import Path

import pytest
from recipe_runs import ROOT

from hfseq import recipes
from hfseq.errors import InputError

NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


def call(capsys, *argv):
    """Exit code, output and errors of the command line in this process."""
    try:
        recipes.main([str(argument) for argument in argv])
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_a_checkout_reads_the_top_folder():
    assert recipes.FOLDER == ROOT / "recipes"
    assert recipes.recipe_names() == NAMES


def test_every_yaml_file_belongs_to_a_recipe():
    owned = {str(file) for name in NAMES for file in recipes.recipe_files(name)[1:]}
    assert owned == {f"configs/{path.name}" for path in (ROOT / "recipes" / "configs").iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_files_that_a_script_names_come_with_it(name):
    """The demo settings beside it among them."""
    source = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
    named = {f"configs/{file}" for file in re.findall(r"\b\w+\.yaml\b", source) if file != "best_trial.yaml"}
    assert named <= {str(file) for file in recipes.recipe_files(name)}


def test_list(capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert re.findall(r"^(\w+): \S", out, re.MULTILINE) == NAMES
    assert "    configs/translation_demo.yaml\n" in out


def test_copy_into_the_default_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "copy", "translation")
    assert code == 0
    written = [line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")]
    assert written == [f"recipes/{file}" for file in recipes.recipe_files("translation")]
    assert sorted(written) == sorted(str(path) for path in Path("recipes").rglob("*.*"))
    assert all(Path(file).read_bytes() == (ROOT / file).read_bytes() for file in written)
    assert "    python recipes/translation.py\n" in out


def test_both_drivers_and_all_into_one_folder(capsys, tmp_path):
    for argv in (("sentiment", tmp_path), ("sentiment_accelerate", tmp_path), ("--all", tmp_path)):
        assert call(capsys, "copy", *argv)[0] == 0
    assert sorted(path.stem for path in tmp_path.glob("*.py")) == NAMES
    assert len(list(tmp_path.glob("configs/*"))) == len(list((ROOT / "recipes" / "configs").iterdir()))


def test_a_recipe_without_a_demo_is_shown_with_help(capsys, tmp_path):
    assert f"    python {tmp_path / 'monitoring.py'} --help\n" in call(capsys, "copy", "monitoring", tmp_path)[1]


def test_changed_files_are_not_overwritten(capsys, tmp_path):
    recipes.copy_recipes(["tagging"], tmp_path)
    changed = tmp_path / "configs" / "tagging_demo.yaml"
    changed.write_text("seed: 1\n", encoding="utf-8")
    (tmp_path / "tagging.py").unlink()
    code, out, err = call(capsys, "copy", "tagging", tmp_path)
    assert (code, out) == (1, "")
    assert err == f"error: {changed}: exists and differs; --overwrite replaces it\n"
    assert changed.read_text(encoding="utf-8") == "seed: 1\n" and not (tmp_path / "tagging.py").exists()
    assert call(capsys, "copy", "tagging", tmp_path, "--overwrite")[0] == 0
    assert changed.read_bytes() == (ROOT / "recipes" / "configs" / "tagging_demo.yaml").read_bytes()


def test_what_is_refused(capsys, tmp_path):
    with pytest.raises(InputError, match="parsing: no such recipe; choose from anomaly_detection, "):
        recipes.copy_recipes(["parsing"], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: not a folder"):
        recipes.copy_recipes(["tagging"], tmp_path / "file")
    assert not list(tmp_path.glob("*.py"))
    for argv in (("copy",), ("copy", "tagging", "--all"), ("copy", "here", "there", "--all"), ()):
        code, _, err = call(capsys, *argv)
        assert code == 2 and "usage:" in err
