"""The shelf's import rule: a published checkpoint carries all files of `hfseq/models` that it needs, and nothing else.

transformers finds the files to copy by two regular expressions over the text of a module, docstrings included
(`transformers.dynamic_module_utils.get_relative_imports`), and the loader demands an installed package for every other
import. What both agree on is `from .sibling import name`.
"""

import ast
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

import hfseq.models

SHELF = Path(hfseq.models.__file__).parent
ALLOWED = sys.stdlib_module_names | {"numpy", "torch", "transformers"}


def lint(path: Path) -> list[str]:
    """Returns what in a file of the shelf would break a published checkpoint, as `line: reason`."""
    source = path.read_text(encoding="utf-8")
    siblings = {file.stem for file in path.parent.glob("*.py")} - {"__init__"}
    found, imported = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            packages = {node.module.partition(".")[0]}
        elif isinstance(node, ast.ImportFrom):
            packages = set()
            target = "." * node.level + (node.module or "")
            if node.level > 1 or node.module not in siblings:
                found.append(f"{node.lineno}: `from {target} import` is not a file beside this one")
            imported.add(node.module)
        else:
            continue
        found += [f"{node.lineno}: {name} is not on the shelf" for name in sorted(packages - ALLOWED)]
    # What the bundler reads in the text must be what Python imports: no more (docstrings), no less (two on one line).
    seen = set(get_relative_imports(path))
    found += [f"0: transformers reads an import of .{name} in the text" for name in sorted(seen - imported)]
    found += [f"0: transformers overlooks the import of .{name}" for name in sorted(imported - seen - {None})]
    return found


@pytest.mark.parametrize("path", sorted(SHELF.glob("*.py")), ids=lambda path: path.name)
def test_shelf(path):
    # The registration table stays at home. The rest of it is not exempt: it must not reach beyond the shelf either.
    assert lint(path) == []


def test_the_shelf_is_flat():
    assert [path.name for path in SHELF.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize(
    "source",
    [
        "import math\n\nimport torch.nn.functional as F\nfrom transformers.utils import logging\n",
        "from .sibling import (\n    one,\n    two,\n)\n",
        "def late():\n    from .sibling import one\n",
    ],
)
def test_lint_accepts(tmp_path, source):
    (tmp_path / "sibling.py").touch()
    (tmp_path / "module.py").write_text(source)
    assert lint(tmp_path / "module.py") == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("from . import sibling\n", "`from . import`"),
        ("from .missing import name\n", "`from .missing import`"),
        ("from .sub.module import name\n", "`from .sub.module import`"),
        ("from ..data import name\n", "`from ..data import`"),
        ("from .__init__ import TABLE\n", "`from .__init__ import`"),
        ("import hfseq\n", "hfseq is not on the shelf"),
        ("from hfseq.models.sibling import name\n", "hfseq is not on the shelf"),
        ("def late():\n    import pandas as pd\n", "pandas is not on the shelf"),
        ("try:\n    import soundfile\nexcept ImportError:\n    soundfile = None\n", "soundfile is not on the shelf"),
        ("try:\n    import packaging.version\nexcept ImportError:\n    pass\n", "packaging is not on the shelf"),
        ('"""Use it so:\n\n    from .sibling import name\n"""\n', "an import of .sibling in the text"),
        ('"""Use it so:\n\n    from ..data import name\n"""\n', "an import of ..data in the text"),
        ('"""Use it so:\n\n    import .sibling\n"""\n', "an import of .sibling in the text"),
        ("import math; from .sibling import name\n", "overlooks the import of .sibling"),
    ],
)
def test_lint_refuses(tmp_path, source, reason):
    (tmp_path / "sibling.py").touch()
    (tmp_path / "__init__.py").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "module.py").write_text(source)
    problems = lint(tmp_path / "module.py")
    assert any(reason in problem for problem in problems), problems
