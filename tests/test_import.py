"""`import hfseq` is light: packages that are slow to import come only with what needs them."""

import subprocess
import sys

import pytest

# What a published model or an export needs; training, inference, metrics, serving and the demo are not among it.
ALLOWED = {
    "cache_io",
    "data",
    "errors",
    "heads",
    "hub",
    "json_files",
    "models",
    "onnx",
    "pipelines",
    "processing",
    "version",
    "word_vectors",
}
# Other distributions that are imported beside those that transformers' own models and `GenerationMixin` import.
DISTRIBUTIONS = {"hfseq", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
NEVER = {"babel", "datasets", "evaluate", "gradio", "matplotlib", "onnx", "onnxruntime", "optuna", "pandas", "peft"}
NEVER |= {"pyarrow", "rouge_score", "sacrebleu", "seqeval", "starlette", "transformers.cli", "transformers.trainer"}
HOST = "from transformers import AutoModel, GenerationMixin, PreTrainedModel"
WITHOUT = 'import sys; sys.modules |= dict.fromkeys(["accelerate", "babel", "datasets", "evaluate"])'


def modules_after(code):
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture(scope="module")
def imported():
    return modules_after("import hfseq")


def test_what_is_imported(imported):
    assert not NEVER & imported
    assert {name.split(".")[1] for name in imported if name.startswith("hfseq.")} <= ALLOWED
    # transformers imports accelerate, and by it others, where it is installed.
    more = {name.partition(".")[0] for name in imported - modules_after(HOST)} - sys.stdlib_module_names
    assert more <= DISTRIBUTIONS


def test_packages_for_training_need_not_be_installed():
    assert "hfseq.models" in modules_after(f"{WITHOUT}; import hfseq")
