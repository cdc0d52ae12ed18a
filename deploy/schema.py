"""Writes the schemas of the chart: values.schema.json, and files/config.schema.json for a recipe.

Helm itself checks the values, and refuses unknown keys and values of the wrong type. A recipe is text for Helm, so a
template of the chart checks it (templates/_recipe.tpl). Run this module after each change of treeadv/config.py:

    python -m deploy.schema             # `make generate` runs it, and a test compares the result
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treeadv.command_line import run_command, tool_parser
from treeadv.config import Config
from treeadv.engines.registry import ENGINES
from treeadv.extensions import PATTERN
from treeadv.jsonl import JsonObject
from treeadv.presets import PRESETS
from treeadv.sampling.rules import RULES

CHART = Path(__file__).resolve().parents[1] / "helm" / "treeadv"
SCHEMA = CHART / "values.schema.json"
RECIPE = CHART / "files" / "config.schema.json"

# Fields that the chart sets from other values (templates/_config.tpl). The schema refuses them in `config`, because two
# values could disagree. A recipe may have them; the chart replaces them, and its notes say so.
DERIVED = {
    "RunConfig": ("root", "name", "storage"),
    "ModelConfig": ("cache",),
    "GeneratorConfig": ("count", "cpus", "gpus", "threads", "slot"),
    "SGLangConfig": ("url", "device", "stubs"),
    "RewardConfig": ("count", "cpus", "slot"),
    "LearnerConfig": ("count", "cpus", "gpus", "threads", "slot", "device"),
    "ScalingConfig": ("enabled", "min", "max"),
    "MetricsConfig": ("host", "port"),
}

# Additions to pods. Kubernetes checks their other fields. The tests check them with Kubernetes' strict schemas.
_NAMED = {"type": "object", "required": ["name"], "properties": {"name": {"$ref": "#/$defs/text"}}}
ADDITIONS: JsonObject = {
    "extraEnv": {
        "type": "array",
        "items": _NAMED
        | {
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
                "value": {"type": "string"},
                "valueFrom": {"type": "object"},
            },
            "additionalProperties": False,
        },
    },
    "extraEnvFrom": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "prefix": {"type": "string"},
                "configMapRef": {"$ref": "#/$defs/reference"},
                "secretRef": {"$ref": "#/$defs/reference"},
            },
            "additionalProperties": False,
        },
    },
    "extraVolumes": {"type": "array", "items": _NAMED},
    "extraVolumeMounts": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name", "mountPath"],
            "properties": {"name": {"$ref": "#/$defs/text"}, "mountPath": {"type": "string", "pattern": "^/."}},
        },
    },
    "initContainers": {"type": "array", "items": _NAMED},
}
# A group of pods also has these fields and a runtime class (`gvisor`, `nvidia`, ...).
GROUP = ADDITIONS | {"runtimeClassName": {"type": "string"}}
REFERENCE = _NAMED | {"properties": _NAMED["properties"] | {"optional": {"type": "boolean"}}}
# A GPU, or a MIG partition of one such as nvidia.com/mig-1g.10gb.
GPU_RESOURCE = {"type": "string", "pattern": r"/([a-z0-9.-]*gpu|mig-[a-z0-9.+]+)$"}
FILES = {  # own code and small data, which a ConfigMap holds
    "type": "object",
    "propertyNames": {"pattern": r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"},
    "additionalProperties": {"type": "string"},
}


def generated(text: str) -> str:
    """Return the schema of the values: `text` with the current definitions of the configuration and of the
    additions."""
    schema = json.loads(text)
    own = {k: v for k, v in schema["$defs"].items() if not k[0].isupper()}  # class names are capitalised
    own |= {"reference": REFERENCE, "gpuResource": GPU_RESOURCE}
    own |= {name: definition for name, definition in GROUP.items() if name != "runtimeClassName"}
    values, fleet = schema["properties"], schema["properties"]["generator"]["properties"]["fleet"]
    _add(schema, ADDITIONS)
    for group in (values["head"], values["workerDefaults"], fleet):
        _add(group, GROUP)
    own["worker"]["properties"] |= _references(GROUP)
    strings = {"$ref": "#/$defs/strings"}
    more = {"recipe": {"type": "string"}, "files": FILES, "rayLabels": strings, "rayAnnotations": strings}
    _add(schema, more)
    config, sections = _configuration()
    for name, fields in DERIVED.items():
        for field in fields:
            del sections[name]["properties"][field]
    for section in (config, sections["TaskConfig"]):  # a recipe may set the required fields
        section.pop("required", None)
    schema["$defs"] = own | {"Config": config} | dict(sorted(sections.items()))
    return json.dumps(schema, indent=1) + "\n"


def recipe() -> str:
    """Return the schema of a whole configuration, without texts and defaults. It uses only the keywords that
    _recipe.tpl knows."""
    config, sections = _configuration()
    return json.dumps(_bare(config | {"$defs": dict(sorted(sections.items()))}), separators=(",", ":")) + "\n"


def _configuration() -> tuple[JsonObject, JsonObject]:
    """Return the schema of the configuration and the definitions of its sections."""
    config = Config.model_json_schema()
    sections: JsonObject = config.pop("$defs")
    for section, field, known in (
        ("LearnerConfig", "preset", PRESETS),
        ("SamplingConfig", "rule", RULES),
        ("GeneratorConfig", "engine", ENGINES),
    ):
        sections[section]["properties"][field]["anyOf"] = [{"enum": list(known)}, {"pattern": f"^{PATTERN}$"}]
    sections["TaskConfig"]["properties"]["prompt"]["pattern"] = r"\{problem\}"
    sections["TaskConfig"] |= {
        "if": {
            "required": ["source"],
            "properties": {"source": {"const": "reasoning-gym"}, "sources": {"maxItems": 0}},
        },
        "then": {"required": ["families"], "properties": {"families": {"minItems": 1}}},
    }
    return config, sections


def _add(section: JsonObject, more: JsonObject) -> None:
    """Add properties to an object and make all of them required, because Helm deletes a default whose value is null."""
    section["properties"] |= _references(more)
    section["required"] = list(dict.fromkeys([*section["required"], *more]))


def _references(more: JsonObject) -> JsonObject:
    return {
        name: definition if "items" not in definition else {"$ref": f"#/$defs/{name}"}
        for name, definition in more.items()
    }


def _bare(node: Any, names: bool = False) -> Any:
    """Return a schema without titles, descriptions and defaults. `names` says whether the keys are names of fields."""
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    drop = () if names else ("title", "description", "default")
    return {k: _bare(v, not names and k in ("properties", "$defs")) for k, v in node.items() if k not in drop}


def main(argv: Sequence[str] | None = None) -> None:
    tool_parser("python -m deploy.schema", __doc__).parse_args(argv)
    SCHEMA.write_text(generated(SCHEMA.read_text()))
    RECIPE.write_text(recipe())


if __name__ == "__main__":
    sys.exit(run_command(main))
