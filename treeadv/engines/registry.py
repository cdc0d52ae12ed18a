"""The registry of engines. `ENGINES` lists the engines of the package.

`generator.engine` also takes `module:Name` (docs/extending.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from treeadv.config import Config
from treeadv.engines.base import Engine
from treeadv.errors import BadInput
from treeadv.extensions import load_extension

ENGINES = {
    "embedded": "treeadv.engines.embedded:EmbeddedEngine",
    "sglang": "treeadv.engines.sglang.engine:SGLangEngine",
}


class EngineClass(Protocol):
    """The class methods that the class of an engine must have."""

    def check(self, config: Config) -> None:
        """Raise `BadInput` for a configuration that the engine cannot serve. The run calls this before it starts."""
        ...

    def cuda_option(self, config: Config) -> str:
        """Return the option `key=value` that makes the engine use a CUDA device of this machine, or "" without such an
        option.
        """
        ...

    async def create(self, config: Config, model_dir: Path, index: int) -> Engine:
        """Start the engine with the model of `model_dir` as policy version 0. `index` numbers the engines of a run."""
        ...


def check_engine(config: Config) -> None:
    """Raise `BadInput` if `generator.engine` is unknown or cannot serve the configuration."""
    _engine_class(config).check(config)


def cuda_option(config: Config) -> str:
    """Return `EngineClass.cuda_option` of the configured engine."""
    return _engine_class(config).cuda_option(config)


async def start_engine(config: Config, model_dir: Path, index: int = 0) -> Engine:
    """Start the engine that `generator.engine` names. See `EngineClass.create`."""
    engine = _engine_class(config)
    engine.check(config)
    return await engine.create(config, model_dir, index)


def _engine_class(config: Config) -> EngineClass:
    name = config.generator.engine
    found = load_extension("generator.engine", name, ENGINES)
    missing = [method for method in ("check", "cuda_option", "create", "generate") if not hasattr(found, method)]
    if missing:
        raise BadInput(f"generator.engine={name} is not an engine: it lacks {', '.join(missing)}")
    return cast(EngineClass, found)
