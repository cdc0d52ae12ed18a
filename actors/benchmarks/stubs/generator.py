"""The generators of `treeadv bench driver`: their engine computes no model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors.benchmarks.stubs.measured import Measured
from actors.benchmarks.synthetic import binary_forest
from actors.generator import Generator
from treeadv.config import Config
from treeadv.data.tickets import Ticket
from treeadv.engines.base import Draw, Engine, EngineStats, Params, Weights
from treeadv.forest import Finish, Forest, Verdict


class StubEngine:
    """An engine that draws the same token again and again. A branch has as many tokens as it may have."""

    def __init__(self) -> None:
        self.version, self.longest, self.gone = 0, 1 << 30, ""
        self._drawn = 0

    @classmethod
    def check(cls, config: Config) -> None:
        pass  # there is no option

    @classmethod
    def cuda_option(cls, config: Config) -> str:
        return ""

    @classmethod
    async def create(cls, config: Config, model_dir: Path, index: int) -> StubEngine:
        return cls()

    async def generate(self, prefix: np.ndarray, params: Params, namespace: str, tree: str) -> AsyncIterator[Draw]:
        await asyncio.sleep(0)
        self._drawn += params.max_tokens
        draw = Draw(token=2, logprob=-0.5, entropy=0.5, version=self.version)
        for _ in range(params.max_tokens - 1):
            yield draw
        yield replace(draw, finish=Finish.LENGTH)

    async def release(self, namespace: str) -> None:
        pass  # there is no cache

    async def update_weights(self, version: int, weights: Weights) -> float:
        self.version = version
        return 0.0

    def stats(self) -> EngineStats:
        return EngineStats(decoded_tokens=self._drawn)

    async def close(self) -> None:
        pass  # there is no process


class MeasuredGenerator(Generator, Measured):
    """A generator with a stub engine. The sampler draws every token of a forest."""


class Copies:
    """A grower that returns copies of one forest. It has the only method of `Grower` that a generator calls."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self._forest = ungraded(binary_forest(config.sampling.leaves, config.sampling.max_tokens))
        self._engine = engine

    async def grow(self, ticket: Ticket) -> Forest:
        f, p = self._forest, ticket.problem
        version = np.full(f.tokens, self._engine.version, np.int32)
        return replace(f, forest_id=ticket.forest_id, prompt_id=p.id, gold=p.answer, version=version)


class PreparedGenerator(MeasuredGenerator):
    """A generator that delivers copies of one forest. Its process imports neither torch nor transformers, so a machine
    of 24 GiB runs a hundred of them."""

    def _new_grower(self, config: Config, model: Path, engine: Engine) -> Any:
        return Copies(config, engine)


def ungraded(forest: Forest) -> Forest:
    leaves = forest.leaves
    return replace(
        forest, reward=np.full(leaves, np.nan, np.float32), verdict=np.full(leaves, Verdict.UNGRADED, np.int8)
    )
