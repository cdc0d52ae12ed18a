"""Brings each policy version from the learners to the generators, and knows which generator holds which version."""

from __future__ import annotations

import asyncio
import time

from ray.actor import ActorProxy

from actors.driver.learner_group import Publication
from actors.driver.losses import ACTOR_LOST
from actors.driver.worker_group import WorkerGroup
from actors.generator import Generator

PATIENCE_SECONDS = 10.0  # that a publication waits for every generator; after that, for one
LOST = -1  # in the place of a version


class WeightSync:
    """A generator draws new forests only with the current version. One that is late catches up meanwhile."""

    def __init__(self) -> None:
        self._current: Publication | None = None
        self._versions: dict[ActorProxy[Generator], int] = {}
        self._updates: dict[ActorProxy[Generator], asyncio.Task[None]] = {}
        self.missed_updates = 0  # by generators that were lost over one

    @property
    def size(self) -> int:
        """Bytes of the current version."""
        return self._current.size if self._current else 0

    def lag(self, generators: WorkerGroup[Generator]) -> int:
        """The number of versions that the last member is behind. A hung member does not answer /metrics; its lag is
        known here."""
        held = [v for g in generators.members if (v := self._versions.get(g, 0)) != LOST]
        return self._current.version - min(held) if self._current and held else 0

    async def publish(self, publication: Publication, generators: WorkerGroup[Generator]) -> None:
        """Bring a version to every generator, also to the retired ones that still grow forests. They draw meanwhile.
        Returns when all hold it, or after PATIENCE_SECONDS when one does."""
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
        """Wait until a generator holds the current version or is lost."""
        if not self._is_current(generator):
            await asyncio.shield(self._update(generator))

    def end(self) -> None:
        for update in self._updates.values():
            update.cancel()

    def _is_current(self, generator: ActorProxy[Generator]) -> bool:
        return self._current is None or self._versions.get(generator) == self._current.version

    def _update(self, generator: ActorProxy[Generator]) -> asyncio.Task[None]:
        """The task that brings a generator up to date; there is one at a time for each."""
        task = self._updates.get(generator)
        if task is None or task.done():
            task = self._updates[generator] = asyncio.create_task(self._catch_up(generator))
            task.add_done_callback(lambda done: self._updates.pop(generator, None))
        return task

    async def _catch_up(self, generator: ActorProxy[Generator]) -> None:
        """Bring the current version to a generator, and newer ones that are published meanwhile."""
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
