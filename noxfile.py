"""The quick contract on other versions than the pinned ones: `make compat`.

`allowed` has the newest versions that the metadata allow, as `pip install hfseq` takes them, and fails if a test does.
`existing` has the newest versions that there are: what it finds is ahead of hfseq's users, so it reports and does not
fail. In both torch is the CPU build of `constraints.txt`.
"""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent
# That of `.venv`.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What hfseq needs wherever it is installed: torch, transformers and others.
DEPENDENCIES = {canonicalize_name(Requirement(one).name) for one in METADATA["dependencies"]}

nox.options.sessions = ["allowed"]
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=PYTHON)
def allowed(session: nox.Session) -> None:
    """The newest versions that the metadata allow."""
    install(session, "--upgrade", "--editable", ".[dev]")
    check(session)


@nox.session(python=PYTHON)
def existing(session: nox.Session) -> None:
    """The newest versions that there are."""
    extras = METADATA["optional-dependencies"].values()
    names = {Requirement(one).name for group in (METADATA["dependencies"], *extras) for one in group} - {"hfseq"}
    install(session, "--upgrade", *sorted(names))
    install(session, "--no-deps", "--editable", ".")
    check(session, success_codes=range(256))


def install(session: nox.Session, *what: str) -> None:
    """Install with pip, under no other constraint than that of torch.

    Packages that `make install` has put into `.venv` are seen from the session's environment, and only those of other
    versions are installed into it.
    """
    packages = Path("lib", f"python{PYTHON}", "site-packages")
    path = Path(session.virtualenv.location).resolve() / packages / "pinned.pth"
    path.write_text(f"{ROOT / '.venv' / packages}\n", encoding="utf-8")
    pin = Path(session.create_tmp()).resolve() / "constraints.txt"
    pin.write_text(f"torch=={PINS['torch']}\n", encoding="utf-8")
    # Dependencies of dependencies, too, would not be looked for where a version is there that will do.
    options = ("--quiet", "--no-compile", "--progress-bar", "off", "--upgrade-strategy", "eager")
    session.install(*options, *what, env={"PIP_CONSTRAINT": str(pin), "PIP_BUILD_CONSTRAINT": str(pin)})


def check(session: nox.Session, **options: object) -> None:
    """Run the contract, after a line on the versions that are not the pinned ones."""
    found = session.run("python", "-m", "pip", "list", "--format=json", silent=True)
    if found is None:  # with --install-only
        return
    listed = json.loads(str(found))
    pinned = {canonicalize_name(name): version for name, version in PINS.items()}
    versions = {canonicalize_name(one["name"]): one["version"].partition("+")[0] for one in listed}
    other = {name: version for name, version in versions.items() if version != pinned.get(name)}
    session.log(f"not the pinned versions: {', '.join(map(' '.join, other.items())) or 'none'}")
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    environment = offline | {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000")}
    # The other modules need not be imported.
    marked = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "mark.contract" in path.read_text("utf-8")]
    # LSTM stands for the cells of torch, which is the pinned one.
    selected = ["-m", "contract", "-k", "not gru and (not rnn or qrnn)"]
    command = ["python", "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", *selected]
    session.run(*command, *marked, env=environment, **options)
    if other.keys().isdisjoint(DEPENDENCIES):
        session.log("no conformance: hfseq's own dependencies are the pinned ones, with which `make conformance` runs")
        return
    session.run("python", "tests/conformance/run.py", *session.posargs, env=environment, **options)
