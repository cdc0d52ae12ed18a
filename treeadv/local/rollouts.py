"""Graded forests for a list of problems, in this process: what `treeadv generate` writes and `treeadv eval` counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from treeadv.config import Config
from treeadv.data.model_folder import stop_ids
from treeadv.data.prompts import Prompter
from treeadv.data.tasks import Problem
from treeadv.engines.base import Engine
from treeadv.engines.registry import start_engine
from treeadv.forest import Forest
from treeadv.rewards.grading import grade_forest
from treeadv.rewards.sandbox.pool import VerifierPool
from treeadv.sampling.sampler import GrowRequest, grow
from treeadv.seeds import derive


async def rollouts(config: Config, model_dir: Path, problems: Sequence[Problem], done: Callable[[Forest], None]) -> list[Forest]:
    """One graded forest a problem, in their order, drawn by `config.sampling` from `config.run.seed`. `done` hears of each."""
    engine = await start_engine(config, model_dir)
    pool = VerifierPool(config.reward.workers, config.reward.timeout, config.reward.memory_mb)
    try:
        return await _Rollouts(config, model_dir, engine, pool, done).all(problems)
    finally:
        await pool.close()
        await engine.close()


class _Rollouts:
    def __init__(
        self, config: Config, model_dir: Path, engine: Engine, pool: VerifierPool, done: Callable[[Forest], None]
    ) -> None:
        self._config, self._engine, self._pool, self._done = config, engine, pool, done
        self._prompter = Prompter(model_dir, config.task.prompt)
        self._stop = stop_ids(model_dir)
        self._places = asyncio.Semaphore(config.generator.forests)

    async def all(self, problems: Sequence[Problem]) -> list[Forest]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(p, i)) for i, p in enumerate(problems)]
        return [t.result() for t in tasks]

    async def _one(self, p: Problem, index: int) -> Forest:
        seed = derive(self._config.run.seed, p.id, index)
        request = GrowRequest(forest_id=f"{p.id}-{index}", problem=p, prompt=self._prompter.encode(p.problem), seed=seed)
        async with self._places:
            forest = await grow(self._engine, request, self._config.sampling, self._config.sampling.tau, self._stop)
        graded, _ = await grade_forest(self._pool, forest, self._prompter.decode)
        self._done(graded)
        return graded
