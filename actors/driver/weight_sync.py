"""The transfer of each policy version from the learners to the generators. The module records the version of each
generator."""

from __future__ import annotations

import asyncio
import time

from ray.actor import ActorProxy

from actors.driver.learner_group import Publication
from actors.driver.liveness import ACTOR_LOST
from actors.driver.worker_group import WorkerGroup
from actors.generator import Generator

PATIENCE_SECONDS = 10.0  # time that `arrived` waits for all generators; after it one updated generator is enough
PINNED_POLL_SECONDS = 0.1  # time between two checks whether a pinned generator was unpinned
LOST = -1  # the version of a lost generator


class WeightSync:
    """The sender of weights to the generators.

    A generator starts a new forest only with the current version. A pinned generator keeps its version until it is
    unpinned, because it answers held-out problems."""

    def __init__(self) -> None:
        self._current: Publication | None = None
        self._versions: dict[ActorProxy[Generator], int] = {}
        self._updates: dict[ActorProxy[Generator], asyncio.Task[None]] = {}
        self._pinned: set[ActorProxy[Generator]] = set()
        self.missed_updates = 0  # updates during which a generator was lost

    @property
    def size(self) -> int:
        """Return the size of the current version in bytes."""
        return self._current.size if self._current else 0

    @property
    def version(self) -> int:
        """Return the current version; 0 before the first publication."""
        return self._current.version if self._current else 0

    def lag(self, generators: WorkerGroup[Generator]) -> int:
        """Return by how many versions the slowest member is behind. The count includes a hung member, which does not
        answer /metrics."""
        versions = [v for g in generators.members if (v := self._versions.get(g, 0)) != LOST]
        return self.version - min(versions) if versions else 0

    async def publish(self, publication: Publication, generators: WorkerGroup[Generator]) -> None:
        """Begin to send a version to every generator. Retired generators that still grow forests also get the version.

        The learner takes its next step meanwhile. It waits here until the version before has arrived, so it is never
        more than one publication ahead."""
        await self.arrived(generators)
        self._current = publication
        self._versions = {g: v for g, v in self._versions.items() if g in generators.names}
        for generator in generators.names:
            if generator not in self._pinned:
                self._update(generator)

    async def arrived(self, generators: WorkerGroup[Generator]) -> None:
        """Wait until all generators have the current version. They continue to draw during the update.

        After PATIENCE_SECONDS it returns as soon as one generator has the version. It does not wait for a pinned
        generator."""
        behind = [g for g in generators.names if g not in self._pinned and not self._is_current(g)]
        updates = {self._update(g) for g in behind if self._versions.get(g) != LOST}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while updates and not (time.monotonic() >= deadline and any(map(self._is_current, generators.members))):
            timeout = max(0.0, deadline - time.monotonic()) or None
            done, updates = await asyncio.wait(updates, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for update in done:
                update.result()

    async def wait_until_current(self, generator: ActorProxy[Generator]) -> None:
        """Wait until a generator has the current version or is lost."""
        while generator in self._pinned and not self._is_current(generator):
            await asyncio.sleep(PINNED_POLL_SECONDS)
        if not self._is_current(generator):
            await asyncio.shield(self._update(generator))

    def member_with(self, version: int, generators: WorkerGroup[Generator]) -> ActorProxy[Generator] | None:
        """Return a member that has `version` and is not pinned; None if there is no such member."""
        free = (g for g in generators.members if g not in self._pinned and g not in self._updates)
        return next((g for g in free if self._versions.get(g, 0) == version), None)

    def pin(self, generator: ActorProxy[Generator]) -> None:
        """Keep the version of a generator until `unpin`."""
        self._pinned.add(generator)

    def unpin(self, generator: ActorProxy[Generator]) -> None:
        """Unpin a generator and bring it to the current version in the background."""
        self._pinned.discard(generator)
        if not self._is_current(generator):
            self._update(generator)

    def stand_in(self, generator: ActorProxy[Generator], generators: WorkerGroup[Generator]) -> ActorProxy[Generator]:
        """Return the member that grows the forests of `generator`.

        While `generator` is pinned to an older version, this is another member if there is one. So no slot of the queue
        waits for the end of an evaluation."""
        if generator not in self._pinned or self._is_current(generator):
            return generator
        return next((g for g in generators.members if g not in self._pinned), generator)

    def end(self) -> None:
        for update in self._updates.values():
            update.cancel()

    def _is_current(self, generator: ActorProxy[Generator]) -> bool:
        return self._current is None or self._versions.get(generator) == self._current.version

    def _update(self, generator: ActorProxy[Generator]) -> asyncio.Task[None]:
        """Return the task that updates a generator. Each generator has at most one such task at a time."""
        task = self._updates.get(generator)
        if task is None or task.done():
            task = self._updates[generator] = asyncio.create_task(self._catch_up(generator))
            task.add_done_callback(lambda done: self._updates.pop(generator, None))
        return task

    async def _catch_up(self, generator: ActorProxy[Generator]) -> None:
        """Send the current version to a generator. Then send newer versions that were published meanwhile."""
        while not self._is_current(generator):
            assert self._current is not None
            taken = self._current
            try:
                await generator.update_weights.remote(taken.version, list(taken.buckets))
            except ACTOR_LOST:  # its group replaces the generator, and the successor starts with the current version
                self.missed_updates += self._versions.get(generator) != LOST
                self._versions[generator] = LOST
                return
            self._versions[generator] = taken.version
