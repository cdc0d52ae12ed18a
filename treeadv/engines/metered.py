"""A wrapper of an engine that counts the tokens drawn through the wrapper."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np

from treeadv.engines.base import Draw, Engine, EngineStats, Params, Weights


class Metered:
    """An engine that forwards every call to `engine`.

    `tokens` counts the tokens that were drawn through this object.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tokens = 0

    @property
    def version(self) -> int:
        return self._engine.version

    @property
    def longest(self) -> int:
        return self._engine.longest

    @property
    def gone(self) -> str:
        return self._engine.gone

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        async for draw in self._engine.generate(prefix, params, namespace, tree):
            self.tokens += 1
            yield draw

    async def release(self, namespace: str) -> None:
        await self._engine.release(namespace)

    async def update_weights(self, version: int, weights: Weights) -> float:
        return await self._engine.update_weights(version, weights)

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def close(self) -> None:
        await self._engine.close()
