"""`import hfseq` is light: packages that are slow to import come only with what needs them."""

import gc
import json
import pickle
import subprocess
import sys

import datasets
import pandas
import pyarrow.compute
import pytest
import served_models
from processes import run_elsewhere
from recipe_runs import ROOT

from hfseq import lazy

# What a published model or an export needs, and the search of CTC; training, metrics, serving and the demo are not
# among it.
ALLOWED = {
    "cache_io",
    "data",
    "errors",
    "forecasters",
    "heads",
    "hub",
    "inference",
    "json_files",
    "lazy",
    "models",
    "onnx",
    "pipelines",
    "processing",
    "recommenders",
    "tokenization",
    "version",
    "word_vectors",
}
# Other distributions that are imported beside those that transformers' models, `GenerationMixin` and pipelines import.
DISTRIBUTIONS = {"hfseq", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
NEVER = {"babel", "datasets", "evaluate", "gradio", "matplotlib", "onnx", "onnxruntime", "optuna", "pandas", "peft"}
NEVER |= {"jiwer", "pyarrow", "rouge_score", "sacrebleu", "seqeval", "starlette"}
NEVER |= {"transformers.cli", "transformers.trainer"}
HOST = "from transformers import AutoModel, GenerationMixin, PreTrainedModel; import transformers.pipelines"
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(["accelerate", "babel", "datasets", "evaluate", "jiwer", "soundfile", "soxr"])"""


NAMES = "import sys; print(*sys.modules)"


def test_what_is_imported():
    """After what a user of transformers has imported anyway."""
    done = run_elsewhere("-c", f"{HOST}\n{NAMES}\nimport hfseq\n{NAMES}", environment={"PYTHONPATH": str(ROOT)})
    host, imported = (set(line.split()) for line in done.stdout.splitlines())
    assert "transformers" in host and not {name for name in host if name.partition(".")[0] == "hfseq"}
    assert not NEVER & imported
    assert {name.split(".")[1] for name in imported if name.startswith("hfseq.")} <= ALLOWED
    assert {name for name in imported if name.startswith("hfseq.inference.")} == {"hfseq.inference.ctc"}
    # transformers imports accelerate, soundfile and soxr, and by them others, where they are installed.
    more = {name.partition(".")[0] for name in imported - host} - sys.stdlib_module_names
    assert more <= DISTRIBUTIONS


def test_packages_for_training_need_not_be_installed():
    """In a new process, since transformers imports some of them where they are installed."""
    command = [sys.executable, "-c", f"{WITHOUT}\nimport hfseq\n{NAMES}"]
    assert "hfseq.models" in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


# transformers imports peft, if it is installed, with what `TrainingArguments` need.
NOT_BY_RECIPES = NEVER - {"peft"} | {"fastapi", "ray", "sklearn", "statsmodels", "tensorboard", "uvicorn"}
PROGRAMS = """
import json, runpy, sys

for module, *sys.argv in json.loads(sys.argv[1]):
    try:
        runpy.run_module(module, run_name="__main__") if module else runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, sys.argv
print(*sys.modules)"""


def test_what_recipes_import(tmp_path):
    """`--help` of any recipe and of the server, and the prediction of a file: no data sets, no Trainer."""
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    programs = [["", str(path), "--help"] for path in recipes] + [["hfseq.serve", "serve", "--help"]]
    (tmp_path / "texts.txt").write_text("a b\nc\n\n" * 3)
    for name, maker in (("translation", served_models.translator), ("sentiment", served_models.classifier)):
        given = ["--model_name_or_path", maker(tmp_path / name), "--test_file", tmp_path / "texts.txt"]
        program = [ROOT / "recipes" / f"{name}.py", "--do_predict", *given, "--output_file", tmp_path / f"{name}.tsv"]
        programs.append(["", *map(str, program)])
    prompt = ["--model_name_or_path", served_models.language_model(tmp_path / "lm"), "--prompt", "a b"]
    programs.append(["", *map(str, [ROOT / "recipes" / "language_modeling.py", "--do_predict", *prompt])])
    done = run_elsewhere("-c", PROGRAMS, json.dumps(programs), environment={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert "hfseq.training.run" in imported
    assert not sorted(NOT_BY_RECIPES & imported)
    assert all(len((tmp_path / f"{name}.tsv").read_text().splitlines()) > 9 for name in ("translation", "sentiment"))


@pytest.mark.parametrize(
    "stand_in, module", [(lazy.datasets, datasets), (lazy.pd, pandas), (lazy.pc, pyarrow.compute)], ids=str
)
def test_a_lazy_module_stands_for_the_module(stand_in, module):
    assert stand_in is not module and stand_in.__name__ == module.__name__
    name = next(name for name in dir(module) if isinstance(getattr(module, name), type))
    assert getattr(stand_in, name) is getattr(module, name)
    assert dir(stand_in) == dir(module) and pickle.loads(pickle.dumps(stand_in)) is module
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stand_in.nothing


def test_collections_go_on_after_an_import():
    """Also if it fails, and only if they went on before."""
    with pytest.raises(ImportError), lazy.without_collections():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with lazy.without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
