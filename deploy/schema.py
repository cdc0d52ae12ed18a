"""Write the fields of the typed configuration into the chart's values.schema.json.

Helm then refuses unknown keys and values of the wrong type. Run it after each change of treeadv/config.py:

    python -m deploy.schema             # `make generate` runs it, and a test compares the result
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from treeadv.config import Config
from treeadv.engines.registry import ENGINES
from treeadv.extensions import PATTERN
from treeadv.presets import PRESETS
from treeadv.sampling.rules import RULES

SCHEMA = Path(__file__).resolve().parents[1] / "helm" / "treeadv" / "values.schema.json"

# Fields that the chart sets from other values (templates/_config.tpl). The schema refuses them, because two values
# could disagree.
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


def generated(text: str) -> str:
    """Return the schema file `text` with current definitions of the configuration."""
    schema = json.loads(text)
    config = Config.model_json_schema()
    sections: dict[str, Any] = config.pop("$defs")
    for name, fields in DERIVED.items():
        for field in fields:
            del sections[name]["properties"][field]
    sections["LearnerConfig"]["properties"]["preset"]["anyOf"] = [{"enum": list(PRESETS)}, {"pattern": f"^{PATTERN}$"}]
    sections["SamplingConfig"]["properties"]["rule"]["anyOf"] = [{"enum": list(RULES)}, {"pattern": f"^{PATTERN}$"}]
    sections["GeneratorConfig"]["properties"]["engine"]["anyOf"] = [
        {"enum": list(ENGINES)},
        {"pattern": f"^{PATTERN}$"},
    ]
    sections["TaskConfig"]["properties"]["prompt"]["pattern"] = r"\{problem\}"
    sections["TaskConfig"] |= {
        "if": {"properties": {"source": {"const": "reasoning-gym"}, "sources": {"maxItems": 0}}},
        "then": {"required": ["families"], "properties": {"families": {"minItems": 1}}},
    }
    own = {k: v for k, v in schema["$defs"].items() if not k[0].isupper()}  # names of classes are capitalised
    schema["$defs"] = own | {"Config": config} | dict(sorted(sections.items()))
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(generated(SCHEMA.read_text()))
