"""The settings that come with the recipes are settings that their recipes have."""

import pytest
from recipe_runs import ROOT, kinds_of, load

from hfseq.training.cli import parse_config, value_of

CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_reads_its_settings(path, tmp_path):
    names = [script.stem for script in (ROOT / "recipes").glob("*.py")]
    (task,) = (name for name in names if path.stem.startswith(f"{name}_"))
    for name in names:
        if name in (task, f"{task}_accelerate"):
            argv, recipe = [str(path), "--output_dir", str(tmp_path), "--use_cpu"], load(name)
            if name == "distillation" and value_of(argv, "task", "classification") == "translation":
                argv += ["--teacher", "named by the user"]
            *_, args = parse_config(kinds_of(recipe, argv), argv)
            assert args.seed == 42 and args.output_dir == str(tmp_path)
