"""Sphinx settings: `make docs` builds the pages into `docs/_build/html`, with warnings as errors."""

import re
import sys
from pathlib import Path

from hfseq.version import __version__

project = "hfseq"
version = release = __version__

sys.path.insert(0, str(Path(__file__).with_name("extensions")))
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cell_diagrams", "config_fields"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"hfseq {__version__}"

# Pages link to headings: `page.md#heading`.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
# Notebooks are run at every build, each in a process of its own; an error in a cell fails it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

# Docstrings are Google style with Markdown's code spans: single backticks are code, not references.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Names of other libraries in signatures, whose documentation the build has no network to look up; private bases.
nitpick_ignore_regex = [
    ("py:.*", r"(abc|argparse|collections|gr|nn|np|numpy|os|pathlib|torch)\..*"),
    ("py:.*", r"(accelerate|datasets|huggingface_hub|tokenizers|transformers)\..*"),
    ("py:.*", r"hfseq\..*\._\w+"),
    # Types of arguments in modules that have no page.
    ("py:class", r"hfseq\.data\.(collation\.CheckedCollator|encoding\.EncodedSplits|running_text\.TokenWindows)"),
    ("py:class", r"hfseq\.training\.arguments\.RecipeArguments"),
    # Classes of transformers that are imported for type checkers alone, since hfseq imports transformers late.
    ("py:class", "PreTrainedModel|PreTrainedTokenizerBase|TrainingArguments"),
]


def keep_sentences(_app: object, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Keep "State of one layer: …" of a variable's docstring from being read as its type and a description."""
    if what in ("attribute", "data", "property") and lines and " " in lines[0].partition(": ")[0]:
        lines[0] = lines[0].replace(": ", " — ", 1)


def write_formulas(_app: object, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Turn the formulas of docstrings, which stand between dollar signs, into those of reStructuredText."""
    text = re.sub(r"^( *)\$\$(.+)\$\$$", r"\n\1.. math:: \2\n", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"\$([^$]+)\$", r":math:`\1`", text)
    lines[:] = text.split("\n")


def write_models_page(_app: object) -> None:
    """Write the page of all modules of the models, so that new families and heads are in it."""
    docs = Path(__file__).parent
    names = sorted(path.stem for path in (docs.parent / "hfseq" / "models").glob("[a-z]*.py"))
    options = "   :members:\n   :ignore-module-all:\n   :show-inheritance:\n"
    modules = [f".. automodule:: hfseq.models.{name}\n{options}" for name in names]
    lines = ["# Models", "", "```{eval-rst}", *modules, "```"]
    (docs / "api-models.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def setup(app: object) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("builder-inited", write_models_page)
    # Both before napoleon.
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)
    app.connect("autodoc-process-docstring", write_formulas, priority=400)
