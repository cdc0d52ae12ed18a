"""Asks generators for forests, and gives up when no forest comes through any more."""

from __future__ import annotations

from typing import cast

import pyarrow as pa
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import RayTaskError

from actors.driver.worker_group import RoleFailed
from actors.generator import Generator
from treeadv.replay.tickets import Ticket

FAILURES = 20  # forests in a row that may fail; five times the forests that grow at a time where that is more


async def draw_forest(generator: ActorProxy[Generator], ticket: Ticket) -> ObjectRef[pa.RecordBatch]:
    """Wait until a generator has grown the forest of a ticket; return a reference to it."""
    forest, leaves = cast(tuple[ObjectRef[pa.RecordBatch], ObjectRef[int]], generator.grow.remote(ticket))
    await leaves
    return forest


class FailureLimit:
    """Counts the forests in a row that could not be grown or graded."""

    def __init__(self) -> None:
        self._failures = 0

    def count(self, fault: RayTaskError, growing: int) -> None:
        """Count one more; raise `RoleFailed` at the limit, which grows with the forests that grow at a time. The cause is then
        not the prompt."""
        self._failures += 1
        if self._failures >= max(FAILURES, 5 * growing):
            raise RoleFailed(f"no forest comes through: {self._failures} in a row failed, the last with {reason(fault)}") from fault

    def reset(self) -> None:
        self._failures = 0


def reason(fault: RayTaskError) -> str:
    """The last line of a remote error, which names it."""
    return str(fault).strip().splitlines()[-1]
