"""The directive `config-fields`: tables of the fields of a configuration, from its class and its docstrings."""

import dataclasses
import inspect
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

import hfseq


def documented(config_class: type) -> dict[str, str]:
    """Name to description of each field that a class itself documents, from the section `Args` of its docstring."""
    if not config_class.__dict__.get("__doc__"):
        return {}
    text = inspect.cleandoc(config_class.__doc__)
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    entries = re.findall(
        r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section[1] if section else "", re.DOTALL | re.MULTILINE
    )
    return {name: " ".join(description.split()) for name, description in entries}


def field_table(config_class: type, base: type) -> list[str]:
    """Lines of a Markdown table of the fields that `base` documents, with their defaults in `config_class`."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, description in documented(base).items():
        kind = inspect.formatannotation(fields[name].type).replace("typing.", "")
        default = fields[name].default
        if default is dataclasses.MISSING:
            default = fields[name].default_factory()  # type: ignore[misc]
        cells = [f"`{name}`", f"`{kind}`", f"`{default!r}`", description]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


class ConfigFields(Directive):
    """Fields of a configuration: its own in view, those of each base class folded."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Nodes of the tables."""
        config_class = getattr(hfseq, self.arguments[0])
        own, *bases = [base for base in config_class.__mro__ if documented(base)]
        if own is not config_class:
            own, bases = config_class, [own, *bases]
        lines = field_table(config_class, own) if documented(own) else [f"`{own.__name__}` has no fields of its own."]
        found = self._parse(lines)
        for base in bases:
            summary = f"Fields of <code>{base.__name__}</code> ({len(documented(base))})"
            found.append(nodes.raw("", f"<details><summary>{summary}</summary>", format="html"))
            found += self._parse(field_table(config_class, base))
            found.append(nodes.raw("", "</details>", format="html"))
        return found

    def _parse(self, lines: list[str]) -> list[nodes.Node]:
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.arguments[0]), self.content_offset, parent)
        return list(parent.children)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("config-fields", ConfigFields)
    return {"parallel_read_safe": True}
