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
HELD_POLL_SECONDS = 0.1  # time between two checks whether a held generator was released
LOST = -1  # the version of a lost generator


class WeightSync:
    """Updates the weights of generators. A generator starts a new forest only with the current version. A generator
    that is held keeps its version until it is released: it answers held-out problems."""

    def __init__(self) -> None:
        self._current: Publication | None = None
        self._versions: dict[ActorProxy[Generator], int] = {}
        self._updates: dict[ActorProxy[Generator], asyncio.Task[None]] = {}
        self._held: set[ActorProxy[Generator]] = set()
        self.missed_updates = 0  # updates during which a generator was lost

    @property
    def size(self) -> int:
        """Bytes of the current version."""
        return self._current.size if self._current else 0

    @property
    def version(self) -> int:
        """The current version; 0 before the first publication."""
        return self._current.version if self._current else 0

    def lag(self, generators: WorkerGroup[Generator]) -> int:
        """Return the number of versions that the last member is behind. A hung member does not answer /metrics; its lag
        is known here."""
        held = [v for g in generators.members if (v := self._versions.get(g, 0)) != LOST]
        return self.version - min(held) if held else 0

    async def publish(self, publication: Publication, generators: WorkerGroup[Generator]) -> None:
        """Send a version to every generator, also to retired ones that still grow forests. Generators keep drawing
        meanwhile. Returns when all have the version, or after PATIENCE_SECONDS once one of them has it. Does not wait
        for a held generator."""
        self._current = publication
        self._versions = {g: v for g, v in self._versions.items() if g in generators.names}
        updates = {self._update(g) for g in generators.names if g not in self._held}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while updates and not (time.monotonic() >= deadline and any(map(self._is_current, generators.members))):
            timeout = max(0.0, deadline - time.monotonic()) or None
            done, updates = await asyncio.wait(updates, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for update in done:
                update.result()

    async def wait_until_current(self, generator: ActorProxy[Generator]) -> None:
        """Wait until a generator has the current version or is lost."""
        while generator in self._held and not self._is_current(generator):
            await asyncio.sleep(HELD_POLL_SECONDS)
        if not self._is_current(generator):
            await asyncio.shield(self._update(generator))

    def holder(self, version: int, generators: WorkerGroup[Generator]) -> ActorProxy[Generator] | None:
        """A member that holds `version` and is not held; None without one."""
        free = (g for g in generators.members if g not in self._held and g not in self._updates)
        return next((g for g in free if self._versions.get(g, 0) == version), None)

    def hold(self, generator: ActorProxy[Generator]) -> None:
        """Keep the version of a generator until `release`."""
        self._held.add(generator)

    def release(self, generator: ActorProxy[Generator]) -> None:
        """Bring a held generator to the current version, in the background."""
        self._held.discard(generator)
        if not self._is_current(generator):
            self._update(generator)

    def stand_in(self, generator: ActorProxy[Generator], generators: WorkerGroup[Generator]) -> ActorProxy[Generator]:
        """The member that grows the forests of `generator`: another one while it is held with an older version, so that
        no slot of the queue waits for the end of an evaluation; itself otherwise, and where there is no other."""
        if generator not in self._held or self._is_current(generator):
            return generator
        return next((g for g in generators.members if g not in self._held), generator)

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
