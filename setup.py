"""Build hook; the metadata stand in pyproject.toml.

A wheel carries the scripts and YAML files of `recipes/` as `hfseq/recipe_files/`, where `python -m hfseq.recipes`
reads them. An editable install copies nothing: it reads `recipes/`.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes beside the modules."""

    def run(self) -> None:
        """Build the modules, then copy the recipes."""
        super().run()
        if not self.editable_mode:
            for source, target in self._recipes().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return all files of the build."""
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._recipes().values())]

    def _recipes(self) -> dict[str, str]:
        files = [*Path("recipes").glob("*.py"), *Path("recipes/configs").glob("*.yaml")]
        folder = Path(self.build_lib, "hfseq", "recipe_files")
        return {str(path): str(folder / path.relative_to("recipes")) for path in files}


setup(cmdclass={"build_py": BuildWithRecipes})
