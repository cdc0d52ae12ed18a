"""An engine without a model that draws tokens at the speed and with the lengths of a simulation.

`python -m benchmarks.simulation.check` trains with it, so that a real run has known times of generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulation.service import Lengths, Service
from treeadv.config import Config
from treeadv.engines.base import Draw, EngineStats, Params, Weights
from treeadv.errors import BadInput
from treeadv.forest import Finish

OPTIONS = ("step", "row", "median")
TOKEN = 10  # the id of every token


class TimedEngine:
    """Gives each running branch one token per step. A step takes `Service.step_seconds` of the running branches.

    The steps follow one clock: after a late step the next ones are earlier, so the mean speed does not depend on other
    load of the machine."""

    gone = ""
    longest = 1_000_000

    def __init__(self, config: Config, options: Mapping[str, Any]) -> None:
        self.version = 0
        self._service = Service(step=options["step"], row=options["row"])
        self._lengths = Lengths(seed=config.run.seed, median=options["median"], longest=config.sampling.max_tokens)
        self._leaves, self._rows = config.sampling.leaves, asyncio.Semaphore(config.generator.rows)
        self._row_count, self._wanted = config.generator.rows, 0
        self._running: set[asyncio.Queue[None]] = set()
        self._drawn, self._busy = 0, 0.0
        self._stepping: asyncio.Task[None] | None = None

    @classmethod
    def check(cls, config: Config) -> None:
        if missing := [name for name in OPTIONS if name not in config.generator.engine_options]:
            raise BadInput(f"generator.engine_options: give {', '.join(missing)}")

    @classmethod
    def cuda_option(cls, config: Config) -> str:
        return ""

    @classmethod
    async def create(cls, config: Config, model_dir: Path, index: int) -> TimedEngine:
        return cls(config, config.generator.engine_options)

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        """Draw a leaf of its simulated length. Each tree must be one leaf, and `namespace` the id of the forest."""
        draw, attempt = map(int, namespace.rsplit("-", 2)[1:])
        length = self._lengths.of_forest(draw, attempt, self._leaves)[int(tree)]
        self._wanted += 1
        try:
            async with self._rows:
                async for _ in self._ticks(length):
                    self._drawn += 1
                    length -= 1
                    finish = None if length else Finish.STOP
                    yield Draw(token=TOKEN, logprob=-1.0, entropy=0.0, version=self.version, finish=finish)
        finally:
            self._wanted -= 1

    async def _ticks(self, n: int) -> AsyncIterator[None]:
        """Yield at the next `n` steps of the engine."""
        ticks: asyncio.Queue[None] = asyncio.Queue()
        self._running.add(ticks)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.create_task(self._step())
        try:
            for _ in range(n):
                await ticks.get()
                yield
        finally:
            self._running.discard(ticks)

    async def _step(self) -> None:
        due = time.monotonic()
        while self._running:
            seconds = self._service.step_seconds(len(self._running))
            due += seconds
            self._busy += seconds
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            for ticks in list(self._running):
                ticks.put_nowait(None)
            await asyncio.sleep(0)  # the branches take their tokens, and finished ones leave

    async def release(self, namespace: str) -> None: ...

    async def update_weights(self, version: int, weights: Weights) -> float:
        self.version = version
        return 0.0

    def stats(self) -> EngineStats:
        return EngineStats(
            decoded_tokens=self._drawn, running=len(self._running), busy_seconds=self._busy,
            free=self._row_count - self._wanted,
        )  # fmt: skip

    async def close(self) -> None:
        if self._stepping:
            self._stepping.cancel()
