"""The generator role. A generator owns an engine and grows several forests at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.heartbeat import Heartbeat
from actors.weight_bucket import WeightBucket
from treeadv.config import Config
from treeadv.data.model_folder import resolve
from treeadv.data.tickets import Ticket
from treeadv.engines.base import Engine, EngineGone, EngineLost, EngineStats
from treeadv.engines.metered import Metered
from treeadv.engines.registry import start_engine
from treeadv.errors import one_line
from treeadv.evaluation.sets import held_out
from treeadv.forest import Finish, Forest
from treeadv.metrics import Exporter
from treeadv.wire import to_batch

if TYPE_CHECKING:
    import torch

    from treeadv.sampling.grower import Grower

_NOT_STARTED = "a generator has to start before it can serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedForest:
    """A forest that could not be grown. `engine_gone` is the reason why the engine can grow no more forests, or ""."""

    forest_id: str
    cause: str
    engine_gone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedForests:
    """The forests that a generator has grown, in the order of their batch, and those that failed. `free` is the number
    of branches that the engine has room for (`EngineStats.free`)."""

    forest_ids: tuple[str, ...]
    failed: tuple[FailedForest, ...]
    free: int


class Generator(Heartbeat):
    """A Ray actor with asyncio methods. `start` must be called before the other methods."""

    def __init__(self, config: Config, index: int, port: int) -> None:
        self._config, self._index = config, index
        self._generated: float = 0  # tokens of forests that `stats` has reported
        self._tau = config.sampling.tau  # fork threshold of the newest forest, in nats
        self._exporter = Exporter("generator", refresh=self._count_engine)
        self._address = self._exporter.serve(config.metrics.host, port)
        self._counted = EngineStats()
        self._growing: set[asyncio.Task[None]] = set()
        self._ended: list[Forest] = []  # forests that `finished` has not returned yet
        self._failed: list[FailedForest] = []
        self._some_ended = asyncio.Event()
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
        self._grower = self._new_grower(self._config, model, self._engine)
        if self._config.eval.every:
            self._metered = Metered(self._engine)
            self._answerer = self._new_grower(held_out(self._config), model, self._metered)
        self._exporter.set("treeadv_generator_policy_version", self.engine.version)
        return self._address

    @ray.method
    async def grow(self, tickets: list[Ticket]) -> None:
        """Start to grow the forests of tickets. `finished` returns them."""
        if self._grower is None:
            raise RuntimeError(_NOT_STARTED)
        for ticket in tickets:
            task = asyncio.create_task(self._grow(self._grower, ticket))
            self._growing.add(task)
            task.add_done_callback(self._growing.discard)

    @ray.method(num_returns=2)
    async def finished(self) -> tuple[pa.RecordBatch | None, EndedForests]:
        """Wait until a forest ends. Return all forests that have ended since the last call, as a record batch (None if
        all of them failed) and a report.

        Ray makes two objects of the result: the caller waits for the report and passes on a reference to the batch."""
        await self._some_ended.wait()
        self._some_ended.clear()
        forests, self._ended = self._ended, []
        failed, self._failed = self._failed, []
        free = self.engine.stats().free
        report = EndedForests(forest_ids=tuple(f.forest_id for f in forests), failed=tuple(failed), free=free)
        return to_batch(forests, checked=True) if forests else None, report  # `_grow` checks them

    @ray.method(num_returns=2)
    async def answer(self, ticket: Ticket) -> tuple[pa.RecordBatch, int]:
        """Draw independent answers to a held-out problem.

        Returns a record batch of one row, and the number of branches that the engine has room for
        (`EngineStats.free`). No metric of forests counts these answers."""
        return to_batch([await self._answers(ticket)]), self.engine.stats().free

    @ray.method
    async def update_weights(self, version: int, buckets: list[ObjectRef[WeightBucket]]) -> float:
        """Load a policy version while the engine draws branches. Returns the duration of the update in seconds.

        The buckets together hold all weights of the model."""
        weights: dict[str, torch.Tensor] = {}
        for bucket in await asyncio.gather(*buckets):
            weights |= bucket.tensors()
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

    def _new_grower(self, config: Config, model: Path, engine: Engine) -> Grower:
        # transformers takes seconds to import, and the constructor has a deadline. The heartbeat goes on meanwhile.
        from treeadv.sampling.grower import Grower

        return Grower(config, model, engine)

    async def _grow(self, grower: Grower, ticket: Ticket) -> None:
        """Grow one forest and keep it, or the cause of its failure, for `finished`."""
        started = time.perf_counter()
        self._tau = ticket.tau
        try:
            forest = (await self._drawn(grower, ticket)).check()
            self._count(forest, time.perf_counter() - started)
            self._ended.append(forest)
        except Exception as fault:  # the driver gets the cause, whatever it is
            cause, gone = f"{type(fault).__name__}: {one_line(fault)}", isinstance(fault, EngineGone)
            self._failed.append(
                FailedForest(forest_id=ticket.forest_id, cause=cause, engine_gone=str(fault) if gone else "")
            )
        self._some_ended.set()

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
        for finish, leaves in Counter(forest.finish.tolist()).items():
            e.add("treeadv_generated_leaves_total", leaves, finish=Finish(finish).name.lower())
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
