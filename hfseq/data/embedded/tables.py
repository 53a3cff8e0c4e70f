"""Word lists, templates and other tables of the embedded data sets, JSON files beside this module."""

import json
from importlib.resources import files
from typing import Any


def load_table(name: str) -> Any:
    """Return the contents of a JSON file of this package."""
    return json.loads(files(__package__).joinpath(name).read_text("utf-8"))
