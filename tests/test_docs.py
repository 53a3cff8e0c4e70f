"""The code of the tutorials and of README runs, in order, as a reader would paste it; links lead somewhere."""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

import processes
import pytest
import yaml
from transformers import set_seed

import hfseq
from hfseq.models import FAMILIES
from hfseq.tasks.arguments import RunningTextArguments, TranslationArguments
from hfseq.tokenization import train_tokenizer
from hfseq.training.arguments import ModelArguments
from hfseq.training.finetuning import FinetuningArguments, TaskArguments

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("[0-9]-*.md"))
EXPORT = ROOT / "docs" / "onnx.md"
# What makes a page short enough for a test; the code is the page's. There are fewer embedded pairs.
EPOCHS = "--num_train_epochs 3"
SHORT = "--max_steps 20 --eval_strategy steps --eval_steps 20 --save_strategy steps --save_steps 20 --num_beams 1"
ROWS = {"range(300)": "range(30)", "[:30]": "[:4]", "range(20)": "range(3)"}
FEWER = """
from hfseq.data.embedded.cldr import cldr_pairs
cldr_pairs.__kwdefaults__ |= {"train_size": 2000, "validation_size": 50, "test_size": 50}
"""
RECIPE = f"{FEWER}import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def blocks(page):
    """Language and code of each fenced block of a page, in order."""
    return re.findall(r"```(bash|python)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(folder, *command):
    done = processes.run(*command, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the pages print, one after the other in a folder of their own; and that folder."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "docs" / "images").mkdir(parents=True)
    printed = {}
    for page in (*PAGES, EXPORT):
        code = []
        for language, text in blocks(page):
            if language == "python":
                code.append(text)
                continue
            assert EPOCHS in text
            command = shlex.split(text.replace(EPOCHS, SHORT).replace("\\\n", " "))
            assert command[0] == "python"
            run(folder, "-c", RECIPE, *command[1:])
        code = "\n".join([FEWER, *code])
        for rows, fewer in ROWS.items():
            assert (rows in code) == (page == PAGES[1])
            code = code.replace(rows, fewer)
        printed[page.name] = run(folder, "-c", code)
    return printed, folder


def test_there_are_three_pages_that_lead_from_one_to_the_next():
    assert [page.name[:2] for page in PAGES] == ["1-", "2-", "3-"]
    for page, following in zip(PAGES, PAGES[1:], strict=False):
        assert f"]({following.name})" in page.read_text(encoding="utf-8")


def test_the_code_of_the_pages_prints_what_they_promise(results):
    printed, _ = results
    first, second, third, export = printed.values()
    assert first.count("→") == 3
    assert "| LSTM |" in second and "| Transformer |" in second and "BLEU" in second
    assert "pipeline_tag: translation" in third and "license: apache-2.0" in third
    assert "int8 LSTM" in export


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


GUIDES = [ROOT / "docs" / "models.md", *sorted((ROOT / "docs" / "families").glob("*.md"))]


@pytest.mark.parametrize("page", GUIDES, ids=[page.stem for page in GUIDES])
def test_the_code_of_the_guides_runs(page):
    code = "\n".join(text for language, text in blocks(page) if language == "python")
    assert code
    # As a reader would paste it, whatever ran before.
    set_seed(0)
    exec(code, {})


def test_every_family_has_a_page():
    pages = {page.stem for page in GUIDES} - {"models", "index"}
    assert pages == {config.family.lower() for config in FAMILIES}
    overview = (ROOT / "docs" / "families" / "index.md").read_text(encoding="utf-8")
    for config in FAMILIES:
        family = config.family.lower()
        page = (ROOT / "docs" / "families" / f"{family}.md").read_text(encoding="utf-8")
        assert f"{{config-fields}} {config.__name__}\n" in page and f"(images/{family}.svg)" in page
        assert f"]({family}.md)" in overview and f"<!-- results: family_{family} -->" in page


# What makes a notebook short enough for a test.
SHORTER = {
    "attention-and-gates": {
        "train_size=12_000": "train_size=400",
        "test_size=1_000": "test_size=100",
        "LATCH_STEPS = 200": "LATCH_STEPS = 2",
        "COUNT_STEPS = 300": "COUNT_STEPS = 2",
        "\nSTEPS = 400": "\nSTEPS = 10",
    },
    "vanishing-gradients": {"LENGTH = 100": "LENGTH = 8", "SEQUENCE, STEPS = 60, 500": "SEQUENCE, STEPS = 8, 2"},
}


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("name", SHORTER)
def test_the_code_of_the_notebooks_runs(name, monkeypatch):
    """A few steps of each training; `make docs` runs them in full."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    page = (ROOT / "docs" / "notebooks" / f"{name}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```\{code-cell\}\n(?:---\n.*?\n---\n)?(.*?)```", page, flags=re.DOTALL))
    for usual, short in SHORTER[name].items():
        assert usual in code
        code = code.replace(usual, short)
    exec(code, {})
    assert code.count("plt.show()") == page.count("alt:") == 3
    pyplot = sys.modules["matplotlib.pyplot"]
    assert len(pyplot.get_fignums()) == 3
    pyplot.close("all")


def test_every_notebook_is_run():
    assert {page.stem for page in (ROOT / "docs" / "notebooks").glob("*.md")} == set(SHORTER)


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
        run(tmp_path, "-c", text)


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
    "name",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "recipes/README.md", "benchmarks/RESULTS.md"],
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
