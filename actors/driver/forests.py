"""The path of the forests of one generator: the generator grows them, a reward actor grades them, and the queue admits
them. The module handles the failures of these actors.

Each call of an actor carries all forests that are ready for it, so a fast pipeline makes few calls for a forest."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TypeAlias, cast

import pyarrow as pa
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import ObjectLostError, RayTaskError

from actors.driver.batcher import Batcher
from actors.driver.cluster import Cluster
from actors.driver.in_flight import ForestsInFlight
from actors.driver.liveness import ACTOR_LOST
from actors.generator import EndedForests, Generator
from treeadv.data.tickets import Ticket
from treeadv.engines.base import EngineGone

Batch: TypeAlias = ObjectRef[pa.RecordBatch]


class Forests:
    """The forests of a run that grow or are graded now."""

    def __init__(self, cluster: Cluster, group: asyncio.TaskGroup) -> None:
        """`group` runs the calls. An error that concerns the whole run ends the group."""
        self.cluster = cluster
        self._group = group
        self._growths: dict[ActorProxy[Generator], Growth] = {}
        self._admission: Batcher[tuple[Sequence[str], Batch], None] = Batcher(self._admit, self.run)

    def on(self, generator: ActorProxy[Generator]) -> Growth:
        """Return the forests that grow on a generator."""
        if generator not in self._growths:
            self._growths[generator] = Growth(self, generator)
        return self._growths[generator]

    def forget(self, generator: ActorProxy[Generator]) -> None:
        """Release what belongs to a generator that grows no forest and will grow none."""
        self._growths.pop(generator, None)

    def run(self, work: Coroutine[None, None, None]) -> None:
        self._group.create_task(work)

    async def grade_and_admit(self, ids: Sequence[str], batch: Batch, row: int | None = None) -> set[str]:
        """Grade and admit the forests `ids`, which are the rows of `batch`, or only its row `row`. Returns the ids of
        those that were graded. The queue gives out the prompts of the others again."""
        try:
            graded, _ = await self.cluster.grading.grade(batch, row)
        except ObjectLostError:
            await self.fail(ids, "its payload is lost")
            return set()
        except RayTaskError as fault:
            if len(ids) > 1:  # one forest is the cause; the others must not fail with it
                found = await asyncio.gather(*(self.grade_and_admit([fid], batch, n) for n, fid in enumerate(ids)))
                return set[str]().union(*found)
            await self.count_failure(ids[0], str(fault).strip().splitlines()[-1])
            return set()
        self.cluster.failures.reset()
        await self._admission((ids, graded))
        return set(ids)

    async def fail(self, ids: Sequence[str], cause: str) -> None:
        await asyncio.gather(*(self.cluster.queue.fail.remote(fid, cause) for fid in ids))

    async def count_failure(self, forest_id: str, cause: str) -> None:
        """Record that a forest could not be grown or graded. Raises `RoleFailed` after too many failures in a row."""
        await self.fail([forest_id], cause)
        growing = len(self.cluster.generators.members) * self.cluster.config.generator.forests
        self.cluster.failures.count(cause, growing)

    async def _admit(self, batches: list[tuple[Sequence[str], Batch]]) -> list[None]:
        await self.cluster.queue.admit.remote([ids for ids, _ in batches], [ref for _, ref in batches])
        return [None] * len(batches)


class Growth:
    """The forests that grow on one generator."""

    def __init__(self, forests: Forests, generator: ActorProxy[Generator]) -> None:
        self._forests, self._generator = forests, generator
        self._reservation: Batcher[None, Ticket | None] = Batcher(self._reserve, forests.run)
        self._unsent: list[Ticket] = []
        self._growing: dict[str, asyncio.Future[int | None]] = {}
        self._collecting = False

    async def reserve(self, in_flight: ForestsInFlight) -> Ticket | None:
        """Wait for a slot within the staleness bound and return its ticket.

        Returns None if the generator is lost or retired, or if the run takes no more forests."""
        if self._generator not in self._forests.cluster.generators.members:
            return None
        in_flight.reserving += 1
        try:
            return await self._reservation(None)
        finally:
            in_flight.reserving -= 1

    async def grow(self, ticket: Ticket) -> int | None:
        """Grow, grade and admit the forest of a ticket. Returns the number of branches that the engine had room for
        when the forest ended.

        Returns None if the generator or the reward actor fails; the queue then gives out the prompt again. A generator
        that has died or has lost its engine is replaced."""
        self._growing[ticket.forest_id] = ended = asyncio.get_running_loop().create_future()
        self._unsent.append(ticket)
        if len(self._unsent) == 1:
            self._forests.run(self._send())
        if not self._collecting:
            self._collecting = True
            self._forests.run(self._collect())
        return await ended

    async def _reserve(self, loops: list[None]) -> Sequence[Ticket | None]:
        """Return a ticket for the first of the waiting loops, or None for each of them when the run ends."""
        cluster, generators = self._forests.cluster, self._forests.cluster.generators
        tickets: list[Ticket] = []
        if self._generator in generators.members:
            tickets = await cluster.queue.reserve.remote(generators.names[self._generator], len(loops))
        return tickets or [None] * len(loops)

    async def _send(self) -> None:
        """Send the tickets that became ready together."""
        tickets, self._unsent = self._unsent, []
        try:
            await self._generator.grow.remote(tickets)
        except ACTOR_LOST as fault:
            await self._lose(fault)

    async def _collect(self) -> None:
        """Fetch the forests that end, as long as forests grow."""
        while self._growing:
            batch, answer = cast(tuple[Batch, ObjectRef[EndedForests]], self._generator.finished.remote())
            try:
                ended = await answer
            except ACTOR_LOST as fault:
                await self._lose(fault)
                continue
            waiting = {fid: self._growing.pop(fid) for fid in (*ended.forest_ids, *(f.forest_id for f in ended.failed))}
            self._forests.run(self._deliver(batch, ended, waiting))
        self._collecting = False

    async def _deliver(self, batch: Batch, ended: EndedForests, waiting: dict[str, asyncio.Future[int | None]]) -> None:
        for failure in ended.failed:
            if failure.engine_gone:
                await self._forests.fail([failure.forest_id], failure.cause)
                self._forests.cluster.generators.replace(self._generator, EngineGone(failure.engine_gone))
            else:
                await self._forests.count_failure(failure.forest_id, failure.cause)
        graded = await self._forests.grade_and_admit(ended.forest_ids, batch) if ended.forest_ids else set()
        for fid, future in waiting.items():
            if not future.done():  # its task may be cancelled
                future.set_result(ended.free if fid in graded else None)

    async def _lose(self, fault: Exception) -> None:
        """Give up the forests of a dead generator, and replace it."""
        lost, self._growing = self._growing, {}
        await self._forests.fail(list(lost), "generator died")
        self._forests.cluster.generators.replace(self._generator, fault)
        for future in lost.values():
            if not future.done():
                future.set_result(None)
