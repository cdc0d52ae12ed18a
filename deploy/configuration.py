"""Writes docs/configuration.md from the types of the configuration.

python -m deploy.configuration      # `make generate` runs it, and a test compares the result
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from pydantic import BaseModel

from treeadv.command_line import run_command, tool_parser
from treeadv.config import Config
from treeadv.data.normalisers import NORMALISERS
from treeadv.engines.registry import ENGINES
from treeadv.jsonl import JsonObject
from treeadv.learning.correction import CORRECTIONS
from treeadv.presets import PRESETS
from treeadv.replay.selection import RULES as SELECTIONS
from treeadv.sampling.rules import RULES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
HEAD = """# Configuration

`make generate` writes this page from `treeadv/sections.py` and `task_config.py`; do not edit it. A recipe is a YAML
file with these sections. The recipes of the project are in `deploy/recipes/`. On the command line a field is
`section.key=value`; the value is YAML: `treeadv train --config RECIPE.yaml sampling.rule=fixed
"sampling.rule_options={gap: 8}"`. An unknown key, a value of another type and a value outside its limits are refused
before anything starts.
"""
# Fields whose value is the name of an entry of a registry, or `module:Name` (docs/extending.md)
REGISTRIES = {
    "learner.preset": PRESETS,
    "learner.correction": CORRECTIONS,
    "sampling.rule": RULES,
    "generator.engine": ENGINES,
    "queue.selection": SELECTIONS,
    "task.normaliser": NORMALISERS,
}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page() -> str:
    """Return the page as Markdown, with one table for each section."""
    parts = [HEAD]
    for name, info in Config.model_fields.items():
        section = info.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        about = " ".join((section.__doc__ or "").split()).replace("`", "")
        parts.append(f"## {name}\n" + (f"\n{fill(about, 120)}\n" if about else ""))
        parts.append(
            "\n".join(["| field | value | default | meaning |", "| --- | --- | --- | --- |", *rows(section, name)])
            + "\n"
        )
    return "\n".join(parts)


def rows(section: type[BaseModel], prefix: str) -> list[str]:
    """Return one row of the table for each field of a section. The fields of a nested section have its name as a
    prefix."""
    schema = section.model_json_schema()
    out = []
    for name, info in section.model_fields.items():
        key = f"{prefix}.{name}"
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            out += rows(info.annotation, key)
            continue
        default = "required" if info.is_required() else _literal(info.get_default(call_default_factory=True))
        value = _names(key) or _values(schema["properties"][name], schema.get("$defs", {}))
        out.append(f"| `{key}` | {value} | {default} | {_cell(info.description or '')} |")
    return out


def _names(key: str) -> str:
    return ", ".join(f"`{n}`" for n in REGISTRIES[key]) + ", `module:Name`" if key in REGISTRIES else ""


def _values(schema: JsonObject, definitions: JsonObject) -> str:
    """Return in words which values a field accepts, from its JSON schema."""
    if "$ref" in schema:
        return _values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(_values(s, definitions) for s in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{v}`" for v in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(_values(s, definitions) for s in schema["prefixItems"]) + "]"
        return f"list of {_values(schema['items'], definitions)}"
    if schema.get("type") == "object":
        return "mapping" + (
            f" of {', '.join(f'`{p}`' for p in schema['properties'])}" if "properties" in schema else ""
        )
    word = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "null": "unset",
    }
    limits = " and ".join(f"{sign} {schema[k]:g}" for k, sign in LIMITS.items() if k in schema)
    return " ".join(filter(None, (word.get(schema.get("type", ""), "any"), limits)))


def _literal(value: object) -> str:
    if value is None:
        return "unset"
    if value == "":
        return "empty"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("{", "\\{")


def main(argv: Sequence[str] | None = None) -> None:
    tool_parser("python -m deploy.configuration", __doc__).parse_args(argv)
    PAGE.write_text(page())


if __name__ == "__main__":
    sys.exit(run_command(main))
