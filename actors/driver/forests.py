"""The path of one forest: a generator grows it, and a reward actor grades it. The module handles the failures of
both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pyarrow as pa
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import ObjectLostError, RayTaskError

from actors.driver.cluster import Cluster
from actors.driver.in_flight import ForestsInFlight
from actors.driver.liveness import ACTOR_LOST
from actors.generator import Generator
from treeadv.data.tickets import Ticket
from treeadv.engines.base import EngineGone


@dataclass(frozen=True, slots=True, kw_only=True)
class GrownForest:
    """A reference to a graded forest, and the number of branches that its engine had room for when the forest ended."""

    forest: ObjectRef[pa.RecordBatch]
    free: int


async def reserve_ticket(
    cluster: Cluster, generator: ActorProxy[Generator], in_flight: ForestsInFlight
) -> Ticket | None:
    """Wait for a slot within the staleness bound and return its ticket.

    Returns None if the generator is lost or retired, or if the run takes no more forests."""
    if generator not in cluster.generators.members:
        return None
    in_flight.reserving += 1
    try:
        return await cluster.queue.reserve.remote(cluster.generators.names[generator])
    finally:
        in_flight.reserving -= 1


async def grow_and_grade(cluster: Cluster, generator: ActorProxy[Generator], ticket: Ticket) -> GrownForest | None:
    """Return the graded forest of a ticket.

    Returns None if the generator or the reward actor fails; the queue then gives out the prompt again. A generator that
    has died or has lost its engine is replaced."""
    try:
        forest, room = cast(tuple[ObjectRef[pa.RecordBatch], ObjectRef[int]], generator.grow.remote(ticket))
        free = await room
        graded, _ = await cluster.grading.grade(forest)
    except ACTOR_LOST as fault:
        await cluster.queue.fail.remote(ticket.forest_id, "generator died")
        cluster.generators.replace(generator, fault)
    except ObjectLostError:
        await cluster.queue.fail.remote(ticket.forest_id, "its payload is lost")
    except RayTaskError as fault:
        cause = str(fault).strip().splitlines()[-1]
        await cluster.queue.fail.remote(ticket.forest_id, cause)
        if isinstance(fault.cause, EngineGone):
            cluster.generators.replace(generator, fault.cause)
        else:
            cluster.failures.count(cause, len(cluster.generators.members) * cluster.config.generator.forests)
    else:
        cluster.failures.reset()
        return GrownForest(forest=graded, free=free)
    return None
