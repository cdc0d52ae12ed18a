"""Write the typed configuration into the chart's values.schema.json, so that helm refuses unknown keys and wrong values of single fields.

    python -m deploy.schema             # CI runs it and compares
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from treeadv.config import Config
from treeadv.extensions import PATTERN
from treeadv.presets import PRESETS
from treeadv.sampling.rules import RULES

SCHEMA = Path(__file__).resolve().parents[1] / "helm" / "treeadv" / "values.schema.json"

# Fields that the chart derives from other values (templates/_config.tpl). Set twice they could disagree, so the schema has no room
# for them.
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
    """The schema file `text` with the definitions of the configuration brought up to date."""
    schema = json.loads(text)
    config = Config.model_json_schema()
    sections: dict[str, Any] = config.pop("$defs")
    for name, fields in DERIVED.items():
        for field in fields:
            del sections[name]["properties"][field]
    # What the configuration checks in its own words.
    sections["LearnerConfig"]["properties"]["preset"]["anyOf"] = [{"enum": list(PRESETS)}, {"pattern": f"^{PATTERN}$"}]
    sections["SamplingConfig"]["properties"]["rule"]["anyOf"] = [{"enum": list(RULES)}, {"pattern": f"^{PATTERN}$"}]
    sections["TaskConfig"]["properties"]["prompt"]["pattern"] = r"\{problem\}"
    sections["TaskConfig"] |= {
        "if": {"properties": {"source": {"const": "reasoning-gym"}}},
        "then": {"required": ["families"], "properties": {"families": {"minItems": 1}}},
    }
    own = {k: v for k, v in schema["$defs"].items() if not k[0].isupper()}  # classes are capitalised, the chart's own are not
    schema["$defs"] = own | {"Config": config} | dict(sorted(sections.items()))
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(generated(SCHEMA.read_text()))
