"""The generator role. A generator owns an engine and grows several forests at a time."""

from __future__ import annotations

import asyncio
import time

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.heartbeat import Heartbeat
from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.data.tickets import Ticket
from treeadv.engines.base import Engine, EngineGone, EngineLost, EngineStats, Weights
from treeadv.engines.metered import Metered
from treeadv.engines.registry import start_engine
from treeadv.evaluation.sets import held_out
from treeadv.forest import Finish, Forest
from treeadv.metrics import Exporter
from treeadv.sampling.grower import Grower
from treeadv.wire import to_batch

_NOT_STARTED = "a generator has to start before it can serve"


class Generator(Heartbeat):
    """A Ray actor with asyncio methods. `start` must be called before `grow` and `update_weights`."""

    def __init__(self, config: Config, index: int, port: int) -> None:
        self._config, self._index = config, index
        self._generated: float = 0  # tokens of forests that `stats` has reported
        self._tau = config.sampling.tau  # fork threshold of the newest forest, in nats
        self._exporter = Exporter("generator", refresh=self._count_engine)
        self._address = self._exporter.serve(config.metrics.host, port)
        self._counted = EngineStats()
        self._engine: Engine | None = None
        self._grower: Grower | None = None
        self._answerer: Grower | None = None  # for held-out problems
        self._metered: Metered | None = None  # counts the tokens of the answers to held-out problems

    @ray.method
    async def start(self) -> str:
        """Load the engine with the base model, which is policy version 0. Returns the address of /metrics."""
        # The constructor does not load the model, because it has a deadline and a download from the hub may take long.
        model = await asyncio.to_thread(resolve, self._config.model.path, self._config.model.cache)
        self._engine = await start_engine(self._config, model, self._index)
        self._grower = Grower(self._config, model, self._engine)
        if self._config.eval.every:
            self._metered = Metered(self._engine)
            self._answerer = Grower(held_out(self._config), model, self._metered)
        self._exporter.set("treeadv_generator_policy_version", self.engine.version)
        return self._address

    @ray.method(num_returns=2)
    async def grow(self, ticket: Ticket) -> tuple[pa.RecordBatch, int]:
        """Grow the forest of a ticket.

        Returns a record batch of one row, and the number of branches that the engine has room for (`EngineStats.free`).

        Ray makes two objects of the result: the caller waits for the number and passes on a reference to the batch."""
        started = time.perf_counter()
        self._tau = ticket.tau
        if self._grower is None:
            raise RuntimeError(_NOT_STARTED)
        forest = await self._drawn(self._grower, ticket)
        self._count(forest, time.perf_counter() - started)
        return to_batch([forest]), self.engine.stats().free

    @ray.method(num_returns=2)
    async def answer(self, ticket: Ticket) -> tuple[pa.RecordBatch, int]:
        """Draw independent answers to a held-out problem.

        Returns the same two values as `grow`. No metric of forests counts these answers."""
        return to_batch([await self._answers(ticket)]), self.engine.stats().free

    @ray.method
    async def update_weights(self, version: int, buckets: list[ObjectRef[Weights]]) -> float:
        """Load a policy version while the engine draws branches. Returns the duration of the update in seconds.

        `buckets` are references to mappings of name to array. Together they hold all weights of the model."""
        weights = {name: value for bucket in await asyncio.gather(*buckets) for name, value in bucket.items()}
        seconds = await self.engine.update_weights(version, weights)
        self._exporter.set("treeadv_generator_policy_version", version)
        self._exporter.observe("treeadv_weight_update_seconds", seconds)
        return seconds

    @ray.method
    async def stats(self) -> dict[str, float]:
        """Return totals since the start, for the driver's record of a step. The generated tokens exclude the answers to
        held-out problems."""
        s = self.engine.stats()
        # The engine counts a token before its reader does, so the difference may fall for a moment: a total may not.
        drawn = s.decoded_tokens - (self._metered.tokens if self._metered else 0)
        self._generated = max(self._generated, drawn)
        return {
            "tokens_generated": self._generated,
            "prompt_tokens": s.prompt_tokens,
            "cached_tokens": s.cached_tokens,
            "busy_seconds": s.busy_seconds,
            "tau": self._tau,
        }

    @ray.method
    async def close(self) -> None:
        self._exporter.close()
        if self._engine:
            await self._engine.close()

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError(_NOT_STARTED)
        return self._engine

    async def _answers(self, ticket: Ticket) -> Forest:
        if self._answerer is None:
            raise RuntimeError(_NOT_STARTED)
        return await self._drawn(self._answerer, ticket)

    async def _drawn(self, grower: Grower, ticket: Ticket) -> Forest:
        try:
            return await grower.grow(ticket)
        except EngineLost as lost:
            if self.engine.gone:
                raise EngineGone(self.engine.gone) from lost
            raise

    def _count(self, forest: Forest, seconds: float) -> None:
        e = self._exporter
        e.add("treeadv_generated_forests_total")
        for finish in forest.finish:
            e.add("treeadv_generated_leaves_total", finish=Finish(finish).name.lower())
        e.add("treeadv_forks_total", float((forest.arity > 0).sum()))
        e.add("treeadv_branches_failed_total", float((forest.finish == Finish.ABORT).sum()))
        e.set("treeadv_entropy_nats", float(forest.entropy.mean()))
        e.set("treeadv_tau_nats", self._tau)
        e.observe("treeadv_forest_seconds", seconds)
        e.observe("treeadv_forest_sharing_ratio", forest.sharing)

    def _count_engine(self) -> None:
        """Export the counters of the engine. The exporter calls this method before each scrape."""
        if self._engine is None:
            return
        e, s, before = self._exporter, self._engine.stats(), self._counted
        self._counted = s
        e.add("treeadv_generated_tokens_total", s.decoded_tokens - before.decoded_tokens)
        e.add("treeadv_engine_prompt_tokens_total", s.prompt_tokens - before.prompt_tokens)
        e.add("treeadv_engine_cached_tokens_total", s.cached_tokens - before.cached_tokens)
        e.add("treeadv_engine_busy_seconds_total", s.busy_seconds - before.busy_seconds)
        e.set("treeadv_engine_running_branches", s.running)
