"""A maker of graded forests in this process. Generation, evaluation and local training use it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from treeadv.config import Config
from treeadv.data.problems import Problem
from treeadv.data.tickets import Ticket
from treeadv.engines.base import Engine
from treeadv.engines.registry import start_engine
from treeadv.errors import BadInput
from treeadv.forest import UNJUDGED, Forest
from treeadv.rewards.grading import grade_forest
from treeadv.rewards.judgement import Answer
from treeadv.rewards.sandbox.pool import VerifierPool
from treeadv.rewards.watch import VerifierWatch, failure_of
from treeadv.sampling.grower import Grower
from treeadv.seeds import derive


class ForestMaker:
    """A maker of graded forests with one engine and one pool of verifier processes."""

    def __init__(self, config: Config, model_dir: Path, engine: Engine, pool: VerifierPool | None = None) -> None:
        """Use `engine` and `pool`. If `pool` is None, the maker starts its own pool."""
        reward = config.reward
        self.engine = engine
        self._grower = Grower(config, model_dir, engine)
        self._watch = VerifierWatch()
        self._pool = pool or VerifierPool(reward.workers, reward.timeout, reward.memory_mb)
        # A forest needs a row for each tree at its start and a row for each leaf at its end.
        fill = math.ceil(2 * engine.stats().free / (config.sampling.roots + config.sampling.leaves))
        self._growing = asyncio.Semaphore(max(config.generator.forests, fill))

    @classmethod
    async def start(cls, config: Config, model_dir: Path) -> ForestMaker:
        """Start the configured engine with the model in the folder `model_dir`."""
        return cls(config, model_dir, await start_engine(config, model_dir))

    def drawing(self, config: Config, model_dir: Path) -> ForestMaker:
        """Return another maker with the same engine and pool that draws as `config` says. It need not be closed."""
        return ForestMaker(config, model_dir, self.engine, self._pool)

    async def make(self, tickets: Sequence[Ticket], done: Callable[[Forest], None] = lambda _: None) -> list[Forest]:
        """Return the graded forests of the tickets, in the order of the tickets. `done` is called with each forest.

        At least `generator.forests` forests grow at a time, or as many as fill the engine. With the embedded engine
        equal tickets give bitwise equal forests. A forest therefore starts when another forest has grown; it does
        not wait for verdicts, whose duration varies."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._make(ticket, done)) for ticket in tickets]
        return [t.result() for t in tasks]

    def check_lengths(self, problems: Sequence[Problem]) -> None:
        """Raise `BadInput` if this model and this engine cannot use the prompt of a problem."""
        if refused := [reason for p in problems if (reason := self.refusal(p))]:
            raise BadInput(
                f"{len(refused)} of {len(problems)} prompts cannot be used; the first: {refused[0]}; remove them"
            )

    def refusal(self, problem: Problem) -> str:
        """Return the reason for which the model or the engine cannot use the prompt of a problem; "" if both can use
        it."""
        return self._grower.refusal(problem)

    async def close(self) -> None:
        await self._pool.close()
        await self.engine.close()

    async def _rewards(self, problem: Problem, leaves: Sequence[np.ndarray]) -> list[float]:
        """Return the rewards of finished leaves for a search. The reward is NaN if no verifier could judge the leaf."""
        texts = [self._grower.prompter.decode(tokens) for tokens in leaves]
        answers = [
            Answer(response=text, gold=problem.answer, verifier=problem.verifier, meta=problem.meta) for text in texts
        ]
        judged = await self._pool.grade(answers)
        return [math.nan if j.verdict in UNJUDGED else j.reward for j in judged]

    async def _make(self, ticket: Ticket, done: Callable[[Forest], None]) -> Forest:
        async with self._growing:
            forest = await self._grower.grow(ticket, partial(self._rewards, ticket.problem))
        graded, _ = await grade_forest(self._pool, forest, self._grower.prompter.decode)
        self._watch.add(map(int, graded.verdict), failure_of(graded))
        done(graded)
        return graded


async def rollouts(
    config: Config, model_dir: Path, problems: Sequence[Problem], done: Callable[[Forest], None]
) -> list[Forest]:
    """Return one graded forest for each problem, in the order of the problems.

    `config.sampling` and `config.run.seed` define the draws. Raises `BadInput` if a prompt is too long."""
    tickets = [
        Ticket(
            forest_id=f"{p.id}-{i}",
            draw=i,
            attempt=0,
            problem=p,
            seed=derive(config.run.seed, p.id, i),
            tau=config.sampling.tau,
        )
        for i, p in enumerate(problems)
    ]
    maker = await ForestMaker.start(config, model_dir)
    try:
        maker.check_lengths(problems)
        return await maker.make(tickets, done)
    finally:
        await maker.close()
