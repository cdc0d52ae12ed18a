"""Forests grown and graded in this process: the part that generation, evaluation and local training share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from treeadv.config import Config
from treeadv.data.tasks import Problem
from treeadv.data.tickets import Ticket
from treeadv.engines.base import Engine
from treeadv.engines.registry import start_engine
from treeadv.errors import BadInput
from treeadv.forest import Forest
from treeadv.rewards.grading import grade_forest
from treeadv.rewards.sandbox.pool import VerifierPool
from treeadv.rewards.watch import VerifierWatch, failure_of
from treeadv.sampling.grower import Grower
from treeadv.seeds import derive


class ForestMaker:
    """One engine and one pool of verifier processes."""

    def __init__(self, config: Config, model_dir: Path, engine: Engine, pool: VerifierPool | None = None) -> None:
        """Without `pool` it has one of its own."""
        reward = config.reward
        self.engine = engine
        self._grower = Grower(config, model_dir, engine)
        self._watch = VerifierWatch()
        self._pool = pool or VerifierPool(reward.workers, reward.timeout, reward.memory_mb)
        # A forest has a row for each tree at its start and one for each leaf at its end: so many fill the engine.
        fill = math.ceil(2 * engine.stats().free / (config.sampling.roots + config.sampling.leaves))
        self._growing = asyncio.Semaphore(max(config.generator.forests, fill))

    @classmethod
    async def start(cls, config: Config, model_dir: Path) -> ForestMaker:
        """Start the engine of the configuration with the model of `model_dir`."""
        return cls(config, model_dir, await start_engine(config, model_dir))

    def drawing(self, config: Config, model_dir: Path) -> ForestMaker:
        """Another maker with the same engine and pool, which draws as `config` says. It need not be closed."""
        return ForestMaker(config, model_dir, self.engine, self._pool)

    async def make(self, tickets: Sequence[Ticket], done: Callable[[Forest], None] = lambda _: None) -> list[Forest]:
        """The graded forests of the tickets, in their order. `done` is called with each forest when it is graded.

        As many grow at a time as fill the engine, at least `generator.forests`. With the embedded engine the same
        tickets give the same forests bitwise: the next one starts when another has grown, and does not wait for
        verdicts, which take their own time.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._make(ticket, done)) for ticket in tickets]
        return [t.result() for t in tasks]

    def check_lengths(self, problems: Sequence[Problem]) -> None:
        """Raise `BadInput` for problems whose prompts cannot be used with this model and engine."""
        if refused := [reason for p in problems if (reason := self.refusal(p))]:
            raise BadInput(
                f"{len(refused)} of {len(problems)} prompts cannot be used; the first: {refused[0]}; leave them out"
            )

    def refusal(self, problem: Problem) -> str:
        """Why the prompt of a problem cannot be used with this model and engine; "" when it can."""
        return self._grower.refusal(problem)

    async def close(self) -> None:
        await self._pool.close()
        await self.engine.close()

    async def _make(self, ticket: Ticket, done: Callable[[Forest], None]) -> Forest:
        async with self._growing:
            forest = await self._grower.grow(ticket)
        graded, _ = await grade_forest(self._pool, forest, self._grower.prompter.decode)
        self._watch.add(map(int, graded.verdict), failure_of(graded))
        done(graded)
        return graded


async def rollouts(
    config: Config, model_dir: Path, problems: Sequence[Problem], done: Callable[[Forest], None]
) -> list[Forest]:
    """One graded forest for each problem, in their order, drawn by `config.sampling` from `config.run.seed`. Raises
    `BadInput` when a prompt is too long."""
    tickets = [
        Ticket(f"{p.id}-{i}", i, 0, p, derive(config.run.seed, p.id, i), config.sampling.tau)
        for i, p in enumerate(problems)
    ]
    maker = await ForestMaker.start(config, model_dir)
    try:
        maker.check_lengths(problems)
        return await maker.make(tickets, done)
    finally:
        await maker.close()
