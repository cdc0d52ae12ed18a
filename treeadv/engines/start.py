"""The engine that a configuration asks for."""

from __future__ import annotations

import os
from pathlib import Path

from treeadv.config import Config
from treeadv.engines.base import Engine


async def start(config: Config, model_dir: Path, index: int = 0) -> Engine:
    """Load the model of `model_dir` into generator.engine; `index` numbers the engines of a run."""
    g = config.generator
    if g.engine == "sglang":
        from treeadv.engines.sglang.engine import SGLangEngine

        return await SGLangEngine.create(config, str(model_dir), index)
    from treeadv.engines.embedded import EmbeddedEngine

    return EmbeddedEngine(model_dir, g.rows, g.dtype, g.threads or os.cpu_count() or 1)
