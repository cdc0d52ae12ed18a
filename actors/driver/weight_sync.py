"""Sends each policy version of the learners to the generators, and knows which generator has which version."""

from __future__ import annotations

import asyncio
import time

from ray.actor import ActorProxy

from actors.driver.learner_group import Publication
from actors.driver.liveness import ACTOR_LOST
from actors.driver.worker_group import WorkerGroup
from actors.generator import Generator

PATIENCE_SECONDS = 10.0  # time that a publication waits for all generators; later it waits for one
LOST = -1  # the version of a lost generator


class WeightSync:
    """Updates the weights of generators. A generator starts a new forest only with the current version."""

    def __init__(self) -> None:
        self._current: Publication | None = None
        self._versions: dict[ActorProxy[Generator], int] = {}
        self._updates: dict[ActorProxy[Generator], asyncio.Task[None]] = {}
        self.missed_updates = 0  # updates during which a generator was lost

    @property
    def size(self) -> int:
        """Bytes of the current version."""
        return self._current.size if self._current else 0

    def count_behind(self, generators: WorkerGroup[Generator]) -> int:
        """Return the number of members that do not have the current version."""
        return sum(not self._is_current(g) for g in generators.members)

    async def publish(self, publication: Publication, generators: WorkerGroup[Generator]) -> None:
        """Send a version to every generator, also to retired ones that still grow forests. Generators keep drawing
        meanwhile. Returns when all have the version, or after PATIENCE_SECONDS once one of them has it."""
        self._current = publication
        self._versions = {g: v for g, v in self._versions.items() if g in generators.names}
        updates = {self._update(g) for g in generators.names}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while updates and not (time.monotonic() >= deadline and any(map(self._is_current, generators.members))):
            timeout = max(0.0, deadline - time.monotonic()) or None
            done, updates = await asyncio.wait(updates, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for update in done:
                update.result()

    async def wait_until_current(self, generator: ActorProxy[Generator]) -> None:
        """Wait until a generator has the current version or is lost."""
        if not self._is_current(generator):
            await asyncio.shield(self._update(generator))

    def end(self) -> None:
        for update in self._updates.values():
            update.cancel()

    def _is_current(self, generator: ActorProxy[Generator]) -> bool:
        return self._current is None or self._versions.get(generator) == self._current.version

    def _update(self, generator: ActorProxy[Generator]) -> asyncio.Task[None]:
        """Return the task that updates a generator; each generator has at most one such task at a time."""
        task = self._updates.get(generator)
        if task is None or task.done():
            task = self._updates[generator] = asyncio.create_task(self._catch_up(generator))
            task.add_done_callback(lambda done: self._updates.pop(generator, None))
        return task

    async def _catch_up(self, generator: ActorProxy[Generator]) -> None:
        """Send the current version to a generator, then newer ones that were published meanwhile."""
        while not self._is_current(generator):
            assert self._current is not None
            taken = self._current
            try:
                await generator.update_weights.remote(taken.version, list(taken.buckets))
            except ACTOR_LOST:  # its group replaces it; the successor starts with the current version
                self.missed_updates += self._versions.get(generator) != LOST
                self._versions[generator] = LOST
                return
            self._versions[generator] = taken.version
