"""`import hfseq` is light: packages that are slow to import come only with what needs them."""

import subprocess
import sys

import pytest

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


def modules_after(code):
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture(scope="module")
def imported():
    return modules_after("import hfseq")


def test_what_is_imported(imported):
    assert not NEVER & imported
    assert {name.split(".")[1] for name in imported if name.startswith("hfseq.")} <= ALLOWED
    assert {name for name in imported if name.startswith("hfseq.inference.")} == {"hfseq.inference.ctc"}
    # transformers imports accelerate, soundfile and soxr, and by them others, where they are installed.
    more = {name.partition(".")[0] for name in imported - modules_after(HOST)} - sys.stdlib_module_names
    assert more <= DISTRIBUTIONS


def test_packages_for_training_need_not_be_installed():
    assert "hfseq.models" in modules_after(f"{WITHOUT}\nimport hfseq")
