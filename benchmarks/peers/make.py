"""Rebuilds the fixtures of `tests/fixtures/peers` with the real toolkits, and compares them with those committed.

    python benchmarks/peers/make.py --checkouts folder/with/repositories
    python benchmarks/peers/make.py --only keras --write

Each toolkit gets an environment of its own under `--environments`, with the packages of `requirements/NAME.txt`
and, without their dependencies, those of `requirements/NAME.no_deps.txt`. Sources that cannot be installed are read
from `--checkouts`: clones of `examples` of pytorch, `awd-lstm-lm` of salesforce and `icefall` of k2-fsa, and
`fairseq`, the unpacked source archive of version 0.12.2. What needs one that is missing is left out.
With `--write` the fixtures are replaced instead of compared.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
FIXTURES = FOLDER.parents[1] / "tests" / "fixtures" / "peers"
SCRIPTS = {
    "torch_models": ("torch", "icefall"),
    "word_language_model": ("torch", "examples"),
    "keras_models": ("keras",),
    "joeynmt_models": ("joeynmt",),
    "opennmt_models": ("opennmt",),
    "fastai_models": ("fastai",),
    "awd_lstm": ("torch", "awd-lstm-lm"),
    "eole_models": ("eole",),
    "fairseq_models": ("fairseq", "fairseq"),
}
"""Name of a script to its environment and, if it needs one, its checkout."""


def environment(name: str, root: Path) -> str:
    """Python of an environment, which is made if it is not there."""
    folder = root / name
    python = folder / "bin" / "python"
    done = folder / ".done"
    if not done.is_file():
        print(f"installing {name} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        # The versions that hfseq is tested with are not those that its peers want.
        variables = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
        pip = [python, "-m", "pip", "install", "--quiet", "--progress-bar", "off", "--no-compile"]
        subprocess.run([*pip, "-r", FOLDER / "requirements" / f"{name}.txt"], env=variables, check=True)
        bare = FOLDER / "requirements" / f"{name}.no_deps.txt"
        if bare.is_file():
            subprocess.run([*pip, "--no-deps", "-r", bare], env=variables, check=True)
        done.touch()
    return str(python)


def main() -> None:
    """Run the scripts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", type=Path, help="folder with the checkouts, named like the repositories")
    parser.add_argument("--environments", type=Path, default=Path(".peers"))
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), help="scripts to run")
    parser.add_argument("--write", action="store_true", help="replace the fixtures")
    args = parser.parse_args()
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    root = args.environments.resolve()
    bad = []
    for script in args.only:
        name, *checkout = SCRIPTS[script]
        checkouts = [args.checkouts / repository for repository in checkout] if args.checkouts else []
        if len(checkouts) < len(checkout) or not all(path.is_dir() for path in checkouts):
            print(f"{script}: left out, for there is no checkout of {checkout[0]} in --checkouts")
            continue
        python = environment(name, root)
        with tempfile.TemporaryDirectory() as output:
            command = [python, str(FOLDER / f"{script}.py"), output, *map(str, checkouts)]
            print(f"{script}: rebuilding", flush=True)
            if subprocess.run(command, env=variables).returncode:
                bad.append(script)
            elif args.write:
                for case in sorted(Path(output).glob("*/*")):
                    target = FIXTURES / case.relative_to(output)
                    shutil.rmtree(target, ignore_errors=True)
                    shutil.copytree(case, target)
            elif subprocess.run([python, str(FOLDER / "compare.py"), output, str(FIXTURES)]).returncode:
                bad.append(script)
    if bad:
        sys.exit(f"not rebuilt as they are committed: {', '.join(bad)}")


if __name__ == "__main__":
    main()
