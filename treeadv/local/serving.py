"""The weights for the engine of a local run. They are `local.staleness` versions old."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from treeadv.config import Config
from treeadv.engines.base import Engine, Weights
from treeadv.learning.trainer import Trainer

_FOLDER, _PREFIX = "local", "weights-"


class Serving:
    """The newest `local.staleness` + 1 versions of the weights. The engine gets the oldest of them."""

    def __init__(self, config: Config, trainer: Trainer, engine: Engine) -> None:
        self._trainer, self._engine = trainer, engine
        self._window: deque[tuple[int, Weights]] = deque(maxlen=config.local.staleness + 1)
        self.keep_weights()

    def keep_weights(self) -> None:
        """Store the trainer's current weights if a step has changed them."""
        if self._window and self._window[-1][0] == self._trainer.version:
            return
        self._window.append((self._trainer.version, next(self._trainer.buckets(sys.maxsize))))

    async def hand_over(self) -> None:
        """Update the engine to the oldest kept version, unless the engine already has it."""
        version, weights = self._window[0]
        if self._engine.version < version:
            await self._engine.update_weights(version, weights)

    async def hand_newest(self, engine: Engine) -> None:
        """Bring `engine` to the newest version. `engine` is not the engine of the run."""
        version, weights = self._window[-1]
        if engine.version < version:
            await engine.update_weights(version, weights)

    def write_files(self, checkpoint: Path) -> None:
        """Write the older versions into a checkpoint. The checkpoint already contains the newest version."""
        (checkpoint / _FOLDER).mkdir(exist_ok=True)
        for version, weights in list(self._window)[:-1]:
            tensors = {name: torch.as_tensor(value) for name, value in weights.items()}
            save_file(tensors, checkpoint / _FOLDER / f"{_PREFIX}{version}.safetensors")

    def restore(self, checkpoint: Path) -> None:
        """Read the older versions from a checkpoint that the trainer has restored.

        A checkpoint of a run with Ray has no older versions."""
        self._window.clear()
        files = {int(p.stem.removeprefix(_PREFIX)): p for p in (checkpoint / _FOLDER).glob(f"{_PREFIX}*.safetensors")}
        for version in sorted(files):
            self._window.append((version, load_file(files[version])))
        self.keep_weights()
