"""treeadv: tree-structured reinforcement learning for reasoning language models.

Names are imported when they are first used, so `import treeadv` loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treeadv.adapters import rollout_advantages, trl_batch, verl_batch
    from treeadv.config import load as load_config
    from treeadv.errors import BadForest, BadInput
    from treeadv.forest import Finish, Forest, Verdict
    from treeadv.library import grow, loss, pack, redistribute, verify
    from treeadv.presets import PRESETS, build_advantage
    from treeadv.wire import read_file as read_forests
    from treeadv.wire import write_file as write_forests

__version__ = "0.1.0"

_PLACES = {  # name -> module and name of its definition
    "BadForest": "treeadv.errors:BadForest",
    "BadInput": "treeadv.errors:BadInput",
    "Finish": "treeadv.forest:Finish",
    "Forest": "treeadv.forest:Forest",
    "PRESETS": "treeadv.presets:PRESETS",
    "Verdict": "treeadv.forest:Verdict",
    "build_advantage": "treeadv.presets:build_advantage",
    "grow": "treeadv.library:grow",
    "load_config": "treeadv.config:load",
    "loss": "treeadv.library:loss",
    "pack": "treeadv.library:pack",
    "read_forests": "treeadv.wire:read_file",
    "redistribute": "treeadv.library:redistribute",
    "rollout_advantages": "treeadv.adapters:rollout_advantages",
    "trl_batch": "treeadv.adapters:trl_batch",
    "verify": "treeadv.library:verify",
    "verl_batch": "treeadv.adapters:verl_batch",
    "write_forests": "treeadv.wire:write_file",
}
__all__ = [
    "PRESETS",
    "BadForest",
    "BadInput",
    "Finish",
    "Forest",
    "Verdict",
    "build_advantage",
    "grow",
    "load_config",
    "loss",
    "pack",
    "read_forests",
    "redistribute",
    "rollout_advantages",
    "trl_batch",
    "verify",
    "verl_batch",
    "write_forests",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'treeadv' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
