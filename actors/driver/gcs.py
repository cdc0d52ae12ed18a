"""Questions to Ray's control service (GCS). The GCS may not answer for a while; the caller then learns nothing new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TypeVar

import ray
from ray import ActorID
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.exceptions import RpcError

from actors.driver.handles import Handle, actor_id
from treeadv.visible import visible_logger

TIMEOUT_SECONDS = 5  # time limit of a question

T = TypeVar("T")
log = visible_logger(__name__)


def gcs() -> GcsClient:
    """Return a client of the GCS. This process must be a driver that is connected to Ray."""
    return _client(ray.get_runtime_context().gcs_address)


@lru_cache(maxsize=1)
def _client(address: str) -> GcsClient:
    return GcsClient(address=address)


async def ask(question: Callable[[], T]) -> T | None:
    """Call `question`, which blocks, in a thread and return its answer. Returns None if the GCS does not answer within
    TIMEOUT_SECONDS."""
    return await answer(asyncio.to_thread(question))


async def answer(question: Awaitable[T]) -> T | None:
    """Return the answer, or None if the GCS does not answer within TIMEOUT_SECONDS."""
    try:
        return await question
    except RpcError as fault:
        log.debug("the GCS does not answer: %s", fault)
        return None


async def has_process(handle: Handle) -> bool | None:
    """Return whether an actor has a process, which runs its constructor or its methods.

    An actor without a process waits for resources of the cluster. Returns None if the GCS does not answer."""
    found = await _record(handle)
    return None if found is None else any(actor.address.port > 0 for actor in found)


async def is_restarting(handle: Handle) -> bool | None:
    """Return whether Ray starts an actor again, up to the end of its constructor. Returns None if the GCS does not
    answer."""
    found = await _record(handle)
    return None if found is None else any(actor.state == ActorTableData.RESTARTING for actor in found)


async def _record(handle: Handle) -> list[ActorTableData] | None:
    """Return the record of an actor, or [] if the GCS has none. Returns None if the GCS does not answer."""
    key = ActorID.from_hex(actor_id(handle))
    found = await answer(gcs().async_get_all_actor_info(actor_id=key, timeout=TIMEOUT_SECONDS))
    return None if found is None else [found[key]] if key in found else []
