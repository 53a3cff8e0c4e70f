"""The code of the tutorials and of README runs, in order, as a reader would paste it; links lead somewhere."""

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hfseq
from hfseq.data.embedded.cldr import cldr_pairs
from hfseq.tasks.arguments import RunningTextArguments, TranslationArguments
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import ModelArguments
from hfseq.training.finetuning import FinetuningArguments, TaskArguments

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("[0-9]-*.md"))
# What makes a run short enough for a test; the code is the page's. All of the embedded pairs are those of one page.
EPOCHS = "--num_train_epochs 3"
SHORT = "--max_steps 60 --eval_strategy steps --eval_steps 60 --save_strategy steps --save_steps 60 --num_beams 1"
FILES = " ".join(f"--{split}_file {split}.jsonl" for split in ("train", "validation", "test"))
ON_FILES = f"{SHORT} {FILES} --source_lang en --target_lang de --max_source_length 64 --max_target_length 64"


def blocks(page):
    """Language and code of each fenced block of a page, in order."""
    return re.findall(r"```(bash|python)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(command, folder):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the pages print, one after the other in a folder of their own; and that folder."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "docs" / "images").mkdir(parents=True)
    for split, rows in cldr_pairs("en", "de", train_size=2000, validation_size=50, test_size=50).items():
        rows.to_json(folder / f"{split}.jsonl")
    printed = {}
    for page in PAGES:
        code = []
        for language, text in blocks(page):
            if language == "python":
                code.append(text)
                continue
            assert EPOCHS in text
            text = text.replace(EPOCHS, SHORT if page == PAGES[0] else ON_FILES)
            command = shlex.split(text.replace("\\\n", " "))
            assert command[0] == "python"
            run([sys.executable, *command[1:]], folder)
        printed[page.name] = run([sys.executable, "-c", "\n".join(code)], folder)
    return printed, folder


def test_there_are_three_pages_that_lead_from_one_to_the_next():
    assert [page.name[:2] for page in PAGES] == ["1-", "2-", "3-"]
    for page, following in zip(PAGES, PAGES[1:], strict=False):
        assert f"]({following.name})" in page.read_text(encoding="utf-8")


def test_the_code_of_the_pages_prints_what_they_promise(results):
    printed, _ = results
    first, second, third = (printed[page.name] for page in PAGES)
    assert first.count("→") == 3
    assert "| LSTM |" in second and "| Transformer |" in second and "BLEU" in second
    assert "pipeline_tag: translation" in third and "license: apache-2.0" in third and "int8 LSTM" in third


def test_the_pictures_are_those_that_the_code_draws(results):
    _, folder = results
    for page in PAGES:
        for name in re.findall(r"\(images/(.*?)\)", page.read_text(encoding="utf-8")):
            assert (folder / "docs" / "images" / name).read_bytes().startswith(b"\x89PNG")
            assert (ROOT / "docs" / "images" / name).read_bytes().startswith(b"\x89PNG")


def test_the_code_of_one_model_six_fields_runs(capsys):
    code = "\n".join(text for language, text in blocks(ROOT / "docs" / "fields.md") if language == "python")
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all("LstmModel under LstmFor" in line for line in lines)


README = ROOT / "README.md"
TEXTS = ["a line of text", "Saturday, March 5, 2031", "the plot is not dull", "return total / count"] * 10
HEADS = {
    "translation_demo": hfseq.LstmForConditionalGeneration,
    "summarization_demo": hfseq.LstmForConditionalGeneration,
    "sentiment_demo": hfseq.LstmForSequenceClassification,
    "tagging_demo": hfseq.LstmForTokenClassification,
    "language_modeling_demo": hfseq.LstmForCausalLM,
}


def test_the_code_of_the_readme_runs(tmp_path):
    """On models of random weights where the demos of the recipes leave theirs."""
    tokenizer = train_tokenizer(TEXTS, model="word", vocab_size=60)
    config = hfseq.LstmConfig(vocab_size=len(tokenizer), hidden_size=8, embedding_size=8)
    for name, head in HEADS.items():
        head(config).save_pretrained(tmp_path / "outputs" / name)
        tokenizer.save_pretrained(tmp_path / "outputs" / name)
    code = [text for language, text in blocks(README) if language == "python"]
    assert set(re.findall(r"outputs/(\w+)", "".join(code))) == set(HEADS)
    for text in code:
        run([sys.executable, "-c", text], tmp_path)


def test_the_commands_of_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    scripts = set(re.findall(r"python (recipes/\w+\.py)", text))
    assert scripts == {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")} - {
        "recipes/monitoring.py",  # watches a model that is in use
        *(f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*_accelerate.py")),
    }
    settings = [path.read_text(encoding="utf-8") for path in (ROOT / "recipes" / "configs").glob("*_demo*.yaml")]
    kept = {name for text in settings for name in re.findall(r"^output_dir: outputs/(\w+)", text, re.MULTILINE)}
    assert set(HEADS) <= kept
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [README, ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md"]
    assert {name for page in pages for name in re.findall(r"\bmake ([a-z]+)\b`", page.read_text("utf-8"))} <= targets
    for module in set(re.findall(r"python -m (hfseq[\w.]*)", text)):
        assert importlib.util.find_spec(module)


def test_what_stands_beside_the_options_of_other_toolkits_exists():
    kinds = (FinetuningArguments, ModelArguments, TranslationArguments, RunningTextArguments, TaskArguments)
    flags = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    fields = set(hfseq.LstmConfig().to_dict())
    page = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    for row in rows:
        name, value = None, ""
        for span in re.findall("`(.*?)`", row):
            if span.startswith("--"):
                assert span.split()[0].removeprefix("--") in flags, row
            elif span.partition(":")[0] in fields:
                name, _, value = span.partition(": ")
            elif name is not None:
                value = span
            if name is not None and value:
                hfseq.LstmConfig(**{name: yaml.safe_load(value)})


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md", "benchmarks/RESULTS.md"]
)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\((?!https?:)(.*?)\)", page.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_the_readme_names_them():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"(docs/{page.name})" in readme for page in PAGES)
