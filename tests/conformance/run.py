"""Runs transformers' own model and config tests against the classes of hfseq.

    python tests/conformance/run.py [pytest arguments, e.g. -k "Lstm and save_load"]

The tests are not part of the installed package. pip downloads the source archive of the transformers version that is
installed, and its `tests/` is unpacked into `.cache/` of the checkout, where the next run finds it. Modules that the
tests import and the archive lacks get empty stand-ins there. None of transformers' code enters the repository.
"""

import os
import re
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "conformance"
SUITE = HERE / "transformers_suite.py"
# The package name under which the suite imports transformers' tests.
PACKAGE = "transformers_tests"
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def fetch(release: str) -> Path:
    """Returns the source archive of transformers `release`, downloaded unless the cache has it."""
    archive = CACHE / f"transformers-{release}.tar.gz"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        print(f"downloading the source archive of transformers {release}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=transformers"]
        done = subprocess.run(
            [*command, f"transformers=={release}", "--dest", str(CACHE)], capture_output=True, text=True
        )
        if done.returncode or not archive.exists():
            reason = (done.stderr.strip().splitlines() or ["pip left no archive"])[-1]
            raise SystemExit(f"error: pip cannot download the source archive of transformers {release}: {reason}")
    return archive


def unpack(archive: Path, release: str) -> Path:
    """Makes `tests/` of the archive a package with the stand-ins, and returns the folder to import it from."""
    root = CACHE / release
    package = root / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            folder, _, name = member.name.rpartition("/")
            if folder == f"transformers-{release}/tests" and name.endswith("_common.py"):
                member.name = name
                tar.extract(member, package, filter="data")
    (package / "__init__.py").touch()
    for name, text in STAND_INS.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return root


class Outcomes:
    """A pytest plugin that keeps the outcome of each test: passed, not applicable (so says the suite) or failed."""

    # By weight: with one subtest skipped the class was not checked in full, with one failed the test failed.
    names = ("passed", "not applicable", "failed")

    def __init__(self):
        self.of_test = {}

    def pytest_runtest_logreport(self, report):
        outcome = "not applicable" if report.skipped else report.outcome
        known = self.of_test.get(report.nodeid, "passed")
        self.of_test[report.nodeid] = max(outcome, known, key=self.names.index)

    def table(self) -> dict[str, Counter]:
        """Returns the number of tests with each outcome, per class, per family and for all."""
        rows = defaultdict(Counter)
        for nodeid, outcome in self.of_test.items():
            name = nodeid.split("::")[1].removesuffix("Test")
            family = re.match("(.+?)(Config|Model|For)", name)[1]
            for row in (f"{family} {name.removeprefix(family)}", f"{family}, all", "all"):
                rows[row][outcome] += 1
        return dict(sorted(rows.items()))


def main() -> int:
    release = version("transformers")
    root = unpack(fetch(release), release)
    outcomes = Outcomes()
    # The suite skips what does not apply to a class, and the table counts it: these skips are not CI's to refuse.
    os.environ.pop("HFSEQ_ALLOWED_SKIPS", None)
    # The project's own addopts refuse markers that it does not know, such as those of the suite.
    paths = f"pythonpath={root} {HERE.parent}"
    options = ["-o", "addopts=-p no:anyio -p no:schemathesis", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    options += ["-o", paths]
    code = pytest.main(
        [str(SUITE), "-n", "2", "-q", "-r", "fE", "--tb", "short", *options, *sys.argv[1:]], plugins=[outcomes]
    )
    rows = outcomes.table()
    print(f"\ntransformers {release}, its own tests{'':5}" + "".join(f"{name:>16}" for name in Outcomes.names))
    for name, row in rows.items():
        print(f"{name:40}" + "".join(f"{row[outcome]:16}" for outcome in Outcomes.names))
    unchecked = [name for name, row in rows.items() if not row["passed"]]
    if unchecked or not rows:
        print(f"error: not one test passed for {', '.join(unchecked) or 'any class'}")
        return 1
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
