"""Commands, snippets and error messages of the documentation.

Each command is parsed by the program that it names, each snippet of Python runs on small models, and each message is
one of the sources.
"""

import argparse
import ast
import dataclasses
import importlib
import json
import re
import shlex
import tomllib
from functools import cache, partial
from pathlib import Path
from unittest import mock
from urllib.request import Request, urlopen

import numpy as np
import pytest
import served_models
import soundfile
import torch
from accelerate.commands.launch import launch_command_parser
from recipe_runs import ROOT, kinds_of, load
from served_apps import listening
from torch.distributed.run import get_args_parser

import hfseq
from hfseq import ray_predict, recipes, serve
from hfseq.convert.command import make_parser
from hfseq.demo import page as demo_page
from hfseq.serving.app import Settings, make_app
from hfseq.serving.metrics import Metrics
from hfseq.serving.ray_arguments import Arguments
from hfseq.serving.served import load_served
from hfseq.training.cli import explicit_values, parse_config

DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if not path.name.startswith("api-models"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "recipes" / "README.md", *DOCS]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
# Programs of others, whose command lines are theirs.
OTHERS = {"curl", "hf", "lm_eval", "optimum-cli", "ray"}
PROGRAMS = {"accelerate", "make", "pip", "python", "serve", "tail", "torchrun"}
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def code(text):
    """Language and text of each fenced or indented block of a page."""
    found = re.findall(r"^( *)```([^`\n]*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    yield from ((language, re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)) for indent, language, block in found)
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:(?<=\n\n)|\A)((?: {4,}\S.*\n)+)", text):
        yield "", block


def commands(text, inline=True):
    """The commands of a page, as lists of words: lines of its blocks, and spans of code that begin with a program."""
    lines = []
    for language, block in code(text):
        if language in ("", "bash"):
            lines += re.sub(r"\\\n", " ", block).splitlines()
        elif language == "ini":
            lines += re.findall(r"^ExecStart=\S*/(.*)$", block, re.MULTILINE)
    if inline:
        outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        lines += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", outside)]
    for line in lines:
        for part in line.split(" | "):
            if part.split() and part.split()[0] in PROGRAMS | OTHERS and len(part.split()) > 1:
                yield shlex.split(part, comments=True)


def parse_recipe(path, flags):
    """Parse the flags of a recipe; files that a run would have written count as given."""
    recipe, flags = load(Path(path).stem), [flag for flag in flags if flag != "…"]
    if flags and flags[0].endswith(".yaml") and not flags[0].startswith("recipes/configs/"):
        del flags[0]
    kinds = kinds_of(recipe, flags)
    explicit_values(kinds, [*flags, *(["--output_dir", "out"] if "--output_dir" not in flags else [])])
    if "--train_file" in flags and Path(path).stem != "monitoring":
        parse_config(kinds, flags)


def parse_module(name, flags):
    """Parse the flags of `python -m NAME`."""
    flags = [flag for flag in flags if flag != "…"]
    if name == "hfseq.convert":
        make_parser().parse_args(flags)
    elif name == "hfseq.recipes":
        assert flags[0] in ("copy", "list") and set(flags[1:2]) <= {*recipes.recipe_names(), "NAME", "<task>"}
    elif name == "hfseq.ray_predict":
        with mock.patch.object(ray_predict, "predict_file") as called:
            ray_predict.main(flags)
        given, more = called.call_args.args
        ray_predict.prepare(
            given.task or "translation", given.model_dir, [*more, "--test_file", "a", "--output_file", "b"]
        )
    elif name in ("hfseq.serve", "hfseq.demo"):
        module, made = (serve, "make_server") if name == "hfseq.serve" else (demo_page, "open_page")
        with mock.patch.object(module, made), mock.patch.object(serve, "check_address"), mock.patch("signal.signal"):
            module.main(flags)
    else:
        pytest.fail(f"python -m {name}")


