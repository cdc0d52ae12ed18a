"""What Ray's control service (GCS) knows of the nodes. It may not answer for a while: then nothing new is known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import ray
from ray import NodeID
from ray._private.state import actors
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RpcError

from actors.driver.worker_group import RoleFailed

TIMEOUT_SECONDS = 5  # of a question to the GCS
WATCH_SECONDS = 2.0  # between questions about the node of the driver

T = TypeVar("T")
log = logging.getLogger(__name__)


def gcs() -> GcsClient:
    """A client of the GCS. Needs a connected driver."""
    return _client(ray.get_runtime_context().gcs_address)


@lru_cache(maxsize=1)
def _client(address: str) -> GcsClient:
    return GcsClient(address=address)


def draining_nodes() -> frozenset[str]:
    """The ids of the nodes that are told to leave, by `actors.driver.drain` or by Ray's autoscaler."""
    return frozenset(gcs().get_draining_nodes(timeout=TIMEOUT_SECONDS))


def actor_nodes() -> dict[str, str]:
    """Map the id (hex) of each actor to the id of its node."""
    return {actor: a["Address"]["NodeID"] for actor, a in actors().items()}


def own_node_lives() -> bool:
    """Whether the node of this process is alive, by the GCS. A dead or stopped node counts as dead after 15 to 30 s."""
    (alive,) = gcs().check_alive([NodeID.from_hex(ray.get_runtime_context().get_node_id())], timeout=TIMEOUT_SECONDS)
    return bool(alive)


async def ask(question: Callable[[], T]) -> T | None:
    """Return the answer of the GCS, or None when it gives none within TIMEOUT_SECONDS."""
    try:
        return await asyncio.to_thread(question)
    except RpcError as fault:
        log.debug("the GCS does not answer: %s", fault)
        return None


async def fail_when_own_node_dies() -> None:
    """Watch the node of the driver until cancelled. Raise `RoleFailed` when it is dead: no actor of the run can be
    reached or started any more."""
    while await ask(own_node_lives) is not False:
        await asyncio.sleep(WATCH_SECONDS)
    raise RoleFailed("the Ray node of the driver died (its process raylet ended or hangs)")
