"""The nodes of the cluster, as Ray's control service (GCS) knows them."""

from __future__ import annotations

import asyncio

import ray
from ray import NodeID
from ray._private import worker
from ray._private.state import actors

from actors.driver.gcs import TIMEOUT_SECONDS, ask, gcs
from actors.driver.worker_group import RoleFailed

WATCH_SECONDS = 2.0  # between two questions about the node of the driver


def draining_nodes() -> frozenset[str]:
    """Return the ids of the draining nodes. `actors.driver.drain` or Ray's autoscaler has told these nodes to leave."""
    return frozenset(gcs().get_draining_nodes(timeout=TIMEOUT_SECONDS))


def actor_nodes() -> dict[str, str]:
    """Return the id of the node of each actor, by the actor's id (hex)."""
    return {actor: a["Address"]["NodeID"] for actor, a in actors().items()}


def own_node_lives() -> bool:
    """Return whether the GCS reports the node of this process as alive. The GCS reports a dead or stopped node as dead
    after 15 to 30 s."""
    (alive,) = gcs().check_alive([NodeID.from_hex(ray.get_runtime_context().get_node_id())], timeout=TIMEOUT_SECONDS)
    return bool(alive)


async def fail_when_own_node_dies() -> None:
    """Watch the node of the driver until cancelled.

    Raises `RoleFailed` when the node is dead, because the driver can then neither reach nor start an actor of the run.
    """
    while await ask(own_node_lives) is not False:
        await asyncio.sleep(WATCH_SECONDS)
    _kill_own_raylet()
    raise RoleFailed("the Ray node of the driver died (its process raylet ended or hangs)")


def _kill_own_raylet() -> None:
    """Kill the raylet that this driver has started. The end of the driver would otherwise wait for minutes for a
    stopped raylet."""
    if node := worker._global_node:  # it has no process if the driver has joined a cluster
        node.kill_raylet(check_alive=False)
