"""Brings each policy version from the learners to the generators, and knows which version is current."""

from __future__ import annotations

import asyncio

from ray.actor import ActorProxy
from ray.exceptions import RayActorError

from actors.driver.learner_group import Publication
from actors.driver.worker_group import WorkerGroup
from actors.generator import Generator


class WeightSync:
    def __init__(self) -> None:
        self._current: Publication | None = None
        self.missed_updates = 0  # by generators that died over one

    @property
    def size(self) -> int:
        """Bytes of the current version."""
        return self._current.size if self._current else 0

    async def publish(self, publication: Publication, generators: WorkerGroup[Generator]) -> None:
        """Bring a version to every generator, also to the retired ones that still grow forests. They draw meanwhile."""
        self._current = publication
        updates = (_update(g, publication) for g in list(generators.names))
        for fault in await asyncio.gather(*updates, return_exceptions=True):
            if isinstance(fault, RayActorError):  # `grow` finds the dead one and replaces it; the successor catches up
                self.missed_updates += 1
            elif isinstance(fault, BaseException):
                raise fault

    async def catch_up(self, generator: ActorProxy[Generator]) -> None:
        """Bring the current version to a new generator, and newer ones that are published meanwhile."""
        taken = None
        while taken is not self._current:
            taken = self._current
            if taken:
                await _update(generator, taken)


async def _update(generator: ActorProxy[Generator], publication: Publication) -> None:
    await generator.update_weights.remote(publication.version, list(publication.buckets))