def parse(words):
    """Parse a command by its own program, without running it."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert rest[0] in targets
    elif program == "pip":
        (wanted,) = [one for one in rest[1:] if not one.startswith("-")]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = set(filter(None, re.sub(r"^(hfseq|\.)\[?|\]$", "", wanted).split(",")))
        assert wanted.startswith(("hfseq", ".")) and extras <= project["optional-dependencies"].keys()
    elif program in ("torchrun", "accelerate") and "recipes/" in " ".join(rest):
        parser = get_args_parser() if program == "torchrun" else launch_command_parser()
        given = parser.parse_args([one for one in rest if one != "launch"])
        parse_recipe(given.training_script, given.training_script_args)
    elif program == "serve" and rest[0] == "run" and "=" in " ".join(rest):
        Arguments(**dict(pair.split("=", 1) for pair in rest[2:]))
    elif program == "python" and rest[0] == "-m":
        parse_module(rest[1], rest[2:])
    elif program == "python" and rest[0] == "-c":
        with mock.patch.object(hfseq, "publish", mock.create_autospec(hfseq.publish)):
            exec(rest[1], {})
    elif program == "python" and rest[0].startswith("recipes/"):
        parse_recipe(rest[0], rest[1:])
    elif program == "python":
        source = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{flag}"' in source for flag in rest[1:] if flag.startswith("--"))


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_those_of_their_programs(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for words in commands(re.sub(r"<!-- results.*?<!-- end of results -->", "", text, flags=re.DOTALL)):
        # The name alone, as in a sentence.
        if words[0] == "python" and len(words) == 3 and words[1] == "-m" and words[2] != "hfseq.recipes":
            assert words[2].isupper() or importlib.util.find_spec(words[2])
        else:
            parse(words)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_commands_of_the_docstrings_are_those_of_the_recipes(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) + "\n"
    found = list(commands(text, inline=False))
    assert found
    for words in found:
        parse(words)


def test_an_unknown_flag_is_found():
    for line in (
        "python recipes/sentiment.py --train_fil x",
        "python recipes/sentiment.py --train_file x --learning_rate fast",
        "torchrun --nproc_per_node 2 recipes/sentiment.py --cpu",
        "python -m hfseq.serve outputs/x --ports 8000",
        "python -m hfseq.convert fairseq a.pt --output_dir b --vocab c",
        "python -m hfseq.recipes copy parsing",
        'python -c \'import hfseq; hfseq.publish("a", "b", public=True)\'',
        "pip install 'hfseq[gpu]'",
        "make everything",
    ):
        (words,) = commands(f"\n\n    {line}\n")
        with pytest.raises((Exception, SystemExit)):
            parse(words)


@cache
def all_flags(name):
    recipe = load(name)
    kinds = recipe.ARGUMENTS.values() if isinstance(recipe.ARGUMENTS, dict) else [recipe.ARGUMENTS]
    kinds = [*kinds, getattr(recipe, "TRANSLATION_ARGUMENTS", ())]
    return {field.name for group in kinds for kind in group for field in dataclasses.fields(kind) if field.init}


# Flags of other programs, and of other parsers, which the commands of the same page show.
OTHER_FLAGS = {"help", "nproc_per_node", "multi_gpu"}


@pytest.mark.parametrize("name", ["recipes", "training", "finetuning", "distilling", "decoding", "watching"])
def test_flags_in_sentences_are_those_of_the_recipes_of_their_section(name):
    """Of the recipes that a section names, and those that the page begins with; or of all that it names."""
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    served = set(re.findall(r'add\("--(\w+)', (ROOT / "hfseq" / "serve.py").read_text(encoding="utf-8")))
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    for section in (head, *sections):
        whole = head + section if "recipes/" in section else text
        named = re.findall(r"recipes/(\w+)\.py", whole)
        known = {flag for recipe in set(named) for flag in all_flags(recipe)}
        used = set(re.findall(r"(?<![\w-])--(\w+)", section))
        assert used - known - served - OTHER_FLAGS == set(), section.partition("\n")[0]


def literals(parts):
    """String literals of the sources that contain one of `parts`, with "…" for each value that is filled in."""
    wanted = re.compile("|".join(map(re.escape, parts)))
    for path in (*(ROOT / "hfseq").rglob("*.py"), *RECIPES):
        text = path.read_text(encoding="utf-8")
        if wanted.search(text):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_messages_are_those_of_the_sources():
    """Of the tables under "What goes wrong"; "…" stands for what is filled in."""
    messages = []
    for path in DOCS:
        section = path.read_text(encoding="utf-8").partition("## What goes wrong")[2].partition("\n## ")[0]
        for cell in re.findall(r"^\| (.*?) \|", section, re.MULTILINE):
            spans = map("".join, re.findall(r"``(.*?)``|`([^`]*)`", cell))
            messages += [(path.name, span.replace("; did you mean …?", "…")) for span in spans if " " in span]
    assert len(messages) > 50
    # Lines of the sources may end anywhere: their beginnings will do to find the files.
    parts = {part.strip()[:20] for _, message in messages for part in message.split("…") if len(part) > 9}
    known = re.sub("…+", "…", "\0".join(literals(parts)))
    # A message may begin or end with what another function says.
    found = [(page, re.sub("…+", "…", message)) for page, message in messages]
    assert [one for one in found if one[1] not in known and one[1].strip("…: ") not in known] == []


SAMPLES = np.sin(np.arange(4 * served_models.RATE) / 7).astype(np.float32)
# What the text of a page supposes.
GIVEN = {"recipes.md": {"samples": SAMPLES}}
# Run elsewhere: test_docs.py runs some in order on a trained model; below there is a server.
ELSEWHERE = ("1-", "2-", "3-", "fields", "models", "onnx", "serving")
GUIDES = [path for path in DOCS if path.parent.name == "docs" and not path.name.startswith(ELSEWHERE)]
SNIPPETS = [path for path in GUIDES if "```python" in path.read_text(encoding="utf-8")]
MODELS = {
    "translation_demo": served_models.translator,
    "sentiment_demo": served_models.classifier,
    "language_modeling_demo": served_models.language_model,
    "recommendation_demo": served_models.recommender,
    "speech": partial(served_models.recognizer, bidirectional=False),
}


def make_files(text):
    """Make the models that a page names where it supposes them."""
    for name in set(re.findall(r"outputs/(\w+)", text)) & MODELS.keys():
        MODELS[name](Path("outputs", name))


@pytest.mark.parametrize("path", SNIPPETS, ids=lambda path: path.stem)
def test_snippets_run(path, tmp_path, monkeypatch, capsys):
    """In order, one after the other in the same namespace, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    names, text = dict(GIVEN.get(path.name, {})), path.read_text(encoding="utf-8")
    with torch.random.fork_rng():
        make_files(text)
        for language, block in code(text):
            if language == "python":
                exec(compile(block, path.name, "exec"), names)
                if path.stem == "ways" and not Path("you").exists():  # published in the next section
                    hfseq.publish("outputs/ways", "my-classifier", dry_run="you/my-classifier")


def test_requests_of_the_page_are_answered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    soundfile.write("recording.wav", SAMPLES, served_models.RATE)
    translator, writer = "outputs/translation_demo", "outputs/language_modeling_demo"
    named = {"translate": translator, writer: writer, "speech": "outputs/speech"}
    make_files(" ".join(named.values()))
    served = [load_served(directory, name=name, device="cpu") for name, directory in named.items()]
    requests = [words for words in commands(text) if words[0] == "curl"]
    assert len(requests) == 3
    options = argparse.ArgumentParser()
    for flag in ("-H", "-d", "--data-binary"):
        options.add_argument(flag)
    with listening(make_app(served, Metrics(), Settings())) as port:
        for language, block in code(text):
            if language == "python":
                # Of several models a client names one.
                exec(block.replace(":8000/predict", f":{port}/predict?model=translate").replace("8000", str(port)), {})
        for words in requests:
            (address,), given = words[1:2], options.parse_args(words[2:])
            body = given.d.encode() if given.d else Path(given.data_binary.removeprefix("@")).read_bytes()
            kind, _, value = given.H.partition(": ")
            with urlopen(Request(f"http://{address.replace('8000', str(port))}", body, {kind: value})) as answer:
                assert json.load(answer)
