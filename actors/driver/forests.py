"""Gets one forest grown by a generator and graded by a reward actor, whatever fails on the way."""

from __future__ import annotations

from typing import cast

import pyarrow as pa
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import RayActorError, RayTaskError

from actors.driver.cluster import Cluster
from actors.generator import Generator
from treeadv.data.tickets import Ticket
from treeadv.engines.base import EngineGone


async def graded_forest(
    cluster: Cluster, generator: ActorProxy[Generator], ticket: Ticket
) -> ObjectRef[pa.RecordBatch] | None:
    """Return a reference to the graded forest of a ticket, or None when it failed: then the queue hands the prompt out
    again. A generator that died, or whose engine is gone, is replaced."""
    try:
        forest, leaves = cast(tuple[ObjectRef[pa.RecordBatch], ObjectRef[int]], generator.grow.remote(ticket))
        await leaves
        graded = await cluster.grading.grade(forest)
    except RayActorError as fault:
        await cluster.queue.fail.remote(ticket.forest_id, "generator died")
        cluster.generators.replace(generator, fault)
    except RayTaskError as fault:
        cause = str(fault).strip().splitlines()[-1]
        await cluster.queue.fail.remote(ticket.forest_id, cause)
        if isinstance(fault.cause, EngineGone):
            cluster.generators.replace(generator, fault.cause)
        else:
            cluster.failures.count(cause, len(cluster.generators.members) * cluster.config.generator.forests)
    else:
        cluster.failures.reset()
        return graded
    return None
