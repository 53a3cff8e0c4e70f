"""Copy the recipes into a folder of your own, to run and to change.

    python -m hfseq.recipes list
    python -m hfseq.recipes copy translation
    python recipes/translation.py

The wheel carries the repository's `recipes/` as `hfseq/recipe_files/`; a checkout, or an editable install of one,
reads `recipes/` itself.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

from hfseq.errors import InputError

_PACKAGE = Path(__file__).parent
_INSTALLED = _PACKAGE / "recipe_files"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of all recipes, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def recipe_files(name: str) -> list[Path]:
    """Paths, relative to the folder of the recipes, of a script and of the YAML files that belong to it.

    Both drivers of a task (`translation`, `translation_accelerate`) read the same YAML files.
    """
    configs = FOLDER.glob(f"configs/{name.removesuffix('_accelerate')}_*.yaml")
    return [Path(f"{name}.py"), *sorted(path.relative_to(FOLDER) for path in configs)]


def copy_recipes(names: Sequence[str], target: str | Path = "recipes", *, overwrite: bool = False) -> list[Path]:
    """Copy recipes with their YAML files.

    Args:
        names: Recipes, such as `translation`.
        target: Folder for the scripts; the YAML files go into its `configs`, where the scripts look for them.
        overwrite: Replace files that are there already and differ.

    Returns:
        The paths of all files of these recipes under `target`.

    Raises:
        InputError: There is no such recipe, `target` is not a folder, or a file is there already and differs from the
            one that would replace it; nothing is written then.
    """
    if unknown := sorted(set(names) - set(recipe_names())):
        raise InputError(f"{unknown[0]}: no such recipe; choose from {', '.join(recipe_names())}")
    target = Path(target)
    if blocked := [path for path in (target, target / "configs") if path.exists() and not path.is_dir()]:
        raise InputError(f"{blocked[0]}: not a folder")
    copies = {target / file: FOLDER / file for name in names for file in recipe_files(name)}
    changed = [str(copy) for copy in copies if copy.exists() and copy.read_bytes() != copies[copy].read_bytes()]
    if changed and not overwrite:
        raise InputError(f"{', '.join(changed)}: exists and differs; --overwrite replaces it")
    for copy, source in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copyfile(source, copy)
    return list(copies)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line with the arguments `argv`, by default those of the process."""
    parser = argparse.ArgumentParser(prog="python -m hfseq.recipes", description="Copy recipes to run and to change.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list the recipes and their YAML files")
    copy = commands.add_parser("copy", help="copy a recipe and its YAML files")
    copy.add_argument("name", nargs="?", help="recipe to copy, such as translation")
    copy.add_argument("target", nargs="?", help="folder to copy into (default: recipes)")
    copy.add_argument("--all", action="store_true", help="copy all recipes: copy --all [TARGET]")
    copy.add_argument("--overwrite", action="store_true", help="replace files that are there already and differ")
    args = parser.parse_args(argv)
    if args.command == "list":
        for name in recipe_names():
            print(f"{name}: {_summary(name)}")
            print("".join(f"    {file}\n" for file in recipe_files(name)[1:]), end="")
        return
    if args.all and (args.name in recipe_names() or args.target is not None):
        copy.error("--all copies every recipe; name the folder alone")
    if args.name is None and not args.all:
        copy.error("name a recipe, or give --all")
    names, target = (recipe_names(), args.name) if args.all else ([args.name], args.target)
    try:
        paths = copy_recipes(names, target or "recipes", overwrite=args.overwrite)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print("\n".join(f"wrote {path}" for path in paths))
    script = next(path for path in paths if path.stem == (args.name if not args.all else "translation"))
    demo = any("_demo" in file.stem for file in recipe_files(script.stem))
    print("\nRun it with" if demo else "\nIts flags are listed by")
    print(f"    pip install 'hfseq[train]'\n    python {script}{'' if demo else ' --help'}")


def _summary(name: str) -> str:
    """First line of a recipe's docstring."""
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8").removeprefix('"""').partition("\n")[0]


if __name__ == "__main__":
    main()
